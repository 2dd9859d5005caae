"""Exact sets of packets, and functions on them, over (source, destination, protocol, port or ICMP type).

Theory of operation.  A *partition* of the packet space is a decision diagram: a node cuts one dimension into
intervals and leads to a node of a later dimension for each, or to a value.  Nodes are shared and neighbouring equal
parts are joined, so equal functions are the same object and a path through the diagram is a box; the boxes of a
partition are disjoint by construction.  A first-match rule list becomes a partition by merging halves, which costs
about n log n, not n² (compare interval decision diagrams, Strehl and Thiele 1998).

Both IP versions lie on one line of addresses: IPv4 first, IPv6 behind it.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from vpcctl.policy import Address, Network

SOURCE, DESTINATION, PROTOCOL, PORT = range(4)
_VALUE = 4
IPV6_BASE = 1 << 32
SIZES = (IPV6_BASE + (1 << 128), IPV6_BASE + (1 << 128), 256, 65536)

Interval = tuple[int, int]
Box = tuple[Interval, Interval, Interval, Interval]
Value = Hashable


class Node:
    """A cut of one dimension: part i reaches up to, and not including, ``bounds[i]``.  Made by `_node` alone."""

    __slots__ = ("bounds", "dimension", "parts")

    def __init__(self, dimension: int, bounds: tuple[int, ...], parts: tuple[object, ...]):
        self.dimension, self.bounds, self.parts = dimension, bounds, parts


Partition = Node | Value
_nodes: dict[tuple, Node] = {}


def _node(dimension: int, bounds: Sequence[int], parts: Sequence[object]) -> Partition:
    """The one node with these parts, neighbours that are equal joined; the part itself where only one is left."""
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
        return joined_parts[0]  # type: ignore[return-value]
    key = (dimension, tuple(joined_bounds), tuple(joined_parts))
    found = _nodes.get(key)
    if found is None:
        found = _nodes[key] = Node(*key)
    return found


def forget() -> None:
    """Drop the shared nodes; partitions made before must not be combined with those made after."""
    _nodes.clear()


def _dimension(partition: Partition) -> int:
    return partition.dimension if isinstance(partition, Node) else _VALUE


def product(ranges: Sequence[Sequence[Interval] | None], value: Value, otherwise: Value) -> Partition:
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


def joined(ranges: Iterable[Interval]) -> list[Interval]:
    """The same numbers in ascending ranges that neither overlap nor touch."""
    found: list[Interval] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def combine(operation: Callable[[Value, Value], Value], one: Partition, other: Partition) -> Partition:
    """The partition whose value at each packet is `operation` of the two values there."""
    return _combined(operation, one, other, {})


def _combined(operation: Callable, one: Partition, other: Partition, memory: dict) -> Partition:
    first, second = _dimension(one), _dimension(other)
    if first == second == _VALUE:
        return operation(one, other)
    key = (one, other)
    found = memory.get(key, memory)
    if found is not memory:
        return found
    dimension = min(first, second)
    bounds: Sequence[int]
    if first > dimension:
        bounds, parts = other.bounds, [_combined(operation, one, part, memory) for part in other.parts]
    elif second > dimension:
        bounds, parts = one.bounds, [_combined(operation, part, other, memory) for part in one.parts]
    else:
        bounds, parts = _zipped(one, other, lambda here, there: _combined(operation, here, there, memory))
    memory[key] = made = _node(dimension, bounds, parts)
    return made


def transform(operation: Callable[[Value], Value], partition: Partition) -> Partition:
    """The partition with `operation` applied to each value."""
    memory: dict = {}

    def walk(part: Partition) -> Partition:
        if not isinstance(part, Node):
            return operation(part)
        if part not in memory:
            memory[part] = _node(part.dimension, part.bounds, [walk(inner) for inner in part.parts])
        return memory[part]

    return walk(partition)


UNDECIDED: Value = None


def first_match(partitions: Sequence[Partition]) -> Partition:
    """The first of `partitions` that is not UNDECIDED decides, packet by packet."""
    layer = list(partitions) or [UNDECIDED]
    while len(layer) > 1:
        layer = [_over(*layer[number : number + 2]) for number in range(0, len(layer), 2)]
    return layer[0]


def _over(upper: Partition, lower: Partition = UNDECIDED) -> Partition:
    memory: dict = {}

    def walk(one: Partition, other: Partition) -> Partition:
        if one is UNDECIDED:
            return other
        if other is UNDECIDED or not isinstance(one, Node):
            return one
        key = (one, other)
        if key in memory:
            return memory[key]
        dimension = min(_dimension(one), _dimension(other))
        if one.dimension > dimension:
            bounds, parts = other.bounds, [walk(one, part) for part in other.parts]
        elif _dimension(other) > dimension:
            bounds, parts = one.bounds, [walk(part, other) for part in one.parts]
        else:
            bounds, parts = _zipped(one, other, walk)
        memory[key] = _node(dimension, bounds, parts)
        return memory[key]

    return walk(upper, lower)


def _zipped(one: Node, other: Node, walk: Callable) -> tuple[list[int], list[object]]:
    """The common cuts of two nodes of one dimension, and `walk` of the parts between them."""
    bounds: list[int] = []
    parts: list[object] = []
    here = there = 0
    while here < len(one.bounds):
        parts.append(walk(one.parts[here], other.parts[there]))
        upto, until = one.bounds[here], other.bounds[there]
        bounds.append(min(upto, until))
        here += upto <= until
        there += until <= upto
    return bounds, parts


def values(partition: Partition) -> set[Value]:
    """Every value that some packet has."""
    seen: set[Partition] = set()
    found: set[Value] = set()
    waiting = [partition]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Node):
            found.add(part)
        elif part not in seen:
            seen.add(part)
            waiting += part.parts
    return found


def at(partition: Partition, point: Sequence[int]) -> Value:
    """The value at one packet, given as (source, destination, protocol, port) on the lines of numbers."""
    while isinstance(partition, Node):
        partition = partition.parts[bisect_right(partition.bounds, point[partition.dimension])]
    return partition


def boxes(partition: Partition) -> Iterator[tuple[Box, Value]]:
    """Disjoint boxes that fill the space, each with its value, in ascending order."""
    whole = [(0, size - 1) for size in SIZES]

    def walk(part: Partition, box: list[Interval]) -> Iterator[tuple[Box, Value]]:
        if not isinstance(part, Node):
            yield tuple(box), part  # type: ignore[misc]
            return
        low = 0
        for bound, inner in zip(part.bounds, part.parts, strict=True):
            yield from walk(inner, [*box[: part.dimension], (low, bound - 1), *box[part.dimension + 1 :]])
            low = bound

    return walk(partition, whole)


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
        return Space(combine(lambda one, two: one or two, self.partition, other.partition))

    def intersection(self, other: Space) -> Space:
        """Packets in both."""
        return Space(combine(lambda one, two: one and two, self.partition, other.partition))

    def difference(self, other: Space) -> Space:
        """Packets in this one alone."""
        return Space(combine(lambda one, two: one and not two, self.partition, other.partition))

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

    def __len__(self) -> int:
        """How many packets."""
        total = 0
        for box in self.boxes():
            volume = 1
            for low, high in box:
                volume *= high - low + 1
            total += volume
        return total


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


VERSION_4: Interval = (0, IPV6_BASE - 1)
