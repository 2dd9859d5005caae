"""On which ports programs of the host wait to be called, by sock_diag(7): no walk through all connections."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
NLM_F_REQUEST, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 0x1, 0x300, 2, 3
# include/net/tcp_states.h: a UDP socket that is not connected is in the state CLOSE.
TCP_CLOSE, TCP_LISTEN = 7, 10
WAITING = (
    (socket.IPPROTO_TCP, TCP_LISTEN),
    (socket.IPPROTO_UDP, TCP_CLOSE),
    (socket.IPPROTO_SCTP, TCP_LISTEN),
)
# struct inet_diag_req_v2, and the head of struct inet_diag_msg (include/uapi/linux/inet_diag.h)
_REQUEST = struct.Struct("=BBBBI48x")
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("!BBBBHH16s")


def served_ports(low: int, high: int) -> tuple[int, ...]:
    """The ports from `low` to `high` on which somebody can be called from outside, in the caller's namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as channel:
        found = {
            port
            for family in (socket.AF_INET, socket.AF_INET6)
            for protocol, state in WAITING
            for port, address in _waiting(channel, family, protocol, state)
            if low <= port <= high and not address.is_loopback
        }
    return tuple(sorted(found))


def _waiting(
    channel: socket.socket, family: int, protocol: int, state: int
) -> Iterator[tuple[int, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """Port and address of each socket of one kind; none where the kernel has no such protocol."""
    request = _REQUEST.pack(family, protocol, 0, 0, 1 << state)
    length = _HEADER.size + len(request)
    channel.send(_HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 0, 0) + request)
    while True:
        data = memoryview(channel.recv(1 << 16))
        while data:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            body = data[_HEADER.size : length]
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                (number,) = struct.unpack_from("=i", body)
                if -number in (errno.ENOENT, errno.EINVAL, errno.EPROTONOSUPPORT):
                    return
                raise OSError(-number, "sock_diag")
            _, _, _, _, port, _, address = _MESSAGE.unpack_from(body)
            size = 4 if family == socket.AF_INET else 16
            yield port, ipaddress.ip_address(address[:size])
            data = data[(length + 3) & ~3 :]
