"""Commands on VPCs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import print_json, print_table, show
from vpcctl.cli.session import PREFIX, Session, json_option

if TYPE_CHECKING:
    from vpcctl.model import Vpc, World


@click.command
@click.option("--name", required=True, help="Its name.")
@click.option("--cidr", required=True, type=PREFIX, help="Its prefix, such as 10.0.0.0/16.")
@click.option("--ipv6-cidr", help="Not supported yet: IPv6 is off and dropped in every VPC.")
@click.option(
    "--transit", type=PREFIX, help="The range of the uplinks' addresses, set with the first VPC. [100.64.0.0/16]"
)
@click.option("--hardened", is_flag=True, help="With defences that cost throughput (docs/operations.md).")
@click.pass_obj
def create_vpc(session: Session, name: str, cidr: Any, ipv6_cidr: str | None, transit: Any, hardened: bool) -> None:
    """Create a VPC: its router, its default-deny ruleset, its uplink.

    Example: vpcctl create-vpc --name shop --cidr 10.0.0.0/16
    """
    from vpcctl import changes
    from vpcctl.kernel import examination
    from vpcctl.names import router_namespace

    if ipv6_cidr is not None:
        raise click.UsageError("--ipv6-cidr: IPv6 prefixes are not supported yet; create the VPC without one")
    outcome = session.change(lambda state: changes.create_vpc(state.world, name, cidr, transit, hardened))
    session.say(f"created VPC {name} ({cidr}), router namespace {router_namespace(name)}")
    for finding in examination.pressing_findings(outcome.after, name):
        session.warn(str(finding))


@click.command
@click.option("--name", required=True, help="Its name.")
@click.option("--cascade", is_flag=True, help="With its subnets, instances and peerings.")
@click.pass_obj
def delete_vpc(session: Session, name: str, cascade: bool) -> None:
    """Delete a VPC.

    Example: vpcctl delete-vpc --name shop --cascade
    """
    from vpcctl import changes

    session.change(lambda state: changes.delete_vpc(state.world, name, cascade))
    session.say(f"deleted VPC {name}")


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
    return print_table(("VPC", "CIDR", "SUBNETS", "INSTANCES", "PEERS"), rows, "there is no VPC")


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
    from vpcctl.cli.subnets import subnet_document
    from vpcctl.model import uplink_pair
    from vpcctl.policy import PROTOCOL_NAMES

    host, router = uplink_pair(world.transit, vpc.index)
    return {
        "name": vpc.name,
        "cidr": str(vpc.prefixes[0]),
        "hardened": vpc.hardened,
        "router": names.router_namespace(vpc.name),
        "uplink": {"link": names.host_uplink(vpc.name), "host_address": str(host), "address": str(router)},
        "peers": [peer.name for peer in world.peers(vpc.name)],
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
