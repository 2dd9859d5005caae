"""Which subnet a document is for, and whether the names in it mean something there."""

from __future__ import annotations

import pytest

from tests.story import policy, subnet, told
from vpcctl.documents import binding
from vpcctl.documents.binding import attach
from vpcctl.documents.policies import PolicyDocument, read_policies
from vpcctl.errors import DocumentError
from vpcctl.model import operations
from vpcctl.model.network import World
from vpcctl.model.policy import Policy

PEERED = told("peer them")


def documents(*found: dict, file: str = "web.json") -> list[PolicyDocument]:
    return read_policies(list(found), file)


def attached(world: World, vpc: str, name: str) -> Policy | None:
    return world.vpc(vpc).subnet(name).policy


def refusal(world: World, *found: dict, **chosen: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        attach(world, documents(*found), **chosen)
    return list(map(str, caught.value.problems))


# -- where a document belongs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [{"subnet": "api"}, {"subnet": "10.0.0.64/28"}, {"subnet": "api", "vpc": "two"}])
def test_a_document_finds_its_subnet_by_name_or_prefix(words: dict) -> None:
    world, found, _ = attach(PEERED, documents(words | {"ingress": []}))
    assert [(one.vpc, one.subnet) for one in found] == [("two", "api")]
    assert attached(world, "two", "api") == found[0].policy
    assert attached(world, "one", "db") is None


def test_what_the_command_line_says_wins() -> None:
    world, found, _ = attach(PEERED, documents({"vpc": "two", "subnet": "api", "ingress": []}), vpc="one", subnet="db")
    assert [(one.vpc, one.subnet) for one in found] == [("one", "db")]
    assert attached(world, "two", "api") is None


def test_a_name_that_several_vpcs_have_needs_the_vpc() -> None:
    both = subnet("two", "web", "10.0.0.80/28")(PEERED)
    assert refusal(both, {"subnet": "web"}) == [
        "web.json#/0/subnet: several VPCs have a subnet 'web': one, two; name one with \"vpc\" or --vpc"
    ]
    assert attach(both, documents({"subnet": "web"}), vpc="two")[1][0].vpc == "two"
    assert attach(both, documents({"subnet": "web", "vpc": "one"}))[1][0].vpc == "one"


@pytest.mark.parametrize(
    ("words", "chosen", "message"),
    [
        ({}, {}, 'web.json#/0: which subnet? add a field "subnet" (name or prefix), or use --subnet'),
        ({"subnet": "wev"}, {}, "web.json#/0/subnet: subnet 'wev' not found; did you mean 'web'?"),
        ({"subnet": "x", "vpc": "two"}, {}, "web.json#/0/subnet: subnet 'x' not found in VPC two; expected: api"),
        ({"subnet": "10.0.0.0/27"}, {}, "web.json#/0/subnet: subnet '10.0.0.0/27' not found; expected: api, db, web"),
        ({"subnet": "web", "vpc": "on"}, {}, "web.json#/0/vpc: VPC 'on' not found; did you mean 'one'?"),
        ({"subnet": "web"}, {"vpc": "x"}, "web.json#/0: VPC 'x' not found; expected: one, two"),
        ({"subnet": "web"}, {"subnet": "x"}, "web.json#/0: subnet 'x' not found; expected: api, db, web"),
    ],
)
def test_a_document_that_fits_nowhere_is_told_where_it_could(words: dict, chosen: dict, message: str) -> None:
    assert refusal(PEERED, words, **chosen) == [message]


def test_where_there_is_nothing_that_is_said() -> None:
    assert refusal(World(), {"subnet": "web"}) == ["web.json#/0/subnet: subnet 'web' not found; known subnets: none"]


def test_a_subnet_has_one_policy_in_a_command() -> None:
    assert refusal(PEERED, {"subnet": "web"}, {"subnet": "10.0.0.0/28"}) == [
        "web.json#/1: subnet web of VPC one has a policy in this command already, at web.json#/0; keep one"
    ]


def test_all_documents_that_fit_nowhere_are_told_at_once_and_nothing_is_attached() -> None:
    found = refusal(PEERED, {"subnet": "x"}, {"subnet": "web"}, {}, {"subnet": "web"})
    assert [message.partition(":")[0] for message in found] == ["web.json#/0/subnet", "web.json#/2", "web.json#/3"]


def test_a_policy_takes_the_place_of_the_one_before() -> None:
    world = policy({"subnet": "web", "ingress": []})(PEERED)
    again = policy({"subnet": "web", "egress": []})(world)
    assert attached(again, "one", "web").ingress is None
    assert attached(again, "one", "web").egress == ()


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "hint"),
    [
        ("subnet:wev", "no subnet 'wev' is known here; did you mean 'web'?"),
        ("subnet:api", "no subnet 'api' is known here; expected: db, web"),
        ("instance:ghost", "no instance 'ghost' is known here; expected: db, web"),
        ("vpc:tow", "no vpc 'tow' is known here; did you mean 'two'?"),
        ("set:office", "no set 'office' is known here; known sets: none"),
    ],
)
def test_an_endpoint_that_names_nothing_is_an_error(endpoint: str, hint: str) -> None:
    line = {"action": "allow", "source": ["any", endpoint]}
    assert refusal(PEERED, {"subnet": "web", "ingress": [line]}) == [
        f"web.json#/0/ingress/0/source/1: {endpoint} names nothing: {hint}"
    ]


def test_names_that_are_known_are_none() -> None:
    line = {"action": "allow", "source": ["subnet:db", "instance:web", "vpc:one", "vpc:two", "set:own", "set:office"]}
    document = {"subnet": "web", "sets": {"own": []}, "ingress": [line]}
    with pytest.raises(DocumentError, match="set:office names nothing"):
        attach(PEERED, documents(document))
    shared = read_policies({"sets": {"office": []}, "policies": [document]}, "web.json")
    assert attach(PEERED, shared)[1]


def test_the_names_in_policies_of_a_whole_world_are_checked_too() -> None:
    world = policy({"subnet": "web", "ingress": [{"action": "deny", "source": "subnet:db"}]})(PEERED)
    assert binding.check_names(world, {"one", "two"}, "web.json") == []
    without = operations.delete_subnet(world, "one", "db", True)
    assert [problem.pointer for problem in binding.check_names(without, {"one"}, "web.json")] == ["/ingress/0/source"]
    assert binding.check_names(without, {"two"}, "web.json") == []


# -- warnings ------------------------------------------------------------------------------------------------------


def warnings(document: dict, world: World = PEERED) -> list[str]:
    return attach(world, documents({"subnet": "web"} | document))[2]


def test_an_implied_denial_is_said_and_a_stated_one_is_not() -> None:
    assert warnings({"ingress": []}) == [
        "web.json#/0: ingress of one/web denies traffic that no rule matches"
        ' (implicit; set "default" to make it explicit)'
    ]
    assert len(warnings({"ingress": [], "egress": []})) == 2
    assert warnings({"ingress": [], "default": {"ingress": "deny"}}) == []
    assert warnings({}) == []


STATED = {"default": {"ingress": "deny", "egress": "deny"}}


def test_a_vpc_that_is_no_peer_yet_is_a_warning() -> None:
    line = {"action": "allow", "source": "vpc:two"}
    assert warnings({"ingress": [line]} | STATED) == []
    assert warnings({"ingress": [line]} | STATED, told("create its subnet api")) == [
        "web.json#/0/ingress/0/source: vpc:two matches nothing until one and two are peered"
    ]


@pytest.mark.parametrize(
    ("direction", "field", "endpoint", "warned"),
    [
        ("ingress", "destination", "10.0.0.16/28", True),
        ("ingress", "destination", "subnet:db", True),
        ("ingress", "destination", "203.0.113.7", True),
        ("ingress", "destination", "10.0.0.2", False),
        ("ingress", "destination", "10.0.0.0/26", False),
        ("ingress", "destination", "any", False),
        ("ingress", "source", "10.0.0.16/28", False),
        ("egress", "source", "subnet:db", True),
        ("egress", "source", "subnet:web", False),
        ("egress", "destination", "subnet:db", False),
    ],
)
def test_narrowing_to_addresses_that_the_subnet_has_not_is_a_warning(
    direction: str, field: str, endpoint: str, warned: bool
) -> None:
    found = warnings({direction: [{"action": "allow", field: endpoint}]} | STATED)
    expected = f"web.json#/0/{direction}/0: {endpoint}"
    assert [warning.startswith(expected) for warning in found] == ([True] if warned else [])
