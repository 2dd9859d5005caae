"""A workload that is root speaks for itself alone, and only in ARP and IPv4."""

from __future__ import annotations

import dataclasses
import socket
import struct
from collections.abc import Callable

import pytest

from tests.lab import wire
from tests.lab.tenants import APP, DB, FAR, NEAR, WEB, WEB_2, Station, Tenants
from tests.lab.wire import ARP, EVERYBODY, ICMP, IP, TCP, UDP, VLAN, Probe, arrived, containing, ethernet, ipv4, word
from vpcctl.compiler.hooks import CHECKED_MARK
from vpcctl.lab import INTERNET, Lab

NOBODY_MAC, ZERO = "02:00:00:00:00:99", "00:00:00:00:00:00"
# A bridge takes in frames to these (IEEE 802.1Q, 8.6.3) by the port itself, past its own checks of the sender.
LINK_LOCAL = tuple(f"01:80:c2:00:00:0{number:x}" for number in range(16))


@pytest.fixture(scope="module")
def tenants(module_lab: Lab) -> Tenants:
    return Tenants(module_lab)


# --- Addresses --------------------------------------------------------------------------------------------------------


def spoofs(web: Station, web_2: Station, destination: str) -> dict[str, Probe]:
    """Datagrams and SYNs that say they come from somebody else, from a source port of their own."""
    sources = {
        "another instance's": (web_2.address, web.mac),
        "another instance's, with its MAC": (web_2.address, web_2.mac),
        "its own, with another instance's MAC": (web.address, web_2.mac),
        "its own, with nobody's MAC": (web.address, NOBODY_MAC),
        "its own, with the gateway's MAC": (web.address, web.gateway),
        "its own, with a group's MAC": (web.address, "01:00:5e:00:00:01"),
        "nobody's": ("10.0.1.77", web.mac),
        "the gateway's": (web.router, web.mac),
        "the gateway's, with its MAC": (web.router, web.gateway),
        "another subnet's": ("10.0.3.2", web.mac),
        "another subnet's gateway's": ("10.0.3.1", web.mac),
        "a peer's": ("10.1.1.2", web.mac),
        "the internet's": (str(INTERNET), web.mac),
        "the receiver's": (destination, web.mac),
        "the uplink's": ("100.64.0.1", web.mac),
        "loopback": ("127.0.0.1", web.mac),
        "none": ("0.0.0.0", web.mac),
        "a group's": ("224.0.0.1", web.mac),
    }

    def probe(source: str, mac: str, protocol: int) -> Probe:
        def make(one: bytes) -> bytes:
            segment = wire.tcp((source, destination), 6666, 80, wire.SYN, one)
            payload = segment if protocol == TCP else wire.udp(6666, 2222, one)
            return web.frame(ipv4(source, destination, protocol, payload), source=mac)

        return web.raw(make)

    return {
        f"{name} by {protocol}": probe(source, mac, protocol)
        for name, (source, mac) in sources.items()
        for protocol in (TCP, UDP)
    }


@pytest.mark.parametrize("target", [DB, WEB_2, APP, FAR])
def test_a_packet_from_somebody_elses_address_goes_nowhere_and_leaves_no_entry(tenants: Tenants, target: str) -> None:
    web, ear = tenants[WEB], tenants[target]
    canary = web.udp(ear.address, 2222, source_port=7777)
    assert arrived(ear.tap, spoofs(web, tenants[WEB_2], ear.address), canary) == []
    ports = {flow.source_port for flow in tenants.wire.flows("shop-router")}
    assert 7777 in ports
    assert 6666 not in ports


MARK_ALL = """
table inet marking {
    chain every { type filter hook prerouting priority -500; policy accept; meta mark set %s; }
}
"""


def test_a_mark_that_a_packet_brings_along_is_worth_nothing(tenants: Tenants) -> None:
    """The router trusts the mark of its own bridge; packets from other namespaces have lost theirs."""
    web, ear, lab, mark = tenants[WEB], tenants[DB], tenants.lab, int(CHECKED_MARK, 16)
    marking = dataclasses.replace(web, tap=tenants.wire.tap(WEB, mark=mark))
    assert arrived(ear.tap, spoofs(marking, tenants[WEB_2], ear.address), marking.udp(ear.address, 2222)) == []
    peer, host = (
        Station(
            tenants.wire.tap(namespace, link, mark=mark),
            tenants.mac(namespace, link),
            "10.2.1.2",
            tenants.mac("shop-router", far_end),
        )
        for namespace, link, far_end in (("blue-router", "pr-shop", "pr-blue"), (None, "vpc-shop", "uplink"))
    )
    probes = {
        f"{address} from {name}": sender.udp(ear.address, 2222, source=address)
        for name, sender in (("a peer", peer), ("the host", host))
        for address in ("10.0.1.2", "10.0.3.1", str(INTERNET))
    }
    assert arrived(ear.tap, probes, web.udp(ear.address, 2222)) == []
    # The control: the router accepts a packet that kept its mark.
    lab.run(["nft", MARK_ALL % CHECKED_MARK], netns="shop-router")
    try:
        assert arrived(ear.tap, probes, web.udp(ear.address, 2222)) != []
    finally:
        lab.run(["nft", "delete table inet marking"], netns="shop-router")


def test_an_instance_at_an_unlocked_port_speaks_for_its_own_address_alone(tenants: Tenants) -> None:
    web, web_2, ear, lab = tenants[WEB], tenants[WEB_2], tenants[DB], tenants.lab
    sources = [(web_2.address, web.mac), ("10.0.1.77", web.mac), ("10.0.3.2", web.mac), (web.router, web.gateway)]
    lab.run(["bridge", "link", "set", "dev", "in-web", "locked", "off"], netns="shop-router")
    try:
        probes = {
            f"{address} from {mac}": web.raw(
                lambda one, address=address, mac=mac: web.frame(
                    ipv4(address, ear.address, UDP, wire.udp(6666, 2222, one)), source=mac
                )
            )
            for address, mac in sources
        }
        assert arrived(ear.tap, probes, web.udp(ear.address, 2222)) == []
    finally:
        tenants.wire.vpcctl("repair")


def test_a_source_is_checked_without_the_table_of_the_bridge_too(tenants: Tenants) -> None:
    web, ear, lab = tenants[WEB], tenants[DB], tenants.lab
    lab.run(["nft", "delete table bridge vpcctl"], netns="shop-router")
    try:
        canary = web.udp(ear.address, 2222)
        assert arrived(ear.tap, spoofs(web, tenants[WEB_2], ear.address), canary) == []
        pieces = web.raw(
            lambda one: [
                web.frame(piece)
                for piece in wire.fragments(web.address, ear.address, UDP, wire.udp(1, 2222, b"-" * 16 + one), 16, 811)
            ]
        )
        assert arrived(ear.tap, {"pieces": pieces}, canary) == ["pieces"]
    finally:
        tenants.wire.vpcctl("repair")


@pytest.mark.parametrize("target", [DB, WEB_2])
def test_a_frame_to_the_bridges_own_groups_goes_nowhere(tenants: Tenants, target: str) -> None:
    web, web_2, ear = tenants[WEB], tenants[WEB_2], tenants[target]

    def probe(group: str, mac: str) -> Probe:
        return web.raw(
            lambda one: web.frame(ipv4(web.address, ear.address, UDP, wire.udp(1, 2, one)), source=mac, to=group)
        )

    probes = {f"{group} from {mac}": probe(group, mac) for group in LINK_LOCAL for mac in (web.mac, web_2.mac)}
    assert arrived(ear.tap, probes, web.udp(ear.address, 2222)) == []


@pytest.mark.parametrize("first", ["the intruder's", "the victim's"])
def test_a_spoofed_fragment_does_not_join_another_instances_datagram(tenants: Tenants, first: str) -> None:
    victim, intruder, ear = tenants[WEB], tenants[WEB_2], tenants[DB]
    evil, good = word(), word()
    identifier = 700 + len(first)
    head, tail = wire.fragments(victim.address, ear.address, UDP, wire.udp(1, 2222, b"-" * 16 + good), 16, identifier)
    forged = tail.replace(good, evil)
    if first == "the intruder's":
        intruder.tap.send(intruder.frame(forged))
    victim.tap.send(victim.frame(head))
    if first == "the victim's":
        intruder.tap.send(intruder.frame(forged))
    victim.tap.send(victim.frame(tail))
    heard = ear.tap.hear(good)
    assert containing(heard, good), "the victim's own datagram was lost"
    assert not containing(heard, evil)


def test_a_neighbours_fragment_does_not_join_what_leaves_the_host(tenants: Tenants) -> None:
    web, near, far = tenants[WEB], tenants[NEAR], tenants[FAR]
    evil, good, cut = word(), word(), 1392
    datagram = wire.udp(1, 2222, b"-" * cut + good)
    head, tail = wire.fragments(web.address, far.address, UDP, datagram, cut, 4711)
    _, forged = wire.fragments("100.64.0.1", far.address, UDP, datagram.replace(good, evil), cut, 4711)
    near.tap.send(near.frame(forged))
    web.tap.send(web.frame(head), web.frame(tail))
    heard = far.tap.hear(good)
    assert containing(heard, good), "the tenant's own datagram was lost"
    assert not containing(heard, evil)


# --- Neighbours -------------------------------------------------------------------------------------------------------


def announcements(web: Station, web_2: Station) -> list[bytes]:
    """ARP packets that tell the router, or everybody, something untrue."""
    packets = []
    for claimed in (web_2.address, web.router, "10.0.1.77", "10.0.3.2", "10.0.3.1", "100.64.0.0", "169.254.0.1"):
        for mac in (web.mac, web_2.mac, NOBODY_MAC):
            packets += [
                wire.arp(1, mac, claimed, ZERO, claimed),
                wire.arp(2, mac, claimed, EVERYBODY, claimed),
                wire.arp(1, mac, claimed, ZERO, web.router),
                wire.arp(2, mac, claimed, web.gateway, web.router),
            ]
    packets += [wire.arp(2, web_2.mac, web.address, web.gateway, web.router)]
    return [
        ethernet(to, source, ARP, packet)
        for packet in packets
        for to in (EVERYBODY, web.gateway)
        for source in (web.mac, web_2.mac)
    ]


def test_arp_moves_nothing(tenants: Tenants) -> None:
    web, web_2, db = tenants[WEB], tenants[WEB_2], tenants[DB]
    before = tenants.neighbours("shop-router")
    web.tap.send(*announcements(web, web_2))
    assert tenants.neighbours("shop-router") == before
    # What is for the other one still goes to the other one.
    assert arrived(web.tap, {"stolen": db.udp(web_2.address, 2222)}, db.udp(web.address, 2222)) == []
    assert arrived(web_2.tap, {"kept": db.udp(web_2.address, 2222)}, db.udp(web_2.address, 2222)) == ["kept"]


def test_arp_is_answered_for_the_subnet_and_fills_no_table(tenants: Tenants) -> None:
    web = tenants[WEB]
    before = tenants.neighbours("shop-router")
    asked = wire.arp(1, web.mac, web.address, ZERO, web.router)
    web.tap.heard()
    web.tap.send(ethernet(EVERYBODY, web.mac, ARP, asked))
    answer = wire.mac(web.gateway) + socket.inet_aton(web.router)
    assert containing(web.tap.hear(answer), answer)
    senders = [f"10.0.{third}.{fourth}" for third in (1, 3) for fourth in range(4, 255)]
    web.tap.send(
        *(ethernet(EVERYBODY, web.mac, ARP, wire.arp(1, web.mac, one, ZERO, web.router)) for one in senders),
        *(ethernet(EVERYBODY, web.mac, ARP, wire.arp(1, web.mac, web.address, ZERO, one)) for one in senders),
    )
    assert tenants.neighbours("shop-router") == before


def test_a_scan_of_addresses_that_nobody_has_fills_no_table(tenants: Tenants) -> None:
    web = tenants[WEB]
    before = {vpc: tenants.neighbours(f"{vpc}-router") for vpc in ("shop", "blue")}
    for prefix in ("10.0.1", "10.0.3", "10.0.77", "10.1.1", "10.1.77"):
        web.tap.send(*(web.packet(f"{prefix}.{last}", UDP, wire.udp(1, 2, b"")) for last in range(4, 255)))
    # The canary: the same scan finds those who are there.
    assert arrived(tenants[APP].tap, {}, web.udp(tenants[APP].address, 2222)) == []
    assert {vpc: tenants.neighbours(f"{vpc}-router") for vpc in ("shop", "blue")} == before


def test_what_a_tenant_depends_on_cannot_be_pushed_out_of_the_neighbour_table(tenants: Tenants) -> None:
    """All namespaces share one limit (net.ipv4.neigh.default.gc_thresh3), for which permanent entries do not count."""
    gateways = [line for line in tenants.neighbours(WEB) if line.startswith("10.0.1.1 ")]
    uplinks = [line for line in tenants.neighbours(None) if " dev vpc-" in line]
    routers = [line for vpc in ("shop", "blue", "red", "twin") for line in tenants.neighbours(f"{vpc}-router")]
    assert (len(gateways), len(uplinks)) == (1, 4)
    assert len(routers) == 4 + 4 + 6
    assert all(line.split()[-1] == "PERMANENT" for line in (*gateways, *uplinks, *routers))


# --- Frames -----------------------------------------------------------------------------------------------------------


def tagged(web: Station, target: str, to: str) -> dict[str, Probe]:
    """Good packets to `target`, in frames that are not plain IPv4."""

    def probe(frame: Callable[[bytes], bytes]) -> Probe:
        return web.raw(lambda one: frame(ipv4(web.address, target, UDP, wire.udp(1, 2222, one))))

    tags = {
        "VLAN 0": [(VLAN, 0)],
        "VLAN 0 with priority": [(VLAN, 7 << 13)],
        "VLAN 1": [(VLAN, 1)],
        "VLAN 4095": [(VLAN, 4095)],
        "VLAN 0 twice": [(VLAN, 0)] * 2,
        "VLAN 0 eight times": [(VLAN, 0)] * 8,
        "service tag 0": [(wire.QINQ, 0)],
        "service tag 0 and VLAN 0": [(wire.QINQ, 0), (VLAN, 0)],
        "service tag 5 and VLAN 6": [(wire.QINQ, 5), (VLAN, 6)],
    }
    kinds = {
        "IPv6": wire.IPV6,
        "MPLS": wire.MPLS,
        "PPPoE": wire.PPPOE,
        "LLDP": wire.LLDP,
        "EAPOL": wire.EAPOL,
        "no known": 0x9999,
        "loop": 0x0060,
        "MACsec": 0x88E5,
        "TEB": 0x6558,
        "batman": 0x4305,
    }
    return {
        **{name: probe(lambda packet, t=t: ethernet(to, web.mac, IP, packet, t)) for name, t in tags.items()},
        **{name: probe(lambda packet, k=k: ethernet(to, web.mac, k, packet)) for name, k in kinds.items()},
        "SNAP": probe(lambda packet: wire.llc(to, web.mac, packet)),
        "SNAP of a VLAN": probe(lambda packet: wire.llc(to, web.mac, b"\0\0\x08\0" + packet, VLAN)),
        "length": probe(lambda packet: ethernet(to, web.mac, len(packet), packet)),
        "ARP in VLAN 0": web.raw(
            lambda one: ethernet(to, web.mac, ARP, wire.arp(1, web.mac, web.address, ZERO, target, one), [(VLAN, 0)])
        ),
    }


@pytest.mark.parametrize("to", ["the gateway", "the receiver", "everybody", "a group"])
@pytest.mark.parametrize("target", [WEB_2, DB, APP, FAR])
def test_only_plain_arp_and_ipv4_frames_go_anywhere(tenants: Tenants, target: str, to: str) -> None:
    web, ear = tenants[WEB], tenants[target]
    macs = {"the gateway": web.gateway, "the receiver": ear.mac, "everybody": EVERYBODY, "a group": "01:00:5e:00:00:01"}
    assert arrived(ear.tap, tagged(web, ear.address, macs[to]), web.udp(ear.address, 2222)) == []


@pytest.mark.parametrize("to", ["the receiver", "everybody"])
def test_an_instance_cannot_send_to_the_next_one_past_the_router(tenants: Tenants, to: str) -> None:
    web, ear = tenants[WEB], tenants[WEB_2]
    mac = ear.mac if to == "the receiver" else EVERYBODY
    lie = wire.arp(2, web.mac, web.router, ear.mac, ear.address)
    probes = {
        "a datagram": web.raw(lambda one: web.frame(ipv4(web.address, ear.address, UDP, wire.udp(1, 2, one)), to=mac)),
        "an ARP lie": web.raw(lambda one: ethernet(mac, web.mac, ARP, lie + one)),
        "an ARP question": web.raw(
            lambda one: ethernet(mac, web.mac, ARP, wire.arp(1, web.mac, web.address, ZERO, ear.address, one))
        ),
    }
    assert arrived(ear.tap, probes, web.udp(ear.address, 2222)) == []


# --- IPv6, broadcast, groups, source routes ---------------------------------------------------------------------------

ME, ALL_NODES, ALL_ROUTERS = "fe80::2", "ff02::1", "ff02::2"


def sixes(web: Station, mac: str) -> dict[str, Probe]:
    """IPv6 as a workload would try it where it was told that it has none."""
    link_layer = b"\2\1" + wire.mac(web.mac)

    def probe(make: Callable[[bytes], bytes]) -> Probe:
        return web.raw(lambda one: ethernet(mac, web.mac, wire.IPV6, make(one)))

    def message(kind: int, payload: bytes, to: str = ALL_NODES) -> Probe:
        return probe(lambda one: wire.icmpv6(ME, to, kind, payload + one))

    target = socket.inet_pton(socket.AF_INET6, "fe80::1")
    return {
        "echo": message(128, struct.pack("!HH", 1, 1), "fe80::1"),
        "echo to all": message(128, struct.pack("!HH", 1, 1)),
        "solicitation": message(135, b"\0" * 4 + target + link_layer, "ff02::1:ff00:1"),
        "advertisement": message(136, b"\x20\0\0\0" + target + link_layer),
        "router solicitation": message(133, b"\0" * 4, ALL_ROUTERS),
        "router advertisement": message(134, struct.pack("!BBHII", 64, 0, 1800, 0, 0)),
        "redirect": message(137, b"\0" * 4 + target * 2),
        "datagram": probe(lambda one: wire.ipv6(ME, "fe80::3", UDP, wire.udp(1, 2222, one))),
        "datagram to a global address": probe(lambda one: wire.ipv6(ME, "2001:db8::3", UDP, wire.udp(1, 2222, one))),
        "mapped": probe(lambda one: wire.ipv6("::ffff:10.0.1.2", "::ffff:10.0.3.2", UDP, wire.udp(1, 2222, one))),
        "DHCPv6": probe(lambda one: wire.ipv6(ME, "ff02::1:2", UDP, wire.udp(546, 547, one))),
    }


@pytest.mark.parametrize("target", [WEB_2, DB, APP, FAR])
def test_no_ipv6_packet_passes(tenants: Tenants, target: str) -> None:
    web, ear = tenants[WEB], tenants[target]
    probes = {
        f"{name} to {mac}": probe
        for mac in (web.gateway, ear.mac, EVERYBODY, "33:33:00:00:00:01")
        for name, probe in sixes(web, mac).items()
    }
    assert arrived(ear.tap, probes, web.udp(ear.address, 2222)) == []


def test_ipv6_that_others_switch_on_in_a_router_passes_no_better(tenants: Tenants) -> None:
    """The rules hold by themselves; that no link has IPv6 comes on top of them."""
    web, db, lab = tenants[WEB], tenants[DB], tenants.lab
    lab.run(["sh", "-ec", SIX_ON, "sh", db.mac], netns="shop-router")
    try:
        probes = sixes(web, web.gateway) | {
            "routed": web.raw(
                lambda one: ethernet(
                    web.gateway,
                    web.mac,
                    wire.IPV6,
                    wire.ipv6("2001:db8:1::2", "2001:db8:3::2", UDP, wire.udp(1, 2, one)),
                )
            )
        }
        assert arrived(db.tap, probes, web.udp(db.address, 2222)) == []
    finally:
        lab.run(["sh", "-ec", SIX_OFF], netns="shop-router")


SIX_ON = """
sysctl -q -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.br-web.disable_ipv6=0 net.ipv6.conf.br-db.disable_ipv6=0
sysctl -q -w net.ipv6.conf.all.forwarding=1
ip -6 address add 2001:db8:1::1/64 dev br-web nodad
ip -6 address add 2001:db8:3::1/64 dev br-db nodad
ip -6 neighbour add 2001:db8:3::2 lladdr "$1" dev br-db
"""
SIX_OFF = "sysctl -q -w net.ipv6.conf.all.forwarding=0 net.ipv6.conf.all.disable_ipv6=1"


def test_the_router_speaks_no_ipv6(tenants: Tenants) -> None:
    web = tenants[WEB]
    assert tenants.lab.run(["ip", "-6", "address", "show"], netns="shop-router").stdout == ""
    probes = [probe for mac in (web.gateway, EVERYBODY, "33:33:00:00:00:02") for probe in sixes(web, mac).values()]
    web.tap.heard()
    for _, make in probes:
        web.tap.send(make(b""))
    last = word()
    web.tap.send(web.echo(web.router)[1](last))
    heard = web.tap.hear(last)
    assert containing(heard, last)
    assert [frame for frame in heard if frame[12:14] == b"\x86\xdd"] == []


@pytest.mark.parametrize("target", [WEB_2, DB, APP, FAR])
def test_what_is_for_everybody_or_for_a_group_goes_nowhere(tenants: Tenants, target: str) -> None:
    web, ear = tenants[WEB], tenants[target]
    addresses = ("255.255.255.255", "224.0.0.1", "224.0.0.251", "239.1.2.3", "10.0.1.255", "10.0.3.255", "10.1.1.255")

    def probe(address: str, mac: str) -> Probe:
        return web.raw(lambda one: web.frame(ipv4(web.address, address, UDP, wire.udp(1, 2222, one)), to=mac))

    probes = {f"{a} to {m}": probe(a, m) for a in addresses for m in (EVERYBODY, web.gateway, ear.mac)}
    discover = b"\x01\x01\x06\0" + b"\0" * 232 + b"\x63\x82\x53\x63\x35\x01\x01"
    probes["DHCP"] = web.raw(
        lambda one: web.frame(ipv4("0.0.0.0", "255.255.255.255", UDP, wire.udp(68, 67, discover + one)), to=EVERYBODY)
    )
    # A packet for one, in a frame for all.
    probes["unicast"] = probe(ear.address, EVERYBODY)
    assert arrived(ear.tap, probes, web.udp(ear.address, 2222)) == []


@pytest.mark.parametrize("strict", [False, True])
def test_a_source_route_leads_nowhere(tenants: Tenants, strict: bool) -> None:
    web, db = tenants[WEB], tenants[DB]

    def routed(one: bytes, first: str, then: str) -> bytes:
        options = bytes([0x89 if strict else 0x83, 7, 4]) + socket.inet_aton(then) + b"\0"
        return web.packet(first, UDP, wire.udp(1, 2222, one), options=options)

    hops = (web.router, "10.0.3.1", tenants[WEB_2].address)
    probes = {hop: web.raw(lambda one, hop=hop: routed(one, hop, db.address)) for hop in hops}
    recorded = web.raw(
        lambda one: web.packet(db.address, UDP, wire.udp(1, 2222, one), options=bytes([7, 7, 4]) + b"\0" * 5)
    )
    # An option as such is no reason to drop: the canary has one, too.
    assert arrived(db.tap, probes, recorded) == []


@pytest.mark.parametrize("kind", [4, 5, 9, 10])
@pytest.mark.parametrize("pieces", [1, 2])
def test_redirects_and_router_advertisements_of_a_tenant_do_nothing(tenants: Tenants, kind: int, pieces: int) -> None:
    """Connection tracking calls a redirect related to the flow that it quotes, so it would pass with that flow."""
    web, db = tenants[WEB], tenants[DB]
    db.tap.send(db.packet(web.address, UDP, wire.udp(2222, 3333, b"")))

    def error(kind: int) -> Callable[[bytes], list[bytes]]:
        def make(one: bytes) -> list[bytes]:
            quoted = ipv4(db.address, web.address, UDP, wire.udp(2222, 3333, one))
            message = wire.icmp(kind, 1, quoted, int.from_bytes(socket.inet_aton("10.0.3.77"), "big"))
            if pieces == 1:
                return [web.packet(db.address, ICMP, message)]
            cut = wire.fragments(web.address, db.address, ICMP, message, 8, int(one[1:-1]) & 0xFFFF)
            return [web.frame(packet) for packet in cut]

        return make

    # The canary is an honest error of the same form.
    assert arrived(db.tap, {"it": web.raw(error(kind))}, web.raw(error(3))) == []
