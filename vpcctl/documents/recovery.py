"""What is left of a document when its wrong parts are taken out, so that the rest can be read for further problems."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vpcctl import names
from vpcctl.documents import reading, vocabulary
from vpcctl.documents.reading import escape
from vpcctl.errors import Problem

# Replaces a wrong element of an array, so that the elements after it keep their places.
GAP: Any = object()
# What is wrong is put aside with what cannot be understood without it.
_DEPENDENT = {"protocol": ("port", "icmp_type")}
# The arrays of objects that can be read although something is missing in them.
_KEPT = ("vpcs", "subnets", "instances", "publish")
# The fields of a subnet that cannot replace its instances.
_BESIDE_INSTANCES = ("name", "cidr", "type", "nat_gateway", "policy")
# The fields of a policy without which its names cannot be judged, and the type of their values.
_DECISIVE: Mapping[str, type] = {"vpc": str, "subnet": str, "sets": dict}
# A rule without an action is none; with this one the rest of it can be read.
_STAND_IN = {"action": "allow"}


def remains(document: Any, problems: Iterable[Problem]) -> Any:
    """A copy of the parsed JSON `document` without the values at the pointers of `problems`; GAP if nothing is left."""
    left = {"": _copy(document)}
    for problem in problems:
        _take_out(left, ["", *map(_unescape, problem.pointer.split("/")[1:])])
    return left[""]


def pointers(value: Any, pointer: str = "") -> Iterator[str]:
    """The JSON pointers of `value` and of all that is in it, in document order."""
    yield pointer
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from pointers(inner, f"{pointer}/{escape(key)}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from pointers(inner, f"{pointer}/{number}")


def keep_names(document: Any, left: Any) -> None:
    """Restore in `left` the names of wrong sets, and the field that marks a collection."""
    if isinstance(document, dict) and "policies" in document and left is not GAP:
        left.setdefault("policies", [])
    for _, written, rest in _beside_what_is_left(document, left):
        if "sets" in rest:
            for name in filter(names.NAME.fullmatch, written["sets"]):
                rest["sets"].setdefault(name, [])


def unread_fields(document: Any, left: Any) -> Iterator[tuple[str, frozenset[str]]]:
    """The pointers of the policies, and of what holds them, with the decisive fields that may be in a wrong part."""
    for pointer, written, rest in _beside_what_is_left(document, left):
        kind = "policy" if pointer or "policies" not in written else "collection"
        lost = {key: _meant(key, kind) for key in written if key not in rest}
        unread = {
            field
            for field, type_ in _DECISIVE.items()
            if field not in rest
            # A field that is like none of ours may be any that takes such a value.
            and any(
                meant in (field, "policies") or (not meant and isinstance(written[key], type_))
                for key, meant in lost.items()
            )
        }
        if "sets" in rest and written["sets"].keys() != rest["sets"].keys():
            unread.add("sets")
        yield pointer, frozenset(unread)


def _take_out(left: dict[str, Any], path: list[str]) -> None:
    """Take out what is at `path`, unless something around it went before."""
    inner: Any = left
    for part in path[:-1]:
        inner = inner[int(part)] if isinstance(inner, list) else inner.get(part, GAP)
        if inner is GAP:
            return
    last = path[-1]
    # Elsewhere, as among the names of sets, these words mean nothing.
    in_rule = path[-3:-2] in (["ingress"], ["egress"])
    if isinstance(inner, list):
        found = inner[int(last)]
        rule = isinstance(found, dict) and path[-2] in ("ingress", "egress") and path[-3:-2] != ["sets"]
        # What is wrong with an object itself is that something is missing in it.
        if rule:
            inner[int(last)] = {**_STAND_IN, **found}
        elif not isinstance(found, dict) or path[-2] not in _KEPT or path[-3:-2] == ["sets"]:
            inner[int(last)] = GAP
    elif len(path) == 1:
        inner[last] = GAP
    elif in_rule and last in _STAND_IN:
        inner[last] = _STAND_IN[last]
    else:
        for key in (last, *(_DEPENDENT.get(last, ()) if in_rule else ())):
            inner.pop(key, None)
        if path[-3:-2] == ["subnets"] and last not in _BESIDE_INSTANCES:
            # What was taken out may have been the instances; none is better than the one of the subnet's name.
            inner.setdefault("instances", [])
        if in_rule:
            # The removed part may have contained the action.
            inner.update({**_STAND_IN, **inner})


def _beside_what_is_left(document: Any, left: Any) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The policies of a file, and the object that holds them, each with its pointer and with what is left of it."""
    if isinstance(document, dict) and left is not GAP:
        yield "", document, left
    holds = isinstance(document, dict) and "policies" in document
    written, rest = (document["policies"], left["policies"]) if holds and left is not GAP else (document, left)
    if isinstance(written, list) and rest is not GAP:
        place = "/policies" if holds else ""
        for number, (policy, remainder) in enumerate(zip(written, rest, strict=False)):
            if remainder is not GAP:
                yield f"{place}/{number}", policy, remainder


def _meant(key: str, kind: str) -> str | None:
    """The field that an author who writes `key` in an object of that kind probably means; None if that is not known."""
    known = _fields(kind)
    return key if key in known else vocabulary.stands_for(key, kind) or reading.closest(key, known)


@functools.cache
def _fields(kind: str) -> list[str]:
    return sorted({*_DECISIVE, "policies"} | reading.load_schema("policy")["$defs"][kind]["properties"].keys())


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
