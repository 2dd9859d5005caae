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
from vpcctl.engine.state import FORMAT, Store, _checksum
from vpcctl.errors import StateError
from vpcctl.model.host import HostPart
from vpcctl.resources import kinds
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.protocol import HostFacts

ROOT = Path(__file__).parents[2] / "state"
V1, V2 = ROOT / "v1", ROOT / f"v{FORMAT}"
EXAMPLES = ("example.json", "interrupted.json")
CASES = cases("golden", "library")


class CrashError(BaseException):
    """Not one of ours: nothing catches it, as nothing catches a power cut."""


def read(name: str, folder: Path = V2) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


VALIDATOR = Draft202012Validator(read("schema.json"))
VALIDATOR_1 = Draft202012Validator(read("schema.json", V1))


def problems(document: Any, validator: Draft202012Validator = VALIDATOR) -> list[str]:
    """In what `document` departs from the schema."""
    return [error.json_path for error in validator.iter_errors(document)]


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
    store = placed(tmp_path, (V2 / name).read_text(encoding="utf-8"))
    with store.locked() as writer:
        writer.save(writer.load())
    before, after = read(name), written(store)
    assert after.pop("serial") == before.pop("serial") + 1
    assert after.pop("checksum") != before.pop("checksum")
    assert after == before


def test_the_committed_example_says_what_it_said(tmp_path: Path) -> None:
    state = placed(tmp_path, (V2 / "example.json").read_text(encoding="utf-8")).load()
    assert state.pending is None
    assert state.host == HostPart((("eth0", "0"),), (40000,))
    assert {type(item) for item in state.items} == {kind.item for kind in kinds.REGISTRY}
    assert {vpc.name for vpc in state.world.vpcs} == {"shop", "billing"}
    policy = state.world.vpc("shop").subnet("web").policy
    assert policy is not None
    assert policy.ingress is not None
    assert str(policy.ingress[3].origin) == "environment.json#/vpcs/0/subnets/0/policy/ingress/3"


def test_the_interrupted_example_is_finished_by_the_next_command(tmp_path: Path) -> None:
    store = placed(tmp_path, (V2 / "interrupted.json").read_text(encoding="utf-8"))
    state = store.load()
    assert state.pending is not None
    assert [vpc.name for vpc in state.pending.vpcs] == ["shop"]
    reconciler.repair(store, FakeKernel(HostFacts(ways_out=(("eth0", "1"),)), state.boot_id))
    assert store.load().pending is None
    assert [vpc.name for vpc in store.load().world.vpcs] == ["shop"]
    assert problems(written(store)) == []


# --- Format 1 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*EXAMPLES, "written.json"])
def test_a_file_of_format_1_says_the_same_in_the_newest(tmp_path: Path, name: str) -> None:
    """Object by object, told by what the old names meant."""
    old = read(name, V1)
    assert problems(old, VALIDATOR_1) == []
    store = placed(tmp_path, json.dumps(old))
    state = store.load()
    with store.locked() as writer:
        writer.save(state)
    assert problems(written(store)) == []
    assert written(store)["format"] == FORMAT
    assert dataclasses.replace(state, serial=old["serial"] + 1) == store.load()
    assert state.host == HostPart(
        tuple(map(tuple, old["desired"]["opened"])), tuple(old["desired"].get("reserved", ()))
    )
    assert [vpc.name for vpc in state.world.vpcs] == [vpc["name"] for vpc in old["desired"]["vpcs"]]
    classes = {kind.item.__name__: kind.item for kind in kinds.REGISTRY}
    for scope, items in old["record"].items():
        assert len(items) == len(state.record[scope])
        for before, after in zip(items, state.record[scope], strict=True):
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in before.items()}
            assert classes[values.pop("kind")](**values) == after


def test_format_1_kept_its_defaults_by_leaving_them_out(tmp_path: Path) -> None:
    vpcs = placed(tmp_path, json.dumps(read("example.json", V1))).load().world.vpcs
    assert all("max_flows" not in vpc for vpc in read("example.json", V1)["desired"]["vpcs"])
    assert {(vpc.max_flows, vpc.max_ports, vpc.nat_protocols, vpc.hardened) for vpc in vpcs} == {
        (16384, 8192, (), False)
    }


@pytest.mark.parametrize("key", ["desired", "record", "pending"])
def test_a_file_of_format_1_that_lacks_something_is_damaged(tmp_path: Path, key: str) -> None:
    old = read("example.json", V1)
    del old[key], old["checksum"]
    old["checksum"] = _checksum(old)
    with pytest.raises(StateError, match="is damaged"):
        placed(tmp_path, json.dumps(old)).load()


def test_an_interrupted_command_of_format_1_is_finished(tmp_path: Path) -> None:
    store = placed(tmp_path, json.dumps(read("interrupted.json", V1)))
    state = store.load()
    assert state.unfinished
    reconciler.repair(store, FakeKernel(HostFacts(ways_out=(("eth0", "1"),)), state.boot_id))
    assert store.load().pending is None
    assert [vpc.name for vpc in store.load().world.vpcs] == ["shop"]


# --- What is written --------------------------------------------------------------------------------------------------


def test_the_items_have_the_fields_of_the_format() -> None:
    definitions = read("schema.json")["$defs"]
    found = {kind.name: {"kind", *kind.fields.values()} for kind in kinds.REGISTRY}
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
        (("format",), 1),
        (("serial",), 0),
        (("desired",), None),
        (("desired", "vpcs", 0, "name"), "../x"),
        (("desired", "vpcs", 0, "subnets", 0, "public"), "yes"),
        (("desired", "vpcs", 0, "subnets", 0, "instances", 0, "mac"), "02:00"),
        (("record", "", 0, "kind"), "unheard"),
        (("record", "", 0, "generation"), 0),
        (("checksum",), "md5:0"),
    ],
)
def test_a_wrong_value_is_refused(path: tuple, value: object) -> None:
    document = read("example.json")
    at(document, path[:-1])[path[-1]] = value
    assert problems(document)
