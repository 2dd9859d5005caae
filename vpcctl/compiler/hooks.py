"""Where a VPC's ruleset hooks into the kernel: `BASE_CHAINS` is the list of all hooks of its main table."""

from __future__ import annotations

from collections.abc import Sequence

from vpcctl.compiler.nft import Chain, Hook, NftRule, RateLimit, RulesetPart, Set

# Priorities are those of include/uapi/linux/netfilter_ipv4.h: defragmentation is -400, raw -300, connection tracking
# -200, dstnat -100, filter 0, srcnat 100.
BASE_CHAINS: dict[str, tuple[Hook, str]] = {
    "filter-prerouting": (
        Hook("filter", "prerouting", "raw - 150", "drop"),
        "before defragmentation, where a spoofed fragment would join its victim's, and before connection tracking",
    ),
    "nat-prerouting": (Hook("nat", "prerouting", "dstnat", "accept"), "published ports, before the packet is routed"),
    "filter-forward": (
        Hook("filter", "forward", "filter", "drop"),
        "the judgement: sees real addresses, after destination NAT and before source NAT",
    ),
    "filter-input": (Hook("filter", "input", "filter", "drop"), "the router itself"),
    "filter-output": (Hook("filter", "output", "filter", "drop"), "what the router says by itself"),
    "nat-postrouting": (Hook("nat", "postrouting", "srcnat", "accept"), "source NAT by the uplink"),
    "filter-postrouting": (
        Hook("filter", "postrouting", "srcnat + 10", "accept"),
        "after source NAT: nothing leaves by the uplink untranslated",
    ),
}
ARP_CHAIN = (
    Hook("filter", "input", "filter", "drop"),
    "before the neighbour table: a workload speaks for its own address alone, and fills no table",
)
FRAME_CHAIN = (
    # In this family the name is -200.
    Hook("filter", "prerouting", "filter", "drop"),
    "before the router takes a frame in: it would strip the tag of VLAN 0 and go on as if there had been none",
)
PASSING_CHAIN = (
    Hook("filter", "forward", "filter", "drop"),
    "all traffic goes through the router: drops frames between bridge ports, even if port isolation is off",
)

# The mark of a packet whose source has been checked: it comes from an instance, by its own port, with its own address.
# Nobody else can set it, because a packet that passes from one network namespace to another loses its mark
# (net/core/skbuff.c: skb_scrub_packet).
CHECKED_MARK = "0x76706331"

# What a section of the ruleset is made of.
Parts = tuple[Sequence[Set | RateLimit | RulesetPart], Sequence[Chain | RulesetPart]]


def base_chain(name: str, *rules: NftRule) -> Chain:
    """The base chain `name` of the table above."""
    hook, reason = BASE_CHAINS[name]
    return Chain(name, tuple(rules), hook, reason)
