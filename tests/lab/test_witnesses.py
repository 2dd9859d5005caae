"""Three witnesses of what a policy means: the oracle, the packet space and the kernel."""

import json
import os
import sys
from pathlib import Path

import pytest

from vpcctl.lab import RUN_LAB

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("VPCCTL_TEST_WITNESS_SECONDS", "15"))

# Addresses of the host in the midst of the internet and elsewhere (`witness_run.HOSTS`).
HOST = (
    "link add docker0 type bridge",
    "address add 192.0.2.1/24 broadcast + dev docker0",
    "link set docker0 up",
    "address add 203.0.113.100/32 dev lo",
    "address add 203.0.113.200/32 dev eth0",
    "address add 203.0.113.216/29 dev lo",
)
# The internet has the whole prefix, except the address at which the host publishes ports (`worlds.PUBLISHED_AT`).
INTERNET = "route add 203.0.113.200/32 via 198.51.100.2 table local"


@pytest.mark.parametrize("seed", [1, 2])
def test_oracle_packet_space_and_kernel_agree_on_random_worlds(lab, seed):
    """One witness packet from every class, for as many random worlds as the time allows."""
    for words in HOST:
        lab.run(["ip", *words.split()])
    lab.run(["nsenter", f"--net={RUN_LAB}/internet", "ip", *INTERNET.split()])
    program = [sys.executable, "-m", "tests.lab.witness_run", str(seed), str(SECONDS)]
    done = lab.run(program, cwd=ROOT, timeout=SECONDS * 20 + 120)
    counts = json.loads(done.stdout)
    assert counts["worlds"] >= 5
    assert 0 < counts["passed"] < counts["flows"]
    assert counts["to the host"] > 0
    assert counts["by the host"] > 0
    assert counts["by a policy of a VPC"] > 0
    assert counts["to ports of the host"] > 0
