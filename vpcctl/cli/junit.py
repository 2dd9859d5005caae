"""The results of assertions as JUnit XML, which CI systems show test by test."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from vpcctl.engine.traffic import CheckedAssertion


def document(checks: Iterable[CheckedAssertion], judged: Iterable[str]) -> str:
    """A suite with a test case for each assertion; `judged` are the verdicts in words."""
    suite = ElementTree.Element("testsuite", name="vpcctl verify")
    tests = failures = 0
    for check, words in zip(checks, judged, strict=True):
        tests += 1
        flow = f"{check.source} → {check.destination} {check.service}"
        name = _plain(f"{flow}: {check.expect}")
        case = ElementTree.SubElement(suite, "testcase", classname="vpcctl.verify", name=name)
        if not check.passed:
            failures += 1
            ElementTree.SubElement(case, "failure", message=f"expected {check.expect}; {_plain(words)}")
    suite.set("tests", str(tests))
    suite.set("failures", str(failures))
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _plain(words: str) -> str:
    """A text without control characters, which XML cannot hold."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in words)
