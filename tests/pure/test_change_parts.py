"""A change of several VPCs at once: a VPC that fails is rolled back, and the other VPCs are completed."""

from __future__ import annotations

import dataclasses

import pytest

from tests.failing_machine import FACTS, Crash, Machine, Stubborn, Watched
from tests.story import LEAPS, subnet, told
from vpcctl.documents.diff import steps, toward
from vpcctl.engine import places, reconciler
from vpcctl.engine.places import Trouble
from vpcctl.engine.state import State
from vpcctl.errors import ConflictError, KernelError
from vpcctl.model import operations
from vpcctl.model.network import World
from vpcctl.resources import topology
from vpcctl.resources.kinds import Item, Namespace, Ruleset
from vpcctl.resources.protocol import HostFacts

# From one world to another, each with two VPCs that differ.
WAYS = [*LEAPS, ("create VPC one", "tighten the policy"), ("tighten the policy", "create its private subnet db")]
ways = pytest.mark.parametrize(("before", "after"), WAYS)


def choosing(wanted: World) -> reconciler.Choose:
    """The steps toward `wanted`, without those of the VPCs that are to stay."""

    def choose(state: State, without: frozenset[str]) -> World:
        world = state.world
        for step in steps(world, wanted):
            if not step.vpcs & without:
                peerings = "stay" if reconciler.PEERINGS in without else step.peerings
                world = toward(world, wanted, dataclasses.replace(step, peerings=peerings))
        return world

    return choose


def at(name: str, kernel: Watched | None = None) -> Machine:
    """A machine with the world after that step of the story."""
    machine = Machine(kernel)
    machine.change(lambda world: told(name))
    return machine


def change(machine: Machine, after: str) -> tuple[reconciler.Outcome, Trouble]:
    return reconciler.change_parts(machine.store, machine.kernel, choosing(told(after)))


@ways
def test_all_parts_are_made_with_one_intent_and_one_commit(before: str, after: str) -> None:
    machine = at(before)
    written = machine.store.writes
    outcome, failed = change(machine, after)
    assert (failed, outcome.after) == ({}, told(after))
    machine.check(told(after))
    assert machine.store.writes == written + 2
    # In the same order of steps as any change: the way there is the same.
    other = at(before)
    other.change(lambda world: told(after))
    assert machine.objects == other.objects
    machine.check_rest()


@ways
def test_a_failure_at_any_call_is_that_of_one_vpc(before: str, after: str) -> None:
    """Once only, as of a kernel that is short of memory: what failed is as it was, everything else as wanted."""
    sound = at(before)
    done = len(sound.kernel.calls)
    change(sound, after)
    seen = set()
    for number in range(done + 1, len(sound.kernel.calls) + 1):
        machine = at(before)
        machine.kernel.failures[number] = KernelError("no memory")
        try:
            outcome, failed = change(machine, after)
        except KernelError as error:
            # It was the host's.
            done_so_far = "removal failed" in str(error)
            if done_so_far:
                machine.repair()
            machine.check(told(after if done_so_far else before))
            continue
        seen |= failed.keys()
        removed = {vpc for vpc, error in failed.items() if "removal failed" in str(error)}
        if removed:
            # What goes for good goes as far as it can (ADR 19).
            assert machine.state.pending == outcome.after
            machine.repair()
        assert outcome.after == choosing(told(after))(State("0a1b2c3d", world=told(before)), failed.keys() - removed)
        machine.check(outcome.after)
        machine.check_rest()
    assert seen - {reconciler.PEERINGS} == {vpc.name for name in (before, after) for vpc in told(name).vpcs}


@ways
def test_what_is_refused_for_good_is_its_own_vpcs_trouble(before: str, after: str) -> None:
    """Each new object in turn, however often it is tried."""
    record = topology.snapshot(told(after), "0a1b2c3d", {})
    homes = places.homes(record)
    apart = places.homes(topology.snapshot(dataclasses.replace(told(after), peerings=()), "0a1b2c3d", {}))
    old = {item.key for items in topology.snapshot(told(before), "0a1b2c3d", {}).values() for item in items}
    for key in (key for key, place in homes.items() if place and key not in old):
        kernel = Stubborn()
        machine = at(before, kernel)
        kernel.refused = key
        outcome, failed = change(machine, after)
        part = places.vpc_of(homes[key]) if key in apart else reconciler.PEERINGS
        assert failed.keys() == {part}, key
        assert outcome.after == choosing(told(after))(State("0a1b2c3d", world=told(before)), frozenset({part}))
        machine.check(outcome.after)


@ways
def test_a_crash_at_any_call_is_completed_by_the_next_command(before: str, after: str) -> None:
    sound = at(before)
    done = len(sound.kernel.calls)
    change(sound, after)
    for number in range(done + 1, len(sound.kernel.calls) + 1):
        machine = at(before)
        machine.kernel.failures[number] = Crash()
        with pytest.raises(Crash):
            change(machine, after)
        machine.kernel.failures.clear()
        machine.repair()
        machine.check(told(after))


def test_what_is_not_ours_stands_in_the_way_of_its_vpc_before_anything_is_made() -> None:
    machine = at("create VPC one")
    machine.kernel.foreign.add((Namespace.__name__, "two-api"))
    calls = len(machine.kernel.calls)
    outcome, failed = change(machine, "peer them")
    assert failed.keys() == {"two"}
    assert "two-api" in str(failed["two"])
    assert [vpc.name for vpc in outcome.after.vpcs] == ["one"]
    assert not [call for call in machine.kernel.calls[calls:] if "two" in call]
    machine.check(outcome.after)


def test_where_the_host_has_the_range_of_the_uplinks_new_vpcs_alone_are_refused() -> None:
    machine = at("create VPC one")
    machine.kernel._facts = HostFacts(FACTS.links, tuple(told("peer them").transit.subnets(new_prefix=24))[:1])
    outcome, failed = change(machine, "peer them")
    assert failed.keys() == {"two"}
    assert isinstance(failed["two"], ConflictError)
    assert outcome.after.vpc("one") == told("peer them").vpc("one")
    machine.check(outcome.after)


def test_a_conflict_of_the_hosts_part_is_raised_where_no_vpc_is_new() -> None:
    machine = at("create VPC one")
    machine.kernel.foreign.add((Ruleset.__name__, "None"))
    before = machine.state
    with pytest.raises(ConflictError, match="not ours"):
        change(machine, "publish a port")
    assert machine.state == before


def test_each_vpc_is_told_once_when_its_part_begins() -> None:
    machine, told_ones = at("create VPC one"), []
    reconciler.change_parts(machine.store, machine.kernel, choosing(told("peer them")), begun=told_ones.append)
    assert [vpc for vpc in told_ones if vpc] == ["one", "two"]


class Keeping(Stubborn):
    """A kernel that also never removes the object with the key `kept`."""

    kept: tuple[str, ...] = ()

    def remove(self, item: Item) -> None:
        if item.key == self.kept:
            raise KernelError(f"the kernel keeps {item}")
        super().remove(item)


def test_a_vpc_that_cannot_be_removed_is_not_made_again_because_another_one_fails() -> None:
    kernel = Keeping()
    machine = at("peer them", kernel)
    kernel.kept, kernel.refused = (Namespace.__name__, "two-router"), (Namespace.__name__, "one-more")

    def choose(state: State, without: frozenset[str]) -> World:
        world = state.world
        if "two" not in without:
            world = operations.delete_vpc(world, "two", True)
        return world if "one" in without else subnet("one", "more", "10.0.0.32/28")(world)

    outcome, failed = reconciler.change_parts(machine.store, machine.kernel, choose)
    assert failed.keys() == {"one", "two"}
    assert "removal failed" in str(failed["two"])
    assert [vpc.name for vpc in outcome.after.vpcs] == ["one"]
    assert outcome.after.vpc("one") == told("peer them").vpc("one")
    kernel.kept, kernel.refused = (), ()
    machine.repair()
    machine.check(outcome.after)


def test_a_failure_of_the_hosts_table_puts_everything_back() -> None:
    kernel = Stubborn()
    machine = at("create VPC one", kernel)
    kernel.refused = (Ruleset.__name__, "None")
    with pytest.raises(KernelError, match="rolling back failed"):
        change(machine, "peer them")
    kernel.refused = ()
    machine.repair()
    machine.check(told("create VPC one"))
