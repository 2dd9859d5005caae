"""The only function that reads files: regular files of bounded size, without blocking.

A name may lead to anything: a device that never ends, a pipe without a writer, a file that is mostly a hole.  So a
file is opened without waiting (O_NONBLOCK, open(2)), judged by its descriptor, and read up to a bound.  Its reported
size does not matter: files of procfs report 0, and others grow meanwhile.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import select
import stat
import sys
from collections.abc import Callable, Collection
from pathlib import Path

MIB = 1 << 20
# A policy of 100,000 rules, each on eight lines with a description, has 20 MB.
LARGEST_DOCUMENT = 32 * MIB
# The record of many such policies, twice while one of them changes.  Reading it takes about ten times the memory.
LARGEST_STATE = 256 * MIB
# A line that says who holds the lock, a unit file, a snippet of a daemon's configuration.
LARGEST_NOTE = MIB

_CHUNK = MIB
_OWN_DESCRIPTORS = "/dev/fd"
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnfitFileError(OSError):
    """Something that is not read; `strerror` says why, as it does for what the kernel refuses."""


def read(
    place: str | Path,
    most: int,
    *,
    directory: int | None = None,
    follow: bool = True,
    owners: Collection[int] | None = None,
) -> bytes:
    """The content of a regular file of at most `most` bytes; OSError for everything else.

    `place` is below the descriptor `directory` where that is given.  `follow` follows a symbolic link in the last part
    of `place`; `owners` are the users who may own the file, None means any user.
    """
    # Looked at first: opening a device can already set something off.
    _check(os.stat(place, dir_fd=directory, follow_symlinks=follow), most, owners)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(place, flags, dir_fd=directory)
    try:
        _check(os.fstat(descriptor), most, owners)
        return _bounded(functools.partial(os.read, descriptor), most)
    finally:
        os.close(descriptor)


def check_own(descriptor: int) -> None:
    """UnfitFileError unless `descriptor` is a regular file of the user who runs the program."""
    _check(os.fstat(descriptor), sys.maxsize, {os.geteuid()})


def read_given(place: str, most: int) -> bytes:
    """Likewise for a file that the caller named: ``-``, /dev/stdin and /dev/fd/N are the caller's own open files.

    These may be pipes, as a shell makes them for ``<(…)``, and are waited for.
    """
    descriptor = _own_descriptor(place)
    if place == "-":
        return _standard_input(most)
    if descriptor is None or stat.S_ISREG(os.fstat(descriptor).st_mode):
        return read(place, most)
    return _bounded(functools.partial(_patient, descriptor), most)


def _check(status: os.stat_result, most: int, owners: Collection[int] | None) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        raise UnfitFileError(errno.ELOOP, os.strerror(errno.ELOOP))
    if kind != stat.S_IFREG:
        found = _KINDS.get(kind, "of an unknown kind")
        raise UnfitFileError(errno.EINVAL, f"it is {found}; a regular file is expected")
    if owners is not None and status.st_uid not in owners:
        raise UnfitFileError(errno.EPERM, f"it belongs to user {status.st_uid}")
    if status.st_size > most:
        raise _too_large(f"it has {status.st_size} bytes", most)


def _too_large(found: str, most: int) -> UnfitFileError:
    return UnfitFileError(errno.EFBIG, f"{found}; at most {most} are allowed")


def _bounded(take: Callable[[int], bytes], most: int) -> bytes:
    """All that `take` gives, piece by piece."""
    found = bytearray()
    while piece := take(min(_CHUNK, most + 1 - len(found))):
        found += piece
        if len(found) > most:
            raise _too_large(f"it has more than {most} bytes", most)
    return bytes(found)


def _patient(descriptor: int, size: int) -> bytes:
    """os.read of a pipe, even if another process has made it non-blocking."""
    while True:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            waiting.poll()


def _standard_input(most: int) -> bytes:
    if sys.stdin is None:
        raise UnfitFileError(errno.EBADF, "standard input is closed")
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):
        # Not a file, but an object that replaces one.
        content = io.BytesIO(sys.stdin.read(most + 1).encode("utf-8", "surrogatepass"))
        return _bounded(content.read, most)
    return _bounded(functools.partial(_patient, descriptor), most)


def _own_descriptor(place: str) -> int | None:
    """The number of our own descriptor that `place` names, None if it names none."""
    if place == "/dev/stdin":
        return 0
    folder, _, number = place.rpartition("/")
    try:
        # Where the directory really is, as some shells name it; other links to it are not what a shell writes.
        own = folder in (_OWN_DESCRIPTORS, os.readlink(_OWN_DESCRIPTORS))
    except OSError:
        own = False
    return int(number) if own and re.fullmatch(r"[0-9]{1,9}", number) else None
