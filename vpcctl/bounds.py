"""Refuses a change whose policies would cost too much, before anybody waits for it.

A policy that is in force was accepted once, and is compiled whatever it costs: only a change that comes to more than
the bounds is refused, be it by a new policy or by names in an old one that would mean more than before.
"""

from __future__ import annotations

from vpcctl.compiler.effort import Effort, TooMuchError
from vpcctl.compiler.gates import gate, keep
from vpcctl.compiler.view import View, looks_alike
from vpcctl.errors import DocumentError, Problem
from vpcctl.model import Subnet, Vpc, World
from vpcctl.policy import Direction


def check(before: World, after: World) -> None:
    """DocumentError for the VPCs of `after` that pass a bound, and did not do so in the world `before`.

    What was compiled on the way is kept for the compiler, which is asked for the same next.
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
    # It was so before: whoever changes something else is not to be held up.
    if any(_measured(before, one, {})[0] is not None for one in before.vpcs if one.name == vpc.name):
        return None
    words = f"{problem.message}.  The policy is as it was; names in it, or others beside it, would come to more"
    return Problem(problem.file, problem.pointer, words)


def _measured(world: World, vpc: Vpc, known: dict) -> tuple[Problem | None, Subnet | None]:
    """The first bound that the VPC passes, and the subnet with whose policy; `known` are policies that came before."""
    view, effort = View.of(world, vpc.name), Effort.bounded()
    # Those that are new come last, so that the blame is theirs.
    for subnet in sorted(vpc.subnets, key=lambda one: one.policy != known.get(one.name)):
        for direction in Direction:
            try:
                keep(((view, subnet, direction, gate(view, subnet, direction, effort)),))
            except TooMuchError as error:
                rule = subnet.policy.rules(direction)[error.rule]
                file, _, pointer = rule.origin.partition("#")
                return Problem(file, pointer, str(error)), subnet
    return None, None
