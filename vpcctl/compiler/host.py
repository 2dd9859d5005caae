"""The host's own small table: it masquerades the uplinks, keeps them apart, and lets nobody on the LAN route in.

`accept` here ends only this table's part; a firewall of the host that drops forwarded packets still does.
"""

from __future__ import annotations

from collections.abc import Iterable

from vpcctl import names
from vpcctl.model import World, uplink_pair
from vpcctl.nft import Chain, Element, Hook, Rule, Set, Table, anonymous, quoted

NOBODY = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")


def host_table(world: World, leaving: Iterable[tuple[str, str]] = ()) -> Table:
    """The table for all VPCs of `world`; `leaving` are further uplinks, each a link and the router's address on it."""
    pairs = [(names.host_uplink(vpc.name), str(uplink_pair(world.transit, vpc.index)[1])) for vpc in world.vpcs]
    pairs += leaving
    sets = [
        Set("uplinks", "ifname", tuple(Element(quoted(link)) for link, _ in pairs)),
        Set("senders", "ifname . ipv4_addr", tuple(Element(f"{quoted(link)} . {router}") for link, router in pairs)),
        # Interfaces on which forwarding was off before us.
        Set("opened", "ifname", tuple(Element(quoted(link)) for link, _ in world.opened)),
    ]
    published = tuple(
        Element(f"{item.protocol} . {item.port}", f"{uplink_pair(world.transit, vpc.index)[1]} . {item.port}")
        for vpc in world.vpcs
        for item in vpc.publications
    )
    if published:
        sets.append(Set("published", "inet_proto . inet_service", published, "ipv4_addr . inet_service"))
    return Table("inet", names.TABLE, tuple(sets), tuple(_chains(world, bool(published))))


def _chains(world: World, published: bool) -> list[Chain]:
    transit = world.transit
    chains = [
        Chain(
            "host-prerouting",
            (
                Rule(f"iifname != @uplinks ip daddr {transit} drop"),
                Rule(f"iifname != @uplinks ip saddr {transit} drop"),
                Rule("iifname @uplinks jump from-uplink"),
            ),
            Hook("filter", "prerouting", "raw - 150", "accept"),
            "before defragmentation, where a fragment from the LAN would join a VPC's, and before connection tracking",
        ),
        Chain(
            "from-uplink",
            (
                Rule("meta nfproto ipv6 drop"),
                Rule("iifname . ip saddr != @senders drop"),
                Rule(f"ip daddr {anonymous([str(transit), *NOBODY])} drop"),
                Rule("fib daddr type local drop"),
            ),
        ),
        Chain(
            "host-input",
            (Rule("iifname @uplinks drop"),),
            Hook("filter", "input", "filter", "accept"),
            "no instance reaches the host",
        ),
        Chain(
            "host-forward",
            (
                Rule("iifname @uplinks oifname @uplinks drop"),
                Rule("iifname @uplinks accept"),
                Rule("oifname @uplinks ct state established,related accept"),
                *([Rule("oifname @uplinks ct status & dnat == dnat accept")] if published else []),
                Rule("oifname @uplinks drop"),
                Rule("iifname @opened drop"),
            ),
            Hook("filter", "forward", "filter", "accept"),
            "uplinks to the outside and back; what was not forwarded before us still is not",
        ),
        Chain(
            "host-postrouting",
            (Rule(f"oifname != @uplinks ip saddr {transit} masquerade"),),
            Hook("nat", "postrouting", "srcnat", "accept"),
        ),
        Chain(
            "host-leave",
            (Rule(f'oifname != @uplinks oifname != "lo" ip saddr {transit} drop'),),
            Hook("filter", "postrouting", "srcnat + 10", "accept"),
            "what connection tracking calls invalid is not translated, and stays here",
        ),
    ]
    if published:
        # Loopback addresses are local, too, but nobody's to call from outside (CVE-2020-8558).
        called = "iifname != @uplinks ip daddr != 127.0.0.0/8 fib daddr type local"
        rule = Rule(f"{called} dnat ip to meta l4proto . th dport map @published")
        chains.append(Chain("host-publish", (rule,), Hook("nat", "prerouting", "dstnat", "accept")))
    return chains
