"""Commands on the machine as a whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import counted, print_json, print_text, show, show_marked
from vpcctl.cli.session import ANY_VPC, Session, command, json_option

if TYPE_CHECKING:
    from vpcctl.engine.execution import Difference
    from vpcctl.engine.reconciler import Outcome

DRIFT = 3


@command(about=ANY_VPC)
@click.option("--vpc", help="Only this VPC.")
@json_option
@click.pass_obj
def status(session: Session, vpc: str | None, as_json: bool) -> None:
    """Compare the kernel with the desired state, object by object; exit status 3 if they differ.

    Example: vpcctl status
    """
    found = session.controller.status(vpc)
    if as_json:
        print_json(
            {
                "in_sync": found.in_sync,
                "unfinished": found.unfinished,
                "differences": [
                    {
                        "kind": type(one.item).__name__,
                        "object": str(one.item),
                        "state": one.condition.state.value,
                        "detail": one.condition.detail,
                    }
                    for one in found.differences
                ],
                "shares": [share.to_json() for share in found.shares],
                "agent": found.agent and {"pid": found.agent.process, "since": found.agent.since},
                "unconfirmed": found.unconfirmed
                and {"number": found.unconfirmed.number, "until": found.unconfirmed.deadline.until},
            }
        )
    else:
        from vpcctl.engine.execution import principal_first

        show(*session.summary(principal_first(found.differences), "`vpcctl status --json` lists all"))
        show(*(share for share in found.shares if share.remarkable or session.verbosity > 0))
        if found.unfinished:
            show("a change is unfinished")
        if found.unconfirmed is not None:
            until = found.unconfirmed.deadline.until
            show(f"{found.unconfirmed.words} is taken back at {until}, unless you run `vpcctl confirm`")
        if found.agent is not None:
            show(f"an agent runs ({found.agent})")
        elif session.verbosity > 0:
            show("no agent runs")
        show("in sync" if found.in_sync else "drifted; `vpcctl repair` fixes it")
    if not found.in_sync:
        sys.exit(DRIFT)


@command(about=ANY_VPC, changes=True, confirmable=False)
@click.option("--vpc", help="Only this VPC.")
@click.option("--adopt", is_flag=True, help="First restore a state file that was lost or damaged.")
@click.pass_obj
def repair(session: Session, vpc: str | None, adopt: bool) -> None:
    """Bring the kernel to the desired state: after a crash, a reboot, or `nft flush ruleset`.

    Example: vpcctl repair
    """
    from vpcctl.engine.execution import principal_first

    if session.dry_run:
        if adopt:
            raise click.UsageError("--adopt replaces the state file; it has no --dry-run")
        found = session.controller.status(vpc).differences
        if session.wants_json:
            return print_json(_repair_document(found, (), True))
        show(*session.summary(principal_first(found)))
        return session.say("nothing was changed")
    controller = session.controller
    repaired = controller.adopt(vpc) if adopt else controller.repair(vpc)
    differences = repaired.differences
    if session.wants_json:
        return print_json(_repair_document(differences, repaired.warnings, False))
    session.say_repaired(differences)
    session.warn_all(repaired.warnings)
    if differences or not repaired.resumed:
        session.say(f"repaired {counted(len(differences), 'object')}" if differences else "nothing to repair")
    return None


def _repair_document(differences: Sequence[Difference], warnings: Sequence[str], dry_run: bool) -> dict[str, Any]:
    """What was repaired, or would be, for machines; the desired state and its traffic stay as they are."""
    from vpcctl.cli.change_reports import other_document

    changes = ((str(one.item), f"was {one.condition.state.value}") for one in differences)
    return other_document([{"sign": "~", "what": what, "detail": was} for what, was in changes], warnings, dry_run)


@command(changes=True, confirmable=False)
@click.option("--group", help="The group; a group that could read until now no longer can.")
@click.option("--revoke", is_flag=True, help="Let nobody but the owner read it.")
@click.pass_obj
def grant_read(session: Session, group: str | None, revoke: bool) -> None:
    """Let the members of a group read the state directory, for commands that only read.

    Example: vpcctl grant-read --group netops
    """
    if (group is None) != revoke:
        raise click.UsageError("pass either --group NAME or --revoke")
    controller = session.rehearsal if session.dry_run else session.controller
    changed = controller.revoke_read() if group is None else controller.grant_read(group)
    readers = "its owner alone may read it" if group is None else f"group {group} may read it"
    if session.wants_json:
        from vpcctl.cli.change_reports import other_document

        changes = [{"sign": "~", "what": str(session.state_dir), "detail": readers}] if changed else []
        return print_json(other_document(changes, (), session.dry_run))
    if session.dry_run:
        show(f"~ {session.state_dir}: {readers}" if changed else "nothing to change")
    return session.say("nothing was changed" if session.dry_run else f"{session.state_dir}: {readers}")


@command(removes=True)
@click.option("--all", "everything", is_flag=True, help="Remove all VPCs; required.")
@click.pass_obj
def destroy(session: Session, everything: bool) -> None:
    """Remove everything that vpcctl made, and nothing else; the host is as before.

    Example: vpcctl destroy --all --yes
    """
    if not everything:
        raise click.UsageError("pass --all to remove every VPC")
    from vpcctl.cli.change_reports import Question, carry_out

    def told(outcome: Outcome) -> list[str]:
        return [f"removed {counted(len(outcome.before.vpcs), 'VPC')}; the host is as before"]

    if not session.dry_run:
        # Without the privilege, fail before anything else.
        session.controller.check_privilege()
    named = ", ".join(session.controller.vpc_names()) or "none"
    question = Question(f"Remove all VPCs ({named})?", always=True, even_nothing=True)
    carry_out(session, lambda controller: controller.destroy(), told, question)


@command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def lab(command: tuple[str, ...]) -> None:
    """Open a shell, or run a command, in a throw-away machine with a simulated internet; needs no root.

    Example: vpcctl lab -- vpcctl create-vpc --name shop --cidr 10.0.0.0/16
    """
    from vpcctl import lab as laboratory

    sys.exit(laboratory.run(list(command)))


@command()
@json_option
@click.pass_obj
def doctor(session: Session, as_json: bool) -> None:
    """Report missing requirements and conflicting settings, and how to fix them; exit status 1 if one is fatal.

    Example: vpcctl doctor
    """
    from vpcctl import doctor

    findings = doctor.examine(session.store)
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            colour = {"fatal": "red", "warning": "yellow"}.get(finding.severity, "green")
            show_marked(finding.severity, colour, f"{finding.subject}: {finding.what}")
            if finding.why:
                show(f"    why: {finding.why}")
            if finding.remedy:
                show(f"    remedy: {finding.remedy}")
            for command in finding.commands:
                show(f"        {command}")
        if not any(finding.severity in ("fatal", "warning") for finding in findings):
            show("nothing is in the way")
    if any(finding.severity == "fatal" for finding in findings):
        sys.exit(1)


@command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes the words of `vpcctl` in a shell.

    \b
    bash: eval "$(vpcctl completion bash)" in ~/.bashrc
    zsh:  eval "$(vpcctl completion zsh)" in ~/.zshrc
    fish: vpcctl completion fish >~/.config/fish/completions/vpcctl.fish

    Example: vpcctl completion bash
    """
    from vpcctl.cli.completions import script

    print_text(script(ctx.find_root().command, shell))


@command()
@click.argument("document", type=click.Choice(["policy", "environment", "assertions"]))
def show_schema(document: str) -> None:
    """Print the JSON Schema of a kind of document, for editors and other programs.

    Example: vpcctl show-schema policy > policy.schema.json
    """
    from vpcctl.documents.reading import whole_schema

    print_json(whole_schema(document))
