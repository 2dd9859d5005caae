"""Where else a user has processes.  Processes of one user may trace each other (ptrace(2)) in any network.

A descriptor that another process holds can be copied by pidfd_getfd(2), sockets included.  The kernel asks whether the
users are the same; it does not ask about network namespaces.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from vpcctl.kernel import namespaces
from vpcctl.values import dataclass

# So many processes are looked at, which takes a fraction of a second.
LIMIT = 20_000


@dataclass(frozen=True, slots=True)
class Presence:
    """One process of the user's in a network of its own: the host's, a named namespace, or one without a name."""

    process: int
    host: bool
    namespace: str | None


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """One process for each other network; `complete` unless there were more processes than are looked at."""

    presences: tuple[Presence, ...]
    complete: bool


def elsewhere(uid: int, namespace: str) -> Elsewhere:
    """In which networks besides that of `namespace` processes of the user run."""
    processes = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    found = _networks(uid, sorted(processes)[:LIMIT])
    found.pop(_inode(namespaces.path(namespace)), None)
    host = _inode(Path("/proc/self/ns/net"))
    named = {_inode(namespaces.path(name)): name for name in namespaces.names()} if found else {}
    presences = (Presence(process, inode == host, named.get(inode)) for inode, process in found.items())
    return Elsewhere(tuple(presences), len(processes) <= LIMIT)


def _networks(uid: int, processes: Iterable[int]) -> dict[int | None, int]:
    """The inodes of the network namespaces in which the user has processes, with the first process in each."""
    found: dict[int | None, int] = {}
    for process in processes:
        try:
            # The owner of the directory is the effective user, also of a process that may not be traced (proc(5)).
            if os.stat(f"/proc/{process}").st_uid == uid:
                number = re.fullmatch(r"net:\[(\d+)\]", os.readlink(f"/proc/{process}/ns/net"))
                found.setdefault(int(number[1]) if number else None, process)
        except OSError:  # it has ended
            continue
    return found


def _inode(file: Path) -> int | None:
    try:
        return os.stat(file).st_ino
    except OSError:
        return None
