"""A ruleset that was right is not compared again, until somebody changes nftables in its namespace."""

from __future__ import annotations

import json
import sys

import pytest

from tests.lab.machine import run_all
from vpcctl.lab import Lab

ROUTERS = ["calm-router", "shop-router"]
BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-vpc --name calm --cidr 10.1.0.0/16",
)
# Print the routers whose rulesets need no comparison.
UNTOUCHED = """
import json
from pathlib import Path
from vpcctl.engine.state import Store
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.kernel.verified import NOTES
from vpcctl.lab import STATE_DIR
from vpcctl.resources.kinds import Ruleset

kernel = LinuxKernel(NOTES)
rulesets = [item for item in Store(Path(STATE_DIR)).load().items if isinstance(item, Ruleset)]
print(json.dumps(sorted(key[1] for key in kernel.untouched(rulesets) if key[1] != "None")))
kernel.close()
"""


@pytest.fixture
def machine(lab: Lab) -> Lab:
    run_all(lab, BUILD)
    return lab


def untouched(lab: Lab) -> list[str]:
    found: list[str] = json.loads(lab.run([sys.executable, "-c", UNTOUCHED]).stdout)
    return found


def test_what_we_loaded_needs_no_look(machine: Lab) -> None:
    assert untouched(machine) == ROUTERS


@pytest.mark.parametrize(
    "done",
    [
        ["nft", "add", "rule", "inet", "vpcctl", "filter-forward", "accept"],
        ["nft", "add", "table", "ip", "other"],
        ["nft", "flush", "ruleset"],
    ],
    ids=lambda done: " ".join(done[1:3]),
)
def test_a_change_by_anybody_is_looked_at_and_then_needs_no_look_again(machine: Lab, done: list[str]) -> None:
    machine.run(done, netns="shop-router")
    assert untouched(machine) == ["calm-router"]
    right = done[2] == "table"
    assert machine.run(["vpcctl", "status"], check=False).returncode == (0 if right else 3)
    assert untouched(machine) == (ROUTERS if right else ["calm-router"])
    machine.vpcctl("repair")
    assert untouched(machine) == ROUTERS
    assert machine.vpcctl("status").stdout == "in sync\n"


def test_a_namespace_that_was_made_anew_is_another_one(machine: Lab) -> None:
    machine.run(["ip", "netns", "delete", "shop-router"])
    assert untouched(machine) == ["calm-router"]
    machine.vpcctl("repair")
    assert untouched(machine) == ROUTERS


def test_a_change_while_a_ruleset_is_loaded_is_not_taken_for_ours(machine: Lab) -> None:
    """The number of transactions shows it: it grew by more than our own."""
    script = UNTOUCHED.replace(
        "kernel = LinuxKernel(NOTES)",
        """
import subprocess
from vpcctl.kernel import tables
kernel = LinuxKernel()
whole = tables.load
def load(nft, item, *more):
    whole(nft, item, *more)
    words = "ip netns exec shop-router nft add rule inet vpcctl filter-forward accept"
    subprocess.run(words.split(), check=True)
tables.load = load
from vpcctl.engine import reconciler
from vpcctl.model import operations
more = lambda state: operations.create_instance(state.world, "shop", "web", "more", None, 1)
reconciler.change(Store(Path(STATE_DIR)), kernel, more)
""",
    )
    assert json.loads(machine.run([sys.executable, "-c", script]).stdout) == []
