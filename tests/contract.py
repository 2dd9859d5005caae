"""What every kernel promises (`resources.protocol.Kernel`), as laws that the fake and the real one are held to alike.

A law takes a `Machine` on which nothing of ours is, and raises AssertionError where its kernel breaks it.
`tests/pure/test_contract.py` tries the fake, `tests/lab/test_contract.py` the kernel of a lab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.story import told
from vpcctl.analysis import packetset
from vpcctl.errors import ConflictError, KernelError
from vpcctl.model.network import World, uplink_pair
from vpcctl.resources import plan, topology
from vpcctl.resources.kinds import RANK, Bridge, Item, LinkUp, Namespace, Neighbour, Open, Ruleset, Veth
from vpcctl.resources.plan import Ensure, Plan, Remove
from vpcctl.resources.protocol import Kernel, Status

STATE_ID = "0a1b2c3d"
# Two VPCs, one of them hardened, peered, with a policy and a published port: every kind of object.
FULL = "peer them"


@dataclass(frozen=True, slots=True)
class Machine:
    """A kernel, and how somebody else makes an object in it."""

    kernel: Kernel
    make_foreign: Callable[[Namespace], None]


def items(world: World | None = None) -> list[Item]:
    """The objects of a world in the order of creation, without what the host has for all VPCs."""
    found = topology.snapshot(told(FULL) if world is None else world, STATE_ID, {})
    return sorted((item for members in found.values() for item in members), key=lambda item: RANK[type(item)])


def status(machine: Machine, *wanted: Item) -> list[Status]:
    """How the objects stand, asked together with the namespaces that they are in."""
    spaces = [item for item in items() if isinstance(item, Namespace)]
    found = machine.kernel.observe([*spaces, *wanted])
    return [found[item].state for item in wanted]


def build(machine: Machine) -> list[Item]:
    made = items()
    for item in made:
        machine.kernel.ensure(item)
    return made


def what_was_made_is_right(machine: Machine) -> None:
    """Absent before, right after, all at once."""
    wanted = items()
    things = [item for item in wanted if isinstance(item, (Namespace, Ruleset, Bridge, Veth))]
    assert set(status(machine, *things)) == {Status.ABSENT}
    build(machine)
    wrong = [str(item) for item, found in zip(wanted, status(machine, *wanted), strict=True) if found != Status.RIGHT]
    assert not wrong, wrong


def making_twice_changes_nothing(machine: Machine) -> None:
    made = build(machine)
    before = machine.kernel.observe(made)
    for item in made:
        machine.kernel.ensure(item)
    assert machine.kernel.observe(made) == before


def removing_is_done_and_done_again(machine: Machine) -> None:
    """In the order of a plan, and each step twice: absent is success."""
    made = build(machine)
    for step in plan.order(made, []).steps:
        assert isinstance(step, Remove)
        machine.kernel.remove(step.item)
        machine.kernel.remove(step.item)
    left = [item for item in made if isinstance(item, (Namespace, Veth, Ruleset, Bridge, Neighbour))]
    assert set(status(machine, *left)) == {Status.ABSENT}


def a_namespace_takes_all_with_it(machine: Machine) -> None:
    made = build(machine)
    router = next(item for item in made if isinstance(item, Namespace) and item.namespace.endswith("-router"))
    inside = [item for item in made if item.namespace == router.namespace]
    machine.kernel.remove(router)
    assert set(status(machine, *inside)) == {Status.ABSENT}
    assert machine.kernel.loaded(router.namespace) == set()


def what_a_link_holds_goes_with_it(machine: Machine) -> None:
    made = build(machine)
    link = next(item for item in made if isinstance(item, Veth) and item.peer_namespace is None)
    machine.kernel.remove(link)
    held = [item for item in made if set(item.goes_with) & set(link.links) and isinstance(item, (LinkUp, Open))]
    assert held
    assert set(status(machine, link, *held)) == {Status.ABSENT}


def nothing_is_made_where_its_place_is_missing(machine: Machine) -> None:
    """An object in a namespace that is gone, or on a link that is gone, is refused by an error of ours."""
    made = build(machine)
    router = next(item for item in made if isinstance(item, Namespace) and item.namespace.endswith("-router"))
    bridge = next(item for item in made if isinstance(item, Bridge) and item.namespace == router.namespace)
    entry = next(item for item in made if isinstance(item, Neighbour) and item.link == bridge.name)
    machine.kernel.remove(bridge)
    for missing in (bridge, router):
        machine.kernel.remove(missing)
        with pytest.raises(KernelError):
            machine.kernel.ensure(entry)


def what_differs_is_told_and_made_right(machine: Machine) -> None:
    made = build(machine)
    entry = next(item for item in made if isinstance(item, Neighbour) and item.namespace is not None)
    other = dataclasses.replace(entry, mac="02:00:00:00:00:99")
    machine.kernel.ensure(other)
    assert status(machine, entry, other) == [Status.DIFFERENT, Status.RIGHT]
    machine.kernel.ensure(entry)
    assert status(machine, entry) == [Status.RIGHT]


def a_ruleset_is_known_by_fingerprint_and_generation(machine: Machine) -> None:
    made = build(machine)
    ruleset = next(item for item in made if isinstance(item, Ruleset) and item.namespace is not None)
    assert ruleset.namespace is not None
    assert machine.kernel.loaded(ruleset.namespace) == {(ruleset.fingerprint, ruleset.generation)}
    later = ruleset.at(ruleset.generation + 1)
    machine.kernel.ensure(later)
    assert machine.kernel.loaded(ruleset.namespace) == {(ruleset.fingerprint, ruleset.generation + 1)}
    assert status(machine, ruleset, later) == [Status.DIFFERENT, Status.RIGHT]
    assert "table inet vpcctl" in machine.kernel.ruleset_listing(ruleset.namespace, ("inet",))
    assert any("table" in one for one in machine.kernel.ruleset_objects(ruleset.namespace))
    machine.kernel.remove(later)
    assert machine.kernel.loaded(ruleset.namespace) == set()
    assert machine.kernel.ruleset_listing(ruleset.namespace, ("inet",)) == ""


def what_is_gone_tracks_nothing(machine: Machine) -> None:
    assert machine.kernel.settled(["nobody-router"]) == set()
    assert list(machine.kernel.flows("nobody-router")) == []
    assert list(machine.kernel.counted("nobody-router")) == []
    machine.kernel.forget("nobody-router", [])
    assert machine.kernel.loaded("nobody-router") == set()


def counts_begin_at_nothing(machine: Machine) -> None:
    build(machine)
    world = told(FULL)
    addresses = [packetset.number(uplink_pair(world.transit, vpc.index)[1]) for vpc in world.vpcs]
    assert machine.kernel.tally(addresses) == dict.fromkeys(addresses, (0, 0))
    assert [machine.kernel.refused(f"{vpc.name}-router") for vpc in world.vpcs] == [0, 0]
    assert set(machine.kernel.counters().values()) <= {0}


def what_is_not_ours_is_refused_and_left_alone(machine: Machine) -> None:
    space = next(item for item in items() if isinstance(item, Namespace))
    machine.make_foreign(space)
    assert status(machine, space) == [Status.FOREIGN]
    with pytest.raises(ConflictError, match=space.namespace):
        machine.kernel.check(Plan((Ensure(space),)))
    machine.kernel.remove(space)
    assert status(machine, space) == [Status.FOREIGN]


def the_host_is_read_without_a_change(machine: Machine) -> None:
    assert machine.kernel.boot_id() == machine.kernel.boot_id() != ""
    assert machine.kernel.facts() == machine.kernel.facts()


def a_closed_kernel_opens_again(machine: Machine) -> None:
    made = build(machine)
    machine.kernel.close()
    machine.kernel.close()
    assert set(status(machine, *made)) == {Status.RIGHT}


LAWS: dict[str, Callable[[Machine], None]] = {
    law.__name__: law
    for law in (
        what_was_made_is_right,
        making_twice_changes_nothing,
        removing_is_done_and_done_again,
        a_namespace_takes_all_with_it,
        what_a_link_holds_goes_with_it,
        nothing_is_made_where_its_place_is_missing,
        what_differs_is_told_and_made_right,
        a_ruleset_is_known_by_fingerprint_and_generation,
        what_is_gone_tracks_nothing,
        counts_begin_at_nothing,
        what_is_not_ours_is_refused_and_left_alone,
        the_host_is_read_without_a_change,
        a_closed_kernel_opens_again,
    )
}
