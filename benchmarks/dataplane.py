"""What the rulesets of this checkout cost each packet, beside those of another checkout.

    ./run bench dataplane CHECKOUT [--turns N]

Both rulesets stand for the same world and are loaded in turn into the same router and host, so that nothing else
differs.  Each figure is the median over the turns of the ratio of two neighbouring measurements: this checkout's time
for each packet to the other one's.  Packets are 8-byte UDP, sent by one thread; the time of sending is part of both.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import results
from benchmarks.results import Comparison, Report
from vpcctl.analysis.tracking import key
from vpcctl.documents.environment import read_environment
from vpcctl.engine import reconciler
from vpcctl.engine.state import Store
from vpcctl.kernel.conntrack import Tracking
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.kernel.namespaces import entered
from vpcctl.lab import NEIGHBOUR, STATE_DIR
from vpcctl.model.network import World

ROOT = Path(__file__).parents[1]
PACKETS, TURNS, SERVICES = 8_000, 15, 50
ENVIRONMENT = {
    "vpcs": [
        {
            "name": "bench",
            "cidr": "10.0.0.0/8",
            "publish": [{"protocol": "udp", "port": 7000, "instance": "client"}],
            "subnets": [
                {"name": "client", "cidr": "10.1.0.0/24", "type": "public"},
                {
                    "name": "server",
                    "cidr": "10.2.0.0/24",
                    "type": "private",
                    "policy": {"ingress": [{"action": "allow", "protocol": "udp", "port": "1024-65535"}]},
                },
            ],
        }
    ]
}
# The texts that a checkout compiles for the environment.
COMPILE = """
import json, sys
from vpcctl.documents.environment import read_environment
from vpcctl.compiler import compile_host, compile_vpc
world = read_environment(json.load(sys.stdin), "bench.json", lambda path: ({}, path))
print(json.dumps([compile_vpc(world, "bench", "bench").text(1), compile_host(world, "bench").text(1)]))
"""


def run(other: Path, turns: int) -> Report:
    kernel, store = LinuxKernel(), Store(STATE_DIR)
    world = read_environment(ENVIRONMENT, "bench.json", lambda path: ({}, path))
    reconciler.change(store, kernel, lambda state: world)
    texts = {"here": compiled(ROOT), "other": compiled(other)}
    cases = {
        "between subnets, new flows": ("10.2.0.2", True),
        "between subnets, one flow": ("10.2.0.2", False),
        "out through NAT, new flows": (str(NEIGHBOUR), True),
        "out through NAT, one flow": (str(NEIGHBOUR), False),
    }
    took: dict[str, dict[str, list[float]]] = {case: {"here": [], "other": []} for case in cases}
    for turn in range(turns):
        for name in ("here", "other") if turn % 2 else ("other", "here"):
            load(*texts[name])
            for case, (target, fresh) in cases.items():
                took[case][name].append(sending(target, fresh))
    reconciler.change(store, kernel, lambda state: World())
    # The host's table of the last turn has no tag of ours, so the change above did not remove it.
    subprocess.run(["nft", "delete", "table", "inet", "vpcctl"], check=True)
    report = Report("dataplane")
    for case, found in took.items():
        microseconds = {name: [value * 1e6 for value in values] for name, values in found.items()}
        report.comparisons.append(Comparison(case, "µs", "other", microseconds))
        neighbours = zip(found["here"], found["other"], strict=True)
        report.figures[f"{case}, median of ratios"] = statistics.median(one / two for one, two in neighbours)
    return report


def compiled(checkout: Path) -> tuple[str, str]:
    """The texts for the router and for the host."""
    result = subprocess.run(
        [sys.executable, "-P", "-c", COMPILE],
        input=json.dumps(ENVIRONMENT),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )
    router, host = json.loads(result.stdout)
    return router, host


def load(router: str, host: str) -> None:
    for words, text in (("bench-router", router), (None, host)):
        command = ["nft", "-f", "-"] if words is None else ["ip", "netns", "exec", words, "nft", "-f", "-"]
        subprocess.run(command, input=text, text=True, check=True)


def sending(target: str, fresh: bool) -> float:
    """Seconds for each packet to `target`, each a flow of its own or all of one."""
    for namespace in ("bench-router", None):
        tracking = Tracking(namespace)
        tracking.forget(map(key, list(tracking.flows())))
        tracking.close()
    with entered("bench-client"), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        ends = map(socket.inet_aton, ("10.1.0.2", target))
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, *ends)
        ports = [1024 + number if fresh else 1024 for number in range(PACKETS)]
        # Toward one service a VPC has a share of the ports.
        services = [40_000 + port % SERVICES for port in ports]
        packets = [header + struct.pack("!HHHH", *way, 8, 0) for way in zip(ports, services, strict=True)]
        sender.sendto(packets[0], (target, 0))
        started = time.perf_counter()
        for packet in packets:
            sender.sendto(packet, (target, 0))
        return (time.perf_counter() - started) / PACKETS


def main() -> None:
    parser = results.parser("dataplane", __doc__)
    parser.add_argument("checkout", type=Path, help="the other checkout")
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    results.in_lab()
    results.finish(run(options.checkout, options.turns), options.json)


if __name__ == "__main__":
    main()
