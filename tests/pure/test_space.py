"""Sets of packets against Python's own sets.

Each dimension is divided into a few cells, and every range that is drawn is made of whole cells; so a set of packets
is a set of tuples of cells, and what Python says of those is right.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import EVERYTHING, IPV6_BASE, NOTHING, SIZES, Partition, Space
from vpcctl.model.policy import joined

# The first number of each cell.  The ends of every dimension and the seam of the IP versions are among them.
STARTS = (
    (0, 5, IPV6_BASE - 1, IPV6_BASE, SIZES[0] - 1),
    (0, 1, IPV6_BASE + 7),
    (0, 6, 7, 255),
    (0, 1, 80, 65535),
)
CELLS = [
    [(low, high - 1) for low, high in zip(starts, (*starts[1:], size), strict=True)]
    for starts, size in zip(STARTS, SIZES, strict=True)
]
UNIVERSE = list(product(*(range(len(cells)) for cells in CELLS)))
Cell = tuple[int, ...]
UNDECIDED = None
some = settings(max_examples=60, deadline=None)

rows = [st.none() | st.lists(st.integers(0, len(cells) - 1), max_size=3) for cells in CELLS]
products = st.tuples(*rows)


def ranges(chosen: tuple) -> list[list[packetset.Interval] | None]:
    """Chosen cells of each dimension as ranges."""
    return [
        None if row is None else [cells[number] for number in row] for row, cells in zip(chosen, CELLS, strict=True)
    ]


def members(chosen: tuple) -> set[Cell]:
    """The same as a set of cells."""
    return set(product(*(range(len(cells)) if row is None else row for row, cells in zip(chosen, CELLS, strict=True))))


def corners(cell: Cell) -> list[tuple[int, ...]]:
    """The lowest and the highest packet of a cell."""
    found = [cells[place] for cells, place in zip(CELLS, cell, strict=True)]
    return [tuple(low for low, _ in found), tuple(high for _, high in found)]


def values_at(partition: Partition) -> dict[Cell, object]:
    """The value in each cell, which must be one."""
    found = {}
    for cell in UNIVERSE:
        one, other = (packetset.at(partition, corner) for corner in corners(cell))
        assert one == other, cell
        found[cell] = one
    return found


def cells_of(one: Space) -> set[Cell]:
    return {cell for cell, inside in values_at(one.partition).items() if inside}


@st.composite
def spaces(draw: st.DrawFn) -> tuple[Space, set[Cell]]:
    """A set of packets and the same set of cells: a few products, each added or taken away."""
    found, same = NOTHING, set()
    for chosen, added in draw(st.lists(st.tuples(products, st.booleans()), max_size=5)):
        piece = Space.of(*ranges(chosen))
        found, same = (found | piece, same | members(chosen)) if added else (found - piece, same - members(chosen))
    return found, same


@st.composite
def partitions(draw: st.DrawFn) -> Partition:
    """A function with small numbers for values, and UNDECIDED."""
    chosen = draw(products)
    return packetset.product(
        ranges(chosen), draw(st.integers(0, 3)), draw(st.sampled_from([UNDECIDED, UNDECIDED, 0, 1]))
    )


def first_decided(several: list[Partition]) -> Partition:
    """The first of several functions that is not UNDECIDED, packet by packet."""
    found: Partition = UNDECIDED
    for one in reversed(several):
        found = packetset.combine(lambda here, there: there if here is UNDECIDED else here, one, found)
    return found


def test_the_cells_fill_the_space() -> None:
    for cells, size in zip(CELLS, SIZES, strict=True):
        assert [cells[0][0], cells[-1][1]] == [0, size - 1]
        assert all(low <= high for low, high in cells)


@some
@given(products)
def test_a_product_is_the_product_of_its_ranges(chosen: tuple) -> None:
    assert cells_of(Space.of(*ranges(chosen))) == members(chosen)


@some
@given(spaces(), spaces())
def test_union_intersection_and_difference_are_those_of_sets(one: tuple, other: tuple) -> None:
    (here, left), (there, right) = one, other
    assert cells_of(here | there) == left | right
    assert cells_of(here & there) == left & right
    assert cells_of(here - there) == left - right
    assert bool(here) is bool(left)


@some
@given(spaces(), spaces())
def test_sets_are_equal_exactly_if_they_hold_the_same_packets(one: tuple, other: tuple) -> None:
    (here, left), (there, right) = one, other
    assert (here == there) is (left == right)
    assert (here | there, hash(here & there)) == (there | here, hash(there & here))
    # The same set by another way, as the same object.
    again = EVERYTHING - (EVERYTHING - here)
    assert again.partition is here.partition
    assert ((here - there) | (here & there)).partition is here.partition


@some
@given(spaces(), spaces(), spaces())
def test_the_laws_of_sets_hold(one: tuple, other: tuple, third: tuple) -> None:
    a, b, c = one[0], other[0], third[0]
    assert a & (b | c) == (a & b) | (a & c)
    assert a | (b & c) == (a | b) & (a | c)
    assert a - (b | c) == (a - b) & (a - c)
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    assert (a | NOTHING, a & EVERYTHING, a - NOTHING) == (a, a, a)
    assert (a & NOTHING, a - a, a - EVERYTHING, a | EVERYTHING) == (NOTHING, NOTHING, NOTHING, EVERYTHING)


def volume(box: packetset.Box) -> int:
    return math.prod(high - low + 1 for low, high in box)


@some
@given(spaces())
def test_boxes_are_disjoint_and_make_up_the_set(one: tuple) -> None:
    packets, same = one
    found = list(packets.boxes())
    for number, box in enumerate(found):
        assert not Space.of(*([side] for side in box)) - packets
        for other in found[:number]:
            assert any(high < least or top < low for (low, high), (least, top) in zip(box, other, strict=True))
    # Inside, disjoint, and as many packets as there are: nothing is missing.
    assert sum(map(volume, found)) == sum(
        math.prod(CELLS[number][place][1] - CELLS[number][place][0] + 1 for number, place in enumerate(cell))
        for cell in same
    )
    assert found == sorted(found)


@some
@given(st.lists(partitions(), min_size=1, max_size=4))
def test_the_boxes_of_a_function_fill_the_space(several: list[Partition]) -> None:
    function = first_decided(several)
    found = list(packetset.boxes(function))
    assert sum(volume(box) for box, _ in found) == math.prod(SIZES)
    for box, value in found:
        assert {packetset.at(function, corner) for corner in product(*box)} == {value}


@some
@given(st.lists(products, max_size=7))
def test_of_rules_in_order_the_first_that_matches_decides(several: list[tuple]) -> None:
    found = values_at(packetset.swept(list(map(ranges, several)), lambda numbers: numbers[0] if numbers else UNDECIDED))
    holding = list(map(members, several))
    for cell in UNIVERSE:
        assert found[cell] == next((number for number, held in enumerate(holding) if cell in held), UNDECIDED)


@some
@given(st.lists(products, max_size=7), st.sets(st.integers(0, 6)))
def test_unsure_rules_do_not_end_the_list(several: list[tuple], unsure: set[int]) -> None:
    def one_more(numbers: Sequence[int]) -> tuple[int, ...]:
        sure = next((place for place, number in enumerate(numbers) if number not in unsure), len(numbers))
        return tuple(numbers[: sure + 2])

    found = values_at(packetset.swept(list(map(ranges, several)), one_more, 1, unsure))
    holding = list(map(members, several))
    for cell in UNIVERSE:
        assert found[cell] == one_more([number for number, held in enumerate(holding) if cell in held])


@some
@given(spaces())
def test_the_ranges_around_a_set_are_the_smallest(one: tuple) -> None:
    packets, cells = one
    around = packetset.around(packets)
    assert cells_of(Space.of(*around)) == set(product(*({cell[place] for cell in cells} for place in range(4))))
    for place, row in enumerate(around):
        assert row is None or row == joined(row)
        assert row != [(0, SIZES[place] - 1)]


@some
@given(products, products)
def test_a_rule_is_clipped_to_a_region(rule: tuple, region: tuple) -> None:
    limits = packetset.around(Space.of(*ranges(region)))
    left = packetset.clipped(ranges(rule), limits)
    within = Space.of(*ranges(region))
    assert (left is None) is not bool(Space.of(*ranges(rule)) & within)
    if left is not None:
        assert Space.of(*left) & within == Space.of(*ranges(rule)) & within
        # It has no cuts but its own inside of the region, and those of the region.
        assert all(row is None or chosen is not None or limit is not None
                   for row, chosen, limit in zip(left, ranges(rule), limits, strict=True))  # fmt: skip


@some
@given(partitions(), partitions())
def test_functions_are_combined_packet_by_packet(one: Partition, other: Partition) -> None:
    left, right = values_at(one), values_at(other)
    found = values_at(packetset.combine(lambda here, there: (here, there), one, other))
    assert found == {cell: (left[cell], right[cell]) for cell in UNIVERSE}
    doubled = values_at(packetset.transform(lambda value: (value, value), one))
    assert doubled == {cell: (left[cell], left[cell]) for cell in UNIVERSE}


@some
@given(st.lists(partitions(), min_size=1, max_size=4), spaces())
def test_values_are_those_that_some_packet_has(several: list[Partition], within: tuple) -> None:
    function = first_decided(several)
    each = values_at(function)
    assert packetset.values(function) == set(each.values())
    assert packetset.values(function, within[0]) == {each[cell] for cell in within[1]}


@some
@given(spaces())
def test_cuts_tile_a_dimension(one: tuple) -> None:
    packets, _ = one
    found = list(packetset.cuts(packets.partition, packetset.SOURCE))
    assert [interval[0] for interval, _ in found] == [0, *(interval[1] + 1 for interval, _ in found[:-1])]
    assert found[-1][0][1] == SIZES[0] - 1
    assert all(left is not right for (_, left), (_, right) in pairwise(found))
    for (low, high), part in found:
        piece = Space.of([(low, high)], None, None, None)
        assert piece & Space(part) == piece & packets


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
def test_numbers_of_rules_are_not_taken_for_truth_values(numbers: tuple[int, int]) -> None:
    """To Python 1 == True and hash(1) == hash(True), so a cache may mix them up."""
    inside, outside = numbers
    place = [[(1000, 1999)], None, [(6, 6)], [(inside + 40, inside + 40)]]
    deciding = packetset.product(place, inside, outside)
    truth = packetset.product(place, bool(inside), bool(outside))
    again = packetset.product(place, inside, outside)
    assert {type(value) for value in packetset.values(truth)} == {bool}
    assert {type(value) for value in packetset.values(deciding) | packetset.values(again)} == {int}
    assert Space(truth) & EVERYTHING == Space.of(*place) or not inside


@some
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)).map(lambda pair: (pair[0], sum(pair)))))
def test_joined_ranges_are_the_same_numbers_apart(several: list[tuple[int, int]]) -> None:
    found = packetset.joined(several)
    assert {n for low, high in found for n in range(low, high + 1)} == {
        n for low, high in several for n in range(low, high + 1)
    }
    assert all(left[1] + 1 < right[0] for left, right in pairwise(found))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.0.0.0", 0),
        ("255.255.255.255", IPV6_BASE - 1),
        ("::", IPV6_BASE),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", SIZES[0] - 1),
    ],
)
def test_both_ip_versions_lie_on_one_line(text: str, number: int) -> None:
    assert packetset.number(ipaddress.ip_address(text)) == number
    assert str(packetset.address(number)) == text


def test_a_prefix_is_an_interval_and_an_interval_is_prefixes() -> None:
    prefix = ipaddress.ip_network("2001:db8::/32")
    assert packetset.prefixes(packetset.interval(prefix)) == [prefix]
    low, high = packetset.interval(ipaddress.ip_network("10.0.0.0/24"))
    found = packetset.prefixes((low + 1, high))
    assert [str(one) for one in found] == [
        "10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/30", "10.0.0.8/29", "10.0.0.16/28", "10.0.0.32/27", "10.0.0.64/26",
        "10.0.0.128/25",
    ]  # fmt: skip


def test_no_range_is_nothing_and_no_limit_is_everything() -> None:
    assert Space.of([], None, None, None) == Space.of(None, None, None, []) == NOTHING
    assert Space.of(None, None, None, None) == EVERYTHING
    assert Space.of([(0, SIZES[0] - 1)], None, [(0, 255)], [(0, 99), (50, 65535)]) == EVERYTHING
    assert (0, 0, 0, 0) in EVERYTHING
    assert (0, 0, 0, 0) not in NOTHING
