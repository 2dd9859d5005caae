"""Change the world, and make the kernel follow: the one straight way that every mutating command takes.

Theory of operation.

    lock → read → (unfinished or rebooted: converge first) → new world → plan → check
         → write the intent → run the plan → write the commit

The intent holds the new world and every item of the old *and* the new one, so an item is on record before it exists
and until it is gone.  A reported failure is rolled back: the kernel is observed and made as the old world says.  A
crash leaves the intent, and the next command or `repair` rolls it forward, or back if it cannot.

`change` trusts the record and touches only what differs between two worlds; `_converge` observes the kernel and mends
what differs from the world.  A VPC that cannot be mended stands in no other one's way: it is left, closed as far as it
got, and stays on record as pending.  The same holds for one instance of a VPC: its port is closed, and all else of the
VPC is repaired.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vpcctl import names
from vpcctl.engine import generations, places
from vpcctl.engine.places import Key, Trouble
from vpcctl.engine.state import Record, State, Store, Writer
from vpcctl.engine.sweep import sweep
from vpcctl.errors import ConflictError, KernelError, StateError, VpcctlError
from vpcctl.model.network import World, uplink_pair
from vpcctl.resources import plan as plans
from vpcctl.resources import topology
from vpcctl.resources.kinds import Item, LinkUp, Namespace, Open, Ruleset, Veth
from vpcctl.resources.plan import Plan, Remove, Step, links_made, links_used
from vpcctl.resources.protocol import Condition, HostFacts, Kernel, Status

Transform = Callable[[State], World]
Report = Callable[[str], None]
# The names of VPCs, or HOST; None stands for all.
Scopes = frozenset[str] | None
# What to take down, by key: for a router's ruleset its links that are up or open, for an instance's namespace its port.
Shutters = dict[Key, list[Item]]


@dataclass(frozen=True, slots=True)
class Difference:
    """An item that is not as it should be; `condition` says how."""

    item: Item
    condition: Condition

    def __str__(self) -> str:
        return self._told("is")

    @property
    def past(self) -> str:
        """How it was, for what is mended."""
        return self._told("was")

    def _told(self, verb: str) -> str:
        detail = f": {self.condition.detail}" if self.condition.detail else ""
        return f"{self.item} {verb} {self.condition.state.value}{detail}"


@dataclass(frozen=True, slots=True)
class Converged:
    """What convergence came to: the state on record, what was mended, and which VPCs could not be."""

    state: State
    differences: list[Difference] = dataclasses.field(default_factory=list)
    trouble: Trouble = dataclasses.field(default_factory=dict)


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
        state, trouble = writer.load(), {}
        if _unfinished(state, kernel):
            found = _finished(writer, kernel, state, report)
            state, trouble = found.state, found.trouble
            for words in places.in_words(trouble):
                report(words)
        desired = _prepared(state, transform(state), kernel.facts())
        loaded = _loaded(state.items)
        after = generations.raised(
            kernel, topology.snapshot(desired, state.state_id, loaded, state.world), loaded, all_of=False
        )
        plan = _plan(kernel, state, desired, after)
        if not plan and desired == state.world:
            return Outcome(state.world, desired, plan)
        kernel.check(plan)
        intent = dataclasses.replace(
            state, boot_id=kernel.boot_id(), pending=desired, record=_merged(state.record, after)
        )
        intent = _begun(writer, state, intent)
        try:
            run(kernel, plan, _shutters(state.record))
            _forget(kernel, plan, desired, after, state.world)
        except VpcctlError as error:
            _roll_back(writer, kernel, intent, error, trouble)
            raise
        pending = desired if trouble.keys() & set(places.homes(after).values()) else None
        try:
            writer.save(dataclasses.replace(intent, world=desired, record=after, pending=pending))
        except StateError as error:
            raise StateError(
                f"{error}\nthe change itself is made; `vpcctl repair` puts it on record when the cause is mended"
            ) from error
        return Outcome(state.world, desired, plan)


def repair(
    store: Store,
    kernel: Kernel,
    adopt: bool = False,
    report: Report = lambda words: None,
    vpc: str | None = None,
) -> tuple[list[Difference], World]:
    """Make the kernel what the record says it should be; the differences that were mended.

    With `adopt` the record is first taken back from its copy, for a file that was lost or damaged.  With `vpc` only
    that VPC is looked at, and what the host has for all of them; what an earlier command left is finished for all.
    Raises for the VPCs that cannot be mended, once the others are.
    """
    with store.locked() as writer:
        state = writer.adopt() if adopt else writer.load()
        if vpc is not None:
            state.world.vpc(vpc)
        whole = vpc is None or state.unfinished or _rebooted(state, kernel)
        scopes = None if vpc is None or whole else frozenset({topology.HOST, vpc})
        found = _finished(writer, kernel, state, report, scopes)
    if found.trouble:
        for difference in found.differences:
            report(f"mended: {difference.past}")
        kind = KernelError if any(isinstance(one, KernelError) for one in found.trouble.values()) else ConflictError
        raise kind("\n".join(places.in_words(found.trouble)))
    return found.differences, found.state.world


def examine(state: State, kernel: Kernel, scopes: Iterable[str] | None = None) -> list[Difference]:
    """Everything in which the kernel differs from the state, changing nothing; `scopes` limits it to some VPCs."""
    world = _prepared(state, state.world, kernel.facts(), looking=True)
    chosen = None if scopes is None else set(scopes)
    wanted = topology.snapshot(world, state.state_id, _loaded(state.items), scopes=chosen)
    items = [item for members in wanted.values() for item in members]
    return [
        Difference(item, condition)
        for item, condition in kernel.observe(items).items()
        if condition.state is not Status.RIGHT
    ]


def run(kernel: Kernel, plan: Plan, shutters: Shutters) -> None:
    """Take every step of `plan`; the first failure ends it.

    Where a router that goes takes no closed ruleset, its links, the `shutters`, are taken down instead.
    """
    for step in plan.steps:
        if isinstance(step, Remove):
            kernel.remove(step.item)
        elif isinstance(step.item, Ruleset) and step.item.closed:
            _close(kernel, step.item, shutters)
        else:
            kernel.ensure(step.item)


def _close(kernel: Kernel, ruleset: Ruleset, shutters: Shutters) -> None:
    """Have a router carry nothing: by its closed ruleset, or without its links."""
    try:
        kernel.ensure(ruleset)
    except (ConflictError, KernelError):
        for item in shutters.get(ruleset.key, ()):
            kernel.remove(item)


def _shutters(record: Record) -> Shutters:
    """What to take down for each router and each instance (see Shutters)."""
    items = [item for scope in record.values() for item in scope]
    found: Shutters = {item.key: [] for item in items if isinstance(item, Ruleset) and item.namespace is not None}
    pairs = [item for item in items if isinstance(item, Veth) and item.peer_namespace is not None]
    instances: dict[tuple[str | None, str], Key] = {
        (item.namespace, item.name): (Namespace.__name__, str(item.peer_namespace)) for item in pairs
    }
    for item in items:
        if isinstance(item, (Open, LinkUp)):
            found.get((Ruleset.__name__, str(item.namespace)), []).append(item)
        if isinstance(item, Open) and (item.namespace, item.link) in instances:
            found[instances[item.namespace, item.link]] = [item]
    return found


def _forget(
    kernel: Kernel,
    plan: Plan,
    world: World,
    after: Record,
    before: World | None = None,
    former: World | None = None,
) -> None:
    """Forget the tracked flows that are in the way of `world`; without a world `before` in every scope of `after`."""
    loaded = {step.item.namespace for step in plan.steps if isinstance(step.item, Ruleset)}
    if not loaded and before is not None:
        return
    scopes = [vpc.name for vpc in world.vpcs if vpc.name in after]
    if before is not None:
        scopes = [name for name in scopes if names.router_namespace(name) in loaded]
    items = [item for items in after.values() for item in items]
    sweep(kernel, world, scopes, items, before, kernel.facts().local, former)


def _prepared(state: State, desired: World, facts: HostFacts, looking: bool = False) -> World:
    """`desired` with the host's side of it: where forwarding must be switched on, and that the uplinks are free.

    With `looking` the host's services are taken as they are on record.
    """
    known = {vpc.name for vpc in state.world.vpcs}
    for vpc in desired.vpcs:
        pair = uplink_pair(desired.transit, vpc.index)
        for network in facts.networks:
            if vpc.name not in known and network.overlaps(desired.transit):
                raise ConflictError(
                    f"the host has a network {network}, which overlaps the transit range {desired.transit} of the"
                    f" VPCs' uplinks ({pair[0]} is that of {vpc.name}); choose another range with --transit"
                )
    if not looking:
        desired = dataclasses.replace(desired, reserved=_reserved(state.world, desired, facts))
    if not desired.vpcs or facts.forwarding:
        # Where the whole host forwards, whoever wanted that also decides between which links.
        return dataclasses.replace(desired, opened=())
    # What was opened before is on record, whatever world is wanted now.
    opened = dict(state.world.opened)
    opened |= {link: value for link, value in facts.ways_out if value != "1" and link not in opened}
    return dataclasses.replace(desired, opened=tuple(sorted(opened.items())))


def _reserved(before: World, desired: World, facts: HostFacts) -> tuple[int, ...]:
    """The host's services that source NAT leaves alone.

    Programs come and go, and the host's table is not loaded again for each: those on record stand until the table
    changes anyway.
    """
    if not desired.vpcs:
        return ()
    told = [
        [(vpc.name, vpc.index, vpc.publications, vpc.max_flows, vpc.nat_protocols) for vpc in world.vpcs]
        for world in (before, desired)
    ]
    return before.reserved if told[0] == told[1] else facts.services


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
    there = {item.namespace for item, found in kernel.observe(routers).items() if found.state is Status.RIGHT}
    return [ruleset for ruleset in rulesets if ruleset.namespace in there]


def _guard(state: State, desired: World, after: Record) -> Ruleset | None:
    """The host's table for the uplinks of `desired` and those that go; None where none goes, or all do."""
    going = [item for scope, items in state.record.items() if scope not in after for item in items]
    leaving = topology.uplinks(going)
    if not leaving or not desired.vpcs:
        return None
    return topology.host_ruleset(desired, state.state_id, _loaded(state.items), leaving)


def _unfinished(state: State, kernel: Kernel) -> bool:
    """Is there something to be made before anything else, for a crash, a reboot, or because it could not be mended?"""
    return state.pending is not None or _rebooted(state, kernel)


def _rebooted(state: State, kernel: Kernel) -> bool:
    return bool(state.items and state.boot_id != kernel.boot_id())


def _finished(writer: Writer, kernel: Kernel, state: State, report: Report, scopes: Scopes = None) -> Converged:
    """Converge; an unfinished change that cannot be finished is put back, so that it stands in nobody's way."""
    if state.unfinished or _rebooted(state, kernel):
        report("finishing what an earlier command left, or a reboot took")
    try:
        found = _converge(writer, kernel, state, scopes)
        words = "; ".join(
            places.in_words({place: one for place, one in found.trouble.items() if places.interrupted(state, place)})
        )
    except (ConflictError, KernelError) as error:
        if not state.unfinished:
            raise
        words = str(error)
    if not words:
        return found
    report(f"what was begun cannot be finished, and is put back; {words}")
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


def _converge(writer: Writer, kernel: Kernel, state: State, scopes: Scopes = None) -> Converged:
    """Roll an unfinished change forward, and mend whatever differs from the world then desired."""
    desired = _prepared(state, state.world if state.pending is None else state.pending, kernel.facts())
    known = _loaded(state.items)
    after = generations.raised(
        kernel, topology.snapshot(desired, state.state_id, known, scopes=scopes), known, all_of=True
    )
    if scopes is not None:
        # What is not looked at stays on record as it is there.
        order = (topology.HOST, *(vpc.name for vpc in desired.vpcs)) if desired.vpcs else ()
        after = {scope: after[scope] if scope in scopes else state.record[scope] for scope in order}
    intent = dataclasses.replace(state, boot_id=kernel.boot_id(), pending=desired, record=_merged(state.record, after))
    plan, differences = _mending(kernel, intent, after, _guard(state, desired, after), scopes)
    # In a part of them nothing is told of the others, which may still be in trouble.
    left = state.pending if scopes is not None else None
    finished = dataclasses.replace(intent, world=desired, record=after, pending=left)
    if not plan and finished == state:
        return Converged(state)
    homes = places.homes(after)
    trouble = _check(kernel, plan, homes)
    intent = writer.save(intent)
    made = _mend(kernel, plan, homes, trouble, _shutters(intent.record))
    if state.unfinished or any(isinstance(step.item, Ruleset) for step in plan.steps):
        swept = {scope: items for scope, items in after.items() if scope not in trouble}
        _forget(kernel, plan, desired, swept, former=state.world)
    pending = desired if trouble else left
    state = writer.save(dataclasses.replace(finished, pending=pending, serial=intent.serial))
    return Converged(state, [one for one in differences if one.item.key in made], trouble)


def _check(kernel: Kernel, plan: Plan, homes: Mapping[Key, str]) -> Trouble:
    """What prevents `plan`, by the place of the items concerned.

    A problem that concerns no single VPC or instance is raised.
    """
    parts: dict[str, list[Step]] = defaultdict(list)
    for step in plan.steps:
        parts[homes.get(step.item.key, topology.HOST)].append(step)
    trouble: Trouble = {}
    for place, steps in parts.items():
        try:
            kernel.check(Plan(tuple(steps)))
        except (ConflictError, KernelError) as error:
            if place == topology.HOST:
                raise
            trouble[place] = error
    # An instance whose whole VPC is in trouble has none of its own.
    whole = {place for place in trouble if not places.instance_of(place)}
    return {place: error for place, error in trouble.items() if place in whole or places.vpc_of(place) not in whole}


def _mend(kernel: Kernel, plan: Plan, homes: Mapping[Key, str], trouble: Trouble, shutters: Shutters) -> set[Key]:
    """Run the steps of `plan` and return the keys of what was made; a failed VPC or instance is added to `trouble`.

    The remaining steps of that place are skipped.  If a router's ruleset was not loaded, the router's links are taken
    down; if a step of an instance failed, its port is.  Other failed removals, and failures that concern no single VPC,
    are raised: then nothing more may be opened.
    """
    spaces = {place: key for key, place in homes.items() if key[0] == Namespace.__name__}
    owners: dict[str | None, str] = {key[1]: place for place, key in spaces.items()}
    lost: set[tuple[str | None, str]] = set()
    made: set[Key] = set()
    for step in plan.steps:
        item, place = step.item, homes.get(step.item.key, topology.HOST)
        removing = isinstance(step, Remove)
        if isinstance(item, Ruleset) and item.closed and not removing:
            _close(kernel, item, shutters)
            continue
        # A peering's link needs the other VPC's router too.
        concerned = {
            place,
            places.vpc_of(place),
            owners.get(item.namespace),
            owners.get(getattr(item, "peer_namespace", None)),
        }
        blocked = place != topology.HOST and bool(concerned & trouble.keys())
        if not blocked and (removing or not lost.intersection(links_used(item))):
            try:
                (kernel.remove if removing else kernel.ensure)(item)
                made.update(() if removing else (item.key,))
                continue
            except (ConflictError, KernelError) as error:
                if place == topology.HOST or (removing and not places.instance_of(place)):
                    raise
                trouble[place] = _closed(kernel, error, shutters.get(spaces.get(place, ()), ()))
        if not removing:
            lost.update(links_made(item))
            for link in shutters.get(item.key, ()) if isinstance(item, Ruleset) else ():
                kernel.remove(link)
    return made


def _closed(kernel: Kernel, error: ConflictError | KernelError, ports: Iterable[Item]) -> VpcctlError:
    """Take down the `ports` of an instance that failed, and return the error that says so."""
    ports = list(ports)
    for port in ports:
        kernel.remove(port)
    return type(error)(f"{error}; its port is closed until `vpcctl repair` succeeds") if ports else error


def _mending(
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
            if difference.condition.state is Status.DIFFERENT and isinstance(difference.item, plans.REPLACED)
        ),
    ]
    keys = {item.key for items in after.values() for item in items}
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


def _roll_back(writer: Writer, kernel: Kernel, intent: State, error: VpcctlError, known: Trouble) -> None:
    """Put the old world back after `error`; what cannot be put back now is left to `repair`, and said.

    `known` is what could not be mended before either.
    """
    try:
        found = _converge(writer, kernel, dataclasses.replace(intent, pending=intent.world))
        second = "; ".join(str(one) for scope, one in found.trouble.items() if scope not in known)
    except VpcctlError as failure:
        second = str(failure)
    if second:
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
