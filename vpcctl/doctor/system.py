"""The machine under the VPCs: privilege, libraries, settings and limits.  Each function examines one thing."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from vpcctl import names
from vpcctl.doctor import network_state
from vpcctl.doctor.apart import apart
from vpcctl.doctor.finding import Finding
from vpcctl.errors import KernelError
from vpcctl.kernel import claims, namespaces, sandbox, settings
from vpcctl.model.network import World

OLDEST_PYTHON = (3, 11)
PROC = Path("/proc")
# Above this part of a limit, raise the limit.
NEARLY_FULL = 0.8
# From this number of entries per bucket of the connection tracking table on, a lookup is slow.
LONG_CHAIN = 8
BRIDGE_CALLS = tuple(f"net/bridge/bridge-nf-call-{table}" for table in ("iptables", "ip6tables", "arptables"))


# --- Programs ---------------------------------------------------------------------------------------------------------


def privilege() -> Iterator[Finding]:
    """Root or not; not being root is not a problem."""
    if network_state.privileged():
        yield Finding("ok", "privilege", "this process may change namespaces and firewalls")
        return
    yield Finding(
        "note",
        "privilege",
        "this process lacks CAP_NET_ADMIN and CAP_SYS_ADMIN",
        "It cannot create VPCs, and doctor cannot see the host's firewall. `vpcctl lab` needs neither capability.",
        "Use sudo, or experiment in `vpcctl lab`.",
    )


def python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Iterator[Finding]:
    """The interpreter's version."""
    found, oldest = (".".join(map(str, one)) for one in (version, OLDEST_PYTHON))
    if version < OLDEST_PYTHON:
        why = f"vpcctl uses features that are new in Python {oldest}."
        wrong = f"found Python {found}, expected {oldest} or later"
        yield Finding("fatal", "python", wrong, why, f"Install Python {oldest} or later.")
    else:
        yield Finding("ok", "python", f"Python {found}")


def library() -> Iterator[Finding]:
    """libnftables and its bindings, loaded in a child."""
    from importlib import metadata

    try:
        place = apart(_load_library)
    except KernelError as error:
        yield Finding(
            "fatal",
            "libnftables",
            f"cannot use libnftables ({error})",
            "Without it vpcctl cannot load firewall rules, and creates nothing without them.",
            "Install it:",
            ("apt-get install libnftables1",),
        )
        return
    try:
        bindings = metadata.version("pip-nftables")
    except metadata.PackageNotFoundError:
        bindings = "of the distribution"
    yield Finding("ok", "libnftables", f"{place}, bindings {bindings}")


def _load_library() -> str:
    """The path of libnftables.so.1 that the bindings load."""
    from vpcctl.kernel import tables

    try:
        tables.context(None)
    except ImportError as error:
        raise KernelError(str(error)) from error
    maps = (PROC / "self/maps").read_text()
    return next((line.split()[-1] for line in maps.splitlines() if "libnftables" in line), "libnftables.so.1")


def named_namespaces(directory: Path = claims.RUN_NETNS) -> Iterator[Finding]:
    """Can named namespaces be made in /run/netns?"""
    why = "Every VPC and every instance is a named namespace there."
    try:
        status = os.lstat(directory)
    except FileNotFoundError:
        writable = os.access(directory.parent, os.W_OK)
        severity = "ok" if writable or not network_state.privileged() else "fatal"
        words = "will be created with the first VPC" if severity == "ok" else "does not exist and cannot be created"
        yield Finding(severity, "namespaces", f"{directory} {words}", "" if severity == "ok" else why)
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Finding("fatal", "namespaces", f"{directory} is not a directory", why, "Remove it:", (f"rm {directory}",))
    elif status.st_uid != os.geteuid() and network_state.privileged():
        owner = f"{directory} belongs to user {status.st_uid}"
        yield Finding("fatal", "namespaces", owner, why, "Give it back to root:", (f"chown root:root {directory}",))
    elif status.st_mode & 0o022:
        everybody = f"users other than the owner can write to {directory}"
        risk = "A user who creates a name there decides which namespace the name means."
        yield Finding("warning", "namespaces", everybody, risk, "Remove this permission:", (f"chmod go-w {directory}",))
    else:
        yield Finding("ok", "namespaces", f"{directory} is usable; names in it: {len(namespaces.names())}")


def lab() -> Iterator[Finding]:
    """May a user without privilege open the lab?"""
    try:
        apart(_enter_user_namespace)
    except KernelError as error:
        severity = "note" if network_state.privileged() else "warning"
        why = "Only root can then use `vpcctl lab`."
        words, commands = _allowing()
        yield Finding(severity, "lab", f"user namespaces are denied ({error})", why, words, commands)
        return
    yield Finding("ok", "lab", "user namespaces work: `vpcctl lab` needs no root")


def _enter_user_namespace() -> None:
    sandbox._enter_user_namespace()
    namespaces.unshare(namespaces.CLONE_NEWNET | namespaces.CLONE_NEWNS)


def _allowing() -> tuple[str, tuple[str, ...]]:
    """How to allow user namespaces: by the setting that denies them, if it is one."""
    for name, denies, allows, *_ in (*sandbox._USER_NAMESPACE_SWITCHES, *sandbox._SWITCHES):
        if settings.read(settings.ROOT / name.replace(".", "/")) == denies:
            return f"{name} = {denies} denies them:", (f"sysctl -w {name}={allows}",)
    return "If this is a container, give it CAP_SYS_ADMIN or a seccomp profile that allows unshare(2).", ()


# --- Forwarding -------------------------------------------------------------------------------------------------------


def forwarding(world: World, ways_out: tuple[str, ...], repair: str) -> Iterator[Finding]:
    """Does the host forward from uplinks to the way out and back?  `repair` is the command that repairs."""
    if not ways_out:
        yield Finding(
            "warning",
            "forwarding",
            "the host has no IPv4 default route",
            "Public subnets and NAT gateways do not reach the internet. VPCs and peerings work.",
            "Add a default route, for example: ip route add default via GATEWAY",
        )
    links = [*ways_out, *(names.host_uplink(vpc.name) for vpc in world.vpcs)]
    off = [link for link in links if settings.read(settings.ROOT / f"net/ipv4/conf/{link}/forwarding") == "0"]
    if not world.vpcs:
        for link in off:
            words = f"forwarding is off on {link}; the first VPC enables it, and the host's table blocks all other uses"
            yield Finding("note", "forwarding", words)
    elif off:
        yield Finding(
            "fatal",
            "forwarding",
            f"forwarding is off on {', '.join(off)}, though VPCs exist",
            "It was disabled later (net.ipv4.ip_forward=0 disables it on every link). No VPC reaches the internet.",
            "Enable it again:",
            (repair,),
        )
    if ways_out and not off:
        yield Finding("ok", "forwarding", f"forwarding is on for {', '.join(links)}")


def bridge_calls(world: World, repair: str) -> Iterator[Finding]:
    """br_netfilter, if it would pass frames of a VPC's bridges through the IP hooks a second time."""
    if settings.read(settings.ROOT / BRIDGE_CALLS[0]) is None:
        yield Finding("ok", "br_netfilter", "br_netfilter is not loaded")
        return
    held = [one for vpc in world.vpcs if (one := names.router_namespace(vpc.name)) and _bridge_calls_on(one)]
    if held:
        yield Finding(
            "fatal",
            "br_netfilter",
            f"bridge-nf-call-* is on in {', '.join(held)}",
            "The IP rules see bridged frames as if they had arrived on a port, and drop them."
            " If br_netfilter is loaded after a VPC was created, the setting is on in every namespace.",
            "Disable it there:",
            (repair,),
        )
        return
    yield Finding("ok", "br_netfilter", "br_netfilter is loaded, and bridge-nf-call-* is off in every router namespace")


def _bridge_calls_on(router: str) -> bool:
    if not network_state.privileged() or not _is_there(router):
        return False
    with namespaces.entered(router):
        return any(settings.read(settings.ROOT / path) == "1" for path in BRIDGE_CALLS)


def _is_there(router: str) -> bool:
    """Is the router's namespace there, and ours to look into?"""
    return namespaces.is_namespace(router) and not namespaces.foreign(router)


# --- Limits -----------------------------------------------------------------------------------------------------------


def connection_tracking(world: World, root: Path = settings.ROOT) -> Iterator[Finding]:
    """How full are the connection tracking tables of the host and of the routers?  Each namespace counts for itself."""
    folder = root / "net/netfilter"
    most, buckets = (_number(folder / f"nf_conntrack_{name}") for name in ("max", "buckets"))
    if most is None:
        yield Finding("note", "conntrack", "cannot read the limits of connection tracking here")
        return
    counts = {"the host": _number(folder / "nf_conntrack_count") or 0, **_router_counts(world)}
    yield _fullness(counts, most)
    if buckets and most > LONG_CHAIN * buckets:
        yield Finding(
            "warning",
            "conntrack",
            f"connection tracking has {buckets} buckets for up to {most} flows",
            "When the table is full, the kernel searches long chains for every packet.",
            "Increase the number of buckets:",
            (f"sysctl -w net.netfilter.nf_conntrack_buckets={most // 4}",),
        )
    if _number(folder / "nf_conntrack_tcp_loose") is None:
        words = "nf_conntrack_tcp_loose is not visible here; the SYN rule of each ruleset has the same effect"
        yield Finding("note", "conntrack", words)


def _fullness(counts: dict[str, int], most: int) -> Finding:
    """The places where the number of flows is near its limit."""
    full = {place: count for place, count in counts.items() if count >= NEARLY_FULL * most}
    if not full:
        busiest = max(counts, key=lambda place: counts[place])
        return Finding("ok", "conntrack", f"at most {most} flows in each namespace; {counts[busiest]} in {busiest} now")
    told = ", ".join(f"{count} in {place}" for place, count in full.items())
    return Finding(
        "warning",
        "conntrack",
        f"connection tracking is nearly full: {told}; the limit is {most}",
        "When it is full, the kernel drops new flows there.",
        "Raise the limit:",
        (f"sysctl -w net.netfilter.nf_conntrack_max={2 * most}",),
    )


def _router_counts(world: World) -> dict[str, int]:
    """Flows in each router namespace, where we may look."""
    counts: dict[str, int] = {}
    routers = [names.router_namespace(vpc.name) for vpc in world.vpcs] if network_state.privileged() else []
    for router in filter(_is_there, routers):
        with namespaces.entered(router):
            counts[router] = _number(settings.ROOT / "net/netfilter/nf_conntrack_count") or 0
    return counts


def neighbours(world: World, root: Path = settings.ROOT) -> Iterator[Finding]:
    """Does the kernel's one neighbour table hold what the instances look up?  Permanent entries do not count."""
    most = _number(root / "net/ipv4/neigh/default/gc_thresh3")
    if most is None:
        return
    # Each instance learns its gateway, and each router the instances' answers come from entries of ours.
    wanted = sum(len(vpc.instances) for vpc in world.vpcs)
    if wanted >= NEARLY_FULL * most:
        commands = tuple(f"sysctl -w net.ipv4.neigh.default.gc_thresh{n}={wanted * n * 2}" for n in (3, 2, 1))
        yield Finding(
            "warning",
            "neighbours",
            f"the neighbour table holds {most} entries for the whole machine, and {wanted} instances need one each",
            "When it is full, the kernel drops packets and logs “neighbour table overflow”.",
            "Raise the limit:",
            commands,
        )
    else:
        yield Finding("ok", "neighbours", f"the neighbour table holds {most} entries, instances need {wanted}")


def _number(path: Path) -> int | None:
    text = settings.read(path)
    return int(text) if text and text.isdigit() else None
