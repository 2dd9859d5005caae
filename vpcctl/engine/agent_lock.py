"""The lock file of the agent: at most one agent runs for each state directory, and `status` shows since when.

The lock is a flock(2), so it ends with its process.  The file names the holder; without the lock its content means
nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vpcctl.engine.state import Store
from vpcctl.errors import ConflictError, StateError
from vpcctl.values import dataclass

AGENT_FILE = "agent.lock"
# A process that checks whether an agent runs holds the lock for an instant.
PATIENCE, INTERVAL = 1.0, 0.02
LONGEST = 512


@dataclass(frozen=True, slots=True)
class RunningAgent:
    """The agent of a state directory: its process, and when it started (RFC 3339); None and empty if unknown."""

    process: int | None
    since: str

    def __str__(self) -> str:
        return f"process {self.process or '?'}, since {self.since or '?'}"


@contextlib.contextmanager
def held(store: Store) -> Iterator[None]:
    """Be the agent of the store; ConflictError if another one runs."""
    lock = store.open_lock(AGENT_FILE)
    try:
        _take(lock, store.directory)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        # On a full disk the lock still holds, but the file does not name the holder.
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps({"pid": os.getpid(), "since": now}).encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(lock, 0)
    finally:
        os.close(lock)


def _take(lock: int, directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"an agent runs for {directory} already ({_read(lock)}); stop it first, or use that one"
                ) from None
            time.sleep(INTERVAL)
        except OSError as error:
            raise StateError(f"cannot lock {directory / AGENT_FILE}: {os.strerror(error.errno or 0)}") from error


def running(store: Store) -> RunningAgent | None:
    """The agent that runs now; None if none does.  Changes nothing."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        lock = os.open(store.directory / AGENT_FILE, flags)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _read(lock)
    except OSError:
        return None
    finally:
        os.close(lock)


def _read(lock: int) -> RunningAgent:
    try:
        document = json.loads(os.pread(lock, LONGEST, 0))
        return RunningAgent(int(document["pid"]), str(document["since"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return RunningAgent(None, "")
