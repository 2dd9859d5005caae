"""Live connections, read from connection tracking and named: those that are there, and those that begin and end."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vpcctl.engine.machine import Machine
from vpcctl.errors import GoneError
from vpcctl.names import router_namespace
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.analysis.live_flows import Census, LiveFlow
    from vpcctl.analysis.tracking import Counted, Selection
    from vpcctl.engine.state import State
    from vpcctl.kernel.flow_events import FlowListener
    from vpcctl.model.network import Vpc, World
    from vpcctl.resources.protocol import Kernel

# How often `follow` looks whether the record, or a router, is another one, in seconds: while nothing happens, and while
# flows begin and end.
IDLE, BUSY = 1.0, 0.05


@dataclass(frozen=True, slots=True)
class LiveFlows:
    """The flows of `vpcs` as they are read: iterate once.  `warnings` say what may be wrong with their names."""

    vpcs: tuple[str, ...]
    warnings: tuple[str, ...]
    entries: Iterator[LiveFlow]

    def __iter__(self) -> Iterator[LiveFlow]:
        return self.entries


@dataclass(frozen=True, slots=True)
class FlowEvent:
    """A flow that began, or ended, at a `time` in seconds since 1970."""

    time: float
    began: bool
    flow: LiveFlow


@dataclass(frozen=True, slots=True)
class FlowEvents:
    """What happens in the routers of VPCs from now on, without end; `vpcs` are those of the moment of the call."""

    vpcs: tuple[str, ...]
    entries: Iterator[FlowEvent]

    def __iter__(self) -> Iterator[FlowEvent]:
        return self.entries


def flows(machine: Machine, vpc: str | None, instance: str | None) -> LiveFlows:
    """The live flows of all VPCs, of one, or of one instance of it."""
    state = machine.load()
    chosen = _chosen(state.world, vpc, instance)
    censuses, warnings = _censuses(machine, state.world, chosen)
    return LiveFlows(tuple(censuses), warnings, _listed(machine, censuses, _addresses(chosen, instance)))


def _listed(machine: Machine, censuses: dict[str, Census], addresses: frozenset[int]) -> Iterator[LiveFlow]:
    """Each flow as it is read.  A flow between two of the VPCs is in both routers, and comes once."""
    seen: set[object] = set()
    with machine.kernel() as kernel:
        for name, census in censuses.items():
            for counted in _entries(kernel, router_namespace(name), addresses):
                flow = census.described(counted)
                ends = (flow.source_vpc, flow.destination_vpc)
                if None not in ends and ends[0] != ends[1] and censuses.keys() >= set(ends):
                    key = (ends, counted.flow.protocol, counted.flow.original)
                    if key in seen:
                        seen.remove(key)
                        continue
                    seen.add(key)
                yield flow


def _entries(kernel: Kernel, router: str, addresses: frozenset[int]) -> Iterator[Counted]:
    """The entries of a router, or those with an end among `addresses`, each once."""
    from vpcctl.analysis.tracking import Selection

    selections: list[Selection | None] = [
        Selection(source=address, of_replies=reply) for reply in (False, True) for address in sorted(addresses)
    ]
    for selection in selections or [None]:
        for counted in kernel.counted(router, selection):
            if selection is None or not selection.of_replies or counted.flow.original.source not in addresses:
                yield counted


def follow(machine: Machine, vpc: str | None, instance: str | None, lost: Callable[[str], None]) -> FlowEvents:
    """The flows that begin and end from now on; `lost` is called with a VPC whose events came too fast to be read."""
    from vpcctl.kernel.linux import require_privilege

    require_privilege()
    following = _Following(machine, vpc, instance)
    return FlowEvents(tuple(following.censuses), following.events(lost))


class _Following:
    """The routers that are listened to, with the names that the record has now."""

    def __init__(self, machine: Machine, vpc: str | None, instance: str | None):
        self._machine, self._vpc, self._instance = machine, vpc, instance
        self.censuses: dict[str, Census] = {}
        self._addresses: frozenset[int] = frozenset()
        self._state: State | None = None
        self._listeners: dict[str, FlowListener] = {}
        self._poll = select.poll()
        self.look()

    def look(self) -> None:
        """Learn of other names, policies and VPCs, and listen where it is possible now."""
        state = self._machine.load()
        if state is not self._state:
            chosen = _chosen(state.world, self._vpc, self._instance)
            self.censuses, _ = _censuses(self._machine, state.world, chosen)
            self._addresses = _addresses(chosen, self._instance)
            self._state = state
        for name, listener in list(self._listeners.items()):
            # An open socket would keep the namespace of a deleted VPC alive.
            if name not in self.censuses or not listener.current:
                self._drop(name)
        for name in self.censuses.keys() - self._listeners.keys():
            # A router that is missing is made again by a repair.
            with contextlib.suppress(GoneError):
                self._hear(name)

    def _hear(self, name: str) -> None:
        from vpcctl.kernel.flow_events import FlowListener

        self._listeners[name] = FlowListener(router_namespace(name))
        self._poll.register(self._listeners[name], select.POLLIN)

    def _drop(self, name: str) -> None:
        listener = self._listeners.pop(name)
        self._poll.unregister(listener)
        listener.close()

    def events(self, lost: Callable[[str], None]) -> Iterator[FlowEvent]:
        """What happens, without end."""
        looked = time.monotonic()
        try:
            while True:
                ready = {descriptor for descriptor, _ in self._poll.poll(IDLE * 1000)}
                if time.monotonic() >= looked + BUSY:
                    self.look()
                    looked = time.monotonic()
                heard = [(name, one.read()) for name, one in self._listeners.items() if one.fileno() in ready]
                for name, found in heard:
                    if found.lost:
                        lost(name)
                    for happened in found.events:
                        flow = self._described(name, happened.flow)
                        if flow is not None:
                            yield FlowEvent(time.time(), happened.began, flow)
        finally:
            for name in list(self._listeners):
                self._drop(name)

    def _described(self, name: str, counted: Counted) -> LiveFlow | None:
        """The flow; None if nobody asked for it, or if the router of the peer that opened it reports it."""
        ends = (counted.flow.original.source, counted.flow.reply.source)
        if self._addresses and self._addresses.isdisjoint(ends):
            return None
        flow = self.censuses[name].described(counted)
        return None if flow.source_vpc != name and flow.source_vpc in self._listeners else flow


def _chosen(world: World, vpc: str | None, instance: str | None) -> dict[str, Vpc]:
    """The VPCs that were asked for; ConflictError if the VPC, or its instance, is not there."""
    if vpc is None:
        return dict(world.vpcs_by_name)
    found = world.vpc(vpc)
    if instance is not None:
        found.instance(instance)
    return {vpc: found}


def _addresses(chosen: dict[str, Vpc], instance: str | None) -> frozenset[int]:
    """The addresses of the instance that was asked for; none if all flows were."""
    from vpcctl.analysis import packetset

    if instance is None:
        return frozenset()
    return frozenset(packetset.number(one) for vpc in chosen.values() for one in vpc.instance(instance).addresses)


def _censuses(machine: Machine, world: World, chosen: dict[str, Vpc]) -> tuple[dict[str, Census], tuple[str, ...]]:
    from vpcctl.analysis.live_flows import Census, Verdicts
    from vpcctl.analysis.reachability import Reach

    host, warnings = machine.host()
    verdicts = Verdicts(Reach(world, host))
    return {name: Census(verdicts, name) for name in chosen}, warnings
