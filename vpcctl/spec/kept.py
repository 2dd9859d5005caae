"""Values as JSON and back: the form in which the state file keeps a world, and a policy in the words of the language.

A kept world is an environment with what we allocated beside it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import Any

from vpcctl.model import Instance, Network, Peering, Publication, Subnet, Vpc, World
from vpcctl.policy import PROTOCOL_NAMES, Direction, Policy, Rule
from vpcctl.spec.policies import read_policy


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


def _one_or_many(values: list) -> Any:
    return values[0] if len(values) == 1 else values


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """The policy in the words of the language; where it came from is left out."""
    document: dict[str, Any] = {}
    if policy.description:
        document["description"] = policy.description
    if policy.sets:
        document["sets"] = {name: list(map(str, prefixes)) for name, prefixes in policy.sets}
    for direction in Direction:
        rules = policy.rules(direction)
        if rules is not None:
            document[direction.value] = [rule_to_json(rule) for rule in rules]
    if policy.defaults:
        document["default"] = {side.value: action.value for side, action in policy.defaults}
    return document


def world_to_json(world: World) -> dict[str, Any]:
    """The world as the state file keeps it."""
    return {
        "transit": str(world.transit),
        "opened": [list(pair) for pair in world.opened],
        "peerings": [[peering.one, peering.other] for peering in world.peerings],
        "vpcs": [_vpc_to_json(vpc) for vpc in world.vpcs],
    }


def _vpc_to_json(vpc: Vpc) -> dict[str, Any]:
    return {
        "name": vpc.name,
        "prefixes": list(map(str, vpc.prefixes)),
        "index": vpc.index,
        "sets": {name: list(map(str, prefixes)) for name, prefixes in vpc.sets},
        "publish": [dataclasses.asdict(publication) for publication in vpc.publications],
        **({"hardened": True} if vpc.hardened else {}),
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
                    "document": policy_to_json(subnet.policy),
                },
            }
            for subnet in vpc.subnets
        ],
    }


def world_from_json(document: dict[str, Any]) -> World:
    """The world that `world_to_json` wrote; KeyError, TypeError, ValueError or VpcctlError if it is none."""
    return World(
        tuple(map(_vpc_from_json, document["vpcs"])),
        tuple(Peering(*pair) for pair in document["peerings"]),
        ipaddress.ip_network(document["transit"]),
        tuple((link, value) for link, value in document["opened"]),
    )


def _vpc_from_json(document: dict[str, Any]) -> Vpc:
    return Vpc(
        document["name"],
        _prefixes(document["prefixes"]),
        document["index"],
        tuple(map(_subnet_from_json, document["subnets"])),
        tuple(Publication(**publication) for publication in document["publish"]),
        tuple((name, _prefixes(prefixes)) for name, prefixes in document["sets"].items()),
        document.get("hardened", False),
    )


def _subnet_from_json(document: dict[str, Any]) -> Subnet:
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
        kept and read_policy(kept["document"], kept["file"], kept["pointer"]),
    )


def _prefixes(texts: list[str]) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))
