"""What a shell offers for a word that is being typed: files, objects and services.

Names come from the state file.  Where it cannot be read, nothing is offered and nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from vpcctl.cli.session import CALL, About, Command
from vpcctl.errors import VpcctlError

if TYPE_CHECKING:
    from vpcctl.model.network import Vpc

VARIABLE = "_VPCCTL_COMPLETE"
FILES = {"files", "more", "environment", "tests"}
NAMES = {"place", "vpc", "vpc1", "vpc2", "name", "alias", "subnet", "instance", "command", "source", "destination"}
OUTSIDE = ("internet", "host")
ICMP = "icmp/echo-request"


def script(program: click.Command, shell: str) -> str:
    """The text that a shell evaluates to complete the words of `vpcctl`."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    # The class of a shell itself would start that shell, to see how old it is.
    return ShellComplete.source(kind(program, {}, "vpcctl", VARIABLE)) + "\n"


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem] | None:
    """What may be meant by `incomplete`; None if it is no object, file or service."""
    if param.name in FILES:
        objects = _offered(ctx, param, incomplete) if param.name == "files" and "/" in incomplete else []
        return _plain(objects, incomplete) or [CompletionItem(incomplete, type="file")]
    if param.name == "service":
        return _plain(services(), incomplete)
    if param.name == "group":
        import grp

        return _plain((group.gr_name for group in grp.getgrall()), incomplete)
    if param.name not in NAMES or not isinstance(ctx.command, Command):
        return None
    if param.name == "command" and not _names_object(ctx):
        return [CompletionItem(incomplete, type="file")]
    return _plain(_offered(ctx, param, incomplete), incomplete)


def services() -> list[str]:
    """The services that have names, as `explain` takes them."""
    from vpcctl.documents.vocabulary import SERVICES

    ports = sorted(set(SERVICES.values()))
    return ["any", ICMP, *(f"tcp/{port}" for port in ports), "udp/53", "udp/123"]


def _plain(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _names_object(ctx: click.Context) -> bool:
    """Is the word the object of a command that runs a program?"""
    about = ctx.command.about if isinstance(ctx.command, Command) else None
    if about is None or about.other is None or ctx.params.get("command"):
        return False
    return not any(ctx.params.get(str(name)) for name in (about.part, about.other))


def _offered(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    try:
        vpcs = _vpcs(ctx)
        return _candidates(ctx, param, vpcs)
    except (VpcctlError, OSError):
        return []


def _vpcs(ctx: click.Context) -> tuple[Vpc, ...]:
    """The VPCs on record in the state directory that the command line names."""
    from vpcctl.engine.machine import state_directory
    from vpcctl.engine.state import Store

    before = ctx.parent.params.get("state_dir") if ctx.parent is not None else None
    return tuple(Store(state_directory(ctx.meta.get(CALL, {}).get("state_dir") or before)).load().world.vpcs)


def _candidates(ctx: click.Context, param: click.Parameter, vpcs: tuple[Vpc, ...]) -> list[str]:
    """The names that may stand in a place of a command line."""
    command, name = ctx.command, param.name
    about = command.about if isinstance(command, Command) else None
    creates = (command.name or "").startswith("create-")
    if name in ("source", "destination"):
        return [*_placed(vpcs), *OUTSIDE]
    if about is None:
        return [vpc.name for vpc in vpcs] if name == "vpc" else []
    if name in ("vpc1", "vpc2") or about.vpc == "vpc1":
        return [vpc.name for vpc in vpcs]
    if name in ("vpc", "alias") or (about.part is None and name in ("name", "place")):
        return [] if creates and about.vpc == "name" else [vpc.name for vpc in vpcs]
    if name in ("place", "files", "command"):
        words = [] if about.part_required else [vpc.name for vpc in vpcs if name == "place"]
        return [] if creates and about.part == "name" else [*words, *_placed(vpcs, _kind(command, about))]
    if name == "name" and creates:
        return []
    chosen = [vpc for vpc in vpcs if ctx.params.get(about.vpc) in (None, vpc.name)]
    kind = name if name in ("subnet", "instance") else _kind(command, about)
    return list(dict.fromkeys(one for vpc in chosen for one in _parts(vpc, kind)))


def _kind(command: click.Command, about: About) -> str | None:
    """What the part of a VPC is that a command is about; None for instances and subnets."""
    if about.other is not None:
        return None
    return about.part if about.part != "name" else (command.name or "").rpartition("-")[2]


def _parts(vpc: Vpc, kind: str | None) -> list[str]:
    subnets = [] if kind == "instance" else [subnet.name for subnet in vpc.subnets]
    instances = [] if kind == "subnet" else [instance.name for instance in vpc.instances]
    return list(dict.fromkeys([*instances, *subnets]))


def _placed(vpcs: Iterable[Vpc], kind: str | None = None) -> list[str]:
    return [f"{vpc.name}/{part}" for vpc in vpcs for part in _parts(vpc, kind)]
