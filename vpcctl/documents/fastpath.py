"""A quick yes for documents that are valid by their schema.

jsonschema explains what is wrong, but takes a second for ten thousand rules or prefixes.  Here a schema is translated
once into nested functions that only say whether a document is valid, for the keywords that our schemas use (JSON Schema
Core and Validation, draft 2020-12).  An unknown keyword or kind of number raises Undecided.  Only a yes counts:
jsonschema decides in all other cases.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from vpcctl.documents.reading import load_schema

Check = Callable[[Any], bool]
Schema = dict[str, Any]

# Keywords that do not affect whether a document is valid.
ANNOTATIONS = frozenset({"$schema", "$defs", "title", "description", "x-words"})


class Undecided(Exception):
    """This module cannot decide whether the document is valid."""


def accepts(schema: str, document: Any) -> bool:
    """Is the document certainly valid by the schema, one of `reading.SCHEMAS`?"""
    try:
        return _reference(schema, "#")(document)
    except (Undecided, RecursionError):
        return False


def without_plain_parts(document: Any) -> Any:
    """An environment without those sets and policies in it that are certainly valid.

    What the schema says about the rest, and the places of it, are the same.
    """
    if not isinstance(document, dict) or not isinstance(document.get("vpcs"), list):
        return document
    return {**document, "vpcs": [_lightened(vpc, ("sets", "policy"), "subnets") for vpc in document["vpcs"]]}


def _lightened(document: Any, fields: tuple[str, ...], inner: str = "") -> Any:
    """An object without those of its `fields` that are valid; each is called as its definition is."""
    if not isinstance(document, dict):
        return document
    left = {key: value for key, value in document.items() if key not in fields or not _plain(key, value)}
    if isinstance(left.get(inner), list):
        left[inner] = [_lightened(one, ("policy",)) for one in left[inner]]
    return left


def _plain(definition: str, value: Any) -> bool:
    try:
        return _reference("policy", f"#/$defs/{definition}")(value)
    except (Undecided, RecursionError):
        return False


# -- schemas as functions ------------------------------------------------------------------------------------------


@functools.cache
def _reference(schema: str, pointer: str) -> Check:
    """The check for a part of a schema, by its JSON pointer."""
    part: Any = _schema(schema)
    for name in pointer.split("/")[1:]:
        part = part[name]
    return translated(schema, part)


@functools.cache
def _schema(name: str) -> Schema:
    return load_schema(name)


def translated(name: str, schema: Schema) -> Check:
    """The check that holds if every keyword's does; `name` is the document that `#` refers to."""
    keywords = schema.keys() - ANNOTATIONS
    unknown = keywords - KEYWORDS.keys() - BESIDE
    if unknown:
        return _undecided
    # In the order of the schema, which has the cheap and decisive keywords first.
    checks = [KEYWORDS[word](name, schema) for word in schema if word in KEYWORDS]
    if len(checks) == 1:
        return checks[0]

    def whole(value: Any) -> bool:
        for check in checks:  # noqa: SIM110 # all() with a generator takes twice as long
            if not check(value):
                return False
        return True

    return whole


def _undecided(value: Any) -> bool:
    raise Undecided


def _type(name: str, schema: Schema) -> Check:
    kinds = schema["type"]
    if isinstance(kinds, list):
        checks = [TYPES[kind] for kind in kinds]
        return lambda value: any(check(value) for check in checks)
    return TYPES[kinds]


def _integer(value: Any) -> bool:
    if isinstance(value, float):
        raise Undecided  # 80.0 is an integer to the schema
    return isinstance(value, int) and not isinstance(value, bool)


TYPES: dict[str, Check] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "integer": _integer,
}


def _pattern(name: str, schema: Schema) -> Check:
    # ECMA-262's `$` is the end of the text; Python's is also before a newline there.
    find = re.compile(re.sub(r"\$$", r"\\Z", schema["pattern"])).search
    return lambda value: not isinstance(value, str) or find(value) is not None


def _enum(name: str, schema: Schema) -> Check:
    known = schema["enum"]
    if not all(isinstance(value, str) for value in known):
        return _undecided
    allowed = frozenset(known)
    return lambda value: isinstance(value, str) and value in allowed


def _length(keyword: str, kind: type[str] | type[list[Any]]) -> Callable[[str, Schema], Check]:
    """The check for a least, or with a keyword of `max` a greatest, number of members."""

    def check(name: str, schema: Schema) -> Check:
        bound = schema[keyword]
        if keyword.startswith("max"):
            return lambda value: not isinstance(value, kind) or len(value) <= bound
        return lambda value: not isinstance(value, kind) or len(value) >= bound

    return check


def _bound(keyword: str) -> Callable[[str, Schema], Check]:
    def check(name: str, schema: Schema) -> Check:
        bound = schema[keyword]
        if keyword == "maximum":
            return lambda value: not _is_number(value) or value <= bound
        return lambda value: not _is_number(value) or value >= bound

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _required(name: str, schema: Schema) -> Check:
    fields = tuple(schema["required"])
    return lambda value: not isinstance(value, dict) or all(field in value for field in fields)


def _properties(name: str, schema: Schema) -> Check:
    """`properties` and `additionalProperties`, which depend on each other."""
    known = {field: translated(name, inner) for field, inner in schema.get("properties", {}).items()}
    more = schema.get("additionalProperties", True)
    other: Check = (lambda value: more) if isinstance(more, bool) else translated(name, more)

    def fields(value: Any) -> bool:
        if isinstance(value, dict):
            for field, inner in value.items():
                if not known.get(field, other)(inner):
                    return False
        return True

    return fields


def _additional(name: str, schema: Schema) -> Check:
    return (lambda value: True) if "properties" in schema else _properties(name, schema)


def _names(name: str, schema: Schema) -> Check:
    check = translated(name, schema["propertyNames"])
    return lambda value: not isinstance(value, dict) or all(map(check, value))


def _items(name: str, schema: Schema) -> Check:
    check = translated(name, schema["items"])
    return lambda value: not isinstance(value, list) or all(map(check, value))


def _condition(name: str, schema: Schema) -> Check:
    condition = translated(name, schema["if"])
    then, otherwise = (translated(name, schema.get(word, {"type": [*TYPES]})) for word in ("then", "else"))
    return lambda value: then(value) if condition(value) else otherwise(value)


def _elsewhere(name: str, schema: Schema) -> Check:
    place, pointer = schema["$ref"].split("#/")
    schema_name = place.removesuffix(".json") or name
    # A definition may refer to itself, so it is looked up on use.
    return lambda value: _reference(schema_name, f"#/{pointer}")(value)


KEYWORDS: dict[str, Callable[[str, Schema], Check]] = {
    "type": _type,
    "pattern": _pattern,
    "enum": _enum,
    "minLength": _length("minLength", str),
    "minItems": _length("minItems", list),
    "maxItems": _length("maxItems", list),
    "minimum": _bound("minimum"),
    "maximum": _bound("maximum"),
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional,
    "propertyNames": _names,
    "items": _items,
    "if": _condition,
    "$ref": _elsewhere,
}
# Handled together with `if`.
BESIDE = frozenset({"then", "else"})
