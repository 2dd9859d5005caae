"""The rules of one gate as boxes: names resolved, the own side narrowed to the subnet, ranges and prefixes joined.

A rule is the product of its lists.  It is multiplied out to boxes where they are few, for all boxes of one shape share
one lookup; where they are many it stays a product, which costs a lookup of its own and the sum of its lists.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import TypeGuard, TypeVar

from vpcctl.compiler.effort import Effort
from vpcctl.compiler.first_match import Box, Prefix, Product
from vpcctl.compiler.view import View
from vpcctl.model.network import Subnet, within
from vpcctl.model.policy import Direction, EffectivePolicy, Endpoint, Network, Policy, Range, Rule, joined
from vpcctl.values import dataclass

_F = TypeVar("_F")
# The values of one field that a rule matches; ANYWHERE is all of them.
Anywhere = tuple[None]
Prefixes = tuple[Prefix, ...] | Anywhere
Spans = tuple[Range, ...] | Anywhere
ANYWHERE: Anywhere = (None,)
# A rule of so many boxes is always multiplied out.
FEW = 64
# A gate of so many boxes is; beyond that, rules that have a list in common leave it in one set.
MANY = 32_768


@dataclass(frozen=True, slots=True)
class Lists:
    """A rule's match as lists whose product it is; each is of one IP version, or (None,) for any."""

    rule: int
    version: int | None
    peers: Prefixes
    owns: Prefixes
    spans: Spans

    @property
    def boxes(self) -> int:
        """How many boxes it comes to."""
        return len(self.peers) * len(self.owns) * len(self.spans)

    @property
    def parts(self) -> int:
        """How long its lists are together."""
        return len(self.peers) + len(self.owns) + len(self.spans)


def matches(
    view: View, subnet: Subnet, policy: EffectivePolicy, direction: Direction, verdicts: Sequence[str], effort: Effort
) -> Iterator[Box | Product]:
    """Every rule of the subnet's effective `policy` as disjunct boxes or products, in their order.

    `verdicts` says what a match of each does.
    """
    rules = policy.rules(direction)
    found = list(_lists(view, subnet, policy, direction, effort))
    shared = _shared(found)
    there: set[tuple[object, ...]] = set()
    for lists in found:
        effort.rule, rule, verdict = lists.rule, rules[lists.rule], verdicts[lists.rule]
        unsure = rule.limit is not None
        if lists.boxes > FEW and (lists.boxes > 2 * lists.parts or shared & {lists.peers, lists.owns}):
            for part in (lists.peers, lists.owns, (rule.protocol, *lists.spans)):
                effort.take(0 if part in there else len(part))
                there.add(part)
            assert lists.version is not None, "what is of no version has no list of prefixes, and too few boxes"
            peers = lists.peers if _listed(lists.peers) else None
            owns = lists.owns if _listed(lists.owns) else None
            spans = lists.spans if _listed(lists.spans) else None
            yield Product(lists.version, peers, owns, rule.protocol, spans, verdict, lists.rule, unsure)
        else:
            effort.take(lists.boxes)
            if lists.boxes == 1:
                yield Box(lists.peers[0], lists.owns[0], rule.protocol, lists.spans[0], verdict, lists.rule, unsure)
                continue
            for peer, own, span in product(lists.peers, lists.owns, lists.spans):
                yield Box(peer, own, rule.protocol, span, verdict, lists.rule, unsure)


def _listed(field: tuple[_F, ...] | Anywhere) -> TypeGuard[tuple[_F, ...]]:
    """Is the field limited to certain values?"""
    return field != ANYWHERE


Endpoints = tuple[Endpoint, ...] | None
_Reader = Callable[[View, Subnet, Policy, Endpoints], Prefixes]


def _lists(
    view: View, subnet: Subnet, policy: EffectivePolicy, direction: Direction, effort: Effort
) -> Iterator[Lists]:
    first = 0
    # The words of each policy have their own meaning.
    for written, rules in policy.parts(direction):
        yield from _lists_of(view, subnet, written, enumerate(rules, first), direction, effort)
        first += len(rules)


def _lists_of(
    view: View,
    subnet: Subnet,
    policy: Policy,
    rules: Iterable[tuple[int, Rule]],
    direction: Direction,
    effort: Effort,
) -> Iterator[Lists]:
    known: dict[tuple[_Reader, Endpoints], Prefixes] = {}

    def resolved(read: _Reader, endpoints: Endpoints) -> Prefixes:
        # Prefixes are as good as resolved; names may stand for long lists, and in many rules.
        if endpoints is None or (len(endpoints) == 1 and endpoints[0].prefix is not None):
            return read(view, subnet, policy, endpoints)
        key = read, endpoints
        if key not in known:
            known[key] = read(view, subnet, policy, endpoints)
            effort.spend(len(known[key]))
        return known[key]

    versions = view.vpc.versions
    for number, rule in rules:
        effort.rule = number
        here, there = rule.destinations, rule.sources
        if direction is Direction.EGRESS:
            here, there = there, here
        ports = rule.icmp_types if rule.icmp_types is not None else rule.ports
        spans: Spans = ANYWHERE if ports is None else tuple(joined(ports))
        peers, owns = resolved(_peers, there), resolved(_own, here)
        if peers == ANYWHERE and owns == ANYWHERE:
            yield Lists(number, None, peers, owns, spans)
            continue
        for version in versions:
            pair = _of_version(peers, version), _of_version(owns, version)
            if all((*pair, spans)):
                yield Lists(number, version, *pair, spans)


def _of_version(prefixes: Prefixes, version: int) -> Prefixes:
    if prefixes is ANYWHERE or not _listed(prefixes) or all(prefix[0] == version for prefix in prefixes):
        return prefixes
    return tuple(prefix for prefix in prefixes if prefix[0] == version)


def _shared(found: list[Lists]) -> set[Prefixes]:
    """The long lists of prefixes that several rules have, where all rules together come to many boxes."""
    if sum(lists.boxes for lists in found) <= MANY:
        return set()
    times = Counter(part for lists in found for part in (lists.peers, lists.owns) if len(part) > 1)
    return {part for part, count in times.items() if count > 1}


def _resolved(view: View, policy: Policy, endpoints: tuple[Endpoint, ...]) -> Iterator[Network]:
    versions = view.vpc.versions
    for endpoint in endpoints:
        for prefix in view.resolve(endpoint, policy):
            if prefix.version in versions:
                yield prefix


def _peers(view: View, subnet: Subnet, policy: Policy, endpoints: Endpoints) -> Prefixes:
    if endpoints is None or any(endpoint.kind == "any" for endpoint in endpoints):
        return ANYWHERE
    prefixes = _joined(_resolved(view, policy, endpoints))
    if len(prefixes) == 1 and prefixes[0][2]:
        return (prefixes[0],)
    if any(length == 0 for _, _, length in prefixes) and len(view.vpc.versions) == 1:
        return ANYWHERE
    # In an order of their own, so that the order of a user's list does not show in the text.
    return tuple(sorted(set(prefixes)))


def _own(view: View, subnet: Subnet, policy: Policy, endpoints: Endpoints) -> Prefixes:
    """The own side narrowed to what lies in the subnet; all of the subnet is no narrowing."""
    if endpoints is None or any(endpoint.kind == "any" for endpoint in endpoints):
        return ANYWHERE
    inside = []
    for prefix in _resolved(view, policy, endpoints):
        for mine in subnet.prefixes:
            if within(mine, prefix):
                if len(subnet.prefixes) == 1:
                    return ANYWHERE
                inside.append(mine)
            elif within(prefix, mine):
                inside.append(prefix)
    return tuple(sorted(_joined(inside)))


def _joined(prefixes: Iterable[Network]) -> list[Prefix]:
    """The fewest prefixes with the same addresses, so that the boxes of one rule never overlap."""
    found = list(prefixes)
    if len(found) == 1:
        return [_prefix(found[0])]
    fours = ipaddress.collapse_addresses(one for one in found if isinstance(one, ipaddress.IPv4Network))
    sixes = ipaddress.collapse_addresses(one for one in found if isinstance(one, ipaddress.IPv6Network))
    return [*map(_prefix, fours), *map(_prefix, sixes)]


def _prefix(network: Network) -> Prefix:
    return (network.version, int(network.network_address), network.prefixlen)
