"""The difference between two JSON documents as a JSON document: small where they have most in common.

A delta leads from one document to another, and holds only what the other one has and the first has not:

    null                       both are equal
    ["=", VALUE]               the other one is VALUE
    ["{", CHANGES, KEYS]       of two objects: a delta for each key that changes or comes, and the keys that go
    ["{", CHANGES, KEYS, ALL]  the same, with all keys in their order, where they would have another one
    ["[", AT, COUNT, VALUES]   of two arrays: VALUES in place of COUNT elements from AT on
    ["#", AT, DELTAS]          of two arrays: each element from AT on has a delta of its own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Delta = list[Any] | None


def delta(one: Any, other: Any) -> Delta:
    """What leads from `one` to `other`."""
    if isinstance(one, dict) and isinstance(other, dict):
        return _of_objects(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return _of_arrays(one, other)
    return None if _equal(one, other) else ["=", other]


def _of_objects(one: dict[str, Any], other: dict[str, Any]) -> Delta:
    changes = {key: delta(one[key], value) if key in one else ["=", value] for key, value in other.items()}
    changes = {key: found for key, found in changes.items() if found is not None}
    gone = [key for key in one if key not in other]
    found = ["{", changes, gone]
    # Objects of ours have an order: that of a VPC's sets, for one.
    if [*(key for key in one if key in other), *(key for key in other if key not in one)] != list(other):
        return [*found, list(other)]
    return found if changes or gone else None


def _of_arrays(one: list[Any], other: list[Any]) -> Delta:
    start = _common(one, other)
    left, right = one[start:], other[start:]
    end = _common(left[::-1], right[::-1])
    if end:
        left, right = left[:-end], right[:-end]
    if not left and not right:
        return None
    if len(left) == len(right) and all(_nested(*pair) for pair in zip(left, right, strict=True)):
        return ["#", start, [delta(*pair) for pair in zip(left, right, strict=True)]]
    return ["[", start, len(left), right]


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements at the beginning are equal."""
    number = 0
    for mine, theirs in zip(one, other, strict=False):
        if not _equal(mine, theirs):
            break
        number += 1
    return number


def _equal(one: Any, other: Any) -> bool:
    # To Python 1 equals true, and objects are equal in any order.
    return one is other or bool(one == other and repr(one) == repr(other))


def _nested(one: Any, other: Any) -> bool:
    return isinstance(one, (dict, list)) and type(one) is type(other)


def applied(document: Any, change: Delta) -> Any:
    """The document to which `change` leads; KeyError, TypeError, ValueError or IndexError if it does not fit."""
    match change:
        case None:
            return document
        case ["=", value]:
            return value
        case ["{", dict() as changes, list() as gone, *rest]:
            kept = {key: value for key, value in document.items() if key not in gone}
            found = kept | {key: applied(kept.get(key), part) for key, part in changes.items()}
            return {key: found[key] for key in rest[0]} if rest else found
        case ["[", int() as start, int() as count, list() as values]:
            if not 0 <= start <= start + count <= len(document):
                raise ValueError("the document has fewer elements")
            return [*document[:start], *values, *document[start + count :]]
        case ["#", int() as start, list() as parts]:
            if not 0 <= start <= start + len(parts) <= len(document):
                raise ValueError("the document has fewer elements")
            changed = [applied(document[start + number], part) for number, part in enumerate(parts)]
            return [*document[:start], *changed, *document[start + len(parts) :]]
    raise ValueError("not a delta")
