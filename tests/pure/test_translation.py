"""The ports of source NAT: none that a service of the host uses, and at most a VPC's share."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tests.tracer import Tracer
from vpcctl.compiler.nft import Chain, NftRule
from vpcctl.compiler.translation import MOST_RANGES, free_ranges, ranges_beside, share, translating
from vpcctl.model.network import NAT_PORTS

LOW, HIGH = NAT_PORTS
ports = st.integers(1, 65535)


def members(ranges: list[tuple[int, int]]) -> set[int]:
    found: set[int] = set()
    for low, high in ranges:
        assert low <= high
        assert found.isdisjoint(range(low, high + 1))
        found.update(range(low, high + 1))
    return found


@given(st.sets(ports, max_size=40), st.integers(1, HIGH - LOW + 1))
def test_a_share_has_as_many_ports_as_it_may_and_none_that_is_taken(taken: set[int], most: int) -> None:
    free = free_ranges(taken)
    assert len(free) <= MOST_RANGES
    assert members(free) <= set(range(LOW, HIGH + 1)) - taken
    if len(taken) < MOST_RANGES:
        assert members(free) == set(range(LOW, HIGH + 1)) - taken
    assert len(members(share(free, most))) == min(most, len(members(free)))
    assert members(share(free, most)) <= members(free)


def test_what_is_taken_outside_the_range_takes_nothing() -> None:
    assert free_ranges([80, 443, LOW - 1]) == [NAT_PORTS]
    assert free_ranges([LOW, HIGH]) == [(LOW + 1, HIGH - 1)]
    assert free_ranges([40000]) == [(LOW, 39999), (40001, HIGH)]


def test_a_user_who_waits_on_many_ports_does_not_take_source_nat_away() -> None:
    assert len(members(ranges_beside([40000], range(LOW, HIGH + 1)))) == HIGH - LOW
    assert len(members(ranges_beside([], range(LOW, HIGH + 1, 64)))) >= (HIGH - LOW) // 2
    assert 40000 not in members(ranges_beside([40000], range(LOW, HIGH + 1)))
    assert 40001 not in members(ranges_beside([40000], [40001]))
    # Where all ports are published nothing is translated, and the ruleset is one all the same.
    assert translating("masquerade", 'oifname "x"', "masquerade to ", [], [])[1] == []


def test_each_range_is_drawn_as_often_as_it_has_ports() -> None:
    ranges = [(40000, 40009), (50000, 50029)]
    rules, chains = translating("masquerade", 'oifname "x"', "masquerade to ", ranges, [47])
    assert "numgen random mod 40 vmap { 0-9 : goto masquerade.1, 10-39 : goto masquerade.2 }" in rules[0].text
    assert [re.search(r":(\d+-\d+)", str(chain.rules[0]))[1] for chain in chains] == ["40000-40009", "50000-50029"]
    assert rules[1].text == 'oifname "x" meta l4proto { 1, 47 } masquerade'
    table = Tracer(chains=[Chain("nat", tuple(map(NftRule, (rule.text for rule in rules)))), *chains])
    for protocol, verdict in ((6, "masquerade"), (1, "masquerade"), (47, "masquerade"), (50, "return")):
        assert table.walk("nat", {"oifname": "x", "meta l4proto": protocol}).verdict == verdict
