"""What the documents show is so on a real kernel: commands as typed, the shapes of JSON, the way of a packet."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from vpcctl.lab import INTERNET, Lab, demo_http

ROOT = Path(__file__).parents[2]
HTTP = shlex.join([sys.executable, "-P", demo_http.__file__])
# Blocks that begin so are not typed in a lab: it is one already, and its internet has no repositories or packages.
NOT_IN_A_LAB = ("git clone", "./run", "sudo")

POLICIES = [
    {
        "subnet": "web",
        "ingress": [{"action": "allow", "protocol": "tcp", "port": 80}],
        "egress": [{"action": "allow"}],
        "default": {"ingress": "deny", "egress": "deny"},
    },
    {
        "subnet": "db",
        "ingress": [{"action": "allow", "protocol": "tcp", "port": 5432, "source": ["subnet:web", "vpc:billing"]}],
        "default": {"ingress": "deny"},
    },
]
BILLING_ALONE = {"subnet": "db", "ingress": [{"action": "allow", "source": "vpc:billing"}]}


def page(name: str) -> str:
    return (ROOT / name).read_text()


def fenced(text: str, language: str) -> list[tuple[str, str]]:
    """The blocks of one language: what stands behind the language, and the content."""
    return re.findall(rf"^```{language} ?([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# --- README ----------------------------------------------------------------------------------------------------------


def test_the_readmes_commands_work_as_typed_one_after_the_other(lab: Lab, tmp_path: Path) -> None:
    typed = [block for _, block in fenced(page("README.md"), "sh") if not block.startswith(NOT_IN_A_LAB)]
    assert len(typed) >= 7
    script = "".join(["trap 'kill $(jobs -p)' EXIT\n", *typed])  # or the server would keep our pipes open
    done = lab.run(["bash", "-euxc", script], cwd=tmp_path, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "app reaches db",
        "web does not reach db",
        "web does not reach db, and this is why",
        "refused, because web would reach db",
        "db does not reach the internet",
        "denied and logged",
        "the neighbour reaches web",
        "in sync",
    ):
        assert said in done.stdout.splitlines()
    assert "deny   db.json#/ingress/1 «web must ask app»" in done.stdout
    assert "denied, the kernel agrees" in done.stdout
    # The README says of this one that it comes.
    assert re.findall("warning: (.*)", done.stderr) == [
        "subnet web has no ingress policy, so everybody outside may use it"
    ]
    assert lab.run(["ip", "netns"]).stdout == ""


def test_the_repository_is_cloned_as_typed(tmp_path: Path) -> None:
    """Only the line that clones: test_demo.py runs the demonstration."""
    [block] = [block for _, block in fenced(page("README.md"), "sh") if block.startswith("git clone")]
    clone, *others = block.splitlines()
    assert others == ["./run demo"]
    trusting = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    surroundings = os.environ | trusting | {"REPOSITORY": str(ROOT)}
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, env=surroundings, capture_output=True, check=False).returncode:
        pytest.skip("not a git checkout")
    typed = ["bash", "-euc", f"{clone}\ntest -x run"]
    subprocess.run(typed, cwd=tmp_path, env=surroundings, check=True)


def test_each_line_of_the_readmes_policy_does_what_is_said_of_it(lab: Lab) -> None:
    text = re.search(r"cat > db.json <<'END'\n(.*?)^END$", page("README.md"), re.MULTILINE | re.DOTALL)
    assert text
    _shop(lab, json.loads(text[1]))
    lab.vpcctl("create-instance", "--vpc", "shop", "--subnet", "web", "--name", "web-2")
    assert _asked(lab, "shop/web-2", "shop/db", "icmp/echo-request") == (0, "db.json#/ingress/0")
    assert _asked(lab, "shop/web", "shop/db", "icmp/echo-request") == (0, "db.json#/ingress/0")
    assert _asked(lab, "shop/web", "shop/db", "tcp/5432") == (1, "db.json#/ingress/1")
    assert _asked(lab, "shop/web-2", "shop/db", "tcp/6005") == (0, "db.json#/ingress/2")
    assert _asked(lab, "shop/web-2", "shop/db", "tcp/22")[0] == 1
    assert _asked(lab, "shop/db", "shop/web-2", "tcp/80")[0] == 1


def _shop(lab: Lab, policy: Any) -> None:
    for command in (
        "create-vpc --name billing --cidr 10.50.0.0/16",
        "create-vpc --name shop --cidr 10.0.0.0/16",
        "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
        "create-subnet --vpc shop --name db --cidr 10.0.3.0/24 --type private",
    ):
        lab.vpcctl(*command.split())
    lab.run(["sh", "-c", "cat > /run/db.json"], input=json.dumps(policy))
    lab.vpcctl("apply-policy", "--vpc", "shop", "db.json", cwd="/run")


def _asked(lab: Lab, *flow: str) -> tuple[int, str]:
    done = lab.run([sys.executable, "-m", "vpcctl", "explain", *flow, "--json"], check=False)
    return done.returncode, json.loads(done.stdout)["deciding"]


# --- docs/cli.md -----------------------------------------------------------------------------------------------------


def alike(documented: Any, actual: Any) -> bool:
    """Have two JSON values the same shape?  Objects the same keys, arrays elements like the first one documented."""
    if documented is None or actual is None:
        return True
    if isinstance(documented, dict):
        return documented.keys() == actual.keys() and all(alike(documented[key], actual[key]) for key in documented)
    if isinstance(documented, list):
        return isinstance(actual, list) and all(alike(documented[0], one) for one in actual if documented)
    return type(documented) is type(actual)


@pytest.fixture(scope="module")
def furnished(module_lab: Lab) -> Lab:
    """A lab with something of everything, and with a ruleset missing."""
    rule = {"action": "allow", "protocol": "tcp", "port": 5432, "source": "subnet:web"}
    _shop(module_lab, {"subnet": "db", "ingress": [rule], "egress": []})
    for command in (
        "create-peering --vpc1 shop --vpc2 billing",
        "publish-port --vpc shop --instance web --port 8080 --target-port 80",
    ):
        module_lab.vpcctl(*command.split())
    tests = [{"from": "shop/web", "to": "shop/db", "service": "tcp/5432", "expect": "allow"}]
    environment = {"vpcs": [{"name": "new", "cidr": "10.9.0.0/16", "subnets": [
        {"name": name, "cidr": f"10.9.{number}.0/24", "type": "private"} for number, name in enumerate("ab")
    ]}]}  # fmt: skip
    for name, document in (("tests", tests), ("environment", environment)):
        module_lab.run(["sh", "-c", f"cat > /run/{name}.json"], input=json.dumps(document))
    module_lab.vpcctl("set-invariants", "/run/tests.json")
    return module_lab


@pytest.mark.parametrize(("command", "shape"), fenced(page("docs/cli.md"), "json"))
def test_json_has_the_documented_shape(furnished: Lab, command: str, shape: str) -> None:
    if command == "status":
        furnished.run(["nft", "flush", "ruleset"], netns="billing-router")
    if command == "flows shop":
        furnished.run(["ping", "-n", "-c", "1", "10.0.1.1"], netns="shop-web")
    command, _, field = command.partition(" | ")
    words = [sys.executable, "-m", "vpcctl", *command.split(), "--json"]
    printed = furnished.run(words, cwd="/run", check=False).stdout
    actual = json.loads(printed)[field] if field else json.loads(printed)
    assert actual  # an empty array has any shape
    assert command != "status" or actual["differences"]
    assert alike(json.loads(shape), actual), printed


@pytest.mark.parametrize("other", [{"a": [1], "b": 2}, {"a": ["x"]}, {"a": 1}, {}])
def test_another_shape_is_noticed(other: Any) -> None:
    assert alike({"a": [1]}, {"a": [2, 3]})
    assert not alike({"a": [1]}, other)


def test_shell_completion_completes(furnished: Lab) -> None:
    asking = {"_VPCCTL_COMPLETE": "bash_complete", "COMP_WORDS": "vpcctl create-v", "COMP_CWORD": "1"}
    assert "create-vpc" in furnished.run([sys.executable, "-m", "vpcctl"], env=asking).stdout


# --- docs/packet-path.md ---------------------------------------------------------------------------------------------

Walk = list[tuple[str, str]]
VERDICT = r"(?:(?:goto|jump) \S+|policy accept|accept|drop|return)"


def documented_walks() -> dict[str, Walk]:
    """Each traced packet of the page: (chain, what ends its stay there)."""
    lines = {title: block.splitlines() for title, block in fenced(page("docs/packet-path.md"), "trace")}
    found = {title: [re.fullmatch(rf"(\S+) .*? ({VERDICT})", line) for line in block] for title, block in lines.items()}
    return {title: [(one[1], one[2]) for one in walk if one] for title, walk in found.items()}


def walks(trace: str) -> list[tuple[str, str, Walk]]:
    """Each packet that nft saw: (source, destination) and its walk through our table."""
    packets: list[tuple[str, str, str, Walk]] = []
    ours = r"trace id (\w+) inet vpcctl"
    for line in trace.splitlines():
        if seen := re.match(rf"{ours} filter-prerouting packet: .*ip saddr (\S+) ip daddr (\S+)", line):
            packets.append((seen[1], seen[2], seen[3], []))
        elif step := re.match(rf"{ours} (\S+) (?:rule .*\(verdict ({VERDICT})\)|({VERDICT}))", line):
            walk = next(walk for known, _, _, walk in reversed(packets) if known == step[1])
            walk.append((step[2], step[3] or step[4].strip()))
    return [(source, destination, walk) for _, source, destination, walk in packets]


class Tracer:
    """`nft monitor trace` in the routers, over TCP packets alone."""

    def __init__(self, lab: Lab, *routers: str):
        self._lab = lab
        rule = "type filter hook prerouting priority -500; ip protocol tcp meta nftrace set 1;"
        for router in routers:
            lab.run(["nft", f"table inet traced {{ chain watched {{ {rule} }}; }}"], netns=router)

    def during(self, router: str, command: list[str], netns: str | None) -> list[tuple[str, str, Walk]]:
        """The packets in `router` while `command` runs."""
        with tempfile.TemporaryFile("w+") as trace:  # and no pipe, which would fill up
            watching = ["stdbuf", "-oL", "nft", "monitor", "trace"]
            monitor = self._lab.popen(watching, netns=router, stdout=trace, stderr=subprocess.STDOUT)
            time.sleep(1)
            self._lab.run(command, netns=netns)
            time.sleep(1)
            monitor.kill()
            monitor.wait()
            trace.seek(0)
            return walks(trace.read())


@pytest.fixture(scope="module")
def routed(lab_of_the_page: Lab) -> Tracer:
    return Tracer(lab_of_the_page, "shop-router", "billing-router")


@pytest.fixture(scope="module")
def lab_of_the_page() -> Any:
    """The VPCs of the page, with its policies and servers."""
    with Lab() as lab:
        _shop(lab, POLICIES)
        for command in (
            "create-subnet --vpc shop --name app --cidr 10.0.2.0/24 --type private",
            "create-subnet --vpc billing --name jobs --cidr 10.50.1.0/24 --type private",
            "create-peering --vpc1 shop --vpc2 billing",
            "publish-port --vpc shop --instance web --port 8000 --target-port 80",
        ):
            lab.vpcctl(*command.split())
        for namespace, port in (("shop-web", 80), ("shop-db", 5432)):
            server = lab.popen([*shlex.split(HTTP), "serve", str(port), "hello"], netns=namespace)
            assert server.stdout
            assert server.stdout.readline() == "ready\n"
        yield lab


@pytest.mark.parametrize(
    ("router", "namespace", "place", "titles"),
    [
        ("shop-router", "shop-web", "10.0.3.2:5432", ["web to db", "db to web"]),
        ("shop-router", "shop-web", f"{INTERNET}:80", ["web to internet", "internet to web"]),
        ("shop-router", "neighbour", "198.51.100.2:8000", ["LAN to the published port"]),
        ("billing-router", "shop-jobs", "10.0.3.2:5432", ["jobs to db"]),
        ("shop-router", "shop-jobs", "10.0.3.2:5432", ["jobs to db"]),
    ],
)
def test_a_packet_goes_the_way_that_is_told(
    routed: Tracer, router: str, namespace: str, place: str, titles: list[str]
) -> None:
    """The first packet of the flow, and where it is told the first one back."""
    asking = [*shlex.split(HTTP), "get", place]
    packets = routed.during(router, asking, namespace.replace("shop-jobs", "billing-jobs"))
    there, back = packets[0], next(packet for packet in packets if packet[0] != packets[0][0])
    for title, (_, _, walk) in zip(titles, (there, back), strict=False):
        assert walk == documented_walks()[f"{router}: {title}"]


def test_a_stale_flow_goes_the_way_that_is_told(lab_of_the_page: Lab, routed: Tracer) -> None:
    watcher = lab_of_the_page.popen([*shlex.split(HTTP), "watch", "10.0.3.2:5432"], netns="shop-web")
    assert watcher.stdout
    assert watcher.stdout.readline().startswith("piece")
    change = ["sh", "-c", f"{shlex.quote(sys.executable)} -m vpcctl apply-policy --vpc shop -"]
    change[2] = f"echo {shlex.quote(json.dumps(BILLING_ALONE))} | {change[2]}"
    packets = routed.during("shop-router", change, None)
    dropped = [walk for source, _, walk in packets if source == "10.0.3.2" and ("ingress-db.reply", "drop") in walk]
    assert dropped
    assert dropped[0] == documented_walks()["shop-router: a stale flow, db to web"]


def test_every_walk_of_the_page_was_read_whole() -> None:
    blocks = fenced(page("docs/packet-path.md"), "trace")
    assert {title: len(walk) for title, walk in documented_walks().items()} == {
        title: len(block.splitlines()) for title, block in blocks
    }
