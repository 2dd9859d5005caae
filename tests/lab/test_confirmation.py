"""A change that cuts the operator's own connection is taken back when nobody confirms it, whatever died meanwhile.

Real packets: the operator comes from outside through a published port, and his stream is what has to come back.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.agents import AgentProcess
from tests.lab.machine import run_all, write
from tests.lab.traffic import Flow, assert_moving, eventually, start_flow, stations, stuck
from tests.lab.warm import Warm
from vpcctl.lab import HOST, STATE_DIR, Lab

SSH, OTHER, PUBLISHED = 22, 7001, 10022
SECONDS = 3
# A repeated packet of TCP may be some seconds away when the way is open again.
COMES_BACK = 40.0
BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name jump --cidr 10.0.1.0/24 --type public",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
    f"publish-port --vpc shop --instance jump --port {PUBLISHED} --target-port {SSH}",
)


def policy(*ports: int) -> dict[str, object]:
    rules = [{"action": "allow", "protocol": name, "port": list(ports)} for name in ("tcp", "udp")]
    return {"vpc": "shop", "subnet": "jump", "ingress": rules}


@dataclass
class Operator:
    """An operator's connection from outside, and a stream inside that no change concerns."""

    lab: Lab
    run: Warm
    connection: Flow
    kept: Flow
    world: str

    def cut(self, moment: float) -> bool:
        """Does nothing that was sent after `moment` arrive?"""
        time.sleep(0.3)
        assert_moving([self.kept], moment + 0.2)
        return bool(stuck([self.connection], moment + 0.1))

    def comes_back(self) -> None:
        """The connection goes on, the world is as before, and nobody is left behind."""
        assert eventually(lambda: self.run("export").out == self.world and not state(self.lab)["pending"], COMES_BACK)
        moment = time.monotonic()
        assert eventually(lambda: not stuck([self.connection], moment), COMES_BACK), self.connection.counts()
        assert self.run("status").out.endswith("in sync\n")
        assert eventually(lambda: not keepers(self.lab), 10), keepers(self.lab)
        assert state(self.lab).get("unconfirmed") is None


@pytest.fixture
def operator(lab: Lab) -> Iterator[Operator]:
    run_all(lab, BUILD)
    with Warm(lab) as run, stations(lab, "internet", "shop-jump", "shop-db") as (outside, jump, db):
        run("apply-policy -", input=json.dumps(policy(SSH, OTHER)))
        connection = start_flow("operator", outside, jump, str(HOST), PUBLISHED, "tcp", rate=50, push=50, target=SSH)
        kept = start_flow("kept", db, jump, "10.0.1.2", OTHER, "udp", rate=200)
        assert_moving([connection, kept], time.monotonic())
        yield Operator(lab, run, connection, kept, run("export").out)
        client, server = kept.counts()
        assert server.missing == 0, f"lost {server.missing} of {client.sent}"


def state(lab: Lab) -> dict[str, object]:
    """The head of the record."""
    found: dict[str, object] = json.loads(lab.run(["cat", f"{STATE_DIR}/state.json"]).stdout)
    return found


# The processes that hold nothing but a watch on a directory and, perhaps, one end of a pipe, in a session of their own.
KEEPERS = """
import os
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        held = [os.readlink(f"/proc/{pid}/fd/{one}") for one in os.listdir(f"/proc/{pid}/fd")]
        words = open(f"/proc/{pid}/cmdline").read()
    except OSError:
        continue
    if "python" in words and held.count("/dev/null") >= 3 and "anon_inode:inotify" in held:
        print(pid, os.getsid(int(pid)) != int(pid), *held)
"""


def keepers(lab: Lab) -> list[str]:
    """The processes that commands left behind, with what they hold."""
    return lab.python(KEEPERS).stdout.splitlines()


CUT = json.dumps(policy(OTHER))


def test_a_cut_connection_comes_back(operator: Operator) -> None:
    ran = operator.run(f"apply-policy - --confirm {SECONDS}", input=CUT)
    moment = time.monotonic()
    assert f"(in {SECONDS} seconds), unless you run `vpcctl confirm`" in ran.err
    assert operator.cut(moment)
    operator.comes_back()
    last = json.loads(operator.run("history --json").out)[-1]
    assert "was not confirmed in time" in last["summary"]


def test_the_process_that_is_left_behind_holds_nothing_of_the_command(operator: Operator) -> None:
    operator.run("apply-policy - --confirm 60", input=CUT)
    # While it looks at the record it holds the directory for an instant.
    expected = ["/dev/null", "/dev/null", "/dev/null", "anon_inode:inotify"]
    assert eventually(lambda: [sorted(one.split()[2:]) for one in keepers(operator.lab)] == [expected], 10)
    [pid] = [one.split()[0] for one in keepers(operator.lab)]
    assert operator.lab.run(["readlink", f"/proc/{pid}/cwd"]).stdout == "/\n"
    operator.run("undo")
    operator.comes_back()


def test_a_change_that_is_confirmed_stays(operator: Operator) -> None:
    operator.run(f"apply-policy - --confirm {SECONDS}", input=CUT)
    moment = time.monotonic()
    confirmed = operator.run("confirm")
    assert "is confirmed" in confirmed.err
    assert eventually(lambda: not keepers(operator.lab), 10)
    time.sleep(SECONDS)
    assert operator.cut(moment)
    assert operator.run("confirm", status=4).err.startswith("vpcctl: no change waits to be confirmed")


@pytest.mark.parametrize("when", ["before the commit", "after the commit"])
def test_the_command_may_be_killed(operator: Operator, when: str) -> None:
    """SIGKILL, and nothing of it is left but what it left behind before the change began."""
    lab = operator.lab
    place = write(lab, "cut.json", json.loads(CUT))
    # The second replacement of the state file is the commit.
    number = 1 if when == "before the commit" else 2
    stopper = KILLED_AT.replace("NUMBER", str(number))
    ran = lab.python(stopper, "apply-policy", place, "--confirm", str(SECONDS), check=False)
    assert ran.returncode == -9, ran
    head = state(lab)
    assert bool(head["pending"]) == (when == "before the commit")
    operator.comes_back()


# Kills itself as soon as the state file was replaced for the given time.
KILLED_AT = """
import os, signal, sys
from vpcctl.cli import main
from vpcctl.engine.state import Writer
real, seen, own = Writer.save, [], os.getpid()
def save(*given):
    found = real(*given)
    seen.append(found)
    if len(seen) == NUMBER and os.getpid() == own:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
Writer.save = save
main(sys.argv[1:])
"""


def test_the_agent_takes_it_back(operator: Operator) -> None:
    with contextlib.closing(Agent(operator.lab)) as agent:
        operator.run(f"apply-policy - --confirm {SECONDS}", input=CUT)
        assert keepers(operator.lab) == []
        operator.comes_back()
        assert any("was not confirmed in time; taken back" in entry["message"] for entry in agent.log("remark"))


def test_the_agent_may_be_killed(operator: Operator) -> None:
    """Whoever starts it again, as systemd does, need not know of the change."""
    lab = operator.lab
    with contextlib.closing(Agent(lab)) as agent:
        operator.run(f"apply-policy - --confirm {SECONDS}", input=CUT)
        agent.kill()
    time.sleep(SECONDS)
    assert operator.run("export").out != operator.world
    with contextlib.closing(Agent(lab)):
        operator.comes_back()


def test_whoever_is_left_may_be_killed_and_the_next_command_does_it(operator: Operator) -> None:
    operator.run(f"apply-policy - --confirm {SECONDS}", input=CUT)
    [found] = keepers(operator.lab)
    operator.lab.run(["kill", "-9", found.split()[0]])
    time.sleep(SECONDS)
    ran = operator.run("set-limits --vpc shop --max-flows 16384")
    assert "was not confirmed in time; taken back" in ran.err
    operator.comes_back()


class Agent:
    """An agent that can be closed, killed and asked for its log."""

    def __init__(self, lab: Lab):
        self._agent = AgentProcess(lab)

    def log(self, event: str) -> list[dict[str, str]]:
        return self._agent.entries(event)

    def kill(self) -> None:
        self._agent.signal("KILL")
        assert eventually(lambda: self._agent.ended, 10)

    def close(self) -> None:
        if not self._agent.ended:
            self._agent.end()


def asserted(lab: Lab, expect: str) -> str:
    found = [
        {"from": "shop/db", "to": "shop/jump", "service": f"tcp/{OTHER}", "expect": "allow"},
        {"from": "shop/db", "to": "shop/jump", "service": f"tcp/{SSH}", "expect": expect},
    ]
    return write(lab, f"{expect}.json", found)


def test_packets_judge_a_change(operator: Operator) -> None:
    """One assertion that fails takes it back at once; if all hold it waits to be confirmed."""
    allowed, denied = (asserted(operator.lab, expect) for expect in ("allow", "deny"))
    ran = operator.run(f"apply-policy - --confirm 600 --probe {allowed}", input=CUT, status=1)
    assert "FAIL" in ran.out
    assert "did not arrive" in ran.out
    operator.comes_back()
    assert "an assertion about change" in json.loads(operator.run("history --json").out)[-1]["summary"]
    ran = operator.run(f"apply-policy - --confirm {SECONDS} --probe {denied}", input=CUT)
    assert ran.out.count("pass  ") == 2
    operator.comes_back()


def test_what_is_wrong_with_the_assertions_is_told_before_anything_is_changed(operator: Operator) -> None:
    place = write(operator.lab, "wrong.json", [{"from": "shop/db"}])
    operator.run(f"apply-policy - --confirm 600 --probe {place}", input=CUT, status=2)
    operator.run("apply-policy - --probe x.json", input=CUT, status=2)
    assert operator.run("export").out == operator.world
