"""What each command does to a world, as functions from world to world.

They raise ConflictError and DocumentError; nothing here knows of kernels or files.
"""

from __future__ import annotations

import dataclasses

from vpcctl import names
from vpcctl.errors import ConflictError
from vpcctl.model.network import (
    DEFAULT_MAX_FLOWS,
    DEFAULT_MAX_PORTS,
    Instance,
    Peering,
    Publication,
    Subnet,
    Vpc,
    World,
    check_published,
    placed,
)
from vpcctl.model.policy import CLOSED, Address, Network


def create_vpc(
    world: World,
    name: str,
    prefix: Network,
    transit: Network | None = None,
    max_flows: int = DEFAULT_MAX_FLOWS,
    max_ports: int = DEFAULT_MAX_PORTS,
    hardened: bool = False,
    mtu: int | None = None,
    closed: bool = False,
) -> World:
    """Add a VPC; `transit` sets the range of the uplinks, which all VPCs share.

    Without `mtu` the host decides it when the VPC is made.  With `closed` it begins with a policy that denies all.
    """
    if name in {vpc.name for vpc in world.vpcs}:
        raise ConflictError(f"VPC {name} exists already; choose another name, or `vpcctl show-vpc --name {name}`")
    if transit is not None and transit != world.transit:
        if world.vpcs:
            raise ConflictError(
                f"the transit range is {world.transit}, and VPCs use it; it can change only before the first VPC exists"
            )
        world = dataclasses.replace(world, transit=transit)
    made = Vpc(
        name,
        (prefix,),
        world.free_index(),
        max_flows=max_flows,
        max_ports=max_ports,
        hardened=hardened,
        mtu=mtu,
        policy=CLOSED if closed else None,
    )
    return dataclasses.replace(world, vpcs=(*world.vpcs, made))


def set_limits(world: World, vpc: str, max_flows: int | None, max_ports: int | None) -> World:
    """Change a VPC's limits on shared resources; None leaves a limit unchanged."""
    target = world.vpc(vpc)
    flows = target.max_flows if max_flows is None else max_flows
    ports = target.max_ports if max_ports is None else max_ports
    return world.with_vpc(dataclasses.replace(target, max_flows=flows, max_ports=ports))


def set_nat_protocol(world: World, vpc: str, protocol: int, present: bool) -> World:
    """Enable or disable source NAT of a protocol without ports for a VPC."""
    target = world.vpc(vpc)
    if (protocol in target.nat_protocols) == present:
        raise ConflictError(f"protocol {protocol} is {'already' if present else 'not'} translated for VPC {vpc}")
    rest = [found for found in target.nat_protocols if found != protocol]
    protocols = tuple(sorted([*rest, protocol] if present else rest))
    return world.with_vpc(dataclasses.replace(target, nat_protocols=protocols))


def delete_vpc(world: World, name: str, cascade: bool) -> World:
    """Remove a VPC; with `cascade` with all that is in it and its peerings."""
    vpc = world.vpc(name)
    held = [f"subnet {subnet.name}" for subnet in vpc.subnets]
    held += [f"the peering with {peer.name}" for peer in world.peers(name)]
    if held and not cascade:
        raise ConflictError(f"VPC {name} still has {', '.join(held)}; remove them first or use --cascade")
    return world.without_vpc(name)


def create_subnet(
    world: World, vpc: str, name: str, prefix: Network, public: bool, own_instance: bool, serial: int
) -> World:
    """Add a subnet, with an instance of the same name if `own_instance`."""
    target = world.vpc(vpc)
    if name in {subnet.name for subnet in target.subnets}:
        raise ConflictError(f"VPC {vpc} has a subnet {name} already")
    subnet = Subnet(name, (prefix,), public)
    if own_instance:
        subnet = with_instance(subnet, vpc, name, serial=serial)
    return world.with_vpc(target.with_subnet(subnet))


def delete_subnet(world: World, vpc: str, name: str, cascade: bool) -> World:
    """Remove a subnet with the instance of its name; with `cascade` with all instances."""
    target = world.vpc(vpc)
    others = [instance.name for instance in target.subnet(name).instances if instance.name != name]
    if others and not cascade:
        raise ConflictError(f"subnet {name} still has instance {', '.join(others)}; remove them first or use --cascade")
    subnets = tuple(subnet for subnet in target.subnets if subnet.name != name)
    return world.with_vpc(_without_publications(target, subnets, cascade))


def _without_publications(target: Vpc, subnets: tuple[Subnet, ...], cascade: bool) -> Vpc:
    """`target` with these subnets; published ports of instances that are gone go too if `cascade`."""
    left = {instance.name for subnet in subnets for instance in subnet.instances}
    if not cascade:
        for instance in target.instances:
            if instance.name not in left:
                _check_unpublished(target, instance.name, ", or use --cascade")
    kept = tuple(item for item in target.publications if item.instance in left)
    return dataclasses.replace(target, subnets=subnets, publications=kept)


def _check_unpublished(target: Vpc, instance: str, otherwise: str = "") -> None:
    """Raise ConflictError if ports lead to `instance`; `otherwise` is another way to be rid of them."""
    found = [item for item in target.publications if item.instance == instance]
    if found:
        ports, commands = ", ".join(item.service for item in found), [item.taken_back(target.name) for item in found]
        raise ConflictError(
            f"instance {instance} still has {ports} published; {' and '.join(commands)} first{otherwise}"
        )


def create_instance(world: World, vpc: str, subnet: str, name: str, address: Address | None, serial: int) -> World:
    """Add an instance to a subnet, at `address` or the lowest free one."""
    target = world.vpc(vpc)
    if name in {instance.name for instance in target.instances}:
        raise ConflictError(f"VPC {vpc} has an instance {name} already")
    return world.with_vpc(target.with_subnet(with_instance(target.subnet(subnet), vpc, name, address, serial)))


def delete_instance(world: World, vpc: str, name: str) -> World:
    """Remove an instance."""
    target = world.vpc(vpc)
    subnet = target.subnet_of(name)
    _check_unpublished(target, name)
    rest = tuple(instance for instance in subnet.instances if instance.name != name)
    return world.with_vpc(target.with_subnet(subnet.with_instances(rest)))


def set_nat_gateway(world: World, vpc: str, subnet: str, present: bool) -> World:
    """Give a private subnet a way out, or take it."""
    target = world.vpc(vpc)
    found = target.subnet(subnet)
    if present and found.public:
        raise ConflictError(f"subnet {subnet} is public: it reaches the internet without a NAT gateway")
    if found.nat_gateway == present:
        raise ConflictError(
            f"subnet {subnet} has {'a' if present else 'no'} NAT gateway{' already' if present else ''}"
        )
    return world.with_vpc(target.with_subnet(dataclasses.replace(found, nat_gateway=present)))


def create_peering(world: World, one: str, other: str) -> World:
    """Let two VPCs route to each other."""
    peering = Peering.between(one, other)
    world.vpc(one), world.vpc(other)
    if peering in world.peerings:
        raise ConflictError(f"VPCs {one} and {other} are peered already")
    return dataclasses.replace(world, peerings=(*world.peerings, peering))


def delete_peering(world: World, one: str, other: str) -> World:
    """Separate two VPCs."""
    peering = Peering.between(one, other)
    if peering not in world.peerings:
        raise ConflictError(f"VPCs {one} and {other} are not peered")
    return dataclasses.replace(world, peerings=tuple(found for found in world.peerings if found != peering))


def publish_port(world: World, vpc: str, publication: Publication) -> World:
    """Forward ports of the host to an instance."""
    target = world.vpc(vpc)
    target.instance(publication.instance)
    everywhere = [(one.name, item) for one in world.vpcs for item in one.publications]
    check_published([*everywhere, (vpc, publication)])
    made = placed(publication, target.publications)
    return world.with_vpc(dataclasses.replace(target, publications=(*target.publications, made)))


def unpublish_port(
    world: World, vpc: str, protocol: int, port: int, count: int = 1, address: Address | None = None
) -> World:
    """Unpublish ports; at any address, if `address` is None and only one publication has the ports."""
    target = world.vpc(vpc)
    near = [
        item
        for item in target.publications
        if item.protocol == protocol
        and item.ports[0] <= port + count - 1
        and port <= item.ports[1]
        and address in (None, item.address)
    ]
    found = [item for item in near if (item.port, item.count) == (port, count)]
    # Without an address, the publication at all addresses is meant: it was made without one.
    found = [item for item in found if item.address is None] or found
    if not found and near:
        commands = " and ".join(item.taken_back(vpc) for item in near)
        raise ConflictError(f"VPC {vpc} publishes {', '.join(item.service for item in near)} as a whole; {commands}")
    if not found:
        raise ConflictError(f"VPC {vpc} does not publish that port; `vpcctl show-vpc --name {vpc}` lists what it does")
    if len(found) > 1:
        commands = " or ".join(item.taken_back(vpc) for item in found)
        raise ConflictError(f"VPC {vpc} publishes that port at several addresses; choose one: {commands}")
    kept = tuple(item for item in target.publications if item != found[0])
    return world.with_vpc(dataclasses.replace(target, publications=kept))


def clear_policy(world: World, vpc: str, subnet: str) -> World:
    """Detach the policy of a subnet, or with ``*`` the VPC's own."""
    return world.with_vpc(world.vpc(vpc).with_policy(subnet, None))


def with_instance(subnet: Subnet, vpc: str, name: str, address: Address | None = None, serial: int = 0) -> Subnet:
    """`subnet` with a new instance, at `address` or the lowest free one.

    The MAC address depends on `serial`, so that an instance that is made again does not meet what is remembered of
    the one before.
    """
    addresses = subnet.free_addresses() if address is None else (address,)
    made = Instance(name, addresses, names.stable_mac(vpc, name, str(serial)))
    return subnet.with_instances((*subnet.instances, made))
