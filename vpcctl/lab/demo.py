"""The whole thing at work: ``./run demo``, which is ``vpcctl lab -- python -m vpcctl.lab.demo [POLICIES]``.

A three-tier shop, a second VPC with the same prefix and a third one are built, served in, guarded, peered and taken
down.  Each line is a command as one would type it and what came of it.  ✓ says that this is what should come; if
anything else did, the exit status is 1.  What passes is shown by real connections.  What must not pass is shown by a
client that gets no answer and a server that heard nothing, which answers another client at the same time.

POLICIES is a folder to take the three tiers' policies from, in place of the library's.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vpcctl import lab
from vpcctl.kernel import settings
from vpcctl.lab import demo_http
from vpcctl.lab.demo_stage import DemoStage, Stop, Trial, asking, run, sent_times, title

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path("rulesets/library/three-tier")

# What a VPC might leave behind on the host, each with the command that lists it.
HOST_LISTINGS = {
    "namespaces": "ip netns",
    "links": "ip -oneline link",
    "addresses": "ip -4 -oneline address",
    "routes": "ip -4 route show table all",
    "tables": "nft list ruleset",
}
# Settings that are momentary counts, which no program sets.
COUNTS = {"nf_conntrack_count"}


# --- What is shown ---------------------------------------------------------------------------------------------------


def build(stage: DemoStage) -> None:
    title("Three tiers, and a second VPC with the very same prefix")
    for command in (
        "create-vpc --name shop --cidr 10.0.0.0/16",
        "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
        "create-subnet --vpc shop --name app --cidr 10.0.2.0/24 --type private",
        "create-subnet --vpc shop --name db --cidr 10.0.3.0/24 --type private",
        "create-instance --vpc shop --subnet web --name web-2",
        "create-nat-gateway --vpc shop --subnet app",
        "create-vpc --name twin --cidr 10.0.0.0/16",
        "create-subnet --vpc twin --name web --cidr 10.0.1.0/24 --type public",
        "create-subnet --vpc twin --name app --cidr 10.0.2.0/24 --type private",
    ):
        stage.do(f"vpcctl {command}")
    for instance, port, page in (
        ("shop/web", 8443, "web of shop"),
        ("shop/app", 8080, "app of shop"),
        ("shop/db", 5432, "db of shop"),
        ("twin/web", 8443, "web of twin"),
    ):
        stage.serve(instance, port, page)


def without_policy(stage: DemoStage) -> None:
    title("Before any policy: open inside, and every VPC for itself")
    stage.try_all(
        asking("shop/web", "10.0.3.2:5432", "db of shop"),
        asking("shop/app", "10.0.1.2:8443", "web of shop"),
        asking("twin/app", "10.0.1.2:8443", "web of twin"),
        asking("twin/web", "10.0.3.2:5432", None),
    )


def peered(stage: DemoStage) -> None:
    title("A peering with a third VPC: routed, and only where prefixes can be told apart")
    stage.do("vpcctl create-vpc --name billing --cidr 10.50.0.0/16")
    stage.do("vpcctl create-subnet --vpc billing --name jobs --cidr 10.50.1.0/24 --type private")
    stage.try_all(asking("billing/jobs", "10.0.2.2:8080", None))
    stage.do("vpcctl create-peering --vpc1 shop --vpc2 billing")
    stage.try_all(asking("billing/jobs", "10.0.2.2:8080", "app of shop"))
    stage.refused("vpcctl create-peering --vpc1 shop --vpc2 twin", 4, "a router cannot tell them apart")


def with_policies(stage: DemoStage) -> None:
    title("The library's policies: web asks app, app asks db and fetches updates, and nothing else")
    stage.enter(stage.policies)
    stage.do("vpcctl apply-policy --vpc shop web.json app.json db.json")
    stage.try_all(
        asking("shop/web", "10.0.2.2:8080", "app of shop"),
        asking("shop/app", "10.0.3.2:5432", "db of shop"),
        asking("shop/app", f"{lab.INTERNET}:443", f"from {lab.HOST}"),
        asking("shop/web", "10.0.3.2:5432", None),
        asking("shop/web-2", "10.0.1.2:8443", None),
        asking("shop/db", "10.0.2.2:8080", None),
        asking("shop/web", f"{lab.INTERNET}:80", None),
        asking("billing/jobs", "10.0.2.2:8080", None),
    )


def published(stage: DemoStage) -> None:
    title("A published port, and a neighbour on the LAN who tries to get around the host")
    neighbour = f"nsenter --net={lab.RUN_LAB}/neighbour"
    stage.do("vpcctl publish-port --vpc shop --instance web --port 443 --target-port 8443")
    # 100.64.0.1 is the first VPC's end of its uplink, to which the host does have a route.
    for destination in ("10.0.0.0/16", "100.64.0.0/16"):
        stage.do(f"{neighbour} ip route add {destination} via {lab.HOST}")
    stage.try_all(
        Trial(f"{neighbour} get {lab.HOST}:443", "web of shop"),
        Trial(f"{neighbour} get 10.0.1.2:8443", None),
        Trial(f"{neighbour} get 100.64.0.1:443", None),
    )


def tightened(stage: DemoStage) -> None:
    title("A policy that is tightened under two live downloads, while the server keeps sending")
    kept, cut = (stage.watch(instance, "10.0.2.2:8080") for instance in ("shop/web", "shop/web-2"))
    policy = {"subnet": "app", "ingress": [{"action": "allow", "source": "instance:web"}]}
    changed = stage.do("vpcctl apply-policy --vpc shop -", json.dumps(policy, separators=(",", ":")))
    kept.comes_to(lambda lines: sum(sent > changed for sent in sent_times(lines)) >= demo_http.PIECES_PER_SECOND)
    for name, client, goes_on in (("web", kept, True), ("web-2", cut, False)):
        times = sent_times(client.lines)
        after = sum(sent > changed for sent in times)
        words = f"{len(times) - after} pieces before the change, {after} of those sent after it"
        stage.say(f"(the download of {name} {'goes on' if goes_on else 'stopped'})", (after > 0) == goes_on, words)


def taken_down(stage: DemoStage, before: dict[str, list[str]]) -> None:
    title("All taken down: the host is as it was")
    stage.do("vpcctl status")
    during = host_now()
    stage.do("vpcctl destroy --all --yes")
    after = host_now()
    for name, command in HOST_LISTINGS.items():
        stage.say(command, *comparison(before[name], during[name], after[name]))
    # Settings that came with a kernel module, loaded meanwhile, need not be restored.
    known = set(map(setting_name, before["settings"]))
    states = [[line for line in state["settings"] if setting_name(line) in known] for state in (before, during, after)]
    stage.say(f"({len(known)} settings under net/)", *comparison(*states))


def comparison(before: list[str], during: list[str], after: list[str]) -> tuple[bool, str]:
    """Is it as before, and in words, which tell whether there was anything to remove at all."""
    if after != before:
        left, lost = (
            [line for line in one if line.strip() and line not in other]
            for one, other in ((after, before), (before, after))
        )
        return False, f"left behind: {left[0]}" if left else f"lost: {lost[0]}" if lost else "in another order"
    ours = len(set(during) - set(before))
    return True, f"as before; {ours} {'lines' if ours > 1 else 'line'} came and went" if ours else "as before"


def host_now() -> dict[str, list[str]]:
    """The host's network as it is, as lines that can be compared."""
    found = {name: run(command).stdout.splitlines() for name, command in HOST_LISTINGS.items()}
    return found | {"settings": list(_settings())}


def _settings() -> Iterator[str]:
    for path in sorted(settings.ROOT.glob("net/**/*")):
        if path.is_file() and path.name not in COUNTS:
            try:
                yield f"{path.relative_to(settings.ROOT)} = {path.read_text().strip()}"
            except OSError:  # some are there to be written only
                continue


def setting_name(line: str) -> str:
    """The part of a setting's line that stays."""
    return line.partition(" = ")[0]


# --- Running it ------------------------------------------------------------------------------------------------------


@contextmanager
def programs_on_path() -> Iterator[None]:
    """`serve`, `get` and `watch` as commands; they go with the lab."""
    with tempfile.TemporaryDirectory(dir=lab.RUN_LAB) as directory:
        for name in ("serve", "get", "watch"):
            program = Path(directory, name)
            words = shlex.join([sys.executable, "-P", demo_http.__file__, name])
            program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            program.chmod(0o755)
        os.environ["PATH"] = f"{directory}{os.pathsep}{os.environ['PATH']}"
        yield


def obstacle(policies: Path) -> str:
    """Why the demo cannot run here, in a sentence; empty if it can."""
    if os.environ.get("VPCCTL_LAB") != "1":
        return "it makes and destroys VPCs, and so runs in a lab alone: `./run demo`"
    if run("vpcctl list-vpcs --json").stdout.strip() != "[]":
        return "this lab has VPCs, and the demo destroys all at its end; `./run demo` opens a fresh lab"
    if not (ROOT / policies).is_dir():
        return f"{policies} is missing: it comes with a checkout of the project, not with an installed package"
    return ""


def perform(stage: DemoStage) -> None:
    """All sections in their order, up to a step that fails and is needed by the others."""
    before = host_now()
    try:
        for section in (build, without_policy, peered, with_policies, published, tightened):
            section(stage)
        taken_down(stage, before)
    except Stop:
        print("The demo ends here: without this step the others mean nothing.")
    finally:
        stage.end()
        run("vpcctl destroy --all --yes")


def main(policies: Path = LIBRARY) -> int:
    """Run the demo; 0 if every step came out as it should, 1 if one did not, 2 where it cannot run."""
    if reason := obstacle(policies):
        print(f"demo: {reason}", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a program of our own: nobody replaced it
    print("Each line: a command as typed, and what came of it (✓ as it should, ✗ not).")
    print("`serve` is a small web server, `get` and `watch` are its clients; all else is on your machine too.")
    stage, started = DemoStage(policies), time.monotonic()
    with programs_on_path():
        perform(stage)
    seconds = time.monotonic() - started
    print(f"\n{stage.steps - stage.failures} of {stage.steps} steps came out as they should, in {seconds:.0f} s.")
    return 1 if stage.failures else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
