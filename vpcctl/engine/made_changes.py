"""Requests about changes that were made: list them, show what one did, and go back to what was before."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vpcctl.engine import history
from vpcctl.engine.machine import Machine
from vpcctl.errors import ConflictError
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.analysis.impact import Forecast
    from vpcctl.documents.diff import ObjectChange
    from vpcctl.engine.reconciler import Outcome
    from vpcctl.engine.state import State
    from vpcctl.model.network import World

# Instances that a warning names; the others are counted.
NAMED = 5
VERBS = {"-": "removes", "+": "creates", "~": "changes"}


@dataclass(frozen=True, slots=True)
class KeptChange:
    """A change that was made: its number, when, by whom, as which user if that is another one, and what it did.

    `confirmed` is false while it is unconfirmed.
    """

    number: int
    time: str
    user: str
    acting_as: str
    command: tuple[str, ...]
    summary: str
    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class ChangeView:
    """What a change did; `before` and `after` are the VPCs concerned, and all peerings, as environments."""

    change: KeptChange
    changes: tuple[ObjectChange, ...]
    forecast: Forecast
    before: dict[str, Any]
    after: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UndoPlan:
    """What undoing would change: objects, and traffic.

    `undone` are the changes that it takes back, the latest first.  `losses` say what it cannot bring back.
    """

    undone: tuple[KeptChange, ...]
    before: World
    after: World
    changes: tuple[ObjectChange, ...]
    forecast: Forecast
    losses: tuple[str, ...]
    warnings: tuple[str, ...]
    number: int
    unconfirmed: bool

    @property
    def counts(self) -> tuple[str, ...]:
        """How many objects of which kinds go, come and change."""
        return counted_kinds(self.changes)


def listed(machine: Machine) -> tuple[KeptChange, ...]:
    """All changes that are kept."""
    state = machine.load()
    return tuple(_kept(state, entry) for entry in history.entries(state, machine.store))


def _kept(state: State, entry: history.HistoryEntry) -> KeptChange:
    by, waiting = entry.authorship, state.unconfirmed
    confirmed = waiting is None or waiting.number != entry.number
    return KeptChange(entry.number, by.time, by.user, by.acting_as, by.command, entry.summary, confirmed)


def shown(machine: Machine, number: int) -> ChangeView:
    """One change, found by going back to it from the present world."""
    from vpcctl.analysis.impact import forecast
    from vpcctl.documents.diff import exported, object_changes

    state = machine.load()
    entry, later = _found(machine, state, number)
    past = history.Past(state.world, machine.store.shelf())
    for one in later:
        past.go_back(one)
    after = past.world()
    past.go_back(entry)
    before = past.world()
    host, warnings = machine.host()
    expected = forecast(before, after, [], host)
    touched = set(entry.touched)
    old, new = (_concerned(exported(world), touched) for world in (before, after))
    return ChangeView(_kept(state, entry), tuple(object_changes(before, after)), expected, old, new, warnings)


def _concerned(environment: dict[str, Any], touched: set[str]) -> dict[str, Any]:
    return {**environment, "vpcs": [vpc for vpc in environment["vpcs"] if vpc["name"] in touched]}


def _found(machine: Machine, state: State, number: int) -> tuple[history.HistoryEntry, list[history.HistoryEntry]]:
    """The change `number`, and those after it, the latest first; ConflictError if one of them is not kept."""
    kept = {entry.number: entry for entry in history.entries(state, machine.store)}
    if not kept:
        raise ConflictError("no change is kept in the history")
    if number not in kept:
        known = f"{min(kept)} to {max(kept)}" if len(kept) > 1 else str(min(kept))
        raise ConflictError(f"change {number} is not kept in the history; known changes: {known}")
    later = range(state.annals.number, number, -1)
    _check_complete(kept, later, number)
    return kept[number], [kept[one] for one in later]


def _check_complete(kept: dict[int, history.HistoryEntry], wanted: Iterable[int], number: int) -> None:
    missing = next((one for one in wanted if one not in kept), None)
    if missing is not None:
        raise ConflictError(
            f"change {missing} is not kept in the history, so change {number} cannot be reached;"
            f" `vpcctl undo --to {missing}` is as far as it goes"
        )


def plan_undo(machine: Machine, to: int | None) -> UndoPlan:
    """What undoing would change.

    An unconfirmed change is taken back to the world that is on record for it, whatever the history has.
    """
    from vpcctl.analysis.impact import forecast
    from vpcctl.documents.diff import object_changes
    from vpcctl.model.restoration import restored

    state = machine.load()
    kept = {entry.number: entry for entry in history.entries(state, machine.store)}
    waiting = state.unconfirmed
    if waiting is not None and to in (None, waiting.number - 1):
        past, undone = waiting.before, [kept[waiting.number]] if waiting.number in kept else []
    else:
        past, undone = _past(machine, state, kept, to)
    after = restored(state.world, past, state.serial)
    if waiting is None:
        machine.check(state.world, after)
    host, warnings = machine.host()
    changes = tuple(object_changes(state.world, after))
    return UndoPlan(
        tuple(_kept(state, entry) for entry in undone),
        state.world,
        after,
        changes,
        forecast(state.world, after, [], host),
        _losses(state.world, after),
        warnings,
        state.annals.number,
        waiting is not None,
    )


def _past(
    machine: Machine, state: State, kept: dict[int, history.HistoryEntry], to: int | None
) -> tuple[World, list[history.HistoryEntry]]:
    """The world after change `to`, by default that before the last one, and the changes that are undone for it."""
    last = state.annals.number
    if not last:
        raise ConflictError("nothing to undo: the history has no change")
    target = last - 1 if to is None else to
    if not 0 <= target <= last:
        raise ConflictError(f"change {target} not found; the last change is {last}")
    if to is None and last not in kept:
        raise ConflictError(f"change {last} is not kept in the history, so it cannot be undone")
    wanted = range(last, target, -1)
    _check_complete(kept, wanted, target)
    undone = [kept[number] for number in wanted]
    past = history.Past(state.world, machine.store.shelf())
    for entry in undone:
        past.go_back(entry)
    return past.world(), undone


def _losses(before: World, after: World) -> tuple[str, ...]:
    """What cannot be brought back: what ran in instances that are made again, or go."""
    # A VPC that is the very same is not read for this.
    same = {vpc.name for vpc in before.vpcs if after.vpcs_by_name.get(vpc.name) is vpc}
    old, new = _instances(before, same), _instances(after, same)
    made = [name for name, instance in new.items() if old.get(name) != instance]
    gone = [name for name in old if name not in new]
    told = []
    if made:
        told.append(
            f"made anew: {_named(made)}; the namespaces are empty, and nothing that ran in them before is started"
        )
    if gone:
        told.append(f"deleted: {_named(gone)}; programs that run in them lose their network")
    return tuple(told)


def _instances(world: World, without: set[str]) -> dict[str, object]:
    vpcs = [vpc for vpc in world.vpcs if vpc.name not in without]
    return {f"{vpc.name}/{one.name}": (one.addresses, one.mac) for vpc in vpcs for one in vpc.instances}


def _named(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def undo(machine: Machine, planned: UndoPlan, reason: str) -> Outcome:
    """Carry a plan out, for a reason; what takes an unconfirmed change back is not to be confirmed itself."""
    from vpcctl.model.restoration import restored

    def back(state: State) -> World:
        if state.annals.number != planned.number or (state.unconfirmed is not None) != planned.unconfirmed:
            raise ConflictError("another command changed something meanwhile; run `vpcctl undo` again")
        return restored(state.world, planned.after, state.serial)

    confirm = None if planned.unconfirmed else machine.author.confirm
    author = dataclasses.replace(machine.author, confirm=confirm, reason=reason)
    # Invariants do not keep an unconfirmed change in force.
    override = machine.override_invariants or planned.unconfirmed
    machine = dataclasses.replace(machine, author=author, override_invariants=override)
    return machine.change(back, back=True)


def counted_kinds(changes: Iterable[ObjectChange]) -> tuple[str, ...]:
    """How many objects of which kinds go, come and change, as `removes 2 instances, 1 subnet`."""
    counts = {sign: Counter[str]() for sign in VERBS}
    for sign, what in {(change.sign, change.what) for change in changes}:
        counts[sign][_kind(what)] += 1
    return tuple(
        f"{VERBS[sign]} " + ", ".join(_plural(number, kind) for kind, number in sorted(found.items()))
        for sign, found in counts.items()
        if found
    )


# How an object is called whose first word is no kind.
KINDS = {"published": "published port", "NAT": "NAT gateway", "transit": "transit range"}


def _kind(what: str) -> str:
    first = what.partition(" ")[0]
    return KINDS.get(first, first)


def _plural(number: int, kind: str) -> str:
    plural = "policies" if kind == "policy" else f"{kind}s"
    return f"1 {kind}" if number == 1 else f"{number} {plural}"
