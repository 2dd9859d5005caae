"""The place of a rule is a value: a file whose name has the sign between file and pointer is a file like any other."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.story import subnet
from vpcctl.analysis.explain import ask
from vpcctl.analysis.reachability import Reach
from vpcctl.compiler import bounds, compile_vpc
from vpcctl.compiler.hit_counts import hits
from vpcctl.compiler.nft import comment_text
from vpcctl.documents.binding import attach
from vpcctl.documents.codec import world_from_json, world_to_json
from vpcctl.documents.policies import read_policies
from vpcctl.errors import DocumentError, Problem
from vpcctl.model import operations, oracle
from vpcctl.model.network import World
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import NOWHERE, TCP, Action, Direction, Origin, Policy, Rule

PREFIX = ip_network("10.0.0.0/26")
FILE = "shop#1/#web.json"
DOCUMENT = {
    "subnet": "web",
    "ingress": [{"action": "allow", "protocol": "tcp", "port": 80, "source": "subnet:api", "log": True}],
}


@pytest.fixture
def world() -> World:
    made = subnet("one", "web", "10.0.0.0/28")(operations.create_vpc(World(), "one", PREFIX))
    return subnet("one", "api", "10.0.0.16/28")(made)


def problem(world: World, document: dict) -> Problem:
    with pytest.raises(DocumentError) as caught:
        bounds.check(world, attach(world, read_policies([document], FILE))[0])
    (found,) = caught.value.problems
    assert isinstance(found, Problem)
    return found


def test_a_place_is_written_as_file_and_pointer() -> None:
    assert str(Origin("web.json", "/ingress/0")) == "web.json#/ingress/0"
    assert str(Rule(Action.ALLOW).origin) == str(NOWHERE) == ""


def test_the_place_of_a_default_says_where_it_is_stated_or_implied() -> None:
    def place(policy: Policy, direction: Direction) -> str:
        return str(policy.default_origin(direction))

    stated = Policy(defaults=((Direction.INGRESS, Action.DENY),), file="a.json", pointer="/0")
    assert place(stated, Direction.INGRESS) == "a.json#/0/default/ingress"
    assert place(stated, Direction.EGRESS) == "a.json#/0 (no egress: default allow)"
    assert place(Policy(egress=(), file="a.json"), Direction.EGRESS) == "a.json#/egress (default deny)"


def test_a_name_that_means_nothing_is_told_with_its_file(world: World) -> None:
    wrong = {"subnet": "web", "ingress": [{"action": "allow", "source": ["subnet:api", "subnet:ghost"]}]}
    found = problem(world, wrong)
    assert (found.file, found.pointer) == (FILE, "/0/ingress/0/source/1")


def test_a_policy_that_costs_too_much_is_told_with_its_file(world: World) -> None:
    limits = [{"action": "allow", "protocol": "tcp", "port": 22, "limit": "1/second"}] * 2000
    found = problem(world, {"subnet": "web", "ingress": limits})
    assert found.file == FILE
    assert found.pointer.startswith("/0/ingress/")


def test_the_line_that_decides_is_named_everywhere(world: World) -> None:
    """By the oracle, by `explain`, in the ruleset, in its counters, and after the policy was on record."""
    after = attach(world, read_policies([DOCUMENT], FILE))[0]
    kept = world_from_json(json.loads(json.dumps(world_to_json(after))))
    line = f"{FILE}#/0/ingress/0"
    for one in (after, kept):
        vpc = one.vpc("one")
        policy = vpc.subnet("web").policy
        assert policy is not None
        assert policy.ingress is not None
        assert policy.ingress[0].origin == Origin(FILE, "/0/ingress/0")
        source, destination = (Place("one", vpc.subnet(name).instances[0].addresses[0]) for name in ("api", "web"))
        assert oracle.decide(one, Flow(source, destination, TCP, 80)).stages[-1].origin == line
        answer = ask(Reach(one), "one/api", "one/web", "tcp/80")
        assert answer.deciding.decider == Origin(FILE, "/0/ingress/0")
        assert f'comment "{comment_text(line)}"' in compile_vpc(one, "one", "tag").text(1)
        counted = {"elem": {"val": 80, "comment": comment_text(line), "counter": {"packets": 7}}}
        objects = [{"map": {"name": "ingress-web.1.1.peer", "elem": [[counted, "accept"]]}}]
        assert hits(objects, vpc, "web", Direction.INGRESS) == [7, 0]


def test_a_reason_is_no_line(world: World) -> None:
    answer = ask(Reach(world), "one/api", "one/web", "tcp/80")
    assert answer.deciding.decider == answer.deciding.origin == "no policy"


def test_no_module_reads_a_place_back_from_text() -> None:
    root = Path(__file__).parents[2] / "vpcctl"
    found = {path.name for path in root.rglob("*.py") if 'partition("#")' in path.read_text()}
    found |= {path.name for path in root.rglob("*.py") if 'split("#"' in path.read_text()}
    assert found == set()
