"""The state of the host that the checks need: its ruleset, routes and addresses, and our privilege."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpcctl.doctor.apart import apart
from vpcctl.doctor.prefix_overlaps import Reached
from vpcctl.errors import KernelError, PrivilegeError
from vpcctl.kernel import legacy_tables, namespaces
from vpcctl.names import TABLE
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.kernel.rtnetlink import LinkAddress

TAG = "vpcctl/"
# Programs that configure the managers of firewalls; the first two are kinds of iptables(8).
TOOLS = ("iptables-nft", "iptables-legacy", "ufw", "firewall-cmd")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The host's links and what it reaches by them.

    `ways_out` are the links with a default route, each with the address that the host has there; `ours` are the links
    with our tag, as (name, tag).
    """

    ways_out: dict[str, ipaddress.IPv4Address | None]
    reached: tuple[Reached, ...]
    ours: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RulesetListing:
    """The host's ruleset: `objects` and `text` as nft lists it, the objects with those of legacy tables behind them.

    `ours` are our own tables as (family, name), with their comments.
    """

    objects: list[dict[str, Any]]
    text: str
    ours: dict[tuple[str, str], str]


def privileged() -> bool:
    """May this process change the network?"""
    from vpcctl.kernel.linux import require_privilege

    try:
        require_privilege()
    except PrivilegeError:
        return False
    return True


def namespace_tag(name: str) -> str:
    """The tag on a named namespace, "" where it has none or cannot be read."""
    try:
        found = namespaces.owner(name) or ""
    except OSError:
        return ""
    return found if found.startswith(TAG) else ""


def tools() -> dict[str, str]:
    """Of TOOLS those that this machine has, with the name to call each by."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found: dict[str, str] = {}
    for name in ("iptables", *TOOLS):
        program = shutil.which(name, path=places)
        if program and (name != "firewall-cmd" or _runs("firewalld")):
            # Which of the two the plain name is shows where its link leads.
            legacy_kind = "legacy" in os.path.basename(os.path.realpath(program))
            kind = f"iptables-{'legacy' if legacy_kind else 'nft'}" if name == "iptables" else name
            found.setdefault(kind, name)
    return found


def _runs(program: str) -> bool:
    """Does a process of that name run?  firewall-cmd does not work without its service."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == program:
                return True
    return False


def ruleset() -> RulesetListing:
    """The ruleset of the namespace we are in.  KernelError where it cannot be listed.

    libnftables runs in a child: a ruleset that it cannot put into JSON must not take us with it.
    """
    objects, text, comments = apart(_list_ruleset)
    return RulesetListing(objects, text, {(family, TABLE): comment for family, comment in comments.items()})


def _list_ruleset() -> tuple[list[dict[str, Any]], str, dict[str, str]]:
    from vpcctl.kernel import tables

    nft = tables.context(None)
    comments = tables.comments(nft, ("inet",))
    nft.set_json_output(True)
    status, output, complaint = nft.cmd("list ruleset")
    if status:
        raise KernelError("cannot list the host's ruleset", complaint.strip())
    objects = json.loads(output)["nftables"] if output else []
    nft.set_json_output(False)
    nft.set_handle_output(True)
    nft.set_stateless_output(True)
    ours = {family: comment for family, comment in comments.items() if comment.startswith(TAG)}
    return objects + legacy_tables.objects(), nft.cmd("list ruleset")[1], ours


def surroundings() -> Surroundings:
    """The host's links, addresses and routes now, without our own.  Raises KernelError."""
    from vpcctl.kernel.links import Rtnl
    from vpcctl.kernel.rtnetlink import RTN_UNICAST

    try:
        with contextlib.closing(Rtnl(None)) as rtnl:
            links, addresses, routes = rtnl.links(), rtnl.addresses(4), rtnl.routes(4)
    except OSError as error:
        raise KernelError("cannot list the host's links and routes", str(error)) from error
    names = {link.index: name for name, link in links.items()}
    foreign = {link.index: name for name, link in links.items() if not link.alias.startswith(TAG)}
    by_address = [one for address in addresses for one in _by_address(address, foreign)]
    # The local table's routes are of other kinds.
    routed = [(one, link) for one in routes if one.kind == RTN_UNICAST for link in one.links if link in foreign]
    by_route = [
        Reached(one.destination, foreign[link], f"route to {one.destination}")
        for one, link in routed
        if not one.outward
    ]
    ways_out = [foreign[link] for one, link in routed if one.outward]
    return Surroundings(
        {link: _first_address(addresses, link, names) for link in ways_out},
        tuple(dict.fromkeys(by_address + by_route)),
        tuple((name, link.alias) for name, link in links.items() if link.alias.startswith(TAG)),
    )


def _by_address(address: LinkAddress, foreign: dict[int, str]) -> Iterator[Reached]:
    link, interface = foreign.get(address.link), ipaddress.ip_interface(address.address)
    # Addresses for everybody may be on lo, too.
    if link is not None and not interface.is_loopback:
        yield Reached(interface.network, link, f"address {interface.ip}")


def _first_address(addresses: list[LinkAddress], link: str, names: dict[int, str]) -> ipaddress.IPv4Address | None:
    """The address that masquerading takes: a link's first one."""
    found = (one.address for one in addresses if names.get(one.link) == link)
    return next((ipaddress.IPv4Interface(one).ip for one in found), None)
