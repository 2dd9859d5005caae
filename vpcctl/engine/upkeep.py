"""Requests about the machine as a whole: compare the kernel with the desired state, and repair it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from vpcctl.engine.machine import Machine
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.engine.agent_lock import RunningAgent
    from vpcctl.engine.execution import Difference
    from vpcctl.engine.shares import Share
    from vpcctl.engine.state import Unconfirmed
    from vpcctl.errors import VpcctlError
    from vpcctl.model.network import World

# Namespaces that a warning names; the others are counted.
NAMED = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the kernel differs from the desired state, what each VPC uses of shared resources, and which agent runs.

    `unconfirmed` is the change that waits to be confirmed.
    """

    differences: tuple[Difference, ...]
    unfinished: bool
    shares: tuple[Share, ...]
    agent: RunningAgent | None = None
    unconfirmed: Unconfirmed | None = None

    @property
    def in_sync(self) -> bool:
        """Is the kernel as desired, and no change interrupted?"""
        return not self.differences and not self.unfinished


@dataclass(frozen=True, slots=True)
class Repair:
    """What was repaired; `resumed` is true if an interrupted change was resumed, or a reboot was made good.

    `warnings` say what a repair cannot do: move processes out of a namespace that lost its name.
    """

    differences: tuple[Difference, ...]
    resumed: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tended:
    """What the agent's repair did: what was repaired, and what failed, by place (see `places`).

    `complete` is false if a look at all VPCs is still due: something is pending, or the host's part is another one.
    """

    differences: tuple[Difference, ...]
    trouble: Mapping[str, VpcctlError]
    remarks: tuple[str, ...]
    warnings: tuple[str, ...]
    complete: bool


def status(machine: Machine, vpc: str | None) -> Comparison:
    """Compare what is desired with the kernel, for all VPCs or one; changes nothing."""
    from vpcctl.engine import agent_lock, convergence
    from vpcctl.engine.shares import shares

    state = machine.load()
    if vpc is not None:
        state.world.vpc(vpc)
    with machine.kernel() as kernel:
        differences = convergence.examine(state, kernel, None if vpc is None else [vpc])
        taken = tuple(shares(kernel, state.world, vpc))
    unfinished = state.pending is not None if vpc is None else state.changes(vpc)
    return Comparison(tuple(differences), unfinished, taken, agent_lock.running(machine.store), state.unconfirmed)


def repair(machine: Machine, vpc: str | None, adopt: bool) -> Repair:
    """Bring the kernel to the desired state; with `adopt` the record is first taken back from its copy."""

    from vpcctl.engine import reconciler

    told: list[str] = []

    def report(words: str) -> None:
        told.append(words)
        machine.remark(words)

    with machine.changing() as kernel:
        differences, world = reconciler.repair(machine.store, kernel, adopt, report, None if vpc is None else [vpc])
    # No process survives a reboot, and none ran in a namespace that was never completed.
    warnings = () if told else _stranded(differences, world)
    return Repair(tuple(differences), bool(told), warnings)


def tend(machine: Machine, vpcs: Collection[str] | None, patience: float) -> Tended:
    """Repair these VPCs, or all, and the host's part; failures of single places are returned.

    LockedError after `patience` seconds; other errors if nothing could be compared.
    """
    from vpcctl.engine import reconciler

    remarks: list[str] = []
    with machine.changing() as kernel:
        found, before = reconciler.tend(machine.store, kernel, remarks.append, vpcs, patience)
    after = found.state
    whole = vpcs is None or bool(remarks)
    complete = whole or (after.pending is None and (before.host, before.boot_id) == (after.host, after.boot_id))
    warnings = () if remarks else _stranded(found.differences, after.world)
    return Tended(tuple(found.differences), found.trouble, tuple(remarks), warnings, complete)


def _stranded(differences: Iterable[Difference], world: World) -> tuple[str, ...]:
    """A warning of the processes that may still run in namespaces whose names were removed."""
    from vpcctl.names import router_namespace
    from vpcctl.resources.kinds import Namespace
    from vpcctl.resources.protocol import Status

    routers = {router_namespace(vpc.name) for vpc in world.vpcs}
    made = [
        one.item.namespace
        for one in differences
        if isinstance(one.item, Namespace)
        and one.condition.state is Status.ABSENT
        and one.item.namespace not in routers
    ]
    if not made:
        return ()
    named = ", ".join(made[:NAMED]) + (f" and {len(made) - NAMED} more" if len(made) > NAMED else "")
    return (
        f"made again: {named}; processes that were started before still run in the old namespace, without a network:"
        " restart them (`lsns --type net` lists namespaces and their processes)",
    )
