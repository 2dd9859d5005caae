"""The agent itself: wait for events, gather them, call the engine to repair what they concern, and log the result."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from vpcctl.agent.journal import DEBUG, ERROR, INFO, NAMED, WARNING, Journal
from vpcctl.agent.schedule import EVERYTHING, HOST, Causes, Look, Schedule
from vpcctl.agent.supervisor import Supervisor
from vpcctl.agent.watching import Event, Watch
from vpcctl.engine import confirmation
from vpcctl.engine.controller import Controller
from vpcctl.engine.execution import Difference, principal_first
from vpcctl.engine.places import in_words
from vpcctl.engine.state import Deadline, LockedError
from vpcctl.engine.upkeep import Tended
from vpcctl.errors import ConflictError, StateError, VpcctlError
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.kernel.verified import NOTES, newest
from vpcctl.resources.kinds import Item
from vpcctl.resources.protocol import Condition

# How long to wait for the lock in one attempt, and after how many attempts to log that.
PATIENCE, LOCKED_OFTEN = 0.2, 10
# A change that could not be taken back is taken back again after so many seconds.
EXPIRED_AGAIN = 30.0
# After so many new objects Python searches for unused cycles (gc.set_threshold): a long-running process must not grow.
COLLECTED = (5000, 10, 10)
# The whole program: the agent and the commands must be of one version.
PACKAGES = ("model", "documents", "compiler", "analysis", "resources", "kernel", "engine", "agent")


class AttendedKernel(LinuxKernel):
    """The kernel of this machine; each step also notifies the watchdog that the process is alive."""

    def __init__(self, alive: Callable[[], None]):
        super().__init__(NOTES)
        self._alive = alive

    def _observe_namespace(self, namespace: str | None, items: list[Item]) -> dict[Item, Condition]:
        self._alive()
        return super()._observe_namespace(namespace, items)

    def ensure(self, item: Item) -> None:
        self._alive()
        super().ensure(item)

    def remove(self, item: Item) -> None:
        self._alive()
        super().remove(item)


class Agent:
    """One agent: `run` returns when a signal asks it to end."""

    def __init__(
        self,
        make_controller: Callable[[Callable[[], AttendedKernel]], Controller],
        state_dir: Path,
        journal: Journal,
        supervisor: Supervisor,
    ):
        self._state_dir, self._journal, self._supervisor = state_dir, journal, supervisor
        self._controller = make_controller(lambda: AttendedKernel(self._feed))
        self._schedule = Schedule()
        self._stopped = ""
        self._had_record = self._ready = False
        self._program = newest(*PACKAGES)
        # The deadline that is known, and when to look because of it (CLOCK_BOOTTIME).
        self._deadline: Deadline | None = None
        self._expires: float | None = None

    def run(self) -> None:
        """Follow events until SIGTERM or SIGINT; raises if it cannot begin, or if the program was replaced."""
        self._controller.check_privilege()
        _allow_many_files()
        with (
            self._controller.as_agent(),
            contextlib.closing(Watch(self._state_dir)) as watch,
            watch.woken_by_signals(),
            self._signals(),
        ):
            self._journal.write(INFO, "started", f"agent of {self._state_dir} started", pid=os.getpid())
            # Listen before the first look, so that no change between them is missed.
            self._arm(watch)
            self._schedule.event(EVERYTHING, "start", time.monotonic())
            while not self._stopped:
                self._turn(watch)
            self._supervisor.stopping()
            self._journal.write(INFO, "stopping", f"agent stops: {self._stopped}")

    def _turn(self, watch: Watch) -> None:
        """Sleep until something is due or happens, and do it."""
        now = time.monotonic()
        self._feed()
        waits = [self._schedule.wait(now), self._supervisor.wait(now), self._until_expiry()]
        known = [one for one in waits if one is not None]
        self._take(watch.wait(min(known) if known else None))
        self._expire()
        if watch.record_changed:
            self._arm(watch)
        look = self._schedule.look(time.monotonic())
        if look is not None and not self._stopped:
            self._check_program()
            self._look(watch, look)

    def _take(self, events: Iterable[Event], own: bool = False) -> None:
        now = time.monotonic()
        for event in events:
            self._schedule.event(event.place, event.cause, now, own)

    def _arm(self, watch: Watch, own: bool = False) -> None:
        """Listen to what is on record now, or to what was on record before if the record cannot be read."""
        try:
            watched = self._controller.watched(watch.watched)
        except VpcctlError:
            # The look that follows says why.
            watch.record_changed = False
            self._take([*watch.arm(), Event(EVERYTHING, "the record changed")], own)
            return
        if self._had_record and not watched.namespaces and not watched.vpcs:
            self._journal.write(INFO, "record", "nothing is on record any more")
        self._had_record = bool(watched.vpcs)
        if watched.deadline != self._deadline:
            self._deadline = watched.deadline
            self._expires = None if watched.deadline is None else watched.deadline.at
        self._take(watch.arm(watched), own)
        self._schedule.keep(watched.vpcs)
        self._say_deaf(watch)
        # If a change was left unfinished, or the record could not be read, look at all VPCs.
        self._take([Event(EVERYTHING if self._failing_all else HOST, "the record changed")], own)

    @property
    def _failing_all(self) -> bool:
        return EVERYTHING in self._schedule.failing

    def _until_expiry(self) -> float | None:
        return None if self._expires is None else max(0.0, self._expires - confirmation.clock())

    def _expire(self) -> None:
        """Look, once the time to confirm a change is over: whatever looks takes it back."""
        if self._until_expiry() == 0:
            # Where that fails it is tried again.
            self._expires = confirmation.clock() + EXPIRED_AGAIN
            self._take([Event(EVERYTHING, "a change was not confirmed in time")])

    # -- looks -----------------------------------------------------------------------------------------------------

    def _look(self, watch: Watch, look: Look) -> None:
        """Compare and repair what is due."""
        started = time.monotonic()
        try:
            tended = self._controller.tend(look.vpcs, patience=PATIENCE)
        except LockedError as error:
            if self._schedule.locked(look, time.monotonic()) == LOCKED_OFTEN:
                self._journal.write_once("lock", WARNING, "waiting", f"waiting for the lock: {error}")
            return
        except VpcctlError as error:
            self._drop(watch, {EVERYTHING})
            self._schedule.done(look, {EVERYTHING}, time.monotonic())
            self._fail(look, {EVERYTHING: error})
            self._be_ready()
            return
        self._journal.over("lock")
        if tended.differences or tended.trouble:
            # Listen in new namespaces from now on.  The events of the repair itself have all arrived, and lead to one
            # look.
            self._arm(watch, own=True)
            self._take(watch.wait(0) if not tended.trouble else (), own=True)
        self._drop(watch, set(tended.trouble))
        self._schedule.done(look, tended.trouble, time.monotonic())
        if not tended.complete and not tended.trouble:
            self._take([Event(EVERYTHING, "the host changed, or a repair was left unfinished")])
        self._report(look, tended, time.monotonic() - started)
        self._say_deaf(watch)
        self._be_ready()

    def _be_ready(self) -> None:
        """Report after the first look that the agent is ready, even if a repair failed: it is tried again."""
        if not self._ready:
            self._ready = True
            self._supervisor.ready()
            # The present objects stay; only later ones are searched for unused cycles.
            gc.freeze()
            gc.set_threshold(*COLLECTED)

    def _drop(self, watch: Watch, failed: set[str]) -> None:
        """Take the events that came during a look; in a place whose repair failed they cause no further attempt."""
        if failed:
            self._take(event for event in watch.wait(0) if EVERYTHING not in failed and event.place not in failed)

    def _check_program(self) -> None:
        """End after an upgrade, so that the new version is started: both would undo each other's repairs."""
        if newest(*PACKAGES) != self._program:
            self._supervisor.status("vpcctl was upgraded")
            raise ConflictError("vpcctl was upgraded while its agent ran; start the agent again")

    # -- the log ---------------------------------------------------------------------------------------------------

    def _report(self, look: Look, tended: Tended, seconds: float) -> None:
        compared = None if look.vpcs is None else sorted(look.vpcs)
        for remark in tended.remarks:
            self._journal.write(INFO, "remark", remark)
        fields: dict[str, Any] = {"causes": _causes(look.causes), "compared": compared, "seconds": round(seconds, 3)}
        if tended.differences:
            ordered = principal_first(tended.differences)
            lines = [f"repaired: {one.past}" for one in ordered[:NAMED]]
            lines += [f"… and {len(ordered) - NAMED} more"] if len(ordered) > NAMED else []
            why = "; ".join(line for lines in _causes(look.causes).values() for line in lines[:3])
            self._journal.write(
                INFO, "repaired", f"repaired {_counted(len(ordered), 'object')} ({why})", lines,
                repaired=[_as_json(one) for one in ordered], **fields,
            )  # fmt: skip
        else:
            what = "all VPCs" if compared is None else ", ".join(["the host", *(f"VPC {vpc}" for vpc in compared)])
            self._journal.write(DEBUG, "compared", f"compared {what}: nothing to repair", **fields)
        for warning in tended.warnings:
            self._journal.write(WARNING, "warning", f"warning: {warning}")
        if tended.trouble:
            self._fail(look, tended.trouble)
        self._recover(tended.trouble)

    def _fail(self, look: Look, trouble: Mapping[str, VpcctlError]) -> None:
        """Log what failed, once as long as the message stays the same."""
        for place, error in trouble.items():
            whole = place == EVERYTHING
            words = f"repair failed: {error}" if whole else in_words({place: error})[0]
            damaged = isinstance(error, StateError)
            self._journal.write_once(
                place, ERROR, "failed", f"{words}\nnothing is removed; the agent tries again" if damaged else words,
                place=place, error=str(error), status=error.exit_status, causes=_causes(look.causes),
            )  # fmt: skip
        self._tell_status()

    def _recover(self, trouble: Mapping[str, VpcctlError]) -> None:
        for place in [place for place in self._journal.open_subjects if place not in trouble and place != "lock"]:
            if place not in self._schedule.failing and not place.startswith("deaf ") and self._journal.over(place):
                what = "repairs succeed again" if place in (EVERYTHING, HOST) else f"{place}: repaired"
                self._journal.write(INFO, "recovered", what, place=place)
        self._tell_status()

    def _tell_status(self) -> None:
        failing = [place for place in self._schedule.failing if place not in (EVERYTHING, HOST)]
        if self._failing_all:
            self._supervisor.status("repairs fail; see the log")
        elif failing:
            self._supervisor.status(f"in sync, except {', '.join(sorted(failing)[:NAMED])}")
        else:
            self._supervisor.status("in sync")

    def _say_deaf(self, watch: Watch) -> None:
        for namespace, why in watch.deaf.items():
            self._journal.write_once(
                f"deaf {namespace}", WARNING, "deaf", f"warning: {why}; changes there go unnoticed"
            )
        known = {f"deaf {namespace}" for namespace in watch.deaf}
        for subject in self._journal.open_subjects:
            if subject.startswith("deaf ") and subject not in known:
                self._journal.over(subject)

    # -- the process -----------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        self._supervisor.feed(time.monotonic())

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Make SIGTERM and SIGINT end the agent, after a running repair is complete."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stopped = signal.Signals(number).name

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _allow_many_files() -> None:
    """Raise the limit of open descriptors as far as allowed: each namespace needs one or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _causes(causes: Mapping[str, Causes]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for place, one in causes.items():
        found[{HOST: "host", EVERYTHING: "all"}.get(place, place)] += one.lines()
    return dict(found)


def _as_json(one: Difference) -> dict[str, str]:
    return {
        "kind": type(one.item).__name__,
        "object": str(one.item),
        "was": one.condition.state.value,
        "detail": one.condition.detail,
    }


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
