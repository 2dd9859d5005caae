"""The rules of one gate as boxes: names resolved, the own side narrowed to the subnet, ranges and prefixes joined."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from vpcctl.compiler.levels import Box, Prefix
from vpcctl.compiler.view import View
from vpcctl.model import Network, Subnet
from vpcctl.policy import Direction, Endpoint, joined

ANYWHERE: tuple[Prefix | None, ...] = (None,)


def boxes(view: View, subnet: Subnet, direction: Direction, verdicts: Sequence[str]) -> Iterator[Box]:
    """Every rule as disjunct boxes, in the order of the document; `verdicts` says what a match of each does."""
    for number, (rule, verdict) in enumerate(zip(subnet.policy.rules(direction) or (), verdicts, strict=True)):
        here, there = rule.destinations, rule.sources
        if direction is Direction.EGRESS:
            here, there = there, here
        ports = rule.icmp_types if rule.icmp_types is not None else rule.ports
        spans = (None,) if ports is None else joined(ports)
        for peer, own, span in product(_peers(view, subnet, there), _own(view, subnet, here), spans):
            if peer is None or own is None or peer[0] == own[0]:
                yield Box(peer, own, rule.protocol, span, verdict, number, rule.limit is not None)


def _resolved(view: View, subnet: Subnet, endpoints: tuple[Endpoint, ...]) -> Iterator[Network]:
    for endpoint in endpoints:
        for prefix in view.resolve(endpoint, subnet.policy):
            if prefix.version in view.vpc.versions:
                yield prefix


def _peers(view: View, subnet: Subnet, endpoints: tuple[Endpoint, ...] | None) -> tuple[Prefix | None, ...]:
    if endpoints is None or any(endpoint.kind == "any" for endpoint in endpoints):
        return ANYWHERE
    prefixes = _joined(_resolved(view, subnet, endpoints))
    if any(length == 0 for _, _, length in prefixes) and len(view.vpc.versions) == 1:
        return ANYWHERE
    # In an order of their own, so that the order of a user's list does not show in the text.
    return tuple(sorted(set(prefixes)))


def _own(view: View, subnet: Subnet, endpoints: tuple[Endpoint, ...] | None) -> tuple[Prefix | None, ...]:
    """The own side narrowed to what lies in the subnet; all of the subnet is no narrowing."""
    if endpoints is None or any(endpoint.kind == "any" for endpoint in endpoints):
        return ANYWHERE
    inside = []
    for prefix in _resolved(view, subnet, endpoints):
        for mine in subnet.prefixes:
            if prefix.version == mine.version and mine.subnet_of(prefix):
                if len(subnet.prefixes) == 1:
                    return ANYWHERE
                inside.append(_prefix(mine))
            elif prefix.version == mine.version and prefix.subnet_of(mine):
                inside.append(_prefix(prefix))
    return tuple(sorted(set(inside)))


def _joined(prefixes: Iterable[Network]) -> list[Prefix]:
    """The fewest prefixes with the same addresses, so that the boxes of one rule never overlap."""
    found = list(prefixes)
    if len(found) == 1:
        return [_prefix(found[0])]
    return [
        _prefix(prefix)
        for version in (4, 6)
        for prefix in ipaddress.collapse_addresses(one for one in found if one.version == version)
    ]


def _prefix(network: Network) -> Prefix:
    return (network.version, int(network.network_address), network.prefixlen)
