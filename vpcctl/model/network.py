"""The network as values: a world of VPCs, their subnets and instances, and the peerings between them.

A value that could be constructed is valid; what cannot hold raises ConflictError (it collides with something else in
the world) or DocumentError (it is wrong by itself).  Prefixes and addresses come in tuples, one for each family that
is on, so nothing here assumes 32 bits.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vpcctl import names
from vpcctl.errors import ConflictError, DocumentError
from vpcctl.model.policy import (
    HIGHEST_PORT,
    ICMP_PROTOCOLS,
    PORT_PROTOCOLS,
    PROTOCOL_NAMES,
    TCP,
    WHOLE_VPC,
    Address,
    EffectivePolicy,
    Network,
    Policy,
)
from vpcctl.values import dataclass

Thing = TypeVar("Thing")


class Named(Protocol):
    """An object that its name identifies: a VPC, a subnet, an instance."""

    @property
    def name(self) -> str: ...


_N = TypeVar("_N", bound=Named)

HIGHEST_PROTOCOL = 255
DEFAULT_TRANSIT = ipaddress.ip_network("100.64.0.0/16")
# Addresses that no VPC may use: "this network", loopback, link-local, multicast and class E (RFC 6890).
NEVER_USABLE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/8",
        "fe80::/10",
        "ff00::/8",
    )
)
# The ports that source NAT takes, in the host and in the routers: the upper half, from which Linux also gives programs
# the ports of their own connections, so that no service is expected there.
NAT_PORTS = (32768, 65535)
# Default limits of one VPC on shared resources: flows that the host tracks for it, and ports toward one remote
# service.  The host tracks 65,536 flows or more (net.netfilter.nf_conntrack_max).
DEFAULT_MAX_FLOWS, DEFAULT_MAX_PORTS = 16384, 8192
HIGHEST_MAX_FLOWS = 1 << 22
# Every change may have to judge all of them.
MOST_INVARIANTS = 1000
# The MTU of a VPC's links: at least what every host can receive (RFC 791), at most what veth allows (ETH_MAX_MTU).  The
# default is that of Ethernet; a VPC behind a way out with a smaller MTU gets that MTU.
MTUS = (576, 65535)
DEFAULT_MTU = 1500
# Packets of 2048 bytes and more take no detour for their checksums (kernel/checksums.py), and a link accepts a few
# bytes more than its MTU.
HARDENED_MTU = 2000
# How many released addresses a subnet remembers, so as not to hand them out again at once.
REMEMBERED = 256
# A subnet needs its network address, a gateway, an instance and its broadcast address.
LONGEST_PREFIX = {4: 30, 6: 126}
SHORTEST_PREFIX = {4: 8, 6: 16}


# The same as numbers, by IP version: each VPC is compared with all of them whenever the record is read.
_NEVER = {
    version: tuple(
        (never, int(never.network_address), int(never.broadcast_address))
        for never in NEVER_USABLE
        if never.version == version
    )
    for version in (4, 6)
}


def _index() -> Any:
    """A field that is made of the others and says nothing of its own."""
    return field(init=False, repr=False, compare=False)


def overlap(one: Network, other: Network) -> bool:
    """Do two prefixes, of any family, share an address?"""
    if one.version != other.version or one.prefixlen < other.prefixlen:
        return one.version == other.version and overlap(other, one)
    # The longer prefix is inside the other one, or they share nothing: one comparison instead of the four of
    # `overlaps`.
    return int(one.network_address) >> (one.max_prefixlen - other.prefixlen) == int(other.network_address) >> (
        one.max_prefixlen - other.prefixlen
    )


def within(inner: Network, outer: Network) -> bool:
    """Is a prefix, of any family, a part of another?"""
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


def _check_prefixes(owner: str, prefixes: tuple[Network, ...]) -> None:
    if not prefixes:
        raise DocumentError(f"{owner} has no prefix")
    for prefix in prefixes:
        if prefix.prefixlen > LONGEST_PREFIX[prefix.version]:
            raise DocumentError(
                f"{owner}: {prefix} is too small; it must hold a gateway and an instance:"
                f" /{LONGEST_PREFIX[prefix.version]} or shorter"
            )
        if prefix.prefixlen < SHORTEST_PREFIX[prefix.version]:
            raise DocumentError(
                f"{owner}: {prefix} is too large; /{SHORTEST_PREFIX[prefix.version]} or longer is expected"
            )


@dataclass(frozen=True, slots=True)
class Instance:
    """A workload: a namespace with one interface.  `mac` was allocated by us and is never used twice."""

    name: str
    addresses: tuple[Address, ...]
    mac: str

    def __post_init__(self) -> None:
        names.check_name(self.name, "instance")


@dataclass(frozen=True, slots=True)
class Subnet:
    """A part of the VPC behind one bridge and one pair of gates.

    `public` subnets reach the internet through source NAT; private ones only with `nat_gateway`.  `released` are
    addresses that instances had, the latest last: they are handed out after all others.
    """

    name: str
    prefixes: tuple[Network, ...]
    public: bool
    nat_gateway: bool = False
    instances: tuple[Instance, ...] = ()
    policy: Policy | None = None
    released: tuple[Address, ...] = ()

    def __post_init__(self) -> None:
        names.check_name(self.name, "subnet")
        owner = f"subnet {self.name}"
        _check_prefixes(owner, self.prefixes)
        taken: dict[Address, str] = dict.fromkeys(self.gateways, "the gateway")
        for instance in self.instances:
            for address in instance.addresses:
                self._check_address(instance, address)
                if address in taken:
                    raise ConflictError(f"{owner}: {address} belongs to {taken[address]} already")
                taken[address] = f"instance {instance.name}"

    def _check_address(self, instance: Instance, address: Address) -> None:
        for prefix in self.prefixes:
            if address.version == prefix.version and address in prefix:
                if address in (prefix.network_address, prefix.broadcast_address):
                    raise DocumentError(
                        f"instance {instance.name}: {address} is the network or broadcast address of {prefix}"
                    )
                return
        wanted = " or ".join(map(str, self.prefixes))
        raise DocumentError(f"instance {instance.name}: {address} is not in subnet {self.name} ({wanted})")

    @property
    def gateways(self) -> tuple[Address, ...]:
        """The router's addresses: the first host address of each prefix."""
        return tuple(prefix.network_address + 1 for prefix in self.prefixes)

    @property
    def reaches_internet(self) -> bool:
        """Has the subnet a way out?"""
        return self.public or self.nat_gateway

    def free_addresses(self) -> tuple[Address, ...]:
        """For each prefix, the lowest address from the second host address on that is neither in use nor released.

        If only released addresses are left, the one that was released first.  ConflictError when full.
        """
        return tuple(self._free_address(prefix) for prefix in self.prefixes)

    def _free_address(self, prefix: Network) -> Address:
        taken = {address for instance in self.instances for address in instance.addresses}
        avoided = taken.union(self.released)
        # No more than len(avoided) candidates can be avoided, so this never walks a large prefix.
        for offset in range(2, len(avoided) + 3):
            candidate = prefix.network_address + offset
            if candidate not in prefix or candidate == prefix.broadcast_address:
                break
            if candidate not in avoided:
                return candidate
        for address in self.released:
            if address in prefix and address not in taken:
                return address
        raise ConflictError(f"subnet {self.name}: every address of {prefix} is in use")

    def with_instances(self, instances: tuple[Instance, ...]) -> Subnet:
        """This subnet with other instances; it remembers the addresses that no instance has any more."""
        after = {address for instance in instances for address in instance.addresses}
        gone = [a for instance in self.instances for a in instance.addresses if a not in after]
        released = (*(a for a in self.released if a not in after and a not in gone), *gone)
        return dataclasses.replace(self, instances=instances, released=released[-REMEMBERED:])


@dataclass(frozen=True, slots=True)
class Publication:
    """Ports of the host that are forwarded to the same number of ports of an instance (destination NAT).

    They are `count` consecutive ports, from `port` on; those of the instance begin with `target_port`. `address` is the
    one address of the host at which they are published, None for all.  `entry` is the first port at which the VPC's
    router accepts them, None for `port` itself: a VPC may publish one port at several addresses for several instances,
    and its router does not see which address was called (`placed`).
    """

    protocol: int
    port: int
    instance: str
    target_port: int
    count: int = 1
    address: Address | None = None
    entry: int | None = None

    def __post_init__(self) -> None:
        for first in (self.port, self.target_port):
            if not 1 <= first <= first + self.count - 1 <= HIGHEST_PORT:
                raise DocumentError(f"port {port_range(first, self.count)} is not in 1–{HIGHEST_PORT}")
        if self.address is not None and not _is_publishable(self.address):
            raise DocumentError(f"{self.address} cannot be an address of the host; omit it to publish at all addresses")

    @property
    def service(self) -> str:
        """The ports of the host, as `tcp/8080`, `udp/8000-8010` or `tcp/80 at 192.0.2.1`."""
        at = "" if self.address is None else f" at {self.address}"
        return f"{PROTOCOL_NAMES.get(self.protocol, self.protocol)}/{port_range(self.port, self.count)}{at}"

    @property
    def target(self) -> str:
        """The ports of the instance, likewise."""
        return f"{PROTOCOL_NAMES.get(self.protocol, self.protocol)}/{port_range(self.target_port, self.count)}"

    @property
    def entry_port(self) -> int:
        """The first port at which the VPC's router accepts them."""
        return self.port if self.entry is None else self.entry

    @property
    def ports(self) -> tuple[int, int]:
        """The first and the last port of the host."""
        return self.port, self.port + self.count - 1

    @property
    def targets(self) -> tuple[int, int]:
        """The first and the last port of the instance."""
        return self.target_port, self.target_port + self.count - 1

    @property
    def entries(self) -> tuple[int, int]:
        """The first and the last port at which the router accepts them."""
        return self.entry_port, self.entry_port + self.count - 1

    @property
    def place(self) -> tuple[int, int, int, Address | None]:
        """What they occupy on the host: protocol, ports and address."""
        return (self.protocol, *self.ports, self.address)

    @property
    def local(self) -> bool:
        """Are they published for the host itself alone, at a loopback address?"""
        return self.address is not None and self.address.is_loopback

    def taken_back(self, vpc: str) -> str:
        """The command that unpublishes them for the VPC `vpc`."""
        name = PROTOCOL_NAMES.get(self.protocol, str(self.protocol))
        protocol = "" if self.protocol == TCP else f" --protocol {name}"
        at = "" if self.address is None else f" --address {self.address}"
        return f"`vpcctl unpublish-port --vpc {vpc} --port {port_range(self.port, self.count)}{protocol}{at}`"


def port_range(first: int, count: int = 1) -> str:
    """Consecutive ports in words: `80`, or `8000-8010`."""
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def _is_publishable(address: Address) -> bool:
    """Can a host have this address, judging by the address alone?"""
    if address.is_loopback:
        return True
    return address.version == 4 and not any(address in prefix for prefix in NEVER_USABLE)


# The router's ports for publications that cannot keep their number: below those of source NAT, above those of services.
_ENTRIES = (1024, NAT_PORTS[0] - 1)


def placed(item: Publication, others: Iterable[Publication]) -> Publication:
    """`item` with ports at its router that none of `others`, of the same VPC, has; the same ports, if they are free.

    ConflictError if none are left.
    """
    taken = sorted(other.entries for other in others if other.protocol == item.protocol)
    own = dataclasses.replace(item, entry=None)
    if not any(low <= own.ports[1] and own.ports[0] <= high for low, high in taken):
        return own
    first = _ENTRIES[0]
    for low, high in taken:
        if first + item.count - 1 < low:
            break
        first = max(first, high + 1)
    if first + item.count - 1 > _ENTRIES[1]:
        raise ConflictError(f"no {item.count} consecutive ports are left in the router for {item.service}")
    return dataclasses.replace(item, entry=first)


class Rest(Protocol):
    """The content of a VPC that is on record and not read yet; equal marks mean equal content."""

    @property
    def mark(self) -> str: ...

    def whole(self) -> Vpc:
        """The same VPC, with everything in it."""


# The fields of a VPC that are read on first use, and those that are computed from them.
_DEFERRED = ("subnets", "sets", "policy", "instances", "subnets_by_name", "instances_by_name", "_homes")


@dataclass(frozen=True, slots=True)
class Vpc:
    """A virtual private network: `index` selects its /31 of the transit range; `sets` are named prefix lists.

    `max_flows` is how many flows the host tracks for it at most, `max_ports` how many ports it may take toward one
    remote service.  `nat_protocols` are the protocols without ports that are translated for it, and for no other VPC.
    A `hardened` one also has defences that cost throughput (docs/operations.md).  `mtu` is that of all its links; None
    until the VPC is made on a host, whose way out decides it once.  `policy` is the VPC's own, whose rules are asked
    before those of each subnet (`effective`).  `instances` are those of all subnets.

    A `deferred` VPC reads its subnets, sets and policy from the record on first use, so that a command about one VPC
    does not read the others.  `rest` is where they are; None for a VPC that is not deferred.
    """

    name: str
    prefixes: tuple[Network, ...]
    index: int
    subnets: tuple[Subnet, ...] = ()
    publications: tuple[Publication, ...] = ()
    sets: tuple[tuple[str, Sequence[Network]], ...] = ()
    max_flows: int = DEFAULT_MAX_FLOWS
    max_ports: int = DEFAULT_MAX_PORTS
    nat_protocols: tuple[int, ...] = ()
    hardened: bool = False
    mtu: int | None = None
    policy: Policy | None = None
    instances: tuple[Instance, ...] = _index()
    subnets_by_name: Mapping[str, Subnet] = _index()
    instances_by_name: Mapping[str, Instance] = _index()
    rest: Rest | None = _index()
    _homes: Mapping[str, Subnet] = _index()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rest", None)
        instances = tuple(instance for subnet in self.subnets for instance in subnet.instances)
        homes = {instance.name: subnet for subnet in self.subnets for instance in subnet.instances}
        object.__setattr__(self, "instances", instances)
        object.__setattr__(self, "subnets_by_name", {subnet.name: subnet for subnet in self.subnets})
        object.__setattr__(self, "instances_by_name", {instance.name: instance for instance in instances})
        object.__setattr__(self, "_homes", homes)
        self._check_own()
        self._check_subnets()
        self._check_instances()

    @classmethod
    def deferred(
        cls,
        rest: Rest,
        name: str,
        prefixes: tuple[Network, ...],
        index: int,
        publications: tuple[Publication, ...],
        max_flows: int,
        max_ports: int,
        nat_protocols: tuple[int, ...],
        hardened: bool,
        mtu: int | None,
    ) -> Vpc:
        """A VPC whose subnets, sets and policy are read from `rest` on first use, and checked then."""
        made = object.__new__(cls)
        own = (name, prefixes, index, publications, max_flows, max_ports, nat_protocols, hardened, mtu, rest)
        for field_name, value in zip((*_OWN, "rest"), own, strict=True):
            object.__setattr__(made, field_name, value)
        made._check_own()
        return made

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Python calls this for fields that are not set, so only for deferred ones.
            if name not in _DEFERRED:
                raise AttributeError(name)
            whole = self.rest.whole()
            for field_name in _DEFERRED:
                object.__setattr__(self, field_name, getattr(whole, field_name))
            return getattr(whole, name)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Vpc):
            return NotImplemented
        if any(getattr(self, name) != getattr(other, name) for name in _OWN):
            return False
        if self.rest is not None and other.rest is not None and self.rest.mark == other.rest.mark:
            return True
        return (self.subnets, self.sets, self.policy) == (other.subnets, other.sets, other.policy)

    def _check_own(self) -> None:
        """Check what does not depend on the subnets."""
        names.check_name(self.name, "VPC")
        self._check_limits()
        _check_prefixes(f"VPC {self.name}", self.prefixes)
        for prefix in self.prefixes:
            first, last = int(prefix.network_address), int(prefix.broadcast_address)
            for never, low, high in _NEVER[prefix.version]:
                if low <= last and first <= high:
                    raise DocumentError(f"VPC {self.name}: {prefix} overlaps {never}, which no network may use")

    @property
    def uses_uplink(self) -> bool:
        """May any flow pass the uplink?"""
        return bool(self.publications) or any(subnet.reaches_internet for subnet in self.subnets)

    def _check_limits(self) -> None:
        ports = NAT_PORTS[1] - NAT_PORTS[0] + 1
        for what, value, most in (("flows", self.max_flows, HIGHEST_MAX_FLOWS), ("ports", self.max_ports, ports)):
            if not 1 <= value <= most:
                raise DocumentError(f"VPC {self.name}: max_{what} is {value}; 1 to {most} is expected")
        if self.mtu is not None and not MTUS[0] <= self.mtu <= MTUS[1]:
            raise DocumentError(f"VPC {self.name}: the MTU is {self.mtu}; {MTUS[0]} to {MTUS[1]} is expected")
        if self.hardened and self.link_mtu > HARDENED_MTU:
            raise DocumentError(
                f"VPC {self.name}: the MTU is {self.mtu}; a hardened VPC has at most {HARDENED_MTU}, so that no packet"
                " can skip the completion of its checksum"
            )
        for protocol in self.nat_protocols:
            if protocol in (*PORT_PROTOCOLS, *ICMP_PROTOCOLS) or not 0 <= protocol <= HIGHEST_PROTOCOL:
                raise DocumentError(
                    f"VPC {self.name}: {protocol} is not a protocol without ports; expected: a number from 0 to 255"
                    " other than those of TCP, UDP, SCTP and ICMP, which source NAT always translates"
                )
        unique(self.nat_protocols, f"VPC {self.name}: translated protocol")

    def _check_subnets(self) -> None:
        unique((subnet.name for subnet in self.subnets), f"VPC {self.name}: subnet")
        for subnet in self.subnets:
            self.check_inside(subnet)
        if _share_addresses(prefix for subnet in self.subnets for prefix in subnet.prefixes):
            # Find the pair of subnets only now: until here, the two prefixes may be those of one subnet.
            for one, other in combinations(self.subnets, 2):
                check_apart(one, other)

    def check_inside(self, subnet: Subnet) -> None:
        """Raise DocumentError for a subnet whose prefix is not a part of the VPC's."""
        for prefix in subnet.prefixes:
            if not any(within(prefix, mine) for mine in self.prefixes):
                wanted = " or ".join(map(str, self.prefixes))
                raise DocumentError(f"subnet {subnet.name}: {prefix} is not inside VPC {self.name} ({wanted})")

    def _check_instances(self) -> None:
        unique((instance.name for instance in self.instances), f"VPC {self.name}: instance")
        unique((instance.mac for instance in self.instances), f"VPC {self.name}: MAC address")
        check_published((self.name, item) for item in self.publications)
        for one, other in _sharing(self.publications, lambda item: item.entries):
            first, second = self.publications[one], self.publications[other]
            raise ConflictError(
                f"VPC {self.name}: {first.service} and {second.service} would have one port in the router"
            )
        for publication in self.publications:
            if publication.instance not in self.instances_by_name:
                raise ConflictError(
                    f"VPC {self.name}: port {port_range(publication.port, publication.count)} is published for instance"
                    f" {publication.instance}, which does not exist; unpublish it first"
                )
        for kind, derive, words in (
            ("bridge", names.bridge, [subnet.name for subnet in self.subnets]),
            ("port", names.port, [instance.name for instance in self.instances]),
        ):
            unique(map(derive, words), f"VPC {self.name}: {kind} interface")

    @property
    def policies(self) -> Iterator[tuple[str, Policy]]:
        """The policies as they were written, each with the name of its subnet; the VPC's own comes first."""
        if self.policy is not None:
            yield WHOLE_VPC, self.policy
        yield from ((subnet.name, subnet.policy) for subnet in self.subnets if subnet.policy is not None)

    def policy_of(self, subnet: str) -> Policy | None:
        """The policy that was written for a subnet, or for the VPC; ConflictError names the subnets that exist."""
        return self.policy if subnet == WHOLE_VPC else self.subnet(subnet).policy

    def with_policy(self, subnet: str, policy: Policy | None) -> Vpc:
        """This VPC with another policy, or none, for a subnet or for the VPC."""
        if subnet == WHOLE_VPC:
            return dataclasses.replace(self, policy=policy)
        return self.with_subnet(dataclasses.replace(self.subnet(subnet), policy=policy))

    @property
    def link_mtu(self) -> int:
        """The MTU of its links."""
        return DEFAULT_MTU if self.mtu is None else self.mtu

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that are on."""
        return tuple(sorted({prefix.version for prefix in self.prefixes}))

    def subnet(self, name: str) -> Subnet:
        """The subnet `name`; ConflictError names those that exist."""
        return _found(self.subnets_by_name, name, "subnet", f" in VPC {self.name}")

    def instance(self, name: str) -> Instance:
        """The instance `name`; ConflictError names those that exist."""
        return _found(self.instances_by_name, name, "instance", f" in VPC {self.name}")

    def subnet_of(self, instance: str) -> Subnet:
        """The subnet that holds the instance `instance`."""
        return _found(self._homes, instance, "instance", f" in VPC {self.name}")

    def with_subnet(self, changed: Subnet) -> Vpc:
        """This VPC with the subnet of that name replaced, or added at the end."""
        return dataclasses.replace(self, subnets=tuple(_with(self.subnets, changed)))


# The fields that a deferred VPC has from the beginning.
_OWN = ("name", "prefixes", "index", "publications", "max_flows", "max_ports", "nat_protocols", "hardened", "mtu")


def effective(vpc: Vpc, subnet: Subnet) -> EffectivePolicy | None:
    """What decides at the gates of `subnet`; None if neither the subnet nor its VPC has a policy.

    The oracle has lines of its own for this: it is the independent witness.
    """
    if vpc.policy is None and subnet.policy is None:
        return None
    return EffectivePolicy(vpc.policy, subnet.policy)


@dataclass(frozen=True, slots=True, order=True)
class Peering:
    """Two VPCs that route to each other; the names are kept in order, so a pair has one spelling."""

    one: str
    other: str

    @classmethod
    def between(cls, one: str, other: str) -> Peering:
        """The peering of two VPCs, given in any order."""
        if one == other:
            raise DocumentError(f"VPC {one} cannot be peered with itself; name two different VPCs")
        return cls(*sorted((one, other)))

    def __contains__(self, name: str) -> bool:
        return name in (self.one, self.other)

    def peer_of(self, name: str) -> str:
        """The other end, seen from the VPC `name`."""
        return self.other if name == self.one else self.one


@dataclass(frozen=True, slots=True)
class Invariant:
    """An assertion about traffic that every change must keep, in the words of `vpcctl verify`.

    `expect` is ``allow`` or ``deny``.  It belongs to the VPC `vpc` and goes with it, or to the machine if that is None.
    `place` is where it was written: ``FILE#/NUMBER``.
    """

    source: str
    destination: str
    service: str
    expect: str
    vpc: str | None = None
    description: str = ""
    place: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.source} → {self.destination} {self.service}: {self.expect}"

    @property
    def ends(self) -> tuple[str | None, str | None]:
        """The VPC of the source and of the destination, None for an end outside all VPCs."""
        source, destination = (text.split("/", 1) for text in (self.source, self.destination))
        return source[0] if len(source) > 1 else None, destination[0] if len(destination) > 1 else None


@dataclass(frozen=True, slots=True)
class World:
    """Everything desired on one machine: what people want, and nothing of what the machine is like (`HostPart`)."""

    vpcs: tuple[Vpc, ...] = ()
    peerings: tuple[Peering, ...] = ()
    transit: Network = DEFAULT_TRANSIT
    invariants: tuple[Invariant, ...] = ()
    vpcs_by_name: Mapping[str, Vpc] = _index()
    _peers: Mapping[str, tuple[Vpc, ...]] = _index()

    def __post_init__(self) -> None:
        object.__setattr__(self, "vpcs_by_name", {vpc.name: vpc for vpc in self.vpcs})
        unique((vpc.name for vpc in self.vpcs), "VPC")
        unique((names.host_uplink(vpc.name) for vpc in self.vpcs), "uplink interface")
        unique((vpc.index for vpc in self.vpcs), "uplink index")
        self._check_namespaces()
        check_published((vpc.name, item) for vpc in self.vpcs for item in vpc.publications)
        for vpc in self.vpcs:
            check_beside_transit(vpc, self.transit)
            _check_room(self.transit, vpc.index)
        self._check_addresses()
        self._check_peerings()
        self._check_protocols()
        self._check_invariants()

    def _check_invariants(self) -> None:
        if len(self.invariants) > MOST_INVARIANTS:
            raise DocumentError(f"{len(self.invariants)} invariants; at most {MOST_INVARIANTS} are possible")
        for one in self.invariants:
            if one.vpc is not None:
                self.vpc(one.vpc)

    def _check_addresses(self) -> None:
        """Raise ConflictError for ports that are published at an address of an uplink."""
        named = [(vpc.name, item) for vpc in self.vpcs for item in vpc.publications if item.address is not None]
        ends = {address for vpc in self.vpcs for address in uplink_pair(self.transit, vpc.index)} if named else set()
        for vpc, item in named:
            if item.address in ends:
                raise ConflictError(
                    f"VPC {vpc}: {item.address} is an address of the VPCs' uplinks; publish at another one of the host"
                )

    def _check_protocols(self) -> None:
        owners: dict[int, str] = {}
        for vpc in self.vpcs:
            for protocol in vpc.nat_protocols:
                owner = owners.setdefault(protocol, vpc.name)
                if owner != vpc.name:
                    raise ConflictError(
                        f"protocol {protocol} is already translated for VPC {owner}, and only one VPC can have it;"
                        f" run `vpcctl delete-nat-protocol --vpc {owner} --protocol {protocol}` first"
                    )

    def _check_namespaces(self) -> None:
        # A namespace is named VPC-INSTANCE, so two VPCs can clash only if one name begins with the other.  A command
        # about one VPC does not read the instances of all others for this check.
        concerned = {
            name
            for vpc in self.vpcs
            for place, sign in enumerate(vpc.name)
            if sign == "-" and vpc.name[:place] in self.vpcs_by_name
            for name in (vpc.name, vpc.name[:place])
        }
        owners: dict[str, str] = {}
        for namespace, owner in self._namespaces(concerned):
            if namespace in owners:
                raise ConflictError(
                    f"{owners[namespace]} and {owner} would both have the namespace {namespace}; rename one of them"
                )
            owners[namespace] = owner

    def _check_peerings(self) -> None:
        unique((f"{peering.one} and {peering.other}" for peering in self.peerings), "peering between")
        peers: dict[str, list[Vpc]] = defaultdict(list)
        for peering in self.peerings:
            one, other = self.vpc(peering.one), self.vpc(peering.other)
            peers[one.name].append(other)
            peers[other.name].append(one)
        object.__setattr__(self, "_peers", {name: tuple(found) for name, found in peers.items()})
        for vpc in self.vpcs:
            if vpc.name not in peers:
                continue
            unique((names.peer_link(peer.name) for peer in self.peers(vpc.name)), f"VPC {vpc.name}: peering interface")
            for one, other in combinations((vpc, *self.peers(vpc.name)), 2):
                for prefix in one.prefixes:
                    for against in other.prefixes:
                        if overlap(prefix, against):
                            raise ConflictError(
                                f"VPC {vpc.name} cannot be peered so: {one.name} ({prefix}) and {other.name}"
                                f" ({against}) overlap, and a router cannot tell them apart"
                            )

    def namespaces(self) -> Iterator[str]:
        """The names of all namespaces."""
        return (namespace for namespace, _ in self._namespaces(self.vpcs_by_name))

    def _namespaces(self, vpcs: Container[str]) -> Iterator[tuple[str, str]]:
        """Each namespace of `vpcs` with its owner."""
        for vpc in self.vpcs:
            if vpc.name not in vpcs:
                continue
            yield names.router_namespace(vpc.name), f"the router of VPC {vpc.name}"
            for instance in vpc.instances:
                yield names.instance_namespace(vpc.name, instance.name), f"instance {instance.name} of VPC {vpc.name}"

    def vpc(self, name: str) -> Vpc:
        """The VPC `name`; ConflictError names those that exist."""
        return _found(self.vpcs_by_name, name, "VPC")

    def peers(self, name: str) -> tuple[Vpc, ...]:
        """The VPCs that are peered with the VPC `name`."""
        return self._peers.get(name, ())

    def with_vpc(self, changed: Vpc) -> World:
        """This world with the VPC of that name replaced, or added at the end."""
        return dataclasses.replace(self, vpcs=tuple(_with(self.vpcs, changed)))

    def without_vpc(self, name: str) -> World:
        """This world without the VPC `name` and its peerings."""
        return dataclasses.replace(
            self,
            vpcs=tuple(vpc for vpc in self.vpcs if vpc.name != name),
            peerings=tuple(peering for peering in self.peerings if name not in peering),
            invariants=tuple(one for one in self.invariants if one.vpc != name),
        )

    def free_index(self) -> int:
        """The lowest uplink index that no VPC has."""
        taken = {vpc.index for vpc in self.vpcs}
        return next(index for index in range(len(taken) + 1) if index not in taken)


def uplink_addresses(world: World) -> tuple[Network, ...]:
    """The addresses of both ends of all uplinks, as prefixes of one address."""
    pairs = (uplink_pair(world.transit, vpc.index) for vpc in world.vpcs)
    return tuple(ipaddress.ip_network(address) for pair in pairs for address in pair)


def uplink_pair(transit: Network, index: int) -> tuple[Address, Address]:
    """The host's and the router's address of the uplink `index`: a /31 (RFC 3021) out of `transit`."""
    _check_room(transit, index)
    return transit.network_address + 2 * index, transit.network_address + 2 * index + 1


def _check_room(transit: Network, index: int) -> None:
    if 2 * index + 1 >= transit.num_addresses:
        raise ConflictError(f"the transit range {transit} is full: it holds {transit.num_addresses // 2} VPCs")


def _share_addresses(prefixes: Iterable[Network]) -> bool:
    """Do any two of `prefixes` share an address?"""
    ranges = sorted((prefix.version, int(prefix.network_address), int(prefix.broadcast_address)) for prefix in prefixes)
    return any(one[0] == other[0] and other[1] <= one[2] for one, other in pairwise(ranges))


def check_apart(one: Subnet, other: Subnet) -> None:
    """Raise ConflictError for two subnets of a VPC that share an address."""
    for prefix in one.prefixes:
        for against in other.prefixes:
            if overlap(prefix, against):
                raise ConflictError(f"subnet {other.name}: {against} overlaps subnet {one.name} ({prefix})")


def check_published(items: Iterable[tuple[str, Publication]]) -> None:
    """Raise ConflictError for the first port of the host that is published twice; `items` come with their VPCs."""
    listed = list(items)
    pairs = _sharing([item for _, item in listed], lambda item: item.ports)
    for later, earlier in sorted((max(pair), min(pair)) for pair in pairs):
        (owner, first), (_, item) = listed[earlier], listed[later]
        if first.address is None or item.address is None or first.address == item.address:
            raise ConflictError(
                f"the host's port {item.service} is published for instance {first.instance} of VPC {owner} already"
                f"{'' if first.place == item.place else f' (as {first.service})'};"
                f" choose another, or take that back with {first.taken_back(owner)}"
            )


def _sharing(items: Sequence[Publication], span: Callable[[Publication], tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The indices of each pair of items of one protocol whose spans share a port."""
    ordered = sorted(range(len(items)), key=lambda number: (items[number].protocol, span(items[number])[0]))
    near: list[int] = []
    for number in ordered:
        item = items[number]
        low = span(item)[0]
        near = [one for one in near if items[one].protocol == item.protocol and span(items[one])[1] >= low]
        yield from ((one, number) for one in near)
        near.append(number)


def check_beside_transit(vpc: Vpc, transit: Network) -> None:
    """Raise ConflictError for a VPC that would use addresses of the uplinks."""
    for prefix in vpc.prefixes:
        if overlap(prefix, transit):
            raise ConflictError(
                f"VPC {vpc.name}: {prefix} overlaps the transit range {transit}; choose another prefix, or another"
                " range with `vpcctl create-vpc --transit` before the first VPC exists"
            )


def unique(values: Iterable[object], what: str) -> None:
    """Raise ConflictError for the first of `values` that appears twice."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ConflictError(f"{what} {value} exists already")
        seen.add(value)


def _found(known: Mapping[str, Thing], name: str, kind: str, within: str = "") -> Thing:
    """What is known by `name`; ConflictError lists the known ones of that `kind`."""
    if name not in known:
        raise ConflictError(
            f"{kind} {name!r} not found{within}; known {kind}s: " + (", ".join(sorted(known)) or "none")
        )
    return known[name]


def _with(things: tuple[_N, ...], changed: _N) -> Iterator[_N]:
    """`things` with `changed` in the place of its namesake, or at the end."""
    for thing in things:
        yield changed if thing.name == changed.name else thing
    if changed.name not in {thing.name for thing in things}:
        yield changed
