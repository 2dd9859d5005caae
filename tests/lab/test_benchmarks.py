"""The benchmarks run: the smallest size of each program, in a lab.  No figure is judged."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from vpcctl.lab import Lab

ROOT = Path(__file__).parents[2]


def report(lab: Lab, *words: str) -> dict[str, Any]:
    """The JSON that a program wrote."""
    file = "/run/benchmark.json"
    lab.run([sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:], "--json", file], cwd=ROOT)
    found: dict[str, Any] = json.loads(lab.run(["cat", file]).stdout)
    assert found["program"] == words[0]
    assert {"processor", "cores", "memory_gib", "kernel"} <= set(found["machine"])
    assert {"vpcctl", "python", "nft", "ip"} <= set(found["versions"])
    for comparison in found["comparisons"]:
        assert set(comparison["ratios"]) == set(comparison["samples"]) - {comparison["reference"]}
        assert all(comparison["samples"].values())
    return found


def sides(found: dict[str, Any], number: int = 0) -> set[str]:
    return set(found["comparisons"][number]["medians"])


def left(lab: Lab) -> str:
    """Namespaces and tables of the machine."""
    return lab.run(["sh", "-c", "ip netns; nft list tables"]).stdout


def test_commands(lab: Lab) -> None:
    found = report(lab, "commands", "1", "2", "1")
    assert {"apply", "apply again", "status", "destroy"} <= sides(found)
    assert not left(lab)


def test_restore(lab: Lab) -> None:
    found = report(lab, "restore", "1", "--turns", "1")
    assert {"apply", "repair after a reboot", "status"} <= sides(found)
    assert not left(lab)


RIVALS = {
    "firewalls": ("iptables-nft", "firewalld"),
    "cni": ("/usr/lib/cni/bridge",),
    "mininet": ("mn", "brctl"),
    "podman": ("podman", "crun"),
}


@pytest.mark.parametrize("name", RIVALS)
def test_compare(name: str, lab: Lab) -> None:
    """A comparison whose program is missing is skipped with a reason, and the others have figures."""
    found = report(lab, "compare", name, "--turns", "1", "--rules", "10", "--hosts", "4")
    missing = [program for program in RIVALS[name] if shutil.which(program) is None]
    assert bool(found["skipped"]) >= bool(missing)
    assert found["comparisons"] or found["skipped"]
    if name == "firewalls":
        assert {"vpcctl", "nft, one linear rule each"} <= sides(found)
