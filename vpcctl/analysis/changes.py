"""What traffic a change of the world newly allows and denies.

Gates are computed only for packets that may fare differently in the two worlds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import Space
from vpcctl.analysis.reachability import Reach, Zone, meaning
from vpcctl.model.difference import differing
from vpcctl.model.network import World, effective
from vpcctl.model.policy import Action, Direction, EffectivePolicy, Policy, Rule
from vpcctl.values import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """What one pair of zones newly may and newly may not; the zones are those of the later world that has them."""

    source: Zone
    destination: Zone
    newly_allowed: Space
    newly_denied: Space


def changes(before: Reach, after: Reach) -> Iterator[Change]:
    """Every pair of zones between which the traffic that passes differs."""
    if before.world is after.world and before.host == after.host:
        return
    vpcs = concerned(before, after)
    # Instances of all VPCs can call what one VPC lets in at the host's ports.
    calls_differ = before.calls(vpcs) != after.calls(vpcs)
    if calls_differ:
        vpcs = {*before.world.vpcs_by_name, *after.world.vpcs_by_name}
    likeness = _Likeness(before, after, calls_differ)
    keys = {
        (source.key, destination.key): (source, destination)
        for reach in (before, after)
        for source, destination in reach.pairs_of(vpcs)
    }
    for source, destination in keys.values():
        among = likeness.apart(source, destination)
        if not among:
            continue
        old, new = (_allowed_in(reach, source, destination, among) for reach in (before, after))
        if old != new:
            yield Change(source, destination, new - old, old - new)


def touched(before: World, after: World) -> set[str]:
    """The VPCs that are not the very same value in both worlds; only these are compared."""
    ones, others = before.vpcs_by_name, after.vpcs_by_name
    return {name for name in {**ones, **others} if ones.get(name) is not others.get(name)}


def concerned(before: Reach, after: Reach) -> set[str]:
    """The VPCs whose traffic may differ: those touched, those newly peered or no longer, and the peers of both."""
    one, other = before.world, after.world
    if before.host != after.host or differing(one, other, ignoring=_BESIDE):
        return {*one.vpcs_by_name, *other.vpcs_by_name}
    ends = {name for peering in {*one.peerings} ^ {*other.peerings} for name in (peering.one, peering.other)}
    first = touched(one, other) | ends
    return first | {peer.name for world in (one, other) for name in first for peer in world.peers(name)}


def _allowed_in(reach: Reach, source: Zone, destination: Zone, among: Space) -> Space:
    if source.key not in reach.zones or destination.key not in reach.zones:
        return packetset.NOTHING
    return reach.allowed(reach.zones[source.key], reach.zones[destination.key], among)


# What does not change what passes: fields of the world besides its VPCs, of a VPC besides its subnets and its policy,
# of a subnet besides its policy, and of a peer.
_BESIDE = {"vpcs", "peerings", "invariants"}
_OF_VPC = {"subnets", "policy", "index", "max_flows", "max_ports", "hardened", "mtu"}
_OF_SUBNET = {"policy", "released"}
_OF_PEER = _OF_VPC | {"publications", "sets", "nat_protocols"}


# With up to so many changed rules, only their packets are examined; with more, examining all packets costs less.
_FEW_RULES = 64


class _Likeness:
    """Finds packets that certainly fare the same in two worlds, without computing a gate; remembers each answer."""

    def __init__(self, before: Reach, after: Reach, calls_differ: bool):
        self._worlds = before.world, after.world
        self._calls_differ = calls_differ
        self._whole = before.host == after.host and not differing(before.world, after.world, ignoring=_BESIDE)
        self._vpcs: dict[str, bool] = {}
        self._gates: dict[tuple[str, str, Direction], Space] = {}

    def apart(self, source: Zone, destination: Zone) -> Space:
        """The packets between two zones that may fare differently; all others certainly fare the same."""
        ends = ((source, Direction.EGRESS), (destination, Direction.INGRESS))
        gates = [(zone.vpc, str(zone.subnet), direction) for zone, direction in ends if zone.vpc is not None]
        if not self._whole or not all(self._of_vpc(vpc) for vpc, _, _ in gates):
            return packetset.EVERYTHING
        found = packetset.NOTHING
        for gate in gates:
            found |= self._of_gate(*gate)
        if destination.is_host and self._calls_differ:
            return packetset.EVERYTHING
        if source.is_host and not self._same_index(str(destination.vpc)):
            return packetset.EVERYTHING
        return found

    def _same_index(self, vpc: str) -> bool:
        one, other = (world.vpc(vpc).index for world in self._worlds)
        return one == other

    def _of_vpc(self, name: str) -> bool:
        if name not in self._vpcs:
            self._vpcs[name] = self._compared(name)
        return self._vpcs[name]

    def _compared(self, name: str) -> bool:
        one, other = (world.vpcs_by_name.get(name) for world in self._worlds)
        if one is None or other is None or differing(one, other, ignoring=_OF_VPC):
            return False
        # Names in policies may mean other addresses where subnets or instances came or went.
        if not _alike(one.subnets, other.subnets, _OF_SUBNET):
            return False
        before, after = (sorted(world.peers(name), key=lambda peer: peer.name) for world in self._worlds)
        return _alike(before, after, _OF_PEER)

    def _of_gate(self, vpc: str, subnet: str, direction: Direction) -> Space:
        key = (vpc, subnet, direction)
        if key not in self._gates:
            homes = [world.vpc(vpc) for world in self._worlds]
            one, other = (effective(home, home.subnet(subnet)) for home in homes)
            self._gates[key] = packetset.NOTHING if one == other else self._policies_apart(vpc, one, other, direction)
        return self._gates[key]

    def _policies_apart(
        self, vpc: str, one: EffectivePolicy | None, other: EffectivePolicy | None, direction: Direction
    ) -> Space:
        if one is None or other is None or one.default(direction) != other.default(direction):
            return packetset.EVERYTHING
        silent = Policy()
        pairs = [(old or silent, new or silent) for old, new in ((one.vpc, other.vpc), (one.subnet, other.subnet))]
        if any(old.sets != new.sets for old, new in pairs):
            return packetset.EVERYTHING
        # Each of the two policies keeps the order of the rules that stay.
        apart = [(new, _rules_apart(old, new, direction)) for old, new in pairs]
        if sum(len(rules) for _, rules in apart) > _FEW_RULES:
            return packetset.EVERYTHING
        # Names may mean something else in the other world only where the VPC differs, too.
        world = self._worlds[1]
        found = packetset.NOTHING
        for policy, rules in apart:
            for ranges in meaning(world, world.vpc(vpc), policy, rules):
                found |= Space.of(*ranges)
        return found


def _rules_apart(one: Policy, other: Policy, direction: Direction) -> list[Rule]:
    """The rules between what two policies have in common at their beginnings and ends."""
    if one is other:
        return []
    old, new = (policy.rules(direction) or () for policy in (one, other))
    alike = _common(old, new)
    old, new = old[alike:], new[alike:]
    alike = _common(old[::-1], new[::-1])
    return [*old[: len(old) - alike], *new[: len(new) - alike]]


def _common(ones: Sequence[Rule], others: Sequence[Rule]) -> int:
    """How many rules at the beginning of both match and do the same."""
    for number, pair in enumerate(zip(ones, others, strict=False)):
        one, other = (
            (rule.action is Action.ALLOW, rule.protocol, rule.ports, rule.icmp_types, rule.sources, rule.destinations)
            for rule in pair
        )
        if one != other:
            return number
    return min(len(ones), len(others))


def _alike(ones: Sequence[Any], others: Sequence[Any], beside: set[str]) -> bool:
    """Are two sequences of values the same, apart from the fields `beside`?"""
    if len(ones) != len(others):
        return False
    return not any(differing(*pair, ignoring=beside) for pair in zip(ones, others, strict=True))
