"""May this flow pass, which line of which file decides, and by which hops?

A question is a set of packets: an instance or an address on either side is a point, a subnet or the internet many.
The answer walks the same stages as a packet (topology, egress gate, ingress gate) with the whole set, and says for
which part each line decides.
"""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import field
from typing import Any

from vpcctl import names
from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import Interval, Space
from vpcctl.analysis.query import End, parse_service, resolve_end
from vpcctl.analysis.reachability import DEFAULT, FLOWS, HOST, SERVICES, Reach, Zone, called
from vpcctl.analysis.rendering import Line, lines
from vpcctl.documents.reading import quote
from vpcctl.errors import DocumentError, TooFineError
from vpcctl.model.network import Publication, Vpc, uplink_addresses, uplink_pair
from vpcctl.model.policy import Action, Address, Direction, Origin, Rule
from vpcctl.values import dataclass

# In the place of services that cannot be listed.
TOO_MUCH = "too many different cases to list"
ALLOW, DENY, PARTLY = "allow", "deny", "partly"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one line says about a part of the question; `rule` is None for defaults, paths and missing policies.

    `decider` is the line, or the reason where no line of a file decides.
    """

    action: Action
    decider: Origin | str
    lines: tuple[Line, ...]
    rule: Rule | None = None

    @property
    def origin(self) -> str:
        """What decides, in words."""
        return str(self.decider)


@dataclass(frozen=True, slots=True)
class ExplainedStage:
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
    stages: tuple[ExplainedStage, ...]
    hops: tuple[str, ...]
    allowed: tuple[Line, ...]
    asked: Space = field(repr=False, compare=False, default=packetset.NOTHING)
    passing: Space = field(repr=False, compare=False, default=packetset.NOTHING)

    @property
    def deciding(self) -> Verdict:
        """The first verdict that denies, else the last that allows."""
        found = [verdict for stage in self.stages for verdict in stage.verdicts]
        return next((verdict for verdict in found if verdict.action is not Action.ALLOW), found[-1])


def ask(reach: Reach, source: str, destination: str, service: str) -> Answer:
    """Answer a question in the words of the command line; DocumentError or ConflictError if it makes no sense.

    TooFineError, a DocumentError, where the answer would have too many cases; a flow of one packet never has.
    """
    with packetset.bounded(reach.most):
        return _answer(reach, source, destination, service)


def _answer(reach: Reach, source: str, destination: str, service: str) -> Answer:
    home = next((text.partition("/")[0] for text in (source, destination) if "/" in text), None)
    if home is None:
        raise DocumentError(f"{source} → {destination}: one side must be in a VPC: VPC/NAME or VPC/ADDRESS")
    start = resolve_end(reach, source, home, packetset.SOURCE)
    end = resolve_end(reach, destination, home, packetset.DESTINATION)
    asked = SERVICES & Space.of(start.addresses, end.addresses, *parse_service(service))
    if not asked:
        raise DocumentError(f"{quote(service)}: no flow begins with that")
    # Where both IP versions are on, an address of one and an address of the other are no question.
    wanted = asked & FLOWS or asked
    if parse_service(service)[0] is None:
        # "any" means every service that can be carried; a named service is taken literally.
        wanted = wanted & reach.translated(start.zone, end.zone) or wanted
    passing, stages = _walk(reach, start, end, wanted)
    verdict = ALLOW if passing == wanted else PARTLY if passing else DENY
    allowed = tuple(lines(passing, start.zone, end.zone, reach))
    hops = tuple(_hops(reach, start, end, wanted))
    return Answer(start, end, service, verdict, tuple(stages), hops, allowed, wanted, passing)


def _walk(reach: Reach, start: End, end: End, wanted: Space) -> tuple[Space, list[ExplainedStage]]:
    """The part of `wanted` that passes, and what every stage says."""
    can, reason = _path(reach, start, end)
    carries = can is Action.ALLOW
    passing = reach.carried(start.zone, end.zone) & wanted if carries else packetset.NOTHING
    verdicts = []
    for action, part in ((Action.ALLOW, passing), (Action.DENY, wanted - passing)):
        if part:
            told = tuple(lines(part, start.zone, end.zone, reach))
            why = reason if (action is Action.ALLOW) == carries else _not_carried(reach, start, end, part)
            verdicts.append(Verdict(action, why, told))
    stages = [ExplainedStage("topology", tuple(verdicts))]
    for side, direction in ((start, Direction.EGRESS), (end, Direction.INGRESS)):
        if side.zone.vpc is not None and passing:
            passing, stage = _judged(reach, start, end, side.zone, direction, passing)
            stages.append(stage)
    if end.zone.is_host and passing:
        passing, more = _served(reach, passing)
        stages += more
    return passing, stages


def also_denied(reach: Reach, answer: Answer) -> tuple[ExplainedStage, ...]:
    """The gates and lines that deny, too, what is denied before it comes to them; TooFineError as in `ask`.

    Who opens what the answer names as deciding would meet them next.  No gate is asked about what VPCs that are not
    peered, or addresses that nobody has, would send each other.
    """
    start, end = answer.source, answer.destination
    inner = str(start.zone.vpc or end.zone.vpc)
    sides = ((start, packetset.SOURCE), (end, packetset.DESTINATION))
    if not reach.may_meet(start.zone, end.zone) or any(
        _misplaced(reach, side, side.zone.vpc or inner, place) for side, place in sides
    ):
        return ()
    found = []
    with packetset.bounded(reach.most):
        came = reach.carried(start.zone, end.zone) & answer.asked
        for side, direction in ((start, Direction.EGRESS), (end, Direction.INGRESS)):
            if side.zone.vpc is None:
                continue
            lost = answer.asked - came
            if lost:
                _, stage = _judged(reach, start, end, side.zone, direction, lost)
                denying = tuple(one for one in stage.verdicts if one.action is not Action.ALLOW)
                if denying:
                    found.append(ExplainedStage(stage.gate, denying))
            _, came = reach.judged(str(side.zone.vpc), str(side.zone.subnet), direction, came)
    return tuple(found)


def _served(reach: Reach, calls: Space) -> tuple[Space, list[ExplainedStage]]:
    """Which calls at the host the serving instances let in, and what their gates say."""
    passing, stages = packetset.NOTHING, []
    for vpc, item, spans in reach.serving(calls):
        zone = reach.zones[vpc.name, vpc.subnet_of(item.instance).name]
        address = packetset.number(vpc.instance(item.instance).addresses[0])
        server = End(f"{vpc.name}/{item.instance}", zone, ((address, address),))
        shift = item.port - item.target_port
        seen = reach.inner_call(vpc, item) & Space.of(
            None, None, None, [(low - shift, high - shift) for low, high in spans]
        )
        found, stage = _judged(reach, _sender(reach, vpc), server, zone, Direction.INGRESS, seen)
        stages.append(stage)
        ports = [(low + shift, high + shift) for low, high in (box[packetset.PORT] for box in found.boxes())]
        passing |= calls & Space.of(None, None, [(item.protocol, item.protocol)], ports) & called(item)
    return passing, stages


def _sender(reach: Reach, vpc: Vpc) -> End:
    """The source of calls through the host, as the serving VPC sees it: the host's end of its uplink."""
    address = packetset.number(uplink_pair(reach.world.transit, vpc.index)[0])
    return End(HOST, reach.zones[None, HOST], ((address, address),))


def _path(reach: Reach, start: End, end: End) -> tuple[Action, str]:
    """Does the topology carry anything from one end to the other, and why (not)?"""
    inner = str(start.zone.vpc or end.zone.vpc)
    sides = ((start, packetset.SOURCE), (end, packetset.DESTINATION))
    for side, place in sorted(sides, key=lambda one: one[0].zone.vpc is None):
        reason = _misplaced(reach, side, side.zone.vpc or inner, place)
        if reason:
            return Action.DENY, reason
    return reach.path(start.zone, end.zone)


def _misplaced(reach: Reach, side: End, inner: str, place: int) -> str:
    """Why a single address, seen from the VPC `inner`, is not where it is said to be; empty where it is.

    `place` says whether it is the SOURCE or the DESTINATION.
    """
    address, vpc = side.single, reach.world.vpc(inner)
    if address is None:
        return ""
    if side.zone.vpc is not None:
        known = any(address in instance.addresses for instance in vpc.instances)
        return "" if known else f"{address} is not an instance of VPC {inner}"
    if side.zone.is_host and _within(side, reach.addresses(side.zone, inner, place)):
        return ""
    if _within(side, reach.kept(inner, place)):
        return _kept(reach, address, place)
    if _is_uplinks(reach, address):
        return f"{address} is not an internet address; it is an address of a VPC's uplink"
    if _within(side, reach.addresses(side.zone, inner, place)):
        return ""
    owners = [one.name for one in (vpc, *reach.world.peers(inner)) if any(address in prefix for prefix in one.prefixes)]
    hint = f"; {owners[0]}/{address} is one of VPC {owners[0]}" if owners else ""
    return f"{address} is not an internet address{hint}"


def _is_uplinks(reach: Reach, address: Address) -> bool:
    return any(address in end for end in uplink_addresses(reach.world))


def _nowhere(reach: Reach, end: End, inner: str) -> bool:
    """Is a single destination outside neither the internet's nor the host's?"""
    if end.single is not None and end.single in uplink_pair(reach.world.transit, reach.world.vpc(inner).index):
        return True
    places = (reach.addresses(end.zone, inner), reach.kept(inner, packetset.DESTINATION))
    return not any(_within(end, place) for place in places)


def _within(side: End, intervals: tuple[Interval, ...]) -> bool:
    number = side.addresses[0][0]
    return any(low <= number <= high for low, high in intervals)


def _kept(reach: Reach, address: Address, place: int) -> str:
    """Why an address that the host keeps is neither a destination nor a source outside."""
    if not reach.host.has(address):
        kind = f"{address} is a broadcast address of the host's networks"
        return (
            f"{kind}; the host forwards nothing to it"
            if place == packetset.DESTINATION
            else f"{kind}; no sender has it"
        )
    if place == packetset.DESTINATION:
        return f"{address} is an address of the host; instances reach only its published ports"
    return f"{address} is an address of the host; no sender outside has it"


def _not_carried(reach: Reach, start: End, end: End, part: Space) -> str:
    """Why the topology does not carry `part`, between ends between which it carries something."""
    if end.zone.is_host:
        return f"{end.single or 'this'} is an address of the host; instances reach only its published ports"
    if start.zone.vpc is not None:
        if not part & reach.translated(start.zone, end.zone):
            # Only a protocol that was asked for by its number comes here.
            protocol = next(part.boxes())[packetset.PROTOCOL][0]
            return f"protocol {protocol} is not translated for VPC {start.zone.vpc}"
        return "no packet has these addresses and this protocol"
    vpc = reach.world.vpc(str(end.zone.vpc))
    for item in vpc.publications:
        port = Space.of(None, None, [(item.protocol, item.protocol)], [item.ports])
        addresses = map(packetset.number, vpc.instance(item.instance).addresses)
        meant = Space.of(None, [(one, one) for one in addresses], None, None)
        # The port of the host was named, and nothing else: the gates know the instance's alone.
        if not part - port and part & meant:
            return f"the host's port {item.service} leads to {item.target} here; ask for {item.target}"
    return "this is not published"


def _judged(
    reach: Reach, start: End, end: End, zone: Zone, direction: Direction, packets: Space
) -> tuple[Space, ExplainedStage]:
    """What one gate says about `packets`, line by line."""
    label = f"{direction.value} of {zone.vpc}/{zone.subnet}"
    gate, passing = reach.judged(str(zone.vpc), str(zone.subnet), direction, packets)
    if gate is None:
        told = tuple(lines(packets, start.zone, end.zone, reach))
        return packets, ExplainedStage(label, (Verdict(Action.ALLOW, "no policy", told),))
    restricted = packetset.combine(lambda decision, here: decision if here else None, gate.deciding, packets.partition)
    verdicts = []
    for decision in sorted(packetset.values(restricted) - {None}, key=lambda one: (one == DEFAULT, one)):
        part = Space(packetset.transform(functools.partial(operator.eq, decision), restricted))
        told = tuple(lines(part, start.zone, end.zone, reach))
        rule = gate.rule(decision)
        line = rule.origin if rule else gate.policy.default_origin(direction)
        verdicts.append(Verdict(gate.action(decision), line, told, rule))
    return passing, ExplainedStage(label, tuple(verdicts))


def _server_of(reach: Reach, calls: Space) -> tuple[Vpc, Publication] | None:
    """The publication that calls at the host lead to; None without one, or with several."""
    found = list(reach.serving(calls))
    return (found[0][0], found[0][1]) if len(found) == 1 else None


def _hops(reach: Reach, start: End, end: End, asked: Space) -> Iterator[str]:
    """The interfaces that a packet passes; where the host keeps it they end there."""
    yield _told(start)
    inner = start.zone.vpc or end.zone.vpc
    router = names.router_namespace(str(inner))
    if start.zone.vpc is None:
        kept = start.single and _within(start, reach.kept(str(inner), packetset.SOURCE))
        if kept and not start.zone.is_host:
            yield "the host's check of sources, which drops it"
            return
        yield f"{names.host_uplink(str(inner))} on the host, destination NAT"
        yield f"{names.UPLINK} in {router}, destination NAT"
    else:
        yield f"{names.bridge(str(start.zone.subnet))} in {router}: egress gate of {start.zone.vpc}/{start.zone.subnet}"
    if end.zone.vpc is None:
        if end.single and _nowhere(reach, end, str(inner)):
            yield f"{router}, which drops it"
            return
        yield f"{names.UPLINK} in {router}, source NAT"
        if end.zone.is_host and (server := _server_of(reach, asked)):
            vpc, item = server
            yield f"{names.host_uplink(str(inner))} on the host, destination NAT, source NAT"
            yield f"{names.host_uplink(vpc.name)} on the host"
            inner, router = vpc.name, names.router_namespace(vpc.name)
            subnet = vpc.subnet_of(item.instance).name
            yield f"{names.UPLINK} in {router}, destination NAT"
            yield f"{names.bridge(subnet)} in {router}: ingress gate of {vpc.name}/{subnet}"
            yield f"{vpc.name}/{item.instance} {vpc.instance(item.instance).addresses[0]}"
            return
        kept = end.single and _within(end, reach.kept(str(inner), packetset.DESTINATION))
        if end.single and (kept or _is_uplinks(reach, end.single)):
            chain = "host-input" if kept and not reach.host.has(end.single) else "from-uplink"
            yield f"{names.host_uplink(str(inner))} on the host: the host's table, {chain}, which drops it"
            return
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


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """An answer for machines."""
    return {
        "from": answer.source.text,
        "to": answer.destination.text,
        "service": answer.service,
        "verdict": answer.verdict,
        "deciding": answer.deciding.origin,
        "hops": list(answer.hops),
        "stages": list(map(stage_to_json, answer.stages)),
        "allowed": list(map(line_to_json, answer.allowed)),
    }


def stage_to_json(stage: ExplainedStage) -> dict[str, Any]:
    """A stage for machines."""
    return {
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


def line_to_json(line: Line) -> dict[str, list[str]]:
    """A line of traffic for machines."""
    return {"from": list(line.sources), "to": list(line.destinations), "services": list(line.services)}


def matrix(reach: Reach, vpc: str) -> dict[tuple[str, str], list[Line]]:
    """Who reaches whom on what, for every pair of zones that touch `vpc`."""
    found: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for source, destination in reach.pairs(vpc):
        names_of = source.name(vpc), destination.name(vpc)
        try:
            with packetset.bounded(reach.most):
                passing = reach.allowed(source, destination)
                found[names_of] = list(lines(passing, source, destination, reach, vpc))
        except TooFineError:
            found[names_of] = [Line((names_of[0],), (names_of[1],), (TOO_MUCH,))]
    return found
