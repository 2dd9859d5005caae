"""What a command costs, counted instead of timed: requests to the kernel, namespaces entered, files, bytes, modules.

The counts of each command stand in COSTS.  They follow the change alone: beside many other VPCs they are the same,
except for the entry that each VPC has in the head of the record.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.lab.warm import Warm
from vpcctl.engine.state import COPIES
from vpcctl.kernel.verified import NOTES
from vpcctl.lab import STATE_DIR, Lab

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace(1) is not installed")

OTHERS = 12
# Bytes that a change may write for each other VPC: its entry in the head, twice, and in the two copies.
ENTRY = 4 * 440
TRACED = "trace=sendto,sendmsg,setns,fsync,write,pwrite64,openat"
# A file of the record, of its copy, or of the history, as strace prints descriptors.
RECORD = re.compile(rf"<({STATE_DIR}|{COPIES})/(?!{NOTES.name})[^>]*(json|part|log)>")
HTTP = {"ingress": [{"action": "allow", "protocol": "tcp", "port": [80, 443]}]}


@dataclass(frozen=True, slots=True)
class Cost:
    """Upper bounds: requests by rtnetlink, messages to nftables and connection tracking, setns(2), fsync(2).

    `files` are the files of the record that are opened for reading, `written` the bytes written to the record and its
    copy.
    """

    requests: int
    firewall: int
    entered: int
    synced: int
    files: int
    written: int


# Command and its standard input; what it costs.
COSTS = {
    "list-vpcs": ("", Cost(0, 0, 0, 0, 2, 0)),
    "explain shop/web shop/db tcp/80": ("", Cost(3, 0, 0, 0, 2, 0)),
    "create-subnet --vpc shop --name new --cidr 10.0.9.0/24 --type private": ("", Cost(41, 80, 24, 7, 3, 30_000)),
    "create-instance --vpc shop --subnet web --name more": ("", Cost(33, 80, 20, 7, 3, 33_000)),
    "delete-instance --vpc shop --name more": ("", Cost(19, 80, 8, 9, 3, 57_000)),
    # Checks the sockets of the host and foreign tables for conflicts.
    "publish-port --vpc shop --instance web --protocol tcp --port 8080": ("", Cost(19, 185, 8, 7, 3, 30_000)),
    "apply-policy -": (json.dumps({"vpc": "shop", "subnet": "db", **HTTP}), Cost(17, 80, 8, 7, 3, 30_000)),
}
# Commands that print something about each VPC, and so read it.
SHOW_ALL = {"list-vpcs"}


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
        elif call in ("write", "pwrite64") and RECORD.search(line):
            found["written"] += int(line.rpartition(" = ")[2])
        elif call == "openat" and RECORD.search(line) and "O_RDONLY" in line and "O_DIRECTORY" not in line:
            found["files"] += 1
    return Cost(found["requests"], found["firewall"], found["setns"], found["fsync"], found["files"], found["written"])


@pytest.fixture(scope="module")
def measured(module_lab: Lab) -> dict[str, tuple[Cost, Cost]]:
    """The cost of each command, alone and beside other VPCs."""
    found: dict[int, dict[str, Cost]] = {}
    with Warm(module_lab) as run:
        for others in (0, OTHERS):
            run("apply --prune --yes -", input=json.dumps(environment(others)))
            found[others] = {
                words: counted(run(words, input=text, strace=["-y", "-e", TRACED]).calls)
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
    if words in SHOW_ALL:
        beside = dataclasses.replace(beside, files=alone.files)
    assert dataclasses.replace(beside, written=0) == dataclasses.replace(alone, written=0)
    assert beside.written - alone.written <= OTHERS * ENTRY


def test_a_change_beside_thousands_of_rules_writes_them_once(module_lab: Lab) -> None:
    """Only the command that brings the rules writes them; the others name the file that has them."""
    rule = {"action": "allow", "protocol": "tcp", "source": "192.0.2.0/24"}
    rules = [{**rule, "port": 1 + number} for number in range(3000)]
    change = "create-nat-gateway --vpc shop --subnet db"
    with Warm(module_lab) as run:
        run("apply --prune --yes -", input=json.dumps(environment(0)))
        few = counted(run(change, strace=["-y", "-e", TRACED]).calls)
        run("delete-nat-gateway --vpc shop --subnet db")
        bringing = json.dumps({"vpc": "shop", "subnet": "db", "ingress": rules})
        first = counted(run("apply-policy -", input=bringing, strace=["-y", "-e", TRACED]).calls)
        many = counted(run(change, strace=["-y", "-e", TRACED]).calls)
        run("destroy --all --yes")
    size = len(json.dumps(rules))
    assert size / 2 < first.written - few.written < 2.5 * size, "written once, and once to the copy"
    assert many.written - few.written < size / 50
