"""The parts of the record: after any commands and crashes, they equal a record that is written at once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import records
from vpcctl.documents.binding import attach
from vpcctl.documents.policies import read_policies
from vpcctl.engine import parts, reconciler, state, targets
from vpcctl.engine.state import State, Store
from vpcctl.errors import ConflictError, StateError, VpcctlError
from vpcctl.model import operations
from vpcctl.model.network import Vpc, World
from vpcctl.resources.fake import FakeKernel

Change = Callable[[State], World]


class CrashError(BaseException):
    """No error class of ours, so nothing catches it: it simulates a power failure."""


def policy(vpc: str, rules: int) -> Change:
    """So many rules for a subnet; a long list is a part of its own."""
    ingress = [{"action": "allow", "protocol": "tcp", "port": 1 + number} for number in range(rules)]
    found = read_policies({"vpc": vpc, "subnet": "web", "ingress": ingress}, "web.json")
    return lambda found_state: attach(found_state.world, found)[0]


def of_vpc(name: str, number: int) -> dict[str, Change]:
    prefix = f"10.{number}.{{}}.0/24"
    web, db = (ip_network(prefix.format(place)) for place in (1, 2))
    own = ip_network(f"10.{number}.0.0/16")
    return {
        f"create {name}": lambda s: operations.create_vpc(s.world, name, own),
        f"web in {name}": lambda s: operations.create_subnet(s.world, name, "web", web, True, True, s.serial),
        f"db in {name}": lambda s: operations.create_subnet(s.world, name, "db", db, False, True, s.serial),
        f"instance in {name}": lambda s: operations.create_instance(s.world, name, "web", "more", None, s.serial),
        f"no instance in {name}": lambda s: operations.delete_instance(s.world, name, "more"),
        f"few rules in {name}": policy(name, 2),
        f"many rules in {name}": policy(name, 300),
        f"limits of {name}": lambda s: operations.set_limits(s.world, name, 1000 + s.serial, None),
        f"no db in {name}": lambda s: operations.delete_subnet(s.world, name, "db", True),
        f"delete {name}": lambda s: operations.delete_vpc(s.world, name, True),
    }


CHANGES: dict[str, Change] = {
    **of_vpc("one", 1),
    **of_vpc("two", 2),
    "peer": lambda s: operations.create_peering(s.world, "one", "two"),
    "peer no more": lambda s: operations.delete_peering(s.world, "one", "two"),
}
# Calls that change a file or a directory of the record, without the lock file: the kernel releases the lock.
CHANGING = {"write", "fsync", "rename", "unlink", "mkdir", "utime"}


class Disk:
    """`os`, whose changing call number `last` does not take place any more; a write is torn."""

    def __init__(self, last: int | None, error: BaseException):
        self._left, self._error = last, error

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGING and name != "open":
            return real

        def call(*given: Any, **more: Any) -> Any:
            if name == "open" and (not given[1] & os.O_CREAT or given[0] == state.LOCK_FILE):
                return real(*given, **more)
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    if name == "write":
                        real(given[0], bytes(given[1])[: len(given[1]) // 2])
                    raise self._error
            return real(*given, **more)

        return call


@contextlib.contextmanager
def struck(last: int | None, error: BaseException) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(last, error)
        patch.setattr(parts, "os", disk)
        patch.setattr(state, "os", disk)
        yield


def at_once(found: State, directory: Path) -> Any:
    """The record of `found`, written to an empty directory from fresh values."""

    def copied(world: World) -> World:
        return dataclasses.replace(world, vpcs=tuple(map(dataclasses.replace, world.vpcs)))

    made = dataclasses.replace(
        found,
        world=copied(found.world),
        pending=None if found.pending is None else copied(found.pending),
        record={scope: tuple(items) for scope, items in found.record.items()},
    )
    store = Store(directory)
    with store.locked() as writer:
        writer.save(made)
    return without_serial(records.whole(directory))


def without_serial(document: Any) -> Any:
    return document | {"serial": 0, "checksum": ""}


def assert_whole(store: Store, scratch: Path) -> None:
    """Check that the record and its copy equal a record that is written at once, and contain nothing else."""
    found = Store(store.directory).load_whole()
    expected = at_once(found, scratch)
    assert without_serial(records.whole(store.directory)) == expected
    copy = store._copy
    assert without_serial(records.whole(copy.parent, copy.name, store._copy_folder)) == expected
    document = state._canonical(records.head(store.directory))
    there = {path.stem for path in (store.directory / parts.FOLDER).glob("*.json")}
    needed = {mark for mark in there if mark.encode() in document}
    assert {path.stem for path in (copy.parent / store._copy_folder).iterdir()} == needed
    # All other files are those that a reader may still need.
    for mark in there - needed:
        written = (store.directory / parts.FOLDER / parts.file_name(mark)).stat().st_mtime
        assert time.time() - written < parts.GRACE


STRIKES = st.sampled_from(
    ["", "", "crash in the record", "crash in the kernel", "error in the record", "error in the kernel"]
)
STEPS = st.lists(st.tuples(st.sampled_from(list(CHANGES)), STRIKES, st.integers(0, 30)), min_size=1, max_size=6)
BUILT = ["create one", "web in one", "create two", "web in two", "many rules in one", "peer"]


def built(found: State) -> World:
    """Two VPCs with something in them."""
    for name in BUILT:
        found = dataclasses.replace(found, world=CHANGES[name](found))
    return found.world


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_any_commands_and_crashes_leave_a_whole_record(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int]]
) -> None:
    base = tmp_path_factory.mktemp("any")
    kernel = FakeKernel()
    reconciler.change(Store(base / "state", base / "copies"), kernel, built)
    for number, (name, strike, place) in enumerate(steps):
        # Another process each time: nothing is cached.
        store = Store(base / "state", base / "copies")
        before = store.load().world
        error = CrashError() if "crash" in strike else OSError(28, os.strerror(28))
        kernel.calls.clear()
        kernel.fail_at, kernel.failure = (1 + place % 12, error) if strike == "crash in the kernel" else (None, error)
        if strike == "error in the kernel":
            kernel.fail_at, kernel.failure = 1 + place % 12, VpcctlError("the kernel fails as the test asks")
        after: list[World] = []

        def change(found: State, name: str = name, after: list[World] = after) -> World:
            after[:] = [CHANGES[name](found)]
            return after[0]

        last = place if strike.endswith("record") else None
        with contextlib.suppress(CrashError, VpcctlError), struck(last, error):
            reconciler.change(store, kernel, change)
        kernel.fail_at = None
        store = Store(base / "state", base / "copies")
        reconciler.repair(store, kernel)
        found = store.load()
        assert found.pending is None
        assert found.world in (before, *(targets.decided(world, kernel.facts()) for world in after))
        with store.locked() as writer:
            writer.save(writer.load())
        assert_whole(store, base / f"once-{number}")
        assert {item.key: item for item in found.items} == kernel.objects


# --- What is no longer needed -----------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A record with two VPCs."""
    made = Store(tmp_path / "state", tmp_path / "copies")
    reconciler.change(made, FakeKernel(), built)
    return made


def changed(store: Store, *names: str) -> None:
    for name in names:
        with store.locked() as writer:
            found, vpc = writer.load(), name.split()[-1]
            record = {**found.record, vpc: tuple(found.record[vpc])}
            writer.save(dataclasses.replace(found, world=CHANGES[name](found), record=record))


def files(store: Store) -> set[Path]:
    return set((store.directory / parts.FOLDER).iterdir())


def age(paths: set[Path]) -> None:
    """Set their times: they were written, or last needed, long ago."""
    for path in paths:
        os.utime(path, (0, 0))


def test_a_part_stays_for_those_who_read_and_is_gone_later(store: Store) -> None:
    before = files(store)
    age(before)
    reader = Store(store.directory).load()
    changed(store, "db in one")
    # The time of grace begins when a part is no longer needed, whatever its age.
    assert len(files(store) - before) == 1
    assert before <= files(store)
    changed(store, "db in two")
    assert [subnet.name for subnet in reader.world.vpc("one").subnets] == ["web"]

    unneeded = before - {file_of(store, mark) for mark in needed(store)}
    age(unneeded)
    late = Store(store.directory)
    late_world = late.load().world
    changed(store, "limits of one")
    assert not unneeded & files(store)
    assert [subnet.name for subnet in late_world.vpc("two").subnets] == ["web", "db"]


def needed(store: Store) -> set[str]:
    store.load()
    return set(store.needed)


def file_of(store: Store, mark: str) -> Path:
    return store.directory / parts.FOLDER / parts.file_name(mark)


def test_a_reader_that_is_too_late_is_told(store: Store) -> None:
    late = Store(store.directory).load()
    before = files(store)
    changed(store, "db in one")
    age(before - {file_of(store, mark) for mark in needed(store)})
    changed(store, "limits of two")
    with pytest.raises(StateError, match="another command changed VPC one while its record was read; run the command"):
        _ = late.world.vpc("one").subnets
    assert [subnet.name for subnet in late.world.vpc("two").subnets] == ["web"]


def test_what_a_crash_leaves_is_removed_and_nothing_else(store: Store) -> None:
    folder = store.directory / parts.FOLDER
    lost, young, temporary = folder / f"{'a' * 64}.json", folder / f"{'b' * 64}.json", folder / parts.TEMPORARY
    others = [folder / name for name in ("notes", f"{'c' * 63}.json", f"{'D' * 64}.json")]
    for path in (lost, young, temporary, *others):
        path.write_text("x")
    age({lost, *others})
    age(sound := {file_of(store, mark) for mark in needed(store)})
    changed(store, "limits of two")
    assert files(store) >= {young, *others, *sound}
    assert not files(store) & {lost, temporary}


def test_a_part_that_a_crash_left_is_not_trusted(store: Store) -> None:
    """It may be torn: it has the name of the next part, but other content."""
    again = Store(store.directory.parent / "again")
    changed(store, "limits of one")
    shutil.copytree(store.directory, again.directory)
    before = files(again)
    changed(again, "db in one")
    [new] = files(again) - before
    torn = store.directory / parts.FOLDER / new.name
    torn.write_bytes(b"{")
    changed(store, "db in one")
    assert torn.read_bytes() == new.read_bytes()
    store.load_whole()


@pytest.mark.parametrize("loading", [True, False])
def test_a_write_that_fails_removes_nothing_that_is_needed(store: Store, loading: bool) -> None:
    found = Store(store.directory).load_whole()
    values = dataclasses.replace(
        found,
        world=dataclasses.replace(found.world, vpcs=tuple(map(dataclasses.replace, found.world.vpcs))),
        record={scope: tuple(items) for scope, items in found.record.items()},
    )
    for last in range(12):
        again = Store(store.directory)
        with again.locked() as writer, contextlib.suppress(StateError):
            if loading:
                writer.load()
            with struck(last, OSError(28, os.strerror(28))):
                writer.save(values)
        Store(store.directory).load_whole()


def test_equal_lists_are_one_file(store: Store) -> None:
    lists = [path for path in files(store) if path.read_bytes().startswith(b"[")]
    changed(store, "many rules in two")
    assert [path for path in files(store) if path.read_bytes().startswith(b"[")] == lists
    first, second = (Store(store.directory).load().world.vpc(name).subnets[0].policy for name in ("one", "two"))
    assert first == second


def test_vpcs_of_equal_parts_are_equal_unread(store: Store) -> None:
    one, other = (Store(store.directory).load().world for _ in range(2))
    shutil.rmtree(store.directory / parts.FOLDER)
    assert one == other
    assert one.vpc("one") != one.vpc("two")


def test_names_that_may_clash_are_compared_and_others_not_read(tmp_path: Path) -> None:
    """A namespace is named VPC-INSTANCE, so two VPCs can clash only if one name begins with the other."""
    store = Store(tmp_path / "state")
    world = World()
    for number, name in enumerate(("a", "a-b", "c-d")):
        world = operations.create_vpc(world, name, ip_network(f"10.{number}.0.0/16"))
        world = operations.create_subnet(world, name, "web", ip_network(f"10.{number}.1.0/24"), True, False, 0)
    with store.locked() as writer:
        writer.save(State("0a1b2c3d", world=world))
    found = Store(store.directory).load().world
    read = [vpc.name for vpc in found.vpcs if was_read(vpc)]
    assert read == ["a", "a-b"]
    found = operations.create_instance(found, "a", "web", "b-x", None, 0)
    with pytest.raises(ConflictError, match="would both have the namespace a-b-x"):
        operations.create_instance(found, "a-b", "web", "x", None, 0)


def was_read(vpc: Vpc) -> bool:
    """Were the subnets of a VPC read already?  Does not read them."""
    try:
        object.__getattribute__(vpc, "subnets")
    except AttributeError:
        return False
    return True
