"""Does a policy block a path that was just opened, and which of its lines do?"""

from __future__ import annotations

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import Space
from vpcctl.analysis.reachability import DEFAULT, HOST, Reach, Zone, gate
from vpcctl.errors import TooFineError
from vpcctl.model.network import Publication
from vpcctl.model.policy import Direction

# Lines that are named; the others are counted.
NAMED = 3


def closed_way_out(reach: Reach, vpc: str, subnet: str) -> str:
    """The lines of a subnet's egress policy that deny all its traffic to the internet; empty if some of it passes."""
    zone = reach.zones[vpc, subnet]
    return _closed_by(reach, zone, Direction.EGRESS, reach.carried(zone, reach.zones[None, None]))


def closed_port(reach: Reach, vpc: str, publication: Publication) -> str:
    """The lines of the ingress policy that deny all traffic from outside to a published port; empty if some passes."""
    home = reach.world.vpc(vpc)
    outside = reach.zones[None, HOST if publication.local else None]
    zone = reach.zones[vpc, home.subnet_of(publication.instance).name]
    addresses = map(packetset.number, home.instance(publication.instance).addresses)
    port = Space.of(
        None,
        [(address, address) for address in addresses],
        [(publication.protocol, publication.protocol)],
        [publication.targets],
    )
    return _closed_by(reach, zone, Direction.INGRESS, reach.carried(outside, zone) & port)


def _closed_by(reach: Reach, zone: Zone, direction: Direction, packets: Space) -> str:
    vpc = reach.world.vpc(str(zone.vpc))
    try:
        found = gate(reach.world, vpc, vpc.subnet(str(zone.subnet)), direction, packets, reach.most)
        if found is None or not packets or packets & found.allowed:
            return ""
        deciding = packetset.values(found.deciding, packets)
    except TooFineError:
        return ""
    lines = []
    for decision in sorted(deciding, key=lambda one: (one == DEFAULT, one)):
        rule = found.rule(decision)
        lines.append(str(rule.origin if rule else found.policy.default_origin(direction)))
    more = len(lines) - NAMED
    return ", ".join(lines[:NAMED]) + (f" and {more} more" if more > 0 else "")
