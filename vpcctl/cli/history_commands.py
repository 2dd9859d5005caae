"""Commands on the history: which changes were made, what one did, and back to what was before."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import print_json, show
from vpcctl.cli.session import Session, command, json_option
from vpcctl.errors import ConflictError

if TYPE_CHECKING:
    from vpcctl.analysis.impact import Forecast
    from vpcctl.engine.made_changes import KeptChange


@command()
@json_option
@click.pass_obj
def history(session: Session, as_json: bool) -> None:
    """List the changes that were made: when, by whom, by which command, and what they did.

    Example: vpcctl history
    """
    changes = session.controller.history()
    if as_json:
        return print_json(list(map(_change_document, changes)))
    rows = [(one.number, one.time, _who(one), _command(one), _summary(one)) for one in changes]
    return session.print_table(("NUMBER", "TIME", "USER", "COMMAND", "CHANGED"), rows, "no changes")


def _change_document(change: KeptChange) -> dict[str, Any]:
    return {
        "number": change.number,
        "time": change.time,
        "user": change.user,
        "as": change.acting_as,
        "command": list(change.command),
        "summary": change.summary,
        "confirmed": change.confirmed,
    }


def _who(change: KeptChange) -> str:
    user = change.user or "-"
    return f"{user} (as {change.acting_as})" if change.acting_as else user


def _command(change: KeptChange) -> str:
    return " ".join(change.command) or "-"


def _summary(change: KeptChange) -> str:
    return change.summary if change.confirmed else f"(unconfirmed) {change.summary}"


@command()
@click.argument("number", type=click.IntRange(1))
@json_option
@click.pass_obj
def show_change(session: Session, number: int, as_json: bool) -> None:
    """Show what a change did: objects and traffic, before and after.

    Example: vpcctl show-change 12
    """
    view = session.controller.show_change(number)
    session.warn_all(view.warnings)
    if as_json:
        return print_json(
            {
                **_change_document(view.change),
                "changes": [dataclasses.asdict(change) for change in view.changes],
                **_traffic_document(view.forecast),
                "before": view.before,
                "after": view.after,
            }
        )
    show(_told(view.change))
    return show(*view.changes, *session.forecast_lines(view.forecast))


def _told(change: KeptChange) -> str:
    unconfirmed = "" if change.confirmed else ", unconfirmed"
    return f"change {change.number}, {change.time}, {_who(change)}{unconfirmed}: {_command(change)}"


def _traffic_document(forecast: Forecast) -> dict[str, Any]:
    from vpcctl.analysis.explain import line_to_json

    return {
        "newly_allowed": list(map(line_to_json, forecast.newly_allowed)),
        "newly_denied": list(map(line_to_json, forecast.newly_denied)),
        "not_listed": list(forecast.untold),
    }


@command(removes=True)
@click.option(
    "--to", type=click.IntRange(0), metavar="NUMBER", help="Back to what was after this change; 0 is before all."
)
@click.pass_obj
def undo(session: Session, to: int | None) -> None:
    """Go back to what was before the last change; live connections that are allowed again or still lose nothing.

    \b
    This is a change itself: undoing it brings back what was undone.

    Example: vpcctl undo --dry-run
    """
    from vpcctl.cli.change_reports import change_document, on_terminal
    from vpcctl.cli.change_reports import confirm as confirm_removal

    planned = session.controller.plan_undo(to)
    if planned.unconfirmed and session.confirm is not None:
        raise ConflictError("the change that would be undone waits to be confirmed itself; undo it without --confirm")
    if not session.wants_json:
        show(*session.summary([f"undoes {_told(one)}" for one in planned.undone]), *planned.counts)
        show(*session.summary(planned.changes), *session.forecast_lines(planned.forecast))
    session.warn_all((*planned.warnings, *planned.losses))
    words = "nothing was changed" if session.dry_run else "nothing to change"
    if not session.dry_run and (planned.changes or planned.unconfirmed):
        if not session.yes and on_terminal():
            # Without the privilege, fail before the question.
            session.controller.check_privilege()
            confirm_removal("Undo this?", "nothing was changed")
        session.controller.undo(planned)
        words = "undone; `vpcctl undo` brings it back"
    if session.wants_json:
        common = change_document(planned, planned.forecast, session.dry_run)
        undone = [change.number for change in planned.undone]
        return print_json({"undone": undone, **common, "losses": list(planned.losses)})
    return session.say(words)


@command()
@click.pass_obj
def confirm(session: Session) -> None:
    """Keep the change that waits to be confirmed.

    Example: vpcctl confirm
    """
    kept = session.controller.confirm()
    session.say(f"{kept.words} is confirmed")
