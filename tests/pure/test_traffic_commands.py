"""explain, matrix, verify and apply-policy --dry-run as commands: words, JSON, exit statuses; no kernel, no root."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import nobody
from vpcctl.cli import main
from vpcctl.documents.environment import read_environment
from vpcctl.engine import machine
from vpcctl.engine.state import State, Store
from vpcctl.errors import KernelError
from vpcctl.model.host import Host
from vpcctl.model.network import World

ENVIRONMENT = {
    "vpcs": [
        {
            "name": "shop",
            "cidr": "10.0.0.0/16",
            "publish": [{"protocol": "tcp", "port": 8080, "target_port": 80, "instance": "web"}],
            "subnets": [
                {
                    "name": "web",
                    "cidr": "10.0.1.0/24",
                    "type": "public",
                    "instances": [{"name": "web"}, {"name": "web-2", "ip": "10.0.1.9"}],
                },
                {"name": "db", "cidr": "10.0.3.0/24", "type": "private", "policy": "db.json"},
            ],
        }
    ]
}
DB = {
    "ingress": [
        {"action": "allow", "protocol": "tcp", "port": 5432, "source": "subnet:web", "description": "the shop's data"},
        {"action": "deny", "protocol": "tcp"},
    ],
    "default": {"ingress": "deny"},
}


@dataclass(frozen=True, slots=True)
class Said:
    """What a command left: its exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an environment and the policy that it names."""
    write(tmp_path)
    return tmp_path


def write(folder: Path) -> None:
    (folder / "env.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "db.json").write_text(json.dumps(DB))


@pytest.fixture
def vpcctl(folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Runs a command in the folder, with a state directory that does not exist."""
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(["--state-dir", str(folder / "state"), *arguments])
        found = capsys.readouterr()
        return Said(ended.value.code or 0, found.out, found.err)

    return run


@pytest.fixture
def recorded(folder: Path) -> Path:
    """The state directory of a machine that has the environment."""
    world = read_environment(ENVIRONMENT, "env.json", lambda path: (DB, path))
    return record(folder, world)


def record(folder: Path, world: World) -> Path:
    with Store(folder / "state").locked() as writer:
        writer.save(State("0a1b2c3d", world=world))
    return folder / "state"


HERE = ("--environment", "env.json")


# -- explain -------------------------------------------------------------------------------------------------------


def test_explain_says_yes_with_the_line_and_the_hops(vpcctl) -> None:
    said = vpcctl("explain", "shop/web", "shop/db", "tcp/5432", *HERE)
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines() == [
        "shop/web → shop/db tcp/5432: allowed",
        "  by     shop/web 10.0.1.2",
        "         br-web in shop-router: egress gate of shop/web",
        "         br-db in shop-router: ingress gate of shop/db",
        "         shop/db 10.0.3.2",
        "  topology                     allow  both are in VPC shop",
        "  egress of shop/web           allow  no policy",
        "  ingress of shop/db           allow  db.json#/ingress/0 «the shop's data»",
    ]


@pytest.mark.parametrize(
    ("question", "word", "status"),
    [
        (("shop/web", "shop/db", "tcp/5432"), "allowed", 0),
        (("shop/web", "shop/db", "tcp/22"), "denied", 1),
        (("shop/web", "shop/db", "tcp"), "allowed in part", 1),
        (("internet", "shop/web", "tcp/80"), "allowed", 0),
        (("internet", "shop/web", "tcp/8080"), "denied", 1),
        (("shop/db", "203.0.113.7", "any"), "denied", 1),
    ],
)
def test_explain_ends_with_0_for_yes_and_1_for_anything_else(vpcctl, question: tuple, word: str, status: int) -> None:
    said = vpcctl("explain", *question, *HERE)
    assert said.out.splitlines()[0] == f"{question[0]} → {question[1]} {question[2]}: {word}"
    assert said.status == status


def test_explain_says_for_which_part(vpcctl) -> None:
    lines = vpcctl("explain", "shop/web", "shop/db", "tcp", *HERE).out.splitlines()
    assert lines[-6:] == [
        "  ingress of shop/db           allow  db.json#/ingress/0 «the shop's data»",
        "      web (10.0.1.2) → db (10.0.3.2) tcp/5432",
        "                               deny   db.json#/ingress/1",
        "      web (10.0.1.2) → db (10.0.3.2) tcp/0-5431, tcp/5433-65535",
        "  what passes:",
        "      web (10.0.1.2) → db (10.0.3.2) tcp/5432",
    ]


def test_explain_as_json_has_its_shape(vpcctl) -> None:
    said = vpcctl("explain", "shop/web", "shop/db", "tcp/5432", *HERE, "--json")
    assert said.status == 0
    assert list(said.json) == [
        "from",
        "to",
        "service",
        "verdict",
        "deciding",
        "hops",
        "stages",
        "allowed",
        "also_denied",
    ]
    assert (said.json["verdict"], said.json["deciding"]) == ("allow", "db.json#/ingress/0")
    assert [list(stage) for stage in said.json["stages"]] == [["gate", "verdicts"]] * 3
    traffic = {"from": ["web (10.0.1.2)"], "to": ["db (10.0.3.2)"], "services": ["tcp/5432"]}
    assert said.json["stages"][-1] == {
        "gate": "ingress of shop/db",
        "verdicts": [
            {
                "action": "allow",
                "origin": "db.json#/ingress/0",
                "description": "the shop's data",
                "traffic": [traffic],
            }
        ],
    }
    assert said.json["allowed"] == [traffic]
    denied = vpcctl("explain", "shop/web", "shop/db", "tcp/22", *HERE, "--json")
    assert (denied.status, denied.json["verdict"], denied.json["allowed"]) == (1, "deny", [])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("shop/wbe", "shop/db", "tcp/1"), 4, "instance or subnet 'wbe' not found in VPC shop; did you mean 'web'?"),
        (("shp/web", "shop/db", "tcp/1"), 4, "VPC 'shp' not found; known VPCs: shop"),
        (("shop/web", "shop/db", "tpc/1"), 2, "\"tpc/1\" is not a service: did you mean 'tcp'?;"),
        (("shop/web", "shop/db", "tcp/0"), 2, '"tcp/0" is not a service: 0 is not a port (1–65535)'),
        (("shop/web", "db", "tcp/1"), 2, '"db" is not an end of a flow: VPC/NAME, VPC/ADDRESS, internet or a public'),
        (("internet", "internet", "tcp/1"), 2, "internet → internet: one side must be in a VPC"),
        (("shop/web", "shop/db", "icmp/echo-reply"), 2, '"icmp/echo-reply": no flow begins with that'),
    ],
)  # fmt: skip
def test_explain_refuses_what_makes_no_sense(vpcctl, arguments: tuple, status: int, message: str) -> None:
    said = vpcctl("explain", *arguments, *HERE)
    assert (said.status, said.out) == (status, "")
    assert said.err.startswith(f"vpcctl: {message}")


def test_explain_wants_three_words(vpcctl) -> None:
    said = vpcctl("explain", "shop/web", "shop/db", *HERE)
    assert said.status == 2
    assert "SERVICE" in said.err


def test_a_probe_of_an_environment_is_refused(vpcctl) -> None:
    said = vpcctl("explain", "shop/web", "shop/db", "tcp/5432", *HERE, "--probe")
    assert said.status == 2
    assert "--probe asks the kernel" in said.err


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        (
            ("203.0.113.7", "shop/web"),
            "from outside and by the host only published ports can be called, and shop/web tcp/81 is none",
        ),
        (("shop/web", "shop/10.0.3.77"), "each end in a VPC must be an instance, and the two must differ"),
        (("shop/db", "shop/db"), "each end in a VPC must be an instance, and the two must differ"),
    ],
)
def test_where_nothing_can_be_sent_a_probe_says_why(vpcctl, recorded: Path, ends: tuple[str, str], why: str) -> None:
    said = vpcctl("explain", *ends, "tcp/81", "--probe")
    assert (said.status, said.err) == (4, f"vpcctl: nothing to probe: {why}\n")


def test_explain_judges_the_present_world(vpcctl, recorded: Path) -> None:
    assert vpcctl("explain", "shop/web", "shop/db", "tcp/5432").status == 0
    assert vpcctl("explain", "shop/web", "shop/db", "tcp/22").status == 1


def test_a_machine_without_a_vpc_has_nothing_to_explain(vpcctl, folder: Path) -> None:
    said = vpcctl("explain", "shop/web", "shop/db", "tcp/5432")
    assert (said.status, said.err) == (4, "vpcctl: VPC 'shop' not found; known VPCs: none\n")
    assert not (folder / "state").exists()


# -- the host ------------------------------------------------------------------------------------------------------

HOST = Host((ipaddress.ip_network("198.51.100.2/32"),), (ipaddress.ip_network("198.51.100.255/32"),))


@pytest.fixture
def located(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that has the environment has addresses, too."""
    monkeypatch.setattr(machine, "linux_host", lambda: HOST)


@pytest.mark.parametrize(
    ("address", "status", "reason"),
    [
        ("198.51.100.2", 1, "198.51.100.2 is an address of the host; instances reach only its published ports"),
        ("198.51.100.255", 1,
         "198.51.100.255 is a broadcast address of the host's networks; the host forwards nothing to it"),
        ("198.51.100.20", 0, "no policy"),
    ],
)  # fmt: skip
def test_explain_and_verify_know_the_host(
    vpcctl, located: None, folder: Path, address: str, status: int, reason: str
) -> None:
    said = vpcctl("explain", "shop/web", address, "tcp/22", "--json")
    assert (said.status, said.json["deciding"], said.err) == (status, reason, "")
    (folder / "tests.json").write_text(json.dumps([assertion(address, "tcp/22", "deny" if status else "allow")]))
    said = vpcctl("verify", "tests.json")
    assert (said.status, said.err) == (0, "1 passed, 0 failed\n")


def test_matrix_keeps_the_word_internet_where_the_host_is_known(vpcctl, located: None) -> None:
    assert ["web", "internet", "any"] in [line.split() for line in vpcctl("matrix", "--vpc", "shop").out.splitlines()]


def test_a_dry_run_promises_nothing_that_ends_at_the_host(vpcctl, located: None, folder: Path) -> None:
    """The prefix is told as it was written, with the host's addresses in its midst, and the host alone not at all."""
    allow = [{"action": "allow", "destination": place} for place in ("198.51.100.0/24", "203.0.113.0/25")]
    closed = {"subnet": "web", "egress": [], "default": {"egress": "deny"}}
    for name, egress in (
        ("closed", []),
        ("host", [{"action": "allow", "destination": "198.51.100.2"}]),
        ("lan", allow),
    ):
        (folder / f"{name}.json").write_text(json.dumps({**closed, "egress": egress}))
    assert "  web → internet any" in vpcctl("apply-policy", "--dry-run", "closed.json").out.splitlines()
    said = vpcctl("apply-policy", "--dry-run", "host.json").out.splitlines()
    assert "  web → internet any" in said
    assert not any("198.51.100" in line for line in said)
    said = vpcctl("apply-policy", "--dry-run", "lan.json").out.splitlines()
    assert "  web → internet except 198.51.100.0/24, 203.0.113.0/25 any" in said


def test_a_document_is_judged_on_no_host_in_particular(vpcctl, located: None, folder: Path) -> None:
    """Wherever CI runs, a document and its tests have one answer; where it may be another on its host, this is said."""
    said = vpcctl("explain", "shop/web", "198.51.100.2", "tcp/22", *HERE)
    caution = (
        "with --environment the host's addresses are unknown; if 198.51.100.2 is one of them, the flow is denied\n"
    )
    assert (said.status, said.err) == (0, caution)
    (folder / "tests.json").write_text(json.dumps([assertion("198.51.100.2", "tcp/22", "allow")]))
    assert vpcctl("verify", "tests.json", *HERE).err == f"{caution}1 passed, 0 failed\n"
    for question in (
        ("shop/web", "internet", "any"),
        ("shop/db", "198.51.100.2", "any"),
        ("shop/web", "shop/db", "any"),
    ):
        assert vpcctl("explain", *question, *HERE).err == ""


def test_where_the_host_cannot_be_looked_at_the_answer_says_so(
    vpcctl, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Host:
        raise KernelError("cannot read the host's own addresses", "Operation not permitted")

    monkeypatch.setattr(machine, "linux_host", refuse)
    said = vpcctl("explain", "shop/web", "198.51.100.2", "tcp/22")
    assert said.status == 0
    assert said.err == (
        "warning: cannot read the host's own addresses: Operation not permitted; the answer treats them as internet"
        " addresses\n"
    )


# -- matrix --------------------------------------------------------------------------------------------------------


def test_matrix_is_a_table_of_all_pairs(vpcctl) -> None:
    said = vpcctl("matrix", "--vpc", "shop", *HERE)
    assert said.status == 0
    assert [line.split(maxsplit=2) for line in said.out.splitlines()] == [
        ["FROM", "TO", "SERVICES"],
        ["web", "web", "any"],
        ["web", "db", "tcp/5432"],
        ["web", "internet", "any"],
        ["db", "web", "any"],
        ["db", "db", "-"],
        ["db", "internet", "-"],
        ["internet", "web", "(10.0.1.2)  tcp/80"],
        ["internet", "db", "-"],
        # It calls published ports, like other callers.
        ["host", "web", "(10.0.1.2)  tcp/80"],
        ["host", "db", "-"],
    ]


def test_matrix_as_json_has_its_shape(vpcctl) -> None:
    found = vpcctl("matrix", "--vpc", "shop", *HERE, "--json").json
    assert len(found) == 10
    assert {"from": "db", "to": "internet", "traffic": []} in found
    assert {
        "from": "internet",
        "to": "web",
        "traffic": [{"from": ["internet"], "to": ["web (10.0.1.2)"], "services": ["tcp/80"]}],
    } in found


def test_matrix_of_a_vpc_without_subnets_says_so(vpcctl, folder: Path) -> None:
    (folder / "env.json").write_text('{"vpcs": [{"name": "shop", "cidr": "10.0.0.0/16"}]}')
    said = vpcctl("matrix", "--vpc", "shop", *HERE)
    assert (said.status, said.out, said.err) == (0, "", "VPC shop has no subnet\n")


def test_matrix_of_no_vpc_is_a_conflict(vpcctl) -> None:
    said = vpcctl("matrix", "--vpc", "shp", *HERE)
    assert (said.status, said.out, said.err) == (4, "", "vpcctl: VPC 'shp' not found; known VPCs: shop\n")


# -- verify --------------------------------------------------------------------------------------------------------


def assertion(destination: str, service: str, expect: str, **more: str) -> dict:
    return {"from": "shop/web", "to": destination, "service": service, "expect": expect, **more}


RIGHT = [assertion("shop/db", "tcp/5432", "allow"), assertion("shop/db", "tcp/22", "deny", description="no logins")]


def test_verify_passes_what_is_so(vpcctl, folder: Path) -> None:
    (folder / "tests.json").write_text(json.dumps(RIGHT))
    said = vpcctl("verify", "tests.json", *HERE)
    assert said.status == 0
    assert said.out.splitlines() == [
        "pass  shop/web → shop/db tcp/5432: expected allow; allowed by db.json#/ingress/0",
        "pass  shop/web → shop/db tcp/22: expected deny; denied by db.json#/ingress/1",
    ]
    assert said.err == "2 passed, 0 failed\n"


@pytest.mark.parametrize(
    "wrong",
    [
        assertion("shop/db", "tcp/22", "allow"),
        assertion("shop/db", "tcp", "allow"),
        assertion("shop/db", "tcp", "deny"),
        assertion("internet", "any", "deny"),
    ],
)
def test_verify_fails_with_1_if_one_is_not_so(vpcctl, folder: Path, wrong: dict) -> None:
    (folder / "tests.json").write_text(json.dumps([*RIGHT, wrong]))
    said = vpcctl("verify", "tests.json", *HERE)
    assert said.status == 1
    assert [line[:4] for line in said.out.splitlines()] == ["pass", "pass", "FAIL"]
    assert said.err == "2 passed, 1 failed\n"


def test_verify_names_the_line_that_decided_otherwise(vpcctl, folder: Path) -> None:
    (folder / "tests.json").write_text(json.dumps([assertion("shop/db", "tcp", "allow")]))
    (line,) = vpcctl("verify", "tests.json", *HERE).out.splitlines()
    assert line == (
        "FAIL  shop/web → shop/db tcp: expected allow; allowed in part: web (10.0.1.2) → db (10.0.3.2) tcp/5432;"
        " the rest is denied by db.json#/ingress/1"
    )


def test_verify_gives_the_reason_where_no_line_decides(vpcctl, folder: Path) -> None:
    fails = [{"from": "internet", "to": "shop/db", "service": "tcp/80", "expect": "allow"}]
    fails.append({"from": "shop/db", "to": "shop/web", "service": "tcp/80", "expect": "deny"})
    (folder / "tests.json").write_text(json.dumps(fails))
    assert vpcctl("verify", "tests.json", *HERE).out.splitlines() == [
        "FAIL  internet → shop/db tcp/80: expected allow; denied: nothing is published there",
        "FAIL  shop/db → shop/web tcp/80: expected deny; allowed: no policy",
    ]


def test_verify_of_no_assertions_at_all_is_a_wrong_document(vpcctl, folder: Path) -> None:
    (folder / "tests.json").write_text("[]")
    said = vpcctl("verify", "tests.json", *HERE)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("vpcctl: tests.json#: no assertions; write one")


def test_verify_as_json_has_its_shape(vpcctl, folder: Path) -> None:
    (folder / "tests.json").write_text(json.dumps([*RIGHT, assertion("shop/db", "udp/53", "allow")]))
    said = vpcctl("verify", "tests.json", *HERE, "--json")
    assert (said.status, said.err) == (1, "")
    assert {name: said.json[name] for name in ("passed", "failed")} == {"passed": 2, "failed": 1}
    assert said.json["results"][0] == {
        "from": "shop/web", "to": "shop/db", "service": "tcp/5432", "expect": "allow",
        "verdict": "allow", "deciding": "db.json#/ingress/0", "passed": True,
    }  # fmt: skip
    assert said.json["results"][2]["passed"] is False
    assert said.json["results"][2]["deciding"] == "db.json#/default/ingress"


def test_verify_writes_junit_xml(vpcctl, folder: Path) -> None:
    """The place of the deciding line is a text of the user, with whatever XML would read."""
    (folder / "db.json").rename(folder / 'd"<&\x01.json')
    changed = (folder / "env.json").read_text().replace("db.json", 'd\\"<&\\u0001.json')
    (folder / "env.json").write_text(changed)
    passing = {"from": "shop/web", "to": "shop/db", "service": "tcp/5432", "expect": "allow"}
    (folder / "tests.json").write_text(json.dumps([passing, {**passing, "expect": "deny"}]))
    said = vpcctl("verify", "tests.json", *HERE, "--junit", "results.xml")
    assert (said.status, said.err.splitlines()[-1]) == (1, "1 passed, 1 failed")
    suite = ElementTree.parse(folder / "results.xml").getroot()
    assert suite.attrib == {"name": "vpcctl verify", "tests": "2", "failures": "1"}
    good, bad = suite.findall("testcase")
    assert (good.get("name"), good.find("failure")) == ("shop/web → shop/db tcp/5432: allow", None)
    assert (
        bad.find("failure").get("message") == 'expected deny; allowed by d"<&\N{REPLACEMENT CHARACTER}.json#/ingress/0'
    )
    assert vpcctl("verify", "tests.json", *HERE, "--junit", "no/such/place.xml").status == 2


def test_verify_judges_the_present_world(vpcctl, folder: Path, recorded: Path) -> None:
    (folder / "tests.json").write_text(json.dumps(RIGHT))
    assert vpcctl("verify", "tests.json").status == 0


@pytest.mark.parametrize(
    ("document", "messages"),
    [
        ({}, ["tests.json#: {} is not an array of assertions"]),
        ([{"from": "shop/web"}], [
            "tests.json#/0: the field 'to' is missing: an end of a flow is expected",
            "tests.json#/0: the field 'service' is missing: a service is expected",
            "tests.json#/0: the field 'expect' is missing: an expectation (allow or deny) is expected",
        ]),
        ([{**RIGHT[0], "expect": "allwo"}],
         ["tests.json#/0/expect: \"allwo\" is not an expectation (allow or deny); did you mean 'allow'?"]),
        ([{**RIGHT[0], "form": 1}], ["tests.json#/0/form: unknown field 'form'; did you mean 'from'?"]),
        ([RIGHT[0], assertion("shop/db", "tpc/1", "deny")],
         ["tests.json#/1: \"tpc/1\" is not a service: did you mean 'tcp'?; a service is"]),
        ([assertion("shop/dbb", "tcp/1", "deny")],
         ["tests.json#/0: instance or subnet 'dbb' not found in VPC shop; did you mean 'db'?"]),
    ],
)  # fmt: skip
def test_verify_refuses_wrong_tests_and_says_where(vpcctl, folder: Path, document: object, messages: list[str]) -> None:
    (folder / "tests.json").write_text(json.dumps(document))
    said = vpcctl("verify", "tests.json", *HERE)
    assert (said.status, said.out) == (2, "")
    lines = said.err.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(f"vpcctl: {message}")


# -- environments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [("explain", "shop/web", "shop/db", "tcp/1"), ("matrix", "--vpc", "shop"), ("verify", "tests.json")],
)
def test_a_wrong_environment_is_told_by_every_command(vpcctl, folder: Path, command: tuple) -> None:
    (folder / "tests.json").write_text(json.dumps(RIGHT))
    absent = vpcctl(*command, "--environment", "none.json")
    assert (absent.status, absent.err) == (2, "vpcctl: none.json: cannot be read (No such file or directory)\n")
    (folder / "db.json").write_text('{"ingress": [{"action": "alow"}]}')
    wrong = vpcctl(*command, *HERE)
    assert wrong.status == 2
    assert wrong.err.startswith("vpcctl: db.json#/ingress/0/action: an action (allow, deny or reject) is expected\n")


def test_the_commands_need_neither_root_nor_a_state() -> None:
    """In a process of its own, as nobody where that can be chosen: nothing is written, no kernel is asked."""
    # Unlike pytest's, this folder may be entered by anybody.
    with tempfile.TemporaryDirectory() as place, nobody.packages() as source:
        folder = Path(place)
        folder.chmod(0o755)
        write(folder)
        python = nobody.words(source) if os.geteuid() == 0 else [sys.executable]

        def run(*command: str) -> subprocess.CompletedProcess:
            words = [*python, *command]
            return subprocess.run(
                words, cwd=folder, input=json.dumps(RIGHT), capture_output=True, text=True, check=False
            )

        if run("-c", "import vpcctl").returncode:
            pytest.skip(f"no other user exists, or nobody else may use {nobody.PYTHON}")
        for command in (
            ("explain", "shop/web", "shop/db", "tcp/5432"),
            ("matrix", "--vpc", "shop"),
            ("verify", "-"),
        ):
            done = run("-m", "vpcctl", "--state-dir", str(folder / "state"), *command, *HERE)
            assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr
        assert sorted(path.name for path in folder.iterdir()) == ["db.json", "env.json"]


# -- apply-policy --dry-run ----------------------------------------------------------------------------------------


def content(state: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in state.rglob("*") if path.is_file()}


def test_a_dry_run_says_what_changes_and_changes_nothing(vpcctl, folder: Path, recorded: Path) -> None:
    before = content(recorded)
    rules = [{"action": "allow", "protocol": "tcp", "port": [80, 5432], "source": "subnet:web"},
             {"action": "deny", "protocol": "udp"}]  # fmt: skip
    (folder / "new.json").write_text(json.dumps({"subnet": "db", "ingress": rules, "default": {"ingress": "deny"}}))
    said = vpcctl("apply-policy", "--dry-run", "new.json")
    assert (said.status, said.err) == (0, "nothing was changed\n")
    assert said.out.splitlines() == [
        "newly allowed:",
        "  web → db tcp/80",
        "without effect:",
        "  new.json#/ingress/1 changes nothing: without it the default would decide the same",
    ]
    assert content(recorded) == before


def test_a_dry_run_of_what_holds_already_says_so(vpcctl, folder: Path, recorded: Path) -> None:
    said = vpcctl("apply-policy", "--vpc", "shop", "--subnet", "db", "--dry-run", "db.json")
    assert said.status == 0
    assert said.out.splitlines() == [
        "no traffic is newly allowed or newly denied",
        "without effect:",
        "  db.json#/ingress/1 changes nothing: without it the default would decide the same",
    ]


def test_a_dry_run_tells_the_implied_default(vpcctl, folder: Path, recorded: Path) -> None:
    (folder / "new.json").write_text('{"subnet": "web", "ingress": []}')
    said = vpcctl("apply-policy", "--dry-run", "new.json")
    assert said.status == 0
    assert said.out.splitlines() == [
        "newly denied:", "  web → web any", "  db → web any", "  internet → web (10.0.1.2) tcp/80",
        "  host → web (10.0.1.2) tcp/80",
    ]  # fmt: skip
    assert said.err.startswith("warning: new.json#: ingress of shop/web denies traffic that no rule matches (implicit;")


def test_a_dry_run_judges_several_files_together(vpcctl, folder: Path, recorded: Path) -> None:
    """What one file opens and another closes is not open."""
    (folder / "web.json").write_text('{"subnet": "web", "egress": [], "default": {"egress": "deny"}}')
    (folder / "db.json").write_text(
        '{"subnet": "db", "ingress": [{"action": "allow"}], "default": {"ingress": "deny"}}'
    )
    said = vpcctl("apply-policy", "--dry-run", "web.json", "--file", "db.json")
    assert said.out.splitlines() == [
        "newly allowed:", "  db → db any", "newly denied:", "  web → web any", "  web → db tcp/5432",
        "  web → internet any",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"subnet": "dbb", "ingress": []}, "new.json#/subnet: subnet 'dbb' not found; did you mean 'db'?"),
        ({"subnet": "db", "ingress": [{"action": "allow", "source": "subnet:wbe"}]},
         "new.json#/ingress/0/source: subnet:wbe names nothing: no subnet 'wbe' is known here; did you mean 'web'?"),
        ({"subnet": "db", "ingress": [{"action": "alow"}]}, 'new.json#/ingress/0/action: "alow" is not '),
    ],
)  # fmt: skip
def test_a_dry_run_refuses_what_apply_would_refuse(
    vpcctl, folder: Path, recorded: Path, document: dict, message: str
) -> None:
    before = content(recorded)
    (folder / "new.json").write_text(json.dumps(document))
    said = vpcctl("apply-policy", "--dry-run", "new.json")
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"vpcctl: {message}")
    assert content(recorded) == before


def test_a_dry_run_needs_a_file(vpcctl, recorded: Path) -> None:
    said = vpcctl("apply-policy", "--dry-run")
    assert said.status == 2
    assert "name a policy file" in said.err
