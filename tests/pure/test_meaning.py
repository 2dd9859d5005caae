"""The oracle, by examples that can be checked by reading docs/policy.md, «Meaning»."""

from __future__ import annotations

import ipaddress

import pytest

from tests.story import Step, policy, told
from tests.worlds import GRE, address, instance
from vpcctl.model import operations, oracle
from vpcctl.model.network import Subnet, Vpc, World
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import ICMP, ICMPV6, TCP, UDP, Action

PEERED = operations.clear_policy(told("peer them"), "one", "web")
PLACES = {
    "web": Place("one", address("10.0.0.2")),
    "db": Place("one", address("10.0.0.18")),
    "api": Place("two", address("10.0.0.66")),
    "nobody": Place("one", address("10.0.0.9")),
    "gateway": Place("one", address("10.0.0.1")),
    "internet": Place(None, address("203.0.113.7")),
    "host": Place(None, address("100.64.0.0")),
    "loopback": Place(None, address("127.0.0.1")),
}


def decision(
    world: World, source: str, destination: str, protocol: int = TCP, port: int | None = 80
) -> oracle.Decision:
    return oracle.decide(world, Flow(PLACES[source], PLACES[destination], protocol, port))


def allowed(world: World, source: str, destination: str, protocol: int = TCP, port: int | None = 80) -> bool:
    return decision(world, source, destination, protocol, port).allowed


# -- topology ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "destination", "passes"),
    [
        ("web", "db", True),
        ("db", "web", True),
        ("web", "web", True),
        ("web", "api", True),
        ("api", "db", True),
        ("web", "internet", True),
        ("db", "internet", True),
        ("web", "nobody", False),
        ("nobody", "web", False),
        ("web", "gateway", False),
        ("web", "host", False),
        ("web", "loopback", False),
        ("internet", "web", True),
        ("internet", "db", False),
        ("internet", "api", False),
        # A program of the host that calls 127.0.0.1.
        ("host", "web", True),
        ("host", "db", False),
        ("loopback", "web", False),
        ("internet", "internet", False),
    ],
)
def test_without_policies_the_topology_decides(source: str, destination: str, passes: bool) -> None:
    assert allowed(PEERED, source, destination) is passes


@pytest.mark.parametrize(
    ("step", "source", "destination"),
    [
        (lambda world: operations.delete_peering(world, "one", "two"), "web", "api"),
        (lambda world: operations.delete_peering(world, "one", "two"), "api", "web"),
        (lambda world: operations.set_nat_gateway(world, "one", "db", False), "db", "internet"),
        (lambda world: operations.unpublish_port(world, "one", TCP, 8080), "internet", "web"),
        (lambda world: operations.delete_instance(world, "two", "api"), "web", "api"),
    ],
)
def test_a_way_that_is_taken_back_carries_nothing(step: Step, source: str, destination: str) -> None:
    assert allowed(PEERED, source, destination)
    assert not allowed(step(PEERED), source, destination)


def test_only_the_published_port_of_the_published_protocol_is_open_to_the_internet() -> None:
    assert allowed(PEERED, "internet", "web", TCP, 80)
    assert not allowed(PEERED, "internet", "web", TCP, 8080)
    assert not allowed(PEERED, "internet", "web", UDP, 80)
    assert not allowed(PEERED, "internet", "web", ICMP, 8)


@pytest.mark.parametrize(
    ("protocol", "kinds"), [(ICMP, {8, 13, 15, 17}), (ICMPV6, set()), (GRE, set(range(256)))]
)  # fmt: skip
def test_a_flow_begins_with_a_request_of_its_own_icmp(protocol: int, kinds: set[int]) -> None:
    """As net/netfilter/nf_conntrack_proto_icmp.c has it: all other types are answers, errors or invalid."""
    opening = {kind for kind in range(256) if allowed(PEERED, "web", "db", protocol, None if protocol == GRE else kind)}
    assert opening == kinds
    assert protocol == GRE or decision(PEERED, "web", "db", protocol, 0).stages[-1].origin == "no flow begins with that"


@pytest.mark.parametrize(("protocol", "kinds"), [(ICMP, set()), (ICMPV6, {128, 139})])
def test_icmpv6_is_that_of_ipv6(protocol: int, kinds: set[int]) -> None:
    here, there = ipaddress.ip_address("2001:db8::2"), ipaddress.ip_address("2001:db8::3")
    members = tuple(instance("six", name, str(one)) for name, one in (("a", here), ("b", there)))
    subnet = Subnet("web", (ipaddress.ip_network("2001:db8::/64"),), True, False, members)
    world = World((Vpc("six", (ipaddress.ip_network("2001:db8::/48"),), 0, (subnet,)),))
    ends = Place("six", here), Place("six", there)
    assert {kind for kind in range(256) if oracle.decide(world, Flow(*ends, protocol, kind)).allowed} == kinds


def test_no_flow_has_ends_of_two_ip_versions() -> None:
    ends = PLACES["web"], Place(None, ipaddress.ip_address("2001:db8::7"))
    assert not oracle.decide(PEERED, Flow(*ends, TCP, 80)).allowed


# -- gates ---------------------------------------------------------------------------------------------------------


def ingress(*rules: dict, **more: object) -> World:
    return policy({"subnet": "web", "ingress": list(rules)} | more)(PEERED)


def egress(*rules: dict) -> World:
    return policy({"subnet": "web", "egress": list(rules)})(PEERED)


def test_the_first_rule_that_matches_decides() -> None:
    deny, allow = {"action": "deny", "source": "subnet:db"}, {"action": "allow"}
    assert not allowed(ingress(deny, allow), "db", "web")
    assert allowed(ingress(deny, allow), "api", "web")
    assert allowed(ingress(allow, deny), "db", "web")


def test_what_no_rule_matches_is_denied_unless_the_default_allows() -> None:
    line = {"action": "deny", "protocol": "udp"}
    assert not allowed(ingress(line), "db", "web")
    assert allowed(ingress(line, default={"ingress": "allow"}), "db", "web")
    assert not allowed(ingress(), "db", "web")
    assert allowed(ingress(), "web", "db"), "a direction that is absent allows"


def test_an_egress_allow_does_not_skip_the_ingress_gate() -> None:
    world = policy({"subnet": "db", "ingress": []})(egress({"action": "allow"}))
    found = decision(world, "web", "db")
    assert not found.allowed
    assert [(stage.gate, stage.action) for stage in found.stages] == [
        ("topology", Action.ALLOW),
        ("egress of one/web", Action.ALLOW),
        ("ingress of one/db", Action.DENY),
    ]


def test_a_denied_flow_is_asked_no_further() -> None:
    found = decision(egress(), "web", "db")
    assert [stage.gate for stage in found.stages] == ["topology", "egress of one/web"]
    assert found.stages[-1].origin == "web.json#/egress (default deny)"


def test_the_deciding_line_is_named() -> None:
    world = ingress({"action": "deny", "protocol": "udp"}, {"action": "reject", "protocol": "tcp"})
    found = decision(world, "db", "web")
    assert (found.stages[-1].action, found.stages[-1].origin) == (Action.REJECT, "web.json#/ingress/1")


def test_traffic_within_a_subnet_passes_both_of_its_gates() -> None:
    crowded = operations.create_instance(PEERED, "one", "web", "other", PLACES["nobody"].address, 0)
    line = {"action": "allow", "destination": "instance:other"}
    world = policy({"subnet": "web", "egress": [line]})(crowded)
    assert allowed(world, "web", "nobody"), "which is the other one now"
    assert not allowed(world, "nobody", "web")


@pytest.mark.parametrize(
    ("line", "protocol", "port", "matches"),
    [
        ({}, TCP, 80, True),
        ({}, GRE, None, True),
        ({"protocol": "tcp"}, TCP, 0, True),
        ({"protocol": "tcp"}, UDP, 80, False),
        ({"protocol": "tcp", "port": "80-81"}, TCP, 80, True),
        ({"protocol": "tcp", "port": "80-81"}, TCP, 81, True),
        ({"protocol": "tcp", "port": "80-81"}, TCP, 79, False),
        ({"protocol": "tcp", "port": "80-81"}, TCP, 82, False),
        ({"protocol": "tcp", "port": "1-65535"}, TCP, 0, False),
        ({"protocol": "tcp", "port": "1-65535"}, TCP, 65535, True),
        ({"protocol": "tcp", "port": "*"}, TCP, 0, True),
        ({"protocol": "tcp", "port": []}, TCP, 80, False),
        ({"protocol": 47}, GRE, None, True),
        ({"protocol": "icmp"}, ICMP, 8, True),
        ({"protocol": "icmp", "icmp_type": "echo-request"}, ICMP, 8, True),
        ({"protocol": "icmp", "icmp_type": "echo-request"}, ICMP, 13, False),
        ({"source": []}, TCP, 80, False),
        ({"source": "any"}, TCP, 80, True),
        ({"source": "0.0.0.0/0"}, TCP, 80, True),
        ({"source": "::/0"}, TCP, 80, False),
        ({"source": "10.0.0.18"}, TCP, 80, True),
        ({"source": "10.0.0.18/31"}, TCP, 80, True),
        ({"source": "10.0.0.19"}, TCP, 80, False),
        ({"source": ["10.0.0.19", "subnet:db"]}, TCP, 80, True),
        ({"source": "instance:db"}, TCP, 80, True),
        ({"source": "instance:web"}, TCP, 80, False),
        ({"source": "vpc:one"}, TCP, 80, True),
        ({"source": "vpc:two"}, TCP, 80, False),
        ({"source": "internet"}, TCP, 80, False),
        ({"source": "set:s"}, TCP, 80, True),
        ({"destination": "subnet:web"}, TCP, 80, True),
        ({"destination": "subnet:db"}, TCP, 80, False),
        ({"destination": "instance:web", "source": "subnet:db"}, TCP, 80, True),
        ({"destination": []}, TCP, 80, False),
    ],
)
def test_what_a_rule_matches(line: dict, protocol: int, port: int | None, matches: bool) -> None:
    world = ingress({"action": "allow"} | line, sets={"s": ["10.0.0.16/28"]})
    assert allowed(world, "db", "web", protocol, port) is matches


def test_the_internet_is_what_is_outside_this_vpc_and_its_peers() -> None:
    world = egress({"action": "allow", "destination": "internet"})
    assert allowed(world, "web", "internet")
    assert not allowed(world, "web", "api")
    assert not allowed(world, "web", "db")
    published = ingress({"action": "allow", "source": "internet"})
    assert allowed(published, "internet", "web")
    assert not allowed(published, "api", "web")


def test_a_peer_that_is_none_any_more_means_nothing() -> None:
    world = ingress({"action": "deny", "source": "vpc:two"}, {"action": "allow"})
    assert not allowed(world, "api", "web")
    alone = operations.delete_peering(world, "one", "two")
    assert not allowed(alone, "api", "web"), "for the topology carries nothing"
    assert allowed(alone, "db", "web")


def test_a_limited_rule_is_taken_as_below_its_rate() -> None:
    assert allowed(ingress({"action": "allow", "limit": "1/day burst 1"}), "db", "web")


def test_both_gates_are_asked_across_a_peering() -> None:
    world = policy({"subnet": "api", "ingress": [{"action": "allow", "source": "vpc:one"}]}, "two")(PEERED)
    assert allowed(world, "web", "api")
    closed = policy({"subnet": "api", "ingress": [{"action": "allow", "source": "instance:api"}]}, "two")(PEERED)
    found = decision(closed, "web", "api")
    assert [stage.gate for stage in found.stages] == ["topology", "egress of one/web", "ingress of two/api"]
    assert not found.allowed
