"""`vpcctl flows` beside real connections: names, addresses, counts, and the line that admits each."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.machine import apply, run_all
from tests.lab.traffic import eventually
from vpcctl.lab import HOST, INTERNET, NEIGHBOUR, Lab

BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-instance --vpc shop --subnet web --name web-2",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
    "create-vpc --name blue --cidr 10.9.0.0/16",
    "create-subnet --vpc blue --name app --cidr 10.9.1.0/24 --type private",
    "create-peering --vpc1 shop --vpc2 blue",
    "publish-port --vpc shop --instance web --port 8080 --target-port 80 --protocol udp",
)
WEB, WEB_2, DB, APP = "10.0.1.2", "10.0.1.3", "10.0.2.2", "10.9.1.2"
POLICY = {
    "vpc": "shop",
    "subnet": "db",
    "ingress": [
        {"action": "allow", "protocol": "udp", "port": "5000-5010"},
        {"action": "allow", "protocol": "tcp", "port": 5432},
    ],
    "default": {"ingress": "deny"},
}
RULES = "(standard input)#/ingress"
# Datagrams of so many bytes from one port; the headers of UDP and IPv4 are counted, too (RFC 768, RFC 791).
SEND = """
import socket, sys
address, port, count, size, source = sys.argv[1], *map(int, sys.argv[2:])
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mouth.bind(("", source))
for _ in range(count):
    mouth.sendto(b"x" * size, (address, port))
"""
HEADERS = 28
# A server that says when a connection is there, and a client; both keep it until they are killed.
SERVE = """
import socket, sys, time
waiting = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
there, _ = waiting.accept()
print(len(there.recv(100000)), flush=True)
time.sleep(600)
"""
CALL = """
import socket, sys, time
there = socket.create_connection((sys.argv[1], int(sys.argv[2])))
there.sendall(b"x" * 1000)
print(there.getsockname()[1], flush=True)
time.sleep(600)
"""
# Have the router of a VPC forget its entries, which ends their flows.
FORGET = """
import sys
from vpcctl.analysis.tracking import key
from vpcctl.kernel.conntrack import Tracking
tracking = Tracking(sys.argv[1])
tracking.forget([key(flow) for flow in tracking.flows()])
"""
COUNT = "/proc/sys/net/netfilter/nf_conntrack_acct"

Flow = dict[str, Any]


@pytest.fixture(scope="module")
def network(module_lab: Lab) -> Lab:
    """Two VPCs."""
    run_all(module_lab, BUILD)
    apply(module_lab, POLICY)
    return module_lab


def send(lab: Lab, netns: str | None, address: str, port: int, source: int, count: int = 5, size: int = 8) -> None:
    lab.python(SEND, address, *map(str, (port, count, size, source)), netns=netns)


def flows(lab: Lab, *words: str) -> list[Flow]:
    found: list[Flow] = json.loads(lab.vpcctl("flows", *words, "--json").stdout)
    return found


def one(lab: Lab, place: str, **wanted: object) -> Flow:
    """The only flow of a place with these fields."""
    [found] = [flow for flow in flows(lab, place) if wanted.items() <= flow.items()]
    return found


@contextlib.contextmanager
def connection(lab: Lab, client: str, server: str, address: str, port: int) -> Iterator[int]:
    """A TCP connection for a while; the client's port."""
    served = lab.popen([sys.executable, "-I", "-c", SERVE, str(port)], netns=server)
    called = None
    try:
        assert served.stdout
        assert served.stdout.readline() == "ready\n"
        called = lab.popen([sys.executable, "-I", "-c", CALL, address, str(port)], netns=client)
        assert called.stdout
        own = int(called.stdout.readline())
        assert int(served.stdout.readline()) > 0
        yield own
    finally:
        for process in (called, served):
            if process is not None:
                process.kill()
                process.wait(10)


# -- those that are there ------------------------------------------------------------------------------------------


def test_datagrams_inside_a_subnet_are_counted_exactly(network: Lab) -> None:
    send(network, "shop-web", WEB_2, 5100, 4100, count=37, size=100)
    found = one(network, "shop/web-2", source_port=4100)
    ends = ("web", WEB, "web-2", WEB_2, 5100)
    assert tuple(found[name] for name in ("from", "source", "to", "destination", "destination_port")) == ends
    assert (found["packets"], found["bytes"]) == (37, 37 * (100 + HEADERS))
    assert (found["reply_packets"], found["state"], found["service"]) == (0, "unreplied", "udp/5100")
    assert (found["verdict"], found["rule"], found["published"]) == ("allow", "no policy", None)
    assert 0 < found["expires"] <= 120


def test_a_connection_across_subnets_has_the_line_that_admits_it(network: Lab) -> None:
    with connection(network, "shop-web", "shop-db", DB, 5432) as port:
        found = one(network, "shop/db", source_port=port)
        assert (found["from"], found["to"], found["service"]) == ("web", "db", "tcp/5432")
        assert (found["state"], found["verdict"], found["rule"]) == ("established", "allow", f"{RULES}/1")
        # The payload, and a header of at least 40 bytes for each packet: handshake, data, acknowledgement.
        assert found["packets"] >= 5
        assert found["bytes"] >= 1000 + 40 * found["packets"]
        assert found["reply_packets"] >= 2
        assert f"web {WEB}:{port}" in network.vpcctl("flows", "shop").stdout


def test_a_connection_that_a_new_policy_denies_is_shown_as_denied(network: Lab) -> None:
    with connection(network, "shop-web", "shop-db", DB, 5432) as port:
        apply(network, {**POLICY, "ingress": POLICY["ingress"][:1]})
        try:
            found = one(network, "shop/db", source_port=port)
            assert (found["verdict"], found["rule"]) == ("deny", "(standard input)#/default/ingress")
            [line] = [line for line in network.vpcctl("flows", "shop/db").stdout.splitlines() if f":{port} " in line]
            assert line.endswith("denied now: (standard input)#/default/ingress")
        finally:
            apply(network, POLICY)
        assert one(network, "shop/db", source_port=port)["verdict"] == "allow"


def test_a_flow_between_peers_is_in_both_and_comes_once_among_all(network: Lab) -> None:
    send(network, "blue-app", DB, 5001, 4200, count=4)
    shared = {"source_port": 4200, "packets": 4, "bytes": 4 * (8 + HEADERS), "rule": f"{RULES}/0"}
    assert one(network, "blue", **shared).items() >= {"from": "app", "to": "shop/db"}.items()
    assert one(network, "shop", **shared).items() >= {"from": "blue/app", "to": "db"}.items()
    assert len([flow for flow in flows(network) if flow["source_port"] == 4200]) == 1


def test_a_caller_of_a_published_port_is_seen_and_the_instance_that_serves(network: Lab) -> None:
    send(network, "neighbour", str(HOST), 8080, 4300)
    send(network, None, str(HOST), 8080, 4301)
    served = {"to": "web", "destination": WEB, "destination_port": 80, "service": "udp/80", "published": "udp/8080"}
    caller = one(network, "shop/web", source_port=4300)
    assert caller.items() >= {**served, "from": "internet", "source": str(NEIGHBOUR), "packets": 5}.items()
    assert one(network, "shop/web", source_port=4301).items() >= {**served, "from": "host"}.items()
    assert "udp/80 (published as udp/8080)" in network.vpcctl("flows", "shop/web").stdout


def test_a_flow_out_by_source_nat_has_the_instance_and_the_remote_end(network: Lab) -> None:
    send(network, "shop-web", str(INTERNET), 7000, 4400)
    remote = {"to": "internet", "destination": str(INTERNET), "destination_port": 7000, "rule": "no policy"}
    found = one(network, "shop/web", source_port=4400)
    assert found.items() >= {**remote, "from": "web", "source": WEB, "verdict": "allow"}.items()
    assert found["packets"] >= 5


def test_pings_have_their_type_and_no_ports(network: Lab) -> None:
    network.run(["ping", "-n", "-c", "3", "-i", "0.2", "-s", "56", WEB_2], netns="shop-web")
    found = one(network, "shop/web-2", service="icmp/echo-request")
    assert (found["source_port"], found["destination_port"], found["protocol"]) == (None, None, "icmp")
    assert (found["packets"], found["bytes"], found["reply_packets"], found["reply_bytes"]) == (6, 6 * 84, 3, 3 * 84)


def test_a_name_is_that_of_the_present(network: Lab) -> None:
    send(network, "shop-web", WEB_2, 5110, 4500)
    assert one(network, "shop", source_port=4500)["to"] == "web-2"
    run_all(
        network,
        (
            "delete-instance --vpc shop --name web-2",
            f"create-instance --vpc shop --subnet web --name cart --ip {WEB_2}",
        ),
    )
    try:
        # What was another instance's is forgotten.
        assert [flow for flow in flows(network, "shop") if flow["source_port"] == 4500] == []
        send(network, "shop-web", WEB_2, 5110, 4500)
        assert one(network, "shop/cart", source_port=4500)["to"] == "cart"
    finally:
        run_all(
            network,
            (
                "delete-instance --vpc shop --name cart",
                f"create-instance --vpc shop --subnet web --name web-2 --ip {WEB_2}",
            ),
        )


def test_what_is_not_counted_is_null(network: Lab) -> None:
    network.run(["sh", "-c", f"echo 0 >{COUNT}"], netns="shop-router")
    try:
        send(network, "shop-web", WEB_2, 5120, 4600)
    finally:
        network.run(["sh", "-c", f"echo 1 >{COUNT}"], netns="shop-router")
    found = one(network, "shop", source_port=4600)
    assert (found["packets"], found["bytes"], found["reply_packets"], found["reply_bytes"]) == (None,) * 4


# -- those that begin and end --------------------------------------------------------------------------------------


class Following:
    """The command, as it listens."""

    def __init__(self, lab: Lab, *words: str):
        self._lab, self._rest = lab, ""
        command = [sys.executable, "-m", "vpcctl", "flows", "--follow", *words]
        self.process = lab.popen(["sh", "-c", 'echo $$; exec "$@"', "sh", *command])
        assert self.process.stdout
        self.pid = self.process.stdout.readline().strip()
        assert self.complaint().startswith("following ")

    def complaint(self) -> str:
        """The next line on standard error."""
        assert self.process.stderr
        assert select.select([self.process.stderr], [], [], 20)[0], "it says nothing"
        return self.process.stderr.readline()

    def lines(self, wanted: Callable[[list[str]], bool], patience: float = 20) -> list[str]:
        """The lines that it prints until they are `wanted`."""
        assert self.process.stdout
        descriptor, found, end = self.process.stdout.fileno(), [], time.monotonic() + patience
        while not wanted(found):
            assert time.monotonic() < end, found
            if select.select([descriptor], [], [], 0.5)[0]:
                more = os.read(descriptor, 1 << 16)
                assert more, "it has ended"
                *whole, self._rest = (self._rest + more.decode()).split("\n")
                found += whole
        return found

    def drain(self) -> None:
        """Read what it prints, until it prints nothing for two seconds."""
        assert self.process.stdout
        while select.select([self.process.stdout], [], [], 2)[0]:
            assert os.read(self.process.stdout.fileno(), 1 << 16), "it has ended"
        self._rest = ""

    def events(self, source_port: int, count: int) -> list[Flow]:
        """The events of the flow from a port, as soon as there are so many."""
        found: list[Flow] = []

        def enough(lines: list[str]) -> bool:
            found[:] = [one for one in map(json.loads, lines) if one["source_port"] == source_port]
            return len(found) >= count

        self.lines(enough)
        return found

    def signal(self, name: str) -> None:
        self._lab.run(["kill", f"-{name}", self.pid])

    def sockets(self) -> int:
        script = f"ls -l /proc/{self.pid}/fd | grep -c socket:"
        return int(self._lab.run(["sh", "-c", script], check=False).stdout)


@contextlib.contextmanager
def following(lab: Lab, *words: str) -> Iterator[Following]:
    found = Following(lab, *words)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait(10)


def test_a_flow_is_told_when_it_begins_and_when_it_ends(network: Lab) -> None:
    with following(network, "shop", "--json") as told:
        send(network, "shop-web", DB, 5002, 4700, count=9)
        [begun] = told.events(4700, 1)
        network.python(FORGET, "shop-router")
        [ended] = told.events(4700, 1)
    shared = {"vpc": "shop", "from": "web", "to": "db", "service": "udp/5002", "rule": f"{RULES}/0"}
    assert begun.items() >= {**shared, "event": "begin"}.items()
    assert ended.items() >= {**shared, "event": "end", "packets": 9, "bytes": 9 * (8 + HEADERS)}.items()
    assert begun["time"].endswith("Z")
    assert begun["time"] <= ended["time"]


def test_a_packet_that_is_dropped_begins_no_flow(network: Lab) -> None:
    with following(network, "--json") as told:
        send(network, "shop-web", DB, 6000, 4710)
        send(network, "shop-web", DB, 5002, 4711)
        lines = told.lines(lambda lines: any(json.loads(line)["source_port"] == 4711 for line in lines))
    assert [one["source_port"] for one in map(json.loads, lines)] == [4711]


def test_names_and_lines_follow_the_record_and_a_flow_between_peers_is_told_once(network: Lab) -> None:
    with following(network) as told:
        run_all(network, ("create-instance --vpc shop --subnet web --name late --ip 10.0.1.9",))
        try:
            send(network, "blue-app", "10.0.1.9", 5003, 4720)
            send(network, "shop-web", "10.0.1.9", 5003, 4721)
            lines = told.lines(lambda lines: any(":4721" in line for line in lines))
        finally:
            run_all(network, ("delete-instance --vpc shop --name late",))
    times, words = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert list(words) == [
        f"begin blue: app {APP}:4720 → shop/late 10.0.1.9:5003 udp/5003: no policy",
        f"begin shop: web {WEB}:4721 → late 10.0.1.9:5003 udp/5003: no policy",
    ]
    assert list(times) == sorted(times)


def test_the_flows_of_one_instance_alone_are_told(network: Lab) -> None:
    with following(network, "shop/db", "--json") as told:
        send(network, "shop-web", WEB_2, 5004, 4730)
        send(network, "shop-web", DB, 5004, 4731)
        lines = told.lines(lambda lines: any(json.loads(line)["source_port"] == 4731 for line in lines))
    assert [one["source_port"] for one in map(json.loads, lines)] == [4731]


def test_more_than_can_be_read_in_time_is_said_and_it_goes_on(network: Lab) -> None:
    with following(network, "shop", "--json") as told:
        told.signal("STOP")
        network.python(
            "import socket\n"
            "for port in range(10000, 14000):\n"
            "    mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"    mouth.sendto(b'x', ('{WEB_2}', port))\n",
            netns="shop-web",
        )
        told.signal("CONT")
        assert told.complaint() == "warning: VPC shop: events lost: connections began and ended too fast\n"
        # Once it has read what was queued, the kernel queues again.
        told.drain()
        send(network, "shop-web", WEB_2, 5005, 4740)
        assert [one["event"] for one in told.events(4740, 1)] == ["begin"]
    network.python(FORGET, "shop-router")


def test_a_deleted_vpc_is_let_go_and_a_new_one_is_heard(network: Lab) -> None:
    run_all(network, ("create-vpc --name brief --cidr 10.7.0.0/16",))
    with following(network, "--json") as told:
        before = told.sockets()
        run_all(network, ("delete-vpc --name brief --cascade",))
        assert eventually(lambda: told.sockets() == before - 1)
        run_all(
            network,
            (
                "create-vpc --name brief --cidr 10.7.0.0/16",
                "create-subnet --vpc brief --name app --cidr 10.7.1.0/24 --type private",
                "create-instance --vpc brief --subnet app --name app-2",
            ),
        )
        try:
            assert eventually(lambda: told.sockets() == before)
            send(network, "brief-app", "10.7.1.3", 5006, 4750)
            assert [one["vpc"] for one in told.events(4750, 1)] == ["brief"]
        finally:
            run_all(network, ("delete-vpc --name brief --cascade",))


def test_an_interrupt_ends_it(network: Lab) -> None:
    with following(network, "shop") as told:
        told.signal("INT")
        assert told.process.wait(10) == 130
        assert told.process.stderr
        assert "Traceback" not in told.process.stderr.read()


def test_a_vpc_that_was_asked_for_and_is_deleted_ends_it(network: Lab) -> None:
    run_all(network, ("create-vpc --name brief --cidr 10.7.0.0/16",))
    with following(network, "brief") as told:
        run_all(network, ("delete-vpc --name brief --cascade",))
        assert told.process.wait(10) == 4
        assert told.complaint().startswith("vpcctl: VPC 'brief' not found")
