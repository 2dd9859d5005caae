"""Rules without effect, against taking each rule away and asking the oracle again about every kind of packet."""

from __future__ import annotations

import dataclasses
import functools
import json
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import worlds
from tests.worlds import address, network
from vpcctl.analysis import packetset
from vpcctl.analysis.anomalies import Idle, idle_rules, idle_to_json
from vpcctl.analysis.impact import forecast
from vpcctl.analysis.packetset import Space
from vpcctl.analysis.reachability import FLOWS, Reach
from vpcctl.documents.policies import read_policy
from vpcctl.model import oracle
from vpcctl.model.network import Peering, Subnet, Vpc, World
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import ICMP, TCP, UDP, Action, Direction, Endpoint, Limit, Policy, Rule

# -- a universe of few packets -------------------------------------------------------------------------------------

# One packet of every kind that the rules below tell apart, and no kind is left out.  The senders are in three VPCs that
# are peered, so that nothing but the gate says no.
SENDERS = {
    "alpha": ("10.0.0.2", "10.0.0.3", "10.0.0.9"),
    "near": ("203.0.113.7", "203.0.113.200"),
    "far": ("198.51.100.9",),
}
RECEIVERS = ("10.0.0.2", "10.0.0.3")
SERVICES = (*product((TCP, UDP), (21, 22, 50, 80, 81)), (ICMP, 8), (ICMP, 13), (ICMP, 15), (47, None))

ENDS = tuple(Endpoint("prefix", prefix=network(text)) for text in (
    "0.0.0.0/0", "10.0.0.0/28", "10.0.0.2/31", "10.0.0.3/32", "203.0.113.0/24", "203.0.113.0/25",
))  # fmt: skip
OWN = tuple(Endpoint("prefix", prefix=network(text)) for text in ("10.0.0.0/28", "10.0.0.2/32", "203.0.113.0/24"))


def subnet(vpc: str, prefix: str, policy: Policy | None = None) -> Subnet:
    """A subnet with the senders of a VPC."""
    members = tuple(worlds.instance(vpc, f"one-{number}", text) for number, text in enumerate(SENDERS[vpc]))
    return Subnet("web", (network(prefix),), True, False, members, policy)


def world(rules: tuple[Rule, ...], default: Action) -> World:
    """The senders' VPCs; the receivers' subnet has these rules for its ingress."""
    policy = Policy(worlds.with_origins(list(rules), Direction.INGRESS), None, ((Direction.INGRESS, default),))
    vpcs = (
        Vpc("alpha", (network("10.0.0.0/26"),), 0, (subnet("alpha", "10.0.0.0/28", policy),)),
        Vpc("near", (network("203.0.113.0/24"),), 1, (subnet("near", "203.0.113.0/24"),)),
        Vpc("far", (network("198.51.100.0/24"),), 2, (subnet("far", "198.51.100.0/24"),)),
    )
    return World(vpcs, (Peering("alpha", "near"), Peering("alpha", "far")))


@functools.cache
def matching(rule: Rule) -> frozenset[int]:
    """Which packets of the universe a rule matches, by the oracle's word."""
    asked = world((dataclasses.replace(rule, action=Action.DENY, log=False, limit=None),), Action.ALLOW)
    return frozenset(n for n, flow in enumerate(UNIVERSE) if not oracle.decide(asked, flow).allowed)


UNIVERSE = [
    Flow(Place(vpc, address(source)), Place("alpha", address(destination)), protocol, port)
    for vpc, sources in SENDERS.items()
    for source, destination, (protocol, port) in product(sources, RECEIVERS, SERVICES)
]


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    protocol = draw(st.sampled_from([None, TCP, TCP, UDP, ICMP]))
    ports = types = None
    if protocol in (TCP, UDP):
        ports = draw(st.sampled_from([None, ((22, 22),), ((80, 80),), ((22, 80),), ((80, 65535),), ()]))
    elif protocol == ICMP:
        types = draw(st.sampled_from([None, ((8, 8),), ((0, 0),), ((8, 8), (13, 13))]))
    sources = draw(st.none() | st.lists(st.sampled_from(ENDS), max_size=2).map(tuple))
    destinations = draw(st.sampled_from([None, None, None, *((one,) for one in OWN)]))
    action = draw(st.sampled_from([Action.ALLOW, Action.DENY, Action.ALLOW, Action.DENY, Action.REJECT]))
    limit = Limit(1, "second") if action is Action.ALLOW and draw(st.integers(0, 4)) == 0 else None
    return Rule(action, protocol, ports, types, sources, destinations, draw(st.integers(0, 5)) == 0, limit)


def effects(found: tuple[Rule, ...], default: Action, packet: int, numbers: list[int]) -> set[object]:
    """All that may become of a packet, each limit being exceeded or not: an action, or a rule that does more."""
    possible: set[object] = set()
    for number in numbers:
        if packet in matching(found[number]):
            rule = found[number]
            possible.add(number if rule.log or rule.limit else rule.action)
            if not rule.limit:
                return possible
    return possible | {default}


def deciders(found: tuple[Rule, ...], packet: int, numbers: list[int]) -> list[int | None]:
    """The rules without a limit that match, in order, and None for the default."""
    return [n for n in numbers if not found[n].limit and packet in matching(found[n])] + [None]


def truly_idle(found: tuple[Rule, ...], default: Action) -> dict[int, bool]:
    """Rules without effect by their number, and whether they never match."""
    everything = list(range(len(found)))
    idle = {}
    for number, rule in enumerate(found):
        packets = matching(rule)
        if all(deciders(found, packet, everything[:number])[0] is not None for packet in packets):
            idle[number] = True
        elif not rule.log and not rule.limit:
            without = [other for other in everything if other != number]
            if all(
                effects(found, default, packet, everything) == effects(found, default, packet, without)
                for packet in packets
            ):
                idle[number] = False
    return idle


def told(found: tuple[Rule, ...], default: Action) -> list[Idle]:
    """What is said of the rules, of all packets to the receivers."""
    gate = Reach(world(found, default)).rules("alpha", "web", Direction.INGRESS)
    receivers = [(packetset.number(address(text)),) * 2 for text in RECEIVERS]
    return list(idle_rules(gate, FLOWS & Space.of(None, receivers, None, None)))


ALLOW, DENY = Rule(Action.ALLOW), Rule(Action.DENY)
HTTP = Rule(Action.ALLOW, TCP, ((80, 80),))
RARE = Rule(Action.ALLOW, TCP, ((80, 80),), limit=Limit(1, "second"))


@settings(max_examples=200, deadline=None)
@given(st.lists(rules(), max_size=6).map(tuple), st.sampled_from([Action.ALLOW, Action.DENY]))
@example((RARE, HTTP), Action.DENY)
@example((RARE, dataclasses.replace(HTTP, action=Action.DENY)), Action.DENY)
@example((HTTP, RARE), Action.DENY)
@example((HTTP, HTTP), Action.DENY)
@example((ALLOW, DENY), Action.DENY)
def test_rules_without_effect_are_those_that_can_go(found: tuple[Rule, ...], default: Action) -> None:
    numbers = {f"policy.json#/ingress/{number}": number for number in range(len(found))}
    named = told(found, default)
    assert {numbers[str(one.origin)]: one.shadowed for one in named} == truly_idle(found, default), named
    assert [numbers[str(one.origin)] for one in named] == sorted(numbers[str(one.origin)] for one in named)


@settings(max_examples=100, deadline=None)
@given(st.lists(rules(), max_size=6).map(tuple), st.sampled_from([Action.ALLOW, Action.DENY]))
def test_they_name_the_lines_that_decide_instead(found: tuple[Rule, ...], default: Action) -> None:
    everything = list(range(len(found)))
    numbers = {f"policy.json#/ingress/{number}": number for number in everything} | {"the default": None}
    for one in told(found, default):
        number = numbers[str(one.origin)]
        instead = set()
        for packet in matching(found[number]):
            before = deciders(found, packet, everything[:number])[0]
            if one.shadowed:
                instead.add(before)
            elif before is None:
                instead.add(deciders(found, packet, everything[number + 1 :])[0])
        assert {numbers[str(line)] for line in one.by} == instead, one
        assert len(one.by) == len(instead)


# -- what is said --------------------------------------------------------------------------------------------------


def said(*documents: dict, default: str = "deny") -> list[str]:
    """The sentences about an ingress policy of these rules."""
    policy = read_policy({"ingress": list(documents), "default": {"ingress": default}}, "web.json", "")
    after = World((Vpc("alpha", (network("10.0.0.0/26"),), 0,
                       (Subnet("web", (network("10.0.0.0/28"),), True, False, (), policy),)),))  # fmt: skip
    return list(map(str, forecast(after, after, [("alpha", "web")]).idle))


def allow(**fields: object) -> dict:
    return {"action": "allow", **fields}


def deny(**fields: object) -> dict:
    return {"action": "deny", **fields}


ANY = allow()
NOTHING_SUCH = "can never match: this subnet has no such traffic"
SSH, WEB = {"protocol": "tcp", "port": 22}, {"protocol": "tcp", "port": [80, 443]}


@pytest.mark.parametrize(
    ("documents", "sentences"),
    [
        (
            [allow(**SSH), deny(**SSH)],
            ["web.json#/ingress/1 can never match: web.json#/ingress/0 decides all of it before"],
        ),
        (
            [allow(protocol="tcp", port=80), deny(protocol="tcp", port=443), deny(**WEB)],
            [
                "web.json#/ingress/1 changes nothing: without it web.json#/ingress/2 would decide the same",
                "web.json#/ingress/2 can never match: web.json#/ingress/0, web.json#/ingress/1 decide all of it before",
            ],
        ),
        ([deny(**SSH)], ["web.json#/ingress/0 changes nothing: without it the default would decide the same"]),
        ([allow(**SSH)], []),
        ([deny(log=True, **SSH)], []),
        ([allow(**SSH), allow(limit="1/second", protocol="tcp")], []),
        ([allow(source=[])], [f"web.json#/ingress/0 {NOTHING_SUCH}"]),
        ([allow(destination="10.0.0.32")], [f"web.json#/ingress/0 {NOTHING_SUCH}"]),
        ([allow(protocol="icmp", icmp_type="echo-reply")],
         [f"web.json#/ingress/0 {NOTHING_SUCH}"]),
        ([allow(source="2001:db8::/32")], [f"web.json#/ingress/0 {NOTHING_SUCH}"]),
        ([allow(protocol="icmpv6")], [f"web.json#/ingress/0 {NOTHING_SUCH}"]),
    ],
)  # fmt: skip
def test_what_is_said_of_them(documents: list[dict], sentences: list[str]) -> None:
    assert said(*documents) == sentences


def test_rejecting_is_not_the_same_as_denying() -> None:
    assert said({"action": "reject", **SSH}) == []
    assert len(said(deny(**SSH))) == 1


def test_above_a_limit_what_comes_after_decides() -> None:
    limited = allow(limit="10/second", **SSH)
    assert said(limited, deny(**SSH), allow()) == []
    assert said(allow(**SSH), limited) == [
        "web.json#/ingress/1 can never match: web.json#/ingress/0 decides all of it before"
    ]
    # Without the second line the default would do the same, above the limit too.
    assert said(limited, deny(**SSH)) == [
        "web.json#/ingress/1 changes nothing: without it the default would decide the same"
    ]


def test_many_lines_are_counted() -> None:
    several = [allow(protocol="tcp", port=port) for port in range(1, 7)]
    (sentence,) = said(*several, deny(protocol="tcp", port="1-6"))
    assert sentence == (
        "web.json#/ingress/6 can never match: web.json#/ingress/0, web.json#/ingress/1, web.json#/ingress/2,"
        " web.json#/ingress/3 and 2 more decide all of it before"
    )


def test_both_directions_are_looked_at() -> None:
    document = {
        "egress": [allow(destination="10.0.0.0/8"), deny(destination="10.1.0.0/16")],
        "ingress": [allow(), deny()],
    }
    policy = read_policy(document, "web.json", "")
    subnet = Subnet("web", (network("10.0.0.0/28"),), True, False, (), policy)
    after = World((Vpc("alpha", (network("10.0.0.0/26"),), 0, (subnet,)),))
    found = forecast(after, after, [("alpha", "web")]).idle
    assert [str(one.origin) for one in found] == ["web.json#/ingress/1", "web.json#/egress/1"]
    assert json.dumps([dataclasses.asdict(one) for one in found])


def test_what_leaves_comes_from_the_subnet() -> None:
    document = {"egress": [allow(source="10.0.0.0/29"), allow(source="10.0.0.32")]}
    subnet = Subnet("web", (network("10.0.0.0/28"),), True, False, (), read_policy(document, "web.json", ""))
    after = World((Vpc("alpha", (network("10.0.0.0/26"),), 0, (subnet,)),))
    (one,) = forecast(after, after, [("alpha", "web")]).idle
    assert str(one) == f"web.json#/egress/1 {NOTHING_SUCH}"


def test_other_subnets_are_not_spoken_of() -> None:
    policy = read_policy({"ingress": [allow(), deny()]}, "web.json", "")
    after = World((Vpc("alpha", (network("10.0.0.0/26"),), 0,
                       (Subnet("web", (network("10.0.0.0/28"),), True, False, (), policy),)),))  # fmt: skip
    assert forecast(after, after, []).idle == ()


def test_a_rule_without_effect_as_json_names_lines_as_text() -> None:
    (idle, *_) = told((HTTP, HTTP), Action.DENY)
    assert idle_to_json(idle) == {
        "origin": "policy.json#/ingress/0",
        "shadowed": False,
        "by": ["policy.json#/ingress/1"],
    }
