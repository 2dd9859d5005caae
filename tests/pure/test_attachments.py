"""Which subnet a document is for, and whether the names in it mean something there."""

from __future__ import annotations

import pytest

from tests.story import policy, subnet, told
from vpcctl.documents import binding
from vpcctl.documents.binding import attach, sound_policies
from vpcctl.documents.policies import PolicyDocument, PolicyFile, read_policies, read_policy_file
from vpcctl.errors import DocumentError, StateError
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


# -- documents of which a part cannot be read ----------------------------------------------------------------------


def wrong(*found: object, world: World = PEERED, **chosen: str) -> list[str]:
    """The errors of files with these contents, named 1.json and so on, each cut after its first words."""
    files = [read_policy_file(one, f"{number}.json") for number, one in enumerate(found, 1)]
    with pytest.raises(DocumentError) as caught:
        sound_policies(files, lambda: world, **chosen)
    return [str(problem).partition("; ")[0] for problem in caught.value.problems]


UNKNOWN = "unknown field"


def test_policies_without_a_problem_are_handed_over_and_no_world_is_asked_for() -> None:
    files = [PolicyFile(tuple(documents({"subnet": name}))) for name in ("web", "nowhere")]

    def present() -> World:
        raise AssertionError

    assert [one.subnet for one in sound_policies(files, present)] == ["web", "nowhere"]


def test_everything_that_is_wrong_in_any_file_is_told_in_the_order_of_the_files_and_places() -> None:
    rules = [{"action": "allow", "source": "subnet:wbe"}, {"action": "alow", "destination": ["any", "set:x", 5]}]
    found = wrong({"ingress": rules, "subnet": "web"}, {"subnet": "10.0.0.0/28"}, {"subnet": "wev"}, "no policy")
    assert found == [
        "1.json#/ingress/0/source: subnet:wbe names nothing: no subnet 'wbe' is known here",
        '1.json#/ingress/1/action: "alow" is not an action (allow, deny or reject)',
        "1.json#/ingress/1/destination/1: set:x names nothing: no set 'x' is known here",
        "1.json#/ingress/1/destination/2: 5 is not an endpoint (any, internet, a prefix or address, subnet:NAME,"
        " instance:NAME, vpc:NAME or set:NAME)",
        "2.json#: subnet web of VPC one has a policy in this command already, at 1.json#",
        "3.json#/subnet: subnet 'wev' not found",
        '4.json#: "no policy" is not a policy (an object)',
    ]


@pytest.mark.parametrize(
    "document",
    [
        {"subnet": 5},
        {"subnett": "web"},
        {"subnett": 5},
        {"name": "web"},
        {"subnet": "wrong name"},
        {"vpc": 5, "subnet": "web"},
        {"network": "one", "subnet": "web"},
        {"subnet": "db", "sets": 5, "ingress": [{"action": "allow", "source": "set:x"}]},
        {"subnet": "db", "set": {"x": []}, "ingress": [{"action": "allow", "source": "set:x"}]},
        {"subnet": "db", "lists": {"x": []}, "ingress": [{"action": "allow", "source": "set:x"}]},
        {"subnet": "db", "sets": {"x": 5}, "ingress": [{"action": "allow", "source": "set:x"}]},
        {"subnet": "db", "sets": {"x y": []}, "ingress": [{"action": "allow", "source": "set:x-y"}]},
        {"policies": {"subnet": "web"}},
        {"policys": [{"subnet": "web"}], "vpc": "one"},
        {"vpc": 5, "policies": [{"subnet": "web"}, {"subnet": "web", "vpc": "two"}]},
        {"vpc": "one", "policies": [{"subnet": "web", "vpc": 5}]},
        {"vpc": "oen", "policies": [{"subnet": "web"}, {"subnet": "web"}, {"subnet": "db"}], "description": "x"},
        {"sets": 5, "policies": [{"subnet": "db", "ingress": [{"action": "allow", "source": "set:x"}]}]},
        {"subnet": "db", "ingress": [{"action": "allow", "source": "subnet:a b"}]},
        {"subnet": "db", "ingress": {"action": "allow", "source": "subnet:x"}},
        ["web"],
    ],
)
def test_what_only_follows_from_a_wrong_part_is_not_told(document: object) -> None:
    both = subnet("two", "web", "10.0.0.80/28")(PEERED)
    # Another file is wrong in any case.
    told_once = [problem for problem in wrong(document, 0, world=both) if problem.startswith("1.json")]
    assert len(told_once) == 1


def test_an_unknown_field_that_cannot_be_the_subnet_hides_nothing() -> None:
    which = 'which subnet? add a field "subnet" (name or prefix), or use --subnet'
    which = which.partition("; ")[0]
    assert wrong({"comment": "web"}) == [f"1.json#: {which}", f"1.json#/comment: {UNKNOWN} 'comment'"]
    assert wrong({"version": 2}) == [f"1.json#: {which}", f"1.json#/version: {UNKNOWN} 'version'"]


def test_what_the_command_line_says_stands_for_what_cannot_be_read() -> None:
    document = {"subnet": 5, "vpc": 6, "ingress": [{"action": "allow", "source": "subnet:api"}]}
    fields = ['1.json#/subnet: 5 is not a subnet (its name, its prefix or "*")', "1.json#/vpc: 6 is not a name"]

    def found(**chosen: str) -> list[str]:
        return [problem.partition(" (1–32")[0] for problem in wrong(document, **chosen)]

    # Without a VPC the name may be right in one of them.
    assert found() == fields
    assert found(vpc="one", subnet="web") == [
        *fields,
        "1.json#/ingress/0/source: subnet:api names nothing: no subnet 'api' is known here",
    ]
    assert found(vpc="two", subnet="x") == ["1.json#: subnet 'x' not found in VPC two", *fields]
    assert found(vpc="three") == ["1.json#: VPC 'three' not found", *fields]


def test_names_are_judged_in_every_vpc_for_which_a_document_may_be() -> None:
    both = subnet("two", "web", "10.0.0.80/28")(PEERED)
    rules = [{"action": "allow", "source": ["subnet:db", "subnet:api", "instance:x", "vpc:three", "set:x"]}]
    names = ["instance:x", "vpc:three", "set:x"]

    def named(document: dict) -> list[str]:
        found = wrong({"ingress": rules} | document, 0, world=both)
        return [words.split()[1] for words in found if " names nothing: " in words]

    assert named({"subnet": "web"}) == names
    assert named({"subnet": 5}) == names
    assert named({"subnet": "db"}) == ["subnet:api", *names]
    assert named({"subnet": "x", "vpc": "one"}) == ["subnet:api", *names]
    assert named({"vpc": "two"}) == ["subnet:db", *names]
    # A subnet or a VPC that does not exist may have any names.
    assert named({"subnet": "x"}) == named({"vpc": "x"}) == ["vpc:three"]


def test_where_the_world_cannot_be_read_the_documents_are_wrong_nevertheless() -> None:
    files = [read_policy_file({"subnet": "nowhere", "x": 1}, "web.json")]

    def present() -> World:
        raise StateError("the state is damaged")

    with pytest.raises(DocumentError) as caught:
        sound_policies(files, present)
    assert [problem.pointer for problem in caught.value.problems] == ["/x"]


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
