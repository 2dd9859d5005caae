"""What docs/operations.md tells an operator to type repairs what it says, as typed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.machine import TWO_VPCS, differences, photograph, run_all, seen, settle
from tests.lab.traffic import eventually, start_flow, stations
from vpcctl.engine.state import FORMAT
from vpcctl.lab import STATE_DIR, Lab

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
STATE = f"{STATE_DIR}/state.json"
# What an older version of the program compiles: the same, and a chain that nothing leads to.
OLDER = """
import dataclasses, sys
from vpcctl import compiler
from vpcctl.resources import topology
from vpcctl.cli import main
from vpcctl.compiler.nft import Chain
from vpcctl.kernel import verified

def older(world, name, owner, known=None):
    first, *rest = compiler.compile_vpc(world, name, owner).tables
    return compiler._finished((dataclasses.replace(first, chains=(*first.chains, Chain("older", ()))), *rest), owner)

topology.compile_vpc = older
verified.program = lambda: "an older one"
main(sys.argv[1:])
"""


def sections() -> dict[str, list[str]]:
    """The shell blocks of the page by their headings."""
    parts = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)[1:]
    return {
        title: re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def typed(lab: Lab, title: str, number: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Type the commands of a section's block, one after the other, whatever each ends with."""
    return lab.run(["bash", "-xc", sections()[title][number]], cwd=folder, check=False, timeout=120)


def status(lab: Lab) -> tuple[int, str]:
    done = lab.run([sys.executable, "-m", "vpcctl", "status"], check=False)
    return done.returncode, done.stdout


def works(lab: Lab) -> bool:
    """Is everything in sync, and do packets pass?"""
    ping = ["ping", "-n", "-c", "1", "-W", "5", "10.9.1.2"]
    return status(lab) == (0, "in sync\n") and lab.run(ping, netns="shop-web", check=False).returncode == 0


def reboot(lab: Lab) -> None:
    """All that a reboot takes: namespaces, links, rules, the files under /run; and the boot has another id."""
    lab.run(["sh", "-c", "for name in $(ls /run/netns); do ip netns delete $name; done; nft flush ruleset"])
    # The kernel takes the links with their namespaces, in its own time.
    assert eventually(lambda: not any(one["ifname"].startswith("vpc-") for one in seen(lab, "link")))
    place = "/proc/sys/kernel/random/boot_id"
    boot = f"rm -rf /run/vpcctl; echo 00000000-0000-4000-8000-000000000001 >/run/boot; mount --bind /run/boot {place}"
    lab.run(["sh", "-ec", boot])


@dataclass(frozen=True)
class Case:
    """What happens, in a shell on the host; what `status` says to it; which of the section's blocks help."""

    happens: str | Callable[[Lab], None]
    status: int = 3
    said: str = ""
    blocks: tuple[int, ...] = (0,)


CASES = {
    "A command was interrupted": Case(
        "strace -qf -o /dev/null -e trace=linkat -e inject=linkat:signal=KILL"
        f" {sys.executable} -m vpcctl create-subnet --vpc shop --name new --cidr 10.0.3.0/24 --type private",
        said="a change is unfinished",
    ),
    "After a reboot": Case(reboot, said="ruleset of shop-router is absent", blocks=(0, 1)),
    "Somebody flushed the firewall": Case(
        "nft flush ruleset; ip netns exec shop-router nft flush ruleset", said="ruleset of the host is absent"
    ),
    "Somebody changed links, addresses, routes or settings": Case(
        "ip -n shop-router link delete in-web; ip -n shop-db route delete default;"
        " ip netns exec shop-router sysctl -qw net.ipv4.ip_forward=0",
        said="link in-web in shop-router to eth0 in shop-web is absent",
    ),
    "The state file is damaged or missing": Case(f"truncate -s 99 {STATE}", status=6),
}


@pytest.fixture
def busy(lab: Lab, tmp_path: Path) -> Lab:
    """A lab with two VPCs."""
    if lab.run(["strace", "true"], check=False).returncode:
        pytest.skip("strace(1) is not installed")
    lab.vpcctl("apply", "-", input=json.dumps(TWO_VPCS))
    assert works(lab)
    return lab


@pytest.mark.parametrize("title", CASES)
def test_the_commands_of_the_page_repair_it(busy: Lab, tmp_path: Path, title: str) -> None:
    case = CASES[title]
    if callable(case.happens):
        case.happens(busy)
    else:
        busy.run(["sh", "-c", case.happens], check=False)
    code, told = status(busy)
    assert (code, case.said in told) == (case.status, True), told
    for number in case.blocks:
        done = typed(busy, title, number, tmp_path)
        assert done.returncode == 0, done.stderr
    assert works(busy)


def test_every_section_is_tried_here_or_there() -> None:
    elsewhere = {
        "A published port is taken, or is not reached": "tests/lab/test_ports.py",
        "A namespace belongs elsewhere": "tests/lab/test_namespaces.py",
        "A VPC cannot be removed completely": "tests/pure/test_trouble.py",
        "Hardened VPCs": "tests/lab/test_checksums.py",
        "The state file is newer": "tests/lab/test_adopt.py",
        "The state is locked": "tests/lab/test_surroundings.py",
    }
    tried = {*CASES, *elsewhere, *re.findall(r'^    title = "(.*)"$', Path(__file__).read_text(), re.MULTILINE)}
    assert tried == set(sections())
    for title, place in elsewhere.items():
        assert title.split()[-1] in (ROOT / place).read_text()


def test_a_vpc_whose_repair_fails_is_named_and_can_be_given_up(busy: Lab, tmp_path: Path) -> None:
    title = "One instance or VPC cannot be repaired"
    busy.run(["sh", "-c", "ip netns delete shop-web; ip netns add shop-web; ip -n billing-ledger link delete eth0"])
    repair = busy.run([sys.executable, "-m", "vpcctl", "repair"], check=False)
    assert repair.returncode == 4
    assert "instance web of VPC shop: repair failed, skipped: namespace shop-web exists already" in repair.stderr
    assert busy.vpcctl("status", "--vpc", "billing").stdout == "in sync\n"
    assert busy.run(["ping", "-n", "-c", "1", "-W", "5", "10.9.1.1"], netns="billing-ledger").returncode == 0
    done = typed(busy, title, 0, tmp_path)
    assert done.returncode == 0, done.stderr
    assert busy.run(["ls", "/run/netns"]).stdout.split() == ["billing-ledger", "billing-router", "shop-web"]
    assert status(busy) == (0, "in sync\n")


def test_a_mistake_is_undone_or_takes_itself_back(busy: Lab, tmp_path: Path) -> None:
    title = "A change was a mistake"
    before = busy.vpcctl("export").stdout
    busy.vpcctl("delete-peering", "--vpc1", "shop", "--vpc2", "billing")
    assert not works(busy)
    done = typed(busy, title, 0, tmp_path)
    assert done.returncode == 0, done.stderr
    assert works(busy)
    assert busy.vpcctl("export").stdout == before
    without = json.loads(before) | {"peerings": []}
    (tmp_path / "environment.json").write_text(json.dumps(without))
    done = typed(busy, title, 1, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not works(busy)
    busy.vpcctl("undo")
    # The operator is cut off and does not confirm it, and the machine is restarted.
    busy.vpcctl("apply", str(tmp_path / "environment.json"), "--confirm", "3600")
    reboot(busy)
    busy.vpcctl("repair")
    assert works(busy)
    assert busy.vpcctl("export").stdout == before


def test_a_damaged_file_and_a_reboot_leave_what_was_exported(busy: Lab, tmp_path: Path) -> None:
    title = "The state file is damaged or missing"
    (tmp_path / "environment.json").write_text(busy.vpcctl("export").stdout)
    busy.run(["truncate", "-s", "99", STATE])
    reboot(busy)
    assert typed(busy, title, 0, tmp_path).returncode == 6  # no copy exists
    done = typed(busy, title, 1, tmp_path)
    assert done.returncode == 0, done.stderr
    assert works(busy)


def test_a_vpc_gets_the_mtu_that_was_chosen(busy: Lab, tmp_path: Path) -> None:
    title = "Packets that are too large"
    done = typed(busy, title, 0, tmp_path)
    assert done.returncode == 0, done.stderr
    assert seen(busy, "link", "show", "uplink", netns="tunnelled-router")[0]["mtu"] == 1400
    document = json.loads(busy.vpcctl("export").stdout)
    [shop] = (vpc for vpc in document["vpcs"] if vpc["name"] == "shop")
    shop["mtu"] = 1400
    busy.vpcctl("apply", "-", input=json.dumps(document))
    assert seen(busy, "link", "show", "eth0", netns="shop-web")[0]["mtu"] == 1400
    assert works(busy)


def test_a_full_disk_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    title = "The disk is full"
    lab.run(["mkdir", "-m", "700", str(STATE_DIR)])
    lab.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(STATE_DIR)])
    lab.vpcctl("apply", "-", input=json.dumps(TWO_VPCS))
    lab.run(["sh", "-c", f"cat /dev/zero >{STATE_DIR}/filler"], check=False)
    words = ["create-vpc", "--name", "more", "--cidr", "10.8.0.0/16"]
    refused = lab.run([sys.executable, "-m", "vpcctl", *words], check=False)
    assert (refused.returncode, "No space left on device" in refused.stderr) == (6, True), refused.stderr
    assert works(lab)
    assert "more-router" not in lab.run(["ls", "/run/netns"]).stdout
    lab.run(["rm", f"{STATE_DIR}/filler"])
    assert typed(lab, title, 0, tmp_path).returncode == 0
    lab.vpcctl(*words)
    assert works(lab)


def test_an_upgrade_takes_over_without_a_lost_packet(lab: Lab, tmp_path: Path) -> None:
    title = "Upgrade"
    lab.run([sys.executable, "-c", OLDER, "apply", "-"], input=json.dumps(TWO_VPCS))
    with stations(lab, "shop-web", "shop-db") as (web, db):
        db.listen()
        flow = start_flow("kept", web, db, "10.0.2.2", 5000, "udp", rate=500)
        done = typed(lab, title, 0, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "another ruleset is loaded" in done.stdout
        flow.client.tell("rate", name="kept", rate=0)
        assert eventually(lambda: flow.counts()[1].received == flow.counts()[0].sent > 0)
    assert works(lab)


def test_an_export_makes_the_same_networks_elsewhere(busy: Lab, tmp_path: Path) -> None:
    title = "Backup, and moving to another machine"
    assert typed(busy, title, 0, tmp_path).returncode == 0
    kept = (tmp_path / "environment.json").read_text()
    with Lab() as other:
        other.vpcctl("apply", str(tmp_path / "environment.json"))
        assert other.vpcctl("export").stdout == kept
        assert works(other)


def test_taken_off_it_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    title = "Taking it off the machine"
    with Lab() as other:  # the kernel loads its modules, whose settings are nothing that we change
        run_all(other, ["create-vpc --name shop --cidr 10.0.0.0/16", "destroy --all --yes"])
    settle(lab)
    before = photograph(lab)
    lab.vpcctl("apply", "-", input=json.dumps(TWO_VPCS))
    assert len(differences(before, photograph(lab))) > 10
    done = typed(lab, title, 0, tmp_path)
    assert done.returncode == 0, done.stderr
    assert differences(before, photograph(lab)) == []
    assert lab.run(["ls", "-d", str(STATE_DIR)], check=False).stdout == ""


def test_a_state_file_of_format_1_is_restored_and_removed_without_a_trace(lab: Lab) -> None:
    """The file was written by the last program that wrote format 1, on another machine, before a reboot."""
    written = Path(__file__).parents[2] / "state/v1/written.json"
    lab.run(["sh", "-c", f"mkdir -m 700 {STATE_DIR} && cat >{STATE}"], input=written.read_text())
    lab.vpcctl("status", status=3)
    lab.vpcctl("repair")
    assert status(lab) == (0, "in sync\n")
    lab.run(["ping", "-n", "-c", "1", "-W", "5", "10.0.1.1"], netns="shop-web")
    assert json.loads(lab.run(["cat", STATE]).stdout)["format"] == FORMAT
    # What was kept of the host and of each VPC has its effect.
    table = lab.run(["nft", "list", "table", "inet", "vpcctl"]).stdout
    assert "tcp . 8080 : 100.64.0.1 . 8080" in table
    assert "over-share-dark" in table
    lab.vpcctl("destroy", "--all", "--yes")
    assert lab.run(["ip", "netns"]).stdout == ""
    assert "vpcctl" not in lab.run(["nft", "list", "tables"]).stdout
    assert "vpc-" not in lab.run(["ip", "link"]).stdout
