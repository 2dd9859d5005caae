"""A partial checksum is an order to write: "sum up from here on, and put the result there".

Whoever has CAP_NET_RAW gives that order with a frame (PACKET_VNET_HDR).  It is carried out where a packet is cut, or
leaves by a link that wants whole checksums: after the judgement.  The sender chooses what is written, because the sum
is over bytes that the sender chose.

soft 10.7.0.0/16   one (public)   two (private)   peered with: side 10.9.0.0/16
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass

import pytest

from tests.lab import wire
from tests.lab.tenants import Station, Tenants
from tests.lab.wire import (
    ICMP,
    SCTP,
    TCP,
    UDP,
    UDPLITE,
    Probe,
    Tap,
    Wire,
    arrived,
    checksum,
    ipv4,
    offloaded,
)
from vpcctl.lab import Lab

ALLOW = {"action": "allow"}
VPCS = {"soft": "10.7"}
ALLOWED, DENIED = 2222, 53
# Where the headers begin in a frame, and the addresses.
NETWORK, TRANSPORT = 14, 34
SOURCE, DESTINATION = NETWORK + 12, NETWORK + 16
# A protocol of nobody (RFC 3692).
NONE = 253
INGRESS = [
    *({**ALLOW, "protocol": protocol, "port": ALLOWED} for protocol in ("udp", "tcp", "sctp")),
    {**ALLOW, "protocol": "icmp", "icmp_type": "echo-request"},
    {**ALLOW, "protocol": NONE},
    {**ALLOW, "protocol": UDPLITE},
]


class Network(Tenants):
    """The VPCs above, in which all but INGRESS is denied to `two` and to `side`."""

    def __init__(self, lab: Lab):
        self.lab, self.wire, self._stations = lab, Wire(lab), {}
        self.mouths: dict[str, Tap] = {}
        self._build("side", "10.9", ("side",))
        for vpc, prefix in VPCS.items():
            self._build(vpc, prefix, ("one", "two"))
            self.wire.vpcctl("create-peering", "--vpc1", vpc, "--vpc2", "side")
        for vpc, subnet in (("side", "side"), *((vpc, "two") for vpc in VPCS)):
            self.apply(vpc, subnet, ingress=INGRESS)

    def _build(self, vpc: str, prefix: str, subnets: tuple[str, ...]) -> None:
        self.wire.vpcctl("create-vpc", "--name", vpc, "--cidr", f"{prefix}.0.0/16")
        for number, subnet in enumerate(subnets, 1):
            words = f"create-subnet --vpc {vpc} --name {subnet} --cidr {prefix}.{number}.0/24 --type public"
            self.wire.vpcctl(*words.split())
            name = f"{vpc}-{subnet}"
            self._stations[name] = self.instance(name, vpc, subnet, f"{prefix}.{number}.2")
            self.mouths[name] = self.wire.tap(name, offload=True)


@pytest.fixture(scope="module")
def network(module_lab: Lab) -> Network:
    return Network(module_lab)


# --- Lies -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lie:
    """A packet of `protocol`, and the word that shall stand `offset` bytes after `start` in the frame."""

    protocol: int
    start: int
    offset: int
    value: int


LIES = {
    "the port of a datagram": Lie(UDP, TRANSPORT, 2, DENIED),
    "the port of a datagram, by a sum from there on": Lie(UDP, TRANSPORT + 2, 0, DENIED),
    "the source port of a datagram": Lie(UDP, TRANSPORT, 0, DENIED),
    "the port of a SYN": Lie(TCP, TRANSPORT, 2, DENIED),
    "the flags of a SYN": Lie(TCP, TRANSPORT, 12, 0x5010),
    "the port of an association": Lie(SCTP, TRANSPORT, 2, DENIED),
    "the port of UDP-Lite": Lie(UDPLITE, TRANSPORT, 2, DENIED),
    "the type of an ICMP message": Lie(ICMP, TRANSPORT, 0, 13 << 8),
    "the lower half of the source": Lie(UDP, SOURCE, 2, 1 << 8 | 77),
    "the upper half of the source": Lie(UDP, SOURCE, 0, 203 << 8),
    "the source in no protocol": Lie(NONE, SOURCE, 2, 1 << 8 | 77),
    "the destination": Lie(UDP, DESTINATION, 2, 1 << 8 | 77),
    "the protocol": Lie(NONE, NETWORK + 8, 0, 63 << 8 | UDP),
}


def segment(ends: tuple[str, str], protocol: int, body: bytes) -> bytes:
    """What a packet of the protocol carries."""
    if protocol == TCP:
        return wire.tcp(ends, 1111, ALLOWED, wire.SYN, body)
    if protocol == ICMP:
        return wire.echo(1, body)
    if protocol == SCTP:
        return wire.sctp_init(1111, ALLOWED, body)
    if protocol == UDPLITE:
        return wire.udplite(ends, 1111, ALLOWED, body)
    return wire.udp(1111, ALLOWED, body)


def told(ends: tuple[str, str], lie: Lie, one: bytes) -> bytes:
    """A segment with which the sum over the packet, as the router passes it on, is the word of the lie."""
    honest = segment(ends, lie.protocol, one.ljust(64, b"\0"))
    passed = bytes(NETWORK) + ipv4(*ends, lie.protocol, honest, ttl=63)
    wanted, found = ~lie.value & 0xFFFF, ~checksum(passed[lie.start :]) & 0xFFFF
    # The last two bytes of the segment were zero.
    return honest[:-2] + struct.pack("!H", (wanted - found) % 0xFFFF)


def lying(network: Network, sender: str, destination: str, lie: Lie, cut: int = 0) -> Probe:
    """The lie as a probe; in two fragments, the first with `cut` bytes, where that is given."""
    station = network[sender]
    ends = (station.address, destination)

    def make(one: bytes) -> list[bytes]:
        content = told(ends, lie, one)
        packets = wire.fragments(*ends, lie.protocol, content, cut, 77) if cut else [ipv4(*ends, lie.protocol, content)]
        return [offloaded(station.frame(packet), lie.start, lie.offset) for packet in packets]

    return network.mouths[sender], make


def honest(station: Station, destination: str, protocol: int, cut: int) -> Probe:
    """The same packet in two fragments, of which nothing is left to others."""
    ends = (station.address, destination)

    def make(one: bytes) -> list[bytes]:
        content = segment(ends, protocol, one.ljust(64, b"\0"))
        return [station.frame(packet) for packet in wire.fragments(*ends, protocol, content, cut, 78)]

    return station.raw(make)


@pytest.mark.parametrize("cut", [8, 48])
@pytest.mark.parametrize("target", ["two", "side"])
@pytest.mark.parametrize("vpc", VPCS)
def test_what_was_judged_in_fragments_is_what_arrives(network: Network, vpc: str, target: str, cut: int) -> None:
    sender = f"{vpc}-one"
    ear = network["side-side" if target == "side" else f"{vpc}-two"]
    lies = {name: lying(network, sender, ear.address, lie, cut) for name, lie in LIES.items()}
    assert arrived(ear.tap, lies, honest(network[sender], ear.address, UDP, cut)) == []
    # The words come in the first fragment, or in the second one.
    truths = {str(lie.protocol): honest(network[sender], ear.address, lie.protocol, cut) for lie in LIES.values()}
    assert arrived(ear.tap, truths, honest(network[sender], ear.address, UDP, cut)) == list(truths)


@pytest.mark.parametrize("vpc", VPCS)
def test_a_fragment_that_leaves_its_checksum_to_others_goes_nowhere_in_whatever_wrapping(
    network: Network, vpc: str
) -> None:
    sender, ear = network[f"{vpc}-one"], network[f"{vpc}-two"]
    ends = (sender.address, ear.address)

    def wrapped(first: tuple[int, int], second: tuple[int, int], **wrapping: object) -> Probe:
        def make(one: bytes) -> list[bytes]:
            content = wire.tcp(ends, 1111, ALLOWED, wire.SYN, one.ljust(600, b"\0"))
            packets = wire.fragments(*ends, TCP, content, 80, 79)
            orders = zip(packets, (first, second), strict=True)
            return [offloaded(sender.frame(packet), *order, **wrapping) for packet, order in orders]

        return network.mouths[f"{vpc}-one"], make

    right, lie, none = (TRANSPORT, 16), (TRANSPORT, 2), (0, 0)
    probes = {
        "where the checksum belongs": wrapped(right, right),
        "the first fragment alone": wrapped(lie, none),
        "large": wrapped((TRANSPORT - 14, 16), (TRANSPORT - 14, 16), gso=(1, 54, 20)),
        "large, where the checksum belongs": wrapped(right, right, gso=(1, 54, 20)),
    }
    probes |= {f"from {start}": wrapped((start, 2), (start, 2)) for start in range(NETWORK, TRANSPORT + 20, 2)}
    assert arrived(ear.tap, probes, honest(sender, ear.address, TCP, 48)) == []


# --- What is honest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["two", "side"])
@pytest.mark.parametrize("vpc", VPCS)
def test_honest_fragments_arrive_byte_by_byte(network: Network, vpc: str, target: str) -> None:
    sender = network[f"{vpc}-one"]
    ear = network["side-side" if target == "side" else f"{vpc}-two"]
    hops = 2 if target == "side" else 1
    for number, protocol in enumerate((ICMP, TCP, UDP, SCTP, NONE), 100):
        last = wire.word()
        content = segment((sender.address, ear.address), protocol, bytes(range(1, 101)) * 3 + bytes(2) + last)
        ends = (sender.address, ear.address, protocol, content, 160, number)
        ear.tap.heard()
        sender.tap.send(*(sender.frame(packet) for packet in wire.fragments(*ends)))
        heard = ear.tap.hear(last)
        expected = wire.fragments(*ends, ttl=64 - hops)
        assert [frame[NETWORK:][: len(packet)] for frame, packet in zip(heard, expected, strict=True)] == expected


SPEAK = """
import socket, sys
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.sendto(bytes(range(250)) * 16, (sys.argv[1], int(sys.argv[2])))
"""
LISTEN = """
import socket, sys
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.bind(("", int(sys.argv[1])))
line.settimeout(10)
print("ready", flush=True)
print(line.recv(65536) == bytes(range(250)) * 16)
"""


@pytest.mark.parametrize("checksums", ["", "no checksums"])
@pytest.mark.parametrize("vpc", VPCS)
def test_a_datagram_of_4000_bytes_arrives_whole(network: Network, vpc: str, checksums: str) -> None:
    lab, address = network.lab, network[f"{vpc}-two"].address
    # SO_NO_CHECK (socket.h): the checksum is zero, which means none.
    speak = SPEAK.replace("line.sendto", "line.setsockopt(1, 11, 1)\nline.sendto") if checksums else SPEAK
    listener = lab.popen([sys.executable, "-c", LISTEN, str(ALLOWED)], netns=f"{vpc}-two")
    assert listener.stdout
    assert listener.stdout.readline() == "ready\n"
    lab.python(speak, address, str(ALLOWED), netns=f"{vpc}-one")
    assert listener.stdout.readline() == "True\n"


@pytest.mark.parametrize("vpc", VPCS)
def test_a_long_ping_is_answered(network: Network, vpc: str) -> None:
    one, two = network[f"{vpc}-one"], network[f"{vpc}-two"]
    for address in (one.router, two.address):
        network.lab.run(["ping", "-c", "1", "-W", "5", "-s", "4000", address], netns=f"{vpc}-one")
