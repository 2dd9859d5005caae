"""The program of docs/api.md runs as it stands, and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

from vpcctl.lab import Lab

PAGE = Path(__file__).parents[2] / "docs/api.md"
MARK = "--- the next block ---"


def blocks() -> list[tuple[str, str]]:
    """The blocks of code, each with the output that the page shows for it."""
    found = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [language for language, _ in found] == ["python", "text"] * (len(found) // 2)
    contents = [content for _, content in found]
    return list(zip(contents[::2], contents[1::2], strict=True))


def test_the_program_of_the_page_prints_what_it_says(lab: Lab) -> None:
    page = blocks()
    assert len(page) >= 6
    program = f"print({MARK!r})\n".join(code for code, _ in page)
    done = lab.python(program, timeout=300)
    assert done.stdout.split(f"{MARK}\n") == [output for _, output in page]
    assert done.stderr == ""
    assert lab.run(["ip", "netns"]).stdout == "", "nothing is left"
