"""How the demo does its steps: commands, servers and clients are run, and what came of each is said in one line."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from vpcctl.lab import demo_http
from vpcctl.values import dataclass

PATIENCE = 20.0  # seconds for what has to come, on however busy a machine
COLUMN = 68  # where outcomes begin
GREEN, RED, BOLD, DIM = "32", "31", "1", "2"


class Stop(Exception):
    """A step failed without which the others mean nothing."""


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
class Trial:
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


class DemoStage:
    """Runs steps, says what came of each in one line, counts the wrong ones, and ends what it started."""

    def __init__(self, policies: Path) -> None:
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
        started = time.monotonic()
        done = run(command, typed)
        ended = time.monotonic()
        said = f"{ended - started:.1f} s" if done.returncode == 0 else last_words(done)
        self.say(f"{command} <<< {shlex.quote(typed)}" if typed else command, done.returncode == 0, said, needed=True)
        return ended

    def refused(self, command: str, status: int, reason: str) -> None:
        """Run a command that must end with `status` and a sentence that contains `reason`."""
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

    def try_all(self, *probes: Trial) -> None:
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


def asking(instance: str, place: str, page: str | None) -> Trial:
    """A connection from an instance, given as ``vpc/instance``."""
    return Trial(inside(instance, f"get {place}"), page)


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
