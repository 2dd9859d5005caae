"""The prober itself: exact in a crowd, and silent about what it cannot judge."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.golden import RULESETS
from vpcctl.lab import HOST, INTERNET, NEIGHBOUR, RUN_LAB, Lab

# `shop/web` to `shop/db`: TCP 1–100 leaves, 50–300 may enter, 200 is rejected on the way out, the rest is dropped.
ENVIRONMENT = RULESETS / "golden" / "both-gates" / "environment.json"

PROBE = f"""
import json, sys
from ipaddress import ip_address
from vpcctl.errors import KernelError
from vpcctl.kernel.probe import Probe, Prober

WEB, DB, INTERNET = map(ip_address, ("10.0.1.2", "10.0.3.2", "{INTERNET}"))

def inside(port, protocol=6, **more):
    fields = dict(sender="shop-web", source=WEB, target=DB, protocol=protocol, port=port, receiver="shop-db",
                  destination=DB, first_hop=ip_address("10.0.1.1"), last_hop="shop-router")
    return Probe(**fields | more)

def outside(port):
    return inside(port, target=INTERNET, destination=INTERNET, receiver=None, last_hop=None, leaving=True)

def backwards(kind):
    return inside(kind, 1, sender="shop-db", source=DB, target=WEB, destination=WEB, receiver="shop-web",
                  first_hop=ip_address("10.0.3.1"))

with Prober(patience=1) as prober:
    try:
        found = [(one.verdict, one.answered, str(one.seen_from)) for one in prober.probe(eval(sys.argv[1]))]
    except KernelError as error:
        found = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def shop(module_lab: Lab) -> Lab:
    """A lab with the environment above."""
    module_lab.vpcctl("apply", str(ENVIRONMENT))
    return module_lab


def probe(shop: Lab, probes: str) -> list[list[str]] | str:
    """What became of the probes that the Python expression makes, or the words of the error."""
    return json.loads(shop.python(PROBE, probes).stdout)


def test_hundreds_of_probes_are_told_apart(shop: Lab) -> None:
    found = probe(shop, "[inside(port) for _ in range(200) for port in (80, 49, 200)]")
    passed, dropped, rejected = ["allow", "reset", "10.0.1.2"], ["deny", "none", "None"], ["reject", "reset", "None"]
    assert found == [passed, dropped, rejected] * 200


def test_what_leaves_the_machine_is_seen_leaving(shop: Lab) -> None:
    found = probe(shop, "[outside(80), outside(300)]")
    assert found == [["allow", "reply", str(HOST)], ["deny", "none", "None"]]


def test_an_icmp_message_that_begins_no_flow_never_passes(shop: Lab) -> None:
    """Nothing in the policies is against it: connection tracking calls it invalid."""
    begins = (8, 13, 15, 17)
    found = probe(shop, "[backwards(kind) for kind in range(19)]")
    assert [kind for kind, (verdict, *_) in enumerate(found) if verdict == "allow"] == list(begins)


@pytest.mark.parametrize("end", ["in-web", "in-db"])
def test_where_a_control_is_not_heard_there_is_no_verdict(shop: Lab, end: str) -> None:
    shop.run(["ip", "-n", "shop-router", "link", "set", end, "down"])
    try:
        assert "cannot judge probes" in probe(shop, "[inside(80)]")
    finally:
        shop.run(["ip", "-n", "shop-router", "link", "set", end, "up"])
    assert probe(shop, "[inside(80), inside(49)]") == [["allow", "reset", "10.0.1.2"], ["deny", "none", "None"]]


OTHER_FIREWALL = "table ip other { chain everything { type filter hook input priority 0; policy drop; }; }"


def test_a_firewall_of_the_receivers_own_makes_no_difference(shop: Lab) -> None:
    shop.run(["nft", "-f", "-"], netns="shop-db", input=OTHER_FIREWALL)
    assert probe(shop, "[inside(80), inside(49)]") == [["allow", "none", "10.0.1.2"], ["deny", "none", "None"]]
    shop.run(["nft", "flush", "ruleset"], netns="shop-db")


def test_a_foreign_firewall_on_the_way_is_no_verdict(shop: Lab) -> None:
    shop.run(["nft", "-f", "-"], netns="shop-router", input=OTHER_FIREWALL)
    assert "cannot judge probes: a ping of 10.0.1.1" in probe(shop, "[inside(80)]")
    shop.run(["nft", "delete", "table", "ip", "other"], netns="shop-router")


def test_a_namespace_that_is_not_there_is_an_error(shop: Lab) -> None:
    assert "namespace shop-nobody is gone" in probe(shop, "[inside(80, receiver='shop-nobody')]")


# --- explain --probe, of whoever is outside ---------------------------------------------------------------------------

GATEWAY = "198.51.100.1"
# The neighbour's addresses on a second LAN, and in a network behind it.
ON_LAN_2, BEHIND = "192.0.2.9", "192.168.7.5"
LANS = (
    f"link add eth1 type veth peer name lan2 netns {RUN_LAB}/neighbour",
    "address add 192.0.2.1/24 dev eth1",
    "link set eth1 up",
    f"route add 192.168.7.0/24 via {NEIGHBOUR}",
    # A network with nobody in it.
    "link add docker0 type bridge",
    "address add 172.17.0.1/16 dev docker0",
    "link set docker0 up",
)
AT_THE_NEIGHBOUR = (
    f"address add {ON_LAN_2}/24 dev lan2",
    "link set lan2 up",
    f"address add {BEHIND}/32 dev lo",
)


@pytest.fixture(scope="module")
def town(shop: Lab) -> Lab:
    """The lab with more networks around the host, and a published port of pub/web."""
    for words in LANS:
        shop.run(["ip", *words.split()])
    for words in AT_THE_NEIGHBOUR:
        shop.run(["ip", *words.split()], netns="neighbour")
    shop.vpcctl("create-vpc", "--name", "pub", "--cidr", "10.9.0.0/16")
    shop.vpcctl("create-subnet", "--vpc", "pub", "--name", "web", "--cidr", "10.9.1.0/24", "--type", "public")
    shop.vpcctl("publish-port", "--vpc", "pub", "--instance", "web", "--port", "8080", "--target-port", "80")
    return shop


@contextlib.contextmanager
def ingress(town: Lab, action: str) -> Iterator[None]:
    """Do this with every call of the published port."""
    town.vpcctl("apply-policy", "-", input=json.dumps({"vpc": "pub", "subnet": "web", "ingress": [{"action": action}]}))
    try:
        yield
    finally:
        town.vpcctl("clear-policy", "--vpc", "pub", "--subnet", "web")


@contextlib.contextmanager
def settings(town: Lab, **values: str) -> Iterator[None]:
    """IPv4 settings of interfaces, each named `INTERFACE__SETTING`, as they are to be meanwhile."""
    places = [f"/proc/sys/net/ipv4/conf/{name.replace('__', '/')}" for name in values]
    before = [town.run(["cat", place]).stdout for place in places]
    for place, value in zip(places, values.values(), strict=True):
        town.run(["sh", "-c", 'echo "$1" >"$0"', place, value])
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            town.run(["sh", "-c", 'echo "$1" >"$0"', place, value])


@contextlib.contextmanager
def without_a_default_route(town: Lab) -> Iterator[None]:
    town.run(["ip", "route", "delete", "default"])
    try:
        yield
    finally:
        town.run(["ip", "route", "add", "default", "via", GATEWAY])


def explained(town: Lab, source: str, destination: str, status: int = 0) -> tuple[bool, str]:
    """Does the kernel agree about tcp/80, and what became of the packet?"""
    done = town.vpcctl("explain", source, destination, "tcp/80", "--probe", "--json", status=status)
    (tried,) = json.loads(done.stdout)["probes"]
    return tried["agrees"], tried["seen"]


OUTSIDE = (str(NEIGHBOUR), GATEWAY, str(INTERNET), "203.0.113.7", BEHIND, "8.8.8.8")


@pytest.mark.parametrize("source", OUTSIDE)
def test_a_flow_from_outside_is_sent_by_who_hears_the_answer(town: Lab, source: str) -> None:
    with ingress(town, "allow"):
        assert explained(town, source, "pub/web") == (True, f"arrived from {source}")
    with ingress(town, "reject"):
        assert explained(town, source, "pub/web", 1) == (True, "did not arrive, answer: reset")


@pytest.mark.parametrize("source", [ON_LAN_2, "192.0.2.77", str(NEIGHBOUR), "198.51.100.77", BEHIND, str(INTERNET)])
def test_a_flow_from_a_lan_comes_by_the_link_of_that_lan(town: Lab, source: str) -> None:
    """From any other link the host takes no packet with its source."""
    strict = dict.fromkeys(("all__rp_filter", "eth0__rp_filter", "eth1__rp_filter"), "1")
    with settings(town, **strict, eth1__forwarding="1"):
        assert explained(town, source, "pub/web") == (True, f"arrived from {source}")


CALL = f"""
import socket
try:
    socket.create_connection(("192.0.2.1", 8080), 2, ("{ON_LAN_2}", 0))
except OSError as error:
    print(type(error).__name__)
"""


def test_a_flow_from_a_lan_whose_link_does_not_forward_is_lost_as_a_call_from_there_is(town: Lab) -> None:
    # Nobody listens in the instance: a call that comes there is refused.
    assert town.python(CALL, netns="neighbour").stdout == "ConnectionRefusedError\n"
    assert explained(town, ON_LAN_2, "pub/web") == (True, f"arrived from {ON_LAN_2}")
    with settings(town, eth1__forwarding="0"):
        assert town.python(CALL, netns="neighbour").stdout == "TimeoutError\n"
        assert explained(town, ON_LAN_2, "pub/web", 5) == (False, "did not arrive, answer: none")


def test_a_flow_from_a_link_without_a_machine_of_the_lab_is_not_probed(town: Lab) -> None:
    done = town.vpcctl("explain", "172.17.0.5", "pub/web", "tcp/80", "--probe", status=4)
    assert "the host reaches 172.17.0.5 by docker0, where no machine of the lab is" in done.stderr


@pytest.fixture
def one_address(town: Lab) -> Iterator[None]:
    """A second published port of pub/web, at one address of the host."""
    port = ("--vpc", "pub", "--port", "8081")
    town.vpcctl("publish-port", *port, "--instance", "web", "--target-port", "81", "--address", "192.0.2.1")
    try:
        yield
    finally:
        town.vpcctl("unpublish-port", *port)


@pytest.mark.usefixtures("one_address")
@pytest.mark.parametrize(
    ("action", "status", "seen"), [("allow", 0, "arrived from "), ("reject", 1, "did not arrive, ")]
)
@pytest.mark.parametrize("service", ["tcp/80", "tcp/81"])
def test_the_host_itself_calls_a_published_port_from_each_address(
    town: Lab, service: str, action: str, status: int, seen: str
) -> None:
    with ingress(town, action):
        done = town.vpcctl("explain", "host", "pub/web", service, "--probe", "--json", status=status)
    probes = json.loads(done.stdout)["probes"]
    assert {str(HOST), "192.0.2.1", "172.17.0.1"} <= {one["from"] for one in probes}
    assert {(one["agrees"], one["seen"].startswith(seen)) for one in probes} == {(True, True)}


def test_what_needs_no_default_route_is_probed_without_one(town: Lab) -> None:
    with without_a_default_route(town):
        assert explained(town, "pub/web", str(NEIGHBOUR)) == (True, f"left the host by eth0 from {HOST}")
        assert explained(town, "pub/web", ON_LAN_2) == (True, "left the host by eth1 from 192.0.2.1")
        assert explained(town, "pub/web", BEHIND) == (True, f"left the host by eth0 from {HOST}")
        assert explained(town, "pub/web", str(HOST), 1) == (True, "did not reach the host, answer: none")
        assert explained(town, "shop/web", "shop/db", 0)[0]
        assert explained(town, str(NEIGHBOUR), "pub/web") == (True, f"arrived from {NEIGHBOUR}")
        for ends in (("pub/web", "internet"), ("internet", "pub/web")):
            done = town.vpcctl("explain", *ends, "tcp/80", "--probe", status=5)
            assert "Network is unreachable" in done.stderr
            assert str(INTERNET) in done.stderr
