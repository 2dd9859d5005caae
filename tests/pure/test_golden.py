"""The rulesets that people read: compiled text, verdicts by the oracle, messages of refusal.

With VPCCTL_BLESS=1 in the environment the rulesets of the golden cases are written anew; verdicts and messages never.
"""

from __future__ import annotations

import os

import pytest

from tests.golden import MACHINE, RULESETS, Case, Line, cases, refusal, without
from vpcctl.documents.reading import load_schema
from vpcctl.model import oracle
from vpcctl.model.policy import Action, Rule

GOLDEN, JUDGED = cases("golden"), cases("golden", "library")
REJECTED = sorted(folder.name for folder in (RULESETS / "rejected").iterdir() if folder.is_dir())
BLESS = bool(os.environ.get("VPCCTL_BLESS"))


# --- Rulesets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_the_compiler_writes_the_golden_text(name: str) -> None:
    expected = dict(GOLDEN[name].rulesets())
    if BLESS:
        for path, text in expected.items():
            path.write_text(text, encoding="utf-8")
    assert set(GOLDEN[name].folder.glob("*.nft")) == set(expected), "`./run bless` writes them; read the difference"
    for path, text in expected.items():
        assert path.read_text(encoding="utf-8") == text, f"{path} differs; if that is intended, run `./run bless`"


@pytest.mark.parametrize("name", JUDGED)
def test_the_oracle_agrees_with_every_packet(name: str) -> None:
    world = JUDGED[name].world
    wrong = {str(line): said for line in JUDGED[name].lines if (said := disagreement(world, line))}
    assert not wrong


def disagreement(world: oracle.World, line: Line) -> str:
    """What the oracle says otherwise, in words."""
    decision = oracle.decide(without(world, line.exhausted), line.flow, MACHINE)
    last = decision.stages[-1]
    if last.action.value != line.expect:
        return f"{last.action.value}, {last.origin}"
    deciding = decision.stages if last.action is Action.ALLOW else [last]
    if line.rule and line.rule not in {stage.origin for stage in deciding}:
        return f"{last.action.value} as expected, but by {[stage.origin for stage in deciding]}"
    return ""


@pytest.mark.parametrize("name", JUDGED)
def test_a_case_lets_something_pass_and_holds_something_up(name: str) -> None:
    expected = {line.expect for line in JUDGED[name].lines}
    assert "allow" in expected
    assert expected - {"allow"}


@pytest.mark.parametrize("name", JUDGED)
def test_every_rule_decides_a_packet_or_is_described_as_one_that_matches_nothing(name: str) -> None:
    named = {line.rule for line in JUDGED[name].lines}
    wrong = [str(rule.origin) for rule in rules(JUDGED[name]) if (str(rule.origin) in named) is matches_nothing(rule)]
    assert not wrong


def rules(case: Case) -> list[Rule]:
    """All rules of the case's policies."""
    return [
        rule
        for vpc in case.world.vpcs
        for _, policy in vpc.policies
        for found in (policy.ingress, policy.egress)
        for rule in found or ()
    ]


def matches_nothing(rule: Rule) -> bool:
    return rule.description.startswith("matches nothing")


def test_the_cases_use_every_word_of_the_language() -> None:
    written = [rule for case in GOLDEN.values() for rule in written_rules(case)]
    assert {field for rule in written for field in rule} == set(load_schema("policy")["$defs"]["rule"]["properties"])
    assert {rule["action"] for rule in written} == {"allow", "deny", "reject"}
    ends = [end for rule in written for field in ("source", "destination") for end in _many(rule.get(field, []))]
    assert {"any", "internet"} < set(ends)
    assert {end.partition(":")[0] for end in ends} >= {"subnet", "instance", "vpc", "set"}
    protocols = {str(rule.get("protocol", "any")).lower() for rule in written}
    assert protocols > {"tcp", "udp", "sctp", "icmp", "icmpv6", "any"}


def written_rules(case: Case) -> list[dict]:
    """Every rule of the case's documents, as written."""

    def within(value: object) -> list[dict]:
        if isinstance(value, list):
            return [rule for inner in value for rule in within(inner)]
        if isinstance(value, dict):
            return [value] if "action" in value else within(list(value.values()))
        return []

    return [rule for path in case.folder.glob("*.json") for rule in within(case.document(path.name))]


def _many(value: object) -> list:
    return value if isinstance(value, list) else [value]


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REJECTED)
def test_a_wrong_document_is_refused_in_these_words(name: str) -> None:
    folder = RULESETS / "rejected" / name
    assert refusal(folder) == (folder / "messages.txt").read_text(encoding="utf-8")
