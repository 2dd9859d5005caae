"""IPv4 packets that begin flows, each with a token that identifies the packet and its answers.

In TCP the token is the sequence number and in SCTP the initiate tag, both of which answers give back (RFC 9293,
3.10.7; RFC 9260, 3.3.2 and 8.5).  In all else it follows `MAGIC` in the payload, which echoes and ICMP errors repeat.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from vpcctl.model.policy import ICMP, SCTP, TCP, UDP, Address
from vpcctl.values import dataclass

MAGIC = b"vpcp"
TOKENS = 0xFFFFFFFF  # from 1 to this
ECHO_REPLY, UNREACHABLE, ECHO_REQUEST = 0, 3, 8
QUOTING = frozenset({3, 4, 5, 11, 12})  # the ICMP messages that quote the packet they are about (RFC 792)
PROHIBITED = (UNREACHABLE, 13)  # communication administratively prohibited (RFC 1812, 5.2.7.1)
SYN, RST, ACK = 0x02, 0x04, 0x10
SCTP_INIT = 1
FIRST_PORT = 1024


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv4 packet as it was heard, from its header on."""

    data: bytes

    @property
    def protocol(self) -> int:
        return self.data[9]

    @property
    def source(self) -> IPv4Address:
        return IPv4Address(self.data[12:16])

    @property
    def destination(self) -> IPv4Address:
        return IPv4Address(self.data[16:20])

    @property
    def body(self) -> bytes:
        """What follows the header."""
        return self.data[(self.data[0] & 0x0F) * 4 :]

    @property
    def token(self) -> int | None:
        """The token of the packet, or of the one that it answers or quotes; None if it has none."""
        body = self.body
        if self.protocol == TCP and len(body) >= 20:
            number, acknowledged = int.from_bytes(body[4:8], "big"), int.from_bytes(body[8:12], "big")
            return number if body[13] & (SYN | RST | ACK) == SYN else (acknowledged - 1) & TOKENS
        if self.protocol == SCTP and len(body) >= 20:
            return int.from_bytes(body[16:20] if body[12] == SCTP_INIT else body[4:8], "big")
        if self.protocol == ICMP and len(body) >= 28 and body[0] in QUOTING:
            return Packet(body[8:]).token
        place = body.find(MAGIC)
        return int.from_bytes(body[place + 4 : place + 8], "big") if place >= 0 else None

    @property
    def kind(self) -> str:
        """What it is as an answer: ``reset``, ``icmp-prohibited``, ``icmp-TYPE-CODE`` or ``reply``."""
        body = self.body
        if self.protocol == TCP and body[13] & RST:
            return "reset"
        if self.protocol == ICMP and body[0] in QUOTING:
            return "icmp-prohibited" if (body[0], body[1]) == PROHIBITED else f"icmp-{body[0]}-{body[1]}"
        return "reply"


def craft(source: Address, target: Address, protocol: int, port: int | None, token: int) -> bytes:
    """An IPv4 packet that can begin a flow; `port` is the destination port, or a type where `protocol` is ICMP.

    The source port or identifier comes of `token` (1 to TOKENS).  The kernel fills in the header's length, its
    checksum, and a source of 0.0.0.0 (raw(7)).
    """
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, protocol, 0, source.packed, target.packed)
    if protocol == ICMP:
        return header + _icmp(source, target, port or 0, token)
    own_port = FIRST_PORT + token % (0x10000 - FIRST_PORT)
    if protocol == TCP:
        body = struct.pack("!HHIIBBHHH", own_port, port, token, 0, 5 << 4, SYN, 1024, 0, 0)
        return header + _with_checksum(body, 16, _pseudo_header(source, target, TCP, len(body)))
    if protocol == UDP:
        body = struct.pack("!HHHH", own_port, port, 8 + len(_mark(token)), 0) + _mark(token)
        return header + _with_checksum(body, 6, _pseudo_header(source, target, UDP, len(body)))
    if protocol == SCTP:
        return header + _sctp(own_port, port or 0, token)
    # Read as a GRE header the first bytes are of version 0, which has no ports either.
    return header + _mark(token) + bytes(8)


def _mark(token: int) -> bytes:
    return MAGIC + struct.pack("!I", token)


def _icmp(source: Address, target: Address, kind: int, token: int) -> bytes:
    if kind in QUOTING:
        # About a packet of the other end's that never was.
        quoted = bytearray(craft(target, source, UDP, 9, token))
        struct.pack_into("!H", quoted, 2, len(quoted))
        body = struct.pack("!BBHI", kind, 0, 0, 0) + _with_checksum(bytes(quoted[:20]), 10) + quoted[20:]
    else:
        # As long as a timestamp request.
        body = struct.pack("!BBHHH", kind, 0, 0, token & 0xFFFF, token >> 16) + _mark(token) + bytes(4)
    return _with_checksum(body, 2)


def _sctp(own_port: int, port: int, token: int) -> bytes:
    """An INIT chunk (tag, window, streams, first number) behind the common header (RFC 9260, 3.1 and 3.3.2)."""
    header = struct.pack("!HHI", own_port, port, 0)
    chunk = struct.pack("!BBHIIHHI", SCTP_INIT, 0, 20, token, 0x10000, 1, 1, 1)
    return header + struct.pack("<I", crc32c(header + bytes(4) + chunk)) + chunk


def crc32c(data: bytes) -> int:
    """The checksum of SCTP (RFC 9260, appendix A)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _pseudo_header(source: Address, target: Address, protocol: int, length: int) -> bytes:
    return source.packed + target.packed + struct.pack("!BBH", 0, protocol, length)


def _with_checksum(body: bytes, place: int, before: bytes = b"") -> bytes:
    """`body` with the Internet checksum (RFC 1071) of `before` and itself at `place`."""
    text = before + body + bytes(len(body) % 2)
    total = sum(struct.unpack(f"!{len(text) // 2}H", text))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    # Zero would mean that the packet has no checksum (RFC 768).
    return body[:place] + struct.pack("!H", ~total & 0xFFFF or 0xFFFF) + body[place + 2 :]
