"""A whole environment as one document: apply it to a world, describe the difference, and write a world as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from vpcctl.documents.codec import assertion_to_json, policy_to_json
from vpcctl.errors import VpcctlError
from vpcctl.model.difference import differing
from vpcctl.model.network import (
    DEFAULT_MAX_FLOWS,
    DEFAULT_MAX_PORTS,
    DEFAULT_TRANSIT,
    Instance,
    Invariant,
    Peering,
    Publication,
    Subnet,
    Vpc,
    World,
    port_range,
)
from vpcctl.model.policy import NOWHERE, PROTOCOL_NAMES, Policy, Rule
from vpcctl.values import dataclass


def merged(present: World, wanted: World, peerings: tuple[Peering, ...], prune: bool) -> World:
    """`present` with the VPCs that `wanted` names exactly as it has them.

    Peerings between two named VPCs are those of `peerings`; others stay.  With `prune` VPCs that are not named go.
    The order in which a document names things means nothing: what was there keeps its place.
    """
    named = {vpc.name for vpc in wanted.vpcs}
    others = () if prune else tuple(vpc for vpc in present.vpcs if vpc.name not in named)
    kept = {vpc.name: vpc for vpc in present.vpcs}
    vpcs = tuple(_settled(vpc, kept[vpc.name]) if vpc.name in kept else vpc for vpc in wanted.vpcs)
    everything = _in_place((*others, *vpcs), present.vpcs, _name)
    there = {vpc.name for vpc in everything}
    staying = (
        pair
        for pair in present.peerings
        if not (pair.one in named and pair.other in named) and {pair.one, pair.other} <= there
    )
    pairs = _in_place(dict.fromkeys((*staying, *peerings)), present.peerings, lambda pair: pair)
    invariants = tuple(one for one in present.invariants if one.vpc is None or one.vpc in there)
    return dataclasses.replace(present, vpcs=everything, peerings=pairs, transit=wanted.transit, invariants=invariants)


def with_invariants(world: World, stated: Mapping[str | None, tuple[Invariant, ...]]) -> World:
    """`world` with these invariants in place of those of the same VPCs, or of the machine where the key is None."""
    kept = (one for one in world.invariants if one.vpc not in stated)
    known = {one: one for one in world.invariants}
    # One that was there keeps its place of origin, so that the same document again changes nothing.
    new = (known.get(one, one) for found in stated.values() for one in found)
    everything = _in_place(dict.fromkeys((*kept, *new)), world.invariants, lambda one: one)
    return dataclasses.replace(world, invariants=everything)


def _settled(vpc: Vpc, before: Vpc) -> Vpc:
    """`vpc` with everything that it has in common with `before` in its place there."""
    known = {subnet.name: subnet for subnet in before.subnets}
    subnets = (_settled_subnet(subnet, known.get(subnet.name)) for subnet in vpc.subnets)
    return dataclasses.replace(
        vpc,
        subnets=_in_place(subnets, before.subnets, _name),
        publications=_in_place(vpc.publications, before.publications, lambda item: item.place),
        sets=_in_place(vpc.sets, before.sets, lambda item: item[0]),
        policy=_settled_policy(vpc.policy, before.policy),
    )


def _settled_policy(policy: Policy | None, before: Policy | None) -> Policy | None:
    """A policy that says the same as before is left as it was, so that its lines still lead there."""
    return before if policy is not None and same_words(policy, before) else policy


def _settled_subnet(subnet: Subnet, before: Subnet | None) -> Subnet:
    """Likewise."""
    if before is None:
        return subnet
    return dataclasses.replace(
        subnet,
        instances=_in_place(subnet.instances, before.instances, _name),
        policy=_settled_policy(subnet.policy, before.policy),
    )


def _in_place(things: Iterable[Any], known: Iterable[Any], key: Callable[[Any], Any]) -> tuple[Any, ...]:
    """`things` in the order of those in `known` that have the same key, and the others after them as they come."""
    places = {key(thing): number for number, thing in enumerate(known)}
    return tuple(sorted(things, key=lambda thing: places.get(key(thing), len(places))))


def _name(thing: Vpc | Subnet | Instance) -> str:
    return thing.name


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the way from one world to another: the VPCs that become as wanted, and what becomes of peerings.

    Peerings ``stay``, those that are not wanted ``go``, or all that are wanted ``come``.
    """

    label: str
    vpcs: frozenset[str] = frozenset()
    peerings: str = "stay"


def steps(before: World, wanted: World) -> list[Step]:
    """The way from one world to another by worlds that can be: peerings go, VPC after VPC changes, peerings come.

    What cannot change one after the other, as VPCs that exchange a prefix or a published port, changes together.
    """
    old, new = ({vpc.name: vpc for vpc in world.vpcs} for world in (before, wanted))
    left = [name for name in old if name not in new] + [name for name, vpc in new.items() if old.get(name) != vpc]
    found: list[Step] = []
    world = before

    def take(step: Step) -> None:
        nonlocal world
        world = toward(world, wanted, step)
        found.append(step)

    if not set(before.peerings) <= set(wanted.peerings):
        take(Step("peerings that go", peerings="go"))
    while left:
        possible = (name for name in left if _can_be(world, wanted, _vpc_step(name)))
        name = next(possible, None)
        if name is None:
            take(Step(f"VPCs {', '.join(left)}", frozenset(left), "come"))
            break
        take(_vpc_step(name))
        left.remove(name)
    if world.peerings != wanted.peerings:
        take(Step("peerings", peerings="come"))
    if world.transit != wanted.transit:
        take(Step("transit range"))
    if world.invariants != wanted.invariants:
        take(Step("invariants"))
    return found


def _vpc_step(name: str) -> Step:
    return Step(f"VPC {name}", frozenset({name}))


def _can_be(world: World, wanted: World, step: Step) -> bool:
    try:
        toward(world, wanted, step)
    except VpcctlError:
        return False
    return True


def toward(world: World, wanted: World, step: Step) -> World:
    """`world` after one step toward `wanted`; ConflictError where that cannot be."""
    target = {vpc.name: vpc for vpc in wanted.vpcs}
    present = {vpc.name for vpc in world.vpcs}
    vpcs = [target.get(vpc.name) if vpc.name in step.vpcs else vpc for vpc in world.vpcs]
    vpcs += [vpc for vpc in wanted.vpcs if vpc.name in step.vpcs - present]
    left = tuple(vpc for vpc in vpcs if vpc is not None)
    there = {vpc.name for vpc in left}
    pairs = wanted.peerings if step.peerings == "come" else world.peerings
    kept = (pair for pair in pairs if {pair.one, pair.other} <= there)
    if step.peerings == "go":
        kept = (pair for pair in kept if pair in wanted.peerings)
    # The transit range differs only if `world` has no VPC.
    invariants = tuple(one for one in wanted.invariants if one.vpc is None or one.vpc in there)
    return dataclasses.replace(world, vpcs=left, peerings=tuple(kept), transit=wanted.transit, invariants=invariants)


def same_words(one: Policy, other: Policy | None) -> bool:
    """Do two policies say the same, wherever they were read from?"""
    return other is not None and _bare(one) == _bare(other)


def _bare(policy: Policy) -> Policy:
    def rules(found: Sequence[Rule] | None) -> Sequence[Rule] | None:
        return found and tuple(dataclasses.replace(rule, origin=NOWHERE) for rule in found)

    return dataclasses.replace(policy, ingress=rules(policy.ingress), egress=rules(policy.egress), file="", pointer="")


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """One object that comes (``+``), goes (``-``) or changes (``~``); `detail` says what changes."""

    sign: str
    what: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.sign} {self.what}" + (f": {self.detail}" if self.detail else "")


Words = Callable[[Any, Any], Iterable["ObjectChange"]]
# Fields that no difference shows: the addresses that a subnet assigns last.
UNTOLD = {Subnet: {"released"}}


# The kinds of objects, as they are counted: one, and many.
KINDS = {
    "VPC": "VPCs",
    "subnet": "subnets",
    "instance": "instances",
    "NAT gateway": "NAT gateways",
    "policy": "policies",
    "published port": "published ports",
    "translated protocol": "translated protocols",
    "peering": "peerings",
    "invariant": "invariants",
}


def lost(before: World, after: World) -> dict[str, int]:
    """How many objects of each kind the later world no longer has; an object that moves or changes is not lost."""
    old, new = set(_objects(before, after)), set(_objects(after, before))
    gone = [kind for kind, *_ in old - new]
    return {kind: gone.count(kind) for kind in KINDS if kind in gone}


def _objects(world: World, other: World) -> Iterator[tuple[Any, ...]]:
    """What tells the objects of a world apart: the kind of each, and its name."""
    yield from (("peering", pair) for pair in world.peerings)
    yield from (("invariant", one) for one in world.invariants)
    for vpc in world.vpcs:
        # A VPC that is the very same in both worlds is not read for this.
        if other.vpcs_by_name.get(vpc.name) is vpc:
            continue
        yield "VPC", vpc.name
        yield from (("published port", vpc.name, item.place) for item in vpc.publications)
        yield from (("translated protocol", vpc.name, protocol) for protocol in vpc.nat_protocols)
        for subnet in vpc.subnets:
            yield "subnet", vpc.name, subnet.name
            yield from (("instance", vpc.name, instance.name) for instance in subnet.instances)
            if subnet.nat_gateway:
                yield "NAT gateway", vpc.name, subnet.name
            if subnet.policy is not None:
                yield "policy", vpc.name, subnet.name


def object_changes(before: World, after: World) -> list[ObjectChange]:
    """The difference between two worlds, object by object, as people name them."""
    return list(_changes("the environment", before, after, _WORLD))


def _changes(what: str, old: Any, new: Any, words: Mapping[str, Words]) -> Iterator[ObjectChange]:
    """The differences between two values that are called `what`: `words` by field, others by the field's name alone."""
    different = differing(old, new)
    for field, told in words.items():
        if field in different:
            yield from told(old, new)
    for field in sorted(different - words.keys() - UNTOLD.get(type(new), set())):
        yield ObjectChange("~", what, f"its {field.replace('_', ' ')}")


def _vpcs_changes(before: World, after: World) -> Iterator[ObjectChange]:
    old, new = ({vpc.name: vpc for vpc in world.vpcs} for world in (before, after))
    for name, vpc in old.items():
        if name not in new:
            yield from (ObjectChange("-", f"VPC {name}"), *_parts("-", vpc))
    for name, vpc in new.items():
        if name in old:
            yield from _changes(f"VPC {name}", old[name], vpc, _VPC)
        else:
            yield ObjectChange("+", f"VPC {name}", _prefixes(vpc) + (", hardened" if vpc.hardened else ""))
            yield from _parts("+", vpc)


def _peering_changes(before: World, after: World) -> Iterator[ObjectChange]:
    for sign, pairs, others in (("-", before.peerings, after.peerings), ("+", after.peerings, before.peerings)):
        yield from (ObjectChange(sign, f"peering {p.one} and {p.other}") for p in pairs if p not in others)


def _invariant_changes(before: World, after: World) -> Iterator[ObjectChange]:
    for sign, found, others in (
        ("-", before.invariants, after.invariants),
        ("+", after.invariants, before.invariants),
    ):
        for one in found:
            if one not in others:
                yield ObjectChange(sign, "invariant" + (f" of VPC {one.vpc}" if one.vpc else ""), str(one))


def _transit_change(before: World, after: World) -> Iterator[ObjectChange]:
    yield ObjectChange("~", "transit range", f"{before.transit} becomes {after.transit}")


# In the order in which a difference shows them.
_WORLD: dict[str, Words] = {
    "transit": _transit_change,
    "vpcs": _vpcs_changes,
    "peerings": _peering_changes,
    "invariants": _invariant_changes,
}


def _prefixes(thing: Vpc | Subnet) -> str:
    return " ".join(map(str, thing.prefixes))


def _parts(sign: str, vpc: Vpc) -> Iterator[ObjectChange]:
    if vpc.policy and sign == "+":
        yield ObjectChange(sign, f"policy of VPC {vpc.name}", vpc.policy.file)
    for subnet in vpc.subnets:
        yield from _subnet_parts(sign, vpc, subnet)
    for item in vpc.publications:
        yield ObjectChange(sign, _published(vpc, item))


def _subnet_parts(sign: str, vpc: Vpc, subnet: Subnet) -> Iterator[ObjectChange]:
    kind = ("public" if subnet.public else "private") + (", NAT gateway" if subnet.nat_gateway else "")
    yield ObjectChange(sign, f"subnet {vpc.name}/{subnet.name}", f"{_prefixes(subnet)}, {kind}" if sign == "+" else "")
    for instance in subnet.instances:
        detail = str(instance.addresses[0]) if sign == "+" else ""
        yield ObjectChange(sign, f"instance {vpc.name}/{instance.name}", detail)
    if subnet.policy and sign == "+":
        yield ObjectChange(sign, f"policy of {vpc.name}/{subnet.name}", subnet.policy.file)


def _published(vpc: Vpc, item: Publication) -> str:
    target = f"{vpc.name}/{item.instance} port {port_range(item.target_port, item.count)}"
    return f"published {item.service} for {target}"


def _about(words: Callable[[Vpc, Vpc], Iterable[str]]) -> Words:
    """What changes about a VPC itself, from the words for it."""
    return lambda old, new: [ObjectChange("~", f"VPC {new.name}", told) for told in words(old, new)]


def _protocol_words(old: Vpc, new: Vpc) -> Iterator[str]:
    for protocol in old.nat_protocols:
        if protocol not in new.nat_protocols:
            yield f"protocol {protocol} is no longer translated"
    for protocol in new.nat_protocols:
        if protocol not in old.nat_protocols:
            yield f"protocol {protocol} is translated"


def _subnets_changes(old: Vpc, new: Vpc) -> Iterator[ObjectChange]:
    """The differences between subnets; an instance that leaves one for another moves, as its namespace stays."""
    moving = {
        f"instance {new.name}/{one.name}": one
        for one in new.instances
        if one.name in old.instances_by_name and old.subnet_of(one.name).name != new.subnet_of(one.name).name
    }
    for change in _each_subnet(old, new):
        if change.what not in moving:
            yield change
        elif change.sign == "+":
            name = moving[change.what].name
            yield ObjectChange("~", change.what, f"moves to subnet {new.subnet_of(name).name}, {change.detail}")


def _each_subnet(old: Vpc, new: Vpc) -> Iterator[ObjectChange]:
    before, after = ({subnet.name: subnet for subnet in vpc.subnets} for vpc in (old, new))
    for name, subnet in before.items():
        if name not in after:
            yield from _subnet_parts("-", old, subnet)
    for name, subnet in after.items():
        if name not in before:
            yield from _subnet_parts("+", new, subnet)
        else:
            yield from _subnet_changes(new.name, before[name], subnet)


def _publication_changes(old: Vpc, new: Vpc) -> Iterator[ObjectChange]:
    for item in old.publications:
        if item not in new.publications:
            yield ObjectChange("-", _published(old, item))
    for item in new.publications:
        if item not in old.publications:
            yield ObjectChange("+", _published(new, item))


def _policy_change(what: str, old: Policy | None, new: Policy | None) -> ObjectChange:
    sign = "+" if old is None else "-" if new is None else "~"
    return ObjectChange(sign, f"policy of {what}", new.file if new else "")


# In the order in which a difference shows them.
_VPC: dict[str, Words] = {
    "prefixes": _about(lambda old, new: [f"{_prefixes(old)} becomes {_prefixes(new)}"]),
    "sets": _about(lambda old, new: ["its named sets"]),
    "max_flows": _about(lambda old, new: [f"at most {new.max_flows} flows instead of {old.max_flows}"]),
    "max_ports": _about(lambda old, new: [f"at most {new.max_ports} NAT ports instead of {old.max_ports}"]),
    "nat_protocols": _about(_protocol_words),
    "mtu": _about(lambda old, new: [f"MTU {new.link_mtu} instead of {old.link_mtu}"]),
    "hardened": _about(lambda old, new: ["hardened" if new.hardened else "not hardened"]),
    "policy": lambda old, new: [_policy_change(f"VPC {new.name}", old.policy, new.policy)],
    "subnets": _subnets_changes,
    "publications": _publication_changes,
}


def _subnet_changes(vpc: str, old: Subnet, new: Subnet) -> Iterator[ObjectChange]:
    what = f"subnet {vpc}/{new.name}"
    words: dict[str, Words] = {
        "prefixes": lambda old, new: [ObjectChange("~", what, f"{_prefixes(old)} becomes {_prefixes(new)}")],
        "public": lambda old, new: [ObjectChange("~", what, "public" if new.public else "private")],
        "nat_gateway": lambda old, new: [
            ObjectChange("+" if new.nat_gateway else "-", f"NAT gateway of {vpc}/{new.name}")
        ],
        "instances": lambda old, new: _instances_changes(vpc, old, new),
        "policy": lambda old, new: [_policy_change(f"{vpc}/{new.name}", old.policy, new.policy)],
    }
    return _changes(what, old, new, words)


def _instances_changes(vpc: str, old: Subnet, new: Subnet) -> Iterator[ObjectChange]:
    before, after = ({one.name: one for one in subnet.instances} for subnet in (old, new))
    for name in before:
        if name not in after:
            yield ObjectChange("-", f"instance {vpc}/{name}")
    for name, instance in after.items():
        what = f"instance {vpc}/{name}"
        if name not in before:
            yield ObjectChange("+", what, str(instance.addresses[0]))
            continue
        was = before[name]
        if was.addresses != instance.addresses:
            yield ObjectChange("~", what, f"moves to {instance.addresses[0]}")
            # An instance that moves is made again, with a MAC address of its own.
            was = dataclasses.replace(was, addresses=instance.addresses, mac=instance.mac)
        yield from _changes(what, was, instance, {})


def exported(world: World, vpc: str | None = None) -> dict[str, Any]:
    """The world, or one VPC of it, as an environment document."""
    chosen = world.vpcs if vpc is None else (world.vpc(vpc),)
    named = {one.name for one in chosen}
    pairs = [[p.one, p.other] for p in world.peerings if vpc is None or named & {p.one, p.other}]
    document: dict[str, Any] = {"vpcs": [_exported_vpc(one) for one in chosen], "peerings": pairs}
    # One VPC can go to a machine with another range.
    if vpc is None and world.transit != DEFAULT_TRANSIT:
        document["transit"] = str(world.transit)
    for owner in (document, *document["vpcs"]):
        whose = owner.get("name")
        stated = [assertion_to_json(one) for one in world.invariants if one.vpc == whose]
        if stated and (whose is not None or vpc is None):
            owner["invariants"] = stated
    return document


def _exported_vpc(vpc: Vpc) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": vpc.name,
        "cidr": str(vpc.prefixes[0]),
        "subnets": [_exported_subnet(subnet) for subnet in vpc.subnets],
    }
    if vpc.hardened:
        document["hardened"] = True
    # The MTU that this host decided belongs to the VPC from then on, on other hosts, too.
    if vpc.mtu is not None:
        document["mtu"] = vpc.mtu
    if vpc.sets:
        document["sets"] = {name: list(map(str, prefixes)) for name, prefixes in vpc.sets}
    if vpc.max_flows != DEFAULT_MAX_FLOWS:
        document["max_flows"] = vpc.max_flows
    if vpc.max_ports != DEFAULT_MAX_PORTS:
        document["max_ports"] = vpc.max_ports
    if vpc.nat_protocols:
        document["nat_protocols"] = list(vpc.nat_protocols)
    if vpc.publications:
        document["publish"] = list(map(publication_document, vpc.publications))
    if vpc.policy:
        document["policy"] = policy_to_json(vpc.policy)
    return document


def publication_document(item: Publication) -> dict[str, Any]:
    """Published ports in the words of an environment."""
    document: dict[str, Any] = {
        "protocol": PROTOCOL_NAMES[item.protocol],
        "port": _ports(item.port, item.count),
        "instance": item.instance,
        "target_port": _ports(item.target_port, item.count),
    }
    if item.address is not None:
        document["address"] = str(item.address)
    return document


def _ports(first: int, count: int) -> int | str:
    return first if count == 1 else port_range(first, count)


def _exported_subnet(subnet: Subnet) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": subnet.name,
        "cidr": str(subnet.prefixes[0]),
        "type": "public" if subnet.public else "private",
        "instances": [{"name": one.name, "ip": str(one.addresses[0])} for one in subnet.instances],
    }
    if subnet.nat_gateway:
        document["nat_gateway"] = True
    if subnet.policy:
        document["policy"] = policy_to_json(subnet.policy)
    return document
