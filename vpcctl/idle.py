"""Rules that do nothing: shadowed ones, which never match, and redundant ones, which change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vpcctl import space
from vpcctl.policy import Rule
from vpcctl.reach import DEFAULT, Gate
from vpcctl.space import Partition, Space


@dataclass(frozen=True, slots=True)
class Idle:
    """A rule without effect; `by` are the lines that match before it, or would decide the same without it."""

    origin: str
    shadowed: bool
    by: tuple[str, ...]

    def __str__(self) -> str:
        others = ", ".join(self.by[:4]) + (f" and {len(self.by) - 4} more" if len(self.by) > 4 else "")
        if not self.shadowed:
            return f"{self.origin} changes nothing: without it {others} would decide the same"
        if not self.by:
            return f"{self.origin} can never match: there is no such traffic at this subnet"
        return (
            f"{self.origin} can never match: {others} {'decides' if len(self.by) == 1 else 'decide'} all of it before"
        )


def idle_rules(gate: Gate, traffic: Space) -> Iterator[Idle]:
    """The idle rules of `gate`, of all the packets in `traffic` that can come to it, in the order of the document."""
    reaching = space.combine(_where, gate.deciding, traffic.partition)
    followers = _followers(gate, traffic)
    deciding = space.values(reaching)
    for number, rule in enumerate(gate.rules):
        if number not in deciding:
            yield Idle(rule.origin, True, _origins(gate, _deciding_at(gate, number, reaching)))
        elif _plain(rule) and all(gate.action(other) is rule.action for other in followers[number]):
            if all(other == DEFAULT or _plain(gate.rules[other]) for other in followers[number]):
                yield Idle(rule.origin, False, _origins(gate, followers[number]))


def _where(value: object, inside: object) -> object:
    return value if inside else space.UNDECIDED


def _plain(rule: Rule) -> bool:
    """A log or a limit does something even where the verdict stays."""
    return not rule.log and rule.limit is None


def _deciding_at(gate: Gate, number: int, reaching: Partition) -> set:
    """What decides the packets that rule `number` would match."""
    layer = gate.layers[number]
    return space.values(space.combine(lambda own, first: None if own is None else first, layer, reaching)) - {None}


def _followers(gate: Gate, traffic: Space) -> list[set]:
    """For each rule, what would decide its packets if it were not there."""
    layers = [space.transform(lambda value: () if value is None else (value,), layer) for layer in gate.layers]
    layers.append((DEFAULT,))
    while len(layers) > 1:
        layers = [_first_two(*layers[number : number + 2]) for number in range(0, len(layers), 2)]
    found: list[set] = [set() for _ in gate.rules]
    for pair in space.values(space.combine(_where, layers[0], traffic.partition)):
        if pair and len(pair) == 2:
            found[pair[0]].add(pair[1])
    return found


def _first_two(upper: Partition, lower: Partition = ()) -> Partition:
    return space.combine(lambda one, two: one if len(one) == 2 else (*one, *two)[:2], upper, lower)


def _origins(gate: Gate, decisions: Iterable) -> tuple[str, ...]:
    numbers = sorted(decision for decision in decisions if decision != DEFAULT)
    words = [gate.rules[number].origin for number in numbers]
    return (*words, "the default") if DEFAULT in set(decisions) else tuple(words)
