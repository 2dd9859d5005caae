"""The agent's log: sentences for people, or one JSON object a line for machines.

Where standard error is the journal's own stream (JOURNAL_STREAM, systemd.exec(5)), each line begins with its level as
sd-daemon(3) has it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

ERROR, WARNING, INFO, DEBUG = 3, 4, 6, 7
LEVELS = {ERROR: "error", WARNING: "warning", INFO: "info", DEBUG: "debug"}
# Objects that one entry for people names; the others are counted.
NAMED = 10


class Journal:
    """Writes entries to a stream; those that are less urgent than `most` are left out."""

    def __init__(
        self,
        stream: TextIO,
        *,
        as_json: bool = False,
        most: int = INFO,
        prefixed: bool = False,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
        visible: Callable[[str], str] = str,
    ):
        self._stream, self._as_json, self._most = stream, as_json, most
        self._prefixed, self._now, self._visible = prefixed and not as_json, now, visible
        # The last message about each subject: a message is not repeated.
        self._said: dict[str, str] = {}

    def write(self, level: int, event: str, message: str, details: Iterable[str] = (), **fields: Any) -> None:
        """One entry: `event` is its kind, `details` more lines for people, `fields` what only JSON has."""
        if level > self._most:
            return
        if self._as_json:
            time = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
            entry = {"time": time, "level": LEVELS[level], "event": event, "message": message, **fields}
            lines = [json.dumps(entry, ensure_ascii=True)]
        else:
            prefix = f"<{level}>" if self._prefixed else ""
            lines = [prefix + self._visible(line) for line in (*message.split("\n"), *details)]
        # If nobody reads the log any more, repairs continue.
        with contextlib.suppress(OSError):
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()

    def write_once(self, subject: str, level: int, event: str, message: str, **fields: Any) -> None:
        """An entry about a subject, unless the last one about it had the same words."""
        if self._said.get(subject) != message:
            self._said[subject] = message
            self.write(level, event, message, **fields)

    def over(self, subject: str) -> bool:
        """Forget the last message about a subject, which no longer applies; False if there was none."""
        return self._said.pop(subject, None) is not None

    @property
    def open_subjects(self) -> list[str]:
        """The subjects whose last message still applies."""
        return list(self._said)


def is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Is the stream the one that systemd connected to the journal?"""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
