"""Of a router a tenant reaches the echo of its gateways, and of the host, its LAN links and other uplinks nothing."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import pytest

from tests.lab import wire
from tests.lab.tenants import APP, DB, FAR, NEAR, PUB, PUBLISHED, UPLINKS, WEB, Station, Tenants
from tests.lab.wire import EVERYBODY, ICMP, TCP, UDP, Probe, Tap, arrived, containing, ipv4, word
from vpcctl.lab import HOST, Lab

OWN = ("10.0.1.1", "10.0.3.1", "10.0.1.0", "10.0.1.255", "10.0.3.0", "10.0.3.255")
OTHERS = ("10.1.1.1", "10.2.1.1", *(address for pair in UPLINKS.values() for address in pair), "100.64.255.255")
HOSTS = (str(HOST), "198.51.100.255", "198.51.100.0")
NOBODYS = (
    "0.0.0.0", "127.0.0.1", "127.1.2.3", "169.254.0.1", "169.254.169.254", "224.0.0.1", "239.1.2.3", "240.0.0.1",
    "255.255.255.255",
)  # fmt: skip
# A published port is called at the host's address by instances, too.
CALLED_AT_THE_HOST = {f"{HOST}: {protocol} to a published port" for protocol in ("UDP", "TCP")}
EVERYWHERE = (*OWN, *OTHERS, *HOSTS, *NOBODYS)


@pytest.fixture(scope="module")
def tenants(module_lab: Lab) -> Tenants:
    return Tenants(module_lab)


@pytest.fixture(scope="module")
def receptions(tenants: Tenants) -> dict[str | None, Tap]:
    """What the routers and the host take in for themselves."""
    return {netns: tenants.wire.reception(netns) for netns in ("shop-router", "blue-router", "red-router", None)}


def calls(sender: Station, destination: str) -> dict[str, Probe]:
    """A probe of each protocol that anybody listens to, echo apart."""

    def packet(number: int, opening: bytes = b"") -> Probe:
        return sender.raw(lambda one: sender.packet(destination, number, opening + one))

    return {
        "TCP": sender.tcp(destination, 22),
        "TCP to a published port": sender.tcp(destination, PUBLISHED),
        "UDP": sender.udp(destination, 53),
        "UDP to a published port": sender.udp(destination, PUBLISHED),
        "UDP to everybody": sender.raw(
            lambda one: sender.frame(ipv4(sender.address, destination, UDP, wire.udp(1, 53, one)), to=EVERYBODY)
        ),
        "timestamp": packet(ICMP, wire.icmp(13, 0, b"\0" * 12)),
        "address mask": sender.raw(lambda one: sender.packet(destination, ICMP, wire.icmp(17, 0, one))),
        "router solicitation": sender.raw(lambda one: sender.packet(destination, ICMP, wire.icmp(10, 0, one))),
        "echo reply": sender.raw(lambda one: sender.packet(destination, ICMP, wire.echo(9, one, kind=0))),
        "unreachable": sender.raw(
            lambda one: sender.packet(
                destination, ICMP, wire.icmp(3, 4, ipv4(destination, sender.address, UDP, wire.udp(53, 1, one)), 600)
            )
        ),
        "IGMP": packet(wire.IGMP, struct.pack("!BBH4s", 0x16, 0, 0, b"\xe0\0\0\x05")),
        "IPIP": sender.raw(
            lambda one: sender.packet(destination, wire.IPIP, ipv4("10.0.3.2", "10.0.3.1", UDP, wire.udp(1, 53, one)))
        ),
        "GRE": packet(wire.GRE, b"\0\0\x08\0"),
        "ESP": packet(wire.ESP),
        "SCTP": packet(wire.SCTP, struct.pack("!HHII", 1111, 22, 0, 0)),
        "UDP-Lite": sender.raw(
            lambda one: sender.packet(
                destination, wire.UDPLITE, wire.udplite((sender.address, destination), 1, 53, one)
            )
        ),
        "no known": packet(253),
    }


@pytest.mark.parametrize("sender", [WEB, DB, APP, PUB])
def test_nothing_but_echo_is_taken_in_by_a_router_or_the_host(
    tenants: Tenants, receptions: dict[str | None, Tap], sender: str
) -> None:
    one = tenants[sender]
    probes = {f"{where}: {name}": made for where in EVERYWHERE for name, made in calls(one, where).items()}
    words = {name: word() for name in probes}
    for ear in (*receptions.values(), one.tap):
        ear.heard()
    for name, (tap, make) in probes.items():
        tap.send(make(words[name]))
    # The canary: the echo of the gateway, which its router takes in, and answers.
    last = word()
    one.tap.send(one.echo(one.router)[1](last))
    answers = one.tap.hear(last)
    assert containing(answers, last)
    assert {name for name, mark in words.items() if containing(answers, mark)} <= CALLED_AT_THE_HOST
    taken = {netns: ear.heard() for netns, ear in receptions.items()}
    own_router = {WEB: "shop", DB: "shop", APP: "blue", PUB: "red"}[sender] + "-router"
    assert containing(taken[own_router], last)
    assert [
        (netns, name) for netns, packets in taken.items() for name, mark in words.items() if containing(packets, mark)
    ] == []


def test_the_ears_of_the_test_above_hear_every_protocol(tenants: Tenants) -> None:
    near = tenants[NEAR]
    ear = tenants.wire.reception(None)
    probes = {name: made for name, made in calls(near, str(HOST)).items() if "published" not in name}
    assert arrived(ear, probes, near.echo(str(HOST))) == list(probes)


@pytest.mark.parametrize("address", ["10.0.1.1", "10.0.3.1"])
def test_a_gateway_answers_echo_to_its_own_vpc(tenants: Tenants, address: str) -> None:
    for name in (WEB, DB):
        one, last = tenants[name], word()
        one.tap.heard()
        one.tap.send(one.echo(address)[1](last))
        assert containing(one.tap.hear(last), last)


@pytest.mark.parametrize("address", [*OTHERS, *HOSTS, *NOBODYS, "10.0.1.0", "10.0.1.255", "10.0.3.255"])
def test_nobody_else_answers_echo(tenants: Tenants, address: str) -> None:
    web = tenants[WEB]
    one, last = word(), word()
    web.tap.heard()
    web.tap.send(web.echo(address)[1](one), web.echo(web.router)[1](last))
    heard = web.tap.hear(last)
    assert containing(heard, last)
    assert not containing(heard, one)


def test_echo_of_the_gateway_has_a_rate(tenants: Tenants) -> None:
    web, mark, last = tenants[WEB], word(), word()
    web.tap.heard()
    web.tap.send(web.echo(web.router)[1](mark), times=2000)
    # The rate is the VPC's: the canary takes another way.
    tenants[DB].tap.send(tenants[DB].udp(web.address, 1)[1](last))
    assert 10 <= len(containing(web.tap.hear(last), mark)) <= 500


# --- A router that is not ours any more: what comes by an uplink is checked by the host, too -------------------------


@contextlib.contextmanager
def rogue(tenants: Tenants, vpc: str) -> Iterator[Station]:
    """Somebody who sits in the router of `vpc` and sends by its uplink."""
    router = f"{vpc}-router"
    tap = tenants.wire.tap(router, "uplink")
    yield Station(tap, tenants.mac(router, "uplink"), UPLINKS[vpc][1], tenants.mac(None, f"vpc-{vpc}"))


@pytest.mark.parametrize("target", [FAR, NEAR])
def test_an_uplink_speaks_from_its_own_address_alone(tenants: Tenants, target: str) -> None:
    ear = tenants[target]
    with rogue(tenants, "shop") as shop:
        sources = ("10.0.1.2", "10.2.1.2", "100.64.0.5", "100.64.0.0", str(HOST), "203.0.113.9", "127.0.0.1", "0.0.0.0")
        probes = {f"{name} from {s}": p for s in sources for name, p in _as(shop, s, ear.address).items()}
        assert arrived(ear.tap, probes, shop.udp(ear.address, 53)) == []


def _as(sender: Station, source: str, destination: str) -> dict[str, Probe]:
    return {
        "UDP": sender.udp(destination, 53, source=source),
        "TCP": sender.raw(
            lambda one: sender.packet(
                destination, TCP, wire.tcp((source, destination), 1, 80, wire.SYN, one), source=source
            )
        ),
    }


def test_an_uplink_reaches_neither_the_host_nor_another_uplink(
    tenants: Tenants, receptions: dict[str | None, Tap]
) -> None:
    near, door = tenants[NEAR], tenants.wire.tap("red-router", "uplink")
    # As if somebody had helped: without a route of its own the host does not know whose 10.2.0.0/16 is.
    tenants.lab.run(["ip", "route", "add", "10.2.0.0/16", "via", UPLINKS["red"][1], "dev", "vpc-red"])
    with rogue(tenants, "shop") as shop:
        doors = (*OTHERS, *HOSTS, *NOBODYS, "10.2.1.2")
        probes = {f"{where}: {name}": made for where in doors for name, made in calls(shop, where).items()}
        receptions[None].heard()
        assert set(arrived(door, probes, near.udp(str(HOST), PUBLISHED))) <= CALLED_AT_THE_HOST
        last = word()
        near.tap.send(near.udp(str(HOST), 53)[1](last))
        taken = receptions[None].hear(last)
        assert containing(taken, last)
        # Nothing but what the neighbour sent: no packet of the uplink's got as far as the host.
        assert [packet for packet in taken if packet[12:14] == b"\x64\x40"] == []


def test_what_is_nobodys_does_not_leave_by_the_uplink(tenants: Tenants) -> None:
    web, ear = tenants[WEB], tenants.wire.tap(None, "vpc-shop")
    doors = (*NOBODYS, *UPLINKS["shop"], "10.0.77.1")
    probes = {f"{where}: {name}": made for where in doors for name, made in calls(web, where).items()}
    assert arrived(ear, probes, web.udp("203.0.113.1", 53)) == []


def test_what_is_of_another_uplink_ends_in_the_host(tenants: Tenants) -> None:
    """A router has no rule for the uplinks of other VPCs."""
    door = tenants.wire.tap("red-router", "uplink")
    probes = {name: made for where in UPLINKS["red"] for name, made in calls(tenants[WEB], where).items()}
    assert arrived(door, probes, tenants[NEAR].udp(str(HOST), PUBLISHED)) == []


def test_an_uplink_carries_no_ipv6(tenants: Tenants) -> None:
    """Not even where others switch it on: on the link, for forwarding, and with a route."""
    lab, far = tenants.lab, tenants[FAR]
    for link in ("vpc-shop", "vpc-red"):
        assert lab.run(["ip", "-6", "address", "show", "dev", link]).stdout == ""
    lab.run(["sh", "-ec", SIX_ON, "sh", far.mac])
    try:
        with rogue(tenants, "shop") as shop:
            near = Station(shop.tap, shop.mac, "2001:db8::2", shop.gateway)
            probes = {
                to: near.raw(
                    lambda one, to=to: wire.ethernet(
                        near.gateway, near.mac, wire.IPV6, wire.ipv6(near.address, to, UDP, wire.udp(1, 53, one))
                    )
                )
                for to in ("2001:db8:f::1", "fe80::1", "ff02::1")
            }
            assert arrived(far.tap, probes, shop.udp(far.address, 53)) == []
    finally:
        lab.run(["sh", "-ec", SIX_OFF])


SIX_ON = """
sysctl -q -w net.ipv6.conf.all.forwarding=1 net.ipv6.conf.vpc-shop.disable_ipv6=0
ip -6 address add 2001:db8::1/64 dev vpc-shop nodad
ip -6 route add 2001:db8:f::/64 dev eth0
ip -6 neighbour add 2001:db8:f::1 lladdr "$1" dev eth0
"""
SIX_OFF = """
ip -6 route delete 2001:db8:f::/64 dev eth0
ip -6 neighbour delete 2001:db8:f::1 dev eth0
sysctl -q -w net.ipv6.conf.all.forwarding=0 net.ipv6.conf.vpc-shop.disable_ipv6=1
"""
