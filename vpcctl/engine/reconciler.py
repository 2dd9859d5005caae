"""Change the world, and make the kernel follow: the one straight way that every mutating command takes.

Theory of operation.

    lock → read → (unfinished or rebooted: converge first) → new world → plan → check
         → write the intent → run the plan → write the commit

The intent holds the new world and every item of the old *and* the new one, so an item is on record before it exists
and until it is gone.  A reported failure is rolled back: the kernel is observed and made as the old world says.  A
crash leaves the intent, and the next command or `repair` rolls it forward, or back if it cannot.

`change` trusts the record and touches only what differs between two worlds.  `convergence` observes the kernel and
repairs what differs from the world.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

from vpcctl import names
from vpcctl.engine import convergence, generations, history, places, targets
from vpcctl.engine.convergence import Converged, Report
from vpcctl.engine.execution import Difference, RepairPlan, StepFailed, leaving, run, shutters_of
from vpcctl.engine.places import Trouble
from vpcctl.engine.state import Authorship, Record, State, Store, Unconfirmed, Writer
from vpcctl.errors import ConflictError, KernelError, StateError, VpcctlError
from vpcctl.model.host import HostPart
from vpcctl.model.network import World
from vpcctl.resources import plan as plans
from vpcctl.resources import topology
from vpcctl.resources.kinds import RANK, Item, Ruleset
from vpcctl.resources.plan import Plan
from vpcctl.resources.protocol import HostFacts, Kernel
from vpcctl.values import dataclass

Transform = Callable[[State], World]
# The world to come, in which these parts stay as they are in the state: VPCs by name, or PEERINGS.
Choose = Callable[[State, frozenset[str]], World]
PEERINGS = "all peerings"  # no VPC can be called so


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


def change(
    store: Store,
    kernel: Kernel,
    transform: Transform,
    report: Report = lambda words: None,
    force: bool = False,
    authorship: Authorship | None = None,
    back: bool = False,
) -> Outcome:
    """Make the world what `transform` makes of it, in the record and in the kernel.

    With `force`, ports of the host are published even if a program or a foreign rule uses them.  The history keeps the
    change as one by `authorship`.  While a change is unconfirmed, only one that goes `back` to the world before it is
    made.
    Raises what `transform` raises, with nothing changed; after any other VpcctlError the old world was put back, or
    the message says that `vpcctl repair` will.
    """
    with store.locked() as writer:
        state, trouble = _ready(writer, kernel, report)
        if not back:
            _check_confirmed(state)
        outcome, left = _changed(writer, kernel, state, transform(state), trouble, force, authorship)
        if back and state.unconfirmed is not None:
            from vpcctl.engine import confirmation

            # Also where both worlds are the same.
            confirmation.over(writer)
        _remark(writer, report)
        if left:
            raise _left_words(left)
        return outcome


def settle(store: Store, kernel: Kernel, report: Report = lambda words: None) -> None:
    """Complete what is unfinished, and take an unconfirmed change back if its time is over."""
    with store.locked() as writer:
        _ready(writer, kernel, report)
        _remark(writer, report)


def confirm(store: Store, kernel: Kernel, report: Report = lambda words: None) -> Unconfirmed:
    """Keep the unconfirmed change; ConflictError if nothing waits to be confirmed, or does no more."""
    from vpcctl.engine import confirmation

    with store.locked() as writer:
        state, _ = _ready(writer, kernel, report)
        _remark(writer, report)
        return confirmation.confirmed(writer, state)


def _remark(writer: Writer, report: Report) -> None:
    """Report what went wrong beside the change."""
    for words in writer.remarks:
        report(words)
    writer.remarks.clear()


def _changed(
    writer: Writer,
    kernel: Kernel,
    state: State,
    desired: World,
    trouble: Trouble,
    force: bool,
    authorship: Authorship | None,
) -> tuple[Outcome, Trouble]:
    """Change the state to another world under the lock; what could not be removed is returned, too."""
    facts = kernel.facts()
    attempt = _attempt(kernel, state, desired, facts)
    if not _changes(state, attempt):
        return Outcome(state.world, attempt.desired, attempt.plan), {}
    kernel.check(attempt.plan)
    if not force:
        for error in _taken_ports(kernel, state, attempt).values():
            raise error
    intent = _intent_saved(writer, state, _intent(kernel, state, attempt, authorship))
    try:
        left = _carried(kernel, state, attempt, facts)
    except (StepFailed, VpcctlError) as error:
        cause = error.cause if isinstance(error, StepFailed) else error
        convergence.roll_back(writer, kernel, intent, cause, trouble)
        raise cause from error
    _committed(writer, intent, attempt, left, trouble)
    return Outcome(state.world, attempt.desired, attempt.plan), left


def _check_confirmed(state: State) -> None:
    """Raise ConflictError while a change is unconfirmed: to take it back must not take another one along."""
    if state.unconfirmed is not None:
        from vpcctl.engine import confirmation

        raise confirmation.conflict(state.unconfirmed)


def rehearse(state: State, kernel: Kernel, world: World, force: bool = False) -> Outcome:
    """What `change` would do from `state` to `world`; refused where `change` would be, and nothing is touched."""
    attempt = _attempt(kernel, state, world, kernel.facts())
    if _changes(state, attempt):
        kernel.check(attempt.plan)
        if not force:
            for error in _taken_ports(kernel, state, attempt).values():
                raise error
    return Outcome(state.world, attempt.desired, attempt.plan)


def change_parts(
    store: Store,
    kernel: Kernel,
    choose: Choose,
    report: Report = lambda words: None,
    begun: Callable[[str], None] = lambda vpc: None,
    authorship: Authorship | None = None,
) -> tuple[Outcome, Trouble]:
    """Change several VPCs at once.  A part that fails is rolled back, and the other parts are completed.

    A part is a VPC, by its name, or PEERINGS.  `choose` returns the desired world, in which the given parts stay as
    they are in the state.  Returns the failures by part.  Raises what `choose` raises, and a failure of no single
    part, with nothing changed.  `begun` is called with each VPC when its part begins.
    """
    failed: Trouble = {}
    with store.locked() as writer:
        state, trouble = _ready(writer, kernel, report)
        _check_confirmed(state)
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
            return Outcome(state.world, attempt.desired, attempt.plan), failed
        intent = _intent_saved(writer, state, _intent(kernel, state, attempt, authorship))
        homes = places.homes(targets.of(intent.record, _concerned(state, attempt.desired, attempt.after)))
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
                convergence.roll_back(writer, kernel, intent, error.cause, trouble)
                raise error.cause from error
            failed[part] = error.cause
            after = _without_failed(writer, kernel, intent, choose, state, failed, trouble)
            _remark(writer, report)
            return Outcome(state.world, after, attempt.plan), failed
        except VpcctlError as error:
            convergence.roll_back(writer, kernel, intent, error, trouble)
            raise
        _committed(writer, intent, attempt, left, trouble)
        _remark(writer, report)
        if topology.HOST in left:
            raise _left_words(left)
        failed |= {scope: _left_words({scope: error}) for scope, error in left.items()}
        return Outcome(state.world, attempt.desired, attempt.plan), failed


def _ready(writer: Writer, kernel: Kernel, report: Report) -> tuple[State, Trouble]:
    """The state with no change unfinished, none unconfirmed whose time is over, and the places whose repair failed."""
    state, trouble = _due(writer.load(), kernel, report), {}
    if convergence.unfinished(state, kernel):
        found = convergence.finish(writer, kernel, state, report)
        for words in places.in_words(found.trouble, found.left):
            report(words)
        state, trouble = found.state, found.trouble
    return _taken_back(writer, kernel, state, report, trouble), trouble


def _due(state: State, kernel: Kernel, report: Report) -> State:
    """`state`, whose pending world is the one before a change if the time to confirm that is over."""
    if state.unconfirmed is None and (state.authorship is None or state.authorship.deadline is None):
        return state
    from vpcctl.engine import confirmation

    return confirmation.due(state, kernel, report)


def _taken_back(writer: Writer, kernel: Kernel, state: State, report: Report, trouble: Trouble) -> State:
    """The state after an unconfirmed change whose time is over was taken back; as it is if that fails."""
    if state.unconfirmed is None:
        return state
    from vpcctl.engine import confirmation

    if not confirmation.is_over(state.unconfirmed.deadline, kernel):
        return state
    try:
        desired, authorship = confirmation.back(state)
        _, left = _changed(writer, kernel, state, desired, trouble, True, authorship)
    except VpcctlError as error:
        report(f"{state.unconfirmed.words} was not confirmed, and cannot be taken back: {error}")
        return writer.load()
    for words in places.in_words(left, left):
        report(words)
    report(f"{state.unconfirmed.words} was not confirmed in time; taken back")
    return confirmation.over(writer)


def _attempt(kernel: Kernel, state: State, desired: World, facts: HostFacts) -> Attempt:
    _check_leftovers(state, desired)
    desired = targets.decided(desired, facts)
    host = targets.host_part(state, desired, facts)
    loaded = topology.Recorded(state.record)
    standing = topology.InForce(state.world, state.host, state.record)
    snapshot = topology.snapshot(desired, state.state_id, loaded, host=host, standing=standing, gates=kernel.gates)
    changed = {scope: items for scope, items in snapshot.items() if items is not state.record.get(scope)}
    # Peers track the same flows: if their record is damaged, raise that before anything is changed.
    for peer in (peer for scope in changed for peer in desired.peers(scope)):
        _ = peer.subnets
    after = {**snapshot, **generations.raised(kernel, changed, loaded, all_of=False)}
    return Attempt(desired, host, after, _plan(kernel, state, desired, host, after))


def _changes(state: State, attempt: Attempt) -> bool:
    return bool(attempt.plan) or (attempt.desired, attempt.host) != (state.world, state.host)


def _part(homes: Mapping[places.Key, str], item: Item) -> str:
    """The part of a change that fails with the item: a VPC, PEERINGS, or HOST for the whole."""
    of_peering = any(name.startswith(names.PEER_PREFIX) for _, name in (*item.links, *item.needs))
    return PEERINGS if of_peering else places.vpc_of(homes.get(item.key, topology.HOST))


def _problems(kernel: Kernel, state: State, attempt: Attempt) -> Trouble:
    """What prevents the attempt, by VPC.  A problem that concerns no single VPC is raised."""
    if not attempt.plan:
        return {}
    merged = targets.merged(state.record, attempt.after)
    homes = places.homes(targets.of(merged, _concerned(state, attempt.desired, attempt.after)))
    parts = RepairPlan(attempt.plan, (), homes, leaving(state.record, attempt.after), {})
    found: Trouble = {places.vpc_of(place): error for place, error in parts.check(kernel).items()}
    return _taken_ports(kernel, state, attempt) | found


def _taken_ports(kernel: Kernel, state: State, attempt: Attempt) -> Trouble:
    """Errors by VPC for newly published ports that a program or a foreign rule uses on this host."""
    known = {item.place for vpc in state.world.vpcs for item in vpc.publications}
    newly = [(vpc.name, item) for vpc in attempt.desired.vpcs for item in vpc.publications if item.place not in known]
    if not newly:
        return {}
    holders = kernel.port_holders([item for _, item in newly])
    words: dict[str, list[str]] = defaultdict(list)
    for vpc, item in newly:
        if item in holders:
            words[vpc].append(f"the host's port {item.service} is taken: {holders[item]}")
    remedy = "stop or change that, choose another port, or take it with `vpcctl publish-port --force`"
    return {vpc: ConflictError(f"{'; '.join(told)}; {remedy}") for vpc, told in words.items()}


def _intent(kernel: Kernel, state: State, attempt: Attempt, authorship: Authorship | None) -> State:
    return dataclasses.replace(
        state,
        authorship=authorship or history.unattributed(),
        boot_id=kernel.boot_id(),
        pending=attempt.desired,
        pending_host=attempt.host,
        record=targets.merged(state.record, attempt.after),
    )


def _carried(
    kernel: Kernel,
    state: State,
    attempt: Attempt,
    facts: HostFacts,
    begun: Callable[[Item], None] = lambda item: None,
) -> Trouble:
    """Carry the attempt out; what could not be removed.  Raises StepFailed, or VpcctlError for no single step."""
    going = targets.of(state.record, state.record.keys() - attempt.after.keys())
    left = run(kernel, attempt.plan, shutters_of(going), leaving(state.record, attempt.after), begun)
    targets.forget(kernel, attempt.plan, attempt.desired, attempt.host, attempt.after, facts.local, state)
    return left


def _committed(writer: Writer, intent: State, attempt: Attempt, left: Trouble, trouble: Trouble) -> None:
    """Put on record that the attempt is done, except for what is `left`; `trouble` is from before it."""
    finished = dataclasses.replace(intent, world=attempt.desired, host=attempt.host, record=attempt.after)
    if left:
        finished = convergence.with_leftovers(finished, intent.record, left)
    elif not trouble or not trouble.keys() & set(places.homes(attempt.after).values()):
        finished = finished.settled
    try:
        history.swept(writer, intent, writer.save(history.recorded(writer, intent, finished)))
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
    authorship = intent.authorship
    while True:
        try:
            desired = choose(before, frozenset(failed))
        except VpcctlError as error:
            # The rest of the change cannot be without the part that failed.
            cause = next(iter(failed.values()))
            convergence.roll_back(writer, kernel, intent, cause, trouble)
            raise cause from error
        try:
            found = convergence.converge(
                writer,
                kernel,
                dataclasses.replace(intent, pending=desired, pending_host=intent.host, authorship=authorship),
            )
        except VpcctlError as error:
            convergence.roll_back(writer, kernel, intent, error, trouble)
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
                failed[vpc] = convergence.not_rolled_back(failed[vpc], str(new[vpc]))
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
        found = _repaired(writer, kernel, state, report, vpcs)
        _remark(writer, report)
    if found.trouble:
        for difference in found.differences:
            report(f"repaired: {difference.past}")
        kind = KernelError if any(isinstance(one, KernelError) for one in found.trouble.values()) else ConflictError
        raise kind("\n".join(places.in_words(found.trouble, found.left)))
    return found.differences, found.state.world


def tend(
    store: Store, kernel: Kernel, report: Report, vpcs: Collection[str] | None, patience: float
) -> tuple[Converged, State]:
    """Likewise, for a caller that tries again: returns the failures and the state before; LockedError after `patience`.

    VPCs that no longer exist are left out.  If nothing is on record, nothing is compared or written.
    """
    with store.locked(patience) as writer:
        state = writer.load()
        if not (state.has_items or state.world.vpcs or state.pending is not None):
            return Converged(state), state
        known = None if vpcs is None else {vpc.name for vpc in state.world.vpcs}.intersection(vpcs)
        found = _repaired(writer, kernel, state, report, known)
        _remark(writer, report)
        return found, state


def _repaired(writer: Writer, kernel: Kernel, state: State, report: Report, vpcs: Collection[str] | None) -> Converged:
    state = _due(state, kernel, report)
    whole = vpcs is None or state.unfinished or convergence.rebooted(state, kernel)
    scopes = None if vpcs is None or whole else frozenset({topology.HOST, *vpcs})
    if state.unconfirmed is not None and not state.unfinished and not convergence.rebooted(state, kernel):
        before = state
        state = _taken_back(writer, kernel, state, report, {})
        scopes = scopes if state is before else None
    return convergence.finish(writer, kernel, state, report, scopes)


def _plan(kernel: Kernel, state: State, desired: World, host: HostPart, after: Record) -> Plan:
    """The plan from the record to `after`."""
    concerned = _concerned(state, desired, after)
    recorded, wanted = (
        [item for items in targets.of(record, concerned).values() for item in items] for record in (state.record, after)
    )
    return plans.diff(
        recorded, wanted, targets.closing(kernel, state, after), targets.guard(state, desired, host, after)
    )


def _concerned(state: State, desired: World, after: Record) -> set[str]:
    """The scopes in which a change from the record to `after` may have a step.

    Objects of an unchanged VPC may belong to a link that a peer makes again.
    """
    changed = {scope for scope in {**state.record, **after} if state.record.get(scope) is not after.get(scope)}
    return changed | {peer.name for world in (state.world, desired) for name in changed for peer in world.peers(name)}


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
