"""A command whose change has to be confirmed: what is said after it, and the packets that judge it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import counted, show
from vpcctl.cli.session import Session
from vpcctl.errors import VpcctlError

if TYPE_CHECKING:
    from vpcctl.engine.state import Unconfirmed
    from vpcctl.model.network import Invariant


def run(session: Session, command: Callable[[], Any], tests: str | None) -> Any:
    """Run the command; what it changed is taken back at once if one of the `tests` fails, with exit status 1."""
    controller = session.controller
    # What is wrong in the document is reported before anything is changed.
    assertions = None if tests is None else controller.read_assertions(tests)
    before = controller.unconfirmed()
    try:
        found = command()
    except VpcctlError:
        # Of several VPCs some may have been changed.
        _say_waiting(session, before)
        raise
    waiting = controller.unconfirmed()
    if waiting is None or waiting == before:
        session.say("nothing was changed, so nothing waits to be confirmed")
        return found
    if assertions is not None and not _holds(session, assertions):
        controller.undo(controller.plan_undo(), f"an assertion about change {waiting.number} failed")
        session.say(f"{waiting.words} is taken back")
        sys.exit(1)
    _say_waiting(session, before)
    return found


def _say_waiting(session: Session, before: Unconfirmed | None) -> None:
    waiting = session.controller.unconfirmed()
    if waiting is not None and waiting != before:
        seconds = counted(waiting.deadline.seconds, "second")
        session.say(
            f"{waiting.words} is taken back at {waiting.deadline.until} (in {seconds}), unless you run `vpcctl confirm`"
        )


def _holds(session: Session, assertions: tuple[Invariant, ...]) -> bool:
    """Do real packets do what is asserted?"""
    from vpcctl.lab.surroundings import stand_in

    probed = session.controller.probe_assertions(assertions, stand_in())
    # Standard output is for the JSON alone.
    as_json = session.wants_json or click.get_current_context().params.get("as_json")
    say = session.say if as_json else show
    for one in probed:
        mark, why = ("pass", "") if one.passed else ("FAIL", f"; {one.failure}")
        say(f"{mark}  {one.source} → {one.destination} {one.service}: expected {one.expect}{why}")
    return all(one.passed for one in probed)
