"""The sections of a VPC's ruleset in the order in which a packet meets them: `SECTIONS` is the list.

Where it came from, destination NAT, judgement (`judgement`), the router itself, source NAT; beside them the tables of
the ARP and the bridge family.  `docs/packet-path.md` describes the same with an example.
"""

from __future__ import annotations

from collections.abc import Callable

from vpcctl import names
from vpcctl.compiler.forward import forward, inside, nowhere
from vpcctl.compiler.hooks import ARP_CHAIN, CHECKED_MARK, FRAME_CHAIN, PASSING_CHAIN, Parts, base_chain
from vpcctl.compiler.nft import ADDRESS_TYPE, ADDRESS_WORD, Chain, Element, Hook, NftRule, Set, anonymous, quoted
from vpcctl.compiler.translation import free_ranges, ported, share, translating
from vpcctl.compiler.view import View
from vpcctl.model.network import port_range

PINGS = "limit rate 50/second burst 50 packets"
# What an instance's packet shows of its source, as in the set `members`.
_MEMBER = "iifname . ether saddr . ip saddr"
# The same of a frame in its bridge, as in the set `ports`.  There a frame with a VLAN tag has the type of VLAN.
_PORT = "ether type ip iifname . ip saddr"
ICMP_ERRORS = "icmp type { destination-unreachable, time-exceeded, parameter-problem }"


def sources(view: View) -> Parts:
    """Source must belong: interface, MAC and address are bound together.

    A packet of an instance meets only the first rule here, unless it is forged or a first fragment: the bridge has
    checked its source and marked it (`frames`).
    """
    rules = [NftRule(f"meta mark {CHECKED_MARK} accept"), NftRule('iifname "lo" accept')]
    if 6 not in view.vpc.versions:
        rules.append(NftRule("meta nfproto ipv6 drop"))
    dispatch = [f"{quoted(bridge)} : goto from-member" for bridge, _ in view.bridges]
    dispatch.append(f"{quoted(names.UPLINK)} : goto from-uplink")
    dispatch += [f"{quoted(link)} : goto from-peer-{peer.name}" for link, peer in view.peer_links]
    rules.append(NftRule(f"iifname vmap {anonymous(dispatch)}"))
    chains = [base_chain("filter-prerouting", *rules)]
    first = NftRule(f"{_FRAGMENT_BITS} == 0x2000 {_MEMBER} @members jump first-fragment")
    known = NftRule(f"{_MEMBER} @members meta mark set {CHECKED_MARK} accept")
    chains.append(Chain("from-member", (first, known, NftRule("drop"))))
    chains += FIRST_FRAGMENT
    chains.append(Chain("from-uplink", tuple(_from_uplink(view))))
    for _, peer in view.peer_links:
        theirs, ours = (anonymous([str(p) for p in vpc.prefixes if p.version == 4]) for vpc in (peer, view.vpc))
        rule = NftRule(f"ip saddr {theirs} ip daddr {ours} accept")
        chains.append(Chain(f"from-peer-{peer.name}", (rule, NftRule("drop"))))
    members = Set("members", "ifname . ether_addr . ipv4_addr", tuple(_members(view)))
    return [members], chains


def _members(view: View) -> list[Element]:
    return [
        Element(f"{quoted(bridge)} . {instance.mac} . {address}")
        for bridge, subnet in view.bridges
        for instance in subnet.instances
        for address in instance.addresses
        if address.version == 4
    ]


def _from_uplink(view: View) -> list[NftRule]:
    """What comes in from outside is addressed to the uplink and comes from no inside address."""
    return [
        NftRule(f"ip daddr != {view.uplink_address} drop"),
        # The host is a hop of the path: without its errors, path MTU discovery ends in a black hole (RFC 1191).
        NftRule(f"ip saddr {view.host_address} {ICMP_ERRORS} accept"),
        *(
            # Programs of the host, and instances, that call a published port.
            [NftRule(f"ip saddr {view.host_address} {ported()} accept")] if view.vpc.publications else []
        ),
        NftRule(f"ip saddr {anonymous([*nowhere(view), *inside(view)])} drop"),
        NftRule("accept"),
    ]


def nat_prerouting(view: View) -> Parts:
    """Published ports, one map."""
    if not view.vpc.publications:
        return [], []
    addresses = {instance.name: instance.addresses[0] for instance in view.vpc.instances}
    ports, ranges = [], []
    for item in view.vpc.publications:
        address = addresses[item.instance]
        if item.count > 1 and item.entry_port == item.target_port:
            # The ports keep their numbers: one element for the whole range.
            ranges.append(Element(f"{item.protocol} . {port_range(item.entry_port, item.count)}", str(address)))
            continue
        ports += [
            Element(f"{item.protocol} . {item.entry_port + number}", f"{address} . {item.target_port + number}")
            for number in range(item.count)
        ]
    maps = []
    if ports:
        maps.append(Set("published", "inet_proto . inet_service", tuple(ports), "ipv4_addr . inet_service"))
    if ranges:
        maps.append(Set("ranges", "inet_proto . inet_service", tuple(ranges), "ipv4_addr", interval=True))
    match = f"iifname {quoted(names.UPLINK)} dnat ip to meta l4proto . th dport map"
    return [*maps], [base_chain("nat-prerouting", *(NftRule(f"{match} @{made.name}") for made in maps))]


def router(view: View) -> Parts:
    """The router answers pings to its gateway addresses and sends errors; nothing else of it can be reached."""
    local = base_chain(
        "filter-input",
        NftRule('iifname "lo" accept'),
        NftRule(f"iifname @bridges ip daddr {anonymous(nowhere(view))} drop"),
        NftRule("icmp type echo-reply ct state established accept"),
        # A rate of its own for each instance: one that floods takes nothing from the others.
        NftRule(f"iifname @bridges icmp type echo-request update @pings {{ ip saddr {PINGS} }} accept"),
    )
    own = base_chain(
        "filter-output",
        NftRule('oifname "lo" accept'),
        NftRule("icmp type redirect drop"),
        # A private subnet gets no answer from the internet, whether or not the router has a route there.
        NftRule("icmp type destination-unreachable icmp code net-unreachable drop"),
        NftRule("meta l4proto icmp meta nfproto ipv4 accept"),
        # The resets of `reject`.
        NftRule("tcp flags & rst == rst ct state related,established accept"),
    )
    pings = Set("pings", ADDRESS_TYPE[4], dynamic=max(len(view.vpc.instances), 1), timeout="1m")
    return [pings], [local, own]


def nat_postrouting(view: View) -> Parts:
    """Source NAT to the uplink's address, and a backstop behind it; nothing where no route leads to the uplink."""
    uplink, vpc = quoted(names.UPLINK), view.vpc
    # A chain costs each packet time, even if nothing matches.  And with a NAT chain, the kernel prepares each new flow
    # for translation.
    if not vpc.uses_uplink:
        return [], []
    ours = anonymous([str(prefix) for prefix in vpc.prefixes if prefix.version == 4])
    ports = share(free_ranges(item.entries for item in vpc.publications), vpc.max_ports)
    match, statement = f"oifname {uplink} ip saddr {ours}", f"snat ip to {view.uplink_address}"
    rules, ranges = translating("translate", match, statement, ports, vpc.nat_protocols)
    return [], [
        base_chain("nat-postrouting", *rules),
        *ranges,
        # A packet that stays inside costs one comparison.
        base_chain("filter-postrouting", NftRule(f"oifname {uplink} goto leave")),
        Chain("leave", (NftRule(f"ip saddr {view.uplink_address} accept"), NftRule("drop"))),
    ]


def neighbours(view: View) -> Parts:
    """The table of the ARP family: who may speak for which address."""
    hook, reason = ARP_CHAIN
    trusted = [quoted(names.UPLINK), *(quoted(link) for link, _ in view.peer_links)]
    members = Set("members", f"ifname . ether_addr . {ADDRESS_TYPE[4]}", tuple(_members(view)))
    rules = (
        NftRule("iifname . arp saddr ether . arp saddr ip @members accept"),
        NftRule(f"iifname {anonymous(trusted)} accept"),
    )
    return [members], [Chain("arp-input", rules, hook, reason)]


def frames(view: View) -> Parts:
    """The table of the bridge family: it drops frames that are neither ARP nor IP, and frames with a VLAN tag.

    Only here the port of a packet is known, so its source address is compared with the port, and the packet is marked.
    The MAC needs no comparison: a locked port admits only the MAC of its instance.  First fragments are not marked:
    `filter-prerouting` looks at them again.
    """
    hook, reason = FRAME_CHAIN
    passing, why = PASSING_CHAIN
    ports = tuple(
        Element(f"{quoted(names.port(instance.name))} . {address}")
        for _, subnet in view.bridges
        for instance in subnet.instances
        for address in instance.addresses
        if address.version == 4
    )
    rules = [
        # The most frequent kind comes first.
        NftRule(f"{_PORT} @ports {_FRAGMENT_BITS} != 0x2000 meta mark set {CHECKED_MARK} accept"),
        NftRule("ether type arp accept"),
        NftRule(f"{_PORT} @ports accept"),
        *(NftRule(f"ether type {ADDRESS_WORD[version]} accept") for version in view.vpc.versions if version != 4),
    ]
    return [Set("ports", "ifname . ipv4_addr", ports)], [
        Chain("bridge-prerouting", tuple(rules), hook, reason),
        Chain("bridge-forward", (), passing, why),
    ]


# A fragment must carry a complete checksum.  If it is "partial", the kernel still has to write it, at an offset that
# the sender chose.  It does so when it cuts the packet again on output, after the judgement, so a sender could change
# the port that was judged.  Honest fragments are complete: whoever cuts a packet completes its checksum first.  A
# reassembled packet is partial only if its first fragment is (net/ipv4/inet_fragment.c: inet_frag_reasm_finish).
#
# nftables cannot ask for this directly.  But when it changes a transport header, it adjusts the checksum unless that
# is partial (net/netfilter/nft_payload.c: nft_payload_set_eval).  So these rules set UDP's checksum field to zero,
# write the source port back unchanged, and look whether the zero has become 0xffff, its other form.  The protocol
# number is UDP's meanwhile, so that every protocol can be tested this way.  The total length and the checksum of the
# IP header hold what must be restored: reassembly writes both anew (net/ipv4/ip_fragment.c: ip_frag_reasm).
_LENGTH, _TTL_AND_PROTOCOL, _PROTOCOL, _CHECKSUM = "@nh,16,16", "@nh,64,16", "@nh,72,8", "@nh,80,16"
# Of `ip frag-off` more fragments, and the offset.  The word that ends with it is compared quicker than its half
# (net/netfilter/nft_bitwise.c), and by then the packet is IPv4.  A first fragment has 0x2000 here.
_FRAGMENT_BITS = "@nh,32,32 & 0x3fff"
_UDP_CHECKSUM = "@th,48,16"
FIRST_FRAGMENT = (
    Chain(
        "first-fragment",
        (
            NftRule(f"{_LENGTH} set {_TTL_AND_PROTOCOL}"),
            NftRule(f"{_CHECKSUM} set {_UDP_CHECKSUM}"),
            NftRule(f"{_UDP_CHECKSUM} set 0"),
            NftRule(f"{_PROTOCOL} set 17"),
            NftRule("ip protocol udp udp sport set udp sport"),
            NftRule(f"{_UDP_CHECKSUM} 0xffff goto whole-fragment"),
            NftRule("drop"),
        ),
    ),
    Chain(
        "whole-fragment",
        (NftRule(f"{_UDP_CHECKSUM} set {_CHECKSUM}"), NftRule(f"{_TTL_AND_PROTOCOL} set {_LENGTH}")),
    ),
)

# In the order in which a packet meets them.
SECTIONS: tuple[Callable[[View], Parts], ...] = (sources, nat_prerouting, forward, router, nat_postrouting)


# What a VPC on its way down has instead: nothing passes.
CLOSED = tuple(
    Chain(name, (), Hook("filter", name.removeprefix("filter-"), "filter", "drop"))
    for name in ("filter-prerouting", "filter-forward", "filter-input", "filter-output")
)
