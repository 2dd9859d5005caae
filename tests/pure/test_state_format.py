"""The format of the state file: what was frozen is still read, and what is written still is of that format."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests import records
from tests.golden import cases
from vpcctl.documents.codec import world_from_json, world_to_json
from vpcctl.engine import reconciler, targets
from vpcctl.engine.state import FORMAT, State, Store, _checksum
from vpcctl.errors import StateError
from vpcctl.model.host import HostPart, OpenedLink
from vpcctl.model.network import Vpc
from vpcctl.resources import kinds
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.protocol import HostFacts, HostLink

ROOT = Path(__file__).parents[2] / "state"
V1, V2, V3 = ROOT / "v1", ROOT / "v2", ROOT / f"v{FORMAT}"
EXAMPLES = ("example", "interrupted")
CASES = cases("golden", "library")


class CrashError(BaseException):
    """Not one of ours: nothing catches it, as nothing catches a power cut."""


def read(name: str, folder: Path = V3) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


SCHEMA = read("schema.json")


def defined(name: str) -> Draft202012Validator:
    """The validator of a definition of the format."""
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]})


VALIDATOR, PART, LIST = Draft202012Validator(SCHEMA), defined("part"), defined("list")
OLDER = {folder.name: Draft202012Validator(read("schema.json", folder)) for folder in (V1, V2)}


def problems(document: Any, validator: Draft202012Validator = VALIDATOR) -> list[str]:
    """In what `document` departs from the schema."""
    return [error.json_path for error in validator.iter_errors(document)]


def all_problems(directory: Path) -> list[str]:
    """The schema violations of the state file in a directory and of its parts."""
    found = problems(read("state.json", directory))
    for file in directory.glob("parts/*"):
        content = file.read_bytes()
        assert file.name == f"{hashlib.sha256(content).hexdigest()}.json"
        document = json.loads(content)
        found += [f"{file.name} {path}" for path in problems(document, PART if isinstance(document, dict) else LIST)]
    return found


def example(directory: Path, name: str) -> Store:
    """A state directory that is a copy of an example of the format."""
    shutil.copytree(V3 / name, directory / "state")
    (directory / "state").chmod(0o700)
    return Store(directory / "state")


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
    assert all_problems(V3 / name) == []


def test_the_examples_have_every_kind_of_part() -> None:
    documents = [json.loads(file.read_bytes()) for file in V3.glob("*/parts/*")]
    assert {type(document) for document in documents} == {dict, list}
    halves = {(one["desired"] is None, one["record"] is None) for one in documents if isinstance(one, dict)}
    assert halves == {(False, False), (False, True)}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("whole", [False, True], ids=["unread", "read"])
def test_the_examples_are_read_and_written_as_they_were(tmp_path: Path, name: str, whole: bool) -> None:
    store = example(tmp_path, name)
    if whole:
        store.load_whole()
    with store.locked() as writer:
        writer.save(writer.load())
    before, after = read("state.json", V3 / name), written(store)
    assert after.pop("serial") == before.pop("serial") + 1
    assert after.pop("checksum") != before.pop("checksum")
    assert after == before
    assert sorted(file.name for file in (store.directory / "parts").iterdir()) == sorted(
        file.name for file in (V3 / name / "parts").iterdir()
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_was_read_is_written_anew_as_it_was(tmp_path: Path, name: str) -> None:
    """Fresh values make the same parts, even if none exist."""
    state = dataclasses.replace(example(tmp_path, name).load_whole())
    vpcs = [[copied(vpc) for vpc in world.vpcs] if world else [] for world in (state.world, state.pending)]
    made = dataclasses.replace(
        state,
        world=dataclasses.replace(state.world, vpcs=tuple(vpcs[0])),
        pending=state.pending and dataclasses.replace(state.pending, vpcs=tuple(vpcs[1])),
        record={scope: tuple(items) for scope, items in state.record.items()},
    )
    again = Store(tmp_path / "again")
    with again.locked() as writer:
        writer.save(made)
    assert records.whole(again.directory) | {"serial": 0, "checksum": ""} == records.whole(V3 / name) | {
        "serial": 0,
        "checksum": "",
    }


def copied(vpc: Vpc) -> Vpc:
    """An equal VPC that knows of no record."""
    made = dataclasses.replace(vpc)
    assert (made, made.rest) == (vpc, None)
    return made


def test_the_committed_example_says_what_it_said(tmp_path: Path) -> None:
    state = example(tmp_path, "example").load()
    assert state.pending is None
    assert state.host == HostPart((OpenedLink(2, "eth0"),), (40000,), (2, 4))
    assert {type(item) for item in state.items} == {kind.item for kind in kinds.REGISTRY}
    assert {vpc.name for vpc in state.world.vpcs} == {"shop", "billing"}
    policy = state.world.vpc("shop").subnet("web").policy
    assert policy is not None
    assert policy.ingress is not None
    assert str(policy.ingress[3].origin) == "environment.json#/vpcs/0/subnets/0/policy/ingress/3"
    own = state.world.vpc("billing").policy
    assert own is not None
    assert own.ingress is not None
    assert str(own.ingress[0].origin) == "billing.json#/ingress/0"


def test_the_interrupted_example_is_finished_by_the_next_command(tmp_path: Path) -> None:
    store = example(tmp_path, "interrupted")
    state = store.load()
    assert state.pending is not None
    assert [vpc.name for vpc in state.pending.vpcs] == ["shop"]
    reconciler.repair(store, FakeKernel(HostFacts((HostLink(2, "eth0", forwards=True),)), state.boot_id))
    assert store.load().pending is None
    assert [vpc.name for vpc in store.load().world.vpcs] == ["shop"]
    assert all_problems(store.directory) == []


# --- Format 1 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["example.json", "interrupted.json", "written.json"])
def test_a_file_of_format_1_says_the_same_in_the_newest(tmp_path: Path, name: str) -> None:
    """Object by object, told by what the old names meant."""
    old = read(name, V1)
    assert problems(old, OLDER["v1"]) == []
    store = placed(tmp_path, json.dumps(old))
    state = store.load()
    with store.locked() as writer:
        writer.save(state)
    assert all_problems(store.directory) == []
    assert written(store)["format"] == FORMAT
    assert dataclasses.replace(state, serial=old["serial"] + 1) == store.load()
    assert state.host == HostPart(
        tuple(OpenedLink(0, link) for link, _ in old["desired"]["opened"]),
        tuple(old["desired"].get("reserved", ())),
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
    reconciler.repair(store, FakeKernel(HostFacts((HostLink(2, "eth0", forwards=True),)), state.boot_id))
    assert store.load().pending is None
    assert [vpc.name for vpc in store.load().world.vpcs] == ["shop"]


# --- Format 2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["example.json", "interrupted.json"])
def test_a_file_of_format_2_says_the_same_in_parts(tmp_path: Path, name: str) -> None:
    old = read(name, V2)
    assert problems(old, OLDER["v2"]) == []
    store = placed(tmp_path, json.dumps(old))
    with store.locked() as writer:
        state = writer.load()
        writer.save(state)
    assert all_problems(store.directory) == []
    assert dataclasses.replace(state, serial=old["serial"] + 1) == store.load()
    found = records.whole(store.directory)
    for world in (found["desired"], *([found["pending"]["desired"]] if found["pending"] else [])):
        world["vpcs"] = [{**vpc.pop("part"), **vpc} for vpc in world["vpcs"]]
        assert [vpc.pop("mtu") for vpc in world["vpcs"]] == [1500] * len(world["vpcs"])
    for part in (old, *([old["pending"]] if old["pending"] else [])):
        opened = [[0, link] for link, _ in part["host"]["opened"]]
        part["host"] |= {"opened": opened, "closed": [], "forwards": False}
    changed = {"format": 0, "serial": 0, "checksum": ""}
    assert found | changed == old | changed


@pytest.mark.parametrize("key", ["desired", "record", "pending", "host"])
def test_a_file_of_format_2_that_lacks_something_is_damaged(tmp_path: Path, key: str) -> None:
    old = read("example.json", V2)
    del old[key], old["checksum"]
    old["checksum"] = _checksum(old)
    with pytest.raises(StateError, match="is damaged"):
        placed(tmp_path, json.dumps(old)).load()


def test_an_interrupted_command_of_format_2_is_finished(tmp_path: Path) -> None:
    store = placed(tmp_path, json.dumps(read("interrupted.json", V2)))
    state = store.load()
    assert state.unfinished
    reconciler.repair(store, FakeKernel(HostFacts((HostLink(2, "eth0", forwards=True),)), state.boot_id))
    assert store.load().pending is None
    assert all_problems(store.directory) == []


# --- What is written --------------------------------------------------------------------------------------------------


def test_the_items_have_the_fields_of_the_format() -> None:
    definitions = SCHEMA["$defs"]
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
    assert all_problems(store.directory) == []


@pytest.mark.parametrize("name", CASES)
def test_every_world_is_kept_in_the_words_of_the_format(tmp_path: Path, name: str) -> None:
    store, world = Store(tmp_path / "state"), CASES[name].world
    with store.locked() as writer:
        writer.save(State("0a1b2c3d", world=world))
    assert all_problems(store.directory) == []
    assert store.load().world == world
    assert world_from_json(world_to_json(world)) == world


@pytest.mark.parametrize("name", ["golden/peering", "golden/published", "golden/long-names"])
def test_what_a_command_writes_on_its_way_is_of_the_format(tmp_path: Path, name: str) -> None:
    store, kernel, world = Store(tmp_path / "state"), FakeKernel(), CASES[name].world
    kernel.failure, kernel.fail_at = CrashError(), 10
    with pytest.raises(CrashError):
        reconciler.change(store, kernel, lambda state: world)
    assert all_problems(store.directory) == []
    assert written(store)["pending"] is not None
    reconciler.repair(store, kernel)
    assert all_problems(store.directory) == []
    assert written(store)["pending"] is None
    assert store.load().world == targets.decided(world, kernel.facts())


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
    """The part of a VPC with one item of each kind."""
    whole = records.whole(V3 / "example")
    found = {item["kind"]: item for members in whole["record"].values() for item in members}
    desired = whole["desired"]["vpcs"][0]["part"]
    # One list stays in a part of its own.
    [apart] = [subnet for file in V3.glob("example/parts/*") for subnet in apart_in(json.loads(file.read_bytes()))]
    desired["sets"]["partners"] = apart
    return {"vpc": "shop", "desired": desired, "record": list(found.values())}


def apart_in(document: Any) -> Iterator[Any]:
    if isinstance(document, dict) and document["desired"]:
        yield from (value for value in document["desired"]["sets"].values() if isinstance(value, dict))


DOCUMENTS: dict[str, tuple[Any, Draft202012Validator]] = {
    "state.json": (read("example/state.json"), VALIDATOR),
    "part": (small(), PART),
}


def is_free(path: tuple) -> bool:
    """May any name stand there as a key?"""
    return path == ("record",) or path[-1:] == ("sets",)


def spoiled(example: Any, change: str) -> Iterator[tuple[tuple, Any]]:
    """A document with one object changed, for objects of every kind once."""
    done = set()
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


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_field_more_is_refused_anywhere(name: str) -> None:
    document, validator = DOCUMENTS[name]
    assert problems(document, validator) == []
    accepted = [path for path, spoilt in spoiled(document, "more") if validator.is_valid(spoilt)]
    assert not accepted


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_field_less_is_refused_but_in_policies(name: str) -> None:
    """The words of a policy are those that its author wrote; a rule needs its action."""
    document, validator = DOCUMENTS[name]
    spoilt = list(spoiled(document, "less"))
    accepted = [path for path, document in spoilt if validator.is_valid(document)]
    assert all("document" in path for path in accepted)
    assert not [path for path in accepted if path[-1] == "action"]
    assert len(spoilt) > 2 * len(accepted)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("state.json", ("format",), 1),
        ("state.json", ("serial",), 0),
        ("state.json", ("desired",), None),
        ("state.json", ("desired", "vpcs", 0, "name"), "../x"),
        ("state.json", ("desired", "vpcs", 0, "part"), "../x"),
        ("state.json", ("desired", "vpcs", 0, "lists", 0), "A" * 64),
        ("state.json", ("record", "shop"), []),
        ("state.json", ("record", "", 0, "kind"), "unheard"),
        ("state.json", ("record", "", 0, "generation"), 0),
        ("state.json", ("checksum",), "md5:0"),
        ("part", ("vpc",), "../x"),
        ("part", ("desired", "subnets", 0, "public"), "yes"),
        ("part", ("desired", "subnets", 0, "instances", 0, "mac"), "02:00"),
        ("part", ("desired", "sets", "partners", "length"), -1),
        ("part", ("record", 0, "kind"), "unheard"),
    ],
)
def test_a_wrong_value_is_refused(name: str, path: tuple, value: object) -> None:
    document, validator = copy.deepcopy(DOCUMENTS[name][0]), DOCUMENTS[name][1]
    assert at(document, path) != value
    at(document, path[:-1])[path[-1]] = value
    assert problems(document, validator)


def test_a_link_that_an_older_version_opened_is_found_by_its_name(tmp_path: Path) -> None:
    """It stays open for us, is identified by its index from then on, and is restored at the end."""
    store = placed(tmp_path, json.dumps(read("example.json", V2)))
    state = store.load()
    assert state.host.opened == (OpenedLink(0),)
    kernel = FakeKernel(HostFacts((HostLink(2, "eth0", forwards=True), HostLink(5, "eth1"))), state.boot_id)
    reconciler.repair(store, kernel)
    host = store.load().host
    assert (host.opened, host.closed) == ((OpenedLink(2), OpenedLink(5)), (2, 5))
    assert {("Forwarding", "2"), ("Forwarding", "5")} <= kernel.objects.keys()
    assert not any(item.key[0] == "LinkSetting" and item.key[2] == "eth0" for item in store.load().items)
