"""A record as one document: the state file with its parts inside, for tests that read and write it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vpcctl.engine import parts
from vpcctl.engine.state import STATE_FILE, _checksum


def whole(directory: Path, file: str = STATE_FILE, folder: str = parts.FOLDER) -> Any:
    """The state file in `directory`, with the content of each part in place of its name."""
    document = head(directory, file)

    def part(mark: str) -> Any:
        return json.loads((directory / folder / parts.file_name(mark)).read_text())

    for vpc in _vpcs(document):
        del vpc["lists"]
        vpc["part"] = part(vpc["part"])["desired"]
        for place, key in _lists(vpc["part"]):
            if isinstance(place[key], dict) and "part" in place[key]:
                place[key] = part(place[key]["part"])
    record = document["record"]
    document["record"] = {scope: part(found)["record"] if scope else found for scope, found in record.items()}
    return document


def head(directory: Path, file: str = STATE_FILE) -> Any:
    """The state file alone."""
    return json.loads((directory / file).read_text())


def put(directory: Path, document: Any) -> None:
    """Write such a document, valid or not, to a state directory: cut into parts and sealed."""
    document = json.loads(json.dumps(document))
    (directory / parts.FOLDER).mkdir(mode=0o700, exist_ok=True)

    def part(content: Any) -> str:
        written = parts.text(content)
        mark = parts.mark_of(written)
        (directory / parts.FOLDER / parts.file_name(mark)).write_bytes(written)
        return mark

    for vpc in _vpcs(document):
        lists = []
        for place, key in _lists(vpc["part"]):
            if isinstance(place[key], list) and len(parts.text(place[key])) > parts.LONG:
                lists.append(part(place[key]))
                place[key] = {"part": lists[-1], "length": len(place[key])}
        vpc["part"] = part({"vpc": vpc["name"], "desired": vpc["part"], "record": None})
        vpc["lists"] = lists
    document["record"] = {
        scope: part({"vpc": scope, "desired": None, "record": items}) if scope else items
        for scope, items in document["record"].items()
    }
    seal(directory, document)


def seal(directory: Path, document: Any) -> None:
    """Write a state file with its checksum."""
    document.pop("checksum", None)
    document["checksum"] = _checksum(document)
    (directory / STATE_FILE).write_text(json.dumps(document))


def files(directory: Path) -> dict[str, bytes]:
    """Every file of the record, by its path in the state directory."""
    found = {path.relative_to(directory): path for path in directory.rglob("*.json")}
    return {os.fspath(name): path.read_bytes() for name, path in sorted(found.items())}


def _vpcs(document: Any) -> Iterator[Any]:
    worlds = [document["desired"], *([document["pending"]["desired"]] if document["pending"] else [])]
    return (vpc for world in worlds for vpc in world["vpcs"])


def _lists(rest: Any) -> Iterator[tuple[Any, str]]:
    """The places of lists of rules or prefixes in the rest of a VPC: the container and the key."""
    holders = (rest, *rest.get("subnets", ()))
    policies = [one["policy"]["document"] for one in holders if isinstance(one.get("policy"), dict)]
    for policy in policies:
        yield from ((policy, side) for side in ("ingress", "egress") if side in policy)
    for holder in (rest, *policies):
        sets = holder.get("sets", {})
        yield from ((sets, name) for name in (sets if isinstance(sets, dict) else ()))
