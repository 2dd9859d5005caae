"""The rules of a listing: their statements, and their words.

Rules of iptables-nft carry matches and targets that libnftables' JSON only names (``xt``).  Where libxtables has
translated them in the text of the rule and the translation is beyond doubt, it is taken from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vpcctl.kernel.legacy_tables import NONE_OF

# Targets of iptables-extensions(8) after which a packet goes on to the next rule.
XT_GOES_ON = frozenset(
    "AUDIT CHECKSUM CLASSIFY CONNMARK CONNSECMARK DSCP ECN HL HMARK IDLETIMER LED LOG MARK NFLOG RATEEST"
    " SECMARK SET TCPMSS TCPOPTSTRIP TEE TOS TRACE TTL ULOG".split()
)
MARKING_TARGETS = frozenset({"MARK", "CONNMARK", "HMARK"})

TABLE_HEAD = re.compile(r"table (\S+) (\S+) \{")


def rule_texts(listing: str) -> dict[tuple[str, str, int], str]:
    """The rules of ``nft -a list ruleset`` by family, table and handle, counters taken out."""
    found = {}
    family = table = ""
    for line in listing.splitlines():
        body, _, handle = line.strip().rpartition(" # handle ")
        if head := TABLE_HEAD.fullmatch(body):
            family, table = head.groups()
        elif body and not body.endswith("{") and handle.isdigit():
            found[family, table, int(handle)] = re.sub(r"\bcounter(?: packets \d+ bytes \d+)? ", "", body)
    return found


def dormant_tables(listing: str) -> set[tuple[str, str]]:
    """The tables that are switched off, as (family, name); JSON does not show them (nft 1.0.6 garbles the flag)."""
    found = set()
    table = ("", "")
    for line in listing.splitlines():
        if head := TABLE_HEAD.fullmatch(line.strip().partition(" # handle ")[0]):
            table = (head[1], head[2])
        elif re.fullmatch(r"flags (\w+,)*dormant(,\w+)*", line.strip()):
            found.add(table)
    return found


def in_words(rule: Mapping[str, Any]) -> str:
    """A text to show if nft's own text of a rule is not available."""
    words = []
    for kind, body in _statements(rule):
        if kind == "match" and isinstance(body, Mapping):
            words.append(" ".join(_short(body.get(part, "")) for part in ("left", "op", "right")))
        elif kind != "counter":
            words.append(f"{kind} {_short(body)}" if body else kind)
    return " ".join(words)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(_short(one) for one in value.values())
    return ",".join(map(_short, value)) if isinstance(value, list) else str(value)


def _statements(rule: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for statement in rule.get("expr", ()):
        if isinstance(statement, Mapping):
            yield from statement.items()
        else:
            yield str(statement), None


def sets_marks(rule: Mapping[str, Any]) -> bool:
    """May a rule set the mark of a packet or of a connection?"""
    return any(_sets_mark(kind, body) for kind, body in _statements(rule))


def _sets_mark(kind: str, body: Any) -> bool:
    if kind == "mangle":
        key = _mapping(_mapping(body).get("key"))
        return any(_mapping(key.get(one)).get("key") == "mark" for one in ("meta", "ct"))
    return kind == "xt" and (not isinstance(body, Mapping) or str(body.get("name")) in MARKING_TARGETS)


def _mapping(value: Any) -> Mapping[str, Any]:
    """`value`, or an empty one in the place of what a newer nft may list there."""
    return value if isinstance(value, Mapping) else {}


def translated(rule: Mapping[str, Any], text: str) -> Iterator[tuple[str, Any]]:
    """The statements of a rule, those of iptables replaced by what their translation in `text` says."""
    for kind, body in _statements(rule):
        if kind != "xt":
            yield kind, body
        elif isinstance(body, Mapping) and body.get("type") == "match":
            yield from _xt_match(str(body.get("name", "")), text)
        elif isinstance(body, Mapping) and body.get("type") == "target":
            yield from _xt_target(str(body.get("name", "")))
        else:
            yield "xt", None


def _xt_match(name: str, text: str) -> Iterator[tuple[str, Any]]:
    if name == "comment":
        return
    if name in ("conntrack", "state"):
        # libxtables loses what a state has in common with a status (`--ctstate DNAT,NEW` becomes `ct status dnat`).
        phrases = re.findall(r"\bct (?:original |reply )?(\w+) (!= )?([\w,]+)", text)
        if len(phrases) == 1 and phrases[0][0] == "state":
            _, unequal, states = phrases[0]
            right = states.split(",")
            yield "match", {"op": NONE_OF if unequal else "in", "left": {"ct": {"key": "state"}}, "right": right}
            return
    if name == "addrtype":
        phrases = re.findall(r"\bfib (\w+(?: \. \w+)*) type (!= )?(\w+)", text)
        if len(phrases) == 1 and " . " not in phrases[0][0]:
            flags, unequal, kind = phrases[0]
            left = {"fib": {"result": "type", "flags": [flags]}}
            yield "match", {"op": "!=" if unequal else "==", "left": left, "right": kind}
            return
    yield "xt match", None


def _xt_target(name: str) -> Iterator[tuple[str, Any]]:
    if name == "REJECT":
        yield "reject", None
    elif name not in XT_GOES_ON:
        yield "xt", None
