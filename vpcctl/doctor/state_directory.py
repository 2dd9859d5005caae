"""The record and its objects: the state directory, and objects of ours that are in no record."""

from __future__ import annotations

import itertools
import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from vpcctl.doctor.finding import Finding
from vpcctl.engine.parts import FOLDER, READABLE, is_shared
from vpcctl.engine.state import STATE_FILE, State, Store
from vpcctl.errors import PrivilegeError, StateError
from vpcctl.names import DEFAULT_STATE_DIR

SUBJECT = "state"


def read(store: Store) -> tuple[State | None, list[Finding]]:
    """The state in `store`, None where it cannot be read, and what is wrong with directory and file."""
    directory = store.directory
    found = [*_directory(directory), *_file(directory / STATE_FILE), *_parts(directory / FOLDER)]
    try:
        return store.load_whole(), found
    except (StateError, PrivilegeError) as error:
        if directory.exists() and not os.access(directory, os.R_OK):
            words = "Run doctor as the user that creates the VPCs."
            return None, [*found, Finding("note", SUBJECT, str(error), "Doctor cannot see the VPCs.", words)]
        why = "Until this is fixed, vpcctl refuses commands that make changes. Existing networks keep working."
        words, commands = "See docs/operations.md, «A damaged state file».", tuple[str, ...]()
        if store.has_copy():
            words, commands = (
                "Restore the copy that the last change made:",
                (command(store, "repair --adopt"),),
            )
        return None, [*found, Finding("fatal", SUBJECT, str(error), why, words, commands)]


def command(store: Store, words: str) -> str:
    """A vpcctl command with this state directory, for a shell."""
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
        why = "vpcctl does not follow a link here: anyone who can change the link could replace the record."
        yield Finding("fatal", SUBJECT, f"{directory} is a symbolic link", why, "Pass the real one with --state-dir.")
        return
    quoted = shlex.quote(str(directory))
    if status.st_uid not in (0, os.geteuid()):
        why = "Its owner can write anything into the record."
        owner = f"{directory} belongs to user {status.st_uid}"
        yield Finding("fatal", SUBJECT, owner, why, "Take ownership:", (f"chown {os.geteuid()} {quoted}",))
    if status.st_mode & 0o077 and not is_shared(status):
        why = "The record contains every VPC, address and policy. Only its owner may read it."
        mode = f"{directory} has mode {stat.S_IMODE(status.st_mode):04o}, expected 0700"
        yield Finding("warning", SUBJECT, mode, why, "Restrict its mode:", (f"chmod 0700 {quoted}",))


def _parts(folder: Path) -> Iterator[Finding]:
    """The directory of the parts, and the first one of them that others may read."""
    # Whoever may not enter the state directory cannot even ask whether it is a link.
    if not os.access(folder, os.R_OK | os.X_OK) or folder.is_symlink():
        return
    yield from _directory(folder)
    found = (finding for file in sorted(folder.iterdir()) for finding in _file(file))
    yield from itertools.islice(found, 1)


def _file(file: Path) -> Iterator[Finding]:
    try:
        status = os.lstat(file)
    except OSError:
        return
    shared = READABLE if is_shared(os.lstat(file.parent)) else 0
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077 & ~shared:
        why = "The record contains every VPC, address and policy. Only its owner may read it."
        mode = f"{file} has mode {stat.S_IMODE(status.st_mode):04o}, expected 0600"
        yield Finding("warning", SUBJECT, mode, why, "Restrict its mode:", (f"chmod 0600 {shlex.quote(str(file))}",))


def standing(state: State, boot_id: str, store: Store) -> Iterator[Finding]:
    """Is the record finished, and of this boot?"""
    if state.pending is not None:
        yield Finding(
            "warning",
            SUBJECT,
            "a command was interrupted before it was complete",
            "The kernel may be between two states. Traffic that is denied stays denied.",
            "Complete it:",
            (command(store, "repair"),),
        )
    if state.items and state.boot_id != boot_id:
        yield Finding(
            "fatal",
            SUBJECT,
            "the machine was rebooted after the VPCs were created",
            "A reboot removes namespaces, links and firewall rules: none of the VPCs exists now.",
            "Restore them:",
            (command(store, "repair"),),
        )
    elif state.serial and state.pending is None:
        yield Finding(
            "ok", SUBJECT, f"{store.directory}: serial {state.serial}, VPCs: {len(state.world.vpcs)}, this boot"
        )
    elif not state.serial:
        yield Finding("ok", SUBJECT, f"{store.directory}: no VPC has been created yet")


def strays(known: str, recorded: bool, tagged: Sequence[tuple[str, str, str]], directory: Path) -> Iterator[Finding]:
    """Objects with our tag of another state id than `known`.

    `tagged` are (what it is in words, its tag, the command that removes it); `recorded` is true if there is
    a record.
    """
    others = [one for one in tagged if one[1].split("/")[1:2] != [known]]
    if not others:
        return
    ids = ", ".join(sorted({tag.split("/")[1] for _, tag, _ in others}))
    things = ", ".join(thing for thing, _, _ in others)
    yield Finding(
        "warning",
        SUBJECT,
        f"{things} {'belong' if len(others) > 1 else 'belongs'} to state {ids}, "
        f"{'not to the state' if recorded else 'with no record'} in {directory}",
        "vpcctl never changes an object that its record does not contain, so these stay. It refuses to create a VPC of"
        " the same name."
        if not recorded
        else "The host has one table for all uplinks: two states on one machine compete for it.",
        "Pass the directory that they belong to with --state-dir. If it is lost, remove them:",
        tuple(command for _, _, command in others),
    )
