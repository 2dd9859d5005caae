"""Commands that show live connections."""

from __future__ import annotations

import heapq
import itertools
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from vpcctl.cli.output import print_json, print_json_list, print_table, show, visible
from vpcctl.cli.session import LISTED, About, Session, command, json_option

if TYPE_CHECKING:
    from vpcctl.analysis.live_flows import LiveFlow
    from vpcctl.engine.flows import FlowEvent

NONE = "no live connection"
HEADINGS = ("VPC", "FROM", "TO", "SERVICE", "STATE", "PACKETS", "BYTES", "RULE")
# A long list is printed as it is read; the columns are as wide as the first flows need.
MEASURED = 1000


@command(about=About(part="instance", required=False, part_required=False))
@click.option("--vpc", help="Only the connections of this VPC.")
@click.option("--instance", help="Only those of this instance of it.")
@click.option("--follow", is_flag=True, help="Print each connection when it begins and when it ends; Ctrl-C ends it.")
@json_option
@click.pass_obj
def flows(session: Session, vpc: str | None, instance: str | None, follow: bool, as_json: bool) -> None:
    """Show live connections, and the rule that admits each.

    Of many, a terminal shows those with most bytes; -v shows all.

    Example: vpcctl flows shop/web
    """
    if instance is not None and vpc is None:
        known = session.controller.vpc_names()
        vpc = known[0] if len(known) == 1 else None
    if instance is not None and vpc is None:
        raise click.UsageError(f"the VPC of instance {instance} is missing; write `vpcctl flows VPC/{instance}`")
    if follow:
        return _follow(session, vpc, instance, as_json)
    found = session.controller.flows(vpc, instance)
    session.warn_all(found.warnings)
    uncounted: set[str] = set()
    entries = _noting(found, uncounted)
    if as_json:
        print_json_list(map(_document, entries))
    elif session.verbosity > 0 or not sys.stdout.isatty():
        _print_all(entries, len(found.vpcs) > 1)
    else:
        _print_largest(entries, len(found.vpcs) > 1)
    if uncounted:
        session.say(_advice(uncounted))
    return None


def _noting(entries: Iterable[LiveFlow], uncounted: set[str]) -> Iterator[LiveFlow]:
    """The entries; meanwhile the VPCs with entries that the kernel does not count are added to `uncounted`."""
    for flow in entries:
        if flow.packets is None:
            uncounted.add(flow.vpc)
        yield flow


def _advice(uncounted: set[str]) -> str:
    return (
        f"some connections of VPC {', '.join(sorted(uncounted))} are not counted: they began before"
        " the router counted; `vpcctl repair` makes a router of an earlier version count"
    )


def _print_largest(entries: Iterable[LiveFlow], several: bool) -> None:
    """The flows with most bytes, and the number of the others."""
    count = 0

    def numbered() -> Iterator[LiveFlow]:
        nonlocal count
        for count, flow in enumerate(entries, 1):  # noqa: B007 # the last number counts
            yield flow

    largest = heapq.nlargest(LISTED, numbered(), key=lambda flow: flow.bytes or 0)
    skipped = 0 if several else 1
    print_table(HEADINGS[skipped:], [_row(flow)[skipped:] for flow in largest], NONE)
    if count > len(largest):
        show(f"… and {count - len(largest)} more (-v shows all)")


def _print_all(entries: Iterable[LiveFlow], several: bool) -> None:
    skipped = 0 if several else 1
    rows = (tuple(map(visible, _row(flow)[skipped:])) for flow in entries)
    first = list(itertools.islice(rows, MEASURED))
    if not first:
        return print_table(HEADINGS[skipped:], (), NONE)
    widths = [max(map(len, column)) for column in zip(HEADINGS[skipped:], *first, strict=True)]
    for cells in itertools.chain([HEADINGS[skipped:]], first, rows):
        show("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    return None


def _row(flow: LiveFlow) -> tuple[str, ...]:
    return (
        flow.vpc,
        _end(flow.source_name, str(flow.source), flow.source_port),
        _end(flow.destination_name, str(flow.destination), flow.destination_port),
        flow.service if flow.published is None else f"{flow.service} (published as {flow.published})",
        flow.state,
        _number(flow.packets),
        _number(flow.bytes),
        _rule(flow),
    )


def _end(name: str, address: str, port: int | None) -> str:
    return f"{name} {address}" if port is None else f"{name} {address}:{port}"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _rule(flow: LiveFlow) -> str:
    return flow.rule if flow.allowed else f"denied now: {flow.rule}"


def _follow(session: Session, vpc: str | None, instance: str | None, as_json: bool) -> None:
    def lost(name: str) -> None:
        session.warn(f"VPC {name}: events lost: connections began and ended too fast")

    found = session.controller.follow_flows(vpc, instance, lost)
    session.say(f"following {', '.join(f'VPC {name}' for name in found.vpcs) or 'no VPC'}; Ctrl-C ends it")
    several = len(found.vpcs) > 1
    for event in found:
        if as_json:
            print_json({"event": _word(event), "time": _time(event), **_document(event.flow)}, indent=None)
        else:
            _print_event(event, several)


def _print_event(event: FlowEvent, several: bool) -> None:
    flow = event.flow
    _, source, destination, service, _, packets, size, rule = _row(flow)
    ended = "" if event.began or flow.packets is None else f"; {packets} packets, {size} bytes"
    where = f"{flow.vpc}: " if several else ""
    show(f"{_time(event)} {_word(event):<5} {where}{source} → {destination} {service}: {rule}{ended}", flush=True)


def _word(event: FlowEvent) -> str:
    return "begin" if event.began else "end"


def _time(event: FlowEvent) -> str:
    return datetime.fromtimestamp(event.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _document(flow: LiveFlow) -> dict[str, Any]:
    """A flow for machines."""
    from vpcctl.model.policy import PROTOCOL_NAMES

    return {
        "vpc": flow.vpc,
        "from": flow.source_name,
        "to": flow.destination_name,
        "source": str(flow.source),
        "source_port": flow.source_port,
        "destination": str(flow.destination),
        "destination_port": flow.destination_port,
        "protocol": PROTOCOL_NAMES.get(flow.protocol, str(flow.protocol)),
        "service": flow.service,
        "published": flow.published,
        "state": flow.state,
        "packets": flow.packets,
        "bytes": flow.bytes,
        "reply_packets": flow.reply_packets,
        "reply_bytes": flow.reply_bytes,
        "expires": flow.expires,
        "verdict": "allow" if flow.allowed else "deny",
        "rule": flow.rule,
    }
