"""Many writers at once: each is done or told why not as if they had come one by one; readers wait for nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.machine import run_all, seen
from tests.lab.traffic import eventually
from tests.lab.warm import Warm
from vpcctl.lab import STATE_DIR, Lab

WRITERS = 16

# Every writer is a process of its own: a fork that begins when all are there, and runs one command after the other.
AT_ONCE = """
import io, json, os, sys
import vpcctl.cli.instance_commands, vpcctl.cli.peering_commands, vpcctl.cli.policy_commands
import vpcctl.cli.subnet_commands, vpcctl.cli.vpc_commands, vpcctl.documents.binding, vpcctl.engine.reconciler
import vpcctl.kernel.linux, vpcctl.model.operations
from vpcctl.cli import main

def write(commands):
    answers = []
    for words, given in commands:
        while True:  # on a busy machine the turn may not come within a command's patience; then it is asked again
            sys.stdin, sys.stdout, sys.stderr = io.StringIO(given), io.StringIO(), io.StringIO()
            try:
                main(words.split())
            except SystemExit as end:
                answer = [words, end.code, sys.stderr.getvalue()]
            if answer[1] != 6 or " is locked by " not in answer[2]:
                break
        answers.append(answer)
    return answers

gate, opener = os.pipe()
writers = []
for commands in json.load(sys.stdin):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(opener)
        os.read(gate, 1)  # until nobody holds the other end
        answers = write(commands)
        with os.fdopen(writing, "w") as mouth:
            json.dump(answers, mouth)
        os._exit(0)
    os.close(writing)
    writers.append((child, reading))
os.close(opener)
found = []
for child, reading in writers:
    with os.fdopen(reading) as heard:
        found.append(json.loads(heard.read() or "null"))
    os.waitpid(child, 0)
print(json.dumps(found))
"""
# Take the lock as a command would, say so, and keep it until standard input ends.
HOLD = """
import pathlib, sys
from vpcctl.engine.state import Store
sys.argv = ["vpcctl", "create-vpc", "--name"]
with Store(pathlib.Path(sys.stdin.readline().strip())).locked():
    print("held", flush=True)
    sys.stdin.read()
"""
# A change by somebody who has less patience than commands have.
HASTY = """
import pathlib, sys
from vpcctl.model import operations
from vpcctl.engine import reconciler
from vpcctl.errors import VpcctlError
from vpcctl.kernel.linux import LinuxKernel
from vpcctl.documents.fields import parse_prefix
from vpcctl.engine.state import Store

class Hasty(Store):
    def locked(self, patience=0.3):
        return super().locked(patience)

try:
    prefix = parse_prefix("10.77.0.0/16")
    store = Hasty(pathlib.Path(sys.argv[1]))
    reconciler.change(store, LinuxKernel(), lambda state: operations.create_vpc(state.world, "hasty", prefix))
except VpcctlError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command of a writer ended."""

    words: str
    status: int
    complaint: str


def at_once(lab: Lab, writers: list[list[tuple[str, Any]]]) -> list[list[Answer]]:
    """Run all writers' commands, each with a document on its standard input; their answers."""
    given = json.dumps([[(words, json.dumps(document)) for words, document in commands] for commands in writers])
    answers = json.loads(lab.python(AT_ONCE, input=given, timeout=300).stdout)
    return [[Answer(*one) for one in found] for found in answers]


@pytest.fixture
def run(module_lab: Lab) -> Iterator[Warm]:
    with Warm(module_lab) as warm:
        yield warm
        warm("destroy --all --yes")


# --- Sixteen at once --------------------------------------------------------------------------------------------------

BUILD = (
    "create-vpc --name hub --cidr 10.200.0.0/16",
    "create-subnet --vpc hub --name old --cidr 10.200.1.0/24 --type private",
    "create-vpc --name doomed --cidr 10.201.0.0/16",
)


def commands_of(number: int) -> list[tuple[str, Any]]:
    """One writer's: what nobody else touches, what all want to make or to remove, and what is torn down meanwhile."""
    own, part = f"w{number}", {"ingress": [{"action": "allow", "protocol": "tcp", "port": 1000 + number}]}
    return [
        (f"create-vpc --name {own} --cidr 10.{number}.0.0/16", None),
        ("create-vpc --name wanted --cidr 10.202.0.0/16", None),
        (f"create-subnet --vpc {own} --name s --cidr 10.{number}.1.0/24 --type private", None),
        (f"create-subnet --vpc doomed --name s{number} --cidr 10.201.{number}.0/24 --type private", None),
        ("delete-subnet --vpc hub --name old", None),
        (f"create-peering --vpc1 {own} --vpc2 hub", None),
        ("delete-vpc --name doomed --cascade" if number % 2 else f"create-peering --vpc1 {own} --vpc2 doomed", None),
        (f"apply-policy --vpc {own} --subnet s -", part),
    ]


def test_sixteen_writers_are_as_if_they_came_one_by_one(module_lab: Lab, run: Warm) -> None:
    run_all(module_lab, BUILD)
    answers = at_once(module_lab, [commands_of(number) for number in range(WRITERS)])
    every = [answer for found in answers for answer in found]
    assert len(every) == 8 * WRITERS
    # What is a writer's own is done, always.
    for number, found in enumerate(answers):
        own = [answer for answer in found if f"w{number} " in f"{answer.words} " and "doomed" not in answer.words]
        assert len(own) == 4
        assert [answer for answer in own if answer.status != 0] == []
    assert one_of(every, "create-vpc --name wanted") == {
        "VPC wanted exists already; choose another name, or `vpcctl show-vpc --name wanted`"
    }
    [missed] = one_of(every, "delete-subnet --vpc hub")
    assert missed.startswith("subnet 'old' not found in VPC hub; known subnets: none")
    # After it was deleted, by one of them, there was no such VPC for anybody.
    for words in one_of(every, "delete-vpc --name doomed"):
        assert words.startswith("VPC 'doomed' not found; known VPCs: ")
    for answer in every:
        if "doomed" in answer.words and answer.status != 0:
            assert (answer.status, "VPC 'doomed' not found" in answer.complaint) == (4, True), answer
    assert Counter(answer.status for answer in every).keys() <= {0, 4}
    _assert_everything_acknowledged(module_lab, run)


def one_of(answers: list[Answer], words: str) -> set[str]:
    """What was said to those who came too late with a command that can be done once; once it was done."""
    found = [answer for answer in answers if answer.words.startswith(words)]
    assert sorted(answer.status for answer in found) == [0] + [4] * (len(found) - 1), found
    return {answer.complaint.removeprefix("vpcctl: ").strip() for answer in found if answer.status}


def _assert_everything_acknowledged(lab: Lab, run: Warm) -> None:
    """The end is the one that there can be, in the record and in the kernel."""
    assert run("status").out == "in sync\n"
    document = json.loads(run("export").out)
    vpcs = {vpc["name"]: vpc for vpc in document["vpcs"]}
    owners = [f"w{number}" for number in range(WRITERS)]
    assert sorted(vpcs) == sorted(["hub", "wanted", *owners])
    assert vpcs["hub"]["subnets"] == []
    assert sorted(document["peerings"]) == sorted(["hub", owner] for owner in owners)
    for number, owner in enumerate(owners):
        [subnet] = vpcs[owner]["subnets"]
        assert subnet["instances"] == [{"name": "s", "ip": f"10.{number}.1.2"}]
        assert subnet["policy"]["ingress"] == [{"action": "allow", "protocol": "tcp", "port": 1000 + number}]
    there = set(lab.run(["ls", "/run/netns"]).stdout.split())
    assert there == {f"{name}-router" for name in vpcs} | {f"{owner}-s" for owner in owners}
    uplinks = {link["ifname"] for link in seen(lab, "link")} - {"lo", "eth0"}
    assert uplinks == {f"vpc-{name}" for name in vpcs}
    peers = {link["ifname"] for link in seen(lab, "link", netns="hub-router")} - {"lo", "uplink"}
    assert peers == {f"pr-{owner}" for owner in owners}


def test_of_sixteen_that_want_places_that_overlap_each_place_has_one(module_lab: Lab, run: Warm) -> None:
    """Four places for sixteen: any serial order gives each place to one of four."""
    run_all(module_lab, BUILD[:1])
    made = "create-subnet --vpc hub --name s{0} --cidr 10.200.{1}.0/24 --type private --no-instance"
    writers = [[(made.format(number, number % 4), None)] for number in range(WRITERS)]
    answers = [found[0] for found in at_once(module_lab, writers)]
    done = {answer.words for answer in answers if answer.status == 0}
    assert sorted(words.split("--cidr ")[1].split()[0] for words in done) == [f"10.200.{n}.0/24" for n in range(4)]
    for answer in answers:
        if answer.status:
            assert answer.status == 4
            assert "overlaps subnet s" in answer.complaint
    shown = json.loads(run("list-subnets --vpc hub --json").out)
    assert {one["name"] for one in shown} == {words.split("--name ")[1].split()[0] for words in done}
    assert run("status").out == "in sync\n"


# --- Readers, and those who wait --------------------------------------------------------------------------------------


@pytest.fixture
def held(module_lab: Lab, run: Warm) -> Iterator[subprocess.Popen[str]]:
    """The lock, in the hand of somebody who does not let go of it."""
    run_all(module_lab, BUILD[:2])
    holder = module_lab.popen([sys.executable, "-c", HOLD], stderr=None)
    assert holder.stdin
    assert holder.stdout
    holder.stdin.write(f"{STATE_DIR}\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "held\n"
    yield holder
    holder.communicate()


READERS = (
    "list-vpcs",
    "list-subnets --vpc hub",
    "list-instances --vpc hub",
    "list-peerings",
    "show-vpc --name hub",
    "show-policy --vpc hub",
    "show-ruleset --vpc hub",
    "status",
    "export",
    "matrix --vpc hub",
    "explain hub/old internet tcp/443",
)


def test_readers_wait_for_nobody(run: Warm, held: subprocess.Popen[str]) -> None:
    """The lock is free when all have answered, not before; who had waited for it would have ended with 6."""
    for words in READERS:
        answer = run(words, status=None)
        assert answer.status == (1 if words.startswith("explain") else 0), answer
    document = json.dumps({"vpcs": [{"name": "new", "cidr": "10.1.0.0/16"}]})
    assert "+ VPC new" in run("plan -", input=document).out
    policy = {"vpc": "hub", "subnet": "old", "ingress": []}
    assert "newly denied" in run("apply-policy --dry-run -", input=json.dumps(policy)).out
    assert held.poll() is None


def test_a_writer_without_patience_ends_with_6_and_names_the_holder(
    module_lab: Lab, run: Warm, held: subprocess.Popen[str]
) -> None:
    before = run("export").out
    result = module_lab.python(HASTY, str(STATE_DIR), check=False)
    said = result.stderr.strip()
    pid = module_lab.run(["cat", f"{STATE_DIR}/lock"]).stdout.split()[1]
    wanted = f"{STATE_DIR} is still locked by process {pid} (vpcctl create-vpc) after 0.3 s; wait, or stop that process"
    assert (result.returncode, said) == (6, wanted)
    assert run("export").out == before
    # It was the lock alone.
    held.communicate()
    assert module_lab.python(HASTY, str(STATE_DIR), check=False).returncode == 0
    assert "hasty" in run("list-vpcs").out


def test_a_writer_waits_and_then_goes_on(module_lab: Lab, run: Warm, held: subprocess.Popen[str]) -> None:
    words = "create-vpc --name late --cidr 10.88.0.0/16"
    waiting = module_lab.popen([sys.executable, "-m", "vpcctl", *words.split()], stdin=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.communicate(timeout=0.7)
    assert "late" not in run("list-vpcs").out
    held.communicate()
    assert waiting.communicate(timeout=60)[0] == ""
    assert waiting.returncode == 0
    assert eventually(lambda: "late" in run("list-vpcs").out)
