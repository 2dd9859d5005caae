"""Refuses a change whose policies would cost too much, before the lock is taken.

A policy in force was accepted once, so it is always compiled.  Only a change that exceeds a bound is refused: with a
new policy, or because names in an existing policy would match more than before.
"""

from __future__ import annotations

from collections.abc import Mapping

from vpcctl.compiler.dependencies import same_gates, standing_gates
from vpcctl.compiler.effort import Effort, TooMuchError
from vpcctl.compiler.gates import gate, keep
from vpcctl.compiler.view import View, looks_alike
from vpcctl.errors import DocumentError, Problem
from vpcctl.model.network import Subnet, Vpc, World, effective
from vpcctl.model.policy import Direction, EffectivePolicy


def check(before: World, after: World) -> None:
    """Raise DocumentError for the VPCs of `after` that exceed a bound, unless they exceeded one in `before`.

    The gates that were compiled here are kept for the compiler, which needs the same ones next.
    """
    keep(())
    problems = [problem for vpc in after.vpcs if (problem := _problem(before, after, vpc)) is not None]
    if problems:
        raise DocumentError(*problems)


def _problem(before: World, after: World, vpc: Vpc) -> Problem | None:
    if looks_alike(before, after, vpc) or standing_gates(vpc) <= same_gates(before, after, vpc.name):
        return None
    was = before.vpcs_by_name.get(vpc.name)
    known = {subnet.name: effective(was, subnet) for subnet in was.subnets} if was else {}
    problem, subnet = _measured(after, vpc, known, keeping=True)
    if problem is None or subnet is None:
        return None
    if effective(vpc, subnet) != known.get(subnet.name):
        return problem
    # The VPC exceeded a bound before: do not block other changes.
    if was is not None and _measured(before, was, {})[0] is not None:
        return None
    why = "this policy did not change, but names in it would match more, or other policies of the VPC would need more"
    words = f"{problem.message}; {why}"
    return Problem(problem.file, problem.pointer, words)


def _measured(
    world: World, vpc: Vpc, known: Mapping[str, EffectivePolicy | None], keeping: bool = False
) -> tuple[Problem | None, Subnet | None]:
    """The first bound that the VPC passes, and the subnet with whose policy; `known` are the effective policies before.

    With `keeping` its gates are kept for the compiler.
    """
    view, effort = View.of(world, vpc.name), Effort.bounded()
    # New policies come last, so that they are reported as the cause.
    for subnet in sorted(vpc.subnets, key=lambda one: effective(vpc, one) != known.get(one.name)):
        policy = effective(vpc, subnet)
        for direction in Direction:
            try:
                found = gate(view, subnet, direction, effort)
            except TooMuchError as error:
                rules = policy.rules(direction) if policy else None
                assert rules, "a gate without rules costs nothing"
                origin = rules[error.rule].origin
                return Problem(origin.file, origin.pointer, str(error)), subnet
            if keeping:
                keep(((view, subnet, direction, found),))
    return None, None
