"""Commands of ours against bare `ip -batch`, `nft -f` and a shell for the same objects.

    vpcctl lab -- python -m tests.bench.commands [VPCS SUBNETS [TURNS]]

Each figure is the median of whole processes that alternate in one run; the output is one JSON object.  Ratios are
meant to be compared, seconds are this machine's.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.bench.bare import script
from vpcctl.documents.environment import read_environment

POLICY = {
    "ingress": [{"action": "allow", "protocol": "tcp", "port": [80, 443]}, {"action": "allow", "protocol": "icmp"}]
}
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
# The kernel takes namespaces apart in the background, and links of theirs that end here stay until then.
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


def took(*words: str) -> float:
    """How many seconds a command takes, which must succeed."""
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return seconds


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


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    vpcs, subnets, turns = given + [1, 3, 5][len(given) :]
    document = environment(vpcs, subnets)
    Path("/run/environment.json").write_text(json.dumps(document))
    world = read_environment(document, "environment.json", lambda path: ({}, path))
    Path("/run/bare.sh").write_text(script(world))
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        seconds["bare"].append(took("sh", "/run/bare.sh"))
        cleared()
        for name, words in OURS.items():
            seconds[name].append(took("vpcctl", *words.split()))
        settled()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: round(value / medians["bare"], 2) for name, value in medians.items() if name != "bare"}
    ratios["apply again / apply"] = round(medians["apply again"] / medians["apply"], 2)
    told = {name: round(value, 3) for name, value in medians.items()}
    print(json.dumps({"vpcs": vpcs, "subnets": subnets, "turns": turns, "seconds": told, "of bare": ratios}, indent=1))


if __name__ == "__main__":
    main()
