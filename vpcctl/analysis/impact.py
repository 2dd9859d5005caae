"""What a change of the world means for traffic, in words: newly allowed, newly denied, and rules without effect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from vpcctl.analysis import packetset
from vpcctl.analysis.anomalies import Idle, idle_rules, idle_rules_of_vpc
from vpcctl.analysis.changes import Change, changes, touched
from vpcctl.analysis.packetset import Space
from vpcctl.analysis.reachability import FLOWS, MOST_PARTS, Reach, Zone, ZoneKey
from vpcctl.analysis.rendering import Line, lines
from vpcctl.errors import TooFineError
from vpcctl.model.host import NO_HOST, Host
from vpcctl.model.network import World
from vpcctl.model.policy import WHOLE_VPC, Direction
from vpcctl.values import dataclass

# What is spent at most on the idle rules of one subnet by a command that changes something: a tenth of a second.
MOST_HINT_PARTS = 100_000

# Which of many similar lines are listed.
Shorten = Callable[[Sequence[object]], Sequence[object]]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The difference between two worlds for those who send and receive; `untold` says what is not listed, and why.

    `unsought` says for which policies no rules without effect were sought, because they would take long.
    """

    newly_allowed: tuple[Line, ...]
    newly_denied: tuple[Line, ...]
    idle: tuple[Idle, ...]
    untold: tuple[str, ...] = ()
    unsought: tuple[str, ...] = ()

    def lines(self, shorten: Shorten = list, hints: Shorten | None = None) -> list[str]:
        """The forecast as lines of text.

        `shorten` chooses which lines of one kind are listed, `hints` which rules without effect.
        """
        hints = hints or shorten
        unsought = tuple(map(str, hints(self.unsought)))
        # Lines that differ only in what is not listed are one line to people.
        parts = (
            ("newly allowed", shorten(list(dict.fromkeys(map(str, self.newly_allowed))))),
            ("newly denied", shorten(list(dict.fromkeys(map(str, self.newly_denied))))),
            ("without effect", hints(list(dict.fromkeys(map(str, self.idle))))),
        )
        told = (
            []
            if self.newly_allowed or self.newly_denied or self.untold
            else ["no traffic is newly allowed or newly denied"]
        )
        for title, found in parts:
            told += [f"{title}:", *(f"  {line}" for line in found)] if found else []
        return [*told, *self.untold, *unsought]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def forecast(
    before: World,
    after: World,
    subnets: Iterable[tuple[str, str]],
    host: Host = NO_HOST,
    most: float = MOST_PARTS,
    hints: float = MOST_PARTS,
) -> Forecast:
    """The change from one world to the other on a host, and the idle rules of the given (VPC, subnet) of the later one.

    With ``*`` as the subnet these are the rules of the VPC's own policy, and those of subnets that its rules make idle.

    `most` bounds the work for each part; a part that needs more is reported as not listed.  `hints` bounds the work for
    the idle rules of one subnet; where that is less and not enough, they are left to a dry run.
    """
    old, new = Reach(before, host, most), Reach(after, host, most)
    untold: list[str] = []
    allowed: list[Line] = []
    denied: list[Line] = []
    idle: list[Idle] = []
    unsought: list[str] = []
    try:
        with packetset.bounded(most):
            found = list(changes(old, new))
            home = _home(found)
            moved = _moved(old, new)
            allowed += _lines(found, new, home, moved, newly_allowed=True)
            denied += _lines(found, old, home, moved, newly_allowed=False)
            # An instance keeps its words where its subnet gets another name.
            same = set(allowed) & set(denied)
            allowed, denied = ([line for line in side if line not in same] for side in (allowed, denied))
    except TooFineError:
        allowed, denied = [], []
        untold.append(
            "newly allowed and newly denied traffic has too many different cases to list;"
            " check single flows with `vpcctl explain`"
        )
    for vpc, subnet in subnets:
        try:
            with packetset.bounded(min(most, hints)):
                idle += list(_idle(new, vpc, subnet))
        except TooFineError:
            if hints < most:
                words = "did not search this many rules for rules without effect"
                unsought.append(f"{vpc}/{subnet}: {words}; `vpcctl apply-policy --dry-run` does")
                continue
            untold.append(f"{vpc}/{subnet}: too many rules overlap to determine which of them have no effect")
    return Forecast(tuple(allowed), tuple(denied), tuple(dict.fromkeys(idle)), tuple(untold), tuple(unsought))


def _home(found: list[Change]) -> str:
    """The one VPC that every change touches, from which the names are seen; empty if no VPC is touched by all."""
    touched = [{zone.vpc for zone in (change.source, change.destination)} - {None} for change in found]
    common = set.intersection(*touched) if touched else set()
    return str(common.pop()) if len(common) == 1 else ""


def _moved(old: Reach, new: Reach) -> set[ZoneKey]:
    """The subnets that have another prefix in the later world."""
    vpcs = touched(old.world, new.world)
    return {
        zone.key
        for zone in old.zones.among(vpcs)
        if zone.vpc is not None and zone.key in new.zones and new.zones[zone.key].addresses != zone.addresses
    }


def _lines(found: list[Change], reach: Reach, home: str, moved: set[ZoneKey], newly_allowed: bool) -> Iterator[Line]:
    for change in found:
        packets = change.newly_allowed if newly_allowed else change.newly_denied
        if packets:
            # A zone may have other addresses in the other world.
            source, destination = (reach.zones[zone.key] for zone in (change.source, change.destination))
            placed = {zone.name(home): _placed(zone, home) for zone in (source, destination) if zone.key in moved}
            for line in lines(packets, source, destination, reach, home):
                yield _with_prefixes(line, placed) if placed else line


def _placed(zone: Zone, home: str) -> str:
    """A subnet that moves, with the prefix that it has in this world; its name alone would mean both."""
    prefixes = (str(prefix) for interval in zone.addresses for prefix in packetset.prefixes(interval))
    return f"{zone.name(home)} {' '.join(prefixes)}"


def _with_prefixes(line: Line, placed: Mapping[str, str]) -> Line:
    sources, destinations = (
        tuple(placed.get(word, word) for word in words) for words in (line.sources, line.destinations)
    )
    return Line(sources, destinations, line.services)


def _idle(reach: Reach, vpc: str, subnet: str) -> Iterator[Idle]:
    """The idle rules of one subnet's policy, or of the VPC's own, for the traffic that can come to its gates at all."""
    names = reach.world.vpc(vpc).subnets_by_name if subnet == WHOLE_VPC else (subnet,)
    for direction in Direction:
        gates = []
        for name in names:
            gate = reach.rules(vpc, name, direction)
            if gate is not None:
                own = reach.zones[vpc, name].addresses
                sides = (None, own) if direction is Direction.INGRESS else (own, None)
                gates.append((gate, FLOWS & Space.of(*sides, None, None)))
        if subnet == WHOLE_VPC:
            yield from idle_rules_of_vpc(gates)
        else:
            yield from (idle for pair in gates for idle in idle_rules(*pair))
