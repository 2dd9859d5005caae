"""What users of the first `vpcctl` do with it, from their commands and files to the packets that arrive or do not."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from itertools import permutations

import pytest

from tests.lab.machine import apply, run_all, write
from tests.lab.traffic import Station, eventually, reaches, silent, stations
from vpcctl.lab import INTERNET, Lab

PROTOCOLS = ("tcp", "udp", "icmp")
PORT = 5555
ICMP_ECHO_REPLY = 0
WEB, DB = "shop-web", "shop-db"
ADDRESSES = {WEB: "10.0.1.2", DB: "10.0.2.2"}
# A subnet in each row: VPC, name, prefix.  `north` and `south` have the same prefix, and private subnets alone.
NETWORK = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
    "create-vpc --name billing --cidr 10.9.0.0/16",
    "create-subnet --vpc billing --name ledger --cidr 10.9.1.0/24 --type public",
    "create-vpc --name audit --cidr 10.8.0.0/16",
    "create-subnet --vpc audit --name log --cidr 10.8.1.0/24 --type private",
    "create-vpc --name north --cidr 172.16.0.0/16",
    "create-subnet --vpc north --name one --cidr 172.16.1.0/24 --type private",
    "create-subnet --vpc north --name two --cidr 172.16.2.0/24 --type private",
    "create-vpc --name south --cidr 172.16.0.0/16",
    "create-subnet --vpc south --name one --cidr 172.16.1.0/24 --type private",
    "create-subnet --vpc south --name two --cidr 172.16.2.0/24 --type private",
    "create-instance --vpc south --subnet two --name three",
)
TALK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7), 5) as line:
    line.sendall(b"hello\\n")
    assert line.recv(99) == b"hello\\n"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
    mouth.settimeout(5)
    mouth.sendto(b"hello", (sys.argv[1], 53))
    words, caller = mouth.recvfrom(99)
    assert words.endswith(b"hello") and caller == (sys.argv[1], 53), (words, caller)
"""


@pytest.fixture(scope="module")
def network(module_lab: Lab) -> Lab:
    """The VPCs above; tests put back what they change."""
    run_all(module_lab, NETWORK)
    return module_lab


@contextlib.contextmanager
def listening(lab: Lab, *namespaces: str) -> Iterator[list[Station]]:
    """Stations that note what comes in."""
    with stations(lab, *namespaces) as made:
        for station in made:
            station.listen()
        yield made


def assert_reach(sender: Station, receiver: Station, address: str, port: int = PORT) -> None:
    """New flows of all protocols arrive."""
    missing = [protocol for protocol in PROTOCOLS if not reaches(sender, receiver, address, port, protocol)]
    assert not missing, f"{sender.netns} to {address} in {receiver.netns}: {missing} did not arrive"


def assert_silent(sender: Station, receiver: Station, address: str, friend: Station, port: int = PORT) -> None:
    """New flows of no protocol arrive, while one from `friend` to the same address does."""
    found = silent(sender, receiver, address, port, lambda: reaches(friend, receiver, address, port, "udp"))
    assert found == []


def assert_internet(lab: Lab, namespace: str) -> None:
    """The internet answers to ping, TCP and UDP."""
    lab.run(["ping", "-n", "-c", "1", "-W", "5", str(INTERNET)], netns=namespace)
    lab.python(TALK, str(INTERNET), netns=namespace)


# --- Subnets, the internet --------------------------------------------------------------------------------------------


def test_subnets_of_a_vpc_reach_each_other_and_their_gateways(network: Lab) -> None:
    with listening(network, WEB, DB) as (web, db):
        assert_reach(web, db, ADDRESSES[DB])
        assert_reach(db, web, ADDRESSES[WEB])
    for namespace, gateway in ((WEB, "10.0.1.1"), (DB, "10.0.2.1"), (WEB, "10.0.2.1")):
        network.run(["ping", "-n", "-c", "1", "-W", "5", gateway], netns=namespace)


def test_a_public_subnet_reaches_the_internet_and_a_private_one_only_with_a_nat_gateway(network: Lab) -> None:
    with listening(network, WEB, DB, "internet") as (web, db, internet):
        assert_internet(network, WEB)
        assert_silent(db, internet, str(INTERNET), web)
        network.vpcctl("create-nat-gateway", "--vpc", "shop", "--subnet", "db")
        assert_internet(network, DB)
        network.vpcctl("delete-nat-gateway", "--vpc", "shop", "--subnet", "db")
        assert_silent(db, internet, str(INTERNET), web)
        assert_internet(network, WEB)


def test_the_internet_sees_the_host_and_never_a_private_address(network: Lab) -> None:
    with listening(network, WEB, "internet") as (web, internet):
        internet.heard()
        web.probe(str(INTERNET), PORT, PROTOCOLS)
        found: list[str] = []
        assert eventually(lambda: len(found.extend(one.source for one in internet.heard()) or found) >= 3)
        assert set(found) == {"198.51.100.2"}


# --- VPCs -------------------------------------------------------------------------------------------------------------


def test_vpcs_are_silent_to_each_other(network: Lab) -> None:
    names = {"shop-web": "10.0.1.2", "billing-ledger": "10.9.1.2", "audit-log": "10.8.1.2"}
    with listening(network, *names) as found, stations(network, DB) as (friend,):
        there = dict(zip(names, found, strict=True))
        for sender, receiver in permutations(names, 2):
            if receiver == WEB:
                assert_silent(there[sender], there[receiver], names[receiver], friend)
            else:
                heard = there[receiver]
                found_there = silent(
                    there[sender], heard, names[receiver], PORT, lambda heard=heard: hears_its_gateway(network, heard)
                )
                assert found_there == []


def hears_its_gateway(lab: Lab, station: Station) -> bool:
    """The canary where nobody else may reach a station: it hears the answer to its own ping."""
    gateway = {"billing-ledger": "10.9.1.1", "audit-log": "10.8.1.1"}[str(station.netns)]
    lab.run(["ping", "-n", "-c", "1", "-W", "5", gateway], netns=station.netns)
    return any((one.protocol, one.port) == ("icmp", ICMP_ECHO_REPLY) for one in station.heard())


def test_vpcs_of_the_same_prefix_and_private_subnets_are_worlds_of_their_own(network: Lab) -> None:
    names = ("north-one", "north-two", "south-one", "south-two", "south-three")
    with listening(network, *names) as (north_one, north_two, south_one, south_two, south_three):
        assert_reach(north_one, north_two, "172.16.2.2")
        assert south_two.heard() == []
        assert_reach(south_one, south_two, "172.16.2.2")
        assert north_two.heard() == []
        # An address that only the other one has.
        assert_silent(north_one, south_three, "172.16.2.3", south_one)


def test_peered_vpcs_reach_each_other_and_unpeered_ones_are_silent_again(network: Lab) -> None:
    with listening(network, WEB, DB, "billing-ledger", "audit-log") as (web, db, ledger, log):
        network.vpcctl("create-peering", "--vpc1", "shop", "--vpc2", "billing")
        network.vpcctl("create-peering", "--vpc1", "billing", "--vpc2", "audit")
        for one in (web, db):
            assert_reach(one, ledger, "10.9.1.2")
            assert_reach(ledger, one, ADDRESSES[str(one.netns)])
        assert_reach(log, ledger, "10.9.1.2")
        # Not by way of the one in the middle.
        assert_silent(web, log, "10.8.1.2", ledger)
        assert_silent(log, web, ADDRESSES[WEB], db)
        network.vpcctl("delete-peering", "--vpc1", "billing", "--vpc2", "shop")
        assert_silent(web, ledger, "10.9.1.2", log)
        assert_silent(ledger, web, ADDRESSES[WEB], db)
        network.vpcctl("delete-peering", "--vpc1", "billing", "--vpc2", "audit")


# --- Policies ---------------------------------------------------------------------------------------------------------


def test_a_denied_port_is_silent_and_the_others_are_open(network: Lab) -> None:
    rules = [
        {"port": 80, "protocol": "tcp", "action": "allow"},
        {"port": 22, "protocol": "tcp", "action": "deny"},
        {"port": 53, "protocol": "udp", "action": "allow"},
    ]
    with listening(network, DB, WEB) as (db, web):
        for port in (22, 80):
            assert reaches(db, web, "10.0.1.2", port, "tcp")
        apply(network, {"subnet": "10.0.1.0/24", "ingress": rules}, "--vpc", "shop")
        assert silent(db, web, "10.0.1.2", 22, lambda: reaches(db, web, "10.0.1.2", 80, "tcp")) == []
        assert reaches(db, web, "10.0.1.2", 53, "udp")
        network.vpcctl("clear-policy", "--vpc", "shop", "--subnet", "web")
        for port in (22, 80):
            assert reaches(db, web, "10.0.1.2", port, "tcp")


def test_three_tiers_reach_only_the_next_one(lab: Lab) -> None:
    tiers = {"web": "10.0.1.2", "app": "10.0.2.2", "db": "10.0.3.2"}
    run_all(
        lab,
        [
            "create-vpc --name shop --cidr 10.0.0.0/16",
            *(f"create-subnet --vpc shop --name {name} --cidr {address[:-1]}0/24 --type {kind}"
              for (name, address), kind in zip(tiers.items(), ("public", "private", "private"), strict=True)),
            "publish-port --vpc shop --instance web --port 80",
        ],
    )  # fmt: skip
    allowed = {("web", "app"): 8080, ("app", "db"): 5432}
    policies = [
        {"subnet": "web", "ingress": [{"action": "allow", "protocol": "tcp", "port": 80}]},
        *(
            {
                "subnet": to,
                "ingress": [{"action": "allow", "protocol": "tcp", "port": port, "source": f"subnet:{origin}"}],
            }
            for (origin, to), port in allowed.items()
        ),
    ]
    files = [write(lab, f"{policy['subnet']}.json", policy) for policy in policies]
    lab.vpcctl("apply-policy", "--vpc", "shop", *files)
    with listening(lab, *(f"shop-{name}" for name in tiers)) as found, stations(lab, "internet") as (internet,):
        there = dict(zip(tiers, found, strict=True))
        assert reaches(internet, there["web"], "198.51.100.2", 80, "tcp")
        for origin, to in permutations(tiers, 2):
            open_port = 80 if to == "web" else allowed.get((origin, to))
            friend = {"web": "db", "app": "web", "db": "app"}[to]
            port = 80 if to == "web" else allowed[friend, to]
            for tried in (80, 8080, 5432):
                if tried == open_port:
                    assert reaches(there[origin], there[to], tiers[to], tried, "tcp"), (origin, to, tried)
                    continue
                heard = silent(
                    there[origin],
                    there[to],
                    tiers[to],
                    tried,
                    lambda friend=friend, to=to, port=port: reaches(there[friend], there[to], tiers[to], port, "tcp"),
                )
                assert heard == [], (origin, to, tried)


# --- The commands and files of old ------------------------------------------------------------------------------------

OLD_POLICY = {
    "subnet": "10.0.1.0/24",
    "ingress": [
        {"port": 80, "protocol": "tcp", "action": "allow"},
        {"port": 8080, "protocol": "tcp", "action": "allow"},
        {"port": 22, "protocol": "tcp", "action": "deny"},
    ],
}
OLD_FAMILY = [
    {
        "vpc": "blue",
        "subnet": "private",
        "description": "database",
        "ingress": [{"port": "*", "protocol": "TCP", "action": "allow", "source": "10.0.1.0/24", "description": "web"}],
        "egress": [{"port": "*", "protocol": "any", "action": "allow", "destination": "10.0.0.0/16"}],
    },
    {"vpc": "blue", "subnet": "public", "ingress": [{"port": 8000, "protocol": "tcp", "action": "deny"}]},
]
OLD_SCRIPT = f"""
set -e
never() {{ if "$@" >/dev/null; then echo "WRONG: $*"; fi; }}
vpcctl create-vpc --name blue --cidr 10.0.0.0/16
vpcctl create-subnet --vpc blue --name public --cidr 10.0.1.0/24 --type public
vpcctl create-subnet --vpc blue --name private --cidr 10.0.2.0/24 --type private
vpcctl list-vpcs | grep blue
vpcctl list-subnets --vpc blue | grep private
ip netns exec blue-private ping -n -c 1 -W 5 10.0.1.2 >/dev/null
ip netns exec blue-public ping -n -c 1 -W 5 10.0.1.1 >/dev/null
ip netns exec blue-public ping -n -c 1 -W 5 {INTERNET} >/dev/null
never ip netns exec blue-private ping -n -c 1 -W 0.3 {INTERNET}

vpcctl exec --vpc blue --subnet public {sys.executable} -m http.server 8000 >/dev/null 2>&1 &
vpcctl exec --vpc blue --subnet public -- {sys.executable} -m http.server 8080 >/dev/null 2>&1 &
for port in 8000 8080; do
    ip netns exec blue-private curl -sS --retry 30 --retry-delay 1 --retry-connrefused --max-time 60 -o /dev/null \
        http://10.0.1.2:$port/
done
vpcctl apply-policy --vpc blue --file /run/old.json
ip netns exec blue-private curl -sS --max-time 10 -o /dev/null http://10.0.1.2:8080/
never ip netns exec blue-private curl -s --max-time 0.5 -o /dev/null http://10.0.1.2:8000/
vpcctl apply-policy /run/family.json
never ip netns exec blue-private curl -s --max-time 0.5 -o /dev/null http://10.0.1.2:8000/
vpcctl clear-policy --vpc blue --subnet public
vpcctl exec --vpc blue --subnet private curl -sS --max-time 10 -o /dev/null http://10.0.1.2:8000/

vpcctl create-vpc --name green --cidr 10.1.0.0/16
vpcctl create-subnet --vpc green --name public --cidr 10.1.1.0/24 --type public
never ip netns exec green-public ping -n -c 1 -W 0.3 10.0.1.2
vpcctl create-peering --vpc1 blue --vpc2 green
ip netns exec green-public ping -n -c 1 -W 5 10.0.1.2 >/dev/null
ip netns exec blue-public ping -n -c 1 -W 5 10.1.1.2 >/dev/null
vpcctl delete-peering --vpc1 blue --vpc2 green
never ip netns exec green-public ping -n -c 1 -W 0.3 10.0.1.2

kill %1 %2
vpcctl delete-subnet --vpc blue --name public
vpcctl delete-subnet --vpc blue --name private
vpcctl delete-vpc --name blue
vpcctl delete-subnet --vpc green --name public
vpcctl delete-vpc --name green
echo left: $(ip netns list) $(ip link show type bridge) $(ip -br link | grep vpc) $(nft list ruleset)
"""


def test_commands_and_files_of_old_work_unchanged_and_leave_nothing(lab: Lab) -> None:
    write(lab, "old.json", OLD_POLICY)
    write(lab, "family.json", OLD_FAMILY)
    done = lab.run(["bash", "-c", OLD_SCRIPT], check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("blue ")
    assert said[1].startswith("private ")
    assert [line for line in said if line.startswith("WRONG")] == []
    assert said[-1] == "left:"
    assert json.loads(lab.vpcctl("list-vpcs", "--json").stdout) == []
