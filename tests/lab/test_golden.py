"""Every case of `rulesets/` in the kernel: its packets are sent for real and judged where they should arrive."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden import MACHINE, Case, Line, cases
from vpcctl.compiler.nft import comment_text
from vpcctl.lab import HOST, Lab
from vpcctl.model.network import uplink_pair
from vpcctl.model.oracle import Flow, published_at
from vpcctl.model.policy import ICMP, TCP

PROGRAM = Path(__file__).with_name("golden_run.py")
CASES = cases("golden", "library")
ECHO_REQUEST = 8
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")


class Trial:
    """A process in a lab that tries one case after the other; started again if a case was too much for it."""

    def __init__(self, lab: Lab):
        self._lab = lab
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, case: Case) -> dict[str, Any]:
        """What the kernel did with the case's packets; AssertionError if it could not be tried."""
        if self._process is None:
            # What it says against a case is shown with the test that failed.
            self._process = self._lab.popen([sys.executable, str(PROGRAM)], stderr=None)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{case.folder}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._process = None
        assert answer, "the case could not be tried"
        return json.loads(answer)


@pytest.fixture(scope="module")
def trial(module_lab: Lab) -> Trial:
    """Tries cases in a lab whose neighbour and internet try to reach into VPCs by way of the host."""
    for station in ("internet", "neighbour"):
        for prefix in PRIVATE:
            module_lab.run(["ip", "route", "add", prefix, "via", str(HOST)], netns=station)
    return Trial(module_lab)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_agrees_with_every_packet(trial: Trial, name: str) -> None:
    case = CASES[name]
    said = trial(case)
    lines = case.lines
    wrong = {
        str(line): problem
        for line, result in zip(lines, said["results"], strict=True)
        if (problem := disagreement(case, line, result))
    }
    assert not wrong
    unmarked = {comment_text(line.rule) for line in lines if line.rule and not line.by_default}
    assert unmarked <= set(said["counted"])


@pytest.mark.parametrize("name", cases("golden"))
def test_nft_takes_the_golden_text(module_lab: Lab, name: str) -> None:
    for path in sorted(CASES[name].folder.glob("*.nft")):
        module_lab.run(["nft", "-c", "-f", str(path)])


def disagreement(case: Case, line: Line, result: dict[str, Any]) -> str:
    """What the kernel did otherwise, in words."""
    if line.expect == "deny" and has_a_twin(case, line):
        return "" if result["seen_from"] == "None" else f"{result}, and it went to another VPC"
    if result["verdict"] != line.expect:
        return f"{result}, and {line.expect} is expected"
    for field, expected in expectations(case, line).items():
        if result[field] not in expected:
            return f"{field} is {result[field]}, and {' or '.join(expected)} is expected"
    return ""


def expectations(case: Case, line: Line) -> dict[str, tuple[str, ...]]:
    """What else the verdict means: whom the receiver sees, and what the sender hears."""
    flow = line.flow
    source, target = str(flow.source.address), str(flow.destination.address)
    if flow.source.vpc is None:
        target = str(HOST)  # where ports are published
    if line.expect == "allow":
        seen = source if flow.destination.vpc else str(HOST)
        if flow.source.vpc and (called := published_at(case.world, flow, MACHINE)):
            # The host sends it on, from its end of the uplink.
            seen = str(uplink_pair(case.world.transit, called[0].index)[0])
        if flow.source.vpc is None and (MACHINE.has(flow.source.address) or flow.source.address in case.world.transit):
            # An answer to the host is translated after it was captured.
            return {"seen_from": (seen,)}
        if _calls_itself(case, flow):
            return {"seen_from": (seen,)}
        return {"seen_from": (seen,)} | answers(flow.protocol, flow.port, target)
    if line.expect == "reject":
        by_target = {"answered_by": (target,)} if flow.protocol == TCP else {}
        return {"answered": ("reset" if flow.protocol == TCP else "icmp-prohibited",)} | by_target
    return {"answered": ("none",)}


def _calls_itself(case: Case, flow: Flow) -> bool:
    """Does an instance call its own published port at the host?  Then it also captures its own answer."""
    called = published_at(case.world, flow, MACHINE) if flow.source.vpc else None
    return called is not None and flow.source.address in called[0].instance(called[1].instance).addresses


def answers(protocol: int, port: int | None, target: str) -> dict[str, tuple[str, ...]]:
    """What answers a flow that passed, where that is sure: replies pass, whatever the policies say."""
    if protocol == TCP:
        return {"answered": ("reset", "reply"), "answered_by": (target,)}
    if (protocol, port) == (ICMP, ECHO_REQUEST):
        return {"answered": ("reply",), "answered_by": (target,)}
    return {}


def has_a_twin(case: Case, line: Line) -> bool:
    """Is the address that is called somebody's in the caller's own VPC too, who may well answer?"""
    flow = line.flow
    if flow.source.vpc is None or flow.source.vpc == flow.destination.vpc:
        return False
    return any(flow.destination.address in one.addresses for one in case.world.vpc(flow.source.vpc).instances)
