"""Packets that rules with `log` report, read from nfnetlink_log in a VPC's router namespace.

The wire format is that of include/uapi/linux/netfilter/nfnetlink_log.h; pyroute2 has no part for it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator

from vpcctl.errors import KernelError
from vpcctl.kernel import netlink
from vpcctl.kernel.namespaces import entered
from vpcctl.model.policy import ICMP_PROTOCOLS, PORT_PROTOCOLS
from vpcctl.values import dataclass

NFNL_SUBSYS_ULOG = 4
NFULNL_MSG_PACKET, NFULNL_MSG_CONFIG = 0, 1
NFULA_PAYLOAD, NFULA_PREFIX = 9, 10
NFULA_CFG_CMD, NFULA_CFG_MODE = 1, 2
NFULNL_CFG_CMD_BIND = 1
NFULNL_COPY_PACKET = 2
COPIED_BYTES = 128
BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One logged packet: the rule's prefix and the packet's addresses; `port` is a port, an ICMP type or None."""

    prefix: str
    source: str
    destination: str
    protocol: int
    port: int | None


def follow(namespace: str, group: int, lost: Callable[[], None] = lambda: None) -> Iterator[Entry]:
    """What rules in `namespace` log to `group`, from now on, without end; KernelError where the group is taken.

    `lost` is called when there was more than could be read in time (netlink(7): ENOBUFS).
    """
    with entered(namespace):
        channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
    with channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        channel.bind((0, 0))
        _configure(channel, group, NFULA_CFG_CMD, struct.pack("=B", NFULNL_CFG_CMD_BIND))
        # struct nfulnl_msg_config_mode: __be32 copy_range, __u8 copy_mode, padding
        _configure(channel, group, NFULA_CFG_MODE, struct.pack("!IBx", COPIED_BYTES, NFULNL_COPY_PACKET))
        while True:
            try:
                data = channel.recv(65536)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(f"cannot read what {namespace} logs", str(error)) from error
                lost()
                continue
            yield from _entries(data)


def _configure(channel: socket.socket, group: int, kind: int, value: bytes) -> None:
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, group) + netlink.attribute(kind, value)
    channel.send(netlink.message(NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG, netlink.NLM_F_ACK, body))
    number = next(netlink.error_number(answer) for _, answer in netlink.messages(channel.recv(4096)))
    if number:
        raise KernelError(f"cannot listen to log group {group}; is another program listening?", os.strerror(number))


def _entries(data: bytes) -> Iterator[Entry]:
    for kind, body in netlink.messages(data):
        if kind == NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET:
            # Behind struct nfgenmsg.
            attributes = dict(netlink.attributes(body[4:]))
            prefix = attributes.get(NFULA_PREFIX, b"").rstrip(b"\0").decode(errors="replace")
            yield Entry(prefix, *_packet(attributes.get(NFULA_PAYLOAD, b"")))


def _packet(payload: bytes) -> tuple[str, str, int, int | None]:
    """Source, destination, protocol and port or ICMP type of an IP packet (RFC 791, RFC 8200)."""
    if len(payload) < 20:
        return "?", "?", 0, None
    if payload[0] >> 4 == 4:
        source, destination = payload[12:16], payload[16:20]
        protocol, transport = payload[9], payload[(payload[0] & 15) * 4 :]
    else:
        source, destination, protocol, transport = payload[8:24], payload[24:40], payload[6], payload[40:]
    port = None
    if protocol in PORT_PROTOCOLS and len(transport) >= 4:
        port = struct.unpack_from("!H", transport, 2)[0]
    elif protocol in ICMP_PROTOCOLS and transport:
        port = transport[0]
    return str(ipaddress.ip_address(source)), str(ipaddress.ip_address(destination)), protocol, port
