"""The record on disk: what is desired, what we made, and what was being changed when a crash came.

``state.json`` names the parts of the record (see `parts`), which never change.  A change writes new parts, syncs them,
and then replaces ``state.json``: written beside its place, synced, renamed over it, and its directory synced (fsync(2),
rename(2)).  Writers hold a lock on a separate file that is never renamed; readers need none, because they see the old
file or the new one, and the parts of the old one stay for a while.  Everything is reached through a descriptor of the
directory, links are not followed.  docs/state.md describes the format and the protocol, system call by system call.
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
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from vpcctl.digest import sha256
from vpcctl.documents import files
from vpcctl.documents.codec import Shelf, decode, host_from_json, host_to_json
from vpcctl.documents.lazy_lists import DAMAGE
from vpcctl.engine import parts
from vpcctl.engine.parts import REMEDY, Outline, Parts
from vpcctl.errors import PrivilegeError, StateError
from vpcctl.model.host import NO_PART, HostPart
from vpcctl.model.network import World
from vpcctl.resources.kinds import Item
from vpcctl.values import dataclass

FORMAT = 3
STATE_FILE, LOCK_FILE, HISTORY = "state.json", "lock", "history"
# Where the next version is written.  There is one writer, so one name will do, and a crash leaves one file at most.
TEMPORARY = f".{STATE_FILE}"
COPIES = Path("/run/vpcctl")
LOCK_PATIENCE = 30.0
LOCK_INTERVAL = 0.02
# The scope of the objects that belong to no VPC; they are few, and in the state file itself.
HOST = ""

Record = parts.Record


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of the history: the number of its first change, and how many of its bytes count."""

    first: int
    size: int


@dataclass(frozen=True, slots=True)
class Annals:
    """How far the history goes (see `history`): the number of the last change, and the files that have the changes."""

    number: int = 0
    segments: tuple[Segment, ...] = ()


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a change is taken back unless it is confirmed: `at` seconds of CLOCK_BOOTTIME, in the boot `boot_id`.

    No clock that somebody sets matters: `until` is the same for people (RFC 3339).  After a reboot the time is over.
    `token` tells one change from another.
    """

    token: str
    seconds: int
    boot_id: str
    at: float
    until: str


@dataclass(frozen=True, slots=True)
class Authorship:
    """When a change began (RFC 3339), who made it, as which user if that is another one, and by which command.

    `reason` is why it was made, if nobody asked for it.
    """

    time: str
    user: str
    acting_as: str
    command: tuple[str, ...]
    deadline: Deadline | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A change that is in force and is not confirmed: its number, and the world to which it is taken back."""

    number: int
    authorship: Authorship
    deadline: Deadline
    before: World

    @property
    def words(self) -> str:
        """The change, in words."""
        by = f" of {self.authorship.user}" if self.authorship.user else ""
        command = " ".join(self.authorship.command)
        return f"change {self.number}{by}" + (f" (`vpcctl {command}`)" if command else "")


@dataclass(frozen=True, slots=True)
class State:
    """One version of the record.

    `record` holds by scope (a VPC's name, or "" for the host) every kernel object that may exist because of us.
    `pending` is the world that is still to be made, None when all is: another one than `world` where a command is
    unfinished, the same where something of it could not be repaired.  `host` and `pending_host` are what the host adds
    to `world` and to `pending`.  `serial` grows by one with each write.

    `annals` are how far the history goes, `authorship` is whose change `pending` is, `unconfirmed` the change that is
    in force until its deadline.
    """

    state_id: str
    boot_id: str = ""
    serial: int = 0
    world: World = dataclasses.field(default_factory=World)
    record: Record = dataclasses.field(default_factory=dict)
    pending: World | None = None
    host: HostPart = NO_PART
    pending_host: HostPart = NO_PART
    annals: Annals = dataclasses.field(default_factory=Annals)
    authorship: Authorship | None = None
    unconfirmed: Unconfirmed | None = None

    @property
    def unfinished(self) -> bool:
        """Was a command interrupted before it was done?"""
        return self.pending is not None and (self.pending, self.pending_host) != (self.world, self.host)

    @property
    def settled(self) -> State:
        """The same with nothing pending."""
        return dataclasses.replace(self, pending=None, pending_host=NO_PART, authorship=None)

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

    @property
    def has_items(self) -> bool:
        """Is any item on record?  No part is read for this."""
        return any(scope != HOST for scope in self.record) or bool(self.record.get(HOST))


class Store:
    """A state directory; it is made, private to its owner, by the first writer.  `readers` can let a group read it.

    Each write leaves a copy in `copies`, a directory of a file system that lives as long as the kernel's objects do
    (COPIES); None leaves none.  Where the file is lost or damaged while the objects are there, `adopt` takes the copy
    back.
    """

    def __init__(self, directory: Path, copies: Path | None = None):
        self.directory = directory
        self.copies = copies
        # What was read last: who looks before taking the lock finds the same there as a rule.
        self._last: tuple[bytes, State, dict[str, str]] | None = None
        # The parts that the state file needs, as it was read last, each with the VPC that it is of.
        self.needed: dict[str, str] = {}
        self._new: State | None = None

    @property
    def _copy(self) -> Path:
        """The copy's place: the directory's own name, hashed, so that two state directories never share one.

        Its parts are beside it (`_copy_folder`).
        """
        return (self.copies or self.directory) / f"{sha256(os.fsencode(self.directory.absolute())).hex()[:16]}.json"

    @property
    def _copy_folder(self) -> str:
        return f"{self._copy.stem}.{parts.FOLDER}"

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
        self.needed = {}
        try:
            content = self._content(directory)
        except FileNotFoundError:
            return None
        found, self.needed = self._understood(content, self.directory / STATE_FILE, self._parts())
        return found

    def _parts(self) -> Parts:
        return Parts(self.directory, parts.FOLDER, self._open_directory, _owners, self._needs)

    def _content(self, directory: int) -> bytes:
        with _told(f"cannot read {self.directory / STATE_FILE}"):
            most, owners = files.LARGEST_STATE, _owners(directory)
            try:
                return files.read(STATE_FILE, most, directory=directory, follow=False, owners=owners)
            except PermissionError as error:
                raise self._unreadable() from error

    def shelf(self) -> Shelf:
        """Where what the state file names is read."""
        return self._parts().shelf(lambda words: StateError(f"{self.directory / STATE_FILE} is damaged ({words})"))

    def history(self, name: str) -> bytes:
        """What is in a file of the history; nothing if it is lost, or was removed since the state was read."""
        try:
            return parts.read_inside(self._open_directory, _owners, HISTORY, name)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StateError(f"cannot read {self.directory / HISTORY / name}: {error.strerror}") from error

    def _needs(self, mark: str) -> bool:
        """Does the state file name this part at present?  True if it cannot be read: the part counts as missing."""
        try:
            directory = self._open_directory()
            try:
                return mark.encode() in self._content(directory)
            finally:
                os.close(directory)
        except (OSError, StateError, PrivilegeError):
            return True

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
            return self._copied().has_items
        except (FileNotFoundError, StateError):
            return False

    def _copied(self) -> State:
        """The state in the copy; FileNotFoundError if it does not exist, StateError if it is unusable."""
        place = self._copy
        with _told(f"cannot read {place}"):
            content = files.read(place, files.LARGEST_STATE, follow=False, owners={os.geteuid()})
        return self._understood(content, place, self.copied_parts())[0]

    def copied_parts(self) -> Parts:
        """The parts of the copy."""

        def directory() -> int:
            return os.open(self._copy.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

        return Parts(self._copy.parent, self._copy_folder, directory, lambda _: {os.geteuid()}, lambda _: True)

    def _understood(self, content: bytes, place: Path, found_parts: Parts) -> tuple[State, dict[str, str]]:
        """What a state file says, and the parts that it needs; StateError if it is unusable."""
        if self._last is not None and self._last[0] == content and place.parent == self.directory:
            return self._last[1:]

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
            if not _is_sealed(content, checksum) and checksum != _checksum(document):
                raise damaged("its checksum does not match")
            newest = _newest(document)
            found = _from_json(newest, found_parts, damaged), parts.marks(newest)
            if place.parent == self.directory:
                self._last = (content, *found)
            return found
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
                raise LockedError(
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

    def open_lock(self, name: str) -> int:
        """A descriptor of another file of the directory that is locked (flock(2)); both are made if absent."""
        directory = self._make_directory()
        try:
            return self._open_lock(directory, time.monotonic(), name)
        finally:
            os.close(directory)

    def _open_lock(self, directory: int, deadline: float, name: str = LOCK_FILE) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            lock = _opened(name, flags, directory, deadline)
            try:
                files.check_own(lock)
            except OSError:
                os.close(lock)
                raise
        except OSError as error:
            raise StateError(f"cannot open {self.directory / name}: {error.strerror}") from error
        return lock

    # -- the directory -------------------------------------------------------------------------------------------

    def _open_directory(self) -> int:
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise self._unreadable() from error
        except OSError as error:
            raise StateError(
                f"{self.directory} is not a directory of ours ({os.strerror(error.errno or 0)});"
                " name another with --state-dir"
            ) from error
        return descriptor

    def _unreadable(self) -> PrivilegeError:
        return PrivilegeError(
            f"you may not read {self.directory}; use sudo, or name another directory with --state-dir"
            " (`vpcctl grant-read --group NAME` lets a group read it)"
        )

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
            if stat.S_IMODE(status.st_mode) & 0o077 and not parts.is_shared(status):
                with _told(f"cannot make {self.directory} private"):
                    os.fchmod(descriptor, 0o700)
        except StateError:
            os.close(descriptor)
            raise
        return descriptor


class LockedError(StateError):
    """Another process writes, and did not end in time."""


class _NewerError(StateError):
    """The file is sound, and of a format that a later version of this program brought."""


class Writer:
    """The right to write, for as long as the lock is held."""

    def __init__(self, store: Store, directory: int):
        self._store, self._directory = store, directory
        # The parts that are certainly on disk: the state file that was read or written under this lock needs them.
        self._lasting: set[str] = set()
        self._looked = False
        # What went wrong beside the change itself.
        self.remarks: list[str] = []

    def load(self) -> State:
        """The present state."""
        self._looked = True
        found = self._store._read(self._directory)
        self._lasting |= self._store.needed.keys()
        return found

    def adopt(self) -> State:
        """Take the copy back as the file, a damaged file kept beside it; StateError if no copy exists.

        A file that can be read stays; only its lost or damaged parts are taken from the copy.  A file that a newer
        version wrote is not replaced.
        """
        self._looked = True
        try:
            found = self._store._read_file(self._directory)
            if found is not None:
                self._recover_parts()
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

    def _recover_parts(self) -> None:
        """Take the lost or damaged parts from the copy, if their content matches the mark."""
        present, copied, found = self._store._parts(), self._store.copied_parts(), {}
        for mark, vpc in self._store.needed.items():
            try:
                present.read(mark, vpc)
            except StateError:
                content = copied.read(mark, vpc)
                found[mark] = content
        with _told(f"cannot write in {self._store.directory / parts.FOLDER}"):
            self._place(found)

    def save(self, state: State) -> State:
        """Replace the file, durable when this returns; the state with its new serial.  StateError if it cannot be.

        After a StateError the file is the old one, or, where it was the directory that could not be synced, the new
        one.  A failed fsync is not tried again on the same descriptor: the kernel may have dropped the pages.
        """
        if not self._looked:
            # The parts of the present file stay until it is replaced.
            self._looked = True
            with contextlib.suppress(StateError):
                self._store._read_file(self._directory)
        written, outline = dataclasses.replace(state, serial=state.serial + 1), Outline()
        content = _sealed(_canonical(_to_json(written, outline)))
        new = {mark: get() for mark, get in outline.parts.items() if mark not in self._lasting}
        for largest in (content, *new.values()):
            if len(largest) > files.LARGEST_STATE:
                raise StateError(
                    f"cannot write {self._store.directory / STATE_FILE}: it would have {len(largest)} bytes;"
                    f" at most {files.LARGEST_STATE} are allowed; use smaller policies and sets"
                )
        self._replace(content, new)
        former = self._lasting - outline.parts.keys()
        self._lasting |= new.keys()
        if state.pending is None:
            self._sweep(outline.parts.keys(), former)
        self._keep_copy(content, outline)
        return written

    def _replace(self, content: bytes, new: dict[str, bytes]) -> None:
        """Write the parts that are `new`, and then the file that needs them."""
        replaced = False
        try:
            self._place(new)
            parts.write(self._directory, TEMPORARY, content)
            os.rename(TEMPORARY, STATE_FILE, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            replaced = True
            os.fsync(self._directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(TEMPORARY, dir_fd=self._directory)
            if not replaced:
                # On a full disk, remove the parts that are of no use now.
                with contextlib.suppress(OSError), self._folder() as folder:
                    parts.forget(folder, new.keys() - self._store.needed.keys() - self._lasting)
            raise StateError(
                f"cannot write {self._store.directory / STATE_FILE}: {os.strerror(error.errno or 0)}"
            ) from error

    def _place(self, new: dict[str, bytes]) -> None:
        """Write the parts and their names to disk, before a state file needs them."""
        if not new:
            return
        self._make_folder(parts.FOLDER)
        with self._folder() as folder:
            for mark, content in new.items():
                parts.place(folder, mark, content)
            os.fsync(folder)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[int]:
        folder = parts.opened(parts.FOLDER, self._directory)
        try:
            yield folder
        finally:
            os.close(folder)

    def _make_folder(self, name: str) -> None:
        """Make a directory of the record, if it does not exist; who may read the record may read it, too."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._directory)
            if parts.is_shared(os.fstat(self._directory)):
                os.chmod(name, parts.SHARED, dir_fd=self._directory)
            os.fsync(self._directory)

    def append(self, name: str, size: int, line: bytes) -> bool:
        """Write `line` behind the first `size` bytes of a file of the history, durable when this returns.

        False if the file has fewer bytes.  After an OSError nothing of the line is left.
        """
        self._make_folder(HISTORY)
        folder = parts.opened(HISTORY, self._directory)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
            try:
                files.check_own(descriptor)
                if os.fstat(descriptor).st_size < size:
                    return False
                if not size and parts.is_shared(os.fstat(folder)):
                    os.fchmod(descriptor, parts.READABLE)
                _write_at(descriptor, size, line)
            finally:
                os.close(descriptor)
            if not size:
                os.fsync(folder)
        finally:
            os.close(folder)
        return True

    def keep(self, names: Collection[str]) -> None:
        """Remove all other files of the history; they cost room alone, so what prevents it prevents nothing else."""
        with contextlib.suppress(OSError):
            folder = parts.opened(HISTORY, self._directory)
            try:
                for name in set(os.listdir(folder)) - set(names):
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=folder)
            finally:
                os.close(folder)

    def _sweep(self, needed: Collection[str], former: Collection[str]) -> None:
        """Remove the parts that no file needs.  They only take space, so a failure here is ignored."""
        with contextlib.suppress(OSError), self._folder() as folder:
            parts.sweep(folder, needed, former)

    def _keep_copy(self, content: bytes, outline: Outline) -> None:
        """Write the copy.  It is only a second chance, so a failure here is ignored.

        It is not synced, because it has no meaning after a boot.
        """
        if self._store.copies is None:
            return
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._store.copies, 0o700)
            directory = os.open(self._store.copies, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._store._copy_folder, 0o700, dir_fd=directory)
                folder = parts.opened(self._store._copy_folder, directory)
                try:
                    self._copy_parts(directory, folder, content, outline)
                finally:
                    os.close(folder)
            finally:
                os.close(directory)

    def _copy_parts(self, directory: int, folder: int, content: bytes, outline: Outline) -> None:
        """Complete the parts of the copy, replace its file, and remove what it no longer needs."""
        there = set(os.listdir(folder))
        for mark, get in outline.parts.items():
            if parts.file_name(mark) not in there:
                # A part that is damaged here is not copied: the copy may still have an intact one.
                with contextlib.suppress(StateError):
                    parts.place(folder, mark, get(), lasting=False)
        name = self._store._copy.name
        parts.write(directory, f".{name}", content, lasting=False)
        os.rename(f".{name}", name, src_dir_fd=directory, dst_dir_fd=directory)
        for unwanted in there - set(map(parts.file_name, outline.parts)):
            os.unlink(unwanted, dir_fd=folder)


def _owners(directory: int) -> set[int]:
    """Who may own a file of the record: whoever owns the directory, whose members nobody else may add to."""
    return {os.geteuid(), os.fstat(directory).st_uid}


def _decoded(state: State) -> State:
    """`state`, with every part of its documents looked at; StateError where one is damaged."""
    former = None if state.unconfirmed is None else state.unconfirmed.before
    for world in (state.world, state.pending, former):
        if world is not None:
            decode(world)
    _ = state.items
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


def _write_at(descriptor: int, size: int, line: bytes) -> None:
    """Have `line`, and nothing else, behind the first `size` bytes of a file, on disk."""
    os.ftruncate(descriptor, size)
    try:
        written = 0
        while written < len(line):
            written += os.pwrite(descriptor, line[written:], size + written)
        os.fsync(descriptor)
    except OSError:
        # A disk without room gets back what was taken in vain.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _digest(canonical: bytes) -> str:
    return f"sha256:{sha256(canonical).hex()}"


def _checksum(document: dict[str, Any]) -> str:
    return _digest(_canonical(document))


def _sealed(canonical: bytes) -> bytes:
    """A document in its canonical form, with its checksum as the last field."""
    return canonical[:-1] + _seal(_digest(canonical))


def _seal(checksum: object) -> bytes:
    return f',"checksum":{json.dumps(checksum)}}}'.encode()


def _is_sealed(content: bytes, checksum: object) -> bool:
    """Is this what `_sealed` wrote?  This spares the canonical form of a file that nobody wrote anew."""
    rest = content.removesuffix(_seal(checksum))
    return rest != content and _digest(rest + b"}") == checksum


def _newest(document: dict[str, Any]) -> dict[str, Any]:
    """`document`, of any known format, in the newest."""
    if document["format"] == FORMAT:
        return document
    from vpcctl.engine import migrations

    return migrations.newest(document)


def _to_json(state: State, outline: Outline) -> dict[str, Any]:
    worlds = [world for world in (state.world, state.pending) if world is not None]
    # The objects of a VPC are in one part with what it is to be, if both are new.
    vpcs = {vpc.name: vpc for world in worlds for vpc in world.vpcs}
    record = outline.record(state.record, HOST, vpcs)
    document: dict[str, Any] = {
        "format": FORMAT,
        "serial": state.serial,
        "state_id": state.state_id,
        "boot_id": state.boot_id,
        "desired": outline.world(state.world),
        "host": host_to_json(state.host),
        "record": record,
        "pending": None
        if state.pending is None
        else {"desired": outline.world(state.pending), "host": host_to_json(state.pending_host)},
    }
    # What only some have is written for those alone.
    if state.pending is not None and state.authorship is not None:
        document["pending"]["change"] = _authorship_to_json(state.authorship)
    if state.annals.number:
        segments = [[segment.first, segment.size] for segment in state.annals.segments]
        document["history"] = {"number": state.annals.number, "segments": segments}
    if state.unconfirmed is not None:
        document["unconfirmed"] = {
            "number": state.unconfirmed.number,
            "change": _authorship_to_json(state.unconfirmed.authorship),
            "deadline": _deadline_to_json(state.unconfirmed.deadline),
            "desired": outline.world(state.unconfirmed.before),
        }
    return document


def _authorship_to_json(authorship: Authorship) -> dict[str, Any]:
    deadline = authorship.deadline
    return {
        "time": authorship.time,
        "user": authorship.user,
        "as": authorship.acting_as,
        "command": list(authorship.command),
        "deadline": None if deadline is None else _deadline_to_json(deadline),
        "reason": authorship.reason,
    }


def _deadline_to_json(deadline: Deadline) -> dict[str, Any]:
    return {
        "token": deadline.token,
        "seconds": deadline.seconds,
        "boot_id": deadline.boot_id,
        "at": deadline.at,
        "until": deadline.until,
    }


def _authorship(document: dict[str, Any]) -> Authorship:
    time, user, acting_as, reason = words = [document[name] for name in ("time", "user", "as", "reason")]
    if not all(isinstance(word, str) for word in (*words, *document["command"])):
        raise TypeError("a change has words of another type")
    deadline = None if document["deadline"] is None else _deadline(document["deadline"])
    return Authorship(time, user, acting_as, tuple(document["command"]), deadline, reason)


def _deadline(document: dict[str, Any]) -> Deadline:
    words, times = [document["token"], document["boot_id"], document["until"]], [document["seconds"], document["at"]]
    if not all(isinstance(word, str) for word in words) or not all(type(time) in (int, float) for time in times):
        raise TypeError("a deadline is of another type")
    return Deadline(words[0], times[0], words[1], times[1], words[2])


def _annals(document: dict[str, Any] | None) -> Annals:
    if document is None:
        return Annals()
    numbers = [document["number"], *(number for segment in document["segments"] for number in segment)]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise TypeError("the history is of another type")
    return Annals(document["number"], tuple(Segment(first, size) for first, size in document["segments"]))


def _from_json(document: dict[str, Any], found: Parts, damaged: Callable[[object], StateError]) -> State:
    names = [document["state_id"], document["boot_id"]]
    serial, pending, unconfirmed = document["serial"], document["pending"], document.get("unconfirmed")
    if not all(isinstance(name, str) for name in names) or type(serial) is not int:
        raise TypeError("state_id, boot_id or serial is of another type")
    return State(
        names[0],
        names[1],
        serial,
        found.world(document["desired"], damaged),
        found.record(document["record"]),
        None if pending is None else found.world(pending["desired"], damaged),
        host_from_json(document["host"]),
        NO_PART if pending is None else host_from_json(pending["host"]),
        _annals(document.get("history")),
        _authorship(pending["change"]) if pending is not None and "change" in pending else None,
        None if unconfirmed is None else _unconfirmed(unconfirmed, found.world(unconfirmed["desired"], damaged)),
    )


def _unconfirmed(document: dict[str, Any], before: World) -> Unconfirmed:
    if type(document["number"]) is not int:
        raise TypeError("the number of a change is expected")
    return Unconfirmed(document["number"], _authorship(document["change"]), _deadline(document["deadline"]), before)
