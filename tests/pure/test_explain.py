"""Answers to questions about traffic: for single flows against the oracle, for many at once by reading them back."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import words, worlds
from vpcctl.analysis import packetset
from vpcctl.analysis.explain import ALLOW, DENY, PARTLY, also_denied, answer_to_json, ask, matrix
from vpcctl.analysis.packetset import NOTHING, Space
from vpcctl.analysis.query import parse_service
from vpcctl.analysis.reachability import FLOWS, Reach
from vpcctl.analysis.witnesses import witnesses
from vpcctl.documents.environment import read_environment
from vpcctl.documents.policies import read_policy
from vpcctl.errors import ConflictError, DocumentError
from vpcctl.model import oracle
from vpcctl.model.host import NO_HOST, Host
from vpcctl.model.network import World
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import ICMP_PROTOCOLS, PORT_PROTOCOLS, WHOLE_VPC, Action, Direction
from vpcctl.model.protocols import REPLY_TYPE

FLOWS_ASKED = 25

# -- single flows --------------------------------------------------------------------------------------------------


def question(flow: Flow) -> tuple[str, str, str]:
    """A flow in the words of the command line."""
    ends = [str(place.address) if place.vpc is None else f"{place.vpc}/{place.address}"
            for place in (flow.source, flow.destination)]  # fmt: skip
    return (*ends, str(flow.protocol) if flow.port is None else f"{flow.protocol}/{flow.port}")


def can_be_asked(world: World, flow: Flow) -> bool:
    """Is one end in a VPC, are both somewhere, and does the service begin a flow and have a name?"""
    if (flow.source.vpc is None and flow.destination.vpc is None) or nowhere(world, flow):
        return False
    return flow.port != 0 if flow.protocol in PORT_PROTOCOLS else begins(flow)


def begins(flow: Flow) -> bool:
    return flow.protocol not in ICMP_PROTOCOLS or flow.port in REPLY_TYPE[flow.protocol]


def line_of(origin: str) -> str:
    """An origin; where the topology decides, as much of the reason as the oracle gives."""
    if any(words in origin for words in ("is not an internet address", " of the host")):
        return origin.partition(";")[0]
    reasons = ("this port is not published", "nothing is published there", "this is not published")
    if origin in reasons or "; ask for " in origin:
        return "not published"
    return origin


@settings(max_examples=50, deadline=None)
@given(st.booleans().flatmap(worlds.worlds), worlds.hosts, st.integers(0, 2**32))
def test_a_flow_is_judged_stage_by_stage_as_the_oracle_judges_it(world: World, host: Host, seed: int) -> None:
    reach = Reach(world, host)
    for flow in worlds.flows(world, random.Random(seed), FLOWS_ASKED):
        if not can_be_asked(world, flow):
            continue
        decision = oracle.decide(world, flow, host)
        answer = ask(reach, *question(flow))
        assert answer.verdict == (ALLOW if decision.allowed else DENY), flow
        if not decision.allowed and host.has(flow.destination.address):
            # Both the subnet and the host deny it; either reason is right.
            continue
        if not decision.allowed and flow.source.vpc is None and host.has(flow.source.address):
            # No sender outside has the host's address, and the port is not published; either reason is right.
            continue
        assert line_of(answer.deciding.origin) == line_of(decision.stages[-1].origin), flow
        assert [stage.gate for stage in answer.stages] == [stage.gate for stage in decision.stages]
        for said, known in zip(answer.stages[1:], decision.stages[1:], strict=True):
            (verdict,) = said.verdicts
            assert verdict.action is known.action
            assert line_of(verdict.origin) == line_of(known.origin)
            assert (verdict.rule is not None) is (verdict.rule in rules_of(world)), verdict


def nowhere(world: World, flow: Flow) -> bool:
    """Is an end in a VPC but in none of its subnets?  That is no question but a mistake."""
    return any(
        place.vpc is not None
        and not any(place.address in prefix for one in world.vpc(place.vpc).subnets for prefix in one.prefixes)
        for place in (flow.source, flow.destination)
    )


def rules_of(world: World) -> list:
    policies = [policy for vpc in world.vpcs for _, policy in vpc.policies]
    return [rule for policy in policies for rules in (policy.ingress, policy.egress) for rule in rules or ()]


# -- many at once --------------------------------------------------------------------------------------------------


@st.composite
def questions(draw: st.DrawFn) -> tuple[Reach, str, str, str]:
    """A question about whole subnets, the internet, and many services."""
    world = draw(st.booleans().flatmap(worlds.worlds).filter(lambda found: any(vpc.subnets for vpc in found.vpcs)))
    inside = [f"{vpc.name}/{one.name}" for vpc in world.vpcs for one in (*vpc.subnets, *vpc.instances)]
    one = draw(st.sampled_from(inside))
    other = draw(st.sampled_from([*inside, "internet", "internet", "203.0.113.7"]))
    service = draw(st.sampled_from(["any", "any", "tcp", "tcp/80", "udp/1-1023", "icmp", "icmp/echo-request", "47"]))
    return (Reach(world, draw(worlds.hosts)), *draw(st.permutations([one, other])), service)


@settings(max_examples=60, deadline=None)
@given(questions())
def test_every_stage_speaks_of_all_that_came_to_it(case: tuple[Reach, str, str, str]) -> None:
    reach, source, destination, service = case
    answer = ask(reach, source, destination, service)
    ends = answer.source.zone, answer.destination.zone
    left = answer.asked
    for stage in answer.stages:
        said = {number: words.packets(one.lines, *ends, reach) for number, one in enumerate(stage.verdicts)}
        for number, part in said.items():
            assert not any(part & other for place, other in said.items() if place != number)
        assert union(said.values()) == left, stage
        left = union(part for number, part in said.items() if stage.verdicts[number].action is Action.ALLOW)
    assert left == answer.passing == words.packets(answer.allowed, *ends, reach)
    assert answer.verdict == (ALLOW if left == answer.asked else PARTLY if left else DENY)


def union(parts) -> Space:
    found = NOTHING
    for part in parts:
        found |= part
    return found


def silent(world: World, place: Place, direction: Direction) -> World:
    """`world` without what the policies of a subnet and of its VPC say of one direction."""
    vpc = world.vpc(str(place.vpc))
    for name in (oracle.subnet_at(vpc, place.address).name, WHOLE_VPC):
        written = vpc.policy_of(name)
        if written is not None:
            defaults = tuple(one for one in written.defaults if one[0] is not direction)
            vpc = vpc.with_policy(name, dataclasses.replace(written, **{direction.value: None}, defaults=defaults))
    return world.with_vpc(vpc)


@settings(max_examples=150, deadline=None)
@given(worlds.worlds().filter(lambda world: any(vpc.instances for vpc in world.vpcs)), st.integers(0, 1 << 30))
def test_every_gate_that_denies_is_named(world: World, seed: int) -> None:
    """The oracle says what each gate decides alone: it is asked of a world in which the other gate is silent."""
    chance = random.Random(seed)
    places = [Place(vpc.name, one.addresses[0]) for vpc in world.vpcs for one in vpc.instances]
    source, destination = chance.choice(places), chance.choice(places)
    service = chance.choice(["tcp/80", "tcp/443", "udp/1", "icmp/echo-request"])
    words_of = [f"{place.vpc}/{place.address}" for place in (source, destination)]
    reach = Reach(world)
    answer = ask(reach, *words_of, service)
    named = {stage.gate for stage in also_denied(reach, answer)}
    named |= {stage.gate for stage in answer.stages if stage.verdicts[0].action is not Action.ALLOW}
    (protocol, _), (port, _) = (one[0] for one in parse_service(service))
    flow = Flow(source, destination, protocol, port)
    if oracle.decide(silent(silent(world, source, Direction.EGRESS), destination, Direction.INGRESS), flow).allowed:
        alone = {
            oracle.decide(silent(world, destination, Direction.INGRESS), flow),
            oracle.decide(silent(world, source, Direction.EGRESS), flow),
        }
        expected = {one.stages[-1].gate for one in alone if not one.allowed}
        assert named == expected
    else:
        assert named == {"topology"}


@settings(max_examples=40, deadline=None)
@given(questions())
def test_what_passes_is_what_the_space_says_of_what_was_asked(case: tuple[Reach, str, str, str]) -> None:
    reach, source, destination, service = case
    answer = ask(reach, source, destination, service)
    asked = Space.of(answer.source.addresses, answer.destination.addresses, *parse_service(service))
    assert not answer.asked - asked
    if service == "any":
        # Any service is any that source NAT carries, where there is one.
        asked = asked & reach.translated(answer.source.zone, answer.destination.zone) or asked
    assert answer.asked & FLOWS == asked & FLOWS
    single = [end.single for end in (answer.source, answer.destination) if end.zone.vpc is not None and end.single]
    if all(any(one in member.addresses for vpc in reach.world.vpcs for member in vpc.instances) for one in single):
        assert answer.passing == reach.allowed(answer.source.zone, answer.destination.zone) & asked


@settings(max_examples=30, deadline=None)
@given(questions())
def test_witnesses_of_an_answer_are_flows_that_the_oracle_judges_so(case: tuple[Reach, str, str, str]) -> None:
    reach, source, destination, service = case
    for flow, passes in witnesses(reach, ask(reach, source, destination, service), ipaddress.ip_address("203.0.113.7")):
        assert oracle.decide(reach.world, flow, reach.host).allowed is passes, flow
        assert (flow.protocol != 0, flow.port != 0, flow.source != flow.destination) == (True, True, True)


def test_port_0_alone_is_no_witness() -> None:
    rules = [{"action": "allow", "protocol": "tcp", "port": "1-65535"}, {"action": "deny", "protocol": "tcp"}]
    policy = read_policy({"ingress": rules}, "web.json", "")
    members = tuple(worlds.instance("alpha", name, text) for name, text in (("one", "10.0.0.2"), ("two", "10.0.0.3")))
    subnet = worlds.Subnet("web", (ipaddress.ip_network("10.0.0.0/28"),), True, False, members, policy)
    reach = Reach(World((worlds.Vpc("alpha", (ipaddress.ip_network("10.0.0.0/26"),), 0, (subnet,)),)))
    found = witnesses(reach, ask(reach, "alpha/one", "alpha/two", "tcp"), ipaddress.ip_address("203.0.113.7"))
    assert [(flow.port, passes) for flow, passes in found] == [(1, True)]


@settings(max_examples=30, deadline=None)
@given(st.booleans().flatmap(worlds.worlds), worlds.hosts)
def test_the_matrix_is_all_that_passes(world: World, host: Host) -> None:
    reach = Reach(world, host)
    for vpc in world.vpcs:
        found = matrix(reach, vpc.name)
        pairs = list(reach.pairs(vpc.name))
        assert list(found) == [(source.name(vpc.name), destination.name(vpc.name)) for source, destination in pairs]
        for (source, destination), told in zip(pairs, found.values(), strict=True):
            assert words.packets(told, source, destination, reach, vpc.name) == reach.allowed(source, destination)


# -- by name -------------------------------------------------------------------------------------------------------

RULES = {
    "ingress": [
        {"action": "deny", "protocol": "tcp", "port": 23, "description": "no telnet"},
        {"action": "allow", "protocol": "tcp", "source": "subnet:web"},
        {"action": "reject", "protocol": "udp"},
    ],
}


def shop(host: Host = NO_HOST) -> Reach:
    """A public subnet with two instances, a private one with a policy, a peer and a stranger."""
    document = {
        "vpcs": [
            {"name": "shop", "cidr": "10.0.0.0/16", "publish": [
                {"protocol": "tcp", "port": 8080, "instance": "web"},
                {"protocol": "tcp", "port": 443, "instance": "web", "target_port": 8443},
             ],
             "subnets": [
                {"name": "web", "cidr": "10.0.1.0/24", "type": "public",
                 "instances": [{"name": "web"}, {"name": "web-2", "ip": "10.0.1.9"}]},
                {"name": "db", "cidr": "10.0.3.0/24", "type": "private", "instances": [{"name": "data"}],
                 "policy": RULES},
            ]},
            {"name": "billing", "cidr": "10.1.0.0/16",
             "subnets": [{"name": "api", "cidr": "10.1.0.0/24", "type": "private"}]},
            {"name": "apart", "cidr": "10.2.0.0/16",
             "subnets": [{"name": "api", "cidr": "10.2.0.0/24", "type": "private"}]},
        ],
        "peerings": [["shop", "billing"]],
    }  # fmt: skip
    return Reach(read_environment(document, "env.json", json.loads), host)


POLICY = "env.json#/vpcs/0/subnets/1/policy"


@pytest.mark.parametrize(
    ("source", "destination", "service", "verdict", "origin"),
    [
        ("shop/web", "shop/data", "tcp/5432", ALLOW, f"{POLICY}/ingress/1"),
        ("shop/web", "shop/data", "tcp/23", DENY, f"{POLICY}/ingress/0"),
        ("shop/web", "shop/data", "udp/53", DENY, f"{POLICY}/ingress/2"),
        ("shop/web", "shop/data", "icmp/echo-request", DENY, f"{POLICY}/ingress (default deny)"),
        ("shop/web", "shop/data", "tcp", PARTLY, f"{POLICY}/ingress/0"),
        ("shop/data", "shop/web", "any", ALLOW, "no policy"),
        ("shop/data", "203.0.113.7", "tcp/443", DENY, "subnet db is private and has no NAT gateway"),
        ("shop/web", "203.0.113.7", "tcp/443", ALLOW, "no policy"),
        ("shop/web", "internet", "any", ALLOW, "no policy"),
        ("internet", "shop/web", "tcp/8080", ALLOW, "no policy"),
        ("internet", "shop/web", "tcp/80", DENY, "this is not published"),
        ("internet", "shop/web", "tcp", PARTLY, "this is not published"),
        # The host's port, and the instance's.
        ("internet", "shop/web", "tcp/443", DENY,
         "the host's port tcp/443 leads to tcp/8443 here; ask for tcp/8443"),
        ("internet", "shop/web", "tcp/8443", ALLOW, "no policy"),
        ("internet", "shop/web-2", "tcp/443", DENY, "this is not published"),
        ("internet", "shop/web", "udp/443", DENY, "this is not published"),
        ("internet", "shop/web", "tcp/443-444", DENY, "this is not published"),
        ("203.0.113.7", "shop/data", "tcp/80", DENY, "nothing is published there"),
        ("billing/api", "shop/data", "tcp/5432", DENY, f"{POLICY}/ingress (default deny)"),
        ("apart/api", "shop/data", "tcp/5432", DENY, "VPCs apart and shop are not peered"),
        ("shop/10.0.1.77", "shop/data", "tcp/5432", DENY, "10.0.1.77 is not an instance of VPC shop"),
        # Forgotten where it is: the answer says what to write.
        ("shop/web", "10.0.3.2", "tcp/1", DENY,
         "10.0.3.2 is not an internet address; shop/10.0.3.2 is one of VPC shop"),
        ("shop/data", "10.1.0.2", "tcp/1", DENY,
         "10.1.0.2 is not an internet address; billing/10.1.0.2 is one of VPC billing"),
        ("169.254.0.1", "shop/web", "tcp/8080", DENY, "169.254.0.1 is not an internet address"),
        ("shop/web", "2001:db8::1", "tcp/80", DENY, "2001:db8::1 is not an internet address"),
        ("shop/web", "shop/data", "icmpv6/echo-request", DENY, "no packet has these addresses and this protocol"),
    ],
)  # fmt: skip
def test_an_answer_and_the_line_that_decides(
    source: str, destination: str, service: str, verdict: str, origin: str
) -> None:
    answer = ask(shop(), source, destination, service)
    assert (answer.verdict, answer.deciding.origin) == (verdict, origin)


def test_a_silent_direction_says_so() -> None:
    egress = ask(shop(), "shop/data", "shop/web", "any").stages[1]
    assert [verdict.origin for verdict in egress.verdicts] == [f"{POLICY} (no egress: default allow)"]


def test_an_answer_in_part_says_for_which() -> None:
    answer = ask(shop(), "shop/web", "shop/data", "tcp")
    assert list(map(str, answer.allowed)) == ["web (10.0.1.2) → data (10.0.3.2) tcp/0-22, tcp/24-65535"]
    told = {verdict.origin: list(map(str, verdict.lines)) for verdict in answer.stages[-1].verdicts}
    assert told == {
        f"{POLICY}/ingress/0": ["web (10.0.1.2) → data (10.0.3.2) tcp/23"],
        f"{POLICY}/ingress/1": ["web (10.0.1.2) → data (10.0.3.2) tcp/0-22, tcp/24-65535"],
    }


def test_lines_stand_in_the_order_of_the_document_and_the_default_last() -> None:
    said = [verdict.origin for verdict in ask(shop(), "shop/web", "shop/data", "any").stages[-1].verdicts]
    assert said == [*(f"{POLICY}/ingress/{number}" for number in range(3)), f"{POLICY}/ingress (default deny)"]


# -- the host ------------------------------------------------------------------------------------------------------

# eth0, a bridge of containers, an alias on lo, a prefix on lo, the uplinks of two VPCs.
HOST = Host(
    tuple(
        map(
            ipaddress.ip_network,
            "127.0.0.0/8 198.51.100.2/32 172.17.0.1/32 192.0.2.53/32 203.0.113.208/28 100.64.0.0/32 100.64.0.2/32"
            " 10.0.3.1/32".split(),
        )
    ),
    tuple(map(ipaddress.ip_network, ("198.51.100.0/32", "198.51.100.255/32", "172.17.255.255/32"))),
)
STRICT = Host(HOST.addresses, HOST.broadcasts, strict=True)
OWN, BROADCAST = "an address of the host", "a broadcast address of the host's networks"


@pytest.mark.parametrize("service", ["any", "tcp/22", "udp/53", "icmp/echo-request", "47"])
@pytest.mark.parametrize(
    ("address", "reason", "chain"),
    [
        ("198.51.100.2", f"{OWN}; instances reach only its published ports", "from-uplink"),
        ("172.17.0.1", f"{OWN}; instances reach only its published ports", "from-uplink"),
        ("192.0.2.53", f"{OWN}; instances reach only its published ports", "from-uplink"),
        ("203.0.113.208", f"{OWN}; instances reach only its published ports", "from-uplink"),
        ("203.0.113.223", f"{OWN}; instances reach only its published ports", "from-uplink"),
        ("198.51.100.0", f"{BROADCAST}; the host forwards nothing to it", "host-input"),
        ("198.51.100.255", f"{BROADCAST}; the host forwards nothing to it", "host-input"),
        ("172.17.255.255", f"{BROADCAST}; the host forwards nothing to it", "host-input"),
    ],
)
def test_an_instance_does_not_reach_the_host(address: str, reason: str, chain: str, service: str) -> None:
    answer = ask(shop(HOST), "shop/web", address, service)
    # Of all services, only the published ports pass.
    partly = service == "any" and chain == "from-uplink"
    assert (answer.verdict, answer.deciding.origin) == ("partly" if partly else DENY, f"{address} is {reason}")
    if not partly:
        assert answer.hops[-1] == f"vpc-shop on the host: the host's table, {chain}, which drops it"
    # Without the facts it is an address like any other; a protocol without ports is not translated.
    assert ask(shop(), "shop/web", address, service).verdict == (DENY if service == "47" else ALLOW)


@pytest.mark.parametrize("address", ["198.51.100.1", "198.51.100.20", "198.51.100.254", "203.0.113.207",
                                     "203.0.113.224", "172.17.0.2", "192.0.2.52"])  # fmt: skip
def test_the_hosts_neighbours_are_the_internets(address: str) -> None:
    assert ask(shop(HOST), "shop/web", address, "tcp/443").verdict == ALLOW


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.255.255", "224.0.0.1", "239.255.255.250", "255.255.255.255",
                                     "0.0.0.0", "169.254.169.254", "100.64.0.0", "100.64.0.1"])  # fmt: skip
def test_what_nobody_reaches_is_not_the_internet_with_or_without_a_host(address: str) -> None:
    bare = Host(tuple(prefix for prefix in HOST.addresses if not str(prefix).startswith("100.64.")), HOST.broadcasts)
    for host in (NO_HOST, bare):
        answer = ask(shop(host), "shop/web", address, "any")
        assert answer.verdict == DENY
        assert answer.deciding.origin.partition(";")[0] == f"{address} is not an internet address"
        assert answer.hops[-1] == "shop-router, which drops it"
        assert ("an address of a VPC's uplink" in answer.deciding.origin) is address.startswith("100.64.")


@pytest.mark.parametrize("address", ["100.64.0.2", "100.64.0.3", "100.64.0.5"])
def test_the_uplink_of_another_vpc_is_nobodys_to_reach(address: str) -> None:
    answer = ask(shop(), "shop/web", address, "any")
    assert answer.verdict == DENY
    assert answer.deciding.origin == f"{address} is not an internet address; it is an address of a VPC's uplink"
    assert answer.hops[-1] == "vpc-shop on the host: the host's table, from-uplink, which drops it"


def test_the_rest_of_the_transit_range_may_be_somebody_elses() -> None:
    assert ask(shop(HOST), "shop/web", "100.64.255.255", "tcp/443").verdict == ALLOW


def test_an_address_of_a_vpc_stays_one_where_the_host_has_it_too() -> None:
    answer = ask(shop(HOST), "shop/web", "10.0.3.1", "tcp/1")
    assert answer.deciding.origin == "10.0.3.1 is not an internet address; shop/10.0.3.1 is one of VPC shop"


@pytest.mark.parametrize(
    ("address", "loose", "strict"),
    [
        # Only the host itself calls from its own addresses, and it may call published ports.
        ("198.51.100.2", ALLOW, ALLOW),
        ("172.17.0.1", ALLOW, ALLOW),
        ("192.0.2.53", ALLOW, ALLOW),
        ("203.0.113.215", ALLOW, ALLOW),
        # This one is only noticed if the host checks the route back to every source.
        ("198.51.100.255", ALLOW, DENY),
        ("198.51.100.20", ALLOW, ALLOW),
        ("127.0.0.1", DENY, DENY),
        ("100.64.0.1", DENY, DENY),
    ],
)
def test_who_calls_from_an_address_of_the_host_is_the_host(address: str, loose: str, strict: str) -> None:
    for host, verdict in ((HOST, loose), (STRICT, strict)):
        answer = ask(shop(host), address, "shop/web", "tcp/8080")
        assert answer.verdict == verdict
        if verdict == DENY and not address.startswith(("127.", "100.64.")):
            assert answer.deciding.origin.startswith(f"{address} is ")
            assert answer.hops == (address, "the host's check of sources, which drops it")


@pytest.mark.parametrize("host", [NO_HOST, HOST, STRICT])
def test_the_internet_is_one_word_whatever_the_host_has(host: Host) -> None:
    reach = shop(host)
    out = ask(reach, "shop/web-2", "internet", "any")
    assert (out.verdict, list(map(str, out.allowed))) == (ALLOW, ["web-2 (10.0.1.9) → internet any"])
    back = ask(reach, "internet", "shop/web", "tcp/8080")
    assert (back.verdict, list(map(str, back.allowed))) == (ALLOW, ["internet → web (10.0.1.2) tcp/8080"])
    found = matrix(reach, "shop")
    assert list(map(str, found["web", "internet"])) == ["web → internet any"]
    assert list(map(str, found["internet", "web"])) == ["internet → web (10.0.1.2) tcp/8080, tcp/8443"]


def test_a_flow_to_or_from_the_host_can_be_tried() -> None:
    reach, beyond = shop(HOST), ipaddress.ip_address("203.0.113.10")
    out = witnesses(reach, ask(reach, "shop/web", "198.51.100.2", "tcp/22"), beyond)
    back = witnesses(reach, ask(reach, "198.51.100.2", "shop/web", "tcp/8080"), beyond)
    web, host = (Place(vpc, ipaddress.ip_address(text)) for vpc, text in (("shop", "10.0.1.2"), (None, "198.51.100.2")))
    assert (out, back) == ([(Flow(web, host, 6, 22), False)], [(Flow(host, web, 6, 8080), True)])


def test_an_address_that_is_no_instance_is_no_witness() -> None:
    reach, beyond = shop(), ipaddress.ip_address("203.0.113.10")
    assert witnesses(reach, ask(reach, "shop/10.0.1.77", "shop/data", "tcp/1"), beyond) == []


@pytest.mark.parametrize(
    ("source", "destination", "hops"),
    [
        ("shop/web", "shop/data", [
            "shop/web 10.0.1.2", "br-web in shop-router: egress gate of shop/web",
            "br-db in shop-router: ingress gate of shop/db", "shop/data 10.0.3.2",
        ]),
        ("shop/10.0.1.2", "203.0.113.7", [
            "shop/10.0.1.2", "br-web in shop-router: egress gate of shop/web", "uplink in shop-router, source NAT",
            "vpc-shop on the host, masquerade", "203.0.113.7",
        ]),
        ("internet", "shop/web", [
            "internet", "vpc-shop on the host, destination NAT", "uplink in shop-router, destination NAT",
            "br-web in shop-router: ingress gate of shop/web", "shop/web 10.0.1.2",
        ]),
        ("shop/db", "billing/api", [
            "shop/db", "br-db in shop-router: egress gate of shop/db", "pr-billing in shop-router",
            "pr-shop in billing-router", "br-api in billing-router: ingress gate of billing/api",
            "billing/api 10.1.0.2",
        ]),
    ],
)  # fmt: skip
def test_the_hops_are_named(source: str, destination: str, hops: list[str]) -> None:
    assert list(ask(shop(), source, destination, "any").hops) == hops


def test_the_name_of_an_instance_wins_over_that_of_a_subnet() -> None:
    reach = shop()
    assert str(ask(reach, "shop/web", "shop/db", "any").source.single) == "10.0.1.2"
    whole = ask(reach, "shop/db", "shop/web", "any").source
    assert whole.single is None
    assert whole.addresses == (packetset.interval(ipaddress.ip_network("10.0.3.0/24")),)


@pytest.mark.parametrize(
    ("source", "destination", "error", "message"),
    [
        ("web", "shop/db", DocumentError, '"web" is not an end of a flow: VPC/NAME, VPC/ADDRESS, internet or a public'),
        ("internet", "203.0.113.7", DocumentError, "internet → 203.0.113.7: one side must be in a VPC"),
        ("shp/web", "shop/db", ConflictError, "VPC 'shp' not found; known VPCs: apart, billing, shop"),
        ("shop/wbe", "shop/db", ConflictError, "instance or subnet 'wbe' not found in VPC shop; did you mean 'web'?"),
        ("shop/web", "billing/db", ConflictError, "instance or subnet 'db' not found in VPC billing; expected: api"),
        ("shop/web", "shop/10.0.9.9", ConflictError, "10.0.9.9 is in no subnet of VPC shop"),
        ("shop/web", "shop/10.0.3.0/24", ConflictError, "instance or subnet '10.0.3.0/24' not found in VPC shop"),
        ("shop/web", "shop/", ConflictError, "instance or subnet '' not found in VPC shop"),
        ("shop/web", "", DocumentError, '"" is not an end of a flow'),
        ("/", "shop/db", ConflictError, "VPC '' not found"),
    ],
)  # fmt: skip
def test_an_end_that_is_none_is_told(source: str, destination: str, error: type, message: str) -> None:
    with pytest.raises(error) as found:
        ask(shop(), source, destination, "tcp/80")
    assert str(found.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("any", (None, None)),
        ("ANY", (None, None)),
        ("tcp", ([(6, 6)], None)),
        ("tcp/443", ([(6, 6)], [(443, 443)])),
        ("UDP/53", ([(17, 17)], [(53, 53)])),
        ("sctp/1-65535", ([(132, 132)], [(1, 65535)])),
        ("6/80", ([(6, 6)], [(80, 80)])),
        ("icmp/echo-request", ([(1, 1)], [(8, 8)])),
        ("icmp/13", ([(1, 1)], [(13, 13)])),
        ("icmpv6/echo-request", ([(58, 58)], [(128, 128)])),
        ("0", ([(0, 0)], None)),
        ("255", ([(255, 255)], None)),
    ],
)
def test_a_service_is_read(text: str, ranges: tuple) -> None:
    assert parse_service(text) == ranges


EXPECTED = "a service is tcp/443, udp/53, icmp/echo-request, tcp, a protocol number or any"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tpc/80", f"\"tpc/80\" is not a service: did you mean 'tcp'?; {EXPECTED}"),
        ("256", f'"256" is not a service: expected: tcp, udp, sctp, icmp, icmpv6, any; {EXPECTED}'),
        ("", f'"" is not a service: expected: tcp, udp, sctp, icmp, icmpv6, any; {EXPECTED}'),
        ("any/80", f"\"any/80\" is not a service: did you mean 'any'?; {EXPECTED}"),
        ("-1", f'"-1" is not a service: expected: tcp, udp, sctp, icmp, icmpv6, any; {EXPECTED}'),
        ("9" * 5000, None),
        ("tcp/", f'"tcp/" is not a service; {EXPECTED}'),
        ("tcp/http", f'"tcp/http" is not a service; {EXPECTED}'),
        ("tcp/80-", f'"tcp/80-" is not a service; {EXPECTED}'),
        ("tcp/-80", f'"tcp/-80" is not a service; {EXPECTED}'),
        ("tcp/1-2-3", f'"tcp/1-2-3" is not a service; {EXPECTED}'),
        ("tcp/٨٠", f'"tcp/٨٠" is not a service; {EXPECTED}'),
        ("47/80", f'"47/80" is not a service; {EXPECTED}'),
        ("tcp/0", '"tcp/0" is not a service: 0 is not a port (1–65535)'),
        ("tcp/70000", '"tcp/70000" is not a service: 70000 is not a port (1–65535)'),
        ("tcp/90-80", '"tcp/90-80" is not a service: 90-80 is not a port (1–65535)'),
        ("tcp/" + "9" * 5000, None),
        (
            "icmp/echo",
            '"icmp/echo" is not a service: expected: address-mask-request, echo-request, info-request,'
            " timestamp-request",
        ),
        ("icmp/ehco-request", "\"icmp/ehco-request\" is not a service: did you mean 'echo-request'?"),
        ("icmp/256", None),
        ("icmp/" + "9" * 5000, None),
    ],
)
def test_a_service_that_is_none_is_told(text: str, message: str | None) -> None:
    with pytest.raises(DocumentError) as found:
        parse_service(text)
    if message:
        assert str(found.value) == message
    assert len(str(found.value)) < 500


@pytest.mark.parametrize("service", ["icmp/echo-reply", "icmp/redirect", "icmp/time-exceeded", "icmpv6/nd-redirect"])
def test_what_begins_no_flow_is_no_question(service: str) -> None:
    with pytest.raises(DocumentError, match="no flow begins with that"):
        ask(shop(), "shop/web", "shop/db", service)


def test_both_ip_versions_of_an_instance_are_one_question() -> None:
    """A rule for each version allows all there is: a packet with one address of each does not exist."""
    here, there = ("10.0.0.2", "2001:db8:0:a::2"), ("10.0.0.3", "2001:db8:0:a::3")
    both = [{"action": "allow", "source": one, "destination": other} for one, other in zip(here, there, strict=True)]
    policy = read_policy({"ingress": both}, "web.json", "")
    members = tuple(worlds.instance("alpha", name, *found) for name, found in (("one", here), ("two", there)))
    prefixes = tuple(map(ipaddress.ip_network, ("10.0.0.0/28", "2001:db8:0:a::/120")))
    subnet = worlds.Subnet("web", prefixes, True, False, members, policy)
    vpc = worlds.Vpc("alpha", tuple(map(ipaddress.ip_network, ("10.0.0.0/26", "2001:db8:0:a::/64"))), 0, (subnet,))
    answer = ask(Reach(World((vpc,))), "alpha/one", "alpha/two", "tcp/80")
    assert answer.verdict == ALLOW
    assert len(answer.stages[-1].verdicts) == 2
    half = ask(Reach(World((vpc,))), "alpha/one", "alpha/10.0.0.3", "tcp/80")
    assert half.verdict == ALLOW
    assert len(half.stages[-1].verdicts) == 1


def test_an_answer_for_machines() -> None:
    answer = ask(shop(), "shop/web", "shop/data", "tcp/23")
    line = {"from": ["web (10.0.1.2)"], "to": ["data (10.0.3.2)"], "services": ["tcp/23"]}
    assert answer_to_json(answer) == {
        "from": "shop/web", "to": "shop/data", "service": "tcp/23", "verdict": "deny",
        "deciding": f"{POLICY}/ingress/0",
        "hops": list(answer.hops),
        "stages": [
            {"gate": "topology", "verdicts": [
                {"action": "allow", "origin": "both are in VPC shop", "description": "", "traffic": [line]}]},
            {"gate": "egress of shop/web", "verdicts": [
                {"action": "allow", "origin": "no policy", "description": "", "traffic": [line]}]},
            {"gate": "ingress of shop/db", "verdicts": [
                {"action": "deny", "origin": f"{POLICY}/ingress/0", "description": "no telnet", "traffic": [line]}]},
        ],
        "allowed": [],
    }  # fmt: skip
