"""Where a repair can fail: the host, a VPC, or one instance of a VPC.

A place is HOST, the name of a VPC, or VPC/INSTANCE.  Each item belongs to one place, and trouble with it is
trouble of that place alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping

from vpcctl.engine.state import Record, State
from vpcctl.errors import VpcctlError
from vpcctl.model.network import World
from vpcctl.resources.kinds import Item, Namespace, Ruleset, Veth

Key = tuple[str, ...]
# What prevents a repair, by place.
Trouble = dict[str, VpcctlError]


def homes(record: Record) -> dict[Key, str]:
    """The place of each item, by its key: HOST, the name of a VPC, or VPC/INSTANCE."""
    return {item.key: place for scope, items in record.items() for item, place in _placed(scope, items)}


def _placed(vpc: str, items: Iterable[Item]) -> Iterator[tuple[Item, str]]:
    """The items of a VPC with their places.

    The items of an instance are those in its namespace, its link, and the items on the link's end in the router.
    """
    items = list(items)
    routers = {item.namespace for item in items if isinstance(item, Ruleset)}
    names = {item.namespace for item in items if isinstance(item, Namespace)} - routers
    places = {name: f"{vpc}/{str(name).removeprefix(f'{vpc}-')}" for name in names}
    ports = {
        (item.namespace, item.name): places[item.peer_namespace]
        for item in items
        if isinstance(item, Veth) and item.peer_namespace in places
    }
    for item in items:
        found = [places[end] for end in item.namespaces if end in places]
        found += [ports[link] for link in item.needs if link in ports]
        yield item, found[0] if found else vpc


def instance_of(place: str) -> str:
    """The instance that a place is about; empty if it is about a VPC or the host."""
    return place.partition("/")[2]


def vpc_of(place: str) -> str:
    """The VPC of a place; HOST for the host."""
    return place.partition("/")[0]


def interrupted(state: State, place: str) -> bool:
    """Was a command interrupted while it changed this VPC or instance?"""
    vpc, instance = vpc_of(place), instance_of(place)
    if not instance or not state.changes(vpc):
        return state.changes(vpc)
    return _member(state.world, vpc, instance) != _member(state.pending or state.world, vpc, instance)


def _member(world: World, vpc: str, instance: str) -> list[object]:
    """The instance with what it has of its subnet; nothing if it does not exist."""
    subnets = [subnet for found in world.vpcs if found.name == vpc for subnet in found.subnets]
    return [
        (subnet.name, subnet.prefixes, member)
        for subnet in subnets
        for member in subnet.instances
        if member.name == instance
    ]


def in_words(trouble: Mapping[str, VpcctlError], left: Container[str] = ()) -> list[str]:
    """A sentence for each place in `trouble`; those in `left` could not be removed, the others not be repaired."""
    return [
        f"{_place_in_words(place)}: {'removal failed' if place in left else 'repair failed, skipped'}: {error}"
        for place, error in trouble.items()
    ]


def _place_in_words(place: str) -> str:
    if instance_of(place):
        return f"instance {instance_of(place)} of VPC {vpc_of(place)}"
    return f"VPC {place}" if place else "the host"
