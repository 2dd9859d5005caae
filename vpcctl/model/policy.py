"""A firewall policy as values: what its document says, checked, but with no name resolved.

Rules are ordered and the first that matches decides.  Whoever judges traffic asks for the effective policy of a subnet;
whoever shows, compares, exports or stores policies takes those that were written.  What a policy *means* is in
`oracle`; how JSON becomes these values is in `documents`; how they become nftables sets is in `compiler`.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from vpcctl.values import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
PROTOCOLS = {"tcp": TCP, "udp": UDP, "sctp": SCTP, "icmp": ICMP, "icmpv6": ICMPV6}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
PORT_PROTOCOLS = frozenset({TCP, UDP, SCTP})
ICMP_PROTOCOLS = frozenset({ICMP, ICMPV6})

LOWEST_PORT, HIGHEST_PORT = 1, 65535
Range = tuple[int, int]


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same numbers in ascending ranges that neither overlap nor touch."""
    found: list[Range] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


class Action(enum.Enum):
    """What a rule does to the flows that it decides; the words of the document."""

    ALLOW = "allow"
    DENY = "deny"
    REJECT = "reject"


class Direction(enum.Enum):
    """The direction of a gate: into or out of a subnet."""

    INGRESS = "ingress"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where traffic comes from or goes to, as written.

    `kind` is ``any``, ``internet``, ``prefix``, ``subnet``, ``instance``, ``vpc`` or ``set``; `name` is the object's
    name, or None; `prefix` is given for the kind of that name alone (a single address is a prefix of full length).
    """

    kind: str
    name: str | None = None
    prefix: Network | None = None

    def __str__(self) -> str:
        if self.prefix is not None:
            return str(self.prefix)
        return self.kind if self.name is None else f"{self.kind}:{self.name}"


ANY = Endpoint("any")


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate of new flows: `rate` per `unit` (``second``, ``minute``, ``hour``, ``day``), and `burst` above it."""

    rate: int
    unit: str
    burst: int = 5

    def __str__(self) -> str:
        return f"{self.rate}/{self.unit}" + (f" burst {self.burst}" if self.burst != 5 else "")


@dataclass(frozen=True, slots=True)
class Origin:
    """The place of a rule or a default: `pointer` (RFC 6901) in a user's `file`.

    `remark` is there where the document implies it instead of stating it.  The text is for people and for comments in
    rulesets; it is never read back.
    """

    file: str = ""
    pointer: str = ""
    remark: str = ""

    def __str__(self) -> str:
        if self == NOWHERE:
            return ""
        place = f"{self.file}#{self.pointer}"
        return f"{place} ({self.remark})" if self.remark else place


# The word for all subnets of a VPC, where a policy names its subnet: no subnet can have this name.
WHOLE_VPC = "*"
# Of a rule that is from no document.
NOWHERE = Origin()


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy.

    `protocol` is an IP protocol number or None for any.  `ports` and `icmp_types` are inclusive ranges, None for all;
    `sources` and `destinations` are None where the document says nothing, and an empty tuple matches nothing.
    `origin` is the user's line.
    """

    action: Action
    protocol: int | None = None
    ports: tuple[Range, ...] | None = None
    icmp_types: tuple[Range, ...] | None = None
    sources: tuple[Endpoint, ...] | None = None
    destinations: tuple[Endpoint, ...] | None = None
    log: bool = False
    limit: Limit | None = None
    description: str = ""
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True)
class Policy:
    """What may enter and leave one subnet, or each subnet of a VPC.

    `ingress` and `egress` are None where the document has no such direction: then everything passes.
    `defaults` holds what the document states, by direction; a present direction without one denies.
    """

    ingress: Sequence[Rule] | None = None
    egress: Sequence[Rule] | None = None
    defaults: tuple[tuple[Direction, Action], ...] = ()
    sets: tuple[tuple[str, Sequence[Network]], ...] = ()
    description: str = ""
    file: str = ""
    pointer: str = ""

    def rules(self, direction: Direction) -> Sequence[Rule] | None:
        """The rules of `direction`, or None if the policy is silent about it."""
        return self.ingress if direction is Direction.INGRESS else self.egress

    def speaks(self, direction: Direction) -> bool:
        """Does the policy say anything about `direction`: rules, or a default?"""
        return self.rules(direction) is not None or direction in dict(self.defaults)

    def default(self, direction: Direction) -> Action:
        """What happens to traffic of `direction` that no rule matches."""
        if self.rules(direction) is None:
            return dict(self.defaults).get(direction, Action.ALLOW)
        return dict(self.defaults).get(direction, Action.DENY)

    def origin(self, below: str = "") -> Origin:
        """The place of this policy, or the place `below` it, as ``/ingress/0``."""
        return Origin(self.file, f"{self.pointer}{below}")

    def default_origin(self, direction: Direction) -> Origin:
        """The place of the default: where the document states it, else the direction that implies it."""
        if direction in dict(self.defaults):
            return self.origin(f"/default/{direction.value}")
        if self.rules(direction) is None:
            return Origin(self.file, self.pointer, f"no {direction.value}: default allow")
        return Origin(self.file, f"{self.pointer}/{direction.value}", "default deny")


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """The policies of a VPC and of one of its subnets, at least one of them, in the order in which they are asked.

    Each rule keeps its origin, and the named sets of each policy are its own: one name may mean two things.
    """

    vpc: Policy | None
    subnet: Policy | None

    def parts(self, direction: Direction) -> Iterator[tuple[Policy, Sequence[Rule]]]:
        """Each policy that has rules for `direction`, with these rules, in their order."""
        for policy in (self.vpc, self.subnet):
            if policy is not None and (rules := policy.rules(direction)):
                yield policy, rules

    def rules(self, direction: Direction) -> Sequence[Rule]:
        """The rules in their order; the first that matches decides."""
        found = [rules for _, rules in self.parts(direction)]
        # Rules on record stay as they are written there until somebody looks into them.
        return found[0] if len(found) == 1 else tuple(rule for rules in found for rule in rules)

    def judges(self, direction: Direction) -> bool:
        """Is there anything in `direction` but a default that allows?  The rules themselves are not looked into."""
        return any(True for _ in self.parts(direction)) or self.default(direction) is not Action.ALLOW

    def default(self, direction: Direction) -> Action:
        """What happens to traffic that no rule matches."""
        return self.default_policy(direction).default(direction)

    def default_origin(self, direction: Direction) -> Origin:
        """The place of the default."""
        return self.default_policy(direction).default_origin(direction)

    def default_is_own(self, direction: Direction) -> bool:
        """Is the default the subnet's, because its policy says anything about `direction`?  Else it is the VPC's."""
        return self.subnet is not None and (self.vpc is None or self.subnet.speaks(direction))

    def default_policy(self, direction: Direction) -> Policy:
        """The policy whose default holds."""
        found = self.subnet if self.default_is_own(direction) else self.vpc
        assert found is not None, "one of the two policies is there"
        return found


# What `create-vpc --closed` begins with: nothing passes until a policy allows it.
CLOSED = Policy(defaults=tuple((direction, Action.DENY) for direction in Direction), file="(closed)")
