"""The command line: words in, words out, exit statuses.  Each noun has a module of commands, imported on first use."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from vpcctl import __version__
from vpcctl.cli.output import visible, visible_lines
from vpcctl.cli.session import EXIT_STATUSES, Session
from vpcctl.errors import DocumentError, InterruptedChange, KernelError, VpcctlError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# command -> module of this package; the function has the same name with underscores.
COMMANDS: dict[str, str] = {
    "create-vpc": "vpc_commands",
    "delete-vpc": "vpc_commands",
    "list-vpcs": "vpc_commands",
    "show-vpc": "vpc_commands",
    "set-limits": "vpc_commands",
    "create-nat-protocol": "vpc_commands",
    "delete-nat-protocol": "vpc_commands",
    "create-subnet": "subnet_commands",
    "delete-subnet": "subnet_commands",
    "list-subnets": "subnet_commands",
    "show-subnet": "subnet_commands",
    "create-nat-gateway": "subnet_commands",
    "delete-nat-gateway": "subnet_commands",
    "create-instance": "instance_commands",
    "delete-instance": "instance_commands",
    "list-instances": "instance_commands",
    "show-instance": "instance_commands",
    "publish-port": "instance_commands",
    "unpublish-port": "instance_commands",
    "list-published-ports": "instance_commands",
    "exec": "instance_commands",
    "create-peering": "peering_commands",
    "delete-peering": "peering_commands",
    "list-peerings": "peering_commands",
    "apply-policy": "policy_commands",
    "clear-policy": "policy_commands",
    "show-policy": "policy_commands",
    "compile": "policy_commands",
    "show-ruleset": "policy_commands",
    "explain": "traffic_commands",
    "matrix": "traffic_commands",
    "verify": "traffic_commands",
    "set-invariants": "invariant_commands",
    "show-invariants": "invariant_commands",
    "clear-invariants": "invariant_commands",
    "graph": "graph_commands",
    "log": "traffic_commands",
    "flows": "flow_commands",
    "plan": "environment_commands",
    "apply": "environment_commands",
    "export": "environment_commands",
    "history": "history_commands",
    "show-change": "history_commands",
    "undo": "history_commands",
    "confirm": "history_commands",
    "status": "machine_commands",
    "repair": "machine_commands",
    "agent": "agent_commands",
    "install-service": "agent_commands",
    "uninstall-service": "agent_commands",
    "grant-read": "machine_commands",
    "destroy": "machine_commands",
    "lab": "machine_commands",
    "doctor": "machine_commands",
    "completion": "machine_commands",
    "show-schema": "machine_commands",
}

# Where the words of the command are kept while it runs.
WORDS = "vpcctl.words"

# write(2): why a stream accepts nothing more.
UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class UnwrittenError(Exception):
    """Standard output accepts nothing more; `cause` says why."""

    def __init__(self, cause: OSError):
        super().__init__(str(cause))
        self.cause = cause


class Commands(click.Group):
    """A group that imports the module of a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"vpcctl.cli.{COMMANDS[name]}")
        command: click.Command = getattr(module, name.replace("-", "_"))
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the commands without importing them."""
        from click.shell_completion import CompletionItem

        from vpcctl.cli.sentences import SENTENCES

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=SENTENCES[name]) for name in COMMANDS if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        _Listed("vpcctl").format_commands(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Distinguish a failed output from other failures, before click turns it into an exit status.

        The message for an interrupt says what the interrupt leaves.
        """
        try:
            return super().invoke(ctx)
        except InterruptedChange as error:
            left = (
                "a change is half made; `vpcctl repair` finishes it"
                if error.unfinished
                else "nothing is left half made"
            )
            _complain(f"interrupted; {left}")
            raise
        except OSError as error:
            # Every other OSError of ours was translated where it came from, or names a file.
            if error.filename is None and error.errno in UNWRITABLE:
                raise UnwrittenError(error) from error
            raise

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """For an unknown command, suggest the command that was probably meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from vpcctl.cli.hints import nearest_command

            ctx.fail(f"command {args[0]!r} not found; {nearest_command(args[0], COMMANDS)}")
        ctx.meta[WORDS] = tuple(args)
        return super().resolve_command(ctx, args)


class _Listed(Commands):
    """The commands as `--help` lists them: names and first sentences."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        click.Group.format_commands(self, ctx, formatter)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        from vpcctl.cli.sentences import SENTENCES

        return click.Command(name, help=SENTENCES[name])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: " + "; ".join(f"{status} {meaning}" for status, meaning in EXIT_STATUSES.items()) + ".",
)
@click.version_option(__version__, prog_name="vpcctl")
@click.option("--state-dir", metavar="DIR", help="The directory of state.json and lock. [env: VPCCTL_STATE_DIR]")
@click.option("-v", "--verbose", count=True, help="Print each step on standard error.")
@click.option("-q", "--quiet", count=True, help="Print only errors.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, where the command has it.")
@click.option("--override-invariants", is_flag=True, help="Change even what breaks invariants, and report it.")
@click.pass_context
def commands(
    ctx: click.Context, state_dir: str | None, verbose: int, quiet: int, as_json: bool, override_invariants: bool
) -> None:
    """Private networks (VPCs) on one Linux machine, each with its own subnets, router and firewall.

    \b
    vpcctl create-vpc --name shop --cidr 10.0.0.0/16
    vpcctl create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public
    vpcctl apply-policy policy.json
    vpcctl exec shop/web -- ping 10.0.1.1

    Options of the program can also follow the command's name.  Name an object by
    position, as shop/web, or by options, as --vpc shop --name web.

    `vpcctl lab` opens a throw-away machine to try it; this needs no root.
    """
    # The context's object is the function that makes the kernel.  The session replaces it here.
    words = ctx.meta.get(WORDS, ())
    ctx.obj = Session(state_dir, verbose - quiet, ctx.obj, override_invariants=override_invariants, words=words)
    ctx.obj.as_json = as_json


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its status; every expected failure is a sentence on standard error.

    The kernel is made by `commands.context_settings["obj"]`, where that is set, in place of this machine's.
    """
    _open_streams()
    try:
        status = _run(arguments)
        _flush()
    except click.ClickException as error:  # missing arguments are such an error, too
        error.message = visible_lines(error.message)  # type: ignore[misc] # final, and the only way to its words
        with contextlib.suppress(OSError):
            error.show()
        status = 2
    except click.exceptions.Abort:
        status = 130
    except VpcctlError as error:
        # A problem is one line, even if the names of its file and its place contain line breaks.
        _complain(*(map(str, error.problems) if isinstance(error, DocumentError) else str(error).split("\n")))
        status = error.exit_status
    except UnwrittenError as error:
        status = _unwritten(error)
    sys.exit(status)


def _run(arguments: list[str] | None) -> int:
    try:
        status = commands.main(arguments, prog_name="vpcctl", standalone_mode=False)
    except SystemExit as end:
        status = end.code
    return status if isinstance(status, int) else 0


def _open_streams() -> None:
    """Have descriptors 0 to 2 in use: what we open must not take the place of a stream that was closed."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w", closefd=False))
    # Words of users that cannot be encoded become escapes, as Python has it on standard error.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Have everything written that was said; UnwrittenError where it cannot be."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise UnwrittenError(error) from error


def _complain(*lines: str) -> None:
    with contextlib.suppress(OSError):
        for line in lines:
            print(f"vpcctl: {visible(line)}", file=sys.stderr)


def _unwritten(error: UnwrittenError) -> int:
    """The status for output that no reader accepts; Python must not write it again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error.cause, BrokenPipeError):
        # The reader closed the pipe, so no message can reach it (signal(7): SIGPIPE).
        return 141
    _complain(f"the output cannot be written: {error.cause.strerror}")
    return KernelError.exit_status
