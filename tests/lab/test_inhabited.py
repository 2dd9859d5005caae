"""An instance behaves like a machine: programs ping, listen on any port, and find ::1; and no IPv6 leaves it."""

from __future__ import annotations

import json
import sys

import pytest

from tests.lab.machine import attempt, run_all, seen
from tests.nobody import BECOME
from vpcctl.lab import STATE_DIR, Lab

BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
)
# A server that calls itself once, by the name or address and the port.
SELF = """
import socket, sys
family, kind, _, _, place = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_STREAM)[0]
with socket.socket(family, kind) as server:
    server.bind(place)
    server.listen()
    with socket.create_connection(place[:2], 5) as line:
        server.accept()[0].sendall(b"served")
        print(line.recv(9).decode(), place[0])
"""
# Prints the types of the frames that arrive by a link, until the IPv4 canary arrives.
SNIFF = """
import socket, sys
line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
line.bind((sys.argv[1], 0))
print("ready", flush=True)
line.settimeout(10)
kinds = set()
while (frame := line.recv(2048))[12:14] != b"\\x08\\x00" or b"canary" not in frame:
    kinds.add(frame[12:14].hex())
print(" ".join(sorted(kinds)))
"""
# Tries to send by IPv6 in several ways; then sends the canary by IPv4.
TALK = """
import socket, sys
mouth = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
scope = socket.if_nametoindex("eth0")
for place in (("2001:db8::1", 53), ("ff02::1", 53, 0, scope), ("fe80::1", 53, 0, scope), ("::1", 53)):
    try:
        mouth.sendto(b"leak", place)
        print("sent to", place[0])
    except OSError:
        pass
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"canary", ("10.0.1.1", 9))
"""
# The settings of an instance that an older version did not make.
NEWER = ("net/ipv6/conf/lo/disable_ipv6", "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range")


@pytest.fixture(scope="module")
def machine(module_lab: Lab) -> Lab:
    run_all(module_lab, BUILD)
    return module_lab


def setting(lab: Lab, path: str, value: str | None = None, netns: str = "shop-web") -> str:
    """A setting of the instance, written first if a value is given."""
    write = "" if value is None else f"echo '{value}' >/proc/sys/{path} && "
    return lab.run(["sh", "-c", f"{write}cat /proc/sys/{path}"], netns=netns).stdout.strip()


def on_loopback(lab: Lab) -> list[str]:
    [link] = seen(lab, "address", "show", "lo", netns="shop-web")
    return [one["local"] for one in link["addr_info"]]


@pytest.fixture
def nobody(machine: Lab) -> list[str]:
    """The words that run a command inside the instance as an ordinary user."""
    if machine.run([*BECOME, "true"], check=False).returncode:
        pytest.skip("no user except root exists here")
    return ["exec", "--vpc", "shop", "--subnet", "web", "--user", "nobody", "--"]


# --- What programs expect ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["::1", "localhost", "127.0.0.1"])
def test_a_program_serves_itself(machine: Lab, address: str) -> None:
    port = {"::1": "7200", "localhost": "7201"}.get(address, "7202")
    told = machine.python(SELF, address, port, netns="shop-web").stdout.split()
    assert told[0] == "served"
    assert told[1] in ("::1", "127.0.0.1")
    assert address == "localhost" or told[1] == address


def test_an_ordinary_user_listens_on_any_port_and_pings(machine: Lab, nobody: list[str]) -> None:
    for words in (["ping", "-c", "1", "-W", "3", "10.0.1.1"], ["ping", "-c", "1", "-W", "3", "::1"]):
        assert attempt(machine, *nobody, *words).returncode == 0
    serve = "import socket, sys; sys.exit(socket.socket().bind(('10.0.1.2', 80)))"
    assert attempt(machine, *nobody, "/usr/bin/python3", "-I", "-c", serve).returncode == 0
    # The control: with the kernel's default, listening is refused.
    setting(machine, "net/ipv4/ip_unprivileged_port_start", "1024")
    refused = machine.vpcctl(*nobody, "/usr/bin/python3", "-I", "-c", serve, status=1)
    assert "Permission denied" in refused.stderr
    machine.vpcctl("repair")


def test_the_host_keeps_its_own_limits(machine: Lab) -> None:
    router = setting(machine, "net/ipv4/ip_unprivileged_port_start", netns="shop-router")
    host = machine.run(["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]).stdout.strip()
    assert (router, host) == ("1024", "1024")


# --- What stays off ---------------------------------------------------------------------------------------------------


def heard(lab: Lab, words: str) -> tuple[set[str], str]:
    """The types of frames that reach the router's port while `words` run in the instance, and their output."""
    ear = lab.popen([sys.executable, "-I", "-c", SNIFF, "in-web"], netns="shop-router")
    assert ear.stdout
    assert ear.stdout.readline() == "ready\n"
    told = lab.python(words, netns="shop-web").stdout
    return set(ear.stdout.readline().split()), told


def test_no_ipv6_packet_leaves_an_instance(machine: Lab) -> None:
    kinds, told = heard(machine, TALK)
    assert "86dd" not in kinds
    assert "sent to ::1\n" in told
    # The control: if root inside turns IPv6 on at eth0, the listener captures it, and the router drops it.
    setting(machine, "net/ipv6/conf/eth0/disable_ipv6", "0")
    machine.run(["ip", "addr", "add", "fe80::99/64", "dev", "eth0", "nodad"], netns="shop-web")
    kinds, _ = heard(machine, TALK)
    assert "86dd" in kinds
    setting(machine, "net/ipv6/conf/eth0/disable_ipv6", "1")


def test_ipv6_is_off_but_for_loopback(machine: Lab) -> None:
    machine.vpcctl("repair")
    expected = {"all": "1", "default": "1", "eth0": "1", "lo": "0"}
    assert {scope: setting(machine, f"net/ipv6/conf/{scope}/disable_ipv6") for scope in expected} == expected
    assert on_loopback(machine) == ["127.0.0.1", "::1"]
    assert setting(machine, "net/ipv6/conf/lo/disable_ipv6", netns="shop-router") == "1"


@pytest.mark.parametrize("value", ["0", "1"])
@pytest.mark.parametrize("scope", ["all", "default", "lo"])
def test_whichever_switch_was_moved_one_repair_is_enough(machine: Lab, scope: str, value: str) -> None:
    """Writing `all` writes every interface: `lo` has to be written again after it."""
    before = setting(machine, f"net/ipv6/conf/{scope}/disable_ipv6")
    setting(machine, f"net/ipv6/conf/{scope}/disable_ipv6", value)
    if scope != "all" and value == before:
        assert machine.vpcctl("status").stdout == "in sync\n"
    machine.vpcctl("repair")
    assert machine.vpcctl("status").stdout == "in sync\n"
    assert on_loopback(machine) == ["127.0.0.1", "::1"]
    assert setting(machine, "net/ipv6/conf/eth0/disable_ipv6") == "1"


# --- Existing instances -----------------------------------------------------------------------------------------------

FORGET = """
import dataclasses, sys
from pathlib import Path
from vpcctl.engine.state import Store
from vpcctl.resources.kinds import Mtu
def is_new(item):
    return isinstance(item, Mtu) or getattr(item, "path", "") in sys.argv[2:]
with Store(Path(sys.argv[1])).locked() as writer:
    state = writer.load()
    record = {scope: tuple(one for one in items if not is_new(one)) for scope, items in state.record.items()}
    writer.save(dataclasses.replace(state, record=record))
"""


@pytest.fixture
def old(lab: Lab) -> Lab:
    """A VPC of an older version: without these settings, in the kernel and on record."""
    run_all(lab, BUILD)
    setting(lab, "net/ipv6/conf/lo/disable_ipv6", "1")
    setting(lab, "net/ipv4/ip_unprivileged_port_start", "1024")
    setting(lab, "net/ipv4/ping_group_range", "1 0")
    lab.python(FORGET, str(STATE_DIR), *NEWER)
    return lab


def test_repair_brings_an_old_instance_what_is_new(old: Lab) -> None:
    status = old.vpcctl("status", status=3).stdout
    assert [path for path in NEWER if f"setting {path} in shop-web is different" in status] == list(NEWER)
    old.vpcctl("repair")
    assert old.vpcctl("status").stdout == "in sync\n"
    assert on_loopback(old) == ["127.0.0.1", "::1"]
    assert json.loads(old.vpcctl("show-vpc", "--name", "shop", "--json").stdout)["mtu"] == 1500
    old.vpcctl("destroy", "--all", "--yes")


def test_without_ipv6_in_the_kernel_an_instance_is_right_without_it(machine: Lab) -> None:
    # A file system over the directory hides its settings, as a kernel without IPv6 has none.
    words = f"mount -t tmpfs none /proc/sys/net/ipv6 && exec {sys.executable} -m vpcctl"
    hidden = machine.run(["unshare", "-m", "sh", "-c", f"{words} status"])
    assert hidden.stdout == "in sync\n"
