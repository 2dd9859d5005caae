"""What a gate depends on: if all of it is the same in two worlds, the gate is the same and is not compiled again.

A gate depends on the policies of its subnet and VPC, on the prefixes of both, on who the peers are, and on the subnets
and instances that its rules name.  So adding or removing an instance changes no gate, unless a rule names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vpcctl.compiler.gates import gate_name, stands
from vpcctl.documents.lazy_lists import Kept
from vpcctl.model.network import Vpc, World, effective
from vpcctl.model.policy import Direction, EffectivePolicy, Policy, Rule

# The kinds of endpoints that name a part of the VPC.
_NAMED = ("subnet", "instance")


def standing_gates(vpc: Vpc) -> frozenset[str]:
    """The names of the gates of a VPC."""
    return frozenset(
        gate_name(subnet.name, direction)
        for subnet in vpc.subnets
        for direction in Direction
        if stands(vpc, subnet, direction)
    )


def same_gates(before: World, after: World, vpc: str) -> frozenset[str]:
    """The names of gates of a VPC that are certainly the same in both worlds."""
    if vpc not in before.vpcs_by_name:
        return frozenset()
    old, new = before.vpc(vpc), after.vpc(vpc)
    peers = [[(peer.name, peer.prefixes) for peer in world.peers(vpc)] for world in (before, after)]
    if (old.prefixes, old.sets, peers[0]) != (new.prefixes, new.sets, peers[1]):
        return frozenset()
    changed = set(_meanings(old) ^ _meanings(new))
    words = {word for word, _ in changed}
    return frozenset(
        gate_name(subnet.name, direction)
        for subnet in new.subnets
        if subnet.name in old.subnets_by_name
        for direction in Direction
        if stands(new, subnet, direction)
        and old.subnets_by_name[subnet.name].prefixes == subnet.prefixes
        and _same_rules(effective(old, old.subnets_by_name[subnet.name]), effective(new, subnet), direction, words)
    )


def _meanings(vpc: Vpc) -> set[tuple[str, tuple[Any, ...]]]:
    """What the names of parts of a VPC mean at present."""
    found: set[tuple[str, tuple[Any, ...]]] = {(f"subnet:{one.name}", one.prefixes) for one in vpc.subnets}
    return found | {(f"instance:{one.name}", one.addresses) for one in vpc.instances}


def _same_rules(
    old: EffectivePolicy | None, new: EffectivePolicy | None, direction: Direction, changed: set[str]
) -> bool:
    """Do two effective policies say the same about `direction`, and name nothing that changed?"""
    if old is None or new is None:
        return False
    if not (_same_policy(old.vpc, new.vpc, direction) and _same_policy(old.subnet, new.subnet, direction)):
        return False
    return not changed or all(changed.isdisjoint(_words(rules)) for _, rules in new.parts(direction))


def _same_policy(old: Policy | None, new: Policy | None, direction: Direction) -> bool:
    if old is new:
        return True
    if old is None or new is None:
        return False
    fields = [(one.defaults, one.sets, one.file, one.pointer, one.rules(direction)) for one in (old, new)]
    return fields[0] == fields[1]


def _words(rules: Sequence[Rule]) -> Iterator[str]:
    """The endpoints of rules that name a part of the VPC, in the words of the language.

    Rules that are still encoded are not decoded for this, except to find the error in invalid ones.
    """
    if isinstance(rules, Kept) and all(isinstance(document, dict) for document in rules.kept):
        for document in rules.kept:
            for side in ("source", "destination"):
                words = document.get(side, ())
                yield from (words,) if isinstance(words, str) else words
    else:
        for rule in rules:
            for endpoint in (*(rule.sources or ()), *(rule.destinations or ())):
                if endpoint.kind in _NAMED:
                    yield str(endpoint)
