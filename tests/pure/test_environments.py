"""Environments: what is exported says it all, documents that mean the same make the same world, and the way there."""

from __future__ import annotations

import copy
import dataclasses
import ipaddress
import itertools
import json
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests import worlds
from vpcctl import names
from vpcctl.documents.diff import Step, exported, merged, object_changes, same_words, steps, toward
from vpcctl.documents.environment import read_environment
from vpcctl.errors import ConflictError, DocumentError
from vpcctl.model.network import Instance, Peering, Publication, Subnet, Vpc, World
from vpcctl.model.policy import TCP
from vpcctl.resources import topology

FILE = "environment.json"
SERIAL = 7


def applied(document: Any, present: World, *, prune: bool = False, policies: dict[str, Any] | None = None) -> World:
    """The world that `apply` would make of `present`."""
    document = json.loads(json.dumps(document))
    wanted = read_environment(document, FILE, lambda path: ((policies or {})[path], path), present, SERIAL)
    peerings = tuple(Peering.between(*pair) for pair in document.get("peerings", ()))
    return merged(present, wanted, peerings, prune)


def network(text: str) -> Any:
    return ipaddress.ip_network(text)


def vpc(name: str, prefix: str, index: int, *subnets: Subnet, **more: Any) -> Vpc:
    return Vpc(name, (network(prefix),), index, subnets, **more)


def subnet(name: str, prefix: str, *instances: str, public: bool = False) -> Subnet:
    """A subnet whose instances have the addresses 2, 3, …"""
    prefixes = (network(prefix),)
    first = prefixes[0].network_address
    members = (
        Instance(one, (first + number,), names.stable_mac(prefix, one)) for number, one in enumerate(instances, 2)
    )
    return Subnet(name, prefixes, public, False, tuple(members))


SHOP = vpc("shop", "10.0.0.0/16", 0, subnet("web", "10.0.1.0/24", "web", "web-2", public=True))
BILLING = vpc("billing", "10.9.0.0/16", 1, subnet("ledger", "10.9.1.0/24", "ledger"))
SPARE = vpc("spare", "10.8.0.0/16", 2)
PRESENT = World((SHOP, BILLING, SPARE), (Peering("billing", "shop"), Peering("shop", "spare")))


# --- Small worlds -----------------------------------------------------------------------------------------------------

# Documents name these VPCs, with whichever of these prefixes; the last one overlaps the two before it.
NAMES = ("shop", "billing", "ops", "lab")
PREFIXES = ("10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24", "10.5.0.0/25", "10.5.0.128/25", "10.5.0.0/24")
OPEN, CLOSED = {"ingress": [{"action": "allow"}]}, {"egress": [], "default": {"egress": "deny"}}
NAMING = {
    "ingress": [{"action": "allow", "source": ["internet", "203.0.113.0/24"], "protocol": "tcp", "port": [80, "90-99"]}]
}
POLICIES = (None, OPEN, CLOSED, NAMING)


def environments() -> st.SearchStrategy[dict[str, Any]]:
    """Documents that name some of the VPCs above: valid by themselves, and contending for the same few things.

    Made by chance from one number, which takes a tenth of the time of a strategy for each part.
    """
    return st.integers(0, 2**32).map(lambda seed: _environment(random.Random(seed)))


def _environment(chance: random.Random) -> dict[str, Any]:
    some = chance.sample(NAMES, chance.randint(1, len(NAMES)))
    ports = chance.sample([(protocol, port) for protocol in ("tcp", "udp") for port in (80, 443, 8080)], 4)
    vpcs = [_vpc(chance, name, chance.choice(PREFIXES), ports.pop()) for name in some]
    pairs: list[list[str]] = []
    for pair in chance.sample(list(itertools.combinations(vpcs, 2)), len(vpcs) * (len(vpcs) - 1) // 2):
        if chance.random() < 0.5 and possible(vpcs, [*pairs, [one["name"] for one in pair]]):
            pairs.append([one["name"] for one in pair])
    return {"vpcs": vpcs, "peerings": pairs}


def possible(vpcs: list[dict[str, Any]], pairs: list[list[str]]) -> bool:
    """Can these be peered so?"""
    try:
        World(
            tuple(vpc(one["name"], one["cidr"], number) for number, one in enumerate(vpcs)),
            tuple(Peering.between(*pair) for pair in pairs),
        )
    except ConflictError:
        return False
    return True


def _vpc(chance: random.Random, name: str, prefix: str, port: tuple[str, int]) -> dict[str, Any]:
    parts = list(network(prefix).subnets(new_prefix=27))
    places = zip(chance.sample(["web", "db", "api"], chance.randint(0, 3)), chance.sample(parts, 3), strict=False)
    subnets = [_subnet(chance, one, str(part)) for one, part in places]
    found: dict[str, Any] = {"name": name, "cidr": prefix, "subnets": subnets}
    members = [one["name"] for inner in subnets for one in inner["instances"]]
    if members and chance.random() < 0.5:
        protocol, number = port
        target = chance.choice([number, 1, 65535])
        item = {"protocol": protocol, "port": number, "instance": chance.choice(members), "target_port": target}
        found["publish"] = [item]
    if chance.random() < 0.3:
        found["sets"] = {chance.choice(["office", "home"]): chance.sample(["203.0.113.0/25", "198.51.100.0/24"], 1)}
    if chance.random() < 0.3:
        found["hardened"] = True
    if (policy := chance.choice(POLICIES)) is not None:
        found["policy"] = policy
    return found


def _subnet(chance: random.Random, name: str, prefix: str) -> dict[str, Any]:
    hosts = chance.sample(range(2, 31), 3)
    first = network(prefix).network_address
    members = zip(chance.sample([name, f"{name}-2", f"{name}-3"], chance.randint(0, 3)), hosts, strict=False)
    found: dict[str, Any] = {
        "name": name,
        "cidr": prefix,
        "type": chance.choice(["public", "private"]),
        "instances": [{"name": one, "ip": str(first + host)} for one, host in members],
    }
    if found["type"] == "private" and chance.random() < 0.4:
        found["nat_gateway"] = True
    if (policy := chance.choice(POLICIES)) is not None:
        found["policy"] = policy
    return found


def small_worlds() -> st.SearchStrategy[World]:
    """What became of an empty machine by two documents; so what comes after meets gaps and another order."""
    return st.tuples(environments(), environments()).map(
        lambda both: applied(both[1], applied(both[0], World()), prune=True)
    )


# --- Round trips ------------------------------------------------------------------------------------------------------


# Everything that a policy can hold: the strategy takes its time.
@settings(max_examples=40)
@given(worlds.worlds())
def test_what_was_exported_says_everything_and_changes_nothing(present: World) -> None:
    document = exported(present)
    assert applied(document, present) == present
    elsewhere = applied(document, World())
    assert exported(elsewhere) == document
    for one, other in zip(present.vpcs, elsewhere.vpcs, strict=True):
        assert (one.prefixes, one.publications, one.sets) == (other.prefixes, other.publications, other.sets)
        assert one.hardened == other.hardened
        assert one.policy is other.policy is None or same_words(one.policy, other.policy)
        for inner, beside in zip(one.subnets, other.subnets, strict=True):
            assert (inner.public, inner.nat_gateway) == (beside.public, beside.nat_gateway)
            assert inner.policy is beside.policy is None or same_words(inner.policy, beside.policy)


@settings(max_examples=60)
@given(small_worlds())
def test_applying_what_was_exported_changes_nothing(present: World) -> None:
    after = applied(exported(present), present)
    assert after == present
    assert object_changes(present, after) == []
    assert steps(present, after) == []


@given(environments())
def test_what_is_applied_to_an_empty_machine_is_what_is_exported(document: dict[str, Any]) -> None:
    found = exported(applied(document, World()))
    assert by_name(found["vpcs"]) == by_name(document["vpcs"])
    assert pairs_of(found) == pairs_of(document)
    assert exported(applied(found, World())) == found


RENAMED = [
    "- subnet shop/web",
    "+ subnet shop/front: 10.0.1.0/24, public",
    "~ instance shop/web: moves to subnet front, 10.0.1.2",
    "~ instance shop/web-2: moves to subnet front, 10.0.1.3",
]


def test_a_renamed_subnet_keeps_its_instances() -> None:
    """Their namespaces stay, with the processes in them."""
    document = json.loads(json.dumps(exported(PRESENT)).replace('"name": "web", "cidr"', '"name": "front", "cidr"'))
    after = applied(document, PRESENT)
    assert [str(one) for one in object_changes(PRESENT, after)] == RENAMED
    before_items, after_items = (
        {item.key for items in topology.snapshot(world, "id", {}).values() for item in items}
        for world in (PRESENT, after)
    )
    for key in (("Namespace", "shop-web"), ("Namespace", "shop-web-2")):
        assert key in before_items & after_items


def test_an_instance_of_another_subnet_moves_and_its_address_is_told() -> None:
    before = applied(TWO_SUBNETS, World())
    document = copy.deepcopy(TWO_SUBNETS)
    inner = document["vpcs"][0]["subnets"]
    inner[1]["instances"].append(inner[0]["instances"].pop())
    assert [str(one) for one in object_changes(before, applied(document, before))] == [
        "~ instance one/b: moves to subnet db, 10.0.2.3"
    ]


TWO_SUBNETS: dict[str, Any] = {"vpcs": [{"name": "one", "cidr": "10.0.0.0/16", "subnets": [
    {"name": "web", "cidr": "10.0.1.0/24", "type": "public", "instances": [{"name": "a"}, {"name": "b"}]},
    {"name": "db", "cidr": "10.0.2.0/24", "type": "private", "instances": [{"name": "c"}]},
]}]}  # fmt: skip


OTHER_TRANSIT = "100.127.0.0/24"


def test_the_transit_range_survives_export_and_apply() -> None:
    present = dataclasses.replace(PRESENT, transit=network(OTHER_TRANSIT))
    document = exported(present)
    assert document["transit"] == OTHER_TRANSIT
    assert applied(document, present) == present
    assert exported(applied(document, World())) == document
    assert walked(World(), present)[-1] == present
    assert [str(one) for one in object_changes(World(), present)][:2] == [
        f"~ transit range: 100.64.0.0/16 becomes {OTHER_TRANSIT}", "+ VPC shop: 10.0.0.0/16",
    ]  # fmt: skip
    assert "transit" not in exported(PRESENT)
    assert "transit" not in exported(present, "shop")


def test_the_transit_range_alone_is_a_step() -> None:
    wanted = applied({"transit": OTHER_TRANSIT}, World())
    assert wanted == World(transit=network(OTHER_TRANSIT))
    assert [step.label for step in steps(World(), wanted)] == ["transit range"]
    assert walked(World(), wanted)[-1] == wanted


@pytest.mark.parametrize("prune", [False, True])
def test_another_transit_range_is_refused_while_vpcs_exist(prune: bool) -> None:
    with pytest.raises(DocumentError) as caught:
        applied(exported(PRESENT) | {"transit": OTHER_TRANSIT}, PRESENT, prune=prune)
    assert str(caught.value) == (
        "environment.json#/transit: the transit range is 100.64.0.0/16, and VPCs use it; it can become 100.127.0.0/24"
        " only while no VPC exists: remove this field, or run `vpcctl destroy --all` first"
    )
    assert applied(exported(PRESENT) | {"transit": "100.64.0.0/16"}, PRESENT) == PRESENT


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"transit": "100.64.0.1/16"}, "/transit: \"100.64.0.1/16\" has bits set beyond its prefix length"),
        ({"transit": 5}, "/transit: 5 is not a prefix"),
        ({"transit": "100.64.0.1/16", "vpc": []}, "/transit: \"100.64.0.1/16\" has bits set beyond"),
        ({"transit": "10.0.0.0/8", "vpcs": [{"name": "a", "cidr": "10.1.0.0/16"}]},
         "/vpcs/0/cidr: VPC a: 10.1.0.0/16 overlaps the transit range 10.0.0.0/8"),
    ],
)  # fmt: skip
def test_a_wrong_transit_range_is_told(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(DocumentError) as caught:
        applied(fields, World())
    assert any(str(one).startswith(f"environment.json#{problem}") for one in caught.value.problems)


@settings(max_examples=60)
@given(small_worlds(), st.randoms(use_true_random=False))
def test_the_order_in_which_a_document_names_things_means_nothing(present: World, chance: random.Random) -> None:
    assert applied(shuffled(exported(present), chance), present) == present


def shuffled(document: Any, chance: random.Random) -> Any:
    """The same environment, told in another order."""
    document = copy.deepcopy(document)
    for pair in document["peerings"]:
        chance.shuffle(pair)
    for one in document["vpcs"]:
        for inner in one["subnets"]:
            chance.shuffle(inner["instances"])
        for field in ("subnets", "publish"):
            chance.shuffle(one.get(field, []))
        if "sets" in one:
            one["sets"] = dict(chance.sample(sorted(one["sets"].items()), len(one["sets"])))
    chance.shuffle(document["vpcs"])
    chance.shuffle(document["peerings"])
    return document


@settings(max_examples=60)
@given(small_worlds())
def test_one_vpc_alone_can_be_exported_and_applied(present: World) -> None:
    for one in present.vpcs:
        document = exported(present, one.name)
        assert [inner["name"] for inner in document["vpcs"]] == [one.name]
        assert applied(document, present) == present


@settings(max_examples=60)
@given(small_worlds(), environments())
def test_objects_are_told_to_change_if_and_only_if_they_do(before: World, document: dict[str, Any]) -> None:
    made = applied(document, before, prune=True)
    assert bool(object_changes(before, made)) == (before != made)
    assert bool(steps(before, made)) == (before != made)


@given(small_worlds(), environments())
def test_pruned_a_machine_is_what_the_document_says(before: World, document: dict[str, Any]) -> None:
    made = exported(applied(document, before, prune=True))
    assert by_name(made["vpcs"]) == by_name(document["vpcs"])
    assert pairs_of(made) == pairs_of(document)


@given(small_worlds(), environments(), environments())
def test_the_later_document_wins_where_it_says_something_and_says_it_once(
    before: World, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Documents that contradict what stays (a published port, a prefix of a peer) are refused, and change nothing."""
    try:
        first = applied(one, before)
        second = applied(other, first)
    except (ConflictError, DocumentError) as refused:
        event(f"refused: {type(refused).__name__}")
        return
    event("applied")
    found, named = exported(second), {inner["name"] for inner in other["vpcs"]}
    assert by_name(inner for inner in found["vpcs"] if inner["name"] in named) == by_name(other["vpcs"])
    between = {pair for pair in pairs_of(found) if set(pair) <= named}
    assert between == pairs_of(other)
    beside = [inner for inner in first.vpcs if inner.name not in named]
    assert [inner for inner in second.vpcs if inner.name not in named] == beside
    assert {pair for pair in second.peerings if not {pair.one, pair.other} <= named} == {
        pair for pair in first.peerings if not {pair.one, pair.other} <= named
    }
    # Each again, and both again in turn.
    assert applied(other, second) == second
    assert applied(other, second, prune=True).vpcs == tuple(inner for inner in second.vpcs if inner.name in named)


@settings(max_examples=50)
@given(small_worlds(), st.lists(environments(), min_size=1, max_size=3))
def test_a_sequence_of_documents_ends_with_the_last_one_wherever_it_began(
    before: World, documents: list[dict[str, Any]]
) -> None:
    for present in (before, World()):
        for document in documents:
            present = applied(document, present, prune=True)
            assert applied(document, present, prune=True) == present
        assert by_name(exported(present)["vpcs"]) == by_name(documents[-1]["vpcs"])
        assert pairs_of(exported(present)) == pairs_of(documents[-1])


def pairs_of(document: dict[str, Any]) -> set[tuple[str, ...]]:
    """The peerings, whatever their order."""
    return {tuple(sorted(pair)) for pair in document["peerings"]}


def by_name(things: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Named things, whatever their order, and whatever order is meant nothing by in them."""
    found = {}
    for one in things:
        inner = {field: value for field, value in one.items() if field not in ("subnets", "instances", "publish")}
        for field in ("subnets", "instances"):
            inner[field] = by_name(one.get(field, []))
        inner["publish"] = sorted(one.get("publish", []), key=lambda item: (item["protocol"], item["port"]))
        found[one["name"]] = inner
    return found


# --- The way there ----------------------------------------------------------------------------------------------------


def walked(before: World, wanted: World) -> list[World]:
    """The worlds on the way, each of which could be constructed."""
    found = [before]
    for step in steps(before, wanted):
        found.append(toward(found[-1], wanted, step))
    return found


@settings(max_examples=100)
@given(small_worlds(), environments())
def test_every_world_on_the_way_can_be_and_the_last_is_the_wanted_one(before: World, document: dict[str, Any]) -> None:
    wanted = applied(document, before, prune=True)
    way = walked(before, wanted)
    assert (set(way[-1].vpcs), way[-1].peerings) == (set(wanted.vpcs), wanted.peerings)
    assert all(one != other for one, other in itertools.pairwise(way)), "a step that changes nothing"


def test_peerings_go_first_and_come_last() -> None:
    wanted = World((SHOP, BILLING, vpc("fresh", "10.7.0.0/16", 2)), (Peering("fresh", "shop"),))
    assert steps(PRESENT, wanted) == [
        Step("peerings that go", peerings="go"),
        Step("VPC spare", frozenset({"spare"})),
        Step("VPC fresh", frozenset({"fresh"})),
        Step("peerings", peerings="come"),
    ]


def test_a_vpc_that_takes_a_prefix_waits_until_its_peer_has_left_it() -> None:
    wanted = World(
        (vpc("shop", "10.9.0.0/16", 0), vpc("billing", "10.8.0.0/16", 1)),
        (Peering("billing", "shop"),),
    )
    before = World((SHOP, BILLING), (Peering("billing", "shop"),))
    assert [step.label for step in steps(before, wanted)] == ["VPC billing", "VPC shop"]
    assert walked(before, wanted)[-1] == wanted


def test_vpcs_that_exchange_their_prefixes_change_together() -> None:
    before = World((SHOP, BILLING), (Peering("billing", "shop"),))
    wanted = World(
        (vpc("shop", "10.9.0.0/16", 0), vpc("billing", "10.0.0.0/16", 1)),
        (Peering("billing", "shop"),),
    )
    assert [step.label for step in steps(before, wanted)] == ["VPCs shop, billing"]
    assert walked(before, wanted)[-1] == wanted


def test_vpcs_that_exchange_published_ports_change_together() -> None:
    def published(one: Vpc, port: int) -> Vpc:
        item = Publication(TCP, port, one.instances[0].name, 80)
        return dataclasses.replace(one, publications=(item,))

    before = World((published(SHOP, 8080), published(BILLING, 9090)))
    wanted = World((published(SHOP, 9090), published(BILLING, 8080)))
    assert [step.vpcs for step in steps(before, wanted)] == [{"shop", "billing"}]
    assert walked(before, wanted)[-1] == wanted


def test_a_step_whose_vpc_could_not_be_made_leaves_the_peerings_of_others() -> None:
    """As when its own step failed, and was put back."""
    fresh = vpc("fresh", "10.7.0.0/16", 3)
    pairs = (*PRESENT.peerings, Peering("fresh", "shop"), Peering("billing", "spare"))
    wanted = World((*PRESENT.vpcs, fresh), pairs)
    *_, last = steps(PRESENT, wanted)
    assert toward(PRESENT, wanted, last).peerings == (*PRESENT.peerings, Peering("billing", "spare"))


# --- What is kept -----------------------------------------------------------------------------------------------------


def document_of(present: World, *named: str) -> Any:
    """The export with some VPCs alone, and no peerings."""
    found = exported(present)
    return {"vpcs": [one for one in found["vpcs"] if one["name"] in named]}


def test_vpcs_that_are_not_named_stay_and_with_prune_they_go() -> None:
    document = document_of(PRESENT, "shop")
    assert applied(document, PRESENT) == PRESENT
    assert applied(document, PRESENT, prune=True) == World((SHOP,))


def test_peerings_between_named_vpcs_are_those_of_the_document_and_others_stay() -> None:
    document = document_of(PRESENT, "shop", "billing")
    assert applied(document, PRESENT).peerings == (Peering("shop", "spare"),)
    document["peerings"] = [["shop", "billing"]]
    assert applied(document, PRESENT) == PRESENT


def test_a_document_may_peer_with_a_vpc_beside_it() -> None:
    document = document_of(PRESENT, "billing") | {"peerings": [["spare", "billing"]]}
    assert applied(document, PRESENT).peerings == (*PRESENT.peerings, Peering("billing", "spare"))


def test_a_peering_with_a_vpc_that_is_pruned_is_refused() -> None:
    document = document_of(PRESENT, "billing") | {"peerings": [["spare", "billing"]]}
    with pytest.raises(ConflictError, match="VPC 'spare' not found"):
        applied(document, PRESENT, prune=True)


def test_a_peering_that_overlaps_is_refused() -> None:
    twin = vpc("twin", "10.0.0.0/16", 3)
    document = {**document_of(PRESENT, "shop"), "peerings": [["shop", "twin"]]}
    with pytest.raises(ConflictError, match="overlap"):
        applied(document, dataclasses.replace(PRESENT, vpcs=(*PRESENT.vpcs, twin)))


def instances(document: Any) -> list[dict[str, Any]]:
    return document["vpcs"][0]["subnets"][0]["instances"]


def test_instances_keep_address_and_mac_where_the_document_gives_none() -> None:
    document = document_of(PRESENT, "shop")
    for one in instances(document):
        del one["ip"]
    instances(document).insert(0, {"name": "web-3"})
    first, *rest = applied(document, PRESENT).vpc("shop").subnets[0].instances[::-1]
    assert tuple(rest[::-1]) == SHOP.instances
    assert (first.name, str(first.addresses[0])) == ("web-3", "10.0.1.4")


def test_an_instance_that_is_gone_does_not_leave_its_address_to_the_next() -> None:
    document = document_of(PRESENT, "shop")
    instances(document)[:] = [{"name": "web-2"}, {"name": "web-9"}]
    kept, fresh = applied(document, PRESENT).vpc("shop").instances
    assert (kept, str(fresh.addresses[0])) == (SHOP.instances[1], "10.0.1.4")
    assert fresh.mac not in {one.mac for one in SHOP.instances}


def test_an_address_that_the_document_gives_is_not_taken_by_one_it_does_not_give() -> None:
    document = {
        "vpcs": [
            {
                "name": "new",
                "cidr": "10.1.0.0/16",
                "subnets": [
                    {
                        "name": "a",
                        "cidr": "10.1.1.0/24",
                        "type": "private",
                        "instances": [{"name": "x"}, {"name": "y"}, {"name": "z", "ip": "10.1.1.2"}],
                    }
                ],
            }
        ]
    }
    found = {one.name: str(one.addresses[0]) for one in applied(document, PRESENT).vpc("new").instances}
    assert found == {"x": "10.1.1.3", "y": "10.1.1.4", "z": "10.1.1.2"}


def test_an_address_that_the_document_gives_to_another_conflicts_with_who_keeps_it() -> None:
    document = document_of(PRESENT, "shop")
    instances(document)[:] = [{"name": "web"}, {"name": "web-9", "ip": "10.0.1.2"}]
    with pytest.raises(DocumentError, match=r"10\.0\.1\.2 belongs to instance web already"):
        applied(document, PRESENT)


def test_two_instances_can_exchange_their_addresses() -> None:
    document = document_of(PRESENT, "shop")
    one, other = instances(document)
    one["ip"], other["ip"] = other["ip"], one["ip"]
    found = {item.name: str(item.addresses[0]) for item in applied(document, PRESENT).vpc("shop").instances}
    assert found == {"web": "10.0.1.3", "web-2": "10.0.1.2"}


def test_without_instances_a_subnet_has_its_one() -> None:
    document = {"vpcs": [{"name": "new", "cidr": "10.1.0.0/16", "subnets": []}]}
    document["vpcs"][0]["subnets"] = [{"name": "a", "cidr": "10.1.1.0/24", "type": "private"}]
    assert [one.name for one in applied(document, PRESENT).vpc("new").instances] == ["a"]
    document["vpcs"][0]["subnets"][0]["instances"] = []
    assert applied(document, PRESENT).vpc("new").instances == ()


def test_a_policy_that_says_the_same_keeps_the_file_that_it_came_from() -> None:
    policy = {"ingress": [{"action": "allow", "protocol": "tcp", "port": 80}]}
    document = document_of(PRESENT, "shop")
    document["vpcs"][0]["subnets"][0]["policy"] = "web.json"
    present = applied(document, PRESENT, policies={"web.json": policy})
    assert present.vpc("shop").subnets[0].policy.file == "web.json"
    assert applied(exported(present), present) == present


# --- What is told -----------------------------------------------------------------------------------------------------

# A change to the document, and what is told of it.
Edit = Callable[[dict[str, Any]], object]
ALLOW = {"ingress": [{"action": "allow"}]}
EDITS: dict[str, tuple[Edit, list[str]]] = {
    "another prefix": (
        lambda one: one.update(cidr="10.0.0.0/15"),
        ["~ VPC shop: 10.0.0.0/16 becomes 10.0.0.0/15"],
    ),
    "named sets": (lambda one: one.update(sets={"office": ["203.0.113.0/24"]}), ["~ VPC shop: its named sets"]),
    "hardened": (lambda one: one.update(hardened=True), ["~ VPC shop: hardened"]),
    "another MTU": (lambda one: one.update(mtu=1400), ["~ VPC shop: MTU 1400 instead of 1500"]),
    "another type": (lambda one: one["subnets"][0].update(type="private"), ["~ subnet shop/web: private"]),
    "a NAT gateway": (
        lambda one: one["subnets"][0].update(type="private", nat_gateway=True),
        ["~ subnet shop/web: private", "+ NAT gateway of shop/web"],
    ),
    "a subnet's prefix": (
        lambda one: one["subnets"][0].update(cidr="10.0.0.0/23", instances=[{"name": "web", "ip": "10.0.1.2"}]),
        ["~ subnet shop/web: 10.0.1.0/24 becomes 10.0.0.0/23", "- instance shop/web-2", "~ instance shop/web: "],
    ),
    "a policy": (lambda one: one["subnets"][0].update(policy=ALLOW), ["+ policy of shop/web: environment.json"]),
    "a published port": (
        lambda one: one.update(publish=[{"protocol": "tcp", "port": 8080, "instance": "web", "target_port": 80}]),
        ["+ published tcp/8080 for shop/web port 80"],
    ),
    "an instance moves": (
        lambda one: one["subnets"][0]["instances"][1].update(ip="10.0.1.77"),
        ["~ instance shop/web-2: moves to 10.0.1.77"],
    ),
    "an instance comes": (
        lambda one: one["subnets"][0]["instances"].append({"name": "web-3"}),
        ["+ instance shop/web-3: 10.0.1.4"],
    ),
    "a subnet goes": (
        lambda one: one["subnets"].clear(),
        ["- subnet shop/web", "- instance shop/web", "- instance shop/web-2"],
    ),
    "a subnet comes": (
        lambda one: one["subnets"].append({"name": "db", "cidr": "10.0.3.0/24", "type": "private"}),
        ["+ subnet shop/db: 10.0.3.0/24, private", "+ instance shop/db: 10.0.3.2"],
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_changes_is_told_and_taking_it_back_too(name: str) -> None:
    edit, words = EDITS[name]
    document = document_of(PRESENT, "shop")
    edit(document["vpcs"][0])
    after = applied(document, PRESENT)
    told = list(map(str, object_changes(PRESENT, after)))
    assert [line[: len(expected)] for line, expected in zip(told, words, strict=True)] == words
    assert [step.label for step in steps(PRESENT, after)] == ["VPC shop"]
    # The way back tells the same things, with what came gone and what went come.
    signs = {"+": "-", "-": "+", "~": "~"}
    back = [str(change) for change in object_changes(after, PRESENT)]
    for line in told:
        assert any(other.startswith(signs[line[0]] + line[1:].split(":")[0]) for other in back) or "+ policy" in line


def test_vpcs_and_peerings_that_come_and_go_are_told() -> None:
    fresh = vpc("fresh", "10.7.0.0/16", 0, subnet("a", "10.7.1.0/24", "a"))
    after = World((fresh, BILLING), (Peering("billing", "fresh"),))
    assert list(map(str, object_changes(World((BILLING, SPARE), (Peering("billing", "spare"),)), after))) == [
        "- VPC spare",
        "+ VPC fresh: 10.7.0.0/16",
        "+ subnet fresh/a: 10.7.1.0/24, private",
        "+ instance fresh/a: 10.7.1.2",
        "- peering billing and spare",
        "+ peering billing and fresh",
    ]
