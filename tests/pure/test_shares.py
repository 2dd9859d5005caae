"""What each VPC takes of what all share, as `status` tells it."""

from __future__ import annotations

import ipaddress

from vpcctl.analysis import packetset
from vpcctl.analysis.tracking import Ends, Tracked
from vpcctl.compiler.host_table import host_table
from vpcctl.engine.shares import Share, shares
from vpcctl.model.network import Vpc, World
from vpcctl.resources.fake import FakeKernel


def flow(source: str, replies_from: str) -> Tracked:
    one, other = (packetset.number(ipaddress.ip_address(text)) for text in (source, replies_from))
    return Tracked(17, Ends(one, 1, other, 2), Ends(other, 2, one, 1))


def test_each_vpc_is_shown_what_the_host_tracks_for_it() -> None:
    vpcs = [Vpc(name, (ipaddress.ip_network("10.0.0.0/16"),), number) for number, name in enumerate(("a", "b", "c"))]
    kernel = FakeKernel()
    kernel.tracked[None] = [
        flow("100.64.0.1", "203.0.113.1"),
        flow("203.0.113.1", "100.64.0.1"),
        flow("100.64.0.3", "203.0.113.1"),
        flow("198.51.100.2", "203.0.113.1"),
    ]
    world = World(tuple(vpcs))
    told = [(share.vpc, share.flows_out, share.flows_in) for share in shares(kernel, world)]
    assert told == [("a", 1, 1), ("b", 1, 0), ("c", 0, 0)]
    assert [(share.vpc, share.flows_out) for share in shares(kernel, world, "b")] == [("b", 1)]


def test_a_share_is_shown_if_packets_were_lost_or_a_limit_is_near() -> None:
    def remarkable(flows_out: int, flows_in: int = 0, over_share: int = 0, no_port: int = 0) -> bool:
        return Share("a", flows_out, flows_in, 1000, 64, over_share, no_port).remarkable

    assert not remarkable(0)
    assert not remarkable(799)
    assert remarkable(800)
    assert remarkable(0, flows_in=800)
    assert remarkable(0, over_share=1)
    assert remarkable(0, no_port=1)


def test_each_direction_is_compared_with_the_limit_that_the_kernel_applies_to_it() -> None:
    share = Share("a", 799, 799, 1000, 64, 0, 0)
    assert not share.remarkable
    world = World((Vpc("a", (ipaddress.ip_network("10.0.0.0/16"),), 0, max_flows=1024),))
    limits = [str(rule) for chain in host_table(world).chains for rule in chain.rules if " ct count " in str(rule)]
    # Two rules in each direction, one of them for protocols without ports; 64 lists of 16 flows.
    assert len(limits) == 4
    assert all("mod 64 ct count over 16 }" in rule for rule in limits)


def test_a_share_in_words_and_in_json_has_both_directions() -> None:
    share = Share("a", 799, 1, 1000, 64, 5, 0)
    said = "799 flows out and 1 in tracked (limit 1000 in each direction); packets dropped: 5 over the limit"
    assert said in str(share)
    assert (share.to_json()["flows"], share.to_json()["flows_out"], share.to_json()["flows_in"]) == (800, 799, 1)
