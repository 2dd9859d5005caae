"""Who may reach whom on what, exactly: the gates and paths of a world as partitions of the packet space.

This is computed from the policies, not from the rulesets, and so is a model beside the compiler; `oracle` judges
both.  A *zone* is what a person would name: a subnet, or the internet.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import Interval, Partition, Ranges, Space
from vpcctl.errors import TooFineError
from vpcctl.model.host import NO_HOST, Host
from vpcctl.model.network import NEVER_USABLE, Publication, Subnet, Vpc, World, effective, uplink_addresses, uplink_pair
from vpcctl.model.policy import ICMP, ICMPV6, Action, Direction, EffectivePolicy, Endpoint, Network, Policy, Rule
from vpcctl.model.protocols import REPLY_TYPE, TRANSLATED
from vpcctl.model.resolve import Meanings, inside
from vpcctl.values import dataclass

# What decides where no rule does.
DEFAULT = "default"
INTERNET = "internet"
# The host itself: its programs call published ports, and instances call the host at its published ports.
HOST = "host"
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
    """A subnet of a VPC, or what is outside; `addresses` on the line of `space`.

    The internet has neither `vpc` nor `subnet`, the host has HOST as its `subnet` and no `vpc`.
    """

    vpc: str | None
    subnet: str | None
    addresses: tuple[Interval, ...]

    @property
    def is_host(self) -> bool:
        return self.vpc is None and self.subnet == HOST

    @property
    def key(self) -> tuple[str | None, str | None]:
        """What makes zones of two worlds the same zone."""
        return self.vpc, self.subnet

    def name(self, home: str | None) -> str:
        """The zone in words, as seen from the VPC `home`."""
        if self.vpc is None:
            return self.subnet or INTERNET
        return str(self.subnet) if self.vpc == home else f"{self.vpc}/{self.subnet}"


@dataclass(frozen=True, slots=True)
class GateRules:
    """One direction of one subnet's effective policy: its rules in their order; `ranges` hold what each matches."""

    vpc: str
    subnet: str
    direction: Direction
    policy: EffectivePolicy
    rules: Sequence[Rule]
    ranges: tuple[Ranges, ...]

    def rule(self, decision: int | str) -> Rule | None:
        """The rule that a value of `deciding` means, None for DEFAULT."""
        return self.rules[decision] if isinstance(decision, int) else None

    def action(self, decision: int | str) -> Action:
        """What a value of `deciding` does."""
        rule = self.rule(decision)
        return rule.action if rule else self.policy.default(self.direction)

    @property
    def of_vpc(self) -> int:
        """How many of the rules are the VPC's; they come first."""
        written = self.policy.vpc
        return len((written.rules(self.direction) if written else None) or ())

    def within(self, region: Space) -> tuple[list[int], list[Ranges]]:
        """The numbers of the rules that match something near the region, and what they match there."""
        limits = packetset.around(region)
        found = [(number, left) for number, rule in enumerate(self.ranges) if (left := packetset.clipped(rule, limits))]
        packetset.spend(len(found))
        return [number for number, _ in found], [left for _, left in found]

    def passed(self, region: Space) -> Space:
        """What the gate lets through of the packets in `region`; it means nothing outside of that.

        A rule's number does not matter here, so this has fewer parts than `deciding`.
        """
        numbers, inside = self.within(region)
        allows = [self.rules[number].action is Action.ALLOW for number in numbers]
        default = self.policy.default(self.direction) is Action.ALLOW
        return Space(packetset.swept(inside, lambda found: allows[found[0]] if found else default))


@dataclass(frozen=True, slots=True)
class GateSpaces(GateRules):
    """Likewise with `deciding`, which has for each packet the number of the rule that decides, or DEFAULT.

    Where the gate was asked for within a region, `deciding` means nothing outside of it.
    """

    deciding: Partition

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
    """The gate of `subnet` for the packets of `region`, or None where neither it nor the VPC has a policy.

    TooFineError where it needs more than `most` parts; a smaller region may need fewer.
    """
    policy = effective(vpc, subnet)
    if policy is None:
        return None
    with packetset.bounded(most):
        return _gate(world, vpc, subnet, policy, direction, region)


def _gate(
    world: World, vpc: Vpc, subnet: Subnet, policy: EffectivePolicy, direction: Direction, region: Space
) -> GateSpaces:
    made = _rules(world, vpc, subnet.name, policy, direction)
    numbers, inside = made.within(region)
    deciding = packetset.swept(inside, lambda found: numbers[found[0]] if found else DEFAULT)
    return GateSpaces(vpc.name, subnet.name, direction, policy, made.rules, made.ranges, deciding)


def _rules(world: World, vpc: Vpc, subnet: str, policy: EffectivePolicy, direction: Direction) -> GateRules:
    # The words of each policy have their own meaning.
    ranges = [meaning(world, vpc, written, rules) for written, rules in policy.parts(direction)]
    return GateRules(
        vpc.name, subnet, direction, policy, tuple(policy.rules(direction)), tuple(itertools.chain(*ranges))
    )


def meaning(world: World, vpc: Vpc, policy: Policy, rules: Sequence[Rule]) -> tuple[Ranges, ...]:
    """What each of the rules of one policy matches."""
    meanings = Meanings(world, vpc, policy)
    meant = functools.cache(lambda endpoint: [packetset.interval(prefix) for prefix in meanings.prefixes(endpoint)])
    return tuple(_ranges(meant, rule) for rule in rules)


Meant = Callable[[Endpoint], list[Interval]]


def _ranges(meant: Meant, rule: Rule) -> Ranges:
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
    """Addresses outside a VPC and its peers: those of the internet, and those of the host.

    `kept` is what would be the internet's; `own` are the addresses that the host has there.
    """

    internet: tuple[Interval, ...]
    kept: tuple[Interval, ...]
    own: tuple[Interval, ...]


ZoneKey = tuple[str | None, str | None]


class Zones(Mapping[ZoneKey, Zone]):
    """All zones of a world by key; the internet, and the host if ports are published, come last: they are no VPC's own.

    The zones of a VPC are made on first use: a question about one VPC does not read all others.
    """

    def __init__(self, world: World):
        self._world = world
        self._of_vpcs: dict[str, dict[ZoneKey, Zone]] = {}
        published = any(vpc.publications for vpc in world.vpcs)
        outside = [Zone(None, None, ()), *([Zone(None, HOST, ())] if published else [])]
        self._outside = {zone.key: zone for zone in outside}

    def of(self, vpc: str) -> dict[ZoneKey, Zone]:
        """The zones of one VPC."""
        if vpc not in self._of_vpcs:
            zones = (
                Zone(vpc, subnet.name, tuple(packetset.interval(prefix) for prefix in subnet.prefixes))
                for subnet in self._world.vpc(vpc).subnets
            )
            self._of_vpcs[vpc] = {zone.key: zone for zone in zones}
        return self._of_vpcs[vpc]

    def among(self, vpcs: Container[str]) -> Iterator[Zone]:
        """The zones of `vpcs`, and what is outside."""
        for vpc in self._world.vpcs:
            if vpc.name in vpcs:
                yield from self.of(vpc.name).values()
        yield from self._outside.values()

    def __getitem__(self, key: ZoneKey) -> Zone:
        vpc, _ = key
        if vpc is None:
            return self._outside[key]
        if vpc not in self._world.vpcs_by_name:
            raise KeyError(key)
        return self.of(vpc)[key]

    def __iter__(self) -> Iterator[ZoneKey]:
        return (zone.key for zone in self.among(self._world.vpcs_by_name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Reach:
    """The zones of a world on a host, and what passes between them; `most` is what may be spent on one answer."""

    def __init__(self, world: World, host: Host = NO_HOST, most: float = MOST_PARTS):
        self.world, self.host, self.most = world, host, most
        self.zones = Zones(world)
        self._gates: dict[tuple[str, str, Direction], GateSpaces | TooFineError | None] = {}
        self._rules: dict[tuple[str, str, Direction], GateRules | None] = {}
        self._passed: dict[tuple[str, str, Direction], Space] = {}
        self._passing: dict[tuple[str, str, Direction, object, Space], Space | TooFineError] = {}
        self._open: dict[tuple[str, Publication], tuple[Interval, ...]] = {}
        self._outside: dict[tuple[str, int], _Outside] = {}

    @functools.cached_property
    def _publications(self) -> tuple[tuple[Vpc, Publication], ...]:
        return tuple((vpc, item) for vpc in self.world.vpcs for item in vpc.publications)

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

    def rules(self, vpc: str, subnet: str, direction: Direction) -> GateRules | None:
        """The rules of the gate, without computing which of them decide; None without a policy."""
        key = (vpc, subnet, direction)
        if key not in self._rules:
            found = self.world.vpc(vpc)
            policy = effective(found, found.subnet(subnet))
            self._rules[key] = None if policy is None else _rules(self.world, found, subnet, policy, direction)
        return self._rules[key]

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
        return self.pairs_of(self.world.vpcs_by_name if vpc is None else {vpc})

    def pairs_of(self, vpcs: Collection[str]) -> Iterator[tuple[Zone, Zone]]:
        """The pairs with an end in any of `vpcs`; zones without a path to these are not examined."""
        zones = list(self.zones.among({*vpcs, *(peer.name for vpc in vpcs for peer in self.world.peers(vpc))}))
        for source in zones:
            for destination in zones:
                if (source.vpc in vpcs or destination.vpc in vpcs) and self.may_meet(source, destination):
                    yield source, destination

    def may_meet(self, source: Zone, destination: Zone) -> bool:
        if source.vpc is None or destination.vpc is None:
            if source.is_host and destination.vpc is not None:
                return bool(self.world.vpc(destination.vpc).publications)
            if destination.is_host and source.vpc is not None:
                return bool(self._callable(source.vpc))
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
            found = self._let_in_by_host(source, destination)
            return (Action.ALLOW, "a published port") if found else (Action.DENY, "nothing is published there")
        if destination.vpc is None:
            subnet = self.world.vpc(source.vpc).subnet(str(source.subnet))
            if subnet.reaches_internet:
                way = "reaches published ports of the host" if destination.is_host else "has a way out"
                return Action.ALLOW, f"subnet {subnet.name} {way}"
            return Action.DENY, f"subnet {subnet.name} is private and has no NAT gateway"
        if source.vpc == destination.vpc:
            return Action.ALLOW, f"both are in VPC {source.vpc}"
        if self.may_meet(source, destination):
            return Action.ALLOW, f"VPCs {source.vpc} and {destination.vpc} are peered"
        return Action.DENY, f"VPCs {source.vpc} and {destination.vpc} are not peered"

    def carried(self, source: Zone, destination: Zone) -> Space:
        """What the topology carries from one zone to the other, whatever the gates say."""
        if not self.may_meet(source, destination):
            return packetset.NOTHING
        if source.vpc is None:
            return self._let_in_by_host(source, destination)
        home = self.world.vpc(source.vpc)
        if destination.vpc is None and not home.subnet(str(source.subnet)).reaches_internet:
            return packetset.NOTHING
        if destination.is_host:
            return self._callable(home.name) & Space.of(source.addresses, None, None, None)
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

        It has the addresses of uplinks in it, which depend on all VPCs.  Only a question about a single one of them
        finds that nobody reaches it.
        """
        if zone.vpc is not None:
            return zone.addresses
        seen = self._seen_from(home, end)
        return seen.own if zone.is_host else seen.internet

    def kept(self, home: str, end: int) -> tuple[Interval, ...]:
        """What would be the internet's at that end of flows of the VPC `home`, if the host did not keep it."""
        return self._seen_from(home, end).kept

    def _seen_from(self, home: str, end: int) -> _Outside:
        if (home, end) not in self._outside:
            vpc = self.world.vpc(home)
            near = inside(self.world, vpc)
            lines = [{4: packetset.VERSION_4, 6: packetset.VERSION_6}[version] for version in vpc.versions]
            beyond = Space.of(lines, None, None, None) - _sources((*near, *NEVER_USABLE))
            hosts = _sources(self.host.sends if end == packetset.SOURCE else self.host.receives)
            own = beyond & _sources(self.host.addresses) - _sources(uplink_addresses(self.world))
            if end == packetset.SOURCE:
                # From here comes what was sent to 127.0.0.1, or by an instance to the host.
                gateway = packetset.number(uplink_pair(self.world.transit, vpc.index)[0])
                own |= Space.of([(gateway, gateway)], None, None, None)
            self._outside[home, end] = _Outside(_intervals(beyond - hosts), _intervals(beyond & hosts), _intervals(own))
        return self._outside[home, end]

    def served(self, destination: Zone, by_host: bool = False) -> Space:
        """What published ports lead to in a subnet, for any caller: addresses and ports as gates see them.

        With `by_host`, the callers are programs of the host, which also reach ports published only at loopback
        addresses.
        """
        vpc = self.world.vpc(str(destination.vpc))
        found = packetset.NOTHING
        for item in vpc.publications:
            if vpc.subnet_of(item.instance).name == destination.subnet and self._is_there(item, by_host):
                targets = [(packetset.number(a), packetset.number(a)) for a in vpc.instance(item.instance).addresses]
                found |= Space.of(None, targets, [(item.protocol, item.protocol)], [item.targets])
        return found & FLOWS

    def _is_there(self, item: Publication, by_host: bool) -> bool:
        """Can callers outside, or the host, call it?  Without a particular host, any address may be the host's."""
        if item.address is None or item.local:
            return by_host or not item.local
        return not self.host.addresses or self.host.has(item.address)

    def _let_in_by_host(self, source: Zone, destination: Zone) -> Space:
        """The calls that the host translates for a subnet, of the internet or of its own programs."""
        senders = self.addresses(source, str(destination.vpc), packetset.SOURCE)
        return self.served(destination, source.is_host) & Space.of(senders, None, None, None)

    def _callable(self, home: str) -> Space:
        """The published ports of all VPCs that instances of the VPC `home` can call at the host."""
        found = packetset.NOTHING
        own = _host_side(self._seen_from(home, packetset.DESTINATION).own)
        for _, item in self._publications:
            found |= called(item) & own
        return found & FLOWS

    def _let_in_by_server(self, calls: Space) -> Space:
        """The calls at the host that the serving instances let in; their ingress gates see the instances' ports."""
        found = packetset.NOTHING
        for vpc, item, _ in self.serving(calls):
            found |= calls & called(item) & Space.of(None, None, None, self._open_ports(vpc, item))
        return found

    def serving(self, calls: Space) -> Iterator[tuple[Vpc, Publication, tuple[Interval, ...]]]:
        """The publications that serve calls at the host, each with the ports that are called."""
        for vpc, item in self._publications:
            if here := calls & called(item):
                yield vpc, item, tuple(dict.fromkeys(box[packetset.PORT] for box in here.boxes()))

    def _open_ports(self, vpc: Vpc, item: Publication) -> tuple[Interval, ...]:
        """The ports of the host at which the serving subnet lets calls of instances in."""
        if (vpc.name, item) not in self._open:
            packets = self.inner_call(vpc, item)
            found = gate(self.world, vpc, vpc.subnet_of(item.instance), Direction.INGRESS, packets, self.most)
            passing = packets if found is None else packets & found.allowed
            shift = item.port - item.target_port
            self._open[vpc.name, item] = tuple(
                (low + shift, high + shift) for low, high in (box[packetset.PORT] for box in passing.boxes())
            )
        return self._open[vpc.name, item]

    def inner_call(self, vpc: Vpc, item: Publication) -> Space:
        """Calls of instances at the host as the serving VPC sees them."""
        sender = packetset.number(uplink_pair(self.world.transit, vpc.index)[0])
        address = packetset.number(vpc.instance(item.instance).addresses[0])
        return Space.of([(sender,) * 2], [(address,) * 2], [(item.protocol,) * 2], [item.targets])

    def calls(self, vpcs: Container[str]) -> dict[object, tuple[Interval, ...]]:
        """Of each publication of `vpcs` the ports at which instances are let in."""
        there = ((vpc, item) for vpc, item in self._publications if vpc.name in vpcs)
        return {(vpc.name, item.place): self._open_ports(vpc, item) for vpc, item in there}

    def allowed(self, source: Zone, destination: Zone, among: Space = packetset.EVERYTHING) -> Space:
        """What passes from one zone to the other, of the packets in `among`: carried, and allowed by both gates."""
        with packetset.bounded(self.most):
            return self._allowed(source, destination, among)

    def _allowed(self, source: Zone, destination: Zone, among: Space) -> Space:
        found = self.carried(source, destination) & among
        for zone, other, direction in (
            (source, destination, Direction.EGRESS),
            (destination, source, Direction.INGRESS),
        ):
            if zone.vpc is not None and found:
                found &= self._let_through(zone, other, direction, found, among)
        return self._let_in_by_server(found) if destination.is_host else found

    def _let_through(self, zone: Zone, other: Zone, direction: Direction, packets: Space, among: Space) -> Space:
        """What the gate lets through, of `packets` at least.

        It is computed once for all zones inside, and once for the internet: most rules meet one of the two.
        """
        rules = self.rules(str(zone.vpc), str(zone.subnet), direction)
        if rules is None:
            return packetset.EVERYTHING
        key = (rules.vpc, rules.subnet, direction, other.key if other.vpc is None else None, among)
        if key not in self._passing:
            try:
                region = self._met(zone, other, direction) & among
                with packetset.bounded(self.most):
                    self._passing[key] = rules.passed(region)
            except TooFineError as error:
                self._passing[key] = error
        found = self._passing[key]
        # Fewer packets have fewer cases.
        return rules.passed(packets) if isinstance(found, TooFineError) else found

    def _met(self, zone: Zone, other: Zone, direction: Direction) -> Space:
        """All that can come to the gate of a zone from inside; or from the internet, if the other zone is that."""
        source, destination = (zone, other) if direction is Direction.EGRESS else (other, zone)
        if other.vpc is None:
            return self.carried(source, destination)
        vpc = self.world.vpc(str(zone.vpc))
        near = [packetset.interval(prefix) for prefix in inside(self.world, vpc)]
        ends = (zone.addresses, near) if direction is Direction.EGRESS else (near, zone.addresses)
        return Space.of(*ends, None, None)


def called(item: Publication) -> Space:
    """Calls of a published port, at whatever address of the host it is published."""
    at = None if item.address is None else [packetset.interval(ip_network(item.address))]
    version = [packetset.VERSION_4] if at is None else at
    return Space.of(None, version, [(item.protocol, item.protocol)], [item.ports])


def _host_side(addresses: Iterable[Interval]) -> Space:
    return Space.of(None, list(addresses), None, None)


def _sources(prefixes: Iterable[Network]) -> Space:
    return Space.of([packetset.interval(prefix) for prefix in prefixes], None, None, None)


def _intervals(sources: Space) -> tuple[Interval, ...]:
    return tuple(interval for interval, inside in packetset.cuts(sources.partition, packetset.SOURCE) if inside)
