"""Random events on a host, by a seed: whatever happens, the agent ends with the desired state.

VPCCTL_TEST_EXHAUSTIVE=1 makes a long run of several seeds; VPCCTL_TEST_SEED chooses one.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.lab.agents import agent
from tests.lab.machine import run_all
from tests.lab.networks import way_out
from tests.lab.traffic import eventually
from vpcctl.lab import INTERNET, Lab

EXHAUSTIVE = bool(os.environ.get("VPCCTL_TEST_EXHAUSTIVE"))
SEEDS = [int(os.environ["VPCCTL_TEST_SEED"])] if "VPCCTL_TEST_SEED" in os.environ else [1, 2, 3] if EXHAUSTIVE else [1]
STEPS = 400 if EXHAUSTIVE else 40
BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
    "create-vpc --name calm --cidr 10.1.0.0/16",
    "create-subnet --vpc calm --name app --cidr 10.1.1.0/24 --type public",
    "create-peering --vpc1 calm --vpc2 shop",
    "publish-port --vpc shop --instance web --port 8080",
)
FIRST, SECOND = "default via 198.51.100.1 dev eth0", "default via 192.0.2.1 dev second"
# At the end the host is like a fresh one again.  If the whole host forwards, its owner decides about single links.
CALM = (
    "while ip rule delete not fwmark 0x1 table 100; do :; done; ip route flush table 100; nft delete table ip other;"
    f" sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv4.ip_forward=0; ip route replace {FIRST}"
)
SPACES = ("shop-router", "shop-web", "shop-db", "calm-router", "calm-app")
# Actions of other programs and people; each may fail if its object does not exist at the moment.
HAPPENINGS = (
    "nft flush ruleset",
    "ip netns exec {space} nft flush ruleset",
    "ip netns exec {router} nft add table ip other",
    "ip netns delete {space}",
    "umount /run/netns/{space}",
    "ip link set {uplink} down",
    "ip link set {uplink} down; ip link set {uplink} name renamed{number}",
    "ip link delete {uplink}",
    "ip address flush dev {uplink}",
    "ip -n shop-router link set in-web down",
    "ip -n shop-router link delete br-db",
    "ip -n {router} route flush proto static",
    "ip -n {router} address flush dev uplink",
    "ip -n {instance} link set eth0 down",
    "ip -n {instance} link set eth0 down; ip -n {instance} link set eth0 name e{number}",
    "ip -n {instance} link delete eth0",
    "ip -n {instance} route flush table main",
    f"ip route replace {FIRST}",
    f"ip route replace {SECOND}",
    "ip route delete default",
    "ip rule add not fwmark 0x1 table 100; ip route replace default via 192.0.2.1 dev second table 100",
    "ip rule delete not fwmark 0x1 table 100",
    "sysctl -qw net.ipv4.ip_forward=1",
    "sysctl -qw net.ipv4.ip_forward=0",
    "sysctl -qw net.ipv4.conf.eth0.forwarding={bit}",
    "sysctl -qw net.ipv4.conf.all.forwarding={bit}",
    "ip netns exec {router} sysctl -qw net.ipv4.ip_forward=0",
    "ip link add o{number} type veth peer name p{number}; ip link set o{number} up",
    "ip link delete o{number}",
    "ip link add br{number} type bridge; ip address add 172.16.{number}.1/24 dev br{number}; ip link set br{number} up",
    "ip link delete br{number}",
    "nft add table ip other; nft add chain ip other c '{{ type filter hook forward priority 0; }}'",
    "ip address add 198.51.100.{number} dev eth0",
    "ip address delete 198.51.100.{number} dev eth0",
)
COMMANDS = (
    "create-instance --vpc shop --subnet web --name extra",
    "delete-instance --vpc shop --name extra",
    "create-vpc --name new --cidr 10.7.0.0/16",
    "create-subnet --vpc new --name s --cidr 10.7.1.0/24 --type public",
    "delete-vpc --name new --cascade",
    "repair",
)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_it_ends_as_desired(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    lab.run(["sh", "-ec", way_out("second")])
    run_all(lab, BUILD)
    done: list[str] = []
    with agent(lab) as running:
        for _ in range(STEPS):
            if chance.random() < 0.15:
                words = chance.choice(COMMANDS)
                ran = running.run(words, status=None)
                assert "Traceback" not in ran.err, (done, ran)
                done.append(f"vpcctl {words}: {ran.status}")
            else:
                words = chance.choice(HAPPENINGS).format(
                    space=chance.choice(SPACES),
                    router=chance.choice(("shop-router", "calm-router")),
                    instance=chance.choice(("shop-web", "shop-db", "calm-app")),
                    uplink=chance.choice(("vpc-shop", "vpc-calm")),
                    number=chance.randrange(100, 104),
                    bit=chance.randrange(2),
                )
                done.append(words)
                lab.run(["sh", "-c", words], check=False)
            time.sleep(chance.choice((0, 0, 0.05, 0.3, 0.7)))
        assert not running.ended, done
        lab.run(["sh", "-c", CALM], check=False)
        assert eventually(running.in_sync, 60), (done, running.run("status", status=None), running.entries()[-4:])
        for space in ("shop-web", "calm-app"):
            ping = ["ip", "netns", "exec", space, "ping", "-n", "-c1", "-W1", str(INTERNET)]
            assert eventually(lambda ping=ping: lab.run(ping, check=False).returncode == 0, 20), (space, done)
        # Nothing more happens.
        running.calm(2)
        before = len(running.entries())
        time.sleep(2)
        assert running.entries()[before:] == []
        assert running.end() == 0
