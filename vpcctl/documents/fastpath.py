"""A quick yes for policies that are plainly valid.

jsonschema explains what is wrong, but takes a second for ten thousand rules or prefixes.  `plainly_valid` answers yes
only where the schema would; where it says no, the schema decides.  Its patterns and fields are the schema's own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from vpcctl.documents.reading import load_schema

Check = Callable[[Any], bool]
# The fields that one object may have beside `policies`.
BESIDE_POLICIES = frozenset({"vpc", "sets", "description"})


def plainly_valid(document: Any) -> bool:
    """Is this a policy, or an array or collection of policies, whose every field is of the plain kind?"""
    if isinstance(document, list):
        return _all(document)
    if isinstance(document, dict) and "policies" in document:
        rest = {key: value for key, value in document.items() if key != "policies"}
        policies = document["policies"]
        return rest.keys() <= BESIDE_POLICIES and _policy(rest) and isinstance(policies, list) and _all(policies)
    return _policy(document)


def without_plain_parts(document: Any) -> Any:
    """An environment without those sets and policies in it that are plainly valid.

    What the schema says about the rest, and the places of it, are the same.
    """
    if not isinstance(document, dict) or not isinstance(document.get("vpcs"), list):
        return document
    return {**document, "vpcs": [_lightened(vpc, "sets", _sets, "subnets") for vpc in document["vpcs"]]}


def _lightened(document: Any, field: str, check: Check, inner: str = "") -> Any:
    if not isinstance(document, dict):
        return document
    left = {key: value for key, value in document.items() if key != field or not check(value)}
    if isinstance(left.get(inner), list):
        left[inner] = [_lightened(one, "policy", _policy) for one in left[inner]]
    return left


def _all(documents: list[Any]) -> bool:
    return all(map(_policy, documents))


def _sets(document: Any) -> bool:
    name, prefix = _set_checks()
    return isinstance(document, dict) and all(
        name(key) and isinstance(values, list) and all(map(prefix, values)) for key, values in document.items()
    )


def _policy(document: Any) -> bool:
    """A policy of strings, sets and rules; anything beyond (defaults) is left to the schema."""
    if not isinstance(document, dict):
        return False
    checks = _policy_checks()
    return all(key in checks and checks[key](value) for key, value in document.items())


def _rule(document: Any) -> bool:
    checks = _rule_checks()
    return (
        isinstance(document, dict)
        and "action" in document
        and all(key in checks and checks[key](value) for key, value in document.items())
    )


def _text(value: Any) -> bool:
    return isinstance(value, str)


@functools.cache
def _policy_checks() -> dict[str, Check]:
    fields = load_schema("policy")["$defs"]["policy"]["properties"]
    rules: Check = lambda value: isinstance(value, list) and all(map(_rule, value))  # noqa: E731
    return {
        "vpc": _matching(load_schema("policy")["$defs"]["name"]["pattern"]),
        "subnet": _matching(fields["subnet"]["pattern"]),
        "sets": _sets,
        "ingress": rules,
        "egress": rules,
        "description": _text,
    }


@functools.cache
def _set_checks() -> tuple[Check, Check]:
    known = load_schema("policy")["$defs"]
    return _matching(known["name"]["pattern"]), _matching(known["prefix"]["pattern"])


@functools.cache
def _rule_checks() -> dict[str, Check]:
    known = load_schema("policy")["$defs"]
    fields = known["rule"]["properties"]
    actions = frozenset(fields["action"]["enum"])
    port_text = _matching(known["port"]["then"]["pattern"])
    port = known["port"]["else"]
    endpoint = _matching(known["endpoint"]["pattern"])
    return {
        "action": lambda value: isinstance(value, str) and value in actions,
        "protocol": _matching(known["protocol"]["then"]["pattern"]),
        "port": _one_or_many(
            lambda value: (
                port_text(value)
                if isinstance(value, str)
                else type(value) is int and port["minimum"] <= value <= port["maximum"]
            )
        ),
        "source": _one_or_many(endpoint),
        "destination": _one_or_many(endpoint),
        "log": lambda value: isinstance(value, bool),
        "description": _text,
    }


def _matching(pattern: str) -> Check:
    # The schema's patterns are anchored; ECMA-262's `$` is the end of the text, Python's is not.
    find = re.compile(pattern.removesuffix("$") + r"\Z").match
    return lambda value: isinstance(value, str) and find(value) is not None


def _one_or_many(check: Check) -> Check:
    return lambda value: all(map(check, value)) if isinstance(value, list) else check(value)
