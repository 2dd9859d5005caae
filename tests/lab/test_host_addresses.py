"""The host's own addresses: no instance reaches one, nobody outside calls from one, and the answers know them all.

Each answer of `explain` stands beside packets that are heard, or not, where they should arrive.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.tenants import PUB, PUBLISHED, WEB, Tenants
from tests.lab.wire import Probe, Tap, arrived
from vpcctl.lab import HOST, INTERNET, NEIGHBOUR, Lab

# All of it comes after the VPCs: a second LAN, a bridge of containers, aliases and a prefix on lo, a second address
# of eth0, and a prefix that is local by a route of its own kind.
LATER = (
    "netns add lan2",
    "link add eth1 type veth peer name eth0 netns lan2",
    "address add 192.0.2.1/25 broadcast + dev eth1",
    "link set eth1 up",
    "-n lan2 address add 192.0.2.9/25 dev eth0",
    "-n lan2 link set eth0 up",
    "link add docker0 type bridge",
    "address add 172.17.0.1/16 broadcast + dev docker0",
    "link set docker0 up",
    "address add 203.0.113.53/32 dev lo",
    "address add 203.0.113.208/28 dev lo",
    "address add 198.51.100.3/24 dev eth0",
    "address add 192.0.2.200/30 broadcast 192.0.2.203 dev eth0",
    # A network address to which the host broadcasts, as kernels before 5.14 have it for each network.
    "route add broadcast 192.0.2.0 dev eth1 table local",
)
OWN = ("198.51.100.2", "198.51.100.3", "192.0.2.1", "172.17.0.1", "203.0.113.53", "203.0.113.208", "203.0.113.220",
       "192.0.2.200")  # fmt: skip
BROADCASTS = ("198.51.100.255", "192.0.2.0", "192.0.2.127", "172.17.255.255", "192.0.2.203")
NOBODYS = ("224.0.0.1", "239.1.2.3", "255.255.255.255", "0.0.0.0", "127.0.0.1", "127.255.255.255", "100.64.0.0",
           "100.64.0.1", "169.254.0.1")  # fmt: skip
# Other VPCs' uplinks: the router does not know them, and the host drops what is sent there.
UPLINKS_OF_OTHERS = ("100.64.0.2", "100.64.0.4", "100.64.0.5")


@dataclass(frozen=True, slots=True)
class Grounds:
    """The tenants, and ears: for what the host takes in for itself, and for what comes to it by an uplink."""

    tenants: Tenants
    taken: Tap
    uplink: Tap


@pytest.fixture(scope="module")
def grounds(module_lab: Lab) -> Grounds:
    tenants = Tenants(module_lab)
    for words in LATER:
        module_lab.run(["ip", *words.split()])
    return Grounds(tenants, tenants.wire.reception(None), tenants.wire.tap(None, "vpc-shop"))


def probes(grounds: Grounds, *addresses: str) -> dict[str, Probe]:
    """A datagram, a SYN and a ping to each address."""
    web = grounds.tenants[WEB]
    return {
        f"{address} {name}": probe
        for address in addresses
        for name, probe in (("udp", web.udp(address, 53)), ("tcp", web.tcp(address, 22)), ("icmp", web.echo(address)))
    }


def asked(lab: Lab, *question: str) -> tuple[int, dict]:
    done = lab.run([sys.executable, "-m", "vpcctl", "explain", *question, "--json"], check=False)
    return done.returncode, json.loads(done.stdout or "{}")


def verified(lab: Lab, assertions: list[tuple[str, str, str, str]]) -> None:
    """Have `verify` check (from, to, service, expected), in one run."""
    names = ("from", "to", "service", "expect")
    document = json.dumps([dict(zip(names, assertion, strict=True)) for assertion in assertions])
    done = lab.run([sys.executable, "-m", "vpcctl", "verify", "-"], input=document, check=False)
    assert (done.returncode, "FAIL" in done.stdout) == (0, False), done.stdout + done.stderr


@contextlib.contextmanager
def without_the_hosts_rules(lab: Lab) -> Iterator[None]:
    """The host's table without what keeps instances from it: the control for everything that is not heard."""
    for chain in ("from-uplink", "host-arrive", "host-input"):
        lab.run(["nft", "flush", "chain", "inet", "vpcctl", chain])
    try:
        yield
    finally:
        lab.vpcctl("repair")


# --- As destinations --------------------------------------------------------------------------------------------------


def test_no_instance_reaches_an_address_of_the_host_and_the_answers_say_so(grounds: Grounds) -> None:
    lab, near = grounds.tenants.lab, grounds.tenants["neighbour"]
    wanted = probes(grounds, *OWN, *BROADCASTS)
    canary = near.udp(str(HOST), 9)
    assert arrived(grounds.taken, wanted, canary) == []
    # They came as far as the host's own table.
    assert arrived(grounds.uplink, wanted, grounds.tenants[WEB].udp(str(INTERNET), 9)) == list(wanted)
    with without_the_hosts_rules(lab):
        assert arrived(grounds.taken, wanted, canary) == list(wanted)
    services = ("tcp/22", "udp/53", "icmp/echo-request", "47", "any")
    places = (*OWN, *BROADCASTS, *NOBODYS, *UPLINKS_OF_OTHERS)
    # Only services that are published at the host's own addresses pass.
    asked_for = [(place, service) for place in places for service in services if service != "any" or place not in OWN]
    verified(lab, [("shop/web", place, service, "deny") for place, service in asked_for])


def test_what_nobody_reaches_does_not_even_come_to_the_host(grounds: Grounds) -> None:
    wanted = probes(grounds, *NOBODYS)
    assert arrived(grounds.uplink, wanted, grounds.tenants[WEB].udp(str(INTERNET), 9)) == []


def test_the_hosts_neighbours_are_reached_and_the_answers_say_so(grounds: Grounds) -> None:
    """A second LAN is the internet, too."""
    lab = grounds.tenants.lab
    for place, station in ((str(NEIGHBOUR), "neighbour"), ("192.0.2.9", "lan2"), (str(INTERNET), "internet")):
        ear = grounds.tenants.wire.tap(station)
        web = grounds.tenants[WEB]
        assert arrived(ear, {"udp": web.udp(place, 53)}, web.udp(place, 54)) == ["udp"]
        assert asked(lab, "shop/web", place, "udp/53")[0] == 0


def test_an_address_that_the_host_gets_or_loses_changes_the_answer_at_once(grounds: Grounds) -> None:
    lab, place = grounds.tenants.lab, "203.0.113.99"
    taken, far = grounds.taken, grounds.tenants["internet"].tap
    wanted = probes(grounds, place)
    canary = grounds.tenants[WEB].udp(str(INTERNET), 9)
    for _ in range(2):
        assert arrived(far, wanted, canary) == list(wanted)
        assert asked(lab, "shop/web", place, "any")[0] == 0
        lab.run(["ip", "address", "add", f"{place}/32", "dev", "lo"])
        try:
            assert arrived(far, wanted, canary) == []
            assert arrived(taken, wanted, grounds.tenants["neighbour"].udp(str(HOST), 9)) == []
            status, answer = asked(lab, "shop/web", place, "any")
            reason = f"{place} is an address of the host; instances reach only its published ports"
            assert (status, answer["deciding"]) == (1, reason)
        finally:
            lab.run(["ip", "address", "del", f"{place}/32", "dev", "lo"])


def test_a_policy_that_allows_the_host_does_not_open_it_and_the_words_do_not_say_so(grounds: Grounds) -> None:
    lab, tenants = grounds.tenants.lab, grounds.tenants
    closed = {"vpc": "shop", "subnet": "web", "egress": [], "default": {"egress": "deny"}}
    opened = {**closed, "egress": [{"action": "allow", "destination": list(OWN)}]}
    with tenants.policy(
        "shop", "web", **{name: value for name, value in closed.items() if name not in ("vpc", "subnet")}
    ):
        done = lab.run(
            [sys.executable, "-m", "vpcctl", "apply-policy", "--dry-run", "-"], input=json.dumps(opened), check=True
        )
        # Only the published port, which another instance serves.
        [headline, line] = done.stdout.splitlines()
        assert headline == "newly allowed:"
        assert line.startswith("  web → host ")
        assert line.endswith(f" tcp/{PUBLISHED}, udp/{PUBLISHED}")
        tenants.apply("shop", "web", egress=opened["egress"], default=opened["default"])
        wanted = probes(grounds, *OWN)
        assert arrived(grounds.taken, wanted, tenants["neighbour"].udp(str(HOST), 9)) == []
        denied = [(place, service) for place in OWN for service in ("tcp/22", "udp/53", "icmp/echo-request")]
        verified(lab, [("shop/web", place, service, "deny") for place, service in (*denied, ("internet", "any"))])


# --- As sources -------------------------------------------------------------------------------------------------------


def called_from(grounds: Grounds, source: str) -> bool:
    """Does a datagram of the neighbour's with this source come to the published port?"""
    near, pub = grounds.tenants["neighbour"], grounds.tenants[PUB]
    make = {"it": near.udp(str(HOST), PUBLISHED, source=source)}
    return arrived(pub.tap, make, near.udp(str(HOST), PUBLISHED)) == ["it"]


# The kernel does not check a source in a local prefix, unless a setting asks for it.
UNCHECKED = ("203.0.113.208", "203.0.113.220")
SOURCES = (*OWN, *BROADCASTS, str(NEIGHBOUR), "198.51.100.77", "192.0.2.9", "203.0.113.7")


@pytest.fixture(params=["as it is", "rp_filter of all", "rp_filter of each", "a rule that was"])
def checking(grounds: Grounds, request: pytest.FixtureRequest) -> Iterator[str]:
    """The host, with something that has it look closer at sources."""
    lab = grounds.tenants.lab
    links = [link["ifname"] for link in json.loads(lab.run(["ip", "-json", "link"]).stdout) if link["ifname"] != "lo"]
    places = ["all"] if request.param == "rp_filter of all" else links if "each" in request.param else []
    settings = [f"/proc/sys/net/ipv4/conf/{place}/rp_filter" for place in places]
    for setting in settings:
        lab.run(["sh", "-c", 'echo 2 >"$0"', setting])
    if request.param == "a rule that was":
        # The kernel remembers that there was one (fib4_has_custom_rules).
        for act in ("add", "del"):
            lab.run(["ip", "rule", act, "priority", "99", "table", "99"])
    yield request.param
    for setting in settings:
        lab.run(["sh", "-c", 'echo 0 >"$0"', setting])


def test_who_can_call_from_an_address_of_the_host_is_what_the_answers_say(grounds: Grounds, checking: str) -> None:
    heard = {source: called_from(grounds, source) for source in SOURCES}
    assert [heard[source] for source in ("198.51.100.2", "203.0.113.53", str(NEIGHBOUR))] == [False, False, True]
    assert heard["198.51.100.255"] is (checking == "as it is")
    # Only the host itself can call from its own addresses.
    assert not any(heard[source] for source in OWN if source not in UNCHECKED or checking != "as it is")
    allowed = {source for source, passes in heard.items() if passes or source in OWN}
    expected = [(source, "red/pub", "udp/80", "allow" if source in allowed else "deny") for source in SOURCES]
    verified(grounds.tenants.lab, expected)


# --- Tried with real packets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["tcp/22", "udp/53", "icmp/echo-request", "sctp/9"])
@pytest.mark.parametrize("place", ["198.51.100.2", "203.0.113.220", "172.17.255.255"])
def test_a_probe_of_the_host_agrees_and_hears_it_where_the_rules_are_gone(
    grounds: Grounds, place: str, service: str
) -> None:
    lab = grounds.tenants.lab
    status, answer = asked(lab, "shop/web", place, service, "--probe")
    (tried,) = answer["probes"]
    assert (status, tried["expected"], tried["agrees"]) == (1, "deny", True)
    assert tried["seen"] == "did not reach the host, answer: none"
    with without_the_hosts_rules(lab):
        status, answer = asked(lab, "shop/web", place, service, "--probe")
    (tried,) = answer["probes"]
    assert (status, tried["agrees"], tried["seen"]) == (5, False, "reached the host from 100.64.0.1")


@pytest.mark.parametrize("place", NOBODYS)
def test_a_probe_of_what_nobody_reaches_agrees(grounds: Grounds, place: str) -> None:
    status, answer = asked(grounds.tenants.lab, "shop/web", place, "tcp/22", "--probe")
    assert (status, [one["agrees"] for one in answer["probes"]]) == (1, [True])


@pytest.mark.parametrize(
    ("place", "link", "source"),
    [(str(NEIGHBOUR), "eth0", str(HOST)), ("192.0.2.9", "eth1", "192.0.2.1"), (str(INTERNET), "eth0", str(HOST))],
)
def test_a_probe_of_a_neighbour_of_the_host_is_seen_leaving(
    grounds: Grounds, place: str, link: str, source: str
) -> None:
    status, answer = asked(grounds.tenants.lab, "shop/web", place, "tcp/22", "--probe")
    (tried,) = answer["probes"]
    assert (status, tried["agrees"], tried["seen"]) == (0, True, f"left the host by {link} from {source}")
    with grounds.tenants.policy("shop", "web", egress=[]):
        status, answer = asked(grounds.tenants.lab, "shop/web", place, "tcp/22", "--probe")
    (tried,) = answer["probes"]
    assert (status, tried["agrees"], tried["seen"]) == (1, True, "did not leave the host, answer: none")


def test_a_probe_of_a_lan_address_that_nobody_has_is_no_verdict_and_no_drift(grounds: Grounds) -> None:
    lab = grounds.tenants.lab
    done = lab.run(
        [sys.executable, "-m", "vpcctl", "explain", "shop/web", "198.51.100.77", "tcp/22", "--probe"], check=False
    )
    assert done.stdout.splitlines()[0] == "shop/web → 198.51.100.77 tcp/22: allowed"
    assert "cannot judge probes: a ping of 198.51.100.77" in done.stderr
    assert "check that the address is in use" in done.stderr
    assert "does not do what the policies say" not in done.stderr


@pytest.mark.parametrize("source", ["198.51.100.2", "203.0.113.53", "198.51.100.255", "198.51.100.77", str(NEIGHBOUR),
                                    "203.0.113.7", "internet"])  # fmt: skip
def test_a_probe_from_outside_agrees_whoever_it_says_that_it_is(grounds: Grounds, source: str) -> None:
    status, answer = asked(grounds.tenants.lab, source, "red/pub", "tcp/80", "--probe")
    assert status in (0, 1), answer
    assert [(one["expected"], one["agrees"]) for one in answer["probes"]] == [(answer["verdict"], True)]


def test_where_nobody_stands_outside_a_flow_from_there_is_not_probed(grounds: Grounds) -> None:
    """On a machine that is no lab nobody can be made to call."""
    words = ["env", "-u", "VPCCTL_LAB", sys.executable, "-m", "vpcctl", "explain", "internet", "red/pub", "tcp/80"]
    done = grounds.tenants.lab.run([*words, "--probe"], check=False)
    assert done.returncode == 4
    assert "cannot probe a flow from outside" in done.stderr
    out = grounds.tenants.lab.run([*words[:-3], "shop/web", str(NEIGHBOUR), "tcp/80", "--probe"], check=False)
    assert (out.returncode, "left the host by eth0" in out.stdout) == (0, True)
