"""Counts what each command imports: imports dominate the start of a process, which is too short to be timed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

import pytest

from vpcctl.lab import Lab

# Runs a command as the program does, and prints the imported modules at the very end of the process.
IMPORTED = """
import atexit, json, sys
from vpcctl.__main__ import main
known = sys.stderr
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=known))
sys.argv[0] = "vpcctl"
main()
"""
# Modules whose import takes a millisecond or more: a command imports them only if it needs them.
HEAVY = frozenset(
    """argparse asyncio base64 concurrent.futures ctypes difflib email hashlib hmac http importlib.metadata
    importlib.resources ipaddress json jsonschema logging multiprocessing nftables pathlib pkg_resources pyroute2
    random secrets shutil socket ssl subprocess tempfile textwrap urllib.parse zipfile""".split()
)
VALUES = {"ipaddress", "json", "pathlib", "urllib.parse"}
NETLINK = {"socket"}
KERNEL = VALUES | NETLINK | {"ctypes", "nftables"}


@dataclass(frozen=True, slots=True)
class Imports:
    """At most so many modules of ours, and exactly these of the heavy ones."""

    ours: int
    heavy: set[str]


IMPORTS = {
    "--version": Imports(7, set()),
    "--help": Imports(8, {"shutil", "textwrap"}),
    "create-subnet --help": Imports(8, {"shutil", "textwrap"}),
    "list-vpcs": Imports(30, VALUES),
    "explain shop/web shop/db tcp/80": Imports(44, VALUES | NETLINK),
    "flows shop": Imports(72, VALUES | NETLINK | {"ctypes"}),
    "status": Imports(78, KERNEL),
    "create-subnet --vpc shop --name new --cidr 10.0.9.0/24 --type private": Imports(82, KERNEL | {"shutil"}),
    "create-instance --vpc shop --subnet web --name more": Imports(82, KERNEL | {"shutil"}),
    "delete-instance --vpc shop --name more": Imports(82, KERNEL | {"shutil"}),
}
SHOP = {
    "vpcs": [
        {
            "name": "shop",
            "cidr": "10.0.0.0/16",
            "subnets": [
                {"name": "web", "cidr": "10.0.1.0/24", "type": "public"},
                {"name": "db", "cidr": "10.0.2.0/24", "type": "private"},
            ],
        }
    ]
}


@pytest.fixture(scope="module")
def imported(module_lab: Lab) -> dict[str, set[str]]:
    """What each command imported."""
    module_lab.vpcctl("apply", "-", input=json.dumps(SHOP))
    found = {}
    for words in IMPORTS:
        ran = module_lab.python(IMPORTED, *words.split(), check=False)
        assert ran.returncode in (0, 1), ran
        found[words] = set(json.loads(ran.stderr.splitlines()[-1]))
    return found


@cache
def bare() -> frozenset[str]:
    """What Python imports by itself on this machine."""
    code = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    return frozenset(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))


@pytest.mark.parametrize("words", IMPORTS)
def test_a_command_imports_no_more_of_ours_than_before(imported: dict[str, set[str]], words: str) -> None:
    ours = {name for name in imported[words] if name.startswith("vpcctl")}
    assert "vpcctl.cli" in ours
    assert len(ours) <= IMPORTS[words].ours, sorted(ours)


@pytest.mark.parametrize("words", IMPORTS)
def test_a_command_imports_what_is_heavy_only_if_it_needs_it(imported: dict[str, set[str]], words: str) -> None:
    assert imported[words] & HEAVY - bare() == IMPORTS[words].heavy - bare()
