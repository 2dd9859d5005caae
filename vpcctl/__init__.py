"""A firewall-first VPC controller: policies in, one atomic nftables ruleset per VPC out.

This package exports the Python API (docs/api.md).  A name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpcctl.documents.sources import Document as Document
    from vpcctl.engine.controller import Controller as Controller
    from vpcctl.errors import AmbiguousError as AmbiguousError
    from vpcctl.errors import CommandError as CommandError
    from vpcctl.errors import ConflictError as ConflictError
    from vpcctl.errors import DocumentError as DocumentError
    from vpcctl.errors import GoneError as GoneError
    from vpcctl.errors import InterruptedChange as InterruptedChange
    from vpcctl.errors import KernelError as KernelError
    from vpcctl.errors import PrivilegeError as PrivilegeError
    from vpcctl.errors import Problem as Problem
    from vpcctl.errors import StateError as StateError
    from vpcctl.errors import TooFineError as TooFineError
    from vpcctl.errors import VpcctlError as VpcctlError

__version__ = "0.2.0"

ERRORS = (
    "VpcctlError",
    "DocumentError",
    "TooFineError",
    "AmbiguousError",
    "ConflictError",
    "KernelError",
    "GoneError",
    "StateError",
    "PrivilegeError",
    "CommandError",
    "InterruptedChange",
    "Problem",
)
# Public name -> the module that has it.
PUBLIC = {
    "Controller": "vpcctl.engine.controller",
    "Document": "vpcctl.documents.sources",
    **dict.fromkeys(ERRORS, "vpcctl.errors"),
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
