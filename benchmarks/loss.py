"""Packets lost and the longest gap while the policy changes again and again under senders that never pause.

    ./run bench loss [--applies N] [--rules N]

Three streams of datagrams run: one established flow that stays allowed, packets that each open an allowed flow, and a
flow that is denied all the time.  Each side replaces its rules N times; every time one other rule is different.
Nothing may be lost of the allowed streams, and nothing may leak of the denied one.  "no change" is the same time
without any change: a gap that is as long there comes from the scheduler.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from benchmarks import packets, results
from benchmarks.results import Comparison, Report, timed
from benchmarks.rivals.firewalls import CHANGED, REMOVED, Allowed, Each, Linear, Restore, document, rules
from benchmarks.streams import Outcome, Stream, running
from vpcctl import Controller, Document
from vpcctl.lab import STATE_DIR

APPLIES, RULES = 300, 20
# One process for each rule takes long, and loses packets every time.
FEWER = 15
STREAMS = {"established": Stream(5001), "new": Stream(5002, new=True, pause=0.002), "denied": Stream(1000, pause=0.002)}
OURS = "vpcctl, one controller"
# Seconds between two changes, and before the first one.
PAUSE, START = 0.02, 0.3


def measure(side: str, apply: Callable[[int], object], applies: int, report: Report) -> list[float]:
    """Change so many times under the streams; seconds of each change."""
    apply(0)
    seconds = []
    with running(STREAMS) as streams:
        time.sleep(START)
        for turn in range(1, applies + 1):
            seconds.append(timed(lambda: apply(turn)))  # noqa: B023
            time.sleep(PAUSE)
        time.sleep(START)
        found = streams.stop()
    _add(report, f"{side}, {applies} changes", found)
    return seconds


def _add(report: Report, side: str, found: dict[str, Outcome]) -> None:
    for name in ("established", "new"):
        stream = found[name]
        report.figures |= {
            f"{side}: {name}, sent": stream.sent,
            f"{side}: {name}, lost": stream.lost,
            f"{side}: {name}, longest gap, ms": stream.longest_gap * 1e3,
            f"{side}: {name}, longest pause of the sender, ms": stream.longest_pause * 1e3,
            f"{side}: {name}, longest transit, ms": stream.longest_transit * 1e3,
        }
    report.figures[f"{side}: denied, leaked"] = len(found["denied"].arrived)


def run(applies: int, count: int) -> Report:
    report, controller = Report("loss"), Controller(STATE_DIR)
    controller.create_vpc("bench", "10.0.0.0/8")
    for name, prefix in (("client", "10.1.0.0/24"), ("server", "10.2.0.0/24")):
        controller.create_subnet("bench", name, prefix, public=False)

    def wanted(turn: int) -> list[Allowed]:
        return [CHANGED[turn % 2], *rules(count)]

    def ours(turn: int) -> None:
        policy = {"vpc": "bench", "subnet": "server", "ingress": [*map(document, wanted(turn))]}
        controller.apply_policies(Document(policy, "loss.json"))

    sides: dict[str, tuple[Callable[[int], object], int]] = {OURS: (ours, applies)}
    linear, restore, each = (side("bench-router") for side in (Linear, Restore, Each))
    sides["nft -f, the whole table"] = (lambda turn: linear.load(wanted(turn)), applies)
    if shutil.which("iptables-nft"):
        sides["iptables-nft-restore"] = (lambda turn: restore.load(wanted(turn)), applies)
        sides["iptables-nft, one process for each rule"] = (lambda turn: each.load(wanted(turn)), min(applies, FEWER))
    else:
        report.skipped["iptables"] = "not installed: iptables-nft"
    seconds = {}
    for side, (apply, times) in sides.items():
        if side != OURS:
            packets.nft("bench-router", REMOVED)
        seconds[side] = measure(side, apply, times, report)
        if side == OURS:
            measure("no change", lambda turn: time.sleep(seconds[OURS][0]), applies, report)
    report.comparisons.append(Comparison("one change under load", "s", OURS, seconds))
    controller.destroy()
    return report


def main() -> None:
    parser = results.parser("loss", __doc__)
    parser.add_argument("--applies", type=int, default=APPLIES)
    parser.add_argument("--rules", type=int, default=RULES)
    options = parser.parse_args()
    results.in_lab()
    results.finish(run(options.applies, options.rules), options.json)


if __name__ == "__main__":
    main()
