"""Commands on whole environments."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from vpcctl.cli.output import print_json, show
from vpcctl.cli.session import ANY_VPC, Session, command, json_option

if TYPE_CHECKING:
    from vpcctl.engine.controller import Controller
    from vpcctl.engine.environments import EnvironmentApplied

prune_option = click.option("--prune", is_flag=True, help="Remove the VPCs that the document does not name.")


@command()
@click.argument("environment", metavar="ENVIRONMENT.json")
@prune_option
@json_option
@click.pass_obj
def plan(session: Session, environment: str, prune: bool, as_json: bool) -> None:
    """Show what `apply` would change, and which traffic this would allow and deny.

    Example: vpcctl plan shop.json
    """
    from vpcctl.analysis.anomalies import idle_to_json
    from vpcctl.analysis.explain import line_to_json

    planned = session.controller.plan(environment, prune=prune)
    session.warn_all(planned.warnings)
    expected = planned.forecast
    if as_json:
        return print_json(
            {
                "changes": [dataclasses.asdict(change) for change in planned.changes],
                "newly_allowed": list(map(line_to_json, expected.newly_allowed)),
                "newly_denied": list(map(line_to_json, expected.newly_denied)),
                "without_effect": list(map(idle_to_json, expected.idle)),
                "not_listed": list(expected.untold),
            }
        )
    if not planned.changes:
        return show("nothing to change")
    return show(*session.summary(planned.changes), *session.forecast_lines(expected))


@command(removes=True)
@click.argument("environment", metavar="ENVIRONMENT.json")
@prune_option
@click.pass_obj
def apply(session: Session, environment: str, prune: bool) -> None:
    """Bring the VPCs of an environment document to exactly the described state.

    \b
    Everything is checked before the first change.  If one
    VPC fails, it is rolled back, the others are completed, and the failure is reported.

    Example: vpcctl apply shop.json
    """
    from vpcctl.cli.change_reports import Question, carry_out
    from vpcctl.documents.sources import read_source

    # Standard input can be read once only.
    document = read_source(environment)

    def told(applied: EnvironmentApplied) -> list[str]:
        session.say_repaired(applied.repaired)
        return ["applied" if applied.steps else "nothing to change"]

    def request(controller: Controller) -> EnvironmentApplied:
        try:
            return controller.apply(document, prune=prune)
        finally:
            session.say_more_changed()

    carry_out(session, request, told, Question("Apply the document?", always=prune))


@command(about=ANY_VPC)
@click.option("--vpc", help="Only this VPC.")
@click.pass_obj
def export(session: Session, vpc: str | None) -> None:
    """Print the present environment as a document for `apply`.

    Example: vpcctl export > environment.json
    """
    print_json(session.controller.export(vpc))
