"""Install the programs of `./run coexist` as Debian packages; none of their services starts on this machine."""

from __future__ import annotations

import shutil
import sys

from benchmarks.install import install
from tests.coexist.programs import PROGRAMS

PACKAGES = (
    "busybox-static", "crun", "curl", "dbus", "dnsmasq-base", "docker.io", "firewalld", "graphviz", "iptables",
    "libvirt-clients", "libvirt-daemon-system", "netavark", "podman", "ufw", "wireguard-go", "wireguard-tools",
)  # fmt: skip
UNITS = (
    "containerd.service", "docker.service", "docker.socket", "firewalld.service", "libvirt-guests.service",
    "libvirtd-admin.socket", "libvirtd-ro.socket", "libvirtd.service", "libvirtd.socket", "podman-auto-update.timer",
    "podman-restart.service", "podman.service", "podman.socket", "ufw.service", "virtlockd-admin.socket",
    "virtlockd.service", "virtlockd.socket", "virtlogd-admin.socket", "virtlogd.service", "virtlogd.socket",
)  # fmt: skip


def missing() -> list[str]:
    """Programs that the tests need and the machine lacks; without device files, which no package brings."""
    needed = {need for kind in PROGRAMS.values() for need in kind.needs if not need.startswith("/dev/")}
    return sorted(need for need in {*needed, "curl", "dot"} if not shutil.which(need))


def main() -> None:
    if missing():
        try:
            install(PACKAGES, UNITS)
        except SystemExit as failed:
            # The tests of installed programs still run; the others are skipped with a reason.
            print(f"coexist: {failed}", file=sys.stderr)


if __name__ == "__main__":
    main()
