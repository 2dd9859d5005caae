"""Strict JSON, and documents taken apart at random: whatever stands in a file, the answer is a document error."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.story import told
from tests.tracer import Tracer
from vpcctl.compiler import compile_vpc
from vpcctl.documents import binding, fastpath, reading
from vpcctl.documents.environment import read_environment
from vpcctl.documents.fastpath import accepts, without_plain_parts
from vpcctl.documents.policies import read_policies, read_policy_file
from vpcctl.errors import DocumentError, Problem
from vpcctl.model.network import World

WHOLE = {
    "vpc": "one",
    "sets": {"office": ["203.0.113.0/24", "203.0.113.7"]},
    "policies": [
        {
            "subnet": "web",
            "description": "the front",
            "default": {"ingress": "deny", "egress": "allow"},
            "sets": {"own": ["10.0.0.0/28"]},
            "ingress": [
                {
                    "action": "allow",
                    "protocol": "tcp",
                    "port": [22, "80-90", "*"],
                    "source": ["set:office", "internet"],
                },
                {
                    "action": "allow",
                    "protocol": "icmp",
                    "icmp_type": ["echo-request", 13],
                    "limit": "10/second burst 20",
                },
                {"action": "reject", "protocol": 47, "log": True, "destination": "instance:web"},
            ],
            "egress": [{"action": "deny", "source": "subnet:db", "destination": [], "description": "nothing"}],
        },
        {"subnet": "10.0.0.16/28", "ingress": []},
    ],
}
ENVIRONMENT = {
    "vpcs": [
        {
            "name": "one",
            "cidr": "10.0.0.0/26",
            "sets": {"office": ["203.0.113.0/24"]},
            "publish": [{"protocol": "tcp", "port": 8080, "instance": "web", "target_port": 80}],
            "subnets": [
                {
                    "name": "web",
                    "cidr": "10.0.0.0/28",
                    "type": "private",
                    "nat_gateway": True,
                    "instances": [{"name": "web"}, {"name": "web-2", "ip": "10.0.0.9"}],
                    "policy": WHOLE["policies"][0],
                },
                {"name": "db", "cidr": "10.0.0.16/28", "type": "private", "policy": "db.json"},
            ],
        },
        {"name": "two", "cidr": "10.0.0.64/26"},
    ],
    "peerings": [["one", "two"]],
}
# What may stand anywhere, if not where it stands.
ODD = (
    None, True, False, 0, -1, 1, 8.0, 80.5, 70000, 10**30, 1e300, "", "x", "*", "80", "80\n", "0", "99999", "8-",
    "90-80", "tcp", "tcp\n", "any", "ANY", "999", "echo-request", "redirect", "10/second", "10/second\n", "0/second",
    "1/day burst 0", "10.0.0.0/28", "10.0.0.1/28", "10.0.0.0/33", "1.2.3.4/999", ":::", "::/0", "300.1.1.1",
    "2001:db8::1%eth0", "internet", "subnet:web", "subnet:web\n", "subnet:", "instance:ghost", "set:office", "vpc:two",
    "web", "web\n", "Web", "-", "router", "é", "\ud800", "\u0000", "a" * 40, "allow", "deny", [], {}, [[]], [{}],
    [None], {"": 0}, ["*", 80], {"action": "allow"}, {"policies": []}, [{"action": "allow"}],
)  # fmt: skip


def distorted(document: Any, chance: random.Random) -> Any:
    """The document with one to three of its values replaced, removed or doubled."""
    made = copy.deepcopy(document)
    for _ in range(chance.randint(1, 3)):
        holders = list(_holders(made))
        holder = chance.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        act = chance.choice(["replace", "replace", "replace", "remove", "add"])
        if act == "add" or not keys:
            if isinstance(holder, dict):
                holder[chance.choice(["ingress", "port", "policy", "é/~", "source", "name", "vpcs", "\n", ""])] = (
                    copy.deepcopy(chance.choice(ODD))
                )
            else:
                holder.append(copy.deepcopy(chance.choice(ODD)))
        elif act == "remove":
            del holder[chance.choice(keys)]
        else:
            holder[chance.choice(keys)] = copy.deepcopy(chance.choice(ODD))
    return made


def _holders(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


seeds = st.integers(0, 2**64)


def refusal(read: Callable[[], Any]) -> tuple[Any, tuple[Problem, ...]]:
    """What `read` returns, or the problems that it told; each knows its place."""
    try:
        return read(), ()
    except DocumentError as error:
        told_problems = error.problems
    assert told_problems
    assert all(isinstance(problem, Problem) for problem in told_problems), told_problems
    return None, told_problems


def compiles(world: World) -> None:
    """The rulesets of the world are such as the tracer, which is strict, can read."""
    for vpc in world.vpcs:
        Tracer(compile_vpc(world, vpc.name, "owner").tables[0])


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=True))
def test_a_distorted_policy_is_compiled_or_refused_and_nothing_else(chance: random.Random) -> None:
    document = distorted(WHOLE, chance)
    found, problems = refusal(lambda: read_policies(document, "web.json"))
    for problem in problems:
        assert problem.file == "web.json"
        assert points_into(problem.pointer, document), (problem, document)
    world = told("create its private subnet db")
    if not problems:
        attached, _ = refusal(lambda: binding.attach(world, found))
        if attached:
            compiles(attached[0])
        return
    # If the readable part keeps the names, the same errors are found, and more.
    _, more = refusal(lambda: binding.sound_policies([read_policy_file(document, "web.json")], lambda: world))
    assert set(problems) <= set(more)
    assert all(points_into(problem.pointer, document) for problem in more), (more, document)


def test_a_set_without_a_name_is_refused_by_its_place() -> None:
    _, problems = refusal(lambda: read_policies({"sets": {"": []}, "policies": []}, "web.json"))
    assert [problem.pointer for problem in problems] == ["/sets/"]


def test_a_set_that_is_named_like_a_field_is_a_set_like_others() -> None:
    document = {"sets": {"action": "x", "protocol": 5, "port": ["10.0.0.1/28"]}, "policies": []}
    _, problems = refusal(lambda: read_policies(document, "web.json"))
    assert [problem.pointer for problem in problems] == ["/sets/action", "/sets/protocol", "/sets/port/0"]


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=True))
def test_a_distorted_environment_is_compiled_or_refused_and_nothing_else(chance: random.Random) -> None:
    def load(path: str) -> tuple[Any, str]:
        if path != "db.json":
            raise DocumentError(f"{path}: cannot be read (No such file or directory)")
        return {"ingress": []}, path

    document = distorted(ENVIRONMENT, chance)
    world, problems = refusal(lambda: read_environment(document, "shop.json", load))
    if not problems:
        compiles(world)


def test_ports_that_are_whole_numbers_are_numbers_wherever_they_stand() -> None:
    document = copy.deepcopy(ENVIRONMENT)
    document["vpcs"][0]["publish"] = [{"protocol": "tcp", "port": 8080.0, "instance": "web", "target_port": 80.0}]
    world = read_environment(document, "shop.json", lambda path: ({"ingress": []}, path))
    compiles(world)
    assert str(world.vpcs[0].publications[0].port) == "8080"


def points_into(pointer: str, document: Any) -> bool:
    """Does the JSON pointer name a value of the document, or one that is missing there?"""
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, list):
            if not part.isdigit() or int(part) >= len(document):
                return False
            document = document[int(part)]
        elif isinstance(document, dict):
            if part not in document:
                return False
            document = document[part]
        else:
            return False
    return True


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=True))
def test_a_quick_yes_is_one_of_the_schema_too(chance: random.Random) -> None:
    kind, document = chance.choice(
        [("environment", ENVIRONMENT), *(("policy", one) for one in (WHOLE, *WHOLE["policies"]))]
    )
    document = distorted(document, chance)
    if accepts(kind, document):
        assert reading.structure_problems(document, kind, "web.json") == []


@pytest.mark.parametrize("kind", ["policy", "environment"])
def test_every_document_of_the_tests_that_is_valid_gets_a_quick_yes(kind: str) -> None:
    """Otherwise each would need jsonschema: its import, and a second for ten thousand rules."""
    files = sorted(file for file in Path("rulesets").rglob("*.json") if "rejected" not in file.parts)
    found = [json.loads(file.read_text()) for file in files]
    valid = [one for one in found if not reading.structure_problems(one, kind, "web.json")]
    assert len(valid) > 5
    assert all(accepts(kind, one) for one in valid)


def test_a_keyword_that_is_not_known_is_left_to_the_schema() -> None:
    check = fastpath.translated("policy", {"type": "object", "minProperties": 1})
    with pytest.raises(fastpath.Undecided):
        check({})
    assert not fastpath.translated("policy", {"enum": ["allow"]})(1)


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=True))
def test_an_environment_without_its_plain_parts_has_the_same_problems(chance: random.Random) -> None:
    document = distorted(ENVIRONMENT, chance)
    whole, rest = (
        reading.structure_problems(one, "environment", "shop.json") for one in (document, without_plain_parts(document))
    )
    assert rest == whole


def test_plain_sets_and_policies_are_not_left_to_the_schema() -> None:
    """It takes a second for ten thousand of them, and `apply` reads the document while it holds the lock."""
    plain = {"sets": {"office": ["203.0.113.0/24", "2001:db8::1"]}, "ingress": [{"action": "allow"}]}
    assert accepts("policy", plain)
    assert accepts("policy", {"sets": plain["sets"], "policies": [plain]})
    subnet = {"name": "web", "policy": plain}
    left = without_plain_parts({"vpcs": [{"name": "one", "sets": plain["sets"], "subnets": [subnet]}]})
    assert left == {"vpcs": [{"name": "one", "subnets": [{"name": "web"}]}]}


@pytest.mark.parametrize("field", ["ingress", "egress", "subnet", "default"])
def test_what_belongs_to_a_policy_is_refused_beside_policies(field: str) -> None:
    """It would mean nothing there."""
    value = {"subnet": "web", "default": {}}.get(field, [])
    with pytest.raises(DocumentError, match=f"web.json#/{field}: unknown field '{field}'"):
        read_policies({"policies": [{"subnet": "web", "ingress": []}], field: value}, "web.json")


def test_a_wrong_port_gets_no_quick_yes() -> None:
    assert accepts(
        "policy", {"subnet": "web", "ingress": [{"action": "allow", "protocol": "tcp", "port": [80, "90-95"]}]}
    )
    assert not accepts("policy", {"subnet": "web", "ingress": [{"action": "allow", "port": 0}]})


@pytest.mark.parametrize("text", ["10/second\n", "tcp\n", "subnet:web\n", "10.0.0.0/8\n"])
def test_a_newline_at_the_end_of_a_word_is_no_part_of_it(text: str) -> None:
    for field in ("limit", "protocol", "source", "destination"):
        with pytest.raises(DocumentError, match=f"/ingress/0/{field}: .* is not "):
            read_policies({"ingress": [{"action": "allow", field: text}]}, "web.json")


# -- JSON itself ---------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_document_or_a_document_error(text: str) -> None:
    _, problems = refusal(lambda: reading.parse(text, "web.json"))
    assert all(problem.file == "web.json" for problem in problems)
    if not problems:
        json.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"web\.json#: this is not JSON \(line 1, column 1"),
        ("{", r"web\.json#: this is not JSON \(line 1, column 2"),
        ('{"a": 1} {}', r"web\.json#: this is not JSON \(line 1, column 10: Extra data\)"),
        ('{"a": NaN}', r"NaN is no JSON value"),
        ('{"a": -Infinity}', r"-Infinity is no JSON value"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 40 + "]" * 40, r"web\.json#(/0){33}: this is nested too deeply"),
        ('{"a": 1, "a": 2}', r"web\.json#/a: the key 'a' is here twice; keep one"),
        ('{"x": [{"b/c": 1, "b/c": 1}]}', r"web\.json#/x/0/b~1c: the key 'b/c' is here twice"),
        ("9" * 5000, r"web\.json#: this is not JSON \(a number has 5000 digits; at most 100 are allowed\)"),
        ("-1e999", r"-1e999 is too large a number"),
    ],
)
def test_what_is_no_json_of_ours_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(DocumentError, match=words):
        reading.parse(text, "web.json")


def test_all_keys_that_stand_twice_are_told_at_once() -> None:
    with pytest.raises(DocumentError) as caught:
        reading.parse('{"a": {"b": 1, "b": 2}, "c": 1, "c": 2}', "web.json")
    assert [problem.pointer for problem in caught.value.problems] == ["/c", "/a/b"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_json_without_ambiguity_is_read_as_it_is(value: Any) -> None:
    assert reading.parse(json.dumps(value), "web.json") == value


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_no_json_value_at_all_breaks_a_schema(value: Any) -> None:
    for schema in reading.SCHEMAS:
        for problem in reading.structure_problems(value, schema, "web.json"):
            assert points_into(problem.pointer, value)


# -- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "escaped"), [("a", "a"), ("a/b", "a~1b"), ("a~b", "a~0b"), ("~1", "~01"), ("", "")])
def test_keys_are_escaped_in_pointers(key: str, escaped: str) -> None:
    assert reading.escape(key) == escaped


def test_a_hint_names_the_nearest_word_or_all_of_them() -> None:
    assert reading.nearest("alow", ["allow", "deny"]) == "did you mean 'allow'?"
    assert reading.nearest("xyz", ["allow", "deny"]) == "expected: allow, deny"


def test_long_values_are_quoted_short() -> None:
    assert reading.quote("ü") == '"ü"'
    quoted = reading.quote("x" * 1000)
    assert len(quoted) == reading.LONGEST_QUOTE
    assert quoted.endswith("…")


@pytest.mark.parametrize("name", reading.SCHEMAS)
def test_the_schemas_are_schemas_whose_objects_are_closed(name: str) -> None:
    from jsonschema import Draft202012Validator

    schema = reading.load_schema(name)
    Draft202012Validator.check_schema(schema)
    for part in _holders(schema):
        if isinstance(part, dict) and isinstance(part.get("properties"), dict) and part.get("type") == "object":
            assert "additionalProperties" in part, part
