"""Bring the kernel to a desired world: observe it, and repair what differs.

A VPC whose repair fails holds up no other VPC: it is skipped, stays closed as far as the repair got, and stays on
record as pending.  The same holds for one instance of a VPC: its port is closed, and the rest of the VPC is repaired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable

from vpcctl.engine import generations, places, targets
from vpcctl.engine.execution import Difference, RepairPlan, carry_out, leaving, shutters_of
from vpcctl.engine.places import Trouble
from vpcctl.engine.state import Record, State, Writer
from vpcctl.errors import ConflictError, KernelError, VpcctlError
from vpcctl.model.host import HostPart
from vpcctl.model.network import World
from vpcctl.resources import plan as plans
from vpcctl.resources import topology
from vpcctl.resources.kinds import Forwarding, Item, Namespace, Ruleset, Veth
from vpcctl.resources.plan import Ensure, Plan
from vpcctl.resources.protocol import Kernel, Status
from vpcctl.values import dataclass

Report = Callable[[str], None]
# The names of VPCs, or HOST; None stands for all.
Scopes = frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Converged:
    """The result of convergence: the state on record, what was repaired, and the VPCs whose repair failed."""

    state: State
    differences: list[Difference] = dataclasses.field(default_factory=list)
    trouble: Trouble = dataclasses.field(default_factory=dict)
    # The scopes that could not be removed completely; they count as failed, too.
    left: frozenset[str] = frozenset()


def examine(state: State, kernel: Kernel, scopes: Iterable[str] | None = None) -> list[Difference]:
    """Everything in which the kernel differs from the state, changing nothing; `scopes` limits it to some VPCs."""
    state = _of_this_boot(state, kernel)
    host = targets.host_part(state, state.world, kernel.facts(), looking=True)
    chosen = None if scopes is None else set(scopes)
    known = topology.Recorded(state.record)
    kept = _untouched(kernel, state, chosen)
    wanted = topology.snapshot(state.world, state.state_id, known, state.world, chosen, host, kept)
    items = [item for members in wanted.values() for item in members]
    return [
        Difference(item, condition)
        for item, condition in kernel.observe(items).items()
        if condition.state is not Status.RIGHT
    ]


def unfinished(state: State, kernel: Kernel) -> bool:
    """Does something have to be completed first, after a crash, a reboot or a failed repair?"""
    return state.pending is not None or rebooted(state, kernel)


def rebooted(state: State, kernel: Kernel) -> bool:
    return state.has_items and state.boot_id != kernel.boot_id()


def _of_this_boot(state: State, kernel: Kernel) -> State:
    """`state` without the links of the host that were opened before a reboot: their indices mean other links now."""
    if not rebooted(state, kernel):
        return state
    items = tuple(item for item in state.record.get(topology.HOST, ()) if not isinstance(item, Forwarding))
    record = {**state.record, **({topology.HOST: items} if topology.HOST in state.record else {})}
    return dataclasses.replace(state, host=HostPart((), state.host.reserved), record=record)


def finish(writer: Writer, kernel: Kernel, state: State, report: Report, scopes: Scopes = None) -> Converged:
    """Converge; roll back an unfinished change that cannot be completed, so that it blocks no others."""
    if state.unfinished or rebooted(state, kernel):
        report("resuming an interrupted change, or restoring after a reboot")
    try:
        found = converge(writer, kernel, state, scopes)
        stopped = {
            place: error
            for place, error in found.trouble.items()
            if place not in found.left and places.interrupted(state, place)
        }
        words = "; ".join(places.in_words(stopped))
    except (ConflictError, KernelError) as error:
        if not state.unfinished:
            raise
        words = str(error)
    if not words:
        return found
    report(f"cannot complete the interrupted change; rolling back: {words}")
    return converge(writer, kernel, _abandoned(writer.load(), state))


def _abandoned(present: State, before: State) -> State:
    """`present` on its way back to the world `before`, by whom the change was that could not be completed."""
    authorship = before.authorship and dataclasses.replace(before.authorship, deadline=None)
    return dataclasses.replace(
        present,
        pending=before.world,
        pending_host=before.host,
        authorship=authorship,
        unconfirmed=before.unconfirmed,
    )


def converge(writer: Writer, kernel: Kernel, state: State, scopes: Scopes = None) -> Converged:
    """Roll an unfinished change forward, and repair whatever differs from the desired world."""
    state = _of_this_boot(state, kernel)
    facts = kernel.facts()
    desired = targets.decided(state.world if state.pending is None else state.pending, facts)
    host = targets.host_part(state, desired, facts)
    kept = _untouched(kernel, state, scopes)
    aim = _aim(kernel, state, desired, host, scopes, kept)
    if kept and aim.lacks_text:
        aim = _aim(kernel, state, desired, host, scopes, frozenset())
    after, intent, plan = aim.after, aim.intent, aim.plan
    finished = dataclasses.replace(intent, world=desired, host=host, record=after)
    # A look at some VPCs says nothing about the others, whose repair may still be due.
    if scopes is None or state.pending is None:
        finished = finished.settled
    if not plan and finished == state:
        return Converged(state)
    looked_at = intent.record.keys() if scopes is None else scopes
    homes, gone = places.homes(targets.of(after, looked_at)), leaving(intent.record, after)
    shutters = shutters_of(targets.of(intent.record, looked_at))
    repair = RepairPlan(plan, tuple(aim.differences), homes, gone, shutters)
    trouble = repair.check(kernel)
    intent = writer.save(intent)
    done = carry_out(kernel, repair, trouble)
    if state.unfinished or any(isinstance(step.item, Ruleset) for step in plan.steps):
        swept = {scope: items for scope, items in after.items() if scope not in done.trouble}
        targets.forget(kernel, plan, desired, host, swept, facts.local, former=state.world)
    if done.trouble:
        finished = dataclasses.replace(finished, pending=desired, pending_host=host)
    if done.left:
        finished = with_leftovers(finished, intent.record, done.left)
    from vpcctl.engine import history

    # An MTU that the host decided for what is there already is no change of anybody's.
    before = state if state.pending is not None else dataclasses.replace(state, world=desired)
    finished = history.recorded(writer, before, dataclasses.replace(finished, serial=intent.serial))
    state = writer.save(finished)
    history.swept(writer, before, state)
    repaired = [one for one in repair.differences if one.item.key in done.made]
    return Converged(state, repaired, done.trouble, frozenset(done.left))


@dataclass(frozen=True, slots=True)
class _Aim:
    """What convergence leads to: the record afterwards, the intent, and the plan that repairs the differences."""

    after: Record
    intent: State
    plan: Plan
    differences: list[Difference]

    @property
    def lacks_text(self) -> bool:
        """Does the plan load a ruleset that was not compiled?"""
        made = (step.item for step in self.plan.steps if isinstance(step, Ensure))
        return any(isinstance(item, Ruleset) and item.text is None for item in made)


def _aim(
    kernel: Kernel, state: State, desired: World, host: HostPart, scopes: Scopes, kept: Collection[tuple[str, ...]]
) -> _Aim:
    """Compile what is not in `kept`, observe, and plan."""
    known = topology.Recorded(state.record)
    snapshot = topology.snapshot(desired, state.state_id, known, state.world, scopes, host, kept)
    after = generations.raised(kernel, snapshot, known, all_of=True, untouched=kept)
    if scopes is not None:
        # What is not compared stays on record unchanged.
        order = (topology.HOST, *(vpc.name for vpc in desired.vpcs)) if desired.vpcs else ()
        after = {scope: after[scope] if scope in scopes else state.record[scope] for scope in order}
    record = targets.merged(state.record, after)
    intent = dataclasses.replace(state, boot_id=kernel.boot_id(), pending=desired, pending_host=host, record=record)
    plan, differences = _repair_plan(kernel, intent, after, targets.guard(state, desired, host, after), scopes)
    return _Aim(after, intent, plan, differences)


def _untouched(kernel: Kernel, state: State, scopes: Collection[str] | None) -> Collection[tuple[str, ...]]:
    """The rulesets on record, of `scopes` or all, that are certainly right and need not be compiled.

    While a change is unfinished, the record has the rulesets of the new world.
    """
    if state.pending is not None:
        return frozenset()
    return kernel.untouched(targets.rulesets(state.record if scopes is None else targets.of(state.record, scopes)))


def _repair_plan(
    kernel: Kernel, intent: State, after: Record, guard: Ruleset | None, scopes: Scopes
) -> tuple[Plan, list[Difference]]:
    """The plan from what is observed to `after`, as far as it is of `scopes`: only what differs is touched."""
    wanted = [item for scope, items in after.items() if scopes is None or scope in scopes for item in items]
    differences = [
        Difference(item, condition)
        for item, condition in kernel.observe(wanted).items()
        if condition.state is not Status.RIGHT
    ]
    if not differences and intent.record == after:
        return Plan(()), []
    made = [difference.item for difference in differences]
    cut = _cut(wanted, made)
    made += cut
    replaced = [
        *cut,
        *(
            difference.item
            for difference in differences
            if difference.condition.state is Status.DIFFERENT and difference.item.replaced
        ),
    ]
    changed = {scope for scope, items in intent.record.items() if items is not after.get(scope)}
    keys = {item.key for items in targets.of(after, changed).values() for item in items}
    gone = [item for items in targets.of(intent.record, changed).values() for item in items if item.key not in keys]
    # Settings of an absent link cannot be observed: they look the same as in a kernel without IPv6.
    links = [item for item in made if item.replaced]
    made += plans.dependents(links, wanted, made)
    made += plans.resets(made, wanted)
    # The guard is temporary, even if the final table was loaded before a crash.
    if guard is not None and guard.key not in {item.key for item in made}:
        made += [item for item in wanted if item.key == guard.key]
    return plans.order(gone + replaced, made, targets.closing(kernel, intent, after), guard), differences


def _cut(wanted: list[Item], made: list[Item]) -> list[Item]:
    """The links that look right by one end, while the other end went with a namespace that is to be made again.

    A process that was in that namespace when somebody deleted it keeps it, and the link, alive without a name.
    """
    absent = {item.namespace for item in made if isinstance(item, Namespace)}
    known = {item.key for item in made}
    return [
        item for item in wanted if isinstance(item, Veth) and item.peer_namespace in absent and item.key not in known
    ]


def with_leftovers(finished: State, record: Record, left: Iterable[str]) -> State:
    """`finished` with what could not be removed still on record, and pending, so that the next command tries again."""
    kept = {scope: items for scope, items in record.items() if scope in left or scope == topology.HOST}
    return dataclasses.replace(
        finished, record={**finished.record, **kept}, pending=finished.world, pending_host=finished.host
    )


def roll_back(writer: Writer, kernel: Kernel, intent: State, error: VpcctlError, known: Trouble) -> None:
    """Roll back to the old world after `error`; what cannot be rolled back now is left to `repair`, and reported.

    `known` are the places whose repair had failed before.
    """
    try:
        found = converge(writer, kernel, dataclasses.replace(intent, pending=intent.world, pending_host=intent.host))
        second = "; ".join(str(one) for scope, one in found.trouble.items() if scope not in known)
    except VpcctlError as failure:
        second = str(failure)
    if second:
        raise not_rolled_back(error, second) from error


def not_rolled_back(error: VpcctlError, why: str) -> KernelError:
    return KernelError(f"{error}\nand rolling back failed ({why}); fix the cause, then `vpcctl repair` completes it")
