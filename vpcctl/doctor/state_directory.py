"""The record and what it speaks of: the state directory, and objects of ours that no record knows."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from vpcctl.doctor.finding import Finding
from vpcctl.engine.state import STATE_FILE, State, Store
from vpcctl.errors import StateError
from vpcctl.names import DEFAULT_STATE_DIR

SUBJECT = "state"


def read(store: Store) -> tuple[State | None, list[Finding]]:
    """The state in `store`, None where it cannot be read, and what is wrong with directory and file."""
    directory = store.directory
    found = [*_directory(directory), *_file(directory / STATE_FILE)]
    try:
        return store.load_whole(), found
    except StateError as error:
        if directory.exists() and not os.access(directory, os.R_OK):
            words = "Run doctor as the user that makes VPCs."
            return None, [*found, Finding("note", SUBJECT, str(error), "Doctor cannot see the VPCs.", words)]
        why = "Until this is fixed, commands that change something are refused; existing networks keep working."
        words, commands = "See docs/operations.md, «A damaged state file».", tuple[str, ...]()
        if store.has_copy():
            words, commands = (
                "Take back the copy that was made with the last change:",
                (command(store, "repair --adopt"),),
            )
        return None, [*found, Finding("fatal", SUBJECT, str(error), why, words, commands)]


def command(store: Store, words: str) -> str:
    """A vpcctl command on this very state directory, for a shell."""
    directory = str(store.directory)
    if directory in (DEFAULT_STATE_DIR, os.environ.get("VPCCTL_STATE_DIR")):
        return f"vpcctl {words}"
    return f"vpcctl --state-dir {shlex.quote(directory)} {words}"


def _directory(directory: Path) -> Iterator[Finding]:
    try:
        status = os.lstat(directory)
    except OSError:
        return
    if stat.S_ISLNK(status.st_mode):
        why = "Links are not followed here: whoever can change the link would choose what is read as the record."
        yield Finding("fatal", SUBJECT, f"{directory} is a symbolic link", why, "Name the real one with --state-dir.")
        return
    quoted = shlex.quote(str(directory))
    if status.st_uid not in (0, os.geteuid()):
        why = "Its owner can make the record say whatever they like."
        owner = f"{directory} belongs to user {status.st_uid}"
        yield Finding("fatal", SUBJECT, owner, why, "Take it:", (f"chown {os.geteuid()} {quoted}",))
    if status.st_mode & 0o077:
        why = "The record names every VPC, address and policy; it is for its owner alone."
        mode = f"{directory} has mode {stat.S_IMODE(status.st_mode):04o}, 0700 is expected"
        yield Finding("warning", SUBJECT, mode, why, "Shut it:", (f"chmod 0700 {quoted}",))


def _file(file: Path) -> Iterator[Finding]:
    try:
        status = os.lstat(file)
    except OSError:
        return
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        why = "The record names every VPC, address and policy; it is for its owner alone."
        mode = f"{file} has mode {stat.S_IMODE(status.st_mode):04o}, 0600 is expected"
        yield Finding("warning", SUBJECT, mode, why, "Shut it:", (f"chmod 0600 {shlex.quote(str(file))}",))


def standing(state: State, boot_id: str, store: Store) -> Iterator[Finding]:
    """Is the record finished, and of this boot?"""
    if state.pending is not None:
        yield Finding(
            "warning",
            SUBJECT,
            "a command was interrupted before it was done",
            "The kernel may be half-way between two states; what is denied stays denied meanwhile.",
            "Finish it:",
            (command(store, "repair"),),
        )
    if state.items and state.boot_id != boot_id:
        yield Finding(
            "fatal",
            SUBJECT,
            "the machine was started again after the VPCs were made",
            "Namespaces, links and firewalls do not outlive a reboot: none of the VPCs exists now.",
            "Make them again:",
            (command(store, "repair"),),
        )
    elif state.serial and state.pending is None:
        yield Finding(
            "ok", SUBJECT, f"{store.directory}: serial {state.serial}, VPCs: {len(state.world.vpcs)}, this boot"
        )
    elif not state.serial:
        yield Finding("ok", SUBJECT, f"{store.directory}: no VPC has been made yet")


def strays(known: str, recorded: bool, tagged: Sequence[tuple[str, str, str]], directory: Path) -> Iterator[Finding]:
    """Objects with our tag of another state id than `known`.

    `tagged` are (what it is in words, its tag, the command that removes it); `recorded` tells whether there is a
    record at all.
    """
    others = [one for one in tagged if one[1].split("/")[1:2] != [known]]
    if not others:
        return
    ids = ", ".join(sorted({tag.split("/")[1] for _, tag, _ in others}))
    things = ", ".join(thing for thing, _, _ in others)
    yield Finding(
        "warning",
        SUBJECT,
        f"{things} {'are' if len(others) > 1 else 'is'} of state {ids}, "
        f"{'another state than that' if recorded else 'with no record'} in {directory}",
        "vpcctl touches nothing that its record does not know, so these stay, and the next VPC of that name is refused."
        if not recorded
        else "The host has one table for all uplinks: two states on one machine take it from each other.",
        "Name the directory that they belong to with --state-dir; if it is lost, remove them:",
        tuple(command for _, _, command in others),
    )
