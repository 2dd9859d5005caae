"""One machine as the engine sees it: the record, the kernel, the host's addresses, and a listener."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vpcctl.engine.events import Remark, Report, StepTaken
from vpcctl.errors import InterruptedChange, InvariantError, KernelError, PrivilegeError, VpcctlError
from vpcctl.model.host import NO_HOST, Host
from vpcctl.names import DEFAULT_STATE_DIR
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.engine.execution import Difference
    from vpcctl.engine.places import Trouble
    from vpcctl.engine.reconciler import Choose, Outcome
    from vpcctl.engine.state import Authorship, State, Store, Unconfirmed
    from vpcctl.model.network import World
    from vpcctl.resources.protocol import Kernel

    Transform = Callable[[State], World]


def state_directory(given: str | os.PathLike[str] | None) -> Path:
    """The directory of the record: the given one, else $VPCCTL_STATE_DIR, else DEFAULT_STATE_DIR."""
    return Path(given or os.environ.get("VPCCTL_STATE_DIR") or DEFAULT_STATE_DIR)


def linux_kernel() -> Kernel:
    """The kernel of this machine; PrivilegeError without the capabilities that it needs."""
    from vpcctl.kernel.linux import LinuxKernel
    from vpcctl.kernel.verified import NOTES

    return LinuxKernel(NOTES)


def linux_host() -> Host:
    """The addresses of this machine; needs no privilege."""
    from vpcctl.kernel.routes import read_host

    return read_host()


@dataclass(frozen=True, slots=True)
class Author:
    """Who asks: the user, whose rights were used if they are another one's, and the words of the command.

    `reason` is why, if that is not what the command says.  `confirm` is for how many seconds a change waits to be
    confirmed, and is then taken back; None if it stays.
    """

    user: str = ""
    acting_as: str = ""
    command: tuple[str, ...] = ()
    confirm: int | None = None
    reason: str = ""


NOBODY = Author()


@dataclass(frozen=True, slots=True)
class Machine:
    """What every request needs.  `make_kernel` is called for each request, and what it returns is closed afterwards.

    Readers take no lock and need no kernel, unless what they are asked is in the kernel alone.  With `rehearsing`
    changes are planned and checked as always, and then not made.
    """

    store: Store
    make_kernel: Callable[[], Kernel]
    read_host: Callable[[], Host]
    report: Report
    override_invariants: bool = False
    rehearsing: bool = False
    author: Author = NOBODY
    # May a process be left behind, for a change that has to be confirmed?
    leaves_process: bool = True

    def load(self) -> State:
        """The present state."""
        return self.store.load()

    def host(self) -> tuple[Host, tuple[str, ...]]:
        """The host's own addresses, and warnings: they are taken as unknown if they cannot be read."""
        try:
            return self.read_host(), ()
        except KernelError as error:
            return NO_HOST, (f"{error}; the answer treats them as internet addresses",)

    @contextlib.contextmanager
    def kernel(self) -> Iterator[Kernel]:
        """The kernel for as long as it is looked at."""
        kernel = self.make_kernel()
        try:
            yield kernel
        finally:
            kernel.close()

    @contextlib.contextmanager
    def changing(self) -> Iterator[Kernel]:
        """The kernel for as long as it is changed; an interrupt (Ctrl-C) becomes an InterruptedChange."""
        with self.kernel() as kernel:
            try:
                yield kernel
            except KeyboardInterrupt as error:
                raise InterruptedChange(self._unfinished()) from error

    def _unfinished(self) -> bool:
        try:
            return self.load().unfinished
        except VpcctlError:
            return True

    def change(self, transform: Transform, force: bool = False, back: bool = False) -> Outcome:
        """Change the world to what `transform` returns; what `check` refuses is refused before the lock is taken.

        With `force` it takes ports of the host that others have; `back` takes an unconfirmed change back.
        """
        from vpcctl.engine import reconciler

        if self.rehearsing:
            return self._rehearsed(transform, force)
        with self._attended() as token, self.changing() as kernel:
            authorship = self._authorship(kernel, token)
            outcome = reconciler.change(
                self.store, kernel, self._checked(transform), self.remark, force, authorship, back
            )
        for step in outcome.plan.steps:
            self.report(StepTaken(step))
        return outcome

    def _rehearsed(self, transform: Transform, force: bool) -> Outcome:
        """What a change would do; without the privilege to look at the kernel, what it would make of the record."""
        from vpcctl.engine import reconciler
        from vpcctl.resources.plan import Plan

        state = self.load()
        world = transform(state)
        self.check(state.world, world)
        if state.pending is not None:
            self.remark("a change is unfinished; the next change completes it first, and may then do something else")
        try:
            with self.kernel() as kernel:
                outcome = reconciler.rehearse(state, kernel, world, force)
        except PrivilegeError:
            self.remark("without root, conflicts with other objects of the host are not checked")
            return reconciler.Outcome(state.world, world, Plan(()))
        for step in outcome.plan.steps:
            self.report(StepTaken(step))
        return outcome

    def change_parts(self, choose: Choose, begun: Callable[[str], None]) -> tuple[Outcome, Trouble]:
        """Change several VPCs at once, and return the failures (see `reconciler.change_parts`)."""
        from vpcctl.engine import reconciler

        whole = self._checked(lambda state: choose(state, frozenset()))

        def chosen(state: State, without: frozenset[str]) -> World:
            if not without:
                return whole(state)
            world = choose(state, without)
            # What is left of the change costs no more than all of it, but an invariant may need what failed.
            self._check_invariants(state.world, world)
            return world

        with self._attended() as token, self.changing() as kernel:
            authorship = self._authorship(kernel, token)
            outcome, failed = reconciler.change_parts(self.store, kernel, chosen, self.remark, begun, authorship)
        for step in outcome.plan.steps:
            self.report(StepTaken(step))
        return outcome, failed

    def assure(self, vpcs: Iterable[str]) -> tuple[Difference, ...]:
        """Bring the kernel to the record for VPCs that a change without a difference did not look at; what differed."""
        from vpcctl.engine import reconciler

        chosen = list(vpcs)
        if not chosen or self.rehearsing:
            return ()
        with self.changing() as kernel:
            return tuple(reconciler.repair(self.store, kernel, report=self.remark, vpcs=chosen)[0])

    def _authorship(self, kernel: Kernel, token: str) -> Authorship:
        """Whose the change is that begins now; with a token it has to be confirmed."""
        from vpcctl.engine import history
        from vpcctl.engine.state import Authorship

        by, deadline = self.author, None
        if by.confirm is not None:
            from vpcctl.engine import confirmation

            deadline = confirmation.deadline(by.confirm, kernel.boot_id(), token)
        return Authorship(history.now(), by.user, by.acting_as, by.command, deadline, by.reason)

    @contextlib.contextmanager
    def _attended(self) -> Iterator[str]:
        """Have somebody take the change that is made meanwhile back, if it has to be confirmed: its token.

        That is the agent, where one runs.
        """
        if self.author.confirm is None:
            yield ""
            return
        from vpcctl.engine import agent_lock, confirmation

        token = confirmation.token()
        if agent_lock.running(self.store) is not None or not self.leaves_process:
            yield token
            return
        from vpcctl.engine import keeper

        with keeper.left_behind(lambda: confirmation.found(self.load(), token), self.settle, self.store.directory):
            yield token

    def settle(self) -> None:
        """Complete what is unfinished, and take an unconfirmed change back if its time is over."""
        from vpcctl.engine import reconciler

        with self.changing() as kernel:
            reconciler.settle(self.store, kernel, self.remark)

    def confirm(self) -> Unconfirmed:
        """Keep the unconfirmed change; ConflictError if nothing waits to be confirmed, or does no more."""
        from vpcctl.engine import reconciler

        with self.changing() as kernel:
            return reconciler.confirm(self.store, kernel, self.remark)

    def remark(self, words: str) -> None:
        """Report something that a person should know now."""
        self.report(Remark(words))

    def check(self, before: World, after: World) -> None:
        """Refuse too costly a change (DocumentError), and one that breaks an invariant (InvariantError)."""
        from vpcctl.compiler import bounds

        bounds.check(before, after)
        self._check_invariants(before, after)

    def _check_invariants(self, before: World, after: World) -> None:
        if not after.invariants or after is before:
            return
        from vpcctl.analysis import invariants

        broken = invariants.broken(before, after, self.host()[0])
        if broken and not self.override_invariants:
            raise InvariantError(map(str, broken))
        for one in broken:
            self.remark(f"overrides an invariant: {one}")

    def _checked(self, transform: Transform) -> Transform:
        """`transform`, run and checked before the lock is taken.

        It runs again if another command changed the state meanwhile, or if an unfinished change is completed first.
        """

        def checked(state: State) -> World:
            world = transform(state)
            self.check(state.world, world)
            return world

        try:
            known = self.load()
            world = transform(known)
        except VpcctlError:
            # It may be gone once the lock is held, and is reported then.
            return checked
        self.check(known.world, world)
        return lambda state: world if state is known else checked(state)
