"""What to do to the kernel, as a value that can be printed: steps in their order.

Theory of operation.  A plan leads from the items on record to the items desired.  Three rules order it, and this is
the only place that knows them:

1. Whatever lets traffic through less comes first, whatever lets more through comes last.  So a VPC that goes gets the
   closed ruleset before anything; changed rulesets are loaded before links go or come; the far ends of new links are
   opened last of all.
2. Items are made in the order of `ORDER` and removed in the reverse.  Removing a namespace or a link removes what is
   in it, so those steps are left out; but a link that ends in a namespace which stays is always removed by name,
   because a process inside can keep a removed namespace alive.
3. The host's table knows an uplink before the link exists and until it is gone: where some come and some go, the
   table is loaded twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vpcctl.resources.kinds import (
    Address,
    Bridge,
    ChecksumLink,
    Detour,
    FdbEntry,
    Item,
    LinkSetting,
    LinkUp,
    Namespace,
    Neighbour,
    Open,
    Port,
    ProxyDelay,
    Route,
    Ruleset,
    Setting,
    Veth,
)

ORDER: tuple[type[Item], ...] = (
    Namespace,
    Setting,
    Ruleset,
    Bridge,
    ChecksumLink,
    Veth,
    LinkSetting,
    ProxyDelay,
    Detour,
    Port,
    FdbEntry,
    Neighbour,
    Address,
    LinkUp,
    Route,
    Open,
)
RANK = {kind: number for number, kind in enumerate(ORDER)}
# Kinds whose objects cannot be changed in place: an item that differs is removed and made again.
REPLACED = (Veth, Bridge, ChecksumLink)
# Kinds that are gone with the namespace or the one link that holds them; ports and detours have two.
HELD_BY_LINK = (LinkSetting, ProxyDelay, FdbEntry, Neighbour, Address, LinkUp, Route, Open)


@dataclass(frozen=True, slots=True)
class Ensure:
    """Make `item` so, whether it is absent or different."""

    item: Item

    def __str__(self) -> str:
        return f"make {self.item}"


@dataclass(frozen=True, slots=True)
class Remove:
    """Make `item` not be there."""

    item: Item

    def __str__(self) -> str:
        return f"remove {self.item}"


Step = Ensure | Remove


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order in which they are taken."""

    steps: tuple[Step, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))


def diff(
    recorded: Iterable[Item], desired: Iterable[Item], closing: Iterable[Ruleset] = (), guard: Ruleset | None = None
) -> Plan:
    """The plan from `recorded` to `desired`.

    `closing` are the closed rulesets of the VPCs that go.  `guard` is the host's table for the old and the new
    uplinks together, where uplinks go.
    """
    before = {item.key: item for item in recorded}
    after = {item.key: item for item in desired}
    gone = [item for key, item in before.items() if key not in after]
    replaced: list[Item] = [
        item for key, item in before.items() if isinstance(item, REPLACED) and after.get(key, item) != item
    ]
    made = [item for key, item in after.items() if before.get(key) != item]
    made += dependents(replaced, after.values(), made)
    return order(gone + replaced, made, closing, guard)


def order(
    removed: Iterable[Item], made: Iterable[Item], closing: Iterable[Ruleset] = (), guard: Ruleset | None = None
) -> Plan:
    """The steps that remove and make the given items, ordered by the rules above."""
    removed = sorted(removed, key=lambda item: -RANK[type(item)])
    made = sorted(made, key=lambda item: RANK[type(item)])
    first: list[Step] = [Ensure(item) for item in closing]
    last: list[Step] = []
    early = [item for item in made if RANK[type(item)] <= RANK[Ruleset]]
    if guard is not None:
        first.append(Ensure(guard))
        last = [Ensure(item) for item in early if item.key == guard.key]
        early = [item for item in early if item.key != guard.key]
    late = [item for item in made if RANK[type(item)] > RANK[Ruleset]]
    going = list(_explicit(removed))
    return Plan((*first, *map(Ensure, early), *map(Remove, going), *map(Ensure, late), *last))


def dependents(replaced: Iterable[Item], desired: Iterable[Item], made: Iterable[Item]) -> list[Item]:
    """What of `desired` stands on a link that is made again, and is not among `made` already."""
    desired = list(desired)
    links = {end for item in replaced for end in links_made(item)}
    # A link that leaves its bridge loses its entries in the forwarding database.
    links |= {(item.namespace, item.name) for item in desired if isinstance(item, Port) and _bridge(item) in links}
    known = {item.key for item in made}
    return [item for item in desired if item.key not in known and links.intersection(links_used(item))]


def _bridge(port: Port) -> tuple[str | None, str]:
    return (port.namespace, port.bridge)


def _explicit(removed: list[Item]) -> Iterator[Item]:
    """`removed` without the items that go by themselves with another one of them."""
    namespaces = {item.namespace for item in removed if isinstance(item, Namespace)}
    links = {end for item in removed for end in links_made(item)}
    for item in removed:
        if isinstance(item, Veth):
            if item.namespace not in namespaces or item.peer_namespace not in namespaces:
                yield item
        elif isinstance(item, Namespace) or (
            item.namespace not in namespaces and not links.intersection(links_holding(item))
        ):
            yield item


def links_made(item: Item) -> list[tuple[str | None, str]]:
    """The (namespace, name) of the links that `item` is."""
    ends: list[tuple[str | None, str]] = [(item.namespace, item.name)] if isinstance(item, REPLACED) else []
    return [*ends, (item.peer_namespace, item.peer_name)] if isinstance(item, Veth) else ends


def links_holding(item: Item) -> list[tuple[str | None, str]]:
    """The (namespace, name) of the links that take `item` with them when they go.

    A detour stays when only the link that it goes through is removed, and then drops every packet.
    """
    return [(item.namespace, item.link)] if isinstance(item, Detour) else links_used(item)


def links_used(item: Item) -> list[tuple[str | None, str]]:
    """The (namespace, name) of the links that `item` cannot be without."""
    if isinstance(item, Port):
        return [(item.namespace, item.name), (item.namespace, item.bridge)]
    if isinstance(item, Detour):
        return [(item.namespace, item.link), (item.namespace, item.through)]
    return [(item.namespace, item.link)] if isinstance(item, HELD_BY_LINK) else []
