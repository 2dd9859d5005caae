"""What is left of a document when its wrong parts are taken out, so that the rest can be read for further problems."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from vpcctl.documents.reading import escape
from vpcctl.errors import Problem

# Stands in an array where something wrong stood, so that what follows keeps its place.
GAP: Any = object()
# What is wrong is put aside with what cannot be understood without it.
_DEPENDENT = {"protocol": ("port", "icmp_type")}
# The arrays of objects that can be read although something is missing in them.
_KEPT = ("vpcs", "subnets", "instances", "publish")
# The fields of a subnet that cannot stand for its instances.
_BESIDE_INSTANCES = ("name", "cidr", "type", "nat_gateway", "policy")
# A rule without an action is none; with this one the rest of it can be read.
_STAND_IN = {"action": "allow"}


def remains(document: Any, problems: Iterable[Problem]) -> Any:
    """A copy of the parsed JSON `document` without the values at the pointers of `problems`; GAP if nothing is left."""
    left = {"": _copy(document)}
    for problem in problems:
        _take_out(left, ["", *map(_unescape, problem.pointer.split("/")[1:])])
    return left[""]


def pointers(value: Any, pointer: str = "") -> Iterator[str]:
    """The JSON pointers of `value` and of all that is in it, in the order in which they stand."""
    yield pointer
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from pointers(inner, f"{pointer}/{escape(key)}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from pointers(inner, f"{pointer}/{number}")


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
            # What was taken out may have stood for the action.
            inner.update({**_STAND_IN, **inner})


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
