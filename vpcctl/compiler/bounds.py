"""Refuses a change whose policies would cost too much, before the lock is taken.

A policy in force was accepted once, so it is always compiled.  Only a change that exceeds a bound is refused: with a
new policy, or because names in an existing policy would match more than before.
"""

from __future__ import annotations

from vpcctl.compiler.effort import Effort, TooMuchError
from vpcctl.compiler.gates import gate, keep
from vpcctl.compiler.view import View, looks_alike
from vpcctl.errors import DocumentError, Problem
from vpcctl.model.network import Subnet, Vpc, World
from vpcctl.model.policy import Direction, Policy


def check(before: World, after: World) -> None:
    """Raise DocumentError for the VPCs of `after` that exceed a bound, unless they exceeded one in `before`.

    The gates that were compiled here are kept for the compiler, which needs the same ones next.
    """
    keep(())
    problems = [problem for vpc in after.vpcs if (problem := _problem(before, after, vpc)) is not None]
    if problems:
        raise DocumentError(*problems)


def _problem(before: World, after: World, vpc: Vpc) -> Problem | None:
    if looks_alike(before, after, vpc):
        return None
    known = {subnet.name: subnet.policy for one in before.vpcs if one.name == vpc.name for subnet in one.subnets}
    problem, subnet = _measured(after, vpc, known)
    if problem is None or subnet is None:
        return None
    if subnet.policy != known.get(subnet.name):
        return problem
    # The VPC exceeded a bound before: do not block other changes.
    if any(_measured(before, one, {})[0] is not None for one in before.vpcs if one.name == vpc.name):
        return None
    why = "this policy did not change, but names in it would match more, or other policies of the VPC would need more"
    words = f"{problem.message}; {why}"
    return Problem(problem.file, problem.pointer, words)


def _measured(world: World, vpc: Vpc, known: dict[str, Policy | None]) -> tuple[Problem | None, Subnet | None]:
    """The first bound that the VPC passes, and the subnet with whose policy; `known` are policies that came before."""
    view, effort = View.of(world, vpc.name), Effort.bounded()
    # New policies come last, so that they are reported as the cause.
    for subnet in sorted(vpc.subnets, key=lambda one: one.policy != known.get(one.name)):
        for direction in Direction:
            try:
                keep(((view, subnet, direction, gate(view, subnet, direction, effort)),))
            except TooMuchError as error:
                rules = subnet.policy.rules(direction) if subnet.policy else None
                assert rules, "a gate without rules costs nothing"
                rule = rules[error.rule]
                file, _, pointer = rule.origin.partition("#")
                return Problem(file, pointer, str(error)), subnet
    return None, None
