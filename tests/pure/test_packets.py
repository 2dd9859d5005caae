"""Probes byte by byte: whole checksums, and a token that is found again wherever it comes back."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from vpcctl.kernel.packets import ACK, RST, SYN, TOKENS, Packet, craft, crc32c
from vpcctl.model.policy import ICMP, SCTP, TCP, UDP

HERE, THERE = ip_address("10.0.1.2"), ip_address("203.0.113.10")
KINDS = [(TCP, 443), (UDP, 53), (SCTP, 36412), (ICMP, 8), (ICMP, 13), (ICMP, 3), (47, None), (255, None)]
EDGES = [1, 0x12345678, TOKENS]


def ones_sum(data: bytes) -> int:
    """The sum of RFC 1071 over `data`; 0xFFFF where a checksum in it is right."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("token", EDGES)
@pytest.mark.parametrize(("protocol", "port"), KINDS)
def test_a_probe_carries_its_token(protocol: int, port: int | None, token: int) -> None:
    packet = Packet(craft(HERE, THERE, protocol, port, token))
    assert (packet.source, packet.destination, packet.protocol, packet.token) == (HERE, THERE, protocol, token)


@pytest.mark.parametrize("token", EDGES)
@pytest.mark.parametrize(("protocol", "port"), KINDS)
def test_an_icmp_error_gives_the_token_of_what_it_quotes(protocol: int, port: int | None, token: int) -> None:
    quoted = craft(HERE, THERE, protocol, port, token)
    body = struct.pack("!BBHI", 3, 13, 0, 0) + quoted
    error = Packet(craft(THERE, HERE, ICMP, 8, 7)[:20] + body)
    assert (error.token, error.kind) == (token, "icmp-prohibited")
    assert Packet(error.data[:20] + struct.pack("!BBHI", 11, 0, 0, 0) + quoted).kind == "icmp-11-0"


@pytest.mark.parametrize("token", EDGES)
@pytest.mark.parametrize(("flags", "kind"), [(SYN | ACK, "reply"), (RST | ACK, "reset")])
def test_a_tcp_answer_gives_the_token_of_what_it_acknowledges(flags: int, kind: str, token: int) -> None:
    segment = struct.pack("!HHIIBBHHH", 443, 1, 99, (token + 1) & TOKENS, 5 << 4, flags, 0, 0, 0)
    answer = Packet(craft(THERE, HERE, TCP, 1, 7)[:20] + segment)
    assert (answer.token, answer.kind) == (token, kind)


def test_strange_packets_have_no_token() -> None:
    header = craft(HERE, THERE, 47, None, 7)[:20]
    for protocol in (TCP, UDP, SCTP, ICMP, 47):
        for body in (b"", b"\3", b"\3\1\0\0\0\0\0\0", b"vpc"):
            assert Packet(header[:9] + bytes([protocol]) + header[10:] + body).token is None


@pytest.mark.parametrize(("protocol", "port"), [(TCP, 443), (UDP, 53)])
def test_transport_checksums_cover_the_addresses(protocol: int, port: int) -> None:
    packet = craft(HERE, THERE, protocol, port, 12345)
    around = packet[12:20] + struct.pack("!BBH", 0, protocol, len(packet) - 20)
    assert ones_sum(around + packet[20:]) == 0xFFFF
    assert ones_sum(around + packet[20:-1] + bytes([packet[-1] ^ 1])) != 0xFFFF


@pytest.mark.parametrize("kind", [8, 13, 3])
def test_icmp_checksums_are_right(kind: int) -> None:
    assert ones_sum(craft(HERE, THERE, ICMP, kind, 12345)[20:]) == 0xFFFF


def test_the_sctp_checksum_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 9260's polynomial
    body = craft(HERE, THERE, SCTP, 36412, 12345)[20:]
    assert struct.unpack("<I", body[8:12])[0] == crc32c(body[:8] + bytes(4) + body[12:])
