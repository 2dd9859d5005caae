"""Read the policies that people write, and report all problems of a document at once.

`read_policies` refuses a document that has a problem.  `read_policy_file` returns what can be read of it, so that the
names in it can be judged too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from vpcctl.documents import fastpath, fields, reading
from vpcctl.documents.exports import refuse_export
from vpcctl.documents.recovery import GAP, keep_names, pointers, remains, unread_fields
from vpcctl.errors import DocumentError, Problem
from vpcctl.model.policy import Action, Direction, Endpoint, Network, Origin, Policy, Rule
from vpcctl.values import dataclass

_V = TypeVar("_V")
# A name that a document gives, in the pointers that a Reader makes.
SET_NAME = re.compile("/sets/[^/]*")
# Prefixes of named sets in one document, and in one VPC: the record keeps them, and every command reads the record.
MOST_PREFIXES = 500_000


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """One policy as read: `vpc` and `subnet` are the words of the document, None where it is silent.

    `vpc_pointer` is the place of `vpc`, which a file may say once for all of its policies.  `named` are the endpoints
    that name something, with their pointers.  `unread` are those of the fields `vpc`, `subnet` and `sets` that may be
    in a wrong part of the document.
    """

    vpc: str | None
    subnet: str | None
    policy: Policy
    vpc_pointer: str = ""
    named: tuple[tuple[str, Endpoint], ...] = ()
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """What can be read of a file of policies, and the problems with the rest.

    `content` is the parsed file if it has problems.  Their order follows their places in it.
    """

    documents: tuple[PolicyDocument, ...] = ()
    problems: tuple[Problem | str, ...] = ()
    content: Any = None

    def in_order(self, more: Iterable[Problem]) -> list[Problem | str]:
        """Its problems and `more` that were found in it."""
        return _in_order([*self.problems, *more], self.content) if self.problems else list(more)


def read_policies(document: Any, file: str) -> list[PolicyDocument]:
    """The policies of one parsed file; DocumentError with every problem in it."""
    found = read_policy_file(document, file)
    if found.problems:
        raise DocumentError(*found.problems)
    return list(found.documents)


def read_policy_file(document: Any, file: str) -> PolicyFile:
    """What can be read of one parsed file, and every problem in it."""
    try:
        _check_kind(document, file)
    except DocumentError as error:
        return PolicyFile(problems=error.problems)
    reader = Reader(file)
    left = document
    if not fastpath.accepts("policy", document):
        reader.problems += reading.structure_problems(document, "policy", file)
        # Report all other problems at the same time.
        left = remains(document, reader.problems)
        keep_names(document, left)
        reader.unread = dict(unread_fields(document, left))
    found = tuple(reader.documents(left))
    if not reader.problems:
        return PolicyFile(found)
    return PolicyFile(found, tuple(_in_order(reader.problems, document)), document)


def _check_kind(document: Any, file: str) -> None:
    """Raise DocumentError for a document that is none of policies, or too large."""
    refuse_export(document, file)
    if reading.kind_of(document) == "environment":
        words = "this is an environment; `vpcctl apply` takes it"
        raise DocumentError(Problem(file, "", words, "a policy is expected"))
    check_sets(document, file)


def _in_order(problems: Iterable[Problem | str], document: Any) -> list[Problem | str]:
    """The problems of one file in the order of their places in `document`, its content."""
    places = {pointer: number for number, pointer in enumerate(pointers(document))}
    last = len(places)
    return sorted(problems, key=lambda one: places.get(one.pointer, last) if isinstance(one, Problem) else last)


def check_sets(document: Any, file: str, pointer: str = "") -> None:
    """Raise DocumentError for more prefixes in the named sets of a document than one may have.

    `document` is a file of policies, or a VPC at the place `pointer` of its file.
    """
    found = sum(map(_prefixes_in, _objects(document)))
    if found > MOST_PREFIXES:
        words = f"the named sets have {found} prefixes; at most {MOST_PREFIXES} are allowed"
        raise DocumentError(Problem(file, pointer, words, f"at most {MOST_PREFIXES} prefixes are allowed in sets"))


def _objects(document: Any) -> Iterator[dict[str, Any]]:
    """The objects that may contain sets (policies, VPCs and their containers), even if they have other problems."""
    if isinstance(document, list):
        for inner in document:
            yield from _objects(inner)
    elif isinstance(document, dict):
        yield document
        for field in ("policies", "subnets", "policy"):
            if field in document:
                yield from _objects(document[field])


def _prefixes_in(document: dict[str, Any]) -> int:
    sets = document.get("sets")
    return sum(len(one) for one in sets.values() if isinstance(one, list)) if isinstance(sets, dict) else 0


def read_policy(document: Any, file: str, pointer: str) -> Policy:
    """One policy within another document, whose structure was checked before."""
    reader = Reader(file)
    found = reader.policy(document, pointer, {})
    reader.finish()
    return found.policy


def read_rules(document: list[Any], file: str, pointer: str) -> tuple[Rule, ...]:
    """The rules of one direction within another document, whose structure was checked before."""
    reader = Reader(file)
    found = reader.rules(document, pointer)
    reader.finish()
    return found


class Reader:
    """Collects problems while it reads on."""

    def __init__(self, file: str):
        self.file = file
        self.problems: list[Problem] = []
        # The endpoints that name something, with their pointers.
        self.named: list[tuple[str, Endpoint]] = []
        # By the pointers of policies: which of their decisive fields a wrong part may contain.
        self.unread: Mapping[str, frozenset[str]] = {}

    def finish(self, document: Any = None) -> None:
        """Raise DocumentError if there are problems, those of `document` in the order of their places in it."""
        if self.problems:
            own = [one for one in self.problems if one.file == self.file]
            others = [one for one in self.problems if one.file != self.file]
            raise DocumentError(*_in_order(own, document), *others)

    def attempt(self, pointer: str, read: Callable[..., _V], *arguments: Any) -> _V | None:
        """`read(*arguments)`; where that raises ValueError, a problem at `pointer` and None."""
        try:
            return read(*arguments)
        except ValueError as wrong:
            place = SET_NAME.sub(f"/sets/{reading.HIDDEN}", pointer, count=1)
            self.problems.append(Problem(self.file, pointer, str(wrong), fields.EXPECTED.get(read, ""), place))
            return None

    def documents(self, document: Any) -> Iterator[PolicyDocument]:
        """The policies of a file: one, an array, or an object that holds an array."""
        if document is GAP:
            return
        if isinstance(document, list):
            for number, inner in sound(document):
                yield self.policy(inner, f"/{number}", {})
        elif "policies" in document:
            sets = self.sets(document.get("sets", {}), "/sets")
            for number, inner in sound(document["policies"]):
                yield self.within(document, self.policy(inner, f"/policies/{number}", sets))
        else:
            yield self.policy(document, "", {})

    def within(self, document: dict[str, Any], found: PolicyDocument) -> PolicyDocument:
        """The policy `found` with what `document`, which holds it, says for all of its policies."""
        silent = {"sets"} | {field for field in ("vpc", "subnet") if getattr(found, field) is None}
        found = dataclasses.replace(found, unread=found.unread | self.unread.get("", frozenset()) & silent)
        if found.vpc is not None or "vpc" in found.unread or "vpc" not in document:
            return found
        return dataclasses.replace(found, vpc=document["vpc"], vpc_pointer="/vpc")

    def policy(self, document: dict[str, Any], pointer: str, shared: dict[str, tuple[Network, ...]]) -> PolicyDocument:
        sets = {**shared, **self.sets(document.get("sets", {}), f"{pointer}/sets")}
        before = len(self.named)
        rules = {
            direction: self.rules(document[direction.value], f"{pointer}/{direction.value}")
            if direction.value in document
            else None
            for direction in Direction
        }
        defaults = document.get("default", {})
        policy = Policy(
            rules[Direction.INGRESS],
            rules[Direction.EGRESS],
            tuple((side, Action(defaults[side.value])) for side in Direction if side.value in defaults),
            tuple(sets.items()),
            document.get("description", ""),
            self.file,
            pointer,
        )
        unread = self.unread.get(pointer, frozenset())
        return PolicyDocument(
            document.get("vpc"),
            document.get("subnet"),
            policy,
            f"{pointer}/vpc",
            tuple(self.named[before:]),
            unread,
        )

    def sets(self, document: dict[str, Any], pointer: str) -> dict[str, tuple[Network, ...]]:
        return {
            name: tuple(
                prefix
                for number, text in sound(prefixes)
                if (prefix := self.attempt(f"{pointer}/{reading.escape(name)}/{number}", fields.parse_prefix, text))
            )
            for name, prefixes in document.items()
        }

    def rules(self, document: list[Any], pointer: str) -> tuple[Rule, ...]:
        return tuple(self.rule(rule, f"{pointer}/{number}") for number, rule in sound(document))

    def rule(self, document: dict[str, Any], pointer: str) -> Rule:
        told = len(self.problems)
        protocol = self.attempt(f"{pointer}/protocol", fields.parse_protocol, document.get("protocol", "any"))
        if len(self.problems) > told:
            document = {field: value for field, value in document.items() if field not in ("port", "icmp_type")}
        action = Action(document["action"])
        limit = None
        if "limit" in document:
            limit = self.attempt(f"{pointer}/limit", fields.parse_limit, document["limit"], action)
        return Rule(
            action,
            protocol,
            self.many(document, "port", pointer, fields.parse_ports, protocol, whole=fields.every_port),
            self.many(document, "icmp_type", pointer, fields.parse_icmp_type, protocol),
            self.many(document, "source", pointer, fields.parse_endpoint),
            self.many(document, "destination", pointer, fields.parse_endpoint),
            document.get("log", False),
            limit,
            document.get("description", ""),
            Origin(self.file, pointer),
        )

    def many(
        self,
        document: dict[str, Any],
        field: str,
        pointer: str,
        read: Callable[..., _V],
        *more: Any,
        whole: Callable[[tuple[_V, ...]], bool] | None = None,
    ) -> tuple[_V, ...] | None:
        """A field that holds one value or an array of them, as a tuple; None if it is absent or means everything."""
        if field not in document:
            return None
        value = document[field]
        if not isinstance(value, list):
            # The usual case, without a pointer that only a problem needs.
            try:
                only = read(value, *more)
            except ValueError:
                pass
            else:
                if isinstance(only, Endpoint) and only.name is not None:
                    self.named.append((f"{pointer}/{field}", only))
                return None if whole and whole((only,)) else (only,)
        if isinstance(value, list):
            places = [(inner, f"{pointer}/{field}/{number}") for number, inner in sound(value)]
        else:
            places = [(value, f"{pointer}/{field}")]
        alone = len(places) == 1 and not (isinstance(value, list) and len(value) > 1)
        found = []
        for inner, place in places:
            one = self.attempt(place, read, inner, *more)
            if one is not None:
                found.append(one)
            if isinstance(one, Endpoint) and one.name is not None:
                self.named.append((f"{pointer}/{field}" if alone else place, one))
        return None if whole and whole(tuple(found)) else tuple(found)


def sound(values: list[Any]) -> Iterator[tuple[int, Any]]:
    """Each of `values` with its place, without those that were wrong by themselves."""
    return ((number, value) for number, value in enumerate(values) if value is not GAP)
