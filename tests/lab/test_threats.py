"""Nothing passes too early, words stay words, what is bad or foreign changes nothing, a flood is its own VPC's."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.lab import wire
from tests.lab.tenants import DB, FAR, TWIN, WEB, WEB_2, Station, Tenants
from tests.lab.traffic import eventually
from tests.lab.wire import ICMP, SYN, TCP, UDP, Wire, arrived, ipv4
from vpcctl.lab import INTERNET, STATE_DIR, Lab

ALLOW = {"action": "allow"}


@pytest.fixture(scope="module")
def tenants(module_lab: Lab) -> Tenants:
    return Tenants(module_lab)


def rulesets(lab: Lab) -> dict[str, str]:
    """All rules of each router and of the host, as the kernel has them, without counters."""
    spaces: list[str | None] = [None, *(f"{vpc}-router" for vpc in ("shop", "blue", "red", "twin"))]
    return {str(space): lab.run(["nft", "--stateless", "list", "ruleset"], netns=space).stdout for space in spaces}


def state(lab: Lab) -> str:
    return lab.run(["cat", str(STATE_DIR / "state.json")]).stdout


# --- Too early --------------------------------------------------------------------------------------------------------


def received(lab: Lab, namespace: str) -> int:
    """How many packets an instance's link has received since it was made."""
    link = json.loads(lab.run(["ip", "-json", "-statistics", "link", "show", "eth0"], netns=namespace).stdout)[0]
    return link["stats64"]["rx"]["packets"]


def test_a_new_instance_hears_nothing_that_its_policy_denies_from_its_first_moment_on(tenants: Tenants) -> None:
    web = tenants[WEB]
    with tenants.policy("shop", "db", ingress=[]):
        late = "10.0.3.99"
        packets = [web.packet(late, UDP, wire.udp(number, 2222, b"")) for number in range(1, 33)]
        with web.tap.flooding(*packets, rate=300):
            for _ in range(4):
                tenants.wire.vpcctl(*f"create-instance --vpc shop --subnet db --name late --ip {late}".split())
                time.sleep(0.05)
                assert received(tenants.lab, "shop-late") == 0
                tenants.wire.vpcctl(*"delete-instance --vpc shop --name late".split())
            # The same without a policy: the flood is there, and would be heard.
            tenants.wire.vpcctl(*"clear-policy --vpc shop --subnet db".split())
            tenants.wire.vpcctl(*f"create-instance --vpc shop --subnet db --name late --ip {late}".split())
            assert eventually(lambda: received(tenants.lab, "shop-late") > 0)
        tenants.wire.vpcctl(*"delete-instance --vpc shop --name late".split())


def test_a_change_of_instances_and_policy_at_once_is_under_the_new_policy_from_the_start(tenants: Tenants) -> None:
    """The address of an instance that goes is taken by one that comes, and the rules that come with it are narrower."""
    lab, machine = tenants.lab, tenants.wire

    def environment(instance: str, **policy: object) -> dict[str, object]:
        subnets = [
            {"name": "a", "cidr": "10.7.1.0/24", "type": "private"},
            {
                "name": "b",
                "cidr": "10.7.2.0/24",
                "type": "private",
                "instances": [{"name": instance, "ip": "10.7.2.9"}],
            },
        ]
        return {"vpcs": [{"name": "late", "cidr": "10.7.0.0/16", "subnets": [subnets[0], {**subnets[1], **policy}]}]}

    machine.vpcctl("apply", "-", document=environment("old"))
    sender = tenants.instance("late-a", "late", "a", "10.7.1.2")
    packets = [sender.packet("10.7.2.9", UDP, wire.udp(number, 2222, b"")) for number in range(1, 33)]
    with sender.tap.flooding(*packets, rate=300):
        assert eventually(lambda: received(lab, "late-old") > 0)
        for number in range(3):
            machine.vpcctl("apply", "-", document=environment(f"new-{number}", policy={"ingress": []}))
            time.sleep(0.05)
            assert received(lab, f"late-new-{number}") == 0
            machine.vpcctl("apply", "-", document=environment(f"free-{number}"))
            assert eventually(lambda number=number: received(lab, f"late-free-{number}") > 0)
    machine.vpcctl("delete-vpc", "--name", "late", "--cascade")


# --- Words ------------------------------------------------------------------------------------------------------------

EVIL = (
    "", "router", "-x", "a/b", "../x", "..", ".", "a b", "a;b", "$(touch /run/evil)", "`touch /run/evil`", "a\nb",
    'a"b', "a'b", "a{b", "a#b", "a~b", "é", "a" * 33, "a\tb", "%s", "*", "@members",
)  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_a_name_that_is_no_name_is_refused_and_changes_nothing(tenants: Tenants, name: str) -> None:
    lab = tenants.lab
    before = lab.run(["ip", "netns", "list"]).stdout, state(lab)
    for words in (
        ["create-vpc", "--name", name, "--cidr", "10.77.0.0/16"],
        ["create-subnet", "--vpc", "shop", "--name", name, "--cidr", "10.0.77.0/24", "--type", "private"],
        ["create-instance", "--vpc", "shop", "--subnet", "web", "--name", name],
    ):
        assert tenants.wire.status(*words) == 2, words
    assert (lab.run(["ip", "netns", "list"]).stdout, state(lab)) == before
    assert lab.run(["test", "-e", "/run/evil"], check=False).returncode == 1


def test_words_of_a_document_reach_no_grammar(tenants: Tenants) -> None:
    lab, web, db = tenants.lab, tenants[WEB], tenants[DB]
    evil = '" }; flush ruleset; table inet x { comment "\n$(touch /run/evil)\\'
    lab.run(["mkdir", "-p", "/run/evil dir"])
    rule = {**ALLOW, "protocol": "udp", "port": 2222, "description": evil, "log": True}
    document = {
        "vpc": "shop",
        "subnet": "db",
        "description": evil,
        "ingress": [rule],
        "sets": {"s": ["203.0.113.0/24"]},
    }
    file = '/run/evil dir/a"; }; flush ruleset; #.json'
    lab.run(["tee", file], input=json.dumps(document))
    try:
        lab.vpcctl("-q", "apply-policy", file)
        assert arrived(db.tap, {"denied": web.udp(db.address, 2223)}, web.udp(db.address, 2222)) == []
    finally:
        tenants.wire.vpcctl(*"clear-policy --vpc shop --subnet db".split())
    assert lab.run(["test", "-e", "/run/evil"], check=False).returncode == 1


def test_two_documents_that_mean_the_same_load_the_same(tenants: Tenants) -> None:
    lab = tenants.lab
    rule = {"protocol": "tcp", "port": [443, "80", "8000-8010"], "source": ["10.0.1.0/24", "10.1.0.0/16"]}
    one = {"vpc": "shop", "subnet": "db", "ingress": [{**ALLOW, **rule}]}
    other = {
        "ingress": [
            {
                "source": ["vpc:blue", "subnet:web"],
                "port": ["8000-8005", "8006-8010", 80, "443"],
                "protocol": "TCP",
                "action": "allow",
            }
        ],
        "default": {"ingress": "deny"},
        "subnet": "10.0.3.0/24",
        "vpc": "shop",
    }
    try:
        tenants.wire.vpcctl("apply-policy", "-", document=one)
        first = rulesets(lab)
        tenants.wire.vpcctl("apply-policy", "-", document=other)
        assert rulesets(lab) == first
        tenants.wire.vpcctl("apply-policy", "-", document={**other, "default": {"ingress": "allow"}})
        assert rulesets(lab) != first
    finally:
        tenants.wire.vpcctl(*"clear-policy --vpc shop --subnet db".split())


# --- Bad documents ----------------------------------------------------------------------------------------------------

GOOD = {"vpc": "shop", "subnet": "web", "ingress": []}
BAD = {
    "no JSON": "{",
    "a key twice": '{"vpc": "shop", "subnet": "db", "ingress": [], "ingress": []}',
    "an unknown field": {"vpc": "shop", "subnet": "db", "ingres": []},
    "an unknown action": {"vpc": "shop", "subnet": "db", "ingress": [{"action": "permit"}]},
    "no action": {"vpc": "shop", "subnet": "db", "ingress": [{"protocol": "tcp"}]},
    "no port": {"vpc": "shop", "subnet": "db", "ingress": [{**ALLOW, "protocol": "tcp", "port": 70000}]},
    "port 0": {"vpc": "shop", "subnet": "db", "ingress": [{**ALLOW, "protocol": "tcp", "port": 0}]},
    "a port of no protocol": {"vpc": "shop", "subnet": "db", "ingress": [{**ALLOW, "port": 80}]},
    "host bits": {"vpc": "shop", "subnet": "db", "ingress": [{**ALLOW, "source": "10.0.1.1/24"}]},
    "nobody": {"vpc": "shop", "subnet": "db", "ingress": [{**ALLOW, "source": "subnet:nobody"}]},
    "no such subnet": {"vpc": "shop", "subnet": "nobody", "ingress": []},
    "no such VPC": {"vpc": "nobody", "subnet": "db", "ingress": []},
    "the same subnet twice": [GOOD, GOOD],
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_document_changes_nothing_and_takes_the_good_ones_with_it(tenants: Tenants, bad: str) -> None:
    lab, web, web_2 = tenants.lab, tenants[WEB], tenants[WEB_2]
    before = rulesets(lab), state(lab)
    text = BAD[bad] if isinstance(BAD[bad], str) else json.dumps(BAD[bad])
    lab.run(["tee", "/run/bad.json"], input=text)
    lab.run(["tee", "/run/good.json"], input=json.dumps(GOOD))
    assert tenants.wire.status("apply-policy", "/run/good.json", "/run/bad.json") == 2
    assert (rulesets(lab), state(lab)) == before
    assert arrived(web_2.tap, {"flow": web.udp(web_2.address, 2222)}, web.udp(web_2.address, 2222)) == ["flow"]


def test_a_bad_document_blocks_nobody_elses_update(tenants: Tenants) -> None:
    web, web_2 = tenants[WEB], tenants[WEB_2]
    assert tenants.wire.status("apply-policy", "-", document=BAD["nobody"]) == 2
    with tenants.policy("shop", "web", ingress=[{**ALLOW, "protocol": "udp", "port": 2222}]):
        assert arrived(web_2.tap, {"denied": web.udp(web_2.address, 1)}, web.udp(web_2.address, 2222)) == []


def test_empty_is_nothing_and_absent_is_the_default(tenants: Tenants) -> None:
    web, db, far = tenants[WEB], tenants[DB], tenants[FAR]
    friend = db.udp(web.address, 1)
    with tenants.policy("shop", "db", ingress=[{**ALLOW, "source": []}, {**ALLOW, "source": "10.1.0.0/16"}]):
        canary = tenants["blue-app"].udp(db.address, 1)
        assert arrived(db.tap, {"empty": web.udp(db.address, 2222)}, canary) == []
        assert arrived(web.tap, {"absent egress": db.udp(web.address, 2222)}, friend) == ["absent egress"]
    with tenants.policy("shop", "web", egress=[]):
        assert arrived(db.tap, {"out": web.udp(db.address, 2222)}, canary) == []
        assert arrived(far.tap, {"out": web.udp(str(INTERNET), 53)}, tenants[TWIN].udp(str(INTERNET), 53)) == []
        assert arrived(web.tap, {"in": db.udp(web.address, 2222)}, friend) == ["in"]


# --- Files and names that are not ours --------------------------------------------------------------------------------


def test_files_are_made_for_their_owner_alone(lab: Lab) -> None:
    place, log = "/run/some/where/state", "/run/calls"
    trace = ["strace", "-f", "-y", "-e", "trace=open,openat,creat,mkdir,mkdirat,chmod,fchmod,fchmodat", "-o", log]
    words = ["vpcctl", "-q", "--state-dir", place, "create-vpc", "--name", "one", "--cidr", "10.0.0.0/16"]
    lab.run(["sh", "-c", 'umask 0; exec "$@"', "sh", *trace, *words])
    calls = [line for line in lab.run(["cat", log]).stdout.splitlines() if f"{place}" in line]
    made = [line.rpartition(" = ")[0] for line in calls if "O_CREAT" in line or "mkdir" in line]
    assert all(re.search(r", 0[67]00\)$", line) for line in made), made
    assert [line for line in calls if "chmod" in line] == []
    assert {name for line in made for name in re.findall(r'"(lock|\.state\.json|/run/some/where/state)', line)} == {
        "lock",
        ".state.json",
        place,
    }
    modes = lab.run(["stat", "-c", "%a", place, f"{place}/lock", f"{place}/state.json"]).stdout.split()
    assert modes == ["700", "600", "600"]


@pytest.mark.parametrize("link", ["state.json", "lock", "."])
def test_a_symbolic_link_is_not_followed(lab: Lab, link: str) -> None:
    target = "/run/elsewhere"
    if link == ".":
        lab.run(["sh", "-c", f"mkdir -m 755 {target}; ln -s {target} /run/linked"])
    else:
        lab.run(["sh", "-c", f"mkdir -m 700 /run/linked; printf precious >{target}; ln -s {target} /run/linked/{link}"])
    before = lab.run(["stat", "-c", "%F %s %a %Y", target]).stdout
    lab.vpcctl("--state-dir", "/run/linked", "create-vpc", "--name", "shop", "--cidr", "10.0.0.0/16", status=6)
    assert lab.run(["stat", "-c", "%F %s %a %Y", target]).stdout == before
    assert lab.run(["ip", "netns", "list"]).stdout == ""


FOREIGN = {
    "a namespace": "ip netns add shop-router; ip -n shop-router link add precious type bridge",
    "an instance's namespace": "ip netns add shop-web; ip -n shop-web link add precious type bridge",
    "a namespace with our table": (
        "ip netns add shop-router; ip netns exec shop-router nft add table inet vpcctl"
        " '{ comment \"vpcctl/00000000/shop/ruleset\"; }'"
    ),
    "a file": "mkdir -p /run/netns; echo precious >/run/netns/shop-router",
    "a symbolic link": "ip netns add other; ln -s /run/netns/other /run/netns/shop-router",
    "a dangling symbolic link": "mkdir -p /run/netns; ln -s /run/nowhere /run/netns/shop-router",
    "a link": "ip link add vpc-shop type bridge; ip link set vpc-shop alias precious",
    "a table": "nft add table inet vpcctl; nft add chain inet vpcctl precious",
    "a table with a comment": "nft add table inet vpcctl '{ comment \"precious\"; }'",
    "another state's table": "nft add table inet vpcctl '{ comment \"vpcctl/00000000//host\"; }'",
}
LOOK = """
for name in /run/netns/*; do
    stat -c '%n %F %i %s' "$name"
    cat "$name" 2>/dev/null
    ip netns exec "${name##*/}" sh -c 'ip -o link; nft list ruleset' 2>/dev/null
done
ip -o link; nft list ruleset; sysctl net.ipv4.conf.eth0.forwarding
"""
CLEAN = """
for name in /run/netns/*; do ip netns delete "${name##*/}" 2>/dev/null || rm -f "$name"; done
ip link delete vpc-shop 2>/dev/null; nft flush ruleset
"""
SHOP = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
)


@pytest.fixture(scope="module")
def crowded() -> Iterator[tuple[Lab, Wire]]:
    """A lab in which others have made things, which each test takes away again."""
    with Lab() as lab:
        yield lab, Wire(lab)


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_is_not_ours_is_refused_and_left_as_it_is(
    tenants: Tenants, crowded: tuple[Lab, Wire], foreign: str
) -> None:
    lab, machine = crowded
    lab.run(["sh", "-ec", FOREIGN[foreign]])
    try:
        before = lab.run(["sh", "-c", LOOK]).stdout
        # An instance's name is in the way of its subnet alone.
        expected = [0, 4] if foreign.startswith("an instance") else [4, 4]
        assert [machine.status(*words.split()) for words in SHOP] == expected
        machine.vpcctl("destroy", "--all", "--yes")
        assert lab.run(["sh", "-c", LOOK]).stdout == before
    finally:
        lab.run(["sh", "-c", CLEAN])


def test_a_namespace_that_was_exchanged_is_not_removed(tenants: Tenants, crowded: tuple[Lab, Wire]) -> None:
    lab, machine = crowded
    for words in SHOP:
        machine.vpcctl(*words.split())
    exchange = "ip netns delete shop-web; ip netns add shop-web; ip -n shop-web link add precious type bridge"
    lab.run(["sh", "-ec", exchange])
    try:
        machine.vpcctl("destroy", "--all", "--yes")
        assert lab.run(["ip", "netns", "list"]).stdout == "shop-web\n"
        assert "precious" in lab.run(["ip", "-o", "link"], netns="shop-web").stdout
    finally:
        lab.run(["sh", "-c", CLEAN])


def test_a_namespace_that_was_exchanged_is_not_entered(tenants: Tenants, crowded: tuple[Lab, Wire]) -> None:
    """Not by a command in it, nor to look at or remove what there would be of ours."""
    lab, machine = crowded
    for words in SHOP:
        machine.vpcctl(*words.split())
    exchange = "ip netns delete shop-web; ip netns add shop-web; ip -n shop-web link add eth0 type veth peer name there"
    lab.run(["sh", "-ec", exchange])
    look = ["sh", "-c", "ip netns exec shop-web ip -o link; stat -c %i /run/netns/shop-web"]
    before = lab.run(look).stdout
    try:
        assert machine.status("exec", "--vpc", "shop", "--subnet", "web", "--", "true") == 4
        assert machine.status("status") == 3
        assert machine.status("repair") == 4
        machine.vpcctl("delete-subnet", "--vpc", "shop", "--name", "web", "--cascade")
        assert lab.run(look).stdout == before
        machine.vpcctl("destroy", "--all", "--yes")
        assert lab.run(look).stdout == before
    finally:
        lab.run(["sh", "-c", CLEAN])


# A router whose table somebody has exchanged for one of their own, which lets everything pass.
EXCHANGED = ["nft", "flush ruleset; add table inet vpcctl; add chain inet vpcctl theirs"]
ECHO = ["ping", "-n", "-c", "1", "-W", "1", "10.0.2.2"]


def test_a_router_that_cannot_have_its_ruleset_carries_nothing_and_can_be_removed(
    crowded: tuple[Lab, Wire],
) -> None:
    lab, machine = crowded
    for words in (*SHOP, "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private"):
        machine.vpcctl(*words.split())
    machine.vpcctl("create-vpc", "--name", "more", "--cidr", "10.8.0.0/16")
    try:
        lab.run(ECHO, netns="shop-web")
        lab.run(EXCHANGED, netns="shop-router")
        lab.run(ECHO, netns="shop-web")
        assert machine.status("repair") == 4
        assert lab.run(ECHO, netns="shop-web", check=False).returncode == 1
        assert machine.status("status", "--vpc", "more") == 0
        machine.vpcctl("destroy", "--all", "--yes")
        assert lab.run(["ip", "netns", "list"]).stdout == ""
    finally:
        lab.run(["sh", "-c", f"rm -f {STATE_DIR}/state.json /run/vpcctl/*; {CLEAN}"])


def test_a_router_that_cannot_have_its_ruleset_is_repaired_when_it_can(crowded: tuple[Lab, Wire]) -> None:
    lab, machine = crowded
    for words in (*SHOP, "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private"):
        machine.vpcctl(*words.split())
    try:
        lab.run(EXCHANGED, netns="shop-router")
        assert machine.status("repair") == 4
        lab.run(["nft", "flush", "ruleset"], netns="shop-router")
        machine.vpcctl("repair")
        lab.run(["ping", "-n", "-c", "1", "-W", "5", "10.0.2.2"], netns="shop-web")
        assert machine.status("status") == 0
        machine.vpcctl("destroy", "--all", "--yes")
    finally:
        lab.run(["sh", "-c", f"rm -f {STATE_DIR}/state.json /run/vpcctl/*; {CLEAN}"])


# What root inside an instance may do to its namespace, where `away` is a namespace of nobody's.
AWAY = "unshare --net sleep 300 >/dev/null 2>&1 </dev/null & sleep 0.3"
WORST = {
    "its loopback is marked": "ip link set lo alias mine",
    "its loopback has another name": "ip link set lo down; ip link set lo name mine up",
    "another link is called lo": "ip link set lo down; ip link set lo name mine up; ip link add lo type bridge",
    "its link has moved away": f"{AWAY}; ip link set eth0 netns $!",
    "its link has another name": "ip link set eth0 down; ip link set eth0 name mine; ip link add eth0 type bridge",
    "its link is down and bare": "ip addr flush dev eth0; ip link set eth0 down; ip neighbour flush all nud all",
    "its loopback lends the link's name": "ip link set eth0 down; ip link set eth0 name mine;"
    " ip link property add dev lo altname eth0",
    "its loopback has the link's name": "ip link set eth0 down; ip link set eth0 name mine; ip link set lo down;"
    " ip link set lo name eth0 up",
    "it has another default route": "ip route add default via 10.0.1.77 metric 100",
    "it has a table of our name": "nft add table inet vpcctl; nft add table bridge vpcctl",
    "it has many addresses and routes": "for i in $(seq 3 99); do ip addr add 10.0.1.$i/24 dev eth0; done;"
    " ip route replace default via 10.0.1.77",
    "its settings are others": "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv4.ip_forward=1",
}


@pytest.mark.parametrize("done", WORST)
def test_whatever_an_instance_does_inside_nobody_elses_commands_fail_and_it_can_be_removed(
    crowded: tuple[Lab, Wire], done: str
) -> None:
    lab, machine = crowded
    for words in SHOP:
        machine.vpcctl(*words.split())
    try:
        lab.run(["sh", "-ec", WORST[done]], netns="shop-web")
        machine.vpcctl("create-vpc", "--name", "more", "--cidr", "10.8.0.0/16")
        machine.vpcctl("repair")
        assert machine.status("status") == 0
        lab.run(["ping", "-n", "-c", "1", "-W", "5", str(INTERNET)], netns="shop-web")
        # The worst once more, for the teardown to meet it.
        lab.run(["sh", "-c", WORST[done]], netns="shop-web", check=False)
        machine.vpcctl("destroy", "--all", "--yes")
        assert lab.run(["ip", "netns", "list"]).stdout == ""
    finally:
        lab.run(["sh", "-c", f"rm -f {STATE_DIR}/state.json /run/vpcctl/*; {CLEAN}"])


# --- Floods -----------------------------------------------------------------------------------------------------------


def crowd(sender: Station, number: int) -> list[bytes]:
    """New flows, each another one."""
    frames = []
    for one in range(number):
        where, port = f"203.0.113.{one % 250}", 1024 + one
        frames += [
            sender.packet(where, UDP, wire.udp(port, 53, b"")),
            sender.packet(where, TCP, wire.tcp((sender.address, where), port, 80, SYN)),
        ]
    return frames


def works(tenants: Tenants) -> None:
    """New flows of shop pass: between subnets, within one, and to the internet, whole or in pieces."""
    web = tenants[WEB]
    for target in (DB, WEB_2, FAR):
        ear = tenants[target]
        probes = {
            "UDP": web.udp(ear.address, 2222, source_port=9000),
            "TCP": web.tcp(ear.address, 443, source_port=9001),
            "echo": web.echo(ear.address, 77),
            "in pieces": web.raw(lambda one, ear=ear: _pieces(web, ear.address, one)),
        }
        assert arrived(ear.tap, probes, web.udp(ear.address, 2222)) == list(probes), target


def _pieces(sender: Station, destination: str, one: bytes) -> list[bytes]:
    datagram = wire.udp(1, 2222, b"-" * 1392 + one)
    packets = wire.fragments(sender.address, destination, UDP, datagram, 1392, int(one[1:-1]) & 0xFFFF)
    return [sender.frame(packet) for packet in packets]


def test_a_flood_of_new_flows_is_its_own_vpcs(tenants: Tenants) -> None:
    twin, lab = tenants[TWIN], tenants.lab
    frames = crowd(twin, 4000)
    before = _tracked(lab, "shop-router")
    twin.tap.send(*frames)
    with twin.tap.flooding(*frames):
        works(tenants)
        # Its own table has them all, another's none.
        assert _tracked(lab, "twin-router") >= 7000
        assert _tracked(lab, "shop-router") - before <= 20


def _tracked(lab: Lab, namespace: str) -> int:
    return int(lab.run(["cat", "/proc/sys/net/netfilter/nf_conntrack_count"], netns=namespace).stdout)


def test_a_flood_of_fragments_is_its_own_vpcs(tenants: Tenants) -> None:
    twin, far = tenants[TWIN], tenants[FAR]
    first = [
        twin.frame(ipv4(twin.address, far.address, UDP, bytes(1480), identifier=number, flags=wire.MORE))
        for number in range(6000)
    ]
    twin.tap.send(*first)
    probe = {"in pieces": twin.raw(lambda one: _pieces(twin, far.address, one))}
    # Its router's memory for fragments is full (net.ipv4.ipfrag_high_thresh), nobody else's is.
    assert arrived(far.tap, probe, twin.udp(far.address, 53)) == []
    works(tenants)


def test_a_flood_of_packets_that_are_denied_leaves_the_others_working(tenants: Tenants) -> None:
    twin = tenants[TWIN]
    frames = [
        twin.packet(where, protocol, payload, source=source)
        for where in ("10.0.1.1", "10.0.3.2", "100.64.0.1", "198.51.100.2", "203.0.113.1", "255.255.255.255")
        for source in (None, "10.0.1.77", "203.0.113.9")
        for protocol, payload in ((UDP, wire.udp(1, 2, b"")), (ICMP, wire.echo(1, b"")), (253, b""))
    ]
    with twin.tap.flooding(*frames), twin.tap.flooding(*frames):
        works(tenants)
