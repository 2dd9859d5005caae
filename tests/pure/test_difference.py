"""No field of a world can change unnoticed: each is changed in turn, and so is one that nobody knows yet."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest

from vpcctl.analysis.changes import Change, changes
from vpcctl.analysis.reachability import Reach
from vpcctl.compiler import compile_host, compile_vpc
from vpcctl.compiler.view import looks_alike, same_for_host
from vpcctl.documents.diff import UNTOLD, object_changes, same_words
from vpcctl.model.difference import differing
from vpcctl.model.network import Instance, Invariant, Peering, Publication, Subnet, Vpc, World
from vpcctl.model.policy import TCP, UDP, Action, Direction, Endpoint, Limit, Origin, Policy, Rule
from vpcctl.values import dataclass

network, address = ipaddress.ip_network, ipaddress.ip_address
GRE, ESP = 47, 50

WEB = Instance("web", (address("10.0.0.2"),), "02:00:00:00:00:01")
RULE = Rule(Action.ALLOW, TCP, ((80, 80),), sources=(Endpoint("set", "office"),), origin=Origin("a.json", "/ingress/0"))
POLICY = Policy((RULE,), None, ((Direction.INGRESS, Action.DENY),), file="a.json")
SUBNET = Subnet("web", (network("10.0.0.0/28"),), True, instances=(WEB,), policy=POLICY)
DB = Subnet(
    "db", (network("10.0.0.16/28"),), False, instances=(Instance("db", (address("10.0.0.18"),), "02:00:00:00:00:02"),)
)
PUBLICATION = Publication(TCP, 8080, "web", 80)
OFFICE = (("office", (network("203.0.113.0/24"),)),)
ONE = Vpc("one", (network("10.0.0.0/26"),), 0, (SUBNET, DB), (PUBLICATION,), OFFICE, nat_protocols=(GRE,))
TWO = Vpc("two", (network("10.0.1.0/26"),), 1, (Subnet("api", (network("10.0.1.0/28"),), True),))
THREE = Vpc("three", (network("10.0.2.0/26"),), 2)
BASE = World((ONE, TWO, THREE), (Peering("one", "two"),))

# Another value for every field of every kind; a name makes the object another one.
OTHERS: dict[type, dict[str, Any]] = {
    World: {
        "vpcs": (ONE, TWO),
        "peerings": (*BASE.peerings, Peering("one", "three")),
        "transit": network("100.65.0.0/16"),
        "invariants": (Invariant("internet", "one/web", "any", "deny"),),
    },
    Vpc: {
        "name": "uno",
        "prefixes": (network("10.0.0.0/25"),),
        "index": 7,
        "subnets": (SUBNET,),
        "publications": (),
        "sets": (("office", (network("203.0.113.0/25"),)),),
        "max_flows": 1000,
        "max_ports": 1000,
        "nat_protocols": (GRE, ESP),
        "hardened": True,
        "mtu": 1400,
        "policy": Policy((), file="vpc.json"),
    },
    Subnet: {
        "name": "www",
        "prefixes": (network("10.0.0.0/29"),),
        "public": False,
        "nat_gateway": True,
        "instances": (WEB, Instance("web-2", (address("10.0.0.3"),), "02:00:00:00:00:03")),
        "policy": None,
        "released": (address("10.0.0.9"),),
    },
    Instance: {"name": "www", "addresses": (address("10.0.0.9"),), "mac": "02:00:00:00:00:09"},
    Publication: {
        "protocol": UDP,
        "port": 8081,
        "instance": "db",
        "target_port": 81,
        "count": 2,
        "address": address("192.0.2.1"),
        "entry": 9000,
    },
    Policy: {
        "ingress": (),
        "egress": (),
        "defaults": (),
        "sets": (("own", (network("203.0.113.0/25"),)),),
        "description": "of the web",
        "file": "b.json",
        "pointer": "/0",
    },
    Rule: {
        "action": Action.REJECT,
        "protocol": UDP,
        "ports": ((81, 81),),
        "icmp_types": ((8, 8),),
        "sources": (Endpoint("internet"),),
        "destinations": (Endpoint("subnet", "web"),),
        "log": True,
        "limit": Limit(1, "second"),
        "description": "http",
        "origin": Origin("b.json", "/ingress/0"),
    },
}
VALUES: dict[type, Any] = {
    World: BASE, Vpc: ONE, Subnet: SUBNET, Instance: WEB, Publication: PUBLICATION, Policy: POLICY, Rule: RULE,
}  # fmt: skip


def holding(value: Any) -> World:
    """The world with `value` in the place of the value of its kind."""
    if isinstance(value, World):
        return value
    if isinstance(value, Vpc):
        pairs = tuple(Peering.between(value.name, "two") for _ in BASE.peerings)
        return dataclasses.replace(BASE, vpcs=(value, TWO, THREE), peerings=pairs)
    if isinstance(value, Publication):
        return holding(dataclasses.replace(ONE, publications=(value,)))
    if isinstance(value, Subnet):
        return holding(dataclasses.replace(ONE, subnets=(value, DB)))
    if isinstance(value, Policy):
        return holding(dataclasses.replace(SUBNET, policy=value))
    if isinstance(value, Rule):
        return holding(dataclasses.replace(POLICY, ingress=(value,)))
    instance: Instance = value
    kept = tuple(dataclasses.replace(item, instance=instance.name) for item in ONE.publications)
    subnets = (dataclasses.replace(SUBNET, instances=(instance,)), DB)
    return holding(dataclasses.replace(ONE, subnets=subnets, publications=kept))


def variations() -> Iterator[tuple[type, str, World]]:
    for kind, fields in OTHERS.items():
        for name, other in fields.items():
            yield kind, name, holding(dataclasses.replace(VALUES[kind], **{name: other}))


each = pytest.mark.parametrize(
    ("kind", "field", "world"), [pytest.param(*one, id=f"{one[0].__name__}.{one[1]}") for one in variations()]
)


@functools.cache
def wider(kind: type) -> type:
    """The kind with one more field, as a later version may have it."""
    more = type(f"Wider{kind.__name__}", (kind,), {"__annotations__": {"colour": str}, "colour": ""})
    return dataclass(frozen=True, slots=True)(more)


def painted(value: Any, colour: str) -> Any:
    fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.init}
    return wider(type(value))(**fields, colour=colour)


@pytest.mark.parametrize("kind", OTHERS)
def test_every_field_has_another_value_here(kind: type) -> None:
    assert set(OTHERS[kind]) == {field.name for field in dataclasses.fields(kind) if field.compare}


@each
def test_every_field_that_changes_is_told(kind: type, field: str, world: World) -> None:
    expected = field not in UNTOLD.get(kind, set())
    assert bool(object_changes(BASE, world)) is expected
    assert bool(object_changes(world, BASE)) is expected
    assert object_changes(world, world) == []


@pytest.mark.parametrize("kind", OTHERS)
def test_a_field_that_nobody_knows_is_told(kind: type) -> None:
    red, blue = (holding(painted(VALUES[kind], colour)) for colour in ("red", "blue"))
    assert object_changes(red, red) == []
    assert object_changes(red, blue) != []


def test_a_field_that_nobody_knows_is_told_by_its_name() -> None:
    red, blue = (holding(painted(ONE, colour)) for colour in ("red", "blue"))
    assert list(map(str, object_changes(red, blue))) == ["~ VPC one: its colour"]


def test_an_instance_that_moves_is_told_once() -> None:
    moved = dataclasses.replace(WEB, addresses=(address("10.0.0.9"),), mac="02:00:00:00:00:09")
    assert list(map(str, object_changes(BASE, holding(moved)))) == ["~ instance one/web: moves to 10.0.0.9"]


def test_policies_say_the_same_only_if_every_field_does() -> None:
    places = {"file", "pointer"}
    for field, other in OTHERS[Policy].items():
        assert same_words(POLICY, dataclasses.replace(POLICY, **{field: other})) is (field in places), field
    for field, other in OTHERS[Rule].items():
        changed = dataclasses.replace(POLICY, ingress=(dataclasses.replace(RULE, **{field: other}),))
        assert same_words(POLICY, changed) is (field == "origin"), field
    assert not same_words(painted(POLICY, "red"), painted(POLICY, "blue"))


# -- what is compiled again ----------------------------------------------------------------------------------------


@each
def test_a_ruleset_stands_only_where_it_would_be_the_same(kind: type, field: str, world: World) -> None:
    for vpc in world.vpcs:
        if looks_alike(BASE, world, vpc):
            assert compile_vpc(BASE, vpc.name, "tag").fingerprint == compile_vpc(world, vpc.name, "tag").fingerprint
        if kind is Vpc and field in {"max_flows", "hardened", "index"} and vpc.name == "two":
            assert looks_alike(BASE, world, vpc), "compiled again for nothing"
        assert field != "invariants" or looks_alike(BASE, world, vpc), "compiled again for nothing"


@pytest.mark.parametrize("colours", [("red", "red"), ("red", "blue")])
def test_a_field_that_nobody_knows_has_its_ruleset_compiled_again(colours: tuple[str, str]) -> None:
    for value in (BASE, ONE, SUBNET, RULE):
        before, after = (holding(painted(value, colour)) for colour in colours)
        for vpc in after.vpcs:
            if value is BASE or vpc.name == "one" or (value is ONE and vpc.name == "two"):
                assert looks_alike(before, after, vpc) is (colours[0] == colours[1]), (value, vpc.name)


@each
def test_the_hosts_table_is_the_same_where_it_is_said_to_be(kind: type, field: str, world: World) -> None:
    if same_for_host(BASE, world):
        assert compile_host(BASE, "tag").fingerprint == compile_host(world, "tag").fingerprint
    if kind in (Subnet, Policy, Rule) or field == "invariants":
        assert same_for_host(BASE, world), "the host's services are looked up for nothing"


@pytest.mark.parametrize("colours", [("red", "red"), ("red", "blue")])
def test_a_field_of_a_vpc_that_nobody_knows_may_concern_the_host(colours: tuple[str, str]) -> None:
    for value in (BASE, ONE):
        before, after = (holding(painted(value, colour)) for colour in colours)
        assert same_for_host(before, after) is (colours[0] == colours[1])


# -- what is asked again -------------------------------------------------------------------------------------------


def computed(before: Reach, after: Reach) -> list[tuple[Any, ...]]:
    """Every change of traffic, found by computing all."""
    keys = {(one.key, other.key) for reach in (before, after) for one, other in reach.pairs()}
    found = []
    for source, destination in keys:
        spaces = [
            reach.allowed(reach.zones[source], reach.zones[destination])
            if source in reach.zones and destination in reach.zones
            else None
            for reach in (before, after)
        ]
        if spaces[0] != spaces[1] and any(spaces):
            found.append((source, destination))
    return sorted(found, key=str)


@each
def test_no_change_of_traffic_is_missed(kind: type, field: str, world: World) -> None:
    def places(change: Change) -> tuple[Any, ...]:
        return change.source.key, change.destination.key

    found = sorted(map(places, changes(Reach(BASE), Reach(world))), key=str)
    assert found == computed(Reach(BASE), Reach(world))


def test_a_protocol_that_is_translated_now_is_newly_allowed() -> None:
    after = holding(dataclasses.replace(ONE, nat_protocols=(GRE, ESP)))
    (change,) = changes(Reach(BASE), Reach(after))
    assert (change.source.name("one"), change.destination.name("one")) == ("web", "internet")
    assert change.newly_allowed
    assert not change.newly_denied


def test_equal_values_do_not_differ() -> None:
    assert differing(ONE, dataclasses.replace(ONE)) == set()
    assert differing(ONE, dataclasses.replace(ONE, index=4, hardened=True)) == {"index", "hardened"}
