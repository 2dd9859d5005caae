"""Carry a plan out in the kernel: what a failure stops, what goes on, and what is closed meanwhile.

`run` is for a change: the first failure ends it, and the reconciler rolls back.  `carry_out` is for a repair, of which
each VPC and each instance is its own part: trouble with one holds up no other.

Both tear down as far as they can.  If the kernel refuses to remove an object of a VPC that is deleted, the rest of the
VPC is removed nevertheless, and every failure is reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field

from vpcctl.engine import places
from vpcctl.engine.places import Key, Trouble
from vpcctl.engine.state import Record
from vpcctl.errors import ConflictError, KernelError, VpcctlError
from vpcctl.resources import topology
from vpcctl.resources.kinds import Item, Link, LinkUp, Namespace, Open, Ruleset, Veth
from vpcctl.resources.plan import Plan, Remove, Step
from vpcctl.resources.protocol import Condition, Kernel
from vpcctl.values import dataclass

# What to take down, by key: for a router's ruleset its links that are up or open, for an instance's namespace its port.
Shutters = dict[Key, list[Item]]
# The scope of each object that goes for good together with its scope.
Leaving = Mapping[Key, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """An item that is not as it should be; `condition` says how."""

    item: Item
    condition: Condition

    def __str__(self) -> str:
        return self._told("is")

    @property
    def past(self) -> str:
        """How the item was before it was repaired."""
        return self._told("was")

    def _told(self, verb: str) -> str:
        detail = f": {self.condition.detail}" if self.condition.detail else ""
        return f"{self.item} {verb} {self.condition.state.value}{detail}"


def principal_first(differences: Iterable[Difference]) -> list[Difference]:
    """`differences` with the objects first on which others depend: namespaces, rulesets, links of instances."""
    return sorted(differences, key=lambda one: not isinstance(one.item, (Namespace, Ruleset, Veth)))


# --- A change -----------------------------------------------------------------------------------------------------


def leaving(before: Record, after: Record) -> Leaving:
    """The objects of scopes that are in `before` and not in `after`."""
    return {item.key: scope for scope, items in before.items() if scope not in after for item in items}


class StepFailed(Exception):
    """A step about `item` failed; the cause is a ConflictError or a KernelError."""

    def __init__(self, item: Item, cause: VpcctlError):
        super().__init__(str(cause))
        self.item, self.cause = item, cause


def run(
    kernel: Kernel, plan: Plan, shutters: Shutters, gone: Leaving, begun: Callable[[Item], None] = lambda item: None
) -> Trouble:
    """Take every step of `plan`, and return what could not be removed of `gone`; any other failure is StepFailed.

    `begun` is called with each item before its step.
    """
    teardown = Teardown(kernel, gone, shutters)
    for step in plan.steps:
        begun(step.item)
        try:
            if not teardown.takes(step):
                (kernel.remove if isinstance(step, Remove) else kernel.ensure)(step.item)
        except (ConflictError, KernelError) as error:
            raise StepFailed(step.item, error) from error
    return teardown.trouble


class Teardown:
    """The part of a plan that closes and removes what goes for good; a failure there stops nothing else.

    Where a router that goes takes no closed ruleset, its links, the `shutters`, are taken down instead.
    """

    def __init__(self, kernel: Kernel, gone: Leaving, shutters: Shutters):
        self._kernel, self._gone, self._shutters = kernel, gone, shutters
        self._errors: dict[str, list[VpcctlError]] = {}

    @property
    def trouble(self) -> Trouble:
        """Why something could not be removed, by scope."""
        return {scope: KernelError("; ".join(map(str, errors))) for scope, errors in self._errors.items()}

    def takes(self, step: Step) -> bool:
        """Take `step` and return true, if it is a step of the teardown."""
        item = step.item
        if self._errors and isinstance(item, Ruleset) and item.namespace is None:
            # The host's table stays as it is: it has to know the uplinks that are left.
            return True
        if isinstance(step, Remove) and item.key in self._gone:
            try:
                self._kernel.remove(item)
            except (ConflictError, KernelError) as error:
                self._errors.setdefault(self._gone[item.key], []).append(error)
            return True
        if isinstance(item, Ruleset) and item.closed:
            _close(self._kernel, item, self._shutters)
            return True
        return False


def _close(kernel: Kernel, ruleset: Ruleset, shutters: Shutters) -> None:
    """Have a router carry nothing: by its closed ruleset, or without its links."""
    try:
        kernel.ensure(ruleset)
    except (ConflictError, KernelError):
        for item in shutters.get(ruleset.key, ()):
            kernel.remove(item)


def shutters_of(record: Record) -> Shutters:
    """What to take down for each router and each instance (see Shutters)."""
    items = [item for scope in record.values() for item in scope]
    found: Shutters = {item.key: [] for item in items if isinstance(item, Ruleset) and item.namespace is not None}
    pairs = [item for item in items if isinstance(item, Veth) and item.peer_namespace is not None]
    instances: dict[Link, Key] = {
        (item.namespace, item.name): (Namespace.__name__, str(item.peer_namespace)) for item in pairs
    }
    for item in items:
        if isinstance(item, (Open, LinkUp)):
            found.get((Ruleset.__name__, str(item.namespace)), []).append(item)
        if isinstance(item, Open) and (item.namespace, item.link) in instances:
            found[instances[item.namespace, item.link]] = [item]
    return found


# --- A repair -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """All that a repair is, before anything is touched.

    `plan` leads from what was observed, the `differences`, to what is desired.  `homes` has the place of each object,
    `gone` the scope of each that goes for good, `shutters` what to close where a place fails.
    """

    plan: Plan
    differences: tuple[Difference, ...]
    homes: Mapping[Key, str]
    gone: Leaving
    shutters: Shutters

    def place(self, item: Item) -> str:
        """The place that has trouble if `item` fails; HOST if no single VPC or instance has."""
        return self.homes.get(item.key, topology.HOST)

    def check(self, kernel: Kernel) -> Trouble:
        """What prevents the plan, by place.  A problem that concerns no single VPC or instance is raised."""
        parts: dict[str, list[Step]] = defaultdict(list)
        for step in self.plan.steps:
            parts[self.gone.get(step.item.key) or self.place(step.item)].append(step)
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


@dataclass(slots=True)
class RepairProgress:
    """How far a repair got: what was made, which places are in trouble, what could not be removed."""

    trouble: Trouble
    made: set[Key] = field(default_factory=set)
    left: Trouble = field(default_factory=dict)
    # Links that are not there, because making them failed or was skipped.
    missing: set[Link] = field(default_factory=set)


def carry_out(kernel: Kernel, repair: RepairPlan, trouble: Trouble) -> RepairProgress:
    """Take the steps of `repair`; places that are in `trouble`, or get into it, are skipped from there on.

    If a router's ruleset was not loaded, the router's links are taken down; if a step of an instance failed, its port
    is.  Other failed removals, and failures that concern no single VPC, are raised: then nothing more may be opened.
    """
    progress = RepairProgress(dict(trouble))
    spaces = {place: key for key, place in repair.homes.items() if key[0] == Namespace.__name__}
    owners = {key[1]: place for place, key in spaces.items()}
    teardown = Teardown(kernel, repair.gone, repair.shutters)
    for step in repair.plan.steps:
        if not teardown.takes(step):
            _take(kernel, repair, step, progress, spaces, owners)
    progress.left = teardown.trouble
    progress.trouble |= progress.left
    return progress


def _take(
    kernel: Kernel,
    repair: RepairPlan,
    step: Step,
    progress: RepairProgress,
    spaces: Mapping[str, Key],
    owners: Mapping[str, str],
) -> None:
    item, place, removing = step.item, repair.place(step.item), isinstance(step, Remove)
    # A peering's link needs the other VPC's router too.
    concerned = {place, places.vpc_of(place), *(owners.get(str(namespace)) for namespace in item.namespaces)}
    blocked = place != topology.HOST and bool(concerned & progress.trouble.keys())
    if not blocked and (removing or not progress.missing.intersection(item.needs)):
        try:
            (kernel.remove if removing else kernel.ensure)(item)
            progress.made.update(() if removing else (item.key,))
            return
        except (ConflictError, KernelError) as error:
            if place == topology.HOST or (removing and not places.instance_of(place)):
                raise
            ports = repair.shutters.get(spaces[place], ()) if place in spaces else ()
            progress.trouble[place] = _closed(kernel, error, ports)
    if not removing:
        progress.missing.update(item.links)
        for link in repair.shutters.get(item.key, ()) if isinstance(item, Ruleset) else ():
            kernel.remove(link)


def _closed(kernel: Kernel, error: ConflictError | KernelError, ports: Iterable[Item]) -> VpcctlError:
    """Take down the `ports` of an instance that failed, and return the error that says so."""
    ports = list(ports)
    for port in ports:
        kernel.remove(port)
    return type(error)(f"{error}; its port is closed until `vpcctl repair` succeeds") if ports else error
