"""What the rulesets of this checkout cost each packet, beside those of another checkout.

    vpcctl lab -- python -m tests.bench.dataplane CHECKOUT

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

from vpcctl.analysis.tracking import key
from vpcctl.documents.environment import read_environment
from vpcctl.engine import reconciler
from vpcctl.engine.state import Store
from vpcctl.kernel.conntrack import Tracking
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.kernel.namespaces import entered
from vpcctl.lab import NEIGHBOUR, STATE_DIR
from vpcctl.model.network import World

ROOT = Path(__file__).parents[2]
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


def main(other: Path) -> None:
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
    for turn in range(TURNS):
        for name in ("here", "other") if turn % 2 else ("other", "here"):
            load(*texts[name])
            for case, (target, fresh) in cases.items():
                took[case][name].append(sending(target, fresh))
    reconciler.change(store, kernel, lambda state: World())
    for case, found in took.items():
        ratio = statistics.median(one / two for one, two in zip(found["here"], found["other"], strict=True))
        here, there = (statistics.median(found[name]) * 1e6 for name in ("here", "other"))
        print(f"{case}: {ratio:.3f} ({here:.2f} µs here, {there:.2f} µs there)")


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
