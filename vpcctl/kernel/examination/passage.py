"""Will the firewalls of others on this host let our packets pass?  Pure: from a listing of the ruleset to findings.

A VPC's packets cross the host from its uplink to the way out, and their answers come back.  `accept` in our own table
cannot overrule a drop in another one, so every foreign chain that they meet has to let them pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

from vpcctl.kernel.examination import legacy
from vpcctl.kernel.examination.finding import Finding
from vpcctl.kernel.examination.hooks import BaseChain, Decision, Listing, Place
from vpcctl.kernel.examination.matches import UNKNOWN, Packet

SUBJECT = "foreign firewall"
UPLINKS = "vpc-"
SERVICES = (("tcp", 443), ("udp", 53), ("icmp", 0))
OUT, BACK, IN = "what VPCs send out", "the answers that come back", "what comes in for published ports"
# Connection tracking's bits on a flow that we translate (include/uapi/linux/netfilter/nf_conntrack_common.h).
ANSWERED = frozenset({"seen-reply", "confirmed", "snat"})
FORWARDED = frozenset({"dnat"})
SHOWN = 5
NO_TOOLS: Mapping[str, str] = {}
DOCKER_USER = "DOCKER-USER"


@dataclass(frozen=True, slots=True)
class Passage:
    """A VPC's way across the host; `published` are its published ports as (protocol's name, port in the VPC)."""

    uplink: str
    address: IPv4Address
    way_out: str
    published: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a foreign chain does to one of the packets."""

    passage: Passage
    direction: str
    packet: Packet
    decision: Decision


def packets(passage: Passage) -> Iterator[tuple[str, str, Packet]]:
    """(hook, direction, packet) for a flow of each kind that has to pass."""
    for protocol, port in SERVICES:
        out = Packet(passage.uplink, passage.way_out, passage.address, None, protocol, port)
        yield "prerouting", OUT, replace(out, oifname="")
        yield "forward", OUT, out
        # Whether a packet that is about to leave still knows where it came in depends on the kernel's version.
        yield "postrouting", OUT, replace(out, iifname=UNKNOWN)
        back = Packet(passage.way_out, passage.uplink, None, passage.address, protocol, port, True, ANSWERED)
        yield "forward", BACK, back
    for protocol, port in passage.published:
        came = Packet(passage.way_out, passage.uplink, None, passage.address, protocol, port, status=FORWARDED)
        yield "forward", IN, came


def verdicts(listing: Listing, ours: Collection[tuple[str, str]], passages: Sequence[Passage]) -> list[Verdict]:
    """What each foreign chain does to each packet; `ours` are our own tables as (family, name)."""
    hooks = {hook: listing.on(hook, ours) for hook in ("prerouting", "forward", "postrouting")}
    marked = listing.marks_packets()
    return [
        Verdict(passage, direction, packet, listing.decide(chain, replace(packet, marked=marked)))
        for passage in passages
        for hook, direction, packet in packets(passage)
        for chain in hooks[hook]
    ]


def findings(
    listing: Listing,
    ours: Collection[tuple[str, str]],
    passages: Sequence[Passage],
    transit: str,
    tools: Mapping[str, str] = NO_TOOLS,
) -> list[Finding]:
    """One finding for each foreign chain that drops, or may drop, what has to pass; one `ok` if there is none.

    `tools` are the programs that the machine has, of `host.TOOLS`, each with the name to call it by; without them
    remedies are told in nft's words.
    """
    judged = verdicts(listing, ours, passages)
    found: dict[BaseChain, list[Verdict]] = defaultdict(list)
    for one in judged:
        if one.decision.verdict != "accept":
            found[one.decision.chain].append(one)
    if not found:
        chains = {one.decision.chain for one in judged}
        return [Finding("ok", SUBJECT, f"{len(chains)} chains of others on our packets' way let them pass")]
    return [_finding(listing, chain, members, transit, tools) for chain, members in found.items()]


def _finding(
    listing: Listing, chain: BaseChain, members: list[Verdict], transit: str, tools: Mapping[str, str]
) -> Finding:
    """What to say of a chain that does not let `members` pass for sure."""
    words, commands = remedy(listing, chain, members, transit, tools)
    owner = manager(listing, chain)
    dropped = [one for one in members if one.decision.verdict == "drop"]
    if dropped:
        told = "; ".join(f"{place} drops {' and '.join(directions)}" for place, directions in _reasons(dropped).items())
        severity = "warning" if all(one.packet.protocol == "icmp" for one in dropped) else "fatal"
        why = "A drop is final: what vpcctl's own table accepts is lost all the same, without a word."
        return Finding(severity, SUBJECT, f"{owner}: {told} ({_affected(dropped)})", why, words, commands)
    directions = _listed(dict.fromkeys(one.direction for one in members))
    doubts = _listed(list(map(str, _reasons(members))))
    return Finding(
        "warning",
        SUBJECT,
        f"{owner}: whether {directions} may pass ({_affected(members)}) depends on {doubts}",
        "Doctor does not understand all of these rules, or they depend on more than one packet; they may drop it.",
        f"Try it with real traffic, or let it pass whatever those rules do. {words}",
        commands,
    )


def _affected(members: Sequence[Verdict]) -> str:
    services = dict.fromkeys(map(_service, members))
    return f"{_listed(services)} of {_listed(dict.fromkeys(one.passage.uplink for one in members))}"


def _reasons(members: Sequence[Verdict]) -> dict[Place, dict[str, None]]:
    """The directions that each place decides."""
    found: dict[Place, dict[str, None]] = defaultdict(dict)
    for one in members:
        for place in one.decision.by:
            found[place][one.direction] = None
    return found


def _service(one: Verdict) -> str:
    return one.packet.protocol if one.packet.protocol == "icmp" else f"{one.packet.protocol}/{one.packet.port}"


def _listed(words: Collection[str]) -> str:
    known = list(words)
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more


# --- Remedies ---------------------------------------------------------------------------------------------------------


def manager(listing: Listing, chain: BaseChain) -> str:
    """Whose a table is, as far as the names of its chains tell."""
    names = listing.companions(chain)
    if chain.table.startswith("firewalld"):
        return "firewalld"
    for owner, beginning in (("Docker", "DOCKER"), ("ufw", "ufw-"), ("libvirt", "LIBVIRT_"), ("Kubernetes", "KUBE-")):
        if any(name.startswith(beginning) for name in names):
            return owner
    return "iptables" if chain.family == "ip" and chain.name.isupper() else "somebody's nftables ruleset"


def remedy(
    listing: Listing, chain: BaseChain, members: Sequence[Verdict], transit: str, tools: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """Words and commands that make `chain` let the packets of `members` pass."""
    owner = manager(listing, chain)
    published = any(one.direction == IN for one in members)
    if owner == "firewalld" and "firewall-cmd" in tools:
        trusted = f"firewall-cmd --permanent --zone=trusted --add-source={transit}"
        return "Put the uplinks' range into the trusted zone:", (trusted, "firewall-cmd --reload")
    if owner == "ufw" and "ufw" in tools and chain.hook == "forward":
        incoming = (f"ufw route allow to {transit}",) if published else ()
        return "Allow the uplinks' range to be routed:", (f"ufw route allow from {transit}", *incoming)
    place = _opening(listing, chain, members, transit)
    reload = (
        "Docker leaves that chain to you" if place == DOCKER_USER else f"{owner} may drop the rules when it reloads"
    )
    keep = f"{reload}, and a reboot empties it: keep them where your other rules are kept."
    openings = _openings(chain, transit)
    program = _iptables(chain, tools)
    if program:
        name = chain.table.removesuffix(legacy.SUFFIX)
        table = "" if name == "filter" else f" -t {name}"
        commands = [f"{program}{table} -I {place} {opening.iptables} -j ACCEPT" for opening in openings]
    else:
        where = f"{chain.family} {chain.table} {place}"
        commands = [f"nft insert rule {where} {opening.nft} accept" for opening in openings]
    return f"Accept it first. {keep}", tuple(commands)


def _iptables(chain: BaseChain, tools: Mapping[str, str]) -> str:
    """The iptables that keeps this chain, if it is one of iptables' and the machine has the program."""
    if chain.table.endswith(legacy.SUFFIX):
        return tools.get("iptables-legacy", "iptables-legacy")
    return tools.get("iptables-nft", "") if chain.family == "ip" and chain.name.isupper() else ""


@dataclass(frozen=True, slots=True)
class Opening:
    """A match that our packets satisfy: in nft's words (as a shell takes them), in iptables', and as JSON."""

    nft: str
    iptables: str
    json: dict[str, Any]


def _openings(chain: BaseChain, transit: str) -> list[Opening]:
    """What to accept in `chain`, so that it lets our packets pass."""
    ways = [
        Opening(f'{key} "{UPLINKS}*"', f"-{key[0]} {UPLINKS}+", _equal({"meta": {"key": key}}, f"{UPLINKS}*"))
        for key in ("iifname", "oifname")
    ]
    network, length = transit.split("/")
    prefix = {"prefix": {"addr": network, "len": int(length)}}
    sent = Opening(
        f"ip saddr {transit}", f"-s {transit}", _equal({"payload": {"protocol": "ip", "field": "saddr"}}, prefix)
    )
    return {"prerouting": ways[:1], "postrouting": [sent]}.get(chain.hook, ways)


def _equal(left: Mapping[str, Any], right: Any) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


def _opening(listing: Listing, chain: BaseChain, members: Sequence[Verdict], transit: str) -> str:
    """The chain at whose head accepting helps: the one that Docker leaves to its users if that does, else `chain`."""
    if DOCKER_USER in listing.companions(chain):
        opened = listing
        for opening in _openings(chain, transit):
            opened = opened.with_rule(chain, DOCKER_USER, [opening.json, {"accept": None}])
        if all(opened.decide(chain, one.packet).verdict == "accept" for one in members):
            return DOCKER_USER
    return chain.name
