"""A model of how nftables carries out the transactions of a change: objects as text, and which a packet may meet.

It does not depend on `vpcctl.compiler.delta`, which computes them. It raises an error where the kernel refuses: if an
object is deleted that another one refers to, if an element exists already, or if the chain of a new rule does not
exist.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import takewhile

from vpcctl.compiler.nft import Table

WORDS = re.compile(r'limit name "([^"]*)"|"[^"]*"|@([\w./-]+)|\b(?:jump|goto) ([\w./-]+)')


@dataclass
class Object:
    """A declaration, its elements or rules, and whether packets enter it by a hook."""

    kind: str
    head: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)

    @property
    def base(self) -> bool:
        return any(line.startswith("type ") and " hook " in line for line in self.head)

    @property
    def text(self) -> tuple[object, ...]:
        """What is compared; elements have no order."""
        members = self.members if self.kind == "chain" else sorted(self.members)
        return self.kind, tuple(self.head), tuple(members)


def _reachable(found: Object) -> Object:
    """The members that new packets meet: none behind a rule that leads to another chain."""
    first = next((number for number, rule in enumerate(found.members) if rule.startswith("goto ")), len(found.members))
    return replace(found, members=found.members[: first + 1]) if found.kind == "chain" else found


Place = tuple[str, str, str]  # table, space of names, name


class Machine:
    """Tables to which transactions are applied; `touched` is what the present transaction changed."""

    def __init__(self, tables: tuple[Table, ...], generation: int):
        self.objects: dict[Place, Object] = {}
        self.touched: set[Place] = set()
        for table in tables:
            lines = [line.strip() for one in table.objects for line in one.lines()]
            lines = [line.replace("$generation", str(generation)) for line in lines if not line.startswith("#")]
            self._block(f"{table.family} {table.name}", iter(lines))

    def commit(self, batch: str) -> None:
        """Apply a transaction, and check that no packet could meet what it changed, before or after."""
        before = self.met()
        known = {rule for one in self.objects.values() if one.base for rule in one.members}
        self.touched = set()
        lines = iter(batch.splitlines())
        for line in filter(None, lines):
            if line.startswith("table "):
                inner = []
                depth = 1
                while depth:
                    inner.append(next(lines))
                    depth += inner[-1].endswith("{") - (inner[-1].strip() == "}")
                self._block(line[len("table ") : -2], iter([one.strip() for one in inner[:-1]]))
            else:
                self._command(line)
        for place, found in self.objects.items():
            for wanted in self._references(place, found):
                assert wanted in self.objects, f"{place} refers to {wanted}, which is gone"
        hooked = {place for place in self.touched if place in self.objects and self.objects[place].base}
        mixed = (self.touched - hooked) & (before | self.met())
        assert not mixed, f"packets may be in {mixed}, which changes"
        # The elements of a set may become visible later than the rule that looks them up.
        rules = {rule for place in hooked for rule in _reachable(self.objects[place]).members}
        late = {rule for rule in rules - known if "{" in rule}
        assert not late, f"packets meet {late} with sets that are new"

    def met(self) -> set[Place]:
        """All objects that a packet may meet."""
        found: set[Place] = set()
        rest = [place for place, one in self.objects.items() if one.base]
        while rest:
            place = rest.pop()
            if place not in found:
                found.add(place)
                rest += self._references(place, _reachable(self.objects[place]))
        return found

    def texts(self) -> dict[Place, tuple[object, ...]]:
        """The content of a listing, without the stamp."""
        return {place: one.text for place, one in self.objects.items() if place[2] != "stamp"}

    def _references(self, place: Place, found: Object) -> list[Place]:
        kinds = ("limit", "set", "chain")
        names = [
            (place[0], kind, name)
            for member in found.members
            for match in WORDS.finditer(member)
            for kind, name in zip(kinds, match.groups(), strict=True)
            if name
        ]
        return [one for one in names if one[2] not in ("nh", "th")]

    def _block(self, table: str, lines: object) -> None:
        for line in lines:
            kind, name = line.split(" ")[:2]
            place = (table, "set" if kind == "map" else kind, name)
            known, found = self.objects.get(place), Object(kind)
            while (line := next(lines)) != "}":
                if line.strip() == "elements = {":
                    while (line := next(lines)).strip() != "}":
                        found.members.append(line.strip().removesuffix(","))
                elif kind == "chain" and not line.strip().startswith("type "):
                    found.members.append(line.strip())
                else:
                    found.head.append(line.strip())
            if known is None:
                self.objects[place] = found
            else:
                # A chain that is declared again keeps its rules.
                assert kind == "chain", f"{place} exists"
                assert not found.head, f"{place} exists"
                known.members += found.members
                if not found.members:
                    continue
            self.touched.add(place)

    def _command(self, line: str) -> None:
        verb, kind, family, table, name, *_ = line.split(" ")
        rest = line.split(" ", 5)[5] if line.count(" ") > 4 else ""
        space = {"map": "set", "element": "set", "rule": "chain"}.get(kind, kind)
        place = (f"{family} {table}", space, name)
        if (verb, kind) == ("add", "chain"):
            assert place not in self.objects
            self.objects[place] = Object("chain", [rest])
            return
        found = self.objects[place]
        self.touched.add(place)
        if (verb, kind) == ("flush", "chain"):
            # The elements of an anonymous map disappear at once, while packets pass through the rules.
            reached = takewhile(lambda rule: not rule.startswith("goto "), found.members)
            assert not (found.base and any("map {" in rule for rule in reached)), f"{place} loses a map in use"
            found.members.clear()
        elif (verb, kind) == ("insert", "rule"):
            found.members.insert(0, rest)
        elif (verb, kind) == ("add", "rule"):
            found.members.append(rest)
        elif (verb, kind) == ("delete", "rule"):
            # In this model, the handle of a rule is its position.
            gone = found.members.pop(int(rest.removeprefix("handle ")))
            assert not (found.base and "map {" in gone), f"{place} loses a map in use"
        elif kind == "element":
            self._elements(verb, found, rest[2:-2])
        else:
            assert verb == "delete", line
            assert kind == found.kind, line
            assert kind != "chain" or not found.members, f"{place} has rules"
            used = [other for other, one in self.objects.items() if place in self._references(other, one)]
            assert not used, f"{place} is in use by {used}"
            del self.objects[place]

    @staticmethod
    def _elements(verb: str, found: Object, text: str) -> None:
        # No comment has a comma between quotes that is not followed by a blank inside of them.
        for part in re.findall(r'(?:[^,"]|"[^"]*")+', text):
            part = part.strip()
            key = re.split(r' comment "| : ', part)[0]
            known = [one for one in found.members if re.split(r' comment "| : ', one)[0] == key]
            if verb == "delete":
                assert len(known) == 1, f"no element {key}"
                found.members.remove(known[0])
            else:
                assert not known, f"{key} exists"
                found.members.append(part)
