"""What all commands share: the controller, messages, and the types of options."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import styled, visible, visible_lines

if TYPE_CHECKING:
    from pathlib import Path

    from vpcctl.analysis.impact import Forecast
    from vpcctl.engine.controller import Controller
    from vpcctl.engine.events import Event
    from vpcctl.engine.execution import Difference
    from vpcctl.engine.state import Store
    from vpcctl.model.host import Host
    from vpcctl.resources.protocol import Kernel

EXIT_STATUSES = {
    0: "done",
    1: '"no" (denied, an assertion failed)',
    2: "usage or document error",
    3: "drift",
    4: "conflict with what exists",
    5: "the kernel refused",
    6: "state file locked, damaged or newer",
    77: "lacks privilege",
    130: "interrupted",
}
# Progress is shown on a terminal if a command takes longer than this, in seconds.
PATIENCE = 1.0
# At most so many similar lines are shown; the others are counted.
LISTED = 10
# At most so many characters of a wrong word are shown.
LONGEST_WORD = 40


class Session:
    """One run of the program: its controller, made on first use, and its messages to the user.

    `make_kernel` and `read_host` replace those of this machine.
    """

    def __init__(
        self,
        state_dir: str | None,
        verbosity: int,
        make_kernel: Callable[[], Kernel] | None = None,
        read_host: Callable[[], Host] | None = None,
        override_invariants: bool = False,
    ):
        self.verbosity = verbosity
        self._override_invariants = override_invariants
        self._state_dir = state_dir
        self._make_kernel, self._read_host = make_kernel, read_host
        self._begun = time.monotonic()

    @property
    def state_dir(self) -> Path:
        """The directory of the record."""
        from vpcctl.engine.machine import state_directory

        return state_directory(self._state_dir)

    @property
    def store(self) -> Store:
        """The record."""
        from vpcctl.engine.state import COPIES, Store

        return Store(self.state_dir, COPIES)

    @functools.cached_property
    def controller(self) -> Controller:
        """What every command asks."""
        from vpcctl.engine.controller import Controller

        return Controller(
            report=self._told,
            store=self.store,
            make_kernel=self._make_kernel,
            read_host=self._read_host,
            override_invariants=self._override_invariants,
        )

    def _told(self, event: Event) -> None:
        """Say what the engine reports, if a person wants to know it."""
        from vpcctl.engine.events import Progress, StepTaken

        match event:
            case StepTaken() if self.verbosity <= 0:
                pass
            case Progress() if not sys.stderr.isatty() or time.monotonic() - self._begun <= PATIENCE:
                pass
            case _:
                self.say(str(event))

    def say_repaired(self, differences: Sequence[Difference]) -> None:
        """Say what was repaired, in a summary if it is much."""
        from vpcctl.engine.execution import principal_first

        for line in self.summary([f"repaired: {one.past}" for one in principal_first(differences)]):
            self.say(line)

    def summary(self, lines: Sequence[object], remedy: str = "-v shows all") -> list[str]:
        """`lines` of one kind, the first LISTED and the number of the others; all of them with -v."""
        more = len(lines) - LISTED
        if self.verbosity > 0 or more <= 0:
            return list(map(str, lines))
        return [*map(str, lines[:LISTED]), f"… and {more} more ({remedy})"]

    def forecast_lines(self, forecast: Forecast) -> list[str]:
        """What a change means for traffic; the rules without effect are hints: a summary, all with -v, none with -q."""
        return forecast.lines(lambda idle: self.summary(idle) if self.verbosity >= 0 else ())

    def warn_all(self, warnings: Iterable[str]) -> None:
        """Warn of each."""
        for warning in warnings:
            self.warn(warning)

    def say(self, words: str) -> None:
        """Write a message to standard error.  If this fails, the change continues."""
        self._print(visible_lines(words))

    def warn(self, words: str) -> None:
        """Write one line of warning about a possible mistake."""
        self._print(f"{styled('warning', 'yellow', sys.stderr)}: {visible(words)}")

    def _print(self, text: str) -> None:
        if self.verbosity >= 0:
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class PrefixType(click.ParamType):  # type: ignore[type-arg] # generic in new versions of click alone
    """An IPv4 prefix without host bits."""

    name = "prefix"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from vpcctl.documents.fields import parse_prefix

        try:
            prefix = parse_prefix(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if prefix.version != 4:
            self.fail(f"{prefix} is an IPv6 prefix, and IPv4 is expected here", param, ctx)
        return prefix


class AddressType(click.ParamType):  # type: ignore[type-arg] # generic in new versions of click alone
    """An IP address."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from vpcctl.documents.fields import parse_address

        try:
            return parse_address(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


class PortType(click.IntRange):
    """A port from 1 to 65535; what other programs accept for a port is refused with what to type."""

    def __init__(self) -> None:
        super().__init__(1, 65535)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and (advice := _port_advice(value.strip().lower(), param, ctx)):
            self.fail(f"{value[:LONGEST_WORD]!r} is not a port (1–65535); {advice}", param, ctx)
        return super().convert(value, param, ctx)


class PortRangeType(click.ParamType):  # type: ignore[type-arg] # generic in new versions of click alone
    """A port, or a range of ports such as 8000-8010; the first and the last."""

    name = "port[-port]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        low, dash, high = value.strip().partition("-")
        if not dash:
            port = PORT.convert(value, param, ctx)
            return port, port
        span = PORT.convert(low, param, ctx), PORT.convert(high, param, ctx)
        if span[0] > span[1]:
            self.fail(f"{value!r} is an empty range of ports; use {high}-{low}", param, ctx)
        return span


def _port_advice(word: str, param: click.Parameter | None, ctx: click.Context | None) -> str | None:
    from vpcctl.documents.vocabulary import SERVICES

    option = param.opts[0] if param is not None and param.opts else "--port"
    if word in SERVICES:
        return f"use {option} {SERVICES[word]}"
    if pair := re.fullmatch(r"(?:([0-9.]+):)?([0-9]{1,5}):([0-9]{1,5})", word):
        others = {other.name for other in ctx.command.params} if ctx is not None else set()
        at = f" --address {pair[1]}" if pair[1] and "address" in others else ""
        return f"use --port {pair[2]}" + (f" --target-port {pair[3]}" if "target_port" in others else "") + at
    if re.fullmatch(r"[0-9]{1,5}(?:,[0-9]{1,5})+", word):
        return f"use one port at a time, as in {option} {word.partition(',')[0]}, or a range such as 8000-8010"
    if both := re.fullmatch(r"(tcp|udp|sctp)/([0-9]{1,5})|([0-9]{1,5})/(tcp|udp|sctp)", word):
        return f"use {option} {both[2] or both[3]} --protocol {both[1] or both[4]}"
    return "a number is expected" if len(word) > LONGEST_WORD else None


PREFIX, ADDRESS, PORT, PORTS = PrefixType(), AddressType(), PortType(), PortRangeType()
