"""Commands on invariants."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from vpcctl.cli.output import print_json, show
from vpcctl.cli.session import ANY_VPC, Session, command, json_option

if TYPE_CHECKING:
    from vpcctl.engine.reconciler import Outcome


@command(changes=True)
@click.argument("invariants", metavar="INVARIANTS.json")
@click.option("--vpc", help="State the invariants of this VPC, which go with it.  Default: those of the machine.")
@click.pass_obj
def set_invariants(session: Session, invariants: str, vpc: str | None) -> None:
    """State assertions about traffic that every later change must keep.

    \b
    INVARIANTS.json has the format of `verify`: an array of
    {"from": "internet", "to": "shop/db", "service": "any", "expect": "deny"}.
    It replaces what was stated before.  A change that would break an invariant is refused with exit status 1.

    Example: vpcctl set-invariants invariants.json
    """
    from vpcctl.documents.sources import read_source

    # Standard input can be read once only.
    document = read_source(invariants)

    def told(outcome: Outcome) -> list[str]:
        stated = sum(one.vpc == vpc for one in outcome.after.invariants)
        return [f"{_counted(stated)} of {_whose(vpc)} must hold from now on"]

    session.carry_out(lambda controller: controller.set_invariants(document, vpc), told)


@command(about=ANY_VPC)
@click.option("--vpc", help="Only those of this VPC.")
@json_option
@click.pass_obj
def show_invariants(session: Session, vpc: str | None, as_json: bool) -> None:
    """Show the invariants, and whether each holds; exit status 1 if one does not.

    Example: vpcctl show-invariants
    """
    from vpcctl.documents.codec import assertion_to_json

    found = session.controller.list_invariants(vpc)
    if as_json:
        print_json(
            [{**assertion_to_json(one.invariant), "vpc": one.invariant.vpc, "holds": one.holds} for one in found]
        )
    elif not found:
        session.say("no invariants")
    else:
        show(*(f"holds  {one.invariant}" if one.holds else f"BROKEN {one}" for one in found))
    sys.exit(0 if all(one.holds for one in found) else 1)


@command(about=ANY_VPC, removes=True)
@click.option("--vpc", help="Those of this VPC.  Default: those of the machine.")
@click.pass_obj
def clear_invariants(session: Session, vpc: str | None) -> None:
    """Remove the invariants of the machine, or those of a VPC.

    Example: vpcctl clear-invariants --vpc shop
    """
    from vpcctl.cli.change_reports import Question, carry_out

    def told(outcome: Outcome) -> list[str]:
        removed = len(outcome.before.invariants) - len(outcome.after.invariants)
        return [f"removed {_counted(removed)} of {_whose(vpc)}"]

    question = Question(f"Remove the invariants of {_whose(vpc)}?")
    carry_out(session, lambda controller: controller.clear_invariants(vpc), told, question)


def _counted(number: int) -> str:
    return f"{number} invariant{'' if number == 1 else 's'}"


def _whose(vpc: str | None) -> str:
    return "the machine" if vpc is None else f"VPC {vpc}"
