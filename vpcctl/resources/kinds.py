"""The kinds of kernel object that we make, as values: everything a snapshot, a plan and the record are made of.

Two items with the same `key` are the same object; they are equal where nothing about it needs to change.  Namespaces
are names under /run/netns; None is the namespace of the host.

To add a kind: write its class, enter it in REGISTRY at its place in the order of creation, and say in
`kernel/linux.py` (HANDLERS) how it is made, removed and compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.compiler import Compiled

# A link: its namespace and its name in it.
Link = tuple[str | None, str]


@dataclass(frozen=True, slots=True)
class Item:
    """Base of all kinds.  `identity` names the fields that identify an object among those of its kind."""

    identity: ClassVar[tuple[str, ...]] = ()
    # One that differs cannot be changed in place: it is removed and made again.
    replaced: ClassVar[bool] = False

    namespace: str | None

    @property
    def key(self) -> tuple[str, ...]:
        """What makes this object the same object: its kind and its identity."""
        return (type(self).__name__, *(str(getattr(self, name)) for name in self.identity))

    @property
    def namespaces(self) -> tuple[str | None, ...]:
        """The namespaces that it is in."""
        return (self.namespace,)

    @property
    def links(self) -> tuple[Link, ...]:
        """The links that it is."""
        return ()

    @property
    def needs(self) -> tuple[Link, ...]:
        """The links that it cannot be without."""
        return ()

    @property
    def goes_with(self) -> tuple[Link, ...]:
        """The links that take it with them when they go."""
        return self.needs

    def __str__(self) -> str:
        return " ".join(self.key)


@dataclass(frozen=True, slots=True)
class Namespace(Item):
    """A named network namespace; `tag` is kept in the file that it is mounted on."""

    identity: ClassVar = ("namespace",)
    namespace: str
    tag: str

    def __str__(self) -> str:
        return f"namespace {self.namespace}"


# The groups whose processes may open the sockets of ping(8): the lowest and the highest (icmp(7)).
PING_GROUPS = "net/ipv4/ping_group_range"


@dataclass(frozen=True, slots=True)
class Setting(Item):
    """A sysctl of a namespace, `path` below /proc/sys.  An `optional` one may be absent from the kernel."""

    identity: ClassVar = ("namespace", "path")
    namespace: str | None
    path: str
    value: str
    optional: bool = False

    def __str__(self) -> str:
        return f"setting {self.path} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Ruleset(Item):
    """The tables of a namespace.  `families` lists the families of the tables.

    Neither a comparison nor the record uses the `content`: the fingerprint replaces it.  A ruleset from the record has
    None, and cannot be loaded.  `former` is the loaded ruleset according to the record, with its content; it is set if
    only the change from it may be loaded.
    """

    identity: ClassVar = ("namespace",)
    namespace: str | None
    families: tuple[str, ...]
    tag: str
    fingerprint: str
    generation: int
    content: Compiled | None = field(default=None, compare=False, repr=False)
    former: Ruleset | None = field(default=None, compare=False, repr=False)
    # Does it let nothing pass, as that of a router on its way down?
    closed: bool = field(default=False, compare=False, repr=False)

    @property
    def text(self) -> str | None:
        """The batch that loads it, None without a content.  This compiles all gates."""
        return None if self.content is None else self.content.text(self.generation)

    @property
    def compiled(self) -> Compiled:
        """The content.  It is a bug to call this without one: loading nothing would remove the rules."""
        if self.content is None:
            raise AssertionError(f"{self} is from the record: it has no text that could be loaded")
        return self.content

    def at(self, generation: int) -> Ruleset:
        """The same ruleset with another generation."""
        return dataclasses.replace(self, generation=generation)

    def __str__(self) -> str:
        return f"ruleset of {where(self.namespace)}"


def next_generation(recorded: Ruleset | None, fingerprint: str) -> int:
    """The generation of a text with that fingerprint; a text that differs from the one on record gets the next."""
    if recorded is None:
        return 1
    return recorded.generation + (recorded.fingerprint != fingerprint)


@dataclass(frozen=True, slots=True)
class Bridge(Item):
    """A bridge; nobody's multicast is snooped and no spanning tree is spoken."""

    identity: ClassVar = ("namespace", "name")
    replaced: ClassVar = True
    namespace: str
    name: str
    mac: str
    altname: str
    tag: str

    @property
    def links(self) -> tuple[Link, ...]:
        return ((self.namespace, self.name),)

    def __str__(self) -> str:
        return f"bridge {self.name} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Veth(Item):
    """A pair of virtual Ethernet devices, each end in its namespace, with its MAC address from the first moment."""

    identity: ClassVar = ("namespace", "name")
    replaced: ClassVar = True
    namespace: str
    name: str
    mac: str
    peer_namespace: str | None
    peer_name: str
    peer_mac: str
    tag: str
    altname: str = ""
    peer_altname: str = ""

    @property
    def namespaces(self) -> tuple[str | None, ...]:
        return (self.namespace, self.peer_namespace)

    @property
    def links(self) -> tuple[Link, ...]:
        return ((self.namespace, self.name), (self.peer_namespace, self.peer_name))

    def __str__(self) -> str:
        return f"link {self.name} in {where(self.namespace)} to {self.peer_name} in {where(self.peer_namespace)}"


@dataclass(frozen=True, slots=True)
class ChecksumLink(Item):
    """An ifb device without offloads: a packet that goes through it comes back with a complete checksum."""

    identity: ClassVar = ("namespace", "name")
    replaced: ClassVar = True
    namespace: str
    name: str
    mac: str
    tag: str

    @property
    def links(self) -> tuple[Link, ...]:
        return ((self.namespace, self.name),)

    def __str__(self) -> str:
        return f"link {self.name} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Detour(Item):
    """IPv4 packets that `link` receives go through the link `through` first."""

    identity: ClassVar = ("namespace", "link")
    namespace: str
    link: str
    through: str

    @property
    def needs(self) -> tuple[Link, ...]:
        return ((self.namespace, self.link), (self.namespace, self.through))

    @property
    def goes_with(self) -> tuple[Link, ...]:
        """It stays when only the link that it goes through is removed, and then drops every packet."""
        return ((self.namespace, self.link),)

    def __str__(self) -> str:
        return f"detour of {self.link} through {self.through} in {where(self.namespace)}"


# What a port of a bridge is set to (IFLA_BRPORT_…, include/uapi/linux/if_link.h).
PORT_FLAGS = {
    "isolated": 1, "locked": 1, "learning": 0, "unicast_flood": 0, "mcast_flood": 0, "bcast_flood": 0
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Port(Item):
    """A link as a port of a bridge with PORT_FLAGS: isolated and locked, nothing learned, nothing flooded."""

    identity: ClassVar = ("namespace", "name")
    namespace: str
    name: str
    bridge: str

    @property
    def needs(self) -> tuple[Link, ...]:
        return ((self.namespace, self.name), (self.namespace, self.bridge))

    def __str__(self) -> str:
        return f"port {self.name} of {self.bridge} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class OnLink(Item):
    """Base of the kinds that are gone with the one link that they are about."""

    link: str

    @property
    def needs(self) -> tuple[Link, ...]:
        return ((self.namespace, self.link),)


@dataclass(frozen=True, slots=True)
class Mtu(OnLink):
    """The MTU of a link: the largest packet that it sends, in bytes."""

    identity: ClassVar = ("namespace", "link")
    namespace: str | None
    link: str
    mtu: int

    def __str__(self) -> str:
        return f"MTU of {self.link} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class LinkSetting(OnLink):
    """A sysctl of one link: `path` is below /proc/sys, with ``{link}`` in the place of the link's name."""

    identity: ClassVar = ("namespace", "link", "path")
    namespace: str | None
    link: str
    path: str
    value: str
    # What to write back when the item is removed while the link stays.
    previous: str = ""

    def __str__(self) -> str:
        return f"setting {self.path.format(link=self.link)} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Forwarding(Item):
    """IPv4 forwarding of packets that arrive on a link of the host that is not ours, and was off before us.

    The link is identified by its index, which stays the same when it is renamed (see `model.host.OpenedLink`).
    """

    identity: ClassVar = ("index",)
    namespace: None
    index: int
    name: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"forwarding on {self.name or 'link ' + str(self.index)} of the host"


@dataclass(frozen=True, slots=True)
class ProxyDelay(OnLink):
    """How long the bridge waits before it answers for a neighbour, in milliseconds (`RTM_SETNEIGHTBL`)."""

    identity: ClassVar = ("namespace", "link")
    namespace: str
    link: str
    milliseconds: int = 0

    def __str__(self) -> str:
        return f"proxy delay of {self.link} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Address(OnLink):
    """An address with its prefix length, as ``10.0.1.1/24``."""

    identity: ClassVar = ("namespace", "link", "address")
    namespace: str | None
    link: str
    address: str

    def __str__(self) -> str:
        return f"address {self.address} on {self.link} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Neighbour(OnLink):
    """A permanent neighbour: nothing that a workload says moves it."""

    identity: ClassVar = ("namespace", "link", "address")
    namespace: str | None
    link: str
    address: str
    mac: str

    def __str__(self) -> str:
        return f"neighbour {self.address} on {self.link} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class FdbEntry(OnLink):
    """A static entry of the bridge's forwarding database: this MAC address is behind this port."""

    identity: ClassVar = ("namespace", "link", "mac")
    namespace: str
    link: str
    mac: str

    def __str__(self) -> str:
        return f"forwarding entry {self.mac} on {self.link} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class LinkUp(OnLink):
    """A link that is up."""

    identity: ClassVar = ("namespace", "link")
    namespace: str | None
    link: str

    def __str__(self) -> str:
        return f"link {self.link} up in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Open(OnLink):
    """The far side of a link whose near side is up already: the very last step, packets flow from here on."""

    identity: ClassVar = ("namespace", "link")
    namespace: str | None
    link: str

    def __str__(self) -> str:
        return f"link {self.link} open in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Route(Item):
    """A route; `source` is the address that the router itself uses on it, empty for the kernel's choice."""

    identity: ClassVar = ("namespace", "destination")
    namespace: str
    destination: str
    via: str
    link: str
    source: str = ""

    @property
    def needs(self) -> tuple[Link, ...]:
        return ((self.namespace, self.link),)

    def __str__(self) -> str:
        return f"route to {self.destination} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Kind:
    """How the record writes the objects of a kind: the name of the kind, and the name of each field.

    These names are in the state files of users.  Classes and fields can be renamed without them.
    """

    item: type[Item]
    name: str
    fields: Mapping[str, str]

    @classmethod
    def of(cls, item: type[Item], name: str, fields: str) -> Kind:
        """A kind with the names of its fields, in the order in which the class declares them."""
        kept = [one.name for one in dataclasses.fields(item) if one.compare]
        return cls(item, name, dict(zip(kept, fields.split(), strict=True)))


# Every kind, in the order of creation; objects are removed in the reverse order.
REGISTRY: tuple[Kind, ...] = (
    Kind.of(Namespace, "namespace", "name tag"),
    Kind.of(Setting, "sysctl", "namespace path value optional"),
    Kind.of(Ruleset, "ruleset", "namespace families tag fingerprint generation"),
    Kind.of(Bridge, "bridge", "namespace name mac altname tag"),
    Kind.of(ChecksumLink, "checksum-link", "namespace name mac tag"),
    Kind.of(Veth, "veth", "namespace name mac peer_namespace peer_name peer_mac tag altname peer_altname"),
    Kind.of(Mtu, "mtu", "namespace link mtu"),
    Kind.of(LinkSetting, "link-sysctl", "namespace link path value previous"),
    Kind.of(Forwarding, "forwarding", "namespace index"),
    Kind.of(ProxyDelay, "proxy-delay", "namespace link milliseconds"),
    Kind.of(Detour, "detour", "namespace link through"),
    Kind.of(Port, "bridge-port", "namespace link bridge"),
    Kind.of(FdbEntry, "fdb-entry", "namespace link mac"),
    Kind.of(Neighbour, "neighbour", "namespace link address mac"),
    Kind.of(Address, "address", "namespace link address"),
    Kind.of(LinkUp, "link-up", "namespace link"),
    Kind.of(Route, "route", "namespace destination via link source"),
    Kind.of(Open, "link-open", "namespace link"),
)
RANK: dict[type[Item], int] = {kind.item: rank for rank, kind in enumerate(REGISTRY)}
_BY_ITEM = {kind.item: kind for kind in REGISTRY}
_BY_NAME = {kind.name: kind for kind in REGISTRY}


def where(namespace: str | None) -> str:
    """A namespace in words."""
    return namespace if namespace is not None else "the host"


def to_json(item: Item) -> dict[str, object]:
    """The item as the record keeps it; a ruleset without its text."""
    kind = _BY_ITEM[type(item)]
    return {"kind": kind.name, **{name: getattr(item, field) for field, name in kind.fields.items()}}


def from_json(document: dict[str, Any]) -> Item:
    """The item that `to_json` wrote; TypeError or KeyError if it is none."""
    kind = _BY_NAME[document["kind"]]
    if len(document) != len(kind.fields) + 1:
        raise TypeError(f"{kind.name} has other fields than {', '.join(kind.fields.values())}")
    values: dict[str, Any] = {field: document[name] for field, name in kind.fields.items()}
    lists = {field: tuple(value) for field, value in values.items() if isinstance(value, list)}
    return kind.item(**values | lists)
