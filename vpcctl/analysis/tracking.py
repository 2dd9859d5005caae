"""Flows that connection tracking remembers, and which of them stand in the way of the world in force.

A generation mark renews the judgement of a live flow.  Connection tracking keeps three more things, for as long as
anybody sends: whose addresses the ends were, the direction in which the flow began, and its translation.  Where a
change makes one of these wrong the entry has to go.  So after each load the entries are read, and those that are wrong
are forgotten.  The rule looks at the world alone, not at what changed, so it also holds after a crash and for `repair`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator

from vpcctl.analysis import packetset
from vpcctl.analysis.reachability import Reach
from vpcctl.model.network import Subnet, Vpc, World, uplink_addresses, uplink_pair
from vpcctl.model.policy import ICMP_PROTOCOLS, SCTP, TCP, UDP, Direction, Network
from vpcctl.model.protocols import PORTED, TRANSLATED
from vpcctl.model.resolve import inside
from vpcctl.values import dataclass

# enum ip_conntrack_status (include/uapi/linux/netfilter/nf_conntrack_common.h)
IPS_SRC_NAT, IPS_DST_NAT = 1 << 4, 1 << 5
# Protocols whose connections cannot continue by another path: they wait in case the old one comes back.
CONNECTED = frozenset({TCP, SCTP})
# The kernel walks its whole table for each selection.  For more than these, read it once instead.
MOST_SELECTIONS = 8


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of one direction of a flow.

    Addresses are numbers on the line of `space`.  Of ICMP `source_port` is the identifier and `destination_port` is
    256 times the type plus the code; of protocols without ports both are 0.
    """

    source: int
    source_port: int
    destination: int
    destination_port: int


@dataclass(frozen=True, slots=True)
class Tracked:
    """One entry of connection tracking: its packets in the direction in which the flow began, and the replies.

    `mark` is the generation that admitted the flow; `status` are bits of IPS_….
    """

    protocol: int
    original: Ends
    reply: Ends
    mark: int = 0
    status: int = 0

    @property
    def service(self) -> int:
        """The destination port behind all translation, or the ICMP type."""
        if self.protocol in ICMP_PROTOCOLS:
            return self.original.destination_port >> 8
        return self.reply.source_port

    @property
    def translates_destination(self) -> bool:
        return bool(self.status & IPS_DST_NAT)

    @property
    def translates_source(self) -> bool:
        return bool(self.status & IPS_SRC_NAT)


@dataclass(frozen=True, slots=True)
class Counted:
    """An entry of connection tracking with its state and counters.

    Counters are of both directions, those of the replies also by themselves; None if the kernel does not count.
    `expires` is in how many seconds the entry goes if no packet comes; None if it is gone.
    """

    flow: Tracked
    state: str
    packets: int | None = None
    bytes: int | None = None
    reply_packets: int | None = None
    reply_bytes: int | None = None
    expires: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """What names one entry in a namespace: the ends of its original direction, or of its replies."""

    protocol: int
    ends: Ends
    of_replies: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """Entries by some fields of their original direction, or of their replies; None is any.

    `source` is a number of `space`; a port goes with its protocol.
    """

    source: int | None = None
    protocol: int | None = None
    destination_port: int | None = None
    of_replies: bool = False

    def __contains__(self, flow: Tracked) -> bool:
        ends = flow.reply if self.of_replies else flow.original
        return (
            self.source in (None, ends.source)
            and self.protocol in (None, flow.protocol)
            and self.destination_port in (None, ends.destination_port)
        )


def key(flow: Tracked) -> Key:
    """The key of the entry in its own namespace."""
    return Key(flow.protocol, flow.original)


def beyond_uplink(flow: Tracked) -> Key:
    """The key that a flow of a router, which passes the uplink, has in the host."""
    if flow.translates_destination:
        return Key(flow.protocol, _turned(flow.original), of_replies=True)
    reply = flow.reply
    if flow.protocol in ICMP_PROTOCOLS:
        ends = Ends(reply.destination, reply.source_port, reply.source, flow.original.destination_port)
        return Key(flow.protocol, ends)
    return Key(flow.protocol, _turned(reply))


def _turned(ends: Ends) -> Ends:
    return Ends(ends.destination, ends.destination_port, ends.source, ends.source_port)


class Court:
    """Which flows of one VPC's router stand in the way of what the world wants.

    A flow that the ruleset in force drops as it should may stay: it carries nothing, and a TCP connection goes on if
    its policy comes back.
    """

    def __init__(self, world: World, name: str, generation: int, changed: Container[int] = ()):
        """`changed` are addresses that another instance has than before."""
        self._vpc = vpc = world.vpc(name)
        self._changed = changed
        self._generation = generation
        self._reach = Reach(world)
        self._subnets = dict(_instances(vpc))
        self._gateways = {packetset.number(gateway) for subnet in vpc.subnets for gateway in subnet.gateways}
        self._peers = {number for peer in world.peers(name) for number, _ in _instances(peer)}
        self._near = [packetset.interval(prefix) for prefix in inside(world, vpc)]
        targets = {instance.name: packetset.number(instance.addresses[0]) for instance in vpc.instances}
        self._published = _Ports(
            (item.protocol, item.entry_port, item.count, None, (targets[item.instance], item.target_port))
            for item in vpc.publications
        )
        self._known: dict[tuple[int, int, int, int], bool] = {}

    def objection(self, flow: Tracked) -> str:
        """Why the flow has to be forgotten; empty where it may stay."""
        source, destination = flow.original.source, flow.reply.source
        if self._is_nobody(source) or self._is_nobody(destination):
            return "one of its ends is nobody's address"
        if source in self._changed or destination in self._changed:
            return "one of its ends is another instance's address now"
        if _within(source, self._near) and _within(destination, self._near):
            if flow.translates_source or flow.translates_destination:
                return "nothing is translated between its ends"
        elif _within(source, self._near):
            if flow.protocol not in TRANSLATED and flow.protocol not in self._vpc.nat_protocols:
                return "its protocol is not translated"
            if not flow.translates_source and flow.protocol not in CONNECTED:
                # It went to a former peer, or the ruleset was absent when it began.
                return "its source is not translated"
        else:
            target = self._published.target(flow.protocol, flow.original.destination_port)
            if target not in (None, (destination, flow.reply.source_port)):
                return "its port is published for another instance"
        if flow.mark != self._generation and self._is_in_the_way(flow, source, destination):
            return "it is denied, and a flow that is allowed the other way round looks alike"
        return ""

    def passes_uplink(self, flow: Tracked) -> bool:
        """Has the flow one end outside of this VPC and its peers?"""
        return not (_within(flow.original.source, self._near) and _within(flow.reply.source, self._near))

    def _is_nobody(self, number: int) -> bool:
        """Is it an address of this VPC, or of a peer, that no instance and no gateway has?"""
        known = number in self._subnets or number in self._gateways or number in self._peers
        return _within(number, self._near) and not known

    def _is_in_the_way(self, flow: Tracked, source: int, destination: int) -> bool:
        """Is a denied flow the mirror image of an allowed one?  IKE, NTP and VXLAN use one port at both ends.

        To connection tracking the first packet of the other one is a reply.  A server that keeps sending to a client's
        own port is no such case: it sends on a connection that is denied.
        """
        if flow.protocol in ICMP_PROTOCOLS or flow.original.source_port != flow.service:
            return False
        return not self._allows(source, destination, flow) and self._allows(destination, source, flow)

    def _allows(self, source: int, destination: int, flow: Tracked) -> bool:
        """May a flow between these ends, with the protocol and port of `flow`, begin, as far as this VPC is asked?"""
        point = (source, destination, flow.protocol, flow.service)
        if point not in self._known:
            self._known[point] = (
                self._leaves(source, destination)
                and self._passes(Direction.EGRESS, source, point)
                and self._passes(Direction.INGRESS, destination, point)
            )
        return self._known[point]

    def _leaves(self, source: int, destination: int) -> bool:
        """Is there a way from one end to the other?  Into the VPC it is a published port, which the flow has."""
        subnet = self._subnets.get(source)
        return subnet is None or _within(destination, self._near) or subnet.reaches_internet

    def _passes(self, direction: Direction, end: int, point: tuple[int, int, int, int]) -> bool:
        subnet = self._subnets.get(end)
        if subnet is None:
            return True
        return bool(self._reach.judged(self._vpc.name, subnet.name, direction, _single(point))[1])


def _single(point: tuple[int, int, int, int]) -> packetset.Space:
    """The one packet at a point."""
    return packetset.Space.of(*([(number, number)] for number in point))


def _instances(vpc: Vpc) -> Iterator[tuple[int, Subnet]]:
    """Each instance's address with the subnet that it is in."""
    return (
        (packetset.number(address), subnet)
        for subnet in vpc.subnets
        for instance in subnet.instances
        for address in instance.addresses
    )


def changed_hands(before: World, after: World) -> frozenset[int]:
    """The addresses that one instance had before and another one has after; the MAC address tells instances apart."""
    owners = [
        {
            (vpc.name, packetset.number(address)): instance.mac
            for vpc in world.vpcs
            # In an unchanged VPC no address has a new owner, so the VPC is not read.
            if other.vpcs_by_name.get(vpc.name) is not vpc
            for instance in vpc.instances
            for address in instance.addresses
        }
        for world, other in ((before, after), (after, before))
    ]
    return frozenset(place[1] for place, mac in owners[0].items() if owners[1].get(place, mac) != mac)


# Protocol, first port, number of ports, address (None: any), and the address and first port that they lead to.
Mapped = tuple[int, int, int, int | None, tuple[int, int]]


class _Ports:
    """Where ports lead, range by range: a range may have as many ports as there are."""

    def __init__(self, ranges: Iterable[Mapped]):
        self._ranges = sorted(ranges, key=lambda one: one[:2])
        self._starts = [one[:2] for one in self._ranges]
        self._longest = max((one[2] for one in self._ranges), default=0)

    def target(self, protocol: int, port: int, address: int | None = None) -> tuple[int, int] | None:
        """The address and port to which a call of a port at this address leads; None if nothing is published there."""
        for number in range(bisect_right(self._starts, (protocol, port)) - 1, -1, -1):
            found, first, count, at, (target, target_port) = self._ranges[number]
            if found != protocol or first + self._longest <= port:
                break
            if port < first + count and at in (None, address):
                return target, target_port + port - first
        return None


def _within(number: int, intervals: Iterable[tuple[int, int]]) -> bool:
    return any(low <= number <= high for low, high in intervals)


# --- The host ---------------------------------------------------------------------------------------------------------


class HostCourt:
    """The same for the host, which translates for all VPCs.

    `local` are the host's own addresses, `reserved` the ports on which it serves.  `former` is a world whose uplinks
    may be gone by now; we ignore the rest of the transit range.
    """

    def __init__(
        self,
        world: World,
        local: Iterable[Network] = (),
        reserved: Iterable[int] = (),
        former: World | None = None,
    ):
        ends = (*uplink_addresses(world), *(uplink_addresses(former) if former else ()))
        self._uplinks = {packetset.number(end.network_address) for end in ends}
        pairs = {vpc.name: tuple(map(packetset.number, uplink_pair(world.transit, vpc.index))) for vpc in world.vpcs}
        self._routers = {router for _, router in pairs.values()}
        self._hosts = {host for host, _ in pairs.values()}
        self._published = _Ports(
            (
                item.protocol,
                item.port,
                item.count,
                None if item.address is None else packetset.number(item.address),
                (pairs[vpc.name][1], item.entry_port),
            )
            for vpc in world.vpcs
            for item in vpc.publications
        )
        self._local = [packetset.interval(prefix) for prefix in local]
        self._reserved = frozenset(reserved)
        self._alone = {(pairs[vpc.name][1], protocol) for vpc in world.vpcs for protocol in vpc.nat_protocols}

    def objection(self, flow: Tracked) -> str:
        """Why the flow has to be forgotten; empty where it may stay, or where it is none of ours."""
        source, destination = flow.original.source, flow.reply.source
        if source in self._hosts or destination in self._hosts:
            return ""
        if destination in self._uplinks:
            # A call of a published port, by an instance, a program of the host or somebody outside.
            return self._inward(flow)
        if source in self._uplinks:
            return self._outward(flow)
        # TCP reconnects by itself; a UDP sender that never pauses would keep the old translation for ever.
        received = flow.protocol == UDP and not flow.translates_destination and _within(destination, self._local)
        return "its port is published" if received and self._called(flow) is not None else ""

    def _called(self, flow: Tracked) -> tuple[int, int] | None:
        """The router, and its port, to which the host translates what the flow's first packet called."""
        call = flow.original
        return self._published.target(flow.protocol, call.destination_port, call.destination)

    def _outward(self, flow: Tracked) -> str:
        if flow.original.source not in self._routers:
            return "its uplink is gone"
        if flow.reply.destination == flow.original.source:
            return "its source is not translated"
        if flow.protocol not in TRANSLATED and (flow.original.source, flow.protocol) not in self._alone:
            return "its protocol is not translated for this VPC"
        if self._published.target(flow.protocol, flow.reply.destination_port, flow.reply.destination) is not None:
            return "it has taken a published port"
        if flow.protocol in PORTED and flow.reply.destination_port in self._reserved:
            return "it has taken a port on which the host serves"
        return ""

    def _inward(self, flow: Tracked) -> str:
        if flow.reply.source not in self._routers:
            return "its uplink is gone"
        wanted = self._called(flow)
        if wanted is None:
            # The router's entry stays, and drops what the instance still sends.
            return "its port is not published any more"
        if wanted != (flow.reply.source, flow.reply.source_port):
            return "its port is published for another VPC"
        return ""
