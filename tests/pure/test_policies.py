"""Policies from JSON to values and back: what the words mean, and what is wrong with those that mean nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import worlds
from vpcctl.documents.codec import policy_to_json, world_from_json, world_to_json
from vpcctl.documents.fields import parse_address, parse_prefix
from vpcctl.documents.policies import PolicyDocument, read_policies, read_policy
from vpcctl.errors import DocumentError
from vpcctl.model.network import Subnet, World
from vpcctl.model.operations import with_instance
from vpcctl.model.policy import ICMP, ICMPV6, SCTP, TCP, UDP, Action, Direction, Endpoint, Limit, Origin, Policy, Rule

FILE = "web.json"


def read(document: object) -> list[PolicyDocument]:
    return read_policies(document, FILE)


def rule(**fields: object) -> Rule:
    """The rule of one line, an `allow` unless it says otherwise."""
    return read({"ingress": [{"action": "allow"} | fields]})[0].policy.ingress[0]


def problems(**fields: object) -> list[str]:
    """What is told about one line."""
    with pytest.raises(DocumentError) as caught:
        rule(**fields)
    return [str(problem) for problem in caught.value.problems]


def prefix(text: str) -> Endpoint:
    return Endpoint("prefix", prefix=worlds.network(text))


# -- documents -----------------------------------------------------------------------------------------------------


def test_the_format_of_the_first_vpcctl_is_a_policy() -> None:
    old = {"subnet": "10.0.0.0/28", "ingress": [{"port": 80, "protocol": "tcp", "action": "allow"}]}
    (found,) = read(old)
    assert (found.vpc, found.subnet) == (None, "10.0.0.0/28")
    assert found.policy.ingress == (Rule(Action.ALLOW, TCP, ((80, 80),), origin=Origin("web.json", "/ingress/0")),)
    assert found.policy.egress is None


def test_a_file_holds_one_policy_an_array_or_an_object_with_an_array() -> None:
    one = {"subnet": "web", "ingress": []}
    assert [found.policy.pointer for found in read(one)] == [""]
    assert [found.policy.pointer for found in read([one, one])] == ["/0", "/1"]
    assert [found.policy.pointer for found in read({"policies": [one, one]})] == ["/policies/0", "/policies/1"]
    assert read([]) == read({"policies": []}) == []


def test_the_vpc_of_a_collection_is_that_of_its_policies_unless_they_say_another() -> None:
    found = read({"vpc": "one", "policies": [{"subnet": "a"}, {"subnet": "b", "vpc": "two"}]})
    assert [one.vpc for one in found] == ["one", "two"]


def test_sets_of_a_collection_are_known_to_its_policies_and_their_own_win() -> None:
    shared, own = ["203.0.113.0/24"], ["198.51.100.0/24"]
    first, second = read({"sets": {"s": shared}, "policies": [{}, {"sets": {"s": own, "t": own}}]})
    assert dict(first.policy.sets) == {"s": (worlds.network(shared[0]),)}
    assert dict(second.policy.sets) == {"s": (worlds.network(own[0]),), "t": (worlds.network(own[0]),)}


def test_every_rule_knows_its_line() -> None:
    found = read({"policies": [{"ingress": [{"action": "deny"}] * 2, "egress": [{"action": "allow"}]}]})[0].policy
    assert [str(one.origin) for one in (*found.ingress, *found.egress)] == [
        "web.json#/policies/0/ingress/0",
        "web.json#/policies/0/ingress/1",
        "web.json#/policies/0/egress/0",
    ]


def test_an_absent_direction_allows_and_a_present_one_denies_unless_it_says_otherwise() -> None:
    def defaults(document: dict) -> tuple[Action, Action]:
        policy = read(document)[0].policy
        return policy.default(Direction.INGRESS), policy.default(Direction.EGRESS)

    assert defaults({}) == (Action.ALLOW, Action.ALLOW)
    assert defaults({"ingress": []}) == (Action.DENY, Action.ALLOW)
    assert defaults({"ingress": [], "default": {"ingress": "allow"}}) == (Action.ALLOW, Action.ALLOW)
    assert defaults({"default": {"egress": "deny"}}) == (Action.ALLOW, Action.DENY)


# -- words of a rule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "number"),
    [("tcp", TCP), ("TCP", TCP), ("Udp", UDP), ("sctp", SCTP), ("icmp", ICMP), ("ICMPv6", ICMPV6), ("any", None),
     ("Any", None), (0, 0), (255, 255), ("0", 0), ("255", 255), ("6", TCP), (6, TCP)],
)  # fmt: skip
def test_protocols(word: object, number: int | None) -> None:
    assert rule(protocol=word).protocol == number


@pytest.mark.parametrize(
    ("word", "ranges"),
    [
        (80, ((80, 80),)), ("80", ((80, 80),)), (1, ((1, 1),)), (65535, ((65535, 65535),)),
        ("8000-8080", ((8000, 8080),)), ("80-80", ((80, 80),)), ("1-65535", ((1, 65535),)),
        ([22, "80-81"], ((22, 22), (80, 81))), ("*", None), (["*"], None), ([80, "*"], None), ([], ()),
    ],
)  # fmt: skip
def test_ports(word: object, ranges: tuple | None) -> None:
    assert rule(protocol="tcp", port=word).ports == ranges


def test_every_port_of_any_protocol_is_everything() -> None:
    assert rule(port="*").ports is None
    assert rule().ports is None


@pytest.mark.parametrize(
    ("protocol", "word", "numbers"),
    [("icmp", "echo-request", [8]), ("icmpv6", "echo-request", [128]), ("icmp", 0, [0]), ("icmp", 255, [255]),
     ("icmp", ["echo-reply", 13], [0, 13]), ("icmp", [], []), (1, "redirect", [5]), ("58", "nd-redirect", [137])],
)  # fmt: skip
def test_icmp_types(protocol: object, word: object, numbers: list[int]) -> None:
    assert rule(protocol=protocol, icmp_type=word).icmp_types == tuple((number, number) for number in numbers)


@pytest.mark.parametrize(
    ("word", "endpoints"),
    [
        ("any", (Endpoint("any"),)), ("internet", (Endpoint("internet"),)), ([], ()),
        ("subnet:web", (Endpoint("subnet", "web"),)), ("instance:a-1", (Endpoint("instance", "a-1"),)),
        ("vpc:two", (Endpoint("vpc", "two"),)), ("set:office", (Endpoint("set", "office"),)),
        ("10.0.0.0/28", (prefix("10.0.0.0/28"),)), ("10.0.0.2", (prefix("10.0.0.2/32"),)),
        ("0.0.0.0/0", (prefix("0.0.0.0/0"),)), ("::/0", (prefix("::/0"),)),
        ("2001:db8::1", (prefix("2001:db8::1/128"),)),
        (["any", "10.0.0.2"], (Endpoint("any"), prefix("10.0.0.2/32"))),
    ],
)  # fmt: skip
def test_endpoints(word: object, endpoints: tuple) -> None:
    assert rule(source=word).sources == endpoints
    assert rule(destination=word).destinations == endpoints


@pytest.mark.parametrize(
    ("word", "limit"),
    [
        ("10/second", Limit(10, "second")),
        ("1/day burst 1", Limit(1, "day", 1)),
        ("100/minute burst 20", Limit(100, "minute", 20)),
    ],
)
def test_limits(word: str, limit: Limit) -> None:
    assert rule(limit=word).limit == limit


# -- what is wrong -------------------------------------------------------------------------------------------------

WHERE = "web.json#/ingress/0"


PROTOCOL = "is not a protocol (tcp, udp, sctp, icmp, icmpv6, any, or a number 0–255)"
PORT = 'is not a port (1–65535), a range "8000-8080" or "*"'
PORTLESS = 'add "protocol": tcp, udp or sctp'
ENDPOINT = "is not an endpoint (any, internet, a prefix or address, subnet:NAME, instance:NAME, vpc:NAME or set:NAME)"


@pytest.mark.parametrize(
    ("fields", "pointer", "words"),
    [
        (
            {"action": "accept"},
            "/action",
            '"accept" is not an action (allow, deny or reject); write "allow"',
        ),
        ({"prot": "tcp"}, "/prot", "unknown field 'prot'; did you mean 'port'?"),
        ({"protocol": "tpc"}, "/protocol", f"\"tpc\" {PROTOCOL}; did you mean 'tcp'?"),
        ({"protocol": 256}, "/protocol", f"256 {PROTOCOL}"),
        ({"protocol": "256"}, "/protocol", '"256" is not a protocol number (0–255)'),
        ({"protocol": 6.0}, "/protocol", "6.0 is not a protocol number (0–255); write 6"),
        ({"port": 80}, "/port", f"80 is a port, and any protocol has none; {PORTLESS}"),
        ({"port": 80, "protocol": "icmp"}, "/port", f"80 is a port, and icmp has none; {PORTLESS}"),
        ({"port": "*", "protocol": 47}, "/port", f'"*" is a port, and protocol 47 has none; {PORTLESS}'),
        ({"port": 70000, "protocol": "tcp"}, "/port", f"70000 {PORT}"),
        ({"port": "70000", "protocol": "tcp"}, "/port", "70000 is not a port (1–65535)"),
        ({"port": 0, "protocol": "tcp"}, "/port", f"0 {PORT}"),
        ({"port": "0-80", "protocol": "tcp"}, "/port", "0 is not a port (1–65535)"),
        ({"port": "90-80", "protocol": "tcp"}, "/port", '"90-80" is an empty range; 80-90 is the other way round'),
        ({"port": 80.0, "protocol": "tcp"}, "/port", "80.0 is not a port (1–65535); write 80"),
        ({"port": [80, "x"], "protocol": "tcp"}, "/port/1", f'"x" {PORT}'),
        ({"icmp_type": 8}, "/icmp_type", '8 is an ICMP type; add "protocol": "icmp" or "icmpv6"'),
        (
            {"icmp_type": "echo-requst", "protocol": "icmp"},
            "/icmp_type",
            "\"echo-requst\" is not a type of icmp; did you mean 'echo-request'?",
        ),
        (
            {"source": "10.0.0.1/28"},
            "/source",
            '"10.0.0.1/28" has bits set beyond its prefix length; 10.0.0.0/28 is the prefix',
        ),
        (
            {"destination": ["any", "10.0.0.0/33"]},
            "/destination/1",
            '"10.0.0.0/33" is not a prefix such as 10.0.1.0/24',
        ),
        ({"source": "web"}, "/source", f'"web" {ENDPOINT}'),
        ({"limit": "fast"}, "/limit", '"fast" is not a limit such as "10/second" or "100/minute burst 20"'),
        (
            {"limit": "1/second", "action": "deny"},
            "/limit",
            "a limit goes with the action allow, and this rule's is deny",
        ),
        ({"log": "yes"}, "/log", '"yes" is not true or false'),
        ({"description": 5}, "/description", "5 is not a text"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_what_was_found_and_what_was_expected(
    fields: dict, pointer: str, words: str
) -> None:
    assert problems(**fields) == [f"{WHERE}{pointer}: {words}"]


def test_a_rule_without_an_action_is_told_so() -> None:
    with pytest.raises(DocumentError) as caught:
        read({"ingress": [{"protocol": "tcp"}]})
    assert str(caught.value) == (
        f"{WHERE}: the field 'action' is missing: an action (allow, deny or reject) is expected"
    )


def test_all_errors_of_a_document_are_told_at_once_in_the_order_of_their_places() -> None:
    with pytest.raises(DocumentError) as caught:
        read(
            {
                "sets": {"s": ["10.0.0.1/8"]},
                "subnt": "web",
                "ingress": [
                    {"action": "alow", "source": "10.0.0.1/28"},
                    {"protocol": "tcp", "port": [0, "9-8"]},
                    {"action": "allow", "port": 80},
                ],
                "default": {"ingress": "reject"},
            }
        )
    assert [problem.pointer for problem in caught.value.problems] == [
        "/sets/s/0",
        "/subnt",
        "/ingress/0/action",
        "/ingress/0/source",
        "/ingress/1",
        "/ingress/1/port/0",
        "/ingress/1/port/1",
        "/ingress/2/port",
        "/default/ingress",
    ]


# -- and back ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(worlds.policies())
def test_a_policy_survives_the_way_through_its_document(policy: Policy) -> None:
    document = json.loads(json.dumps(policy_to_json(policy), sort_keys=True))
    assert read_policy(document, policy.file, policy.pointer) == policy
    (found,) = read_policies(document, policy.file)
    assert found.policy == policy


@settings(max_examples=25, deadline=None)
@given(worlds.worlds())
def test_a_world_survives_the_way_through_the_state_file(world: World) -> None:
    kept = json.loads(json.dumps(world_to_json(world)))
    assert world_from_json(kept) == world
    assert world_to_json(world_from_json(kept)) == kept


@settings(max_examples=15, deadline=None)
@given(worlds.worlds(dual=True))
def test_a_world_of_both_versions_survives_too(world: World) -> None:
    assert world_from_json(json.loads(json.dumps(world_to_json(world)))) == world


@given(st.sampled_from(worlds.NETWORKS))
def test_prefixes_survive_their_text(found: object) -> None:
    assert parse_prefix(str(found)) == found


@pytest.mark.parametrize("text", ["10.0.0.0/24\n", " 10.0.0.0/24", "10.0.0/24", "10.0.0.0/-1", "", "/24", "ten"])
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a prefix such as"):
        parse_prefix(text)


@pytest.mark.parametrize("text", ["10.0.0.1/32", "10.0.0", "", "x", "10.0.0.1\n"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address such as 10\.0\.1\.9"):
        parse_address(text)


def test_a_new_instance_of_an_old_name_has_a_mac_of_its_own() -> None:
    empty = Subnet("web", (worlds.network("10.0.0.0/28"),), True)
    macs = {with_instance(empty, "one", "web", serial=serial).instances[0].mac for serial in range(5)}
    assert len(macs) == 5
