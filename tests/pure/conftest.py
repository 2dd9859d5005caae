"""No test of this suite comes to the kernel of the machine that it runs on, whatever is broken in the product.

Nor does it leave a copy of a record where the machine's own are.
"""

from __future__ import annotations

import pytest

from tests.lives import anew, life
from vpcctl.cli import commands
from vpcctl.engine import machine, state
from vpcctl.model.host import NO_HOST

__all__ = ["anew", "life"]


class KernelForbidden(BaseException):
    """A pure test came to where the machine's kernel is made; no `except` of the product takes it for its own."""


def refuse() -> None:
    raise KernelForbidden("a pure test asked for the machine's kernel; give the command a FakeKernel")


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program makes its kernel, and looks at its host, by what stands here."""
    monkeypatch.setitem(commands.context_settings, "obj", refuse)
    monkeypatch.setattr(state, "COPIES", None)
    monkeypatch.setattr(machine, "linux_kernel", refuse)
    monkeypatch.setattr(machine, "linux_host", lambda: NO_HOST)
