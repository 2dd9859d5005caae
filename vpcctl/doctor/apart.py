"""Run something in a child process, so that the caller keeps its namespaces, and its life if a library crashes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from vpcctl.errors import KernelError
from vpcctl.kernel import sandbox


def apart(body: Callable[[], Any]) -> Any:
    """Call `body` in a child process, and return its result, which is sent as JSON.

    Raises KernelError with the message of the VpcctlError or OSError that `body` raised, or if the child was killed.
    """
    reading, writing = os.pipe()
    child = sandbox.fork(lambda: _report(body, writing))
    os.close(writing)
    with open(reading, "rb") as report:
        answer = report.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        raise KernelError(f"a child process was killed by {signal.Signals(os.WTERMSIG(status)).name}")
    try:
        kind, content = json.loads(answer)
    except ValueError as error:
        raise KernelError("a child process ended without an answer") from error
    if kind == "error":
        raise KernelError(content)
    return content


def _report(body: Callable[[], Any], writing: int) -> int:
    from vpcctl.errors import VpcctlError

    try:
        answer = ["answer", body()]
    except (VpcctlError, OSError) as error:
        answer = ["error", str(error)]
    # An incomplete answer is enough information for the parent.
    with contextlib.suppress(OSError), open(writing, "w") as report:
        json.dump(answer, report)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return 0
