"""The `bridge` plugin of CNI: attach one instance to a network and detach it.

A container runtime makes the namespace, and then starts the plugin as a process for each container, with `host-local`
for the address. `vpcctl` is one long-running controller: `create_instance` also makes the namespace, loads the ruleset
of the router with the new instance, and writes the record.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from benchmarks.results import Comparison, timed, took
from benchmarks.rivals import SkipComparison
from vpcctl import Controller
from vpcctl.lab import STATE_DIR

PACKAGES = ("containernetworking-plugins",)
# Debian's directory of the plugins, then that of other systems.
FOLDERS = [Path("/usr/lib/cni"), Path("/opt/cni/bin")]
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "bench",
    "type": "bridge",
    "bridge": "cni-bench",
    "isGateway": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/16"}]], "dataDir": "/run/cni-bench"},
}
PLUGIN, OURS = "CNI bridge plugin", "vpcctl, one controller"


def measure(turns: int) -> list[Comparison]:
    """Attach and detach beside five instances that stay."""
    folder = next((folder for folder in FOLDERS if (folder / "bridge").exists()), None)
    if folder is None:
        raise SkipComparison(f"not installed: the plugin bridge in {FOLDERS[0]}")
    controller = Controller(STATE_DIR)
    controller.create_vpc("bench", "10.0.0.0/16")
    controller.create_subnet("bench", "web", "10.0.1.0/24", public=False)
    for number in range(5):
        controller.create_instance("bench", "web", f"stays-{number}")
        _plugin(folder, "ADD", f"cni-stays-{number}")
    attach: dict[str, list[float]] = {PLUGIN: [], f"{PLUGIN} and ip netns add": [], OURS: []}
    detach: dict[str, list[float]] = {PLUGIN: [], OURS: []}
    for turn in range(turns):
        # The first call of each side also fills caches; the medians do not depend on it.
        name = f"more-{turn}"
        made = took("ip", "netns", "add", f"cni-{name}")
        added = _plugin(folder, "ADD", f"cni-{name}")
        attach[PLUGIN].append(added)
        attach[f"{PLUGIN} and ip netns add"].append(made + added)
        attach[OURS].append(timed(lambda name=name: controller.create_instance("bench", "web", name)))  # type: ignore[misc]
        detach[OURS].append(timed(lambda name=name: controller.delete_instance("bench", name)))  # type: ignore[misc]
        detach[PLUGIN].append(_plugin(folder, "DEL", f"cni-{name}"))
        subprocess.run(["ip", "netns", "delete", f"cni-{name}"], check=True)
    for number in range(5):
        _plugin(folder, "DEL", f"cni-stays-{number}")
        subprocess.run(["ip", "netns", "delete", f"cni-stays-{number}"], check=True)
    subprocess.run(["ip", "link", "delete", "cni-bench"], check=True)
    controller.destroy()
    return [
        Comparison("attach one instance", "s", PLUGIN, attach),
        Comparison("detach one instance", "s", PLUGIN, detach),
    ]


def _plugin(folder: Path, command: str, namespace: str) -> float:
    """Seconds of one call of the plugin."""
    if command == "ADD" and not Path("/run/netns", namespace).exists():
        subprocess.run(["ip", "netns", "add", namespace], check=True)
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": namespace,
        "CNI_NETNS": f"/run/netns/{namespace}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(folder),
    }
    return took(folder / "bridge", stdin=json.dumps(NETWORK), env=environment)
