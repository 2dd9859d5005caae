"""Whole environments on a kernel: planned in words, made, told again in vain, put back VPC by VPC where one fails."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.machine import seen, write
from tests.lab.warm import Warm
from vpcctl.lab import INTERNET, STATE_DIR, Lab

Document = dict[str, Any]

HTTP = {"ingress": [{"action": "allow", "protocol": "tcp", "port": 80}]}
BASE: Document = {
    "vpcs": [
        {
            "name": "shop",
            "cidr": "10.0.0.0/16",
            "subnets": [
                {
                    "name": "web",
                    "cidr": "10.0.1.0/24",
                    "type": "public",
                    "instances": [{"name": "web", "ip": "10.0.1.2"}, {"name": "web-2", "ip": "10.0.1.3"}],
                },
                {"name": "db", "cidr": "10.0.2.0/24", "type": "private", "policy": HTTP},
            ],
            "sets": {"office": ["203.0.113.0/25"]},
            "publish": [{"protocol": "tcp", "port": 8080, "instance": "web", "target_port": 80}],
        },
        {
            "name": "billing",
            "cidr": "10.9.0.0/16",
            "subnets": [{"name": "ledger", "cidr": "10.9.1.0/24", "type": "private", "nat_gateway": True}],
        },
        {"name": "spare", "cidr": "10.8.0.0/16"},
    ],
    "peerings": [["shop", "billing"]],
}
FRESH = {
    "name": "fresh",
    "cidr": "10.7.0.0/16",
    "subnets": [{"name": "app", "cidr": "10.7.1.0/24", "type": "public"}],
}
# The kernel in one text, without what counts by itself; handles tell whether a table was loaded again.
LOOK = """
cd /run/netns
for name in '' *; do
    echo "== $name"
    enter=${name:+ip netns exec $name}
    $enter ip -o -d link | sed -E 's/ +[a-z_]*timer +[0-9.]+//g'
    $enter ip -o address | sed 's/ tentative//'
    $enter ip route
    $enter nft -s -a list ruleset
done
"""
# Every chain, rule and set with its handle: some handles differ after each load, even after a change in place.
TABLES = "nft -a -t list ruleset"


@pytest.fixture
def run(warm: Warm) -> Warm:
    """Commands on a machine that is as `BASE` says."""
    applied(warm, BASE, "--prune", "--yes")
    return warm


def applied(run: Warm, document: Document, *words: str, status: int = 0) -> list[str]:
    """Apply; what was said, line by line, except the summary of what was removed and of its traffic."""
    said = run(" ".join(["apply", *words, "-"]), input=json.dumps(document), status=status).err.splitlines()
    begin = next((number for number, line in enumerate(said) if line.startswith("removed ")), None)
    return said if begin is None else [*said[:begin], *said[said.index("applied") :]]


def changed(edit: Callable[[Document], object]) -> Document:
    """`BASE` with a change."""
    document = copy.deepcopy(BASE)
    edit(document)
    return document


def shop(document: Document) -> Document:
    return document["vpcs"][0]


def exported(run: Warm) -> Document:
    return json.loads(run("export").out)


def in_sync(run: Warm) -> bool:
    return run("status").out == "in sync\n"


def look(lab: Lab) -> str:
    return lab.run(["sh", "-c", LOOK]).stdout


def state(lab: Lab) -> Document:
    return json.loads(lab.run(["cat", f"{STATE_DIR}/state.json"]).stdout)


def namespaces(lab: Lab) -> set[str]:
    return set(lab.run(["ls", "/run/netns"]).stdout.split())


def links(lab: Lab, vpc: str) -> set[str]:
    """The links in a VPC's router."""
    return {link["ifname"] for link in seen(lab, "link", netns=f"{vpc}-router")} - {"lo"}


def pings(lab: Lab, sender: str, address: str) -> bool:
    """Does an answer come?  To be asked where it does: a silence is proved at the receiver, in other tests."""
    return lab.run(["ping", "-n", "-c", "1", "-W", "5", address], netns=sender, check=False).returncode == 0


def by_name(document: Document) -> Document:
    return {one["name"]: one for one in document["vpcs"]}


# --- plan -------------------------------------------------------------------------------------------------------------


def test_a_plan_tells_objects_and_traffic_and_changes_nothing(module_lab: Lab, run: Warm) -> None:
    def edit(document: Document) -> None:
        shop(document)["subnets"][1]["policy"] = {"ingress": [{"action": "allow", "protocol": "tcp", "port": 5432}]}
        del shop(document)["subnets"][0]["instances"][1]
        document["vpcs"] += [FRESH]
        document["peerings"] = []

    before = look(module_lab), state(module_lab)
    file = write(module_lab, "environment.json", changed(edit))
    told = run(f"plan {file}").out
    assert told == (
        "- instance shop/web-2\n"
        f"~ policy of shop/db: {file}\n"
        "+ VPC fresh: 10.7.0.0/16\n"
        "+ subnet fresh/app: 10.7.1.0/24, public\n"
        "+ instance fresh/app: 10.7.1.2\n"
        "- peering billing and shop\n"
        "newly allowed:\n"
        "  shop/web → shop/db tcp/5432\n"
        "  shop/web → internet 10.9.0.0/16 any\n"
        "  shop/db → shop/db tcp/5432\n"
        "  billing/ledger → internet 10.0.0.0/16 any\n"
        "  internet 10.9.0.0/16 → shop/web (10.0.1.2) tcp/80\n"
        "  fresh/app → fresh/app any\n"
        "  fresh/app → internet any\n"
        "  fresh/app → host tcp/8080\n"
        "newly denied:\n"
        "  shop/web → shop/db tcp/80\n"
        "  shop/web → billing/ledger any\n"
        "  shop/db → shop/db tcp/80\n"
        "  shop/db → billing/ledger any\n"
        "  billing/ledger → shop/web any\n"
        "  billing/ledger → shop/db tcp/80\n"
    )
    shown = json.loads(run(f"plan {file} --json").out)
    signs = [
        f"{one['sign']} {one['what']}" + (f": {one['detail']}" if one["detail"] else "") for one in shown["changes"]
    ]
    assert signs == told[: told.index("newly allowed")].splitlines()
    assert {len(shown[key]) for key in ("newly_allowed", "newly_denied")} == {8, 6}
    assert shown["without_effect"] == []
    assert (look(module_lab), state(module_lab)) == before
    # What was planned is what is done, and then there is nothing left to plan.
    traffic = told[told.index("newly allowed") :].splitlines()
    expected = sorted([*signs, "removed 1 instance, 1 peering", *traffic, "applied"])
    assert sorted(run(f"apply {file}").err.splitlines()) == expected
    assert run(f"plan {file}").out == "nothing to change\n"
    assert json.loads(run(f"plan {file} --json").out)["changes"] == []


def test_a_plan_with_prune_tells_what_goes(run: Warm) -> None:
    document = json.dumps(changed(lambda one: one["vpcs"].pop()))
    assert run("plan -", input=document).out == "nothing to change\n"
    assert "- VPC spare\n" in run("plan --prune -", input=document).out


def test_a_plan_for_a_document_that_is_wrong_is_refused(run: Warm) -> None:
    document = changed(lambda one: shop(one).update(cidr="10.0.0.1/16"))
    result = run("plan -", input=json.dumps(document), status=2)
    assert "#/vpcs/0/cidr" in result.err
    assert result.out == ""


# --- apply, and again -------------------------------------------------------------------------------------------------


def test_the_same_document_again_touches_nothing_and_another_one_what_it_changes(module_lab: Lab, run: Warm) -> None:
    def tables() -> dict[str, str]:
        return {
            one: module_lab.run(["sh", "-c", TABLES], netns=f"{one}-router").stdout for one in by_name(exported(run))
        }

    before, handles = (look(module_lab), state(module_lab)), tables()
    assert applied(run, BASE) == ["nothing to change"]
    assert applied(run, BASE, "--prune", "--yes") == ["nothing to change"]
    assert (look(module_lab), state(module_lab)) == before
    assert tables() == handles
    # The look would have told.
    applied(run, changed(lambda one: shop(one)["subnets"][1].pop("policy")))
    assert {one for one, found in tables().items() if found != handles[one]} == {"shop"}
    assert state(module_lab)["serial"] > before[1]["serial"]


def test_applying_what_is_exported_changes_nothing(module_lab: Lab, run: Warm) -> None:
    before = look(module_lab), state(module_lab)
    document = exported(run)
    assert applied(run, document) == ["nothing to change"]
    assert applied(run, document, "--prune", "--yes") == ["nothing to change"]
    assert applied(run, json.loads(run("export --vpc shop").out)) == ["nothing to change"]
    assert (look(module_lab), state(module_lab)) == before
    run("destroy --all --yes")
    applied(run, document)
    assert exported(run) == document
    assert in_sync(run)
    assert pings(module_lab, "shop-web", "10.9.1.2")


# --- What the document has no longer ----------------------------------------------------------------------------------


def test_an_instance_that_is_left_out_goes_and_its_siblings_stay(module_lab: Lab, run: Warm) -> None:
    assert {"shop-web", "shop-web-2"} <= namespaces(module_lab)
    assert pings(module_lab, "shop-web-2", "10.0.1.2")
    assert applied(run, changed(lambda one: shop(one)["subnets"][0]["instances"].pop())) == [
        "- instance shop/web-2",
        "applied",
    ]
    assert "shop-web-2" not in namespaces(module_lab)
    assert "in-web-2" not in links(module_lab, "shop")
    assert {"in-web", "br-web"} <= links(module_lab, "shop")
    assert in_sync(run)
    assert pings(module_lab, "shop-web", str(INTERNET))


def test_a_subnet_that_is_left_out_goes_with_all_that_is_in_it(module_lab: Lab, run: Warm) -> None:
    assert {"br-db", "in-db"} <= links(module_lab, "shop")
    assert applied(run, changed(lambda one: shop(one)["subnets"].pop())) == [
        "- subnet shop/db",
        "- instance shop/db",
        "applied",
    ]
    assert "shop-db" not in namespaces(module_lab)
    assert links(module_lab, "shop") == {"uplink", "br-web", "in-web", "in-web-2", "pr-billing"}
    assert "10.0.2." not in module_lab.run(["nft", "list", "ruleset"], netns="shop-router").stdout
    assert in_sync(run)
    assert pings(module_lab, "shop-web", "10.0.1.3")


def test_peerings_published_ports_and_nat_gateways_that_are_left_out_go(module_lab: Lab, run: Warm) -> None:
    def edit(document: Document) -> None:
        del shop(document)["publish"], document["vpcs"][1]["subnets"][0]["nat_gateway"], document["peerings"][0]

    assert pings(module_lab, "shop-web", "10.9.1.2")
    assert pings(module_lab, "billing-ledger", str(INTERNET))
    assert sorted(applied(run, changed(edit))) == [
        "- NAT gateway of billing/ledger",
        "- peering billing and shop",
        "- published tcp/8080 for shop/web port 80",
        "applied",
    ]
    assert "pr-billing" not in links(module_lab, "shop")
    assert "pr-shop" not in links(module_lab, "billing")
    assert "8080" not in look(module_lab)
    assert in_sync(run)
    run(f"explain billing/ledger {INTERNET} icmp/echo-request", status=1)
    run("explain shop/web billing/ledger icmp/echo-request", status=1)
    applied(run, BASE)
    assert pings(module_lab, "shop-web", "10.9.1.2")


def test_vpcs_that_are_not_named_are_left_alone_and_with_prune_go(module_lab: Lab, run: Warm) -> None:
    document = {"vpcs": [shop(BASE), FRESH]}
    before = by_name(exported(run))
    assert {line for line in applied(run, document) if line.startswith("-")} == set()
    found = by_name(exported(run))
    assert set(found) == {"shop", "billing", "spare", "fresh"}
    assert {name: found[name] for name in before} == before
    # A peering with a VPC beside the document is none of its business.
    assert exported(run)["peerings"] == [["billing", "shop"]]
    assert pings(module_lab, "shop-web", "10.9.1.2")
    assert "- VPC billing" in applied(run, document, "--prune", "--yes")
    assert set(by_name(exported(run))) == {"shop", "fresh"}
    assert namespaces(module_lab) == {
        "shop-router", "shop-web", "shop-web-2", "shop-db", "fresh-router", "fresh-app"
    }  # fmt: skip
    assert {link["ifname"] for link in seen(module_lab, "link")} == {"lo", "eth0", "vpc-shop", "vpc-fresh"}
    assert in_sync(run)
    assert pings(module_lab, "fresh-app", str(INTERNET))


# --- What is wrong ----------------------------------------------------------------------------------------------------


def outside(document: Document) -> None:
    shop(document)["subnets"][0] |= {"cidr": "10.99.0.0/24", "instances": [{"name": "web"}, {"name": "web-2"}]}


def bits(document: Document) -> None:
    document["vpcs"][1]["cidr"] = "10.9.0.1/16"


def ghost(document: Document) -> None:
    shop(document)["subnets"][1]["policy"] = {"ingress": [{"action": "allow", "source": "instance:ghost"}]}


def ghost_too(document: Document) -> None:
    document["vpcs"][1]["subnets"][0]["policy"] = {"egress": [{"action": "allow", "destination": "set:ghost"}]}


@pytest.mark.parametrize(
    ("edits", "places"),
    [
        ((outside, bits), ("#/vpcs/0", "#/vpcs/1/cidr")),
        ((ghost, ghost_too), ("#/vpcs/0/subnets/1/policy", "#/vpcs/1/subnets/0/policy")),
    ],
    ids=["structure", "names"],
)
def test_errors_in_two_vpcs_are_both_told_and_nothing_is_changed(
    module_lab: Lab, run: Warm, edits: tuple[Callable[[Document], None], ...], places: tuple[str, ...]
) -> None:
    document = changed(lambda one: [edit(one) for edit in edits])
    document["vpcs"] += [FRESH]
    before = look(module_lab), state(module_lab)
    said = "\n".join(applied(run, document, status=2))
    for place in places:
        assert f"(standard input){place}" in said
    assert (look(module_lab), state(module_lab)) == before
    # Each alone is told, too.
    for edit, place in zip(edits, places, strict=True):
        [line] = applied(run, changed(edit), status=2)
        assert place in line


def test_a_vpc_whose_name_is_taken_is_not_done_and_the_others_are(module_lab: Lab, run: Warm) -> None:
    """A namespace that is not ours has the name of an instance: seen before anything of the VPC is made."""
    document = changed(lambda one: shop(one)["subnets"][0]["instances"].append({"name": "web-3", "ip": "10.0.1.4"}))
    document["vpcs"][1:1] = [FRESH, {**copy.deepcopy(FRESH), "name": "late", "cidr": "10.6.0.0/16", "subnets": []}]
    module_lab.run(["ip", "netns", "add", "fresh-app"])
    module_lab.run(["ip", "link", "add", "theirs", "type", "bridge"], netns="fresh-app")
    try:
        said = applied(run, document, status=4)
        assert [line for line in said if "fresh" in line] == [
            "VPC fresh: not done; namespace fresh-app exists already and is not ours; remove it"
            " (ip netns delete fresh-app) or choose another name",
            "vpcctl: 1 of 3 steps was not done: namespace fresh-app exists already and is not ours; remove it"
            " (ip netns delete fresh-app) or choose another name",
        ]
        assert {"+ instance shop/web-3: 10.0.1.4", "+ VPC late: 10.6.0.0/16"} <= set(said)
        assert "applied" not in said
        assert set(by_name(exported(run))) == {"shop", "billing", "spare", "late"}
        assert not {"fresh-router"} & namespaces(module_lab)
        assert "theirs" in {link["ifname"] for link in seen(module_lab, "link", netns="fresh-app")}
        assert in_sync(run)
        assert pings(module_lab, "shop-web-3", "10.9.1.2")
    finally:
        module_lab.run(["ip", "netns", "delete", "fresh-app"])
    assert [line for line in applied(run, document) if "VPC" in line] == ["+ VPC fresh: 10.7.0.0/16"]


def settled(text: str) -> str:
    """A sorted listing without handles and generations: a change in place adds new objects at the end."""
    lines = (line for line in text.splitlines() if line.strip() and not line.strip().startswith('comment "vpcctl/'))
    return "\n".join(sorted(re.sub(r"# handle \d+|0x[0-9a-f]{8}|@if\d+|^\d+: ", "", line) for line in lines))


def test_a_vpc_that_fails_half_way_is_put_back_and_the_others_are_done(module_lab: Lab, run: Warm) -> None:
    """A link that somebody made in the router has the name of a bridge to be, and is none."""

    def edit(document: Document) -> None:
        part = {"name": "new", "cidr": "10.0.9.0/24", "type": "public", "policy": HTTP}
        shop(document)["subnets"] += [part]
        shop(document)["subnets"][1]["policy"] = {"ingress": []}
        document["vpcs"][1]["subnets"] += [{"name": "audit", "cidr": "10.9.2.0/24", "type": "private"}]
        document["vpcs"] += [FRESH]
        document["peerings"] += [["fresh", "shop"]]

    document, before = changed(edit), exported(run)
    picture = module_lab.run(["sh", "-c", LOOK.replace("'' *", "shop-*")]).stdout
    module_lab.run("ip link add br-new type veth peer name theirs".split(), netns="shop-router")
    said = applied(run, document, status=4)
    why = "shop-router has a link br-new that is not ours; remove or rename it"
    assert next(line for line in said if "not done" in line) == f"VPC shop: not done; {why}"
    assert said[-1] == f"vpcctl: 1 of 4 steps was not done: {why}"
    assert {"+ subnet billing/audit: 10.9.2.0/24, private", "+ VPC fresh: 10.7.0.0/16"} <= set(said)
    # What does not depend on the VPC that failed has come, that VPC is as it was.
    found = exported(run)
    assert by_name(found)["shop"] == by_name(before)["shop"]
    assert {"billing-audit", "fresh-app"} <= namespaces(module_lab)
    assert "shop-new" not in namespaces(module_lab)
    assert in_sync(run)
    assert found["peerings"] == [["billing", "shop"], ["fresh", "shop"]]
    assert pings(module_lab, "shop-web", "10.9.2.2")
    assert pings(module_lab, "fresh-app", "10.0.1.2")
    # What was in the way is still there, and not touched; without it the document can be applied.
    module_lab.run(["ip", "link", "delete", "br-new"], netns="shop-router")
    applied(run, BASE, "--prune", "--yes")
    assert settled(module_lab.run(["sh", "-c", LOOK.replace("'' *", "shop-*")]).stdout) == settled(picture)
    assert applied(run, document)[-1] == "applied"
    assert pings(module_lab, "shop-new", str(INTERNET))


def test_a_new_vpc_that_fails_half_way_leaves_nothing(module_lab: Lab, run: Warm) -> None:
    """The kernel has no namespace left for one of its instances."""
    if module_lab.run(["strace", "true"], check=False).returncode:
        pytest.skip("strace(1) is not installed")
    before = look(module_lab)
    document = {"vpcs": [FRESH, {**FRESH, "name": "late", "cidr": "10.6.0.0/16", "subnets": []}]}
    # Each namespace has its directory prepared first: the second one's is for fresh-app.
    inject = ["-e", "trace=mount", "-e", "inject=mount:error=ENOSPC:when=2"]
    result = run("apply -", input=json.dumps(document), status=5, strace=inject)
    said = result.err.splitlines()
    assert said[0].startswith("VPC fresh: not done; ")
    assert "No space left" in said[0]
    assert said[1] == "+ VPC late: 10.6.0.0/16"
    assert said[-1].startswith("vpcctl: 1 of 2 steps was not done: ")
    assert in_sync(run)
    assert "fresh" not in look(module_lab)
    applied(run, BASE, "--prune", "--yes")
    assert settled(look(module_lab)) == settled(before)


# --- Progress ---------------------------------------------------------------------------------------------------------

# Apply with its standard error a terminal, or none; the first step lasts more than a second, because whoever opens the
# lock file waits for our lease on it (F_SETLEASE in fcntl(2)).
SLOWLY = """
import fcntl, os, pty, signal, subprocess, sys, time
lock, terminal, *words = sys.argv[1:]
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
lease = os.open(lock, os.O_RDONLY)
fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_RDLCK)
reading, writing = pty.openpty() if terminal == "terminal" else os.pipe()
running = subprocess.Popen(words, stderr=writing)
os.close(writing)
assert signal.sigtimedwait({signal.SIGIO}, 40), "nobody asked for the lock"
time.sleep(1.1)
fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
said = b""
try:
    while part := os.read(reading, 4096):
        said += part
except OSError:  # what a terminal says at its end
    pass
assert running.wait() == 0, said
print(said.decode())
"""


@pytest.mark.parametrize("where", ["terminal", "file"])
def test_what_takes_longer_than_a_second_tells_its_steps_on_a_terminal_alone(
    module_lab: Lab, run: Warm, where: str
) -> None:
    def edit(document: Document) -> None:
        document["vpcs"] += [FRESH]
        document["vpcs"][1]["subnets"] = []
        document["peerings"] = []

    file = write(module_lab, "progress.json", changed(edit))
    words = [sys.executable, "-m", "vpcctl", "apply", file]
    said = module_lab.python(SLOWLY, f"{STATE_DIR}/lock", where, *words).stdout.replace("\r", "").splitlines()
    progress = [line for line in said if line.startswith("[")]
    assert progress == (["[2/3] VPC billing", "[3/3] VPC fresh"] if where == "terminal" else [])
    assert "+ VPC fresh: 10.7.0.0/16" in said
    assert "applied" in said
