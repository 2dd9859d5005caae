"""VPCs are apart unless peered, a peering lends nothing, and every packet of every protocol is judged."""

from __future__ import annotations

import contextlib
import struct
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab import wire
from tests.lab.machine import run_all
from tests.lab.tenants import (
    APP,
    DB,
    FAR,
    INSTANCES,
    NEAR,
    PUB,
    PUBLISHED,
    TARGET,
    TWIN,
    UPLINKS,
    WEB,
    WEB_2,
    Station,
    Tenants,
)
from tests.lab.wire import ACK, FIN, ICMP, PSH, RST, SYN, TCP, UDP, URG, Probe, Tracked, arrived, ipv4, word
from vpcctl.lab import HOST, INTERNET, Lab

ALLOW = {"action": "allow"}


@pytest.fixture(scope="module")
def tenants(module_lab: Lab) -> Tenants:
    return Tenants(module_lab)


# --- VPCs -------------------------------------------------------------------------------------------------------------

# Of each receiver: who may reach it, as the canary, and who may not.
STRANGERS = [
    (WEB, APP, (PUB, TWIN)),
    (DB, APP, (PUB, TWIN)),
    (APP, WEB, (TWIN,)),
    (PUB, APP, (WEB, DB, TWIN)),
]


def everything(sender: Station, destination: str) -> dict[str, Probe]:
    """A probe of each sort to an address."""
    return {
        f"UDP {sender.address}": sender.udp(destination, TARGET),
        f"UDP to a published port {sender.address}": sender.udp(destination, PUBLISHED),
        f"TCP {sender.address}": sender.tcp(destination, TARGET),
        f"TCP to a published port {sender.address}": sender.tcp(destination, PUBLISHED),
        f"echo {sender.address}": sender.echo(destination),
        f"GRE {sender.address}": sender.raw(lambda one: sender.packet(destination, wire.GRE, b"\0\0\x08\0" + one)),
    }


@pytest.mark.parametrize(("target", "friend", "strangers"), STRANGERS)
def test_a_vpc_is_reached_by_its_peers_and_not_by_theirs(
    tenants: Tenants, target: str, friend: str, strangers: tuple[str, ...]
) -> None:
    ear = tenants[target]
    allowed = everything(tenants[friend], ear.address)
    assert arrived(ear.tap, allowed, tenants[friend].udp(ear.address, 1)) == list(allowed)
    denied = {
        f"{name}, {probe}": made for name in strangers for probe, made in everything(tenants[name], ear.address).items()
    }
    assert arrived(ear.tap, denied, tenants[friend].udp(ear.address, 1)) == []


def test_a_vpc_with_the_same_prefix_has_its_own_instances(tenants: Tenants) -> None:
    twin, web, web_2, far = tenants[TWIN], tenants[WEB], tenants[WEB_2], tenants[FAR]
    twin.tap.heard()
    assert twin.address == web.address
    probes = {"theirs": web_2.udp(web.address, 2222)}
    assert arrived(web.tap, probes, web_2.udp(web.address, 2222)) == ["theirs"]
    assert twin.tap.heard() == []
    # One flow of each, alike to the last bit, is two flows outside, and each answer finds its own.
    for one in (twin, web):
        assert arrived(far.tap, {"out": one.udp(far.address, 53)}, one.udp(far.address, 53)) == ["out"]
        mark = word()
        one.tap.send(one.udp(far.address, 53)[1](mark))
        assert wire.containing(one.tap.hear(b"heard you from 198.51.100.2: " + mark), mark)
    assert [wire.containing(one.tap.heard(), b"heard you") for one in (twin, web)] == [[], []]


@pytest.mark.parametrize("sender", [WEB, APP, PUB, TWIN])
def test_a_published_port_is_called_by_tenants_at_the_hosts_address_alone(tenants: Tenants, sender: str) -> None:
    near, ear, one = tenants[NEAR], tenants[PUB], tenants[sender]
    canary = near.udp(str(HOST), PUBLISHED)
    assert arrived(ear.tap, {"published": near.udp(str(HOST), PUBLISHED)}, canary) == ["published"]
    doors = (str(HOST), UPLINKS["red"][1], UPLINKS["red"][0], UPLINKS["shop"][0], "127.0.0.1", "198.51.100.255")
    probes = {f"{door}: {name}": made for door in doors for name, made in everything(one, door).items()}
    # A private subnet has no way out, so it cannot call published ports.
    opened = [f"{HOST}: {name} to a published port {one.address}" for name in ("UDP", "TCP") if sender != APP]
    assert sorted(arrived(ear.tap, probes, canary)) == sorted(opened)


# --- A peer whose router is not ours any more: what comes by its link is checked on this side, too -------------------


@contextlib.contextmanager
def rogue(tenants: Tenants, vpc: str, link: str) -> Iterator[Station]:
    """Somebody who sits in the router of `vpc` and sends by `link`, which leads to a peer."""
    router, far_end = f"{vpc}-router", (f"{link.removeprefix('pr-')}-router", f"pr-{vpc}")
    tap = tenants.wire.tap(router, link)
    yield Station(tap, tenants.mac(router, link), tenants[APP].address, tenants.mac(*far_end))


def test_a_peering_brings_in_the_peers_addresses_alone(tenants: Tenants) -> None:
    ear = tenants[DB]
    with rogue(tenants, "blue", "pr-shop") as blue:
        sources = ("10.2.1.2", "10.0.1.2", "10.0.3.1", "203.0.113.10", "100.64.0.2", "127.0.0.1", "169.254.0.1")
        probes = {source: blue.udp(ear.address, 2222, source=source) for source in sources}
        assert arrived(ear.tap, probes, blue.udp(ear.address, 2222)) == []


@pytest.mark.parametrize("target", [FAR, NEAR, PUB])
def test_a_peering_lends_no_uplink_and_leads_no_further(tenants: Tenants, target: str) -> None:
    ear, db, friend = tenants[target], tenants[DB], tenants[APP if target == PUB else WEB]
    with rogue(tenants, "blue", "pr-shop") as blue:
        assert arrived(ear.tap, everything(blue, ear.address), friend.udp(ear.address, 2)) == []
        assert arrived(db.tap, everything(blue, db.address), blue.udp(db.address, 1)) != []


def test_a_vpc_without_a_way_out_has_no_default_route_and_says_nothing_of_it(tenants: Tenants) -> None:
    """Its instances get no "network unreachable", like those of a private subnet in a VPC with a way out."""
    lab, app = tenants.lab, tenants[APP]

    def errors() -> list[bytes]:
        """The ICMP errors that come back before the answer to a ping that is sent afterwards."""
        one = word()
        # The kernel limits the rate of these errors, and earlier tests may have reached the limit
        # (net.ipv4.route.error_cost).
        time.sleep(2.5)
        app.tap.heard()
        app.tap.send(app.packet(str(INTERNET), UDP, wire.udp(1, 2222, b"")), app.echo(app.router)[1](one))
        heard = app.tap.hear(one)
        assert any(one in frame for frame in heard), "the ping was not answered, so that silence proves nothing"
        return [frame for frame in heard if frame[23] == ICMP and frame[34] == 3]

    assert "default" not in lab.run(["ip", "route"], netns="blue-router").stdout
    assert "default" in lab.run(["ip", "route"], netns="shop-router").stdout
    assert errors() == []
    # The control: without the rule, an error arrives.
    lab.run(["nft", "insert rule inet vpcctl filter-output meta l4proto icmp accept"], netns="blue-router")
    try:
        assert errors() != []
    finally:
        tenants.wire.vpcctl("repair")


@pytest.mark.parametrize("sender", [DB, APP])
def test_a_private_subnet_has_no_way_out_not_even_by_a_peer(tenants: Tenants, sender: str) -> None:
    ear, one = tenants[FAR], tenants[sender]
    probes = everything(one, str(INTERNET)) | everything(one, "203.0.113.77")
    assert arrived(ear.tap, probes, tenants[WEB].udp(str(INTERNET), 2222)) == []


# --- Every protocol ---------------------------------------------------------------------------------------------------

ONLY = {"ingress": [{**ALLOW, "protocol": "udp", "port": 2222}, {**ALLOW, "protocol": "tcp", "port": 80}]}
# What the first bytes of a packet must be for connection tracking to take it.
OPENINGS = {
    wire.GRE: b"\0\0\x08\0",
    wire.SCTP: struct.pack("!HHII", 1111, 2222, 0, 0),
}


def of_protocol(sender: Station, destination: str, number: int) -> Probe:
    """A packet of an IP protocol with the ports that `ONLY` allows where others have their ports."""
    if number == wire.UDPLITE:
        ends = (sender.address, destination)
        return sender.raw(lambda one: sender.packet(destination, number, wire.udplite(ends, 80, 2222, one)))
    opening = OPENINGS.get(number, struct.pack("!HHHH", 80, 2222, 16, 0))
    return sender.raw(lambda one: sender.packet(destination, number, opening + one))


@pytest.mark.parametrize("target", [DB, WEB_2, APP])
def test_a_protocol_that_no_rule_allows_is_denied(tenants: Tenants, target: str) -> None:
    web, ear = tenants[WEB], tenants[target]
    canary = web.udp(ear.address, 2222)
    probes = {str(number): of_protocol(web, ear.address, number) for number in range(256) if number not in (TCP, UDP)}
    probes |= {"TCP 2222": web.tcp(ear.address, 2222), "UDP 80": web.udp(ear.address, 80)}
    # What has no ports would else be taken for the answer to what an earlier test sent the other way.
    for vpc in ("shop", "blue"):
        tenants.wire.forget_flows(f"{vpc}-router")
    with tenants.policy(*_place(target), **ONLY):
        assert arrived(ear.tap, probes | {"echo": web.echo(ear.address)}, canary) == []
        assert arrived(ear.tap, {"TCP 80": web.tcp(ear.address, 80)}, canary) == ["TCP 80"]


def test_a_protocol_that_a_rule_allows_passes(tenants: Tenants) -> None:
    web, ear = tenants[WEB], tenants[DB]
    allowed, others = (wire.GRE, wire.ESP, wire.UDPLITE, 253), (wire.IPIP, wire.AH, 89, 255)
    probes = {str(number): of_protocol(web, ear.address, number) for number in (*allowed, *others)}
    with tenants.policy("shop", "db", ingress=[{**ALLOW, "protocol": number} for number in (UDP, *allowed)]):
        assert arrived(ear.tap, probes, web.udp(ear.address, 2222)) == [str(number) for number in allowed]
    with tenants.policy("shop", "db", ingress=[{**ALLOW, "protocol": number} for number in (UDP, *others)]):
        assert arrived(ear.tap, probes, web.udp(ear.address, 2222)) == [str(number) for number in others]


def _place(name: str) -> tuple[str, str]:
    """The VPC and the subnet of an instance."""
    vpc, subnet, _ = INSTANCES[name]
    return vpc, subnet


# --- TCP, fragments ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["0", "1"])
def loose(tenants: Tenants, request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether connection tracking takes a flow up in the middle: never in our routers, but the rules hold without."""
    setting = "net.netfilter.nf_conntrack_tcp_loose"
    assert tenants.lab.run(["sysctl", "-n", setting], netns="shop-router").stdout == "0\n"
    tenants.lab.run(["sysctl", "-q", "-w", f"{setting}={request.param}"], netns="shop-router")
    yield
    tenants.lab.run(["sysctl", "-q", "-w", f"{setting}=0"], netns="shop-router")


@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize("target", [DB, WEB_2, APP, FAR])
def test_a_tcp_flow_begins_with_a_syn(tenants: Tenants, target: str) -> None:
    web, ear = tenants[WEB], tenants[target]
    flags = (0, FIN, RST, ACK, SYN | ACK, SYN | FIN, SYN | RST, PSH | ACK, FIN | PSH | URG, FIN | ACK, RST | ACK, 63)
    probes = {str(one): web.tcp(ear.address, 80, one, source_port=4000 + one) for one in flags}
    assert arrived(ear.tap, probes, web.tcp(ear.address, 80, source_port=4999)) == []
    legal = {"urgent": web.tcp(ear.address, 80, SYN | URG, source_port=5001)}
    assert arrived(ear.tap, legal, web.tcp(ear.address, 80, source_port=5002)) == ["urgent"]


@pytest.mark.usefixtures("loose")
def test_a_flow_that_was_cut_is_not_picked_up_in_the_middle(tenants: Tenants) -> None:
    """Not even where the router has forgotten it: so a change cannot be waited out with the old connection."""
    web, db = tenants[WEB], tenants[DB]
    _shake_hands(web, db, 4100)
    middle = web.tcp(db.address, 80, ACK | PSH, source_port=4100, sequence=1001, acknowledged=2001)
    assert arrived(db.tap, {"open": middle}, web.udp(db.address, 1)) == ["open"]
    tenants.wire.forget_flows("shop-router")
    answer = db.tcp(web.address, 4100, ACK | PSH, source_port=80, sequence=2001, acknowledged=1001)
    assert arrived(db.tap, {"forgotten": middle}, web.udp(db.address, 1)) == []
    assert arrived(web.tap, {"forgotten": answer}, db.udp(web.address, 1)) == []


def _shake_hands(client: Station, server: Station, port: int) -> None:
    """A TCP connection between two taps."""
    steps = (
        (client, server, client.tcp(server.address, 80, SYN, source_port=port)),
        (server, client, server.tcp(client.address, port, SYN | ACK, source_port=80, sequence=2000, acknowledged=1001)),
        (client, server, client.tcp(server.address, 80, ACK, source_port=port, sequence=1001, acknowledged=2001)),
    )
    for _, receiver, probe in steps:
        assert arrived(receiver.tap, {}, probe) == []


def cut(sender: Station, destination: str, port: int, size: int, *, backwards: bool = False) -> Probe:
    """A datagram in two fragments, the first of `size` bytes."""

    def make(one: bytes) -> list[bytes]:
        payload = wire.udp(1111, port, b"-" * 16 + one)
        packets = wire.fragments(sender.address, destination, UDP, payload, size, int(one[1:-1]) & 0xFFFF)
        return [sender.frame(packet) for packet in (packets[::-1] if backwards else packets)]

    return sender.raw(make)


def doubled(sender: Station, destination: str, ports: tuple[int, int], sizes: tuple[int, int]) -> Probe:
    """Two first fragments with different ports, of `sizes` bytes, and the rest from the 16th byte on."""

    def make(one: bytes) -> list[bytes]:
        identifier = int(one[1:-1]) & 0xFFFF
        payloads = [wire.udp(1111, port, b"-" * 32 + one) for port in ports]
        packets = [
            ipv4(sender.address, destination, UDP, payload[:size], identifier=identifier, flags=wire.MORE)
            for payload, size in zip(payloads, sizes, strict=True)
        ]
        packets.append(ipv4(sender.address, destination, UDP, payloads[0][16:], identifier=identifier, offset=16))
        return [sender.frame(packet) for packet in packets]

    return sender.raw(make)


@pytest.mark.parametrize("target", [DB, WEB_2])
def test_fragments_are_judged_by_the_whole_packet(tenants: Tenants, target: str) -> None:
    web, ear = tenants[WEB], tenants[target]
    there = ear.address
    canary = cut(web, there, 2222, 8)
    denied = {
        "tiny": cut(web, there, 53, 8),
        "plain": cut(web, there, 53, 16),
        "backwards": cut(web, there, 53, 16, backwards=True),
        "tiny, backwards": cut(web, there, 53, 8, backwards=True),
        "the second alone": web.raw(lambda one: cut(web, there, 2222, 8)[1](one)[1:]),
        "twice, the bad one first": doubled(web, there, (53, 2222), (16, 16)),
        "overlapping": doubled(web, there, (2222, 53), (24, 16)),
        "overlapping, the bad one first": doubled(web, there, (53, 2222), (24, 16)),
        "overlapping, the bad one longer": doubled(web, there, (2222, 53), (16, 24)),
    }
    rules = [{"action": "deny", "protocol": "udp", "port": 53}, ALLOW]
    with tenants.policy(*_place(target), ingress=rules):
        assert arrived(ear.tap, denied, canary) == []


# --- ICMP errors ------------------------------------------------------------------------------------------------------


def error(sender: Station, receiver: str, quoted: tuple[str, str, int, int], kind: int = 3) -> Probe:
    """An ICMP error of `sender` about a UDP packet (source, destination, ports)."""
    source, destination, source_port, port = quoted
    return sender.raw(
        lambda one: sender.packet(
            receiver, ICMP, wire.icmp(kind, 0, ipv4(source, destination, UDP, wire.udp(source_port, port, one)))
        )
    )


@pytest.mark.parametrize("bystander", [WEB_2, APP])
def test_an_error_is_believed_from_the_flows_own_end_alone(tenants: Tenants, bystander: str) -> None:
    """Who guesses the ports of a flow could else reach its ends past their policies, and end or slow the flow."""
    web, db, liar = tenants[WEB], tenants[DB], tenants[bystander]
    there, back = (web.address, db.address, 1500, 2500), (db.address, web.address, 2500, 1500)
    rules = [{**ALLOW, "source": "instance:web"}]
    with tenants.policy("shop", "db", ingress=rules), tenants.policy("shop", "web", ingress=rules):
        opening = web.udp(db.address, 2500, source_port=1500)
        assert arrived(db.tap, {}, opening) == []
        for kind in (3, 11, 12):
            assert arrived(db.tap, {"lie": error(liar, db.address, back, kind)}, opening) == []
            honest = error(db, web.address, there, kind)
            assert arrived(web.tap, {"lie": error(liar, web.address, there, kind)}, honest) == []
            assert arrived(db.tap, {"end": error(web, db.address, back, kind)}, opening) == ["end"]


def test_an_error_about_a_flow_that_is_none_of_its_senders_does_not_leave(tenants: Tenants) -> None:
    web, liar, far = tenants[WEB], tenants[WEB_2], tenants[FAR]
    opening = web.udp(far.address, 2500, source_port=1500)
    assert arrived(far.tap, {}, opening) == []
    quoted = (far.address, UPLINKS["shop"][1], 2500, 1500)
    honest = error(web, far.address, (far.address, web.address, 2500, 1500))
    probes = {
        "lie": error(liar, far.address, quoted),
        "another": error(liar, far.address, (far.address, web.address, 2500, 1500)),
    }
    # Which of the two forms the translation takes from the honest end is its own affair; one of them it must.
    good = {"honest": honest, "translated": error(web, far.address, quoted)}
    assert arrived(far.tap, good, opening) != []
    assert arrived(far.tap, probes, opening) == []


def test_an_error_of_an_older_generation_neither_passes_nor_stamps(tenants: Tenants) -> None:
    web, db = tenants[WEB], tenants[DB]
    there, back = (web.address, db.address, 1600, 2600), (db.address, web.address, 2600, 1600)
    opening = web.udp(db.address, 2600, source_port=1600)
    errors = {"of the server": error(db, web.address, there)}
    with tenants.policy("shop", "db", ingress=[{**ALLOW, "protocol": "udp"}]):
        assert arrived(db.tap, {}, opening) == []
        admitted = _tracked(tenants, 1600).mark
        assert arrived(web.tap, errors, db.udp(web.address, 1)) == ["of the server"]
        tenants.apply("shop", "db", ingress=[{**ALLOW, "protocol": "tcp"}])
        assert arrived(web.tap, errors, db.udp(web.address, 1)) == []
        denied = {"of the client": error(web, db.address, back)}
        assert arrived(db.tap, denied, web.tcp(db.address, 80, source_port=4200)) == []
        assert _tracked(tenants, 1600).mark == admitted
        # And a flow that stays allowed is stamped by its own next packet.
        tenants.apply("shop", "db", ingress=[ALLOW])
        assert arrived(web.tap, errors, db.udp(web.address, 1)) == []
        assert _tracked(tenants, 1600).mark == admitted
        assert arrived(db.tap, {}, opening) == []
        assert _tracked(tenants, 1600).mark > admitted
        assert arrived(web.tap, errors, db.udp(web.address, 1)) == ["of the server"]


def _tracked(tenants: Tenants, source_port: int) -> Tracked:
    return next(flow for flow in tenants.wire.flows("shop-router") if flow.source_port == source_port)


# --- Other software ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("netns", [None, "shop-router"])
def test_filtering_of_bridged_frames_switched_on_by_others_opens_and_closes_nothing(
    tenants: Tenants, netns: str | None
) -> None:
    """As container engines do (net.bridge.bridge-nf-call-*)."""
    web, web_2 = tenants[WEB], tenants[WEB_2]
    here = tenants.lab.run(["sh", "-c", "ls -d /proc/sys/net/bridge/bridge-nf-call-*"], netns=netns, check=False).stdout
    if not here:
        pytest.skip("the kernel has no br_netfilter loaded")
    _switch(tenants, netns, here.split(), "1")
    try:
        rules = [{**ALLOW, "protocol": "udp", "port": 2222}]
        with tenants.policy("shop", "web", ingress=rules):
            denied = everything(web, web_2.address)
            spoofed = {"spoofed": web.udp(web_2.address, 2222, source="10.0.3.2")}
            past = {"past": web.raw(lambda one: web.frame(_datagram(web, web_2, one), to=web_2.mac))}
            assert arrived(web_2.tap, denied | spoofed | past, web.udp(web_2.address, 2222)) == []
    finally:
        _switch(tenants, netns, here.split(), "0")


def _datagram(sender: Station, receiver: Station, one: bytes) -> bytes:
    return ipv4(sender.address, receiver.address, UDP, wire.udp(1, 2222, one))


def _switch(tenants: Tenants, netns: str | None, files: list[str], value: str) -> None:
    tenants.lab.run(
        ["sh", "-c", 'value=$1; shift; for one; do echo "$value" >"$one"; done', "sh", value, *files], netns=netns
    )


def test_a_flushed_firewall_of_the_host_opens_no_vpc(tenants: Tenants) -> None:
    """`nft flush ruleset` on the host takes the ways out with it, but no way in, nor one between VPCs."""
    near, pub, web = tenants[NEAR], tenants[PUB], tenants[WEB]
    tenants.lab.run(["nft", "flush", "ruleset"])
    try:
        doors = ("10.2.1.2", *UPLINKS["red"], *UPLINKS["shop"], "10.0.1.2")
        probes = {f"{door}: {name}": made for door in doors for name, made in everything(near, door).items()}
        probes |= {f"{door}: {name}": made for door in doors[1:3] for name, made in everything(web, door).items()}
        friend = tenants[APP].udp(pub.address, 1)
        # The router also accepts calls of published ports from anybody who can send to it.
        senders = ("198.51.100.20", web.address)
        opened = {f"{UPLINKS['red'][1]}: {n} to a published port {s}" for n in ("UDP", "TCP") for s in senders}
        assert set(arrived(pub.tap, probes, friend)) <= opened
        inside = {f"{door}: {name}": made for door in doors for name, made in everything(near, door).items()}
        assert arrived(web.tap, inside, tenants[APP].udp(web.address, 1)) == []
    finally:
        tenants.wire.vpcctl("repair")
    assert arrived(tenants[FAR].tap, {}, web.udp(str(INTERNET), 2222)) == []


HELD = """
import ctypes, os, sys
held = os.open(sys.argv[1], os.O_RDONLY)
print("held", flush=True)
sys.stdin.readline()
assert ctypes.CDLL(None).setns(held, 0x40000000) == 0
with open("/proc/sys/net/ipv4/ip_forward") as forwards:
    print(forwards.read())
"""


def test_a_router_that_dies_forwards_nothing_more(lab: Lab) -> None:
    """The kernel takes the rules of a dying namespace away before its links; here somebody holds it, and all stays."""
    run_all(
        lab,
        (
            "create-vpc --name shop --cidr 10.0.0.0/16",
            "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
        ),
    )
    holder = lab.popen([sys.executable, "-c", HELD, "/run/netns/shop-router"])
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    lab.vpcctl("delete-vpc", "--name", "shop", "--cascade")
    output, _ = holder.communicate("\n")
    assert output.strip() == "0"
