"""The fake kernel keeps the contract of the real one (tests/contract.py)."""

from __future__ import annotations

import pytest

from tests.contract import LAWS, Machine
from vpcctl.resources.fake import FakeKernel


@pytest.mark.parametrize("law", LAWS)
def test_the_fake_kernel_keeps_the_law(law: str) -> None:
    kernel = FakeKernel()
    LAWS[law](Machine(kernel, lambda item: kernel.foreign.add(item.key)))
