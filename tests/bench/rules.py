"""Ten thousand rules against ten: how long they take to be in force, and at what rate new flows are forwarded.

    vpcctl lab -- python -m tests.bench.rules

Figures are ratios within one run, the median of several turns that alternate; absolute times are this machine's.
"""

from __future__ import annotations

import json
import random
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from pyroute2 import NFCTSocket

from vpcctl.compiler import compile_vpc
from vpcctl.documents import reading
from vpcctl.documents.binding import attach
from vpcctl.documents.environment import read_environment
from vpcctl.documents.policies import read_policies
from vpcctl.engine import reconciler
from vpcctl.engine.state import Store
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.kernel.namespaces import entered
from vpcctl.lab import STATE_DIR
from vpcctl.model.network import World

PACKETS, TURNS = 15_000, 7
# The kernel frees the ruleset before in the background, for a while.
SETTLED = 1.0
ENVIRONMENT = {
    "vpcs": [
        {
            "name": "bench",
            "cidr": "10.0.0.0/8",
            "subnets": [
                {"name": "client", "cidr": "10.1.0.0/24", "type": "private"},
                {"name": "server", "cidr": "10.2.0.0/24", "type": "private"},
            ],
        }
    ]
}
# What the measured flows need, after all the others; and what is asked of each of them on the way.
LAST = {"action": "allow", "protocol": "udp", "port": "1024-65535", "source": "10.1.0.2"}


def policy(count: int) -> dict:
    """`count` rules of mixed verdicts, sources, protocols and ranges, the last one of which matches."""
    chance = random.Random(count)
    rules = []
    for _ in range(count - 1):
        length = chance.choice([32, 32, 32, 32, 24, 16])
        value = (172 << 24 | chance.getrandbits(24)) >> (32 - length) << (32 - length)
        low = chance.randrange(1, 60_000)
        rules.append(
            {
                "action": chance.choice(["allow", "deny"]),
                "protocol": chance.choice(["tcp", "udp"]),
                "port": low if chance.random() < 0.7 else f"{low}-{low + chance.randrange(1, 100)}",
                "source": f"{socket.inet_ntoa(struct.pack('!I', value))}/{length}",
            }
        )
    return {"vpc": "bench", "subnet": "server", "ingress": [*rules, LAST]}


def main() -> None:
    kernel, store = LinuxKernel(), Store(STATE_DIR)
    world = read_environment(ENVIRONMENT, "bench.json", lambda path: ({}, path))
    reconciler.change(store, kernel, lambda state: world)
    loads, costs = {10: [], 10_000: []}, {10: [], 10_000: []}
    for _ in range(TURNS):
        for count in loads:
            text = json.dumps(policy(count))
            started = time.perf_counter()
            found = read_policies(reading.parse(text, "bench.json"), "bench.json")
            reconciler.change(store, kernel, lambda state, found=found: attach(state.world, found)[0])
            loads[count].append(time.perf_counter() - started)
            time.sleep(SETTLED)
            costs[count].append(forwarding())
    plain = [nft_load(store.load().world) for _ in range(TURNS)]
    reconciler.change(store, kernel, lambda state: World())
    report(loads, costs, plain)


def nft_load(world: World) -> float:
    """Seconds that `nft -f` takes for the text of the ruleset, in a namespace of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        file.write(compile_vpc(world, "bench", "bench").text(1))
        file.flush()
        started = time.perf_counter()
        subprocess.run(["unshare", "--net", "nft", "-f", Path(file.name)], check=True)
        return time.perf_counter() - started


def forwarding() -> float:
    """Seconds for each packet, every one a new flow, from sending it to its arrival at the server's interface."""
    with entered("bench-router"), NFCTSocket() as flows:
        flows.flush()
    before = received()
    with entered("bench-client"), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, *map(socket.inet_aton, ("10.1.0.2", "10.2.0.2"))
        )
        packets = [header + struct.pack("!HHHH", 1024 + number, 40_000, 8, 0) for number in range(PACKETS)]
        started = time.perf_counter()
        for packet in packets:
            sender.sendto(packet, ("10.2.0.2", 0))
        took = time.perf_counter() - started
    arrived = received() - before
    if arrived < PACKETS * 0.98:
        raise SystemExit(f"only {arrived} of {PACKETS} packets were forwarded")
    return took / PACKETS


def received() -> int:
    """Packets that the server's interface has received."""
    with entered("bench-server"):
        line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if "eth0:" in line)
    return int(line.split()[2])


def report(loads: dict, costs: dict, plain: list[float]) -> None:
    load, reference = statistics.median(loads[10_000]), statistics.median(plain)
    print(
        f"10,000 rules in force after {load:.2f} s; nft -f of the same text {reference:.2f} s:"
        f" {load / reference:.1f} times"
    )
    few, many = (statistics.median(costs[count]) for count in (10, 10_000))
    print(f"new flows: {1 / few / 1000:.0f} k/s with 10 rules, {1 / many / 1000:.0f} k/s with 10,000: {few / many:.2f}")


if __name__ == "__main__":
    main()
