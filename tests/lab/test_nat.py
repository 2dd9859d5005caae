"""Source NAT takes nothing that the host, a published port or another VPC needs; limits belong to who uses them up."""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator

import pytest

from tests.lab import wire
from tests.lab.tenants import DB, FAR, NEAR, PUB, PUBLISHED, TWIN, WEB, WEB_2, Station, Tenants
from tests.lab.wire import ESP, GRE, SYN, TCP, UDP, Probe, Tap, arrived
from vpcctl import names
from vpcctl.analysis.tracking import MOST_SELECTIONS
from vpcctl.lab import HOST, INTERNET, Lab
from vpcctl.model.network import NAT_PORTS

# Ports that a tenant sends from: a published one, of another VPC and of its own, and services of the host's.
OWN, SERVICE = 8081, 53
GRE_PACKET = b"\0\0\x08\0"


@pytest.fixture(scope="module")
def tenants(module_lab: Lab) -> Tenants:
    made = Tenants(module_lab)
    for protocol in ("udp", "tcp"):
        words = ("--vpc", "shop", "--instance", "web-2", "--protocol", protocol, "--port", str(OWN))
        made.wire.vpcctl("publish-port", *words, "--target-port", "80")
    return made


@pytest.fixture
def fresh(tenants: Tenants) -> Iterator[Tenants]:
    """Nothing is tracked when the test begins; and nothing is drift when it ends, whatever packets have filled."""
    for namespace in (None, *(f"{vpc}-router" for vpc in ("shop", "blue", "red", "twin"))):
        tenants.wire.forget_flows(namespace)
    yield tenants
    assert tenants.wire.status("status") == 0


# --- Port shadow ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [UDP, TCP])
@pytest.mark.parametrize("port", [PUBLISHED, OWN])
@pytest.mark.parametrize("remote", [FAR, NEAR])
def test_a_tenant_that_sends_from_a_published_port_takes_nothing_of_what_it_gets(
    fresh: Tenants, remote: str, port: int, protocol: int
) -> None:
    thief, far, server = fresh[WEB], fresh[remote], fresh[PUB if port == PUBLISHED else WEB_2]
    for there in range(5000, 5008):
        thief.tap.send(packet(thief, far.address, protocol, port, there)[1](b""))
    probes = {str(there): packet(far, str(HOST), protocol, there, port) for there in range(5000, 5008)}
    last = packet(far, str(HOST), protocol, 6000, port)
    thief.tap.heard()
    assert arrived(server.tap, probes, last) == list(probes)
    assert wire.containing(thief.tap.heard(), b"<") == []


@pytest.mark.parametrize("protocol", [UDP, TCP])
@pytest.mark.parametrize("port", [SERVICE, 22, 40000, 51820])
def test_a_tenant_that_sends_from_a_port_of_the_hosts_takes_nothing_of_what_the_host_gets(
    fresh: Tenants, host_service: Tap, port: int, protocol: int
) -> None:
    thief, far = fresh[WEB], fresh[FAR]
    for there in range(5000, 5008):
        thief.tap.send(packet(thief, far.address, protocol, port, there)[1](b""))
    probes = {str(there): packet(far, str(HOST), protocol, there, port) for there in range(5000, 5008)}
    assert arrived(host_service, probes, packet(far, str(HOST), protocol, 6000, port)) == list(probes)


@pytest.fixture
def host_service(fresh: Tenants) -> Tap:
    """What the host itself is delivered."""
    return fresh.wire.reception(None)


def packet(sender: Station, address: str, protocol: int, source_port: int, port: int) -> Probe:
    if protocol == TCP:
        return sender.tcp(address, port, SYN, source_port=source_port)
    return sender.udp(address, port, source_port=source_port)


LISTEN = """
import socket, sys
lines = []
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for port in sys.argv[1:]:
        line = socket.socket(socket.AF_INET, kind)
        line.bind(("", int(port)))
        if kind == socket.SOCK_STREAM:
            line.listen()
        lines.append(line)
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def listening(lab: Lab, *ports: int) -> Iterator[None]:
    """Somebody on the host serves these ports, TCP and UDP."""
    process = lab.popen(["python3", "-c", LISTEN, *map(str, ports)])
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_no_flow_gets_a_port_that_somebody_serves(fresh: Tenants, protocol: int) -> None:
    """The ports left free are few, so that of hundreds of flows many would meet one that is taken."""
    served, published = range(32768, 65536, 331), (60000, 60002)
    web, far = fresh[WEB], fresh[FAR]
    with listening(fresh.lab, *served):
        for port in published:
            fresh.wire.vpcctl("publish-port", "--vpc", "shop", "--instance", "web", "--port", str(port))
        seen = {translated_port(web, far, protocol, number) for number in range(400)}
        for port in published:
            fresh.wire.vpcctl("unpublish-port", "--vpc", "shop", "--port", str(port))
    assert len(seen) > 200
    assert all(NAT_PORTS[0] <= port <= NAT_PORTS[1] for port in seen)
    assert seen.isdisjoint(served)
    assert seen.isdisjoint(published)


def translated_port(sender: Station, receiver: Station, protocol: int, number: int) -> int:
    """Send the first packet of a flow; the port that it has outside."""
    probe = packet(sender, receiver.address, protocol, 2000 + number, 80)
    mark = wire.word()
    probe[0].send(probe[1](mark))
    (frame,) = wire.containing(receiver.tap.hear(mark), mark)[:1]
    return int(struct.unpack_from("!H", frame, 34)[0])


def test_a_port_that_is_published_under_a_tenants_flow_is_the_publishers(fresh: Tenants) -> None:
    """Whoever filled all ports toward a remote beforehand would have the one that is published afterwards."""
    web, far, server = fresh[WEB], fresh[FAR], fresh[WEB_2]
    taken = translated_port(web, far, UDP, 1)
    words = ("--vpc", "shop", "--port", str(taken), "--protocol", "udp")
    fresh.wire.vpcctl("publish-port", *words, "--instance", "web-2")
    try:
        probes = {"it": far.udp(str(HOST), taken, source_port=80)}
        assert arrived(server.tap, probes, far.udp(str(HOST), taken, source_port=81)) == ["it"]
    finally:
        fresh.wire.vpcctl("unpublish-port", *words)


# --- Protocols without ports ------------------------------------------------------------------------------------------

SEND = """
import socket, sys
line = socket.socket(socket.AF_INET, socket.SOCK_RAW, int(sys.argv[1]))
line.sendto(bytes.fromhex(sys.argv[3]), (sys.argv[2], 0))
"""


def portless(sender: Station, address: str, protocol: int) -> Probe:
    return sender.raw(lambda one: sender.packet(address, protocol, opening(protocol) + one))


def opening(protocol: int) -> bytes:
    return GRE_PACKET if protocol == GRE else b"\0" * 8


def host_sends(tenants: Tenants, protocol: int, mark: bytes) -> None:
    """The host's own packet of a protocol to the pretend internet."""
    tenants.lab.python(SEND, str(protocol), str(INTERNET), (opening(protocol) + mark).hex())


@pytest.mark.parametrize("protocol", [GRE, ESP, 4, 51, 136, 253])
def test_a_protocol_without_ports_takes_nothing_from_the_host_nor_from_others(fresh: Tenants, protocol: int) -> None:
    web, twin, far, host = fresh[WEB], fresh[TWIN], fresh[FAR], fresh.wire.reception(None)
    tries = {"web": portless(web, far.address, protocol), "twin": portless(twin, far.address, protocol)}
    assert arrived(far.tap, tries, web.udp(far.address, 2222)) == []
    own = wire.word()
    host_sends(fresh, protocol, own)
    assert wire.containing(far.tap.hear(own), own), "the host's own packet did not leave"
    if protocol not in (51, 136):  # `reception` has no ear for these
        to_host = {"to the host": portless(far, str(HOST), protocol)}
        assert arrived(host, to_host, far.udp(str(HOST), 9999)) == ["to the host"]


@pytest.fixture
def gre_for_shop(fresh: Tenants) -> Iterator[Tenants]:
    fresh.wire.vpcctl("create-nat-protocol", "--vpc", "shop", "--protocol", "gre")
    try:
        yield fresh
    finally:
        fresh.wire.vpcctl("delete-nat-protocol", "--vpc", "shop", "--protocol", "gre")


def test_a_protocol_that_is_translated_for_a_vpc_goes_out_and_comes_back(gre_for_shop: Tenants) -> None:
    web, twin, far = gre_for_shop[WEB], gre_for_shop[TWIN], gre_for_shop[FAR]
    probes = {
        "web": portless(web, far.address, GRE),
        "of another protocol": portless(web, far.address, ESP),
        "of another VPC": portless(twin, far.address, GRE),
    }
    assert arrived(far.tap, probes, web.udp(far.address, 2222)) == ["web"]
    answer = {"answer": portless(far, str(HOST), GRE)}
    assert arrived(web.tap, answer, gre_for_shop[WEB_2].udp(web.address, 2222)) == ["answer"]
    refused = gre_for_shop.wire.status("create-nat-protocol", "--vpc", "twin", "--protocol", "47")
    assert refused == 4


def test_the_hosts_own_traffic_comes_before_a_tenants(gre_for_shop: Tenants) -> None:
    web, far, host = gre_for_shop[WEB], gre_for_shop[FAR], gre_for_shop.wire.reception(None)
    assert arrived(far.tap, {"web": portless(web, far.address, GRE)}, web.udp(far.address, 2222)) == ["web"]
    own = wire.word()
    host_sends(gre_for_shop, GRE, own)
    assert wire.containing(far.tap.hear(own), own), "the tenant's flow stood in the host's way"
    answer = {"answer": portless(far, str(HOST), GRE)}
    assert arrived(host, answer, far.udp(str(HOST), 9999)) == ["answer"]
    assert arrived(web.tap, answer, gre_for_shop[WEB_2].udp(web.address, 2222)) == []


def test_a_protocol_that_is_translated_no_longer_ends_at_once(fresh: Tenants) -> None:
    web, far = fresh[WEB], fresh[FAR]
    fresh.wire.vpcctl("create-nat-protocol", "--vpc", "shop", "--protocol", "gre")
    assert arrived(far.tap, {"web": portless(web, far.address, GRE)}, web.udp(far.address, 2222)) == ["web"]
    fresh.wire.vpcctl("delete-nat-protocol", "--vpc", "shop", "--protocol", "gre")
    assert arrived(far.tap, {"web": portless(web, far.address, GRE)}, web.udp(far.address, 2222)) == []
    answer = {"answer": portless(far, str(HOST), GRE)}
    assert arrived(web.tap, answer, fresh[WEB_2].udp(web.address, 2222)) == []


# --- Shares -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(tenants: Tenants, vpc: str, *words: str) -> Iterator[None]:
    tenants.wire.vpcctl("set-limits", "--vpc", vpc, *words)
    try:
        yield
    finally:
        tenants.wire.vpcctl("set-limits", "--vpc", vpc, "--max-flows", "16384", "--max-ports", "8192")


def share_of(tenants: Tenants, vpc: str) -> dict[str, int]:
    told = json.loads(tenants.lab.vpcctl("status", "--json").stdout)
    return next(one for one in told["shares"] if one["vpc"] == vpc)


def test_a_vpc_gets_its_share_of_the_hosts_flows_and_no_more(fresh: Tenants) -> None:
    web, twin, far = fresh[WEB], fresh[TWIN], fresh[FAR]
    with limited(fresh, "shop", "--max-flows", "512"):
        stays = web.udp(far.address, 80, source_port=999)
        assert arrived(far.tap, {"stays": stays}, web.udp(far.address, 81)) == ["stays"]
        web.tap.send(*(web.udp(far.address, 1000 + n, source_port=1000 + n)[1](b"") for n in range(4000)))
        assert arrived(far.tap, {"stays": stays, "twin": twin.udp(far.address, 80)}, stays) == ["stays", "twin"]
        share = share_of(fresh, "shop")
        assert share["max_flows"] == 512
        # The lists fill unevenly: none has more than its part, and nearly all have that.
        assert 450 <= share["flows"] <= 512
        assert share["over_share"] >= 4000 - 512
        assert "512" in fresh.lab.vpcctl("status").stdout
    assert share_of(fresh, "twin")["over_share"] == 0


def test_the_flows_of_many_vpcs_are_counted_as_those_of_one(fresh: Tenants) -> None:
    """Beyond MOST_SELECTIONS the whole table is read once, instead of a selection for each VPC and direction."""
    web, twin, far, near = fresh[WEB], fresh[TWIN], fresh[FAR], fresh[NEAR]
    fresh.wire.vpcctl("create-vpc", "--name", "fifth", "--cidr", "10.9.0.0/16")
    try:
        for number in range(7):
            web.tap.send(web.udp(far.address, 3000 + number)[1](b""))
        for number in range(3):
            near.tap.send(near.udp(str(HOST), PUBLISHED, source_port=4000 + number)[1](b""))
        assert arrived(far.tap, {"twin": twin.udp(far.address, 80)}, twin.udp(far.address, 81)) == ["twin"]
        assert 2 * 5 > MOST_SELECTIONS >= 2  # all five at once, and one alone
        together = json.loads(fresh.lab.vpcctl("status", "--json").stdout)["shares"]
        alone = [
            share
            for vpc in ("shop", "blue", "red", "twin", "fifth")
            for share in json.loads(fresh.lab.vpcctl("status", "--json", "--vpc", vpc).stdout)["shares"]
        ]
        assert together == alone
        counted = {share["vpc"]: (share["flows_out"], share["flows_in"]) for share in together}
        assert counted == {"shop": (7, 0), "blue": (0, 0), "red": (0, 3), "twin": (2, 0), "fifth": (0, 0)}
    finally:
        fresh.wire.vpcctl("delete-vpc", "--name", "fifth")


@pytest.mark.parametrize("declared", [False, True], ids=["command line", "document"])
def test_limits_that_are_given_at_creation_are_in_the_kernels_rulesets(fresh: Tenants, declared: bool) -> None:
    """From the option, or the document's field, to what nft(8) lists in the host and in the router."""
    if declared:
        vpc = {"name": "small", "cidr": "10.9.0.0/16", "max_flows": 160, "max_ports": 48}
        fresh.lab.vpcctl("apply", "-", input=json.dumps({"vpcs": [vpc]}))
    else:
        words = "create-vpc --name small --cidr 10.9.0.0/16 --max-flows 160 --max-ports 48"
        fresh.wire.vpcctl(*words.split())
    try:
        host = fresh.lab.run(["nft", "list", "table", "inet", names.TABLE]).stdout
        assert re.search(r"flows-out-160 .* mod 10 .*ct count over 16\b", host)
        router = fresh.lab.run(["ip", "netns", "exec", "small-router", "nft", "list", "ruleset"]).stdout
        assert re.search(r"snat ip to 100\.64\.[\d.]+:32768-32815\b", router)
    finally:
        fresh.wire.vpcctl("delete-vpc", "--name", "small")


def test_what_comes_to_published_ports_has_a_share_of_its_own(fresh: Tenants) -> None:
    web_2, near, pub = fresh[WEB_2], fresh[NEAR], fresh[PUB]
    with limited(fresh, "red", "--max-flows", "256"):
        flood = (near.udp(str(HOST), PUBLISHED, source_port=1000 + n)[1](b"") for n in range(3000))
        near.tap.send(*flood)
        assert share_of(fresh, "red")["over_share"] >= 3000 - 256
        # Outward, and for the other VPCs, all is as before.
        assert arrived(near.tap, {"out": pub.udp(near.address, 80)}, pub.udp(near.address, 81)) == ["out"]
        assert arrived(web_2.tap, {"in": near.udp(str(HOST), OWN)}, near.udp(str(HOST), OWN)) == ["in"]


def test_a_vpc_gets_its_share_of_ports_toward_one_server_and_no_more(fresh: Tenants) -> None:
    web, twin, far = fresh[WEB], fresh[TWIN], fresh[FAR]
    with limited(fresh, "shop", "--max-ports", "64"):
        far.tap.heard()
        marks = [wire.word() for _ in range(1500)]
        web.tap.send(*(web.udp(far.address, 80, source_port=1000 + n)[1](mark) for n, mark in enumerate(marks)))
        last = twin.udp(far.address, 80)
        mark = wire.word()
        last[0].send(last[1](mark))
        heard = far.tap.hear(mark)
        assert wire.containing(heard, mark), "the other VPC does not reach the server"
        ports = {struct.unpack_from("!H", frame, 34)[0] for frame in wire.containing(heard, *marks)}
        # A free port is searched at random, so the last ones may not be found.
        assert 32 <= len(ports) <= 64
        assert share_of(fresh, "shop")["no_port"] > 0
        assert arrived(far.tap, {"elsewhere": web.udp(far.address, 81)}, web.udp(far.address, 82)) == ["elsewhere"]


# --- The router's own limit, and the bridge ---------------------------------------------------------------------------


def test_an_instance_that_floods_its_gateway_takes_no_pings_from_the_others(fresh: Tenants) -> None:
    web, web_2, db = fresh[WEB], fresh[WEB_2], fresh[DB]
    with web.tap.flooding(web.echo(web.router, 7)[1](b"flood")):
        for station in (web_2, db, web_2, db):
            mark = wire.word()
            station.tap.heard()
            station.tap.send(station.echo(station.router, 8)[1](mark))
            assert wire.containing(station.tap.hear(mark), mark)


def test_no_frame_passes_the_bridge_where_ports_are_not_isolated_any_more(fresh: Tenants) -> None:
    web, web_2 = fresh[WEB], fresh[WEB_2]
    ports = ("in-web", "in-web-2")
    for port in ports:
        fresh.lab.run(["bridge", "link", "set", "dev", port, "isolated", "off"], netns="shop-router")
    try:
        straight = web.raw(
            lambda one: web.frame(wire.ipv4(web.address, web_2.address, UDP, wire.udp(1, 2, one)), to=web_2.mac)
        )
        assert arrived(web_2.tap, {"straight": straight}, web.udp(web_2.address, 2222)) == []
    finally:
        fresh.wire.vpcctl("repair")
