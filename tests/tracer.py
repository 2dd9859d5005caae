"""A small nftables, to walk packets through a compiled table: it reads the compiler's values, never its code.

It is strict: a word that it does not know, a jump to no chain, a lookup in no set, a key of the wrong length and two
elements that match the same packet are all errors.  What it knows of a packet is a dictionary from the grammar's
selectors (nft(8)) to values; a selector that is not in it matches nothing, as a header that a packet has not.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from vpcctl.compiler.nft import Element, Set, Table

ICMP_NAMES = {
    "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8, "time-exceeded": 11,
    "parameter-problem": 12, "echo-reply": 0,
}  # fmt: skip
SELECTORS = (
    "iifname", "oifname", "ether saddr", "ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr", "meta l4proto",
    "meta nfproto", "th sport", "th dport", "icmp type", "icmpv6 type", "ct state", "ct direction", "ct mark",
    "ct original proto-dst", "meta mark", "iif", "oif",
)  # fmt: skip
TYPE_OF = {
    "iif": "iface_index", "oif": "iface_index",
    "iifname": "ifname", "oifname": "ifname", "ether saddr": "ether_addr", "ip saddr": "ipv4_addr",
    "ip daddr": "ipv4_addr", "ip6 saddr": "ipv6_addr", "ip6 daddr": "ipv6_addr", "meta l4proto": "inet_proto",
    "th sport": "inet_service", "th dport": "inet_service", "icmp type": "icmp_type", "icmpv6 type": "icmpv6_type",
}  # fmt: skip
# Defaults for fields of a packet that are not given.
ALWAYS = {"meta mark": "0x0"}
_TOKEN = re.compile(r'"[^"]*"|[{},&()|]|[^\s{},&()|]+')

Packet = Mapping[str, object]


@dataclass
class Trace:
    """The verdict of a walk, the mark that it set, and the comments of the deciding elements."""

    verdict: str = ""
    mark: str | None = None
    comments: list[str] = field(default_factory=list)


class Tracer:
    """Walks packets through one table.  `over_limit` says whether rates are exceeded."""

    def __init__(self, table: Table | None = None, *, sets=(), chains=(), over_limit: bool = False):
        named = _by_name((*(table.sets if table else ()), *sets))
        self._sets: dict[str, Set] = {name: found for name, found in named.items() if isinstance(found, Set)}
        self._limits = named.keys() - self._sets.keys()
        self._chains = _by_name((*(table.chains if table else ()), *chains))
        self._over_limit = over_limit
        self._elements = {name: _parsed(found) for name, found in self._sets.items()}
        self._rules = {
            name: [(_statement(rule.text), rule.comment) for rule in chain.rules]
            for name, chain in self._chains.items()
        }

    def walk(self, chain: str, packet: Packet) -> Trace:
        """What `chain` says of `packet`: ``accept``, ``drop``, ``reject``, or ``return`` where it does not end it."""
        trace = Trace()
        trace.verdict = self._chain(chain, packet, trace)
        hook = self._chains[chain].hook
        if trace.verdict == "return" and hook:
            trace.verdict = hook.policy
        return trace

    def found(self, name: str, key: tuple) -> Element | None:
        """The element of the set `name` that holds `key`, a tuple of a packet's values."""
        matching = [element for parts, element in self._elements[name] if _holds(parts, key)]
        assert len(matching) < 2, f"two elements of {name} match {key}: {matching}"
        return matching[0] if matching else None

    def _chain(self, name: str, packet: Packet, trace: Trace) -> str:
        for tokens, comment in self._rules[name]:
            verdict = self._rule(list(tokens), packet, trace)
            if not verdict:
                continue
            word, _, target = verdict.partition(" ")
            if comment:
                trace.comments.append(comment)
            if word == "jump":
                result = self._chain(target, packet, trace)
                if result != "return":
                    return result
            elif word == "goto":
                return self._chain(target, packet, trace)
            else:
                return word
        return "return"

    def _rule(self, tokens: list[str], packet: Packet, trace: Trace) -> str:
        """The verdict of one rule, or an empty string where it does not match."""
        while tokens:
            match tokens:
                case ["accept" | "drop" | "return" as word]:
                    return word
                case ["jump" | "goto" as word, target]:
                    assert target in self._chains, f"{word} to no chain {target}"
                    return f"{word} {target}"
                case ["reject", "with", "icmpx", "admin-prohibited"] | ["reject", "with", "tcp", "reset"]:
                    return "reject"
                case ["counter", *rest] if rest[:1] != ["name"]:
                    tokens = rest
                case ["limit", "rate", rate, *rest]:
                    assert re.fullmatch(r"\d+/(second|minute|hour|day)", rate), rate
                    tokens = rest[3:] if rest[:1] == ["burst"] else rest
                case ["limit", "name", name, *rest]:
                    assert name[1:-1] in self._limits, f"no limit {name}"
                    if self._over_limit:
                        return ""
                    tokens = rest
                case ["log", "prefix", text, *group]:
                    assert len(text) <= 127 + 2, "a log prefix is too long (NF_LOG_PREFIXLEN)"
                    assert group[:1] in ([], ["group"]), group
                    return ""
                case ["ct", "mark", "set", "$generation", *rest]:
                    tokens = rest
                case ["meta", "mark", "set", mark, *rest]:
                    trace.mark = mark
                    tokens = rest
                case ["ct", "zone", "set", zone, *rest]:
                    assert 0 < int(zone) < 65536, zone
                    tokens = rest
                case ["add" | "update", name, "{", *rest]:
                    # A set that packets fill: is the rate, or the number of flows, above the limit of the key?
                    assert self._sets[name[1:]].dynamic, f"{name} is filled by no packet"
                    end = rest.index("}")
                    counts, limits = "count" in rest[:end], "limit" in rest[:end]
                    if (counts and not self._over_limit) or (limits and self._over_limit):
                        return ""
                    tokens = rest[end + 1 :]
                case ["counter", "name", field, "map", "{", *rest]:
                    assert field in SELECTORS, field
                    tokens = rest[rest.index("}") + 1 :]
                case ["numgen", "random", "mod", drawn, "vmap", "{", *rest]:
                    *elements, last = " ".join(rest[: rest.index("}")]).split(" , ")
                    ends = [element.partition(" : ")[0].partition("-") for element in (*elements, last)]
                    bounds = [(int(low), int(high or low)) for low, _, high in ends]
                    assert bounds[0][0] == 0, bounds
                    assert bounds[-1][1] == int(drawn) - 1, bounds
                    assert all(one[1] + 1 == two[0] for one, two in pairwise(bounds)), bounds
                    return last.partition(" : ")[2]
                case ["masquerade", *_] | ["dnat", "ip", "to", *_] | ["snat", "ip", "to", *_] as words:
                    return words[0]
                case ["fib", "daddr", "type", "local", *rest]:
                    if not packet["local"]:
                        return ""
                    tokens = rest
                case ["@nh", ",", "32", ",", "32", "&", "0x3fff", "!=" | "==" as sign, "0x2000", *rest]:
                    # Packets are whole here; what becomes of fragments is tested with real ones.
                    if sign == "==":
                        return ""
                    tokens = rest
                case ["ether", "type", kind, *rest]:
                    if packet.get("ether type") != kind:
                        return ""
                    tokens = rest
                case ["ct", "status", "&", "dnat", "==", "dnat", *rest]:
                    if not packet["dnat"]:
                        return ""
                    tokens = rest
                case ["ct", "status", "&", "dnat", "==", "0", *rest]:
                    if packet["dnat"]:
                        return ""
                    tokens = rest
                case ["tcp", "flags", "&", "rst", "==", "rst", *rest]:
                    if packet.get("meta l4proto") != 6 or not packet.get("rst"):
                        return ""
                    tokens = rest
                case ["tcp", "flags", "&", "(", "fin", "|", "syn", "|", "rst", "|", "ack", ")", "!=", "syn", *rest]:
                    if packet.get("meta l4proto") != 6 or packet["syn"]:
                        return ""
                    tokens = rest
                case _:
                    matched, tokens = self._match(tokens, packet, trace)
                    if matched is not True:
                        return matched or ""
        return ""

    def _match(self, tokens: list[str], packet: Packet, trace: Trace) -> tuple[bool | str, list[str]]:
        """(does the expression at the head match, or the verdict of its map; what follows it)."""
        selectors, tokens = _selectors(tokens)
        key = tuple(packet.get(selector, ALWAYS.get(selector)) for selector in selectors)
        absent = None in key
        mapped = tokens[0] == "vmap"
        negated = tokens[0] == "!="
        tokens = tokens[mapped or negated :]
        if selectors == ["ct state"] and len(tokens) > 1 and tokens[1] == ",":
            return packet["ct state"] in (tokens[0], tokens[2]), tokens[3:]
        if tokens[0].startswith("@"):
            name, rest = tokens[0][1:], tokens[1:]
            wanted = " . ".join(TYPE_OF[selector] for selector in selectors)
            assert self._sets[name].key_type == wanted, f"{name} holds {self._sets[name].key_type}, looked up {wanted}"
            # A map is also a set of its keys.
            assert not mapped or self._sets[name].data_type
            element = None if absent else self.found(name, key)
            if element and element.comment:
                trace.comments.append(element.comment)
        else:
            literal, rest = _literal(tokens, mapped)
            element = None if absent else _first(literal, key)
        if mapped:
            return (element.data if element else False), rest if not element else []
        if absent:
            return False, rest
        return (element is None) == negated, rest


def _statement(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(text))


def _selectors(tokens: list[str]) -> tuple[list[str], list[str]]:
    found = []
    while True:
        word = next((" ".join(tokens[:n]) for n in (1, 2, 3) if " ".join(tokens[:n]) in SELECTORS), "")
        assert word in SELECTORS, f"no selector: {' '.join(tokens)}"
        found.append(word)
        tokens = tokens[len(word.split()) :]
        if tokens[:1] != ["."]:
            return found, tokens
        tokens = tokens[1:]


def _literal(tokens: list[str], mapped: bool) -> tuple[list[tuple[list, Element]], list[str]]:
    """An anonymous set or map, or a single value, as elements; and what follows it."""
    if tokens[0] != "{":
        return [([_part(tokens[0])], Element(tokens[0]))], tokens[1:]
    end = tokens.index("}")
    groups, current = [], []
    for token in [*tokens[1:end], ","]:
        if token == ",":
            groups.append(current)
            current = []
        else:
            current.append(token)
    assert all(groups), "an empty element"
    found = []
    for group in groups:
        assert (":" in group) == mapped, group
        key, data = (group[: group.index(":")], group[group.index(":") + 1 :]) if mapped else (group, [])
        assert len(key) == 1, key
        found.append(([_part(key[0])], Element(key[0], " ".join(data))))
    return found, tokens[end + 1 :]


def _first(elements: list[tuple[list, Element]], key: tuple) -> Element | None:
    return next((element for parts, element in elements if _holds(parts, key)), None)


def _parsed(found: Set) -> list[tuple[list, Element]]:
    width = len(found.key_type.split(" . "))
    parsed = []
    for element in found.elements:
        parts = [_part(text) for text in element.key.split(" . ")]
        assert len(parts) == width, f"{found.name} has keys of {width} fields, not {element.key}"
        assert bool(element.data) == bool(found.data_type), f"{found.name}: {element}"
        for part, kind in zip(parts, found.key_type.split(" . "), strict=True):
            assert _is_of(part, kind), f"{found.name}: {part} is no {kind}"
        ranged = any(
            isinstance(part, tuple) or (isinstance(part, Network) and part.num_addresses > 1) for part in parts
        )
        assert found.interval or not ranged, f"{found.name} holds no intervals, but {element.key}"
        parsed.append((parts, element))
    return parsed


Network = (ipaddress.IPv4Network, ipaddress.IPv6Network)


def _is_of(part: object, kind: str) -> bool:
    """Is a field of a key of the type `kind`, and within it?"""
    if kind in HIGHEST:
        low, high = part if isinstance(part, tuple) else (part, part)
        return isinstance(low, int) and isinstance(high, int) and 0 <= low <= high <= HIGHEST[kind]
    wanted = {"ipv4_addr": ipaddress.IPv4Network, "ipv6_addr": ipaddress.IPv6Network}.get(kind, str)
    return isinstance(part, wanted)


HIGHEST = {"inet_proto": 255, "icmp_type": 255, "icmpv6_type": 255, "inet_service": 65535, "iface_index": 2**31 - 1}


def _part(text: str) -> object:
    """One field of a key: a text, a number, a range of numbers or a prefix without host bits."""
    if text.startswith('"'):
        return text[1:-1]
    if text.isdigit():
        return int(text)
    if text.startswith("0x"):
        return text
    if re.fullmatch(r"\d+-\d+", text):
        low, high = map(int, text.split("-"))
        assert low < high, text
        return (low, high)
    if re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", text):
        return text
    if re.fullmatch(r"[0-9.]+(/\d+)?|[0-9a-f:]*:[0-9a-f:.]*(/\d+)?", text):
        return ipaddress.ip_network(text)
    if text in ICMP_NAMES:
        return ICMP_NAMES[text]
    assert text in ("new", "established", "invalid", "related", "original", "reply", "ipv4", "ipv6", "$generation",
                    "tcp", "icmp"), text  # fmt: skip
    return {"tcp": 6, "icmp": 1}.get(text, text)


def _holds(parts: list, key: tuple) -> bool:
    return all(map(_holds_one, parts, key))


def _holds_one(part: object, value: object) -> bool:
    if isinstance(part, tuple):
        return part[0] <= value <= part[1]
    if isinstance(part, Network):
        return value in part
    return part == value


def _by_name(things) -> dict:
    found = {thing.name: thing for thing in things}
    assert len(found) == len(things), f"a name stands twice: {sorted(thing.name for thing in things)}"
    return found
