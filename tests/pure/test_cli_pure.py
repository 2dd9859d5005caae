"""The command line without a kernel: what is printed where, and with which exit status."""

from __future__ import annotations

import ast
import dataclasses
import gc
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tests.pure.conftest import KernelForbidden
from tests.rehearsal import Rehearsal
from tests.story import WEB_POLICY, nothing, policy, told
from vpcctl import errors
from vpcctl.cli import COMMANDS, commands, main, vpc_commands
from vpcctl.cli.hints import nearest_command
from vpcctl.cli.output import counted
from vpcctl.cli.sentences import SENTENCES
from vpcctl.cli.session import EXIT_STATUSES
from vpcctl.compiler import compile_vpc
from vpcctl.engine import reconciler
from vpcctl.engine.traffic import reports
from vpcctl.model import network
from vpcctl.model.network import World
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.kinds import Mtu, Ruleset
from vpcctl.resources.plan import Plan

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "vpcs": [
        {
            "name": "one",
            "cidr": "10.0.0.0/26",
            "subnets": [{"name": "web", "cidr": "10.0.0.0/28", "type": "public", "policy": "web.json"}],
        }
    ]
}


@pytest.fixture
def session(tmp_path: Path) -> Rehearsal:
    """A session on a machine with two peered VPCs."""
    made = Rehearsal(tmp_path / "state")
    reconciler.change(made.store, made.fake, lambda state: told("peer them"))
    return made


Run = Callable[..., Result]


@pytest.fixture
def run(session: Rehearsal) -> Run:
    """Run a command on the rehearsed machine; `status` is what it is to exit with."""

    def running(*words: str, status: int = 0, said: str | None = None) -> Result:
        command = commands.get_command(click.Context(commands), words[0])
        result = CliRunner().invoke(command, list(words[1:]), obj=session, input=said)
        if isinstance(result.exception, errors.VpcctlError):
            assert result.exception.exit_status == status, result.exception
        else:
            assert result.exit_code == status, (result.output, result.exception)
        return result

    return running


Main = Callable[..., tuple[str, str]]


@pytest.fixture
def vpcctl(session: Rehearsal, capsys: pytest.CaptureFixture[str]) -> Main:
    """Run the whole program, for commands that need no kernel: (standard output, standard error)."""

    def running(*words: str, status: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["--state-dir", str(session.state_dir), *words])
        output = capsys.readouterr()
        assert caught.value.code == status, output
        return output.out, output.err

    return running


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a policy and an environment, which is the working directory."""
    (tmp_path / "web.json").write_text(json.dumps(WEB_POLICY | {"ingress": WEB_POLICY["ingress"][:2]}))
    (tmp_path / "shop.json").write_text(json.dumps(ENVIRONMENT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- help ----------------------------------------------------------------------------------------------------------


def command(name: str) -> click.Command:
    found = commands.get_command(click.Context(commands), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_name_a_summary_and_an_example(name: str, vpcctl: Main) -> None:
    assert command(name).name == name
    shown, said = vpcctl(name, "--help")
    assert said == ""
    assert shown.startswith(f"Usage: vpcctl {name}")
    assert re.search(rf"Example: vpcctl (\S+ )*{name}\b", shown)
    assert all(len(line) <= 110 for line in shown.splitlines())


def parses(words: list[str]) -> None:
    """Raise what click raises for a command line, without running it."""
    found = command(words[0])
    context = found.make_context(words[0], list(words[1:]), resilient_parsing=False)
    context.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_command_line_that_is_understood(name: str) -> None:
    examples = re.findall(r"^\s*Example: vpcctl (.*)$", command(name).help or "", re.MULTILINE)
    assert examples
    for example in examples:
        parses(shlex.split(example.partition(" > ")[0]))


def test_the_examples_of_the_program_itself_are_understood_too() -> None:
    lines = re.findall(r"^\s*vpcctl (\S.*)$", commands.help or "", re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        parses(shlex.split(line))


def test_an_example_that_is_not_understood_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        parses(["create-subnet", "--vpc", "shop", "--nam", "web"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    for parameter in command(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.show_default, parameter.name


def test_the_help_has_the_first_sentence_of_each_command() -> None:
    """It is listed from a table, because importing all commands takes longer."""
    helps = {name: command(name).help or "" for name in COMMANDS}
    assert {name: " ".join(text.split("\n\n")[0].split()) for name, text in helps.items()} == SENTENCES


def test_the_help_lists_all_commands_and_exit_statuses(vpcctl: Main) -> None:
    shown, _ = vpcctl("--help")
    assert all(re.search(rf"^  {name} ", shown, re.MULTILINE) for name in COMMANDS)
    flat = " ".join(shown.split())
    assert all(f"{status} {meaning}" in flat for status, meaning in EXIT_STATUSES.items())


def test_the_version_is_told(vpcctl: Main) -> None:
    from vpcctl import __version__

    assert vpcctl("--version")[0] == f"vpcctl, version {__version__}\n"


def test_listing_commands_imports_nothing_heavy() -> None:
    code = "import sys; from vpcctl.cli import commands; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "click" in loaded.split()
    assert not {"pyroute2", "nftables", "jsonschema"} & set(loaded.split())


# -- exit statuses -------------------------------------------------------------------------------------------------


def tree(found: type[errors.VpcctlError]) -> list[type[errors.VpcctlError]]:
    return [found, *(inner for below in found.__subclasses__() for inner in tree(below))]


def test_every_error_has_an_exit_status_of_the_table() -> None:
    assert {one.exit_status for one in tree(errors.VpcctlError)} <= set(EXIT_STATUSES)
    assert len(tree(errors.VpcctlError)) > 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["creat-vpc"], "Error: command 'creat-vpc' not found; did you mean 'create-vpc'?"),
        (["zzz"], "Error: command 'zzz' not found; expected: agent, apply, apply-policy,"),
        (["show-vpc"], "Error: Missing option '--name'."),
        (["show-vpc", "--nam", "one"], "Error: No such option '--nam'"),
        (["create-subnet", "--vpc", "one", "--name", "x", "--type", "public", "--cidr", "10.0.0.1/28"],
         '"10.0.0.1/28" has bits set beyond its prefix length; 10.0.0.0/28 is the prefix'),
        (["create-subnet", "--vpc", "one", "--name", "x", "--type", "public", "--cidr", "2001:db8::/64"],
         "2001:db8::/64 is an IPv6 prefix, and IPv4 is expected here"),
        (["create-subnet", "--vpc", "one", "--name", "x", "--type", "open", "--cidr", "10.0.0.0/28"], "'open'"),
        (["create-instance", "--vpc", "one", "--subnet", "web", "--name", "a", "--ip", "x"],
         '"x" is not an address such as 10.0.1.9'),
        (["publish-port", "--vpc", "one", "--instance", "web", "--port", "0"], "0 is not in the range"),
        (["apply-policy"], "name a policy file, or - for standard input"),
        (["destroy"], "pass --all to remove every VPC"),
        (["exec", "--vpc", "one", "--", "true"], "name either --subnet or --instance"),
        (["exec", "--vpc", "one", "--subnet", "web", "--env", "WORD", "--", "true"], "'WORD' is not NAME=VALUE"),
        (["exec", "--vpc", "one", "--subnet", "web", "--env", "=x", "--", "true"], "'=x' is not NAME=VALUE"),
        ([], "Usage: vpcctl [OPTIONS] COMMAND [ARGS]..."),
    ],
)  # fmt: skip
def test_a_command_line_that_is_not_understood_is_status_2(vpcctl: Main, words: list[str], said: str) -> None:
    shown, told_words = vpcctl(*words, status=2)
    assert shown == ""
    assert said in told_words


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["show-vpc", "--name", "x"], 4, "vpcctl: VPC 'x' not found; known VPCs: one, two\n"),
        (["list-subnets", "--vpc", "x"], 4, "vpcctl: VPC 'x' not found; known VPCs: one, two\n"),
        (["list-instances", "--vpc", "one", "--subnet", "x"], 4,
         "vpcctl: subnet 'x' not found in VPC one; known subnets: db, web\n"),
        (["show-policy", "--vpc", "one", "--subnet", "x"], 4,
         "vpcctl: subnet 'x' not found in VPC one; known subnets: db, web\n"),
        (["exec", "--vpc", "one", "--instance", "x", "--", "true"], 4,
         "vpcctl: instance 'x' not found in VPC one; known instances: db, web\n"),
        (["apply-policy", "none.json"], 2, "vpcctl: none.json: cannot be read (No such file or directory)\n"),
        (["compile", "--environment", "none.json"], 2,
         "vpcctl: none.json: cannot be read (No such file or directory)\n"),
    ],
)  # fmt: skip
def test_what_is_expected_to_fail_fails_with_its_status_and_a_sentence(
    vpcctl: Main, files: Path, words: list[str], status: int, said: str
) -> None:
    assert vpcctl(*words, status=status) == ("", said)


def test_a_damaged_state_file_is_status_6(vpcctl: Main, session: Rehearsal) -> None:
    (session.state_dir / "state.json").write_text("damaged")
    shown, said = vpcctl("list-vpcs", status=6)
    assert shown == ""
    assert said.startswith(f"vpcctl: {session.state_dir}/state.json is damaged")


def test_every_line_of_a_long_error_is_marked(vpcctl: Main, files: Path) -> None:
    (files / "bad.json").write_text('{"subnet": "web", "ingress": [{"action": "x"}, {"prot": 1}]}')
    _, said = vpcctl("apply-policy", "bad.json", status=2)
    assert len(said.splitlines()) == 3
    assert all(line.startswith("vpcctl: bad.json#/ingress/") for line in said.splitlines())


def test_the_problems_of_all_files_are_told_at_once(vpcctl: Main, files: Path) -> None:
    for name in ("a.json", "b.json"):
        (files / name).write_text('{"subnet": "web", "x": 1}')
    _, said = vpcctl("apply-policy", "a.json", "b.json", "c.json", status=2)
    assert [line.split()[1] for line in said.splitlines()] == ["a.json#/x:", "b.json#:", "b.json#/x:", "c.json:"]
    assert "subnet web of VPC one has a policy in this command already, at a.json#; keep one" in said


def test_a_wrong_document_is_told_before_a_damaged_record(vpcctl: Main, files: Path, session: Rehearsal) -> None:
    (files / "bad.json").write_text('{"subnet": "nowhere", "x": 1}')
    (session.state_dir / "state.json").write_text("{")
    _, said = vpcctl("apply-policy", "bad.json", status=2)
    assert [line.split()[1] for line in said.splitlines()] == ["bad.json#/x:"]


def test_drift_is_status_3_and_repair_ends_it(run: Run, session: Rehearsal) -> None:
    assert run("status").stdout == "in sync\n"
    session.fake.remove(session.fake.objects[("Namespace", "one-web")])
    drifted = run("status", status=3).stdout
    assert "namespace one-web is absent" in drifted
    assert drifted.endswith("drifted; `vpcctl repair` fixes it\n")
    found = json.loads(run("status", "--json", status=3).stdout)
    assert (found["in_sync"], found["unfinished"]) == (False, False)
    assert {"kind", "object", "state", "detail"} == set(found["differences"][0])
    assert json.loads(run("status", "--vpc", "two", "--json").stdout)["in_sync"] is True
    repaired = run("repair")
    assert "repaired: namespace one-web was absent" in repaired.stderr
    assert repaired.stdout == ""
    assert run("repair").stderr == "nothing to repair\n"
    assert run("status").stdout == "in sync\n"


@pytest.mark.parametrize(("parts", "said"), [(["one-web"], "1 object"), (["one-web", "two-api"], r"\d+ objects")])
def test_repaired_objects_are_counted(run: Run, session: Rehearsal, parts: list[str], said: str) -> None:
    for name in parts:
        for item in [item for item in session.fake.objects.values() if item.namespace == name][-1:]:
            session.fake.remove(item)
    assert re.fullmatch(rf"repaired {said}", run("repair").stderr.splitlines()[-1])


def test_things_are_counted_in_one_or_many() -> None:
    assert [counted(number, "VPC") for number in (0, 1, 2)] == ["0 VPCs", "1 VPC", "2 VPCs"]


@pytest.mark.parametrize("given", [None, "", "n\n"])
def test_whoever_does_not_say_yes_is_told_that_nothing_was_removed(
    run: Run, session: Rehearsal, given: str | None
) -> None:
    before = session.load()
    said = run("destroy", "--all", status=1, said=given).stderr
    advice = "" if given == "n\n" else "; pass --yes, or answer the question"
    assert f"vpcctl: nothing was removed{advice}\n" in said
    assert session.load() == before
    assert "removed 2 VPCs; the host is as before\n" in run("destroy", "--all", said="y\n").stderr


@pytest.mark.parametrize("flushed", [False, True])
def test_where_no_ruleset_is_loaded_the_hits_are_told_so(run: Run, session: Rehearsal, flushed: bool) -> None:
    session.fake.ruleset_objects = lambda namespace: [] if flushed else [{"table": {"name": "vpcctl"}}]
    for words in (("show-policy", "--vpc", "one", "--hits"), ("show-ruleset", "--vpc", "one", "--json")):
        result = run(*words, status=1 if flushed else 0)
        told = "no ruleset is loaded in one-router; `vpcctl repair` loads it"
        assert (str(result.exception), result.output) == (told, "") if flushed else result.output


def test_each_document_is_sent_to_the_command_that_takes_it(vpcctl: Main, files: Path) -> None:
    environment = "this is an environment; `vpcctl apply` takes it"
    assert vpcctl("apply-policy", "--dry-run", "shop.json", status=2) == ("", f"vpcctl: shop.json#: {environment}\n")
    (files / "several.json").write_text(json.dumps([WEB_POLICY]))
    for name in ("web.json", "several.json"):
        said = f"vpcctl: {name}#: this is a policy; `vpcctl apply-policy` takes it\n"
        for command in ("plan", "apply"):
            assert vpcctl(command, name, status=2) == ("", said)


def test_a_vpc_reports_if_one_of_its_rules_says_so() -> None:
    assert reports(told("apply a policy").vpc("one"))
    assert not reports(told("tighten the policy").vpc("one"))
    assert not reports(told("clear the policy").vpc("one"))


def test_what_the_kernel_refuses_is_status_5_and_leaves_things_as_they_were(run: Run, session: Rehearsal) -> None:
    session.fake.fail_at = len(session.fake.calls) + 3
    run("create-subnet", "--vpc", "one", "--name", "x", "--type", "public", "--cidr", "10.0.0.32/28", status=5)
    assert run("status").stdout == "in sync\n"
    assert "x" not in [subnet["name"] for subnet in json.loads(run("list-subnets", "--vpc", "one", "--json").stdout)]


CREATE = ("create-subnet", "--vpc", "one", "--name", "x", "--type", "public", "--cidr", "10.0.0.32/28")


def test_an_interrupt_says_what_it_leaves_and_repair_finishes_it(
    vpcctl: Main, session: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(commands.context_settings, "obj", lambda: session.fake)
    session.fake.failure = KeyboardInterrupt()
    for words, after in ((CREATE, 3), (("-qq", "repair"), 1)):
        session.fake.fail_at = len(session.fake.calls) + after
        _, said = vpcctl(*words, status=130)
        assert "vpcctl: interrupted; a change is half made; `vpcctl repair` finishes it\n" in said
        assert session.load().pending is not None
    session.fake.fail_at = None
    vpcctl("repair")
    assert vpcctl("status")[0] == "in sync\n"
    assert "x" in [subnet.name for subnet in session.load().world.vpc("one").subnets]


@pytest.mark.parametrize("declared", [False, True], ids=["command line", "document"])
def test_limits_that_are_given_at_creation_are_in_the_rulesets(
    run: Run, session: Rehearsal, tmp_path: Path, declared: bool
) -> None:
    if declared:
        web = {"name": "web", "cidr": "10.9.1.0/24", "type": "public"}
        vpc = {"name": "small", "cidr": "10.9.0.0/16", "max_flows": 160, "max_ports": 48, "subnets": [web]}
        (tmp_path / "small.json").write_text(json.dumps({"vpcs": [vpc]}))
        run("apply", str(tmp_path / "small.json"))
    else:
        run("create-vpc", "--name", "small", "--cidr", "10.9.0.0/16", "--max-flows", "160", "--max-ports", "48")
        run("create-subnet", "--vpc", "small", "--name", "web", "--cidr", "10.9.1.0/24", "--type", "public")
    loaded = {item.namespace: item.text for item in session.fake.objects.values() if isinstance(item, Ruleset)}
    assert "mod 10 ct count over 16 }" in loaded[None]
    assert ":32768-32815" in loaded["small-router"]
    exported = json.loads(run("export", "--vpc", "small").stdout)["vpcs"][0]
    assert (exported["max_flows"], exported["max_ports"]) == (160, 48)


def test_the_limits_in_the_help_are_those_of_the_model() -> None:
    assert (vpc_commands.DEFAULT_MAX_FLOWS, vpc_commands.DEFAULT_MAX_PORTS) == (
        network.DEFAULT_MAX_FLOWS,
        network.DEFAULT_MAX_PORTS,
    )


def test_an_interrupt_before_the_first_step_leaves_nothing(
    vpcctl: Main, session: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(FakeKernel):
        def check(self, plan: Plan) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(commands.context_settings, "obj", Slow)
    before = session.load()
    _, said = vpcctl(*CREATE, status=130)
    assert "vpcctl: interrupted; nothing is left half made\n" in said
    assert session.load() == before


# -- the kernel of this machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("create-vpc", "--name", "three", "--cidr", "10.3.0.0/16"),
        ("delete-vpc", "--name", "one", "--cascade"),
        ("apply-policy", "--vpc", "one", "web.json"),
        ("apply", "shop.json"),
        ("repair",),
        ("status",),
    ],
    ids=" ".join,
)
def test_no_test_of_this_suite_comes_to_the_kernel(session: Rehearsal, files: Path, words: tuple[str, ...]) -> None:
    """As the whole program, whoever runs it: what makes the kernel here is conftest's refusal."""
    before = session.load()
    with pytest.raises(KernelForbidden):
        main(["--state-dir", str(session.state_dir), *words])
    assert session.load() == before


# -- what is printed where -----------------------------------------------------------------------------------------


def test_results_go_to_standard_output_and_words_to_people_to_standard_error(run: Run) -> None:
    created = run("create-instance", "--vpc", "one", "--subnet", "web", "--name", "web-2")
    assert created.stdout == ""
    assert created.stderr == "created instance web-2 (10.0.0.3), namespace one-web-2\n"
    listed = run("list-instances", "--vpc", "one", "--subnet", "web")
    assert listed.stderr == ""
    assert [line.split()[:3] for line in listed.stdout.splitlines()] == [
        ["INSTANCE", "SUBNET", "IP"],
        ["web", "web", "10.0.0.2"],
        ["web-2", "web", "10.0.0.3"],
    ]


def test_what_is_not_there_is_said_and_not_printed(vpcctl: Main, session: Rehearsal) -> None:
    reconciler.change(session.store, session.fake, lambda state: nothing(state.world))
    assert vpcctl("list-vpcs") == ("", "no VPCs\n")
    assert vpcctl("list-peerings") == ("", "no peerings\n")
    assert vpcctl("list-vpcs", "--json") == ("[]\n", "")


def test_quiet_says_nothing_and_verbose_says_each_step(session: Rehearsal, run: Run) -> None:
    session.verbosity = -1
    assert run("create-instance", "--vpc", "one", "--subnet", "web", "--name", "a").stderr == ""
    session.verbosity = 1
    steps = run("delete-instance", "--vpc", "one", "--name", "a").stderr.splitlines()
    assert "  remove namespace one-a" in steps
    assert steps[-1] == "deleted instance a of VPC one"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("add-subnet", "create-subnet"), ("new-vpc", "create-vpc"), ("make-instance", "create-instance"),
        ("add-policy", "apply-policy"), ("remove-subnet", "delete-subnet"), ("rm-vpc", "delete-vpc"),
        ("del-instance", "delete-instance"), ("rm-policy", "clear-policy"), ("ls-vpcs", "list-vpcs"),
        ("ls", "list-vpcs"), ("get-vpc", "list-vpcs"), ("list", "list-vpcs"), ("list-policies", "show-policy"),
        ("describe-vpc", "show-vpc"), ("run", "exec"), ("ssh", "exec"),
        ("attach", "create-peering"),
        ("connect-vpcs", "create-peering"), ("peer", "create-peering"), ("unpeer", "delete-peering"),
        ("add-peer", "create-peering"), ("remove-peer", "delete-peering"), ("list-peers", "list-peerings"),
        ("peer-vpcs", "create-peering"), ("add-nat", "create-nat-gateway"), ("enable-nat", "create-nat-gateway"),
        ("disable-nat", "delete-nat-gateway"), ("add-rule", "apply-policy"), ("firewall", "apply-policy"),
        ("add", "create-vpc"), ("rm", "delete-vpc"), ("create", "create-vpc"), ("inspect", "show-vpc"),
        ("subnet-add", "create-subnet"), ("vpc-delete", "delete-vpc"), ("list_subnets", "list-subnets"),
        ("expose", "publish-port"), ("unexpose", "unpublish-port"), ("list-ports", "list-published-ports"),
        ("deploy-app", "exec"), ("test-connectivity", "explain"), ("delete-all", "destroy"), ("clean-all", "destroy"),
        ("help", "--help"), ("version", "--version"), ("show-subnets", "show-subnet"),
        ("cleanup-all", "destroy"), ("delet-vpc", "delete-vpc"), ("Create-VPC", "create-vpc"),
        ("destory", "destroy"), ("creat-subnet", "create-subnet"), ("unpublish", "unpublish-port"),
    ],
)  # fmt: skip
def test_a_command_of_another_tool_is_told_with_ours(word: str, meant: str) -> None:
    assert nearest_command(word, COMMANDS) == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    "verb",
    [
        "add",
        "update",
        "set",
        "edit",
        "start",
        "select",
        "describe",
        "peer",
        "detect",
        "enable",
        "disable",
        "deploy",
        "reset",
        "restart",
        "flush",
        "undo",
        "stop",
        "down",
        "test",
    ],
)
@pytest.mark.parametrize("thing", ["", "-vpc", "-subnet", "-instance", "-policy", "-nat-gateway", "-port", "-peering"])
def test_nobody_is_told_to_delete_who_did_not_want_to(verb: str, thing: str) -> None:
    hint = nearest_command(verb + thing, COMMANDS)
    assert not re.match(r"did you mean '(delete|destroy|clear|unpublish)", hint)


def test_processes_in_a_namespace_that_lost_its_name_are_told_of(run: Run, session: Rehearsal) -> None:
    for name in ("one-web", "one-router"):
        session.fake.remove(session.fake.objects[("Namespace", name)])
    assert [line for line in run("repair").stderr.splitlines() if line.startswith("warning: ")] == [
        "warning: made again: one-web; processes that were started before still run in the old namespace, without a"
        " network: restart them (`lsns --type net` lists namespaces and their processes)"
    ]
    session.fake.reboot("boot-2")
    assert "warning: " not in run("repair").stderr
    # Nothing ran in what was never finished, nor outside instances.
    session.fake.remove(session.fake.objects[("Namespace", "one-router")])
    assert "warning: " not in run("repair").stderr


def lose_everything(session: Rehearsal) -> None:
    """A reboot."""
    session.fake.objects.clear()


def test_many_differences_are_summarised(run: Run, session: Rehearsal) -> None:
    lose_everything(session)
    every = json.loads(run("status", "--json", status=3).stdout)["differences"]
    shown = run("status", status=3).stdout.splitlines()
    assert len(every) > 20
    assert len(shown) == 20 + 2
    assert shown[-2:] == [
        f"… and {len(every) - 20} more (`vpcctl status --json` lists all)", "drifted; `vpcctl repair` fixes it",
    ]  # fmt: skip
    assert "namespace one-router is absent" in shown
    assert "ruleset of one-router is absent" in shown
    session.verbosity = 1
    lines = run("status", status=3).stdout.splitlines()
    assert len([line for line in lines if line.endswith(" is absent")]) == len(every)


@pytest.mark.parametrize(("verbosity", "count"), [(-1, 0), (0, 20), (1, None)])
def test_many_repaired_objects_are_summarised(run: Run, session: Rehearsal, verbosity: int, count: int | None) -> None:
    lose_everything(session)
    number = len(json.loads(run("status", "--json", status=3).stdout)["differences"])
    session.verbosity = verbosity
    said = run("repair").stderr.splitlines()
    assert len([line for line in said if line.startswith("repaired: ")]) == (number if count is None else count)
    assert said.count(f"… and {number - 20} more (-v shows all)") == (1 if verbosity == 0 else 0)


@pytest.mark.parametrize(("verbosity", "count"), [(-1, 0), (0, 20), (1, 25)])
def test_many_rules_without_effect_are_summarised(
    run: Run, session: Rehearsal, files: Path, verbosity: int, count: int
) -> None:
    rules = [{"action": "allow"}] + [{"action": "allow", "protocol": "tcp", "port": port} for port in range(1, 26)]
    (files / "many.json").write_text(json.dumps({"subnet": "web", "ingress": rules}))
    session.verbosity = verbosity
    shown = run("apply-policy", "--dry-run", "--vpc", "one", "many.json").stdout.splitlines()
    assert len([line for line in shown if "can never match" in line]) == count
    assert ("without effect:" in shown) == (count > 0)
    assert shown.count("  … and 5 more (-v shows all)") == (1 if verbosity == 0 else 0)
    assert "newly allowed:" in shown


def test_success_is_told_as_it_is(run: Run, session: Rehearsal) -> None:
    words = ["--vpc", "one", "--subnet", "db"]
    run("delete-nat-gateway", *words)
    said = run("create-nat-gateway", *words).stderr
    assert said == "subnet db of VPC one reaches the internet by a NAT gateway\n"
    run("delete-nat-gateway", *words)
    reconciler.change(session.store, session.fake, lambda state: policy({"subnet": "db", "egress": []})(state.world))
    assert run("create-nat-gateway", *words).stderr.splitlines() == [
        "subnet db of VPC one has a NAT gateway",
        "warning: the egress policy of subnet db denies everything to the internet (web.json#/egress (default deny))",
    ]


def test_a_hardened_vpc_says_so(run: Run) -> None:
    run("create-vpc", "--name", "three", "--cidr", "10.3.0.0/16", "--hardened")
    shown = {one["name"]: one["hardened"] for one in json.loads(run("list-vpcs", "--json").stdout)}
    assert shown == {"one": False, "two": True, "three": True}
    assert run("show-vpc", "--name", "three").stdout.splitlines()[0] == "VPC three  10.3.0.0/16  hardened"
    assert run("show-vpc", "--name", "one").stdout.splitlines()[0] == "VPC one  10.0.0.0/26"
    found = {one["name"]: one.get("hardened") for one in json.loads(run("export").stdout)["vpcs"]}
    assert found == {"one": None, "two": True, "three": True}


def test_a_vpc_keeps_the_mtu_that_it_was_made_with(run: Run, session: Rehearsal, tmp_path: Path) -> None:
    session.fake._facts = dataclasses.replace(session.fake._facts, mtu=1400)
    run("create-vpc", "--name", "three", "--cidr", "10.3.0.0/16")
    run("create-vpc", "--name", "four", "--cidr", "10.4.0.0/16", "--mtu", "9000")
    session.fake._facts = dataclasses.replace(session.fake._facts, mtu=1300)
    run("create-subnet", "--vpc", "three", "--name", "web", "--cidr", "10.3.1.0/24", "--type", "private")
    shown = {one["name"]: one["mtu"] for one in json.loads(run("list-vpcs", "--json").stdout)}
    assert shown == {"one": 1500, "two": 1500, "three": 1400, "four": 9000}
    assert "  MTU      1400" in run("show-vpc", "--name", "three").stdout.splitlines()
    exported = run("export").stdout
    assert {one["name"]: one["mtu"] for one in json.loads(exported)["vpcs"]} == shown
    # A document without the field leaves it as it is.
    for vpc in (document := json.loads(exported))["vpcs"]:
        del vpc["mtu"]
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(document))
    run("apply", str(plain))
    assert json.loads(run("export").stdout) == json.loads(exported)
    made = {(item.namespace, item.link): item.mtu for item in session.fake.objects.values() if isinstance(item, Mtu)}
    assert {mtu for (namespace, _), mtu in made.items() if namespace and namespace.startswith("three-")} == {1400}


SHAPES: dict[tuple[str, ...], set[str]] = {
    ("list-vpcs",): {"name", "cidr", "hardened", "mtu", "router", "uplink", "peers", "subnets", "publish"},
    ("show-vpc", "--name", "one"): {"name", "cidr", "hardened", "router", "uplink", "peers", "subnets", "publish"},
    ("list-subnets", "--vpc", "one"): {"name", "cidr", "type", "gateway", "nat_gateway", "instances", "policy"},
    ("list-instances", "--vpc", "one"): {"name", "ip", "mac", "namespace", "subnet"},
    ("list-subnets",): {"name", "cidr", "type", "gateway", "nat_gateway", "instances", "policy", "vpc"},
    ("show-subnet", "one/web"): {"name", "cidr", "type", "gateway", "nat_gateway", "instances", "policy", "vpc"},
    ("list-instances",): {"name", "ip", "mac", "namespace", "subnet", "vpc"},
    ("show-instance", "one/web"): {"name", "ip", "mac", "namespace", "subnet", "vpc", "publish"},
    ("list-published-ports",): {"protocol", "port", "instance", "target_port", "vpc"},
    ("list-published-ports", "one"): {"protocol", "port", "instance", "target_port", "vpc"},
    ("list-peerings",): {"vpc1", "vpc2"},
    ("show-policy", "--vpc", "one"): {"subnet", "file", "policy"},
}


@pytest.mark.parametrize("words", SHAPES, ids=" ".join)
def test_json_has_its_documented_shape(vpcctl: Main, words: tuple[str, ...]) -> None:
    shown, said = vpcctl(*words, "--json")
    assert said == ""
    found = json.loads(shown)
    first = found[0] if isinstance(found, list) else found
    assert SHAPES[words] <= set(first)


@pytest.mark.parametrize("words", SHAPES, ids=" ".join)
def test_what_is_shown_to_people_names_the_same_things(vpcctl: Main, words: tuple[str, ...]) -> None:
    found: Any = json.loads(vpcctl(*words, "--json")[0])
    shown, _ = vpcctl(*words)
    for one in found if isinstance(found, list) else [found]:
        for key in ("name", "cidr", "ip", "subnet", "vpc1", "vpc2"):
            assert str(one.get(key, "")) in shown


def test_words_of_a_document_do_not_break_the_output(session: Rehearsal) -> None:
    """Half a character is JSON, and no text that a terminal could show."""
    odd = WEB_POLICY | {"description": "\ud800", "ingress": [{"action": "allow", "description": "\udfff"}]}
    reconciler.change(session.store, session.fake, lambda state: policy(odd)(state.world))
    words = [sys.executable, "-m", "vpcctl", "--state-dir", str(session.state_dir), "show-policy", "--vpc", "one"]
    for more in ([], ["--json"]):
        done = subprocess.run([*words, *more], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()


# What a terminal would obey: clear the screen, begin a new line, the same in one C1 character, write from the right.
OBEYED = "\x1b[2J\r\n\x9b2J\x7f\u202e\u2028\t"
SPELLED = r"\u001b[2J\r\n\u009b2J\u007f\u202e\u2028\t"


def as_spelled(output: str) -> bool:
    """Are the words there, and nothing that a terminal would obey besides ends of lines?"""
    return SPELLED in output and not {one for one in OBEYED if not one.isprintable()} & set(output) - {"\n"}


@pytest.mark.parametrize(
    "words",
    [
        ("show-policy", "--vpc", "one"),
        ("show-policy", "--vpc", "one", "--json"),
        ("explain", "one/db", "one/web", "tcp/80"),
        ("explain", "one/db", "one/web", "tcp/80", "--json"),
        ("export",),
    ],
    ids=" ".join,
)
def test_what_a_terminal_would_obey_is_made_visible(vpcctl: Main, session: Rehearsal, words: tuple[str, ...]) -> None:
    odd = WEB_POLICY | {"description": OBEYED, "ingress": [{"action": "allow", "description": OBEYED}]}
    reconciler.change(session.store, session.fake, lambda state: policy(odd)(state.world))
    shown, _ = vpcctl(*words)
    assert as_spelled(shown)
    if shown.startswith(("[", "{")):
        assert json.dumps(OBEYED) in json.dumps(json.loads(shown)), "to a program they are the same words"


def test_an_error_is_one_line_whatever_its_place_is_called(vpcctl: Main, files: Path) -> None:
    (files / "bad.json").write_text(json.dumps({"subnet": "web", OBEYED: 1}))
    (files / "shop.json").write_text(
        json.dumps({"vpcs": [{"name": "one", "cidr": "10.0.0.0/26", "subnets": [
            {"name": "web", "cidr": "10.0.0.0/28", "type": "public", "policy": OBEYED}]}]})
    )  # fmt: skip
    for command in (["apply-policy", "bad.json"], ["compile", "--environment", "shop.json"]):
        _, said = vpcctl(*command, status=2)
        assert as_spelled(said)
    _, said = vpcctl("apply-policy", "bad.json", status=2)
    assert len(said.splitlines()) == 1


def test_a_wrong_command_line_is_shown_visibly(vpcctl: Main) -> None:
    _, said = vpcctl("list-vpcs", "\x1b[2J\x9b", status=2)
    assert said.endswith(r"unexpected extra argument (\u001b[2J\u009b)" + "\n")


def test_a_warning_is_one_line_whatever_its_file_is_called(run: Run, files: Path) -> None:
    name = OBEYED.replace("/", "") + ".json"
    (files / name).write_text('{"subnet": "web", "vpc": "one", "ingress": []}')
    said = run("apply-policy", name).stderr
    assert as_spelled(said)
    assert len(said.splitlines()) == 2, "the warning, and what was applied"


def test_words_in_other_writings_stay_as_they_are(vpcctl: Main, session: Rehearsal) -> None:
    told_words = "Bücher 10\u00a0000 → Δ 中文"
    reconciler.change(
        session.store, session.fake, lambda state: policy(WEB_POLICY | {"description": told_words})(state.world)
    )
    assert told_words in vpcctl("show-policy", "--vpc", "one")[0]
    assert told_words in vpcctl("show-policy", "--vpc", "one", "--json")[0]


def test_only_the_places_that_make_words_visible_print() -> None:
    printing = {
        path.name
        for path in (ROOT / "vpcctl/cli").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {"output.py", "session.py", "__init__.py"}


@pytest.mark.parametrize(("raised", "reported"), [("KeyboardInterrupt", False), ("ValueError", True)])
def test_an_interrupt_that_python_cannot_raise_is_not_reported(raised: str, reported: bool) -> None:
    """As within the callback of an import lock: what Python calls when an object goes cannot raise anything."""
    program = f"""
import sys
from vpcctl import __main__, cli
class Going:
    def __del__(self):
        raise {raised}
cli.main = Going
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("Traceback" in done.stderr) == reported


def test_a_reader_that_has_gone_is_no_error(session: Rehearsal) -> None:
    words = [sys.executable, "-m", "vpcctl", "--state-dir", str(session.state_dir), "list-vpcs", "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert b"Traceback" not in done.stderr


# -- policies ------------------------------------------------------------------------------------------------------


def test_applying_a_policy_says_what_it_does_and_the_second_time_that_it_does_nothing(run: Run, files: Path) -> None:
    (files / "web.json").write_text('{"subnet": "web", "vpc": "one", "ingress": [{"action": "allow"}]}')
    first, second = run("apply-policy", "web.json"), run("apply-policy", "web.json")
    assert "one/web: applied (1 rule)" in first.stderr
    assert (
        'ingress of one/web denies traffic that no rule matches (implicit; set "default" to make it explicit)'
        in first.stderr
    )
    assert "one/web: unchanged (1 rule)" in second.stderr


def test_a_policy_comes_from_standard_input_too(run: Run) -> None:
    done = run("apply-policy", "--vpc", "one", "--subnet", "db", "-", said='{"egress": []}')
    assert "one/db: applied (0 rules)" in done.stderr
    shown = json.loads(run("show-policy", "--vpc", "one", "--subnet", "db", "--json").stdout)
    assert shown == [{"subnet": "db", "file": "(standard input)", "policy": {"egress": []}}]


def test_the_old_option_file_is_the_argument(run: Run, files: Path) -> None:
    (files / "web.json").write_text('{"subnet": "web", "ingress": []}')
    assert "one/web: applied" in run("apply-policy", "--vpc", "one", "--file", "web.json").stderr


def test_a_bad_document_among_good_ones_changes_nothing(run: Run, files: Path, session: Rehearsal) -> None:
    (files / "good.json").write_text('{"subnet": "db", "ingress": []}')
    (files / "bad.json").write_text('{"subnet": "web", "ingress": [{"action": "allow", "source": "subnet:ghost"}]}')
    before = session.load()
    done = run("apply-policy", "--vpc", "one", "good.json", "bad.json", status=2)
    assert "subnet:ghost names nothing" in str(done.exception)
    assert session.load() == before


# -- compiling without a kernel ------------------------------------------------------------------------------------


def test_compile_prints_the_ruleset_and_leaves_no_trace(vpcctl: Main, files: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    shown, said = vpcctl("compile", "--environment", "shop.json", "--vpc", "one")
    assert said == ""
    assert shown.startswith("define generation = 1\n")
    assert "web.json#/ingress/0" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_compile_shows_what_is_loaded_when_nothing_is_to_change(vpcctl: Main, session: Rehearsal) -> None:
    state = session.load()
    loaded = session.fake.objects[("Ruleset", "one-router")]
    shown, _ = vpcctl("compile", "--vpc", "one")
    assert shown == compile_vpc(state.world, "one", loaded.tag).text(loaded.generation)
    assert loaded.fingerprint in shown


def test_compile_tells_what_is_wrong_in_the_environment_and_in_the_policies(vpcctl: Main, files: Path) -> None:
    (files / "bad.json").write_text('{"subnet": "wbe", "x": 1}')
    words = ("compile", "--environment", "shop.json", "bad.json")
    _, said = vpcctl(*words, status=2)
    assert [line.split()[1] for line in said.splitlines()] == ["bad.json#/subnet:", "bad.json#/x:"]
    (files / "shop.json").write_text('{"vpcs": [{"name": "one", "cidr": "10.0.0.1/26"}], "peering": []}')
    _, said = vpcctl(*words, status=2)
    places = ["shop.json#/vpcs/0/cidr:", "shop.json#/peering:", "bad.json#/x:"]
    assert [line.split()[1] for line in said.splitlines()] == places


def test_compile_of_several_vpcs_asks_which(vpcctl: Main) -> None:
    _, said = vpcctl("compile", status=2)
    assert "a ruleset is one VPC's; name it with --vpc (there: one, two)" in said


def test_a_policy_that_an_environment_names_is_found_beside_it(vpcctl: Main, files: Path) -> None:
    inner = files / "inner"
    inner.mkdir()
    for name in ("shop.json", "web.json"):
        (files / name).rename(inner / name)
    shown, _ = vpcctl("compile", "--environment", "inner/shop.json")
    assert "web.json#/ingress/0" in shown


# -- an environment, there and back --------------------------------------------------------------------------------


def test_what_is_exported_applies_to_nothing_new(run: Run, files: Path, session: Rehearsal) -> None:
    exported = run("export").stdout
    (files / "all.json").write_text(exported)
    before = session.load()
    assert run("plan", "all.json").stdout == "nothing to change\n"
    assert "nothing to change" in run("apply", "all.json").stderr
    assert session.load().world == before.world


def test_an_exported_environment_makes_the_same_network_elsewhere(run: Run, files: Path, tmp_path: Path) -> None:
    document = json.loads(run("export").stdout)
    (files / "all.json").write_text(json.dumps(document))
    elsewhere = Rehearsal(tmp_path / "elsewhere")
    done = CliRunner().invoke(command("apply"), [str(files / "all.json")], obj=elsewhere)
    assert done.exit_code == 0, done.output
    exported = CliRunner().invoke(command("export"), [], obj=elsewhere)
    assert json.loads(exported.stdout) == document


def test_pruning_hands_a_published_port_over(run: Run, files: Path, session: Rehearsal) -> None:
    """One VPC goes and another one comes, in one command and with the same port of the host."""
    heir = {
        "name": "heir",
        "cidr": "10.0.0.0/26",
        "subnets": [{"name": "web", "cidr": "10.0.0.0/28", "type": "public"}],
        "publish": [{"protocol": "tcp", "port": 8080, "instance": "web", "target_port": 80}],
    }
    (files / "heir.json").write_text(json.dumps({"vpcs": [heir]}))
    assert session.load().world.vpc("one").publications
    run("apply", "--prune", "--yes", "heir.json")
    found: World = session.load().world
    assert [vpc.name for vpc in found.vpcs] == ["heir"]
    assert run("status").stdout == "in sync\n"


def test_a_command_leaves_the_collector_of_cycles_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """What calls `main` may run for months."""
    before = gc.get_threshold()
    for words in (["--help"], ["no-such-command"]):
        with pytest.raises(SystemExit):
            main(words)
        assert gc.get_threshold() == before


ENDING = """
import atexit, sys, threading, time
from vpcctl import __main__, cli
def command():
    print("said")
    print("unfinished", end="", file=sys.stderr)
    raise SystemExit(3)
cli.main = command
atexit.register(print, "at the end")
if len(sys.argv) > 1:
    threading.Thread(target=lambda: (time.sleep(0.2), print("by a thread"))).start()
__main__.main()
"""


@pytest.mark.parametrize("threads", [[], ["thread"]])
def test_a_process_that_ends_quickly_leaves_nothing_unsaid(threads: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-c", ENDING, *threads], capture_output=True, text=True, check=False)
    assert ran.returncode == 3
    assert sorted(ran.stdout.splitlines()) == sorted(["said", "at the end", *(["by a thread"] if threads else [])])
    assert ran.stderr == "unfinished"
