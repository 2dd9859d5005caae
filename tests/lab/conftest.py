"""Tests that need a kernel: each gets a throw-away machine, and nothing touches the real one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import nobody
from tests.lab.machine import photograph, settle
from tests.lab.warm import Warm
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


@pytest.fixture(scope="module")
def empty(module_lab: Lab) -> dict[str, Any]:
    """A picture of the module's machine before the first command."""
    settle(module_lab)
    return photograph(module_lab)


@pytest.fixture(scope="module")
def warm(module_lab: Lab, empty: dict[str, Any]) -> Iterator[Warm]:
    """A process that runs commands on the module's machine, after the picture `empty` was taken."""
    with Warm(module_lab) as run:
        yield run


@pytest.fixture(scope="session")
def nobodys_python() -> Iterator[list[str]]:
    """What to put before the arguments of a Python that nobody runs."""
    with nobody.packages() as source:
        words = nobody.words(source)
        if subprocess.run([*words, "-c", "import vpcctl"], capture_output=True, cwd="/").returncode:
            pytest.skip(f"no other user exists, or nobody else may use {nobody.PYTHON}")
        yield words


def _opened() -> Lab:
    """An open lab, which `with` closes.  Where none can be made a test is skipped, but not where it must not be."""
    try:
        return Lab().open()
    except VpcctlError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
