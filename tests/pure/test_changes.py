"""What each command does to a world, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest

from tests.story import STORY, told
from tests.worlds import address, network
from vpcctl.errors import ConflictError, DocumentError
from vpcctl.model import operations
from vpcctl.model.network import Instance, Publication, World
from vpcctl.model.policy import TCP, UDP

PEERED = told("peer them")


def test_the_story_is_a_circle() -> None:
    assert told(STORY[-1][0]) == World()


def test_a_vpc_takes_the_lowest_free_uplink() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world = operations.create_vpc(world, name, network("10.0.0.0/24"))
    world = operations.create_vpc(operations.delete_vpc(world, "b", False), "d", network("10.0.0.0/24"))
    assert {vpc.name: vpc.index for vpc in world.vpcs} == {"a": 0, "c": 2, "d": 1}


def test_the_transit_range_is_chosen_with_the_first_vpc() -> None:
    transit = network("198.51.100.0/24")
    first = operations.create_vpc(World(), "a", network("10.0.0.0/24"), transit)
    assert first.transit == transit
    assert operations.create_vpc(first, "b", network("10.0.0.0/24"), transit).transit == transit
    assert operations.create_vpc(first, "b", network("10.0.0.0/24")).transit == transit
    with pytest.raises(ConflictError, match=r"the transit range is 198\.51\.100\.0/24, and VPCs use it"):
        operations.create_vpc(first, "b", network("10.0.0.0/24"), network("203.0.113.0/24"))


def test_a_subnet_comes_with_an_instance_of_its_name_unless_it_is_not_wanted() -> None:
    world = operations.create_subnet(told("create VPC one"), "one", "web", network("10.0.0.0/28"), True, True, 3)
    assert [(one.name, one.addresses) for one in world.vpc("one").instances] == [("web", (address("10.0.0.2"),))]
    bare = operations.create_subnet(told("create VPC one"), "one", "web", network("10.0.0.0/28"), False, False, 3)
    assert bare.vpc("one").instances == ()
    assert not bare.vpc("one").subnet("web").public


def found_addresses(world: World) -> dict[str, str]:
    return {one.name: str(one.addresses[0]) for one in world.vpc("one").subnet("web").instances}


def test_instances_take_the_lowest_free_address_or_the_one_that_is_asked_for() -> None:
    world = operations.create_instance(PEERED, "one", "web", "a", None, 1)
    world = operations.create_instance(world, "one", "web", "b", address("10.0.0.9"), 1)
    world = operations.create_instance(world, "one", "web", "c", None, 2)
    assert found_addresses(world) == {"web": "10.0.0.2", "a": "10.0.0.3", "b": "10.0.0.9", "c": "10.0.0.4"}


def test_an_address_that_somebody_had_is_handed_out_after_all_others() -> None:
    world = operations.create_instance(PEERED, "one", "web", "a", None, 1)
    world = operations.create_instance(operations.delete_instance(world, "one", "a"), "one", "web", "b", None, 2)
    assert found_addresses(world) == {"web": "10.0.0.2", "b": "10.0.0.4"}
    # Who asks for it gets it, and it is nobody's former address any more.
    world = operations.create_instance(world, "one", "web", "c", address("10.0.0.3"), 3)
    assert world.vpc("one").subnet("web").released == ()
    small = dataclasses.replace(world.vpc("one").subnet("web"), prefixes=(network("10.0.0.0/29"),), instances=())
    for turn in range(20):
        one = Instance("x", small.free_addresses(), "02:00:00:00:00:01")
        # Of five addresses four are handed out between two uses of one.
        assert str(one.addresses[0]) == f"10.0.0.{2 + turn % 5}"
        small = small.with_instances((one,)).with_instances(())


def test_an_instance_made_again_has_another_mac() -> None:
    first = operations.create_instance(PEERED, "one", "web", "a", None, 1)
    again = operations.create_instance(operations.delete_instance(first, "one", "a"), "one", "web", "a", None, 2)
    assert first.vpc("one").instance("a").mac != again.vpc("one").instance("a").mac


def test_deleting_with_cascade_takes_all_along() -> None:
    assert [vpc.name for vpc in operations.delete_vpc(PEERED, "one", True).vpcs] == ["two"]
    assert operations.delete_vpc(PEERED, "one", True).peerings == ()
    crowded = operations.create_instance(PEERED, "one", "web", "a", None, 1)
    left = operations.delete_subnet(crowded, "one", "web", True).vpc("one")
    assert [subnet.name for subnet in left.subnets] == ["db"]
    assert left.publications == ()


def test_a_published_port_is_taken_back_by_port_and_protocol() -> None:
    world = operations.publish_port(PEERED, "one", Publication(UDP, 8080, "web", 53))
    left = operations.unpublish_port(world, "one", TCP, 8080).vpc("one").publications
    assert left == (Publication(UDP, 8080, "web", 53),)


def test_a_nat_gateway_comes_and_goes() -> None:
    world = operations.set_nat_gateway(PEERED, "one", "db", False)
    assert not world.vpc("one").subnet("db").reaches_internet
    assert operations.set_nat_gateway(world, "one", "db", True) == PEERED


def test_a_policy_is_detached_and_the_rest_stays() -> None:
    cleared = operations.clear_policy(PEERED, "one", "web")
    assert cleared.vpc("one").subnet("web").policy is None
    assert operations.clear_policy(cleared, "one", "web") == cleared


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: operations.create_vpc(w, "one", network("10.9.0.0/24")),
            "VPC one exists already; choose another name, or `vpcctl show-vpc --name one`$",
        ),
        (
            lambda w: operations.create_vpc(w, "x", network("100.64.1.0/24")),
            "overlaps the transit range .*`vpcctl create-vpc --transit` before",
        ),
        (
            lambda w: operations.delete_vpc(w, "one", False),
            "VPC one still has subnet web, subnet db, the peering with two; remove them first or use --cascade",
        ),
        (lambda w: operations.delete_vpc(w, "x", True), "VPC 'x' not found; known VPCs: one, two"),
        (
            lambda w: operations.create_subnet(w, "one", "web", network("10.0.0.48/28"), True, True, 0),
            "VPC one has a subnet web already",
        ),
        (
            lambda w: operations.create_subnet(w, "one", "x", network("10.0.0.8/29"), True, True, 0),
            r"subnet x: 10\.0\.0\.8/29 overlaps subnet web",
        ),
        (
            lambda w: operations.delete_subnet(w, "one", "x", True),
            "subnet 'x' not found in VPC one; known subnets: db, web",
        ),
        (
            lambda w: operations.delete_subnet(
                operations.create_instance(w, "one", "web", "a", None, 0), "one", "web", False
            ),
            "subnet web still has instance a; remove them first or use --cascade",
        ),
        (
            lambda w: operations.delete_subnet(w, "one", "web", False),
            "instance web still has tcp/8080 published; `vpcctl unpublish-port --vpc one --port 8080` first,"
            " or use --cascade$",
        ),
        (lambda w: operations.create_instance(w, "one", "web", "db", None, 0), "VPC one has an instance db already"),
        (
            lambda w: operations.create_instance(w, "one", "web", "a", address("10.0.0.2"), 0),
            r"10\.0\.0\.2 belongs to instance web already",
        ),
        (
            lambda w: operations.delete_instance(w, "one", "x"),
            "instance 'x' not found in VPC one; known instances: db, web",
        ),
        (
            lambda w: operations.delete_instance(w, "one", "web"),
            "instance web still has tcp/8080 published; `vpcctl unpublish-port --vpc one --port 8080` first$",
        ),
        (
            lambda w: operations.delete_instance(
                operations.publish_port(w, "one", Publication(UDP, 53, "web", 53)), "one", "web"
            ),
            "instance web still has tcp/8080, udp/53 published; `vpcctl unpublish-port --vpc one --port 8080` and"
            " `vpcctl unpublish-port --vpc one --port 53 --protocol udp` first$",
        ),
        (
            lambda w: operations.set_nat_gateway(w, "one", "web", True),
            "subnet web is public: it reaches the internet without a NAT gateway",
        ),
        (lambda w: operations.set_nat_gateway(w, "one", "db", True), "subnet db has a NAT gateway already"),
        (lambda w: operations.set_nat_gateway(w, "one", "web", False), "subnet web has no NAT gateway$"),
        (lambda w: operations.create_peering(w, "two", "one"), "VPCs two and one are peered already"),
        (lambda w: operations.create_peering(w, "one", "x"), "VPC 'x' not found; known VPCs: one, two"),
        (lambda w: operations.delete_peering(w, "one", "x"), "VPCs one and x are not peered"),
        (lambda w: operations.publish_port(w, "one", Publication(TCP, 1, "x", 1)), "instance 'x' not found in VPC one"),
        (
            lambda w: operations.publish_port(w, "two", Publication(TCP, 8080, "api", 1)),
            "port tcp/8080 is published for instance web of VPC one already",
        ),
        (
            lambda w: operations.unpublish_port(w, "one", UDP, 8080),
            "VPC one does not publish that port; `vpcctl show-vpc --name one` lists what it does",
        ),
        (lambda w: operations.clear_policy(w, "one", "x"), "subnet 'x' not found in VPC one; known subnets: db, web"),
    ],
)
def test_what_collides_with_what_exists_is_refused_with_the_reason(change, words: str) -> None:
    with pytest.raises(ConflictError, match=words):
        change(PEERED)


@pytest.mark.parametrize("name", ["", "a b", "router", "x" * 33])
def test_names_are_checked_wherever_they_are_given(name: str) -> None:
    with pytest.raises(DocumentError):
        operations.create_vpc(PEERED, name, network("10.9.0.0/24"))
    with pytest.raises(DocumentError):
        operations.create_subnet(PEERED, "one", name, network("10.0.0.32/28"), True, False, 0)
    with pytest.raises(DocumentError):
        operations.create_instance(PEERED, "one", "web", name, None, 0)


def test_a_vpc_is_not_peered_with_itself_or_with_one_of_its_prefix() -> None:
    with pytest.raises(DocumentError, match="cannot be peered with itself"):
        operations.create_peering(PEERED, "one", "one")
    twin = operations.create_vpc(PEERED, "twin", network("10.0.0.0/24"))
    with pytest.raises(ConflictError, match="overlap, and a router cannot tell them apart"):
        operations.create_peering(twin, "one", "twin")


def test_no_change_alters_the_world_that_it_is_given() -> None:
    before = dataclasses.replace(PEERED)
    operations.delete_vpc(PEERED, "one", True)
    operations.create_instance(PEERED, "one", "web", "a", None, 0)
    assert before == PEERED


def test_limits_are_changed_one_by_one_and_bounded() -> None:
    world = operations.set_limits(told("create VPC one"), "one", 500, None)
    assert (world.vpc("one").max_flows, world.vpc("one").max_ports) == (500, 8192)
    world = operations.set_limits(world, "one", None, 64)
    assert (world.vpc("one").max_flows, world.vpc("one").max_ports) == (500, 64)
    for flows, ports in ((0, None), (1 << 23, None), (None, 0), (None, 32769)):
        with pytest.raises(DocumentError, match="is expected"):
            operations.set_limits(world, "one", flows, ports)


def test_a_protocol_without_ports_is_translated_for_one_vpc_at_a_time() -> None:
    world = operations.set_nat_protocol(PEERED, "one", 47, True)
    assert world.vpc("one").nat_protocols == (47,)
    for vpc, protocol, present in (("two", 47, True), ("one", 47, True), ("one", 50, False)):
        with pytest.raises(ConflictError):
            operations.set_nat_protocol(world, vpc, protocol, present)
    with pytest.raises(DocumentError, match="protocol without ports"):
        operations.set_nat_protocol(world, "one", 6, True)
    assert operations.set_nat_protocol(world, "one", 47, False) == PEERED
