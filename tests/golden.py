"""The cases of `rulesets/`: what is in a case's directory, as values.

A golden case is an `environment.json`, the policies that it names, `policies.json` if policies are applied to it
afterwards, a `VPC.nft` for each VPC, and `packets.jsonl` with verdicts that a person wrote.  A case of the library has
the same without rulesets.  A rejected case has a document and the `messages.txt` that it must be refused with.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from vpcctl import names
from vpcctl.compiler import compile_vpc
from vpcctl.documents import reading
from vpcctl.documents.binding import attach, check_names, sound_policies
from vpcctl.documents.environment import read_environment
from vpcctl.documents.fields import TYPE_NAMES
from vpcctl.documents.policies import PolicyFile, read_policies, read_policy_file
from vpcctl.errors import DocumentError
from vpcctl.model.host import Host
from vpcctl.model.network import World
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import ICMP_PROTOCOLS, PORT_PROTOCOLS, PROTOCOLS, Policy, Rule

RULESETS = Path(__file__).resolve().parent.parent / "rulesets"
OWNER = "golden"
GENERATION = 1
# Who the internet is where a line does not say it: the lab has all of 203.0.113.0/24.
INTERNET = ip_address("203.0.113.10")
# The host of the lab, on which every case is judged.
MACHINE = Host(
    tuple(map(ip_network, ("198.51.100.2/32", "127.0.0.0/8"))),
    tuple(map(ip_network, ("198.51.100.255/32", "127.255.255.255/32"))),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of `packets.jsonl`: a flow and what must become of it.

    `rule` is the line of a policy that decides (of an allowed flow: one of those that let it pass), None where the
    case does not say.  `exhausted` are the lines whose limit the flows before have used up.
    """

    number: int
    flow: Flow
    expect: str
    rule: str | None
    exhausted: tuple[str, ...]

    def __str__(self) -> str:
        return f"packets.jsonl:{self.number}"

    @property
    def by_default(self) -> bool:
        """Is it a default that decides, and no rule?"""
        return re.search(r"(/default/\w+|\bdefault (allow|deny)\))$", self.rule or "") is not None


@dataclass(frozen=True, slots=True)
class Case:
    """A directory of the golden cases or of the library."""

    folder: Path

    @property
    def world(self) -> World:
        """The world of the case, its policies attached."""
        world = environment(self.folder)
        if (self.folder / "policies.json").exists():
            world, _, _ = attach(world, read_policies(*self._load("policies.json")))
        return world

    @property
    def lines(self) -> list[Line]:
        """The packets with their verdicts."""
        world = self.world
        texts = (self.folder / "packets.jsonl").read_text(encoding="utf-8").splitlines()
        return [_line(world, number, json.loads(text)) for number, text in enumerate(texts, 1) if text]

    def rulesets(self) -> Iterator[tuple[Path, str]]:
        """For each VPC the file of its ruleset, and the text that the compiler writes now."""
        world = self.world
        for vpc in world.vpcs:
            compiled = compile_vpc(world, vpc.name, names.tag(OWNER, vpc.name, "ruleset"))
            yield self.folder / f"{vpc.name}.nft", compiled.text(GENERATION)

    def document(self, name: str) -> Any:
        """One of the case's documents, parsed."""
        return self._load(name)[0]

    def _load(self, name: str) -> tuple[Any, str]:
        return _parsed(self.folder, name)


def environment(folder: Path) -> World:
    """The world of the `environment.json` in `folder`; DocumentError if it is wrong."""
    world = read_environment(*_parsed(folder, "environment.json"), lambda name: _parsed(folder, name))
    problems = check_names(world, {vpc.name for vpc in world.vpcs}, "environment.json")
    if problems:
        raise DocumentError(*problems)
    return world


def cases(*kinds: str) -> dict[str, Case]:
    """The cases below `rulesets/<kind>/`, by kind and name."""
    folders = (folder for kind in kinds for folder in sorted((RULESETS / kind).iterdir()) if folder.is_dir())
    return {f"{folder.parent.name}/{folder.name}": Case(folder) for folder in folders}


def _line(world: World, number: int, document: dict[str, Any]) -> Line:
    unknown = set(document) - {"from", "to", "service", "expect", "rule", "exhausted"}
    if unknown or document["expect"] not in ("allow", "deny", "reject"):
        raise ValueError(f"packets.jsonl:{number}: {unknown or document['expect']!r} is unknown")
    protocol, port = service(document["service"])
    flow = Flow(place(world, document["from"]), place(world, document["to"]), protocol, port)
    return Line(number, flow, document["expect"], document.get("rule"), tuple(document.get("exhausted", ())))


def place(world: World, text: str) -> Place:
    """`internet`, an address outside, `VPC/INSTANCE` or `VPC/ADDRESS`."""
    vpc, slash, name = text.partition("/")
    if not slash:
        return Place(None, INTERNET if text == "internet" else ip_address(text))
    for instance in world.vpc(vpc).instances:
        if instance.name == name:
            return Place(vpc, instance.addresses[0])
    return Place(vpc, ip_address(name))


def service(text: str) -> tuple[int, int | None]:
    """`tcp/443`, `icmp/echo-request`, `icmp/8` or a protocol's number as (protocol, port or ICMP type or None)."""
    word, slash, rest = text.partition("/")
    protocol = PROTOCOLS[word] if word in PROTOCOLS else int(word)
    if bool(slash) != (protocol in PORT_PROTOCOLS | ICMP_PROTOCOLS):
        raise ValueError(f"{text!r} is no service")
    if protocol in ICMP_PROTOCOLS:
        return protocol, int(rest) if rest.isdecimal() else TYPE_NAMES[protocol][rest]
    return protocol, int(rest) if slash else None


def without(world: World, lines: tuple[str, ...]) -> World:
    """The world as it is while the rules at `lines` do not match, because their limit is used up."""
    for vpc in world.vpcs:
        for name, policy in vpc.policies:
            changed = _policy_without(policy, lines)
            world = world.with_vpc(world.vpc(vpc.name).with_policy(name, changed))
    return world


def _policy_without(policy: Policy, lines: tuple[str, ...]) -> Policy:
    def kept(rules: tuple[Rule, ...] | None) -> tuple[Rule, ...] | None:
        return None if rules is None else tuple(rule for rule in rules if str(rule.origin) not in lines)

    return dataclasses.replace(policy, ingress=kept(policy.ingress), egress=kept(policy.egress))


# --- Rejected documents -----------------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    """What is said of the document in `folder`, one problem a line; nothing if it is accepted.

    Policies are read by themselves, or attached where an `environment.json` stands beside them.  Without policies it
    is the environment that is wrong.
    """
    given = sorted(path.name for path in folder.glob("policy*.json"))
    try:
        if not given or (folder / "environment.json").exists():
            world = environment(folder)
            attach(world, sound_policies([_policy_file(folder, name) for name in given], lambda: world))
        else:
            read_policies(*_parsed(folder, *given))
    except DocumentError as error:
        return f"{error}\n"
    return ""


def _policy_file(folder: Path, name: str) -> PolicyFile:
    try:
        return read_policy_file(*_parsed(folder, name))
    except DocumentError as error:
        return PolicyFile(problems=error.problems)


def _parsed(folder: Path, name: str) -> tuple[Any, str]:
    return reading.parse((folder / name).read_text(encoding="utf-8"), name), name
