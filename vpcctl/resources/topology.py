"""A world becomes the kernel objects that carry it.  What order they are made in is `plan`'s business.

Each VPC has a router namespace; each subnet a bridge in it with the gateway's address; each instance a namespace and
a link to a port of its bridge.  Ports are isolated, so that two instances of a subnet talk through the router too,
and the bridge answers for neighbours (``proxy_arp_pvlan``).  See docs/architecture.md for the picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeGuard

from vpcctl import names
from vpcctl.compiler import Compiled, compile_closed, compile_host, compile_vpc
from vpcctl.compiler.dependencies import same_gates, standing_gates
from vpcctl.compiler.view import looks_alike, same_for_host
from vpcctl.model.host import NO_PART, HostPart
from vpcctl.model.network import Instance, Peering, Subnet, Vpc, World, uplink_pair
from vpcctl.resources.kinds import (
    PING_GROUPS,
    Address,
    Bridge,
    ChecksumLink,
    Detour,
    FdbEntry,
    Forwarding,
    Item,
    LinkSetting,
    LinkUp,
    Mtu,
    Namespace,
    Neighbour,
    Open,
    Port,
    ProxyDelay,
    Route,
    Ruleset,
    Setting,
    Veth,
    next_generation,
)
from vpcctl.values import dataclass

# The scope of what belongs to no VPC.
HOST = ""
VPC_FAMILIES = ("arp", "bridge", "inet")
HOST_FAMILIES = ("inet",)
# The next hop on a peering link: an address that no machine has.  A permanent neighbour binds it to the other end's
# MAC.  The routers need no address of their own on the link.
NEXT_HOP = "169.254.0.1"

# (path below /proc/sys, value, may be absent).  ip_forward comes first: writing it resets other settings (ip-sysctl).
# nf_conntrack_tcp_loose may be hidden from an unprivileged user namespace; the ruleset's SYN rule does the same.
ROUTER_SETTINGS: tuple[tuple[str, str, bool], ...] = (
    ("net/ipv4/ip_forward", "1", False),
    *(
        (f"net/ipv4/conf/{scope}/{name}", value, False)
        for scope in ("all", "default")
        for name, value in (
            ("send_redirects", "0"),
            ("accept_redirects", "0"),
            ("accept_source_route", "0"),
            ("arp_ignore", "1"),
            ("rp_filter", "0"),
        )
    ),
    *((f"net/ipv6/conf/{scope}/disable_ipv6", "1", True) for scope in ("all", "default")),
    ("net/netfilter/nf_conntrack_tcp_loose", "0", True),
    ("net/netfilter/nf_conntrack_helper", "0", True),
    # Packets and bytes of each flow, for `vpcctl flows`.
    ("net/netfilter/nf_conntrack_acct", "1", True),
    *((f"net/bridge/bridge-nf-call-{table}", "0", True) for table in ("iptables", "ip6tables", "arptables")),
)
# IPv6 is off, except on lo: programs expect ::1, which is in /etc/hosts.  `all` comes first, because writing it sets
# every interface.  Every user may use ports below 1024 and the sockets of ping(8): the namespace belongs to the
# workload, so they lead to no service of the host.
INSTANCE_SETTINGS: tuple[tuple[str, str, bool], ...] = (
    *((f"net/ipv6/conf/{scope}/disable_ipv6", "1", True) for scope in ("all", "default")),
    ("net/ipv6/conf/lo/disable_ipv6", "0", True),
    ("net/ipv4/ip_unprivileged_port_start", "0", True),
    (PING_GROUPS, "0 2147483647", True),
)

Items = Sequence[Item]


class Rulesets(Protocol):
    """The rulesets of the record by key."""

    def get(self, key: tuple[str, ...], /) -> Ruleset | None: ...


class Recorded:
    """The rulesets among the items on record; the ruleset of a VPC is looked up in the items of that VPC only."""

    def __init__(self, record: Mapping[str, Items]):
        self._record = record

    def get(self, key: tuple[str, ...], /) -> Ruleset | None:
        """The ruleset of that key; None if it is not on record."""
        kind, namespace = key
        assert kind == Ruleset.__name__, "this knows rulesets alone"
        scope = HOST if namespace == str(None) else namespace.removesuffix(names.router_namespace(""))
        items = self._record.get(scope, ())
        return next((item for item in items if isinstance(item, Ruleset) and item.key == key), None)


@dataclass(frozen=True, slots=True)
class InForce:
    """What is in force: the world, what the host adds to it, and the items on record by scope."""

    world: World
    host: HostPart
    record: Mapping[str, Items]


# Returns the fingerprints of the gates of a ruleset on record, by name.
Gates = Callable[[Ruleset], Mapping[str, str]]


def no_gates(ruleset: Ruleset) -> Mapping[str, str]:
    """No gate is known."""
    return {}


def snapshot(
    world: World,
    state_id: str,
    loaded: Rulesets,
    before: World | None = None,
    scopes: Container[str] | None = None,
    host: HostPart = NO_PART,
    kept: Container[tuple[str, ...]] | None = None,
    standing: InForce | None = None,
    gates: Gates = no_gates,
) -> dict[str, Items]:
    """All items of `world` on `host` by scope: the name of a VPC, or HOST; with `scopes` those alone.

    `loaded` are the rulesets of the record; a ruleset whose text differs from the recorded one gets the next
    generation.  If a VPC is unchanged since the world `before`, its recorded ruleset stays in use, without its text;
    with `kept` only those of these keys.  For a scope that is unchanged since `standing`, the items are the very
    sequence on record.  In a scope that changes, unchanged gates are not compiled if their fingerprints are among
    `gates`.  Nothing is there for an empty world: the last VPC takes the host's table with it.
    """
    if not world.vpcs:
        return {}

    def keeps(vpc: Vpc) -> bool:
        return kept is None or (Ruleset.__name__, names.router_namespace(vpc.name)) in kept

    found: dict[str, Items] = {}
    if scopes is None or HOST in scopes:
        same = _unchanged_host(world, host, standing)
        found[HOST] = tuple(_host_items(world, host, state_id, loaded)) if same is None else same
    for vpc in world.vpcs:
        if scopes is None or vpc.name in scopes:
            same = _unchanged(world, vpc, standing)
            known = before if keeps(vpc) else None
            if same is None:
                ruleset = _vpc_ruleset(world, vpc, state_id, loaded, known, standing, gates)
                same = tuple(_vpc_items(world, vpc, state_id, ruleset))
            found[vpc.name] = same
    return found


def _unchanged(world: World, vpc: Vpc, standing: InForce | None) -> Items | None:
    """The items on record of a VPC that is unchanged, as are its peers; None for others."""
    if standing is None or vpc.name not in standing.record or not looks_alike(standing.world, world, vpc):
        return None
    return standing.record[vpc.name]


def _unchanged_host(world: World, host: HostPart, standing: InForce | None) -> Items | None:
    """The items of the host on record, if nothing has changed on which they depend."""
    if standing is None or HOST not in standing.record:
        return None
    same = host == standing.host and same_for_host(standing.world, world)
    return standing.record[HOST] if same else None


def host_ruleset(
    world: World, host: HostPart, state_id: str, loaded: Rulesets, leaving: Iterable[tuple[str, str]] = ()
) -> Ruleset:
    """The host's table for the VPCs of `world`, and for the uplinks `leaving` (see `uplinks`)."""
    owner = names.tag(state_id, "", "host")
    return _ruleset(None, HOST_FAMILIES, owner, compile_host(world, owner, host, leaving), loaded)


def uplinks(items: Iterable[Item]) -> list[tuple[str, str]]:
    """The host's end and the router's address of each uplink among `items`."""
    items = list(items)
    ends: dict[tuple[str | None, str], str] = {
        (item.namespace, item.name): item.peer_name for item in items if _is_uplink(item)
    }
    found = [item for item in items if isinstance(item, Address) and (item.namespace, item.link) in ends]
    return [(ends[item.namespace, item.link], item.address.partition("/")[0]) for item in found]


def _is_uplink(item: Item) -> TypeGuard[Veth]:
    return isinstance(item, Veth) and item.peer_namespace is None


def closed_ruleset(vpc: str, state_id: str, loaded: Rulesets) -> Ruleset:
    """What the router of a VPC has while the VPC is taken down."""
    owner = names.tag(state_id, vpc, "ruleset")
    made = _ruleset(names.router_namespace(vpc), VPC_FAMILIES, owner, compile_closed(owner), loaded)
    return dataclasses.replace(made, closed=True)


def _ruleset(
    namespace: str | None, families: tuple[str, ...], owner: str, compiled: Compiled, loaded: Rulesets
) -> Ruleset:
    recorded = loaded.get((Ruleset.__name__, str(namespace)))
    generation = next_generation(recorded, compiled.fingerprint)
    return Ruleset(namespace, families, owner, compiled.fingerprint, generation, compiled)


def _host_items(world: World, host: HostPart, state_id: str, loaded: Rulesets) -> Iterator[Item]:
    yield host_ruleset(world, host, state_id, loaded)
    for link in host.opened:
        yield Forwarding(None, link.index, link.name)


def _vpc_items(world: World, vpc: Vpc, state_id: str, ruleset: Ruleset) -> Iterator[Item]:
    router = names.router_namespace(vpc.name)
    yield Namespace(router, names.tag(state_id, vpc.name, "router"))
    for path, value, optional in ROUTER_SETTINGS:
        yield Setting(router, path, value, optional)
    yield LinkUp(router, "lo")
    yield ruleset
    yield from _uplink(world, vpc, state_id)
    if vpc.hardened:
        mac = names.stable_mac(state_id, vpc.name, "checksums")
        yield ChecksumLink(router, names.CHECKSUMS, mac, names.tag(state_id, vpc.name, "checksums"))
        yield Mtu(router, names.CHECKSUMS, vpc.link_mtu)
        yield LinkUp(router, names.CHECKSUMS)
    for subnet in vpc.subnets:
        yield from _bridge(vpc, subnet, state_id)
        for instance in subnet.instances:
            yield from _instance(vpc, subnet, instance, state_id)
    for peering in world.peerings:
        if vpc.name in peering:
            yield from _peering(world, vpc, peering, state_id)


def _vpc_ruleset(
    world: World,
    vpc: Vpc,
    state_id: str,
    loaded: Rulesets,
    before: World | None,
    standing: InForce | None,
    gates: Gates,
) -> Ruleset:
    router, owner = names.router_namespace(vpc.name), names.tag(state_id, vpc.name, "ruleset")
    recorded = loaded.get(("Ruleset", router))
    if recorded is not None and before is not None and looks_alike(before, world, vpc):
        return recorded
    former, known = (None, {}) if standing is None else _former(recorded, standing.world, vpc.name, owner, gates)
    if former is not None and standing is not None:
        known = {name: known[name] for name in same_gates(standing.world, world, vpc.name) & known.keys()}
    compiled = compile_vpc(world, vpc.name, owner, known)
    return dataclasses.replace(_ruleset(router, VPC_FAMILIES, owner, compiled, loaded), former=former)


def _former(
    recorded: Ruleset | None, before: World, vpc: str, owner: str, gates: Gates
) -> tuple[Ruleset | None, Mapping[str, str]]:
    """The ruleset on record with its content, and the fingerprints of its gates; None if they are not known.

    The fingerprints of `gates` are right if they lead to the ruleset's fingerprint on record.
    """
    if recorded is None or vpc not in before.vpcs_by_name:
        return None, {}
    known = gates(recorded)
    if not standing_gates(before.vpc(vpc)) <= known.keys():
        return None, {}
    compiled = compile_vpc(before, vpc, owner, known)
    if compiled.fingerprint != recorded.fingerprint:
        return None, {}
    return dataclasses.replace(recorded, content=compiled), known


def _uplink(world: World, vpc: Vpc, state_id: str) -> Iterator[Item]:
    router, host = names.router_namespace(vpc.name), names.host_uplink(vpc.name)
    host_address, router_address = uplink_pair(world.transit, vpc.index)
    host_mac, router_mac = (names.stable_mac(state_id, vpc.name, "uplink", end) for end in ("host", "router"))
    yield Veth(
        router,
        names.UPLINK,
        router_mac,
        None,
        host,
        host_mac,
        names.tag(state_id, vpc.name, "uplink"),
        peer_altname=f"vpcctl-uplink-{vpc.name}",
    )
    yield Mtu(router, names.UPLINK, vpc.link_mtu)
    yield Mtu(None, host, vpc.link_mtu)
    yield LinkSetting(None, host, "net/ipv4/conf/{link}/forwarding", "1")
    yield LinkSetting(None, host, "net/ipv6/conf/{link}/disable_ipv6", "1")
    if any(item.address is None or item.local for item in vpc.publications):
        # Translated calls of 127.0.0.1 leave here, and their answers arrive here; otherwise the kernel treats both as
        # martians (net/ipv4/route.c).  `from-uplink` drops everything else that is sent to a loopback address.
        yield LinkSetting(None, host, "net/ipv4/conf/{link}/route_localnet", "1", "0")
    # Permanent neighbours on both ends: no tenant can push them out of the table that all namespaces share.
    yield Neighbour(None, host, str(router_address), router_mac)
    yield Address(None, host, f"{host_address}/31")
    yield Address(router, names.UPLINK, f"{router_address}/31")
    yield Neighbour(router, names.UPLINK, str(host_address), host_mac)
    yield LinkUp(router, names.UPLINK)
    if vpc.uses_uplink:
        yield Route(router, "0.0.0.0/0", str(host_address), names.UPLINK)
    yield Open(None, host)


def _bridge(vpc: Vpc, subnet: Subnet, state_id: str) -> Iterator[Item]:
    router, bridge = names.router_namespace(vpc.name), names.bridge(subnet.name)
    mac = names.stable_mac(state_id, vpc.name, "bridge", subnet.name)
    yield Bridge(
        router, bridge, mac, f"vpcctl-subnet-{subnet.name}", names.tag(state_id, vpc.name, f"subnet/{subnet.name}")
    )
    yield Mtu(router, bridge, vpc.link_mtu)
    yield LinkSetting(router, bridge, "net/ipv4/conf/{link}/proxy_arp_pvlan", "1")
    yield LinkSetting(router, bridge, "net/ipv4/conf/{link}/send_redirects", "0")
    yield ProxyDelay(router, bridge)
    for prefix, gateway in zip(subnet.prefixes, subnet.gateways, strict=True):
        yield Address(router, bridge, f"{gateway}/{prefix.prefixlen}")
    yield LinkUp(router, bridge)


def _instance(vpc: Vpc, subnet: Subnet, instance: Instance, state_id: str) -> Iterator[Item]:
    router = names.router_namespace(vpc.name)
    namespace = names.instance_namespace(vpc.name, instance.name)
    bridge, port, inner = names.bridge(subnet.name), names.port(instance.name), names.INSTANCE_LINK
    tag = names.tag(state_id, vpc.name, f"instance/{instance.name}")
    bridge_mac = names.stable_mac(state_id, vpc.name, "bridge", subnet.name)
    yield Namespace(namespace, tag)
    for path, value, optional in INSTANCE_SETTINGS:
        yield Setting(namespace, path, value, optional)
    yield LinkUp(namespace, "lo")
    port_mac = names.stable_mac(state_id, vpc.name, "port", instance.name)
    yield Veth(router, port, port_mac, namespace, inner, instance.mac, tag, altname=f"vpcctl-instance-{instance.name}")
    yield Mtu(router, port, vpc.link_mtu)
    yield Mtu(namespace, inner, vpc.link_mtu)
    if vpc.hardened:
        yield Detour(router, port, names.CHECKSUMS)
    yield Port(router, port, bridge)
    yield FdbEntry(router, port, instance.mac)
    for address, prefix, gateway in zip(instance.addresses, subnet.prefixes, subnet.gateways, strict=True):
        yield Neighbour(router, bridge, str(address), instance.mac)
        yield Neighbour(namespace, inner, str(gateway), bridge_mac)
        yield Address(namespace, inner, f"{address}/{prefix.prefixlen}")
        yield Route(namespace, "0.0.0.0/0" if prefix.version == 4 else "::/0", str(gateway), inner)
    yield LinkUp(namespace, inner)
    yield Open(router, port)


def _peering(world: World, vpc: Vpc, peering: Peering, state_id: str) -> Iterator[Item]:
    """This VPC's side of a peering; the link itself belongs to the first of the two."""
    peer = world.vpc(peering.peer_of(vpc.name))
    router, link = names.router_namespace(vpc.name), names.peer_link(peer.name)
    macs = {
        end: names.stable_mac(state_id, "peering", peering.one, peering.other, end) for end in (vpc.name, peer.name)
    }
    if vpc.name == peering.one:
        yield Veth(
            router,
            link,
            macs[vpc.name],
            names.router_namespace(peer.name),
            names.peer_link(vpc.name),
            macs[peer.name],
            names.tag(state_id, vpc.name, f"peering/{peer.name}"),
            altname=f"vpcctl-peering-{peer.name}",
            peer_altname=f"vpcctl-peering-{vpc.name}",
        )
    # So a router reports packets that do not fit: a veth link silently drops what is larger than the MTU of its other
    # end.
    yield Mtu(router, link, min(vpc.link_mtu, peer.link_mtu))
    yield Neighbour(router, link, NEXT_HOP, macs[peer.name])
    yield LinkUp(router, link)
    source = next((str(subnet.gateways[0]) for subnet in vpc.subnets), "")
    for prefix in peer.prefixes:
        yield Route(router, str(prefix), NEXT_HOP, link, source)
