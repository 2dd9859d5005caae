"""Every ruleset line of docs/walkthrough.md is one that the compiler writes for the document on that page."""

import re

import pytest

from tests.reference import DOCS
from vpcctl.compiler import compile_vpc
from vpcctl.documents.environment import read_environment
from vpcctl.documents.reading import parse

PAGE = (DOCS / "walkthrough.md").read_text()


@pytest.fixture(scope="module")
def ruleset():
    document = parse(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1], "walk.json")
    world = read_environment(document, "walk.json", lambda path: pytest.fail(f"no file {path} is named on the page"))
    return [line.strip() for line in compile_vpc(world, "shop", "walk").text(1).splitlines()]


def shown():
    return [line.strip() for block in re.findall(r"```nft\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", shown())
def test_the_line_is_in_the_ruleset(ruleset, line):
    assert line in ruleset


def test_the_gate_is_as_many_lookups_as_the_page_says(ruleset):
    start = ruleset.index("chain ingress-db {")
    chain = ruleset[start : ruleset.index("}", start)]
    assert sum("vmap" in line for line in chain) == 4
