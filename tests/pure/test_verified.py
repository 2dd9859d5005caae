"""The notes about rulesets that were right: a cache, which may forget but must not be wrong."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from vpcctl.kernel.verified import MOST, Notes, Stamp
from vpcctl.resources.kinds import Ruleset

ITEM = Ruleset("shop-router", ("inet",), "vpcctl:0a1b2c3d/shop/ruleset", "0123456789abcdef", 3)
STAMP = Stamp(4096, 17)
OTHERS = {
    "another namespace": (STAMP._replace(cookie=4097), ITEM),
    "a transaction later": (STAMP._replace(transactions=18), ITEM),
    "another text": (STAMP, dataclasses.replace(ITEM, fingerprint="fedcba9876543210")),
    "another generation": (STAMP, dataclasses.replace(ITEM, generation=4)),
    "another owner": (STAMP, dataclasses.replace(ITEM, tag="vpcctl:ffffffff/shop/ruleset")),
    "a kernel without cookies": (None, ITEM),
}


def noted(place: Path | None = None) -> Notes:
    notes = Notes(place)
    notes.learn(STAMP, ITEM)
    notes.save()
    return notes


def test_what_was_learned_holds_here_and_in_the_next_process(tmp_path: Path) -> None:
    place = tmp_path / "made" / "verified.json"
    assert noted(place).holds(STAMP, ITEM)
    assert Notes(place).holds(STAMP, ITEM)
    assert [file.name for file in place.parent.iterdir()] == ["verified.json"]
    assert place.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", OTHERS)
def test_nothing_else_holds(what: str) -> None:
    assert not noted().holds(*OTHERS[what])


def test_a_kernel_without_cookies_teaches_nothing() -> None:
    notes = Notes()
    notes.learn(None, ITEM)
    assert not notes.holds(None, ITEM)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"program": 1, "notes": {}}', "[" * 100_000])
def test_a_damaged_file_holds_nothing_and_is_replaced(tmp_path: Path, text: str) -> None:
    place = tmp_path / "verified.json"
    place.write_text(text)
    assert not Notes(place).holds(STAMP, ITEM)
    assert noted(place).holds(STAMP, ITEM)
    assert Notes(place).holds(STAMP, ITEM)


@pytest.mark.parametrize("note", [7, [], ["tag"], ["a", "b", "c", "d"], None])
def test_a_damaged_note_holds_nothing(tmp_path: Path, note: object) -> None:
    place = tmp_path / "verified.json"
    noted(place)
    document = json.loads(place.read_text())
    document["notes"] = {"4096": note}
    place.write_text(json.dumps(document))
    assert not Notes(place).holds(STAMP, ITEM)


def test_the_notes_of_another_version_hold_nothing(tmp_path: Path) -> None:
    """Another version may compile another ruleset for the same VPC."""
    place = tmp_path / "verified.json"
    noted(place)
    document = json.loads(place.read_text())
    document["program"] += "0"
    place.write_text(json.dumps(document))
    assert not Notes(place).holds(STAMP, ITEM)


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    noted(tmp_path / "elsewhere.json")
    place = tmp_path / "verified.json"
    place.symlink_to(tmp_path / "elsewhere.json")
    assert not Notes(place).holds(STAMP, ITEM)


def test_a_directory_that_cannot_be_written_prevents_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert noted(tmp_path / "file" / "verified.json").holds(STAMP, ITEM)


def test_the_oldest_notes_go_first(tmp_path: Path) -> None:
    place = tmp_path / "verified.json"
    notes = Notes(place)
    for cookie in range(MOST + 2):
        notes.learn(Stamp(cookie, 1), ITEM)
    notes.learn(Stamp(0, 2), ITEM)
    notes.save()
    kept = Notes(place)
    held = [cookie for cookie in range(MOST + 2) if kept.holds(Stamp(cookie, 1 if cookie else 2), ITEM)]
    assert held == [0, *range(3, MOST + 2)]


def test_nothing_is_written_where_nothing_was_learned(tmp_path: Path) -> None:
    place = tmp_path / "verified.json"
    noted(place)
    os.utime(place, ns=(1, 1))
    again = Notes(place)
    assert again.holds(STAMP, ITEM)
    again.save()
    assert place.stat().st_mtime_ns == 1
