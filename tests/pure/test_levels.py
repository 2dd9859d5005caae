"""First-match order survives as levels of sets: every packet of a small universe is asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import groupby, pairwise, product
from operator import attrgetter
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from vpcctl.compiler.effort import Effort
from vpcctl.compiler.first_match import (
    ALL_TYPES,
    ALL_VALUES,
    WIDTH,
    Box,
    PortIndex,
    Ports,
    Prefix,
    _meet,
    _Union,
    _window,
    covers,
    spread,
    stack,
)
from vpcctl.model.policy import ICMP, TCP, UDP

# Eight addresses of each version, the prefixes that hold them, and one address outside.
PREFIXES: tuple[Prefix, ...] = (
    *(
        (version, value, width - short)
        for version, width in ((4, 32), (6, 128))
        for short in range(4)
        for value in range(0, 8, 1 << short)
    ),
    (4, 0, 0),
    (6, 0, 0),
)
OWN: dict[int, tuple[Prefix, ...]] = {
    version: ((version, 0, width), (version, 1, width), (version, 0, width - 1)) for version, width in WIDTH.items()
}
RANGES = ((0, 0), (1, 1), (1, 2), (2, 3), (3, 3), (1, 65535), (0, 65535), (65535, 65535))
TYPES = ((0, 0), (1, 1), (8, 8), (255, 255), (0, 254))
PORTS = (0, 1, 2, 3, 4, 255, 256, 65534, 65535)


class Packet(NamedTuple):
    version: int
    peer: int
    own: int
    protocol: int
    port: int | None


PACKETS = [
    Packet(version, peer, own, protocol, port)
    for version, peer, own in product((4, 6), (*range(8), 99), range(3))
    for protocol, ports in ((TCP, PORTS), (UDP, (1, 3)), (ICMP, (0, 1, 8, 9, 255)), (47, (None,)))
    for port in ports
]


def contending(chance: random.Random, sure: bool) -> list[Box]:
    """Some boxes, one for each rule, that contend for the same packets: there are few parts to make them of."""
    protocols = chance.choice([(TCP,), (ICMP,), (None, TCP), (None, ICMP), (None, TCP, ICMP)])
    version = chance.choice((4, 4, 6))
    # Those that are nested, more than single addresses.
    near = [one for one in PREFIXES if one[0] == version and (one[2] != WIDTH[version] or chance.random() < 0.3)]
    peers = [None, *chance.sample(near if chance.random() < 0.7 else PREFIXES, chance.randint(0, 4))]
    owns = [None, *chance.choice([(), OWN[version], (*OWN[4], *OWN[6])])]
    spans = {None: [None], ICMP: [None, *TYPES], TCP: [None, *chance.sample(RANGES, chance.randint(0, 4))]}
    found = []
    for rule in range(chance.randint(2, 9)):
        protocol = chance.choice(protocols)
        peer = chance.choice(peers)
        own = chance.choice([one for one in owns if None in (peer, one) or one[0] == peer[0]])
        verdict = chance.choice(["return", "return", "drop", f"goto log.{rule}"])
        unsure = not sure and chance.random() < 0.5
        found.append(Box(peer, own, protocol, chance.choice(spans[protocol]), verdict, rule, unsure))
    return found


def boxes(sure: bool = True) -> st.SearchStrategy[list[Box]]:
    """Plain chance makes denser lists than hypothesis, which likes its examples small."""
    return st.randoms(use_true_random=True).map(lambda chance: contending(chance, sure))


def matches(box: Box, packet: Packet) -> bool:
    return (
        holds(box.peer, packet.version, packet.peer)
        and holds(box.own, packet.version, packet.own)
        and box.protocol in (None, packet.protocol)
        and (box.ports is None or (packet.port is not None and box.ports[0] <= packet.port <= box.ports[1]))
    )


def holds(prefix: Prefix | None, version: int, value: int) -> bool:
    if prefix is None:
        return True
    width = 32 if version == 4 else 128
    return prefix[0] == version and value >> (width - prefix[2]) == prefix[1] >> (width - prefix[2])


def lookups(found: list[Box]) -> Iterator[list[Box]]:
    """The sets in the order in which they are asked."""
    for level in stack(found, Effort()):
        for _, members in groupby(sorted(level, key=attrgetter("rank")), key=attrgetter("rank")):
            yield from spread(list(members), Effort())


def first(candidates: list[Box], packet: Packet, declining: frozenset[int]) -> Box | None:
    return next((box for box in candidates if box.rule not in declining and matches(box, packet)), None)


@settings(max_examples=250, deadline=None)
@given(boxes())
def test_the_first_lookup_that_matches_is_the_first_rule_that_matches(found: list[Box]) -> None:
    asked = [box for members in lookups(found) for box in members]
    for packet in PACKETS:
        wanted, got = first(found, packet, frozenset()), first(asked, packet, frozenset())
        assert (wanted and wanted.rule) == (got and got.rule), packet


@settings(max_examples=120, deadline=None)
@given(boxes(sure=False), st.sets(st.integers(0, 8)))
def test_a_box_that_may_decline_leaves_the_packet_to_the_next_rule(found: list[Box], declining: set[int]) -> None:
    refused = frozenset(box.rule for box in found if box.unsure and box.rule in declining)
    asked = [box for members in lookups(found) for box in members]
    for packet in PACKETS:
        wanted, got = first(found, packet, refused), first(asked, packet, refused)
        assert (wanted and wanted.rule) == (got and got.rule), packet


@settings(max_examples=150, deadline=None)
@given(boxes(sure=False))
def test_no_two_elements_of_a_set_hold_the_same_packet(found: list[Box]) -> None:
    for members in lookups(found):
        for packet in PACKETS:
            assert sum(matches(box, packet) for box in members) <= 1, (members, packet)


@settings(max_examples=150, deadline=None)
@given(boxes())
def test_boxes_are_trimmed_and_never_widened(found: list[Box]) -> None:
    for box in (box for members in lookups(found) for box in members):
        origin = found[box.rule]
        assert box._replace(ports=origin.ports) == origin
        low, high = box.ports or ALL_VALUES
        assert (origin.ports or ALL_VALUES)[0] <= low <= high <= (origin.ports or ALL_VALUES)[1]
        if box.protocol == ICMP and box.ports:
            assert high <= ALL_TYPES[1]


def alike(chance: random.Random) -> list[Box]:
    """Boxes of one verdict and one shape, as a level hands them on, more of them than a level often has."""
    version = chance.choice((4, 6))
    nested = [one for one in PREFIXES if one[0] == version and one[2] != WIDTH[version]]
    peers = chance.sample(nested, 4) if chance.random() < 0.8 else [None]
    owns = OWN[version] if chance.random() < 0.6 else [None]
    return [
        Box(chance.choice(peers), chance.choice(owns), TCP, chance.choice(RANGES), "return", rule)
        for rule in range(chance.randint(2, 12))
    ]


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=True).map(alike))
def test_boxes_that_overlap_are_spread_over_sets_in_their_order(found: list[Box]) -> None:
    sets = spread(found, Effort())
    assert sorted((box for members in sets for box in members), key=attrgetter("rule")) == found
    apart = True
    for packet in PACKETS:
        matching = [[box.rule for box in members if matches(box, packet)] for members in sets]
        assert all(len(rules) <= 1 for rules in matching), (sets, packet)
        asked = [rule for rules in matching for rule in rules]
        assert asked == sorted(asked), "an earlier box is asked earlier"
        apart &= len(asked) <= 1
    assert apart is False or len(sets) == 1


@settings(max_examples=100, deadline=None)
@given(boxes())
def test_the_same_boxes_are_levelled_the_same_way(found: list[Box]) -> None:
    assert list(lookups(found)) == list(lookups(found))


def test_rules_of_one_verdict_make_one_level_however_many_they_are() -> None:
    many = [Box((4, number, 32), None, TCP, (1, 2), "return", number) for number in range(500)]
    assert len(stack(many, Effort())) == 1
    assert [len(members) for members in lookups(many)] == [500]


def test_levels_grow_with_the_depth_to_which_verdicts_interleave() -> None:
    nested = [(4, 0, 32), (4, 0, 31), (4, 0, 30), (4, 0, 29)]
    found = [Box(peer, None, None, None, ("drop", "return")[rule % 2], rule) for rule, peer in enumerate(nested)]
    assert [[box.rule for box in level] for level in stack(found, Effort())] == [[0], [1], [2], [3]]
    apart = [Box((4, number, 32), None, None, None, ("drop", "return")[number % 2], number) for number in range(4)]
    assert len(stack(apart, Effort())) == 1


def test_what_an_earlier_rule_decides_is_taken_off_a_later_one() -> None:
    first_rule = Box(None, None, TCP, (80, 80), "drop", 0)
    assert stack([first_rule, first_rule._replace(verdict="return", rule=1)], Effort()) == [[first_rule]]
    rest = [box.ports for box in stack([first_rule, Box(None, None, TCP, (1, 65535), "return", 1)], Effort())[0]]
    assert rest == [(80, 80), (1, 79), (81, 65535)]


# -- ports ---------------------------------------------------------------------------------------------------------

spans = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda pair: (min(pair), max(pair)))
edges = st.sampled_from([(0, 0), (0, 65535), (1, 1), (1, 65535), (65535, 65535), (255, 256), (256, 256), (80, 80)])


@settings(max_examples=150, deadline=None)
@given(st.lists(spans | edges, min_size=1, max_size=6))
def test_ports_survive_the_way_through_indices(ranges: list[tuple[int, int]]) -> None:
    ports = PortIndex(ranges)
    whole = ports.everything[1]
    assert all(ports.spans(_window(ports.range(span), 0, whole)) == [span] for span in ranges)
    assert ports.spans(_window(ports.range(None), 0, whole)) == [ALL_VALUES]
    got = ports.spans(_Union(*map(ports.range, ranges)).window(0, whole))
    assert got == sorted(got)
    assert all(one[1] + 1 < other[0] for one, other in pairwise(got)), "as few as possible"
    for edge in {value + beside for span in ranges for value in span for beside in (-1, 0, 1)}:
        assert any(low <= edge <= high for low, high in got) == any(low <= edge <= high for low, high in ranges)


def indices(ports: Ports) -> set[int]:
    """A set of ports as its indices, one by one."""
    low, high, bits = ports
    return {index for index in range(low, high) if bits is None or bits >> (index - low) & 1}


def members(bits: int, low: int) -> set[int]:
    return {low + place for place in range(bits.bit_length()) if bits >> place & 1}


# Around the boundaries of the bytes of a union.
stretches = st.tuples(st.integers(0, 40), st.integers(1, 20), st.none() | st.integers(1, (1 << 20) - 1)).map(
    lambda parts: (parts[0], parts[0] + parts[1], parts[2] and ((parts[2] & ((1 << parts[1]) - 1)) or 1))
)


@settings(max_examples=400, deadline=None)
@given(st.lists(stretches, max_size=5), stretches)
def test_sets_of_ports_do_what_sets_do(sets: list[Ports], asked: Ports) -> None:
    low, high, _ = asked
    for one in sets:
        assert _meet(one, asked) == bool(indices(one) & indices(asked))
        assert members(_window(one, low, high), low) == indices(one) & set(range(low, high))
    union, every = _Union(*sets), set().union(*map(indices, sets))
    assert members(union.within(asked), low) == every & indices(asked)
    assert members(union.window(low, high), low) == every & set(range(low, high))
    union.copy().add(asked)
    assert members(union.within(asked), low) == every & indices(asked), "a copy is another set"


def test_no_ports_are_no_bits() -> None:
    assert PortIndex([]).spans(0) == []
    assert PortIndex([None]).range(None) == PortIndex([None]).everything


# -- prefixes ------------------------------------------------------------------------------------------------------

maybe = st.none() | st.sampled_from(PREFIXES)


@given(maybe, maybe)
def test_a_prefix_covers_another_when_it_holds_all_of_its_addresses(outer: Prefix | None, inner: Prefix | None) -> None:
    def members(prefix: Prefix | None) -> set:
        places = [*product((4, 6), (*range(8), 99)), (4, 2**32 - 1), (6, 2**128 - 1)]
        return {(version, value) for version, value in places if holds(prefix, version, value)}

    assert covers(outer, inner) is (members(inner) <= members(outer))
