"""The host's own small table: it translates the uplinks, keeps them apart, and lets nobody on the LAN route in.

`accept` here ends only this table's part; a firewall of the host that drops forwarded packets still does.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable

from vpcctl import names
from vpcctl.compiler.chains import ICMP_ERRORS
from vpcctl.compiler.forward import never_usable
from vpcctl.compiler.nft import Chain, Counter, Element, Hook, NftRule, Set, Table, anonymous, quoted
from vpcctl.compiler.translation import ranges_beside, translated, translating, untranslated
from vpcctl.model.host import NO_PART, HostPart
from vpcctl.model.network import DEFAULT_MAX_FLOWS, World, uplink_pair
from vpcctl.model.policy import Address
from vpcctl.values import dataclass

# The flows of a VPC are counted in so many lists at most, by a hash of their ends: the kernel walks a list for each new
# flow (net/netfilter/nf_conncount.c).  A list has room for so many flows at least, or chance would fill it too soon.
LISTS, ROOM = 512, 16
# The zone of connection tracking in which the host's own flows of protocols without ports are.
HOST_ZONE = 22096
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
        # By index, which stays when somebody renames the link.
        Set("opened", "iface_index", tuple(Element(str(link.index)) for link in host.opened)),
        Set("closed", "iface_index", tuple(Element(str(index)) for index in host.closed)),
        # Both ends of each uplink: the rest of the transit range may be somebody else's.
        Set("uplink-addresses", "ipv4_addr", tuple(Element(str(address)) for address in _ends(world, uplinks))),
    ]
    published = tuple(
        Element(f"{item.protocol} . {item.port}", f"{uplink_pair(world.transit, vpc.index)[1]} . {item.port}")
        for vpc in world.vpcs
        for item in vpc.publications
    )
    if published:
        sets.append(Set("published", "inet_proto . inet_service", published, "ipv4_addr . inet_service"))
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
    chains = _chains(world, host, bool(published), portless)
    return Table("inet", names.TABLE, (*sets, *share_sets), (*chains, *share_chains))


def _ends(world: World, uplinks: list[_Uplink]) -> list[Address]:
    """The addresses of both ends of the uplinks."""
    found = []
    for uplink in uplinks:
        router = ipaddress.ip_address(uplink.router)
        found += [router - 1, router]
    return found


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


def _chains(world: World, host: HostPart, published: bool, portless: list[int]) -> list[Chain]:
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
                NftRule("ip daddr @uplink-addresses drop"),
                NftRule(f"ip daddr {anonymous(never_usable(4))} drop"),
                NftRule("fib daddr type local drop"),
            ),
        ),
        Chain(
            "host-input",
            (NftRule("iifname @uplinks drop"),),
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
        *_forward(published, portless),
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
    if published:
        # Loopback addresses are local, too, but nobody's to call from outside (CVE-2020-8558).
        called = "iifname != @uplinks ip daddr != 127.0.0.0/8 fib daddr type local"
        rule = NftRule(f"{called} dnat ip to meta l4proto . th dport map @published")
        chains.append(Chain("host-publish", (rule,), Hook("nat", "prerouting", "dstnat", "accept")))
    return chains


def _forward(published: bool, portless: list[int]) -> list[Chain]:
    """What goes through the host: most packets are of known flows, and are checked for that alone."""
    alone = untranslated() + (" iifname . meta l4proto != @alone" if portless else "")
    known = NftRule("ct state established,related accept")
    outward = (
        NftRule("oifname @uplinks drop"),
        known,
        NftRule(f"{alone} drop"),
        NftRule("ct state new jump share-out"),
        NftRule("accept"),
    )
    called = "ct status & dnat == dnat"
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
    return [
        Chain("host-forward", entry, hook, reason),
        Chain("outward", outward),
        Chain("inward", inward),
        # Replies pass: the flow began at a link that somebody lets forward by now.
        Chain("unopened", (known, NftRule("drop"))),
    ]


def _source_nat(world: World, host: HostPart, portless: list[int]) -> list[Chain]:
    match = "oifname != @uplinks ip saddr @uplink-addresses"
    published = (item.port for vpc in world.vpcs for item in vpc.publications)
    ports = ranges_beside(published, host.reserved)
    rules, chains = translating("masquerade", match, "masquerade to ", ports, portless)
    return [Chain("host-postrouting", tuple(rules), Hook("nat", "postrouting", "srcnat", "accept")), *chains]
