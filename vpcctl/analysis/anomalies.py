"""Rules that do nothing: shadowed ones, which never match, and redundant ones, which change nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import Partition, Space
from vpcctl.analysis.reachability import DEFAULT, GateRules
from vpcctl.model.policy import Origin, Rule
from vpcctl.values import dataclass

# What is spent for each rule in any case, in parts: a hopeless search ends before it begins.
_EACH = 20
# What a packet may come to in a gate: numbers of rules, and DEFAULT.
Chain = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Idle:
    """A rule without effect; `by` are the lines that match before it, or would decide the same without it.

    `holder` is the owner of the policy: a ``subnet`` or a ``VPC``.
    """

    origin: Origin
    shadowed: bool
    by: tuple[Origin | str, ...]
    holder: str = "subnet"

    def __str__(self) -> str:
        others = ", ".join(map(str, self.by[:4])) + (f" and {len(self.by) - 4} more" if len(self.by) > 4 else "")
        if not self.shadowed:
            return f"{self.origin} changes nothing: without it {others} would decide the same"
        if not self.by:
            return f"{self.origin} can never match: this {self.holder} has no such traffic"
        return (
            f"{self.origin} can never match: {others} {'decides' if len(self.by) == 1 else 'decide'} all of it before"
        )


def idle_to_json(idle: Idle) -> dict[str, Any]:
    """An idle rule for machines."""
    return {"origin": str(idle.origin), "shadowed": idle.shadowed, "by": list(map(str, idle.by))}


def idle_rules(gate: GateRules, traffic: Space) -> Iterator[Idle]:
    """The idle rules of the subnet's own policy in their order, if `traffic` is all that can come to the gate."""
    first = gate.of_vpc
    return (idle for number, idle in _numbered(gate, traffic) if number >= first)


def idle_rules_of_vpc(gates: Sequence[tuple[GateRules, Space]]) -> Iterator[Idle]:
    """The rules of a VPC's own policy that are idle at all its gates of one direction, and what its rules make idle.

    `gates` come with the packets that can come to each.
    """
    everywhere: dict[int, list[Idle]] = defaultdict(list)
    hidden = []
    for gate, traffic in gates:
        own = {rule.origin for rule in gate.rules[: gate.of_vpc]}
        for number, idle in _numbered(gate, traffic):
            if number < gate.of_vpc:
                everywhere[number].append(idle)
            elif not own.isdisjoint(idle.by):
                hidden.append(idle)
    for number in sorted(everywhere):
        found = everywhere[number]
        if len(found) == len(gates):
            by = dict.fromkeys(line for idle in found for line in idle.by)
            yield Idle(found[0].origin, all(idle.shadowed for idle in found), tuple(by), "VPC")
    yield from hidden


def _numbered(gate: GateRules, traffic: Space) -> Iterator[tuple[int, Idle]]:
    """The idle rules of both policies, with their numbers."""
    packetset.spend(_EACH * len(gate.ranges))
    chains = _chains(gate, traffic)
    reached, followers = _reached(gate, packetset.values(chains, traffic))
    for number, rule in enumerate(gate.rules):
        if number not in reached:
            own = Space.of(*gate.ranges[number]) & traffic
            before = {_decider(gate, chain) for chain in packetset.values(chains, own)}
            yield number, Idle(rule.origin, True, _origins(gate, before))
        elif _plain(gate, number) and all(_as(gate, rule, other) for other in followers[number]):
            yield number, Idle(rule.origin, False, _origins(gate, followers[number]))


def _plain(gate: GateRules, number: int | str) -> bool:
    """A log or a limit does something even where the verdict stays."""
    rule = gate.rule(number)
    return rule is None or not (rule.log or rule.limit)


def _as(gate: GateRules, rule: Rule, other: int | str) -> bool:
    return _plain(gate, other) and gate.action(other) is rule.action


def _limited(gate: GateRules, number: int | str) -> bool:
    rule = gate.rule(number)
    return rule is not None and rule.limit is not None


def _chains(gate: GateRules, traffic: Space) -> Partition:
    """For each packet of `traffic` the rules that it may come to, in their order: a tuple.

    These are rules with a limit, above which they do not match; then the first without one, which decides; and one
    more, which would come next if that were not there.
    """
    numbers, ranges = gate.within(traffic)
    limited = {place for place, number in enumerate(numbers) if gate.rules[number].limit}

    def settled(found: Sequence[int]) -> Chain:
        decided = next((place for place, number in enumerate(found) if number not in limited), len(found))
        packetset.spend(decided)
        chain: Chain = (*(numbers[place] for place in found), DEFAULT)
        return chain[: decided + 2]

    return packetset.swept(ranges, settled, 1, limited)


def _decider(gate: GateRules, chain: Chain) -> int | str:
    return next(number for number in chain if not _limited(gate, number))


def _reached(gate: GateRules, chains: Iterable[Chain]) -> tuple[set[int | str], dict[int | str, set[int | str]]]:
    """Every rule that decides something, and what would decide in the place of those without a limit."""
    reached: set[int | str] = set()
    followers: dict[int | str, set[int | str]] = defaultdict(set)
    for chain in chains:
        place = chain.index(_decider(gate, chain))
        reached.update(chain[: place + 1])
        followers[chain[place]].update(chain[place + 1 :])
    return reached, followers


def _origins(gate: GateRules, decisions: Iterable[int | str]) -> tuple[Origin | str, ...]:
    decisions = set(decisions)
    packetset.spend(len(decisions))
    numbers = sorted(decision for decision in decisions if isinstance(decision, int))
    lines = [gate.rules[number].origin for number in numbers]
    return (*lines, "the default") if DEFAULT in decisions else tuple(lines)
