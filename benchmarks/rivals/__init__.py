"""Other programs that do a part of what `vpcctl` does, one module for each comparison (`./run bench compare`)."""

from __future__ import annotations

import shutil


class SkipComparison(Exception):
    """This comparison cannot run here; the text is the reason."""


def require(*programs: str) -> None:
    """Raise SkipComparison if a program is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise SkipComparison(f"not installed: {', '.join(missing)}")
