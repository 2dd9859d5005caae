"""What each VPC takes of what all share, as `status` tells it."""

from __future__ import annotations

import ipaddress

from vpcctl.analysis import packetset
from vpcctl.analysis.tracking import Ends, Tracked
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
    assert [(one.vpc, one.flows) for one in shares(kernel, world)] == [("a", 2), ("b", 1), ("c", 0)]
    assert [(one.vpc, one.flows) for one in shares(kernel, world, "b")] == [("b", 1)]


def test_a_share_is_worth_a_word_where_something_was_lost_or_soon_will_be() -> None:
    def remarkable(flows: int, over_share: int = 0, no_port: int = 0) -> bool:
        return Share("a", flows, 1000, 64, over_share, no_port).remarkable

    assert not remarkable(0)
    assert not remarkable(799)
    assert remarkable(800)
    assert remarkable(0, over_share=1)
    assert remarkable(0, no_port=1)
    said = str(Share("a", 799, 1000, 64, 5, 0))
    assert "799 flows tracked (limit 1000 in each direction); packets dropped: 5 over the limit" in said
