"""The ports of source NAT: none that a service of the host uses, and at most a VPC's share."""

from __future__ import annotations

import ipaddress
import re

from hypothesis import example, given
from hypothesis import strategies as st

from tests.tracer import Tracer
from vpcctl.compiler.host_table import host_table
from vpcctl.compiler.nft import Chain, NftRule, Table
from vpcctl.compiler.translation import MOST_RANGES, free_ranges, ranges_beside, share, translating
from vpcctl.model.host import HostPart
from vpcctl.model.network import NAT_PORTS, Instance, Publication, Subnet, Vpc, World
from vpcctl.model.policy import SCTP, TCP, UDP

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
    free = free_ranges((port, port) for port in taken)
    assert len(free) <= MOST_RANGES
    assert members(free) <= set(range(LOW, HIGH + 1)) - taken
    if len(taken) < MOST_RANGES:
        assert members(free) == set(range(LOW, HIGH + 1)) - taken
    assert len(members(share(free, most))) == min(most, len(members(free)))
    assert members(share(free, most)) <= members(free)


def test_what_is_taken_outside_the_range_takes_nothing() -> None:
    assert free_ranges([(80, 80), (443, 443), (8000, LOW - 1)]) == [NAT_PORTS]
    assert free_ranges([(LOW, LOW), (HIGH, HIGH)]) == [(LOW + 1, HIGH - 1)]
    assert free_ranges([(40000, 40000)]) == [(LOW, 39999), (40001, HIGH)]


def test_ranges_are_taken_as_a_whole_where_they_overlap_too() -> None:
    assert free_ranges([(LOW - 9, LOW + 9), (40000, 40009), (40005, 40019)]) == [(LOW + 10, 39999), (40020, HIGH)]
    assert free_ranges([(1, 65535)]) == []


def test_a_user_who_waits_on_many_ports_does_not_take_source_nat_away() -> None:
    assert len(members(ranges_beside([(40000, 40000)], range(LOW, HIGH + 1)))) == HIGH - LOW
    assert len(members(ranges_beside([], range(LOW, HIGH + 1, 64)))) >= (HIGH - LOW) // 2
    assert 40000 not in members(ranges_beside([(40000, 40000)], range(LOW, HIGH + 1)))
    assert 40001 not in members(ranges_beside([(40000, 40000)], [40001]))
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


def serving(ports: set[int]) -> HostPart:
    """A host that serves on these ports."""
    return HostPart((), tuple(sorted(ports)))


def world(published: set[int]) -> World:
    """Two VPCs that publish the ports, in turn and by TCP, UDP and SCTP in turn."""
    publications = [
        Publication((TCP, UDP, SCTP)[number % 3], port, "web", 80) for number, port in enumerate(sorted(published))
    ]
    vpcs = []
    for index, name in enumerate(("shop", "blue")):
        prefix = ipaddress.ip_network(f"10.{index}.0.0/16")
        instance = Instance("web", (ipaddress.ip_address(f"10.{index}.0.2"),), f"02:00:00:00:00:0{index}")
        subnet = Subnet("web", (ipaddress.ip_network(f"10.{index}.0.0/24"),), True, instances=(instance,))
        vpcs.append(Vpc(name, (prefix,), index, (subnet,), tuple(publications[index::2])))
    return World(tuple(vpcs))


def ranges_of(table: Table) -> list[tuple[int, int]]:
    """From which ports the host's table translates; each range must be drawn as often as it has ports."""
    chains = {chain.name: [rule.text for rule in chain.rules] for chain in table.chains}
    rule = chains["host-postrouting"][0]
    whole = re.search(r" masquerade to :(\d+)-(\d+) fully-random$", rule)
    if whole:
        return [(int(whole[1]), int(whole[2]))]
    drawn = int(re.search(r"numgen random mod (\d+) ", rule)[1])
    lots = re.findall(r"(\d+)-(\d+) : goto (masquerade\.\d+)", rule)
    found, due = [], 0
    for first, last, chain in lots:
        (statement,) = chains[chain]
        low, high = map(int, re.search(r" masquerade to :(\d+)-(\d+) fully-random$", statement).groups())
        assert (int(first), int(last)) == (due, due + high - low)
        due = int(last) + 1
        found.append((low, high))
    assert due == drawn
    return found


few_ports = st.sets(st.one_of(st.integers(LOW, HIGH), st.sampled_from([LOW, LOW + 1, HIGH - 1, HIGH])), max_size=25)


@given(few_ports, few_ports)
@example(set(), set())
@example({LOW}, {HIGH})
@example({LOW + 1}, {LOW + 2})
@example(set(range(LOW, LOW + 2000)), set(range(LOW + 3000, LOW + 17000)))
def test_the_host_translates_to_every_port_but_those_that_are_published_or_served(
    published: set[int], reserved: set[int]
) -> None:
    found = members(ranges_of(host_table(world(published), serving(reserved))))
    assert found == set(range(LOW, HIGH + 1)) - published - reserved


def test_published_ports_are_left_out_even_where_the_host_serves_too_many() -> None:
    """With one served port more, less than half of the range would be left."""
    published, half = {40000}, set(range(LOW, LOW + (HIGH - LOW + 1) // 2))
    whole = set(range(LOW, HIGH + 1))
    assert members(ranges_of(host_table(world(published), serving(half - {40000})))) == whole - half
    assert members(ranges_of(host_table(world(published), serving(half | {HIGH})))) == whole - published
    assert members(ranges_of(host_table(world(set()), serving(half | {HIGH})))) == whole


def test_of_more_pieces_than_are_worth_their_rules_the_largest_are_used() -> None:
    """100 served ports with a gap of 2 between them, and the rest of the range: 64 pieces, none with a served port."""
    served = set(range(LOW + 2, LOW + 302, 3))
    found = ranges_of(host_table(world(set()), serving(served)))
    assert len(found) == MOST_RANGES
    assert found[-1] == (max(served) + 1, HIGH)
    assert all(high - low == 1 for low, high in found[:-1])
    assert members(found).isdisjoint(served)
