"""Single flows out of a question, to try its answer with real packets."""

from __future__ import annotations

from vpcctl.analysis import packetset
from vpcctl.analysis.explain import Answer
from vpcctl.analysis.packetset import Interval, Space
from vpcctl.analysis.query import End
from vpcctl.analysis.reachability import Reach
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import ICMP, ICMP_PROTOCOLS, PORT_PROTOCOLS, TCP, UDP, Address

# A probe for each class of packets would be too many to read.
MOST_WITNESSES = 8
LIKELY_PROTOCOLS = (TCP, UDP, ICMP)


def witnesses(reach: Reach, answer: Answer, outside: Address) -> list[tuple[Flow, bool]]:
    """Single flows out of a question, each with whether it should pass: real ones to try the answer with.

    The instances represent a subnet, its own addresses represent the host, and `outside` represents the internet as a
    whole.
    """
    sides = [_stand_ins(reach, end, outside) for end in (answer.source, answer.destination)]
    real = Space.of(*sides, None, None)
    if answer.source.zone.vpc is None:
        # Callers outside, and the host, can only call published ports.
        real &= reach.served(answer.destination.zone, answer.source.zone.is_host)
    found = []
    for packets, passes in ((answer.passing & real, True), ((answer.asked - answer.passing) & real, False)):
        for (source, _), (destination, _), protocols, ports in packets.boxes():
            low, high = protocols
            protocol = next((one for one in LIKELY_PROTOCOLS if low <= one <= high), low or high)
            # Nobody calls itself through the router, and nobody listens at port 0.
            if source == destination or not protocol or (protocol in PORT_PROTOCOLS and not ports[1]):
                continue
            port = max(ports[0], 1) if protocol in PORT_PROTOCOLS else ports[0] if protocol in ICMP_PROTOCOLS else None
            places = (
                Place(answer.source.zone.vpc, packetset.address(source)),
                Place(answer.destination.zone.vpc, packetset.address(destination)),
            )
            found.append((Flow(*places, protocol, port), passes))
    return found[:MOST_WITNESSES]


def _stand_ins(reach: Reach, end: End, outside: Address) -> list[Interval]:
    if end.zone.is_host:
        return [(low, low) for low, _ in end.addresses]
    if end.zone.vpc is None:
        return list(end.addresses) if end.single else [(packetset.number(outside), packetset.number(outside))]
    subnet = reach.world.vpc(end.zone.vpc).subnet(str(end.zone.subnet))
    asked = {end.single} if end.single else None
    return [
        (packetset.number(address),) * 2
        for instance in subnet.instances
        for address in instance.addresses
        if asked is None or address in asked
    ]
