"""Exact sets of packets, and functions on them, over (source, destination, protocol, port or ICMP type).

Theory of operation.  A *partition* of the packet space is a decision diagram: a node cuts one dimension into
intervals and leads to a node of a later dimension for each, or to a value.  Nodes are shared and neighbouring equal
parts are joined, so equal functions are the same object and a path through the diagram is a box; the boxes of a
partition are disjoint by construction (compare interval decision diagrams, Strehl and Thiele 1998).

An ordered list of rules becomes a partition by a sweep along each dimension in turn.  Between two neighbouring cuts the
same rules match, and what these come to in the later dimensions is computed once.  A rule that matches everything in
the later dimensions ends the list there.  So the cost is about n log n where few rules overlap at one place.

Where the lists of several dimensions cross each other freely a diagram can grow with their product.  `bounded` limits
what may be spent on diagrams within it, and TooFineError ends what would need more.

Both IP versions lie on one line of addresses: IPv4 first, IPv6 behind it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterator, Sequence
from operator import itemgetter
from typing import Any

from vpcctl.errors import TooFineError
from vpcctl.model.policy import Address, Network, joined

SOURCE, DESTINATION, PROTOCOL, PORT = range(4)
_VALUE = 4
IPV6_BASE = 1 << 32
SIZES = (IPV6_BASE + (1 << 128), IPV6_BASE + (1 << 128), 256, 65536)

Interval = tuple[int, int]
VERSION_4: Interval = (0, IPV6_BASE - 1)
VERSION_6: Interval = (IPV6_BASE, SIZES[0] - 1)
Box = tuple[Interval, Interval, Interval, Interval]
Value = Any  # hashable, and compared for equality
# What a rule matches: inclusive ranges for each dimension, None for all of it.
Ranges = Sequence[Sequence[Interval] | None]


class Node:
    """A cut of one dimension: part i reaches up to, and not including, ``bounds[i]``.  Made by `_node` alone."""

    __slots__ = ("bounds", "dimension", "parts")

    def __init__(self, dimension: int, bounds: tuple[int, ...], parts: tuple[object, ...]):
        self.dimension, self.bounds, self.parts = dimension, bounds, parts


Partition = Node | Value
_nodes: dict[tuple[object, ...], Node] = {}


# What is left to be spent, in parts of nodes: about a microsecond and 100 bytes each.
_left: float = math.inf


@contextlib.contextmanager
def bounded(parts: float) -> Iterator[None]:
    """Let what is done within spend so much, whatever is left outside."""
    global _left
    before, _left = _left, parts
    try:
        yield
    finally:
        _left = before


def spend(parts: int) -> None:
    """Take note of so much work; TooFineError where more was spent than may be."""
    global _left
    _left -= parts
    if _left < 0:
        raise TooFineError("the answer has too many different cases; ask about a single instance, address or port")


def _node(dimension: int, bounds: Sequence[int], parts: Sequence[object]) -> Partition:
    """The one node with these parts, neighbours that are equal joined; the part itself where only one is left."""
    spend(len(bounds))
    joined_bounds: list[int] = []
    joined_parts: list[object] = []
    for bound, part in zip(bounds, parts, strict=True):
        if (joined_parts and joined_parts[-1] is part) or (
            joined_parts and not isinstance(part, Node) and joined_parts[-1] == part
        ):
            joined_bounds[-1] = bound
        else:
            joined_bounds.append(bound)
            joined_parts.append(part)
    if len(joined_parts) == 1:
        return joined_parts[0]
    made = (dimension, tuple(joined_bounds), tuple(joined_parts))
    # The types belong to the key: to Python, rule number 1 and True are equal.
    key = (*made, tuple(map(type, joined_parts)))
    found = _nodes.get(key)
    if found is None:
        found = _nodes[key] = Node(*made)
    return found


def _dimension(partition: Partition) -> int:
    return partition.dimension if isinstance(partition, Node) else _VALUE


def product(ranges: Ranges, value: Value, otherwise: Value) -> Partition:
    """`value` for packets that lie in one of the inclusive `ranges` of each dimension (None: anywhere)."""
    inner: Partition = value
    for dimension in reversed(range(_VALUE)):
        chosen = ranges[dimension]
        if chosen is None:
            continue
        bounds: list[int] = []
        parts: list[object] = []
        for low, high in joined(chosen):
            if low > (bounds[-1] if bounds else 0):
                bounds.append(low)
                parts.append(otherwise)
            bounds.append(high + 1)
            parts.append(inner)
        if not bounds or bounds[-1] < SIZES[dimension]:
            bounds.append(SIZES[dimension])
            parts.append(otherwise)
        inner = _node(dimension, bounds, parts)
    return inner


def combine(operation: Callable[[Value, Value], Value], one: Partition, other: Partition) -> Partition:
    """The partition whose value at each packet is `operation` of the two values there."""

    def settled(here: Partition, there: Partition) -> Partition:
        return DEEPER if isinstance(here, Node) or isinstance(there, Node) else operation(here, there)

    return merged(settled, one, other)


DEEPER = object()


def merged(settled: Callable[[Partition, Partition], Partition], one: Partition, other: Partition) -> Partition:
    """One partition out of two: `settled` says what becomes of two parts in the same place.

    It must answer for two values; where one of the two is a node it may answer DEEPER, and is asked for their parts.
    """
    memory: dict[tuple[Partition, Partition], Partition] = {}

    def walk(here: Partition, there: Partition) -> Partition:
        found = settled(here, there)
        if found is not DEEPER:
            return found
        key = (here, there)
        found = memory.get(key, DEEPER)
        if found is not DEEPER:
            return found
        first, second = _dimension(here), _dimension(there)
        if first < second:
            made = _node(first, here.bounds, [walk(part, there) for part in here.parts])
        elif second < first:
            made = _node(second, there.bounds, [walk(here, part) for part in there.parts])
        else:
            made = _node(first, *_zipped(here, there, walk))
        memory[key] = made
        return made

    return walk(one, other)


def transform(operation: Callable[[Value], Value], partition: Partition) -> Partition:
    """The partition with `operation` applied to each value."""
    memory: dict[Node, Partition] = {}

    def walk(part: Partition) -> Partition:
        if not isinstance(part, Node):
            return operation(part)
        if part not in memory:
            memory[part] = _node(part.dimension, part.bounds, [walk(inner) for inner in part.parts])
        return memory[part]

    return walk(partition)


def swept(
    rules: Sequence[Ranges], settled: Callable[[Sequence[int]], Value], more: int = 0, unsure: Container[int] = ()
) -> Partition:
    """The partition whose value at each packet is `settled` of the numbers of the rules that match it, ascending.

    The list ends with the first rule that is not in `unsure`, or so many rules `more` behind it; where it is longer,
    the rest is left out at random.
    """
    # The last dimension that a rule limits: behind it, the rule matches everything.
    last = [max((place for place in range(_VALUE) if rule[place] is not None), default=-1) for rule in rules]
    memory: dict[tuple[int, Sequence[int]], Partition] = {}

    def ended(numbers: Sequence[int], dimension: int) -> Sequence[int]:
        """`numbers` up to the last one that can count."""
        left = more + 1
        for place, number in enumerate(numbers, 1):
            if last[number] < dimension and (left <= more or number not in unsure):
                left -= 1
                if not left:
                    return tuple(numbers[:place])
        return tuple(numbers)

    def walk(numbers: Sequence[int], dimension: int) -> Partition:
        found = memory.get((dimension, numbers), DEEPER)
        if found is DEEPER:
            found = memory[dimension, numbers] = made(numbers, dimension)
        return found

    def made(numbers: Sequence[int], dimension: int) -> Partition:
        while dimension < _VALUE:
            if any(rules[number][dimension] is not None for number in numbers):
                return _node(dimension, *cut(numbers, dimension))
            dimension += 1
        return settled(numbers)

    def cut(numbers: Sequence[int], dimension: int) -> tuple[list[int], list[Partition]]:
        """The places at which rules begin or end to match, and what lies before each."""
        here: list[int] = []
        turns: dict[int, list[int]] = {SIZES[dimension]: []}
        for number in numbers:
            chosen = rules[number][dimension]
            if chosen is None:
                here.append(number)
                continue
            for low, high in chosen if len(chosen) < 2 else joined(chosen):
                turns.setdefault(low, []).append(number)
                turns.setdefault(high + 1, []).append(number)
        bounds: list[int] = []
        parts: list[Partition] = []
        for place in sorted(turns):
            if place:
                matching = ended(here, dimension + 1)
                spend(len(matching))
                bounds.append(place)
                parts.append(walk(matching, dimension + 1))
            # Ranges of one rule do not touch: it begins here, or it ends.
            for number in turns[place]:
                found = bisect_left(here, number)
                if found < len(here) and here[found] == number:
                    del here[found]
                else:
                    here.insert(found, number)
        return bounds, parts

    return walk(ended(range(len(rules)), 0), 0)


def _zipped(
    one: Node, other: Node, walk: Callable[[Partition, Partition], Partition]
) -> tuple[list[int], list[object]]:
    """The common cuts of two nodes of one dimension, and `walk` of the parts between them."""
    bounds: list[int] = []
    parts: list[object] = []
    here = there = 0
    while True:
        parts.append(walk(one.parts[here], other.parts[there]))
        upto, until = one.bounds[here], other.bounds[there]
        if upto < until:
            bounds.append(upto)
            here += 1
        elif until < upto:
            bounds.append(until)
            there += 1
        else:
            bounds.append(upto)
            here += 1
            there += 1
            if here == len(one.bounds):
                return bounds, parts


def values(partition: Partition, within: Space | None = None) -> set[Value]:
    """Every value that some packet has, or some packet of the set `within`."""
    seen: set[tuple[Partition, Partition]] = set()
    found: set[Value] = set()
    waiting: list[tuple[Partition, Partition]] = [(partition, True if within is None else within.partition)]
    while waiting:
        pair = part, region = waiting.pop()
        if region is False or pair in seen:
            continue
        if not isinstance(part, Node):
            found.add(part)
            continue
        seen.add(pair)
        known = len(waiting)
        if part.dimension < _dimension(region):
            waiting += ((inner, region) for inner in part.parts)
        elif part.dimension > region.dimension:
            waiting += ((part, inner) for inner in region.parts)
        else:
            waiting += _meeting(part, region)
        spend(len(waiting) - known + 1)
    return found


def _meeting(one: Node, region: Node) -> Iterator[tuple[Partition, Partition]]:
    """The parts of two nodes of one dimension that share a place inside the region, each pair once."""
    low = 0
    for bound, inner in zip(region.bounds, region.parts, strict=True):
        if inner is not False:
            first, last = bisect_right(one.bounds, low), bisect_left(one.bounds, bound)
            for part in dict.fromkeys(one.parts[first : last + 1]):
                yield part, inner
        low = bound


def around(space: Space) -> list[list[Interval] | None]:
    """The smallest ranges for each dimension that hold all of a set; None where they are the whole dimension."""
    ranges: list[list[Interval] | None] = []
    layer: dict[Partition, None] = {space.partition: None} if space else {}
    for dimension in range(_VALUE):
        found: set[Interval] = set()
        inner: dict[Partition, None] = {}
        for part in layer:
            for interval, rest in cuts(part, dimension):
                if rest is not False:
                    found.add(interval)
                    inner[rest] = None
        spend(len(found))
        layer = inner
        whole = joined(found)
        ranges.append(None if whole == [(0, SIZES[dimension] - 1)] else whole)
    return ranges


def clipped(rule: Ranges, region: Ranges) -> Ranges | None:
    """What is left of a rule within `region`, whose ranges are disjoint and ascending; None if that is nothing."""
    found: list[Sequence[Interval] | None] = []
    for chosen, limits in zip(rule, region, strict=True):
        if chosen is None or limits is None:
            limited = limits if chosen is None else chosen
            if limited is not None and not limited:
                return None
            found.append(chosen)
            continue
        inside = [part for interval in chosen for part in _overlaps(interval, limits)]
        if not inside:
            return None
        # What holds all of the region limits nothing.
        found.append(None if len(inside) >= len(limits) and joined(inside) == list(limits) else inside)
    return found


def _overlaps(interval: Interval, limits: Sequence[Interval]) -> Iterator[Interval]:
    low, high = interval
    for place in range(bisect_left(limits, low, key=_upper), len(limits)):
        first, last = limits[place]
        if first > high:
            break
        yield max(low, first), min(high, last)


_upper: Callable[[Interval], int] = itemgetter(1)


def at(partition: Partition, point: Sequence[int]) -> Value:
    """The value at one packet, given as (source, destination, protocol, port) on the lines of numbers."""
    while isinstance(partition, Node):
        partition = partition.parts[bisect_right(partition.bounds, point[partition.dimension])]
    return partition


def cuts(partition: Partition, dimension: int) -> Iterator[tuple[Interval, Partition]]:
    """The parts of a partition along one dimension, in ascending order; earlier ones must not be cut."""
    if not isinstance(partition, Node) or partition.dimension > dimension:
        yield (0, SIZES[dimension] - 1), partition
        return
    low = 0
    for bound, part in zip(partition.bounds, partition.parts, strict=True):
        yield (low, bound - 1), part
        low = bound


def boxes(partition: Partition) -> Iterator[tuple[Box, Value]]:
    """Disjoint boxes that fill the space, each with its value, in ascending order."""
    for source, to in cuts(partition, SOURCE):
        for destination, by in cuts(to, DESTINATION):
            for protocol, on in cuts(by, PROTOCOL):
                for ports, value in cuts(on, PORT):
                    yield (source, destination, protocol, ports), value


class Space:
    """A set of packets; equal sets are equal, and hash alike."""

    __slots__ = ("partition",)

    def __init__(self, partition: Partition):
        self.partition = partition

    @classmethod
    def of(cls, *ranges: Sequence[Interval] | None) -> Space:
        """All packets in these ranges of source, destination, protocol and port; None is anywhere."""
        return cls(product(ranges, True, False))

    def union(self, other: Space) -> Space:
        """Packets in either."""
        return Space(merged(_either, self.partition, other.partition))

    def intersection(self, other: Space) -> Space:
        """Packets in both."""
        return Space(merged(_both, self.partition, other.partition))

    def difference(self, other: Space) -> Space:
        """Packets in this one alone."""
        return Space(merged(_one_alone, self.partition, other.partition))

    def boxes(self) -> Iterator[Box]:
        """Disjoint boxes that fill the set, in ascending order."""
        return (box for box, value in boxes(self.partition) if value)

    __or__, __and__, __sub__ = union, intersection, difference

    def __bool__(self) -> bool:
        return self.partition is not False

    def __contains__(self, point: Sequence[int]) -> bool:
        return bool(at(self.partition, point))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.partition is other.partition

    def __hash__(self) -> int:
        return hash(self.partition)


def _either(one: Partition, other: Partition) -> Partition:
    if one is False or other is True:
        return other
    return one if other is False or one is True or one is other else DEEPER


def _both(one: Partition, other: Partition) -> Partition:
    if one is True or other is False:
        return other
    return one if other is True or one is False or one is other else DEEPER


def _one_alone(one: Partition, other: Partition) -> Partition:
    if one is False or other is True or one is other:
        return False
    return one if other is False else DEEPER


EVERYTHING, NOTHING = Space(True), Space(False)


def number(address: Address) -> int:
    """An address on the line of addresses."""
    return int(address) if address.version == 4 else IPV6_BASE + int(address)


def address(number: int) -> Address:
    """The address at a place of the line."""
    return ipaddress.IPv4Address(number) if number < IPV6_BASE else ipaddress.IPv6Address(number - IPV6_BASE)


def interval(prefix: Network) -> Interval:
    """The addresses of a prefix on the line."""
    return number(prefix.network_address), number(prefix.broadcast_address)


def prefixes(interval: Interval) -> list[Network]:
    """The fewest prefixes that make up an interval, which lies in one IP version."""
    return list(ipaddress.summarize_address_range(address(interval[0]), address(interval[1])))
