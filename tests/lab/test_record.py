"""The order of system calls that docs/state.md tells is the one that the program keeps."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.lab.machine import run_all
from vpcctl.engine.state import COPIES
from vpcctl.kernel.verified import NOTES
from vpcctl.lab import STATE_DIR, Lab

PAGE = (Path(__file__).parents[2] / "docs/state.md").read_text()
LOG = "/run/strace.log"
# What changes files, or decides who may.  What reads, and what talks to the network, is left out.
TRACED = "openat,flock,ftruncate,pwrite64,write,fsync,renameat,unlinkat,linkat,unlink,unshare,mount,umount2"
CALL = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)(?:<(.*?)>)?")
COMMANDS = {
    "create-instance": "create-instance --vpc shop --subnet web --name two",
    "delete-instance": "delete-instance --vpc shop --name two",
}

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace(1) is not installed")


def told(command: str) -> list[str]:
    """The calls that the page tells, one a line, blanks made one."""
    block = re.search(rf"<!-- calls: {command} -->\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    return [" ".join(line.split()) for line in block[1].splitlines()]


def seen(lab: Lab, command: str) -> list[str]:
    """The calls of a command in the words of the page."""
    strace = ["strace", "-f", "-y", "-qq", "-o", LOG, "-e", f"trace={TRACED}"]
    lab.run([*strace, sys.executable, "-m", "vpcctl", "-q", *COMMANDS[command].split()])
    found = (CALL.fullmatch(line) for line in lab.run(["cat", LOG]).stdout.splitlines())
    return [words for match in found if match and int(match[3]) >= 0 and (words := in_words(match))]


def in_words(match: re.Match[str]) -> str | None:
    call, arguments, _, opened = match.groups()
    strings = re.findall(r'"([^"]*)"', arguments)
    descriptors = re.findall(r"\d+<(.*?)>", arguments)
    if call == "unshare":
        return f"unshare {arguments}"
    if call in ("mount", "umount2", "unlink"):
        return f"{call} {strings[1] if call == 'mount' else strings[0]}"
    if call == "linkat":
        return f"linkat {descriptors[-1]}/{strings[-1]}"
    place = opened if call == "openat" else descriptors[0] if descriptors else ""
    if call == "renameat" and NOTES.name not in strings[1]:
        return named(f"renameat {place}/{strings[0]} → {strings[1]}")
    ours = place and place.startswith((str(STATE_DIR), str(COPIES))) and NOTES.name not in place
    return named(f"{call} {place}") if ours else None


def named(words: str) -> str:
    """A path, with the names that the page uses for the two directories, a part and a copy."""
    parts = re.sub(r"[0-9a-f]{64}\.json", "PART", words.replace(f"{STATE_DIR}", "STATE"))
    copies = re.sub(r"[0-9a-f]{16}\.json", "copy", parts)
    return re.sub(r"[0-9a-f]{16}\.parts", "parts", copies).replace(str(COPIES), "COPIES")


def test_the_calls_of_a_change_are_those_that_the_page_tells(lab: Lab) -> None:
    run_all(
        lab,
        [
            "create-vpc --name shop --cidr 10.0.0.0/16",
            "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
        ],
    )
    whole = seen(lab, "create-instance")
    assert whole == told("create-instance")
    assert seen(lab, "delete-instance") == whole[: whole.index("mount /run/netns")] + told("delete-instance")
