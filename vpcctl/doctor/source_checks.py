"""Does the host's check of sources (rp_filter) drop replies where there are several ways out?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vpcctl.doctor.finding import Finding
from vpcctl.kernel import settings

SUBJECT = "source checks"
STRICT, LOOSE = 1, 2


def findings(ways_out: Sequence[str], root: Path = settings.ROOT) -> Iterator[Finding]:
    """Compare rp_filter of the ways out; the kernel uses the larger of the link's value and that of `all`."""
    strict = [link for link in ways_out if max(_value(root, "all"), _value(root, link)) == STRICT]
    if len(ways_out) < 2 or not strict:
        yield Finding("ok", SUBJECT, "no check of sources drops replies to VPCs")
        return
    yield Finding(
        "warning",
        SUBJECT,
        f"the host has default routes by {', '.join(ways_out)}, and rp_filter is strict (1) on {', '.join(strict)}",
        "A strict link drops packets whose sources the host would reach by another link. If marks send VPCs' packets"
        " out by that link, their replies are lost. Calls of published ports by that link are lost, too.",
        "Check sources loosely there. To keep it after a reboot, write it to a file in /etc/sysctl.d, too:",
        tuple(f"sysctl -w net.ipv4.conf.{link.replace('.', '/')}.rp_filter={LOOSE}" for link in strict),
    )


def _value(root: Path, scope: str) -> int:
    text = settings.read(root / f"net/ipv4/conf/{scope}/rp_filter")
    return int(text) if text and text.isdecimal() else 0
