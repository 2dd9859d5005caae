"""Tables of the old xtables (``iptables-legacy``), which nftables does not list, put into the words of a listing.

The kernel hands a table over as one block of entries (include/uapi/linux/netfilter_ipv4/ip_tables.h); a chain of the
user's begins behind an ERROR entry with its name.  Matches that this module does not know become statements that no
reader of a listing knows, so nothing that depends on them is taken for granted.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from vpcctl.model.policy import PROTOCOL_NAMES
from vpcctl.values import dataclass

SUFFIX = "-legacy"
# What iptables means by an inverted list of states; nft's `!=` compares the whole instead.
NONE_OF = "none of"
# By the number of the hook (include/uapi/linux/netfilter.h).
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}

GET_INFO, GET_ENTRIES = 64, 65
# struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size.
INFO = struct.Struct("=32s13I")
# struct ipt_get_entries up to the entries.
ENTRIES_HEAD = struct.Struct("=32sI4x")
# struct ipt_entry: src, dst and their masks, iniface, outiface and their masks, proto, flags, invflags; nfcache,
# target_offset, next_offset, comefrom, counters.
ENTRY = struct.Struct("=4s4s4s4s16s16s16s16sHBBIHHIQQ")
# struct xt_entry_match and xt_entry_target up to their data: size, name, revision.
EXTENSION = struct.Struct("=H29sB")

INVERTED_IN, INVERTED_OUT, INVERTED_SOURCE, INVERTED_DESTINATION, INVERTED_PROTOCOL = 0x01, 0x02, 0x08, 0x10, 0x40
FRAGMENTS_ONLY, GOTO = 0x01, 0x02
VERDICTS = {-1: "drop", -2: "accept", -5: "return"}
# struct xt_conntrack_mtinfo2 and 3: match_flags, invert_flags, state_mask, which is one byte in mtinfo1.
CONNTRACK, CONNTRACK_AT = struct.Struct("=HHH"), 146
# XT_CONNTRACK_STATE, and XT_CONNTRACK_STATE_ALIAS, which only makes iptables print `-m state`.
STATE_ONLY, WRITTEN_AS_STATE = 0x1, 0x2000
STATES = {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"}
# Where the destination ports of a match are, where its inverting bits are, and which of them inverts these ports
# (include/uapi/linux/netfilter/xt_tcpudp.h, xt_sctp.h).
PORTS = {"tcp": (4, "=B", 11, 0x02), "udp": (4, "=B", 8, 0x02), "sctp": (0, "=I", 288, 0x02)}
SCTP_ASKED, SCTP_ASKS_DESTINATION = 284, 0x02
# struct xt_multiport_v1: flags, count, ports, pflags, invert; the kind of ports that is meant (xt_multiport.h).
MULTIPORT, MULTIPORT_SOURCE = struct.Struct("=BB15H15BB"), 0
ALL_PORTS = (0, 65535)
# Statements in the words of `nft list`, for the matches that have other words as objects.
WORDS = {"saddr": "ip saddr", "daddr": "ip daddr", "l4proto": "meta l4proto"}

Statement = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LegacyTable:
    """One table as the kernel hands it over: where its base chains begin and where their policies are, and entries."""

    name: str
    starts: dict[str, int]
    policies: dict[str, int]
    entries: bytes


def table_names(proc: Path = Path("/proc")) -> list[str]:
    """The legacy tables that this network has; asking for one that it has not would make it."""
    try:
        return (proc / "net/ip_tables_names").read_text().split()
    except OSError:
        return []


def objects() -> list[dict[str, Any]]:
    """All legacy tables of this network as objects of a listing, each called NAME-legacy.  Raises OSError."""
    return [one for name in table_names() for one in listing(_fetched(name))]


def text() -> str:
    """All legacy tables of this network as ``nft list ruleset`` would print them.  Raises OSError.

    Only what says where a packet goes is printed: addresses, protocols, ports, jumps and targets.
    """
    return "".join(printed(objects()))


def printed(found: list[dict[str, Any]]) -> Iterator[str]:
    """Objects of a listing as text, part by part."""
    for table, group in itertools.groupby(found, lambda one: next(iter(one.values()))["table"]):
        yield f"table ip {table} {{\n"
        end = ""
        for one in group:
            if chain := one.get("chain"):
                yield f"{end}\tchain {chain['name']} {{\n"
                end = "\t}\n"
                if hook := chain.get("hook"):
                    yield f"\t\ttype {chain['type']} hook {hook} priority {chain['prio']}; policy {chain['policy']};\n"
            else:
                yield f"\t\t{' '.join(filter(None, map(_worded, one['rule']['expr'])))}\n"
        yield f"{end}}}\n"


def _worded(statement: Statement) -> str:
    """A statement in the words of ``nft list``; empty for those that do not say where a packet goes."""
    if extension := statement.get("xt"):
        if extension["type"] == "target":
            return f'xt target "{extension["name"]}"'
        return str(extension.get("words", ""))
    if match := statement.get("match"):
        left = match["left"]
        field = left.get("payload", {}).get("field") or left.get("meta", {}).get("key")
        if field not in WORDS or match["right"] is None:
            return ""
        prefix = match["right"]["prefix"] if field != "l4proto" else None
        value = f"{prefix['addr']}/{prefix['len']}" if prefix else PROTOCOL_NAMES.get(match["right"], match["right"])
        return f"{WORDS[field]} {'!= ' if match['op'] == '!=' else ''}{value}"
    for word in ("jump", "goto"):
        if word in statement:
            return f"{word} {statement[word]['target']}"
    return next(iter(statement))


def _fetched(name: str) -> LegacyTable:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as channel:
        _, valid, *offsets, _, size = INFO.unpack(_asked(channel, GET_INFO, name.encode().ljust(INFO.size, b"\0")))
        request = ENTRIES_HEAD.pack(name.encode(), size) + bytes(size)
        entries = _asked(channel, GET_ENTRIES, request)[ENTRIES_HEAD.size :]
    hooks = {hook: number for number, hook in enumerate(HOOKS) if valid >> number & 1}
    starts = {hook: offsets[number] for hook, number in hooks.items()}
    return LegacyTable(name, starts, {hook: offsets[len(HOOKS) + number] for hook, number in hooks.items()}, entries)


def _asked(channel: socket.socket, option: int, request: bytes) -> bytes:
    """getsockopt(2) with a request in the buffer, which Python's getsockopt does not support."""
    buffer = ctypes.create_string_buffer(request, len(request))
    length = ctypes.c_uint32(len(request))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(channel.fileno(), socket.IPPROTO_IP, option, buffer, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw


# --- From entries to objects ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    matches: tuple[Statement, ...]
    target: str
    data: bytes
    goes: bool
    next: int


def listing(table: LegacyTable) -> Iterator[dict[str, Any]]:
    """The table's chains and rules as objects of a listing."""
    entries = list(_entries(table.entries))
    # The last one ends the table.
    begun = [one for one in entries if one.target == "ERROR" and one.next < len(table.entries)]
    heads = {one.next: one.data[:30].split(b"\0")[0].decode() for one in begun}
    name = table.name + SUFFIX
    at_policy = {one.offset: one for one in entries}
    for hook, start in table.starts.items():
        policy = VERDICTS.get(_number(at_policy[table.policies[hook]].data), "drop")
        chain = {"family": "ip", "table": name, "name": hook.upper(), "type": "filter", "hook": hook}
        yield {"chain": chain | {"prio": PRIORITIES.get(table.name, 0), "policy": policy}}
        rules = [one for one in entries if start <= one.offset < table.policies[hook]]
        yield from _rules(name, hook.upper(), rules, heads)
    for start, chain_name in heads.items():
        yield {"chain": {"family": "ip", "table": name, "name": chain_name}}
        until = min((one.offset for one in entries if one.target == "ERROR" and one.offset >= start), default=start)
        yield from _rules(name, chain_name, [one for one in entries if start <= one.offset < until], heads)


def _rules(table: str, chain: str, entries: list[_Entry], heads: dict[int, str]) -> Iterator[dict[str, Any]]:
    for number, entry in enumerate(entries, 1):
        statements = [*entry.matches, *_target(entry, heads)]
        yield {"rule": {"family": "ip", "table": table, "chain": chain, "handle": number, "expr": statements}}


def _entries(block: bytes) -> Iterator[_Entry]:
    offset = 0
    while offset + ENTRY.size <= len(block):
        fields = ENTRY.unpack_from(block, offset)
        target_at, length = offset + fields[12], fields[13]
        _, target, _ = EXTENSION.unpack_from(block, target_at)
        yield _Entry(
            offset,
            (*_addressed(*fields[:11]), *_matched(block[offset + ENTRY.size : target_at])),
            target.rstrip(b"\0").split(b"\0")[0].decode(),
            block[target_at + EXTENSION.size : offset + length],
            bool(fields[9] & GOTO),
            offset + length,
        )
        offset += length


def _target(entry: _Entry, heads: dict[int, str]) -> list[Statement]:
    if entry.target:
        return [{"xt": {"type": "target", "name": entry.target}}]
    verdict = _number(entry.data)
    if verdict in VERDICTS:
        return [{VERDICTS[verdict]: None}]
    if verdict == entry.next:  # a rule without a target goes on to the next one
        return []
    return [{"goto" if entry.goes else "jump": {"target": heads.get(verdict, f"chain at {verdict}")}}]


def _number(data: bytes) -> int:
    number: int = struct.unpack_from("=i", data)[0]
    return number


def _addressed(
    source: bytes, destination: bytes, source_mask: bytes, destination_mask: bytes, come: bytes, go: bytes,
    come_mask: bytes, go_mask: bytes, protocol: int, flags: int, inverted: int,
) -> Iterator[Statement]:  # fmt: skip
    """The matches in the head of an entry."""
    for key, name, mask, bit in (("iifname", come, come_mask, INVERTED_IN), ("oifname", go, go_mask, INVERTED_OUT)):
        if any(mask):
            yield _match({"meta": {"key": key}}, _interface(name, mask), inverted & bit)
    for key, address, mask, bit in (
        ("saddr", source, source_mask, INVERTED_SOURCE), ("daddr", destination, destination_mask, INVERTED_DESTINATION)
    ):  # fmt: skip
        if any(mask):
            yield _match({"payload": {"protocol": "ip", "field": key}}, _prefix(address, mask), inverted & bit)
    if protocol:
        yield _match({"meta": {"key": "l4proto"}}, protocol, inverted & INVERTED_PROTOCOL)
    if flags & FRAGMENTS_ONLY:
        yield {"xt": {"type": "match", "name": "fragments"}}


def _match(left: Statement, right: Any, inverted: int) -> Statement:
    return {"match": {"op": "!=" if inverted else "==", "left": left, "right": right}}


def _interface(name: bytes, mask: bytes) -> str:
    """The mask covers the final zero of a whole name, and not that of a name with a `+`."""
    covered = name[: mask.count(0xFF)]
    return covered.rstrip(b"\0").decode() + ("" if covered.endswith(b"\0") else "*")


def _prefix(address: bytes, mask: bytes) -> Statement | None:
    try:
        network = IPv4Network(f"{IPv4Address(address)}/{IPv4Address(mask)}", strict=False)
    except ValueError:  # a mask with holes: the prefix is unknown
        return None
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def _matched(block: bytes) -> Iterator[Statement]:
    """The matches by extensions."""
    while len(block) >= EXTENSION.size:
        size, padded, revision = EXTENSION.unpack_from(block)
        name, data = padded.split(b"\0")[0].decode(), block[EXTENSION.size : size]
        states = _states(name, revision, data)
        if states is not None:
            names, inverted = states
            left = {"ct": {"key": "state"}}
            yield {"match": {"op": NONE_OF if inverted else "in", "left": left, "right": names}}
        elif name != "comment":
            words = _port_words(name, revision, data)
            yield {"xt": {"type": "match", "name": name} | ({"words": words} if words else {})}
        block = block[max(size, EXTENSION.size) :]


def _port_words(name: str, revision: int, data: bytes) -> str:
    """The destination ports that a match asks for, in the words of ``nft list``; empty if it asks for none."""
    spans, inverted, protocol = [ALL_PORTS], False, name
    if name in PORTS:
        place, shape, bits, inverting = PORTS[name]
        if name == "sctp" and not struct.unpack_from("=I", data, SCTP_ASKED)[0] & SCTP_ASKS_DESTINATION:
            return ""
        spans = [struct.unpack_from("=HH", data, place)]
        inverted = bool(struct.unpack_from(shape, data, bits)[0] & inverting)
    elif name == "multiport" and revision == 1:
        kind, count, *rest = MULTIPORT.unpack_from(data)
        if kind == MULTIPORT_SOURCE:
            return ""
        ports, ranged, inverted, protocol = rest[:15][:count], rest[15:30], bool(rest[30]), "th"
        # A port that begins a range is followed by the port that ends it.
        firsts = [number for number in range(count) if number == 0 or not ranged[number - 1]]
        spans = [(ports[one], ports[one + 1] if ranged[one] else ports[one]) for one in firsts]
    if spans == [ALL_PORTS]:
        return ""
    words = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
    return f"{protocol} dport {'!= ' if inverted else ''}{{ {words} }}"


def _states(name: str, revision: int, data: bytes) -> tuple[list[str], bool] | None:
    """The states that a match asks for, and whether it wants none of them; None if it asks for anything else."""
    inverted = 0
    if name == "conntrack" and revision in (1, 2, 3):
        wanted, inverted, mask = CONNTRACK.unpack_from(data, CONNTRACK_AT)
        mask = data[CONNTRACK_AT + 4] if revision == 1 else mask
        if wanted & ~WRITTEN_AS_STATE != STATE_ONLY:
            return None
    elif name == "state":
        mask = _number(data)
    else:
        return None
    names = [state for bit, state in STATES.items() if mask & bit]
    return (names, bool(inverted)) if mask == sum(bit for bit in STATES if mask & bit) else None
