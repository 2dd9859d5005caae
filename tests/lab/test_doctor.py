"""What doctor warns of is made for real: packets fail, doctor says so, its commands are run, packets pass."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab.networks import machine_behind
from vpcctl.lab import HOST, INTERNET, NEIGHBOUR, STATE_DIR, Lab

FIREWALLS = Path(__file__).parents[1] / "firewalls"
PROBE, CANARY = 7001, 7002

# Counts at the receiver what arrives there.
WATCH = f"""
table inet watch {{
    counter probe {{ }}
    counter canary {{ }}
    chain arrivals {{
        type filter hook prerouting priority -400;
        tcp dport {PROBE} counter name probe
        tcp dport {CANARY} counter name canary
    }}
}}
"""
TALK = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])) as line:
        line.sendall(b"hello\\n")
        print(line.recv(99).decode(), end="")
except OSError as silence:  # or somebody's rejection
    print(silence)
"""

Found = dict[str, Any]


def doctor(lab: Lab, *, status: int = 0, **options: Any) -> list[Found]:
    """What doctor finds."""
    return json.loads(lab.vpcctl("doctor", "--json", status=status, **options).stdout)


def bad(findings: list[Found]) -> list[Found]:
    """The fatal ones and the warnings."""
    return [one for one in findings if one["severity"] in ("fatal", "warning")]


def follow(lab: Lab, finding: Found) -> None:
    """Run the commands of a finding as a person would."""
    assert finding["commands"], finding
    for command in finding["commands"]:
        lab.run(["sh", "-ec", command])


def create(lab: Lab) -> None:
    """A VPC whose instance shop-web reaches the internet, and somebody there who counts."""
    lab.vpcctl("create-vpc", "--name", "shop", "--cidr", "10.0.0.0/16")
    lab.vpcctl("create-subnet", "--vpc", "shop", "--name", "web", "--cidr", "10.0.1.0/24", "--type", "public")
    lab.run(["nft", "-f", "-"], input=WATCH, netns="internet")


def answered(lab: Lab, port: int, patience: float) -> bool:
    """Talk by TCP from the instance into the internet; does an answer come within `patience` seconds?"""
    return lab.python(TALK, str(INTERNET), str(port), str(patience), netns="shop-web").stdout == "hello\n"


def arrived(lab: Lab) -> tuple[int, int]:
    """How many packets of probes and of canaries came to the internet."""
    listing = json.loads(lab.run(["nft", "-j", "list", "counters", "table", "inet", "watch"], netns="internet").stdout)
    counts = {one["counter"]["name"]: one["counter"]["packets"] for one in listing["nftables"] if "counter" in one}
    return counts["probe"], counts["canary"]


def load(lab: Lab, ruleset: str | Path) -> None:
    text = ruleset.read_text() if isinstance(ruleset, Path) else ruleset
    lab.run(["nft", "-f", "-"], input=text)


# --- A machine on which all is well -----------------------------------------------------------------------------------


def test_a_clean_machine_has_nothing_in_the_way_before_and_with_a_vpc(lab: Lab) -> None:
    assert bad(doctor(lab)) == []
    create(lab)
    findings = doctor(lab)
    assert bad(findings) == []
    assert {one["subject"] for one in findings} >= {
        "privilege", "python", "libnftables", "namespaces", "lab", "kernel", "state", "network managers",
        "br_netfilter", "conntrack", "forwarding", "prefixes", "foreign firewall",
    }  # fmt: skip
    assert lab.vpcctl("doctor").stdout.endswith("nothing is in the way\n")
    assert answered(lab, CANARY, 5)


def test_looking_changes_nothing(lab: Lab) -> None:
    create(lab)

    def machine() -> list[str]:
        looks = (
            ["ls", "/sys/class/net"],
            ["ip", "-4", "-o", "address"],
            ["ip", "-4", "route", "show", "table", "all"],
            ["ip", "netns"],
            ["nft", "list", "ruleset"],
            ["cat", "/proc/self/mountinfo", "/proc/net/ip_tables_names"],
            ["find", "/run"],
            ["sysctl", "-a", "--pattern", r"^net\.ipv4\.conf"],
        )
        return [lab.run(look).stdout for look in looks]

    before = machine()
    doctor(lab)
    assert machine() == before


POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", sys.executable, "-m", "vpcctl"]


def test_without_privilege_it_says_what_it_cannot_see_and_that_is_no_fault(lab: Lab) -> None:
    findings = json.loads(lab.run([*POWERLESS, "doctor", "--json"]).stdout)
    by_subject = {one["subject"]: one["severity"] for one in findings}
    assert (by_subject["privilege"], by_subject["foreign firewall"]) == ("note", "note")
    # Whether user 0 without capabilities gets a user namespace depends on whose user 0 it is.
    assert [one for one in bad(findings) if one["subject"] not in ("lab", "kernel")] == []


def test_an_ordinary_user_gets_the_kernel_tried_in_a_user_namespace(lab: Lab, nobodys_python: list[str]) -> None:
    create(lab)
    findings = json.loads(lab.run([*nobodys_python, "-m", "vpcctl", "doctor", "--json"]).stdout)
    assert bad(findings) == []
    by_subject = {one["subject"]: one["severity"] for one in findings}
    assert by_subject["privilege"] == by_subject["foreign firewall"] == by_subject["state"] == "note"
    assert by_subject["kernel"] == by_subject["lab"] == "ok"


# --- Other people's firewalls -----------------------------------------------------------------------------------------

BOGONS = """
table inet bogons {
    chain incoming {
        type filter hook prerouting priority raw;
        ip saddr { 0.0.0.0/8, 100.64.0.0/10 } drop
    }
}
"""
LEAVING = """
table inet leaving {
    chain postrouting {
        type filter hook postrouting priority filter; policy drop;
        ip saddr 198.51.100.0/24 accept
    }
}
"""
ROUTER = """
table ip router {
    map ways { type ifname : verdict; elements = { "eth1" : accept }; }
    chain forward {
        type filter hook forward priority -10; policy drop;
        ct state vmap { established : accept, related : accept }
        iifname vmap @ways
    }
}
"""


@pytest.mark.parametrize(
    ("firewall", "owner"),
    [
        (FIREWALLS / "docker.nft", "Docker"),
        (FIREWALLS / "firewalld.nft", "firewalld"),
        (BOGONS, "another nftables ruleset"),
        (LEAVING, "another nftables ruleset"),
        (ROUTER, "another nftables ruleset"),
    ],
    ids=["docker", "firewalld", "bogons", "leaving", "router"],
)
def test_what_another_firewall_drops_is_told_and_the_remedy_lets_it_pass(
    lab: Lab, firewall: str | Path, owner: str
) -> None:
    create(lab)
    assert answered(lab, CANARY, 5)
    load(lab, firewall)

    [found] = bad(doctor(lab, status=1))
    assert (found["severity"], found["subject"]) == ("fatal", "foreign firewall")
    assert found["what"].startswith(f"{owner}: table ")
    assert not answered(lab, PROBE, 0.5)

    follow(lab, found)
    assert bad(doctor(lab)) == []
    assert answered(lab, CANARY, 5)
    probes, canaries = arrived(lab)
    assert (probes, canaries > 0) == (0, True)


# A container behind a bridge, and a machine on a second LAN; each answers on PORT.  VPCs must reach neither.
PORT = 7003
BESIDE = f"""
{machine_behind("lan1", "other", "192.0.2.1/24", "192.0.2.2/24")}
ip -n other route add default via 192.0.2.1
ip netns add container
ip link add docker0 type bridge
ip address add 172.17.0.1/16 dev docker0
ip link set docker0 up
ip link add vc type veth peer name eth0 netns container
ip link set vc master docker0 up
ip -n container address add 172.17.0.2/16 dev eth0
ip -n container link set eth0 up
ip -n container route add default via 172.17.0.1
sysctl -qw net.ipv4.ip_forward=1
"""
GREET = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    line = server.accept()[0]
    line.recv(99)
    line.sendall(b"hello\\n")
    line.close()
"""
PLACES = {"container": "172.17.0.2", "other": "192.0.2.2", "shop-web": "10.0.1.2", "internet": str(INTERNET)}
PLAIN = """
table inet plain {
    chain forward {
        type filter hook forward priority filter; policy drop;
        iifname "lan1" oifname "docker0" accept
    }
}
"""
# firewalld with its own bus; it uses copies of the machine's files.
FIREWALLD = """
mkdir -p /run/dbus /run/firewalld-files
cp -a /etc/firewalld/. /run/firewalld-files
mount --bind /run/firewalld-files /etc/firewalld
dbus-daemon --system --fork --nopidfile
firewalld --nofork --nopid >/run/firewalld.log 2>&1 &
for attempt in $(seq 50); do firewall-cmd --state && exit; sleep 0.2; done
"""


def passing(lab: Lab) -> set[tuple[str, str]]:
    """The pairs of PLACES, and of the LAN, between which a connection succeeds."""
    found = set()
    for source in (*PLACES, "neighbour"):
        for place, address in PLACES.items():
            port = str(CANARY if place == "internet" else PORT)
            if place != source and lab.python(TALK, address, port, "0.4", netns=source).stdout == "hello\n":
                found.add((source, place))
    return found


@pytest.mark.parametrize("name", ["docker", "firewalld", "running-firewalld", "bogons", "leaving", "plain"])
def test_a_remedy_opens_the_way_out_and_nothing_else(lab: Lab, name: str) -> None:
    """Run the commands word for word, beside a container and a second LAN: nothing else opens to VPCs and the LAN."""
    if name == "running-firewalld" and lab.run(["which", "firewalld", "dbus-daemon"], check=False).returncode:
        pytest.skip("firewalld is not installed")
    lab.run(["sh", "-ec", BESIDE])
    create(lab)
    for netns in ("container", "other", "shop-web"):
        server = lab.popen([sys.executable, "-I", "-c", GREET, str(PORT)], netns=netns)
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
    for network in ("172.17.0.0/16", "192.0.2.0/24", "10.0.0.0/16"):
        lab.run(["ip", "route", "add", network, "via", str(HOST)], netns="neighbour")
    out = ("shop-web", "internet")
    assert out in passing(lab)
    if name == "running-firewalld":
        lab.run(["sh", "-ec", FIREWALLD])
    else:
        texts = {"bogons": BOGONS, "leaving": LEAVING, "plain": PLAIN}
        load(lab, texts.get(name) or FIREWALLS / f"{name}.nft")
    before = passing(lab)
    assert out not in before
    found = bad(doctor(lab, status=1))
    for one in found:
        follow(lab, one)
    assert bad(doctor(lab)) == []
    assert passing(lab) - before == {out}
    assert before <= passing(lab)


def test_where_answers_alone_are_dropped_the_packet_goes_out_and_nothing_comes_back(lab: Lab) -> None:
    create(lab)
    load(lab, "table ip t { chain c { type filter hook forward priority 0; policy drop; iifname vpc-shop accept; }; }")
    [found] = bad(doctor(lab, status=1))
    assert "drops replies to VPCs (" in found["what"]
    assert not answered(lab, PROBE, 0.5)
    assert arrived(lab)[0] > 0
    follow(lab, found)
    assert bad(doctor(lab)) == []
    assert answered(lab, CANARY, 5)


def test_a_firewall_that_lets_us_pass_is_not_accused(lab: Lab) -> None:
    create(lab)
    load(lab, FIREWALLS / "libvirt.nft")
    load(lab, "table ip t { chain c { type filter hook forward priority 0; policy drop;"
              " ct state established accept; ip saddr 100.64.0.0/10 oif eth0 accept; }; }")  # fmt: skip
    assert bad(doctor(lab)) == []
    assert answered(lab, CANARY, 5)


def test_a_rule_that_is_not_understood_is_a_warning_with_its_text(lab: Lab) -> None:
    create(lab)
    load(lab, "table inet t { chain c { type filter hook forward priority 0; numgen inc mod 2 0 counter drop; }; }")
    [found] = bad(doctor(lab))
    assert found["severity"] == "warning"
    assert "table inet t, chain c, handle " in found["what"]
    assert "`numgen inc mod 2 0 drop`" in found["what"]
    follow(lab, found)
    assert bad(doctor(lab)) == []


def test_a_published_port_that_is_dropped_is_told(lab: Lab) -> None:
    create(lab)
    lab.vpcctl("publish-port", "--vpc", "shop", "--instance", "web", "--port", "8080")
    listener = lab.popen([sys.executable, "-m", "http.server", "8080"], netns="shop-web")
    fetch = ["curl", "-s", "-o", "/dev/null", "http://198.51.100.2:8080/"]
    patiently = [*fetch, "--retry", "9", "--retry-connrefused"]
    lab.run(patiently, netns="neighbour")

    load(lab, "table ip t { chain c { type filter hook forward priority 0; policy drop;"
              " ct state established accept; iifname vpc-shop accept; }; }")  # fmt: skip
    [found] = bad(doctor(lab, status=1))
    assert "drops packets to published ports (tcp/8080 of vpc-shop)" in found["what"]
    assert lab.run([*fetch, "--max-time", "1"], netns="neighbour", check=False).returncode != 0
    follow(lab, found)
    assert bad(doctor(lab)) == []
    lab.run(patiently, netns="neighbour")
    listener.kill()


LEGACY_POLICY = """
import ctypes, socket, struct, sys
policy = {"accept": -2, "drop": -1}[sys.argv[1]]
def entry(verdict):
    return bytes(88) + struct.pack("=HHI16x", 112, 152, 0) + struct.pack("=H30xi4x", 40, verdict)
error = bytes(88) + struct.pack("=HHI16x", 112, 176, 0) + struct.pack("=H30s32s", 64, b"ERROR", b"ERROR")
entries = entry(-2) + entry(policy) + entry(-2) + error
counters = ctypes.create_string_buffer(4 * 16)
hooks = (0, 0, 152, 304, 0)
head = struct.pack("=32s13I", b"filter", 0b01110, 4, len(entries), *hooks, *hooks)
channel = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
request = head + struct.pack("=IQ", 4, ctypes.addressof(counters)) + entries
try:
    channel.setsockopt(socket.IPPROTO_IP, 64, request)
except OSError as error:
    print(error)
"""


def test_a_table_of_the_old_iptables_is_seen_too(lab: Lab) -> None:
    create(lab)
    complaint = lab.python(LEGACY_POLICY, "accept").stdout
    if complaint:
        pytest.skip(f"this kernel has no legacy tables: {complaint}")
    assert bad(doctor(lab)) == []
    lab.python(LEGACY_POLICY, "drop")
    [found] = bad(doctor(lab, status=1))
    assert "table ip filter-legacy, chain FORWARD: `policy drop`" in found["what"]
    assert found["commands"][0].endswith(" -I FORWARD -i vpc-+ -o eth0 -j ACCEPT")
    assert not answered(lab, PROBE, 0.5)
    lab.python(LEGACY_POLICY, "accept")  # what the commands would do takes a program that need not be here
    assert bad(doctor(lab)) == []
    assert answered(lab, CANARY, 5)
    probes, canaries = arrived(lab)
    assert (probes, canaries > 0) == (0, True)


def test_what_is_said_of_any_ruleset_is_what_the_kernel_does(lab: Lab) -> None:
    create(lab)
    outcome = json.loads(lab.python(Path(__file__).with_name("firewalls_run.py"), "7", "80", timeout=600).stdout)
    assert outcome["wrong"] == []
    tally = outcome["tally"]
    assert min(tally["accept"], tally["drop"]) > 50
    assert tally.get("unknown", 0) < 20


def test_create_vpc_warns_of_what_is_fatal_and_of_nothing_else(lab: Lab) -> None:
    quiet = lab.vpcctl("create-vpc", "--name", "blue", "--cidr", "10.0.0.0/16")
    assert "warning" not in quiet.stderr
    load(lab, FIREWALLS / "docker.nft")
    warned = lab.vpcctl("create-vpc", "--name", "shop", "--cidr", "10.0.0.0/16")
    [line] = [line for line in warned.stderr.splitlines() if line.startswith("warning: ")]
    assert "chain FORWARD: `policy drop` drops packets from VPCs and replies to VPCs" in line
    assert "of vpc-shop)" in line
    for command in line.partition("; to fix it: ")[2].split("; "):
        lab.run(["sh", "-ec", command])
    fixed = lab.vpcctl("create-vpc", "--name", "red", "--cidr", "10.0.0.0/16")
    assert "warning" not in fixed.stderr


def test_create_vpc_warns_of_a_prefix_that_the_host_itself_uses(lab: Lab) -> None:
    warned = lab.vpcctl("create-vpc", "--name", "shop", "--cidr", "198.51.100.0/24")
    [line] = [line for line in warned.stderr.splitlines() if line.startswith("warning: ")]
    assert "198.51.100.0/24 of VPC shop overlaps 198.51.100.0/24 (address 198.51.100.2 on eth0)" in line
    assert line.endswith("If the instances need them, give the VPC another prefix")


@pytest.mark.parametrize("name", ["docker", "firewalld", "libvirt", "router"])
def test_the_sample_rulesets_are_as_nft_lists_them(module_lab: Lab, name: str) -> None:
    module_lab.run(["nft", "flush", "ruleset"])
    load(module_lab, FIREWALLS / f"{name}.nft")
    listed = json.loads(module_lab.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]
    module_lab.run(["nft", "flush", "ruleset"])

    def plain(objects: list[dict[str, Any]]) -> list[str]:
        """Without what another kernel or nft may number or order otherwise."""
        bodies = [(kind, body) for one in objects for kind, body in one.items() if kind != "metainfo"]
        return sorted(_sorted([kind, {key: body[key] for key in body if key != "handle"}]) for kind, body in bodies)

    assert plain(listed) == plain(json.loads((FIREWALLS / f"{name}.json").read_text()))


def _sorted(value: Any) -> str:
    """JSON whose lists are in the order of their texts."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_sorted(value[key])}" for key in sorted(value)) + "}"
    return "[" + ",".join(sorted(map(_sorted, value))) + "]" if isinstance(value, list) else json.dumps(value)


# --- Prefixes, forwarding, bridges ------------------------------------------------------------------------------------


def test_a_network_that_has_the_uplinks_addresses_is_fatal_and_one_beside_them_is_not(lab: Lab) -> None:
    for netns, address in ((None, "100.64.7.2/24"), ("neighbour", "100.64.7.20/24"), ("neighbour", "100.64.0.1/24")):
        lab.run(["ip", "address", "add", address, "dev", "eth0"], netns=netns)
    assert bad(doctor(lab)) == []
    create(lab)
    lab.run(["ping", "-c", "1", "-W", "1", "100.64.7.20"])
    assert bad(doctor(lab)) == []
    lab.run(["ip", "address", "add", "100.64.0.9/24", "dev", "eth0"])  # as of a VPN that comes later
    [found] = bad(doctor(lab, status=1))
    assert found["subject"] == "prefixes"
    assert "100.64.0.0/24 (address 100.64.0.9 on eth0" in found["what"]
    assert "--transit" in found["remedy"]

    lab.vpcctl("destroy", "--all", "--yes")
    assert [one["severity"] for one in doctor(lab) if one["subject"] == "prefixes"] == ["warning"]
    lab.vpcctl("create-vpc", "--name", "shop", "--cidr", "10.0.0.0/16", "--transit", "100.127.0.0/16")
    assert bad(doctor(lab)) == []
    lab.run(["ping", "-c", "1", "-W", "1", "100.64.0.1"])


def test_a_route_of_any_table_into_a_vpcs_prefix_is_a_warning(lab: Lab) -> None:
    create(lab)
    lab.run(["ip", "route", "add", "10.0.77.0/24", "via", str(NEIGHBOUR), "table", "52"])
    [found] = bad(doctor(lab))
    assert (found["severity"], found["subject"]) == ("warning", "prefixes")
    assert "10.0.0.0/16 of VPC shop overlaps 10.0.77.0/24 (route to 10.0.77.0/24 on eth0)" in found["what"]


def test_forwarding_that_somebody_switched_off_is_fatal_and_repaired(lab: Lab) -> None:
    create(lab)
    lab.run(["sysctl", "-w", "net.ipv4.ip_forward=1"])
    lab.run(["sysctl", "-w", "net.ipv4.ip_forward=0"])
    [found] = bad(doctor(lab, status=1))
    assert (found["severity"], found["subject"]) == ("fatal", "forwarding")
    assert not answered(lab, PROBE, 0.5)
    follow(lab, found)
    assert bad(doctor(lab)) == []
    assert answered(lab, CANARY, 5)
    probes, canaries = arrived(lab)
    assert (probes, canaries > 0) == (0, True)


def test_a_host_without_a_default_route_is_warned_of(lab: Lab) -> None:
    lab.run(["ip", "route", "del", "default"])
    [found] = bad(doctor(lab))
    assert (found["severity"], found["subject"]) == ("warning", "forwarding")


def test_br_netfilter_that_came_later_is_fatal_and_repaired(lab: Lab) -> None:
    create(lab)
    if lab.run(["sysctl", "-w", "net.bridge.bridge-nf-call-iptables=1"], netns="shop-router", check=False).returncode:
        pytest.skip("br_netfilter is not loaded")
    [found] = bad(doctor(lab, status=1))
    assert (found["severity"], found["subject"]) == ("fatal", "br_netfilter")
    follow(lab, found)
    assert bad(doctor(lab)) == []


# --- Names, several ways out, Tailscale -------------------------------------------------------------------------------

# A name server that knows one address.
NAMES = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("192.0.2.53", 53))
print("ready", flush=True)
while True:
    asked, caller = server.recvfrom(512)
    end = asked.index(b"\\0", 12) + 5
    kind = asked[end - 4:end - 2]
    answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\\xc6\\x33\\x64\\x14" if kind == b"\\0\\1" else b""
    head = asked[:2] + b"\\x81\\x80\\0\\1" + (b"\\0\\1" if answer else b"\\0\\0") + b"\\0\\0\\0\\0"
    server.sendto(head + asked[12:end] + answer, caller)
"""
# The host's resolv.conf names the stub of systemd-resolved, whose own servers are known.  All of /etc is a copy.
STUB = """
mkdir -p /run/etc /run/systemd/resolve
cp -a /etc/. /run/etc
rm -f /run/etc/resolv.conf
echo nameserver 127.0.0.53 >/run/etc/resolv.conf
echo hosts: dns >/run/etc/nsswitch.conf
mount --bind /run/etc /etc
"""


def test_a_stub_resolver_is_told_and_the_remedy_gives_instances_its_servers(lab: Lab) -> None:
    lab.run(["ip", "address", "add", "192.0.2.53/32", "dev", "lo"], netns="internet")
    server = lab.popen([sys.executable, "-I", "-c", NAMES], netns="internet")
    assert server.stdout
    assert server.stdout.readline() == "ready\n"
    lab.run(["sh", "-ec", STUB])
    [found] = [one for one in doctor(lab) if one["subject"] == "name servers"]
    assert (found["severity"], found["commands"]) == ("note", [])
    create(lab)
    lookup = ["exec", "--vpc", "shop", "--subnet", "web", "--", "getent", "ahostsv4", "shop.example"]

    [found] = bad(doctor(lab))
    assert (found["subject"], found["commands"]) == ("name servers", [])
    assert "names only 127.0.0.53" in found["what"]
    assert "/etc/netns/<namespace>/resolv.conf" in found["remedy"]
    lab.run(["sh", "-c", "echo nameserver 192.0.2.53 >/run/systemd/resolve/resolv.conf"])
    [found] = bad(doctor(lab))
    lab.vpcctl(*lookup, status=2)
    follow(lab, found)
    assert bad(doctor(lab)) == []
    assert str(NEIGHBOUR) in lab.vpcctl(*lookup).stdout
    # Another instance is another namespace.
    lab.vpcctl("create-instance", "--vpc", "shop", "--subnet", "web", "--name", "web-2")
    [again] = bad(doctor(lab))
    assert [" /etc/netns/shop-web-2 " in command for command in again["commands"]] == [True]


# A second provider, and a machine behind it; the host sends packets of VPCs there by a mark.
TWO_WAYS = f"""
{machine_behind("wan2", "provider", "192.0.2.1/24", "192.0.2.2/24")}
ip -n provider address add 203.0.113.9/32 dev lo
ip -n provider link set lo up
ip route add default via 192.0.2.2 dev wan2 table 100
ip rule add fwmark 100 table 100
nft -f - <<END
table ip steering {{
    chain steer {{ type filter hook prerouting priority mangle; iifname "vpc-shop" meta mark set 100; }}
}}
END
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0
sysctl -qw net.ipv4.conf.wan2.rp_filter=1
"""


def test_a_strict_check_of_sources_beside_a_second_way_out_is_told(lab: Lab) -> None:
    lab.run(["sh", "-ec", TWO_WAYS])
    create(lab)
    server = lab.popen([sys.executable, "-I", "-c", GREET, str(PORT)], netns="provider")
    assert server.stdout
    assert server.stdout.readline() == "ready\n"

    def greeted() -> bool:
        return lab.python(TALK, "203.0.113.9", str(PORT), "1", netns="shop-web").stdout == "hello\n"

    [found] = bad(doctor(lab))
    assert (found["severity"], found["subject"]) == ("warning", "source checks")
    assert "rp_filter is strict (1) on wan2" in found["what"]
    assert not greeted()
    follow(lab, found)
    assert bad(doctor(lab)) == []
    assert greeted()
    lab.run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.wan2.rp_filter=0"])
    [again] = bad(doctor(lab))
    assert len(again["commands"]) == 2, "the larger of the link's value and that of all counts"


LINKED_TAILNET = machine_behind("tailscale0", "tailnet", "100.101.102.103/32", "100.70.0.1/10")
TAILNET = """
ip route add 100.70.0.1 dev tailscale0 table 52
ip rule add pref 5270 table 52
sysctl -qw net.ipv4.ip_forward=1
nft -f - <<END
table ip filter {
    chain INPUT { type filter hook input priority filter; jump ts-input; }
    chain FORWARD { type filter hook forward priority filter; jump ts-forward; }
    chain ts-input {
        iifname "lo" ip saddr 100.101.102.103 counter accept
        iifname != "tailscale0" ip saddr 100.64.0.0/10 counter drop
        iifname "tailscale0" counter accept
    }
    chain ts-forward {
        iifname "tailscale0" counter meta mark set meta mark and 0xff00ffff or 0x40000
        meta mark and 0xff0000 == 0x40000 counter accept
        oifname "tailscale0" ip saddr 100.64.0.0/10 counter drop
        oifname "tailscale0" counter accept
    }
}
END
"""


def test_tailscales_check_of_sources_is_told_with_another_transit_range_as_the_remedy(lab: Lab) -> None:
    lab.run(["sh", "-ec", LINKED_TAILNET + TAILNET])
    server = lab.popen([sys.executable, "-I", "-c", GREET, str(PORT)], netns="tailnet")
    assert server.stdout
    assert server.stdout.readline() == "ready\n"

    def told() -> list[Found]:
        return [one for one in bad(doctor(lab)) if one["subject"] == "foreign firewall"]

    def greeted() -> bool:
        return lab.python(TALK, "100.70.0.1", str(PORT), "0.5", netns="shop-web").stdout == "hello\n"

    create(lab)
    [found] = told()
    assert (found["severity"], found["commands"]) == ("warning", [])
    assert found["what"].startswith("Tailscale: whether packets from VPCs pass (tcp/443, udp/53, icmp of vpc-shop)")
    assert "table ip filter, chain ts-forward, handle " in found["what"]
    assert '`"transit": "192.168.255.0/24"`' in found["remedy"]
    assert not greeted()
    # As the remedy says.
    document = json.loads(lab.vpcctl("export").stdout)
    lab.vpcctl("destroy", "--all", "--yes")
    lab.vpcctl("apply", "-", input=json.dumps({**document, "transit": "192.168.255.0/24"}))
    assert told() == []
    assert greeted()
    assert answered(lab, CANARY, 5)


# --- Programs ---------------------------------------------------------------------------------------------------------


def test_a_library_that_cannot_be_loaded_is_fatal(lab: Lab) -> None:
    [found] = [one for one in doctor(lab) if one["subject"] == "libnftables"]
    library = os.path.realpath(found["what"].partition(",")[0])
    lab.run(["mount", "--bind", "/dev/null", library])  # in the lab's mounts alone
    [found] = bad(doctor(lab, status=1))
    assert (found["subject"], found["commands"]) == ("libnftables", ["apt-get install libnftables1"])
    lab.run(["umount", library])
    assert bad(doctor(lab)) == []


MISSING = """
import json
from vpcctl.doctor import kernel_features
from vpcctl.doctor.feature_batches import Batch
text = "table inet try { chain c { meta mind 1 accept; }; }"
absurd = Batch("reading minds", text, "CONFIG_NFT_MIND", "nft_mind", "9.9")
attempt = lambda: kernel_features._set("net/no/such", "1")
setting = kernel_features.Feature("the setting net/no/such", "because", attempt, "CONFIG_NO", "no")
good = kernel_features.needed()[0]
tried = [good, kernel_features.table_feature(absurd), setting]
print(json.dumps([one.to_json() for one in kernel_features.findings(tried)]))
"""


def test_a_feature_that_the_kernel_lacks_is_named_with_what_brings_it(module_lab: Lab) -> None:
    minds, setting = json.loads(module_lab.python(MISSING).stdout)
    assert (minds["severity"], minds["commands"]) == ("fatal", ["modprobe nft_mind"])
    assert minds["what"].startswith("reading minds does not work (")
    assert "CONFIG_NFT_MIND" in minds["remedy"]
    assert "Linux 9.9" in minds["remedy"]
    assert (setting["severity"], setting["commands"]) == ("fatal", ["modprobe no"])


FORGETFUL = """
import dataclasses, json
from vpcctl.resources.kinds import ProxyDelay
from vpcctl.kernel import linux
from vpcctl.doctor import kernel_features
linux.HANDLERS[ProxyDelay] = dataclasses.replace(linux.HANDLERS[ProxyDelay], ensure=lambda kernel, item: None)
print(json.dumps([one.to_json() for one in kernel_features.findings()]))
"""


def test_a_sample_vpc_is_made_and_compared_with_what_it_should_be(module_lab: Lab) -> None:
    findings = json.loads(module_lab.python(FORGETFUL).stdout)
    assert {one["severity"] for one in findings} == {"fatal"}
    forgotten = "in a sample VPC proxy delay of br-web in sample-router is different: is "
    assert any(one["what"].startswith(forgotten) for one in findings)


def test_denied_user_namespaces_are_told_with_the_setting_that_denies_them(lab: Lab) -> None:
    inner = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$0" -m vpcctl doctor --json'
    words = ["unshare", "--user", "--map-root-user", "--", "sh", "-ec", inner, sys.executable]
    findings = json.loads(lab.run(words, check=False).stdout)
    [found] = [one for one in findings if one["subject"] == "lab"]
    assert found["severity"] in ("warning", "note")
    assert found["commands"] == ["sysctl -w user.max_user_namespaces=15000"]


def test_networkmanager_and_networkd_are_seen_and_can_be_told(lab: Lab) -> None:
    lab.run(["mkdir", "-p", "/run/NetworkManager/conf.d", "/run/systemd/netif", "/run/systemd/network"])
    lab.run(["sh", "-c", "printf '[Match]\\nName=*\\n[Network]\\nDHCP=yes\\n' >/run/systemd/network/10-all.network"])
    manager, networkd = bad(doctor(lab))
    assert "NetworkManager is running" in manager["what"]
    assert "systemd-networkd manages the uplinks because of /run/systemd/network/10-all.network" in networkd["what"]
    # The commands write below /etc, which here is the real one; the same files count below /run.
    for found in (manager, networkd):
        command = found["commands"][0]
        assert " > /etc/" in command
        lab.run(["sh", "-ec", command.replace(" > /etc/", " > /run/")])
    assert bad(doctor(lab)) == []


# --- The record -------------------------------------------------------------------------------------------------------


def test_a_state_directory_that_is_open_to_others_is_shut_by_the_remedy(lab: Lab) -> None:
    create(lab)
    lab.run(["chmod", "0755", str(STATE_DIR)])
    [found] = bad(doctor(lab))
    follow(lab, found)
    assert bad(doctor(lab)) == []


@pytest.mark.parametrize("harm", ["rm {}", "echo x >{}"])
def test_a_lost_or_damaged_record_is_fatal_and_taken_back(lab: Lab, harm: str) -> None:
    create(lab)
    lab.run(["sh", "-ec", harm.format(STATE_DIR / "state.json")])
    [found] = bad(doctor(lab, status=1))
    assert (found["severity"], found["subject"]) == ("fatal", "state")
    follow(lab, found)
    assert bad(doctor(lab)) == []
    assert answered(lab, CANARY, 5)


ANOTHER_BOOT = """
import dataclasses, sys
from pathlib import Path
from vpcctl.engine.state import Store
with Store(Path(sys.argv[1])).locked() as writer:
    writer.save(dataclasses.replace(writer.load(), boot_id="another"))
"""


def test_a_machine_that_was_started_again_needs_repair(lab: Lab) -> None:
    create(lab)
    lab.python(ANOTHER_BOOT, str(STATE_DIR))
    gone = ("ip netns del shop-router", "ip netns del shop-web", "ip link del vpc-shop", "nft delete table inet vpcctl")
    for command in gone:
        lab.run(["sh", "-c", command], check=False)
    found = next(one for one in bad(doctor(lab, status=1)) if one["subject"] == "state")
    assert "rebooted" in found["what"]
    follow(lab, found)
    assert bad(doctor(lab)) == []
    assert answered(lab, CANARY, 5)


def test_objects_without_any_record_are_listed_with_the_commands_that_remove_them(lab: Lab) -> None:
    create(lab)
    lab.run(["ip", "netns", "add", "somebody-elses"])
    lab.run(["ip", "link", "add", "vpc-foreign", "type", "bridge"])
    lab.run(["sh", "-ec", f"rm -r {STATE_DIR} /run/vpcctl"])
    [found] = bad(doctor(lab))
    assert "with no record" in found["what"]
    for thing in ("link vpc-shop", "table inet vpcctl", "namespace shop-router", "namespace shop-web"):
        assert thing in found["what"]
    follow(lab, found)
    assert bad(doctor(lab)) == []
    assert lab.run(["ip", "netns"]).stdout.split() == ["somebody-elses"]
    assert "vpc-foreign" in lab.run(["ip", "link"]).stdout
    assert "vpc-shop" not in lab.run(["ip", "link"]).stdout
    assert lab.run(["nft", "list", "tables"]).stdout == ""


def test_two_states_on_one_machine_are_told_apart(lab: Lab) -> None:
    create(lab)
    [found] = bad(doctor(lab, env={"VPCCTL_STATE_DIR": "/run/another"}))
    assert "link vpc-shop" in found["what"]
    assert bad(doctor(lab)) == []


def test_the_words_for_people_have_what_why_and_the_commands(lab: Lab) -> None:
    load(lab, FIREWALLS / "docker.nft")
    result = lab.vpcctl("doctor", status=1)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("fatal: foreign firewall: Docker: ")
    assert lines[1].startswith("    why: ")
    assert lines[2].startswith("    remedy: ")
    assert lines[3].startswith("        ")
    assert "nothing is in the way" not in result.stdout
