"""Policies become gates: for each subnet and direction one chain of set lookups, and its mirror for replies.

In a gate *peer* is the far side of the flow and *own* the subnet's side.  A lookup's key is made of the fields that
the rules at its level constrain; keys of single values go to hash sets, all others to interval sets.  A product is a
lookup of its own, which asks for its lists one after the other.  A gate says `return` for allow and `drop` for deny: it
never accepts, so that the other gate is always asked.

The mirror judges a packet that travels backwards, for a flow whose present generation is not the ruleset's: source
and destination, and request and reply types of ICMP, are exchanged; ports and addresses look up the same sets.

The parts of a name are joined by dots, which no user's name contains, so no two objects can come to the same name.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from vpcctl.compiler.effort import Effort
from vpcctl.compiler.first_match import WIDTH, Box, Prefix, Product, spread, stack
from vpcctl.compiler.match_boxes import matches
from vpcctl.compiler.nft import (
    ADDRESS_TYPE,
    ADDRESS_WORD,
    FINGERPRINT_LENGTH,
    Chain,
    Element,
    NftRule,
    RateLimit,
    Set,
    comment_text,
    part_text,
)
from vpcctl.compiler.view import View
from vpcctl.digest import sha256
from vpcctl.model.network import Subnet, Vpc, effective
from vpcctl.model.policy import ICMP, ICMP_PROTOCOLS, ICMPV6, Action, Direction, EffectivePolicy, Range, Rule
from vpcctl.model.protocols import REPLY_TYPE
from vpcctl.values import dataclass

TYPE_FIELD = {ICMP: ("icmp type", "icmp_type"), ICMPV6: ("icmpv6 type", "icmpv6_type")}
VERDICTS = {Action.ALLOW: "return", Action.DENY: "drop", Action.REJECT: "goto send-reject"}
# NF_LOG_PREFIXLEN is 128 with the final zero (include/uapi/linux/netfilter/nf_log.h).
LOG_PREFIX_LIMIT = 127
LOG_GROUP = 0


@dataclass(frozen=True, slots=True)
class Gate:
    """The sets and chains of one gate; `chain` and `mirror` are the names to jump to."""

    chain: str
    mirror: str
    sets: tuple[Set | RateLimit, ...]
    chains: tuple[Chain, ...]


class PlannedGate:
    """A gate that is compiled when its sets, chains or text are first used.

    Its fingerprint may be known without compiling it: most changes of a VPC leave its gates as they are.
    """

    def __init__(self, view: View, subnet: Subnet, direction: Direction):
        self.chain = gate_name(subnet.name, direction)
        self.mirror = f"{self.chain}.reply"
        self._of = view, subnet, direction
        self._known = view.known.get(self.chain)
        self._gate: Gate | None = None
        self._text: str | None = None

    @property
    def name(self) -> str:
        """The prefix of all names in the gate."""
        return self.chain

    @property
    def sets(self) -> tuple[Set | RateLimit, ...]:
        """Its sets and limits."""
        return self._compiled().sets

    @property
    def chains(self) -> tuple[Chain, ...]:
        """Its chains."""
        return self._compiled().chains

    @property
    def text(self) -> str:
        """The text by itself."""
        if self._text is None:
            self._text = part_text(self)
        return self._text

    @property
    def fingerprint(self) -> str:
        """A hash of the text."""
        if self._known is None:
            self._known = sha256(self.text.encode()).hex()[:FINGERPRINT_LENGTH]
        return self._known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlannedGate) and (self.name, self.fingerprint) == (other.name, other.fingerprint)

    def __hash__(self) -> int:
        return hash((self.name, self.fingerprint))

    def _compiled(self) -> Gate:
        if self._gate is None:
            self._gate = gate(*self._of)
            assert self._gate is not None, "a gate that lets everything pass is not planned"
        return self._gate


def planned(view: View, subnet: Subnet, direction: Direction) -> PlannedGate | None:
    """The gate of `subnet` for `direction`, compiled on demand; None if everything passes."""
    return PlannedGate(view, subnet, direction) if stands(view.vpc, subnet, direction) else None


def gate_name(subnet: str, direction: Direction) -> str:
    """The name of a gate: the prefix of the names of all its objects."""
    return f"{direction.value}-{subnet}"


def stands(vpc: Vpc, subnet: Subnet, direction: Direction) -> bool:
    """Does the policy of the VPC or of the subnet say anything about the direction?"""
    policy = effective(vpc, subnet)
    return policy is not None and policy.judges(direction)


def line_comments(policy: EffectivePolicy, direction: Direction) -> Iterator[tuple[bool, str]]:
    """For each rule, and for the default last, whether it is the subnet's own, and the comment that leads to its line.

    Two policies from one place are told apart.
    """
    same = policy.vpc is not None and policy.subnet is not None and policy.vpc.origin() == policy.subnet.origin()
    suffix = " of the VPC" if same else ""
    for own, written in ((False, policy.vpc), (True, policy.subnet)):
        for rule in (written.rules(direction) if written else None) or ():
            yield own, f"{rule.origin}{'' if own else suffix}"
    own = policy.default_is_own(direction)
    yield own, f"{policy.default_policy(direction).origin('/default')}{'' if own else suffix}"


class Shape(NamedTuple):
    """What a lookup's key is made of, and what is done with its packets."""

    version: int | None
    peer: bool
    own: bool
    protocol: int | None
    ports: bool
    exact: bool
    rule: int | None

    @property
    def label(self) -> str:
        """A readable part of a set's name."""
        words = [f"v{self.version}"] if self.version else []
        words += ["peer"] * self.peer + ["own"] * self.own
        if self.protocol in ICMP_PROTOCOLS:
            words.append("type" if self.protocol == ICMP else "type6")
        elif self.protocol is not None:
            words += ["protocol"] + ["port"] * self.ports
        return "-".join(words or ["all"]) + ("" if self.exact else "-range")


def gate(view: View, subnet: Subnet, direction: Direction, effort: Effort | None = None) -> Gate | None:
    """The gate of `subnet` for `direction`, or None where its effective policy is silent: then everything passes.

    TooMuchError where it costs more than is left of `effort`; where that is not given, it may cost what it will.
    """
    place = (view.vpc.name, subnet.name, direction)
    if effort is None and place in _kept and _kept[place][0] == _made_of(view, subnet):
        return _kept.pop(place)[1]
    policy = effective(view.vpc, subnet)
    if policy is None or not stands(view.vpc, subnet, direction):
        return None
    rules = tuple(policy.rules(direction))
    return _Builder(view, subnet, policy, direction, rules, effort or Effort()).build()


# A gate and what it was made of.
Kept = tuple[tuple[Vpc, tuple[Vpc, ...], Subnet], Gate | None]
# Gates that were compiled to see what they cost, by VPC, subnet and direction.
_kept: dict[tuple[str, str, Direction], Kept] = {}


def keep(gates: Iterable[tuple[View, Subnet, Direction, Gate | None]]) -> None:
    """Have `gates` returned by `gate`, each once, instead of being compiled again; without any, forget those kept."""
    found = list(gates)
    if not found:
        _kept.clear()
    for view, subnet, direction, made in found:
        _kept[view.vpc.name, subnet.name, direction] = (_made_of(view, subnet), made)


def _made_of(view: View, subnet: Subnet) -> tuple[Vpc, tuple[Vpc, ...], Subnet]:
    """All that a gate depends on, besides its direction.  Comparing it with itself costs nothing."""
    return view.vpc, view.peers, subnet


class _Builder:
    """Carries what the parts of one gate have in common."""

    def __init__(
        self,
        view: View,
        subnet: Subnet,
        policy: EffectivePolicy,
        direction: Direction,
        rules: Sequence[Rule],
        effort: Effort,
    ):
        self._view, self._subnet, self._policy, self._direction, self._rules = view, subnet, policy, direction, rules
        # The users' lines, as comments; the default's is the last.
        self._lines = [comment for _, comment in line_comments(policy, direction)]
        self._name, self._effort = gate_name(subnet.name, direction), effort
        self._sets: list[Set] = []
        self._chains: list[Chain] = []
        # The lists of products, by type and members: rules that have one in common share it.
        self._lists: dict[tuple[str, tuple[Any, ...]], str] = {}

    def build(self) -> Gate:
        verdicts = [self._verdict(number, rule) for number, rule in enumerate(self._rules)]
        found = list(matches(self._view, self._subnet, self._policy, self._direction, verdicts, self._effort))
        self._chains += [
            _logging(self._log_chain(number), self._view.vpc.name, rule.action, self._lines[number])
            for number, rule in enumerate(self._rules)
            if rule.log
        ]
        self._limits = [
            RateLimit(self._limit(number), rule.limit.rate, rule.limit.unit, rule.limit.burst)
            for number, rule in enumerate(self._rules)
            if rule.limit
        ]
        straight, mirrored = [], []
        for level, members in enumerate(stack(found, self._effort), 1):
            lookups = list(self._lookups(members))
            for number, (shape, inside) in enumerate(lookups, 1):
                name = f"{self._name}.{level}.{number}.{shape.label}"
                straight += self._lookup(name, shape, inside, mirror=False)
                mirrored += self._lookup(name, shape, inside, mirror=True)
            products = (one for one in members if isinstance(one, Product))
            for number, one in enumerate(products, len(lookups) + 1):
                name = f"{self._name}.{level}.{number}"
                straight += self._verdicts(self._product(name, one, mirror=False), one.rule, mirror=False)
                mirrored += self._verdicts(self._product(name, one, mirror=True), one.rule, mirror=True)
        default = VERDICTS[self._policy.default(self._direction)]
        last = NftRule(f"counter {default}", self._lines[-1])
        for name, rules in ((self._name, straight), (f"{self._name}.reply", mirrored)):
            self._chains.append(Chain(name, (*rules, last)))
        return Gate(self._name, f"{self._name}.reply", (*self._limits, *self._sets), tuple(self._chains))

    def _verdict(self, number: int, rule: Rule) -> str:
        """What a match does."""
        return f"goto {self._log_chain(number)}" if rule.log else VERDICTS[rule.action]

    def _log_chain(self, number: int) -> str:
        return f"{self._name}.log.{number}"

    def _lookups(self, members: list[Box | Product]) -> Iterator[tuple[Shape, list[Box]]]:
        """The lookups of one level in their order: boxes by shape, without overlap within each."""
        shapes: dict[Shape, list[Box]] = defaultdict(list)
        for box in sorted((one for one in members if isinstance(one, Box)), key=attrgetter("rank")):
            shapes[self._shape(box)].append(box)
        for shape, alike in shapes.items():
            # Of two boxes with one exact key the later one was trimmed away.
            for apart in [alike] if shape.exact else spread(alike, self._effort):
                yield shape, apart

    def _shape(self, box: Box) -> Shape:
        version = (box.peer or box.own or (None,))[0]
        typed = _typed(box)
        # The protocol itself is part of the key, except that ICMP's types are a field of their own.
        protocol = box.protocol if typed or box.protocol is None else -1
        limited = box.rule if self._rules[box.rule].limit else None
        ports = box.ports is not None and not typed
        return Shape(version, box.peer is not None, box.own is not None, protocol, ports, box.exact, limited)

    def _lookup(self, name: str, shape: Shape, members: list[Box], mirror: bool) -> list[NftRule]:
        """Add the set of one lookup, once for both orientations where they can share it; return the rules."""
        typed = shape.protocol in ICMP_PROTOCOLS
        if typed and mirror:
            name += ".reply"
            members = list(_replies(members))
        expression, key_type = self._key(shape, mirror)
        if not expression:
            return self._verdicts("", members[0].rule, mirror)
        limited = shape.rule is not None
        if typed or not mirror:
            elements = tuple(
                Element(self._element_key(box), "" if limited else box.verdict, self._lines[box.rule])
                for box in members
            )
            data_type = "" if limited else "verdict"
            self._sets.append(Set(name, key_type, elements, data_type, not shape.exact, counted=not limited))
        if shape.rule is not None:
            return self._verdicts(f"{expression} @{name} ", shape.rule, mirror)
        return [NftRule(f"{expression} vmap @{name}")]

    def _product(self, name: str, found: Product, mirror: bool) -> str:
        """What asks for the lists of a product, one after the other."""
        peer, own = self._sides(mirror)
        word, kind = ADDRESS_WORD[found.version], ADDRESS_TYPE[found.version]
        questions = []
        for side, prefixes, part in ((peer, found.peers, "peer"), (own, found.owns, "own")):
            if prefixes is not None:
                exact = all(length == WIDTH[found.version] for _, _, length in prefixes)
                questions.append(f"{word} {side} @{self._list(f'{name}.{part}', kind, prefixes, _address_text, exact)}")
        if found.ports is None:
            # ICMP's own messages are those of its version, whatever addresses they have.
            questions += [] if found.protocol is None else [f"meta l4proto {found.protocol}"]
        else:
            questions.append(self._ports(name, found.protocol, found.ports, mirror))
        return " ".join(questions) + " "

    def _ports(self, name: str, protocol: int | None, ports: tuple[Range, ...], mirror: bool) -> str:
        """What asks for the ports of a product, or its types of ICMP."""
        exact = all(low == high for low, high in ports)
        if protocol in ICMP_PROTOCOLS:
            word, kind = TYPE_FIELD[protocol]
            spans = tuple(sorted(set(_answers(protocol, ports)))) if mirror else ports
            name = f"{name}.type" + (".reply" if mirror else "")
            return f"{word} @{self._list(name, kind, spans, _span_text, exact or mirror)}"
        port = "th sport" if mirror else "th dport"
        members = tuple((protocol, span) for span in ports)
        name = self._list(f"{name}.port", "inet_proto . inet_service", members, _service_text, exact)
        return f"meta l4proto . {port} @{name}"

    def _list(self, name: str, kind: str, members: tuple[Any, ...], text: Callable[[Any], str], exact: bool) -> str:
        """The name of the set with these members; it is called `name` if it is new."""
        if (kind, members) not in self._lists:
            self._lists[kind, members] = name
            elements = tuple(Element(text(member)) for member in members)
            self._sets.append(Set(name, kind, elements, interval=not exact))
        return self._lists[kind, members]

    def _verdicts(self, match: str, number: int, mirror: bool) -> list[NftRule]:
        """Plain rules for what no map can hold: a match of everything, a product, or a rate."""
        rule, line = self._rules[number], self._lines[number]
        verdict = self._verdict(number, rule)
        if not rule.limit:
            return [NftRule(f"{match}counter {verdict}", line)]
        # The rate is one of new flows; a flow that passed before and is judged again is not held against it.
        seen = NftRule(f"{match}ct state established counter {verdict}", line)
        new = NftRule(f'{match}ct state new limit name "{self._limit(number)}" counter {verdict}', line)
        return [seen] if mirror else [seen, new]

    def _limit(self, number: int) -> str:
        """The rule's rate: one object, however many lookups the rule needs."""
        return f"{self._name}.limit.{number}"

    def _key(self, shape: Shape, mirror: bool) -> tuple[str, str]:
        """The key as an expression over the packet, and its type."""
        peer, own = self._sides(mirror)
        fields = []
        if shape.version is not None:  # then it has a peer or an own side
            word, kind = ADDRESS_WORD[shape.version], ADDRESS_TYPE[shape.version]
            fields += [(f"{word} {peer}", kind)] * shape.peer + [(f"{word} {own}", kind)] * shape.own
        if shape.protocol in ICMP_PROTOCOLS:
            fields.append(TYPE_FIELD[shape.protocol])
        elif shape.protocol is not None:
            fields.append(("meta l4proto", "inet_proto"))
            if shape.ports:
                fields.append(("th sport" if mirror else "th dport", "inet_service"))
        return " . ".join(word for word, _ in fields), " . ".join(kind for _, kind in fields)

    def _sides(self, mirror: bool) -> tuple[str, str]:
        """Where a packet has the addresses of the peer's side and of the own one."""
        backwards = mirror != (self._direction is Direction.EGRESS)
        return ("daddr", "saddr") if backwards else ("saddr", "daddr")

    def _element_key(self, box: Box) -> str:
        fields = [_address_text(prefix) for prefix in (box.peer, box.own) if prefix is not None]
        if box.protocol is not None and not _typed(box):
            fields.append(str(box.protocol))
        if box.ports is not None:
            fields.append(_span_text(box.ports))
        return " . ".join(fields)


def _typed(box: Box) -> bool:
    """Are the box's `ports` types of ICMP?"""
    return box.protocol in ICMP_PROTOCOLS and box.ports is not None


def _replies(requests: list[Box]) -> Iterator[Box]:
    """The boxes of ICMP requests as boxes of their replies."""
    for box in requests:
        assert box.protocol is not None, "the shape of these boxes has a protocol"
        assert box.ports is not None, "the shape of these boxes has types"
        for answer in _answers(box.protocol, (box.ports,)):
            yield box._replace(ports=answer)


def _answers(protocol: int, spans: tuple[Range, ...]) -> Iterator[Range]:
    """The types of the replies to ICMP requests of the types in `spans`."""
    for low, high in spans:
        for request, answer in REPLY_TYPE[protocol].items():
            if low <= request <= high:
                yield answer, answer


def _logging(name: str, vpc: str, action: Action, line: str) -> Chain:
    """A chain that logs the first packet of a flow and then decides.  `goto` leads here, so `return` ends the gate.

    The log goes to a netlink group: the kernel's own log is silent in namespaces (net.netfilter.nf_log_all_netns).
    """
    head = f"vpcctl {vpc} {action.value} "
    prefix = head + comment_text(line)[-(LOG_PREFIX_LIMIT - len(head)) :]
    return Chain(name, (NftRule(f'ct state new log prefix "{prefix}" group {LOG_GROUP}'), NftRule(VERDICTS[action])))


def _span_text(span: Range) -> str:
    low, high = span
    return str(low) if low == high else f"{low}-{high}"


def _service_text(service: tuple[int, Range]) -> str:
    return f"{service[0]} . {_span_text(service[1])}"


def _address_text(prefix: Prefix) -> str:
    version, value, length = prefix
    address = (ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address)(value)
    return str(address) if length == WIDTH[version] else f"{address}/{length}"
