"""What a desired world means on this host: the host's part, what closes first, and which tracked flows to delete."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

from vpcctl import names
from vpcctl.compiler.view import same_for_host
from vpcctl.engine.state import Record, State
from vpcctl.engine.sweep import sweep
from vpcctl.errors import ConflictError
from vpcctl.model.host import NO_PART, HostPart, OpenedLink
from vpcctl.model.network import World, uplink_pair
from vpcctl.model.policy import Network
from vpcctl.resources import topology
from vpcctl.resources.kinds import Item, Namespace, Ruleset
from vpcctl.resources.plan import Plan
from vpcctl.resources.protocol import HostFacts, Kernel, Status


def host_part(state: State, desired: World, facts: HostFacts, looking: bool = False) -> HostPart:
    """What the host adds to `desired`; ConflictError where its networks overlap new uplinks.

    With `looking`, the host's services are those on record.
    """
    _check_transit(state, desired, facts)
    if not desired.vpcs:
        return NO_PART
    reserved = state.host.reserved if looking else _reserved(state, desired, facts)
    opened, closed = _forwarding(state.host, facts)
    return HostPart(opened, reserved, closed, facts.forwarding)


def _forwarding(host: HostPart, facts: HostFacts) -> tuple[tuple[OpenedLink, ...], tuple[int, ...]]:
    """The links that forward because of us, and all that do not forward by themselves (see `HostPart`).

    `host` is what is on record.  Deleted links stay in it until something else changes: loading the host's table again
    for them would change nothing.
    """
    # If the whole host forwards now, whoever turned that on also decides between which links.
    known = () if facts.forwarding and not host.forwards else host.opened
    indices, names_only = {link.index for link in known}, {link.name for link in known if not link.index}
    present = {link.index for link in facts.links}
    ours = {link.index for link in facts.links if link.index in indices or link.name in names_only}
    opened = tuple(
        OpenedLink(link.index, link.name)
        for link in facts.links
        if link.index in ours or (link.leads_out and not link.forwards)
    )
    if not opened:
        return (), ()
    closed = {link.index for link in facts.links if not link.forwards} | {link.index for link in opened}
    if {link.index for link in opened} == indices & present and closed == present.intersection(host.closed):
        return known, host.closed
    return opened, tuple(sorted(closed))


def decided(desired: World, facts: HostFacts) -> World:
    """`desired` with an MTU for each new VPC that has none."""
    if all(vpc.mtu is not None for vpc in desired.vpcs):
        return desired
    vpcs = (dataclasses.replace(vpc, mtu=facts.mtu) if vpc.mtu is None else vpc for vpc in desired.vpcs)
    return dataclasses.replace(desired, vpcs=tuple(vpcs))


def _check_transit(state: State, desired: World, facts: HostFacts) -> None:
    """Refuse new uplinks whose addresses the host reaches by a route of its own, or has itself."""
    known = state.world.vpcs_by_name
    for vpc in desired.vpcs:
        if vpc.name in known:
            continue
        pair = uplink_pair(desired.transit, vpc.index)
        for network in facts.networks:
            taken = next((address for address in pair if address in network), None)
            if taken is not None:
                raise ConflictError(
                    f"the host has a route to {network}, which holds {taken}, the uplink's address of {vpc.name};"
                    f" choose another transit range than {desired.transit}: `vpcctl create-vpc --transit`, before the"
                    " first VPC exists"
                )


def _reserved(state: State, desired: World, facts: HostFacts) -> tuple[int, ...]:
    """The host's services that source NAT leaves alone.

    Programs start and stop, and the host's table is not loaded again for each: those on record are used until the table
    changes anyway.
    """
    if not desired.vpcs:
        return ()
    return state.host.reserved if same_for_host(state.world, desired) else facts.services


def closing(kernel: Kernel, state: State, after: Record) -> list[Ruleset]:
    """The closed rulesets of the VPCs that are deleted, as far as their routers exist."""
    going = [scope for scope in state.record if scope not in after and scope != topology.HOST]
    loaded = topology.Recorded(state.record)
    rulesets = [topology.closed_ruleset(scope, state.state_id, loaded) for scope in going]
    wanted = {ruleset.namespace for ruleset in rulesets}
    items = [item for scope in going for item in state.record[scope]]
    routers = [item for item in items if isinstance(item, Namespace) and item.namespace in wanted]
    there = {item.namespace for item, found in kernel.observe(routers).items() if found.state is Status.RIGHT}
    return [ruleset for ruleset in rulesets if ruleset.namespace in there]


def guard(state: State, desired: World, host: HostPart, after: Record) -> Ruleset | None:
    """The host's table for the uplinks of `desired` and those that are removed; None if none or all are removed."""
    going = [item for scope, items in state.record.items() if scope not in after for item in items]
    leaving = topology.uplinks(going)
    if not leaving or not desired.vpcs:
        return None
    return topology.host_ruleset(desired, host, state.state_id, topology.Recorded(state.record), leaving)


def forget(
    kernel: Kernel,
    plan: Plan,
    world: World,
    host: HostPart,
    after: Record,
    local: Iterable[Network],
    before: State | None = None,
    former: World | None = None,
) -> None:
    """Forget the tracked flows that contradict `world`; without a state `before` in every scope of `after`."""
    loaded = {step.item.namespace for step in plan.steps if isinstance(step.item, Ruleset)}
    if not loaded and before is not None:
        return
    scopes = [vpc.name for vpc in world.vpcs if vpc.name in after]
    if before is not None:
        scopes = [name for name in scopes if names.router_namespace(name) in loaded]
    swept = {*scopes, *(peer.name for name in scopes for peer in world.peers(name))}
    # Computed only if anything is tracked.
    items = (item for items in of(after, swept).values() for item in items)
    newly = sorted({*host.reserved} - {*(before.host.reserved if before else ())})
    sweep(kernel, world, scopes, items, before.world if before else None, local, former, host.reserved, newly)


def rulesets(record: Record) -> list[Ruleset]:
    """The rulesets on record."""
    return [item for items in record.values() for item in items if isinstance(item, Ruleset)]


def of(record: Record, scopes: Collection[str]) -> dict[str, Sequence[Item]]:
    """The items of `scopes` in `record`, in the order of the record."""
    return {scope: items for scope, items in record.items() if scope in scopes}


def merged(before: Record, after: Record) -> Record:
    """Every item of both records, the later one where both have it; the very same sequence where nothing is merged."""
    found = {**before, **after}
    for scope in before.keys() & after.keys():
        if before[scope] is not after[scope]:
            found[scope] = _merged_items(before[scope], after[scope])
    return found


def _merged_items(before: Sequence[Item], after: Sequence[Item]) -> Sequence[Item]:
    # If nothing is removed, the commit needs the same part as the intent, which is on disk already.
    keys = {item.key for item in after}
    return (*after, *(item for item in before if item.key not in keys))
