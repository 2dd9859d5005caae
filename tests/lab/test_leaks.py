"""What is made and removed a thousand times leaves descriptors, threads, memory, namespaces, links and files flat."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from vpcctl.lab import Lab

# In each of the two tests.  The exhaustive run also notices a leak of 10 KB of memory in each cycle, the ordinary one
# of 30 KB; all else has to be exactly as it was.
CYCLES = 500 if os.environ.get("VPCCTL_TEST_EXHAUSTIVE") else 200
SETTLED = 50  # caches are full after so many cycles
GROWTH = 4 << 20  # bytes of memory: what an allocator may keep in pieces

# A cycle makes a VPC with two subnets, changes its policy, peers it and removes it all; what is left is told twice.
CYCLE = """
import json, os, sys, threading
from pathlib import Path
from vpcctl.engine import parts, reconciler
from vpcctl.documents.diff import merged
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.model.network import Peering
from vpcctl.documents.environment import read_environment
from vpcctl.engine.state import COPIES, Store
from vpcctl.kernel import namespaces, settings

cycles, settled, standing = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "standing"
directory = Path(os.environ["VPCCTL_STATE_DIR"])
# Unneeded parts are removed at once, so that only leaked ones are counted.
parts.GRACE = 0
store = Store(directory, COPIES)
kernel = LinuxKernel() if standing else None


def rule(port):
    return {"ingress": [{"action": "allow", "protocol": "tcp", "port": [port, "8000-8080"]}]}


def document(port):
    subnets = [
        {"name": "web", "cidr": "10.0.1.0/24", "type": "public", "policy": rule(port)},
        {"name": "db", "cidr": "10.0.2.0/24", "type": "private", "instances": [{"name": "db"}, {"name": "db-2"}]},
    ]
    return {"vpcs": [{"name": "shop", "cidr": "10.0.0.0/16", "subnets": subnets}]}


def change(transform):
    used = kernel or LinuxKernel()
    try:
        reconciler.change(store, used, transform)
    finally:
        if not standing:
            used.close()


def made(state, port, peerings=()):
    world = read_environment(document(port), "x", None, state.world, state.serial)
    return merged(state.world, world, tuple(peerings), False)


def once():
    change(lambda state: made(state, 80))
    change(lambda state: made(state, 443, [Peering.between("shop", "calm")]))
    change(lambda state: state.world.without_vpc("shop"))


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def described(number):
    place = f"/proc/self/fd/{number}"
    return os.readlink(place).split(":")[0] if os.path.lexists(place) else "the listing itself"


def look():
    pipe = os.popen("ip -oneline link | wc -l; nft list ruleset | wc -l; cat /proc/self/mountinfo | wc -l")
    return {
        "descriptors": sorted(described(number) for number in os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
        "namespaces": namespaces.names(),
        "counts": pipe.read().split(),
        "flows": (settings.ROOT / "net/netfilter/nf_conntrack_count").read_text(),
        "state": sorted(os.listdir(directory)),
        "parts": len(os.listdir(os.path.join(directory, parts.FOLDER))),
        "history": len(os.listdir(os.path.join(directory, "history"))),
        "copies": sorted(os.listdir(COPIES)),
        "copied parts": [len(files) for _, _, files in os.walk(COPIES)],
        "resident": resident(),
    }


subnet = {"name": "a", "cidr": "10.7.1.0/24", "type": "public"}
calm = {"vpcs": [{"name": "calm", "cidr": "10.7.0.0/16", "subnets": [subnet]}]}
change(lambda state: read_environment(calm, "x", None))
for number in range(cycles):
    if number == settled:
        print(json.dumps(look()))
    once()
print(json.dumps(look()))
"""


def cycled(lab: Lab, *arguments: object) -> list[dict[str, Any]]:
    """What is there when it has settled, and at the end."""
    told = lab.python(CYCLE, *map(str, arguments), timeout=3000).stdout
    return [json.loads(line) for line in told.splitlines()]


@pytest.mark.parametrize("kernel", ["standing", "fresh"])
def test_cycles_in_one_process_leave_everything_flat(lab: Lab, kernel: str) -> None:
    first, last = cycled(lab, CYCLES, SETTLED, kernel)
    memory = last.pop("resident") - first.pop("resident")
    first_files, last_files = first.pop("history"), last.pop("history")
    assert last == first
    assert first["namespaces"] == ["calm-a", "calm-router"]
    assert first["state"] == ["history", "lock", "parts", "state.json"]
    # Files of fifty changes: those of the last hundred, the present one, and one that the next one replaces.
    assert max(first_files, last_files) <= 4
    # The copy and its parts, and the texts of gates.
    assert (len(first["copies"]), "gates" in first["copies"]) == (3, True)
    assert memory < GROWTH, f"{memory} bytes in {CYCLES - SETTLED} cycles"


def test_a_leak_is_noticed(lab: Lab) -> None:
    """The control: a process that keeps a descriptor, a thread, a link and a namespace of each cycle is not flat."""
    spoiled = """
kept = []


def leaky():
    kept.append((os.open("/", 0), bytearray(1 << 20)))
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    os.system(f"ip netns add x{len(kept)}; ip link add y{len(kept)} type bridge")


"""
    code = CYCLE.replace("def resident():", spoiled + "def resident():").replace("    once()\n", "    leaky()\n")
    first, last = (json.loads(line) for line in lab.python(code, "5", "2", "fresh").stdout.splitlines())
    assert {name for name in first if first[name] != last[name]} >= {
        "descriptors", "threads", "tasks", "namespaces", "counts", "resident",
    }  # fmt: skip
