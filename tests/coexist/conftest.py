"""Tests beside other programs: only `./run coexist` runs them, because it installs these programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.coexist import matrix
from tests.coexist.programs import prepare
from vpcctl.lab import Lab

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests below this directory; pytest passes every test of the session to this hook."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.coexist)


def pytest_report_header() -> str:
    """The versions that are tested here; the table of the documentation names those that it was made with."""
    found = [f"{package} {_version(package)}" for package, _ in matrix.VERSIONS.values()]
    return f"beside: {', '.join(found)}"


def _version(package: str) -> str:
    if not shutil.which("dpkg-query"):
        return "unknown"
    words = ["dpkg-query", "--show", "--showformat", "${Version}", package]
    return subprocess.run(words, capture_output=True, text=True).stdout or "not installed"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A machine for one test, in which the directories that other programs write to are copies."""
    if os.geteuid():
        pytest.skip("other programs need root")
    with Lab() as machine:
        prepare(machine)
        yield machine
