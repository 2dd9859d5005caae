"""What happens when another program changes the packet filter, and what to type: the table of docs/coexistence.md.

Tests take the rows as parameters, run the commands word for word, and check what works before and after them.
"""

from __future__ import annotations

from dataclasses import dataclass

PROGRAM_FIRST = "it runs, then `create-vpc`"
VPC_FIRST = "`create-vpc`, then it starts"
RESTART = "it restarts"
FLUSH = "`nftables.service` restarts"
DESTROY = "`vpcctl destroy`"
EVENTS = (PROGRAM_FIRST, VPC_FIRST, RESTART, FLUSH, DESTROY)

# The commands that `vpcctl doctor` prints for its fatal findings.
DOCTOR = "the remedy of `vpcctl doctor`"
REPAIR = "vpcctl repair"

WORKS = "both work"
OURS = "VPCs have no way out and no published ports"
OUT = "VPCs have no way out"
BOTH = "both stop"


@dataclass(frozen=True, slots=True)
class Row:
    """What works after an event (`result`), and the commands after which both work."""

    program: str
    event: str
    result: str = WORKS
    typed: tuple[str, ...] = ()


# Debian package by program, and the version that the table was made with.
VERSIONS = {
    "Docker": ("docker.io", "20.10.24"),
    "podman": ("podman", "4.3.1"),
    "firewalld": ("firewalld", "1.3.3"),
    "ufw": ("ufw", "0.36.2"),
    "libvirt": ("libvirt-daemon-system", "9.0.0"),
    "wg-quick": ("wireguard-tools", "1.0.20210914"),
}

ROWS = (
    Row("Docker", PROGRAM_FIRST, OURS, (DOCTOR,)),
    Row("Docker", VPC_FIRST, OURS, (DOCTOR,)),
    Row("Docker", RESTART),
    Row("Docker", FLUSH, BOTH, ("systemctl restart docker", REPAIR)),
    Row("Docker", DESTROY),
    Row("podman", PROGRAM_FIRST),
    Row("podman", VPC_FIRST),
    Row("podman", RESTART),
    Row("podman", FLUSH, BOTH, ("podman network reload --all", REPAIR)),
    Row("podman", DESTROY),
    Row("firewalld", PROGRAM_FIRST, OUT, (DOCTOR,)),
    Row("firewalld", VPC_FIRST, OUT, (DOCTOR,)),
    Row("firewalld", RESTART),
    Row("firewalld", FLUSH, BOTH, ("systemctl restart firewalld", REPAIR)),
    Row("firewalld", DESTROY),
    Row("ufw", PROGRAM_FIRST, OURS, (DOCTOR,)),
    Row("ufw", VPC_FIRST, OURS, (DOCTOR,)),
    Row("ufw", RESTART),
    Row("ufw", FLUSH, BOTH, ("ufw reload", REPAIR)),
    Row("ufw", DESTROY),
    Row("libvirt", PROGRAM_FIRST),
    Row("libvirt", VPC_FIRST),
    Row("libvirt", RESTART),
    Row("libvirt", FLUSH, BOTH, ("systemctl restart libvirtd", REPAIR)),
    Row("libvirt", DESTROY),
    Row("wg-quick", PROGRAM_FIRST),
    Row("wg-quick", VPC_FIRST, OUT, (REPAIR,)),
    Row("wg-quick", RESTART, OUT, (REPAIR,)),
    Row("wg-quick", FLUSH, OURS, ("systemctl restart wg-quick@wg0", REPAIR)),
    Row("wg-quick", DESTROY),
)


def row(program: str, event: str) -> Row:
    """The only row for a program and an event."""
    [found] = [one for one in ROWS if (one.program, one.event) == (program, event)]
    return found


def table() -> list[str]:
    """The rows as lines of Markdown."""
    lines = ["| program | version | order | result | what to type |", "| --- | --- | --- | --- | --- |"]
    for one in ROWS:
        typed = ", ".join(command if "`" in command else f"`{command}`" for command in one.typed)
        version = VERSIONS[one.program][1]
        lines.append(f"| {one.program} | {version} | {one.event} | {one.result} | {typed or 'nothing'} |")
    return lines
