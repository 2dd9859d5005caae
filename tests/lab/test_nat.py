"""Source NAT takes nothing that the host, a published port or another VPC needs; limits belong to who uses them up."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.lab import wire
from tests.lab.tenants import DB, FAR, NEAR, PUB, PUBLISHED, TWIN, WEB, WEB_2, Station, Tenants
from tests.lab.traffic import eventually
from tests.lab.wire import AH, ESP, GRE, IPIP, SCTP, SYN, TCP, UDP, UDPLITE, Probe, Tap, arrived
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
    for protocol in ("udp", "tcp", "sctp"):
        words = ("--vpc", "shop", "--instance", "web-2", "--protocol", protocol, "--port", str(OWN))
        made.wire.vpcctl("publish-port", *words, "--target-port", "80")
    # UDP and TCP are published there already.
    words = ("--vpc", "red", "--instance", "pub", "--protocol", "sctp", "--port", str(PUBLISHED))
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


@pytest.mark.parametrize("protocol", [UDP, TCP, SCTP])
@pytest.mark.parametrize("port", [PUBLISHED, OWN])
@pytest.mark.parametrize("remote", [FAR, NEAR])
def test_a_tenant_that_sends_from_a_published_port_takes_nothing_of_what_it_gets(
    fresh: Tenants, remote: str, port: int, protocol: int
) -> None:
    thief, far, server = fresh[WEB], fresh[remote], fresh[PUB if port == PUBLISHED else WEB_2]
    send_from(port, thief, far, protocol)
    probes = {str(there): packet(far, str(HOST), protocol, there, port) for there in range(5000, 5008)}
    last = packet(far, str(HOST), protocol, 6000, port)
    thief.tap.heard()
    assert arrived(server.tap, probes, last) == list(probes)
    # How every mark of `wire.word` begins.
    assert wire.containing(thief.tap.heard(), b"<00") == []


@pytest.mark.parametrize("protocol", [UDP, TCP, SCTP])
@pytest.mark.parametrize("port", [SERVICE, 22, 40000, 51820])
def test_a_tenant_that_sends_from_a_port_of_the_hosts_takes_nothing_of_what_the_host_gets(
    fresh: Tenants, host_service: Tap, port: int, protocol: int
) -> None:
    thief, far = fresh[WEB], fresh[FAR]
    send_from(port, thief, far, protocol)
    probes = {str(there): packet(far, str(HOST), protocol, there, port) for there in range(5000, 5008)}
    assert arrived(host_service, probes, packet(far, str(HOST), protocol, 6000, port)) == list(probes)


def send_from(port: int, thief: Station, far: Station, protocol: int) -> None:
    """Send from `port` to eight ports of `far`; all of it must arrive there, from the ports of source NAT."""
    # No marks of `wire.word`: what answers the thief repeats them.
    marks = {there: b"thief %d" % there for there in range(5000, 5008)}
    far.tap.heard()
    for there, mark in marks.items():
        thief.tap.send(packet(thief, far.address, protocol, port, there)[1](mark))
    frames = wire.containing(far.tap.hear(marks[5007]), *marks.values())
    assert len(frames) == len(marks), "the thief's packets did not leave, so that nothing is proved"
    assert {frame[23] for frame in frames} == {protocol}
    assert min(map(source_port, frames)) >= NAT_PORTS[0]


@pytest.fixture
def host_service(fresh: Tenants) -> Tap:
    """What the host itself is delivered."""
    return fresh.wire.reception(None)


def packet(sender: Station, address: str, protocol: int, source_port: int, port: int) -> Probe:
    if protocol == TCP:
        return sender.tcp(address, port, SYN, source_port=source_port)
    if protocol == SCTP:
        return sender.raw(lambda one: sender.packet(address, SCTP, wire.sctp_init(source_port, port, one)))
    return sender.udp(address, port, source_port=source_port)


def source_port(frame: bytes) -> int:
    """The port from which a frame with an IPv4 packet without options comes."""
    return int(struct.unpack_from("!H", frame, 34)[0])


LISTEN = """
import resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
lines = []
for kind, ports in zip((socket.SOCK_STREAM, socket.SOCK_DGRAM), sys.argv[1:]):
    for port in ports.split():
        line = socket.socket(socket.AF_INET, kind)
        line.bind(("", int(port)))
        if kind == socket.SOCK_STREAM:
            line.listen()
        lines.append(line)
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def listening(lab: Lab, tcp: Sequence[int], udp: Sequence[int]) -> Iterator[None]:
    """Somebody on the host serves these ports."""
    process = lab.popen(["python3", "-c", LISTEN, *(" ".join(map(str, ports)) for ports in (tcp, udp))])
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def test_no_flow_gets_a_port_that_somebody_serves(fresh: Tenants) -> None:
    """So many ports are served or published that some of the flows would get one, if it were not left out.

    They are blocks of 32 ports with 61 ranges between them, less than MOST_RANGES.  15 blocks are served by TCP, 15 by
    UDP, and 30 are published.  750 flows all miss 15 blocks by chance once in 60,000 times.
    """
    web, far = fresh[WEB], fresh[FAR]
    blocks = [range(first, first + 32) for first in range(33000, 33000 + 60 * 530, 530)]
    tcp, udp = ([port for block in blocks[kind::4] for port in block] for kind in (0, 2))
    published = [port for block in blocks[1::2] for port in block]
    document = {
        "name": "busy",
        "cidr": "10.9.0.0/16",
        "subnets": [{"name": "web", "cidr": "10.9.1.0/24", "type": "public"}],
        "publish": [{"protocol": "tcp", "port": port, "instance": "web"} for port in published],
    }
    with listening(fresh.lab, tcp, udp):
        fresh.wire.vpcctl("apply", "-", document={"vpcs": [document]})
        try:
            seen = {
                translated_port(web, far, protocol, number) for protocol in (UDP, TCP, SCTP) for number in range(250)
            }
        finally:
            fresh.wire.vpcctl("delete-vpc", "--name", "busy", "--cascade")
    assert len(seen) > 700
    assert all(NAT_PORTS[0] <= port <= NAT_PORTS[1] for port in seen)
    for taken in (tcp, udp, published):
        assert seen.isdisjoint(taken)


def translated_port(sender: Station, receiver: Station, protocol: int, number: int) -> int:
    """Send the first packet of a flow; the port that it has outside."""
    probe = packet(sender, receiver.address, protocol, 2000 + number, 80)
    mark = wire.word()
    probe[0].send(probe[1](mark))
    (frame,) = wire.containing(receiver.tap.hear(mark), mark)[:1]
    return source_port(frame)


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
    return sender.raw(
        lambda one: sender.packet(address, protocol, portless_payload(protocol, (sender.address, address), one))
    )


def portless_payload(protocol: int, ends: tuple[str, str], mark: bytes) -> bytes:
    """What the packet carries; connection tracking must find it valid."""
    if protocol == UDPLITE:
        return wire.udplite(ends, 2222, 2222, mark)
    return (GRE_PACKET if protocol == GRE else b"\0" * 8) + mark


def host_sends(tenants: Tenants, protocol: int, mark: bytes) -> None:
    """The host's own packet of a protocol to the pretend internet."""
    payload = portless_payload(protocol, (str(HOST), str(INTERNET)), mark)
    tenants.lab.python(SEND, str(protocol), str(INTERNET), payload.hex())


@pytest.mark.parametrize("protocol", [GRE, ESP, IPIP, AH, UDPLITE, 253])
def test_a_protocol_without_ports_takes_nothing_from_the_host_nor_from_others(fresh: Tenants, protocol: int) -> None:
    web, twin, far, host = fresh[WEB], fresh[TWIN], fresh[FAR], fresh.wire.reception(None)
    tries = {"web": portless(web, far.address, protocol), "twin": portless(twin, far.address, protocol)}
    assert arrived(far.tap, tries, web.udp(far.address, 2222)) == []
    own = wire.word()
    host_sends(fresh, protocol, own)
    assert wire.containing(far.tap.hear(own), own), "the host's own packet did not leave"
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
    told = json.loads(tenants.wire.vpcctl("status", "--json"))
    return next(one for one in told["shares"] if one["vpc"] == vpc)


def overdraw(tenants: Tenants, vpc: str, counter: str, most: int, tap: Tap, frames: Sequence[bytes]) -> None:
    """Send the frames until `most` more packets are counted as dropped; a busy machine may lose some on the way."""
    before = share_of(tenants, vpc)[counter]
    for _ in range(5):
        tap.send(*frames)
        dropped = share_of(tenants, vpc)[counter] - before
        if dropped >= most:
            return
    raise AssertionError(f"VPC {vpc} is over its share, but {counter} counted only {dropped} packets")


def test_a_vpc_gets_its_share_of_the_hosts_flows_and_no_more(fresh: Tenants) -> None:
    web, twin, far = fresh[WEB], fresh[TWIN], fresh[FAR]
    # VPCs with equal limits are counted in one set.
    with limited(fresh, "twin", "--max-flows", "512"), limited(fresh, "shop", "--max-flows", "512"):
        stays = web.udp(far.address, 80, source_port=999)
        assert arrived(far.tap, {"stays": stays}, web.udp(far.address, 81)) == ["stays"]
        flood = [web.udp(far.address, 1000 + n, source_port=1000 + n)[1](b"") for n in range(4000)]
        overdraw(fresh, "shop", "over_share", 3000, web.tap, flood)
        assert arrived(far.tap, {"stays": stays, "twin": twin.udp(far.address, 80)}, stays) == ["stays", "twin"]
        share = share_of(fresh, "shop")
        assert share["max_flows"] == 512
        # The lists fill unevenly: none has more than its part, and nearly all have that.
        assert 450 <= share["flows"] <= 512
        assert "512" in fresh.lab.vpcctl("status").stdout
        # Here, because the counters start anew with the next limits.
        assert share["over_share"] >= 3000
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
        out = {"name": "out", "cidr": "10.9.1.0/24", "type": "public"}
        vpc = {"name": "small", "cidr": "10.9.0.0/16", "max_flows": 160, "max_ports": 48, "subnets": [out]}
        fresh.lab.vpcctl("apply", "-", input=json.dumps({"vpcs": [vpc]}))
    else:
        words = "create-vpc --name small --cidr 10.9.0.0/16 --max-flows 160 --max-ports 48"
        fresh.wire.vpcctl(*words.split())
        fresh.wire.vpcctl(*"create-subnet --vpc small --name out --cidr 10.9.1.0/24 --type public".split())
    try:
        host = fresh.lab.run(["nft", "list", "table", "inet", names.TABLE]).stdout
        assert re.search(r"flows-out-160 .* mod 10 .*ct count over 16\b", host)
        router = fresh.lab.run(["ip", "netns", "exec", "small-router", "nft", "list", "ruleset"]).stdout
        assert re.search(r"snat ip to 100\.64\.[\d.]+:32768-32815\b", router)
    finally:
        fresh.wire.vpcctl("delete-vpc", "--name", "small", "--cascade")


def test_what_comes_to_published_ports_has_a_share_of_its_own(fresh: Tenants) -> None:
    web_2, near, pub = fresh[WEB_2], fresh[NEAR], fresh[PUB]
    with limited(fresh, "red", "--max-flows", "256"):
        flood = [near.udp(str(HOST), PUBLISHED, source_port=1000 + n)[1](b"") for n in range(3000)]
        overdraw(fresh, "red", "over_share", 2000, near.tap, flood)
        # Outward, and for the other VPCs, all is as before.
        assert arrived(near.tap, {"out": pub.udp(near.address, 80)}, pub.udp(near.address, 81)) == ["out"]
        assert arrived(web_2.tap, {"in": near.udp(str(HOST), OWN)}, near.udp(str(HOST), OWN)) == ["in"]
        # Each direction has the whole limit, so that the VPC has more flows than one of them would allow.
        flood = [pub.udp(near.address, 1000 + n, source_port=1000 + n)[1](b"") for n in range(3000)]
        overdraw(fresh, "red", "over_share", 2000, pub.tap, flood)
        assert 256 + 64 <= share_of(fresh, "red")["flows"] <= 2 * 256


def test_a_vpc_gets_its_share_of_ports_toward_one_server_and_no_more(fresh: Tenants) -> None:
    web, twin, far = fresh[WEB], fresh[TWIN], fresh[FAR]
    before = share_of(fresh, "twin")["no_port"]
    with limited(fresh, "shop", "--max-ports", "64"):
        far.tap.heard()
        marks = [wire.word() for _ in range(1500)]
        flood = [web.udp(far.address, 80, source_port=1000 + n)[1](mark) for n, mark in enumerate(marks)]
        overdraw(fresh, "shop", "no_port", 1000, web.tap, flood)
        elsewhere = wire.word()
        web.tap.send(web.udp(far.address, 81)[1](elsewhere))
        heard = far.tap.hear(elsewhere)
        assert wire.containing(heard, elsewhere), "the VPC does not reach another service"
        # A free port is searched at random, so the last ones may not be found.
        assert 32 <= len({source_port(frame) for frame in wire.containing(heard, *marks)}) <= 64
        assert arrived(far.tap, {"twin": twin.udp(far.address, 80)}, twin.udp(far.address, 81)) == ["twin"]
        assert share_of(fresh, "twin")["no_port"] == before


CALL = """
import socket, sys
address, service, *ports = sys.argv[1:]
for port in ports:
    with socket.socket() as line:
        line.settimeout(30)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        line.bind(("", int(port)))
        line.connect((address, int(service)))
        line.sendall(b"hello\\n")
        answer = line.recv(6)
        assert answer == b"hello\\n", (port, answer)
"""
ANSWER = """
import socket
with socket.create_server(("", 22)) as server:
    print("ready", flush=True)
    while True:
        line, _ = server.accept()
        line.sendall(line.recv(6))
        line.close()
"""


def calls(tenants: Tenants, netns: str | None, address: str, service: int, *ports: int) -> None:
    """Connect from each of the ports (0: any) and have a line repeated; an error if one connection fails."""
    tenants.lab.python(CALL, address, *map(str, (service, *ports)), netns=netns, timeout=300)


@pytest.fixture
def ssh(fresh: Tenants) -> Iterator[None]:
    """Something on the host's port 22 that sends back what it receives."""
    process = fresh.lab.popen(["python3", "-c", ANSWER])
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    yield
    process.terminate()
    process.wait(10)


def test_a_vpc_at_its_limits_takes_nothing_from_the_host_or_from_other_vpcs(fresh: Tenants, ssh: None) -> None:
    web, twin, far = fresh[WEB], fresh[TWIN], fresh[FAR]
    same_service = [web.tcp(far.address, 80, source_port=1000 + n)[1](b"same") for n in range(400)]
    all_services = [web.udp(far.address, 1000 + n, source_port=1000 + n)[1](b"") for n in range(1000)]

    def at_both_limits() -> None:
        """Return when both limits have dropped more packets."""
        before = share_of(fresh, "shop")

        def over() -> bool:
            share = share_of(fresh, "shop")
            return share["no_port"] > before["no_port"] and share["over_share"] > before["over_share"]

        assert eventually(over), f"the VPC is not over its share: {share_of(fresh, 'shop')}"

    limits = ("--max-flows", "512", "--max-ports", "64")
    with limited(fresh, "twin", *limits), limited(fresh, "shop", *limits):
        far.tap.heard()
        overdraw(fresh, "shop", "no_port", 300, web.tap, same_service)
        taken = {source_port(frame) for frame in wire.containing(far.tap.heard(), b"same")}
        assert 32 <= len(taken) <= 64
        overdraw(fresh, "shop", "over_share", 400, web.tap, all_services)
        with web.tap.flooding(*same_service, *all_services, rate=1):
            at_both_limits()
            # The host: to the service whose ports the VPC has used up, also from ports that its flows have outside.
            calls(fresh, None, far.address, 80, 0, 0, *sorted(taken)[:10])
            fresh.lab.run(["ping", "-n", "-c", "5", "-i", "0.2", "-W", "10", far.address])
            for station in (FAR, NEAR):
                calls(fresh, station, str(HOST), 22, 0, 0)
            # Another VPC with the same limits: flows to that service, and answers.
            probes = {f"udp {n}": twin.udp(far.address, 80, source_port=3000 + n) for n in range(30)}
            probes |= {f"tcp {n}": twin.tcp(far.address, 80, source_port=3000 + n) for n in range(30)}
            probes |= {"ping": twin.echo(far.address)}
            reached = arrived(far.tap, probes, twin.udp(far.address, 81))
            assert "ping" in reached
            # A busy machine may lose a few.
            assert len(reached) >= 55
            mark = wire.word()
            twin.tap.send(twin.udp(far.address, 80, source_port=2999)[1](mark))
            assert wire.containing(twin.tap.hear(mark), mark), "the other VPC gets no answer"
            at_both_limits()
        assert share_of(fresh, "twin")["over_share"] == 0


# --- The router's own limit, and the bridge ---------------------------------------------------------------------------


def test_an_instance_that_floods_its_gateway_takes_no_pings_from_the_others(fresh: Tenants) -> None:
    """Two others send 40 pings each at once: more than the 50 that one rate for all would allow."""
    web, others = fresh[WEB], [fresh[WEB_2], fresh[DB]]
    with web.tap.flooding(web.echo(web.router, 7)[1](b"flood"), rate=2000):
        wait_until_pings_are_dropped(fresh, web)
        marks = {station: [wire.word() for _ in range(40)] for station in others}
        for station in others:
            station.tap.heard()
        for station in others:
            station.tap.send(*(station.echo(station.router, 8)[1](mark) for mark in marks[station]))
        for station in others:
            # A busy machine may lose a few.
            assert len(wire.containing(station.tap.hear(marks[station][-1]), *marks[station])) >= 30
        wait_until_pings_are_dropped(fresh, web)


def wait_until_pings_are_dropped(tenants: Tenants, flooder: Station) -> None:
    """Return when the router has left 200 more pings of the flooder without an answer."""
    flooder.tap.heard()
    asked, answered = received(tenants), 0

    def dropped() -> bool:
        nonlocal answered
        time.sleep(0.05)
        answered += len(wire.containing(flooder.tap.heard(), b"flood"))
        return received(tenants) - asked - answered >= 200

    assert eventually(dropped), "the router answers the whole flood"


def received(tenants: Tenants) -> int:
    """How many packets the router has received from web."""
    told = tenants.lab.run(["ip", "-json", "-statistics", "link", "show", "in-web"], netns="shop-router").stdout
    return int(json.loads(told)[0]["stats64"]["rx"]["packets"])


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
        # The control: without the rule it would be heard.
        without = ["nft", "add chain bridge vpcctl bridge-forward { policy accept; }"]
        fresh.lab.run(without, netns="shop-router")
        assert arrived(web_2.tap, {"straight": straight}, web.udp(web_2.address, 2222)) == ["straight"]
    finally:
        fresh.wire.vpcctl("repair")
