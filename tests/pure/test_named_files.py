"""An environment makes whoever applies it read the policy files that it names: nothing found in them is told.

Its author may be somebody who may not read these files, and sees the output of a pipeline.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.story import told
from vpcctl.cli import commands, main
from vpcctl.engine import reconciler
from vpcctl.engine.state import Store
from vpcctl.resources.fake import FakeKernel

WORD = "c4n4ry"
# In numbers and prefixes, where no word can stand; no version, address or limit of ours has it.
DIGITS = "7799"
SECRET = "secret.json"


def in_rule(**fields: object) -> str:
    return json.dumps({"ingress": [{"action": "allow"} | fields]})


def deep(inner: str) -> str:
    return '{"x":' * 40 + inner + "}" * 40


# Files that are wrong in every way in which a file can be, with a canary in the wrong place.
FILES: dict[str, str | bytes] = {
    "no JSON": f"root:{WORD}:{DIGITS}:0:99999:7:::\n",
    "a word": WORD,
    "JSON that breaks off": f'{{"{WORD}": "{WORD}',
    "an escape": f'{{"{WORD}": "\\{WORD}"}}',
    "two values": f'"{WORD}" {DIGITS}',
    "no number": f'{{"{WORD}": NaN}}',
    "no text": f'{{"{WORD}": "é"}}'.encode("latin-1"),
    "a number without an end": f'{{"{WORD}": {DIGITS * 2000}}}',
    "a number beyond all": f'{{"{WORD}": {DIGITS}e999}}',
    "a text": f'"{WORD}"',
    "a number": DIGITS,
    "an array of texts": f'["{WORD}"]',
    "an array of objects": f'[{{"{WORD}": 1}}]',
    "an object": f'{{"{WORD}": "{WORD}"}}',
    "a key near to one": f'{{"ingres{WORD}": []}}',
    "a key that is one but for a letter": f'{{"ingres": ["{WORD}"], "egress": []}}',
    "a key twice": f'{{"{WORD}": 1, "{WORD}": 2}}',
    "a key twice inside": f'{{"ingress": {{"{WORD}": [{{"a": 1, "a": 2}}]}}}}',
    "a number as a key twice inside": f'{{"ingress": {{"{DIGITS}": [{{"a": 1, "a": 2}}]}}}}',
    "deep inside": deep(f'"{WORD}"'),
    "deep keys": deep(f'{{"{WORD}": {{}}}}'),
    "an environment": f'{{"vpcs": [{{"name": "{WORD}"}}]}}',
    "assertions": f'[{{"from": "{WORD}", "to": "{WORD}"}}]',
    "no array": f'{{"ingress": "{WORD}"}}',
    "no rule": f'{{"ingress": ["{WORD}"]}}',
    "a rule without an action": f'{{"ingress": [{{"description": "{WORD}", "name": "{WORD}"}}]}}',
    "an action": in_rule(action=WORD),
    "an action near to one": in_rule(action="alow" + WORD),
    "a field": in_rule(**{WORD: WORD}),
    "a protocol": in_rule(protocol=WORD),
    "a protocol near to one": in_rule(protocol="tpc", description=WORD),
    "a number of a protocol": in_rule(protocol="779"),
    "a protocol as a fraction": in_rule(protocol=77.99),
    "a port": in_rule(protocol="tcp", port=int(DIGITS + "0")),
    "a port in words": in_rule(protocol="tcp", port=WORD),
    "a port without a protocol": in_rule(port=int(DIGITS)),
    "a range": in_rule(protocol="tcp", port=f"{DIGITS}-11"),
    "an icmp type": in_rule(protocol="icmp", icmp_type=WORD),
    "an icmp type without a protocol": in_rule(icmp_type=WORD),
    "a limit": in_rule(limit=WORD),
    "a limit of a denial": in_rule(action="deny", limit=f"{DIGITS}/second"),
    "a limit beyond": in_rule(limit=f"1/day burst {DIGITS}{DIGITS}9"),
    "a log": in_rule(log=WORD),
    "a description": in_rule(description={WORD: WORD}),
    "an endpoint": in_rule(source=WORD),
    "an endpoint in an array": in_rule(source=["any", WORD]),
    "a prefix with bits": in_rule(source="10.77.99.1/8"),
    "a subnet": in_rule(source=f"subnet:{WORD}"),
    "an instance": in_rule(destination=f"instance:{WORD}"),
    "a VPC": in_rule(destination=["any", f"vpc:{WORD}"]),
    "a set": in_rule(source=f"set:{WORD}"),
    "a set among others": json.dumps({"sets": {WORD: []}, "ingress": [{"action": "allow", "source": "set:x"}]}),
    "a set's prefix": json.dumps({"sets": {WORD: ["10.77.99.1/8"]}}),
    "a set's address": json.dumps({"sets": {WORD: ["10.0.0.0/8", WORD]}}),
    "a set's name": json.dumps({"sets": {f"{WORD} {WORD}": []}}),
    "a set that is none": json.dumps({"sets": {WORD: WORD}}),
    "sets that are none": json.dumps({"sets": [WORD]}),
    "sets of a collection": json.dumps({"sets": {"sets": [WORD], DIGITS: ["10.77.99.1/8"]}, "policies": [{}]}),
    "a default": json.dumps({"default": {WORD: "allow", "ingress": WORD}}),
    "a subnet of its own": json.dumps({"subnet": f"{WORD}/{WORD}"}),
    "two policies": json.dumps([{"description": WORD}, {"description": WORD}]),
    "beside policies": json.dumps({"policies": [], WORD: WORD}),
}
COMMANDS = [
    "plan env.json",
    "plan --json env.json",
    "apply env.json",
    "apply --prune --yes env.json",
    "compile --environment env.json --vpc shop",
    "verify --environment env.json tests.json",
    "verify --json --environment env.json tests.json",
    "explain --json --environment env.json shop/web internet tcp/80",
    "matrix --json --environment env.json --vpc shop",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a state directory in which something is."""
    reconciler.change(Store(tmp_path / "state"), FakeKernel(), lambda _: told("create its subnet web"))
    assertion = {"from": "shop/web", "to": "internet", "service": "tcp/443", "expect": "allow"}
    (tmp_path / "tests.json").write_text(json.dumps([assertion]))
    monkeypatch.setitem(commands.context_settings, "obj", FakeKernel)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment(folder: Path, policy: object, **more: object) -> None:
    """Write `env.json`, a subnet of which has the given policy."""
    subnet = {"name": "web", "cidr": "10.1.0.0/28", "type": "public", "policy": policy}
    document = {"vpcs": [{"name": "shop", "cidr": "10.1.0.0/26", "subnets": [subnet]}]} | more
    (folder / "env.json").write_text(json.dumps(document))


def secret(folder: Path, content: str | bytes) -> None:
    (folder / SECRET).write_bytes(content.encode() if isinstance(content, str) else content)


def output(capsys: pytest.CaptureFixture[str], words: str) -> tuple[int, str]:
    """The exit status of a command, and all that it says."""
    with pytest.raises(SystemExit) as caught:
        main(["-v", "--state-dir", "state", *words.split()])
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out + said.err


def canaries(text: str) -> list[str]:
    return [canary for canary in (WORD, DIGITS, "77.99", "779") if canary in text]


@pytest.mark.parametrize("case", FILES)
def test_nothing_that_stands_in_a_named_file_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    secret(folder, FILES[case])
    environment(folder, SECRET)
    for words in COMMANDS:
        status, text = output(capsys, words)
        assert status == 2, (words, text)
        assert not canaries(text), (words, text)
        assert f"{SECRET}#" in text or f"{SECRET}: is not text in UTF-8" in text


@pytest.mark.parametrize("case", FILES)
def test_nothing_is_told_where_something_else_is_wrong_too(
    folder: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """Then the document is read in another way, and all problems stand beside each other."""
    secret(folder, FILES[case])
    for more in ({"peerings": [["shop", "shop"]]}, {"peering": []}):
        environment(folder, SECRET, **more)
        status, text = output(capsys, "plan env.json")
        assert status == 2
        assert "env.json#/peering" in text
        assert not canaries(text), text


# Told by the reading itself, with no place and no value, to everybody.
SILENT = {"no JSON", "a word", "JSON that breaks off", "an escape", "two values", "no text"}
# Wrong only where one policy is expected, or where nothing of this name is.
RIGHT = {"two policies", "a number without an end", "no number", "an environment", "deep inside", "deep keys"}


@pytest.mark.parametrize("case", sorted(FILES.keys() - SILENT - RIGHT))
def test_the_control_whoever_names_the_file_himself_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    secret(folder, FILES[case])
    status, text = output(capsys, f"apply-policy --dry-run --vpc one --subnet web {SECRET}")
    assert status == 2
    marks = (
        *canaries(text),
        "unknown field",
        "is not",
        "is here twice",
        "missing",
        "names nothing",
        "a limit goes with",
    )
    assert [mark for mark in marks if mark in text], text
    assert "is not shown" not in text


def test_what_stands_in_the_environment_itself_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment(folder, json.loads(in_rule(action=WORD)))
    assert f'env.json#/vpcs/0/subnets/0/policy/ingress/0/action: "{WORD}" is not' in output(capsys, "plan env.json")[1]
    environment(folder, json.loads(in_rule(source=f"set:{WORD}")))
    assert f"set:{WORD} names nothing" in output(capsys, "plan env.json")[1]


def test_place_and_expectation_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret(folder, json.dumps({"sets": {WORD: ["10.77.99.1/8"]}, "ingress": [{"action": "allow", "port": 80}]}))
    environment(folder, SECRET)
    _, text = output(capsys, "plan env.json")
    assert text.splitlines() == [
        f"vpcctl: {SECRET}#/sets/…/0: a prefix such as 10.0.1.0/24 is expected, without bits set beyond its length",
        f"vpcctl: {SECRET}#/ingress/0/port: a port or a range of them (1–65535) is expected, with protocol tcp, udp or"
        " sctp",
        f"vpcctl: {SECRET}#: its content is not shown, because env.json names it; to see what was found, use"
        f" `vpcctl apply-policy --dry-run {SECRET}`",
    ]


def test_a_sound_file_that_is_named_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret(folder, in_rule(protocol="tcp", port=80))
    environment(folder, SECRET)
    status, text = output(capsys, "plan env.json")
    assert status == 0
    assert f"policy of shop/web: {SECRET}" in text


def test_the_words_that_every_reader_expects_are_known() -> None:
    from vpcctl.documents import fields

    readers = {value for name, value in vars(fields).items() if name.startswith("parse_")}
    assert readers == fields.EXPECTED.keys()
