"""What a command is about: objects named by position, by options, or not at all where only one VPC exists.

Options and positions that name different objects are usage errors; the message says what to type.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import click

from vpcctl.cli.session import About

# VPC/NAME as it may be, or VPC/*: names have no dots, so that no path with a suffix is taken for it.
PLACE = re.compile(r"[A-Za-z0-9][\w-]*/(?:\*|[A-Za-z0-9][\w-]*)", re.ASCII)
OBJECT = "vpcctl.object"
NEITHER = "name either --subnet or --instance, or write `vpcctl exec VPC/NAME -- COMMAND`"


def without_object(command: click.Command, ctx: click.Context, args: Sequence[str]) -> list[str]:
    """The words of a command that runs a program without its object, which is kept in `ctx`.

    The object is the first word behind the options, unless they name it; more options may follow it.
    """
    options = {name: param for param in command.get_params(ctx) for name in param.opts if name.startswith("-")}
    number = 0
    while number < len(args) and args[number].startswith("-") and args[number] != "--":
        name, sign, _ = args[number].partition("=")
        if name in ("--instance", "--subnet", *ctx.help_option_names):
            return list(args)
        option = options.get(name)
        valued = isinstance(option, click.Option) and not option.is_flag and not option.count
        number += 2 if valued and not sign else 1
    rest = list(args[number:])
    if not rest or rest[0] == "--":
        ctx.fail(NEITHER)
    ctx.meta[OBJECT] = rest[0]
    # A word alone is likelier a program whose instance was forgotten.
    if len(rest) == 1:
        ctx.fail("Missing argument 'COMMAND'." if "/" in rest[0] else NEITHER)
    return [*args[:number], *rest[1:]]


def settle(ctx: click.Context, about: About, words: Sequence[str], alias: str | None) -> None:
    """Put the names of the objects into the parameters of the command."""
    params = ctx.params
    if about.files is not None:
        words = _object_among(params, about)
        if not words:
            return
    if about.other is not None:
        words = [ctx.meta[OBJECT]] if OBJECT in ctx.meta else []
    if about.vpc == "vpc1":
        return _settle_pair(ctx, words)
    if len(words) > 1:
        ctx.fail(f"Got unexpected extra argument ({' '.join(words[1:])})")
    vpc, part = _split(ctx, about, words[0]) if words else (None, None)
    aliased = {about.alias: alias} if about.alias else {}
    by_vpc = {f"--{about.vpc}": params[about.vpc], **aliased}
    params[about.vpc] = _agreed(ctx, "VPCs", words, vpc, by_vpc)
    if about.other is not None:
        if OBJECT in ctx.meta:
            # Which of the two it is, is for whoever knows the VPC.
            params["name"] = part
    elif about.part is not None:
        kind = "subnets" if about.part == "subnet" else "objects"
        params[about.part] = _agreed(ctx, kind, words, part, {f"--{about.part}": params[about.part]})
        if about.part_required and params[about.part] is None:
            ctx.fail(f"Missing option '--{about.part}'. Write `{ctx.command_path} VPC/NAME`")
    if about.required and params[about.vpc] is None:
        params[about.vpc] = _only_vpc(ctx, about)
    return None


def _settle_pair(ctx: click.Context, words: Sequence[str]) -> None:
    if words and len(words) != 2:
        ctx.fail(f"two VPCs are expected, as in `{ctx.command_path} shop billing`")
    for number, option in enumerate(("vpc1", "vpc2")):
        named = words[number] if words else None
        ctx.params[option] = _agreed(ctx, "VPCs", words, named, {f"--{option}": ctx.params[option]})
        if ctx.params[option] is None:
            ctx.fail(f"Missing option '--{option}'. Write `{ctx.command_path} VPC VPC`")


def _object_among(params: dict[str, Any], about: About) -> list[str]:
    """The object out of the files of a command, which it leaves; a file of that name comes first."""
    assert about.files is not None
    files = params[about.files]
    if not files or not PLACE.fullmatch(files[0]) or os.path.lexists(files[0]):
        return []
    params[about.files] = files[1:]
    return [files[0]]


def _split(ctx: click.Context, about: About, word: str) -> tuple[str | None, str | None]:
    """The VPC and its part that a word names; a word without a slash is the one that must be named."""
    vpc, slash, part = word.partition("/")
    wanted = about.metavar.strip("[]").replace("[", "").replace("]", "")
    if slash and (about.part is None or not vpc or not part or "/" in part):
        ctx.fail(f"{word!r} is not {wanted}; write `{ctx.command_path} {wanted.replace('VPC', 'shop', 1)}`")
    if slash:
        return vpc, part
    return (None, word) if about.part is not None and about.part_required else (word, None)


def _agreed(
    ctx: click.Context, kind: str, words: Sequence[str], placed: str | None, options: dict[str, str | None]
) -> str | None:
    """The one name that position and options give, None if they give none."""
    given = {f"{option} {name}": name for option, name in options.items() if name is not None}
    if placed is not None:
        given = {" ".join(words): placed, **given}
    if len(set(given.values())) > 1:
        ctx.fail(f"{' and '.join(given)} name different {kind}; pass one of them")
    return next(iter(given.values()), None)


def _only_vpc(ctx: click.Context, about: About) -> str:
    """The only VPC; UsageError if there are several, or the command must be told."""
    names: tuple[str, ...] = ctx.obj.controller.vpc_names() if about.only else ()
    if len(names) == 1:
        return names[0]
    wanted = about.metavar.strip("[]").replace("[", "").replace("]", "")
    there = f" (known VPCs: {', '.join(names)})" if names else ""
    if about.only and not names:
        there = "; no VPC exists, `vpcctl create-vpc` creates one"
    ctx.fail(f"Missing option '--{about.vpc}'. Write `{ctx.command_path} {wanted}`{there}")
