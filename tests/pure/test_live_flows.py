"""Live flows: what is read of an entry, whose its ends are, and which line admits it, against the oracle."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import random
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import worlds
from tests.pure.test_tracking import ends, inward, outward, plain
from vpcctl.analysis import live_flows, packetset
from vpcctl.analysis.live_flows import BY_ROUTER, Census, LiveFlow, Verdicts
from vpcctl.analysis.reachability import Reach
from vpcctl.analysis.tracking import IPS_DST_NAT, IPS_SRC_NAT, Counted, Ends, Selection, Tracked
from vpcctl.cli import commands, main
from vpcctl.documents.environment import read_environment
from vpcctl.engine import flows as live
from vpcctl.engine.controller import Controller
from vpcctl.engine.state import State, Store
from vpcctl.errors import ConflictError
from vpcctl.kernel import netlink
from vpcctl.kernel.conntrack import CT_DELETE, CT_GET, CT_NEW, counted
from vpcctl.kernel.flow_events import decoded
from vpcctl.model import oracle
from vpcctl.model.host import NO_HOST, Host
from vpcctl.model.network import World, uplink_pair
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import ICMP, ICMP_PROTOCOLS, PORT_PROTOCOLS, SCTP, TCP, UDP
from vpcctl.names import router_namespace
from vpcctl.resources.fake import FakeKernel

number = packetset.number
WORLDS = st.booleans().flatmap(worlds.worlds)


# -- what is read of an entry --------------------------------------------------------------------------------------


def piece(kind: int, *inner: bytes) -> bytes:
    """An attribute as the kernel writes it: length, type, content, padding (netlink(7)); nested if `inner` are many."""
    content = b"".join(inner)
    return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


def ends_of(source: str, sport: int, destination: str, dport: int, protocol: int) -> tuple[bytes, bytes]:
    addresses = piece(
        1, piece(1, ipaddress.ip_address(source).packed), piece(2, ipaddress.ip_address(destination).packed)
    )
    ports = (piece(2, struct.pack("!H", sport)), piece(3, struct.pack("!H", dport)))
    return addresses, piece(2 | 0x8000, piece(1, bytes([protocol])), *ports)


def entry(protocol: int, *more: bytes, status: int = 0) -> bytes:
    """The body of a message, behind struct nfgenmsg."""
    there = ends_of("10.0.1.2", 40000, "10.0.2.2", 5432, protocol)
    back = ends_of("10.0.2.2", 5432, "10.0.1.2", 40000, protocol)
    tuples = piece(1 | 0x8000, *there), piece(2 | 0x8000, *back)
    return b"".join((*tuples, piece(3, struct.pack("!I", status)), *more))


def counters(kind: int, packets: int, size: int) -> bytes:
    return piece(kind | 0x8000, piece(1, struct.pack("!Q", packets)), piece(2, struct.pack("!Q", size)))


def protocol_state(kind: int, state: int) -> bytes:
    # The first attribute of TCP's is its state, that of SCTP's too; window scales follow.
    return piece(4 | 0x8000, piece(kind | 0x8000, piece(1, bytes([state])), piece(2, b"\7")))


def test_counters_of_both_directions_are_summed_and_those_of_replies_stand_alone() -> None:
    body = entry(UDP, counters(9, 7, 700), counters(10, 2, 1 << 40), piece(7, struct.pack("!I", 29)))
    found = counted(memoryview(body))
    assert found is not None
    assert (found.packets, found.bytes, found.reply_packets, found.reply_bytes) == (9, 700 + (1 << 40), 2, 1 << 40)
    assert found.expires == 29
    assert found.flow.original == Ends(number(ipaddress.ip_address("10.0.1.2")), 40000, 0x0A000202, 5432)


def test_what_the_kernel_does_not_count_is_unknown_and_not_zero() -> None:
    found = counted(memoryview(entry(UDP)))
    assert found is not None
    assert (found.packets, found.bytes, found.reply_packets, found.reply_bytes, found.expires) == (None,) * 5


@pytest.mark.parametrize(
    ("protocol", "attributes", "status", "state"),
    [
        (TCP, [protocol_state(1, 1)], 0, "syn-sent"),
        (TCP, [protocol_state(1, 3)], 0b1110, "established"),
        (TCP, [protocol_state(1, 7)], 0b1110, "time-wait"),
        (TCP, [protocol_state(1, 9)], 0, "syn-sent2"),
        (SCTP, [protocol_state(3, 4)], 0, "established"),
        (SCTP, [protocol_state(3, 2)], 0, "cookie-wait"),
        # A state that a later kernel may have.
        (TCP, [protocol_state(1, 200)], 0b10, "replied"),
        (TCP, [], 0b1110, "assured"),
        (UDP, [], 0b1000, "unreplied"),
        (UDP, [], 0b1010, "replied"),
        (UDP, [], 0b1110, "assured"),
    ],
)
def test_the_state_is_that_of_the_protocol_or_whether_there_were_replies(
    protocol: int, attributes: list[bytes], status: int, state: str
) -> None:
    found = counted(memoryview(entry(protocol, *attributes, status=status)))
    assert found is not None
    assert found.state == state


def test_events_are_those_that_begin_and_end_a_flow() -> None:
    header = bytes([2, 0, 0, 0])
    data = b"".join(netlink.message(kind, 0, header + entry(UDP)) for kind in (CT_NEW, CT_GET, CT_DELETE))
    assert [(one.began, one.flow.flow.service) for one in decoded(data)] == [(True, 5432), (False, 5432)]


@pytest.mark.parametrize("length", range(0, 120, 7))
def test_a_cut_message_is_no_event_or_one_of_what_is_there(length: int) -> None:
    data = netlink.message(CT_NEW, 0, bytes(4) + entry(TCP, protocol_state(1, 3)))
    assert len(decoded(data[:length])) <= 1


# -- names and lines -----------------------------------------------------------------------------------------------


def seen_from(world: World, vpc: str, flow: Flow) -> Counted | None:
    """The entry of a flow in the router of a VPC, if that router can have it; the reverse of what is tested."""
    home, near = world.vpc(vpc), {vpc, *(peer.name for peer in world.peers(vpc))}
    if vpc not in (flow.source.vpc, flow.destination.vpc):
        return None
    inner = [prefix for name in near for prefix in world.vpc(name).prefixes]
    for place in (flow.source, flow.destination):
        if place.vpc is None and any(place.address in prefix for prefix in inner):
            return None
        if place.vpc is not None and place.vpc not in near:
            return None
        gateways = [gateway for name in near for part in world.vpc(name).subnets for gateway in part.gateways]
        if place.address in gateways:
            return None
    uplink = number(uplink_pair(world.transit, home.index)[1])
    source, destination = number(flow.source.address), number(flow.destination.address)
    protocol, port = flow.protocol, flow.port or 0
    if protocol in ICMP_PROTOCOLS:
        there, back = Ends(source, 77, destination, port << 8), Ends(destination, 77, source, 0)
        return Counted(Tracked(protocol, there, back), "unreplied")
    sport = 40000 if protocol in PORT_PROTOCOLS else 0
    there, back, status = Ends(source, sport, destination, port), Ends(destination, port, source, sport), 0
    if flow.destination.vpc is None:
        back, status = Ends(destination, port, uplink, 50000), IPS_SRC_NAT
    elif flow.source.vpc is None:
        there, status = Ends(source, sport, uplink, 8000), IPS_DST_NAT
    return Counted(Tracked(protocol, there, back, 7, status), "unreplied")


@settings(max_examples=40, deadline=None)
@given(WORLDS, worlds.hosts, st.integers(0, 2**32))
def test_the_line_is_that_of_the_oracle(world: World, host: Host, seed: int) -> None:
    reach = Reach(world, host)
    # By reading rules, and by looking up in partitions.
    ways = [Verdicts(reach, read=1 << 30), Verdicts(reach, read=0)]
    for flow in worlds.flows(world, random.Random(seed), 100):
        expected = oracle.decide(world, flow, host)
        for vpc in world.vpcs:
            tracked = seen_from(world, vpc.name, flow)
            if tracked is None:
                continue
            for verdicts in ways:
                found = Census(verdicts, vpc.name).described(tracked)
                assert found.allowed is expected.allowed, (flow, expected, found)
                assert names_of(world, vpc.name, flow) == (found.source_name, found.destination_name) or (
                    "host" in (found.source_name, found.destination_name)
                )
                if len(expected.stages) > 1:
                    assert found.rule == expected.stages[-1].origin, (flow, expected, found)
                else:
                    assert found.rule


def names_of(world: World, home: str, flow: Flow) -> tuple[str, ...]:
    """The names by which a flow's ends are known in a VPC."""

    def name(place: oracle.Place) -> str:
        if place.vpc is None:
            return "internet"
        for instance in world.vpc(place.vpc).instances:
            if place.address in instance.addresses:
                return instance.name if place.vpc == home else f"{place.vpc}/{instance.name}"
        return "unknown"

    return name(flow.source), name(flow.destination)


def test_the_flows_of_that_test_meet_every_kind_of_answer() -> None:
    """Else the property above would say nothing."""
    met: set[tuple[bool, int, bool, bool]] = set()

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(WORLDS, st.integers(0, 2**32))
    def collect(world: World, seed: int) -> None:
        for flow in worlds.flows(world, random.Random(seed), 100):
            if any(seen_from(world, vpc.name, flow) for vpc in world.vpcs):
                decision = oracle.decide(world, flow)
                inner = flow.source.vpc is not None, flow.destination.vpc is not None
                met.add((decision.allowed, len(decision.stages), *inner))

    collect()
    assert {(True, 3, True, True), (True, 2, True, False), (True, 2, False, True)} <= met
    assert {(False, 1, True, True), (False, 2, True, True), (False, 3, True, True), (False, 2, False, True)} <= met


def test_what_is_remembered_does_not_grow_with_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_flows, "REMEMBERED", 500)
    census = Census(Verdicts(Reach(shop())), "shop")
    for port in range(1200):
        assert census.described(Counted(plain("10.0.1.2", 9, "10.0.2.2", port), "unreplied")).service == f"udp/{port}"
        census.described(Counted(inward(port, "10.0.1.2", 80), "unreplied"))
    assert len(census._verdicts._known) <= 500
    assert len(census._published) <= 500


# -- one network, told in full -------------------------------------------------------------------------------------

ENVIRONMENT = {
    "vpcs": [
        {
            "name": "shop",
            "cidr": "10.0.0.0/16",
            "publish": [
                {"protocol": "udp", "port": 8080, "target_port": 80, "instance": "web"},
                {"protocol": "udp", "port": "9000-9010", "instance": "web"},
                {"protocol": "udp", "port": "5353-5354", "target_port": "53-54", "instance": "db"},
            ],
            "subnets": [
                {"name": "web", "cidr": "10.0.1.0/24", "type": "public"},
                {
                    "name": "db",
                    "cidr": "10.0.2.0/24",
                    "type": "private",
                    "policy": {"ingress": [{"action": "allow", "protocol": "udp", "port": 53}]},
                },
            ],
        },
        {
            "name": "blue",
            "cidr": "10.9.0.0/16",
            "subnets": [{"name": "app", "cidr": "10.9.1.0/24", "type": "private"}],
        },
        {
            "name": "twin",
            "cidr": "10.0.0.0/16",
            "subnets": [{"name": "web", "cidr": "10.0.1.0/24", "type": "public"}],
        },
    ],
    "peerings": [["shop", "blue"]],
}
HOST_ADDRESS = "198.51.100.2"
WEB, DB, APP = "10.0.1.2", "10.0.2.2", "10.9.1.2"
RULE, DEFAULT = (
    "env.json#/vpcs/0/subnets/1/policy/ingress/0",
    "env.json#/vpcs/0/subnets/1/policy/ingress (default deny)",
)


def shop() -> World:
    return read_environment(ENVIRONMENT, "env.json", lambda path: ({}, path))


def told(flow: Tracked, vpc: str = "shop", host: Host = NO_HOST) -> LiveFlow:
    return Census(Verdicts(Reach(shop(), host)), vpc).described(Counted(flow, "unreplied"))


def said(flow: LiveFlow) -> tuple[str, str, str, str | None]:
    ports = f":{flow.source_port}", f":{flow.destination_port}"
    source, destination = (
        f"{flow.source_name} {flow.source}{ports[0]}",
        f"{flow.destination_name} {flow.destination}{ports[1]}",
    )
    return source, destination, flow.service, flow.published


HOST = Host((ipaddress.ip_network(f"{HOST_ADDRESS}/32"),))


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (plain(WEB, 1000, DB, 53), ("web 10.0.1.2:1000", "db 10.0.2.2:53", "udp/53", None)),
        (plain(WEB, 1000, APP, 53), ("web 10.0.1.2:1000", "blue/app 10.9.1.2:53", "udp/53", None)),
        (outward(WEB, 1000, "203.0.113.10", 53), ("web 10.0.1.2:1000", "internet 203.0.113.10:53", "udp/53", None)),
        (outward(WEB, 1000, HOST_ADDRESS, 8080), ("web 10.0.1.2:1000", f"host {HOST_ADDRESS}:8080", "udp/8080", None)),
        (inward(8080, WEB, 80), ("internet 203.0.113.10:5000", "web 10.0.1.2:80", "udp/80", "udp/8080")),
        (inward(9004, WEB, 9004), ("internet 203.0.113.10:5000", "web 10.0.1.2:9004", "udp/9004", "udp/9004")),
        # Its port is not published any more.
        (inward(8081, WEB, 80), ("internet 203.0.113.10:5000", "web 10.0.1.2:80", "udp/80", None)),
        (plain("10.0.1.9", 1000, DB, 53), ("unknown 10.0.1.9:1000", "db 10.0.2.2:53", "udp/53", None)),
        (
            dataclasses.replace(inward(8080, WEB, 80), original=ends("100.64.0.0", 1000, "100.64.0.1", 8080)),
            ("host 100.64.0.0:1000", "web 10.0.1.2:80", "udp/80", "udp/8080"),
        ),
        (
            plain(WEB, 9, "10.0.1.1", 0x0800, ICMP),
            ("web 10.0.1.2:None", "router 10.0.1.1:None", "icmp/echo-request", None),
        ),
        (plain(WEB, 0, DB, 0, 47), ("web 10.0.1.2:None", "db 10.0.2.2:None", "47", None)),
    ],
)  # fmt: skip
def test_ends_have_names_and_the_addresses_that_they_use_themselves(flow: Tracked, expected: tuple) -> None:
    assert said(told(flow, host=HOST)) == expected


@pytest.mark.parametrize(
    ("flow", "allowed", "rule"),
    [
        (plain(WEB, 1000, DB, 53), True, RULE),
        (plain(WEB, 1000, DB, 54, TCP), False, DEFAULT),
        (plain(DB, 1000, WEB, 54), True, "no policy"),
        (outward(DB, 1000, "203.0.113.10", 53), False, "subnet db is private and has no NAT gateway"),
        (plain("10.0.1.9", 1000, DB, 53), False, "no instance has the address 10.0.1.9"),
        (inward(8080, DB, 55), False, "no path leads there"),
        (plain(WEB, 9, "10.0.1.1", 0x0800, ICMP), True, BY_ROUTER),
    ],
)
def test_the_line_or_the_reason(flow: Tracked, allowed: bool, rule: str) -> None:
    found = told(flow)
    assert (found.allowed, found.rule) == (allowed, rule)


@pytest.mark.parametrize(
    ("port", "allowed", "rule"), [(5353, True, RULE), (5354, False, DEFAULT), (8080, True, "no policy")]
)
def test_on_a_call_of_the_host_the_instance_that_serves_has_its_say(port: int, allowed: bool, rule: str) -> None:
    found = told(outward(WEB, 1000, HOST_ADDRESS, port), host=HOST)
    assert (found.destination_name, found.allowed, found.rule) == ("host", allowed, rule)
    calling = Place("shop", ipaddress.ip_address(WEB)), Place(None, ipaddress.ip_address(HOST_ADDRESS))
    assert oracle.decide(shop(), Flow(*calling, UDP, port), HOST).stages[-1].origin == rule


def test_many_verdicts_of_a_gate_are_looked_up_and_few_do_not_compute_it() -> None:
    class Asked(Reach):
        gates = 0

        def gate(self, *key: Any) -> Any:
            self.gates += 1
            return super().gate(*key)

    reach = Asked(shop())
    census = Census(Verdicts(reach, read=10), "shop")
    for port in range(1, 16):
        assert census.described(Counted(plain(WEB, 9, DB, port), "replied")).rule == DEFAULT
        assert reach.gates == max(0, port - 10)
    # What was judged already is known.
    census.described(Counted(plain(WEB, 10, DB, 15), "replied"))
    assert reach.gates == 5


# -- many routers --------------------------------------------------------------------------------------------------


class Counting(FakeKernel):
    """Each flow has sent as many packets as its source port says; port 1 was not counted."""

    def counted(self, namespace: str, selection: Selection | None = None) -> Iterable[Counted]:
        for flow in self.flows(namespace, selection):
            sent = flow.original.source_port
            yield Counted(flow, "assured", sent, sent * 100, 0, 0, 30) if sent > 1 else Counted(flow, "unreplied")


@pytest.fixture
def kernel() -> Counting:
    made = Counting()
    peered = plain(WEB, 500, APP, 53)
    made.tracked = {
        router_namespace("shop"): [peered, plain(WEB, 10, DB, 53), plain(DB, 20, WEB, 53), plain(WEB, 30, WEB, 53)],
        router_namespace("blue"): [peered, plain(APP, 600, WEB, 53)],
        # The same addresses in another VPC.
        router_namespace("twin"): [plain(WEB, 40, WEB, 53)],
    }
    return made


@pytest.fixture
def controller(kernel: Counting, tmp_path: Path) -> Controller:
    store = Store(tmp_path / "state")
    with store.locked() as writer:
        writer.save(State("0a1b2c3d", world=shop()))
    return Controller(store=store, make_kernel=lambda: kernel, read_host=lambda: HOST)


def ports(found: live.LiveFlows) -> list[tuple[str, int | None]]:
    return [(flow.vpc, flow.source_port) for flow in found]


def test_a_flow_between_two_vpcs_comes_once_if_both_are_shown_and_else_with_either(controller: Controller) -> None:
    assert ports(controller.flows()) == [
        ("shop", 500), ("shop", 10), ("shop", 20), ("shop", 30), ("blue", 600), ("twin", 40),
    ]  # fmt: skip
    assert ports(controller.flows("shop")) == [("shop", 500), ("shop", 10), ("shop", 20), ("shop", 30)]
    assert ports(controller.flows("blue")) == [("blue", 500), ("blue", 600)]
    assert {flow.destination_name for flow in controller.flows("blue")} == {"app", "shop/web"}


def test_the_flows_of_an_instance_are_those_at_either_end_each_once(controller: Controller) -> None:
    assert ports(controller.flows("shop", "db")) == [("shop", 20), ("shop", 10)]
    assert ports(controller.flows("shop", "web")) == [("shop", 500), ("shop", 10), ("shop", 30), ("shop", 20)]


def test_who_is_not_there_is_an_error_at_once(controller: Controller) -> None:
    with pytest.raises(ConflictError, match="known VPCs: blue, shop, twin"):
        controller.flows("red")
    with pytest.raises(ConflictError, match="instance 'app' not found"):
        controller.flows("shop", "app")


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def vpcctl(controller: Controller, kernel: Counting, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(commands.context_settings, "obj", lambda: kernel)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["--state-dir", str(tmp_path / "state"), *words])
        found = capsys.readouterr()
        return ended.value.code or 0, found.out, found.err

    return run


HEADING = "FROM              TO                    SERVICE  STATE    PACKETS  BYTES  RULE"


def test_the_command_lists_the_flows_as_a_table(vpcctl) -> None:
    status, out, err = vpcctl("flows", "shop")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        HEADING,
        "web 10.0.1.2:500  blue/app 10.9.1.2:53  udp/53   assured  500      50000  no policy",
        f"web 10.0.1.2:10   db 10.0.2.2:53        udp/53   assured  10       1000   {RULE}",
        "db 10.0.2.2:20    web 10.0.1.2:53       udp/53   assured  20       2000   no policy",
        "web 10.0.1.2:30   web 10.0.1.2:53       udp/53   assured  30       3000   no policy",
    ]
    assert vpcctl("flows")[1].splitlines()[-1].split()[:3] == ["twin", "web", "10.0.1.2:40"]


def test_a_terminal_shows_those_with_most_bytes_and_counts_the_others(
    vpcctl, kernel: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.tracked[router_namespace("shop")] = [plain(WEB, 1000 + number, DB, 53) for number in range(1500)]
    assert len(vpcctl("flows", "shop/web")[1].splitlines()) == 1501
    assert json.loads(vpcctl("flows", "shop/web", "--json")[1])[1499]["source_port"] == 2499
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = vpcctl("flows", "shop/web")[1].splitlines()
    assert [line.split()[1] for line in lines[1:4]] == [f"{WEB}:2499", f"{WEB}:2498", f"{WEB}:2497"]
    assert lines[-1] == f"… and {1500 - len(lines) + 2} more (-v shows all)"
    assert len(lines) < 50
    assert len(vpcctl("-v", "flows", "shop/web")[1].splitlines()) == 1501


def test_the_json_has_its_shape(vpcctl) -> None:
    _, out, _ = vpcctl("flows", "shop/db", "--json")
    assert json.loads(out)[1] == {
        "vpc": "shop",
        "from": "web",
        "to": "db",
        "source": WEB,
        "source_port": 10,
        "destination": DB,
        "destination_port": 53,
        "protocol": "udp",
        "service": "udp/53",
        "published": None,
        "state": "assured",
        "packets": 10,
        "bytes": 1000,
        "reply_packets": 0,
        "reply_bytes": 0,
        "expires": 30,
        "verdict": "allow",
        "rule": RULE,
    }


def test_what_is_not_counted_is_said_with_what_to_type(vpcctl, kernel: Counting) -> None:
    kernel.tracked[router_namespace("shop")] = [plain(WEB, 1, DB, 54, TCP)]
    _, out, err = vpcctl("flows", "shop")
    assert out.splitlines()[1].split() == [
        "web", f"{WEB}:1", "db", f"{DB}:54", "tcp/54", "unreplied", "-", "-", "denied", "now:", *DEFAULT.split(),
    ]  # fmt: skip
    assert err.startswith("some connections of VPC shop are not counted: they began before")


def test_nothing_is_no_error(vpcctl, kernel: Counting) -> None:
    kernel.tracked.clear()
    assert vpcctl("flows") == (0, "", "no live connection\n")
    assert vpcctl("flows", "--json") == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shop/"], "'shop/' is not VPC/NAME; write `vpcctl flows shop/NAME`"),
        (["/web"], "'/web' is not VPC/NAME"),
        (["shop/web/x"], "'shop/web/x' is not VPC/NAME"),
        (["--instance", "web"], "the VPC of instance web is missing; write `vpcctl flows VPC/web`"),
    ],
)
def test_another_word_is_a_usage_error(vpcctl, words: list[str], message: str) -> None:
    status, _, err = vpcctl("flows", *words)
    assert status == 2
    assert message in err


def test_options_and_the_position_name_the_same(vpcctl) -> None:
    assert vpcctl("flows", "--vpc", "shop", "--instance", "db") == vpcctl("flows", "shop/db")


def test_the_vpc_of_an_instance_may_be_left_out_where_it_is_the_only_one(vpcctl, tmp_path: Path) -> None:
    world = shop()
    with Store(tmp_path / "state").locked() as writer:
        writer.save(State("0a1b2c3d", world=World((world.vpc("shop"),))))
    assert vpcctl("flows", "--instance", "db") == vpcctl("flows", "shop/db")
