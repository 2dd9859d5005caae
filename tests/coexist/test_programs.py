"""Another program and vpcctl on one machine: both kinds of traffic pass, and neither touches the rules of the other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.coexist import matrix
from tests.coexist.programs import FAR, NEIGHBOUR, PROGRAMS, Program, fetches, serve, shell, succeeds
from tests.lab.machine import run_all
from vpcctl.analysis.graph import dot, drawn
from vpcctl.documents.sources import read_environment_source
from vpcctl.kernel.graphviz import svg
from vpcctl.lab import HOST, Lab

BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "publish-port --vpc shop --instance web --port 8080",
    "create-vpc --name other --cidr 10.0.0.0/16",
    "create-subnet --vpc other --name web --cidr 10.0.1.0/24 --type public",
)
# A port of the host on which a server listens, and which is not published.
HOSTS_OWN = 8099
# Counts packets to the instance: to the published port, and to one that nobody may reach.
COUNT = """
table inet count {
    counter published { }
    counter hidden { }
    chain arrivals {
        type filter hook prerouting priority -400;
        iifname "eth0" tcp dport 8080 counter name published
        iifname "eth0" tcp dport 8081 counter name hidden
    }
}
"""
# By the traffic that works: the instance's way out, its published port, the program's traffic.
RESULTS = {
    (True, True, True): matrix.WORKS,
    (False, False, True): matrix.OURS,
    (False, True, True): matrix.OUT,
    (False, False, False): matrix.BOTH,
}
PATIENCE = 6
# A LAN neighbour may add routes into a VPC.
ATTEMPTS = (("10.0.1.2", 8081), ("10.0.1.2", 8080), ("100.64.0.1", 8080), ("100.64.0.1", 8081), (str(HOST), 8081))


@contextmanager
def running(lab: Lab, name: str) -> Iterator[Program]:
    """The program, not started yet."""
    kind = PROGRAMS[name]
    missing = [one for one in kind.needs if not shutil.which(one) and not succeeds(lab, "test", "-e", one)]
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}; as root, `./run coexist` installs Debian's packages")
    program = kind(lab)
    program.surroundings()
    try:
        yield program
    finally:
        program.end()


def create(lab: Lab) -> None:
    """A VPC with a way out and a published port, and another one with the same prefix."""
    run_all(lab, BUILD)
    lab.run(["nft", "-f", "-"], input=COUNT, netns="shop-web")
    for port in (8080, 8081):
        serve(lab, port, "shop-web")
        assert fetches(lab, f"127.0.0.1:{port}", netns="shop-web")
    serve(lab, HOSTS_OWN)
    for address in ("10.0.0.0/16", "100.64.0.0/16"):
        lab.run(["ip", "route", "add", address, "via", str(HOST)], netns=NEIGHBOUR)


def leaves(lab: Lab, wait: int = PATIENCE) -> bool:
    """Does the instance reach the internet?"""
    return fetches(lab, FAR, netns="shop-web", wait=wait)


def enters(lab: Lab, wait: int = PATIENCE) -> bool:
    """Does the LAN reach the published port?"""
    return fetches(lab, f"{HOST}:8080", netns=NEIGHBOUR, wait=wait)


def theirs(lab: Lab) -> list[str]:
    """All foreign rules of the host, without counters: the tables in the order of their names, as lines."""
    text = shell(lab, "nft --stateless list ruleset 2>/dev/null")
    tables = re.split(r"^(?=table )", text, flags=re.MULTILINE)
    kept = sorted(one for one in tables if one.startswith("table ") and not one.startswith("table inet vpcctl "))
    return [line for one in kept for line in one.splitlines()]


def counted(lab: Lab) -> dict[str, int]:
    listing = json.loads(shell(lab, "nft --json list counters table inet count", netns="shop-web"))["nftables"]
    return {one["counter"]["name"]: one["counter"]["packets"] for one in listing if "counter" in one}


def check_isolation(lab: Lab) -> None:
    """Packets enter the instance only by the published port, and none pass from it to the host."""
    before = counted(lab)
    tries = [f"curl -s --max-time 0.7 http://{address}:{port}/" for address, port in ATTEMPTS]
    shell(lab, " & ".join([*tries, "wait"]), netns=NEIGHBOUR)
    # The other VPC has the same prefix, and no path to this one.
    shell(lab, "curl -s --max-time 0.5 http://100.64.0.1:8081/ || true", netns="other-web")
    after = counted(lab)
    assert after == before
    assert after["published"] > 0, "the counter counts nothing"
    assert after["hidden"] == 0
    assert fetches(lab, f"127.0.0.1:{HOSTS_OWN}")
    assert not fetches(lab, f"{HOST}:{HOSTS_OWN}", netns="shop-web", wait=0)


def follow_doctor(lab: Lab) -> None:
    """Run the commands of the fatal findings word for word."""
    findings = json.loads(lab.vpcctl("doctor", "--json", status=1).stdout)
    fatal = [one for one in findings if one["severity"] == "fatal"]
    assert {one["subject"] for one in fatal} == {"foreign firewall"}
    for one in fatal:
        assert one["commands"], one
        for command in one["commands"]:
            shell(lab, command)
    assert "fatal" not in {one["severity"] for one in json.loads(lab.vpcctl("doctor", "--json").stdout)}


def type_(lab: Lab, program: Program, command: str) -> None:
    """Run a command of the table.  The lab has no systemd, so the test restarts the service itself."""
    if command == matrix.DOCTOR:
        follow_doctor(lab)
    elif command.startswith("systemctl restart "):
        program.restart()
    elif command == matrix.REPAIR:
        lab.vpcctl("repair")
    else:
        program.reload()


def pass_through(lab: Lab, program: Program, event: str) -> None:
    """Compare what works after an event with the row, type its commands, and check that both work then."""
    row = matrix.row(program.name, event)
    [expected] = [works for works, result in RESULTS.items() if result == row.result]
    # Wait only for traffic that is expected to work.
    waits = [PATIENCE * works for works in expected]
    found = leaves(lab, waits[0]), enters(lab, waits[1]), program.works(waits[2])
    assert found == expected, f"{program.name}, {event}"
    for command in row.typed:
        type_(lab, program, command)
        if command == matrix.DOCTOR:
            assert fetches(lab, program.closed), "the server does not run"
            assert not fetches(lab, program.closed, netns="shop-web", wait=0), "the remedy opens more than the way out"
    assert (leaves(lab), enters(lab), program.works()) == (True, True, True), f"{program.name}, {event}"
    check_isolation(lab)
    if event != matrix.VPC_FIRST or matrix.REPAIR in row.typed:
        assert lab.vpcctl("status").stdout == "in sync\n"


def unchanged(lab: Lab, act: Callable[[], object]) -> None:
    """Commands of ours leave foreign rules unchanged."""
    before = theirs(lab)
    act()
    assert theirs(lab) == before


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_vpc_beside_a_program_that_runs(lab: Lab, name: str) -> None:
    with running(lab, name) as program:
        program.start()
        assert program.works()
        assert theirs(lab)
        unchanged(lab, lambda: create(lab))
        pass_through(lab, program, matrix.PROGRAM_FIRST)
        program.restart()
        pass_through(lab, program, matrix.RESTART)
        unchanged(lab, lambda: lab.vpcctl("destroy", "--all", "--yes"))
        assert program.works(), matrix.DESTROY
        assert matrix.row(name, matrix.DESTROY).result == matrix.WORKS


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_starts_beside_a_vpc(lab: Lab, name: str) -> None:
    with running(lab, name) as program:
        create(lab)
        assert leaves(lab)
        assert enters(lab)
        program.start()
        pass_through(lab, program, matrix.VPC_FIRST)
        shell(lab, "nft -f /etc/nftables.conf")
        pass_through(lab, program, matrix.FLUSH)
        unchanged(lab, lambda: lab.vpcctl("destroy", "--all", "--yes"))
        assert program.works(), matrix.DESTROY


# What iptables-legacy translates, and the ports that it must not take; each port may be published but for that.
LEGACY = (
    ("-A PREROUTING -p tcp -m tcp --dport 7500 -j DNAT --to-destination 192.0.2.9", "tcp", 7500),
    ("-A PREROUTING -d 198.51.100.2 -p udp -m multiport --dports 53,7600:7610 -j DNAT --to-destination 192.0.2.9",
     "udp", 7605),
    ("-A PREROUTING -p tcp -m tcp ! --dport 1:8999 -j REDIRECT --to-ports 80", "tcp", 9001),
    ("-A THEIRS -p sctp -m sctp --dport 7700 -j DNAT --to-destination 192.0.2.9", "sctp", 7700),
)  # fmt: skip


@pytest.mark.parametrize(("rule", "protocol", "port"), LEGACY)
def test_a_port_that_iptables_legacy_translates_is_a_conflict(lab: Lab, rule: str, protocol: str, port: int) -> None:
    if not shutil.which("iptables-legacy"):
        pytest.skip("not installed: iptables-legacy")
    for words in BUILD[:2]:
        lab.vpcctl(*words.split())
    legacy = "iptables-legacy -t nat"
    shell(lab, f"{legacy} -N THEIRS && {legacy} -A PREROUTING -j THEIRS && {legacy} {rule}")
    publish = f"publish-port --vpc shop --instance web --protocol {protocol} --port"
    refused = lab.vpcctl(*publish.split(), str(port), status=4)
    assert "of table ip nat-legacy translates it" in refused.stderr
    lab.vpcctl(*publish.split(), "5000")


# -- Graphviz ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 30, 300])
def test_graphviz_draws_every_word_of_the_graph(tmp_path: Path, count: int) -> None:
    if not shutil.which("dot"):
        pytest.skip("not installed: dot")
    subnets = [
        {
            "name": f"s{number}",
            "cidr": f"10.0.{number}.0/24",
            "type": "public",
            "instances": [{"name": f"i{number}-{one}"} for one in range(10)],
            "policy": {"ingress": []},
        }
        for number in range(max(1, count // 10))
    ]
    publish = [{"protocol": "tcp", "port": 8080, "instance": "i0-0"}]
    place = tmp_path / 'a "strange" <name> \\ & é.json'
    vpcs = [{"name": "shop", "cidr": "10.0.0.0/16", "subnets": subnets, "publish": publish}]
    place.write_text(json.dumps({"vpcs": vpcs}))
    world = read_environment_source(place)
    image = ElementTree.fromstring(svg(dot(drawn(world))))
    space = "{http://www.w3.org/2000/svg}"
    words = [one.text for one in image.iter(f"{space}text")]
    expected = [line for cluster in drawn(world).clusters for vertex in cluster.vertices for line in vertex.lines]
    assert sorted(words) == sorted(
        [*expected, "internet", "VPC shop 10.0.0.0/16", "source NAT", "tcp/8080 to i0-0:8080"]
    )
    # The image fits the width of a page, whatever it holds, and says how it looks in the dark.
    assert float(image.attrib["viewBox"].split()[2]) < 1000
    assert "prefers-color-scheme: dark" in (image.find(f"{space}style").text or "")
