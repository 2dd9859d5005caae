"""Forwarding for VPCs opens nothing else on the host, and closes no foreign network."""

from __future__ import annotations

import time

import pytest

from tests.lab.machine import run_all
from tests.lab.networks import SECOND_CARD, VPN
from tests.lab.traffic import assert_moving, start_flow, stations
from vpcctl.lab import RUN_LAB, Lab

BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "publish-port --vpc shop --instance web --port 8080",
)
FAR = "203.0.113.10"
NEIGHBOUR, INTERNET = "neighbour", "internet"
# A network of containers, as a manager of containers makes it: an address range behind a bridge, translated outside.
CONTAINERS = """
ip netns add c
ip link add docker0 type bridge
ip link add c0 type veth peer name eth0 netns c
ip link set c0 master docker0 up
ip address add 172.17.0.1/24 dev docker0
ip link set docker0 up
ip -n c address add 172.17.0.2/24 dev eth0
ip -n c link set eth0 up
ip -n c route add default via 172.17.0.1
nft -f - <<END
table ip n {
    chain out { type nat hook postrouting priority 100; ip saddr 172.17.0.0/24 oifname != "docker0" masquerade; }
    chain in { type nat hook prerouting priority -100; fib daddr type local tcp dport 9090 dnat to 172.17.0.2:90; }
}
END
ip netns exec c python3 -m http.server 90 >/dev/null 2>&1 &
"""
FORWARD_ALL = "sysctl -qw net.ipv4.ip_forward=1"
# For each link, as some network managers do it; we turned the setting of eth0 on already.
FORWARD_LINKS = "sysctl -qw net.ipv4.conf.docker0.forwarding=1 net.ipv4.conf.eth0.forwarding=1"
SERVER = "ip netns exec shop-web python3 -m http.server 8080 >/dev/null 2>&1 &"


def host(lab: Lab, script: str) -> None:
    lab.run(["sh", "-ec", script])


def pings(lab: Lab, netns: str | None, address: str) -> bool:
    """Is any of three pings answered?"""
    words = ["ping", "-c3", "-i0.2", "-W1", address]
    return lab.run(words, netns=netns, check=False).returncode == 0


def fetches(lab: Lab, netns: str | None, address: str) -> bool:
    """Is a file served there?  Waits for a server that was just started."""
    words = ["curl", "-s", "-o/dev/null", "--connect-timeout", "1", "--retry", "5", "--retry-connrefused", address]
    return lab.run([*words, "--retry-delay", "1", "--max-time", "8"], netns=netns, check=False).returncode == 0


@pytest.fixture
def machine(lab: Lab) -> Lab:
    run_all(lab, BUILD)
    host(lab, SERVER)
    return lab


# -- links that are created later ----------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", [FORWARD_ALL, FORWARD_LINKS], ids=["for the whole host", "for its links"])
def test_containers_that_come_later_need_no_command_of_ours(machine: Lab, forward: str) -> None:
    host(machine, CONTAINERS + forward)
    assert pings(machine, "c", FAR)
    assert fetches(machine, NEIGHBOUR, "http://198.51.100.2:9090/")
    for command in ("repair", "create-vpc --name more --cidr 10.1.0.0/16"):
        machine.vpcctl(*command.split())
        assert machine.vpcctl("status").stdout.endswith("in sync\n")
        assert pings(machine, "c", FAR)
        assert fetches(machine, NEIGHBOUR, "http://198.51.100.2:9090/")
    assert pings(machine, "shop-web", FAR)
    machine.vpcctl("destroy", "--all", "--yes")
    if forward == FORWARD_ALL:
        assert pings(machine, "c", FAR)
        assert fetches(machine, NEIGHBOUR, "http://198.51.100.2:9090/")


def test_a_network_that_was_there_and_forwards_later_gets_its_replies_at_once_and_all_after_a_look(lab: Lab) -> None:
    host(lab, CONTAINERS + "ip link set docker0 down")
    run_all(lab, BUILD)
    host(lab, "ip link set docker0 up; " + FORWARD_ALL)
    assert pings(lab, "c", FAR)
    assert lab.vpcctl("status", status=3).stdout.startswith("ruleset of the host is different")
    lab.vpcctl("repair")
    assert fetches(lab, NEIGHBOUR, "http://198.51.100.2:9090/")


def test_the_shared_address_space_stays_the_hosts_but_for_the_uplinks(lab: Lab) -> None:
    """Carriers, clusters and VPNs use the same range (RFC 6598)."""
    host(lab, f"nsenter --net={RUN_LAB}/internet ip address add 100.64.9.9/32 dev lo")
    run_all(lab, BUILD)
    assert pings(lab, None, "100.64.9.9")
    assert pings(lab, "shop-web", "100.64.9.9")
    # Nobody may call an end of an uplink.
    host(lab, f"nsenter --net={RUN_LAB}/neighbour ip route add 100.64.0.0/30 via 198.51.100.2")
    assert not pings(lab, NEIGHBOUR, "100.64.0.0")
    assert not pings(lab, NEIGHBOUR, "100.64.0.1")


@pytest.mark.parametrize(
    "route",
    [
        "ip route add 100.64.0.0/24 dev eth0",
        "ip route add 100.64.0.0/10 dev eth0 table 52; ip rule add lookup 52",
        "ip address add 100.64.0.1/32 dev lo",
        "ip address add 100.64.0.0 peer 203.0.113.9/32 dev eth0",
    ],
    ids=["in the main table", "in a table of its own", "as its own address", "as its address of a link to one machine"],
)
def test_a_transit_range_that_the_host_reaches_otherwise_is_refused(lab: Lab, route: str) -> None:
    host(lab, route)
    refused = lab.vpcctl("create-vpc", "--name", "shop", "--cidr", "10.0.0.0/16", status=4)
    assert "the host has a route to 100.64.0." in refused.stderr
    assert "--transit" in refused.stderr
    run_all(lab, (f"{BUILD[0]} --transit 10.255.0.0/16", *BUILD[1:]))
    assert pings(lab, "shop-web", FAR)


@pytest.mark.parametrize("link", ["lo", "eth0"])
def test_an_uplinks_address_that_the_host_takes_later_is_told(machine: Lab, link: str) -> None:
    host(machine, f"ip address add 100.64.0.1/32 dev {link}")
    assert not pings(machine, "shop-web", FAR)
    told = machine.run(["vpcctl", "doctor"], check=False)
    assert told.returncode == 1
    assert f"100.64.0.1/32 (address 100.64.0.1 on {link})" in told.stdout
    host(machine, f"ip address delete 100.64.0.1/32 dev {link}")
    assert pings(machine, "shop-web", FAR)


# -- closed links stay closed --------------------------------------------------------------------------------------


def test_the_host_does_not_become_a_router_between_its_networks(lab: Lab) -> None:
    host(lab, SECOND_CARD)
    host(lab, f"nsenter --net={RUN_LAB}/neighbour ip route add 192.0.2.0/24 via 198.51.100.2")
    assert not pings(lab, NEIGHBOUR, "192.0.2.9")
    run_all(lab, BUILD)
    assert not pings(lab, NEIGHBOUR, "192.0.2.9")
    assert not pings(lab, "lan2", "198.51.100.20")
    host(lab, FORWARD_ALL)
    lab.vpcctl("repair")
    assert pings(lab, NEIGHBOUR, "192.0.2.9")
    assert pings(lab, "lan2", "198.51.100.20")


def test_a_flow_that_the_owner_let_pass_ends_when_he_forwards_no_more(lab: Lab) -> None:
    """Our setting alone would carry it on, and connection tracking knows it."""
    host(lab, SECOND_CARD)
    host(lab, f"nsenter --net={RUN_LAB}/neighbour ip route add 192.0.2.0/24 via 198.51.100.2")
    run_all(lab, BUILD)
    host(lab, FORWARD_ALL)
    lab.vpcctl("repair")
    with stations(lab, NEIGHBOUR, "lan2") as (neighbour, beside):
        flow = start_flow("through", neighbour, beside, "192.0.2.9", 5000, "udp", rate=50, push=50)
        assert_moving([flow], time.monotonic())
        host(lab, "sysctl -qw net.ipv4.ip_forward=0")
        lab.vpcctl("repair")
        assert pings(lab, "shop-web", FAR)
        ended = time.monotonic()
        time.sleep(0.5)
        assert [count.last < ended for count in flow.counts()] == [True, True]


OWNER_IN_BETWEEN = """
import subprocess
from vpcctl import Controller, errors
from vpcctl.kernel.linux import LinuxKernel
class Interrupted(LinuxKernel):
    asked = 0
    def facts(self):
        found = super().facts()
        Interrupted.asked += 1
        if Interrupted.asked == 1:
            subprocess.run(["sysctl", "-qw", "net.ipv4.conf.all.forwarding=0"], check=True)
        return found
controller = Controller(make_kernel=Interrupted)
try:
    controller.repair()
except errors.KernelError as error:
    print(error)
"""


def test_an_owner_who_forwards_no_more_during_a_repair_gets_no_router(lab: Lab) -> None:
    """The repair looked before; what it then opens is not guarded against links that stopped meanwhile."""
    host(lab, SECOND_CARD)
    host(lab, f"nsenter --net={RUN_LAB}/neighbour ip route add 192.0.2.0/24 via 198.51.100.2")
    run_all(lab, BUILD)
    host(lab, FORWARD_ALL + "; sysctl -qw net.ipv4.conf.eth0.forwarding=0")
    lab.vpcctl("repair")
    assert pings(lab, NEIGHBOUR, "192.0.2.9")
    said = lab.python(OWNER_IN_BETWEEN).stdout
    assert "forwarding was turned off for eth1" in said
    assert not pings(lab, NEIGHBOUR, "192.0.2.9")
    lab.vpcctl("repair")
    assert pings(lab, "shop-web", FAR)
    assert not pings(lab, NEIGHBOUR, "192.0.2.9")


def test_a_link_that_is_renamed_is_guarded_and_put_back_by_its_new_name(lab: Lab) -> None:
    host(lab, SECOND_CARD)
    host(lab, f"nsenter --net={RUN_LAB}/neighbour ip route add 192.0.2.0/24 via 198.51.100.2")
    run_all(lab, BUILD)
    host(lab, SERVER)
    host(lab, "ip link set eth1 down; ip link set eth1 name lan1; ip link set lan1 up")
    host(
        lab,
        "ip link set eth0 down; ip link set eth0 name wan; ip link set wan up; ip route add default via 198.51.100.1",
    )
    assert not pings(lab, NEIGHBOUR, "192.0.2.9")
    assert not pings(lab, "lan2", "198.51.100.20")
    assert lab.vpcctl("status").stdout == "in sync\n"
    assert pings(lab, "shop-web", FAR)
    assert fetches(lab, "lan2", "http://192.0.2.1:8080/")
    lab.vpcctl("destroy", "--all", "--yes")
    values = lab.run(["sysctl", "-n", "net.ipv4.conf.wan.forwarding", "net.ipv4.conf.lan1.forwarding"]).stdout
    assert values.split() == ["0", "0"]


def test_the_guard_is_compared_by_index(machine: Lab) -> None:
    """Whatever the names of the links: a change of nftables makes `status` compare the table."""
    host(machine, "nft add table ip other")
    assert machine.vpcctl("status").stdout == "in sync\n"
    host(machine, "ip link set eth0 down; ip link set eth0 name wan; ip link set wan up; nft delete table ip other")
    assert machine.vpcctl("status").stdout == "in sync\n"
    host(machine, "nft flush set inet vpcctl closed")
    assert "was changed by hand" in machine.vpcctl("status", status=3).stdout
    machine.vpcctl("repair")
    assert machine.vpcctl("status").stdout == "in sync\n"


def test_another_link_that_takes_the_name_is_another_one(machine: Lab) -> None:
    """The new link has the old name, but its setting is not ours to restore."""
    host(machine, "ip link set eth0 down; ip link set eth0 name wan; ip link set wan up")
    host(machine, "ip route add default via 198.51.100.1; ip link add eth0 type veth peer name other")
    host(machine, "sysctl -qw net.ipv4.conf.eth0.forwarding=1")
    machine.vpcctl("destroy", "--all", "--yes")
    values = machine.run(["sysctl", "-n", "net.ipv4.conf.wan.forwarding", "net.ipv4.conf.eth0.forwarding"]).stdout
    assert values.split() == ["0", "1"]


# -- ways out ------------------------------------------------------------------------------------------------------


def test_instances_reach_what_the_host_reaches_by_any_card_and_are_reached_from_there(lab: Lab) -> None:
    host(lab, SECOND_CARD)
    run_all(lab, BUILD)
    host(lab, SERVER)
    assert pings(lab, "shop-web", "192.0.2.9")
    assert pings(lab, "shop-web", FAR)
    assert fetches(lab, "lan2", "http://192.0.2.1:8080/")
    assert fetches(lab, "lan2", "http://198.51.100.2:8080/")
    assert fetches(lab, NEIGHBOUR, "http://198.51.100.2:8080/")


PAIR = """
ip netns add lan2
ip link add eth1 type veth peer name eth0 netns lan2
ip link set eth1 up
ip -n lan2 link set eth0 up
"""
TWO_ENDS = """
ip address add 192.0.2.1/32 dev eth1
ip -n lan2 address add 192.0.2.9/32 dev eth0
ip -n lan2 route add 192.0.2.1 dev eth0
"""
SIXES = """
ip address add fe80::1/64 dev eth1 nodad
ip -n lan2 address add fe80::9/64 dev eth0 nodad
"""
# Kinds of links and routes by which the host reaches 192.0.2.9.
KINDS = {
    "macvlan": "ip link add link eth1 name mac1 type macvlan mode bridge; ip address add 192.0.2.1/24 dev mac1;"
    " ip link set mac1 up;"
    " ip -n lan2 address add 192.0.2.9/24 dev eth0",
    "bridge": "ip link add br1 type bridge; ip link set eth1 master br1; ip address add 192.0.2.1/24 dev br1;"
    " ip link set br1 up; ip -n lan2 address add 192.0.2.9/24 dev eth0",
    "link to one machine": "ip address add 192.0.2.1 peer 192.0.2.9/32 dev eth1;"
    " ip -n lan2 address add 192.0.2.9 peer 192.0.2.1/32 dev eth0",
    "nexthop object": TWO_ENDS + "ip nexthop add id 9 dev eth1; ip route add 192.0.2.9/32 nhid 9",
    "next hop of IPv6": TWO_ENDS + SIXES + "ip route add 192.0.2.9/32 via inet6 fe80::9 dev eth1",
    "table by source": TWO_ENDS + "ip route add 192.0.2.9 dev eth1; ip route add 192.0.2.9 dev eth1 table 50;"
    " ip rule add from 100.64.0.0/10 lookup 50",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_link_and_route_leads_out_and_stays_apart(lab: Lab, kind: str) -> None:
    host(lab, f"nsenter --net={RUN_LAB}/neighbour ip route add 192.0.2.0/24 via 198.51.100.2")
    host(lab, PAIR + KINDS[kind] + "\nip -n lan2 route add default via 192.0.2.1")
    run_all(lab, BUILD)
    assert pings(lab, "shop-web", "192.0.2.9")
    assert pings(lab, "shop-web", FAR)
    assert not pings(lab, NEIGHBOUR, "192.0.2.9")
    assert lab.vpcctl("status").stdout == "in sync\n"
    lab.vpcctl("destroy", "--all", "--yes")
    assert "1" not in lab.run(["sh", "-c", "cat /proc/sys/net/ipv4/conf/*/forwarding"]).stdout


def test_a_vpn_with_a_table_of_its_own_is_a_way_out(machine: Lab) -> None:
    host(machine, VPN)
    assert "forwarding on wg0 of the host is different: is off" in machine.vpcctl("status", status=3).stdout
    assert "forwarding is off on wg0" in machine.vpcctl("doctor", status=1).stdout
    machine.vpcctl("repair")
    assert machine.vpcctl("status").stdout == "in sync\n"
    assert pings(machine, "shop-web", FAR)
    assert "forwarding is off" not in machine.run(["vpcctl", "doctor"], check=False).stdout


def test_a_link_that_goes_leaves_nothing_to_repair(lab: Lab) -> None:
    host(lab, SECOND_CARD)
    run_all(lab, BUILD)
    host(lab, "ip link delete eth1")
    assert lab.vpcctl("status").stdout == "in sync\n"
    lab.vpcctl("create-subnet", "--vpc", "shop", "--name", "db", "--cidr", "10.0.2.0/24", "--type", "private")
    assert lab.vpcctl("status").stdout == "in sync\n"
    assert pings(lab, "shop-web", FAR)


def test_a_way_out_that_appears_is_told_by_status_and_opened_by_repair(machine: Lab) -> None:
    host(machine, SECOND_CARD)
    told = machine.vpcctl("status", status=3).stdout
    assert "forwarding on eth1 of the host is different: is off" in told
    assert not pings(machine, NEIGHBOUR, "192.0.2.9")
    machine.vpcctl("repair")
    assert pings(machine, "shop-web", "192.0.2.9")
    assert fetches(machine, "lan2", "http://192.0.2.1:8080/")


def test_the_ports_of_a_bridge_are_no_links_of_their_own(lab: Lab) -> None:
    """On a host whose LAN is a bridge, the setting of eth0 has no effect."""
    host(lab, "ip link add br0 type bridge; ip link set eth0 master br0; ip address flush dev eth0")
    host(lab, "ip address add 198.51.100.2/24 dev br0; ip link set br0 up; ip route add default via 198.51.100.1")
    run_all(lab, BUILD)
    assert pings(lab, "shop-web", FAR)
    values = lab.run(["sysctl", "-n", "net.ipv4.conf.eth0.forwarding", "net.ipv4.conf.br0.forwarding"]).stdout
    assert values.split() == ["0", "1"]
