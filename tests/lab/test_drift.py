"""`status` names each object that somebody altered or deleted; `repair` restores just that, and nobody else notices."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.machine import Answer, apply, run_all, seen, settle, try_all
from tests.lab.traffic import Flow, assert_moving, eventually, reaches, silent, start_flow, stations
from vpcctl.lab import HOST, INTERNET, Lab

ROUTER, WEB, DB = "shop-router", "shop-web", "shop-db"
BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-instance --vpc shop --subnet web --name web-2",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
    "create-vpc --name billing --cidr 10.9.0.0/16",
    "create-subnet --vpc billing --name ledger --cidr 10.9.1.0/24 --type private",
    "create-peering --vpc1 shop --vpc2 billing",
    "publish-port --vpc shop --instance web --port 8080 --target-port 80",
    # Nobody touches this one.
    "create-vpc --name calm --cidr 10.0.0.0/16",
    "create-subnet --vpc calm --name one --cidr 10.0.1.0/24 --type private",
    "create-subnet --vpc calm --name two --cidr 10.0.2.0/24 --type private",
)
POLICY = {
    "vpc": "shop",
    "subnet": "db",
    "ingress": [
        {"action": "allow", "protocol": "icmp"},
        {"action": "allow", "protocol": "udp", "port": [5000, "6000-6100"], "source": "subnet:web"},
        {"action": "allow", "protocol": "tcp", "limit": "100/second", "log": True},
    ],
}


@dataclass(frozen=True, slots=True)
class Drift:
    """What somebody does in a namespace (None: the host), and of which kind and object `status` then must speak."""

    netns: str | None
    done: str
    kind: str
    told: str


# A namespace that nothing but a process keeps.
AWAY = "unshare --net sleep 300 >/dev/null 2>&1 </dev/null & sleep 0.3"
RULE = "nft -a list chain inet vpcctl {chain} | sed -n 's/.*{text}.*handle //p'"
DRIFTS = {
    # --- links
    "a port is down": Drift(ROUTER, "ip link set in-web down", "Open", "link in-web open in shop-router"),
    "a bridge is down": Drift(ROUTER, "ip link set br-web down", "LinkUp", "link br-web up in shop-router"),
    "the uplink is down": Drift(ROUTER, "ip link set uplink down", "LinkUp", "link uplink up in shop-router"),
    "the host's end is down": Drift(None, "ip link set vpc-shop down", "Open", "link vpc-shop open in the host"),
    "a peering link is down": Drift(ROUTER, "ip link set pr-billing down", "LinkUp", "link pr-billing up"),
    "an instance's link is down": Drift(WEB, "ip link set eth0 down", "LinkUp", "link eth0 up in shop-web"),
    "an instance's loopback is down": Drift(WEB, "ip link set lo down", "LinkUp", "link lo up in shop-web"),
    "a port's address is another": Drift(ROUTER, "ip link set in-web address 02:00:00:00:00:99", "Veth", "in-web"),
    "a bridge's address is another": Drift(ROUTER, "ip link set br-db address 02:00:00:00:00:99", "Bridge", "br-db"),
    "a port is not marked as ours": Drift(ROUTER, "ip link set in-web alias x", "Veth", "does not carry our tag"),
    "a port is deleted": Drift(ROUTER, "ip link delete in-web", "Veth", "in-web in shop-router"),
    "a bridge is deleted": Drift(ROUTER, "ip link delete br-web", "Bridge", "br-web in shop-router"),
    "an instance deletes its link": Drift(WEB, "ip link delete eth0", "Veth", "in-web in shop-router"),
    "an instance's link has another address": Drift(
        WEB, "ip link set eth0 address 02:00:00:00:00:99", "Veth", "has MAC 02:00:00:00:00:99 at its other end"
    ),
    "an instance's link has another name": Drift(
        WEB, "ip link set eth0 down; ip link set eth0 name x up", "Veth", "has no end eth0 in shop-web"
    ),
    "an instance's link has moved away": Drift(
        WEB, f"{AWAY}; ip link set eth0 netns $!", "Veth", "has no end eth0 in shop-web"
    ),
    "an instance's link has moved away, and another has its name": Drift(
        WEB, f"{AWAY}; ip link set eth0 netns $!; ip link add eth0 type bridge", "Veth", "has no end eth0 in shop-web"
    ),
    "the host's end has moved away": Drift(
        None, f"{AWAY}; ip link set vpc-shop netns $!", "Veth", "has no end vpc-shop in the host"
    ),
    "the uplink is deleted": Drift(None, "ip link delete vpc-shop", "Veth", "link uplink in shop-router"),
    "a peering link is deleted": Drift(ROUTER, "ip link delete pr-billing", "Veth", "pr-"),
    # --- ports
    **{
        f"a port is not {flag}": Drift(
            ROUTER, f"bridge link set dev in-web {flag} {value}", "Port", f"{told} is {number}"
        )
        for flag, value, told, number in (
            ("isolated", "off", "isolated", 0),
            ("locked", "off", "locked", 0),
            ("learning", "on", "learning", 1),
            ("flood", "on", "unicast_flood", 1),
            ("mcast_flood", "on", "mcast_flood", 1),
            ("bcast_flood", "on", "bcast_flood", 1),
        )
    },
    "a port is at no bridge": Drift(ROUTER, "ip link set in-web nomaster", "Port", "port in-web of br-web"),
    "a forwarding entry is gone": Drift(
        ROUTER, "bridge fdb delete $(cat /run/mac) dev in-web master", "FdbEntry", "forwarding entry"
    ),
    # --- addresses, routes, neighbours
    "a gateway's address is gone": Drift(ROUTER, "ip address delete 10.0.1.1/24 dev br-web", "Address", "10.0.1.1/24"),
    "an instance's address is gone": Drift(WEB, "ip address delete 10.0.1.2/24 dev eth0", "Address", "10.0.1.2/24"),
    "the uplink's address is gone": Drift(None, "ip address flush dev vpc-shop", "Address", "on vpc-shop in the host"),
    "the way out is gone": Drift(ROUTER, "ip route delete default", "Route", "route to 0.0.0.0/0 in shop-router"),
    "an instance's way out is gone": Drift(WEB, "ip route delete default", "Route", "route to 0.0.0.0/0 in shop-web"),
    "the way out is another": Drift(ROUTER, "ip route replace default dev br-web", "Route", "expected"),
    "the way to a peer is gone": Drift(ROUTER, "ip route delete 10.9.0.0/16", "Route", "route to 10.9.0.0/16"),
    "a neighbour is gone": Drift(ROUTER, "ip neighbour delete 10.0.1.2 dev br-web", "Neighbour", "10.0.1.2"),
    "a neighbour is another": Drift(
        ROUTER, "ip neighbour replace 10.0.1.2 lladdr 02:00:00:00:00:99 dev br-web", "Neighbour", "02:00:00:00:00:99"
    ),
    "a neighbour is not permanent": Drift(
        ROUTER, "ip neighbour replace 10.0.1.2 lladdr $(cat /run/mac) dev br-web nud stale", "Neighbour", "permanent"
    ),
    # --- settings
    "the router does not forward": Drift(ROUTER, "sysctl -qw net.ipv4.ip_forward=0", "Setting", "ip_forward"),
    "redirects are sent": Drift(ROUTER, "sysctl -qw net.ipv4.conf.all.send_redirects=1", "Setting", "send_redirects"),
    "IPv6 is on": Drift(WEB, "sysctl -qw net.ipv6.conf.all.disable_ipv6=0", "Setting", "disable_ipv6 in shop-web"),
    "a bridge does not answer": Drift(
        ROUTER, "sysctl -qw net.ipv4.conf.br-web.proxy_arp_pvlan=0", "LinkSetting", "proxy_arp_pvlan"
    ),
    "a bridge answers late": Drift(
        ROUTER, "ip ntable change name arp_cache dev br-web proxy_delay 800", "ProxyDelay", "is 800 ms"
    ),
    "the host does not forward": Drift(
        None, "sysctl -qw net.ipv4.conf.eth0.forwarding=0", "Forwarding", "forwarding on eth0 of the host"
    ),
    # --- rules
    "the router's rules are flushed": Drift(ROUTER, "nft flush ruleset", "Ruleset", "ruleset of shop-router is absent"),
    "the host's rules are flushed": Drift(None, "nft flush ruleset", "Ruleset", "ruleset of the host is absent"),
    "one table is deleted": Drift(ROUTER, "nft delete table arp vpcctl", "Ruleset", "table arp vpcctl is missing"),
    "a rule is deleted": Drift(
        ROUTER,
        "nft delete rule inet vpcctl from-member handle"
        f" $({RULE.format(chain='from-member', text='@members meta mark set 0x76706331 accept')})",
        "Ruleset",
        "lacks `iifname . ether saddr . ip saddr @members meta mark set 0x76706331 accept`",
    ),
    "a rule of the host is deleted": Drift(
        None,
        f"nft delete rule inet vpcctl host-input handle $({RULE.format(chain='host-input', text='@uplinks drop')})",
        "Ruleset",
        "lacks `iifname @uplinks drop`",
    ),
    "a rule is added": Drift(ROUTER, "nft insert rule inet vpcctl filter-forward accept", "Ruleset", "besides `accept"),
    "a rule is exchanged": Drift(
        ROUTER,
        "nft flush chain inet vpcctl admit; nft add rule inet vpcctl admit accept",
        "Ruleset",
        "ruleset of shop-router is different: was changed by hand: lacks `ct mark set",
    ),
    "an element is deleted": Drift(
        ROUTER, "nft delete element inet vpcctl bridges '{ \"br-web\" }'", "Ruleset", "lacks `\"br-web\"`"
    ),
    "an element is added": Drift(
        ROUTER, "nft add element inet vpcctl paths '{ \"br-db\" . \"uplink\" }'", "Ruleset", "besides `\"br-db\" . \"up"
    ),
    "a chain's policy is another": Drift(
        ROUTER, "nft add chain inet vpcctl filter-forward '{ policy accept; }'", "Ruleset", "policy accept"
    ),
    "a chain is added": Drift(ROUTER, "nft add chain inet vpcctl more", "Ruleset", "besides `chain more {`"),
    "a table sleeps": Drift(
        ROUTER, "nft add table inet vpcctl '{ flags dormant; }'", "Ruleset", "besides `flags dormant`"
    ),
    # --- namespaces
    "an instance's namespace is deleted": Drift(None, "ip netns delete shop-web", "Namespace", "namespace shop-web"),
    "the router's namespace is deleted": Drift(None, "ip netns delete shop-router", "Namespace", "namespace shop-rout"),
    "all is gone": Drift(
        None,
        "for name in shop-web shop-web-2 shop-db shop-router; do ip netns delete $name; done; nft flush ruleset",
        "Namespace",
        "namespace shop-db",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def machine(module_lab: Lab) -> Lab:
    """The VPCs above; each test leaves them as they were."""
    run_all(module_lab, BUILD)
    apply(module_lab, POLICY)
    [link] = seen(module_lab, "link", "show", "eth0", netns=WEB)
    module_lab.run(["sh", "-c", f"echo {link['address']} >/run/mac"])
    settle(module_lab, ROUTER, WEB)
    return module_lab


@pytest.fixture(scope="module")
def calm(machine: Lab) -> Iterator[Flow]:
    """A flow in a VPC that nobody touches, all the while."""
    with stations(machine, "calm-one", "calm-two") as (one, two):
        yield start_flow("calm", one, two, "10.0.2.2", 5000, "udp", rate=200, push=200)


LOOKS = (
    "ip -json -details link",
    "ip -json -4 address",
    "ip route",
    "ip neighbour show nud permanent",
    "bridge fdb show | grep static",
    "ip ntable show name arp_cache | grep -c 'proxy_delay 0 '",
    "nft -s list ruleset",
    "grep -rs '' /proc/sys/net | grep -v nf_conntrack_count",
)


def picture(lab: Lab) -> dict[str, Any]:
    """Everything of shop that a repair may touch, without what is new in a link that was made anew."""
    return {f"{netns} {look}": seen for netns in (None, ROUTER, WEB) for look, seen in _looked(lab, netns).items()}


# The elements of a set that packets fill: traffic brings them, and no command.
FILLED = re.compile(r"(flags dynamic[^\n]*\n(?:\s+timeout [^\n]*\n)?)\s+elements = \{[^{}]*\}\n")

# The comment of a loaded table, and the chain `stamp` of the changes after the load (ADR 25).  A whole load has none.
LOADED_AS = re.compile(r'comment "vpcctl/[^"]*"|\tchain stamp \{\n[^}]*\}\n')


def _looked(lab: Lab, netns: str | None) -> dict[str, Any]:
    printed = lab.run(["sh", "-c", "; echo =====; ".join(LOOKS)], netns=netns, check=False).stdout
    texts = LOADED_AS.sub("", FILLED.sub(r"\1", printed)).split("=====\n")
    found: dict[str, Any] = {
        look: sorted(filter(str.strip, re.split("[{},\n]", text))) for look, text in zip(LOOKS, texts, strict=True)
    }
    for look in LOOKS[:2]:
        links = json.loads(texts[LOOKS.index(look)], object_hook=_lasting)
        found[look] = {link["ifname"]: link for link in links if link}
    return found


def _lasting(link: dict[str, Any]) -> dict[str, Any]:
    """A link without its numbers, which are new when it is made again; those of the peer likewise."""
    gone = ("ifindex", "link_index", "link_netnsid", "link", "operstate", "bridge_id", "root_id", "designated_root")
    return {key: value for key, value in link.items() if key not in gone and not key.endswith("_timer")}


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Which parts of two pictures differ, and how."""
    return [f"{part}: {before[part]} became {after[part]}" for part in before if before[part] != after[part]]


@pytest.fixture(scope="module")
def pristine(machine: Lab) -> dict[str, Any]:
    """The picture before anybody touched anything."""
    return picture(machine)


def examine_and_repair(lab: Lab) -> list[Answer]:
    """status, status in JSON, repair, repair again, status; one process after the other, in one."""
    commands = (["status"], ["status", "--json"], ["repair"], ["repair"], ["status"])
    return try_all(lab, [(words, "") for words in commands])


@pytest.mark.parametrize("name", DRIFTS)
def test_what_was_changed_by_hand_is_named_and_repaired_and_nothing_else(
    machine: Lab, pristine: dict[str, Any], calm: Flow, name: str
) -> None:
    drift = DRIFTS[name]
    machine.run(["sh", "-ec", drift.done], netns=drift.netns)
    told, listed, repaired, nothing, after = examine_and_repair(machine)
    assert told.status == listed.status == 3, told.complaint
    assert drift.told in told.output
    assert "vpcctl repair" in told.output
    document = json.loads(listed.output)
    assert not document["in_sync"]
    assert any(
        one["kind"] == drift.kind and drift.told in f"{one['object']} is {one['state']}: {one['detail']}"
        for one in document["differences"]
    ), document
    assert {one["object"].partition("calm")[1] for one in document["differences"]} == {""}
    assert (repaired.status, repaired.output) == (0, "")
    assert drift.told.split(" is ")[0] in repaired.complaint
    assert (nothing.status, nothing.complaint) == (0, "nothing to repair\n")
    assert (after.status, after.output) == (0, "in sync\n")
    assert eventually(lambda: not differing(pristine, picture(machine)), 3), differing(pristine, picture(machine))
    assert_works(machine)
    assert [count.missing for count in calm.counts()] == [0, 0]


def assert_works(lab: Lab) -> None:
    """Within the VPC, to the peer, to the internet, and in by the published port."""
    for address in ("10.0.1.3", "10.0.2.2", "10.9.1.2", str(INTERNET)):
        lab.run(["ping", "-n", "-c", "1", "-W", "5", address], netns=WEB)
    with stations(lab, "internet", WEB) as (internet, web):
        web.listen()
        assert reaches(internet, web, str(HOST), 8080, "tcp", at=80)


def test_the_calm_vpc_lost_no_packet(machine: Lab, calm: Flow) -> None:
    """The last one, in case the tests above were not enough: all that was sent has arrived."""
    assert_moving([calm], 0)
    for station in (calm.client, calm.server):
        station.tell("rate", name="calm", rate=0)
    assert eventually(lambda: [one.received for one in calm.counts()] == [one.sent for one in calm.counts()[::-1]])


def test_status_of_one_vpc_looks_at_no_other(machine: Lab) -> None:
    machine.run(["ip", "route", "flush", "dev", "pr-shop"], netns="billing-router")
    answers = try_all(machine, [(["status", "--vpc", vpc], "") for vpc in ("shop", "billing")])
    assert [answer.status for answer in answers] == [0, 3]
    machine.vpcctl("repair")


@pytest.mark.parametrize("commands", [["status"], ["list-vpcs"], ["status", "--json"]])
def test_looking_changes_nothing(machine: Lab, commands: list[str]) -> None:
    machine.run(["ip", "route", "delete", "default"], netns=ROUTER)
    before = picture(machine)
    try_all(machine, [(commands, "")])
    assert differing(before, picture(machine)) == []
    machine.vpcctl("repair")


# --- Rulesets ---------------------------------------------------------------------------------------------------------


def test_counters_limits_and_the_order_of_elements_are_no_drift(lab: Lab) -> None:
    """Ten thousand elements in hash and interval sets, with traffic that counts, judged from anew each time."""
    run_all(lab, BUILD[:4])
    rules = [
        {"action": "allow", "protocol": "udp", "port": 5000, "limit": "5/second"},
        *(
            {"action": "deny" if number % 2 else "allow", "protocol": "tcp", "port": number + 1,
             "source": f"10.{number % 200}.{number // 250}.0/{24 if number % 3 else 25}"}
            for number in range(4000)
        ),
        *(
            {"action": "allow", "protocol": "udp", "port": 9, "source": f"10.0.{number // 250}.{number % 250}"}
            for number in range(6000)
        ),
        {"action": "allow", "protocol": "any", "log": True},
    ]  # fmt: skip
    apply(lab, {"vpc": "shop", "subnet": "db", "ingress": rules})
    with stations(lab, WEB, DB) as (web, db):
        flow = start_flow("load", web, db, "10.0.2.2", 9, "udp", rate=200)
        assert eventually(lambda: flow.counts()[1].received > 20)
        for _ in range(2):
            assert lab.vpcctl("status").stdout == "in sync\n"
    hits = lab.run(["nft", "list", "table", "inet", "vpcctl"], netns=ROUTER).stdout
    assert re.search(r"counter packets [1-9]", hits), "nothing was counted, so nothing was shown"


# Load the present ruleset again, with another generation, whole or as a change, and die after some transactions.
CUT_SHORT = """
import dataclasses, os, sys
from functools import partial
from pathlib import Path
from vpcctl.resources import topology
from vpcctl.resources.kinds import Ruleset
from vpcctl.kernel import conntrack, gate_texts, tables
from vpcctl.lab import STATE_DIR
from vpcctl.engine.state import Store

class Mortal:
    def __init__(self, nft, transactions):
        self.nft, self.left = nft, transactions
    def __getattr__(self, name):
        return getattr(self.nft, name)
    def cmd(self, batch):
        if not batch.startswith("list"):
            if not self.left:
                os._exit(9)
            self.left -= 1
        return self.nft.cmd(batch)

state = Store(Path(STATE_DIR)).load()
loaded = {item.key: item for item in state.items if isinstance(item, Ruleset)}
items = topology.snapshot(state.world, state.state_id, loaded)["shop"]
wanted = next(item for item in items if isinstance(item, Ruleset))
former = wanted if sys.argv[2] == "change" else None
next_one = dataclasses.replace(wanted.at(wanted.generation + 1), former=former)
nft, text = Mortal(tables.context("shop-router"), int(sys.argv[1])), partial(gate_texts.text, "shop-router")
assert (tables._change(nft, next_one, text) is not None) == (former is not None)
tables.load(nft, next_one, conntrack.settle, text)
"""
TRANSACTIONS = 6


@pytest.mark.parametrize("number", range(1, TRANSACTIONS))
@pytest.mark.parametrize("kind", ["whole", "change"])
def test_a_load_that_is_cut_short_never_opens_anything_and_is_repaired(machine: Lab, kind: str, number: int) -> None:
    with stations(machine, WEB, DB) as (web, db):
        db.listen()
        kept = start_flow("kept", web, db, "10.0.2.2", 5000, "udp", rate=200)
        denied = start_flow("denied", web, db, "10.0.2.2", 7777, "udp", rate=2000)
        words = [sys.executable, "-c", CUT_SHORT, str(number), kind]
        assert machine.run(words, check=False).returncode == 9
        judged(web, db)
        told, _, repaired, nothing, after = examine_and_repair(machine)
        assert (told.status, repaired.status, nothing.complaint, after.status) == (3, 0, "nothing to repair\n", 0)
        assert "ruleset of shop-router" in told.output
        judged(web, db)
        assert denied.counts()[1].received == 0
        kept.client.tell("rate", name="kept", rate=0)
        assert eventually(lambda: kept.counts()[1].received == kept.counts()[0].sent)
    names = machine.run(["nft", "list", "tables"], netns=ROUTER).stdout.split()
    assert [name for name in names if "-next" in name] == []
    assert ".next" not in machine.run(["nft", "-t", "list", "ruleset"], netns=ROUTER).stdout


@pytest.mark.parametrize("kind", ["whole", "change"])
def test_a_load_takes_so_many_transactions(machine: Lab, kind: str) -> None:
    """Or the test above would not reach the last one."""
    assert machine.run([sys.executable, "-c", CUT_SHORT, str(TRANSACTIONS - 1), kind], check=False).returncode == 9
    machine.vpcctl("repair")
    machine.run([sys.executable, "-c", CUT_SHORT, str(TRANSACTIONS), kind])
    machine.vpcctl("repair")


def judged(web: Any, db: Any) -> None:
    """The policy holds: an allowed port is open, and another is silent."""
    found = silent(web, db, "10.0.2.2", 7778, lambda: reaches(web, db, "10.0.2.2", 6050, "udp"), ("udp",))
    assert found == []
