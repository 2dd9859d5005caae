"""The benchmarks run: the smallest size of each program, in a lab.  No figure is judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vpcctl.lab import Lab

ROOT = Path(__file__).parents[2]
# Seconds, on however busy a machine.
PATIENCE = 600


def report(lab: Lab, *words: str) -> dict[str, Any]:
    """The JSON that a program wrote."""
    file = "/run/benchmark.json"
    command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:], "--json", file]
    lab.run(command, cwd=ROOT, timeout=PATIENCE)
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


def test_rules(lab: Lab) -> None:
    found = report(lab, "rules", "--rules", "20", "--turns", "1")
    in_force, done = (comparison["medians"] for comparison in found["comparisons"][:2])
    changes = set(in_force) - {found["comparisons"][0]["reference"]}
    assert len(changes) == 3
    assert all(in_force[change] <= done[change] for change in changes)
    assert not left(lab)


def test_loss(lab: Lab) -> None:
    """Of an allowed stream nothing is lost, and of a denied one nothing leaks."""
    found = report(lab, "loss", "--applies", "1", "--rules", "3")
    [ours] = [side for side in sides(found) if side.startswith("vpcctl")]
    figures = {name.removeprefix(f"{ours}: "): value for name, value in found["figures"].items()}
    assert figures["changes"] == 1
    assert figures["established, sent"] > 100
    assert figures["established, lost"] == figures["new, lost"] == figures["denied, leaked"] == 0
    assert not left(lab)


def test_scale(lab: Lab) -> None:
    found = report(lab, "scale", "--rules", "50")
    assert len(sides(found)) == 3
    assert sides(found) == sides(found, 1)
    assert not left(lab)


def test_packets(lab: Lab) -> None:
    found = report(lab, "packets", "--turns", "1")
    assert {"reference", "here: 10 rules", "here: 10,000 rules"} <= sides(found)
    assert not left(lab)


def test_dataplane(lab: Lab) -> None:
    found = report(lab, "dataplane", str(ROOT), "--turns", "1")
    assert sides(found) == {"here", "other"}
    assert not left(lab)


def test_changes(lab: Lab) -> None:
    found = report(lab, "changes", "--turns", "1", "--rules", "100", "--prefixes", "100")
    assert found["figures"]["100 mixed rules: steps"] > 0
    assert len(found["comparisons"]) == 2
    assert not left(lab)


def test_hardened(lab: Lab) -> None:
    assert sides(report(lab, "hardened", "--turns", "1")) == {"untested", "default", "hardened"}
    assert not left(lab)


def test_bombs(lab: Lab) -> None:
    found = report(lab, "bombs", "--sizes", "3")
    assert found["figures"]["3³, apply-policy: exit status"] == 0
    assert not left(lab)


def test_profiles(lab: Lab) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.profiles",
        "create-instance",
        "repair",
        "attach",
        "--vpcs",
        "1",
        "--top",
        "3",
    ]
    output = lab.run(command, cwd=ROOT, timeout=PATIENCE).stdout
    assert output.count("Ordered by: cumulative time") == 3
    assert output.count("imports: ") == 2
    assert not left(lab)


def test_profile_of_rules(lab: Lab) -> None:
    command = [sys.executable, "-m", "benchmarks.rules", "--rules", "20", "--profile"]
    assert "--- one of 20 rules" in lab.run(command, cwd=ROOT, timeout=PATIENCE).stdout
    assert not left(lab)


def test_a_benchmark_outside_the_lab_is_refused() -> None:
    """It would remove namespaces and tables of the real machine."""
    environment = {name: value for name, value in os.environ.items() if name != "VPCCTL_LAB"}
    for name in ("commands", "profiles"):
        words = [sys.executable, "-m", f"benchmarks.{name}"]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert "benchmarks run in the lab" in done.stderr
