"""Finds the holders of host ports: programs that listen on them, and foreign rules that translate them.

Rules are read as nft prints them: libnftables' JSON only names the matches and targets of iptables, but the text
describes them in the syntax of nft.  A rule that this module cannot parse counts as one that translates nothing.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from vpcctl.kernel.sockets import ListeningSocket
from vpcctl.model.network import Publication
from vpcctl.model.policy import HIGHEST_PORT, PORT_PROTOCOLS, PROTOCOL_NAMES, PROTOCOLS
from vpcctl.names import TABLE
from vpcctl.values import dataclass

LOOPBACK = IPv4Address("127.0.0.1")
Network = IPv4Network | IPv6Network
Span = tuple[int, int]
# An error names at most so many programs and rules for a port.
NAMED = 3

_TABLE_HEAD = re.compile(r"table (\S+) (\S+) \{")
_BLOCK_HEAD = re.compile(r"\t(chain|set|map) (\S+) \{")
# Statements that change the destination of a packet; the last form is that of a listing without iptables' syntax.
# The same words in a match do not count, as in firewalld's `ct status dnat accept`.
_TRANSLATES = re.compile(
    r"\bdnat (?:ip6? )?(?:prefix )?(?:addr \. port )?to\b"
    r"|(?<!type )\bredirect(?= to\b| random| fully-random| persistent| comment|\s*$)"
    r'|xt target "(?:DNAT|REDIRECT|NETMAP)"'
)
_PORTS = re.compile(r"\b(tcp|udp|sctp|th) dport (!= )?(?:v?map )?(\{[^{}]*\}|@\S+|[\w-]+)")
_PROTOCOL = re.compile(r"\b(?:meta l4proto|ip protocol) (!= )?(\{[^{}]*\}|[\w-]+)")
_DESTINATION = re.compile(r"\bip daddr (!= )?(?:map )?(\{[^{}]*\}|@\S+|[0-9][0-9./-]*)")
# The verdicts of a map that lead to no other chain.
_STAYING = {"accept", "drop", "return", "continue"}
_JUMP = re.compile(r"\b(?:jump|goto) ([\w.-]+)")
# Fields that are looked up together: their elements are parsed field by field.
_TOGETHER = re.compile(r"((?:[a-z0-9]+ [a-z0-9]+ \. )+[a-z0-9]+ [a-z0-9]+) (?:v?map )?(\{[^{}]*\}|@\S+)")


@dataclass(frozen=True, slots=True)
class ForeignRule:
    """A foreign rule that translates destinations.

    `protocols`, `ports` and `addresses` are what it matches; None for `addresses` means any destination.
    """

    family: str
    table: str
    chain: str
    protocols: frozenset[int]
    ports: tuple[Span, ...]
    addresses: tuple[Network, ...] | None = None
    inverted: bool = False

    def __str__(self) -> str:
        owner = "Docker's " if self.chain.startswith("DOCKER") else ""
        return f"{owner}chain {self.chain} of table {self.family} {self.table} translates it"

    def concerns(self, item: Publication, own: Iterable[Network]) -> bool:
        """Does it translate one of the ports at an address of the host?  `own` are all addresses of the host."""
        low, high = item.ports
        if item.protocol not in self.protocols or not any(a <= high and low <= b for a, b in self.ports):
            return False
        if self.addresses is None:
            return True
        called = [IPv4Network(str(item.address))] if item.address is not None else list(own)
        hit = any(one.version == 4 and one.overlaps(other) for one in called for other in self.addresses)
        return hit != self.inverted


def holders(
    publications: Sequence[Publication],
    listeners: Collection[ListeningSocket],
    rules: Collection[ForeignRule],
    own: Iterable[Network],
) -> dict[Publication, list[ListeningSocket | ForeignRule]]:
    """The holders of ports by publication, for the publications that have a conflict."""
    addresses = list(own)
    found: dict[Publication, list[ListeningSocket | ForeignRule]] = {}
    for item in publications:
        there: list[ListeningSocket | ForeignRule] = [one for one in listeners if _listens(one, item)]
        there += [one for one in rules if one.concerns(item, addresses)]
        if there:
            found[item] = there
    return found


def _listens(listener: ListeningSocket, item: Publication) -> bool:
    """Would the program no longer receive packets that it receives now?"""
    low, high = item.ports
    if listener.protocol != item.protocol or not low <= listener.port <= high:
        return False
    address = listener.address
    if address.version == 6:
        mapped = address.ipv4_mapped
        if mapped is None:
            return address.is_unspecified and not listener.only_ipv6
        address = mapped
    if address.is_unspecified or item.address == address:
        return True
    # "All addresses" includes 127.0.0.1, but no other loopback address.
    return item.address is None and (address == LOOPBACK or not address.is_loopback)


def in_words(found: Sequence[ListeningSocket | ForeignRule], processes: Mapping[int, str]) -> str:
    """The holders of a port in words; `processes` has the name of a socket's process by inode."""
    words = [
        str(one) if isinstance(one, ForeignRule) else f"{processes.get(one.inode, 'a program')} listens on {_at(one)}"
        for one in found
    ]
    told = list(dict.fromkeys(words))
    more = len(told) - NAMED
    return ", ".join(told[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _at(listener: ListeningSocket) -> str:
    address = listener.address
    plain = address.ipv4_mapped or address if address.version == 6 else address
    return f"{PROTOCOL_NAMES[listener.protocol]}/{listener.port} at {plain}"


def processes(inodes: Collection[int]) -> dict[int, str]:
    """The process that has each socket open, as `sshd (PID 712)`, as far as /proc shows it."""
    found: dict[int, str] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for name in sorted(filter(str.isdecimal, os.listdir("/proc")), key=int) if wanted else ():
        try:
            for descriptor in os.listdir(f"/proc/{name}/fd"):
                inode = wanted.get(os.readlink(f"/proc/{name}/fd/{descriptor}"))
                if inode is not None and inode not in found:
                    with open(f"/proc/{name}/comm") as comm:
                        found[inode] = f"{comm.read().strip()} (PID {name})"
        except OSError:  # it has ended, or we may not read it
            continue
        if len(found) == len(wanted):
            break
    return found


# --- Rules ------------------------------------------------------------------------------------------------------------


def foreign_rules(listing: str) -> list[ForeignRule]:
    """The rules of a listing of all tables (``nft list ruleset``) that translate destinations and are not ours."""
    elements, rules = {}, []
    for family, table, kind, name, body in _blocks(listing):
        if kind != "chain":
            elements[family, table, name] = body
    leading = _leading(listing)
    for family, table, kind, name, body in _blocks(listing):
        if kind == "chain" and family in ("ip", "inet") and not (family == "inet" and table.startswith(TABLE)):
            known = {other: words for (one, of, other), words in elements.items() if (one, of) == (family, table)}
            for line in body.splitlines():
                # The port may be asked for in one chain, and translated in another one.
                leads = "dport" in line and not leading[family, table].isdisjoint(_targets(line, known))
                if leads or _TRANSLATES.search(line):
                    rules += [ForeignRule(family, table, name, *part) for part in _rule(line, known, " hook " in body)]
    return rules


def _leading(listing: str) -> dict[tuple[str, str], set[str]]:
    """Of each table the chains that translate, and those that lead to one."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    calls: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for family, table, kind, name, body in _blocks(listing):
        if kind == "chain" and _TRANSLATES.search(body):
            found[family, table].add(name)
        for target in _JUMP.findall(body):
            calls[family, table][target].add(name)
    for place, names in found.items():
        waiting = list(names)
        while waiting:
            new = calls[place][waiting.pop()] - names
            names |= new
            waiting += new
    return found


def _targets(line: str, sets: Mapping[str, str]) -> list[str]:
    """The chains to which a rule leads, those in a map of verdicts included."""
    mapped = re.search(r"\bvmap @(\S+)", line)
    return _JUMP.findall(line + sets.get(mapped[1], "") if mapped else line)


def _blocks(listing: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Family, table, kind, name and content of each chain, set and map."""
    family = table = kind = name = ""
    body: list[str] = []
    for line in listing.splitlines():
        if head := _TABLE_HEAD.fullmatch(line.partition(" # handle ")[0]):
            family, table = head.groups()
        elif head := _BLOCK_HEAD.fullmatch(line.partition(" # handle ")[0]):
            (kind, name), body = head.groups(), []
        elif line.rstrip() == "\t}" and kind:
            yield family, table, kind, name, "\n".join(body)
            kind = ""
        else:
            body.append(line)


Match = tuple[frozenset[int], tuple[Span, ...], tuple[Network, ...] | None, bool]


def _rule(line: str, sets: Mapping[str, str], hooked: bool) -> list[Match]:
    """What a rule matches; nothing if it cannot be parsed.

    A rule that matches neither a port nor an address counts only if its chain is `hooked`. Rules with such matches lead
    to the other chains, for example to those of a service's endpoints (kube-proxy).
    """
    ports_asked, addresses_asked = _PORTS.search(line), _DESTINATION.search(line)
    try:
        if together := _TOGETHER.search(line):
            return list(_lookup(together[1].split(" . "), _members(together[2], sets)))
        if not (ports_asked or "dport" not in line) or not (ports_asked or addresses_asked or hooked):
            return []
        protocols = frozenset(PORT_PROTOCOLS)
        for inverted, words in _PROTOCOL.findall(line):
            named = frozenset(PROTOCOLS.get(word, -1) for word in _members(words, sets))
            protocols = protocols - named if inverted else protocols & named
        ports: tuple[Span, ...] = ((1, HIGHEST_PORT),)
        for protocol, inverted, words in _PORTS.findall(line):
            protocols &= frozenset(PORT_PROTOCOLS) if protocol == "th" else {PROTOCOLS[protocol]}
            spans = tuple(map(_span, _members(words, sets)))
            ports = _outside(spans) if inverted else spans
        addresses, unequal = None, False
        for inverted, words in _DESTINATION.findall(line):
            addresses, unequal = tuple(map(_network, _members(words, sets))), bool(inverted)
        return [(protocols, ports, addresses, unequal)]
    except ValueError:
        return []


def _lookup(fields: list[str], members: Iterable[str]) -> Iterator[Match]:
    """What a lookup of several fields matches, element by element."""
    for member in members:
        values = [value.strip() for value in member.split(" . ")]
        protocols, ports = frozenset(PORT_PROTOCOLS), ((1, HIGHEST_PORT),)
        addresses: tuple[Network, ...] | None = None
        for field, value in zip(fields, values, strict=True):
            kind, _, what = field.partition(" ")
            if what == "dport":
                ports = (_span(value),)
                protocols &= frozenset(PORT_PROTOCOLS) if kind == "th" else {PROTOCOLS[kind]}
            elif field in ("meta l4proto", "ip protocol"):
                protocols &= {PROTOCOLS.get(value, -1)}
            elif field == "ip daddr":
                addresses = (_network(value),)
        yield protocols, ports, addresses, False


def _members(words: str, sets: Mapping[str, str]) -> list[str]:
    """The members of a value, an anonymous set or map, or a named one; of a map its keys."""
    if words.startswith("@"):
        found = re.search(r"elements = \{(.*?)\}", sets.get(words[1:].rstrip(","), ""), re.DOTALL)
        words = f"{{{found[1]}}}" if found else "{}"
    if not words.startswith("{"):
        return [words]
    pairs = [member.partition(" : ") for member in words[1:-1].split(",")]
    members = [key.split(" counter ")[0].strip() for key, _, verdict in pairs if verdict.strip() not in _STAYING]
    return [member for member in members if member]


def _span(word: str) -> Span:
    low, _, high = word.partition("-")
    return int(low), int(high or low)


def _outside(spans: Sequence[Span]) -> tuple[Span, ...]:
    """All ports but these."""
    found, first = [], 1
    for low, high in sorted(spans):
        if first < low:
            found.append((first, low - 1))
        first = max(first, high + 1)
    return (*found, (first, HIGHEST_PORT)) if first <= HIGHEST_PORT else tuple(found)


def _network(word: str) -> Network:
    low, dash, high = word.partition("-")
    if not dash:
        return IPv4Network(low, strict=False)
    first, last = IPv4Address(low), IPv4Address(high)
    # The smallest prefix that contains the range: too many conflicts are better than too few.
    length = 32 - (int(first) ^ int(last)).bit_length()
    return IPv4Network((int(first) >> (32 - length) << (32 - length), length))
