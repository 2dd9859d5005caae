"""Lost packets and the longest gap while the policy changes again and again, with senders that never pause.

    ./run bench loss [--applies N] [--rules N]

Three streams of datagrams run: one established flow that stays allowed, packets that each open an allowed flow, and a
flow that is denied all the time.  Each side replaces its rules N times; every time one other rule is different.
The allowed streams may lose nothing, and the denied one may leak nothing.  Sides take turns, in ten rounds.

A gap may come from the scheduler. Two figures show this: the longest pause of the sender, and "no change", the same
time without any change.  The longest transit is the longest time between sending and delivery of one datagram.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks import packets, results
from benchmarks.results import Comparison, Report, timed
from benchmarks.rivals.firewalls import CHANGED, REMOVED, Allowed, Each, Linear, Restore, document, rules
from benchmarks.streams import Outcome, Stream, running
from vpcctl import Controller, Document
from vpcctl.lab import STATE_DIR

APPLIES, RULES = 300, 20
# One process for each rule takes long, and loses packets each time, so few changes are enough.
FEWER = 15
STREAMS = {"established": Stream(5001), "new": Stream(5002, new=True, pause=0.002), "denied": Stream(1000, pause=0.002)}
ROUNDS = 10
OURS, IDLE = "vpcctl, one controller", "no change"
# Seconds between two changes, and before the first one.
PAUSE, START = 0.02, 0.3


@dataclass(slots=True)
class Side:
    """One way to change the policy, and everything that was measured of it."""

    apply: Callable[[int], object]
    prepare: Callable[[], object]
    applies: int
    seconds: list[float] = field(default_factory=list)
    outcomes: list[dict[str, Outcome]] = field(default_factory=list)

    def measure(self, applies: int) -> None:
        """Change the policy so many times while the streams run."""
        self.prepare()
        self.apply(0)
        with running(STREAMS) as streams:
            time.sleep(START)
            for turn in range(1, applies + 1):
                self.seconds.append(timed(lambda: self.apply(turn)))  # noqa: B023
                time.sleep(PAUSE)
            time.sleep(START)
            self.outcomes.append(streams.stop())

    def figures(self) -> dict[str, float | int]:
        found: dict[str, float | int] = {"changes": len(self.seconds)}
        for name in ("established", "new"):
            streams = [outcome[name] for outcome in self.outcomes]
            found |= {
                f"{name}, sent": sum(stream.sent for stream in streams),
                f"{name}, lost": sum(stream.lost for stream in streams),
                f"{name}, longest gap, ms": max(stream.longest_gap for stream in streams) * 1e3,
                f"{name}, longest pause of the sender, ms": max(stream.longest_pause for stream in streams) * 1e3,
                f"{name}, longest transit, ms": max(stream.longest_transit for stream in streams) * 1e3,
            }
        denied = [outcome["denied"] for outcome in self.outcomes]
        return found | {
            "denied, sent": sum(stream.sent for stream in denied),
            "denied, leaked": sum(len(stream.arrived) for stream in denied),
        }


def sides(controller: Controller, applies: int, count: int, skipped: dict[str, str]) -> dict[str, Side]:
    def wanted(turn: int) -> list[Allowed]:
        return [CHANGED[turn % 2], *rules(count)]

    def ours(turn: int) -> None:
        policy = {"vpc": "bench", "subnet": "server", "ingress": [*map(document, wanted(turn))]}
        controller.apply_policies(Document(policy, "loss.json"))

    def restored() -> None:
        packets.nft("bench-router", REMOVED)
        controller.repair()

    def emptied() -> None:
        packets.nft("bench-router", REMOVED)

    linear, restore, each = (side("bench-router") for side in (Linear, Restore, Each))
    made = {
        OURS: Side(ours, restored, applies),
        IDLE: Side(lambda turn: time.sleep(statistics.median(made[OURS].seconds)), restored, applies),
        "nft -f, the whole table": Side(lambda turn: linear.load(wanted(turn)), emptied, applies),
    }
    if shutil.which("iptables-nft"):
        made["iptables-nft-restore"] = Side(lambda turn: restore.load(wanted(turn)), emptied, applies)
        one_by_one = Side(lambda turn: each.load(wanted(turn)), emptied, min(applies, FEWER))
        made["iptables-nft, one process for each rule"] = one_by_one
    else:
        skipped["iptables"] = "not installed: iptables-nft"
    return made


def run(applies: int, count: int) -> Report:
    report, controller = Report("loss"), Controller(STATE_DIR)
    controller.create_vpc("bench", "10.0.0.0/8")
    for name, prefix in (("client", "10.1.0.0/24"), ("server", "10.2.0.0/24")):
        controller.create_subnet("bench", name, prefix, public=False)
    made = sides(controller, applies, count, report.skipped)
    rounds = min(ROUNDS, applies)
    for number in range(rounds):
        for side in made.values():
            # The changes of all rounds together are those asked for.
            side.measure(side.applies * (number + 1) // rounds - side.applies * number // rounds)
    for name, side in made.items():
        report.figures |= {f"{name}: {figure}": value for figure, value in side.figures().items()}
    seconds = {name: side.seconds for name, side in made.items() if name != IDLE}
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
