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
in use, and in a summary of everything below it.  Ports are a range of indices, one for each stretch between the break
points of the rules; only a union of several ranges has a bit for each index.  On the own side, levels distinguish
single addresses only; a wider prefix counts as any address.  That can report overlap where none exists, which may raise
a level but never makes it wrong.
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


# A set of ports: the first index, the one behind the last, and the bits between them; None if all of them are set.
# Most sets are one range, and cost no integer that is kilobytes long.
Ports = tuple[int, int, int | None]


class PortIndex:
    """Ports as indices of the stretches between two neighbouring break points."""

    def __init__(self, ranges: Iterable[tuple[int, int] | None]):
        points = {ALL_VALUES[0], ALL_VALUES[1] + 1, ALL_TYPES[1] + 1}
        for low, high in filter(None, ranges):
            points.update((low, high + 1))
        self._points = sorted(points)
        self.everything: Ports = (0, len(self._points) - 1, None)

    @property
    def weight(self) -> int:
        """The cost in steps of one operation on the bits of a set."""
        return 1 + len(self._points) // 16_384

    @property
    def space(self) -> int:
        """The cost in steps that stands for the memory of the bits of a few sets."""
        return 16 + len(self._points) // 256

    def range(self, ports: tuple[int, int] | None) -> Ports:
        """An inclusive range, which must be one of those given at construction."""
        if ports is None:
            return self.everything
        low = bisect_left(self._points, ports[0])
        return low, bisect_left(self._points, ports[1] + 1, low), None

    def of(self, box: Box | Product) -> Ports:
        """All ranges of a box or product; all ICMP types if its protocol is ICMP and it names none."""
        spans, typed = box.spans, box.protocol in ICMP_PROTOCOLS
        found = [self.range(ALL_TYPES if span is None and typed else span) for span in spans]
        if len(found) == 1:
            return found[0]
        low, high = min(one[0] for one in found), max(one[1] for one in found)
        bits = 0
        for one in found:
            bits |= _all_bits(one[0], one[1]) << (one[0] - low)
        return low, high, bits

    def spans(self, bits: int, first: int = 0, most: int = ALL_VALUES[1] + 1) -> list[tuple[int, int]] | None:
        """The fewest inclusive ranges that make up `bits`, ascending; None if they are more than `most`.

        The lowest bit stands for the index `first`.
        """
        found: list[tuple[int, int]] = []
        while bits:
            if len(found) == most:
                return None
            low = (bits & -bits).bit_length() - 1
            filled = bits + (1 << low)
            high = (filled & -filled).bit_length() - 1
            found.append((self._points[first + low], self._points[first + high] - 1))
            bits &= ~((1 << high) - (1 << low))
        return found


def _all_bits(low: int, high: int) -> int:
    return (1 << (high - low)) - 1


def _window(ports: Ports, low: int, high: int) -> int:
    """The bits of `ports` from `low` to before `high`; the lowest stands for `low`."""
    first, end, bits = ports
    if end <= low or high <= first:
        return 0
    if bits is None:
        start = max(first, low)
        return _all_bits(start, min(end, high)) << (start - low)
    return (bits >> (low - first) if low >= first else bits << (first - low)) & _all_bits(low, high)


def _meet(one: Ports, other: Ports) -> bool:
    """Have two sets a port in common?"""
    low, high = max(one[0], other[0]), min(one[1], other[1])
    if low >= high:
        return False
    if one[2] is None and other[2] is None:
        return True
    return _window(one, low, high) & _window(other, low, high) != 0


class _Union:
    """The union of many sets of ports: a bit for each index, changed in place."""

    __slots__ = ("_bits",)

    def __init__(self, *sets: Ports):
        self._bits = bytearray()
        for ports in sets:
            self.add(ports)

    def copy(self) -> _Union:
        made = _Union()
        made._bits = self._bits[:]
        return made

    def add(self, ports: Ports) -> None:
        low, high, bits = ports
        start, end = low >> 3, (high + 7) >> 3
        if len(self._bits) < end:
            self._bits.extend(bytes(end - len(self._bits)))
        more = (_all_bits(low, high) if bits is None else bits) << (low & 7)
        before = int.from_bytes(self._bits[start:end], "little")
        self._bits[start:end] = (before | more).to_bytes(end - start, "little")

    def window(self, low: int, high: int) -> int:
        """The bits from `low` to before `high`; the lowest stands for `low`."""
        found = int.from_bytes(self._bits[low >> 3 : (high + 7) >> 3], "little") >> (low & 7)
        return found & _all_bits(low, high)

    def within(self, ports: Ports) -> int:
        """The bits of those of `ports` that are in here, from the first one."""
        low, high, bits = ports
        return self.window(low, high) if bits is None else self.window(low, high) & bits


class _Held:
    """The ports of several boxes of one level in one node: by verdict, and by rank.

    Where all boxes have one verdict, or all of one verdict have one rank, the sets of both are one object.
    """

    __slots__ = ("mixed", "of", "ranks", "taken")

    def __init__(self, kind: str | None, rank: Rank, ports: Ports):
        self.taken = _Union(ports)
        self.of: dict[str | None, _Union] = {kind: self.taken}
        self.ranks: dict[str | None, dict[Rank, _Union]] = {kind: {rank: self.taken}}
        # Ports with several verdicts, or of boxes that share their level with no other.
        self.mixed: _Union | None = None if kind else _Union(ports)

    def add(self, kind: str | None, rank: Rank, ports: Ports) -> None:
        mine = self.of.get(kind)
        if kind is None:
            self._mix(ports)
        elif mine is not self.taken:
            others = self.taken.within(ports)
            if mine is not None:
                others &= ~mine.window(*ports[:2])
            if others:
                self._mix((*ports[:2], others))
        if mine is None:
            if len(self.of) == 1:
                self.taken = self.taken.copy()
            self.of[kind] = _Union(ports)
            self.ranks[kind] = {rank: self.of[kind]}
        else:
            ranks = self.ranks[kind]
            if rank not in ranks:
                if len(ranks) == 1:
                    self.of[kind] = mine.copy()
                    self.taken = self.of[kind] if self.taken is mine else self.taken
                    mine = self.of[kind]
                ranks[rank] = _Union(ports)
            elif ranks[rank] is not mine:
                ranks[rank].add(ports)
            mine.add(ports)
        if self.taken is not mine:
            self.taken.add(ports)

    def _mix(self, ports: Ports) -> None:
        if self.mixed is None:
            self.mixed = _Union()
        self.mixed.add(ports)

    def stands_before(self, kind: str | None, rank: Rank, ports: Ports) -> bool:
        """Must a new box with these `ports`, some of which are taken, go to a higher level than the boxes in here?"""
        mine = self.of.get(kind) if kind else None
        if mine is None or (self.mixed is not None and self.mixed.within(ports)):
            return True
        if self.taken is not mine and self.taken.within(ports) & ~mine.window(*ports[:2]):
            return True
        return any(placed > rank and held.within(ports) for placed, held in self.ranks[kind].items())


# One box that was placed: level, verdict, rank, ports
Placed = tuple[int, str | None, Rank, Ports]
# What is placed in one node: a single box, as in most nodes, or by level.
Occupied = Placed | dict[int, Placed | _Held]
# Do the boxes of a node have its peer prefix, or a longer one below it?
HERE, BELOW = range(2)
# The own side of a node's boxes where it is not a single address: wider prefixes, which count as any, or all boxes.
WIDER, EVERY = "wider", "every"
# A prefix as one number: there are several for each box.
Place = int
# (HERE or BELOW, protocol or slot, own side)
Group = tuple[int, int, Prefix | str]


def _place(version: int, value: int, length: int) -> Place:
    """The prefix of `length` around an address."""
    return (value >> (WIDTH[version] - length)) << 9 | length << 1 | (version == 6)


class _Index:
    """The boxes placed so far, by protocol, peer prefix and own prefix."""

    # Slots besides the protocol numbers: boxes for any protocol, and all boxes.
    UNSPECIFIED, ALL = -1, -2

    def __init__(self, boxes: Iterable[Box], ports: PortIndex, effort: Effort):
        peers: dict[int, set[int]] = {4: {0}, 6: {0}}
        self._asks_for_all = self._tells_owns_apart = False
        # The places at which two boxes may meet: prefixes that contain others, and addresses that several boxes have.
        self._asked: set[Place] = set()
        addresses: set[Place] = set()
        for box in boxes:
            for version, value, length in (box.peer,) if box.peer else EVERYWHERE:
                peers[version].add(length)
                place = _place(version, value, length)
                if length < WIDTH[version] or place in addresses:
                    self._asked.add(place)
                else:
                    addresses.add(place)
            if box.protocol is None:
                self._asks_for_all = True
            if _own_place(box) != WIDER:
                self._tells_owns_apart = True
        self._lengths = {version: sorted(found) for version, found in peers.items()}
        self._groups: dict[Group, dict[Place, Occupied]] = {}
        # By slot and own side, and then by peer.
        self._covered: dict[tuple[int, Prefix | None], dict[Place, Ports | _Union]] = {}
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
                [_place(version, value, short) for short in lengths[version] if short <= length]
                for version, value, length in ((box.peer,) if box.peer else EVERYWHERE)
            ]
        return self._places

    def _slots(self, box: Box) -> tuple[int, ...]:
        """The slots of the boxes with the protocol of `box`, or with none."""
        if box.protocol is None:
            return (self.UNSPECIFIED,)
        return (box.protocol, self.UNSPECIFIED) if self._asks_for_all else (box.protocol,)

    def covered(self, box: Box, ports: Ports) -> int:
        """Those of `ports` at which earlier boxes match every packet of `box`, as bits from the first one."""
        owns = (None,) if box.own is None else (None, box.own)
        groups = [
            group for slot in self._slots(box) for own in owns if (group := self._covered.get((slot, own))) is not None
        ]
        low, high, _ = ports
        found: int | None = None
        for places in self._around(box):
            taken = 0
            for group in groups:
                for place in places:
                    match = group.get(place)
                    if match is not None:
                        taken |= match.window(low, high) if isinstance(match, _Union) else _window(match, low, high)
            if not taken:
                return 0
            found = taken if found is None else found & taken
        return 0 if found is None else found & _window(ports, low, high)

    def level_of(self, box: Box, kind: str | None, rank: Rank, ports: Ports) -> int:
        """The lowest level at which `box` comes after every placed box that it overlaps."""
        best, steps = 1, 0
        slots = (self.ALL,) if box.protocol is None else self._slots(box)
        for group, place in self._seen_from(box, slots):
            node = group.get(place)
            steps += 1
            if node is None:
                continue
            if isinstance(node, tuple):
                best = _level_after(node, kind, rank, ports, best)
                continue
            steps += len(node) * self._weight
            # The highest levels were added last, and usually decide.
            for level in reversed(node):
                if level < best:
                    continue
                held = node[level]
                if isinstance(held, tuple):
                    best = _level_after(held, kind, rank, ports, best)
                elif held.taken.within(ports):
                    best = level + held.stands_before(kind, rank, ports)
        self._effort.spend(steps)
        return best

    def _seen_from(self, box: Box, slots: tuple[int, ...]) -> Iterator[tuple[dict[Place, Occupied], Place]]:
        """Where the boxes are that may overlap `box`."""
        side = _own_place(box) if self._tells_owns_apart else WIDER
        owns = (EVERY,) if side == WIDER else (WIDER, side)
        groups = self._groups.get
        for places in self._around(box):
            for slot in slots:
                for own in owns:
                    here = groups((HERE, slot, own))
                    if here is not None:
                        for place in places:
                            yield here, place
                    below = groups((BELOW, slot, own))
                    if below is not None and places[-1] in self._asked:
                        yield below, places[-1]

    def place(self, box: Box, kind: str | None, rank: Rank, ports: Ports, level: int) -> None:
        """Record `box` at `level`.  If `kind` is None, it trims no later box."""
        slot = self.UNSPECIFIED if box.protocol is None else box.protocol
        steps = 1
        sides = (_own_place(box), EVERY) if self._tells_owns_apart else (EVERY,)
        placed: Placed = (level, kind, rank, ports)
        for *wider, here in self._around(box):
            around = [place for place in wider if place in self._asked]
            met = here in self._asked
            if met and kind is not None and not box.unsure:
                covered = self._covered.setdefault((slot, box.own), {})
                before = covered.get(here)
                if before is None:
                    covered[here] = ports
                elif isinstance(before, _Union):
                    before.add(ports)
                    steps += self._weight
                else:
                    covered[here] = _Union(before, ports)
                    steps += self._space
            for kept in (slot, self.ALL) if self._asks_for_all else (slot,):
                for side in sides:
                    steps += 1 + len(around)
                    steps += self._occupy((HERE, kept, side), here, placed) if met else 0
                    for place in around:
                        steps += self._occupy((BELOW, kept, side), place, placed)
        self._effort.spend(steps)

    def _occupy(self, key: Group, place: Place, placed: Placed) -> int:
        """Put a box into a node; return the cost beyond one step."""
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = {}
        node = group.get(place)
        if node is None:
            group[place] = placed
            return 0
        if isinstance(node, tuple):
            node = group[place] = {node[0]: node}
        level, kind, rank, ports = placed
        held = node.get(level)
        if held is None:
            node[level] = placed
            return 0
        if isinstance(held, tuple):
            held = node[level] = _Held(*held[1:])
            held.add(kind, rank, ports)
            return self._space
        held.add(kind, rank, ports)
        return self._weight


def _level_after(placed: Placed, kind: str | None, rank: Rank, ports: Ports, best: int) -> int:
    """The lowest level, `best` at least, at which a box comes after one that is placed."""
    level, its_kind, its_rank, its_ports = placed
    if level < best or not _meet(its_ports, ports):
        return best
    return level + (kind is None or its_kind != kind or its_rank > rank)


def _own_place(box: Box) -> Prefix | str:
    """The box's own address if it is a single one, else WIDER; a subnet has few wider prefixes."""
    return WIDER if box.own is None or box.own[2] < WIDTH[box.own[0]] else box.own


def stack(boxes: Sequence[Box | Product], effort: Effort) -> list[list[Box | Product]]:
    """Trim `boxes`, which are in first-match order, and return them by level; each level keeps that order."""
    index_of = PortIndex(span for box in boxes for span in box.spans)
    index = _Index((anchor for box in boxes for anchor in _anchors(box)), index_of, effort)
    levels: list[list[Box | Product]] = []
    ranks: dict[Rank, Rank] = {}
    for box in boxes:
        effort.rule = box.rule
        whole = index_of.of(box)
        if whole[2] is not None:
            effort.spend(index_of.space + len(box.spans))
        pieces = [box] if isinstance(box, Product) else _trimmed(box, whole, index, index_of)
        if len(pieces) > 1:
            effort.take(len(pieces) - 1)
            effort.spend(len(pieces))
        for piece in pieces:
            ports = whole if piece is box else index_of.of(piece)
            kind: str | None
            if isinstance(piece, Box) and not piece.unsure:
                kind, rank = piece.verdict, piece.rank
                rank = ranks.setdefault(rank, rank)
            else:
                # An unsure box has a verdict that equals no other.
                kind, rank = None, UNRANKED
            level = max(index.level_of(anchor, kind, rank, ports) for anchor in _anchors(piece))
            for anchor in _anchors(piece):
                index.place(anchor, kind, rank, ports, level)
            if level > len(levels):
                levels.append([])
                effort.level(level)
            levels[level - 1].append(piece)
    return levels


def _anchors(box: Box | Product) -> Iterable[Box]:
    return box.anchors() if isinstance(box, Product) else (box,)


def _trimmed(box: Box, whole: Ports, index: _Index, index_of: PortIndex) -> list[Box]:
    """The pieces of a box that earlier boxes leave; `whole` are its ports."""
    covered = index.covered(box, whole)
    if not covered:
        return [box]
    low, high, _ = whole
    spans = index_of.spans(_window(whole, low, high) & ~covered, low, MOST_PIECES)
    return [box] if spans is None else [box._replace(ports=span) for span in spans]


def spread(boxes: Sequence[Box], effort: Effort) -> list[list[Box]]:
    """Distribute boxes of one level and one shape over sets without overlap, in lookup order.

    A box goes to the first set behind all sets with an earlier box that it overlaps.
    """
    index_of = PortIndex(box.ports for box in boxes)
    lengths: dict[int, set[int]] = {4: {0}, 6: {0}}
    # The places of boxes that may contain others; what is below any other place is never looked up.
    asked: set[tuple[int | None, int, int, int]] = set()
    for box in boxes:
        version, value, length = box.peer or (4, 0, 0)
        lengths[version].add(length)
        if length < WIDTH[version]:
            asked.add((box.protocol, version, length, value >> (WIDTH[version] - length)))
    at: dict[tuple[int | None, int, int, int], _Owns] = defaultdict(_Owns)
    below: dict[tuple[int | None, int, int, int], _Owns] = defaultdict(_Owns)
    sets: list[list[Box]] = []
    for box in boxes:
        ports = index_of.range(box.ports)
        version, value, length = box.peer or (4, 0, 0)
        width = WIDTH[version]
        places = [
            (box.protocol, version, short, value >> (width - short)) for short in lengths[version] if short <= length
        ]
        here = (box.protocol, version, length, value >> (width - length))
        nodes = [*(at[place] for place in places if place in at), *((below[here],) if here in below else ())]
        met = [entry for node in nodes for entry in node.near(box.own)]
        effort.spend(len(places) + len(met) * index_of.weight)
        number = max((held[2] for held in met if _in(held[1], ports) and _nested(held[0], box.own)), default=0)
        if number == len(sets):
            sets.append([])
        sets[number].append(box)
        at[here].add(box.own, ports, number + 1)
        for place in places:
            if place != here and place in asked:
                below[place].add(box.own, ports, number + 1)
    return sets


# Own side, ports, number of the next set
_Entry = tuple[Prefix | None, Ports | _Union, int]


def _in(held: Ports | _Union, ports: Ports) -> bool:
    return held.within(ports) != 0 if isinstance(held, _Union) else _meet(held, ports)


class _Owns:
    """Entries of (own side, ports, number of the next set): by address for single addresses, and the wider ones."""

    __slots__ = ("single", "wider")

    def __init__(self) -> None:
        self.single: dict[Prefix, list[_Entry]] = {}
        self.wider: list[_Entry] = []

    def near(self, own: Prefix | None) -> Iterator[_Entry]:
        """The entries that may overlap `own`."""
        yield from self.wider
        if own is not None and own[2] == WIDTH[own[0]]:
            yield from self.single.get(own, ())
        else:
            for entries in self.single.values():
                yield from entries

    def add(self, own: Prefix | None, ports: Ports, number: int) -> None:
        """Add the ports of a box; merge them into the last entry if its own side and set are the same."""
        if own is not None and own[2] == WIDTH[own[0]]:
            entries = self.single.setdefault(own, [])
        else:
            entries = self.wider
        if entries and (entries[-1][0], entries[-1][2]) == (own, number):
            held = entries[-1][1]
            if isinstance(held, _Union):
                held.add(ports)
            else:
                entries[-1] = (own, _Union(held, ports), number)
        else:
            entries.append((own, ports, number))


def _nested(one: Prefix | None, other: Prefix | None) -> bool:
    return covers(one, other) or covers(other, one)


def covers(outer: Prefix | None, inner: Prefix | None) -> bool:
    """Does `outer` contain all addresses of `inner`?  None is any address."""
    if outer is None:
        return True
    if inner is None or outer[0] != inner[0] or outer[2] > inner[2]:
        return False
    shift = WIDTH[outer[0]] - outer[2]
    return outer[1] >> shift == inner[1] >> shift
