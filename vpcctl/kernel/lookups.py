"""The items of an instance's namespace, each looked up by its name or key.

Theory of operation.  Root inside an instance may make any number of links, addresses, neighbours and routes.  So no
list of these is read to its end.  A link is looked up by its name, a neighbour by its address.  The kernel has no
request for a single address or route, so these lists are read up to LIMIT messages.  That is enough unless somebody
fills them on purpose.  An item that has not come by then is looked up in a way whose cost does not grow with the list:

- an address by SIOCGIFADDR and SIOCGIFNETMASK (netdevice(7)), which look for the address in the request;
- a route by a request to add it without NLM_F_CREATE.  This request never adds a route.  The kernel answers EEXIST if
  exactly this route exists, and ENOENT if it does not (net/ipv4/fib_trie.c, `fib_table_insert`).
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator

from vpcctl.kernel import netlink
from vpcctl.kernel import rtnetlink as rt
from vpcctl.kernel.links import ABSENCE, LOOPBACK, LOOPBACK_IFINDEX, ONLINK, Rtnl
from vpcctl.kernel.netlink import error_number, fields
from vpcctl.kernel.rtnetlink import (
    IFA_ADDRESS,
    IFA_LOCAL,
    IFF_UP,
    NDA_LLADDR,
    NUD_PERMANENT,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWROUTE,
)
from vpcctl.kernel.survey import Survey, compared_mtu
from vpcctl.resources.kinds import Address, LinkUp, Mtu, Neighbour, Open, Route
from vpcctl.resources.protocol import ABSENT, RIGHT, Condition, Status

SIOCGIFADDR, SIOCGIFNETMASK = 0x8915, 0x891B

# At most so many messages of one list are read.
LIMIT = 256


class Lookups(Survey):
    """The items of one namespace in which a tenant is root, each looked up on its own."""

    def __init__(self, rtnl: Rtnl):
        super().__init__(rtnl)
        self._channel = self._opened()
        self._found: dict[str, tuple[int, int, int] | None] = {}

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()

    # -- items ---------------------------------------------------------------------------------------------------

    def up(self, item: LinkUp | Open) -> Condition:
        link = self._link(item.link)
        if link is None:
            return ABSENT
        return RIGHT if link[1] & IFF_UP else Condition(Status.DIFFERENT, "is down")

    def mtu(self, item: Mtu) -> Condition:
        link = self._link(item.link)
        return ABSENT if link is None else compared_mtu(link[2], item)

    def address(self, item: Address) -> Condition:
        link, wanted = self._link(item.link), ipaddress.ip_interface(item.address)
        if link is None:
            return ABSENT
        listed = self._listed(RTM_GETADDR, rt.all_addresses(wanted.version, link[0]))
        for body in listed:
            found = fields(body[8:])
            if (found.get(IFA_LOCAL, found.get(IFA_ADDRESS)), body[1]) == (wanted.packed, wanted.network.prefixlen):
                return RIGHT
        if not self._running:
            return ABSENT
        if wanted.version == 4:
            return RIGHT if self._has_address(item.link, wanted) else ABSENT
        return Condition(Status.DIFFERENT, f"is not among the first {LIMIT} addresses of {item.link}")

    def neighbour(self, item: Neighbour) -> Condition:
        link, wanted = self._link(item.link), ipaddress.ip_address(item.address)
        if link is None:
            return ABSENT
        body = self._single(RTM_GETNEIGH, rt.neighbour(link[0], wanted))
        if body is None:
            return ABSENT
        state = struct.unpack_from("=H", body, 8)[0]
        mac = fields(body[12:]).get(NDA_LLADDR, b"").hex(":")
        if (mac, state) != (item.mac, NUD_PERMANENT):
            return Condition(Status.DIFFERENT, f"is {mac or None} in state {state:#x}, expected {item.mac}, permanent")
        return RIGHT

    def route(self, item: Route) -> Condition:
        link, wanted = self._link(item.link), ipaddress.ip_network(item.destination)
        if link is None:
            return ABSENT
        expected = (_packed(item.via), link[0], _packed(item.source))
        other: tuple[bytes, int, bytes] | None = None
        for body in self._listed(RTM_GETROUTE, rt.all_routes(wanted.version, RT_TABLE_MAIN)):
            found = fields(body[12:])
            destination = found.get(RTA_DST, bytes(wanted.max_prefixlen // 8)), body[1]
            if destination != (wanted.network_address.packed, wanted.prefixlen) or RTA_PRIORITY in found:
                continue
            oif = struct.unpack("=I", found.get(RTA_OIF, bytes(4)))[0]
            other = (found.get(RTA_GATEWAY, b""), oif, found.get(RTA_PREFSRC, b""))
            if other == expected:
                return RIGHT
        if other is None and self._running:
            return self._asked_for_route(item, link[0])
        if other is None:
            return ABSENT
        via = str(ipaddress.ip_address(other[0])) if other[0] else "no gateway"
        return Condition(Status.DIFFERENT, f"goes via {via}, expected {item.via} on {item.link}")

    # -- beyond the limit ----------------------------------------------------------------------------------------

    def _has_address(self, link: str, wanted: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> bool:
        """Does the link have the address with this mask, and under the link's own name as the label?"""
        asked = struct.pack("16sHH4s16x", link.encode(), socket.AF_INET, 0, wanted.ip.packed)
        with self._rtnl.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            try:
                found = [fcntl.ioctl(line, kind, asked)[20:24] for kind in (SIOCGIFADDR, SIOCGIFNETMASK)]
            except OSError as error:
                if error.errno in ABSENCE:
                    return False
                raise
        return found == [wanted.ip.packed, wanted.netmask.packed]

    def _asked_for_route(self, item: Route, index: int) -> Condition:
        """Does exactly this route exist, or a different one to the same destination?  See the head of this module."""
        unseen = Condition(Status.DIFFERENT, f"is not among the first {LIMIT} routes")
        wanted = ipaddress.ip_network(item.destination)
        if wanted.version != 4:
            return unseen  # for IPv6 this request would add the route
        source = ipaddress.ip_address(item.source) if item.source else None
        request = rt.route(wanted, index, ipaddress.ip_address(item.via), source, flags=ONLINK)
        if self._error(RTM_NEWROUTE, request, 0) == errno.EEXIST:
            return RIGHT
        number = self._error(RTM_NEWROUTE, request, netlink.NLM_F_EXCL)
        if number == errno.EEXIST:
            return Condition(Status.DIFFERENT, f"is a different route, expected one via {item.via} on {item.link}")
        return ABSENT if number in ABSENCE else unseen

    # -- netlink(7) ----------------------------------------------------------------------------------------------

    def _opened(self) -> socket.socket:
        with self._rtnl.inside():
            channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        # The kernel filters lists by the request, and refuses a request that it cannot filter by.
        channel.setsockopt(netlink.SOL_NETLINK, netlink.NETLINK_GET_STRICT_CHK, 1)
        self._running = False
        return channel

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        if self._running:
            # The rest of an unfinished list is still to come; only closing the socket ends it.
            self._channel.close()
            self._channel = self._opened()
        self._channel.send(netlink.message(kind, flags, body))

    def _received(self) -> Iterator[tuple[int, bytes]]:
        """The type and body of each message in the next datagram."""
        return netlink.messages(self._channel.recv(netlink.BUFFER))

    def _listed(self, kind: int, request: bytes) -> Iterator[bytes]:
        """The first LIMIT messages of a list."""
        self._send(kind, netlink.NLM_F_DUMP, request)
        self._running, left = True, LIMIT
        while left > 0:
            for kind, body in self._received():
                if kind in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR):
                    self._running = False
                    return _check(body)
                left -= 1
                yield body

    def _single(self, kind: int, request: bytes) -> bytes | None:
        """The one message of the answer; None if the object does not exist."""
        self._send(kind, 0, request)
        for kind, body in self._received():
            if kind != netlink.NLMSG_ERROR:
                return body
            _check(body)
        return None

    def _error(self, kind: int, request: bytes, flags: int) -> int:
        """The error number with which the kernel answers, 0 for success."""
        self._send(kind, netlink.NLM_F_ACK | flags, request)
        return next((error_number(body) for kind, body in self._received() if kind == netlink.NLMSG_ERROR), 0)

    def _link(self, name: str) -> tuple[int, int, int] | None:
        """The index, the flags and the MTU of the link `name`; alternative names do not count."""
        if name not in self._found:
            # Root inside may rename lo, and give the name lo to another link: the index is certain.
            index = LOOPBACK_IFINDEX if name == LOOPBACK else 0
            body = self._single(RTM_GETLINK, rt.lookup(name, index))
            self._found[name] = None if body is None else _described(body, name)
        return self._found[name]


def _described(body: bytes, name: str) -> tuple[int, int, int] | None:
    found = rt.Link(body)
    described = found.index, found.flags, found.mtu
    return described if found.index == LOOPBACK_IFINDEX or found.name == name else None


def _check(body: bytes) -> None:
    """Raise OSError for the error in a message, unless it means that the object does not exist."""
    if error_number(body) not in ABSENCE:
        netlink.check(body)


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed if address else b""
