"""Commands on whole environments."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import counted, print_json, show
from vpcctl.cli.policy_commands import policy_loader
from vpcctl.cli.session import Session, json_option, read_document
from vpcctl.errors import ConflictError, DocumentError, KernelError, VpcctlError

if TYPE_CHECKING:
    from vpcctl.documents.diff import Step
    from vpcctl.engine.state import State
    from vpcctl.model.network import World

    Loader = Callable[[str], tuple[Any, str]]

PATIENCE = 1.0

prune_option = click.option("--prune", is_flag=True, help="Remove the VPCs that the document does not name.")


def _wanted(document: Any, file: str, state: State, prune: bool, load: Loader | None = None) -> World:
    """The world after the document is applied to `state`, everything checked; `load` reads policies' files."""
    from vpcctl.documents.binding import check_names, check_sizes
    from vpcctl.documents.diff import merged
    from vpcctl.documents.environment import read_environment
    from vpcctl.model.network import Peering

    world = read_environment(document, file, load or policy_loader(file), state.world, state.serial)
    peerings = tuple(Peering.between(*pair) for pair in document.get("peerings", ()))
    wanted = merged(state.world, world, peerings, prune)
    problems = check_names(wanted, {vpc.name for vpc in world.vpcs}, file)
    if problems:
        raise DocumentError(*problems)
    check_sizes(wanted, {vpc.name: file for vpc in world.vpcs})
    return wanted


@click.command
@click.argument("environment", metavar="ENVIRONMENT.json")
@prune_option
@json_option
@click.pass_obj
def plan(session: Session, environment: str, prune: bool, as_json: bool) -> None:
    """Say what `apply` would change, object by object, and what traffic that allows and denies.

    Example: vpcctl plan shop.json
    """
    from vpcctl.analysis.anomalies import idle_to_json
    from vpcctl.analysis.explain import line_to_json
    from vpcctl.analysis.impact import forecast
    from vpcctl.compiler import bounds
    from vpcctl.documents.diff import object_changes

    document, file = read_document(environment)
    state = session.load()
    wanted = _wanted(document, file, state, prune)
    bounds.check(state.world, wanted)
    changes = object_changes(state.world, wanted)
    expected = forecast(state.world, wanted, _policies(wanted, state.world), session.host())
    if as_json:
        return print_json(
            {
                "changes": [dataclasses.asdict(change) for change in changes],
                "newly_allowed": list(map(line_to_json, expected.newly_allowed)),
                "newly_denied": list(map(line_to_json, expected.newly_denied)),
                "without_effect": list(map(idle_to_json, expected.idle)),
                "not_listed": list(expected.untold),
            }
        )
    if not changes:
        return show("nothing to change")
    for change in changes:
        show(change)
    return show(*expected.lines())


def _policies(wanted: World, before: World) -> list[tuple[str, str]]:
    """The subnets whose policy is new or another one."""
    old = {(vpc.name, subnet.name): subnet.policy for vpc in before.vpcs for subnet in vpc.subnets}
    return [
        (vpc.name, subnet.name)
        for vpc in wanted.vpcs
        for subnet in vpc.subnets
        if subnet.policy is not None and old.get((vpc.name, subnet.name)) != subnet.policy
    ]


@click.command
@click.argument("environment", metavar="ENVIRONMENT.json")
@prune_option
@click.pass_obj
def apply(session: Session, environment: str, prune: bool) -> None:
    """Make the VPCs that a document names exactly as it says.

    \b
    Everything is checked before the first change.  Each VPC is one step: where one
    fails, that VPC is rolled back, the others are done, and the failure is reported.

    Example: vpcctl apply shop.json
    """
    from vpcctl.compiler import bounds
    from vpcctl.documents.diff import object_changes, steps, toward

    document, file = read_document(environment)
    # What was checked is what is applied, also where somebody edits a policy meanwhile.
    load = functools.cache(policy_loader(environment))
    state = session.load()
    wanted = _wanted(document, file, state, prune, load)
    bounds.check(state.world, wanted)
    way = steps(state.world, wanted)
    failures: list[VpcctlError] = []
    started = time.monotonic()

    def taken(found: State, step: Step) -> World:
        return toward(found.world, _wanted(document, file, found, prune, load), step)

    for number, step in enumerate(way, 1):
        if sys.stderr.isatty() and time.monotonic() - started > PATIENCE:
            session.say(f"[{number}/{len(way)}] {step.label}")
        try:
            outcome = session.change(functools.partial(taken, step=step))
        except (ConflictError, KernelError) as error:
            failures.append(error)
            session.say(f"{step.label}: not done; {error}")
        except VpcctlError:
            if number > 1:
                session.say(f"ended before {step.label}, which is step {number} of {len(way)}")
            raise
        else:
            for change in object_changes(outcome.before, outcome.after):
                session.say(str(change))
    if failures:
        undone = f"{len(failures)} of {counted(len(way), 'step')} {'was' if len(failures) == 1 else 'were'} not done"
        raise type(failures[0])(f"{undone}: {failures[0]}")
    # What is the same may have been flushed, and is to be as the document says when this returns.
    changed = frozenset[str]().union(*(step.vpcs for step in way))
    session.repair(one["name"] for one in document.get("vpcs", ()) if one["name"] not in changed)
    session.say("applied" if way else "nothing to change")


@click.command
@click.option("--vpc", help="Only this VPC.")
@click.pass_obj
def export(session: Session, vpc: str | None) -> None:
    """Print the present environment as one document; applying it changes nothing.

    Example: vpcctl export > environment.json
    """
    from vpcctl.documents.diff import exported

    print_json(exported(session.load().world, vpc))
