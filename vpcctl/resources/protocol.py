"""What a kernel is to the rest of the program: four verbs over items, and a look at the host."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from vpcctl.model.network import DEFAULT_MTU
from vpcctl.resources.kinds import Item, Ruleset
from vpcctl.resources.plan import Plan
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.analysis.tracking import Counted, Key, Selection, Tracked
    from vpcctl.model.network import Publication

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Status(enum.Enum):
    """How an object compares with the item that describes it."""

    RIGHT = "right"
    ABSENT = "absent"
    DIFFERENT = "different"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Condition:
    """What was observed of one item; `detail` says in words what differs."""

    state: Status
    detail: str = ""


RIGHT = Condition(Status.RIGHT)
ABSENT = Condition(Status.ABSENT)


@dataclass(frozen=True, slots=True)
class HostLink:
    """A foreign link of the host that a route of any table uses.

    `forwards` says whether packets that arrive there are forwarded, `leads_out` whether it can carry packets now.
    """

    index: int
    name: str
    forwards: bool = False
    leads_out: bool = True


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The host as it is outside our own objects.

    `links` are its links to which packets can be routed, without the loopback interface and without ports of bridges
    and bonds, which receive no packets by themselves; `networks` are the prefixes of its routes of all tables, its
    own addresses among them, without those that mean the whole internet; `forwarding` says whether the host forwards
    between all its links (ip_forward); `local` are the host's own addresses, and `services` the ports among NAT_PORTS
    on which it can be called from outside. `mtu` is the MTU for the links of a new VPC.
    """

    links: tuple[HostLink, ...] = ()
    networks: tuple[Network, ...] = ()
    forwarding: bool = False
    local: tuple[Network, ...] = ()
    services: tuple[int, ...] = ()
    mtu: int = DEFAULT_MTU


class Kernel(Protocol):
    """The edge.  Every verb raises errors of `vpcctl.errors` alone."""

    def close(self) -> None:
        """Close what is open; what is asked afterwards opens it again."""

    def boot_id(self) -> str:
        """An identifier that is new after each boot (random(4): /proc/sys/kernel/random/boot_id)."""

    def facts(self) -> HostFacts:
        """The host as it is now."""

    def observe(self, items: Iterable[Item]) -> Mapping[Item, Condition]:
        """Compare each item with the kernel; changes nothing."""

    def check(self, plan: Plan) -> None:
        """Raise, before anything is touched, for what would make `plan` fail half-way."""

    def port_holders(self, publications: Sequence[Publication]) -> Mapping[Publication, str]:
        """The holders of host ports, in words: programs that listen on them, or foreign rules that translate them.

        Contains only the `publications` that have such a conflict.
        """

    def ensure(self, item: Item) -> None:
        """Make `item` so; nothing happens where it is so already."""

    def remove(self, item: Item) -> None:
        """Make `item` not be there; absent is success, foreign is left alone."""

    def loaded(self, namespace: str) -> set[tuple[str, int]]:
        """Fingerprint and generation of each ruleset of ours that is loaded in a namespace; none if it is gone."""

    def untouched(self, rulesets: Iterable[Ruleset]) -> set[tuple[str, ...]]:
        """The keys of the rulesets that this version of the program found right and that nobody has changed since.

        This is cheap; a ruleset that is not in the result may be right, too.
        """

    def gates(self, ruleset: Ruleset) -> Mapping[str, str]:
        """The fingerprints of the gates of a ruleset that was loaded, by name; none if they are not known."""

    def settled(self, namespaces: Iterable[str | None]) -> set[str | None]:
        """Those of the namespaces that track flows, once every packet that is on its way now has passed.

        A namespace that is gone, or not ours, holds none.
        """

    def flows(self, namespace: str | None, selection: Selection | None = None) -> Iterable[Tracked]:
        """The tracked flows of a namespace, or those of a selection."""

    def counted(self, namespace: str, selection: Selection | None = None) -> Iterable[Counted]:
        """Likewise with their states and counters."""

    def forget(self, namespace: str | None, keys: Iterable[Key]) -> None:
        """Remove tracked flows; absent is success, and so is a namespace that is gone."""

    def tally(self, addresses: Collection[int]) -> Mapping[int, tuple[int, int]]:
        """For each router's address (a number of `space`), how many tracked flows it opened, and how many it serves."""

    def refused(self, namespace: str) -> int:
        """How many packets found no free port for their translation since the namespace was made."""

    def counters(self) -> Mapping[str, int]:
        """The packets of each named counter of the host's table; none where it is not loaded."""

    def ruleset_listing(self, namespace: str | None, families: tuple[str, ...]) -> str:
        """Our tables in a namespace as ``nft list`` prints them; empty where none is loaded."""

    def ruleset_objects(self, namespace: str) -> list[dict[str, Any]]:
        """Our inet table in a namespace as JSON objects (libnftables-json(5)); none where it is not loaded."""
