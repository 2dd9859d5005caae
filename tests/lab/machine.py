"""What the scenario tests do with a lab: run commands in it, write files into it, and take a picture of its host."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from tests.lab.traffic import eventually
from vpcctl.lab import INTERNET, STATE_DIR, Lab

# The command line many times over in one process: what takes a new process a quarter of a second takes it 20 ms.
SCRIPT = """
import sys
from vpcctl.cli import commands
for line in sys.argv[1:]:
    commands.main(["-q", *line.split()], prog_name="vpcctl", standalone_mode=False)
"""
# Commands that may fail, each with its standard input; after each, what the state file holds.
TRY_ALL = """
import io, json, pathlib, sys, traceback
from vpcctl.cli import main
cases, state, answers, real = json.load(sys.stdin), pathlib.Path(sys.argv[1]), [], sys.stdout
for words, given in cases:
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(given), io.StringIO(), io.StringIO()
    try:
        main(words)
    except SystemExit as end:
        answer = [end.code, sys.stdout.getvalue(), sys.stderr.getvalue()]
    except Exception:
        traceback.print_exc(file=sys.__stderr__)
        raise SystemExit(1)
    try:
        kept = state.read_text()
    except (OSError, UnicodeDecodeError):
        kept = ""
    answers.append([*answer, kept])
print(json.dumps(answers), file=real)
"""
# Every setting of the host's network, as one process can read them all; those that nobody may read stand as None.
SETTINGS = """
import json, os
found = {}
for folder, _, files in os.walk("/proc/sys/net"):
    for file in files:
        place = os.path.join(folder, file)
        try:
            with open(place) as opened:
                found[place] = opened.read()
        except OSError:
            found[place] = None
print(json.dumps(found))
"""
OUR_PYTHON = (sys.executable,)
# An environment with something of nearly every kind.
TWO_VPCS = {
    "vpcs": [
        {
            "name": "shop",
            "cidr": "10.0.0.0/16",
            "subnets": [
                {"name": "web", "cidr": "10.0.1.0/24", "type": "public"},
                {
                    "name": "db",
                    "cidr": "10.0.2.0/24",
                    "type": "private",
                    "policy": {"ingress": [{"action": "allow", "protocol": "udp", "port": 5000}]},
                },
            ],
            "publish": [{"protocol": "tcp", "port": 8080, "instance": "web", "target_port": 80}],
        },
        {
            "name": "billing",
            "cidr": "10.9.0.0/16",
            "subnets": [{"name": "ledger", "cidr": "10.9.1.0/24", "type": "private"}],
        },
    ],
    "peerings": [["shop", "billing"]],
}
# What the kernel counts by itself.
COUNTED = "/proc/sys/net/netfilter/nf_conntrack_count"


def run_all(lab: Lab, commands: Iterable[str]) -> str:
    """Run commands of ours one after the other, as a script of them would; what they print."""
    return lab.python(SCRIPT, *commands).stdout


def write(lab: Lab, name: str, document: object) -> str:
    """Write a file into the lab, text as it is and anything else as JSON; its path there."""
    text = document if isinstance(document, str) else json.dumps(document)
    lab.run(["sh", "-c", 'cat >"/run/$0"', name], input=text)
    return f"/run/{name}"


def apply(lab: Lab, document: object, *words: str) -> float:
    """Apply a policy by the command line; the moment of its return."""
    lab.vpcctl("apply-policy", *words, "-", input=json.dumps(document))
    return time.monotonic()


def attempt(lab: Lab, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of ours that may fail; what it says to people must be sentences, never a traceback."""
    result = lab.run([sys.executable, "-m", "vpcctl", *words], check=False, **options)
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode in (0, 1, 2, 3, 4, 5, 6, 77, 126, 127, 130, 141), (result.returncode, result.stderr)
    return result


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended: `state` is what the state file held then, empty if it could not be read."""

    status: int
    output: str
    complaint: str
    state: str


def try_all(
    lab: Lab, cases: Iterable[tuple[list[str], str]], prefix: Sequence[str] = (), python: Sequence[str] = OUR_PYTHON
) -> list[Answer]:
    """Run commands, each with its standard input, in one process that is started with `prefix` in front of it."""
    words = [*prefix, *python, "-c", TRY_ALL, f"{STATE_DIR}/state.json"]
    result = lab.run(words, input=json.dumps(list(cases)), timeout=120)
    assert result.stderr == ""
    return [Answer(*one) for one in json.loads(result.stdout)]


def state_file(lab: Lab) -> str:
    """The state file's content; empty if it does not exist."""
    return lab.run(["cat", f"{STATE_DIR}/state.json"], check=False).stdout


def settle(lab: Lab, *namespaces: str) -> None:
    """Wait until the host, and what is in `namespaces`, has finished starting up, and the host has met its neighbour.

    Addresses are tentative at first (RFC 4862), and a link tells that it is up some time after it is (`linkwatch`).
    """
    lab.run(["ping", "-n", "-c", "1", "-W", "5", str(INTERNET)])
    for netns in (None, *namespaces):
        assert eventually(lambda netns=netns: _settled(lab, netns))


def _settled(lab: Lab, netns: str | None) -> bool:
    return not any(
        "UP" in link["flags"]
        and (link["operstate"] not in ("UP", "UNKNOWN") or any("tentative" in one for one in link["addr_info"]))
        for link in seen(lab, "address", netns=netns)
    )


def photograph(lab: Lab) -> dict[str, Any]:
    """The lab host's network: all that a program could have left changed.

    States of neighbours come and go by themselves, as do the kernel's notes on multicast; they are left out.
    """
    settings = json.loads(lab.python(SETTINGS).stdout)
    settings.pop(COUNTED, None)
    return {
        "settings": settings,
        "links": seen(lab, "-details", "link"),
        "addresses": seen(lab, "address"),
        "routes": {family: seen(lab, family, "route", "show", "table", "all") for family in ("-4", "-6")},
        "rules": {family: seen(lab, family, "rule") for family in ("-4", "-6")},
        "neighbours": sorted(
            (one["dst"], one["dev"], one.get("lladdr", ""))
            for one in seen(lab, "neighbour", "show", "nud", "all")
            if not ip_address(one["dst"]).is_multicast
        ),
        "ruleset": lab.run(["nft", "list", "ruleset"]).stdout,
        "namespaces": lab.run(["ls", "/run/netns"]).stdout.split(),
    }


def seen(lab: Lab, *words: str, netns: str | None = None) -> list[dict[str, Any]]:
    """What ip(8) shows, as JSON, without the bridges' running timers."""
    return _still(json.loads(lab.run(["ip", "-json", *words], netns=netns).stdout or "[]"))


def _still(shown: Any) -> Any:
    if isinstance(shown, dict):
        return {key: _still(value) for key, value in shown.items() if not key.endswith("_timer")}
    return list(map(_still, shown)) if isinstance(shown, list) else shown


def differences(before: dict[str, Any], after: dict[str, Any], place: str = "") -> list[str]:
    """Where two pictures differ, in words."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [
            line for key in keys for line in differences(before.get(key), after.get(key), f"{place}/{key}".strip("/"))
        ]
    return [f"{place}: {before!r} became {after!r}"]
