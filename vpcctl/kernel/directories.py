"""Reports files that are created, removed or replaced in a directory (inotify(7)), and mounts and unmounts."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from vpcctl.values import dataclass

_libc = ctypes.CDLL(None, use_errno=True)

# include/uapi/linux/inotify.h
IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_Q_OVERFLOW, IN_IGNORED = 0x400, 0x800, 0x4000, 0x8000
IN_ONLYDIR, IN_DONT_FOLLOW = 0x0100_0000, 0x0200_0000
WATCHED = (
    IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF
    | IN_ONLYDIR | IN_DONT_FOLLOW
)  # fmt: skip
# struct inotify_event: watch, mask, cookie, length of the name
_EVENT = struct.Struct("=iIII")
BUFFER = 1 << 16
# A process polls this file to learn that its mounts changed (proc(5), /proc/[pid]/mounts).
MOUNTS = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True)
class FileChange:
    """A changed file of a directory; the name is empty if the directory itself changed, or if events were lost."""

    directory: Path | None
    name: str


class Directories:
    """Watched directories.  A directory that is absent, or is removed, can be watched again when it exists."""

    def __init__(self) -> None:
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._watched: dict[int, Path] = {}

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)

    def watch(self, directory: Path) -> bool:
        """Watch a directory; False if it is absent.  Watching it twice does no harm."""
        try:
            number = _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(directory), WATCHED))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        self._watched[number] = directory
        return True

    def read(self) -> list[FileChange]:
        """What changed since the last call."""
        found: list[FileChange] = []
        while True:
            try:
                data = os.read(self._descriptor, BUFFER)
            except BlockingIOError:
                return found
            found += self._parsed(data)

    def _parsed(self, data: bytes) -> list[FileChange]:
        found, place = [], 0
        while place + _EVENT.size <= len(data):
            number, mask, _, length = _EVENT.unpack_from(data, place)
            name = data[place + _EVENT.size : place + _EVENT.size + length].rstrip(b"\0")
            place += _EVENT.size + length
            directory = self._watched.get(number)
            if mask & IN_IGNORED:
                self._watched.pop(number, None)
            found.append(FileChange(directory, os.fsdecode(name)))
        return found


def open_mounts() -> int:
    """A descriptor that epoll(7) reports with EPOLLPRI after a mount or an unmount."""
    return os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
