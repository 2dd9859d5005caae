"""A quick yes for policies that are plainly valid.

jsonschema explains what is wrong, but takes a second for ten thousand rules.  `plainly_valid` answers yes only where
the schema would; where it says no the schema has the word.  Its patterns and fields are the schema's own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from vpcctl.documents import load_schema

Check = Callable[[Any], bool]


def plainly_valid(document: Any) -> bool:
    """Is this a policy, or an array or collection of policies, whose every field is of the plain kind?"""
    if isinstance(document, list):
        return all(map(_policy, document))
    if isinstance(document, dict) and "policies" in document:
        rest = {key: value for key, value in document.items() if key != "policies"}
        return isinstance(document["policies"], list) and _policy(rest) and all(map(_policy, document["policies"]))
    return _policy(document)


def _policy(document: Any) -> bool:
    """A policy of strings and rules; anything beyond (sets, defaults) is left to the schema."""
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
        "ingress": rules,
        "egress": rules,
        "description": _text,
    }


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
