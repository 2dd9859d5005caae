"""The policy of a VPC itself: where it is read and kept, what is said about it, and what it means beside a subnet's."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tests.rehearsal import Rehearsal
from tests.story import policy, subnet, told
from vpcctl.analysis.anomalies import Idle
from vpcctl.analysis.explain import ask
from vpcctl.analysis.impact import forecast
from vpcctl.analysis.invariants import broken
from vpcctl.analysis.reachability import Reach
from vpcctl.cli import commands
from vpcctl.compiler import bounds, compile_vpc
from vpcctl.compiler.delta import delta
from vpcctl.compiler.dependencies import same_gates, standing_gates
from vpcctl.compiler.hit_counts import hits
from vpcctl.compiler.nft import Set
from vpcctl.compiler.view import looks_alike, same_for_host
from vpcctl.documents.binding import attach, check
from vpcctl.documents.codec import world_from_json, world_to_json
from vpcctl.documents.diff import exported, merged, object_changes
from vpcctl.documents.environment import read_environment
from vpcctl.documents.policies import read_policies
from vpcctl.documents.sources import Document
from vpcctl.engine import reconciler
from vpcctl.engine.traffic import publication_warnings, reports
from vpcctl.errors import ConflictError, DocumentError, VpcctlError
from vpcctl.model import operations, oracle
from vpcctl.model.network import Invariant, World, effective
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import CLOSED, TCP, WHOLE_VPC, Action, Direction, Origin, Policy, Rule
from vpcctl.model.restoration import restored

PEERED = operations.clear_policy(told("peer them"), "one", "web")
ALLOW, DENY = {"action": "allow"}, {"action": "deny"}
SSH = {"protocol": "tcp", "port": 22}


def attached(world: World, *documents: dict[str, Any], file: str = "vpc.json", **chosen: str) -> World:
    return attach(world, read_policies(list(documents), file), **chosen)[0]


def refusal(world: World, *documents: dict[str, Any], **chosen: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        attached(world, *documents, **chosen)
    return list(map(str, caught.value.problems))


def own(world: World, **document: Any) -> World:
    """The world whose VPC `one` has this policy."""
    return attach(world, read_policies({"vpc": "one", "subnet": "*", **document}, "vpc.json"))[0]


# -- where it belongs ----------------------------------------------------------------------------------------------


def test_a_policy_for_all_subnets_is_the_vpcs() -> None:
    world = attached(PEERED, {"vpc": "two", "subnet": "*", "ingress": []})
    found = world.vpc("two").policy
    assert found is not None
    assert found.origin() == Origin("vpc.json", "/0")
    assert [(vpc.name, vpc.policy) for vpc in world.vpcs if vpc.name != "two"] == [("one", None)]
    assert [one.policy for one in world.vpc("two").subnets] == [None]
    assert attached(PEERED, {"subnet": "web", "ingress": []}, vpc="one", subnet="*").vpc("one").policy is not None


def test_the_only_vpc_need_not_be_named() -> None:
    alone = World((PEERED.vpc("one"),))
    assert attached(alone, {"subnet": "*", "ingress": []}).vpc("one").policy is not None


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            [{"subnet": "*"}],
            'vpc.json#/0/subnet: which VPC? known VPCs: one, two; name one with "vpc" or --vpc',
        ),
        (
            [{"subnet": "*", "vpc": "ten"}],
            "vpc.json#/0/vpc: VPC 'ten' not found; expected: one, two",
        ),
        (
            [{"subnet": "*", "vpc": "one"}] * 2,
            "vpc.json#/1: VPC one itself has a policy in this command already, at vpc.json#/0; keep one",
        ),
        (
            [{"subnet": "*", "vpc": "one", "ingress": [{**ALLOW, "source": "subnet:api"}]}],
            "vpc.json#/0/ingress/0/source: subnet:api names nothing: no subnet 'api' is known here; expected: db, web",
        ),
        (
            [{"subnet": "all", "vpc": "one"}],
            "vpc.json#/0/subnet: subnet 'all' not found in VPC one; expected: db, web; \"*\" stands for the whole VPC",
        ),
        (
            [{"subnet": "**", "vpc": "one"}],
            'vpc.json#/0/subnet: "**" is not a subnet (its name, its prefix or "*")',
        ),
    ],
)
def test_what_fits_nowhere_is_refused_with_what_to_write(documents: list[dict[str, Any]], message: str) -> None:
    assert refusal(PEERED, *documents) == [message]


def test_without_a_vpc_there_is_nothing_to_attach_it_to() -> None:
    assert refusal(World(), {"subnet": "*"}) == ["vpc.json#/0/subnet: no VPC exists; `vpcctl create-vpc` makes one"]


def test_no_subnet_has_the_name_that_stands_for_all() -> None:
    with pytest.raises(DocumentError, match=r"for a policy of the whole VPC use `vpcctl apply-policy --subnet '\*'`"):
        subnet("one", WHOLE_VPC, "10.0.0.32/28")(PEERED)


def test_warnings_speak_of_the_vpc() -> None:
    line = {**DENY, "destination": ["203.0.113.7", "10.0.0.0/28"]}
    documents = read_policies({"vpc": "one", "subnet": "*", "ingress": [line]}, "vpc.json")
    assert attach(PEERED, documents)[2] == [
        "vpc.json#: ingress of the subnets of one without an ingress policy of their own denies traffic that no rule"
        ' matches (implicit; set "default" to make it explicit)',
        "vpc.json#/ingress/0: 203.0.113.7/32 lies outside VPC one and matches nothing here",
    ]


# -- in an environment ---------------------------------------------------------------------------------------------

SUBNET = {"name": "web", "cidr": "10.0.0.0/28", "type": "public"}
FILES = {
    "own.json": {"subnet": "*", "ingress": [ALLOW], "sets": {"office": ["203.0.113.0/24"]}},
    "web.json": {"subnet": "web", "ingress": []},
    "ghost.json": {"ingress": [{**ALLOW, "source": "set:ghost"}]},
}


def environment(vpc: dict[str, Any], present: World | None = None) -> World:
    document = {"vpcs": [{"name": "one", "cidr": "10.0.0.0/26", "subnets": [SUBNET], **vpc}]}
    world = read_environment(document, "env.json", lambda path: (FILES[path], path), present)
    check(world, ["one"], "env.json")
    return world


def test_an_environment_has_it_as_a_document_or_a_path() -> None:
    inside, beside = environment({"policy": {"ingress": [ALLOW]}}), environment({"policy": "own.json"})
    assert inside.vpc("one").policy.ingress[0].origin == Origin("env.json", "/vpcs/0/policy/ingress/0")
    assert beside.vpc("one").policy.ingress[0].origin == Origin("own.json", "/ingress/0")
    assert environment({}).vpc("one").policy is None
    assert environment({}, present=beside).vpc("one").policy is None


@pytest.mark.parametrize(
    ("vpc", "message"),
    [
        (
            {"policy": "web.json"},
            'web.json#/subnet: this is the place of the VPC\'s own policy ("subnet": "*"); that of a subnet is in'
            ' "subnets"',
        ),
        (
            {"policy": {"subnet": "web"}},
            'env.json#/vpcs/0/policy/subnet: this is the place of the VPC\'s own policy ("subnet": "*"); that of a'
            ' subnet is in "subnets"',
        ),
        (
            {"subnets": [{**SUBNET, "policy": "own.json"}]},
            "own.json#/subnet: this is the place of a subnet's policy; the VPC's own is in the field \"policy\" of the"
            " VPC",
        ),
        ({"policy": "ghost.json"}, "ghost.json#/ingress/0/source: the name of an existing subnet, instance, VPC or"),
        (
            {"policy": {"ingress": [{**ALLOW, "source": "set:ghost"}]}},
            "env.json#/vpcs/0/policy/ingress/0/source: set:ghost names nothing: no set 'ghost' is known here",
        ),
        ({"policy": 7}, "env.json#/vpcs/0/policy: 7 is not a policy"),
        ({"policy": []}, "env.json#/vpcs/0/policy: [] is not a policy"),
    ],
)
def test_what_is_wrong_with_it_there_is_told(vpc: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        environment(vpc)
    assert str(caught.value.problems[0]).startswith(message)


def test_its_sets_count_among_those_of_the_vpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpcctl.documents.binding.MOST_PREFIXES", 2)
    many = {"sets": {"office": ["203.0.113.0/26", "203.0.113.64/26"]}}
    assert environment({"policy": many}).vpc("one").policy is not None
    with pytest.raises(DocumentError, match="VPC one would have 3 prefixes in its own sets"):
        environment({"policy": many, "sets": {"lab": ["203.0.113.128/26"]}})


def test_a_wrong_policy_of_the_vpc_hides_no_other_problem() -> None:
    inner = {"egress": [{**ALLOW, "source": ["subnet:ghost", "set:none"]}]}
    with pytest.raises(DocumentError) as caught:
        environment({"policy": {"ingress": [{"action": "drop"}]}, "subnets": [{**SUBNET, "policy": inner}]})
    assert [problem.pointer for problem in caught.value.problems] == [
        "/vpcs/0/subnets/0/policy/egress/0/source/0",
        "/vpcs/0/subnets/0/policy/egress/0/source/1",
        "/vpcs/0/policy/ingress/0/action",
    ]


def test_a_difference_names_it() -> None:
    world = own(PEERED, ingress=[ALLOW])
    other = own(PEERED, ingress=[DENY])
    assert list(map(str, object_changes(PEERED, world))) == ["+ policy of VPC one: vpc.json"]
    assert list(map(str, object_changes(world, other))) == ["~ policy of VPC one: vpc.json"]
    assert list(map(str, object_changes(world, PEERED))) == ["- policy of VPC one"]
    assert "+ policy of VPC one: vpc.json" in map(str, object_changes(World(), world))


def test_what_says_the_same_keeps_its_lines() -> None:
    world = own(PEERED, ingress=[ALLOW], default={"egress": "deny"})
    document = exported(world)
    assert document["vpcs"][0]["policy"] == {"ingress": [ALLOW], "default": {"egress": "deny"}}
    again = read_environment(document, "env.json", lambda path: (None, path), world)
    assert again.vpc("one").policy.file == "env.json"
    assert merged(world, again, world.peerings, prune=True) == world


def test_the_record_keeps_it_and_no_word_of_it_where_there_is_none() -> None:
    world = own(PEERED, ingress=[ALLOW])
    kept = json.loads(json.dumps(world_to_json(world)))
    assert world_from_json(kept) == world
    assert kept["vpcs"][0]["part"]["policy"]["file"] == "vpc.json"
    assert "policy" not in kept["vpcs"][1]["part"]


def test_what_comes_back_from_the_past_has_it() -> None:
    past = own(PEERED, ingress=[ALLOW])
    assert restored(own(PEERED, ingress=[DENY]), past, 7) == past
    assert restored(past, PEERED, 7).vpc("one").policy is None


# -- what it means -------------------------------------------------------------------------------------------------


def deciding(world: World, port: int) -> tuple[str, str]:
    """What becomes of a call from db to web, and the line; said alike by the oracle and by `explain`."""
    places = [Place("one", world.vpc("one").instance(name).addresses[0]) for name in ("db", "web")]
    last = oracle.decide(world, Flow(*places, TCP, port)).stages[-1]
    answer = ask(Reach(world), "one/db", "one/web", f"tcp/{port}")
    assert (answer.deciding.origin, answer.deciding.action) == (last.origin, last.action)
    return last.action.value, last.origin


@pytest.mark.parametrize(("of_vpc", "of_subnet"), list(product(["allow", "deny"], [None, "allow", "deny", "silent"])))
def test_the_default_of_the_subnet_holds_where_its_policy_has_the_direction(of_vpc: str, of_subnet: str | None) -> None:
    world = own(PEERED, ingress=[{**DENY, **SSH}], default={"ingress": of_vpc})
    if of_subnet == "silent":
        world = policy({"subnet": "web", "egress": []})(world)
    elif of_subnet is not None:
        world = policy({"subnet": "web", "default": {"ingress": of_subnet}})(world)
    if of_subnet in ("allow", "deny"):
        assert deciding(world, 80) == (of_subnet, "web.json#/default/ingress")
    else:
        assert deciding(world, 80) == (of_vpc, "vpc.json#/default/ingress")
    assert deciding(world, 22) == ("deny", "vpc.json#/ingress/0")


def test_a_direction_that_the_vpc_does_not_have_is_open() -> None:
    world = own(PEERED, egress=[ALLOW])
    assert deciding(world, 80) == ("allow", "vpc.json# (no ingress: default allow)")


def test_a_closed_vpc_opens_direction_by_direction() -> None:
    world = World((operations.create_vpc(World(), "one", PEERED.vpc("one").prefixes[0], closed=True).vpc("one"),))
    assert world.vpc("one").policy is CLOSED
    for name, prefix in (("web", "10.0.0.0/28"), ("db", "10.0.0.16/28")):
        world = subnet("one", name, prefix)(world)
    assert deciding(world, 80) == ("deny", "(closed)#/default/egress")
    world = policy({"subnet": "db", "egress": [ALLOW]})(world)
    assert deciding(world, 80) == ("deny", "(closed)#/default/ingress")
    world = policy({"subnet": "web", "ingress": [ALLOW]})(world)
    assert deciding(world, 80) == ("allow", "web.json#/ingress/0")
    kept = world_from_json(json.loads(json.dumps(world_to_json(world))))
    assert kept == world


def test_rules_on_record_are_not_decoded_to_see_which_gates_stand() -> None:
    world = policy({"subnet": "web", "ingress": [ALLOW]})(own(PEERED, ingress=[DENY]))
    document = json.loads(json.dumps(world_to_json(world)))
    for holder in (document["vpcs"][0]["part"], document["vpcs"][0]["part"]["subnets"][0]):
        holder["policy"]["document"]["ingress"] = [{"action": "no action"}]
    vpc = world_from_json(document).vpc("one")
    found = effective(vpc, vpc.subnet("web"))
    assert found is not None
    assert found.judges(Direction.INGRESS)
    with pytest.raises(VpcctlError):
        found.rules(Direction.INGRESS)


def test_what_speaks_of_policies_knows_that_of_the_vpc(session: Rehearsal) -> None:
    published = PEERED.vpc("one").publications[0]
    assert not reports(PEERED.vpc("one"))
    assert reports(own(PEERED, egress=[{**DENY, "log": True}]).vpc("one"))
    machine = session.controller._machine
    shut = own(PEERED, default={"ingress": "deny"})
    (warning,) = publication_warnings(machine, shut, "one", published)
    assert warning.endswith("denies everything from outside to tcp/80 of web (vpc.json#/default/ingress)")
    (warning,) = publication_warnings(machine, own(PEERED, egress=[]), "one", published)
    assert "has no ingress policy" in warning


# -- rules without effect ------------------------------------------------------------------------------------------


def idle(world: World, name: str) -> list[Idle]:
    return list(forecast(PEERED, world, [("one", name)]).idle)


def line(place: str) -> Origin:
    return Origin(*place.split("#"))


def test_a_rule_that_the_vpc_decides_before_is_without_effect_and_the_line_is_named() -> None:
    world = own(PEERED, ingress=[{**DENY, "protocol": "tcp"}], default={"ingress": "allow"})
    world = policy({"subnet": "web", "ingress": [{**ALLOW, **SSH}, {**ALLOW, "protocol": "udp"}]})(world)
    hidden = Idle(line("web.json#/ingress/0"), True, (line("vpc.json#/ingress/0"),))
    assert idle(world, "web") == [hidden]
    assert str(hidden) == "web.json#/ingress/0 can never match: vpc.json#/ingress/0 decides all of it before"
    # Whoever attaches the policy of the VPC learns it, too.
    assert idle(world, WHOLE_VPC) == [hidden]


def test_a_rule_of_the_vpc_is_without_effect_only_if_it_is_at_every_gate() -> None:
    rules = [{**DENY, **SSH}, {**DENY, "source": "subnet:db", **SSH}, {**ALLOW, "destination": "subnet:db"}]
    world = own(PEERED, ingress=rules, default={"ingress": "deny"})
    assert idle(world, WHOLE_VPC) == [Idle(line("vpc.json#/ingress/1"), True, (line("vpc.json#/ingress/0"),), "VPC")]
    nowhere = own(PEERED, ingress=[{**ALLOW, "destination": "10.0.0.48/28"}], default={"ingress": "deny"})
    (found,) = idle(nowhere, WHOLE_VPC)
    assert str(found) == "vpc.json#/ingress/0 can never match: this VPC has no such traffic"


# -- what is counted -----------------------------------------------------------------------------------------------


def counter(gate: str, comment: str, packets: int) -> dict[str, Any]:
    element = {"elem": {"val": 80, "comment": comment, "counter": {"packets": packets}}}
    return {"map": {"name": f"{gate}.1.1.peer", "elem": [[element, "accept"]]}}


def test_hits_of_the_vpc_are_the_sums_and_its_default_counts_where_it_holds() -> None:
    world = own(PEERED, ingress=[{**ALLOW, **SSH}], default={"ingress": "deny"})
    vpc = policy({"subnet": "web", "ingress": [ALLOW]})(world).vpc("one")
    objects = [
        counter("ingress-web", "vpc.json#/ingress/0", 3),
        counter("ingress-db", "vpc.json#/ingress/0", 4),
        counter("ingress-web", "web.json#/ingress/0", 5),
        counter("ingress-web", "web.json#/default", 6),
        counter("ingress-db", "vpc.json#/default", 7),
        counter("egress-db", "vpc.json#/ingress/0", 100),
    ]
    assert hits(objects, vpc, WHOLE_VPC, Direction.INGRESS) == [7, 7]
    assert hits(objects, vpc, "web", Direction.INGRESS) == [5, 6]
    assert hits(objects, vpc, "db", Direction.INGRESS) is None
    assert hits(objects, vpc, WHOLE_VPC, Direction.EGRESS) is None


def test_two_policies_from_one_place_have_comments_of_their_own() -> None:
    rule = Rule(Action.ALLOW, TCP, ((22, 22),), log=True, origin=Origin("x.json", "/ingress/0"))
    same = Policy((rule,), file="x.json")
    world = PEERED.with_vpc(PEERED.vpc("one").with_policy(WHOLE_VPC, same).with_policy("web", same))
    text = compile_vpc(world, "one", "tag").text(1)
    assert 'comment "x.json#/ingress/0 of the VPC"' in text
    assert 'log prefix "vpcctl one allow x.json#/ingress/0 of the VPC"' in text
    objects = [counter("ingress-web", "x.json#/ingress/0 of the VPC", 2), counter("ingress-web", "x.json#/default", 3)]
    objects.append(counter("ingress-db", "x.json#/default", 4))
    vpc = world.vpc("one")
    assert hits(objects, vpc, WHOLE_VPC, Direction.INGRESS) == [2, 4]
    assert hits(objects, vpc, "web", Direction.INGRESS) == [0, 3]


# -- the commands --------------------------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    monkeypatch.chdir(tmp_path)
    made = Rehearsal(tmp_path / "state")
    reconciler.change(made.store, made.fake, lambda state: PEERED)
    (tmp_path / "own.json").write_text(json.dumps({"subnet": "*", "ingress": [{**DENY, **SSH}], "description": "SSH"}))
    return made


def run(session: Rehearsal, *words: str, status: int = 0) -> Result:
    command = commands.get_command(click.Context(commands), words[0])
    result = CliRunner().invoke(command, list(words[1:]), obj=session)
    wrong = result.exception
    assert (wrong.exit_status if isinstance(wrong, VpcctlError) else result.exit_code) == status, (wrong, result.output)
    return result


def test_it_is_applied_shown_and_cleared_by_the_commands_for_policies(session: Rehearsal) -> None:
    assert json.loads(run(session, "show-vpc", "--name", "one", "--json").stdout)["policy"] is None
    found = run(session, "apply-policy", "--vpc", "one", "own.json")
    assert found.output.endswith("VPC one: applied (1 rule)\n")
    shown = run(session, "show-policy", "--vpc", "one").output
    assert shown.startswith("VPC: own.json (SSH)\n  ingress\n")
    assert "subnet web: no policy; the policy of the VPC decides" in shown
    session.controller.apply_policies(Document({"subnet": "web", "ingress": []}, "web.json"), vpc="one")
    assert "subnet web: web.json\n  ingress\n" in (shown := run(session, "show-policy", "--vpc", "one").output)
    assert "  egress: the policy of the VPC decides\n" in shown
    policies = json.loads(run(session, "show-policy", "--vpc", "one", "--json").output)
    assert [one["subnet"] for one in policies] == ["*", "web", "db"]
    assert policies[0]["policy"]["ingress"] == [{"action": "deny", "protocol": "tcp", "port": 22}]
    (only,) = json.loads(run(session, "show-policy", "--vpc", "one", "--subnet", "*", "--json").output)
    assert only == policies[0]
    assert json.loads(run(session, "show-vpc", "--name", "one", "--json").stdout)["policy"] == "own.json"
    assert "  policy   own.json\n" in run(session, "show-vpc", "--name", "one").output
    assert run(session, "clear-policy", "--vpc", "one", "--subnet", "web").output.endswith(
        "subnet web of VPC one has no policy of its own\n"
    )
    assert run(session, "clear-policy", "--vpc", "one", "--subnet", "*").output.endswith(
        "VPC one has no policy of its own\n"
    )
    assert session.store.load().world.vpc("one").policy is None
    assert run(session, "show-policy", "one/*").output == "VPC: no policy of its own\n"
    assert run(session, "apply-policy", "one/*", "own.json").output.endswith("VPC one: applied (1 rule)\n")
    run(session, "clear-policy", "one/*")
    assert "what the topology carries passes" in run(session, "show-policy", "--vpc", "one").output


def test_a_closed_vpc_says_so(session: Rehearsal) -> None:
    found = run(session, "create-vpc", "--name", "shut", "--cidr", "10.9.0.0/16", "--closed")
    assert "no traffic passes until a policy allows it" in found.output
    assert session.store.load().world.vpc("shut").policy == CLOSED
    assert "(closed)" in run(session, "show-vpc", "--name", "shut").output


def test_an_unknown_subnet_is_still_refused(session: Rehearsal) -> None:
    assert isinstance(run(session, "clear-policy", "--vpc", "one", "--subnet", "**", status=4).exception, ConflictError)


# -- what it costs, and what it must keep --------------------------------------------------------------------------


def test_it_costs_as_much_at_each_gate_and_the_bounds_count_that() -> None:
    rules = [{**DENY, "protocol": "tcp", "port": 2 * number + 1} for number in range(300)]
    many = {"many": [f"203.0.{number >> 7 & 255}.{2 * number & 255}" for number in range(300)]}
    world = own(PEERED, sets=many, ingress=[{**rule, "source": "set:many"} for rule in rules], default={})
    alone = world.with_vpc(operations.delete_subnet(world, "one", "db", True).vpc("one"))
    before, beside = PEERED, operations.delete_subnet(PEERED, "one", "db", True)
    bounds.check(beside, alone)
    with pytest.MonkeyPatch.context() as patched:
        spent = elements(alone)
        patched.setattr("vpcctl.compiler.effort.MOST_ELEMENTS", 2 * spent - 1)
        bounds.check(beside, alone)
        with pytest.raises(DocumentError) as caught:
            bounds.check(before, world)
    (problem,) = caught.value.problems
    assert (problem.file, problem.pointer.startswith("/ingress/")) == ("vpc.json", True)


def elements(world: World) -> int:
    """How many elements the sets of the gates of the VPC `one` have."""
    return sum(
        len(made.elements)
        for part in compile_vpc(world, "one", "tag").gates.values()
        for made in part.sets
        if isinstance(made, Set)
    )


def test_an_invariant_that_it_keeps_stands_against_its_removal() -> None:
    must = Invariant("one/db", "one/web", "tcp/22", "deny")
    kept = dataclasses.replace(own(PEERED, ingress=[{**DENY, **SSH}], default={"ingress": "allow"}), invariants=(must,))
    (found,) = broken(kept, operations.clear_policy(kept, "one", WHOLE_VPC))
    assert found.invariant == must
    assert not tuple(broken(kept, own(kept, ingress=[], default={"ingress": "deny"})))


def test_a_change_of_it_changes_every_gate_and_no_other_ruleset() -> None:
    before, after = (own(PEERED, ingress=[{**action, **SSH}]) for action in (ALLOW, DENY))
    assert same_gates(before, after, "one") == frozenset()
    assert same_gates(before, before, "one") == standing_gates(before.vpc("one")) == {"ingress-web", "ingress-db"}
    assert looks_alike(before, after, after.vpc("two"))
    assert same_for_host(before, after)
    one, other = (compile_vpc(world, "one", "tag") for world in (before, after))
    assert all(one.gates[name] != other.gates[name] for name in one.gates)
    # All of them in one delta, whose one transaction switches from what is in force to its shadows.
    assert delta(one, 4, other, 5, {name: part.text for name, part in one.gates.items()}.get, False) is not None
