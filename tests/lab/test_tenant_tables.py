"""Whatever a tenant makes in its namespace, and however much: only its own instance is concerned, and nobody waits."""

from __future__ import annotations

import json
import re

import pytest

from tests.lab.machine import settle
from tests.lab.warm import Warm
from vpcctl.lab import Lab

MEMBERS = [{"name": "web"}, {"name": "quiet"}]
ENVIRONMENT = {
    "vpcs": [
        {
            "name": "shop",
            "cidr": "10.0.0.0/16",
            "subnets": [{"name": "web", "cidr": "10.0.1.0/24", "type": "private", "instances": MEMBERS}],
        },
        {
            "name": "calm",
            "cidr": "10.9.0.0/16",
            "subnets": [{"name": "far", "cidr": "10.9.1.0/24", "type": "private"}],
        },
    ]
}
WEB = "shop-web"
# Each makes many objects of one kind by ip -batch, in front of ours where the kernel's list has an order.
# `SOME` are more than are ever listed; a list of COUNT is noticed by its size.
SOME, COUNT = 1200, 8000
BATCH = "for i in $(seq 1 $0); do a=$((i / 250)) b=$((i % 250)); {}; done | ip -batch -"
MANY = {
    "routes": BATCH.format("echo route add 172.16.$a.$b/32 dev lo"),
    "routes before the default": BATCH.format("echo route add 0.0.0.0/8 dev lo metric $i"),
    "default routes": BATCH.format("echo route add default dev lo metric $i"),
    "other tables": BATCH.format("echo route add 172.16.0.0/24 dev lo table $((i + 1000))"),
    "addresses": BATCH.format("echo address add 172.17.$a.$b/32 dev eth0"),
    "addresses before ours": BATCH.format("echo address add 172.17.$a.$b/32 scope link dev eth0"),
    "neighbours": BATCH.format("echo neighbour add 172.18.$a.$b lladdr 02:00:00:00:00:01 dev eth0"),
    "rules": BATCH.format("echo rule add from 172.19.$a.$b lookup main pref $((i + 10))"),
    # The kernel takes as many as have room in one attribute.
    "names": BATCH.format("echo link property add dev eth0 altname name-$i").replace(
        "ip -batch -", "ip -force -batch - || true"
    ),
    "links": "for i in $(seq 1 $(($0 / 20))); do echo link add x$i type bridge; done | ip -batch -",
    "elements": (
        "nft add table ip mine; nft add set ip mine many '{ type ipv4_addr; }';"
        " for i in $(seq 1 $(($0 * 3))); do"
        " echo add element ip mine many { 172.20.$((i / 250)).$((i % 250)) }; done | nft -f -"
    ),
}
# What lists all of a kind.  Names are in the one message about their link, which has to be read.
WHOLE = {
    "routes": "ip -4 route show table all",
    "routes before the default": "ip -4 route show table all",
    "default routes": "ip -4 route show table all",
    "other tables": "ip -4 route show table all",
    "addresses": "ip -4 address",
    "addresses before ours": "ip -4 address",
    "neighbours": "ip -4 neighbour",
    "rules": "ip -4 rule",
    "links": "ip link",
    "elements": "nft list ruleset",
}
# What of ours is there besides, and how it is lost or spoiled.
LOSSES = {
    "ip route delete default via 10.0.1.1": "route to 0.0.0.0/0 in shop-web",
    "ip route replace default via 10.0.1.77 onlink dev eth0": "route to 0.0.0.0/0 in shop-web",
    "ip address delete 10.0.1.2/24 dev eth0": "address 10.0.1.2/24 on eth0 in shop-web",
    "ip neighbour delete 10.0.1.1 dev eth0": "neighbour 10.0.1.1 on eth0 in shop-web",
    "ip neighbour replace 10.0.1.1 lladdr 02:00:00:00:00:99 dev eth0": "neighbour 10.0.1.1 on eth0 in shop-web",
}


@pytest.fixture
def run(module_lab: Lab, warm: Warm) -> Warm:
    """Commands on the machine above, with instances in which nobody has done anything yet."""
    module_lab.run(["sh", "-c", "for name in shop-web shop-quiet; do ip netns delete $name; done"], check=False)
    warm("apply --prune --yes -", input=json.dumps(ENVIRONMENT))
    warm("repair")
    settle(module_lab)
    return warm


# --- Many -------------------------------------------------------------------------------------------------------------

RECEIVED = re.compile(r"\brecv(?:from|msg)\(\d+<NETLINK:(?!.*MSG_PEEK).*= (\d+)$", re.MULTILINE)
TRACE = ["-yy", "-e", "trace=recvfrom,recvmsg"]


def received(run: Warm, command: str) -> tuple[int, int]:
    """How many netlink datagrams a command receives, and how many bytes."""
    return counted(run(command, strace=TRACE).calls)


def counted(calls: str) -> tuple[int, int]:
    found = [int(size) for size in RECEIVED.findall(calls)]
    return len(found), sum(found)


@pytest.mark.parametrize("what", MANY)
def test_what_is_read_does_not_grow_with_what_a_tenant_made(module_lab: Lab, run: Warm, what: str) -> None:
    """Counted in what the kernel sends: a constant more, which is the limit of the lists."""
    commands = ("status --vpc shop", "repair")
    before = [received(run, command) for command in commands]
    assert min(before) > (5, 0), "nothing was counted"
    module_lab.run(["sh", "-c", MANY[what], str(COUNT)], netns=WEB)
    # Two lists of one datagram or two, and a link's 64 KiB of names.
    most = 80_000
    if what in WHOLE:
        # The whole list would be noticed.
        whole = module_lab.run(["strace", *TRACE, *WHOLE[what].split()], netns=WEB).stderr
        assert counted(whole)[1] > 4 * most
    for command, (datagrams, size) in zip(commands, before, strict=True):
        some = received(run, command)
        assert some[0] < datagrams + 40, (command, before, some)
        assert some[1] < size + most, (command, before, some)
    assert run("status").out == "in sync\n"
    assert run("repair").err == "nothing to repair\n"


@pytest.mark.parametrize("what", [None, *MANY])
def test_what_is_missing_among_a_tenants_many_is_found_and_repaired(
    module_lab: Lab, run: Warm, what: str | None
) -> None:
    if what is not None:
        module_lab.run(["sh", "-c", MANY[what], str(SOME)], netns=WEB)
    for done, told in LOSSES.items():
        module_lab.run(["sh", "-c", done], netns=WEB)
        assert told in run("status", status=3).out, done
        assert told in run("repair").err, done
        assert run("status").out == "in sync\n", done
    module_lab.run(["ping", "-n", "-c", "1", "-W", "5", "10.0.1.3"], netns=WEB)


def test_what_a_tenant_adds_beside_ours_is_no_drift(module_lab: Lab, run: Warm) -> None:
    for done in (
        "ip route add 10.0.0.0/8 via 10.0.1.1 dev eth0",
        "ip route add 0.0.0.0/1 via 10.0.1.1 dev eth0; ip route add 128.0.0.0/1 via 10.0.1.1 dev eth0",
        "ip route add default via 10.0.1.77 onlink dev eth0 metric 5",
        "ip route prepend default via 10.0.1.77 onlink dev eth0",
        "ip route add default via 10.0.1.77 onlink dev eth0 table 7; ip rule add pref 5 lookup 7",
        "ip address add 10.0.1.2/25 dev eth0",
        "ip link property add dev eth0 altname lan0",
    ):
        module_lab.run(["sh", "-ec", done], netns=WEB)
        assert run("status").out == "in sync\n", done
    module_lab.run(["ip", "link", "set", "eth0", "down"], netns=WEB)
    run("repair")
    assert run("status").out == "in sync\n"


# --- Trouble of one instance ------------------------------------------------------------------------------------------

# Root in the instance holds the name eth0, as fast as it can, until it is killed.
RACES = {
    "it makes a link": "while :; do ip link add eth0 type bridge; done",
    "it makes links from many processes": (
        "for i in 1 2 3 4; do (while :; do ip link add eth0 type bridge; done) & done; wait"
    ),
    "it makes links in batches": (
        "for i in $(seq 1 500); do echo link add eth0 type bridge; done >/run/batch;"
        " while :; do ip -force -batch /run/batch; done"
    ),
    "it renames a link": "ip link add other type bridge; while :; do ip link set other name eth0; done",
    "it lends the name": "while :; do ip link property add dev lo altname eth0; done",
    "it deletes ours": "while :; do ip link delete eth0; done",
    "it renames ours": "while :; do ip link set eth0 down; ip link set eth0 name mine; ip link delete mine; done",
    "it flushes ours": "while :; do ip address flush dev eth0; ip route flush dev eth0; ip link set eth0 down; done",
}


def closed(lab: Lab) -> bool:
    """Is the instance's port in the router absent or down?"""
    port = lab.run(["ip", "-o", "link", "show", "in-web"], netns="shop-router", check=False)
    return port.returncode != 0 or "UP" not in re.split(r"[<>]", port.stdout)[1].split(",")


@pytest.mark.parametrize("race", RACES)
def test_a_race_for_an_instances_link_is_won_or_closes_that_instance_alone(
    module_lab: Lab, run: Warm, race: str
) -> None:
    lab = module_lab
    racer = lab.popen(["sh", "-c", f"exec >/dev/null 2>&1; {RACES[race]}"], netns=WEB)
    try:
        lab.run(["sh", "-c", "ip link delete in-web; ip link set uplink down"], netns="shop-router")
        lab.run(["ip", "route", "delete", "default"], netns="shop-quiet")
        lab.run(["ip", "route", "delete", "default"], netns="calm-far")
        done = run("repair", status=None)
        assert racer.poll() is None, "the race was over before the repair"
        assert lab.run(["ip", "netns", "pids", WEB]).stdout, "nobody races in the instance"
        if done.status:
            assert done.status == 5, done
            assert "instance web of VPC shop: repair failed" in done.err, done
            assert closed(lab), done
        # Everybody else is repaired, whoever won.
        left = json.loads(run("status --json", status=None).out)["differences"]
        strangers = [one["object"] for one in left if "shop-web" not in one["object"] and "in-web" not in one["object"]]
        assert strangers == []
        assert "LOWER_UP" in lab.run(["ip", "link", "show", "uplink"], netns="shop-router").stdout
        for netns in ("shop-quiet", "calm-far"):
            assert "default" in lab.run(["ip", "route"], netns=netns).stdout
        # The VPC can be changed meanwhile.
        policy = {"vpc": "shop", "subnet": "web", "ingress": [{"action": "allow", "protocol": "icmp"}]}
        run("apply-policy -", input=json.dumps(policy))
    finally:
        racer.kill()
        racer.wait()
    lab.run(["sh", "-c", "for pid in $(ip netns pids shop-web); do kill -9 $pid; done"], check=False)
    run("repair")
    assert run("status").out == "in sync\n"
    lab.run(["ping", "-n", "-c", "1", "-W", "5", "10.0.1.3"], netns=WEB)


def test_an_instance_that_refuses_its_address_is_closed_and_nobody_else(module_lab: Lab, run: Warm) -> None:
    """It has made the gateway's address its own, so that the kernel refuses the route to it."""
    lab = module_lab
    lab.run(["sh", "-ec", "ip address add 10.0.1.1/32 dev lo; ip route delete default"], netns=WEB)
    lab.run(["ip", "route", "delete", "default"], netns="shop-quiet")
    done = run("repair", status=5)
    assert "instance web of VPC shop: repair failed" in done.err
    assert "its port is closed" in done.err
    assert closed(lab)
    assert "default" in lab.run(["ip", "route"], netns="shop-quiet").stdout
    lab.run(["ip", "address", "delete", "10.0.1.1/32", "dev", "lo"], netns=WEB)
    run("repair")
    assert run("status").out == "in sync\n"
    lab.run(["ping", "-n", "-c", "1", "-W", "5", "10.0.1.3"], netns=WEB)
