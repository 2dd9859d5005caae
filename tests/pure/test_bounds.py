"""Policies that are small to write and would be dear to have: each kind costs little, or is refused before the lock."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tests.rehearsal import Rehearsal
from vpcctl.analysis.explain import TOO_MUCH, ask, matrix
from vpcctl.analysis.impact import forecast
from vpcctl.analysis.reachability import Reach
from vpcctl.cli import commands
from vpcctl.compiler import bounds, compile_vpc
from vpcctl.compiler.effort import MOST_ELEMENTS, MOST_LEVELS, Effort, TooMuchError
from vpcctl.compiler.gates import Gate, gate, keep
from vpcctl.compiler.view import View
from vpcctl.documents.binding import attach
from vpcctl.documents.environment import read_environment
from vpcctl.documents.fields import parse_address, parse_prefix
from vpcctl.documents.policies import read_policies
from vpcctl.engine import reconciler, state
from vpcctl.engine.state import Store
from vpcctl.errors import DocumentError, StateError, TooFineError
from vpcctl.model import operations, oracle
from vpcctl.model.network import Vpc, World
from vpcctl.model.policy import Direction

ENVIRONMENT = {
    "vpcs": [
        {
            "name": "shop",
            "cidr": "10.0.0.0/12",
            "subnets": [
                {"name": "web", "cidr": "10.1.0.0/16", "type": "public", "instances": [{"name": "web"}]},
                {"name": "db", "cidr": "10.2.0.0/16", "type": "private", "instances": [{"name": "db"}]},
            ],
        }
    ]
}


def spaced(network: str, count: int) -> list[str]:
    """Addresses of a /16 that do not join to prefixes."""
    return [f"{network}.{2 * number // 256}.{2 * number % 256 + 1}" for number in range(count)]


def product(count: int) -> list[dict]:
    """One rule: so many sources, destinations and ports."""
    ports = list(range(1, 2 * count, 2))
    return [
        {"action": "allow", "protocol": "tcp", "port": ports, "source": spaced("10.1", count)}
        | {"destination": spaced("10.2", count)}
    ]


def types(count: int) -> list[dict]:
    return [
        {"action": "allow", "protocol": "icmp", "icmp_type": list(range(0, 256, 2)), "source": spaced("10.1", count)}
        | {"destination": spaced("10.2", count)}
    ]


def common_set(count: int) -> list[dict]:
    """So many rules that name a set of as many prefixes."""
    return [
        {"action": ("allow", "deny")[number % 2], "protocol": "tcp", "port": 2 * number + 1, "source": "set:many"}
        for number in range(count)
    ]


def holes(count: int) -> list[dict]:
    """A list of ports, and a list of sources that each have all the others."""
    ports = list(range(1, 2 * count, 2))
    return [
        {"action": "deny", "protocol": "tcp", "port": ports},
        {"action": "allow", "protocol": "tcp", "source": spaced("10.1", count)},
    ]


def instances_in_turn(count: int) -> list[dict]:
    """Alternating verdicts, each for an address of its own."""
    return [
        {"action": ("allow", "deny")[number % 2], "protocol": "tcp", "port": 22, "destination": address}
        for number, address in enumerate(spaced("10.2", count))
    ]


def logs(count: int) -> list[dict]:
    """Rules that differ in all they do, for ports of their own."""
    return [{"action": "deny", "log": True, "protocol": "tcp", "port": number + 1} for number in range(count)]


def crossing(count: int) -> list[dict]:
    """Sources, destinations and ports in turn, so that every rule meets all those of the other kinds."""
    rules: list[dict] = []
    for number, (source, destination) in enumerate(zip(spaced("10.1", count), spaced("10.2", count), strict=True)):
        rules += [
            {"action": "allow", "protocol": "tcp", "source": source},
            {"action": "deny", "protocol": "tcp", "destination": destination},
            {"action": "allow", "protocol": "tcp", "port": 2 * number + 1},
        ]
    return rules


def limits(count: int) -> list[dict]:
    """Rules that all match the same, and may each decline."""
    return [{"action": "allow", "protocol": "tcp", "port": 22, "limit": "1/second"}] * count


def lists(count: int) -> list[dict]:
    """Rules with a list of ports each."""
    return [
        {"action": "allow", "protocol": "tcp", "port": [2 * port + 1 for port in range(60)], "source": source}
        for source in spaced("10.1", count)
    ]


def empty() -> World:
    return read_environment(ENVIRONMENT, "environment.json", lambda path: ({}, path))


def document(rules: list[dict], count: int) -> dict:
    # Without sets a document is read quickly.
    sets = {"sets": {"many": spaced("10.1", count)}} if count else {}
    return {"vpc": "shop", "subnet": "db", "ingress": rules, **sets}


def attached(rules: list[dict], count: int = 0, world: World | None = None) -> World:
    return attach(world or empty(), read_policies(document(rules, count), "bomb.json"))[0]


# -- what need not cost ------------------------------------------------------------------------------------------------


CHEAP = [
    (product, 40, 200), (product, 300, 1_000), (types, 60, 300), (common_set, 300, 700), (holes, 200, 600),
    (instances_in_turn, 1_500, 1_600), (logs, 1_500, 3_500), (crossing, 60, 4_000),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "count", "most"), CHEAP)
def test_what_is_small_to_write_is_small_when_compiled(kind: Callable, count: int, most: int) -> None:
    text = compile_vpc(attached(kind(count), count), "shop", "owner").text(1)
    assert text.count("\n") < 4 * most + 500, "lines"


@pytest.mark.parametrize(("kind", "count", "most"), CHEAP)
def test_it_is_accepted(kind: Callable, count: int, most: int) -> None:
    before = empty()
    bounds.check(before, attached(kind(count), count, before))


def test_verdicts_in_turn_for_different_instances_are_one_level() -> None:
    view = View.of(attached(instances_in_turn(400)), "shop")
    found = gate(view, view.vpc.subnet("db"), Direction.INGRESS)
    assert len(found.chains[-1].rules) <= 3, "lookups"


# -- what is refused ---------------------------------------------------------------------------------------------------

DEAR = [
    (limits, MOST_LEVELS + 1, f"#/ingress/{MOST_LEVELS}: ", f"{MOST_LEVELS:,}"),
    (crossing, 600, "#/ingress/", f"{MOST_LEVELS:,}"),
    (lists, MOST_ELEMENTS // 60 + 1, f"#/ingress/{MOST_ELEMENTS // 60}: ", f"{MOST_ELEMENTS:,}"),
]


@pytest.mark.parametrize(("kind", "count", "place", "allowed"), DEAR)
def test_what_costs_too_much_is_refused_with_its_place_and_the_bound(
    kind: Callable, count: int, place: str, allowed: str
) -> None:
    before = empty()
    with pytest.raises(DocumentError, match="allowed") as refused:
        bounds.check(before, attached(kind(count), world=before))
    assert place in str(refused.value)
    assert allowed in str(refused.value)


@pytest.mark.parametrize("left", ["steps", "levels", "elements"])
def test_every_bound_ends_the_work_where_it_is_passed(left: str) -> None:
    view = View.of(attached(limits(50)), "shop")
    effort = Effort(**{left: 20})
    with pytest.raises(TooMuchError) as refused:
        gate(view, view.vpc.subnet("db"), Direction.INGRESS, effort)
    assert refused.value.rule <= 50


def test_the_rule_at_fault_may_be_one_of_several_policies() -> None:
    before = attached(lists(MOST_ELEMENTS // 60 - 10))
    more = {"vpc": "shop", "subnet": "web", "egress": lists(11)}
    after = attach(before, read_policies(more, "more.json"))[0]
    with pytest.raises(DocumentError, match=r"^more.json#/egress/10: "):
        bounds.check(before, after)


# -- names that come to mean more --------------------------------------------------------------------------------------


def beside(world: World) -> World:
    """The world with another VPC, in the middle of the internet."""
    return operations.create_vpc(world, "other", parse_prefix("172.23.45.64/26"))


def test_a_change_by_which_names_would_mean_too_much_is_refused() -> None:
    rules = [{"action": "allow", "protocol": "tcp", "port": number + 1, "source": "internet"} for number in range(4500)]
    before = beside(attached(rules))
    bounds.check(empty(), before)
    with pytest.raises(DocumentError, match=r"bomb.json#/ingress/\d+: .*names in it") as refused:
        bounds.check(before, operations.create_peering(before, "shop", "other"))
    assert f"{MOST_ELEMENTS:,}" in str(refused.value)


def test_a_policy_that_was_accepted_once_holds_nothing_up() -> None:
    before = attached(limits(MOST_LEVELS + 1))
    assert compile_vpc(before, "shop", "owner").text(1)
    bounds.check(before, operations.create_instance(before, "shop", "web", "more", None, 1))
    bounds.check(before, operations.clear_policy(before, "shop", "db"))
    with pytest.raises(DocumentError):
        bounds.check(before, attached([*limits(MOST_LEVELS + 1), {"action": "deny"}], world=before))


def test_what_was_compiled_for_the_bounds_is_what_is_loaded() -> None:
    before = empty()
    after = attached(crossing(10), world=before)
    plain = compile_vpc(after, "shop", "owner").text(1)
    bounds.check(before, after)
    assert compile_vpc(after, "shop", "owner").text(1) == plain
    assert compile_vpc(after, "shop", "owner").text(1) == plain


# -- the command line --------------------------------------------------------------------------------------------------


class Impatient(Store):
    """A store that waits for no lock."""

    def locked(self, patience: float = 0.0) -> contextlib.AbstractContextManager[state.Writer]:
        return super().locked(patience)


@pytest.fixture
def session(tmp_path: Path) -> Rehearsal:
    made = Rehearsal(tmp_path / "state", make_store=Impatient)
    reconciler.change(made.store, made.fake, lambda state: empty())
    return made


def run(session: Rehearsal, *words: str) -> Result:
    command = commands.get_command(click.Context(commands), words[0])
    return CliRunner().invoke(command, list(words[1:]), obj=session)


@pytest.mark.parametrize("command", ["apply-policy", "apply"])
def test_a_bomb_is_refused_while_another_holds_the_lock(session: Rehearsal, tmp_path: Path, command: str) -> None:
    bomb = document(limits(MOST_LEVELS + 1), 0)
    if command == "apply":
        shop = ENVIRONMENT["vpcs"][0]
        inner = {key: value for key, value in bomb.items() if key not in ("vpc", "subnet")}
        subnets = [one | ({"policy": inner} if one["name"] == "db" else {}) for one in shop["subnets"]]
        bomb = {"vpcs": [shop | {"subnets": subnets}]}
    file, before = tmp_path / "bomb.json", session.load()
    file.write_text(json.dumps(bomb))
    with session.store.locked():
        found = run(session, command, str(file))
    assert isinstance(found.exception, DocumentError), found
    assert session.load() == before
    # The control: what is not refused does wait for the lock.
    file.write_text(json.dumps(document([], 0)))
    with session.store.locked():
        waited = run(session, "apply-policy", str(file))
    assert isinstance(waited.exception, StateError), waited


def test_a_dry_run_and_a_compilation_refuse_it_too(session: Rehearsal, tmp_path: Path) -> None:
    file = tmp_path / "bomb.json"
    file.write_text(json.dumps(document(limits(MOST_LEVELS + 1), 0)))
    for words in (["apply-policy", "--dry-run"], ["compile", "--vpc", "shop"]):
        assert isinstance(run(session, *words, str(file)).exception, DocumentError)


def test_a_state_that_is_read_twice_is_understood_once(session: Rehearsal) -> None:
    store = session.store
    first = store.load()
    assert store.load() is first
    reconciler.change(session.store, session.fake, lambda state: operations.delete_instance(state.world, "shop", "db"))
    assert store.load() != first


def test_what_another_command_did_meanwhile_is_measured_and_kept(session: Rehearsal) -> None:
    calls: list[state.State] = []

    def transform(found: state.State) -> World:
        calls.append(found)
        if len(calls) == 1:
            reconciler.change(session.store, session.fake, lambda now: beside(now.world))
        return attached(logs(3), world=found.world)

    outcome = session.controller.change(transform)
    assert len(calls) == 2
    assert {vpc.name for vpc in outcome.after.vpcs} == {"shop", "other"}


def test_a_gate_that_was_measured_is_compiled_for_the_same_values_only() -> None:
    """Once for each time that it was measured; the same values may be other objects."""
    world = attached(logs(3))
    bounds.check(empty(), world)
    again = World(
        tuple(dataclasses.replace(vpc, subnets=tuple(map(dataclasses.replace, vpc.subnets))) for vpc in world.vpcs)
    )
    assert again == world
    view = View.of(again, "shop")
    subnet = next(one for one in view.vpc.subnets if one.policy is not None)
    marked = Gate("measured", "", (), ())
    keep(((View.of(world, "shop"), world.vpc("shop").subnet(subnet.name), Direction.INGRESS, marked),))
    assert gate(view, subnet, Direction.EGRESS) is not marked
    other = dataclasses.replace(world.vpc("shop"), hardened=True)
    assert gate(View.of(world.with_vpc(other), "shop"), subnet, Direction.INGRESS) is not marked
    assert gate(view, subnet, Direction.INGRESS) is marked
    assert gate(view, subnet, Direction.INGRESS) is not marked


# -- answers -----------------------------------------------------------------------------------------------------------


def test_what_would_have_too_many_cases_is_said_to_have() -> None:
    before = empty()
    after = attached(crossing(30), world=before)
    whole, short = (forecast(before, after, [("shop", "db")], most=most) for most in (10**7, 2_000))
    assert not whole.untold
    assert len(short.untold) == 2
    assert "no traffic" not in str(short)
    assert "too many different cases" in str(short)
    found = matrix(Reach(after, most=2_000), "shop")
    assert [line.services for line in found["web", "db"]] == [(TOO_MUCH,)]
    assert [line.services for line in found["db", "web"]] != [(TOO_MUCH,)], "one pair is in nobody's way"


def test_a_single_flow_is_answered_whatever_the_policy() -> None:
    world = attached(crossing(40))
    reach = Reach(world, most=3_000)
    with pytest.raises(TooFineError):
        reach.gate("shop", "db", Direction.INGRESS)
    chance = random.Random(1)
    shop: Vpc = world.vpc("shop")
    taken = [*spaced("10.1", 40), *spaced("10.1", 60)[50:]]
    instances = {str(one.addresses[0]): one for one in shop.instances}
    for _ in range(20):
        source, port = chance.choice(taken), chance.randint(1, 90)
        if source in instances or source == "10.1.0.1":
            continue
        moved = operations.create_instance(world, "shop", "web", "probe", parse_address(source), 1)
        place = oracle.Place("shop", parse_address(source))
        target = oracle.Place("shop", shop.instance("db").addresses[0])
        wanted = oracle.decide(moved, oracle.Flow(place, target, 6, port)).allowed
        assert (ask(Reach(moved, most=3_000), f"shop/{source}", "shop/db", f"tcp/{port}").verdict == "allow") is wanted


def test_rules_without_effect_are_told_in_bounded_words() -> None:
    rules = [*crossing(10), *([{"action": "deny"}] * 200)]
    world = attached(rules)
    told = forecast(empty(), world, [("shop", "db")])
    assert len(told.idle) >= 199
    assert dataclasses.astuple(told.idle[-1])[1] is True


# -- what many rules cost, counted -----------------------------------------------------------------------------------


def mixed(count: int) -> list[dict]:
    """Rules for sources of several lengths, ports and ranges, as people have them by the thousand."""
    chance = random.Random(count)
    rules = []
    for _ in range(count):
        length = chance.choice([32, 32, 32, 32, 24, 16])
        octets = [chance.randrange(1, 255) if 8 * place < length else 0 for place in range(1, 4)]
        low = chance.randrange(1, 60_000)
        rules.append(
            {"action": chance.choice(["allow", "deny"]), "protocol": chance.choice(["tcp", "udp"])}
            | {"port": low if chance.random() < 0.7 else f"{low}-{low + chance.randrange(1, 100)}"}
            | {"source": ".".join(["172", *map(str, octets)]) + f"/{length}"}
        )
    return rules


@pytest.mark.parametrize("count", [500, 2_000])
def test_what_many_rules_cost_grows_with_their_number(count: int) -> None:
    """Counted, not timed: a rule more costs the same, however many others it has beside it."""
    before, after = empty(), attached(mixed(count))
    assert not forecast(before, after, [("shop", "db")], most=80 * count).untold
    effort = Effort()
    gate(View.of(after, "shop"), after.vpc("shop").subnet("db"), Direction.INGRESS, effort)
    assert effort.steps < 30 * count


HUNDRED_THOUSAND = """
import resource
from tests.pure.test_bounds import attached, empty, mixed
from vpcctl.compiler import bounds, compile_vpc
before, after = empty(), attached(mixed(100_000))
bounds.check(before, after)
assert compile_vpc(after, "shop", "owner").text(1).count("\\n") > 90_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_a_hundred_thousand_rules_are_accepted_and_fit_into_memory() -> None:
    """Read, check against the bounds, and compile, in a process of its own."""
    words = [sys.executable, "-c", HUNDRED_THOUSAND]
    ran = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert not ran.returncode, ran.stderr
    assert int(ran.stdout) < 400, "MiB"


def test_rules_that_no_traffic_can_meet_cost_no_effort() -> None:
    """The subnet is private, and all these senders are on the internet."""
    rules = [*mixed(2_000), {"action": "allow", "protocol": "tcp", "port": 80, "source": "subnet:web"}]
    found = forecast(empty(), attached(rules), [], most=200)
    assert not found.untold
    assert [str(line) for line in found.newly_denied] == ["web → db any except tcp/80", "db → db any"]


def test_a_rule_that_changes_among_many_costs_what_it_matches() -> None:
    rules = [{**rule, "source": f"10.1.{number % 256}.0/24"} for number, rule in enumerate(mixed(2_000))]
    before = attached([*rules, {"action": "allow"}])
    new = {"action": "deny", "protocol": "tcp", "port": 61_000, "source": "subnet:web"}
    after = attached([*rules[:1_000], new, *rules[1_000:], {"action": "allow"}], world=before)
    found = forecast(before, after, [], most=3_000)
    assert not found.untold
    assert [str(line) for line in found.newly_denied] == ["web → db tcp/61000"]
    assert not found.newly_allowed
    assert forecast(after, before, [], most=3_000).newly_allowed == found.newly_denied


def test_where_the_search_for_idle_rules_is_left_out_that_is_said() -> None:
    world = attached(mixed(100))
    found = forecast(empty(), world, [("shop", "db")], hints=500)
    assert not found.idle
    assert not found.untold
    words = "shop/db: did not search this many rules for rules without effect; `vpcctl apply-policy --dry-run` does"
    assert str(found).splitlines()[-1] == words
    assert words not in found.lines(lambda hints: ())


def test_a_dry_run_searches_more_rules_than_a_change(session: Rehearsal, tmp_path: Path) -> None:
    place = tmp_path / "mixed.json"
    place.write_text(json.dumps(document([*mixed(2_500), {"action": "allow"}, {"action": "deny"}], 0)))
    dry = session.controller.apply_policies(place, dry_run=True).forecast
    done = session.controller.apply_policies(place).forecast
    assert dry.idle
    assert not dry.unsought
    assert not done.idle
    assert len(done.unsought) == 1
    assert (dry.newly_denied, dry.newly_allowed) == (done.newly_denied, done.newly_allowed)
