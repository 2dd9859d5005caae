"""What all commands share: how they are called, the controller, messages, and the types of options."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import styled, visible, visible_lines

if TYPE_CHECKING:
    from pathlib import Path

    from click.shell_completion import CompletionItem

    from vpcctl.analysis.impact import Forecast
    from vpcctl.engine.controller import Controller
    from vpcctl.engine.events import Event
    from vpcctl.engine.execution import Difference
    from vpcctl.engine.machine import Author
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
LISTED = 20
# At most so many characters of a wrong word are shown.
LONGEST_WORD = 40
# A change waits for a week to be confirmed at most.
LONGEST_WAIT = 7 * 86400
# Of a command the history keeps so many words, of so many characters; of a secret it keeps this.
MOST_WORDS, LONGEST_NAME, HIDDEN = 40, 100, "…"


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
        words: Sequence[str] = (),
    ):
        self.verbosity = verbosity
        self.override_invariants = override_invariants
        # `--json` before the name of a command.
        self.as_json = False
        # What the options of a command that changes something say.
        self.wants_json = self.dry_run = self.yes = False
        self._words = words
        # For how many seconds the change of this command waits to be confirmed.
        self.confirm: int | None = None
        self._state_dir = state_dir
        self._make_kernel, self._read_host = make_kernel, read_host
        self._begun = time.monotonic()
        # How many objects were said to be changed.
        self._changed = 0

    def adjust(self, state_dir: str | None, verbosity: int) -> None:
        """Take the global options that follow the name of the command; UsageError if they contradict those before."""
        self.verbosity += verbosity
        if state_dir is not None:
            if self._state_dir not in (None, state_dir):
                raise click.UsageError(f"--state-dir is {self._state_dir!r} and {state_dir!r}; pass one of them")
            self._state_dir = state_dir

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

        return self._made(Controller)

    @functools.cached_property
    def rehearsal(self) -> Controller:
        """The same, which plans changes and does not make them."""
        from vpcctl.engine.controller import Controller

        return self._made(Controller, rehearsing=True)

    def _made(self, kind: type[Controller], rehearsing: bool = False) -> Controller:
        return kind(
            report=self._told,
            store=self.store,
            make_kernel=self._make_kernel,
            read_host=self._read_host,
            override_invariants=self.override_invariants,
            rehearsing=rehearsing,
            author=self._author(),
        )

    def _author(self) -> Author:
        """Who types: with sudo the user who called it."""
        import pwd

        from vpcctl.engine.machine import Author

        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            name = str(os.getuid())
        called_by = os.environ.get("SUDO_USER", "")[:LONGEST_NAME] if os.geteuid() == 0 else ""
        user, acting_as = (called_by, name) if called_by and called_by != name else (name, "")
        return Author(user, acting_as, kept_words(self._words), self.confirm)

    def carry_out(
        self,
        request: Callable[[Controller], Any],
        told: Callable[[Any], Iterable[str]],
        document: Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> None:
        """Make a change that takes nothing away, and say what `told` says; `document` adds to the JSON."""
        if self.dry_run or self.wants_json:
            from vpcctl.cli.change_reports import carry_out

            return carry_out(self, request, told, None, document)
        done = request(self.controller)
        for words in told(done):
            self.say(words)
        return self.warn_all(getattr(done, "warnings", ()))

    def _told(self, event: Event) -> None:
        """Say what the engine reports, if a person wants to know it."""
        from vpcctl.engine.events import ObjectChanged, Progress, StepTaken

        match event:
            case ObjectChanged() if self.verbosity <= 0:
                self._changed += 1
                if self._changed <= LISTED:
                    self.say(str(event))
            case StepTaken() if self.verbosity <= 0:
                pass
            case Progress() if not sys.stderr.isatty() or time.monotonic() - self._begun <= PATIENCE:
                pass
            case _:
                self.say(str(event))

    def say_more_changed(self) -> None:
        """Say how many objects changed that were not listed."""
        more, self._changed = self._changed - LISTED, 0
        if more > 0:
            self.say(f"… and {more} more (-v shows all)")

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

    def listing(self, lines: Sequence[object]) -> list[str]:
        """What a person asked to see: a summary on a terminal, and all of it for a pipe or a file."""
        return self.summary(lines) if sys.stdout.isatty() else list(map(str, lines))

    def print_table(self, headings: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "none") -> None:
        """The same as columns; `empty` is said if there are none."""
        from vpcctl.cli.output import print_table

        rows = list(rows)
        more = len(rows) - LISTED if self.verbosity <= 0 and sys.stdout.isatty() else 0
        print_table(headings, rows[:LISTED] if more > 0 else rows, empty)
        if more > 0:
            print(f"… and {more} more (-v shows all)")

    def forecast_lines(self, forecast: Forecast) -> list[str]:
        """What a change means for traffic; the rules without effect are hints: a summary, all with -v, none with -q."""
        return forecast.lines(self.summary, lambda idle: self.summary(idle) if self.verbosity >= 0 else ())

    def warn_all(self, warnings: Iterable[str]) -> None:
        """Warn of each, in a summary if there are many."""
        found = list(warnings)
        more = len(found) - LISTED if self.verbosity <= 0 else 0
        for warning in found[:LISTED] if more > 0 else found:
            self.warn(warning)
        if more > 0:
            self.say(f"… and {more} more (-v shows all)")

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


def kept_words(words: Sequence[str]) -> tuple[str, ...]:
    """The words of a command as the history keeps them: without secrets, and not too many."""
    kept: list[str] = []
    hidden = False
    for word in words[:MOST_WORDS]:
        option, sign, _ = word.partition("=")
        secret = bool(re.fullmatch("--.*(password|passphrase|secret|token|key)", option))
        shown = HIDDEN if hidden else f"{option}={HIDDEN}" if secret and sign else word
        hidden = secret and not sign
        shown = re.sub("://[^/@]*@", f"://{HIDDEN}@", shown)
        kept.append(shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…")
    return (*kept, "…") if len(words) > MOST_WORDS else tuple(kept)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class About:
    """What a command is about, and so what can be named by position: a VPC, or a part of one as VPC/NAME.

    `vpc` and `part` are the options that name them.  A command about a VPC takes both --vpc and --name for it.
    """

    def __init__(
        self,
        vpc: str = "vpc",
        part: str | None = None,
        *,
        other: str | None = None,
        required: bool = True,
        part_required: bool = True,
        only: bool = True,
        files: str | None = None,
    ):
        self.vpc, self.part = vpc, part
        # Of `exec`: the option that names a subnet in place of an instance.
        self.other = other
        # Must they be named?  A VPC that need not be is none or all.
        self.required, self.part_required = required, part_required
        # May the VPC be left out where exactly one exists?
        self.only = only
        # The argument of a command that takes files; its first word may be an object.
        self.files = files

    @property
    def alias(self) -> str | None:
        """The other option that names the VPC."""
        if self.part is not None:
            return None
        return "--name" if self.vpc == "vpc" else "--vpc"

    @property
    def metavar(self) -> str:
        """The object as it is typed."""
        if self.vpc == "vpc1":
            return "[VPC VPC]"
        return "[VPC]" if self.part is None else "[VPC/NAME]" if self.part_required else "[VPC[/NAME]]"

    def named(self, params: dict[str, Any]) -> bool:
        """Do the options alone name all that must be named?"""
        part = self.part is None or not self.part_required or params[self.part] is not None
        part = part or (self.other is not None and params[self.other] is not None)
        return part and not (self.required and params[self.vpc] is None)


ONE_VPC = About()
ANY_VPC = About(required=False)
PEERS = About("vpc1", "vpc2", only=False)
# Where the values are that are no parameter of a command's function.
CALL = "vpcctl.call"


def _kept(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    ctx.meta.setdefault(CALL, {})[param.name] = value


# The options of the program, as they are accepted behind the name of a command.
GLOBAL_OPTIONS = [
    click.Option(["--state-dir"], metavar="DIR", expose_value=False, hidden=True, callback=_kept),
    click.Option(["-v", "--verbose"], count=True, expose_value=False, hidden=True, callback=_kept),
    click.Option(["-q", "--quiet"], count=True, expose_value=False, hidden=True, callback=_kept),
    click.Option(["--override-invariants"], is_flag=True, expose_value=False, hidden=True, callback=_kept),
]


# Those of every command that changes something, and of those that take something away.
CHANGE_OPTIONS = [
    click.Option(
        ["--json", "wants_json"],
        is_flag=True,
        expose_value=False,
        callback=_kept,
        help="Print what changed, as JSON.",
    ),
    click.Option(
        ["--dry-run"],
        is_flag=True,
        expose_value=False,
        callback=_kept,
        help="Plan and check the change, print it, and change nothing.",
    ),
]
# Those of every command whose change the history keeps.
CONFIRM_OPTIONS = [
    click.Option(
        ["--confirm"],
        type=click.IntRange(1, LONGEST_WAIT),
        metavar="SECONDS",
        expose_value=False,
        callback=_kept,
        help="Take the change back after this time, unless `vpcctl confirm` is run.",
    ),
    click.Option(
        ["--probe"],
        metavar="TESTS.json",
        expose_value=False,
        callback=_kept,
        help="With --confirm: try these assertions with real packets, and take the change back at once if one fails.",
    ),
]
YES_OPTION = click.Option(
    ["--yes"], is_flag=True, expose_value=False, callback=_kept, help="Do not ask before something is removed."
)


def _completed(param: click.Parameter, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    from vpcctl.cli.completions import complete

    found = complete(ctx, param, incomplete)
    return param.type.shell_complete(ctx, param, incomplete) if found is None else found


class Command(click.Command):
    """A command that takes the global options behind its name, and its object by position.

    One that `changes` something takes --json and --dry-run, one that `removes` something also --yes.  One that is
    `confirmable` takes --confirm and --probe, by default one that changes or removes something.
    """

    def __init__(
        self,
        *args: Any,
        about: About | None = None,
        changes: bool = False,
        removes: bool = False,
        confirmable: bool | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.about = about
        self.shared: list[click.Parameter] = []
        if changes or removes:
            self.shared += CHANGE_OPTIONS
        if removes:
            self.shared.append(YES_OPTION)
        if (changes or removes) if confirmable is None else confirmable:
            self.shared += CONFIRM_OPTIONS
        self._more: list[click.Parameter] = list(GLOBAL_OPTIONS)
        if about is not None and about.alias is not None:
            self._more.append(click.Option([about.alias, "alias"], expose_value=False, hidden=True, callback=_kept))
        if about is not None and about.files is None and about.other is None:
            place = click.Argument(["place"], nargs=-1, metavar=about.metavar, expose_value=False, callback=_kept)
            self._more.append(place)
        for parameter in (*self.params, *self._more):
            if isinstance(parameter.type, click.types.StringParamType | click.types.UnprocessedParamType):
                own = functools.partial(_completed, parameter)
                parameter.shell_complete = own  # type: ignore[method-assign] # one place for all commands

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Those that the function takes, and those that every command takes."""
        own = super().get_params(ctx)
        rest = own[len(self.params) :]
        return [*self.params, *self.shared, *rest, *self._more]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Of a command that runs a program, the first word is its object unless options name it."""
        if self.about is not None and self.about.other is not None and not ctx.resilient_parsing:
            from vpcctl.cli.subjects import without_object

            args = without_object(self, ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Settle what the command line means as a whole."""
        call, session = ctx.meta.get(CALL, {}), ctx.obj
        if isinstance(session, Session):
            session.adjust(call.get("state_dir"), call.get("verbose", 0) - call.get("quiet", 0))
            session.override_invariants |= bool(call.get("override_invariants"))
            for option in ("wants_json", "dry_run", "yes"):
                setattr(session, option, bool(call.get(option)))
            session.confirm = call.get("confirm")
            if call.get("probe") is not None and session.confirm is None and self.shared:
                raise click.UsageError("--probe needs --confirm SECONDS")
            if session.as_json:
                if "as_json" in ctx.params:
                    ctx.params["as_json"] = True
                elif self.shared:
                    session.wants_json = True
                else:
                    ctx.fail(f"{self.name} has no --json")
        about = self.about
        if about is not None and (call.get("place") or call.get("alias") or about.files or not about.named(ctx.params)):
            from vpcctl.cli.subjects import settle

            settle(ctx, about, call.get("place") or (), call.get("alias"))
        if isinstance(session, Session) and session.confirm is not None and not session.dry_run:
            from vpcctl.cli import confirming

            return confirming.run(session, functools.partial(super().invoke, ctx), call.get("probe"))
        return super().invoke(ctx)


def command(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """A function as a command of ours, with the settings of `Command`."""
    return click.command(name, cls=Command, **settings)


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
