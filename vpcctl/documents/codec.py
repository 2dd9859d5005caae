"""Values as JSON and back: the form in which the record keeps a world, and a policy in the words of the language.

A kept world is an environment, together with what we allocated. The record has two places for a VPC: its own fields are
in the state file, which every command reads; the `rest`, its subnets, sets and policy, is in a part, which only
commands about this VPC read.  The caller decides what a part is here; by default `world_to_json` leaves it inside the
document.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from vpcctl.documents.lazy_lists import DAMAGE, Apart, Damaged, Kept
from vpcctl.errors import StateError
from vpcctl.model.host import HostPart, OpenedLink
from vpcctl.model.network import (
    Instance,
    Invariant,
    Peering,
    Publication,
    Subnet,
    Vpc,
    World,
)
from vpcctl.model.policy import PROTOCOL_NAMES, Action, Direction, Network, Policy, Rule
from vpcctl.values import dataclass


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


Encode = Callable[[Sequence[Any]], Any]


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


def vpc_to_json(vpc: Vpc, put: PutList) -> dict[str, Any]:
    """A VPC with everything in it; `put` as for `rest_to_json`."""
    return own_to_json(vpc) | {"part": rest_to_json(vpc, put)}


def _inside(vpc: Vpc) -> dict[str, Any]:
    return vpc_to_json(vpc, _as_it_is)


def world_to_json(world: World, put: Callable[[Vpc], dict[str, Any]] = _inside) -> dict[str, Any]:
    """The world as the record keeps it; `put` returns what represents a VPC, by default all of it."""
    document: dict[str, Any] = {
        "transit": str(world.transit),
        "peerings": [[peering.one, peering.other] for peering in world.peerings],
        "vpcs": list(map(put, world.vpcs)),
    }
    # What only some have is written for those alone.
    if world.invariants:
        document["invariants"] = list(map(_invariant_to_json, world.invariants))
    return document


def _invariant_to_json(one: Invariant) -> dict[str, Any]:
    return {"vpc": one.vpc, "assertion": assertion_to_json(one), "place": one.place}


def assertion_to_json(one: Invariant) -> dict[str, str]:
    """An invariant as people write it."""
    document = {"from": one.source, "to": one.destination, "service": one.service, "expect": one.expect}
    return document | ({"description": one.description} if one.description else {})


def invariant_from_json(document: dict[str, str], vpc: str | None, place: str) -> Invariant:
    """What `assertion_to_json` wrote, or somebody in its form."""
    source, destination, service, expect = (document[name] for name in ("from", "to", "service", "expect"))
    return Invariant(source, destination, service, expect, vpc, document.get("description", ""), place)


def host_to_json(host: HostPart) -> dict[str, Any]:
    """What the state file keeps of the host."""
    return {
        "opened": [[link.index, link.name] for link in host.opened],
        "reserved": list(host.reserved),
        "closed": list(host.closed),
        "forwards": host.forwards,
    }


def host_from_json(document: dict[str, Any]) -> HostPart:
    """What `host_to_json` wrote; KeyError, TypeError or ValueError if it is none."""
    return HostPart(
        tuple(OpenedLink(index, name) for index, name in document["opened"]),
        tuple(document["reserved"]),
        tuple(document["closed"]),
        document["forwards"],
    )


PutList = Callable[[Sequence[Any], list[Any] | None], Any]


def _as_it_is(values: Sequence[Any], written: list[Any] | None) -> Any:
    return values.kept if isinstance(values, Kept) else written


def _unless_kept(encode: Encode, put: PutList) -> Callable[[Sequence[Any]], Any]:
    """What represents a list; one that is on record already is not encoded again."""
    return lambda values: put(values, None if isinstance(values, Kept) else encode(values))


def own_to_json(vpc: Vpc) -> dict[str, Any]:
    """What every command reads of a VPC: the fields that other VPCs and the host's table depend on."""
    return {
        "name": vpc.name,
        "prefixes": list(map(str, vpc.prefixes)),
        "index": vpc.index,
        "publish": [_publication_to_json(publication) for publication in vpc.publications],
        "hardened": vpc.hardened,
        "mtu": vpc.mtu,
        "max_flows": vpc.max_flows,
        "max_ports": vpc.max_ports,
        "nat_protocols": list(vpc.nat_protocols),
    }


def rest_to_json(vpc: Vpc, put: PutList = _as_it_is) -> dict[str, Any]:
    """The subnets, sets and policy of a VPC.

    `put` returns what represents a list of rules or prefixes: it gets the list, and its JSON unless it is on record.
    """
    keep_rules, keep_prefixes = _unless_kept(_rules_to_json, put), _unless_kept(_prefixes_to_json, put)

    def kept(policy: Policy) -> dict[str, Any]:
        document = policy_to_json(policy, keep_rules, keep_prefixes)
        return {"file": policy.file, "pointer": policy.pointer, "document": document}

    rest = {
        "sets": {name: keep_prefixes(prefixes) for name, prefixes in vpc.sets},
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
                "policy": None if subnet.policy is None else kept(subnet.policy),
                "released": list(map(str, subnet.released)),
            }
            for subnet in vpc.subnets
        ],
    }
    # What only some have is written for those alone.
    if vpc.policy is not None:
        rest["policy"] = kept(vpc.policy)
    return rest


def _publication_to_json(item: Publication) -> dict[str, Any]:
    document: dict[str, Any] = {
        "protocol": item.protocol,
        "port": item.port,
        "instance": item.instance,
        "target_port": item.target_port,
    }
    # Optional fields are written only if they are set.
    if item.count != 1:
        document["count"] = item.count
    if item.address is not None:
        document["address"] = str(item.address)
    if item.entry is not None:
        document["entry"] = item.entry
    return document


def _publication_from_json(document: dict[str, Any]) -> Publication:
    address = document.get("address")
    rest = {name: value for name, value in document.items() if name != "address"}
    return Publication(**rest, address=None if address is None else ipaddress.ip_address(address))


def _damaged(error: Exception) -> Exception:
    return StateError(f"the state file is damaged ({error})")


@dataclass(frozen=True, slots=True)
class Shelf:
    """Finds the part of a VPC or of a list, by what represents it in the document.

    `damaged` turns a problem of a document into an error.
    """

    damaged: Damaged
    part: Callable[[str, Any], Part]
    array: Callable[[str, Any], Apart]


class Part(Protocol):
    """The part of the record with the rest of a VPC; equal marks mean equal parts."""

    @property
    def mark(self) -> str: ...

    def rest(self) -> dict[str, Any]:
        """The result of `rest_to_json`; StateError if the part is lost or damaged."""

    def damaged(self, words: object) -> Exception:
        """The error that the part is damaged."""


class KeptRest:
    """The rest of a VPC that is on record; `entry` is what the state file has of the VPC."""

    __slots__ = ("_shelf", "entry", "part")

    def __init__(self, entry: dict[str, Any], part: Part, shelf: Shelf):
        self.entry, self.part, self._shelf = entry, part, shelf

    @property
    def mark(self) -> str:
        return self.part.mark

    def whole(self) -> Vpc:
        """The VPC with its subnets and sets; StateError if they are lost or damaged."""
        document = self.part.rest()
        try:
            return _whole_from_json(self.entry, document, dataclasses.replace(self._shelf, damaged=self.part.damaged))
        except DAMAGE as error:
            raise self.part.damaged(error) from error


def _nowhere(vpc: str, reference: Any) -> Any:
    raise TypeError("a part is expected inside the document")


INSIDE = Shelf(_damaged, _nowhere, _nowhere)


def world_from_json(document: dict[str, Any], shelf: Shelf = INSIDE) -> World:
    """The world that `world_to_json` wrote; KeyError, TypeError, ValueError or VpcctlError if it is none.

    Parts are read, and rules and sets decoded, on first use; `shelf.damaged` makes the errors that are raised then.
    """
    return world_around(document, (vpc_from_json(vpc, shelf) for vpc in document["vpcs"]))


def world_around(document: dict[str, Any], vpcs: Iterable[Vpc]) -> World:
    """The world of these VPCs, and all else as `world_to_json` wrote it."""
    return World(
        tuple(vpcs),
        tuple(Peering(*pair) for pair in document["peerings"]),
        ipaddress.ip_network(document["transit"]),
        tuple(
            invariant_from_json(one["assertion"], one["vpc"], one["place"]) for one in document.get("invariants", ())
        ),
    )


def decode(world: World) -> None:
    """Decode all that `world_from_json` left; it raises what is wrong with it."""
    for kept in _lists(world):
        if isinstance(kept, Kept):
            _ = kept.values


def _lists(world: World) -> Iterator[Any]:
    """The rules and sets of a world."""
    for vpc in world.vpcs:
        policies = [policy for _, policy in vpc.policies]
        for _, prefixes in (*vpc.sets, *(one for policy in policies for one in policy.sets)):
            yield prefixes
        for policy in policies:
            yield from map(policy.rules, Direction)


def vpc_from_json(document: dict[str, Any], shelf: Shelf) -> Vpc:
    """One VPC, likewise."""
    reference = document["part"]
    if isinstance(reference, dict):
        return _whole_from_json(document, reference, shelf)
    own = _own_from_json(document)
    return Vpc.deferred(KeptRest(document, shelf.part(own[0], reference), shelf), *own)


def _own_from_json(document: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of `Vpc.deferred` that the state file has."""
    return (
        document["name"],
        _prefixes(document["prefixes"]),
        document["index"],
        tuple(map(_publication_from_json, document["publish"])),
        document["max_flows"],
        document["max_ports"],
        tuple(document["nat_protocols"]),
        document["hardened"],
        document["mtu"],
    )


def _whole_from_json(own: dict[str, Any], rest: dict[str, Any], shelf: Shelf) -> Vpc:
    made = _policy_from_json(rest.get("policy"), own["name"], shelf)
    name, prefixes, index, publications, *limits = _own_from_json(own)
    subnets = tuple(_subnet_from_json(subnet, name, shelf) for subnet in rest["subnets"])
    parts = (subnets, publications, _sets(rest["sets"], name, shelf), *limits, made)
    return Vpc(name, prefixes, index, *parts)


def _kept(document: Any, vpc: str, shelf: Shelf, decode: Callable[..., tuple[Any, ...]], *more: Any) -> Kept[Any]:
    """A list that is in the document, or in a part of its own."""
    if not isinstance(document, dict):
        return Kept(document, shelf.damaged, decode, *more)
    apart = shelf.array(vpc, document)
    return Kept(apart, apart.damaged, decode, *more)


def _subnet_from_json(document: dict[str, Any], vpc: str, shelf: Shelf) -> Subnet:
    return Subnet(
        document["name"],
        _prefixes(document["prefixes"]),
        document["public"],
        document["nat_gateway"],
        tuple(
            Instance(one["name"], tuple(map(ipaddress.ip_address, one["addresses"])), one["mac"])
            for one in document["instances"]
        ),
        _policy_from_json(document["policy"], vpc, shelf),
        tuple(map(ipaddress.ip_address, document["released"])),
    )


def _policy_from_json(kept: dict[str, Any] | None, vpc: str, shelf: Shelf) -> Policy | None:
    if kept is None:
        return None
    document, file, pointer = kept["document"], kept["file"], kept["pointer"]
    defaults = document.get("default", {})
    rules = {
        side: _kept(document[side.value], vpc, shelf, _rules, file, f"{pointer}/{side.value}")
        for side in Direction
        if side.value in document
    }
    return Policy(
        rules.get(Direction.INGRESS),
        rules.get(Direction.EGRESS),
        tuple((side, Action(defaults[side.value])) for side in Direction if side.value in defaults),
        _sets(document.get("sets", {}), vpc, shelf),
        document.get("description", ""),
        file,
        pointer,
    )


def _rules(document: list[Any], file: str, pointer: str) -> tuple[Rule, ...]:
    # What reads policies is imported by the commands alone that look into one.
    from vpcctl.documents.policies import read_rules

    return read_rules(document, file, pointer)


def _sets(document: dict[str, Any], vpc: str, shelf: Shelf) -> tuple[tuple[str, Sequence[Network]], ...]:
    return tuple((name, _kept(prefixes, vpc, shelf, _prefixes)) for name, prefixes in document.items())


def _prefixes(texts: list[str]) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))
