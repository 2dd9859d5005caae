"""The controller, asked as a program asks it, with a kernel that is a dictionary."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest

import vpcctl
from tests.story import WEB_POLICY
from vpcctl import Controller, Document, errors
from vpcctl.engine import events, machine
from vpcctl.engine.events import Event
from vpcctl.engine.state import Store
from vpcctl.model.host import Host
from vpcctl.model.network import Peering
from vpcctl.model.policy import Direction
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.kinds import Namespace

ROOT = Path(__file__).parents[2]
DB = {"subnet": "db", "ingress": [{"action": "allow", "protocol": "tcp", "port": 5432, "source": "subnet:web"}]}
ENVIRONMENT = {"vpcs": [{"name": "new", "cidr": "10.9.0.0/16", "subnets": [
    {"name": "api", "cidr": "10.9.1.0/24", "type": "public"}]}]}  # fmt: skip


class Shop:
    """A controller of a machine with one VPC, its kernel, and what it reported."""

    def __init__(self, directory: Path):
        self.kernel = FakeKernel()
        self.store = Store(directory)
        self.events: list[Event] = []
        self.controller = Controller(
            store=self.store, make_kernel=lambda: self.kernel, report=self.events.append, read_host=Host
        )
        self.controller.create_vpc("shop", "10.0.0.0/16")
        self.controller.create_subnet("shop", "web", "10.0.1.0/24", public=True)
        self.controller.create_subnet("shop", "db", ip_network("10.0.2.0/24"), public=False)
        self.events.clear()

    @property
    def everything(self) -> tuple[Any, ...]:
        """The record and the kernel."""
        return self.store.load(), dict(self.kernel.objects)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "state")


# -- what there is -------------------------------------------------------------------------------------------------


def test_what_was_created_is_told_in_values(shop: Shop) -> None:
    created = shop.controller.create_instance("shop", "web", "web-2", "10.0.1.9")
    assert dataclasses.asdict(created.made) == {
        "vpc": "shop", "subnet": "web", "name": "web-2", "address": IPv4Address("10.0.1.9"),
        "mac": created.made.mac, "namespace": "shop-web-2",
    }  # fmt: skip
    assert created.made == shop.controller.show_instance("shop", "web-2")
    assert ("Namespace", "shop-web-2") in shop.kernel.objects
    assert created.outcome.plan
    assert created.warnings == ()


def test_a_vpc_is_shown_with_everything_in_it(shop: Shop) -> None:
    controller = shop.controller
    controller.create_vpc("other", "10.5.0.0/16", max_flows=100, hardened=True)
    controller.create_peering("shop", "other")
    controller.publish_port("shop", "web", 8080, target_port=80)
    controller.create_nat_gateway("shop", "db")
    controller.create_nat_protocol("shop", "gre")
    found = controller.show_vpc("shop")
    assert (found.router, found.peers, found.nat_protocols) == ("shop-router", ("other",), (47,))
    assert [(one.name, one.public, one.nat_gateway) for one in found.subnets] == [
        ("web", True, False), ("db", False, True),
    ]  # fmt: skip
    assert [one.service for one in found.publications] == ["tcp/8080"]
    assert [one.name for one in found.instances] == ["web", "db"]
    assert controller.list_vpcs() == (found, controller.show_vpc("other"))
    assert controller.list_peerings() == (Peering("other", "shop"),)
    assert controller.list_subnets("shop") == found.subnets
    assert controller.show_subnet("shop", "db") == found.subnets[1]
    assert controller.list_instances("shop", "db") == found.subnets[1].instances
    assert (controller.show_vpc("other").max_flows, controller.show_vpc("other").hardened) == (100, True)


def test_what_was_created_is_deleted_by_its_counterpart(shop: Shop) -> None:
    controller, before = shop.controller, shop.everything
    controller.create_vpc("other", "10.5.0.0/16")
    controller.create_peering("shop", "other")
    controller.publish_port("shop", "web", 53, protocol="udp")
    controller.create_nat_gateway("shop", "db")
    controller.create_nat_protocol("shop", 50)
    controller.create_instance("shop", "web", "web-2")
    controller.delete_instance("shop", "web-2")
    controller.delete_nat_protocol("shop", "esp")
    controller.delete_nat_gateway("shop", "db")
    controller.unpublish_port("shop", 53, protocol="udp")
    controller.delete_peering("other", "shop")
    controller.delete_vpc("other")
    assert {item.key for item in shop.kernel.objects.values()} == before[1].keys()
    controller.delete_subnet("shop", "db")
    outcome = controller.destroy()
    assert ([vpc.name for vpc in outcome.before.vpcs], outcome.after.vpcs) == (["shop"], ())
    assert shop.kernel.objects == {}


def test_an_exported_environment_restores_the_same_world(shop: Shop) -> None:
    controller = shop.controller
    controller.destroy()
    controller.create_vpc("shop", "10.0.0.0/16", transit="100.127.0.0/24")
    controller.create_subnet("shop", "web", "10.0.1.0/24", public=True)
    before, document = controller.show_vpc("shop"), controller.export()
    controller.destroy()
    controller.apply(Document(document))
    # An instance that is made again has a MAC address of its own.
    assert controller.show_vpc("shop").uplink == before.uplink
    assert [(one.name, one.address) for one in controller.show_vpc("shop").instances] == [
        (one.name, one.address) for one in before.instances
    ]
    assert controller.export() == document
    assert controller.apply(Document(document)).changes == ()


CLOSED = "the egress policy of subnet db denies everything to the internet"


@pytest.mark.parametrize(
    ("fields", "warnings"),
    [
        ({"egress": []}, [f"{CLOSED} (db.json#/egress (default deny))"]),
        ({"egress": [{"action": "deny", "destination": "internet"}], "default": {"egress": "allow"}},
         [f"{CLOSED} (db.json#/egress/0)"]),
        ({"egress": [{"action": "allow", "destination": "subnet:web"}]},
         [f"{CLOSED} (db.json#/egress (default deny))"]),
        ({"egress": [{"action": "allow", "protocol": "tcp", "port": 443}]}, []),
        ({"ingress": []}, []),
        (None, []),
    ],
)  # fmt: skip
def test_a_nat_gateway_that_a_policy_closes_is_told(shop: Shop, fields: dict | None, warnings: list[str]) -> None:
    if fields is not None:
        shop.controller.apply_policies(Document({"subnet": "db", **fields}, "db.json"), vpc="shop")
    created = shop.controller.create_nat_gateway("shop", "db")
    assert (created.made.nat_gateway, list(created.warnings)) == (True, warnings)


SHUT = "the ingress policy of subnet web denies everything from outside to tcp/80 of web"


@pytest.mark.parametrize(
    ("ingress", "warnings"),
    [
        ([], [f"{SHUT} (web.json#/ingress (default deny))"]),
        ([{"action": "reject", "protocol": "tcp"}, {"action": "allow"}], [f"{SHUT} (web.json#/ingress/0)"]),
        ([{"action": "allow", "source": "vpc:shop"}], [f"{SHUT} (web.json#/ingress (default deny))"]),
        # The port of the host is not the one that the policy sees.
        ([{"action": "allow", "protocol": "tcp", "port": 8080}], [f"{SHUT} (web.json#/ingress (default deny))"]),
        ([{"action": "allow", "protocol": "tcp", "port": 80, "source": "192.0.2.0/24"}], []),
        ([{"action": "allow", "protocol": "tcp", "port": 80}], []),
    ],
)
def test_a_published_port_that_a_policy_closes_is_told(shop: Shop, ingress: list, warnings: list[str]) -> None:
    shop.controller.apply_policies(Document({"subnet": "web", "ingress": ingress}, "web.json"), vpc="shop")
    # Another port that is open says nothing about this one.
    shop.controller.publish_port("shop", "web", 8081, target_port=8081)
    created = shop.controller.publish_port("shop", "web", 8080, target_port=80)
    assert list(created.warnings) == warnings


def test_many_lines_that_close_a_port_are_counted(shop: Shop) -> None:
    rules = [{"action": "deny", "source": f"{first}.0.0.0/8"} for first in range(20, 30)]
    shop.controller.apply_policies(Document({"subnet": "web", "ingress": rules}, "web.json"), vpc="shop")
    [warning] = shop.controller.publish_port("shop", "web", 80).warnings
    assert warning.endswith("(web.json#/ingress/0, web.json#/ingress/1, web.json#/ingress/2 and 8 more)")


def test_where_a_program_runs_is_told_with_the_tag(shop: Shop) -> None:
    shop.controller.create_subnet("shop", "bare", "10.0.3.0/24", public=False, instance=False)
    state_id = shop.store.load().state_id
    for words in ({"instance": "db"}, {"subnet": "db"}):
        found = shop.controller.find_dwelling("shop", **words)
        assert dataclasses.astuple(found) == ("db", "shop-db", f"vpcctl/{state_id}/shop/instance/db")
    with pytest.raises(errors.ConflictError):
        shop.controller.find_dwelling("shop", subnet="bare")


def test_limits_that_are_not_given_stay(shop: Shop) -> None:
    before = shop.controller.show_vpc("shop")
    shop.controller.set_limits("shop", max_flows=77)
    after = shop.controller.show_vpc("shop")
    assert (after.max_flows, after.max_ports) == (77, before.max_ports)


def test_an_open_port_is_warned_of(shop: Shop) -> None:
    assert "web" in shop.controller.publish_port("shop", "web", 80).warnings[0]
    shop.controller.apply_policies(Document(WEB_POLICY), vpc="shop")
    assert shop.controller.publish_port("shop", "web", 81, target_port=80).warnings == ()


# -- what is wrong -------------------------------------------------------------------------------------------------

Ask = Callable[[Controller], object]
WRONG: dict[str, tuple[type[errors.VpcctlError], Ask]] = {
    "no prefix": (errors.DocumentError, lambda c: c.create_vpc("x", "ten")),
    "host bits": (errors.DocumentError, lambda c: c.create_subnet("shop", "x", "10.0.1.1/24", public=False)),
    "IPv6": (errors.DocumentError, lambda c: c.create_vpc("x", "2001:db8::/64")),
    "no address": (errors.DocumentError, lambda c: c.create_instance("shop", "web", "x", "ten")),
    "no name": (errors.DocumentError, lambda c: c.create_vpc("x y", "10.5.0.0/16")),
    "no protocol": (errors.DocumentError, lambda c: c.publish_port("shop", "web", 80, protocol="icmp")),
    "a protocol with ports": (errors.DocumentError, lambda c: c.create_nat_protocol("shop", "tcp")),
    "no such VPC": (errors.ConflictError, lambda c: c.delete_vpc("x")),
    "in use": (errors.ConflictError, lambda c: c.delete_vpc("shop")),
    "no such subnet": (errors.ConflictError, lambda c: c.clear_policy("shop", "x")),
    "no such file": (errors.DocumentError, lambda c: c.apply_policies("/nowhere.json")),
    "no policy": (errors.DocumentError, lambda c: c.apply_policies(Document({"x": 1}), vpc="shop")),
    "no environment": (errors.DocumentError, lambda c: c.apply(Document({"vpcs": 1}))),
    "no assertions": (errors.DocumentError, lambda c: c.verify(Document([]))),
    "no question": (errors.DocumentError, lambda c: c.explain("internet", "internet", "any")),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_raises_and_changes_nothing(shop: Shop, name: str) -> None:
    kind, ask = WRONG[name]
    before = shop.everything
    with pytest.raises(kind) as caught:
        ask(shop.controller)
    assert type(caught.value) is kind
    assert shop.everything == before


def test_what_the_kernel_refuses_is_rolled_back(shop: Shop) -> None:
    world, keys = shop.store.load().world, set(shop.kernel.objects)
    shop.kernel.fail_at = len(shop.kernel.calls) + 3
    with pytest.raises(errors.KernelError):
        shop.controller.create_instance("shop", "web", "x")
    assert (shop.store.load().world, set(shop.kernel.objects)) == (world, keys)
    assert shop.controller.status().in_sync


def test_an_interrupt_says_what_it_leaves(shop: Shop) -> None:
    shop.kernel.failure = KeyboardInterrupt()
    shop.kernel.fail_at = len(shop.kernel.calls) + 3
    with pytest.raises(errors.InterruptedChange) as caught:
        shop.controller.create_instance("shop", "web", "x")
    assert caught.value.unfinished
    shop.kernel.fail_at = None
    assert not shop.controller.status().in_sync
    assert shop.controller.repair().resumed
    assert shop.controller.status().in_sync
    assert shop.controller.show_instance("shop", "x")


def test_each_request_closes_its_kernel(shop: Shop) -> None:
    closed: list[str] = []

    class Counting(FakeKernel):
        def close(self) -> None:
            closed.append("closed")

    kernel = Counting()
    kernel.objects = shop.kernel.objects
    controller = Controller(store=shop.store, make_kernel=lambda: kernel, read_host=Host)
    controller.create_instance("shop", "web", "x")
    controller.status()
    with pytest.raises(errors.ConflictError):
        controller.create_instance("shop", "web", "x")
    assert len(closed) == 3


# -- policies ------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_and_changes_nothing(shop: Shop) -> None:
    before = shop.everything
    change = shop.controller.apply_policies(Document(DB, "db.json"), vpc="shop", dry_run=True)
    assert [(one.vpc, one.subnet, one.rules, one.changed) for one in change.attached] == [("shop", "db", 1, True)]
    assert {line.destinations for line in change.forecast.newly_denied} == {("db",)}
    assert change.warnings[0].startswith("db.json#: ingress of shop/db denies traffic that no rule matches")
    assert shop.everything == before
    assert shop.events == []


def test_a_policy_is_applied_shown_and_cleared(shop: Shop) -> None:
    first = shop.controller.apply_policies(Document(DB, "db.json"), vpc="shop")
    second = shop.controller.apply_policies(Document(DB, "db.json"), vpc="shop")
    assert [one.changed for change in (first, second) for one in change.attached] == [True, False]
    web, db = shop.controller.show_policies("shop")
    assert (web.policy, web.hits) == (None, None)
    assert db.policy is not None
    assert (db.policy.file, db.hits) == ("db.json", None)
    [counted] = shop.controller.show_policies("shop", "db", hits=True)
    assert counted.hits == {Direction.INGRESS: [0, 0], Direction.EGRESS: None}
    assert shop.controller.clear_policy("shop", "db", dry_run=True).forecast.newly_allowed
    assert shop.controller.show_policies("shop", "db")[0].policy is not None
    assert shop.controller.clear_policy("shop", "db").forecast.newly_allowed
    assert shop.controller.show_policies("shop", "db")[0].policy is None


def test_what_was_flushed_is_repaired_by_a_policy_that_is_the_same(shop: Shop) -> None:
    shop.controller.apply_policies(Document(DB), vpc="shop")
    del shop.kernel.objects["Ruleset", "shop-router"]
    change = shop.controller.apply_policies(Document(DB), vpc="shop")
    assert [str(one) for one in change.repaired] == [f"{change.repaired[0].item} is absent"]
    assert shop.controller.status().in_sync


def test_documents_come_from_files_too(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "db.json").write_text(json.dumps({"ingress": [{"action": "allow"}]}))
    environment = {"vpcs": [{"name": "shop", "cidr": "10.0.0.0/16", "subnets": [
        {"name": "db", "cidr": "10.0.2.0/24", "type": "private", "policy": "db.json"}]}]}  # fmt: skip
    (tmp_path / "shop.json").write_text(json.dumps(environment))
    for source in (tmp_path / "shop.json", Document(environment, "shop.json", tmp_path)):
        planned = shop.controller.plan(source)
        assert [change.what for change in planned.changes] == ["subnet shop/web", "instance shop/web",
                                                                "policy of shop/db"]  # fmt: skip
    change = shop.controller.apply_policies(str(tmp_path / "db.json"), vpc="shop", subnet="db")
    assert change.attached[0].policy.file == str(tmp_path / "db.json")


# -- rulesets ------------------------------------------------------------------------------------------------------


def test_the_ruleset_that_is_compiled_is_the_one_that_is_loaded(shop: Shop) -> None:
    compiled = shop.controller.compile_ruleset()
    assert (compiled.vpc, compiled.text) == ("shop", shop.controller.show_ruleset("shop"))
    assert shop.controller.ruleset_objects("shop")
    del shop.kernel.objects["Ruleset", "shop-router"]
    for ask in (shop.controller.show_ruleset, shop.controller.ruleset_objects):
        with pytest.raises(errors.VpcctlError, match="no ruleset is loaded"):
            ask("shop")


def test_a_ruleset_of_several_vpcs_is_ambiguous(shop: Shop) -> None:
    shop.controller.create_vpc("other", "10.5.0.0/16")
    with pytest.raises(errors.AmbiguousError) as caught:
        shop.controller.compile_ruleset()
    assert caught.value.candidates == ("other", "shop")
    assert shop.controller.compile_ruleset(environment=Document(ENVIRONMENT)).vpc == "new"


# -- environments --------------------------------------------------------------------------------------------------


def test_an_environment_is_planned_applied_and_exported(shop: Shop) -> None:
    before = shop.everything
    document = Document(ENVIRONMENT)
    planned = shop.controller.plan(document)
    assert [change.what for change in planned.changes] == ["VPC new", "subnet new/api", "instance new/api"]
    assert shop.everything == before
    applied = shop.controller.apply(document)
    assert (applied.changes, applied.steps) == (planned.changes, 1)
    kinds = [type(event) for event in shop.events]
    assert kinds[0] is events.Progress
    assert kinds[-3:] == [events.ObjectChanged] * 3
    assert shop.controller.apply(Document(shop.controller.export())).steps == 0
    assert [vpc["name"] for vpc in shop.controller.export("new")["vpcs"]] == ["new"]
    shop.controller.apply(document, prune=True)
    assert [vpc.name for vpc in shop.controller.list_vpcs()] == ["new"]


def test_a_vpc_that_fails_leaves_the_others_done(shop: Shop) -> None:
    shop.kernel.foreign.add(("Namespace", "bad-router"))
    vpcs = [{"name": name, "cidr": f"10.{number}.0.0/16"} for number, name in enumerate(("bad", "good"), 20)]
    with pytest.raises(errors.ConflictError, match="1 of 2 steps"):
        shop.controller.apply(Document({"vpcs": vpcs}))
    assert [vpc.name for vpc in shop.controller.list_vpcs()] == ["shop", "good"]
    assert any(isinstance(event, events.Remark) and "VPC bad" in str(event) for event in shop.events)


# -- traffic -------------------------------------------------------------------------------------------------------


def test_questions_are_answered(shop: Shop) -> None:
    controller = shop.controller
    controller.apply_policies(Document(DB, "db.json"), vpc="shop")
    found = controller.explain("shop/web", "shop/db", "tcp/5432")
    assert (found.answer.verdict, found.answer.deciding.origin) == ("allow", "db.json#/ingress/0")
    assert (found.warnings, found.unplaced) == ((), None)
    pairs = {(pair.source, pair.destination): len(pair.lines) for pair in controller.matrix("shop").pairs}
    assert (pairs["web", "db"], pairs["db", "db"]) == (1, 0)
    asked = {"from": "shop/web", "to": "shop/db", "service": "tcp/22"}
    checked = controller.verify(Document([asked | {"expect": "deny"}, asked | {"expect": "allow"}]))
    assert ([check.passed for check in checked.checks], checked.failed) == ([True, False], 1)


def test_a_document_is_judged_in_place_of_what_there_is(shop: Shop) -> None:
    found = shop.controller.explain("new/api", "198.51.100.7", "tcp/1", environment=Document(ENVIRONMENT))
    assert (found.answer.verdict, found.unplaced) == ("allow", "198.51.100.7")


def test_a_host_that_cannot_be_read_is_warned_of(shop: Shop) -> None:
    def refuse() -> Host:
        raise errors.KernelError("cannot read the host's own addresses")

    controller = Controller(store=shop.store, make_kernel=lambda: shop.kernel, read_host=refuse)
    assert "cannot read" in controller.explain("shop/web", "internet", "any").warnings[0]
    assert "cannot read" in controller.matrix("shop").warnings[0]
    assert "cannot read" in controller.plan(Document(ENVIRONMENT)).warnings[0]
    assert "cannot read" in controller.clear_policy("shop", "web").warnings[0]


# -- the machine ---------------------------------------------------------------------------------------------------


def test_status_tells_what_differs_and_repair_ends_it(shop: Shop) -> None:
    assert shop.controller.status().in_sync
    shop.kernel.remove(Namespace("shop-web", "x"))
    found = shop.controller.status()
    assert "namespace shop-web is absent" in map(str, found.differences)
    assert [share.vpc for share in found.shares] == ["shop"]
    repaired = shop.controller.repair()
    assert (len(repaired.differences), repaired.resumed) == (len(found.differences), False)
    assert shop.controller.status("shop").in_sync


def test_a_reboot_is_resumed_from_with_a_remark(shop: Shop) -> None:
    shop.kernel.reboot("boot-2")
    assert shop.controller.repair().resumed
    assert [type(event) for event in shop.events] == [events.Remark]


def test_a_record_that_was_lost_is_adopted(tmp_path: Path) -> None:
    kernel, store = FakeKernel(), Store(tmp_path / "state", tmp_path / "copies")
    controller = Controller(store=store, make_kernel=lambda: kernel, read_host=Host)
    controller.create_vpc("shop", "10.0.0.0/16")
    (tmp_path / "state/state.json").unlink()
    with pytest.raises(errors.StateError):
        controller.list_vpcs()
    assert controller.adopt().differences == ()
    assert [vpc.name for vpc in controller.list_vpcs()] == ["shop"]


def test_steps_are_reported(shop: Shop) -> None:
    outcome = shop.controller.create_instance("shop", "web", "x").outcome
    assert [event.step for event in shop.events if isinstance(event, events.StepTaken)] == list(outcome.plan.steps)


# -- the package ---------------------------------------------------------------------------------------------------


def test_the_public_names_are_there_and_come_late() -> None:
    for name in vpcctl.PUBLIC:
        assert getattr(vpcctl, name).__name__ == name
        assert name in dir(vpcctl)
    assert {one.__name__ for one in vars(errors).values() if isinstance(one, type)} & set(vpcctl.ERRORS) == set(
        vpcctl.ERRORS
    )
    with pytest.raises(AttributeError, match="has no attribute 'controler'"):
        vpcctl.controler  # noqa: B018
    code = "import sys, vpcctl; print(*(name for name in sys.modules if name.startswith('vpcctl')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vpcctl"]


def test_the_controller_comes_without_the_kernel_and_the_command_line() -> None:
    code = "import sys; from vpcctl import Controller; Controller('/nowhere').list_vpcs(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "vpcctl.engine.controller" in loaded
    assert not {"click", "pyroute2", "nftables", "jsonschema", "vpcctl.kernel.linux", "vpcctl.cli"} & loaded


def test_every_call_is_in_the_documented_table() -> None:
    calls = {name for name, _ in inspect.getmembers(Controller, inspect.isfunction) if not name.startswith("_")}
    table = (ROOT / "docs/api.md").read_text().rpartition("| subject | calls |")[2]
    assert set(re.findall(r"`(\w+)`", table)) == calls


def test_the_directory_is_the_one_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VPCCTL_STATE_DIR", raising=False)
    assert str(machine.state_directory(None)) == "/var/lib/vpcctl"
    monkeypatch.setenv("VPCCTL_STATE_DIR", "/run/x")
    assert str(machine.state_directory(None)) == "/run/x"
    assert str(machine.state_directory("y")) == "y"
