"""State documents of older formats, turned into the newest: from one format to the next, as JSON.

Pure: a document in, a document out.  What is wrong in the old document raises KeyError, TypeError or ValueError, and
Store reports the file as damaged.  The frozen examples in `state/` are read by the tests of each step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Document = dict[str, Any]


def newest(document: Document) -> Document:
    """`document`, of any known format, in the newest."""
    while document["format"] in STEPS:
        document = STEPS[document["format"]](document)
    return document


# --- From 1 to 2 ------------------------------------------------------------------------------------------------------

# Format 1 named the kinds of objects after classes of the program.
KINDS_OF_1 = {
    "Namespace": "namespace",
    "Setting": "sysctl",
    "Ruleset": "ruleset",
    "Bridge": "bridge",
    "ChecksumLink": "checksum-link",
    "Veth": "veth",
    "LinkSetting": "link-sysctl",
    "ProxyDelay": "proxy-delay",
    "Detour": "detour",
    "Port": "bridge-port",
    "FdbEntry": "fdb-entry",
    "Neighbour": "neighbour",
    "Address": "address",
    "LinkUp": "link-up",
    "Route": "route",
    "Open": "link-open",
}
FIELDS_OF_1 = {"Namespace": {"namespace": "name"}, "Port": {"name": "link"}}
# Optional fields of format 1, each with what its absence meant.
VPC_OF_1: Document = {"hardened": False, "max_flows": 16384, "max_ports": 8192, "nat_protocols": []}


def _from_1(document: Document) -> Document:
    pending = document["pending"]
    return {
        **document,
        "format": 2,
        "desired": _world_of_1(document["desired"]),
        "host": _host_of_1(document["desired"]),
        "record": {scope: list(map(_item_of_1, items)) for scope, items in document["record"].items()},
        "pending": None if pending is None else {"desired": _world_of_1(pending), "host": _host_of_1(pending)},
    }


def _host_of_1(world: Document) -> Document:
    return {"opened": world["opened"], "reserved": world.get("reserved", [])}


def _world_of_1(world: Document) -> Document:
    rest = {name: value for name, value in world.items() if name not in ("opened", "reserved")}
    return {**rest, "vpcs": [_vpc_of_1(vpc) for vpc in world["vpcs"]]}


def _vpc_of_1(vpc: Document) -> Document:
    return {**VPC_OF_1, **vpc, "subnets": [{"released": [], **subnet} for subnet in vpc["subnets"]]}


def _item_of_1(item: Document) -> Document:
    names = FIELDS_OF_1.get(item["kind"], {})
    return {names.get(name, name): value for name, value in item.items()} | {"kind": KINDS_OF_1[item["kind"]]}


# --- From 2 to 3 ------------------------------------------------------------------------------------------------------

# Format 2 was one file.  The parts of format 3 stay in their places here, the rest of a VPC as an object and its
# objects as an array; they become files when the record is written.
REST_OF_2 = ("sets", "subnets")
# In format 2 the links of VPCs had the kernel's default MTU.
VPC_OF_2: Document = {"mtu": 1500}


def _from_2(document: Document) -> Document:
    pending = document["pending"]
    return {
        **document,
        "format": 3,
        "desired": _world_of_2(document["desired"]),
        "host": _host_of_2(document["host"]),
        "pending": None if pending is None else _pending_of_2(pending),
    }


def _pending_of_2(pending: Document) -> Document:
    return {"desired": _world_of_2(pending["desired"]), "host": _host_of_2(pending["host"])}


def _host_of_2(host: Document) -> Document:
    """Format 2 knew links by name; the next look at the host finds their indices."""
    opened = [[0, link] for link, _ in host["opened"]]
    return {"opened": opened, "reserved": host["reserved"], "closed": [], "forwards": False}


def _world_of_2(world: Document) -> Document:
    return {**world, "vpcs": list(map(_vpc_of_2, world["vpcs"]))}


def _vpc_of_2(vpc: Document) -> Document:
    own = {name: value for name, value in vpc.items() if name not in REST_OF_2}
    return {**VPC_OF_2, **own, "part": {name: vpc[name] for name in REST_OF_2}}


STEPS: dict[int, Callable[[Document], Document]] = {1: _from_1, 2: _from_2}
