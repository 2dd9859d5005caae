"""Reads the words for sets of packets back: what a person would understand by `web but web-2 (10.0.1.9) → db tcp/80`.

Strict: a word that is no name of the pair of zones, a name with an address that is not its own, an unknown service
are errors.  It shares nothing with the module that makes the words but the names of protocols and ICMP types.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import EVERYTHING, NOTHING, Interval, Space
from vpcctl.analysis.reachability import FLOWS, SERVICES, Reach, Zone
from vpcctl.analysis.rendering import Line
from vpcctl.documents.fields import TYPE_NAMES
from vpcctl.model.policy import ICMP_PROTOCOLS, PROTOCOLS


def packets(lines: Iterable[Line], source: Zone, destination: Zone, reach: Reach, home: str | None = None) -> Space:
    """All packets that `lines` between two zones mean; no packet may be meant twice."""
    home = (source.vpc or destination.vpc) if home is None else home
    found = NOTHING
    for line in lines:
        senders, receivers = (
            _union(_places(word, zone, reach, str(source.vpc or destination.vpc), home, end) for word in words)
            for words, zone, end in (
                (line.sources, source, packetset.SOURCE),
                (line.destinations, destination, packetset.DESTINATION),
            )
        )
        assert senders, line
        assert receivers, line
        carried = reach.translated(source, destination)
        meant = _ends(senders, receivers) & services(line.services, carried) & FLOWS
        assert meant, f"{line} means nothing"
        assert not meant & found, f"{line} says again what another line said"
        found |= meant
    return found


def services(words: Iterable[str], carried: Space = EVERYTHING) -> Space:
    """The services in words, with any ends; "any" is all that is `carried`."""
    return _union(_listed_service(word, SERVICES & carried) for word in words)


def _listed_service(word: str, everything: Space) -> Space:
    base, excepted, rest = word.partition(" except ")
    if base == "any":
        return everything - _union(map(_service, rest.split(", "))) if excepted else everything
    return _service(word)


def _union(spaces: Iterable[Space]) -> Space:
    found = NOTHING
    for one in spaces:
        assert not found & one, "a word says again what another word said"
        found |= one
    return found


def _ends(senders: Space, receivers: Space) -> Space:
    """Senders, given as sources, and receivers, given as sources too, as the ends of packets."""
    to = [interval for interval, inside in packetset.cuts(receivers.partition, packetset.SOURCE) if inside]
    return senders & Space.of(None, to, None, None)


def _places(word: str, zone: Zone, reach: Reach, inner: str, home: str | None, end: int) -> Space:
    """One word for addresses of `zone`, as sources.

    What the host has in the midst of the internet is not meant, whatever prefix is named.
    """
    name, whole = zone.name(home), _sources(reach.addresses(zone, inner, end))
    kept = _sources(reach.kept(inner, end)) if zone.vpc is None and not zone.is_host else NOTHING
    base, excepted, rest = word.partition(" except ")
    if excepted:
        assert base == name, word
        missing = _union(_place(text, zone, reach, home) for text in rest.split(", ")) - kept
        assert missing, f"{word} takes nothing away"
        assert not missing - whole, f"{word} takes away what is not there"
        return whole - missing
    if word == name:
        return whole
    if not word.endswith(")"):
        assert word.startswith(f"{name} "), f"{word!r} is not of {name}"
        word = word.removeprefix(f"{name} ")
    found = _place(word, zone, reach, home)
    # A question about an address of the host is answered with that address.
    return found - kept or found


def _place(text: str, zone: Zone, reach: Reach, home: str | None) -> Space:
    """An address, a prefix, a range, or an instance with its address."""
    named = re.fullmatch(r"(\S+) \((\S+)\)", text)
    if named:
        vpc, slash, name = named[1].rpartition("/")
        assert (vpc or home) == zone.vpc, text
        assert bool(slash) is (zone.vpc != home), text
        address = ipaddress.ip_address(named[2])
        subnet = reach.world.vpc(str(zone.vpc)).subnet(str(zone.subnet))
        assert any(one.name == name and address in one.addresses for one in subnet.instances), text
        return _sources([(packetset.number(address),) * 2])
    low, dash, high = text.partition("-")
    if dash:
        return _sources([tuple(packetset.number(ipaddress.ip_address(end)) for end in (low, high))])
    return _sources([packetset.interval(ipaddress.ip_network(text))])


def _sources(ranges: Iterable[Interval]) -> Space:
    return Space.of(list(ranges), None, None, None)


def _service(word: str) -> Space:
    numbered = re.fullmatch(r"protocols? (\d+)(?:-(\d+))?", word)
    if numbered:
        low, high = int(numbered[1]), int(numbered[2] or numbered[1])
        assert (low < high) is word.startswith("protocols"), word
        return Space.of(None, None, [(low, high)], None) & SERVICES
    name, slash, rest = word.partition("/")
    protocol = PROTOCOLS[name] if name in PROTOCOLS else int(name)
    alone = Space.of(None, None, [(protocol, protocol)], None)
    if not slash:
        assert name in PROTOCOLS, word
        return alone & SERVICES
    if protocol in ICMP_PROTOCOLS:
        numbers = [TYPE_NAMES[protocol][rest] if rest in TYPE_NAMES[protocol] else int(rest)]
    else:
        numbers = list(map(int, rest.split("-")))
    return alone & Space.of(None, None, None, [(numbers[0], numbers[-1])])
