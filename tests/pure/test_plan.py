"""The order of steps, and the items that they are about."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

from tests.story import STORY, told
from vpcctl.model.network import World
from vpcctl.resources import kinds, topology
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.kinds import (
    RANK,
    REGISTRY,
    Address,
    Bridge,
    FdbEntry,
    Forwarding,
    Item,
    LinkSetting,
    LinkUp,
    Namespace,
    Neighbour,
    Open,
    Port,
    Route,
    Ruleset,
    Setting,
    Veth,
)
from vpcctl.resources.plan import Ensure, Plan, Remove, diff, resets

STATE_ID = "0a1b2c3d"


def snapshot(world: World) -> list[Item]:
    return [item for scope in topology.snapshot(world, STATE_ID, {}).values() for item in scope]


def words(found: Plan) -> list[str]:
    return [str(step) for step in found.steps]


def ruleset(namespace: str | None, fingerprint: str = "aa") -> Ruleset:
    return Ruleset(namespace, ("inet",), "tag", fingerprint, 1)


ROUTER = Namespace("a-router", "tag")
INSTANCE = Namespace("a-web", "tag")
BRIDGE = Bridge("a-router", "br-web", "02:00:00:00:00:01", "alt", "tag")
LINK = Veth("a-router", "in-web", "02:00:00:00:00:02", "a-web", "eth0", "02:00:00:00:00:03", "tag")
UPLINK = Veth("a-router", "uplink", "02:00:00:00:00:04", None, "vpc-a", "02:00:00:00:00:05", "tag")
PORT = Port("a-router", "in-web", "br-web")
ENTRY = FdbEntry("a-router", "in-web", "02:00:00:00:00:03")
HELD = [PORT, ENTRY, Address("a-router", "br-web", "10.0.0.1/28"), LinkUp("a-router", "br-web"),
        Route("a-web", "0.0.0.0/0", "10.0.0.1", "eth0"), Open("a-router", "in-web")]  # fmt: skip
EVERYTHING = [ROUTER, INSTANCE, ruleset("a-router"), ruleset(None), BRIDGE, LINK, UPLINK, *HELD]


# -- the order -----------------------------------------------------------------------------------------------------


def declared() -> set[type[Item]]:
    """Every kind of object for which there is a class."""
    classes = [one for one in vars(kinds).values() if isinstance(one, type) and issubclass(one, Item)]
    return {one for one in classes if one.identity}


def test_every_kind_has_one_place_in_the_registry() -> None:
    found = [kind.item for kind in REGISTRY]
    assert set(found) == declared()
    assert len(found) == len(declared()) == len({kind.name for kind in REGISTRY})


@pytest.mark.parametrize("name", [name for name, _ in STORY])
def test_things_are_made_in_the_order_of_their_kinds(name: str) -> None:
    made = diff([], snapshot(told(name)))
    assert all(isinstance(step, Ensure) for step in made.steps)
    items = [step.item for step in made.steps]
    links = [item for item in items if RANK[type(item)] <= RANK[Veth]]
    opened = [item for item in items if isinstance(item, Open)]
    between = items[len(links) : len(items) - len(opened)]
    assert items == [*links, *between, *opened]
    # What stands on links comes namespace by namespace.
    namespaces = list(dict.fromkeys(item.namespace for item in between))
    parts = [[item for item in between if item.namespace == one] for one in namespaces]
    assert between == [item for part in parts for item in part]
    for some in (links, *parts):
        ranks = [RANK[type(item)] for item in some]
        assert ranks == sorted(ranks)


def test_from_nothing_to_nothing_there_is_nothing_to_do() -> None:
    assert not diff([], [])
    assert not diff(EVERYTHING, EVERYTHING)
    assert str(diff([], [])) == ""


@pytest.mark.parametrize("name", [name for name, _ in STORY])
def test_the_same_world_once_more_needs_no_step(name: str) -> None:
    found = snapshot(told(name))
    assert not diff(found, found)
    assert not diff(found, list(reversed(found)))


def test_a_ruleset_is_there_before_any_link_and_links_open_last() -> None:
    found = words(diff([], EVERYTHING))
    assert found.index("make ruleset of a-router") < found.index("make link in-web in a-router to eth0 in a-web")
    assert found[-1] == "make link in-web open in a-router"


def test_a_changed_ruleset_is_loaded_before_links_go_or_come() -> None:
    other = Veth("a-router", "in-db", "02:00:00:00:00:06", None, "x", "02:00:00:00:00:07", "tag")
    found = words(diff([ROUTER, ruleset("a-router"), UPLINK], [ROUTER, ruleset("a-router", "bb"), other]))
    assert found == [
        "make ruleset of a-router",
        "remove link uplink in a-router to vpc-a in the host",
        "make link in-db in a-router to x in the host",
    ]


def test_a_route_goes_before_a_ruleset_that_relies_on_it_and_comes_after_one() -> None:
    route = Route("a-router", "0.0.0.0/0", "100.64.0.0", "uplink")
    out, inside = [ROUTER, ruleset("a-router"), UPLINK, route], [ROUTER, ruleset("a-router", "bb"), UPLINK]
    going, coming = "remove route to 0.0.0.0/0 in a-router", "make route to 0.0.0.0/0 in a-router"
    assert words(diff(out, inside)) == [going, "make ruleset of a-router"]
    assert words(diff(inside, out)) == ["make ruleset of a-router", coming]


# -- removal -------------------------------------------------------------------------------------------------------


def test_what_goes_with_its_namespace_is_not_removed_by_itself() -> None:
    assert words(
        diff([ROUTER, INSTANCE, BRIDGE, LINK, ruleset("a-router"), Setting("a-web", "x", "1"), *HELD], [])
    ) == [
        "remove namespace a-router",
        "remove namespace a-web",
    ]


def test_a_link_that_ends_in_a_namespace_that_stays_is_removed_by_name() -> None:
    host = [Address(None, "vpc-a", "100.64.0.0/31"), LinkSetting(None, "vpc-a", "forwarding", "1"), Open(None, "vpc-a")]
    assert words(diff([ROUTER, UPLINK, *host], [])) == [
        "remove link uplink in a-router to vpc-a in the host",
        "remove namespace a-router",
    ]
    assert words(diff([ROUTER, INSTANCE, LINK, *HELD, BRIDGE], [ROUTER, BRIDGE])) == [
        "remove link br-web up in a-router",
        "remove address 10.0.0.1/28 on br-web in a-router",
        "remove link in-web in a-router to eth0 in a-web",
        "remove namespace a-web",
    ]


def test_what_stands_on_a_link_that_stays_is_removed_by_itself() -> None:
    assert words(diff([ROUTER, BRIDGE, HELD[2], HELD[3]], [ROUTER, BRIDGE, HELD[3]])) == [
        "remove address 10.0.0.1/28 on br-web in a-router"
    ]


def test_a_setting_of_the_host_is_put_back_though_its_link_is_not_ours() -> None:
    opened = Forwarding(None, 2, "eth0")
    assert words(diff([ROUTER, UPLINK, opened, ruleset(None)], [])) == [
        "remove forwarding on eth0 of the host",
        "remove link uplink in a-router to vpc-a in the host",
        "remove ruleset of the host",
        "remove namespace a-router",
    ]


# -- going ---------------------------------------------------------------------------------------------------------


def test_what_goes_is_closed_first_and_the_host_forgets_an_uplink_when_it_is_gone() -> None:
    closed, guard, final = ruleset("a-router", "closed"), ruleset(None, "both"), ruleset(None, "rest")
    found = diff([ROUTER, UPLINK, ruleset(None, "before"), ruleset("a-router")], [final], [closed], guard)
    assert found.steps == (Ensure(closed), Ensure(guard), Remove(UPLINK), Remove(ROUTER), Ensure(final))


def test_the_host_knows_an_uplink_before_it_comes_while_another_one_goes() -> None:
    new_router, new_uplink = Namespace("b-router", "tag"), Veth("b-router", "uplink", "m", None, "vpc-b", "n", "tag")
    guard, final = ruleset(None, "both"), ruleset(None, "rest")
    found = diff(
        [ROUTER, UPLINK, ruleset(None, "before")], [new_router, new_uplink, final], [ruleset("a-router", "x")], guard
    ).steps
    places = [found.index(step) for step in (Ensure(guard), Remove(UPLINK), Ensure(new_uplink), Ensure(final))]
    assert places == sorted(places)
    assert places[-1] == len(found) - 1


# -- replacing -----------------------------------------------------------------------------------------------------


def test_a_link_that_differs_is_removed_and_made_again_with_all_that_stands_on_it() -> None:
    other = Veth("a-router", "in-web", "02:00:00:00:00:99", "a-web", "eth0", "02:00:00:00:00:03", "tag")
    found = diff(EVERYTHING, [other if item == LINK else item for item in EVERYTHING]).steps
    assert found[:2] == (Remove(LINK), Ensure(other))
    assert {step.item for step in found[2:]} == {PORT, ENTRY, HELD[4], HELD[5]}
    assert found[-1] == Ensure(HELD[5])


def test_a_bridge_that_differs_takes_its_ports_and_their_entries_along() -> None:
    other = Bridge("a-router", "br-web", "02:00:00:00:00:99", "alt", "tag")
    found = diff(EVERYTHING, [other if item == BRIDGE else item for item in EVERYTHING]).steps
    assert found[:2] == (Remove(BRIDGE), Ensure(other))
    assert {PORT, ENTRY, HELD[2], HELD[3]} <= {step.item for step in found[2:]}


def test_what_can_be_changed_in_place_is_not_removed() -> None:
    before, after = (Neighbour("a-router", "br-web", "10.0.0.2", mac) for mac in ("02:0a", "02:0b"))
    assert diff([ROUTER, BRIDGE, before], [ROUTER, BRIDGE, after]).steps == (Ensure(after),)


# -- the whole story, forwards and backwards -----------------------------------------------------------------------

WORLDS = [World(), *(told(name) for name, _ in STORY[:-1])]


@pytest.mark.parametrize(("one", "other"), list(combinations(range(len(WORLDS)), 2))[::3])
def test_a_plan_leads_from_any_world_to_any_other(one: int, other: int) -> None:
    for start, end in ((one, other), (other, one)):
        before, after = snapshot(WORLDS[start]), snapshot(WORLDS[end])
        kernel = FakeKernel()
        for found in (diff([], before), diff(before, after)):
            for step in found.steps:
                (kernel.ensure if isinstance(step, Ensure) else kernel.remove)(step.item)
        assert kernel.objects == {item.key: item for item in after}


# -- items ---------------------------------------------------------------------------------------------------------

ALL = [item for world in WORLDS for item in snapshot(world)]


def test_the_story_holds_every_kind_of_item() -> None:
    found = {type(item) for item in [*ALL, Forwarding(None, 2)]}
    assert found == {kind.item for kind in REGISTRY}


def test_items_survive_the_record() -> None:
    for item in ALL:
        assert kinds.from_json(json.loads(json.dumps(kinds.to_json(item)))) == item


def test_the_text_of_a_ruleset_is_not_kept_and_makes_no_difference() -> None:
    found = next(item for item in ALL if isinstance(item, Ruleset))
    assert found.text
    kept = kinds.to_json(found)
    assert "text" not in kept
    assert kinds.from_json(kept) == found
    assert kinds.from_json(kept).text is None


@pytest.mark.parametrize("document", [{"kind": "Nothing"}, {"kind": "Namespace"}, {}, {"kind": "Namespace", "x": 1}])
def test_what_is_no_item_is_refused(document: dict) -> None:
    with pytest.raises((KeyError, TypeError)):
        kinds.from_json(document)


@pytest.mark.parametrize("world", WORLDS, ids=["nothing", *(name for name, _ in STORY[:-1])])
def test_no_two_items_of_a_world_are_the_same_object(world: World) -> None:
    keys = [item.key for item in snapshot(world)]
    assert len(keys) == len(set(keys))


def test_items_are_told_in_words_of_the_glossary() -> None:
    assert [str(item) for item in (ROUTER, BRIDGE, PORT, ruleset(None))] == [
        "namespace a-router",
        "bridge br-web in a-router",
        "port in-web of br-web in a-router",
        "ruleset of the host",
    ]


def test_what_a_setting_resets_is_written_again_after_it() -> None:
    everywhere = snapshot(WORLDS[-2])
    settings = [item for item in everywhere if isinstance(item, Setting)]
    forwarding = next(item for item in settings if item.path == "net/ipv4/ip_forward")
    again = resets([forwarding], everywhere)
    assert again == [
        item for item in settings if item.namespace == forwarding.namespace and item.path.startswith("net/ipv4/conf/")
    ]
    assert again
    for every in (item for item in settings if item.path == "net/ipv6/conf/all/disable_ipv6"):
        home = [item for item in settings if item.namespace == every.namespace and "disable_ipv6" in item.path]
        assert {every, *resets([every], everywhere)} == set(home)
        assert resets(home, everywhere) == [], "it is among them already"
