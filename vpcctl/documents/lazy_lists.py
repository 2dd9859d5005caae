"""Long lists of the record, decoded on first use.

Every command reads the whole record, and most ask for one VPC: the rules and prefixes of the others stay as they were
written, are equal where they were written equally, and are written back as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

from vpcctl.errors import VpcctlError

Value = TypeVar("Value")
Damaged = Callable[[Exception], Exception]
# What reading a document of the record raises where it is none.
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, VpcctlError)


class Kept(Sequence[Value]):
    """A sequence that is in the record as the JSON array `kept`; it compares like a tuple.

    `decode` makes the values, with the arguments `more`; what it raises for a wrong array goes through `damaged`.
    """

    __slots__ = ("_damaged", "_decode", "_more", "_values", "kept")

    def __init__(self, kept: Any, damaged: Damaged, decode: Callable[..., tuple[Value, ...]], *more: Any):
        if not isinstance(kept, list):
            raise TypeError("an array is expected")
        self.kept, self._damaged, self._decode, self._more = kept, damaged, decode, more
        self._values: tuple[Value, ...] | None = None

    @property
    def values(self) -> tuple[Value, ...]:
        """The values, decoded once."""
        if self._values is None:
            try:
                self._values = self._decode(self.kept, *self._more)
            except DAMAGE as error:
                raise self._damaged(error) from error
        return self._values

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, place: int) -> Value: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Value, ...]: ...
    def __getitem__(self, place: Any) -> Any:
        return self.values[place]

    def __iter__(self) -> Iterator[Value]:
        return iter(self.values)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, Kept):
            if (self._decode, self._more, self.kept) == (other._decode, other._more, other.kept):
                return True
        elif not isinstance(other, tuple):
            return NotImplemented
        # Lists of different lengths differ, whatever is in them.
        return len(self) == len(other) and self.values == tuple(other)

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return repr(self.values)
