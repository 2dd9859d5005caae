"""After a reboot: `repair` restores everything, beside bare commands that make the same objects.

    ./run bench restore [VPCS…]

For the program, a reboot means that every namespace, link and table is gone, and that the recorded boot id differs.
`status` runs after the repair and compares all objects. Each figure is a whole process.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from benchmarks import results
from benchmarks.commands import BARE, cleared, environment, settled, written
from benchmarks.results import Comparison, Report, took
from vpcctl.engine.state import Store
from vpcctl.lab import STATE_DIR

SIZES = [1, 40, 100]
SUBNETS = 4


def reboot(store: Store) -> None:
    """Remove everything from the kernel that a reboot removes, and keep the record."""
    cleared()
    with store.locked() as writer:
        writer.save(dataclasses.replace(writer.load(), boot_id="the boot before"))
    settled()


def measure(vpcs: int, turns: int) -> Comparison:
    """Bare creation, `apply`, `status` and `repair` in every turn."""
    written(environment(vpcs, SUBNETS))
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        seconds[BARE].append(took("sh", "/run/bare.sh"))
        cleared()
        seconds["apply"].append(took("vpcctl", "-q", "apply", "/run/environment.json"))
        reboot(Store(STATE_DIR))
        seconds["repair after a reboot"].append(took("vpcctl", "-q", "repair"))
        # Its exit status is not 0 if anything is missing, so this also tests that the repair was complete.
        seconds["status"].append(took("vpcctl", "status"))
        took("vpcctl", "destroy", "--all", "--yes")
        settled()
    return Comparison(f"{vpcs} VPCs, {vpcs * SUBNETS} subnets", "s", BARE, seconds)


def main() -> None:
    parser = results.parser("restore", __doc__)
    parser.add_argument("sizes", nargs="*", type=int, help=f"numbers of VPCs (default: {SIZES})")
    parser.add_argument("--turns", type=int, help="default: 3, and 1 from 40 VPCs on")
    options = parser.parse_args()
    results.in_lab()
    report = Report("restore")
    for size in options.sizes or SIZES:
        report.comparisons.append(measure(size, options.turns or (3 if size < 40 else 1)))
    results.finish(report, options.json)


if __name__ == "__main__":
    main()
