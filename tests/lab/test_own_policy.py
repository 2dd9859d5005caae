"""The policy of a VPC itself with real packets: `create-vpc --closed`, counters and log lines that name its file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.machine import attempt, run_all, write
from tests.lab.test_log import Listening
from tests.lab.traffic import SEND, Station, eventually, reaches, silent, stations
from vpcctl.lab import HOST, INTERNET, Lab

WEB, DB = "shop-web", "shop-db"
TO_WEB, TO_DB = "10.0.1.2", "10.0.2.2"
SHOP = (
    "create-vpc --name shop --cidr 10.0.0.0/16 --closed",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
    "publish-port --vpc shop --instance web --protocol tcp --port 8080 --target-port 80",
)
ALL = {"default": {"ingress": "allow", "egress": "allow"}}
OWN = {
    "subnet": "*",
    "ingress": [
        {"action": "deny", "protocol": "udp", "port": 5001, "log": True},
        {"action": "allow", "protocol": "udp", "port": 5000},
    ],
    "default": {"ingress": "deny", "egress": "allow"},
}
DB_POLICY = {"subnet": "db", "ingress": [{"action": "allow", "protocol": "udp", "port": [5001, 5002]}]}


@pytest.fixture
def shop(lab: Lab) -> Lab:
    run_all(lab, SHOP)
    return lab


@pytest.fixture
def ends(shop: Lab) -> Iterator[tuple[Station, Station, Station]]:
    with stations(shop, WEB, DB, "internet") as (web, db, internet):
        for station in (web, db, internet):
            station.listen()
        yield web, db, internet


def applied(lab: Lab, name: str, document: dict[str, Any], *words: str) -> None:
    lab.vpcctl("apply-policy", "--vpc", "shop", *words, write(lab, name, document))


def open_ingress(lab: Lab, *subnets: str) -> None:
    """Have these subnets accept everything, by policies of their own."""
    for subnet in subnets:
        applied(lab, f"{subnet}.json", {"subnet": subnet, "ingress": [{"action": "allow"}]})


def test_a_closed_vpc_passes_nothing_until_a_policy_allows_it(
    shop: Lab, ends: tuple[Station, Station, Station]
) -> None:
    web, db, internet = ends
    ways = (
        (web, db, TO_DB, 5000, 5000),
        (db, web, TO_WEB, 5000, 5000),
        (web, internet, str(INTERNET), 5000, 5000),
        (internet, web, str(HOST), 8080, 80),
    )
    for sender, receiver, address, port, _ in ways:
        receiver.heard()
        sender.probe(address, port)
    time.sleep(0.3)
    # The receivers hear all of it once the policy of the VPC is another one, so they would have heard it before.
    assert not [one for station in ends for one in station.heard() if one.port in (5000, 80, 8)]
    said = shop.vpcctl("explain", "shop/web", "shop/db", "udp/5000", "--json", status=1)
    assert json.loads(said.stdout)["deciding"] == "(closed)#/default/egress"
    # Each gate of a subnet opens by the subnet's own policy alone.
    applied(shop, "web.json", {"subnet": "web", "egress": [{"action": "allow"}]})
    open_ingress(shop, "db")
    assert reaches(web, db, TO_DB, 5000, "udp")
    assert reaches(web, internet, str(INTERNET), 5000, "udp")
    found = silent(db, web, TO_WEB, 5000, lambda: reaches(web, db, TO_DB, 5000, "udp") or True)
    assert found == []
    assert json.loads(shop.vpcctl("show-policy", "--vpc", "shop", "--json").stdout)[0] == {
        "subnet": "*",
        "file": "(closed)",
        "policy": {"default": {"ingress": "deny", "egress": "deny"}},
    }
    applied(shop, "own.json", {"subnet": "*", **ALL})
    for sender, receiver, address, port, at in ways:
        assert reaches(sender, receiver, address, port, "tcp", at=at), (address, port)
    shop.vpcctl("clear-policy", "--vpc", "shop", "--subnet", "*")
    assert reaches(db, web, TO_WEB, 5000, "udp")


def test_its_rules_count_at_every_gate_and_its_log_lines_name_its_file(shop: Lab) -> None:
    run_all(shop, ("create-subnet --vpc shop --name app --cidr 10.0.3.0/24 --type private",))
    applied(shop, "own.json", OWN)
    applied(shop, "db.json", DB_POLICY)
    log = Listening(shop)
    try:
        assert log.complaint() == "listening to VPC shop; Ctrl-C ends it\n"

        def told() -> bool:
            shop.python(SEND, "5001", "1", "1", netns=WEB)
            return bool(log.entries(0.2))

        assert eventually(told)
        log.entries(2)
        before = counted(shop, "*")
        shop.python(SEND, "5001", "1", "1", netns=WEB)
        shop.python(SEND.replace(TO_DB, "10.0.3.2"), "5001", "1", "1", netns=WEB)
        assert [one["prefix"] for one in log.entries(3)] == ["vpcctl shop deny /run/own.json#/ingress/0"] * 2
    finally:
        log.process.kill()
        log.process.wait()
    shop.python(SEND, "5000", "3", "2", netns=WEB)
    shop.python(SEND, "5002", "1", "1", netns=WEB)
    # What no rule of the VPC matches falls to the default of the VPC at one gate, and of the subnet at the other.
    shop.python(SEND.replace(TO_DB, "10.0.3.2"), "5009", "4", "1", netns=WEB)
    shop.python(SEND, "5009", "5", "1", netns=WEB)
    assert [now - was for now, was in zip(counted(shop, "*"), before, strict=True)] == [2, 3, 4]
    assert counted(shop, "db") == [1, 5]
    shown = shop.vpcctl("show-policy", "--vpc", "shop", "--subnet", "*", "--hits").stdout
    assert shown.startswith("VPC: /run/own.json\n")


def counted(lab: Lab, subnet: str) -> list[int]:
    said = lab.vpcctl("show-policy", "--vpc", "shop", "--subnet", subnet, "--hits", "--json").stdout
    [found] = json.loads(said)
    assert found["subnet"] == subnet
    hits: list[int] = found["hits"]["ingress"]
    return hits


def test_two_policies_from_one_place_count_apart(shop: Lab) -> None:
    """Standard input has one name, whatever is applied from it."""
    run_all(shop, ("delete-subnet --vpc shop --name db", "create-subnet --vpc shop --name db --cidr 10.0.2.0/24"
                   " --type private"))  # fmt: skip
    for document in (OWN, DB_POLICY):
        shop.vpcctl("apply-policy", "--vpc", "shop", "-", input=json.dumps(document))
    shop.python(SEND, "5001", "2", "1", netns=WEB)
    shop.python(SEND, "5002", "3", "1", netns=WEB)
    assert counted(shop, "*") == [2, 0, 0]
    assert counted(shop, "db") == [3, 0]


def test_a_subnet_that_is_made_later_is_judged_by_it_from_its_first_packet(shop: Lab) -> None:
    applied(shop, "own.json", OWN)
    run_all(shop, ("create-subnet --vpc shop --name late --cidr 10.0.4.0/24 --type private",))
    with stations(shop, WEB, "shop-late") as (web, late):
        late.listen()
        assert reaches(web, late, "10.0.4.2", 5000, "udp")
        assert not silent(web, late, "10.0.4.2", 5001, lambda: reaches(web, late, "10.0.4.2", 5000, "udp"), ("udp",))
        assert not silent(web, late, "10.0.4.2", 5009, lambda: reaches(web, late, "10.0.4.2", 5000, "udp"))


def test_a_wrong_policy_and_the_same_one_again_change_nothing(shop: Lab) -> None:
    before = json.loads(shop.vpcctl("show-ruleset", "--vpc", "shop", "--json").stdout)
    wrong = attempt(shop, "apply-policy", "--vpc", "shop", write(shop, "wrong.json", {**OWN, "ingress": [{}]}))
    assert wrong.returncode == 2
    assert json.loads(shop.vpcctl("show-ruleset", "--vpc", "shop", "--json").stdout) == before
    applied(shop, "own.json", OWN)
    again = attempt(shop, "apply-policy", "--vpc", "shop", "/run/own.json")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (0, "VPC shop: unchanged (2 rules)")
    status = attempt(shop, "status")
    assert status.returncode == 0, status.stdout
