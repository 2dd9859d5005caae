"""A change holds for live flows at once, in both directions, and costs the flows that stay allowed nothing.

Judged where packets arrive: when a command has returned, nothing that was sent after that moment may come out of a
flow that is denied, while the allowed flows of the same path go on and lose no record.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.lab.machine import apply, run_all, write
from tests.lab.traffic import Flow, Station, assert_moving, assert_nothing_lost, reaches, silent, start_flow, stations
from vpcctl.lab import HOST, INTERNET, Lab

APP, APP_2, DB, LEDGER = "shop-app", "shop-app-2", "shop-db", "billing-ledger"
# Kept (allowed by both policies) and cut (allowed by the loose one alone): for a client that sends, for a server that
# pushes, and for new flows.  The host's published ports are 10000 higher.
KEPT, CUT = (7001, 7002, 7003), (8001, 8002, 8003)
PUBLISHED = 10000
BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name app --cidr 10.0.1.0/24 --type public",
    "create-instance --vpc shop --subnet app --name app-2",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
    "create-vpc --name billing --cidr 10.9.0.0/16",
    "create-subnet --vpc billing --name ledger --cidr 10.9.1.0/24 --type private",
    "create-peering --vpc1 shop --vpc2 billing",
    *(
        f"publish-port --vpc shop --instance app --protocol {protocol} --port {PUBLISHED + port} --target-port {port}"
        for protocol in ("tcp", "udp")
        for port in (*KEPT, *CUT)
    ),
)
# What has a policy in the test of many changes.
POLICIES = (("shop", "*"), ("shop", "app"), ("shop", "db"), ("billing", "ledger"))
# Identifiers of echo flows, no two alike: source NAT changes one that another instance used a moment ago.
ECHO = itertools.count(5000)
# One process that is the command line many times over: what takes a new process a quarter of a second takes it 20 ms.
REPEAT = """
import sys
from vpcctl.cli import commands
count, *files = sys.argv[1:]
for number in range(int(count)):
    commands.main(["-q", "apply-policy", files[number % len(files)]], prog_name="vpcctl", standalone_mode=False)
"""


@dataclass(frozen=True, slots=True)
class Way:
    """From one namespace to another, and the gate that is to be changed on it."""

    client: str
    server: str
    address: str
    vpc: str
    subnet: str
    gate: str

    @property
    def published(self) -> int:
        """What to add to the server's port for the port to call."""
        return PUBLISHED if self.client == "internet" else 0


WAYS = {
    "between subnets, ingress": Way(APP, DB, "10.0.2.2", "shop", "db", "ingress"),
    "between subnets, egress": Way(APP, DB, "10.0.2.2", "shop", "app", "egress"),
    "within a subnet, ingress": Way(APP, APP_2, "10.0.1.3", "shop", "app", "ingress"),
    "within a subnet, egress": Way(APP, APP_2, "10.0.1.3", "shop", "app", "egress"),
    "to the internet by source NAT": Way(APP, "internet", str(INTERNET), "shop", "app", "egress"),
    "from the internet by a published port": Way("internet", APP, str(HOST), "shop", "app", "ingress"),
    "to a peer, ingress": Way(APP, LEDGER, "10.9.1.2", "billing", "ledger", "ingress"),
    "to a peer, egress": Way(APP, LEDGER, "10.9.1.2", "shop", "app", "egress"),
    "policy of the VPC, ingress": Way(APP, DB, "10.0.2.2", "shop", "*", "ingress"),
    "policy of the VPC, egress": Way(APP, LEDGER, "10.9.1.2", "shop", "*", "egress"),
}


@pytest.fixture(scope="module")
def network(module_lab: Lab) -> Lab:
    """The two VPCs; tests leave them without policies."""
    run_all(module_lab, BUILD)
    return module_lab


@pytest.fixture
def pair(network: Lab, request: pytest.FixtureRequest) -> Iterator[tuple[Way, Station, Station]]:
    """A way with a station at both ends; its policy is cleared afterwards."""
    way = WAYS[request.param]
    with stations(network, way.client, way.server) as (client, server):
        yield way, client, server
    network.vpcctl("clear-policy", "--vpc", way.vpc, "--subnet", way.subnet)


def policy(way: Way, ports: tuple[int, ...], icmp: bool) -> dict[str, object]:
    """The policy that lets `ports`, and echo if `icmp`, pass the gate of the way, and nothing else."""
    rules: list[dict[str, object]] = [
        {"action": "allow", "protocol": name, "port": list(ports)} for name in ("tcp", "udp")
    ]
    if icmp:
        rules.append({"action": "allow", "protocol": "icmp", "icmp_type": "echo-request"})
    return {"vpc": way.vpc, "subnet": way.subnet, way.gate: rules}


def tight(way: Way) -> dict[str, object]:
    return policy(way, KEPT, icmp=False)


def loose(way: Way) -> dict[str, object]:
    return policy(way, KEPT + CUT, icmp=not way.published)


def four_flows(way: Way, client: Station, server: Station, ports: tuple[int, ...], rate: int) -> list[Flow]:
    """TCP and UDP, each with a client that sends and with a silent client and a server that pushes."""
    sending, pushed, *_ = ports
    return [
        start_flow(
            f"{way.server} {protocol} {port}",
            client,
            server,
            way.address,
            port + way.published,
            protocol,
            target=port,
            rate=rate if port == sending else 0,
            push=rate if port == pushed else 0,
        )
        for protocol in ("tcp", "udp")
        for port in (sending, pushed)
    ]


def received(flows: list[Flow]) -> dict[str, tuple[int, int]]:
    """How much arrived at the client and at the server of each flow."""
    return {flow.name: tuple(end.received for end in flow.counts()) for flow in flows}


def assert_cut(denied: list[Flow], kept: list[Flow], change: Callable[[], float]) -> None:
    """After `change` not one packet of the denied flows arrives at either end, and the kept ones go on."""
    started = time.monotonic()
    assert_moving([*denied, *kept], started)
    moment = change()
    time.sleep(0.1)
    before = received(denied)
    assert_moving(kept, moment + 0.4)
    assert received(denied) == before
    late = {flow.name: [end.last - moment for end in flow.counts()] for flow in denied}
    assert all(one <= 0 for ends in late.values() for one in ends), f"sent after the command, and arrived: {late}"
    # The clients that were silent speak, and are not heard either.
    set_rates(denied, 50)
    moment = time.monotonic()
    assert_moving(kept, moment + 0.3)
    assert received(denied) == before
    set_rates(denied, 0)


def set_rates(flows: list[Flow], rate: int) -> None:
    """Have all clients send at this rate."""
    for flow in flows:
        flow.client.tell("rate", name=flow.name, rate=rate)


@pytest.mark.parametrize("pair", WAYS, indirect=True)
def test_a_tightened_policy_cuts_live_flows_and_a_loosened_one_lets_new_ones_in(
    network: Lab, pair: tuple[Way, Station, Station]
) -> None:
    way, client, server = pair
    apply(network, loose(way))
    kept = four_flows(way, client, server, KEPT, rate=200)
    denied = four_flows(way, client, server, CUT, rate=200)
    if not way.published:
        denied.append(start_flow("echo", client, server, way.address, next(ECHO), "icmp", rate=200))
    assert_cut(denied, kept, lambda: apply(network, tight(way)))
    assert_nothing_lost(kept)
    server.listen()
    new, canary = Probe(way, CUT[2]), Probe(way, KEPT[2])
    assert new.heard_nothing(client, server, canary)
    apply(network, loose(way))
    for protocol in new.protocols:
        assert new.arrives(client, server, protocol), f"a new {protocol} flow is not let in"


@dataclass(frozen=True, slots=True)
class Probe:
    """New flows to a port at the end of a way."""

    way: Way
    port: int

    @property
    def protocols(self) -> tuple[str, ...]:
        return ("tcp", "udp") if self.way.published else ("tcp", "udp", "icmp")

    def arrives(self, client: Station, server: Station, protocol: str) -> bool:
        seen = self.port + self.way.published
        return reaches(client, server, self.way.address, seen, protocol, at=self.port)

    def heard_nothing(self, client: Station, server: Station, canary: Probe) -> bool:
        """Do none of the protocols arrive, while the canary, sent after them, does?"""
        seen = self.port + self.way.published
        found = silent(
            client,
            server,
            self.way.address,
            seen,
            lambda: canary.arrives(client, server, "udp"),
            self.protocols,
            at=self.port,
        )
        return not found


def test_a_deleted_nat_gateway_cuts_live_flows(network: Lab) -> None:
    network.vpcctl("create-nat-gateway", "--vpc", "shop", "--subnet", "db")
    internet, within = WAYS["to the internet by source NAT"], WAYS["between subnets, ingress"]
    with stations(network, DB, APP, "internet") as (db, app, server):
        denied = four_flows(internet, db, server, CUT, rate=200)
        denied.append(start_flow("echo", db, server, str(INTERNET), next(ECHO), "icmp", rate=200))
        kept = four_flows(within, app, db, KEPT, rate=200)
        assert_cut(denied, kept, lambda: run(network, "delete-nat-gateway --vpc shop --subnet db"))
        assert_nothing_lost(kept)


def test_a_deleted_peering_cuts_live_flows_in_both_directions(network: Lab) -> None:
    there = WAYS["to a peer, ingress"]
    back = Way(LEDGER, APP, "10.0.1.2", "", "", "")
    within = WAYS["between subnets, ingress"]
    with stations(network, APP, LEDGER, DB) as (app, ledger, db):
        denied = four_flows(there, app, ledger, CUT, rate=200) + four_flows(back, ledger, app, CUT, rate=200)
        kept = four_flows(within, app, db, KEPT, rate=200)
        assert_cut(denied, kept, lambda: run(network, "delete-peering --vpc1 shop --vpc2 billing"))
        assert_nothing_lost(kept)
    network.vpcctl("create-peering", "--vpc1", "shop", "--vpc2", "billing")


def test_an_unpublished_port_cuts_live_flows(network: Lab) -> None:
    way = WAYS["from the internet by a published port"]
    with stations(network, "internet", APP) as (client, app):
        denied = four_flows(way, client, app, CUT, rate=200)
        kept = four_flows(way, client, app, KEPT, rate=200)
        ports = [(protocol, port + PUBLISHED) for protocol in ("tcp", "udp") for port in CUT[:2]]

        def unpublish() -> float:
            for protocol, port in ports:
                network.vpcctl("unpublish-port", "--vpc", "shop", "--protocol", protocol, "--port", str(port))
            return time.monotonic()

        assert_cut(denied, kept, unpublish)
        assert_nothing_lost(kept)
    for protocol, port in ports:
        words = f"publish-port --vpc shop --instance app --protocol {protocol} --port {port}"
        network.vpcctl(*words.split(), "--target-port", str(port - PUBLISHED))


def test_flows_that_stay_allowed_lose_nothing_over_a_hundred_changes(network: Lab) -> None:
    ways = [way for name, way in WAYS.items() if way.subnet != "*" and not name.endswith("egress")]
    network.vpcctl("create-nat-gateway", "--vpc", "shop", "--subnet", "db")
    with contextlib.ExitStack() as stack:
        names = sorted({name for way in ways for name in (way.client, way.server)})
        there = dict(zip(names, stack.enter_context(stations(network, *names)), strict=True))
        flows = [flow for way in ways for flow in four_flows(way, there[way.client], there[way.server], KEPT, rate=100)]
        flows += [
            start_flow(
                f"echo {way.server}", there[way.client], there[way.server], way.address, next(ECHO), "icmp", rate=100
            )
            for way in ways
            if not way.published
        ]
        loaded = start_flow("load", there[APP], there[DB], "10.0.2.2", CUT[0], "udp", rate=1000)
        started = time.monotonic()
        assert_moving([*flows, loaded], started)
        files = [write(network, f"{number}.json", alternating(number)) for number in range(2)]
        before = generations(network)
        network.python(REPEAT, "120", *files, timeout=600)
        assert all(generations(network)[router] - before[router] >= 120 for router in before)
        moment = time.monotonic()
        assert_moving([*flows, loaded], moment)
        assert_nothing_lost([*flows, loaded])
        assert loaded.counts()[0].sent > 1000
    for vpc, subnet in POLICIES:
        network.vpcctl("clear-policy", "--vpc", vpc, "--subnet", subnet)
    network.vpcctl("delete-nat-gateway", "--vpc", "shop", "--subnet", "db")


def alternating(number: int) -> list[dict[str, object]]:
    """Two ways to allow the same flows, by other rules in another order, with other traffic denied."""
    ports = [*KEPT, CUT[0]] if number else [f"{KEPT[0]}-{KEPT[2]}", f"{CUT[0]}-{CUT[1]}"]
    rules: list[dict[str, object]] = [
        {"action": "deny", "protocol": "tcp", "port": 22 + number},
        *({"action": "allow", "protocol": protocol, "port": ports} for protocol in ("tcp", "udp")),
        {"action": "allow", "protocol": "icmp", **({"icmp_type": "echo-request"} if number else {})},
    ]
    return [{"vpc": vpc, "subnet": subnet, "ingress": rules, "egress": rules[::-1]} for vpc, subnet in POLICIES]


def generations(lab: Lab) -> dict[str, int]:
    """The generation of each router's ruleset, from the table's comment or from the later stamp."""
    found = {}
    for router in ("shop-router", "billing-router"):
        listed = lab.run(["nft", "-t", "list", "ruleset"], netns=router).stdout
        found[router] = max(map(int, re.findall(r'comment "vpcctl\S+ \S+ (\d+)', listed)))
    return found


def run(lab: Lab, command: str) -> float:
    """Run a command; the moment of its return."""
    lab.vpcctl(*command.split())
    return time.monotonic()


def test_a_way_out_that_goes_and_comes_back_never_lets_an_inside_address_out(lab: Lab) -> None:
    """Of a VPC with one way out: its ruleset loses the NAT chain and gets it back, under a sender that never pauses."""
    run_all(
        lab,
        [
            "create-vpc --name lone --cidr 10.0.0.0/16",
            "create-subnet --vpc lone --name db --cidr 10.0.2.0/24 --type private",
            "create-nat-gateway --vpc lone --subnet db",
        ],
    )
    with stations(lab, "lone-db", "internet") as (db, internet):
        internet.listen()
        flow = start_flow("way out", db, internet, str(INTERNET), CUT[0], "udp", rate=1000)
        for _ in range(4):
            assert_moving([flow], time.monotonic())
            run(lab, "delete-nat-gateway --vpc lone --subnet db")
            time.sleep(0.1)
            before = flow.counts()[1].received
            time.sleep(0.2)
            assert flow.counts()[1].received == before
            run(lab, "create-nat-gateway --vpc lone --subnet db")
        assert_moving([flow], time.monotonic())
        heard = {packet.source for packet in internet.heard() if packet.port == CUT[0]}
        assert heard == {str(HOST)}
