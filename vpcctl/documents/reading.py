"""JSON files as documents: strict reading, which reports all structural problems at once.

The schemas in ``schema/`` are the contract (JSON Schema 2020-12).  Each node that a person can get wrong has a
``title`` that completes the sentence "… is not …".
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from vpcctl.errors import DocumentError, Problem

# Deeper than any document of ours, far below what would exhaust the interpreter.
DEEPEST = 32
# About ten times what a policy of 100,000 rules has; in memory a value takes up to a hundred bytes.
MOST_VALUES = 5_000_000
# More than the largest number that means anything, far below what takes time to convert.
MOST_DIGITS = 100
LONGEST_QUOTE = 60
LONGEST_WORD = 64
BEGINS_WITH_MARK = "the file begins with a byte order mark; save it as UTF-8 without BOM"
BYTE_ORDER_MARK = "\ufeff"
TOO_DEEP = "this is nested too deeply to be a document of ours"
# Replaces, in a place, a key that was found in a document.
HIDDEN = "…"
SCHEMAS = ("policy", "environment", "assertions")


class _Object(dict[str, Any]):
    """A JSON object that remembers the keys that occurred twice."""

    duplicates: tuple[str, ...] = ()


def parse(text: str, file: str) -> Any:
    """The JSON value in `text`; DocumentError for invalid or ambiguous JSON (RFC 8259, 4)."""
    if text.startswith(BYTE_ORDER_MARK):
        raise DocumentError(_whole(file, BEGINS_WITH_MARK))
    values = sum(map(text.count, "[{,"))
    if values > MOST_VALUES:
        raise DocumentError(_whole(file, f"too many values; at most {MOST_VALUES} are allowed"))
    try:
        document = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_int=_whole_number,
            parse_float=_fraction,
        )
    except json.JSONDecodeError as error:
        raise DocumentError(_not_json(text, file, error)) from error
    except RecursionError as error:
        raise DocumentError(_whole(file, TOO_DEEP)) from error
    except ValueError as error:
        raise DocumentError(Problem(file, "", f"this is not JSON ({error})", "JSON is expected")) from error
    problems = list(_ambiguities(document, file, "", "", 0))
    if problems:
        raise DocumentError(*problems)
    return document


def _not_json(text: str, file: str, error: json.JSONDecodeError) -> Problem:
    from vpcctl.documents import notations

    place = f"line {error.lineno}, column {error.colno}"
    # The decoder's message names what is expected, and shows no content of the document.
    expected = f"this is not JSON ({place}: {error.msg})"
    known = notations.explanation(text, error.pos)
    words = f"this is not JSON ({place}: {known[0]}); {known[1]}" if known else expected
    return Problem(file, "", words, expected)


def _whole(file: str, words: str) -> Problem:
    """A problem of a whole file, in a message that shows nothing of its content."""
    return Problem(file, "", words, words)


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        again = []
        for key, _ in pairs:
            if key in seen:
                again.append(key)
            seen.add(key)
        made.duplicates = tuple(again)
    return made


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON value")


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits; at most {MOST_DIGITS} are allowed")
    return int(digits)


def _fraction(digits: str) -> float:
    found = float(digits)
    if math.isinf(found):
        raise ValueError(f"{digits[:LONGEST_QUOTE]} is too large a number")
    return found


def _ambiguities(value: Any, file: str, pointer: str, place: str, depth: int) -> Iterator[Problem]:
    """Duplicate keys and too much depth."""
    if depth > DEEPEST:
        yield Problem(file, pointer, TOO_DEEP, TOO_DEEP, place)
    elif isinstance(value, dict):
        for key in getattr(value, "duplicates", ()):
            words = f"the key {_shortened(key)!r} is here twice; keep one"
            yield Problem(file, f"{pointer}/{escape(key)}", words, "an object has the same key twice; keep one", place)
        for key, inner in value.items():
            if isinstance(inner, (dict, list)):
                beside = f"{place}/{HIDDEN}"
                yield from _ambiguities(inner, file, f"{pointer}/{escape(key)}", beside, depth + 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            if isinstance(inner, (dict, list)):
                yield from _ambiguities(inner, file, f"{pointer}/{number}", f"{place}/{number}", depth + 1)


def escape(key: str) -> str:
    """A key as a part of a JSON pointer (RFC 6901, 3)."""
    return key.replace("~", "~0").replace("/", "~1")


def structure_problems(document: Any, schema: str, file: str) -> list[Problem]:
    """Everything in which `document` departs from the schema `schema`, one of SCHEMAS, in order."""
    found = {problem: None for error in _validator(schema).iter_errors(document) for problem in _told(error, file)}
    return list(found)


def kind_of(document: Any) -> str | None:
    """Which document `document` plainly is by its fields: an environment, a policy (or several), or neither."""
    if isinstance(document, list) and document:
        kinds = {kind_of(inner) for inner in document}
        return "policy" if kinds == {"policy"} else None
    fields = set(document) if isinstance(document, dict) else set()
    mine, others = fields & {"vpcs", "peerings"}, fields & {"policies", "ingress", "egress", "subnet", "default"}
    return None if bool(mine) == bool(others) else "environment" if mine else "policy"


def load_schema(name: str) -> dict[str, Any]:
    """One of the schemas that the package ships."""
    from importlib import resources

    schema: dict[str, Any] = json.loads(
        resources.files("vpcctl").joinpath(f"schema/{name}.json").read_text(encoding="utf-8")
    )
    return schema


def whole_schema(name: str) -> dict[str, Any]:
    """A schema with those that it refers to inside, as editors and validators take it (JSON Schema Core, 9.3)."""
    schema = load_schema(name)
    others = [other for other in SCHEMAS if other != name and f'"{other}.json#' in json.dumps(schema)]
    inside = {other: {"$id": f"{other}.json", **load_schema(other)} for other in others}
    return {**schema, "$defs": {**schema.get("$defs", {}), **inside}}


@functools.cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend
    from referencing import Registry, Resource

    known = {f"{schema}.json": Resource.from_contents(load_schema(schema)) for schema in SCHEMAS}
    registry = Registry().with_resources(known.items())
    extended = extend(Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call] # its stub has no types
    return extended(load_schema(name), registry=registry)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    """The keyword `pattern` as ECMA-262 has it: `$` is the end of the text, and not a newline before it too."""
    from jsonschema import ValidationError

    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _told(error: Any, file: str) -> Iterator[Problem]:
    """One error of jsonschema as problems in our words."""
    from vpcctl.documents import vocabulary

    pointer = "".join(f"/{escape(str(part))}" for part in error.absolute_path)
    place = "".join(f"/{part}" for part in _known_parts(error.absolute_path))
    title = _title(error)
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        allowed = error.schema.get("properties", ())
        # What is for editors is no word of ours.
        known = sorted(field for field in allowed if not field.startswith("$"))
        kind_here = vocabulary.kind_by_fields(known)
        for key in error.instance:
            if key not in allowed and known:
                advice = vocabulary.field_hint(key, kind_here, error.absolute_path) or nearest(key, known)
                words = f"unknown field {_shortened(key)!r}; {advice}"
                expected = f"only these fields are expected here: {', '.join(known)}"
                yield Problem(file, f"{pointer}/{escape(key)}", words, expected, place)
    elif error.validator == "required":
        owner = error.instance.get("name")
        kind = title.removesuffix(" (an object)").partition(" ")[2]
        inside = f" in {kind} {quote(owner)}" if isinstance(owner, str) else ""
        kind_here = vocabulary.kind_by_fields(error.schema["properties"])
        meant = {vocabulary.stands_for(key, kind_here) for key in error.instance}
        for key in error.validator_value:
            # A field by another name is a problem already.
            if key not in error.instance and key not in meant:
                wanted = error.schema["properties"][key]["title"]
                rest = f"{wanted} is expected"
                expected = f"the field {key!r} is missing: {rest}"
                yield Problem(file, pointer, f"the field {key!r} is missing{inside}: {rest}", expected, place)
    elif "propertyNames" in error.absolute_schema_path:
        words = f"{quote(error.instance)} is not {title}"
        yield Problem(file, f"{pointer}/{escape(str(error.instance))}", words, f"{title} is expected as a key", place)
    else:
        known = error.validator_value if error.validator == "enum" else error.schema.get("x-words")
        meaning = _advice(error) or (nearest(error.instance, known) if known else None)
        hint = f"; {meaning}" if meaning else ""
        yield Problem(file, pointer, f"{quote(error.instance)} is not {title}{hint}", f"{title} is expected", place)


def _advice(error: Any) -> str | None:
    """What to write instead of a word of another firewall."""
    from vpcctl.documents import vocabulary

    path = list(error.absolute_path)
    named = [part for part in _known_parts(path) if isinstance(part, str)]
    if not named or "sets" in named:
        return None
    if "default" in named or named[-1] == "action":
        return vocabulary.action_hint(error.instance, "default" in named)
    return vocabulary.value_hint(named[-1], error.instance, "publish" in named)


def _known_parts(path: Iterable[str | int]) -> Iterator[str | int]:
    """The parts of a path, with names that the document gives hidden: those of its sets."""
    before: str | int = ""
    for part in path:
        yield HIDDEN if before == "sets" else part
        before = "" if before == "sets" else part


def _title(error: Any) -> str:
    """What was expected at the place of `error`: the nearest title above it in the schema."""
    while error is not None:
        if isinstance(error.schema, dict) and "title" in error.schema:
            title: str = error.schema["title"]
            return title
        error = error.parent
    return "what is expected here"


def nearest(word: Any, known: list[str]) -> str:
    """A hint for a typo: the nearest of `known`, else all of them."""
    close = closest(word, known)
    return f"did you mean {close!r}?" if close else "expected: " + ", ".join(known)


def closest(word: Any, known: list[str]) -> str | None:
    """The one of `known` for which `word` may be a typo; None if it is like none of them."""
    import difflib

    text = str(word).lower()
    # A longer word is not a typo, and comparing it takes time.
    close = difflib.get_close_matches(text, known, n=1) if len(text) <= LONGEST_WORD else []
    return close[0] if close else None


def quote(value: Any) -> str:
    """A JSON value as it was found, shortened where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return _shortened(text)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 1] + "…"
