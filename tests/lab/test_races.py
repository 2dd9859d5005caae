"""Root in an instance may delete its link between any two requests of ours: that is an error of ours, no traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vpcctl.lab import Lab

PROGRAM = ["-m", "tests.lab.races_run"]
# Kinds of object that stand on the instance's link.
ON_THE_LINK = ("Veth", "LinkSetting", "Detour", "Port", "FdbEntry", "Neighbour", "Address", "LinkUp", "Route", "Open")


def test_a_link_that_goes_between_two_requests_is_an_error_of_ours(lab: Lab) -> None:
    """Each netlink request of each object, struck in turn (tests/lab/races_run.py)."""
    root = Path(__file__).parents[2]
    done = lab.run([sys.executable, *PROGRAM], cwd=root)
    told = json.loads(done.stdout)
    assert told["wrong"] == []
    # Strikes did meet what they are for.
    assert told["struck"]["ensure Veth"] >= 5
    assert {kind for kind in ON_THE_LINK if not told["struck"].get(f"ensure {kind}")} <= {"LinkSetting"}
