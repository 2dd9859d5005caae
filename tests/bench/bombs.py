"""One rule with ever longer lists on every side: what it costs to apply it, and to look at it afterwards.

    vpcctl lab -- python -m tests.bench.bombs [PROGRAM...]

PROGRAM is the `vpcctl` to measure, for comparison with another version.  Times are processor seconds of the command
and what it starts, peaks are of its memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = (20, 50, 100, 300)
# A command that needs more than this is ended.
SECONDS, BYTES = 240, 4 << 30


def spaced(network: str, count: int) -> list[str]:
    """Addresses of a /16 that do not join to prefixes."""
    return [f"{network}.{2 * number // 256}.{2 * number % 256 + 1}" for number in range(count)]


def policy(count: int) -> dict:
    """One rule: so many sources, destinations and ports."""
    rule = {"action": "allow", "protocol": "tcp", "port": list(range(1, 2 * count, 2))}
    rule |= {"source": spaced("10.1", count), "destination": spaced("10.2", count)}
    return {"vpc": "bench", "subnet": "server", "ingress": [rule]}


def measured(words: list[str]) -> str:
    """Run a command; its status, processor seconds and peak memory, in words."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))

    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=limited)
    _, status, used = os.wait4(process.pid, 0)
    seconds = used.ru_utime + used.ru_stime
    return f"{seconds:6.1f} s {used.ru_maxrss >> 10:5} MB, status {os.waitstatus_to_exitcode(status)}"


def main() -> None:
    program = sys.argv[1:] or [sys.executable, "-m", "vpcctl"]
    run = [*program, "-q"]
    subprocess.run([*run, "create-vpc", "--name", "bench", "--cidr", "10.0.0.0/8"], check=True)
    for name, prefix in (("client", "10.1.0.0/16"), ("server", "10.2.0.0/16")):
        made = ["create-subnet", "--vpc", "bench", "--name", name, "--cidr", prefix, "--type", "private"]
        subprocess.run([*run, *made], check=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.json"
        for count in SIZES:
            file.write_text(json.dumps(policy(count)))
            print(f"{count}³: apply-policy {measured([*run, 'apply-policy', str(file)])}", flush=True)
            for words in (["status"], ["show-policy", "--vpc", "bench", "--hits"], ["matrix", "--vpc", "bench"]):
                print(f"      {words[0]:12} {measured([*run, *words])}", flush=True)
    subprocess.run([*run, "delete-vpc", "--name", "bench", "--cascade"], check=False)


if __name__ == "__main__":
    main()
