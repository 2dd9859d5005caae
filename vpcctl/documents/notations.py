"""Text that is not JSON: what it looks like, and what to write instead.

The words name what was found by its kind.  They never quote the text.
"""

from __future__ import annotations

import codecs
import re

# The longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_BLANK = re.compile(r"\s*")
_COMMENTED = re.compile(r"(?:\s+|#[^\n]*|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_YAML = re.compile(r"---(?:\s|$)|%YAML\s|-[ \t]+\S|[A-Za-z_][\w .-]*:(?:\s|$)")
_TERRAFORM = re.compile(r"(?:resource|data|variable|module|provider|terraform|locals|output)\b[^\n]*\{")
_WORD = re.compile(r"[A-Za-z_][\w-]*")
_COMMENTS = ("//", "/*", "#")
_QUOTES = {
    "'": "a single quote",
    "‘": "a curly quote",
    "’": "a curly quote",
    "“": "a curly quote",
    "”": "a curly quote",
}
_OTHER_CONSTANTS = frozenset({"True", "False", "None", "TRUE", "FALSE", "NULL"})


def other_encoding(data: bytes) -> str | None:
    """The encoding of `data` by its first bytes, if that is not UTF-8."""
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return encoding
    # JSON begins with an ASCII character; in UTF-16 one of its two bytes is zero.
    return "UTF-16" if len(data) % 2 == 0 and data[:2].count(0) == 1 and data[2:4].count(0) == 1 else None


def explanation(text: str, position: int) -> tuple[str, str] | None:
    """What `text` contains where a JSON parser stopped at `position`, and what to do; None if that is not known."""
    first = text[_end(_COMMENTED, text, 0) :][:200]
    if not first:
        return ("the file is empty", "write a JSON object") if not text.strip() else None
    if _TERRAFORM.match(first):
        return "this looks like Terraform", "vpcctl reads JSON; docs/policy.md describes the fields"
    if _YAML.match(first):
        return "this looks like YAML", 'vpcctl reads JSON; write {"subnet": "web", "ingress": []}'
    return _at(text, _end(_BLANK, text, position))


def _at(text: str, position: int) -> tuple[str, str] | None:
    rest = text[position : position + 64]
    for mark in _COMMENTS:
        if rest.startswith(mark):
            return (
                f"a comment ({mark})",
                'JSON has no comments; remove it (a policy or a rule may have a "description")',
            )
    if quote := _QUOTES.get(rest[:1]):
        return quote, 'JSON has double quotes only; write "…"'
    # A parser stops at the comma or, in other versions of Python, behind it.
    comma = rest[:1] == "," or text[:position].rstrip()[-1:] == ","
    closing = text[_end(_BLANK, text, position + 1) :][:1] if rest[:1] == "," else rest[:1]
    if comma and closing in ("}", "]"):
        return f"a comma before {closing}", "JSON has no trailing commas; remove the comma"
    if word := _WORD.match(rest):
        if word[0] in _OTHER_CONSTANTS:
            return "a word that JSON does not have", "write true, false or null"
        after = text[_end(_BLANK, text, position + word.end()) :][:1]
        if after == ":":
            return "a field without quotes", 'write its name in double quotes: "name": …'
    return None


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position
