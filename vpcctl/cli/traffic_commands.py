"""Commands that say what traffic passes, without sending any."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import print_json, print_table, show
from vpcctl.cli.session import Session, json_option, read_document
from vpcctl.errors import ConflictError, DocumentError, KernelError, VpcctlError

if TYPE_CHECKING:
    from vpcctl.analysis.explain import Answer
    from vpcctl.analysis.reachability import Reach
    from vpcctl.kernel.probe import Result
    from vpcctl.model.network import Vpc

environment_option = click.option(
    "--environment", metavar="ENV.json", help="Judge this environment instead of the present one; needs no root."
)


def _reach(session: Session, environment: str | None) -> Reach:
    """What is asked about: the present world on this host, or the world of a document on no host in particular."""
    from vpcctl.analysis.reachability import Reach
    from vpcctl.cli.policy_commands import load_environment

    if environment is None:
        return Reach(session.load().world, session.host())
    return Reach(load_environment(environment))


def _caution(session: Session, environment: str | None, answers: Iterable[Answer]) -> None:
    """Warn that the host is unknown if an allowed address may be one of the host's."""
    ends = (end for answer in answers if answer.passing for end in (answer.source, answer.destination))
    named = [str(end.single) for end in ends if end.zone.vpc is None and end.single]
    if environment is not None and named:
        session.say(
            f"with --environment the host's addresses are unknown; if {named[0]} is one of them, the flow is denied"
        )


@click.command
@click.argument("source", metavar="FROM")
@click.argument("destination", metavar="TO")
@click.argument("service")
@environment_option
@click.option("--probe", is_flag=True, help="Send real packets too, and say whether the kernel agrees.")
@json_option
@click.pass_obj
def explain(
    session: Session,
    source: str,
    destination: str,
    service: str,
    environment: str | None,
    probe: bool,
    as_json: bool,
) -> None:
    """May this flow pass, which line of which file decides, and by which hops?  Exit 0 allowed, 1 denied.

    \b
    FROM and TO are VPC/NAME (an instance, else a subnet), VPC/ADDRESS, internet or
    a public address; SERVICE is tcp/443, udp/53, icmp/echo-request, tcp, 47 or any.

    Example: vpcctl explain shop/web shop/db tcp/5432
    """
    from vpcctl.analysis import explain as explaining

    if probe and environment is not None:
        raise click.UsageError("--probe asks the kernel, which knows the present world and not an --environment")
    reach = _reach(session, environment)
    answer = explaining.ask(reach, source, destination, service)
    _caution(session, environment, [answer])
    if not as_json:
        print_answer(answer)
    probes = _probed(reach, answer) if probe else []
    if as_json:
        document = explaining.answer_to_json(answer)
        print_json({**document, "probes": probes} if probe else document)
    else:
        for one in probes:
            agrees = "agrees" if one["agrees"] else "DISAGREES"
            flow = f"{one['from']} → {one['to']} {one['service']}"
            show(f"  probe {flow}: {WORDS[one['expected']]}, the kernel {agrees} ({one['seen']})")
    if not all(one["agrees"] for one in probes):
        raise KernelError("the kernel does not do what the policies say; `vpcctl status` tells what differs")
    sys.exit(0 if answer.verdict == explaining.ALLOW else 1)


def _probed(reach: Reach, answer: Answer) -> list[dict[str, Any]]:
    """Real packets out of the question, and what the kernel did with each."""
    from vpcctl.analysis import explain as explaining
    from vpcctl.analysis.rendering import service_in_words
    from vpcctl.analysis.witnesses import witnesses
    from vpcctl.kernel.probe import Prober, probe_of
    from vpcctl.lab import INTERNET
    from vpcctl.lab.surroundings import outside

    # On a real host that is an address of TEST-NET-3 (RFC 5737), which belongs to nobody.
    chosen = witnesses(reach, answer, INTERNET)
    if not chosen:
        raise ConflictError("there is nothing to probe: no instance stands at one of the ends")
    with Prober() as prober:
        results = prober.probe([probe_of(reach.world, flow, outside(flow), reach.host) for flow, _ in chosen])
    return [
        {
            "from": str(flow.source.address),
            "to": str(flow.destination.address),
            "service": service_in_words(flow.protocol, flow.port),
            "expected": explaining.ALLOW if passes else explaining.DENY,
            "seen": _seen(result),
            "agrees": result.arrived == passes,
        }
        for (flow, passes), result in zip(chosen, results, strict=True)
    ]


def _seen(result: Result) -> str:
    """What became of a probe, in words."""
    from vpcctl.kernel.posts import Way

    if result.arrived:
        place = {
            Way.ENTERS: "arrived",
            Way.LEAVES: f"left the host by {result.link}",
            Way.DELIVERED: "reached the host",
        }
        return f"{place[result.way]} from {result.seen_from}"
    place = {Way.ENTERS: "arrive", Way.LEAVES: "leave the host", Way.DELIVERED: "reach the host"}
    return f"did not {place[result.way]}, answer: {result.answered}"


WORDS = {"allow": "allowed", "deny": "denied", "partly": "allowed in part"}


def print_answer(answer: Answer) -> None:
    """An answer for people."""
    show(f"{answer.source.text} → {answer.destination.text} {answer.service}: {WORDS[answer.verdict]}")
    show(*(f"  {'' if number else 'by':<6} {hop}" for number, hop in enumerate(answer.hops)))
    for stage in answer.stages:
        for number, verdict in enumerate(stage.verdicts):
            said = f" «{verdict.rule.description}»" if verdict.rule and verdict.rule.description else ""
            show(f"  {stage.gate if not number else '':<28} {verdict.action.value:<6} {verdict.origin}{said}")
            if len(stage.verdicts) > 1:
                for line in verdict.lines:
                    show(f"      {line}")
    if answer.verdict == "partly":
        show("  what passes:")
        for line in answer.allowed:
            show(f"      {line}")


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@click.option("--count", type=click.IntRange(1), help="End after so many packets.")
@json_option
@click.pass_obj
def log(session: Session, vpc: str, count: int | None, as_json: bool) -> None:
    """Follow what rules with `"log": true` report: the first packet of each flow, its verdict and its rule.

    Example: vpcctl log --vpc shop
    """
    from dataclasses import asdict
    from itertools import islice

    from vpcctl.analysis.rendering import service_in_words
    from vpcctl.compiler.gates import LOG_GROUP
    from vpcctl.kernel import logs
    from vpcctl.kernel.linux import require_privilege
    from vpcctl.names import router_namespace

    require_privilege()
    found = session.load().world.vpc(vpc)
    namespace = router_namespace(found.name)
    session.say(f"listening to VPC {vpc}; Ctrl-C ends it")
    if not reports(found):
        session.say(f'no rule of VPC {vpc} has "log": true: nothing is reported until one is applied')

    def lost() -> None:
        session.say("some packets are not told: there were more than could be read in time")

    for entry in islice(logs.follow(namespace, LOG_GROUP, lost), count):
        if as_json:
            print_json(asdict(entry), indent=None)
        else:
            service = service_in_words(entry.protocol, entry.port)
            show(f"{entry.prefix}: {entry.source} → {entry.destination} {service}", flush=True)


def reports(vpc: Vpc) -> bool:
    """Has the VPC a rule that is to be reported?"""
    policies = (subnet.policy for subnet in vpc.subnets if subnet.policy is not None)
    return any(rule.log for policy in policies for rules in (policy.ingress, policy.egress) for rule in rules or ())


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@environment_option
@json_option
@click.pass_obj
def matrix(session: Session, vpc: str, environment: str | None, as_json: bool) -> None:
    """Who reaches whom, on what.

    Example: vpcctl matrix --vpc shop
    """
    from vpcctl.analysis import explain as explaining

    reach = _reach(session, environment)
    reach.world.vpc(vpc)
    found = explaining.matrix(reach, vpc)
    if as_json:
        return print_json(
            [
                {"from": source, "to": destination, "traffic": list(map(explaining.line_to_json, told))}
                for (source, destination), told in found.items()
            ]
        )
    rows = []
    for (source, destination), told in found.items():
        if not told:
            rows.append((source, destination, "-"))
        for line in told:
            senders, receivers = ", ".join(line.sources), ", ".join(line.destinations)
            rows.append((senders, receivers, ", ".join(line.services)))
    return print_table(("FROM", "TO", "SERVICES"), rows, f"VPC {vpc} has no subnet")


@click.command
@click.argument("tests", metavar="TESTS.json")
@environment_option
@json_option
@click.pass_obj
def verify(session: Session, tests: str, environment: str | None, as_json: bool) -> None:
    """Check assertions about traffic, as CI would; exit 1 if one fails.

    \b
    TESTS.json is an array of {"from": "shop/web", "to": "shop/db",
    "service": "tcp/5432", "expect": "allow"}.

    Example: vpcctl verify --environment shop.json tests.json
    """
    from vpcctl.documents.reading import structure_problems

    document, file = read_document(tests)
    problems = structure_problems(document, "assertions", file)
    if problems:
        raise DocumentError(*problems)
    if not document:
        raise DocumentError(f'{file}#: no assertions; write one: {{"from": "shop/web", …}}')
    reach = _reach(session, environment)
    checked = [_checked(reach, assertion, f"{file}#/{number}") for number, assertion in enumerate(document)]
    _caution(session, environment, [answer for _, answer in checked])
    results = [result for result, _ in checked]
    failed = sum(not result["passed"] for result in results)
    if as_json:
        print_json({"passed": len(results) - failed, "failed": failed, "results": results})
    else:
        for result, answer in checked:
            mark = "pass" if result["passed"] else "FAIL"
            flow = f"{result['from']} → {result['to']} {result['service']}"
            show(f"{mark}  {flow}: expected {result['expect']}; {_judged(answer)}")
        session.say(f"{len(results) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


def _checked(reach: Reach, assertion: dict[str, str], place: str) -> tuple[dict[str, Any], Answer]:
    """What came of an assertion, for machines, and the answer."""
    from vpcctl.analysis import explain as explaining

    asked = (assertion["from"], assertion["to"], assertion["service"])
    try:
        answer = explaining.ask(reach, *asked)
    except VpcctlError as error:
        raise DocumentError(f"{place}: {error}") from error
    result: dict[str, Any] = {name: assertion[name] for name in ("from", "to", "service", "expect")}
    passed = answer.verdict == assertion["expect"]
    result |= {"verdict": answer.verdict, "deciding": answer.deciding.origin, "passed": passed}
    return result, answer


def _judged(answer: Answer) -> str:
    """The verdict as the end of a sentence: `denied by web.json#/ingress/2`."""
    from vpcctl.model.policy import Origin

    decider = answer.deciding.decider
    decided = f" by {decider}" if isinstance(decider, Origin) else f": {decider}"
    if answer.verdict != "partly":
        return WORDS[answer.verdict] + decided
    return f"{WORDS[answer.verdict]}: {'; '.join(map(str, answer.allowed))}; the rest is denied{decided}"
