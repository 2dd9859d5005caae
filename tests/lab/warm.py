"""The command line from a warm process: a command takes milliseconds, and each still is a process of its own.

As a program it obeys a JSON object a line on standard input, and answers each by a line on standard output.  A command
runs in a fork of it, so that nothing of one is left for the next; strace(1) can be put on that fork, to tell its
system calls or to have one of them fail or kill.  `Warm` is the hand that holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import pkgutil
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 60.0
LOG = "/run/strace.log"
SIOCGIFFLAGS, IFF_UP = 0x8913, 0x1  # linux/sockios.h, linux/if.h
# What commands import late is imported before the first of them: each would do it anew, and with other system calls
# while Python still writes what it has compiled.
PACKAGES = ("model", "documents", "compiler", "analysis", "resources", "kernel", "engine", "doctor", "cli")


# --- The hand ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended: its exit status (negative for a signal), what it said, and its system calls if traced."""

    words: str
    status: int
    out: str
    err: str
    calls: str = ""

    def __str__(self) -> str:
        return f"vpcctl {self.words}: status {self.status}\n{self.out}{self.err}"


class Warm:
    """A warm process in a lab, as `with Warm(lab) as run: run("list-vpcs")`."""

    def __init__(self, lab: Any):
        self._process = lab.popen([sys.executable, "-m", "tests.lab.warm"], stderr=None, cwd=Path(__file__).parents[2])

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def __call__(
        self, words: str, *, status: int | None = 0, input: str = "", strace: Sequence[str] | None = None
    ) -> Ran:
        """Run a command; AssertionError with what it said if its exit status is not `status`.

        `strace` are options of strace(1), whose log is then `calls`.
        """
        ran = Ran(words, **self._tell("run", words=words.split(), input=input, strace=strace))
        assert status in (None, ran.status), f"status {status} was expected\n{ran}"
        return ran

    def routers(self) -> dict[str, Any]:
        """Of each router namespace: the names of its links that are up, and whether a table judges what they forward.

        One that is there but holds no namespace is told as None.
        """
        return self._tell("routers")

    def _tell(self, act: str, **words: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"act": act, **words}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the warm process ended with status {self._process.wait(5)}"
        return json.loads(line)


# --- The program ------------------------------------------------------------------------------------------------------


def run(words: list[str], input: str, strace: list[str] | None) -> dict[str, Any]:
    """Run a command in a fork of this process."""
    streams = [os.memfd_create(name) for name in ("in", "out", "err")]
    os.pwrite(streams[0], input.encode(), 0)
    gate, opener = os.pipe()
    child = os.fork()
    if child == 0:
        _become(words, streams, gate, opener)
    os.close(gate)
    tracer = _traced(child, strace) if strace is not None else None
    os.close(opener)
    status = _awaited(child)
    if tracer is not None:
        tracer.wait()
    out, err = (os.pread(stream, 1 << 20, 0).decode(errors="replace") for stream in streams[1:])
    for stream in streams:
        os.close(stream)
    calls = Path(LOG).read_text(errors="replace") if tracer is not None else ""
    return {"status": status, "out": out, "err": err, "calls": calls}


def _become(words: list[str], streams: list[int], gate: int, opener: int) -> None:
    """Turn the fork into the command; it starts when nobody holds the other end of the gate."""
    # Otherwise the first of several equal commands may make other system calls than those after it.
    sys.dont_write_bytecode = True
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.close(opener)
    os.read(gate, 1)
    from vpcctl.cli import main

    try:
        main(words)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(99)


def _traced(child: int, options: list[str]) -> subprocess.Popen[bytes]:
    """Put strace(1) on a process; returns when it is on."""
    words = ["strace", "-f", "-qq", "-s", "32", "-o", LOG, "-p", str(child), *options]
    tracer = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
        assert tracer.poll() is None, f"strace could not be put on the command: {words}"
        time.sleep(0.001)
    return tracer


def _awaited(child: int) -> int:
    """The exit status of a process; it is killed when it takes too long, which is told as status 124."""
    end = time.monotonic() + PATIENCE
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 124
        time.sleep(0.002)


def routers() -> dict[str, Any]:
    """See `Warm.routers`."""
    names = (
        [name for name in os.listdir("/run/netns") if name.endswith("-router")] if Path("/run/netns").is_dir() else []
    )
    return {name: _in_a_fork(lambda name=name: _router(name)) for name in names}


def _router(name: str) -> Any:
    from vpcctl.errors import KernelError
    from vpcctl.kernel.namespaces import entered, is_namespace

    if not is_namespace(name):
        return None
    with contextlib.suppress(KernelError), entered(name):
        return [sorted(filter(_is_up, (link for _, link in socket.if_nameindex()))), _judged()]
    return None


def _is_up(link: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        answer = fcntl.ioctl(line, SIOCGIFFLAGS, struct.pack("16sH14x", link.encode(), 0))
    return link != "lo" and bool(struct.unpack_from("16sH", answer)[1] & IFF_UP)


def _judged() -> bool:
    """Does an inet table of the calling thread's namespace that is awake drop what it forwards by default?"""
    from nftables import Nftables

    text = Nftables().cmd("list ruleset inet")[1]
    tables = [block for block in re.split(r"^(?=table )", text, flags=re.MULTILINE) if block.startswith("table inet ")]
    hook = re.compile(r"type filter hook forward priority filter; policy drop;")
    return any(hook.search(table) and "flags dormant" not in table for table in tables)


def _in_a_fork(ask: Callable[[], Any]) -> Any:
    """The answer of `ask`, given in a process that has not been anywhere before."""
    answer, mouth = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(mouth, json.dumps(ask()).encode())
        os._exit(0)
    os.close(mouth)
    with os.fdopen(answer) as heard:
        told = json.loads(heard.read())
    os.waitpid(child, 0)
    return told


def serve() -> None:
    """Obey until standard input ends."""
    for package in PACKAGES:
        top = importlib.import_module(f"vpcctl.{package}")
        for module in pkgutil.walk_packages(top.__path__, f"{top.__name__}."):
            importlib.import_module(module.name)
    for line in sys.stdin:
        words = json.loads(line)
        answer = {"run": run, "routers": routers}[words.pop("act")](**words)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
