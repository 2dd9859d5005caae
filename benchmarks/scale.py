"""A very large policy: time and memory of `apply-policy`, beside `nft -f` of the ruleset that it compiles.

    ./run bench scale [--rules N] [--turns N]

Each rule allows TCP from an address of its own to a port.  Figures are those of whole processes: seconds, and the peak
of memory.  The kernel's memory is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.results import Comparison, Report
from vpcctl import Controller, Document
from vpcctl.compiler import compile_vpc
from vpcctl.engine.state import Store
from vpcctl.lab import STATE_DIR

RULES = 100_000
FIRST = int(IPv4Address("172.16.0.0"))
OURS, PLAIN = "vpcctl apply-policy", "nft -f of the compiled text"


def policy(count: int, changed: int = -1) -> dict[str, Any]:
    """`count` rules that do not overlap; the rule number `changed` is for another port."""
    rules = [
        {
            "action": "allow",
            "protocol": "tcp",
            "port": 9 if number == changed else 1024 + number % 50,
            "source": str(IPv4Address(FIRST + number)),
        }
        for number in range(count)
    ]
    return {"vpc": "bench", "subnet": "server", "ingress": rules}


def measured(*words: str) -> tuple[float, float]:
    """Seconds and peak of memory in MB of a command, which must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: status {process.returncode}")
    return time.perf_counter() - started, used.ru_maxrss / 1024


def run(count: int, turns: int) -> Report:
    controller = Controller(STATE_DIR)
    controller.create_vpc("bench", "10.0.0.0/8")
    for name, prefix in (("client", "10.1.0.0/24"), ("server", "10.2.0.0/24")):
        controller.create_subnet("bench", name, prefix, public=False)
    file, text = Path("/run/policy.json"), Path("/run/bench.nft")
    one = f"{OURS}, one rule changed"
    seconds: dict[str, list[float]] = {PLAIN: [], OURS: [], one: []}
    memory: dict[str, list[float]] = {PLAIN: [], OURS: [], one: []}
    for turn in range(turns):
        controller.apply_policies(Document(policy(1), "bench.json"))
        for side, changed in ((OURS, -1), (one, turn)):
            file.write_text(json.dumps(policy(count, changed)))
            for samples, value in zip(
                (seconds, memory), measured("vpcctl", "-q", "apply-policy", str(file)), strict=True
            ):
                samples[side].append(value)
        text.write_text(compile_vpc(Store(STATE_DIR).load().world, "bench", "bench").text(1))
        for samples, value in zip((seconds, memory), measured("unshare", "--net", "nft", "-f", str(text)), strict=True):
            samples[PLAIN].append(value)
    report = Report("scale")
    report.figures["policy, MB"] = file.stat().st_size / 1e6
    report.figures["record, MB"] = (STATE_DIR / "state.json").stat().st_size / 1e6
    report.figures["compiled text, MB"] = text.stat().st_size / 1e6
    controller.destroy()
    report.comparisons += [
        Comparison(f"{count:,} rules: time", "s", PLAIN, seconds),
        Comparison(f"{count:,} rules: peak of memory", "MB", PLAIN, memory),
    ]
    return report


def main() -> None:
    parser = results.parser("scale", __doc__)
    parser.add_argument("--rules", type=int, default=RULES)
    parser.add_argument("--turns", type=int, default=1)
    options = parser.parse_args()
    results.in_lab()
    results.finish(run(options.rules, options.turns), options.json)


if __name__ == "__main__":
    main()
