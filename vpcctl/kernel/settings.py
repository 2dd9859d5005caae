"""sysctls, read and written in the namespace of the calling thread."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from vpcctl.errors import KernelError
from vpcctl.resources.kinds import PING_GROUPS, LinkSetting, Setting, where
from vpcctl.resources.protocol import ABSENT, RIGHT, Condition, Status

ROOT = Path("/proc/sys")
GROUPS = Path("/proc/self/gid_map")
# More bytes than the value of any setting of ours.
LONGEST = 4096
# How often to look up a link again that is renamed meanwhile.
RENAMES = 8


def place(item: Setting | LinkSetting) -> Path:
    """The file of the setting.  Interface names may contain dots, so no dotted form is ever used."""
    path = item.path.format(link=item.link) if isinstance(item, LinkSetting) else item.path
    return ROOT / path


def _dispensable(item: Setting | LinkSetting) -> bool:
    """May the kernel lack this one?

    IPv6 that is not compiled in is as good as IPv6 that is off, and a link of the host's own may come and go.
    """
    own = isinstance(item, LinkSetting) and bool(item.previous)
    return own or getattr(item, "optional", False) or item.path.startswith("net/ipv6/")


def read(path: Path) -> str | None:
    """The value, or None where the kernel has no such setting."""
    # A comparison reads many settings of each namespace; with file objects it takes three times as long.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.read(descriptor, LONGEST).decode(errors="replace").strip()
    finally:
        os.close(descriptor)


def observe(item: Setting | LinkSetting) -> Condition:
    """Compare one setting, in the namespace of the calling thread."""
    value = read(place(item))
    if value is None:
        return RIGHT if _dispensable(item) else ABSENT
    expected = _possible(item)
    return RIGHT if value == expected else Condition(Status.DIFFERENT, f"is {value}, expected {expected}")


def _possible(item: Setting | LinkSetting) -> str:
    """The value of the item, as far as this user namespace can write it.

    The kernel accepts only groups that exist in this user namespace, and a container may have few (user_namespaces(7)).
    """
    if item.path != PING_GROUPS:
        return item.value
    low, high = map(int, item.value.split())
    extents = [tuple(map(int, line.split())) for line in GROUPS.read_text().splitlines()]
    # The kernel compares the groups by their numbers outside.
    lowest = min(extents, key=lambda extent: extent[1])[0]
    first, _, count = max(extents, key=lambda extent: extent[1] + extent[2])
    return f"{max(low, lowest)}\t{min(high, first + count - 1)}"


def ensure(item: Setting | LinkSetting) -> None:
    """Write the value unless it is so already; KernelError where a setting that matters cannot be set."""
    condition = observe(item)
    if condition == RIGHT:
        return
    if condition == ABSENT:
        raise KernelError(f"the kernel has no {item.path} in {where(item.namespace)}, which isolation needs")
    _write(item, _possible(item))


def restore(item: LinkSetting) -> None:
    """Put back what was there before us, if that is known and the link still exists.

    If forwarding was enabled for the whole host meanwhile, it stays enabled.
    """
    kept = item.path.endswith("/forwarding") and forwarding()
    if item.previous and read(place(item)) is not None and not kept:
        _write(item, item.previous)


def observe_forwarding(index: int) -> Condition:
    """Does the link of this index forward?  A deleted link counts as right."""
    value = _of_link(index)
    return RIGHT if value in (None, "1") else Condition(Status.DIFFERENT, "is off")


def forward(index: int) -> None:
    """Turn IPv4 forwarding on for the link of this index; nothing happens if it is gone."""
    _set_forwarding(index, "1")


def forward_no_more(index: int) -> None:
    """Turn it off again, unless it was enabled for the whole host meanwhile."""
    if not forwarding():
        _set_forwarding(index, "0")


def _set_forwarding(index: int, value: str) -> None:
    # Netlink would name the link by its index.  But only the sysctl also turns off the merging of received packets
    # (net/ipv4/devinet.c, devinet_sysctl_forward: dev_disable_lro).
    for _ in range(RENAMES):
        name = _name(index)
        if name is None:
            return
        path = ROOT / f"net/ipv4/conf/{name}/forwarding"
        with contextlib.suppress(FileNotFoundError):
            path.write_text(f"{value}\n")
        # Somebody may rename the link at this instant.
        if _of_link(index) in (None, value):
            return
    raise KernelError(f"cannot set forwarding to {value} on link {index} of the host", "it is renamed again and again")


def _of_link(index: int) -> str | None:
    """The `forwarding` setting of the link of this index; None if it is gone."""
    for _ in range(RENAMES):
        name = _name(index)
        value = None if name is None else read(ROOT / f"net/ipv4/conf/{name}/forwarding")
        if name == _name(index):
            return value
    return None


def _name(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None


def forwarding() -> bool:
    """Is IPv4 forwarding on for the whole host (ip-sysctl: ip_forward)?"""
    return read(ROOT / "net/ipv4/ip_forward") == "1"


def forward_nothing() -> None:
    """Turn IPv4 forwarding off for the whole namespace of the calling thread."""
    (ROOT / "net/ipv4/ip_forward").write_text("0\n")


def _write(item: Setting | LinkSetting, value: str) -> None:
    try:
        place(item).write_text(value)
    except OSError as error:
        raise KernelError(
            f"cannot set {item.path} to {value} in {where(item.namespace)}", error.strerror or ""
        ) from error
