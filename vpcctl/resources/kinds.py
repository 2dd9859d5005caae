"""The kinds of kernel object that we make, as values: everything a snapshot, a plan and the record are made of.

Two items with the same `key` are the same object; they are equal where nothing about it needs to change.  Namespaces
are names under /run/netns; None is the namespace of the host.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Item:
    """Base of all kinds.  `identity` names the fields that tell one object of a kind from another."""

    identity: ClassVar[tuple[str, ...]] = ()

    namespace: str | None

    @property
    def key(self) -> tuple[str, ...]:
        """What makes this object the same object: its kind and its identity."""
        return (type(self).__name__, *(str(getattr(self, name)) for name in self.identity))

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
    """The tables of a namespace, replaced whole.  `families` lists the families in which a table stands.

    The text is left out of comparison and of the record: the fingerprint stands for it.
    """

    identity: ClassVar = ("namespace",)
    namespace: str | None
    families: tuple[str, ...]
    tag: str
    fingerprint: str
    generation: int
    text: str = field(default="", compare=False, repr=False)
    # Does it let nothing pass, as that of a router on its way down?
    closed: bool = field(default=False, compare=False, repr=False)

    def at(self, generation: int) -> Ruleset:
        """The same ruleset as another generation: the text has it in its first line, and behind the fingerprint."""
        head, newline, rest = self.text.partition("\n")
        mine, new = (f'{self.fingerprint} {number}"' for number in (self.generation, generation))
        text = f"{head.rpartition(' ')[0]} {generation}{newline}{rest.replace(mine, new)}" if self.text else ""
        return dataclasses.replace(self, generation=generation, text=text)

    def __str__(self) -> str:
        return f"ruleset of {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Bridge(Item):
    """A bridge; nobody's multicast is snooped and no spanning tree is spoken."""

    identity: ClassVar = ("namespace", "name")
    namespace: str
    name: str
    mac: str
    altname: str
    tag: str

    def __str__(self) -> str:
        return f"bridge {self.name} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Veth(Item):
    """A pair of virtual Ethernet devices, each end in its namespace, with its MAC address from the first moment."""

    identity: ClassVar = ("namespace", "name")
    namespace: str
    name: str
    mac: str
    peer_namespace: str | None
    peer_name: str
    peer_mac: str
    tag: str
    altname: str = ""
    peer_altname: str = ""

    def __str__(self) -> str:
        return f"link {self.name} in {where(self.namespace)} to {self.peer_name} in {where(self.peer_namespace)}"


@dataclass(frozen=True, slots=True)
class ChecksumLink(Item):
    """An ifb device without offloads: a packet that goes through it comes back with a complete checksum."""

    identity: ClassVar = ("namespace", "name")
    namespace: str
    name: str
    mac: str
    tag: str

    def __str__(self) -> str:
        return f"link {self.name} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Detour(Item):
    """IPv4 packets that `link` receives go through the link `through` first."""

    identity: ClassVar = ("namespace", "link")
    namespace: str
    link: str
    through: str

    def __str__(self) -> str:
        return f"detour of {self.link} through {self.through} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Port(Item):
    """A link as a port of a bridge: isolated and locked, nothing learned, nothing flooded."""

    identity: ClassVar = ("namespace", "name")
    namespace: str
    name: str
    bridge: str

    def __str__(self) -> str:
        return f"port {self.name} of {self.bridge} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class LinkSetting(Item):
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
class ProxyDelay(Item):
    """How long the bridge waits before it answers for a neighbour, in milliseconds (`RTM_SETNEIGHTBL`)."""

    identity: ClassVar = ("namespace", "link")
    namespace: str
    link: str
    milliseconds: int = 0

    def __str__(self) -> str:
        return f"proxy delay of {self.link} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Address(Item):
    """An address with its prefix length, as ``10.0.1.1/24``."""

    identity: ClassVar = ("namespace", "link", "address")
    namespace: str | None
    link: str
    address: str

    def __str__(self) -> str:
        return f"address {self.address} on {self.link} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Neighbour(Item):
    """A permanent neighbour: nothing that a workload says moves it."""

    identity: ClassVar = ("namespace", "link", "address")
    namespace: str | None
    link: str
    address: str
    mac: str

    def __str__(self) -> str:
        return f"neighbour {self.address} on {self.link} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class FdbEntry(Item):
    """A static entry of the bridge's forwarding database: this MAC address is behind this port."""

    identity: ClassVar = ("namespace", "link", "mac")
    namespace: str
    link: str
    mac: str

    def __str__(self) -> str:
        return f"forwarding entry {self.mac} on {self.link} in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class LinkUp(Item):
    """A link that is up."""

    identity: ClassVar = ("namespace", "link")
    namespace: str | None
    link: str

    def __str__(self) -> str:
        return f"link {self.link} up in {where(self.namespace)}"


@dataclass(frozen=True, slots=True)
class Open(Item):
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

    def __str__(self) -> str:
        return f"route to {self.destination} in {where(self.namespace)}"


KINDS: dict[str, type[Item]] = {
    kind.__name__: kind
    for kind in (
        Namespace, Setting, Ruleset, Bridge, ChecksumLink, Veth, LinkSetting, ProxyDelay, Detour, Port, Address,
        Neighbour, FdbEntry, LinkUp, Route, Open,
    )
}  # fmt: skip


def where(namespace: str | None) -> str:
    """A namespace in words."""
    return namespace if namespace is not None else "the host"


def to_json(item: Item) -> dict[str, object]:
    """The item as the record keeps it; a ruleset without its text."""
    values = {one.name: getattr(item, one.name) for one in dataclasses.fields(item) if one.compare}
    return {"kind": type(item).__name__, **values}


def from_json(document: dict[str, Any]) -> Item:
    """The item that `to_json` wrote; TypeError or KeyError if it is none."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
    }
    return KINDS[values.pop("kind")](**values)
