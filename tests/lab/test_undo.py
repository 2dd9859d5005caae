"""Undoing with real packets: flows that both policies allow lose nothing, and what only the undone change allowed ends.

Changes that wait to be confirmed are in test_confirmation.py.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.machine import differences, photograph, run_all
from tests.lab.test_crashes import ERRORS_OF, TRACED, injecting, points
from tests.lab.traffic import assert_moving, assert_nothing_lost, eventually, reaches, silent, start_flow, stations
from tests.lab.warm import Warm
from vpcctl.lab import Lab

# Ports that both policies allow, and that the later one alone allows: one for flows, one for single packets.
KEPT, KEPT_TOO, NEW, NEW_TOO = 7001, 7002, 8001, 8002
LISTEN = "import socket, time; one = socket.create_server(('', 8080)); print(flush=True); time.sleep(600)"
BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name app --cidr 10.0.1.0/24 --type public",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
)


def guarded(*ports: int) -> str:
    rules = [{"action": "allow", "protocol": name, "port": list(ports)} for name in ("tcp", "udp")]
    return json.dumps({"vpc": "shop", "subnet": "db", "ingress": rules})


@pytest.fixture
def run(lab: Lab) -> Iterator[Warm]:
    run_all(lab, BUILD)
    with Warm(lab) as warm:
        warm("apply-policy -", input=guarded(KEPT, KEPT_TOO))
        yield warm


def test_undoing_cuts_what_is_no_longer_allowed_and_nothing_else(lab: Lab, run: Warm) -> None:
    with stations(lab, "shop-app", "shop-db") as (client, server):
        kept = [start_flow(name, client, server, "10.0.2.2", KEPT, name, rate=200, push=200) for name in ("tcp", "udp")]
        run("apply-policy -", input=guarded(KEPT, KEPT_TOO, NEW, NEW_TOO))
        added = [
            start_flow(f"new {name}", client, server, "10.0.2.2", NEW, name, rate=200, push=200)
            for name in ("tcp", "udp")
        ]
        assert_moving([*kept, *added], time.monotonic())
        run("undo")
        moment = time.monotonic()
        time.sleep(0.1)
        assert_moving(kept, moment + 0.3)
        late = [end.last - moment for flow in added for end in flow.counts()]
        assert all(one <= 0 for one in late), f"sent after the command, and arrived: {late}"
        # Undone once more it is allowed again, and then cut again.
        server.listen()
        run("undo")
        assert_moving(kept, time.monotonic())
        assert all(reaches(client, server, "10.0.2.2", NEW_TOO, name) for name in ("tcp", "udp"))
        run("undo --to 4")

        def canary() -> bool:
            return reaches(client, server, "10.0.2.2", KEPT_TOO, "udp")

        assert silent(client, server, "10.0.2.2", NEW_TOO, canary, ("tcp", "udp")) == []
        assert_nothing_lost(kept)


def test_undoing_restores_exactly_what_was_there(lab: Lab, run: Warm) -> None:
    # The kernel is still checking whether its own IPv6 addresses are unique.
    eventually(lambda: "tentative" not in lab.run(["ip", "-6", "address"]).stdout)
    before, exported = photograph(lab), run("export").out
    number = json.loads(run("history --json").out)[-1]["number"]
    for words in (
        "create-vpc --name billing --cidr 10.9.0.0/16",
        "create-subnet --vpc billing --name ledger --cidr 10.9.1.0/24 --type public",
        "create-peering --vpc1 shop --vpc2 billing",
        "publish-port --vpc shop --instance app --port 8080",
        "create-nat-gateway --vpc shop --subnet db",
        "clear-policy --vpc shop --subnet db",
        "set-limits --vpc shop --max-flows 999",
    ):
        run(words)
    run(f"undo --to {number}")
    assert run("export").out == exported
    assert run("status").out == "in sync\n"
    after = photograph(lab)
    for picture in (before, after):
        # A generation never comes again, whatever is loaded.
        picture["ruleset"] = re.sub(r'(comment "vpcctl/\S+ [0-9a-f]+) [0-9]+"', r"\1", picture["ruleset"])
    assert differences(before, after) == []


def test_undoing_goes_on_in_the_instances_that_are_there(lab: Lab, run: Warm) -> None:
    """Only the instance that was deleted is another one: the programs of others keep their network."""
    with stations(lab, "shop-app", "shop-db") as (client, server):
        kept = start_flow("kept", client, server, "10.0.2.2", KEPT, "tcp", rate=200)
        run("create-instance --vpc shop --subnet app --name more")
        run("delete-instance --vpc shop --name more")
        undone = run("undo")
        assert "made anew: shop/more" in undone.err
        assert_moving([kept], time.monotonic())
        assert_nothing_lost([kept])
    assert lab.run(["ip", "netns", "exec", "shop-more", "ping", "-c1", "-W5", "10.0.1.1"]).returncode == 0


def test_who_is_in_the_way_is_named_and_nothing_is_changed(lab: Lab, run: Warm) -> None:
    run("publish-port --vpc shop --instance app --port 8080")
    run("unpublish-port --vpc shop --port 8080")
    exported = run("export").out
    listener = lab.popen([sys.executable, "-c", LISTEN])
    try:
        assert listener.stdout is not None
        listener.stdout.readline()
        ran = run("undo", status=4)
        assert "tcp/8080 is taken" in ran.err
        assert run("export").out == exported
    finally:
        listener.kill()
        listener.wait()
    run("undo")
    assert "8080" in run("export").out


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace(1) is not installed")
@pytest.mark.parametrize("how", ["signal=KILL", "error"])
def test_wherever_a_change_is_struck_the_history_leads_back(run: Warm, how: str) -> None:
    """At each call that writes something on disk: the entry is whole or not there, and the change can be undone."""
    words, document = "apply-policy -", guarded(KEPT, KEPT_TOO, NEW)
    before = run("export").out
    traced = ["-e", f"trace={TRACED}"]
    written = [
        point
        for point in points(run(words, input=document, strace=traced).calls)
        if point.call in ("pwrite64", "ftruncate", "fsync", "renameat") or ".log" in point.words
    ]
    assert any(".log" in point.words for point in written)
    after = run("export").out
    gaps = 0
    for point in written:
        run("undo")
        assert run("export").out == before
        last = json.loads(run("history --json").out)[-1]["number"]
        injected = how if how != "error" else f"error={ERRORS_OF[point.call]}"
        ran = run(words, input=document, strace=injecting(point, injected), status=None)
        assert "Traceback" not in ran.err, f"{point}\n{ran}"
        run("repair")
        told = json.loads(run("history --json").out)
        kept = [one["number"] for one in told if one["number"] > last]
        if "is not kept in the history" in ran.err:
            # The change is made nevertheless, and the way back ends here.
            assert (ran.status, kept, run("export").out) == (0, [], after), f"{point}\n{ran}"
            gaps += 1
            run("undo", status=4)
            run("apply-policy -", input=guarded(KEPT, KEPT_TOO))
            run("apply-policy -", input=document)
            continue
        made = run("export").out == after
        assert kept == ([last + 1] if made else []), f"{point}\n{ran}"
        if not made:
            run("apply-policy -", input=document)
    assert gaps == 0 or how == "error"
    assert gaps > 0 or how != "error"
