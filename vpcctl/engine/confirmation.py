"""A change that is taken back unless somebody confirms it in time.

The state file has the deadline from the moment at which the change can take effect, so it outlives whoever made it.
Whoever comes first once the time is over takes the change back: the process that the command left behind (`keeper`),
the agent, the next command, or the restore after a reboot.  Taking back is a change like any other.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections.abc import Callable

from vpcctl.engine import history
from vpcctl.engine.state import Authorship, Deadline, State, Unconfirmed, Writer
from vpcctl.errors import ConflictError
from vpcctl.model.network import World
from vpcctl.model.restoration import restored
from vpcctl.resources.protocol import Kernel


def clock() -> float:
    """The seconds since the boot: no clock that somebody sets, and it goes on in suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def token() -> str:
    """What tells a change from another one."""
    return os.urandom(8).hex()


def deadline(seconds: int, boot_id: str, mark: str) -> Deadline:
    """The deadline of a change that is made now; `mark` is its token."""
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    told = until.isoformat(timespec="seconds").replace("+00:00", "Z")
    return Deadline(mark, seconds, boot_id, round(clock() + seconds, 3), told)


def begun(before: State, number: int) -> Unconfirmed:
    """The change that is being committed; its time begins now."""
    assert before.authorship is not None
    assert before.authorship.deadline is not None
    given = before.authorship.deadline
    running = deadline(given.seconds, given.boot_id, given.token)
    former = before.unconfirmed
    # One command may take several commits, if a part of it fails.
    whole = former.before if former is not None and former.deadline.token == given.token else before.world
    return Unconfirmed(number, dataclasses.replace(before.authorship, deadline=None), running, whole)


def remaining(deadline: Deadline) -> float:
    """The seconds that are left, in the boot of the deadline."""
    return deadline.at - clock()


def is_over(deadline: Deadline, kernel: Kernel) -> bool:
    """Is the time over?  After a reboot it is: nobody knows how long the machine was off."""
    return kernel.boot_id() != deadline.boot_id or remaining(deadline) <= 0


def conflict(unconfirmed: Unconfirmed) -> ConflictError:
    """Why no other change can be made."""
    left = max(0, round(remaining(unconfirmed.deadline)))
    return ConflictError(
        f"{unconfirmed.words} is not confirmed, and is taken back in {left} s; run `vpcctl confirm` to keep it, or"
        " `vpcctl undo` to take it back now"
    )


def back(state: State) -> tuple[World, Authorship]:
    """The world to which the unconfirmed change is taken back, and whose change this is."""
    assert state.unconfirmed is not None
    world = restored(state.world, state.unconfirmed.before, state.serial)
    reason = f"change {state.unconfirmed.number} was not confirmed in time"
    return world, Authorship(history.now(), "", "", ("undo",), reason=reason)


def due(state: State, kernel: Kernel, report: Callable[[str], None]) -> State:
    """What is to be completed of `state`, which may have an unfinished change or be of another boot.

    An unfinished change whose time to confirm is over is rolled back, not forward.  After a reboot what is made again
    is the world before an unconfirmed change: it was never to come back.
    """
    if state.unfinished:
        begun_by = state.authorship
        if begun_by is None or begun_by.deadline is None or not is_over(begun_by.deadline, kernel):
            return state
        report("an interrupted change was not confirmed in time; rolling back")
        return dataclasses.replace(state, pending=state.world, pending_host=state.host, authorship=None)
    if state.unconfirmed is None or kernel.boot_id() == state.unconfirmed.deadline.boot_id:
        return state
    desired, authorship = back(state)
    if desired == state.world:
        return dataclasses.replace(state, unconfirmed=None)
    report(f"{state.unconfirmed.words} was not confirmed before the reboot; taken back")
    return dataclasses.replace(state, pending=desired, pending_host=state.host, authorship=authorship)


def found(state: State, mark: str) -> Deadline | None:
    """The deadline of the change with this token, if it is unconfirmed or being made."""
    waiting = None if state.unconfirmed is None else state.unconfirmed.deadline
    begun_by = None if state.authorship is None else state.authorship.deadline
    return next((one for one in (waiting, begun_by) if one is not None and one.token == mark), None)


def confirmed(writer: Writer, state: State) -> Unconfirmed:
    """Keep the unconfirmed change; ConflictError if nothing waits to be confirmed."""
    if state.unconfirmed is None:
        raise ConflictError("no change waits to be confirmed; `vpcctl history` lists what was changed")
    writer.save(dataclasses.replace(state, unconfirmed=None))
    return state.unconfirmed


def over(writer: Writer) -> State:
    """The state with nothing unconfirmed, on disk."""
    state = writer.load()
    return state if state.unconfirmed is None else writer.save(dataclasses.replace(state, unconfirmed=None))
