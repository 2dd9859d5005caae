"""Rules that do nothing: shadowed ones, which never match, and redundant ones, which change nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import Node, Partition, Space
from vpcctl.analysis.reachability import DEFAULT, GateSpaces
from vpcctl.model.policy import Origin, Rule

# What a packet may come to in a gate: numbers of rules, and DEFAULT.
Chain = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Idle:
    """A rule without effect; `by` are the lines that match before it, or would decide the same without it."""

    origin: Origin
    shadowed: bool
    by: tuple[Origin | str, ...]

    def __str__(self) -> str:
        others = ", ".join(map(str, self.by[:4])) + (f" and {len(self.by) - 4} more" if len(self.by) > 4 else "")
        if not self.shadowed:
            return f"{self.origin} changes nothing: without it {others} would decide the same"
        if not self.by:
            return f"{self.origin} can never match: this subnet has no such traffic"
        return (
            f"{self.origin} can never match: {others} {'decides' if len(self.by) == 1 else 'decide'} all of it before"
        )


def idle_to_json(idle: Idle) -> dict[str, Any]:
    """An idle rule for machines."""
    return {"origin": str(idle.origin), "shadowed": idle.shadowed, "by": list(map(str, idle.by))}


def idle_rules(gate: GateSpaces, traffic: Space) -> Iterator[Idle]:
    """The idle rules of `gate`, of all the packets in `traffic` that can come to it, in the order of the document."""
    chains = _chains(gate)
    reached, followers = _reached(gate, packetset.values(chains, traffic))
    deciding = packetset.transform(lambda chain: _decider(gate, chain), chains)
    for number, rule in enumerate(gate.rules):
        if number not in reached:
            own = Space(packetset.transform(lambda value: value is not packetset.UNDECIDED, gate.layers[number]))
            yield Idle(rule.origin, True, _origins(gate, packetset.values(deciding, own & traffic)))
        elif _plain(gate, number) and all(_as(gate, rule, other) for other in followers[number]):
            yield Idle(rule.origin, False, _origins(gate, followers[number]))


def _plain(gate: GateSpaces, number: int | str) -> bool:
    """A log or a limit does something even where the verdict stays."""
    rule = gate.rule(number)
    return rule is None or not (rule.log or rule.limit)


def _as(gate: GateSpaces, rule: Rule, other: int | str) -> bool:
    return _plain(gate, other) and gate.action(other) is rule.action


def _limited(gate: GateSpaces, number: int | str) -> bool:
    rule = gate.rule(number)
    return rule is not None and rule.limit is not None


def _chains(gate: GateSpaces) -> Partition:
    """For each packet the rules that it may come to, in their order: a tuple.

    These are rules with a limit, above which they do not match; then the first without one, which decides; and one
    more, which would come next if that were not there.
    """
    limited = {number for number, rule in enumerate(gate.rules) if rule.limit}

    def complete(chain: Chain) -> bool:
        return len(chain) > 1 and chain[-2] not in limited

    def settled(one: Partition, other: Partition) -> Partition:
        if isinstance(one, Node):
            return one if other == () else packetset.DEEPER
        if one == ():
            return other
        if other == () or complete(one):
            return one
        if isinstance(other, Node):
            return packetset.DEEPER
        # Numbers are added until the chain is complete: one after the first without a limit.
        decided = [place for place, number in enumerate((*one, *other)) if number not in limited]
        found = (*one, *other)[: decided[0] + 2] if decided else (*one, *other)
        packetset.spend(len(found))
        return found

    layers = [
        packetset.transform(lambda value: () if value is packetset.UNDECIDED else (value,), one) for one in gate.layers
    ]
    return packetset.fold(settled, [*layers, (DEFAULT,)])


def _decider(gate: GateSpaces, chain: Chain) -> int | str:
    return next(number for number in chain if not _limited(gate, number))


def _reached(gate: GateSpaces, chains: Iterable[Chain]) -> tuple[set[int | str], dict[int | str, set[int | str]]]:
    """Every rule that decides something, and what would decide in the place of those without a limit."""
    reached: set[int | str] = set()
    followers: dict[int | str, set[int | str]] = defaultdict(set)
    for chain in chains:
        place = chain.index(_decider(gate, chain))
        reached.update(chain[: place + 1])
        followers[chain[place]].update(chain[place + 1 :])
    return reached, followers


def _origins(gate: GateSpaces, decisions: Iterable[int | str]) -> tuple[Origin | str, ...]:
    decisions = set(decisions)
    packetset.spend(len(decisions))
    numbers = sorted(decision for decision in decisions if isinstance(decision, int))
    lines = [gate.rules[number].origin for number in numbers]
    return (*lines, "the default") if DEFAULT in decisions else tuple(lines)
