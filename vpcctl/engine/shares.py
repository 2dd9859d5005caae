"""How much each VPC uses of shared resources: flows that the host tracks, and ports toward one remote service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vpcctl import names
from vpcctl.analysis import packetset
from vpcctl.compiler.host_table import over_share
from vpcctl.model.network import World, uplink_pair
from vpcctl.resources.protocol import Kernel

# `status` shows a VPC that uses at least this part of its limit.
NEARLY = 0.8


@dataclass(frozen=True, slots=True)
class Share:
    """What one VPC takes: `flows` that the host tracks for it at present, of at most `max_flows`.

    `over_share` packets began a flow above that share and were dropped, since the host's table was loaded; `no_port`
    packets found no free port toward their destination, since the router was made.
    """

    vpc: str
    flows: int
    max_flows: int
    max_ports: int
    over_share: int
    no_port: int

    @property
    def remarkable(self) -> bool:
        """Did the VPC lose something, or is it close to that?"""
        return bool(self.over_share or self.no_port) or self.flows >= NEARLY * self.max_flows

    def __str__(self) -> str:
        lost = f"packets dropped: {self.over_share} over the limit, {self.no_port} without a free port"
        return f"VPC {self.vpc}: {self.flows} flows tracked (limit {self.max_flows} in each direction); {lost}"


def shares(kernel: Kernel, world: World, vpc: str | None = None) -> Iterator[Share]:
    """The share of each VPC, or of one."""
    chosen = [found for found in world.vpcs if vpc in (None, found.name)]
    addresses = {found.name: packetset.number(uplink_pair(world.transit, found.index)[1]) for found in chosen}
    flows, counters = kernel.tally(addresses.values()), kernel.counters()
    for found in chosen:
        yield Share(
            found.name,
            flows.get(addresses[found.name], 0),
            found.max_flows,
            found.max_ports,
            counters.get(over_share(found.name), 0),
            kernel.refused(names.router_namespace(found.name)),
        )
