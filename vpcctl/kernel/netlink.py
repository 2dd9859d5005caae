"""The framing of netlink(7): requests, attributes and answers, and a socket for them.

For what pyroute2 has no part for, or is too slow for: importing it takes longer than answering a question, each of its
requests takes milliseconds, and it decodes an entry of connection tracking in a third of one.  Slices keep the type of
the data that they are taken from: memoryview where there is much of it, bytes elsewhere.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from typing import TypeVar

# include/uapi/linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLMSG_ERROR, NLMSG_DONE = 2, 3
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 12
NETLINK_NETFILTER = 12
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
# Bytes to receive at once.  The kernel never sends more; a link with all the names that it can have takes 64 KiB.
BUFFER = 1 << 18
# How often a list is asked for again that changed while the kernel wrote it.
DUMPS = 10

# struct nlmsghdr: length, type, flags, sequence number, port; struct nlattr: length, type
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")

Data = TypeVar("Data", bytes, memoryview)


def message(kind: int, flags: int, body: bytes, number: int = 0) -> bytes:
    """A request of type `kind`, as it is sent; answers bear its `number`."""
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, number, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(inner))


def messages(data: Data) -> Iterator[tuple[int, Data]]:
    """The type and the body of each message in what was received at once."""
    return ((kind, body) for kind, _, _, body in _whole_messages(data))


def notifications(data: Data) -> Iterator[tuple[int, int, Data]]:
    """Likewise type, flags and body."""
    return ((kind, flags, body) for kind, flags, _, body in _whole_messages(data))


def _whole_messages(data: Data) -> Iterator[tuple[int, int, int, Data]]:
    """Likewise type, flags, number and body."""
    place, end = 0, len(data)
    while place + _HEADER.size <= end:
        length, kind, flags, number, _ = _HEADER.unpack_from(data, place)
        if length < _HEADER.size:
            return
        yield kind, flags, number, data[place + _HEADER.size : place + length]
        place += (length + 3) & ~3


def attributes(data: Data) -> Iterator[tuple[int, Data]]:
    """The type, without flags, and the value of each attribute in `data`."""
    place, end = 0, len(data)
    while place + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        if length < _ATTRIBUTE.size:
            return
        yield kind & NLA_TYPE_MASK, data[place + _ATTRIBUTE.size : place + length]
        place += (length + 3) & ~3


def fields(data: Data) -> dict[int, Data]:
    """The attributes in `data` by type; if a type occurs several times, its last attribute."""
    found, place, end = {}, 0, len(data)
    while place + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        if length < 4:
            break
        found[kind & NLA_TYPE_MASK] = data[place + 4 : place + length]
        place += (length + 3) & ~3
    return found


def error_number(body: Data) -> int:
    """The error (errno(3)) in the body of NLMSG_ERROR or NLMSG_DONE; 0 for success."""
    return -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0


class NetlinkError(OSError):
    """The kernel refused a request; `errno` says why."""

    def __init__(self, number: int):
        super().__init__(number, os.strerror(number))


def check(body: Data) -> None:
    """Raise NetlinkError for an error in such a body."""
    number = error_number(body)
    if number:
        raise NetlinkError(number)


def dumped(channel: socket.socket) -> Iterator[tuple[int, memoryview]]:
    """The type and the body of each message of a dump that was asked for; NetlinkError where it fails, also midway."""
    while True:
        for kind, body in messages(memoryview(channel.recv(BUFFER))):
            if kind in (NLMSG_DONE, NLMSG_ERROR):
                return check(body)
            yield kind, body


class Channel:
    """A socket of netlink in the namespace in which it is opened: one request after the other.

    Each request has its number.  What is left of the answer to one that was interrupted is passed over.
    """

    def __init__(self, subsystem: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, subsystem)
        # An acknowledgement is not to repeat the request.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._numbers = itertools.count(1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def option(self, level: int, name: int, length: int) -> bytes:
        """An option of the socket (getsockopt(2)) of so many bytes."""
        return self._socket.getsockopt(level, name, length)

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """Have the kernel change something; NetlinkError where it refuses."""
        for answer, _, found in self._answers(kind, NLM_F_ACK | flags, body):
            if answer == NLMSG_ERROR:
                return check(found)

    def single(self, kind: int, body: bytes) -> bytes:
        """The one message that answers a question; NetlinkError where the kernel has none."""
        for answer, _, found in self._answers(kind, 0, body):
            if answer != NLMSG_ERROR:
                return found
            check(found)
        raise AssertionError  # the kernel answers

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The messages of a list; NetlinkError where it fails, or changes each time while it is written."""
        for _ in range(DUMPS):
            found, whole = [], True
            for answer, flags, message_body in self._answers(kind, NLM_F_DUMP, body):
                whole &= not flags & NLM_F_DUMP_INTR
                if answer in (NLMSG_DONE, NLMSG_ERROR):
                    check(message_body)
                    break
                found.append(message_body)
            if whole:
                return found
        raise NetlinkError(errno.EINTR)

    def _answers(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Type, flags and body of each message that answers a request, without end."""
        wanted = next(self._numbers) & 0xFFFFFFFF
        self._socket.send(message(kind, flags, body, wanted))
        while True:
            for answer, found, number, answer_body in _whole_messages(self._socket.recv(BUFFER)):
                if number == wanted:
                    yield answer, found, answer_body
