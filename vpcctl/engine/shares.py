"""How much each VPC uses of shared resources: flows that the host tracks, and ports toward one remote service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from vpcctl import names
from vpcctl.analysis import packetset
from vpcctl.compiler.host_table import over_share
from vpcctl.model.network import World, uplink_pair
from vpcctl.resources.protocol import Kernel
from vpcctl.values import dataclass

# `status` shows a VPC that uses at least this part of its limit.
NEARLY = 0.8


@dataclass(frozen=True, slots=True)
class Share:
    """The flows that the host tracks for one VPC at present, and the packets that its limits dropped.

    The host's table counts each direction on its own and compares it with `max_flows`: `flows_out` are the flows that
    the VPC opened, `flows_in` those to its published ports.  `over_share` packets would have opened a flow above the
    limit and were dropped, since the host's table was loaded.  `no_port` packets found no free port toward their
    destination, since the router was created.
    """

    vpc: str
    flows_out: int
    flows_in: int
    max_flows: int
    max_ports: int
    over_share: int
    no_port: int

    @property
    def remarkable(self) -> bool:
        """Did the VPC lose packets, or is one direction near its limit?"""
        fullest = max(self.flows_out, self.flows_in)
        return bool(self.over_share or self.no_port) or fullest >= NEARLY * self.max_flows

    def __str__(self) -> str:
        lost = f"packets dropped: {self.over_share} over the limit, {self.no_port} without a free port"
        tracked = f"{self.flows_out} flows out and {self.flows_in} in"
        return f"VPC {self.vpc}: {tracked} tracked (limit {self.max_flows} in each direction); {lost}"

    def to_json(self) -> dict[str, Any]:
        """As `status --json` prints it; `flows` is the sum of both directions."""
        return {"vpc": self.vpc, "flows": self.flows_out + self.flows_in} | asdict(self)


def shares(kernel: Kernel, world: World, vpc: str | None = None) -> Iterator[Share]:
    """The share of each VPC, or of one."""
    chosen = [found for found in world.vpcs if vpc in (None, found.name)]
    addresses = {found.name: packetset.number(uplink_pair(world.transit, found.index)[1]) for found in chosen}
    flows, counters = kernel.tally(addresses.values()), kernel.counters()
    for found in chosen:
        outward, inward = flows.get(addresses[found.name], (0, 0))
        yield Share(
            found.name,
            outward,
            inward,
            found.max_flows,
            found.max_ports,
            counters.get(over_share(found.name), 0),
            kernel.refused(names.router_namespace(found.name)),
        )
