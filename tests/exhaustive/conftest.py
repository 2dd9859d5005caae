"""Tests that need a kernel: each gets a throw-away machine, and nothing touches the real one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vpcctl.errors import VpcctlError
from vpcctl.lab import Lab

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is below this directory; the hook is handed every item of the session."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kernel)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A machine for one test."""
    with _opened() as machine:
        yield machine


@pytest.fixture(scope="module")
def module_lab() -> Iterator[Lab]:
    """A machine that the tests of a module share; what one leaves behind, the next one finds."""
    with _opened() as machine:
        yield machine


def _opened() -> Lab:
    """An open lab, which `with` closes.  Where none can be made a test is skipped, but not where it must not be."""
    try:
        return Lab().open()
    except VpcctlError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
