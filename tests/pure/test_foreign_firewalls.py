"""What doctor concludes from other people's rulesets.  The rulesets in tests/firewalls are as nft lists them."""

from __future__ import annotations

import dataclasses
import json
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from tests.listings import (
    ACCEPT,
    BLUE,
    DROP,
    FIREWALLS,
    RIDDLE,
    SHOP,
    TRANSIT,
    base,
    examined,
    firewall,
    header,
    meta,
    rule,
    severities,
    tracked,
)
from vpcctl.doctor import (
    foreign_firewalls,
)
from vpcctl.doctor.foreign_firewalls import Passage
from vpcctl.doctor.hook_verdicts import Listing

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


def test_a_closed_network_behind_a_tailnets_link_is_nobodys_fault() -> None:
    """Only Tailscale's rules are examined there; another firewall may keep VPCs away from it on purpose."""
    out, back = (rule(meta("oifname", link), ACCEPT) for link in ("eth0", "vpc-*"))
    closed = Listing([base(policy="drop"), out, back])
    tailnet = dataclasses.replace(SHOP, way_out="tailscale0", tailnet=True)
    assert severities(examined(closed, SHOP, tailnet)) == ["ok"]
    assert severities(examined(closed, SHOP, dataclasses.replace(tailnet, tailnet=False))) == ["fatal"]
