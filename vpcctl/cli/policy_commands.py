"""Commands on policies and the rulesets that come of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import counted, print_json, print_text, show
from vpcctl.cli.session import ONE_VPC, About, Session, command, json_option
from vpcctl.errors import AmbiguousError

if TYPE_CHECKING:
    from vpcctl.engine.attachments import PolicyChange, PolicyView
    from vpcctl.model.policy import Rule

# As `model` has it; it is imported when a command runs.
WHOLE_VPC = "*"


@command(about=About(part="subnet", required=False, part_required=False, files="files"), confirmable=True)
@click.option("--vpc", help="The VPC; overrides the document.")
@click.option("--subnet", help="The subnet, or '*' for the VPC itself; overrides the document.")
@click.option("--file", "more", multiple=True, metavar="POLICY.json", help="The same as the argument.")
@click.option(
    "--dry-run", is_flag=True, help="Only report which traffic would become allowed and denied; needs no root."
)
@json_option
@click.argument("files", nargs=-1, metavar="POLICY.json ...")
@click.pass_obj
def apply_policy(
    session: Session,
    vpc: str | None,
    subnet: str | None,
    more: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    files: tuple[str, ...],
) -> None:
    """Compile policies and load them, in one atomic transaction for each VPC.

    When this returns, the policies hold for live connections too.  `-` is standard input.  The rules of a policy for
    '*' come before those of each subnet; its default holds where a subnet has no policy for that direction.

    Example: vpcctl apply-policy --vpc shop web.json db.json
    """
    if not (*files, *more):
        raise click.UsageError("name a policy file, or - for standard input")
    change = session.controller.apply_policies(*files, *more, vpc=vpc, subnet=subnet, dry_run=dry_run)
    if as_json:
        return _print_change(change, dry_run)
    session.warn_all(change.warnings)
    show(*session.forecast_lines(change.forecast))
    if dry_run:
        return session.say("nothing was changed")
    session.say_repaired(change.repaired)
    for one in change.attached:
        how = "applied" if one.changed else "unchanged"
        whose = f"VPC {one.vpc}" if one.subnet == WHOLE_VPC else f"{one.vpc}/{one.subnet}"
        session.say(f"{whose}: {how} ({counted(one.rules, 'rule')})")
    return None


@command(about=About(part="subnet"), confirmable=True)
@click.option("--vpc", help="The VPC.")
@click.option("--subnet", help="The subnet, or '*' for the policy of the VPC itself.")
@click.option(
    "--dry-run", is_flag=True, help="Only report which traffic would become allowed and denied; needs no root."
)
@json_option
@click.pass_obj
def clear_policy(session: Session, vpc: str, subnet: str, dry_run: bool, as_json: bool) -> None:
    """Remove a subnet's policy; it is then open to its VPC and peers, and all its egress is allowed.

    If the VPC has a policy of its own, that still decides.  --subnet '*' removes the policy of the VPC.

    Example: vpcctl clear-policy --vpc shop --subnet web
    """
    change = session.controller.clear_policy(vpc, subnet, dry_run=dry_run)
    if as_json:
        return _print_change(change, dry_run)
    session.warn_all(change.warnings)
    show(*session.forecast_lines(change.forecast))
    whose = f"VPC {vpc}" if subnet == WHOLE_VPC else f"subnet {subnet} of VPC {vpc}"
    none = "no policy of its own" if change.after.vpc(vpc).policy or subnet == WHOLE_VPC else "no policy"
    return session.say("nothing was changed" if dry_run else f"{whose} has {none}")


def _print_change(change: PolicyChange, dry_run: bool) -> None:
    """A change of policies for machines."""
    from vpcctl.analysis.anomalies import idle_to_json
    from vpcctl.cli.change_reports import change_document

    policies = [
        {"vpc": one.vpc, "subnet": one.subnet, "rules": one.rules, "changed": one.changed} for one in change.attached
    ]
    idle = list(map(idle_to_json, change.forecast.idle))
    print_json({**change_document(change, change.forecast, dry_run), "policies": policies, "without_effect": idle})


@command(about=About(part="subnet", part_required=False))
@click.option("--vpc", help="The VPC.")
@click.option("--subnet", help="Only the policy of this subnet, or with '*' that of the VPC itself.")
@click.option(
    "--hits", "counted", is_flag=True, help="Also show how many flows each rule decided since the ruleset was loaded."
)
@json_option
@click.pass_obj
def show_policy(session: Session, vpc: str, subnet: str | None, counted: bool, as_json: bool) -> None:
    """Show the policies in force.

    The policy of the VPC itself comes first; its hits are the sums over all subnets.

    Example: vpcctl show-policy --vpc shop --subnet web --hits
    """
    policies = session.controller.show_policies(vpc, subnet, hits=counted)
    if as_json:
        return print_json([_policy_document(one) for one in policies])
    for one in policies:
        _print_policy(session, one)
    return None


def _policy_document(view: PolicyView) -> dict[str, Any]:
    """A subnet's policy, or with ``*`` the VPC's own, for machines; `hits` by direction, the default's last."""
    from vpcctl.documents.codec import policy_to_json

    policy = view.policy
    document: dict[str, Any] = {
        "subnet": view.subnet,
        "file": policy.file if policy else None,
        "policy": policy_to_json(policy) if policy else None,
    }
    if view.hits is not None:
        document["hits"] = {side.value: counts for side, counts in view.hits.items()}
    return document


def _print_policy(session: Session, view: PolicyView) -> None:
    from vpcctl.model.policy import Direction

    policy = view.policy
    whole = view.subnet == WHOLE_VPC
    whose = "VPC" if whole else f"subnet {view.subnet}"
    if policy is None:
        passing = "; the policy of the VPC decides" if view.after_vpc else "; what the topology carries passes"
        show(f"{whose}: no policy of its own" if whole else f"{whose}: no policy{passing}")
        return
    show(f"{whose}: {policy.file}" + (f" ({policy.description})" if policy.description else ""))
    for direction in Direction:
        rules = policy.rules(direction)
        if view.after_vpc and not policy.speaks(direction):
            show(f"  {direction.value}: the policy of the VPC decides")
            continue
        if rules is None:
            show(f"  {direction.value}: default {policy.default(direction).value}")
            continue
        rows = [[str(number), *_columns(rule)] for number, rule in enumerate(rules)]
        rows.append(["-", policy.default(direction).value, "any", "", "any", "any", "what no rule matches"])
        headings = ["  #", "ACTION", "PROTOCOL", "PORT", "SOURCE", "DESTINATION", "DESCRIPTION"]
        counts = view.hits and view.hits[direction]
        if counts:
            headings.insert(1, "HITS")
            for row, count in zip(rows, counts, strict=True):
                row.insert(1, str(count))
        show(f"  {direction.value}")
        session.print_table(headings, [["  " + row[0], *row[1:]] for row in rows])


def _columns(rule: Rule) -> tuple[str, ...]:
    from vpcctl.documents.codec import rule_to_json

    document = rule_to_json(rule)

    def told(field: str, otherwise: str) -> str:
        value = document.get(field, otherwise)
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    port = told("port", "") or told("icmp_type", "")
    action = document["action"] + (" log" if rule.log else "") + (f" below {rule.limit}" if rule.limit else "")
    return action, told("protocol", "any"), port, told("source", "any"), told("destination", "any"), rule.description


@command("compile", about=About(part="subnet", required=False, part_required=False, files="files"))
@click.option("--vpc", help="The VPC; overrides the document.")
@click.option("--subnet", help="The subnet, or '*' for the VPC itself; overrides the document.")
@click.option("--environment", metavar="ENV.json", help="Compile for this environment instead of the present one.")
@click.argument("files", nargs=-1, metavar="POLICY.json ...")
@click.pass_obj
def compile(
    session: Session, vpc: str | None, subnet: str | None, environment: str | None, files: tuple[str, ...]
) -> None:
    """Print the ruleset of a VPC in the format of `nft -f`, without loading it; needs no root.

    Example: vpcctl compile --environment shop.json --vpc shop
    """
    try:
        compiled = session.controller.compile_ruleset(*files, vpc=vpc, subnet=subnet, environment=environment)
    except AmbiguousError as error:
        raise click.UsageError(str(error)) from error
    session.warn_all(compiled.warnings)
    print_text(compiled.text)


@command(about=ONE_VPC)
@click.option("--vpc", help="The VPC.")
@json_option
@click.pass_obj
def show_ruleset(session: Session, vpc: str, as_json: bool) -> None:
    """Show a VPC's ruleset from the kernel.

    Example: vpcctl show-ruleset --vpc shop
    """
    if as_json:
        return print_json(session.controller.ruleset_objects(vpc))
    return print_text(session.controller.show_ruleset(vpc))
