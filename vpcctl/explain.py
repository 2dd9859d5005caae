"""May this flow pass, which line of which file decides, and by which hops?

A question is a set of packets: an instance or an address on either side is a point, a subnet or the internet many.
The answer walks the same stages as a packet (topology, egress gate, ingress gate) with the whole set, and says for
which part each line decides.
"""

from __future__ import annotations

import functools
import ipaddress
import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vpcctl import names, space
from vpcctl.compiler.gates import REPLY_TYPE
from vpcctl.documents import nearest, quote
from vpcctl.errors import ConflictError, DocumentError
from vpcctl.meaning import Flow, Place, subnet_at
from vpcctl.model import World
from vpcctl.policy import (
    HIGHEST_PORT,
    ICMP,
    ICMP_PROTOCOLS,
    PORT_PROTOCOLS,
    PROTOCOLS,
    TCP,
    UDP,
    Action,
    Address,
    Direction,
    Rule,
)
from vpcctl.reach import DEFAULT, FLOWS, INTERNET, SERVICES, Gate, Reach, Zone
from vpcctl.space import Interval, Space
from vpcctl.spec import TYPE_NAMES
from vpcctl.wording import Line, lines

ALLOW, DENY, PARTLY = "allow", "deny", "partly"


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
            return space.address(self.addresses[0][0])
        return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one line says about a part of the question; `rule` is None for defaults, paths and missing policies."""

    action: Action
    origin: str
    lines: tuple[Line, ...]
    rule: Rule | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One thing that is asked, with every line that decides there."""

    gate: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """`verdict` is allow, deny or, where it depends, partly; `allowed` says for which part then."""

    source: End
    destination: End
    service: str
    verdict: str
    stages: tuple[Stage, ...]
    hops: tuple[str, ...]
    allowed: tuple[Line, ...]
    asked: Space = field(repr=False, compare=False, default=space.NOTHING)
    passing: Space = field(repr=False, compare=False, default=space.NOTHING)

    @property
    def deciding(self) -> Verdict:
        """The first verdict that denies, else the last that allows."""
        found = [verdict for stage in self.stages for verdict in stage.verdicts]
        return next((verdict for verdict in found if verdict.action is not Action.ALLOW), found[-1])


def ask(reach: Reach, source: str, destination: str, service: str) -> Answer:
    """Answer a question in the words of the command line; DocumentError or ConflictError if it makes no sense."""
    home = next((text.partition("/")[0] for text in (source, destination) if "/" in text), None)
    if home is None:
        raise DocumentError(f"{source} → {destination}: one side must be in a VPC: VPC/NAME or VPC/ADDRESS")
    start, end = (_end(reach, text, home) for text in (source, destination))
    asked = SERVICES & Space.of(start.addresses, end.addresses, *parse_service(service))
    if not asked:
        raise DocumentError(f"{quote(service)}: no flow begins with that")
    # Where both IP versions are on, an address of one and an address of the other are no question.
    wanted = asked & FLOWS or asked
    passing, stages = _walk(reach, start, end, wanted)
    verdict = ALLOW if passing == wanted else PARTLY if passing else DENY
    allowed = tuple(lines(passing, start.zone, end.zone, reach))
    hops = tuple(_hops(reach.world, start, end))
    return Answer(start, end, service, verdict, tuple(stages), hops, allowed, wanted, passing)


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


def _end(reach: Reach, text: str, home: str) -> End:
    """One side of a question, resolved."""
    vpc, slash, name = text.partition("/")
    if not slash:
        return _outside(reach, text, home)
    found = reach.world.vpc(vpc)
    instance = next((one for one in found.instances if one.name == name), None)
    if instance is not None:
        zone = reach.zones[vpc, found.subnet_of(name).name]
        return End(text, zone, tuple((space.number(a), space.number(a)) for a in instance.addresses))
    if (vpc, name) in reach.zones:
        zone = reach.zones[vpc, name]
        return End(text, zone, zone.addresses)
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        known = sorted({*(one.name for one in found.instances), *(one.name for one in found.subnets)})
        hint = nearest(name, known) if known else "it has none yet"
        raise ConflictError(f"VPC {vpc} has no instance or subnet {name!r}; {hint}") from None
    if not any(address in prefix for subnet in found.subnets for prefix in subnet.prefixes):
        raise ConflictError(f"{address} is in no subnet of VPC {vpc}")
    number = space.number(address)
    return End(text, reach.zones[vpc, subnet_at(found, address).name], ((number, number),))


def _outside(reach: Reach, text: str, home: str) -> End:
    zone = reach.zones[None, None]
    reach.world.vpc(home)
    if text == INTERNET:
        return End(text, zone, reach.addresses(zone, home))
    try:
        number = space.number(ipaddress.ip_address(text))
    except ValueError:
        raise DocumentError(
            f"{quote(text)} is no end of a flow: VPC/NAME, VPC/ADDRESS, internet or a public address is expected"
        ) from None
    return End(text, zone, ((number, number),))


def _walk(reach: Reach, start: End, end: End, wanted: Space) -> tuple[Space, list[Stage]]:
    """The part of `wanted` that passes, and what every stage says."""
    can, reason = _path(reach, start, end)
    carries = can is Action.ALLOW
    passing = reach.carried(start.zone, end.zone) & wanted if carries else space.NOTHING
    verdicts = []
    for action, part in ((Action.ALLOW, passing), (Action.DENY, wanted - passing)):
        if part:
            told = tuple(lines(part, start.zone, end.zone, reach))
            why = reason if (action is Action.ALLOW) == carries else _not_carried(start)
            verdicts.append(Verdict(action, why, told))
    stages = [Stage("topology", tuple(verdicts))]
    for side, direction in ((start, Direction.EGRESS), (end, Direction.INGRESS)):
        if side.zone.vpc is not None and passing:
            passing, stage = _judged(reach, start, end, side.zone, direction, passing)
            stages.append(stage)
    return passing, stages


def _path(reach: Reach, start: End, end: End) -> tuple[Action, str]:
    """Does the topology carry anything from one end to the other, and why (not)?"""
    inner = str(start.zone.vpc or end.zone.vpc)
    for side in sorted((start, end), key=lambda one: one.zone.vpc is None):
        reason = _misplaced(reach, side, side.zone.vpc or inner)
        if reason:
            return Action.DENY, reason
    return reach.path(start.zone, end.zone)


def _misplaced(reach: Reach, side: End, inner: str) -> str:
    """Why a single address, seen from the VPC `inner`, is not where it is said to be; empty where it is."""
    address, vpc = side.single, reach.world.vpc(inner)
    if address is None:
        return ""
    if side.zone.vpc is not None:
        known = any(address in instance.addresses for instance in vpc.instances)
        return "" if known else f"{address} is no instance of VPC {inner}"
    number = side.addresses[0][0]
    if any(low <= number <= high for low, high in reach.addresses(side.zone, inner)):
        return ""
    owners = [one.name for one in (vpc, *reach.world.peers(inner)) if any(address in prefix for prefix in one.prefixes)]
    hint = f"; {owners[0]}/{address} is one of VPC {owners[0]}" if owners else ""
    return f"{address} is no address of the internet{hint}"


def _not_carried(start: End) -> str:
    """Why the topology carries not all that is asked, between ends between which it carries something."""
    return "this is not published" if start.zone.vpc is None else "no packet has these addresses and this protocol"


def _judged(
    reach: Reach, start: End, end: End, zone: Zone, direction: Direction, packets: Space
) -> tuple[Space, Stage]:
    """What one gate says about `packets`, line by line."""
    label = f"{direction.value} of {zone.vpc}/{zone.subnet}"
    gate = reach.gate(str(zone.vpc), str(zone.subnet), direction)
    if gate is None:
        told = tuple(lines(packets, start.zone, end.zone, reach))
        return packets, Stage(label, (Verdict(Action.ALLOW, "no policy", told),))
    restricted = space.combine(lambda decision, here: decision if here else None, gate.deciding, packets.partition)
    verdicts = []
    for decision in sorted(space.values(restricted) - {None}, key=lambda one: (one == DEFAULT, one)):
        part = Space(space.transform(functools.partial(operator.eq, decision), restricted))
        told = tuple(lines(part, start.zone, end.zone, reach))
        rule = gate.rule(decision)
        origin = rule.origin if rule else _default(gate)
        verdicts.append(Verdict(gate.action(decision), origin, told, rule))
    return packets & reach.passed(gate), Stage(label, tuple(verdicts))


def _default(gate: Gate) -> str:
    silent = gate.policy.rules(gate.direction) is None
    reason = f"says nothing of {gate.direction.value}" if silent else "no rule matches"
    return f"{gate.policy.file}#{gate.policy.pointer} ({reason}; default)"


def _hops(world: World, start: End, end: End) -> Iterator[str]:
    """The interfaces that a packet passes."""
    yield _told(start)
    inner = start.zone.vpc or end.zone.vpc
    router = names.router_namespace(str(inner))
    if start.zone.vpc is None:
        yield f"{names.host_uplink(str(inner))} on the host, destination NAT"
        yield f"{names.UPLINK} in {router}, destination NAT"
    else:
        yield f"{names.bridge(str(start.zone.subnet))} in {router}: egress gate of {start.zone.vpc}/{start.zone.subnet}"
    if end.zone.vpc is None:
        yield f"{names.UPLINK} in {router}, source NAT"
        yield f"{names.host_uplink(str(inner))} on the host, masquerade"
    elif start.zone.vpc is not None and start.zone.vpc != end.zone.vpc:
        yield f"{names.peer_link(end.zone.vpc)} in {router}"
        router = names.router_namespace(end.zone.vpc)
        yield f"{names.peer_link(start.zone.vpc)} in {router}"
    if end.zone.vpc is not None:
        yield f"{names.bridge(str(end.zone.subnet))} in {router}: ingress gate of {end.zone.vpc}/{end.zone.subnet}"
    yield _told(end)


def _told(end: End) -> str:
    """What was asked, with the address that it has."""
    return end.text if end.single is None or str(end.single) in end.text else f"{end.text} {end.single}"


# A probe for each class of packets would be too many to read.
MOST_WITNESSES = 8
LIKELY_PROTOCOLS = (TCP, UDP, ICMP)


def witnesses(reach: Reach, answer: Answer, outside: Address) -> list[tuple[Flow, bool]]:
    """Single flows out of a question, each with whether it should pass: real ones to try the answer with.

    Where an end is a subnet its instances stand for it, and `outside` for the internet where that is meant as a whole.
    """
    sides = [_stand_ins(reach, end, outside) for end in (answer.source, answer.destination)]
    real = Space.of(*sides, None, None)
    if answer.source.zone.vpc is None:
        # From outside only a published port can be called at all.
        real &= reach.carried(answer.source.zone, answer.destination.zone)
    found = []
    for packets, passes in ((answer.passing & real, True), ((answer.asked - answer.passing) & real, False)):
        for (source, _), (destination, _), protocols, ports in packets.boxes():
            low, high = protocols
            protocol = next((one for one in LIKELY_PROTOCOLS if low <= one <= high), low or high)
            # Nobody calls itself through the router, and nobody listens at port 0.
            if source == destination or not protocol or (protocol in PORT_PROTOCOLS and not ports[1]):
                continue
            port = max(ports[0], 1) if protocol in PORT_PROTOCOLS else ports[0] if protocol in ICMP_PROTOCOLS else None
            places = (
                Place(answer.source.zone.vpc, space.address(source)),
                Place(answer.destination.zone.vpc, space.address(destination)),
            )
            found.append((Flow(*places, protocol, port), passes))
    return found[:MOST_WITNESSES]


def _stand_ins(reach: Reach, end: End, outside: Address) -> list[Interval]:
    if end.single is not None:
        return list(end.addresses)
    if end.zone.vpc is None:
        return [(space.number(outside), space.number(outside))]
    subnet = reach.world.vpc(end.zone.vpc).subnet(str(end.zone.subnet))
    return [(space.number(address),) * 2 for instance in subnet.instances for address in instance.addresses]


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """An answer for machines."""
    return {
        "from": answer.source.text,
        "to": answer.destination.text,
        "service": answer.service,
        "verdict": answer.verdict,
        "deciding": answer.deciding.origin,
        "hops": list(answer.hops),
        "stages": [
            {
                "gate": stage.gate,
                "verdicts": [
                    {
                        "action": verdict.action.value,
                        "origin": verdict.origin,
                        "description": verdict.rule.description if verdict.rule else "",
                        "traffic": list(map(line_to_json, verdict.lines)),
                    }
                    for verdict in stage.verdicts
                ],
            }
            for stage in answer.stages
        ],
        "allowed": list(map(line_to_json, answer.allowed)),
    }


def line_to_json(line: Line) -> dict[str, list[str]]:
    """A line of traffic for machines."""
    return {"from": list(line.sources), "to": list(line.destinations), "services": list(line.services)}


def matrix(reach: Reach, vpc: str) -> dict[tuple[str, str], list[Line]]:
    """Who reaches whom on what, for every pair of zones that touch `vpc`."""
    found: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for source, destination in reach.pairs(vpc):
        passing = reach.allowed(source, destination)
        found[source.name(vpc), destination.name(vpc)] = list(lines(passing, source, destination, reach, vpc))
    return found
