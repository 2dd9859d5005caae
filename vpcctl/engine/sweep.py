"""Forget the tracked flows that are in the way of the world in force (ADR 14).

It follows each load of a ruleset, and may be done again at any time.  Where nothing is tracked, nothing more is
imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from vpcctl import names

if TYPE_CHECKING:
    from vpcctl.model.network import World
    from vpcctl.model.policy import Network
    from vpcctl.resources.kinds import Item
    from vpcctl.resources.protocol import Kernel


def sweep(
    kernel: Kernel,
    world: World,
    scopes: Iterable[str],
    items: Iterable[Item],
    before: World | None = None,
    local: Iterable[Network] = (),
    former: World | None = None,
    reserved: Collection[int] = (),
    newly_reserved: Collection[int] = (),
) -> int:
    """Forget what is in the way of `world`; the number of entries.

    `scopes` are the VPCs whose rulesets were loaded, `items` those of the world, and `before` is the world that was in
    force: None where that is not known, then every entry of the host is looked at.  `local` are the host's addresses.
    `former` is the world whose instances the flows may be of, where that is not `before`.  `reserved` are the ports on
    which the host serves, `newly_reserved` those that were not in force with `before`.
    """
    swept = _with_peers(world, scopes)
    tracking = kernel.settled([*map(names.router_namespace, swept), None])
    if not tracking:
        return 0
    from vpcctl.engine.stale_flows import stale_flows

    found = stale_flows(kernel, world, swept, tracking, items, before, local, former, reserved, newly_reserved)
    for namespace, keys in found.items():
        kernel.forget(namespace, list(keys))
    return sum(map(len, found.values()))


def _with_peers(world: World, scopes: Iterable[str]) -> list[str]:
    """The VPCs of `scopes` that are there, and their peers: these track the same flows."""
    there = [vpc.name for vpc in world.vpcs]
    chosen = [name for name in scopes if name in there]
    return list(dict.fromkeys([*chosen, *(peer.name for name in chosen for peer in world.peers(name))]))
