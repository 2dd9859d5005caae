"""A change of the world in words: what traffic is newly allowed and denied, and nothing else."""

from __future__ import annotations

import json
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import words, worlds
from vpcctl.analysis.changes import changes
from vpcctl.analysis.impact import Forecast, forecast
from vpcctl.analysis.packetset import NOTHING, Space
from vpcctl.analysis.reachability import Reach
from vpcctl.analysis.rendering import Line
from vpcctl.documents.environment import read_environment
from vpcctl.model.network import World

SSH = {"protocol": "tcp", "port": 22}
HTTP = {"protocol": "tcp", "port": 80}


def allow(**fields: object) -> dict:
    return {"action": "allow", **fields}


def subnet(name: str, prefix: str, **more: object) -> dict:
    return {"name": name, "cidr": prefix, "type": "private", **more}


def environment(web: dict | None = None, **more: object) -> World:
    """Two peered VPCs; `web` are fields of that subnet, `db` and `api` take the place of those, None leaves one out."""
    parts = [
        {"name": "web", "cidr": "10.0.1.0/24", "type": "public", **(web or {})},
        more.get("db", subnet("db", "10.0.3.0/24")),
    ]
    shop = {"name": "shop", "cidr": "10.0.0.0/16", "subnets": [part for part in parts if part],
            "publish": more.get("publish", [])}  # fmt: skip
    billing = {"name": "billing", "cidr": "10.1.0.0/16", "subnets": [more.get("api", subnet("api", "10.1.0.0/24"))]}
    document = {"vpcs": [shop, billing], "peerings": more.get("peerings", [["shop", "billing"]])}
    return read_environment(document, "env.json", json.loads)


def told(before: World, after: World) -> tuple[list[str], list[str]]:
    found = forecast(before, after, [])
    return list(map(str, found.newly_allowed)), list(map(str, found.newly_denied))


# -- exact ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(worlds.worlds(), worlds.worlds())
def test_the_words_are_all_that_changes(before: World, after: World) -> None:
    old, new = Reach(before), Reach(after)
    found = list(changes(old, new))
    touched = [{change.source.vpc, change.destination.vpc} for change in found]
    homes = [vpc.name for world in (before, after) for vpc in world.vpcs if all(vpc.name in pair for pair in touched)]
    home = homes[0] if len(set(homes)) == 1 else ""
    said = forecast(before, after, [])
    for lines, reach, part in ((said.newly_allowed, new, "newly_allowed"), (said.newly_denied, old, "newly_denied")):
        by_pair: dict[tuple[str, str], list[Line]] = defaultdict(list)
        for line in lines:
            by_pair[zone_of(line.sources[0]), zone_of(line.destinations[0])].append(line)
        expected = expectations(found, reach, part, home)
        # An instance's name says nothing of its subnet; so pairs are taken together that cannot be told apart.
        if not any("(" in word for line in lines for word in (line.sources[0], line.destinations[0])):
            assert by_pair.keys() == expected.keys()
            for pair, (source, destination, packets) in expected.items():
                assert words.packets(by_pair[pair], source, destination, reach, home) == packets


def zone_of(word: str) -> str:
    return word.split(" ")[0]


def expectations(found: list, reach: Reach, part: str, home: str) -> dict:
    expected = {}
    for change in found:
        packets: Space = getattr(change, part)
        if packets != NOTHING:
            source, destination = (reach.zones[zone.key] for zone in (change.source, change.destination))
            expected[source.name(home), destination.name(home)] = (source, destination, packets)
    return expected


@settings(max_examples=15, deadline=None)
@given(worlds.worlds(), worlds.worlds())
def test_nothing_is_newly_allowed_and_newly_denied_in_the_same_words(before: World, after: World) -> None:
    found = forecast(before, after, [])
    assert not set(found.newly_allowed) & set(found.newly_denied)
    said = str(found).splitlines()
    assert len(said) == len(set(said))


@settings(max_examples=15, deadline=None)
@given(worlds.worlds(), st.booleans())
def test_where_nothing_changes_nothing_is_said(world: World, again: bool) -> None:
    same = World(world.vpcs, world.peerings) if again else world
    found = forecast(world, same, [])
    assert found == Forecast((), (), ())
    assert str(found) == "no traffic is newly allowed or newly denied"


# -- as people read it ---------------------------------------------------------------------------------------------


def test_a_policy_in_words() -> None:
    after = environment({"policy": {"ingress": [allow(source="subnet:db", **HTTP), allow(source="subnet:db", **HTTP)]}})
    assert str(forecast(environment(), after, [("shop", "web")])) == (
        "newly denied:\n"
        "  web → web any\n"
        "  db → web any except tcp/80\n"
        "  billing/api → web any\n"
        "without effect:\n"
        "  env.json#/vpcs/0/subnets/0/policy/ingress/0 changes nothing: without it"
        " env.json#/vpcs/0/subnets/0/policy/ingress/1 would decide the same\n"
        "  env.json#/vpcs/0/subnets/0/policy/ingress/1 can never match:"
        " env.json#/vpcs/0/subnets/0/policy/ingress/0 decides all of it before"
    )


def test_names_are_short_where_all_changes_touch_one_vpc_and_whole_elsewhere() -> None:
    closed = environment({"policy": {"ingress": [allow(source="vpc:billing")]}})
    open_again = environment({"policy": {"ingress": [allow(source=["vpc:shop", "vpc:billing"])]}})
    assert told(closed, open_again) == (["web → web any", "db → web any"], [])
    # The names alone would not tell whose subnet it is.
    private = {"type": "private"}
    assert told(environment(private, db=None), environment(private, db=None, peerings=[])) == (
        [],
        ["shop/web → billing/api any", "billing/api → shop/web any"],
    )


def test_opening_and_closing_are_each_others_opposite() -> None:
    before = environment({"policy": {"ingress": [allow(source="subnet:db", **SSH)]}})
    after = environment({"policy": {"ingress": [allow(source="subnet:db", **HTTP)]}})
    assert told(before, after) == (["db → web tcp/80"], ["db → web tcp/22"])
    assert told(after, before) == (["db → web tcp/22"], ["db → web tcp/80"])


def test_a_published_port_is_new_traffic_from_the_internet() -> None:
    after = environment(publish=[{"protocol": "tcp", "port": 8080, "target_port": 80, "instance": "web"}])
    assert told(environment(), after) == (
        ["internet → web (10.0.1.2) tcp/80", "host → web (10.0.1.2) tcp/80"],
        [],
    )


def test_a_way_out_is_new_traffic_to_the_internet() -> None:
    after = environment(db=subnet("db", "10.0.3.0/24", nat_gateway=True))
    assert told(environment(), after) == (["db → internet any"], [])


def test_a_subnet_that_moves_is_told_with_the_addresses_that_it_had_and_has() -> None:
    """The zone is the same by name; what is denied is meant with the old addresses, what is allowed with the new."""
    picky = {"policy": {"ingress": [allow(source=["10.0.3.0/25", "10.0.4.0/26"])]}}
    before = environment(picky, peerings=[])
    after = environment(picky, peerings=[], db=subnet("db", "10.0.4.0/24"))
    allowed, denied = told(before, after)
    assert "db 10.0.4.0/26 → web any" in allowed
    assert "db 10.0.3.0/25 → web any" in denied
    assert "web → db 10.0.4.0/24 any" in allowed
    assert "web → db 10.0.3.0/24 any" in denied
    assert not set(allowed) & set(denied)


def test_a_vpc_that_moves_says_no_line_twice() -> None:
    before = environment(peerings=[])
    moved = read_environment(
        {"vpcs": [{"name": "shop", "cidr": "10.7.0.0/16", "subnets": [
            subnet("web", "10.7.1.0/24", type="public"), subnet("db", "10.7.3.0/24")]}]},
        "env.json", json.loads,
    )  # fmt: skip
    allowed, denied = told(before, World((*moved.vpcs, before.vpc("billing"))))
    assert len(allowed) == len(set(allowed))
    assert not set(allowed) & set(denied)
    assert "web 10.7.1.0/24 → db 10.7.3.0/24 any" in allowed
    assert "web 10.0.1.0/24 → db 10.0.3.0/24 any" in denied
    assert "web 10.7.1.0/24 → internet any" in allowed


def test_a_port_that_stays_published_is_not_told_where_its_subnet_gets_another_name() -> None:
    port = [{"protocol": "tcp", "port": 8080, "target_port": 80, "instance": "web"}]
    before = environment(publish=port, peerings=[])
    after = environment({"name": "front", "instances": [{"name": "web"}]}, publish=port, peerings=[])
    allowed, denied = told(before, after)
    assert "front → db any" in allowed
    assert "web → db any" in denied
    assert not [line for line in (*allowed, *denied) if "internet → " in line]


def test_a_subnet_that_goes_takes_its_traffic_with_it() -> None:
    allowed, denied = told(environment(), environment(db=None))
    assert allowed == []
    assert denied == [
        "web → db any", "db → web any", "db → db any", "db → billing/api any", "billing/api → db any",
    ]  # fmt: skip


def test_a_vpc_that_goes_is_told_from_the_world_that_had_it() -> None:
    before = environment(peerings=[])
    allowed, denied = told(before, before.without_vpc("billing"))
    assert (allowed, denied) == ([], ["api → api any"])
    assert told(before.without_vpc("billing"), before) == (["api → api any"], [])


def test_a_rule_of_the_later_world_is_idle_and_one_of_the_earlier_is_not_spoken_of() -> None:
    idle = {"policy": {"ingress": [allow(), allow(**SSH)]}}
    assert forecast(environment(idle), environment({"policy": {"ingress": [allow()]}}), [("shop", "web")]).idle == ()
    assert len(forecast(environment(), environment(idle), [("shop", "web")]).idle) == 1
    assert forecast(environment(), environment(), [("shop", "web")]).idle == ()
