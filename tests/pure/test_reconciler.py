"""Changes on a kernel that is a dictionary: what is left after success, failure, crash, full disk and reboot."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.failing_machine import EMPTY, Crash, Machine, Watched
from tests.lives import FULL, NAMES, STEPS, Anew, Life, leap, transitions
from tests.story import STORY, Step, nothing, told
from vpcctl import names
from vpcctl.engine import convergence, reconciler
from vpcctl.engine.state import Store
from vpcctl.errors import ConflictError, KernelError, StateError
from vpcctl.model import operations
from vpcctl.model.host import OpenedLink
from vpcctl.model.network import DEFAULT_TRANSIT, World
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.kinds import Forwarding, Item, Open
from vpcctl.resources.protocol import HostFacts, HostLink

# -- success -------------------------------------------------------------------------------------------------------


@transitions
def test_a_change_is_made_and_made_only_once(anew: Anew, life: Life, before: str, step: Step) -> None:
    machine = anew(before)
    outcome = machine.change(step)
    assert outcome.plan or outcome.before == outcome.after
    machine.check(step(life[before][1].world))
    machine.check_rest()


@transitions
def test_whatever_was_made_can_be_destroyed(anew: Anew, before: str, step: Step) -> None:
    machine = anew(before)
    machine.change(step)
    machine.check_destroyed()
    machine.check_rest()


@transitions
def test_every_object_is_reached_by_the_same_way_whatever_was_there_before(
    anew: Anew, life: Life, before: str, step: Step
) -> None:
    changed, fresh = anew(before), anew("the beginning")
    changed.change(step)
    fresh.change(lambda world: changed.state.world)
    assert fresh.objects == changed.objects


def test_the_same_policy_once_more_loads_nothing(anew: Anew) -> None:
    machine = anew("apply a policy")
    before = machine.state
    outcome = machine.change(STEPS["apply a policy"][1])
    assert not outcome.plan
    assert machine.kernel.calls == []
    assert machine.state == before


def test_a_policy_touches_nothing_but_its_ruleset(anew: Anew) -> None:
    outcome = anew("peer them").change(STEPS["tighten the policy"][1])
    assert [str(step) for step in outcome.plan.steps] == ["make ruleset of one-router"]


def test_the_way_out_is_opened_with_the_first_vpc_and_closed_with_the_last(anew: Anew) -> None:
    machine = anew("create VPC one")
    # eth1 forwards already, and nothing lies behind tap0.
    assert machine.state.host.opened == (OpenedLink(2),)
    assert machine.state.host.closed == (2, 4)
    assert ("Forwarding", "2") in machine.kernel.objects
    machine.change(nothing)
    assert machine.state.host.opened == ()


# -- reported failures ---------------------------------------------------------------------------------------------


def number_of_calls(machine: Machine, step: Step) -> int:
    machine.change(step)
    return len(machine.kernel.calls)


def anew_calls(machine: Machine, step: Step) -> list[str]:
    """The calls of the change, on a machine that is given up for that."""
    machine.change(step)
    return machine.kernel.calls


def gone(world: World, step: Step) -> set[str]:
    """The VPCs that the change removes."""
    return {vpc.name for vpc in world.vpcs} - {vpc.name for vpc in step(world).vpcs}


def attempts(
    machine: Callable[[str], Machine], before: str, step: Step, stride: int | None = None
) -> Iterator[tuple[Machine, int]]:
    """A machine for each call that the change makes, to fail before it does anything; and after the last one.

    To fail after a call is to fail before the next.  Of the many calls of a leap some are left out.
    """
    last = number_of_calls(machine(before), step)
    assert last, "the change makes no call, so none can fail"
    for number in (*range(1, last + 1, stride or 1 + last // 40), last):
        made = machine(before)
        yield made, number
    made = machine(before)
    made.kernel.fail_after = True
    yield made, last


def removals(life: Life, before: str, step: Step) -> set[str]:
    """The calls that remove what belongs to a VPC that goes, or to the host when the last one goes."""
    record, after = life[before][1].record, step(life[before][1].world)
    stay = {vpc.name for vpc in after.vpcs} | ({""} if after.vpcs else set())
    return {f"remove {item}" for scope, items in record.items() if scope not in stay for item in items}


@transitions
def test_a_change_that_fails_at_any_call_leaves_everything_as_it_was(
    anew: Anew, life: Life, before: str, step: Step
) -> None:
    """But a VPC that goes is removed as far as it can be, and the next repair removes the rest."""
    tearing_down = removals(life, before, step)
    closings = {f"make ruleset of {names.router_namespace(name)}" for name in gone(life[before][1].world, step)}
    closed = 0
    for machine, number in attempts(anew, before, step):
        there = machine.objects
        machine.kernel.failures = {number: KernelError("no room")}
        if anew_calls(anew(before), step)[number - 1] in closings:
            # A router that goes and cannot be closed loses its links instead.
            machine.check(machine.change(step).after)
            closed += 1
            continue
        if anew_calls(anew(before), step)[number - 1] in tearing_down:
            with pytest.raises(KernelError, match="removal failed: no room"):
                machine.change(step)
            machine.repair()
            machine.check(step(life[before][1].world))
            continue
        with pytest.raises(KernelError, match=r"^no room$"):
            machine.change(step)
        assert machine.objects == there, f"failed at call {number}: {machine.kernel.calls[number - 1]}"
        machine.check(life[before][1].world)
    assert bool(closed) is bool(closings)


@pytest.mark.parametrize("name", ["create VPC one", "create its subnet api", "delete VPC one"])
def test_what_cannot_be_put_back_is_said_and_repair_puts_it_back(anew: Anew, life: Life, name: str) -> None:
    before, step = STEPS[name]
    total = number_of_calls(anew(before), step)
    met = 0
    for number in range(2, total + 1, 3):
        for second in (number + 1, number + 2):
            machine = anew(before)
            there = machine.objects
            machine.kernel.failures = {number: KernelError("no room"), second: KernelError("still no room")}
            with pytest.raises(KernelError) as caught:
                machine.change(step)
            if len(machine.kernel.calls) < second or "still no room" not in str(caught.value):
                continue  # putting it back took no further call
            met += 1
            assert "vpcctl repair" in str(caught.value)
            machine.repair()
            assert machine.objects == there
            machine.check(life[before][1].world)
            machine.check_rest()
    assert met


def test_what_is_not_ours_is_not_taken(anew: Anew, life: Life) -> None:
    machine = anew("create its subnet web")
    machine.kernel.foreign.add(("Namespace", "one-db"))
    before = machine.state
    with pytest.raises(ConflictError, match="namespace one-db"):
        machine.change(STEPS["create its private subnet db"][1])
    assert machine.state == before
    assert machine.kernel.calls == []


def test_a_transform_that_refuses_changes_nothing(anew: Anew) -> None:
    machine = anew("create its subnet web")
    before = machine.state
    with pytest.raises(ConflictError):
        machine.change(lambda world: operations.create_vpc(world, "one", DEFAULT_TRANSIT))
    assert (machine.state, machine.kernel.calls) == (before, [])


def test_an_uplink_in_a_network_of_the_host_is_refused_before_anything_is_touched() -> None:
    facts = HostFacts(networks=(DEFAULT_TRANSIT,))
    machine = Machine(Watched(facts))
    with pytest.raises(ConflictError, match="--transit"):
        machine.change(STORY[0][1])
    assert (machine.state, machine.kernel.calls) == (EMPTY, [])


# -- crashes -------------------------------------------------------------------------------------------------------


@transitions
def test_after_a_crash_at_any_call_repair_reaches_the_new_world(
    anew: Anew, life: Life, before: str, step: Step
) -> None:
    reference = anew(before)
    reference.change(step)
    wanted = reference.objects
    for machine, number in attempts(anew, before, step):
        machine.kernel.failures = {number: Crash()}
        with pytest.raises(Crash):
            machine.change(step)
        words = machine.kernel.calls[number - 1]
        machine.repair()
        assert machine.objects == wanted, f"crashed at call {number}: {words}"
        machine.check(step(life[before][1].world))
        machine.check_rest()


@transitions
def test_after_a_crash_at_any_call_everything_can_be_destroyed(anew: Anew, before: str, step: Step) -> None:
    for machine, number in attempts(anew, before, step):
        machine.kernel.failures = {number: Crash()}
        with pytest.raises(Crash):
            machine.change(step)
        machine.check_destroyed()


@pytest.mark.parametrize("name", ["create VPC one", "peer them", "delete VPC one", "delete everything"])
def test_a_crash_during_a_rollback_is_repaired_too(anew: Anew, life: Life, name: str) -> None:
    """And so is one while a VPC is removed."""
    before, step = STEPS[name]
    calls, tearing_down = anew_calls(anew(before), step), removals(life, before, step)
    crashed = 0
    for number in range(2, number_of_calls(anew(before), step) + 1, 3):
        machine = anew(before)
        there = machine.objects
        machine.kernel.failures = {number: KernelError("no room"), number + 1: Crash()}
        with pytest.raises((Crash, KernelError)) as caught:
            machine.change(step)
        # Where nothing was called after the failure, the crash is still to come.
        crashed += isinstance(caught.value, Crash)
        with contextlib.suppress(Crash):
            machine.repair()
        machine.repair()
        if calls[number - 1] in tearing_down:
            machine.check(step(life[before][1].world))
        else:
            assert machine.objects == there
            machine.check(life[before][1].world)
        machine.check_rest()
    assert crashed


@pytest.mark.parametrize("name", ["create its subnet web", "peer them", "delete VPC one"])
def test_a_crash_of_the_repair_is_repaired(anew: Anew, life: Life, name: str) -> None:
    before, step = STEPS[name]
    total = number_of_calls(anew(before), step)
    crashes = []
    for number in range(1, total + 1, 4):
        machine = anew(before)
        machine.kernel.failures = {number: Crash(), number + 2: Crash(), number + 5: Crash()}
        with pytest.raises(Crash):
            machine.change(step)
        crashes.append(0)
        for _ in range(3):
            try:
                machine.repair()
            except Crash:
                crashes[-1] += 1
        machine.check(step(life[before][1].world))
        machine.check_rest()
    assert max(crashes) == 2, "the repair of a repair"


# -- reboots -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_after_a_reboot_repair_makes_everything_again(anew: Anew, life: Life, name: str) -> None:
    machine = anew(name)
    there = machine.objects
    machine.kernel.reboot("boot-2")
    differences = machine.repair()
    assert {difference.item.key for difference in differences} == set(there)
    assert machine.objects == there
    machine.check(life[name][1].world)
    machine.check_rest()


def test_after_a_reboot_an_index_means_another_link_which_is_left_alone(anew: Anew) -> None:
    machine = anew("create VPC one")
    machine.kernel.reboot("boot-2")
    machine.kernel._facts = HostFacts((HostLink(2, "docker0", forwards=True), HostLink(3, "eth0")))
    machine.kernel.objects["Forwarding", "2"] = Forwarding(None, 2)  # of somebody else
    machine.kernel.calls.clear()
    machine.repair()
    assert machine.state.host.opened == (OpenedLink(3),)
    assert not [call for call in machine.kernel.calls if "link 2" in call or "docker0" in call]


@transitions
def test_a_change_after_a_reboot_makes_everything_again_first(anew: Anew, life: Life, before: str, step: Step) -> None:
    machine = anew(before)
    machine.kernel.reboot("boot-2")
    machine.change(step)
    machine.check(step(life[before][1].world))
    machine.check_rest()


@pytest.mark.parametrize("name", ["create its subnet web", "peer them", "delete VPC one"])
def test_a_reboot_in_the_middle_of_a_change_is_repaired(anew: Anew, life: Life, name: str) -> None:
    before, step = STEPS[name]
    for machine, number in attempts(anew, before, step, stride=3):
        machine.kernel.failures = {number: Crash()}
        with pytest.raises(Crash):
            machine.change(step)
        machine.kernel.reboot("boot-2")
        machine.repair()
        machine.check(step(life[before][1].world))
        machine.check_rest()


# -- a disk that fails ---------------------------------------------------------------------------------------------


def full_disk() -> StateError:
    """The error of a full or broken disk, as the writer reports it."""
    return StateError("cannot write state.json: No space left on device")


late = pytest.mark.parametrize("late", [False, True], ids=["before", "after"])


def failing(machine: Machine, number: int, error: BaseException, late: bool) -> Machine:
    """The machine, with a disk whose write of that number fails."""
    machine.store.failing, machine.store.error, machine.store.late = number, error, late
    return machine


@late
@transitions
def test_after_a_write_that_failed_repair_reaches_one_of_the_two_worlds(
    anew: Anew, life: Life, before: str, step: Step, late: bool
) -> None:
    worlds = [life[before][1].world, step(life[before][1].world)]
    for number in (1, 2):
        machine = failing(anew(before), number, full_disk(), late)
        with pytest.raises(StateError):
            machine.change(step)
        machine.repair()
        assert machine.state.world in worlds
        machine.check(machine.state.world)
        machine.check_rest()
        machine.check_destroyed()


@transitions
def test_a_change_is_written_twice(anew: Anew, before: str, step: Step) -> None:
    machine = anew(before)
    machine.change(step)
    assert machine.store.writes == 2, "as an intent, and as done"


@late
@transitions
def test_without_the_intent_on_disk_nothing_is_done_then_or_later(
    anew: Anew, life: Life, before: str, step: Step, late: bool
) -> None:
    machine = failing(anew(before), 1, full_disk(), late)
    there = machine.objects
    with pytest.raises(StateError):
        machine.change(step)
    assert machine.kernel.calls == []
    machine.repair()
    assert machine.objects == there
    machine.check(life[before][1].world)


@late
@transitions
def test_a_crash_at_any_write_is_repaired(anew: Anew, life: Life, before: str, step: Step, late: bool) -> None:
    worlds = [life[before][1].world, step(life[before][1].world)]
    for number in (1, 2):
        machine = failing(anew(before), number, Crash(), late)
        with pytest.raises(Crash):
            machine.change(step)
        machine.repair()
        assert machine.state.world == worlds[number > 1 or late]
        machine.check(machine.state.world)
        machine.check_rest()


@pytest.mark.parametrize("number", [2, 3])
def test_a_failure_that_meets_a_full_disk_too_says_that_repair_finishes_it(anew: Anew, number: int) -> None:
    before, step = STEPS["create its subnet api"]
    machine = failing(anew(before), number, full_disk(), late=False)
    there = machine.objects
    machine.kernel.failures = {9: KernelError("no room")}
    with pytest.raises(KernelError, match="vpcctl repair"):
        machine.change(step)
    machine.repair()
    assert machine.objects == there or number == 2, "rolled back, not completed"
    machine.check(machine.state.world)
    machine.check_rest()


# -- on a real disk ------------------------------------------------------------------------------------------------


def test_the_whole_story_is_told_on_a_real_disk_too(tmp_path: Path) -> None:
    machine = Machine(store=Store(tmp_path / "state"))
    world = World()
    for _, step in STORY:
        machine.change(step)
        world = step(world)
        machine.check(world)
        machine.check_rest()
    assert machine.kernel.objects == {}


def test_a_crash_is_repaired_from_a_real_disk_too(tmp_path: Path) -> None:
    machine = Machine(store=Store(tmp_path / "state"))
    machine.change(leap("peer them"))
    machine.kernel.failures = {len(machine.kernel.calls) + 3: Crash()}
    with pytest.raises(Crash):
        machine.change(leap("create VPC one"))
    assert machine.state.pending is not None
    machine.repair()
    machine.check(told("create VPC one"))
    machine.check_rest()


# -- drift ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Namespace", "Ruleset", "Bridge", "Veth", "Port", "Neighbour", "Route"])
def test_what_somebody_removed_is_noticed_and_made_again(anew: Anew, kind: str) -> None:
    there = anew(FULL).objects
    removed = [item for item in anew(FULL).kernel.objects.values() if type(item).__name__ == kind]
    assert removed
    for item in removed:
        machine = anew(FULL)
        FakeKernel.remove(machine.kernel, item)
        differences = convergence.examine(machine.state, machine.kernel)
        assert item.key in {difference.item.key for difference in differences}
        machine.repair()
        assert machine.objects == there, item
        machine.check_rest()


def other(item: Item) -> Item | None:
    """The same object as somebody might have changed it; None where nothing but identity is to change."""
    changeable = {
        "mac": "02:00:00:00:00:99",
        "value": "7",
        "fingerprint": "0" * 16,
        "via": "10.9.9.9",
        "bridge": "br-x",
    }
    for field, value in changeable.items():
        if hasattr(item, field) and field not in item.identity:
            return dataclasses.replace(item, **{field: value})
    return None


def test_a_foreign_change_is_noticed_and_repaired(anew: Anew) -> None:
    there = anew(FULL).objects
    altered = {item.key: one for item in anew(FULL).kernel.objects.values() if (one := other(item))}
    assert {"Bridge", "Veth", "Port", "Ruleset", "Neighbour", "Route", "Setting", "LinkSetting"} <= {
        key[0] for key in altered
    }
    for key, item in altered.items():
        machine = anew(FULL)
        machine.kernel.objects[key] = item
        assert [difference.item.key for difference in convergence.examine(machine.state, machine.kernel)] == [key]
        assert [difference.item.key for difference in machine.repair()] == [key]
        assert machine.objects == there, item
        machine.check_rest()


ACCOUNTING = "net/netfilter/nf_conntrack_acct"


def older(anew: Anew) -> Machine:
    """A machine whose routers were made by a version that did not know one optional setting."""
    machine = anew(FULL)
    record = {
        scope: tuple(item for item in items if getattr(item, "path", "") != ACCOUNTING)
        for scope, items in machine.state.record.items()
    }
    assert record != machine.state.record
    machine.store.state = dataclasses.replace(machine.state, record=record)
    for vpc in machine.state.world.vpcs:
        item = machine.kernel.objects["Setting", names.router_namespace(vpc.name), ACCOUNTING]
        machine.kernel.objects[item.key] = dataclasses.replace(item, value="0")
    return machine


def test_a_setting_of_a_new_version_is_a_difference_until_it_is_made(anew: Anew) -> None:
    machine, there = older(anew), anew(FULL).objects
    keys = [("Setting", f"{name}-router", ACCOUNTING) for name in ("one", "two")]
    assert sorted(one.item.key for one in convergence.examine(machine.state, machine.kernel)) == keys
    assert sorted(one.item.key for one in machine.repair()) == keys
    assert machine.objects == there
    machine.check_rest()


def test_a_setting_of_a_new_version_is_made_by_the_next_change_of_its_vpc(anew: Anew) -> None:
    machine = older(anew)
    machine.change(lambda world: operations.set_limits(world, "one", 20_000, None))
    values = {name: machine.kernel.objects["Setting", f"{name}-router", ACCOUNTING].value for name in ("one", "two")}
    assert values == {"one": "1", "two": "0"}


def test_status_of_one_vpc_does_not_tell_of_another(anew: Anew) -> None:
    machine = anew(FULL)
    FakeKernel.remove(machine.kernel, machine.kernel.objects[("Namespace", "two-api")])
    state = machine.state
    assert convergence.examine(state, machine.kernel, ["one"]) == []
    assert convergence.examine(state, machine.kernel, ["two"])


def test_repair_of_one_vpc_leaves_another_as_it_is(anew: Anew) -> None:
    machine = anew(FULL)
    for key in (("Namespace", "one-web"), ("Namespace", "two-api")):
        FakeKernel.remove(machine.kernel, machine.kernel.objects[key])
    reconciler.repair(machine.store, machine.kernel, vpcs=["one"])
    assert convergence.examine(machine.state, machine.kernel, ["one"]) == []
    assert convergence.examine(machine.state, machine.kernel, ["two"])
    machine.repair()
    machine.check_rest()


def test_repair_of_a_vpc_that_nobody_has_is_refused(anew: Anew) -> None:
    machine = anew(FULL)
    with pytest.raises(ConflictError, match="nobody"):
        reconciler.repair(machine.store, machine.kernel, vpcs=["nobody"])


# -- order ---------------------------------------------------------------------------------------------------------


@transitions
def test_what_goes_is_closed_before_anything_of_it_is_taken(anew: Anew, life: Life, before: str, step: Step) -> None:
    """Judged at the objects, whatever led there: a change, and the repair of a crash at each of its calls."""
    staying = {names.router_namespace(vpc.name) for vpc in step(life[before][1].world).vpcs}
    met: list[str] = []

    class Closing(Watched):
        def remove(self, item: Item) -> None:
            for end in (getattr(item, "namespace", None), getattr(item, "peer_namespace", None)):
                ruleset = self.objects.get(("Ruleset", str(end)))
                if end is not None and end.endswith("-router") and end not in staying and ruleset is not None:
                    met.append(end)
                    assert "accept" not in ruleset.text, f"{item} is removed while {end} is open"
            super().remove(item)

    def closing(machine: Machine) -> Machine:
        kernel = Closing()
        kernel.objects, kernel.generations = machine.kernel.objects, machine.kernel.generations
        machine.kernel = kernel
        return machine

    closing(anew(before)).change(step)
    for machine, number in attempts(lambda name: closing(anew(name)), before, step):
        machine.kernel.failures = {number: Crash()}
        with pytest.raises(Crash):
            machine.change(step)
        machine.repair()
    assert set(met) == {names.router_namespace(name) for name in gone(life[before][1].world, step)}


@transitions
def test_links_are_opened_last(anew: Anew, before: str, step: Step) -> None:
    machine = anew(before)
    there = set(machine.objects)
    outcome = machine.change(step)
    kinds = [type(one.item) for one in outcome.plan.steps]
    opened = [number for number, kind in enumerate(kinds) if kind is Open]
    assert bool(opened) is any(key[0] == Open.__name__ for key in set(machine.objects) - there)
    if opened:
        behind = outcome.plan.steps[opened[0] :]
        assert all(isinstance(one.item, Open) or one.item.key == ("Ruleset", "None") for one in behind)


def test_generations_rise_with_each_load_and_stand_still_without_one(anew: Anew, life: Life) -> None:
    found = [life[name][0].objects.get(("Ruleset", "one-router")) for name in NAMES]
    generations = [ruleset.generation for ruleset in found if ruleset]
    fingerprints = [ruleset.fingerprint for ruleset in found if ruleset]
    assert generations[0] == 1
    for number in range(1, len(generations)):
        changed = fingerprints[number] != fingerprints[number - 1]
        assert generations[number] == generations[number - 1] + changed


def test_a_ruleset_put_back_after_a_failure_has_a_generation_of_its_own(anew: Anew) -> None:
    machine = anew("peer them")
    before = machine.kernel.objects[("Ruleset", "one-router")]
    machine.kernel.fail_after = True
    machine.kernel.failures = {1: KernelError("no room")}
    with pytest.raises(KernelError):
        machine.change(STEPS["tighten the policy"][1])
    after = machine.kernel.objects[("Ruleset", "one-router")]
    assert after.fingerprint == before.fingerprint
    assert after.generation > before.generation + 1
