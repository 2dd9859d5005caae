"""Links, addresses, neighbours and routes of one namespace, through rtnetlink(7).

An `Rtnl` is bound to the namespace in which it was opened.  Creating a link sets its MAC address in the same request,
its alias (the mark of ownership) in the next; where a crash came between, the MAC address says whose the link is.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable
from functools import cached_property

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_SETNEIGHTBL, ndmsg
from pyroute2.netlink.rtnl.ndtmsg import ndtmsg

from vpcctl.errors import ConflictError, GoneError
from vpcctl.items import (
    Address,
    Bridge,
    ChecksumLink,
    FdbEntry,
    Item,
    LinkUp,
    Neighbour,
    Open,
    Port,
    ProxyDelay,
    Route,
    Veth,
    where,
)
from vpcctl.kernel.interface import ABSENT, RIGHT, Condition, State
from vpcctl.kernel.namespaces import RUN_NETNS, entered

PORT_FLAGS = {
    "isolated": 1, "locked": 1, "learning": 0, "unicast_flood": 0, "mcast_flood": 0, "bcast_flood": 0
}  # fmt: skip
# The loopback interface's index in every namespace, whatever somebody inside calls it (include/net/flow.h).
LOOPBACK, LOOPBACK_IFINDEX = "lo", 1
RT_TABLE_MAIN = 254
# Packets that wait in an ifb device; the kernel's 32 are too few for a burst of small ones.
IFB_QUEUE = 1000
ABSENCE = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENXIO}


class Rtnl:
    """rtnetlink in one namespace: for each kind of item `ensure_…`, `remove_…` and `observe_…`."""

    def __init__(self, namespace: str | None):
        self.namespace = namespace
        with entered(namespace):
            self._socket = IPRoute()
        self._indices = {LOOPBACK: LOOPBACK_IFINDEX}

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    # -- links ---------------------------------------------------------------------------------------------------

    def link(self, name: str):
        """The link message of `name`, or None."""
        try:
            found = self._socket.link("get", ifname=name)
        except NetlinkError as error:
            if error.code in ABSENCE:
                return None
            raise
        if not found:
            return None
        if name != LOOPBACK:
            self._indices[name] = found[0]["index"]
        return found[0]

    def index(self, name: str) -> int:
        """The index of the link `name`; KernelError if it is gone."""
        if name not in self._indices and self.link(name) is None:
            raise GoneError(f"link {name} in {where(self.namespace)} is gone; `vpcctl repair` makes it again")
        return self._indices[name]

    def forget(self, name: str) -> None:
        """Look `name` up again next time."""
        self._indices.pop(name, None)

    def alias(self, name: str) -> str | None:
        """The alias of the link `name`; None if there is no such link."""
        link = self.link(name)
        return None if link is None else (link.get_attr("IFLA_IFALIAS") or "")

    def set_alias(self, name: str, alias: str) -> None:
        """Give the link `name` an alias."""
        self._socket.link("set", index=self.index(name), ifalias=alias)

    def ensure_bridge(self, item: Bridge) -> None:
        if self._is_free(item):
            self._socket.link("add", ifname=item.name, kind="bridge", address=item.mac, br_mcast_snooping=0)
        self._label(item.name, item.tag, item.altname)

    def ensure_ifb(self, item: ChecksumLink) -> None:
        if self._is_free(item):
            self._socket.link("add", ifname=item.name, kind="ifb", address=item.mac, txqlen=IFB_QUEUE)
        self._label(item.name, item.tag, "")

    def ensure_veth(self, item: Veth) -> None:
        """Make the pair.  An end for the host is labelled here before it moves, so the host never sees it bare."""
        if self._is_free(item):
            peer = {"ifname": item.peer_name, "address": item.peer_mac}
            if item.peer_namespace is not None:
                peer["net_ns_fd"] = str(RUN_NETNS / item.peer_namespace)
            self._socket.link("add", ifname=item.name, kind="veth", address=item.mac, peer=peer)
        self._label(item.name, item.tag, item.altname)
        if item.peer_namespace is None and self.link(item.peer_name) is not None:
            self._label(item.peer_name, item.tag, item.peer_altname)
            self._socket.link("set", index=self.index(item.peer_name), net_ns_fd="/proc/thread-self/ns/net")
            self.forget(item.peer_name)

    def is_ours(self, item: Bridge | Veth | ChecksumLink) -> bool:
        """Is there a link of that name with our mark?

        It is its alias; and its MAC address, which it has from the first moment, where a crash left it bare.
        """
        found = self.link(item.name)
        return found is not None and (
            found.get_attr("IFLA_IFALIAS") == item.tag or found.get_attr("IFLA_ADDRESS") == item.mac
        )

    def _is_free(self, item: Bridge | Veth | ChecksumLink) -> bool:
        """Is nothing there under the link's name?  ConflictError for what is not ours."""
        if self.link(item.name) is None:
            return True
        if not self.is_ours(item):
            raise ConflictError(f"{where(self.namespace)} has a link {item.name} that is not ours; remove or rename it")
        return False

    def _label(self, name: str, tag: str, altname: str) -> None:
        """Alias and alternative name, where they are missing."""
        link = self.link(name)
        if (link.get_attr("IFLA_IFALIAS") or "") != tag:
            self.set_alias(name, tag)
        if altname and altname not in _altnames(link):
            self._socket.link("property_add", index=self.index(name), altname=altname)

    def remove_link(self, name: str) -> None:
        """Delete the link; absent is success."""
        if self.link(name) is not None:
            self._socket.link("del", index=self.index(name))
        self.forget(name)

    def evict(self, name: str) -> None:
        """Have no link called `name`: delete it, or take the name from one that cannot be deleted or only lends it."""
        link = self.link(name)
        if link is None:
            return
        if link.get_attr("IFLA_IFNAME") != name:
            self._socket.link("property_del", index=link["index"], altname=name)
        elif link["index"] == LOOPBACK_IFINDEX:
            self._socket.link("set", index=LOOPBACK_IFINDEX, state="down")
            self._socket.link("set", index=LOOPBACK_IFINDEX, ifname=f"{LOOPBACK}{LOOPBACK_IFINDEX}")
            self._socket.link("set", index=LOOPBACK_IFINDEX, state="up")
        else:
            self._socket.link("del", index=link["index"])
        self.forget(name)

    def observe_link(self, link, item: Bridge | Veth | ChecksumLink, mac: str) -> Condition:
        """Compare a link message with the item that it should be."""
        if link is None:
            return ABSENT
        if (link.get_attr("IFLA_IFALIAS") or "") != item.tag:
            return Condition(State.DIFFERENT, "does not carry our tag")
        if link.get_attr("IFLA_ADDRESS") != mac:
            return Condition(State.DIFFERENT, f"has MAC {link.get_attr('IFLA_ADDRESS')}, expected {mac}")
        return RIGHT

    # -- ports ---------------------------------------------------------------------------------------------------

    def ensure_port(self, item: Port) -> None:
        index = self.index(item.name)
        self._socket.link("set", index=index, master=self.index(item.bridge))
        # The kernel refuses these flags in the request that enslaves the port.
        self._socket.brport("set", index=index, **PORT_FLAGS)

    def remove_port(self, item: Port) -> None:
        self._socket.link("set", index=self.index(item.name), master=0)

    def observe_port(self, link, item: Port) -> Condition:
        if link is None:
            return ABSENT
        if link.get_attr("IFLA_MASTER") != self._indices.get(item.bridge):
            return Condition(State.DIFFERENT, f"is not a port of {item.bridge}")
        info = link.get_attr("IFLA_LINKINFO")
        data = info.get_attr("IFLA_INFO_SLAVE_DATA") if info is not None else None
        for flag, value in PORT_FLAGS.items():
            found = data.get_attr(f"IFLA_BRPORT_{flag.upper()}") if data is not None else None
            if found != value:
                return Condition(State.DIFFERENT, f"{flag} is {found}, expected {value}")
        return RIGHT

    # -- up and down ---------------------------------------------------------------------------------------------

    def ensure_up(self, item: LinkUp | Open) -> None:
        self._socket.link("set", index=self.index(item.link), state="up")

    def remove_up(self, item: LinkUp | Open) -> None:
        self._socket.link("set", index=self.index(item.link), state="down")

    # -- addresses, neighbours, routes ---------------------------------------------------------------------------

    def ensure_address(self, item: Address) -> None:
        address, length = item.address.split("/")
        _tolerating(
            errno.EEXIST,
            lambda: self._socket.addr("add", index=self.index(item.link), address=address, prefixlen=int(length)),
        )

    def remove_address(self, item: Address) -> None:
        address, length = item.address.split("/")
        self._socket.addr("del", index=self.index(item.link), address=address, prefixlen=int(length))

    def ensure_neighbour(self, item: Neighbour) -> None:
        self._socket.neigh(
            "replace", dst=item.address, lladdr=item.mac, ifindex=self.index(item.link), state=ndmsg.states["permanent"]
        )

    def remove_neighbour(self, item: Neighbour) -> None:
        self._socket.neigh("del", dst=item.address, ifindex=self.index(item.link))

    def ensure_fdb(self, item: FdbEntry) -> None:
        self._socket.fdb(
            "replace", lladdr=item.mac, ifindex=self.index(item.link), flags=ndmsg.flags["master"], state=FDB_STATIC
        )

    def remove_fdb(self, item: FdbEntry) -> None:
        self._socket.fdb("del", lladdr=item.mac, ifindex=self.index(item.link), flags=ndmsg.flags["master"])

    def ensure_route(self, item: Route) -> None:
        source = {"prefsrc": item.source} if item.source else {}
        self._socket.route(
            "replace", dst=item.destination, gateway=item.via, oif=self.index(item.link), flags=ONLINK, **source
        )

    def remove_route(self, item: Route) -> None:
        self._socket.route("del", dst=item.destination, gateway=item.via, oif=self.index(item.link))

    def ensure_proxy_delay(self, item: ProxyDelay) -> None:
        """`ip ntable change` in one message: older kernels hide the sysctl of that name in user namespaces."""
        message = ndtmsg()
        message["family"] = socket.AF_INET
        message["attrs"] = [
            ("NDTA_NAME", "arp_cache"),
            (
                "NDTA_PARMS",
                {"attrs": [("NDTPA_IFINDEX", self.index(item.link)), ("NDTPA_PROXY_DELAY", item.milliseconds)]},
            ),
        ]
        message["header"]["type"] = RTM_SETNEIGHTBL
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
        message.encode()
        _converse(self.namespace, bytes(message.data))

    def tc(self, *words: object, **arguments: object) -> None:
        """One request about qdiscs and filters (tc(8))."""
        self._socket.tc(*words, **arguments)

    # -- everything at once, for comparison ----------------------------------------------------------------------

    def survey(self) -> Survey:
        """A dump of everything that items of this namespace can be compared with."""
        return Survey(self)

    def dump(self, what: str, **arguments):
        """One of the socket's dumps as a list."""
        return list(getattr(self._socket, what)(**arguments))


# NTF_MASTER entries with NUD_NOARP are what bridge(8) calls `static` (include/uapi/linux/neighbour.h).
FDB_STATIC = 0x40
# RTNH_F_ONLINK, include/uapi/linux/rtnetlink.h.
ONLINK = 4


def _converse(namespace: str | None, request: bytes) -> None:
    """Send one request that pyroute2 has no call for, and raise OSError unless the kernel acknowledges it."""
    with entered(namespace), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
        channel.send(request)
        answer = channel.recv(4096)
    # struct nlmsghdr is 16 bytes; struct nlmsgerr begins with the negative error number (netlink(7)).
    number = -struct.unpack_from("=i", answer, 16)[0]
    if number:
        raise OSError(number, os.strerror(number))


def _tolerating(number: int, action: Callable[[], object]) -> None:
    try:
        action()
    except NetlinkError as error:
        if error.code != number:
            raise


def _altnames(link) -> list[str]:
    properties = link.get_attr("IFLA_PROP_LIST")
    return [] if properties is None else [value for name, value in properties["attrs"] if name == "IFLA_ALT_IFNAME"]


class Survey:
    """What one namespace contains, each kind dumped once and only if asked for."""

    def __init__(self, rtnl: Rtnl):
        self._rtnl = rtnl

    @cached_property
    def links(self) -> dict[str, object]:
        dumped = self._rtnl.dump("get_links")
        found = {link.get_attr("IFLA_IFNAME"): link for link in dumped}
        found[LOOPBACK] = next(link for link in dumped if link["index"] == LOOPBACK_IFINDEX)
        self._rtnl._indices = {name: link["index"] for name, link in found.items()}
        return found

    @cached_property
    def _names(self) -> dict[int, str]:
        return {link["index"]: name for name, link in self.links.items()}

    @cached_property
    def addresses(self) -> set[tuple[str, str]]:
        """(link, address/length)"""
        return {
            (self._names.get(found["index"], ""), f"{found.get_attr('IFA_ADDRESS')}/{found['prefixlen']}")
            if found.get_attr("IFA_LOCAL") is None
            else (self._names.get(found["index"], ""), f"{found.get_attr('IFA_LOCAL')}/{found['prefixlen']}")
            for found in self._rtnl.dump("get_addr")
        }

    @cached_property
    def neighbours(self) -> dict[tuple[str, str], tuple[str, int]]:
        """(link, address) to (MAC, state)"""
        return {
            (self._names.get(found["ifindex"], ""), found.get_attr("NDA_DST")): (
                found.get_attr("NDA_LLADDR"),
                found["state"],
            )
            for found in self._rtnl.dump("get_neighbours")
        }

    @cached_property
    def forwarding(self) -> dict[tuple[str, str], int]:
        """(link, MAC) to state, of the bridges' databases"""
        return {
            (self._names.get(found["ifindex"], ""), found.get_attr("NDA_LLADDR")): found["state"]
            for found in self._rtnl.dump("get_neighbours", family=socket.AF_BRIDGE)
        }

    @cached_property
    def routes(self) -> dict[str, tuple[str, str, str]]:
        """destination to (next hop, link, source), of those in the main table that come first: without a metric"""
        found = {}
        for route in self._rtnl.dump("get_routes", table=RT_TABLE_MAIN):
            if route.get_attr("RTA_PRIORITY"):
                continue
            everything = "0.0.0.0" if route["family"] == socket.AF_INET else "::"
            destination = f"{route.get_attr('RTA_DST') or everything}/{route['dst_len']}"
            link = self._names.get(route.get_attr("RTA_OIF") or 0, "")
            found[destination] = (route.get_attr("RTA_GATEWAY") or "", link, route.get_attr("RTA_PREFSRC") or "")
        return found

    @cached_property
    def proxy_delays(self) -> dict[str, int]:
        """link to milliseconds"""
        found = {}
        for table in self._rtnl.dump("get_ntables", family=socket.AF_INET):
            parameters = table.get_attr("NDTA_PARMS")
            index = parameters.get_attr("NDTPA_IFINDEX") if parameters is not None else None
            if index and table.get_attr("NDTA_NAME") == "arp_cache":
                found[self._names.get(index, "")] = parameters.get_attr("NDTPA_PROXY_DELAY")
        return found

    def observe(self, item: Item) -> Condition:
        """Compare one item with the dump."""
        return _OBSERVERS[type(item)](self, item)

    def link(self, item: Bridge | Veth) -> Condition:
        return self._rtnl.observe_link(self.links.get(item.name), item, item.mac)

    def port(self, item: Port) -> Condition:
        return self._rtnl.observe_port(self.links.get(item.name), item)

    def up(self, item: LinkUp | Open) -> Condition:
        link = self.links.get(item.link)
        if link is None:
            return ABSENT
        return RIGHT if link["flags"] & 1 else Condition(State.DIFFERENT, "is down")

    def address(self, item: Address) -> Condition:
        return RIGHT if (item.link, item.address) in self.addresses else ABSENT

    def neighbour(self, item: Neighbour) -> Condition:
        found = self.neighbours.get((item.link, item.address))
        if found is None:
            return ABSENT
        if found != (item.mac, ndmsg.states["permanent"]):
            return Condition(State.DIFFERENT, f"is {found[0]} in state {found[1]:#x}, expected {item.mac}, permanent")
        return RIGHT

    def fdb(self, item: FdbEntry) -> Condition:
        found = self.forwarding.get((item.link, item.mac))
        if found is None:
            return ABSENT
        return RIGHT if found == FDB_STATIC else Condition(State.DIFFERENT, "is not static")

    def route(self, item: Route) -> Condition:
        found = self.routes.get(str(ipaddress.ip_network(item.destination)))
        if found is None:
            return ABSENT
        expected = (item.via, item.link, item.source)
        if found == expected:
            return RIGHT
        return Condition(State.DIFFERENT, f"goes via {found[0]} on {found[1]}, expected {item.via} on {item.link}")

    def proxy_delay(self, item: ProxyDelay) -> Condition:
        found = self.proxy_delays.get(item.link)
        if found is None:
            return ABSENT
        if found != item.milliseconds:
            return Condition(State.DIFFERENT, f"is {found} ms, expected {item.milliseconds}")
        return RIGHT


_OBSERVERS: dict[type[Item], Callable[[Survey, Item], Condition]] = {
    Bridge: Survey.link,
    Veth: Survey.link,
    Port: Survey.port,
    LinkUp: Survey.up,
    Open: Survey.up,
    Address: Survey.address,
    Neighbour: Survey.neighbour,
    FdbEntry: Survey.fdb,
    Route: Survey.route,
    ProxyDelay: Survey.proxy_delay,
}
