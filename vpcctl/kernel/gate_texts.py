"""The texts of the gates that are loaded, so that a change of one rule is loaded as the change of one element.

They are in /run, and so are lost at a boot, as the kernel's tables are: a directory for each router, with an index and
a file for each gate.  Nothing in here is trusted: a text is used only if its hash is the fingerprint of the gate, and
the fingerprints of the gates only if they lead to the ruleset's fingerprint on record. If anything is missing or wrong,
the gates are compiled, and the ruleset is loaded whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from vpcctl.compiler import Compiled
from vpcctl.compiler.nft import FINGERPRINT_LENGTH
from vpcctl.digest import sha256
from vpcctl.documents import files
from vpcctl.kernel.verified import program

DIRECTORY = Path("/run/vpcctl/gates")
INDEX = "index.json"
# Each gate has a file named like it.  A gate's name has a dash, so it is never that of the index.
TEMPORARY = ".new"


def fingerprints(router: str, ruleset: str) -> Mapping[str, str]:
    """The fingerprints of the gates by name, as they were when the ruleset with that fingerprint was loaded."""
    return _gates(router, ruleset)


def text(router: str, gate: str, fingerprint: str) -> str | None:
    """The text of a loaded gate; None if it is not stored."""
    try:
        content = _read(router, gate)
    except OSError:
        return None
    if sha256(content).hex()[:FINGERPRINT_LENGTH] != fingerprint:
        return None
    return content.decode()


def keep(router: str, ruleset: Compiled) -> None:
    """Store the gates of the ruleset that was loaded.  They only save time, so a failure here is ignored."""
    gates = {name: part.fingerprint for name, part in ruleset.gates.items()}
    with contextlib.suppress(OSError):
        place = DIRECTORY / router
        if not gates:
            return forget(router)
        for directory in (DIRECTORY.parent, DIRECTORY, place):
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        there, before = {entry.name for entry in os.scandir(place)}, _gates(router)
        # Without an index, half-written files are not used.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place / INDEX)
        for name, part in ruleset.gates.items():
            if before.get(name) != part.fingerprint or name not in there:
                _write(place, name, part.text.encode())
        index = {"version": program(), "ruleset": ruleset.fingerprint, "gates": gates}
        _write(place, INDEX, json.dumps(index).encode())
        for name in there - gates.keys() - {INDEX}:
            os.unlink(place / name)


def forget(router: str) -> None:
    """Remove what is stored for a router."""
    import shutil

    shutil.rmtree(DIRECTORY / router, ignore_errors=True)


def _gates(router: str, ruleset: str | None = None) -> dict[str, str]:
    """The fingerprints in the index; none unless it is that of this program, and of `ruleset` if that is given."""
    try:
        found = json.loads(_read(router, INDEX))
        if found["version"] == program() and ruleset in (None, found["ruleset"]):
            return {str(name): str(value) for name, value in found["gates"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return {}


def _read(router: str, name: str) -> bytes:
    return files.read(DIRECTORY / router / name, files.LARGEST_STATE, follow=False, owners={os.geteuid()})


def _write(place: Path, name: str, content: bytes) -> None:
    """Replace a file; the holder of the lock is the only writer."""
    descriptor = os.open(place / TEMPORARY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    finally:
        os.close(descriptor)
    os.rename(place / TEMPORARY, place / name)
