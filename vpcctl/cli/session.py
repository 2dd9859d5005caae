"""What all commands share: the state directory, the kernel, how things are said."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vpcctl.errors import DocumentError

if TYPE_CHECKING:
    from vpcctl.model import World
    from vpcctl.reconciler import Outcome
    from vpcctl.state import State, Store

DEFAULT_STATE_DIR = "/var/lib/vpcctl"

EXIT_STATUSES = {
    0: "done",
    1: '"no" (denied, an assertion failed)',
    2: "usage or document error",
    3: "drift",
    4: "conflict with what exists",
    5: "the kernel refused",
    6: "state file locked, damaged or newer",
    77: "lacks privilege",
}


class Session:
    """One run of the program; heavy things are made when they are first asked for."""

    def __init__(self, state_dir: str | None, verbosity: int):
        self.state_dir = Path(state_dir or DEFAULT_STATE_DIR)
        self.verbosity = verbosity

    @property
    def store(self) -> Store:
        """The record."""
        from vpcctl.state import COPIES, Store

        return Store(self.state_dir, COPIES)

    def load(self) -> State:
        """The present state, for readers."""
        return self.store.load()

    def kernel(self) -> Any:
        """The kernel; PrivilegeError without the capabilities that it needs."""
        from vpcctl.kernel.linux import LinuxKernel

        return LinuxKernel()

    def change(self, transform: Callable[[State], World]) -> Outcome:
        """Make the world what `transform` makes of it."""
        from vpcctl import reconciler

        kernel = self.kernel()
        try:
            outcome = reconciler.change(self.store, kernel, transform, self.say)
        finally:
            kernel.close()
        if self.verbosity > 0:
            for step in outcome.plan.steps:
                self.say(f"  {step}")
        return outcome

    def say(self, words: str) -> None:
        """Tell a person, on standard error; that nobody hears it must not end a change half-way."""
        if self.verbosity >= 0:
            with contextlib.suppress(OSError):
                print(words, file=sys.stderr)

    def warn(self, words: str) -> None:
        """Tell a person what may not be as meant."""
        self.say(f"{styled('warning', 'yellow')}: {words}")


def styled(text: str, colour: str) -> str:
    """`text` in `colour` where standard error is a terminal and NO_COLOR is not set (no-color.org)."""
    import os

    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        return text
    return click.style(text, fg=colour)


def print_json(document: Any) -> None:
    """A result for machines."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "none") -> None:
    """A result for people: columns, or the word for there being none on standard error."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        print(empty, file=sys.stderr)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for row in (headings, *cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class PrefixType(click.ParamType):
    """An IPv4 prefix without host bits."""

    name = "prefix"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from vpcctl.spec import parse_prefix

        try:
            prefix = parse_prefix(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if prefix.version != 4:
            self.fail(f"{prefix} is an IPv6 prefix, and IPv4 is expected here", param, ctx)
        return prefix


class AddressType(click.ParamType):
    """An IP address."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from vpcctl.spec import parse_address

        try:
            return parse_address(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


PREFIX, ADDRESS = PrefixType(), AddressType()


def read_document(place: str) -> tuple[Any, str]:
    """The parsed JSON of a file or, for ``-``, of standard input, and the name to call it by."""
    from vpcctl.documents import parse

    name = "(standard input)" if place == "-" else place
    try:
        text = sys.stdin.read() if place == "-" else Path(place).read_text(encoding="utf-8")
    except OSError as error:
        raise DocumentError(f"{name}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"{name}: is not text in UTF-8") from error
    return parse(text, name), name
