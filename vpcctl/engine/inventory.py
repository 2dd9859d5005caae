"""What there is, as values for front ends: VPCs, subnets, instances and the names of their kernel objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

from vpcctl import names
from vpcctl.errors import ConflictError
from vpcctl.model.network import Instance, Publication, Subnet, Vpc, World, uplink_pair
from vpcctl.model.policy import Address, Network
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.engine.reconciler import Outcome

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Created(Generic[Made]):
    """What was created, the change that did it, and what may not be as meant."""

    made: Made
    outcome: Outcome
    warnings: tuple[str, ...] = ()

    def warned(self, warnings: Iterable[str]) -> Created[Made]:
        """The same with more warnings."""
        return Created(self.made, self.outcome, (*self.warnings, *warnings))


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance, with the namespace that is its machine."""

    vpc: str
    subnet: str
    name: str
    address: Address
    mac: str
    namespace: str


@dataclass(frozen=True, slots=True)
class SubnetView:
    """A subnet with its instances; `policy_file` names the file of its policy, None if it has no policy."""

    vpc: str
    name: str
    prefix: Network
    public: bool
    gateway: Address
    nat_gateway: bool
    instances: tuple[InstanceView, ...]
    policy_file: str | None


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the host, or a range, and the VPC that publishes it."""

    vpc: str
    publication: Publication


@dataclass(frozen=True, slots=True)
class UplinkView:
    """A VPC's link to the host: its name there, and the address at each end."""

    link: str
    host_address: Address
    address: Address


@dataclass(frozen=True, slots=True)
class VpcView:
    """A VPC with everything in it; `router` is its router's namespace, `peers` are the names of other VPCs.

    `policy_file` names the file of its own policy, None if it has none.
    """

    name: str
    prefix: Network
    hardened: bool
    mtu: int
    router: str
    uplink: UplinkView
    peers: tuple[str, ...]
    max_flows: int
    max_ports: int
    nat_protocols: tuple[int, ...]
    subnets: tuple[SubnetView, ...]
    publications: tuple[Publication, ...]
    policy_file: str | None = None

    @property
    def instances(self) -> tuple[InstanceView, ...]:
        """The instances of all subnets."""
        return tuple(instance for subnet in self.subnets for instance in subnet.instances)


@dataclass(frozen=True, slots=True)
class Dwelling:
    """Where a program runs: an instance, its namespace, and the tag by which the namespace is known as ours."""

    instance: str
    namespace: str
    tag: str


def vpc_view(world: World, name: str) -> VpcView:
    """The VPC `name`; ConflictError if it is not there."""
    vpc = world.vpc(name)
    host, router = uplink_pair(world.transit, vpc.index)
    return VpcView(
        vpc.name,
        vpc.prefixes[0],
        vpc.hardened,
        vpc.link_mtu,
        names.router_namespace(vpc.name),
        UplinkView(names.host_uplink(vpc.name), host, router),
        tuple(peer.name for peer in world.peers(vpc.name)),
        vpc.max_flows,
        vpc.max_ports,
        tuple(vpc.nat_protocols),
        subnet_views(vpc),
        tuple(vpc.publications),
        vpc.policy.file if vpc.policy else None,
    )


def chosen_vpcs(world: World, vpc: str | None) -> tuple[Vpc, ...]:
    """The VPC of that name, or all; ConflictError if it is not there."""
    return tuple(world.vpcs) if vpc is None else (world.vpc(vpc),)


def subnet_views(vpc: Vpc, subnet: str | None = None) -> tuple[SubnetView, ...]:
    """The subnets of a VPC, or one of them."""
    return tuple(_subnet_view(vpc, one) for one in chosen(vpc, subnet))


def chosen(vpc: Vpc, subnet: str | None) -> Iterable[Subnet]:
    """The subnet of that name, or all; ConflictError if it is not there."""
    return vpc.subnets if subnet is None else (vpc.subnet(subnet),)


def _subnet_view(vpc: Vpc, subnet: Subnet) -> SubnetView:
    return SubnetView(
        vpc.name,
        subnet.name,
        subnet.prefixes[0],
        subnet.public,
        subnet.gateways[0],
        subnet.nat_gateway,
        tuple(_instance_view(vpc, subnet, instance) for instance in subnet.instances),
        subnet.policy.file if subnet.policy else None,
    )


def _instance_view(vpc: Vpc, subnet: Subnet, instance: Instance) -> InstanceView:
    namespace = names.instance_namespace(vpc.name, instance.name)
    return InstanceView(vpc.name, subnet.name, instance.name, instance.addresses[0], instance.mac, namespace)


def instance_view(vpc: Vpc, name: str) -> InstanceView:
    """One instance of a VPC; ConflictError if it is not there."""
    return _instance_view(vpc, vpc.subnet_of(name), vpc.instance(name))


def dwelling(world: World, state_id: str, vpc: str, instance: str | None, subnet: str | None) -> Dwelling:
    """The instance of that name; for a subnet the one of the subnet's name, else its first one."""
    found = world.vpc(vpc)
    if instance is None:
        there = [one.name for one in found.subnet(subnet or "").instances]
        if not there:
            raise ConflictError(f"subnet {subnet} has no instance; `vpcctl create-instance` makes one")
        instance = subnet if subnet in there else there[0]
    name = found.instance(instance or "").name
    return Dwelling(name, names.instance_namespace(vpc, name), names.tag(state_id, vpc, f"instance/{name}"))
