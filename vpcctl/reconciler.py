"""Change the world, and make the kernel follow: the one straight way that every mutating command takes.

Theory of operation.

    lock → read → (unfinished or rebooted: converge first) → new world → plan → check
         → write the intent → run the plan → write the commit

The intent holds the new world and every item of the old *and* the new one, so an item is on record before it exists
and until it is gone.  A reported failure is rolled back: the kernel is observed and made as the old world says.  A
crash leaves the intent, and the next command or `repair` rolls it forward, or back if it cannot.

`change` trusts the record and touches only what differs between two worlds; `converge` observes the kernel and mends
what differs from the world.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vpcctl import plan as plans
from vpcctl import topology
from vpcctl.errors import ConflictError, KernelError, StateError, VpcctlError
from vpcctl.items import Item, Namespace, Ruleset, Veth
from vpcctl.kernel.interface import Condition, HostFacts, Kernel
from vpcctl.kernel.interface import State as Standing
from vpcctl.model import World, uplink_pair
from vpcctl.plan import Ensure, Plan
from vpcctl.state import Record, State, Store, Writer

Transform = Callable[[State], World]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """An item that is not as it should be; `condition` says how."""

    item: Item
    condition: Condition

    def __str__(self) -> str:
        detail = f": {self.condition.detail}" if self.condition.detail else ""
        return f"{self.item} is {self.condition.state.value}{detail}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did: the worlds before and after, and the plan that led from one to the other."""

    before: World
    after: World
    plan: Plan


def change(store: Store, kernel: Kernel, transform: Transform, report: Report = lambda words: None) -> Outcome:
    """Make the world what `transform` makes of it, in the record and in the kernel.

    Raises what `transform` raises, with nothing changed; after any other VpcctlError the old world was put back, or
    the message says that `vpcctl repair` will.
    """
    with store.locked() as writer:
        state = writer.load()
        if _unfinished(state, kernel):
            state = _finished(writer, kernel, state, report)[0]
        desired = _prepared(state, transform(state), kernel.facts())
        loaded = _loaded(state.items)
        after = topology.snapshot(desired, state.state_id, loaded, state.world)
        plan = _plan(kernel, state, desired, after)
        if not plan and desired == state.world:
            return Outcome(state.world, desired, plan)
        kernel.check(plan)
        intent = dataclasses.replace(
            state, boot_id=kernel.boot_id(), pending=desired, record=_merged(state.record, after)
        )
        intent = _begun(writer, state, intent)
        try:
            run(kernel, plan)
        except VpcctlError as error:
            _roll_back(writer, kernel, intent, error)
            raise
        try:
            writer.save(dataclasses.replace(intent, world=desired, record=after, pending=None))
        except StateError as error:
            raise StateError(
                f"{error}\nthe change itself is made; `vpcctl repair` puts it on record when the cause is mended"
            ) from error
        return Outcome(state.world, desired, plan)


def repair(
    store: Store, kernel: Kernel, adopt: bool = False, report: Report = lambda words: None
) -> tuple[list[Difference], World]:
    """Make the kernel what the record says it should be; the differences that were mended.

    With `adopt` the record is first taken back from its copy, for a file that was lost or damaged.
    """
    with store.locked() as writer:
        state, differences = _finished(writer, kernel, writer.adopt() if adopt else writer.load(), report)
        return differences, state.world


def examine(state: State, kernel: Kernel, scopes: Iterable[str] | None = None) -> list[Difference]:
    """Everything in which the kernel differs from the state, changing nothing; `scopes` limits it to some VPCs."""
    world = _prepared(state, state.world, kernel.facts())
    wanted = topology.snapshot(world, state.state_id, _loaded(state.items))
    chosen = set(wanted) if scopes is None else set(scopes)
    items = [item for scope, members in wanted.items() if scope in chosen for item in members]
    return [
        Difference(item, condition)
        for item, condition in kernel.observe(items).items()
        if condition.state is not Standing.RIGHT
    ]


def run(kernel: Kernel, plan: Plan) -> None:
    """Take every step of `plan`; the first failure ends it."""
    for step in plan.steps:
        if isinstance(step, Ensure):
            kernel.ensure(step.item)
        else:
            kernel.remove(step.item)


def _prepared(state: State, desired: World, facts: HostFacts) -> World:
    """`desired` with the host's side of it: where forwarding must be switched on, and that the uplinks are free."""
    known = {vpc.name for vpc in state.world.vpcs}
    for vpc in desired.vpcs:
        pair = uplink_pair(desired.transit, vpc.index)
        for network in facts.networks:
            if vpc.name not in known and any(address in network for address in pair):
                raise ConflictError(
                    f"the host has a network {network} which holds {pair[0]}, the uplink of VPC {vpc.name};"
                    " choose another transit range with --transit"
                )
    if not desired.vpcs or facts.forwarding:
        # Where the whole host forwards, whoever wanted that also decides between which links.
        return dataclasses.replace(desired, opened=())
    # What was opened before is on record, whatever world is wanted now.
    opened = dict(state.world.opened)
    opened |= {link: value for link, value in facts.ways_out if value != "1" and link not in opened}
    return dataclasses.replace(desired, opened=tuple(sorted(opened.items())))


def _plan(kernel: Kernel, state: State, desired: World, after: Record) -> Plan:
    """The plan from the record to `after`."""
    wanted = [item for items in after.values() for item in items]
    return plans.diff(state.items, wanted, _closing(kernel, state, after), _guard(state, desired, after))


def _closing(kernel: Kernel, state: State, after: Record) -> list[Ruleset]:
    """The closed rulesets of the VPCs that go, as far as their routers are there."""
    going = [scope for scope in state.record if scope not in after and scope != topology.HOST]
    rulesets = [topology.closed_ruleset(scope, state.state_id, _loaded(state.items)) for scope in going]
    wanted = {ruleset.namespace for ruleset in rulesets}
    routers = [item for item in state.items if isinstance(item, Namespace) and item.namespace in wanted]
    there = {item.namespace for item, found in kernel.observe(routers).items() if found.state is Standing.RIGHT}
    return [ruleset for ruleset in rulesets if ruleset.namespace in there]


def _guard(state: State, desired: World, after: Record) -> Ruleset | None:
    """The host's table for the uplinks of `desired` and those that go; None where none goes, or all do."""
    going = [item for scope, items in state.record.items() if scope not in after for item in items]
    leaving = topology.uplinks(going)
    if not leaving or not desired.vpcs:
        return None
    return topology.host_ruleset(desired, state.state_id, _loaded(state.items), leaving)


def _unfinished(state: State, kernel: Kernel) -> bool:
    """Was a command interrupted, or the machine rebooted?"""
    return state.pending is not None or bool(state.items and state.boot_id != kernel.boot_id())


def _finished(writer: Writer, kernel: Kernel, state: State, report: Report) -> tuple[State, list[Difference]]:
    """Converge; an unfinished change that cannot be finished is put back, so that it stands in nobody's way."""
    if _unfinished(state, kernel):
        report("finishing what an earlier command left, or a reboot took")
    try:
        return _converge(writer, kernel, state)
    except (ConflictError, KernelError) as error:
        if state.pending is None or state.pending == state.world:
            raise
        report(f"what was begun cannot be finished, and is put back; {error}")
        return _converge(writer, kernel, dataclasses.replace(writer.load(), pending=state.world))


def _begun(writer: Writer, state: State, intent: State) -> State:
    """The intent as it was written; where it could not be, the record is `state` again before StateError is raised."""
    try:
        return writer.save(intent)
    except StateError as error:
        try:
            if writer.load().pending is not None:
                writer.save(state)
        except StateError:
            raise StateError(f"{error}\nif this was put on record, `vpcctl repair` carries it out") from error
        raise


def _converge(writer: Writer, kernel: Kernel, state: State) -> tuple[State, list[Difference]]:
    """Roll an unfinished change forward, and mend whatever differs from the world then desired."""
    desired = _prepared(state, state.world if state.pending is None else state.pending, kernel.facts())
    after = topology.snapshot(desired, state.state_id, _loaded(state.items))
    intent = dataclasses.replace(state, boot_id=kernel.boot_id(), pending=desired, record=_merged(state.record, after))
    plan, differences = _mending(kernel, intent, after, _guard(state, desired, after))
    finished = dataclasses.replace(intent, world=desired, record=after, pending=None)
    if not plan and finished == state:
        return state, []
    kernel.check(plan)
    intent = writer.save(intent)
    run(kernel, plan)
    return writer.save(dataclasses.replace(finished, serial=intent.serial)), differences


def _mending(kernel: Kernel, intent: State, after: Record, guard: Ruleset | None) -> tuple[Plan, list[Difference]]:
    """The plan from what is observed to `after`: only what differs is touched."""
    wanted = [item for items in after.values() for item in items]
    differences = [
        Difference(item, condition)
        for item, condition in kernel.observe(wanted).items()
        if condition.state is not Standing.RIGHT
    ]
    made = [difference.item for difference in differences]
    cut = _cut(wanted, made)
    made += cut
    replaced = [
        *cut,
        *(
            difference.item
            for difference in differences
            if difference.condition.state is Standing.DIFFERENT and isinstance(difference.item, plans.REPLACED)
        ),
    ]
    keys = {item.key for item in wanted}
    gone = [item for item in intent.items if item.key not in keys]
    # What stands on a link that is absent cannot be observed: a kernel without IPv6 lacks the same settings.
    links = [item for item in made if isinstance(item, plans.REPLACED)]
    made += plans.dependents(links, wanted, made)
    # The guard is no lasting table, also where the lasting one was loaded already when a crash came.
    if guard is not None and guard.key not in {item.key for item in made}:
        made += [item for item in wanted if item.key == guard.key]
    return plans.order(gone + replaced, made, _closing(kernel, intent, after), guard), differences


def _cut(wanted: list[Item], made: list[Item]) -> list[Item]:
    """The links that look right by one end, while the other end went with a namespace that is to be made again.

    A process that was in that namespace when somebody deleted it keeps it, and the link, alive without a name.
    """
    absent = {item.namespace for item in made if isinstance(item, Namespace)}
    known = {item.key for item in made}
    return [
        item for item in wanted if isinstance(item, Veth) and item.peer_namespace in absent and item.key not in known
    ]


def _roll_back(writer: Writer, kernel: Kernel, intent: State, error: VpcctlError) -> None:
    """Put the old world back after `error`; what cannot be put back now is left to `repair`, and said."""
    try:
        _converge(writer, kernel, dataclasses.replace(intent, pending=intent.world))
    except VpcctlError as second:
        raise KernelError(
            f"{error}\nand what was there before could not be put back ({second});"
            " `vpcctl repair` finishes it when the cause is mended"
        ) from error


def _loaded(items: Iterable[Item]) -> dict[tuple[str, ...], Ruleset]:
    return {item.key: item for item in items if isinstance(item, Ruleset)}


def _merged(before: Record, after: Record) -> Record:
    """Every item of both records, the later one where both have it."""
    merged: Record = {}
    for scope in {**before, **after}:
        items = {item.key: item for item in (*before.get(scope, ()), *after.get(scope, ()))}
        merged[scope] = tuple(items.values())
    return merged
