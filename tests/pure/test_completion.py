"""Completion: what is offered for which word, also in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rehearsal import Rehearsal
from tests.story import told
from vpcctl.cli import COMMANDS, main
from vpcctl.engine import reconciler

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a machine with two VPCs."""
    made = Rehearsal(tmp_path_factory.mktemp("completion") / "state")
    reconciler.change(made.store, made.fake, lambda state: told("peer them"))
    return made.state_dir


def offered(
    line: str, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[list[str], str]:
    """What the program answers a shell in which `line` was typed, and what it says besides."""
    words = line.split(" ")
    monkeypatch.setenv("_VPCCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("VPCCTL_STATE_DIR", str(state))
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 0
    output = capsys.readouterr()
    return [line for line in output.out.splitlines() if line], output.err


VPCS = ["plain,one", "plain,two"]
BOTH = ["plain,one/web", "plain,one/db", "plain,two/api"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vpcctl delete-s", ["plain,delete-subnet"]),
        ("vpcctl show-", [f"plain,{name}" for name in COMMANDS if name.startswith("show-")]),
        ("vpcctl show-vpc ", VPCS),
        ("vpcctl show-vpc --name ", VPCS),
        ("vpcctl show-vpc --vpc t", ["plain,two"]),
        ("vpcctl list-subnets --vpc ", VPCS),
        ("vpcctl graph t", ["plain,two"]),
        ("vpcctl list-instances ", [*VPCS, *BOTH]),
        ("vpcctl delete-subnet ", BOTH),
        ("vpcctl delete-subnet one/d", ["plain,one/db"]),
        ("vpcctl delete-subnet --vpc two --name ", ["plain,api"]),
        ("vpcctl show-instance --vpc one --name ", ["plain,web", "plain,db"]),
        ("vpcctl create-instance --vpc one --subnet ", ["plain,web", "plain,db"]),
        ("vpcctl create-instance --vpc one --name ", []),
        ("vpcctl create-vpc --name ", []),
        ("vpcctl publish-port --vpc two --instance ", ["plain,api"]),
        ("vpcctl publish-port one/web --protocol s", ["plain,sctp"]),
        ("vpcctl create-peering one ", VPCS),
        ("vpcctl create-peering --vpc1 ", VPCS),
        ("vpcctl exec ", BOTH),
        ("vpcctl exec two/", ["plain,two/api"]),
        ("vpcctl exec --vpc two --instance ", ["plain,api"]),
        ("vpcctl exec one/web ls", ["file,ls"]),
        ("vpcctl exec --vpc one --subnet web l", ["file,l"]),
        ("vpcctl apply-policy ", ["file,"]),
        ("vpcctl apply-policy po", ["file,po"]),
        ("vpcctl apply-policy one/w", ["plain,one/web"]),
        ("vpcctl apply-policy dir/w", ["file,dir/w"]),
        ("vpcctl apply sh", ["file,sh"]),
        ("vpcctl verify --environment ", ["file,"]),
        ("vpcctl explain one/w", ["plain,one/web"]),
        ("vpcctl explain one/web ", [*BOTH, "plain,internet", "plain,host"]),
        ("vpcctl explain one/web one/db tcp/54", ["plain,tcp/5432"]),
        ("vpcctl explain one/web one/db i", ["plain,icmp/echo-request"]),
        ("vpcctl delete-subnet --y", ["plain,--yes"]),
        ("vpcctl --q", ["plain,--quiet"]),
        ("vpcctl completion ", ["plain,bash", "plain,zsh", "plain,fish"]),
    ],
)
def test_what_is_offered(
    line: str,
    expected: list[str],
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert offered(line, state, monkeypatch, capsys) == (expected, "")


def test_the_state_directory_of_the_command_line_is_read(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (f"vpcctl --state-dir {state} show-vpc ", f"vpcctl show-vpc --state-dir {state} "):
        assert offered(line, tmp_path, monkeypatch, capsys) == (VPCS, "")


@pytest.mark.parametrize("damage", ["damaged", "a directory"])
def test_what_cannot_be_read_offers_nothing_and_says_nothing(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "damaged":
        (tmp_path / "state.json").write_text("{")
    else:
        (tmp_path / "state.json").mkdir()
    for line in ("vpcctl show-vpc ", "vpcctl exec ", "vpcctl delete-subnet one/"):
        assert offered(line, tmp_path, monkeypatch, capsys) == ([], "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_accepted_by_its_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["completion", shell])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"_VPCCTL_COMPLETE={shell}_complete" in text
    assert "vpcctl" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


INTERACTIVE = """
eval "$(vpcctl completion bash)"
compopt() { echo "option: $1 $2"; }
try() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    function=$(complete -p vpcctl | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    "$function" vpcctl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    echo "${COMPREPLY[*]}"
}
try vpcctl exec one/
try vpcctl show-vpc ''
try vpcctl apply-policy ''
"""


def test_a_real_bash_completes(state: Path, tmp_path: Path) -> None:
    program = tmp_path / "vpcctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vpcctl "$@"\n')
    program.chmod(0o755)
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "VPCCTL_STATE_DIR": str(state)}
    done = subprocess.run(
        ["bash", "--norc", "-c", INTERACTIVE], env=os.environ | places, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["one/web one/db", "one two", "option: -o default", ""]
    assert done.stderr == ""
