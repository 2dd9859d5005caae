"""Sets of packets in words, as few as will do: `web → db tcp/5432`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vpcctl import space
from vpcctl.policy import ICMP_PROTOCOLS, PORT_PROTOCOLS, PROTOCOL_NAMES
from vpcctl.reach import SERVICES, Reach, Zone
from vpcctl.space import DESTINATION, PORT, PROTOCOL, SOURCE, Interval, Partition, Space
from vpcctl.spec import TYPE_NAMES

ANY = "any"
LONGEST_LIST = 12


@dataclass(frozen=True, slots=True)
class Line:
    """From whom, to whom, on what: each a list of words whose product is a set of flows."""

    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    services: tuple[str, ...]

    def __str__(self) -> str:
        return f"{_listed(self.sources)} → {_listed(self.destinations)} {_listed(self.services)}"


def _listed(words: Sequence[str]) -> str:
    if len(words) > LONGEST_LIST:
        return ", ".join(words[:LONGEST_LIST]) + f" and {len(words) - LONGEST_LIST} more"
    return ", ".join(words)


def lines(packets: Space, source: Zone, destination: Zone, reach: Reach, home: str | None = None) -> Iterator[Line]:
    """`packets`, which flow from one zone to the other, exhaustively; first what all addresses have in common.

    Names are as seen from the VPC `home`, the source's own if it is not given.
    """
    home = home or source.vpc or destination.vpc
    common = _common(packets, source, destination, reach)
    if common is not False:
        yield Line((source.name(home),), (destination.name(home),), tuple(services_in_words(common)))
        packets -= Space(common)
    by_targets: dict[tuple, list[Interval]] = defaultdict(list)
    for interval, inner in space.cuts(packets.partition, SOURCE):
        by_targets[_targets(inner)].append(interval)
    for targets, sources in by_targets.items():
        for services, receivers in targets:
            senders = _addresses(sources, source, reach, home)
            names = _addresses(receivers, destination, reach, home)
            yield Line(senders, names, tuple(services_in_words(services)))


def _common(packets: Space, source: Zone, destination: Zone, reach: Reach) -> Partition:
    """The services that every address of one zone has with every address of the other, as a partition."""
    ranges = [reach.addresses(zone, str(source.vpc or destination.vpc)) for zone in (source, destination)]
    outside = Space.of(ranges[0], ranges[1], None, None).partition
    # Packets outside the two zones have every service, so that they take nothing from what is common.
    filled = space.combine(lambda passes, inside: passes or not inside, packets.partition, outside)
    found: Partition = True
    for _, inner in space.cuts(filled, SOURCE):
        for _, services in space.cuts(inner, DESTINATION):
            found = space.combine(lambda one, two: one and two, found, services)
    return found


def _targets(partition: Partition) -> tuple[tuple[Partition, tuple[Interval, ...]], ...]:
    """What follows after the source: each set of services with the destinations that have it."""
    found: dict[Partition, list[Interval]] = defaultdict(list)
    for interval, inner in space.cuts(partition, DESTINATION):
        found[inner].append(interval)
    return tuple((services, tuple(places)) for services, places in found.items() if services is not False)


def _addresses(intervals: Iterable[Interval], zone: Zone, reach: Reach, home: str | None) -> tuple[str, ...]:
    """Addresses as names: the zone where they are all of it, instances, else prefixes."""
    whole = reach.addresses(zone, str(home)) if zone.key in reach.zones else zone.addresses
    wanted = space.joined(intervals)
    inside = space.joined(
        (max(low, least), min(high, most))
        for low, high in wanted
        for least, most in whole
        if max(low, least) <= min(high, most)
    )
    if inside == space.joined(whole):
        return (zone.name(home),)
    plain = _places(inside, zone, reach, home)
    rest = Space.of(whole, None, None, None) - Space.of(inside, None, None, None)
    but = _places([interval for interval, left in space.cuts(rest.partition, SOURCE) if left], zone, reach, home)
    return (f"{zone.name(home)} but {', '.join(but)}",) if len(but) < len(plain) else plain


def _places(intervals: Iterable[Interval], zone: Zone, reach: Reach, home: str | None) -> tuple[str, ...]:
    """Intervals of a zone's addresses as instances or prefixes."""
    names = _instances(zone, reach)
    return tuple(
        f"{zone.name(home)} {prefix}"
        if prefix.prefixlen < prefix.max_prefixlen
        else f"{names.get(space.number(prefix.network_address), zone.name(home))} ({prefix.network_address})"
        for interval in intervals
        for prefix in space.prefixes(interval)
    )


def _instances(zone: Zone, reach: Reach) -> dict[int, str]:
    if zone.vpc is None or zone.key not in reach.zones:
        return {}
    subnet = reach.world.vpc(zone.vpc).subnet(str(zone.subnet))
    return {space.number(address): one.name for one in subnet.instances for address in one.addresses}


def services_in_words(services: Partition) -> list[str]:
    """Protocols and ports, as `tcp/80`, `udp`, `icmp/echo-request`; what is missing where that is shorter."""
    everything = _by_protocol(SERVICES.partition)
    found = _by_protocol(services)
    plain = _services(found, everything)
    missing = {protocol: everything[protocol] - found.get(protocol, space.NOTHING) for protocol in everything}
    missing = {protocol: rest for protocol, rest in missing.items() if rest}
    if not missing:
        return [ANY]
    but = _services(missing, everything)
    if len(but) < len(plain):
        return [f"{ANY} but {word}" if not number else word for number, word in enumerate(but)]
    return plain


def _by_protocol(services: Partition) -> dict[int, Space]:
    """The ports of each protocol that has any."""
    found = {}
    for (low, high), ports in space.cuts(services, PROTOCOL):
        for protocol in range(low, high + 1):
            if ports is not False:
                known = Space(ports) & Space(_all_ports(protocol))
                if known:
                    found[protocol] = known
    return found


def _all_ports(protocol: int) -> Partition:
    """All ports (or beginning ICMP types) of a protocol, as a partition of the port dimension."""
    return next(part for (low, high), part in space.cuts(SERVICES.partition, PROTOCOL) if low <= protocol <= high)


def _services(found: dict[int, Space], everything: dict[int, Space]) -> list[str]:
    words: list[str] = []
    unnamed: list[Interval] = []
    for protocol, ports in sorted(found.items()):
        name = PROTOCOL_NAMES.get(protocol)
        whole = ports == everything[protocol]
        if name is None and whole:
            unnamed.append((protocol, protocol))
        elif whole:
            words.append(str(name))
        else:
            words += [f"{name or protocol}/{word}" for word in _ports(protocol, ports)]
    for low, high in space.joined(unnamed):
        words.append(f"protocol {low}" if low == high else f"protocols {low}-{high}")
    return words


def _ports(protocol: int, ports: Space) -> list[str]:
    ranges = [interval for interval, inside in space.cuts(ports.partition, PORT) if inside]
    if protocol in ICMP_PROTOCOLS:
        names = {number: name for name, number in TYPE_NAMES[protocol].items()}
        return [names.get(number, str(number)) for low, high in ranges for number in range(low, high + 1)]
    return [str(low) if low == high else f"{low}-{high}" for low, high in ranges]


def service_in_words(protocol: int, port: int | None) -> str:
    """One service, as `tcp/443`."""
    name = PROTOCOL_NAMES.get(protocol, str(protocol))
    if port is None or protocol not in PORT_PROTOCOLS | ICMP_PROTOCOLS:
        return name
    if protocol in ICMP_PROTOCOLS:
        return f"{name}/{ {number: word for word, number in TYPE_NAMES[protocol].items()}.get(port, port) }"
    return f"{name}/{port}"
