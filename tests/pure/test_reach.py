"""Who may reach whom, against the oracle: packet by packet, and what a change of the world changes."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import worlds
from tests.worlds import address, instance, network
from vpcctl.analysis import packetset
from vpcctl.analysis.changes import changes
from vpcctl.analysis.packetset import DESTINATION, NOTHING, SOURCE, Space
from vpcctl.analysis.reachability import DEFAULT, FLOWS, HOST, Reach, Zone
from vpcctl.model import oracle
from vpcctl.model.host import Host
from vpcctl.model.network import ConflictError, Peering, Publication, Subnet, Vpc, World, uplink_pair
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import (
    ICMP,
    ICMP_PROTOCOLS,
    ICMPV6,
    PORT_PROTOCOLS,
    TCP,
    UDP,
    Action,
    Direction,
    Endpoint,
    Policy,
    Rule,
)

POINTS = 100
Point = tuple[int, int, int, int]

# -- points --------------------------------------------------------------------------------------------------------

# Wherever a rule of tests.worlds begins or ends, and beside it.
EDGES = sorted(
    {
        ipaddress.ip_address(number) if version == 4 else ipaddress.IPv6Address(number)
        for prefix in worlds.NETWORKS
        for version in (prefix.version,)
        for edge in (int(prefix.network_address), int(prefix.broadcast_address))
        for number in (edge - 1, edge, edge + 1)
        if 0 <= number < 1 << prefix.max_prefixlen
    },
    key=packetset.number,
)
PROTOCOLS = (TCP, TCP, UDP, 132, ICMP, ICMPV6, 47, 0, 255, 5, 7)


def populated(world: World, chance: random.Random) -> World:
    """The world with more instances in each subnet, anywhere in it and of names that no policy knows."""
    for vpc in world.vpcs:
        for subnet in vpc.subnets:
            taken = {one for member in subnet.instances for one in member.addresses}
            offsets = {3, 4, *(chance.randrange(1 << 32) for _ in range(3))}
            free = {
                prefix.network_address + 2 + offset % (prefix.num_addresses - 3)
                for prefix in subnet.prefixes
                for offset in (*offsets, prefix.num_addresses - 4)
            } - taken
            added = [
                instance(vpc.name, f"{subnet.name}-passer-by-{n}", str(one))
                for n, one in enumerate(sorted(free, key=str))
            ]
            vpc = vpc.with_subnet(dataclasses.replace(subnet, instances=(*subnet.instances, *added)))
        world = world.with_vpc(vpc)
    return world


def point_in(world: World, chance: random.Random, source: Zone, destination: Zone) -> Point:
    """A packet from one zone to another, near what the rules tell apart."""
    protocol = chance.choice(PROTOCOLS)
    port = chance.choice(worlds.TYPES[protocol] if protocol in ICMP_PROTOCOLS else worlds.PORTS)
    there = chance.choice(somewhere(world, destination))
    vpc = next((one for one in world.vpcs if one.name == destination.vpc), None)
    if source.vpc is None and vpc and vpc.publications and chance.random() < 0.7:
        item = chance.choice(vpc.publications)
        protocol, port = item.protocol, worlds.near(item.targets, chance)
        if vpc.subnet_of(item.instance).name == destination.subnet:
            there = vpc.instance(item.instance).addresses[0]
    called = [item for other in world.vpcs for item in other.publications]
    if source.vpc is not None and destination.vpc is None and called and chance.random() < 0.5:
        item = chance.choice(called)
        protocol, port = item.protocol, worlds.near(item.ports, chance)
        there = item.address or there
    # Mostly of one IP version: others are no packets, which is a case of its own.
    alike = [one for one in somewhere(world, source) if one.version == there.version or chance.random() < 0.1]
    here = chance.choice(alike or somewhere(world, source))
    if source.vpc is None and vpc and chance.random() < 0.1:
        here = uplink_pair(world.transit, vpc.index)[0]
    return (packetset.number(here), packetset.number(there), protocol, port)


def somewhere(world: World, zone: Zone) -> list[worlds.Address]:
    """The instances' addresses of a subnet, and near the edges of prefixes in the internet."""
    if zone.vpc is None:
        return [*EDGES, *worlds.OUTSIDE, *worlds.NOBODY]
    subnet = world.vpc(zone.vpc).subnet(str(zone.subnet))
    return [one for member in subnet.instances for one in member.addresses]


def flow_of(source: Zone, destination: Zone, point: Point) -> Flow:
    sender, receiver, protocol, port = point
    places = Place(source.vpc, packetset.address(sender)), Place(destination.vpc, packetset.address(receiver))
    return Flow(*places, protocol, port if protocol in PORT_PROTOCOLS | ICMP_PROTOCOLS else None)


# -- what passes ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.booleans().flatmap(worlds.worlds), worlds.hosts, st.integers(0, 2**32))
def test_a_packet_passes_exactly_if_the_oracle_allows_it(world: World, host: Host, seed: int) -> None:
    chance = random.Random(seed)
    reach, full = Reach(world, host), populated(world, chance)
    zones = [zone for zone in reach.zones.values() if not zone.is_host]
    passing = functools.cache(reach.allowed)
    for _ in range(POINTS):
        source, destination = chance.choice(zones), chance.choice(zones)
        point = point_in(full, chance, source, destination)
        flow = flow_of(source, destination, point)
        expected = oracle.decide(full, flow, host).allowed
        # Addresses outside belong to the internet or to the host.
        pairs = [(one, other) for one in beside(reach, source) for other in beside(reach, destination)]
        assert any(point in passing(*pair) for pair in pairs) is expected, flow


def beside(reach: Reach, zone: Zone) -> list[Zone]:
    """The zone; for the internet also the host, if it is a zone."""
    host = reach.zones.get((None, HOST))
    return [zone, host] if zone.vpc is None and host is not None else [zone]


def test_the_points_meet_both_answers_on_every_kind_of_path() -> None:
    """Else the property above would say nothing."""
    met = set()
    chance = random.Random(1)
    full = populated(village(), chance)
    for source, destination in Reach(full).pairs():
        for _ in range(POINTS):
            flow = flow_of(source, destination, point_in(full, chance, source, destination))
            met.add((source.vpc, destination.vpc, oracle.decide(full, flow).allowed))
    ways = {("alpha", "alpha"), ("alpha", "beta"), ("beta", "alpha"), ("alpha", None), (None, "alpha")}
    assert {(*way, allowed) for way in ways for allowed in (True, False)} <= met


@settings(max_examples=30, deadline=None)
@given(st.booleans().flatmap(worlds.worlds), worlds.hosts)
def test_only_flows_between_the_zones_pass(world: World, host: Host) -> None:
    reach = Reach(world, host)
    meeting = {(source.key, destination.key) for source, destination in reach.pairs()}
    for source in reach.zones.values():
        for destination in reach.zones.values():
            passing = reach.allowed(source, destination)
            assert not passing - FLOWS
            assert not passing - reach.carried(source, destination)
            if passing:
                assert (source.key, destination.key) in meeting
                home = str(source.vpc or destination.vpc)
                zones = ((source, SOURCE), (destination, DESTINATION))
                ends = [reach.addresses(zone, home, end) for zone, end in zones]
                assert not passing - Space.of(*ends, None, None)
                assert reach.path(source, destination)[0] is Action.ALLOW


@settings(max_examples=30, deadline=None)
@given(worlds.worlds())
def test_what_decides_is_the_first_layer_that_matches(world: World) -> None:
    reach = Reach(world)
    for vpc in world.vpcs:
        for subnet in vpc.subnets:
            for direction in Direction:
                found = reach.gate(vpc.name, subnet.name, direction)
                written = [one for one in (vpc.policy, subnet.policy) if one is not None]
                if not written:
                    assert found is None
                    continue
                rules = [rule for one in written for rule in one.rules(direction) or ()]
                assert len(found.ranges) == len(rules)
                layers = [Space.of(*ranges) for ranges in found.ranges]
                for (source, destination, protocol, port), decision in packetset.boxes(found.deciding):
                    corner = (source[0], destination[1], protocol[0], port[1])
                    matching = [n for n, layer in enumerate(layers) if corner in layer]
                    assert decision == (matching[0] if matching else DEFAULT)
                    action = rules[decision].action if matching else found.policy.default(direction)
                    assert found.action(decision) is action
                    assert (corner in found.allowed) is (action is Action.ALLOW)


def test_a_limit_is_taken_as_not_exceeded() -> None:
    limited = rule(Action.ALLOW, TCP, (80, 80), limit=worlds.Limit(1, "second"))
    reach = Reach(village(web=policy(ingress=[limited])))
    db, web = reach.zones["alpha", "db"], reach.zones["alpha", "web"]
    assert reach.allowed(db, web) == reach.carried(db, web) & Space.of(None, None, [(TCP, TCP)], [(80, 80)])


def test_a_rule_means_its_icmp_types_alone() -> None:
    reach = Reach(village(web=policy(ingress=[rule(Action.ALLOW, ICMP, icmp_types=((13, 13), (3, 3)))])))
    db, web = reach.zones["alpha", "db"], reach.zones["alpha", "web"]
    # Type 3 is an error, which belongs to another flow and begins none.
    assert reach.allowed(db, web) == reach.carried(db, web) & Space.of(None, None, [(ICMP, ICMP)], [(13, 13)])


def test_both_ip_versions_pass_and_never_mix() -> None:
    dual = World((Vpc("alpha", (network("10.0.0.0/26"), network("2001:db8:0:a::/64")), 0,
                      (Subnet("web", (network("10.0.0.0/28"), network("2001:db8:0:a::/120")), True),)),))  # fmt: skip
    reach = Reach(dual)
    web = reach.zones["alpha", "web"]
    four, six = (packetset.number(address(text)) for text in ("10.0.0.2", "2001:db8:0:a::2"))
    passing = reach.allowed(web, web)
    assert (four, four, TCP, 80) in passing
    assert (six, six, TCP, 80) in passing
    assert (four, six, TCP, 80) not in passing
    assert (six, four, TCP, 80) not in passing
    assert (four, four, ICMP, 8) in passing
    assert (six, six, ICMPV6, 128) in passing
    assert (four, four, ICMPV6, 128) not in passing
    assert (six, six, ICMP, 8) not in passing


# -- reasons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "destination", "said"),
    [
        (("alpha", "web"), ("alpha", "db"), (Action.ALLOW, "both are in VPC alpha")),
        (("alpha", "web"), ("beta", "web"), (Action.ALLOW, "VPCs alpha and beta are peered")),
        (("alpha", "web"), ("loner", "web"), (Action.DENY, "VPCs alpha and loner are not peered")),
        (("alpha", "web"), (None, None), (Action.ALLOW, "subnet web has a way out")),
        (("alpha", "db"), (None, None), (Action.DENY, "subnet db is private and has no NAT gateway")),
        ((None, None), ("alpha", "web"), (Action.ALLOW, "a published port")),
        ((None, None), ("alpha", "db"), (Action.DENY, "nothing is published there")),
        ((None, HOST), ("alpha", "web"), (Action.ALLOW, "a published port")),
        ((None, HOST), ("alpha", "db"), (Action.DENY, "nothing is published there")),
        ((None, None), (None, None), (Action.DENY, "neither end is in a VPC")),
    ],
)
def test_a_path_is_there_for_a_reason(source: tuple, destination: tuple, said: tuple[Action, str]) -> None:
    reach = Reach(village())
    ends = reach.zones[source], reach.zones[destination]
    assert reach.path(*ends) == said
    assert bool(reach.carried(*ends)) is (said[0] is Action.ALLOW)


def test_zones_are_named_as_a_vpc_sees_them() -> None:
    zones = Reach(village()).zones
    assert zones["alpha", "web"].name("alpha") == "web"
    assert zones["alpha", "web"].name("beta") == zones["alpha", "web"].name("") == "alpha/web"
    assert zones[None, None].name("alpha") == "internet"


def test_pairs_are_those_with_a_path_between_them() -> None:
    reach = Reach(village())
    pairs = {(source.vpc, destination.vpc) for source, destination in reach.pairs()}
    assert pairs == {
        ("alpha", "alpha"), ("alpha", "beta"), ("beta", "alpha"), ("beta", "beta"), ("loner", "loner"),
        ("alpha", None), ("beta", None), ("loner", None), (None, "alpha"), (None, "beta"), (None, "loner"),
    }  # fmt: skip
    host = [(source.key, destination.key) for source, destination in reach.pairs() if source.is_host]
    assert host == [((None, HOST), ("alpha", "web")), ((None, HOST), ("alpha", "db"))]
    # The host's addresses are unknown here, so none can be called.
    assert not [pair for pair in reach.pairs() if pair[1].is_host]
    touching = {(source.vpc, destination.vpc) for source, destination in reach.pairs("loner")}
    assert touching == {("loner", "loner"), ("loner", None), (None, "loner")}


# -- changes -------------------------------------------------------------------------------------------------------


def rule(action: Action, protocol: int | None = None, *ports: tuple[int, int], **more: object) -> Rule:
    return Rule(action, protocol, ports or None, **more)


def policy(ingress: list[Rule] | None = None, egress: list[Rule] | None = None, **more: object) -> Policy:
    found = {
        direction: None if rules is None else worlds.with_origins(rules, Direction(direction))
        for direction, rules in (("ingress", ingress), ("egress", egress))
    }
    return Policy(**found, **more)


def village(**policies: Policy) -> World:
    """Two peered VPCs and a third; `policies` by subnet of ``alpha``, of which one is public and serves a port."""
    web = Subnet(
        "web",
        (network("10.0.0.0/28"),),
        True,
        False,
        (instance("alpha", "web", "10.0.0.2"), instance("alpha", "web-two", "10.0.0.3")),
        policies.get("web"),
    )
    db = Subnet("db", (network("10.0.0.16/29"),), False, False, (instance("alpha", "db", "10.0.0.18"),),
                policies.get("db"))  # fmt: skip
    alpha = Vpc("alpha", (network("10.0.0.0/26"),), 0, (web, db), (Publication(TCP, 8000, "web", 80),),
                (("office", (network("203.0.113.0/25"),)),))  # fmt: skip
    there = Subnet("web", (network("10.0.0.64/30"),), True, False, (instance("beta", "web", "10.0.0.66"),))
    beta = Vpc("beta", (network("10.0.0.64/26"),), 1, (there,))
    alone = Subnet("web", (network("10.0.0.0/28"),), True, False, (instance("loner", "web", "10.0.0.2"),))
    loner = Vpc("loner", (network("10.0.0.0/25"),), 2, (alone,))
    return World((alpha, beta, loner), (Peering("alpha", "beta"),))


def with_subnet(world: World, vpc: str, subnet: str, **more: object) -> World:
    found = world.vpc(vpc)
    return world.with_vpc(found.with_subnet(dataclasses.replace(found.subnet(subnet), **more)))


def with_vpc(world: World, vpc: str, **more: object) -> World:
    return world.with_vpc(dataclasses.replace(world.vpc(vpc), **more))


def truly(before: World, after: World) -> dict[tuple, tuple[Space, Space]]:
    """What is newly allowed and denied between any two zones, without any short way."""
    old, new = Reach(before), Reach(after)
    keys = dict.fromkeys([*old.zones, *new.zones])
    found = {}
    for source in keys:
        for destination in keys:
            passing = [
                reach.allowed(reach.zones[source], reach.zones[destination])
                if source in reach.zones and destination in reach.zones
                else NOTHING
                for reach in (old, new)
            ]
            if passing[0] != passing[1]:
                found[source, destination] = (passing[1] - passing[0], passing[0] - passing[1])
    return found


def told(before: World, after: World) -> dict[tuple, tuple[Space, Space]]:
    found = {}
    for change in changes(Reach(before), Reach(after)):
        key = change.source.key, change.destination.key
        assert key not in found, "a pair is told twice"
        found[key] = (change.newly_allowed, change.newly_denied)
    return found


@settings(max_examples=30, deadline=None)
@given(worlds.worlds(), worlds.worlds())
def test_changes_are_exact_between_any_two_worlds(before: World, after: World) -> None:
    assert told(before, after) == truly(before, after)


def small_changes(world: World) -> st.SearchStrategy[World]:
    """The world with one thing changed."""
    vpc = st.sampled_from(world.vpcs)
    possible: list[st.SearchStrategy] = [
        vpc.map(lambda one: world.without_vpc(one.name)),
        vpc.map(lambda one: with_vpc(world, one.name, publications=one.publications[1:])),
        vpc.map(
            lambda one: with_vpc(world, one.name, sets=() if one.sets else (("office", (network("10.0.0.0/8"),)),))
        ),
        vpc.map(lambda one: with_vpc(world, one.name, publications=(), subnets=one.subnets[1:])),
        st.tuples(vpc, st.none() | worlds.policies()).map(lambda pair: with_vpc(world, pair[0].name, policy=pair[1])),
        vpc.map(lambda one: with_vpc(world, one.name, policy=_shortened(one.policy))),
        st.just(dataclasses.replace(world, peerings=())),
        st.just(dataclasses.replace(world, transit=network("203.0.113.0/24"))),
    ]
    places = [(one.name, subnet) for one in world.vpcs for subnet in one.subnets]
    if places:
        place = st.sampled_from(places)
        possible += [
            st.tuples(place, st.none() | worlds.policies()).map(
                lambda pair: with_subnet(world, pair[0][0], pair[0][1].name, policy=pair[1])
            ),
            place.map(lambda pair: with_subnet(world, pair[0], pair[1].name, public=not pair[1].public)),
            place.map(lambda pair: with_subnet(world, pair[0], pair[1].name, instances=_moved(pair[1]))),
        ]
    return st.one_of(possible)


def _shortened(policy: Policy | None) -> Policy:
    """The policy without the first rule for ingress."""
    policy = policy or Policy(ingress=())
    return dataclasses.replace(policy, ingress=(policy.ingress or ())[1:])


def _moved(subnet: Subnet) -> tuple:
    """The instances of a subnet, each at another address."""
    last = subnet.prefixes[0].broadcast_address
    return tuple(
        dataclasses.replace(one, addresses=(last - 1 - number,)) for number, one in enumerate(subnet.instances)
    ) if subnet.prefixes[0].num_addresses >= 2 * len(subnet.instances) + 4 else subnet.instances  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(worlds.worlds().flatmap(lambda world: st.tuples(st.just(world), small_changes(world), st.booleans())))
def test_changes_are_exact_after_a_small_change(case: tuple[World, World, bool]) -> None:
    before, after, undone = case
    pair = (after, before) if undone else (before, after)
    assert told(*pair) == truly(*pair)


FROM_INSTANCE = policy(ingress=[rule(Action.ALLOW, sources=(Endpoint("instance", "web"),))])
FROM_OFFICE = policy(ingress=[rule(Action.ALLOW, sources=(Endpoint("set", "office"),))])
TO_PEER = policy(egress=[rule(Action.DENY, destinations=(Endpoint("vpc", "beta"),)), rule(Action.ALLOW)])
WEB, DB, THERE, OUT = ("alpha", "web"), ("alpha", "db"), ("beta", "web"), (None, None)
# The host itself calls the ports that are published.
ITSELF = (None, "host")


@pytest.mark.parametrize(
    ("before", "change", "pairs"),
    [
        pytest.param(
            village(), lambda world: with_subnet(world, "alpha", "db", policy=policy(ingress=[])),
            {(DB, DB), (WEB, DB), (THERE, DB)}, id="a policy",
        ),
        pytest.param(
            village(web=policy(ingress=[], egress=[])),
            lambda world: with_subnet(world, "alpha", "web", policy=policy(ingress=[], egress=[rule(Action.ALLOW)])),
            {(WEB, DB), (WEB, THERE), (WEB, OUT)}, id="the policy of the source",
        ),
        pytest.param(
            village(web=FROM_OFFICE),
            lambda world: with_vpc(world, "alpha", sets=(("office", (network("0.0.0.0/0"),)),)),
            {(OUT, WEB), (WEB, WEB), (DB, WEB), (THERE, WEB), (ITSELF, WEB)}, id="a set of the VPC",
        ),
        pytest.param(
            village(db=FROM_INSTANCE),
            lambda world: with_subnet(world, "alpha", "web", instances=(instance("alpha", "web", "10.0.0.9"),)),
            {(WEB, DB), (OUT, WEB), (ITSELF, WEB)}, id="where an instance is",
        ),
        pytest.param(
            village(), lambda world: dataclasses.replace(world, peerings=()),
            {(WEB, THERE), (DB, THERE), (THERE, WEB), (THERE, DB), (WEB, OUT), (THERE, OUT), (OUT, WEB)},
            id="a peering",
        ),
        pytest.param(
            village(web=TO_PEER), lambda world: with_vpc(world, "beta", prefixes=(network("10.0.0.64/27"),)),
            {(WEB, OUT), (OUT, WEB), (THERE, OUT)}, id="the prefix of a peer",
        ),
        pytest.param(
            village(), lambda world: with_subnet(world, "alpha", "db", nat_gateway=True),
            {(DB, OUT)}, id="a NAT gateway",
        ),
        pytest.param(
            village(), lambda world: with_subnet(world, "alpha", "web", public=False), {(WEB, OUT)}, id="a way out",
        ),
        pytest.param(
            village(), lambda world: with_vpc(world, "alpha", publications=(Publication(TCP, 8000, "web", 81),)),
            {(OUT, WEB), (ITSELF, WEB)}, id="a published port",
        ),
        pytest.param(
            village(), lambda world: with_vpc(world, "loner", prefixes=(network("10.0.0.0/24"),)),
            {(("loner", "web"), OUT)}, id="the prefix of the VPC itself",
        ),
        pytest.param(
            village(), lambda world: with_vpc(world, "alpha", subnets=world.vpc("alpha").subnets[:1]),
            {(DB, DB), (WEB, DB), (DB, WEB), (THERE, DB), (DB, THERE)}, id="a subnet gone",
        ),
        pytest.param(
            village(), lambda world: world.without_vpc("loner"),
            {(("loner", "web"), ("loner", "web")), (("loner", "web"), OUT)}, id="a VPC gone",
        ),
    ],
)  # fmt: skip
def test_no_change_is_overlooked(before: World, change: Callable[[World], World], pairs: set) -> None:
    """Each of these is one thing that the short way must look at; undoing it is a change as well."""
    after = change(before)
    assert truly(before, after).keys() == pairs
    assert told(before, after) == truly(before, after)
    assert told(after, before) == truly(after, before)


def test_nothing_changes_where_only_words_do() -> None:
    one = policy(ingress=[rule(Action.ALLOW, TCP, (80, 80)), rule(Action.ALLOW, TCP, (81, 81))])
    other = policy(ingress=[rule(Action.ALLOW, TCP, (80, 81), description="the same")], file="other.json")
    assert list(changes(Reach(village(web=one)), Reach(village(web=other)))) == []
    assert list(changes(Reach(village()), Reach(village()))) == []


def test_a_change_says_what_exactly_is_new() -> None:
    before = village(web=policy(ingress=[rule(Action.ALLOW, TCP, (80, 90))]))
    after = village(web=policy(ingress=[rule(Action.ALLOW, TCP, (85, 95))]))
    for change in changes(Reach(before), Reach(after)):
        whole = Reach(after).carried(change.source, change.destination)
        assert change.newly_allowed == whole & Space.of(None, None, [(TCP, TCP)], [(91, 95)])
        assert change.newly_denied == whole & Space.of(None, None, [(TCP, TCP)], [(80, 84)])


def test_a_zone_that_is_not_known_is_an_error() -> None:
    with pytest.raises(ConflictError, match="subnet 'dbb' not found"):
        Reach(village()).gate("alpha", "dbb", Direction.INGRESS)
