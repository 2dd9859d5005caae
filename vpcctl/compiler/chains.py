"""The base chains of a VPC's ruleset, and what each does.  `BASE_CHAINS` is the list of all hooks that we use.

The sections follow a packet: where it came from, destination NAT, judgement, the router itself, source NAT.
`docs/packet-path.md` tells the same with an example.
"""

from __future__ import annotations

from collections.abc import Callable

from vpcctl import names
from vpcctl.compiler.gates import Gate, gate
from vpcctl.compiler.view import View
from vpcctl.model import NEVER_USABLE, Network
from vpcctl.nft import ADDRESS_TYPE, ADDRESS_WORD, Chain, Element, Hook, RateLimit, Rule, Set, quoted
from vpcctl.policy import Direction

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
ICMP_ERRORS = "icmp type { destination-unreachable, time-exceeded, parameter-problem }"

Parts = tuple[list[Set | RateLimit], list[Chain]]


def base_chain(name: str, *rules: Rule) -> Chain:
    """The base chain `name` of the table above."""
    hook, reason = BASE_CHAINS[name]
    return Chain(name, tuple(rules), hook, reason)


def anonymous(values: list[str]) -> str:
    """An anonymous set of the grammar."""
    return "{ " + ", ".join(values) + " }"


def sources(view: View) -> Parts:
    """Source must belong: interface, MAC and address are bound together; nothing from nowhere, nothing to nobody."""
    rules = [Rule('iifname "lo" accept')]
    if 6 not in view.vpc.versions:
        rules.append(Rule("meta nfproto ipv6 drop"))
    # Connection tracking calls redirects "related", so they would inherit the mark of the flow they quote.
    rules.append(Rule("icmp type { source-quench, redirect } drop"))
    rules.append(Rule(f"ip daddr {anonymous(_never(4))} drop"))
    dispatch = [f"{quoted(bridge)} : goto from-member" for bridge, _ in view.bridges]
    dispatch.append(f"{quoted(names.UPLINK)} : goto from-uplink")
    dispatch += [f"{quoted(link)} : goto from-peer-{peer.name}" for link, peer in view.peer_links]
    rules.append(Rule(f"iifname vmap {anonymous(dispatch)}"))
    chains = [base_chain("filter-prerouting", *rules)]
    transit = Rule(f"ip daddr {view.world.transit} drop")
    chains.append(
        Chain(
            "from-member",
            (transit, Rule("iifname . ether saddr . ip saddr @members accept"), Rule("drop")),
        )
    )
    chains.append(Chain("from-uplink", tuple(_from_uplink(view))))
    for _, peer in view.peer_links:
        theirs, ours = (anonymous([str(p) for p in vpc.prefixes if p.version == 4]) for vpc in (peer, view.vpc))
        rule = Rule(f"ip saddr {theirs} ip daddr {ours} accept")
        chains.append(Chain(f"from-peer-{peer.name}", (rule, Rule("drop"))))
    members = Set("members", "ifname . ether_addr . ipv4_addr", tuple(_members(view)))
    return [members], chains


def _never(version: int) -> list[str]:
    return [str(prefix) for prefix in NEVER_USABLE if prefix.version == version]


def _members(view: View) -> list[Element]:
    return [
        Element(f"{quoted(bridge)} . {instance.mac} . {address}")
        for bridge, subnet in view.bridges
        for instance in subnet.instances
        for address in instance.addresses
        if address.version == 4
    ]


def _from_uplink(view: View) -> list[Rule]:
    """What comes in from outside is addressed to the uplink and comes from no inside address."""
    inside: list[Network] = [*view.vpc.prefixes, *(prefix for peer in view.peers for prefix in peer.prefixes)]
    bogons = _never(4) + [str(prefix) for prefix in (*inside, view.world.transit) if prefix.version == 4]
    return [
        Rule(f"ip daddr != {view.uplink_address} drop"),
        # The host is a hop of the path: without its errors, path MTU discovery ends in a black hole (RFC 1191).
        Rule(f"ip saddr {view.host_address} {ICMP_ERRORS} accept"),
        Rule(f"ip saddr {anonymous(bogons)} drop"),
        Rule("accept"),
    ]


def nat_prerouting(view: View) -> Parts:
    """Published ports, one map."""
    if not view.vpc.publications:
        return [], []
    addresses = {instance.name: instance.addresses[0] for instance in view.vpc.instances}
    elements = tuple(
        Element(f"{item.protocol} . {item.port}", f"{addresses[item.instance]} . {item.target_port}")
        for item in view.vpc.publications
    )
    published = Set("published", "inet_proto . inet_service", elements, "ipv4_addr . inet_service")
    rule = Rule(f"iifname {quoted(names.UPLINK)} dnat ip to meta l4proto . th dport map @published")
    return [published], [base_chain("nat-prerouting", rule)]


def forward(view: View) -> Parts:
    """The judgement: legal paths, then the two gates, then the mark of this generation."""
    found: list[tuple[str, str, Gate | None, Gate | None]] = [
        (bridge, subnet.name, gate(view, subnet, Direction.EGRESS), gate(view, subnet, Direction.INGRESS))
        for bridge, subnet in view.bridges
    ]
    sets = [
        Set("bridges", "ifname", tuple(Element(quoted(bridge)) for bridge, _ in view.bridges)),
        Set("paths", "ifname . ifname", tuple(_paths(view))),
        # A field can be compared with values, not with another field: so each address stands beside itself.
        Set("ends", "ipv4_addr . ipv4_addr", tuple(_ends(view))),
    ]
    chains = [
        base_chain(
            "filter-forward",
            Rule("ct state related goto judge-error"),
            Rule("ct mark $generation accept"),
            Rule("ct state invalid drop"),
            Rule("ct direction vmap { original : goto judge, reply : goto judge-reply }"),
        )
    ]
    served_sets, served_chains = _served(view)
    sets += served_sets
    chains += served_chains
    chains.append(
        Chain(
            "judge",
            (
                Rule("ct state new tcp flags & (fin | syn | rst | ack) != syn drop"),
                Rule("jump path"),
                *([Rule(f"iifname {quoted(names.UPLINK)} jump served")] if served_chains else []),
                *_dispatch("iifname", [(bridge, egress.chain) for bridge, _, egress, _ in found if egress]),
                *_dispatch("oifname", [(bridge, f"arrive-{name}") for bridge, name, _, _ in found]),
                Rule("goto admit"),
            ),
        )
    )
    chains.append(
        Chain(
            "judge-reply",
            (
                Rule("jump path-reply"),
                *([Rule(f"oifname {quoted(names.UPLINK)} jump served-reply")] if served_chains else []),
                *_dispatch("oifname", [(bridge, egress.mirror) for bridge, _, egress, _ in found if egress]),
                *_dispatch("iifname", [(bridge, ingress.mirror) for bridge, _, _, ingress in found if ingress]),
                Rule("goto admit"),
            ),
        )
    )
    chains.append(_judge_error())
    for name, one, other, stray in (
        ("path", "iifname", "oifname", [_stray(view)]),
        ("path-reply", "oifname", "iifname", []),
    ):
        legal = (f"{one} @bridges {other} @bridges return", *stray, f"{one} . {other} @paths return", "drop")
        chains.append(Chain(name, tuple(map(Rule, legal))))
    chains.append(Chain("admit", (Rule("ct mark set $generation accept"),)))
    chains.append(
        Chain(
            "send-reject", (Rule("meta l4proto tcp reject with tcp reset"), Rule("reject with icmpx admin-prohibited"))
        )
    )
    for (_, name, egress, ingress), subnet in zip(found, view.vpc.subnets, strict=True):
        chains.append(_arrive(name, subnet, ingress))
        for made in filter(None, (egress, ingress)):
            sets += made.sets
            chains += made.chains
    return sets, chains


def _judge_error() -> Chain:
    """An ICMP error passes with the flow that it quotes: it cannot be judged by its own header.

    It never stamps that flow, so one of an older generation has to show itself first.  Of the instances only the
    flow's own end may speak: connection tracking would believe anybody who guesses the ports (RFC 5927).
    """
    return Chain(
        "judge-error",
        (
            Rule("ct mark != $generation drop"),
            Rule("iifname @bridges ct direction original ip saddr . ct original ip saddr != @ends drop"),
            Rule("iifname @bridges ct direction reply ip saddr . ct reply ip saddr != @ends drop"),
            Rule("accept"),
        ),
    )


def _ends(view: View) -> list[Element]:
    addresses = [address for instance in view.vpc.instances for address in instance.addresses]
    return [Element(f"{address} . {address}") for address in addresses if address.version == 4]


def _served(view: View) -> Parts:
    """What flows from the uplink may be for.

    Connection tracking keeps the translation of a live flow when its port is published no more; the path stays legal
    while the subnet has another published port, so the port itself is asked for, in either direction.
    """
    if not view.vpc.publications:
        return [], []
    targets = {
        f"{view.vpc.instance(item.instance).addresses[0]} . {item.protocol} . {item.target_port}": None
        for item in view.vpc.publications
    }
    served = Set("served", f"{ADDRESS_TYPE[4]} . inet_proto . inet_service", tuple(map(Element, targets)))
    straight = (
        Rule("ct status & dnat == 0 drop"),
        Rule("ip daddr . meta l4proto . th dport @served return"),
        Rule("drop"),
    )
    mirrored = (Rule("ip saddr . meta l4proto . th sport @served return"), Rule("drop"))
    return [served], [Chain("served", straight), Chain("served-reply", mirrored)]


def _stray(view: View) -> str:
    """The default route is for the internet, and not for addresses of the VPC that no subnet has."""
    inside = [prefix for vpc in (view.vpc, *view.peers) for prefix in vpc.prefixes if prefix.version == 4]
    return f"oifname {quoted(names.UPLINK)} ip daddr {anonymous(list(map(str, inside)))} drop"


def _paths(view: View) -> list[Element]:
    """Who may send to whom besides one subnet to another, as (in, out) of a new flow."""
    inside = [bridge for bridge, _ in view.bridges]
    peers = [link for link, _ in view.peer_links]
    pairs = [(bridge, names.UPLINK) for bridge, subnet in view.bridges if subnet.reaches_internet]
    pairs += [pair for bridge in inside for link in peers for pair in ((bridge, link), (link, bridge))]
    published = {view.vpc.subnet_of(item.instance).name for item in view.vpc.publications}
    pairs += [(names.UPLINK, bridge) for bridge, subnet in view.bridges if subnet.name in published]
    return [Element(f"{quoted(one)} . {quoted(other)}") for one, other in pairs]


def _dispatch(field: str, targets: list[tuple[str, str]]) -> list[Rule]:
    """One jump by interface name; none where there is nothing to jump to."""
    if not targets:
        return []
    return [Rule(f"{field} vmap " + anonymous([f"{quoted(link)} : jump {chain}" for link, chain in targets]))]


def _arrive(name: str, subnet, ingress: Gate | None) -> Chain:
    """Only addresses that are somebody's are resolved: a scan cannot fill the neighbour table (`arp(7)`)."""
    rules = []
    for version in {prefix.version for prefix in subnet.prefixes}:
        taken = [str(a) for instance in subnet.instances for a in instance.addresses if a.version == version]
        word = ADDRESS_WORD[version]
        rules.append(Rule(f"{word} daddr != {anonymous(taken)} drop" if taken else f"meta nfproto ipv{version} drop"))
    if ingress:
        rules.append(Rule(f"goto {ingress.chain}"))
    return Chain(f"arrive-{name}", tuple(rules))


def router(view: View) -> Parts:
    """The router answers pings to its gateway addresses and sends errors; nothing else of it can be reached."""
    local = base_chain(
        "filter-input",
        Rule('iifname "lo" accept'),
        Rule("icmp type echo-reply ct state established accept"),
        Rule("iifname @bridges icmp type echo-request limit rate 50/second burst 50 packets accept"),
    )
    own = base_chain(
        "filter-output",
        Rule('oifname "lo" accept'),
        Rule("icmp type redirect drop"),
        Rule("meta l4proto icmp meta nfproto ipv4 accept"),
        # The resets of `reject`.
        Rule("tcp flags & rst == rst ct state related,established accept"),
    )
    return [], [local, own]


def nat_postrouting(view: View) -> Parts:
    """Source NAT to the uplink's address, and a backstop behind it."""
    uplink = quoted(names.UPLINK)
    ours = anonymous([str(prefix) for prefix in view.vpc.prefixes if prefix.version == 4])
    return [], [
        base_chain("nat-postrouting", Rule(f"oifname {uplink} ip saddr {ours} snat ip to {view.uplink_address}")),
        base_chain(
            "filter-postrouting",
            Rule(f"oifname {uplink} meta nfproto ipv6 drop"),
            Rule(f"oifname {uplink} ip saddr != {view.uplink_address} drop"),
        ),
    ]


def neighbours(view: View) -> Parts:
    """The table of the ARP family: who may speak for which address."""
    hook, reason = ARP_CHAIN
    trusted = [quoted(names.UPLINK), *(quoted(link) for link, _ in view.peer_links)]
    members = Set("members", f"ifname . ether_addr . {ADDRESS_TYPE[4]}", tuple(_members(view)))
    rules = (
        Rule("iifname . arp saddr ether . arp saddr ip @members accept"),
        Rule(f"iifname {anonymous(trusted)} accept"),
    )
    return [members], [Chain("arp-input", rules, hook, reason)]


def frames(view: View) -> Parts:
    """The table of the bridge family: what is neither ARP nor IP goes nowhere, nor does anything with a VLAN tag."""
    hook, reason = FRAME_CHAIN
    kinds = ["arp", *(ADDRESS_WORD[version] for version in view.vpc.versions)]
    return [], [Chain("bridge-prerouting", (Rule(f"ether type {anonymous(kinds)} accept"),), hook, reason)]


# In the order in which a packet meets them.
SECTIONS: tuple[Callable[[View], Parts], ...] = (sources, nat_prerouting, forward, router, nat_postrouting)


# What a VPC on its way down has instead: nothing passes.
CLOSED = tuple(
    Chain(name, (), Hook("filter", name.removeprefix("filter-"), "filter", "drop"))
    for name in ("filter-prerouting", "filter-forward", "filter-input", "filter-output")
)
