"""Packets of full size, on every path of a VPC: they pass if they fit; otherwise the sender gets an ICMP error."""

from __future__ import annotations

import json
import sys

import pytest

from tests.lab.machine import attempt, seen
from tests.lab.traffic import eventually
from vpcctl.lab import HOST, INTERNET, Lab

# A server that answers a stream with its number of bytes, and each datagram with its length.
SERVE = """
import socket, sys, threading
port = int(sys.argv[1])
line = socket.create_server(("0.0.0.0", port))
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mouth.bind(("0.0.0.0", port))
def datagrams():
    while True:
        data, sender = mouth.recvfrom(70000)
        mouth.sendto(str(len(data)).encode(), sender)
threading.Thread(target=datagrams, daemon=True).start()
print("ready", flush=True)
while True:
    caller, _ = line.accept()
    with caller:
        caller.settimeout(60)
        size = 0
        while data := caller.recv(65536):
            size += len(data)
        caller.sendall(b"%d" % size)
"""
# Sends datagrams that must not be fragmented: first as large as the own link allows, then as large as the known MTU of
# the path.  Prints that MTU and the length that arrived.
DATAGRAM = """
import socket, sys, time
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mouth.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
mouth.settimeout(0.2)
mouth.connect((sys.argv[1], int(sys.argv[2])))
for _ in range(25):
    known = mouth.getsockopt(socket.IPPROTO_IP, 14)  # IP_MTU
    try:
        mouth.send(bytes(known - 28))
        print(known, int(mouth.recv(99)) + 28)
        break
    except OSError:
        time.sleep(0.05)
else:
    print(known, 0)
"""
# Sends so many bytes, and prints the server's answer.
STREAM = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as line:
    line.sendall(bytes(int(sys.argv[3])))
    line.shutdown(socket.SHUT_WR)
    print(line.recv(99).decode())
"""
BULK = 2_000_000
PORT = 7100
OPEN = {"ingress": [{"action": "allow"}]}
PEERED = {
    "vpcs": [
        {
            "name": "large",
            "cidr": "10.1.0.0/16",
            "mtu": 9000,
            "subnets": [{"name": "one", "cidr": "10.1.1.0/24", "type": "public", "policy": OPEN}],
        },
        {
            "name": "small",
            "cidr": "10.2.0.0/16",
            "mtu": 1400,
            "subnets": [
                {"name": "two", "cidr": "10.2.1.0/24", "type": "public", "policy": OPEN},
                {"name": "three", "cidr": "10.2.2.0/24", "type": "public", "policy": OPEN},
            ],
            "publish": [{"protocol": protocol, "port": PORT, "instance": "two"} for protocol in ("tcp", "udp")],
        },
    ],
    "peerings": [["large", "small"]],
}
LARGE, SMALL, THIRD = "10.1.1.2", "10.2.1.2", "10.2.2.2"


def serve(lab: Lab, *namespaces: str) -> None:
    for netns in namespaces:
        server = lab.popen([sys.executable, "-I", "-c", SERVE, str(PORT)], netns=netns)
        assert server.stdout
        assert server.stdout.readline() == "ready\n"


def datagram(lab: Lab, netns: str, address: object) -> tuple[int, int]:
    """The MTU of the path that the sender learned, and the length of the datagram of that size that arrived."""
    known, arrived = lab.python(DATAGRAM, str(address), str(PORT), netns=netns).stdout.split()
    return int(known), int(arrived)


def stream(lab: Lab, netns: str, address: object) -> int:
    """How many of BULK bytes arrive."""
    return int(lab.python(STREAM, str(address), str(PORT), str(BULK), netns=netns, timeout=30).stdout)


def mtus(lab: Lab, netns: str | None) -> dict[str, int]:
    return {link["ifname"]: link["mtu"] for link in seen(lab, "link", netns=netns) if link["ifname"] != "lo"}


def shown(lab: Lab, vpc: str) -> int:
    return json.loads(lab.vpcctl("show-vpc", "--name", vpc, "--json").stdout)["mtu"]


@pytest.fixture(scope="module")
def machine(module_lab: Lab) -> Lab:
    """Two VPCs of different MTUs, peered, and the internet, with a server in each; every link outside takes 1500."""
    module_lab.vpcctl("apply", "-", input=json.dumps(PEERED))
    serve(module_lab, "large-one", "small-two", "small-three", "internet")
    return module_lab


# --- The value --------------------------------------------------------------------------------------------------------


def test_every_link_has_the_mtu_of_its_vpc_and_a_peering_the_smaller_one(machine: Lab) -> None:
    assert mtus(machine, "large-router") == {"uplink": 9000, "br-one": 9000, "in-one": 9000, "pr-small": 1400}
    small = {"uplink": 1400, "br-two": 1400, "in-two": 1400, "br-three": 1400, "in-three": 1400, "pr-large": 1400}
    assert mtus(machine, "small-router") == small
    assert (mtus(machine, "large-one"), mtus(machine, "small-two")) == ({"eth0": 9000}, {"eth0": 1400})
    host = mtus(machine, None)
    assert (host["vpc-large"], host["vpc-small"]) == (9000, 1400)
    assert [vpc["mtu"] for vpc in json.loads(machine.vpcctl("export").stdout)["vpcs"]] == [9000, 1400]


def test_a_changed_mtu_is_drift_and_repaired(machine: Lab) -> None:
    for netns, link in (("large-one", "eth0"), ("large-router", "br-one"), (None, "vpc-large")):
        machine.run(["ip", "link", "set", link, "mtu", "1300"], netns=netns)
    words = machine.vpcctl("status", status=3).stdout
    for place in ("eth0 in large-one", "br-one in large-router", "vpc-large in the host"):
        assert f"MTU of {place} is different: is 1300, expected 9000" in words
    machine.vpcctl("repair")
    assert machine.vpcctl("status").stdout == "in sync\n"
    assert (mtus(machine, "large-one")["eth0"], mtus(machine, "large-router")["br-one"]) == (9000, 9000)


def test_without_one_a_vpc_gets_that_of_the_way_out_once(lab: Lab) -> None:
    for name, of_host, expected in (("low", 1380, 1380), ("high", 9000, 1500), ("tiny", 400, 576)):
        lab.run(["ip", "link", "set", "eth0", "mtu", str(of_host)])
        lab.vpcctl("create-vpc", "--name", name, "--cidr", "10.0.0.0/16")
        assert (shown(lab, name), mtus(lab, None)[f"vpc-{name}"]) == (expected, expected)
    lab.run(["ip", "link", "set", "eth0", "mtu", "1500"])
    assert lab.vpcctl("status").stdout == "in sync\n"
    lab.vpcctl("create-subnet", "--vpc", "low", "--name", "web", "--cidr", "10.0.1.0/24", "--type", "public")
    assert (shown(lab, "low"), mtus(lab, "low-web")) == (1380, {"eth0": 1380})
    # An environment without the field leaves the value of existing VPCs; only a new VPC gets the default.
    plain = {"vpcs": [{"name": name, "cidr": "10.0.0.0/16"} for name in ("low", "new")]}
    lab.vpcctl("apply", "-", input=json.dumps(plain))
    assert (shown(lab, "low"), shown(lab, "new")) == (1380, 1500)


def test_the_default_follows_a_default_route_of_any_table(lab: Lab) -> None:
    lab.run(["ip", "link", "add", "vpn0", "mtu", "1420", "type", "veth", "peer", "name", "vpn1"])
    lab.run(["ip", "link", "set", "vpn0", "up"])
    lab.run(["ip", "route", "add", "default", "dev", "vpn0", "table", "51820"])
    lab.vpcctl("create-vpc", "--name", "shop", "--cidr", "10.0.0.0/16")
    assert shown(lab, "shop") == 1420


def test_a_change_of_the_mtu_keeps_live_connections(lab: Lab) -> None:
    lab.vpcctl("apply", "-", input=json.dumps(PEERED))
    serve(lab, "small-three")
    slow = STREAM.replace("line.sendall", "line.sendall(b'x'); input(); line.sendall")
    client = lab.popen([sys.executable, "-I", "-c", slow, THIRD, str(PORT), str(BULK)], netns="small-two")
    assert eventually(lambda: "ESTAB" in lab.run(["ss", "-Htn"], netns="small-two").stdout)
    for mtu in (1300, 2000):
        changed = json.loads(json.dumps(PEERED))
        changed["vpcs"][1]["mtu"] = mtu
        assert f"~ VPC small: MTU {mtu} instead of" in lab.vpcctl("plan", "-", input=json.dumps(changed)).stdout
        lab.vpcctl("apply", "-", input=json.dumps(changed))
        assert mtus(lab, "large-router")["pr-small"] == mtu == mtus(lab, "small-two")["eth0"]
    assert client.communicate("\n", timeout=30)[0] == f"{BULK + 1}\n"


@pytest.mark.parametrize(
    ("words", "told"), [(("575",), "575"), (("65536",), "65536"), (("2001", "--hardened"), "2000")]
)
def test_an_mtu_that_no_vpc_can_have_is_refused(machine: Lab, words: tuple[str, ...], told: str) -> None:
    found = attempt(machine, "create-vpc", "--name", "wrong", "--cidr", "10.3.0.0/16", "--mtu", *words)
    assert (found.returncode, told in found.stderr) == (2, True), found.stderr


# --- The packets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("netns", "address", "size"),
    [
        ("small-two", THIRD, 1400),
        ("small-two", LARGE, 1400),
        ("large-one", SMALL, 1400),
        ("small-two", INTERNET, 1400),
        ("large-one", INTERNET, 1500),
        ("internet", HOST, 1400),
    ],
    ids=["within", "to-larger-peer", "to-smaller-peer", "out", "out-narrower", "published"],
)
def test_whole_packets_of_the_paths_size_arrive(machine: Lab, netns: str, address: object, size: int) -> None:
    """With "do not fragment": if the path has a smaller MTU than the sender's link, an error reports the MTU."""
    assert datagram(machine, netns, address) == (size, size)
    assert stream(machine, netns, address) == BULK


def test_a_way_out_that_became_narrower_is_found_by_live_streams(lab: Lab) -> None:
    lab.vpcctl("apply", "-", input=json.dumps(PEERED))
    serve(lab, "internet", "small-two")
    assert datagram(lab, "small-two", INTERNET) == (1400, 1400)
    lab.run(["ip", "link", "set", "eth0", "mtu", "1000"])
    assert datagram(lab, "small-two", INTERNET) == (1000, 1000)
    assert stream(lab, "small-two", INTERNET) == BULK
    assert lab.vpcctl("status").stdout == "in sync\n"
