"""The record on disk: what is written is read, what is damaged is refused, and nobody else gets at it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests import records, worlds
from tests.story import STORY, told
from vpcctl.engine import parts, reconciler, state
from vpcctl.engine.state import FORMAT, LOCK_FILE, STATE_FILE, State, Store
from vpcctl.errors import StateError
from vpcctl.model.host import HostPart, OpenedLink
from vpcctl.model.network import World
from vpcctl.resources import topology
from vpcctl.resources.fake import FakeKernel

EMPTY = State("0a1b2c3d", "boot-1")


PART, NEXT = HostPart((OpenedLink(2, "eth0"),), (40000,), (2, 5)), HostPart((OpenedLink(3, "eth1"),), forwards=True)


def full(world: World, pending: World | None = None) -> State:
    """A state with everything in it."""
    host = {"host": PART, "pending_host": NEXT if pending else HostPart()}
    record = {scope: tuple(items) for scope, items in topology.snapshot(world, EMPTY.state_id, {}).items()}
    return dataclasses.replace(EMPTY, world=world, record=record, pending=pending, **host)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


def save(store: Store, found: State) -> State:
    with store.locked() as writer:
        return writer.save(found)


def written(store: Store) -> Any:
    return json.loads((store.directory / STATE_FILE).read_text())


def overwrite(store: Store, content: bytes | str) -> None:
    (store.directory / STATE_FILE).write_bytes(content.encode() if isinstance(content, str) else content)


# -- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, _ in STORY])
def test_what_is_saved_is_loaded(store: Store, name: str) -> None:
    saved = save(store, full(told(name), pending=told("create VPC one")))
    assert saved.serial == 1
    assert store.load() == saved
    assert save(store, saved).serial == 2


@settings(max_examples=25, deadline=None)
@given(found=worlds.worlds())
def test_any_world_survives_its_file(tmp_path_factory: pytest.TempPathFactory, found: World) -> None:
    store = Store(tmp_path_factory.mktemp("any") / "state")
    assert save(store, full(found, pending=found)) == store.load()


def test_equal_states_are_written_equally(store: Store) -> None:
    save(store, full(told("peer them")))
    first = (store.directory / STATE_FILE).read_bytes()
    save(store, full(told("peer them")))
    assert (store.directory / STATE_FILE).read_bytes() == first


def test_where_there_is_no_file_the_state_is_fresh_and_nothing_is_made(store: Store) -> None:
    found = store.load()
    assert (found.world, found.record, found.serial) == (World(), {}, 0)
    assert len(found.state_id) == 8
    assert not store.directory.exists()


def test_each_fresh_state_has_an_identity_of_its_own(tmp_path: Path) -> None:
    assert Store(tmp_path / "a").load().state_id != Store(tmp_path / "b").load().state_id


def test_a_writer_reads_what_it_wrote(store: Store) -> None:
    with store.locked() as writer:
        saved = writer.save(EMPTY)
        assert writer.load() == saved


# -- damage --------------------------------------------------------------------------------------------------------


def test_every_byte_that_is_damaged_is_noticed(store: Store) -> None:
    save(store, full(told("create its subnet web")))
    sound = (store.directory / STATE_FILE).read_bytes()
    loaded = store.load()
    noticed = 0
    places = range(0, len(sound), 41)
    for place in places:
        overwrite(store, sound[:place] + bytes([sound[place] ^ 0x01]) + sound[place + 1 :])
        try:
            assert store.load() == loaded, f"byte {place} of {len(sound)}"
        except StateError:
            noticed += 1
    # A blank that became another one changes nothing; there are hardly any.
    assert noticed > 0.95 * len(places)
    overwrite(store, sound)
    assert store.load() == loaded


def test_every_byte_of_a_part_that_is_damaged_is_noticed(store: Store) -> None:
    save(store, full(told("create its subnet web")))
    [part] = (store.directory / parts.FOLDER).iterdir()
    sound = part.read_bytes()
    for place in range(0, len(sound), 41):
        part.write_bytes(sound[:place] + bytes([sound[place] ^ 0x01]) + sound[place + 1 :])
        with pytest.raises(StateError, match=f"VPC one: {part} is damaged .its checksum does not match."):
            store.load_whole()
    for cut in (sound[:-1], b"", sound + b" "):
        part.write_bytes(cut)
        with pytest.raises(StateError, match="its checksum does not match"):
            store.load_whole()
    part.write_bytes(sound)
    store.load_whole()


@pytest.mark.parametrize("cut", [0, 1, 10, 0.5, -1])
def test_a_file_that_was_cut_off_is_damaged(store: Store, cut: float) -> None:
    save(store, full(told("create its subnet web")))
    sound = (store.directory / STATE_FILE).read_bytes()
    overwrite(store, sound[: int(len(sound) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(StateError, match="is damaged"):
        store.load()


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"null", b"[]", b"5", b'"x"', b"{}", b'{"format": 1}', b"\xff\xfe", b"\x00" * 100, b"[" * 100_000,
     b'{"format": 1, "checksum": "sha256:0"}', b'{"format": 1, "checksum": 5}'],
)  # fmt: skip
def test_what_is_no_state_document_is_damaged(store: Store, content: bytes) -> None:
    save(store, EMPTY)
    overwrite(store, content)
    with pytest.raises(StateError, match="is damaged"):
        store.load()
    with store.locked() as writer, pytest.raises(StateError, match="is damaged"):
        writer.load()


def resealed(store: Store, change: Callable[[Any], None]) -> None:
    """The file with its document changed and its checksum made anew."""
    document = written(store)
    change(document)
    document.pop("checksum")
    document["checksum"] = state._checksum(document)
    overwrite(store, json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("record"),
        lambda document: document.update(record=[]),
        lambda document: document.update(record={"one": 5}),
        lambda document: document["record"].update(one=[{"kind": "nothing"}]),
        lambda document: document["record"].update(one=[{"kind": "namespace", "name": "x"}]),
        lambda document: document.update(desired=5),
        lambda document: document["desired"].update(transit="x"),
        lambda document: document["desired"]["vpcs"][0].update(name="../x"),
        lambda document: document["desired"]["vpcs"][0].update(part="../x"),
        lambda document: document["desired"]["vpcs"][0].update(part="a" * 63),
        lambda document: document["desired"]["vpcs"][0].update(lists=5),
        lambda document: document["desired"]["vpcs"][0].update(lists=["../x"]),
        lambda document: document["desired"]["vpcs"][0].update(max_flows="many"),
        lambda document: document["desired"]["vpcs"].append(document["desired"]["vpcs"][0]),
        lambda document: document["record"].update(one="../x"),
        lambda document: document.update(pending=[]),
        lambda document: document.pop("host"),
        lambda document: document["host"].update(opened=5),
    ],
)
def test_a_sound_checksum_over_nonsense_is_damage_too(store: Store, change: Callable[[Any], None]) -> None:
    save(store, full(told("create its subnet web")))
    resealed(store, change)
    with pytest.raises(StateError, match="is damaged"):
        store.load()


@pytest.mark.parametrize(
    "change",
    [
        lambda vpc: vpc["part"]["subnets"][0].update(policy=5),
        lambda vpc: vpc["part"]["subnets"][0].update(name="../x"),
        lambda vpc: vpc["part"]["subnets"][0].pop("released"),
        lambda vpc: vpc["part"].pop("subnets"),
        lambda vpc: vpc["part"].update(sets=5, subnets=[]),
        lambda vpc: vpc["publish"].append({"protocol": 6, "port": 80, "instance": "nobody", "target_port": 80}),
    ],
)
def test_a_part_that_makes_no_sense_is_damage_too(store: Store, change: Callable[[Any], None]) -> None:
    save(store, full(told("create its subnet web")))
    document = records.whole(store.directory)
    records.put(store.directory, document)
    assert store.load_whole().world == told("create its subnet web")
    change(document["desired"]["vpcs"][0])
    records.put(store.directory, document)
    loaded = store.load()
    with pytest.raises(StateError, match=rf"VPC one: {store.directory}/parts/[0-9a-f]{{64}}\.json is damaged"):
        _ = loaded.world.vpcs[0].subnets


@pytest.mark.parametrize("items", [[{"kind": "nothing"}], [5], 5, [{"kind": "namespace", "name": "x"}]])
def test_objects_that_make_no_sense_are_damage_too(store: Store, items: object) -> None:
    save(store, full(told("create its subnet web")))
    document = records.whole(store.directory)
    document["record"]["one"] = items
    records.put(store.directory, document)
    loaded = store.load()
    assert loaded.world == told("create its subnet web")
    with pytest.raises(StateError, match=r"VPC one: .* is damaged"):
        _ = loaded.items


def test_a_resealed_file_is_sound(store: Store) -> None:
    """The control of the test before: sealing alone damages nothing."""
    saved = save(store, full(told("create its subnet web")))
    resealed(store, lambda document: None)
    assert store.load() == saved


@pytest.mark.parametrize("found", [FORMAT + 1, 999, "1", None, 1.5])
def test_a_newer_format_is_refused_with_the_remedy(store: Store, found: object) -> None:
    save(store, EMPTY)
    resealed(store, lambda document: document.update(format=found))
    with pytest.raises(StateError, match=f"has format {found}, and this vpcctl knows formats up to {FORMAT}"):
        store.load()


@pytest.mark.parametrize("found", [True, False, 0, -1])
def test_a_format_that_never_was_is_damage(store: Store, found: object) -> None:
    save(store, EMPTY)
    resealed(store, lambda document: document.update(format=found))
    with pytest.raises(StateError, match=rf"is damaged \({json.dumps(found)} is not a format\)"):
        store.load()


def test_a_damaged_file_stays_as_it_is_and_no_object_is_touched(store: Store) -> None:
    kernel = FakeKernel()
    reconciler.change(store, kernel, lambda _: told("create its subnet web"))
    overwrite(store, b"damaged")
    objects, calls = dict(kernel.objects), len(kernel.calls)
    for act in (lambda: reconciler.change(store, kernel, lambda _: World()), lambda: reconciler.repair(store, kernel)):
        with pytest.raises(StateError):
            act()
    assert (kernel.objects, len(kernel.calls)) == (objects, calls)
    assert (store.directory / STATE_FILE).read_bytes() == b"damaged"


# -- the copy ------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Store:
    """A store that leaves copies, with something in it."""
    store = Store(tmp_path / "state", tmp_path / "copies")
    save(store, full(told("create its subnet web")))
    return store


def adopted(store: Store) -> State:
    with store.locked() as writer:
        return writer.adopt()


@pytest.mark.parametrize("damage", [None, b"", b"damaged"])
def test_a_lost_or_damaged_file_is_taken_back_from_its_copy(copied: Store, damage: bytes | None) -> None:
    there = copied.load()
    file = copied.directory / STATE_FILE
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(StateError, match="--adopt"):
        copied.load()
    assert dataclasses.replace(adopted(copied), serial=0) == dataclasses.replace(there, serial=0)
    assert copied.load().world == there.world


def test_a_file_that_can_be_read_is_better_than_its_copy(copied: Store) -> None:
    there = copied.load()
    assert adopted(copied) == there


def test_a_newer_file_is_not_replaced_by_a_copy(copied: Store) -> None:
    resealed(copied, lambda document: document.update(format=FORMAT + 1))
    with pytest.raises(StateError, match="has format"):
        adopted(copied)


def test_without_a_copy_there_is_nothing_to_adopt(store: Store) -> None:
    save(store, EMPTY)
    overwrite(store, b"damaged")
    with pytest.raises(StateError, match="no copy of"):
        adopted(store)


def test_copies_of_two_directories_are_not_confused(tmp_path: Path) -> None:
    one, other = (Store(tmp_path / name, tmp_path / "copies") for name in ("one", "other"))
    save(one, full(told("create its subnet web")))
    assert other.load().world == World()
    save(other, full(told("peer them")))
    (one.directory / STATE_FILE).unlink()
    assert adopted(one).world == told("create its subnet web")


# -- who may read and write ----------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_files_and_directories_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    store = Store(tmp_path / "state", tmp_path / "copies")
    with store.locked() as writer:
        for _ in range(2):
            writer.save(EMPTY)
            writer.save(full(told("create its subnet web")))
    for directory in (store.directory, tmp_path / "copies"):
        paths = list(directory.rglob("*"))
        assert {mode(path) for path in paths if path.is_file()} == {0o600}
        assert {mode(path) for path in (directory, *paths) if path.is_dir()} == {0o700}
    assert {path.name for path in store.directory.iterdir()} == {STATE_FILE, LOCK_FILE, parts.FOLDER}


@pytest.mark.usefixtures("open_umask")
def test_at_every_instant_of_a_write_all_files_are_private(tmp_path: Path) -> None:
    store, done, seen = Store(tmp_path / "state"), threading.Event(), set()
    save(store, EMPTY)

    def look() -> None:
        while not done.is_set():
            for path in store.directory.rglob("*"):
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    seen.add((stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)))

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(30):
        save(store, full(told("peer them" if number % 2 else "create its subnet web")))
    done.set()
    watcher.join()
    assert seen == {(stat.S_IFREG, 0o600), (stat.S_IFDIR, 0o700)}


def test_a_directory_that_is_open_to_others_is_closed(store: Store) -> None:
    store.directory.mkdir(0o755)
    save(store, EMPTY)
    assert mode(store.directory) == 0o700


@pytest.mark.parametrize("name", [STATE_FILE, LOCK_FILE])
def test_a_link_in_the_place_of_a_file_is_not_followed(store: Store, tmp_path: Path, name: str) -> None:
    save(store, EMPTY)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (store.directory / name).unlink()
    (store.directory / name).symlink_to(victim)
    words = f"cannot (read|open) .*{name}: {os.strerror(errno.ELOOP)}"
    with pytest.raises(StateError, match=words), store.locked() as writer:
        writer.load()
    assert victim.read_text() == "precious"


def test_a_link_in_the_place_of_the_next_version_is_not_written_through(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with store.locked() as writer:
        (store.directory / state.TEMPORARY).symlink_to(victim)
        writer.save(EMPTY)
    assert victim.read_text() == "precious"
    assert store.load() == dataclasses.replace(EMPTY, serial=1)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_directory_of_ours_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "real").mkdir()
    place = tmp_path / "state"
    place.symlink_to(tmp_path / "real") if kind == "link" else place.write_text("")
    with pytest.raises(StateError, match="is not a directory of ours"):
        Store(place).load()
    with pytest.raises(StateError, match="is not a directory of ours"), Store(place).locked():
        pass
    assert list((tmp_path / "real").iterdir()) == []


# -- the lock ------------------------------------------------------------------------------------------------------


def test_there_is_one_writer_and_the_others_are_told_who_it_is(store: Store) -> None:
    words = rf"still locked by process {os.getpid()} \(.+\) after 0 s"
    with store.locked(), pytest.raises(StateError, match=words), store.locked(patience=0):
        pass
    with store.locked(patience=0):
        pass


def test_a_holder_that_does_not_say_its_name_is_another_process(store: Store) -> None:
    save(store, EMPTY)
    with open(store.directory / LOCK_FILE, "rb") as foreign:
        fcntl.flock(foreign, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="is still locked by another process"), store.locked(patience=0):
            pass


def test_a_writer_waits_for_its_turn(store: Store) -> None:
    order = []

    def second() -> None:
        with store.locked():
            order.append("second")

    with store.locked():
        waiting = threading.Thread(target=second)
        waiting.start()
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_readers_need_no_lock(store: Store) -> None:
    saved = save(store, EMPTY)
    with store.locked():
        assert store.load() == saved


def test_the_lock_file_is_never_replaced(store: Store) -> None:
    save(store, EMPTY)
    before = (store.directory / LOCK_FILE).stat().st_ino
    save(store, EMPTY)
    assert (store.directory / LOCK_FILE).stat().st_ino == before


def test_a_transform_that_fails_gives_the_lock_back(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        reconciler.change(store, FakeKernel(), lambda _: 1 / 0)
    with store.locked(patience=0):
        pass


# -- a disk that fails ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the kernel itself cuts the write short (setrlimit(2))."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1, 100, 4000])
def test_a_write_that_the_disk_cuts_short_leaves_the_file_as_it_was(store: Store, size: int) -> None:
    saved = save(store, full(told("create its subnet web")))
    before = records.files(store.directory)
    words = f"cannot write .*{os.strerror(errno.EFBIG)}"
    with store.locked() as writer, files_up_to(size), pytest.raises(StateError, match=words):
        writer.save(full(told("peer them")))
    assert store.load() == saved
    # Nothing is left of the failed write.
    assert records.files(store.directory) == before
    assert {path.name for path in store.directory.iterdir()} == {STATE_FILE, LOCK_FILE, parts.FOLDER}


def test_on_a_disk_without_room_a_change_does_nothing(store: Store) -> None:
    kernel = FakeKernel()
    with files_up_to(100), pytest.raises(StateError):
        reconciler.change(store, kernel, lambda _: told("create its subnet web"))
    assert kernel.calls == []
    assert store.load().world == World()


def test_what_a_crash_left_behind_is_cleared_away(store: Store) -> None:
    save(store, EMPTY)
    (store.directory / state.TEMPORARY).write_bytes(b"half")
    assert store.load() == dataclasses.replace(EMPTY, serial=1)
    with store.locked():
        assert not (store.directory / state.TEMPORARY).exists()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"cannot make .*/file/state"), Store(tmp_path / "file" / "state").locked():
        pass
