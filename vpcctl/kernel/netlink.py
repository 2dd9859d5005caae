"""The framing of netlink(7): requests, attributes and answers.

For what pyroute2 has no part for, or is too slow for: importing it takes longer than answering a question, and it
decodes an entry of connection tracking in a third of a millisecond.  Slices keep the type of the data that they are
taken from: memoryview where there is much of it, bytes elsewhere.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import TypeVar

# include/uapi/linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_DUMP = 0x1, 0x4, 0x200, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
NETLINK_NETFILTER = 12
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF
# Bytes to receive at once.  The kernel never sends more; a link with all the names that it can have takes 64 KiB.
BUFFER = 1 << 18

# struct nlmsghdr: length, type, flags, sequence number, port; struct nlattr: length, type
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")

Data = TypeVar("Data", bytes, memoryview)


def message(kind: int, flags: int, body: bytes) -> bytes:
    """A request of type `kind`, as it is sent."""
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(inner))


def messages(data: Data) -> Iterator[tuple[int, Data]]:
    """The type and the body of each message in what was received at once."""
    place, end = 0, len(data)
    while place + _HEADER.size <= end:
        length, kind, _, _, _ = _HEADER.unpack_from(data, place)
        if length < _HEADER.size:
            return
        yield kind, data[place + _HEADER.size : place + length]
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


def error_number(body: Data) -> int:
    """The error (errno(3)) that the body of NLMSG_ERROR or NLMSG_DONE tells; 0 for success."""
    return -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0


def check(body: Data) -> None:
    """Raise OSError for an error that such a body tells."""
    number = error_number(body)
    if number:
        raise OSError(number, os.strerror(number))


def dumped(channel: socket.socket) -> Iterator[tuple[int, memoryview]]:
    """The type and the body of each message of a dump that was asked for; OSError where it fails, also midway."""
    while True:
        for kind, body in messages(memoryview(channel.recv(BUFFER))):
            if kind in (NLMSG_DONE, NLMSG_ERROR):
                return check(body)
            yield kind, body
