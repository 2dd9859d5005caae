"""Lists of the record, decoded on first use.

Most commands use little of what is on record.  Rules, prefixes and objects that are not used stay encoded: they are
compared by their encoding and written back unchanged.  Long lists are in files of their own, which are not even read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, overload

from vpcctl.errors import VpcctlError

Value = TypeVar("Value")
Damaged = Callable[[Exception], Exception]
# What reading a document of the record raises where it is none.
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, VpcctlError)


class Apart(Protocol):
    """An array of the record that is read on first use; equal marks mean equal arrays."""

    @property
    def mark(self) -> str: ...

    @property
    def length(self) -> int | None:
        """How many elements it has, if that is known without reading it."""

    def read(self) -> list[Any]:
        """The array; StateError if it is lost or damaged."""

    def damaged(self, words: object) -> Exception:
        """The error that the array is damaged."""


class Kept(Sequence[Value]):
    """A sequence that is in the record as the JSON array `kept`, or `apart`; it compares like a tuple.

    `decode` makes the values, with the arguments `more`; what it raises for a wrong array goes through `damaged`.
    """

    __slots__ = ("_damaged", "_decode", "_kept", "_more", "_values", "apart")

    def __init__(self, kept: list[Any] | Apart, damaged: Damaged, decode: Callable[..., tuple[Value, ...]], *more: Any):
        self._kept: list[Any] | None = None
        self.apart: Apart | None = None
        if isinstance(kept, list):
            self._kept = kept
        elif hasattr(kept, "mark"):
            self.apart = kept
        else:
            raise TypeError("an array is expected")
        self._damaged, self._decode, self._more = damaged, decode, more
        self._values: tuple[Value, ...] | None = None

    @property
    def kept(self) -> list[Any]:
        """The array, read once."""
        if self._kept is None:
            assert self.apart is not None, "an array is here or apart"
            self._kept = self.apart.read()
        return self._kept

    @property
    def values(self) -> tuple[Value, ...]:
        """The values, decoded once."""
        if self._values is None:
            # Reading raises an error of its own.
            kept = self.kept
            try:
                self._values = self._decode(kept, *self._more)
            except DAMAGE as error:
                raise self._damaged(error) from error
        return self._values

    def __len__(self) -> int:
        known = None if self.apart is None else self.apart.length
        return len(self.kept) if known is None else known

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
            if (self._decode, self._more) == (other._decode, other._more) and self._written_like(other):
                return True
        elif not isinstance(other, tuple):
            return NotImplemented
        # Lists of different lengths differ, whatever is in them.
        return len(self) == len(other) and self.values == tuple(other)

    def _written_like(self, other: Kept[Any]) -> bool:
        """Are both encoded equally?  An array in a file of its own is not read for this."""
        if self.apart is not None and other.apart is not None:
            return self.apart.mark == other.apart.mark
        return len(self) == len(other) and self.kept == other.kept

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return repr(self.values)
