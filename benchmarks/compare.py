"""`vpcctl` compared with other programs that do a part of the same work.

    ./run bench compare [NAME…] [--install] [--turns N] [--rules N] [--hosts N]

NAME is firewalls (iptables-nft, firewalld), cni, mininet or podman; without NAME all run.  A comparison whose program
is missing or cannot run in the lab is skipped, with the reason in the JSON.  One that fails is skipped, too, and the
exit status is 1.  `--install` installs the programs first, as Debian packages; without it nothing is installed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

from benchmarks import results
from benchmarks.results import Report, package_version, version
from benchmarks.rivals import SkipComparison, bridge_plugin, firewalls, mininet, podman

SWITCHES = 4


def compare_firewalls(report: Report, options: SimpleNamespace) -> None:
    comparisons, versions, skipped = firewalls.measure(options.rules, min(options.turns, 3))
    report.comparisons += comparisons
    report.versions |= versions
    report.skipped |= skipped


def compare_cni(report: Report, options: SimpleNamespace) -> None:
    report.comparisons += bridge_plugin.measure(2 * options.turns)
    report.versions["containernetworking-plugins"] = package_version("containernetworking-plugins")


def compare_mininet(report: Report, options: SimpleNamespace) -> None:
    report.comparisons += mininet.measure(SWITCHES, options.hosts, options.turns)
    report.versions["mininet"] = version("mn", "--version")


def compare_podman(report: Report, options: SimpleNamespace) -> None:
    comparisons, versions = podman.measure(options.turns)
    report.comparisons += comparisons
    report.versions |= {"podman": version("podman", "--version")} | versions


COMPARE: dict[str, Callable[[Report, SimpleNamespace], None]] = {
    "firewalls": compare_firewalls,
    "cni": compare_cni,
    "mininet": compare_mininet,
    "podman": compare_podman,
}


def main() -> None:
    parser = results.parser("compare", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(COMPARE)} (default: all)")
    parser.add_argument("--install", action="store_true", help="install the programs first (Debian, root)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rules", type=int, default=1000)
    parser.add_argument("--hosts", type=int, default=40)
    options = parser.parse_args(namespace=SimpleNamespace())
    if unknown := set(options.names) - set(COMPARE):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(COMPARE)}")
    results.in_lab()
    report = Report("compare")
    failed = False
    for name in options.names or COMPARE:
        try:
            COMPARE[name](report, options)
        except SkipComparison as reason:
            report.skipped[name] = str(reason)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            # Keep the figures of the other comparisons.
            report.skipped[name] = f"failed: {error}"
            failed = True
            subprocess.run(["vpcctl", "destroy", "--all", "--yes"], capture_output=True)
    results.finish(report, options.json)
    sys.exit(failed)


if __name__ == "__main__":
    main()
