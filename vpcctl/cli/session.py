"""What all commands share: the state directory, the kernel, and the words of a command line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import styled, visible, visible_lines
from vpcctl.errors import DocumentError, KernelError, VpcctlError
from vpcctl.names import DEFAULT_STATE_DIR

if TYPE_CHECKING:
    from vpcctl.engine.reconciler import Outcome
    from vpcctl.engine.state import State, Store
    from vpcctl.model.host import Host
    from vpcctl.model.network import World
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


def linux_kernel() -> Kernel:
    """The kernel of this machine; PrivilegeError without the capabilities that it needs."""
    from vpcctl.kernel.linux import LinuxKernel

    return LinuxKernel()


def linux_host() -> Host:
    """The addresses of this machine; needs no privilege."""
    from vpcctl.kernel.routes import read_host

    return read_host()


class Session:
    """One run of the program; heavy things are made when they are first asked for, the kernel by `make_kernel`.

    `read_host` returns the host's own addresses.
    """

    def __init__(
        self,
        state_dir: str | None,
        verbosity: int,
        make_kernel: Callable[[], Kernel] = linux_kernel,
        read_host: Callable[[], Host] | None = None,
    ):
        self.state_dir = Path(state_dir or DEFAULT_STATE_DIR)
        self.verbosity = verbosity
        self.kernel = make_kernel
        self._read_host = read_host or linux_host

    @property
    def store(self) -> Store:
        """The record."""
        from vpcctl.engine.state import COPIES, Store

        return Store(self.state_dir, COPIES)

    def load(self) -> State:
        """The present state, for readers."""
        return self.store.load()

    def host(self) -> Host:
        """The host's own addresses; empty, with a warning, if they cannot be read."""
        from vpcctl.model.host import NO_HOST

        try:
            return self._read_host()
        except KernelError as error:
            self.warn(f"{error}; the answer treats them as internet addresses")
            return NO_HOST

    @contextlib.contextmanager
    def mutating(self) -> Iterator[Kernel]:
        """The kernel for as long as it is changed; an interrupt (Ctrl-C) is told with what it leaves."""
        kernel = self.kernel()
        try:
            yield kernel
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):
                print(f"vpcctl: interrupted; {self._left()}", file=sys.stderr)
            raise
        finally:
            kernel.close()

    def _left(self) -> str:
        try:
            unfinished = self.load().unfinished
        except VpcctlError:
            unfinished = True
        return "a change is half made; `vpcctl repair` finishes it" if unfinished else "nothing is left half made"

    def change(self, transform: Callable[[State], World]) -> Outcome:
        """Change the world to what `transform` returns; too costly a change is refused before the lock is taken."""
        from vpcctl.engine import reconciler

        with self.mutating() as kernel:
            store = self.store
            outcome = reconciler.change(store, kernel, _within_bounds(store, transform), self.say)
        if self.verbosity > 0:
            for step in outcome.plan.steps:
                self.say(f"  {step}")
        return outcome

    def repair(self, vpcs: Iterable[str]) -> None:
        """Repair these VPCs; a change that finds nothing to do does not look at the kernel."""
        from vpcctl.engine import reconciler

        with self.mutating() as kernel:
            for vpc in vpcs:
                for difference in reconciler.repair(self.store, kernel, report=self.say, vpc=vpc)[0]:
                    self.say(f"repaired: {difference.past}")

    def say(self, words: str) -> None:
        """Tell a person, on standard error; that nobody hears it must not end a change half-way."""
        self._print(visible_lines(words))

    def warn(self, words: str) -> None:
        """Tell a person in one line what may not be as meant."""
        self._print(f"{styled('warning', 'yellow', sys.stderr)}: {visible(words)}")

    def _print(self, text: str) -> None:
        if self.verbosity >= 0:
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr)


def _within_bounds(store: Store, transform: Callable[[State], World]) -> Callable[[State], World]:
    """`transform`, run and checked against the bounds before the lock is taken.

    It runs again if another command changed the state meanwhile, or if an unfinished change is completed first.
    """
    from vpcctl.compiler import bounds

    def measured(state: State) -> World:
        world = transform(state)
        bounds.check(state.world, world)
        return world

    tried: list[tuple[State, World]] = []
    # Other errors may be gone once the lock is held; they are reported then.
    with contextlib.suppress(VpcctlError):
        state = store.load()
        tried.append((state, transform(state)))
    for state, world in tried:
        bounds.check(state.world, world)
    return lambda state: next((world for known, world in tried if known is state), None) or measured(state)


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


PREFIX, ADDRESS = PrefixType(), AddressType()


def read_document(place: str) -> tuple[Any, str]:
    """The parsed JSON of a file or, for ``-``, of standard input, and the name to call it by."""
    from vpcctl.documents import files

    name = "(standard input)" if place == "-" else place
    return _parsed(lambda: files.read_given(place, files.LARGEST_DOCUMENT), name), name


def read_named(place: str) -> tuple[Any, str]:
    """Likewise for a file that another document names: only regular files, whatever our own descriptors are."""
    from vpcctl.documents import files

    return _parsed(lambda: files.read(place, files.LARGEST_DOCUMENT), place), place


def _parsed(read: Callable[[], bytes], name: str) -> Any:
    """The JSON that `read` gives; the error messages never quote the content."""
    from vpcctl.documents.reading import parse

    try:
        text = read().decode()
    except OSError as error:
        raise DocumentError(f"{name}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"{name}: is not text in UTF-8") from error
    except ValueError as error:
        raise DocumentError(f"{name!r} is no name of a file ({error})") from error
    return parse(text, name)
