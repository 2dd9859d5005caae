"""The history: every change is kept, any of them is gone back to, and nothing of it stops a command."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import stat
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tests.failing_machine import FACTS, Crash, Watched, struck
from tests.rehearsal import Rehearsal
from tests.story import LEAPS, STORY, Step, nothing, policy, told
from vpcctl import Controller
from vpcctl.cli import commands
from vpcctl.documents.diff import exported
from vpcctl.engine import history, parts, reconciler
from vpcctl.engine.machine import Author
from vpcctl.engine.state import HISTORY, Authorship, State, Store, Writer
from vpcctl.errors import ConflictError, InvariantError, KernelError, StateError
from vpcctl.model import operations
from vpcctl.model.host import Host
from vpcctl.model.network import TCP, Invariant, Publication, World
from vpcctl.model.restoration import restored

ANN = Author("ann", "root", ("apply-policy", "db.json"))


class Shop:
    """A machine with a real state directory and a kernel that is a dictionary."""

    def __init__(self, directory: Path, author: Author = ANN):
        self.directory = directory
        self.kernel = Watched(FACTS)
        self.said: list[str] = []
        self.controller = Controller(
            store=Store(directory),
            make_kernel=lambda: self.kernel,
            report=lambda event: self.said.append(str(event)),
            read_host=Host,
            author=author,
        )

    def change(self, step: Step) -> None:
        self.controller.change(lambda state: step(state.world))

    @property
    def state(self) -> State:
        return Store(self.directory).load()

    @property
    def export(self) -> dict[str, Any]:
        return exported(self.state.world)

    def undo(self, to: int | None = None) -> None:
        self.controller.undo(self.controller.plan_undo(to))

    def world_after(self, number: int) -> World:
        """The world after a change, found in the history alone."""
        store = Store(self.directory)
        state = store.load()
        past = history.Past(state.world, store.shelf())
        for entry in reversed(history.entries(state, store)):
            if entry.number > number:
                past.go_back(entry)
        return past.world()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "state")


def meant(world: World) -> World:
    """What people wanted of a world, and in which order: without what was allocated."""
    vpcs = [
        dataclasses.replace(
            vpc,
            index=number,
            subnets=tuple(
                dataclasses.replace(
                    subnet,
                    released=(),
                    instances=tuple(dataclasses.replace(one, mac=f"{one.name}") for one in subnet.instances),
                )
                for subnet in vpc.subnets
            ),
        )
        for number, vpc in enumerate(world.vpcs)
    ]
    # Origins of policies are compared, too: what decides is named by its line again.
    return dataclasses.replace(world, vpcs=tuple(vpcs))


def rules(number: int, vpc: str = "one") -> Step:
    """A policy of so many rules; of many the list is a part of its own."""
    ingress = [{"action": "allow", "protocol": "tcp", "port": 1 + port} for port in range(number)]
    return policy({"subnet": "web", "ingress": ingress}, vpc)


def rules_of(shop: Shop) -> int:
    found = shop.state.world.vpc("one").subnet("web").policy
    return 0 if found is None else len(list(found.ingress or ()))


# -- what is kept --------------------------------------------------------------------------------------------------


def test_each_change_is_listed_with_whose_it_is_and_what_it_did(shop: Shop) -> None:
    for _, step in STORY[:3]:
        shop.change(step)
    changes = shop.controller.history()
    assert [one.number for one in changes] == [1, 2, 3]
    assert {(one.user, one.acting_as, one.command) for one in changes} == {("ann", "root", ("apply-policy", "db.json"))}
    assert changes[1].summary == "+ subnet one/web: 10.0.0.0/28, public; + instance one/web: 10.0.0.2"
    assert all(one.time.endswith("Z") and one.confirmed for one in changes)


def test_what_changes_no_intent_is_no_change(shop: Shop) -> None:
    shop.change(lambda world: told("peer them"))
    shop.change(lambda world: world)
    shop.kernel.objects.clear()
    assert shop.controller.repair().differences
    with pytest.raises(ConflictError):
        shop.controller.delete_subnet("one", "absent")
    shop.kernel.reboot("boot-2")
    shop.controller.repair()
    assert [one.number for one in shop.controller.history()] == [1]


def test_files_are_private(shop: Shop) -> None:
    shop.change(STORY[0][1])
    folder = shop.directory / HISTORY
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert (stat.S_IMODE(folder.stat().st_mode), modes) == (0o700, {0o600})


def test_the_history_is_bounded_and_has_the_last_hundred(shop: Shop) -> None:
    shop.change(lambda world: told("create its subnet web"))
    limits = [1000 + number for number in range(270)]
    for limit in limits:
        shop.change(lambda world, limit=limit: operations.set_limits(world, "one", limit, None))
    numbers = [one.number for one in shop.controller.history()]
    assert numbers[-1] == len(limits) + 1
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert history.KEPT <= len(numbers) < history.KEPT + 2 * history.SPAN
    assert len(list((shop.directory / HISTORY).iterdir())) <= 1 + (history.KEPT + history.SPAN) // history.SPAN
    shop.undo(numbers[0])
    assert shop.state.world.vpc("one").max_flows == limits[numbers[0] - 2]
    with pytest.raises(ConflictError, match=f"change {numbers[0] - 1} is not kept"):
        shop.controller.show_change(numbers[0] - 1)


def test_an_entry_costs_what_the_change_changed(shop: Shop) -> None:
    """Neither other VPCs nor rules that stay are written."""
    shop.change(lambda world: told("peer them"))
    shop.change(rules(3000))
    before = shop.state.annals.segments[-1].size
    shop.change(lambda world: operations.set_limits(world, "one", 999, None))
    assert shop.state.annals.segments[-1].size - before < 600


# -- the way back --------------------------------------------------------------------------------------------------


def test_every_world_of_a_life_is_found_again(shop: Shop) -> None:
    worlds = [World()]
    for _, step in STORY:
        shop.change(step)
        worlds.append(shop.state.world)
    assert [one.number for one in shop.controller.history()] == list(range(1, len(worlds)))
    for number, world in enumerate(worlds):
        assert shop.world_after(number) == world


@pytest.mark.parametrize(
    ("before", "after"), [*zip(["", *(n for n, _ in STORY)], (n for n, _ in STORY), strict=False), *LEAPS]
)
def test_a_change_is_undone_and_redone(shop: Shop, before: str, after: str) -> None:
    if before:
        shop.change(lambda world: told(before))
    first = shop.state.world
    shop.change(lambda world: told(after))
    second = shop.state.world
    shop.undo()
    assert meant(shop.state.world) == meant(first)
    assert shop.controller.status().in_sync
    shop.undo()
    assert meant(shop.state.world) == meant(second)
    assert shop.controller.status().in_sync


@pytest.mark.parametrize("number", [0, 1, 5, 9, 13])
def test_any_world_of_the_past_is_made_again(shop: Shop, number: int) -> None:
    worlds = [shop.export]
    for _, step in STORY[:-2]:
        shop.change(step)
        worlds.append(shop.export)
    shop.undo(number)
    assert shop.export == worlds[number]
    assert shop.controller.status().in_sync
    shop.undo()
    assert shop.export == worlds[-1]


def test_rules_that_are_no_part_of_the_record_any_more_come_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "GRACE", 0.0)
    shop.change(lambda world: told("create its subnet web"))
    shop.change(rules(3000))
    shop.change(rules(2000))
    shop.change(nothing)
    for limit in (1, 2, 3):
        shop.change(
            lambda world, limit=limit: operations.create_vpc(world, f"other-{limit}", ip_network(f"10.{limit}.0.0/16"))
        )
    assert all(path.stat().st_size < 10_000 for path in (shop.directory / parts.FOLDER).iterdir())
    for number, expected in ((3, 2000), (2, 3000), (1, 0)):
        shop.undo(number)
        assert rules_of(shop) == expected
    # What was undone is a change itself, and is undone.
    shop.undo()
    assert rules_of(shop) == 3000


def test_a_change_is_shown_with_what_it_did(shop: Shop) -> None:
    for _, step in STORY:
        shop.change(step)
    names = [name for name, _ in STORY]
    view = shop.controller.show_change(1 + names.index("tighten the policy"))
    assert [str(one) for one in view.changes] == ["~ policy of one/web: web.json"]
    assert view.forecast.newly_denied
    assert [vpc["name"] for vpc in view.before["vpcs"]] == ["one"]
    assert view.before["vpcs"][0]["subnets"][0]["policy"] != view.after["vpcs"][0]["subnets"][0]["policy"]


def test_a_plan_says_how_many_objects_go_and_what_is_lost(shop: Shop) -> None:
    shop.change(lambda world: told("peer them"))
    planned = shop.controller.plan_undo()
    assert planned.counts == ("removes 2 VPCs, 3 instances, 1 peering, 1 published port, 3 subnets",)
    assert planned.losses == ("deleted: one/web, one/db, two/api; programs that run in them lose their network",)
    shop.controller.undo(planned)
    again = shop.controller.plan_undo()
    assert again.losses == (
        "made anew: one/web, one/db, two/api; the namespaces are empty, and nothing that ran in them before is started",
    )


def test_a_plan_that_is_out_of_date_is_refused(shop: Shop) -> None:
    shop.change(lambda world: told("peer them"))
    planned = shop.controller.plan_undo()
    shop.change(rules(2))
    with pytest.raises(ConflictError, match="another command changed something meanwhile"):
        shop.controller.undo(planned)
    assert rules_of(shop) == 2


@pytest.mark.parametrize(("number", "words"), [(9, "change 9 not found; the last change is 1"), (None, "")])
def test_what_is_not_there_cannot_be_undone(shop: Shop, number: int | None, words: str) -> None:
    with pytest.raises(ConflictError, match="nothing to undo"):
        shop.controller.plan_undo(number)
    shop.change(STORY[0][1])
    if number is not None:
        with pytest.raises(ConflictError, match=words):
            shop.controller.plan_undo(number)


def test_what_is_in_the_way_of_the_past_is_named_and_nothing_is_changed(shop: Shop) -> None:
    shop.change(lambda world: told("peer them"))
    shop.change(lambda world: operations.delete_vpc(world, "two", True))
    shop.kernel.foreign.add(("Namespace", "two-router"))
    before, objects = shop.state, dict(shop.kernel.objects)
    with pytest.raises(ConflictError, match=r"two-router.*is not ours"):
        shop.undo()
    assert (shop.state, shop.kernel.objects) == (before, objects)


# -- facts stay ----------------------------------------------------------------------------------------------------


def test_what_is_there_keeps_what_was_allocated_for_it() -> None:
    past = told("peer them")
    present = past
    for vpc in present.vpcs:
        moved = tuple(
            dataclasses.replace(
                subnet,
                nat_gateway=False,
                instances=tuple(dataclasses.replace(one, mac=one.mac[:-2] + "ff") for one in subnet.instances),
            )
            for subnet in vpc.subnets
        )
        published = tuple(dataclasses.replace(item, entry=2000) for item in vpc.publications)
        made = dataclasses.replace(vpc, index=vpc.index + 5, subnets=moved, publications=published)
        present = present.with_vpc(made)
    found = restored(present, past, 7)
    assert [vpc.index for vpc in found.vpcs] == [5, 6]
    assert {one.mac[-2:] for vpc in found.vpcs for one in vpc.instances} == {"ff"}
    assert [item.entry for item in found.vpc("one").publications] == [2000]
    assert found.vpc("one").subnet("db").nat_gateway


def test_what_is_made_anew_meets_nothing_that_is_remembered() -> None:
    past = told("peer them")
    present = operations.delete_vpc(past, "two", True)
    # Somebody else has its uplink by now.
    present = operations.create_vpc(present, "three", past.vpc("two").prefixes[0])
    present = operations.delete_instance(operations.unpublish_port(present, "one", TCP, 8080), "one", "web")
    three = dataclasses.replace(present.vpc("three"), index=9, prefixes=(ip_network("10.8.0.0/16"),))
    found = restored(present, dataclasses.replace(past, vpcs=(*past.vpcs, three)), 7)
    assert len({vpc.index for vpc in found.vpcs}) == 3
    assert found.vpc("three").index == present.vpc("three").index
    assert found.vpc("one").instance("web").mac != past.vpc("one").instance("web").mac
    assert found.vpc("one").instance("db").mac == past.vpc("one").instance("db").mac
    assert found.vpc("one").subnet("web").released == ()


def test_a_port_that_comes_back_takes_a_free_one_at_the_router() -> None:
    world = told("publish a port")
    past = world.vpc("one")
    other = Publication(TCP, 8080, "db", 80, address=None)
    present = dataclasses.replace(past, publications=(dataclasses.replace(other, port=9000, entry=8080),))
    wanted = dataclasses.replace(past, publications=(*past.publications, dataclasses.replace(other, port=9000)))
    found = restored(world.with_vpc(present), world.with_vpc(wanted), 7).vpc("one")
    assert [item.entries[0] for item in found.publications][1] == 8080
    assert found.publications[0].entry_port != 8080


# -- what goes wrong -----------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def append(self: Writer, name: str, size: int, line: bytes) -> bool:
        raise error

    monkeypatch.setattr(Writer, "append", append)


def test_a_full_disk_stops_no_change(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.change(lambda world: told("create its subnet web"))
    with monkeypatch.context() as patched:
        failing(patched, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        shop.change(rules(1))
    assert rules_of(shop) == 1
    told_words = "change 2 is not kept in the history, and cannot be undone: No space left on device"
    assert told_words in shop.said
    with pytest.raises(ConflictError, match="change 2 is not kept in the history, so it cannot be undone"):
        shop.undo()
    shop.change(rules(2))
    assert [one.number for one in shop.controller.history()] == [1, 3]
    shop.undo()
    assert rules_of(shop) == 1
    with pytest.raises(
        ConflictError, match=r"so change 1 cannot be reached; `vpcctl undo --to 2` is as far as it goes"
    ):
        shop.undo(1)


def test_what_a_crash_left_behind_is_nothing(shop: Shop) -> None:
    shop.change(lambda world: told("create its subnet web"))
    place = shop.directory / HISTORY / "1.log"
    with place.open("ab") as file:
        file.write(b'0badc0de {"number": 2, half an ent')
    assert [one.number for one in shop.controller.history()] == [1]
    shop.change(rules(2))
    assert [one.number for one in shop.controller.history()] == [1, 2]
    assert place.stat().st_size == shop.state.annals.segments[-1].size


@pytest.mark.parametrize("spoil", ["gone", "cut", "turned", "a link", "a directory"])
def test_a_damaged_history_stops_no_change(shop: Shop, spoil: str) -> None:
    shop.change(lambda world: told("create its subnet web"))
    shop.change(rules(1))
    place = shop.directory / HISTORY / "1.log"
    content = place.read_bytes()
    if spoil == "cut":
        place.write_bytes(content[:-20])
    elif spoil == "turned":
        place.write_bytes(content[:-20].replace(b"content", b"kontent") + content[-20:])
    else:
        place.unlink()
        if spoil == "a link":
            (shop.directory / "elsewhere").write_bytes(content)
            place.symlink_to(shop.directory / "elsewhere")
        elif spoil == "a directory":
            place.mkdir()
    shop.change(rules(2))
    assert rules_of(shop) == 2
    if spoil == "a link":
        assert (shop.directory / "elsewhere").read_bytes() == content
    if spoil in ("gone", "cut", "turned"):
        assert [one.number for one in shop.controller.history()][-1] == 3
        shop.undo()
        assert rules_of(shop) == 1
        with pytest.raises(ConflictError, match="not kept"):
            shop.undo(1)


def test_an_entry_that_does_not_fit_the_record_is_refused(shop: Shop) -> None:
    """A record from elsewhere, or one that was edited: better no way back than a wrong one."""
    shop.change(lambda world: told("create its subnet web"))
    shop.change(rules(1))
    store = Store(shop.directory)
    with store.locked() as writer:
        state = writer.load()
        writer.save(dataclasses.replace(state, world=operations.set_limits(state.world, "one", 77, None)))
    with pytest.raises(StateError, match="change 2 cannot be taken back: its entry is damaged"):
        shop.controller.plan_undo()


def crashes(shop: Shop, step: Step) -> int:
    """How many calls of the kernel the change makes."""
    before = len(shop.kernel.calls)
    shop.change(step)
    return len(shop.kernel.calls) - before


@pytest.mark.parametrize("error", [Crash(), KernelError("no")], ids=["crash", "failure"])
def test_a_change_that_is_struck_is_kept_once_or_not_at_all(tmp_path: Path, error: BaseException) -> None:
    """In the history is what is in force, and by whom, whoever completes it."""
    step = rules(3)
    count = crashes(prepared(tmp_path / "counted"), step)
    for number in range(1, count + 1):
        shop = prepared(tmp_path / str(number))
        first = shop.export
        shop.kernel.failures[len(shop.kernel.calls) + number] = error
        with pytest.raises(type(error)):
            shop.change(step)
        Shop.__init__(other := object.__new__(Shop), shop.directory, Author("ben"))
        other.kernel = shop.kernel
        other.controller.repair()
        changes = other.controller.history()
        made = rules_of(other) == 3
        assert [one.number for one in changes] == ([1, 2] if made else [1])
        assert made == isinstance(error, Crash)
        assert {one.user for one in changes} == {"ann"}
        if made:
            other.undo()
        assert other.export == first


def prepared(directory: Path) -> Shop:
    shop = Shop(directory)
    shop.change(lambda world: told("create its subnet web"))
    return shop


STRUCK = ["append", "save"]


@pytest.mark.parametrize("call", STRUCK)
def test_a_kill_before_or_after_each_write_leaves_a_whole_history(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    shop.change(lambda world: told("create its subnet web"))
    real: Callable[..., Any] = getattr(Writer, call)
    for late in (False, True):
        for number in (1, 2):
            wanted = 1 + (rules_of(shop) % 5)
            with monkeypatch.context() as patched:
                patched.setattr(Writer, call, struck(real, number, late))
                with contextlib.suppress(Crash):
                    shop.change(rules(wanted))
            shop.controller.repair()
            numbers = [one.number for one in shop.controller.history()]
            assert numbers == list(range(1, shop.state.annals.number + 1))
            # The whole way back is there.
            assert shop.world_after(1) == told_at_first(shop)


def told_at_first(shop: Shop) -> World:
    return dataclasses.replace(
        shop.state.world, vpcs=(operations.clear_policy(shop.state.world, "one", "web").vpc("one"),)
    )


def test_the_words_of_a_command_are_kept_without_secrets() -> None:
    from vpcctl.cli.session import kept_words

    given = "create-vpc --store https://ann:secret@store.example/x --store-token t0p --api-key=t0p2 --name shop".split()
    assert kept_words(given) == (
        "create-vpc", "--store", "https://…@store.example/x", "--store-token", "…", "--api-key=…", "--name", "shop",
    )  # fmt: skip
    assert len(" ".join(kept_words(["x" * 500] * 500))) < 5000


def test_the_record_and_its_history_are_json_of_the_format(shop: Shop) -> None:
    shop.change(lambda world: told("peer them"))
    head = json.loads((shop.directory / "state.json").read_text())
    assert head["history"]["number"] == 1
    line = (shop.directory / HISTORY / "1.log").read_bytes()
    document = json.loads(line.partition(b" ")[2])
    assert document.keys() == {
        "number", "time", "user", "as", "command", "summary", "touched", "after", "content",
    }  # fmt: skip


def test_a_part_that_fails_leaves_a_history_that_leads_back(tmp_path: Path) -> None:
    """Of an environment a VPC fails and is rolled back: the history has what was made."""
    shop = prepared(tmp_path / "state")
    first = shop.export
    wanted = told("peer them")
    shop.kernel.foreign.add(("Namespace", "two-router"))

    def choose(state: State, without: frozenset[str]) -> World:
        return told("apply a policy") if "two" in without else wanted

    reconciler.change_parts(Store(shop.directory), shop.kernel, choose)
    assert [vpc["name"] for vpc in shop.export["vpcs"]] == ["one"]
    assert shop.export != first
    shop.undo()
    assert shop.export == first


CLOSED = Invariant("one/web", "one/db", "tcp/22", "deny")


def test_invariants_come_back_like_everything_else(shop: Shop) -> None:
    shop.change(lambda world: told("create its private subnet db"))
    shop.change(policy({"subnet": "db", "ingress": []}))
    first = shop.state.world
    shop.change(lambda world: dataclasses.replace(world, invariants=(CLOSED,)))
    assert "invariant" in shop.controller.history()[-1].summary
    second = shop.state.world
    shop.undo()
    assert meant(shop.state.world) == meant(first)
    shop.undo()
    assert shop.state.world == second
    assert shop.world_after(2).invariants == ()


def test_what_would_break_an_invariant_is_not_undone(shop: Shop) -> None:
    shop.change(lambda world: told("create its private subnet db"))
    # Stated while it did not hold, which an override allows; then it holds.
    loose = Controller(
        store=Store(shop.directory), make_kernel=lambda: shop.kernel, read_host=Host, override_invariants=True
    )
    loose.change(lambda state: dataclasses.replace(state.world, invariants=(CLOSED,)))
    shop.change(policy({"subnet": "db", "ingress": []}))
    before = shop.state.world
    with pytest.raises(InvariantError):
        shop.controller.plan_undo()
    assert shop.state.world == before


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path: Path) -> Rehearsal:
    """A session on a machine with one change to undo."""
    made = Rehearsal(tmp_path / "state")
    for name in ("create its subnet web", "peer them"):
        reconciler.change(made.store, made.fake, lambda state, name=name: told(name))
    return made


def typed(session: Rehearsal, *words: str, said: str = "") -> Result:
    command = commands.get_command(click.Context(commands), words[0])
    assert command is not None
    return CliRunner().invoke(command, list(words[1:]), obj=session, input=said)


@pytest.mark.parametrize(
    ("words", "terminal", "said", "status", "undone"),
    [
        ((), True, "n\n", 1, False),
        ((), True, "y\n", 0, True),
        (("--yes",), True, "", 0, True),
        ((), False, "", 0, True),
        (("--dry-run",), True, "", 0, False),
    ],
)
def test_undo_asks_on_a_terminal_alone(
    session: Rehearsal,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    terminal: bool,
    said: str,
    status: int,
    undone: bool,
) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: terminal, raising=False)
    before = session.load().world
    result = typed(session, "undo", *words, said=said)
    assert result.exit_code == status, result.output
    assert ("Undo this?" in result.output) == (terminal and not words)
    assert (session.load().world != before) == undone
    assert undone or "nothing was changed" in result.output


def test_undo_tells_what_goes_before_it_does(session: Rehearsal) -> None:
    result = typed(session, "undo", "--dry-run", "--json")
    document = json.loads(result.stdout)
    assert document["undone"] == [2]
    assert {"sign": "-", "what": "VPC two", "detail": ""} in document["changes"]
    assert document["newly_denied"]
    assert document["losses"] == ["deleted: one/db, two/api; programs that run in them lose their network"]
    shown = typed(session, "undo", "--dry-run").output
    assert "removes 1 VPC, 2 instances, 1 peering, 1 policy, 1 published port, 2 subnets" in shown


def test_what_comes_from_others_is_shown_without_what_a_terminal_obeys(session: Rehearsal) -> None:
    command = ("apply-policy", "\x1b[2J.json")
    by = Authorship(history.now(), "ann\n", "", command)
    reconciler.change(session.store, session.fake, lambda state: World(), authorship=by)
    shown = typed(session, "history").output
    assert "\x1b" not in shown
    assert r"apply-policy \u001b[2J.json" in shown
    assert r"ann\n" in shown
