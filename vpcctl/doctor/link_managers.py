"""Programs that may configure every link they see: NetworkManager, systemd-networkd, udev.

They only see the host's end of an uplink (``vpc-…``): everything else is made inside a namespace.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from pathlib import Path

from vpcctl.doctor.finding import Finding
from vpcctl.documents import files
from vpcctl.values import dataclass

SUBJECT = "network managers"
EXAMPLE = "vpc-example"
SNIPPET = "/etc/NetworkManager/conf.d/vpcctl.conf"
UNIT = "/etc/systemd/network/05-vpcctl.network"
# What the host's end of an uplink is, by the keys of [Match] (systemd.network(5), systemd.link(5)).
PROPERTIES = {"Name": EXAMPLE, "OriginalName": EXAMPLE, "Type": "ether", "Kind": "veth", "Driver": "veth"}


def findings(root: Path = Path("/")) -> Iterator[Finding]:
    """Which of them run, and whether they would take an uplink; `root` is where their files are."""
    found = [*_network_manager(root), *_networkd(root), *_udev(root)]
    yield from found or [Finding("ok", SUBJECT, "none of NetworkManager, systemd-networkd and udev is running")]


# --- NetworkManager ---------------------------------------------------------------------------------------------------


def _network_manager(root: Path) -> Iterator[Finding]:
    if not (root / "run/NetworkManager").is_dir():
        return
    if any(_unmanaged(pattern) for pattern in _unmanaged_devices(root)):
        yield Finding("ok", SUBJECT, "NetworkManager is running, and is configured to ignore the uplinks")
        return
    lines = f"'[keyfile]' 'unmanaged-devices+=interface-name:{EXAMPLE.partition('-')[0]}-*'"
    yield Finding(
        "warning",
        SUBJECT,
        "NetworkManager is running, and is not configured to ignore the uplinks",
        "NetworkManager may activate a connection profile without an interface name on an uplink. This removes the"
        " uplink's address and starts a DHCP client.",
        "Configure it to ignore the uplinks:",
        (f"printf '%s\\n' {lines} > {SNIPPET}", "nmcli general reload"),
    )


def _unmanaged_devices(root: Path) -> Iterator[str]:
    """The device patterns that NetworkManager's files say to leave alone (NetworkManager.conf(5))."""
    files: dict[str, Path] = {}
    for folder in ("usr/lib/NetworkManager/conf.d", "run/NetworkManager/conf.d", "etc/NetworkManager/conf.d"):
        files |= {path.name: path for path in sorted((root / folder).glob("*.conf"))}
    for path in (root / "etc/NetworkManager/NetworkManager.conf", *files.values()):
        for section in _sections(path):
            if section.name == "keyfile":
                for key, value in section.pairs:
                    if key.rstrip("+-") == "unmanaged-devices" and not key.endswith("-"):
                        yield from value.replace(",", ";").split(";")


def _unmanaged(pattern: str) -> bool:
    kind, _, name = pattern.strip().partition(":")
    if kind == "*":
        return True
    return kind == "interface-name" and fnmatch.fnmatchcase(EXAMPLE, name.removeprefix("="))


# --- systemd ----------------------------------------------------------------------------------------------------------


def _networkd(root: Path) -> Iterator[Finding]:
    if not (root / "run/systemd/netif").is_dir():
        return
    taker = _first_match(root, "*.network")
    if taker is None or _says(taker, "Link", "Unmanaged", ("yes", "true", "1", "on")):
        reason = f" (configured in {taker})" if taker else ""
        yield Finding("ok", SUBJECT, f"systemd-networkd is running, and ignores the uplinks{reason}")
        return
    lines = f"'[Match]' 'Name={EXAMPLE.partition('-')[0]}-*' '[Link]' 'Unmanaged=yes'"
    yield Finding(
        "warning",
        SUBJECT,
        f"systemd-networkd manages the uplinks because of {taker}",
        "It replaces their addresses and sets their forwarding, so the VPCs lose their way out.",
        "Configure it to ignore the uplinks:",
        (f"printf '%s\\n' {lines} > {UNIT}", "networkctl reload"),
    )


def _udev(root: Path) -> Iterator[Finding]:
    if not (root / "run/udev/control").exists():
        return
    taker = _first_match(root, "*.link")
    renames = taker is not None and any(_says(taker, "Link", key) for key in ("Name", "MACAddress"))
    if not renames:
        yield Finding("ok", SUBJECT, "udev is running, and does not change the uplinks' names or MAC addresses")
        return
    yield Finding(
        "warning",
        SUBJECT,
        f"udev changes the uplinks' names or MAC addresses because of {taker}",
        "The host's table identifies an uplink by its name, and the router identifies it by its MAC address.",
        f"Change the [Match] section of {taker} so that it does not match {EXAMPLE.partition('-')[0]}-*.",
    )


def _first_match(root: Path, kind: str) -> Path | None:
    """The unit file that would be applied to an uplink: the first match by file name, /etc over /run over /usr/lib."""
    files: dict[str, Path] = {}
    for folder in ("usr/lib/systemd/network", "run/systemd/network", "etc/systemd/network"):
        files |= {path.name: path for path in (root / folder).glob(kind)}
    return next((files[name] for name in sorted(files) if _matches(files[name])), None)


def _matches(path: Path) -> bool:
    """Would the [Match] section of a unit file take an uplink?  A key that we cannot judge says no."""
    pairs = [pair for section in _sections(path) if section.name == "Match" for pair in section.pairs]
    return bool(pairs) and all(key in PROPERTIES and _among(PROPERTIES[key], value) for key, value in pairs)


def _among(name: str, patterns: str) -> bool:
    inverted = patterns.startswith("!")
    return any(fnmatch.fnmatchcase(name, one) for one in patterns.removeprefix("!").split()) != inverted


def _says(path: Path, section: str, key: str, values: Sequence[str] = ()) -> bool:
    pairs = [pair for one in _sections(path) if one.name == section for pair in one.pairs]
    return any(found == key and (not values or value.lower() in values) for found, value in pairs)


# --- Files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    pairs: tuple[tuple[str, str], ...]


def _sections(path: Path) -> list[_Section]:
    """The sections of an ini file in their order; none where it cannot be read.  Sections and keys may repeat."""
    try:
        lines = [line.strip() for line in files.read(path, files.LARGEST_NOTE).decode(errors="replace").splitlines()]
    except OSError:
        return []
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for line in lines:
        if line.startswith("[") and line.endswith("]"):
            found.append((line[1:-1], []))
        elif found and "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found[-1][1].append((key.strip(), value.strip()))
    return [_Section(name, tuple(pairs)) for name, pairs in found]
