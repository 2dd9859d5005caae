"""The whole thing at work: ``./run demo``, which is ``vpcctl lab -- python -m vpcctl.demo [POLICIES]``.

A three-tier shop, a second VPC with the same prefix and a third one are built, served in, guarded, peered and taken
down.  Each line is a command as one would type it and what came of it.  ✓ says that this is what should come; if
anything else did, the exit status is 1.  What passes is shown by real connections.  What must not pass is shown by a
client that gets no answer and a server that heard nothing, which does answer somebody else in the same breath.

POLICIES is a folder to take the three tiers' policies from, in place of the library's.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vpcctl import demo_http, lab
from vpcctl.kernel import settings

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path("rulesets/library/three-tier")
PATIENCE = 20.0  # seconds for what has to come, on however busy a machine
COLUMN = 68  # where outcomes begin
GREEN, RED, BOLD, DIM = "32", "31", "1", "2"

# What a VPC might leave behind on the host, each with the command that lists it.
HOST_LISTINGS = {
    "namespaces": "ip netns",
    "links": "ip -oneline link",
    "addresses": "ip -4 -oneline address",
    "routes": "ip -4 route show table all",
    "tables": "nft list ruleset",
}
# Counts of the moment among the settings, which nobody sets.
COUNTS = {"nf_conntrack_count"}


class Stop(Exception):
    """A step failed without which the others mean nothing."""


# --- What runs -------------------------------------------------------------------------------------------------------


class Program:
    """A program that runs while the demo goes on; its output, errors included, is collected line by line."""

    def __init__(self, command: str, **surroundings: str):
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | surroundings,
        )
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    def _collect(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append(line.strip())

    @property
    def last(self) -> str:
        """The last line so far."""
        return self.lines[-1] if self.lines else "(no output)"

    def comes_to(self, test: Callable[[list[str]], bool]) -> bool:
        """Wait until the lines pass `test`; False if they do not within PATIENCE."""
        deadline = time.monotonic() + PATIENCE
        while not test(self.lines):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def ended(self) -> int:
        """Wait for its end, which PATIENCE brings about if need be, and return its exit status."""
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()
        return self._process.wait()

    def end(self) -> None:
        """Kill it.  It is one process, for `vpcctl exec` becomes its command."""
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Probe:
    """A connection to try, and the page that should come; None where silence should."""

    command: str
    page: str | None

    def judged(self, status: int, said: str, heard: bool) -> tuple[bool, str]:
        """Is this what should come, and what came in words?  `heard` says whether a server of ours got the request."""
        answered = status == 0
        if self.page is not None:
            return answered and self.page in said, f"answered “{said}”" if answered else said
        if answered or heard:
            return False, f"answered “{said}”, and should be silent" if answered else "the request arrived"
        return status == demo_http.SILENT, "silent" if status == demo_http.SILENT else said


class Stage:
    """Runs steps, says what came of each in one line, counts the wrong ones, and ends what it started."""

    def __init__(self, policies: Path = LIBRARY) -> None:
        self.policies = policies
        self.steps = self.failures = 0
        self._servers: list[Program] = []
        self._clients: list[Program] = []

    def say(self, command: str, good: bool, outcome: str, needed: bool = False) -> None:
        """One step in one line; Stop if it is `needed` and went wrong."""
        self.steps += 1
        self.failures += not good
        mark = painted("✓", GREEN) if good else painted("✗", RED)
        print(f" {mark} {command.ljust(COLUMN)}  {painted(outcome, DIM if good else RED)}", flush=True)
        if needed and not good:
            raise Stop

    def do(self, command: str, typed: str = "") -> float:
        """Run a command that must succeed, with `typed` as its input; returns when that was (CLOCK_MONOTONIC)."""
        begun = time.monotonic()
        done = run(command, typed)
        ended = time.monotonic()
        said = f"{ended - begun:.1f} s" if done.returncode == 0 else last_words(done)
        self.say(f"{command} <<< {shlex.quote(typed)}" if typed else command, done.returncode == 0, said, needed=True)
        return ended

    def refused(self, command: str, status: int, reason: str) -> None:
        """Run a command that must end with `status` and a sentence in which `reason` stands."""
        done = run(command)
        good = done.returncode == status and reason in done.stderr
        self.say(command, good, f"refused: {reason}" if good else last_words(done))

    def enter(self, folder: Path) -> None:
        """Go to a folder, as ``cd`` does."""
        os.chdir(folder)
        self.say(f"cd {folder}", True, f"{len(list(Path().glob('*.json')))} documents")

    def serve(self, instance: str, port: int, page: str) -> None:
        """Start a web server in an instance, given as ``vpc/instance``."""
        command = inside(instance, f"serve {port} {shlex.quote(page)}")
        self._servers.append(server := Program(command))
        good = server.comes_to(lambda lines: "ready" in lines)
        self.say(f"{command} &", good, "listening" if good else server.last, needed=True)

    def watch(self, instance: str, place: str) -> Program:
        """Start an endless download in an instance, and wait until it flows."""
        command = inside(instance, f"watch {place}")
        self._clients.append(client := Program(command))
        good = client.comes_to(lambda lines: len(sent_times(lines)) >= 10)
        self.say(f"{command} &", good, "flowing" if good else client.last, needed=True)
        return client

    def try_all(self, *probes: Probe) -> None:
        """Make these connections at the same time, and say in order what came of each."""
        first = len(self._clients)
        for number, probe in enumerate(probes, first):
            self._clients.append(Program(probe.command, DEMO_PROBE=str(number)))
        ends = [client.ended() for client in self._clients[first:]]
        for number, (probe, status) in enumerate(zip(probes, ends, strict=True), first):
            heard = any(f"heard {number}" in server.lines for server in self._servers)
            self.say(probe.command, *probe.judged(status, self._clients[number].last, heard))

    def end(self) -> None:
        """End every program that was started."""
        for program in (*self._servers, *self._clients):
            program.end()


def run(command: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its output captured."""
    return subprocess.run(shlex.split(command), input=typed, capture_output=True, text=True, check=False)


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """How a command ended, in its own last words."""
    said = (done.stderr or done.stdout).strip().splitlines() or ["nothing said"]
    return f"exit status {done.returncode}: {said[-1].removeprefix('vpcctl: ')}"


def inside(instance: str, command: str) -> str:
    """A command to be run in an instance, given as ``vpc/instance``."""
    vpc, _, name = instance.partition("/")
    return f"vpcctl exec --vpc {vpc} --instance {name} -- {command}"


def asking(instance: str, place: str, page: str | None) -> Probe:
    """A connection from an instance, given as ``vpc/instance``."""
    return Probe(inside(instance, f"get {place}"), page)


def sent_times(lines: list[str]) -> list[float]:
    """When each piece of an endless download was sent, as far as it has arrived."""
    return [float(line.split()[2]) for line in list(lines) if line.startswith("piece ")]


def painted(words: str, colour: str) -> str:
    """`words` in `colour` on a terminal, unless NO_COLOR is set (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or not sys.stdout.isatty()
    return words if plain else f"\033[{colour}m{words}\033[0m"


def title(words: str) -> None:
    """The heading of a section."""
    print(f"\n{painted(words, BOLD)}", flush=True)


# --- What is shown ---------------------------------------------------------------------------------------------------


def build(stage: Stage) -> None:
    title("Three tiers, and a second VPC with the very same prefix")
    for command in (
        "create-vpc --name shop --cidr 10.0.0.0/16",
        "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
        "create-subnet --vpc shop --name app --cidr 10.0.2.0/24 --type private",
        "create-subnet --vpc shop --name db --cidr 10.0.3.0/24 --type private",
        "create-instance --vpc shop --subnet web --name web-2",
        "create-nat-gateway --vpc shop --subnet app",
        "create-vpc --name twin --cidr 10.0.0.0/16",
        "create-subnet --vpc twin --name web --cidr 10.0.1.0/24 --type public",
        "create-subnet --vpc twin --name app --cidr 10.0.2.0/24 --type private",
    ):
        stage.do(f"vpcctl {command}")
    for instance, port, page in (
        ("shop/web", 8443, "web of shop"),
        ("shop/app", 8080, "app of shop"),
        ("shop/db", 5432, "db of shop"),
        ("twin/web", 8443, "web of twin"),
    ):
        stage.serve(instance, port, page)


def without_policy(stage: Stage) -> None:
    title("Before any policy: open inside, and every VPC for itself")
    stage.try_all(
        asking("shop/web", "10.0.3.2:5432", "db of shop"),
        asking("shop/app", "10.0.1.2:8443", "web of shop"),
        asking("twin/app", "10.0.1.2:8443", "web of twin"),
        asking("twin/web", "10.0.3.2:5432", None),
    )


def peered(stage: Stage) -> None:
    title("A peering with a third VPC: routed, and only where prefixes can be told apart")
    stage.do("vpcctl create-vpc --name billing --cidr 10.50.0.0/16")
    stage.do("vpcctl create-subnet --vpc billing --name jobs --cidr 10.50.1.0/24 --type private")
    stage.try_all(asking("billing/jobs", "10.0.2.2:8080", None))
    stage.do("vpcctl create-peering --vpc1 shop --vpc2 billing")
    stage.try_all(asking("billing/jobs", "10.0.2.2:8080", "app of shop"))
    stage.refused("vpcctl create-peering --vpc1 shop --vpc2 twin", 4, "a router cannot tell them apart")


def with_policies(stage: Stage) -> None:
    title("The library's policies: web asks app, app asks db and fetches updates, and nothing else")
    stage.enter(stage.policies)
    stage.do("vpcctl apply-policy --vpc shop web.json app.json db.json")
    stage.try_all(
        asking("shop/web", "10.0.2.2:8080", "app of shop"),
        asking("shop/app", "10.0.3.2:5432", "db of shop"),
        asking("shop/app", f"{lab.INTERNET}:443", f"from {lab.HOST}"),
        asking("shop/web", "10.0.3.2:5432", None),
        asking("shop/web-2", "10.0.1.2:8443", None),
        asking("shop/db", "10.0.2.2:8080", None),
        asking("shop/web", f"{lab.INTERNET}:80", None),
        asking("billing/jobs", "10.0.2.2:8080", None),
    )


def published(stage: Stage) -> None:
    title("A published port, and a neighbour on the LAN who tries to get around the host")
    neighbour = f"nsenter --net={lab.RUN_LAB}/neighbour"
    stage.do("vpcctl publish-port --vpc shop --instance web --port 443 --target-port 8443")
    # 100.64.0.1 is the first VPC's end of its uplink, to which the host does have a route.
    for destination in ("10.0.0.0/16", "100.64.0.0/16"):
        stage.do(f"{neighbour} ip route add {destination} via {lab.HOST}")
    stage.try_all(
        Probe(f"{neighbour} get {lab.HOST}:443", "web of shop"),
        Probe(f"{neighbour} get 10.0.1.2:8443", None),
        Probe(f"{neighbour} get 100.64.0.1:443", None),
    )


def tightened(stage: Stage) -> None:
    title("A policy that is tightened under two live downloads, while the server keeps sending")
    kept, cut = (stage.watch(instance, "10.0.2.2:8080") for instance in ("shop/web", "shop/web-2"))
    policy = {"subnet": "app", "ingress": [{"action": "allow", "source": "instance:web"}]}
    changed = stage.do("vpcctl apply-policy --vpc shop -", json.dumps(policy, separators=(",", ":")))
    kept.comes_to(lambda lines: sum(sent > changed for sent in sent_times(lines)) >= demo_http.PIECES_PER_SECOND)
    for name, client, goes_on in (("web", kept, True), ("web-2", cut, False)):
        times = sent_times(client.lines)
        after = sum(sent > changed for sent in times)
        words = f"{len(times) - after} pieces before the change, {after} of those sent after it"
        stage.say(f"(the download of {name} {'goes on' if goes_on else 'stopped'})", (after > 0) == goes_on, words)


def taken_down(stage: Stage, before: dict[str, list[str]]) -> None:
    title("All taken down: the host is as it was")
    stage.do("vpcctl status")
    during = host_now()
    stage.do("vpcctl destroy --all --yes")
    after = host_now()
    for name, command in HOST_LISTINGS.items():
        stage.say(command, *comparison(before[name], during[name], after[name]))
    # Settings that came with a kernel module, loaded meanwhile, were nobody's to put back.
    known = set(map(setting_name, before["settings"]))
    states = [[line for line in state["settings"] if setting_name(line) in known] for state in (before, during, after)]
    stage.say(f"({len(known)} settings under net/)", *comparison(*states))


def comparison(before: list[str], during: list[str], after: list[str]) -> tuple[bool, str]:
    """Is it as before, and in words, which tell whether there was anything to remove at all."""
    if after != before:
        left, lost = (
            [line for line in one if line.strip() and line not in other]
            for one, other in ((after, before), (before, after))
        )
        return False, f"left behind: {left[0]}" if left else f"lost: {lost[0]}" if lost else "in another order"
    ours = len(set(during) - set(before))
    return True, f"as before; {ours} {'lines' if ours > 1 else 'line'} came and went" if ours else "as before"


def host_now() -> dict[str, list[str]]:
    """The host's network as it is, as lines that can be compared."""
    found = {name: run(command).stdout.splitlines() for name, command in HOST_LISTINGS.items()}
    return found | {"settings": list(_settings())}


def _settings() -> Iterator[str]:
    for path in sorted(settings.ROOT.glob("net/**/*")):
        if path.is_file() and path.name not in COUNTS:
            try:
                yield f"{path.relative_to(settings.ROOT)} = {path.read_text().strip()}"
            except OSError:  # some are there to be written only
                continue


def setting_name(line: str) -> str:
    """The part of a setting's line that stays."""
    return line.partition(" = ")[0]


# --- Running it ------------------------------------------------------------------------------------------------------


@contextmanager
def programs_on_path() -> Iterator[None]:
    """`serve`, `get` and `watch` as commands; they go with the lab."""
    with tempfile.TemporaryDirectory(dir=lab.RUN_LAB) as directory:
        for name in ("serve", "get", "watch"):
            program = Path(directory, name)
            words = shlex.join([sys.executable, "-P", demo_http.__file__, name])
            program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            program.chmod(0o755)
        os.environ["PATH"] = f"{directory}{os.pathsep}{os.environ['PATH']}"
        yield


def obstacle(policies: Path) -> str:
    """Why the demo cannot run here, in a sentence; empty if it can."""
    if os.environ.get("VPCCTL_LAB") != "1":
        return "it makes and destroys VPCs, and so runs in a lab alone: `./run demo`"
    if run("vpcctl list-vpcs --json").stdout.strip() != "[]":
        return "this lab has VPCs, and the demo destroys all at its end; `./run demo` opens a fresh lab"
    if not (ROOT / policies).is_dir():
        return f"{policies} is missing: it comes with a checkout of the project, not with an installed package"
    return ""


def perform(stage: Stage) -> None:
    """All sections in their order, up to a step that fails and is needed by the others."""
    before = host_now()
    try:
        for section in (build, without_policy, peered, with_policies, published, tightened):
            section(stage)
        taken_down(stage, before)
    except Stop:
        print("The demo ends here: without this step the others mean nothing.")
    finally:
        stage.end()
        run("vpcctl destroy --all --yes")


def main(policies: Path = LIBRARY) -> int:
    """Run the demo; 0 if every step came out as it should, 1 if one did not, 2 where it cannot run."""
    if reason := obstacle(policies):
        print(f"demo: {reason}", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    print("Each line: a command as typed, and what came of it (✓ as it should, ✗ not).")
    print("`serve` is a small web server, `get` and `watch` are its clients; all else is on your machine too.")
    stage, begun = Stage(policies), time.monotonic()
    with programs_on_path():
        perform(stage)
    seconds = time.monotonic() - begun
    print(f"\n{stage.steps - stage.failures} of {stage.steps} steps came out as they should, in {seconds:.0f} s.")
    return 1 if stage.failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
