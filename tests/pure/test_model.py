"""A world that could be made is valid; what cannot be is told in words that say what is in the way."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest
from hypothesis import given, settings

from tests import worlds
from tests.story import told
from vpcctl.errors import ConflictError, DocumentError
from vpcctl.model.network import Instance, Peering, Publication, Subnet, Vpc, World, overlap, unique, uplink_pair
from vpcctl.model.policy import TCP, UDP

network, address = worlds.network, worlds.address


def subnet(name: str = "web", prefix: str = "10.0.0.0/28", *members: Instance) -> Subnet:
    return Subnet(name, (network(prefix),), True, False, members)


def vpc(name: str = "one", prefix: str = "10.0.0.0/26", index: int = 0, *parts: Subnet, **more: object) -> Vpc:
    return Vpc(name, (network(prefix),), index, parts, **more)


def member(name: str, *addresses: str, mac: str | None = None) -> Instance:
    made = worlds.instance("one", name, *addresses)
    return dataclasses.replace(made, mac=mac) if mac else made


# -- prefixes and addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["10.0.0.0/30", "10.0.0.0/8", "2001:db8::/126", "2001::/16"])
def test_a_vpc_may_be_as_small_as_two_hosts_and_as_large_as_a_slash_eight(prefix: str) -> None:
    assert vpc(prefix=prefix).prefixes == (network(prefix),)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("10.0.0.0/31", "10.0.0.0/31 is too small; it must hold a gateway and an instance: /30 or shorter"),
        ("10.0.0.0/32", "too small"),
        ("2001:db8::/127", "too small"),
        ("8.0.0.0/7", "8.0.0.0/7 is too large; /8 or longer is expected"),
        ("127.0.0.0/24", "127.0.0.0/24 overlaps 127.0.0.0/8, which no network may use"),
        ("169.254.169.0/24", "overlaps 169.254.0.0/16"),
        ("224.0.0.0/24", "overlaps 224.0.0.0/4"),
        ("0.0.0.0/8", "overlaps 0.0.0.0/8"),
        ("240.0.0.0/8", "overlaps 240.0.0.0/4"),
        ("fe80::/64", "overlaps fe80::/10"),
    ],
)
def test_a_prefix_that_no_vpc_may_have_is_refused_with_the_reason(prefix: str, words: str) -> None:
    with pytest.raises(DocumentError, match=words):
        vpc(prefix=prefix)


def test_without_a_prefix_there_is_no_network() -> None:
    with pytest.raises(DocumentError, match="VPC one has no prefix"):
        Vpc("one", (), 0)
    with pytest.raises(DocumentError, match="subnet web has no prefix"):
        Subnet("web", (), True)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("10.0.0.0/24", "10.0.0.128/25", True),
        ("10.0.0.0/25", "10.0.0.128/25", False),
        ("10.0.0.0/24", "2001:db8::/32", False),
        ("0.0.0.0/0", "255.255.255.255/32", True),
    ],
)
def test_prefixes_overlap_where_they_share_an_address(one: str, other: str, shared: bool) -> None:
    assert overlap(network(one), network(other)) is shared
    assert overlap(network(other), network(one)) is shared


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.0.0.0", "instance web: 10.0.0.0 is the network or broadcast address of 10.0.0.0/28"),
        ("10.0.0.15", "10.0.0.15 is the network or broadcast address"),
        ("10.0.0.16", r"instance web: 10.0.0.16 is not in subnet web \(10.0.0.0/28\)"),
        ("2001:db8::1", "2001:db8::1 is not in subnet web"),
    ],
)
def test_an_instance_has_an_address_that_a_host_can_have(text: str, words: str) -> None:
    with pytest.raises(DocumentError, match=words):
        subnet("web", "10.0.0.0/28", member("web", text))


def test_no_two_share_an_address() -> None:
    with pytest.raises(ConflictError, match=r"subnet web: 10.0.0.1 belongs to the gateway already"):
        subnet("web", "10.0.0.0/28", member("web", "10.0.0.1"))
    with pytest.raises(ConflictError, match=r"10.0.0.2 belongs to instance web already"):
        subnet("web", "10.0.0.0/28", member("web", "10.0.0.2"), member("other", "10.0.0.2"))


def test_the_gateway_is_the_first_host_address_and_instances_take_the_lowest_free_one() -> None:
    empty = subnet()
    assert empty.gateways == (address("10.0.0.1"),)
    assert empty.free_addresses() == (address("10.0.0.2"),)
    holed = subnet("web", "10.0.0.0/28", member("a", "10.0.0.2"), member("b", "10.0.0.4"))
    assert holed.free_addresses() == (address("10.0.0.3"),)


def test_a_full_subnet_says_so() -> None:
    full = subnet("web", "10.0.0.0/30", member("web", "10.0.0.2"))
    with pytest.raises(ConflictError, match=r"subnet web: every address of 10.0.0.0/30 is in use"):
        full.free_addresses()


def test_a_free_address_of_a_huge_subnet_is_found_without_a_walk() -> None:
    huge = Subnet("web", (network("10.0.0.0/8"), network("2001::/16")), True)
    assert huge.free_addresses() == (address("10.0.0.2"), address("2001::2"))


# -- VPCs ----------------------------------------------------------------------------------------------------------


def test_a_subnet_lies_in_its_vpc_and_beside_the_others() -> None:
    with pytest.raises(DocumentError, match=r"subnet web: 10.0.1.0/28 is not inside VPC one \(10.0.0.0/26\)"):
        vpc("one", "10.0.0.0/26", 0, subnet("web", "10.0.1.0/28"))
    with pytest.raises(DocumentError, match="is not inside"):
        vpc("one", "10.0.0.0/26", 0, subnet("web", "10.0.0.0/25"))
    with pytest.raises(ConflictError, match=r"subnet db: 10.0.0.8/29 overlaps subnet web \(10.0.0.0/28\)"):
        vpc("one", "10.0.0.0/26", 0, subnet("web", "10.0.0.0/28"), subnet("db", "10.0.0.8/29"))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((subnet("web"), subnet("web", "10.0.0.16/28")), "VPC one: subnet web exists already"),
        (
            (
                subnet("web", "10.0.0.0/28", member("x", "10.0.0.2")),
                subnet("db", "10.0.0.16/28", member("x", "10.0.0.18")),
            ),
            "VPC one: instance x exists already",
        ),
        (
            (
                subnet(
                    "web",
                    "10.0.0.0/28",
                    member("a", "10.0.0.2", mac="02:0a"),
                    member("b", "10.0.0.3", mac="02:0a"),
                ),
            ),
            "VPC one: MAC address 02:0a exists already",
        ),
    ],
)
def test_names_and_macs_are_one_of_a_kind_in_a_vpc(parts: tuple, words: str) -> None:
    with pytest.raises(ConflictError, match=words):
        vpc("one", "10.0.0.0/26", 0, *parts)


def test_a_port_is_published_once_and_for_somebody() -> None:
    web = subnet("web", "10.0.0.0/28", member("web", "10.0.0.2"))
    twice = (Publication(TCP, 80, "web", 80), Publication(TCP, 80, "web", 81))
    with pytest.raises(ConflictError, match="port tcp/80 is published for instance web of VPC one already; choose"):
        vpc("one", "10.0.0.0/26", 0, web, publications=twice)
    assert vpc("one", "10.0.0.0/26", 0, web, publications=(twice[0], Publication(UDP, 80, "web", 80)))
    with pytest.raises(ConflictError, match="port 80 is published for instance ghost, which does not exist"):
        vpc("one", "10.0.0.0/26", 0, web, publications=(Publication(TCP, 80, "ghost", 80),))


def test_what_is_asked_for_and_not_there_is_told_with_what_is() -> None:
    found = told("create its private subnet db").vpc("one")
    with pytest.raises(ConflictError, match="subnet 'dv' not found in VPC one; known subnets: db, web"):
        found.subnet("dv")
    with pytest.raises(ConflictError, match="instance 'x' not found in VPC one; known instances: db, web"):
        found.instance("x")
    with pytest.raises(ConflictError, match="subnet 'x' not found in VPC one; known subnets: none"):
        vpc().subnet("x")
    assert found.subnet_of("db").name == "db"


def test_the_versions_are_those_of_the_prefixes() -> None:
    assert vpc().versions == (4,)
    assert Vpc("one", (network("2001:db8::/64"), network("10.0.0.0/26")), 0).versions == (4, 6)


def test_a_subnet_put_back_keeps_its_place() -> None:
    found = told("create its private subnet db").vpc("one")
    changed = dataclasses.replace(found.subnet("web"), public=False)
    assert [one.name for one in found.with_subnet(changed).subnets] == ["web", "db"]
    assert found.with_subnet(changed).subnet("web").public is False
    assert [one.name for one in found.with_subnet(subnet("new", "10.0.0.32/28")).subnets] == ["web", "db", "new"]


# -- worlds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ((vpc("one"), vpc("one", index=1)), "VPC one exists already"),
        ((vpc("one"), vpc("two")), "uplink index 0 exists already"),
        ((vpc("one", "100.64.0.0/16"),), "VPC one: 100.64.0.0/16 overlaps the transit range 100.64.0.0/16"),
        ((vpc("one", "100.0.0.0/8"),), "overlaps the transit range"),
        ((vpc("one", index=32768),), "the transit range 100.64.0.0/16 is full: it holds 32768 VPCs"),
        (
            (
                vpc("a", "10.0.0.0/26", 0, subnet("b-c", "10.0.0.0/28", worlds.instance("a", "b-c", "10.0.0.2"))),
                vpc("a-b", "10.0.0.0/26", 1, subnet("c", "10.0.0.0/28", worlds.instance("a-b", "c", "10.0.0.2"))),
            ),
            "instance b-c of VPC a and instance c of VPC a-b would both have the namespace a-b-c; rename one of them",
        ),
    ],
)
def test_worlds_that_cannot_be_are_refused(members: tuple[Vpc, ...], words: str) -> None:
    with pytest.raises(ConflictError, match=words):
        World(members)


def test_a_port_of_the_host_is_published_by_one_vpc() -> None:
    def serving(name: str, index: int) -> Vpc:
        web = subnet("web", "10.0.0.0/28", worlds.instance(name, "web", "10.0.0.2"))
        return vpc(name, "10.0.0.0/26", index, web, publications=(Publication(TCP, 80, "web", 80),))

    taken = "port tcp/80 is published for instance web of VPC one already; choose another, or take that back with"
    with pytest.raises(ConflictError, match=f"{taken} `vpcctl unpublish-port --vpc one --port 80`$"):
        World((serving("one", 0), serving("two", 1)))


def test_two_vpcs_may_have_the_same_prefix_until_they_are_peered() -> None:
    pair = (vpc("one"), vpc("two", "10.0.0.32/27", 1))
    assert World(pair)
    with pytest.raises(ConflictError, match=r"one \(10.0.0.0/26\) and two \(10.0.0.32/27\) overlap"):
        World(pair, (Peering("one", "two"),))


def test_two_peers_of_one_vpc_may_not_have_the_same_prefix() -> None:
    members = (vpc("hub"), vpc("a", "10.0.0.64/26", 1), vpc("b", "10.0.0.64/26", 2))
    assert World(members, (Peering("a", "hub"),))
    with pytest.raises(ConflictError, match="VPC hub cannot be peered so"):
        World(members, (Peering("a", "hub"), Peering("b", "hub")))


def test_a_peering_has_one_spelling_and_two_ends() -> None:
    assert Peering.between("b", "a") == Peering.between("a", "b") == Peering("a", "b")
    assert Peering("a", "b").peer_of("a") == "b"
    assert Peering("a", "b").peer_of("b") == "a"
    assert "a" in Peering("a", "b")
    assert "c" not in Peering("a", "b")
    with pytest.raises(DocumentError, match="VPC a cannot be peered with itself"):
        Peering.between("a", "a")
    with pytest.raises(ConflictError, match="VPC 'ghost' not found; known VPCs: one"):
        World((vpc("one"),), (Peering("ghost", "one"),))


def test_a_vpc_that_goes_takes_its_peerings_along() -> None:
    world = told("peer them")
    assert world.without_vpc("two").peerings == ()
    assert [one.name for one in world.without_vpc("two").vpcs] == ["one"]


@settings(max_examples=30, deadline=None)
@given(worlds.worlds())
def test_peers_are_mutual_and_indexes_are_found_free(world: World) -> None:
    for one in world.vpcs:
        for peer in world.peers(one.name):
            assert one in world.peers(peer.name)
    assert world.free_index() not in {one.index for one in world.vpcs}
    assert world.free_index() <= len(world.vpcs)


def test_uplinks_are_pairs_out_of_the_transit_range() -> None:
    transit = ipaddress.ip_network("100.64.0.0/30")
    pairs = [uplink_pair(transit, index) for index in range(2)]
    assert [str(end) for pair in pairs for end in pair] == [str(one) for one in transit]
    with pytest.raises(ConflictError, match="holds 2 VPCs"):
        uplink_pair(transit, 2)


def test_the_first_value_that_stands_twice_is_named() -> None:
    unique([1, 2, 3], "number")
    with pytest.raises(ConflictError, match="number 2 exists already"):
        unique([1, 2, 2, 1], "number")


def test_names_are_looked_up_without_a_scan() -> None:
    """The lists are taken away after the construction: what is still found was indexed."""
    world = told("peer them")
    one, web = world.vpc("one"), world.vpc("one").subnet("web")
    first, last = web.instances[0], one.instances[-1]
    object.__setattr__(world, "vpcs", None)
    object.__setattr__(world, "peerings", None)
    object.__setattr__(one, "subnets", None)
    assert world.vpc("one") is one
    assert [peer.name for peer in world.peers("one")] == ["two"]
    assert world.peers("ghost") == ()
    assert (one.subnet("web"), one.instance(first.name), one.subnet_of(first.name)) == (web, first, web)
    assert one.instances[-1] is last
    for look, kind in ((one.subnet, "subnet"), (one.instance, "instance"), (one.subnet_of, "instance")):
        with pytest.raises(ConflictError, match=f"{kind} 'ghost' not found in VPC one; known {kind}s: .*web"):
            look("ghost")
    with pytest.raises(ConflictError, match="VPC 'ghost' not found; known VPCs: one, two"):
        world.vpc("ghost")


def test_indexes_are_no_part_of_a_value() -> None:
    world = told("peer them")
    again = dataclasses.replace(world, vpcs=tuple(dataclasses.replace(one) for one in world.vpcs))
    assert again == world
    assert hash(again) == hash(world)
    assert "by_name" not in repr(world)
