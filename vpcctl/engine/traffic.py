"""Questions about traffic: what policies mean, whether the kernel agrees, and what rules with `log` report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import field
from typing import TYPE_CHECKING

from vpcctl.engine.machine import Machine
from vpcctl.errors import AmbiguousError, ConflictError, DocumentError, VpcctlError
from vpcctl.values import dataclass

if TYPE_CHECKING:
    from vpcctl.analysis.explain import Answer, ExplainedStage
    from vpcctl.analysis.graph import Graph
    from vpcctl.analysis.impact import Forecast
    from vpcctl.analysis.invariants import Judged
    from vpcctl.analysis.reachability import Reach
    from vpcctl.analysis.rendering import Line
    from vpcctl.documents.sources import Source
    from vpcctl.engine.reconciler import Outcome
    from vpcctl.engine.state import State
    from vpcctl.kernel.logs import Entry
    from vpcctl.kernel.probe import Outside, Result
    from vpcctl.model.host import Host
    from vpcctl.model.network import Invariant, Publication, Vpc, World
    from vpcctl.model.oracle import Flow
    from vpcctl.model.policy import Address


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer to a question, and what it was asked of.

    An environment document is judged on no host in particular: `unplaced` is an allowed address that may belong
    to the host, which would then deny the flow.  None means that no such address is allowed.
    `also_denied` are the gates that deny, too, what is denied before it comes to them.
    """

    answer: Answer
    reach: Reach = field(repr=False, compare=False)
    warnings: tuple[str, ...] = ()
    unplaced: str | None = None
    also_denied: tuple[ExplainedStage, ...] = ()


@dataclass(frozen=True, slots=True)
class StandIn:
    """The substitute for the internet when packets are sent: its address, and where its packets go and come."""

    address: Address
    outside: Callable[[Flow], Outside]


@dataclass(frozen=True, slots=True)
class Probed:
    """A packet that was sent, whether it should have arrived, and what became of it."""

    flow: Flow
    expected: bool
    result: Result

    @property
    def agrees(self) -> bool:
        """Does the kernel do what the policies say?"""
        return self.result.arrived == self.expected


@dataclass(frozen=True, slots=True)
class PairTraffic:
    """What passes from one end to another."""

    source: str
    destination: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class TrafficMatrix:
    """Who reaches whom in a VPC, and from and to its surroundings."""

    vpc: str
    pairs: tuple[PairTraffic, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckedAssertion:
    """An assertion about traffic, and the answer; `expect` is ``allow`` or ``deny``."""

    source: str
    destination: str
    service: str
    expect: str
    answer: Answer

    @property
    def passed(self) -> bool:
        """Is it so?"""
        return self.answer.verdict == self.expect


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of assertions; `unplaced` as in an Explanation."""

    checks: tuple[CheckedAssertion, ...]
    warnings: tuple[str, ...] = ()
    unplaced: str | None = None

    @property
    def failed(self) -> int:
        """How many did not hold."""
        return sum(not check.passed for check in self.checks)


@dataclass(frozen=True, slots=True)
class ProbedAssertion:
    """An assertion that was tried with real packets, and why it does not hold; empty if it does."""

    source: str
    destination: str
    service: str
    expect: str
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Is it so?"""
        return not self.failure


@dataclass(frozen=True, slots=True)
class FlowLog:
    """What the rules of a VPC report from now on, without end; `reports` is false if none of its rules does."""

    vpc: str
    reports: bool
    entries: Iterator[Entry]

    def __iter__(self) -> Iterator[Entry]:
        return self.entries


def explain(machine: Machine, source: str, destination: str, service: str, environment: Source | None) -> Explanation:
    """May a flow pass, and which line decides?"""
    from vpcctl.analysis.explain import also_denied, ask

    reach, warnings = _reach(machine, environment)
    answer = ask(reach, source, destination, service)
    return Explanation(answer, reach, warnings, _unplaced(environment, [answer]), also_denied(reach, answer))


def probe(explanation: Explanation, stand_in: StandIn) -> tuple[Probed, ...]:
    """Send real packets out of a question about the present world; ConflictError if there are none to send."""
    from vpcctl.analysis.witnesses import witnesses
    from vpcctl.kernel.probe import Prober, probe_of

    reach = explanation.reach
    chosen = witnesses(reach, explanation.answer, stand_in.address)
    if not chosen:
        raise ConflictError(f"nothing to probe: {_nothing_to_probe(explanation.answer)}")
    with Prober() as prober:
        results = prober.probe([probe_of(reach.world, flow, stand_in.outside(flow), reach.host) for flow, _ in chosen])
    return tuple(Probed(flow, passes, result) for (flow, passes), result in zip(chosen, results, strict=True))


def _nothing_to_probe(answer: Answer) -> str:
    """Why no packet can be sent for a question."""
    if answer.source.zone.vpc is None:
        called = f"{answer.destination.text} {answer.service}"
        return f"from outside and by the host only published ports can be called, and {called} is none"
    return "each end in a VPC must be an instance, and the two must differ"


def matrix(machine: Machine, vpc: str | None, environment: Source | None) -> TrafficMatrix:
    """Who reaches whom, on what; without `vpc` in the only one."""
    from vpcctl.analysis import explain as explaining

    reach, warnings = _reach(machine, environment)
    if vpc is None:
        known = [one.name for one in reach.world.vpcs]
        if len(known) != 1:
            raise AmbiguousError("a matrix is of one VPC; name it with --vpc", known)
        vpc = known[0]
    reach.world.vpc(vpc)
    found = explaining.matrix(reach, vpc)
    pairs = tuple(PairTraffic(source, destination, tuple(lines)) for (source, destination), lines in found.items())
    return TrafficMatrix(vpc, pairs, warnings)


def verify(machine: Machine, source: Source | None, environment: Source | None) -> Verification:
    """Judge the assertions of a document, or the invariants where `source` is None.

    DocumentError for those that make no sense, and if there are none.
    """
    reach, warnings = _reach(machine, environment)
    if source is None:
        assertions = reach.world.invariants
        missing = "no invariants; name a document of assertions, or state some with `vpcctl set-invariants`"
        if not assertions:
            raise DocumentError(missing)
    else:
        assertions = read_assertions(source)
    checks = tuple(_checked(reach, one) for one in assertions)
    return Verification(checks, warnings, _unplaced(environment, [check.answer for check in checks]))


def read_assertions(source: Source) -> tuple[Invariant, ...]:
    """The assertions of a document; DocumentError if its structure is wrong, or it has none."""
    from vpcctl.documents.assertions import read_invariants
    from vpcctl.documents.sources import read_source

    document = read_source(source)
    found = read_invariants(document.content, document.name, None)
    if not found:
        raise DocumentError(f'{document.name}#: no assertions; write one: {{"from": "shop/web", …}}')
    return found


def probe_assertions(
    machine: Machine, assertions: Iterable[Invariant], stand_in: StandIn
) -> tuple[ProbedAssertion, ...]:
    """Try assertions about the present world with real packets.

    What cannot be tried does not hold: nobody has seen that it does.
    """
    return tuple(
        ProbedAssertion(one.source, one.destination, one.service, one.expect, _failure(machine, one, stand_in))
        for one in assertions
    )


def _failure(machine: Machine, asserted: Invariant, stand_in: StandIn) -> str:
    """Why an assertion does not hold for real packets; empty if it does."""
    from vpcctl.analysis.rendering import service_in_words

    try:
        probed = probe(explain(machine, asserted.source, asserted.destination, asserted.service, None), stand_in)
    except VpcctlError as error:
        return str(error)
    wanted = asserted.expect == "allow"
    wrong = [one for one in probed if one.result.arrived != wanted]
    if not wrong:
        return ""
    flow = wrong[0].flow
    service = service_in_words(flow.protocol, flow.port)
    found = "did not arrive" if wanted else "arrived"
    return f"{service} from {flow.source.address} to {flow.destination.address} {found}"


def set_invariants(machine: Machine, source: Source, vpc: str | None) -> Outcome:
    """State the invariants of a VPC, or of the machine where `vpc` is None, in place of those before."""
    from vpcctl.documents.assertions import read_invariants
    from vpcctl.documents.sources import read_source

    document = read_source(source)
    return _replaced(machine, read_invariants(document.content, document.name, vpc), vpc)


def clear_invariants(machine: Machine, vpc: str | None) -> Outcome:
    """Remove the invariants of a VPC, or those of the machine where `vpc` is None."""
    return _replaced(machine, (), vpc)


def _replaced(machine: Machine, found: tuple[Invariant, ...], vpc: str | None) -> Outcome:
    from vpcctl.documents.diff import with_invariants

    def stated(state: State) -> World:
        if vpc is not None:
            state.world.vpc(vpc)
        return with_invariants(state.world, {vpc: found})

    return machine.change(stated)


def list_invariants(machine: Machine, vpc: str | None) -> tuple[Judged, ...]:
    """All invariants, or those of a VPC, each with whether it holds now."""
    from vpcctl.analysis.invariants import judge
    from vpcctl.analysis.reachability import Reach

    world = machine.load().world
    if vpc is not None:
        world.vpc(vpc)
    reach = Reach(world, machine.host()[0])
    return tuple(judge(reach, one) for one in world.invariants if vpc in (None, one.vpc))


def forecast(before: World, after: World, host: Host, quick: bool = False) -> Forecast:
    """What the difference between two worlds means for traffic on a host."""
    from vpcctl.analysis import impact
    from vpcctl.analysis.reachability import MOST_PARTS

    most = impact.MOST_HINT_PARTS if quick else MOST_PARTS
    return impact.forecast(before, after, (), host, most=most)


def closed_way_out(machine: Machine, world: World, vpc: str, subnet: str) -> str:
    """The lines of the egress policy that deny everything to the internet; empty if something passes."""
    from vpcctl.model.network import effective

    home = world.vpc(vpc)
    if effective(home, home.subnet(subnet)) is None:
        return ""
    from vpcctl.analysis import closed
    from vpcctl.analysis.reachability import Reach

    return closed.closed_way_out(Reach(world, machine.host()[0]), vpc, subnet)


def closed_ways(machine: Machine, before: World, after: World) -> tuple[str, ...]:
    """Warnings about NAT gateways and published ports that are new in `after` and that its policies close."""
    from vpcctl.model.network import effective

    newly = [vpc for vpc in after.vpcs if before.vpcs_by_name.get(vpc.name) is not vpc]
    warnings: list[str] = []
    for vpc in newly:
        old = before.vpcs_by_name.get(vpc.name)
        had = {subnet.name for subnet in old.subnets if subnet.nat_gateway} if old else set()
        for subnet in vpc.subnets:
            if subnet.nat_gateway and subnet.name not in had:
                closed = closed_way_out(machine, after, vpc.name, subnet.name)
                words = f"{vpc.name}/{subnet.name} has a NAT gateway, but its egress policy denies everything to the"
                warnings += [f"{words} internet ({closed})"] if closed else []
        published = {item.place for item in old.publications} if old else set()
        for item in vpc.publications:
            if item.place not in published and effective(vpc, vpc.subnet_of(item.instance)) is not None:
                closed = _closed_port(machine, after, vpc.name, item)
                words = f"{item.service} of the host is published, but the ingress policy denies everything"
                to = f"{item.target} of {vpc.name}/{item.instance}"
                warnings += [f"{words} from outside to {to} ({closed})"] if closed else []
    return tuple(warnings)


def publication_warnings(machine: Machine, world: World, vpc: str, publication: Publication) -> tuple[str, ...]:
    """Warnings about newly published ports that may not work as intended."""
    from vpcctl.model.network import effective
    from vpcctl.model.policy import Direction

    home = world.vpc(vpc)
    subnet = home.subnet_of(publication.instance)
    policy = effective(home, subnet)
    warnings = []
    if policy is None or not policy.judges(Direction.INGRESS):
        callers = "every program of the host" if publication.local else "everybody outside"
        warnings.append(f"subnet {subnet.name} has no ingress policy, so {callers} may use it")
    elif closed := _closed_port(machine, world, vpc, publication):
        to = f"{publication.target} of {publication.instance}"
        warnings.append(f"the ingress policy of subnet {subnet.name} denies everything from outside to {to} ({closed})")
    address = publication.address
    if address is not None and not address.is_loopback and not machine.host()[0].has(address):
        warnings.append(f"the host has no address {address} now; nobody can call it until the host has")
    return tuple(warnings)


def _closed_port(machine: Machine, world: World, vpc: str, publication: Publication) -> str:
    """The lines of the ingress policy that deny everything from outside to a port; empty if something passes."""
    from vpcctl.analysis import closed
    from vpcctl.analysis.reachability import Reach

    return closed.closed_port(Reach(world, machine.host()[0]), vpc, publication)


def graph(machine: Machine, vpc: str | None, environment: Source | None) -> Graph:
    """The network as a graph: the present one, or that of a document."""
    from vpcctl.analysis.graph import drawn
    from vpcctl.documents.sources import read_environment_source

    world = machine.load().world if environment is None else read_environment_source(environment)
    return drawn(world, vpc)


def log(machine: Machine, vpc: str, lost: Callable[[], None]) -> FlowLog:
    """Follow what rules with `log` report; `lost` is called when packets arrived too fast to be read."""
    from vpcctl.compiler.gates import LOG_GROUP
    from vpcctl.kernel import logs
    from vpcctl.kernel.linux import require_privilege
    from vpcctl.names import router_namespace

    require_privilege()
    found = machine.load().world.vpc(vpc)
    return FlowLog(found.name, reports(found), logs.follow(router_namespace(found.name), LOG_GROUP, lost))


def reports(vpc: Vpc) -> bool:
    """Has the VPC a rule that is to be reported?"""
    lists = (rules for _, policy in vpc.policies for rules in (policy.ingress, policy.egress))
    return any(rule.log for rules in lists for rule in rules or ())


def _reach(machine: Machine, environment: Source | None) -> tuple[Reach, tuple[str, ...]]:
    """What is asked about: the present world on this host, or the world of a document on no host in particular."""
    from vpcctl.analysis.reachability import Reach

    if environment is not None:
        from vpcctl.documents.sources import read_environment_source

        return Reach(read_environment_source(environment)), ()
    world = machine.load().world
    host, warnings = machine.host()
    return Reach(world, host), warnings


def _unplaced(environment: Source | None, answers: Iterable[Answer]) -> str | None:
    """An allowed address outside that may be the host's, where the host is not known."""
    if environment is None:
        return None
    ends = (end for answer in answers if answer.passing for end in (answer.source, answer.destination))
    return next((str(end.single) for end in ends if end.zone.vpc is None and end.single), None)


def _checked(reach: Reach, assertion: Invariant) -> CheckedAssertion:
    from vpcctl.analysis.explain import ask

    asked = (assertion.source, assertion.destination, assertion.service)
    try:
        answer = ask(reach, *asked)
    except VpcctlError as error:
        raise DocumentError(f"{assertion.place}: {error}") from error
    return CheckedAssertion(*asked, assertion.expect, answer)
