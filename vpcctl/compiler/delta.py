"""The change from one ruleset to another as a few small transactions, in place of the whole ruleset.

Theory of operation.  A set that a packet may look up is never changed, nor is a chain that a packet may enter, except
base chains.  So each packet is judged by the old or the new ruleset, never by a mixture.

1. *Prepare*: new objects are added.  For each object that changes, a *shadow* with the new content is added, called
   ``<name>.next``.  No packet meets any of these yet.  An object that leads to a changed object counts as changed, too.
2. *Switch*: the base chains that change, or lead to something that does, begin with a rule that goes to their shadows.
   From here on the new ruleset judges, with its own generation.  A packet enters a base chain once and stays with the
   rules that it found there.  The old rules are not deleted yet: a packet may look up an anonymous map in them, whose
   elements disappear with the transaction that deletes the rule (`nft_map_deactivate`).
3. *Rebuild*: no packet meets the originals any more, so they are changed: elements that differ are deleted and added,
   and all others keep their counters.  What the new ruleset does not have is deleted.  The base chains get their new
   rules, behind the one that goes to the shadow.
4. *Switch back*: that first rule is deleted, and nothing else.  All sets show their elements by now, even the anonymous
   sets of the new rules (`nft_set_commit_update`).
5. *Clear*: the shadows are deleted.

The caller waits before 3 and 5 until the packets that were on their way have passed.  A new object, such as the gate of
a first policy, has no shadow: it is loaded once.  An unchanged gate is not in the transactions at all, whatever its
size.

The comment of a table cannot be changed in place (net/netfilter/nf_tables_api.c: nf_tables_updtable).  So a chain
without rules, the *stamp*, carries the comment that the table would have if it had been loaded whole.  Until the last
transaction it says that the change is unfinished.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field, replace

from vpcctl.compiler import Compiled, table_comment
from vpcctl.compiler.nft import RulesetPart, Table, comment_text
from vpcctl.names import TABLE
from vpcctl.values import dataclass

STAMP = "stamp"
SHADOW = ".next"
# From the first transaction to the last the stamp ends with this word.
UNFINISHED = "unfinished"
# Each deleted element costs the kernel a walk through the set.  If more are deleted, the set is made again.
MOST_DELETIONS = 256
# What a rule or an element refers to.  Names in quotes are interfaces and files, except those of limits.
_REFERENCE = re.compile(r'limit name "(?P<limit>[^"]*)"|"[^"]*"|@(?P<set>[\w./-]+)|\b(?:jump|goto) (?P<chain>[\w./-]+)')

# Packets and bytes.
Count = tuple[int, int]
# The counter in the text of a rule.
_COUNTER = "counter "
# A base chain: its family and its name.
Base = tuple[str, str]
# A space of names, and a name in it: sets and maps share one space.
Key = tuple[str, str]
Names = Mapping[Key, str]


@dataclass(frozen=True, slots=True)
class Object:
    """A set, map, limit or chain as text: its declaration, and its elements or rules."""

    kind: str
    name: str
    head: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """The object's unique key in its table."""
        return ("set" if self.kind == "map" else self.kind, self.name)

    @property
    def is_base(self) -> bool:
        """Is it a chain with a hook?"""
        return self.kind == "chain" and bool(self.head)

    def references(self) -> Iterator[Key]:
        """The objects that its elements or rules refer to."""
        for member in self.members:
            for found in _REFERENCE.finditer(member):
                if (key := _referred(found)) is not None:
                    yield key

    def renamed(self, names: Names) -> Object:
        """The same object, with itself and its references renamed."""
        members = tuple(_renamed(member, names) for member in self.members)
        return replace(self, name=names.get(self.key, self.name), members=members)

    def lines(self) -> Iterator[str]:
        """The object as it stands in a table."""
        yield f"{self.kind} {self.name} {{"
        yield from self.head
        if self.kind == "chain":
            yield from self.members
        elif self.members:
            yield "elements = {"
            yield from (f"{member}," for member in self.members)
            yield "}"
        yield "}"


def _referred(found: re.Match[str]) -> Key | None:
    for kind in ("limit", "set", "chain"):
        if found[kind] is not None:
            return kind, found[kind]
    return None


def _renamed(text: str, names: Names) -> str:
    def other(found: re.Match[str]) -> str:
        key = _referred(found)
        if key is None or key not in names:
            return found[0]
        start, end = found.span(key[0])
        return found.string[found.start() : start] + names[key] + found.string[end : found.end()]

    # Most elements refer to nothing.
    return _REFERENCE.sub(other, text) if "goto " in text or "@" in text or "jump " in text or "limit" in text else text


def read_objects(lines: Iterable[str]) -> Iterator[Object]:
    """The objects in the lines of a table, each with its own indentation alone."""
    kind = name = ""
    head: list[str] = []
    members: list[str] = []
    listing = False
    for line in lines:
        if line == "}":
            yield Object(kind, name, tuple(head), tuple(members))
            kind, head, members = "", [], []
        elif listing:
            listing = line != "\t}"
            if listing:
                members.append(line[2:-1])
        elif line == "\telements = {":
            listing = True
        elif line.startswith("\t"):
            is_rule = kind == "chain" and not line.startswith("\ttype ")
            (members if is_rule else head).append(line[1:])
        elif line and not line.startswith("#"):
            kind, name = line.split(" ")[:2]


def element_key(member: str) -> str:
    """The key of an element, without its comment and data."""
    key, comment, _ = member.partition(' comment "')
    return key if comment else member.partition(" : ")[0]


@dataclass(frozen=True, slots=True)
class Delta:
    """The transactions from one ruleset to another, in their order; see the head of this module.

    `counted` are the rules, by chain of the inet table, of chains with counters whose rules are made again: before the
    rebuild, their counters can be read and handed over to the same rules (`counting`).
    """

    prepare: str
    switch: str
    rebuild: tuple[str, ...]
    # The base chains whose first rule is to be deleted, each with its number of rules at that time.
    heads: Mapping[Base, int]
    clear: str
    counted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def back(self, handles: Mapping[Base, int]) -> str:
        """The transaction that switches back; `handles` are those of the first rules of `heads`."""
        places = [(family, chain, handles[family, chain]) for family, chain in self.heads]
        return _text([f"delete rule {family} {TABLE} {chain} handle {number}" for family, chain, number in places])

    def counting(self, counts: Mapping[str, Iterable[Count | None]]) -> Delta:
        """The same transactions, in which rules begin with these counts: for each chain those of `counted`."""
        begun: dict[str, list[str]] = defaultdict(list)
        for chain, found in counts.items():
            for rule, count in zip(self.counted[chain], found, strict=True):
                if count is not None:
                    packets, size = count
                    line = f"add rule inet {TABLE} {chain} {rule}"
                    number = f"counter packets {packets} bytes {size} "
                    begun[line].append(line.replace(_COUNTER, number, 1))
        return replace(self, rebuild=tuple(_begun(batch, begun) for batch in self.rebuild))

    def __str__(self) -> str:
        back = self.back(dict.fromkeys(self.heads, 0))
        return "\n".join(filter(None, (self.prepare, self.switch, *self.rebuild, back, self.clear)))


def _begun(batch: str, lines: Mapping[str, list[str]]) -> str:
    """The batch with other lines for some; each is used once."""
    return _text([lines[line].pop(0) if lines.get(line) else line for line in batch.splitlines()])


@dataclass(slots=True)
class _Batches:
    """The transactions under construction, line by line."""

    prepare: list[str] = field(default_factory=list)
    switch: list[str] = field(default_factory=list)
    taking: list[str] = field(default_factory=list)
    giving: list[str] = field(default_factory=list)
    heads: dict[Base, int] = field(default_factory=dict)
    clear: list[str] = field(default_factory=list)
    counted: dict[str, tuple[str, ...]] = field(default_factory=dict)


# Returns the text of a gate of the ruleset in force; None if it is unknown.
Texts = Callable[[str], str | None]


def delta(
    old: Compiled, old_generation: int, new: Compiled, new_generation: int, texts: Texts, stamped: bool
) -> Delta | None:
    """The transactions from `old`, which is in force, to `new`; None if it takes the whole ruleset.

    `stamped` says whether the loaded table has a stamp.
    """
    if old.families != new.families:
        return None
    batches = _Batches()
    for before, after in zip(old.outline, new.outline, strict=True):
        change = _Change.between(before, old_generation, after, new_generation, texts)
        if change is None:
            return None
        change.write(batches)
    # So the result of an interrupted change is never taken as the start of another change.
    former = table_comment(old.owner, old.fingerprint, old_generation)
    comment = table_comment(new.owner, new.fingerprint, new_generation)
    batches.prepare += _stamp(f"{former} {UNFINISHED}", stamped)
    batches.switch += _stamp(f"{comment} {UNFINISHED}", stamped=True)
    batches.clear += _stamp(comment, stamped=True)
    rebuild = tuple(_text(lines) for lines in (batches.taking, batches.giving) if lines)
    return Delta(
        _text(batches.prepare),
        _text(batches.switch),
        rebuild,
        batches.heads,
        _text(batches.clear),
        batches.counted,
    )


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _stamp(comment: str, stamped: bool) -> list[str]:
    """Make the stamp; if the table is `stamped`, replace the present one."""
    add = f'add chain inet {TABLE} {STAMP} {{ comment "{comment_text(comment)}"; }}'
    return [f"delete chain inet {TABLE} {STAMP}", add] if stamped else [add]


@dataclass(frozen=True, slots=True)
class _Gates:
    """The gates of a table that differ: by name, with their objects."""

    made: Mapping[str, RulesetPart]
    changed: Mapping[str, tuple[list[Object], list[Object]]]
    gone: Mapping[str, list[Object]]

    @classmethod
    def between(cls, before: Table, after: Table, texts: Texts) -> _Gates | None:
        old, new = ({part.name: part for part in table.parts} for table in (before, after))
        made = {name: part for name, part in new.items() if name not in old}
        known: dict[str, list[Object]] = {}
        for name, part in old.items():
            if name not in new or new[name].fingerprint != part.fingerprint:
                text = texts(name)
                if text is None:
                    return None
                known[name] = list(read_objects(text.splitlines()))
        changed = {name: (known[name], list(read_objects(new[name].text.splitlines()))) for name in known.keys() & new}
        return cls(made, changed, {name: known[name] for name in known.keys() - new})


@dataclass(frozen=True, slots=True)
class _Change:
    """One table before and after."""

    table: str
    old: Mapping[Key, Object]
    new: Mapping[Key, Object]
    gates: _Gates
    # The objects that have a shadow, and base chains that lead to one; without the objects in gates.
    dirty: frozenset[Key]

    @classmethod
    def between(
        cls, before: Table, old_generation: int, after: Table, new_generation: int, texts: Texts
    ) -> _Change | None:
        old, new = _objects(before, old_generation), _objects(after, new_generation)
        hooks = [{one.name: one.head for one in objects.values() if one.is_base} for objects in (old, new)]
        if hooks[0] != hooks[1]:
            # The kernel attaches a base chain before the transaction is in force.
            return None
        gates = _Gates.between(before, after, texts)
        if gates is None:
            return None
        dirty = _dirty(old, new, gates.changed)
        if any(kind not in ("set", "chain") for kind, _ in dirty | (old.keys() - new.keys())):
            return None
        return cls(f"{after.family} {after.name}", old, new, gates, frozenset(dirty))

    def write(self, batches: _Batches) -> None:
        """Add what this table needs to the transactions."""
        bases = [self.new[key] for key in self.new if key in self.dirty and self.new[key].is_base]
        changing = [self.new[key] for key in self.new if key in self.dirty and not self.new[key].is_base]
        names = {one.key: one.name + SHADOW for one in changing}
        shadows = []
        for gate, (_, objects) in self.gates.changed.items():
            inner = {one.key: gate + SHADOW + one.name[len(gate) :] for one in objects}
            names |= inner
            shadows += [one.renamed(inner) for one in objects]
        shadows += [one.renamed(names) for one in changing]
        shadows += [replace(one.renamed(names), name=one.name + SHADOW, head=()) for one in bases]
        fresh = [one for key, one in self.new.items() if key not in self.old and key not in self.dirty]
        batches.prepare += self._block([*fresh, *shadows], [part.text for part in self.gates.made.values()])
        for chain in bases:
            # The old rules stay behind the first one: a packet that is passing through them may look up their anonymous
            # maps.
            batches.switch.append(f"insert rule {self.table} {chain.name} goto {chain.name}{SHADOW}")
            # By now no packet passes through them, and they refer to objects that will be deleted.
            only = replace(chain, members=(f"goto {chain.name}{SHADOW}",))
            batches.taking += self._rules(only)
            batches.heads[self.table.partition(" ")[0], chain.name] = 1 + len(chain.members)
        self._rebuild(batches, changing)
        # Their sets exist by now.
        batches.giving += [line for chain in bases for line in self._rules(chain)[1:]]
        batches.clear += self._deletion(shadows)

    def _rebuild(self, batches: _Batches, changing: list[Object]) -> None:
        pairs = [(self.old.get(one.key), one) for one in changing]
        gone = [one for key, one in self.old.items() if key not in self.new]
        for old, new in self.gates.changed.values():
            known, wanted = {one.key: one for one in old}, {one.key: one for one in new}
            again = {key for key, one in wanted.items() if key in known and _missing(known[key], one) is None}
            pairs += [
                (known.get(one.key), one)
                for one in new
                if known.get(one.key) != one or again.intersection(one.references())
            ]
            gone += [one for one in old if one.key not in wanted]
        gone += [one for objects in self.gates.gone.values() for one in objects]
        flushed: list[str] = []
        dropped: list[str] = []
        added: list[str] = []
        deleted, made = list(gone), list[Object]()
        for old_one, one in pairs:
            if old_one is None:
                made.append(one)
            elif one.kind == "chain":
                flushed.append(f"flush chain {self.table} {one.name}")
                if any(_COUNTER in rule for rule in old_one.members):
                    batches.counted[one.name] = old_one.members
                made.append(one)
            elif (missing := _missing(old_one, one)) is None:
                deleted.append(old_one)
                made.append(one)
            else:
                dropped += self._elements("delete", one.name, map(element_key, missing))
                known_members = set(old_one.members)
                added += self._elements("add", one.name, (each for each in one.members if each not in known_members))
        batches.taking += [*flushed, *self._deletion(deleted, dropped)]
        # Elements may lead to chains, and rules to sets: the block makes all chains before both.
        batches.giving += [*self._block([one for one in made if one.kind != "chain"] + _empty(made)), *added]
        batches.giving += [line for one in made if one.kind == "chain" for line in self._rules(one)[1:]]

    def _block(self, objects: Iterable[Object], texts: Iterable[str] = ()) -> list[str]:
        lines = [line for one in objects for line in one.lines()]
        lines += [line for text in texts for line in text.splitlines()]
        return [f"table {self.table} {{", *lines, "}"] if lines else []

    def _rules(self, chain: Object) -> list[str]:
        """Replace the rules of a chain."""
        rules = [f"add rule {self.table} {chain.name} {rule}" for rule in chain.members]
        return [f"flush chain {self.table} {chain.name}", *rules]

    def _deletion(self, objects: list[Object], elements: Iterable[str] = ()) -> list[str]:
        """Delete objects that only refer to each other; `elements` are deleted among them."""
        chains = [one.name for one in objects if one.kind == "chain"]
        sets = [f"delete {one.kind} {self.table} {one.name}" for one in objects if one.kind in ("set", "map")]
        others = [one for one in objects if one.kind not in ("set", "map", "chain")]
        return [
            *(f"flush chain {self.table} {name}" for name in chains),
            *sets,
            *elements,
            *(f"delete chain {self.table} {name}" for name in chains),
            *(f"delete {one.kind} {self.table} {one.name}" for one in others),
        ]

    def _elements(self, verb: str, name: str, members: Iterable[str]) -> list[str]:
        found = list(members)
        return [f"{verb} element {self.table} {name} {{ {', '.join(found)} }}"] if found else []


def _objects(table: Table, generation: int) -> dict[Key, Object]:
    """The objects of the table that are in no gate, with the generation written out."""
    lines = (line.replace("$generation", str(generation)) for one in table.objects for line in one.lines())
    return {one.key: one for one in read_objects(lines)}


def _dirty(old: Mapping[Key, Object], new: Mapping[Key, Object], gates: Iterable[str]) -> set[Key]:
    """The objects that differ, and all that lead to them."""
    dirty = {key for key, one in new.items() if key in old and old[key] != one}
    roots = dirty | {("chain", gate + suffix) for gate in gates for suffix in ("", ".reply")}
    leading = {key: set(one.references()) for key, one in new.items() if one.kind == "chain"}
    while more := {key for key, found in leading.items() if key not in roots and found & roots}:
        roots |= more
        dirty |= more
    return dirty


def _missing(old: Object, new: Object) -> list[str] | None:
    """The elements of `old` that `new` lacks; None where the set is better made again."""
    if old == new or old.kind == "chain":
        return []
    if (old.kind, old.head) != (new.kind, new.head):
        return None
    wanted = set(new.members)
    missing = [member for member in old.members if member not in wanted]
    return missing if len(missing) <= MOST_DELETIONS else None


def _empty(objects: Iterable[Object]) -> list[Object]:
    """The chains among `objects`, without their rules."""
    return [replace(one, members=()) for one in objects if one.kind == "chain"]
