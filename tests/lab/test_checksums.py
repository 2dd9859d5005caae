"""A partial checksum is an order to write: "sum up from here on, and put the result there".

Whoever has CAP_NET_RAW gives that order with a frame (PACKET_VNET_HDR).  It is carried out where a packet is cut, or
leaves by a link that wants whole checksums: after the judgement.  The sender chooses what is written, because the sum
is over bytes that the sender chose.

soft 10.7.0.0/16, and hard 10.8.0.0/16, which is hardened   one, two   each peered with: side 10.9.0.0/16
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab import wire
from tests.lab.tenants import FAR, Station, Tenants
from tests.lab.traffic import assert_moving, assert_nothing_lost, eventually, start_flow, stations
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
    containing,
    ipv4,
    offloaded,
)
from vpcctl import names
from vpcctl.lab import INTERNET, Lab

ALLOW = {"action": "allow"}
VPCS = {"soft": "10.7", "hard": "10.8"}
ALLOWED, DENIED = 2222, 53
# Where the headers begin in a frame, and the addresses.
NETWORK, TRANSPORT = 14, 34
SOURCE, DESTINATION = NETWORK + 12, NETWORK + 16
# An address outside of which the lower half is zero.
ZEROS = "9.9.0.0"
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
            # The sender may send to anybody inside, to one service outside, and to an address that ends in zeros.
            outside = [{**rule, "destination": f"{INTERNET}/32"} for rule in INGRESS]
            for destination in ("10.0.0.0/8", f"{ZEROS}/32"):
                outside.append({**ALLOW, "destination": destination})
            self.apply(vpc, "one", egress=outside)
        for vpc, subnet in (("side", "side"), *((vpc, "two") for vpc in VPCS)):
            self.apply(vpc, subnet, ingress=INGRESS)
        gateway = self.mac(None, "eth0")
        self._stations[FAR] = Station(self.wire.tap(FAR), self.mac(FAR, "eth0"), str(INTERNET), gateway)

    def _build(self, vpc: str, prefix: str, subnets: tuple[str, ...]) -> None:
        hardened = ["--hardened"] * (vpc == "hard")
        self.wire.vpcctl("create-vpc", "--name", vpc, "--cidr", f"{prefix}.0.0/16", *hardened)
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


# A hardened VPC judges a packet as it will arrive, and the source port is the sender's to choose.
LEGAL = {"soft": set(), "hard": {"the source port of a datagram"}}


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


# Identifiers of packets in fragments, no two alike: what is left of one that was dropped must join no other one.
IDENTIFIERS = itertools.count(1000)


def told(ends: tuple[str, str], lie: Lie, one: bytes, identifier: int, size: int = 64) -> bytes:
    """A segment with which the sum over the packet, as the router passes it on, is the word of the lie."""
    honest = segment(ends, lie.protocol, one.ljust(size, b"\0"))
    passed = bytes(NETWORK) + ipv4(*ends, lie.protocol, honest, identifier=identifier, ttl=63)
    wanted, found = ~lie.value & 0xFFFF, ~checksum(passed[lie.start :]) & 0xFFFF
    # The last two bytes of the segment were zero.
    return honest[:-2] + struct.pack("!H", (wanted - found) % 0xFFFF)


def lying(network: Network, sender: str, destination: str, lie: Lie, cut: int = 0, size: int = 64) -> Probe:
    """The lie as a probe; in two fragments, the first with `cut` bytes, where that is given."""
    station = network[sender]
    ends = (station.address, destination)

    def make(one: bytes) -> list[bytes]:
        identifier = next(IDENTIFIERS)
        content = told(ends, lie, one, identifier, size)
        whole = ipv4(*ends, lie.protocol, content, identifier=identifier)
        packets = wire.fragments(*ends, lie.protocol, content, cut, identifier) if cut else [whole]
        return [offloaded(station.frame(packet), lie.start, lie.offset) for packet in packets]

    return network.mouths[sender], make


def honest(station: Station, destination: str, protocol: int, cut: int) -> Probe:
    """The same packet in two fragments, of which nothing is left to others."""
    ends = (station.address, destination)

    def make(one: bytes) -> list[bytes]:
        content = segment(ends, protocol, one.ljust(64, b"\0"))
        return [station.frame(packet) for packet in wire.fragments(*ends, protocol, content, cut, next(IDENTIFIERS))]

    return station.raw(make)


# What arrives of lies in fragments where nothing asks whether a fragment's checksum is partial.  A peer judges the
# whole packet again.  A hardened VPC has completed most of them before.
UNASKED = {
    ("soft", "two"): {"the port of a datagram", "the type of an ICMP message", "the lower half of the source"},
    ("soft", "side"): {"the source port of a datagram", "the lower half of the source", "the source in no protocol"},
}


@contextlib.contextmanager
def nothing_asked(network: Network, vpc: str) -> Iterator[None]:
    """The router takes a first fragment as it is for a while."""
    network.lab.run(["nft", "flush", "chain", "inet", names.TABLE, "first-fragment"], netns=f"{vpc}-router")
    try:
        yield
    finally:
        network.wire.vpcctl("repair")


@pytest.mark.parametrize("cut", [8, 48])
@pytest.mark.parametrize("target", ["two", "side"])
@pytest.mark.parametrize("vpc", VPCS)
def test_what_was_judged_in_fragments_is_what_arrives(network: Network, vpc: str, target: str, cut: int) -> None:
    sender = f"{vpc}-one"
    ear = network["side-side" if target == "side" else f"{vpc}-two"]
    lies = {name: lying(network, sender, ear.address, lie, cut) for name, lie in LIES.items()}
    assert set(arrived(ear.tap, lies, honest(network[sender], ear.address, UDP, cut))) <= LEGAL[vpc]
    # The words come in the first fragment, or in the second one.
    truths = {str(lie.protocol): honest(network[sender], ear.address, lie.protocol, cut) for lie in LIES.values()}
    assert arrived(ear.tap, truths, honest(network[sender], ear.address, UDP, cut)) == list(truths)
    if (vpc, target) in UNASKED:
        with nothing_asked(network, vpc):
            found = arrived(ear.tap, lies, honest(network[sender], ear.address, UDP, cut))
        assert set(found) >= UNASKED[vpc, target]


@pytest.mark.parametrize("vpc", VPCS)
def test_a_fragment_that_leaves_its_checksum_to_others_goes_nowhere_in_whatever_wrapping(
    network: Network, vpc: str
) -> None:
    sender, ear = network[f"{vpc}-one"], network[f"{vpc}-two"]
    ends = (sender.address, ear.address)

    def wrapped(first: tuple[int, int], second: tuple[int, int], **wrapping: object) -> Probe:
        def make(one: bytes) -> list[bytes]:
            content = wire.tcp(ends, 1111, ALLOWED, wire.SYN, one.ljust(600, b"\0"))
            packets = wire.fragments(*ends, TCP, content, 80, next(IDENTIFIERS))
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
    with nothing_asked(network, vpc):
        found = arrived(ear.tap, probes, honest(sender, ear.address, TCP, 48))
    if vpc == "soft":
        assert set(found) >= {"where the checksum belongs", "the first fragment alone", "from 36"}


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


# --- Without fragments ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def card(network: Network) -> None:
    """A network card for the host: it completes checksums where the packet says, as real ones do."""
    network.wire.tell("complete_checksums", netns=None, link="eth0")


def whole(station: Station, mouth: Tap, destination: str, protocol: int) -> Probe:
    """An honest packet whose checksum is left to others."""
    ends = (station.address, destination)

    def make(one: bytes) -> bytes:
        content = partial(ends, protocol, segment(ends, protocol, one.ljust(64, b"\0")))
        return offloaded(station.frame(ipv4(*ends, protocol, content)), TRANSPORT, CHECKSUM[protocol])

    return mouth, make


CHECKSUM = {UDP: 6, TCP: 16}


def partial(ends: tuple[str, str], protocol: int, content: bytes) -> bytes:
    """What a packet carries, with the sum of its pseudo header alone where the checksum belongs."""
    pseudo = b"".join(map(socket.inet_aton, ends)) + struct.pack("!BBH", 0, protocol, len(content))
    place = CHECKSUM[protocol]
    return content[:place] + struct.pack("!H", ~checksum(pseudo) & 0xFFFF) + content[place + 2 :]


def is_complete(packet: bytes) -> bool:
    """Is the checksum of this IPv4 packet right?"""
    content = packet[20 : struct.unpack_from("!H", packet, 2)[0]]
    return checksum(packet[12:20] + struct.pack("!BBH", 0, packet[9], len(content)) + content) == 0


@pytest.mark.parametrize("protocol", CHECKSUM)
@pytest.mark.parametrize("vpc", VPCS)
def test_an_honest_checksum_that_is_left_to_the_card_is_right_on_the_lan(
    network: Network, card: None, vpc: str, protocol: int
) -> None:
    sender, far = network[f"{vpc}-one"], network[FAR]
    probe = whole(sender, network.mouths[f"{vpc}-one"], far.address, protocol)
    one = wire.word()
    far.tap.heard()
    network.mouths[f"{vpc}-one"].send(probe[1](one))
    # An error about the answer may quote the word, too.
    frame, *_ = containing(far.tap.hear(one), one)
    assert frame[NETWORK + 9] == protocol
    assert is_complete(frame[NETWORK:])


@pytest.mark.parametrize("target", ["two", "side"])
def test_a_hardened_vpc_judges_what_arrives(network: Network, target: str) -> None:
    ear = network["side-side" if target == "side" else "hard-two"]
    lies = {name: lying(network, "hard-one", ear.address, lie) for name, lie in LIES.items()}
    assert set(arrived(ear.tap, lies, network["hard-one"].udp(ear.address, ALLOWED))) == LEGAL["hard"]


# What leaves a VPC that is not hardened by a card that completes checksums is not always what was judged.  An address
# that is changed so late makes the checksum of the IP header wrong, and the next hop drops the packet.
OUTWARDS = {"the port of a datagram", "the port of a datagram, by a sum from there on", "the port of a SYN"}


def outwards(network: Network, vpc: str) -> dict[str, Probe]:
    return {name: lying(network, f"{vpc}-one", str(INTERNET), lie) for name, lie in LIES.items()}


def test_out_of_a_hardened_vpc_goes_what_was_judged(network: Network, card: None) -> None:
    far, hard, soft = network[FAR], network["hard-one"], network["soft-one"]
    # The attack works where it is not stopped.
    assert set(arrived(far.tap, outwards(network, "soft"), soft.udp(far.address, ALLOWED))) >= OUTWARDS
    assert set(arrived(far.tap, outwards(network, "hard"), hard.udp(far.address, ALLOWED))) == LEGAL["hard"]


# A late change of the destination of which the checksum of the IP header says nothing: (what is judged, the lie, the
# size of the packet, what leaves).
UNNOTICED = {
    "0x0000 and 0xffff are the same in the checksum": (ZEROS, Lie(ICMP, DESTINATION, 2, 0xFFFF), 64, "9.9.255.255"),
    "the host cuts the packet and writes a new checksum": (
        str(INTERNET),
        Lie(ICMP, DESTINATION, 2, 0x0808),
        1400,
        "203.0.8.8",
    ),
}


@pytest.fixture
def narrow(network: Network) -> Iterator[None]:
    """A link to the LAN that is narrower than those of the instances."""
    network.lab.run(["ip", "link", "set", "eth0", "mtu", "1000"])
    yield
    network.lab.run(["ip", "link", "set", "eth0", "mtu", "1500"])


@pytest.mark.parametrize("case", UNNOTICED)
@pytest.mark.parametrize("vpc", VPCS)
def test_a_destination_changes_late_only_out_of_a_vpc_that_is_not_hardened(
    network: Network, card: None, narrow: None, vpc: str, case: str
) -> None:
    judged, lie, size, changed = UNNOTICED[case]
    # A ping of another VPC with the same identifier would have this one's changed, and with it the sum.
    for namespace in (None, *(f"{name}-router" for name in VPCS)):
        network.wire.forget_flows(namespace)
    sender, far, one, last = network[f"{vpc}-one"], network[FAR], wire.word(), wire.word()
    mouth, make = lying(network, f"{vpc}-one", judged, lie, size=size)
    far.tap.heard()
    mouth.send(*make(one))
    sender.tap.send(sender.udp(far.address, ALLOWED)[1](last))
    heard = far.tap.hear(last)
    assert containing(heard, last)
    packets = [frame[NETWORK:] for frame in containing(heard, one)]
    valid = {socket.inet_ntoa(packet[16:20]) for packet in packets if checksum(packet[:20]) == 0}
    assert valid == ({changed} if vpc == "soft" else set())


def large(station: Station, mouth: Tap, destination: str, start: int, count: int) -> Probe:
    """A TCP segment that is to be cut into `count` (GSO), its checksum being summed up from `start` on."""
    ends = (station.address, destination)

    def make(one: bytes) -> bytes:
        content = partial(ends, TCP, wire.tcp(ends, 1111, ALLOWED, wire.SYN, one.ljust(1000, b"\0") * count))
        return offloaded(station.frame(ipv4(*ends, TCP, content)), start, 16, gso=(1, 54, 1000))

    return mouth, make


@pytest.mark.parametrize("count", [1, 2, 8, 40])
def test_a_large_packet_is_cut_with_the_checksum_that_was_judged_or_not_at_all(
    network: Network, card: None, count: int
) -> None:
    far, sender, mouth = network[FAR], network["hard-one"], network.mouths["hard-one"]
    lies = {str(start): large(sender, mouth, far.address, start, count) for start in (16, 18, 20, 22, 28, 32, 36)}
    honest_one = {"honest": large(sender, mouth, far.address, TRANSPORT, count)}
    assert arrived(far.tap, lies | honest_one, sender.udp(far.address, ALLOWED)) == ["honest"]
    if count == 1:
        # This one arrives where it is not stopped; the others the kernel refuses by itself.
        soft = network["soft-one"]
        lie = {"36": large(soft, network.mouths["soft-one"], far.address, 36, count)}
        assert arrived(far.tap, lie, soft.udp(far.address, ALLOWED)) == ["36"]


# --- The detour -------------------------------------------------------------------------------------------------------

BROKEN = {
    "the detour is gone": ("tc qdisc del dev in-one ingress", ["Detour"]),
    "another filter comes first": (
        "tc filter add dev in-one ingress protocol ip prio 1 u32 match u32 0 0 at 0 flowid 1:1",
        ["Detour"],
    ),
    "the link completes no checksums": (sys.executable, ["ChecksumLink"]),
    "the link is down": ("ip link set checksums down", ["LinkUp"]),
    "the link is gone": ("ip link del checksums", ["ChecksumLink", "Detour", "Detour", "LinkUp", "Mtu"]),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_told_and_repaired(network: Network, card: None, what: str) -> None:
    command, kinds = BROKEN[what]
    if command == sys.executable:
        network.wire.tell("complete_checksums", netns="hard-router", link="checksums", on=True)
    else:
        network.lab.run(command.split(), netns="hard-router")
    status, text = network.wire.tell("vpcctl", words=["status", "--json"], text="")
    assert status == 3
    assert sorted(one["kind"] for one in json.loads(text)["differences"]) == kinds
    network.wire.vpcctl("repair")
    network.wire.vpcctl("status")
    far, hard = network[FAR], network["hard-one"]
    assert set(arrived(far.tap, outwards(network, "hard"), hard.udp(far.address, ALLOWED))) == LEGAL["hard"]


@pytest.mark.parametrize("target", ["two", "side"])
@pytest.mark.parametrize("command", ["ip link set checksums down", "ip link del checksums"])
def test_without_the_link_nothing_passes(network: Network, command: str, target: str) -> None:
    """Neither a new flow nor one that was admitted earlier."""
    hard, ear = network["hard-one"], network["side-side" if target == "side" else "hard-two"]
    admitted, new = (hard.udp(ear.address, ALLOWED, port) for port in (1112, 1113))
    network.wire.forget_flows("hard-router")
    assert arrived(ear.tap, {}, admitted) == []
    network.lab.run(command.split(), netns="hard-router")
    words = [wire.word(), wire.word()]
    try:
        ear.tap.heard()
        for (tap, make), one in zip((admitted, new), words, strict=True):
            tap.send(make(one))
    finally:
        network.wire.vpcctl("repair")
    later = wire.word()
    admitted[0].send(admitted[1](later))
    frames = ear.tap.hear(later)
    assert [containing(frames, one) for one in words] == [[], []]
    assert containing(frames, later) != []


def test_a_vpc_is_hardened_and_softened_while_it_is_there(network: Network, card: None) -> None:
    far, hard = network[FAR], network["hard-one"]
    document = json.loads(network.wire.tell("vpcctl", words=["export"], text="")[1])
    [vpc] = (one for one in document["vpcs"] if one["name"] == "hard")
    for hardened in (False, True):
        vpc["hardened"] = hardened
        network.wire.vpcctl("apply", "-", document=document)
        network.wire.vpcctl("status")
        found = set(arrived(far.tap, outwards(network, "hard"), hard.udp(far.address, ALLOWED)))
        assert found == LEGAL["hard"] if hardened else found >= OUTWARDS


def test_live_flows_survive_that_a_vpc_is_hardened_and_softened(network: Network) -> None:
    document = json.loads(network.wire.tell("vpcctl", words=["export"], text="")[1])
    [vpc] = (one for one in document["vpcs"] if one["name"] == "hard")
    with stations(network.lab, "hard-one", "hard-two") as (one, two):
        address = network["hard-two"].address
        udp = start_flow("udp", one, two, address, ALLOWED, "udp", rate=500, push=500)
        tcp = start_flow("tcp", one, two, address, ALLOWED, "tcp", rate=200, push=200)
        assert_moving([udp, tcp], time.monotonic())
        for hardened in (False, True):
            vpc["hardened"] = hardened
            network.wire.vpcctl("apply", "-", document=document)
            detour = network.lab.run(["tc", "filter", "show", "dev", "in-one", "ingress"], netns="hard-router").stdout
            assert bool(detour) == hardened
            assert_moving([udp, tcp], time.monotonic())
        assert eventually(lambda: min(end.sent for end in (*udp.counts(), *tcp.counts())) > 100)
        # While the link comes or goes datagrams are lost; TCP sends again.
        assert_nothing_lost([tcp])


def test_the_detour_lets_nobody_pretend_to_be_somebody_else(network: Network) -> None:
    hard, two = network["hard-one"], network["hard-two"]
    ends = (hard.address, two.address)

    def frame(source: str = hard.mac, address: str = hard.address, tags: tuple[tuple[int, int], ...] = ()) -> Probe:
        def make(one: bytes) -> bytes:
            packet = ipv4(address, two.address, UDP, wire.udp(1111, ALLOWED, one))
            return wire.ethernet(hard.gateway, source, wire.IP, packet, tags)

        return hard.raw(make)

    def spoofed_fragments(one: bytes) -> list[bytes]:
        content = wire.udp(1111, ALLOWED, one.ljust(64, b"\0"))
        return [hard.frame(packet) for packet in wire.fragments(two.address, ends[1], UDP, content, 16, 5)]

    probes = {
        "another's MAC": frame(source=two.mac),
        "nobody's MAC": frame(source="02:00:00:00:00:99"),
        "the gateway's MAC": frame(source=hard.gateway),
        "another's address": frame(address="10.8.1.77"),
        "a peer's address": frame(address="10.9.1.2"),
        "no VLAN": frame(tags=((wire.VLAN, 0),)),
        "a VLAN": frame(tags=((wire.VLAN, 5),)),
        "two VLANs": frame(tags=((wire.QINQ, 5), (wire.VLAN, 0))),
        "fragments": hard.raw(spoofed_fragments),
    }
    assert arrived(two.tap, probes, frame()) == []
