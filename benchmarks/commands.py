"""Commands of ours against bare `ip -batch`, `nft -f` and a shell for the same objects.

    ./run bench commands [VPCS SUBNETS [TURNS]]

Each figure is the median of whole processes that take turns in one run.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.bare import script
from benchmarks.results import Comparison, Report, took
from vpcctl.documents.environment import read_environment

POLICY = {
    "ingress": [{"action": "allow", "protocol": "tcp", "port": [80, 443]}, {"action": "allow", "protocol": "icmp"}]
}
BARE = "bare ip, bridge, nft"
# Commands in the order in which each turn runs them.
OURS = {
    "apply": "-q apply /run/environment.json",
    "apply again": "-q apply /run/environment.json",
    "status": "status",
    "list-vpcs": "list-vpcs",
    "--help": "--help",
    "explain": "explain v0/s0 v0/s1 tcp/80",
    "create-subnet": "create-subnet --vpc v0 --name new --cidr 10.0.200.0/24 --type private",
    "create-instance": "create-instance --vpc v0 --subnet s0 --name more",
    "destroy": "destroy --all --yes",
}
# The kernel removes namespaces in the background, and their links to the host stay until then.
SETTLED = 0.05


def environment(vpcs: int, subnets: int) -> dict[str, Any]:
    """VPCs of so many subnets, each with a policy; the first subnet of each is public."""
    return {
        "vpcs": [
            {
                "name": f"v{number}",
                "cidr": f"10.{number}.0.0/16",
                "subnets": [
                    {
                        "name": f"s{place}",
                        "cidr": f"10.{number}.{place}.0/24",
                        "type": "private" if place else "public",
                        "policy": POLICY,
                    }
                    for place in range(subnets)
                ],
            }
            for number in range(vpcs)
        ]
    }


def written(document: dict[str, Any]) -> None:
    """Write an environment to /run, and a bare script that makes the same objects."""
    Path("/run/environment.json").write_text(json.dumps(document))
    world = read_environment(document, "environment.json", lambda path: ({}, path))
    Path("/run/bare.sh").write_text(script(world))


def cleared() -> None:
    """Remove what the bare commands made, and wait until it is gone."""
    names = [line.split()[0] for line in subprocess.check_output(["ip", "netns"], text=True).splitlines()]
    lines = "".join(f"netns delete {name}\n" for name in names)
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    settled()


def settled() -> None:
    """Wait until no uplink is left in the host."""
    while "vpc-" in subprocess.check_output(["ip", "-br", "link"], text=True):
        time.sleep(SETTLED)
    time.sleep(1)


def measure(vpcs: int, subnets: int, turns: int) -> Report:
    """Bare commands, then each of ours, in every turn."""
    written(environment(vpcs, subnets))
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        seconds[BARE].append(took("sh", "/run/bare.sh"))
        cleared()
        for name, words in OURS.items():
            seconds[name].append(took("vpcctl", *words.split()))
        settled()
    compared = Comparison(f"{vpcs} VPCs, {subnets} subnets each", "s", BARE, seconds)
    again = compared.medians["apply again"] / compared.medians["apply"]
    return Report("commands", [compared], {"apply again / apply": again})


def main() -> None:
    parser = results.parser("commands", __doc__)
    parser.add_argument("sizes", nargs="*", type=int, help="VPCS SUBNETS TURNS (default: 1 3 5)")
    options = parser.parse_args()
    results.in_lab()
    vpcs, subnets, turns = options.sizes + [1, 3, 5][len(options.sizes) :]
    results.finish(measure(vpcs, subnets, turns), options.json)


if __name__ == "__main__":
    main()
