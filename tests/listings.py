"""Rulesets as nft lists them, for tests of doctor: those of tests/firewalls, and small ones that a test writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from vpcctl.doctor import (
    foreign_firewalls,
)
from vpcctl.doctor.finding import Finding
from vpcctl.doctor.foreign_firewalls import Passage
from vpcctl.doctor.hook_verdicts import Listing
from vpcctl.doctor.rule_matches import SamplePacket, match

FIREWALLS = Path(__file__).with_name("firewalls")
SHOP = Passage("vpc-shop", IPv4Address("100.64.0.1"), "eth0")
BLUE = Passage("vpc-blue", IPv4Address("100.64.0.5"), "eth0")
TRANSIT = "100.64.0.0/16"

UPLINK = IPv4Address("100.64.0.1")
OUT = SamplePacket("vpc-shop", "eth0", UPLINK, None, "tcp", 443, UPLINK)
BACK = SamplePacket("eth0", "vpc-shop", None, UPLINK, "tcp", 443, UPLINK, True, foreign_firewalls.ANSWERED)

Rule = list[dict[str, Any]]


def firewall(name: str) -> Listing:
    """A ruleset of tests/firewalls."""
    text = FIREWALLS / f"{name}.txt"
    return Listing(json.loads((FIREWALLS / f"{name}.json").read_text()), text.read_text() if text.exists() else "")


def examined(listing: Listing, *passages: Passage, **tools: str) -> list[Finding]:
    """`tools` as those of `host.tools`, with underscores."""
    named = {kind.replace("_", "-"): name for kind, name in tools.items()}
    return foreign_firewalls.findings(listing, {("inet", "vpcctl")}, passages or (SHOP,), TRANSIT, named)


def severities(findings: list[Finding]) -> list[str]:
    return [one.severity for one in findings]


def base(family: str = "inet", table: str = "t", name: str = "forward", **more: Any) -> dict[str, Any]:
    hook = {"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"} | more
    return {"chain": {"family": family, "table": table, "name": name, **hook}}


def chain(name: str) -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "t", "name": name}}


def rule(*expression: dict[str, Any], of: str = "forward", handle: int = 7) -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": "t", "chain": of, "handle": handle, "expr": list(expression)}}


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def header(protocol: str, field: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}}


def tracked(key: str, right: Any, op: str = "in") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"ct": {"key": key}}, "right": right}}


def jump(target: str) -> dict[str, Any]:
    return {"jump": {"target": target}}


ACCEPT, DROP, RETURN = ({word: None} for word in ("accept", "drop", "return"))
RIDDLE = {"match": {"op": "==", "left": {"osf": {"key": "name"}}, "right": "Linux"}}


def decided(*objects: dict[str, Any], packet: SamplePacket = OUT) -> str:
    """What the one base chain of these objects does."""
    listing = Listing(objects)
    [hooked] = listing.on("forward")
    return listing.decide(hooked, packet).verdict


def matched(
    statement: dict[str, Any], packet: SamplePacket = OUT, sets: Mapping[str, list] | None = None
) -> bool | None:
    return match(statement["match"], packet, sets or {})
