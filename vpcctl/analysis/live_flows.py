"""Tracked flows for people: the names of their ends, what they are for, and the line that admits each.

The line is that of the present policies, whatever admitted the flow when it began: that of the ingress gate of the
instance that serves, or of the egress gate if the flow leaves.  For a flow that is denied now it is the line that
denies it.  Such a flow carries nothing, and stays in connection tracking until it times out.

Theory of operation.  A router can hold a hundred thousand flows, so a flow must cost little.  All flows that look alike
to the gates (addresses, protocol, destination port) share one verdict.  The first few verdicts of a gate read its rules
in order.  From then on the gate is a partition of the packet space, in which a verdict is a look-up.  Nothing here
grows with the number of flows: what is remembered is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import Space
from vpcctl.analysis.reachability import DEFAULT, HOST, INTERNET, GateRules, Reach, Zone, ZoneKey
from vpcctl.analysis.rendering import service_in_words
from vpcctl.analysis.tracking import Counted
from vpcctl.errors import TooFineError
from vpcctl.model.network import Publication, Vpc, uplink_pair
from vpcctl.model.policy import ICMP_PROTOCOLS, PORT_PROTOCOLS, Action, Address, Direction
from vpcctl.model.resolve import inside
from vpcctl.values import dataclass

# So many verdicts of a gate are found by reading its rules, before its partition is computed.
READ = 64
# So many verdicts are remembered.
REMEMBERED = 1 << 16
NO_POLICY = "no policy"
ROUTER, UNKNOWN = "router", "unknown"
BY_ROUTER = "no gate: one end is the router"


@dataclass(frozen=True, slots=True)
class LiveFlow:
    """A flow in the router of `vpc`, as the gates see it: behind the translation of published ports, before source NAT.

    A name is that of an instance, PEER/NAME for one of a peer, ``internet``, ``host``, ``router``, or ``unknown`` for
    an address of the VPC that nobody has.  The VPCs of the ends are None outside.  Ports are None for protocols without
    ports; the `service` of ICMP has the type.  `published` is the port of the host that was called.  `rule` is the line
    that allows or denies the flow now, or the reason.
    """

    vpc: str
    source_name: str
    destination_name: str
    source_vpc: str | None
    destination_vpc: str | None
    source: Address
    source_port: int | None
    destination: Address
    destination_port: int | None
    protocol: int
    service: str
    published: str | None
    state: str
    packets: int | None
    bytes: int | None
    reply_packets: int | None
    reply_bytes: int | None
    expires: int | None
    allowed: bool
    rule: str


@dataclass(frozen=True, slots=True)
class FlowVerdict:
    """Is a flow allowed, and by which line or for which reason (not)?"""

    allowed: bool
    rule: str


# A flow's first packet as the gates see it: source, destination, protocol, and port or ICMP type.
Point = tuple[int, int, int, int]
_OUTSIDE: Sequence[ZoneKey] = ((None, None), (None, HOST))


class Verdicts:
    """What the present policies say of flows; `read` is how many verdicts of a gate come from reading its rules."""

    def __init__(self, reach: Reach, read: int = READ):
        self.reach = reach
        self._read = read
        self._known: dict[tuple[ZoneKey | None, ZoneKey | None, Point], FlowVerdict] = {}
        self._carried: dict[tuple[ZoneKey, ZoneKey], Space] = {}
        self._asked: Counter[tuple[str, str, Direction]] = Counter()
        self._too_fine: set[tuple[str, str, Direction]] = set()

    def of(self, source: ZoneKey | None, destination: ZoneKey | None, point: Point) -> FlowVerdict:
        """The verdict on a flow between two subnets, each a key of `Zones`; None is outside."""
        key = (source, destination, point)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._known[key] = self._judged(source, destination, point)
        return found

    def _judged(self, source: ZoneKey | None, destination: ZoneKey | None, point: Point) -> FlowVerdict:
        objection = self._objection(source, destination, point)
        if objection:
            return FlowVerdict(False, objection)
        found = FlowVerdict(True, NO_POLICY)
        for zone, direction in ((source, Direction.EGRESS), (destination, Direction.INGRESS)):
            if zone is not None and found.allowed:
                found = self._gate(str(zone[0]), str(zone[1]), direction, point)
        return self._served(found, point) if destination is None and found.allowed else found

    def _objection(self, source: ZoneKey | None, destination: ZoneKey | None, point: Point) -> str:
        """Why the topology does not carry the flow; empty if it does."""
        words = ""
        for one in self._zones(source):
            for other in self._zones(destination):
                if point in self._between(one, other):
                    return ""
                action, reason = self.reach.path(one, other)
                if action is not Action.ALLOW:
                    words = words or reason
        return words or "no path leads there"

    def _zones(self, key: ZoneKey | None) -> Iterator[Zone]:
        """The zone; for what is outside the internet, and the host if it is a zone of its own."""
        return (self.reach.zones[one] for one in ((key,) if key else _OUTSIDE) if one in self.reach.zones)

    def _between(self, source: Zone, destination: Zone) -> Space:
        key = (source.key, destination.key)
        if key not in self._carried:
            self._carried[key] = self.reach.carried(source, destination)
        return self._carried[key]

    def _gate(self, vpc: str, subnet: str, direction: Direction, point: Point) -> FlowVerdict:
        """What one gate says."""
        rules = self.reach.rules(vpc, subnet, direction)
        if rules is None:
            return FlowVerdict(True, NO_POLICY)
        decision = self._decision(rules, point)
        rule = rules.rule(decision)
        origin = rules.policy.default_origin(direction) if rule is None else rule.origin
        return FlowVerdict(rules.action(decision) is Action.ALLOW, str(origin))

    def _decision(self, rules: GateRules, point: Point) -> int | str:
        """The number of the rule that decides, or DEFAULT."""
        key = (rules.vpc, rules.subnet, rules.direction)
        self._asked[key] += 1
        if self._asked[key] > self._read and key not in self._too_fine:
            try:
                found = self.reach.gate(*key)
                assert found is not None, key
                decision: int | str = packetset.at(found.deciding, point)
                return decision
            except TooFineError:
                self._too_fine.add(key)
        return next((number for number, ranges in enumerate(rules.ranges) if _matches(ranges, point)), DEFAULT)

    def _served(self, found: FlowVerdict, point: Point) -> FlowVerdict:
        """The verdict on a flow that leaves; for a call of a published port the serving instance has its say, too."""
        source, destination, protocol, port = point
        if not self.reach.host.has(packetset.address(destination)):
            return found
        call = Space.of([(source, source)], [(destination, destination)], [(protocol, protocol)], [(port, port)])
        for vpc, item, _ in self.reach.serving(call):
            host = packetset.number(uplink_pair(self.reach.world.transit, vpc.index)[0])
            served = packetset.number(vpc.instance(item.instance).addresses[0])
            inner = (host, served, protocol, port - item.port + item.target_port)
            return self._gate(vpc.name, vpc.subnet_of(item.instance).name, Direction.INGRESS, inner)
        return found


def _matches(ranges: packetset.Ranges, point: Point) -> bool:
    return all(
        chosen is None or any(low <= value <= high for low, high in chosen)
        for value, chosen in zip(point, ranges, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _End:
    """Who has an address; `zone` is None outside, and for the router."""

    name: str
    zone: ZoneKey | None = None

    @property
    def vpc(self) -> str | None:
        return self.zone[0] if self.zone else None


_ITSELF, _NOBODY = _End(ROUTER), _End(UNKNOWN)


class Census:
    """Whose the addresses are that the router of one VPC sees."""

    def __init__(self, verdicts: Verdicts, name: str):
        world = verdicts.reach.world
        self._verdicts = verdicts
        self._vpc = vpc = world.vpc(name)
        self._ends = _instances(vpc, "")
        for peer in world.peers(name):
            self._ends |= _instances(peer, f"{peer.name}/")
        routers = (gateway for subnet in vpc.subnets for gateway in subnet.gateways)
        self._ends |= {packetset.number(gateway): _ITSELF for gateway in routers}
        # From here the host calls, for its own programs and for instances.
        self._ends[packetset.number(uplink_pair(world.transit, vpc.index)[0])] = _End(HOST)
        self._near = [packetset.interval(prefix) for prefix in inside(world, vpc)]
        self._published: dict[tuple[int, int], str | None] = {}

    def described(self, counted: Counted) -> LiveFlow:
        """A flow of this VPC's router."""
        flow, protocol = counted.flow, counted.flow.protocol
        source, destination = flow.original.source, flow.reply.source
        here, there = self._end(source), self._end(destination)
        has_ports = protocol in PORT_PROTOCOLS
        port = flow.service if has_ports or protocol in ICMP_PROTOCOLS else None
        verdict = self._verdict(here, there, (source, destination, protocol, port or 0))
        published = flow.translates_destination and there.vpc == self._vpc.name and has_ports
        return LiveFlow(
            self._vpc.name,
            here.name,
            there.name,
            here.vpc,
            there.vpc,
            packetset.address(source),
            flow.original.source_port if has_ports else None,
            packetset.address(destination),
            port if has_ports else None,
            protocol,
            service_in_words(protocol, port),
            self._called(protocol, flow.original.destination_port) if published else None,
            counted.state,
            counted.packets,
            counted.bytes,
            counted.reply_packets,
            counted.reply_bytes,
            counted.expires,
            verdict.allowed,
            verdict.rule,
        )

    def _end(self, number: int) -> _End:
        found = self._ends.get(number)
        if found is not None:
            return found
        if any(low <= number <= high for low, high in self._near):
            return _NOBODY
        return _End(HOST if self._verdicts.reach.host.has(packetset.address(number)) else INTERNET)

    def _verdict(self, here: _End, there: _End, point: Point) -> FlowVerdict:
        for end, number in ((here, point[0]), (there, point[1])):
            if end == _NOBODY:
                return FlowVerdict(False, f"no instance has the address {packetset.address(number)}")
        if _ITSELF in (here, there):
            return FlowVerdict(True, BY_ROUTER)
        return self._verdicts.of(here.zone, there.zone, point)

    def _called(self, protocol: int, port: int) -> str | None:
        """The port of the host that leads to a port of the router; None if it is not published any more."""
        key = (protocol, port)
        if key not in self._published:
            if len(self._published) >= REMEMBERED:
                self._published.clear()
            item = next((one for one in self._vpc.publications if _accepts(one, protocol, port)), None)
            self._published[key] = None if item is None else _host_port(item, port)
        return self._published[key]


def _instances(vpc: Vpc, prefix: str) -> dict[int, _End]:
    return {
        packetset.number(address): _End(f"{prefix}{instance.name}", (vpc.name, subnet.name))
        for subnet in vpc.subnets
        for instance in subnet.instances
        for address in instance.addresses
    }


def _accepts(item: Publication, protocol: int, port: int) -> bool:
    return item.protocol == protocol and item.entries[0] <= port <= item.entries[1]


def _host_port(item: Publication, port: int) -> str:
    at = "" if item.address is None else f" at {item.address}"
    return service_in_words(item.protocol, port - item.entry_port + item.port) + at
