"""What the defences against partial checksums cost: the test of fragments, and a hardened VPC.

    ./run bench hardened [--turns N]

Figures are ratios within one run of turns that alternate; absolute values are this machine's.
"""

from __future__ import annotations

import ctypes
import functools
import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pyroute2 import NFCTSocket

from benchmarks import results
from benchmarks.results import Comparison, Report
from vpcctl.documents.environment import read_environment
from vpcctl.engine import reconciler
from vpcctl.engine.state import Store
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.kernel.namespaces import entered
from vpcctl.lab import STATE_DIR
from vpcctl.model.network import World

BURSTS, PACKETS, TURNS, SECONDS = 80, 2_000, 15, 0.3
CLIENT, SERVER = "10.1.0.2", "10.2.0.2"
LIBC = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr of sendmmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("padding", ctypes.c_int), ("sent", ctypes.c_uint64),
    )  # fmt: skip


def run(turns: int | None) -> Report:
    kernel, store = LinuxKernel(), Store(STATE_DIR)
    subnets = [{"name": name, "cidr": f"10.{number}.0.0/24", "type": "private"} for number, name in PLACES]
    vpcs = [
        {"name": name, "cidr": "10.0.0.0/8", "subnets": subnets, "hardened": name == HARDENED}
        for name in (UNTESTED, DEFAULT, HARDENED)
    ]
    world = read_environment({"vpcs": vpcs}, "bench.json", lambda path: ({}, path))
    reconciler.change(store, kernel, lambda state: world)
    without_test()
    time.sleep(1)
    report = Report("hardened")
    measures: dict[str, tuple[int, Callable[[str], float]]] = {
        "new flows, k/s": (BURSTS, lambda vpc: datagrams(vpc, new=True)),
        "packets of one flow, k/s": (BURSTS, lambda vpc: datagrams(vpc, new=False)),
        "TCP, Gbit/s": (TURNS, tcp),
    }
    for what, (usual, measure) in measures.items():
        found: dict[str, list[float]] = {UNTESTED: [], DEFAULT: [], HARDENED: []}
        for _ in range(turns or usual):
            for vpc, measured in found.items():
                measured.append(measure(vpc))
        add(report, what, found)
    reconciler.change(store, kernel, lambda state: World())
    return report


UNTESTED, DEFAULT, HARDENED = "untested", "default", "hardened"
PLACES = ((1, "client"), (2, "server"))


def without_test() -> None:
    """Take the rule away that tests fragments, as the ruleset was without it."""
    inside = ["ip", "netns", "exec", f"{UNTESTED}-router"]
    listing = subprocess.run(
        [*inside, "nft", "-j", "-a", "list", "chain", "inet", "vpcctl", "from-member"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    rules = [one["rule"] for one in json.loads(listing)["nftables"] if "rule" in one]
    [handle] = [rule["handle"] for rule in rules if {"jump": {"target": "first-fragment"}} in rule["expr"]]
    command = f"nft delete rule inet vpcctl from-member handle {handle}"
    subprocess.run([*inside, *command.split()], check=True)


def datagrams(vpc: str, new: bool) -> float:
    """Small datagrams forwarded in a millisecond of the sender's processor time, each of a flow of its own if `new`.

    The kernel forwards a packet in the time of who sends it, so other processes do not count.
    """
    with entered(f"{vpc}-router"), NFCTSocket() as flows:
        flows.flush()
    messages, _ = _messages(new)
    before = _received(vpc)
    with entered(f"{vpc}-client"):
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sender:
        started, sent = time.thread_time(), 0
        while sent < PACKETS:
            place = ctypes.addressof(messages) + sent * ctypes.sizeof(_Message)
            taken = LIBC.sendmmsg(sender.fileno(), ctypes.c_void_p(place), min(64, PACKETS - sent), 0)
            if taken <= 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            sent += taken
        took = time.thread_time() - started
    time.sleep(0.02)
    return (_received(vpc) - before) / took / 1000


@functools.cache
def _messages(new: bool) -> tuple[ctypes.Array[_Message], object]:
    """What sendmmsg(2) is given, and what must live as long."""
    packets = [_datagram(1024 + number if new else 1024) for number in range(PACKETS)]
    buffers = [ctypes.create_string_buffer(packet, len(packet)) for packet in packets]
    vectors = (_Vector * PACKETS)(*(_Vector(ctypes.addressof(one), len(one)) for one in buffers))
    to = ctypes.create_string_buffer(struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(SERVER)), 16)
    size = ctypes.sizeof(_Vector)
    places = (ctypes.addressof(vectors) + number * size for number in range(PACKETS))
    return (_Message * PACKETS)(*(_Message(ctypes.addressof(to), 16, one, 1) for one in places)), (buffers, vectors, to)


def _datagram(port: int) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, socket.inet_aton(CLIENT), socket.inet_aton(SERVER))
    return head + struct.pack("!HHHH", port, 40_000, 8, 0)


def _received(vpc: str) -> int:
    """Packets that the server's link has received."""
    with entered(f"{vpc}-server"):
        line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if "eth0:" in line)
    return int(line.split()[2])


def tcp(vpc: str) -> float:
    """Gigabits a second of one TCP connection."""
    total = 0

    def serve(listener: socket.socket) -> None:
        nonlocal total
        caller, _ = listener.accept()
        buffer = bytearray(1 << 20)
        while count := caller.recv_into(buffer):
            total += count

    with entered(f"{vpc}-server"):
        listener = socket.create_server((SERVER, 5001))
    server = threading.Thread(target=serve, args=(listener,))
    server.start()
    with entered(f"{vpc}-client"):
        caller = socket.create_connection((SERVER, 5001))
    data, started = bytes(1 << 18), time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        caller.sendall(data)
    caller.close()
    server.join()
    listener.close()
    return total * 8 / (time.perf_counter() - started) / 1e9


def add(report: Report, what: str, found: dict[str, list[float]]) -> None:
    """The median, and the upper decile, because the machine also runs other programs."""
    name, unit = what.rsplit(", ", 1)
    report.comparisons.append(Comparison(name, unit, UNTESTED, found))
    for vpc in (DEFAULT, HARDENED):
        report.figures[f"{name}: upper decile, {vpc}"] = _decile(found[vpc]) / _decile(found[UNTESTED])


def _decile(measured: list[float]) -> float:
    return sorted(measured)[len(measured) * 9 // 10]


def main() -> None:
    parser = results.parser("hardened", __doc__)
    parser.add_argument("--turns", type=int, help=f"default: {BURSTS} for datagrams, {TURNS} for TCP")
    options = parser.parse_args()
    results.in_lab()
    results.finish(run(options.turns), options.json)


if __name__ == "__main__":
    main()
