"""Random worlds in the lab that this runs in: the oracle, the packet space and the kernel are asked the same.

Run as a program with a seed and a number of seconds.  Each world follows the one before it in the same lab, so every
step is also a change of a live network.  A disagreement is made as small as possible and printed with the seed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from itertools import count, islice
from types import SimpleNamespace

from hypothesis import HealthCheck, assume, given, seed, settings

from tests import worlds
from tests.lab.golden_run import become, judge
from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import DESTINATION, SOURCE, Space
from vpcctl.analysis.reachability import HOST, SERVICES, Reach, Zone
from vpcctl.documents.diff import exported
from vpcctl.kernel.routes import read_host
from vpcctl.model import oracle
from vpcctl.model.host import Host
from vpcctl.model.network import World, uplink_pair
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import HIGHEST_PORT, ICMP_PROTOCOLS, PORT_PROTOCOLS

# Addresses of the internet on either side of where the worlds' prefixes divide it.
OUTSIDE, SIDE = tuple(packetset.number(ip_address(text)) for text in ("203.0.113.1", "203.0.113.128")), 126
# Addresses of the host as `test_witnesses` furnishes it, and of its networks' broadcasts.
HOSTS = tuple(
    packetset.number(ip_address(text))
    for text in "198.51.100.2 203.0.113.100 203.0.113.200 203.0.113.217 192.0.2.1 198.51.100.255 192.0.2.255".split()
)
MOST_FLOWS = 60
# Worlds for each seed, and how far apart the seeds of one run are, so that runs beside each other share none.
BATCH, SEEDS_APART = 5, 100


def main(number: int, seconds: float) -> dict[str, int]:
    names = "worlds", "flows", "passed", "to the host", "from the host", "by the host", "to ports of the host"
    counts = dict.fromkeys((*names, "by a policy of a VPC"), 0)
    deadline = time.monotonic() + seconds
    turns = count()

    def agree(world: World) -> None:
        world = _sure(world)
        turn = next(turns)
        outside = [*(first + turn % SIDE for first in OUTSIDE), HOSTS[turn % len(HOSTS)]]
        become(world)
        host = read_host()
        reach = Reach(world, host)
        flows = list(islice(_told_apart(witnesses(reach, outside)), MOST_FLOWS))
        assume(flows)
        results = judge(world, [SimpleNamespace(flow=flow) for flow in flows], host)
        for flow, result in zip(flows, results, strict=True):
            told = f"seed {number}: {flow}\n{json.dumps(exported(world))}"
            decision = oracle.decide(world, flow, host)
            assert modelled(reach, flow) is decision.allowed, f"oracle and space disagree; {told}"
            # The kernel limits how many ICMP errors it sends (icmp_ratelimit), so a reject may look like a deny.
            seen = {"allow"} if decision.allowed else {"deny", decision.stages[-1].action.value}
            if host.hears(flow.destination.address):
                # The gate in the router is asked before the host.
                seen.add("reject")
                counts["to the host"] += 1
                counts["to ports of the host"] += decision.allowed
            files = {f"{vpc.name}.json" for vpc in world.vpcs}
            counts["by a policy of a VPC"] += decision.stages[-1].origin.partition("#")[0] in files
            counts["from the host"] += host.has(flow.source.address)
            counts["by the host"] += decision.allowed and flow.source.vpc is None and not _internet(world, host, flow)
            assert result["verdict"] in seen, f"oracle and kernel disagree, {result}; {told}"
        counts["worlds"] += 1
        counts["flows"] += len(flows)
        counts["passed"] += sum(result["verdict"] == "allow" for result in results)

    chosen = settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    try:
        while time.monotonic() < deadline:
            seed(number)(chosen(given(worlds.worlds())(agree)))()
            number += SEEDS_APART
    finally:
        become(World())
    return counts


def _internet(world: World, host: Host, flow: Flow) -> bool:
    return not host.has(flow.source.address) and flow.source.address not in world.transit


def _sure(world: World) -> World:
    """`world` without limits, above which a verdict depends on when it is asked for."""
    for vpc in world.vpcs:
        for name, policy in vpc.policies:
            sides = {
                side: rules and tuple(dataclasses.replace(rule, limit=None) for rule in rules)
                for side, rules in (("ingress", policy.ingress), ("egress", policy.egress))
            }
            vpc = vpc.with_policy(name, dataclasses.replace(policy, **sides))
        world = world.with_vpc(vpc)
    return world


def _told_apart(flows: Iterable[Flow]) -> Iterator[Flow]:
    """Only one sender of each protocol without ports to an address of the internet.

    Source NAT has nothing but the addresses to tell such flows apart by: of two, the kernel drops the second.
    """
    seen: set[tuple] = set()
    for flow in flows:
        portless = flow.protocol not in PORT_PROTOCOLS | ICMP_PROTOCOLS
        if portless and flow.destination.vpc is None:
            if (flow.protocol, flow.destination.address) in seen:
                continue
            seen.add((flow.protocol, flow.destination.address))
        yield flow


def witnesses(reach: Reach, outside: Iterable[int]) -> Iterator[Flow]:
    """One flow out of every class of packets between instances, and from its upper end another one.

    `outside` are the addresses of the internet or the host, as numbers, that may take part.
    """
    beyond = [(number, number) for number in outside]
    world = reach.world
    for source, destination in reach.pairs():
        home = str(source.vpc or destination.vpc)
        ends = []
        for zone, end in ((source, SOURCE), (destination, DESTINATION)):
            own = reach.addresses(reach.zones[None, HOST], home, end) if (None, HOST) in reach.zones else ()
            there = [one for one in beyond if _within(one[0], own) is zone.is_host]
            if zone.is_host and end == SOURCE:
                # A caller of 127.0.0.1 has this address.
                there.append((packetset.number(uplink_pair(world.transit, world.vpc(home).index)[0]),) * 2)
            ends.append(there if zone.vpc is None else _members(world, zone))
        asked = SERVICES & Space.of(*ends, None, None)
        if source.vpc is None:
            asked &= reach.served(destination, by_host=source.is_host)
        if destination.is_host:
            # Try only published ports and their neighbours.
            asked &= Space.of(None, None, None, [_wider(item.ports) for one in world.vpcs for item in one.publications])
        passing = reach.allowed(source, destination)
        for part in (asked & passing, asked - passing):
            for box in part.boxes():
                for corner in {tuple(low for low, _ in box), tuple(high for _, high in box)}:
                    yield from _flow(source, destination, corner)


def _within(number: int, intervals: Iterable[tuple[int, int]]) -> bool:
    return any(low <= number <= high for low, high in intervals)


def _wider(span: tuple[int, int]) -> tuple[int, int]:
    return max(span[0] - 1, 1), min(span[1] + 1, HIGHEST_PORT)


def _flow(source: Zone, destination: Zone, corner: tuple[int, ...]) -> Iterator[Flow]:
    sender, receiver, protocol, port = corner
    if sender == receiver or protocol == 0 or (protocol in PORT_PROTOCOLS and port == 0):
        return
    told = port if protocol in PORT_PROTOCOLS | ICMP_PROTOCOLS else None
    yield Flow(
        Place(source.vpc, packetset.address(sender)),
        Place(destination.vpc, packetset.address(receiver)),
        protocol,
        told,
    )


def _members(world: World, zone: Zone) -> list[tuple[int, int]]:
    subnet = world.vpc(zone.vpc).subnet(str(zone.subnet))
    numbers = [packetset.number(address) for one in subnet.instances for address in one.addresses]
    return [(number, number) for number in numbers]


def modelled(reach: Reach, flow: Flow) -> bool:
    """What the packet space says of a flow."""
    zones = []
    for place in (flow.source, flow.destination):
        subnet = place.vpc and oracle.subnet_at(reach.world.vpc(place.vpc), place.address).name
        keys = [(place.vpc, subnet)] if place.vpc else [(None, None), (None, HOST)]
        zones.append([reach.zones[key] for key in keys if key in reach.zones])
    point = (
        packetset.number(flow.source.address),
        packetset.number(flow.destination.address),
        flow.protocol,
        flow.port or 0,
    )
    return any(point in reach.allowed(source, destination) for source in zones[0] for destination in zones[1])


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), float(sys.argv[2]))))
