"""The messages of rtnetlink(7) that we send and read: links, addresses, neighbours, routes, neighbour tables.

Bytes alone, no sockets.  pyroute2 has all of this and more, but importing it takes a tenth of a second, and each of its
requests a hundred times as long as the kernel needs.  The tests compare every request with what pyroute2 writes.

Numbers and layouts are those of include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h and veth.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Mapping
from functools import cached_property
from typing import TypeVar

from vpcctl.kernel.netlink import NLA_F_NESTED, attribute, attributes, fields, nested
from vpcctl.values import dataclass

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWNEIGHTBL, RTM_GETNEIGHTBL, RTM_SETNEIGHTBL = 64, 66, 67
RTM_NEWLINKPROP, RTM_DELLINKPROP = 108, 109

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_TXQLEN = 1, 3, 4, 5, 10, 13
IFLA_PROTINFO = 12
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_PROP_LIST, IFLA_ALT_IFNAME = 18, 20, 28, 29, 52, 53
IFLA_AF_SPEC, IFLA_INET_CONF, IPV4_DEVCONF_FORWARDING = 26, 1, 1
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BR_MCAST_SNOOPING, VETH_INFO_PEER, RTEXT_FILTER_SKIP_STATS = 23, 1, 8
BRIDGE_PORT = {
    "learning": 8, "unicast_flood": 9, "mcast_flood": 27, "bcast_flood": 30, "isolated": 33, "locked": 39
}  # fmt: skip
IFA_ADDRESS, IFA_LOCAL = 1, 2
NDA_DST, NDA_LLADDR = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 6, 7, 9, 15
NDTA_NAME, NDTA_PARMS, NDTPA_IFINDEX, NDTPA_PROXY_DELAY = 1, 6, 1, 13

IFF_UP = 1
# Flags that follow the carrier: IFF_RUNNING, IFF_LOWER_UP, IFF_DORMANT (include/uapi/linux/if.h)
IFF_BY_ITSELF = 0x40 | 0x10000 | 0x20000
NUD_NOARP, NUD_PERMANENT, NTF_MASTER = 0x40, 0x80, 0x04
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RTPROT_STATIC, RTN_UNICAST, RTN_LOCAL = 4, 1, 2
RTNH_F_DEAD, RTNH_F_ONLINK, RTNH_F_LINKDOWN = 1, 4, 16
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254

_LASTING = (
    IFLA_IFNAME, IFLA_ADDRESS, IFLA_MTU, IFLA_MASTER, IFLA_LINK, IFLA_IFALIAS, IFLA_PROP_LIST, IFLA_TXQLEN
)  # fmt: skip
# struct ifinfomsg, ifaddrmsg, ndmsg, rtmsg, rtnexthop; ndtmsg is a family and three bytes
_LINK, _ADDRESS, _NEIGHBOUR = struct.Struct("=BxHiII"), struct.Struct("=BBBBI"), struct.Struct("=BxxxiHBB")
_ROUTE, _NEXT_HOP, _TABLE = struct.Struct("=8BI"), struct.Struct("=HBBi"), struct.Struct("=Bxxx")

Field = TypeVar("Field", bytes, memoryview)
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def family(version: int) -> int:
    """The family of addresses of IP `version`."""
    return socket.AF_INET if version == 4 else socket.AF_INET6


def number(value: int) -> bytes:
    """An attribute's u32."""
    return struct.pack("=I", value)


def packed_mac(mac: str) -> bytes:
    """The six bytes of a MAC address."""
    return bytes.fromhex(mac.replace(":", ""))


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


# --- Requests -----------------------------------------------------------------------------------------------------
# Each function returns the body of a request: the head of its kind, and its attributes.


def link(index: int = 0, *attributes: bytes, flags: int = 0, change: int = 0) -> bytes:
    """A link: to look up, to change or to delete."""
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, change) + b"".join(attributes)


def lookup(name: str = "", index: int = 0) -> bytes:
    """The question for one link, by its index or else by a name or an alternative name of it."""
    return link(index, b"" if index else attribute(IFLA_IFNAME, _text(name)), NO_STATISTICS)


def name_and_mac(name: str, mac: str = "") -> bytes:
    """What a new link is called, and its MAC address; without one the kernel chooses it."""
    return attribute(IFLA_IFNAME, _text(name)) + (attribute(IFLA_ADDRESS, packed_mac(mac)) if mac else b"")


def kind(name: str, *data: bytes) -> bytes:
    """The kind of a new link, and what is to be said to that kind."""
    return nested(
        IFLA_LINKINFO,
        attribute(IFLA_INFO_KIND, _text(name)),
        *([nested(IFLA_INFO_DATA, *data)] if data else []),
    )


def bridge() -> bytes:
    """The kind of a bridge that sends multicast to all its ports."""
    return kind("bridge", attribute(IFLA_BR_MCAST_SNOOPING, b"\0"))


def veth(peer: str, mac: str = "", namespace: int | None = None) -> bytes:
    """The kind of a pair whose other end is called `peer`, in the namespace of that descriptor."""
    there = b"" if namespace is None else attribute(IFLA_NET_NS_FD, number(namespace))
    return kind("veth", attribute(VETH_INFO_PEER | NLA_F_NESTED, link() + name_and_mac(peer, mac) + there))


def alias(text: str) -> bytes:
    """A link's alias."""
    return attribute(IFLA_IFALIAS, _text(text))


def rename(name: str) -> bytes:
    """A link's new name."""
    return attribute(IFLA_IFNAME, _text(name))


def alternative(name: str) -> bytes:
    """An alternative name of a link."""
    return nested(IFLA_PROP_LIST, attribute(IFLA_ALT_IFNAME, _text(name)))


def master(index: int) -> bytes:
    """The bridge that a link becomes a port of; 0 for none."""
    return attribute(IFLA_MASTER, number(index))


def namespace(descriptor: int) -> bytes:
    """The namespace that a link moves to."""
    return attribute(IFLA_NET_NS_FD, number(descriptor))


def mtu(octets: int) -> bytes:
    """The largest packet that a link sends."""
    return attribute(IFLA_MTU, number(octets))


def queue(packets: int) -> bytes:
    """How many packets may wait in a link."""
    return attribute(IFLA_TXQLEN, number(packets))


def bridge_port(flags: Mapping[str, int]) -> bytes:
    """The flags of a bridge's port, by the names of BRIDGE_PORT."""
    values = (attribute(BRIDGE_PORT[name], bytes([value])) for name, value in flags.items())
    return nested(
        IFLA_LINKINFO, attribute(IFLA_INFO_SLAVE_KIND, _text("bridge")), nested(IFLA_INFO_SLAVE_DATA, *values)
    )


def address(index: int, value: IPAddress, length: int) -> bytes:
    """An address on a link, with the length of its prefix."""
    head = _ADDRESS.pack(family(value.version), length, 0, 0, index)
    local = attribute(IFA_LOCAL, value.packed) if value.version == 4 else b""
    return head + local + attribute(IFA_ADDRESS, value.packed)


def neighbour(index: int, value: IPAddress, mac: str = "", state: int = 0) -> bytes:
    """A neighbour: the MAC address of an address on a link; without one, to look up or to delete."""
    head = _NEIGHBOUR.pack(family(value.version), index, state, 0, 0)
    return head + attribute(NDA_DST, value.packed) + (attribute(NDA_LLADDR, packed_mac(mac)) if mac else b"")


def forwarding(index: int, mac: str, state: int = 0) -> bytes:
    """An entry of a bridge's database: the port on which a MAC address is."""
    return _NEIGHBOUR.pack(socket.AF_BRIDGE, index, state, NTF_MASTER, 0) + attribute(NDA_LLADDR, packed_mac(mac))


def route(
    destination: Network,
    link: int,
    gateway: IPAddress | None = None,
    source: IPAddress | None = None,
    *,
    flags: int = 0,
    kind: int = RTN_UNICAST,
    table: int = RT_TABLE_MAIN,
    scope: int = RT_SCOPE_UNIVERSE,
) -> bytes:
    """A route to a prefix by a link; with RTNH_F_ONLINK in `flags` the gateway needs no route of its own."""
    protocol = RTPROT_STATIC
    head = _ROUTE.pack(family(destination.version), destination.prefixlen, 0, 0, table, protocol, scope, kind, flags)
    parts = [attribute(RTA_DST, destination.network_address.packed)] if destination.prefixlen else []
    parts += [attribute(RTA_GATEWAY, gateway.packed)] if gateway is not None else []
    parts += [attribute(RTA_OIF, number(link))]
    parts += [attribute(RTA_PREFSRC, source.packed)] if source is not None else []
    return head + b"".join(parts)


def proxy_delay(index: int, milliseconds: int) -> bytes:
    """How long ARP answers on behalf of others are held back on a link."""
    values = attribute(NDTPA_IFINDEX, number(index)), attribute(NDTPA_PROXY_DELAY, struct.pack("=Q", milliseconds))
    return _TABLE.pack(socket.AF_INET) + attribute(NDTA_NAME, _text("arp_cache")) + nested(NDTA_PARMS, *values)


def all_links() -> bytes:
    """The question for all links."""
    return link(0, NO_STATISTICS)


def all_addresses(version: int = 0, link: int = 0) -> bytes:
    """The query for all addresses, of both versions if none is given; a strict kernel reports only those of `link`."""
    return _ADDRESS.pack(family(version) if version else 0, 0, 0, 0, link)


def all_neighbours(number: int = socket.AF_UNSPEC) -> bytes:
    """The query for all neighbours, or with AF_BRIDGE for the databases of all bridges."""
    return _NEIGHBOUR.pack(number, 0, 0, 0, 0)


def all_routes(version: int = 0, table: int = 0) -> bytes:
    """The query for all routes, of both versions if none is given; a strict kernel reports only those of `table`."""
    return _ROUTE.pack(family(version) if version else 0, 0, 0, 0, table, 0, 0, 0, 0)


def all_tables(version: int = 4) -> bytes:
    """The question for the parameters of all links' neighbours."""
    return _TABLE.pack(family(version))


NO_STATISTICS = attribute(IFLA_EXT_MASK, number(RTEXT_FILTER_SKIP_STATS))


# --- Answers ------------------------------------------------------------------------------------------------------


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _u32(value: bytes) -> int:
    found: int = struct.unpack_from("=I", value)[0]
    return found


def _of_address(value: bytes | None) -> str:
    return str(ipaddress.ip_address(value)) if value else ""


class Link:
    """A link as the kernel describes it; attributes are read when they are asked for."""

    def __init__(self, body: bytes):
        self._body = body
        _, _, self.index, self.flags, _ = _LINK.unpack_from(body)
        self._found = fields(body[_LINK.size :])

    @property
    def name(self) -> str:
        """Its name; the alternative ones are others."""
        return _string(self._found.get(IFLA_IFNAME, b""))

    @property
    def up(self) -> bool:
        """Is it set up?"""
        return bool(self.flags & IFF_UP)

    @property
    def alias(self) -> str:
        """Its alias; empty for none."""
        return _string(self._found.get(IFLA_IFALIAS, b""))

    @property
    def mac(self) -> str | None:
        """Its MAC address."""
        found = self._found.get(IFLA_ADDRESS)
        return None if found is None else found.hex(":")

    @property
    def mtu(self) -> int:
        """The largest packet that it sends; 0 if the kernel does not say."""
        return self._number(IFLA_MTU) or 0

    @property
    def master(self) -> int | None:
        """The index of the bridge that it is a port of."""
        return self._number(IFLA_MASTER)

    @property
    def peer(self) -> int | None:
        """The index of the link that it is tied to: of a pair the other end."""
        return self._number(IFLA_LINK)

    @property
    def forwards(self) -> bool | None:
        """Does the host forward IPv4 packets that arrive there?  None if the kernel does not say (IFLA_AF_SPEC)."""
        of_family = fields(self._found.get(IFLA_AF_SPEC, b"")).get(socket.AF_INET, b"")
        values = fields(of_family).get(IFLA_INET_CONF, b"")
        place = 4 * (IPV4_DEVCONF_FORWARDING - 1)
        return bool(_u32(values[place : place + 4])) if len(values) >= place + 4 else None

    @property
    def enslaved(self) -> bool:
        """Is it a port of a bridge or a bond, and receives no packets by itself?"""
        return _string(self._information.get(IFLA_INFO_SLAVE_KIND, b"")) in ("bridge", "bond", "team")

    @property
    def altnames(self) -> list[str]:
        """Its alternative names."""
        properties = attributes(self._found.get(IFLA_PROP_LIST, b""))
        return [_string(value) for found, value in properties if found == IFLA_ALT_IFNAME]

    @property
    def kind(self) -> str:
        """`bridge`, `veth`, `ifb` and so on; empty for what has none."""
        return _string(self._information.get(IFLA_INFO_KIND, b""))

    @property
    def port(self) -> dict[str, int]:
        """The flags of a bridge's port, by the names of BRIDGE_PORT, as far as the kernel has them."""
        found = fields(self._information.get(IFLA_INFO_SLAVE_DATA, b""))
        return {name: found[number][0] for name, number in BRIDGE_PORT.items() if number in found}

    @cached_property
    def _information(self) -> dict[int, bytes]:
        return fields(self._found.get(IFLA_LINKINFO, b""))

    @property
    def lasting(self) -> tuple[object, ...]:
        """The properties that change only if somebody changes them: no carrier, counters or timers."""
        named = tuple(self._found.get(kind, b"") for kind in _LASTING)
        # In a message about a bridge's port, this attribute has its flags.
        flags = fields(self._found.get(IFLA_PROTINFO, b""))
        other = tuple(flags.get(number, b"")[:1] for number in BRIDGE_PORT.values())
        return self.flags & ~IFF_BY_ITSELF, *named, self.kind, tuple(self.port.items()), other

    def _number(self, kind: int) -> int | None:
        found = self._found.get(kind)
        return None if found is None else _u32(found)


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address that a link has, as `10.0.0.1/24`."""

    link: int
    address: str


def read_address(body: bytes) -> LinkAddress:
    """The address in a message."""
    _, length, _, _, index = _ADDRESS.unpack_from(body)
    found = fields(body[_ADDRESS.size :])
    return LinkAddress(index, f"{_of_address(found.get(IFA_LOCAL, found.get(IFA_ADDRESS)))}/{length}")


@dataclass(frozen=True, slots=True)
class KnownNeighbour:
    """A neighbour, or an entry of a bridge's database, which has no address."""

    link: int
    address: str
    mac: str | None
    state: int


def read_neighbour(body: bytes) -> KnownNeighbour:
    """The neighbour in a message."""
    found_family, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
    found = fields(body[_NEIGHBOUR.size :])
    mac = found.get(NDA_LLADDR)
    address = "" if found_family == socket.AF_BRIDGE else _of_address(found.get(NDA_DST))
    return KnownNeighbour(index, address, None if mac is None else mac.hex(":"), state)


@dataclass(frozen=True, slots=True)
class KnownRoute:
    """A route: to a prefix by links, with the metric, the gateway and the source that it has, if any.

    `kind` is RTN_UNICAST for one that leads somewhere else.  `alive` is false while its only link carries no packets.
    """

    table: int
    kind: int
    destination: Network
    links: tuple[int, ...]
    gateway: str
    source: str
    metric: int
    alive: bool = True

    @property
    def outward(self) -> bool:
        """Does it lead to the whole internet, or to a half of it, as VPNs do that leave the other route alone?"""
        return self.kind == RTN_UNICAST and self.destination.prefixlen <= 1


def read_route(body: bytes) -> KnownRoute | None:
    """The route in a message; None for one of another family than IP."""
    found_family, length, _, _, table, _, _, kind, flags = _ROUTE.unpack_from(body)
    if found_family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = fields(body[_ROUTE.size :])
    prefix = found.get(RTA_DST, bytes(4 if found_family == socket.AF_INET else 16))
    single = found.get(RTA_OIF)
    return KnownRoute(
        _u32(found[RTA_TABLE]) if RTA_TABLE in found else table,
        kind,
        ipaddress.ip_network((prefix, length)),
        (_u32(single),) if single is not None else tuple(_next_hops(found.get(RTA_MULTIPATH, b""))),
        _of_address(found.get(RTA_GATEWAY)),
        _of_address(found.get(RTA_PREFSRC)),
        _u32(found.get(RTA_PRIORITY, bytes(4))),
        not flags & (RTNH_F_DEAD | RTNH_F_LINKDOWN),
    )


def _next_hops(value: bytes) -> list[int]:
    """The indices of the links of several next hops."""
    found, place = [], 0
    while place + _NEXT_HOP.size <= len(value):
        length, _, _, index = _NEXT_HOP.unpack_from(value, place)
        if length < _NEXT_HOP.size:
            break
        found.append(index)
        place += (length + 3) & ~3
    return found


def read_proxy_delay(body: bytes) -> tuple[int, int] | None:
    """The index of a link and its delay in milliseconds (see `proxy_delay`); None for what is not a link's."""
    found = fields(body[_TABLE.size :])
    parameters = fields(found.get(NDTA_PARMS, b""))
    if _string(found.get(NDTA_NAME, b"")) != "arp_cache" or NDTPA_IFINDEX not in parameters:
        return None
    delay: int = struct.unpack("=Q", parameters.get(NDTPA_PROXY_DELAY, bytes(8)))[0]
    return _u32(parameters[NDTPA_IFINDEX]), delay
