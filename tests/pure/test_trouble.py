"""A failure in one VPC or one instance: the others are still changed, repaired and removed."""

from __future__ import annotations

import dataclasses
import ipaddress
import re

import pytest

from tests.failing_machine import Machine, Stubborn, Watched
from tests.lives import FULL, Life
from tests.story import Step, nothing, subnet
from vpcctl import names
from vpcctl.engine import convergence, reconciler
from vpcctl.errors import ConflictError, KernelError, StateError
from vpcctl.model import operations
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.kinds import Item, LinkUp, Namespace, Open, Route, Ruleset
from vpcctl.resources.plan import Remove

# -- trouble in one VPC --------------------------------------------------------------------------------------------


def troubled(life: Life, key: tuple[str, ...], name: str | None = None) -> tuple[Machine, str]:
    """A machine after a reboot whose kernel refuses the object with that key; the VPC that it belongs to."""
    _, state = life[name or FULL]
    kernel = Stubborn(boot="boot-2")
    kernel.refused = key
    scope = next(scope for scope, items in state.record.items() if any(item.key == key for item in items))
    return Machine(kernel, state), scope


def everything_of(life: Life, vpc: str | None = None) -> list[tuple[str, ...]]:
    record = life[FULL][1].record
    return [item.key for scope, items in record.items() if scope and vpc in (None, scope) for item in items]


def test_a_vpc_whose_repair_fails_holds_up_no_other_vpc(life: Life) -> None:
    """Whichever object of it is refused: the other VPC is restored, can be changed, and all can be destroyed."""
    for key in everything_of(life):
        machine, scope = troubled(life, key)
        with pytest.raises(KernelError, match=words(scope, key)):
            machine.repair()
        other = {"one": "two", "two": "one"}[scope]
        apart = [one for one in convergence.examine(machine.state, machine.kernel, [other]) if not shared(one.item)]
        assert apart == [], key
        ends = [names.port(instance_of(key))] if instance_of(key) else None
        shut = [item for item in opened(machine.kernel, scope) if ends is None or item.link in ends]
        assert not shut or key[0] == Open.__name__, key
        made = machine.change(subnet(other, "more", OTHER_PREFIX[other]))
        assert ("Namespace", f"{other}-more") in machine.kernel.objects
        assert made.after.vpc(other).subnet("more")
        assert machine.state.pending == machine.state.world
        machine.check_destroyed()
        assert machine.state.pending is None


# -- teardown ------------------------------------------------------------------------------------------------------


class Clinging(Watched):
    """A kernel that never removes the object with the key `kept`."""

    kept: tuple[str, ...] = ()

    def remove(self, item: Item) -> None:
        if item.key == self.kept and item.key in self.objects:
            raise KernelError(f"the kernel keeps {item}")
        super().remove(item)


def clinging(life: Life, key: tuple[str, ...], name: str = FULL) -> Machine:
    """A machine as it was after the step of that name, whose kernel keeps the object with that key."""
    kernel, state = life[name]
    twin = Clinging(boot="boot-1")
    twin.objects, twin.generations, twin.kept = dict(kernel.objects), dict(kernel.generations), key
    return Machine(twin, state)


def removed_by(life: Life, step: Step) -> list[Item]:
    """What the plan of that change removes by name."""
    kernel, state = life[FULL]
    twin = Machine(kernel.copy(), state)
    return [one.item for one in twin.change(step).plan.steps if isinstance(one, Remove)]


TEARDOWNS = {"delete everything": nothing, "delete VPC one": lambda world: operations.delete_vpc(world, "one", True)}


def fell(machine: Machine, item: Item) -> set[tuple[str, ...]]:
    """What may be left where `item` could not be removed: itself, what is in or on it, and the host's table."""
    whole = Watched(boot="boot-1")
    whole.objects = dict(machine.kernel.objects)
    FakeKernel.remove(whole, item)
    return machine.kernel.objects.keys() - whole.objects.keys() | {("Ruleset", "None")}


@pytest.mark.parametrize("name", TEARDOWNS)
def test_what_can_be_removed_is_removed_and_a_second_run_finishes(life: Life, name: str) -> None:
    """Whichever object cannot be removed: the failure is reported, all others go, and nothing new takes its place."""
    step, tried, stayed = TEARDOWNS[name], 0, 0
    for item in removed_by(life, step):
        machine = clinging(life, item.key)
        goes = step(machine.state.world)
        with pytest.raises(KernelError, match=r"removal failed: the kernel keeps .*\n.*`vpcctl repair`"):
            machine.change(step)
        tried += 1
        kept = {vpc.name for vpc in goes.vpcs}
        wanted = {one.key for scope, items in life[FULL][1].record.items() if scope in kept for one in items}
        assert machine.state.world == goes
        assert machine.kernel.objects.keys() - wanted <= fell(machine, item) | set(hosts(machine)), item
        # Nothing that is there is forgotten, nothing passes it, and nobody takes its names.
        assert machine.kernel.objects.keys() <= {one.key for one in machine.state.items}
        if item.key in machine.kernel.objects:  # and did not go with its namespace after all
            stayed += 1
            with pytest.raises(ConflictError, match="not removed completely"):
                machine.change(
                    lambda world: operations.create_vpc(world, "new", ipaddress.IPv4Network("10.200.0.0/16"))
                )
            with pytest.raises(KernelError, match="the kernel keeps"):
                machine.repair()
        machine.kernel.kept = ()
        machine.repair()
        machine.check(goes)
        machine.check_rest()
    assert tried > stayed >= 3


def hosts(machine: Machine) -> list[tuple[str, ...]]:
    return [item.key for item in machine.state.record.get("", ())]


def test_every_failure_of_a_teardown_is_told(life: Life) -> None:
    """Two VPCs whose router namespaces stay: both are named at once."""

    class Sticky(Watched):
        def remove(self, item: Item) -> None:
            if isinstance(item, Namespace) and item.namespace.endswith("-router"):
                raise KernelError(f"the kernel keeps {item}")
            super().remove(item)

    kernel, state = life[FULL]
    sticky = Sticky(boot="boot-1")
    sticky.objects = dict(kernel.objects)
    with pytest.raises(KernelError) as caught:
        Machine(sticky, state).change(nothing)
    assert re.findall(r"VPC (\w+): removal failed", str(caught.value)) == ["one", "two"]


INSTANCES = ("web", "web-two", "db")


def instance_of(key: tuple[str, ...]) -> str:
    """The instance of VPC one that the object with the key belongs to alone; empty where it is more than one's."""
    spaces = {f"{vpc}-{name}": name for vpc in ("one", "two") for name in (*INSTANCES, "api")}
    ports = {names.port(name): name for name in spaces.values()}
    if key[0] in ("Port", "FdbEntry", "Open", "Veth", "LinkUp", "Detour", "Mtu"):
        return ports.get(key[2], spaces.get(key[1], ""))
    return spaces.get(key[1], "")


def words(scope: str, key: tuple[str, ...]) -> str:
    """The message about a failure of the object."""
    name = instance_of(key)
    return f"instance {name} of VPC {scope}: repair failed, skipped" if name else f"VPC {scope}: repair failed, skipped"


def test_an_instance_that_cannot_be_repaired_stands_in_no_other_ones_way(life: Life) -> None:
    """Whichever object of it is refused: all else of its VPC is restored and can be changed, and its port is closed."""
    for key in filter(instance_of, everything_of(life, "one")):
        machine, _ = troubled(life, key)
        with pytest.raises(KernelError, match=words("one", key)) as caught:
            machine.repair()
        assert "its port is closed" in str(caught.value)
        name = instance_of(key)
        left = convergence.examine(machine.state, machine.kernel)
        assert {instance_of(one.item.key) for one in left} == {name}, key
        assert names.port(name) not in [item.link for item in opened(machine.kernel, "one")]
        assert machine.state.pending == machine.state.world
        machine.change(lambda world: operations.create_instance(world, "one", "web", "web-9", None, 0))
        assert "in-web-9" in [item.link for item in opened(machine.kernel, "one")], key
        machine.check_destroyed()


def test_an_open_port_is_closed_when_its_instance_cannot_be_repaired(life: Life) -> None:
    """Its address is gone and cannot be given again; the other instances keep their links, untouched."""
    before, state = life[FULL]
    key = next(key for key in everything_of(life, "one") if key[:2] == ("Address", "one-web"))
    kernel = Stubborn()
    kernel.objects, kernel.refused = dict(before.objects), key
    del kernel.objects[key]
    machine = Machine(kernel, state)
    with pytest.raises(KernelError, match=r"instance web of VPC one: .*its port is closed"):
        machine.repair()
    assert kernel.calls == ["remove link in-web open in one-router"]
    kernel.refused = ()
    machine.repair()
    machine.check(life[FULL][1].world)


def test_an_interrupted_change_is_kept_when_an_instance_that_it_does_not_touch_is_in_trouble(life: Life) -> None:
    machine, _ = troubled(life, ("Namespace", "one-web"))
    wanted = operations.clear_policy(machine.state.world, "one", "db")
    machine.store.state = dataclasses.replace(machine.state, pending=wanted)
    with pytest.raises(KernelError, match="instance web of VPC one"):
        machine.repair()
    assert machine.state.world == wanted


def test_an_interrupted_change_that_makes_the_instance_in_trouble_is_put_back(life: Life) -> None:
    machine = Machine(Stubborn(), life[FULL][1])
    machine.kernel.objects = dict(life[FULL][0].objects)
    machine.kernel.refused = ("Namespace", "one-web-9")
    wanted = operations.create_instance(machine.state.world, "one", "web", "web-9", None, 0)
    machine.store.state = dataclasses.replace(machine.state, pending=wanted)
    machine.repair()
    machine.check(life[FULL][1].world)


def test_a_failed_repair_succeeds_when_the_cause_is_gone(life: Life) -> None:
    for key in everything_of(life):
        machine, _ = troubled(life, key)
        for _ in range(2):
            with pytest.raises(KernelError):
                machine.repair()
        machine.kernel.refused = ()
        machine.repair()
        machine.check(life[FULL][1].world)
        machine.check_rest()


def test_a_change_of_a_vpc_whose_repair_fails_is_rolled_back(life: Life) -> None:
    machine, _ = troubled(life, ("Namespace", "one-router"))
    with pytest.raises(KernelError, match="one-router"):
        machine.change(lambda world: operations.create_instance(world, "one", "web", "web-9", None, 0))
    assert machine.state.world == life[FULL][1].world
    machine.kernel.refused = ()
    machine.repair()
    machine.check(life[FULL][1].world)


def test_what_is_not_ours_is_trouble_of_its_instance_alone(life: Life) -> None:
    machine, _ = troubled(life, ("Namespace", "one-web"))
    machine.kernel.refused = ()
    machine.kernel.foreign.add(("Namespace", "one-web"))
    with pytest.raises(ConflictError, match="instance web of VPC one: repair failed, skipped"):
        machine.repair()
    left = convergence.examine(machine.state, machine.kernel)
    assert {instance_of(one.item.key) for one in left} == {"web"}


def drifted(life: Life, key: tuple[str, ...]) -> Machine:
    """A machine whose object with that key is another one, and whose kernel refuses the right one."""
    before, state = life[FULL]
    kernel = Stubborn()
    kernel.objects = dict(before.objects)
    kernel.objects[key] = dataclasses.replace(kernel.objects[key], tag="spoiled")
    kernel.refused = key
    return Machine(kernel, state)


def test_a_router_that_does_not_get_its_ruleset_carries_nothing(life: Life) -> None:
    machine = drifted(life, ("Ruleset", "one-router"))
    with pytest.raises(KernelError, match="VPC one: repair failed, skipped"):
        machine.repair()
    up = [item for item in machine.kernel.objects.values() if isinstance(item, (Open, LinkUp))]
    assert {item.namespace for item in up} == {None, "one-web", "one-db", "two-api", "two-router"}
    machine.kernel.refused = ()
    machine.repair()
    machine.check(life[FULL][1].world)


def test_an_instance_whose_packets_cannot_make_their_detour_is_closed(life: Life) -> None:
    key = ("Detour", "one-router", "in-web")
    before, state = life["harden VPC one"]
    kernel = Stubborn()
    kernel.objects = {one: item for one, item in before.objects.items() if one != key}
    kernel.refused = key
    machine = Machine(kernel, state)
    with pytest.raises(KernelError, match="instance web of VPC one: repair failed, skipped"):
        machine.repair()
    opened = {
        item.link for item in kernel.objects.values() if isinstance(item, Open) and item.namespace == "one-router"
    }
    assert "in-web" not in opened
    assert "in-db" in opened
    machine.kernel.refused = ()
    machine.repair()
    machine.check(state.world)


def test_what_is_reported_as_repaired_was_repaired(life: Life) -> None:
    for key in everything_of(life):
        machine, _ = troubled(life, key)
        told: list[str] = []
        with pytest.raises(KernelError):
            reconciler.repair(machine.store, machine.kernel, report=told.append)
        repaired = {line.removeprefix("repaired: ").split(" was ")[0] for line in told if line.startswith("repaired: ")}
        left = {str(one.item) for one in convergence.examine(machine.state, machine.kernel)}
        assert {"namespace two-router", "namespace one-router"} & repaired, key
        assert not repaired & left, key


def test_a_link_of_an_instance_that_is_known_not_to_be_repaired_is_not_taken_away(life: Life) -> None:
    """It would be made again by steps that are not taken."""
    before, state = life[FULL]
    kernel, key = before.copy(), ("Veth", "one-router", "in-web")
    kernel.objects[key] = spoiled = dataclasses.replace(kernel.objects[key], tag="spoiled")
    kernel.foreign.add(("Namespace", "one-web"))
    machine = Machine(kernel, state)
    with pytest.raises(ConflictError, match="instance web of VPC one"):
        machine.repair()
    assert kernel.objects[key] == spoiled


def test_one_vpcs_trouble_is_none_of_another_that_is_asked_for_alone(life: Life) -> None:
    machine, _ = troubled(life, ("Namespace", "one-web"), "create its subnet api")
    with pytest.raises(KernelError):
        machine.repair()
    reconciler.repair(machine.store, machine.kernel, vpcs=["two"])
    assert not machine.state.changes("two")
    assert machine.state.pending == machine.state.world
    with pytest.raises(KernelError, match="instance web of VPC one"):
        reconciler.repair(machine.store, machine.kernel, vpcs=["one"])


def test_what_a_repair_does_not_look_at_stays_on_record_as_it_was(life: Life) -> None:
    kernel, state = life[FULL]
    older = {
        scope: tuple(
            dataclasses.replace(item, fingerprint="0123456789abcdef") if isinstance(item, Ruleset) else item
            for item in items
        )
        for scope, items in state.record.items()
    }
    machine = Machine(kernel.copy(), dataclasses.replace(state, record=older))
    reconciler.repair(machine.store, machine.kernel, vpcs=["one"])
    assert machine.state.record["two"] == older["two"]
    assert machine.state.record["one"] != older["one"]


def test_a_change_that_only_lacks_its_commit_is_kept_beside_the_trouble_of_another_vpc(life: Life) -> None:
    machine, _ = troubled(life, ("Namespace", "one-web"))
    with pytest.raises(KernelError):
        machine.repair()
    machine.store.failing, machine.store.error = machine.store.writes + 4, StateError("no room")
    with pytest.raises(StateError, match="the change itself is in force"):
        machine.change(subnet("two", "more", OTHER_PREFIX["two"]))
    with pytest.raises(KernelError, match="instance web of VPC one"):
        machine.repair()
    assert machine.state.world.vpc("two").subnet("more")


OTHER_PREFIX = {"one": "10.0.0.48/28", "two": "10.0.0.96/28"}


def shared(item: Item) -> bool:
    """Does the item belong to the peering of the two VPCs?"""
    return "pr-" in str(item) or (isinstance(item, Route) and item.link.startswith("pr-"))


def opened(kernel: FakeKernel, vpc: str) -> list[Open]:
    namespace = names.router_namespace(vpc)
    return [item for item in kernel.objects.values() if isinstance(item, Open) and item.namespace == namespace]
