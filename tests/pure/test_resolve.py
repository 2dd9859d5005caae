"""What endpoints mean: the analysis' names, the compiler's view and the oracle's lines say the same."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import worlds
from vpcctl.compiler.view import View
from vpcctl.model import oracle
from vpcctl.model.network import Vpc, World
from vpcctl.model.policy import ANY, Direction, Endpoint, Network, Policy
from vpcctl.model.resolve import Meanings, complement, inside, outside


def endpoints_of(policy: Policy) -> set[Endpoint]:
    rules = [rule for side in Direction for rule in policy.rules(side) or ()]
    return {endpoint for rule in rules for ends in (rule.sources, rule.destinations) for endpoint in ends or ()}


def collapsed(prefixes: object) -> list[Network]:
    found = list(prefixes)  # type: ignore[call-overload]
    return [one for v in (4, 6) for one in ipaddress.collapse_addresses(p for p in found if p.version == v)]


@given(worlds.worlds())
def test_three_ways_to_resolve_a_name_agree(world: World) -> None:
    addresses = [
        *worlds.OUTSIDE,
        *worlds.NOBODY,
        *(a for vpc in world.vpcs for i in vpc.instances for a in i.addresses),
    ]
    for vpc in world.vpcs:
        view = View.of(world, vpc.name)
        for _, policy in vpc.policies:
            meanings = Meanings(world, vpc, policy)
            for endpoint in endpoints_of(policy) - {ANY}:
                found = meanings.prefixes(endpoint)
                assert collapsed(found) == collapsed(view.resolve(endpoint, policy)), endpoint
                for address in addresses:
                    within = any(address in prefix for prefix in found)
                    assert within is oracle._means(world, vpc, policy, endpoint, address), (endpoint, address)


def test_any_is_no_list_of_prefixes() -> None:
    vpc = Vpc("one", (ipaddress.ip_network("10.0.0.0/26"),), 0)
    with pytest.raises(AssertionError):
        Meanings(World((vpc,)), vpc, Policy()).prefixes(ANY)


@given(st.lists(st.sampled_from(worlds.NETWORKS)), st.sampled_from([4, 6]))
def test_a_complement_holds_all_addresses_that_the_prefixes_do_not(prefixes: list[Network], version: int) -> None:
    mine = [prefix for prefix in prefixes if prefix.version == version]
    found = complement(prefixes, version)
    whole = ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0")
    assert sum(one.num_addresses for one in [*found, *ipaddress.collapse_addresses(mine)]) == whole.num_addresses
    assert not any(one.overlaps(other) for one in found for other in mine)
    assert list(found) == list(ipaddress.collapse_addresses(found))


@given(worlds.worlds())
def test_everything_is_inside_or_outside(world: World) -> None:
    for vpc in world.vpcs:
        near, far = inside(world, vpc), outside(world, vpc)
        assert not any(one.version == other.version and one.overlaps(other) for one in near for other in far)
        assert set(vpc.prefixes) <= set(near)
