"""A hundred VPCs after a reboot: how long it takes until all of them are there again, and what a look at them costs.

    vpcctl lab -- python -m tests.bench.restore [VPCS]

The reboot is one to the program: every namespace, link and table of ours is gone, and the boot id on record is another
one.  Absolute times are this machine's; the time for each VPC should not grow with their number.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from vpcctl.documents.environment import read_environment
from vpcctl.engine import convergence, reconciler
from vpcctl.engine.state import Store
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.lab import STATE_DIR
from vpcctl.model.network import World

VPCS = 100
RULES = {
    "ingress": [{"action": "allow", "protocol": "tcp", "port": [80, 443]}, {"action": "deny", "source": "internet"}]
}


def environment(count: int) -> dict[str, Any]:
    """`count` VPCs of two subnets with an instance each, every one of them peered with the one before."""
    vpcs = [
        {
            "name": f"v{number}",
            "cidr": f"10.{number}.0.0/16",
            "subnets": [
                {"name": "web", "cidr": f"10.{number}.1.0/24", "type": "public", "policy": RULES},
                {"name": "db", "cidr": f"10.{number}.2.0/24", "type": "private"},
            ],
        }
        for number in range(count)
    ]
    return {"vpcs": vpcs, "peerings": [[f"v{number - 1}", f"v{number}"] for number in range(1, count)]}


def reboot(store: Store) -> None:
    """Take all that a reboot takes from the kernel, and leave the record as it would be found after one."""
    for name in os.listdir("/run/netns"):
        subprocess.run(["ip", "netns", "delete", name], check=True)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    with store.locked() as writer:
        writer.save(dataclasses.replace(writer.load(), boot_id="the boot before"))
    while len(os.listdir("/sys/class/net")) > 2:  # the kernel takes links down in the background
        time.sleep(0.1)


def timed(what: str, act: Callable[[], Any], count: int) -> Any:
    """The answer of `act`, with the time that it took printed."""
    started = time.perf_counter()
    answer = act()
    took = time.perf_counter() - started
    print(f"{what}: {took:.2f} s, {took / count * 1000:.0f} ms for each VPC", flush=True)
    return answer


def with_kernel(act: Callable[[LinuxKernel], Any]) -> Any:
    """What `act` answers, asked with sockets of its own."""
    kernel = LinuxKernel()
    try:
        return act(kernel)
    finally:
        kernel.close()


def measure(count: int) -> None:
    """Make `count` VPCs, lose them, restore them and remove them."""
    store = Store(STATE_DIR)
    world = read_environment(environment(count), "restore.json", lambda path: ({}, path))
    print(f"{count} VPCs, {2 * count} instances")
    timed("made in one change", lambda: with_kernel(lambda one: reconciler.change(store, one, lambda _: world)), count)
    reboot(store)
    found = timed("restored after a reboot", lambda: with_kernel(lambda one: reconciler.repair(store, one)), count)[0]
    state = store.load()
    left = timed("examined", lambda: with_kernel(lambda one: convergence.examine(state, one)), count)
    timed("removed", lambda: with_kernel(lambda one: reconciler.change(store, one, lambda _: World())), count)
    print(f"{len(found)} objects were repaired; {len(left)} differ afterwards")
    if left or not found:
        raise SystemExit("the restoration is not whole")


if __name__ == "__main__":
    if "VPCCTL_LAB" not in os.environ:
        raise SystemExit("this takes down every namespace and table that there is: run it in `vpcctl lab`")
    for size in map(int, sys.argv[1:] or [str(VPCS)]):
        measure(size)
