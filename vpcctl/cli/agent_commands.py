"""Commands for the agent, and for the service that runs it."""

from __future__ import annotations

import os
import sys

import click

from vpcctl.cli.output import print_json, show, visible
from vpcctl.cli.session import Session, command


@command()
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Sentences, or a JSON object on each line.",
)
@click.pass_obj
def agent(session: Session, log_format: str) -> None:
    """Follow what changes on this host, and repair what differs from the desired state, until a signal ends it.

    Example: vpcctl agent
    """
    from vpcctl.agent import journal, supervisor
    from vpcctl.agent.loop import Agent
    from vpcctl.engine.controller import Controller

    log = journal.Journal(
        sys.stderr,
        as_json=log_format == "json",
        most=journal.DEBUG if session.verbosity > 0 else journal.INFO if session.verbosity == 0 else journal.WARNING,
        prefixed=journal.is_journal(sys.stderr, os.environ),
        visible=visible,
    )
    Agent(
        lambda make_kernel: Controller(store=session.store, make_kernel=make_kernel),
        session.state_dir,
        log,
        supervisor.Supervisor(os.environ, os.getpid()),
    ).run()


@command(changes=True, confirmable=False)
@click.option("--remove", is_flag=True, help="Remove the service, as uninstall-service does.")
@click.pass_obj
def install_service(session: Session, remove: bool) -> None:
    """Install and start the systemd service that runs the agent, from boot on.

    Example: vpcctl install-service
    """
    _change_service(session, remove)


@command(changes=True, confirmable=False)
@click.pass_obj
def uninstall_service(session: Session) -> None:
    """Stop and remove the systemd service; VPCs stay as they are.

    Example: vpcctl uninstall-service
    """
    _change_service(session, True)


def _change_service(session: Session, remove: bool) -> None:
    """Install or remove the service; as a dry run, only say which files this would change."""
    from vpcctl.kernel import service

    changes = service.remove_changes() if remove else service.install_changes(session.state_dir)
    steps: list[str] = []
    if not session.dry_run:
        steps = service.remove() if remove else service.install(session.state_dir)
    if session.wants_json:
        from vpcctl.cli.change_reports import other_document

        told = [{"sign": sign, "what": str(target), "detail": ""} for sign, target in changes]
        return print_json({**other_document(told, (), session.dry_run), "steps": steps})
    if session.dry_run:
        show(*(f"{sign} {target}" for sign, target in changes) if changes else ["nothing to change"])
        steps = ["nothing was changed"]
    for words in steps:
        session.say(words)
    return None
