"""The host's own small table: it translates the uplinks, keeps them apart, and lets nobody on the LAN route in.

`accept` here ends only this table's part; a firewall of the host that drops forwarded packets still does.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import starmap

from vpcctl import names
from vpcctl.compiler.chains import ICMP_ERRORS
from vpcctl.compiler.forward import never_usable
from vpcctl.compiler.nft import Chain, Counter, Element, Hook, NftRule, Set, Table, anonymous, quoted
from vpcctl.compiler.translation import ranges_beside, translated, translating, untranslated
from vpcctl.model.host import NO_PART, HostPart
from vpcctl.model.network import DEFAULT_MAX_FLOWS, Publication, World, uplink_pair
from vpcctl.model.policy import Address
from vpcctl.values import dataclass

# The flows of a VPC are counted in so many lists at most, by a hash of their ends: the kernel walks a list for each new
# flow (net/netfilter/nf_conncount.c).  A list has room for so many flows at least, or chance would fill it too soon.
LISTS, ROOM = 512, 16
# The zone of connection tracking in which the host's own flows of protocols without ports are.
HOST_ZONE = 22096
# Just before the priorities of the NAT of others (NF_IP_PRI_NAT_DST, -100), which nft has no name for in output.
FIRST_DSTNAT, FIRST_OUTPUT = "dstnat - 10", "-110"
# For how long the host is known to have spoken to somebody by such a protocol, and to how many.
SPOKEN_TIMEOUT, SPOKEN_SIZE = "1h", 65535


@dataclass(frozen=True, slots=True)
class _Uplink:
    """The host's end of an uplink, the router's address on it, and what the VPC may take."""

    link: str
    router: str
    max_flows: int = DEFAULT_MAX_FLOWS
    counter: str = ""


def over_share(vpc: str) -> str:
    """The name of the counter of what a VPC lost because it was over its share of flows."""
    return f"over-share-{vpc}"


def host_table(world: World, host: HostPart = NO_PART, leaving: Iterable[tuple[str, str]] = ()) -> Table:
    """The table for all VPCs of `world` on `host`.

    `leaving` are further uplinks, each a link and the router's address on it.
    """
    uplinks = [
        _Uplink(
            names.host_uplink(vpc.name),
            str(uplink_pair(world.transit, vpc.index)[1]),
            vpc.max_flows,
            over_share(vpc.name),
        )
        for vpc in world.vpcs
    ]
    uplinks += [_Uplink(link, router) for link, router in leaving]
    sets: list[Set | Counter] = [Counter(uplink.counter) for uplink in uplinks if uplink.counter]
    sets += [
        Set("uplinks", "ifname", tuple(Element(quoted(uplink.link)) for uplink in uplinks)),
        Set(
            "senders",
            "ifname . ipv4_addr",
            tuple(Element(f"{quoted(uplink.link)} . {uplink.router}") for uplink in uplinks),
        ),
        # By index, which stays the same when somebody renames the link.
        Set("opened", "iface_index", tuple(Element(str(link.index)) for link in host.opened)),
        Set("closed", "iface_index", tuple(Element(str(index)) for index in host.closed)),
        # Both ends of each uplink: the rest of the transit range may be somebody else's.
        Set("uplink-addresses", "ipv4_addr", tuple(Element(str(address)) for address in _ends(uplinks))),
    ]
    published = Published.of(world)
    sets += published.sets
    alone = tuple(
        Element(f"{quoted(names.host_uplink(vpc.name))} . {protocol}")
        for vpc in world.vpcs
        for protocol in vpc.nat_protocols
    )
    if alone:
        sets.append(Set("alone", "ifname . inet_proto", alone))
        sets.append(Set("spoken", "ipv4_addr . inet_proto", dynamic=SPOKEN_SIZE, timeout=SPOKEN_TIMEOUT))
    share_sets, share_chains = _shares(uplinks)
    portless = sorted(protocol for vpc in world.vpcs for protocol in vpc.nat_protocols)
    chains = _chains(world, host, published, portless)
    return Table("inet", names.TABLE, (*sets, *share_sets), (*chains, *share_chains))


def _ends(uplinks: list[_Uplink]) -> list[Address]:
    """The addresses of both ends of the uplinks."""
    found = []
    for uplink in uplinks:
        router = ipaddress.ip_address(uplink.router)
        found += [router - 1, router]
    return found


@dataclass(frozen=True, slots=True)
class Published:
    """The ports that VPCs publish, as maps that translate them and as rules that use the maps.

    A range whose ports keep their numbers is one element of a map with intervals; of others each port is an element.
    """

    maps: tuple[Set, ...] = ()
    gateways: tuple[Element, ...] = ()
    served: tuple[Element, ...] = ()

    @classmethod
    def of(cls, world: World) -> Published:
        """The published ports of all VPCs."""
        routers = {vpc.name: uplink_pair(world.transit, vpc.index) for vpc in world.vpcs}
        items = [(routers[vpc.name][1], item) for vpc in world.vpcs for item in vpc.publications]
        everywhere = [(router, item) for router, item in items if item.address is None]
        somewhere = [(router, item) for router, item in items if item.address is not None]
        # The order of the lookups does not matter: no two publications share a port (`check_published`).
        maps = (
            ("published-at", _AT, [pair for router, item in somewhere for pair in _port_by_port(router, item)], _ENTRY),
            ("ranges-at", _AT, [pair for router, item in somewhere for pair in _as_range(router, item)], "ipv4_addr"),
            ("published", _ANY, [pair for router, item in everywhere for pair in _port_by_port(router, item)], _ENTRY),
            ("ranges", _ANY, [pair for router, item in everywhere for pair in _as_range(router, item)], "ipv4_addr"),
        )
        return cls(
            tuple(
                Set(name, kind, tuple(starmap(Element, found)), data, interval=data != _ENTRY)
                for name, kind, found, data in maps
                if found
            ),
            tuple(
                Element(f"{quoted(names.host_uplink(vpc.name))} . {routers[vpc.name][0]}")
                for vpc in world.vpcs
                if vpc.publications
            ),
            tuple(Element(f"{router} . {item.protocol} . {_span(*item.entries)}") for router, item in items),
        )

    @property
    def sets(self) -> tuple[Set, ...]:
        """The maps, and the sets for the answers of published ports."""
        if not self.maps:
            return ()
        intervals = any("-" in element.key for element in self.served)
        return (
            *self.maps,
            # The uplinks of VPCs that publish ports, each with the host's address on it.
            Set("gateways", "ifname . ipv4_addr", self.gateways),
            # The routers' ports that answer for published ones.
            Set("serving", "ipv4_addr . inet_proto . inet_service", self.served, interval=intervals),
        )

    @property
    def lookups(self) -> list[tuple[str, str]]:
        """The maps, each with what is looked up in it."""
        keys = {_AT: "ip daddr . meta l4proto . th dport", _ANY: "meta l4proto . th dport"}
        return [(made.name, keys[made.key_type]) for made in self.maps]


_ANY, _AT, _ENTRY = "inet_proto . inet_service", "ipv4_addr . inet_proto . inet_service", "ipv4_addr . inet_service"


def _port_by_port(router: Address, item: Publication) -> Iterator[tuple[str, str]]:
    if item.count == 1 or item.entry is not None:
        for number in range(item.count):
            yield _called(item, str(item.port + number)), f"{router} . {item.entry_port + number}"


def _as_range(router: Address, item: Publication) -> Iterator[tuple[str, str]]:
    if item.count > 1 and item.entry is None:
        yield _called(item, _span(*item.ports)), str(router)


def _called(item: Publication, ports: str) -> str:
    at = "" if item.address is None else f"{item.address} . "
    return f"{at}{item.protocol} . {ports}"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _shares(uplinks: list[_Uplink]) -> tuple[list[Set], list[Chain]]:
    """The share of each VPC in the flows that the host tracks; VPCs with equal shares have a set in common.

    The flows that a VPC begins and those that come to its published ports are counted apart, so that neither can use
    up the other's share.
    """
    by_share: dict[int, list[_Uplink]] = defaultdict(list)
    for uplink in uplinks:
        by_share[uplink.max_flows].append(uplink)
    sets, chains = [], []
    for direction, field in (("out", "iifname"), ("in", "oifname")):
        targets = []
        for most, members in sorted(by_share.items()):
            name = f"flows-{direction}-{most}"
            lists = max(1, min(LISTS, most // ROOM))
            sets.append(Set(name, "ifname . mark", dynamic=lists * len(members)))
            counters = [f"{quoted(one.link)} : {quoted(one.counter)}" for one in members if one.counter]
            counted = f" counter name {field} map {anonymous(counters)}" if counters else ""
            chains.append(
                Chain(
                    name,
                    tuple(
                        NftRule(
                            f"{match}add @{name} {{ {field} . {hashed} ct count over {most // lists} }}{counted} drop"
                        )
                        for match, hashed in _hashes(lists)
                    ),
                )
            )
            targets += [f"{quoted(one.link)} : goto {name}" for one in members]
        chains.append(Chain(f"share-{direction}", (NftRule(f"{field} vmap {anonymous(targets)}"),) if targets else ()))
    return sets, chains


def _hashes(lists: int) -> tuple[tuple[str, str], ...]:
    """A match of packets, and what says which of the lists their flow is counted in.

    A packet of a protocol without ports may be shorter than ports are.
    """
    ends = "jhash ip saddr . ip daddr . meta l4proto"
    return (
        (f"{untranslated()} ", f"{ends} mod {lists}"),
        (f"{translated()} ", f"{ends} . th sport . th dport mod {lists}"),
    )


def _chains(world: World, host: HostPart, published: Published, portless: list[int]) -> list[Chain]:
    matched = anonymous(list(map(str, portless)))
    own = f"meta l4proto {matched} ip saddr . meta l4proto @spoken ct zone set {HOST_ZONE}"
    chains = [
        Chain(
            "host-prerouting",
            (
                NftRule("iifname != @uplinks ip daddr @uplink-addresses drop"),
                NftRule("iifname != @uplinks ip saddr @uplink-addresses drop"),
                *([NftRule(f"iifname != @uplinks {own}")] if portless else []),
                NftRule("iifname @uplinks jump from-uplink"),
            ),
            Hook("filter", "prerouting", "raw - 150", "accept"),
            "before defragmentation, where a fragment from the LAN would join a VPC's, and before connection tracking",
        ),
        Chain(
            "from-uplink",
            (
                NftRule("meta nfproto ipv6 drop"),
                NftRule("iifname . ip saddr != @senders drop"),
                # Answers to calls whose source was translated to this address.
                *([NftRule("iifname . ip daddr @gateways return")] if published.maps else []),
                NftRule("ip daddr @uplink-addresses drop"),
                NftRule(f"ip daddr {anonymous(never_usable(4))} drop"),
                # Published ports of the host are let in by `to-host`, which needs whole packets.
                *([] if published.maps else [NftRule("fib daddr type local drop")]),
            ),
        ),
        *_to_host(published),
        Chain(
            "host-input",
            (
                *([NftRule(f"iifname @uplinks {_ANSWERS} accept")] if published.maps else []),
                NftRule("iifname @uplinks drop"),
            ),
            Hook("filter", "input", "filter", "accept"),
            "no instance reaches the host",
        ),
        Chain(
            "host-output",
            # One question for each packet that is the host's own business.
            (NftRule("oifname @uplinks goto to-uplink"),),
            Hook("filter", "output", "filter", "accept"),
            "no program of the host reaches a published port by the router's address",
        ),
        Chain(
            "to-uplink",
            (
                # The host is a hop of the path, and may answer for what it cannot carry on.
                NftRule(f"{ICMP_ERRORS} accept"),
                NftRule("tcp flags & rst == rst accept"),
                NftRule("drop"),
            ),
        ),
        *_forward(bool(published.maps), portless),
        *_source_nat(world, host, portless),
        Chain(
            "host-leave",
            (NftRule('oifname != @uplinks oifname != "lo" ip saddr @uplink-addresses drop'),),
            Hook("filter", "postrouting", "srcnat + 10", "accept"),
            "what connection tracking calls invalid is not translated, and stays here",
        ),
    ]
    if portless:
        said = f"oifname != @uplinks meta l4proto {matched}"
        chains.append(
            Chain(
                "host-speaks",
                (
                    NftRule(f"{said} update @spoken {{ ip daddr . meta l4proto }}"),
                    NftRule(f"{said} ct zone set {HOST_ZONE}"),
                ),
                Hook("filter", "output", "raw", "accept"),
                "the host's own flows of protocols without ports clash with no tenant's",
            )
        )
    if published.maps:
        chains += _publishing(published)
    return chains


# Answers to a program of the host that called a published port, including ICMP errors about its packets.
_ANSWERS = "ct status & dnat == dnat ct direction reply ct state established,related"
# The loopback addresses except 127.0.0.1: services of the host use them, such as 127.0.0.53.
_OTHER_LOOPBACK = "{ 127.0.0.0, 127.0.0.2-127.255.255.255 }"


def _to_host(published: Published) -> list[Chain]:
    """Which packets of uplinks may reach the host: calls of published ports, and answers to such calls.

    All others are dropped before connection tracking, and before a foreign rule could translate them.
    """
    if not published.maps:
        return []
    entry = Chain(
        "host-arrive",
        (NftRule("iifname @uplinks fib daddr type local goto to-host"),),
        Hook("filter", "prerouting", "raw", "accept"),
        "after defragmentation: ports are looked at",
    )
    rules = (
        NftRule(f"{ICMP_ERRORS} accept"),
        NftRule("ip saddr . meta l4proto . th sport @serving accept"),
        NftRule("iifname . ip daddr @gateways drop"),
        *(NftRule(f"{key} @{name} accept") for name, key in published.lookups),
        NftRule("drop"),
    )
    return [entry, Chain("to-host", rules)]


def _publishing(published: Published) -> list[Chain]:
    """The translation of called ports, for all callers."""
    called = []
    for name, key in published.lookups:
        match = "" if key.startswith("ip daddr") else f"ip daddr != {_OTHER_LOOPBACK} "
        called.append(NftRule(f"{match}dnat ip to {key} map @{name}"))
    return [
        Chain(
            "host-publish",
            # Loopback addresses are local, too, but must not be called from outside (CVE-2020-8558).
            (NftRule("ip daddr != 127.0.0.0/8 fib daddr type local goto called"),),
            Hook("nat", "prerouting", FIRST_DSTNAT, "accept"),
            "before the rules of others: a port that was taken with --force is ours",
        ),
        Chain(
            "host-call",
            (NftRule("fib daddr type local goto called"),),
            Hook("nat", "output", FIRST_OUTPUT, "accept"),
            "programs of the host reach published ports, too",
        ),
        Chain("called", tuple(called)),
    ]


def _forward(published: bool, portless: list[int]) -> list[Chain]:
    """What goes through the host: most packets are of known flows, and are checked for that alone."""
    alone = untranslated() + (" iifname . meta l4proto != @alone" if portless else "")
    called = "ct status & dnat == dnat"
    known = NftRule("ct state established,related accept")
    outward = (
        NftRule("oifname @uplinks goto between" if published else "oifname @uplinks drop"),
        known,
        NftRule(f"{alone} drop"),
        NftRule("ct state new jump share-out"),
        NftRule("accept"),
    )
    # An instance calls a published port; the flow counts for both VPCs.
    between = (
        NftRule(f"{called} ct state established,related accept"),
        NftRule(f"{called} ct state new jump share-out"),
        NftRule(f"{called} ct state new jump share-in"),
        NftRule(f"{called} accept"),
        NftRule("drop"),
    )
    inward = (
        known,
        *([NftRule(f"{called} ct state new jump share-in"), NftRule(f"{called} accept")] if published else []),
        NftRule("drop"),
    )
    entry = (
        NftRule("iifname @uplinks goto outward"),
        NftRule("oifname @uplinks goto inward"),
        NftRule("iif @opened oif @closed goto unopened"),
    )
    reason = "uplinks to the outside and back; what was not forwarded before us still is not"
    hook = Hook("filter", "forward", "filter", "accept")
    chains = [
        Chain("host-forward", entry, hook, reason),
        Chain("outward", outward),
        Chain("inward", inward),
        # Replies pass: their flow began at a link on which somebody has turned forwarding on.  If only we did, it is a
        # flow that the owner allowed by ip_forward, and that ends with ip_forward.
        Chain(
            "unopened",
            (NftRule("oif != @opened ct direction reply ct state established,related accept"), NftRule("drop")),
        ),
    ]
    return [*chains, Chain("between", between)] if published else chains


def _source_nat(world: World, host: HostPart, portless: list[int]) -> list[Chain]:
    match = "oifname != @uplinks ip saddr @uplink-addresses"
    published = [item.ports for vpc in world.vpcs for item in vpc.publications]
    ports = ranges_beside(published, host.reserved)
    rules, chains = translating("masquerade", match, "masquerade to ", ports, portless)
    if published:
        # A VPC's router would treat these sources as forged: loopback addresses, and addresses of routers.
        for hidden in ("127.0.0.0/8", "@uplink-addresses"):
            called = f"oifname @uplinks ct status & dnat == dnat ip saddr {hidden}"
            inner, _ = translating("masquerade", called, "masquerade to ", ports, ())
            # Protocols without ports are not published.
            rules += inner[:-1]
    return [Chain("host-postrouting", tuple(rules), Hook("nat", "postrouting", "srcnat", "accept")), *chains]
