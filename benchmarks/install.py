"""Install the programs that `./run bench compare` compares with, as Debian packages.

    ./run bench compare --install

Some packages start a service, and firewalld would change the packet filter of this machine.  So units that are not
installed yet are masked first, and no service is started.  `./run coexist` uses the same function for its programs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from benchmarks.rivals import bridge_plugin, firewalls, mininet, podman

PACKAGES = sorted({*bridge_plugin.PACKAGES, *firewalls.PACKAGES, *mininet.PACKAGES, *podman.PACKAGES})
UNITS = ("firewalld.service", "podman.socket", "podman.service", "podman-auto-update.timer", "podman-restart.service")
INSTALLED_UNITS, OWN_UNITS = Path("/lib/systemd/system"), Path("/etc/systemd/system")
# Debian's hook for package scripts: status 101 forbids them to start a service.
POLICY = Path("/usr/sbin/policy-rc.d")


def mask(installed: Path = INSTALLED_UNITS, own: Path = OWN_UNITS, units: Collection[str] = UNITS) -> list[str]:
    """Mask the units that are not installed yet; the names of these units."""
    masked = [unit for unit in units if not (installed / unit).exists() and not os.path.lexists(own / unit)]
    own.mkdir(parents=True, exist_ok=True)
    for unit in masked:
        (own / unit).symlink_to("/dev/null")
    return masked


def install(packages: Collection[str], units: Collection[str]) -> None:
    """Install Debian packages without starting a service; `units` are the services that they bring.

    Raises SystemExit with the reason if that fails.
    """
    if os.geteuid() or not shutil.which("apt-get"):
        named = " ".join(packages)
        raise SystemExit(f"install these packages as root: apt-get install --no-install-recommends {named}")
    # Without systemd nothing reads masks, and nothing would remove them.
    for unit in mask(units=units) if Path("/run/systemd/system").is_dir() else []:
        print(f"masked: {unit} (undo: systemctl unmask {unit})")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    created = not POLICY.exists()
    if created:
        with tempfile.NamedTemporaryFile("w", dir=POLICY.parent, delete=False) as file:
            file.write("#!/bin/sh\nexit 101\n")
        os.chmod(file.name, 0o755)
        os.rename(file.name, POLICY)
    try:
        subprocess.run(["apt-get", "update"], env=environment, stdout=subprocess.DEVNULL)
        words = ["apt-get", "install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *packages]
        done = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL)
    finally:
        if created:
            POLICY.unlink()
    if done.returncode:
        sys.exit(f"apt-get failed with status {done.returncode}")
    print(f"installed: {' '.join(packages)}")


def main() -> None:
    install(PACKAGES, UNITS)


if __name__ == "__main__":
    main()
