"""Sets of packets in words, as few as will do: `web → db tcp/5432`."""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import DESTINATION, PORT, PROTOCOL, SOURCE, Interval, Partition, Space
from vpcctl.analysis.reachability import FLOWS, SERVICES_OF, Reach, Zone
from vpcctl.documents.fields import TYPE_NAMES
from vpcctl.model.policy import ICMP_PROTOCOLS, PORT_PROTOCOLS, PROTOCOL_NAMES, joined
from vpcctl.values import dataclass

ANY = "any"
LONGEST_LIST = 12


@dataclass(frozen=True, slots=True)
class Line:
    """From whom, to whom, on what: each a list of words whose product is a set of flows.

    A word may itself exclude something: ``web except web-2 (10.0.1.9)``, ``any except tcp/22, udp/53``.
    """

    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    services: tuple[str, ...]

    def __str__(self) -> str:
        return f"{_listed(self.sources)} → {_listed(self.destinations)} {_listed(self.services)}"


def _listed(words: Sequence[str]) -> str:
    """A list of words for people, shortened after LONGEST_LIST."""
    parts = [part for word in words for part in word.split(", ")]
    more = len(parts) - LONGEST_LIST
    return ", ".join(parts[:LONGEST_LIST]) + (f" and {more} more" if more > 0 else "")


def lines(packets: Space, source: Zone, destination: Zone, reach: Reach, home: str | None = None) -> Iterator[Line]:
    """`packets`, which flow from one zone to the other, exhaustively; first what all addresses have in common.

    Names are as seen from the VPC `home`, the source's own if it is not given, and from no VPC if it is empty.
    """
    inner = source.vpc or destination.vpc
    here, there = (
        _Side.of(zone, reach, str(inner), inner if home is None else home, end)
        for zone, end in ((source, SOURCE), (destination, DESTINATION))
    )
    # Toward the internet "any" is all that can be translated.
    carried = reach.translated(source, destination)
    common = _common(packets, here, there, carried)
    if common:
        services = services_in_words(common.partition, here.versions & there.versions, carried.partition)
        yield Line((here.name,), (there.name,), services)
        packets -= common
    by_targets: dict[tuple[tuple[Partition, tuple[Interval, ...]], ...], list[Interval]] = defaultdict(list)
    targets_of = functools.cache(_targets)
    for interval, to in packetset.cuts(packets.partition, SOURCE):
        by_targets[targets_of(to)].append(interval)
    for targets, sources in by_targets.items():
        if not targets:
            continue
        senders, versions = here.words(sources), _versions(sources)
        for allowed, receivers in targets:
            # The work is counted in words: each line may name all senders again.
            packetset.spend(len(senders) + len(receivers))
            yield Line(senders, there.words(receivers), services_in_words(allowed, versions, carried.partition))


@dataclass(frozen=True, slots=True)
class _Side:
    """A zone in words: its name, all its addresses, and who has which.

    `holes` are the host's own addresses within the internet.
    """

    name: str
    whole: list[Interval]
    instances: dict[int, str]
    holes: tuple[Interval, ...]

    @classmethod
    def of(cls, zone: Zone, reach: Reach, inner: str, home: str | None, end: int) -> _Side:
        """The zone as the SOURCE or DESTINATION of flows of the VPC `inner`, named as `home` sees it."""
        named = {}
        if zone.vpc is not None:
            owner = "" if zone.vpc == home else f"{zone.vpc}/"
            subnet = reach.world.vpc(zone.vpc).subnet(str(zone.subnet))
            named = {packetset.number(one): owner + item.name for item in subnet.instances for one in item.addresses}
        holes = reach.kept(inner, end) if zone.vpc is None and not zone.is_host else ()
        return cls(zone.name(home), joined(reach.addresses(zone, inner, end)), named, holes)

    @property
    def versions(self) -> frozenset[int]:
        return _versions(self.whole)

    def words(self, intervals: Iterable[Interval]) -> tuple[str, ...]:
        """Addresses as the zone where they are all of it or nearly, else as instances, prefixes and ranges."""
        wanted = joined(intervals)
        if wanted == self.whole:
            return (self.name,)
        rest = Space.of(self.whole, None, None, None) - Space.of(wanted, None, None, None)
        missing = [interval for interval, left in packetset.cuts(rest.partition, SOURCE) if left]
        wanted, missing = self._rounded(wanted), self._rounded(missing)
        if len(missing) < len(wanted):
            return (f"{self.name} except {', '.join(self._place(interval, '') for interval in missing)}",)
        return tuple(self._place(interval, f"{self.name} ") for interval in wanted)

    def _rounded(self, intervals: list[Interval]) -> list[Interval]:
        """`intervals`, extended over adjacent holes where that makes the list shorter.

        The zone has no address in a hole, so the meaning stays the same.
        """
        if not self.holes or not intervals:
            return intervals
        runs = joined((*intervals, *self.holes))
        lows, highs = [low for low, _ in intervals], [high for _, high in intervals]
        found = []
        for low, high in runs:
            first, last = bisect_left(lows, low), bisect_right(highs, high)
            if first < last:
                found.append(_shortest((lows[first], highs[last - 1]), (low, high)))
        return found

    def _place(self, interval: Interval, zone: str) -> str:
        low, high = map(packetset.address, interval)
        if low == high:
            name = self.instances.get(interval[0])
            return f"{name} ({low})" if name else f"{zone}{low}"
        prefixes = packetset.prefixes(interval)
        return f"{zone}{prefixes[0]}" if len(prefixes) == 1 else f"{zone}{low}-{high}"


def _shortest(core: Interval, run: Interval) -> Interval:
    """`core`, or a wider interval up to `run`, if that is one prefix and `core` is not."""
    choices = (core, (core[0], run[1]), (run[0], core[1]), run)
    return next((one for one in choices if one[0] == one[1] or len(packetset.prefixes(one)) == 1), core)


def _versions(intervals: Iterable[Interval]) -> frozenset[int]:
    return frozenset(packetset.address(low).version for low, _ in intervals)


def _common(packets: Space, here: _Side, there: _Side, carried: Space) -> Space:
    """The services that every address of one zone has with every address of the other."""
    # What cannot be has every service, so that it takes nothing from what is common.
    filled = packets | (packetset.EVERYTHING - (FLOWS & carried & Space.of(here.whole, there.whole, None, None)))
    followers = dict.fromkeys(to for _, to in packetset.cuts(filled.partition, SOURCE))
    parts = {part for to in followers for _, part in packetset.cuts(to, DESTINATION)}
    found = _possible(here.versions & there.versions) & carried
    for part in parts:
        found &= Space(part)
    return found


def _possible(versions: Iterable[int]) -> Space:
    """All services that flows of these IP versions may begin with."""
    return functools.reduce(Space.union, (SERVICES_OF[version] for version in versions), packetset.NOTHING)


def _targets(partition: Partition) -> tuple[tuple[Partition, tuple[Interval, ...]], ...]:
    """What follows after the source: each set of services with the destinations that have it."""
    found: dict[Partition, list[Interval]] = defaultdict(list)
    for interval, inner in packetset.cuts(partition, DESTINATION):
        found[inner].append(interval)
    return tuple((services, tuple(places)) for services, places in found.items() if services is not False)


@functools.cache
def services_in_words(services: Partition, versions: frozenset[int], carried: Partition = True) -> tuple[str, ...]:
    """Protocols and ports, as `tcp/80`, `udp`, `icmp/echo-request`; what is missing where that is shorter.

    `services` is a set of what flows of the IP `versions` may begin with; "any" is what the set `carried` has of that.
    """
    everything = _by_protocol((_possible(versions) & Space(carried)).partition)
    found = _by_protocol(services)
    plain = _services(found, _by_protocol(_possible(versions).partition))
    if found.keys() - everything.keys():
        return tuple(plain)
    missing = {protocol: everything[protocol] - found.get(protocol, packetset.NOTHING) for protocol in everything}
    missing = {protocol: rest for protocol, rest in missing.items() if rest}
    if not missing:
        return (ANY,)
    exceptions = _services(missing, everything)
    return (f"{ANY} except {', '.join(exceptions)}",) if len(exceptions) < len(plain) else tuple(plain)


def _by_protocol(services: Partition) -> dict[int, Space]:
    """The ports of each protocol that has any."""
    return {
        protocol: Space(ports)
        for (low, high), ports in packetset.cuts(services, PROTOCOL)
        if ports is not False
        for protocol in range(low, high + 1)
    }


def _services(found: dict[int, Space], everything: dict[int, Space]) -> list[str]:
    words: list[str] = []
    unnamed: list[Interval] = []
    for protocol, ports in sorted(found.items()):
        name = PROTOCOL_NAMES.get(protocol)
        whole = ports == everything.get(protocol)
        if name is None and whole:
            unnamed.append((protocol, protocol))
        elif whole:
            words.append(str(name))
        else:
            words += [f"{name or protocol}/{word}" for word in _ports(protocol, ports)]
    for low, high in joined(unnamed):
        words.append(f"protocol {low}" if low == high else f"protocols {low}-{high}")
    return words


def _ports(protocol: int, ports: Space) -> list[str]:
    ranges = [interval for interval, inside in packetset.cuts(ports.partition, PORT) if inside]
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
