"""The format of the state file: what was frozen is still read, and what is written still is of that format."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.golden import cases
from vpcctl.documents.codec import world_from_json, world_to_json
from vpcctl.engine import reconciler
from vpcctl.engine.state import FORMAT, Store
from vpcctl.resources import kinds
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.protocol import HostFacts

ROOT = Path(__file__).parents[2] / "state"
V1 = ROOT / "v1"
EXAMPLES = ("example.json", "interrupted.json")
CASES = cases("golden", "library")


class CrashError(BaseException):
    """Not one of ours: nothing catches it, as nothing catches a power cut."""


def read(name: str) -> Any:
    return json.loads((V1 / name).read_text(encoding="utf-8"))


VALIDATOR = Draft202012Validator(read("schema.json"))


def problems(document: Any) -> list[str]:
    """In what `document` departs from the schema."""
    return [error.json_path for error in VALIDATOR.iter_errors(document)]


def placed(directory: Path, text: str) -> Store:
    """A state directory with `text` as its state file."""
    store = Store(directory / "state")
    store.directory.mkdir(0o700)
    (store.directory / "state.json").write_text(text, encoding="utf-8")
    return store


def written(store: Store) -> Any:
    return json.loads((store.directory / "state.json").read_text(encoding="utf-8"))


# --- What is frozen ---------------------------------------------------------------------------------------------------


def test_the_format_has_its_folder() -> None:
    assert (ROOT / f"v{FORMAT}" / "schema.json").exists()


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(read("schema.json"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_of_the_format(name: str) -> None:
    assert problems(read(name)) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_read_and_written_as_they_were(tmp_path: Path, name: str) -> None:
    store = placed(tmp_path, (V1 / name).read_text(encoding="utf-8"))
    with store.locked() as writer:
        writer.save(writer.load())
    before, after = read(name), written(store)
    assert after.pop("serial") == before.pop("serial") + 1
    assert after.pop("checksum") != before.pop("checksum")
    assert after == before


def test_the_committed_example_says_what_it_said(tmp_path: Path) -> None:
    state = placed(tmp_path, (V1 / "example.json").read_text(encoding="utf-8")).load()
    assert state.pending is None
    # These came later, with hardened VPCs.
    assert {type(item).__name__ for item in state.items} == set(kinds.KINDS) - {"ChecksumLink", "Detour"}
    assert {vpc.name for vpc in state.world.vpcs} == {"shop", "billing"}
    policy = state.world.vpc("shop").subnet("web").policy
    assert policy is not None
    assert policy.ingress is not None
    assert str(policy.ingress[3].origin) == "environment.json#/vpcs/0/subnets/0/policy/ingress/3"


def test_the_interrupted_example_is_finished_by_the_next_command(tmp_path: Path) -> None:
    store = placed(tmp_path, (V1 / "interrupted.json").read_text(encoding="utf-8"))
    state = store.load()
    assert state.pending is not None
    assert [vpc.name for vpc in state.pending.vpcs] == ["shop"]
    reconciler.repair(store, FakeKernel(HostFacts(ways_out=(("eth0", "1"),)), state.boot_id))
    assert store.load().pending is None
    assert [vpc.name for vpc in store.load().world.vpcs] == ["shop"]
    assert problems(written(store)) == []


# --- What is written --------------------------------------------------------------------------------------------------


def test_the_items_have_the_fields_of_the_format() -> None:
    definitions = read("schema.json")["$defs"]
    found = {
        kind: {"kind", *(one.name for one in dataclasses.fields(item) if one.compare)}
        for kind, item in kinds.KINDS.items()
    }
    assert found == {
        name.removeprefix("item-"): set(definition["properties"])
        for name, definition in definitions.items()
        if name.startswith("item-")
    }


def test_a_state_that_was_never_written_is_of_the_format(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    with store.locked() as writer:
        writer.save(writer.load())
    assert problems(written(store)) == []


@pytest.mark.parametrize("name", CASES)
def test_every_world_is_kept_in_the_words_of_the_format(name: str) -> None:
    schema = read("schema.json")
    validator = Draft202012Validator({"$ref": "#/$defs/world", "$defs": schema["$defs"]})
    kept = world_to_json(CASES[name].world)
    assert [error.json_path for error in validator.iter_errors(kept)] == []
    assert world_from_json(kept) == CASES[name].world


@pytest.mark.parametrize("name", ["golden/peering", "golden/published", "golden/long-names"])
def test_what_a_command_writes_on_its_way_is_of_the_format(tmp_path: Path, name: str) -> None:
    store, kernel, world = Store(tmp_path / "state"), FakeKernel(), CASES[name].world
    kernel.failure, kernel.fail_at = CrashError(), 10
    with pytest.raises(CrashError):
        reconciler.change(store, kernel, lambda state: world)
    assert problems(written(store)) == []
    assert written(store)["pending"] is not None
    reconciler.repair(store, kernel)
    assert problems(written(store)) == []
    assert written(store)["pending"] is None
    assert store.load().world == world


# --- What is refused --------------------------------------------------------------------------------------------------


def objects(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all objects in a document."""
    if isinstance(value, dict):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from objects(inner, (*path, key))


def at(document: Any, path: tuple) -> Any:
    for key in path:
        document = document[key]
    return document


def small() -> Any:
    """The example with one item of each kind, which is enough to spoil."""
    example = read("example.json")
    found = {item["kind"]: item for members in example["record"].values() for item in members}
    return example | {"record": {"shop": list(found.values())}}


def is_free(path: tuple) -> bool:
    """May any name stand there as a key?"""
    return path == ("record",) or path[-1:] == ("sets",)


def spoiled(change: str) -> Iterator[tuple[tuple, Any]]:
    """The example with one object changed, for objects of every kind once."""
    example, done = small(), set()
    for path in objects(example):
        kind = (*(key for key in path if isinstance(key, str)), at(example, path).get("kind"))
        if kind in done or is_free(path):
            continue
        done.add(kind)
        for key in list(at(example, path)) if change == "less" else ["more"]:
            document = copy.deepcopy(example)
            if change == "less":
                del at(document, path)[key]
            else:
                at(document, path)[key] = "x"
            yield (*path, key), document


def test_a_field_more_is_refused_anywhere() -> None:
    assert VALIDATOR.is_valid(small())
    accepted = [path for path, document in spoiled("more") if VALIDATOR.is_valid(document)]
    assert not accepted


def test_a_field_less_is_refused_but_in_policies() -> None:
    """The words of a policy are those that its author wrote; a rule needs its action."""
    spoilt = list(spoiled("less"))
    accepted = [path for path, document in spoilt if VALIDATOR.is_valid(document)]
    assert all("document" in path for path in accepted)
    assert not [path for path in accepted if path[-1] == "action"]
    assert len(spoilt) > 2 * len(accepted)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("serial",), 0),
        (("desired",), None),
        (("desired", "vpcs", 0, "name"), "../x"),
        (("desired", "vpcs", 0, "subnets", 0, "public"), "yes"),
        (("desired", "vpcs", 0, "subnets", 0, "instances", 0, "mac"), "02:00"),
        (("record", "", 0, "kind"), "Unheard"),
        (("record", "", 0, "generation"), 0),
        (("checksum",), "md5:0"),
    ],
)
def test_a_wrong_value_is_refused(path: tuple, value: object) -> None:
    document = read("example.json")
    at(document, path[:-1])[path[-1]] = value
    assert problems(document)
