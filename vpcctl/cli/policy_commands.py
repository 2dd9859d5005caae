"""Commands on policies and the rulesets that come of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vpcctl.cli.output import counted, print_json, print_table, print_text, show
from vpcctl.cli.session import Session, json_option, read_document, read_named
from vpcctl.errors import DocumentError, VpcctlError

if TYPE_CHECKING:
    from vpcctl.documents.policies import PolicyDocument
    from vpcctl.model.network import Subnet, World
    from vpcctl.model.policy import Rule

_R = TypeVar("_R")


def read_policy_files(files: tuple[str, ...]) -> list[PolicyDocument]:
    """The policies of all files; DocumentError with the problems of all of them."""
    from vpcctl.documents.policies import read_policies

    found: list[PolicyDocument] = []
    problems: list[Any] = []
    for file in files:
        try:
            document, name = read_document(file)
            found += read_policies(document, name)
        except DocumentError as error:
            problems += error.problems
    if problems:
        raise DocumentError(*problems)
    return found


@click.command
@click.option("--vpc", help="The VPC; wins over the document's.")
@click.option("--subnet", help="The subnet; wins over the document's.")
@click.option("--file", "more", multiple=True, metavar="POLICY.json", help="The same as the argument.")
@click.option("--dry-run", is_flag=True, help="Only say what traffic becomes allowed and denied; needs no root.")
@click.argument("files", nargs=-1, metavar="POLICY.json ...")
@click.pass_obj
def apply_policy(
    session: Session,
    vpc: str | None,
    subnet: str | None,
    more: tuple[str, ...],
    dry_run: bool,
    files: tuple[str, ...],
) -> None:
    """Compile policies and load them, one atomic transaction for each VPC concerned.

    When this returns, the policies hold for live connections too.  `-` is standard input.

    Example: vpcctl apply-policy --vpc shop web.json db.json
    """
    from vpcctl.analysis.impact import forecast
    from vpcctl.compiler import bounds
    from vpcctl.documents.binding import Attachment, attach

    if not (*files, *more):
        raise click.UsageError("name a policy file, or - for standard input")
    documents = read_policy_files((*files, *more))
    found: list[Attachment] = []
    warnings: list[str] = []

    def attached(state: Any) -> World:
        # Called again if another command changed the state meanwhile.
        world, found[:], warnings[:] = attach(state.world, documents, vpc, subnet)
        return world

    if dry_run:
        state = session.load()
        before, after = state.world, attached(state)
        bounds.check(before, after)
    else:
        outcome = session.change(attached)
        before, after = outcome.before, outcome.after
    for warning in warnings:
        session.warn(warning)
    show(*forecast(before, after, [(one.vpc, one.subnet) for one in found], session.host()).lines())
    if dry_run:
        session.say("nothing was changed")
    else:
        _applied(session, before, found)


def _applied(session: Session, world: World, attachments: list[Any]) -> None:
    changed = {one.vpc for one in attachments if world.vpc(one.vpc).subnet(one.subnet).policy != one.policy}
    # What is the same may have been flushed, and is to hold when this returns.
    session.repair({one.vpc: None for one in attachments if one.vpc not in changed})
    for attachment in attachments:
        before = world.vpc(attachment.vpc).subnet(attachment.subnet).policy
        how = "unchanged" if before == attachment.policy else "applied"
        rules = sum(len(rules or ()) for rules in (attachment.policy.ingress, attachment.policy.egress))
        session.say(f"{attachment.vpc}/{attachment.subnet}: {how} ({counted(rules, 'rule')})")


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@click.option("--subnet", required=True, help="The subnet.")
@click.option("--dry-run", is_flag=True, help="Only say what traffic becomes allowed and denied; needs no root.")
@click.pass_obj
def clear_policy(session: Session, vpc: str, subnet: str, dry_run: bool) -> None:
    """Detach a subnet's policy: its VPC, its peers and its own way out are open to it again.

    Example: vpcctl clear-policy --vpc shop --subnet web
    """
    from vpcctl.analysis.impact import forecast
    from vpcctl.model import operations

    if dry_run:
        before = session.load().world
        after = operations.clear_policy(before, vpc, subnet)
    else:
        outcome = session.change(lambda state: operations.clear_policy(state.world, vpc, subnet))
        before, after = outcome.before, outcome.after
    show(*forecast(before, after, [], session.host()).lines())
    session.say("nothing was changed" if dry_run else f"subnet {subnet} of VPC {vpc} has no policy")


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@click.option("--subnet", help="Only the policy of this subnet.")
@click.option("--hits", "counted", is_flag=True, help="How many flows each rule decided since the ruleset was loaded.")
@json_option
@click.pass_obj
def show_policy(session: Session, vpc: str, subnet: str | None, counted: bool, as_json: bool) -> None:
    """Show the policies in force.

    Example: vpcctl show-policy --vpc shop --subnet web --hits
    """
    found = session.load().world.vpc(vpc)
    subnets = found.subnets if subnet is None else (found.subnet(subnet),)
    objects = _ruleset_objects(session, vpc) if counted else None
    if as_json:
        return print_json([_policy_document(one, objects) for one in subnets])
    for one in subnets:
        _print_policy(one, objects)
    return None


def _ruleset_objects(session: Session, vpc: str) -> list[dict[str, Any]]:
    from vpcctl.names import router_namespace

    namespace = router_namespace(vpc)
    kernel = session.kernel()
    try:
        return _loaded(kernel.ruleset_objects(namespace), namespace)
    finally:
        kernel.close()


def _loaded(ruleset: _R, namespace: str) -> _R:
    """`ruleset` as the kernel has it; VpcctlError where that is nothing."""
    if not ruleset:
        raise VpcctlError(f"no ruleset is loaded in {namespace}; `vpcctl repair` loads it")
    return ruleset


def _policy_document(subnet: Subnet, objects: list[dict[str, Any]] | None) -> dict[str, Any]:
    """A subnet's policy for machines; `hits` by direction, the default's last."""
    from vpcctl.compiler.hit_counts import hits
    from vpcctl.documents.codec import policy_to_json
    from vpcctl.model.policy import Direction

    policy = subnet.policy
    document: dict[str, Any] = {
        "subnet": subnet.name,
        "file": policy.file if policy else None,
        "policy": policy_to_json(policy) if policy else None,
    }
    if objects is not None:
        counts = {side.value: hits(objects, policy, subnet.name, side) if policy else None for side in Direction}
        document["hits"] = counts
    return document


def _print_policy(subnet: Subnet, objects: list[dict[str, Any]] | None) -> None:
    from vpcctl.compiler.hit_counts import hits
    from vpcctl.model.policy import Direction

    policy = subnet.policy
    if policy is None:
        show(f"subnet {subnet.name}: no policy; what the topology carries passes")
        return
    show(f"subnet {subnet.name}: {policy.file}" + (f" ({policy.description})" if policy.description else ""))
    for direction in Direction:
        rules = policy.rules(direction)
        if rules is None:
            show(f"  {direction.value}: default {policy.default(direction).value}")
            continue
        rows = [[str(number), *_columns(rule)] for number, rule in enumerate(rules)]
        rows.append(["-", policy.default(direction).value, "any", "", "any", "any", "what no rule matches"])
        headings = ["  #", "ACTION", "PROTOCOL", "PORT", "SOURCE", "DESTINATION", "DESCRIPTION"]
        counts = hits(objects, policy, subnet.name, direction) if objects is not None else None
        if counts is not None:
            headings.insert(1, "HITS")
            for row, count in zip(rows, counts, strict=True):
                row.insert(1, str(count))
        show(f"  {direction.value}")
        print_table(headings, [["  " + row[0], *row[1:]] for row in rows])


def _columns(rule: Rule) -> tuple[str, ...]:
    from vpcctl.documents.codec import rule_to_json

    document = rule_to_json(rule)

    def told(field: str, otherwise: str) -> str:
        value = document.get(field, otherwise)
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    port = told("port", "") or told("icmp_type", "")
    action = document["action"] + (" log" if rule.log else "") + (f" below {rule.limit}" if rule.limit else "")
    return action, told("protocol", "any"), port, told("source", "any"), told("destination", "any"), rule.description


@click.command("compile")
@click.option("--vpc", help="The VPC; wins over the document's.")
@click.option("--subnet", help="The subnet; wins over the document's.")
@click.option("--environment", metavar="ENV.json", help="Compile for this environment instead of the present one.")
@click.argument("files", nargs=-1, metavar="POLICY.json ...")
@click.pass_obj
def compile(
    session: Session, vpc: str | None, subnet: str | None, environment: str | None, files: tuple[str, ...]
) -> None:
    """Print the ruleset of a VPC, as `nft -f` takes it, without loading it; needs no root.

    Example: vpcctl compile --environment shop.json --vpc shop
    """
    from vpcctl import names
    from vpcctl.compiler import bounds, compile_vpc
    from vpcctl.documents.binding import attach
    from vpcctl.model.network import World
    from vpcctl.resources.kinds import next_generation

    documents = read_policy_files(files)
    if environment is not None:
        world, owner, loaded = load_environment(environment), "environment", {}
        before = World()
    else:
        state = session.load()
        before, world, owner = state.world, state.world, state.state_id
        loaded = {item.key: item for item in state.items}
    world, attachments, warnings = attach(world, documents, vpc, subnet)
    for warning in warnings:
        session.warn(warning)
    concerned = {vpc} if vpc else {found.vpc for found in attachments} or {one.name for one in world.vpcs}
    if len(concerned) != 1:
        known = ", ".join(sorted(concerned)) or "none"
        raise click.UsageError(f"a ruleset is one VPC's; name it with --vpc (there: {known})")
    name = world.vpc(concerned.pop()).name
    bounds.check(before, world)
    compiled = compile_vpc(world, name, names.tag(owner, name, "ruleset"))
    recorded: Any = loaded.get(("Ruleset", names.router_namespace(name)))
    print_text(compiled.text(next_generation(recorded, compiled.fingerprint)))


def load_environment(file: str) -> World:
    """The world of an environment file; policies are found relative to it."""
    from vpcctl.documents.binding import check_names, check_sizes
    from vpcctl.documents.environment import read_environment

    document, name = read_document(file)
    world = read_environment(document, name, policy_loader(file))
    problems = check_names(world, {vpc.name for vpc in world.vpcs}, name)
    if problems:
        raise DocumentError(*problems)
    check_sizes(world, {vpc.name: name for vpc in world.vpcs})
    return world


def policy_loader(environment: str) -> Callable[[str], tuple[Any, str]]:
    """What reads the policies that an environment file names by paths relative to itself."""
    folder = Path(environment).parent

    def load(policy: str) -> tuple[Any, str]:
        return read_named(str(folder / policy))

    return load


@click.command
@click.option("--vpc", required=True, help="The VPC.")
@json_option
@click.pass_obj
def show_ruleset(session: Session, vpc: str, as_json: bool) -> None:
    """Show a VPC's ruleset as the kernel has it now.

    Example: vpcctl show-ruleset --vpc shop
    """
    from vpcctl import names
    from vpcctl.resources.topology import VPC_FAMILIES

    world = session.load().world
    namespace = names.router_namespace(world.vpc(vpc).name)
    kernel = session.kernel()
    try:
        if as_json:
            return print_json(_loaded(kernel.ruleset_objects(namespace), namespace))
        text = _loaded(kernel.ruleset_listing(namespace, VPC_FAMILIES), namespace)
    finally:
        kernel.close()
    print_text(text)
    return None
