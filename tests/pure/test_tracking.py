"""Which tracked flows have to be forgotten: those that are in the way of the world, and no others."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest

from vpcctl import names
from vpcctl.analysis import packetset
from vpcctl.analysis.tracking import (
    IPS_DST_NAT,
    IPS_SRC_NAT,
    Court,
    Ends,
    HostCourt,
    Key,
    Selection,
    Tracked,
    beyond_uplink,
    key,
)
from vpcctl.engine.sweep import sweep
from vpcctl.model.network import Instance, Peering, Publication, Subnet, Vpc, World
from vpcctl.model.policy import ICMP, TCP, UDP, Action, Policy, Rule
from vpcctl.resources.fake import FakeKernel

GENERATION = 7
UPLINK, OTHER_UPLINK, HOST, REMOTE = "100.64.0.1", "100.64.0.3", "198.51.100.2", "203.0.113.10"
WEB, DB, APP = "10.0.1.2", "10.0.2.2", "10.9.1.2"


def number(text: str) -> int:
    return packetset.number(ipaddress.ip_address(text))


def ends(source: str, source_port: int, destination: str, destination_port: int) -> Ends:
    return Ends(number(source), source_port, number(destination), destination_port)


def plain(source: str, sport: int, destination: str, dport: int, protocol: int = UDP, mark: int = 6) -> Tracked:
    """A flow that nobody translates."""
    return Tracked(protocol, ends(source, sport, destination, dport), ends(destination, dport, source, sport), mark)


def outward(source: str, sport: int, remote: str, dport: int, seen: str = UPLINK, port: int = 40000) -> Tracked:
    """A flow whose source is translated."""
    return Tracked(UDP, ends(source, sport, remote, dport), ends(remote, dport, seen, port), 6, IPS_SRC_NAT)


def inward(port: int, target: str, target_port: int, protocol: int = UDP, called: str = UPLINK) -> Tracked:
    """A flow from outside whose destination is translated."""
    original, reply = ends(REMOTE, 5000, called, port), ends(target, target_port, REMOTE, 5000)
    return Tracked(protocol, original, reply, 6, IPS_DST_NAT)


def policy(**rules: tuple[Rule, ...]) -> Policy:
    return Policy(rules.get("ingress"), rules.get("egress"), file="x.json")


def rule(low: int, high: int) -> Rule:
    return Rule(Action.ALLOW, UDP, ((low, high),))


def subnet(name: str, prefix: str, address: str, public: bool, found: Policy | None = None) -> Subnet:
    instance = Instance(name, (ipaddress.ip_address(address),), names.stable_mac(address))
    return Subnet(name, (ipaddress.ip_network(prefix),), public, False, (instance,), found)


def world(web: Policy | None = None, *publications: Publication, peered: bool = True) -> World:
    subnets = (
        subnet("web", "10.0.1.0/24", WEB, True, web),
        subnet("db", "10.0.2.0/24", DB, False),
    )
    shop = Vpc("shop", (ipaddress.ip_network("10.0.0.0/16"),), 0, subnets, publications)
    blue = Vpc("blue", (ipaddress.ip_network("10.9.0.0/16"),), 1, (subnet("app", "10.9.1.0/24", APP, False),))
    return World((shop, blue), (Peering("blue", "shop"),) if peered else ())


def objection(flow: Tracked, there: World) -> str:
    return Court(there, "shop", GENERATION).objection(flow)


@pytest.mark.parametrize(
    "flow",
    [
        plain(WEB, 1000, DB, 53),
        plain(WEB, 1000, APP, 53),
        plain(APP, 1000, WEB, 53),
        plain(WEB, 9, "10.0.1.1", 0x0800, ICMP),
        outward(WEB, 1000, REMOTE, 53),
        inward(8080, WEB, 80),
        # A port that is not published any more: the ruleset drops it, whoever sends.
        inward(8081, WEB, 80),
        # A flow of a deleted peering: it is not translated, so it does not leave; the peering may come back.
        plain(WEB, 1000, REMOTE, 53, TCP),
    ],
)
def test_what_is_right_or_is_dropped_as_it_should_be_stays(flow: Tracked) -> None:
    assert objection(flow, world(None, Publication(UDP, 8080, "web", 80))) == ""


@pytest.mark.parametrize(
    "flow",
    [
        plain("10.0.1.9", 1000, DB, 53),
        plain(DB, 1000, "10.0.1.9", 53),
        plain("10.9.1.9", 1000, DB, 53),
        plain(DB, 1000, "10.9.1.9", 53),
        outward("10.0.1.9", 1000, REMOTE, 53),
        inward(8080, "10.0.1.9", 80),
    ],
)
def test_a_flow_of_nobodys_address_goes(flow: Tracked) -> None:
    assert "nobody" in objection(flow, world(None, Publication(UDP, 8080, "web", 80)))


def test_a_flow_by_a_port_that_leads_elsewhere_now_goes() -> None:
    there = world(None, Publication(UDP, 8080, "db", 80))
    assert "another instance" in objection(inward(8080, WEB, 80), there)
    assert "another instance" in objection(inward(8080, DB, 81), there)
    assert objection(inward(8080, WEB, 80, TCP), there) == ""


def test_a_flow_to_a_peer_that_was_translated_before_goes() -> None:
    assert "translated" in objection(outward(WEB, 1000, APP, 53), world())
    assert objection(outward(WEB, 1000, APP, 53), world(peered=False)) == ""


def test_a_datagram_to_a_peer_that_is_none_any_more_begins_a_flow_to_the_internet() -> None:
    assert "not translated" in objection(plain(WEB, 1000, APP, 53), world(peered=False))
    assert objection(plain(WEB, 1000, APP, 53, TCP), world(peered=False)) == ""
    assert objection(plain(WEB, 1000, APP, 53), world()) == ""


def test_ranges_lead_port_by_port() -> None:
    there = world(None, Publication(UDP, 8000, "web", 90, 5))
    assert objection(inward(8004, WEB, 94), there) == ""
    assert "another instance" in objection(inward(8004, WEB, 93), there)
    assert objection(inward(8005, WEB, 95), there) == "", "unpublished: the ruleset drops it"
    # The router accepts a port that is published at one address by another port.
    at = [ipaddress.ip_address(text) for text in (HOST, "192.0.2.1")]
    twice = (Publication(TCP, 80, "web", 80, 1, at[0]), Publication(TCP, 80, "db", 80, 1, at[1], 1024))
    there = world(None, *twice)
    assert objection(inward(1024, DB, 80, TCP), there) == ""
    assert "another instance" in objection(inward(1024, WEB, 80, TCP), there)
    court = HostCourt(there, [ipaddress.ip_network(f"{one}/32") for one in at])
    assert court.objection(inward(80, UPLINK, 80, TCP, called=HOST)) == ""
    assert court.objection(inward(80, UPLINK, 1024, TCP, called="192.0.2.1")) == ""
    assert "another VPC" in court.objection(inward(80, UPLINK, 80, TCP, called="192.0.2.1"))
    assert "not published" in court.objection(inward(80, UPLINK, 80, TCP, called="192.0.2.9"))


def test_calls_of_the_host_and_of_instances_follow_what_is_published() -> None:
    """Their sources are translated, too; an instance's call has its router's address."""
    by_host = Tracked(UDP, ends("127.0.0.1", 1, "127.0.0.1", 8080), ends(UPLINK, 8080, "100.64.0.0", 1), 0, 48)
    by_instance = Tracked(UDP, ends(OTHER_UPLINK, 1, HOST, 8080), ends(UPLINK, 8080, "100.64.0.0", 40001), 0, 48)
    local = [ipaddress.ip_network(f"{HOST}/32"), ipaddress.ip_network("127.0.0.0/8")]
    # The port of source NAT belongs to the host's address on the uplink, at which nothing is published.
    published = [Publication(UDP, 8080, "web", 80), Publication(UDP, 40001, "web", 80)]
    for flow in (by_host, by_instance):
        assert HostCourt(world(None, *published), local).objection(flow) == ""
        assert "not published" in HostCourt(world(), local).objection(flow)


def test_a_port_that_is_published_at_other_addresses_is_looked_at_though_no_router_changes() -> None:
    kernel = FakeKernel()
    before = world(None, Publication(UDP, 8080, "web", 80))
    after = world(None, Publication(UDP, 8080, "web", 80, address=ipaddress.ip_address(HOST)))
    stays, goes = inward(8080, UPLINK, 8080, called=HOST), inward(8080, UPLINK, 8080, called="192.0.2.7")
    kernel.tracked = {None: [stays, goes]}
    assert sweep(kernel, after, [], [], before=before) == 1
    assert kernel.tracked == {None: [stays]}


def test_a_denied_flow_goes_where_an_allowed_one_looks_like_it_and_nowhere_else() -> None:
    """Equal ports at both ends, and the other direction allowed: else it stays, and its policy may come back."""
    closed = world(policy(egress=()))
    assert "other way round" in objection(plain(WEB, 500, DB, 500), closed)
    assert "other way round" in objection(plain(WEB, 500, APP, 500), closed)
    assert "other way round" in objection(plain(WEB, 0, DB, 0, 47), closed)
    # A server that keeps sending to the client's own port does not begin a flow by that.
    assert objection(plain(WEB, 40000, DB, 500), closed) == ""
    # Denied both ways.
    both = world(policy(egress=(), ingress=()))
    assert objection(plain(WEB, 500, DB, 500), both) == ""
    # Allowed as it is, and admitted by the ruleset in force.
    assert objection(plain(WEB, 500, DB, 500), world(policy(egress=(rule(500, 500),)))) == ""
    assert objection(plain(WEB, 500, DB, 500, mark=GENERATION), closed) == ""


def test_the_host_forgets_what_it_translates_no_longer() -> None:
    there = world(None, Publication(UDP, 8080, "web", 80), Publication(UDP, 40001, "web", 80))
    former = dataclasses.replace(there, vpcs=(*there.vpcs, Vpc("gone", (ipaddress.ip_network("10.77.0.0/24"),), 4)))
    local = [ipaddress.ip_network(f"{HOST}/32"), ipaddress.ip_network("127.0.0.0/8")]
    court = HostCourt(there, local, former=former)
    right = [
        # Not an address of a present or former uplink: somebody else uses the range, too.
        outward("100.64.9.9", 1000, REMOTE, 53, HOST),
        plain(HOST, 5000, "100.64.9.9", 8080),
        outward(UPLINK, 1000, REMOTE, 53, HOST),
        inward(8080, UPLINK, 8080, called=HOST),
        plain(REMOTE, 5000, HOST, 8080, TCP),
        plain(REMOTE, 5000, HOST, 9999),
        plain("127.0.0.1", 5000, HOST, 8080, TCP),
        plain(REMOTE, 5000, "192.0.2.7", 8080),
        plain(HOST, 5000, REMOTE, 8080),
    ]
    wrong = [
        outward("100.64.0.9", 1000, REMOTE, 53, HOST),
        plain(UPLINK, 1000, REMOTE, 53),
        outward(UPLINK, 1000, REMOTE, 53, HOST, port=40001),
        inward(8080, OTHER_UPLINK, 8080, called=HOST),
        inward(8080, "100.64.0.9", 8080, called=HOST),
        plain(REMOTE, 5000, HOST, 8080),
        # A program of the host itself.
        plain("127.0.0.1", 5000, HOST, 8080),
        # Unpublished: calls go to the host itself.
        inward(8081, UPLINK, 8081, called=HOST),
    ]
    assert [court.objection(flow) for flow in right] == [""] * len(right)
    assert [bool(court.objection(flow)) for flow in wrong] == [True] * len(wrong)


def test_the_sweep_follows_a_flow_into_every_namespace_that_tracks_it() -> None:
    kernel, there = FakeKernel(), world()
    gone = outward("10.0.1.9", 1000, REMOTE, 53)
    peer, stays = plain("10.0.1.9", 1000, APP, 53), plain(WEB, 1000, APP, 53)
    outside = Tracked(UDP, ends(UPLINK, 40000, REMOTE, 53), ends(REMOTE, 53, HOST, 50000), 0, IPS_SRC_NAT)
    others = Tracked(UDP, ends(OTHER_UPLINK, 40000, REMOTE, 53), ends(REMOTE, 53, HOST, 50001), 0, IPS_SRC_NAT)
    kernel.tracked = {
        "shop-router": [gone, peer, stays],
        "blue-router": [peer, stays],
        None: [outside, others],
    }
    assert sweep(kernel, there, ["shop"], [], before=there) > 0
    assert kernel.tracked == {"shop-router": [stays], "blue-router": [stays], None: [others]}
    calls = list(kernel.calls)
    assert sweep(kernel, there, ["shop"], [], before=there) == 0
    assert kernel.calls == calls


def test_a_vpc_that_is_gone_leaves_nothing_in_the_host() -> None:
    kernel, before = FakeKernel(), world(peered=False)
    after = before.without_vpc("blue")
    flows = [outward(OTHER_UPLINK, 1, REMOTE, 2, HOST), inward(8080, OTHER_UPLINK, 8080, called=HOST)]
    kernel.tracked = {None: [*flows, plain(REMOTE, 1, HOST, 22, TCP)]}
    sweep(kernel, after, [], [], before=before)
    assert kernel.tracked[None] == [plain(REMOTE, 1, HOST, 22, TCP)]


def test_a_published_port_takes_over_from_flows_of_every_vpc() -> None:
    kernel, before = FakeKernel(), world(peered=False)
    after = world(None, Publication(UDP, 40000, "web", 80), peered=False)
    taken, other = outward(OTHER_UPLINK, 1, REMOTE, 2, HOST), outward(OTHER_UPLINK, 1, REMOTE, 3, HOST, port=40001)
    kernel.tracked = {None: [taken, other, plain(REMOTE, 5, HOST, 40000)]}
    sweep(kernel, after, ["shop"], [], before, [ipaddress.ip_network(f"{HOST}/32")])
    assert kernel.tracked[None] == [other]


def test_an_address_that_another_instance_has_now_keeps_no_flow() -> None:
    """In one change an instance may go and another one get its address: it is nobody's at no moment."""
    before = world()
    web = before.vpc("shop").subnet("web")
    other = web.with_instances((Instance("other", web.instances[0].addresses, names.stable_mac("other")),))
    after = before.with_vpc(before.vpc("shop").with_subnet(other))
    kernel = FakeKernel()
    kept = plain(DB, 1, APP, 2)
    for former, wanted in ((None, [kept]), (before, [kept])):
        kernel.tracked = {
            "shop-router": [plain(WEB, 1, DB, 2), plain(APP, 1, WEB, 2), outward(WEB, 1, REMOTE, 2), kept]
        }
        sweep(kernel, after, ["shop"], [], before=None if former else before, former=former)
        assert kernel.tracked["shop-router"] == wanted


def test_the_host_forgets_who_has_a_port_that_it_serves_itself_now() -> None:
    kernel, before = FakeKernel(), world(peered=False)
    after = World(before.vpcs)
    taken, other = outward(UPLINK, 1, REMOTE, 2, HOST), outward(UPLINK, 1, REMOTE, 3, HOST, port=40001)
    kernel.tracked = {None: [taken, other]}
    sweep(kernel, after, [], [], before, reserved=[40000], newly_reserved=[40000])
    assert kernel.tracked[None] == [other]


def test_a_protocol_that_is_not_translated_for_a_vpc_is_forgotten_in_router_and_host() -> None:
    def gre(source: str, seen: str) -> Tracked:
        return Tracked(47, ends(source, 0, REMOTE, 0), ends(REMOTE, 0, seen, 0), 6, IPS_SRC_NAT)

    there = world()
    assert "protocol" in objection(gre(WEB, UPLINK), there)
    assert "protocol" in HostCourt(there).objection(gre(UPLINK, HOST))
    named = there.with_vpc(dataclasses.replace(there.vpc("shop"), nat_protocols=(47,)))
    assert objection(gre(WEB, UPLINK), named) == ""
    assert HostCourt(named).objection(gre(UPLINK, HOST)) == ""
    assert "protocol" in HostCourt(named).objection(gre(OTHER_UPLINK, HOST))


def test_a_flow_has_the_key_that_the_host_knows_it_by() -> None:
    flow = outward(WEB, 1000, REMOTE, 53)
    assert key(flow) == Key(UDP, ends(WEB, 1000, REMOTE, 53))
    assert beyond_uplink(flow) == Key(UDP, ends(UPLINK, 40000, REMOTE, 53))
    assert beyond_uplink(inward(8080, WEB, 80)) == Key(UDP, ends(UPLINK, 8080, REMOTE, 5000), of_replies=True)
    original, reply = Ends(number(WEB), 9, number(REMOTE), 0x0800), Ends(number(REMOTE), 77, number(UPLINK), 0)
    echo = Tracked(ICMP, original, reply, 6, IPS_SRC_NAT)
    assert beyond_uplink(echo) == Key(ICMP, Ends(number(UPLINK), 77, number(REMOTE), 0x0800))


def test_a_selection_asks_for_some_fields_of_one_direction() -> None:
    flow = outward(WEB, 1000, REMOTE, 53)
    asked = (
        Selection(),
        Selection(source=number(WEB)),
        Selection(source=number(REMOTE), of_replies=True),
        Selection(protocol=UDP, destination_port=53),
        Selection(protocol=UDP, destination_port=40000, of_replies=True),
    )
    others = (
        Selection(source=number(REMOTE)),
        Selection(protocol=TCP),
        Selection(protocol=UDP, destination_port=40000),
    )
    assert [flow in one for one in asked] == [True] * len(asked)
    assert [flow in one for one in others] == [False] * len(others)


def test_a_flow_with_one_end_outside_passes_the_uplink() -> None:
    court = Court(world(), "shop", GENERATION)
    assert court.passes_uplink(outward(WEB, 1, REMOTE, 2))
    assert court.passes_uplink(inward(8080, WEB, 80))
    assert not court.passes_uplink(plain(WEB, 1, DB, 2))
    assert not court.passes_uplink(plain(WEB, 1, APP, 2))
