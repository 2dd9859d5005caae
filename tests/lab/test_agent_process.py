"""The agent as a process: one for each state directory, idle when nothing happens, hard to harm, easy to end."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.agents import SOON, AgentProcess, agent
from tests.lab.machine import attempt, run_all
from tests.lab.traffic import eventually
from tests.lab.warm import Warm
from vpcctl.agent.watching import TENANT_BURST
from vpcctl.lab import STATE_DIR, Lab

EXHAUSTIVE = bool(os.environ.get("VPCCTL_TEST_EXHAUSTIVE"))
BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-vpc --name calm --cidr 10.1.0.0/16",
    "create-subnet --vpc calm --name app --cidr 10.1.1.0/24 --type private",
)
STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="strace(1) is not installed")


@pytest.fixture
def built(lab: Lab) -> Lab:
    run_all(lab, BUILD)
    return lab


@pytest.fixture(scope="module")
def running(module_lab: Lab) -> Iterator[AgentProcess]:
    run_all(module_lab, BUILD)
    with agent(module_lab) as one:
        yield one


# --- One agent --------------------------------------------------------------------------------------------------------


def test_a_second_agent_is_refused_and_told_of_the_first(running: AgentProcess) -> None:
    second = attempt(running.lab, "agent")
    assert second.returncode == 4
    found = re.search(r"an agent runs for (\S+) already \(process (\d+), since (\S+)Z\)", second.stderr)
    assert found is not None
    assert (found[1], int(found[2])) == (str(STATE_DIR), running.pid)
    # Another state directory has an agent of its own.
    with agent(running.lab, "--state-dir", "/run/other") as other:
        assert other.end() == 0
    assert not running.ended


def test_status_says_whether_an_agent_runs_and_since_when(running: AgentProcess) -> None:
    told = json.loads(running.run("status --json").out)["agent"]
    assert told["pid"] == running.pid
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["since"])
    assert running.run("status").out == f"an agent runs (process {running.pid}, since {told['since']})\nin sync\n"
    other = "--state-dir /run/nothing"
    assert json.loads(running.run(f"{other} status --json").out)["agent"] is None
    assert running.run(f"{other} status").out == "in sync\n"
    assert "no agent runs\n" in running.run(f"-v {other} status").out


def test_asking_whether_one_runs_keeps_none_from_starting(built: Lab) -> None:
    built.run(["touch", f"{STATE_DIR}/agent.lock"])
    holder = built.popen(["flock", "--shared", f"{STATE_DIR}/agent.lock", "sleep", "0.5"])
    with agent(built) as running:
        assert running.end() == 0
    holder.wait(5)


def test_an_agent_that_was_killed_leaves_the_place_to_the_next(built: Lab) -> None:
    with agent(built) as first:
        first.end("KILL")
        assert json.loads(first.run("status --json").out)["agent"] is None
        with agent(built) as second:
            assert second.pid != first.pid


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_ends_it_within_a_second(built: Lab, name: str) -> None:
    with agent(built) as running:
        before = time.monotonic()
        assert running.end(name) == 0
        # This includes the start of a process.
        assert time.monotonic() - before < 2
        assert running.entries("stopping")[0]["message"] == f"agent stops: SIG{name}"
        assert running.in_sync()
        assert built.run(["cat", f"{STATE_DIR}/agent.lock"]).stdout == ""


def test_without_privilege_it_says_so(lab: Lab) -> None:
    refused = lab.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", sys.executable, "-m", "vpcctl", "agent"],
        check=False,
    )
    assert refused.returncode == 77
    assert "needs root" in refused.stderr


# --- Cost -------------------------------------------------------------------------------------------------------------


def test_idle_it_does_nothing_at_all(running: AgentProcess) -> None:
    running.calm(2)
    # The control: these numbers do change.
    assert running.switches() > 0

    def quiet() -> bool:
        before = running.switches(), running.processor()
        time.sleep(3)
        return (running.switches(), running.processor()) == before

    # The kernel's own timers, for neighbours of the host, may wake the agent in one such interval.
    assert quiet() or quiet()


def test_what_concerns_nobody_wakes_it_at_most_and_is_not_looked_at(running: AgentProcess) -> None:
    running.calm(1)
    before = len(running.entries())
    running.lab.run(["sh", "-c", "ip netns add other; ip netns exec other ip link add x0 type veth peer name x1"])
    running.lab.run(["sh", "-c", "ip netns exec other nft add table ip t; ip netns delete other; touch /run/file"])
    running.calm(1)
    assert running.entries()[before:] == []


FLOOD = """
import socket, sys, time
from vpcctl.kernel import netlink, rtnetlink as rt
from vpcctl.kernel.namespaces import entered
import ipaddress
with entered(sys.argv[1]):
    channel = netlink.Channel()
end, count = time.monotonic() + float(sys.argv[2]), 0
address = rt.address(1, ipaddress.ip_address("192.0.2.1"), 32)
while time.monotonic() < end:
    channel.change(rt.RTM_NEWADDR, netlink.NLM_F_CREATE, address)
    channel.change(rt.RTM_DELADDR, 0, address)
    count += 2
print(count)
"""


def test_a_tenant_who_floods_costs_little_and_delays_nobody(running: AgentProcess) -> None:
    lab, seconds = running.lab, 12.0
    running.calm(1)
    flood = lab.popen([sys.executable, "-c", FLOOD, "shop-web", str(seconds)])
    time.sleep(4)
    used, begun = running.processor(), time.monotonic()
    times = []
    for damage in ("ip netns exec calm-router nft flush ruleset", "ip -n shop-router link set in-web down"):
        before = time.monotonic()
        lab.run(["sh", "-c", damage])
        running.assert_heals(10)
        times.append(time.monotonic() - before)
    out, _ = flood.communicate(timeout=60)
    # Each new address causes two events: an address and a route.
    assert int(out) > 5 * TENANT_BURST, "the flood was too small"
    share = (running.processor() - used) / (time.monotonic() - begun)
    assert share < 0.25, share
    assert max(times) < 5, times
    # The tenant's last change is looked at in the end.
    lab.run(["ip", "-n", "shop-web", "route", "delete", "default"])
    running.assert_heals(90)


def test_memory_does_not_grow_with_events(running: AgentProcess) -> None:
    lab = running.lab

    def trouble(times: int) -> None:
        lab.run(
            ["sh", "-c",
             f"for i in $(seq {times}); do ip link add e$i type veth peer name f$i; ip link delete e$i;"
             " ip netns exec calm-router nft add table ip t; ip netns exec calm-router nft delete table ip t;"
             " ip link set vpc-calm down; sleep 0.15; done"]
        )  # fmt: skip
        running.calm()

    trouble(20)
    before = running.memory()
    looks = len(running.entries("compared")) + len(running.entries("repaired"))
    trouble(60)
    assert len(running.entries("compared")) + len(running.entries("repaired")) > looks + 10
    assert running.memory() < before + 1500


def test_what_it_opened_is_closed_again(built: Lab) -> None:
    with agent(built) as running:
        running.calm(1)
        before = built.run(["ls", f"/proc/{running.pid}/fd"]).stdout
        for number in range(3):
            running.run(f"create-vpc --name v{number} --cidr 10.{number + 20}.0.0/16")
            running.run(f"create-subnet --vpc v{number} --name s --cidr 10.{number + 20}.1.0/24 --type private")
        running.calm(1)
        assert len(built.run(["ls", f"/proc/{running.pid}/fd"]).stdout.split()) > len(before.split()) + 6
        for number in range(3):
            running.run(f"delete-vpc --name v{number} --cascade")
        running.calm(1)
        assert len(built.run(["ls", f"/proc/{running.pid}/fd"]).stdout.split()) == len(before.split())
        # No namespace is kept alive: only those of the two VPCs, the host and the lab's stations are left.
        namespaces = built.run(["lsns", "-t", "net", "-n", "-o", "NS"], check=False).stdout.split()
        assert len(namespaces) <= 7


# --- Beside commands --------------------------------------------------------------------------------------------------


def commands(seed: int, count: int) -> list[str]:
    """Commands in a random order, some of which fail."""
    chance, found = random.Random(seed), []
    for _ in range(count):
        index, subnet = chance.randrange(3), chance.choice("xy")
        vpc, number = "abc"[index], index * 2 + "xy".index(subnet)
        found.append(
            chance.choices(
                (
                    f"create-vpc --name {vpc} --cidr 10.{index}.0.0/16",
                    f"create-subnet --vpc {vpc} --name {subnet} --cidr 10.{index}.{number}.0/24 --type public",
                    f"create-instance --vpc {vpc} --subnet {subnet} --name i{chance.randrange(3)}",
                    f"delete-instance --vpc {vpc} --name i{chance.randrange(3)}",
                    f"publish-port --vpc {vpc} --instance {subnet} --port {8000 + number}",
                    f"unpublish-port --vpc {vpc} --port {8000 + number}",
                    f"delete-subnet --vpc {vpc} --name {subnet} --cascade",
                    f"delete-vpc --name {vpc} --cascade",
                    f"create-peering --vpc1 a --vpc2 {chance.choice('bc')}",
                    f"set-limits --vpc {vpc} --max-flows {chance.randrange(1000, 9999)}",
                ),
                (3, 6, 6, 2, 2, 2, 2, 1, 2, 2),
            )[0]
        )
    return found


def results(run: Warm, words: list[str]) -> list[tuple[int, str, str]]:
    return [(ran.status, ran.out, ran.err) for ran in (run(line, status=None) for line in words)]


def test_commands_beside_an_agent_do_what_they_do_without_one(lab: Lab) -> None:
    words = commands(3, 400 if EXHAUSTIVE else 120)
    with Warm(lab) as run:
        expected = results(run, words)
        exported = run("export").out
        assert sum(status == 0 for status, _, _ in expected) > len(words) / 4
    with Lab() as another, agent(another) as running:
        found = results(running.run, words)
        assert [pair for pair in zip(words, expected, found, strict=True) if pair[1] != pair[2]] == []
        assert running.run("export").out == exported
        running.assert_heals()
        assert running.entries("failed") == running.entries("repaired") == []


# --- Killed -----------------------------------------------------------------------------------------------------------

SPOIL = (
    "nft flush ruleset; ip -n shop-router link delete uplink; ip netns delete shop-web;"
    " ip -n calm-router link set br-app down"
)


def test_killed_at_any_moment_nothing_is_lost(built: Lab) -> None:
    chance = random.Random(11)
    with Warm(built) as run:
        world = run("export").out
        for _ in range(20 if EXHAUSTIVE else 6):
            with agent(built) as running:
                built.run(["sh", "-c", SPOIL])
                time.sleep(chance.random() * 0.5)
                running.end("KILL")
            assert run("export").out == world
            open_ones = {name: state for name, state in run.routers().items() if state and state[0] and not state[1]}
            assert open_ones == {}
            with agent(built) as running:
                running.assert_heals()
                assert running.end() == 0
            assert "Traceback" not in run("status").err


@STRACE
@pytest.mark.parametrize("call", ["renameat", "mount", "sendto", "unlinkat", "flock", "fsync"])
def test_killed_at_a_system_call_nothing_is_lost(built: Lab, call: str) -> None:
    """strace(1) kills it at some calls of a kind; the first ones belong to its start."""
    with Warm(built) as run:
        world = run("export").out
        for number in (1, 2, 5) if EXHAUSTIVE else (2,):
            built.run(["sh", "-c", SPOIL])
            struck = built.run(
                ["timeout", "-s", "TERM", "5", "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}",
                 "-e", f"inject={call}:signal=KILL:when={number}", sys.executable, "-m", "vpcctl", "agent"],
                check=False,
            )  # fmt: skip
            assert "Traceback" not in struck.stderr
            assert struck.returncode != 0
            assert run("export").out == world
            with agent(built) as running:
                running.assert_heals()
                assert running.end() == 0


@STRACE
def test_a_call_that_fails_does_not_end_it(built: Lab) -> None:
    """No memory, no descriptors, no space: it logs the failure and continues."""
    for call, error, number in (("sendto", "ENOBUFS", "5+7"), ("openat", "EMFILE", "600+9"), ("fsync", "EIO", "1+2")):
        before = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}",
                  "-e", f"inject={call}:error={error}:when={number}")  # fmt: skip
        built.run(["sh", "-c", SPOIL])
        with AgentProcessUntilReady(built, before) as running:
            time.sleep(3)
            assert not running.ended or running.process.returncode in (4, 5, 6), running.entries()
            running.signal("KILL")
    with agent(built) as running:
        running.assert_heals()


class AgentProcessUntilReady:
    """An agent under strace(1), whose first look may fail."""

    def __init__(self, lab: Lab, before: tuple[str, ...]):
        self._agent = AgentProcess(lab, before=before)

    def __enter__(self) -> AgentProcess:
        return self._agent

    def __exit__(self, *_: object) -> None:
        self._agent.close()


# --- systemd ----------------------------------------------------------------------------------------------------------

LISTEN = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
    address = sys.argv[1]
    channel.bind("\\0" + address[1:] if address.startswith("@") else address)
    print("listening", flush=True)
    while True:
        print(channel.recv(4096).decode().replace("\\n", "|"), flush=True)
"""


class Notified:
    """A supervisor in the lab, and the notifications that it received."""

    def __init__(self, lab: Lab, address: str):
        self.process = lab.popen([sys.executable, "-u", "-c", LISTEN, address])
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.lines: list[str] = []
        assert eventually(lambda: "listening" in self.told())

    def told(self) -> list[str]:
        assert self.process.stdout is not None
        try:
            text = os.read(self.process.stdout.fileno(), 1 << 16).decode()
        except BlockingIOError:
            text = ""
        self.lines += text.splitlines()
        return self.lines


@pytest.mark.parametrize("address", ["/run/notify", "@vpcctl-notify"])
def test_systemd_is_told_when_all_is_as_desired_and_when_it_ends(built: Lab, address: str) -> None:
    built.run(["sh", "-c", SPOIL])
    heard = Notified(built, address)
    with agent(built, env={"NOTIFY_SOCKET": address}) as running:
        assert eventually(lambda: "READY=1" in heard.told(), SOON)
        # Only then.
        assert running.in_sync()
        assert eventually(lambda: "STATUS=in sync" in heard.told(), SOON)
        assert running.end() == 0
        assert eventually(lambda: heard.told()[-1] == "STOPPING=1", SOON)
        assert [line for line in heard.lines if line.startswith("WATCHDOG")] == []


def test_the_watchdog_is_told_at_half_its_time_and_not_by_a_process_that_hangs(built: Lab) -> None:
    heard = Notified(built, "/run/notify")
    with agent(built, env={"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1000000"}) as running:
        running.calm(1)
        before = heard.told().count("WATCHDOG=1")
        time.sleep(3)
        assert 5 <= heard.told().count("WATCHDOG=1") - before <= 8
        with running.paused():
            time.sleep(0.5)
            before = heard.told().count("WATCHDOG=1")
            time.sleep(1.5)
            assert heard.told().count("WATCHDOG=1") == before


def test_a_repair_that_fails_is_told_as_status(built: Lab) -> None:
    heard = Notified(built, "/run/notify")
    with agent(built, env={"NOTIFY_SOCKET": "/run/notify"}) as running:
        built.run(["sh", "-c", f"mv {STATE_DIR}/state.json {STATE_DIR}/kept"])
        running.await_entry("failed")
        assert eventually(lambda: "STATUS=repairs fail; see the log" in heard.told(), SOON)
        built.run(["sh", "-c", f"mv {STATE_DIR}/kept {STATE_DIR}/state.json"])
        assert eventually(lambda: heard.told()[-1] == "STATUS=in sync", SOON)


def test_the_log_for_people_has_levels_only_where_the_journal_reads_it(built: Lab, tmp_path: Path) -> None:
    def logged(env: dict[str, str]) -> str:
        place = tmp_path / "log"
        with place.open("w") as log:
            status = os.fstat(log.fileno())
            own = {name: value.format(place=f"{status.st_dev}:{status.st_ino}") for name, value in env.items()}
            process = built.popen([sys.executable, "-m", "vpcctl", "agent"], stderr=log, env=own)
            assert eventually(lambda: "started" in place.read_text())
            built.run(["nft", "flush", "ruleset"])
            assert eventually(lambda: "repaired: ruleset of the host was absent" in place.read_text(), SOON)
            process.kill()
            process.wait()
        return place.read_text()

    plain = logged({})
    assert re.match(r"agent of /run/vpcctl-state started\n", plain)
    assert "<" not in plain
    marked = logged({"JOURNAL_STREAM": "{place}"})
    assert all(re.match(r"<[3467]>", line) for line in marked.splitlines())
    assert logged({"JOURNAL_STREAM": "1:2"}).startswith("agent of")


def test_an_upgrade_ends_it_before_it_repairs_by_the_old_program(built: Lab, tmp_path: Path) -> None:
    """Otherwise the agent and the commands of the new version would undo each other's repairs."""
    root = Path(__file__).parents[2]
    copy = tmp_path / "program"
    shutil.copytree(root / "vpcctl", copy / "vpcctl")
    with agent(built, env={"PYTHONPATH": str(copy)}, before=("env", f"--chdir={copy}")) as running:
        os.utime(copy / "vpcctl/compiler/gates.py")
        built.run(["nft", "flush", "ruleset"])
        assert running.process.wait(SOON) == 4
        assert running.entries("repaired") == []
