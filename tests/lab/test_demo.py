"""The demo itself: that it shows what it is for, that its marks are true, and that it leaves nothing."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from vpcctl.lab import Lab
from vpcctl.lab.demo import LIBRARY, ROOT, comparison
from vpcctl.lab.demo_http import REFUSED, SILENT
from vpcctl.lab.demo_stage import Trial

DEMO = [sys.executable, "-m", "vpcctl.lab.demo"]
PATIENCE = 180

# A part of a command and of its outcome, each in a line of its own and in this order.
SHOWN = [
    ("create-vpc --name shop --cidr 10.0.0.0/16", " s"),
    ("create-vpc --name twin --cidr 10.0.0.0/16", " s"),
    ("--vpc shop --instance app -- get 10.0.1.2:8443", "answered “web of shop”"),
    ("--vpc twin --instance app -- get 10.0.1.2:8443", "answered “web of twin”"),
    ("--vpc billing --instance jobs -- get 10.0.2.2:8080", "silent"),
    ("create-peering --vpc1 shop --vpc2 billing", " s"),
    ("--vpc billing --instance jobs -- get 10.0.2.2:8080", "answered “app of shop”"),
    ("create-peering --vpc1 shop --vpc2 twin", "refused"),
    ("cd rulesets/library/three-tier", ""),
    ("apply-policy --vpc shop web.json app.json db.json", " s"),
    ("--instance web -- get 10.0.2.2:8080", "answered “app of shop”"),
    ("--instance app -- get 10.0.3.2:5432", "answered “db of shop”"),
    ("--instance app -- get 203.0.113.10:443", "answered “203.0.113.10 heard you from 198.51.100.2”"),
    ("--instance web -- get 10.0.3.2:5432", "silent"),
    ("--instance web-2 -- get 10.0.1.2:8443", "silent"),
    ("--vpc billing --instance jobs -- get 10.0.2.2:8080", "silent"),
    ("neighbour get 198.51.100.2:443", "answered “web of shop”"),
    ("neighbour get 100.64.0.1:443", "silent"),
    ("the download of web goes on", "of those sent after it"),
    ("the download of web-2 stopped", " 0 of those sent after it"),
    ("destroy --all --yes", " s"),
    ("ip netns", "as before; "),
    ("nft list ruleset", "as before; "),
    ("settings under net/", "as before"),
]


def left(lab: Lab) -> dict[str, str]:
    """What the machine has of namespaces, links and tables."""
    listings = {"namespaces": "ip netns", "links": "ip -oneline link", "tables": "nft list ruleset"}
    return {name: lab.run(command.split()).stdout for name, command in listings.items()}


def marked(output: str, mark: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(f" {mark} ")]


def test_the_demo_shows_all_it_is_for_and_leaves_nothing(lab: Lab) -> None:
    before = left(lab)
    done = lab.run(DEMO, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr, marked(done.stdout, "✗")) == (0, "", [])
    steps = iter(marked(done.stdout, "✓"))
    for command, outcome in SHOWN:
        assert any(command in line and outcome in line.partition(command)[2] for line in steps), (command, outcome)
    assert len(done.stdout.splitlines()) < 80  # what can be read in a minute
    assert "\033" not in done.stdout
    assert left(lab) == before


def test_a_step_that_comes_out_wrong_is_marked_and_is_the_exit_status(lab: Lab, tmp_path: Path) -> None:
    """With policies that let web into the database, the demo says so, and takes everything down all the same."""
    before = left(lab)
    tiers = {name: json.loads((ROOT / LIBRARY / f"{name}.json").read_text()) for name in ("web", "app", "db")}
    tiers["web"]["egress"].append({"action": "allow", "protocol": "tcp", "destination": "subnet:db"})
    tiers["db"]["ingress"].append({"action": "allow", "protocol": "tcp", "source": "subnet:web"})
    for name, policy in tiers.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(policy))
    done = lab.run([*DEMO, str(tmp_path)], check=False, timeout=PATIENCE)
    assert done.returncode == 1
    [wrong] = marked(done.stdout, "✗")
    assert "--instance web -- get 10.0.3.2:5432" in wrong
    assert "answered “db of shop”, and should be silent" in wrong
    assert left(lab) == before


def test_a_step_that_the_others_need_ends_the_demo_where_it_fails(lab: Lab, tmp_path: Path) -> None:
    """The policies are missing, so the sections after them would show nothing."""
    before = left(lab)
    done = lab.run([*DEMO, str(tmp_path)], check=False, timeout=PATIENCE)
    assert done.returncode == 1
    [wrong] = marked(done.stdout, "✗")
    assert "apply-policy" in wrong
    assert "cannot be read" in wrong
    assert "publish-port" not in done.stdout
    assert left(lab) == before


def test_the_demo_refuses_to_run_outside_a_lab() -> None:
    surroundings = {name: value for name, value in os.environ.items() if name != "VPCCTL_LAB"}
    done = subprocess.run(DEMO, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "demo: it makes and destroys VPCs, and so runs in a lab alone: `./run demo`\n"


def test_the_demo_leaves_a_lab_that_is_in_use_alone(lab: Lab) -> None:
    lab.vpcctl("create-vpc", "--name", "mine", "--cidr", "10.0.0.0/16")
    done = lab.run(DEMO, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "this lab has VPCs" in done.stderr
    assert [vpc["name"] for vpc in json.loads(lab.vpcctl("list-vpcs", "--json").stdout)] == ["mine"]


@pytest.mark.parametrize(
    ("page", "status", "said", "heard", "good"),
    [
        ("page", 0, "the page", True, True),
        ("page", 0, "another", True, False),
        ("page", SILENT, "no answer", False, False),
        (None, SILENT, "no answer", False, True),
        (None, SILENT, "no answer", True, False),
        (None, 0, "the page", True, False),
        (None, REFUSED, "refused", False, False),
        (None, 5, "namespace shop-web is gone", False, False),
    ],
)
def test_a_probe_is_good_only_if_what_should_come_came(
    page: str | None, status: int, said: str, heard: bool, good: bool
) -> None:
    assert Trial("get", page).judged(status, said, heard)[0] is good


@pytest.mark.parametrize(
    ("after", "good", "words"),
    [
        (["a", "b"], True, "as before; 1 line came and went"),
        (["a", "b", "c"], False, "left behind: c"),
        (["a"], False, "lost: b"),
        (["b", "a"], False, "in another order"),
    ],
)
def test_what_is_left_lost_or_moved_is_no_as_before(after: list[str], good: bool, words: str) -> None:
    assert comparison(["a", "b"], ["a", "b", "c"], after) == (good, words)


@pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
def test_colour_is_for_terminals_alone_and_not_where_it_is_unwanted(no_colour: str, coloured: bool) -> None:
    ours, theirs = pty.openpty()
    say = [sys.executable, "-c", "from vpcctl.lab.demo_stage import painted; print(painted('x', '32'))"]
    subprocess.run(say, stdout=theirs, cwd=ROOT, env=os.environ | {"NO_COLOR": no_colour}, check=True)
    os.close(theirs)
    said = os.read(ours, 99)
    os.close(ours)
    assert (b"\033[32m" in said) is coloured
