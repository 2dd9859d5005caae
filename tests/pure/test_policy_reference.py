"""docs/policy.md says what the schema says."""

import json
import re

import pytest

from tests.reference import DOCS, PARTS, filled
from vpcctl.documents.policies import read_policies
from vpcctl.documents.reading import parse, structure_problems

PAGES = sorted(page.name for page in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_generated_tables_are_those_of_the_schema(page):
    text = (DOCS / page).read_text()
    assert filled(text) == text, "the schema has changed: run `python -m tests.reference`"


def test_a_changed_table_would_be_noticed():
    text = (DOCS / "policy.md").read_text()
    assert filled(text.replace("| `action` |", "| `act` |")) == text


def test_every_table_stands_somewhere():
    everything = "".join((DOCS / page).read_text() for page in PAGES)
    assert set(re.findall(r"<!-- generated: (\w+) -->", everything)) == set(PARTS)


def _examples():
    return re.findall(r"```json\n(.*?)```", (DOCS / "policy.md").read_text(), re.DOTALL)


def test_every_example_is_a_valid_document():
    kinds = {"policy": 0, "environment": 0, "assertions": 0}
    for number, text in enumerate(_examples()):
        document = parse(text, f"example {number}")
        if isinstance(document, list) and "expect" in document[0]:
            kind = "assertions"
        else:
            kind = "environment" if "vpcs" in document else "policy"
        assert structure_problems(document, kind, f"example {number}") == []
        if kind == "policy":
            read_policies(document, f"example {number}")
        kinds[kind] += 1
    assert all(kinds.values()), kinds


def test_error_messages_in_the_page_are_real():
    from vpcctl.errors import DocumentError

    text = (DOCS / "policy.md").read_text()
    wrong = re.search(r"```wrong\n(.*?)```", text, re.DOTALL)[1]
    told = re.search(r"```text\n(.*?)```", text, re.DOTALL)[1]
    with pytest.raises(DocumentError) as caught:
        read_policies(json.loads(wrong), "web.json")
    assert "".join(f"vpcctl: {line}\n" for line in str(caught.value).splitlines()) == told
