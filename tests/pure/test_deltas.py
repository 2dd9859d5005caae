"""The difference between two JSON documents leads from the one to the other, and is small."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpcctl.documents.deltas import applied, delta

SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.text("ab", max_size=2)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=1), inner),
    max_leaves=12,
)


def written(document: Any) -> Any:
    """A document as it is read again."""
    return json.loads(json.dumps(document))


@given(DOCUMENTS, DOCUMENTS)
def test_a_delta_leads_from_one_document_to_the_other(one: Any, other: Any) -> None:
    found = applied(one, written(delta(one, other)))
    # Its text: the order of keys and the types of numbers are the same, too.
    assert json.dumps(found) == json.dumps(other)


@given(DOCUMENTS)
def test_equal_documents_have_no_delta(document: Any) -> None:
    assert delta(document, written(document)) is None


@given(DOCUMENTS, DOCUMENTS)
def test_documents_are_left_as_they_are(one: Any, other: Any) -> None:
    texts = json.dumps(one), json.dumps(other)
    applied(one, delta(one, other))
    assert (json.dumps(one), json.dumps(other)) == texts


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, ["{", {"b": ["=", 3]}, []]),
        ({"a": 1, "b": 2}, {"b": 2, "c": 3}, ["{", {"c": ["=", 3]}, ["a"]]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, ["{", {}, [], ["b", "a"]]),
        ([1, 2, 3], [1, 3], ["[", 1, 1, []]),
        ([1, 3], [1, 2, 3], ["[", 1, 0, [2]]),
        ([{"n": 1, "m": [1]}, 2], [{"n": 1, "m": [2]}, 2], ["#", 0, [["{", {"m": ["[", 0, 1, [2]]}, []]]]),
        (True, 1, ["=", 1]),
        ([1], {"a": 1}, ["=", {"a": 1}]),
    ],
)  # fmt: skip
def test_a_delta_holds_what_differs(one: Any, other: Any, expected: Any) -> None:
    assert delta(one, other) == expected


@pytest.mark.parametrize("change", [["[", 2, 2, []], ["#", 1, [None, None]], ["?"], ["{", {}], 5, ["[", -1, 0, []]])
def test_a_delta_that_does_not_fit_is_refused(change: Any) -> None:
    with pytest.raises(ValueError, match=r"delta|fewer"):
        applied([1, 2], change)
