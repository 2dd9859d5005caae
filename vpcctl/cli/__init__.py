"""The command line: words in, words out, exit statuses.  Commands stand in modules by noun and are imported late."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from vpcctl import __version__
from vpcctl.cli.session import EXIT_STATUSES, Session
from vpcctl.errors import VpcctlError

# command -> module of this package; the function has the same name with underscores.
COMMANDS: dict[str, str] = {
    "create-vpc": "vpcs",
    "delete-vpc": "vpcs",
    "list-vpcs": "vpcs",
    "show-vpc": "vpcs",
    "create-subnet": "subnets",
    "delete-subnet": "subnets",
    "list-subnets": "subnets",
    "create-nat-gateway": "subnets",
    "delete-nat-gateway": "subnets",
    "create-instance": "instances",
    "delete-instance": "instances",
    "list-instances": "instances",
    "publish-port": "instances",
    "unpublish-port": "instances",
    "exec": "instances",
    "create-peering": "peerings",
    "delete-peering": "peerings",
    "list-peerings": "peerings",
    "apply-policy": "policies",
    "clear-policy": "policies",
    "show-policy": "policies",
    "compile": "policies",
    "show-ruleset": "policies",
    "explain": "traffic",
    "matrix": "traffic",
    "verify": "traffic",
    "log": "traffic",
    "plan": "environments",
    "apply": "environments",
    "export": "environments",
    "status": "machine",
    "repair": "machine",
    "install-service": "machine",
    "destroy": "machine",
    "lab": "machine",
    "doctor": "machine",
}


class Commands(click.Group):
    """A group that imports the module of a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"vpcctl.cli.{COMMANDS[name]}")
        return getattr(module, name.replace("-", "_"))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """An unknown command is told with the nearest known one."""
        from vpcctl.documents import nearest

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}; {nearest(args[0], sorted(COMMANDS))}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: " + "; ".join(f"{status} {meaning}" for status, meaning in EXIT_STATUSES.items()) + ".",
)
@click.version_option(__version__, prog_name="vpcctl")
@click.option("--state-dir", metavar="DIR", help="Where state.json and lock are. [env: VPCCTL_STATE_DIR]")
@click.option("-v", "--verbose", count=True, help="Say more on standard error.")
@click.option("-q", "--quiet", count=True, help="Say less on standard error.")
@click.pass_context
def commands(ctx: click.Context, state_dir: str | None, verbose: int, quiet: int) -> None:
    """Virtual private clouds on one Linux machine: real isolation, real policies, real packets.

    \b
    vpcctl create-vpc --name shop --cidr 10.0.0.0/16
    vpcctl create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public
    vpcctl apply-policy policy.json
    vpcctl exec --vpc shop --subnet web -- ping 10.0.1.1

    Try it without root and without a trace in `vpcctl lab`.
    """
    ctx.obj = Session(state_dir or os.environ.get("VPCCTL_STATE_DIR"), verbose - quiet)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its status; every expected failure is a sentence on standard error."""
    try:
        status = commands.main(arguments, prog_name="vpcctl", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = 2
    except click.ClickException as error:
        error.show()
        status = 2
    except click.exceptions.Abort:
        status = 130
    except VpcctlError as error:
        for line in str(error).splitlines():
            print(f"vpcctl: {line}", file=sys.stderr)
        status = error.exit_status
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say (signal(7): SIGPIPE).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status if isinstance(status, int) else 0)
