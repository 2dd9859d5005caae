"""Ten thousand rules: when they are in force, when the command is done, and how fast new flows pass.

    ./run bench rules [--rules N] [--turns N] [--profile]

A stream of probe packets shows when a change is in force: at the first packet that the new policy allows.  The
change is done when the call returns, after it has forgotten flows and written the record.  Three changes take turns:
ten rules, all N rules, and one of N rules changed.  Beside them: `nft -f` of the compiled text, in a namespace of its
own; and instances and subnets that are created in the VPC with all N rules, and in one without.  `--profile` prints
where the time goes for each change instead.
"""

from __future__ import annotations

import cProfile
import random
import socket
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pyroute2 import NFCTSocket

from benchmarks import results
from benchmarks.profiles import print_functions
from benchmarks.results import Comparison, Report, took
from benchmarks.streams import Stream, running
from vpcctl import Controller, Document
from vpcctl.compiler import compile_vpc
from vpcctl.engine.state import Store
from vpcctl.kernel.namespaces import entered
from vpcctl.lab import STATE_DIR
from vpcctl.model.network import World

PACKETS, TURNS, RULES, FEW = 15_000, 7, 10_000, 10
# The kernel frees the previous ruleset in the background for a while.
SETTLED = 1.0
VPCCTL = (sys.executable, "-m", "vpcctl")
# The policies are those of the first.
VPCS = ("bench", "plain")
ENVIRONMENT: dict[str, Any] = {
    "vpcs": [
        {
            "name": vpc,
            "cidr": "10.0.0.0/8",
            "subnets": [
                {"name": "client", "cidr": "10.1.0.0/24", "type": "private"},
                {"name": "server", "cidr": "10.2.0.0/24", "type": "private"},
            ],
        }
        for vpc in VPCS
    ]
}
# What the measured flows need, after all the others; and what is asked of each of them on the way.
LAST = {"action": "allow", "protocol": "udp", "port": "1024-65535", "source": "10.1.0.2"}


# Probes go to this port; a rule in the middle of the policy opens or closes it.
PROBE = Stream(700)
OURS, DONE = "in force", "done"


def policy(count: int) -> dict[str, Any]:
    """`count` rules of mixed verdicts, sources, protocols and ranges, the last one of which matches."""
    chance = random.Random(count)
    rules: list[dict[str, Any]] = []
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


def probed(count: int, is_open: bool) -> Document:
    """The policy with one more rule, which decides about the probes."""
    document = policy(count)
    rule = {"action": "allow" if is_open else "deny", "protocol": "udp", "port": PROBE.port, "source": "10.1.0.2"}
    document["ingress"].insert(count // 2, rule)
    return Document(document, "bench.json")


def change_seconds(controller: Controller, before: Document, after: Document) -> tuple[float, float]:
    """Seconds until a change is in force and until it is done.  The first policy denies the probes."""
    controller.apply_policies(before)
    time.sleep(SETTLED)
    with running({"probe": PROBE}) as streams:
        started = time.time()
        controller.apply_policies(after)
        done = time.time() - started
        time.sleep(20 * PROBE.pause)
        arrived = streams.stop()["probe"].arrived
    # A probe that left before the change would have been let pass by the old policy.
    if not arrived or min(sent for sent, _ in arrived) < started:
        raise RuntimeError("the probes do not show when the policy is in force")
    return min(sent for sent, _ in arrived) - started, done


def changes(count: int) -> dict[str, tuple[Document, Document]]:
    """Policies before and after, by what changes."""
    return {
        f"{FEW} rules": (probed(FEW, False), probed(FEW, True)),
        f"{count:,} rules": (probed(FEW, False), probed(count, True)),
        f"one of {count:,} rules": (probed(count, False), probed(count, True)),
    }


def run(count: int, turns: int) -> Report:
    controller = prepared()
    wanted = changes(count)
    in_force: dict[str, list[float]] = {name: [] for name in wanted}
    done: dict[str, list[float]] = {name: [] for name in wanted}
    plain: list[float] = []
    costs: dict[str, list[float]] = {name: [] for name in wanted}
    beside: dict[str, dict[str, list[float]]] = {verb: {vpc: [] for vpc in VPCS} for verb in ("instance", "subnet")}
    for turn in range(turns):
        for name, (before, after) in wanted.items():
            seconds = change_seconds(controller, before, after)
            in_force[name].append(seconds[0])
            done[name].append(seconds[1])
            time.sleep(SETTLED)
            costs[name].append(forwarding() * 1e9)
        plain.append(nft_load(Store(STATE_DIR).load().world))
        for vpc in VPCS:
            instance, subnet = (
                ("--name", f"one-{turn}", "--subnet", "client"),
                ("--name", f"net-{turn}", *private(turn)),
            )
            beside["instance"][vpc].append(took(*VPCCTL, "create-instance", "--vpc", vpc, *instance))
            beside["subnet"][vpc].append(took(*VPCCTL, "create-subnet", "--vpc", vpc, *subnet))
    controller.destroy()
    all_rules, reference = f"{count:,} rules", "nft -f of the compiled text"
    report = Report("rules")
    for what, samples in ((OURS, in_force), (DONE, done)):
        report.comparisons.append(Comparison(f"until {what}", "s", reference, {reference: plain} | samples))
    for verb, sides in beside.items():
        report.comparisons.append(Comparison(f"create-{verb} beside {count:,} rules", "s", "plain", sides))
    del costs[f"one of {count:,} rules"]
    report.comparisons.append(Comparison("a packet that opens a flow", "ns", f"{FEW} rules", costs))
    report.figures["new flows/s"] = 1e9 / statistics.median(costs[all_rules])
    return report


def private(number: int) -> tuple[str, ...]:
    """The words that make the subnet of that number a private one with a prefix of its own."""
    return ("--cidr", f"10.{3 + number}.0.0/24", "--type", "private")


def prepared() -> Controller:
    controller = Controller(STATE_DIR)
    controller.apply(Document(ENVIRONMENT, "bench.json"))
    return controller


def profile(count: int) -> None:
    """Where the time of each change goes."""
    controller = prepared()
    for name, (before, after) in changes(count).items():
        controller.apply_policies(before)
        profiler = cProfile.Profile()
        profiler.runcall(controller.apply_policies, after)
        print(f"--- {name}")
        print_functions(profiler)
    controller.destroy()


def nft_load(world: World) -> float:
    """Seconds that `nft -f` takes for the text of the ruleset, in a namespace of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        file.write(compile_vpc(world, "bench", "bench").text(1))
        file.flush()
        return took("unshare", "--net", "nft", "-f", file.name)


def forwarding() -> float:
    """Seconds for each packet, every one a new flow, from sending to arrival at the server's interface."""
    forget_flows()
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
    # Each change examines all tracked flows; `./run bench changes` measures the cost.
    forget_flows()
    if arrived < PACKETS * 0.98:
        raise SystemExit(f"only {arrived} of {PACKETS} packets were forwarded")
    return took / PACKETS


def forget_flows() -> None:
    with entered("bench-router"), NFCTSocket() as flows:
        flows.flush()


def received() -> int:
    """Packets that the server's interface has received."""
    with entered("bench-server"):
        line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if "eth0:" in line)
    return int(line.split()[2])


def main() -> None:
    parser = results.parser("rules", __doc__)
    parser.add_argument("--rules", type=int, default=RULES)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    results.in_lab()
    if options.profile:
        profile(options.rules)
    else:
        results.finish(run(options.rules, options.turns), options.json)


if __name__ == "__main__":
    main()
