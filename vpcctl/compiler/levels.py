"""First-match order as a short list of set lookups.

Theory of operation.  A rule's match is a handful of *boxes*: (peer prefix, own prefix, protocol, port range).  Two
boxes with the same verdict commute, and so do two that share no packet.  So a box needs to be asked only after the
earlier boxes with *another* verdict that it overlaps: its *level* is one more than the highest level among those.
Within a level no two boxes with different verdicts overlap, hence all of them can stand in one map, and the number of
lookups is the depth to which verdicts interleave, not the number of rules.

Prefixes are nested or disjoint, so overlap is found by walking a prefix's ancestors (at most one per prefix length
in use) and a summary of everything below it; ports are bits of an integer over the break points that the rules use.
The own side is ignored while levels are given: more overlap than there is can raise a level, never make it wrong.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# (IP version, network address as an integer, prefix length)
Prefix = tuple[int, int, int]
WIDTH = {4: 32, 6: 128}
EVERYWHERE: tuple[Prefix, ...] = ((4, 0, 0), (6, 0, 0))
ALL_VALUES = (0, 65535)


class Box(NamedTuple):
    """Packets that one rule matches.  None is "any"; `ports` is a range of ports or of ICMP types.

    `verdict` is compared for equality alone, except that boxes with `alone` commute with nothing.
    """

    peer: Prefix | None
    own: Prefix | None
    protocol: int | None
    ports: tuple[int, int] | None
    verdict: str
    rule: int
    alone: bool = False


class PortBits:
    """Sets of ports as integers: one bit for each stretch between two neighbouring break points."""

    def __init__(self, ranges: Iterable[tuple[int, int] | None]):
        points = {ALL_VALUES[0], ALL_VALUES[1] + 1}
        for low, high in filter(None, ranges):
            points.update((low, high + 1))
        self._points = sorted(points)
        self.everything = (1 << (len(self._points) - 1)) - 1

    def bits(self, ports: tuple[int, int] | None) -> int:
        """The bits of an inclusive range whose ends were among the ranges given at construction."""
        if ports is None:
            return self.everything
        low, high = bisect_left(self._points, ports[0]), bisect_left(self._points, ports[1] + 1)
        return (1 << high) - (1 << low)

    def ranges(self, bits: int) -> list[tuple[int, int]]:
        """The inclusive ranges of `bits`, ascending, as few as possible."""
        found = []
        while bits:
            low = (bits & -bits).bit_length() - 1
            filled = bits + (1 << low)
            high = (filled & -filled).bit_length() - 1
            found.append((self._points[low], self._points[high] - 1))
            bits &= ~((1 << high) - (1 << low))
        return found


# verdict -> level -> the ports at which a box of that verdict and level stands
Occupied = dict[str, dict[int, int]]


class _Index:
    """The boxes placed so far, by protocol and peer prefix."""

    # Slots besides the protocol numbers: boxes of no particular protocol, and all boxes.
    UNSPECIFIED, ALL = -1, -2

    def __init__(self, lengths: dict[int, list[int]]):
        self._lengths = lengths
        self._at: dict[tuple, Occupied] = defaultdict(dict)
        self._below: dict[tuple, Occupied] = defaultdict(dict)

    def highest_conflict(self, box: Box, bits: int) -> int:
        """The highest level of a placed box that overlaps `box` with another verdict, or 0."""
        best = 0
        slots = (self.ALL,) if box.protocol is None else (box.protocol, self.UNSPECIFIED)
        for version, value, length in (box.peer,) if box.peer else EVERYWHERE:
            width = WIDTH[version]
            keys = [(version, short, value >> (width - short)) for short in self._lengths[version] if short <= length]
            below = (version, length, value >> (width - length))
            for slot in slots:
                nodes = [self._at.get((slot, *key)) for key in keys]
                nodes.append(self._below.get((slot, *below)))
                for node in filter(None, nodes):
                    best = _highest(node, box, bits, best)
        return best

    def place(self, box: Box, bits: int, level: int) -> None:
        """Remember `box` at `level`."""
        slots = (self.UNSPECIFIED if box.protocol is None else box.protocol, self.ALL)
        for version, value, length in (box.peer,) if box.peer else EVERYWHERE:
            width = WIDTH[version]
            for slot in slots:
                _occupy(self._at[slot, version, length, value >> (width - length)], box.verdict, level, bits)
                for short in self._lengths[version]:
                    if short < length:
                        _occupy(self._below[slot, version, short, value >> (width - short)], box.verdict, level, bits)


def _highest(node: Occupied, box: Box, bits: int, best: int) -> int:
    for verdict, levels in node.items():
        if verdict != box.verdict or box.alone:
            for level, taken in levels.items():
                if level > best and taken & bits:
                    best = level
    return best


def _occupy(node: Occupied, verdict: str, level: int, bits: int) -> None:
    levels = node.setdefault(verdict, {})
    levels[level] = levels.get(level, 0) | bits


def assign(boxes: Sequence[Box]) -> list[int]:
    """The level of each of `boxes`, which stand in first-match order; the lowest level is 1."""
    ports = PortBits(box.ports for box in boxes)
    lengths: dict[int, set[int]] = {4: {0}, 6: {0}}
    for box in boxes:
        if box.peer:
            lengths[box.peer[0]].add(box.peer[2])
    index = _Index({version: sorted(found) for version, found in lengths.items()})
    found = []
    for box in boxes:
        bits = ports.bits(box.ports)
        level = index.highest_conflict(box, bits) + 1
        index.place(box, bits, level)
        found.append(level)
    return found


def covers(outer: Prefix | None, inner: Prefix | None) -> bool:
    """Does `outer` hold all addresses of `inner`?  None is any address."""
    if outer is None:
        return True
    if inner is None or outer[0] != inner[0] or outer[2] > inner[2]:
        return False
    shift = WIDTH[outer[0]] - outer[2]
    return outer[1] >> shift == inner[1] >> shift


def disjoint(boxes: Sequence[Box]) -> tuple[list[Box], list[Box]]:
    """Boxes of one verdict and one level, without overlap: (those that can stand in one set, the rest).

    Of two boxes that overlap the one with the wider peer keeps the ports that they share; where their own sides cross
    and neither covers the other, the later one goes to the rest, which takes a set of its own.
    """
    ports = PortBits(box.ports for box in boxes)
    lengths = sorted({box.peer[2] for box in boxes if box.peer})
    placed: dict[tuple, list[tuple[Prefix | None, int]]] = defaultdict(list)
    kept: list[Box] = []
    rest: list[Box] = []
    for box in sorted(boxes, key=lambda box: (box.peer[2] if box.peer else 0, box.own[2] if box.own else 0, box.rule)):
        bits = ports.bits(box.ports)
        crossing = False
        for own, taken in _ancestors(placed, box, lengths):
            if covers(own, box.own):
                bits &= ~taken
            elif covers(box.own, own) and bits & taken:
                crossing = True
        if crossing and bits:
            rest.append(box)
        elif bits:
            placed[_place(box, box.peer[2] if box.peer else 0)].append((box.own, bits))
            whole = bits == ports.bits(box.ports)
            kept += [box] if whole else [box._replace(ports=piece) for piece in ports.ranges(bits)]
    return kept, rest


def _place(box: Box, length: int) -> tuple:
    if box.peer is None:
        return (box.protocol,)
    version, value, _ = box.peer
    return (box.protocol, version, length, value >> (WIDTH[version] - length))


def _ancestors(placed: dict, box: Box, lengths: list[int]) -> Iterable[tuple[Prefix | None, int]]:
    """What was placed at the box's peer prefix and at the prefixes around it."""
    longest = box.peer[2] if box.peer else 0
    for length in lengths if box.peer else [0]:
        if length <= longest:
            yield from placed.get(_place(box, length), ())
