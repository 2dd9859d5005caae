"""A world by bare commands: a shell script of `ip -batch`, `bridge -batch` and `nft -f` that makes its objects."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator

from vpcctl.model.network import World
from vpcctl.resources import topology
from vpcctl.resources.kinds import (
    RANK,
    Address,
    Bridge,
    FdbEntry,
    Item,
    LinkSetting,
    LinkUp,
    Namespace,
    Neighbour,
    Open,
    Port,
    ProxyDelay,
    Route,
    Ruleset,
    Setting,
    Veth,
)

FLAGS = "isolated on locked on learning off flood off mcast_flood off bcast_flood off"


def script(world: World) -> str:
    """The script for the whole world, one batch for each program and namespace."""
    items = [item for scope in topology.snapshot(world, "0a1b2c3d", {}).values() for item in scope]
    items.sort(key=lambda item: RANK[type(item)])
    spaces = [item.namespace for item in items if isinstance(item, Namespace)]
    by_space: dict[str | None, list[Item]] = defaultdict(list)
    for item in items:
        by_space[item.namespace].append(item)
    routers = [name for name in spaces if any(isinstance(item, Ruleset) for item in by_space[name])]
    parts = [_batch("ip -batch -", [f"netns add {name}" for name in spaces])]
    parts += [part for name in (*spaces, None) for part in _prepared(name, by_space[name])]
    parts += [
        part
        for name in (*routers, *(name for name in spaces if name not in routers), None)
        for part in _linked(name, by_space[name])
    ]
    return "set -e\n" + "\n".join(parts) + "\n"


def _batch(program: str, lines: Iterable[str]) -> str:
    return f"{program} <<'EOF'\n" + "".join(f"{line}\n" for line in lines) + "EOF"


def _inside(namespace: str | None) -> str:
    return f"ip netns exec {namespace} " if namespace else ""


def _prepared(namespace: str | None, items: list[Item]) -> Iterator[str]:
    """Settings and the ruleset of a namespace."""
    settings = [item for item in items if isinstance(item, Setting)]
    if settings:
        writes = "; ".join(f"[ -e /proc/sys/{one.path} ] && echo {one.value} >/proc/sys/{one.path}" for one in settings)
        yield f"{_inside(namespace)}sh -c '{writes}; true'"
    for item in items:
        if isinstance(item, Ruleset):
            yield _batch(f"{_inside(namespace)}nft -f -", [item.compiled.text(item.generation)])


def _linked(namespace: str | None, items: list[Item]) -> Iterator[str]:
    """Links of a namespace and what stands on them."""
    lines = [line for item in items for line in _lines(item)]
    if lines:
        yield _batch(f"ip {f'-n {namespace} ' if namespace else ''}-batch -", lines)
    entries = [f"fdb replace {one.mac} dev {one.link} master static" for one in items if isinstance(one, FdbEntry)]
    if entries:
        yield _batch(f"bridge -n {namespace} -batch -", entries)
    writes = [
        f"echo {one.value} >/proc/sys/{one.path.format(link=one.link)}" for one in items if isinstance(one, LinkSetting)
    ]
    if writes:
        yield f"{_inside(namespace)}sh -c '{'; '.join(writes)}'"


def _lines(item: Item) -> Iterator[str]:
    """The lines for `ip -batch` that make an object."""
    match item:
        case Bridge():
            yield f"link add {item.name} address {item.mac} type bridge mcast_snooping 0"
            yield f"link set {item.name} alias {item.tag}"
            yield f"link property add dev {item.name} altname {item.altname}"
        case Veth():
            there = f"netns {item.peer_namespace}" if item.peer_namespace else ""
            peer = f"{item.peer_name} address {item.peer_mac} {there}"
            yield f"link add {item.name} address {item.mac} type veth peer name {peer}"
            yield f"link set {item.name} alias {item.tag}"
            if item.altname:
                yield f"link property add dev {item.name} altname {item.altname}"
            if not item.peer_namespace:
                yield f"link set {item.peer_name} netns {os.getpid()}"
        case Port():
            yield f"link set {item.name} master {item.bridge}"
            yield f"link set {item.name} type bridge_slave {FLAGS}"
        case Neighbour():
            yield f"neigh replace {item.address} lladdr {item.mac} dev {item.link} nud permanent"
        case Address():
            yield f"addr add {item.address} dev {item.link}"
        case LinkUp() | Open():
            yield f"link set {item.link} up"
        case Route():
            source = f" src {item.source}" if item.source else ""
            yield f"route replace {item.destination} via {item.via} dev {item.link} onlink{source}"
        case ProxyDelay():
            yield f"ntable change name arp_cache dev {item.link} proxy_delay {item.milliseconds}"
