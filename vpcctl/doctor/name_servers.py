"""Can instances ask the name servers of the host's resolv.conf?

With `vpcctl exec` and `ip netns exec`, programs use the host's /etc/resolv.conf, unless /etc/netns/<namespace> has
another.  A server at a loopback address, such as the stub of systemd-resolved at 127.0.0.53, is only reachable in the
host's namespace.  Instances do not reach the host's other addresses either.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

from vpcctl import names
from vpcctl.doctor.finding import Finding
from vpcctl.documents import files
from vpcctl.model.host import Host
from vpcctl.model.network import World

SUBJECT = "name servers"
RESOLV_CONF = "etc/resolv.conf"
# Where a local resolver keeps the servers that it asks itself (systemd-resolved(8), NetworkManager.conf(5)).
UPSTREAM = ("run/systemd/resolve/resolv.conf", "run/NetworkManager/no-stub-resolv.conf")
# The server that resolv.conf(5) implies if it names none.
DEFAULT = "127.0.0.1"


def findings(world: World, host: Host, root: Path = Path("/")) -> Iterator[Finding]:
    """Does every instance with a way out have a name server that it can ask?  `root` is where the files are."""
    servers = _servers(root / RESOLV_CONF)
    if any(_usable(server, host) for server in servers):
        yield Finding("ok", SUBJECT, f"instances can ask a name server of /{RESOLV_CONF}")
        return
    lacking = [
        namespace
        for vpc in world.vpcs
        for subnet in vpc.subnets
        if subnet.reaches_internet
        for instance in subnet.instances
        if not _has_own(root, namespace := names.instance_namespace(vpc.name, instance.name), host)
    ]
    if world.vpcs and not lacking:
        yield Finding("ok", SUBJECT, "every instance with a way out has a resolv.conf of its own in /etc/netns")
        return
    words, commands = _remedy(root, lacking, host)
    yield Finding(
        "warning" if lacking else "note",
        SUBJECT,
        f"/{RESOLV_CONF} names only {', '.join(servers)}, which instances cannot reach",
        "The address belongs to the host. Programs in instances cannot resolve names, even if the policy allows it.",
        words,
        commands,
    )


def _servers(file: Path) -> list[str]:
    """The name servers in a resolv.conf(5)."""
    try:
        lines = files.read(file, files.LARGEST_NOTE).decode(errors="replace").splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    return [one[1] for one in words if one[:1] == ["nameserver"] and len(one) > 1] or [DEFAULT]


def _usable(server: str, host: Host) -> bool:
    """May a program in an instance reach it?  IPv6 is off there."""
    try:
        address = ipaddress.ip_address(server.partition("%")[0])
    except ValueError:
        return False
    return address.version == 4 and not address.is_loopback and not address.is_unspecified and not host.has(address)


def _has_own(root: Path, namespace: str, host: Host) -> bool:
    own = root / "etc/netns" / namespace / "resolv.conf"
    return own.exists() and any(_usable(server, host) for server in _servers(own))


def _remedy(root: Path, namespaces: list[str], host: Host) -> tuple[str, tuple[str, ...]]:
    """The remedy: a resolv.conf for each namespace, with the resolver's own servers if they are known."""
    for file in UPSTREAM:
        if (root / file).exists() and any(_usable(server, host) for server in _servers(root / file)):
            words = f"Give the instances the servers that the resolver of the host asks, which /{file} names:"
            return words, tuple(
                f"mkdir -p /etc/netns/{one} && ln -sf /{file} /etc/netns/{one}/resolv.conf" for one in namespaces
            )
    return (
        "Write a resolv.conf with a name server that the instances reach, for each instance:"
        " /etc/netns/<namespace>/resolv.conf. Then `vpcctl exec` and `ip netns exec` use it.",
        (),
    )
