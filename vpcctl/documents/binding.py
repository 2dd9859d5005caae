"""Which subnet a policy document is for, and whether the names in it mean something there."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from vpcctl.documents.policies import MOST_PREFIXES, PolicyDocument
from vpcctl.documents.reading import nearest
from vpcctl.errors import DocumentError, Problem
from vpcctl.model.network import Subnet, Vpc, World
from vpcctl.model.policy import Direction, Endpoint, Network, Origin, Policy


@dataclass(frozen=True, slots=True)
class Attachment:
    """A policy and the subnet that it is for."""

    vpc: str
    subnet: str
    policy: Policy


def attach(
    world: World, documents: Iterable[PolicyDocument], vpc: str | None = None, subnet: str | None = None
) -> tuple[World, list[Attachment], list[str]]:
    """The world with each policy attached, the attachments, and warnings.

    `vpc` and `subnet` win over what the documents say.  DocumentError with every document that fits nowhere or names
    something that is not there.
    """
    attachments: list[Attachment] = []
    problems: list[Problem | str] = []
    for document in documents:
        try:
            attachments.append(_target(world, document, vpc, subnet))
        except DocumentError as error:
            problems += error.problems
    for one, other in _pairs(attachments):
        problems.append(
            Problem(
                other.policy.file,
                other.policy.pointer,
                f"subnet {other.subnet} of VPC {other.vpc} has a policy in this command already, at"
                f" {one.policy.origin()}; keep one",
            )
        )
    for attachment in attachments:
        problems += _names(world, attachment)
    if problems:
        raise DocumentError(*problems)
    for attachment in attachments:
        target = world.vpc(attachment.vpc)
        changed = dataclasses.replace(target.subnet(attachment.subnet), policy=attachment.policy)
        world = world.with_vpc(target.with_subnet(changed))
    check_sizes(world, {attachment.vpc: attachment.policy.file for attachment in attachments})
    return world, attachments, [warning for attachment in attachments for warning in _warnings(world, attachment)]


def _pairs(attachments: list[Attachment]) -> Iterator[tuple[Attachment, Attachment]]:
    """The second and later attachments of a subnet, each with the first."""
    first: dict[tuple[str, str], Attachment] = {}
    for attachment in attachments:
        kept = first.setdefault((attachment.vpc, attachment.subnet), attachment)
        if kept is not attachment:
            yield kept, attachment


def _target(world: World, document: PolicyDocument, vpc: str | None, subnet: str | None) -> Attachment:
    policy = document.policy
    wanted, chosen = subnet or document.subnet, vpc or document.vpc
    if wanted is None:
        raise DocumentError(
            Problem(policy.file, policy.pointer, 'which subnet? add a field "subnet" (name or prefix), or use --subnet')
        )
    place = policy.pointer if subnet else f"{policy.pointer}/subnet"
    known = {one.name for one in world.vpcs}
    if chosen is not None and chosen not in known:
        where = policy.pointer if vpc else f"{policy.pointer}/vpc"
        raise DocumentError(Problem(policy.file, where, f"VPC {chosen!r} not found; {nearest(chosen, sorted(known))}"))
    found = [
        (one, candidate)
        for one in world.vpcs
        if chosen in (None, one.name)
        for candidate in one.subnets
        if _is(candidate, wanted)
    ]
    if len(found) == 1:
        return Attachment(found[0][0].name, found[0][1].name, policy)
    if found:
        named = ", ".join(sorted(one.name for one, _ in found))
        words = f'several VPCs have a subnet {wanted!r}: {named}; name one with "vpc" or --vpc'
    else:
        have = sorted({candidate.name for one in world.vpcs if chosen in (None, one.name) for candidate in one.subnets})
        inside = f" in VPC {chosen}" if chosen else ""
        words = f"subnet {wanted!r} not found{inside}; " + (nearest(wanted, have) if have else "known subnets: none")
    raise DocumentError(Problem(policy.file, place, words))


def _is(subnet: Subnet, wanted: str) -> bool:
    return subnet.name == wanted or wanted in map(str, subnet.prefixes)


def _names(world: World, attachment: Attachment) -> Iterator[Problem]:
    """Endpoints that name nothing."""
    vpc = world.vpc(attachment.vpc)
    known: dict[str, Collection[str] | None] = {
        "subnet": vpc.subnets_by_name,
        "instance": vpc.instances_by_name,
        "vpc": world.vpcs_by_name,
        "set": {name for name, _ in (*vpc.sets, *attachment.policy.sets)},
    }
    yield from unknown_names(endpoints_of(attachment.policy), known, attachment.policy.file)


def unknown_names(
    endpoints: Iterable[tuple[str, Endpoint]], known: Mapping[str, Collection[str] | None], file: str
) -> Iterator[Problem]:
    """Those of `endpoints`, each with its pointer, that name nothing in `known`: names by their kind, None for all."""
    for place, endpoint in endpoints:
        names = known.get(endpoint.kind)
        if endpoint.name is not None and names is not None and endpoint.name not in names:
            there = sorted(names)
            hint = nearest(endpoint.name, there) if there else f"known {endpoint.kind}s: none"
            words = f"{endpoint} names nothing: no {endpoint.kind} {endpoint.name!r} is known here; {hint}"
            expected = "the name of an existing subnet, instance, VPC or set is expected"
            yield Problem(file, place, words, expected, place)


def check_names(world: World, vpcs: set[str], file: str) -> list[Problem]:
    """Endpoints that name nothing, in the policies of the named VPCs of a world.

    Only problems in `file`, which the caller named, may quote what was found; problems in other files do not.
    """
    return [
        problem if problem.file == file else problem.discreet()
        for vpc in world.vpcs
        if vpc.name in vpcs
        for subnet in vpc.subnets
        if subnet.policy is not None
        for problem in _names(world, Attachment(vpc.name, subnet.name, subnet.policy))
    ]


def check(world: World, vpcs: Iterable[str], file: str) -> None:
    """Raise DocumentError for what is wrong in the named VPCs of a world that `file` describes: names, and sizes."""
    named = set(vpcs)
    problems = check_names(world, named, file)
    if problems:
        raise DocumentError(*problems)
    check_sizes(world, dict.fromkeys(named, file))


def check_sizes(world: World, files: Mapping[str, str]) -> None:
    """Raise DocumentError for a VPC with more prefixes in sets than one may have; `files` by the names of VPCs.

    The record keeps them, and every command reads the record.
    """
    problems = []
    for vpc in world.vpcs:
        policies = [subnet.policy for subnet in vpc.subnets if subnet.policy is not None]
        sets = (*vpc.sets, *(one for policy in policies for one in policy.sets))
        found = sum(len(prefixes) for _, prefixes in sets)
        if vpc.name in files and found > MOST_PREFIXES:
            words = f"VPC {vpc.name} would have {found} prefixes in its own sets and in the sets of its policies"
            problems.append(Problem(files[vpc.name], "", f"{words}; at most {MOST_PREFIXES} are allowed"))
    if problems:
        raise DocumentError(*problems)


def endpoints_of(policy: Policy) -> Iterator[tuple[str, Endpoint]]:
    """Every endpoint of the policy with its pointer."""
    for direction in Direction:
        for rule in policy.rules(direction) or ():
            pointer = rule.origin.pointer
            for field, endpoints in (("source", rule.sources), ("destination", rule.destinations)):
                for number, endpoint in enumerate(endpoints or ()):
                    yield f"{pointer}/{field}" + (f"/{number}" if len(endpoints or ()) > 1 else ""), endpoint


def _warnings(world: World, attachment: Attachment) -> Iterator[str]:
    policy = attachment.policy
    vpc = world.vpc(attachment.vpc)
    for direction in Direction:
        if policy.rules(direction) is not None and direction not in dict(policy.defaults):
            yield (
                f"{policy.origin()}: {direction.value} of {attachment.vpc}/{attachment.subnet}"
                ' denies traffic that no rule matches (implicit; set "default" to make it explicit)'
            )
    peers = {peer.name for peer in world.peers(vpc.name)} | {vpc.name}
    for place, endpoint in endpoints_of(policy):
        if endpoint.kind == "vpc" and endpoint.name not in peers:
            line = Origin(policy.file, place)
            yield f"{line}: {endpoint} matches nothing until {vpc.name} and {endpoint.name} are peered"
    yield from _outside(vpc, attachment)


def _outside(vpc: Vpc, attachment: Attachment) -> Iterator[str]:
    """Narrowing to addresses that the subnet does not have."""
    subnet = vpc.subnet(attachment.subnet)
    for direction, field in ((Direction.INGRESS, "destinations"), (Direction.EGRESS, "sources")):
        for rule in attachment.policy.rules(direction) or ():
            for endpoint in getattr(rule, field) or ():
                for prefix in _own_prefixes(vpc, endpoint):
                    if not any(prefix.version == mine.version and prefix.overlaps(mine) for mine in subnet.prefixes):
                        yield f"{rule.origin}: {endpoint} lies outside subnet {subnet.name} and matches nothing here"


def _own_prefixes(vpc: Vpc, endpoint: Endpoint) -> list[Network]:
    if endpoint.prefix is not None:
        return [endpoint.prefix]
    if endpoint.kind == "subnet":
        subnet = vpc.subnets_by_name.get(str(endpoint.name))
        return list(subnet.prefixes) if subnet else []
    return []
