"""Our frozen dataclasses behave like those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pickle
import pkgutil
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, Generic, TypeVar

import pytest

import vpcctl
from vpcctl import values

Held = TypeVar("Held")


def make(dataclass: Callable[..., Callable[[type], type]]) -> dict[str, type]:
    """The same classes, made by a given decorator."""

    @dataclass(frozen=True, slots=True)
    class Empty:
        """Nothing."""

    @dataclass(frozen=True, slots=True)
    class One:
        """One field."""

        only: object

    @dataclass(frozen=True, slots=True, order=True)
    class Many:
        """All options that our fields use."""

        kind: ClassVar[str] = "many"
        first: int
        second: tuple[int, ...] = ()
        hidden: str = field(default="h", repr=False, compare=False)
        made: list[int] = field(default_factory=list, compare=False)
        total: int = field(init=False, repr=False, compare=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "total", self.first + sum(self.second))

    @dataclass(frozen=True, slots=True)
    class More(One):
        """Inherits a field."""

        kind: ClassVar = "more"
        further: object = 7

    @dataclass(frozen=True, slots=True)
    class Own:
        """Has methods of its own."""

        name: str
        note: str = ""

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own) and self.name == other.name

        def __str__(self) -> str:
            return self.name

        def __repr__(self) -> str:
            return f"<{self.name}>"

    @dataclass(frozen=True, slots=True)
    class Hashed:
        """Has a hash of its own."""

        name: str

        def __hash__(self) -> int:
            return 5

    @dataclass(frozen=True, slots=True)
    class Of(Generic[Held]):
        """A generic class."""

        held: Held

    return {cls.__name__: cls for cls in (Empty, One, Many, More, Own, Hashed, Of)}


OURS, STANDARD = make(values.dataclass), make(dataclasses.dataclass)
# For pickle, which looks a class up by its module and name.
for made in OURS.values():
    made.__qualname__ = made.__name__
    globals()[made.__name__] = made

# Class, arguments, named arguments: values whose pairs are compared with each other.
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Empty", (), {}),
    ("One", (3,), {}),
    ("One", ((3,),), {}),
    ("One", (None,), {}),
    ("Many", (1,), {}),
    ("Many", (1, (2, 3)), {"hidden": "other"}),
    ("Many", (), {"first": 1, "second": (2, 3), "made": [4]}),
    ("Many", (2, ()), {}),
    ("More", (3,), {}),
    ("More", (3, 8), {}),
    ("Own", ("a",), {}),
    ("Own", ("a", "b"), {}),
    ("Hashed", ("a",), {}),
    ("Of", (3,), {}),
]


def outcome(act: Callable[[], object]) -> object:
    """The result of an action: its value, or its error's type and message."""
    try:
        return act()
    except Exception as error:
        return type(error).__name__, str(error).replace("make.<locals>.", "")


@pytest.mark.parametrize(("name", "given", "named"), CALLS)
def test_a_value_is_as_the_standard_library_makes_it(name: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    mine, theirs = OURS[name](*given, **named), STANDARD[name](*given, **named)
    assert repr(mine) == repr(theirs).replace("make.<locals>.", "")
    assert str(mine) == str(theirs).replace("make.<locals>.", "")
    assert hash(mine) == hash(theirs)
    assert dataclasses.asdict(mine) == dataclasses.asdict(theirs)
    assert dataclasses.astuple(mine) == dataclasses.astuple(theirs)
    assert type(mine).__slots__ == type(theirs).__slots__
    assert type(mine).__match_args__ == type(theirs).__match_args__
    assert not hasattr(mine, "__dict__")
    for again in (copy.copy(mine), copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert again == mine
        assert dataclasses.astuple(again) == dataclasses.astuple(mine)
    attributes = [one.name for one in dataclasses.fields(mine)]
    for attribute in attributes:
        for act in (lambda value: setattr(value, attribute, 1), lambda value: delattr(value, attribute)):  # noqa: B023
            mine_says, theirs_say = outcome(lambda: act(mine)), outcome(lambda: act(theirs))  # noqa: B023
            assert mine_says == theirs_say
            assert mine_says[0] == "FrozenInstanceError"
    if attributes and attributes[0] != "total":
        changed = [dataclasses.replace(value, **{attributes[0]: 9}) for value in (mine, theirs)]
        assert dataclasses.astuple(changed[0]) == dataclasses.astuple(changed[1])


@pytest.mark.parametrize("compare", ["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"])
def test_values_compare_as_the_standard_library_compares_them(compare: str) -> None:
    for name, given, named in CALLS:
        for other, others, also in CALLS:
            found = [
                outcome(lambda: getattr(made[name](*given, **named), compare)(made[other](*others, **also)))  # noqa: B023
                for made in (OURS, STANDARD)
            ]
            assert found[0] == found[1], (name, other)


@pytest.mark.parametrize(
    ("name", "given", "named"),
    [
        ("Empty", (1,), {}),
        ("One", (), {}),
        ("One", (1, 2), {}),
        ("Many", (1,), {"total": 2}),
        ("Many", (1,), {"first": 2}),
        ("Own", (), {"note": "b"}),
    ],
)
def test_wrong_arguments_are_refused_in_the_same_words(
    name: str, given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    for _ in range(2):  # the second call uses the compiled method
        mine, theirs = (outcome(lambda: made[name](*given, **named)) for made in (OURS, STANDARD))  # noqa: B023
        assert mine == theirs
        assert mine[0] == "TypeError"


def test_a_value_that_holds_itself_is_shown() -> None:
    held: list[object] = []
    held.append(OURS["One"](held))
    assert repr(held[0]) == "One(only=[...])"


def test_what_is_asked_for_and_not_known_is_refused() -> None:
    class Keyword:
        """A keyword-only field."""

        one: int = field(kw_only=True)

    with pytest.raises(TypeError, match=r"Keyword\.one"):
        values.dataclass(frozen=True, slots=True)(Keyword)


def test_others_are_the_standard_librarys() -> None:
    class Changing:
        """Not frozen."""

        one: int = 1

    made = values.dataclass(slots=True)(Changing)()
    made.one = 2
    assert made == dataclasses.replace(made)


def test_every_frozen_class_of_ours_is_made_this_way() -> None:
    """A frozen dataclass of the standard library costs each command that imports it a millisecond."""
    found = []
    for module in pkgutil.walk_packages(vpcctl.__path__, "vpcctl."):
        if module.name.endswith("__main__"):
            continue
        for thing in vars(importlib.import_module(module.name)).values():
            if isinstance(thing, type) and dataclasses.is_dataclass(thing) and thing.__module__ == module.name:
                found.append(thing)
    assert len(found) > 100
    assert not [one for one in found if one.__dataclass_params__.frozen]  # type: ignore[attr-defined]
