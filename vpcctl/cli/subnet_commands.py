"""Commands on subnets and their ways out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import print_json, print_table
from vpcctl.cli.session import PREFIX, Session, json_option

if TYPE_CHECKING:
    from vpcctl.model.network import Instance, Subnet, Vpc


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@click.option("--name", required=True, help="The subnet's name.")
@click.option("--cidr", required=True, type=PREFIX, help="Its prefix, inside the VPC's.")
@click.option(
    "--type", "kind", required=True, type=click.Choice(["public", "private"]), help="public reaches the internet."
)
@click.option("--no-instance", is_flag=True, help="Without the instance of the subnet's name.")
@click.pass_obj
def create_subnet(session: Session, vpc: str, name: str, cidr: Any, kind: str, no_instance: bool) -> None:
    """Create a subnet, and in it an instance of the same name.

    Example: vpcctl create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public
    """
    from vpcctl.model import operations
    from vpcctl.names import instance_namespace

    session.change(
        lambda state: operations.create_subnet(
            state.world, vpc, name, cidr, kind == "public", not no_instance, state.serial
        )
    )
    inside = (
        "" if no_instance else f", instance {cidr.network_address + 2} in namespace {instance_namespace(vpc, name)}"
    )
    session.say(f"created {kind} subnet {name} ({cidr}) of VPC {vpc}{inside}")


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@click.option("--name", required=True, help="The subnet's name.")
@click.option("--cascade", is_flag=True, help="With all its instances.")
@click.pass_obj
def delete_subnet(session: Session, vpc: str, name: str, cascade: bool) -> None:
    """Delete a subnet and the instance of its name.

    Example: vpcctl delete-subnet --vpc shop --name web
    """
    from vpcctl.model import operations

    session.change(lambda state: operations.delete_subnet(state.world, vpc, name, cascade))
    session.say(f"deleted subnet {name} of VPC {vpc}")


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@json_option
@click.pass_obj
def list_subnets(session: Session, vpc: str, as_json: bool) -> None:
    """List the subnets of a VPC.

    Example: vpcctl list-subnets --vpc shop
    """
    found = session.load().world.vpc(vpc)
    documents = [subnet_document(found, subnet) for subnet in found.subnets]
    if as_json:
        return print_json(documents)
    rows = [
        (
            one["name"],
            one["cidr"],
            one["type"],
            one["gateway"],
            "yes" if one["nat_gateway"] else "-",
            len(one["instances"]),
            one["policy"] or "-",
        )
        for one in documents
    ]
    headings = ("SUBNET", "CIDR", "TYPE", "GATEWAY", "NAT", "INSTANCES", "POLICY")
    return print_table(headings, rows, f"VPC {vpc} has no subnet")


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@click.option("--subnet", required=True, help="A private subnet.")
@click.pass_obj
def create_nat_gateway(session: Session, vpc: str, subnet: str) -> None:
    """Let a private subnet reach the internet; nothing new gets in.

    Example: vpcctl create-nat-gateway --vpc shop --subnet db
    """
    from vpcctl.model import operations

    session.change(lambda state: operations.set_nat_gateway(state.world, vpc, subnet, True))
    session.say(f"subnet {subnet} of VPC {vpc} reaches the internet by a NAT gateway")


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@click.option("--subnet", required=True, help="A private subnet.")
@click.pass_obj
def delete_nat_gateway(session: Session, vpc: str, subnet: str) -> None:
    """Take a private subnet's way to the internet, live connections included.

    Example: vpcctl delete-nat-gateway --vpc shop --subnet db
    """
    from vpcctl.model import operations

    session.change(lambda state: operations.set_nat_gateway(state.world, vpc, subnet, False))
    session.say(f"subnet {subnet} of VPC {vpc} has no NAT gateway any more")


def subnet_document(vpc: Vpc, subnet: Subnet) -> dict[str, Any]:
    """A subnet for machines; `policy` is the file that its policy came from."""
    return {
        "name": subnet.name,
        "cidr": str(subnet.prefixes[0]),
        "type": "public" if subnet.public else "private",
        "gateway": str(subnet.gateways[0]),
        "nat_gateway": subnet.nat_gateway,
        "instances": [instance_document(vpc, instance) for instance in subnet.instances],
        "policy": subnet.policy.file if subnet.policy else None,
    }


def instance_document(vpc: Vpc, instance: Instance) -> dict[str, Any]:
    """An instance for machines."""
    from vpcctl.names import instance_namespace

    return {
        "name": instance.name,
        "ip": str(instance.addresses[0]),
        "mac": instance.mac,
        "namespace": instance_namespace(vpc.name, instance.name),
    }
