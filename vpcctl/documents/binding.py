"""Which subnet a policy document is for, or which VPC, and whether the names in it mean something there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from vpcctl.documents.policies import MOST_PREFIXES, PolicyDocument, PolicyFile
from vpcctl.documents.reading import nearest
from vpcctl.errors import DocumentError, Problem, VpcctlError
from vpcctl.model.network import Subnet, Vpc, World
from vpcctl.model.policy import WHOLE_VPC, Direction, Endpoint, Network, Origin, Policy
from vpcctl.values import dataclass


@dataclass(frozen=True, slots=True)
class Attachment:
    """A policy and the subnet that it is for; with ``*`` it is the VPC's own."""

    vpc: str
    subnet: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class _Aim:
    """What a document is for: its attachment, if that is certain, and the problems if it fits nowhere.

    `vpcs` are the VPCs to which it may belong; none if that is not known.
    """

    attachment: Attachment | None = None
    vpcs: tuple[Vpc, ...] = ()
    problems: tuple[Problem, ...] = ()


def sound_policies(
    files: Sequence[PolicyFile], present: Callable[[], World], vpc: str | None = None, subnet: str | None = None
) -> list[PolicyDocument]:
    """The policies of `files`; if a part of any cannot be read, DocumentError with everything that is wrong in all.

    `present` returns the world that the policies are for.  It is called only if there are problems, to judge the names
    in what can be read.  `vpc` and `subnet` as in `attach`.
    """
    problems = [problem for file in files for problem in file.problems]
    if not problems:
        return [document for file in files for document in file.documents]
    try:
        world = present()
    except DocumentError as error:
        raise DocumentError(*error.problems, *problems) from error
    except VpcctlError as error:
        # The documents are wrong in every world.
        raise DocumentError(*problems) from error
    raise DocumentError(*_aimed(world, files, vpc, subnet)[1])


def attach(
    world: World, documents: Iterable[PolicyDocument], vpc: str | None = None, subnet: str | None = None
) -> tuple[World, list[Attachment], list[str]]:
    """The world with each policy attached, the attachments, and warnings.

    `vpc` and `subnet` win over what the documents say.  DocumentError with every document that fits nowhere or names
    something that is not there.
    """
    attachments, problems = _aimed(world, [PolicyFile(tuple(documents))], vpc, subnet)
    if problems:
        raise DocumentError(*problems)
    for attachment in attachments:
        world = world.with_vpc(world.vpc(attachment.vpc).with_policy(attachment.subnet, attachment.policy))
    check_sizes(world, {attachment.vpc: attachment.policy.file for attachment in attachments})
    return world, attachments, [warning for attachment in attachments for warning in _warnings(world, attachment)]


def _aimed(
    world: World, files: Iterable[PolicyFile], vpc: str | None, subnet: str | None
) -> tuple[list[Attachment], list[Problem | str]]:
    """The attachments of the policies, and everything that is wrong in `files`."""
    attachments: list[Attachment] = []
    first: dict[tuple[str, str], Policy] = {}
    problems: list[Problem | str] = []
    for file in files:
        found: list[Problem] = []
        for document in file.documents:
            aim = _aim(world, document, vpc, subnet)
            found += aim.problems
            if aim.attachment is not None:
                attachments.append(aim.attachment)
                found += _taken(aim.attachment, first)
            found += _unknown(world, aim.vpcs, document.policy, document.named, "sets" in document.unread)
        # The policies of a file may have one wrong field in common.
        problems += file.in_order(dict.fromkeys(found))
    return attachments, problems


def _taken(attachment: Attachment, first: dict[tuple[str, str], Policy]) -> Iterator[Problem]:
    """The problem of a subnet or a VPC that has a policy already; `first` are those before, by VPC and subnet."""
    policy = attachment.policy
    before = first.setdefault((attachment.vpc, attachment.subnet), policy)
    if before is not policy:
        whose = f"VPC {attachment.vpc}"
        whose = f"{whose} itself" if attachment.subnet == WHOLE_VPC else f"subnet {attachment.subnet} of {whose}"
        words = f"{whose} has a policy in this command already"
        yield Problem(policy.file, policy.pointer, f"{words}, at {before.origin()}; keep one")


def _aim(world: World, document: PolicyDocument, vpc: str | None, subnet: str | None) -> _Aim:
    policy = document.policy
    wanted, chosen = subnet or document.subnet, vpc or document.vpc
    homes = tuple(one for one in world.vpcs if chosen in (None, one.name))
    problems = []
    if wanted is None and "subnet" not in document.unread:
        words = 'which subnet? add a field "subnet" (name or prefix), or use --subnet'
        problems.append(Problem(policy.file, policy.pointer, words))
    if chosen is not None and not homes:
        words = f"VPC {chosen!r} not found; {nearest(chosen, sorted(world.vpcs_by_name))}"
        problems.append(Problem(policy.file, policy.pointer if vpc else document.vpc_pointer, words))
    if wanted is None or problems:
        return _Aim(None, homes, tuple(problems))
    if wanted == WHOLE_VPC:
        found = [(one, WHOLE_VPC) for one in homes]
    else:
        found = [(one, candidate.name) for one in homes for candidate in one.subnets if _is(candidate, wanted)]
    candidates = tuple(one for one, _ in found)
    if len(found) == 1:
        return _Aim(Attachment(found[0][0].name, found[0][1], policy), candidates)
    if found and chosen is None and "vpc" in document.unread:
        return _Aim(None, candidates)
    place = policy.pointer if subnet else f"{policy.pointer}/subnet"
    words = _several(candidates, wanted) if found else _no_subnet(homes, wanted, chosen)
    # Without a VPC by name, a subnet that is not found may be meant for one that does not exist yet.
    return _Aim(None, candidates or (homes if chosen else ()), (Problem(policy.file, place, words),))


def _several(vpcs: Iterable[Vpc], wanted: str) -> str:
    there = ", ".join(sorted(one.name for one in vpcs))
    if wanted == WHOLE_VPC:
        return f'which VPC? known VPCs: {there}; name one with "vpc" or --vpc'
    return f'several VPCs have a subnet {wanted!r}: {there}; name one with "vpc" or --vpc'


def _no_subnet(vpcs: Iterable[Vpc], wanted: str, chosen: str | None) -> str:
    if wanted == WHOLE_VPC:
        return "no VPC exists; `vpcctl create-vpc` makes one"
    there = sorted({candidate.name for one in vpcs for candidate in one.subnets})
    inside = f" in VPC {chosen}" if chosen else ""
    hint = nearest(wanted, there) if there else "known subnets: none"
    if wanted.lower() in _EVERY:
        hint += f'; "{WHOLE_VPC}" stands for the whole VPC'
    return f"subnet {wanted!r} not found{inside}; {hint}"


# What people write for all subnets.
_EVERY = frozenset({"all", "any", "every", "default", "vpc"})


def _is(subnet: Subnet, wanted: str) -> bool:
    return subnet.name == wanted or wanted in map(str, subnet.prefixes)


def _unknown(
    world: World,
    vpcs: Collection[Vpc],
    policy: Policy,
    endpoints: Iterable[tuple[str, Endpoint]],
    sets_unread: bool = False,
) -> Iterator[Problem]:
    """Those of the policy's `endpoints` that name nothing in any of `vpcs`, to one of which it belongs."""
    known: dict[str, Collection[str] | None] = {"vpc": world.vpcs_by_name or None}
    if vpcs:
        known["subnet"] = _together([vpc.subnets_by_name for vpc in vpcs])
        known["instance"] = _together([vpc.instances_by_name for vpc in vpcs])
    if vpcs and not sets_unread:
        known["set"] = {name for sets in (policy.sets, *(vpc.sets for vpc in vpcs)) for name, _ in sets}
    yield from unknown_names(endpoints, known, policy.file)


def _together(names: Sequence[Mapping[str, object]]) -> Collection[str]:
    # As a rule it is one, of which no copy is made.
    return names[0] if len(names) == 1 else frozenset[str]().union(*names)


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
        for _, policy in vpc.policies
        for problem in _unknown(world, [vpc], policy, endpoints_of(policy))
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

    The record keeps them, and every command that needs the ruleset of the VPC reads them.
    """
    problems = []
    for vpc in world.vpcs:
        if vpc.name not in files:
            continue
        sets = (*vpc.sets, *(one for _, policy in vpc.policies for one in policy.sets))
        found = sum(len(prefixes) for _, prefixes in sets)
        if found > MOST_PREFIXES:
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
            of = f"{attachment.vpc}/{attachment.subnet}"
            if attachment.subnet == WHOLE_VPC:
                of = f"the subnets of {attachment.vpc} without an {direction.value} policy of their own"
            yield (
                f"{policy.origin()}: {direction.value} of {of}"
                ' denies traffic that no rule matches (implicit; set "default" to make it explicit)'
            )
    peers = {peer.name for peer in world.peers(vpc.name)} | {vpc.name}
    for place, endpoint in endpoints_of(policy):
        if endpoint.kind == "vpc" and endpoint.name not in peers:
            line = Origin(policy.file, place)
            yield f"{line}: {endpoint} matches nothing until {vpc.name} and {endpoint.name} are peered"
    yield from _outside(vpc, attachment)


def _outside(vpc: Vpc, attachment: Attachment) -> Iterator[str]:
    """Narrowing to addresses that the subnet, or the VPC, does not have."""
    whole = attachment.subnet == WHOLE_VPC
    place = f"VPC {vpc.name}" if whole else f"subnet {attachment.subnet}"
    own = vpc.prefixes if whole else vpc.subnet(attachment.subnet).prefixes
    for direction, field in ((Direction.INGRESS, "destinations"), (Direction.EGRESS, "sources")):
        for rule in attachment.policy.rules(direction) or ():
            for endpoint in getattr(rule, field) or ():
                for prefix in _own_prefixes(vpc, endpoint):
                    if not any(prefix.version == mine.version and prefix.overlaps(mine) for mine in own):
                        yield f"{rule.origin}: {endpoint} lies outside {place} and matches nothing here"


def _own_prefixes(vpc: Vpc, endpoint: Endpoint) -> list[Network]:
    if endpoint.prefix is not None:
        return [endpoint.prefix]
    if endpoint.kind == "subnet":
        subnet = vpc.subnets_by_name.get(str(endpoint.name))
        return list(subnet.prefixes) if subnet else []
    return []
