"""Random events on a host, by a seed: whatever happens, the agent ends with the desired state.

All the time packets are sent that must never arrive (`canaries`).  Some things are not ours to stop, and are left out:

- The host's owner makes it a router himself (ip_forward, or the setting of a link): then it is one between his
  networks, until he takes that back.  What concerns instances holds nevertheless.
- Somebody flushes a ruleset.  From then until the repair, which is some tenths of a second, what that ruleset alone
  prevents is possible.  What two rulesets prevent is still prevented by the other one.
- Somebody deletes a router's namespace.  The kernel removes its rules before its links; the same is left out as above.
- A link that appears and does not forward is no part of the guard until the next look (ADR 31): none of these is asked.

VPCCTL_TEST_EXHAUSTIVE=1 makes a long run of several seeds; VPCCTL_TEST_SEED chooses one.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.lab.agents import AgentProcess, agent
from tests.lab.canaries import HOST, Canaries, Canary
from tests.lab.machine import differences, photograph, run_all, settle
from tests.lab.networks import machine_behind, way_out
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
    "create-vpc --name alone --cidr 10.2.0.0/16",
    "create-subnet --vpc alone --name app --cidr 10.2.1.0/24 --type public",
    "publish-port --vpc shop --instance web --port 8080",
    "publish-port --vpc shop --instance web --port 5000 --protocol udp",
)
# A second way out, and another network of the host, with one machine.  The neighbour sends into both through the host.
SURROUNDINGS = f"""
{way_out("second")}
{machine_behind("third", "lan2", "192.0.2.129/25", "192.0.2.130/25")}
ip -n lan2 route add default via 192.0.2.129
nsenter --net=/run/lab/neighbour sh -ec '
    sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.eth0.accept_redirects=0
    for prefix in 192.0.2.0/24 10.0.0.0/8 100.64.0.0/16; do ip route add $prefix via 198.51.100.2; done'
"""
TABLE_OF_ITS_OWN = "ip rule delete not fwmark 0x1 table 100"
# At the end the host is like a fresh one again.  If the whole host forwards, its owner decides about single links.
CALM = (
    f"while {TABLE_OF_ITS_OWN}; do :; done; ip route flush table 100; nft delete table ip other;"
    " for n in 100 101 102 103; do ip link delete o$n; ip link delete br$n; ip link delete vlan$n;"
    " ip address delete 198.51.100.$n/32 dev {first}; done;"
    " sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv4.ip_forward=0;"
    " ip route delete default; ip route replace default via 198.51.100.1 dev {first}"
)
SPACES = ("shop-router", "shop-web", "shop-db", "calm-router", "calm-app", "alone-router", "alone-app")
# Actions of other programs and people; each may fail if its object does not exist at the moment.
HAPPENINGS = (
    "nft flush ruleset",
    "ip netns exec {space} nft flush ruleset",
    "ip netns exec {router} nft add table ip other",
    "ip netns delete {space}",
    "umount /run/netns/{space}",
    "ip link set {uplink} down",
    "ip link set {uplink} down; ip link set {uplink} name renamed{number}",
    "ip link set {uplink} name renamed{number}; ip link set renamed{number} up",
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
    "ip route replace default via 198.51.100.1 dev {first}",
    "ip route replace default via 192.0.2.1 dev {second}",
    "ip route delete default",
    "ip rule add not fwmark 0x1 table 100; ip route replace default via 192.0.2.1 dev {second} table 100",
    TABLE_OF_ITS_OWN,
    "sysctl -qw net.ipv4.ip_forward=1",
    "sysctl -qw net.ipv4.ip_forward=0",
    "sysctl -qw net.ipv4.conf.{first}.forwarding={bit}",
    "sysctl -qw net.ipv4.conf.all.forwarding={bit}",
    "ip netns exec {router} sysctl -qw net.ipv4.ip_forward=0",
    "ip link add o{number} type veth peer name p{number}; ip link set o{number} up",
    "ip link delete o{number}",
    "ip link add br{number} type bridge; ip address add 172.16.{number}.1/24 dev br{number}; ip link set br{number} up",
    "ip link delete br{number}",
    "ip link add link {first} name vlan{number} type vlan id {number}; ip link set vlan{number} up",
    "ip link delete vlan{number}",
    "nft add table ip other; nft add chain ip other c '{{ type filter hook forward priority 0; }}'",
    "ip address add 198.51.100.{number} dev {first}",
    "ip address delete 198.51.100.{number} dev {first}",
    "ip link set {third} down; ip link set {third} up",
    "rename {first} lan{number}",
    "rename {second} out{number}",
    "rename {third} lan{number}",
    "swap {first} {third}",
    "swap {second} {third}",
)
COMMANDS = (
    "create-instance --vpc shop --subnet web --name extra",
    "delete-instance --vpc shop --name extra",
    "create-vpc --name new --cidr 10.7.0.0/16",
    "create-subnet --vpc new --name s --cidr 10.7.1.0/24 --type public",
    "delete-vpc --name new --cascade",
    "repair",
)

WEB, DB, APP, OUTSIDE = "10.0.1.2", "10.0.2.2", "10.1.1.2", str(INTERNET)
# The host's table guards its networks as long as it is there, and its owner does not want them connected.
HOSTS_OWN = (HOST, "owner")
NEVER = (
    Canary("neighbour to another network of the host", "neighbour", "192.0.2.130", "lan2", HOSTS_OWN),
    Canary("neighbour to the second way out", "neighbour", "192.0.2.1", "internet", HOSTS_OWN),
    Canary("another network of the host to the neighbour", "lan2", "198.51.100.20", "neighbour", HOSTS_OWN),
    Canary("neighbour to an instance", "neighbour", WEB, "shop-web", (f"{HOST}+shop-router",)),
    Canary("neighbour to an instance's uplink", "neighbour", "100.64.0.1", "shop-web", (HOST,), 5000),
    Canary("neighbour as an uplink", "neighbour", "192.0.2.130", "lan2", HOSTS_OWN, source="100.64.0.1"),
    Canary("another VPC to an instance", "alone-app", WEB, "shop-web", (f"{HOST}+alone-router+shop-router",)),
    Canary("another VPC to an uplink", "alone-app", "100.64.0.1", "shop-web", (HOST,), 5000),
    Canary("private subnet to the internet", "shop-db", OUTSIDE, "internet", (f"{HOST}+shop-router",)),
    Canary("instance to the host", "shop-web", "198.51.100.2", HOST, (HOST,)),
    Canary("instance to the host's end of its uplink", "shop-web", "100.64.0.0", HOST, (f"{HOST}+shop-router",)),
    Canary("instance as its neighbour", "shop-web", APP, "calm-app", ("shop-router",), source="10.0.1.77"),
    Canary("instance as another one", "shop-web", APP, "calm-app", ("shop-router",), source=DB),
    Canary(
        "instance as somebody to the internet", "shop-web", OUTSIDE, "internet", ("shop-router",), source="10.0.1.77"
    ),
)
ALLOWED = (
    Canary("an instance to the internet", "shop-web", OUTSIDE, "internet"),
    Canary("an instance to another network of the host", "calm-app", "192.0.2.130", "lan2"),
    Canary("an instance to a peer", "calm-app", WEB, "shop-web"),
    Canary("neighbour to a published port", "neighbour", "198.51.100.2", "shop-web", port=5000),
    Canary("another VPC to a published port", "alone-app", "198.51.100.2", "shop-web", port=5000),
)
# As if nobody protected anything, and the routes were there: first by the host's table, then by the routers'.
BY_THE_HOST = "nft flush ruleset; sysctl -qw net.ipv4.ip_forward=1; ip route add 10.0.0.0/16 via 100.64.0.1"
BY_THE_ROUTERS = "for vpc in shop calm alone; do ip netns exec $vpc-router nft flush ruleset; done"
TO_UPLINKS = {one.name for one in NEVER if one.port != ALLOWED[0].port}


class Life:
    """What happens on a host, by chance; it knows the names of the links, and what the owner lets forward."""

    def __init__(self, lab: Lab, running: AgentProcess, canaries: Canaries, chance: random.Random):
        self._lab, self._running, self._canaries, self._chance = lab, running, canaries, chance
        self.links = {"first": "eth0", "second": "second", "third": "third"}
        self._forwards: set[str] = set()
        self.done: list[str] = []

    def step(self) -> None:
        """Something."""
        if self._chance.random() < 0.15:
            words = self._chance.choice(COMMANDS)
            ran = self._running.run(words, status=None)
            assert "Traceback" not in ran.err, (self.done, ran)
            self.done.append(f"vpcctl {words}: {ran.status}")
        else:
            words = self._chance.choice(HAPPENINGS).format(
                space=self._chance.choice(SPACES),
                router=self._chance.choice([space for space in SPACES if space.endswith("router")]),
                instance=self._chance.choice([space for space in SPACES if not space.endswith("router")]),
                uplink=self._chance.choice(("vpc-shop", "vpc-calm", "vpc-alone")),
                number=self._chance.randrange(100, 104),
                bit=self._chance.randrange(2),
                **self.links,
            )
            self.done.append(words)
            self._happen(words)
        time.sleep(self._chance.choice((0, 0, 0.05, 0.3, 0.7)))

    def _happen(self, words: str) -> None:
        kind, _, rest = words.partition(" ")
        if kind == "rename":
            self._rename(*rest.split())
        elif kind == "swap":
            one, other = rest.split()
            for old, new in ((one, "between"), (other, one), ("between", other)):
                self._rename(old, new)
        elif "flush ruleset" in words or words.startswith(("ip netns delete", "umount")):
            space = next((one for one in SPACES if one in words), HOST)
            self._canaries.lift(space)
            self._run(words)
            self._canaries.guard(space)
        elif "forward" in words and kind == "sysctl":
            self._forward(words)
        else:
            self._run(words)

    def _run(self, words: str) -> bool:
        return self._lab.run(["sh", "-c", words], check=False).returncode == 0

    def _rename(self, old: str, new: str) -> None:
        """A link goes down for that, so its routes go, and those of its network come back alone."""
        renamed = f"ip link set {old} down && ip link set {old} name {new} && ip link set {new} up"
        if self._run(f"{renamed} || {{ ip link set {old} up; false; }}"):
            self.links = {role: new if name == old else name for role, name in self.links.items()}

    def _forward(self, words: str) -> None:
        """The owner's will; the kernel takes the setting of the whole host for all links, where it changes."""
        setting, bit = words.split()[-1].rsplit("=", 1)
        what = "all" if setting.endswith(("ip_forward", "all.forwarding")) else "link"
        if bit == "1":
            self._canaries.lift("owner")
            self._forwards.add(what)
        self._run(words)
        if bit == "0" and what in self._forwards:
            self._forwards = set() if what == "all" else self._forwards - {"link"}
            if not self._forwards:
                self._canaries.guard("owner")

    def end(self) -> None:
        """Take back what is no more than a host's life."""
        self._canaries.lift("owner")
        self._run(CALM.format(**self.links))
        self._canaries.guard("owner")

    def rename_back(self) -> None:
        """Give the links their first names again."""
        for role in self.links:
            self._rename(self.links[role], f"was-{role}")
        for role, name in (("first", "eth0"), ("second", "second"), ("third", "third")):
            self._rename(f"was-{role}", name)
        self._run(CALM.format(**self.links))


def settings(lab: Lab) -> dict[str, str]:
    found: dict[str, str] = photograph(lab)["settings"]
    return found


def strays(canaries: Canaries) -> dict[str, list[float]]:
    """What arrived and must not."""
    return {one.name: times for one in NEVER if (times := canaries.arrived().get(one.name, []))}


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_it_ends_as_desired(lab: Lab, seed: int) -> None:
    lab.run(["sh", "-ec", SURROUNDINGS])
    lab.run(["sh", "-c", CALM.format(first="eth0")], check=False)
    settle(lab)
    before = settings(lab)
    run_all(lab, BUILD)
    canaries = Canaries(lab, (*NEVER, *ALLOWED))
    with agent(lab) as running:
        life = Life(lab, running, canaries, random.Random(seed))
        for number in range(STEPS):
            life.step()
            assert not strays(canaries), (number, strays(canaries), life.done, running.entries()[-4:])
        assert not running.ended, life.done
        life.end()
        assert eventually(running.in_sync, 60), (life.done, running.run("status", status=None), running.entries()[-4:])
        for space in ("shop-web", "calm-app", "alone-app"):
            ping = ["ip", "netns", "exec", space, "ping", "-n", "-c1", "-W1", str(INTERNET)]
            assert eventually(lambda ping=ping: lab.run(ping, check=False).returncode == 0, 20), (space, life.done)
        # Nothing more happens.
        running.calm(2)
        known = len(running.entries())
        time.sleep(2)
        assert running.entries()[known:] == []
        assert not strays(canaries), (strays(canaries), life.done)
        canaries.watch()
        assert eventually(lambda: canaries.arrived().keys() == {one.name for one in ALLOWED}, 20), canaries.arrived()
        assert running.end() == 0
        # Each canary would have arrived.
        canaries.watch()
        for act, names in ((BY_THE_HOST, TO_UPLINKS), (BY_THE_ROUTERS, {one.name for one in NEVER})):
            lab.run(["sh", "-c", act])
            assert eventually(lambda names=names: names <= strays(canaries).keys(), 20), names - strays(canaries).keys()
        canaries.close()
        lab.run(["sh", "-c", "sysctl -qw net.ipv4.ip_forward=0; ip route delete 10.0.0.0/16"])
        running.run("repair")
        running.run("destroy --all --yes")
    life.rename_back()
    settle(lab)
    assert differences(before, settings(lab)) == [], life.done
