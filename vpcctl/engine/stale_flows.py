"""Which tracked flows are in the way of the world in force, in the routers and in the host (ADR 14).

That depends on the world alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping

from vpcctl import names
from vpcctl.analysis import packetset
from vpcctl.analysis.tracking import (
    MOST_SELECTIONS,
    Court,
    HostCourt,
    Key,
    Selection,
    Tracked,
    beyond_uplink,
    changed_hands,
    key,
)
from vpcctl.model.network import NAT_PORTS, Publication, World, uplink_pair
from vpcctl.model.policy import UDP, Network
from vpcctl.model.protocols import PORTED
from vpcctl.resources.kinds import Item, Ruleset
from vpcctl.resources.protocol import Kernel

Keys = dict[str | None, dict[Key, None]]


def stale_flows(
    kernel: Kernel,
    world: World,
    swept: Iterable[str],
    tracking: Container[str | None],
    items: Iterable[Item],
    before: World | None,
    local: Iterable[Network],
    former: World | None,
    reserved: Collection[int],
    newly_reserved: Iterable[int],
) -> Keys:
    """The entries that are in the way of `world`, by namespace, of those namespaces that are in `tracking`.

    `swept` are the VPCs to look at; for the others see `sweep.sweep`.
    """
    swept = list(swept)
    changed = changed_hands(former or before or world, world)
    generations = {item.namespace: item.generation for item in items if isinstance(item, Ruleset)}
    found: Keys = defaultdict(dict)
    for name in swept:
        router = names.router_namespace(name)
        if router in tracking:
            court = Court(world, name, generations.get(router, 0), changed)
            for flow in kernel.flows(router):
                if court.objection(flow):
                    _note(found, world, name, court, flow)
    if None in tracking:
        host_court = HostCourt(world, local, reserved, former or before)
        for selection in _of_host(world, swept, before, newly_reserved):
            for flow in kernel.flows(None, selection):
                if host_court.objection(flow):
                    found[None][key(flow)] = None
    return found


def _note(found: Keys, world: World, name: str, court: Court, flow: Tracked) -> None:
    """Have the flow forgotten wherever it is tracked: here, and in the host or in the routers of the peers."""
    found[names.router_namespace(name)][key(flow)] = None
    if court.passes_uplink(flow):
        found[None][beyond_uplink(flow)] = None
    for peer in world.peers(name):
        found[names.router_namespace(peer.name)][key(flow)] = None


def _of_host(
    world: World, swept: list[str], before: World | None, newly_reserved: Iterable[int]
) -> Iterable[Selection | None]:
    """What to ask the host's connection tracking for; None is everything."""
    if before is None:
        return [None]
    served = _newly_served(newly_reserved)
    # If a port is published at other addresses, only the host's table differs.
    swept = [*swept, *(vpc.name for vpc in world.vpcs if _publications(before, vpc.name) != vpc.publications)]
    found = dict.fromkeys((*_addresses(world, before, swept), *_newly_published(world, before), *served))
    return found if len(found) <= MOST_SELECTIONS else [None]


def _addresses(world: World, before: World, swept: list[str]) -> Iterator[Selection]:
    """The flows of the uplinks of the VPCs that were loaded, and of those that are gone."""
    present = _routers(world)
    gone = {address for address in _routers(before).values() if address not in present.values()}
    for address in (*(present[name] for name in swept), *gone):
        yield Selection(source=address)
        yield Selection(source=address, of_replies=True)


def _routers(world: World) -> Mapping[str, int]:
    return {vpc.name: packetset.number(uplink_pair(world.transit, vpc.index)[1]) for vpc in world.vpcs}


def _newly_published(world: World, before: World) -> Iterator[Selection]:
    """The flows of any VPC that block a port that is published now."""
    known = {item.place for item in _published(before)}
    for item in _published(world):
        if item.place not in known:
            # With more than MOST_SELECTIONS, the whole table is read.
            for port in range(item.port, item.port + min(item.count, MOST_SELECTIONS + 1)):
                if item.protocol == UDP:
                    yield Selection(protocol=UDP, destination_port=port)
                if NAT_PORTS[0] <= port <= NAT_PORTS[1]:
                    yield Selection(protocol=item.protocol, destination_port=port, of_replies=True)


def _newly_served(ports: Iterable[int]) -> Iterator[Selection]:
    """The flows that block a port on which the host serves now."""
    for port in ports:
        for protocol in PORTED:
            yield Selection(protocol=protocol, destination_port=port, of_replies=True)


def _publications(world: World, vpc: str) -> tuple[Publication, ...]:
    found = world.vpcs_by_name.get(vpc)
    return found.publications if found else ()


def _published(world: World) -> Iterator[Publication]:
    return (item for vpc in world.vpcs for item in vpc.publications)
