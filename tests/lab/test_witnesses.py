"""Three witnesses of what a policy means: the oracle, the packet space and the kernel."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("VPCCTL_TEST_WITNESS_SECONDS", "15"))


@pytest.mark.parametrize("seed", [1, 2])
def test_oracle_packet_space_and_kernel_agree_on_random_worlds(lab, seed):
    """One witness packet from every class, for as many random worlds as the time allows."""
    program = [sys.executable, "-m", "tests.lab.witness_run", str(seed), str(SECONDS)]
    done = lab.run(program, cwd=ROOT, timeout=SECONDS * 20 + 120)
    counts = json.loads(done.stdout)
    assert counts["worlds"] >= 5
    assert 0 < counts["passed"] < counts["flows"]
