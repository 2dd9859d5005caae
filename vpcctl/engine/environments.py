"""Requests about whole environments: compare a document with what there is, apply it, and write one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vpcctl.engine.events import ObjectChanged, Progress
from vpcctl.engine.machine import Machine
from vpcctl.errors import ConflictError, VpcctlError
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.analysis.impact import Forecast
    from vpcctl.documents.diff import ObjectChange, Step
    from vpcctl.documents.sources import Document, Loader, Source
    from vpcctl.engine.execution import Difference
    from vpcctl.engine.reconciler import Outcome
    from vpcctl.engine.state import State
    from vpcctl.model.network import World


@dataclass(frozen=True, slots=True)
class EnvironmentPlan:
    """What applying a document would change: objects, and traffic."""

    changes: tuple[ObjectChange, ...]
    forecast: Forecast
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EnvironmentApplied:
    """What applying a document changed; `repaired` is what differed in the kernel in VPCs that stay as they were."""

    changes: tuple[ObjectChange, ...]
    steps: int
    outcome: Outcome
    repaired: tuple[Difference, ...] = ()
    warnings: tuple[str, ...] = ()


def plan_environment(machine: Machine, source: Source, prune: bool) -> EnvironmentPlan:
    """Compare a document with the present world; changes nothing."""
    from vpcctl.analysis.impact import forecast
    from vpcctl.documents.diff import object_changes
    from vpcctl.documents.sources import read_source
    from vpcctl.engine.traffic import closed_ways

    document = read_source(source)
    state = machine.load()
    wanted = _wanted(document, state, prune, document.loader())
    machine.check(state.world, wanted)
    changes = object_changes(state.world, wanted)
    host, warnings = machine.host()
    expected = forecast(state.world, wanted, _new_policies(wanted, state.world), host)
    return EnvironmentPlan(tuple(changes), expected, (*warnings, *closed_ways(machine, state.world, wanted)))


def apply_environment(machine: Machine, source: Source, prune: bool) -> EnvironmentApplied:
    """Make the VPCs that a document names as it says, all in one change.

    Everything is checked before it.  Where a VPC fails it is rolled back, the others are made, and the error is raised
    at the end.
    """
    from vpcctl.documents.diff import object_changes, steps, toward
    from vpcctl.documents.sources import read_once, read_source
    from vpcctl.engine.reconciler import PEERINGS
    from vpcctl.engine.traffic import closed_ways

    document = read_source(source)
    load = read_once(document.loader())
    known = machine.load()
    first = _wanted(document, known, prune, load)
    way = steps(known.world, first)
    taken: list[ObjectChange] = []
    refused: dict[str, VpcctlError] = {}

    def chosen(state: State, without: frozenset[str]) -> World:
        """The world after the steps that can be taken: not those of the parts `without`, nor what needs them."""
        nonlocal way
        world = state.world
        if state is known:
            wanted = first
        else:
            wanted = _wanted(document, state, prune, load)
            way = steps(world, wanted)
        taken.clear()
        refused.clear()
        for step in way:
            if step.vpcs & without:
                continue
            try:
                after = toward(world, wanted, _without_peerings(step) if PEERINGS in without else step)
            except ConflictError as error:
                refused[step.label] = error
                continue
            taken.extend(object_changes(world, after))
            world = after
        return world

    def begun(vpc: str) -> None:
        for number, step in enumerate(way, 1):
            if vpc in step.vpcs:
                machine.report(Progress(number, len(way), step.label))

    if machine.rehearsing:
        rehearsed = machine.change(lambda state: first)
        closed = closed_ways(machine, rehearsed.before, rehearsed.after)
        return EnvironmentApplied(tuple(object_changes(known.world, first)), len(way), rehearsed, warnings=closed)
    outcome, failed = machine.change_parts(chosen, begun)
    failures: list[VpcctlError] = []
    for step in way:
        parts = sorted(step.vpcs & failed.keys())
        if step.peerings != "stay" and PEERINGS in failed:
            parts.append(PEERINGS)
        error = refused.get(step.label) or next((failed[part] for part in parts), None)
        if error is not None:
            failures.append(error)
            machine.remark(f"{step.label}: not done; {error}")
    for change in taken:
        machine.report(ObjectChanged(change))
    if failures:
        counted = f"{len(failures)} of {len(way)} step{'' if len(way) == 1 else 's'}"
        raise type(failures[0])(f"{counted} {'was' if len(failures) == 1 else 'were'} not done: {failures[0]}")
    # What is the same may have been flushed, and is to be as the document says when this returns.
    changed = frozenset[str]().union(*(step.vpcs for step in way))
    named = (vpc["name"] for vpc in document.content.get("vpcs", ()))
    repaired = machine.assure(name for name in named if name not in changed)
    closed = closed_ways(machine, outcome.before, outcome.after)
    return EnvironmentApplied(tuple(taken), len(way), outcome, repaired, closed)


def _without_peerings(step: Step) -> Step:
    return dataclasses.replace(step, peerings="stay")


def _wanted(document: Document, state: State, prune: bool, load: Loader) -> World:
    """The world after the document is applied to `state`, everything checked; `load` reads policies' files."""
    from vpcctl.documents.assertions import stated
    from vpcctl.documents.binding import check
    from vpcctl.documents.diff import merged, with_invariants
    from vpcctl.documents.environment import read_environment
    from vpcctl.model.network import Peering

    world = read_environment(document.content, document.name, load, state.world, state.serial)
    peerings = tuple(Peering.between(*pair) for pair in document.content.get("peerings", ()))
    wanted = merged(state.world, world, peerings, prune)
    wanted = with_invariants(wanted, stated(document.content, document.name))
    check(wanted, (vpc.name for vpc in world.vpcs), document.name)
    return wanted


def _new_policies(wanted: World, before: World) -> list[tuple[str, str]]:
    """The subnets whose policy is new or another one; ``*`` stands for the VPC's own."""
    # An unchanged VPC is not read for this.
    changed = [vpc for vpc in wanted.vpcs if before.vpcs_by_name.get(vpc.name) is not vpc]
    old = {
        (vpc.name, subnet): policy
        for vpc in changed
        if vpc.name in before.vpcs_by_name
        for subnet, policy in before.vpc(vpc.name).policies
    }
    return [
        (vpc.name, subnet)
        for vpc in changed
        for subnet, policy in vpc.policies
        if old.get((vpc.name, subnet)) != policy
    ]
