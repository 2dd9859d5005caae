"""Packets that must never arrive, sent without a pause while the host changes, and ears where they would arrive.

As a program it runs in the lab host with a list of canaries, and stands in one thread.  It enters a namespace by its
name for each packet, so that it follows namespaces that are made again, and keeps none alive for long.  Each line on
standard input is an order; the answer is a line of JSON.

    lift NAME     a protection is gone: somebody else has removed it
    guard NAME    it is back; one that is a table of ours, as soon as that table is seen
    arrived       of each canary, when it arrived though it was protected, and how many were sent
    watch         forget what arrived; from now on every arrival counts
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import socket
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Between two rounds, and how long a packet is under way at most.
PAUSE, LATE = 0.03, 0.25
# An ICMP error quotes the packet, and the lab's internet answers with a part of it.
WORD, END = b"canary ", b" ends"
WHOLE = re.compile(re.escape(WORD) + b"([^\0]*)" + re.escape(END))
HOST = "host"
ETH_P_ALL, PACKET_HOST, CLONE_NEWNET = 3, 0, 0x40000000
PORT = 7001


@dataclass(frozen=True)
class Canary:
    """A datagram from a namespace to where it must not arrive.

    `source` is a forged one.  `ear` is the namespace in which it would arrive.  `unless` are the protections without
    which it may arrive; of those joined by `+`, each one is enough.
    """

    name: str
    sender: str
    destination: str
    ear: str
    unless: tuple[str, ...] = ()
    port: int = PORT
    source: str = "0.0.0.0"


class Canaries:
    """The test's side of the program."""

    def __init__(self, lab: Any, canaries: Sequence[Canary]):
        words = json.dumps([asdict(one) for one in canaries])
        self._process = lab.popen([sys.executable, "-m", "tests.lab.canaries", words], stderr=None, cwd=_ROOT)
        self.arrived()

    def _tell(self, order: str) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the canaries ended with status {self._process.wait(5)}"
        return json.loads(line)

    def lift(self, guard: str) -> None:
        self._tell(f"lift {guard}")

    def guard(self, guard: str) -> None:
        self._tell(f"guard {guard}")

    def watch(self) -> None:
        self._tell("watch")

    def arrived(self) -> dict[str, list[float]]:
        """Which arrived, and when."""
        return {name: times for name, times in self._tell("arrived")["arrived"].items() if times}

    def sent(self) -> dict[str, int]:
        """How many of each could be sent."""
        sent: dict[str, int] = self._tell("arrived")["sent"]
        return sent

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)


_ROOT = Path(__file__).resolve().parents[2]


# --- The program ------------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_HOME = os.open("/proc/self/ns/net", os.O_RDONLY)


def _path(space: str) -> str:
    return f"/run/lab/{space}" if space in ("internet", "neighbour") else f"/run/netns/{space}"


@contextlib.contextmanager
def entered(space: str) -> Iterator[int]:
    """Be in a namespace for a moment; its inode.  OSError if there is none."""
    if space == HOST:
        yield 0
        return
    place = os.open(_path(space), os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(place, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield os.fstat(place).st_ino
        finally:
            _libc.setns(_HOME, CLONE_NEWNET)
    finally:
        os.close(place)


def send(canary: Canary) -> None:
    """One packet, with a header of our own: so its source may be anybody's."""
    payload = WORD + canary.name.encode() + END
    body = struct.pack("!HHHH", 6000, canary.port, 8 + len(payload), 0) + payload
    ends = socket.inet_aton(canary.source) + socket.inet_aton(canary.destination)
    # The kernel fills in the length, the identifier, the checksum, and the source if it is zero (raw(7)).
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, socket.IPPROTO_UDP, 0) + ends
    with entered(canary.sender), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as mouth:
        mouth.setblocking(False)
        mouth.sendto(head + body, (canary.destination, 0))


class Ears:
    """An ear in each namespace that is there.

    The host hears what its programs would hear; the others every packet that is handed to them, whatever its address.
    """

    def __init__(self, spaces: set[str]):
        self._spaces = spaces
        self._open: dict[str, tuple[int, socket.socket]] = {}

    def refresh(self) -> None:
        for space in self._spaces:
            try:
                with entered(space) as inode:
                    if space in self._open and self._open[space][0] == inode:
                        continue
                    self._close(space)
                    self._open[space] = (inode, _ear(space))
            except OSError:
                self._close(space)

    def _close(self, space: str) -> None:
        if space in self._open:
            self._open.pop(space)[1].close()

    def hear(self) -> Iterator[tuple[str, str]]:
        """What came in: the canary, and where."""
        for space, (_, ear) in self._open.items():
            while True:
                try:
                    frame, sender = ear.recvfrom(2048)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # the link went down
                found = WHOLE.search(frame)
                if found and (space == HOST or (sender[2] == PACKET_HOST and frame[9] == socket.IPPROTO_UDP)):
                    yield found[1].decode(), space


def _ear(space: str) -> socket.socket:
    if space == HOST:
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ear.bind(("", PORT))
    else:
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    ear.setblocking(False)
    return ear


def has_table(space: str) -> bool:
    """Is our table of the family inet there?"""
    from nftables import Nftables

    try:
        with entered(space):
            return Nftables().cmd("list tables inet")[1].find("table inet vpcctl\n") >= 0
    except OSError:
        return False


class Watch:
    """Which protections are lifted, and which packets were sent while one of theirs stood."""

    def __init__(self) -> None:
        self.lifted: set[str] = set()
        self.returning: set[str] = set()
        self.recent: list[tuple[float, frozenset[str]]] = []
        self.all = False

    def look(self) -> None:
        """A protection that is a table of ours returns when it is seen; others when we are told."""
        now = time.monotonic()
        self.recent = [one for one in self.recent if one[0] > now - LATE] + [(now, frozenset(self.lifted))]
        for guard in [one for one in self.returning & self.lifted if not one.startswith("owner") and has_table(one)]:
            self.lifted.discard(guard)

    def counts(self, canary: Canary) -> bool:
        """Was it protected all the time?"""
        lifted = self.lifted.union(*(guards for _, guards in self.recent))
        return self.all or not any(lifted.issuperset(one.split("+")) for one in canary.unless)


def main(words: str) -> None:
    canaries = {one["name"]: Canary(**one | {"unless": tuple(one["unless"])}) for one in json.loads(words)}
    ears, watch = Ears({one.ear for one in canaries.values()}), Watch()
    sent: dict[str, int] = defaultdict(int)
    arrived: dict[str, list[float]] = defaultdict(list)
    while True:
        ears.refresh()
        watch.look()
        for canary in canaries.values():
            with contextlib.suppress(OSError):
                send(canary)
                sent[canary.name] += 1
        if select.select([sys.stdin], [], [], PAUSE)[0]:
            order, _, name = sys.stdin.readline().strip().partition(" ")
            if not order:
                return
            if order == "lift":
                watch.lifted.add(name)
                watch.returning.discard(name)
            elif order == "guard":
                watch.returning.add(name)
                if name.startswith("owner"):
                    watch.lifted.discard(name)
            elif order == "watch":
                watch.all = True
                arrived.clear()
            print(json.dumps({"arrived": arrived, "sent": sent}), flush=True)
        for name, space in ears.hear():
            if canaries[name].ear == space and watch.counts(canaries[name]):
                arrived[name].append(time.time())


if __name__ == "__main__":
    main(sys.argv[1])
