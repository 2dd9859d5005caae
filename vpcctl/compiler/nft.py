"""nftables' vocabulary as values, and their text as ``nft -f`` reads it (nft(8)).

Text and not JSON goes in: libnftables 1.0.6 crashes on a JSON map whose data is a concatenation, and text is what
people review.  What enters the text is made of identifiers, numbers and addresses that were validated before; words
from users become comments and pass through `comment_text` first.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Protocol

from vpcctl.values import dataclass

# The length of a fingerprint: so many hexadecimal digits of a SHA-256.
FINGERPRINT_LENGTH = 16
# NFTNL_UDATA_COMMENT_MAXLEN in libnftnl: a longer comment is refused.
COMMENT_LIMIT = 127
_UNSAFE = re.compile(r"[^A-Za-z0-9 ._,:/#=+~-]")

ADDRESS_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
ADDRESS_WORD = {4: "ip", 6: "ip6"}


def comment_text(text: str) -> str:
    """`text` reduced to an alphabet that cannot end a quoted string, the end kept where it is too long."""
    return _UNSAFE.sub("_", text)[-COMMENT_LIMIT:]


def anonymous(values: list[str]) -> str:
    """An anonymous set of the grammar."""
    return "{ " + ", ".join(values) + " }"


def quoted(name: str) -> str:
    """An interface name as a string of the grammar."""
    return f'"{name}"'


@dataclass(frozen=True, slots=True)
class NftRule:
    """One statement line of a chain; `comment` leads back to the user's line."""

    text: str
    comment: str = ""

    def __str__(self) -> str:
        return f'{self.text} comment "{comment_text(self.comment)}"' if self.comment else self.text


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a set or map: a key, the data if it is a map, and where it came from."""

    key: str
    data: str = ""
    comment: str = ""

    def __str__(self) -> str:
        comment = f' comment "{comment_text(self.comment)}"' if self.comment else ""
        return f"{self.key}{comment} : {self.data}" if self.data else f"{self.key}{comment}"


@dataclass(frozen=True, slots=True)
class Set:
    """A named set, or a map where `data_type` is given.  `counted` gives each element a packet counter.

    `dynamic` is the size of a set that packets fill, 0 for one that they do not; `timeout` is when its elements go.
    """

    name: str
    key_type: str
    elements: tuple[Element, ...] = ()
    data_type: str = ""
    interval: bool = False
    counted: bool = False
    dynamic: int = 0
    timeout: str = ""

    def lines(self) -> Iterator[str]:
        yield f"{'map' if self.data_type else 'set'} {self.name} {{"
        yield f"\ttype {self.key_type}" + (f" : {self.data_type}" if self.data_type else "")
        if self.interval:
            yield "\tflags interval"
        if self.dynamic:
            yield f"\tsize {self.dynamic}"
            yield "\tflags dynamic" + (",timeout" if self.timeout else "")
        if self.timeout:
            yield f"\ttimeout {self.timeout}"
        if self.counted:
            yield "\tcounter"
        if self.elements:
            yield "\telements = {"
            for element in self.elements:
                yield f"\t\t{element},"
            yield "\t}"
        yield "}"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A named limit: `rate` packets per `unit`, and `burst` above it.  Rules that name it share it."""

    name: str
    rate: int
    unit: str
    burst: int

    def lines(self) -> Iterator[str]:
        yield f"limit {self.name} {{"
        yield f"\trate {self.rate}/{self.unit} burst {self.burst} packets"
        yield "}"


@dataclass(frozen=True, slots=True)
class Counter:
    """A named counter of packets and bytes."""

    name: str

    def lines(self) -> Iterator[str]:
        yield f"counter {self.name} {{"
        yield "}"


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain is attached: chain type, hook, priority (a number, or a name that nft knows) and policy."""

    kind: str
    hook: str
    priority: str
    policy: str

    def __str__(self) -> str:
        return f"type {self.kind} hook {self.hook} priority {self.priority}; policy {self.policy};"


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; a base chain where `hook` is given."""

    name: str
    rules: tuple[NftRule, ...] = ()
    hook: Hook | None = None
    reason: str = ""

    def lines(self) -> Iterator[str]:
        if self.reason:
            yield f"# {comment_text(self.reason)}"
        yield f"chain {self.name} {{"
        if self.hook:
            yield f"\t{self.hook}"
        for rule in self.rules:
            yield f"\t{rule}"
        yield "}"


class RulesetPart(Protocol):
    """Sets and chains that are compiled when they are first used.

    The fingerprint of their text may be known without them.
    """

    @property
    def name(self) -> str:
        """The prefix of all names in the part."""

    @property
    def fingerprint(self) -> str:
        """A hash of the text of the part."""

    @property
    def text(self) -> str:
        """The text of the part by itself."""

    @property
    def sets(self) -> tuple[Set | RateLimit, ...]: ...

    @property
    def chains(self) -> tuple[Chain, ...]: ...


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its sets, limits, counters and chains.  A part is in both lists: its sets and its chains."""

    family: str
    name: str
    sets: tuple[Set | RateLimit | Counter | RulesetPart, ...] = ()
    chains: tuple[Chain | RulesetPart, ...] = ()

    @property
    def parts(self) -> tuple[RulesetPart, ...]:
        """The parts of the table."""
        return tuple(one for one in self.chains if not isinstance(one, Chain))

    @property
    def objects(self) -> tuple[Set | RateLimit | Counter | Chain, ...]:
        """All objects that are in no part."""
        everything = (*self.sets, *self.chains)
        return tuple(one for one in everything if isinstance(one, (Set, RateLimit, Counter, Chain)))

    def without_parts(self) -> Table:
        """The same table, with only the objects that are in no part."""
        sets = tuple(one for one in self.sets if isinstance(one, (Set, RateLimit, Counter)))
        return dataclasses.replace(self, sets=sets, chains=tuple(one for one in self.chains if isinstance(one, Chain)))

    def whole(self) -> Table:
        """The same table with the objects of its parts in their place."""
        sets = [
            each for one in self.sets for each in ((one,) if isinstance(one, (Set, RateLimit, Counter)) else one.sets)
        ]
        chains = [each for one in self.chains for each in ((one,) if isinstance(one, Chain) else one.chains)]
        return dataclasses.replace(self, sets=tuple(sets), chains=tuple(chains))

    def lines(self, comment: str = "") -> Iterator[str]:
        yield f"table {self.family} {self.name} {{"
        if comment:
            yield f'\tcomment "{comment_text(comment)}"'
        for part in self.whole().objects:
            yield ""
            for line in part.lines():
                yield f"\t{line}" if line else ""
        yield "}"


def part_text(part: RulesetPart) -> str:
    """The text of a part by itself."""
    return "".join(f"{line}\n" for one in (*part.sets, *part.chains) for line in one.lines())


def transaction(tables: tuple[Table, ...], comment: str) -> str:
    """One batch that replaces `tables` whole, each with `comment`.

    A table is added before it is deleted, so that the batch holds whether or not it was there; ``destroy`` would say
    it in one word but nft 1.0.6 does not know it.
    """
    lines: list[str] = []
    for table in tables:
        lines += [f"add table {table.family} {table.name}", f"delete table {table.family} {table.name}"]
    for table in tables:
        lines += ["", *table.lines(comment)]
    return "\n".join(lines) + "\n"


def removal(tables: tuple[tuple[str, str], ...]) -> str:
    """One batch that removes `tables`, given as (family, name), whether or not they are there."""
    return "".join(f"add table {family} {name}\ndelete table {family} {name}\n" for family, name in tables)
