"""Mininet: the same number of hosts and switches.

Mininet makes a Linux bridge for each switch, a namespace with a shell for each host, and a link for each host; it has
no firewall.  `vpcctl apply` makes a VPC with a subnet for each switch and the same number of instances, with policies.
Both are whole processes.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from benchmarks.commands import POLICY, settled
from benchmarks.results import Comparison, alternate, took
from benchmarks.rivals import SkipComparison, require

PACKAGES = ("mininet", "bridge-utils")
# Mininet is a package of Debian's Python.
PYTHON = "/usr/bin/python3"
# Makes the network, and removes it after a line on standard input.
PROGRAM = """
import sys
from mininet.net import Mininet
from mininet.nodelib import LinuxBridge
from mininet.topo import LinearTopo
switches, hosts = map(int, sys.argv[1:])
net = Mininet(topo=LinearTopo(switches, hosts // switches), switch=LinuxBridge, controller=None)
net.start()
print("made", flush=True)
sys.stdin.readline()
net.stop()
"""


def measure(switches: int, hosts: int, turns: int) -> list[Comparison]:
    """Make and remove a network of so many switches and hosts."""
    require("mn", "brctl", PYTHON)
    if subprocess.run([PYTHON, "-c", "import mininet"], capture_output=True).returncode:
        raise SkipComparison(f"{PYTHON} cannot import mininet")
    Path("/run/environment.json").write_text(json.dumps(_environment(switches, hosts)))
    removals: dict[str, list[float]] = {"mininet": [], "vpcctl": []}

    def mininet() -> float:
        words = [PYTHON, "-c", PROGRAM, str(switches), str(hosts)]
        started = time.perf_counter()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(words, text=True, **pipes)  # type: ignore[call-overload]
        while (line := process.stdout.readline()) and line != "made\n":
            pass
        made = time.perf_counter() - started
        _, errors = process.communicate("\n")
        if line != "made\n":
            raise SkipComparison(f"mininet failed: {errors.strip()[-300:]}")
        removals["mininet"].append(time.perf_counter() - started - made)
        return made

    def vpcctl() -> float:
        made = took("vpcctl", "-q", "apply", "/run/environment.json")
        removals["vpcctl"].append(took("vpcctl", "destroy", "--all", "--yes"))
        settled()
        return made

    made = alternate(turns, {"mininet": mininet, "vpcctl": vpcctl})
    what = f"{switches} switches, {hosts} hosts"
    return [
        Comparison(f"make {what}", "s", "mininet", made),
        Comparison(f"remove {what}", "s", "mininet", removals),
    ]


def _environment(switches: int, hosts: int) -> dict[str, object]:
    """One VPC; each subnet has an instance by itself, the others are named."""
    more = hosts // switches - 1
    subnets = [
        {
            "name": f"s{number}",
            "cidr": f"10.0.{number}.0/24",
            "type": "private",
            "policy": POLICY,
            "instances": [{"name": f"h{number}-{place}"} for place in range(more)],
        }
        for number in range(switches)
    ]
    return {"vpcs": [{"name": "bench", "cidr": "10.0.0.0/16", "subnets": subnets}]}
