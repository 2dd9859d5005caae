"""What `filter-forward` does: legal paths, what is published, the two gates, and the mark of who was admitted."""

from __future__ import annotations

from collections import defaultdict

from vpcctl import names
from vpcctl.compiler.gates import PlannedGate, planned
from vpcctl.compiler.hooks import CHECKED_MARK, Parts, base_chain
from vpcctl.compiler.nft import (
    ADDRESS_TYPE,
    ADDRESS_WORD,
    Chain,
    Element,
    NftRule,
    RateLimit,
    RulesetPart,
    Set,
    anonymous,
    quoted,
)
from vpcctl.compiler.translation import untranslated
from vpcctl.compiler.view import View
from vpcctl.model.network import NEVER_USABLE, Subnet, port_range
from vpcctl.model.policy import Address, Direction
from vpcctl.values import dataclass

SEND_REJECT = (NftRule("meta l4proto tcp reject with tcp reset"), NftRule("reject with icmpx admin-prohibited"))


@dataclass(frozen=True, slots=True)
class _Port:
    """A subnet as the judgement meets it: its bridge, and the gates that stand there."""

    bridge: str
    subnet: Subnet
    egress: PlannedGate | None
    ingress: PlannedGate | None


def forward(view: View) -> Parts:
    """The judgement: legal paths, then the two gates, then the mark of this generation."""
    ports = [
        _Port(bridge, subnet, planned(view, subnet, Direction.EGRESS), planned(view, subnet, Direction.INGRESS))
        for bridge, subnet in view.bridges
    ]
    served_sets, served_chains = _served(view)
    gates = [made for port in ports for made in (port.egress, port.ingress) if made]
    sets: list[Set | RateLimit | RulesetPart] = [
        Set("bridges", "ifname", tuple(Element(quoted(bridge)) for bridge, _ in view.bridges)),
        Set("paths", "ifname . ifname", tuple(_paths(view))),
        # A field can be compared with values, not with another field: so each address stands beside itself.
        Set("ends", "ipv4_addr . ipv4_addr", tuple(_ends(view))),
        *served_sets,
        *gates,
    ]
    chains: list[Chain | RulesetPart] = [
        _entry(),
        *served_chains,
        *_judge(ports, bool(served_chains)),
        _judge_reply(ports, bool(served_chains)),
        _judge_error(view),
        *_paths_of(view),
        Chain("admit", (NftRule("ct mark set $generation accept"),)),
        Chain("send-reject", SEND_REJECT),
    ]
    for port in ports:
        chains += (made for made in (port.egress, port.ingress) if made)
    return sets, chains


def _entry() -> Chain:
    return base_chain(
        "filter-forward",
        NftRule("ct state related goto judge-error"),
        NftRule("ct mark $generation accept"),
        NftRule("ct state invalid drop"),
        NftRule("ct direction reply goto judge-reply"),
        NftRule("goto judge"),
    )


def _judge(ports: list[_Port], published: bool) -> list[Chain]:
    """A packet that travels forwards: a new flow, or one that an earlier ruleset admitted.

    One lookup of the outgoing interface leads to the destination subnet, `arrive-…`.  An instance may send to every
    subnet, so only the paths of other senders are checked there.
    """
    egress = _dispatch("iifname", [(port.bridge, port.egress.chain) for port in ports if port.egress], "jump")
    arrivals = [(port.bridge, f"arrive-{port.subnet.name}") for port in ports]
    judge = (
        # The protocol comes first: most packets have another one, or begin with a SYN.
        NftRule("tcp flags & (fin | syn | rst | ack) != syn ct state new drop"),
        *_dispatch("oifname", arrivals, "goto"),
        NftRule("jump path"),
        *egress,
        NftRule("goto admit"),
    )
    served = [NftRule(f"iifname {quoted(names.UPLINK)} jump served")] if published else []
    return [
        Chain("judge", judge),
        Chain("enter", (NftRule("jump path"), *served)),
        *(_arrive(port.subnet, egress, port.ingress) for port in ports),
    ]


def _judge_reply(ports: list[_Port], published: bool) -> Chain:
    """The same of a packet that travels backwards, without what holds for new flows only."""
    rules = (
        NftRule("jump path-reply"),
        *([NftRule(f"oifname {quoted(names.UPLINK)} jump served-reply")] if published else []),
        *_dispatch("oifname", [(port.bridge, port.egress.mirror) for port in ports if port.egress], "jump"),
        *_dispatch("iifname", [(port.bridge, port.ingress.mirror) for port in ports if port.ingress], "jump"),
        NftRule("goto admit"),
    )
    return Chain("judge-reply", rules)


def _paths_of(view: View) -> list[Chain]:
    """May the one interface send to the other at all?  In `path` one of them belongs to no subnet."""
    return [
        Chain(
            "path",
            (
                _stray(view),
                _translated(view, "oifname"),
                NftRule("iifname . oifname @paths return"),
                NftRule("drop"),
            ),
        ),
        Chain(
            "path-reply",
            (
                NftRule("oifname @bridges iifname @bridges return"),
                _translated(view, "iifname"),
                NftRule("oifname . iifname @paths return"),
                NftRule("drop"),
            ),
        ),
    ]


def _judge_error(view: View) -> Chain:
    """An ICMP error passes with the flow that it quotes: it cannot be judged by its own header.

    It never stamps that flow, so one of an older generation has to show itself first.  Of the instances only the
    flow's own end may speak: connection tracking would believe anybody who guesses the ports (RFC 5927).
    """
    return Chain(
        "judge-error",
        (
            # Connection tracking calls redirects "related", too.
            NftRule("icmp type { source-quench, redirect } drop"),
            NftRule("ct mark != $generation drop"),
            # The host calls published ports from its end of the uplink.
            NftRule(
                (f"ip daddr != {view.host_address} " if view.vpc.publications else "")
                + f"ip daddr {anonymous(nowhere(view))} drop"
            ),
            NftRule("iifname @bridges ct direction original ip saddr . ct original ip saddr != @ends drop"),
            NftRule("iifname @bridges ct direction reply ip saddr . ct reply ip saddr != @ends drop"),
            NftRule("accept"),
        ),
    )


def _ends(view: View) -> list[Element]:
    addresses = [address for instance in view.vpc.instances for address in instance.addresses]
    return [Element(f"{address} . {address}") for address in addresses if address.version == 4]


def _served(view: View) -> Parts:
    """What flows from the uplink may be for.

    Connection tracking keeps the translation of a live flow when its port is unpublished; the path stays legal
    while the subnet has another published port, so the port itself is asked for, in either direction: that of the
    instance, and that of the host, as several of the host's may lead to one of the instance.
    """
    if not view.vpc.publications:
        return [], []
    spans: dict[tuple[Address, int], list[tuple[int, int]]] = defaultdict(list)
    for item in view.vpc.publications:
        spans[view.vpc.instance(item.instance).addresses[0], item.protocol].append(item.targets)
    targets = tuple(
        Element(f"{address} . {protocol} . {low if low == high else f'{low}-{high}'}")
        for (address, protocol), found in spans.items()
        for low, high in _joined(found)
    )
    intervals = any("-" in element.key for element in targets)
    served = Set("served", f"{ADDRESS_TYPE[4]} . inet_proto . inet_service", targets, interval=intervals)
    # A field of the original direction cannot be part of a concatenation.
    ports: dict[int, list[str]] = defaultdict(list)
    for item in sorted(view.vpc.publications, key=lambda item: item.entries):
        ports[item.protocol].append(port_range(item.entry_port, item.count))
    called = [
        NftRule(f"meta l4proto {protocol} ct original proto-dst != {anonymous(found)} drop")
        for protocol, found in sorted(ports.items())
    ]
    straight = (
        NftRule("ct status & dnat == 0 drop"),
        *called,
        NftRule("ip daddr . meta l4proto . th dport @served return"),
        NftRule("drop"),
    )
    mirrored = (*called, NftRule("ip saddr . meta l4proto . th sport @served return"), NftRule("drop"))
    return [served], [Chain("served", straight), Chain("served-reply", mirrored)]


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge overlapping ranges of ports: nftables accepts no overlapping elements."""
    if all(low == high for low, high in spans):
        return list(dict.fromkeys(spans))
    found: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], high)
        else:
            found.append((low, high))
    return found


def _stray(view: View) -> NftRule:
    """The default route is for the internet: not for addresses of the VPC that no subnet has, nor for the host's."""
    return NftRule(f"oifname {quoted(names.UPLINK)} ip daddr {anonymous([*nowhere(view), *inside(view)])} drop")


def nowhere(view: View) -> list[str]:
    """The IPv4 prefixes that no packet of an instance may go to: the uplink's, and those that no VPC may use.

    The host refuses the addresses of other VPCs' uplinks, so a router does not depend on the other VPCs.
    """
    return [*never_usable(4), f"{view.host_address}/31"]


def never_usable(version: int) -> list[str]:
    """The prefixes of one IP version that no VPC may use."""
    return [str(prefix) for prefix in NEVER_USABLE if prefix.version == version]


def inside(view: View) -> list[str]:
    """The IPv4 prefixes of the VPC and of its peers."""
    return [str(prefix) for vpc in (view.vpc, *view.peers) for prefix in vpc.prefixes if prefix.version == 4]


def _translated(view: View, outward: str) -> NftRule:
    """What cannot be translated does not leave: without ports the host could not tell its flows from a tenant's."""
    return NftRule(f"{outward} {quoted(names.UPLINK)} {untranslated(view.vpc.nat_protocols)} drop")


def _paths(view: View) -> list[Element]:
    """Who may send to whom besides one subnet to another, as (in, out) of a new flow."""
    inside = [bridge for bridge, _ in view.bridges]
    peers = [link for link, _ in view.peer_links]
    pairs = [(bridge, names.UPLINK) for bridge, subnet in view.bridges if subnet.reaches_internet]
    pairs += [pair for bridge in inside for link in peers for pair in ((bridge, link), (link, bridge))]
    published = {view.vpc.subnet_of(item.instance).name for item in view.vpc.publications}
    pairs += [(names.UPLINK, bridge) for bridge, subnet in view.bridges if subnet.name in published]
    return [Element(f"{quoted(one)} . {quoted(other)}") for one, other in pairs]


def _dispatch(field: str, targets: list[tuple[str, str]], verb: str) -> list[NftRule]:
    """One jump or goto by interface name; none if there are no targets."""
    if not targets:
        return []
    return [NftRule(f"{field} vmap " + anonymous([f"{quoted(link)} : {verb} {chain}" for link, chain in targets]))]


def _arrive(subnet: Subnet, egress: list[NftRule], ingress: PlannedGate | None) -> Chain:
    """Packets for a subnet: they pass the sender's gate and then the subnet's own.

    Only addresses of instances are resolved, so a scan cannot fill the neighbour table (`arp(7)`).
    """
    rules = [NftRule(f"meta mark != {CHECKED_MARK} jump enter"), *egress]
    for version in {prefix.version for prefix in subnet.prefixes}:
        taken = [str(a) for instance in subnet.instances for a in instance.addresses if a.version == version]
        word = ADDRESS_WORD[version]
        rules.append(
            NftRule(f"{word} daddr != {anonymous(taken)} drop" if taken else f"meta nfproto ipv{version} drop")
        )
    if ingress:
        rules.append(NftRule(f"jump {ingress.chain}"))
    return Chain(f"arrive-{subnet.name}", (*rules, NftRule("goto admit")))
