"""The result of a check: one value for each thing that was checked."""

from __future__ import annotations

from collections.abc import Iterable

from vpcctl.values import dataclass

# From worst to best.  `fatal`: something that vpcctl promises does not work; `warning`: it may not, or not for long;
# `note`: good to know; `ok`: checked, no problem found.
SEVERITIES = ("fatal", "warning", "note", "ok")


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` was found about `subject`, `why` it matters, and how to fix it: words, and commands for a root shell.

    If the commands run in their order, the finding disappears.  A finding that no command can fix has only words.
    """

    severity: str
    subject: str
    what: str
    why: str = ""
    remedy: str = ""
    commands: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As docs/doctor.md describes it."""
        return {
            "severity": self.severity,
            "subject": self.subject,
            "what": self.what,
            "why": self.why,
            "remedy": self.remedy,
            "commands": list(self.commands),
        }

    def __str__(self) -> str:
        if self.commands:
            return f"{self.what}; to fix it: {'; '.join(self.commands)}"
        return ". ".join(filter(None, (self.what, self.why.removesuffix("."), self.remedy.removesuffix("."))))


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The findings by severity, otherwise in the order in which they came."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
