"""A group that may read the record: what it can and cannot, and what stays closed."""

from __future__ import annotations

import grp
import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests import nobody
from tests.rehearsal import Rehearsal
from tests.story import WEB_POLICY, policy, told
from vpcctl.cli import commands
from vpcctl.doctor import state_directory
from vpcctl.engine import reconciler
from vpcctl.errors import VpcctlError

CLOSED = {"lock", "agent.lock"}


@pytest.fixture
def session() -> Iterator[Rehearsal]:
    """A session on a machine with two VPCs; unlike pytest's, its folder may be entered by anybody."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        made = Rehearsal(Path(place) / "state")
        reconciler.change(made.store, made.fake, lambda state: told("peer them"))
        made.store.open_lock("agent.lock")
        yield made


@pytest.fixture
def group() -> grp.struct_group:
    """A group that this process may give files to."""
    if os.geteuid() == 0:
        return next(one for one in grp.getgrall() if one.gr_gid not in (0, 65534))
    return grp.getgrgid(os.getegid())


def call(session: Rehearsal, line: str, status: int = 0) -> str:
    words = line.split()
    command = commands.get_command(click.Context(commands), words[0])
    assert command is not None
    done = CliRunner().invoke(command, words[1:], obj=session)
    found = done.exception.exit_status if isinstance(done.exception, VpcctlError) else done.exit_code
    assert found == status, (done.output, done.exception)
    return done.output + str(done.exception or "")


def modes(session: Rehearsal) -> dict[str, tuple[int, int]]:
    """The mode and the group of the state directory and everything in it."""
    found = {}
    for path in (session.state_dir, *session.state_dir.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(session.state_dir))] = (stat.S_IMODE(status.st_mode), status.st_gid)
    return found


def check_shared(session: Rehearsal, group: grp.struct_group) -> None:
    for name, (mode, owner) in modes(session).items():
        expected = 0o2750 if name in (".", "parts", "history") else 0o600 if name in CLOSED else 0o640
        assert mode == expected, name
        assert owner == group.gr_gid or name in CLOSED, name


def change(session: Rehearsal) -> None:
    """A change that writes new parts."""
    other = WEB_POLICY | {"description": "new"}
    reconciler.change(session.store, session.fake, lambda state: policy(other)(state.world))


def test_a_group_reads_what_is_there_and_what_comes(session: Rehearsal, group: grp.struct_group) -> None:
    before = modes(session)
    assert {mode for mode, _ in before.values()} == {0o700, 0o600}
    said = call(session, f"grant-read --group {group.gr_name}")
    assert said == f"{session.state_dir}: group {group.gr_name} may read it\n"
    check_shared(session, group)
    change(session)
    assert modes(session).keys() - before.keys(), "there are new parts"
    check_shared(session, group)
    # Whatever the mask of the process is that writes.
    mask = os.umask(0o077)
    try:
        reconciler.change(session.store, session.fake, lambda state: told("clear the policy"))
    finally:
        os.umask(mask)
    check_shared(session, group)
    assert call(session, "grant-read --revoke").endswith("its owner alone may read it\n")
    assert {mode for mode, _ in modes(session).values()} == {0o700, 0o600}
    change(session)
    assert {mode for mode, _ in modes(session).values()} == {0o700, 0o600}


def test_a_directory_without_parts_gets_them_shared(group: grp.struct_group, tmp_path: Path) -> None:
    session = Rehearsal(tmp_path / "new")
    call(session, f"grant-read --group {group.gr_name}")
    reconciler.change(session.store, session.fake, lambda state: told("peer them"))
    check_shared(session, group)


def test_granting_is_tried_and_printed(session: Rehearsal, group: grp.struct_group) -> None:
    before = modes(session)
    line = f"grant-read --group {group.gr_name} --json"
    tried = json.loads(call(session, f"{line} --dry-run"))
    assert modes(session) == before
    done = json.loads(call(session, line))
    assert tried["changes"] == done["changes"] == [
        {"sign": "~", "what": str(session.state_dir), "detail": f"group {group.gr_name} may read it"}
    ]  # fmt: skip
    assert json.loads(call(session, line))["changed"] is False
    assert json.loads(call(session, "grant-read --revoke --json"))["changed"] is True
    assert json.loads(call(session, "grant-read --revoke --json"))["changed"] is False


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("grant-read", 2, "pass either --group NAME or --revoke"),
        ("grant-read --group x --revoke", 2, "pass either --group NAME or --revoke"),
        ("grant-read --group no-such-group", 4, "group 'no-such-group' not found"),
    ],
)
def test_a_wrong_grant_changes_nothing(session: Rehearsal, line: str, status: int, said: str) -> None:
    before = modes(session)
    assert said in call(session, line, status)
    assert modes(session) == before


@pytest.mark.parametrize("mode", [0o750, 0o755, 0o2770, 0o2755, 0o2751])
def test_a_mode_that_nobody_granted_is_closed_by_the_next_change(session: Rehearsal, mode: int) -> None:
    session.state_dir.chmod(mode)
    change(session)
    assert stat.S_IMODE(session.state_dir.stat().st_mode) == 0o700


def test_what_was_granted_is_no_finding(session: Rehearsal, group: grp.struct_group) -> None:
    call(session, f"grant-read --group {group.gr_name}")
    assert state_directory.read(session.store)[1] == []
    (session.state_dir / "state.json").chmod(0o644)
    [finding] = state_directory.read(session.store)[1]
    assert "has mode 0644" in finding.what


def test_a_member_reads_and_can_do_nothing_else(session: Rehearsal, group: grp.struct_group) -> None:
    """In processes of another user, in the group and not."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with nobody.packages() as source:
        outsider = nobody.words(source)
        member = [word.replace("--regid=65534", f"--regid={group.gr_gid}") for word in outsider]
        if subprocess.run([*outsider, "-c", "import vpcctl"], capture_output=True, cwd="/", check=False).returncode:
            pytest.skip(f"no other user exists, or nobody else may use {nobody.PYTHON}")

        def run(words: list[str], line: str) -> subprocess.CompletedProcess[str]:
            program = [*words, "-m", "vpcctl", "--state-dir", str(session.state_dir), *line.split()]
            return subprocess.run(program, cwd="/", capture_output=True, text=True, check=False)

        for words in (member, outsider):
            refused = run(words, "list-vpcs")
            assert refused.returncode == 77
            assert refused.stderr.startswith(f"vpcctl: you may not read {session.state_dir}; use sudo, or")
        assert run(outsider, "--help").returncode == 0
        found = run(outsider, "doctor --json")
        assert any("you may not read" in one["what"] for one in json.loads(found.stdout)), found.stderr
        call(session, f"grant-read --group {group.gr_name}")
        change(session)
        for line in ("list-vpcs", "show-vpc one", "matrix one", "explain one/db one/web tcp/80", "export",
                     "delete-vpc one --cascade --dry-run"):  # fmt: skip
            done = run(member, line)
            assert (done.returncode, bool(done.stdout)) == (0, True), (line, done.stderr)
            assert run(outsider, line).returncode == 77
        before = modes(session)
        for line in ("delete-instance one/db", "repair", "grant-read --revoke", "apply /dev/null"):
            assert run(member, line).returncode in (2, 6, 77), line
        hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)"
        for name in CLOSED:
            held = subprocess.run(
                [*member, "-c", hold, str(session.state_dir / name)], capture_output=True, text=True, check=False
            )
            assert "PermissionError" in held.stderr
        assert modes(session) == before


def test_a_right_that_cannot_be_given_is_told(session: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    assert "use sudo" in call(session, f"grant-read --group {grp.getgrgid(os.getegid()).gr_name}", 77)
    assert {mode for mode, _ in modes(session).values()} == {0o700, 0o600}
