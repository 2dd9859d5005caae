"""One rule with longer and longer lists on every side: the cost of applying it, and of commands afterwards.

    ./run bench bombs [--sizes N…] [-- PROGRAM…]

PROGRAM is the `vpcctl` to measure, for comparison with another version.  Times are processor seconds of the command and
its children, peaks those of its memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.results import Report

SIZES = (20, 50, 100, 300)
# A command that needs more than this is stopped.
SECONDS, BYTES = 240, 4 << 30


def spaced(network: str, count: int) -> list[str]:
    """Addresses of a /16 that do not join to prefixes."""
    return [f"{network}.{2 * number // 256}.{2 * number % 256 + 1}" for number in range(count)]


def policy(count: int) -> dict[str, Any]:
    """One rule: so many sources, destinations and ports."""
    rule: dict[str, Any] = {"action": "allow", "protocol": "tcp", "port": list(range(1, 2 * count, 2))}
    rule |= {"source": spaced("10.1", count), "destination": spaced("10.2", count)}
    return {"vpc": "bench", "subnet": "server", "ingress": [rule]}


def measured(words: list[str]) -> tuple[float, int, int]:
    """Run a command; its processor seconds, peak memory in MB and exit status."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))

    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=limited)
    _, status, used = os.wait4(process.pid, 0)
    seconds = used.ru_utime + used.ru_stime
    return seconds, used.ru_maxrss >> 10, os.waitstatus_to_exitcode(status)


def run(program: list[str], sizes: list[int]) -> Report:
    command, report = [*program, "-q"], Report("bombs")
    subprocess.run([*command, "create-vpc", "--name", "bench", "--cidr", "10.0.0.0/8"], check=True)
    for name, prefix in (("client", "10.1.0.0/16"), ("server", "10.2.0.0/16")):
        made = ["create-subnet", "--vpc", "bench", "--name", name, "--cidr", prefix, "--type", "private"]
        subprocess.run([*command, *made], check=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.json"
        for count in sizes:
            file.write_text(json.dumps(policy(count)))
            for words in (
                ["apply-policy", str(file)],
                ["status"],
                ["show-policy", "--vpc", "bench", "--hits"],
                ["matrix", "--vpc", "bench"],
            ):
                seconds, peak, status = measured([*command, *words])
                name = f"{count}³, {words[0]}"
                report.figures |= {f"{name}: s": seconds, f"{name}: MB": peak, f"{name}: exit status": status}
    subprocess.run([*command, "delete-vpc", "--name", "bench", "--cascade"], check=False)
    return report


def main() -> None:
    parser = results.parser("bombs", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="N")
    parser.add_argument("program", nargs="*", default=["vpcctl"], metavar="PROGRAM")
    options = parser.parse_args()
    results.in_lab()
    results.finish(run(options.program, options.sizes), options.json)


if __name__ == "__main__":
    main()
