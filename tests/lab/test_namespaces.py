"""A namespace that belongs elsewhere, under a name of ours: it is never entered and nothing in it is changed.

Root on the host, or a script of theirs, mounts the host's own namespace, a router's or another instance's over
/run/netns/<name>.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.lab.machine import TWO_VPCS, differences, photograph, settle
from tests.lab.traffic import eventually
from tests.lab.warm import Warm
from vpcctl.lab import Lab

_SHOP, _BILLING = TWO_VPCS["vpcs"]
_WEB, *_REST = _SHOP["subnets"]
_MORE = {**_WEB, "instances": [{"name": "web"}, {"name": "web-2"}]}
ENVIRONMENT = {**TWO_VPCS, "vpcs": [{**_SHOP, "subnets": [_MORE, *_REST]}, _BILLING]}
# Namespaces as another state directory has them.
MAKE = """
import sys
from vpcctl.kernel import namespaces
for name, role in zip(sys.argv[1::2], sys.argv[2::2]):
    if not namespaces.is_namespace(name):
        namespaces.create(name, f"vpcctl/0badcafe/other/{role}")
"""
OTHERS = ("other-app", "instance/app", "other-router", "router")
FURNISH = "ip link show eth0 2>/dev/null || ip link add eth0 type bridge; ip address replace 10.40.1.2/24 dev eth0"
# What is mounted, and what `status` calls it.
SOURCES = {
    "/proc/self/ns/net": "the host's own namespace",
    "/run/netns/shop-router": "the namespace of shop-router",
    "/run/netns/billing-router": "the namespace of billing-router",
    "/run/netns/shop-db": "the namespace of shop-db",
    "/run/netns/billing-ledger": "the namespace of billing-ledger",
    "/run/netns/other-app": "the namespace of other-app",
    "/run/netns/other-router": "the namespace of other-router",
}
# How it gets there, and the command that the messages tell to type.
WAYS = {
    "over ours": ("mount --bind $0 /run/netns/$1", "umount /run/netns/{}"),
    "twice": ("mount --bind $0 /run/netns/$1; mount --bind $0 /run/netns/$1", "umount /run/netns/{}"),
    "on the bare claim": ("umount /run/netns/$1; mount --bind $0 /run/netns/$1", "umount /run/netns/{}"),
    "on an older version's claim": (
        "umount /run/netns/$1; truncate -s $(head -n 1 /run/netns/$1 | tr -d '\\n' | wc -c) /run/netns/$1;"
        " mount --bind $0 /run/netns/$1",
        "umount /run/netns/{}",
    ),
    "instead of ours": (
        "ip netns delete $1; touch /run/netns/$1; mount --bind $0 /run/netns/$1",
        "ip netns delete {}",
    ),
}
# Elements that stand for a minute after a ping are left out.
LOOK = """
echo == the host; ip -o link; ip -o address; ip route show table all; ip neighbour show nud permanent
for name in $(ls /run/netns); do
    [ $name = $0 ] && continue
    echo == $name
    nsenter --net=/run/netns/$name sh -c '
        ip -o link; ip -o address; ip route show table all; ip neighbour show nud permanent
        nft -s list ruleset | grep -vE "^[[:space:]]*(elements = [{] )?[0-9.]+ limit rate "
        grep -rs "" /proc/sys/net/ipv4/conf/all /proc/sys/net/ipv6/conf/all /proc/sys/net/ipv4/ip_forward'
done
true
"""
# What a test that failed may have left.
CLEAR = (
    "for name in /run/netns/shop-* /run/netns/container; do umount $name; umount $name; done; rm -f /run/netns/shop-*"
)


@pytest.fixture
def run(module_lab: Lab, warm: Warm) -> Warm:
    """Commands on a machine with two VPCs of ours and one of another state directory."""
    if warm("status", status=None).out != "in sync\n":
        module_lab.run(["sh", "-c", CLEAR], check=False)
        warm("repair")
    module_lab.python(MAKE, *OTHERS)
    module_lab.run(["sh", "-ec", FURNISH], netns="other-app")
    warm("apply --prune --yes -", input=json.dumps(ENVIRONMENT))
    warm("repair")
    return warm


def look(lab: Lab, victim: str) -> str:
    """Everything that a wrong step could change in the host and in all namespaces but the one under `victim`."""
    return lab.run(["sh", "-c", LOOK, victim]).stdout


def cover(lab: Lab, source: str, victim: str, way: str) -> None:
    lab.run(["sh", "-ec", WAYS[way][0], source, victim])
    # A namespace that is gone takes its links along some time later.
    settle(lab)
    assert eventually(lambda: look(lab, victim) == look(lab, victim))


HOST = "/proc/self/ns/net"
CASES = [(source, "shop-web-2", "over ours") for source in SOURCES]
CASES += [
    (source, "shop-router", "over ours") for source in (HOST, "/run/netns/billing-router", "/run/netns/other-app")
]
CASES += [(HOST, "shop-web-2", way) for way in list(WAYS)[1:]]
CASES += [(HOST, "shop-router", way) for way in list(WAYS)[2:]]
CASES += [("/run/netns/shop-db", "shop-web-2", way) for way in list(WAYS)[2:]]
EXEC = "exec --vpc shop --instance web-2 -- touch /run/ran"
# Each command that looks or acts, and the statuses with which it may end.
COMMANDS = {
    "status": {3},
    "status --vpc shop": {3},
    "repair": {4},
    EXEC: {0, 4},
    "doctor": {0, 1},
    "explain shop/web-2 shop/db udp/5000 --probe": {4, 5},
    "show-policy --vpc shop --subnet db --hits": {0, 2, 4},
    "repair --vpc shop": {4},
    "delete-instance --vpc shop --name web-2": {0, 4},
    "delete-subnet --vpc shop --name web --cascade": {0, 4},
    "delete-vpc --name shop --cascade": {0, 4},
    "destroy --all --yes": {0, 4},
}


@pytest.mark.parametrize(("source", "victim", "way"), CASES)
def test_a_namespace_that_belongs_elsewhere_is_never_taken_for_ours(
    module_lab: Lab, run: Warm, source: str, victim: str, way: str
) -> None:
    lab, remedy = module_lab, WAYS[way][1].format(victim)
    # The command leaves its trace where the namespace is the instance's.
    run(EXEC)
    lab.run(["rm", "/run/ran"])
    cover(lab, source, victim, way)
    before = look(lab, victim)
    words = f"namespace {victim} is {SOURCES[source]}; run `{remedy}`"
    for command in list(COMMANDS)[:8]:
        done = run(command, status=None)
        assert done.status in COMMANDS[command], done
        assert "Traceback" not in done.err
        if command.startswith(("status", "repair")):
            assert words in done.out + done.err, done
    if victim == "shop-web-2":
        assert lab.run(["ls", "/run/ran"], check=False).returncode, "exec ran in a namespace that is not the instance's"
    assert look(lab, victim) == before

    lab.run(["sh", "-ec", "; ".join([remedy] * (2 if way == "twice" else 1))])
    run("repair")
    assert run("status").out == "in sync\n"
    lab.run(["ping", "-n", "-c", "1", "-W", "5", "10.9.1.2"], netns="shop-web-2")


TORN_DOWN = [(HOST, "shop-web-2", way) for way in WAYS]
TORN_DOWN += [(HOST, "shop-router", "over ours"), ("/run/netns/other-app", "shop-web-2", "over ours")]


@pytest.mark.parametrize(("source", "victim", "way"), TORN_DOWN)
@pytest.mark.parametrize("command", list(COMMANDS)[8:])
def test_a_teardown_leaves_a_namespace_that_belongs_elsewhere_alone(
    module_lab: Lab, empty: dict[str, Any], run: Warm, source: str, victim: str, way: str, command: str
) -> None:
    """It ends, or says what to type; after that all can be destroyed and nothing is left."""
    lab, remedy = module_lab, WAYS[way][1].format(victim)
    links = lab.run(["sh", "-c", "ip -o link show eth0; ip -o address show eth0"]).stdout
    theirs = lab.run(["sh", "-c", "ip -o link; ip -o address; ip route"], netns="other-app").stdout
    cover(lab, source, victim, way)
    done = run(command, status=None)
    assert done.status in (0, 4), done
    if done.status:
        assert remedy in done.err, done
    assert lab.run(["sh", "-c", "ip -o link show eth0; ip -o address show eth0"]).stdout == links
    assert lab.run(["sh", "-c", "ip -o link; ip -o address; ip route"], netns="other-app").stdout == theirs

    lab.run(["sh", "-c", "; ".join([remedy] * (2 if way == "twice" else 1))], check=False)
    run("repair")
    run("destroy --all --yes")
    lab.run(["sh", "-c", "ip netns delete other-app; ip netns delete other-router"])
    assert differences(empty, photograph(lab)) == []


def test_two_instances_whose_namespaces_were_exchanged_are_both_refused(module_lab: Lab, run: Warm) -> None:
    exchange = """
    touch /run/one /run/two
    mount --bind /run/netns/shop-web-2 /run/one; mount --bind /run/netns/shop-db /run/two
    umount /run/netns/shop-web-2; umount /run/netns/shop-db
    mount --bind /run/one /run/netns/shop-db; mount --bind /run/two /run/netns/shop-web-2
    umount /run/one; umount /run/two
    """
    module_lab.run(["sh", "-ec", exchange])
    told = run("status", status=3).out
    assert "namespace shop-web-2 is the namespace of shop-db" in told
    assert "namespace shop-db is the namespace of shop-web-2" in told
    for name in ("web-2", "db"):
        assert run(f"exec --vpc shop --instance {name} -- true", status=4)
    run("repair", status=4)
    assert "10.0.1.3/24" in module_lab.run(["ip", "address"], netns="shop-db").stdout
    module_lab.run(["sh", "-ec", "umount /run/netns/shop-web-2 /run/netns/shop-db"])
    run("repair")
    assert run("status").out == "in sync\n"


def test_a_command_inside_an_instance_changes_nothing(module_lab: Lab, run: Warm) -> None:
    """The host is the namespace in which vpcctl runs, and that is none of ours."""
    words = ["nsenter", "--net=/run/netns/shop-web-2", sys.executable, "-m", "vpcctl"]
    before = look(module_lab, "nothing")
    for command, told in {
        "repair": "runs in the namespace of shop-web-2",
        "destroy --all --yes": "runs in the namespace of shop-web-2",
        "exec --vpc shop --instance web-2 -- true": "namespace shop-web-2 is the host's own namespace",
    }.items():
        done = module_lab.run([*words, *command.split()], check=False)
        assert (done.returncode, told in done.stderr) == (4, True), done.stderr
    assert look(module_lab, "nothing") == before


def test_another_state_directorys_instance_of_the_same_name_is_not_entered(module_lab: Lab, run: Warm) -> None:
    """Ours was deleted by hand, and theirs was made in its place."""
    module_lab.run(["ip", "netns", "delete", "shop-web-2"])
    module_lab.python(MAKE, "shop-web-2", "instance/web-2")
    module_lab.run(["sh", "-ec", FURNISH], netns="shop-web-2")
    look = ["sh", "-c", "ip -o link; ip -o address; ip route; stat -c %i /run/netns/shop-web-2"]
    before = module_lab.run(look, netns="shop-web-2").stdout
    assert "is not ours" in run("exec --vpc shop --instance web-2 -- true", status=4).err
    assert "shop-web-2 is not ours" in run("status", status=3).out
    assert "shop-web-2" in run("repair", status=4).err
    run("delete-subnet --vpc shop --name web --cascade")
    assert module_lab.run(look, netns="shop-web-2").stdout == before
    module_lab.run(["ip", "netns", "delete", "shop-web-2"])


# --- What stays allowed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["over ours", "on the bare claim", "on an older version's claim"])
def test_a_container_that_is_mounted_over_an_instances_name_is_furnished(module_lab: Lab, run: Warm, way: str) -> None:
    module_lab.run(["ip", "netns", "add", "container"])
    cover(module_lab, "/run/netns/container", "shop-web-2", way)
    run("repair")
    assert run("status").out == "in sync\n"
    module_lab.run(["ping", "-n", "-c", "1", "-W", "5", "10.9.1.2"], netns="container")
    run("delete-instance --vpc shop --name web-2")
    assert "shop-web-2" not in module_lab.run(["ls", "/run/netns"]).stdout.split()
    assert "eth0" not in module_lab.run(["ip", "-o", "link"], netns="container").stdout
    module_lab.run(["ip", "netns", "delete", "container"])


def test_the_right_one_of_two_names_on_a_namespace_stays_in_order(module_lab: Lab, run: Warm) -> None:
    cover(module_lab, "/run/netns/shop-db", "shop-web-2", "over ours")
    told = run("status", status=3).out
    assert "namespace shop-db is" not in told
    assert run("exec --vpc shop --instance db -- true")
    module_lab.run(["ip", "route", "delete", "default"], netns="shop-db")
    run("repair", status=4)
    assert "default via 10.0.2.1" in module_lab.run(["ip", "route"], netns="shop-db").stdout
    module_lab.run(["umount", "/run/netns/shop-web-2"])
    assert run("repair")


def test_claims_of_an_older_version_stay_valid(module_lab: Lab, run: Warm) -> None:
    """Their files hold the tag alone."""
    cut = (
        "umount $0; tag=$(head -n 1 $0); umount /run/kept 2>/dev/null; printf %s $tag >/run/tag; rm $0; cp /run/tag $0;"
    )
    for name in ("shop-web-2", "shop-db", "shop-router"):
        keep = f"touch /run/kept; mount --bind $0 /run/kept; {cut} mount --bind /run/kept $0; umount /run/kept"
        keep = keep.replace("umount /run/kept 2>/dev/null; ", "")
        module_lab.run(["sh", "-ec", keep, f"/run/netns/{name}"])
    assert run("status").out == "in sync\n"
    assert run("exec --vpc shop --instance web-2 -- true")
    run("destroy --all --yes")
    assert "shop" not in module_lab.run(["ls", "/run/netns"]).stdout


def test_reading_many_namespaces_asks_for_each_one_a_few_times(module_lab: Lab, run: Warm) -> None:
    """Also where no claim tells an inode number: the calls grow with the number of names, not with its square."""
    counts = []
    for number in (10, 40):
        members = [{"name": f"i-{index}"} for index in range(number)]
        subnet = {"name": "many", "cidr": "10.60.0.0/20", "type": "private", "instances": members}
        run("apply -", input=json.dumps({"vpcs": [{"name": "many", "cidr": "10.60.0.0/16", "subnets": [subnet]}]}))
        older = """
        for name in /run/netns/many-*; do
            touch /run/kept; mount --bind $name /run/kept; umount $name
            tag=$(head -n 1 $name); rm $name; printf %s $tag >$name; mount --bind /run/kept $name; umount /run/kept
        done"""
        module_lab.run(["sh", "-ec", older])
        done = run("status --vpc many", strace=["-e", "trace=stat,lstat,newfstatat,statx"])
        counts.append(sum("/run/netns" in line for line in done.calls.splitlines()))
    assert counts[1] < 6 * counts[0], counts
    run("delete-vpc --name many --cascade")
