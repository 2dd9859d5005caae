"""First-match order as a short list of set lookups.

Theory of operation.  A rule's match is a handful of *boxes*: (peer prefix, own prefix, protocol, port range).  The
boxes are taken in the order of the document.

1. *Trim*: what an earlier box with the same or a wider peer matches already, no later one decides; those ports are
   taken off it.  A box of which nothing is left goes.
2. *Level*: a box is asked after the earlier boxes that still overlap it: at a level above those with another verdict,
   and not below those with the same one, whose level it may share where the order of lookups within a level (the
   *rank*: more fields first, exact keys first) is the order of the document.
3. *Spread*: in one set elements must not overlap, so a box that overlaps an earlier one of its own set goes to a
   further set behind it.

So the first lookup that matches is the first rule that matches, and the number of lookups is the depth to which
verdicts interleave, not the number of rules; no box is ever cut into more than pieces of its port range.

Prefixes are nested or disjoint, so overlap is found by walking a prefix's ancestors (at most one per prefix length
in use) and a summary of everything below it; ports are bits of an integer over the break points that the rules use.
The own side is ignored while levels are given: more overlap than there is can raise a level, never make it wrong.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vpcctl.policy import ICMP_PROTOCOLS

# (IP version, network address as an integer, prefix length)
Prefix = tuple[int, int, int]
Rank = tuple[int, bool, bool, bool, bool, bool]
WIDTH = {4: 32, 6: 128}
EVERYWHERE: tuple[Prefix, ...] = ((4, 0, 0), (6, 0, 0))
ALL_VALUES = (0, 65535)
ALL_TYPES = (0, 255)


class Box(NamedTuple):
    """Packets that one rule matches.  None is "any"; `ports` is a range of ports or of ICMP types.

    `verdict` is compared for equality alone.  A box that is `unsure` may decline a packet that it matches (a limit):
    it takes nothing from later boxes, and shares its level with none that it overlaps.
    """

    peer: Prefix | None
    own: Prefix | None
    protocol: int | None
    ports: tuple[int, int] | None
    verdict: str
    rule: int
    unsure: bool = False

    @property
    def exact(self) -> bool:
        """Is every field that is given a single value?"""
        return (
            (self.peer is None or self.peer[2] == WIDTH[self.peer[0]])
            and (self.own is None or self.own[2] == WIDTH[self.own[0]])
            and (self.ports is None or self.ports[0] == self.ports[1])
        )

    @property
    def rank(self) -> Rank:
        """Where the lookup of such boxes stands within a level: a total order on the shapes of keys."""
        absent = (self.peer is None, self.own is None, self.protocol is None, self.ports is None)
        return (sum(absent), not self.exact, *absent)


class PortBits:
    """Sets of ports as integers: one bit for each stretch between two neighbouring break points."""

    def __init__(self, ranges: Iterable[tuple[int, int] | None]):
        points = {ALL_VALUES[0], ALL_VALUES[1] + 1, ALL_TYPES[1] + 1}
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


# (verdict, rank) -> level -> the ports at which such boxes stand
Occupied = dict[tuple[str, Rank], dict[int, int]]


class _Index:
    """The boxes placed so far, by protocol and peer prefix."""

    # Slots besides the protocol numbers: boxes of no particular protocol, and all boxes.
    UNSPECIFIED, ALL = -1, -2

    def __init__(self, boxes: Sequence[Box]):
        lengths: dict[int, set[int]] = {4: {0}, 6: {0}}
        for box in boxes:
            if box.peer:
                lengths[box.peer[0]].add(box.peer[2])
        self._lengths = {version: sorted(found) for version, found in lengths.items()}
        self._at: dict[tuple, Occupied] = defaultdict(dict)
        self._below: dict[tuple, Occupied] = defaultdict(dict)
        self._covered: dict[tuple, int] = defaultdict(int)

    def _around(self, box: Box) -> list[list[tuple[int, int, int]]]:
        """For each IP version of the box's peer, its own place and those of the prefixes around it."""
        return [
            [(version, short, value >> (WIDTH[version] - short)) for short in self._lengths[version] if short <= length]
            for version, value, length in ((box.peer,) if box.peer else EVERYWHERE)
        ]

    def covered(self, box: Box) -> int:
        """The ports at which earlier boxes match all that `box` does."""
        slots = (self.UNSPECIFIED,) if box.protocol is None else (box.protocol, self.UNSPECIFIED)
        owns = (None,) if box.own is None else (None, box.own)
        found = ~0
        for places in self._around(box):
            taken = 0
            for slot in slots:
                for place in places:
                    for own in owns:
                        taken |= self._covered.get((slot, own, *place), 0)
            found &= taken
        return found

    def level_of(self, box: Box, rank: Rank, bits: int) -> int:
        """The lowest level at which `box` is asked after every placed box that it overlaps."""
        best = 1
        slots = (self.ALL,) if box.protocol is None else (box.protocol, self.UNSPECIFIED)
        for places in self._around(box):
            for slot in slots:
                nodes = [self._at.get((slot, *place)) for place in places]
                nodes.append(self._below.get((slot, *places[-1])))
                for node in filter(None, nodes):
                    best = _highest(node, box, rank, bits, best)
        return best

    def place(self, box: Box, rank: Rank, bits: int, level: int) -> None:
        """Remember `box` at `level`."""
        slot = self.UNSPECIFIED if box.protocol is None else box.protocol
        # An unsure box is of no verdict that another one could have.
        kind = (f"?{box.rule}" if box.unsure else box.verdict, rank)
        for *around, here in self._around(box):
            if not box.unsure:
                self._covered[slot, box.own, *here] |= bits
            for kept in (slot, self.ALL):
                _occupy(self._at[kept, *here], kind, level, bits)
                for place in around:
                    _occupy(self._below[kept, *place], kind, level, bits)


def _highest(node: Occupied, box: Box, rank: Rank, bits: int, best: int) -> int:
    for (verdict, placed), levels in node.items():
        behind = verdict != box.verdict or box.unsure or placed > rank
        for level, taken in levels.items():
            if level + behind > best and taken & bits:
                best = level + behind
    return best


def _occupy(node: Occupied, kind: tuple[str, Rank], level: int, bits: int) -> None:
    levels = node.setdefault(kind, {})
    levels[level] = levels.get(level, 0) | bits


def stack(boxes: Sequence[Box]) -> list[list[Box]]:
    """The levels of `boxes`, which stand in first-match order: trimmed, and still in that order within each."""
    ports = PortBits(box.ports for box in boxes)
    index = _Index(boxes)
    levels: list[list[Box]] = []
    for box in boxes:
        whole = ports.bits(ALL_TYPES if box.ports is None and box.protocol in ICMP_PROTOCOLS else box.ports)
        bits = whole & ~index.covered(box)
        pieces = [box] if bits == whole else [box._replace(ports=span) for span in ports.ranges(bits)]
        for piece in pieces:
            bits, rank = ports.bits(piece.ports), piece.rank
            level = index.level_of(piece, rank, bits)
            index.place(piece, rank, bits, level)
            if level > len(levels):
                levels.append([])
            levels[level - 1].append(piece)
    return levels


def spread(boxes: Sequence[Box]) -> list[list[Box]]:
    """Boxes of one level and one shape as sets without overlap, in the order in which they are to be asked."""
    ports = PortBits(box.ports for box in boxes)
    sets: list[list[Box]] = []
    rest = list(boxes)
    while rest:
        kept, rest = _without_overlap(rest, ports)
        sets.append(kept)
    return sets


def _without_overlap(boxes: list[Box], ports: PortBits) -> tuple[list[Box], list[Box]]:
    """The boxes that overlap none before them, and the others."""
    lengths: dict[int, set[int]] = {4: {0}, 6: {0}}
    for box in boxes:
        if box.peer:
            lengths[box.peer[0]].add(box.peer[2])
    at: dict[tuple, list[tuple[Prefix | None, int]]] = defaultdict(list)
    below: dict[tuple, list[tuple[Prefix | None, int]]] = defaultdict(list)
    kept, rest = [], []
    for box in boxes:
        bits = ports.bits(box.ports)
        version, value, length = box.peer or (4, 0, 0)
        width = WIDTH[version]
        places = [
            (box.protocol, version, short, value >> (width - short)) for short in lengths[version] if short <= length
        ]
        here = (box.protocol, version, length, value >> (width - length))
        met = [*(entry for place in places for entry in at.get(place, ())), *below.get(here, ())]
        overlapping = any(taken & bits and (covers(own, box.own) or covers(box.own, own)) for own, taken in met)
        # One that overlaps a box of the rest goes behind it as well.
        (rest if overlapping else kept).append(box)
        _join(at[here], box.own, bits)
        for place in places:
            if place != here:
                _join(below[place], box.own, bits)
    return kept, rest


def _join(entries: list[tuple[Prefix | None, int]], own: Prefix | None, bits: int) -> None:
    """Add the ports of a box, to the last entry where that is of the same own side."""
    if entries and entries[-1][0] == own:
        entries[-1] = (own, entries[-1][1] | bits)
    else:
        entries.append((own, bits))


def covers(outer: Prefix | None, inner: Prefix | None) -> bool:
    """Does `outer` hold all addresses of `inner`?  None is any address."""
    if outer is None:
        return True
    if inner is None or outer[0] != inner[0] or outer[2] > inner[2]:
        return False
    shift = WIDTH[outer[0]] - outer[2]
    return outer[1] >> shift == inner[1] >> shift
