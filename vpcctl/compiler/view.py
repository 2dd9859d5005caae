"""One VPC as its ruleset needs to see it: its own parts, its peers', and the interface names they have."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from vpcctl import names
from vpcctl.model.difference import differing
from vpcctl.model.network import Subnet, Vpc, World, uplink_pair, within
from vpcctl.model.policy import Address, Endpoint, Network, Policy
from vpcctl.values import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """The VPC `vpc` within `world`; `peers` are the VPCs that it is peered with.

    `known` are fingerprints of gates that are known without compiling them, by name.
    """

    world: World
    vpc: Vpc
    peers: tuple[Vpc, ...]
    host_address: Address
    uplink_address: Address
    known: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, world: World, name: str, known: Mapping[str, str] | None = None) -> View:
        """The view of the VPC `name`; ConflictError if the world has none."""
        vpc = world.vpc(name)
        return cls(world, vpc, world.peers(name), *uplink_pair(world.transit, vpc.index), known or {})

    @property
    def bridges(self) -> tuple[tuple[str, Subnet], ...]:
        """Each subnet with the name of its bridge."""
        return tuple((names.bridge(subnet.name), subnet) for subnet in self.vpc.subnets)

    @property
    def peer_links(self) -> tuple[tuple[str, Vpc], ...]:
        """Each peer with the name of the link to it."""
        return tuple((names.peer_link(peer.name), peer) for peer in self.peers)

    def resolve(self, endpoint: Endpoint, policy: Policy) -> Sequence[Network]:
        """The prefixes that `endpoint` means at present; what it names and is not there means none.

        Every kind but ``any``, which is no list of prefixes.
        """
        match endpoint.kind:
            case "prefix":
                assert endpoint.prefix is not None, "an endpoint of this kind has a prefix"
                return (endpoint.prefix,)
            case "set":
                # A policy's own sets hide the VPC's.
                return next((found for name, found in (*policy.sets, *self.vpc.sets) if name == endpoint.name), ())
            case "subnet":
                subnet = self.vpc.subnets_by_name.get(str(endpoint.name))
                return subnet.prefixes if subnet else ()
            case "instance":
                instance = self.vpc.instances_by_name.get(str(endpoint.name))
                return tuple(map(_single, instance.addresses)) if instance else ()
            case "vpc":
                return next((vpc.prefixes for vpc in (self.vpc, *self.peers) if vpc.name == endpoint.name), ())
            case "internet":
                return self.outside()
        raise AssertionError(f"endpoint of kind {endpoint.kind!r} has no prefixes")

    def outside(self) -> tuple[Network, ...]:
        """Everything outside this VPC and its peers, of both IP versions."""
        inside = [prefix for vpc in (self.vpc, *self.peers) for prefix in vpc.prefixes]
        return tuple(prefix for version in (4, 6) for prefix in complement(inside, version))


# What the ruleset of a VPC does not depend on: fields of the world (the VPC and its peers are looked at by themselves),
# and fields of a peer.
_BESIDE = {"vpcs", "peerings", "invariants"}
_OF_PEER = {
    "index", "subnets", "publications", "sets", "max_flows", "max_ports", "nat_protocols", "hardened", "mtu", "policy",
}  # fmt: skip


# What the host's table does not depend on.
_BEHIND_ROUTER = {"subnets", "sets", "mtu", "policy"}


def same_for_host(before: World, world: World) -> bool:
    """Does the host's table see the same in both worlds?"""
    if differing(before, world, ignoring=_BESIDE) or len(before.vpcs) != len(world.vpcs):
        return False
    pairs = zip(before.vpcs, world.vpcs, strict=True)
    return not any(differing(old, new, ignoring=_BEHIND_ROUTER) for old, new in pairs)


def looks_alike(before: World, world: World, vpc: Vpc) -> bool:
    """Is all that the compiler sees of `vpc` the same in both worlds?"""
    was, old, new = before.vpcs_by_name.get(vpc.name), before.peers(vpc.name), world.peers(vpc.name)
    if was != vpc or len(old) != len(new) or (before is not world and differing(before, world, ignoring=_BESIDE)):
        return False
    return not any(differing(*pair, ignoring=_OF_PEER) for pair in zip(old, new, strict=True))


def complement(prefixes: list[Network], version: int) -> list[Network]:
    """All addresses of one IP version that are in none of `prefixes`, as few prefixes as possible."""
    rest = [ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0")]
    for prefix in prefixes:
        if prefix.version == version:
            rest = [piece for whole in rest for piece in _without(whole, prefix)]
    return sorted(rest)


def _without(whole: Network, hole: Network) -> Iterable[Network]:
    """The addresses of `whole` that are not in `hole`, as prefixes."""
    if within(whole, hole):
        return ()
    if not within(hole, whole):
        return (whole,)
    if isinstance(whole, ipaddress.IPv4Network) and isinstance(hole, ipaddress.IPv4Network):
        return whole.address_exclude(hole)
    if isinstance(whole, ipaddress.IPv6Network) and isinstance(hole, ipaddress.IPv6Network):
        return whole.address_exclude(hole)
    raise AssertionError("one prefix holds the other, so they are of one IP version")


def _single(address: Address) -> Network:
    return ipaddress.ip_network(address)
