"""The history: which changes were made, by whom, and what leads from the world after each one to the world before it.

One change is one commit of the record that has another world (ADR 32).  Its entry is a line of a file in ``history``,
written and synced before the commit.  The state file names the files of the history and how many of their bytes count,
so the rename that commits the change commits its entry, too: what a crash leaves behind the bytes that count is
nothing, and the next entry is written over it.

An entry holds the difference to the world before (see `documents.deltas`) and the long lists that went with the change,
compressed.  So the way back from the present world needs nothing but the entries, and an entry costs what the change
changed.  What prevents an entry prevents nothing else: the change has its number, and the history a gap.
"""

from __future__ import annotations

import binascii
import contextlib
import dataclasses
import datetime
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from vpcctl.documents import deltas
from vpcctl.documents.codec import KeptRest, vpc_to_json, world_to_json
from vpcctl.documents.diff import object_changes
from vpcctl.documents.lazy_lists import DAMAGE, Kept
from vpcctl.engine import parts
from vpcctl.engine.state import Annals, Authorship, Segment, State, Store, Unconfirmed, Writer
from vpcctl.errors import StateError, VpcctlError
from vpcctl.model.network import Vpc, World
from vpcctl.values import dataclass

# At least so many changes are kept, unless they take more bytes than MOST: then fewer.
KEPT, MOST = 100, 64 << 20
# A file takes so many changes, or bytes, before the next one begins.  The oldest goes when the others have KEPT.
SPAN, SPAN_BYTES = 50, 4 << 20
# A change that would take more is not kept.
LARGEST = 16 << 20
# What is kept of the words of a command, and of the summary: characters.
LONGEST = 300
# At most so many objects are named in a summary.
NAMED = 3


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A change as it was kept.

    `touched` are its VPCs, `after` the checksum of what is known of the world after it, `content` what leads back.
    """

    number: int
    authorship: Authorship
    summary: str
    touched: tuple[str, ...]
    after: str
    content: str


def unattributed() -> Authorship:
    """Whose a change is where nobody says so."""
    return Authorship(now(), "", "", ())


def now() -> str:
    """The present time (RFC 3339)."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# --- What an entry is about -------------------------------------------------------------------------------------------

Lists = dict[str, Callable[[], list[Any]]]


def _document(world: World, touched: Collection[str], lists: Lists) -> dict[str, Any]:
    """A world as JSON, of its VPCs those in `touched`; long lists are named by their marks, which `lists` gets."""

    def put(values: Sequence[Any], written: list[Any] | None) -> Any:
        apart = values.apart if isinstance(values, Kept) else None
        if isinstance(apart, parts.ListFile):
            mark, get = apart.mark, apart.read
        else:
            found: list[Any] = values.kept if isinstance(values, Kept) else written or []
            content = parts.text(found)
            if len(content) <= parts.LONG:
                return found
            mark, get = parts.mark_of(content), lambda: found
        lists[mark] = get
        return {"part": mark, "length": len(values)}

    rest = world_to_json(world, lambda vpc: {})
    return {
        **rest,
        "order": [vpc.name for vpc in world.vpcs],
        "vpcs": {vpc.name: vpc_to_json(vpc, put) for vpc in world.vpcs if vpc.name in touched},
    }


def _touched(before: World, after: World) -> list[str]:
    """The VPCs that are not the very same in two worlds, nor written equally in the record."""
    old, new = before.vpcs_by_name, after.vpcs_by_name
    return [name for name in {**old, **new} if not _same(old.get(name), new.get(name))]


def _same(one: Vpc | None, other: Vpc | None) -> bool:
    if one is None or other is None:
        return one is other
    entries = [vpc.rest.entry if isinstance(vpc.rest, KeptRest) else None for vpc in (one, other)]
    return one is other or (entries[0] is not None and entries[0] == entries[1])


def _mark(document: Any) -> str:
    return parts.mark_of(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())[:16]


# --- Writing ----------------------------------------------------------------------------------------------------------


def recorded(writer: Writer, before: State, after: State) -> State:
    """`after`, which is about to be written, with the change that leads to it from `before` in the history.

    `before` is the intent: it says whose the change is.
    """
    rest = dataclasses.replace(after, authorship=None)
    if before.world is after.world:
        return rest
    lists: Lists = {}
    gone: Lists = {}
    touched = _touched(before.world, after.world)
    try:
        new, old = _document(after.world, touched, lists), _document(before.world, touched, gone)
        change = deltas.delta(new, old)
    except VpcctlError as error:
        # A part of the VPC is damaged, and the change does not need it.
        return _numbered(writer, before, rest, Annals(before.annals.number + 1, before.annals.segments), str(error))
    if change is None:
        return rest
    authorship, number = before.authorship or unattributed(), before.annals.number + 1
    try:
        kept = {mark: get() for mark, get in gone.items() if mark not in lists}
        entry = HistoryEntry(
            number, authorship, _summary(before, after), tuple(touched), _mark(new), _packed(change, kept)
        )
        annals = _written(writer, before.annals, entry)
    except (OSError, VpcctlError) as error:
        words = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        return _numbered(writer, before, rest, Annals(number, before.annals.segments), words)
    return _numbered(writer, before, rest, annals)


def _numbered(writer: Writer, before: State, after: State, annals: Annals, trouble: str = "") -> State:
    if trouble:
        writer.remarks.append(f"change {annals.number} is not kept in the history, and cannot be undone: {trouble}")
    return dataclasses.replace(after, annals=annals, unconfirmed=_unconfirmed(before, annals.number))


def _unconfirmed(before: State, number: int) -> Unconfirmed | None:
    """What is unconfirmed after the change: this one, or nothing, as it takes back what was."""
    if before.authorship is None or before.authorship.deadline is None:
        return None
    from vpcctl.engine import confirmation

    return confirmation.begun(before, number)


def _summary(before: State, after: State) -> str:
    changes = object_changes(before.world, after.world)
    more = len(changes) - NAMED
    named = [_shortened(str(change)) for change in changes[:NAMED]]
    words = "; ".join(named + ([f"and {more} more"] if more > 0 else []))
    reason = before.authorship.reason if before.authorship is not None else ""
    return f"{reason}: {words}" if reason else words


def _shortened(words: str, longest: int = LONGEST // NAMED) -> str:
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


def _packed(change: deltas.Delta, lists: Mapping[str, list[Any]]) -> str:
    return binascii.b2a_base64(zlib.compress(parts.text([change, lists]), 1), newline=False).decode()


def _line(entry: HistoryEntry) -> bytes:
    by = entry.authorship
    content = parts.text(
        {
            "number": entry.number,
            "time": by.time,
            "user": by.user,
            "as": by.acting_as,
            "command": list(by.command),
            "summary": entry.summary,
            "touched": list(entry.touched),
            "after": entry.after,
            "content": entry.content,
        }
    )
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _written(writer: Writer, annals: Annals, entry: HistoryEntry) -> Annals:
    """Append an entry; OSError, with nothing of it left, if that cannot be."""
    line = _line(entry)
    if len(line) > LARGEST:
        raise StateError(f"it would take {len(line)} bytes, and at most {LARGEST} are kept of one change")
    segments = list(annals.segments)
    full = not segments or entry.number - segments[-1].first >= SPAN or segments[-1].size >= SPAN_BYTES
    # A file that lost some of its bytes is left as it is, and another one begins.
    if full or not writer.append(_file_name(segments[-1]), segments[-1].size, line):
        segments.append(Segment(entry.number, 0))
        writer.append(_file_name(segments[-1]), 0, line)
        segments = _youngest(segments, entry.number)
    segments[-1] = Segment(segments[-1].first, segments[-1].size + len(line))
    return Annals(entry.number, tuple(segments))


def _file_name(segment: Segment) -> str:
    return f"{segment.first}.log"


def _youngest(segments: list[Segment], number: int) -> list[Segment]:
    """`segments` without the oldest ones that are not needed for KEPT changes, or are too many bytes."""
    while len(segments) > 1 and (
        number - segments[1].first + 1 >= KEPT or sum(segment.size for segment in segments) > MOST
    ):
        segments = segments[1:]
    return segments


def swept(writer: Writer, before: State, after: State) -> None:
    """Remove the files that the history no longer has, once the state file that says so is written."""
    if [one.first for one in before.annals.segments] == [one.first for one in after.annals.segments]:
        return
    writer.keep({_file_name(segment) for segment in after.annals.segments})


# --- Reading ----------------------------------------------------------------------------------------------------------


def entries(state: State, store: Store) -> list[HistoryEntry]:
    """The changes that were kept, the oldest first; what is lost or damaged is left out."""
    found: dict[int, HistoryEntry] = {}
    for segment in state.annals.segments:
        content = store.history(_file_name(segment))
        found |= {entry.number: entry for entry in _parsed(content[: segment.size])}
    return [found[number] for number in sorted(found) if 0 < number <= state.annals.number]


def _parsed(content: bytes) -> Iterator[HistoryEntry]:
    for line in content.splitlines():
        checksum, _, document = line.partition(b" ")
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            if int(checksum, 16) == zlib.crc32(document):
                yield _entry(json.loads(document))


def _entry(document: dict[str, Any]) -> HistoryEntry:
    authorship = Authorship(document["time"], document["user"], document["as"], tuple(document["command"]))
    return HistoryEntry(
        document["number"],
        authorship,
        document["summary"],
        tuple(document["touched"]),
        document["after"],
        document["content"],
    )


# --- The way back -----------------------------------------------------------------------------------------------------


class Past:
    """The world as it was, found by going back from the present one, change by change."""

    def __init__(self, present: World, shelf: Any):
        self._present, self._shelf = present, shelf
        self._document: dict[str, Any] = _document(present, (), {})
        # What is None was not there.
        self._vpcs: dict[str, dict[str, Any] | None] = {}
        self._lists: dict[str, list[Any]] = {}

    def go_back(self, entry: HistoryEntry) -> None:
        """Before the change `entry`, if the world is as it was after it; StateError if it is not."""
        for name in entry.touched:
            if name not in self._vpcs:
                known = self._present.vpcs_by_name.get(name)
                self._vpcs[name] = _document(self._present, {name}, {})["vpcs"][name] if known else None
        vpcs = {name: self._vpcs[name] for name in entry.touched if self._vpcs[name] is not None}
        try:
            # The order of VPCs is that of the document; it is part of the checksum, as their order in `vpcs` is not.
            document = {**self._document, "vpcs": vpcs}
            if _mark(document) != entry.after:
                raise ValueError("it does not fit the record")
            change, lists = json.loads(zlib.decompress(binascii.a2b_base64(entry.content)))
            before = deltas.applied(document, change)
            for name in entry.touched:
                self._vpcs[name] = before["vpcs"].get(name)
            self._document = {**before, "vpcs": {}}
            self._lists |= lists
        except (*DAMAGE, IndexError, RecursionError, zlib.error) as error:
            raise StateError(f"change {entry.number} cannot be taken back: its entry is damaged ({error})") from error

    def world(self) -> World:
        """The world that is reached."""
        from vpcctl.documents.codec import vpc_from_json, world_around

        vpcs = []
        for name in self._document["order"]:
            document = self._vpcs.get(name)
            if document is None:
                vpcs.append(self._present.vpc(name))
            else:
                vpcs.append(vpc_from_json(_inside(document, self._lists), self._shelf))
        return world_around(self._document, vpcs)


def _inside(document: Any, lists: Mapping[str, list[Any]]) -> Any:
    """`document` with the lists that are here in their places; the others are parts of the record."""
    if isinstance(document, list):
        return [_inside(one, lists) for one in document]
    if not isinstance(document, dict):
        return document
    if document.keys() == {"part", "length"} and document["part"] in lists:
        return lists[document["part"]]
    return {key: _inside(value, lists) for key, value in document.items()}
