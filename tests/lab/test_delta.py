"""A ruleset is loaded as a change: the result, lost packets meanwhile, and the cases in which it is loaded whole."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.lab.machine import apply, run_all, write
from tests.lab.traffic import assert_moving, assert_nothing_lost, start_flow, stations
from vpcctl.lab import Lab

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("VPCCTL_TEST_WITNESS_SECONDS", "15"))
SHOP = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type private",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
)
ALLOWED, DENIED, LIVE, CHANGES = 5000, 7777, 5001, 80
GATES = "/run/vpcctl/gates/shop-router"

# Runs commands while two new flows begin every few hundred microseconds: one allowed, one denied.
NEW_FLOWS = """
import itertools, json, socket, struct, sys, threading, time
from vpcctl.cli import commands
from vpcctl.kernel.namespaces import entered

allowed, denied, times, *lines = sys.argv[1:]
with entered("shop-web"):
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
receivers = {}
with entered("shop-db"):
    for port in (int(allowed), int(denied)):
        receivers[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        receivers[port].setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
        receivers[port].bind(("", port))
header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, bytes([10, 0, 1, 2]), bytes([10, 0, 2, 2]))
counts, done = dict.fromkeys(["sent", *receivers], 0), threading.Event()

def receive():
    for port, receiver in receivers.items():
        try:
            while receiver.recv(16):
                counts[port] += 1
        except BlockingIOError:
            pass

def flood():
    for number in itertools.count():
        if done.is_set():
            return
        for port in receivers:
            sender.sendto(header + struct.pack("!HHHH1s", 10_000 + number % 50_000, port, 9, 0, b"x"), ("10.0.2.2", 0))
        counts["sent"] += 1
        if number % 64 == 0:
            receive()
        time.sleep(0.0002)

thread = threading.Thread(target=flood)
thread.start()
try:
    for line in itertools.islice(itertools.cycle(lines), int(times)):
        commands.main(["-q", *line.split()], prog_name="vpcctl", standalone_mode=False)
finally:
    done.set()
    thread.join()
end = time.monotonic() + 10
while counts[int(allowed)] < counts["sent"] and time.monotonic() < end:
    time.sleep(0.01)
    receive()
print(json.dumps([counts["sent"], *(counts[port] for port in receivers)]))
"""


@pytest.fixture(scope="module")
def shop(module_lab: Lab) -> Lab:
    """Two subnets; the policy of one allows two ports."""
    run_all(module_lab, SHOP)
    apply(module_lab, policy(1))
    return module_lab


def policy(number: int, *ports: int) -> dict[str, object]:
    """Different policies that allow and deny the same of what these tests send."""
    rules = [{"action": "deny", "protocol": "tcp", "port": number}] * (number % 2)
    rules += [{"action": "allow", "protocol": "udp", "port": [ALLOWED, LIVE], "source": "10.0.1.0/24"}]
    rules += [{"action": "allow", "protocol": "udp", "port": f"{20_000 + number}-{20_002 + number}"}]
    rules += [{"action": "allow", "protocol": "tcp", "port": port} for port in ports]
    return {"vpc": "shop", "subnet": "db", "ingress": rules}


def listed(lab: Lab) -> str:
    return lab.run(["nft", "list", "ruleset"], netns="shop-router").stdout


def as_change(lab: Lab) -> bool:
    """Was the ruleset in force loaded as a change, and completely?"""
    stamps = re.findall(r"chain stamp \{\n\t\tcomment \"([^\"]*)\"", listed(lab))
    return len(stamps) == 1 and "unfinished" not in stamps[0] and ".next" not in listed(lab)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_changes_arrive_where_a_whole_load_would(lab: Lab, seed: int) -> None:
    program = [sys.executable, "-m", "tests.lab.delta_run", str(seed), str(SECONDS)]
    counts = json.loads(lab.run(program, cwd=ROOT, timeout=SECONDS * 20 + 120).stdout)
    assert counts["changes"] >= 10
    assert counts["changes"] > counts["whole"]


def test_no_new_flow_is_lost_and_none_passes_that_is_denied_over_many_changes(shop: Lab) -> None:
    """Every packet is a new flow, which the gates judge; a live flow is judged again after each change."""
    files = [write(shop, f"change-{number}.json", policy(number)) for number in range(3)]
    lines = [f"apply-policy {file}" for file in files]
    lines += ["create-instance --vpc shop --subnet web --name more", "delete-instance --vpc shop --name more"]
    lines += ["create-subnet --vpc shop --name new --cidr 10.0.3.0/24 --type private", f"apply-policy {files[1]}"]
    lines += ["delete-subnet --vpc shop --name new"]
    with stations(shop, "shop-web", "shop-db") as (web, db):
        live = start_flow("live", web, db, "10.0.2.2", LIVE, "udp", rate=500)
        words = [str(ALLOWED), str(DENIED), str(CHANGES), *lines]
        sent, received, leaked = json.loads(shop.python(NEW_FLOWS, *words, timeout=600).stdout.splitlines()[-1])
        assert_moving([live], 0)
        assert_nothing_lost([live])
    assert sent > 5 * CHANGES
    assert (received, leaked) == (sent, 0)
    assert as_change(shop)


def test_a_change_leaves_what_other_gates_counted(shop: Lab) -> None:
    """Even if an instance is added, or another rule of the gate changes."""
    apply(shop, policy(2))
    shop.python(NEW_FLOWS, str(ALLOWED), str(DENIED), "1", "list-vpcs")
    before = counted(shop)
    assert before > 0
    shop.vpcctl("create-instance", "--vpc", "shop", "--subnet", "web", "--name", "other")
    assert counted(shop) == before
    apply(shop, policy(2, 80))
    assert counted(shop) == before
    shop.vpcctl("delete-instance", "--vpc", "shop", "--name", "other")
    assert counted(shop) == before
    assert as_change(shop)


def counted(lab: Lab) -> int:
    """The packets of the rule that allows the flows."""
    said = lab.vpcctl("show-policy", "--vpc", "shop", "--subnet", "db", "--hits", "--json").stdout
    found: int = json.loads(said)[0]["hits"]["ingress"][0]
    return found


# The elements to delete do not exist; the kernel reports that only after the shadows judge.
FLUSHED = """
for map in $(nft list table inet vpcctl | sed -n 's/.*map \\(ingress-db[^ ]*\\) {$/\\1/p'); do
    nft flush map inet vpcctl $map
done
"""
RESTAMPED = 'delete chain inet vpcctl stamp; add chain inet vpcctl stamp { comment "vpcctl/x 1 2"; }'
SPOILED = {
    "the kernel refuses": (["sh", "-ec", FLUSHED], "shop-router"),
    "no gates are known": (["rm", "-r", GATES], None),
    "the text of a gate is another": (["sh", "-c", f"echo x >> {GATES}/ingress-db"], None),
    "the index is damaged": (["sh", "-c", f"echo x > {GATES}/index.json"], None),
    "a gate is a link": (["ln", "-sf", "/etc/passwd", f"{GATES}/ingress-db"], None),
    "the stamp is gone": (["nft", "delete", "chain", "inet", "vpcctl", "stamp"], "shop-router"),
    "the stamp is another": (["nft", RESTAMPED], "shop-router"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_what_cannot_be_loaded_as_a_change_is_loaded_whole(shop: Lab, name: str) -> None:
    apply(shop, policy(4))
    words, netns = SPOILED[name]
    shop.run(words, netns=netns)
    apply(shop, policy(5))
    assert not as_change(shop)
    assert shop.vpcctl("status").stdout == "in sync\n"
    apply(shop, policy(6))
    assert as_change(shop)
    assert shop.vpcctl("status").stdout == "in sync\n"


def test_what_is_kept_of_gates_goes_with_them(shop: Lab) -> None:
    apply(shop, policy(7))
    assert set(shop.run(["ls", GATES]).stdout.split()) == {"index.json", "ingress-db"}
    modes = shop.run(["stat", "-c", "%a", "/run/vpcctl", "/run/vpcctl/gates", GATES, f"{GATES}/index.json"]).stdout
    assert modes.split() == ["700", "700", "700", "600"]
    shop.vpcctl("clear-policy", "--vpc", "shop", "--subnet", "db")
    assert shop.run(["ls", "/run/vpcctl/gates"]).stdout == ""
    apply(shop, policy(7))
    shop.vpcctl("destroy", "--all", "--yes")
    assert shop.run(["ls", "/run/vpcctl/gates"]).stdout == ""
