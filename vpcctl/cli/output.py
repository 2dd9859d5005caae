"""How results and words are printed: for people nothing that a terminal would obey, for machines JSON."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click

# Characters that a terminal obeys, or that change what others look like: controls (C0, C1), formats (the overrides
# of writing direction among them), halves of characters, and the separators of lines and paragraphs.
OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    """`text` as one line; the characters that a terminal obeys are escaped as in JSON: ``\\u001b``."""
    if text.isprintable():
        return text
    return "".join(_spelled(one) if unicodedata.category(one) in OBEYED else one for one in text)


def _spelled(character: str) -> str:
    import json

    # JSON itself leaves this one as it is.
    return r"\u007f" if character == "\x7f" else json.dumps(character)[1:-1]


def visible_lines(text: str) -> str:
    """The same, for our own words of several lines."""
    return "\n".join(map(visible, text.split("\n")))


def counted(number: int, noun: str) -> str:
    """So many things, as `1 rule` and `2 rules`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def show(*lines: object, flush: bool = False) -> None:
    """A result for people, one line after the other."""
    for line in lines:
        print(visible(str(line)), flush=flush)


def show_marked(mark: str, colour: str, words: str) -> None:
    """A line for people that begins with a coloured word."""
    print(f"{styled(mark, colour, sys.stdout)}: {visible(words)}")


def print_text(text: str) -> None:
    """A result that is a program's input, as it is."""
    print(text, end="")


def styled(text: str, colour: str, stream: TextIO) -> str:
    """`text` in `colour` where `stream` is a terminal and NO_COLOR is not set (no-color.org)."""
    if os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return click.style(text, fg=colour)


def print_json(document: Any, indent: int | None = 2) -> None:
    """A result for machines; without `indent` in one line, which is written at once."""
    import json

    print(visible_lines(json.dumps(document, indent=indent, ensure_ascii=False)), flush=indent is None)


def print_json_list(documents: Iterable[Any]) -> None:
    """A list for machines that may be long: its members are printed as they come, each in one line."""
    import json

    comma = ""
    print("[", end="")
    for document in documents:
        print(f"{comma}\n  {visible(json.dumps(document, ensure_ascii=False))}", end="")
        comma = ","
    print("\n]" if comma else "]")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "none") -> None:
    """A result for people: columns, or the word for there being none on standard error."""
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    if not cells:
        print(empty, file=sys.stderr)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for row in (headings, *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
