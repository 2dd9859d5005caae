"""What the words of a policy mean in a world, as prefixes: named objects, and what is outside a VPC.

The analysis uses this module.  The compiler resolves names in its `view`, the oracle in lines of its own: each of the
three is tested against the others, so they share no code.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from vpcctl.model.network import Vpc, World
from vpcctl.model.policy import Endpoint, Network, Policy

EVERYTHING = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


class Meanings:
    """What the endpoints of one policy mean in a VPC; a name that is not there means no prefix."""

    def __init__(self, world: World, vpc: Vpc, policy: Policy):
        seen = (vpc, *world.peers(vpc.name))
        self._named: dict[tuple[str, str | None], Sequence[Network]] = {("internet", None): outside(world, vpc)}
        self._named |= {("vpc", one.name): one.prefixes for one in seen}
        self._named |= {("subnet", subnet.name): subnet.prefixes for subnet in vpc.subnets}
        self._instances = vpc.instances_by_name
        # A policy's own set hides the VPC's of the same name.
        self._named |= {("set", name): prefixes for name, prefixes in (*vpc.sets, *policy.sets)}

    def prefixes(self, endpoint: Endpoint) -> Sequence[Network]:
        """The prefixes that `endpoint` means; of every kind except ``any``, which is not a list of prefixes."""
        if endpoint.kind == "any":
            raise AssertionError("any has no prefixes")
        if endpoint.prefix is not None:
            return (endpoint.prefix,)
        if endpoint.kind == "instance":
            found = self._instances.get(str(endpoint.name))
            return tuple(map(ipaddress.ip_network, found.addresses)) if found else ()
        return self._named.get((endpoint.kind, endpoint.name), ())


def inside(world: World, vpc: Vpc) -> tuple[Network, ...]:
    """The prefixes of a VPC and its peers."""
    return tuple(prefix for one in (vpc, *world.peers(vpc.name)) for prefix in one.prefixes)


def outside(world: World, vpc: Vpc) -> tuple[Network, ...]:
    """All addresses outside a VPC and its peers, of both IP versions."""
    near = inside(world, vpc)
    return tuple(prefix for version in (4, 6) for prefix in complement(near, version))


def complement(prefixes: Iterable[Network], version: int) -> tuple[Network, ...]:
    """All addresses of one IP version that are in none of `prefixes`, as few prefixes as possible."""
    whole = EVERYTHING[version]
    address = type(whole.network_address)
    found: list[Network] = []
    free = 0
    taken = (prefix for prefix in prefixes if prefix.version == version)
    for prefix in sorted(taken, key=lambda prefix: int(prefix.network_address)):
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        if first > free:
            found += ipaddress.summarize_address_range(address(free), address(first - 1))
        free = max(free, last + 1)
    if free < whole.num_addresses:
        found += ipaddress.summarize_address_range(address(free), whole.broadcast_address)
    return tuple(found)
