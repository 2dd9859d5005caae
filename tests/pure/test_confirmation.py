"""A change that is not confirmed in time is taken back, whoever is left to do it, and whatever died before."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.failing_machine import Crash, struck
from tests.pure.test_history import ANN, Shop, meant, prepared, rules, rules_of
from tests.story import told
from vpcctl.engine import confirmation
from vpcctl.engine.machine import Author
from vpcctl.engine.state import Store, Writer
from vpcctl.errors import ConflictError, KernelError, VpcctlError
from vpcctl.model import operations
from vpcctl.model.network import TCP, Invariant, World

SECONDS = 60
# At most about so many calls of a change are struck.
MOST = 10
ASKED = dataclasses.replace(ANN, confirm=SECONDS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The time since the boot stands still; the fixture lets it go on by so many seconds."""
    now = [1000.0]
    monkeypatch.setattr(confirmation, "clock", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A machine with a VPC and a policy of one rule, on which nobody waits for anything."""
    made = prepared(tmp_path / "state")
    made.change(rules(1))
    return made


def asking(shop: Shop, author: Author = ASKED) -> Shop:
    """The same machine for somebody whose changes have to be confirmed."""
    twin: Shop = object.__new__(Shop)
    Shop.__init__(twin, shop.directory, author)
    twin.kernel = shop.kernel
    return twin


def settle(shop: Shop) -> None:
    """What the process that was left behind does, the agent, and each command first."""
    asking(shop, Author("ben")).controller._machine.settle()


def numbers(shop: Shop) -> list[int]:
    return [one.number for one in shop.controller.history()]


# -- in time, or not -----------------------------------------------------------------------------------------------


def test_a_change_that_is_confirmed_stays(shop: Shop, clock: Callable[[float], None]) -> None:
    asking(shop).change(rules(2))
    assert [one.confirmed for one in shop.controller.history()] == [True, True, False]
    assert shop.controller.status().unconfirmed == shop.state.unconfirmed
    clock(SECONDS - 1)
    settle(shop)
    assert shop.controller.confirm().number == 3
    clock(100 * SECONDS)
    settle(shop)
    assert rules_of(shop) == 2
    assert shop.state.unconfirmed is None
    with pytest.raises(ConflictError, match="no change waits to be confirmed"):
        shop.controller.confirm()


def test_a_change_that_is_not_confirmed_is_taken_back(shop: Shop, clock: Callable[[float], None]) -> None:
    before = shop.state.world
    asking(shop).change(rules(2))
    clock(SECONDS)
    settle(shop)
    assert shop.state.world == before
    assert shop.state.unconfirmed is None
    assert shop.controller.status().in_sync
    last = shop.controller.history()[-1]
    assert (last.number, last.summary) == (4, "change 3 was not confirmed in time: ~ policy of one/web: web.json")
    # It may be brought back like everything else.
    shop.undo()
    assert rules_of(shop) == 2


def test_whoever_comes_first_takes_it_back(shop: Shop, clock: Callable[[float], None]) -> None:
    comers: dict[str, Callable[[], Any]] = {
        "a change": lambda: shop.change(lambda world: operations.set_limits(world, "one", 77, None)),
        "repair": shop.controller.repair,
        "the agent": lambda: shop.controller.tend(frozenset(), patience=1),
        "confirm": shop.controller.confirm,
        "an undo": shop.undo,
    }
    for name, come in comers.items():
        limit = shop.state.world.vpc("one").max_flows
        asking(shop).change(rules(2))
        clock(SECONDS)
        with contextlib.suppress(ConflictError):
            come()
        assert (rules_of(shop), shop.state.unconfirmed) == (1, None), name
        assert shop.state.world.vpc("one").max_flows == (77 if name == "a change" else limit)
        assert any("was not confirmed in time; taken back" in words for words in shop.said) or name == "the agent"
        shop.said.clear()


def test_no_other_change_is_made_meanwhile(shop: Shop, clock: Callable[[float], None]) -> None:
    asking(shop).change(rules(2))
    clock(10)
    before = shop.state
    with pytest.raises(ConflictError) as caught:
        shop.change(rules(3))
    assert str(caught.value) == (
        "change 3 of ann (`vpcctl apply-policy db.json`) is not confirmed, and is taken back in 50 s; run `vpcctl"
        " confirm` to keep it, or `vpcctl undo` to take it back now"
    )
    with pytest.raises(ConflictError, match="is not confirmed"):
        shop.controller.destroy()
    assert shop.state == before
    # Repairs are no changes.
    shop.kernel.objects.pop(("Ruleset", "one-router"))
    assert shop.controller.repair().differences
    assert (rules_of(shop), shop.state.unconfirmed) == (2, before.unconfirmed)


def test_undo_takes_it_back_at_once(shop: Shop, clock: Callable[[float], None]) -> None:
    before = shop.state.world
    asking(shop).change(rules(2))
    # Also by somebody whose own changes have to be confirmed: this one has not.
    asking(shop).undo()
    assert shop.state.world == before
    assert shop.state.unconfirmed is None
    clock(SECONDS)
    settle(shop)
    assert numbers(shop) == [1, 2, 3, 4]


def test_undo_can_wait_to_be_confirmed_itself(shop: Shop, clock: Callable[[float], None]) -> None:
    shop.change(rules(2))
    asking(shop).undo()
    assert rules_of(shop) == 1
    clock(SECONDS)
    settle(shop)
    assert rules_of(shop) == 2


def test_a_change_without_a_difference_waits_for_nobody(shop: Shop, clock: Callable[[float], None]) -> None:
    asking(shop).change(rules(1))
    assert shop.state.unconfirmed is None


def test_it_is_taken_back_without_any_history(shop: Shop, clock: Callable[[float], None]) -> None:
    """The record itself has the world before: a full disk, or a history that is lost, does not matter."""
    before = shop.state.world

    def append(self: Writer, name: str, size: int, line: bytes) -> bool:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Writer, "append", append)
        asking(shop).change(rules(2))
        assert rules_of(shop) == 2
        clock(SECONDS)
        settle(shop)
    assert shop.state.world == before


def test_what_cannot_be_taken_back_now_is_taken_back_later(shop: Shop, clock: Callable[[float], None]) -> None:
    shop.change(lambda world: told("peer them"))
    before = shop.export
    asking(shop).change(lambda world: operations.delete_vpc(world, "two", True))
    shop.kernel.foreign.add(("Namespace", "two-router"))
    clock(SECONDS)
    settle(shop)
    assert shop.state.unconfirmed is not None
    with pytest.raises(ConflictError, match="is not confirmed, and is taken back in 0 s"):
        shop.change(rules(3))
    assert any("was not confirmed, and cannot be taken back" in words for words in shop.said)
    shop.kernel.foreign.clear()
    settle(shop)
    assert shop.export == before
    assert shop.state.unconfirmed is None


def test_an_invariant_keeps_no_unconfirmed_change_in_force(shop: Shop, clock: Callable[[float], None]) -> None:
    """What is taken back was there before; it is not refused because something new says that it must not be."""
    closed = Invariant("internet", "one/web", "tcp/1", "deny")
    shop.change(lambda world: told("publish a port"))

    def cut(world: World) -> World:
        return dataclasses.replace(operations.unpublish_port(world, "one", TCP, 8080), invariants=(closed,))

    for back in (shop.undo, lambda: (clock(SECONDS), settle(shop))):
        before = shop.state.world
        asking(shop).change(cut)
        assert shop.state.world.invariants == (closed,)
        back()
        assert shop.state.world == before


# -- deaths --------------------------------------------------------------------------------------------------------


def test_after_a_reboot_the_world_before_is_made(shop: Shop, clock: Callable[[float], None]) -> None:
    """At once, in one go: the unconfirmed world is not made again."""
    before = shop.state.world
    asking(shop).change(lambda world: operations.create_vpc(world, "three", world.vpc("one").prefixes[0], mtu=1500))
    clock(-900)
    shop.kernel.reboot("boot-2")
    shop.kernel.calls.clear()
    settle(shop)
    assert meant(shop.state.world) == meant(before)
    assert not [call for call in shop.kernel.calls if "make" in call and "three" in call]
    assert shop.state.unconfirmed is None
    assert shop.controller.status().in_sync


def test_a_clock_that_is_set_changes_nothing(
    shop: Shop, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asking(shop).change(rules(2))
    monkeypatch.setattr("time.time", lambda: 0.0)
    settle(shop)
    assert rules_of(shop) == 2
    clock(SECONDS)
    settle(shop)
    assert rules_of(shop) == 1


def struck_calls(shop: Shop, change: Callable[[], None]) -> int:
    before = len(shop.kernel.calls)
    change()
    return len(shop.kernel.calls) - before


STEPS: dict[str, Callable[[World], World]] = {
    "a policy": rules(3),
    "a VPC goes": lambda world: operations.delete_vpc(world, "one", True),
    "another VPC": lambda world: told("peer them"),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("late", [False, True], ids=["in time", "too late"])
def test_a_crash_on_the_way_there_ends_as_before(
    tmp_path: Path, clock: Callable[[float], None], name: str, late: bool
) -> None:
    step = STEPS[name]
    count = struck_calls(shop := prepared(tmp_path / "counted"), lambda: asking(shop).change(step))
    assert count
    for number in range(1, count + 1, 1 + count // MOST):
        shop = prepared(tmp_path / str(number))
        before = shop.state.world
        shop.kernel.failures[len(shop.kernel.calls) + number] = Crash()
        with pytest.raises(Crash):
            asking(shop).change(step)
        clock(SECONDS if late else 1)
        settle(shop)
        assert late or shop.state.unconfirmed is not None
        assert not late or meant(shop.state.world) == meant(before)
        clock(SECONDS)
        settle(shop)
        assert meant(shop.state.world) == meant(before)
        assert shop.state.unconfirmed is None
        assert shop.controller.status().in_sync


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("error", [Crash(), KernelError("no")], ids=["crash", "failure"])
def test_a_failure_on_the_way_back_is_made_good_by_the_next(
    tmp_path: Path, clock: Callable[[float], None], name: str, error: BaseException
) -> None:
    step = STEPS[name]

    def waiting(directory: Path) -> Shop:
        shop = prepared(directory)
        asking(shop).change(step)
        clock(SECONDS)
        return shop

    count = struck_calls(shop := waiting(tmp_path / "counted"), lambda: settle(shop))
    assert count
    expected = prepared(tmp_path / "anew").export
    for number in range(1, count + 1, 1 + count // MOST):
        shop = waiting(tmp_path / str(number))
        shop.kernel.failures[len(shop.kernel.calls) + number] = error
        with contextlib.suppress(Crash, VpcctlError):
            settle(shop)
        settle(shop)
        assert shop.export == expected
        assert shop.state.unconfirmed is None
        assert shop.controller.status().in_sync


@pytest.mark.parametrize("late", [False, True])
def test_a_kill_at_each_write_leaves_no_change_without_its_deadline(
    tmp_path: Path, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    real = Writer.save
    for number in (1, 2):
        shop = prepared(tmp_path / str(number))
        before = shop.state.world
        with monkeypatch.context() as patched:
            patched.setattr(Writer, "save", struck(real, number, late))
            with pytest.raises(Crash):
                asking(shop).change(rules(2))
        if rules_of(shop) == 2:
            assert shop.state.unconfirmed is not None
        clock(SECONDS)
        settle(shop)
        assert shop.state.world == before
        assert shop.state.unconfirmed is None


# -- the format ----------------------------------------------------------------------------------------------------


def test_what_is_written_meanwhile_is_of_the_format(shop: Shop, clock: Callable[[float], None]) -> None:
    schema = json.loads((Path(__file__).parents[2] / "state" / "v3" / "schema.json").read_text())
    validator = Draft202012Validator(schema)
    asking(shop).change(rules(2))
    head = json.loads((shop.directory / "state.json").read_text())
    assert [error.json_path for error in validator.iter_errors(head)] == []
    assert head["unconfirmed"]["number"] == 3
    shop.controller.confirm()
    asking_shop = asking(shop)
    asking_shop.kernel.failures[len(shop.kernel.calls) + 1] = Crash()
    with pytest.raises(Crash):
        asking_shop.change(rules(3))
    head = json.loads((shop.directory / "state.json").read_text())
    assert [error.json_path for error in validator.iter_errors(head)] == []
    assert head["pending"]["change"]["deadline"]["seconds"] == SECONDS


def test_what_was_written_is_read_again(shop: Shop, clock: Callable[[float], None]) -> None:
    asking(shop).change(rules(2))
    first = Store(shop.directory).load_whole()
    assert first.unconfirmed is not None
    assert first.unconfirmed.before.vpc("one").subnet("web").policy != first.world.vpc("one").subnet("web").policy
    with Store(shop.directory).locked() as writer:
        writer.save(writer.load())
    again = Store(shop.directory).load()
    assert again.unconfirmed == first.unconfirmed
