"""On which ports programs of the host wait to be called, by sock_diag(7): no walk through all connections."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator

from vpcctl.kernel import netlink
from vpcctl.values import dataclass

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
# include/net/tcp_states.h: a UDP socket that is not connected is in the state CLOSE.
TCP_CLOSE, TCP_LISTEN = 7, 10
WAITING = (
    (socket.IPPROTO_TCP, TCP_LISTEN),
    (socket.IPPROTO_UDP, TCP_CLOSE),
    (socket.IPPROTO_SCTP, TCP_LISTEN),
)
# What the kernel says of a family or protocol that it does not have.
_ABSENT = {errno.ENOENT, errno.EINVAL, errno.EPROTONOSUPPORT}
# struct inet_diag_req_v2, and the head of struct inet_diag_msg (include/uapi/linux/inet_diag.h): the end of it is
# the user and the inode.
_REQUEST = struct.Struct("=BBBBI48x")
_MESSAGE = struct.Struct("!BBBBHH16s16s")
_OWNER = struct.Struct("=II")
_OWNER_AT, _ATTRIBUTES_AT = 64, 72
INET_DIAG_SKV6ONLY = 11

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A socket on which a program listens; with `only_ipv6` IPv4 does not reach it."""

    protocol: int
    port: int
    address: Address
    inode: int
    only_ipv6: bool = False


def served_ports(low: int, high: int) -> tuple[int, ...]:
    """The ports from `low` to `high` on which a program of the caller's namespace can be reached from outside."""
    found = {one.port for one in listeners() if low <= one.port <= high and not one.address.is_loopback}
    return tuple(sorted(found))


def listeners() -> Iterator[ListeningSocket]:
    """Every socket of the caller's namespace on which a program listens."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as channel:
        for family in (socket.AF_INET, socket.AF_INET6):
            for protocol, state in WAITING:
                yield from _waiting(channel, family, protocol, state)


def _waiting(channel: socket.socket, family: int, protocol: int, state: int) -> Iterator[ListeningSocket]:
    """The sockets of one kind; none if the kernel does not have the protocol."""
    request = _REQUEST.pack(family, protocol, 0, 0, 1 << state)
    channel.send(netlink.message(SOCK_DIAG_BY_FAMILY, netlink.NLM_F_DUMP, request))
    size = 4 if family == socket.AF_INET else 16
    try:
        for _, body in netlink.dumped(channel):
            _, _, _, _, port, _, address, _ = _MESSAGE.unpack_from(body)
            _, inode = _OWNER.unpack_from(body, _OWNER_AT)
            values = dict(netlink.attributes(body[_ATTRIBUTES_AT:])) if family == socket.AF_INET6 else {}
            only_ipv6 = any(values.get(INET_DIAG_SKV6ONLY, b""))
            yield ListeningSocket(protocol, port, ipaddress.ip_address(bytes(address[:size])), inode, only_ipv6)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
