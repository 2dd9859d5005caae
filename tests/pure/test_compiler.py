"""The compiled tables against the oracle: packets are walked through the rules and sets, in Python."""

from __future__ import annotations

import dataclasses
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import worlds
from tests.tracer import Trace, Tracer
from vpcctl import names
from vpcctl.compiler import Compiled, compile_closed, compile_host, compile_vpc
from vpcctl.compiler.gates import gate
from vpcctl.compiler.hooks import CHECKED_MARK
from vpcctl.compiler.nft import COMMENT_LIMIT, Chain, NftRule
from vpcctl.compiler.view import View, complement
from vpcctl.documents.codec import world_from_json, world_to_json
from vpcctl.documents.policies import read_policies
from vpcctl.errors import ConflictError
from vpcctl.model import oracle
from vpcctl.model.host import NO_PART, HostPart, OpenedLink
from vpcctl.model.network import Peering, Publication, Subnet, Vpc, World, uplink_pair
from vpcctl.model.oracle import Flow, Place
from vpcctl.model.policy import ICMP_PROTOCOLS, PORT_PROTOCOLS, TCP, UDP, Action, Direction, Endpoint, Policy, Rule
from vpcctl.model.protocols import REPLY_TYPE
from vpcctl.resources.kinds import Route
from vpcctl.resources.topology import snapshot

FLOWS = 40
OWNER = "vpcctl/0a1b2c3d/alpha/ruleset"
CLIENT_PORT = 40000
SEND_REJECT = Chain("send-reject", (NftRule("reject with icmpx admin-prohibited"),))
VERDICT = {Action.ALLOW: "return", Action.DENY: "drop", Action.REJECT: "reject"}
seeds = st.integers(0, 2**32)
Dispute = tuple[World, Subnet, Direction]
any_world = worlds.worlds() | worlds.disputes(dual=False).map(lambda dispute: dispute[0])


# -- packets -------------------------------------------------------------------------------------------------------


def packet(flow: Flow, **more: object) -> dict[str, object]:
    """The first packet of `flow`, by the grammar's selectors."""
    word = "ip" if flow.source.address.version == 4 else "ip6"
    fields = {
        f"{word} saddr": flow.source.address,
        f"{word} daddr": flow.destination.address,
        "meta l4proto": flow.protocol,
        "meta nfproto": "ipv4" if word == "ip" else "ipv6",
        "ct state": "new" if begins(flow) else "invalid",
        "ct direction": "original",
        "dnat": False,
        "syn": True,
    }
    if flow.protocol in PORT_PROTOCOLS:
        fields |= {"th sport": CLIENT_PORT, "th dport": flow.port}
    elif flow.protocol in ICMP_PROTOCOLS:
        fields["icmp type" if flow.protocol == worlds.ICMP else "icmpv6 type"] = flow.port
    return fields | more


def begins(flow: Flow) -> bool:
    """Does connection tracking make an entry for the first packet of `flow`?"""
    own = worlds.ICMP if flow.source.address.version == 4 else worlds.ICMPV6
    return flow.protocol not in ICMP_PROTOCOLS or (flow.protocol == own and flow.port in REPLY_TYPE[own])


def reply(flow: Flow, **more: object) -> dict[str, object] | None:
    """A packet that travels backwards in `flow`, or None for what has no reply."""
    port = flow.port
    if flow.protocol in ICMP_PROTOCOLS:
        if flow.port not in REPLY_TYPE[flow.protocol]:
            return None
        port = REPLY_TYPE[flow.protocol][flow.port]
    back = packet(Flow(flow.destination, flow.source, flow.protocol, port))
    if flow.protocol in PORT_PROTOCOLS:
        back |= {"th sport": flow.port, "th dport": CLIENT_PORT}
    return back | {"ct state": "established", "ct direction": "reply", "syn": False} | more


def again(flow: Flow, **more: object) -> dict[str, object]:
    """A later packet of `flow` in its own direction."""
    return packet(flow) | {"ct state": "established", "syn": False} | more


# -- gates ---------------------------------------------------------------------------------------------------------


class Gates:
    """The compiled gates of a world as tracers, by (vpc, subnet, direction)."""

    def __init__(self, world: World, over_limit: bool = False):
        self._made = {}
        for vpc in world.vpcs:
            view = View.of(world, vpc.name)
            for subnet in vpc.subnets:
                for direction in Direction:
                    found = gate(view, subnet, direction)
                    name = f"{direction.value} of {vpc.name}/{subnet.name}"
                    self._made[name] = found and (found, self._tracer(found, over_limit))

    @staticmethod
    def _tracer(found, over_limit: bool) -> Tracer:
        return Tracer(sets=found.sets, chains=(*found.chains, SEND_REJECT), over_limit=over_limit)

    def walk(self, name: str, packet: dict, mirror: bool = False) -> tuple[str, list[str]]:
        """What the gate says, and the comments that it decided by; a gate that is not there returns."""
        if self._made[name] is None:
            return "return", []
        found, tracer = self._made[name]
        trace = tracer.walk(found.mirror if mirror else found.chain, packet)
        return trace.verdict, trace.comments


def asked(decision: oracle.Decision) -> list[oracle.Stage]:
    """The stages at which a gate was asked."""
    return [stage for stage in decision.stages if stage.gate != "topology"]


def unlimited(world: World) -> World:
    """The world without its limited rules: what policies mean while every rate is exceeded."""

    def kept(rules: tuple[Rule, ...] | None) -> tuple[Rule, ...] | None:
        return None if rules is None else tuple(rule for rule in rules if rule.limit is None)

    for vpc in world.vpcs:
        for name, policy in vpc.policies:
            changed = dataclasses.replace(policy, ingress=kept(policy.ingress), egress=kept(policy.egress))
            world = world.with_vpc(world.vpc(vpc.name).with_policy(name, changed))
    return world


@settings(max_examples=150, deadline=None)
@given(worlds.disputes(), seeds)
def test_a_gate_says_what_the_policy_means_in_both_directions(dispute: Dispute, seed: int) -> None:
    world = dispute[0]
    gates = Gates(world)
    for flow in worlds.flows_through(*dispute, random.Random(seed), FLOWS):
        for stage in asked(oracle.decide(world, flow)):
            assert gates.walk(stage.gate, packet(flow))[0] == VERDICT[stage.action], (flow, stage)
            assert gates.walk(stage.gate, again(flow))[0] == VERDICT[stage.action], (flow, stage)
            if back := reply(flow):
                assert gates.walk(stage.gate, back, mirror=True)[0] == VERDICT[stage.action], (flow, stage)


@settings(max_examples=80, deadline=None)
@given(worlds.disputes(), seeds)
def test_above_its_rate_a_limited_rule_matches_nothing_new(dispute: Dispute, seed: int) -> None:
    world = dispute[0]
    gates = Gates(world, over_limit=True)
    for flow in worlds.flows_through(*dispute, random.Random(seed), FLOWS):
        for stage in asked(oracle.decide(unlimited(world), flow)):
            assert gates.walk(stage.gate, packet(flow))[0] == VERDICT[stage.action], (flow, stage)


@settings(max_examples=120, deadline=None)
@given(worlds.disputes(), seeds)
def test_what_decides_leads_back_to_the_line_that_decides(dispute: Dispute, seed: int) -> None:
    world = dispute[0]
    gates = Gates(world)
    for flow in worlds.flows_through(*dispute, random.Random(seed), FLOWS):
        for stage in asked(oracle.decide(world, flow)):
            comments = gates.walk(stage.gate, packet(flow))[1]
            told = comments[-1:]
            # A gate that lets everything pass is not compiled.
            assert all(comment == commented(stage.origin) for comment in told), (flow, comments, stage)
            assert told or stage.action is Action.ALLOW


def commented(origin: str) -> str:
    """The comment that an origin has in a ruleset, where the chain's name tells a default's direction."""
    return re.sub(r"(/default/\w+|/\w+ \(default deny\)| \(.*default allow\))$", "/default", origin)


# -- products ------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(worlds.products(), seeds, st.booleans())
def test_lists_that_are_asked_one_after_the_other_mean_what_the_rules_do(
    dispute: Dispute, seed: int, over: bool
) -> None:
    world = dispute[0]
    gates, meant = Gates(world, over_limit=over), unlimited(world) if over else world
    for flow in worlds.flows_through(*dispute, random.Random(seed), FLOWS):
        for stage in asked(oracle.decide(meant, flow)):
            said, comments = gates.walk(stage.gate, packet(flow))
            assert said == VERDICT[stage.action], (flow, stage)
            assert over or all(comment == commented(stage.origin) for comment in comments[-1:]), (flow, comments)
            if not over and (back := reply(flow)):
                wanted = VERDICT[stage.action]
                assert gates.walk(stage.gate, back, mirror=True)[0] == wanted, (flow, stage)


def test_long_lists_are_products() -> None:
    made = [worlds._with_products(random.Random(seed), dual=False) for seed in range(20)]
    found = [gate(View.of(world, "alpha"), subnet, side) for world, subnet, side in made]
    asked_for = [rule.text for one in found for chain in one.chains for rule in chain.rules]
    assert any(text.count("@") == 3 for text in asked_for)


# -- whole tables --------------------------------------------------------------------------------------------------


class Carrier:
    """Walks flows through the tables of all routers that they would cross."""

    def __init__(self, world: World):
        self._world = world
        self._tables = {vpc.name: Tracer(compile_vpc(world, vpc.name, OWNER).tables[0]) for vpc in world.vpcs}

    def carries(self, flow: Flow) -> bool:
        """Is the first packet of `flow` accepted by every router on its way?"""
        return all(self._crosses(flow, *hop) for hop in self._hops(flow))

    def carries_back(self, flow: Flow, stale: dict) -> list[bool]:
        """For each router: does a packet of an older generation pass its judgement?"""
        found = []
        for vpc, inward, outward, _ in self._hops(flow):
            links = {"iifname": inward, "oifname": outward}
            if stale["ct direction"] == "reply":
                links = {"iifname": outward, "oifname": inward}
            links |= {"meta mark": CHECKED_MARK} if links["iifname"].startswith("br-") else {}
            # A live flow from the internet was translated once, whether or not its port is published now.
            translated = {"dnat": inward == names.UPLINK and flow.protocol in PORT_PROTOCOLS}
            translated |= self._called(flow, vpc)
            found.append(self._tables[vpc].walk("filter-forward", stale | links | translated).verdict == "accept")
        return found

    def _crosses(self, flow: Flow, vpc: str, inward: str, outward: str, more: dict) -> bool:
        first = packet(flow, iifname=inward, **self._sender(flow, inward))
        first |= self._before_nat(flow, vpc) if inward == names.UPLINK and more["dnat"] else {}
        arrived = self._tables[vpc].walk("filter-prerouting", first)
        if arrived.verdict != "accept":
            return False
        judged = packet(flow, iifname=inward, oifname=outward, **more) | self._called(flow, vpc)
        judged |= {"meta mark": arrived.mark} if arrived.mark else {}
        return self._tables[vpc].walk("filter-forward", judged).verdict == "accept"

    def _called(self, flow: Flow, vpc: str) -> dict:
        """The port of the host that a flow from the internet called; an unpublished one where none leads there."""
        item = self._publication(self._world.vpc(vpc), flow) if flow.source.vpc is None else None
        return {"ct original proto-dst": self._entry(item, flow) if item else 7}

    @staticmethod
    def _entry(item: Publication, flow: Flow) -> int:
        """The port at which the router accepts a flow to a port of the instance."""
        return item.entry_port + flow.port - item.target_port

    def _hops(self, flow: Flow) -> list[tuple[str, str, str, dict]]:
        """(VPC, link in, link out, more) for each router, as its routes would send the flow."""
        source, destination = flow.source, flow.destination
        if source.vpc is not None:
            vpc = self._world.vpc(source.vpc)
            inward = self._bridge(vpc, source.address)
            outward = self._outward(vpc, flow)
            hops = [(vpc.name, inward, outward, {"dnat": False})]
            if outward.startswith("pr-"):
                peer = self._world.vpc(destination.vpc)
                inside = self._bridge(peer, destination.address)
                hops.append((peer.name, names.peer_link(vpc.name), inside, {"dnat": False}))
            return hops
        if destination.vpc is None:
            return []
        vpc = self._world.vpc(destination.vpc)
        published = self._publication(vpc, flow) is not None
        return [(vpc.name, names.UPLINK, self._bridge(vpc, destination.address), {"dnat": published})]

    def _outward(self, vpc: Vpc, flow: Flow) -> str:
        inside = [subnet for subnet in vpc.subnets if any(flow.destination.address in one for one in subnet.prefixes)]
        if inside:
            return names.bridge(inside[0].name)
        for peer in self._world.peers(vpc.name):
            if any(flow.destination.address in prefix for prefix in peer.prefixes):
                return names.peer_link(peer.name)
        return names.UPLINK

    @staticmethod
    def _bridge(vpc: Vpc, address) -> str:
        found = [subnet.name for subnet in vpc.subnets if any(address in prefix for prefix in subnet.prefixes)]
        return names.bridge(found[0]) if found else "lo"

    def _sender(self, flow: Flow, inward: str) -> dict:
        if flow.source.vpc is None:
            return {"ether saddr": "02:00:00:00:00:01"}
        members = self._world.vpc(flow.source.vpc).instances
        mac = next((one.mac for one in members if flow.source.address in one.addresses), "02:00:00:00:00:02")
        return {"ether saddr": mac}

    def _publication(self, vpc: Vpc, flow: Flow):
        for item in vpc.publications:
            target = (vpc.instance(item.instance).addresses[0], item.protocol)
            there = item.targets[0] <= (flow.port or 0) <= item.targets[1]
            # Only the host calls ports that are published for it.
            gateway = uplink_pair(self._world.transit, vpc.index)[0]
            callable_ = not item.local or flow.source.address == gateway
            if target == (flow.destination.address, flow.protocol) and there and callable_:
                return item
        return None

    def _before_nat(self, flow: Flow, vpc: str) -> dict:
        """What destination NAT exchanges, found backwards in the map that does it."""
        found = self._world.vpc(vpc)
        item = self._publication(found, flow)
        entry = self._entry(item, flow)
        if item.count > 1 and item.entry_port == item.target_port:
            element = self._tables[vpc].found("ranges", (item.protocol, entry))
            assert (element.data, entry) == (str(flow.destination.address), flow.port)
        else:
            element = self._tables[vpc].found("published", (item.protocol, entry))
            assert element.data == f"{flow.destination.address} . {flow.port}"
        return {"ip daddr": uplink_pair(self._world.transit, found.index)[1], "th dport": entry}


@settings(max_examples=40, deadline=None)
@given(any_world, seeds)
def test_the_tables_carry_exactly_the_flows_that_the_oracle_allows(world: World, seed: int) -> None:
    carrier = Carrier(world)
    for flow in routed(world, worlds.flows(world, random.Random(seed), FLOWS)):
        assert carrier.carries(flow) is oracle.decide(world, flow).allowed, flow


@settings(max_examples=40, deadline=None)
@given(any_world, seeds)
def test_a_live_flow_is_judged_again_as_if_it_were_new(world: World, seed: int) -> None:
    carrier = Carrier(world)
    for flow in routed(world, worlds.flows(world, random.Random(seed), FLOWS)):
        if not (begins(flow) and ends_exist(world, flow)):
            continue
        allowed = oracle.decide(world, flow).allowed
        assert all(carrier.carries_back(flow, again(flow))) is allowed, flow
        if back := reply(flow):
            assert all(carrier.carries_back(flow, back)) is allowed, flow


def ends_exist(world: World, flow: Flow) -> bool:
    """Is each end an instance, or in the internet?  Only such flows can have passed before and be live."""
    return (
        all(
            place.vpc is None or any(place.address in one.addresses for one in world.vpc(place.vpc).instances)
            for place in (flow.source, flow.destination)
        )
        and "not an internet address" not in oracle.decide(world, flow).stages[0].origin
    )


def routed(world: World, flows: list[Flow]) -> list[Flow]:
    """Those flows that some router sees: not those of the internet with itself, or between VPCs without a route."""
    peers = {vpc.name: {vpc.name, *(peer.name for peer in world.peers(vpc.name))} for vpc in world.vpcs}
    return [
        flow
        for flow in flows
        if (flow.source.vpc or flow.destination.vpc)
        and (None in (flow.source.vpc, flow.destination.vpc) or flow.destination.vpc in peers[flow.source.vpc])
        and not _is_of_another_uplink(world, flow)
    ]


def _is_of_another_uplink(world: World, flow: Flow) -> bool:
    """Does an end have the address of another VPC's uplink?  The host refuses it, and the router has no rule for it."""
    own = {flow.source.vpc, flow.destination.vpc}
    others = [uplink_pair(world.transit, vpc.index) for vpc in world.vpcs if vpc.name not in own]
    return any(place.address in pair for place in (flow.source, flow.destination) for pair in others)


# -- the host's table ----------------------------------------------------------------------------------------------

LAN, CARD, LATER = "eth0", "eth1", "docker0"
# The host's links by index; all other links of a test are uplinks.
INDICES = {LAN: 2, CARD: 3, LATER: 9}


class Host:
    """Walks packets through the host's table."""

    def __init__(self, world: World, over_share: bool = False, part: HostPart = NO_PART):
        self._table = Tracer(compile_host(world, OWNER, part).tables[0], over_limit=over_share)

    def forwards(self, inward: str, outward: str, source: str, destination: str, **more: object) -> bool:
        """Does a packet that is routed from one link to another pass prerouting and forward?"""
        fields = {
            "iifname": inward, "oifname": outward, "iif": INDICES.get(inward, 50), "oif": INDICES.get(outward, 51),
            "ip saddr": worlds.address(source), "meta nfproto": "ipv4",
            "meta l4proto": UDP,
            "ip daddr": worlds.address(destination), "ct state": "new", "local": False, "dnat": False,
        }  # fmt: skip
        walked = [self._table.walk(chain, fields | more) for chain in ("host-prerouting", "host-forward")]
        return all(trace.verdict == "accept" for trace in walked)

    def takes(self, inward: str, source: str, **more: object) -> bool:
        """Does a packet to the host itself pass input?"""
        fields = {"iifname": inward, "ip saddr": worlds.address(source), **more}
        return self._table.walk("host-input", fields).verdict == "accept"


def two_vpcs(*published: Publication) -> World:
    subnet = Subnet("web", (worlds.network("10.0.0.0/28"),), True, False, (worlds.instance("one", "web", "10.0.0.2"),))
    return World(
        (
            Vpc("one", (worlds.network("10.0.0.0/26"),), 0, (subnet,), published),
            Vpc("two", (worlds.network("10.0.0.64/26"),), 1),
        ),
    )


ROUTERS = {"one": "100.64.0.1", "two": "100.64.0.3"}


def test_the_host_forwards_an_uplink_to_the_outside_and_back_alone() -> None:
    host = Host(two_vpcs())
    one, two = names.host_uplink("one"), names.host_uplink("two")
    assert host.forwards(one, LAN, ROUTERS["one"], "203.0.113.7")
    assert host.forwards(LAN, one, "203.0.113.7", "10.0.0.2", **{"ct state": "established"})
    assert not host.forwards(LAN, one, "198.51.100.20", "10.0.0.2")
    assert not host.forwards(LAN, one, "198.51.100.20", ROUTERS["one"], **{"ct state": "established"})
    assert not host.forwards(one, two, ROUTERS["one"], ROUTERS["two"])
    assert not host.forwards(one, two, ROUTERS["one"], "203.0.113.7")


def test_an_uplink_sends_from_its_own_address_alone_and_never_to_the_host() -> None:
    host = Host(two_vpcs())
    uplink = names.host_uplink("one")
    for spoofed in (ROUTERS["two"], "10.0.0.2", "198.51.100.2"):
        assert not host.forwards(uplink, LAN, spoofed, "203.0.113.7")
    for forbidden in ("100.64.0.0", "127.0.0.1", "169.254.0.1", "224.0.0.1"):
        assert not host.forwards(uplink, LAN, ROUTERS["one"], forbidden)
    assert not host.forwards(uplink, LAN, ROUTERS["one"], "198.51.100.2", local=True)
    assert not host.takes(uplink, ROUTERS["one"])
    assert host.takes(LAN, "198.51.100.20")


def test_only_what_was_translated_to_a_published_port_comes_in() -> None:
    uplink = names.host_uplink("one")
    came = {"source": "203.0.113.7", "destination": "10.0.0.2"}
    # The destination is the uplink's address only after the translation, which prerouting at raw has not seen.
    assert Host(two_vpcs(Publication(TCP, 8080, "web", 80))).forwards(LAN, uplink, **came, dnat=True)
    assert not Host(two_vpcs(Publication(TCP, 8080, "web", 80))).forwards(LAN, uplink, **came, dnat=False)
    assert not Host(two_vpcs()).forwards(LAN, uplink, **came, dnat=True)


def test_a_vpc_over_its_share_begins_no_flow_and_keeps_those_it_has() -> None:
    published = two_vpcs(Publication(TCP, 8080, "web", 80))
    link, out = names.host_uplink("one"), (ROUTERS["one"], "203.0.113.7")
    for over in (False, True):
        host = Host(published, over_share=over)
        assert host.forwards(link, LAN, *out) is not over
        assert host.forwards(LAN, link, "203.0.113.7", "10.0.0.2", dnat=True) is not over
        established = {"ct state": "established"}
        assert host.forwards(link, LAN, *out, **established)
        assert host.forwards(LAN, link, "203.0.113.7", "10.0.0.2", **established)


def test_a_protocol_without_ports_leaves_for_the_vpc_alone_that_has_it_by_name() -> None:
    world = two_vpcs()
    gre = {"meta l4proto": 47}
    for named in (False, True):
        one = dataclasses.replace(world.vpc("one"), nat_protocols=(47,) if named else ())
        host = Host(world.with_vpc(one))
        assert host.forwards(names.host_uplink("one"), LAN, ROUTERS["one"], "203.0.113.7", **gre) is named
        assert not host.forwards(names.host_uplink("two"), LAN, ROUTERS["two"], "203.0.113.7", **gre)
        # Others of the host's networks are none of ours.
        assert host.forwards(LAN, "docker0", "203.0.113.7", "203.0.113.9", **gre)


@pytest.mark.parametrize("direction", ["original", "reply"])
def test_a_live_flow_by_a_port_that_is_unpublished_ends_though_another_port_leads_there(direction: str) -> None:
    world = two_vpcs(Publication(TCP, 8080, "web", 80), Publication(UDP, 8081, "web", 80))
    table = Tracer(compile_vpc(world, "one", OWNER).tables[0])
    links = {"iifname": names.UPLINK, "oifname": names.bridge("web")}
    flow = Flow(Place(None, worlds.address("203.0.113.7")), Place("one", worlds.address("10.0.0.2")), TCP, 80)
    stale = {"ct state": "established", "ct direction": direction, "dnat": True}
    fields = packet(flow, **stale) | links
    if direction == "reply":
        fields = reply(flow, **stale) | {"iifname": links["oifname"], "oifname": links["iifname"]}
    for called, verdict in ((8080, "accept"), (8081, "drop"), (8082, "drop")):
        assert table.walk("filter-forward", fields | {"ct original proto-dst": called}).verdict == verdict


def test_a_link_that_we_opened_leads_to_uplinks_and_to_no_link_that_did_not_forward() -> None:
    part = HostPart((OpenedLink(INDICES[LAN]),), closed=(INDICES[LAN], INDICES[CARD]))
    host, free = Host(two_vpcs(), part=part), Host(two_vpcs())
    assert host.forwards(names.host_uplink("one"), LAN, ROUTERS["one"], "203.0.113.7")
    assert host.forwards(LAN, names.host_uplink("one"), "203.0.113.7", "10.0.0.2", **{"ct state": "established"})
    between = (LAN, CARD, "203.0.113.7", "203.0.113.9")
    assert not host.forwards(*between)
    assert free.forwards(*between)
    # Replies to a flow that began where somebody turned forwarding on; never the flow itself.
    assert host.forwards(*between, **{"ct state": "established", "ct direction": "reply"})
    assert not host.forwards(*between, **{"ct state": "established", "ct direction": "original"})
    # Between two links that only we opened it ends in both directions.
    both = HostPart((OpenedLink(INDICES[LAN]), OpenedLink(INDICES[CARD])), closed=(INDICES[LAN], INDICES[CARD]))
    replies = {"ct state": "established", "ct direction": "reply"}
    assert not Host(two_vpcs(), part=both).forwards(*between, **replies)
    # The creator of a later network decides about it.
    assert host.forwards(LAN, LATER, "203.0.113.7", "203.0.113.9")
    assert host.forwards(LATER, LAN, "203.0.113.9", "203.0.113.7")
    assert host.forwards(CARD, LATER, "203.0.113.7", "203.0.113.9")


def test_the_rest_of_the_transit_range_may_be_somebody_elses() -> None:
    host = Host(two_vpcs())
    uplink, others = names.host_uplink("one"), "100.64.9.9"
    assert host.forwards(uplink, LAN, ROUTERS["one"], others)
    assert host.forwards(LAN, CARD, others, "203.0.113.7")
    assert host.forwards(CARD, LAN, "203.0.113.7", others)
    for used in ("100.64.0.0", "100.64.0.1", "100.64.0.2", "100.64.0.3"):
        assert not host.forwards(LAN, CARD, used, "203.0.113.7")
        assert not host.forwards(LAN, CARD, "203.0.113.7", used)


# -- what comes in ---------------------------------------------------------------------------------------------------


def arrives(world: World, vpc: str, **fields: object) -> bool:
    """Does a packet pass the prerouting of the VPC's router?"""
    fields = {key.replace("_", " "): value for key, value in fields.items()}
    usual = {"meta nfproto": "ipv4", "meta l4proto": TCP, "ip saddr": worlds.address("10.0.0.2")}
    usual |= {"ip daddr": worlds.address("10.0.0.3"), "ether saddr": world.vpc("one").instances[0].mac}
    usual |= {"iifname": names.bridge("web")}
    return (
        Tracer(compile_vpc(world, vpc, OWNER).tables[0]).walk("filter-prerouting", usual | fields).verdict == "accept"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"iifname": names.bridge("other")},
        {"iifname": "eth7"},
        {"ether_saddr": "02:00:00:00:00:07"},
        {"ip_saddr": worlds.address("10.0.0.3")},
        {"ip_saddr": worlds.address("203.0.113.7")},
        {"meta_nfproto": "ipv6", "ip_saddr": None, "ip_daddr": None},
    ],
)
def test_a_source_that_does_not_belong_is_dropped_before_connection_tracking(wrong: dict) -> None:
    world = two_vpcs()
    assert arrives(world, "one")
    assert not arrives(world, "one", **wrong)


def bridged(world: World, **fields: object) -> Trace:
    """The verdict of the bridge on a frame of the instance `web` of the VPC "one"."""
    usual = {"ether type": "ip", "iifname": names.port("web"), "ip saddr": worlds.address("10.0.0.2")}
    fields = {key.replace("_", " "): value for key, value in fields.items()}
    bridge = next(table for table in compile_vpc(world, "one", OWNER).tables if table.family == "bridge")
    return Tracer(bridge).walk("bridge-prerouting", usual | fields)


@pytest.mark.parametrize(
    ("frame", "verdict", "mark"),
    [
        ({}, "accept", CHECKED_MARK),
        ({"iifname": names.port("other")}, "drop", None),
        ({"ip_saddr": worlds.address("10.0.0.3")}, "drop", None),
        ({"ip_saddr": worlds.address("203.0.113.7")}, "drop", None),
        ({"ether_type": "ip6", "ip_saddr": None}, "drop", None),
        ({"ether_type": "arp", "ip_saddr": None}, "accept", None),
    ],
)
def test_a_packet_passes_the_bridge_with_a_mark_if_it_comes_by_the_port_of_its_address(
    frame: dict, verdict: str, mark: str | None
) -> None:
    trace = bridged(two_vpcs(), **frame)
    assert (trace.verdict, trace.mark) == (verdict, mark)


def test_a_marked_packet_is_not_compared_again_and_no_other_mark_will_do() -> None:
    forged = {"ip_saddr": worlds.address("203.0.113.7")}
    assert arrives(two_vpcs(), "one", meta_mark=CHECKED_MARK, **forged)
    assert not arrives(two_vpcs(), "one", meta_mark="0x1", **forged)


NOWHERE = [
    "0.0.0.1",
    "127.0.0.1",
    "169.254.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "100.64.0.0",
    "100.64.0.1",
]


@pytest.mark.parametrize("destination", NOWHERE)
def test_nothing_of_an_instance_goes_to_an_address_of_nobody_or_of_the_host(destination: str) -> None:
    world = two_vpcs()
    table = Tracer(compile_vpc(world, "one", OWNER).tables[0])
    bridge = names.bridge("web")

    def flow(address: str, protocol: int, port: int) -> Flow:
        ends = Place("one", worlds.address("10.0.0.2")), Place(None, worlds.address(address))
        return Flow(*ends, protocol, port)

    def forwarded(address: str, **more: object) -> str:
        fields = packet(flow(address, TCP, 80), iifname=bridge, oifname=names.UPLINK, **more)
        fields |= {"meta mark": CHECKED_MARK}
        return table.walk("filter-forward", fields).verdict

    def pinged(address: str, **more: object) -> str:
        return table.walk("filter-input", packet(flow(address, worlds.ICMP, 8), iifname=bridge, **more)).verdict

    assert forwarded("203.0.113.7") == "accept"
    assert forwarded(destination) == "drop"
    error = {"meta l4proto": worlds.ICMP, "icmp type": 3, "ct state": "related", "ct mark": "$generation"}
    assert forwarded(destination, **error) == "drop"
    assert pinged("10.0.0.1") == "accept"
    assert pinged(destination) == "drop"
    assert pinged(destination, **{"icmp type": 0, "ct state": "established"}) == "drop"


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("public", [False, True])
def test_a_router_has_a_default_route_where_it_looks_at_what_leaves_and_else_neither(
    public: bool, published: bool
) -> None:
    world = two_vpcs(*([Publication(TCP, 8080, "web", 80)] if published else []))
    subnet = dataclasses.replace(world.vpc("one").subnet("web"), public=public)
    world = world.with_vpc(world.vpc("one").with_subnet(subnet))
    chains = {chain.name for chain in compile_vpc(world, "one", OWNER).tables[0].chains}
    routes = [item for item in snapshot(world, "0" * 8, {})["one"] if isinstance(item, Route)]
    defaults = [route for route in routes if route.namespace == "one-router" and route.destination == "0.0.0.0/0"]
    way_out = {"nat-postrouting", "filter-postrouting", "leave"}
    assert (chains & way_out, len(defaults)) == ((way_out, 1) if public or published else (set(), 0))


@pytest.mark.parametrize("kind", [4, 5])
@pytest.mark.parametrize("link", [names.bridge("web"), names.UPLINK])
def test_no_redirect_passes_with_the_flow_that_it_quotes_nor_reaches_the_router(kind: int, link: str) -> None:
    table = Tracer(compile_vpc(two_vpcs(), "one", OWNER).tables[0])
    fields = {"meta nfproto": "ipv4", "meta l4proto": worlds.ICMP, "icmp type": kind, "iifname": link}
    fields |= {"ip saddr": worlds.address("10.0.0.2"), "ip daddr": worlds.address("10.0.0.3")}
    for state in ("related", "invalid"):  # connection tracking begins no flow with one
        seen = fields | {"ct state": state, "ct direction": "reply"}
        seen |= {"ct mark": "$generation"} if state == "related" else {}
        assert table.walk("filter-input", seen).verdict == "drop"
        assert table.walk("filter-forward", seen | {"oifname": names.bridge("web")}).verdict == "drop"


@pytest.mark.parametrize(
    ("wrong", "passes"),
    [
        ({}, True),
        ({"ip_saddr": "10.0.0.2"}, False),
        ({"ip_saddr": "10.0.0.65"}, False),
        ({"ip_saddr": "127.0.0.1"}, False),
        # Not an address of an uplink, so it may be outside.
        ({"ip_saddr": "100.64.0.9"}, True),
        ({"ip_daddr": "10.0.0.2"}, False),
        # The host's own errors, for path MTU discovery, and nothing else of the host.
        ({"ip_saddr": "100.64.0.0", "meta_l4proto": 1, "icmp_type": 3}, True),
        ({"ip_saddr": "100.64.0.0", "meta_l4proto": 1, "icmp_type": 8}, False),
        ({"ip_saddr": "100.64.0.0"}, False),
    ],
)
def test_what_comes_by_the_uplink_is_for_the_uplink_and_from_outside(wrong: dict, passes: bool) -> None:
    world = dataclasses.replace(two_vpcs(), peerings=(Peering("one", "two"),))
    usual = {"iifname": names.UPLINK, "ip_saddr": "203.0.113.7", "ip_daddr": ROUTERS["one"]} | wrong
    for field in ("ip_saddr", "ip_daddr"):
        usual[field] = worlds.address(usual[field])
    assert arrives(world, "one", **usual) is passes


# -- text ----------------------------------------------------------------------------------------------------------


def texts(world: World) -> list[str]:
    return [compile_vpc(world, vpc.name, OWNER).text(7) for vpc in world.vpcs] + [compile_host(world, OWNER).text(7)]


@settings(max_examples=20, deadline=None)
@given(worlds.worlds())
def test_equal_worlds_compile_to_equal_text_also_when_read_back_from_the_state(world: World) -> None:
    assert texts(world) == texts(world)
    kept = json.loads(json.dumps(world_to_json(world), sort_keys=True))
    assert texts(world_from_json(kept)) == texts(world)


def compiled_document(document: dict) -> Compiled:
    """The ruleset of a small VPC with the policy of `document`."""
    policy = read_policies(document, "web.json")[0].policy
    world = two_vpcs()
    subnet = dataclasses.replace(world.vpc("one").subnet("web"), policy=policy)
    return compile_vpc(world.with_vpc(world.vpc("one").with_subnet(subnet)), "one", OWNER)


PLAIN = {
    "ingress": [
        {"action": "allow", "protocol": "tcp", "port": [22, "80-90"], "source": ["10.0.0.3", "203.0.113.0/24"]},
        {"action": "deny", "protocol": "icmp", "icmp_type": "echo-request", "source": "internet"},
    ],
    "egress": [{"action": "reject", "destination": "set:office"}],
    "sets": {"office": ["203.0.113.7/32", "198.51.100.0/24"]},
}
SPELT = {
    "sets": {"office": ["198.51.100.0/24", "203.0.113.7"]},
    "egress": [{"destination": ["set:office"], "protocol": "any", "action": "reject"}],
    "description": "the same",
    "ingress": [
        {
            "source": ["203.0.113.0/24", "10.0.0.3/32", "10.0.0.3"], "port": ["80-90", "22", 22], "protocol": "TCP",
            "action": "allow", "description": "the same", "log": False,
        },
        {"icmp_type": [8], "protocol": 1, "action": "deny", "source": ["internet"]},
    ],
}  # fmt: skip


def test_two_documents_that_mean_the_same_compile_to_the_same_text() -> None:
    assert compiled_document(SPELT) == compiled_document(PLAIN)
    assert compiled_document({**PLAIN, "egress": []}) != compiled_document(PLAIN)


COMMENT = re.compile(r'(comment|log prefix) "([^"\n]*)"')


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200), st.text(max_size=60), st.text(max_size=60))
def test_words_of_users_reach_the_text_as_harmless_comments_alone(file: str, description: str, pointer: str) -> None:
    evil, plain = (_worded(*words) for words in ((file, description, pointer), ("plain", "", "")))
    assert COMMENT.sub("", evil) == COMMENT.sub("", plain)
    for _, words in COMMENT.findall(evil):
        assert re.fullmatch(rf"[A-Za-z0-9 ._,:/#=+~-]{{0,{COMMENT_LIMIT}}}", words)


def _worded(file: str, description: str, pointer: str) -> str:
    rules = tuple(
        Rule(action, TCP, ((port, port),), None, None, None, log, None, description, f"{file}#{pointer}/ingress/{port}")
        for port, (action, log) in enumerate([(one, log) for one in Action for log in (True, False)], 1)
    )
    policy = Policy(rules, rules, (), (), description, file, pointer)
    subnet = dataclasses.replace(two_vpcs().vpc("one").subnet("web"), policy=policy)
    world = two_vpcs()
    return "".join(texts(world.with_vpc(world.vpc("one").with_subnet(subnet))))


def test_a_quote_a_newline_or_a_brace_in_a_file_name_closes_nothing() -> None:
    text = _worded('x" }\n}\nflush ruleset\ntable ip x { comment "', "", "")
    assert "x_ __" in text
    assert "flush" not in [line.split()[:1] for line in text.splitlines()]
    assert text.count("{") == text.count("}")


def test_the_generation_is_no_part_of_the_fingerprint() -> None:
    compiled = compile_vpc(two_vpcs(), "one", OWNER)
    one, other = compiled.text(1).splitlines(), compiled.text(2**32 - 1).splitlines()
    differing = [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
    assert differing[0] == ("define generation = 1", f"define generation = {2**32 - 1}")
    assert all(compiled.fingerprint in line for pair in differing[1:] for line in pair)
    assert len(differing) == 1 + len(compiled.tables)


def test_a_batch_replaces_each_table_whole() -> None:
    compiled = compile_vpc(two_vpcs(), "one", OWNER)
    lines = compiled.text(1).splitlines()
    named = [f"{table.family} {table.name}" for table in compiled.tables]
    assert "inet vpcctl" in named
    wanted = [f"{verb} table {name}" for name in named for verb in ("add", "delete")]
    wanted += [f"table {name} {{" for name in named]
    assert [line for line in lines if line[:1] not in ("", "\t", "}")] == ["define generation = 1", *wanted]


def test_the_closed_ruleset_lets_nothing_pass() -> None:
    chains = [chain for table in compile_closed(OWNER).tables for chain in table.chains]
    assert {(chain.hook.hook, chain.hook.policy, chain.rules) for chain in chains} == {
        (hook, "drop", ()) for hook in ("prerouting", "input", "forward", "output")
    }


def test_every_lookup_of_an_open_table_finds_its_set_and_chain() -> None:
    """The tracer refuses a jump to no chain; here every rule is tried, not those alone that a packet reaches."""
    table = compiled_document(PLAIN).tables[0]
    text = "\n".join(table.lines())
    # A comma follows the name of a header, as in @th,48,16.
    asked = set(re.findall(r"@([\w.-]+)(?![\w.,-])", text)) | set(re.findall(r"(?:jump|goto) ([\w.-]+)", text))
    assert asked <= {part.name for part in (*table.sets, *table.chains)}
    assert {"judge", "members"} <= asked


def test_a_silent_policy_needs_no_gate_and_an_empty_list_closes_one() -> None:
    assert "ingress-web" not in str(compiled_document({"egress": []}))
    assert "ingress-web" not in str(compiled_document({"ingress": [], "default": {"ingress": "allow"}}))
    assert "ingress-web" in str(compiled_document({"ingress": []}))
    assert "ingress-web" in str(compiled_document({"default": {"ingress": "deny"}}))


def test_a_hundred_rules_of_one_shape_make_one_lookup() -> None:
    def rules(count: int) -> list[dict]:
        return [{"action": "allow", "protocol": "tcp", "port": port} for port in range(1, count + 1)]

    few, many = (compiled_document({"ingress": rules(count)}) for count in (2, 100))

    def chain(compiled: Compiled) -> Chain:
        return next(one for one in compiled.tables[0].chains if one.name == "ingress-web")

    assert chain(few) == chain(many)
    assert len(chain(many).rules) == 2


# -- views ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(worlds.NETWORKS), max_size=6), st.sampled_from([4, 6]))
def test_the_complement_holds_what_the_prefixes_do_not(prefixes: list, version: int) -> None:
    found = complement(prefixes, version)
    edges = {edge for prefix in (*worlds.NETWORKS, *found) for edge in (prefix[0], prefix[-1])}
    for edge in (edge for edge in edges if edge.version == version):
        holders = [prefix for prefix in found if edge in prefix]
        assert len(holders) == (not any(edge in prefix for prefix in prefixes))


def test_a_view_of_no_vpc_says_which_there_are() -> None:
    with pytest.raises(ConflictError, match=r"VPC 'three' not found; known VPCs: one, two"):
        View.of(two_vpcs(), "three")


@pytest.mark.parametrize("kind", ["subnet", "instance", "vpc", "set"])
def test_what_is_named_and_not_there_means_no_prefix(kind: str) -> None:
    assert View.of(two_vpcs(), "one").resolve(Endpoint(kind, "ghost"), Policy()) == ()
