"""In which fields two values differ, read from their type: a field that is added later is compared from the start."""

from __future__ import annotations

import dataclasses
from typing import Any


def differing(one: Any, other: Any) -> frozenset[str]:
    """The names of the fields in which two dataclass values of one type differ."""
    fields = (field.name for field in dataclasses.fields(other) if field.compare)
    return frozenset(name for name in fields if getattr(one, name) != getattr(other, name))
