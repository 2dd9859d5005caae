"""podman: make a network, connect a running container to it, and disconnect it.

The container is a static busybox that sleeps.  `podman network create` only writes a file; the bridge appears with the
first container, so one is connected before the measurement.  `vpcctl` makes a subnet with its bridge and its instance,
and one more instance.  All are whole processes, except the side with one controller.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.results import Comparison, timed, took
from benchmarks.rivals import SkipComparison, require
from vpcctl import Controller
from vpcctl.lab import STATE_DIR

PACKAGES = ("podman", "crun", "netavark", "containernetworking-plugins", "busybox-static")
FOLDER = Path("/run/podman-bench")
ONE = "vpcctl, one controller"
NETAVARK = ("/usr/lib/podman/netavark", "/usr/libexec/podman/netavark", "/usr/local/libexec/podman/netavark")
BUSYBOX = Path("/bin/busybox")
PODMAN = ["podman", "--root", f"{FOLDER}/root", "--runroot", f"{FOLDER}/runroot", "--tmpdir", f"{FOLDER}/tmp"]
PODMAN += ["--storage-driver", "vfs"]
# What a container needs where the machine has no control groups to delegate.
CONTAINER = ["--cgroups=disabled", "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=20000:20000", "--no-hosts"]
SETTINGS = """
[network]
network_backend = "{backend}"
network_config_dir = "{folder}/networks"
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "none"
"""


def measure(turns: int) -> tuple[list[Comparison], dict[str, str]]:
    """Comparisons, and the backend that podman used."""
    require("podman", "crun")
    backend = "netavark" if any(map(os.path.exists, NETAVARK)) else "cni"
    prepare(backend)
    controller = Controller(STATE_DIR)
    controller.create_vpc("bench", "10.0.0.0/8")
    controller.create_subnet("bench", "first", "10.250.0.0/24", public=False)
    network: dict[str, list[float]] = {"podman": [], "vpcctl": []}
    connect: dict[str, list[float]] = {"podman": [], "vpcctl": [], ONE: []}
    disconnect: dict[str, list[float]] = {"podman": [], "vpcctl": [], ONE: []}
    for turn in range(turns):
        name, prefix = f"n{turn}", f"10.{100 + turn}.0.0/24"
        network["podman"].append(_podman("network", "create", "--subnet", f"10.{turn}.0.0/24", name))
        network["vpcctl"].append(
            took("vpcctl", "create-subnet", "--vpc", "bench", "--name", name, "--cidr", prefix, "--type", "private")
        )
        _podman("network", "connect", name, "stays")
        connect["podman"].append(_podman("network", "connect", name, "moves"))
        disconnect["podman"].append(_podman("network", "disconnect", name, "moves"))
        instance = ["--vpc", "bench", "--name", f"i{turn}"]
        connect["vpcctl"].append(took("vpcctl", "create-instance", *instance, "--subnet", name))
        disconnect["vpcctl"].append(took("vpcctl", "delete-instance", *instance))
        connect[ONE].append(timed(lambda turn=turn: controller.create_instance("bench", f"n{turn}", f"j{turn}")))  # type: ignore[misc]
        disconnect[ONE].append(timed(lambda turn=turn: controller.delete_instance("bench", f"j{turn}")))  # type: ignore[misc]
    _podman("rm", "--force", "--time", "0", "stays", "moves")
    controller.destroy()
    comparisons = [
        Comparison("make a network", "s", "podman", network),
        Comparison("connect an instance", "s", "podman", connect),
        Comparison("disconnect an instance", "s", "podman", disconnect),
    ]
    return comparisons, {"podman backend": backend}


def prepare(backend: str) -> None:
    """Storage of its own, an image, two running containers, and a network that they are in."""
    if not BUSYBOX.exists():
        raise SkipComparison(f"not installed: {BUSYBOX}")
    FOLDER.mkdir()
    # Containers need device files, which the lab's /run does not allow.
    subprocess.run(["mount", "-t", "tmpfs", "podman", str(FOLDER)], check=True)
    # crun requires a file system of control groups there, although it uses none.
    if subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], capture_output=True).returncode:
        raise SkipComparison("cannot mount the control groups that crun asks for")
    (FOLDER / "image/bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, FOLDER / "image/bin/busybox")
    settings = FOLDER / "containers.conf"
    settings.write_text(SETTINGS.format(backend=backend, folder=FOLDER))
    os.environ |= {"CONTAINERS_CONF": str(settings), "XDG_RUNTIME_DIR": f"{FOLDER}/xdg"}
    try:
        took("tar", "-C", str(FOLDER / "image"), "-cf", f"{FOLDER}/image.tar", ".")
        _podman("import", f"{FOLDER}/image.tar", "bench-image")
        _podman("network", "create", "--subnet", "10.249.0.0/24", "first")
        for name in ("stays", "moves"):
            words = ["run", "--detach", "--name", name, "--network", "first", *CONTAINER]
            _podman(*words, "bench-image", "/bin/busybox", "sleep", "100000")
    except RuntimeError as error:
        raise SkipComparison(f"podman cannot run a container here: {str(error)[-300:]}") from error


def _podman(*words: str) -> float:
    """Seconds of a podman command."""
    return took(*PODMAN, *words)
