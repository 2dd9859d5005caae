"""Commands on VPCs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import print_json, print_table, show
from vpcctl.cli.session import PREFIX, Session, json_option

if TYPE_CHECKING:
    from vpcctl.model.network import Vpc, World

FLOWS = "Limit of the flows that the host tracks for it (approximate, for each direction)."
PORTS = "Limit of the NAT ports that it can use toward one remote service."
PROTOCOL = "A protocol without ports: gre, esp, ah, ipip, or a number."
# As `model` has them; it is imported when a command runs.
DEFAULT_MAX_FLOWS, DEFAULT_MAX_PORTS = 16384, 8192


@click.command
@click.option("--name", required=True, help="Its name.")
@click.option("--cidr", required=True, type=PREFIX, help="Its prefix, such as 10.0.0.0/16.")
@click.option("--ipv6-cidr", help="Not supported yet: IPv6 is off and dropped in every VPC.")
@click.option(
    "--transit", type=PREFIX, help="The range of the uplinks' addresses, set with the first VPC. [100.64.0.0/16]"
)
@click.option("--hardened", is_flag=True, help="Complete all checksums before packets are judged; costs throughput.")
@click.option("--max-flows", type=int, default=DEFAULT_MAX_FLOWS, show_default=True, help=FLOWS)
@click.option("--max-ports", type=int, default=DEFAULT_MAX_PORTS, show_default=True, help=PORTS)
@click.pass_obj
def create_vpc(
    session: Session,
    name: str,
    cidr: Any,
    ipv6_cidr: str | None,
    transit: Any,
    max_flows: int,
    max_ports: int,
    hardened: bool,
) -> None:
    """Create a VPC: its router, its default-deny ruleset, its uplink.

    Example: vpcctl create-vpc --name shop --cidr 10.0.0.0/16
    """
    from vpcctl import doctor
    from vpcctl.model import operations
    from vpcctl.names import router_namespace

    if ipv6_cidr is not None:
        raise click.UsageError("--ipv6-cidr: IPv6 prefixes are not supported yet; create the VPC without one")
    outcome = session.change(
        lambda state: operations.create_vpc(state.world, name, cidr, transit, max_flows, max_ports, hardened)
    )
    session.say(f"created VPC {name} ({cidr}), router namespace {router_namespace(name)}")
    for finding in doctor.pressing_findings(outcome.after, name):
        session.warn(str(finding))


@click.command
@click.option("--name", required=True, help="Its name.")
@click.option("--cascade", is_flag=True, help="With its subnets, instances and peerings.")
@click.pass_obj
def delete_vpc(session: Session, name: str, cascade: bool) -> None:
    """Delete a VPC.

    Example: vpcctl delete-vpc --name shop --cascade
    """
    from vpcctl.model import operations

    session.change(lambda state: operations.delete_vpc(state.world, name, cascade))
    session.say(f"deleted VPC {name}")


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@click.option("--max-flows", type=int, help=FLOWS)
@click.option("--max-ports", type=int, help=PORTS)
@click.pass_obj
def set_limits(session: Session, vpc: str, max_flows: int | None, max_ports: int | None) -> None:
    """Limit a VPC's use of shared resources; live flows continue.

    Example: vpcctl set-limits --vpc shop --max-flows 50000
    """
    from vpcctl.model import operations

    if max_flows is None and max_ports is None:
        raise click.UsageError("pass --max-flows, --max-ports or both")
    outcome = session.change(lambda state: operations.set_limits(state.world, vpc, max_flows, max_ports))
    found = outcome.after.vpc(vpc)
    session.say(
        f"VPC {vpc}: limited to about {found.max_flows} flows in each direction and to {found.max_ports} NAT ports"
        " toward one remote service"
    )


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@click.option("--protocol", required=True, help=PROTOCOL)
@click.pass_obj
def create_nat_protocol(session: Session, vpc: str, protocol: str) -> None:
    """Enable source NAT of a protocol without ports for a VPC; one VPC at a time can have it.

    Example: vpcctl create-nat-protocol --vpc shop --protocol gre
    """
    _nat_protocol(session, vpc, protocol, True)
    session.say(f"VPC {vpc}: source NAT now translates protocol {protocol}; the host's own {protocol} takes precedence")


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@click.option("--protocol", required=True, help=PROTOCOL)
@click.pass_obj
def delete_nat_protocol(session: Session, vpc: str, protocol: str) -> None:
    """Disable source NAT of a protocol without ports for a VPC; its live flows end.

    Example: vpcctl delete-nat-protocol --vpc shop --protocol gre
    """
    _nat_protocol(session, vpc, protocol, False)
    session.say(f"VPC {vpc}: protocol {protocol} is no longer translated and cannot reach the internet")


def _nat_protocol(session: Session, vpc: str, protocol: str, present: bool) -> None:
    from vpcctl.documents.fields import parse_portless
    from vpcctl.model import operations

    try:
        number = parse_portless(protocol)
    except ValueError as error:
        raise click.UsageError(f"--protocol: {error}") from error
    session.change(lambda state: operations.set_nat_protocol(state.world, vpc, number, present))


@click.command
@json_option
@click.pass_obj
def list_vpcs(session: Session, as_json: bool) -> None:
    """List the VPCs.

    Example: vpcctl list-vpcs --json
    """
    world = session.load().world
    if as_json:
        return print_json([vpc_document(world, vpc) for vpc in world.vpcs])
    rows = [
        (vpc.name, _prefixes(vpc), len(vpc.subnets), len(vpc.instances), _peers(world, vpc) or "-")
        for vpc in world.vpcs
    ]
    return print_table(("VPC", "CIDR", "SUBNETS", "INSTANCES", "PEERS"), rows, "no VPCs")


@click.command
@click.option("--name", required=True, help="Its name.")
@json_option
@click.pass_obj
def show_vpc(session: Session, name: str, as_json: bool) -> None:
    """Show a VPC with all that is in it.

    Example: vpcctl show-vpc --name shop
    """
    world = session.load().world
    document = vpc_document(world, world.vpc(name))
    if as_json:
        return print_json(document)
    show(f"VPC {name}  {document['cidr']}{'  hardened' if document['hardened'] else ''}")
    show(f"  router   {document['router']}, uplink {document['uplink']['address']}")
    show(f"  peers    {', '.join(document['peers']) or '-'}")
    show(f"  limits   {document['max_flows']} flows, {document['max_ports']} NAT ports toward one remote service")
    if document["nat_protocols"]:
        show(f"  translated protocols  {', '.join(map(str, document['nat_protocols']))}")
    for subnet in document["subnets"]:
        way = subnet["type"] + (", NAT gateway" if subnet["nat_gateway"] else "")
        show(f"  subnet {subnet['name']}  {subnet['cidr']}  {way}, policy: {'yes' if subnet['policy'] else 'no'}")
        for instance in subnet["instances"]:
            show(f"    instance {instance['name']}  {instance['ip']}  namespace {instance['namespace']}")
    for published in document["publish"]:
        target = f"{published['instance']}:{published['target_port']}"
        show(f"  published {published['protocol']}/{published['port']} to {target}")
    return None


def vpc_document(world: World, vpc: Vpc) -> dict[str, Any]:
    """A VPC for machines."""
    from vpcctl import names
    from vpcctl.cli.subnet_commands import subnet_document
    from vpcctl.model.network import uplink_pair
    from vpcctl.model.policy import PROTOCOL_NAMES

    host, router = uplink_pair(world.transit, vpc.index)
    return {
        "name": vpc.name,
        "cidr": str(vpc.prefixes[0]),
        "hardened": vpc.hardened,
        "router": names.router_namespace(vpc.name),
        "uplink": {"link": names.host_uplink(vpc.name), "host_address": str(host), "address": str(router)},
        "peers": [peer.name for peer in world.peers(vpc.name)],
        "max_flows": vpc.max_flows,
        "max_ports": vpc.max_ports,
        "nat_protocols": list(vpc.nat_protocols),
        "subnets": [subnet_document(vpc, subnet) for subnet in vpc.subnets],
        "publish": [
            {
                "protocol": PROTOCOL_NAMES[item.protocol],
                "port": item.port,
                "instance": item.instance,
                "target_port": item.target_port,
            }
            for item in vpc.publications
        ],
    }


def _prefixes(vpc: Vpc) -> str:
    return " ".join(map(str, vpc.prefixes))


def _peers(world: World, vpc: Vpc) -> str:
    return " ".join(peer.name for peer in world.peers(vpc.name))
