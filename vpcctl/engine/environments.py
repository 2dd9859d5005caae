"""Requests about whole environments: compare a document with what there is, apply it, and write one."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpcctl.engine.events import ObjectChanged, Progress
from vpcctl.engine.machine import Machine
from vpcctl.errors import ConflictError, KernelError, VpcctlError

if TYPE_CHECKING:
    from vpcctl.analysis.impact import Forecast
    from vpcctl.documents.diff import ObjectChange, Step
    from vpcctl.documents.sources import Document, Loader, Source
    from vpcctl.engine.execution import Difference
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
    repaired: tuple[Difference, ...] = ()


def plan_environment(machine: Machine, source: Source, prune: bool) -> EnvironmentPlan:
    """Compare a document with the present world; changes nothing."""
    from vpcctl.analysis.impact import forecast
    from vpcctl.compiler import bounds
    from vpcctl.documents.diff import object_changes
    from vpcctl.documents.sources import read_source

    document = read_source(source)
    state = machine.load()
    wanted = _wanted(document, state, prune, document.loader())
    bounds.check(state.world, wanted)
    changes = object_changes(state.world, wanted)
    host, warnings = machine.host()
    expected = forecast(state.world, wanted, _new_policies(wanted, state.world), host)
    return EnvironmentPlan(tuple(changes), expected, warnings)


def apply_environment(machine: Machine, source: Source, prune: bool) -> EnvironmentApplied:
    """Make the VPCs that a document names as it says, one after the other.

    Everything is checked before the first change.  Where a VPC fails it is rolled back, the others are made, and the
    error is raised at the end.
    """
    from vpcctl.compiler import bounds
    from vpcctl.documents.diff import object_changes, steps, toward
    from vpcctl.documents.sources import read_once, read_source

    document = read_source(source)
    load = read_once(document.loader())
    state = machine.load()
    wanted = _wanted(document, state, prune, load)
    bounds.check(state.world, wanted)
    way = steps(state.world, wanted)
    failures: list[VpcctlError] = []
    changes: list[ObjectChange] = []

    def taken(found: State, step: Step) -> World:
        return toward(found.world, _wanted(document, found, prune, load), step)

    for number, step in enumerate(way, 1):
        machine.report(Progress(number, len(way), step.label))
        try:
            outcome = machine.change(functools.partial(taken, step=step))
        except (ConflictError, KernelError) as error:
            failures.append(error)
            machine.remark(f"{step.label}: not done; {error}")
        except VpcctlError:
            if number > 1:
                machine.remark(f"ended before {step.label}, which is step {number} of {len(way)}")
            raise
        else:
            for change in object_changes(outcome.before, outcome.after):
                changes.append(change)
                machine.report(ObjectChanged(change))
    if failures:
        counted = f"{len(failures)} of {len(way)} step{'' if len(way) == 1 else 's'}"
        raise type(failures[0])(f"{counted} {'was' if len(failures) == 1 else 'were'} not done: {failures[0]}")
    # What is the same may have been flushed, and is to be as the document says when this returns.
    changed = frozenset[str]().union(*(step.vpcs for step in way))
    named = (vpc["name"] for vpc in document.content.get("vpcs", ()))
    repaired = machine.assure(name for name in named if name not in changed)
    return EnvironmentApplied(tuple(changes), len(way), repaired)


def _wanted(document: Document, state: State, prune: bool, load: Loader) -> World:
    """The world after the document is applied to `state`, everything checked; `load` reads policies' files."""
    from vpcctl.documents.binding import check
    from vpcctl.documents.diff import merged
    from vpcctl.documents.environment import read_environment
    from vpcctl.model.network import Peering

    world = read_environment(document.content, document.name, load, state.world, state.serial)
    peerings = tuple(Peering.between(*pair) for pair in document.content.get("peerings", ()))
    wanted = merged(state.world, world, peerings, prune)
    check(wanted, (vpc.name for vpc in world.vpcs), document.name)
    return wanted


def _new_policies(wanted: World, before: World) -> list[tuple[str, str]]:
    """The subnets whose policy is new or another one."""
    old = {(vpc.name, subnet.name): subnet.policy for vpc in before.vpcs for subnet in vpc.subnets}
    return [
        (vpc.name, subnet.name)
        for vpc in wanted.vpcs
        for subnet in vpc.subnets
        if subnet.policy is not None and old.get((vpc.name, subnet.name)) != subnet.policy
    ]
