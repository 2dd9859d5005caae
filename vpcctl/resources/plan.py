"""What to do to the kernel, as a value that can be printed: steps in their order.

Theory of operation.  A plan leads from the items on record to the items desired.  Three rules order it, and this is
the only place that knows them:

1. Steps that let less traffic through come first, steps that let more through come last.  So a VPC that goes gets the
   closed ruleset before anything; routes are removed before changed rulesets are loaded, because a ruleset relies on
   it; rulesets are loaded before links are removed or made; the far ends of new links are opened last of all.
2. Items are made in the order of `kinds.REGISTRY` and removed in the reverse; what depends on links is made namespace
   by namespace, in that order within each, so that few are open at a time.  Removing a namespace or a link removes
   what is in it, so those steps are left out; but a link that ends in a namespace which stays is always removed by
   name, because a process inside can keep a removed namespace alive.
3. The host's table knows an uplink before the link exists and until it is gone: where some come and some go, the
   table is loaded twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vpcctl.resources.kinds import RANK, Item, Link, Namespace, Open, Port, Route, Ruleset, Setting, Veth
from vpcctl.values import dataclass


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
    replaced = [item for key, item in before.items() if item.replaced and after.get(key, item) != item]
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
    late = _by_namespace(item for item in made if RANK[type(item)] > RANK[Ruleset])
    going = list(_explicit(removed))
    routes = [item for item in going if isinstance(item, Route)]
    rest = [item for item in going if not isinstance(item, Route)]
    return Plan((*first, *map(Remove, routes), *map(Ensure, early), *map(Remove, rest), *map(Ensure, late), *last))


def _by_namespace(made: Iterable[Item]) -> list[Item]:
    """All links, then what depends on them namespace by namespace, then what opens; each in the order of `made`."""
    made = list(made)
    places = {namespace: place for place, namespace in enumerate(dict.fromkeys(item.namespace for item in made))}

    def place(item: Item) -> tuple[int, int]:
        if isinstance(item, Open):
            return 2, 0
        return (1, places[item.namespace]) if RANK[type(item)] > RANK[Veth] else (0, 0)

    return sorted(made, key=place)


def dependents(replaced: Iterable[Item], desired: Iterable[Item], made: Iterable[Item]) -> list[Item]:
    """What of `desired` depends on a link that is made again, and is not among `made` already."""
    desired = list(desired)
    links = {end for item in replaced for end in item.links}
    # A link that leaves its bridge loses its entries in the forwarding database.
    links |= {_port(item) for item in desired if isinstance(item, Port) and _bridge(item) in links}
    known = {item.key for item in made}
    return [item for item in desired if item.key not in known and links.intersection(item.needs)]


# Writing one of these settings also sets others below the same directory (ip-sysctl).
_RESETS = {"net/ipv4/ip_forward": "net/ipv4/conf/", "net/ipv6/conf/all/disable_ipv6": "net/ipv6/conf/"}


def resets(made: Iterable[Item], desired: Iterable[Item]) -> list[Item]:
    """The settings of `desired` that must be written again, because writing one of `made` resets them."""
    made = list(made)
    known = {item.key for item in made}
    written = [item for item in made if isinstance(item, Setting)]
    places = {(item.namespace, _RESETS[item.path]) for item in written if item.path in _RESETS}
    return [
        item
        for item in desired
        if isinstance(item, Setting) and item.key not in known and (item.namespace, _directory(item)) in places
    ]


def _directory(item: Setting) -> str:
    return "/".join(item.path.split("/")[:3]) + "/"


def _port(item: Port) -> Link:
    return (item.namespace, item.name)


def _bridge(item: Port) -> Link:
    return (item.namespace, item.bridge)


def _explicit(removed: list[Item]) -> Iterator[Item]:
    """`removed` without the items that go by themselves with another one of them."""
    namespaces = {item.namespace for item in removed if isinstance(item, Namespace)}
    links = {end for item in removed for end in item.links}
    for item in removed:
        if isinstance(item, Veth):
            if not namespaces.issuperset(item.namespaces):
                yield item
        elif isinstance(item, Namespace) or (
            item.namespace not in namespaces and not links.intersection(item.goes_with)
        ):
            yield item
