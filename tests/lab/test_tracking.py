"""What connection tracking remembers follows every change: whose a flow is, which way it began, how it is NATed."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.lab import wire
from tests.lab.tenants import APP, DB, DEAF, FAR, NEAR, UPLINKS, WEB, WEB_2, Station, Tenants
from tests.lab.traffic import assert_moving, assert_nothing_lost, start_flow, stations
from tests.lab.wire import ACK, PSH, SYN, Probe, Tap, arrived
from vpcctl.lab import HOST, INTERNET, Lab

ALLOW = {"action": "allow"}
OLD, NEW = "shop-old", "shop-new"
ADDRESS = "10.0.1.9"
CANARY = 9009
SILENT = """
table netdev deaf {
    chain ingress {
        type filter hook ingress device eth0 priority 0; policy accept;
        ether type ip drop
    }
}
"""


@pytest.fixture(scope="module")
def tenants(module_lab: Lab) -> Tenants:
    made = Tenants(module_lab)
    # Where the canaries of the published ports go.
    _publish(made, CANARY, "udp", "web")
    # Here the tests speak for the internet, and nobody answers before them.
    module_lab.run(["nft", "-f", "-"], netns=FAR, input=SILENT)
    return made


# --- An address that somebody else had --------------------------------------------------------------------------------


@contextlib.contextmanager
def instance(tenants: Tenants, name: str, *more: str) -> Iterator[Station]:
    """An instance of shop/web for a while, as a station."""
    made = name.removeprefix("shop-")
    tenants.wire.vpcctl("create-instance", "--vpc", "shop", "--subnet", "web", "--name", made, *more)
    tenants.lab.run(["nft", "-f", "-"], netns=name, input=DEAF)
    try:
        yield tenants.instance(name, "shop", "web", ADDRESS)
    finally:
        tenants.wire.vpcctl("delete-instance", "--vpc", "shop", "--name", made)


def translated(heard: list[bytes], mark: bytes) -> tuple[str, int]:
    """The source address and port of the frame that holds `mark`."""
    (frame,) = wire.containing(heard, mark)[:1]
    return ".".join(map(str, frame[26:30])), int.from_bytes(frame[34:36], "big")


def session(client: Station, server: Station, port: int, called: tuple[str, int] | None = None) -> tuple[str, int]:
    """A TCP connection between two taps, whose server's port is 80; where the server sees the client.

    `called` is what the client calls, where that is not the server's own address.
    """
    address, to = called or (server.address, 80)
    seen = translated(*_carried(client.tcp(address, to, SYN, source_port=port), server))
    _carried(server.tcp(*seen, SYN | ACK, source_port=80, sequence=2000, acknowledged=1001), client)
    _carried(client.tcp(address, to, ACK, source_port=port, sequence=1001, acknowledged=2001), server)
    return seen


def _carried(probe: Probe, receiver: Station) -> tuple[list[bytes], bytes]:
    """Send a probe that must arrive; what was heard, and the probe's word."""
    tap, make = probe
    mark = wire.word()
    receiver.tap.heard()
    tap.send(make(mark))
    heard = receiver.tap.hear(mark)
    assert wire.containing(heard, mark)
    return heard, mark


@pytest.mark.parametrize("target", [DB, WEB_2, APP, FAR])
def test_who_gets_a_used_address_gets_none_of_its_sessions(tenants: Tenants, target: str) -> None:
    server = tenants[target]
    with instance(tenants, OLD, "--ip", ADDRESS) as old:
        seen = session(old, server, 4001)
        again = server.tcp(seen[0], seen[1], ACK | PSH, source_port=80, sequence=2001, acknowledged=1001)
        assert arrived(old.tap, {"again": again}, _to_everybody(tenants, old)) == ["again"]
        met = translated(*_carried(old.udp(server.address, 7000, source_port=7000), server))
        back = server.udp(met[0], met[1], source_port=7000)
        assert arrived(old.tap, {"back": back}, _to_everybody(tenants, old)) == ["back"]
    with instance(tenants, NEW, "--ip", ADDRESS) as new:
        late = {
            "a retransmission": again,
            "a late answer": back,
        }
        if target in (DB, WEB_2, APP):
            # Inside, a datagram to an address is a flow of its own.
            late.pop("a late answer")
        assert arrived(new.tap, late, _to_everybody(tenants, new)) == []
        inject = new.tcp(server.address, 80, ACK | PSH, source_port=4001, sequence=1001, acknowledged=2001)
        assert arrived(server.tap, {"injected": inject}, new.udp(server.address, 1)) == []


def _to_everybody(tenants: Tenants, station: Station) -> Probe:
    """A canary: a neighbour's datagram to the station."""
    return tenants[WEB].udp(station.address, 2222)


@pytest.mark.parametrize("target", [DB, APP, FAR])
def test_a_deleted_instance_leaves_no_entry_anywhere(tenants: Tenants, target: str) -> None:
    server = tenants[target]
    with instance(tenants, OLD, "--ip", ADDRESS) as old:
        assert arrived(server.tap, {}, old.udp(server.address, 7100, source_port=7100)) == []
        assert ADDRESS in ends(tenants, "shop-router")
        outside = [flow for flow in tenants.wire.flows(None) if flow.destination_port == 7100]
        assert bool(outside) == (target == FAR)
    for router in ("shop-router", "blue-router"):
        assert ADDRESS not in ends(tenants, router)
    assert [flow for flow in tenants.wire.flows(None) if flow.destination_port == 7100] == []


def ends(tenants: Tenants, router: str) -> set[str]:
    return {end for flow in tenants.wire.flows(router) for end in (flow.source, flow.destination)}


def test_a_deleted_vpc_leaves_no_entry_in_the_host(tenants: Tenants) -> None:
    tenants.wire.vpcctl("create-vpc", "--name", "brief", "--cidr", "10.7.0.0/16")
    tenants.wire.vpcctl("create-subnet", "--vpc", "brief", "--name", "web", "--cidr", "10.7.1.0/24", "--type", "public")
    try:
        brief = tenants.instance("brief-web", "brief", "web", "10.7.1.2")
        assert arrived(tenants[FAR].tap, {}, brief.udp(str(INTERNET), 7200)) == []
        assert [flow for flow in tenants.wire.flows(None) if flow.destination_port == 7200]
    finally:
        tenants.wire.vpcctl("delete-vpc", "--name", "brief", "--cascade")
    assert [flow for flow in tenants.wire.flows(None) if flow.destination_port == 7200] == []


# How an environment gives the address of one instance to another one: (before, after).
ONE, TWO, SPARE = "10.6.1.2", "10.6.1.3", "10.6.1.9"
MOVES = {
    "two addresses are exchanged": {"one": TWO, "two": ONE},
    "an address goes from one to another": {"one": SPARE, "two": ONE},
    "an address goes to a new instance": {"one": SPARE, "two": TWO, "new": ONE},
}
OWNERS = {"one": ONE, "two": TWO}
TARGETS = ("move-db", "side-app", FAR)
CALLS = {"one": 9501, "two": 9502}


def moving(owners: Mapping[str, str]) -> dict[str, Any]:
    """A VPC whose instances have these addresses, and its peer; into it go port 80, a canary and replies."""
    instances = [{"name": name, "ip": address} for name, address in owners.items()]
    ingress = [{**ALLOW, "protocol": "udp", "port": [80, 2222]}]
    calm = [{"name": name, "ip": f"10.6.2.{number}"} for number, name in enumerate(("db", "calm", "quiet"), 2)]
    publish = [{"protocol": "udp", "port": port, "instance": name, "target_port": 80} for name, port in CALLS.items()]
    move = {
        "name": "move",
        "cidr": "10.6.0.0/16",
        "subnets": [
            {"name": "pub", "cidr": "10.6.1.0/24", "type": "public", "instances": instances}
            | {"policy": {"ingress": ingress}},
            {"name": "in", "cidr": "10.6.2.0/24", "type": "private", "instances": calm},
        ],
        "publish": publish,
    }
    app = {"name": "app", "cidr": "10.5.1.0/24", "type": "private"}
    return {"vpcs": [move, {"name": "side", "cidr": "10.5.0.0/16", "subnets": [app]}], "peerings": [["move", "side"]]}


@pytest.mark.parametrize("how", MOVES)
def test_an_address_that_changes_hands_takes_no_flow_along(tenants: Tenants, how: str) -> None:
    tenants.wire.vpcctl("apply", "-", document=moving(OWNERS))
    try:
        with stations(tenants.lab, "move-calm", "move-quiet") as (calm, quiet):
            kept = [
                start_flow("udp", calm, quiet, "10.6.2.4", 5000, "udp", rate=500),
                start_flow("tcp", calm, quiet, "10.6.2.4", 5000, "tcp", rate=100, push=100),
            ]
            assert_moving(kept, time.monotonic())
            _change_hands(tenants, MOVES[how])
            assert_moving(kept, time.monotonic())
            assert_nothing_lost(kept)
            # The sender did not stand still.
            assert kept[0].counts()[0].sent > 100
    finally:
        tenants.wire.vpcctl("delete-vpc", "--name", "move", "--cascade")
        tenants.wire.vpcctl("delete-vpc", "--name", "side", "--cascade")


def _change_hands(tenants: Tenants, after: Mapping[str, str]) -> None:
    near, address = tenants[NEAR], {"move-db": "10.6.2.2", "side-app": "10.5.1.2"}
    servers = {name: _deaf(tenants, name, address[name]) for name in TARGETS[:2]} | {FAR: tenants[FAR]}
    owners = {name: _deaf(tenants, f"move-{name}", OWNERS[name]) for name in OWNERS}
    db, ports = servers["move-db"], {}
    late: dict[str, tuple[str, Probe]] = {}
    for (owner, station), (target, server) in itertools.product(owners.items(), servers.items()):
        port = ports[owner, target] = next(PORTS)
        seen = session(station, server, port)
        again = server.tcp(*seen, ACK | PSH, source_port=80, sequence=2001, acknowledged=1001)
        met = translated(*_carried(station.udp(server.address, port, source_port=port), server))
        back = server.udp(*met, source_port=port)
        late |= {f"segment of {target} for {owner}": (owner, again), f"answer of {target} for {owner}": (owner, back)}
    called = {name: near.udp(str(HOST), port, source_port=next(PORTS)) for name, port in CALLS.items()}
    # All of them work.
    for owner, probe in (*late.values(), *called.items()):
        _carried(probe, owners[owner])

    gate = tenants.wire.tap("move-router", "in-db")
    flood = {name: probe for name, (_, probe) in late.items() if name.endswith("of move-db for one")}
    assert len(flood) == 2
    gone = {ports[owner, target] for owner, target in ports if after[owner] != OWNERS[owner]}
    with floods(flood) as words:
        assert arriving(words, gate, owners["one"].tap, db.udp(ONE, 2222)) == list(flood)
        tenants.wire.vpcctl("apply", "-", document=moving(after))
        left = [flow for router in ("move-router", "side-router", None) for flow in tenants.wire.flows(router)]
        assert [flow for flow in left if {flow.source_port, flow.destination_port} & gone] == []
        holders = {name: _deaf(tenants, f"move-{name}", owned) for name, owned in after.items()}
        for holder in holders.values():
            canary = db.udp(holder.address, 2222)
            assert arriving(words, gate, holder.tap, canary) == []
    for name, holder in holders.items():
        # An instance that keeps its address keeps its flows.
        own = [what for what, (owner, _) in late.items() if owner == name and after[name] == OWNERS[name]]
        probes = {what: probe for what, (_, probe) in late.items()}
        assert arrived(holder.tap, probes, db.udp(holder.address, 2222)) == own
    # Nor does the new owner of an address speak in a connection of the old one.
    for (owner, target), port in ports.items():
        for holder in holders.values():
            if port in gone and holder.address == OWNERS[owner]:
                server = servers[target]
                inject = holder.tcp(server.address, 80, ACK | PSH, source_port=port, sequence=1001, acknowledged=2001)
                assert arrived(server.tap, {"injected": inject}, holder.udp(server.address, 1)) == []
    # A published port follows its instance; a caller that goes on calling comes to nobody else.
    for name, probe in called.items():
        for other, holder in holders.items():
            last = near.udp(str(HOST), CALLS[other]) if other in CALLS else db.udp(holder.address, 2222)
            assert arrived(holder.tap, {name: probe}, last) == [name] * (name == other)


def _deaf(tenants: Tenants, namespace: str, address: str) -> Station:
    """An instance of the VPCs above as a station; it may be one already."""
    tenants.lab.run(["nft", "-f", "-"], netns=namespace, input=f"table netdev deaf\ndelete table netdev deaf\n{DEAF}")
    vpc = namespace.partition("-")[0]
    subnet = {"10.6.1": "pub", "10.6.2": "in", "10.5.1": "app"}[address.rpartition(".")[0]]
    return tenants.instance(namespace, vpc, subnet, address)


# --- The direction in which a flow began ------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [False, True])
def test_a_flow_that_is_allowed_the_other_way_round_begins_anew(tenants: Tenants, peer: bool) -> None:
    """IKE, NTP and VXLAN use one port at both ends, so the new flow has the tuple of the one that was revoked."""
    web, other = tenants[WEB], tenants[APP if peer else DB]
    place = ("blue", "app") if peer else ("shop", "db")
    forth, back = web.udp(other.address, 500, source_port=500), other.udp(web.address, 500, source_port=500)
    stays, answers = web.udp(other.address, 501, source_port=501), other.udp(web.address, 501, source_port=501)
    with tenants.policy("shop", "web", egress=[{**ALLOW, "protocol": "udp", "port": [500, 501, 2222]}]):
        assert arrived(other.tap, {"forth": forth, "stays": stays}, web.udp(other.address, 2222)) == ["forth", "stays"]
        assert arrived(web.tap, {"back": back, "answers": answers}, other.udp(web.address, 2222)) == ["back", "answers"]
    with tenants.policy("shop", "web", egress=[{**ALLOW, "protocol": "udp", "port": [501, 2222]}]):
        assert _tracked(tenants, 500) == []
        assert arrived(other.tap, {"forth": forth, "stays": stays}, web.udp(other.address, 2222)) == ["stays"]
        probes = {"anew": back, "answers": answers}
        assert arrived(web.tap, probes, other.udp(web.address, 2222)) == ["anew", "answers"]
        (one,) = _tracked(tenants, 500)
        assert one.source == other.address
        # The flow that stayed has kept its entry, and with it its direction.
        assert {flow.source for flow in _tracked(tenants, 501)} == {web.address}
    tenants.wire.forget_flows("shop-router")
    tenants.wire.forget_flows("blue-router")
    with tenants.policy(*place, egress=[]):
        assert arrived(web.tap, {"denied": back}, web_canary(tenants)) == []


def web_canary(tenants: Tenants) -> Probe:
    return tenants[WEB_2].udp(tenants[WEB].address, 2222)


def _tracked(tenants: Tenants, port: int) -> list[wire.Tracked]:
    return [flow for flow in tenants.wire.flows("shop-router") if flow.destination_port == port]


def test_a_peers_gate_is_asked_about_a_flow_that_begins_anew(tenants: Tenants) -> None:
    """What one router forgets the other forgets too: it would take the first packet for a reply, and ask nobody."""
    web, app = tenants[WEB], tenants[APP]
    forth, back = web.udp(app.address, 600, source_port=600), app.udp(web.address, 600, source_port=600)
    with tenants.policy("blue", "app", egress=[{**ALLOW, "protocol": "udp", "port": 2222}]):
        assert arrived(app.tap, {"forth": forth}, web.udp(app.address, 2222)) == ["forth"]
        assert arrived(web.tap, {"a reply": back}, app.udp(web.address, 2222)) == ["a reply"]
        with tenants.policy("shop", "web", egress=[]):
            assert arrived(web.tap, {"opening": back}, app.udp(web.address, 2222)) == []


# --- Translation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_an_unpublished_port_carries_nothing_though_another_leads_to_the_same_place(
    tenants: Tenants, protocol: str
) -> None:
    near, web, host = tenants[NEAR], tenants[WEB], str(HOST)
    with published(tenants, 9002, protocol):
        with published(tenants, 9001, protocol):
            flows = {str(port): _live(near, web, protocol, port) for port in (9001, 9002)}
            assert arrived(web.tap, flows, near.udp(host, CANARY)) == list(flows)
        assert arrived(web.tap, flows, near.udp(host, CANARY)) == ["9002"]
    assert arrived(web.tap, flows, near.udp(host, CANARY)) == []


def _live(near: Station, web: Station, protocol: str, port: int) -> Probe:
    """The next packet of a live flow from the LAN to a published port."""
    called, source_port = (str(HOST), port), port - 3000
    if protocol == "udp":
        return near.udp(*called, source_port=source_port)
    session(near, web, source_port, called)
    return near.tcp(*called, ACK | PSH, source_port=source_port, sequence=1001, acknowledged=2001)


def test_a_sender_that_never_pauses_is_served_as_soon_as_its_port_is_published(tenants: Tenants) -> None:
    """Design: the first datagrams were for the host itself, and connection tracking keeps that while they go on."""
    near, web, web_2 = tenants[NEAR], tenants[WEB], tenants[WEB_2]
    sender = near.udp(str(HOST), 9100, source_port=6100)
    sender[0].send(sender[1](b""))
    assert [flow for flow in tenants.wire.flows(None) if flow.destination_port == 9100]
    with published(tenants, 9100, "udp"):
        assert arrived(web.tap, {"it": sender}, near.udp(str(HOST), CANARY)) == ["it"]
    sender[0].send(sender[1](b""))
    with published(tenants, 9100, "udp", "web-2"):
        assert arrived(web_2.tap, {"it": sender}, near.udp(str(HOST), 9100)) == ["it"]
        assert arrived(web.tap, {"it": sender}, near.udp(str(HOST), CANARY)) == []


def test_a_flow_to_a_prefix_that_is_peered_later_takes_the_peering(tenants: Tenants) -> None:
    """It left by the uplink before, translated; that translation would go on behind the peering's link."""
    twin, pub = tenants["twin-web"], tenants["red-pub"]
    sender = twin.udp(pub.address, 9200, source_port=6200)
    sender[0].send(sender[1](b""))
    assert [flow for flow in tenants.wire.flows("twin-router") if flow.destination_port == 9200]
    tenants.wire.vpcctl("create-peering", "--vpc1", "twin", "--vpc2", "red")
    try:
        assert arrived(pub.tap, {"it": sender}, twin.udp(pub.address, 2222)) == ["it"]
    finally:
        tenants.wire.vpcctl("delete-peering", "--vpc1", "twin", "--vpc2", "red")


def test_flows_that_began_while_the_host_had_no_table_are_translated_when_it_has_one_again(tenants: Tenants) -> None:
    web, far = tenants[WEB], tenants[FAR]
    sender = web.udp(str(INTERNET), 9300, source_port=6300)
    tenants.lab.run(["nft", "delete", "table", "inet", "vpcctl"])
    sender[0].send(sender[1](b""))
    tenants.wire.vpcctl("repair")
    assert arrived(far.tap, {"it": sender}, web.udp(str(INTERNET), 9301)) == ["it"]


# --- Senders that never pause -----------------------------------------------------------------------------------------

RATE = 2000
# Source ports of floods, no two alike: an entry of an earlier test would be another test's flow.
PORTS = itertools.count(6600)


@contextlib.contextmanager
def floods(probes: Mapping[str, Probe]) -> Iterator[dict[str, bytes]]:
    """Each of the probes is sent over and over meanwhile, RATE times a second at most; their words."""
    with contextlib.ExitStack() as stack:
        words = {}
        for name, (tap, make) in probes.items():
            words[name] = wire.word()
            stack.enter_context(tap.flooding(make(words[name]), rate=RATE))
        yield words


def arriving(words: Mapping[str, bytes], gate: Tap, ear: Tap, canary: Probe) -> list[str]:
    """The floods of which something arrives at `ear` that comes to `gate` after this moment."""
    _pass(words, gate, 50)
    # What was on its way is there.
    assert arrived(ear, {}, canary) == []
    ear.heard()
    _pass(words, gate, 200)
    (tap, make), last = canary, wire.word()
    tap.send(make(last))
    frames = ear.hear(last)
    assert wire.containing(frames, last), "the canary did not arrive, so that silence proves nothing"
    return [name for name, word in words.items() if wire.containing(frames, word)]


def _pass(words: Mapping[str, bytes], gate: Tap, count: int) -> None:
    """Wait until so many more packets of each flood have come to the gate."""
    gate.heard()
    for name, word in words.items():
        left = count
        while left > 0:
            came = wire.containing(gate.hear(word), word)
            assert came, f"the sender of {name} has stopped"
            left -= len(came)


def test_a_port_is_published_and_unpublished_while_datagrams_come_without_pause(tenants: Tenants) -> None:
    near, web, web_2, gate = tenants[NEAR], tenants[WEB], tenants[WEB_2], tenants["host"].tap
    canary, canary_2 = near.udp(str(HOST), CANARY), near.udp(str(HOST), 9601)
    with (
        published(tenants, 9601, "udp", "web-2"),
        floods({"it": near.udp(str(HOST), 9600, source_port=next(PORTS))}) as words,
    ):
        assert arriving(words, gate, web.tap, canary) == []
        with published(tenants, 9600, "udp"):
            assert arriving(words, gate, web.tap, canary) == ["it"]
        assert arriving(words, gate, web.tap, canary) == []
        with published(tenants, 9600, "udp", "web-2"):
            assert arriving(words, gate, web_2.tap, canary_2) == ["it"]
            assert arriving(words, gate, web.tap, canary) == []
        assert arriving(words, gate, web_2.tap, canary_2) == []


def test_a_port_is_unpublished_while_a_connection_sends_without_pause(tenants: Tenants) -> None:
    near, web, web_2, gate = tenants[NEAR], tenants[WEB], tenants[WEB_2], tenants["host"].tap
    canary, canary_2 = near.udp(str(HOST), CANARY), near.udp(str(HOST), 9611)
    port, called = next(PORTS), (str(HOST), 9610)
    data = near.tcp(*called, ACK | PSH, source_port=port, sequence=1001, acknowledged=2001)
    with published(tenants, 9611, "udp", "web-2"), contextlib.ExitStack() as stack:
        with published(tenants, 9610, "tcp"):
            session(near, web, port, called)
            words = stack.enter_context(floods({"it": data}))
            assert arriving(words, gate, web.tap, canary) == ["it"]
        assert arriving(words, gate, web.tap, canary) == []
        with published(tenants, 9610, "tcp", "web-2"):
            assert arriving(words, gate, web.tap, canary) == []
            # Another instance gets no part of a connection, but one that begins.
            assert arriving(words, gate, web_2.tap, canary_2) == []
            session(near, web_2, next(PORTS), called)


@pytest.mark.parametrize("denied", ["udp", "tcp"])
@pytest.mark.parametrize("peer", [False, True])
def test_a_policy_changes_while_all_its_flows_send_without_pause(tenants: Tenants, peer: bool, denied: str) -> None:
    web, other, gate = tenants[WEB], tenants[APP if peer else DB], tenants.wire.tap("shop-router", "in-web")
    canary, port = web.udp(other.address, 2222), next(PORTS)
    rules = {name: {**ALLOW, "protocol": name, "port": to} for name, to in (("udp", 700), ("tcp", 80))}
    always = {**ALLOW, "protocol": "udp", "port": 2222}
    flows = {
        "udp": web.udp(other.address, 700, source_port=port),
        "tcp": web.tcp(other.address, 80, ACK | PSH, source_port=port, sequence=1001, acknowledged=2001),
    }
    with tenants.policy("shop", "web", egress=[*rules.values(), always]):
        session(web, other, port)
        with floods(flows) as words:
            assert arriving(words, gate, other.tap, canary) == ["udp", "tcp"]
            kept = [name for name in flows if name != denied]
            tenants.apply("shop", "web", egress=[*map(rules.get, kept), always])
            assert arriving(words, gate, other.tap, canary) == kept
            tenants.apply("shop", "web", egress=[*rules.values(), always])
            assert arriving(words, gate, other.tap, canary) == ["udp", "tcp"]


# --- The transit address ----------------------------------------------------------------------------------------------

# argv: the address to call, its port, and the address to call from; prints the source ports
CALL = """
import contextlib, socket, sys
address, port, source = sys.argv[1], int(sys.argv[2]), sys.argv[3]
for kind in socket.SOCK_DGRAM, socket.SOCK_STREAM:
    line = socket.socket(socket.AF_INET, kind)
    line.setblocking(False)
    line.bind((source, 0))
    with contextlib.suppress(BlockingIOError, PermissionError):
        line.connect((address, port))
        line.send(b"called")
    print(line.getsockname()[1])
"""


@pytest.mark.parametrize("source", [str(HOST), "0.0.0.0", UPLINKS["shop"][0], UPLINKS["red"][0]])
def test_a_local_user_does_not_reach_a_published_port_by_the_transit_address(tenants: Tenants, source: str) -> None:
    web, router = tenants[WEB], tenants.wire.tap("shop-router", "uplink")
    with published(tenants, 9400, "udp"), published(tenants, 9400, "tcp"):
        assert called(tenants, source, [router, web.tap]) == [[], []]
        # Without the host's rule both protocols leave.  The router takes in what comes from the host's end of its
        # uplink, as it does for programs that call 127.0.0.1, and does not know the uplinks of others.
        tenants.lab.run(["nft", "flush", "chain", "inet", "vpcctl", "to-uplink"])
        try:
            assert called(tenants, source, [router, web.tap]) == [["udp", "tcp"], ["udp", "tcp"]]
        finally:
            tenants.wire.vpcctl("repair")


def called(tenants: Tenants, source: str, ears: list[Tap]) -> list[list[str]]:
    """A program of the host calls port 9400 of shop's router; the protocols of what each of the ears hears of it."""
    for ear in ears:
        ear.heard()
    ports = tenants.lab.python(CALL, UPLINKS["shop"][1], "9400", source).stdout.split()
    words = list(zip(("udp", "tcp"), (wire.UDP, wire.TCP), map(int, ports), strict=True))
    last = wire.word()
    tap, make = tenants[NEAR].udp(str(HOST), 9400)
    tap.send(make(last))
    found = []
    for ear in ears:
        frames = ear.hear(last)
        assert wire.containing(frames, last), "the canary did not arrive, so that silence proves nothing"
        seen = {(frame[23], int.from_bytes(frame[34:36], "big")) for frame in frames}
        found.append([name for name, protocol, port in words if (protocol, port) in seen])
    return found


@contextlib.contextmanager
def published(tenants: Tenants, port: int, protocol: str, instance: str = "web") -> Iterator[None]:
    """A port of the host that leads to port 80 of an instance of shop for a while."""
    _publish(tenants, port, protocol, instance)
    try:
        yield
    finally:
        _unpublish(tenants, port, protocol)


def _publish(tenants: Tenants, port: int, protocol: str, instance: str) -> None:
    words = ("--vpc", "shop", "--instance", instance, "--port", str(port), "--protocol", protocol)
    tenants.wire.vpcctl("publish-port", *words, "--target-port", "80")


def _unpublish(tenants: Tenants, port: int, protocol: str) -> None:
    tenants.wire.vpcctl("unpublish-port", "--vpc", "shop", "--port", str(port), "--protocol", protocol)
