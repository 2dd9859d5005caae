"""The process that a command leaves behind where no agent runs: it takes a change back unless it is confirmed in time.

It is started before the change, so that no death of the command comes too early for it.  It has a session of its own,
no terminal and no descriptor of the command but one end of a pipe, which tells it that the command has ended.  It ends
by itself as soon as nothing waits to be confirmed any more.  If it dies itself, the next command takes the change back.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from vpcctl.engine import confirmation
from vpcctl.engine.state import Deadline
from vpcctl.errors import VpcctlError
from vpcctl.kernel.directories import Directories

# A failure is tried again after 1, 2, 4, … RETRY_MOST seconds, so many times.
RETRY_FIRST, RETRY_MOST, ATTEMPTS = 1.0, 60.0, 100


@contextlib.contextmanager
def left_behind(find: Callable[[], Deadline | None], settle: Callable[[], None], directory: Path) -> Iterator[None]:
    """Have a process take the change that is made meanwhile back, unless it is confirmed in time.

    `find` returns the deadline that is on record for the change, `settle` takes back what is due, `directory` is that
    of the record.  Nothing that either of them uses may be open now.
    """
    ended, held = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.fork()
        if child == 0:
            _begin(ended, find, settle, directory)
        os.waitpid(child, 0)
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(ended)
    try:
        yield
    finally:
        os.close(held)


def _begin(ended: int, find: Callable[[], Deadline | None], settle: Callable[[], None], directory: Path) -> None:
    """Never returns, and raises nothing: this is a copy of somebody else's process."""
    try:
        os.setsid()
        if os.fork() == 0:
            directory = directory.absolute()
            _detach(ended)
            keep(ended, find, settle, directory)
    finally:
        os._exit(0)


def _detach(ended: int) -> None:
    """Let go of everything that is the command's."""
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    highest = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, ended)
    os.closerange(ended + 1, highest)


def keep(ended: int, find: Callable[[], Deadline | None], settle: Callable[[], None], directory: Path) -> None:
    """Take the change back when its time is over; returns when there is nothing to take back.

    `ended` is readable once the command has ended.
    """
    running, failures = True, 0
    directories = Directories()
    while failures < ATTEMPTS:
        # Listening comes before looking, so that nothing happens unseen between them.
        directories.watch(directory)
        wait = None
        try:
            deadline = find()
            if deadline is None and not running:
                return
            if deadline is not None:
                wait = max(0.0, confirmation.remaining(deadline))
                if not wait:
                    settle()
                    deadline = find()
                    if deadline is not None and confirmation.remaining(deadline) <= 0:
                        failures += 1
                        wait = _delay(failures)
                    elif deadline is None and not running:
                        return
        except VpcctlError:
            failures += 1
            wait = _delay(failures)
        heard = directories.fileno()
        ready, _, _ = select.select([heard, ended] if running else [heard], [], [], wait)
        if ended in ready:
            running = False
            os.close(ended)
        if heard in ready:
            directories.read()


def _delay(failures: int) -> float:
    return min(RETRY_MOST, RETRY_FIRST * 2.0 ** min(failures - 1, 10))
