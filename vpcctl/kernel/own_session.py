"""A session of its own for a command that runs as a user, on a pseudo-terminal of its own where root has a terminal.

    vpcctl (root)           relays between root's terminal and the pseudo-terminal, and waits (`relay`)
      └ monitor (root)      leads the new session: starts, stops and awaits the command
          └ command (user)  has the pseudo-terminal's user side, and no descriptor of root's terminal

A process that has root's terminal can type into it (TIOCSTI in ioctl_tty(2)), and root's shell would execute that.
Here the command has no descriptor of it, another controlling terminal, and another session.

The monitor exists so that the command can be stopped and continued like any job.  It is in the command's session but
not in its process group; without such a parent the kernel stops no group.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import select
import signal
import socket
import sys
import termios
from collections.abc import Collection, Iterable
from pathlib import Path

from vpcctl.errors import KernelError
from vpcctl.kernel.relay import ASKING, BACKGROUND, FOREGROUND, PASSED_ON, Dispositions, Relay, listen, waiting

_STREAMS = (0, 1, 2)
_CHANGED = (*PASSED_ON, *ASKING, signal.SIGCHLD)
_PTMX = os.makedev(5, 2)


def separate(account: pwd.struct_passwd, preserved: Collection[int] = ()) -> None:
    """Give the command a session of its own; returns in the process that is to become the command.

    Only that process keeps the descriptors `preserved`.

    That is this process where it has no terminal to lose.  Otherwise it is a child, and this process relays, and leaves
    by SystemExit with the child's exit status.  Raises KernelError.
    """
    terminals = [stream for stream in _STREAMS if os.isatty(stream)]
    if not terminals and _left_session():
        return
    sys.stdout.flush()
    outside = _reopened(next((stream for stream in (1, 0, 2) if stream in terminals), None))
    master, slave = _open_pair(outside, account) if outside is not None else (None, None)
    before = {number: signal.getsignal(number) for number in _CHANGED}
    try:
        ours, theirs = socket.socketpair()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the exit status away
        monitor = os.fork()
    except OSError as error:
        raise KernelError("cannot start a session for the command", str(error)) from error
    if monitor == 0:
        _close(outside, master, ours.detach())
        return _lead(slave, terminals, theirs, before, preserved)
    theirs.close()
    _close(slave)
    # A pipe that we kept would not break when the command closes it.
    _let_go(stream for stream in (0, 1) if stream not in terminals)
    _close(*preserved)
    Relay(outside, master, ours, asked={0, 1} <= set(terminals), upstream=1 not in terminals).run(before)
    raise SystemExit(_exit_status(os.waitpid(monitor, 0)[1]))


def _left_session() -> bool:
    """Be in a session without a terminal, if that needs no other process: services are, and what they start can be."""
    # The fields after the program's name: state, parent, group, session, terminal (proc_pid_stat(5)).
    if int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[4]):
        return False
    if os.getsid(0) == os.getpid():
        return True
    try:
        os.setsid()
    except PermissionError:  # the leader of a process group cannot leave it
        return False
    return True


def _reopened(terminal: int | None) -> int | None:
    """The same terminal opened once more: non-blocking for us alone, and both ways however the shell opened it."""
    if terminal is None:
        return None
    if os.fstat(terminal).st_rdev != _PTMX:  # opening the master of a pseudo-terminal makes another one
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{terminal}", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return os.dup(terminal)


def _open_pair(outside: int, account: pwd.struct_passwd) -> tuple[int, int]:
    """A pseudo-terminal with the settings of the one outside, owned by the user as after login(1)."""
    try:
        master, slave = os.openpty()
        os.fchown(slave, account.pw_uid, account.pw_gid)
        os.fchmod(slave, 0o600)
        termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(outside))
    except (OSError, termios.error) as error:
        raise KernelError("cannot make a pseudo-terminal", str(error)) from error
    os.set_blocking(master, False)
    return master, slave


def _close(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)


def _let_go(streams: Iterable[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in streams:
        os.dup2(nothing, stream, inheritable=False)
    os.close(nothing)


def _exit_status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return 128 - code if code < 0 else code


# --- The monitor ------------------------------------------------------------------------------------------------------


def _lead(
    slave: int | None,
    terminals: list[int],
    channel: socket.socket,
    before: Dispositions,
    preserved: Collection[int],
) -> None:
    """Lead the session, and start the command where the relay says; returns in the command alone."""
    os.setsid()
    if slave is not None:
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for stream in terminals:
            os.dup2(slave, stream)
    for number in (*PASSED_ON, *ASKING):
        signal.signal(number, signal.SIG_IGN)
    signals = listen(signal.SIGCHLD)
    place = channel.recv(1)
    if not place:
        os._exit(1)
    command = os.fork()
    if command == 0:
        _place(os.getpid(), slave if place[0] == FOREGROUND else None)
        signal.set_wakeup_fd(-1)
        for number, disposition in before.items():
            signal.signal(number, signal.SIG_IGN if disposition == signal.SIG_IGN else signal.SIG_DFL)
        return
    status = 1
    try:
        _place(command, slave if place[0] == FOREGROUND else None)
        if place[0] == FOREGROUND:
            with contextlib.suppress(OSError):
                channel.send(place)
        _let_go(stream for stream in _STREAMS if stream not in terminals)
        _close(*preserved)
        status = _Monitor(command, slave, channel, signals).attend()
    finally:
        os._exit(status)


def _place(command: int, slave: int | None) -> None:
    """Give the command a process group of its own, in the foreground of `slave`.  Parent and child both do so."""
    with contextlib.suppress(OSError):  # the other one was first, or the terminal outside has gone already
        os.setpgid(command, command)
    with contextlib.suppress(OSError):
        if slave is not None:
            os.tcsetpgrp(slave, command)


class _Monitor:
    """Does for the command what the relay says, and informs the relay when the command stops."""

    def __init__(self, command: int, slave: int | None, channel: socket.socket, signals: int):
        self._command, self._slave, self._channel, self._signals = command, slave, channel, signals
        self._stopped = False

    def attend(self) -> int:
        """Do so until the command has ended; its exit status."""
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        poll.register(self._channel, select.POLLIN)
        while True:
            pid, status = os.waitpid(self._command, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                self._stopped = True
                with contextlib.suppress(OSError):
                    self._channel.send(bytes([os.WSTOPSIG(status)]))
            elif pid:
                return _exit_status(status)
            else:
                ready = [descriptor for descriptor, _ in poll.poll()]
                waiting(self._signals)
                if self._channel.fileno() in ready and not self._obey():
                    poll.unregister(self._channel)

    def _obey(self) -> bool:
        """Do what the relay says; False if it has gone.  If vpcctl ends for any reason, the command ends too."""
        try:
            words = self._channel.recv(64)
        except ConnectionResetError:
            # A relay that was killed before it read our message has hung up, too.
            words = b""
        for word in words or (signal.SIGKILL,):
            # The command has not been awaited, so no other process has its number.
            with contextlib.suppress(ProcessLookupError):
                group = os.getpgid(self._command)
                if word in (FOREGROUND, BACKGROUND):
                    self._continue(word, group)
                else:
                    os.killpg(group, word)
        return bool(words)

    def _continue(self, place: int, group: int) -> None:
        """Continue a command that has stopped, in the terminal's foreground or not.

        One that runs may be a shell that has given the foreground to a job of its own, and keeps it there.
        """
        if self._slave is not None and self._stopped:
            with contextlib.suppress(OSError):
                os.tcsetpgrp(self._slave, group if place == FOREGROUND else os.getpgrp())
        self._stopped = False
        os.killpg(group, signal.SIGCONT)
        if place == FOREGROUND:
            with contextlib.suppress(OSError):
                self._channel.send(bytes([FOREGROUND]))
