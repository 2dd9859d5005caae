"""The service that runs the agent: its unit, its installation, and a simulated boot."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.machine import TWO_VPCS, attempt, photograph, seen, settle
from tests.lab.traffic import Station, reaches, silent, stations
from tests.lab.warm import Warm
from vpcctl.kernel.service import NAME, OLDER, UNITS, unit
from vpcctl.lab import INTERNET, STATE_DIR, Lab

TARGET = UNITS / NAME
# root by its number alone: every capability is gone for good.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]


# --- The unit ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(lab: Lab) -> Iterator[Lab]:
    """A lab, whose directory of units is its own."""
    if not UNITS.is_dir():
        pytest.skip(f"this machine has no {UNITS}")
    before = sorted(os.listdir(UNITS))
    lab.run(["mountpoint", "-q", str(UNITS)])
    assert listed(lab) == []
    yield lab
    assert sorted(os.listdir(UNITS)) == before


def listed(lab: Lab) -> list[str]:
    return lab.run(["ls", "-A", str(UNITS)]).stdout.split()


def installed(lab: Lab, *words: str, **options: Any) -> dict[str, dict[str, str]]:
    """Install; the unit's sections."""
    said = lab.vpcctl(*words, "install-service", **options).stderr
    assert f"wrote {TARGET}\n" in said
    found = configparser.ConfigParser(interpolation=None)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read_string(lab.run(["cat", str(TARGET)]).stdout)
    return {name: dict(section) for name, section in found.items()}


def test_the_unit_comes_before_the_network_and_after_the_files(machine: Lab) -> None:
    section = installed(machine)
    assert {"network.target", "network-online.target"} <= set(section["Unit"]["Before"].split())
    assert "local-fs.target" in section["Unit"]["After"].split()
    assert not {"network.target", "network-online.target", "basic.target"} & set(section["Unit"]["After"].split())
    # Without this it would be ordered after sysinit.target and basic.target (systemd.service(5)).
    assert section["Unit"]["DefaultDependencies"] == "no"
    assert section["Unit"]["RequiresMountsFor"].split() == [str(STATE_DIR), "/run"]
    assert (section["Service"]["Type"], section["Service"]["Restart"]) == ("notify", "on-failure")
    assert section["Service"]["WatchdogSec"] == "2min"
    assert section["Install"]["WantedBy"] == "multi-user.target"


def test_systemd_finds_the_unit_valid(machine: Lab) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze(1) is not installed")
    installed(machine)
    verified = machine.run(["systemd-analyze", "verify", "--man=no", str(TARGET)], check=False)
    complaints = [line for line in verified.stderr.splitlines() if NAME in line]
    assert (verified.returncode, complaints) == (0, [])
    # It would complain.
    machine.run(["sed", "-i", "s/^ExecStart=.*/ExecStart=vanished repair/; s/^Type=.*/Typ=x/", str(TARGET)])
    verified = machine.run(["systemd-analyze", "verify", "--man=no", str(TARGET)], check=False)
    assert NAME in verified.stderr


def test_what_it_starts_is_this_program_by_its_whole_path_and_repairs(machine: Lab) -> None:
    """Run as systemd would: nothing in the environment but what the unit says, and no directory to begin from."""
    machine.vpcctl("--state-dir", "/run/chosen", "create-vpc", "--name", "shop", "--cidr", "10.0.0.0/16")
    service = installed(machine, "--state-dir", "/run/chosen")["Service"]
    program, *words = service["ExecStart"].split()
    assert os.path.isabs(program)
    assert words == ["agent"]
    machine.run(["ip", "netns", "delete", "shop-router"])
    assert attempt(machine, "--state-dir", "/run/chosen", "status").returncode == 3
    bare = ["env", "-i", "PATH=/usr/bin:/bin", service["Environment"], "timeout", "-k", "9", "6", program, *words]
    assert "repaired: namespace shop-router" in machine.run(bare, cwd="/", check=False).stderr
    assert attempt(machine, "--state-dir", "/run/chosen", "status").returncode == 0


def test_the_unit_gives_the_service_no_mounts_of_its_own(machine: Lab) -> None:
    """Namespaces are mounts, which all processes have to see (systemd.exec(5), sandboxing)."""
    own = (
        "Protect Private ReadOnly ReadWrite Inaccessible Bind Mount Root Temporary Dynamic Exec NoExec State Cache Logs"
    )
    found = [name for name in installed(machine)["Service"] if name.startswith(tuple(own.split()))]
    assert found == ["ExecStart"]


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        ((), {}, str(STATE_DIR)),
        ((), {"env": {"VPCCTL_STATE_DIR": "/run/of-environment"}}, "/run/of-environment"),
        (("--state-dir", "/run/of-option"), {}, "/run/of-option"),
        (("--state-dir", "of/option"), {"cwd": "/run"}, "/run/of/option"),
        (("--state-dir", "/run/100%h"), {}, "/run/100%%h"),
    ],
    ids=["default", "environment", "option", "relative", "percent"],
)
def test_the_unit_has_the_chosen_state_directory(
    module_lab: Lab, words: tuple[str, ...], options: dict[str, Any], expected: str
) -> None:
    """Asked of the text alone, for what is installed is this text."""
    code = "import pathlib, sys; from vpcctl.cli.session import Session; from vpcctl.kernel import service\n"
    code += "import os; print(service.unit(Session(*sys.argv[1:2] or [os.environ['VPCCTL_STATE_DIR']], 0).state_dir))"
    text = module_lab.python(code, *words[1:], **options).stdout
    assert f"\nEnvironment=VPCCTL_STATE_DIR={expected}\n" in text
    assert f"\nRequiresMountsFor={expected} /run\n" in text
    assert re.search("@[a-z_]+@", text) is None


def test_installing_again_changes_nothing_and_removing_leaves_nothing(machine: Lab) -> None:
    installed(machine)
    first = machine.run(["cat", str(TARGET)]).stdout
    installed(machine)
    assert machine.run(["cat", str(TARGET)]).stdout == first
    assert listed(machine) == [NAME]
    assert machine.run(["stat", "-c", "%a %u", str(TARGET)]).stdout == "644 0\n"
    assert f"removed {TARGET}\n" in machine.vpcctl("install-service", "--remove").stderr
    assert listed(machine) == []
    assert machine.vpcctl("install-service", "--remove").stderr == f"{TARGET} not found\n"
    installed(machine)
    assert f"removed {TARGET}\n" in machine.vpcctl("uninstall-service").stderr
    assert listed(machine) == []
    assert machine.vpcctl("uninstall-service").stderr == f"{TARGET} not found\n"


def test_a_dry_run_names_the_files_and_changes_nothing(machine: Lab) -> None:
    tried = json.loads(machine.vpcctl("install-service", "--dry-run", "--json").stdout)
    assert (tried["dry_run"], tried["changes"]) == (True, [{"sign": "+", "what": str(TARGET), "detail": ""}])
    assert machine.run(["test", "-e", str(TARGET)], check=False).returncode == 1
    done = json.loads(machine.vpcctl("install-service", "--json").stdout)
    assert (done["dry_run"], done["changes"]) == (False, tried["changes"])
    assert done["steps"][0] == f"wrote {TARGET}"
    assert machine.vpcctl("install-service", "--dry-run").stdout == "nothing to change\n"
    assert machine.vpcctl("uninstall-service", "--dry-run").stdout == f"- {TARGET}\n"
    assert machine.run(["test", "-e", str(TARGET)], check=False).returncode == 0
    assert json.loads(machine.vpcctl("uninstall-service", "--json").stdout)["changes"][0]["sign"] == "-"


def test_the_service_of_older_versions_is_replaced_and_one_of_that_name_that_is_not_ours_stays(machine: Lab) -> None:
    older, text = UNITS / OLDER, "[Unit]\nDescription=Restore the VPCs of vpcctl\n[Service]\nExecStart=vpcctl repair\n"
    machine.run(["sh", "-c", f"cat >{older}"], input=text)
    assert f"removed {older}\n" in machine.vpcctl("install-service").stderr
    assert listed(machine) == [NAME]
    machine.run(["sh", "-c", f"cat >{older}"], input=text.replace("of vpcctl", "of mine"))
    installed(machine)
    machine.vpcctl("uninstall-service")
    assert listed(machine) == [OLDER]
    machine.run(["sh", "-c", f"cat >{older}"], input=text)
    assert f"removed {older}\n" in machine.vpcctl("uninstall-service").stderr
    assert listed(machine) == []


def test_a_state_directory_that_no_unit_can_name_is_refused(machine: Lab) -> None:
    result = machine.vpcctl("--state-dir", "/run/two words", "install-service", status=4)
    assert "'/run/two words' has characters that a unit file cannot take" in result.stderr
    assert listed(machine) == []


def test_where_nothing_can_be_written_it_is_refused_politely(machine: Lab) -> None:
    words = [sys.executable, "-m", "vpcctl", "install-service"]
    machine.run(["chmod", "a-w", str(UNITS)])
    powerless = machine.run([*POWERLESS, *words], check=False)
    assert (powerless.returncode, powerless.stderr) == (77, f"vpcctl: cannot write {TARGET}; use sudo\n")
    machine.run(["mount", "-o", "remount,bind,ro", str(UNITS)])
    result = attempt(machine, "install-service")
    assert result.returncode == 5
    assert result.stderr.startswith(f"vpcctl: cannot write {TARGET}: ")
    assert "Read-only file system" in result.stderr
    assert listed(machine) == []
    machine.run(["mount", "-o", "remount,bind,rw", str(UNITS)])
    assert attempt(machine, "install-service").returncode == 0


# A systemctl(1) that notes what it is told, and fails if the file /run/broken is there.
SYSTEMCTL = """#!/bin/sh
echo "$@" >>/run/told
[ ! -e /run/broken ] || { echo "Failed to connect to bus" >&2; exit 1; }
"""


def test_where_systemd_runs_it_is_told_and_where_not_people_are(machine: Lab) -> None:
    said = machine.vpcctl("install-service").stderr
    assert said.splitlines()[1:] == [
        "systemd is not running here; run `systemctl daemon-reload` where it is",
        f"systemd is not running here; run `systemctl enable {NAME}` where it is",
        f"systemd is not running here; run `systemctl restart {NAME}` where it is",
    ]
    machine.run(["sh", "-c", "cat >/run/lab/bin/systemctl; chmod +x /run/lab/bin/systemctl"], input=SYSTEMCTL)
    machine.run(["mkdir", "-p", "/run/systemd/system"])
    assert machine.vpcctl("install-service").stderr.splitlines()[1:] == [
        "systemctl daemon-reload",
        f"systemctl enable {NAME}",
        f"systemctl restart {NAME}",
    ]
    machine.vpcctl("install-service", "--remove")
    assert machine.run(["cat", "/run/told"]).stdout.splitlines() == [
        "daemon-reload", f"enable {NAME}", f"restart {NAME}", f"disable --now {NAME}", "daemon-reload"
    ]  # fmt: skip
    machine.run(["touch", "/run/broken"])
    result = attempt(machine, "install-service")
    assert result.returncode == 5
    assert "systemctl daemon-reload failed: Failed to connect to bus" in result.stderr


def test_the_template_has_no_gap_left_and_no_path_of_this_machine() -> None:
    text = unit(Path("/var/lib/vpcctl"))
    assert re.search("@[a-z_]+@", text) is None
    assert text.count("/var/lib/vpcctl") == 2


# --- A boot -----------------------------------------------------------------------------------------------------------

SPACES = ("shop-router", "shop-web", "shop-db", "billing-router", "billing-ledger")
KEPT = ("ifname", "address", "operstate", "mtu", "ifalias", "altnames")


def booted(number: int) -> str:
    """A boot id (random(4))."""
    return f"00000000-0000-4000-8000-{number:012d}"


@contextlib.contextmanager
def boot(number: int) -> Iterator[tuple[Lab, Warm]]:
    """A lab with a boot id of its own, and a hand in it."""
    place = "/proc/sys/kernel/random/boot_id"
    with Lab() as lab:
        script = f"echo {booted(number)} >/run/boot_id; mount --bind /run/boot_id {place}; cat {place}"
        assert lab.run(["sh", "-c", script]).stdout.strip() == booted(number)
        with Warm(lab) as run:
            yield lab, run


@dataclass(frozen=True, slots=True)
class Past:
    """What was on a machine before it was booted: its state directory, what was made, and what was wanted."""

    directory: Path
    picture: dict[str, Any]
    environment: str


@pytest.fixture(scope="module")
def past(module_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Past:
    """The machine's first life; `module_lab` is there to skip where there can be no lab."""
    directory = tmp_path_factory.mktemp("past") / "state"
    with boot(1) as (lab, run):
        run(f"--state-dir {directory} apply -", input=json.dumps(TWO_VPCS))
        settle(lab, *SPACES)
        return Past(directory, picture(lab), run(f"--state-dir {directory} export").out)


@pytest.fixture
def directory(past: Past, tmp_path: Path) -> Path:
    """A state directory as the next boot finds it."""
    return Path(shutil.copytree(past.directory, tmp_path / past.directory.name))


def picture(lab: Lab) -> dict[str, Any]:
    """What was made, but for numbers that the kernel gives."""
    found: dict[str, Any] = {"namespaces": sorted(lab.run(["ls", "/run/netns"]).stdout.split())}
    for name in (None, *SPACES):
        rules = lab.run(["nft", "-s", "list", "ruleset"], netns=name).stdout
        found[name or "host"] = {
            "links": {one["ifname"]: {key: one.get(key) for key in KEPT} for one in seen(lab, "link", netns=name)},
            "addresses": lab.run(["ip", "-o", "-4", "address"], netns=name).stdout.split("\n"),
            "routes": lab.run(["ip", "route"], netns=name).stdout,
            "neighbours": sorted(
                lab.run(["ip", "neighbour", "show", "nud", "permanent"], netns=name).stdout.split("\n")
            ),
            "rules": re.sub(r"0x[0-9a-f]{8}|comment \"vpcctl/[^\"]*\"", "", rules),
        }
        if name is None:
            found["host"].pop("addresses")
            found["host"]["links"].pop("eth0")
        else:
            numbers = re.compile(r"^\d+: ")
            found[name]["addresses"] = [numbers.sub("", line) for line in found[name]["addresses"]]
    return found


def judged(lab: Lab) -> None:
    """The policy holds, seen where packets arrive, and what is allowed passes."""
    with stations(lab, "shop-web", "shop-db", "billing-ledger", "internet") as [web, db, ledger, internet]:
        for station in (db, internet, ledger):
            station.listen()
        assert reaches(web, db, "10.0.2.2", 5000, "udp")
        assert reaches(web, ledger, "10.9.1.2", 80, "tcp")
        assert reaches(web, internet, str(INTERNET), 443, "tcp")
        assert silent(web, db, "10.0.2.2", 23, lambda: reaches(web, db, "10.0.2.2", 5000, "udp")) == []
        assert silent(db, internet, str(INTERNET), 443, lambda: _heard(web, internet)) == []


def _heard(web: Station, internet: Station) -> bool:
    return reaches(web, internet, str(INTERNET), 443, "tcp")


def test_after_a_boot_repair_brings_everything_back_as_it_was(past: Past, directory: Path) -> None:
    ours = f"--state-dir {directory}"
    with boot(2) as (lab, run):
        bare = photograph(lab)
        assert (bare["namespaces"], bare["ruleset"]) == ([], "")
        assert {one["name"] for one in json.loads(run(f"{ours} list-vpcs --json").out)} == {"shop", "billing"}
        assert "namespace shop-router is absent" in run(f"{ours} status", status=3).out
        assert run(f"{ours} repair").err.startswith("resuming an interrupted change, or restoring after a reboot\n")
        assert run(f"{ours} status").out == "in sync\n"
        assert run(f"{ours} repair").err == "nothing to repair\n"
        assert run(f"{ours} export").out == past.environment
        settle(lab, *SPACES)
        assert picture(lab) == past.picture
        judged(lab)
        assert json.loads((directory / "state.json").read_text())["boot_id"] == booted(2)


def test_at_a_boot_no_link_comes_up_before_the_policy_is_in_force(past: Past, directory: Path) -> None:
    """The next command, which restores first, is killed ever later, and each time what stands then is looked at."""
    if shutil.which("strace") is None:
        pytest.skip("strace(1) is not installed")
    words, ran = [f"--state-dir {directory}", "create-instance --vpc shop --subnet web --name web-2"], []
    with boot(2) as (lab, run):
        found = []
        for number in range(90, 9000, 90):
            inject = ["-e", "trace=sendto", "-e", f"inject=sendto:signal=KILL:when={number}"]
            ran.append(run(" ".join(words), strace=inject, status=None))
            found.append(run.routers())
            if ran[-1].status != -9:
                break
        routers = [state for one in found for state in one.values() if state is not None]
        assert [state for state in routers if state[0] and not state[1]] == []
        # Some were seen when the policy was in force and no link was up yet.
        assert [[], True] in routers
        assert "after a reboot" in ran[0].err
        # One that was killed when all was made is carried out by the next, which then comes too late.
        assert ran[-1].status == 0 or "an instance web-2 already" in ran[-1].err, ran[-1]
        assert run(f"{words[0]} status").out == "in sync\n"
        assert {*SPACES, "shop-web-2"} == set(lab.run(["ls", "/run/netns"]).stdout.split())
        assert all(links and closed for links, closed in run.routers().values())
        judged(lab)
        # An open one would have been seen.
        lab.run(["nft", "flush", "ruleset"], netns="shop-router")
        assert run.routers()["shop-router"][1] is False
