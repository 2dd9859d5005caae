"""Whatever a name leads to, a command ends with a sentence: no device, pipe, hole or loop stops it or fills memory."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.story import told
from vpcctl.documents import files
from vpcctl.engine import reconciler
from vpcctl.engine.state import LOCK_FILE, STATE_FILE, Store
from vpcctl.errors import DocumentError, StateError
from vpcctl.resources.fake import FakeKernel

# Enough for every command of these tests, and far less than what a file without an end would take.
MEMORY = 1 << 30
# Only a command that hangs is ended by this.
PATIENCE = 120
POLICY = {"ingress": [{"action": "allow", "protocol": "tcp", "port": 80}]}
ENVIRONMENT = {
    "vpcs": [
        {
            "name": "one",
            "cidr": "10.0.0.0/26",
            "subnets": [{"name": "web", "cidr": "10.0.0.0/28", "type": "public", "policy": POLICY}],
        }
    ]
}
ASSERTIONS = [{"from": "one/web", "to": "internet", "service": "tcp/443", "expect": "allow"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with sound documents."""
    (tmp_path / "shop.json").write_text(json.dumps(ENVIRONMENT))
    (tmp_path / "tests.json").write_text(json.dumps(ASSERTIONS))
    return tmp_path


Ran = subprocess.CompletedProcess[str]


def vpcctl(folder: Path, *words: str, **more: Any) -> Ran:
    """The program, in a process with little memory; its state directory is `state` in `folder`."""
    command = [sys.executable, "-m", "vpcctl", "--state-dir", str(folder / "state"), *words]
    return ran(folder, command, **more)


def ran(folder: Path, command: list[str], **more: Any) -> Ran:
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        **({"stdin": subprocess.DEVNULL} | more),
    )


def refused(found: Ran, status: int, words: str) -> None:
    """The command ended with `status` and sentences, one of which has `words`."""
    assert found.returncode == status, found
    assert "Traceback" not in found.stderr
    assert words in found.stderr, found.stderr
    assert all(line.startswith("vpcctl: ") for line in found.stderr.splitlines()), found.stderr


# -- what a name can lead to ---------------------------------------------------------------------------------------


def a_fifo(place: Path) -> None:
    os.mkfifo(place)


def a_directory(place: Path) -> None:
    place.mkdir()


def a_socket(place: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    # A path of a socket is short (unix(7)).
    here = os.open(place.parent, os.O_RDONLY)
    listening.bind(f"/dev/fd/{here}/{place.name}")
    os.close(here)
    listening.close()


def a_hole(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(1 << 40)


def zeros(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(files.LARGEST_DOCUMENT)


def a_link_to(target: str) -> Callable[[Path], None]:
    return lambda place: place.symlink_to(target)


def a_loop(place: Path) -> None:
    place.symlink_to(place.name)


def a_device(place: Path) -> None:
    try:
        os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        os.close(os.open(place, os.O_RDONLY))
    except PermissionError:
        pytest.skip("no device can be made or opened here")


# What is made in the place of a document, and what is said of it.
KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (a_fifo, "a named pipe"),
    "directory": (a_directory, "a directory"),
    "socket": (a_socket, "a socket"),
    "device": (a_device, "a device"),
    "hole": (a_hole, f"it has {1 << 40} bytes; at most"),
    "zeros": (zeros, "this is not JSON"),
    "loop": (a_loop, os.strerror(errno.ELOOP)),
    "nothing": (lambda place: None, os.strerror(errno.ENOENT)),
    "zero": (a_link_to("/dev/zero"), "a device"),
    "terminal": (a_link_to("/dev/tty"), "a device"),
    "standard input": (a_link_to("/dev/stdin"), "a regular file is expected"),
    "claims no size": (a_link_to("/proc/self/status"), "this is not JSON"),
    "memory": (a_link_to("/proc/self/mem"), os.strerror(errno.EIO)),
    "latin": (lambda place: place.write_bytes(b'{"vpcs": "\xe9"}') and None, "is not text in UTF-8"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_in_the_place_of_a_document_is_refused(folder: Path, kind: str) -> None:
    make, words = KINDS[kind]
    make(folder / "odd.json")
    with silent_pipe() as pipe:
        refused(vpcctl(folder, "compile", "--vpc", "one", "--environment", "odd.json", stdin=pipe), 2, words)


@contextlib.contextmanager
def silent_pipe() -> Iterator[int]:
    """The reading end of a pipe that somebody holds and nobody writes to."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


# Each command that reads a document, and the file that takes the place of `odd.json` where another document names it.
COMMANDS = {
    "a policy": ["apply-policy", "--dry-run", "odd.json"],
    "a policy by option": ["apply-policy", "--dry-run", "--file", "odd.json"],
    "a policy to compile": ["compile", "--environment", "shop.json", "odd.json"],
    "assertions": ["verify", "--environment", "shop.json", "odd.json"],
    "an environment to plan": ["plan", "odd.json"],
    "an environment to apply": ["apply", "odd.json"],
    "an environment to ask": ["explain", "--environment", "odd.json", "one/web", "internet", "tcp"],
    "an environment for a matrix": ["matrix", "--environment", "odd.json", "--vpc", "one"],
    "a policy that an environment names": ["plan", "naming.json"],
}


@pytest.mark.parametrize("kind", ["fifo", "zero"])
@pytest.mark.parametrize("case", COMMANDS)
def test_every_command_that_reads_a_document_refuses_it(folder: Path, case: str, kind: str) -> None:
    make, words = KINDS[kind]
    make(folder / "odd.json")
    naming = json.loads(json.dumps(ENVIRONMENT))
    naming["vpcs"][0]["subnets"][0]["policy"] = "odd.json"
    (folder / "naming.json").write_text(json.dumps(naming))
    refused(vpcctl(folder, *COMMANDS[case]), 2, words)
    assert not (folder / "state").exists()


@pytest.mark.parametrize("named", ["/dev/stdin", "/dev/fd/0", "/dev/zero", "-"])
def test_a_policy_that_an_environment_names_is_no_open_file_of_the_caller(folder: Path, named: str) -> None:
    document = json.loads(json.dumps(ENVIRONMENT))
    document["vpcs"][0]["subnets"][0]["policy"] = named
    (folder / "naming.json").write_text(json.dumps(document))
    with silent_pipe() as pipe:
        words = os.strerror(errno.ENOENT) if named == "-" else "a regular file is expected"
        refused(vpcctl(folder, "plan", "naming.json", stdin=pipe), 2, words)


# -- what the caller has open --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["-", "/dev/stdin", "/dev/fd/0"])
def test_standard_input_without_an_end_is_refused(folder: Path, place: str) -> None:
    with open("/dev/zero", "rb") as endless:
        found = vpcctl(folder, "compile", "--environment", place, "--vpc", "one", stdin=endless)
    refused(found, 2, f"it has more than {files.LARGEST_DOCUMENT} bytes")


@pytest.mark.parametrize("place", ["-", "/dev/stdin", "/dev/fd/0"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
def test_a_document_may_come_by_standard_input(folder: Path, place: str, kind: str) -> None:
    text = (folder / "shop.json").read_bytes()
    if kind == "file":
        with (folder / "shop.json").open("rb") as file:
            found = vpcctl(folder, "compile", "--environment", place, "--vpc", "one", stdin=file)
    else:
        ends = socket.socketpair() if kind == "socket" else None
        reading, writing = (ends[0].detach(), ends[1].detach()) if ends else os.pipe()
        # Who writes may have set both not to wait.
        os.set_blocking(reading, False)
        os.write(writing, text)
        os.close(writing)
        found = vpcctl(folder, "compile", "--environment", place, "--vpc", "one", stdin=reading)
        os.close(reading)
    assert found.returncode == 0, found
    assert '#/vpcs/0/subnets/0/policy/ingress/0" : return' in found.stdout


def test_a_pipe_that_does_not_wait_is_waited_for(folder: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    process = subprocess.Popen(
        [sys.executable, "-m", "vpcctl", "compile", "--environment", "-", "--vpc", "one"],
        cwd=folder,
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(reading)
    text = (folder / "shop.json").read_bytes()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(text[:10])
        pipe.flush()
        pipe.write(text[10:])
    output, complaint = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "table inet" in output) == (0, True), complaint


@pytest.mark.skipif(shutil.which("bash") is None, reason="process substitution needs bash")
def test_process_substitution_works_for_every_kind_of_document(folder: Path) -> None:
    program = f"{sys.executable} -m vpcctl --state-dir state"
    for words in (
        "compile --environment <(cat shop.json) --vpc one <(cat policy.json)",
        "verify --environment <(cat shop.json) <(cat tests.json)",
        "plan <(cat shop.json)",
    ):
        (folder / "policy.json").write_text(json.dumps({"subnet": "web"} | POLICY))
        found = ran(folder, ["bash", "-c", f"{program} {words}"])
        assert found.returncode == 0, found


@pytest.mark.parametrize(
    "place", ["/dev/fd/999", "/dev/fd/99999999999999999999", "/dev/fd/x", "/dev/fd/", "\udcff", ""]
)
def test_a_name_of_nothing_is_refused(folder: Path, place: str) -> None:
    refused(vpcctl(folder, "plan", place), 2, "cannot be read (")


# -- reading itself ------------------------------------------------------------------------------------------------


def test_a_file_up_to_the_bound_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)
    assert files.read(file, 10) == b"x" * 10
    with pytest.raises(files.UnfitFileError, match="it has 10 bytes; at most 9 are allowed"):
        files.read(file, 9)


def test_a_file_that_lies_about_its_size_is_read_up_to_the_bound() -> None:
    place = "/proc/self/maps"
    assert os.stat(place).st_size == 0
    assert b"[stack]" in files.read(place, files.LARGEST_DOCUMENT)
    with pytest.raises(files.UnfitFileError, match="it has more than 100 bytes"):
        files.read(place, 100)


def test_the_owner_of_a_file_may_be_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    owner = file.stat().st_uid
    assert files.read(file, 1, owners={owner}) == b"x"
    with pytest.raises(files.UnfitFileError, match=f"it belongs to user {owner}"):
        files.read(file, 1, owners={owner + 1})


def test_a_policy_of_a_hundred_thousand_rules_fits() -> None:
    rule = {
        "action": "allow",
        "protocol": "tcp",
        "port": 65535,
        "source": "203.0.113.255/32",
        "destination": "instance:a-long-name-of-a-server",
        "description": "ticket 123456: what this is good for",
    }
    assert 100_000 * len(json.dumps([rule], indent=4)) < files.LARGEST_DOCUMENT


# -- the record ----------------------------------------------------------------------------------------------------

RECORD_KINDS = ["fifo", "directory", "socket", "device", "loop", "zero", "claims no size"]
LOCKED = """
import pathlib, sys
from vpcctl.errors import VpcctlError
from vpcctl.engine.state import Store
try:
    with Store(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])).locked() as writer:
        getattr(writer, sys.argv[3])()
except VpcctlError as error:
    print(f"vpcctl: {error}", file=sys.stderr)
    sys.exit(error.exit_status)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A record with something in it."""
    made = Store(tmp_path / "state", tmp_path / "copies")
    reconciler.change(made, FakeKernel(), lambda _: told("create its subnet web"))
    return made


def writer(store: Store, act: str) -> Ran:
    return ran(store.directory, [sys.executable, "-c", LOCKED, str(store.directory), str(store.copies), act])


def unlocked(store: Store) -> bool:
    with store.locked(patience=0):
        return True


@pytest.mark.parametrize("kind", RECORD_KINDS)
def test_whatever_is_in_the_place_of_the_record_is_refused(store: Store, kind: str) -> None:
    file = store.directory / STATE_FILE
    file.unlink()
    KINDS[kind][0](file)
    refused(vpcctl(store.directory.parent, "list-vpcs"), 6, f"cannot read {file}: ")
    refused(writer(store, "load"), 6, f"cannot read {file}: ")
    assert unlocked(store)


@pytest.mark.parametrize("kind", RECORD_KINDS)
def test_whatever_is_in_the_place_of_the_record_can_be_replaced_by_the_copy(store: Store, kind: str) -> None:
    there = store.load().world
    file = store.directory / STATE_FILE
    file.unlink()
    KINDS[kind][0](file)
    adopted = writer(store, "adopt")
    assert adopted.returncode == 0, adopted
    assert store.load().world == there


@pytest.mark.parametrize("kind", RECORD_KINDS)
def test_whatever_is_in_the_place_of_the_copy_is_none(store: Store, kind: str) -> None:
    copy = store._copy
    copy.unlink()
    (store.directory / STATE_FILE).unlink()
    KINDS[kind][0](copy)
    refused(writer(store, "adopt"), 6, f"cannot read {copy}: ")
    assert writer(store, "load").returncode == 0
    assert unlocked(store)


@pytest.mark.parametrize("kind", RECORD_KINDS)
def test_whatever_is_in_the_place_of_the_lock_is_refused(store: Store, kind: str) -> None:
    lock = store.directory / LOCK_FILE
    lock.unlink()
    KINDS[kind][0](lock)
    refused(writer(store, "load"), 6, f"cannot open {lock}: ")
    # Readers need none.
    assert store.load().world.vpcs


def test_a_record_that_is_too_large_is_neither_read_nor_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    size = max(path.stat().st_size for path in store.directory.rglob("*.json"))
    monkeypatch.setattr(files, "LARGEST_STATE", size + 10)
    before = store.load()
    kernel = FakeKernel()
    prefixes = tuple(map(ip_network, range(size // 10)))
    vpc = dataclasses.replace(before.world.vpcs[0], sets=(("many", prefixes),))
    with pytest.raises(StateError, match=f"it would have .* at most {size + 10} are allowed"):
        reconciler.change(store, kernel, lambda _: before.world.with_vpc(vpc))
    assert store.load() == before
    assert kernel.calls == []
    monkeypatch.setattr(files, "LARGEST_STATE", size - 1)
    with pytest.raises(StateError, match=f"it has {size} bytes; at most {size - 1} are allowed"):
        Store(store.directory).load_whole()


def test_a_record_of_another_user_is_refused(store: Store) -> None:
    file = store.directory / STATE_FILE
    try:
        os.chown(file, 65534, -1)
    except PermissionError:
        pytest.skip("no file can be given away here")
    with pytest.raises(StateError, match="it belongs to user 65534"):
        store.load()
    # Of whoever has the directory it is.
    os.chown(store.directory, 65534, -1)
    assert store.load().world.vpcs


# -- JSON that takes a parser apart --------------------------------------------------------------------------------

BOMBS = {
    "digits": ('{"vpcs": [' + "9" * 6000 + "]}", "a number has 6000 digits; at most 100 are allowed"),
    "a negative": ("-" + "9" * 6000, "a number has 6001 digits"),
    "an exponent": ('{"vpcs": 1e400}', "1e400 is too large a number"),
    "nesting": ("[" * 1_000_000, "nested too deeply"),
    "closed nesting": ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
    "empty objects": ("[" + "{}," * 5_000_000 + "{}]", "too many values"),
    "zeros": ("[" + "0," * 6_000_000 + "0]", "too many values"),
    "a huge key": ('{"' + "k" * 8_000_000 + '": 1}', "unknown field 'kkk"),
    "a huge text": ('{"vpcs": "' + "v" * 8_000_000 + '"}', "is not an array of VPCs"),
    "a huge word": ('{"vpcs": [{"name": "a", "cidr": "' + "1" * 8_000_000 + '"}]}', "is not a prefix"),
    "half a character": ('{"vpcs": [{"name": "\\ud800", "cidr": "10.0.0.0/8"}]}', "is not a name"),
    "half a key": ('{"\\udfff": 1}', "unknown field '\\udfff'"),
    "no text": ('{"vpcs": [{"name": "a\\u0000", "cidr": "10.0.0.0/8"}]}', "is not a name"),
    "a raw zero": ('{"vpcs": "\0"}', "this is not JSON"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_json_that_takes_a_parser_apart_is_refused_in_short_sentences(folder: Path, kind: str) -> None:
    text, words = BOMBS[kind]
    (folder / "odd.json").write_text(text)
    found = vpcctl(folder, "plan", "odd.json")
    refused(found, 2, words)
    assert len(found.stderr) < 2000


@pytest.mark.parametrize("field", ["protocol", "port", "icmp_type", "limit", "source"])
@pytest.mark.parametrize("value", ["9" * 6000, "9" * 8_000_000, "\ud800", "\0", "1-" + "9" * 6000])
def test_a_word_that_takes_a_parser_apart_is_refused(field: str, value: str) -> None:
    from vpcctl.documents.policies import read_policies

    with pytest.raises(DocumentError) as caught:
        read_policies({"ingress": [{"action": "allow", field: value}]}, "web.json")
    assert len(str(caught.value)) < 1000
