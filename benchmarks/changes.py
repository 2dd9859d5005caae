"""What a change costs: compiling a policy, looking at the tracked flows, and sets that the change does not need.

    ./run bench changes [--turns N] [--rules N] [--prefixes N]

It also measures what the share of flows costs each packet that opens a flow.  Figures are medians; times are this
machine's, most of them processor seconds.  The number of the compiler's steps is the same everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import results
from benchmarks.dataplane import PACKETS, load, sending
from benchmarks.results import Comparison, Report
from benchmarks.rules import policy
from vpcctl import names
from vpcctl.compiler import compile_host, compile_vpc
from vpcctl.compiler.effort import Effort, TooMuchError
from vpcctl.compiler.gates import gate
from vpcctl.compiler.view import View
from vpcctl.documents.binding import attach
from vpcctl.documents.environment import read_environment
from vpcctl.documents.policies import read_policies
from vpcctl.engine import reconciler
from vpcctl.engine.state import State, Store
from vpcctl.kernel import conntrack
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.lab import NEIGHBOUR, STATE_DIR
from vpcctl.model import operations
from vpcctl.model.network import Vpc, World
from vpcctl.model.policy import Direction
from vpcctl.resources.kinds import Item, Ruleset

TURNS = 7
STEP, LARGEST = 10_000, 90_000
INSIDE = "10.2.0.2"
# All datagrams of `sending` are to these ports; the last policy cuts them off.
FIRST, KEPT, CUT = "1024-65535", "1023-65535", "1024-2047"
SHARE = "ct state new jump share-out"
# About four megabytes of the record.
PREFIXES = 200_000
ENVIRONMENT = {
    "vpcs": [
        {
            "name": "bench",
            "cidr": "10.0.0.0/8",
            "subnets": [
                {"name": "client", "cidr": "10.1.0.0/24", "type": "public"},
                {"name": "server", "cidr": "10.2.0.0/24", "type": "private"},
            ],
        }
    ]
}


class Watched(LinuxKernel):
    """A kernel that notes when a ruleset was loaded, and when flows were last read or forgotten."""

    load_ended = sweep_ended = 0.0

    def ensure(self, item: Item) -> None:
        super().ensure(item)
        if isinstance(item, Ruleset):
            self.load_ended = time.perf_counter()

    def flows(self, *words: Any) -> Any:
        yield from super().flows(*words)
        self.sweep_ended = time.perf_counter()

    def forget(self, *words: Any) -> None:
        super().forget(*words)
        self.sweep_ended = time.perf_counter()


def median(act: Callable[[], float], turns: int) -> float:
    return statistics.median(act() for _ in range(turns))


def timed(act: Callable[[], Any]) -> float:
    """Seconds of the processor, of this process and of the kernel for it."""
    started = time.process_time()
    act()
    return time.process_time() - started


# --- Compiling --------------------------------------------------------------------------------------------------------


def compiling(report: Report, world: World, largest: int) -> None:
    """Policies of mixed rules, up to the last one within the bounds."""
    for count in range(min(largest, STEP), largest + 1, STEP):
        policies = read_policies(policy(count), "bench.json")
        changed = attach(world, policies)[0]
        effort, view = Effort.bounded(), View.of(changed, "bench")
        server = changed.vpc("bench").subnet("server")
        started = time.process_time()
        try:
            gate(view, server, Direction.INGRESS, effort)
        except TooMuchError as error:
            report.figures[f"{count:,} mixed rules"] = f"refused: {error}"
            break
        took = time.process_time() - started
        report.figures |= {f"{count:,} mixed rules: steps": effort.steps, f"{count:,} mixed rules: s": took}


# --- Tracked flows ----------------------------------------------------------------------------------------------------


def served(ports: str) -> Callable[[Any], World]:
    """A change of the server's policy."""
    rule = {"action": "allow", "protocol": "udp", "port": ports}
    document = {"vpc": "bench", "subnet": "server", "ingress": [rule]}
    found = read_policies(document, "bench.json")
    return lambda state: attach(state.world, found)[0]


def change_seconds(kernel: Watched, store: Store, fresh: bool, ports: str) -> tuple[float, float]:
    """A change with PACKETS tracked flows or one: processor seconds, and seconds from the load to the sweep's end."""
    reconciler.change(store, kernel, served(FIRST))
    sending(INSIDE, fresh)
    took = timed(lambda: reconciler.change(store, kernel, served(ports)))
    return took, kernel.sweep_ended - kernel.load_ended


def tracked_flows(report: Report, kernel: Watched, store: Store, turns: int) -> None:
    few, kept, cut = [], [], []
    for _ in range(turns):
        few.append(change_seconds(kernel, store, False, KEPT))
        kept.append(change_seconds(kernel, store, True, KEPT))
        cut.append(change_seconds(kernel, store, True, CUT))
    one, stay, go = (statistics.median(took for took, _ in found) for found in (few, kept, cut))
    name = "processor time of a change for each tracked flow"
    report.figures[f"{name} that stays: µs"] = (stay - one) / PACKETS * 1e6
    report.figures[f"{name} that is forgotten: µs"] = (go - one) / PACKETS * 1e6
    windows = {"one flow": few, f"{PACKETS:,} that stay": kept, f"{PACKETS:,} that are forgotten": cut}
    samples = {name: [window * 1e3 for _, window in found] for name, found in windows.items()}
    report.comparisons.append(Comparison("from the load to the end of the sweep", "ms", "one flow", samples))
    report.figures["membarrier(2): ms"] = median(settling, turns) * 1e3


def settling() -> float:
    """Seconds by the clock: this process waits."""
    started = time.perf_counter()
    conntrack.settle()
    return time.perf_counter() - started


def share_of_flows(report: Report, state: State, turns: int) -> None:
    """New flows out through the host, with the rule that counts them and without."""
    router = compile_vpc(state.world, "bench", names.tag(state.state_id, "bench", "ruleset")).text(1)
    host = compile_host(state.world, names.tag(state.state_id, "", "host")).text(1)
    assert host.count(SHARE) == 1
    texts = {"with": host, "without": host.replace(SHARE, "")}
    took: dict[str, list[float]] = {"with": [], "without": []}
    for turn in range(turns):
        for name in ("with", "without") if turn % 2 else ("without", "with"):
            load(router, texts[name])
            took[name].append(sending(str(NEIGHBOUR), True))
    microseconds = {name: [value * 1e6 for value in values] for name, values in took.items()}
    report.comparisons.append(Comparison("a new flow out, with the share of flows", "µs", "without", microseconds))


# --- Unused sets ------------------------------------------------------------------------------------------------------


def unused_sets(report: Report, kernel: Watched, store: Store, turns: int, count: int) -> None:
    """A reading and a changing command about one VPC, without and with the sets of another one on record."""
    bare = reading_and_changing(kernel, store, turns)
    prefixes = tuple(ipaddress.IPv4Network((172 << 24 | number * 2, 32)) for number in range(count))
    big = Vpc("big", (ipaddress.ip_network("10.0.0.0/16"),), 7, sets=(("list", prefixes),))
    reconciler.change(store, kernel, lambda state: dataclasses.replace(state.world, vpcs=(*state.world.vpcs, big)))
    size = sum(file.stat().st_size for file in store.directory.rglob("*.json"))
    full = reading_and_changing(kernel, store, turns)
    reconciler.change(store, kernel, lambda state: operations.delete_vpc(state.world, "big", True))
    report.figures |= {
        "unused sets: MB": size / 1e6,
        "unused sets: s of a command that reads": full[0] - bare[0],
        "unused sets: s of a command that changes": full[1] - bare[1],
    }


def reading_and_changing(kernel: Watched, store: Store, turns: int) -> tuple[float, float]:
    def both() -> None:
        for present in (True, False):
            reconciler.change(store, kernel, functools.partial(switched, present))

    return median(lambda: timed(lambda: Store(STATE_DIR).load()), turns), median(lambda: timed(both), turns) / 2


def switched(present: bool, state: State) -> World:
    return operations.set_nat_gateway(state.world, "bench", "server", present)


def run(turns: int, largest: int, prefixes: int) -> Report:
    kernel, store, report = Watched(), Store(STATE_DIR), Report("changes")
    world = read_environment(ENVIRONMENT, "bench.json", lambda path: ({}, path))
    compiling(report, world, largest)
    reconciler.change(store, kernel, lambda state: world)
    # First: each later change would sweep the flows that the others leave.
    unused_sets(report, kernel, store, turns, prefixes)
    tracked_flows(report, kernel, store, turns)
    share_of_flows(report, store.load(), turns)
    reconciler.change(store, kernel, lambda state: World())
    kernel.close()
    return report


def main() -> None:
    parser = results.parser("changes", __doc__)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--rules", type=int, default=LARGEST, help="the largest policy to compile")
    parser.add_argument("--prefixes", type=int, default=PREFIXES, help="in the unused sets")
    options = parser.parse_args()
    results.in_lab()
    results.finish(run(options.turns, options.rules, options.prefixes), options.json)


if __name__ == "__main__":
    main()
