"""Links, addresses, neighbours and routes of one namespace, through rtnetlink(7).

An `Rtnl` is bound to the namespace in which it was opened.  Creating a link sets its MAC address in the same request,
its alias (the mark of ownership) in the next; where a crash came between, the MAC address says whose the link is.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
from collections.abc import Callable

from vpcctl.errors import ConflictError, GoneError, KernelError
from vpcctl.kernel import claims
from vpcctl.kernel import rtnetlink as rt
from vpcctl.kernel.namespaces import inside, opened
from vpcctl.kernel.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Channel, NetlinkError
from vpcctl.resources.kinds import (
    PORT_FLAGS,
    Address,
    Bridge,
    ChecksumLink,
    FdbEntry,
    LinkUp,
    Mtu,
    Neighbour,
    Open,
    Port,
    ProxyDelay,
    Route,
    Veth,
    where,
)
from vpcctl.resources.protocol import ABSENT, RIGHT, Condition, Status

# The loopback interface's index in every namespace, even if it was renamed inside (include/net/flow.h).
LOOPBACK, LOOPBACK_IFINDEX = "lo", 1
# Packets that wait in an ifb device; the kernel's 32 are too few for a burst of small ones.
IFB_QUEUE = 1000
ABSENCE = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENXIO}


class Rtnl:
    """rtnetlink in one namespace: for each kind of item `ensure_…`, `remove_…` and `observe_…`."""

    def __init__(self, namespace: str | None):
        self.namespace = namespace
        self._indices = {LOOPBACK: LOOPBACK_IFINDEX}
        # Whose the namespace is was checked once, when it was opened: it is entered again by this descriptor.
        self._descriptor = None if namespace is None else opened(namespace)
        try:
            with self.inside():
                self._channel = Channel()
        except BaseException:
            self._close_descriptor()
            raise

    def close(self) -> None:
        """Close the socket, and leave the namespace alone."""
        self._channel.close()
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """Move the calling thread into the namespace for the duration."""
        if self._descriptor is None:
            return contextlib.nullcontext()
        return inside(self._descriptor, str(self.namespace))

    # -- links ---------------------------------------------------------------------------------------------------

    def link(self, name: str) -> rt.Link | None:
        """The link with that name or alternative name; None if no link has it."""
        try:
            found = rt.Link(self._channel.single(rt.RTM_GETLINK, rt.lookup(name)))
        except NetlinkError as error:
            if error.errno in ABSENCE:
                return None
            raise
        if name != LOOPBACK:
            self._indices[name] = found.index
        return found

    def links(self) -> dict[str, rt.Link]:
        """All links by name.  The loopback interface is `lo`, even if it was renamed."""
        dumped = [rt.Link(body) for body in self._channel.dump(rt.RTM_GETLINK, rt.all_links())]
        found = {link.name: link for link in dumped}
        found[LOOPBACK] = next(link for link in dumped if link.index == LOOPBACK_IFINDEX)
        self._indices = {name: link.index for name, link in found.items()}
        return found

    def present(self, name: str) -> rt.Link:
        """The link of that name; GoneError if it is gone: root in an instance can delete it at any time."""
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
        return None if link is None else link.alias

    def set_alias(self, name: str, alias: str) -> None:
        """Give the link `name` an alias."""
        self.set_link(self.index(name), rt.alias(alias))

    def add_link(self, *attributes: bytes) -> None:
        """Make a link with such attributes."""
        self._channel.change(rt.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, rt.link(0, *attributes))

    def set_link(self, index: int, *attributes: bytes) -> None:
        """Give the link such attributes."""
        self._channel.change(rt.RTM_NEWLINK, 0, rt.link(index, *attributes))

    def set_up(self, index: int, up: bool) -> None:
        """Set the link up or down."""
        flags = rt.IFF_UP if up else 0
        self._channel.change(rt.RTM_NEWLINK, 0, rt.link(index, flags=flags, change=rt.IFF_UP))

    def delete_link(self, index: int) -> None:
        """Delete the link."""
        self._channel.change(rt.RTM_DELLINK, 0, rt.link(index))

    def add_altname(self, index: int, name: str) -> None:
        """Give the link an alternative name."""
        flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND
        self._channel.change(rt.RTM_NEWLINKPROP, flags, rt.link(index, rt.alternative(name)))

    def ensure_bridge(self, item: Bridge) -> None:
        if self._is_free(item):
            self.add_link(rt.name_and_mac(item.name, item.mac), rt.bridge())
        self._label(item.name, item.tag, item.altname)

    def ensure_ifb(self, item: ChecksumLink) -> None:
        if self._is_free(item):
            self.add_link(rt.name_and_mac(item.name, item.mac), rt.queue(IFB_QUEUE), rt.kind("ifb"))
        self._label(item.name, item.tag, "")

    def ensure_veth(self, item: Veth) -> None:
        """Make the pair.  An end for the host is labelled here before it moves, so the host never sees it bare."""
        if self._is_free(item):
            self._add_veth(item)
        self._label(item.name, item.tag, item.altname)
        if item.peer_namespace is None and self.link(item.peer_name) is not None:
            self._label(item.peer_name, item.tag, item.peer_altname)
            home = os.open(claims.OWN, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.set_link(self.index(item.peer_name), rt.namespace(home))
            finally:
                os.close(home)
            self.forget(item.peer_name)

    def _add_veth(self, item: Veth) -> None:
        """Both ends in one request, each with its name and MAC address, in its namespace."""
        own = rt.name_and_mac(item.name, item.mac)
        if item.peer_namespace is None:
            self.add_link(own, rt.veth(item.peer_name, item.peer_mac))
            return
        descriptor = opened(item.peer_namespace)
        try:
            self.add_link(own, rt.veth(item.peer_name, item.peer_mac, descriptor))
        finally:
            os.close(descriptor)

    def is_ours(self, item: Bridge | Veth | ChecksumLink) -> bool:
        """Is there a link of that name with our mark?

        It is its alias; and its MAC address, which it has from the first moment, where a crash left it bare.
        """
        found = self.link(item.name)
        return found is not None and (found.alias == item.tag or found.mac == item.mac)

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
        if link.alias != tag:
            self.set_alias(name, tag)
        if altname and altname not in link.altnames:
            self.add_altname(link.index, altname)

    def remove_link(self, name: str) -> None:
        """Delete the link; absent is success."""
        if self.link(name) is not None:
            self.delete_link(self.index(name))
        self.forget(name)

    def evict(self, name: str, rename: bool = False) -> None:
        """Have no link called `name`: delete it, or take the name from one that cannot be deleted or only lends it.

        With `rename` the link is not deleted but set down and renamed, which works for every link and is quicker.  A
        link that is gone or changed meanwhile is not an error: the caller tries again.
        """
        try:
            self._evict(name, rename)
        except NetlinkError as error:
            if error.errno not in ABSENCE | {errno.EBUSY, errno.EEXIST}:
                raise
        self.forget(name)

    def _evict(self, name: str, rename: bool) -> None:
        link = self.link(name)
        if link is None:
            return
        index = link.index
        if link.name != name:
            self._channel.change(rt.RTM_DELLINKPROP, 0, rt.link(index, rt.alternative(name)))
        elif rename or index == LOOPBACK_IFINDEX:
            other = f"{LOOPBACK}{LOOPBACK_IFINDEX}" if index == LOOPBACK_IFINDEX else f"{name}~{os.urandom(4).hex()}"
            self.set_up(index, False)
            self.set_link(index, rt.rename(other))
            if index == LOOPBACK_IFINDEX:
                self.set_up(index, True)
        else:
            self.delete_link(index)

    def observe_link(self, link: rt.Link | None, item: Bridge | Veth | ChecksumLink, mac: str) -> Condition:
        """Compare a link with the item that it should be."""
        if link is None:
            return ABSENT
        if link.alias != item.tag:
            return Condition(Status.DIFFERENT, "does not carry our tag")
        if link.mac != mac:
            return Condition(Status.DIFFERENT, f"has MAC {link.mac}, expected {mac}")
        return RIGHT

    # -- ports ---------------------------------------------------------------------------------------------------

    def ensure_port(self, item: Port) -> None:
        index = self.index(item.name)
        self.set_link(index, rt.master(self.index(item.bridge)))
        # The kernel refuses these flags in the request that enslaves the port.
        self.set_link(index, rt.bridge_port(PORT_FLAGS))

    def remove_port(self, item: Port) -> None:
        self.set_link(self.index(item.name), rt.master(0))

    def observe_port(self, link: rt.Link | None, item: Port) -> Condition:
        if link is None:
            return ABSENT
        if link.master is None or link.master != self._indices.get(item.bridge):
            return Condition(Status.DIFFERENT, f"is not a port of {item.bridge}")
        found = link.port
        for flag, value in PORT_FLAGS.items():
            if found.get(flag) != value:
                return Condition(Status.DIFFERENT, f"{flag} is {found.get(flag)}, expected {value}")
        return RIGHT

    # -- up and down ---------------------------------------------------------------------------------------------

    def ensure_up(self, item: LinkUp | Open) -> None:
        self.set_up(self.index(item.link), True)

    def ensure_mtu(self, item: Mtu) -> None:
        self.set_link(self.index(item.link), rt.mtu(item.mtu))

    def remove_up(self, item: LinkUp | Open) -> None:
        self.set_up(self.index(item.link), False)

    # -- addresses, neighbours, routes ---------------------------------------------------------------------------

    def add_address(self, body: bytes) -> None:
        """Add an address as `rtnetlink.address` describes it."""
        self._channel.change(rt.RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)

    def ensure_address(self, item: Address) -> None:
        _tolerating(errno.EEXIST, lambda: self.add_address(self._address(item)))

    def remove_address(self, item: Address) -> None:
        self._channel.change(rt.RTM_DELADDR, 0, self._address(item))

    def _address(self, item: Address) -> bytes:
        own = ipaddress.ip_interface(item.address)
        return rt.address(self.index(item.link), own.ip, own.network.prefixlen)

    def addresses(self, version: int = 0) -> list[rt.LinkAddress]:
        """All addresses, of both versions where none is given."""
        return [rt.read_address(body) for body in self._channel.dump(rt.RTM_GETADDR, rt.all_addresses(version))]

    def ensure_neighbour(self, item: Neighbour) -> None:
        body = rt.neighbour(self.index(item.link), ipaddress.ip_address(item.address), item.mac, state=rt.NUD_PERMANENT)
        self._channel.change(rt.RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)

    def remove_neighbour(self, item: Neighbour) -> None:
        self._channel.change(
            rt.RTM_DELNEIGH, 0, rt.neighbour(self.index(item.link), ipaddress.ip_address(item.address))
        )

    def ensure_fdb(self, item: FdbEntry) -> None:
        body = rt.forwarding(self.index(item.link), item.mac, state=FDB_STATIC)
        self._channel.change(rt.RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)

    def remove_fdb(self, item: FdbEntry) -> None:
        self._channel.change(rt.RTM_DELNEIGH, 0, rt.forwarding(self.index(item.link), item.mac))

    def neighbours(self, family: int) -> list[rt.KnownNeighbour]:
        """All neighbours of a family of addresses; with AF_BRIDGE the entries of the bridges' databases."""
        return [rt.read_neighbour(body) for body in self._channel.dump(rt.RTM_GETNEIGH, rt.all_neighbours(family))]

    def ensure_route(self, item: Route) -> None:
        # Where root in an instance has put another route in front of ours, ours is there and cannot replace that one.
        _tolerating(errno.EEXIST, lambda: self.add_route(self._route(item, item.source)))

    def remove_route(self, item: Route) -> None:
        self._channel.change(rt.RTM_DELROUTE, 0, self._route(item, ""))

    def _route(self, item: Route, source: str) -> bytes:
        return rt.route(
            ipaddress.ip_network(item.destination),
            self.index(item.link),
            ipaddress.ip_address(item.via),
            ipaddress.ip_address(source) if source else None,
            flags=ONLINK,
        )

    def routes(self, version: int = 0) -> list[rt.KnownRoute]:
        """All routes of all tables, of both versions where none is given."""
        read = (rt.read_route(body) for body in self._channel.dump(rt.RTM_GETROUTE, rt.all_routes(version)))
        return [one for one in read if one is not None]

    def add_route(self, body: bytes) -> None:
        """Add or replace a route as `rtnetlink.route` describes it."""
        self._channel.change(rt.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)

    def ensure_proxy_delay(self, item: ProxyDelay) -> None:
        """`ip ntable change` in one message: older kernels hide the sysctl of that name in user namespaces."""
        self._channel.change(rt.RTM_SETNEIGHTBL, 0, rt.proxy_delay(self.index(item.link), item.milliseconds))

    def proxy_delays(self) -> dict[int, int]:
        """Each link's delay in milliseconds, by index."""
        read = (rt.read_proxy_delay(body) for body in self._channel.dump(rt.RTM_GETNEIGHTBL, rt.all_tables()))
        return dict(one for one in read if one is not None)


# NTF_MASTER entries with NUD_NOARP are what bridge(8) calls `static` (include/uapi/linux/neighbour.h).
FDB_STATIC = rt.NUD_NOARP
ONLINK = rt.RTNH_F_ONLINK


def contended(make: Callable[[], None], evict: Callable[[int], object], attempts: int) -> None:
    """Make a link whose name another link may hold: `evict` frees it, given the number of attempts so far.

    KernelError when the name was taken again each time.
    """
    for attempt in range(attempts):
        try:
            return make()
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
        if attempt < attempts - 1:
            evict(attempt)
    raise KernelError(f"the name of the link was taken again after each of {attempts} attempts to free it")


def _tolerating(number: int, action: Callable[[], object]) -> None:
    try:
        action()
    except NetlinkError as error:
        if error.errno != number:
            raise
