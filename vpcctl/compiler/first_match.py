"""First-match order as a short list of set lookups.

Theory of operation.  A rule's match is split into a few *boxes*: (peer prefix, own prefix, protocol, port range).  The
boxes are processed in the order of the document.

1. *Trim*: an earlier box with the same or a wider peer decides its packets first.  So its ports are removed from the
   later box.  A box without ports left is dropped.  A box that would fall into many pieces stays whole.
2. *Level*: lookups go through the levels from 1 upwards.  A box must be looked up after each earlier box that still
   overlaps it.  If the verdicts differ, it goes to a higher level.  If they are the same, it may share the level, as
   long as the lookups within the level come in the order of the document.  That order is the *rank*: more fields
   first, exact keys first.
3. *Spread*: the elements of one set must not overlap.  So a box that overlaps an earlier box of its set goes to a
   further set behind it.

So the first lookup that matches is the first rule that matches.  The number of lookups is the depth to which verdicts
interleave, not the number of rules.  A box is only ever split by its ports.

If the lists of a rule would multiply to many boxes, the rule becomes one *product* instead: one lookup for its peers,
one for its own side and one for its ports, in sequence.  A product is at a level above every earlier box that it
overlaps.  Every later box that overlaps it is above it in turn.  So it needs no rank within a level.

Two prefixes are nested or disjoint.  So overlap is found among a prefix's ancestors, at most one for each prefix length
in use, and in a summary of everything below it.  Ports are bits of an integer, one for each stretch between the break
points of the rules.  On the own side, levels distinguish single addresses only; a wider prefix counts as any address.
That can report overlap where none exists, which may raise a level but never makes it wrong.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from vpcctl.compiler.effort import Effort
from vpcctl.model.policy import ICMP_PROTOCOLS

# (IP version, network address as an integer, prefix length)
Prefix = tuple[int, int, int]
Rank = tuple[int, ...]
# The rank of what shares its level with nothing that it overlaps.
UNRANKED: Rank = ()
WIDTH = {4: 32, 6: 128}
EVERYWHERE: tuple[Prefix, ...] = ((4, 0, 0), (6, 0, 0))
ALL_VALUES = (0, 65535)
ALL_TYPES = (0, 255)
# A box is trimmed into at most so many pieces.  Beyond that it costs less to keep it whole, at a level of its own.
MOST_PIECES = 16
# At most so many boxes stand for a product when overlap is found.  Beyond that they are wider than the product.
MOST_ANCHORS = 64


class Box(NamedTuple):
    """Packets that one rule matches.  None is "any"; `ports` is a range of ports or of ICMP types.

    `verdict` is only compared for equality.  A box that is `unsure` (one with a limit) may decline a packet that it
    matches.  So it trims no later box, and shares its level with no box that it overlaps.
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
        """Does every field that is not "any" hold a single value?"""
        return (
            (self.peer is None or self.peer[2] == WIDTH[self.peer[0]])
            and (self.own is None or self.own[2] == WIDTH[self.own[0]])
            and (self.ports is None or self.ports[0] == self.ports[1])
        )

    @property
    def rank(self) -> Rank:
        """The place of this box's lookup within a level: a total order on the shapes of keys."""
        absent = (self.peer is None, self.own is None, self.protocol is None, self.ports is None)
        return (sum(absent), not self.exact, *absent)

    @property
    def spans(self) -> tuple[tuple[int, int] | None, ...]:
        """The ranges of ports in the match."""
        return (self.ports,)


class Product(NamedTuple):
    """Packets of one IP version that one rule matches by lists of peers, own prefixes and ports.  None is "any".

    The members of each list are disjoint.  `unsure` is as for a box.
    """

    version: int
    peers: tuple[Prefix, ...] | None
    owns: tuple[Prefix, ...] | None
    protocol: int | None
    ports: tuple[tuple[int, int], ...] | None
    verdict: str
    rule: int
    unsure: bool = False

    @property
    def spans(self) -> tuple[tuple[int, int] | None, ...]:
        """The ranges of ports in the match."""
        return self.ports or (None,)

    def anchors(self) -> Iterator[Box]:
        """Boxes that cover all packets of the product, and perhaps more; overlap is found with them."""
        peers, owns = self.peers or (None,), self.owns or (None,)
        if len(peers) * len(owns) > MOST_ANCHORS:
            peers, owns = (_around(self.peers), (None,)) if self.peers else ((None,), _around(owns))
        for peer in peers:
            for own in owns:
                # Unsure, because a product shares its level with nothing that it overlaps.
                yield Box(peer, own, self.protocol, None, self.verdict, self.rule, True)


@lru_cache(maxsize=64)
def _around(prefixes: tuple[Prefix, ...]) -> tuple[Prefix, ...]:
    """At most MOST_ANCHORS prefixes that cover all of `prefixes`, which are of one IP version."""
    width = WIDTH[prefixes[0][0]]
    for longest in range(width, -1, -4):
        prefixes = tuple(
            dict.fromkeys(
                (version, value >> (width - longest) << (width - longest), longest)
                if length > longest
                else (version, value, length)
                for version, value, length in prefixes
            )
        )
        if len(prefixes) <= MOST_ANCHORS:
            break
    return prefixes


class PortBits:
    """Sets of ports as integers: one bit for each stretch between two neighbouring break points."""

    def __init__(self, ranges: Iterable[tuple[int, int] | None]):
        points = {ALL_VALUES[0], ALL_VALUES[1] + 1, ALL_TYPES[1] + 1}
        for low, high in filter(None, ranges):
            points.update((low, high + 1))
        self._points = sorted(points)
        self.everything = (1 << (len(self._points) - 1)) - 1
        self._known: dict[tuple[int, int], int] = {}

    @property
    def weight(self) -> int:
        """The cost in steps of one operation on such an integer."""
        return 1 + len(self._points) // 16_384

    @property
    def space(self) -> int:
        """The cost in steps that stands for the memory of a few such integers."""
        return 16 + len(self._points) // 256

    def bits(self, ports: tuple[int, int] | None) -> int:
        """The bits of an inclusive range, which must be one of those given at construction."""
        if ports is None:
            return self.everything
        found = self._known.get(ports)
        if found is None:
            low, high = bisect_left(self._points, ports[0]), bisect_left(self._points, ports[1] + 1)
            # All callers share one integer: it may be kilobytes long.
            found = self._known[ports] = (1 << high) - (1 << low)
        return found

    def of(self, box: Box | Product) -> int:
        """The bits of all ranges of a box or product; all ICMP types if its protocol is ICMP and it names none."""
        spans, typed = box.spans, box.protocol in ICMP_PROTOCOLS
        if len(spans) == 1:
            # The shared integer itself, not a copy.
            return self.bits(ALL_TYPES if spans[0] is None and typed else spans[0])
        found = 0
        for span in spans:
            found |= self.bits(ALL_TYPES if span is None and typed else span)
        return found

    def ranges(self, bits: int, most: int = ALL_VALUES[1] + 1) -> list[tuple[int, int]] | None:
        """The fewest inclusive ranges that make up `bits`, ascending; None if they are more than `most`."""
        found: list[tuple[int, int]] = []
        while bits:
            if len(found) == most:
                return None
            low = (bits & -bits).bit_length() - 1
            filled = bits + (1 << low)
            high = (filled & -filled).bit_length() - 1
            found.append((self._points[low], self._points[high] - 1))
            bits &= ~((1 << high) - (1 << low))
        return found


class _Held:
    """The ports of the boxes of one level in one node: by verdict, and by rank."""

    __slots__ = ("mixed", "of", "own", "ranks", "taken")

    def __init__(self, kind: str | None, rank: Rank, bits: int):
        self.taken = bits
        self.of: dict[str | None, int] = {kind: bits}
        self.ranks: dict[str | None, dict[Rank, int]] = {kind: {rank: bits}}
        # Ports with several verdicts, or of boxes that share their level with no other.
        self.mixed = 0 if kind else bits
        # Do the integers belong to this object, and not to the only box in it?
        self.own = False

    def add(self, kind: str | None, rank: Rank, bits: int) -> None:
        mine = self.of.get(kind)
        if mine is None:
            self.mixed |= bits & self.taken if kind else bits
            self.of[kind] = bits
            self.ranks[kind] = {rank: bits}
        else:
            if kind is None:
                self.mixed |= bits
            elif len(self.of) > 1:
                self.mixed |= bits & self.taken & ~mine
            ranks = self.ranks[kind]
            before = ranks.get(rank)
            ranks[rank] = bits if before is None else before | bits
            self.of[kind] = mine | bits
        self.taken |= bits

    def stands_before(self, kind: str | None, rank: Rank, bits: int) -> bool:
        """Must a new box with these `bits` go to a higher level than the boxes in here?"""
        mine = self.of.get(kind) if kind else None
        if mine is None or self.mixed & bits or self.taken & bits & ~mine:
            return True
        return any(placed > rank and held & bits for placed, held in self.ranks[kind].items())


# level -> the ports of its boxes
Occupied = dict[int, _Held]
# Do the boxes of a node have its peer prefix, or a longer one below it?
HERE, BELOW = range(2)
# The own side of a node's boxes where it is not a single address: wider prefixes, which count as any, or all boxes.
WIDER, EVERY = "wider", "every"
# (IP version, prefix length, network address without the bits behind the prefix)
Place = tuple[int, int, int]
# (HERE or BELOW, protocol or slot, place of the peer, own side)
Node = tuple[int, int, Place, Prefix | str]


class _Index:
    """The boxes placed so far, by protocol, peer prefix and own prefix."""

    # Slots besides the protocol numbers: boxes for any protocol, and all boxes.
    UNSPECIFIED, ALL = -1, -2

    def __init__(self, boxes: Iterable[Box], ports: PortBits, effort: Effort):
        peers: dict[int, set[int]] = {4: {0}, 6: {0}}
        self._asks_for_all = self._tells_owns_apart = False
        # The places that some box has itself: nobody asks what is below any other.
        self._asked: set[Place] = set()
        for box in boxes:
            for version, value, length in (box.peer,) if box.peer else EVERYWHERE:
                peers[version].add(length)
                self._asked.add((version, length, value >> (WIDTH[version] - length)))
            if box.protocol is None:
                self._asks_for_all = True
            if _own_place(box) != WIDER:
                self._tells_owns_apart = True
        self._lengths = {version: sorted(found) for version, found in peers.items()}
        self._nodes: dict[Node, Occupied] = {}
        self._covered: dict[tuple[int, Prefix | None, Place], int] = {}
        self._effort, self._weight, self._space = effort, ports.weight, ports.space
        # The last result of `_around`, which is called several times for each box.
        self._peer: Prefix | None = None
        self._places: list[list[Place]] = []

    def _around(self, box: Box) -> list[list[Place]]:
        """For each IP version of the box's peer, the places of the prefixes around it and last its own."""
        if self._peer != box.peer or not self._places:
            lengths = self._lengths
            self._peer = box.peer
            self._places = [
                [(version, short, value >> (WIDTH[version] - short)) for short in lengths[version] if short <= length]
                for version, value, length in ((box.peer,) if box.peer else EVERYWHERE)
            ]
        return self._places

    def _slots(self, box: Box) -> tuple[int, ...]:
        """The slots of the boxes with the protocol of `box`, or with none."""
        if box.protocol is None:
            return (self.UNSPECIFIED,)
        return (box.protocol, self.UNSPECIFIED) if self._asks_for_all else (box.protocol,)

    def covered(self, box: Box) -> int:
        """The ports at which earlier boxes match every packet of `box`."""
        slots = self._slots(box)
        owns = (None,) if box.own is None else (None, box.own)
        found = ~0
        covered = self._covered.get
        for places in self._around(box):
            taken = 0
            for slot in slots:
                for place in places:
                    for own in owns:
                        match = covered((slot, own, place))
                        if match is not None:
                            taken |= match
            found &= taken
        return found

    def level_of(self, box: Box, kind: str | None, rank: Rank, bits: int) -> int:
        """The lowest level at which `box` comes after every placed box that it overlaps."""
        best, steps = 1, 0
        slots = (self.ALL,) if box.protocol is None else self._slots(box)
        nodes = self._nodes.get
        for key in self._seen_from(box, slots):
            node = nodes(key)
            steps += 1
            if node is None:
                continue
            steps += len(node)
            # The highest levels were added last, and usually decide.
            for level in reversed(node):
                if level >= best and node[level].taken & bits:
                    best = level + node[level].stands_before(kind, rank, bits)
        self._effort.spend(steps * self._weight)
        return best

    def _seen_from(self, box: Box, slots: tuple[int, ...]) -> Iterator[Node]:
        """The nodes of all boxes that may overlap `box`."""
        side = _own_place(box) if self._tells_owns_apart else WIDER
        owns = (EVERY,) if side == WIDER else (WIDER, side)
        for places in self._around(box):
            for slot in slots:
                for own in owns:
                    for place in places:
                        yield HERE, slot, place, own
                    yield BELOW, slot, places[-1], own

    def place(self, box: Box, kind: str | None, rank: Rank, bits: int, level: int) -> None:
        """Record `box` at `level`.  If `kind` is None, it trims no later box."""
        slot = self.UNSPECIFIED if box.protocol is None else box.protocol
        steps = 1
        sides = (_own_place(box), EVERY) if self._tells_owns_apart else (EVERY,)
        for *wider, here in self._around(box):
            around = [place for place in wider if place in self._asked]
            if kind is not None and not box.unsure:
                match = (slot, box.own, here)
                before = self._covered.get(match)
                self._covered[match] = bits if before is None else before | bits
            for kept in (slot, self.ALL) if self._asks_for_all else (slot,):
                for side in sides:
                    keys = [(HERE, kept, here, side), *((BELOW, kept, place, side) for place in around)]
                    steps += len(keys) * self._weight
                    for key in keys:
                        steps += self._occupy(key, kind, rank, bits, level)
        self._effort.spend(steps)

    def _occupy(self, key: Node, kind: str | None, rank: Rank, bits: int, level: int) -> int:
        """Put a box into a node; return the cost beyond one step."""
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = {}
        held = node.get(level)
        if held is None:
            node[level] = _Held(kind, rank, bits)
            return 0
        held.add(kind, rank, bits)
        grown, held.own = not held.own, True
        return self._space if grown else 0


def _own_place(box: Box) -> Prefix | str:
    """The box's own address if it is a single one, else WIDER; a subnet has few wider prefixes."""
    return WIDER if box.own is None or box.own[2] < WIDTH[box.own[0]] else box.own


def stack(boxes: Sequence[Box | Product], effort: Effort) -> list[list[Box | Product]]:
    """Trim `boxes`, which are in first-match order, and return them by level; each level keeps that order."""
    ports = PortBits(span for box in boxes for span in box.spans)
    effort.spend(ports.space * len({span for box in boxes for span in box.spans}))
    index = _Index((anchor for box in boxes for anchor in _anchors(box)), ports, effort)
    levels: list[list[Box | Product]] = []
    for box in boxes:
        effort.rule = box.rule
        whole = ports.of(box)
        pieces = [box] if isinstance(box, Product) else _trimmed(box, whole, index, ports)
        if len(pieces) > 1:
            effort.take(len(pieces) - 1)
            effort.spend(ports.space * len(pieces))
        for piece in pieces:
            bits = whole if piece is box else ports.of(piece)
            kind: str | None
            if isinstance(piece, Box) and not piece.unsure:
                kind, rank = piece.verdict, piece.rank
            else:
                # An unsure box has a verdict that equals no other.
                kind, rank = None, UNRANKED
            level = max(index.level_of(anchor, kind, rank, bits) for anchor in _anchors(piece))
            for anchor in _anchors(piece):
                index.place(anchor, kind, rank, bits, level)
            if level > len(levels):
                levels.append([])
                effort.level(level)
            levels[level - 1].append(piece)
    return levels


def _anchors(box: Box | Product) -> Iterable[Box]:
    return box.anchors() if isinstance(box, Product) else (box,)


def _trimmed(box: Box, whole: int, index: _Index, ports: PortBits) -> list[Box]:
    """The pieces of a box that earlier boxes leave; `whole` are its ports."""
    covered = index.covered(box)
    if not covered & whole:
        return [box]
    bits = whole & ~covered
    spans = ports.ranges(bits, MOST_PIECES)
    return [box] if spans is None else [box._replace(ports=span) for span in spans]


def spread(boxes: Sequence[Box], effort: Effort) -> list[list[Box]]:
    """Distribute boxes of one level and one shape over sets without overlap, in lookup order.

    A box goes to the first set behind all sets with an earlier box that it overlaps.
    """
    ports = PortBits(box.ports for box in boxes)
    lengths: dict[int, set[int]] = {4: {0}, 6: {0}}
    # The places of the boxes themselves: nobody asks what is below any other.
    asked: set[tuple[int | None, int, int, int]] = set()
    for box in boxes:
        version, value, length = box.peer or (4, 0, 0)
        lengths[version].add(length)
        asked.add((box.protocol, version, length, value >> (WIDTH[version] - length)))
    at: dict[tuple[int | None, int, int, int], _Owns] = defaultdict(_Owns)
    below: dict[tuple[int | None, int, int, int], _Owns] = defaultdict(_Owns)
    sets: list[list[Box]] = []
    for box in boxes:
        bits = ports.bits(box.ports)
        version, value, length = box.peer or (4, 0, 0)
        width = WIDTH[version]
        places = [
            (box.protocol, version, short, value >> (width - short)) for short in lengths[version] if short <= length
        ]
        here = (box.protocol, version, length, value >> (width - length))
        nodes = [*(at[place] for place in places if place in at), *((below[here],) if here in below else ())]
        met = [entry for node in nodes for entry in node.near(box.own)]
        effort.spend((len(places) + len(met)) * ports.weight)
        number = max((held[2] for held in met if held[1] & bits and _meet(held[0], box.own)), default=0)
        if number == len(sets):
            sets.append([])
        sets[number].append(box)
        at[here].add(box.own, bits, number + 1)
        for place in places:
            if place != here and place in asked:
                below[place].add(box.own, bits, number + 1)
    return sets


class _Owns:
    """Entries of (own side, ports, number of the next set): by address for single addresses, and the wider ones."""

    __slots__ = ("single", "wider")

    def __init__(self) -> None:
        self.single: dict[Prefix, list[tuple[Prefix | None, int, int]]] = {}
        self.wider: list[tuple[Prefix | None, int, int]] = []

    def near(self, own: Prefix | None) -> Iterator[tuple[Prefix | None, int, int]]:
        """The entries that may overlap `own`."""
        yield from self.wider
        if own is not None and own[2] == WIDTH[own[0]]:
            yield from self.single.get(own, ())
        else:
            for entries in self.single.values():
                yield from entries

    def add(self, own: Prefix | None, bits: int, number: int) -> None:
        """Add the ports of a box; merge them into the last entry if its own side and set are the same."""
        if own is not None and own[2] == WIDTH[own[0]]:
            entries = self.single.setdefault(own, [])
        else:
            entries = self.wider
        if entries and (entries[-1][0], entries[-1][2]) == (own, number):
            entries[-1] = (own, entries[-1][1] | bits, number)
        else:
            entries.append((own, bits, number))


def _meet(one: Prefix | None, other: Prefix | None) -> bool:
    return covers(one, other) or covers(other, one)


def covers(outer: Prefix | None, inner: Prefix | None) -> bool:
    """Does `outer` contain all addresses of `inner`?  None is any address."""
    if outer is None:
        return True
    if inner is None or outer[0] != inner[0] or outer[2] > inner[2]:
        return False
    shift = WIDTH[outer[0]] - outer[2]
    return outer[1] >> shift == inner[1] >> shift
