"""Change the world, and make the kernel follow: the one straight way that every mutating command takes.

Theory of operation.

    lock → read → (unfinished or rebooted: converge first) → new world → plan → check
         → write the intent → run the plan → write the commit

The intent holds the new world and every item of the old *and* the new one, so an item is on record before it exists
and until it is gone.  A reported failure is rolled back: the kernel is observed and made as the old world says.  A
crash leaves the intent, and the next command or `repair` rolls it forward, or back if it cannot.

`change` trusts the record and touches only what differs between two worlds; `_converge` observes the kernel and repairs
what differs from the world.  A VPC whose repair fails holds up no other VPC: it is skipped, stays closed as far as the
repair got, and stays on record as pending.  The same holds for one instance of a VPC: its port is closed, and the rest
of the VPC is repaired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from vpcctl import names
from vpcctl.compiler.view import same_for_host
from vpcctl.engine import generations, places
from vpcctl.engine.execution import Difference, RepairPlan, StepFailed, carry_out, leaving, run, shutters_of
from vpcctl.engine.places import Trouble
from vpcctl.engine.state import Record, State, Store, Writer
from vpcctl.engine.sweep import sweep
from vpcctl.errors import ConflictError, KernelError, StateError, VpcctlError
from vpcctl.model.host import HostPart
from vpcctl.model.network import World, uplink_pair
from vpcctl.model.policy import Network
from vpcctl.resources import plan as plans
from vpcctl.resources import topology
from vpcctl.resources.kinds import RANK, Item, Namespace, Ruleset, Veth
from vpcctl.resources.plan import Plan
from vpcctl.resources.protocol import HostFacts, Kernel, Status

Transform = Callable[[State], World]
# The world to come, in which these parts stay as they are in the state: VPCs by name, or PEERINGS.
Choose = Callable[[State, frozenset[str]], World]
PEERINGS = "all peerings"  # no VPC can be called so
Report = Callable[[str], None]
# The names of VPCs, or HOST; None stands for all.
Scopes = frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Converged:
    """The result of convergence: the state on record, what was repaired, and which VPCs could not be."""

    state: State
    differences: list[Difference] = dataclasses.field(default_factory=list)
    trouble: Trouble = dataclasses.field(default_factory=dict)
    # The scopes that could not be removed completely; they are in trouble, too.
    left: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did: the worlds before and after, and the plan that led from one to the other."""

    before: World
    after: World
    plan: Plan


@dataclass(frozen=True, slots=True)
class Attempt:
    """A change that is about to be made: the world to come, what the host adds, the record then, and the plan."""

    desired: World
    host: HostPart
    after: Record
    plan: Plan


def change(store: Store, kernel: Kernel, transform: Transform, report: Report = lambda words: None) -> Outcome:
    """Make the world what `transform` makes of it, in the record and in the kernel.

    Raises what `transform` raises, with nothing changed; after any other VpcctlError the old world was put back, or
    the message says that `vpcctl repair` will.
    """
    with store.locked() as writer:
        state, trouble = _ready(writer, kernel, report)
        facts = kernel.facts()
        attempt = _attempt(kernel, state, transform(state), facts)
        if not _changes(state, attempt):
            return Outcome(state.world, attempt.desired, attempt.plan)
        kernel.check(attempt.plan)
        intent = _intent_saved(writer, state, _intent(kernel, state, attempt))
        try:
            left = _carried(kernel, state, attempt, facts)
        except (StepFailed, VpcctlError) as error:
            cause = error.cause if isinstance(error, StepFailed) else error
            _roll_back(writer, kernel, intent, cause, trouble)
            raise cause from error
        _committed(writer, intent, attempt, left, trouble)
        if left:
            raise _left_words(left)
        return Outcome(state.world, attempt.desired, attempt.plan)


def change_parts(
    store: Store,
    kernel: Kernel,
    choose: Choose,
    report: Report = lambda words: None,
    begun: Callable[[str], None] = lambda vpc: None,
) -> tuple[Outcome, Trouble]:
    """Change several VPCs at once.  A part that fails is rolled back, and the other parts are completed.

    A part is a VPC, by its name, or PEERINGS.  `choose` returns the desired world, in which the given parts stay as
    they are in the state.  Returns the failures by part.  Raises what `choose` raises, and a failure of no single
    part, with nothing changed.  `begun` is called with each VPC when its part begins.
    """
    failed: Trouble = {}
    with store.locked() as writer:
        state, trouble = _ready(writer, kernel, report)
        facts = kernel.facts()
        while True:
            desired = choose(state, frozenset(failed))
            try:
                attempt = _attempt(kernel, state, desired, facts)
                found = _problems(kernel, state, attempt)
            except ConflictError as error:
                # What the host is like, or has left, is in the way of new VPCs alone.
                known = {vpc.name for vpc in state.world.vpcs}
                found = {vpc.name: error for vpc in desired.vpcs if vpc.name not in known}
                if not found.keys() - failed.keys():
                    raise
            if not found.keys() - failed.keys():
                break
            failed |= found
        if not _changes(state, attempt):
            return Outcome(state.world, desired, attempt.plan), failed
        intent = _intent_saved(writer, state, _intent(kernel, state, attempt))
        homes = places.homes(intent.record)
        told: set[str] = set()

        def begin(item: Item) -> None:
            vpc = places.vpc_of(homes.get(item.key, topology.HOST))
            if RANK[type(item)] > RANK[Ruleset] and vpc not in told:
                told.add(vpc)
                begun(vpc)

        try:
            left = _carried(kernel, state, attempt, facts, begin)
        except StepFailed as error:
            part = _part(homes, error.item)
            if part == topology.HOST:
                _roll_back(writer, kernel, intent, error.cause, trouble)
                raise error.cause from error
            failed[part] = error.cause
            after = _without_failed(writer, kernel, intent, choose, state, failed, trouble)
            return Outcome(state.world, after, attempt.plan), failed
        except VpcctlError as error:
            _roll_back(writer, kernel, intent, error, trouble)
            raise
        _committed(writer, intent, attempt, left, trouble)
        if topology.HOST in left:
            raise _left_words(left)
        failed |= {scope: _left_words({scope: error}) for scope, error in left.items()}
        return Outcome(state.world, desired, attempt.plan), failed


def _ready(writer: Writer, kernel: Kernel, report: Report) -> tuple[State, Trouble]:
    """The state with no change unfinished, and the places whose repair failed."""
    state = writer.load()
    if not _unfinished(state, kernel):
        return state, {}
    found = _finished(writer, kernel, state, report)
    for words in places.in_words(found.trouble, found.left):
        report(words)
    return found.state, found.trouble


def _attempt(kernel: Kernel, state: State, desired: World, facts: HostFacts) -> Attempt:
    _check_leftovers(state, desired)
    host = _host_part(state, desired, facts)
    loaded = _loaded(state.items)
    snapshot = topology.snapshot(desired, state.state_id, loaded, state.world, host=host)
    after = generations.raised(kernel, snapshot, loaded, all_of=False)
    return Attempt(desired, host, after, _plan(kernel, state, desired, host, after))


def _changes(state: State, attempt: Attempt) -> bool:
    return bool(attempt.plan) or (attempt.desired, attempt.host) != (state.world, state.host)


def _part(homes: Mapping[places.Key, str], item: Item) -> str:
    """The part of a change that fails with the item: a VPC, PEERINGS, or HOST for the whole."""
    of_peering = any(name.startswith(names.PEER_PREFIX) for _, name in (*item.links, *item.needs))
    return PEERINGS if of_peering else places.vpc_of(homes.get(item.key, topology.HOST))


def _problems(kernel: Kernel, state: State, attempt: Attempt) -> Trouble:
    """What prevents the attempt, by VPC.  A problem that concerns no single VPC is raised."""
    homes = places.homes(_merged(state.record, attempt.after))
    parts = RepairPlan(attempt.plan, (), homes, leaving(state.record, attempt.after), {})
    return {places.vpc_of(place): error for place, error in parts.check(kernel).items()}


def _intent(kernel: Kernel, state: State, attempt: Attempt) -> State:
    return dataclasses.replace(
        state,
        boot_id=kernel.boot_id(),
        pending=attempt.desired,
        pending_host=attempt.host,
        record=_merged(state.record, attempt.after),
    )


def _carried(
    kernel: Kernel,
    state: State,
    attempt: Attempt,
    facts: HostFacts,
    begun: Callable[[Item], None] = lambda item: None,
) -> Trouble:
    """Carry the attempt out; what could not be removed.  Raises StepFailed, or VpcctlError for no single step."""
    left = run(kernel, attempt.plan, shutters_of(state.record), leaving(state.record, attempt.after), begun)
    _forget(kernel, attempt.plan, attempt.desired, attempt.host, attempt.after, facts.local, state)
    return left


def _committed(writer: Writer, intent: State, attempt: Attempt, left: Trouble, trouble: Trouble) -> None:
    """Put on record that the attempt is done, except for what is `left`; `trouble` is from before it."""
    finished = dataclasses.replace(intent, world=attempt.desired, host=attempt.host, record=attempt.after)
    if left:
        finished = _with_leftovers(finished, intent.record, left)
    elif not trouble.keys() & set(places.homes(attempt.after).values()):
        finished = finished.settled
    try:
        writer.save(finished)
    except StateError as error:
        raise StateError(
            f"{error}\nthe change itself is in force; fix the cause, then `vpcctl repair` puts it on record"
        ) from error


def _left_words(left: Trouble) -> KernelError:
    words = "\n".join(places.in_words(left, left))
    return KernelError(f"{words}\neverything else was removed; fix the cause, then `vpcctl repair` removes the rest")


def _without_failed(
    writer: Writer, kernel: Kernel, intent: State, choose: Choose, before: State, failed: Trouble, trouble: Trouble
) -> World:
    """Roll back the parts that failed, complete all others, and return the world; `failed` gets those that fail now.

    `before` is the state before the change, `trouble` is from before it.  A VPC that could not be removed completely
    failed too, but is not made again (ADR 19).
    """
    left: Trouble = {}
    while True:
        desired = choose(before, frozenset(failed))
        try:
            found = _converge(writer, kernel, dataclasses.replace(intent, pending=desired, pending_host=intent.host))
        except VpcctlError as error:
            _roll_back(writer, kernel, intent, error, trouble)
            raise
        left |= {place: _left_words({place: found.trouble[place]}) for place in found.left}
        known = trouble.keys() | left.keys()
        new = {places.vpc_of(place): error for place, error in found.trouble.items() if place not in known}
        again = failed.keys() & new.keys()
        if again and PEERINGS not in failed:
            # A VPC that was put back is still in trouble: it is a peering of it that cannot be made.
            new[PEERINGS] = new[next(iter(again))]
        elif not new.keys() - again:
            for vpc in again:
                failed[vpc] = _not_rolled_back(failed[vpc], str(new[vpc]))
            failed |= left
            return found.state.world
        failed |= {part: error for part, error in new.items() if part not in failed}
        intent = found.state


def repair(
    store: Store,
    kernel: Kernel,
    adopt: bool = False,
    report: Report = lambda words: None,
    vpcs: Collection[str] | None = None,
) -> tuple[list[Difference], World]:
    """Bring the kernel to the state on record; return the differences that were repaired.

    With `adopt` the record is first taken back from its copy, for a file that was lost or damaged.  With `vpcs` only
    these VPCs are looked at, and what the host has for all of them; what an earlier command left is finished for all.
    Raises for the VPCs whose repair failed, once the others are repaired.
    """
    with store.locked() as writer:
        state = writer.adopt() if adopt else writer.load()
        for vpc in vpcs or ():
            state.world.vpc(vpc)
        whole = vpcs is None or state.unfinished or _rebooted(state, kernel)
        scopes = None if vpcs is None or whole else frozenset({topology.HOST, *vpcs})
        found = _finished(writer, kernel, state, report, scopes)
    if found.trouble:
        for difference in found.differences:
            report(f"repaired: {difference.past}")
        kind = KernelError if any(isinstance(one, KernelError) for one in found.trouble.values()) else ConflictError
        raise kind("\n".join(places.in_words(found.trouble, found.left)))
    return found.differences, found.state.world


def examine(state: State, kernel: Kernel, scopes: Iterable[str] | None = None) -> list[Difference]:
    """Everything in which the kernel differs from the state, changing nothing; `scopes` limits it to some VPCs."""
    host = _host_part(state, state.world, kernel.facts(), looking=True)
    chosen = None if scopes is None else set(scopes)
    wanted = topology.snapshot(state.world, state.state_id, _loaded(state.items), scopes=chosen, host=host)
    items = [item for members in wanted.values() for item in members]
    return [
        Difference(item, condition)
        for item, condition in kernel.observe(items).items()
        if condition.state is not Status.RIGHT
    ]


def _forget(
    kernel: Kernel,
    plan: Plan,
    world: World,
    host: HostPart,
    after: Record,
    local: Iterable[Network],
    before: State | None = None,
    former: World | None = None,
) -> None:
    """Forget the tracked flows that are in the way of `world`; without a state `before` in every scope of `after`."""
    loaded = {step.item.namespace for step in plan.steps if isinstance(step.item, Ruleset)}
    if not loaded and before is not None:
        return
    scopes = [vpc.name for vpc in world.vpcs if vpc.name in after]
    if before is not None:
        scopes = [name for name in scopes if names.router_namespace(name) in loaded]
    items = [item for items in after.values() for item in items]
    newly = sorted({*host.reserved} - {*(before.host.reserved if before else ())})
    sweep(kernel, world, scopes, items, before.world if before else None, local, former, host.reserved, newly)


def _host_part(state: State, desired: World, facts: HostFacts, looking: bool = False) -> HostPart:
    """What the host adds to `desired`; ConflictError where its networks overlap new uplinks.

    With `looking` the host's services are taken as they are on record.
    """
    _check_transit(state, desired, facts)
    reserved = state.host.reserved if looking else _reserved(state, desired, facts)
    if not desired.vpcs or facts.forwarding:
        # Where the whole host forwards, whoever wanted that also decides between which links.
        return HostPart((), reserved)
    # What was opened before is on record, whatever world is wanted now.
    opened = dict(state.host.opened)
    opened |= {link: value for link, value in facts.ways_out if value != "1" and link not in opened}
    return HostPart(tuple(sorted(opened.items())), reserved)


def _check_transit(state: State, desired: World, facts: HostFacts) -> None:
    known = {vpc.name for vpc in state.world.vpcs}
    for vpc in desired.vpcs:
        pair = uplink_pair(desired.transit, vpc.index)
        for network in facts.networks:
            if vpc.name not in known and network.overlaps(desired.transit):
                raise ConflictError(
                    f"the host has a network {network}, which overlaps the transit range {desired.transit} of the"
                    f" VPCs' uplinks ({pair[0]} is that of {vpc.name}); choose another range with --transit"
                )


def _reserved(state: State, desired: World, facts: HostFacts) -> tuple[int, ...]:
    """The host's services that source NAT leaves alone.

    Programs come and go, and the host's table is not loaded again for each: those on record stand until the table
    changes anyway.
    """
    if not desired.vpcs:
        return ()
    return state.host.reserved if same_for_host(state.world, desired) else facts.services


def _plan(kernel: Kernel, state: State, desired: World, host: HostPart, after: Record) -> Plan:
    """The plan from the record to `after`."""
    wanted = [item for items in after.values() for item in items]
    return plans.diff(state.items, wanted, _closing(kernel, state, after), _guard(state, desired, host, after))


def _closing(kernel: Kernel, state: State, after: Record) -> list[Ruleset]:
    """The closed rulesets of the VPCs that go, as far as their routers are there."""
    going = [scope for scope in state.record if scope not in after and scope != topology.HOST]
    rulesets = [topology.closed_ruleset(scope, state.state_id, _loaded(state.items)) for scope in going]
    wanted = {ruleset.namespace for ruleset in rulesets}
    routers = [item for item in state.items if isinstance(item, Namespace) and item.namespace in wanted]
    there = {item.namespace for item, found in kernel.observe(routers).items() if found.state is Status.RIGHT}
    return [ruleset for ruleset in rulesets if ruleset.namespace in there]


def _guard(state: State, desired: World, host: HostPart, after: Record) -> Ruleset | None:
    """The host's table for the uplinks of `desired` and those that go; None where none goes, or all do."""
    going = [item for scope, items in state.record.items() if scope not in after for item in items]
    leaving = topology.uplinks(going)
    if not leaving or not desired.vpcs:
        return None
    return topology.host_ruleset(desired, host, state.state_id, _loaded(state.items), leaving)


def _unfinished(state: State, kernel: Kernel) -> bool:
    """Does something have to be completed first, after a crash, a reboot or a failed repair?"""
    return state.pending is not None or _rebooted(state, kernel)


def _rebooted(state: State, kernel: Kernel) -> bool:
    return bool(state.items and state.boot_id != kernel.boot_id())


def _finished(writer: Writer, kernel: Kernel, state: State, report: Report, scopes: Scopes = None) -> Converged:
    """Converge; an unfinished change that cannot be completed is rolled back, so that it holds up nobody."""
    if state.unfinished or _rebooted(state, kernel):
        report("resuming an interrupted change, or restoring after a reboot")
    try:
        found = _converge(writer, kernel, state, scopes)
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
    return _converge(writer, kernel, dataclasses.replace(writer.load(), pending=state.world, pending_host=state.host))


def _with_leftovers(finished: State, record: Record, left: Iterable[str]) -> State:
    """`finished` with what could not be removed still on record, and pending, so that the next command tries again."""
    kept = {scope: items for scope, items in record.items() if scope in left or scope == topology.HOST}
    return dataclasses.replace(
        finished, record={**finished.record, **kept}, pending=finished.world, pending_host=finished.host
    )


def _check_leftovers(state: State, desired: World) -> None:
    """Nothing new is made where the rest of a VPC still has its names and addresses, or the host its settings."""
    known = {vpc.name for vpc in state.world.vpcs}
    # What the host has for all VPCs is no leftover as long as there are any.
    rest = [scope for scope in state.record if scope not in known and not (scope == topology.HOST and known)]
    if rest and {vpc.name for vpc in desired.vpcs} - known:
        left = ", ".join(f"VPC {scope}" if scope else "the host's part" for scope in rest)
        raise ConflictError(f"{left}: not removed completely; run `vpcctl repair` before you create another VPC")


def _intent_saved(writer: Writer, state: State, intent: State) -> State:
    """The intent as it was written.  If writing fails, the record is set back to `state` and StateError is raised."""
    try:
        return writer.save(intent)
    except StateError as error:
        try:
            if writer.load().pending is not None:
                writer.save(state)
        except StateError:
            raise StateError(f"{error}\nif the change was put on record, `vpcctl repair` completes it") from error
        raise


def _converge(writer: Writer, kernel: Kernel, state: State, scopes: Scopes = None) -> Converged:
    """Roll an unfinished change forward, and repair whatever differs from the desired world."""
    facts = kernel.facts()
    desired = state.world if state.pending is None else state.pending
    host = _host_part(state, desired, facts)
    known = _loaded(state.items)
    snapshot = topology.snapshot(desired, state.state_id, known, scopes=scopes, host=host)
    after = generations.raised(kernel, snapshot, known, all_of=True)
    if scopes is not None:
        # What is not looked at stays on record as it is there.
        order = (topology.HOST, *(vpc.name for vpc in desired.vpcs)) if desired.vpcs else ()
        after = {scope: after[scope] if scope in scopes else state.record[scope] for scope in order}
    record = _merged(state.record, after)
    intent = dataclasses.replace(state, boot_id=kernel.boot_id(), pending=desired, pending_host=host, record=record)
    plan, differences = _repair_plan(kernel, intent, after, _guard(state, desired, host, after), scopes)
    homes, gone = places.homes(after), leaving(intent.record, after)
    repair = RepairPlan(plan, tuple(differences), homes, gone, shutters_of(intent.record))
    finished = dataclasses.replace(intent, world=desired, host=host, record=after)
    # In a part of them nothing is told of the others, which may still be in trouble.
    if scopes is None or state.pending is None:
        finished = finished.settled
    if not plan and finished == state:
        return Converged(state)
    trouble = repair.check(kernel)
    intent = writer.save(intent)
    done = carry_out(kernel, repair, trouble)
    if state.unfinished or any(isinstance(step.item, Ruleset) for step in plan.steps):
        swept = {scope: items for scope, items in after.items() if scope not in done.trouble}
        _forget(kernel, plan, desired, host, swept, facts.local, former=state.world)
    if done.trouble:
        finished = dataclasses.replace(finished, pending=desired, pending_host=host)
    if done.left:
        finished = _with_leftovers(finished, intent.record, done.left)
    state = writer.save(dataclasses.replace(finished, serial=intent.serial))
    repaired = [one for one in repair.differences if one.item.key in done.made]
    return Converged(state, repaired, done.trouble, frozenset(done.left))


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
    keys = {item.key for items in after.values() for item in items}
    gone = [item for item in intent.items if item.key not in keys]
    # What stands on a link that is absent cannot be observed: a kernel without IPv6 lacks the same settings.
    links = [item for item in made if item.replaced]
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


def _roll_back(writer: Writer, kernel: Kernel, intent: State, error: VpcctlError, known: Trouble) -> None:
    """Roll back to the old world after `error`; what cannot be rolled back now is left to `repair`, and reported.

    `known` are the places whose repair had failed before.
    """
    try:
        found = _converge(writer, kernel, dataclasses.replace(intent, pending=intent.world, pending_host=intent.host))
        second = "; ".join(str(one) for scope, one in found.trouble.items() if scope not in known)
    except VpcctlError as failure:
        second = str(failure)
    if second:
        raise _not_rolled_back(error, second) from error


def _not_rolled_back(error: VpcctlError, why: str) -> KernelError:
    return KernelError(f"{error}\nand rolling back failed ({why}); fix the cause, then `vpcctl repair` completes it")


def _loaded(items: Iterable[Item]) -> dict[tuple[str, ...], Ruleset]:
    return {item.key: item for item in items if isinstance(item, Ruleset)}


def _merged(before: Record, after: Record) -> Record:
    """Every item of both records, the later one where both have it."""
    merged: Record = {}
    for scope in {**before, **after}:
        items = {item.key: item for item in (*before.get(scope, ()), *after.get(scope, ()))}
        merged[scope] = tuple(items.values())
    return merged
