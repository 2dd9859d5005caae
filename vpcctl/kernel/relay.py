"""The relay between root's terminal and a pseudo-terminal: bytes, sizes and signals, until the command has ended.

The relay holds at most one chunk for each direction and interprets nothing.  A socket connects it with the command's
monitor (`own_session`).  Each message on it is one byte:

- to the monitor: a signal for the command, or FOREGROUND or BACKGROUND, which continues the command there;
- from the monitor: the signal that stopped the command, or FOREGROUND, when the command has come to the foreground.

The command starts in the foreground only if standard input and standard output are both terminals.  Otherwise another
program may need the keyboard, for example in `… | less`.  The keyboard is then not read until the command asks for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import termios
from collections.abc import Callable
from typing import Any

FOREGROUND, BACKGROUND = 0x80, 0x81

# Signals that would end or stop vpcctl.  They are passed on: the command decides what to do.
PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
             signal.SIGTSTP)  # fmt: skip
# The signals that stop a background process when it uses the terminal.
ASKING = (signal.SIGTTIN, signal.SIGTTOU)

_CHUNK = 65536
# More than the kernel keeps for a terminal's reader (drivers/tty/tty_buffer.c, n_tty.c).
_HELD = 4 * 65536
_PATIENCE = 1000  # ms for a terminal to take what is left
_ENDING = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL

Dispositions = dict[signal.Signals, Any]


def listen(*numbers: signal.Signals) -> int:
    """Have the numbers of these signals written to a pipe (signal.set_wakeup_fd); return its reading end."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return reading


def waiting(descriptor: int) -> bytes:
    """The bytes that can be read at once; empty if none have come yet."""
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return b""


class Relay:
    """Root's side.

    `outside` and `master` are both None if root has no terminal.  `asked` says that the command wants the keyboard.
    `upstream` says that other programs print on the terminal outside, too.
    """

    def __init__(self, outside: int | None, master: int | None, channel: socket.socket, asked: bool, upstream: bool):
        self._outside, self._master, self._channel = outside, master, channel
        self._asked, self._upstream = asked, upstream
        self._typed = self._printed = b""
        self._kept: list[Any] | None = None  # settings of the terminal outside while its keyboard is lent
        self._signals = -1
        self._unanswered = 0  # FOREGROUND bytes without an answer: Ctrl-C would miss the command
        self._ending = False  # a signal has asked us to end

    def run(self, before: Dispositions) -> None:
        """Relay until the monitor has ended.  The terminal outside is restored in every case."""
        passed_on = [number for number in PASSED_ON if before[number] != signal.SIG_IGN]
        self._signals = listen(*passed_on, signal.SIGCONT, signal.SIGWINCH)
        try:
            self._continue()
            while self._turn():
                pass
            self._drain()
        finally:
            self._give_back()

    # -- one turn ------------------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Wait until something can be done, and do it; False when the monitor has ended."""
        actions = self._actions()
        poll = select.poll()
        for descriptor, (events, _) in actions.items():
            poll.register(descriptor, events)
        poll.register(self._channel, select.POLLIN)
        ready = dict(poll.poll())
        if self._channel.fileno() in ready:
            return self._hear()
        for descriptor, events in ready.items():
            actions[descriptor][1](events)
        return True

    def _actions(self) -> dict[int, tuple[int, Callable[[int], None]]]:
        """The events to wait for on each descriptor, and the action for them.

        A side is read only when the other side has taken everything.
        """
        actions: dict[int, tuple[int, Callable[[int], None]]] = {
            self._signals: (select.POLLIN, lambda _: self._receive(waiting(self._signals)))
        }
        if self._outside is None or self._master is None:
            return actions
        reading = self._kept is not None and not self._unanswered and not self._typed
        outside = (select.POLLIN if reading else 0) | (select.POLLOUT if self._printed else 0)
        inside = (0 if self._printed else select.POLLIN) | (select.POLLOUT if self._typed else 0)
        if outside:
            actions[self._outside] = (outside, self._serve_outside)
        if inside:
            actions[self._master] = (inside, self._serve_inside)
        return actions

    def _hear(self) -> bool:
        try:
            numbers = self._channel.recv(64)
        except ConnectionResetError:  # the monitor ended before it read our last byte
            return False
        for number in numbers:
            if number == FOREGROUND:
                self._unanswered -= 1
            else:
                self._stopped(signal.Signals(number))
        return bool(numbers)

    def _serve_inside(self, events: int) -> None:
        if self._master is None:
            return
        try:
            if events & select.POLLOUT:
                with contextlib.suppress(BlockingIOError):
                    self._typed = self._typed[os.write(self._master, self._typed) :]
            if not self._printed and events & ~select.POLLOUT:
                self._printed = waiting(self._master)
        except OSError:  # no process holds the other side any more
            return self._hang_up()
        if self._printed:
            self._serve_outside(select.POLLOUT)
        return None

    def _serve_outside(self, events: int) -> None:
        if self._outside is None or self._master is None:
            return
        gone = events & _GONE
        try:
            if events & select.POLLOUT:
                with contextlib.suppress(BlockingIOError):
                    self._printed = self._printed[os.write(self._outside, self._printed) :]
            if events & select.POLLIN:
                with contextlib.suppress(BlockingIOError):
                    self._typed = os.read(self._outside, 4096)
                    gone = gone or not self._typed
        except OSError:
            gone = True
        if gone:
            self._hang_up()
            self._say(signal.SIGHUP, signal.SIGCONT)

    def _drain(self) -> None:
        """Write what the command printed last.

        Background processes of the command may print for ever, so at most as much is read as a terminal can hold.
        If the terminal accepts nothing, as after Ctrl-S, this waits for it, unless a signal has asked us to end.
        """
        taken = 0
        while self._outside is not None and self._master is not None:
            if not self._printed and taken < _HELD:
                with contextlib.suppress(OSError):
                    self._printed = waiting(self._master)
                taken += len(self._printed)
            if not self._printed:
                return
            poll = select.poll()
            poll.register(self._outside, select.POLLOUT)
            poll.register(self._signals, select.POLLIN)
            ready = dict(poll.poll(_PATIENCE if self._ending else None))
            if self._outside in ready:
                self._serve_outside(ready[self._outside])
            elif self._ending:
                return
            elif self._signals in ready:
                self._receive(waiting(self._signals))

    # -- signals -------------------------------------------------------------------------------------------------

    def _say(self, *words: int) -> None:
        with contextlib.suppress(OSError):  # the monitor has ended; the next turn notices
            self._channel.sendall(bytes(words))

    def _receive(self, numbers: bytes) -> None:
        for number in numbers:
            self._ending = self._ending or number in _ENDING
            if number == signal.SIGCONT:
                self._continue()
            elif number != signal.SIGWINCH:
                self._say(number)
            else:
                self._resize()
                if self._kept is None:  # the kernel signals the foreground itself
                    self._say(number)

    def _stopped(self, number: signal.Signals) -> None:
        """The command has stopped: lend it the keyboard if it waits for that, else stop, too."""
        if number in ASKING and self._outside is not None:
            self._asked = True
            if self._has_foreground():
                return self._continue()
        return self._suspend(number)

    def _suspend(self, number: signal.Signals) -> None:
        """Stop the whole job of this process, as its terminal would, until a shell continues it."""
        lent = self._kept is not None
        self._give_back()
        self._receive(waiting(self._signals).replace(bytes([signal.SIGCONT]), b""))
        # The kernel ignores SIGTSTP for a job that no shell could continue.  It does not ignore SIGSTOP.
        stop = signal.SIGTSTP if number == signal.SIGSTOP else number
        handler = signal.signal(stop, signal.SIG_DFL)
        os.kill(0, stop)
        signal.signal(stop, handler)
        heard = waiting(self._signals)
        self._receive(heard)
        if signal.SIGCONT in heard:
            return
        if number in ASKING:
            self._hang_up()  # the command reads end of file, as it would outside
        if number != signal.SIGSTOP:
            self._continue()
        elif lent:
            self._take()  # the sender of SIGSTOP will continue it

    def _continue(self) -> None:
        """Let the command run.  It gets the keyboard if it wants it and if we have it."""
        lent = self._master is not None and self._asked and self._has_foreground()
        if lent:
            self._take()
        else:
            self._give_back()
        self._resize()
        self._unanswered += lent
        self._say(FOREGROUND if lent else BACKGROUND)

    # -- the terminal outside ------------------------------------------------------------------------------------

    def _has_foreground(self) -> bool:
        """May we read the terminal outside?  A terminal that does not control us restricts no reader."""
        try:
            return self._outside is not None and os.tcgetpgrp(self._outside) == os.getpgrp()
        except OSError:
            return True

    def _take(self) -> None:
        """Pass every key on as it is; the pseudo-terminal interprets keys such as Ctrl-C."""
        if self._kept is not None or self._outside is None:
            return
        try:
            kept = termios.tcgetattr(self._outside)
            termios.tcsetattr(self._outside, termios.TCSANOW, self._raw(termios.tcgetattr(self._outside)))
        except termios.error:  # it has gone; the next read notices
            return
        self._kept = kept

    def _raw(self, settings: list[Any]) -> list[Any]:
        settings[0] &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR
                         | termios.IGNCR | termios.ICRNL | termios.IXON)  # fmt: skip
        settings[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        if not self._upstream:  # otherwise other programs print there, too, and Ctrl-C is for all of them
            settings[1] &= ~termios.OPOST
            settings[3] &= ~termios.ISIG
        settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
        return settings

    def _give_back(self) -> None:
        if self._kept is None or self._outside is None:
            return
        handler = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._outside, termios.TCSANOW, self._kept)
        signal.signal(signal.SIGTTOU, handler)
        self._kept = None

    def _resize(self) -> None:
        if self._outside is not None and self._master is not None:
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(self._outside, termios.TIOCGWINSZ, bytes(8))
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _hang_up(self) -> None:
        """Close the master: the command then sees that its terminal has hung up."""
        self._give_back()
        if self._master is not None:
            os.close(self._master)
        self._master = None
        self._typed = self._printed = b""
