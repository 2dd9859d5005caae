"""Remembers which rulesets were right at which generation of nftables: if unchanged since, they need no comparison.

Theory of operation.  To compare a ruleset with what is loaded, it is compiled, loaded in a scratch namespace, and both
are listed.  nftables counts the transactions of each network namespace (NFT_MSG_GETGEN, nfnetlink's `base_seq` in
net/netfilter/nf_tables_api.c).  While that number stays the one at which a ruleset was right, nobody has changed a
rule, set, chain or table.  A namespace is identified by its cookie (SO_NETNS_COOKIE, Linux 5.14), which is unique until
the next boot.

The notes are a cache in a file system that is empty after a boot. A note that is missing, damaged or of another version
of the program costs one comparison.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import vpcctl
from vpcctl.documents import files
from vpcctl.kernel import netlink
from vpcctl.resources.kinds import Ruleset

NOTES = Path("/run/vpcctl/verified.json")
# include/uapi/asm-generic/socket.h
SO_NETNS_COOKIE = 71
# Subsystem 10 is that of nf_tables; include/uapi/linux/netfilter/nf_tables.h
NFT_MSG_GETGEN, NFTA_GEN_ID = 10 << 8 | 16, 1
# More than the namespaces of a large host; the oldest notes are removed first.
MOST = 8192

# Tag, fingerprint and generation of a ruleset, and the number of nftables' transactions at which it was right.
Note = tuple[str, str, int, int]


class Stamp(NamedTuple):
    """The cookie of a network namespace, and the number of nftables' transactions in it."""

    cookie: int
    transactions: int


def stamp(channel: netlink.Channel | None = None) -> Stamp | None:
    """The stamp of the namespace of `channel`, a socket of NETLINK_NETFILTER, or of the calling thread's.

    None if the kernel has no cookies.
    """
    if channel is not None:
        return _stamp(channel)
    with contextlib.closing(netlink.Channel(netlink.NETLINK_NETFILTER)) as own:
        return _stamp(own)


def _stamp(channel: netlink.Channel) -> Stamp | None:
    try:
        cookie = channel.option(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        raise
    # struct nfgenmsg, then the attributes
    answer = netlink.fields(channel.single(NFT_MSG_GETGEN, bytes(4))[4:])
    (transactions,) = struct.unpack("!I", answer[NFTA_GEN_ID])
    return Stamp(int.from_bytes(cookie, sys.byteorder), transactions)


class Notes:
    """The notes of one file, read on first use; with None they exist in this process only."""

    def __init__(self, place: Path | None = None):
        self._place = place
        self._read: dict[str, Note] | None = None
        self._changed = False

    @property
    def _notes(self) -> dict[str, Note]:
        if self._read is None:
            self._read = {} if self._place is None else _read(self._place)
        return self._read

    def holds(self, stamp: Stamp | None, item: Ruleset) -> bool:
        """Was the ruleset right in the namespace of the stamp, and nothing changed since?"""
        return stamp is not None and self._notes.get(str(stamp.cookie)) == _note(item, stamp)

    def learn(self, stamp: Stamp | None, item: Ruleset) -> None:
        """Note that the ruleset was right at this stamp."""
        if stamp is not None:
            self._notes.pop(str(stamp.cookie), None)
            self._notes[str(stamp.cookie)] = _note(item, stamp)
            self._changed = True

    def save(self) -> None:
        """Write the file if anything is new; a failure is ignored."""
        if not self._changed or self._place is None:
            return
        self._changed = False
        kept = dict(list(self._notes.items())[-MOST:])
        content = json.dumps({"program": program(), "notes": kept}, separators=(",", ":")).encode()
        # Several processes may write at once; each renames a complete file of its own.
        temporary = self._place.with_name(f".{self._place.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._place.parent, 0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(content)
            os.rename(temporary, self._place)


def _read(place: Path) -> dict[str, Note]:
    try:
        document = json.loads(files.read(place, files.LARGEST_STATE, follow=False, owners={os.geteuid()}))
        if document["program"] != program():
            return {}
        return {
            cookie: (str(tag), str(fingerprint), int(generation), int(transactions))
            for cookie, (tag, fingerprint, generation, transactions) in document["notes"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _note(item: Ruleset, stamp: Stamp) -> Note:
    return item.tag, item.fingerprint, item.generation, stamp.transactions


@functools.cache
def program() -> str:
    """Identifies the version of the program, even between releases: by the newest change of its sources."""
    return f"{vpcctl.__version__} {newest('compiler', 'model', 'resources')}"


def newest(*packages: str) -> int:
    """When a file of these packages of ours was changed last, in nanoseconds."""
    return max(map(_newest, packages))


def _newest(package: str) -> int:
    """When a file of the package was changed last, in nanoseconds."""
    entries: Iterable[os.DirEntry[str]] = os.scandir(Path(vpcctl.__file__).parent / package)
    return max((entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(".py")), default=0)
