"""Prefixes that VPCs and the host both use.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_network

from vpcctl.doctor.finding import Finding
from vpcctl.model.network import World, overlap, uplink_addresses, uplink_pair
from vpcctl.model.policy import Network
from vpcctl.values import dataclass

SUBJECT = "prefixes"


@dataclass(frozen=True, slots=True)
class Reached:
    """A prefix that the host itself reaches on a link that is not ours: by an address, or by a route of any table."""

    network: Network
    link: str
    how: str

    def __str__(self) -> str:
        return f"{self.how} on {self.link}" if self.link else self.how


def findings(world: World, reached: Sequence[Reached]) -> Iterator[Finding]:
    """Compare the world's prefixes and the addresses of its uplinks with what the host itself reaches."""
    clashes = [*_of_transit(world, reached), *_of_vpcs(world, reached)]
    yield from clashes
    if not clashes:
        yield Finding("ok", SUBJECT, "no address or route of the host overlaps an uplink's addresses or a VPC's prefix")


def _of_transit(world: World, reached: Sequence[Reached]) -> Iterator[Finding]:
    # Without a VPC, the addresses that the first one will get.
    ends = uplink_addresses(world) or tuple(map(ip_network, uplink_pair(world.transit, 0)))
    found = [one for one in reached if any(overlap(one.network, end) for end in ends)]
    if not found:
        return
    if world.vpcs:
        words = (
            "Renumber that network, or move the VPCs: run `vpcctl destroy --all`, then create the first VPC again with"
            " --transit and an unused /16."
        )
    else:
        words = "Create the first VPC with --transit and an unused /16, such as 100.127.0.0/16."
    yield Finding(
        "fatal" if world.vpcs else "warning",
        SUBJECT,
        f"addresses of uplinks, from the transit range {world.transit}, are also in {_told(found)}",
        "The host's table drops every packet to or from the addresses of uplinks, except the packets of uplinks. The"
        " host cannot reach these addresses of that network, and a route to it may take the packets of VPCs.",
        words,
    )


def _of_vpcs(world: World, reached: Sequence[Reached]) -> Iterator[Finding]:
    for vpc in world.vpcs:
        for prefix in vpc.prefixes:
            found = [one for one in reached if overlap(one.network, prefix)]
            if found:
                yield Finding(
                    "warning",
                    SUBJECT,
                    f"{prefix} of VPC {vpc.name} overlaps {_told(found)}",
                    "Nothing leaks, but the VPC's instances cannot reach those addresses outside the VPC.",
                    "If the instances need them, give the VPC another prefix.",
                )


def _told(found: Sequence[Reached]) -> str:
    return ", ".join(f"{one.network} ({one})" for one in found)
