"""What every command that changes something does: dry runs, JSON, questions, and what it says goes."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tests.rehearsal import Rehearsal
from tests.story import told
from vpcctl.cli import COMMANDS, commands
from vpcctl.cli.session import Command
from vpcctl.documents.diff import KINDS, lost
from vpcctl.engine import reconciler
from vpcctl.errors import PrivilegeError, VpcctlError
from vpcctl.model import operations
from vpcctl.model.network import Invariant, World

ROOT = Path(__file__).parents[2]
READING = {
    *(name for name in COMMANDS if name.startswith(("list-", "show-"))),
    *("compile", "explain", "matrix", "verify", "log", "plan", "export", "status", "doctor", "completion", "graph"),
    *("flows", "history", "confirm"),  # what is confirmed has been changed before
}
# They start programs, or are programs; what they do is no change of ours.
RUNNING = {"exec", "lab", "agent"}
# Each command that changes VPCs, and what it changes.
CHANGES: dict[str, list[str]] = {
    "create-vpc three --cidr 10.3.0.0/16": ["+ VPC three"],
    "delete-vpc two --cascade": ["- VPC two", "- subnet two/api", "- instance two/api", "- peering one and two"],
    "set-limits one --max-flows 500": ["~ VPC one"],
    "create-nat-protocol one --protocol gre": ["~ VPC one"],
    "create-subnet one/new --cidr 10.0.0.32/28 --type public": ["+ subnet one/new", "+ instance one/new"],
    "delete-subnet one/db": ["- subnet one/db", "- instance one/db"],
    "create-instance one/more --subnet web": ["+ instance one/more"],
    "delete-instance one/db": ["- instance one/db"],
    "delete-nat-gateway one/db": ["- NAT gateway of one/db"],
    "publish-port two/api --port 81 --force": ["+ published tcp/81 for two/api port 81"],
    "unpublish-port one --port 8080": ["- published tcp/8080 for one/web port 80"],
    "delete-peering one two": ["- peering one and two"],
    "apply-policy one/db new.json": ["+ policy of one/db"],
    "clear-policy one/web": ["- policy of one/web"],
    "apply one.json --prune --yes": [
        *("- VPC two", "- subnet two/api", "- instance two/api", "- NAT gateway of one/db"),
        *("- published tcp/8080 for one/web port 80", "- policy of one/web", "- peering one and two"),
    ],
    "set-invariants kept.json": ["+ invariant"],
    "destroy --all --yes": ["- VPC one", "- VPC two"],
}
PREPARED = {
    "create-nat-gateway one/db": ("delete-nat-gateway one/db", ["+ NAT gateway of one/db"]),
    "delete-nat-protocol one --protocol gre": ("create-nat-protocol one --protocol gre", ["~ VPC one"]),
    "clear-invariants": ("set-invariants kept.json", ["- invariant"]),
    "create-peering one two": ("delete-peering one two", ["+ peering one and two"]),
    "undo": ("delete-peering one two", ["+ peering one and two"]),
}
LINES = {**CHANGES, **{line: expected for line, (_, expected) in PREPARED.items()}}
DOCUMENT = {
    "vpcs": [
        {"name": "one", "cidr": "10.0.0.0/26", "mtu": 1500, "subnets": [
            {"name": "web", "cidr": "10.0.0.0/28", "type": "public"},
            {"name": "db", "cidr": "10.0.0.16/28", "type": "private"},
        ]}
    ]
}  # fmt: skip
FIELDS = {
    *("changed", "dry_run", "changes", "removed"),
    *("newly_allowed", "newly_denied", "not_listed", "warnings"),
}


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    """A session on a machine with two peered VPCs, in a directory with documents."""
    (tmp_path / "new.json").write_text(json.dumps({"ingress": [{"action": "allow", "source": "subnet:web"}]}))
    kept = [{"from": "internet", "to": "one/db", "service": "any", "expect": "deny"}]
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    (tmp_path / "one.json").write_text(json.dumps(DOCUMENT))
    monkeypatch.chdir(tmp_path)
    made = Rehearsal(tmp_path / "state")
    reconciler.change(made.store, made.fake, lambda state: told("peer them"))
    return made


Call = Callable[..., Result]


@pytest.fixture
def call(session: Rehearsal) -> Call:
    """Run a command line; the exit status is to be `status`."""

    def calling(line: str, status: int = 0, said: str | None = None) -> Result:
        name, *words = line.split()
        command = commands.get_command(click.Context(commands), name)
        assert command is not None
        done = CliRunner().invoke(command, words, obj=session, input=said)
        found = done.exception.exit_status if isinstance(done.exception, VpcctlError) else done.exit_code
        assert found == status, (done.output, done.exception)
        return done

    return calling


def everything(session: Rehearsal) -> tuple[dict[str, bytes], dict[Any, Any]]:
    """Every file of the state directory, and every object of the kernel."""
    files = {str(path): path.read_bytes() for path in sorted(session.state_dir.rglob("*")) if path.is_file()}
    return files, dict(session.fake.objects)


def named(document: dict[str, Any]) -> list[str]:
    return [f"{change['sign']} {change['what']}" for change in document["changes"]]


def test_every_command_that_changes_something_can_be_tried_and_prints_json() -> None:
    found = {}
    for name in COMMANDS:
        command = commands.get_command(click.Context(commands), name)
        assert isinstance(command, Command)
        own = {word for parameter in (*command.params, *command.shared) for word in parameter.opts}
        found[name] = {"--json", "--dry-run"} <= own
    assert {name for name, both in found.items() if both} == set(COMMANDS) - READING - RUNNING
    removing = {name for name in COMMANDS if name.startswith(("delete-", "unpublish-"))}
    removing |= {"destroy", "apply", "clear-invariants", "undo"}
    for name in COMMANDS:
        command = commands.get_command(click.Context(commands), name)
        assert isinstance(command, Command)
        assert ("--yes" in {word for parameter in command.shared for word in parameter.opts}) == (name in removing)


def test_every_such_command_is_tried_here() -> None:
    others = {"repair", "install-service", "uninstall-service", "grant-read"}
    assert {line.split()[0] for line in LINES} | others >= set(COMMANDS) - READING - RUNNING


@pytest.mark.parametrize("line", LINES)
def test_a_dry_run_says_what_the_change_will_do_and_touches_nothing(session: Rehearsal, call: Call, line: str) -> None:
    if line in PREPARED:
        call(PREPARED[line][0])
    before = everything(session)
    tried = json.loads(call(f"{line} --dry-run --json").stdout)
    shown = call(f"{line} --dry-run")
    assert everything(session) == before
    assert "nothing was changed" in shown.stderr
    done = json.loads(call(f"{line} --json").stdout)
    assert everything(session) != before
    assert done.keys() >= FIELDS
    assert (tried.pop("dry_run"), done.pop("dry_run")) == (True, False)
    for document in (tried, done):
        document.pop("without_effect", None)
    assert tried == done
    assert done["changed"]
    assert [what for what in LINES[line] if what not in named(done)] == []
    # For people the same objects, as far as they are listed.
    if line.split()[0] not in ("apply-policy", "clear-policy"):
        assert all(what in shown.stdout for what in LINES[line])


@pytest.mark.parametrize("line", [line for line in LINES if "vpc three" not in line])
def test_a_dry_run_needs_no_privilege(
    session: Rehearsal, call: Call, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if line in PREPARED:
        call(PREPARED[line][0])

    def refuse() -> None:
        raise PrivilegeError("not you")

    monkeypatch.setattr(session, "_make_kernel", refuse)
    for controller in ("controller", "rehearsal"):
        session.__dict__.pop(controller, None)
    assert json.loads(call(f"{line} --dry-run --json").stdout)["changed"]
    call(line, status=77)


def test_a_dry_run_is_refused_where_the_change_would_be(session: Rehearsal, call: Call) -> None:
    before = everything(session)
    refused = {
        "delete-subnet one/none": "subnet 'none' not found in VPC one; known subnets: db, web",
        "delete-vpc one": "VPC one still has",
        "create-instance one/web --subnet web": "already",
    }
    for line, words in refused.items():
        for option in ("", " --dry-run"):
            assert words in str(call(line + option, status=4).exception), line
    # A conflict with somebody else's object is found, too.
    session.fake.foreign.add(("Namespace", "one-more"))
    for option in ("", " --dry-run"):
        call("create-instance one/more --subnet web" + option, status=4)
    assert everything(session) == before


def test_a_dry_run_of_what_is_so_already_says_so(call: Call) -> None:
    line = "set-limits one --max-flows 16384 --dry-run"
    assert call(line).stdout == "nothing to change\n"
    document = json.loads(call(f"{line} --json").stdout)
    assert (document["changed"], document["changes"]) == (False, [])


def test_what_is_created_is_part_of_the_json(call: Call) -> None:
    created = json.loads(call("create-instance one/more --subnet web --json").stdout)["created"]
    shown = json.loads(call("show-instance one/more --json").stdout)
    assert created == {field: shown[field] for field in created}
    assert {"name", "ip", "mac", "namespace", "subnet", "vpc"} == set(created)
    created = json.loads(call("create-subnet two/new --cidr 10.0.0.80/28 --type private --json").stdout)["created"]
    assert created == json.loads(call("show-subnet two/new --json").stdout)
    created = json.loads(call("create-vpc three --cidr 10.3.0.0/16 --json").stdout)["created"]
    assert created == json.loads(call("show-vpc three --json").stdout)


def test_warnings_are_part_of_the_json(session: Rehearsal, call: Call) -> None:
    call("delete-nat-gateway one/db")
    (Path.cwd() / "shut.json").write_text('{"egress": [], "default": {"egress": "deny"}}')
    call("apply-policy one/db shut.json")
    done = call("create-nat-gateway one/db --json")
    [warning] = json.loads(done.stdout)["warnings"]
    assert warning.startswith("the egress policy of subnet db denies everything to the internet (shut.json#")
    assert done.stderr == ""


SHUT = {"ingress": [], "egress": [{"action": "deny", "destination": "internet"}]}


def test_ways_that_a_policy_closes_are_told_with_the_line(call: Call) -> None:
    """By every command that opens one."""
    (Path.cwd() / "shut.json").write_text(json.dumps(SHUT))
    call("apply-policy two/api shut.json")
    closed = "(shut.json#/ingress (default deny))"
    warning = f"the ingress policy of subnet api denies everything from outside to tcp/81 of api {closed}"
    assert f"warning: {warning}\n" in call("publish-port two/api --port 81").stderr
    assert json.loads(call("publish-port two/api --port 82 --dry-run --json").stdout)["warnings"] == [
        warning.replace("81", "82")
    ]
    subnet = {"name": "db", "cidr": "10.9.1.0/24", "type": "private", "nat_gateway": True, "policy": "shut.json"}
    vpc = {"name": "new", "cidr": "10.9.0.0/16", "subnets": [subnet]}
    publish = [{"protocol": "tcp", "port": 83, "instance": "db", "target_port": 83}]
    (Path.cwd() / "closed.json").write_text(json.dumps({"vpcs": [vpc | {"publish": publish}]}))
    warnings = [
        "new/db has a NAT gateway, but its egress policy denies everything to the internet (shut.json#/egress/0)",
        f"tcp/83 of the host is published, but the ingress policy denies everything from outside to tcp/83 of new/db"
        f" {closed}",
    ]
    assert json.loads(call("apply closed.json --dry-run --json").stdout)["warnings"] == warnings
    said = call("plan closed.json").stderr
    assert [f"warning: {warning}" for warning in warnings] == said.splitlines()
    said = call("apply closed.json").stderr
    assert [f"warning: {warning}" for warning in warnings] == said.splitlines()[-2:]
    # Another time nothing is new.
    assert "warning" not in call("apply closed.json").stderr


def test_a_repair_is_tried_and_printed(session: Rehearsal, call: Call) -> None:
    session.fake.remove(session.fake.objects["Namespace", "one-web"])
    before = everything(session)
    tried = json.loads(call("repair --dry-run --json").stdout)
    assert "namespace one-web is absent" in call("repair --dry-run").stdout
    assert everything(session) == before
    done = json.loads(call("repair --json").stdout)
    assert {"sign": "~", "what": "namespace one-web", "detail": "was absent"} in tried["changes"]
    assert tried["changes"] == done["changes"]
    assert [document["dry_run"] for document in (tried, done)] == [True, False]
    assert json.loads(call("repair --json").stdout)["changed"] is False
    call("repair --adopt --dry-run", status=2)


# -- what goes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "first", "more"),
    [
        ("delete-vpc two --cascade", "removed 1 VPC, 1 subnet, 1 instance, 1 peering", "  two/api → internet any"),
        ("delete-subnet one/db", "removed 1 subnet, 1 instance, 1 NAT gateway", "  db → internet any"),
        ("delete-instance one/db", "removed 1 instance; all traffic of 10.0.0.18 ends",
         "deleted instance db of VPC one"),
        ("unpublish-port one --port 8080", "removed 1 published port", "  internet → web (10.0.0.2) tcp/80"),
        ("delete-nat-gateway one/db", "removed 1 NAT gateway", "newly denied:"),
        ("delete-peering one two", "removed 1 peering", "  one/web → two/api any"),
        ("destroy --all --yes", "removed 2 VPCs, 3 subnets, 3 instances, 1 NAT gateway, 1 policy, 1 published port, 1"
         " peering", "removed 2 VPCs; the host is as before"),
        ("apply one.json", "removed 1 NAT gateway, 1 policy, 1 published port", "applied"),
    ],
)  # fmt: skip
def test_a_command_says_how_many_objects_went_and_which_traffic(call: Call, line: str, first: str, more: str) -> None:
    done = call(line)
    said = done.stderr.splitlines()
    assert first in said
    assert more in said
    assert done.stdout == ""


def test_each_kind_of_object_is_counted() -> None:
    before = told("peer them")
    before = operations.set_nat_protocol(before, "one", 47, True)
    before = dataclasses.replace(before, invariants=(Invariant("internet", "one/db", "any", "deny"),))
    assert lost(before, World()).keys() == KINDS.keys()
    assert lost(before, before) == {}
    assert lost(World(), before) == {}


def test_many_lines_of_traffic_are_a_summary(session: Rehearsal, call: Call) -> None:
    call("create-vpc big --cidr 10.7.0.0/16")
    for number in range(6):
        call(f"create-subnet big/s{number} --cidr 10.7.{number}.0/24 --type public")
    said = call("delete-vpc big --cascade").stderr.splitlines()
    [more] = [line for line in said if re.fullmatch(r"  … and \d+ more \(-v shows all\)", line)]
    listed = said[said.index("newly denied:") + 1 : said.index(more)]
    assert len(listed) == 20


# -- questions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "n\n"])
def test_pruning_needs_yes_if_it_removes_something(session: Rehearsal, call: Call, given: str | None) -> None:
    before = everything(session)
    said = call("apply one.json --prune", status=1, said=given).stderr
    assert "removes 1 VPC, 1 subnet, 1 instance" in said
    assert "vpcctl: nothing was removed" in said
    assert everything(session) == before
    call("apply one.json --prune", said="y\n")
    # Nothing is left to remove, and nobody is asked.
    assert call("apply one.json --prune").stderr == "nothing to change\n"


def test_the_same_document_from_standard_input_is_read_once(call: Call) -> None:
    said = json.dumps(DOCUMENT)
    assert "vpcctl: nothing was removed; pass --yes" in call("apply - --prune", status=1, said=said).stderr
    assert "applied" in call("apply - --prune --yes", said=said).stderr


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.rehearsal import Rehearsal
from tests.story import told
from vpcctl.cli import commands, main
from vpcctl.engine import machine, reconciler, state
from vpcctl.model.host import NO_HOST
state.COPIES = None
machine.linux_host = lambda: NO_HOST
made = Rehearsal(Path(sys.argv[2]))
def world(state):
    from ipaddress import ip_network
    from vpcctl.model import operations
    found = told("peer them")
    if any(word.startswith("big") for word in sys.argv):
        found = operations.create_vpc(found, "big", ip_network("10.7.0.0/16"))
        found = operations.create_subnet(found, "big", "all", ip_network("10.7.1.0/24"), True, False, 0)
        for number in range(25):
            found = operations.create_instance(found, "big", "all", f"i{number}", None, number)
    return found
reconciler.change(made.store, made.fake, world)
commands.context_settings["obj"] = lambda: made.fake
main(["--state-dir", sys.argv[2], *sys.argv[3:]])
"""


def on_terminal(directory: Path, answer: str, *words: str) -> tuple[int, str]:
    """Run a command on a terminal of its own, and answer its question: the exit status, and what was to be seen."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ["PAGER"] = "cat"
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, str(ROOT), str(directory), *words])
    shown, answered, deadline = "", False, time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.5)[0]:
                continue
            try:
                shown += os.read(terminal, 4096).decode()
            except OSError:
                break
            if "[y/N]" in shown and not answered:
                os.write(terminal, answer.encode())
                answered = True
        else:
            os.kill(process, signal.SIGKILL)
    finally:
        _, status = os.waitpid(process, 0)
        os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("words", "question"),
    [
        (("delete-subnet", "one/db"), "Delete subnet db of VPC one? [y/N]"),
        (("delete-vpc", "two", "--cascade"), "Delete VPC two? [y/N]"),
        (("unpublish-port", "one", "--port", "8080"), "Unpublish tcp/8080 of VPC one? [y/N]"),
        (("destroy", "--all"), "Remove all VPCs (one, two)? [y/N]"),
        (("apply", "one.json"), "Apply the document? [y/N]"),
    ],
)
def test_on_a_terminal_it_says_what_goes_and_asks(session: Rehearsal, words: tuple[str, ...], question: str) -> None:
    directory = session.state_dir.with_name("asked")
    status, shown = on_terminal(directory, "n\r", *words)
    assert question in shown
    assert shown.index("removes 1" if words[0] != "destroy" else "removes 2") < shown.index(question)
    assert "newly denied:" in shown
    assert (status, "vpcctl: nothing was removed" in shown) == (130, True)
    status, shown = on_terminal(directory.with_name("agreed"), "y\r", *words)
    assert status == 0
    assert re.search("deleted|unpublished|as before|applied", shown.rpartition(question)[2])
    status, shown = on_terminal(directory.with_name("sure"), "", *words, "--yes")
    assert (status, "[y/N]" in shown) == (0, False)


@pytest.mark.parametrize("command", ["list-instances", "show-vpc", "show-subnet"])
def test_a_long_list_is_shortened_on_a_terminal_alone(session: Rehearsal, call: Call, command: str) -> None:
    words = [command, "big/all" if command == "show-subnet" else "big"]
    status, shown = on_terminal(session.state_dir.with_name("long"), "", *words)
    listed = [line for line in shown.splitlines() if re.search(r"\bi\d+\b", line)]
    assert (status, shown.splitlines()[-1]) == (0, f"… and {25 - len(listed)} more (-v shows all)"), shown
    assert len(listed) in (19, 20)
    status, shown = on_terminal(session.state_dir.with_name("whole"), "", "-v", *words)
    assert len([line for line in shown.splitlines() if re.search(r"\bi\d+\b", line)]) == 25
    call("create-vpc big --cidr 10.7.0.0/16")
    call("create-subnet big/all --cidr 10.7.1.0/24 --type public --no-instance")
    for number in range(25):
        call(f"create-instance big/i{number} --subnet all")
    assert "more" not in call(" ".join(words)).stdout


def test_many_changed_objects_are_a_summary(session: Rehearsal, call: Call) -> None:
    instances = [{"name": f"i{number}"} for number in range(30)]
    subnet = {"name": "all", "cidr": "10.7.1.0/24", "type": "public", "instances": instances}
    document = {"vpcs": [{"name": "big", "cidr": "10.7.0.0/16", "subnets": [subnet]}]}
    (Path.cwd() / "big.json").write_text(json.dumps(document))
    tried = call("apply big.json --dry-run").stdout.splitlines()
    assert tried[20] == "… and 12 more (-v shows all)"
    said = call("apply big.json").stderr.splitlines()
    assert [line for line in said if line.startswith("+ ")] == tried[:20]
    assert said[20:22] == ["… and 12 more (-v shows all)", "applied"]


def test_on_a_terminal_nobody_is_asked_if_nothing_goes(session: Rehearsal) -> None:
    (Path.cwd() / "three.json").write_text('{"vpcs": [{"name": "three", "cidr": "10.3.0.0/16"}]}')
    for number, words in enumerate((("apply", "three.json"), ("create-instance", "one/more", "--subnet", "web"))):
        status, shown = on_terminal(session.state_dir.with_name(f"at-{number}"), "", *words)
        assert (status, "[y/N]" in shown) == (0, False), shown
