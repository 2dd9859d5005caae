"""Commands on subnets and their ways out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import print_json, show
from vpcctl.cli.session import ANY_VPC, PREFIX, About, Session, command, json_option

if TYPE_CHECKING:
    from vpcctl.engine.inventory import Created, InstanceView, SubnetView


@command(about=About(part="name"), changes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--name", help="The subnet's name.")
@click.option("--cidr", required=True, type=PREFIX, help="Its prefix, inside the VPC's.")
@click.option(
    "--type",
    "kind",
    required=True,
    type=click.Choice(["public", "private"]),
    help="A public subnet reaches the internet, a private one does not.",
)
@click.option("--no-instance", is_flag=True, help="Do not create the instance of the same name.")
@click.pass_obj
def create_subnet(session: Session, vpc: str, name: str, cidr: Any, kind: str, no_instance: bool) -> None:
    """Create a subnet and an instance of the same name in it.

    Example: vpcctl create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public
    """

    def told(created: Created[SubnetView]) -> list[str]:
        inside = "".join(f", instance {one.address} in namespace {one.namespace}" for one in created.made.instances)
        return [f"created {kind} subnet {name} ({cidr}) of VPC {vpc}{inside}"]

    public, instance = kind == "public", not no_instance
    session.carry_out(
        lambda controller: controller.create_subnet(vpc, name, cidr, public=public, instance=instance),
        told,
        lambda created: {"created": {**subnet_document(created.made), "vpc": vpc}},
    )


@command(about=About(part="name"), removes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--name", help="The subnet's name.")
@click.option("--cascade", is_flag=True, help="Also delete all other instances in it.")
@click.pass_obj
def delete_subnet(session: Session, vpc: str, name: str, cascade: bool) -> None:
    """Delete a subnet and the instance of the same name.

    Example: vpcctl delete-subnet --vpc shop --name web
    """
    from vpcctl.cli.change_reports import Question, carry_out

    carry_out(
        session,
        lambda controller: controller.delete_subnet(vpc, name, cascade=cascade),
        lambda _: [f"deleted subnet {name} of VPC {vpc}"],
        Question(f"Delete subnet {name} of VPC {vpc}?"),
    )


@command(about=ANY_VPC)
@click.option("--vpc", help="The VPC; default: all.")
@json_option
@click.pass_obj
def list_subnets(session: Session, vpc: str | None, as_json: bool) -> None:
    """List the subnets of a VPC, or of all VPCs.

    Example: vpcctl list-subnets --vpc shop
    """
    subnets = session.controller.list_subnets(vpc)
    if as_json:
        return print_json([{**subnet_document(subnet), "vpc": subnet.vpc} for subnet in subnets])
    rows = [
        (
            *([subnet.vpc] if vpc is None else []),
            subnet.name,
            subnet.prefix,
            subnet_type(subnet),
            subnet.gateway,
            "yes" if subnet.nat_gateway else "-",
            len(subnet.instances),
            subnet.policy_file or "-",
        )
        for subnet in subnets
    ]
    headings = (*(["VPC"] if vpc is None else []), "SUBNET", "CIDR", "TYPE", "GATEWAY", "NAT", "INSTANCES", "POLICY")
    return session.print_table(headings, rows, "no subnets" if vpc is None else f"VPC {vpc} has no subnet")


@command(about=About(part="name"))
@click.option("--vpc", help="The VPC.")
@click.option("--name", help="The subnet's name.")
@json_option
@click.pass_obj
def show_subnet(session: Session, vpc: str, name: str, as_json: bool) -> None:
    """Show a subnet and its instances.

    Example: vpcctl show-subnet shop/web
    """
    subnet = session.controller.show_subnet(vpc, name)
    if as_json:
        return print_json({**subnet_document(subnet), "vpc": vpc})
    show(f"subnet {vpc}/{name}  {subnet.prefix}  {subnet_type(subnet)}{', NAT gateway' if subnet.nat_gateway else ''}")
    show(f"  gateway  {subnet.gateway}")
    show(f"  policy   {subnet.policy_file or '-'}")
    lines = [f"  instance {one.name}  {one.address}  namespace {one.namespace}" for one in subnet.instances]
    return show(*session.listing(lines))


@command(about=About(part="subnet"), changes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--subnet", help="A private subnet.")
@click.pass_obj
def create_nat_gateway(session: Session, vpc: str, subnet: str) -> None:
    """Let a private subnet reach the internet, as far as its egress policy allows; no new flows get in.

    Example: vpcctl create-nat-gateway --vpc shop --subnet db
    """

    def told(created: Created[SubnetView]) -> list[str]:
        use = "has a NAT gateway" if created.warnings else "reaches the internet by a NAT gateway"
        return [f"subnet {subnet} of VPC {vpc} {use}"]

    session.carry_out(lambda controller: controller.create_nat_gateway(vpc, subnet), told)


@command(about=About(part="subnet"), removes=True)
@click.option("--vpc", help="The VPC.")
@click.option("--subnet", help="A private subnet.")
@click.pass_obj
def delete_nat_gateway(session: Session, vpc: str, subnet: str) -> None:
    """Cut a private subnet off from the internet; live connections end, too.

    Example: vpcctl delete-nat-gateway --vpc shop --subnet db
    """
    from vpcctl.cli.change_reports import Question, carry_out

    carry_out(
        session,
        lambda controller: controller.delete_nat_gateway(vpc, subnet),
        lambda _: [f"subnet {subnet} of VPC {vpc} no longer has a NAT gateway"],
        Question(f"Delete the NAT gateway of subnet {subnet} of VPC {vpc}?"),
    )


def subnet_type(subnet: SubnetView) -> str:
    """The word for the kind of a subnet."""
    return "public" if subnet.public else "private"


def subnet_document(subnet: SubnetView) -> dict[str, Any]:
    """A subnet for machines; `policy` is the file that its policy came from."""
    return {
        "name": subnet.name,
        "cidr": str(subnet.prefix),
        "type": subnet_type(subnet),
        "gateway": str(subnet.gateway),
        "nat_gateway": subnet.nat_gateway,
        "instances": [instance_document(instance) for instance in subnet.instances],
        "policy": subnet.policy_file,
    }


def instance_document(instance: InstanceView) -> dict[str, Any]:
    """An instance for machines."""
    return {
        "name": instance.name,
        "ip": str(instance.address),
        "mac": instance.mac,
        "namespace": instance.namespace,
    }
