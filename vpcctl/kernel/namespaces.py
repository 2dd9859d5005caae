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
import threading
from collections.abc import Iterator
from pathlib import Path

from vpcctl.errors import ConflictError, GoneError, KernelError
from vpcctl.kernel import claims
from vpcctl.kernel.claims import RUN_NETNS, Claim

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

# More mounts than this on one name are deliberate.
DEEPEST = 64

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    """Call libc's `name`; raise OSError with its errno where it returns other than 0."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def system_call(number: int, *arguments: int) -> int:
    """A system call that libc has no name for; raises OSError where it fails."""
    result: int = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
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
    return claims.mounted(name) is not None


def names() -> list[str]:
    """All names under /run/netns, ours and others', sorted."""
    try:
        return sorted(os.listdir(RUN_NETNS))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def entered(name: str | None) -> Iterator[None]:
    """Move the calling thread into the namespace `name`, or of that path, for the duration; None stays where it is.

    Raises GoneError if the namespace is not there, ConflictError if it is not ours: it is not entered.
    """
    if name is None:
        yield
        return
    there = opened(name)
    try:
        with inside(there, name):
            yield
    finally:
        os.close(there)


@contextlib.contextmanager
def inside(there: int, name: str) -> Iterator[None]:
    """Likewise into the namespace of a descriptor that `opened` gave for `name`."""
    home = os.open(claims.OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            setns(there, CLONE_NEWNET)
        except OSError as error:
            raise KernelError(f"cannot enter namespace {name}", error.strerror or str(error)) from error
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def opened(name: str, tag: str = "") -> int:
    """A descriptor of the namespace `name`, or of that path, for the caller to close.

    The check is about the opened namespace, even if another one is mounted over the name meanwhile.  A namespace that
    is called by its whole path belongs to the caller.  With `tag` it must be exactly the one with that tag.  Raises
    GoneError, ConflictError.
    """
    try:
        descriptor = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise KernelError(f"cannot open namespace {name}", error.strerror or str(error)) from error
        raise GoneError(f"namespace {name} is gone; `vpcctl repair` makes it again") from error
    try:
        if "/" not in name:
            _check_opened(name, os.fstat(descriptor), tag)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_opened(name: str, status: os.stat_result, tag: str) -> None:
    if status.st_dev == os.stat(RUN_NETNS).st_dev:
        raise GoneError(f"namespace {name} is gone; `vpcctl repair` makes it again")
    why = _objection(name, (status.st_dev, status.st_ino), tag)
    if why:
        raise ConflictError(why)


def foreign(name: str | None, tag: str = "") -> str | None:
    """Why `name` is a namespace that is not ours, or not the one with `tag`, and what to type; None if it is ours.

    None too if nothing is mounted, and for a whole path, which belongs to the caller.
    """
    identity = claims.mounted(name) if name is not None and "/" not in name else None
    return _objection(str(name), identity, tag) if identity is not None else None


def displaced(name: str, tag: str) -> str | None:
    """As `foreign`, for a namespace alone that belongs elsewhere: to the host, to a router, to another instance."""
    identity = claims.mounted(name)
    return None if identity is None else _displaced(name, identity, tag, claims.read(name))


def _objection(name: str, identity: claims.Identity, tag: str) -> str | None:
    claim = claims.read(name)
    why = _displaced(name, identity, tag, claim)
    if why is None and not _is_claimed(claim, tag):
        return f"namespace {name} is not ours; remove or rename it, and `vpcctl repair` makes ours again"
    return why


def _displaced(name: str, identity: claims.Identity, tag: str, claim: Claim | None) -> str | None:
    whose = claims.stranger(name, identity, claim)
    if whose is None:
        return None
    # With nothing of ours below the mount, the name itself is in the way.
    remedy = f"umount {path(name)}" if _is_claimed(claim, tag) else f"ip netns delete {name}"
    return f"namespace {name} is {whose}; run `{remedy}`, then `vpcctl repair`"


def _is_claimed(claim: Claim | None, tag: str) -> bool:
    """Is the claim of `tag`, or where that is empty, of any vpcctl?"""
    return claim is not None and (claim.tag == tag if tag else claim.ours)


def create(name: str, tag: str) -> None:
    """Make a new network namespace and mount it at /run/netns/`name`.

    The file that it is mounted on holds `tag`, which no process inside can change.  The tag identifies the owner of the
    namespace, or of the bare file if a crash left one.  Raises ConflictError if something else of that name is there.
    A thread of its own is unshared and ends, so the caller's namespace is never at risk; mounting keeps the namespace
    alive.
    """
    _prepare_directory()
    failure: list[BaseException] = []

    def unshare_and_mount() -> None:
        try:
            unshare(CLONE_NEWNET)
            _claim(name, Claim(tag, os.stat(claims.OWN).st_ino))
            mount(claims.OWN, path(name), flags=MS_BIND)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=unshare_and_mount)
    thread.start()
    thread.join()
    if failure:
        if isinstance(failure[0], ConflictError):
            raise failure[0]
        if is_placeholder(name, tag):
            os.unlink(path(name))
        raise KernelError(f"cannot create namespace {name}", str(failure[0])) from failure[0]


def _claim(name: str, claim: Claim) -> None:
    """Claim the name; keep a bare claim of the same tag that is there already."""
    if not claims.write(name, claim):
        raise ConflictError(f"{path(name)} exists already and is not ours; remove it or choose another name")


def is_placeholder(name: str, tag: str) -> bool:
    """Is `name` the bare file of a namespace of ours whose making or removing was cut short?"""
    return not is_namespace(name) and owner(name) == tag


def owner(name: str) -> str | None:
    """The tag in the file at the namespace's place, mounted on or bare; None if it is not a regular file.

    Raises OSError where the kernel does not allow a look below mounts: before Linux 5.2, or without CAP_SYS_ADMIN.
    """
    claim = claims.read(name)
    return None if claim is None else claim.tag


def remove(name: str, tag: str) -> None:
    """Unmount and unlink the namespace `name`, which is known to be ours; absent is success.

    Every namespace that was mounted over ours goes from the name too, unless it belongs elsewhere: then ConflictError
    says whose it is, and it stays.  The kernel frees a namespace when the last process inside ends.
    """
    for _ in range(DEEPEST):
        if not is_namespace(name):
            break
        why = foreign(name, tag)
        if why:
            raise ConflictError(why)
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
