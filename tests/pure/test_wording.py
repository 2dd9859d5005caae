"""Sets of packets in words: the words are read back and must mean the same set, and be as few as a person would use."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import words, worlds
from vpcctl.analysis import packetset
from vpcctl.analysis.packetset import Interval, Space
from vpcctl.analysis.reachability import FLOWS, Reach, Zone
from vpcctl.analysis.rendering import LONGEST_LIST, Line, lines, service_in_words, services_in_words
from vpcctl.documents.environment import read_environment
from vpcctl.documents.policies import read_policy
from vpcctl.model.host import Host
from vpcctl.model.network import Subnet, Vpc, World

# -- exact ---------------------------------------------------------------------------------------------------------

protocols = st.sampled_from([0, 1, 2, 5, 6, 6, 6, 17, 17, 47, 58, 132, 254, 255])
port_ranges = st.sampled_from(
    [(0, 65535), (1, 65535), (0, 0), (22, 22), (80, 80), (81, 90), (8, 8), (8, 17), (128, 139)]
)
some_services = st.none() | st.lists(st.tuples(protocols, st.none() | port_ranges), min_size=1, max_size=4)


@st.composite
def intervals(draw: st.DrawFn, whole: tuple[Interval, ...]) -> list[Interval] | None:
    """Some ranges inside a zone's addresses, or None for all of it."""
    if draw(st.booleans()):
        return None
    found = []
    for low, high in draw(st.lists(st.sampled_from(whole), min_size=1, max_size=3)):
        first = draw(st.integers(low, min(high, low + 40)) | st.integers(low, high))
        found.append((first, draw(st.integers(first, min(high, first + 20)) | st.just(high))))
    return found


def products(sides: list[list[Interval] | None], chosen: list | None) -> Space:
    if chosen is None:
        return Space.of(*sides, None, None)
    found = packetset.NOTHING
    for protocol, ports in chosen:
        found |= Space.of(*sides, [(protocol, protocol)], None if ports is None else [ports])
    return found


@st.composite
def told(draw: st.DrawFn) -> tuple[Reach, Zone, Zone, Space]:
    """A world, two zones of it with a path between them, and packets from one to the other."""
    world = draw(worlds.worlds(draw(st.booleans())).filter(lambda world: any(vpc.subnets for vpc in world.vpcs)))
    reach = Reach(world, draw(worlds.hosts))
    source, destination = draw(st.sampled_from(list(reach.pairs())))
    zones = ((source, packetset.SOURCE), (destination, packetset.DESTINATION))
    wholes = [reach.addresses(zone, str(source.vpc or destination.vpc), end) for zone, end in zones]
    packets = packetset.NOTHING
    for _ in range(draw(st.integers(1, 4))):
        piece = products([draw(intervals(whole)) for whole in wholes], draw(some_services))
        packets = packets | piece if draw(st.booleans()) or not packets else packets - piece
    return reach, source, destination, packets & FLOWS & Space.of(*wholes, None, None)


@settings(max_examples=60, deadline=None)
@given(told(), st.sampled_from([None, "", "alpha"]))
def test_the_words_mean_exactly_the_packets(case: tuple[Reach, Zone, Zone, Space], home: str | None) -> None:
    reach, source, destination, packets = case
    found = list(lines(packets, source, destination, reach, home))
    assert words.packets(found, source, destination, reach, home) == packets, list(map(str, found))


@settings(max_examples=100, deadline=None)
@given(some_services, st.sampled_from([{4}, {6}, {4, 6}]))
def test_services_in_words_mean_exactly_the_services(chosen: list | None, versions: set[int]) -> None:
    possible = words.services(["any"]) & FLOWS
    ends = [
        packetset.VERSION_4 if 4 in versions else packetset.VERSION_6,
        packetset.VERSION_6 if 6 in versions else packetset.VERSION_4,
    ]
    here = Space.of(ends, ends, None, None)
    # Services alone, out of what there is between such ends: the parts of all ends, put together.
    wanted = packetset.NOTHING
    for _, to in packetset.cuts((products([None, None], chosen) & possible & here).partition, packetset.SOURCE):
        for _, part in packetset.cuts(to, packetset.DESTINATION):
            wanted |= Space(part)
    found = services_in_words(wanted.partition, frozenset(versions))
    assert (words.services(found) & possible & here) == (wanted & possible & here), found


HOST = Host(
    tuple(map(ipaddress.ip_network, ("198.51.100.2/32", "203.0.113.0/28"))),
    tuple(map(ipaddress.ip_network, ("198.51.100.0/32", "198.51.100.255/32"))),
)


@pytest.mark.parametrize(
    ("prefixes", "said"),
    [
        # What the host has in their midst and on their edges does not cut them into pieces.
        ("198.51.100.0/24", "internet 198.51.100.0/24"),
        ("198.51.100.0/25", "internet 198.51.100.0/25"),
        ("198.51.100.128/25", "internet 198.51.100.128/25"),
        ("203.0.113.0/24", "internet 203.0.113.0/24"),
        ("203.0.113.0/27", "internet 203.0.113.16/28"),
        ("198.51.100.1/32", "internet 198.51.100.1"),
        ("198.51.100.3/32", "internet 198.51.100.3"),
        ("198.51.100.1/32 198.51.100.3/32", "internet 198.51.100.0/30"),
        ("198.51.100.4/30", "internet 198.51.100.4/30"),
        ("0.0.0.0/1 128.0.0.0/1", "internet"),
    ],
)
def test_the_hosts_addresses_do_not_cut_the_internet_into_pieces(prefixes: str, said: str) -> None:
    reach = Reach(world(), HOST)
    web, outside = reach.zones["shop", "web"], reach.zones[None, None]
    asked = Space.of(
        None, [packetset.interval(ipaddress.ip_network(prefix)) for prefix in prefixes.split()], None, None
    )
    packets = reach.carried(web, outside) & asked
    (line,) = lines(packets, web, outside, reach)
    assert line.destinations == (said,)
    assert words.packets([line], web, outside, reach) == packets
    rest = reach.carried(web, outside) - asked
    if rest:
        (line,) = lines(rest, web, outside, reach)
        assert words.packets([line], web, outside, reach) == rest
        assert line.destinations == (f"internet except {said.removeprefix('internet ')}",)


def test_a_wrong_word_is_noticed() -> None:
    """The reader is no use if it reads anything."""
    reach = Reach(world())
    web, db = reach.zones["shop", "web"], reach.zones["shop", "db"]
    for wrong in (
        Line(("wob",), ("db",), ("any",)),
        Line(("web except 10.0.3.1",), ("db",), ("any",)),
        Line(("web-2 (10.0.1.2)",), ("db",), ("any",)),
        Line(("web", "web-2 (10.0.1.9)"), ("db",), ("any",)),
        Line(("web",), ("db",), ("tcp", "tcp/80")),
        Line(("web",), ("db",), ("protocols 6-6",)),
    ):
        with pytest.raises(AssertionError):
            words.packets([wrong], web, db, reach)
    with pytest.raises(AssertionError):
        words.packets([Line(("web",), ("db",), ("any",))] * 2, web, db, reach)


# -- few -----------------------------------------------------------------------------------------------------------


def world(**policies: object) -> World:
    """Two peered VPCs; `policies` by subnet of ``shop``."""
    subnets = [
        {"name": "web", "cidr": "10.0.1.0/24", "type": "public",
         "instances": [{"name": "web"}, {"name": "web-2", "ip": "10.0.1.9"}]},
        {"name": "db", "cidr": "10.0.3.0/24", "type": "private"},
    ]  # fmt: skip
    for subnet in subnets:
        if subnet["name"] in policies:
            subnet["policy"] = policies[subnet["name"]]
    billing = {"name": "billing", "cidr": "10.1.0.0/16",
               "subnets": [{"name": "api", "cidr": "10.1.0.0/24", "type": "private"}]}  # fmt: skip
    publish = [{"protocol": "tcp", "port": 8080, "target_port": 80, "instance": "web"}]
    shop = {"name": "shop", "cidr": "10.0.0.0/16", "subnets": subnets, "publish": publish}
    return read_environment({"vpcs": [shop, billing], "peerings": [["shop", "billing"]]}, "env.json", json.loads)


def said(rules: list[dict], source: str = "web", destination: str = "db", home: str | None = None) -> list[str]:
    """What passes from one zone to another under an ingress policy of the destination, in words."""
    reach = Reach(world(**{destination: {"ingress": rules}}))
    ends = [(None, None) if name == "internet" else ("shop", name) for name in (source, destination)]
    if source == "api":
        ends[0] = ("billing", "api")
    here, there = (reach.zones[end] for end in ends)
    return list(map(str, lines(reach.allowed(here, there), here, there, reach, home)))


def allow(**fields: object) -> dict:
    return {"action": "allow", **fields}


def deny(**fields: object) -> dict:
    return {"action": "deny", **fields}


SSH, HTTP = {"protocol": "tcp", "port": 22}, {"protocol": "tcp", "port": 80}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], []),
        ([allow()], ["web → db any"]),
        ([allow(protocol="tcp", port=5432, source="subnet:web")], ["web → db tcp/5432"]),
        # Ports that touch are one range, and the order of the rules does not show.
        ([allow(protocol="tcp", port=81), allow(protocol="tcp", port=[79, 80])], ["web → db tcp/79-81"]),
        ([allow(protocol="tcp", port="1-100"), allow(protocol="tcp", port="50-200")], ["web → db tcp/1-200"]),
        ([allow(protocol="tcp"), allow(protocol="tcp", port=80)], ["web → db tcp"]),
        # What is missing, where that is shorter.
        ([deny(**SSH), allow()], ["web → db any except tcp/22"]),
        ([deny(protocol="icmp"), deny(**SSH), allow()], ["web → db any except icmp, tcp/22"]),
        ([deny(**SSH), allow(protocol="tcp")], ["web → db tcp/0-21, tcp/23-65535"]),
        ([allow(protocol="tcp"), allow(protocol="udp")], ["web → db tcp, udp"]),
        # ICMP by its names; its errors and replies begin no flow, so all requests are all of it.
        ([allow(protocol="icmp")], ["web → db icmp"]),
        ([allow(protocol="icmp", icmp_type="echo-request")], ["web → db icmp/echo-request"]),
        ([allow(protocol="icmp", icmp_type=[8, 13, 15, 17])], ["web → db icmp"]),
        ([allow(protocol="icmp", icmp_type=0)], []),
        # The other version's ICMP does not exist here, so it is not missed.
        ([deny(protocol="icmpv6"), allow()], ["web → db any"]),
        ([allow(protocol=47), allow(protocol=46), allow(protocol=50)], ["web → db protocols 46-47, protocol 50"]),
        # Instances by name, zones where they are whole.
        ([allow(source="instance:web-2")], ["web-2 (10.0.1.9) → db any"]),
        ([deny(source="instance:web-2"), allow()], ["web except web-2 (10.0.1.9) → db any"]),
        ([allow(source=["10.0.1.0/25", "10.0.1.128/25"])], ["web → db any"]),
        ([allow(source=["instance:web", "instance:web-2"])], ["web (10.0.1.2), web-2 (10.0.1.9) → db any"]),
        ([allow(source="10.0.1.77")], ["web 10.0.1.77 → db any"]),
        ([allow(source="10.0.1.64/26")], ["web 10.0.1.64/26 → db any"]),
        ([allow(source="10.0.1.0/25")], ["web 10.0.1.0/25 → db any"]),
        ([deny(source="10.0.1.64/26"), allow()], ["web except 10.0.1.64/26 → db any"]),
        ([allow(source=["10.0.1.8/31", "10.0.1.10"])], ["web 10.0.1.8-10.0.1.10 → db any"]),
        ([allow(destination="instance:db", **SSH)], ["web → db (10.0.3.2) tcp/22"]),
        # First what all have in common, then what some have more.
        (
            [allow(**SSH), allow(source="instance:web", protocol="udp")],
            ["web → db tcp/22", "web (10.0.1.2) → db udp"],
        ),
        (
            [allow(source="instance:web", **SSH), allow(source="instance:web-2", **SSH)],
            ["web (10.0.1.2), web-2 (10.0.1.9) → db tcp/22"],
        ),
    ],
)  # fmt: skip
def test_few_words_will_do(rules: list[dict], expected: list[str]) -> None:
    assert said(rules) == expected


def test_both_ip_versions_are_one_line_where_they_agree() -> None:
    prefixes = [tuple(map(worlds.network, pair)) for pair in (
        ("10.0.0.0/26", "2001:db8:0:a::/64"), ("10.0.0.0/28", "2001:db8:0:a::100/120"),
    )]  # fmt: skip
    policy = read_policy({"ingress": [allow(protocol="icmpv6"), allow(**SSH), allow(source="::/0", **HTTP)]}, "", "")
    reach = Reach(World((Vpc("alpha", prefixes[0], 0, (Subnet("web", prefixes[1], True, policy=policy),)),)))
    web = reach.zones["alpha", "web"]
    assert list(map(str, lines(reach.allowed(web, web), web, web, reach))) == [
        "web → web tcp/22, icmpv6",
        "web 2001:db8:0:a::100/120 → web 2001:db8:0:a::100/120 tcp/80",
    ]


def test_the_internet_is_one_word() -> None:
    assert said([allow()], source="internet", destination="web") == ["internet → web (10.0.1.2) tcp/80"]
    office = [allow(source="203.0.113.0/24")]
    assert said(office, source="internet", destination="web") == ["internet 203.0.113.0/24 → web (10.0.1.2) tcp/80"]
    others = [deny(source="203.0.113.7"), allow()]
    assert said(others, source="internet", destination="web") == ["internet except 203.0.113.7 → web (10.0.1.2) tcp/80"]


def test_names_are_as_the_reader_sees_them() -> None:
    one = [allow(source="10.1.0.2", **SSH)]
    assert said(one, source="api") == ["api (10.1.0.2) → shop/db tcp/22"]
    assert said(one, source="api", home="shop") == ["billing/api (10.1.0.2) → db tcp/22"]
    assert said(one, source="api", home="") == ["billing/api (10.1.0.2) → shop/db tcp/22"]
    rest = [deny(source="10.1.0.2"), allow(**SSH)]
    assert said(rest, source="api", home="shop") == ["billing/api except billing/api (10.1.0.2) → db tcp/22"]


def test_a_long_list_is_cut_for_people_alone() -> None:
    odd = list(range(11, 11 + 2 * LONGEST_LIST + 1, 2))
    assert said([allow(protocol="tcp", port=odd)])[0].endswith(f", tcp/{odd[-2]} and 1 more")
    assert said([allow(protocol="tcp", port=odd[1:])])[0].endswith(f", tcp/{odd[-1]}")
    (line,) = said([deny(source=[f"10.0.1.{number}" for number in odd]), allow()])
    assert line.startswith("web except 10.0.1.11, 10.0.1.13, ")
    assert line.endswith(f", 10.0.1.{odd[-2]} and 1 more → db any")


@pytest.mark.parametrize(
    ("protocol", "port", "expected"),
    [
        (6, 443, "tcp/443"),
        (6, None, "tcp"),
        (1, 8, "icmp/echo-request"),
        (58, 139, "icmpv6/139"),
        (47, None, "47"),
    ],
)
def test_a_service_in_words(protocol: int, port: int | None, expected: str) -> None:
    assert service_in_words(protocol, port) == expected
