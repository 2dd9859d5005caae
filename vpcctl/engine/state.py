"""The record on disk: what is desired, what we made, and what was being changed when a crash came.

One file, ``state.json``, replaced whole: written beside its place, synced, renamed over it, and its directory synced
(fsync(2), rename(2)).  Writers hold a lock on a separate file that is never renamed; readers need none, because they
see the old file or the new one.  Everything is reached through a descriptor of the directory, links are not followed.
docs/state.md tells the format and the protocol, system call by system call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vpcctl.digest import sha256
from vpcctl.documents import files
from vpcctl.documents.codec import decode, host_from_json, host_to_json, world_from_json, world_to_json
from vpcctl.documents.lazy_lists import DAMAGE
from vpcctl.engine import migrations
from vpcctl.errors import StateError
from vpcctl.model.host import NO_PART, HostPart
from vpcctl.model.network import World
from vpcctl.resources.kinds import Item, from_json, to_json
from vpcctl.values import dataclass

FORMAT = 2
STATE_FILE, LOCK_FILE = "state.json", "lock"
# Where the next version is written.  There is one writer, so one name will do, and a crash leaves one file at most.
TEMPORARY = f".{STATE_FILE}"
COPIES = Path("/run/vpcctl")
REMEDY = "nothing was changed; `vpcctl repair --adopt` may help, see docs/operations.md, «A damaged state file»"
LOCK_PATIENCE = 30.0
LOCK_INTERVAL = 0.02

Record = dict[str, tuple[Item, ...]]


@dataclass(frozen=True, slots=True)
class State:
    """One version of the record.

    `record` holds by scope (a VPC's name, or "" for the host) every kernel object that may exist because of us.
    `pending` is the world that is still to be made, None when all is: another one than `world` where a command is
    unfinished, the same where something of it could not be repaired.  `host` and `pending_host` are what the host adds
    to `world` and to `pending`.  `serial` grows by one with each write.
    """

    state_id: str
    boot_id: str = ""
    serial: int = 0
    world: World = dataclasses.field(default_factory=World)
    record: Record = dataclasses.field(default_factory=dict)
    pending: World | None = None
    host: HostPart = NO_PART
    pending_host: HostPart = NO_PART

    @property
    def unfinished(self) -> bool:
        """Was a command interrupted before it was done?"""
        return self.pending is not None and (self.pending, self.pending_host) != (self.world, self.host)

    @property
    def settled(self) -> State:
        """The same with nothing pending."""
        return dataclasses.replace(self, pending=None, pending_host=NO_PART)

    def changes(self, vpc: str) -> bool:
        """Was a command interrupted that was changing the VPC `vpc`?"""
        if self.pending is None:
            return False
        before, after = ([one for one in world.vpcs if one.name == vpc] for world in (self.world, self.pending))
        return before != after

    @property
    def items(self) -> list[Item]:
        """All recorded items."""
        return [item for items in self.record.values() for item in items]


class Store:
    """A state directory; it is made, private to its owner, by the first writer.

    Each write leaves a copy in `copies`, a directory of a file system that lives as long as the kernel's objects do
    (COPIES); None leaves none.  Where the file is lost or damaged while the objects are there, `adopt` takes the copy
    back.
    """

    def __init__(self, directory: Path, copies: Path | None = None):
        self.directory = directory
        self.copies = copies
        # What was read last: who looks before taking the lock finds the same there as a rule.
        self._last: tuple[bytes, State] | None = None
        self._new: State | None = None

    @property
    def _copy(self) -> Path:
        """The copy's place: the directory's own name, hashed, so that two state directories never share one."""
        return (self.copies or self.directory) / f"{sha256(os.fsencode(self.directory.absolute())).hex()[:16]}.json"

    # -- reading -------------------------------------------------------------------------------------------------

    def load(self) -> State:
        """The present state; a fresh one if the file does not exist.  StateError for a damaged or newer file."""
        try:
            directory = self._open_directory()
        except FileNotFoundError:
            return self._fresh()
        try:
            return self._read(directory)
        finally:
            os.close(directory)

    def load_whole(self) -> State:
        """Likewise, with a look at every part of every document: StateError where one is damaged."""
        return _decoded(self.load())

    def _read(self, directory: int) -> State:
        found = self._read_file(directory)
        return self._fresh() if found is None else found

    def _read_file(self, directory: int) -> State | None:
        """The state in the file, None if it does not exist."""
        place = self.directory / STATE_FILE
        try:
            # Whoever owns the directory, whose members nobody else may add to.
            owners = {os.geteuid(), os.fstat(directory).st_uid}
            with _told(f"cannot read {place}"):
                most = files.LARGEST_STATE
                content = files.read(STATE_FILE, most, directory=directory, follow=False, owners=owners)
        except FileNotFoundError:
            return None
        return self._understood(content, place)

    def _fresh(self) -> State:
        """The state of a machine without a file: empty, unless a copy says that there was a file a while ago."""
        if self.has_copy():
            raise StateError(
                f"{self.directory / STATE_FILE} is missing, but what it described is still there;"
                " `vpcctl repair --adopt` takes it back"
            )
        # The same one each time, so that what was made of it before the lock still stands.
        self._new = self._new or State(os.urandom(4).hex())
        return self._new

    def has_copy(self) -> bool:
        """Is there a copy that describes anything?  A copy that is not ours to read is as good as none."""
        try:
            return bool(self._copied().items)
        except (FileNotFoundError, StateError):
            return False

    def _copied(self) -> State:
        """The state in the copy; FileNotFoundError if it does not exist, StateError if it is unusable."""
        place = self._copy
        with _told(f"cannot read {place}"):
            content = files.read(place, files.LARGEST_STATE, follow=False, owners={os.geteuid()})
        return self._understood(content, place)

    def _understood(self, content: bytes, place: Path) -> State:
        if self._last is not None and self._last[0] == content:
            return self._last[1]

        def damaged(words: object) -> StateError:
            return StateError(f"{place} is damaged ({words}); {REMEDY}")

        try:
            document = json.loads(content)
            found = document["format"]
            checksum = document.pop("checksum")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged("not a state document") from error
        # A boolean is a number to Python, and format 0 never was.
        if isinstance(found, bool) or (isinstance(found, int) and found < 1):
            raise damaged(f"{json.dumps(found)} is not a format")
        if not isinstance(found, int) or found > FORMAT:
            raise _NewerError(
                f"{place} has format {found}, and this vpcctl knows formats up to {FORMAT};"
                " use the vpcctl that wrote it, or a newer one"
            )
        try:
            if checksum != _checksum(document):
                raise damaged("its checksum does not match")
            self._last = content, _from_json(migrations.newest(document), damaged)
            return self._last[1]
        except StateError:
            raise
        except (*DAMAGE, RecursionError) as error:
            raise damaged(error) from error

    # -- writing -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, patience: float = LOCK_PATIENCE) -> Iterator[Writer]:
        """Be the only writer; StateError names the holder when the lock is not free within `patience` seconds."""
        directory = self._make_directory()
        try:
            lock = self._take_lock(directory, patience)
            try:
                with contextlib.suppress(FileNotFoundError), _told(f"cannot write in {self.directory}"):
                    os.unlink(TEMPORARY, dir_fd=directory)
                yield Writer(self, directory)
            finally:
                # Whoever takes the lock without saying so is not to be mistaken for us.
                with contextlib.suppress(OSError):
                    os.ftruncate(lock, 0)
                os.close(lock)
        finally:
            os.close(directory)

    def _take_lock(self, directory: int, patience: float) -> int:
        deadline = time.monotonic() + patience
        lock = self._open_lock(directory, deadline)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(LOCK_INTERVAL)
                    continue
                holder = os.pread(lock, 512, 0).decode(errors="replace").strip() or "another process"
                os.close(lock)
                raise StateError(
                    f"{self.directory} is still locked by {holder} after {patience:g} s; wait, or stop that process"
                ) from None
            except OSError as error:
                os.close(lock)
                raise StateError(
                    f"cannot lock {self.directory / LOCK_FILE}: {os.strerror(error.errno or 0)}"
                ) from error
        # Only for those who wait: a disk that has no room for these words may have room for what matters.
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} ({' '.join(sys.argv[:2])})\n".encode()[:512], 0)
        return lock

    def _open_lock(self, directory: int, deadline: float) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            lock = _opened(LOCK_FILE, flags, directory, deadline)
            try:
                files.check_own(lock)
            except OSError:
                os.close(lock)
                raise
        except OSError as error:
            raise StateError(f"cannot open {self.directory / LOCK_FILE}: {error.strerror}") from error
        return lock

    # -- the directory -------------------------------------------------------------------------------------------

    def _open_directory(self) -> int:
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise StateError(
                f"{self.directory} may be read by its owner alone; use sudo, or name another directory with --state-dir"
            ) from error
        except OSError as error:
            raise StateError(
                f"{self.directory} is not a directory of ours ({os.strerror(error.errno or 0)});"
                " name another with --state-dir"
            ) from error
        return descriptor

    def _make_directory(self) -> int:
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.directory, 0o700)
        except OSError as error:
            raise StateError(f"cannot make {self.directory}: {os.strerror(error.errno or 0)}") from error
        descriptor = self._open_directory()
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid():
                raise StateError(
                    f"{self.directory} belongs to user {status.st_uid}, not to you; name another with --state-dir"
                )
            if stat.S_IMODE(status.st_mode) & 0o077:
                with _told(f"cannot make {self.directory} private"):
                    os.fchmod(descriptor, 0o700)
        except StateError:
            os.close(descriptor)
            raise
        return descriptor


class _NewerError(StateError):
    """The file is sound, and of a format that a later version of this program brought."""


class Writer:
    """The right to write, for as long as the lock is held."""

    def __init__(self, store: Store, directory: int):
        self._store, self._directory = store, directory

    def load(self) -> State:
        """The present state."""
        return self._store._read(self._directory)

    def adopt(self) -> State:
        """Take the copy back as the file, a damaged file kept beside it; StateError if no copy exists.

        A file that can be read is the better one, and stays; one that a newer program wrote is not ours to replace.
        """
        try:
            found = self._store._read_file(self._directory)
            if found is not None:
                return _decoded(found)
        except _NewerError:
            raise
        except StateError:
            pass
        try:
            copied = _decoded(self._store._copied())
        except FileNotFoundError as error:
            raise StateError(
                f"no copy of {self._store.directory / STATE_FILE} to adopt: none was made since the last boot"
            ) from error
        with contextlib.suppress(FileNotFoundError), _told(f"cannot move {self._store.directory / STATE_FILE}"):
            os.rename(STATE_FILE, f"{STATE_FILE}.damaged", src_dir_fd=self._directory, dst_dir_fd=self._directory)
        return self.save(copied)

    def save(self, state: State) -> State:
        """Replace the file, durable when this returns; the state with its new serial.  StateError if it cannot be.

        After a StateError the file is the old one, or, where it was the directory that could not be synced, the new
        one.  A failed fsync is not tried again on the same descriptor: the kernel may have dropped the pages.
        """
        written = dataclasses.replace(state, serial=state.serial + 1)
        document = _to_json(written)
        document["checksum"] = _checksum(document)
        content = json.dumps(document, separators=(",", ":")).encode()
        if len(content) > files.LARGEST_STATE:
            raise StateError(
                f"cannot write {self._store.directory / STATE_FILE}: it would have {len(content)} bytes;"
                f" at most {files.LARGEST_STATE} are allowed; use smaller policies and sets"
            )
        try:
            _write(self._directory, TEMPORARY, content)
            os.rename(TEMPORARY, STATE_FILE, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(TEMPORARY, dir_fd=self._directory)
            raise StateError(
                f"cannot write {self._store.directory / STATE_FILE}: {os.strerror(error.errno or 0)}"
            ) from error
        self._keep_copy(content)
        return written

    def _keep_copy(self, content: bytes) -> None:
        """Write the copy; it is a second chance, so what prevents it prevents nothing else."""
        if self._store.copies is None:
            return
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._store.copies, 0o700)
            directory = os.open(self._store.copies, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                name = self._store._copy.name
                _write(directory, f".{name}", content)
                os.rename(f".{name}", name, src_dir_fd=directory, dst_dir_fd=directory)
            finally:
                os.close(directory)


def _decoded(state: State) -> State:
    """`state`, with every part of its documents looked at; StateError where one is damaged."""
    for world in (state.world, state.pending):
        if world is not None:
            decode(world)
    return state


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Raise an OSError as a StateError; that something is absent is left for the caller to judge."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateError(f"{what}: {error.strerror}") from error


def _opened(name: str, flags: int, directory: int, deadline: float) -> int:
    """Open a file without being held up by what it is; one on which somebody has a lease (fcntl(2)) is tried again."""
    while True:
        try:
            return os.open(name, flags, 0o600, dir_fd=directory)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOCK_INTERVAL)


def _write(directory: int, name: str, content: bytes) -> None:
    """A new file in `directory` with `content`, on disk when this returns."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return f"sha256:{sha256(canonical).hex()}"


def _to_json(state: State) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "serial": state.serial,
        "state_id": state.state_id,
        "boot_id": state.boot_id,
        "desired": world_to_json(state.world),
        "host": host_to_json(state.host),
        "record": {scope: [to_json(item) for item in items] for scope, items in state.record.items()},
        "pending": None
        if state.pending is None
        else {"desired": world_to_json(state.pending), "host": host_to_json(state.pending_host)},
    }


def _from_json(document: dict[str, Any], damaged: Callable[[object], StateError]) -> State:
    names = [document["state_id"], document["boot_id"]]
    serial, pending = document["serial"], document["pending"]
    if not all(isinstance(name, str) for name in names) or type(serial) is not int:
        raise TypeError("state_id, boot_id or serial is of another type")
    return State(
        names[0],
        names[1],
        serial,
        world_from_json(document["desired"], damaged),
        {scope: tuple(map(from_json, items)) for scope, items in document["record"].items()},
        None if pending is None else world_from_json(pending["desired"], damaged),
        host_from_json(document["host"]),
        NO_PART if pending is None else host_from_json(pending["host"]),
    )
