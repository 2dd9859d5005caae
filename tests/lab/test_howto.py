"""Every page of docs/howto is typed, one block after the other, behind the example with which all of them begin.

A block of text behind a block of commands is what these print.  In it `…` stands for anything within a line, and on a
line of its own for any lines.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from vpcctl.lab import Lab

HERE = Path(__file__).parents[2] / "docs/howto"
PAGES = sorted(path.name for path in HERE.glob("*.md") if path.name != "README.md")
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END = "--- end of block"


def blocks(page: str) -> list[tuple[str, str]]:
    """The blocks of commands of a page, each with what it is to print; empty if the page does not say."""
    found = [*BLOCK.findall((HERE / page).read_text()), ("", "")]
    assert all(before == "sh" for (before, _), (kind, _) in pairwise(found) if kind == "text"), page
    return [
        (content, after if kind == "text" else "") for (name, content), (kind, after) in pairwise(found) if name == "sh"
    ]


def pattern(text: str) -> re.Pattern[str]:
    """What output a block of text stands for."""
    lines = ("(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + "\n" for line in text.splitlines())
    return re.compile("".join(lines))


@pytest.mark.parametrize("page", PAGES)
def test_the_page_works_as_typed(lab: Lab, page: str, tmp_path: Path) -> None:
    # The first block of the README opens a lab, which this is already.
    typed = [*blocks("README.md")[1:], *blocks(page)]
    script = "".join(f"{content}echo '{END} {number}'\n" for number, (content, _) in enumerate(typed))
    whole = f"exec 2>&1\ntrap 'kill $(jobs -p)' EXIT\n{script}"
    done = lab.run(["bash", "-ec", whole], cwd=tmp_path, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = re.split(rf"{END} \d+\n", done.stdout)
    assert len(printed) == len(typed) + 1, done.stdout
    for (content, expected), output in zip(typed, printed, strict=False):
        assert not expected or pattern(expected).fullmatch(output), f"{content}\nprinted:\n{output}"


def test_every_page_is_in_the_index() -> None:
    named = re.findall(r"\]\(([a-z-]+\.md)\)", (HERE / "README.md").read_text())
    assert sorted(named) == PAGES


def test_another_output_is_noticed() -> None:
    assert pattern("a … c\n…\nlast\n").fullmatch("a b c\nx\ny\nlast\n")
    assert not pattern("a … c\n").fullmatch("a b d\n")
    assert not pattern("a\n").fullmatch("a\nb\n")
