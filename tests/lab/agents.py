"""A real agent in a lab: start it, read its log, signal it, and wait until the kernel has the desired state."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tests.lab.traffic import eventually
from tests.lab.warm import Warm
from vpcctl.lab import Lab

# How long a repair may take on a busy machine.
SOON = 20.0


class AgentProcess:
    """An agent that runs in a lab and logs JSON."""

    def __init__(self, lab: Lab, *words: str, before: tuple[str, ...] = (), env: Mapping[str, str] | None = None):
        self.lab = lab
        self._log = os.fdopen(os.memfd_create("log"), "w+")
        command = [*before, sys.executable, "-m", "vpcctl", "-v", *words, "agent", "--log-format", "json"]
        self.process = lab.popen(command, stderr=self._log.fileno(), env=env)
        self.await_entry("started")
        self.pid = int(self.entries("started")[0]["pid"])

    def entries(self, event: str = "") -> list[dict[str, Any]]:
        """The log entries so far, or those of one kind."""
        size = os.fstat(self._log.fileno()).st_size
        lines = os.pread(self._log.fileno(), size, 0).decode().split("\n")[:-1]
        found = []
        for line in lines:
            assert "Traceback" not in line, "\n".join(lines)
            if line.startswith("{"):
                found.append(json.loads(line))
        return [entry for entry in found if event in ("", entry["event"])]

    def await_entry(self, event: str, number: int = 1, patience: float = SOON) -> dict[str, Any]:
        """Wait for the `number`th entry of a kind."""
        assert eventually(lambda: len(self.entries(event)) >= number or self.ended, patience), self.entries()
        found = self.entries(event)
        assert len(found) >= number, (self.process.poll(), self.entries())
        return found[number - 1]

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def signal(self, name: str) -> None:
        """Send it a signal."""
        self.lab.run(["kill", f"-{name}", str(self.pid)])

    def end(self, name: str = "TERM", patience: float = SOON) -> int:
        """End it by a signal; returns its exit status."""
        self.signal(name)
        return self.process.wait(patience)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process for a while."""
        self.signal("STOP")
        try:
            yield
        finally:
            self.signal("CONT")

    def calm(self, seconds: float = 0.7) -> None:
        """Wait until it logs nothing more."""
        known, since = -1, time.monotonic()
        while time.monotonic() - since < seconds:
            if len(self.entries()) != known:
                known, since = len(self.entries()), time.monotonic()
            time.sleep(0.05)

    def processor(self) -> float:
        """Seconds of processor time so far."""
        fields = self.lab.run(["cat", f"/proc/{self.pid}/stat"]).stdout.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def switches(self) -> int:
        """Context switches so far: each return from a wait is one."""
        status = self.lab.run(["cat", f"/proc/{self.pid}/status"]).stdout
        return sum(int(number) for number in re.findall(r"ctxt_switches:\s+(\d+)", status))

    def memory(self) -> int:
        """Resident KiB."""
        status = self.lab.run(["cat", f"/proc/{self.pid}/status"]).stdout
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])

    @functools.cached_property
    def run(self) -> Warm:
        """Runs commands in the lab."""
        return Warm(self.lab).__enter__()

    def in_sync(self) -> bool:
        """Has the kernel the desired state?"""
        return self.run("status", status=None).status == 0

    def assert_heals(self, patience: float = SOON) -> None:
        """Assert that the kernel reaches the desired state without a command."""
        assert eventually(self.in_sync, patience), self.entries()[-5:]

    def close(self) -> None:
        """Kill it, whatever its state."""
        if "run" in self.__dict__:
            self.run.__exit__()
        self.process.kill()
        self._log.close()


@contextlib.contextmanager
def agent(lab: Lab, *words: str, **options: Any) -> Iterator[AgentProcess]:
    """A running agent, after its first look."""
    with contextlib.closing(AgentProcess(lab, *words, **options)) as running:
        assert eventually(
            lambda: bool({"compared", "repaired", "failed"} & {one["event"] for one in running.entries()})
        )
        yield running
