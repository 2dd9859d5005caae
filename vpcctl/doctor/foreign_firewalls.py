"""Will the firewalls of others on this host let our packets pass?  Pure: from a listing of the ruleset to findings.

A VPC's packets cross the host from its uplink to the way out, and their answers come back.  `accept` in our own table
cannot override a drop in another one, so every foreign chain that they meet has to let them pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from vpcctl.doctor.finding import Finding
from vpcctl.doctor.hook_verdicts import BaseChain, HookDecision, Listing, RulePlace
from vpcctl.doctor.rule_matches import UNKNOWN, SamplePacket
from vpcctl.kernel import legacy_tables
from vpcctl.values import dataclass

SUBJECT = "foreign firewall"
UPLINKS = "vpc-"
SERVICES = (("tcp", 443), ("udp", 53), ("icmp", 0))
OUT, BACK, IN = "packets from VPCs", "replies to VPCs", "packets to published ports"
# Connection tracking's bits on a flow that we translate (include/uapi/linux/netfilter/nf_conntrack_common.h).
ANSWERED = frozenset({"seen-reply", "confirmed", "snat"})
FORWARDED = frozenset({"dnat"})
SHOWN = 5
# The name of the zone, and the beginning of that of the policy.
FIREWALLD = "vpcctl"
NO_TOOLS: Mapping[str, str] = {}
DOCKER_USER = "DOCKER-USER"
TAILSCALE = "Tailscale"
# The addresses of tailnets.  Tailscale's rules accept them only from its own link; our default transit range is among
# them.
SHARED = IPv4Network("100.64.0.0/10")
# Priorities from which on translated addresses are seen, and of connection tracking itself
# (include/uapi/linux/netfilter_ipv4.h).
CONNTRACK, DSTNAT, SRCNAT = -200, -100, 100


@dataclass(frozen=True, slots=True)
class Passage:
    """The path of a VPC's packets across the host.

    `address` is its router's, `host` the one by which the host is known on the way out (None: not known), `published`
    are its published ports as (protocol's name, port).  `others` are the networks that the host reaches by other links:
    their firewalls decide whether a VPC may send there.  With `tailnet` the link is Tailscale's and not a way out: then
    only Tailscale's rules against forged sources of the tailnet matter.
    """

    uplink: str
    address: IPv4Address
    way_out: str
    host: IPv4Address | None = None
    published: tuple[tuple[str, int], ...] = ()
    others: tuple[IPv4Network, ...] = ()
    tailnet: bool = False


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """What a foreign chain does to one of the packets."""

    passage: Passage
    direction: str
    packet: SamplePacket
    decision: HookDecision


def packets(passage: Passage) -> Iterator[tuple[str, SamplePacket]]:
    """(direction, packet) of each kind that has to pass, as the forward hook sees them."""
    uplink, address, way_out = passage.uplink, passage.address, passage.way_out
    for protocol, port in SERVICES:
        yield OUT, SamplePacket(uplink, way_out, address, None, protocol, port, address)
        yield BACK, SamplePacket(way_out, uplink, None, address, protocol, port, address, True, ANSWERED)
    for protocol, port in passage.published:
        yield IN, SamplePacket(way_out, uplink, None, address, protocol, port, None, False, FORWARDED)


def seen(packet: SamplePacket, direction: str, chain: BaseChain, host: IPv4Address | None) -> SamplePacket:
    """The packet as a chain sees it on its own hook: before routing, and with the host's address after translation."""
    known = UNKNOWN if host is None else host
    if chain.hook == "prerouting":
        translated = direction == OUT or chain.priority > DSTNAT
        leaves = packet.oifname if translated else UNKNOWN
        return replace(packet, oifname="", leaves=leaves, destination=packet.destination if translated else known)
    if chain.hook == "postrouting":
        translated = direction == OUT and chain.priority > SRCNAT
        # Whether a packet that is about to leave still knows where it came in depends on the kernel's version.
        return replace(packet, iifname=UNKNOWN, source=known if translated else packet.source)
    return packet


def verdicts(listing: Listing, ours: Collection[tuple[str, str]], passages: Sequence[Passage]) -> list[ChainVerdict]:
    """What each foreign chain does to each packet; `ours` are our own tables as (family, name)."""
    chains = [chain for hook in ("prerouting", "forward", "postrouting") for chain in listing.on(hook, ours)]
    marked = listing.marks_packets()
    found = []
    for passage in passages:
        for direction, packet in packets(passage):
            for chain in chains:
                met = replace(seen(packet, direction, chain, passage.host), marked=marked)
                found.append(ChainVerdict(passage, direction, met, listing.decide(chain, met)))
    return found


def findings(
    listing: Listing,
    ours: Collection[tuple[str, str]],
    passages: Sequence[Passage],
    transit: str,
    tools: Mapping[str, str] = NO_TOOLS,
) -> list[Finding]:
    """One finding for each foreign chain that drops, or may drop, what has to pass; one `ok` if no chain does.

    `tools` are the programs that the machine has, of `host.TOOLS`, each with the name to call it by; without them
    remedies use nft.
    """
    judged = verdicts(listing, ours, passages)
    found: dict[tuple[BaseChain, bool], list[ChainVerdict]] = defaultdict(list)
    for one in judged:
        tailscale = _by_tailscale(one)
        if one.decision.verdict != "accept" and (tailscale or not one.passage.tailnet):
            found[one.decision.chain, tailscale].append(one)
    if not found:
        chains = {one.decision.chain for one in judged}
        return [Finding("ok", SUBJECT, f"no foreign chain drops the VPCs' packets; chains checked: {len(chains)}")]
    return [_finding(listing, chain, members, transit, tools) for (chain, _), members in found.items()]


def _by_tailscale(one: ChainVerdict) -> bool:
    """Does a rule of Tailscale drop it, or may it?  The rules use marks, which depend on earlier rules."""
    return one.decision.verdict != "accept" and all(place.chain.startswith("ts-") for place in one.decision.by)


def _finding(
    listing: Listing, chain: BaseChain, members: list[ChainVerdict], transit: str, tools: Mapping[str, str]
) -> Finding:
    """The finding for a chain that may not let `members` pass."""
    words, commands = remedy(listing, chain, members, transit, tools)
    owner = TAILSCALE if any(map(_by_tailscale, members)) else manager(listing, chain)
    dropped = [one for one in members if one.decision.verdict == "drop"]
    if dropped:
        told = "; ".join(f"{place} drops {' and '.join(directions)}" for place, directions in _reasons(dropped).items())
        minor = all(one.packet.protocol == "icmp" or one.passage.tailnet for one in dropped)
        severity = "warning" if minor else "fatal"
        why = "A drop is final: these packets are lost, even if vpcctl's own table accepts them."
        return Finding(severity, SUBJECT, f"{owner}: {told} ({_affected(dropped)})", why, words, commands)
    directions = _listed(dict.fromkeys(one.direction for one in members))
    doubts = _listed(list(map(str, _reasons(members))))
    return Finding(
        "warning",
        SUBJECT,
        f"{owner}: whether {directions} pass ({_affected(members)}) depends on {doubts}",
        "Doctor does not understand all of these rules, or they depend on more than one packet. They may drop what has"
        " to pass.",
        f"Test with real traffic, or make sure that these packets pass. {words}",
        commands,
    )


def _affected(members: Sequence[ChainVerdict]) -> str:
    services = dict.fromkeys(map(_service, members))
    return f"{_listed(services)} of {_listed(dict.fromkeys(one.passage.uplink for one in members))}"


def _reasons(members: Sequence[ChainVerdict]) -> dict[RulePlace, dict[str, None]]:
    """The directions that each place decides."""
    found: dict[RulePlace, dict[str, None]] = defaultdict(dict)
    for one in members:
        for place in one.decision.by:
            found[place][one.direction] = None
    return found


def _service(one: ChainVerdict) -> str:
    return one.packet.protocol if one.packet.protocol == "icmp" else f"{one.packet.protocol}/{one.packet.port}"


def _listed(words: Collection[str]) -> str:
    known = list(words)
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more


# --- Remedies ---------------------------------------------------------------------------------------------------------


def manager(listing: Listing, chain: BaseChain) -> str:
    """The owner of a table, as far as the names of its chains show it."""
    names = listing.companions(chain)
    if chain.table.startswith("firewalld"):
        return "firewalld"
    for owner, beginning in (("Docker", "DOCKER"), ("ufw", "ufw-"), ("libvirt", "LIBVIRT_"), ("Kubernetes", "KUBE-")):
        if any(name.startswith(beginning) for name in names):
            return owner
    return "iptables" if chain.family == "ip" and chain.name.isupper() else "another nftables ruleset"


def remedy(
    listing: Listing, chain: BaseChain, members: Sequence[ChainVerdict], transit: str, tools: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """Words and commands that make `chain` let the packets of `members` pass."""
    owner = manager(listing, chain)
    published = any(one.direction == IN for one in members)
    ways = tuple(dict.fromkeys(one.passage.way_out for one in members))
    if owner == "firewalld" and "firewall-cmd" in tools and chain.hook == "forward":
        others = dict.fromkeys(network for one in members for network in one.passage.others)
        words = f"Let firewalld forward from the uplinks' range to {' and '.join(ways)} alone:"
        return words, tuple(_firewalld(transit, ways, others))
    if owner == "ufw" and "ufw" in tools and chain.hook == "forward":
        outgoing = tuple(f"ufw route allow out on {way} from {transit}" for way in ways)
        incoming = tuple(f"ufw route allow in on {way} to {transit}" for way in ways) if published else ()
        return "Allow routed traffic between the uplinks' range and the way out:", outgoing + incoming
    if any(map(_by_tailscale, members)):
        return (
            f"Tailscale puts its rules first, and they drop sources in {SHARED} that are not from its own link: the"
            f" transit range {transit} is a part of it. Use another range: save the VPCs (`vpcctl export`),"
            ' remove them (`vpcctl destroy --all`), and `vpcctl apply` them with `"transit": "192.168.255.0/24"` or'
            " another range that is free here.",
            (),
        )
    openings, iptables = _openings(chain, members, transit), _iptables(chain, tools)
    # A chain of iptables gets only rules that iptables can express: otherwise it could not read its own table any more.
    sayable = all(one.iptables for one in openings) or not (iptables or chain.table.endswith(legacy_tables.SUFFIX))
    for place in (DOCKER_USER, chain.name):
        here = place in listing.companions(chain)
        if openings and sayable and here and _helps(listing, chain, place, openings, members):
            break
    else:
        return "No rule at the head of a chain helps. Let VPCs' packets pass in the rule or policy named here.", ()
    reload = (
        f"Docker reserves the chain {DOCKER_USER} for your rules."
        if place == DOCKER_USER
        else f"A reload of {owner} may remove these rules."
    )
    words = f"Accept these packets first. {reload} A reboot removes them: save them with your other rules."
    return words, tuple(_commands(chain, place, openings, iptables))


def _firewalld(transit: str, ways: Sequence[str], others: Iterable[IPv4Network]) -> Iterator[str]:
    """A zone for the uplinks, and a policy that forwards from it to the zones of the ways out.

    Other links can be in the same zone, so the policy rejects what goes to their networks.
    """
    zone, policy = f"firewall-cmd --permanent --zone={FIREWALLD}", f"firewall-cmd --permanent --policy={FIREWALLD}-out"
    yield f"firewall-cmd --permanent --new-zone={FIREWALLD}"
    yield f"{zone} --add-source={transit}"
    yield f"firewall-cmd --permanent --new-policy={FIREWALLD}-out"
    yield f"{policy} --set-target=ACCEPT"
    yield f"{policy} --add-ingress-zone={FIREWALLD}"
    default = "firewall-cmd --get-default-zone"
    for way in ways:
        found = f"firewall-cmd --get-zone-of-interface={way} 2>/dev/null"
        # A link that is only implicitly in the default zone does not make that zone active.
        yield f'{found} || firewall-cmd --permanent --zone="$({default})" --add-interface={way}'
        yield f'{policy} --add-egress-zone="$({found} || {default})"'
    for network in others:
        yield f"{policy} --add-rich-rule='rule family=ipv4 destination address={network} reject'"
    yield "firewall-cmd --reload"


def _commands(chain: BaseChain, place: str, openings: Sequence[Opening], iptables: str) -> Iterator[str]:
    """What accepts the openings at the head of the chain `place`: by iptables if it is given, else by nft."""
    name = chain.table.removesuffix(legacy_tables.SUFFIX)
    table = "" if name == "filter" else f" -t {name}"
    for opening in openings:
        if iptables:
            yield f"{iptables}{table} -I {place} {opening.iptables} -j ACCEPT"
        else:
            yield f"nft insert rule {chain.family} {chain.table} {place} {opening.nft} accept"


def _helps(
    listing: Listing, chain: BaseChain, place: str, openings: Sequence[Opening], members: Sequence[ChainVerdict]
) -> bool:
    """Do all packets of `members` pass once the openings are accepted at the head of the chain `place`?"""
    opened = listing
    for opening in openings:
        opened = opened.with_rule(chain, place, [*opening.json, {"accept": None}])
    return all(opened.decide(chain, one.packet).verdict == "accept" for one in members)


def _iptables(chain: BaseChain, tools: Mapping[str, str]) -> str:
    """The iptables that keeps this chain, if it is one of iptables' and the machine has the program."""
    if chain.table.endswith(legacy_tables.SUFFIX):
        return tools.get("iptables-legacy", "iptables-legacy")
    return tools.get("iptables-nft", "") if chain.family == "ip" and chain.name.isupper() else ""


@dataclass(frozen=True, slots=True)
class Opening:
    """What our packets match: in nft's syntax, as a shell takes it; in iptables', empty if impossible; as JSON."""

    nft: str
    iptables: str
    json: tuple[dict[str, Any], ...]


def _openings(chain: BaseChain, members: Sequence[ChainVerdict], transit: str) -> list[Opening]:
    """What `chain` has to accept to let the packets of `members` pass, and no others.

    Packets from VPCs only to the ways out: networks behind other links may rely on this firewall to keep VPCs away. Our
    own table decides which packets reach VPCs.
    """
    makers = {"prerouting": _before_routing, "forward": _forwarded, "postrouting": _after_routing}
    found = (
        opening
        for direction in (OUT, BACK, IN)
        for one in members
        if one.direction == direction
        for opening in makers[chain.hook](chain, direction, one.passage.way_out, transit)
    )
    return list({opening.nft: opening for opening in found}.values())


def _forwarded(chain: BaseChain, direction: str, way_out: str, transit: str) -> list[Opening]:
    """On the forward hook both links are known."""
    if direction == OUT:
        come = _uplink("iifname"), _link("oifname", way_out)
        return [Opening(f'iifname "{UPLINKS}*" oifname "{way_out}"', f"-i {UPLINKS}+ -o {way_out}", come)]
    if direction == BACK:
        return [_replies()]
    inward = _link("iifname", way_out), _uplink("oifname")
    return [Opening(f'iifname "{way_out}" oifname "{UPLINKS}*"', f"-i {way_out} -o {UPLINKS}+", inward)]


def _before_routing(chain: BaseChain, direction: str, way_out: str, transit: str) -> list[Opening]:
    """Before routing, the outgoing link has to be looked up, which iptables cannot do."""
    if direction == OUT:
        routed = {"match": {"op": "==", "left": {"fib": {"result": "oifname", "flags": ["daddr"]}}, "right": way_out}}
        return [Opening(f'iifname "{UPLINKS}*" fib daddr oifname "{way_out}"', "", (_uplink("iifname"), routed))]
    if direction == BACK and chain.priority > CONNTRACK:
        reply = _equal({"ct": {"key": "direction"}}, "reply")
        words = f"ct direction reply ct original ip saddr {transit}"
        return [Opening(words, "", (reply, _begun_by(transit)))]
    return []


def _after_routing(chain: BaseChain, direction: str, way_out: str, transit: str) -> list[Opening]:
    """On the postrouting hook the incoming link is unknown, and the source may be translated."""
    if direction == OUT:
        begun = _link("oifname", way_out), _begun_by(transit)
        # The chains of iptables that can drop come before translation.
        return [Opening(f'oifname "{way_out}" ct original ip saddr {transit}', f"-o {way_out} -s {transit}", begun)]
    if direction == BACK:
        return [_replies()]
    return [Opening(f'oifname "{UPLINKS}*"', f"-o {UPLINKS}+", (_uplink("oifname"),))]


def _replies() -> Opening:
    """Packets of existing flows to the uplinks."""
    states = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
    return Opening(
        f'oifname "{UPLINKS}*" ct state established,related',
        f"-o {UPLINKS}+ -m conntrack --ctstate ESTABLISHED,RELATED",
        (_uplink("oifname"), states),
    )


def _uplink(key: str) -> dict[str, Any]:
    return _link(key, f"{UPLINKS}*")


def _link(key: str, name: str) -> dict[str, Any]:
    return _equal({"meta": {"key": key}}, name)


def _begun_by(transit: str) -> dict[str, Any]:
    """The flows that uplinks began, even if their addresses are translated at this point."""
    return _equal({"ct": {"key": "ip saddr", "dir": "original"}}, _prefix(transit))


def _prefix(transit: str) -> dict[str, Any]:
    network, length = transit.split("/")
    return {"prefix": {"addr": network, "len": int(length)}}


def _equal(left: Mapping[str, Any], right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}
