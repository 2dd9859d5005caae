"""Notifications to systemd: our own sd_notify(3), and its watchdog.

The protocol is text in datagrams to the socket that NOTIFY_SOCKET names; an address that begins with ``@`` is an
abstract one (unix(7)).  Without a supervisor nothing is sent.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping


class Supervisor:
    """The process that started us, if it asks for notifications."""

    def __init__(self, environment: Mapping[str, str], process: int):
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._status = ""
        # Half the period that the watchdog asks for (sd_watchdog_enabled(3)).
        self.interval: float | None = None
        self._fed = float("-inf")
        meant = environment.get("WATCHDOG_PID", str(process)) == str(process)
        period = environment.get("WATCHDOG_USEC", "")
        if self._address and meant and period.isdecimal() and int(period) > 0:
            self.interval = int(period) / 2_000_000

    def ready(self) -> None:
        """Report that the service is up."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Report that the service ends because it was asked to."""
        self._send("STOPPING=1")

    def status(self, words: str) -> None:
        """Report the state of the service, in one line."""
        words = " ".join(words.split())
        if words != self._status:
            self._status = words
            self._send(f"STATUS={words}")

    def feed(self, now: float) -> None:
        """Notify the watchdog, if it is time to."""
        if self.interval is not None and now - self._fed >= self.interval:
            self._fed = now
            self._send("WATCHDOG=1")

    def wait(self, now: float) -> float | None:
        """Seconds until the next notification of the watchdog; None without a watchdog."""
        return None if self.interval is None else max(0.0, self._fed + self.interval - now)

    def _send(self, words: str) -> None:
        if not self._address:
            return
        place = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # A supervisor that does not listen is no reason to fail.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(words.encode(), place)
