"""A record that is lost, damaged or newer, while everything it told of is alive: nothing is deleted, all comes back."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests.lab.machine import TWO_VPCS, differences, photograph
from tests.lab.warm import Ran, Warm
from vpcctl.engine.state import FORMAT
from vpcctl.lab import STATE_DIR, Lab

STATE = f"{STATE_DIR}/state.json"
# Every command that changes something, and its standard input.
MUTATING: dict[str, Any] = {
    "create-vpc --name new --cidr 10.1.0.0/16": None,
    "create-subnet --vpc shop --name new --cidr 10.0.3.0/24 --type public": None,
    "create-instance --vpc shop --subnet web --name new": None,
    "create-nat-gateway --vpc shop --subnet db": None,
    "create-peering --vpc1 shop --vpc2 billing": None,
    "publish-port --vpc shop --instance web --port 81": None,
    "apply-policy -": {"vpc": "shop", "subnet": "web", "ingress": []},
    "clear-policy --vpc shop --subnet db": None,
    "apply -": {"vpcs": [{"name": "new", "cidr": "10.1.0.0/16"}]},
    "apply --prune --yes -": {"vpcs": []},
    "unpublish-port --vpc shop --port 8080": None,
    "delete-peering --vpc1 shop --vpc2 billing": None,
    "delete-nat-gateway --vpc shop --subnet db": None,
    "delete-instance --vpc shop --name db": None,
    "delete-subnet --vpc shop --name db --cascade": None,
    "delete-vpc --name shop --cascade": None,
    "destroy --all --yes": None,
    "repair": None,
}
READING = ("list-vpcs", "show-vpc --name shop", "status", "export", "show-policy --vpc shop")


@pytest.fixture
def run(module_lab: Lab, warm: Warm) -> Warm:
    """Commands on a machine that is as `TWO_VPCS` says, with nothing beside the record."""
    module_lab.run(["rm", "-f", f"{STATE}.damaged"])
    warm("apply --prune --yes -", input=json.dumps(TWO_VPCS))
    return warm


def kernel(lab: Lab) -> str:
    """Everything of ours in the kernel; handles tell what was loaded or made again."""
    look = "ip -o link | cut -d' ' -f1,2; ip -o -4 address; nft -s -a list ruleset"
    enter = "for name in $(ls /run/netns); do echo == $name; ip netns exec $name sh -c"
    return lab.run(["sh", "-c", f'{look}; {enter} "{look}"; done']).stdout


def content(lab: Lab, place: str = STATE) -> str | None:
    """What a file holds; None if it does not exist."""
    found = lab.run(["cat", place], check=False)
    return None if found.returncode else found.stdout


def put(lab: Lab, text: str) -> None:
    lab.run(["sh", "-c", f"cat >{STATE}"], input=text)


def resealed(document: dict[str, Any]) -> str:
    """The document with the checksum that belongs to it (docs/state.md)."""
    document = {name: value for name, value in document.items() if name != "checksum"}
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(document | {"checksum": f"sha256:{hashlib.sha256(canonical).hexdigest()}"})


def all_refused(lab: Lab, run: Warm, *words: str) -> None:
    """Every command ends with 6 in such words; neither the kernel nor the file is another one afterwards."""
    before = kernel(lab), content(lab)
    for command, document in MUTATING.items():
        _refused(run(command, input=json.dumps(document), status=None), words)
    for command in READING:
        _refused(run(command, status=None), words)
    assert (kernel(lab), content(lab)) == before


def _refused(ran: Ran, words: tuple[str, ...]) -> None:
    assert (ran.status, ran.out) == (6, ""), ran
    assert "Traceback" not in ran.err
    for expected in words:
        assert expected in ran.err, ran


# --- Lost, damaged ----------------------------------------------------------------------------------------------------

DAMAGE = {
    "removed": (
        f"rm {STATE}",
        "is missing, but what it described is still there; `vpcctl repair --adopt` takes it back",
    ),
    "emptied": (f": >{STATE}", "is damaged (not a state document); nothing was changed; `vpcctl repair --adopt`"),
    "cut off": (f"truncate -s 1000 {STATE}", "is damaged (not a state document); nothing was changed"),
    "altered": (
        f"sed -i s/10.0.0.0/10.1.0.0/ {STATE}",
        "is damaged (its checksum does not match); nothing was changed",
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_while_the_record_is_lost_nothing_is_changed_and_adopting_brings_it_back(
    module_lab: Lab, empty: dict[str, Any], run: Warm, how: str
) -> None:
    script, words = DAMAGE[how]
    whole, before, environment = content(module_lab), kernel(module_lab), run("export").out
    assert whole is not None
    module_lab.run(["sh", "-c", script])
    damaged = content(module_lab)
    assert damaged != whole
    all_refused(module_lab, run, words)

    run("repair --adopt")
    found = json.loads(content(module_lab) or "")
    kept = json.loads(whole)
    assert {**found, "serial": 0, "checksum": ""} == {**kept, "serial": 0, "checksum": ""}
    assert found["serial"] > kept["serial"]
    assert content(module_lab, f"{STATE}.damaged") == damaged  # None where it was removed
    assert run("status").out == "in sync\n"
    assert run("export").out == environment
    assert kernel(module_lab) == before
    assert run("repair").err == "nothing to repair\n"

    # The record that came back knows of everything.
    run("destroy --all --yes")
    assert differences(empty, photograph(module_lab)) == []


def test_with_the_copy_lost_too_nothing_is_adopted_and_nothing_deleted(module_lab: Lab, run: Warm) -> None:
    whole = content(module_lab)
    [copy] = module_lab.run(["sh", "-c", "ls /run/vpcctl/????????????????.json"]).stdout.split()
    module_lab.run(["sh", "-c", f"echo nonsense >{STATE}; mv {copy} /run/copy"])
    before = kernel(module_lab)
    all_refused(module_lab, run, "is damaged")
    refused = run("repair --adopt", status=6)
    assert "no copy of" in refused.err
    assert (kernel(module_lab), content(module_lab)) == (before, "nonsense\n")
    # With the file removed there is nothing that tells; even so nobody's namespace is taken or removed.
    module_lab.run(["rm", STATE])
    assert (
        "namespace shop-router exists already and is not ours"
        in run("create-vpc --name shop --cidr 10.0.0.0/16", status=4).err
    )
    run("destroy --all --yes")
    assert kernel(module_lab) == before
    module_lab.run(["mv", "/run/copy", copy])
    put(module_lab, whole or "")
    assert run("status").out == "in sync\n"


# --- Parts ------------------------------------------------------------------------------------------------------------

# Of the VPC `shop`, by the state file.
PART_HARM = {
    "removed": ("rm {}", "VPC shop: {} is missing; nothing was changed; `vpcctl repair --adopt`"),
    "emptied": (": >{}", "VPC shop: {} is damaged (its checksum does not match); nothing was changed"),
    "altered": ("sed -i s/10.0.1.2/10.0.1.3/ {}", "VPC shop: {} is damaged (its checksum does not match)"),
    "a link": ("mv {0} /run/part; ln -s /run/part {0}", "VPC shop: cannot read {}: "),
}


def part(lab: Lab, vpc: str) -> str:
    """The file that has what is on record of a VPC."""
    document = json.loads(content(lab) or "")
    [found] = {one["part"] for one in document["desired"]["vpcs"] if one["name"] == vpc} & {document["record"][vpc]}
    return f"{STATE_DIR}/parts/{found}.json"


@pytest.mark.parametrize("how", PART_HARM)
def test_while_a_part_is_lost_other_vpcs_can_be_changed_and_adopting_brings_it_back(
    module_lab: Lab, run: Warm, how: str
) -> None:
    # Made at once, so that what is desired and the objects are in one part.
    script, said = PART_HARM[how]
    run("destroy --all --yes")
    run("apply --prune --yes -", input=json.dumps(TWO_VPCS))
    run("create-vpc --name third --cidr 10.5.0.0/16")
    place, environment, before = part(module_lab, "shop"), run("export").out, kernel(module_lab)
    sound = content(module_lab, place)
    module_lab.run(["sh", "-c", script.format(place)])
    head = content(module_lab)
    about = ("--vpc shop", "--name shop", "apply-policy")
    for words, document in MUTATING.items():
        if any(one in words for one in about):
            _refused(run(words, input=json.dumps(document), status=None), (said.format(place),))
    for words in ("list-vpcs", "status", "export", "repair"):
        _refused(run(words, status=None), (said.format(place),))
    assert (kernel(module_lab), content(module_lab)) == (before, head)

    # A peer tracks the same flows, so it is looked at before anything is changed.
    beside = "create-subnet --vpc {} --name beside --cidr {} --type private"
    _refused(run(beside.format("billing", "10.9.9.0/24"), status=None), (said.format(place),))
    assert kernel(module_lab) == before
    run(beside.format("third", "10.5.9.0/24"))
    assert run("status --vpc third").out == "in sync\n"
    run("delete-subnet --vpc third --name beside")
    run("repair --adopt")
    assert content(module_lab, place) == sound
    assert module_lab.run(["stat", "-c", "%F %a", place]).stdout == "regular file 600\n"
    assert run("status").out == "in sync\n"
    assert run("export").out == environment
    module_lab.run(["rm", "-f", "/run/part"])


# --- Newer, sound -----------------------------------------------------------------------------------------------------


def test_a_newer_record_is_refused_and_untouched_even_when_adopting(module_lab: Lab, run: Warm) -> None:
    whole = content(module_lab) or ""
    newer = resealed(json.loads(whole) | {"format": FORMAT + 1})
    put(module_lab, newer)
    words = (
        f"has format {FORMAT + 1}, and this vpcctl knows formats up to {FORMAT};"
        " use the vpcctl that wrote it, or a newer one"
    )
    all_refused(module_lab, run, words)
    _refused(run("repair --adopt", status=None), (words,))
    assert content(module_lab) == newer
    assert content(module_lab, f"{STATE}.damaged") is None
    # It was the format alone.
    put(module_lab, resealed(json.loads(whole)))
    assert run("status").out == "in sync\n"


def test_adopting_never_replaces_a_record_that_can_be_read(module_lab: Lab, run: Warm) -> None:
    """The copy is of another world then: the record wins, and what differs in the kernel is repaired."""
    older = content(module_lab) or ""
    run("create-subnet --vpc shop --name later --cidr 10.0.9.0/24 --type private")
    later = content(module_lab)
    assert run("repair --adopt").err == "nothing to repair\n"
    assert content(module_lab) == later
    put(module_lab, older)
    run("repair --adopt")
    assert "later" not in run("list-subnets --vpc shop").out
    assert content(module_lab, f"{STATE}.damaged") is None
    # What the older record knows nothing of was not deleted.  With the later one it is ours again.
    assert "shop-later" in module_lab.run(["ls", "/run/netns"]).stdout.split()
    put(module_lab, later or "")
    run("repair")
    assert run("status").out == "in sync\n"


# --- Somebody else's --------------------------------------------------------------------------------------------------


def test_vpcs_of_another_state_directory_are_never_touched(module_lab: Lab, run: Warm) -> None:
    other = "--state-dir /run/other-state"
    before = kernel(module_lab), content(module_lab)
    for words, told in (
        ("create-vpc --name shop --cidr 10.0.0.0/16", "namespace shop-router exists already and is not ours"),
        ("create-vpc --name mine --cidr 10.5.0.0/16", "is not ours"),
    ):
        assert told in run(f"{other} {words}", status=4).err
    assert "no copy of" in run(f"{other} repair --adopt", status=6).err
    assert "VPC 'shop' not found" in run(f"{other} delete-vpc --name shop --cascade", status=4).err
    assert run(f"{other} repair").err == "nothing to repair\n"
    assert run(f"{other} apply --prune --yes -", input='{"vpcs": []}').err == "nothing to change\n"
    run(f"{other} destroy --all --yes")
    assert run(f"{other} list-vpcs").out == ""
    assert (kernel(module_lab), content(module_lab)) == before
    assert run("status").out == "in sync\n"
    # Nor are they when the other one's record is lost.
    module_lab.run(["rm", "-r", "/run/other-state"])
    assert run(f"{other} destroy --all --yes").status == 0
    assert (kernel(module_lab), content(module_lab)) == before
