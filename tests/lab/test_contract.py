"""The real kernel keeps the contract that the fake one keeps, too (tests/contract.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.contract import LAWS
from vpcctl.lab import Lab

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("law", LAWS)
def test_the_kernel_of_this_machine_keeps_the_law(lab: Lab, law: str) -> None:
    done = lab.run([sys.executable, "-m", "tests.lab.contract_run", law], cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
