"""What chains and matches do to a packet, as doctor reads them from a listing."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.listings import (
    ACCEPT,
    BACK,
    DROP,
    FIREWALLS,
    OUT,
    RETURN,
    RIDDLE,
    base,
    chain,
    decided,
    examined,
    header,
    jump,
    matched,
    meta,
    rule,
    severities,
    tracked,
)
from vpcctl.doctor.hook_verdicts import BaseChain, Listing
from vpcctl.doctor.rule_matches import ABSENT, UNKNOWN, SamplePacket, value
from vpcctl.doctor.rule_texts import rule_texts

# --- What chains do ---------------------------------------------------------------------------------------------------


def test_the_policy_decides_what_no_rule_does() -> None:
    assert decided(base(policy="drop")) == "drop"
    assert decided(base(policy="accept")) == "accept"
    assert decided(base(policy="drop"), rule(meta("iifname", "eth9"), ACCEPT)) == "drop"


def test_a_jump_comes_back_and_a_goto_does_not() -> None:
    behind = rule(ACCEPT)
    for verb, end in (("jump", "accept"), ("goto", "drop")):
        objects = [base(policy="drop"), chain("aside"), rule({verb: {"target": "aside"}}), behind]
        assert decided(*objects) == end
        assert decided(*objects, rule(RETURN, of="aside"), rule(DROP, of="aside")) == end
        assert decided(*objects, rule(DROP, of="aside")) == "drop"


def test_a_goto_from_a_jumped_to_chain_comes_back_to_where_the_jump_was() -> None:
    objects = [base(policy="drop"), chain("one"), chain("two"), rule(jump("one")), rule(ACCEPT)]
    inner = [rule({"goto": {"target": "two"}}, of="one"), rule(DROP, of="one")]
    assert decided(*objects, *inner) == "accept"


def test_accept_ends_one_base_chain_and_drop_the_packet() -> None:
    other = base(table="u")
    dropping = {"rule": {"family": "inet", "table": "u", "chain": "forward", "handle": 3, "expr": [DROP]}}
    assert severities(examined(Listing([base(prio=-5), rule(ACCEPT), other, dropping]))) == ["fatal"]


@pytest.mark.parametrize(
    ("kind", "end"), [("icmp", "drop"), ("icmpx", "drop"), ("icmpv6", "accept"), ("tcp reset", "accept")]
)
def test_a_rejection_concerns_packets_that_it_can_answer(kind: str, end: str) -> None:
    ping = dataclasses.replace(OUT, protocol="icmp")
    assert decided(base(), rule({"reject": {"type": kind}}), packet=ping) == end
    assert decided(base(), rule({"reject": {"type": "tcp reset"}})) == "drop"


def test_a_verdict_map_decides_by_its_first_match_or_lets_the_next_rule_do_it() -> None:
    def vmap(*elements: list[Any]) -> dict[str, Any]:
        return rule({"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": list(elements)}}})

    assert decided(base(), vmap(["vpc-shop", DROP])) == "drop"
    assert decided(base(), vmap(["eth9", DROP])) == "accept"
    assert decided(base(), vmap(["eth9", ACCEPT], ["*", DROP])) == "drop"
    assert decided(base(), vmap(["*", DROP], ["vpc-shop", ACCEPT])) == "accept"
    assert decided(base(), vmap(["vpc-shop", jump("aside")]), chain("aside"), rule(DROP, of="aside")) == "drop"


def test_a_map_with_a_key_that_is_not_understood_may_do_any_of_its_verdicts() -> None:
    body = {"key": {"osf": {"key": "name"}}, "data": {"set": [["Linux", DROP]]}}
    assert decided(base(), rule({"vmap": body})) == "unknown"
    assert "handle 7: `vmap" in examined(Listing([base(), rule({"vmap": body})]))[0].what
    body = {"key": {"osf": {"key": "name"}}, "data": {"set": [["Linux", ACCEPT]]}}
    assert decided(base(), rule({"vmap": body})) == "accept"


@pytest.mark.parametrize(
    "statement", [{"queue": {"num": 0}}, {"synproxy": None}, {"notrack": None}, {"xt": None}, {"news": 1}, "news"]
)
def test_a_statement_that_is_not_known_may_do_anything(statement: Any) -> None:
    assert decided(base(), rule(statement)) == "unknown"
    assert decided(base(policy="drop"), rule(statement)) == "unknown"


@pytest.mark.parametrize(
    "condition",
    [
        {"limit": {"rate": 3, "per": "minute"}},
        {"quota": {"val": 1}},
        {"ct count": {"val": 9}},
        {"set": {"op": "add", "elem": "x", "set": "@s", "stmt": [{"limit": {"rate": 1}}]}},
    ],
)
def test_a_condition_on_what_went_before_is_unknown(condition: dict[str, Any]) -> None:
    assert decided(base(), rule(condition, DROP)) == "unknown"
    assert decided(base(), rule(condition, {"log": None})) == "accept"


@pytest.mark.parametrize("statement", [{"jump": None}, {"vmap": {}}, {"match": None}, {"match": {"right": {"set": 1}}}])
def test_a_statement_of_a_shape_that_is_not_known_may_do_anything(statement: dict[str, Any]) -> None:
    assert decided(base(), rule(statement, DROP)) == "unknown"


def test_a_jump_in_circles_or_to_nowhere_is_unknown() -> None:
    assert decided(base(), chain("aside"), rule(jump("aside")), rule(jump("aside"), of="aside")) == "unknown"
    assert decided(base(), rule(jump("nowhere"))) == "unknown"


def test_marks_are_zero_unless_some_rule_sets_them() -> None:
    marked = rule(meta("mark", 1), DROP)
    assert severities(examined(Listing([base(), marked]))) == ["ok"]
    setting = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}
    found = examined(Listing([base(), marked, base(table="u"), rule(meta("iifname", "eth0"), setting)]))
    assert severities(found) == ["warning"]


def test_a_listings_text_gives_rules_their_words() -> None:
    text = rule_texts((FIREWALLS / "ufw.txt").read_text())
    assert text["ip", "filter", 17] == "ct state related,established accept"
    assert text["ip", "filter", 21] == 'limit rate 3/minute burst 10 packets log prefix "[UFW BLOCK] "'


def test_a_table_that_sleeps_drops_nothing() -> None:
    objects = [base(policy="drop")]
    asleep = "table inet u { # handle 1\n}\ntable inet t { # handle 2\n\tflags owner,dormant\n"
    assert severities(examined(Listing(objects, "table inet u { # handle 1\n\tflags dormant\n}\n"))) == ["fatal"]
    assert severities(examined(Listing(objects, asleep))) == ["ok"]


SHAPES = st.recursive(
    st.none() | st.integers() | st.sampled_from(["accept", "drop", "vpc-shop", "@s", "*", "0.0.0.0", ""]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from("match vmap jump xt set elem concat & prefix range left right op key data target val meta ct"
                        " payload fib protocol field dir flags type name addr len accept drop counter |".split()),
        inner,
        max_size=3,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(SHAPES, max_size=3))
@settings(max_examples=400, deadline=None)
def test_whatever_a_newer_nft_lists_is_answered(expression: list[Any]) -> None:
    objects = [{"set": {"family": "inet", "table": "t", "name": "s", "elem": expression}}, base(), rule(*expression)]
    assert decided(*objects) in ("accept", "drop", "unknown")
    assert severities(examined(Listing([*objects, rule(RIDDLE, DROP)])))[0] in ("ok", "warning", "fatal")


# --- Rules of iptables ------------------------------------------------------------------------------------------------


def by_iptables(name: str, text: str, kind: str = "match", verdict: dict[str, Any] | None = None) -> Listing:
    expression = [{"xt": {"type": kind, "name": name}}, *([verdict] if verdict else [])]
    lines = f"table inet t {{ # handle 1\n\tchain forward {{ # handle 2\n\t\t{text} # handle 7\n\t}}\n}}"
    return Listing([base(), rule(*expression)], lines)


@pytest.mark.parametrize(
    ("name", "text", "new", "answer"),
    [
        ("conntrack", "ct state new counter drop", "drop", "accept"),
        ("state", "ct state related,established counter drop", "accept", "drop"),
        ("conntrack", "ct state != related,established counter drop", "drop", "accept"),
        # What `--ctstate DNAT,NEW` is translated to has lost a half.
        ("conntrack", "ct status dnat counter drop", "unknown", "unknown"),
        ("conntrack", "ct state new ct status dnat drop", "unknown", "unknown"),
        ("conntrack", "xt match conntrack counter drop", "unknown", "unknown"),
        ("addrtype", "fib daddr type local counter drop", "accept", "accept"),
        ("addrtype", "fib saddr type unicast counter drop", "drop", "drop"),
        ("comment", 'counter drop comment "ct state new"', "drop", "drop"),
        ("physdev", "xt match physdev counter drop", "unknown", "unknown"),
    ],
)
def test_a_match_of_iptables_is_taken_from_its_translation_where_that_is_beyond_doubt(
    name: str, text: str, new: str, answer: str
) -> None:
    listing = by_iptables(name, text, verdict=DROP)
    [hooked] = listing.on("forward")
    assert [listing.decide(hooked, packet).verdict for packet in (OUT, BACK)] == [new, answer]


@pytest.mark.parametrize(
    ("target", "end"),
    [("REJECT", "drop"), ("LOG", "accept"), ("TCPMSS", "accept"), ("NFQUEUE", "unknown"), ("CT", "unknown")],
)
def test_a_target_of_iptables_ends_the_packet_or_lets_it_go_on(target: str, end: str) -> None:
    listing = by_iptables(target, "counter", "target")
    assert listing.decide(listing.on("forward")[0], OUT).verdict == end


# --- Matches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "truth"),
    [
        (meta("iifname", "vpc-shop"), True),
        (meta("iifname", "vpc-*"), True),
        (meta("iifname", "br-*", "!="), True),
        (meta("oif", "eth0"), True),
        (meta("oifname", {"set": ["eth1", "eth0"]}), True),
        (meta("oifname", {"set": ["eth1", "eth0"]}, "!="), False),
        (meta("nfproto", "ipv6"), False),
        (meta("protocol", "ip"), True),
        (meta("l4proto", "tcp"), True),
        (meta("l4proto", 17), False),
        (meta("l4proto", {"set": ["icmp", "ipv6-icmp"]}), False),
        (meta("mark", 0, "!="), False),
        (meta("time", "noon"), None),
        (header("ip", "saddr", "100.64.0.1"), True),
        (header("ip", "saddr", {"prefix": {"addr": "100.64.0.0", "len": 10}}), True),
        (header("ip", "saddr", {"range": ["100.64.0.2", "100.64.0.9"]}), False),
        (header("ip", "saddr", {"set": [{"range": ["100.64.0.0", "100.64.0.9"]}]}), True),
        (header("ip", "protocol", "udp"), False),
        (header("ip", "ttl", 1), None),
        (header("ip6", "saddr", "::1", "!="), False),
        (header("tcp", "dport", 443), True),
        (header("tcp", "dport", {"range": [1, 1024]}), True),
        (header("tcp", "dport", 1024, "<"), True),
        (header("udp", "dport", 53, "!="), False),
        (header("th", "dport", {"set": [80, 443]}), True),
        (header("icmp", "type", "echo-request"), False),
        (header("ether", "saddr", "02:00:00:00:00:01"), None),
        (tracked("state", "new"), True),
        (tracked("state", ["established", "related"]), False),
        (tracked("state", {"set": ["established", "new"]}, "=="), True),
        (tracked("state", "invalid", "!="), True),
        (tracked("state", "new", "!="), False),
        (tracked("state", ["new", "related"], "!="), True),  # it is not both of them
        (tracked("state", ["new", "related"], "none of"), False),
        (tracked("status", "snat", "!="), None),
        (tracked("status", "dnat"), False),
        (tracked("direction", "original", "=="), True),
        (tracked("helper", "ftp"), None),
    ],
)
def test_a_match_is_true_false_or_unknown(statement: dict[str, Any], truth: bool | None) -> None:
    assert matched(statement) is truth


@pytest.mark.parametrize(
    ("right", "truth"),
    [
        ({"prefix": {"addr": "0.0.0.0", "len": 0}}, True),
        ({"prefix": {"addr": "10.0.0.0", "len": 8}}, False),
        ({"prefix": {"addr": "203.0.113.0", "len": 24}}, False),
        ({"set": [{"prefix": {"addr": "0.0.0.0", "len": 1}}, {"prefix": {"addr": "128.0.0.0", "len": 1}}]}, True),
        ({"range": ["0.0.0.0", "223.255.255.255"]}, True),
        ("198.51.100.7", False),
        ("host.example", None),
    ],
)
def test_somebody_in_the_internet_is_where_most_addresses_are(right: Any, truth: bool | None) -> None:
    assert matched(header("ip", "daddr", right)) is truth
    assert matched(header("ip", "daddr", right, "!=")) is (None if truth is None else not truth)


def test_the_beginner_of_a_flow_is_the_same_in_both_directions() -> None:
    opened = {"match": {"op": "==", "left": {"ct": {"key": "ip saddr", "dir": "original"}}, "right": "100.64.0.1"}}
    assert (matched(opened), matched(opened, BACK)) == (True, True)
    assert matched(opened, dataclasses.replace(BACK, opener=None)) is False
    answering = {"match": {"op": "==", "left": {"ct": {"key": "ip saddr", "dir": "reply"}}, "right": "100.64.0.1"}}
    assert matched(answering) is None


def test_an_answer_has_its_own_state_ports_and_flags() -> None:
    assert matched(tracked("state", ["established", "related"]), BACK)
    assert matched(tracked("direction", "reply", "=="), BACK)
    assert matched(header("tcp", "sport", 443), BACK)
    assert matched(header("tcp", "dport", 443), BACK) is False
    assert matched(header("th", "dport", 53, "!="), dataclasses.replace(OUT, protocol="icmp")) is None
    assert matched(header("th", "sport", 8 << 8), dataclasses.replace(OUT, protocol="icmp"))
    syn = {"match": {"op": "==", "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}},
                                                ["fin", "syn", "rst", "ack"]]}, "right": "syn"}}  # fmt: skip
    assert (matched(syn), matched(syn, BACK)) == (True, False)


def test_a_named_set_is_looked_up_and_one_of_several_fields_needs_all_of_them() -> None:
    both = {"concat": [{"meta": {"key": "iifname"}}, {"payload": {"protocol": "ip", "field": "saddr"}}]}
    statement = {"match": {"op": "==", "left": both, "right": "@s"}}
    ours, other = {"concat": ["vpc-shop", "100.64.0.1"]}, {"concat": ["vpc-shop", "100.64.0.3"]}
    assert matched(statement, sets={"s": [other, {"elem": {"val": ours, "comment": "x"}}]}) is True
    assert matched(statement, sets={"s": [other]}) is False
    assert matched(statement, sets={}) is False


def test_a_field_that_the_packet_has_not_makes_every_match_false() -> None:
    ping = SamplePacket("vpc-shop", "eth0", IPv4Address("100.64.0.1"), None, "icmp")
    for op in ("==", "!=", "<"):
        assert matched(header("tcp", "dport", 443, op), ping) is False
        assert matched(header("tcp", "dport", {"set": [443]}, op), ping) is (None if op == "<" else False)
    assert value({"payload": {"protocol": "tcp", "field": "dport"}}, ping) is ABSENT
    assert value({"payload": {"protocol": "mystery", "field": "x"}}, ping) is UNKNOWN


def test_a_base_chain_of_another_family_sees_none_of_our_packets() -> None:
    assert Listing([base(family="bridge", policy="drop"), base(family="ip6", policy="drop")]).on("forward") == []
    assert Listing([base(family="ip")]).on("forward") == [BaseChain("forward", "ip", "t", "forward", 0, "accept")]
