"""The parts of the record: files that never change, each named by the hash of what is in it.

The state file names the parts that it needs.  A part has the rest of one VPC (its subnets and sets) and the objects
that were made for it, or one long list of rules or prefixes.  So a change writes only the state file and the parts that
it changes, and a command reads only the parts whose content it uses.  The name is the checksum: a torn, damaged or
exchanged part is noticed when it is read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpcctl.digest import sha256
from vpcctl.documents import files
from vpcctl.documents.codec import KeptRest, Shelf, own_to_json, rest_to_json, world_from_json, world_to_json
from vpcctl.documents.lazy_lists import Kept
from vpcctl.errors import StateError
from vpcctl.model.network import Vpc, World
from vpcctl.resources.kinds import Item, from_json, to_json

FOLDER = "parts"
# Where the next part is written; a crash leaves at most one.
TEMPORARY = ".part"
MARK = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(rf"{MARK.pattern}\.json")
# A list that takes more bytes is a part of its own: it is neither read nor written with the VPC that uses it.
LONG = 4096
# A part that is no longer needed stays for so many seconds: a reader may still use the previous state file.
GRACE = 30.0
REMEDY = "nothing was changed; `vpcctl repair --adopt` may help, see docs/operations.md, «A damaged state file»"

Record = Mapping[str, Sequence[Item]]
# Returns the content of a part.
Content = Callable[[], bytes]


def text(document: Any) -> bytes:
    """A document as the record writes it."""
    return json.dumps(document, separators=(",", ":")).encode()


def mark_of(content: bytes) -> str:
    """What the state file calls a part with this content."""
    return sha256(content).hex()


def file_name(mark: str) -> str:
    """The name of the file of a part."""
    return f"{mark}.json"


def opened(name: str, directory: int) -> int:
    """A descriptor of a directory of parts."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def read_inside(
    open_directory: Callable[[], int], owners: Callable[[int], Collection[int]], folder: str, name: str
) -> bytes:
    """A file of a directory that is in the state directory; `owners` are who may own it, by the state directory."""
    directory = open_directory()
    try:
        known, inner = owners(directory), opened(folder, directory)
    finally:
        os.close(directory)
    try:
        return files.read(name, files.LARGEST_STATE, directory=inner, follow=False, owners=known)
    finally:
        os.close(inner)


# --- Reading ----------------------------------------------------------------------------------------------------------


class File:
    """One part: read and checked when it is asked for.  `vpc` is whose it is."""

    __slots__ = ("_document", "_parts", "mark", "vpc")

    def __init__(self, mark: str, vpc: str, parts: Parts):
        self.mark, self.vpc, self._parts = mark, vpc, parts
        self._document: Any = None

    def content(self) -> bytes:
        """What is in the file; StateError if it is lost or damaged."""
        return self._parts.read(self.mark, self.vpc)

    def damaged(self, words: object) -> StateError:
        """The error that this part is damaged."""
        return self._parts.damaged(self.mark, self.vpc, words)

    def document(self) -> Any:
        """The same, parsed once."""
        if self._document is None:
            try:
                self._document = json.loads(self.content())
            except (ValueError, RecursionError) as error:
                raise self.damaged("not a part of the record") from error
        return self._document


class VpcFile(File):
    """The part of a VPC: the rest of what is desired, and the objects on record."""

    __slots__ = ()

    def rest(self) -> dict[str, Any]:
        found: dict[str, Any] = self._field("desired", dict)
        return found

    def objects(self) -> list[Any]:
        found: list[Any] = self._field("record", list)
        return found

    def others(self, marks: Iterable[str]) -> Iterator[tuple[str, Content]]:
        """Other parts of the same record by their marks."""
        return ((mark, functools.partial(self._parts.read, mark, self.vpc)) for mark in marks)

    def _field(self, name: str, kind: type) -> Any:
        document = self.document()
        found = document.get(name) if isinstance(document, dict) else None
        if not isinstance(found, kind):
            raise self.damaged(f"it has no {name}")
        return found


class Objects:
    """The objects on record of a VPC, as a list that is apart."""

    __slots__ = ("part",)
    length = None

    def __init__(self, part: VpcFile):
        self.part = part

    @property
    def mark(self) -> str:
        return self.part.mark

    def read(self) -> list[Any]:
        return self.part.objects()

    def damaged(self, words: object) -> StateError:
        return self.part.damaged(words)


class ListFile(File):
    """A long list of rules or prefixes."""

    __slots__ = ("length",)

    def __init__(self, mark: str, vpc: str, parts: Parts, length: int):
        super().__init__(mark, vpc, parts)
        self.length = length

    def read(self) -> list[Any]:
        found = self.document()
        if not isinstance(found, list) or len(found) != self.length:
            raise self.damaged(f"it is no list of {self.length}")
        return found


class Parts:
    """The parts that one state file names, in the directory `folder` beside it.

    `open_directory` opens the directory of the state file.  `needed` says whether the file names a part at present.
    """

    def __init__(
        self,
        directory: Path,
        folder: str,
        open_directory: Callable[[], int],
        owners: Callable[[int], Collection[int]],
        needed: Callable[[str], bool],
    ):
        self._place, self._folder = directory / folder, folder
        self._open_directory, self._owners, self._needed = open_directory, owners, needed
        self._files: dict[str, VpcFile] = {}

    def shelf(self, damaged: Callable[[object], StateError]) -> Shelf:
        """What reads a world; `damaged` is the error for the state file itself."""
        return Shelf(damaged, self.part, self._list)

    def part(self, vpc: str, reference: Any) -> VpcFile:
        """The part of a VPC, by what the state file has in its place; TypeError if that is no mark."""
        mark = _checked(reference)
        # The desired state and the objects are usually in one file, which is read once.
        found = self._files.get(mark)
        if found is None:
            found = self._files[mark] = VpcFile(mark, vpc, self)
        return found

    def _list(self, vpc: str, reference: Any) -> ListFile:
        length = reference["length"]
        if type(length) is not int:
            raise TypeError("the length of a list is expected")
        return ListFile(_checked(reference["part"]), vpc, self, length)

    def damaged(self, mark: str, vpc: str, words: object) -> StateError:
        """The error that a part is damaged."""
        return StateError(f"VPC {vpc}: {self._place / file_name(mark)} is damaged ({words}); {REMEDY}")

    def read(self, mark: str, vpc: str) -> bytes:
        """The content of a part, checked; StateError if it is lost or damaged."""
        place = self._place / file_name(mark)
        try:
            content = self._read(file_name(mark))
        except FileNotFoundError as error:
            if not self._needed(mark):
                raise StateError(
                    f"another command changed VPC {vpc} while its record was read; run the command again"
                ) from error
            raise StateError(f"VPC {vpc}: {place} is missing; {REMEDY}") from error
        except OSError as error:
            raise StateError(f"VPC {vpc}: cannot read {place}: {error.strerror}") from error
        if mark_of(content) != mark:
            raise self.damaged(mark, vpc, "its checksum does not match")
        return content

    def _read(self, name: str) -> bytes:
        return read_inside(self._open_directory, self._owners, self._folder, name)

    def record(self, document: Mapping[str, Any]) -> dict[str, Sequence[Item]]:
        """The objects on record by VPC; those of a VPC are read when they are asked for."""
        return {scope: self._objects(scope, found) for scope, found in document.items()}

    def _objects(self, scope: str, found: Any) -> Sequence[Item]:
        if isinstance(found, list):
            return _items(found)
        part = self.part(scope, found)
        return Kept(Objects(part), part.damaged, _items)

    def world(self, document: dict[str, Any], damaged: Callable[[object], StateError]) -> World:
        """The world; the rest of a VPC is read when it is asked for."""
        return world_from_json(document, self.shelf(damaged))


def _checked(mark: Any) -> str:
    if not isinstance(mark, str) or not MARK.fullmatch(mark):
        raise TypeError("the name of a part is expected")
    return mark


def _items(documents: list[Any]) -> tuple[Item, ...]:
    return tuple(map(from_json, documents))


def marks(document: Mapping[str, Any]) -> dict[str, str]:
    """The parts that a state document of the newest format names, each with the VPC that needs it."""
    worlds = [document["desired"]]
    if document["pending"] is not None:
        worlds.append(document["pending"]["desired"])
    if document.get("unconfirmed") is not None:
        worlds.append(document["unconfirmed"]["desired"])
    needed = {part: scope for scope, part in document["record"].items() if isinstance(part, str)}
    for world in worlds:
        for vpc in world["vpcs"]:
            if isinstance(vpc["part"], str):
                needed |= dict.fromkeys((vpc["part"], *vpc["lists"]), vpc["name"])
    return {_checked(mark): vpc for mark, vpc in needed.items()}


# --- Writing ----------------------------------------------------------------------------------------------------------


class Outline:
    """What the state file has of worlds and objects, and the `parts` that it names.

    A part that is on record already is named again, and neither read nor written.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Content] = {}
        self._made: dict[int, dict[str, Any]] = {}

    def record(self, record: Record, host: str, vpcs: Mapping[str, Vpc]) -> dict[str, Any]:
        """The objects by VPC, those of `host` inside; `vpcs` are those whose rest is written in the same part."""
        return {
            scope: list(map(to_json, items)) if scope == host else self._objects(scope, items, vpcs.get(scope))
            for scope, items in record.items()
        }

    def world(self, world: World) -> dict[str, Any]:
        """The world, with the rest of each VPC in a part."""
        return world_to_json(world, self._entry)

    def _objects(self, scope: str, items: Sequence[Item], vpc: Vpc | None) -> str:
        apart = items.apart if isinstance(items, Kept) else None
        if isinstance(apart, Objects):
            self.parts[apart.mark] = apart.part.content
            return apart.mark
        return self._put(scope, None if vpc is None or isinstance(vpc.rest, KeptRest) else vpc, items)

    def _entry(self, vpc: Vpc) -> dict[str, Any]:
        rest = vpc.rest
        if isinstance(rest, KeptRest) and isinstance(rest.part, VpcFile):
            self.parts[rest.mark] = rest.part.content
            self.parts.update(rest.part.others(rest.entry["lists"]))
            return rest.entry
        if id(vpc) not in self._made:
            self._put(vpc.name, vpc, None)
        return own_to_json(vpc) | self._made[id(vpc)]

    def _put(self, scope: str, vpc: Vpc | None, items: Sequence[Item] | None) -> str:
        """Make the part of a VPC, and return its mark; what is in another part is null."""
        lists: set[str] = set()
        document = {
            "vpc": scope,
            "desired": None if vpc is None else rest_to_json(vpc, functools.partial(self._list, lists)),
            "record": None if items is None else list(map(to_json, items)),
        }
        mark = self._new(text(document))
        if vpc is not None:
            self._made[id(vpc)] = {"part": mark, "lists": sorted(lists)}
        return mark

    def _list(self, lists: set[str], values: Sequence[Any], written: list[Any] | None) -> Any:
        """What stands for a list of rules or prefixes: the list, or the mark of its part, which `lists` gets."""
        apart = values.apart if isinstance(values, Kept) else None
        if isinstance(apart, ListFile):
            mark = apart.mark
            self.parts[mark] = apart.content
        else:
            found = values.kept if isinstance(values, Kept) else written
            content = text(found)
            if len(content) <= LONG:
                return found
            mark = self._new(content)
        lists.add(mark)
        return {"part": mark, "length": len(values)}

    def _new(self, content: bytes) -> str:
        mark = mark_of(content)
        self.parts[mark] = lambda: content
        return mark


# Modes of directories and files: for their owner alone, and for a group that may read them (see `readers`).
PRIVATE, PRIVATE_FILE = 0o700, 0o600
SHARED, READABLE = 0o2750, 0o640


def is_shared(status: os.stat_result) -> bool:
    """May a group read this directory, and nobody else?  The set-group-ID bit says that it is meant so."""
    return stat.S_IMODE(status.st_mode) == SHARED


def write(directory: int, name: str, content: bytes, lasting: bool = True) -> None:
    """Write a new file with `content` to `directory`; with `lasting` it is on disk when this returns."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if is_shared(os.fstat(directory)):
            os.fchmod(descriptor, READABLE)
        if lasting:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place(folder: int, mark: str, content: bytes, lasting: bool = True) -> None:
    """Move a part to its final name.  A file of that name that no state file needs may be torn, so it is replaced."""
    try:
        write(folder, TEMPORARY, content, lasting)
        os.rename(TEMPORARY, file_name(mark), src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(TEMPORARY, dir_fd=folder)
        raise


def forget(folder: int, unwanted: Iterable[str]) -> None:
    """Remove parts; what cannot be removed now is removed by `sweep`."""
    for mark in unwanted:
        with contextlib.suppress(OSError):
            os.unlink(file_name(mark), dir_fd=folder)


def sweep(folder: int, needed: Collection[str], former: Collection[str]) -> None:
    """Remove the parts that are not `needed`, after their time of grace.

    For the `former`, which a state file needed until now, the time of grace begins.
    """
    with contextlib.suppress(OSError):
        now = time.time()
        for name in os.listdir(folder):
            mark = name.removesuffix(".json")
            if mark in needed or not NAME.fullmatch(name):
                continue
            with contextlib.suppress(OSError):
                if mark in former:
                    os.utime(name, dir_fd=folder, follow_symlinks=False)
                elif now - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime > GRACE:
                    os.unlink(name, dir_fd=folder)
    with contextlib.suppress(OSError):
        os.unlink(TEMPORARY, dir_fd=folder)
