"""The program: ``vpcctl``, and ``python -m vpcctl``."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys

# So many new objects trigger a search for unused cycles.  Ten thousand rules are a million objects, all of them in use:
# with Python's default of 700, a third of the time of the command is spent on such searches.  It is set before the
# imports, which make tens of thousands of objects.
RARELY = 200_000


def main() -> None:
    """Run a command, and end the process with its status."""
    gc.set_threshold(RARELY, *gc.get_threshold()[1:])
    sys.unraisablehook = _unraisable
    from vpcctl import cli

    try:
        cli.main()
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else 0)


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """Report an exception that Python cannot raise where it happened, unless it is an interrupt.

    An interrupt (Ctrl-C) within a callback of Python's own, as that of its import locks, is lost: the command goes on.
    """
    if not isinstance(what.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(what)


def _leave(status: int) -> None:
    """End the process without freeing Python's objects one by one, which is a tenth of the time of a short command."""
    import threading

    if threading.active_count() > 1:
        sys.exit(status)  # wait for other threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
