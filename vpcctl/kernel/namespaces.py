"""Network namespaces by name, as ip-netns(8) keeps them under /run/netns, without starting a process.

A namespace belongs to a thread, not to a process (clone(2), setns(2)).  `entered` moves the calling thread and
always moves it back; whatever is opened inside (sockets, netlink, libnftables contexts) stays bound to the namespace
in which it was opened.  Python 3.11 has no ``os.setns``, so libc is called directly.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from vpcctl.errors import ConflictError, GoneError, KernelError
from vpcctl.names import TAGGED

RUN_NETNS = Path("/run/netns")

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 0x2

# include/uapi/linux/mount.h and fcntl.h; system calls after 423 have one number on all architectures but Alpha.
SYS_OPEN_TREE = 428
OPEN_TREE_CLONE = 0x1
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    """Call libc's `name`; raise OSError with its errno where it returns other than 0."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def system_call(number: int, *arguments: int) -> int:
    """A system call that libc has no name for; raises OSError where it fails."""
    result = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0:
        failure = ctypes.get_errno()
        raise OSError(failure, os.strerror(failure))
    return result


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    _call("unshare", flags)


def setns(descriptor: int, kind: int = 0) -> None:
    """setns(2) for the calling thread; `kind` 0 accepts a namespace of any kind."""
    _call("setns", descriptor, kind)


def mount(source: str, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); raises OSError."""
    _call(
        "mount",
        source.encode(),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )


def umount(target: str | Path, flags: int = MNT_DETACH) -> None:
    """umount2(2), lazily unless `flags` says otherwise; raises OSError."""
    _call("umount2", os.fsencode(target), flags)


def path(name: str) -> Path:
    """Where the namespace `name` is mounted, whether or not it exists."""
    return RUN_NETNS / name


def is_namespace(name: str) -> bool:
    """Is `name` a mounted namespace?  A plain file, a symbolic link or nothing at all is none."""
    location = path(name)
    try:
        status = os.lstat(location)
    except OSError:
        return False
    # A bind-mounted namespace is a file of nsfs, hence of another device than the directory that it stands in.
    return status.st_dev != os.stat(RUN_NETNS).st_dev and not location.is_symlink()


def names() -> list[str]:
    """All names under /run/netns, ours and others', sorted."""
    try:
        return sorted(os.listdir(RUN_NETNS))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def entered(name: str | None) -> Iterator[None]:
    """Move the calling thread into the namespace `name`, or of that path, for the duration; None stays where it is.

    Raises GoneError if there is no such namespace, ConflictError for one that nobody's vpcctl made: it is not entered.
    """
    if name is None:
        yield
        return
    check_ours(name)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            there = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise GoneError(f"namespace {name} is gone; `vpcctl repair` makes it again") from error
        try:
            setns(there, CLONE_NEWNET)
        except OSError as error:
            raise KernelError(f"cannot enter namespace {name}", os.strerror(error.errno)) from error
        finally:
            os.close(there)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def is_foreign(name: str | None) -> bool:
    """Is `name` a namespace that no vpcctl made?  One that is called by its whole path is nobody's but the caller's."""
    named = name is not None and "/" not in name and is_namespace(name)
    return named and not (owner(str(name)) or "").startswith(TAGGED)


def check_ours(name: str) -> None:
    """Raise ConflictError for a namespace that no vpcctl made."""
    if is_foreign(name):
        raise ConflictError(f"namespace {name} is not ours; remove or rename it, and `vpcctl repair` makes ours again")


def create(name: str, tag: str) -> None:
    """Make a new network namespace and mount it at /run/netns/`name`.

    The file that it is mounted on holds `tag`, which nobody inside can change: it tells whose the namespace is, and,
    where a crash left the bare file, whose that is.  Raises ConflictError if something else of that name is there.  A
    thread of its own is unshared and ends, so the caller's namespace is never at risk; mounting keeps the namespace
    alive.
    """
    _prepare_directory()
    _claim(name, tag)
    failure: list[BaseException] = []

    def unshare_and_mount() -> None:
        try:
            unshare(CLONE_NEWNET)
            mount("/proc/thread-self/ns/net", path(name), flags=MS_BIND)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=unshare_and_mount)
    thread.start()
    thread.join()
    if failure:
        os.unlink(path(name))
        raise KernelError(f"cannot create namespace {name}", str(failure[0])) from failure[0]


def _claim(name: str, tag: str) -> None:
    """Put a file with `tag` in it at the namespace's place, all at once; keep one that is there already."""
    directory = os.open(RUN_NETNS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    descriptor = os.open(RUN_NETNS, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o444)
    try:
        os.write(descriptor, tag.encode())
        # With a directory's descriptor this is linkat(2) with AT_SYMLINK_FOLLOW, which names an unnamed file.
        os.link(f"/proc/thread-self/fd/{descriptor}", name, dst_dir_fd=directory)
    except FileExistsError as error:
        if not is_placeholder(name, tag):
            raise ConflictError(
                f"{path(name)} exists already and is not ours; remove it or choose another name"
            ) from error
    finally:
        os.close(descriptor)
        os.close(directory)


def is_placeholder(name: str, tag: str) -> bool:
    """Is `name` the bare file of a namespace of ours whose making or removing was cut short?"""
    return not is_namespace(name) and owner(name) == tag


def owner(name: str) -> str | None:
    """The tag in the file at the namespace's place, mounted on or bare; None where there is no regular file.

    Raises OSError where the kernel lets nobody look below mounts: before Linux 5.2, or without CAP_SYS_ADMIN.
    """
    try:
        directory = _below_mounts(RUN_NETNS)
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return os.read(descriptor, 4096).decode(errors="replace")
    finally:
        os.close(descriptor)


def _below_mounts(directory: Path) -> int:
    """A descriptor of `directory` without what is mounted in it, as open_tree(2) clones it."""
    descriptor = _libc.syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(directory), OPEN_TREE_CLONE | os.O_CLOEXEC)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))
    return descriptor


def remove(name: str, tag: str) -> None:
    """Unmount and unlink the namespace `name`, which is known to be ours; absent is success.

    The kernel frees it when the last process inside ends.
    """
    if is_namespace(name):
        umount(path(name))
    if is_placeholder(name, tag):
        os.unlink(path(name))


def _prepare_directory() -> None:
    """Make /run/netns a shared mount point, as ip-netns(8) does, so that mounts in it are seen by all."""
    RUN_NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        mount("", RUN_NETNS, flags=MS_SHARED | MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise KernelError(f"cannot prepare {RUN_NETNS}", str(error)) from error
        mount(str(RUN_NETNS), RUN_NETNS, flags=MS_BIND | MS_REC)
        mount("", RUN_NETNS, flags=MS_SHARED | MS_REC)
