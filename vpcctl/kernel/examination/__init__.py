"""What this machine lacks or has that will get in the way: the examinations behind `vpcctl doctor`.

Each module has one subject and reports `Finding` values: what is wrong, why it matters, how to fix it.  Nothing
is changed by looking.  `matches`, `hooks`, `passage` and `prefixes` are pure; `host` and `features` touch the kernel,
the latter in a network of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_network

from vpcctl import names
from vpcctl.errors import KernelError, VpcctlError
from vpcctl.kernel import namespaces, settings
from vpcctl.kernel.examination import host, passage, prefixes
from vpcctl.kernel.examination.finding import Finding, worst_first
from vpcctl.kernel.examination.hooks import Listing
from vpcctl.kernel.examination.passage import Passage
from vpcctl.model import Vpc, World, uplink_pair
from vpcctl.policy import PROTOCOL_NAMES
from vpcctl.state import State, Store

__all__ = ["Finding", "examine", "pressing_findings"]

CLASH = ("warning", prefixes.SUBJECT)
# Stands for the first VPC before one exists.
NOBODY = Vpc("example", (ip_network("10.0.0.0/16"),), 0)


def examine(store: Store) -> list[Finding]:
    """Everything that is found about this machine, worst first; `store` holds the record."""
    from vpcctl.kernel.examination import features, machine, managers, record  # not needed by `pressing_findings`

    found: list[Finding] = [*machine.privilege(), *machine.python(), *machine.library()]
    usable = not any(one.severity == "fatal" for one in found)
    state, wrong = record.read(store)
    found += [*wrong, *machine.named_namespaces(), *machine.lab()]
    found += features.findings() if usable else []
    if state is not None:
        boot_id = settings.read(settings.ROOT / "kernel/random/boot_id") or ""
        found += record.standing(state, boot_id, store)
    world, repair = state.world if state else World(), record.command(store, "repair")
    found += managers.findings()
    found += [*machine.bridge_calls(world, repair), *machine.connection_tracking(world), *machine.neighbours(world)]
    around = host.surroundings()
    found += [*machine.forwarding(world, tuple(around.ways_out), repair), *prefixes.findings(world, around.reached)]
    if usable:
        found += _firewalls(world, around, state, store)
    return worst_first(found)


def pressing_findings(world: World, vpc: str) -> list[Finding]:
    """What keeps the VPC `vpc` from what it is for, as far as that is quickly found: foreign drops, prefix clashes.

    A clash is cheap to fix while the VPC is empty, so mere warnings are reported too.

    Looks at nothing but the host's ruleset and routes.  Never raises: where they cannot be read, nothing is said.
    """
    alone = dataclasses.replace(world, vpcs=(world.vpc(vpc),), peerings=())
    try:
        around, listing = host.surroundings(), host.ruleset()
        found = [*prefixes.findings(alone, around.reached), *_passing(alone, around, listing)]
    except (VpcctlError, OSError):
        return []
    return [one for one in found if one.severity == "fatal" or (one.severity, one.subject) == CLASH]


def _firewalls(world: World, around: host.Surroundings, state: State | None, store: Store) -> Iterator[Finding]:
    """What others' firewalls do to our packets, and tables and links of ours that no record knows."""
    from vpcctl.kernel.examination import record

    try:
        listing = host.ruleset()
    except KernelError as error:
        why = "Another firewall on this machine may drop what the VPCs send, and doctor cannot see it."
        yield Finding(
            "warning" if host.privileged() else "note", passage.SUBJECT, str(error), why, "Run doctor as root."
        )
        return
    yield from _passing(world, around, listing)
    if state is not None:
        yield from record.strays(state.state_id, bool(state.serial), _tagged(around, listing, state), store.directory)


def _passing(world: World, around: host.Surroundings, listing: host.RulesetListing) -> list[Finding]:
    passages = [_passage(world, vpc, way_out) for vpc in world.vpcs or (NOBODY,) for way_out in around.ways_out.items()]
    if not passages:
        return []
    ruleset = Listing(listing.objects, listing.text)
    return passage.findings(ruleset, listing.ours, passages, str(world.transit), host.tools())


def _passage(world: World, vpc: Vpc, way_out: tuple[str, IPv4Address | None]) -> Passage:
    link, address = way_out
    router = uplink_pair(world.transit, vpc.index)[1]
    # The host translates the address alone; the port becomes the instance's in the router.
    published = tuple((PROTOCOL_NAMES[item.protocol], item.port) for item in vpc.publications)
    assert isinstance(router, IPv4Address)
    return Passage(names.host_uplink(vpc.name), router, link, address, published)


def _tagged(around: host.Surroundings, listing: host.RulesetListing, state: State) -> list[tuple[str, str, str]]:
    """(what, tag, the command that removes it) of the host's links, our tables, and namespaces not on record."""
    found = [(f"link {name}", tag, f"ip link delete {name}") for name, tag in around.ours]
    found += [
        (f"table {family} {name}", comment.split()[0], f"nft delete table {family} {name}")
        for (family, name), comment in listing.ours.items()
    ]
    known = set(state.world.namespaces())
    for name in namespaces.names():
        tag = host.namespace_tag(name) if name not in known else ""
        if tag:
            found.append((f"namespace {name}", tag, f"ip netns delete {name}"))
    return found
