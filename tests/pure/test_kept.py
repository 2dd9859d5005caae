"""The content of a VPC costs only its own commands: a command about another VPC neither reads nor decodes it.

The tests need no clock: the rules and prefixes of one VPC cannot be decoded, or its part of the record is lost, so a
command that reads them ends with status 6.
"""

from __future__ import annotations

import dataclasses
import json
import re
import stat
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tests import records
from tests.rehearsal import Rehearsal
from tests.story import policy, subnet
from vpcctl.cli import commands
from vpcctl.documents import binding, policies
from vpcctl.documents.codec import world_from_json, world_to_json
from vpcctl.documents.environment import read_environment
from vpcctl.documents.lazy_lists import Kept
from vpcctl.documents.policies import MOST_PREFIXES, read_policies
from vpcctl.engine import parts, reconciler
from vpcctl.engine.state import STATE_FILE, Store
from vpcctl.errors import DocumentError, StateError, VpcctlError
from vpcctl.model import operations
from vpcctl.model.network import World

POLICY = {"ingress": [{"action": "allow", "protocol": "tcp", "port": 80}], "sets": {"own": ["203.0.113.0/24"]}}
# So many prefixes get a file of their own.
MANY = tuple(ip_network((0xCB007100 + 4 * number, 30)) for number in range(400))
STEPS: tuple[Callable[[World], World], ...] = (
    lambda world: operations.create_vpc(world, "big", ip_network("10.0.0.0/26")),
    subnet("big", "web", "10.0.0.0/28"),
    policy(POLICY | {"subnet": "web"}, "big"),
    policy({"subnet": "*", "egress": [{"action": "allow"}]}, "big"),
    lambda world: world.with_vpc(
        dataclasses.replace(world.vpc("big"), sets=(("office", (ip_network("::/0"),)), ("many", MANY)))
    ),
    lambda world: operations.create_vpc(world, "small", ip_network("10.0.0.64/26")),
    subnet("small", "api", "10.0.0.64/28"),
    subnet("small", "db", "10.0.0.80/28", public=False),
    policy(POLICY | {"subnet": "api"}, "small"),
    lambda world: operations.create_vpc(world, "other", ip_network("10.0.0.128/26")),
)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    """A machine with the VPC `big` and two others, and documents about one of these in the working directory."""
    monkeypatch.chdir(tmp_path)
    made = Rehearsal(tmp_path / "state", make_store=lambda directory: Store(directory, tmp_path / "copies"))
    for step in STEPS:
        reconciler.change(made.store, made.fake, lambda found, step=step: step(found.world))
    (tmp_path / "api.json").write_text(json.dumps({"vpc": "small", "subnet": "api", "egress": []}))
    (tmp_path / "same.json").write_text(json.dumps({"vpc": "small", "subnet": "api"} | POLICY))
    environment = [{"name": "small", "cidr": "10.0.0.64/26"}]
    (tmp_path / "small.json").write_text(json.dumps({"vpcs": environment}))
    return made


def run(session: Rehearsal, *words: str) -> Result:
    command = commands.get_command(click.Context(commands), words[0])
    return CliRunner().invoke(command, list(words[1:]), obj=session)


def status(found: Result) -> int:
    wrong = found.exception
    assert wrong is None or isinstance(wrong, (VpcctlError, SystemExit)), wrong
    return wrong.exit_status if isinstance(wrong, VpcctlError) else found.exit_code


def rewritten(session: Rehearsal, change: Callable[[Any], None]) -> None:
    """The record with its document changed, and sealed again."""
    document = written(session)
    change(document)
    records.put(session.state_dir, document)


def kept_of_big(document: Any) -> list[Any]:
    """What the record keeps of the policies and sets of `big`."""
    vpc = document["desired"]["vpcs"][0]
    assert vpc["name"] == "big"
    return [vpc["part"]["sets"], vpc["part"]["policy"], *(inner["policy"] for inner in vpc["part"]["subnets"])]


def poison(document: Any) -> None:
    sets, *policies = kept_of_big(document)
    sets["office"] = ["no prefix"] * 3
    sets["many"] = ["no prefix"] * 3000
    for attached in policies:
        attached["document"].update(ingress=[{"action": "no action"}], egress=["no rule"], sets={"own": [None]})


def written(session: Rehearsal) -> Any:
    return records.whole(session.state_dir)


def copied(session: Rehearsal) -> Any:
    copy = session.store._copy
    return records.whole(copy.parent, copy.name, session.store._copy_folder)


def damaged(session: Rehearsal, vpc: str) -> str:
    """The message that a part of a VPC is damaged."""
    return rf"VPC {vpc}: {re.escape(str(session.state_dir))}/parts/[0-9a-f]{{64}}\.json is damaged \("


# Commands about everything but what `big` keeps.
BESIDE = [
    "list-vpcs",
    "list-vpcs --json",
    "show-vpc --name small",
    "show-vpc --name big",
    "list-subnets --vpc small",
    "list-subnets --vpc big --json",
    "list-instances --vpc big",
    "list-peerings",
    "show-policy --vpc small",
    "explain small/api small/db tcp/80",
    "matrix --vpc small",
    "compile --vpc small",
    "status --vpc small",
    "create-vpc --name new --cidr 10.0.0.192/26",
    "delete-vpc --name other",
    "create-subnet --vpc small --name new --cidr 10.0.0.96/28 --type private",
    "delete-subnet --vpc small --name db --cascade",
    "create-nat-gateway --vpc small --subnet db",
    "create-instance --vpc small --subnet db --name new",
    "delete-instance --vpc small --name db",
    "publish-port --vpc small --instance api --port 80",
    "create-peering --vpc1 small --vpc2 other",
    "apply-policy --dry-run api.json",
    "apply-policy api.json",
    "apply-policy same.json",
    "clear-policy --vpc small --subnet api --dry-run",
    "clear-policy --vpc small --subnet api",
    "plan small.json",
    "apply small.json",
    "repair --vpc small",
]
# Commands that need it.
ABOUT = [
    "show-policy --vpc big",
    "explain big/web internet tcp/80",
    "matrix --vpc big",
    "compile --vpc big",
    "create-instance --vpc big --subnet web --name new",
    "export",
]


@pytest.mark.parametrize("words", BESIDE)
def test_a_command_about_another_vpc_decodes_nothing_and_writes_it_back_as_it_was(
    session: Rehearsal, words: str
) -> None:
    rewritten(session, poison)
    before = kept_of_big(written(session))
    found = run(session, *words.split())
    assert status(found) in (0, 1), found.exception or found.output
    assert kept_of_big(written(session)) == before
    # It is in the intent too, while a command runs, and in the copy.
    assert kept_of_big(copied(session))[0]["office"] in (before[0]["office"], ["::/0"])


def parts_of(session: Rehearsal, vpc: str) -> list[Path]:
    """The files of a VPC."""
    document = json.loads((session.state_dir / STATE_FILE).read_text())
    [entry] = [one for one in document["desired"]["vpcs"] if one["name"] == vpc]
    found = {entry["part"], *entry["lists"], document["record"][vpc]}
    return [session.state_dir / parts.FOLDER / parts.file_name(mark) for mark in found]


# Commands that show the content of every VPC.
OF_ALL = ("list-vpcs", "show-vpc --name big", "list-subnets --vpc big", "list-instances --vpc big")


@pytest.mark.parametrize("words", [words for words in BESIDE if not words.startswith(OF_ALL)])
def test_a_command_about_another_vpc_does_not_even_read_it(session: Rehearsal, words: str) -> None:
    lost = {file: file.read_bytes() for file in parts_of(session, "big")}
    assert len(lost) > 1
    for file in lost:
        file.unlink()
    found = run(session, *words.split())
    assert status(found) in (0, 1), found.exception or found.output
    # The head still names the parts: once they are back, nothing is missing.
    for file, content in lost.items():
        assert not file.exists()
        file.write_bytes(content)
    session.store.load_whole()
    assert status(run(session, "repair")) == 0


@pytest.mark.parametrize(
    "words", ["list-vpcs", "status", "repair", "create-instance --vpc big --subnet web --name new"]
)
@pytest.mark.parametrize("how", ["is missing", "is damaged (its checksum does not match)"])
def test_a_part_that_is_lost_or_damaged_is_named_with_its_vpc(session: Rehearsal, words: str, how: str) -> None:
    calls = len(session.fake.calls)
    for file in parts_of(session, "big"):
        file.unlink() if "missing" in how else file.write_bytes(file.read_bytes().replace(b"10.0.0.", b"10.1.0."))
    found = run(session, *words.split())
    assert isinstance(found.exception, StateError), found.exception or found.output
    assert re.search(rf"VPC big: .*/parts/[0-9a-f]{{64}}\.json {re.escape(how)}", str(found.exception))
    assert "`vpcctl repair --adopt`" in str(found.exception)
    assert len(session.fake.calls) == calls


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_part_is_taken_back_from_the_copy_and_the_rest_stays(session: Rehearsal, how: str) -> None:
    there, before = written(session), records.files(session.state_dir)
    # The file is newer than the copy; the part is the same.
    with session.store.locked() as writer:
        writer.load()
        session.store.copies, kept = None, session.store.copies
        writer.save(session.store.load())
        session.store.copies = kept
    for file in parts_of(session, "big"):
        file.unlink() if how == "lost" else file.write_bytes(b"damaged")
    with session.store.locked() as writer:
        assert writer.adopt().serial == there["serial"] + 1
    after = records.files(session.state_dir)
    assert after.keys() == before.keys()
    assert {name: content for name, content in after.items() if name != STATE_FILE} == {
        name: content for name, content in before.items() if name != STATE_FILE
    }
    assert [mode(file) for file in (session.state_dir / parts.FOLDER).iterdir()] == [0o600] * (len(after) - 1)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("words", ABOUT)
def test_a_command_that_needs_what_is_damaged_says_so_and_changes_nothing(session: Rehearsal, words: str) -> None:
    # The control: it does what it is for as long as nothing is damaged.
    assert status(run(session, *words.split())) in (0, 1)
    words = words.replace("--name new", "--name newer")
    rewritten(session, poison)
    before, calls = written(session), len(session.fake.calls)
    found = run(session, *words.split())
    assert isinstance(found.exception, StateError), found.exception or found.output
    assert re.match(damaged(session, "big"), str(found.exception))
    assert written(session) == before
    assert len(session.fake.calls) == calls


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept[0].update(office="::/0"),
        lambda kept: kept[1]["document"].update(ingress={}),
        lambda kept: kept[1]["document"].update(sets=[]),
        lambda kept: kept[1]["document"].update(default={"ingress": "perhaps"}),
        lambda kept: kept[1].pop("file"),
    ],
)
def test_what_is_no_list_at_all_is_damage_of_its_vpc(session: Rehearsal, change: Callable[[Any], None]) -> None:
    rewritten(session, lambda document: change(kept_of_big(document)))
    world = session.load().world
    with pytest.raises(StateError, match=damaged(session, "big")):
        _ = world.vpc("big").subnets
    assert [subnet.name for subnet in world.vpc("small").subnets] == ["api", "db"]


def test_damage_that_only_its_owner_meets_is_replaced_by_the_copy(session: Rehearsal) -> None:
    there = session.load().world
    rewritten(session, poison)
    with session.store.locked() as writer:
        assert writer.adopt().world == there
    assert session.load().world == there


def test_doctor_looks_at_every_part_of_the_record(session: Rehearsal) -> None:
    session.store.load_whole()
    rewritten(session, poison)
    with pytest.raises(StateError, match="is damaged"):
        session.store.load_whole()


# -- lists that wait -----------------------------------------------------------------------------------------------


def waiting(*texts: str) -> Kept:
    return Kept(list(texts), StateError, lambda kept: tuple(map(ip_network, kept)))


def once(calls: list[Any]) -> Callable[[list[Any]], tuple[Any, ...]]:
    """What decodes a list, and puts it down in `calls`."""

    def decode(kept: list[Any]) -> tuple[Any, ...]:
        calls.append(kept)
        return tuple(kept)

    return decode


def test_a_kept_list_is_a_sequence_that_is_decoded_once() -> None:
    calls: list[Any] = []
    kept = Kept([1, 2, 3], StateError, once(calls))
    assert (len(kept), bool(kept), calls) == (3, True, [])
    assert (list(kept), kept[0], kept[1:], 2 in kept, kept.index(3)) == ([1, 2, 3], 1, (2, 3), True, 2)
    assert len(calls) == 1


def test_kept_lists_compare_like_tuples() -> None:
    assert waiting("::/0") == (ip_network("::/0"),) == waiting("::/0")
    assert (ip_network("::/0"),) == waiting("::/0")
    assert waiting("::/0") != waiting("::/1")
    assert waiting("::/0") != [ip_network("::/0")]
    assert waiting("::/0") != (ip_network("::/1"),)
    assert hash(waiting("::/0")) == hash((ip_network("::/0"),))
    assert repr(waiting()) == "()"


def test_lists_that_were_written_equally_are_equal_undecoded() -> None:
    calls: list[Any] = []
    decode = once(calls)
    one, same, other = (Kept(kept, StateError, decode) for kept in ([1, 2], [1, 2], [1, 3]))
    assert one == same
    assert calls == []
    assert one != other
    assert len(calls) == 2


def test_lists_of_different_lengths_differ_undecoded() -> None:
    calls: list[Any] = []
    one, other = (Kept(kept, StateError, once(calls)) for kept in ([1, 2], [1]))
    assert one != other
    assert one != (1,)
    assert calls == []


def test_the_same_rules_of_two_places_are_not_equal() -> None:
    """Their origins differ."""
    document = {"ingress": [{"action": "allow"}]}
    one, other = (read_policies(document, file)[0].policy for file in ("a.json", "b.json"))
    worlds = [policy_of(found) for found in (one, other)]
    assert worlds[0] != worlds[1]
    assert worlds[0] == one


def policy_of(found: Any) -> Any:
    """The policy after it was on record."""
    world = subnet("big", "web", "10.0.0.0/28")(STEPS[0](World()))
    attached = dataclasses.replace(world.vpc("big").subnet("web"), policy=found)
    world = world.with_vpc(world.vpc("big").with_subnet(attached))
    return world_from_json(json.loads(json.dumps(world_to_json(world)))).vpcs[0].subnets[0].policy


# -- how much one may keep -----------------------------------------------------------------------------------------


def many(number: int) -> list[str]:
    return ["203.0.113.0/24"] * number


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """A bound that is met sooner."""
    for module in (policies, binding):
        monkeypatch.setattr(module, "MOST_PREFIXES", 10)
    return 10


DOCUMENTS = {
    "a policy": lambda sets: {"sets": sets, "ingress": []},
    "policies": lambda sets: [{"sets": sets}, {"ingress": []}],
    "a collection": lambda sets: {"policies": [{"sets": sets}], "sets": {"one": ["::/0"]}},
}
ENVIRONMENTS = {
    "a VPC": lambda sets: {"vpcs": [{"name": "a", "cidr": "10.0.0.0/26", "sets": sets}]},
    "a policy": lambda sets: {
        "vpcs": [
            {
                "name": "a",
                "cidr": "10.0.0.0/26",
                "subnets": [{"name": "w", "cidr": "10.0.0.0/28", "type": "public", "policy": {"sets": sets}}],
            }
        ]
    },
}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_the_prefixes_in_the_sets_of_a_document_are_bounded(few: int, kind: str) -> None:
    read_policies(DOCUMENTS[kind]({"x": many(few // 2), "y": many(few // 2 - 1)}), "x.json")
    words = f"x.json#: the named sets have 1[12] prefixes; at most {few} are allowed"
    with pytest.raises(DocumentError, match=words):
        read_policies(DOCUMENTS[kind]({"x": many(few), "y": many(1)}), "x.json")


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_the_prefixes_in_the_sets_of_an_environment_are_bounded(few: int, kind: str) -> None:
    def load(path: str) -> tuple[Any, str]:
        raise KeyError(path)

    read_environment(ENVIRONMENTS[kind]({"x": many(few)}), "x.json", load)
    with pytest.raises(DocumentError, match=f"x.json#/vpcs/0: the named sets have 11 prefixes; at most {few} are"):
        read_environment(ENVIRONMENTS[kind]({"x": many(few + 1)}), "x.json", load)
    # Each VPC for itself: what `export` prints of two can be applied again.
    first, second = (ENVIRONMENTS[kind]({"x": many(few)})["vpcs"][0] for _ in range(2))
    read_environment({"vpcs": [first, second | {"name": "b"}]}, "x.json", load)


def test_the_prefixes_in_the_sets_of_a_vpc_are_bounded(session: Rehearsal, few: int, tmp_path: Path) -> None:
    """Those of all its policies, whichever documents they came from, and its own."""
    big = session.load().world.vpc("big")
    fewer = dataclasses.replace(big, sets=big.sets[:1])
    reconciler.change(session.store, session.fake, lambda found: found.world.with_vpc(fewer))
    # It has one, and one of the policy that goes.
    for number, wanted in ((few - 1, 0), (few, 2)):
        (tmp_path / "web.json").write_text(json.dumps({"subnet": "web", "sets": {"x": many(number)}}))
        before = written(session)
        found = run(session, "apply-policy", "web.json")
        assert status(found) == wanted, found.exception
        assert (written(session) == before) == bool(wanted)
    assert str(found.exception) == (
        "web.json#: VPC big would have 11 prefixes in its own sets and in the sets of its policies; at most 10 are"
        " allowed"
    )


def test_four_megabytes_of_sets_are_within_the_bounds() -> None:
    assert len(json.dumps(["203.0.113.0/24"])) * MOST_PREFIXES > 8_000_000
