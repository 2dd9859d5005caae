"""Tables of the old xtables (``iptables-legacy``), which nftables does not list, put into the words of a listing.

The kernel hands a table over as one block of entries (include/uapi/linux/netfilter_ipv4/ip_tables.h); a chain of the
user's begins behind an ERROR entry with its name.  Matches that this module does not know become statements that
`hooks` does not know, so nothing that depends on them is taken for granted.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from vpcctl.doctor.rule_matches import NONE_OF
from vpcctl.values import dataclass

SUFFIX = "-legacy"
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
    heads = {one.next: one.data[:30].split(b"\0")[0].decode() for one in entries if one.target == "ERROR"}
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
            yield {"xt": {"type": "match", "name": name}}
        block = block[max(size, EXTENSION.size) :]


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
