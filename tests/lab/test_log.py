"""`vpcctl log`: each line tells the VPC, the verdict, the rule, and whose packet it was."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterator

import pytest

from tests.lab.machine import apply, run_all
from tests.lab.traffic import SEND, eventually
from vpcctl.lab import Lab

SHOP = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
)
POLICY = {
    "vpc": "shop",
    "subnet": "db",
    "ingress": [
        {"action": "allow", "protocol": "udp", "port": 5000, "log": True},
        {"action": "deny", "protocol": "udp", "port": 5001, "log": True},
        {"action": "reject", "protocol": "icmp", "icmp_type": "echo-request", "log": True},
        {"action": "deny", "protocol": "udp", "port": 5002},
    ],
}


@pytest.fixture(scope="module")
def machine(module_lab: Lab) -> Lab:
    run_all(module_lab, SHOP)
    apply(module_lab, POLICY)
    return module_lab


class Listening:
    """The command, as it listens; `pid` is its number in the lab."""

    def __init__(self, lab: Lab):
        self._lab, self._rest = lab, ""
        words = [sys.executable, "-m", "vpcctl", "log", "--vpc", "shop", "--json"]
        self.process = lab.popen(["sh", "-c", 'echo $$; exec "$@"', "sh", *words])
        self.pid = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def entries(self, patience: float) -> list[dict[str, object]]:
        """What it prints, until it prints nothing for `patience` seconds."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while select.select([descriptor], [], [], patience)[0] and (more := os.read(descriptor, 1 << 16)):
            self._rest += more.decode()
        *whole, self._rest = self._rest.split("\n")
        return list(map(json.loads, whole))

    def complaint(self) -> str:
        """The next line on standard error."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def signal(self, name: str) -> None:
        self._lab.run(["kill", f"-{name}", self.pid])


@pytest.fixture
def log(machine: Lab) -> Iterator[Listening]:
    listening = Listening(machine)
    try:
        assert listening.complaint() == "listening to VPC shop; Ctrl-C ends it\n"

        def told() -> bool:
            machine.python(SEND, "5001", "1", "1", netns="shop-web")
            return bool(listening.entries(0.2))

        assert eventually(told)
        listening.entries(2)  # on a busy machine more than one was sent before the first was told
        yield listening
    finally:
        listening.process.kill()
        listening.process.wait()


def test_a_line_tells_the_vpc_the_verdict_the_rule_and_the_packet(machine: Lab, log: Listening) -> None:
    machine.python(SEND, "5000", "2", "3", netns="shop-web")
    machine.python(SEND, "5001", "1", "1", netns="shop-web")
    machine.python(SEND, "5002", "1", "1", netns="shop-web")
    machine.run(["ping", "-n", "-c", "1", "-W", "1", "10.0.2.2"], netns="shop-web", check=False)
    packet = {"source": "10.0.1.2", "destination": "10.0.2.2"}
    assert log.entries(3) == [
        # The first packet of each flow that is allowed.
        {"prefix": "vpcctl shop allow _standard input_#/ingress/0", **packet, "protocol": 17, "port": 5000},
        {"prefix": "vpcctl shop allow _standard input_#/ingress/0", **packet, "protocol": 17, "port": 5000},
        {"prefix": "vpcctl shop deny _standard input_#/ingress/1", **packet, "protocol": 17, "port": 5001},
        {"prefix": "vpcctl shop reject _standard input_#/ingress/2", **packet, "protocol": 1, "port": 8},
    ]


def test_more_than_can_be_read_in_time_is_told_and_listening_goes_on(machine: Lab, log: Listening) -> None:
    log.signal("STOP")
    machine.python(SEND, "5001", "200", "200", netns="shop-web")
    log.signal("CONT")
    assert log.complaint() == "log entries lost: packets arrived too fast\n"
    log.entries(1)
    machine.python(SEND, "5000", "1", "1", netns="shop-web")
    assert [one["port"] for one in log.entries(3)] == [5000]
