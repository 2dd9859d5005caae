"""Numbered, timed traffic between namespaces, counted where it arrives: what the tests hold.

A `Station` is a process in one namespace (`station.py`) that does what it is told: it keeps its ends of any number of
flows going, sends single probes, and listens to every packet that comes in.

Each record of a flow holds its number and the time it was sent.  CLOCK_MONOTONIC is the same in all namespaces
(time_namespaces(7)), so a receiver can tell whether anything came that was sent after a given moment.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpcctl.lab import Lab

PROGRAM = Path(__file__).with_name("station.py")
ICMP_ECHO = 8

# Datagrams from as many ports as there are to be flows, each said so many times.
SEND = """
import socket, sys
port, flows, times = map(int, sys.argv[1:])
for number in range(flows):
    mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(times):
        mouth.sendto(b"x", ("10.0.2.2", port))
"""


@dataclass(frozen=True, slots=True)
class Count:
    """What one end of a flow has seen: `last` is when the youngest record that arrived was sent."""

    sent: int
    received: int
    missing: int
    last: float


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as it came in; `port` is its destination port, or its ICMP type."""

    protocol: str
    source: str
    destination: str
    port: int


class Station:
    """A process in the namespace `netns` of a lab (None: the lab host)."""

    def __init__(self, lab: Lab, netns: str | None):
        self.netns = netns
        self._process = lab.popen([sys.executable, "-I", str(PROGRAM)], netns=netns, stderr=None)

    def tell(self, act: str, **words: Any) -> Any:
        """Have it do `act` and return its answer; AssertionError if it ended."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"act": act, **words}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the station in {self.netns} ended with status {self._process.wait(5)}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["is"]

    def counts(self) -> dict[str, Count]:
        """The count of each of its ends."""
        return {name: Count(*values) for name, values in self.tell("count").items()}

    def listen(self) -> None:
        """Begin to note every IPv4 packet that comes in by a link, whether or not anything here wants it."""
        self.tell("listen")

    def heard(self) -> list[Packet]:
        """What came in since the last question."""
        return [Packet(*values) for values in self.tell("heard")]

    def probe(self, address: str, port: int, protocols: tuple[str, ...] = ("tcp", "udp", "icmp")) -> None:
        """Send the first packet of a new flow of each protocol; an echo request takes no port."""
        self.tell("probe", address=address, port=port, protocols=protocols)

    def close(self) -> None:
        """End it, and all its flows."""
        self._process.terminate()
        self._process.wait(10)


def reaches(
    sender: Station, receiver: Station, address: str, port: int, protocol: str, *, at: int | None = None
) -> bool:
    """Does the first packet of a new flow arrive?  Waits for one that does; use `silent` for one that does not.

    `at` is the port at which it arrives, where destination NAT makes that another one.
    """
    receiver.heard()
    sender.probe(address, port, (protocol,))
    return eventually(lambda: bool(_matching(receiver.heard(), at or port, (protocol,))), 3)


def silent(
    sender: Station,
    receiver: Station,
    address: str,
    port: int,
    canary: Callable[[], bool],
    protocols: tuple[str, ...] = ("tcp", "udp", "icmp"),
    *,
    at: int | None = None,
) -> list[Packet]:
    """What arrives of probes that must not: none.  `canary` is sent after them, and must arrive to prove the ear."""
    receiver.heard()
    sender.probe(address, port, protocols)
    time.sleep(0.05)
    found = receiver.heard()
    assert canary(), f"the canary did not arrive in {receiver.netns}"
    return _matching(found, at or port, protocols)


def _matching(packets: list[Packet], port: int, protocols: tuple[str, ...]) -> list[Packet]:
    wanted = {(name, ICMP_ECHO if name == "icmp" else port) for name in protocols}
    return [one for one in packets if (one.protocol, one.port) in wanted]


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow that goes on: the client called the server; either may be the one that sends."""

    name: str
    client: Station
    server: Station

    def counts(self) -> tuple[Count, Count]:
        """At the client, at the server."""
        return self.client.counts()[self.name], self.server.counts()[self.name]


def start_flow(
    name: str,
    client: Station,
    server: Station,
    address: str,
    port: int,
    protocol: str,
    *,
    rate: int = 0,
    push: int = 0,
    target: int | None = None,
) -> Flow:
    """Begin a flow of `rate` records a second to the server and `push` back; both 0 is a flow that says hello only.

    `target` is the port on which the server listens, where that is not the one that the client calls.
    """
    server.tell("serve", name=name, protocol=protocol, port=target or port, rate=push)
    client.tell("call", name=name, protocol=protocol, address=address, port=port, rate=rate)
    return Flow(name, client, server)


def moving(flows: list[Flow], after: float) -> bool:
    """Has each end that is sent to received something that was sent after the moment `after`?"""
    return not stuck(flows, after)


def stuck(flows: list[Flow], after: float) -> list[str]:
    """The flows of which an end that is sent to has received nothing that was sent after the moment `after`."""
    return [flow.name for flow in flows if not _arrived(flow, after)]


def assert_moving(flows: list[Flow], after: float) -> None:
    """Every flow carries something that is sent after the moment `after`; waits for it."""
    assert eventually(lambda: not stuck(flows, after)), stuck(flows, after)


def assert_nothing_lost(flows: list[Flow]) -> None:
    """Every record that was sent has arrived; the senders stop first."""
    for flow in flows:
        for station in (flow.client, flow.server):
            station.tell("rate", name=flow.name, rate=0)
    for flow in flows:
        whole = eventually(lambda flow=flow: _missing(flow) == (0, 0), 5)
        assert whole, f"{flow.name} lost records: {flow.counts()}"


def _missing(flow: Flow) -> tuple[int, int]:
    """How many records were sent and have not arrived at the server, at the client."""
    client, server = flow.counts()
    return client.sent - server.received, server.sent - client.received


def _arrived(flow: Flow, after: float) -> bool:
    client, server = flow.counts()
    # An end that was greeted only is not sent to.
    return (client.last > after or server.sent <= 1) and (server.last > after or client.sent <= 1)


def eventually(condition: Callable[[], bool], patience: float = 60) -> bool:
    """Does it become true?  It is asked once more when the time is over, because this process may have been asleep."""
    end = time.monotonic() + patience
    while True:
        late = time.monotonic() > end
        if condition():
            return True
        if late:
            return False
        time.sleep(0.01)


@contextlib.contextmanager
def stations(lab: Lab, *namespaces: str | None) -> Iterator[list[Station]]:
    """A station in each of the namespaces, for a while."""
    made = [Station(lab, netns) for netns in namespaces]
    try:
        yield made
    finally:
        for station in made:
            station.close()
