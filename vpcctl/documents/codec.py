"""Values as JSON and back: the form in which the state file keeps a world, and a policy in the words of the language.

A kept world is an environment with what we allocated beside it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vpcctl.documents.lazy_lists import Damaged, Kept
from vpcctl.errors import StateError
from vpcctl.model.host import HostPart
from vpcctl.model.network import (
    Instance,
    Peering,
    Publication,
    Subnet,
    Vpc,
    World,
)
from vpcctl.model.policy import PROTOCOL_NAMES, Action, Direction, Network, Policy, Rule


def rule_to_json(rule: Rule) -> dict[str, Any]:
    """The rule in the words of the language, its origin left out."""
    document: dict[str, Any] = {"action": rule.action.value}
    if rule.protocol is not None:
        document["protocol"] = PROTOCOL_NAMES.get(rule.protocol, rule.protocol)
    if rule.ports is not None:
        document["port"] = _one_or_many([low if low == high else f"{low}-{high}" for low, high in rule.ports])
    if rule.icmp_types is not None:
        document["icmp_type"] = _one_or_many([low for low, _ in rule.icmp_types])
    for field, endpoints in (("source", rule.sources), ("destination", rule.destinations)):
        if endpoints is not None:
            document[field] = _one_or_many(list(map(str, endpoints)))
    if rule.log:
        document["log"] = True
    if rule.limit:
        document["limit"] = str(rule.limit)
    if rule.description:
        document["description"] = rule.description
    return document


def _one_or_many(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


Encode = Callable[[Sequence[Any]], list[Any]]


def _rules_to_json(rules: Sequence[Rule]) -> list[Any]:
    return list(map(rule_to_json, rules))


def _prefixes_to_json(prefixes: Sequence[Network]) -> list[Any]:
    return list(map(str, prefixes))


def policy_to_json(
    policy: Policy, rules: Encode = _rules_to_json, prefixes: Encode = _prefixes_to_json
) -> dict[str, Any]:
    """The policy in the words of the language; where it came from is left out.

    `rules` and `prefixes` encode its lists.
    """
    document: dict[str, Any] = {}
    if policy.description:
        document["description"] = policy.description
    if policy.sets:
        document["sets"] = {name: prefixes(values) for name, values in policy.sets}
    for direction in Direction:
        values = policy.rules(direction)
        if values is not None:
            document[direction.value] = rules(values)
    if policy.defaults:
        document["default"] = {side.value: action.value for side, action in policy.defaults}
    return document


def world_to_json(world: World) -> dict[str, Any]:
    """The world as the state file keeps it."""
    return {
        "transit": str(world.transit),
        "peerings": [[peering.one, peering.other] for peering in world.peerings],
        "vpcs": [_vpc_to_json(vpc) for vpc in world.vpcs],
    }


def host_to_json(host: HostPart) -> dict[str, Any]:
    """What the state file keeps of the host."""
    return {"opened": [list(pair) for pair in host.opened], "reserved": list(host.reserved)}


def host_from_json(document: dict[str, Any]) -> HostPart:
    """What `host_to_json` wrote; KeyError, TypeError or ValueError if it is none."""
    return HostPart(tuple((link, value) for link, value in document["opened"]), tuple(document["reserved"]))


def _unless_kept(encode: Encode) -> Encode:
    """`encode` for lists that are not on record yet; others are written as they were read."""
    return lambda values: values.kept if isinstance(values, Kept) else encode(values)


_keep_rules, _keep_prefixes = _unless_kept(_rules_to_json), _unless_kept(_prefixes_to_json)


def _vpc_to_json(vpc: Vpc) -> dict[str, Any]:
    return {
        "name": vpc.name,
        "prefixes": list(map(str, vpc.prefixes)),
        "index": vpc.index,
        "sets": {name: _keep_prefixes(prefixes) for name, prefixes in vpc.sets},
        "publish": [_publication_to_json(publication) for publication in vpc.publications],
        "hardened": vpc.hardened,
        "max_flows": vpc.max_flows,
        "max_ports": vpc.max_ports,
        "nat_protocols": list(vpc.nat_protocols),
        "subnets": [
            {
                "name": subnet.name,
                "prefixes": list(map(str, subnet.prefixes)),
                "public": subnet.public,
                "nat_gateway": subnet.nat_gateway,
                "instances": [
                    {"name": one.name, "addresses": list(map(str, one.addresses)), "mac": one.mac}
                    for one in subnet.instances
                ],
                "policy": subnet.policy
                and {
                    "file": subnet.policy.file,
                    "pointer": subnet.policy.pointer,
                    "document": policy_to_json(subnet.policy, _keep_rules, _keep_prefixes),
                },
                "released": list(map(str, subnet.released)),
            }
            for subnet in vpc.subnets
        ],
    }


def _publication_to_json(item: Publication) -> dict[str, Any]:
    return {
        "protocol": item.protocol,
        "port": item.port,
        "instance": item.instance,
        "target_port": item.target_port,
    }


def _damaged(error: Exception) -> Exception:
    return StateError(f"the state file is damaged ({error})")


def world_from_json(document: dict[str, Any], damaged: Damaged = _damaged) -> World:
    """The world that `world_to_json` wrote; KeyError, TypeError, ValueError or VpcctlError if it is none.

    Rules and sets are decoded when they are asked for; what `damaged` makes of an error is raised then.
    """
    return World(
        tuple(_vpc_from_json(vpc, damaged) for vpc in document["vpcs"]),
        tuple(Peering(*pair) for pair in document["peerings"]),
        ipaddress.ip_network(document["transit"]),
    )


def decode(world: World) -> None:
    """Decode all that `world_from_json` left; it raises what is wrong with it."""
    for kept in _lists(world):
        if isinstance(kept, Kept):
            _ = kept.values


def _lists(world: World) -> Iterator[Any]:
    """The rules and sets of a world."""
    for vpc in world.vpcs:
        policies = [subnet.policy for subnet in vpc.subnets if subnet.policy is not None]
        for _, prefixes in (*vpc.sets, *(one for policy in policies for one in policy.sets)):
            yield prefixes
        for policy in policies:
            yield from map(policy.rules, Direction)


def _vpc_from_json(document: dict[str, Any], damaged: Damaged) -> Vpc:
    return Vpc(
        document["name"],
        _prefixes(document["prefixes"]),
        document["index"],
        tuple(_subnet_from_json(subnet, damaged) for subnet in document["subnets"]),
        tuple(Publication(**publication) for publication in document["publish"]),
        _sets(document["sets"], damaged),
        document["max_flows"],
        document["max_ports"],
        tuple(document["nat_protocols"]),
        document["hardened"],
    )


def _subnet_from_json(document: dict[str, Any], damaged: Damaged) -> Subnet:
    kept = document["policy"]
    return Subnet(
        document["name"],
        _prefixes(document["prefixes"]),
        document["public"],
        document["nat_gateway"],
        tuple(
            Instance(one["name"], tuple(map(ipaddress.ip_address, one["addresses"])), one["mac"])
            for one in document["instances"]
        ),
        None if kept is None else _policy_from_json(kept["document"], kept["file"], kept["pointer"], damaged),
        tuple(map(ipaddress.ip_address, document["released"])),
    )


def _policy_from_json(document: dict[str, Any], file: str, pointer: str, damaged: Damaged) -> Policy:
    defaults = document.get("default", {})
    rules = {
        side: Kept(document[side.value], damaged, _rules, file, f"{pointer}/{side.value}")
        for side in Direction
        if side.value in document
    }
    return Policy(
        rules.get(Direction.INGRESS),
        rules.get(Direction.EGRESS),
        tuple((side, Action(defaults[side.value])) for side in Direction if side.value in defaults),
        _sets(document.get("sets", {}), damaged),
        document.get("description", ""),
        file,
        pointer,
    )


def _rules(document: list[Any], file: str, pointer: str) -> tuple[Rule, ...]:
    # What reads policies is imported by the commands alone that look into one.
    from vpcctl.documents.policies import read_rules

    return read_rules(document, file, pointer)


def _sets(document: dict[str, Any], damaged: Damaged) -> tuple[tuple[str, Sequence[Network]], ...]:
    return tuple((name, Kept(prefixes, damaged, _prefixes)) for name, prefixes in document.items())


def _prefixes(texts: list[str]) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))
