"""What every change must keep: which changes are refused, why, and what overrides it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import worlds
from vpcctl import Controller, Document
from vpcctl.analysis import invariants
from vpcctl.analysis.explain import ask
from vpcctl.analysis.reachability import Reach
from vpcctl.cli import commands, main
from vpcctl.cli.session import Session
from vpcctl.engine.environments import EnvironmentPlan
from vpcctl.engine.events import Event
from vpcctl.engine.state import Store
from vpcctl.errors import ConflictError, DocumentError, InvariantError, KernelError, VpcctlError
from vpcctl.model.host import Host
from vpcctl.model.network import MOST_INVARIANTS, Invariant, World
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.kinds import Item


def assertion(source: str, destination: str, service: str, expect: str, **more: str) -> dict[str, str]:
    return {"from": source, "to": destination, "service": service, "expect": expect, **more}


CLOSED = assertion("internet", "shop/db", "any", "deny", description="customers' data")
SERVED = assertion("shop/web", "shop/db", "tcp/5432", "allow")
DB = {
    "subnet": "db",
    "ingress": [{"action": "allow", "protocol": "tcp", "port": 5432, "source": "subnet:web"}],
    "default": {"ingress": "deny"},
}


HOST = Host((ip_network("198.51.100.2/32"),))


class Refusing(FakeKernel):
    """A kernel that makes nothing whose name begins with `refused`."""

    refused = "-"

    def ensure(self, item: Item) -> None:
        if str(item.key[-1]).startswith(self.refused):
            raise KernelError(f"{item.key} is refused")
        super().ensure(item)


class Shop:
    """A machine with a VPC whose database is closed, and what was reported."""

    def __init__(self, directory: Path):
        self.kernel, self.store = Refusing(), Store(directory)
        self.events: list[Event] = []
        self.controller = self.controlled()
        self.controller.create_vpc("shop", "10.0.0.0/16")
        self.controller.create_subnet("shop", "web", "10.0.1.0/24", public=True)
        self.controller.create_subnet("shop", "db", "10.0.2.0/24", public=False)
        self.controller.apply_policies(policy(DB))

    def controlled(self, **options: bool) -> Controller:
        return Controller(
            store=self.store,
            make_kernel=lambda: self.kernel,
            report=self.events.append,
            read_host=lambda: HOST,
            **options,
        )

    def state(self, *assertions: dict[str, str], vpc: str | None = None) -> None:
        self.controller.set_invariants(Document(list(assertions), "held.json"), vpc)

    @property
    def everything(self) -> tuple[Any, ...]:
        return self.store.load(), dict(self.kernel.objects)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "state")


def policy(document: dict[str, Any]) -> Document:
    return Document({"vpc": "shop", **document}, "new.json")


OPEN = {**DB, "ingress": [*DB["ingress"], {"action": "allow", "protocol": "tcp", "port": 80}]}
NARROW = {**DB, "ingress": []}

Act = Callable[[Controller], object]
# A change that breaks an invariant, and what the message says about it.
BREAKING: dict[str, tuple[Act, str]] = {
    "a published port": (
        lambda one: one.publish_port("shop", "db", 5432),
        "internet → shop/db any must be denied, but",
    ),
    "a policy": (
        lambda one: one.apply_policies(policy(NARROW)),
        "shop/web → shop/db tcp/5432 must be allowed, but it is denied by new.json#/default/ingress (held.json#/1)",
    ),
    "a deleted subnet": (
        lambda one: one.delete_subnet("shop", "web"),
        "shop/web → shop/db tcp/5432 must be allowed, but instance or subnet 'web' not found in VPC shop",
    ),
    "a deleted VPC": (
        lambda one: one.delete_vpc("shop", cascade=True),
        "shop/web → shop/db tcp/5432 must be allowed, but VPC 'shop' not found",
    ),
    "a dry run": (lambda one: one.apply_policies(policy(NARROW), dry_run=True), "must be allowed, but it is denied by"),
    "an environment": (
        lambda one: one.apply(Document({"vpcs": [{"name": "shop", "cidr": "10.0.0.0/16"}]}, "env.json")),
        "shop/web → shop/db tcp/5432 must be allowed",
    ),
    "a plan": (
        lambda one: one.plan(Document({"vpcs": [{"name": "shop", "cidr": "10.0.0.0/16"}]}, "env.json")),
        "shop/web → shop/db tcp/5432 must be allowed",
    ),
}


@pytest.mark.parametrize("name", BREAKING)
def test_a_change_that_breaks_an_invariant_is_refused_with_the_line_that_decides(shop: Shop, name: str) -> None:
    shop.controller.clear_policy("shop", "db")
    shop.controller.apply_policies(
        policy({**DB, "ingress": [*DB["ingress"], {"action": "allow", "source": "internet"}]})
    )
    shop.state(CLOSED, SERVED)
    before = shop.everything
    act, words = BREAKING[name]
    with pytest.raises(InvariantError) as caught:
        act(shop.controller)
    assert caught.value.exit_status == 1
    assert any(words in line for line in caught.value.broken), caught.value.broken
    assert shop.everything == before


@pytest.mark.parametrize("name", [name for name in BREAKING if name not in ("a dry run", "a plan")])
def test_whoever_overrides_an_invariant_gets_the_change_and_a_remark(shop: Shop, name: str) -> None:
    shop.controller.apply_policies(
        policy({**DB, "ingress": [*DB["ingress"], {"action": "allow", "source": "internet"}]})
    )
    shop.state(CLOSED, SERVED)
    before = shop.everything
    BREAKING[name][0](shop.controlled(override_invariants=True))
    assert shop.everything != before
    assert any(str(event).startswith("overrides an invariant: ") for event in shop.events)


def test_the_line_that_allows_is_named_with_what_it_allows(shop: Shop) -> None:
    with pytest.raises(InvariantError) as caught:
        shop.state(assertion("shop/web", "shop/db", "any", "deny", description="nobody"), vpc="shop")
    assert str(caught.value).split("\n") == [
        "this would break an invariant:",
        "shop/web → shop/db any must be denied, but web (10.0.1.2) → db (10.0.2.2) tcp/5432 is allowed by"
        " new.json#/ingress/0 (held.json#/0: nobody)",
        "nothing was changed; change what must hold with `vpcctl set-invariants`, or add --override-invariants",
    ]


def test_what_keeps_the_invariants_is_done(shop: Shop) -> None:
    shop.state(CLOSED, SERVED)
    shop.controller.apply_policies(policy(OPEN))
    shop.controller.create_vpc("other", "10.1.0.0/16")
    shop.controller.create_subnet("other", "app", "10.1.1.0/24", public=True)
    shop.controller.publish_port("other", "app", 80)
    assert [one.holds for one in shop.controller.list_invariants()] == [True, True]


def test_a_port_that_another_vpc_publishes_may_break_what_is_said_of_the_host(shop: Shop) -> None:
    shop.controller.create_vpc("other", "10.1.0.0/16")
    shop.controller.create_subnet("other", "app", "10.1.1.0/24", public=True)
    shop.controller.publish_port("other", "app", 9000)
    shop.state(assertion("shop/web", "host", "tcp/8080", "deny"))
    with pytest.raises(InvariantError):
        shop.controller.publish_port("other", "app", 8080)


def test_what_does_not_exist_is_denied_all_traffic(shop: Shop) -> None:
    shop.state(assertion("internet", "shop/web", "any", "deny"))
    shop.controller.delete_subnet("shop", "web")
    shop.controller.create_subnet("shop", "web", "10.0.3.0/24", public=True)
    with pytest.raises(InvariantError):
        shop.controller.publish_port("shop", "web", 80)


def test_an_invariant_that_was_overridden_does_not_stop_other_changes(shop: Shop) -> None:
    shop.state(CLOSED, SERVED)
    shop.controlled(override_invariants=True).apply_policies(policy(NARROW))
    assert [one.holds for one in shop.controller.list_invariants()] == [True, False]
    shop.controller.create_nat_gateway("shop", "db")
    shop.controller.apply_policies(policy(DB))
    assert [one.holds for one in shop.controller.list_invariants()] == [True, True]


def test_invariants_replace_those_of_the_same_owner_and_go_with_their_vpc(shop: Shop) -> None:
    shop.state(CLOSED)
    shop.state(SERVED, vpc="shop")
    shop.state(assertion("internet", "shop/web", "any", "deny"))
    assert [(str(one.invariant), one.invariant.vpc) for one in shop.controller.list_invariants()] == [
        ("shop/web → shop/db tcp/5432: allow", "shop"),
        ("internet → shop/web any: deny", None),
    ]
    assert [one.invariant.vpc for one in shop.controller.list_invariants("shop")] == ["shop"]
    shop.controller.delete_vpc("shop", cascade=True)
    assert [one.invariant.vpc for one in shop.controller.list_invariants()] == [None]
    shop.controller.clear_invariants()
    assert shop.controller.list_invariants() == ()


def test_destroy_is_a_change_of_everything(shop: Shop) -> None:
    shop.state(SERVED)
    shop.controller.destroy()
    assert shop.store.load().world == World()


STRANGE = {
    "no VPC": ([assertion("shop/web", "shoop/db", "any", "deny")], None, "held.json#/0: VPC 'shoop' not found"),
    "no instance": ([SERVED, assertion("shop/web", "shop/bd", "any", "deny")], None, "held.json#/1: instance or"),
    "no service": ([assertion("shop/web", "shop/db", "postgres", "deny")], None, "is not a service"),
    "no expectation": ([{"from": "shop/web"}], None, "held.json#/0: "),
    "another VPC": ([assertion("shop/web", "shop/db", "any", "deny")], "other", "neither end is in VPC other"),
    "too many": ([CLOSED | {"description": str(n)} for n in range(MOST_INVARIANTS + 1)], None, "at most 1000"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_words_that_mean_nothing_are_refused(shop: Shop, name: str) -> None:
    assertions, vpc, words = STRANGE[name]
    shop.controller.create_vpc("other", "10.1.0.0/16")
    before = shop.everything
    with pytest.raises(DocumentError, match=words.replace("/", ".")):
        shop.state(*assertions, vpc=vpc)
    assert shop.everything == before


def test_invariants_of_a_vpc_that_does_not_exist_are_refused(shop: Shop) -> None:
    with pytest.raises(ConflictError, match="VPC 'shpo' not found"):
        shop.controller.clear_invariants("shpo")
    with pytest.raises(ConflictError, match="VPC 'shpo' not found"):
        shop.controller.list_invariants("shpo")


# -- environments --------------------------------------------------------------------------------------------------


def environment(**more: Any) -> dict[str, Any]:
    subnets = [
        {"name": "web", "cidr": "10.0.1.0/24", "type": "public"},
        {"name": "db", "cidr": "10.0.2.0/24", "type": "private", "policy": {"ingress": DB["ingress"]}},
    ]
    return {"vpcs": [{"name": "shop", "cidr": "10.0.0.0/16", "subnets": subnets, **more}]}


def test_an_environment_carries_invariants_and_its_export_too(shop: Shop) -> None:
    document = {**environment(invariants=[SERVED]), "invariants": [CLOSED]}
    planned = shop.controller.plan(Document(document, "env.json"))
    assert isinstance(planned, EnvironmentPlan)
    assert [str(one) for one in planned.changes if "invariant" in str(one)] == [
        "+ invariant: internet → shop/db any: deny",
        "+ invariant of VPC shop: shop/web → shop/db tcp/5432: allow",
    ]
    shop.controller.apply(Document(document, "env.json"))
    exported = shop.controller.export()
    assert (exported["invariants"], exported["vpcs"][0]["invariants"]) == ([CLOSED], [SERVED])
    assert "invariants" not in shop.controller.export("shop")
    assert shop.controller.plan(Document(exported, "again.json")).changes == ()
    # An environment that is silent about them leaves them.
    shop.controller.apply(Document(environment(), "env.json"))
    assert len(shop.controller.list_invariants()) == 2
    shop.controller.apply(Document({**environment(invariants=[]), "invariants": []}, "env.json"))
    assert shop.controller.list_invariants() == ()


def test_an_environment_that_breaks_its_own_invariants_is_refused(shop: Shop) -> None:
    before = shop.everything
    wrong = assertion("shop/web", "shop/db", "tcp/5432", "deny")
    with pytest.raises(
        InvariantError, match=r"must be denied, but it is allowed by env\.json#/vpcs/0/subnets/1/policy"
    ):
        shop.controller.apply(Document(environment(invariants=[wrong]), "env.json"))
    assert shop.everything == before


def test_a_vpc_that_fails_takes_the_change_back_if_an_invariant_needs_it(shop: Shop) -> None:
    """What is left of a change that failed in part is judged, too."""
    other = {
        "name": "other",
        "cidr": "10.1.0.0/16",
        "subnets": [{"name": "app", "cidr": "10.1.1.0/24", "type": "public"}],
    }
    document = environment()
    document["vpcs"].append(other)
    document["peerings"] = [["shop", "other"]]
    document["invariants"] = [assertion("other/app", "shop/web", "tcp/80", "allow")]
    before = shop.everything
    shop.kernel.refused = "other"
    with pytest.raises(KernelError, match="is refused"):
        shop.controller.apply(Document(document, "env.json"))
    assert shop.store.load().world == before[0].world


def test_verify_judges_the_invariants_of_an_environment_without_a_machine(tmp_path: Path) -> None:
    controller = Controller(tmp_path / "nowhere", make_kernel=FakeKernel, read_host=Host)
    wrong = assertion("shop/web", "shop/db", "tcp/22", "allow")
    document = Document({**environment(invariants=[SERVED]), "invariants": [wrong]}, "env.json")
    found = controller.verify(environment=document)
    assert [check.passed for check in found.checks] == [False, True]
    with pytest.raises(DocumentError, match="no invariants"):
        controller.verify(environment=Document(environment(), "env.json"))


# -- any worlds ----------------------------------------------------------------------------------------------------

ENDS = (
    "alpha/web",
    "alpha/db",
    "alpha/web-two",
    "beta/api",
    "beta/web",
    "loner/web",
    "internet",
    "host",
    "203.0.113.7",
)
stated = st.lists(
    st.builds(
        Invariant,
        st.sampled_from(ENDS),
        st.sampled_from(ENDS),
        st.sampled_from(["any", "tcp/80", "udp", "tcp/8000", "icmp"]),
        st.sampled_from(["allow", "deny"]),
    ),
    max_size=6,
    unique=True,
).map(tuple)


def asked(world: World, host: Host, one: Invariant) -> bool | None:
    """Does it hold?  Asked of a whole world; None where it means nothing there."""
    try:
        return ask(Reach(world, host), one.source, one.destination, one.service).verdict == one.expect
    except VpcctlError:
        return None


@settings(max_examples=50)
@given(worlds.worlds(), worlds.worlds(), worlds.hosts, stated, stated, st.data())
def test_exactly_what_held_before_or_is_new_is_broken(
    one: World, other: World, host: Host, old: tuple, new: tuple, data: st.DataObject
) -> None:
    """The change is small, so that most invariants are not looked at; asking for all of them is the oracle."""
    chosen = data.draw(st.sampled_from([vpc.name for vpc in one.vpcs]))
    changed = other.vpcs_by_name.get(chosen)
    before = dataclasses.replace(one, invariants=old)
    after = before if changed is None else before.with_vpc(dataclasses.replace(changed, index=one.vpc(chosen).index))
    if data.draw(st.booleans()):
        after = dataclasses.replace(after, peerings=())
    fresh = tuple(inv for inv in new if inv not in old and asked(after, host, inv) is not None)
    after = dataclasses.replace(after, invariants=(*old, *fresh))
    expected = []
    for invariant in after.invariants:
        held, holds = (asked(world, host, invariant) for world in (before, after))
        # What means nothing, because it does not exist, is denied.
        held, holds = (invariant.expect == "deny" if found is None else found for found in (held, holds))
        if not holds and (held or invariant in fresh):
            expected.append(invariant)
    assert [judged.invariant for judged in invariants.broken(before, after, host)] == expected


def test_the_record_keeps_invariants(shop: Shop) -> None:
    shop.state(CLOSED)
    shop.state(SERVED, vpc="shop")
    read = Store(shop.store.directory).load().world
    assert [(one, one.place) for one in read.invariants] == [
        (Invariant("internet", "shop/db", "any", "deny", None, "customers' data"), "held.json#/0"),
        (Invariant("shop/web", "shop/db", "tcp/5432", "allow", "shop"), "held.json#/0"),
    ]


# -- the command line ----------------------------------------------------------------------------------------------


def test_the_commands_say_what_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Shop(tmp_path / "state")
    monkeypatch.chdir(tmp_path)
    Path("held.json").write_text(json.dumps([CLOSED, SERVED]))
    Path("narrow.json").write_text(json.dumps({"vpc": "shop", **NARROW}))

    def run(*words: str, status: int = 0, override: bool = False) -> str:
        session = Session(str(tmp_path / "state"), 0, lambda: machine.kernel, lambda: HOST, override)
        command = commands.get_command(click.Context(commands), words[0])
        result = CliRunner().invoke(command, list(words[1:]), obj=session)
        found = result.exception.exit_status if isinstance(result.exception, VpcctlError) else result.exit_code
        assert found == status, (result.output, result.exception)
        return result.output + (str(result.exception) if isinstance(result.exception, VpcctlError) else "")

    assert run("show-invariants") == "no invariants\n"
    assert run("verify", status=2).startswith("no invariants; ")
    assert run("set-invariants", "held.json") == "2 invariants of the machine must hold from now on\n"
    assert run("show-invariants").split("\n")[0] == "holds  internet → shop/db any: deny"
    assert "shop/web → shop/db tcp/5432 must be allowed" in run("apply-policy", "narrow.json", status=1)
    assert "overrides an invariant: shop/web → shop/db" in run("apply-policy", "narrow.json", override=True)
    assert "BROKEN shop/web → shop/db tcp/5432 must be allowed, but it is denied" in run("show-invariants", status=1)
    assert [one["holds"] for one in json.loads(run("show-invariants", "--json", status=1))] == [True, False]
    assert "1 passed, 1 failed" in run("verify", status=1)
    assert run("clear-invariants") == "removed 2 invariants of the machine\n"


def test_the_option_stands_before_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--override-invariants" in capsys.readouterr().out
