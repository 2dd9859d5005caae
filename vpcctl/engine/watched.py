"""Which namespaces and links concern what is on record, for a process that follows changes in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vpcctl import names
from vpcctl.documents.lazy_lists import Kept
from vpcctl.engine import places
from vpcctl.engine.state import HOST, Deadline, State
from vpcctl.errors import StateError
from vpcctl.resources.kinds import Item, Namespace, Neighbour
from vpcctl.values import dataclass


@dataclass(frozen=True, slots=True)
class WatchedScope:
    """What is on record of one scope: the place of each namespace and link, and the neighbours.

    Equal marks mean equal records.  The mark is empty if a comparison would need to read the record.
    """

    mark: str
    namespaces: Mapping[str, str]
    links: Mapping[tuple[str | None, str], str]
    neighbours: frozenset[tuple[str | None, str]]


@dataclass(frozen=True, slots=True)
class Watched:
    """The places (see `places`) that a change in a namespace or of a link concerns.

    `routers` are the namespaces that only root on the host can change; in the others a tenant may be root.
    """

    scopes: Mapping[str, WatchedScope]
    namespaces: Mapping[str, str]
    routers: frozenset[str]
    links: Mapping[tuple[str | None, str], str]
    neighbours: frozenset[tuple[str | None, str]]
    # When an unconfirmed change is to be taken back, if nobody confirms it.
    deadline: Deadline | None = None

    @property
    def vpcs(self) -> frozenset[str]:
        """The VPCs that have anything on record."""
        return frozenset(self.scopes.keys() - {HOST})

    def concerned(self, namespace: str | None, link: str = "", alias: str = "") -> tuple[str, ...]:
        """The places that a change in `namespace` concerns, if known of the link with that name or alias."""
        own = HOST if namespace is None else self.namespaces.get(namespace, HOST)
        of_link = self.links.get((namespace, link))
        if of_link is not None:
            # A link between two routers is on record for one VPC, and the other one has its addresses and routes.
            shared = namespace is not None and places.vpc_of(of_link) != places.vpc_of(own)
            # A tenant cannot change the router's end of an instance's link.
            vpc = places.vpc_of(of_link) if namespace is None or namespace in self.routers else of_link
            return (vpc, own) if shared else (vpc,)
        # A link of ours that was renamed keeps its alias.
        owner = alias.split("/")[2:3] if namespace is None and alias.startswith(names.TAGGED) else []
        return (owner[0],) if owner and owner[0] in self.scopes else (own,)


NOTHING = Watched({}, {}, frozenset(), {}, frozenset())


def watched(state: State, before: Watched = NOTHING) -> Watched:
    """What the state has on record; scopes that are as they were `before` are not read.

    If the part of a scope is damaged, what was known of the scope before is kept.
    """
    scopes: dict[str, WatchedScope] = {}
    for scope, items in state.record.items():
        known = before.scopes.get(scope)
        if known is not None and known.mark and known.mark == _mark(items):
            scopes[scope] = known
            continue
        try:
            scopes[scope] = _scope(scope, items)
        except StateError:
            scopes[scope] = known or WatchedScope("", {}, {}, frozenset())
    spaces = {name: place for one in scopes.values() for name, place in one.namespaces.items()}
    return Watched(
        scopes,
        spaces,
        frozenset(name for name, place in spaces.items() if not places.instance_of(place)),
        {link: place for one in scopes.values() for link, place in one.links.items()},
        frozenset().union(*(one.neighbours for one in scopes.values())),
        None if state.unconfirmed is None else state.unconfirmed.deadline,
    )


def _mark(items: Sequence[Item]) -> str:
    return items.apart.mark if isinstance(items, Kept) and items.apart is not None else ""


def _scope(scope: str, items: Sequence[Item]) -> WatchedScope:
    homes = places.homes({scope: items})
    return WatchedScope(
        _mark(items),
        {item.namespace: homes[item.key] for item in items if isinstance(item, Namespace)},
        {link: homes[item.key] for item in items for link in item.links},
        frozenset((item.namespace, item.address) for item in items if isinstance(item, Neighbour)),
    )
