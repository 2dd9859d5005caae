"""How a change is announced, asked about and reported: what goes, what traffic it allows and denies.

Each command that changes something passes its request here: as a dry run, with a question, or to print JSON.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import print_json, show, visible
from vpcctl.cli.session import Session
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.analysis.impact import Forecast
    from vpcctl.engine.controller import Controller
    from vpcctl.engine.reconciler import Outcome
    from vpcctl.model.host import Host


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked before something is taken away.

    It is asked on a terminal; `always` asks elsewhere, too, where --yes or an answer is needed.  `even_nothing` asks
    even if nothing would go.  `ends` says which traffic ends, where that is known without a forecast.
    """

    words: str
    always: bool = False
    even_nothing: bool = False
    ends: Callable[[Outcome], str] | None = None


def carry_out(
    session: Session,
    request: Callable[[Controller], Any],
    told: Callable[[Any], Iterable[str]],
    question: Question | None = None,
    document: Callable[[Any], Mapping[str, Any]] | None = None,
) -> None:
    """Ask where something is taken away, make the change, and report it; as a dry run only report it."""
    if session.dry_run:
        return report(session, request(session.rehearsal), document)
    asked = question is not None and not session.yes and (question.always or on_terminal())
    if question is not None and asked:
        # Without the privilege, fail before the question.
        session.controller.check_privilege()
        expected = request(session.rehearsal)
        if losses(expected) or question.even_nothing:
            for line in loss_lines(session, expected, question, "removes"):
                click.echo(visible(line), err=True)
            confirm(question.words)
    # The addresses of uplinks come and go with the change, and are no part of what it allows or denies.
    forecast = session.wants_json or (question is not None and question.ends is None)
    host = session.controller.host() if forecast else None
    done = request(session.controller)
    if session.wants_json:
        return report(session, done, document, host)
    # Invariants carry no traffic: what `told` says is all.
    if question is not None and not asked and session.verbosity >= 0 and losses(done).keys() != {"invariant"}:
        for line in loss_lines(session, done, question, "removed", host):
            session.say(line)
    for line in told(done):
        session.say(line)
    return session.warn_all(warnings_of(done))


def outcome_of(result: Any) -> Any:
    """The worlds before and after a request."""
    return getattr(result, "outcome", result)


def warnings_of(result: Any) -> tuple[str, ...]:
    """What may not be as meant."""
    return tuple(getattr(result, "warnings", ()))


def forecast_of(session: Session, result: Any, host: Host | None = None, quick: bool = False) -> Forecast:
    """What the change means for traffic on the host as it was before."""
    known: Forecast | None = getattr(result, "forecast", None)
    return known or session.controller.forecast(outcome_of(result), quick=quick, host=host)


def losses(result: Any) -> dict[str, int]:
    """How many objects of which kinds go."""
    from vpcctl.documents.diff import lost

    outcome = outcome_of(result)
    return lost(outcome.before, outcome.after)


def loss_lines(session: Session, result: Any, question: Question, verb: str, host: Host | None = None) -> list[str]:
    """How many objects of which kinds go, and which traffic changes; nothing if nothing goes."""
    from vpcctl.documents.diff import KINDS

    gone = losses(result)
    if not gone:
        return []
    counted = ", ".join(f"{count} {kind if count == 1 else KINDS[kind]}" for kind, count in gone.items())
    if question.ends is not None and gone.keys() == {"instance"}:
        return [f"{verb} {counted}; {question.ends(outcome_of(result))}"]
    return [f"{verb} {counted}", *session.forecast_lines(forecast_of(session, result, host, quick=True))]


def on_terminal() -> bool:
    """Is there a person who can be asked?"""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, otherwise: str = "nothing was removed") -> None:
    """Ask; if the answer is not yes, report that and abort."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        # The cursor is still behind the question.
        click.echo(f"\nvpcctl: {otherwise}; pass --yes, or answer the question", err=True)
        raise
    if not agreed:
        click.echo(f"vpcctl: {otherwise}", err=True)
        raise click.Abort


def report(
    session: Session,
    result: Any,
    document: Callable[[Any], Mapping[str, Any]] | None = None,
    host: Host | None = None,
) -> None:
    """Print what a change did, or would do, for machines or for people."""
    if session.wants_json:
        common = change_document(result, forecast_of(session, result, host), session.dry_run)
        return print_json({**common, **(document(result) if document else {})})
    from vpcctl.documents.diff import object_changes

    outcome = outcome_of(result)
    changes = object_changes(outcome.before, outcome.after)
    session.warn_all(warnings_of(result))
    if changes:
        show(*session.summary(changes), *session.forecast_lines(forecast_of(session, result)))
    else:
        show("nothing to change")
    return session.say("nothing was changed")


def other_document(changes: Sequence[Mapping[str, str]], warnings: Sequence[str], dry_run: bool) -> dict[str, Any]:
    """Likewise, of a command that leaves the desired state and its traffic as they are."""
    return {
        "changed": bool(changes),
        "dry_run": dry_run,
        "changes": list(changes),
        "removed": {},
        "newly_allowed": [],
        "newly_denied": [],
        "not_listed": [],
        "warnings": list(warnings),
    }


def change_document(result: Any, forecast: Forecast, dry_run: bool) -> dict[str, Any]:
    """What a change did, or would do, for machines: objects, traffic and warnings."""
    from vpcctl.analysis.explain import line_to_json
    from vpcctl.documents.diff import object_changes

    outcome = outcome_of(result)
    changes = object_changes(outcome.before, outcome.after)
    return {
        "changed": bool(changes),
        "dry_run": dry_run,
        "changes": list(map(dataclasses.asdict, changes)),
        "removed": losses(result),
        "newly_allowed": list(map(line_to_json, forecast.newly_allowed)),
        "newly_denied": list(map(line_to_json, forecast.newly_denied)),
        "not_listed": list(forecast.untold),
        "warnings": list(warnings_of(result)),
    }
