"""Who besides the owner may read the record: the members of one group, if they were given the right.

The state directory itself says so: it belongs to the group, the group may read it, and it has the set-group-ID bit, so
that the kernel gives every new file in it to the group (inode(7)).  Whoever writes a part, the state file or the
history lets the group read it.  The lock files stay closed: a reader that could open them could hold up writers
(flock(2)).
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
from collections.abc import Iterator

from vpcctl.engine import parts
from vpcctl.engine.state import HISTORY, STATE_FILE, Store
from vpcctl.errors import ConflictError, KernelError, PrivilegeError, StateError


def group_id(name: str) -> int:
    """The number of a group; ConflictError if the system does not know it."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConflictError(f"group {name!r} not found; `getent group` lists them, `groupadd` makes one") from None


def reading_group(store: Store) -> str | None:
    """The group that may read the record, by name or else by number; None if no group may."""
    try:
        status = os.lstat(store.directory)
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(status.st_mode) or not parts.is_shared(status):
        return None
    try:
        return grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        return str(status.st_gid)


def grant(store: Store, group: int) -> None:
    """Let a group read the record, now and after later changes; a group that could until now no longer can."""
    with store.locked(), _told(store):
        directory = _opened(store)
        try:
            # Closed first, so that no former group reads what is changed meanwhile; the directory is opened last.
            os.fchmod(directory, parts.PRIVATE)
            for descriptor, is_folder in _members(directory):
                os.fchown(descriptor, -1, group)
                os.fchmod(descriptor, parts.SHARED if is_folder else parts.READABLE)
            os.fchown(directory, -1, group)
            os.fchmod(directory, parts.SHARED)
            os.fsync(directory)
        finally:
            os.close(directory)


def revoke(store: Store) -> None:
    """Let nobody but the owner read the record."""
    with store.locked(), _told(store):
        directory = _opened(store)
        try:
            os.fchmod(directory, parts.PRIVATE)
            for descriptor, is_folder in _members(directory):
                os.fchmod(descriptor, parts.PRIVATE if is_folder else parts.PRIVATE_FILE)
            os.fsync(directory)
        finally:
            os.close(directory)


def _opened(store: Store) -> int:
    return os.open(store.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _members(directory: int) -> Iterator[tuple[int, bool]]:
    """A descriptor of each file of the record, and of each directory in it after its files; is it a directory?"""
    for inner in (parts.FOLDER, HISTORY):
        with contextlib.suppress(FileNotFoundError):
            folder = parts.opened(inner, directory)
            try:
                for name in os.listdir(folder):
                    yield from _file(name, folder)
                yield folder, True
            finally:
                os.close(folder)
    yield from _file(STATE_FILE, directory)


def _file(name: str, directory: int) -> Iterator[tuple[int, bool]]:
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            yield descriptor, False
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told(store: Store) -> Iterator[None]:
    try:
        yield
    except (StateError, ConflictError, KernelError):
        raise
    except PermissionError as error:
        raise PrivilegeError(f"cannot change who may read {store.directory} ({error.strerror}); use sudo") from error
    except OSError as error:
        raise StateError(f"cannot change who may read {store.directory}: {error.strerror}") from error
