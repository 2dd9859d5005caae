"""nftables through libnftables: load a batch or a change, read back what is there and compare it.

A context opens its sockets when it is constructed, and stays bound to the namespace of that moment.  Which tables there
are it asks itself (include/uapi/linux/netfilter/nf_tables.h): libnftables would read everything that is in them.

A ruleset whose predecessor is known to be loaded is loaded as the change between the two (compiler/delta.py, ADR 25).
Every other ruleset is loaded whole.

Theory of operation of a whole load.  To delete a table in the transaction that adds its successor loses packets, for
two reasons in net/netfilter/nf_tables_api.c: a packet that another CPU is judging by the old chains at that instant
finds their verdict maps emptied (`nft_map_deactivate`), and the new interval sets show their elements only some time
after the new rules are in force (`nft_set_commit_update`).  So the table in force hands over to a spare, and the spare
to the new table of the right name.  Each is loaded asleep (dormant, that is without hooks), and then one transaction
wakes it and puts the other one to sleep, which leaves the rules and maps of both as they are.  The instant of the
first of these is when the new ruleset begins to hold.

At every instant one table or both judge every packet, and both let pass what both rulesets allow.  A crash leaves a
spare, which `observe` reports and the next load or unload removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from vpcctl.compiler import table_comment
from vpcctl.compiler.delta import SHADOW, STAMP, Base, Count, Delta, delta
from vpcctl.compiler.nft import removal
from vpcctl.errors import ConflictError, KernelError
from vpcctl.kernel import netlink
from vpcctl.kernel.namespaces import CLONE_NEWNET, entered, unshare
from vpcctl.names import TABLE, TAGGED
from vpcctl.resources.kinds import Ruleset, where
from vpcctl.resources.protocol import ABSENT, RIGHT, Condition, Status
from vpcctl.values import dataclass

LIBRARY = "libnftables.so.1"
SPARE = f"{TABLE}-next"
_TABLE_START = re.compile(rf"^table (\w+) {TABLE} \{{$", re.MULTILINE)
# How the first line of an object in a listed table begins, and how the comment of one of our tables begins.
_OBJECTS = ("\tset ", "\tmap ", "\tchain ", "\tlimit ", "\tcounter ")
_TABLE_COMMENT = f'\tcomment "{TAGGED}'
# What nft prints in braces on one line, or as the elements of a set: a list whose order means nothing.
_LIST = re.compile(r"\{ ([^{}]*) \}")
# The elements of a set that packets fill: they are not part of a ruleset's text.
_FILLED = re.compile(r"(\n\t\tflags dynamic[^\n]*\n(?:\t\ttimeout [^\n]*\n)?)\t\telements = \{[^{}]*\}\n")
_MEMBER = re.compile(r'(?:[^,"]|"[^"]*")+')
DETAIL_LENGTH = 120
# Subsystem 10 is that of nf_tables.
NFT_MSG_GETTABLE = 10 << 8 | 1
NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, NFTA_TABLE_USERDATA, NFT_TABLE_F_DORMANT = 1, 2, 6, 1
NFT_MSG_GETCHAIN = 10 << 8 | 4
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_USERDATA = 1, 3, 12
NFT_MSG_GETRULE = 10 << 8 | 7
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_EXPRESSIONS = 1, 2, 3, 4
NFTA_EXPR_NAME, NFTA_EXPR_DATA, NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS = 1, 2, 1, 2
# The first kind of a table's or chain's user data is its comment (libnftnl: NFTNL_UDATA_TABLE_COMMENT).
COMMENT = 0
# NFPROTO_..., include/uapi/linux/netfilter.h
FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
# struct nfgenmsg
_FAMILY = struct.Struct("=BBH")
# The text of a gate that is loaded, by its name and fingerprint.
Texts = Callable[[str, str], str | None]


class Nft(Protocol):
    """What we use of a libnftables context, whose binding has no types."""

    def cmd(self, cmdline: str, /) -> tuple[int, str, str]:
        """Run a batch: a status, which is 0 for success, the output and the words of an error."""

    def set_handle_output(self, on: bool, /) -> object: ...

    def set_json_output(self, on: bool, /) -> object: ...

    def set_stateless_output(self, on: bool, /) -> object: ...

    def tables(self) -> dict[tuple[str, str], Loaded]:
        """The tables that are there, by family and name."""

    def counts(self, chain: str) -> list[Count | None]:
        """The counter of each rule of a chain of our inet table, in their order; None for a rule without one."""

    def handles(self, family: str, chain: str) -> list[int]:
        """The handle of each rule of a chain of ours, in their order."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A table that is loaded: its comment, empty for none, and whether it is asleep and judges nothing.

    The comment names the present ruleset, even if the table was loaded as another one and changed since: the stamp has
    it.
    """

    comment: str
    asleep: bool
    stamped: bool = False


class Context:
    """See Nft; the methods of libnftables' binding, and the list of tables.

    `channel` asks nf_tables itself, and `transactions` counts the batches that changed something.
    """

    def __init__(self) -> None:
        from nftables import Nftables

        nft = Nftables()
        self._cmd, self.set_handle_output = nft.cmd, nft.set_handle_output
        self.set_json_output, self.set_stateless_output = nft.set_json_output, nft.set_stateless_output
        self.transactions = 0
        self.channel = netlink.Channel(netlink.NETLINK_NETFILTER)

    def __del__(self) -> None:
        # As the binding does with its own.
        with contextlib.suppress(AttributeError):
            self.channel.close()

    def cmd(self, cmdline: str, /) -> tuple[int, str, str]:
        """See Nft."""
        answer: tuple[int, str, str] = self._cmd(cmdline)
        if answer[0] == 0 and not cmdline.startswith("list "):
            self.transactions += 1
        return answer

    def tables(self) -> dict[tuple[str, str], Loaded]:
        """The tables that are there, by family and name."""
        found = dict(map(_read_table, self.channel.dump(NFT_MSG_GETTABLE, _FAMILY.pack(0, 0, 0))))
        stamp = self._stamp() if ("inet", TABLE) in found else None
        if stamp is not None:
            # One transaction changes the tables of all families.  A foreign stamp says nothing about our tables.
            for key, one in found.items():
                if key[1] == TABLE:
                    ours = stamp.partition(" ")[0] == one.comment.partition(" ")[0]
                    found[key] = Loaded(stamp if ours else one.comment, one.asleep, stamped=True)
        return found

    def counts(self, chain: str) -> list[Count | None]:
        """The counter of each rule of a chain of our inet table, in their order; None for a rule without one."""
        return list(map(_read_count, self._rules("inet", chain)))

    def handles(self, family: str, chain: str) -> list[int]:
        """The handle of each rule of a chain of ours, in their order."""
        rules = (netlink.fields(body[_FAMILY.size :]) for body in self._rules(family, chain))
        return [int.from_bytes(rule[NFTA_RULE_HANDLE], "big") for rule in rules]

    def _rules(self, family: str, chain: str) -> Iterable[bytes]:
        names = (NFTA_RULE_TABLE, TABLE), (NFTA_RULE_CHAIN, chain)
        wanted = b"".join(netlink.attribute(kind, name.encode() + b"\0") for kind, name in names)
        return self.channel.dump(NFT_MSG_GETRULE, _FAMILY.pack(FAMILIES[family], 0, 0) + wanted)

    def _stamp(self) -> str | None:
        """The comment that the table would have if it had been loaded whole; None if it was."""
        names = (NFTA_CHAIN_TABLE, TABLE), (NFTA_CHAIN_NAME, STAMP)
        wanted = b"".join(netlink.attribute(kind, name.encode() + b"\0") for kind, name in names)
        try:
            body = self.channel.single(NFT_MSG_GETCHAIN, _FAMILY.pack(FAMILIES["inet"], 0, 0) + wanted)
        except netlink.NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return _comment(dict(netlink.attributes(body[_FAMILY.size :])).get(NFTA_CHAIN_USERDATA, b""))


def _read_table(body: bytes) -> tuple[tuple[str, str], Loaded]:
    number = body[0]
    family = next((name for name, one in FAMILIES.items() if one == number), str(number))
    found = netlink.fields(body[_FAMILY.size :])
    (flags,) = struct.unpack("!I", found.get(NFTA_TABLE_FLAGS, bytes(4)))
    name = found[NFTA_TABLE_NAME].rstrip(b"\0").decode(errors="replace")
    comment = _comment(found.get(NFTA_TABLE_USERDATA, b""))
    return (family, name), Loaded(comment, bool(flags & NFT_TABLE_F_DORMANT))


def _read_count(body: bytes) -> Count | None:
    rule = dict(netlink.attributes(body[_FAMILY.size :]))
    for _, expression in netlink.attributes(rule.get(NFTA_RULE_EXPRESSIONS, b"")):
        found = dict(netlink.attributes(expression))
        if found.get(NFTA_EXPR_NAME) == b"counter\0":
            values = dict(netlink.attributes(found[NFTA_EXPR_DATA]))
            numbers = (NFTA_COUNTER_PACKETS, NFTA_COUNTER_BYTES)
            packets, size = (int.from_bytes(values[kind], "big") for kind in numbers)
            return packets, size
    return None


def _comment(data: bytes) -> str:
    """The comment in a table's user data: parts, each with its kind and its length before it."""
    while len(data) >= 2:
        kind, length = data[0], data[1]
        if kind == COMMENT:
            return data[2 : 2 + length].rstrip(b"\0").decode(errors="replace")
        data = data[2 + length :]
    return ""


def context(namespace: str | None) -> Context:
    """A libnftables context that is bound to `namespace`; KernelError without libnftables.so.1."""
    try:
        ctypes.CDLL(LIBRARY)  # before the binding, whose destructor complains where it is missing
        with entered(namespace):
            return Context()
    except OSError as error:
        raise KernelError(
            f"{LIBRARY} is missing, without which no firewall can be loaded; install it: apt-get install libnftables1",
            str(error),
        ) from error


def scratch() -> Nft:
    """A context that is bound to a new namespace without a name; both go when the context is deleted."""
    made: list[Nft | Exception] = []

    def unshare_and_open() -> None:
        try:
            unshare(CLONE_NEWNET)
            made.append(context(None))
        except (KernelError, OSError) as error:
            made.append(error)

    thread = threading.Thread(target=unshare_and_open)
    thread.start()
    thread.join()
    if isinstance(made[0], Exception):
        raise KernelError("cannot make a namespace to compare rulesets in", str(made[0])) from made[0]
    return made[0]


def _run(nft: Nft, namespace: str | None, batch: str) -> str:
    status, output, words = nft.cmd(batch)
    if status != 0:
        raise KernelError(f"nftables refused the batch for {where(namespace)}", words.strip())
    return output


def comments(nft: Nft, families: tuple[str, ...], table: str = TABLE) -> dict[str, str]:
    """The comment of our table in each of `families` that has one; a table without a comment has an empty one."""
    found = nft.tables()
    return {family: found[family, table].comment for family in families if (family, table) in found}


def loaded(nft: Nft) -> set[tuple[str, int]]:
    """Fingerprint and generation of each ruleset of ours that is loaded in the context's namespace."""
    found, tables = set(), nft.tables()
    for table in (TABLE, SPARE):
        comment = tables["inet", table].comment if ("inet", table) in tables else ""
        _, fingerprint, generation = [*comment.split(" "), "", ""][:3]
        if comment.startswith(TAGGED) and generation.isdigit():
            found.add((fingerprint, int(generation)))
    return found


# -- loading -------------------------------------------------------------------------------------------------------


def load(nft: Nft, item: Ruleset, settle: Callable[[], None], text: Texts) -> None:
    """Make the ruleset the one in force; ConflictError if a table of its name is foreign.

    `settle` waits until the packets that are on their way have passed; `text` returns the text of a loaded gate by name
    and fingerprint.
    """
    change = _change(nft, item, text)
    if change is not None:
        # If the kernel refuses, the table is not the expected one; a whole load replaces any table.
        with contextlib.suppress(KernelError):
            _carry_out(nft, item.namespace, change, settle)
            return
    _load_whole(nft, item)


def _change(nft: Nft, item: Ruleset, text: Texts) -> Delta | None:
    """The change from the loaded ruleset to this one; None if this one must be loaded whole."""
    former = item.former
    if former is None or former.content is None or item.content is None:
        return None
    found = nft.tables()
    present = {family: found[family, TABLE].comment for family in item.families if (family, TABLE) in found}
    if stands(former, present) != RIGHT or any(name == SPARE for _, name in found):
        return None
    prints = {name: part.fingerprint for name, part in former.content.gates.items()}
    return delta(
        former.content,
        former.generation,
        item.content,
        item.generation,
        lambda gate: text(gate, prints[gate]),
        found["inet", TABLE].stamped,
    )


def _carry_out(nft: Nft, namespace: str | None, change: Delta, settle: Callable[[], None]) -> None:
    """Load a change, transaction by transaction."""
    for batch in (change.prepare, change.switch):
        if batch:
            _run(nft, namespace, batch)
    if change.rebuild:
        settle()
        change = change.counting(_counts(nft, change))
    for batch in change.rebuild:
        _run(nft, namespace, batch)
    if change.heads:
        _run(nft, namespace, change.back(_heads(nft, namespace, change)))
    if change.clear:
        settle()
        _run(nft, namespace, change.clear)


def _heads(nft: Nft, namespace: str | None, change: Delta) -> dict[Base, int]:
    """The handles of the rules that go to the shadows; KernelError if a base chain was changed by hand."""
    found: dict[Base, int] = {}
    for (family, chain), rules in change.heads.items():
        try:
            handles = nft.handles(family, chain)
        except netlink.NetlinkError as error:
            raise KernelError(f"cannot read chain {chain} of {where(namespace)}", str(error)) from error
        if len(handles) != rules:
            words = f"has {len(handles)} rules, expected {rules}"
            raise KernelError(f"chain {chain} of {where(namespace)} {words}")
        found[family, chain] = handles[0]
    return found


def _counts(nft: Nft, change: Delta) -> dict[str, list[Count | None]]:
    """The counts of the rules that will be made again; nothing for a chain that was changed by hand."""
    found: dict[str, list[Count | None]] = {}
    with contextlib.suppress(netlink.NetlinkError):
        found = {chain: nft.counts(chain) for chain in change.counted}
    return {chain: counts for chain, counts in found.items() if len(counts) == len(change.counted[chain])}


def _load_whole(nft: Nft, item: Ruleset) -> None:
    blocks = _blocks(item.compiled.text(item.generation))
    for table in foreign(item, nft):
        raise ConflictError(f"{where(item.namespace)} has a table `{table}` that is not ours; rename or delete it")
    present, spare = comments(nft, item.families), comments(nft, item.families, SPARE)
    if spare and _asleep(nft, spare, SPARE):
        _run(nft, item.namespace, _each("delete table {family} {table}", SPARE, spare))
        spare = {}
    if not present and not spare:
        _run(nft, item.namespace, "".join(blocks.values()))
        return
    if not spare:
        _hand_over(nft, item.namespace, (TABLE, present), (SPARE, blocks))
        spare = dict.fromkeys(blocks, "")
    # From here on it is the spare that judges.
    _run(nft, item.namespace, _each("delete table {family} {table}", TABLE, present))
    _hand_over(nft, item.namespace, (SPARE, spare), (TABLE, blocks))
    _run(nft, item.namespace, _each("delete table {family} {table}", SPARE, spare))


def _asleep(nft: Nft, families: Iterable[str], table: str) -> bool:
    """Does the table judge nothing, in any of the families?"""
    found = nft.tables()
    return any(found[family, table].asleep for family in families if (family, table) in found)


def _hand_over(
    nft: Nft, namespace: str | None, old: tuple[str, Iterable[str]], new: tuple[str, dict[str, str]]
) -> None:
    """Have the table `new` judge in place of `old`: each a name with its families, the new one's with their texts."""
    table, blocks = new
    asleep = [_TABLE_START.sub(rf"table \1 {table} {{\n\tflags dormant", block) for block in blocks.values()]
    _run(nft, namespace, "".join(asleep))
    awake = _each("add table {family} {table}", table, blocks)
    _run(nft, namespace, awake + _each("add table {family} {table} {{ flags dormant; }}", *old))


def unload(nft: Nft, item: Ruleset) -> None:
    """Remove our tables; foreign ones of that name stay."""
    for table in (TABLE, SPARE):
        found = comments(nft, item.families, table)
        ours = {family for family, comment in found.items() if comment.startswith(item.tag)}
        if ours:
            _run(nft, item.namespace, removal(tuple((family, table) for family in sorted(ours))))


def _blocks(text: str) -> dict[str, str]:
    """The tables of a ruleset's text by family, the generation written out.

    A context keeps what a text defines, and refuses to have it defined again.
    """
    definition, _, rest = text.partition("\n")
    rest = rest.replace("$generation", definition.rpartition(" ")[2])
    starts = list(_TABLE_START.finditer(rest))
    ends = [start.start() for start in starts[1:]] + [len(rest)]
    return {start[1]: rest[start.start() : end] for start, end in zip(starts, ends, strict=True)}


def _each(command: str, table: str, families: Iterable[str]) -> str:
    """The command for the table in each of the families."""
    return "".join(command.format(family=family, table=table) + "\n" for family in families)


# -- reading back --------------------------------------------------------------------------------------------------


def stands(item: Ruleset, present: dict[str, str]) -> Condition:
    """Compare the tables' comments alone with the ruleset that should be loaded."""
    wanted = table_comment(item.tag, item.fingerprint, item.generation)
    # The closed ruleset and the host's have no ARP part: what the text does not contain is not expected.
    expected = _expected(item)
    if not present:
        return ABSENT
    if not all(comment.startswith(item.tag) for comment in present.values()):
        return Condition(Status.FOREIGN, f"table {TABLE} is not ours")
    missing = [family for family in expected if family not in present]
    if missing:
        return Condition(Status.DIFFERENT, f"table {missing[0]} {TABLE} is missing")
    if any(present[family] != wanted for family in expected):
        return Condition(Status.DIFFERENT, "another ruleset is loaded")
    return RIGHT


def observe(item: Ruleset, nft: Nft, reference: Callable[[], Nft]) -> Condition:
    """Compare the ruleset with what is loaded, rule by rule and element by element.

    `reference` makes a scratch context, in which the kernel is asked what a faultless load looks like; it is not
    called if the comments differ already.
    """
    condition = stands(item, comments(nft, item.families))
    if condition != RIGHT:
        return condition
    left: Collection[str] = comments(nft, item.families, SPARE)
    if left:
        return Condition(Status.DIFFERENT, f"table {next(iter(left))} {SPARE} is left of a load that was interrupted")
    if item.content is None:
        return RIGHT
    blocks = _blocks(item.content.text(item.generation))
    wanted = _by_index(_listed(reference(), blocks, "".join(blocks.values())))
    found = _by_index(_listed(nft, blocks))
    if any(line.startswith(_OBJECTS) and SHADOW in line for line in found):
        return Condition(Status.DIFFERENT, "objects are left of a load that was interrupted")
    return RIGHT if found == wanted else Condition(Status.DIFFERENT, _difference(wanted, found))


def _expected(item: Ruleset) -> list[str]:
    return [family for family in item.families if item.content is None or family in item.content.families]


def _listed(nft: Nft, families: Collection[str], batch: str = "") -> list[str]:
    """Our tables line by line, without counters, all objects and every set in order; `batch` loads them for the moment.

    The order in which the objects were made does not matter, nor does the table's comment if there is a stamp.
    """
    nft.set_stateless_output(True)
    try:
        if batch:
            _run(nft, None, batch)
        text = "".join(_run(nft, None, f"list table {family} {TABLE}") for family in families)
        if batch:
            _run(nft, None, _each("delete table {family} {table}", TABLE, families))
    finally:
        nft.set_stateless_output(False)
    return _ordered(_LIST.sub(_sorted_list, _FILLED.sub(r"\1", text)).splitlines())


def _ordered(lines: Iterable[str]) -> list[str]:
    """The lines of listed tables with their objects in order, without comments of tables and without the stamp."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.startswith(("table ", *_OBJECTS)):
            found.append([])
        if line.startswith("table "):
            table = line
        if line and not line.startswith(_TABLE_COMMENT):
            found[-1].append(line)
        if line == "\t}":
            found[-1].insert(0, table)
            found.append([])
    return [line for part in sorted(found) if part[1:2] != [f"\tchain {STAMP} {{"] for line in part]


def _by_index(lines: list[str]) -> list[str]:
    """The lines of a listing with the index in the place of a link's name, in sets of links by index.

    nft prints the name that the index has in the calling thread's namespace, whichever namespace is listed.  And a link
    may be renamed between two listings.
    """
    numbers = {name: str(index) for index, name in socket.if_nameindex()}
    told: list[str] = []
    by_index = inside = False
    for line in lines:
        words = line.split()
        if words[:1] == ["type"]:
            by_index = words[1:] == ["iface_index"]
        elif by_index and words == ["elements", "=", "{"]:
            inside, start = True, len(told) + 1
        elif inside and words == ["}"]:
            told[start:] = sorted(numbers.get(one.strip().strip('"'), one) for one in told[start:])
            inside = False
        told.append(line)
    return told


def _sorted_list(match: re.Match[str]) -> str:
    return "\n".join(["{", *sorted(member.strip() for member in _MEMBER.findall(match[1])), "}"])


def _difference(wanted: list[str], found: list[str]) -> str:
    """Two listings' difference in a few words."""
    missing, extra = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
    told = []
    for words, lines in (("lacks", missing), ("has besides", extra)):
        # Each object has the line of its table before it.
        named = (line.strip() for line in lines.elements() if not line.startswith("table "))
        texts = [text for text in named if text.strip("{}")]
        if texts:
            more = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
            told.append(f"{words} `{texts[0][:DETAIL_LENGTH]}`{more}")
    return "was changed by hand: " + (", ".join(told) or "its lines are in another order")


def listing(nft: Nft, namespace: str | None, families: tuple[str, ...]) -> str:
    """Our tables as the kernel has them now, as ``nft list`` prints them."""
    return "\n".join(
        _run(nft, namespace, f"list table {family} {TABLE}")
        for family in families
        if family in comments(nft, (family,))
    )


def everything(nft: Nft) -> str:
    """All tables of the host, including foreign ones, as ``nft list ruleset`` prints them."""
    return _run(nft, None, "list ruleset")


def elements(nft: Nft, namespace: str | None) -> list[dict[str, Any]]:
    """Our inet table as libnftables' JSON objects (libnftables-json(5)); nothing where it is not loaded."""
    if not comments(nft, ("inet",)):
        return []
    nft.set_json_output(True)
    try:
        found: list[dict[str, Any]] = json.loads(_run(nft, namespace, f"list table inet {TABLE}"))["nftables"]
        return found
    finally:
        nft.set_json_output(False)


def counters(nft: Nft) -> dict[str, int]:
    """The packets of each named counter of our inet table in the context's namespace; none where it is not loaded."""
    nft.set_json_output(True)
    try:
        status, output, _ = nft.cmd(f"list counters table inet {TABLE}")
    finally:
        nft.set_json_output(False)
    found = json.loads(output)["nftables"] if status == 0 and output else []
    return {one["counter"]["name"]: one["counter"]["packets"] for one in found if "counter" in one}


def foreign(item: Ruleset, nft: Nft) -> list[str]:
    """The foreign tables, as family and name, that have a name of ours."""
    found = nft.tables()
    return [
        f"{family} {table}"
        for table in (TABLE, SPARE)
        for family in item.families
        if (family, table) in found and not found[family, table].comment.startswith(item.tag)
    ]
