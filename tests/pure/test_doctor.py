"""What doctor concludes from what it sees: other people's rulesets, prefixes, files.  tests/lab/test_doctor.py makes
the same problems for real; the rulesets in tests/firewalls are as nft lists them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpcctl.doctor import (
    foreign_firewalls,
    legacy_tables,
    link_managers,
    name_servers,
    prefix_overlaps,
    source_checks,
    state_directory,
    system,
)
from vpcctl.doctor.apart import apart
from vpcctl.doctor.finding import Finding, worst_first
from vpcctl.doctor.foreign_firewalls import Passage
from vpcctl.doctor.hook_verdicts import BaseChain, Listing
from vpcctl.doctor.rule_matches import ABSENT, UNKNOWN, SamplePacket, match, value
from vpcctl.doctor.rule_texts import rule_texts
from vpcctl.engine.state import State, Store
from vpcctl.errors import KernelError
from vpcctl.model.host import Host
from vpcctl.model.network import Instance, Subnet, Vpc, World

FIREWALLS = Path(__file__).parents[1] / "firewalls"
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


# --- Other people's firewalls -----------------------------------------------------------------------------------------


def test_without_foreign_chains_everything_passes() -> None:
    [only] = examined(Listing([]))
    assert (only.severity, only.what) == ("ok", "no foreign chain drops the VPCs' packets; chains checked: 0")


def test_dockers_policy_drops_our_packets_both_ways() -> None:
    [found] = examined(firewall("docker"), SHOP, BLUE)
    assert found.severity == "fatal"
    assert found.what == (
        "Docker: table ip filter, chain FORWARD: `policy drop` drops packets from VPCs and replies to VPCs"
        " (tcp/443, udp/53, icmp of vpc-shop, vpc-blue)"
    )


def test_dockers_remedy_is_told_in_iptables_words_where_there_is_iptables() -> None:
    [found] = examined(firewall("docker"), iptables_nft="iptables")
    assert found.commands == (
        "iptables -I DOCKER-USER -i vpc-+ -o eth0 -j ACCEPT",
        "iptables -I DOCKER-USER -o vpc-+ -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    )


def test_dockers_remedy_is_told_in_nfts_words_elsewhere() -> None:
    [found] = examined(firewall("docker"), iptables_legacy="iptables")  # which knows nothing of nft's tables
    assert found.commands == (
        'nft insert rule ip filter DOCKER-USER iifname "vpc-*" oifname "eth0" accept',
        'nft insert rule ip filter DOCKER-USER oifname "vpc-*" ct state established,related accept',
    )


def test_where_a_rule_drops_before_dockers_chain_is_asked_the_remedy_comes_before_that_rule() -> None:
    objects = json.loads((FIREWALLS / "docker.json").read_text())
    first = {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 99,
                      "expr": [meta("iifname", "vpc-*"), DROP]}}  # fmt: skip
    place = next(number for number, one in enumerate(objects) if "rule" in one)
    [found] = examined(Listing([*objects[:place], first, *objects[place:]]))
    assert "chain FORWARD, handle 99: `iifname == vpc-* drop` drops packets from VPCs" in found.what
    assert found.commands[0] == 'nft insert rule ip filter FORWARD iifname "vpc-*" oifname "eth0" accept'


def opened(listing: Listing, name: str, *conditions: dict[str, Any]) -> Listing:
    """The listing with an accepting rule at the head of a chain of its first table with a forward hook."""
    [hooked] = [one for one in listing.on("forward") if one.name in ("FORWARD", "filter_FORWARD", "forward")]
    return listing.with_rule(hooked, name, [*conditions, ACCEPT])


def test_dockers_remedy_helps_only_as_a_whole() -> None:
    half = opened(firewall("docker"), "DOCKER-USER", meta("iifname", "vpc-*"))
    assert severities(examined(half)) == ["fatal"]
    assert severities(examined(opened(half, "DOCKER-USER", meta("oifname", "vpc-*")))) == ["ok"]


def test_firewalld_rejects_what_we_send_and_lets_answers_pass() -> None:
    beside = dataclasses.replace(SHOP, others=(IPv4Network("192.0.2.0/24"),))
    [found] = examined(firewall("firewalld"), beside, firewall_cmd="firewall-cmd")
    assert found.severity == "fatal"
    assert found.what.startswith("firewalld: table inet firewalld, chain filter_FWD_public, handle ")
    assert "drops packets from VPCs (tcp/443, udp/53, icmp of vpc-shop)" in found.what
    policy = "firewall-cmd --permanent --policy=vpcctl-out"
    zone = "firewall-cmd --get-zone-of-interface=eth0 2>/dev/null"
    default = "firewall-cmd --get-default-zone"
    assert found.commands == (
        "firewall-cmd --permanent --new-zone=vpcctl",
        "firewall-cmd --permanent --zone=vpcctl --add-source=100.64.0.0/16",
        "firewall-cmd --permanent --new-policy=vpcctl-out",
        f"{policy} --set-target=ACCEPT",
        f"{policy} --add-ingress-zone=vpcctl",
        f'{zone} || firewall-cmd --permanent --zone="$({default})" --add-interface=eth0',
        f'{policy} --add-egress-zone="$({zone} || {default})"',
        f"{policy} --add-rich-rule='rule family=ipv4 destination address=192.0.2.0/24 reject'",
        "firewall-cmd --reload",
    )


def test_firewalld_lets_us_pass_once_the_uplinks_are_in_the_trusted_zone() -> None:
    listing = firewall("firewalld")
    [hooked] = listing.on("forward")
    dispatch = header("ip", "saddr", {"prefix": {"addr": "100.64.0.0", "len": 16}})
    trusting = listing.with_rule(hooked, "filter_FORWARD_ZONES", [dispatch, {"goto": {"target": "filter_FWD_trusted"}}])
    assert severities(examined(trusting)) == ["ok"]


def test_ufw_drops_what_we_send_and_its_own_words_open_it() -> None:
    listing = firewall("ufw")
    [found] = examined(listing, iptables_nft="iptables", ufw="ufw")
    assert (found.severity, found.commands) == ("fatal", ("ufw route allow out on eth0 from 100.64.0.0/16",))
    assert "ufw: table ip filter, chain FORWARD: `policy drop` drops packets from VPCs (tcp/443, udp/53" in found.what
    assert "answers" not in found.what
    source = header("ip", "saddr", {"prefix": {"addr": "100.64.0.0", "len": 16}})
    assert severities(examined(opened(listing, "ufw-user-forward", source))) == ["ok"]


def test_libvirts_own_network_is_not_in_our_way() -> None:
    [found] = examined(firewall("libvirt"))
    assert (found.severity, found.what) == ("ok", "no foreign chain drops the VPCs' packets; chains checked: 1")


def test_only_the_vpc_that_a_rule_names_is_affected() -> None:
    passing = examined(firewall("router"), Passage("vpc-shop", IPv4Address("100.64.0.9"), "eth0"))
    assert severities(passing) == ["ok"]
    [blocked] = examined(firewall("router"), SHOP)
    assert "chain vpcs, handle" in blocked.what
    assert "of vpc-shop" in blocked.what
    [unnamed] = examined(firewall("router"), Passage("vpc-blue", IPv4Address("100.64.0.9"), "eth0"))
    assert "policy drop" in unnamed.what


@pytest.mark.parametrize(
    ("hook", "command"),
    [
        ("prerouting", 'nft insert rule inet t bogons iifname "vpc-*" fib daddr oifname "eth0" accept'),
        ("postrouting", 'nft insert rule inet t bogons oifname "eth0" ct original ip saddr 100.64.0.0/16 accept'),
    ],
)
def test_a_drop_before_or_after_the_forward_hook_counts_too(hook: str, command: str) -> None:
    from_us = header("ip", "saddr", {"prefix": {"addr": "100.64.0.0", "len": 10}})
    objects = [base(name="bogons", hook=hook, prio=-300), rule(from_us, DROP, of="bogons")]
    [found] = examined(Listing(objects))
    assert (found.severity, found.commands) == ("fatal", (command,))
    [hooked] = Listing(objects).on(hook)
    judged = foreign_firewalls.verdicts(Listing(objects), (), [SHOP])
    members = [one for one in judged if one.decision.verdict == "drop"]
    [opening] = foreign_firewalls._openings(hooked, members, TRANSIT)
    assert severities(examined(Listing(objects).with_rule(hooked, "bogons", [*opening.json, ACCEPT]))) == ["ok"]


def test_an_answer_is_the_hosts_until_it_is_translated_back() -> None:
    known = dataclasses.replace(SHOP, host=IPv4Address("198.51.100.2"))
    to_host = header("ip", "daddr", "198.51.100.2")
    for priority, end in ((-300, "fatal"), (-100, "fatal"), (0, "ok")):
        objects = [base(name="c", hook="prerouting", prio=priority), rule(to_host, DROP, of="c")]
        assert severities(examined(Listing(objects), known)) == [end]
    raw = Listing([base(name="c", hook="prerouting", prio=-300), rule(to_host, DROP, of="c")])
    assert severities(examined(raw)) == ["warning"]  # whose address that is, is not known
    [found] = examined(raw, known)
    assert (found.commands, "No rule at the head of a chain helps" in found.remedy) == ((), True)


def test_what_leaves_is_the_hosts_once_it_is_translated() -> None:
    known = dataclasses.replace(SHOP, host=IPv4Address("198.51.100.2"))
    from_host = header("ip", "saddr", "198.51.100.2")
    for priority, end in ((0, "ok"), (200, "fatal")):
        objects = [base(name="c", hook="postrouting", prio=priority), rule(from_host, DROP, of="c")]
        assert severities(examined(Listing(objects), known)) == [end]


def test_where_it_came_in_is_not_known_when_it_leaves() -> None:
    objects = [base(name="c", hook="postrouting"), rule(meta("iifname", "vpc-shop"), DROP, of="c")]
    assert severities(examined(Listing(objects))) == ["warning"]
    objects = [base(name="c", hook="prerouting"), rule(meta("oifname", "eth0"), DROP, of="c")]
    assert severities(examined(Listing(objects))) == ["ok"]


def test_an_answer_has_to_leave_for_the_uplink_too() -> None:
    objects = [
        base(name="c", hook="postrouting", policy="drop"),
        rule(header("ip", "saddr", "100.64.0.1"), ACCEPT, of="c"),
    ]
    [found] = examined(Listing(objects))
    assert "drops replies to VPCs" in found.what


def test_our_own_tables_are_not_judged() -> None:
    objects = [base(table="vpcctl", policy="drop")]
    assert severities(examined(Listing(objects))) == ["ok"]
    assert severities(foreign_firewalls.findings(Listing(objects), (), (SHOP,), TRANSIT)) == ["fatal"]


def test_a_published_port_has_to_get_in() -> None:
    published = dataclasses.replace(SHOP, published=(("tcp", 8080),))
    answers = rule(tracked("state", ["established", "related"]), ACCEPT)
    objects = [base(policy="drop"), answers, rule(meta("iifname", "vpc-*"), ACCEPT)]
    assert severities(examined(Listing(objects))) == ["ok"]
    [found] = examined(Listing(objects), published)
    assert "drops packets to published ports (tcp/8080 of vpc-shop)" in found.what
    forwarded = rule(tracked("status", "dnat"), ACCEPT)
    assert severities(examined(Listing([*objects, forwarded]), published)) == ["ok"]


def test_a_drop_of_pings_alone_is_no_more_than_a_warning() -> None:
    [found] = examined(Listing([base(), rule(meta("l4proto", "icmp"), DROP)]))
    assert (found.severity, "(icmp of vpc-shop)" in found.what) == ("warning", True)


def test_what_is_not_understood_is_said_with_the_rules_text_and_never_called_fine() -> None:
    text = (
        'table inet t { # handle 1\n\tchain forward { # handle 2\n\t\tosf name "Linux" counter drop # handle 7\n\t}\n}'
    )
    [found] = examined(Listing([base(), rule(RIDDLE, {"counter": None}, DROP)], text))
    assert found.severity == "warning"
    assert 'table inet t, chain forward, handle 7: `osf name "Linux" drop`' in found.what
    assert found.commands


def test_a_riddle_that_cannot_change_the_end_is_no_doubt() -> None:
    assert severities(examined(Listing([base(), rule(RIDDLE, ACCEPT)]))) == ["ok"]
    assert severities(examined(Listing([base(), rule(RIDDLE, {"log": None})]))) == ["ok"]
    assert severities(examined(Listing([base(policy="drop"), rule(RIDDLE, DROP)]))) == ["fatal"]


def test_the_remedy_for_a_doubt_takes_the_doubt_away() -> None:
    listing = Listing([base(policy="drop"), rule(RIDDLE, ACCEPT)])
    assert severities(examined(listing)) == ["warning"]
    for key in ("iifname", "oifname"):
        listing = listing.with_rule(listing.on("forward")[0], "forward", [meta(key, "vpc-*"), ACCEPT])
    assert severities(examined(listing)) == ["ok"]


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


# --- The old xtables --------------------------------------------------------------------------------------------------


def entry(target: bytes, come: bytes = b"", go: bytes = b"", matches: bytes = b"", inverted: int = 0) -> bytes:
    """One struct ipt_entry; names end with a zero unless they stand for all that begin so."""
    masks = [b"\xff" * len(one) for one in (come, go)]
    head = legacy_tables.ENTRY.pack(
        *[bytes(4)] * 4, come, go, *masks, 0, 0, inverted, 0,
        legacy_tables.ENTRY.size + len(matches), legacy_tables.ENTRY.size + len(matches) + len(target), 0, 0, 0,
    )  # fmt: skip
    return head + matches + target


def standard(verdict: int) -> bytes:
    return legacy_tables.EXTENSION.pack(40, b"", 0) + struct.pack("=i4x", verdict)


def error(name: bytes) -> bytes:
    return legacy_tables.EXTENSION.pack(64, b"ERROR", 0) + name.ljust(32, b"\0")


def states(mask: int, revision: int = 3, asked: int = 1) -> bytes:
    data = bytearray(160)
    legacy_tables.CONNTRACK.pack_into(data, legacy_tables.CONNTRACK_AT, asked, 0, mask)
    return legacy_tables.EXTENSION.pack(192, b"conntrack", revision) + bytes(data)


def legacy_table(*rules: bytes, policy: int = -1, chains: bytes = b"") -> Listing:
    """A table `filter` with one chain FORWARD."""
    body = b"".join(rules)
    block = body + entry(standard(policy)) + chains + entry(error(b"ERROR"))
    table = legacy_tables.LegacyTable("filter", {"forward": 0}, {"forward": len(body)}, block)
    return Listing(list(legacy_tables.listing(table)))


def test_a_legacy_tables_policy_counts() -> None:
    [found] = examined(legacy_table(), iptables_nft="iptables", iptables_legacy="iptables-legacy")
    assert "table ip filter-legacy, chain FORWARD: `policy drop`" in found.what
    assert found.commands[0] == "iptables-legacy -I FORWARD -i vpc-+ -o eth0 -j ACCEPT"
    assert severities(examined(legacy_table(policy=-2))) == ["ok"]


def test_a_legacy_tables_rules_are_read() -> None:
    out, back = entry(standard(-2), come=b"vpc-"), entry(standard(-2), go=b"vpc-", matches=states(2 | 4))
    assert severities(examined(legacy_table(out, back))) == ["ok"]
    [found] = examined(legacy_table(out))
    assert "drops replies to VPCs" in found.what
    other = entry(standard(-2), come=b"vpc-\0")  # a link of exactly that name
    assert severities(examined(legacy_table(other, back))) == ["fatal"]


def test_a_legacy_rule_that_asks_for_more_than_states_is_not_guessed() -> None:
    dnat = 256
    maybe = entry(standard(-2), matches=states(2 | 8 | dnat))
    assert severities(examined(legacy_table(maybe))) == ["warning"]
    for clear in (states(2 | 8, revision=1), states(2 | 8, asked=0x2001)):
        assert severities(examined(legacy_table(entry(standard(-2), matches=clear)))) == ["ok"]
    for unclear in (states(2 | 8, asked=3), states(2 | 8, revision=0)):
        assert severities(examined(legacy_table(entry(standard(-2), matches=unclear)))) == ["warning"]
    assert severities(examined(legacy_table(entry(standard(-2), matches=states(2 | 8))))) == ["ok"]


def test_a_legacy_rule_without_a_target_lets_the_next_one_decide() -> None:
    counting = entry(standard(len(entry(standard(0)))))
    assert severities(examined(legacy_table(counting, entry(standard(-2))))) == ["ok"]
    assert severities(examined(legacy_table(counting, entry(standard(-1)), policy=-2))) == ["fatal"]


def test_a_legacy_jump_goes_to_the_chain_of_its_offset() -> None:
    head = entry(error(b"mine"))
    first = len(entry(standard(0))) + len(entry(standard(-1))) + len(head)
    chains = head + entry(standard(-2)) + entry(standard(-5))
    assert severities(examined(legacy_table(entry(standard(first)), chains=chains))) == ["ok"]
    without = head + entry(standard(-5))
    assert severities(examined(legacy_table(entry(standard(first)), chains=without))) == ["fatal"]


def test_where_there_are_no_legacy_tables_none_is_asked_for(tmp_path: Path) -> None:
    assert legacy_tables.table_names(tmp_path) == []
    (tmp_path / "net").mkdir()
    (tmp_path / "net/ip_tables_names").write_text("filter\nnat\n")
    assert legacy_tables.table_names(tmp_path) == ["filter", "nat"]


# --- Prefixes ---------------------------------------------------------------------------------------------------------


def reached(prefix: str) -> list[prefix_overlaps.Reached]:
    return [prefix_overlaps.Reached(IPv4Network(prefix), "tun0", f"route to {prefix}")]


def shop() -> World:
    instances = (Instance("web", (IPv4Address("10.0.1.2"),), "02:00:00:00:00:01"),)
    subnet = Subnet("web", (ip_network("10.0.1.0/24"),), True, instances=instances)
    return World((Vpc("shop", (ip_network("10.0.0.0/16"),), 0, (subnet,)),))


@pytest.mark.parametrize(
    ("world", "prefix", "severity"),
    [
        (shop(), "100.64.0.0/24", "fatal"),
        (shop(), "100.64.0.0/10", "fatal"),
        (World(), "100.64.0.0/24", "warning"),
        (shop(), "10.0.0.0/8", "warning"),
        (shop(), "10.0.200.0/24", "warning"),
        (shop(), "10.1.0.0/16", "ok"),
        (World(), "10.0.0.0/8", "ok"),
    ],
)
def test_a_prefix_that_the_host_has_too_is_found(world: World, prefix: str, severity: str) -> None:
    [found] = prefix_overlaps.findings(world, reached(prefix))
    assert found.severity == severity
    assert (prefix in found.what) == (severity != "ok")


# --- Network managers -------------------------------------------------------------------------------------------------


def files(root: Path, contents: Mapping[str, str]) -> list[Finding]:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return list(link_managers.findings(root))


NM, NETWORKD, UDEV = "run/NetworkManager/x", "run/systemd/netif/x", "run/udev/control"


def test_nobody_who_takes_links_is_fine(tmp_path: Path) -> None:
    assert severities(files(tmp_path, {})) == ["ok"]


@pytest.mark.parametrize(
    ("place", "text", "severity"),
    [
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=interface-name:vpc-*\n", "ok"),
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices+=mac:aa;interface-name:v*\n", "ok"),
        ("etc/NetworkManager/NetworkManager.conf", "[keyfile]\nunmanaged-devices=*\n", "ok"),
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices-=interface-name:vpc-*\n", "warning"),
        ("usr/lib/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=interface-name:vpc-*\n", "ok"),
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=interface-name:docker*\n", "warning"),
        ("etc/NetworkManager/conf.d/a.conf", "[keyfile]\n#unmanaged-devices=interface-name:vpc-*\n", "warning"),
        ("etc/NetworkManager/conf.d/a.conf", "[main]\nunmanaged-devices=interface-name:vpc-*\n", "warning"),
        ("etc/hosts", "", "warning"),
    ],
)  # fmt: skip
def test_networkmanager_has_to_be_told(tmp_path: Path, place: str, text: str, severity: str) -> None:
    assert severities(files(tmp_path, {NM: "", place: text})) == [severity]


@pytest.mark.parametrize(
    ("contents", "severity"),
    [
        ({}, "ok"),
        ({"etc/systemd/network/10-lan.network": "[Match]\nName=eth*\n[Network]\nDHCP=yes\n"}, "ok"),
        ({"etc/systemd/network/10-all.network": "[Match]\nName=*\n[Network]\nDHCP=yes\n"}, "warning"),
        ({"etc/systemd/network/10-all.network": "[Match]\nType=ether\n[Network]\nDHCP=yes\n"}, "warning"),
        ({"etc/systemd/network/10-all.network": "[Match]\nName=!eth*\n[Network]\nDHCP=yes\n"}, "warning"),
        ({"etc/systemd/network/10-all.network": "[Match]\nType=ether\nMACAddress=02:00:00:00:00:01\n"}, "ok"),
        ({"usr/lib/systemd/network/80-ve.network": "[Match]\nKind=veth\nName=ve-*\n"}, "ok"),
        (
            {
                "etc/systemd/network/05-vpcctl.network": "[Match]\nName=vpc-*\n[Link]\nUnmanaged=yes\n",
                "etc/systemd/network/10-all.network": "[Match]\nName=*\n",
            },
            "ok",
        ),
        (
            {
                "etc/systemd/network/10-all.network": "[Match]\nName=*\n",
                "etc/systemd/network/20-vpcctl.network": "[Match]\nName=vpc-*\n[Link]\nUnmanaged=yes\n",
            },
            "warning",
        ),
    ],
)
def test_networkd_takes_what_the_first_matching_file_says(
    tmp_path: Path, contents: dict[str, str], severity: str
) -> None:
    assert severities(files(tmp_path, {NETWORKD: "", **contents})) == [severity]


def test_udev_is_in_the_way_only_where_it_renames(tmp_path: Path) -> None:
    ordinary = "[Match]\nOriginalName=*\n[Link]\nNamePolicy=keep kernel path\nMACAddressPolicy=persistent\n"
    assert severities(files(tmp_path, {UDEV: "", "usr/lib/systemd/network/99-default.link": ordinary})) == ["ok"]
    renaming = "[Match]\nDriver=veth\n[Link]\nName=wire0\n"
    assert severities(files(tmp_path, {"etc/systemd/network/10-veth.link": renaming})) == ["warning"]


# --- Limits and versions ----------------------------------------------------------------------------------------------


def sysctls(root: Path, **values: int) -> Path:
    for name, number in values.items():
        path = root / ("net/ipv4/neigh/default" if name.startswith("gc") else "net/netfilter") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n")
    return root


@pytest.mark.parametrize(
    ("most", "buckets", "count", "expected"),
    [(1000, 500, 10, ["ok"]), (1000, 500, 900, ["warning"]), (10000, 500, 10, ["ok", "warning"])],
)
def test_connection_tracking_that_is_nearly_full_or_slow_is_found(
    tmp_path: Path, most: int, buckets: int, count: int, expected: list[str]
) -> None:
    root = sysctls(tmp_path, nf_conntrack_max=most, nf_conntrack_buckets=buckets, nf_conntrack_count=count,
                   nf_conntrack_tcp_loose=1)  # fmt: skip
    assert severities(list(system.connection_tracking(World(), root))) == expected


def test_a_hidden_setting_of_connection_tracking_is_noted(tmp_path: Path) -> None:
    root = sysctls(tmp_path, nf_conntrack_max=1000, nf_conntrack_count=1)
    found = list(system.connection_tracking(World(), root))
    assert severities(found) == ["ok", "note"]
    assert "tcp_loose" in found[1].what
    assert severities(list(system.connection_tracking(World(), tmp_path / "nothing"))) == ["note"]


@pytest.mark.parametrize(("most", "expected"), [(1, ["warning"]), (1024, ["ok"])])
def test_a_neighbour_table_that_is_too_small_for_the_instances_is_found(
    tmp_path: Path, most: int, expected: list[str]
) -> None:
    found = list(system.neighbours(shop(), sysctls(tmp_path, gc_thresh3=most)))
    assert severities(found) == expected
    assert bool(found[0].commands) == (expected == ["warning"])


def test_an_old_python_is_fatal() -> None:
    assert severities([*system.python((3, 10, 14)), *system.python((3, 11, 0)), *system.python()]) == [
        "fatal",
        "ok",
        "ok",
    ]


def test_a_run_netns_that_is_no_directory_or_open_to_all_is_found(tmp_path: Path) -> None:
    place = tmp_path / "netns"
    assert severities(list(system.named_namespaces(place))) == ["ok"]
    place.mkdir(mode=0o755)
    assert severities(list(system.named_namespaces(place))) == ["ok"]
    place.chmod(0o777)
    [found] = system.named_namespaces(place)
    assert (found.severity, found.commands) == ("warning", (f"chmod go-w {place}",))
    place.rmdir()
    place.write_text("")
    assert severities(list(system.named_namespaces(place))) == ["fatal"]


# --- The record -------------------------------------------------------------------------------------------------------


def stored(directory: Path, **changes: Any) -> Store:
    store = Store(directory)
    with store.locked() as writer:
        writer.save(State("abcd1234", boot_id="this boot", **changes))
    return store


def test_a_record_that_is_shut_and_whole_is_fine(tmp_path: Path) -> None:
    store = stored(tmp_path / "state")
    state, found = state_directory.read(store)
    assert (found, state is not None) == ([], True)
    assert severities(list(state_directory.standing(state, "this boot", store))) == ["ok"]


def test_a_record_that_others_can_read_is_found_and_shut_by_the_remedy(tmp_path: Path) -> None:
    store = stored(tmp_path / "it's state", world=shop())
    store.directory.chmod(0o755)
    (store.directory / "state.json").chmod(0o644)
    [part] = (store.directory / "parts").iterdir()
    part.chmod(0o640)
    part.parent.chmod(0o755)
    _, found = state_directory.read(store)
    assert severities(found) == ["warning"] * 4
    for one in found:
        assert os.system(one.commands[0]) == 0
    assert state_directory.read(store)[1] == []


def test_a_directory_that_is_a_link_is_found(tmp_path: Path) -> None:
    stored(tmp_path / "state")
    (tmp_path / "link").symlink_to(tmp_path / "state")
    state, found = state_directory.read(Store(tmp_path / "link"))
    assert (state, set(severities(found))) == (None, {"fatal"})


def test_a_damaged_record_is_fatal(tmp_path: Path) -> None:
    store = stored(tmp_path / "state")
    file = store.directory / "state.json"
    file.write_text(file.read_text().replace("abcd1234", "abcd1235"))
    state, found = state_directory.read(store)
    assert (state, severities(found)) == (None, ["fatal"])
    assert "checksum" in found[0].what


def test_an_unfinished_command_and_another_boot_ask_for_repair(tmp_path: Path) -> None:
    from vpcctl.resources.kinds import Namespace

    store = Store(tmp_path)
    made = State(
        "abcd1234", "this boot", 3, shop(), {"shop": (Namespace("shop-router", "vpcctl/abcd1234/shop/router"),)}
    )
    assert severities(list(state_directory.standing(made, "this boot", store))) == ["ok"]
    [found] = state_directory.standing(made, "another boot", store)
    assert (found.severity, found.commands) == ("fatal", (f"vpcctl --state-dir {tmp_path} repair",))
    pending = State("abcd1234", "this boot", 3, shop(), made.record, World())
    assert severities(list(state_directory.standing(pending, "this boot", store))) == ["warning"]


def test_objects_of_another_state_are_strays() -> None:
    mine, other = (
        ("link vpc-a", "vpcctl/abcd1234/a/uplink", "x"),
        ("link vpc-b", "vpcctl/ffff0000/b/uplink", "remove b"),
    )
    assert list(state_directory.strays("abcd1234", True, [mine], Path("/s"))) == []
    [found] = state_directory.strays("abcd1234", True, [mine, other], Path("/s"))
    assert found.commands == ("remove b",)
    assert "link vpc-b belongs to state ffff0000, not to the state in /s" in found.what
    [found] = state_directory.strays("0000aaaa", False, [mine, other], Path("/s"))
    assert "link vpc-a, link vpc-b belong to state abcd1234, ffff0000, with no record in /s" in found.what


# --- Around it --------------------------------------------------------------------------------------------------------


def test_findings_come_worst_first_and_keep_their_order() -> None:
    found = [Finding(severity, subject, "x") for severity, subject in
             (("ok", "a"), ("fatal", "b"), ("note", "c"), ("warning", "d"), ("fatal", "e"))]  # fmt: skip
    assert [one.subject for one in worst_first(found)] == ["b", "e", "d", "c", "a"]


def test_a_finding_has_its_documented_json() -> None:
    assert Finding("fatal", "s", "w", "y", "r", ("c",)).to_json() == {
        "severity": "fatal", "subject": "s", "what": "w", "why": "y", "remedy": "r", "commands": ["c"]
    }  # fmt: skip


def test_an_answer_that_breaks_off_is_none() -> None:
    before = set(os.listdir("/proc/self/fd"))

    def broken() -> None:
        """Write the beginning of an answer to the pipe's end that has come, and end."""
        for number in map(int, set(os.listdir("/proc/self/fd")) - before):
            with contextlib.suppress(OSError):
                os.write(number, b'["answer", "an')
        os._exit(0)

    with pytest.raises(KernelError, match="without an answer"):
        apart(broken)


def test_what_crashes_apart_does_not_take_us_with_it() -> None:
    assert apart(lambda: [1, "two"]) == [1, "two"]
    with pytest.raises(KernelError, match="SIGKILL"):
        apart(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(KernelError, match="no such thing"):
        apart(lambda: (_ for _ in ()).throw(KernelError("no such thing")))


def test_a_base_chain_of_another_family_sees_none_of_our_packets() -> None:
    assert Listing([base(family="bridge", policy="drop"), base(family="ip6", policy="drop")]).on("forward") == []
    assert Listing([base(family="ip")]).on("forward") == [BaseChain("forward", "ip", "t", "forward", 0, "accept")]


# --- Name servers, source checks, Tailscale ---------------------------------------------------------------------------

WEB, DB = (
    Subnet(name, (ip_network(f"10.0.{number}.0/24"),), name == "web", False, (Instance(name, (address,), mac),))
    for number, name, address, mac in (
        (1, "web", IPv4Address("10.0.1.2"), "02:00:00:00:00:01"),
        (2, "db", IPv4Address("10.0.2.2"), "02:00:00:00:00:02"),
    )
)
NAMED = World((Vpc("shop", (ip_network("10.0.0.0/16"),), 0, (WEB, DB)),))
LINKED = "ln -sf /run/systemd/resolve/resolv.conf /etc/netns/shop-web/resolv.conf"


def served(root: Path, **files: str) -> Finding:
    """The finding about name servers with these files: `conf`, `upstream` and the instance's `own`."""
    places = {
        "conf": "etc/resolv.conf",
        "upstream": "run/systemd/resolve/resolv.conf",
        "own": "etc/netns/shop-web/resolv.conf",
    }
    for name, text in files.items():
        (root / places[name]).parent.mkdir(parents=True, exist_ok=True)
        (root / places[name]).write_text(text)
    host = Host((ip_network("198.51.100.2/32"),))
    [found] = name_servers.findings(NAMED, host, root)
    return found


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ("nameserver 192.0.2.53\n", "ok"),
        ("nameserver 127.0.0.53\nnameserver 192.0.2.53\n", "ok"),
        ("nameserver 127.0.0.53\noptions edns0\n", "warning"),
        ("nameserver ::1\nnameserver 127.0.0.1\n", "warning"),
        ("nameserver 2001:db8::53\n", "warning"),
        ("nameserver 198.51.100.2\n", "warning"),
        ("nameserver 0.0.0.0\n", "warning"),
        ("search example\n# nameserver 192.0.2.53\n", "warning"),
        ("nameserver\nnameserver fe80::1%eth0\nnameserver x\n", "warning"),
    ],
)
def test_a_name_server_counts_if_instances_reach_it(tmp_path: Path, text: str, severity: str) -> None:
    found = served(tmp_path, conf=text)
    assert (found.severity, found.subject, found.commands) == (severity, "name servers", ())


def test_without_a_resolv_conf_the_default_is_the_hosts_own(tmp_path: Path) -> None:
    assert served(tmp_path).what == "/etc/resolv.conf names only 127.0.0.1, which instances cannot reach"


def test_the_remedy_is_for_instances_with_a_way_out_and_without_a_file_of_their_own(tmp_path: Path) -> None:
    stub, real = "nameserver 127.0.0.53\n", "nameserver 192.0.2.53\n"
    assert served(tmp_path, conf=stub, upstream=stub).commands == ()
    assert served(tmp_path, upstream=real).commands == (f"mkdir -p /etc/netns/shop-web && {LINKED}",)
    assert served(tmp_path, own=stub).severity == "warning"
    assert served(tmp_path, own=real).severity == "ok"


@pytest.mark.parametrize(
    ("values", "commands"),
    [
        ({"all": 0, "eth0": 0, "eth1": 1}, ["eth1"]),
        ({"all": 1, "eth0": 0, "eth1": 2}, ["eth0"]),
        ({"all": 2, "eth0": 1, "eth1": 1}, []),
        ({"all": 0, "eth0": 0}, []),
        ({}, []),
    ],
)
def test_the_larger_value_of_the_link_and_of_all_counts(
    tmp_path: Path, values: dict[str, int], commands: list[str]
) -> None:
    for scope, number in values.items():
        place = tmp_path / "net/ipv4/conf" / scope
        place.mkdir(parents=True)
        (place / "rp_filter").write_text(f"{number}\n")
    [found] = source_checks.findings(("eth0", "eth1"), tmp_path)
    assert found.commands == tuple(f"sysctl -w net.ipv4.conf.{link}.rp_filter=2" for link in commands)
    assert found.severity == ("warning" if commands else "ok")
    [alone] = source_checks.findings(("eth1",), tmp_path)
    assert alone.severity == "ok", "with one way out nothing is asymmetric"


def test_a_closed_network_behind_a_tailnets_link_is_nobodys_fault() -> None:
    """Only Tailscale's rules are examined there; another firewall may keep VPCs away from it on purpose."""
    out, back = (rule(meta("oifname", link), ACCEPT) for link in ("eth0", "vpc-*"))
    closed = Listing([base(policy="drop"), out, back])
    tailnet = dataclasses.replace(SHOP, way_out="tailscale0", tailnet=True)
    assert severities(examined(closed, SHOP, tailnet)) == ["ok"]
    assert severities(examined(closed, SHOP, dataclasses.replace(tailnet, tailnet=False))) == ["fatal"]
