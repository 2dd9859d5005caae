"""The JSON Schemas as editors and other programs use them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from vpcctl.cli import main
from vpcctl.documents import fastpath
from vpcctl.documents.environment import read_environment
from vpcctl.documents.policies import read_policies
from vpcctl.documents.reading import SCHEMAS
from vpcctl.errors import DocumentError

RULE = {"action": "allow", "protocol": "tcp", "port": 80}
POLICY = {"subnet": "web", "ingress": [RULE]}
ENVIRONMENT = {
    "vpcs": [
        {"name": "one", "cidr": "10.0.0.0/24", "subnets": [
            {"name": "web", "cidr": "10.0.0.0/28", "type": "public", "policy": {"ingress": [RULE]}}]}
    ]
}  # fmt: skip
ASSERTION = {"from": "internet", "to": "one/web", "service": "tcp/80", "expect": "allow"}


@pytest.fixture
def schema(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Draft202012Validator:
    """A validator that knows only what the command prints."""
    with pytest.raises(SystemExit) as caught:
        main(["show-schema", request.param])
    assert caught.value.code == 0
    document = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document)


@pytest.mark.parametrize(
    ("schema", "document", "valid"),
    [
        ("policy", POLICY, True),
        ("policy", {"$schema": "./policy.schema.json", **POLICY}, True),
        ("policy", {"$schema": "x", "policies": [POLICY]}, True),
        ("policy", {"$schema": 1, **POLICY}, False),
        ("policy", {"subnet": "web", "ingres": []}, False),
        ("environment", ENVIRONMENT, True),
        ("environment", {"$schema": "./environment.schema.json", **ENVIRONMENT}, True),
        ("environment", {"vpcs": [{"name": "one", "cidr": "10.0.0.0/24", "subnets": [
            {"name": "web", "cidr": "10.0.0.0/28", "type": "public", "policy": {"ingress": [{"action": "x"}]}}
        ]}]}, False),
        ("assertions", [ASSERTION], True),
        ("assertions", [{**ASSERTION, "expect": "perhaps"}], False),
    ],
    indirect=["schema"],
)  # fmt: skip
def test_what_is_printed_judges_documents_by_itself(schema: Draft202012Validator, document: Any, valid: bool) -> None:
    assert schema.is_valid(document) == valid


def test_every_schema_is_printed() -> None:
    assert set(SCHEMAS) == {"policy", "environment", "assertions"}


def test_a_document_may_name_its_schema() -> None:
    named = {"$schema": "./x.json"}
    assert read_policies({**named, **POLICY}, "web.json") == read_policies(POLICY, "web.json")
    several = {"policies": [POLICY], "vpc": "one"}
    assert read_policies({**named, **several}, "web.json") == read_policies(several, "web.json")

    def load(path: str) -> tuple[Any, str]:
        raise AssertionError(path)

    assert read_environment({**named, **ENVIRONMENT}, "e.json", load) == read_environment(ENVIRONMENT, "e.json", load)
    # Without jsonschema, which takes long to import.
    assert fastpath.accepts("policy", {**named, **POLICY})
    assert fastpath.accepts("environment", {**named, **ENVIRONMENT})


def test_the_field_is_no_word_of_a_hint() -> None:
    with pytest.raises(DocumentError) as caught:
        read_policies({"$schema": "./x.json", "ingres": [], **POLICY}, "web.json")
    [problem] = caught.value.problems
    assert str(problem) == "web.json#/ingres: unknown field 'ingres'; did you mean 'ingress'?"
    with pytest.raises(DocumentError) as caught:
        read_policies({"$schema": ["x"], **POLICY}, "web.json")
    [problem] = caught.value.problems
    assert "is not the place of a JSON Schema" in str(problem)
    with pytest.raises(DocumentError) as caught:
        read_policies({"zzz": 1, **POLICY}, "web.json")
    assert "$schema" not in str(caught.value)
