"""The agent repairs changes without a command: `status` checks the kernel, and some tests send packets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.lab.agents import AgentProcess, agent
from tests.lab.machine import run_all
from tests.lab.networks import VPN, way_out
from tests.lab.traffic import eventually
from vpcctl.lab import INTERNET, STATE_DIR, Lab

BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-vpc --name calm --cidr 10.1.0.0/16",
    "create-subnet --vpc calm --name app --cidr 10.1.1.0/24 --type public",
    "create-peering --vpc1 calm --vpc2 shop",
)


@pytest.fixture(scope="module")
def running(module_lab: Lab) -> Iterator[AgentProcess]:
    run_all(module_lab, BUILD)
    with agent(module_lab) as one:
        yield one


def script(lab: Lab, text: str) -> str:
    return lab.run(["bash", "-ec", text]).stdout


def pings(lab: Lab, *words: str, address: object = INTERNET) -> bool:
    return lab.run([*words, "ping", "-n", "-c1", "-W1", str(address)], check=False).returncode == 0


def web_pings(lab: Lab) -> bool:
    return pings(lab, "ip", "netns", "exec", "shop-web")


DAMAGES = {
    "the host's rules are flushed": "nft flush ruleset",
    "a router's rules are flushed": "ip netns exec shop-router nft flush ruleset",
    "a rule is added": "ip netns exec shop-router nft insert rule inet vpcctl filter-forward accept",
    "a router is deleted": "ip netns delete shop-router",
    "an instance is deleted": "ip netns delete shop-web",
    "all namespaces are deleted": "ip -all netns delete",
    "an instance's name is unmounted": "umount /run/netns/shop-web",
    "a port is down": "ip -n shop-router link set in-web down",
    "a port is not isolated": "bridge -n shop-router link set dev in-web isolated off",
    "a port has left its bridge": "ip -n shop-router link set in-web nomaster",
    "a bridge is gone": "ip -n shop-router link delete br-web",
    "a forwarding entry is gone":
        "bridge -n shop-router fdb del $(ip netns exec shop-web cat /sys/class/net/eth0/address) dev in-web master",
    "the uplink is down": "ip link set vpc-shop down",
    "the uplink is renamed": "ip link set vpc-shop down; ip link set vpc-shop name renamed; ip link set renamed up",
    "the uplink is deleted": "ip link delete vpc-shop",
    "the uplink's address is gone": "ip address flush dev vpc-shop",
    "the uplink's neighbour is gone": "ip neighbour delete 100.64.0.1 dev vpc-shop",
    "the uplink does not forward": "sysctl -qw net.ipv4.conf.vpc-shop.forwarding=0",
    "the way out does not forward": "sysctl -qw net.ipv4.conf.eth0.forwarding=0",
    "a router does not forward": "ip netns exec shop-router sysctl -qw net.ipv4.ip_forward=0",
    "a router has no route": "ip -n shop-router route delete default",
    "a peer's link is down": "ip -n shop-router link set pr-calm down",
    "a peer's route is gone": "ip -n shop-router route delete 10.1.0.0/16",
    "a gateway's address is gone": "ip -n shop-router address delete 10.0.1.1/24 dev br-web",
    "an instance has no route": "ip -n shop-web route delete default",
    "an instance's link is down": "ip -n shop-web link set eth0 down",
    "an instance's link is renamed": "ip -n shop-web link set eth0 down; ip -n shop-web link set eth0 name other",
    "an instance's link is deleted": "ip -n shop-web link delete eth0",
    "an instance has no address": "ip -n shop-web address flush dev eth0",
    "an instance's neighbour is gone": "ip -n shop-web neighbour delete 10.0.1.1 dev eth0",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_it_heals(running: AgentProcess, damage: str) -> None:
    lab = running.lab
    with running.paused():
        assert running.in_sync()
        script(lab, DAMAGES[damage])
        assert not running.in_sync(), "the damage has no effect"
    running.assert_heals()
    assert eventually(lambda: web_pings(lab), 5)
    assert eventually(lambda: pings(lab, "ip", "netns", "exec", "shop-web", address="10.1.1.2"), 5)
    running.calm(0.3)


def test_it_says_what_it_repaired_and_why(running: AgentProcess) -> None:
    before = len(running.entries("repaired"))
    script(running.lab, "ip netns exec shop-router nft flush ruleset")
    entry = running.await_entry("repaired", before + 1)
    assert entry["level"] == "info"
    assert [(one["object"], one["was"]) for one in entry["repaired"]] == [("ruleset of shop-router", "absent")]
    assert entry["compared"] == ["shop"]
    assert any("nftables changed by nft" in cause for cause in entry["causes"]["shop"])
    running.calm()


def test_a_repair_is_followed_by_one_look_that_finds_nothing(running: AgentProcess) -> None:
    running.calm()
    before = len(running.entries())
    script(running.lab, "ip netns delete shop-web")
    running.await_entry("compared", len(running.entries("compared")) + 1)
    running.calm(1.5)
    told = [entry["event"] for entry in running.entries()[before:]]
    assert told.count("repaired") == 1
    # Late events of a repair, for example of a link that comes up, cause one more look.
    assert told.count("compared") <= 2


def test_only_the_vpc_concerned_is_looked_at(running: AgentProcess) -> None:
    running.calm()
    before = len(running.entries())
    script(running.lab, "ip -n calm-router link set in-app down")
    running.assert_heals()
    running.calm()
    looks = [entry for entry in running.entries()[before:] if "compared" in entry]
    assert {vpc for entry in looks for vpc in entry["compared"]} == {"calm"}


# --- Ways out ---------------------------------------------------------------------------------------------------------

BRIDGE = (
    "ip link add br0 type bridge; ip link set eth0 master br0; ip address flush dev eth0;"
    "ip address add 198.51.100.2/24 dev br0; ip link set br0 up; ip route add default via 198.51.100.1 dev br0"
)
REBOOT = "ip -all netns delete; ip link delete vpc-shop; nft flush ruleset; ip link delete br0"


def test_after_a_boot_it_heals_when_the_way_out_appears(lab: Lab) -> None:
    """After a simulated reboot the agent starts, as the service does, before the network manager makes a bridge."""
    script(lab, BRIDGE)
    run_all(lab, BUILD[:2])
    assert eventually(lambda: web_pings(lab), 10)
    script(lab, REBOOT)
    with agent(lab) as running:
        assert running.in_sync()
        assert not web_pings(lab)
        script(lab, BRIDGE)
        assert eventually(lambda: web_pings(lab), 10), running.entries()
        running.assert_heals()


def test_a_link_that_comes_again_is_the_way_out_again(lab: Lab) -> None:
    """This happens at each PPP reconnect."""
    script(lab, BRIDGE)
    run_all(lab, BUILD[:2])
    with agent(lab) as running:
        for _ in range(2):
            script(lab, "ip link delete br0")
            running.calm()
            assert not web_pings(lab)
            script(lab, BRIDGE)
            assert eventually(lambda: web_pings(lab), 10), running.entries()


def test_a_default_route_that_moves_is_followed(lab: Lab) -> None:
    script(lab, way_out("second"))
    run_all(lab, BUILD[:2])
    with agent(lab):
        assert eventually(lambda: web_pings(lab), 10)
        script(lab, "ip route replace default via 192.0.2.1 dev second")
        assert eventually(lambda: web_pings(lab), 10)


def test_a_vpn_in_a_routing_table_of_its_own_is_followed(lab: Lab) -> None:
    """wg-quick makes and removes such a VPN, after our VPCs."""
    run_all(lab, BUILD[:2])
    with agent(lab) as running:
        assert eventually(lambda: web_pings(lab), 10)
        script(lab, VPN)
        assert eventually(lambda: web_pings(lab), 10), running.entries()
        running.assert_heals()
        script(lab, "ip rule delete table main suppress_prefixlength 0; ip rule delete not fwmark 0xca6c table 51820")
        script(lab, "ip link delete wg0")
        assert eventually(lambda: web_pings(lab), 10), running.entries()
        running.assert_heals()


def test_another_network_works_as_soon_as_somebody_switches_forwarding_on(lab: Lab) -> None:
    """Docker does this when it starts after us: no command of ours is needed."""
    run_all(lab, BUILD[:2])
    with agent(lab) as running:
        script(
            lab,
            "ip netns add c; ip link add c0 type veth peer name eth0 netns c;"
            "ip address add 172.17.0.1/24 dev c0; ip link set c0 up; ip -n c address add 172.17.0.2/24 dev eth0;"
            "ip -n c link set eth0 up; ip -n c route add default via 172.17.0.1; sysctl -qw net.ipv4.ip_forward=1;"
            "nft 'add table ip n; add chain ip n p { type nat hook postrouting priority 100; };"
            " add rule ip n p ip saddr 172.17.0.0/24 masquerade'",
        )
        assert eventually(lambda: pings(lab, "ip", "netns", "exec", "c"), 10), running.entries()
        assert web_pings(lab)
        running.assert_heals()


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_repaired_is_told_once_and_healed_when_it_can_be(lab: Lab) -> None:
    run_all(lab, BUILD[:2])
    with agent(lab) as running:
        # Another namespace of ours is mounted over the instance's name: it is not entered.
        script(
            lab,
            "umount /run/netns/shop-web; touch /run/netns/shop-web; mount --bind /proc/1/ns/net /run/netns/shop-web",
        )
        failed = running.await_entry("failed")
        assert failed["place"] == "shop/web"
        assert "instance web of VPC shop: repair failed" in failed["message"]
        assert eventually(lambda: len(running.entries("compared")) > 2, 30)
        assert len(running.entries("failed")) == 1
        script(lab, "umount /run/netns/shop-web")
        running.await_entry("recovered")
        running.assert_heals()
        assert eventually(lambda: web_pings(lab), 5)


def damaged(text: str) -> str:
    return text.replace("10.0", "10.9", 1)


def newer(text: str) -> str:
    return json.dumps(json.loads(text) | {"format": 99})


@pytest.mark.parametrize(
    ("how", "told"),
    [(damaged, "damaged"), (newer, "format 99"), (None, "is missing")],
    ids=["damaged", "newer", "missing"],
)
def test_an_unusable_record_is_told_and_removes_nothing(lab: Lab, how, told: str) -> None:  # type: ignore[no-untyped-def]
    run_all(lab, BUILD)
    place = f"{STATE_DIR}/state.json"
    text = lab.run(["cat", place]).stdout
    before = script(lab, "ip netns; ip -o link | cut -d: -f1,2; nft -s list ruleset")
    with agent(lab) as running:
        if how is None:
            script(lab, f"rm {place}")
        else:
            lab.run(["sh", "-c", f"cat >{place}.new; mv {place}.new {place}"], input=how(text))
        failed = running.await_entry("failed")
        assert told in failed["message"]
        assert failed["status"] == 6
        script(lab, "ip link add other type veth peer name another; sleep 2; ip link delete other")
        assert len(running.entries("failed")) == 1
        assert script(lab, "ip netns; ip -o link | cut -d: -f1,2; nft -s list ruleset") == before
        # A newly started agent changes nothing either.
        assert running.end() == 0
    with agent(lab) as running:
        assert told in running.await_entry("failed")["message"]
        assert script(lab, "ip netns; ip -o link | cut -d: -f1,2; nft -s list ruleset") == before
        lab.run(["sh", "-c", f"cat >{place}.new; mv {place}.new {place}"], input=text)
        running.await_entry("recovered")
        script(lab, "nft flush ruleset")
        running.assert_heals()


def test_without_a_record_it_writes_none_and_waits_for_the_first_command(lab: Lab) -> None:
    with agent(lab) as running:
        assert set(lab.run(["ls", "-A", str(STATE_DIR)]).stdout.split()) <= {"agent.lock", "lock"}
        run_all(lab, BUILD[:2])
        script(lab, "ip netns exec shop-router nft flush ruleset; ip -n shop-web link set eth0 down")
        running.assert_heals()


def test_a_lock_is_waited_for(lab: Lab) -> None:
    run_all(lab, BUILD[:2])
    with agent(lab) as running:
        holder = lab.popen(["flock", f"{STATE_DIR}/lock", "sh", "-c", "echo held; cat"])
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        script(lab, "nft flush ruleset")
        running.await_entry("waiting")
        assert running.entries("repaired") == []
        holder.communicate(timeout=20)
        running.await_entry("repaired")
        assert running.entries("failed") == []
        running.assert_heals()


def test_a_command_that_was_killed_half_way_is_completed(lab: Lab) -> None:
    run_all(lab, BUILD[:2])
    with agent(lab) as running:
        words = "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private"
        strike = "strace -f -qq -o /dev/null -e trace=unshare -e inject=unshare:signal=KILL:when=1".split()
        killed = lab.run([*strike, sys.executable, "-m", "vpcctl", *words.split()], check=False)
        assert killed.returncode != 0
        running.assert_heals()
        assert "shop-db" in lab.run(["ip", "netns"]).stdout
