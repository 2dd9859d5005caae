"""In which fields two values differ, read from their type: a field that is added later is compared from the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any


def differing(one: Any, other: Any, ignoring: Collection[str] = ()) -> frozenset[str]:
    """The names of the fields in which two dataclass values of one type differ; those `ignoring` are not looked at."""
    if one is other:
        return frozenset()
    fields = (field.name for field in dataclasses.fields(other) if field.compare and field.name not in ignoring)
    return frozenset(name for name in fields if getattr(one, name) != getattr(other, name))
