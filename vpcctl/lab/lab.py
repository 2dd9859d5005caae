"""The lab: a throw-away machine for a person (`vpcctl lab`) and for the tests (`Lab`) alike.

    lab host    eth0 198.51.100.2  ─┐
                                    ├─ LAN ─ eth0 198.51.100.1   internet: all of 203.0.113.0/24
    neighbour   eth0 198.51.100.20 ─┘

The lab host is as a fresh machine: no bridge, table or named namespace.  The other two are not listed by `ip netns`;
enter them with `nsenter --net=/run/lab/internet` or `…/neighbour`.  In each a process answers (`responder`).  All of
it, the state directory included, goes with its sandbox (`kernel.sandbox`); files outside /run are the real ones, but
for systemd's units.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from vpcctl.errors import VpcctlError
from vpcctl.kernel import lan, sandbox, service
from vpcctl.lab import responder

HOST = IPv4Address("198.51.100.2")
NEIGHBOUR = IPv4Address("198.51.100.20")
INTERNET = IPv4Address("203.0.113.10")

RUN_LAB = Path("/run/lab")
STATE_DIR = Path("/run/vpcctl-state")

_LAN_GATEWAY = IPv4Address("198.51.100.1")
_STATIONS = (
    lan.Station(
        "internet",
        RUN_LAB / "internet",
        (IPv4Interface(f"{_LAN_GATEWAY}/24"),),
        prefixes=(IPv4Network("203.0.113.0/24"),),
        speaks_as=INTERNET,
    ),
    lan.Station("host", None, (IPv4Interface(f"{HOST}/24"),), (_LAN_GATEWAY,)),
    lan.Station("neighbour", RUN_LAB / "neighbour", (IPv4Interface(f"{NEIGHBOUR}/24"),), (_LAN_GATEWAY,)),
)

_ROOT = Path(__file__).resolve().parents[2]
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as shells say it

_WELCOME = f"""\
A throw-away machine: its network, processes and /run disappear when you type `exit`. All other files are real.

  you       {HOST} on eth0        neighbour on the LAN  {NEIGHBOUR}
  internet  203.0.113.0/24: every address answers ping, TCP and UDP on any port, e.g. {INTERNET}

Try   vpcctl create-vpc --name shop --cidr 10.0.0.0/16
      vpcctl create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public
      vpcctl exec --vpc shop --subnet web -- ping -c 1 {INTERNET}
A shell on the neighbour:  nsenter --net={RUN_LAB}/neighbour bash
"""

_SHELL_SETTINGS = """\
PS1='vpcctl-lab:\\w\\$ '
unset HISTFILE PROMPT_COMMAND
eval "$(vpcctl completion bash)"
"""

# `vpcctl` on the lab's PATH is this very one, wherever it was started from.
_START = f"import runpy, sys; sys.path.insert(0, {str(_ROOT)!r}); runpy.run_module('vpcctl', None, '__main__', True)"
_PROGRAM = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -c {shlex.quote(_START)} "$@"\n'


# --- A command in a lab of its own ------------------------------------------------------------------------------------


def run(command: Sequence[str], *, ready: Callable[[sandbox.Standing], None] | None = None) -> int:
    """Run `command` (empty: an interactive shell) in a new lab and return its exit status, 128+n if signal n killed it.

    Raises PrivilegeError where namespaces are denied, KernelError.  `ready` is called once the lab is complete.
    """
    return sandbox.run(sandbox.Interior(_furnish, lambda: _become(command)), ready)


def _furnish() -> None:
    """Everything in the lab that is there before the command."""
    sandbox.mount_own(("/run/netns", "/run/lock", "/run/user", str(RUN_LAB / "bin")), hidden=[str(service.UNITS)])
    (RUN_LAB / "bashrc").write_text(_SHELL_SETTINGS)
    program = RUN_LAB / "bin" / "vpcctl"
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    lan.build(RUN_LAB / "lan", _STATIONS)
    for station in _STATIONS:
        if station.mounted:
            with lan.inside(station.mounted):
                lan.redirect_every_port(responder.PORT)
                _have_answered(responder.listen())


def _have_answered(sockets: Sequence[socket.socket]) -> None:
    """Start a responder in the namespace of this moment: what it says leaves from there."""
    sandbox.fork(lambda: _answer(sockets))
    for listener in sockets:
        listener.close()


def _answer(sockets: Sequence[socket.socket]) -> int:
    """A station's process, out of reach of the terminal's signals."""
    os.setsid()
    responder.serve(sockets)
    return 0


def _become(command: Sequence[str]) -> int:
    """Turn this process into the command; returns only if it is not found."""
    words = list(command) or _shell()
    try:
        os.execvpe(words[0], words, environment())
    except OSError as error:
        # Without a slash the error is about some directory of PATH that cannot be read as often as not.
        exists = "/" in words[0] and os.path.exists(words[0])
        os.write(2, f"vpcctl lab: {words[0]}: {error.strerror if exists else 'command not found'}\n".encode())
        return _NOT_EXECUTABLE if exists else _NOT_FOUND


def _shell() -> list[str]:
    """The interactive shell's words; prints a welcome if a person can read it."""
    if sys.stdin.isatty():
        os.write(2, _WELCOME.encode())
    return ["bash", "--rcfile", str(RUN_LAB / "bashrc")] if shutil.which("bash") else ["sh"]


def environment() -> dict[str, str]:
    """The environment of everything in a lab: ours, and where things are."""
    places = [str(RUN_LAB / "bin"), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    # ip, nft and sysctl live where Debian's ordinary users do not look.
    places += [place for place in ("/usr/sbin", "/sbin") if place not in places]
    inherited = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}  # it is under /run
    return inherited | {
        "PATH": os.pathsep.join(places),
        "PS1": "vpcctl-lab:$PWD$ ",
        "VPCCTL_LAB": "1",
        "VPCCTL_STATE_DIR": str(STATE_DIR),
        "LAB_HOST": str(HOST),
        "LAB_NEIGHBOUR": str(NEIGHBOUR),
        "LAB_INTERNET": str(INTERNET),
    }


# --- A lab to run many commands in ------------------------------------------------------------------------------------


class Lab:
    """A lab that exists while it is open, for tests: ``with Lab() as lab: lab.run(["ip", "link"])``.

    Ends with the process that opened it, even one that is killed.  Any number of labs can exist at the same time.
    """

    def __init__(self) -> None:
        self._standing: sandbox.Standing | None = None
        self._holder: subprocess.Popen[str] | None = None
        self._background: list[subprocess.Popen[str]] = []

    def open(self) -> Lab:
        """Make the lab.  Raises PrivilegeError, KernelError."""
        # It lives by its standard input: when we end, however that comes, `hold` reads the end of it.
        self._holder = subprocess.Popen(
            [sys.executable, "-P", "-m", "vpcctl.lab"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
        )
        try:
            assert self._holder.stdout
            self._standing = sandbox.read_report(self._holder.stdout)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End the lab and everything in it; returns when all is gone.  Closing twice is fine."""
        if self._holder is None:
            return
        for process in self._background:
            # nsenter(1) stops itself when its command stops.  Init cannot end before nsenter has awaited that command.
            process.send_signal(signal.SIGCONT)
        with self._holder as holder:
            assert holder.stdin
            holder.stdin.close()
            try:
                holder.wait(timeout=10)
            except subprocess.TimeoutExpired:
                holder.kill()
        for process in self._background:
            with contextlib.suppress(BrokenPipeError), process:  # closes its pipes and awaits it
                pass
        self._background.clear()
        self._holder = self._standing = None

    def __enter__(self) -> Lab:
        return self if self._holder else self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        command: Sequence[str],
        *,
        netns: str | None = None,
        input: str | None = None,
        check: bool = True,
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` to its end, its output captured as text.

        `netns` is None (the lab host), `internet`, `neighbour` or a name under /run/netns.  `env` comes on top of the
        lab's own.  With `check`, a status other than 0 raises CalledProcessError with the output in a note.
        """
        result = subprocess.run(
            self._words(command, netns, cwd),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=_surroundings(env),
            check=False,
        )
        if check and result.returncode:
            error = subprocess.CalledProcessError(result.returncode, list(command), result.stdout, result.stderr)
            error.add_note(f"stdout:\n{result.stdout}\nstderr:\n{result.stderr}")
            raise error
        return result

    def popen(
        self,
        command: Sequence[str],
        *,
        netns: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start `command` and return; pipes on all three streams unless `options` (subprocess.Popen's) say otherwise.

        What is returned is nsenter(1): `kill` and `terminate` end the command (by SIGKILL), and no other signal
        reaches it.  It ends with the lab, too.
        """
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            self._words(command, netns, cwd), env=_surroundings(env), **({"text": True} | pipes | options)
        )
        self._background.append(process)
        return process

    def python(self, code: str | Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Python source, or a file of it, with this interpreter; `options` are those of `run`."""
        program = [str(code)] if isinstance(code, Path) else ["-c", code]
        return self.run([sys.executable, *program, *arguments], **options)

    def vpcctl(self, *words: str, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run this vpcctl; AssertionError with all it said if its exit status is not `status`."""
        result = self.run([sys.executable, "-m", "vpcctl", *words], check=False, **options)
        if result.returncode != status:
            raise AssertionError(
                f"vpcctl {shlex.join(words)}: exit status {result.returncode}, not {status}\n"
                f"stdout:\n{result.stdout}\nstderr:\n{result.stderr}"
            )
        return result

    def _words(self, command: Sequence[str], netns: str | None, cwd: str | Path | None) -> list[str]:
        # A pid that is no longer held may belong to any process, and its namespaces may be the real machine's.
        if self._standing is None or self._holder is None or self._holder.poll() is not None:
            raise RuntimeError("the lab is not open, or has ended")
        unnamed = {station.name: station.mounted for station in _STATIONS}
        network = unnamed.get(netns, Path("/run/netns") / netns) if netns else None
        # nsenter starts in / of the lab's mounts, and older ones cannot go elsewhere.
        moved = ["env", f"--chdir={cwd}"] if cwd else []
        return [*sandbox.entry(self._standing.init, self._standing.fenced, network), *moved, *command]


def _surroundings(additions: Mapping[str, str] | None) -> dict[str, str]:
    return environment() | {"PYTHONPATH": str(_ROOT)} | dict(additions or {})


def hold() -> int:
    """The process behind a `Lab`: report on standard output, then keep the lab until standard input ends."""
    try:
        return run(["cat"], ready=lambda standing: sandbox.write_report(sys.stdout.fileno(), standing))
    except VpcctlError as error:
        sandbox.write_report(sys.stdout.fileno(), error)
        return error.exit_status
