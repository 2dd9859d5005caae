"""What a namespace contains, each kind listed once, to compare many items with it.

For namespaces in which nobody else is root: the host's and the routers'.  See `lookups` for the others.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import cached_property

from pyroute2.netlink.rtnl import ndmsg

from vpcctl.kernel.links import FDB_STATIC, LOOPBACK, LOOPBACK_IFINDEX, RT_TABLE_MAIN, Message, Rtnl
from vpcctl.resources.kinds import (
    Address,
    Bridge,
    FdbEntry,
    Item,
    LinkUp,
    Neighbour,
    Open,
    Port,
    ProxyDelay,
    Route,
    Veth,
)
from vpcctl.resources.protocol import ABSENT, RIGHT, Condition, Status


class Survey:
    """What one namespace contains, each kind dumped once and only if asked for."""

    def __init__(self, rtnl: Rtnl):
        self._rtnl = rtnl

    @cached_property
    def links(self) -> dict[str, Message]:
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
        condition: Condition = getattr(self, _OBSERVERS[type(item)])(item)
        return condition

    def link(self, item: Bridge | Veth) -> Condition:
        return self._rtnl.observe_link(self.links.get(item.name), item, item.mac)

    def port(self, item: Port) -> Condition:
        return self._rtnl.observe_port(self.links.get(item.name), item)

    def up(self, item: LinkUp | Open) -> Condition:
        link = self.links.get(item.link)
        if link is None:
            return ABSENT
        return RIGHT if link["flags"] & 1 else Condition(Status.DIFFERENT, "is down")

    def address(self, item: Address) -> Condition:
        return RIGHT if (item.link, item.address) in self.addresses else ABSENT

    def neighbour(self, item: Neighbour) -> Condition:
        found = self.neighbours.get((item.link, item.address))
        if found is None:
            return ABSENT
        if found != (item.mac, ndmsg.states["permanent"]):
            return Condition(Status.DIFFERENT, f"is {found[0]} in state {found[1]:#x}, expected {item.mac}, permanent")
        return RIGHT

    def fdb(self, item: FdbEntry) -> Condition:
        found = self.forwarding.get((item.link, item.mac))
        if found is None:
            return ABSENT
        return RIGHT if found == FDB_STATIC else Condition(Status.DIFFERENT, "is not static")

    def route(self, item: Route) -> Condition:
        found = self.routes.get(str(ipaddress.ip_network(item.destination)))
        if found is None:
            return ABSENT
        expected = (item.via, item.link, item.source)
        if found == expected:
            return RIGHT
        return Condition(Status.DIFFERENT, f"goes via {found[0]} on {found[1]}, expected {item.via} on {item.link}")

    def proxy_delay(self, item: ProxyDelay) -> Condition:
        found = self.proxy_delays.get(item.link)
        if found is None:
            return ABSENT
        if found != item.milliseconds:
            return Condition(Status.DIFFERENT, f"is {found} ms, expected {item.milliseconds}")
        return RIGHT


_OBSERVERS: dict[type[Item], str] = {
    Bridge: "link",
    Veth: "link",
    Port: "port",
    LinkUp: "up",
    Open: "up",
    Address: "address",
    Neighbour: "neighbour",
    FdbEntry: "fdb",
    Route: "route",
    ProxyDelay: "proxy_delay",
}
