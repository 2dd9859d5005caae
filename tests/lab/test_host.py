"""On the LAN: no neighbour gets into a VPC, and nothing with a private source ever gets out."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

import pytest

from tests.lab import wire
from tests.lab.tenants import APP, DB, FAR, NEAR, PUB, PUBLISHED, TARGET, UPLINKS, WEB, WEB_2, Station, Tenants
from tests.lab.wire import ACK, IP, PSH, SYN, TCP, UDP, Probe, Tap, arrived, containing, ipv4, word
from vpcctl.lab import HOST, INTERNET, Lab

PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")))


def from_any_of(networks: Sequence[IPv4Network]) -> list[tuple[int, int, int, int]]:
    """Classic BPF (Documentation/networking/filter.rst): IPv4 packets with a source in one of the networks."""
    load_half, load_word, equal, mask, give = 0x28, 0x20, 0x15, 0x54, 0x06
    program = [(load_half, 0, 0, 12), (equal, 0, 3 * len(networks), IP)]
    for left, network in reversed(list(enumerate(reversed(networks)))):
        # A match jumps over the networks that are left, and over the refusal.
        program += [(load_word, 0, 0, 26), (mask, 0, 0, int(network.netmask))]
        program += [(equal, 3 * left + 1, 0, int(network.network_address))]
    return [*program, (give, 0, 0, 0), (give, 0, 0, 65535)]


@pytest.fixture(scope="module")
def tenants(module_lab: Lab) -> Tenants:
    """With a route on the host that leads into a VPC, as somebody might add one."""
    made = Tenants(module_lab)
    module_lab.run(["ip", "route", "add", "10.2.0.0/16", "via", UPLINKS["red"][1], "dev", "vpc-red"])
    return made


@pytest.fixture(scope="module")
def door(tenants: Tenants) -> Tap:
    """What comes as far as the router of the VPC that publishes something."""
    return tenants.wire.tap("red-router", "uplink")


# --- Inwards ----------------------------------------------------------------------------------------------------------


def knocks(near: Station, destination: str, source: str) -> dict[str, Probe]:
    """What a neighbour sends to an address by way of the host, by protocol and port."""

    def packet(protocol: int, payload: bytes) -> bytes:
        return near.frame(ipv4(source, destination, protocol, payload))

    ends = (source, destination)
    return {
        f"{name} from {source} to {destination}": near.raw(make)
        for name, make in {
            "UDP": lambda one: packet(UDP, wire.udp(1, TARGET, one)),
            "UDP to a published port": lambda one: packet(UDP, wire.udp(1, PUBLISHED, one)),
            "TCP": lambda one: packet(TCP, wire.tcp(ends, 1, TARGET, SYN, one)),
            "TCP to a published port": lambda one: packet(TCP, wire.tcp(ends, 1, PUBLISHED, SYN, one)),
            "TCP in the middle": lambda one: packet(TCP, wire.tcp(ends, 2, PUBLISHED, ACK | PSH, one)),
            "echo": lambda one: packet(wire.ICMP, wire.echo(1, one)),
            "GRE": lambda one: packet(wire.GRE, b"\0\0\x08\0" + one),
        }.items()
    }


SOURCES = ("198.51.100.20", "203.0.113.77", "10.2.1.9", "10.2.1.1", "10.1.1.2", "100.64.0.4", "100.64.0.9", "127.0.0.1",
           str(HOST), "169.254.0.1")  # fmt: skip
# In the transit range, but not an address of an uplink: it may be outside.
OUTSIDE_BY_NOW = "100.64.0.9"


@pytest.mark.parametrize("source", SOURCES)
def test_a_neighbour_with_a_route_by_way_of_the_host_gets_nothing_in(tenants: Tenants, door: Tap, source: str) -> None:
    near, app = tenants[NEAR], tenants[APP]
    doors = (*(tenants[name].address for name in (PUB, WEB, DB)), *UPLINKS["red"], *UPLINKS["shop"], "127.0.0.1")
    probes = {name: probe for where in doors for name, probe in knocks(near, where, source).items()}
    published = near.udp(str(HOST), PUBLISHED)
    assert arrived(door, probes, published) == []
    assert arrived(tenants[PUB].tap, probes, published) == []
    for name in (WEB, DB):
        assert arrived(tenants[name].tap, probes, app.udp(tenants[name].address, 1)) == []


@pytest.mark.parametrize("source", [one for one in SOURCES[2:] if one != OUTSIDE_BY_NOW])
def test_a_published_port_takes_no_source_that_cannot_be_outside(tenants: Tenants, door: Tap, source: str) -> None:
    near, pub = tenants[NEAR], tenants[PUB]
    probes, canary = knocks(near, str(HOST), source), near.udp(str(HOST), PUBLISHED)
    assert arrived(pub.tap, probes, canary) == []
    if source.startswith("100.64."):
        # The host's own range is refused by the host; of others' prefixes it knows nothing.
        assert arrived(door, probes, canary) == []


@pytest.mark.parametrize(
    "where", ["10.2.1.2", "10.2.1.1", "10.1.1.2", UPLINKS["red"][0], UPLINKS["shop"][1], "127.0.0.1"]
)
def test_a_router_takes_from_its_uplink_what_is_addressed_to_the_uplink(tenants: Tenants, where: str) -> None:
    """Whatever the host may forward: somebody sits on the host's end of the uplink."""
    ends = tenants.mac(None, "vpc-red"), tenants.mac("red-router", "uplink")
    host = Station(tenants.wire.tap(None, "vpc-red"), ends[0], "203.0.113.5", ends[1])
    probes = knocks(host, where, host.address) | knocks(host, where, "198.51.100.20")
    assert arrived(tenants[PUB].tap, probes, host.udp(UPLINKS["red"][1], PUBLISHED)) == []
    app = tenants[APP]
    assert arrived(app.tap, probes, tenants[PUB].udp(app.address, 1)) == []


def test_a_published_port_is_all_that_is_published(tenants: Tenants) -> None:
    near, pub = tenants[NEAR], tenants[PUB]
    probes = knocks(near, str(HOST), near.address)
    passing = [name for name in probes if "to a published port" in name]
    assert arrived(pub.tap, probes, near.udp(str(HOST), PUBLISHED)) == passing


@pytest.mark.parametrize("target", [FAR, WEB])
def test_the_host_forwards_for_its_tenants_alone(tenants: Tenants, target: str) -> None:
    """Forwarding is switched on for the link to the LAN; what was closed there before is closed still."""
    near, ear = tenants[NEAR], tenants[target]
    where = ear.address if target == FAR else "203.0.113.99"
    sender = tenants[WEB_2]
    canary = sender.udp(ear.address, 2)
    assert arrived(ear.tap, knocks(near, where, near.address) | knocks(near, where, "203.0.113.50"), canary) == []


def test_where_forwarding_was_on_before_it_stays_on_and_leads_into_no_vpc(lab: Lab) -> None:
    lab.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])
    tenants = Tenants(lab)
    lab.run(["ip", "route", "add", "10.2.0.0/16", "via", UPLINKS["red"][1], "dev", "vpc-red"])
    near, far, door = tenants[NEAR], tenants[FAR], tenants.wire.tap("red-router", "uplink")
    probes = knocks(near, "10.2.1.2", near.address) | knocks(near, UPLINKS["red"][1], near.address)
    assert arrived(door, probes, near.udp(str(HOST), PUBLISHED)) == []
    assert arrived(far.tap, {"by the host": near.udp(far.address, 53)}, near.udp(far.address, 53)) == ["by the host"]


# --- Outwards ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watch:
    """An ear for private sources on one link, and a mouth on its other end to prove that it hears."""

    ear: Tap
    mouth: Station
    networks: tuple[IPv4Network, ...]

    def caught(self) -> list[bytes]:
        """What was heard; AssertionError unless the ear hears each network, and missed nothing."""
        seen = []
        for network in self.networks:
            mark = word()
            self.mouth.tap.send(self.mouth.packet(str(INTERNET), UDP, wire.udp(1, 2, mark), source=str(network[1])))
            heard = self.ear.hear(mark)
            assert containing(heard, mark)
            seen += [frame for frame in heard if mark not in frame]
        assert self.ear.lost() == 0
        return seen


def watch_lan(tenants: Tenants) -> Watch:
    """What the host puts on the LAN with a source that is private, the uplinks' own addresses included."""
    return Watch(tenants.wire.tap("lan", "host", only=from_any_of(PRIVATE)), tenants["host"], PRIVATE)


def watch_uplink(tenants: Tenants, vpc: str) -> Watch:
    """What a router puts on its uplink with a source of the VPC's inside."""
    router, link = f"{vpc}-router", f"vpc-{vpc}"
    mouth = Station(tenants.wire.tap(router, "uplink"), tenants.mac(router, "uplink"), "", tenants.mac(None, link))
    return Watch(tenants.wire.tap(None, link, only=from_any_of(PRIVATE[:3])), mouth, PRIVATE[:3])


@pytest.fixture(scope="module")
def watches(tenants: Tenants) -> list[Watch]:
    return [watch_lan(tenants), *(watch_uplink(tenants, vpc) for vpc in ("shop", "blue"))]


def leaks(watches: list[Watch]) -> list[bytes]:
    """What got out with a private source."""
    return [frame for one in watches for frame in one.caught()]


def burst(sender: Station) -> list[bytes]:
    """New flows of every sort to the internet, to other VPCs, to nobody, some under false names."""
    frames = []
    for number in range(8):
        for where in (f"203.0.113.{number}", "10.1.1.2", "10.2.1.2", "10.9.9.9", "198.51.100.20"):
            ends = (sender.address, where)
            frames += [
                sender.packet(where, UDP, wire.udp(3000 + number, 53, b"")),
                sender.packet(where, TCP, wire.tcp(ends, 3000 + number, 80, SYN)),
                sender.packet(where, TCP, wire.tcp(ends, 4000 + number, 80, ACK)),
                sender.packet(where, wire.ICMP, wire.echo(number, b"")),
                sender.packet(where, wire.ESP, bytes(8)),
                sender.packet(where, UDP, wire.udp(1, 53, b""), source="10.0.1.77"),
                sender.packet(
                    where, wire.ICMP, wire.icmp(3, 1, ipv4(where, sender.address, UDP, wire.udp(53, 3000, b"")))
                ),
            ]
    return frames


@contextlib.contextmanager
def everybody_flooding(tenants: Tenants) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in (WEB, DB, APP):
            stack.enter_context(tenants[name].tap.flooding(*burst(tenants[name]), rate=100))
        yield


CHANGES = {
    "apply": "apply-policy --vpc shop --subnet web -",
    "NAT gateway": "create-nat-gateway --vpc shop --subnet db",
    "no NAT gateway": "delete-nat-gateway --vpc shop --subnet db",
    "another peering": "create-peering --vpc1 shop --vpc2 red",
    "no other peering": "delete-peering --vpc1 shop --vpc2 red",
    "no peering": "delete-peering --vpc1 shop --vpc2 blue",
    "peering": "create-peering --vpc1 shop --vpc2 blue",
    "clear": "clear-policy --vpc shop --subnet web",
    "another VPC": "create-vpc --name late --cidr 10.7.0.0/16",
    "another subnet": "create-subnet --vpc late --name web --cidr 10.7.1.0/24 --type public",
    "no other VPC": "delete-vpc --name late --cascade",
    "publish": "publish-port --vpc shop --instance web --port 9090",
    "unpublish": "unpublish-port --vpc shop --port 9090",
    "repair": "repair",
}
POLICY = {"egress": [{"action": "allow", "protocol": "udp"}, {"action": "deny"}]}


def test_nothing_private_leaves_while_things_change_under_load(tenants: Tenants, watches: list[Watch]) -> None:
    with everybody_flooding(tenants):
        for command in CHANGES.values():
            tenants.wire.vpcctl(*command.split(), document=POLICY)
    assert leaks(watches) == []
    # The flood was there, and went out under the host's name.
    assert containing(tenants[FAR].tap.heard(), bytes.fromhex("c6336402cb007105"))


def test_a_private_subnet_that_gains_and_loses_its_way_out_never_leaks(tenants: Tenants, watches: list[Watch]) -> None:
    db, far = tenants[DB], tenants[FAR]
    far.tap.heard()
    with db.tap.flooding(*burst(db), rate=100):
        for _ in range(5):
            tenants.wire.vpcctl(*CHANGES["NAT gateway"].split())
            tenants.wire.vpcctl(*CHANGES["no NAT gateway"].split())
    assert leaks(watches) == []
    assert containing(far.tap.heard(), b"\xc6\x33\x64\x02\xcb\x00\x71")
    assert arrived(far.tap, {"late": db.udp(str(INTERNET), 53)}, tenants[WEB].udp(str(INTERNET), 53)) == []


def test_a_flow_of_a_peering_that_is_gone_begins_anew_and_is_translated(tenants: Tenants, watches: list[Watch]) -> None:
    """Its entry has no translation, but its destination is now reached by the default route."""
    web, app, far = tenants[WEB], tenants[APP], tenants[FAR]
    probe = web.udp(app.address, 2222, source_port=1717)
    assert arrived(app.tap, {}, probe) == []
    tenants.wire.vpcctl(*CHANGES["no peering"].split())
    try:
        assert arrived(far.tap, {"old flow": probe}, web.udp(str(INTERNET), 53)) == ["old flow"]
        assert leaks(watches) == []
    finally:
        tenants.wire.vpcctl(*CHANGES["peering"].split())


def test_what_the_host_calls_invalid_does_not_leave_untranslated(tenants: Tenants, watches: list[Watch]) -> None:
    """The host has forgotten the flow, its router has not: no translation, hence no way out."""
    web = tenants[WEB]
    ends = (web.address, str(INTERNET))
    loose = "net.netfilter.nf_conntrack_tcp_loose"
    tenants.lab.run(["sysctl", "-q", "-w", f"{loose}=0"])
    try:
        web.tap.heard()
        web.tap.send(web.packet(ends[1], TCP, wire.tcp(ends, 1818, 80, SYN, sequence=999)))
        ports = bytes.fromhex("0050071a")
        answer = containing(web.tap.hear(ports), ports)[0]
        (theirs,) = struct.unpack_from("!I", answer, 14 + 20 + 4)
        segment = wire.tcp(ends, 1818, 80, ACK | PSH, b"on\n", sequence=1000, acknowledged=theirs + 1)
        web.tap.send(web.packet(ends[1], TCP, segment))
        assert containing(web.tap.hear(b"on\n"), b"on\n"), "the internet echoes no line"
        tenants.wire.forget_flows(None)
        web.tap.send(web.packet(ends[1], TCP, segment))
        assert leaks(watches) == []
    finally:
        tenants.lab.run(["sysctl", "-q", "-w", f"{loose}=1"])


def test_nothing_private_leaves_while_everything_is_destroyed_under_load(lab: Lab) -> None:
    tenants = Tenants(lab)
    watch = watch_lan(tenants)
    with everybody_flooding(tenants):
        tenants.wire.vpcctl("delete-vpc", "--name", "blue", "--cascade")
        tenants.wire.vpcctl("delete-subnet", "--vpc", "shop", "--name", "db")
        tenants.wire.vpcctl("destroy", "--all", "--yes")
    assert containing(tenants[FAR].tap.heard(), b"\xc6\x33\x64\x02\xcb\x00\x71")
    assert watch.caught() == []
