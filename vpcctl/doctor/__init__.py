"""Find missing requirements and conflicting settings on this machine: the checks behind `vpcctl doctor`.

Each module has one subject and reports `Finding` values: what is wrong, why it matters, how to fix it.  No
check changes anything.  `matches`, `hooks`, `passage` and `prefixes` are pure; `host` and `features` touch the kernel,
the latter in a network of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, ip_network

from vpcctl import names
from vpcctl.doctor import foreign_firewalls, network_state, prefix_overlaps
from vpcctl.doctor.finding import Finding, worst_first
from vpcctl.doctor.foreign_firewalls import Passage
from vpcctl.doctor.hook_verdicts import Listing
from vpcctl.engine.state import State, Store
from vpcctl.errors import KernelError, VpcctlError
from vpcctl.kernel import namespaces, settings
from vpcctl.kernel.routes import read_host
from vpcctl.model.network import Vpc, World, uplink_pair
from vpcctl.model.policy import PROTOCOL_NAMES

__all__ = ["Finding", "examine", "pressing_findings"]

TAILNET = "tailscale"
CLASH = ("warning", prefix_overlaps.SUBJECT)
# An example of the first VPC, before one exists.
NOBODY = Vpc("example", (ip_network("10.0.0.0/16"),), 0)


def examine(store: Store) -> list[Finding]:
    """All findings about this machine, worst first; `store` holds the record."""
    from vpcctl.doctor import (  # not needed by `pressing_findings`
        kernel_features,
        link_managers,
        name_servers,
        source_checks,
        state_directory,
        system,
    )

    found: list[Finding] = [*system.privilege(), *system.python(), *system.library()]
    usable = not any(one.severity == "fatal" for one in found)
    state, wrong = state_directory.read(store)
    found += [*wrong, *system.named_namespaces(), *system.lab()]
    found += kernel_features.findings() if usable else []
    if state is not None:
        boot_id = settings.read(settings.ROOT / "kernel/random/boot_id") or ""
        found += state_directory.standing(state, boot_id, store)
    world, repair = state.world if state else World(), state_directory.command(store, "repair")
    found += link_managers.findings()
    found += [*system.bridge_calls(world, repair), *system.connection_tracking(world), *system.neighbours(world)]
    around = network_state.surroundings()
    found += [
        *system.forwarding(world, tuple(around.ways_out), repair),
        *source_checks.findings(tuple(around.ways_out)),
        *prefix_overlaps.findings(world, around.reached),
        *name_servers.findings(world, read_host()),
    ]
    if usable:
        found += _firewalls(world, around, state, store)
    return worst_first(found)


def pressing_findings(world: World, vpc: str) -> list[Finding]:
    """The problems of the VPC `vpc` that can be found quickly: foreign drops, prefix clashes.

    A clash is cheap to fix while the VPC is empty, so mere warnings are reported too.

    Looks only at the host's ruleset and routes.  Never raises: if they cannot be read, it reports nothing.
    """
    alone = dataclasses.replace(world, vpcs=(world.vpc(vpc),), peerings=())
    try:
        around, listing = network_state.surroundings(), network_state.ruleset()
        found = [*prefix_overlaps.findings(alone, around.reached), *_passing(alone, around, listing)]
    except (VpcctlError, OSError):
        return []
    return [one for one in found if one.severity == "fatal" or (one.severity, one.subject) == CLASH]


def _firewalls(
    world: World, around: network_state.Surroundings, state: State | None, store: Store
) -> Iterator[Finding]:
    """What foreign firewalls do to our packets, and our tables and links that are in no record."""
    from vpcctl.doctor import state_directory

    try:
        listing = network_state.ruleset()
    except KernelError as error:
        why = "Another firewall on this machine may drop the VPCs' packets, and doctor cannot see it."
        yield Finding(
            "warning" if network_state.privileged() else "note",
            foreign_firewalls.SUBJECT,
            str(error),
            why,
            "Run doctor as root.",
        )
        return
    yield from _passing(world, around, listing)
    if state is not None:
        yield from state_directory.strays(
            state.state_id, bool(state.serial), _tagged(around, listing, state), store.directory
        )


def _passing(world: World, around: network_state.Surroundings, listing: network_state.RulesetListing) -> list[Finding]:
    others = tuple(
        dict.fromkeys(
            one.network
            for one in around.reached
            if isinstance(one.network, IPv4Network) and one.link not in around.ways_out
        )
    )
    # Tailscale's own link leads to few addresses, and its rules judge packets to it only by our addresses.
    links = dict.fromkeys(one.link for one in around.reached if one.link not in around.ways_out)
    tailnets = [(link, None) for link in links if link.startswith(TAILNET)]
    vpcs = world.vpcs or (NOBODY,)
    passages = [_passage(world, vpc, way, others) for vpc in vpcs for way in around.ways_out.items()]
    passages += [
        dataclasses.replace(_passage(world, vpc, way, others), tailnet=True) for vpc in vpcs for way in tailnets
    ]
    if not passages:
        return []
    ruleset = Listing(listing.objects, listing.text)
    return foreign_firewalls.findings(ruleset, listing.ours, passages, str(world.transit), network_state.tools())


def _passage(
    world: World, vpc: Vpc, way_out: tuple[str, IPv4Address | None], others: tuple[IPv4Network, ...]
) -> Passage:
    link, address = way_out
    router = uplink_pair(world.transit, vpc.index)[1]
    # The host translates the address alone; the port becomes the instance's in the router.
    published = tuple((PROTOCOL_NAMES[item.protocol], item.port) for item in vpc.publications)
    assert isinstance(router, IPv4Address)
    return Passage(names.host_uplink(vpc.name), router, link, address, published, others)


def _tagged(
    around: network_state.Surroundings, listing: network_state.RulesetListing, state: State
) -> list[tuple[str, str, str]]:
    """(what, tag, the command that removes it) of the host's links, our tables, and namespaces not on record."""
    found = [(f"link {name}", tag, f"ip link delete {name}") for name, tag in around.ours]
    found += [
        (f"table {family} {name}", comment.split()[0], f"nft delete table {family} {name}")
        for (family, name), comment in listing.ours.items()
    ]
    known = set(state.world.namespaces())
    for name in namespaces.names():
        tag = network_state.namespace_tag(name) if name not in known else ""
        if tag:
            found.append((f"namespace {name}", tag, f"ip netns delete {name}"))
    return found
