"""How commands are called: objects by position, a VPC that is left out, options behind the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.rehearsal import Rehearsal
from tests.story import nothing, told
from vpcctl.cli import COMMANDS, commands, main
from vpcctl.engine import reconciler
from vpcctl.errors import VpcctlError
from vpcctl.kernel import inside
from vpcctl.kernel.processes import Elsewhere


@pytest.fixture
def two(tmp_path: Path) -> Rehearsal:
    """A machine with two peered VPCs."""
    made = Rehearsal(tmp_path / "state")
    reconciler.change(made.store, made.fake, lambda state: told("peer them"))
    return made


@pytest.fixture
def one(tmp_path: Path) -> Rehearsal:
    """A machine with one VPC."""
    made = Rehearsal(tmp_path / "one")
    reconciler.change(made.store, made.fake, lambda state: told("apply a policy"))
    return made


def call(session: Rehearsal, line: str) -> tuple[int, str]:
    """The exit status of a command, and all that it printed."""
    words = line.split()
    command = commands.get_command(click.Context(commands), words[0])
    assert command is not None
    session.__dict__.pop("controller", None)
    done = CliRunner().invoke(command, words[1:], obj=session, prog_name=f"vpcctl {words[0]}")
    if isinstance(done.exception, VpcctlError):
        return done.exception.exit_status, f"{done.output}{done.exception}"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


# Each line, and the same with options.
ALIKE = {
    "show-vpc one": "show-vpc --name one",
    "show-vpc --vpc one": "show-vpc --name one",
    "list-subnets one": "list-subnets --vpc one",
    "list-subnets --name one": "list-subnets --vpc one",
    "list-instances one": "list-instances --vpc one",
    "list-instances one/web": "list-instances --vpc one --subnet web",
    "show-policy one/web": "show-policy --vpc one --subnet web",
    "show-policy one": "show-policy --vpc one",
    "matrix one": "matrix --vpc one",
    "matrix --name one": "matrix --vpc one",
    "status one": "status --vpc one",
    "export one": "export --vpc one",
    "compile one/web": "compile --vpc one --subnet web",
    "show-vpc one --name one": "show-vpc --name one",
}


@pytest.mark.parametrize("line", ALIKE)
def test_an_object_by_position_is_the_same_as_by_options(two: Rehearsal, line: str) -> None:
    expected = call(two, ALIKE[line])
    assert expected[0] == 0
    assert len(expected[1].splitlines()) >= 1
    assert call(two, line) == expected


# A change by position, and what is then in the world.
CHANGES: dict[str, str] = {
    "create-vpc three --cidr 10.3.0.0/24": "list-subnets three",
    "create-vpc --vpc three --cidr 10.3.0.0/24": "show-vpc three",
    "create-subnet one/new --cidr 10.0.0.32/28 --type private": "list-instances one/new",
    "create-instance one/web-2 --subnet web": "exec-dry one/web-2",
    "delete-instance one/db": "absent db",
    "delete-subnet one/db": "absent db",
    "delete-nat-gateway one/db": "list-subnets one",
    "set-limits one --max-flows 500": "show-vpc one",
    "set-limits --name one --max-flows 500": "show-vpc one",
    "publish-port one/db --port 81": "show-vpc one",
    "unpublish-port one --port 8080": "show-vpc one",
    "clear-policy one/web": "show-policy one/web",
    "delete-peering one two": "list-peerings",
    "delete-vpc two --cascade": "list-vpcs",
    "create-nat-protocol one --protocol gre": "show-vpc one",
    "repair one": "status one",
}


@pytest.mark.parametrize("line", CHANGES)
def test_a_change_by_position_changes_that_object(two: Rehearsal, line: str) -> None:
    before = two.load().world
    status, said = call(two, line)
    assert status == 0, said
    after = two.load().world
    assert line.startswith("repair") or after != before
    one = {vpc.name: vpc for vpc in after.vpcs}.get("one")
    if CHANGES[line] == "absent db":
        assert one is not None
        assert "db" not in one.instances_by_name
    if "three" in line:
        assert "three" in {vpc.name for vpc in after.vpcs}


def test_a_vpc_is_left_out_where_only_one_exists(one: Rehearsal) -> None:
    assert call(one, "show-vpc") == call(one, "show-vpc one")
    assert call(one, "show-policy") == call(one, "show-policy one")
    assert call(one, "matrix") == call(one, "matrix one")
    assert call(one, "create-instance more --subnet web")[0] == 0
    assert "more" in one.load().world.vpc("one").instances_by_name
    assert call(one, "delete-instance --name more")[0] == 0
    assert call(one, "unpublish-port --port 8080")[0] == 0
    assert "more" not in one.load().world.vpc("one").instances_by_name


def test_the_only_vpc_is_deleted_by_its_name_alone(one: Rehearsal) -> None:
    status, said = call(one, "delete-vpc --cascade")
    assert status == 2
    assert "Error: Missing option '--name'. Write `vpcctl delete-vpc VPC`" in said
    assert one.load().world.vpcs


def test_without_a_vpc_the_message_says_how_to_make_one(one: Rehearsal) -> None:
    reconciler.change(one.store, one.fake, lambda state: nothing(state.world))
    status, said = call(one, "delete-subnet db")
    assert status == 2
    assert "Missing option '--vpc'. Write `vpcctl delete-subnet VPC/NAME`; no VPC exists, `vpcctl create-vpc`" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("show-vpc", "Missing option '--name'. Write `vpcctl show-vpc VPC` (known VPCs: one, two)"),
        ("show-vpc one --name two", "one and --name two name different VPCs; pass one of them"),
        ("show-vpc --vpc one --name two", "--name two and --vpc one name different VPCs; pass one of them"),
        ("list-subnets --vpc one --name two", "--vpc one and --name two name different VPCs; pass one of them"),
        ("delete-subnet one/web --vpc two", "one/web and --vpc two name different VPCs; pass one of them"),
        ("delete-subnet one/web --name db", "one/web and --name db name different objects; pass one of them"),
        ("delete-subnet web --name db", "web and --name db name different objects; pass one of them"),
        ("delete-subnet web", "Missing option '--vpc'. Write `vpcctl delete-subnet VPC/NAME` (known VPCs: one, two)"),
        ("delete-subnet --vpc one", "Missing option '--name'. Write `vpcctl delete-subnet VPC/NAME`"),
        ("show-vpc one/web", "'one/web' is not VPC; write `vpcctl show-vpc shop`"),
        ("delete-subnet one/web/x", "'one/web/x' is not VPC/NAME; write `vpcctl delete-subnet shop/NAME`"),
        ("delete-subnet /web", "'/web' is not VPC/NAME"),
        ("show-vpc one two", "Got unexpected extra argument (two)"),
        ("create-peering one", "two VPCs are expected, as in `vpcctl create-peering shop billing`"),
        ("create-peering --vpc1 one", "Missing option '--vpc2'. Write `vpcctl create-peering VPC VPC`"),
        ("create-peering one two --vpc1 three", "one two and --vpc1 three name different VPCs"),
        ("exec one/web", "Missing argument 'COMMAND'"),
        ("exec web", "name either --subnet or --instance, or write `vpcctl exec VPC/NAME -- COMMAND`"),
        ("exec one/web --vpc two -- true", "one/web and --vpc two name different VPCs"),
        ("delete-subnet one/web --state-dir /elsewhere", "and '/elsewhere'; pass one of them"),
    ],
)  # fmt: skip
def test_contradictions_are_told_with_what_to_type(two: Rehearsal, line: str, said: str) -> None:
    before = two.load()
    status, output = call(two, line)
    assert (status, said in output) == (2, True), output
    assert two.load() == before


class Executed(Exception):
    """The program that would have been run."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rehearsal, str], tuple[str, list[str], str | None]]:
    """Where `exec` would run what, and as whom."""

    def execute(namespace: str, command: list[str], user: str | None, *rest: object) -> None:
        raise Executed(namespace, command, user)

    def running(session: Rehearsal, line: str) -> tuple[str, list[str], str | None]:
        with pytest.raises(Executed) as caught:
            call(session, line)
        return caught.value.args  # type: ignore[return-value]

    monkeypatch.setattr(inside, "execute", execute)
    monkeypatch.setattr(inside, "elsewhere", lambda *_: Elsewhere((), True))
    return running


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("exec one/web -- ip a", ("one-web", ["ip", "a"], None)),
        ("exec one/web ip a", ("one-web", ["ip", "a"], None)),
        ("exec one/web --user nobody -- ls -v", ("one-web", ["ls", "-v"], "nobody")),
        ("exec --user nobody one/web ls -v --json", ("one-web", ["ls", "-v", "--json"], "nobody")),
        ("exec --vpc one web -- ip a", ("one-web", ["ip", "a"], None)),
        ("exec --vpc one --subnet web -- one/db x", ("one-web", ["one/db", "x"], None)),
        ("exec --vpc one --instance db ip -v", ("one-db", ["ip", "-v"], None)),
        ("exec -v one/db -- ip", ("one-db", ["ip"], None)),
    ],
)
def test_a_program_runs_where_the_position_says(
    two: Rehearsal,
    executed: Callable[[Rehearsal, str], tuple[str, list[str], str | None]],
    line: str,
    expected: tuple[str, list[str], str | None],
) -> None:
    assert executed(two, line) == expected


def test_a_subnet_by_position_is_its_first_instance(
    two: Rehearsal, executed: Callable[[Rehearsal, str], tuple[str, list[str], str | None]]
) -> None:
    call(two, "create-subnet one/new --cidr 10.0.0.32/28 --type private --no-instance")
    call(two, "create-instance one/first --subnet new")
    assert executed(two, "exec one/new -- true")[0] == "one-first"
    status, said = call(two, "exec one/none -- true")
    assert (status, "instance 'none' not found in VPC one; known instances:" in said) == (4, True), said


def test_a_file_of_that_name_comes_before_an_object(
    two: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = json.dumps({"subnet": "db", "ingress": []})
    (tmp_path / "db.json").write_text(document)
    assert "one/db: applied" in call(two, "apply-policy one/db db.json")[1]
    (tmp_path / "one").mkdir()
    (tmp_path / "one/web").write_text(json.dumps({"subnet": "web", "vpc": "one", "egress": []}))
    assert "one/web: applied (0 rules)" in call(two, "apply-policy one/web")[1]
    assert call(two, "apply-policy one/db")[0] == 2


# -- options of the program ----------------------------------------------------------------------------------------


def run_main(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


@pytest.mark.parametrize("before", [True, False])
def test_the_state_directory_is_named_before_or_after(
    two: Rehearsal, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    option = ["--state-dir", str(two.state_dir)]
    words = [*option, "list-vpcs"] if before else ["list-vpcs", *option]
    assert run_main(capsys, *words)[1].splitlines()[1].startswith("one ")


@pytest.mark.parametrize("words", [["--json", "list-vpcs"], ["list-vpcs", "--json"], ["--json", "list-vpcs", "--json"]])
def test_json_is_asked_for_before_or_after(
    two: Rehearsal, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    _, shown, _ = run_main(capsys, "--state-dir", str(two.state_dir), *words)
    assert [vpc["name"] for vpc in json.loads(shown)] == ["one", "two"]


def test_json_before_a_command_without_it_is_an_error(two: Rehearsal, capsys: pytest.CaptureFixture[str]) -> None:
    status, shown, said = run_main(capsys, "--json", "--state-dir", str(two.state_dir), "compile", "one")
    assert (status, shown) == (2, "")
    assert "compile has no --json" in said


@pytest.mark.parametrize(("line", "steps", "words"), [("-v", True, True), ("-q", False, False), ("", False, True)])
def test_steps_and_silence_are_asked_for_behind_the_command(
    two: Rehearsal, line: str, steps: bool, words: bool
) -> None:
    _, said = call(two, f"delete-instance one/db {line}")
    assert ("  remove namespace one-db" in said, "deleted instance db of VPC one" in said) == (steps, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_options_of_the_program(name: str) -> None:
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    context = click.Context(command, info_name=name)
    taken = {option for parameter in command.get_params(context) for option in parameter.opts}
    assert {"-v", "--verbose", "-q", "--quiet", "--state-dir"} <= taken


# -- views ---------------------------------------------------------------------------------------------------------


def test_lists_without_a_vpc_name_everything_with_its_vpc(two: Rehearsal) -> None:
    listed = json.loads(call(two, "list-instances --json")[1])
    assert [(one["vpc"], one["name"]) for one in listed] == [("one", "web"), ("one", "db"), ("two", "api")]
    subnets = json.loads(call(two, "list-subnets --json")[1])
    assert [(one["vpc"], one["name"]) for one in subnets] == [("one", "web"), ("one", "db"), ("two", "api")]
    assert [one["name"] for one in json.loads(call(two, "list-instances --subnet api --json")[1])] == ["api"]
    status, said = call(two, "list-instances --subnet none")
    assert (status, "subnet 'none' not found in any VPC" in said) == (4, True), said
    for line in ("list-instances", "list-subnets"):
        rows = [row.split() for row in call(two, line)[1].splitlines()]
        assert rows[0][0] == "VPC"
        assert [row[:2] for row in rows[1:]] == [["one", "web"], ["one", "db"], ["two", "api"]]
        assert call(two, f"{line} two")[1].split()[0] != "VPC"


def test_one_part_is_shown_as_in_the_list(two: Rehearsal) -> None:
    [subnet] = [one for one in json.loads(call(two, "list-subnets --json")[1]) if one["name"] == "web"]
    assert json.loads(call(two, "show-subnet one/web --json")[1]) == subnet
    [instance] = [one for one in json.loads(call(two, "list-instances --json")[1]) if one["name"] == "web"]
    shown = json.loads(call(two, "show-instance one/web --json")[1])
    assert shown.pop("publish") == [{"protocol": "tcp", "port": 8080, "instance": "web", "target_port": 80}]
    assert shown == instance
    assert json.loads(call(two, "show-instance one/db --json")[1])["publish"] == []
    assert "published  tcp/8080 to port 80" in call(two, "show-instance one/web")[1]
    assert call(two, "show-instance one/none")[0] == call(two, "show-subnet one/none")[0] == 4


def test_published_ports_are_listed(two: Rehearsal) -> None:
    call(two, "publish-port two/api --port 9000-9010 --protocol udp --address 127.0.0.1")
    listed = json.loads(call(two, "list-published-ports --json")[1])
    assert [(one["vpc"], one["port"], one.get("address")) for one in listed] == [
        ("one", 8080, None), ("two", "9000-9010", "127.0.0.1"),
    ]  # fmt: skip
    assert [row.split() for row in call(two, "list-published-ports")[1].splitlines()[1:]] == [
        ["tcp/8080", "one/web", "tcp/80"],
        ["udp/9000-9010", "at", "127.0.0.1", "two/api", "udp/9000-9010"],
    ]
    call(two, "unpublish-port one --port 8080")
    assert call(two, "list-published-ports one")[1] == "VPC one publishes no port\n"
