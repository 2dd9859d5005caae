"""The host is as it was before us, whatever else is on it, and whatever we meet there ends in a sentence."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.lab.machine import (
    OUR_PYTHON,
    apply,
    attempt,
    differences,
    photograph,
    run_all,
    seen,
    settle,
    state_file,
    try_all,
)
from vpcctl.engine.state import LOCK_PATIENCE
from vpcctl.kernel.verified import NOTES
from vpcctl.lab import HOST, INTERNET, STATE_DIR, Lab

CREATE = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-instance --vpc shop --subnet web --name web-2",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
    "create-nat-gateway --vpc shop --subnet db",
    "create-vpc --name billing --cidr 10.9.0.0/16",
    "create-subnet --vpc billing --name ledger --cidr 10.9.1.0/24 --type private",
    "create-peering --vpc1 shop --vpc2 billing",
    "publish-port --vpc shop --instance web --port 8080 --target-port 80",
)
# The long way down, each thing by its own command.
DELETE = (
    "unpublish-port --vpc shop --port 8080",
    "delete-peering --vpc1 shop --vpc2 billing",
    "delete-nat-gateway --vpc shop --subnet db",
    "delete-instance --vpc shop --name web-2",
    "delete-subnet --vpc shop --name web",
    "delete-subnet --vpc shop --name db",
    "delete-vpc --name shop",
    "delete-subnet --vpc billing --name ledger",
    "delete-vpc --name billing",
)
FOREIGN = """
set -e
ip netns add foreign
ip link add br-foreign type bridge
ip link add veth-foreign type veth peer name eth0 netns foreign
ip link set veth-foreign master br-foreign up
ip link set br-foreign up
ip address add 192.168.77.1/24 dev br-foreign
ip netns exec foreign ip address add 192.168.77.2/24 dev eth0
ip netns exec foreign ip link set eth0 up
ip route add 172.31.0.0/16 via 192.168.77.2
ip neighbour add 192.168.77.9 lladdr 02:00:00:00:00:09 dev br-foreign
ip rule add from 192.168.77.0/24 table 100 priority 100
sysctl -qw net.ipv4.conf.br-foreign.forwarding=1 net.ipv4.conf.all.send_redirects=0
nft -f - <<END
table inet filter {
    chain input { type filter hook input priority filter; policy accept; tcp dport 2222 drop; }
    chain forward { type filter hook forward priority filter; policy accept; iifname "br-foreign" accept; }
}
table ip nat {
    chain postrouting { type nat hook postrouting priority srcnat; ip saddr 192.168.77.0/24 oifname "eth0" masquerade; }
}
table inet vpcctl-of-somebody { set s { type ipv4_addr; elements = { 192.168.77.3 }; }; }
END
"""


@pytest.fixture
def quiet(lab: Lab) -> Lab:
    """A lab whose host has finished starting up and has met its neighbours."""
    settle(lab)
    return lab


@pytest.fixture(scope="module", autouse=True)
def another_lab() -> Iterator[Lab]:
    """A lab where all was tried once: it has the kernel load its modules, whose settings are nothing that we change."""
    with Lab() as other:
        run_all(other, [*CREATE, "destroy --all --yes"])
        yield other


def use(lab: Lab) -> None:
    """Have traffic everywhere, a policy come and go, and see that there is something to be undone."""
    for address in ("10.0.2.2", "10.9.1.2", str(INTERNET)):
        lab.run(["ping", "-n", "-c", "1", "-W", "5", address], netns="shop-web")
    lab.run(["ping", "-n", "-c", "1", "-W", "5", str(INTERNET)], netns="shop-db")
    apply(lab, {"vpc": "shop", "subnet": "web", "ingress": [{"action": "allow", "protocol": "tcp", "port": 80}]})
    apply(lab, {"vpc": "shop", "subnet": "db", "egress": []})
    lab.run(["curl", "-s", "--max-time", "1", f"http://{HOST}:8080/"], netns="internet", check=False)
    run_all(lab, ["clear-policy --vpc shop --subnet db", "status", "repair"])


# --- As it was before -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forwarding", ["0", "1"])
def test_create_use_and_remove_leave_the_host_as_it_was_twice(quiet: Lab, forwarding: str) -> None:
    quiet.run(["sysctl", "-qw", f"net.ipv4.ip_forward={forwarding}"])
    before = photograph(quiet)
    for way_down in (DELETE, ("destroy --all --yes",)):
        run_all(quiet, CREATE)
        use(quiet)
        assert len(differences(before, photograph(quiet))) > 10
        run_all(quiet, way_down)
        assert differences(before, photograph(quiet)) == []
    assert quiet.run(["ls", "/run/netns"]).stdout == ""


def test_what_others_have_on_the_host_is_never_touched(quiet: Lab) -> None:
    quiet.run(["bash", "-c", FOREIGN])
    settle(quiet, "foreign")
    quiet.run(["ping", "-n", "-c", "1", "-W", "5", "192.168.77.2"])
    before, theirs = photograph(quiet), foreign(quiet)
    run_all(quiet, CREATE)
    use(quiet)
    assert foreign(quiet) == theirs
    run_all(quiet, ["destroy --all --yes"])
    assert foreign(quiet) == theirs
    assert differences(before, photograph(quiet)) == []


def foreign(lab: Lab) -> dict[str, object]:
    """What `FOREIGN` made, as it is now; and the other settings of the whole host."""
    picture = photograph(lab)
    return {
        "settings": {
            place: value
            for place, value in picture["settings"].items()
            if "/vpc-" not in place and not place.endswith("/eth0/forwarding")
        },
        "links": [link for link in picture["links"] if not link["ifname"].startswith("vpc-")],
        "routes": lab.run(["ip", "route", "show", "dev", "br-foreign"]).stdout,
        "rules": picture["rules"],
        "tables": [
            lab.run(["nft", "list", "table", *name.split()]).stdout
            for name in ("inet filter", "ip nat", "inet vpcctl-of-somebody")
        ],
        "inside": seen(lab, "-details", "address", netns="foreign"),
    }


# --- What gets in the way ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(module_lab: Lab) -> Lab:
    """A lab with one VPC; tests put back what they change."""
    run_all(module_lab, CREATE[:2])
    settle(module_lab, "shop-router")
    return module_lab


@pytest.fixture
def unchanged(machine: Lab) -> Iterator[Lab]:
    """The host, what is under our names and the state file are afterwards as before, to the byte."""
    before, router, state = photograph(machine), inside_router(machine), state_file(machine)
    yield machine
    assert state_file(machine) == state
    assert differences(before, photograph(machine)) == []
    assert inside_router(machine) == router


def inside_router(lab: Lab) -> list[object]:
    return [seen(lab, "-details", "address", netns="shop-router"), seen(lab, "route", netns="shop-router"),
            lab.run(["nft", "-s", "list", "ruleset"], netns="shop-router").stdout]  # fmt: skip


# A command that makes everything, one that loads rules alone, and one that takes away.
MUTATIONS = (
    ["create-vpc", "--name", "more", "--cidr", "10.20.0.0/16"],
    ["create-subnet", "--vpc", "shop", "--name", "app", "--cidr", "10.0.7.0/24", "--type", "private"],
    ["publish-port", "--vpc", "shop", "--instance", "web", "--port", "81"],
    ["apply-policy", "-"],
    ["delete-vpc", "--name", "shop", "--cascade"],
    ["destroy", "--all", "--yes"],
)
READERS = (["status"], ["repair"], ["list-vpcs"], ["show-vpc", "--name", "shop"])
POLICY = json.dumps({"vpc": "shop", "subnet": "web", "ingress": []})
# Become powerless: root by its number alone.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]
LOOKS = [(words, "") for words in (*READERS[:2], ["exec", "--vpc", "shop", "--subnet", "web", "--", "true"])]


def refused(
    lab: Lab,
    *prefix: str,
    status: int,
    said: str,
    commands: Sequence[list[str]] = MUTATIONS,
    input: str = POLICY,
    python: Sequence[str] = OUR_PYTHON,
) -> None:
    """Every one of the commands, in a process that is started with `prefix` in front of it, ends so."""
    answers = try_all(lab, [(words, input) for words in commands], prefix, python)
    for words, answer in zip(commands, answers, strict=True):
        assert (answer.status, answer.output) == (status, ""), (words, answer.complaint)
        assert said in answer.complaint, words


def test_root_without_capabilities_is_told_that_it_lacks_privilege(unchanged: Lab) -> None:
    refused(unchanged, *POWERLESS, status=77, said="needs root")
    for answer in try_all(unchanged, LOOKS, POWERLESS):
        assert answer.status == 77, answer.complaint
        assert "to look at namespaces and firewalls, or to change them, needs root" in answer.complaint
        assert "sudo" in answer.complaint


def test_an_ordinary_user_is_told_that_it_lacks_privilege(unchanged: Lab, nobodys_python: list[str]) -> None:
    if unchanged.run([*nobodys_python, "-c", ""], check=False).returncode:
        pytest.skip("this user namespace has no user but root")
    refused(unchanged, status=77, said="needs root", python=nobodys_python)
    for answer in try_all(unchanged, LOOKS, python=nobodys_python):
        assert answer.status == 77, answer.complaint
        assert "sudo" in answer.complaint


def test_without_libnftables_it_says_what_to_install(unchanged: Lab) -> None:
    found = unchanged.run(["sh", "-c", "ldconfig -p | grep -m 1 'libnftables.so.1 '"]).stdout.split()[-1]
    # An unchanged ruleset that was right is compared without the library.
    hidden = f'rm -f {NOTES}; mount --bind /dev/null "$(realpath {found})" && exec "$@"'
    hide = ["unshare", "--mount", "sh", "-c", hidden, "sh"]
    refused(unchanged, *hide, status=5, said="apt-get install libnftables1")
    refused(unchanged, *hide, status=5, said="apt-get install libnftables1", commands=READERS[:2])
    # In a process of its own, to see that the library's binding does not add anything when it ends.
    result = unchanged.run([*hide, sys.executable, "-m", "vpcctl", "status"], check=False)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (5, "", 1)
    assert "shop" in unchanged.run([*hide, sys.executable, "-m", "vpcctl", "list-vpcs"]).stdout


FOREIGN_OBJECTS = {
    "namespace of a router": ("ip netns add more-router", "ip netns delete more-router", 0, "more-router"),
    "file of a router": ("touch /run/netns/more-router", "rm /run/netns/more-router", 0, "more-router"),
    "link to nowhere": ("ln -s /none /run/netns/more-router", "rm /run/netns/more-router", 0, "more-router"),
    "link to a namespace": (
        "ln -s shop-router /run/netns/more-router",
        "rm /run/netns/more-router",
        0,
        "more-router",
    ),
    "namespace of an instance": ("ip netns add shop-app", "ip netns delete shop-app", 1, "shop-app"),
    "uplink": ("ip link add vpc-more type bridge", "ip link delete vpc-more", 0, "vpc-more"),
}


@pytest.mark.parametrize("kind", FOREIGN_OBJECTS)
def test_what_has_a_name_of_ours_and_is_not_ours_is_a_conflict(machine: Lab, kind: str) -> None:
    make, unmake, number, said = FOREIGN_OBJECTS[kind]
    bare = photograph(machine)
    machine.run(["sh", "-c", make])
    before, router, state = photograph(machine), inside_router(machine), state_file(machine)
    refused(machine, status=4, said=said, commands=[MUTATIONS[number]])
    assert state_file(machine) == state
    assert (differences(before, photograph(machine)), inside_router(machine)) == ([], router)
    machine.run(["sh", "-c", unmake])
    assert differences(bare, photograph(machine)) == []
    assert "in sync" in machine.vpcctl("status").stdout


@pytest.mark.parametrize("comment", ["", 'comment "vpcctl/somebody/else"'])
@pytest.mark.parametrize("table", ["vpcctl", "vpcctl-next"])
def test_a_table_of_our_name_is_a_conflict_and_stays(lab: Lab, table: str, comment: str) -> None:
    lab.run(["nft", "-f", "-"], input=f"table inet {table} {{\n{comment}\nset s {{ type mark; }}\n}}\n")
    settle(lab)
    before = photograph(lab)
    refused(lab, status=4, said=f"`inet {table}` that is not ours", commands=MUTATIONS[:1])
    assert differences(before, photograph(lab)) == []
    assert state_file(lab) == ""
    lab.run(["nft", "delete", "table", "inet", table])
    run_all(lab, CREATE[:1])


# --- The state file ---------------------------------------------------------------------------------------------------

DAMAGES = {
    "cut short": "truncate -s 200 state.json",
    "empty": "truncate -s 0 state.json",
    "a byte": "sed -i 's/10.0.0.0/10.1.0.0/' state.json",
    "no text": "printf '\\377\\376' >state.json",
    "not ours": "echo '[1, 2]' >state.json",
    "newer": """sed -i 's/"format":[0-9]*/"format":99/' state.json""",
    "a symbolic link": "mv state.json other.json; ln -s other.json state.json",
    "a directory": "rm state.json; mkdir state.json",
    "nested": """python3 -c "print('[' * 100000)" >state.json""",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_file_is_told_and_nothing_is_deleted(machine: Lab, damage: str) -> None:
    place = str(STATE_DIR)
    before, router = photograph(machine), inside_router(machine)
    machine.run(["cp", "-a", f"{place}/state.json", "/run/kept.json"])
    machine.run(["sh", "-c", f"cd {place} && {DAMAGES[damage]}"])
    damaged = state_directory(machine)
    try:
        refused(machine, status=6, said="state.json", commands=[*MUTATIONS, *READERS])
        assert state_directory(machine) == damaged
        assert (differences(before, photograph(machine)), inside_router(machine)) == ([], router)
    finally:
        machine.run(["sh", "-c", f"rm -rf {place}/state.json {place}/other.json; mv /run/kept.json {place}/state.json"])
    assert "in sync" in machine.vpcctl("status").stdout


def state_directory(lab: Lab) -> str:
    """What is in the state directory, but for the lock, where every writer signs."""
    look = f"cd {STATE_DIR} && find . ! -name . ! -name lock -printf '%p %y %m %s %T@ %l\\n' | sort; md5sum state.json"
    return lab.run(["sh", "-c", look], check=False).stdout


def test_a_state_directory_that_cannot_be_written_is_told_before_anything_is_touched(unchanged: Lab) -> None:
    read_only = f'mount --bind {STATE_DIR} {STATE_DIR} && mount -o remount,bind,ro {STATE_DIR} && exec "$@"'
    refused(unchanged, "unshare", "--mount", "sh", "-c", read_only, "sh", status=6, said=str(STATE_DIR))
    elsewhere = {"VPCCTL_STATE_DIR": "/proc/none"}
    result = attempt(unchanged, *MUTATIONS[0], env=elsewhere)
    assert result.returncode == 6
    assert "/proc/none" in result.stderr


@pytest.mark.parametrize("kind", ["a file", "a symbolic link", "somebody else's"])
def test_a_state_directory_that_is_none_of_ours_is_not_used(unchanged: Lab, kind: str) -> None:
    make = {
        "a file": "touch /run/odd",
        "a symbolic link": f"ln -s {STATE_DIR} /run/odd",
        "somebody else's": "mkdir -m 755 /run/odd && chown 65534 /run/odd",
    }[kind]
    if unchanged.run(["sh", "-c", make], check=False).returncode:
        pytest.skip("this user namespace has no user but root")
    result = attempt(unchanged, "--state-dir", "/run/odd", *MUTATIONS[0])
    unchanged.run(["rm", "-r", "/run/odd"])
    assert result.returncode == 6
    assert "/run/odd" in result.stderr


HOLD = f"""
import fcntl
lock = open("{STATE_DIR}/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write("the test")
lock.flush()
print("held", flush=True)
input()
"""


@pytest.fixture(scope="module", autouse=True)
def waiting(another_lab: Lab) -> subprocess.Popen[str]:
    """A command that waits for a lock that nobody lets go: started first, because its test is last."""
    holder = another_lab.popen([sys.executable, "-c", HOLD])
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    words = f"time -p {sys.executable} -m vpcctl create-vpc --name shop --cidr 10.0.0.0/16"
    return another_lab.popen(["bash", "-c", words], stdin=subprocess.DEVNULL)


# --- Streams and signals ----------------------------------------------------------------------------------------------


# How a command's output is cut off, and the exit statuses that it may have then.
ENDINGS = {
    "| head -n 1": (0, 141),
    "| true": (0, 141),
    ">/dev/full": (5,),
    ">&-": (0,),
    "2>&-": (0,),
    "2>/dev/full": (0,),
    "</dev/null >&- 2>&-": (0,),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_output_that_nobody_takes_leaves_no_traceback(unchanged: Lab, ending: str) -> None:
    command = [sys.executable, "-m", "vpcctl"]
    for words in ("show-ruleset --vpc shop", "list-vpcs", "list-vpcs --json", "status"):
        for unbuffered in ("", "1"):
            line = f"{shlex.join(command)} {words} {ending}; echo ${{PIPESTATUS[0]}} >/run/status"
            result = unchanged.run(["bash", "-c", line], env={"PYTHONUNBUFFERED": unbuffered})
            assert "Traceback" not in result.stderr
            assert "Exception ignored" not in result.stderr
            assert int(unchanged.run(["cat", "/run/status"]).stdout) in ENDINGS[ending], (words, unbuffered)


def test_a_complaint_that_nobody_takes_leaves_the_status_as_it_is(unchanged: Lab) -> None:
    for words, status in (("show-vpc --name none", 4), ("show-subnet", 2), ("delete-vpc --name none", 4)):
        for ending in ("2>&-", "2>/dev/full"):
            line = f"{sys.executable} -m vpcctl {words} {ending}; echo $?"
            assert unchanged.run(["bash", "-c", line]).stdout == f"{status}\n"


REMOVAL = ["delete-subnet", "--vpc", "shop", "--name", "app"]
# Start a command, wait for its intent to be on disk, let it go on for a moment, and end it.
INTERRUPT = """
import os, signal, subprocess, sys, time
place, number, moment, *words = sys.argv[1:]
before = os.stat(place).st_mtime_ns
process = subprocess.Popen([sys.executable, "-m", "vpcctl", *words], stderr=subprocess.PIPE, text=True)
while process.poll() is None and os.stat(place).st_mtime_ns == before:
    pass
time.sleep(float(moment))
process.send_signal(int(number))
said = process.communicate()[1]
print(process.returncode)
print(said)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_is_cut_off_in_the_middle_is_finished_by_repair(machine: Lab, number: signal.Signals) -> None:
    cut = 0
    for words, moment in zip((MUTATIONS[1], REMOVAL) * 2, (0, 0.003, 0.01, 0.02), strict=True):
        said = machine.python(INTERRUPT, f"{STATE_DIR}/state.json", str(int(number)), str(moment), *words).stdout
        assert "Traceback" not in said
        cut += said.split()[0] != "0"
        assert run_all(machine, ["repair", "status"]) == "in sync\n"
        assert ("app" in machine.vpcctl("list-subnets", "--vpc", "shop").stdout) == (words is not REMOVAL)
    assert cut, "no command was caught in the middle"


# --- At last ----------------------------------------------------------------------------------------------------------


def test_a_lock_that_is_held_is_told_with_its_holder_after_a_while(
    another_lab: Lab, waiting: subprocess.Popen[str]
) -> None:
    started = time.monotonic()
    another_lab.vpcctl("list-vpcs")  # readers do not wait
    assert time.monotonic() - started < LOCK_PATIENCE / 2
    output, complaint = waiting.communicate(timeout=2 * LOCK_PATIENCE)
    assert (waiting.returncode, output) == (6, "")
    assert "locked by the test" in complaint
    took = float(complaint.split("real")[1].split()[0])
    assert LOCK_PATIENCE <= took < 2 * LOCK_PATIENCE
    assert another_lab.run(["ls", "/run/netns"]).stdout == ""
