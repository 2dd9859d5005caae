"""What the whole ruleset of a VPC costs each packet, beside connection tracking alone on the same bridges and veths.

    ./run bench packets [CHECKOUT] [--turns N]

The reference has one chain, REFERENCE, in the same router; nothing else differs.  With CHECKOUT, the rulesets of that
checkout take part, too.  Forwarding between two instances on veths runs inside the system call of the sender, so the
time for a burst is the time of the whole path.  Packets are 8-byte UDP, sent past the socket layer and dropped at the
first hook of the receiver, so both ends take as little of that time as they can.

A measurement is the median over the bursts of many packets, so that other processes do not count.  Turns are in random
order; each `rate` is the median over the turns of the ratio of the rates of a ruleset and of the reference.  On a busy
machine it varies by ten percent.  `undisturbed rate` is the ratio of the 5th percentiles of all bursts: nothing
interrupted those bursts, so it varies by one percent.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.dataplane import COMPILE
from benchmarks.results import Comparison, Report
from benchmarks.rules import ENVIRONMENT, policy
from vpcctl.analysis.tracking import key
from vpcctl.documents.environment import read_environment
from vpcctl.engine import reconciler
from vpcctl.engine.state import Store
from vpcctl.kernel.conntrack import Tracking
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.kernel.namespaces import entered
from vpcctl.lab import STATE_DIR
from vpcctl.model.network import World

ROOT = Path(__file__).parents[1]
TURNS, PACKETS, BURST, SETTLED = 25, 2_048, 32, 0.15
REFERENCE = """
table inet reference {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
        accept
    }
}
"""
# The earliest end that there is.
RECEIVER = """
table netdev receiver {
    chain in {
        type filter hook ingress device eth0 priority 0; policy accept;
        udp dport 40000 drop
    }
}
"""
REMOVED = "".join(
    f"add table {family} {name}\ndelete table {family} {name}\n"
    for family, name in (("inet", "vpcctl"), ("arp", "vpcctl"), ("bridge", "vpcctl"), ("inet", "reference"))
)
CLIENT, SERVER, PORT = "10.1.0.2", "10.2.0.2", 40_000
# Of include/uapi/linux: what has no name in Python's socket module.
ETH_P_IP, SOL_PACKET, PACKET_QDISC_BYPASS = 0x0800, 263, 20

_libc = ctypes.CDLL(None, use_errno=True)


class _Piece(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("pieces", ctypes.POINTER(_Piece)),
        ("piece_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("sent", ctypes.c_uint64),
    )


class Frames:
    """Frames in the form that sendmmsg(2) takes."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        self._pieces = (_Piece * len(frames))(*(_Piece(frame, len(frame)) for frame in frames))
        self._messages = (_Message * len(frames))(
            *(_Message(pieces=ctypes.pointer(piece), piece_count=1) for piece in self._pieces)
        )

    def send(self, sender: socket.socket, bursts: int = PACKETS // BURST) -> list[float]:
        """Send them in bursts; the seconds that each burst took."""
        size, took = ctypes.sizeof(_Message), []
        for number in range(bursts):
            at = ctypes.byref(self._messages, number * BURST * size)
            started = time.perf_counter()
            sent = _libc.sendmmsg(sender.fileno(), at, BURST, 0)
            took.append(time.perf_counter() - started)
            if sent != BURST:
                raise OSError(ctypes.get_errno(), "sendmmsg")
        return took


def run(checkouts: dict[str, Path], turns: int) -> Report:
    kernel, store = LinuxKernel(), Store(STATE_DIR)
    world = read_environment(ENVIRONMENT, "bench.json", lambda path: ({}, path))
    reconciler.change(store, kernel, lambda state: world)
    nft("bench-server", RECEIVER)
    texts = {"reference": REFERENCE}
    for name, checkout in checkouts.items():
        texts |= {f"{name}: {case}": compiled(checkout, document) for case, document in documents().items()}
    found = measured(texts, frames(world), turns)
    reconciler.change(store, kernel, lambda state: World())
    return report(found)


def documents() -> dict[str, dict[str, Any]]:
    """Environments by what is measured with them.  A VPC with a way out has chains for NAT."""

    def document(count: int, kind: str) -> dict[str, Any]:
        found = copy.deepcopy(ENVIRONMENT)
        client, server = found["vpcs"][0]["subnets"]
        client["type"], server["policy"] = kind, {"ingress": policy(count)["ingress"]}
        return found

    return {
        "10 rules": document(10, "private"),
        "10,000 rules": document(10_000, "private"),
        "10 rules and a way out": document(10, "public"),
    }


def compiled(checkout: Path, document: dict[str, Any]) -> str:
    """The ruleset of the router, by the compiler of `checkout`."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-P", "-c", COMPILE]
    result = subprocess.run(
        command, input=json.dumps(document), capture_output=True, text=True, check=True, env=environment
    )
    router, _ = json.loads(result.stdout)
    return str(router)


# Seconds for each packet, by kind of flow, ruleset, turn and burst.
Took = dict[str, dict[str, list[list[float]]]]


def measured(texts: dict[str, str], packets: dict[str, Frames], turns: int) -> Took:
    """Load each ruleset in each turn, and send."""
    took: Took = {kind: {name: [] for name in texts} for kind in packets}
    for turn in range(turns):
        for name in random.Random(turn).sample(list(texts), len(texts)):
            nft("bench-router", REMOVED + texts[name])
            # The kernel frees the ruleset before in the background, for a while.
            time.sleep(SETTLED)
            for kind, sent in packets.items():
                took[kind][name].append(measure_bursts(sent, kind == "new"))
    return took


def report(found: Took) -> Report:
    """Nanoseconds of a packet; the rates, as parts of the reference's."""
    made = Report("packets")
    for kind, bursts in found.items():
        seconds = {name: list(map(statistics.median, turns)) for name, turns in bursts.items()}
        nanoseconds = {name: [value * 1e9 for value in values] for name, values in seconds.items()}
        made.comparisons.append(Comparison(f"{kind} flow, a packet", "ns", "reference", nanoseconds))
        for name, values in seconds.items():
            if name != "reference":
                turns = zip(values, seconds["reference"], strict=True)
                made.figures[f"rate, {kind} flow, {name}"] = statistics.median(b / a for a, b in turns)
                quick = undisturbed(bursts["reference"]) / undisturbed(bursts[name])
                made.figures[f"undisturbed rate, {kind} flow, {name}"] = quick
    return made


def undisturbed(turns: list[list[float]]) -> float:
    """The 5th percentile of the bursts, in seconds."""
    bursts = sorted(burst for turn in turns for burst in turn)
    return bursts[len(bursts) // 20]


def nft(namespace: str, text: str) -> None:
    subprocess.run(["ip", "netns", "exec", namespace, "nft", "-f", "-"], input=text, text=True, check=True)


def frames(world: World) -> dict[str, Frames]:
    """The packets of one flow, and of a flow each."""
    source = world.vpc("bench").instance("client").mac
    ends = mac("bench-router", "br-client") + bytes.fromhex(source.replace(":", "")) + struct.pack("!H", ETH_P_IP)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 36, 0, 0, 64, 17, 0)
    header += socket.inet_aton(CLIENT) + socket.inet_aton(SERVER)
    total = sum(struct.unpack("!10H", header))
    checksum = ~(total + (total >> 16)) & 0xFFFF
    start = ends + header[:10] + struct.pack("!H", checksum) + header[12:]

    def made(ports: Iterable[int]) -> Frames:
        return Frames([start + struct.pack("!HHHHQ", port, PORT, 16, 0, 0) for port in ports])

    return {"established": made([1024] * PACKETS), "new": made(range(1024, 1024 + PACKETS))}


def mac(namespace: str, link: str) -> bytes:
    command = ["ip", "-netns", namespace, "-json", "link", "show", link]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return bytes.fromhex(found[0]["address"].replace(":", ""))


def measure(packets: Frames, fresh: bool) -> float:
    """Seconds for a packet, until it is dropped at the receiver's first hook: the median of the bursts."""
    return statistics.median(measure_bursts(packets, fresh))


def measure_bursts(packets: Frames, fresh: bool) -> list[float]:
    """Seconds for a packet of each burst."""
    tracking = Tracking("bench-router")
    tracking.forget(map(key, list(tracking.flows())))
    tracking.close()
    with entered("bench-client"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("eth0", 0))
        sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        if not fresh:
            packets.send(sender, 1)
        before = received()
        took = packets.send(sender)
    arrived = received() - before
    if arrived < PACKETS * 0.98:
        raise SystemExit(f"only {arrived} of {PACKETS} packets were forwarded")
    return [burst / BURST for burst in took]


def received() -> int:
    """Packets that the server's interface has received."""
    with entered("bench-server"):
        line = next(line for line in Path("/proc/thread-self/net/dev").read_text().splitlines() if "eth0:" in line)
    return int(line.split()[2])


def main() -> None:
    parser = results.parser("packets", __doc__)
    parser.add_argument("checkout", nargs="?", type=Path, help="another checkout to compare with")
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    results.in_lab()
    checkouts = {"here": ROOT} | ({"there": options.checkout} if options.checkout else {})
    results.finish(run(checkouts, options.turns), options.json)


if __name__ == "__main__":
    main()
