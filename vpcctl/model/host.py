"""What one host adds to the intent: its own addresses, and what the record keeps of it beside the world.

Questions about traffic need the addresses that look like the internet's and end in the host.

Packets of an instance to such an address never leave the host: its table drops them (docs/packet-path.md).
"""

from __future__ import annotations

import dataclasses

from vpcctl.model.policy import Address, Network
from vpcctl.values import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """What the host takes in for itself: its own `addresses`, and the `broadcasts` of its networks.

    A packet from outside whose source is one of the single addresses is dropped in any case.  With `strict` the host
    checks sources against its routes, and a source in any of these prefixes is dropped.
    """

    addresses: tuple[Network, ...] = ()
    broadcasts: tuple[Network, ...] = ()
    strict: bool = False

    @property
    def receives(self) -> tuple[Network, ...]:
        """The networks that the host receives for itself: they are not destinations outside."""
        return self.addresses + self.broadcasts

    @property
    def sends(self) -> tuple[Network, ...]:
        """The networks that are not sources outside.

        The kernel compares a source with the single addresses alone where nothing asks for more
        (net/ipv4/fib_frontend.c: fib_validate_source).
        """
        if self.strict:
            return self.receives
        return tuple(prefix for prefix in self.addresses if prefix.prefixlen == prefix.max_prefixlen)

    def has(self, address: Address) -> bool:
        """Is it one of the host's own addresses?"""
        return any(address in prefix for prefix in self.addresses)

    def hears(self, address: Address) -> bool:
        """Does a packet to this address end in the host?"""
        return any(address in prefix for prefix in self.receives)


# Where nothing is known of the host.
NO_HOST = Host()


@dataclass(frozen=True, slots=True)
class OpenedLink:
    """A link of the host on which forwarding was off before us.

    The link is identified by its index: the kernel gives it to no other link before the next boot, and it stays the
    same when the link is renamed. It is 0 for a link that an older version of the program put on record. `name` is the
    last known name.
    """

    index: int
    name: str = dataclasses.field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class HostPart:
    """What was found on the host and is part of what we make there, kept beside the world and not in it.

    `opened` are the links on which we turned forwarding on; `closed` are the indices of the links that have routes and
    do not forward by themselves, those in `opened` included.  Packets from an opened link to a closed one are dropped:
    only our setting would let them through.  `forwards` says whether the whole host forwarded then (ip_forward).

    `reserved` are the ports among NAT_PORTS on which the host itself serves, which source NAT leaves alone.
    """

    opened: tuple[OpenedLink, ...] = ()
    reserved: tuple[int, ...] = ()
    closed: tuple[int, ...] = ()
    forwards: bool = False


NO_PART = HostPart()
