"""The tables of docs/policy.md, generated from the schema, so that they cannot differ from it."""

from __future__ import annotations

import re
from pathlib import Path

from vpcctl.documents.reading import load_schema

DOCS = Path(__file__).parent.parent / "docs"
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def field_table(schema: str, definition: str) -> str:
    """One definition's fields as a Markdown table: field, what is expected, what it means."""
    node = load_schema(schema)
    found = {schema: node, **node, **node.get("$defs", {})}[definition]
    rows = ["| field | value | meaning |", "| --- | --- | --- |"]
    for field, inner in found["properties"].items():
        required = "**required.** " if field in found.get("required", ()) else ""
        cells = (f"`{field}`", _expected(schema, inner), required + inner.get("description", ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _expected(schema: str, node: dict) -> str:
    if "title" in node and "if" not in node:
        return node["title"]
    if "$ref" in node:
        place, _, pointer = node["$ref"].partition("#/$defs/")
        return _expected(schema, load_schema(place.removesuffix(".json") or schema)["$defs"][pointer])
    if node.get("if") == {"type": "array"}:
        return _expected(schema, node["else"]) + ", or an array of these"
    return node.get("title", "")


PARTS = {
    "policy": lambda: field_table("policy", "policy"),
    "rule": lambda: field_table("policy", "rule"),
    "collection": lambda: field_table("policy", "collection"),
    "environment": lambda: field_table("environment", "environment"),
    "vpc": lambda: field_table("environment", "vpc"),
    "subnet": lambda: field_table("environment", "subnet"),
    "instance": lambda: field_table("environment", "instance"),
    "publication": lambda: field_table("environment", "publication"),
    "assertion": lambda: field_table("assertions", "assertion"),
}


def filled(text: str) -> str:
    """`text` with every generated part made anew."""
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}{match[3]}", text)


if __name__ == "__main__":
    for page in DOCS.glob("*.md"):
        page.write_text(filled(page.read_text()))
