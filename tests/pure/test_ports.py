"""Published ports as values: addresses and ranges, conflicts, and their form in documents."""

from __future__ import annotations

import dataclasses
import json
from ipaddress import ip_address, ip_network

import pytest

from tests import worlds
from vpcctl.compiler import compile_host
from vpcctl.compiler.host_table import host_table
from vpcctl.documents.codec import world_from_json, world_to_json
from vpcctl.documents.diff import exported, object_changes
from vpcctl.documents.environment import read_environment
from vpcctl.errors import ConflictError, DocumentError
from vpcctl.kernel.port_holders import ForeignRule, foreign_rules, holders, in_words
from vpcctl.kernel.sockets import ListeningSocket
from vpcctl.model import operations
from vpcctl.model.network import Publication, Vpc, World, placed
from vpcctl.model.policy import SCTP, TCP, UDP
from vpcctl.resources import topology
from vpcctl.resources.kinds import LinkSetting

HOST, SECOND, LOOPBACK = map(ip_address, ("198.51.100.2", "192.0.2.1", "127.0.0.1"))
OWN = [ip_network(f"{HOST}/32"), ip_network(f"{SECOND}/32"), ip_network("127.0.0.0/8")]


def world(*items: Publication) -> World:
    """Two VPCs; the first one publishes the given ports one after the other."""
    made = World(
        tuple(
            Vpc(name, (worlds.network(prefix),), index, (worlds.Subnet("web", (worlds.network(prefix),), True, False,
                (worlds.instance(name, "web", f"10.{index}.0.2"), worlds.instance(name, "db", f"10.{index}.0.3"))),))
            for index, (name, prefix) in enumerate({"one": "10.0.0.0/24", "two": "10.1.0.0/24"}.items())
        )
    )  # fmt: skip
    for item in items:
        made = operations.publish_port(made, "one", item)
    return made


# -- which go together ---------------------------------------------------------------------------------------------


def test_ranges_and_addresses_conflict_exactly_where_they_share_a_port() -> None:
    taken = world(Publication(TCP, 8000, "web", 80, 11, HOST))
    for fits in (
        Publication(TCP, 7999, "web", 1),
        Publication(TCP, 8011, "web", 1),
        Publication(UDP, 8005, "web", 1),
        Publication(TCP, 8005, "web", 1, 3, SECOND),
        Publication(TCP, 7990, "web", 1, 10),
    ):
        assert len(operations.publish_port(taken, "one", fits).vpc("one").publications) == 2
        assert operations.publish_port(taken, "two", fits)
    for clashes in (
        Publication(TCP, 8000, "web", 1),
        Publication(TCP, 8010, "web", 1, 5),
        Publication(TCP, 7000, "web", 1, 3000),
        Publication(TCP, 8005, "web", 1, 1, HOST),
    ):
        for vpc in ("one", "two"):
            with pytest.raises(ConflictError, match=r"published for instance web of VPC one already \(as tcp/8000-80"):
                operations.publish_port(taken, vpc, clashes)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((TCP, 65535, "web", 80, 2), "65535-65536 is not in 1–65535"),
        ((TCP, 80, "web", 65535, 2), "65535-65536 is not in 1–65535"),
        ((TCP, 0, "web", 80), "port 0 is not in"),
        ((TCP, 80, "web", 80, 1, ip_address("0.0.0.0")), "0.0.0.0 cannot be an address of the host"),
        ((TCP, 80, "web", 80, 1, ip_address("255.255.255.255")), "cannot be an address of the host"),
    ],
)
def test_what_no_host_can_publish_is_wrong_by_itself(item: tuple, words: str) -> None:
    with pytest.raises(DocumentError, match=words):
        Publication(*item)


def test_an_address_of_the_uplinks_is_not_published_at() -> None:
    with pytest.raises(ConflictError, match="is an address of the VPCs' uplinks"):
        world(Publication(TCP, 80, "web", 80, 1, ip_address("100.64.0.0")))


def test_the_router_tells_apart_what_is_published_twice_and_nobody_moves() -> None:
    both = world(Publication(TCP, 80, "web", 80, 3, HOST), Publication(TCP, 81, "db", 80, 1, SECOND))
    first, second = both.vpc("one").publications
    assert (first.entries, second.entries) == ((80, 82), (1024, 1024))
    # The later publication keeps its port when the other one is removed.
    left = operations.unpublish_port(both, "one", TCP, 80, 3)
    assert left.vpc("one").publications == (second,)
    third = Publication(TCP, 1000, "web", 80, 100, SECOND)
    assert placed(third, (second,)).entries == (1025, 1124)
    assert placed(dataclasses.replace(third, protocol=UDP), (second,)).entries == (1000, 1099)
    with pytest.raises(ConflictError, match="no 32000 consecutive ports are left"):
        placed(Publication(TCP, 1024, "web", 1, 32000, SECOND), (second,))


def test_a_publication_is_taken_back_as_it_was_made() -> None:
    both = world(Publication(TCP, 80, "web", 80, 1, HOST), Publication(TCP, 80, "db", 80, 1, SECOND))
    with pytest.raises(ConflictError, match=f"at several addresses; choose one: .*--address {HOST}.*{SECOND}"):
        operations.unpublish_port(both, "one", TCP, 80)
    assert len(operations.unpublish_port(both, "one", TCP, 80, 1, HOST).vpc("one").publications) == 1
    alone = world(Publication(TCP, 8000, "web", 80, 11, HOST))
    assert operations.unpublish_port(alone, "one", TCP, 8000, 11).vpc("one").publications == ()
    for port, count in ((8000, 1), (8005, 1), (8000, 12)):
        with pytest.raises(ConflictError, match="as a whole; `vpcctl unpublish-port --vpc one --port 8000-8010 --add"):
            operations.unpublish_port(alone, "one", TCP, port, count)
    with pytest.raises(ConflictError, match="does not publish that port"):
        operations.unpublish_port(alone, "one", TCP, 8000, 11, SECOND)


# -- documents -----------------------------------------------------------------------------------------------------


def test_documents_keep_addresses_ranges_and_the_routers_ports() -> None:
    made = world(
        Publication(TCP, 80, "web", 80, 3, HOST),
        Publication(TCP, 80, "db", 90, 1, SECOND),
        Publication(UDP, 53, "db", 53),
    )
    assert world_from_json(json.loads(json.dumps(world_to_json(made)))) == made
    document = exported(made)
    assert document["vpcs"][0]["publish"] == [
        {"protocol": "tcp", "port": "80-82", "instance": "web", "target_port": "80-82", "address": str(HOST)},
        {"protocol": "tcp", "port": 80, "instance": "db", "target_port": 90, "address": str(SECOND)},
        {"protocol": "udp", "port": 53, "instance": "db", "target_port": 53},
    ]

    def read(present: World) -> World:
        return read_environment(document, "env.json", lambda name: ({}, name), present)

    assert [vpc.publications for vpc in read(made).vpcs] == [vpc.publications for vpc in made.vpcs]
    # Existing publications keep their ports in the router, whatever the order in the document.
    document["vpcs"][0]["publish"].reverse()
    assert set(read(made).vpc("one").publications) == set(made.vpc("one").publications)
    assert len(read(World()).vpc("one").publications) == 3


def test_a_change_of_ranges_and_addresses_is_told_in_words() -> None:
    before, after = world(Publication(TCP, 80, "web", 80)), world(Publication(TCP, 80, "web", 90, 3, HOST))
    assert list(map(str, object_changes(before, after))) == [
        "- published tcp/80 for one/web port 80",
        f"+ published tcp/80-82 at {HOST} for one/web port 90-92",
    ]


# -- the host's side -----------------------------------------------------------------------------------------------


def test_loopback_addresses_are_routed_by_uplinks_of_vpcs_alone_that_need_it() -> None:
    def routed(*items: Publication) -> bool:
        found = topology.snapshot(world(*items), "id", {})["one"]
        return any(isinstance(item, LinkSetting) and "route_localnet" in item.path for item in found)

    assert routed(Publication(TCP, 80, "web", 80))
    assert routed(Publication(TCP, 80, "web", 80, 1, LOOPBACK))
    assert not routed(Publication(TCP, 80, "web", 80, 1, HOST))
    assert not routed()


def test_source_nat_takes_no_port_of_a_range() -> None:
    text = compile_host(world(Publication(TCP, 40000, "web", 80, 10)), "x").text(1)
    assert "32768-39999" in text
    assert "40010-65535" in text


def test_a_long_range_is_one_element_unless_its_ports_are_renumbered() -> None:
    plain = host_table(world(Publication(TCP, 20000, "web", 20000, 10000)))
    assert max(len(one.elements) for one in plain.sets if hasattr(one, "elements")) < 5
    twice = (Publication(TCP, 80, "web", 80, 3, HOST), Publication(TCP, 80, "db", 80, 3, SECOND))
    [moved] = [one for one in host_table(world(*twice)).sets if one.name == "published-at"]
    assert [element.data for element in moved.elements] == [f"100.64.0.1 . {port}" for port in (1024, 1025, 1026)]


# -- who else has a port -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "only_ipv6", "everywhere", "at_host", "at_loopback"),
    [
        ("0.0.0.0", False, True, True, True),
        ("::", False, True, True, True),
        ("::", True, False, False, False),
        ("::1", False, False, False, False),
        ("::ffff:198.51.100.2", False, True, True, False),
        (str(HOST), False, True, True, False),
        (str(SECOND), False, True, False, False),
        ("127.0.0.1", False, True, False, True),
        # systemd-resolved; calls of 127.0.0.53 are never translated.
        ("127.0.0.53", False, False, False, False),
    ],
)
def test_a_program_has_a_port_where_it_would_be_called(
    address: str, only_ipv6: bool, everywhere: bool, at_host: bool, at_loopback: bool
) -> None:
    listener = ListeningSocket(TCP, 8005, ip_address(address), 7, only_ipv6)
    for at, expected in ((None, everywhere), (HOST, at_host), (LOOPBACK, at_loopback)):
        ranged, beside = Publication(TCP, 8000, "web", 80, 6, at), Publication(TCP, 8000, "web", 80, 5, at)
        other = Publication(UDP, 8005, "web", 80, 1, at)
        found = holders([ranged, beside, other], [listener], [], OWN)
        assert (ranged in found) is expected, at
        assert beside not in found
        assert other not in found
    told = address.removeprefix("::ffff:")
    assert in_words([listener], {7: "sshd (PID 12)"}) == f"sshd (PID 12) listens on tcp/8005 at {told}"


# As nft 1.0.6 prints rules of Docker (by iptables-nft), of people, and ours.
LISTING = """\
table ip nat {
	chain DOCKER {
		iifname != "docker0" tcp dport 8080 counter packets 0 bytes 0 dnat to 172.17.0.2:80
		iifname != "docker0" ip daddr 127.0.0.1 tcp dport 8090 counter packets 0 bytes 0 dnat to 172.17.0.2:90
		meta l4proto udp udp dport { 53, 5000-5010 } counter packets 0 bytes 0 redirect to :99
		tcp dport 4000 counter packets 0 bytes 0 xt target "DNAT"
		tcp dport 4001 counter packets 0 bytes 0 masquerade
		meta l4proto tcp counter packets 0 bytes 0 dnat to 10.244.0.5:80
	}
}
table inet people {
	map services {
		type inet_service : ipv4_addr . inet_service
		elements = { 7400 : 203.0.113.10 . 80,
			7500-7510 : 203.0.113.10 . 80 }
	}
	set doors {
		type inet_proto . inet_service
		elements = { tcp . 7600, udp . 7601 }
	}
	chain theirs {
		type nat hook prerouting priority dstnat; policy accept;
		dnat ip to tcp dport map @services
		dnat ip to tcp dport map { 7700 : 10.0.0.1, 7701 : 10.0.0.2 }
		meta l4proto . th dport @doors dnat ip to 10.0.0.1
		ip daddr 10.96.0.1 tcp dport 443 dnat ip to 10.0.0.1
		ip daddr 198.51.100.2 dnat ip to 10.0.0.1
		tcp dport != 1-65000 dnat ip to 10.0.0.1
		some words that nobody knows dport x dnat to 10.0.0.1
	}
}
table inet vpcctl {
	chain called {
		tcp dport 9999 dnat ip to 100.64.0.1
	}
}
"""


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (Publication(TCP, 8080, "web", 80, 1, SECOND), "Docker's chain DOCKER of table ip nat"),
        (Publication(TCP, 8000, "web", 80, 100, SECOND), "Docker's chain DOCKER of table ip nat"),
        (Publication(UDP, 8080, "web", 80, 1, SECOND), ""),
        (Publication(TCP, 8090, "web", 80, 1, LOOPBACK), "Docker's chain DOCKER of table ip nat"),
        (Publication(TCP, 8090, "web", 80, 1, SECOND), ""),
        (Publication(UDP, 5005, "web", 80, 1, SECOND), "Docker's chain DOCKER of table ip nat"),
        (Publication(UDP, 5011, "web", 80, 1, SECOND), ""),
        (Publication(TCP, 4000, "web", 80, 1, SECOND), "Docker's chain DOCKER of table ip nat"),
        (Publication(TCP, 4001, "web", 80, 1, SECOND), ""),
        (Publication(TCP, 7400, "web", 80, 1, SECOND), "chain theirs of table inet people"),
        (Publication(TCP, 7505, "web", 80, 1, SECOND), "chain theirs of table inet people"),
        (Publication(TCP, 7511, "web", 80, 1, SECOND), ""),
        (Publication(TCP, 7600, "web", 80, 1, SECOND), "chain theirs of table inet people"),
        (Publication(UDP, 7600, "web", 80, 1, SECOND), ""),
        (Publication(TCP, 7701, "web", 80, 1, SECOND), "chain theirs of table inet people"),
        (Publication(TCP, 443, "web", 80, 1, SECOND), ""),
        (Publication(SCTP, 1, "web", 80, 1, HOST), "chain theirs of table inet people"),
        (Publication(SCTP, 1, "web", 80, 1, SECOND), ""),
        (Publication(SCTP, 1, "web", 80), "chain theirs of table inet people"),
        (Publication(TCP, 65001, "web", 80, 1, SECOND), "chain theirs of table inet people"),
        (Publication(TCP, 9999, "web", 80, 1, SECOND), ""),
    ],
)
def test_a_foreign_rule_has_a_port_where_it_would_translate_calls(item: Publication, named: str) -> None:
    found = holders([item], [], foreign_rules(LISTING), OWN).get(item, [])
    assert {str(one) for one in found} == ({f"{named} translates it"} if named else set())
    assert all(isinstance(one, ForeignRule) for one in found)


def test_many_holders_of_a_range_are_counted() -> None:
    many = [ListeningSocket(TCP, port, ip_address("0.0.0.0"), port) for port in range(80, 90)]
    assert in_words(many, {}).endswith("a program listens on tcp/82 at 0.0.0.0 and 7 more")


@pytest.mark.parametrize("rule", ["ct status dnat accept", "icmp type redirect accept", "ct status snat,dnat drop"])
def test_a_rule_that_matches_translated_packets_translates_nothing(rule: str) -> None:
    chains = "\t\ttype filter hook forward priority filter + 10; policy accept;"
    assert foreign_rules(f"table inet firewalld {{\n\tchain forward {{\n{chains}\n\t\t{rule}\n\t}}\n}}\n") == []


@pytest.mark.parametrize(
    "lookup",
    [
        "tcp dport 30080 jump KUBE-EXT",
        "meta l4proto tcp tcp dport { 30080, 30443 } counter packets 0 bytes 0 goto KUBE-EXT",
        "meta l4proto . th dport vmap @nodeports",
        "tcp dport vmap { 30080 : jump KUBE-EXT, 80 : accept }",
    ],
)
def test_a_port_may_be_asked_for_in_one_chain_and_translated_behind_others(lookup: str) -> None:
    listing = f"""table ip kube-proxy {{
\tmap nodeports {{
\t\ttype inet_proto . inet_service : verdict
\t\telements = {{ tcp . 30080 : goto KUBE-EXT }}
\t}}

\tchain nat-prerouting {{
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tip daddr 10.96.0.1 tcp dport 443 jump KUBE-EXT
\t\tfib daddr type local jump KUBE-NODEPORTS
\t}}

\tchain KUBE-NODEPORTS {{
\t\ttcp dport 22 jump KUBE-MARK
\t\t{lookup}
\t}}

\tchain KUBE-MARK {{
\t\tmeta mark set 0x4000
\t}}

\tchain KUBE-EXT {{
\t\tjump KUBE-SEP
\t}}

\tchain KUBE-SEP {{
\t\tmeta l4proto tcp dnat to 10.244.0.5:8080
\t}}
}}
"""
    items = {port: Publication(TCP, port, "web", port) for port in (22, 80, 443, 30080)}
    found = holders(list(items.values()), [], foreign_rules(listing), OWN)
    assert list(found) == [items[30080]]
    assert str(found[items[30080]][0]) == "chain KUBE-NODEPORTS of table ip kube-proxy translates it"
