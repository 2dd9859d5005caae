"""What a namespace contains, each kind listed once, to compare many items with it.

For namespaces in which nobody else is root: the host's and the routers'.  See `lookups` for the others.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import cached_property

from vpcctl.kernel.links import FDB_STATIC, Rtnl
from vpcctl.kernel.rtnetlink import NUD_PERMANENT, RT_TABLE_MAIN, Link
from vpcctl.resources.kinds import (
    Address,
    Bridge,
    FdbEntry,
    Item,
    LinkUp,
    Mtu,
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
    def links(self) -> dict[str, Link]:
        """All links by name."""
        return self._rtnl.links()

    @cached_property
    def _names(self) -> dict[int, str]:
        return {link.index: name for name, link in self.links.items()}

    def _name(self, index: int) -> str:
        return self._names.get(index, "")

    @cached_property
    def addresses(self) -> set[tuple[str, str]]:
        """(link, address/length)"""
        return {(self._name(found.link), found.address) for found in self._rtnl.addresses()}

    @cached_property
    def neighbours(self) -> dict[tuple[str, str], tuple[str | None, int]]:
        """(link, address) to (MAC, state)"""
        found = self._rtnl.neighbours(socket.AF_UNSPEC)
        return {(self._name(one.link), one.address): (one.mac, one.state) for one in found}

    @cached_property
    def forwarding(self) -> dict[tuple[str, str | None], int]:
        """(link, MAC) to state, of the bridges' databases"""
        return {(self._name(one.link), one.mac): one.state for one in self._rtnl.neighbours(socket.AF_BRIDGE)}

    @cached_property
    def routes(self) -> dict[str, tuple[str, str, str]]:
        """destination to (next hop, link, source), of those in the main table that come first: without a metric"""
        return {
            str(one.destination): (one.gateway, self._name(one.links[0]) if len(one.links) == 1 else "", one.source)
            for one in self._rtnl.routes()
            if one.table == RT_TABLE_MAIN and not one.metric
        }

    @cached_property
    def proxy_delays(self) -> dict[str, int]:
        """link to milliseconds"""
        return {self._name(index): delay for index, delay in self._rtnl.proxy_delays().items()}

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
        return RIGHT if link.up else Condition(Status.DIFFERENT, "is down")

    def mtu(self, item: Mtu) -> Condition:
        link = self.links.get(item.link)
        return ABSENT if link is None else compared_mtu(link.mtu, item)

    def address(self, item: Address) -> Condition:
        return RIGHT if (item.link, item.address) in self.addresses else ABSENT

    def neighbour(self, item: Neighbour) -> Condition:
        found = self.neighbours.get((item.link, item.address))
        if found is None:
            return ABSENT
        if found != (item.mac, NUD_PERMANENT):
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


def compared_mtu(found: int, item: Mtu) -> Condition:
    """How the MTU of a link compares with the item."""
    return RIGHT if found == item.mtu else Condition(Status.DIFFERENT, f"is {found}, expected {item.mtu}")


_OBSERVERS: dict[type[Item], str] = {
    Bridge: "link",
    Veth: "link",
    Port: "port",
    LinkUp: "up",
    Open: "up",
    Mtu: "mtu",
    Address: "address",
    Neighbour: "neighbour",
    FdbEntry: "fdb",
    Route: "route",
    ProxyDelay: "proxy_delay",
}
