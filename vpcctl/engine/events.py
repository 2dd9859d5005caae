"""What the engine reports while it works; ``str(event)`` is the message for a person."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.documents.diff import ObjectChange
    from vpcctl.resources.plan import Step


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that a person should know now, such as that an interrupted change is resumed."""

    words: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True, slots=True)
class StepTaken:
    """A step that was taken in the kernel: details for those who want them."""

    step: Step

    def __str__(self) -> str:
        return f"  {self.step}"


@dataclass(frozen=True, slots=True)
class Progress:
    """Part `number` of `total` of a long command begins."""

    number: int
    total: int
    label: str

    def __str__(self) -> str:
        return f"[{self.number}/{self.total}] {self.label}"


@dataclass(frozen=True, slots=True)
class ObjectChanged:
    """An object that came, went or changed."""

    change: ObjectChange

    def __str__(self) -> str:
        return str(self.change)


Event = Remark | StepTaken | Progress | ObjectChanged
Report = Callable[[Event], None]


def unheard(event: Event) -> None:
    """Discard all reports."""
