"""What the kernel reports about changes in a namespace: rtnetlink(7), and the generations of nftables.

Theory of operation.  A `Listener` is one socket that is bound to a namespace and joins multicast groups.  The kernel
queues a message for each change; if the queue is full, it drops messages and reports that once (ENOBUFS). Then anything
may have changed.

Filters in the kernel (socket(7), SO_ATTACH_FILTER) drop frequent messages that do not matter here: of nftables, all
messages except the one that ends a transaction; of neighbours, those that come and go by themselves.  A message about a
link is ignored if it differs from the last one only in carrier or counters.

Root in a namespace can send messages to a socket in it. So only messages of the kernel count, and a message that cannot
be parsed counts as a lost one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable

from vpcctl.errors import KernelError
from vpcctl.kernel import netlink
from vpcctl.kernel import rtnetlink as rt
from vpcctl.kernel.namespaces import inside, opened
from vpcctl.values import dataclass

# include/uapi/linux/netlink.h, asm-generic/socket.h
NETLINK_ADD_MEMBERSHIP, SO_ATTACH_FILTER, NLM_F_MULTI = 1, 26, 2
# enum rtnetlink_groups: links, neighbours, tc, addresses, routes, rules, settings of links, next hops
LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV4_NETCONF, NEXTHOP = 1, 3, 4, 5, 7, 8, 24, 32
HOST_GROUPS = (LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV4_NETCONF, NEXTHOP)
ROUTER_GROUPS = (*HOST_GROUPS, TC)
INSTANCE_GROUPS = (LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, NEXTHOP)
# include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
NFNLGRP_NFTABLES, NFT_MSG_NEWGEN = 7, 10 << 8 | 15
NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME = 2, 3
NETCONFA_IFINDEX, NETCONFA_FORWARDING = 1, 2
NETCONF_ALL, NETCONF_DEFAULT = -1, -2
NUD_FAILED = 0x20
# The subject of each type of message; the types of one subject are numbered NEW, DEL, GET, SET.
SUBJECTS = {
    16: "link", 20: "address", 24: "route", 28: "neighbour", 32: "rule", 36: "qdisc", 40: "qdisc", 44: "filter",
    80: "setting", 104: "next hop",
}  # fmt: skip
# So many messages are read at once, so that no namespace delays the others.
AT_ONCE = 256
BUFFER = 1 << 16
# For so many links of one namespace the last state is remembered.
REMEMBERED = 4096
# So many bytes of messages the kernel queues; the host has more to report than a namespace of ours.
HOST_QUEUE, QUEUE = 4 << 20, 256 << 10

_shared = bytearray(BUFFER)


@dataclass(frozen=True, slots=True)
class Notice:
    """A change in a namespace: its subject, a description, and the link and the neighbour's address."""

    subject: str
    words: str
    link: str = ""
    alias: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """The result of one read: changes, the number of messages, and whether others were lost."""

    changes: tuple[Notice, ...]
    messages: int
    lost: bool


class Listener:
    """A socket in a namespace (None: the caller's) that hears multicasts of one kind."""

    def __init__(self, namespace: str | None, subsystem: int, groups: Iterable[int], accept: bytes):
        """Raises KernelError if that fails, GoneError or ConflictError if the namespace is gone or not ours."""
        self.namespace = namespace
        space = None if namespace is None else opened(namespace)
        try:
            with contextlib.nullcontext() if space is None else inside(space, str(namespace)):
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, subsystem)
            try:
                _attach(self._socket, accept)
                _enlarge(self._socket, HOST_QUEUE if namespace is None else QUEUE)
                self._socket.bind((0, 0))
                for group in groups:
                    self._socket.setsockopt(netlink.SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            except BaseException:
                self._socket.close()
                raise
        except OSError as error:
            raise KernelError(f"cannot listen in {namespace or 'the host'}", str(error)) from error
        finally:
            if space is not None:
                os.close(space)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket: an open one keeps its namespace alive."""
        self._socket.close()

    def read(self) -> Heard:
        """Read the queued messages, at most AT_ONCE."""
        changes: list[Notice] = []
        count, lost = 0, False
        while count < AT_ONCE:
            try:
                length, (sender, _) = self._socket.recvfrom_into(_shared, 0, socket.MSG_DONTWAIT | socket.MSG_TRUNC)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(f"cannot listen in {self.namespace or 'the host'}", str(error)) from error
                lost = True
                continue
            count += 1
            if sender != 0:
                continue
            try:
                if length > BUFFER:
                    raise ValueError
                for kind, flags, body in netlink.notifications(bytes(memoryview(_shared)[:length])):
                    change = self._understood(kind, flags, body)
                    if change is not None:
                        changes.append(change)
            except (ValueError, IndexError, KeyError, struct.error):
                lost = True
        return Heard(tuple(changes), count, lost)

    def _understood(self, kind: int, flags: int, body: bytes) -> Notice | None:
        raise NotImplementedError


class RouteListener(Listener):
    """Reports changes of links, addresses, routes, rules, neighbours and forwarding."""

    def __init__(self, namespace: str | None, groups: Iterable[int]):
        super().__init__(namespace, socket.NETLINK_ROUTE, groups, _NEIGHBOURS)
        # By index and family: messages about a bridge's port come in two families.
        self._links: dict[tuple[int, int], object] = {}
        self._names: dict[int, tuple[str, str]] = {}
        # The answer comes through the same queue: from then on, a link that only lost its carrier is not reported.
        self._socket.send(netlink.message(rt.RTM_GETLINK, netlink.NLM_F_DUMP, rt.all_links()))

    def _understood(self, kind: int, flags: int, body: bytes) -> Notice | None:
        subject = SUBJECTS.get(kind & ~3)
        if subject is None:
            return None
        if subject == "link":
            return self._link(kind == rt.RTM_DELLINK, bool(flags & NLM_F_MULTI), body)
        if subject == "neighbour":
            found = rt.read_neighbour(body)
            name, alias = self._name(found.link)
            entry = found.address or f"MAC address {found.mac}"
            return Notice(subject, f"neighbour {entry} changed", name, alias, found.address)
        if subject == "setting":
            return self._setting(body)
        if subject == "address":
            name, alias = self._name(rt.read_address(body).link)
            return Notice(subject, f"address {rt.read_address(body).address} changed", name, alias)
        if subject == "route":
            route = rt.read_route(body)
            if route is None:
                return None
            name, alias = self._name(route.links[0]) if route.links else ("", "")
            return Notice(subject, f"route to {route.destination} changed", name, alias)
        return Notice(subject, f"{subject} changed")

    def _link(self, gone: bool, answer: bool, body: bytes) -> Notice | None:
        link = rt.Link(body)
        key, lasting = (link.index, body[0]), link.lasting
        known = self._links.get(key)
        if gone:
            self._links.pop(key, None)
        else:
            if len(self._links) >= REMEMBERED:
                self._links.clear()
                self._names.clear()
            self._links[key] = lasting
        before = self._names.get(link.index)
        if body[0] == socket.AF_UNSPEC and gone:
            self._names.pop(link.index, None)
        elif link.name:
            self._names[link.index] = link.name, link.alias or (before[1] if before else "")
        if answer or (known == lasting and not gone):
            return None
        # A renamed link is reported under its old name.
        name, alias = before or (link.name, link.alias)
        words = "is gone" if gone else "appeared" if known is None and before is None else "changed"
        return Notice("link", f"link {link.name or name} {words}", name, link.alias or alias)

    def _setting(self, body: bytes) -> Notice:
        found = netlink.fields(body[4:])
        (index,) = struct.unpack_from("=i", found[NETCONFA_IFINDEX])
        which = "forwarding" if NETCONFA_FORWARDING in found and len(found) == 2 else "a setting"
        if index in (NETCONF_ALL, NETCONF_DEFAULT):
            return Notice("setting", f"{which} of {'all' if index == NETCONF_ALL else 'new'} links changed")
        name, alias = self._name(index)
        return Notice("setting", f"{which} of link {name or index} changed", name, alias)

    def _name(self, index: int) -> tuple[str, str]:
        return self._names.get(index, ("", ""))


class RulesetListener(Listener):
    """Reports committed transactions of nftables."""

    def __init__(self, namespace: str | None):
        super().__init__(namespace, netlink.NETLINK_NETFILTER, (NFNLGRP_NFTABLES,), _GENERATIONS)

    def _understood(self, kind: int, flags: int, body: bytes) -> Notice | None:
        if kind != NFT_MSG_NEWGEN:
            return None
        found = netlink.fields(body[4:])
        name = found.get(NFTA_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
        who = f" by {name}" if name else ""
        if NFTA_GEN_PROC_PID in found:
            who += f" (process {struct.unpack('!I', found[NFTA_GEN_PROC_PID])[0]})"
        return Notice("ruleset", f"nftables changed{who}")


# -- filters -------------------------------------------------------------------------------------------------------
# Classic BPF (linux/filter.h): operation, two jumps, a value.  It loads in network order, and netlink's numbers are the
# machine's.

_LOAD_HALF, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x28, 0x15, 0x45, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_TYPE, _NEIGHBOUR_STATE = 4, 16 + 8  # offsets in struct nlmsghdr, and behind it in struct ndmsg
_ALL = 0xFFFFFFFF


def _half(value: int) -> int:
    """A number of two bytes in the order in which a filter loads it."""
    return int.from_bytes(value.to_bytes(2, sys.byteorder), "big")


def _program(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


# Accept permanent neighbours, deleted ones (NUD_FAILED comes first), and all messages about other subjects.
_NEIGHBOURS = _program(
    (_LOAD_HALF, 0, 0, _TYPE),
    (_JUMP_EQUAL, 0, 2, _half(rt.RTM_NEWNEIGH)),
    (_LOAD_HALF, 0, 0, _NEIGHBOUR_STATE),
    (_JUMP_SET, 0, 1, _half(rt.NUD_PERMANENT | NUD_FAILED)),
    (_RETURN, 0, 0, _ALL),
    (_RETURN, 0, 0, 0),
)
_GENERATIONS = _program(
    (_LOAD_HALF, 0, 0, _TYPE),
    (_JUMP_EQUAL, 0, 1, _half(NFT_MSG_NEWGEN)),
    (_RETURN, 0, 0, _ALL),
    (_RETURN, 0, 0, 0),
)


def _attach(channel: socket.socket, program: bytes) -> None:
    """Make the kernel queue only the messages that the filter accepts."""
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    place = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    channel.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, place)


def _enlarge(channel: socket.socket, size: int) -> None:
    """Set the size of the queue in bytes; without the privilege, as much of it as everybody may have."""
    force = 33  # SO_RCVBUFFORCE, include/uapi/asm-generic/socket.h
    try:
        channel.setsockopt(socket.SOL_SOCKET, force, size)
    except OSError:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
