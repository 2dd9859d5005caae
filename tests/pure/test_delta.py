"""From one ruleset to another in a few transactions: the result is right, and no packet meets a half-made change."""

from __future__ import annotations

import dataclasses
import random
import re
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import worlds
from tests.batches import Machine
from vpcctl.compiler import Compiled, compile_vpc
from vpcctl.compiler.delta import MOST_DELETIONS, STAMP, UNFINISHED, Delta, delta, element_key
from vpcctl.compiler.dependencies import same_gates, standing_gates
from vpcctl.compiler.nft import Element
from vpcctl.model.network import Instance, World
from vpcctl.model.policy import TCP, Action, Direction, Endpoint, Origin, Policy, Rule

OWNER = "vpcctl/tests/alpha/ruleset"
# Changes that affect no gate, and changes that affect one.
CHANGES = (
    "another world",
    "an instance",
    "a policy",
    "a rule",
    "no policy",
    "a rule of the VPC",
    "no policy of the VPC",
)


def between(old: Compiled, new: Compiled, stamped: bool = False) -> Delta | None:
    texts = {name: part.text for name, part in old.gates.items()}
    return delta(old, 4, new, 5, texts.get, stamped)


def arrive(old: Compiled, new: Compiled) -> tuple[Machine, Delta]:
    """Apply the change to the model."""
    machine, change = Machine(old.tables, 4), between(old, new)
    assert change is not None
    back = change.back(dict.fromkeys(change.heads, 0))
    for batch in filter(None, (change.prepare, change.switch, *change.rebuild, back, change.clear)):
        machine.commit(batch)
    return machine, change


def changed(world: World, other: World, kind: str, chance: random.Random) -> World:
    """`world` after a change of that kind; "another world" is `other`."""
    if kind == "another world":
        return other
    vpc = world.vpc("alpha")
    if kind == "no policy of the VPC":
        return world.with_vpc(dataclasses.replace(vpc, policy=None))
    if kind == "a rule of the VPC":
        made = Rule(chance.choice(list(Action)), TCP, ((chance.randint(1, 9), 9),), origin=Origin("y", "/0"))
        policy = vpc.policy or Policy()
        return world.with_vpc(
            dataclasses.replace(vpc, policy=dataclasses.replace(policy, egress=(made, *(policy.egress or ()))))
        )
    if not vpc.subnets:
        return world
    subnet = chance.choice(vpc.subnets)
    if kind == "an instance":
        last = ip_address(subnet.prefixes[0][-2])
        if any(last in one.addresses for one in subnet.instances):
            return world
        more = Instance("more", (last,), "02:00:00:00:00:01")
        subnet = dataclasses.replace(subnet, instances=(*subnet.instances, more))
    elif kind == "no policy":
        subnet = dataclasses.replace(subnet, policy=None)
    else:
        rules = list((subnet.policy and subnet.policy.ingress) or ())
        place = chance.randint(0, len(rules))
        action, ports = chance.choice(list(Action)), ((chance.randint(1, 9), 9),)
        made = Rule(action, TCP, ports, log=chance.random() < 0.3, origin=Origin("x", f"/{place}"))
        rules[place : place + (kind == "a rule")] = [made]
        policy = dataclasses.replace(subnet.policy or Policy(), ingress=tuple(rules))
        subnet = dataclasses.replace(subnet, policy=policy)
    return world.with_vpc(vpc.with_subnet(subnet))


@settings(max_examples=12)
@given(worlds.worlds(), worlds.worlds(), st.sampled_from(CHANGES), st.randoms(use_true_random=False))
def test_a_change_arrives_and_touches_nothing_that_a_packet_may_meet(
    one: World, other: World, kind: str, chance: random.Random
) -> None:
    other = changed(one, other, kind, chance)
    old, new = (compile_vpc(world, "alpha", OWNER) for world in (one, other))
    if old.fingerprint == new.fingerprint:
        return
    if between(old, new) is None:
        hooks = [[chain.name for table in each.tables for chain in table.chains if chain.hook] for each in (old, new)]
        assert sorted(hooks[0]) != sorted(hooks[1])
        return
    machine, change = arrive(old, new)
    assert machine.texts() == Machine(new.tables, 5).texts()
    [stamp] = [found.head for place, found in machine.objects.items() if place[2] == STAMP]
    assert stamp == [f'{{ comment "{OWNER} {new.fingerprint} 5"; }}']
    assert [text.count(UNFINISHED) for text in (change.prepare, change.switch, change.clear)] == [1, 1, 0]


@settings(max_examples=12)
@given(worlds.worlds(), worlds.worlds(), st.sampled_from(CHANGES), st.randoms(use_true_random=False))
def test_gates_that_are_called_the_same_are_the_same(
    one: World, other: World, kind: str, chance: random.Random
) -> None:
    other = changed(one, other, kind, chance)
    old, new = (compile_vpc(world, "alpha", OWNER).gates for world in (one, other))
    same = same_gates(one, other, "alpha")
    assert same <= old.keys() & new.keys()
    assert all(old[name].text == new[name].text for name in same)
    assert standing_gates(other.vpc("alpha")) == new.keys()
    known = {name: old[name].fingerprint for name in same}
    assert compile_vpc(other, "alpha", OWNER, known).fingerprint == compile_vpc(other, "alpha", OWNER).fingerprint


def guarded(*rules: Rule) -> World:
    """The world of `worlds` with two full subnets, the first with an ingress policy of these rules."""
    world = worlds._plain("alpha", 0, False, ())
    subnet = dataclasses.replace(world.subnets[0], policy=Policy(worlds.with_origins(list(rules), Direction.INGRESS)))
    return World((world.with_subnet(subnet),))


def many(count: int, *ports: int) -> list[Rule]:
    """So many rules, one for each port."""
    return [Rule(Action.ALLOW, TCP, ((port, port),)) for port in (*ports, *range(1000, 1000 + count))]


def ruleset(*rules: Rule) -> Compiled:
    return compile_vpc(guarded(*rules), "alpha", OWNER)


def test_a_gate_that_stays_is_not_mentioned() -> None:
    world = guarded(*many(50))
    more = changed(world, world, "an instance", random.Random(1))
    change = between(compile_vpc(world, "alpha", OWNER), compile_vpc(more, "alpha", OWNER))
    assert "1000" not in str(change)
    assert "ingress" not in re.sub("(goto|jump) ingress-web(.reply)?", "", str(change))


def test_of_a_gate_that_changes_only_what_differs_is_touched() -> None:
    """Its shadow is loaded whole; the set itself loses an element and gets one, and no rule is made again."""
    _, change = arrive(ruleset(*many(50, 7)), ruleset(*many(50, 8)))
    rebuild = "".join(change.rebuild)
    assert rebuild.count("element") == 2
    assert "delete element inet vpcctl ingress-web.1.1.protocol-port { 6 . 7 }" in rebuild
    assert "1000" not in rebuild
    assert not change.counted


def test_a_first_policy_is_loaded_once() -> None:
    _, change = arrive(compile_vpc(World((worlds._plain("alpha", 0, False, ()),)), "alpha", OWNER), ruleset(*many(50)))
    assert str(change).count(". 1000 ") == 1


def test_a_set_of_which_most_goes_is_made_again() -> None:
    old, new = ruleset(*many(MOST_DELETIONS + 10)), ruleset(*many(1))
    _, change = arrive(old, new)
    assert "delete element" not in str(change)
    assert "delete map inet vpcctl ingress-web.1.1.protocol-port\n" in change.rebuild[0]


def test_a_gate_whose_text_is_not_known_takes_a_whole_load() -> None:
    old, new = ruleset(*many(3)), ruleset(*many(4))
    assert delta(old, 4, new, 5, lambda gate: None, stamped=False) is None
    assert delta(old, 4, old, 5, lambda gate: None, stamped=False) is not None


def test_the_rules_that_stay_begin_with_what_they_counted() -> None:
    """In a chain whose rules are made again; a new rule starts at zero."""
    limited = [dataclasses.replace(rule, limit=worlds.Limit(10, "second")) for rule in many(0, 7, 8)]
    _, change = arrive(ruleset(*limited[:1]), ruleset(*limited))
    [(chain, rules)] = [(chain, rules) for chain, rules in change.counted.items() if not chain.endswith(".reply")]
    counts = [(number, 100 * number) if "counter" in rule else None for number, rule in enumerate(rules, 1)]
    counted = "".join(change.counting({chain: counts}).rebuild)
    made = [line for line in counted.splitlines() if line.startswith(f"add rule inet vpcctl {chain} ")]
    kept = [line for line in made if "counter packets" in line]
    assert len(kept) == len(rules) < len(made)
    for number, rule in enumerate(rules, 1):
        wanted = f"add rule inet vpcctl {chain} {rule}"
        assert wanted.replace("counter ", f"counter packets {number} bytes {number}00 ") in kept


def test_the_key_of_an_element_ends_before_its_comment_and_its_data() -> None:
    assert element_key(str(Element("10.0.0.0/8 . 6 . 80", "drop", "web.json#/ingress : 0"))) == "10.0.0.0/8 . 6 . 80"
    assert element_key(str(Element("6 . 80", "10.0.0.2 . 80"))) == "6 . 80"
    assert element_key(str(Element('"br-web" . 02:00:00:00:00:01'))) == '"br-web" . 02:00:00:00:00:01'


def test_an_endpoint_of_a_part_that_changes_makes_another_gate() -> None:
    named = Rule(Action.ALLOW, TCP, None, sources=(Endpoint("instance", "more"),))
    world = guarded(named)
    more = changed(world, world, "an instance", random.Random(1))
    assert same_gates(world, more, "alpha") == frozenset()
    assert same_gates(world, world, "alpha") == {"ingress-web"}
