"""The sandbox's network: stations on one LAN, each an unnamed network namespace, and nothing else on earth.

Every link made here has both ends in namespaces made here, so no packet finds a way to the real machine's network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

from vpcctl.errors import KernelError
from vpcctl.kernel import rtnetlink as rt
from vpcctl.kernel.links import LOOPBACK_IFINDEX, Rtnl
from vpcctl.kernel.namespaces import CLONE_NEWNET, MS_BIND, mount, setns, unshare
from vpcctl.values import dataclass

_OWN = "/proc/thread-self/ns/net"
_EVERYTHING: dict[int, IPv4Network | IPv6Network] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}

# A new network namespace copies its IPv4 settings from the real machine (net.core.devconf_inherit_init_net); these are
# the kernel's own.  ip_forward goes first, because writing it changes others.
_FRESH = (
    ("net/ipv4/ip_forward", "0"),
    *(
        (f"net/ipv4/conf/{scope}/{setting}", value)
        for scope in ("all", "default")
        for setting, value in (
            ("forwarding", "0"),
            ("accept_redirects", "1"),
            ("send_redirects", "1"),
            ("rp_filter", "0"),
            ("proxy_arp", "0"),
            ("arp_ignore", "0"),
            ("arp_announce", "0"),
            ("arp_filter", "0"),
            ("accept_local", "0"),
            ("route_localnet", "0"),
            ("log_martians", "0"),
        )
    ),
)

# A packet without a socket of its own goes to the responder's socket.  Its destination address and port stay: there is
# no NAT, so no two flows can clash and no connection tracking can fill up.
_EVERY_PORT = """
table inet responder {{
    chain every-port {{
        type filter hook prerouting priority mangle; policy accept;
        socket transparent 0 accept
        fib daddr type local meta l4proto {{ tcp, udp }} tproxy to :{port}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Station:
    """One machine on the sandbox's LAN, with an `eth0` in the network namespace `mounted` (None: where we are).

    `prefixes` are answered for as if each of their addresses were the station's own; with `speaks_as` the station
    calls its neighbours from that address.
    """

    name: str
    mounted: Path | None
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    gateways: tuple[IPv4Address | IPv6Address, ...] = ()
    prefixes: tuple[IPv4Network | IPv6Network, ...] = ()
    speaks_as: IPv4Address | IPv6Address | None = None


def build(lan: Path, stations: Sequence[Station]) -> None:
    """Make the `stations`, and in a namespace at `lan` the bridge that connects them.  Raises KernelError.

    The bridge is alone in its namespace: where br_netfilter is loaded, bridged frames would meet its neighbours' rules.
    """
    try:
        for mounted in (lan, *(station.mounted for station in stations if station.mounted)):
            _create(mounted)
        for station in stations:
            with inside(station.mounted):
                _refresh()
        _cable(lan, stations)
        for station in stations:
            with inside(station.mounted):
                _configure(station)
    except OSError as error:
        raise KernelError("cannot build the lab's network", str(error)) from error


@contextlib.contextmanager
def inside(mounted: Path | None) -> Iterator[None]:
    """Move this thread into the network namespace `mounted` for the duration; None stays where it is."""
    if mounted is None:
        yield
        return
    with open(_OWN) as home, open(mounted) as there:
        setns(there.fileno(), CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home.fileno(), CLONE_NEWNET)


def redirect_every_port(port: int) -> None:
    """Have the transparent sockets on `port` hear what comes to any TCP or UDP port of this namespace.

    Ports on which something else listens stay its own.  Raises KernelError.
    """
    from nftables import Nftables

    try:
        status, _, complaint = Nftables().cmd(_EVERY_PORT.format(port=port))
    except OSError as error:
        raise KernelError("cannot load libnftables.so.1 (Debian: libnftables1)", str(error)) from error
    if status:
        raise KernelError("cannot redirect the pretend internet's ports (nft socket and tproxy)", complaint.strip())


def _create(mounted: Path) -> None:
    """A new network namespace, mounted there."""
    mounted.touch()
    with open(_OWN) as home:
        unshare(CLONE_NEWNET)
        try:
            mount(_OWN, mounted, flags=MS_BIND)
        finally:
            setns(home.fileno(), CLONE_NEWNET)


def _refresh() -> None:
    """Give the namespace that we are in a fresh machine's settings."""
    for name, value in _FRESH:
        setting = Path("/proc/sys", name)
        # Reading first: in a container /proc/sys may be read-only, and right as it is.
        if setting.exists() and setting.read_text().strip() != value:
            setting.write_text(value)


def _cable(lan: Path, stations: Sequence[Station]) -> None:
    """The bridge, and a wire from it to each station's eth0."""
    with contextlib.ExitStack() as until_done:
        ends = [until_done.enter_context(open(station.mounted or _OWN)).fileno() for station in stations]
        until_done.enter_context(inside(lan))
        links = until_done.enter_context(contextlib.closing(Rtnl(None)))
        links.add_link(rt.name_and_mac("lan"), rt.bridge())
        bridge = links.index("lan")
        links.set_up(bridge, True)
        for station, end in zip(stations, ends, strict=True):
            links.add_link(rt.name_and_mac(station.name), rt.veth("eth0", namespace=end))
            port = links.index(station.name)
            links.set_link(port, rt.master(bridge))
            links.set_up(port, True)


def _configure(station: Station) -> None:
    """Addresses, routes and links up, in the station's namespace."""
    with contextlib.closing(Rtnl(None)) as links:
        loopback, wire = LOOPBACK_IFINDEX, links.index("eth0")
        for index in (loopback, wire):
            links.set_up(index, True)
        for address in station.addresses:
            links.add_address(rt.address(wire, address.ip, address.network.prefixlen))
        for gateway in station.gateways:
            links.add_route(rt.route(_EVERYTHING[gateway.version], wire, gateway))
        for prefix in station.prefixes:
            body = rt.route(prefix, loopback, kind=rt.RTN_LOCAL, table=rt.RT_TABLE_LOCAL, scope=rt.RT_SCOPE_HOST)
            links.add_route(body)
        if station.speaks_as:
            # arp_announce 2: still ask for neighbours from an address of their own prefix.
            Path("/proc/sys/net/ipv4/conf/eth0/arp_announce").write_text("2")
            own = [address.network for address in station.addresses if address.version == station.speaks_as.version]
            for network in own:
                links.add_route(rt.route(network, wire, source=station.speaks_as, scope=rt.RT_SCOPE_LINK))
