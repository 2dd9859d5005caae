"""Every error that a person can meet, as one tree drawn by who has to act.

    VpcctlError
    ├── InvariantError   1   whoever stated what every change must keep
    ├── DocumentError    2   the author of a document or a command line
    │   ├── TooFineError 2   the same: what was asked has more cases than are worth waiting for
    │   └── AmbiguousError 2 the same: what was asked may be about several objects
    ├── ConflictError    4   the owner of the object that already exists (ours or foreign)
    ├── KernelError      5   the administrator of the machine: the kernel or a library refused
    │   └── GoneError    5   the same: what is needed is gone
    ├── StateError       6   the administrator of the state file: locked, damaged or newer
    ├── PrivilegeError  77   the user who started the command: it lacks a capability
    └── CommandError   127   the user who named the program that `exec` runs: not found (126: cannot run)

The number is the exit status of the command.  Libraries' exceptions are translated into these at the edge
(``raise … from error``); an exception outside the tree that reaches a user is a defect.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field

from vpcctl.values import dataclass

# The longest key that is shown in a pointer.
LONGEST_KEY = 60


class VpcctlError(Exception):
    """Base of all expected failures.  ``str(error)`` is one or more whole sentences for people."""

    exit_status = 1


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong in a document: where it is, what was found, what was expected.

    `pointer` is an RFC 6901 JSON pointer, `file` the name that the user typed.  `expected` and `place` are the message
    and the pointer without any content of the document.  If they are empty, no message may show that content.
    """

    file: str
    pointer: str
    message: str
    expected: str = field(default="", compare=False)
    place: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.file}#{_shortened(self.pointer)}: {self.message}"

    def discreet(self) -> Problem:
        """The same problem for a reader who must not see the content of the document."""
        return Problem(self.file, self.place, self.expected or "this value is not allowed here")


def _shortened(pointer: str) -> str:
    """A pointer for people: keys are at most LONGEST_KEY characters long."""
    parts = (part if len(part) <= LONGEST_KEY else f"{part[: LONGEST_KEY - 1]}…" for part in pointer.split("/"))
    return "/".join(parts)


class InvariantError(VpcctlError):
    """A change that would break invariants; `broken` has a sentence for each."""

    def __init__(self, broken: Iterable[str]):
        self.broken = tuple(broken)
        what = "an invariant" if len(self.broken) == 1 else f"{len(self.broken)} invariants"
        remedy = "nothing was changed; change what must hold with `vpcctl set-invariants`, or add --override-invariants"
        super().__init__("\n".join((f"this would break {what}:", *self.broken, remedy)))


class DocumentError(VpcctlError):
    """Words from a user that mean nothing or contradict each other; `problems` lists all of them."""

    exit_status = 2

    def __init__(self, *problems: Problem | str):
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class TooFineError(DocumentError):
    """A question about traffic whose answer would fall into too many different cases."""


class AmbiguousError(DocumentError):
    """A request that fits several objects; `candidates` are their names."""

    def __init__(self, message: str, candidates: Iterable[str]):
        self.candidates = tuple(sorted(candidates))
        super().__init__(f"{message} (there: {', '.join(self.candidates) or 'none'})")


class ConflictError(VpcctlError):
    """The request is well formed but collides with what exists."""

    exit_status = 4


class KernelError(VpcctlError):
    """The kernel, or a library on the way to it, refused; `detail` holds its own words."""

    exit_status = 5

    def __init__(self, message: str, detail: str = ""):
        super().__init__(f"{message}: {detail}" if detail else message)
        self.detail = detail


class GoneError(KernelError):
    """An object of ours that something else needs is not there any more."""


class StateError(VpcctlError):
    """The state file cannot be used as it is: locked, damaged, newer than this program, or missing."""

    exit_status = 6


class PrivilegeError(VpcctlError):
    """The command needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN) and does not have it."""

    exit_status = 77


class CommandError(VpcctlError):
    """The program to run inside an instance is not there or cannot be run; the statuses are those of env(1)."""

    def __init__(self, message: str, found: bool):
        super().__init__(message)
        self.exit_status = 126 if found else 127


class InterruptedChange(KeyboardInterrupt):
    """The user interrupted a change (Ctrl-C); `unfinished` says whether it is left for `repair` to complete."""

    def __init__(self, unfinished: bool):
        super().__init__()
        self.unfinished = unfinished
