"""Requests about policies: attach them to subnets, detach them, and show those in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vpcctl.engine.machine import Machine
from vpcctl.model.policy import WHOLE_VPC, Direction, Policy
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.analysis.impact import Forecast
    from vpcctl.documents.binding import Attachment
    from vpcctl.documents.sources import Source
    from vpcctl.engine.execution import Difference
    from vpcctl.engine.state import State
    from vpcctl.model.network import Vpc, World

# How many flows each rule of a direction decided, the default's last; None where the policy is silent about it.
Hits = Mapping[Direction, list[int] | None]


@dataclass(frozen=True, slots=True)
class AttachedPolicy:
    """The policy that a subnet has now, or with ``*`` the VPC; `changed` is false if it had the same before."""

    vpc: str
    subnet: str
    policy: Policy
    changed: bool

    @property
    def rules(self) -> int:
        """The number of its rules."""
        return sum(len(rules or ()) for rules in (self.policy.ingress, self.policy.egress))


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """What a request about policies changed or, as a dry run, would change.

    `forecast` is the traffic that is newly allowed and denied.  `repaired` is what differed in the kernel in VPCs whose
    policies stay as they were.
    """

    before: World
    after: World
    attached: tuple[AttachedPolicy, ...]
    forecast: Forecast
    warnings: tuple[str, ...] = ()
    repaired: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyView:
    """A subnet's policy, or with ``*`` the VPC's own, None if it has none; `hits` is None unless it was asked for.

    `after_vpc` says that the rules of the VPC's own policy are asked before it.
    """

    subnet: str
    policy: Policy | None
    hits: Hits | None = None
    after_vpc: bool = False


def apply_policies(
    machine: Machine, sources: Iterable[Source], vpc: str | None, subnet: str | None, dry_run: bool
) -> PolicyChange:
    """Attach the policies of documents; `vpc` and `subnet` win over what the documents say."""
    from vpcctl.documents.binding import attach, sound_policies
    from vpcctl.documents.sources import read_policy_sources

    documents = sound_policies(read_policy_sources(sources), lambda: machine.load().world, vpc, subnet)
    found: list[Attachment] = []
    warnings: list[str] = []

    def attached(state: State) -> World:
        # Called again if another command changed the state meanwhile.
        world, found[:], warnings[:] = attach(state.world, documents, vpc, subnet)
        return world

    dry_run = dry_run or machine.rehearsing
    if dry_run:
        state = machine.load()
        before, after = state.world, attached(state)
        machine.check(before, after)
    else:
        outcome = machine.change(attached)
        before, after = outcome.before, outcome.after
    policies = tuple(_attached(before, one) for one in found)
    # What is the same may have been flushed, and is to hold when this returns.
    changed = {one.vpc for one in policies if one.changed}
    same = dict.fromkeys(one.vpc for one in policies if one.vpc not in changed)
    repaired = () if dry_run else machine.assure(same)
    return _changed(machine, before, after, policies, warnings, repaired, dry_run)


def clear_policy(machine: Machine, vpc: str, subnet: str, dry_run: bool) -> PolicyChange:
    """Detach the policy of a subnet, or with ``*`` the VPC's own."""
    from vpcctl.model import operations

    if dry_run or machine.rehearsing:
        before = machine.load().world
        after = operations.clear_policy(before, vpc, subnet)
        machine.check(before, after)
    else:
        outcome = machine.change(lambda state: operations.clear_policy(state.world, vpc, subnet))
        before, after = outcome.before, outcome.after
    return _changed(machine, before, after, (), [])


def show_policies(machine: Machine, vpc: str, subnet: str | None, hits: bool) -> tuple[PolicyView, ...]:
    """The policies of a VPC and its subnets, or of one of them; with `hits` the kernel is asked for the counters.

    A VPC without a policy of its own is shown only if it is asked for.
    """
    from vpcctl.engine.rulesets import loaded_objects

    found = machine.load().world.vpc(vpc)
    if subnet is None:
        names = [*([] if found.policy is None else [WHOLE_VPC]), *found.subnets_by_name]
    else:
        found.policy_of(subnet)
        names = [subnet]
    objects = loaded_objects(machine, vpc) if hits else None
    return tuple(
        PolicyView(
            name,
            found.policy_of(name),
            None if objects is None else _hits(objects, found, name),
            name != WHOLE_VPC and found.policy is not None,
        )
        for name in names
    )


def _hits(objects: list[dict[str, Any]], vpc: Vpc, subnet: str) -> Hits:
    from vpcctl.compiler.hit_counts import hits

    return {side: hits(objects, vpc, subnet, side) for side in Direction}


def _attached(before: World, one: Attachment) -> AttachedPolicy:
    return AttachedPolicy(one.vpc, one.subnet, one.policy, before.vpc(one.vpc).policy_of(one.subnet) != one.policy)


def _changed(
    machine: Machine,
    before: World,
    after: World,
    attached: tuple[AttachedPolicy, ...],
    warnings: list[str],
    repaired: tuple[Difference, ...] = (),
    dry_run: bool = False,
) -> PolicyChange:
    from vpcctl.analysis.impact import MOST_HINT_PARTS, forecast
    from vpcctl.analysis.reachability import MOST_PARTS

    host, more = machine.host()
    subnets = [(one.vpc, one.subnet) for one in attached]
    # Who changes something waits for the traffic that changes; who only asks has time for hints.
    expected = forecast(before, after, subnets, host, hints=MOST_PARTS if dry_run else MOST_HINT_PARTS)
    return PolicyChange(before, after, attached, expected, (*warnings, *more), repaired)
