"""Who owns the network namespace that is mounted under a name?

Theory of operation.  Each of our namespaces is mounted on a file, the *claim*.  The claim holds the namespace's tag and
its inode number.  No process inside can reach that file, but root on the host can mount another namespace over it.  So
the mounted namespace is identified by its numbers in nsfs, the pair (st_dev, st_ino), and these rules apply in order:

1. The namespace of the calling thread belongs to the host, and that of process 1 to the machine.
2. A namespace whose number is in the claim below it is the right one.
3. A namespace whose number is in another name's claim belongs to that name.  Older versions wrote claims without a
   number: then the namespace that is mounted on the claim belongs to its name.
4. Any other namespace was mounted there on purpose, for example a container's, and is the instance.

Rules 1 and 2 read one claim.  Rule 3 needs all claims; they are read once, and again after a name appeared or went.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections import defaultdict
from pathlib import Path

from vpcctl.names import TAGGED
from vpcctl.values import dataclass

RUN_NETNS = Path("/run/netns")
# The namespace in which vpcctl itself runs, and the machine's.
OWN, FIRST_PROCESS = "/proc/thread-self/ns/net", "/proc/1/ns/net"

# include/uapi/linux/mount.h and fcntl.h; system calls after 423 have one number on all architectures but Alpha.
SYS_OPEN_TREE = 428
OPEN_TREE_CLONE = 0x1
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
_TEXT = re.compile(r"(?P<tag>[^\n]+)\n(?P<inode>[0-9]{20})\n")

Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Claim:
    """The content of the file below a mount; `inode` is None if an older version wrote it."""

    tag: str
    inode: int | None = None

    @property
    def ours(self) -> bool:
        """Did vpcctl write this claim?  The state directory does not matter."""
        return self.tag.startswith(TAGGED)

    def text(self) -> str:
        """The file's content."""
        return self.tag if self.inode is None else f"{self.tag}\n{self.inode:020d}\n"


def parse(text: str) -> Claim:
    """The claim in a file's content; text in any other form is taken as the tag."""
    match = _TEXT.fullmatch(text)
    return Claim(match["tag"], int(match["inode"])) if match else Claim(text)


# -- files ---------------------------------------------------------------------------------------------------------


def read(name: str) -> Claim | None:
    """The claim of the name, whether something is mounted on it or not; None if it is not a regular file.

    Raises OSError if the kernel cannot show what is below mounts: before Linux 5.2, or without CAP_SYS_ADMIN.
    """
    return _read(name, _below_mounts())


def _read(name: str, below: int) -> Claim | None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=below)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return parse(os.read(descriptor, 4096).decode(errors="replace"))
    finally:
        os.close(descriptor)


def write(name: str, claim: Claim) -> bool:
    """Create the claim of the name in one step; return False if the name is taken by something with another tag.

    After a crash the claim may exist without a mount: it is rewritten with the new inode number.
    """
    global _known
    directory = os.open(RUN_NETNS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = os.open(RUN_NETNS, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o444)
    except OSError:
        os.close(directory)
        raise
    try:
        os.write(descriptor, claim.text().encode())
        # With a directory's descriptor this is linkat(2) with AT_SYMLINK_FOLLOW, which names an unnamed file.
        os.link(f"/proc/thread-self/fd/{descriptor}", name, dst_dir_fd=directory)
    except FileExistsError:
        found = read(name)
        if found is None or found.tag != claim.tag or mounted(name) is not None:
            return False
        with open(os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory), "wb", 0) as bare:
            bare.write(claim.text().encode())
    finally:
        # A directory's times are coarse: the registry would miss a name that was made in the same tick.
        _known = None
        os.close(descriptor)
        os.close(directory)
    return True


# The directory of names at the last use, and a descriptor of it without its mounts.
_below: tuple[Identity, int] | None = None


def _below_mounts() -> int:
    """A descriptor of a clone of the directory of names (open_tree(2)), which has none of the mounts in it.

    It always shows the present files of the directory.  It is kept open, because the kernel waits some 0.2 ms for
    other processors when a clone is closed.
    """
    global _below
    status = os.stat(RUN_NETNS)
    identity = status.st_dev, status.st_ino
    if _below is not None and _below[0] == identity:
        return _below[1]
    descriptor: int = _libc.syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(RUN_NETNS), OPEN_TREE_CLONE | os.O_CLOEXEC)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(RUN_NETNS))
    if _below is not None:
        os.close(_below[1])
    _below = identity, descriptor
    return descriptor


# -- mounts --------------------------------------------------------------------------------------------------------


def mounted(name: str) -> Identity | None:
    """The identity of the namespace mounted under `name`; None for a plain file, a symbolic link or no file."""
    try:
        return _mounted(f"{RUN_NETNS}/{name}", os.stat(RUN_NETNS).st_dev)
    except OSError:
        return None


def _mounted(place: str, device: int) -> Identity | None:
    try:
        status = os.lstat(place)
    except OSError:
        return None
    # A mounted namespace is a file of nsfs, so its device differs from that of the directory.
    apart = status.st_dev != device and not stat.S_ISLNK(status.st_mode)
    return (status.st_dev, status.st_ino) if apart else None


def stranger(name: str, identity: Identity, claim: Claim | None) -> str | None:
    """The owner of the namespace mounted under `name`, in words; None if it may belong to `name`."""
    if identity == _identity(OWN):
        return "the host's own namespace"
    if identity == _identity(FIRST_PROCESS):
        return "the namespace of the machine's process 1"
    if claim is not None and claim.ours and claim.inode == identity[1]:
        return None
    others = sorted(other for other in _registry().names(identity) if other != name and _owns(other, identity))
    return f"the namespace of {others[0]}" if others else None


def own_name() -> str | None:
    """The name of the namespace in which vpcctl itself runs; None if it is not one of ours, as on the host."""
    identity = _identity(OWN)
    if identity is None or not RUN_NETNS.is_dir():
        return None
    return next((name for name in sorted(_registry().names(identity)) if _made_for(name, identity)), None)


def _made_for(name: str, identity: Identity) -> bool:
    claim = read(name)
    return claim is not None and claim.inode == identity[1] and _owns(name, identity)


def _identity(place: str) -> Identity | None:
    """The identity of a namespace's file; None if it cannot be read."""
    try:
        status = os.stat(place)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _owns(name: str, identity: Identity) -> bool:
    """Does the name own the namespace `identity` now?"""
    claim = read(name)
    if claim is None or not claim.ours:
        return False
    return claim.inode == identity[1] if claim.inode is not None else mounted(name) == identity


@dataclass(frozen=True, slots=True)
class _Registry:
    """All names, by the inode number in their claims and by the namespace mounted there, at the time `read`."""

    read: int
    claimed: dict[int, set[str]]
    mounts: dict[Identity, set[str]]

    def names(self, identity: Identity) -> set[str]:
        """The names that may own the namespace."""
        return self.claimed.get(identity[1], set()) | self.mounts.get(identity, set())


_known: _Registry | None = None


def _registry() -> _Registry:
    """The registry, read again if a name appeared or went since the last call."""
    global _known
    changed = os.stat(RUN_NETNS).st_mtime_ns
    if _known is None or _known.read != changed:
        _known = _read_registry(changed)
    return _known


def _read_registry(changed: int) -> _Registry:
    claimed: dict[int, set[str]] = defaultdict(set)
    mounts: dict[Identity, set[str]] = defaultdict(set)
    # Every command that changes something checks all names, so what is the same for all is computed once.
    below, device = _below_mounts(), os.stat(RUN_NETNS).st_dev
    for entry in os.scandir(RUN_NETNS):
        name, identity, claim = entry.name, _mounted(entry.path, device), _read(entry.name, below)
        if claim is not None and claim.inode is not None:
            claimed[claim.inode].add(name)
        elif identity is not None:
            mounts[identity].add(name)
    return _Registry(changed, claimed, mounts)
