"""The host's own addresses, from the kernel's routing table `local`, through rtnetlink(7); needs no privilege.

This has a socket and a parser of its own: importing pyroute2 takes longer than answering a question.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vpcctl.errors import KernelError
from vpcctl.host import Host
from vpcctl.policy import Network

# include/uapi/linux/rtnetlink.h and netlink.h.
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST = 2, 3, 4
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_PREFSRC, RTA_TABLE = 1, 2, 3, 4, 7, 15
RT_TABLE_LOCAL = 255
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
# struct nlmsghdr, struct rtmsg, struct rtattr
_HEADER, _ROUTE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=8BI"), struct.Struct("=HH")
_BUFFER = 1 << 16
LOOPBACK_IFINDEX = 1
# What the kernel says of a source that it refuses (net/ipv4/fib_frontend.c: __fib_validate_source).
_REFUSED = {errno.EINVAL, errno.EXDEV}
_WITHOUT_FAMILY = {errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT}


class _NoSuchFamilyError(OSError):
    """The kernel has no such family, or no such table of it."""


@dataclass(frozen=True, slots=True)
class _Route:
    """A route of the table `local`."""

    prefix: Network
    kind: int
    link: int
    own: bytes


def read_host() -> Host:
    """The host's own addresses as they are now; KernelError where the kernel does not tell them."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
            _be_strict(channel)
            routes = list(_local_routes(channel, socket.AF_INET))
            strict = _is_strict(channel, routes)
            with contextlib.suppress(_NoSuchFamilyError):
                routes += _local_routes(channel, socket.AF_INET6)
    except OSError as error:
        raise KernelError("cannot read the host's own addresses", str(error)) from error
    return Host(_prefixes(routes, RTN_LOCAL, RTN_ANYCAST), _prefixes(routes, RTN_BROADCAST), strict)


def _prefixes(routes: list[_Route], *kinds: int) -> tuple[Network, ...]:
    found = {route.prefix for route in routes if route.kind in kinds}
    return tuple(sorted(found, key=lambda prefix: (prefix.version, prefix)))


def _is_strict(channel: socket.socket, routes: list[_Route]) -> bool:
    """Does the host check sources against its routes?

    Settings (rp_filter), rules and routes bring that about, and some for good once they have been there; so the kernel
    is asked what it would do with a packet from each broadcast address.
    """
    asked = [route for route in routes if route.kind == RTN_BROADCAST and route.own and route.link != LOOPBACK_IFINDEX]
    return bool(asked) and all(_is_refused(channel, route) for route in asked)


def _is_refused(channel: socket.socket, route: _Route) -> bool:
    """Would a packet be dropped that comes by the route's link, from its broadcast address to its own?"""
    ends = ((RTA_DST, route.own), (RTA_SRC, route.prefix.network_address.packed))
    attributes = (*ends, (RTA_IIF, struct.pack("=I", route.link)))
    body = _ROUTE.pack(socket.AF_INET, 32, 32, 0, 0, 0, 0, 0, 0)
    # All of these are four bytes long.
    body += b"".join(_ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value for kind, value in attributes)
    channel.send(_HEADER.pack(_HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST, 0, 0) + body)
    answer = channel.recv(_BUFFER)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    return kind == NLMSG_ERROR and -struct.unpack_from("=i", answer, _HEADER.size)[0] in _REFUSED


def _local_routes(channel: socket.socket, family: int) -> Iterator[_Route]:
    for message in _dump(channel, family, RT_TABLE_LOCAL):
        found, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(message)
        attributes = dict(_attributes(message[_ROUTE.size :]))
        if RTA_TABLE in attributes:
            (table,) = struct.unpack("=I", attributes[RTA_TABLE])
        # Kernels before 4.20 know no filter and tell every route of every table.
        if (found, table) == (family, RT_TABLE_LOCAL) and kind in (RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST):
            packed = attributes.get(RTA_DST, bytes(4 if family == socket.AF_INET else 16))
            (link,) = struct.unpack("=I", attributes.get(RTA_OIF, bytes(4)))
            yield _Route(ipaddress.ip_network((packed, length)), kind, link, attributes.get(RTA_PREFSRC, b""))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[max(length + 3 & ~3, _ATTRIBUTE.size) :]


def _be_strict(channel: socket.socket) -> None:
    """Have the kernel tell the routes of one table alone, where it can."""
    try:
        channel.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    except OSError:
        return


def _dump(channel: socket.socket, family: int, table: int) -> Iterator[bytes]:
    """All routes of a table, and of others where the kernel cannot choose: each message without its header."""
    body = _ROUTE.pack(family, 0, 0, 0, table, 0, 0, 0, 0)
    channel.send(_HEADER.pack(_HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, 0, 0) + body)
    while True:
        data = channel.recv(_BUFFER)
        while data:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            message, data = data[_HEADER.size : length], data[length + 3 & ~3 :]
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                number = -struct.unpack_from("=i", message)[0]
                raise (_NoSuchFamilyError if number in _WITHOUT_FAMILY else OSError)(number, os.strerror(number))
            if kind == RTM_NEWROUTE:
                yield message
