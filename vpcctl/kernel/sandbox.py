"""A machine within the machine: one's own namespaces and an init, entered without root, gone without a trace.

    caller ── maker ── init ── the command
    (waits)  (waits)  (reaps)

The *maker* gives itself namespaces (namespaces(7)): a network that is all its own, mounts that hide the real /run, and
for its child a pid namespace.  Whoever lacks the capabilities for these gets them in a user namespace, in which the
caller's own uid and gid are 0 (user_namespaces(7)).  The child is *init* in there: it furnishes the place, starts the
command and reaps what is orphaned.  It ends with the command, and with init the kernel ends whatever is left inside.
Each dies with its parent, so nothing outlives the caller, however that one ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from vpcctl.errors import KernelError, PrivilegeError, VpcctlError
from vpcctl.kernel.namespaces import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    mount,
    unshare,
)
from vpcctl.values import dataclass

_PR_SET_PDEATHSIG = 1
_CAP_NET_ADMIN = 12
_CAP_SYS_ADMIN = 21

# (setting, the value that denies namespaces, a value that allows them, the other way out)
_USER_NAMESPACE_SWITCHES = (
    ("kernel.unprivileged_userns_clone", "0", "1", ", or start it as root"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0", ", or start it as root"),
    ("user.max_user_namespaces", "0", "15000", ", or start it as root"),
)
_SWITCHES = tuple((f"user.max_{kind}_namespaces", "0", "15000", "") for kind in ("net", "mnt", "pid"))


@dataclass(frozen=True, slots=True)
class Standing:
    """A sandbox that is ready: its init's pid as seen from outside, and whether a user namespace fences it in."""

    init: int
    fenced: bool


@dataclass(frozen=True, slots=True)
class Interior:
    """What goes on inside: `furnish` prepares the place, `command` is what it is for and returns its exit status.

    Each is called in a process of its own, init and init's child; `command` may exec(3) instead of returning.
    """

    furnish: Callable[[], None]
    command: Callable[[], int]


# --- Running ----------------------------------------------------------------------------------------------------------


def run(interior: Interior, ready: Callable[[Standing], None] | None = None) -> int:
    """Run a command in a sandbox of its own and return its exit status, 128+n if signal n killed it.

    `ready` is called once the place is furnished.  All that changes for the calling process is that it ignores the
    keyboard's signals meanwhile: they are for the command, which shares its terminal.  Raises PrivilegeError,
    KernelError.
    """
    reading, writing = os.pipe()
    with open(reading) as report, _terminal_lent() as sensitive:
        caller = os.getpid()
        maker = fork(lambda: _make(interior, caller, (reading, writing), sensitive))
        os.close(writing)
        try:
            standing = read_report(report)
            if ready:
                ready(standing)
        except BaseException:
            os.kill(maker, signal.SIGKILL)
            os.waitpid(maker, 0)
            raise
        return _exit_status(os.waitpid(maker, 0)[1])


def _make(interior: Interior, caller: int, pipe: tuple[int, int], sensitive: Sequence[signal.Signals]) -> int:
    """The maker: leave the real machine, then start and await init."""
    reading, report = pipe
    os.close(reading)  # the caller's alone, or writing would not fail when the caller is gone
    try:
        fenced = _isolate()
    except VpcctlError as error:
        write_report(report, error)
        return error.exit_status
    _die_with_parent()
    if os.getppid() != caller:  # it ended before the kernel knew that we care
        return 1
    init = fork(lambda: _be_init(interior, fenced, report, sensitive))
    os.close(report)
    return _exit_status(os.waitpid(init, 0)[1])


def _be_init(interior: Interior, fenced: bool, report: int, sensitive: Sequence[signal.Signals]) -> int:
    """Furnish the place, start the command, reap, and end with the command."""
    _die_with_parent()
    standing = Standing(int(os.readlink("/proc/self")), fenced)  # /proc is still the one outside
    try:
        interior.furnish()
    except VpcctlError as error:
        write_report(report, error)
        return error.exit_status
    write_report(report, standing)  # raises, and so ends everything, if the caller ended before we would have known
    os.close(report)
    command = fork(lambda: _become(interior.command, sensitive))
    while True:
        pid, status = os.wait()
        if pid == command:
            return _exit_status(status)


def _become(command: Callable[[], int], sensitive: Sequence[signal.Signals]) -> int:
    # Python ignores the last two for itself; exec(3) would hand that on.
    for number in (*sensitive, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    return command()


def fork(body: Callable[[], int]) -> int:
    """Run `body` in a child, with what it returns as exit status, and return the child's pid.

    The child never comes back to the caller's code, nor flushes or cleans up what is the caller's.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = body()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _exit_status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return 128 - code if code < 0 else code


def _die_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it ends (PR_SET_PDEATHSIG in prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def _terminal_lent() -> Iterator[list[signal.Signals]]:
    """Ignore the keyboard's signals meanwhile; afterwards be the terminal's foreground again, if so before.

    Yields those that were not ignored before (nohup and a shell's `&` ignore them); the command shall hear these.
    """
    foreground = os.tcgetpgrp(0) if os.isatty(0) else None
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        yield [number for number, action in before.items() if action != signal.SIG_IGN]
    finally:
        if foreground == os.getpgrp():
            # An interactive shell has taken the foreground, and taking it back would stop us with SIGTTOU.
            stopping = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            with contextlib.suppress(OSError):
                os.tcsetpgrp(0, foreground)
            signal.signal(signal.SIGTTOU, stopping)
        for number, action in before.items():
            signal.signal(number, action)


# --- Reports from process to process ----------------------------------------------------------------------------------


def write_report(descriptor: int, outcome: Standing | VpcctlError) -> None:
    """Say in one line what became of a sandbox; `read_report` is the other end."""
    words = asdict(outcome) if isinstance(outcome, Standing) else {type(outcome).__name__: str(outcome)}
    os.write(descriptor, json.dumps(words).encode() + b"\n")


def read_report(report: IO[str]) -> Standing:
    """The sandbox that the other end reported; raises PrivilegeError or KernelError if that is what it reported."""
    line = report.readline()
    if not line:
        raise KernelError("the lab ended before it was ready")
    words = json.loads(line)
    if "init" in words:
        return Standing(**words)
    [(kind, message)] = words.items()
    raise (PrivilegeError if kind == PrivilegeError.__name__ else KernelError)(message)


# --- Leaving the real machine -----------------------------------------------------------------------------------------


def _has_privilege() -> bool:
    """Does this process hold the capabilities that namespaces, mounts and links take?  (uid 0 alone says nothing.)"""
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:", 1)[1].split(None, 1)[0], 16)
    return all(effective >> capability & 1 for capability in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


def _isolate() -> bool:
    """Move this process to mount and network namespaces of its own; its next child is init of a new pid namespace.

    Returns whether that took a user namespace.  The process must have one thread.  Raises PrivilegeError, saying what
    denies it and how to allow it.
    """
    fenced = not _has_privilege()
    try:
        if fenced:
            _enter_user_namespace()
        unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID)
    except OSError as error:
        raise PrivilegeError(_denial(error, fenced)) from error
    return fenced


def _enter_user_namespace() -> None:
    """A user namespace in which we are root; one's own ids may be mapped without newuidmap(1)."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    # user_namespaces(7): an unprivileged process must give up setgroups before it may write gid_map.
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", file).write_text(text)


def _denial(error: OSError, fenced: bool) -> str:
    """Why the kernel gave no namespace, and the command that changes its mind."""
    for setting, denies, allows, otherwise in (_USER_NAMESPACE_SWITCHES if fenced else ()) + _SWITCHES:
        with contextlib.suppress(OSError):
            if Path("/proc/sys", setting.replace(".", "/")).read_text().strip() == denies:
                return (
                    f"the lab needs namespaces of its own, and {setting} = {denies} denies them; "
                    f"allow them with `sudo sysctl {setting}={allows}`{otherwise}"
                )
    reason = "the limit is used up" if error.errno in (errno.ENOSPC, errno.EUSERS) else os.strerror(error.errno or 0)
    return (
        f"the lab needs namespaces of its own, and the kernel gives none ({reason}); start it as root, "
        "or, inside a container, give that container CAP_SYS_ADMIN or a seccomp profile that allows unshare(2)"
    )


def mount_own(directories: Sequence[str], hidden: Sequence[str] = ()) -> None:
    """Give this mount namespace an empty /run with `directories` in it, and its own /proc and /sys where allowed.

    The directories `hidden`, as far as they are there, are empty too.  Raises KernelError.
    """
    try:
        mount("", "/", flags=MS_REC | MS_PRIVATE)
        mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        for directory in directories:
            os.makedirs(directory)
        for directory in filter(os.path.isdir, hidden):
            mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    except OSError as error:
        raise KernelError("cannot mount a /run of the lab's own", str(error)) from error
    # A container's masks over /proc and /sys forbid new instances to a user namespace (mount_namespaces(7)).  The old
    # ones serve: /proc then shows the outer pids, /sys the outer links.
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys")):
        for writable in (0, MS_RDONLY):
            with contextlib.suppress(OSError):
                mount(kind, target, kind, MS_NOSUID | MS_NODEV | MS_NOEXEC | writable)
                break


def entry(init: int, fenced: bool, network: Path | None = None) -> list[str]:
    """The words, for in front of a command, that run it in the sandbox whose init is `init`.

    `network` is a namespace file as seen inside; None is the sandbox's own.  The command dies with nsenter(1), which it
    has for a parent, so killing that kills it; as the pid namespace's member it dies with the sandbox too.
    """
    inside = f"/proc/{init}/root{network}" if network else f"/proc/{init}/ns/net"
    user = ["--user", "--preserve-credentials"] if fenced else []
    words = ["nsenter", f"--target={init}", *user, "--mount", "--pid", f"--net={inside}"]
    return [*words, "setpriv", "--pdeathsig=KILL", "--"]
