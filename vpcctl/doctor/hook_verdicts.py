"""What the chains on a netfilter hook do to a packet, read from a listing of the ruleset.  Pure: values in, values out.

Theory of operation.  A listing is libnftables' JSON (libnftables-json(5)), as the kernel has the ruleset now.  A match
is true, false or *unknown*: what this module does not understand is unknown, never guessed.  A rule that may or may
not match is followed in both cases.  If both cases end alike, the answer is known; otherwise it is the
list of rules that it depends on.  `accept` ends one base chain, `drop` ends the packet: every base chain on the
hook has to let it pass (nft(8), "Verdict statement").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from typing import Any

from vpcctl.doctor.rule_matches import SamplePacket, Sets, Truth, match, same
from vpcctl.doctor.rule_texts import dormant_tables, in_words, rule_texts, sets_marks, translated
from vpcctl.values import dataclass

FAMILIES = ("ip", "inet")
# A jump stack of this depth is more than the kernel allows (NFT_JUMP_STACK_SIZE, include/net/netfilter/nf_tables.h).
DEEPEST = 16
# Where a packet may go after a rule.
NEXT, OUT = "next", "out"
# Conditions on earlier packets, which a single packet does not show.
COUNTED = frozenset({"limit", "quota", "ct count", "meter", "xt match"})
NO_VERDICT = COUNTED | frozenset(
    "match|counter|log|mangle|set|map|dup|flow|last|ct helper|ct timeout|ct expectation|secmark".split("|")
)
END_AS_ACCEPT = frozenset("accept dnat snat masquerade redirect".split())
VERDICTS = END_AS_ACCEPT | frozenset("drop reject return continue jump goto".split())
# What a statement that this module does not know may do: end the packet either way, or neither.  To take a flow from
# connection tracking (`notrack`) is one of these: translation needs tracking.
ANYTHING: tuple[Mapping[str, Any], ...] = ({"accept": None}, {"drop": None}, {"continue": None})


@dataclass(frozen=True, slots=True)
class RulePlace:
    """A rule, or a base chain's policy (handle 0), and how nft prints it."""

    family: str
    table: str
    chain: str
    handle: int
    text: str

    def __str__(self) -> str:
        number = f", handle {self.handle}" if self.handle else ""
        return f"table {self.family} {self.table}, chain {self.chain}{number}: `{self.text}`"


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain on a hook."""

    hook: str
    family: str
    table: str
    name: str
    priority: int
    policy: str


@dataclass(frozen=True, slots=True)
class HookDecision:
    """What one base chain does: `verdict` is accept, drop or unknown.

    `by` are the places that decide: the one that drops, or all those on which an unknown verdict depends.
    """

    chain: BaseChain
    verdict: str
    by: tuple[RulePlace, ...]


@dataclass(slots=True)
class _Walk:
    """Where the ways of a packet through one base chain end, and the uncertain rules on those ways."""

    endings: list[tuple[str, RulePlace]] = field(default_factory=list)
    doubts: list[RulePlace] = field(default_factory=list)


class Listing:
    """A ruleset: `objects` is the array of ``nft -j list ruleset``, `text` the output of ``nft -a list ruleset``."""

    def __init__(self, objects: Sequence[Mapping[str, Any]], text: str = ""):
        self._texts, self._dormant = rule_texts(text), dormant_tables(text)
        self.base_chains: list[BaseChain] = []
        self._chains: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
        self._elements: dict[tuple[str, str], dict[str, list[Any]]] = {}
        for one in objects:
            for kind, body in one.items():
                self._take(kind, body)

    def _take(self, kind: str, body: Mapping[str, Any]) -> None:
        if kind == "chain":
            self._chains.setdefault((body["family"], body["table"], body["name"]), [])
            asleep = (body["family"], body["table"]) in self._dormant
            if "hook" in body and body["family"] in FAMILIES and not asleep:
                self.base_chains.append(_base_chain(body))
        elif kind == "rule":
            self._chains.setdefault((body["family"], body["table"], body["chain"]), []).append(body)
        elif kind in ("set", "map"):
            self._elements.setdefault((body["family"], body["table"]), {})[body["name"]] = body.get("elem", [])

    def companions(self, chain: BaseChain) -> list[str]:
        """The names of all chains in the table of this one."""
        return [name for family, table, name in self._chains if (family, table) == (chain.family, chain.table)]

    def marks_packets(self) -> bool:
        """Does any rule set a packet's or a connection's mark?"""
        return any(sets_marks(rule) for rules in self._chains.values() for rule in rules)

    def with_rule(self, chain: BaseChain, name: str, statements: Sequence[Mapping[str, Any]]) -> Listing:
        """The same ruleset with one rule more at the head of the chain `name` in the table of `chain`."""
        changed = Listing(())
        changed._texts, changed.base_chains, changed._elements = self._texts, self.base_chains, self._elements
        key = (chain.family, chain.table, name)
        rule = {"family": chain.family, "table": chain.table, "chain": name, "handle": 0, "expr": list(statements)}
        changed._chains = self._chains | {key: [rule, *self._chains[key]]}
        return changed

    def on(self, hook: str, except_for: Collection[tuple[str, str]] = ()) -> list[BaseChain]:
        """The base chains that forwarded IPv4 packets meet on `hook`, in their order.

        Those of the tables `except_for`, given as (family, name), are left out.
        """
        found = [one for one in self.base_chains if one.hook == hook and (one.family, one.table) not in except_for]
        return sorted(found, key=lambda one: one.priority)

    def decide(self, chain: BaseChain, packet: SamplePacket) -> HookDecision:
        """What a base chain does to `packet`."""
        walk = _Walk()
        if self._through(chain.family, chain.table, chain.name, packet, walk, 0):
            policy = RulePlace(chain.family, chain.table, chain.name, 0, f"policy {chain.policy}")
            walk.endings.append((chain.policy, policy))
        verdict, place = walk.endings[0]
        if all(other == verdict for other, _ in walk.endings):
            return HookDecision(chain, verdict, (place,))
        return HookDecision(chain, "unknown", tuple(dict.fromkeys(walk.doubts)))

    def _through(self, family: str, table: str, name: str, packet: SamplePacket, walk: _Walk, depth: int) -> bool:
        """Follow the packet through a chain; may it come out at the end of it?"""
        if depth > DEEPEST or (family, table, name) not in self._chains:
            place = RulePlace(family, table, name, 0, "cannot be followed")
            walk.doubts.append(place)
            walk.endings += [("accept", place), ("drop", place)]
            return True
        comes_out = False
        for rule in self._chains[family, table, name]:
            ways = self._past(rule, packet, walk, depth)
            comes_out = comes_out or OUT in ways
            if NEXT not in ways:
                return comes_out
        return True

    def _past(self, rule: Mapping[str, Any], packet: SamplePacket, walk: _Walk, depth: int) -> set[str]:
        """Follow the packet past one rule: it may go to the `next` rule, or `out` of the chain; neither if it ends."""
        place = self._place(rule)
        sets = self._elements.get((place.family, place.table), {})
        ways: set[str] = set()
        for kind, body in translated(rule, place.text):
            found, verdicts = _meaning(kind, body, packet, sets)
            if found is not True:
                ways.add(NEXT)
            if found is False:
                return ways
            if ways or len(verdicts) > 1:
                walk.doubts += [place] if verdicts else []
            for verdict in verdicts:
                ways |= self._after(verdict, place, packet, walk, depth)
            if verdicts:
                return ways
        return ways | {NEXT}

    def _after(
        self, verdict: Mapping[str, Any], place: RulePlace, packet: SamplePacket, walk: _Walk, depth: int
    ) -> set[str]:
        """Where a verdict leads; what ends the packet is noted in `walk`."""
        [(kind, body)] = verdict.items()
        if kind in ("jump", "goto"):
            back = self._through(place.family, place.table, body["target"], packet, walk, depth + 1)
            return {NEXT if kind == "jump" else OUT} if back else set()
        if kind in ("return", "continue"):
            return {OUT if kind == "return" else NEXT}
        walk.endings.append(("accept" if kind in END_AS_ACCEPT else "drop", place))
        return set()

    def _place(self, rule: Mapping[str, Any]) -> RulePlace:
        family, table, handle = rule["family"], rule["table"], rule.get("handle", 0)
        text = self._texts.get((family, table, handle)) or in_words(rule)
        return RulePlace(family, table, rule["chain"], handle, text)


def _base_chain(body: Mapping[str, Any]) -> BaseChain:
    return BaseChain(
        body["hook"], body["family"], body["table"], body["name"], body.get("prio", 0), body.get("policy", "accept")
    )


# --- Statements -------------------------------------------------------------------------------------------------------


def _meaning(kind: str, body: Any, packet: SamplePacket, sets: Sets) -> tuple[Truth, Sequence[Mapping[str, Any]]]:
    """Whether a statement lets the rule go on, and the verdicts that it may give.

    A newer nft may list what it knows in shapes that are not known here: then it may do anything.
    """
    try:
        found, verdicts = _condition(kind, body, packet, sets), _verdicts(kind, body, packet, sets)
        return (found, verdicts) if all(map(_sound, verdicts)) else (None, ANYTHING)
    except (TypeError, ValueError, LookupError, AttributeError):
        return None, ANYTHING


def _sound(verdict: Any) -> bool:
    """Is that a verdict, and does a jump say where to?"""
    [(kind, body)] = verdict.items()
    return kind in VERDICTS and (kind not in ("jump", "goto") or isinstance(body["target"], str))


def _condition(kind: str, body: Any, packet: SamplePacket, sets: Sets) -> Truth:
    """Does a statement let the rule go on?  True for those that are no conditions."""
    if kind == "match":
        return match(body, packet, sets)
    if kind == "reject" and isinstance(body, Mapping):
        # What a rejection is made of narrows the rule, and a listing does not say so otherwise.
        answers = {"icmpv6": False, "tcp reset": packet.protocol == "tcp"}
        return answers.get(str(body.get("type")), True)
    if kind in COUNTED or (kind in ("set", "map") and isinstance(body, Mapping) and "stmt" in body):
        return None
    return True


def _verdicts(kind: str, body: Any, packet: SamplePacket, sets: Sets) -> Sequence[Mapping[str, Any]]:
    """The verdicts that a statement may give; none where the rule goes on behind it."""
    if kind in VERDICTS:
        return [{kind: body}]
    if kind == "vmap":
        return _from_map(body, packet, sets)
    return () if kind in NO_VERDICT else ANYTHING


def _from_map(body: Mapping[str, Any], packet: SamplePacket, sets: Sets) -> list[Mapping[str, Any]]:
    """The verdicts of a verdict map for this packet: several where it is unknown which element matches."""
    data = body["data"]
    elements = sets.get(data[1:], []) if isinstance(data, str) else data.get("set", [])
    possible: list[Mapping[str, Any]] = []
    for key, verdict in sorted(elements, key=lambda element: element[0] == "*"):
        found = True if key == "*" else same(body["key"], key, packet)
        if found is not False:
            possible.append(verdict)
        if found:
            return possible
    return [*possible, {"continue": None}]  # a lookup that finds nothing ends the rule
