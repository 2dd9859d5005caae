"""`show-policy --hits` counts what docs/cli.md says: flows that a rule allowed, and packets that a rule denied."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.machine import apply, run_all
from tests.lab.traffic import SEND, Flow, eventually, start_flow, stations
from vpcctl.lab import Lab

SHOP = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
)
ALLOWED, DENIED, LIVE, MANY, OTHER = 5000, 5001, 5432, range(6000, 6010), 5009
RULES = [
    {"action": "allow", "protocol": "udp", "port": ALLOWED},
    {"action": "deny", "protocol": "udp", "port": DENIED},
    {"action": "allow", "protocol": "tcp", "port": LIVE, "source": "subnet:web"},
    # A range, and a rate, which are counted in sets and rules of other kinds.
    {"action": "allow", "protocol": "udp", "port": f"{MANY[0]}-{MANY[-1]}", "source": "10.0.0.0/16"},
    {"action": "allow", "protocol": "icmp", "icmp_type": "echo-request", "limit": "100/second"},
]
POLICY = {"vpc": "shop", "subnet": "db", "ingress": RULES}

# The same flow whenever it runs.
AGAIN = """
import socket, sys
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mouth.bind(("", 4000))
for _ in range(3):
    mouth.sendto(b"x", ("10.0.2.2", int(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def built(module_lab: Lab) -> Lab:
    run_all(module_lab, SHOP)
    return module_lab


@pytest.fixture
def shop(built: Lab) -> Lab:
    """The shop with its policy, whose counters are at zero."""
    built.vpcctl("clear-policy", "--vpc", "shop", "--subnet", "db")
    apply(built, POLICY)
    assert hits(built) == [0] * 6
    return built


@pytest.fixture
def flow(shop: Lab) -> Iterator[Flow]:
    """A connection on which both ends keep sending."""
    with stations(shop, "shop-web", "shop-db") as (client, server):
        yield start_flow("live", client, server, "10.0.2.2", LIVE, "tcp", rate=200, push=200)


def hits(lab: Lab) -> list[int]:
    """The counts of the rules, and of the default."""
    said = lab.vpcctl("show-policy", "--vpc", "shop", "--subnet", "db", "--hits", "--json").stdout
    counted: list[int] = json.loads(said)[0]["hits"]["ingress"]
    return counted


def send(lab: Lab, port: int, flows: int, times: int) -> None:
    lab.python(SEND, str(port), str(flows), str(times), netns="shop-web")


def carried(flow: Flow, records: int) -> bool:
    """Do both ends come to have received so many records more?"""
    before = [count.received for count in flow.counts()]

    def come() -> bool:
        return all(now.received >= was + records for now, was in zip(flow.counts(), before, strict=True))

    return eventually(come)


def test_an_allowed_flow_counts_once_and_a_denied_one_with_every_packet(shop: Lab) -> None:
    send(shop, ALLOWED, flows=5, times=3)
    send(shop, DENIED, flows=2, times=4)
    send(shop, MANY[3], flows=3, times=2)
    send(shop, OTHER, flows=3, times=2)
    assert hits(shop) == [5, 2 * 4, 0, 3, 0, 3 * 2]


def test_a_flow_within_its_rate_counts_once(shop: Lab) -> None:
    shop.run(["ping", "-n", "-c", "3", "-i", "0.1", "10.0.2.2"], netns="shop-web")
    shop.run(["ping", "-n", "-c", "2", "-i", "0.1", "10.0.2.2"], netns="shop-web")
    assert hits(shop) == [0, 0, 0, 0, 2, 0]


def test_the_packets_of_a_live_flow_do_not_count(shop: Lab, flow: Flow) -> None:
    assert carried(flow, 200)
    assert hits(shop) == [0, 0, 1, 0, 0, 0]
    assert carried(flow, 100)
    assert hits(shop) == [0, 0, 1, 0, 0, 0]


def test_a_live_flow_that_pauses_during_a_load_counts_once_more(shop: Lab) -> None:
    """Its next packet is judged again, and unchanged rules keep their counts (ADR 25)."""
    for number, port in enumerate((7001, 7002), 1):
        shop.python(AGAIN, str(ALLOWED), netns="shop-web")
        assert hits(shop)[0] == number
        apply(shop, {**POLICY, "ingress": [*RULES, {"action": "allow", "protocol": "udp", "port": port}]})
        assert hits(shop) == [number, *[0] * 6]
    shop.python(AGAIN, str(ALLOWED), netns="shop-web")
    assert hits(shop)[0] == 3


def test_a_change_keeps_what_rules_counted_that_stay(shop: Lab) -> None:
    """For rules in sets and ranges, behind a rate, and for the default; the changed rule starts at zero."""
    send(shop, ALLOWED, flows=5, times=1)
    send(shop, DENIED, flows=2, times=1)
    send(shop, MANY[3], flows=3, times=1)
    send(shop, OTHER, flows=4, times=1)
    shop.run(["ping", "-n", "-c", "1", "10.0.2.2"], netns="shop-web")
    assert hits(shop) == [5, 2, 0, 3, 1, 4]
    changed = [RULES[0], {**RULES[1], "port": 5002}, *RULES[2:]]
    apply(shop, {**POLICY, "ingress": changed})
    assert hits(shop) == [5, 0, 0, 3, 1, 4]
    # Another lookup, so that the rules of the chain are made again.
    apply(shop, {**POLICY, "ingress": [*changed, {"action": "deny", "protocol": 47}]})
    assert hits(shop) == [5, 0, 0, 3, 1, 0, 4]
    shop.vpcctl("repair")
    send(shop, OTHER, flows=2, times=1)
    assert hits(shop) == [5, 0, 0, 3, 1, 0, 6]


def test_a_whole_load_begins_at_zero(shop: Lab) -> None:
    send(shop, ALLOWED, flows=5, times=1)
    shop.run(["nft", "flush", "chain", "inet", "vpcctl", "path"], netns="shop-router")
    shop.vpcctl("repair")
    assert hits(shop) == [0] * 6


def test_a_live_flow_that_sends_during_a_load_counts_once_at_most(shop: Lab, flow: Flow) -> None:
    assert carried(flow, 50)
    before = hits(shop)[2]
    for port in (7001, 7002):
        apply(shop, {**POLICY, "ingress": [*RULES, {"action": "allow", "protocol": "udp", "port": port}]})
        assert carried(flow, 100)
        counted = hits(shop)
        assert counted in ([0, 0, number, 0, 0, 0, 0] for number in (before, before + 1))
        before = counted[2]
        assert carried(flow, 100)
        assert hits(shop) == counted
