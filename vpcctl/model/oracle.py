"""What a world and its policies mean for one new flow, in plain lines that know nothing of nftables.

This is the oracle: the compiler and the kernel are judged by it.  It follows docs/policy.md, «Meaning»: topology
first, then the egress gate of the source's subnet, then the ingress gate of the destination's; no gate accepts on
behalf of another.  At each gate the VPC's own policy is asked before the subnet's.
"""

from __future__ import annotations

from vpcctl.model.host import NO_HOST, Host
from vpcctl.model.network import (
    NEVER_USABLE,
    Publication,
    Subnet,
    Vpc,
    World,
    port_range,
    uplink_addresses,
    uplink_pair,
)
from vpcctl.model.policy import Action, Address, Direction, Endpoint, Policy, Rule
from vpcctl.model.protocols import ICMP_OF, REPLY_TYPE, TRANSLATED
from vpcctl.values import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """An address in a VPC, or in the internet where `vpc` is None."""

    vpc: str | None
    address: Address


@dataclass(frozen=True, slots=True)
class Flow:
    """The first packet of a flow: `port` is the destination port, or the ICMP type, or None.

    A flow from outside to a published port has the instance's address and port, as gates see it. A flow of a program of
    the host that called 127.0.0.1 has the host's address on the VPC's uplink as its source.  A flow of an instance to a
    published port has the address and the port of the host that the instance calls.
    """

    source: Place
    destination: Place
    protocol: int
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One thing that was asked: `gate` names it, `origin` is the deciding line or the reason."""

    gate: str
    action: Action
    origin: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The stages up to the first that does not allow."""

    stages: tuple[Stage, ...]

    @property
    def allowed(self) -> bool:
        return all(stage.action is Action.ALLOW for stage in self.stages)


def decide(world: World, flow: Flow, host: Host = NO_HOST) -> Decision:
    """May the flow pass on this host?  Rules with a limit are taken as below it."""
    stages = [Stage("topology", *carried(world, flow, host))]
    if stages[-1].action is Action.ALLOW:
        for place, direction in ((flow.source, Direction.EGRESS), (flow.destination, Direction.INGRESS)):
            if place.vpc is not None and stages[-1].action is Action.ALLOW:
                vpc = world.vpc(place.vpc)
                stages.append(_gate(world, vpc, subnet_at(vpc, place.address), direction, flow))
    if stages[-1].action is Action.ALLOW and flow.source.vpc is not None and flow.destination.vpc is None:
        called = published_at(world, flow, host)
        if called is not None:
            vpc, item = called
            # The host sends it on, from its end of the other VPC's uplink to the instance.
            address = vpc.instance(item.instance).addresses[0]
            port = item.target_port + (flow.port or 0) - item.port
            gateway = uplink_pair(world.transit, vpc.index)[0]
            inner = Flow(Place(None, gateway), Place(vpc.name, address), flow.protocol, port)
            stages.append(_gate(world, vpc, subnet_at(vpc, address), Direction.INGRESS, inner))
    return Decision(tuple(stages))


def published_at(world: World, flow: Flow, host: Host) -> tuple[Vpc, Publication] | None:
    """The publication at the address and port of the host to which a flow goes; None without one."""
    address, port = flow.destination.address, flow.port
    if port is None or not host.has(address):
        return None
    for vpc in world.vpcs:
        for item in vpc.publications:
            called = item.protocol == flow.protocol and item.ports[0] <= port <= item.ports[1]
            if called and item.address in (None, address):
                return vpc, item
    return None


def carried(world: World, flow: Flow, host: Host = NO_HOST) -> tuple[Action, str]:
    """Does the topology carry the flow, and why (not)?"""
    source, destination = flow.source, flow.destination
    if not _begins(flow):
        return Action.DENY, "no flow begins with that"
    for place in (source, destination):
        if place.vpc is not None and not _is_instance(world.vpc(place.vpc), place.address):
            return Action.DENY, f"{place.address} is not an instance of VPC {place.vpc}"
    if source.vpc is not None and destination.vpc is not None:
        if source.vpc == destination.vpc:
            return Action.ALLOW, f"both are in VPC {source.vpc}"
        if destination.vpc in {peer.name for peer in world.peers(source.vpc)}:
            return Action.ALLOW, f"VPCs {source.vpc} and {destination.vpc} are peered"
        return Action.DENY, f"VPCs {source.vpc} and {destination.vpc} are not peered"
    if source.vpc is not None:
        return _way_out(world, world.vpc(source.vpc), flow, host)
    if destination.vpc is not None:
        return _way_in(world, world.vpc(destination.vpc), flow, host)
    return Action.DENY, "neither end is in a VPC"


def _begins(flow: Flow) -> bool:
    """Is there such a packet, and is it *new* to connection tracking?"""
    version = flow.source.address.version
    if version != flow.destination.address.version:
        return False
    if flow.protocol not in REPLY_TYPE:
        return True
    return flow.protocol == ICMP_OF[version] and flow.port in REPLY_TYPE[flow.protocol]


def _way_out(world: World, vpc: Vpc, flow: Flow, host: Host) -> tuple[Action, str]:
    address = flow.destination.address
    if not _is_outside(world, vpc, address):
        return Action.DENY, f"{address} is not an internet address"
    for prefix in host.addresses:
        if address in prefix and published_at(world, flow, host) is None:
            return Action.DENY, f"{address} is an address of the host"
    for prefix in host.broadcasts:
        if address in prefix and not host.has(address):
            return Action.DENY, f"{address} is a broadcast address of the host's networks"
    subnet = subnet_at(vpc, flow.source.address)
    if not subnet.reaches_internet:
        return Action.DENY, f"subnet {subnet.name} is private and has no NAT gateway"
    if flow.protocol not in TRANSLATED and flow.protocol not in vpc.nat_protocols:
        return Action.DENY, f"protocol {flow.protocol} is not translated for VPC {vpc.name}"
    return Action.ALLOW, f"subnet {subnet.name} has a way out"


def _way_in(world: World, vpc: Vpc, flow: Flow, host: Host) -> tuple[Action, str]:
    address = flow.source.address
    gateway = uplink_pair(world.transit, vpc.index)[0]
    if address != gateway and not _is_outside(world, vpc, address):
        return Action.DENY, f"{address} is not an internet address"
    itself = address == gateway or host.has(address)
    for prefix in host.broadcasts:
        if address in prefix and host.strict and not itself:
            return Action.DENY, f"{address} is a broadcast address of the host's networks"
    for item in vpc.publications:
        served = flow.destination.address in vpc.instance(item.instance).addresses
        there = item.address is None or item.local or not host.addresses or host.has(item.address)
        if (
            served
            and there
            and item.protocol == flow.protocol
            and item.targets[0] <= (flow.port or 0) <= item.targets[1]
            and (itself or not item.local)
        ):
            return Action.ALLOW, f"port {port_range(item.port, item.count)} of the host is published for it"
    return Action.DENY, "this port is not published"


def _gate(world: World, vpc: Vpc, subnet: Subnet, direction: Direction, flow: Flow) -> Stage:
    name = f"{direction.value} of {vpc.name}/{subnet.name}"
    last = None
    for policy in (vpc.policy, subnet.policy):
        if policy is None:
            continue
        for rule in policy.rules(direction) or ():
            if _matches(world, vpc, policy, rule, flow):
                return Stage(name, rule.action, str(rule.origin))
        stated = any(side is direction for side, _ in policy.defaults)
        # The subnet's default holds if the subnet's policy has the direction, else the VPC's does.
        if last is None or stated or policy.rules(direction) is not None:
            last = policy
    if last is None:
        return Stage(name, Action.ALLOW, "no policy")
    return Stage(name, last.default(direction), str(last.default_origin(direction)))


def _matches(world: World, vpc: Vpc, policy: Policy, rule: Rule, flow: Flow) -> bool:
    if rule.protocol is not None and rule.protocol != flow.protocol:
        return False
    for ranges in (rule.ports, rule.icmp_types):
        if ranges is not None and (flow.port is None or not any(low <= flow.port <= high for low, high in ranges)):
            return False
    for endpoints, place in ((rule.sources, flow.source), (rule.destinations, flow.destination)):
        if endpoints is not None and not any(_means(world, vpc, policy, end, place.address) for end in endpoints):
            return False
    return True


def _means(world: World, vpc: Vpc, policy: Policy, endpoint: Endpoint, address: Address) -> bool:
    """Is `address` meant by `endpoint`, seen from `vpc`?"""
    kind, name = endpoint.kind, endpoint.name
    if kind == "any":
        return True
    if kind == "prefix":
        return endpoint.prefix is not None and address in endpoint.prefix
    if kind == "internet":
        return not any(address in prefix for one in (vpc, *world.peers(vpc.name)) for prefix in one.prefixes)
    if kind == "set":
        known = {**dict(vpc.sets), **dict(policy.sets)}
        return any(address in prefix for prefix in known.get(name or "", ()))
    if kind == "subnet":
        return any(address in prefix for one in vpc.subnets if one.name == name for prefix in one.prefixes)
    if kind == "instance":
        return any(address in one.addresses for one in vpc.instances if one.name == name)
    if kind == "vpc":
        seen = (vpc, *world.peers(vpc.name))
        return any(address in prefix for one in seen if one.name == name for prefix in one.prefixes)
    raise AssertionError(f"endpoint of kind {kind!r}")


def subnet_at(vpc: Vpc, address: Address) -> Subnet:
    """The subnet of `vpc` that holds `address`; StopIteration if none does."""
    return next(subnet for subnet in vpc.subnets if any(address in prefix for prefix in subnet.prefixes))


def _is_instance(vpc: Vpc, address: Address) -> bool:
    return any(address in instance.addresses for instance in vpc.instances)


def _is_outside(world: World, vpc: Vpc, address: Address) -> bool:
    inside = [prefix for one in (vpc, *world.peers(vpc.name)) for prefix in one.prefixes]
    return not any(address in prefix for prefix in (*inside, *NEVER_USABLE, *uplink_addresses(world)))
