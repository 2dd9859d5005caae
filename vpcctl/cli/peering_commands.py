"""Commands on peerings."""

from __future__ import annotations

import click

from vpcctl.cli.output import print_json
from vpcctl.cli.session import PEERS, Session, command, json_option


@command(about=PEERS, changes=True)
@click.option("--vpc1", help="A VPC.")
@click.option("--vpc2", help="Another VPC.")
@click.pass_obj
def create_peering(session: Session, vpc1: str, vpc2: str) -> None:
    """Connect two VPCs; their policies still apply, and peerings are not transitive.

    Example: vpcctl create-peering --vpc1 shop --vpc2 billing
    """
    session.carry_out(
        lambda controller: controller.create_peering(vpc1, vpc2), lambda _: [f"peered VPCs {vpc1} and {vpc2}"]
    )


@command(about=PEERS, removes=True)
@click.option("--vpc1", help="A VPC.")
@click.option("--vpc2", help="Another VPC.")
@click.pass_obj
def delete_peering(session: Session, vpc1: str, vpc2: str) -> None:
    """Disconnect two VPCs; live connections end, too.

    Example: vpcctl delete-peering --vpc1 shop --vpc2 billing
    """
    from vpcctl.cli.change_reports import Question, carry_out

    carry_out(
        session,
        lambda controller: controller.delete_peering(vpc1, vpc2),
        lambda _: [f"VPCs {vpc1} and {vpc2} are no longer peered"],
        Question(f"Delete the peering of VPCs {vpc1} and {vpc2}?"),
    )


@command()
@json_option
@click.pass_obj
def list_peerings(session: Session, as_json: bool) -> None:
    """List the peerings.

    Example: vpcctl list-peerings
    """
    peerings = session.controller.list_peerings()
    if as_json:
        return print_json([{"vpc1": peering.one, "vpc2": peering.other} for peering in peerings])
    rows = [(peering.one, peering.other) for peering in peerings]
    return session.print_table(("VPC", "VPC"), rows, "no peerings")
