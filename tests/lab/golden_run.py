"""The program behind the kernel tests of `rulesets/`: it runs in a lab and is told one case's directory a line.

It builds the case, sends its packets, takes everything down again, and says in a line of JSON what the kernel did.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import NFCTSocket

from tests.golden import MACHINE, Case, Line
from vpcctl import names
from vpcctl.engine import reconciler
from vpcctl.engine.state import Store
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.kernel.namespaces import entered
from vpcctl.kernel.probe import Namespace, Outside, Prober, probe_of
from vpcctl.lab import HOST, NEIGHBOUR, RUN_LAB, STATE_DIR
from vpcctl.model.host import NO_HOST, Host
from vpcctl.model.network import World
from vpcctl.model.oracle import Flow
from vpcctl.model.policy import ICMP_PROTOCOLS, PORT_PROTOCOLS


def tried(folder: Path) -> dict[str, object]:
    """What the kernel does with the packets of a case, and which lines of policies have counted any."""
    case = Case(folder)
    become(case.world)
    try:
        results = judge(case.world, case.lines, MACHINE)
        return {"results": results, "counted": sorted(counted(case.world))}
    finally:
        become(World())


def become(world: World) -> None:
    """Make the lab what `world` says."""
    kernel = LinuxKernel()
    try:
        reconciler.change(Store(STATE_DIR), kernel, lambda state: world)
    finally:
        kernel.close()


def judge(world: World, lines: list[Line], host: Host = NO_HOST) -> list[dict[str, object]]:
    """What the kernel of `host` does with each line's flow."""
    results = []
    with Prober() as prober:
        for batch in batches(lines):
            forget_flows(world)
            results += prober.probe([probe_of(world, line.flow, outside(line.flow), host) for line in batch])
    return [
        {
            "verdict": result.verdict,
            "answered": result.answered,
            "answered_by": str(result.answered_by),
            "seen_from": str(result.seen_from),
        }
        for result in results
    ]


def outside(flow: Flow) -> Outside:
    """Who of the lab stands for the outside end of the flow."""
    station = "neighbour" if NEIGHBOUR in (flow.source.address, flow.destination.address) else "internet"
    return Outside(RUN_LAB / station, HOST)


def batches(lines: list[Line]) -> Iterator[list[Line]]:
    """`lines` in their order, cut where a flow without ports would be taken for another one, or for its replies."""
    batch: list[Line] = []
    seen: set[object] = set()
    for line in lines:
        flow = line.flow
        if flow.protocol not in PORT_PROTOCOLS | ICMP_PROTOCOLS:
            ends = (flow.protocol, frozenset((flow.source, flow.destination)))
            if ends in seen:
                yield batch
                batch, seen = [], set()
            seen.add(ends)
        batch.append(line)
    yield batch


def forget_flows(world: World) -> None:
    """Empty the tables of flows on the way."""
    places: list[Namespace] = [None, *(names.router_namespace(vpc.name) for vpc in world.vpcs)]
    for place in places:
        with entered(place), NFCTSocket() as table:
            table.flush()


def counted(world: World) -> set[str]:
    """The lines of policies that have counted a packet, as the kernel has them, in every VPC."""
    kernel = LinuxKernel()
    try:
        return {
            comment
            for vpc in world.vpcs
            for found in kernel.ruleset_objects(names.router_namespace(vpc.name))
            for comment in _counting(found)
        }
    finally:
        kernel.close()


def _counting(found: dict) -> Iterator[str]:
    """The comments of a rule, or of the elements of a set or map, with packets on their counter."""
    rule = found.get("rule", {})
    for statement in rule.get("expr", ()):
        if "counter" in statement and statement["counter"]["packets"] and "comment" in rule:
            yield rule["comment"]
    for element in (found.get("map") or found.get("set") or {}).get("elem", ()):
        inner = element[0] if isinstance(element, list) else element
        inner = inner.get("elem", {}) if isinstance(inner, dict) else {}
        if inner.get("counter", {}).get("packets") and "comment" in inner:
            yield inner["comment"]


if __name__ == "__main__":
    for told in sys.stdin:
        print(json.dumps(tried(Path(told.rstrip("\n")))), flush=True)
