"""What the routes say of addresses, through rtnetlink(7): which are the host's own, and where others are.

Needs no privilege.

Through `netlink` and not pyroute2, whose import takes longer than answering a question.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator

from vpcctl.errors import KernelError
from vpcctl.kernel import netlink
from vpcctl.model.host import Host
from vpcctl.model.policy import Address, Network
from vpcctl.values import dataclass

# include/uapi/linux/rtnetlink.h
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST = 1, 2, 3, 4
RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_TABLE = 1, 2, 3, 4, 5, 7, 15
RT_TABLE_LOCAL = 255
# struct rtmsg
_ROUTE = struct.Struct("=8BI")
LOOPBACK_IFINDEX = 1
# What the kernel says of a source that it refuses (net/ipv4/fib_frontend.c: __fib_validate_source).
_REFUSED = {errno.EINVAL, errno.EXDEV}
# What it says of a family, or a table of it, that it does not have.
_ABSENT = {errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT}


@dataclass(frozen=True, slots=True)
class _Route:
    """A route of the table `local`."""

    prefix: Network
    kind: int
    link: int
    own: bytes


@dataclass(frozen=True, slots=True)
class Hop:
    """The machine to which the host hands packets for an address: `address` is that machine's own.

    `link` is the host's link to it, and `own` the host's address there.
    """

    address: Address
    link: str
    own: Address


def next_hop(address: Address) -> Hop | None:
    """The next machine on the way to `address`.

    None if there is not exactly one, as for the host's own and for broadcast addresses, or if the host has no address
    to call it from.  Raises KernelError without a route.
    """
    family, length = (socket.AF_INET if address.version == 4 else socket.AF_INET6), address.max_prefixlen
    body = _ROUTE.pack(family, length, 0, 0, 0, 0, 0, 0, 0) + netlink.attribute(RTA_DST, address.packed)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
            channel.send(netlink.message(RTM_GETROUTE, 0, body))
            kind, answer = next(netlink.messages(channel.recv(netlink.BUFFER)))
            if kind == netlink.NLMSG_ERROR:
                netlink.check(answer)
            found = dict(netlink.attributes(answer[_ROUTE.size :]))
            if _ROUTE.unpack_from(answer)[7] != RTN_UNICAST or RTA_PREFSRC not in found:
                return None
            link = socket.if_indextoname(*struct.unpack("=I", found[RTA_OIF]))
    except OSError as error:
        raise KernelError(f"the host has no route to {address}", str(error)) from error
    return Hop(
        ipaddress.ip_address(found.get(RTA_GATEWAY, address.packed)), link, ipaddress.ip_address(found[RTA_PREFSRC])
    )


def read_host() -> Host:
    """The host's own addresses as they are now; KernelError if the kernel does not report them."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
            _be_strict(channel)
            routes = list(_local_routes(channel, socket.AF_INET))
            strict = _is_strict(channel, routes)
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
    body += b"".join(netlink.attribute(kind, value) for kind, value in attributes)
    channel.send(netlink.message(RTM_GETROUTE, 0, body))
    kind, answer = next(netlink.messages(channel.recv(netlink.BUFFER)))
    return kind == netlink.NLMSG_ERROR and netlink.error_number(answer) in _REFUSED


def _local_routes(channel: socket.socket, family: int) -> Iterator[_Route]:
    """The routes of the table `local`; none where the kernel has no such family or table."""
    body = _ROUTE.pack(family, 0, 0, 0, RT_TABLE_LOCAL, 0, 0, 0, 0)
    channel.send(netlink.message(RTM_GETROUTE, netlink.NLM_F_DUMP, body))
    try:
        for kind, message in netlink.dumped(channel):
            route = _route(bytes(message), family) if kind == RTM_NEWROUTE else None
            if route is not None:
                yield route
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def _route(message: bytes, family: int) -> _Route | None:
    """The route in a message; None for one of another kind or table: kernels before 4.20 know no filter."""
    found, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(message)
    attributes = dict(netlink.attributes(message[_ROUTE.size :]))
    if RTA_TABLE in attributes:
        (table,) = struct.unpack("=I", attributes[RTA_TABLE])
    if (found, table) != (family, RT_TABLE_LOCAL) or kind not in (RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST):
        return None
    packed = attributes.get(RTA_DST, bytes(4 if family == socket.AF_INET else 16))
    (link,) = struct.unpack("=I", attributes.get(RTA_OIF, bytes(4)))
    return _Route(ipaddress.ip_network((packed, length)), kind, link, attributes.get(RTA_PREFSRC, b""))


def _be_strict(channel: socket.socket) -> None:
    """Ask the kernel to report only the routes of one table, if it can."""
    try:
        channel.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_GET_STRICT_CHK, 1)
    except OSError:
        return
