"""Published ports, for each kind of caller: access, visible sources, conflicts, and senders that never pause."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.networks import machine_behind
from vpcctl.lab import Lab

TALKER = [sys.executable, "-I", str(Path(__file__).with_name("talker.py"))]
# The host's addresses: toward the default route, and on a second card.
HOST, SECOND = "198.51.100.2", "192.0.2.1"
NEIGHBOUR, SECOND_NEIGHBOUR = "198.51.100.20", "192.0.2.9"
GATEWAY = {"shop": "100.64.0.0", "two": "100.64.0.2"}
# The namespaces of callers.
OUTSIDE, BESIDE, ITSELF, SAME, OTHER = "neighbour", "lan2", None, "shop-web", "two-app"
NOBODY = ("", "Connection refused", "No route to host", "Network is unreachable")
SERVED = (80, 5000, 9001, 9002, 9003, 9004)
READY, ENOUGH = 5.0, 40


@pytest.fixture(scope="module")
def network(module_lab: Lab) -> Iterator[Lab]:
    """Two VPCs of one prefix, a second card with a neighbour, and servers in three instances."""
    lab = module_lab
    lab.run(["sh", "-ec", machine_behind("eth1", BESIDE, f"{SECOND}/24", f"{SECOND_NEIGHBOUR}/24")])
    lab.run(["sysctl", "-qw", "net.ipv4.conf.eth1.forwarding=1"])
    for vpc, subnet in (("shop", "web"), ("two", "app")):
        lab.vpcctl("create-vpc", "--name", vpc, "--cidr", "10.0.0.0/16")
        lab.vpcctl(*f"create-subnet --vpc {vpc} --name {subnet} --cidr 10.0.1.0/24 --type public".split())
    lab.vpcctl(*"create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private".split())
    with contextlib.ExitStack() as stack:
        for name in ("shop-web", "shop-db", "two-app"):
            stack.enter_context(server(lab, name, name, *SERVED))
        yield lab


@contextlib.contextmanager
def server(lab: Lab, netns: str | None, name: str, *ports: int | str) -> Iterator[None]:
    """Run a server for a while."""
    process = lab.popen([*TALKER, "serve", name, *map(str, ports)], netns=netns)
    assert process.stdout
    assert process.stdout.readline().strip() == "ready"
    try:
        yield
    finally:
        process.kill()
        process.wait(10)


def call(lab: Lab, caller: str | None, address: str, port: int, protocol: str = "tcp") -> str:
    """The answer to a call: the server's name, its port and the source that it sees; empty or an error without one."""
    return lab.run([*TALKER, "call", address, str(port), protocol], netns=caller).stdout.strip().removesuffix(" 0")


@contextlib.contextmanager
def published(lab: Lab, words: str, vpc: str = "shop") -> Iterator[None]:
    lab.vpcctl("publish-port", "--vpc", vpc, *words.split())
    parts = words.split()
    back = [part for flag in ("--port", "--protocol", "--address") if flag in parts
            for part in (flag, parts[parts.index(flag) + 1])]  # fmt: skip
    try:
        yield
    finally:
        lab.vpcctl("unpublish-port", "--vpc", vpc, *back)


# -- who reaches them, and who is seen -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_is_reached_from_everywhere_and_the_caller_is_seen(network: Lab, protocol: str) -> None:
    with published(network, f"--instance web --port 8080 --target-port 80 --protocol {protocol}"):
        for caller, address, seen in (
            (OUTSIDE, HOST, NEIGHBOUR),
            (BESIDE, SECOND, SECOND_NEIGHBOUR),
            (ITSELF, HOST, HOST),
            (ITSELF, SECOND, SECOND),
            # Sources that replies could not reach are translated.
            (ITSELF, "127.0.0.1", GATEWAY["shop"]),
            (SAME, HOST, GATEWAY["shop"]),
            (SAME, SECOND, GATEWAY["shop"]),
            (OTHER, HOST, GATEWAY["shop"]),
        ):
            assert call(network, caller, address, 8080, protocol) == f"shop-web 80 {seen}", (caller, address)
        # The other protocol, neighbouring ports, and other loopback addresses stay closed.
        other = {"tcp": "udp", "udp": "tcp"}[protocol]
        for caller, address in ((OUTSIDE, HOST), (ITSELF, HOST), (ITSELF, "127.0.0.1"), (SAME, HOST), (OTHER, HOST)):
            assert call(network, caller, address, 8080, other) in NOBODY, caller
            assert call(network, caller, address, 8081, protocol) in NOBODY, caller
        assert call(network, ITSELF, "127.0.0.53", 8080, protocol) in NOBODY
        # A private subnet cannot reach the host either.
        assert call(network, "shop-db", HOST, 8080, protocol) in NOBODY
    assert call(network, OUTSIDE, HOST, 8080, protocol) in NOBODY
    assert call(network, ITSELF, "127.0.0.1", 8080, protocol) in NOBODY


def test_a_port_at_one_address_leads_from_there_alone(network: Lab) -> None:
    with (
        published(network, f"--instance web --port 8080 --target-port 80 --address {HOST}"),
        published(network, f"--instance db --port 8080 --target-port 80 --address {SECOND}"),
        published(network, "--instance app --port 8080 --target-port 80 --address 127.0.0.1", "two"),
    ):
        assert call(network, OUTSIDE, HOST, 8080) == f"shop-web 80 {NEIGHBOUR}"
        assert call(network, BESIDE, SECOND, 8080) == f"shop-db 80 {SECOND_NEIGHBOUR}"
        assert call(network, ITSELF, HOST, 8080) == f"shop-web 80 {HOST}"
        assert call(network, ITSELF, SECOND, 8080) == f"shop-db 80 {SECOND}"
        assert call(network, ITSELF, "127.0.0.1", 8080) == f"two-app 80 {GATEWAY['two']}"
        assert call(network, OTHER, SECOND, 8080) == f"shop-db 80 {GATEWAY['shop']}"
        assert call(network, SAME, HOST, 8080) == f"shop-web 80 {GATEWAY['shop']}"
        network.vpcctl("status")
    assert call(network, BESIDE, SECOND, 8080) in NOBODY


def test_a_range_leads_port_by_port(network: Lab) -> None:
    with (
        published(network, "--instance web --port 9001-9003"),
        published(network, "--instance db --port 9101-9103 --target-port 9002-9004"),
    ):
        for port in (9001, 9002, 9003):
            assert call(network, OUTSIDE, HOST, port) == f"shop-web {port} {NEIGHBOUR}"
            assert call(network, ITSELF, "127.0.0.1", port) == f"shop-web {port} {GATEWAY['shop']}"
            assert call(network, OTHER, HOST, port + 100) == f"shop-db {port + 1} {GATEWAY['shop']}"
        assert call(network, OUTSIDE, HOST, 9004) in NOBODY
        assert call(network, OUTSIDE, HOST, 9104) in NOBODY
        refused = network.vpcctl("unpublish-port", "--vpc", "shop", "--port", "9002", status=4)
        assert "unpublish-port --vpc shop --port 9001-9003" in refused.stderr


@contextlib.contextmanager
def policy(lab: Lab, vpc: str, subnet: str, **document: object) -> Iterator[None]:
    lab.vpcctl("apply-policy", "-", "--vpc", vpc, "--subnet", subnet, input=json.dumps(document))
    try:
        yield
    finally:
        lab.vpcctl("clear-policy", "--vpc", vpc, "--subnet", subnet)


def test_both_policies_judge_a_call_of_an_instance(network: Lab) -> None:
    to_host = {"action": "allow", "protocol": "tcp", "destination": f"{HOST}/32", "port": 8080}
    from_outside = {"action": "allow", "protocol": "tcp", "source": "internet", "port": 80}
    from_lan = {"action": "allow", "protocol": "tcp", "source": "198.51.100.0/24", "port": 80}
    with published(network, "--instance web --port 8080 --target-port 80"):
        asked = ("explain", OTHER.replace("-", "/"), HOST, "tcp/8080")
        with policy(network, "two", "app", egress=[to_host]):
            assert call(network, OTHER, HOST, 8080).startswith("shop-web 80")
            network.vpcctl(*asked)
            assert call(network, OTHER, SECOND, 8080) in NOBODY
        with policy(network, "two", "app", egress=[{**to_host, "port": 80}]):
            assert call(network, OTHER, HOST, 8080) in NOBODY
            network.vpcctl(*asked, status=1)
        with policy(network, "shop", "web", ingress=[from_outside]):
            for caller, address in ((OUTSIDE, HOST), (ITSELF, HOST), (ITSELF, "127.0.0.1"), (OTHER, HOST)):
                assert call(network, caller, address, 8080).startswith("shop-web 80"), (caller, address)
        with policy(network, "shop", "web", ingress=[from_lan]):
            # The host's LAN address is in that prefix; its address on the uplink is not.
            for caller, address, reached in (
                (OUTSIDE, HOST, True),
                (ITSELF, HOST, True),
                (ITSELF, "127.0.0.1", False),
                (BESIDE, SECOND, False),
                (OTHER, HOST, False),
                (SAME, HOST, False),
            ):
                assert call(network, caller, address, 8080).startswith("shop-web") is reached, (caller, address)
            said = network.vpcctl(*asked, status=1)
            assert "ingress of shop/web" in said.stdout
            network.vpcctl("explain", HOST, "shop/web", "tcp/80")


# -- what stays closed ---------------------------------------------------------------------------------------------


def test_a_published_port_opens_no_other_way_to_the_host(network: Lab) -> None:
    """Instances and the LAN reach neither other ports of the host nor its loopback addresses."""
    with (
        server(network, None, "the-host", 7000),
        published(network, "--instance web --port 8080 --target-port 80"),
    ):
        for address in (HOST, SECOND, "127.0.0.1", GATEWAY["shop"], GATEWAY["two"]):
            for caller in (SAME, OTHER):
                for protocol in ("tcp", "udp"):
                    assert call(network, caller, address, 7000, protocol) in NOBODY, (caller, address)
        assert call(network, ITSELF, "127.0.0.1", 7000) == "the-host 7000 127.0.0.1"
        # A neighbour routes loopback addresses, or addresses of uplinks, to the host (CVE-2020-8558).
        for address in ("127.0.0.1", "127.0.0.5", GATEWAY["shop"], "100.64.0.1"):
            for port in (7000, 8080):
                assert _reached_by_route(network, address, port) is False, (address, port)
        # Root in an instance forges packets that look like the answers of a served flow.
        frame = (
            "import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);"
            "s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1);s.bind(('',81));"
            f"s.sendto(b'forged',('{HOST}',7000));s.settimeout(1)\n"
            "try: print(s.recv(99))\nexcept OSError: pass"
        )
        assert network.run([sys.executable, "-c", frame], netns=SAME).stdout == ""


def _reached_by_route(lab: Lab, address: str, port: int) -> bool:
    for words in ("route replace local 127.0.0.0/8 dev lo table local", f"route add {address}/32 via {HOST}"):
        lab.run(["ip", *words.split()], netns=OUTSIDE, check=False)
    lab.run(["ip", "route", "del", "local", "127.0.0.0/8", "table", "local"], netns=OUTSIDE, check=False)
    lab.run(["ip", "address", "del", "127.0.0.1/8", "dev", "lo"], netns=OUTSIDE, check=False)
    try:
        return call(lab, OUTSIDE, address, port) not in NOBODY
    finally:
        lab.run(["ip", "route", "del", f"{address}/32"], netns=OUTSIDE, check=False)


# -- who has the port ----------------------------------------------------------------------------------------------


def test_a_port_that_a_program_has_is_a_conflict_that_names_it(network: Lab) -> None:
    with server(network, None, "sshd", 22):
        taken = network.vpcctl(*"publish-port --vpc shop --instance web --port 22".split(), status=4)
        # The number is that of the lab's own processes.
        assert re.search(r"python\S* \(PID [0-9]+\) listens on tcp/22 at 0.0.0.0", taken.stderr), taken.stderr
        assert call(network, OUTSIDE, HOST, 22).startswith("sshd")
        network.vpcctl(*"publish-port --vpc shop --instance web --port 20-25".split(), status=4)
        environment = {
            "vpcs": [
                {
                    "name": "third",
                    "cidr": "10.3.0.0/16",
                    "subnets": [{"name": "a", "cidr": "10.3.1.0/24", "type": "private"}],
                    "publish": [{"protocol": "tcp", "port": 22, "instance": "a"}],
                }
            ]
        }
        applied = network.vpcctl("apply", "-", input=json.dumps(environment), status=4)
        assert "listens on tcp/22" in applied.stderr
        with published(network, "--instance web --port 22 --target-port 80 --force"):
            assert call(network, OUTSIDE, HOST, 22).startswith("shop-web 80")
        assert call(network, OUTSIDE, HOST, 22).startswith("sshd")
    assert "third" not in network.vpcctl("list-vpcs").stdout


def test_an_address_or_a_protocol_that_the_program_has_not_is_no_conflict(network: Lab) -> None:
    bound = (
        "import socket,time;s=socket.socket();s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1);"
        f"s.bind(('{SECOND}',2222));s.listen();print('ready',flush=True);time.sleep(60)"
    )
    process = network.popen([sys.executable, "-c", bound])
    assert process.stdout
    assert process.stdout.readline()
    try:
        for words, status in (
            (f"--port 2222 --target-port 80 --address {SECOND}", 4),
            ("--port 2222 --target-port 80", 4),
            (f"--port 2222 --target-port 80 --address {HOST}", 0),
            ("--port 2222 --target-port 80 --protocol udp", 0),
        ):
            network.vpcctl("publish-port", "--vpc", "shop", "--instance", "web", *words.split(), status=status)
            if not status:
                network.vpcctl("unpublish-port", "--vpc", "shop", *words.replace("--target-port 80", "").split())
    finally:
        process.kill()
        process.wait(10)


FOREIGN = """
table ip someone {
    map services { type inet_service : ipv4_addr . inet_service; elements = { 7400 : 203.0.113.10 . 80 } }
    chain theirs {
        type nat hook prerouting priority dstnat; policy accept;
        tcp dport { 7100, 7200-7210 } counter dnat to 203.0.113.10:80
        ip daddr 10.96.0.1 tcp dport 7300 dnat to 203.0.113.10:80
        dnat ip to tcp dport map @services
    }
}
"""


def test_a_port_that_a_foreign_rule_translates_is_a_conflict_that_names_it(network: Lab) -> None:
    network.run(["nft", "-f", "-"], input=FOREIGN)
    try:
        for port, status in ((7100, 4), (7205, 4), (7211, 0), (7300, 0), (7400, 4)):
            words = f"publish-port --vpc shop --instance web --port {port} --target-port 80"
            made = network.vpcctl(*words.split(), status=status)
            if status:
                assert "chain theirs of table ip someone" in made.stderr
            else:
                network.vpcctl("unpublish-port", "--vpc", "shop", "--port", str(port))
        # A port that was published with --force is ours, although the foreign rule still exists.
        with published(network, "--instance web --port 7100 --target-port 80 --force"):
            assert call(network, OUTSIDE, HOST, 7100) == f"shop-web 80 {NEIGHBOUR}"
    finally:
        network.run(["nft", "delete", "table", "ip", "someone"])


# -- senders that never pause --------------------------------------------------------------------------------------


class Sender:
    """Datagrams from a fixed port, two hundred a second."""

    def __init__(self, lab: Lab, caller: str | None, address: str, port: int, source: int):
        words = [*TALKER, "send", address, str(port), str(source)]
        self._process = lab.popen(words, netns=caller)

    def report(self) -> tuple[int, dict[int, list[str]]]:
        """The number of sent datagrams, and who answered which."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return told["sent"], {int(number): answer for number, answer in told["answers"].items()}

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def settled(self, who: str | None) -> None:
        """Everything sent from now on is answered by `who`, or by nobody; nothing is lost."""
        first = self.report()[0] + 1
        deadline = time.monotonic() + 20
        while (last := self.report()[0]) < first + ENOUGH:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        found = self._answered(first, last)
        while None in found.values() and who and time.monotonic() < deadline:
            time.sleep(0.05)
            found = self._answered(first, last)
        wrong = {number: answer for number, answer in found.items() if answer != who}
        assert not wrong, (wrong, first, last)

    def lost_nothing(self, after: int, who: str) -> None:
        """Everything sent after a number was answered by `who`."""
        last, deadline = self.report()[0], time.monotonic() + 10
        while (found := self._answered(after + 1, last)) and None in found.values() and time.monotonic() < deadline:
            time.sleep(0.05)
        wrong = {number: answer for number, answer in found.items() if answer != who}
        assert not wrong, (wrong, after, last)

    def _answered(self, first: int, last: int) -> dict[int, str | None]:
        answers = self.report()[1]
        return {number: answers.get(number, [None])[0] for number in range(first, last)}


@contextlib.contextmanager
def senders(lab: Lab, **calls: tuple[str | None, str, int, int]) -> Iterator[dict[str, Sender]]:
    """Senders by name: namespace, called address and port, and own port."""
    made = {name: Sender(lab, *words) for name, words in calls.items()}
    try:
        yield made
    finally:
        for one in made.values():
            one.close()


def test_senders_that_never_pause_follow_a_port_that_is_published_moved_and_taken_back(network: Lab) -> None:
    with (
        published(network, "--instance web --port 5001 --target-port 5000 --protocol udp"),
        senders(
            network,
            outside=(OUTSIDE, HOST, 5000, 6001),
            beside=(BESIDE, SECOND, 5000, 6002),
            itself=(ITSELF, HOST, 5000, 6003),
            loopback=(ITSELF, "127.0.0.1", 5000, 6004),
            same=(SAME, HOST, 5000, 6005),
            other=(OTHER, HOST, 5000, 6006),
            stays=(OUTSIDE, HOST, 5001, 6007),
            inside=(OTHER, HOST, 5001, 6008),
        ) as calls,
    ):
        moving = [one for name, one in calls.items() if name not in ("stays", "inside")]
        for one in moving:
            one.settled(None)
        begun = {name: calls[name].report()[0] for name in ("stays", "inside")}
        words = "--vpc shop --port 5000 --protocol udp"
        network.vpcctl("publish-port", *words.split(), "--instance", "web")
        for one in moving:
            one.settled("shop-web")
        # Both in one change, as with `apply`.
        document = json.loads(network.vpcctl("export", "--vpc", "shop").stdout)
        for item in document["vpcs"][0]["publish"]:
            if item["port"] == 5000:
                item["instance"] = "db"
        network.vpcctl("apply", "-", input=json.dumps(document))
        for one in moving:
            one.settled("shop-db")
        network.vpcctl("unpublish-port", *words.split())
        for one in moving:
            one.settled(None)
        network.vpcctl("publish-port", *words.replace("shop", "two").split(), "--instance", "app")
        for one in moving:
            one.settled("two-app")
        network.vpcctl("unpublish-port", *words.replace("shop", "two").split())
        with server(network, None, "the-host", 5000):
            # An unpublished port belongs to the host again.
            for name in ("outside", "beside", "itself", "loopback"):
                calls[name].settled("the-host")
        for name, first in begun.items():
            calls[name].lost_nothing(first, "shop-web")


def test_senders_follow_a_port_that_is_published_at_another_address(network: Lab) -> None:
    def publish(address: str) -> None:
        document = json.loads(network.vpcctl("export", "--vpc", "shop").stdout)
        item = {"protocol": "udp", "port": 5000, "instance": "web"} | ({"address": address} if address else {})
        document["vpcs"][0]["publish"] = [item]
        network.vpcctl("apply", "-", input=json.dumps(document))

    with senders(network, one=(OUTSIDE, HOST, 5000, 6011), other=(BESIDE, SECOND, 5000, 6012)) as calls:
        try:
            publish("")
            calls["one"].settled("shop-web")
            calls["other"].settled("shop-web")
            publish(HOST)
            calls["other"].settled(None)
            calls["one"].settled("shop-web")
            publish(SECOND)
            calls["one"].settled(None)
            calls["other"].settled("shop-web")
        finally:
            network.vpcctl("unpublish-port", "--vpc", "shop", "--port", "5000", "--protocol", "udp")


CASES: dict[str, tuple[Callable[[Lab], object], Callable[[Lab], object]]] = {
    "the host's table is loaded again": (
        lambda lab: lab.run(["nft", "delete", "table", "inet", "vpcctl"]),
        lambda lab: lab.vpcctl("repair"),
    ),
    "the router's tables are loaded again": (
        lambda lab: lab.run(["nft", "flush", "ruleset"], netns="shop-router"),
        lambda lab: lab.vpcctl("repair"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_senders_that_begin_while_a_table_is_gone_are_translated_when_it_is_back(network: Lab, case: str) -> None:
    away, back = CASES[case]
    with published(network, "--instance web --port 5000 --protocol udp"):
        away(network)
        with (
            senders(
                network,
                outside=(OUTSIDE, HOST, 5000, 6021),
                loopback=(ITSELF, "127.0.0.1", 5000, 6022),
                other=(OTHER, HOST, 5000, 6023),
                internet=(SAME, NEIGHBOUR, 5005, 6024),
            ) as calls,
            server(network, OUTSIDE, "neighbour", 5005),
        ):
            for name in calls:
                calls[name].settled(None)
            back(network)
            calls["internet"].settled("neighbour")
            for name in ("outside", "loopback", "other"):
                calls[name].settled("shop-web")


def test_senders_follow_a_nat_gateway_and_a_subnets_type(network: Lab) -> None:
    with (
        server(network, OUTSIDE, "neighbour", 5005),
        senders(network, db=("shop-db", NEIGHBOUR, 5005, 6031), web=(SAME, NEIGHBOUR, 5005, 6032)) as calls,
    ):
        calls["db"].settled(None)
        calls["web"].settled("neighbour")
        begun = calls["web"].report()[0]
        for _ in range(2):
            network.vpcctl("create-nat-gateway", "--vpc", "shop", "--subnet", "db")
            calls["db"].settled("neighbour")
            network.vpcctl("delete-nat-gateway", "--vpc", "shop", "--subnet", "db")
            calls["db"].settled(None)
        document = json.loads(network.vpcctl("export", "--vpc", "shop").stdout)
        subnet = next(one for one in document["vpcs"][0]["subnets"] if one["name"] == "db")
        for kind, who in (("public", "neighbour"), ("private", None)):
            subnet["type"] = kind
            network.vpcctl("apply", "-", input=json.dumps(document))
            calls["db"].settled(who)
        calls["web"].lost_nothing(begun, "neighbour")


def test_senders_follow_a_peering_that_comes_and_goes(network: Lab) -> None:
    """Without a peering the packets go to the internet, where a machine has the same address."""
    lab = network
    lab.vpcctl("create-vpc", "--name", "side", "--cidr", "10.7.0.0/16")
    lab.vpcctl(*"create-subnet --vpc side --name api --cidr 10.7.1.0/24 --type public".split())
    lab.run(["ip", "address", "add", "10.7.1.2/32", "dev", "lo"], netns=OUTSIDE)
    lab.run(["ip", "route", "add", "10.7.1.2/32", "via", NEIGHBOUR])
    try:
        with (
            server(lab, "side-api", "side-api", 5000),
            server(lab, OUTSIDE, "neighbour", "10.7.1.2:5000"),
            senders(lab, web=(SAME, "10.7.1.2", 5000, 6041)) as calls,
        ):
            calls["web"].settled("neighbour")
            for _ in range(2):
                lab.vpcctl("create-peering", "--vpc1", "shop", "--vpc2", "side")
                calls["web"].settled("side-api")
                lab.vpcctl("delete-peering", "--vpc1", "shop", "--vpc2", "side")
                calls["web"].settled("neighbour")
    finally:
        lab.run(["ip", "route", "del", "10.7.1.2/32"], check=False)
        lab.vpcctl("delete-vpc", "--name", "side", "--cascade")


def test_senders_follow_the_hosts_address(network: Lab) -> None:
    """A new address of the way out: the kernel deletes flows with the old one (nf_nat_masquerade)."""
    lab, new = network, "198.51.100.77"
    with (
        server(lab, OUTSIDE, "neighbour", 5005),
        senders(lab, web=(SAME, NEIGHBOUR, 5005, 6051)) as calls,
    ):
        calls["web"].settled("neighbour")
        assert calls["web"].report()[1].popitem()[1][1] == HOST
        try:
            _become(lab, HOST, new)
            calls["web"].settled("neighbour")
            assert max(calls["web"].report()[1].items())[1][1] == new
        finally:
            _become(lab, new, HOST)


def _become(lab: Lab, old: str, new: str) -> None:
    """Change the host's address on its way out."""
    routes = lab.run(["ip", "-4", "route", "show", "dev", "eth0", "scope", "global"]).stdout.splitlines()
    lab.run(["ip", "address", "del", f"{old}/24", "dev", "eth0"])
    lab.run(["ip", "address", "add", f"{new}/24", "dev", "eth0"])
    for route in routes:
        lab.run(["ip", "route", "replace", *route.replace(f"src {old}", "").split(), "dev", "eth0"])
