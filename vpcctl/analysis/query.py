"""A question about traffic in the words of the command line: two ends and a service, resolved to sets of packets."""

from __future__ import annotations

import ipaddress

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import Interval
from vpcctl.analysis.reachability import HOST, INTERNET, Reach, Zone
from vpcctl.documents.fields import TYPE_NAMES
from vpcctl.documents.reading import nearest, quote
from vpcctl.errors import ConflictError, DocumentError
from vpcctl.model.oracle import subnet_at
from vpcctl.model.policy import HIGHEST_PORT, ICMP_PROTOCOLS, PORT_PROTOCOLS, PROTOCOLS, Address
from vpcctl.model.protocols import REPLY_TYPE
from vpcctl.values import dataclass


@dataclass(frozen=True, slots=True)
class End:
    """One side of a question: a zone and the addresses in it that are meant.  `text` is what was asked."""

    text: str
    zone: Zone
    addresses: tuple[Interval, ...]

    @property
    def single(self) -> Address | None:
        """The address, where there is one alone."""
        if len(self.addresses) == 1 and self.addresses[0][0] == self.addresses[0][1]:
            return packetset.address(self.addresses[0][0])
        return None


def parse_service(text: str) -> tuple[list[Interval] | None, list[Interval] | None]:
    """The protocol and the ports or ICMP types of a service, as ranges; DocumentError says what is expected."""
    word, slash, rest = text.lower().partition("/")
    if word == "any" and not slash:
        return None, None
    protocol = PROTOCOLS.get(word)
    if protocol is None and 0 <= _whole_number(word) <= 255:
        protocol = _whole_number(word)
    expected = "a service is tcp/443, udp/53, icmp/echo-request, tcp, a protocol number or any"
    if protocol is None:
        raise DocumentError(f"{quote(text)} is not a service: {nearest(word, [*PROTOCOLS, 'any'])}; {expected}")
    if not slash:
        return [(protocol, protocol)], None
    if protocol in ICMP_PROTOCOLS:
        number = TYPE_NAMES[protocol].get(rest, _whole_number(rest))
        if not 0 <= number <= 255:
            known = sorted(name for name, kind in TYPE_NAMES[protocol].items() if kind in REPLY_TYPE[protocol])
            raise DocumentError(f"{quote(text)} is not a service: {nearest(rest, known)}")
        return [(protocol, protocol)], [(number, number)]
    first, dash, last = rest.partition("-")
    low, high = _whole_number(first), _whole_number(last if dash else first)
    if protocol not in PORT_PROTOCOLS or min(low, high) < 0:
        raise DocumentError(f"{quote(text)} is not a service; {expected}")
    if not 1 <= low <= high <= HIGHEST_PORT:
        raise DocumentError(f"{quote(text)} is not a service: {rest} is not a port (1–65535)")
    return [(protocol, protocol)], [(low, high)]


def _whole_number(text: str) -> int:
    """A number of few ASCII digits, -1 for any other text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1


def resolve_end(reach: Reach, text: str, home: str, end: int) -> End:
    """The SOURCE or DESTINATION of a question; `home` is the VPC from which the internet is seen.

    ConflictError if it is nowhere.
    """
    vpc, slash, name = text.partition("/")
    if not slash:
        return _outside(reach, text, home, end)
    found = reach.world.vpc(vpc)
    instance = found.instances_by_name.get(name)
    if instance is not None:
        zone = reach.zones[vpc, found.subnet_of(name).name]
        return End(text, zone, tuple((packetset.number(a), packetset.number(a)) for a in instance.addresses))
    if (vpc, name) in reach.zones:
        zone = reach.zones[vpc, name]
        return End(text, zone, zone.addresses)
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        known = sorted({*found.instances_by_name, *found.subnets_by_name})
        hint = nearest(name, known) if known else "it has none yet"
        raise ConflictError(f"instance or subnet {name!r} not found in VPC {vpc}; {hint}") from None
    if not any(address in prefix for subnet in found.subnets for prefix in subnet.prefixes):
        raise ConflictError(f"{address} is in no subnet of VPC {vpc}")
    number = packetset.number(address)
    return End(text, reach.zones[vpc, subnet_at(found, address).name], ((number, number),))


def _outside(reach: Reach, text: str, home: str, end: int) -> End:
    zone, host = reach.zones[None, None], reach.zones.get((None, HOST))
    reach.world.vpc(home)
    if text == INTERNET:
        return End(text, zone, reach.addresses(zone, home, end))
    if text == HOST and host is not None:
        return End(text, host, reach.addresses(host, home, end))
    try:
        number = packetset.number(ipaddress.ip_address(text))
    except ValueError:
        raise DocumentError(
            f"{quote(text)} is not an end of a flow: VPC/NAME, VPC/ADDRESS, internet or a public address is expected"
        ) from None
    if host is not None and any(low <= number <= high for low, high in reach.addresses(host, home, end)):
        zone = host
    return End(text, zone, ((number, number),))
