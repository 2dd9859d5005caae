"""The `dataclass` of the standard library, made in a tenth of the time where it is frozen and has slots.

The standard library compiles six functions for each class, which takes about a millisecond.  A command imports some
eighty classes, and makes values of half of them.  Here a method is compiled when it is first called.  The standard
library does everything else, and sees an ordinary dataclass: `fields`, `replace`, `asdict`, pattern matching and
pickling work as usual.
"""

from __future__ import annotations

import dataclasses as standard
from operator import ge, gt, le, lt
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen: bool = False, slots: bool = False, order: bool = False) -> Callable[[type], type]:
        """`dataclasses.dataclass` with these of its arguments."""
        if frozen and slots:
            return lambda cls: _value_class(cls, order)
        return standard.dataclass(frozen=frozen, slots=slots, order=order)


ORDER = {"__lt__": lt, "__le__": le, "__gt__": gt, "__ge__": ge}


def _value_class(cls: type, order: bool) -> type:
    stated = {name for name, value in vars(cls).items() if value is not None}  # a __hash__ of None is not its own
    made: type = standard.dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    for field in standard.fields(made):
        if field.kw_only or field.hash is not None or not (field.init or field.default is standard.MISSING):
            raise TypeError(f"{cls.__name__}.{field.name} uses an option that `values` does not support")
    methods: dict[str, Any] = {
        "__init__": _late(made, "__init__", _init),
        "__eq__": _late(made, "__eq__", _eq),
        "__hash__": _late(made, "__hash__", _hash),
        "__repr__": _repr,
        "__getstate__": _state,
        "__setstate__": _set_state,
        "__setattr__": _refuse_assignment,
        "__delattr__": _refuse_deletion,
    }
    if order:
        methods |= {name: _order(compare) for name, compare in ORDER.items()}
    for name, method in methods.items():
        if name not in stated:
            setattr(made, name, method)
    return made


def _late(made: type, name: str, compiled: Callable[[type], Any]) -> Callable[..., Any]:
    """A method that replaces itself with the compiled one."""

    def method(*values: Any, **named: Any) -> Any:
        found = compiled(made)
        setattr(made, name, found)
        return found(*values, **named)

    return method


def _init(made: Any) -> Any:
    """Each field goes straight into its slot."""
    scope: dict[str, Any] = {"_unset": object()}
    parameters, lines = ["self"], []
    for field in standard.fields(made):
        name = field.name
        if not field.init:
            continue
        if field.default is not standard.MISSING:
            scope[f"_default_{name}"] = field.default
            parameters.append(f"{name}=_default_{name}")
        elif field.default_factory is not standard.MISSING:
            scope[f"_make_{name}"] = field.default_factory
            parameters.append(f"{name}=_unset")
            lines.append(f"if {name} is _unset: {name} = _make_{name}()")
        else:
            parameters.append(name)
        scope[f"_set_{name}"] = getattr(made, name).__set__
        lines.append(f"_set_{name}(self, {name})")
    if hasattr(made, "__post_init__"):
        lines.append("self.__post_init__()")
    return _compiled(made, "__init__", parameters, lines, scope)


def _eq(made: Any) -> Any:
    mine, other = _compared(made, "self"), _compared(made, "other")
    lines = ["if other.__class__ is not self.__class__: return NotImplemented", f"return {mine} == {other}"]
    return _compiled(made, "__eq__", ["self", "other"], lines, {})


def _hash(made: Any) -> Any:
    return _compiled(made, "__hash__", ["self"], [f"return hash({_compared(made, 'self')})"], {})


def _compared(made: Any, name: str) -> str:
    """The tuple of the compared fields, as an expression."""
    return f"({''.join(f'{name}.{field.name}, ' for field in standard.fields(made) if field.compare)})"


def _compiled(made: type, name: str, parameters: list[str], lines: list[str], scope: dict[str, Any]) -> Any:
    scope["__name__"] = made.__module__
    body = "".join(f"\n    {line}" for line in lines or ["pass"])
    exec(f"def {name}({', '.join(parameters)}):{body}", scope)
    scope[name].__qualname__ = f"{made.__qualname__}.{name}"
    return scope[name]


def _order(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        names = [field.name for field in standard.fields(self) if field.compare]
        return compare([getattr(self, name) for name in names], [getattr(other, name) for name in names])

    return method


@recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in standard.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in standard.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(standard.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)


def _refuse_assignment(self: Any, name: str, value: object) -> None:
    raise standard.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deletion(self: Any, name: str) -> None:
    raise standard.FrozenInstanceError(f"cannot delete field {name!r}")
