"""Who may reach whom on what, exactly: the gates and paths of a world as partitions of the packet space.

This is computed from the policies, not from the rulesets, and so is a model beside the compiler; `oracle` judges
both.  A *zone* is what a person would name: a subnet, or the internet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import Interval, Partition, Space
from vpcctl.errors import TooFineError
from vpcctl.model.difference import differing
from vpcctl.model.host import NO_HOST, Host
from vpcctl.model.network import NEVER_USABLE, Subnet, Vpc, World
from vpcctl.model.policy import ICMP, ICMPV6, Action, Direction, Endpoint, Network, Policy, Rule
from vpcctl.model.protocols import REPLY_TYPE, TRANSLATED
from vpcctl.model.resolve import Meanings, inside

# What decides where no rule does.
DEFAULT = "default"
INTERNET = "internet"
# What is spent at most on one gate, on what passes between one pair of zones, or on its words.
MOST_PARTS = 3_000_000

# ICMP messages that begin a flow; all others are errors, replies, or invalid to connection tracking.
_BEGINNING = {protocol: [(kind, kind) for kind in sorted(types)] for protocol, types in REPLY_TYPE.items()}
_WITHOUT_ICMP = Space.of(None, None, [(0, ICMP - 1), (ICMP + 1, ICMPV6 - 1), (ICMPV6 + 1, 255)], None)
# What flows may begin with, by IP version: each has an ICMP of its own.
SERVICES_OF = {
    4: _WITHOUT_ICMP | Space.of(None, None, [(ICMP, ICMP)], _BEGINNING[ICMP]),
    6: _WITHOUT_ICMP | Space.of(None, None, [(ICMPV6, ICMPV6)], _BEGINNING[ICMPV6]),
}
SERVICES = SERVICES_OF[4] | SERVICES_OF[6]
# All flows that there can be: both ends of one IP version, and a service of it.
FLOWS = (
    Space.of([packetset.VERSION_4], [packetset.VERSION_4], None, None) & SERVICES_OF[4]
    | Space.of([packetset.VERSION_6], [packetset.VERSION_6], None, None) & SERVICES_OF[6]
)


@dataclass(frozen=True, slots=True)
class Zone:
    """A subnet of a VPC, or the internet (`vpc` and `subnet` are None); `addresses` on the line of `space`."""

    vpc: str | None
    subnet: str | None
    addresses: tuple[Interval, ...]

    @property
    def key(self) -> tuple[str | None, str | None]:
        """What makes zones of two worlds the same zone."""
        return self.vpc, self.subnet

    def name(self, home: str | None) -> str:
        """The zone in words, as seen from the VPC `home`."""
        if self.vpc is None:
            return INTERNET
        return str(self.subnet) if self.vpc == home else f"{self.vpc}/{self.subnet}"


@dataclass(frozen=True, slots=True)
class GateSpaces:
    """One direction of one subnet's policy.

    `layers` hold each rule's number where the rule matches and UNDECIDED elsewhere; `deciding` has for each packet the
    number of the rule that decides, or DEFAULT.
    """

    vpc: str
    subnet: str
    direction: Direction
    policy: Policy
    layers: tuple[Partition, ...]
    deciding: Partition

    def rule(self, decision: int | str) -> Rule | None:
        """The rule that a value of `deciding` means, None for DEFAULT."""
        return self.rules[decision] if isinstance(decision, int) else None

    def action(self, decision: int | str) -> Action:
        """What a value of `deciding` does."""
        rule = self.rule(decision)
        return rule.action if rule else self.policy.default(self.direction)

    @property
    def rules(self) -> Sequence[Rule]:
        return self.policy.rules(self.direction) or ()

    @property
    def allowed(self) -> Space:
        """The packets that the gate lets through; a limit is taken as not exceeded."""
        return Space(packetset.transform(lambda decision: self.action(decision) is Action.ALLOW, self.deciding))


def gate(
    world: World,
    vpc: Vpc,
    subnet: Subnet,
    direction: Direction,
    region: Space = packetset.EVERYTHING,
    most: float = MOST_PARTS,
) -> GateSpaces | None:
    """The gate of `subnet` for the packets of `region`, or None where it has no policy.

    TooFineError where it needs more than `most` parts; a smaller region may need fewer.
    """
    if subnet.policy is None:
        return None
    with packetset.bounded(most):
        return _gate(world, vpc, subnet, subnet.policy, direction, region)


def _gate(world: World, vpc: Vpc, subnet: Subnet, policy: Policy, direction: Direction, region: Space) -> GateSpaces:
    rules = policy.rules(direction) or ()
    meanings = Meanings(world, vpc, policy)
    meant = functools.cache(lambda endpoint: [packetset.interval(prefix) for prefix in meanings.prefixes(endpoint)])
    layers = [packetset.product(_ranges(meant, rule), number, packetset.UNDECIDED) for number, rule in enumerate(rules)]
    if region != packetset.EVERYTHING:
        layers = packetset.within(layers, region)
    deciding = packetset.first_match([*(layer for layer in layers if layer is not packetset.UNDECIDED), DEFAULT])
    return GateSpaces(vpc.name, subnet.name, direction, policy, tuple(layers), deciding)


Meant = Callable[[Endpoint], list[Interval]]


def _ranges(meant: Meant, rule: Rule) -> list[list[Interval] | None]:
    """A rule's match as ranges for each dimension; `meant` has the addresses of an endpoint."""
    ports = rule.ports if rule.ports is not None else rule.icmp_types
    return [
        _addresses(meant, rule.sources),
        _addresses(meant, rule.destinations),
        None if rule.protocol is None else [(rule.protocol, rule.protocol)],
        None if ports is None else list(ports),
    ]


def _addresses(meant: Meant, endpoints: tuple[Endpoint, ...] | None) -> list[Interval] | None:
    if endpoints is None or any(endpoint.kind == "any" for endpoint in endpoints):
        return None
    return [interval for endpoint in endpoints for interval in meant(endpoint)]


@dataclass(frozen=True, slots=True)
class _Outside:
    """What is outside a VPC and its peers, as one end of flows: the internet's part, and the host's."""

    internet: tuple[Interval, ...]
    kept: tuple[Interval, ...]


class Reach:
    """The zones of a world on a host, and what passes between them; `most` is what may be spent on one answer."""

    def __init__(self, world: World, host: Host = NO_HOST, most: float = MOST_PARTS):
        self.world, self.host, self.most = world, host, most
        self._gates: dict[tuple[str, str, Direction], GateSpaces | TooFineError | None] = {}
        self._passed: dict[tuple[str, str, Direction], Space] = {}
        self._outside: dict[tuple[str, int], _Outside] = {}

    @functools.cached_property
    def zones(self) -> dict[tuple[str | None, str | None], Zone]:
        """All zones by key; the internet last, as no VPC has it as its own."""
        subnets = [
            Zone(vpc.name, subnet.name, tuple(packetset.interval(prefix) for prefix in subnet.prefixes))
            for vpc in self.world.vpcs
            for subnet in vpc.subnets
        ]
        return {zone.key: zone for zone in (*subnets, Zone(None, None, ()))}

    def gate(self, vpc: str, subnet: str, direction: Direction) -> GateSpaces | None:
        """The gate, computed once; TooFineError where it has too many cases."""
        key = (vpc, subnet, direction)
        if key not in self._gates:
            found = self.world.vpc(vpc)
            try:
                self._gates[key] = gate(self.world, found, found.subnet(subnet), direction, most=self.most)
            except TooFineError as error:
                self._gates[key] = error
        known = self._gates[key]
        if isinstance(known, TooFineError):
            raise known
        return known

    def judged(self, vpc: str, subnet: str, direction: Direction, packets: Space) -> tuple[GateSpaces | None, Space]:
        """The gate, as far as it concerns `packets` at least, and which of these it lets through."""
        try:
            found = self.gate(vpc, subnet, direction)
            return found, packets if found is None else packets & self.passed(found)
        except TooFineError:
            home = self.world.vpc(vpc)
            found = gate(self.world, home, home.subnet(subnet), direction, packets, self.most)
            return found, packets if found is None else packets & found.allowed

    def passed(self, gate: GateSpaces) -> Space:
        """What one of our gates lets through, computed once."""
        key = (gate.vpc, gate.subnet, gate.direction)
        if key not in self._passed:
            self._passed[key] = gate.allowed
        return self._passed[key]

    def pairs(self, vpc: str | None = None) -> Iterator[tuple[Zone, Zone]]:
        """Every pair of zones that may have a path between them; those that touch `vpc` if it is given."""
        zones = list(self.zones.values())
        for source in zones:
            for destination in zones:
                if vpc in (None, source.vpc, destination.vpc) and self._may_meet(source, destination):
                    yield source, destination

    def _may_meet(self, source: Zone, destination: Zone) -> bool:
        if source.vpc is None or destination.vpc is None:
            return source.vpc is not destination.vpc
        return source.vpc == destination.vpc or destination.vpc in self._peers[source.vpc]

    @functools.cached_property
    def _peers(self) -> dict[str, frozenset[str]]:
        return {vpc.name: frozenset(peer.name for peer in self.world.peers(vpc.name)) for vpc in self.world.vpcs}

    def path(self, source: Zone, destination: Zone) -> tuple[Action, str]:
        """Does the topology carry anything from one zone to the other, and why (not)?"""
        if source.vpc is None and destination.vpc is None:
            return Action.DENY, "neither end is in a VPC"
        if source.vpc is None:
            found = self.served(destination)
            return (Action.ALLOW, "a published port") if found else (Action.DENY, "nothing is published there")
        if destination.vpc is None:
            subnet = self.world.vpc(source.vpc).subnet(str(source.subnet))
            if subnet.reaches_internet:
                return Action.ALLOW, f"subnet {subnet.name} has a way out"
            return Action.DENY, f"subnet {subnet.name} is private and has no NAT gateway"
        if source.vpc == destination.vpc:
            return Action.ALLOW, f"both are in VPC {source.vpc}"
        if self._may_meet(source, destination):
            return Action.ALLOW, f"VPCs {source.vpc} and {destination.vpc} are peered"
        return Action.DENY, f"VPCs {source.vpc} and {destination.vpc} are not peered"

    def carried(self, source: Zone, destination: Zone) -> Space:
        """What the topology carries from one zone to the other, whatever the gates say."""
        if not self._may_meet(source, destination):
            return packetset.NOTHING
        if source.vpc is None:
            senders = self.addresses(source, str(destination.vpc), packetset.SOURCE)
            return self.served(destination) & Space.of(senders, None, None, None)
        home = self.world.vpc(source.vpc)
        if destination.vpc is None and not home.subnet(str(source.subnet)).reaches_internet:
            return packetset.NOTHING
        ends = Space.of(source.addresses, self.addresses(destination, home.name), None, None)
        return FLOWS & ends & self.translated(source, destination)

    def translated(self, source: Zone, destination: Zone) -> Space:
        """What source NAT carries from one zone to the other: everything where nothing is translated.

        What has no ports leaves a VPC only where it is translated for this VPC by name.
        """
        if source.vpc is None or destination.vpc is not None:
            return packetset.EVERYTHING
        protocols = (*TRANSLATED, *self.world.vpc(source.vpc).nat_protocols)
        return Space.of(None, None, [(protocol, protocol) for protocol in protocols], None)

    def addresses(self, zone: Zone, home: str, end: int = packetset.DESTINATION) -> tuple[Interval, ...]:
        """The addresses that a zone has as the SOURCE or DESTINATION of flows of the VPC `home`.

        The internet is what is left, and not what the host keeps for itself at that end.
        """
        if zone.vpc is not None:
            return zone.addresses
        return self._seen_from(home, end).internet

    def kept(self, home: str, end: int) -> tuple[Interval, ...]:
        """What would be the internet's at that end of flows of the VPC `home`, if the host did not keep it."""
        return self._seen_from(home, end).kept

    def _seen_from(self, home: str, end: int) -> _Outside:
        if (home, end) not in self._outside:
            vpc = self.world.vpc(home)
            near = inside(self.world, vpc)
            lines = [{4: packetset.VERSION_4, 6: packetset.VERSION_6}[version] for version in vpc.versions]
            beyond = Space.of(lines, None, None, None) - _sources((*near, *NEVER_USABLE, self.world.transit))
            hosts = _sources(self.host.sends if end == packetset.SOURCE else self.host.receives)
            self._outside[home, end] = _Outside(_intervals(beyond - hosts), _intervals(beyond & hosts))
        return self._outside[home, end]

    def served(self, destination: Zone) -> Space:
        """What published ports lead to in a subnet, whoever calls: addresses and ports as gates see them."""
        vpc = self.world.vpc(str(destination.vpc))
        found = packetset.NOTHING
        for item in vpc.publications:
            if vpc.subnet_of(item.instance).name == destination.subnet:
                targets = [(packetset.number(a), packetset.number(a)) for a in vpc.instance(item.instance).addresses]
                ports = [(item.target_port, item.target_port)]
                found |= Space.of(None, targets, [(item.protocol, item.protocol)], ports)
        return found & FLOWS

    def allowed(self, source: Zone, destination: Zone) -> Space:
        """What passes from one zone to the other: carried, and allowed by both gates."""
        with packetset.bounded(self.most):
            return self._allowed(source, destination)

    def _allowed(self, source: Zone, destination: Zone) -> Space:
        found = self.carried(source, destination)
        for zone, direction in ((source, Direction.EGRESS), (destination, Direction.INGRESS)):
            if zone.vpc is not None and found:
                _, found = self.judged(zone.vpc, str(zone.subnet), direction, found)
        return found


def _sources(prefixes: Iterable[Network]) -> Space:
    return Space.of([packetset.interval(prefix) for prefix in prefixes], None, None, None)


def _intervals(sources: Space) -> tuple[Interval, ...]:
    return tuple(interval for interval, inside in packetset.cuts(sources.partition, packetset.SOURCE) if inside)


@dataclass(frozen=True, slots=True)
class Change:
    """What one pair of zones newly may and newly may not; the zones are those of the later world that has them."""

    source: Zone
    destination: Zone
    newly_allowed: Space
    newly_denied: Space


def changes(before: Reach, after: Reach) -> Iterator[Change]:
    """Every pair of zones between which the traffic that passes differs."""
    if before.world is after.world and before.host == after.host:
        return
    likeness = _Likeness(before, after)
    keys = {
        (source.key, destination.key): (source, destination)
        for reach in (before, after)
        for source, destination in reach.pairs()
        if not likeness.between(source, destination)
    }
    for source, destination in keys.values():
        old, new = (_allowed_in(reach, source, destination) for reach in (before, after))
        if old != new:
            yield Change(source, destination, new - old, old - new)


def _allowed_in(reach: Reach, source: Zone, destination: Zone) -> Space:
    if source.key not in reach.zones or destination.key not in reach.zones:
        return packetset.NOTHING
    return reach.allowed(reach.zones[source.key], reach.zones[destination.key])


# What does not change what passes: fields of the world besides its VPCs, of a VPC besides its subnets, of a subnet
# besides its policy, and of a peer.
_BESIDE = {"vpcs", "peerings"}
_OF_VPC = {"subnets", "index", "max_flows", "max_ports", "hardened"}
_OF_SUBNET = {"policy", "released"}
_OF_PEER = _OF_VPC | {"publications", "sets", "nat_protocols"}


class _Likeness:
    """Where it is plain, without computing any gate, that nothing differs between two worlds; each answer kept."""

    def __init__(self, before: Reach, after: Reach):
        self._worlds = before.world, after.world
        self._whole = before.host == after.host and not differing(before.world, after.world) - _BESIDE
        self._vpcs: dict[str, bool] = {}
        self._policies: dict[tuple[str, str], bool] = {}

    def between(self, source: Zone, destination: Zone) -> bool:
        """Is the traffic between two zones plainly the same?"""
        if not self._whole:
            return False
        zones = [(zone.vpc, str(zone.subnet)) for zone in (source, destination) if zone.vpc is not None]
        return all(self._of_vpc(vpc) for vpc, _ in zones) and all(self._of_policy(*zone) for zone in zones)

    def _of_vpc(self, name: str) -> bool:
        if name not in self._vpcs:
            self._vpcs[name] = self._compared(name)
        return self._vpcs[name]

    def _compared(self, name: str) -> bool:
        one, other = (world.vpcs_by_name.get(name) for world in self._worlds)
        if one is None or other is None or differing(one, other) - _OF_VPC:
            return False
        # Names in policies may mean other addresses where subnets or instances came or went.
        if not _alike(one.subnets, other.subnets, _OF_SUBNET):
            return False
        before, after = (sorted(world.peers(name), key=lambda peer: peer.name) for world in self._worlds)
        return _alike(before, after, _OF_PEER)

    def _of_policy(self, vpc: str, subnet: str) -> bool:
        if (vpc, subnet) not in self._policies:
            one, other = (world.vpc(vpc).subnet(subnet).policy for world in self._worlds)
            self._policies[vpc, subnet] = one == other
        return self._policies[vpc, subnet]


def _alike(ones: Sequence[Any], others: Sequence[Any], beside: set[str]) -> bool:
    """Are two sequences of values the same, apart from the fields `beside`?"""
    if len(ones) != len(others):
        return False
    return not any(differing(*pair) - beside for pair in zip(ones, others, strict=True))
