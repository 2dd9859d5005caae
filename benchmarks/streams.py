"""Streams of datagrams between two instances, to measure the effect of a change on them.

A sender is a process in the client's namespace that sends with a given pause. One receiver process in the server's
namespace records, for each datagram, when it was sent and when the kernel delivered it. Both end when their standard
input ends, and then print their results.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLIENT, SERVER = "10.1.0.2", "10.2.0.2"
ROOT = Path(__file__).parents[1]
# A datagram's number and when it was sent, in nanoseconds.
PAYLOAD = struct.Struct("!QQ")
BUFFER = 1 << 26
# include/uapi/asm-generic/socket.h: constants that Python's socket module lacks.
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
TIME = struct.Struct("@ll")


@dataclass(frozen=True, slots=True)
class Stream:
    """Datagrams to one port, all in one flow or each in a flow of its own."""

    port: int
    new: bool = False
    pause: float = 0.0005


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a stream.  `arrived` has a pair of times, in seconds, for each datagram: sent and delivered."""

    sent: int
    longest_pause: float
    arrived: tuple[tuple[float, float], ...]
    overflowed: int

    @property
    def lost(self) -> int:
        """Datagrams that did not reach the server, without those that its socket had no room for."""
        return self.sent - len(self.arrived) - self.overflowed

    @property
    def longest_gap(self) -> float:
        """Seconds in which nothing arrived."""
        times = sorted(delivered for _, delivered in self.arrived)
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    @property
    def longest_transit(self) -> float:
        """Seconds from sending to delivery of the slowest datagram."""
        return max((delivered - sent for sent, delivered in self.arrived), default=0.0)


class Streams:
    """Running streams; `stop` ends them."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._streams = streams
        ports = [str(stream.port) for stream in streams.values()]
        self._receiver = _start("bench-server", "receive", *ports)
        assert self._receiver.stdout
        self._receiver.stdout.readline()
        self._senders = {
            name: _start("bench-client", "send", str(stream.port), str(int(stream.new)), str(stream.pause))
            for name, stream in streams.items()
        }
        for sender in self._senders.values():
            assert sender.stdout
            sender.stdout.readline()

    def stop(self) -> dict[str, Outcome]:
        sent = {name: _ended(sender) for name, sender in self._senders.items()}
        received = _ended(self._receiver)
        return {
            name: Outcome(
                sent[name]["sent"],
                sent[name]["longest_pause"],
                tuple((begun / 1e9, delivered / 1e9) for begun, delivered in received["arrived"][str(stream.port)]),
                received["overflowed"][str(stream.port)],
            )
            for name, stream in self._streams.items()
        }

    def abandon(self) -> None:
        """Kill the processes, whatever their state."""
        for process in (*self._senders.values(), self._receiver):
            if process.poll() is None:
                process.kill()
                process.communicate()


@contextlib.contextmanager
def running(streams: Mapping[str, Stream]) -> Iterator[Streams]:
    started = Streams(streams)
    try:
        yield started
    finally:
        started.abandon()


def _start(namespace: str, *words: str) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "benchmarks.streams", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def _ended(process: subprocess.Popen[str]) -> Any:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a stream's process ended with status {process.returncode}")
    return json.loads(output)


# --- The processes ----------------------------------------------------------------------------------------------------


def send(port: int, new: bool, pause: float) -> None:
    """Send until standard input ends."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    ends = socket.inet_aton(CLIENT) + socket.inet_aton(SERVER)
    header = struct.pack("!BBHHHBBH8s", 0x45, 0, 0, 0, 0, 64, 17, 0, ends)
    print("ready", flush=True)
    sent, longest, last = 0, 0, time.time_ns()
    while not select.select([sys.stdin], [], [], pause)[0]:
        source = 1024 + sent % 60_000 if new else 1024
        now = time.time_ns()
        udp = struct.pack("!HHHH", source, port, 8 + PAYLOAD.size, 0)
        sender.sendto(header + udp + PAYLOAD.pack(sent, now), (SERVER, 0))
        longest, last, sent = max(longest, now - last), now, sent + 1
    print(json.dumps({"sent": sent, "longest_pause": longest / 1e9}))


def receive(ports: Iterable[int]) -> None:
    """Receive until standard input ends, and then the queued datagrams."""
    receivers = {}
    for port in ports:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        except PermissionError:  # only root of the real machine may
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        receiver.bind((SERVER, port))
        receivers[receiver] = port
    arrived: dict[int, list[tuple[int, int]]] = {port: [] for port in receivers.values()}
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([sys.stdin, *receivers], [], [])
        for receiver, port in receivers.items():
            if receiver in readable or sys.stdin in readable:
                _drain(receiver, arrived[port])
        if sys.stdin in readable:
            break
    print(json.dumps({"arrived": arrived, "overflowed": {port: _overflowed(port) for port in receivers.values()}}))


def _drain(receiver: socket.socket, arrived: list[tuple[int, int]]) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            data, ancillary, _, _ = receiver.recvmsg(64, 64)
            seconds, nanoseconds = TIME.unpack(ancillary[0][2])
            arrived.append((PAYLOAD.unpack(data)[1], seconds * 10**9 + nanoseconds))


def _overflowed(port: int) -> int:
    """Datagrams that the socket of `port` had no room for: the last column of the kernel's list."""
    for line in Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            return int(fields[-1])
    return 0


def main(words: list[str]) -> None:
    if words[0] == "send":
        send(int(words[1]), words[2] == "1", float(words[3]))
    else:
        receive(map(int, words[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
