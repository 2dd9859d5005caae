"""Links, addresses, neighbours and routes of one namespace, through rtnetlink(7).

An `Rtnl` is bound to the namespace in which it was opened.  Creating a link sets its MAC address in the same request,
its alias (the mark of ownership) in the next; where a crash came between, the MAC address says whose the link is.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Callable
from typing import Any, Protocol

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_SETNEIGHTBL, ndmsg
from pyroute2.netlink.rtnl.ndtmsg import ndtmsg

from vpcctl.errors import ConflictError, GoneError, KernelError
from vpcctl.kernel import netlink
from vpcctl.kernel.namespaces import entered, opened
from vpcctl.resources.kinds import (
    PORT_FLAGS,
    Address,
    Bridge,
    ChecksumLink,
    FdbEntry,
    LinkUp,
    Neighbour,
    Open,
    Port,
    ProxyDelay,
    Route,
    Veth,
    where,
)
from vpcctl.resources.protocol import ABSENT, RIGHT, Condition, Status

# The loopback interface's index in every namespace, whatever somebody inside calls it (include/net/flow.h).
LOOPBACK, LOOPBACK_IFINDEX = "lo", 1
RT_TABLE_MAIN = 254
# Packets that wait in an ifb device; the kernel's 32 are too few for a burst of small ones.
IFB_QUEUE = 1000
ABSENCE = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENXIO}


class Message(Protocol):
    """What we use of a message of pyroute2, which has no types: fields of its head by key, attributes by name."""

    def __getitem__(self, field: str) -> Any: ...

    def get_attr(self, name: str) -> Any:
        """The value of an attribute, None where the message has none of that name."""


class Rtnl:
    """rtnetlink in one namespace: for each kind of item `ensure_…`, `remove_…` and `observe_…`."""

    def __init__(self, namespace: str | None):
        self.namespace = namespace
        with entered(namespace):
            self._channel = IPRoute()
        self._indices = {LOOPBACK: LOOPBACK_IFINDEX}

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()

    @property
    def _socket(self) -> IPRoute:
        """The socket, without the acknowledgements that followed earlier answers.

        pyroute2 keeps 2 KiB for each, in a queue for broadcasts that nobody reads here.
        """
        unread = self._channel.asyncore.msg_queue.root
        while not unread.empty():
            unread.get_nowait()
        return self._channel

    # -- links ---------------------------------------------------------------------------------------------------

    def link(self, name: str) -> Message | None:
        """The link message of `name`, or None."""
        try:
            found: list[Message] = self._socket.link("get", ifname=name)
        except NetlinkError as error:
            if error.code in ABSENCE:
                return None
            raise
        if not found:
            return None
        if name != LOOPBACK:
            self._indices[name] = found[0]["index"]
        return found[0]

    def present(self, name: str) -> Message:
        """The link message of `name`; GoneError if it is gone: root in an instance can delete it at any time."""
        found = self.link(name)
        if found is None:
            raise GoneError(f"link {name} in {where(self.namespace)} is gone; `vpcctl repair` makes it again")
        return found

    def index(self, name: str) -> int:
        """The index of the link `name`; GoneError if it is gone."""
        if name not in self._indices:
            self.present(name)
        return self._indices[name]

    def forget(self, name: str) -> None:
        """Look `name` up again next time."""
        self._indices.pop(name, None)

    def alias(self, name: str) -> str | None:
        """The alias of the link `name`; None if the link does not exist."""
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
            self._add_veth(item)
        self._label(item.name, item.tag, item.altname)
        if item.peer_namespace is None and self.link(item.peer_name) is not None:
            self._label(item.peer_name, item.tag, item.peer_altname)
            self._socket.link("set", index=self.index(item.peer_name), net_ns_fd="/proc/thread-self/ns/net")
            self.forget(item.peer_name)

    def _add_veth(self, item: Veth) -> None:
        """Both ends in one request, each with its name and MAC address, in its namespace."""
        peer: dict[str, object] = {"ifname": item.peer_name, "address": item.peer_mac}
        if item.peer_namespace is None:
            self._socket.link("add", ifname=item.name, kind="veth", address=item.mac, peer=peer)
            return
        descriptor = opened(item.peer_namespace)
        try:
            peer["net_ns_fd"] = descriptor
            self._socket.link("add", ifname=item.name, kind="veth", address=item.mac, peer=peer)
        finally:
            os.close(descriptor)

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
        link = self.present(name)
        if (link.get_attr("IFLA_IFALIAS") or "") != tag:
            self.set_alias(name, tag)
        if altname and altname not in _altnames(link):
            self._socket.link("property_add", index=self.index(name), altname=altname)

    def remove_link(self, name: str) -> None:
        """Delete the link; absent is success."""
        if self.link(name) is not None:
            self._socket.link("del", index=self.index(name))
        self.forget(name)

    def evict(self, name: str, rename: bool = False) -> None:
        """Have no link called `name`: delete it, or take the name from one that cannot be deleted or only lends it.

        With `rename` the link is not deleted but set down and renamed, which works for every link and is quicker.  One
        that is gone or changed meanwhile is no error: who wants the name tries again.
        """
        try:
            self._evict(name, rename)
        except NetlinkError as error:
            if error.code not in ABSENCE | {errno.EBUSY, errno.EEXIST}:
                raise
        self.forget(name)

    def _evict(self, name: str, rename: bool) -> None:
        link = self.link(name)
        if link is None:
            return
        index = link["index"]
        if link.get_attr("IFLA_IFNAME") != name:
            self._socket.link("property_del", index=index, altname=name)
        elif rename or index == LOOPBACK_IFINDEX:
            other = f"{LOOPBACK}{LOOPBACK_IFINDEX}" if index == LOOPBACK_IFINDEX else f"{name}~{secrets.token_hex(4)}"
            self._socket.link("set", index=index, state="down")
            self._socket.link("set", index=index, ifname=other)
            if index == LOOPBACK_IFINDEX:
                self._socket.link("set", index=index, state="up")
        else:
            self._socket.link("del", index=index)

    def observe_link(self, link: Message | None, item: Bridge | Veth | ChecksumLink, mac: str) -> Condition:
        """Compare a link message with the item that it should be."""
        if link is None:
            return ABSENT
        if (link.get_attr("IFLA_IFALIAS") or "") != item.tag:
            return Condition(Status.DIFFERENT, "does not carry our tag")
        if link.get_attr("IFLA_ADDRESS") != mac:
            return Condition(Status.DIFFERENT, f"has MAC {link.get_attr('IFLA_ADDRESS')}, expected {mac}")
        return RIGHT

    # -- ports ---------------------------------------------------------------------------------------------------

    def ensure_port(self, item: Port) -> None:
        index = self.index(item.name)
        self._socket.link("set", index=index, master=self.index(item.bridge))
        # The kernel refuses these flags in the request that enslaves the port.
        self._socket.brport("set", index=index, **PORT_FLAGS)

    def remove_port(self, item: Port) -> None:
        self._socket.link("set", index=self.index(item.name), master=0)

    def observe_port(self, link: Message | None, item: Port) -> Condition:
        if link is None:
            return ABSENT
        if link.get_attr("IFLA_MASTER") != self._indices.get(item.bridge):
            return Condition(Status.DIFFERENT, f"is not a port of {item.bridge}")
        info = link.get_attr("IFLA_LINKINFO")
        data = info.get_attr("IFLA_INFO_SLAVE_DATA") if info is not None else None
        for flag, value in PORT_FLAGS.items():
            found = data.get_attr(f"IFLA_BRPORT_{flag.upper()}") if data is not None else None
            if found != value:
                return Condition(Status.DIFFERENT, f"{flag} is {found}, expected {value}")
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
        route = {"dst": item.destination, "gateway": item.via, "oif": self.index(item.link), "flags": ONLINK, **source}
        # Where root in an instance has put another route in front of ours, ours is there and cannot replace that one.
        _tolerating(errno.EEXIST, lambda: self._socket.route("replace", **route))

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

    def dump(self, what: str, **arguments: object) -> list[Message]:
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
        for _, body in netlink.messages(channel.recv(4096)):
            netlink.check(body)


def contended(make: Callable[[], None], evict: Callable[[int], object], attempts: int) -> None:
    """Make a link whose name somebody else may hold: `evict` frees it, given the number of attempts so far.

    KernelError when the name was taken again each time.
    """
    for attempt in range(attempts):
        try:
            return make()
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
        if attempt < attempts - 1:
            evict(attempt)
    raise KernelError(f"the name of the link was taken again after each of {attempts} attempts to free it")


def _tolerating(number: int, action: Callable[[], object]) -> None:
    try:
        action()
    except NetlinkError as error:
        if error.code != number:
            raise


def _altnames(link: Message) -> list[str]:
    properties = link.get_attr("IFLA_PROP_LIST")
    return [] if properties is None else [value for name, value in properties["attrs"] if name == "IFLA_ALT_IFNAME"]
