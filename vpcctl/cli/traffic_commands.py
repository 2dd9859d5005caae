"""Commands that say what traffic passes, without sending any."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from vpcctl.cli.output import print_json, show
from vpcctl.cli.session import ANY_VPC, ONE_VPC, Session, command, json_option
from vpcctl.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vpcctl.analysis.explain import Answer, ExplainedStage
    from vpcctl.engine.traffic import CheckedAssertion, Probed, StandIn
    from vpcctl.kernel.probe import Result

environment_option = click.option(
    "--environment", metavar="ENV.json", help="Judge this environment instead of the present one; needs no root."
)


def _caution(session: Session, unplaced: str | None) -> None:
    """Warn that the host is unknown if an allowed address may be one of the host's."""
    if unplaced is not None:
        session.say(
            f"with --environment the host's addresses are unknown; if {unplaced} is one of them, the flow is denied"
        )


@command()
@click.argument("source", metavar="FROM")
@click.argument("destination", metavar="TO")
@click.argument("service")
@environment_option
@click.option("--probe", is_flag=True, help="Also send real packets, and report whether the kernel agrees.")
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
    """Show whether a flow is allowed, which rule decides, and its path.  Exit status 0: allowed, 1: denied.

    \b
    FROM and TO are VPC/NAME (an instance, else a subnet), VPC/ADDRESS, internet or
    a public address; SERVICE is tcp/443, udp/53, icmp/echo-request, tcp, 47 or any.

    Example: vpcctl explain shop/web shop/db tcp/5432
    """
    from vpcctl.analysis import explain as explaining

    if probe and environment is not None:
        raise click.UsageError("--probe asks the kernel, which knows the present world and not an --environment")
    controller = session.controller
    explanation = controller.explain(source, destination, service, environment=environment)
    session.warn_all(explanation.warnings)
    _caution(session, explanation.unplaced)
    answer = explanation.answer
    if not as_json:
        print_answer(answer)
        _print_stages(explanation.also_denied, "and then ")
    probes = [_probe_document(one) for one in controller.probe(explanation, _stand_in())] if probe else []
    if as_json:
        more = list(map(explaining.stage_to_json, explanation.also_denied))
        document = {**explaining.answer_to_json(answer), "also_denied": more}
        print_json({**document, "probes": probes} if probe else document)
    else:
        for one in probes:
            agrees = "agrees" if one["agrees"] else "DISAGREES"
            flow = f"{one['from']} → {one['to']} {one['service']}"
            show(f"  probe {flow}: {WORDS[one['expected']]}, the kernel {agrees} ({one['seen']})")
    if not all(one["agrees"] for one in probes):
        raise KernelError("the kernel does not do what the policies say; `vpcctl status` shows what differs")
    sys.exit(0 if answer.verdict == explaining.ALLOW else 1)


def _stand_in() -> StandIn:
    from vpcctl.lab.surroundings import stand_in

    return stand_in()


def _probe_document(probed: Probed) -> dict[str, Any]:
    """A packet that was sent, for machines."""
    from vpcctl.analysis import explain as explaining
    from vpcctl.analysis.rendering import service_in_words

    return {
        "from": str(probed.flow.source.address),
        "to": str(probed.flow.destination.address),
        "service": service_in_words(probed.flow.protocol, probed.flow.port),
        "expected": explaining.ALLOW if probed.expected else explaining.DENY,
        "seen": _seen(probed.result),
        "agrees": probed.agrees,
    }


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
    _print_stages(answer.stages)
    if answer.verdict == "partly":
        show("  what passes:")
        for line in answer.allowed:
            show(f"      {line}")


def _print_stages(stages: Iterable[ExplainedStage], begin: str = "") -> None:
    for stage in stages:
        for number, verdict in enumerate(stage.verdicts):
            said = f" «{verdict.rule.description}»" if verdict.rule and verdict.rule.description else ""
            gate = f"{begin}{stage.gate}" if not number else ""
            show(f"  {gate:<28} {verdict.action.value:<6} {verdict.origin}{said}")
            if len(stage.verdicts) > 1:
                for line in verdict.lines:
                    show(f"      {line}")


@command(about=ONE_VPC)
@click.option("--vpc", help="The VPC.")
@click.option("--count", type=click.IntRange(1), help="Stop after this many packets.")
@json_option
@click.pass_obj
def log(session: Session, vpc: str, count: int | None, as_json: bool) -> None:
    """Print the reports of rules with `"log": true`: the first packet of each flow, its verdict and its rule.

    Example: vpcctl log --vpc shop
    """
    from dataclasses import asdict
    from itertools import islice

    from vpcctl.analysis.rendering import service_in_words

    followed = session.controller.log(vpc, lambda: session.say("log entries lost: packets arrived too fast"))
    session.say(f"listening to VPC {vpc}; Ctrl-C ends it")
    if not followed.reports:
        session.say(f'no rule of VPC {vpc} has "log": true: nothing is reported until one is applied')
    for entry in islice(followed, count):
        if as_json:
            print_json(asdict(entry), indent=None)
        else:
            service = service_in_words(entry.protocol, entry.port)
            show(f"{entry.prefix}: {entry.source} → {entry.destination} {service}", flush=True)


@command(about=ANY_VPC)
@click.option("--vpc", help="The VPC.")
@environment_option
@json_option
@click.pass_obj
def matrix(session: Session, vpc: str | None, environment: str | None, as_json: bool) -> None:
    """Show the allowed traffic between all subnets, peers and the internet.

    Example: vpcctl matrix --vpc shop
    """
    from vpcctl.analysis.explain import line_to_json

    found = session.controller.matrix(vpc, environment=environment)
    session.warn_all(found.warnings)
    if as_json:
        return print_json(
            [
                {"from": pair.source, "to": pair.destination, "traffic": list(map(line_to_json, pair.lines))}
                for pair in found.pairs
            ]
        )
    rows = []
    for pair in found.pairs:
        if not pair.lines:
            rows.append((pair.source, pair.destination, "-"))
        for line in pair.lines:
            rows.append((", ".join(line.sources), ", ".join(line.destinations), ", ".join(line.services)))
    return session.print_table(("FROM", "TO", "SERVICES"), rows, f"VPC {found.vpc} has no subnet")


@command()
@click.argument("tests", metavar="[TESTS.json]", required=False)
@environment_option
@click.option(
    "--junit", type=click.File("w", lazy=True, atomic=True), help="Also write the results to this JUnit XML file."
)
@json_option
@click.pass_obj
def verify(session: Session, tests: str | None, environment: str | None, junit: TextIO | None, as_json: bool) -> None:
    """Check assertions about traffic, for example in CI; exit status 1 if one fails.

    \b
    TESTS.json is an array of {"from": "shop/web", "to": "shop/db",
    "service": "tcp/5432", "expect": "allow"}.  Without it, the invariants are
    checked: those of this machine, or of the environment.

    Example: vpcctl verify --environment shop.json tests.json
    """
    found = session.controller.verify(tests, environment=environment)
    session.warn_all(found.warnings)
    _caution(session, found.unplaced)
    passed = len(found.checks) - found.failed
    if junit is not None:
        from vpcctl.cli.junit import document

        junit.write(document(found.checks, [_judged(check.answer) for check in found.checks]))
    if as_json:
        results = [_check_document(check) for check in found.checks]
        print_json({"passed": passed, "failed": found.failed, "results": results})
    else:
        for check in found.checks:
            mark = "pass" if check.passed else "FAIL"
            flow = f"{check.source} → {check.destination} {check.service}"
            show(f"{mark}  {flow}: expected {check.expect}; {_judged(check.answer)}")
        session.say(f"{passed} passed, {found.failed} failed")
    sys.exit(1 if found.failed else 0)


def _check_document(check: CheckedAssertion) -> dict[str, Any]:
    """What came of an assertion, for machines."""
    return {
        "from": check.source,
        "to": check.destination,
        "service": check.service,
        "expect": check.expect,
        "verdict": check.answer.verdict,
        "deciding": check.answer.deciding.origin,
        "passed": check.passed,
    }


def _judged(answer: Answer) -> str:
    """The verdict as the end of a sentence: `denied by web.json#/ingress/2`."""
    from vpcctl.model.policy import Origin

    decider = answer.deciding.decider
    decided = f" by {decider}" if isinstance(decider, Origin) else f": {decider}"
    if answer.verdict != "partly":
        return WORDS[answer.verdict] + decided
    return f"{WORDS[answer.verdict]}: {'; '.join(map(str, answer.allowed))}; the rest is denied{decided}"
