"""What a command costs, counted instead of timed: requests to the kernel, namespaces entered, files, bytes, modules.

The counts of each command stand in COSTS.  They follow the change alone: beside many other VPCs they are the same,
except for the record, which is written as a whole.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.lab.warm import Warm
from vpcctl.lab import Lab

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace(1) is not installed")

OTHERS = 12
HTTP = {"ingress": [{"action": "allow", "protocol": "tcp", "port": [80, 443]}]}


@dataclass(frozen=True, slots=True)
class Cost:
    """At most so many: requests by rtnetlink, messages to nftables and connection tracking, setns(2), fsync(2)."""

    requests: int
    firewall: int
    entered: int
    synced: int


# Command and its standard input; what it costs.
COSTS = {
    "list-vpcs": ("", Cost(0, 0, 0, 0)),
    "explain shop/web shop/db tcp/80": ("", Cost(3, 0, 0, 0)),
    "create-subnet --vpc shop --name new --cidr 10.0.9.0/24 --type private": ("", Cost(38, 80, 18, 6)),
    "create-instance --vpc shop --subnet web --name more": ("", Cost(31, 80, 14, 6)),
    "delete-instance --vpc shop --name more": ("", Cost(19, 80, 8, 6)),
    "publish-port --vpc shop --instance web --protocol tcp --port 8080": ("", Cost(14, 140, 8, 6)),
    "apply-policy -": (json.dumps({"vpc": "shop", "subnet": "db", **HTTP}), Cost(17, 80, 8, 6)),
}


def environment(others: int) -> dict[str, object]:
    names = ["shop", *(f"other-{number}" for number in range(others))]
    return {
        "vpcs": [
            {
                "name": name,
                "cidr": f"10.{number}.0.0/16",
                "subnets": [
                    {"name": "web", "cidr": f"10.{number}.1.0/24", "type": "public"},
                    {"name": "db", "cidr": f"10.{number}.2.0/24", "type": "private"},
                ],
            }
            for number, name in enumerate(names)
        ]
    }


def counted(calls: str) -> Cost:
    """What strace's log tells."""
    found: Counter[str] = Counter()
    for line in calls.splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match is None or "= -1 E" in line:
            continue
        call = match[1]
        if call in ("sendto", "sendmsg"):
            found["requests" if re.search(r"RTM_|nlmsg_type=0x[0-9a-f]{1,2}\b", line) else "firewall"] += 1
        elif call in ("setns", "fsync"):
            found[call] += 1
    return Cost(found["requests"], found["firewall"], found["setns"], found["fsync"])


@pytest.fixture(scope="module")
def measured(module_lab: Lab) -> dict[str, tuple[Cost, Cost]]:
    """The cost of each command, alone and beside other VPCs."""
    found: dict[int, dict[str, Cost]] = {}
    with Warm(module_lab) as run:
        for others in (0, OTHERS):
            run("apply --prune -", input=json.dumps(environment(others)))
            found[others] = {
                words: counted(run(words, input=text, strace=["-e", "trace=sendto,sendmsg,setns,fsync"]).calls)
                for words, (text, _) in COSTS.items()
            }
            run("destroy --all --yes")
    return {words: (found[0][words], found[OTHERS][words]) for words in COSTS}


@pytest.mark.parametrize("words", COSTS)
def test_a_command_costs_no_more_than_before(measured: dict[str, tuple[Cost, Cost]], words: str) -> None:
    alone, _ = measured[words]
    most = COSTS[words][1]
    over = [name for name in Cost.__slots__ if getattr(alone, name) > getattr(most, name)]
    assert not over, f"{words}: {alone}, at most {most}"


@pytest.mark.parametrize("words", COSTS)
def test_a_command_costs_the_same_beside_many_vpcs(measured: dict[str, tuple[Cost, Cost]], words: str) -> None:
    alone, beside = measured[words]
    assert beside == alone
