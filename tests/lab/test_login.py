"""`exec --user` is a login of its own: nothing of root's terminal, keys, environment or power; its terminal works.

Root's shell is a bash on a pseudo-terminal, at which the test sits.  What must not reach that shell is judged by what
the shell does: an attack types a command, then the test types another one, and looks for the output of both.  Each
attack has a control that runs as the same user, from the same shell, by setpriv(1).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machine import attempt, run_all, write
from tests.lab.traffic import eventually
from tests.nobody import BECOME, PYTHON
from vpcctl.kernel import login
from vpcctl.lab import Lab

BUILD = (
    "create-vpc --name shop --cidr 10.0.0.0/16",
    "create-subnet --vpc shop --name web --cidr 10.0.1.0/24 --type public",
    "create-subnet --vpc shop --name db --cidr 10.0.2.0/24 --type private",
)
NOBODY = 65534
EXEC = ["exec", "--vpc", "shop", "--subnet", "web"]
LOGIN = [sys.executable, "-m", "vpcctl", *EXEC, "--user", "nobody", "--"]
CONTROL = [*BECOME, "--"]
PROMPT = "root# "
# How root may have redirected the command; in the last two no stream is a terminal.
FORMS = ["", "</dev/null", ">/dev/null", "2>/dev/null", "| cat", "</etc/hostname >/run/out 2>&1", "<&- >&- 2>&-"]

INJECT = """
import fcntl, glob, os, termios
for place in [0, 1, 2, "/dev/tty", *glob.glob("/dev/pts/*"), *glob.glob("/proc/[0-9]*/fd/*")]:
    try:
        opened = place if isinstance(place, int) else os.open(place, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
        for byte in b"echo in''jected\\n":
            fcntl.ioctl(opened, termios.TIOCSTI, bytes([byte]))
    except OSError:
        pass
"""
LOOK = """
import json, os, sys
devices = [os.fstat(one).st_rdev for one in range(3) if os.path.exists(f"/proc/self/fd/{one}")]
_, _, _, session, terminal, *_ = open("/proc/self/stat").read().rpartition(")")[2].split()
others = sorted(int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2)
with open("/run/open/seen", "w") as file:
    json.dump({"devices": devices, "session": int(session), "terminal": int(terminal), "others": len(others)}, file)
"""


@pytest.fixture(scope="module")
def machine(module_lab: Lab) -> Lab:
    """Two instances and a place where everybody may write; tests change nothing of them."""
    if module_lab.run([*CONTROL, "true"], check=False).returncode:
        pytest.skip("no user except root exists here")
    run_all(module_lab, BUILD)
    module_lab.run(["install", "-d", "-m", "777", "/run/open"])
    for name, program in (("inject", INJECT), ("look", LOOK)):
        write(module_lab, f"open/{name}", program)
    return module_lab


@pytest.fixture(scope="module")
def python(machine: Lab) -> str:
    """A Python that nobody may run; env(1) stands in between because setpriv still looks for programs as root."""
    for candidate in (PYTHON, "/usr/bin/python3"):
        if not machine.run([*CONTROL, "env", candidate, "-I", "-c", "import ctypes, json"], check=False).returncode:
            return candidate
    pytest.skip(f"nobody may not run {PYTHON}")


class Terminal:
    """A terminal at which the test sits, and a command of the lab's that it controls."""

    def __init__(self, lab: Lab, command: list[str]):
        self.master, slave = pty.openpty()
        self.size(24, 80)
        self.process = lab.popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={"TERM": "dumb", "PS1": PROMPT},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.slave = slave
        self.seen = ""

    def size(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.master, (rows, columns))

    def type(self, words: str, until: str) -> str:
        """Type, and read until something appears that matches; what was read."""
        self.seen = ""
        os.write(self.master, words.encode())

        def appeared() -> bool:
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            return re.search(until, self.seen, re.DOTALL) is not None

        assert eventually(appeared), f"{until!r} did not appear in {self.seen!r}"
        return self.seen

    def run(self, *command: str, form: str = "") -> str:
        """Have the shell run a command, and wait for its prompt; what was printed in between."""
        line = f"{shlex.join(command)} {form}; echo st=$?"
        write(self.lab, "line", line)
        return self.type(". /run/line\n", rf"st=\d+\r\n{PROMPT}").partition("\r\n")[2]

    def settings(self) -> list:
        return termios.tcgetattr(self.slave)

    def close(self) -> None:
        for descriptor in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(descriptor)


class Shell(Terminal):
    """Root's shell."""

    def __init__(self, lab: Lab):
        super().__init__(lab, ["bash", "--norc", "--noprofile", "--noediting", "-i"])
        self.lab = lab
        self.type("", PROMPT)
        self.type("PS1=$PS1; set -m; unset HISTFILE\n", rf"HISTFILE\r\n{PROMPT}")


@pytest.fixture
def shell(machine: Lab) -> Iterator[Shell]:
    shell = Shell(machine)
    yield shell
    shell.close()


def inside(lab: Lab, *command: str, user: str = "nobody", **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command in the instance web as a user."""
    return attempt(lab, *EXEC, "--user", user, "--", *command, **options)


def read(lab: Lab, file: str) -> str:
    return lab.run(["cat", file]).stdout


# --- root's terminal --------------------------------------------------------------------------------------------------


def injected(shell: Shell, python: str, prefix: list[str], form: str) -> bool:
    """Does an attack that `prefix` runs make root's shell run its command?"""
    seen = shell.run(*prefix, python, "-I", "/run/open/inject", form=form)
    seen += shell.type("echo ca''nary\n", rf"canary\r\n.*{PROMPT}")
    return "injected" in seen


@pytest.mark.parametrize("form", FORMS)
def test_a_users_command_types_nothing_into_roots_shell(shell: Shell, python: str, form: str) -> None:
    switch = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if switch.exists() and switch.read_text().strip() == "0":
        pytest.skip("dev.tty.legacy_tiocsti = 0: nobody but root may type into a terminal here")
    assert not injected(shell, python, LOGIN, form)
    assert injected(shell, python, CONTROL, form), "without us it is possible"


def looked(shell: Shell, python: str, prefix: list[str], form: str) -> dict:
    shell.lab.run(["rm", "-f", "/run/open/seen"])
    shell.run(*prefix, python, "-I", "/run/open/look", form=form)
    return json.loads(read(shell.lab, "/run/open/seen"))


@pytest.mark.parametrize("form", FORMS)
def test_a_users_command_has_no_descriptor_and_no_session_of_roots_terminal(
    shell: Shell, python: str, form: str
) -> None:
    device = os.fstat(shell.slave).st_rdev
    found, control = looked(shell, python, LOGIN, form), looked(shell, python, CONTROL, form)
    assert control["terminal"] != 0
    assert device in control["devices"] or form in FORMS[-2:]
    assert found["terminal"] != control["terminal"]
    assert (found["terminal"] == 0) == (form in FORMS[-2:])
    assert device not in found["devices"]
    assert found["session"] != control["session"]
    assert found["others"] <= 1, "the directory that is being listed, unless it took the place of a closed stream"


def test_a_users_command_in_a_service_needs_no_other_process(machine: Lab) -> None:
    # Without a terminal it is vpcctl itself that becomes the command: a service's main process stays what it is.
    start = "import os, sys; os.setsid(); print(os.getpid(), flush=True); os.execvp(sys.argv[1], sys.argv[1:])"
    started, *found = machine.python(start, *LOGIN, "sh", "-c", "ps -o pid=,sid=,tty= -p $$").stdout.split()
    assert found == [started, started, "?"]


def test_the_pseudo_terminal_is_the_users(shell: Shell) -> None:
    assert "nobody 600" in shell.run(*LOGIN, "sh", "-c", 'stat -c "%U %a" "$(tty)"')


# --- root's keys ------------------------------------------------------------------------------------------------------

WITH_KEY = """
import ctypes, errno, json, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
keyctl, add_key, *command = json.load(sys.stdin)
libc.syscall(keyctl, 1, None)
key = libc.syscall(add_key, b"user", b"vpcctl-canary", b"secret", 6, -3)
if key < 0:
    print("refused" if ctypes.get_errno() == errno.ENOSYS else "failed")
else:
    sys.exit(subprocess.run([*command, str(key)]).returncode)
"""
# The key by its number, which a process may if it possesses it; then what its own session keyring is and holds.
READ_KEY = """
import ctypes, sys
libc = ctypes.CDLL(None)
keyctl, key = map(int, sys.argv[1:])
buffer = ctypes.create_string_buffer(256)
print("read", buffer.raw[:size].decode() if (size := libc.syscall(keyctl, 11, key, buffer, 256)) >= 0 else "")
libc.syscall(keyctl, 6, -3, buffer, 256)
print("owner", buffer.value.decode().split(";")[1])
print("holds", libc.syscall(keyctl, 11, -3, buffer, 256))
"""


def test_a_users_command_reads_no_key_of_roots_session(machine: Lab, python: str) -> None:
    number = login._SYS_KEYCTL[os.uname().machine]

    def found(prefix: list[str]) -> str:
        words = [number, number - 2, *prefix, python, "-I", "-c", READ_KEY, str(number)]
        return machine.python(WITH_KEY, input=json.dumps(words)).stdout

    control = found(CONTROL)
    if control == "refused\n":
        pytest.skip("this kernel has no keys")
    assert "read secret\n" in control
    assert "owner 0\n" in control
    assert found(LOGIN) == f"read \nowner {NOBODY}\nholds 0\n"


def test_a_kernel_that_refuses_a_keyring_is_an_error_and_one_without_keys_is_not(machine: Lab) -> None:
    def run(error: str) -> subprocess.CompletedProcess[str]:
        strace = ["strace", "-f", "-qq", "-o/dev/null", "-etrace=keyctl", f"-einject=keyctl:error={error}"]
        return machine.run([*strace, *LOGIN, "echo", "runs"], check=False)

    refused = run("EPERM")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert "session keyring" in refused.stderr
    assert run("ENOSYS").stdout == "runs\n"


# --- root's environment and powers ------------------------------------------------------------------------------------


def test_a_users_environment_is_a_fresh_one(machine: Lab) -> None:
    kept = {"TERM": "vt100", "COLORTERM": "truecolor", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    names = "SECRET TOKEN LC_SECRET LD_LIBRARY_PATH VPCCTL_SECRET SUDO_USER SUDO_COMMAND XDG_RUNTIME_DIR BASH_ENV ENV"
    words = ["--env", "A=b=c", "--env", "EMPTY=", "--env", "TZ=Europe/Oslo", "--user", "nobody", "--", "env", "-0"]
    result = attempt(machine, *EXEC, *words, env=dict.fromkeys(names.split(), "/canary") | kept | {"MAIL": "/root"})
    found = dict(line.split("=", 1) for line in result.stdout.rstrip("\0").split("\0"))
    kept |= {"TZ": "Europe/Oslo", "A": "b=c", "EMPTY": ""}
    inherited = {name: value for name, value in found.items() if name in login.KEPT}
    assert inherited.items() <= (os.environ | kept).items()
    assert kept.items() <= found.items()
    account = login.find("nobody")
    assert {name: value for name, value in found.items() if name not in kept and name not in inherited} == {
        "HOME": account.pw_dir,
        "USER": "nobody",
        "LOGNAME": "nobody",
        "SHELL": account.pw_shell,
        "MAIL": "/var/mail/nobody",
        "PATH": login.PATH,
    }


def test_variables_are_added_to_roots_environment_too(machine: Lab) -> None:
    words = ["--env", "A=1", "--", "sh", "-c", "echo $A $CANARY"]
    assert attempt(machine, *EXEC, *words, env={"CANARY": "alive"}).stdout == "1 alive\n"


def test_no_capability_survives_whatever_root_had_set_up(machine: Lab) -> None:
    power = ["--inh-caps=+net_admin,+sys_admin", "--ambient-caps=+net_admin,+sys_admin"]
    words = ["setpriv", *power, "--securebits=+no_setuid_fixup"]
    look = ["grep", "-E", "Cap(Inh|Prm|Eff|Amb)", "/proc/self/status"]
    control = machine.run([*words, *CONTROL, *look], check=False)
    if control.returncode:
        pytest.skip("root may not set securebits here")
    assert int(control.stdout.split()[-1], 16), "ambient capabilities survive without us"
    assert {int(value, 16) for value in machine.run([*words, *LOGIN, *look]).stdout.split()[1::2]} == {0}


def test_no_descriptor_survives_however_high(machine: Lab) -> None:
    # One that was opened before the limit became lower than its number.
    script = "exec 300</etc/passwd && ulimit -Sn 200 && {} ls /proc/self/fd"
    assert "300" in machine.run(["bash", "-c", script.format("")]).stdout
    for prefix in (LOGIN, [sys.executable, "-m", "vpcctl", *EXEC, "--"]):
        assert machine.run(["bash", "-c", script.format(shlex.join(prefix))]).stdout.split() == ["0", "1", "2", "3"]


def test_the_mask_for_new_files_becomes_no_laxer_than_usual_and_stays_strict(machine: Lab) -> None:
    for mask, found in (("000", "0022"), ("027", "0027"), ("077", "0077")):
        assert machine.run(["sh", "-c", f"umask {mask}; {shlex.join(LOGIN)} sh -c umask"]).stdout == f"{found}\n"


def test_a_users_command_stays_where_it_may_come_by_itself(machine: Lab) -> None:
    machine.run(
        ["sh", "-c", "install -d -m 700 /run/closed; install -d -m 755 /run/closed/open; echo x >/run/closed/open/f"]
    )
    for place, found in (("/run/open", "/run/open\n"), ("/run/closed", "/\n"), ("/run/closed/open", "/\n")):
        assert inside(machine, "pwd", cwd=place).stdout == found
    assert machine.run([*CONTROL, "cat", "f"], cwd="/run/closed/open").stdout == "x\n", "a way in without us"
    assert inside(machine, "cat", "f", cwd="/run/closed/open").returncode == 1


def test_a_users_command_is_not_spared_when_memory_runs_out(machine: Lab) -> None:
    script = "echo {} >/proc/self/oom_score_adj && exec {} cat /proc/self/oom_score_adj"
    assert machine.run(["sh", "-c", script.format(300, shlex.join(LOGIN))]).stdout == "300\n"
    if machine.run(["sh", "-c", script.format(-500, "")], check=False).stdout != "-500\n":
        pytest.skip("root may not protect a process here")
    assert machine.run(["sh", "-c", script.format(-500, shlex.join(LOGIN))]).stdout == "0\n"


# --- One user in two places -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sleeping(lab: Lab, *prefix: str) -> Iterator[str]:
    """The number of a process that `prefix` starts."""
    process = lab.popen([*prefix, "sh", "-c", "echo $$; exec sleep 1000"])
    assert process.stdout
    assert process.stderr
    number = process.stdout.readline().strip()
    assert number, process.stderr.read()
    try:
        yield number
    finally:
        lab.run(["kill", "-KILL", number])
        process.communicate()


IN_DB = (sys.executable, "-m", "vpcctl", "exec", "--vpc", "shop", "--subnet", "db", "--user", "nobody", "--")


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        (IN_DB, r"in namespace shop-db \(PID \d+\)"),
        (CONTROL, r"on the host \(PID \d+\)"),
        (["unshare", "--net", *CONTROL], r"in an unnamed namespace \(PID \d+\)"),
        (LOGIN, None),
        (["unshare", "--net"], None),
    ],
    ids=["another instance", "the host", "a foreign namespace", "the same instance", "root"],
)
def test_one_user_in_two_places_is_a_warning(machine: Lab, prefix: list[str], said: str | None) -> None:
    with sleeping(machine, *prefix):
        result = inside(machine, "echo", "runs")
        assert result.stdout == "runs\n"
        if said:
            assert re.search(f"warning: user nobody .*{said}.*one user for each instance", result.stderr)
        else:
            assert result.stderr == ""
        assert attempt(machine, "-q", *EXEC, "--user", "nobody", "--", "true").stderr == ""
    assert inside(machine, "true").stderr == ""


TAKE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
taken = libc.syscall(438, os.pidfd_open(int(sys.argv[1])), 0, 0)
print(os.readlink(f"/proc/self/fd/{taken}") if taken >= 0 else os.strerror(ctypes.get_errno()))
"""


def test_what_the_warning_says_is_so(machine: Lab, python: str) -> None:
    # If this fails the kernel has become better, and the warning can go.
    if Path("/proc/sys/kernel/yama/ptrace_scope").exists():
        pytest.skip("Yama may forbid it here")
    with sleeping(machine, *IN_DB) as victim:
        assert inside(machine, python, "-I", "-c", TAKE, victim).stdout.startswith("pipe:")
        other = machine.run(["setpriv", "--reuid=65533", "--clear-groups", python, "-I", "-c", TAKE, victim])
        assert other.stdout == "Operation not permitted\n"


# --- A terminal that works --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -INT $$", 130), ("kill -KILL $$", 137),
     ("no-such-program", 127)],
)  # fmt: skip
@pytest.mark.parametrize("form", ["", "</dev/null >/dev/null 2>&1"])
def test_the_exit_status_is_the_commands_and_the_terminal_is_as_before(
    shell: Shell, command: str, status: int, form: str
) -> None:
    before = shell.settings()
    assert f"st={status}\r\n" in shell.run(*LOGIN, "sh", "-c", command, form=form)
    assert shell.settings() == before


def test_a_command_that_is_not_there_is_told_on_the_terminal(shell: Shell) -> None:
    seen = shell.run(*LOGIN, "no-such-program")
    assert "no-such-program" in seen
    assert "st=127" in seen


def test_the_window_has_the_size_of_the_one_outside_and_follows_it(shell: Shell) -> None:
    shell.size(33, 101)
    program = "trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.1; done"
    write(shell.lab, "line", shlex.join([*LOGIN, "bash", "-c", program]))
    shell.type(". /run/line\n", r"33 101\r\n")
    shell.size(44, 99)
    shell.type("", rf"44 99\r\n{PROMPT}")


def test_large_output_arrives_whole(machine: Lab) -> None:
    number = 2_500_000
    terminal = Terminal(machine, [*LOGIN, "seq", str(number)])
    os.close(terminal.slave)
    received, size, end = hashlib.sha256(), 0, time.monotonic() + 120
    with contextlib.suppress(OSError):  # EIO: the last one has closed it
        while select.select([terminal.master], [], [], max(0, end - time.monotonic()))[0]:
            chunk = os.read(terminal.master, 65536)
            received.update(chunk)
            size += len(chunk)
    expected = "".join(f"{one}\r\n" for one in range(1, number + 1)).encode()
    assert (size, received.hexdigest()) == (len(expected), hashlib.sha256(expected).hexdigest())
    assert terminal.process.wait(20) == 0
    terminal.close()


def test_large_input_arrives_whole_whatever_the_output_is(shell: Shell) -> None:
    data = "".join(f"{one}\n" for one in range(1_000_000)).encode()
    shell.lab.run(["sh", "-c", "seq 0 999999 >/run/open/input"])
    for form in ("</run/open/input", "</run/open/input 2>/dev/null"):
        assert hashlib.sha256(data).hexdigest() in shell.run(*LOGIN, "sha256sum", form=form)
    write(shell.lab, "line", f"seq 0 999999 | {shlex.join([*LOGIN, 'cat'])} | sha256sum")
    assert hashlib.sha256(data).hexdigest() in shell.type(". /run/line\n", rf"-\r\n{PROMPT}")


def test_the_end_of_a_pipe_reaches_both_sides(shell: Shell) -> None:
    # The reader has gone: the command ends although vpcctl would wait.  The writer has: it reads an end.
    write(shell.lab, "line", f"{shlex.join([*LOGIN, 'yes'])} | head -n 1; echo a | {shlex.join([*LOGIN, 'cat'])}")
    shell.type(". /run/line\n", rf"y\r\na\r+\n{PROMPT}")
    # And what the command closes is closed, though it goes on.
    command = shlex.join([*LOGIN, "sh", "-c", "exec <&-; read x </dev/tty; echo $x"])
    write(shell.lab, "line", f"(yes; echo broken >/dev/tty) | {command}")
    # Whether the terminal is lent already when that is written, nobody knows.
    shell.type(". /run/line\n", r"broken\r*\n")
    shell.type("over\n", rf"over\r\nover\r\n.*{PROMPT}")


def test_what_is_typed_is_the_commands_up_to_its_end(shell: Shell) -> None:
    write(shell.lab, "line", f"{shlex.join([*LOGIN, 'sh', '-c', 'echo up; cat; echo over'])}; echo st=$?")
    shell.type(". /run/line\n", "up\r\n")
    shell.type("words\n", r"words\r\nwords\r\n")
    shell.type("\x04", rf"over\r\nst=0\r\n{PROMPT}")


def test_the_keyboard_is_left_to_others_until_the_command_asks(shell: Shell) -> None:
    # The second command reads the terminal while the first one runs; then the first one asks for a line itself.
    first = "echo go; read x </run/open/pipe; read y </dev/tty; echo first $y >/dev/tty"
    command = shlex.join([*LOGIN, "bash", "-c", first])
    shell.lab.run(["sh", "-c", "mkfifo /run/open/pipe; chmod 666 /run/open/pipe"])
    second = "read go; echo ready; read x </dev/tty; echo second $x; echo on >/run/open/pipe; cat"
    write(shell.lab, "line", f"{command} | bash -c {shlex.quote(second)}")
    shell.type(". /run/line\n", "ready\r\n")
    shell.type("one\n", "second one\r\n")
    assert eventually(lambda: not shell.settings()[3] & termios.ICANON), "the terminal is lent now"
    shell.type("two\n", rf"first two\r+\n{PROMPT}")


def resume(shell: Shell) -> None:
    """Continue the last job, and wait until it has the keyboard."""
    shell.type("fg\n", "vpcctl")
    assert eventually(lambda: not shell.settings()[3] & termios.ICANON)


def test_a_users_command_is_a_job_of_the_shells(shell: Shell) -> None:
    before = shell.settings()
    # One process: a shell that is stopped while it starts another one by vfork(2) does not stop.
    write(shell.lab, "line", f"{shlex.join([*LOGIN, 'sh', '-c', 'echo up; exec cat'])}")
    shell.type(". /run/line\n", "up\r\n")
    shell.type("\x1a", rf"Stopped.*{PROMPT}")
    # The shell changes settings for itself; a new one would do as well.
    assert shell.settings()[3] & termios.ICANON
    resume(shell)
    shell.type("again\n", r"again\r\n.*again\r\n")
    shell.type("\x1a", rf"Stopped.*{PROMPT}")
    shell.type("bg\n", rf"Stopped.*{PROMPT}|{PROMPT}")  # it asks for the keyboard, and has to wait
    assert eventually(lambda: "Stopped" in shell.type("jobs\n", rf"(Running|Stopped).*{PROMPT}"))
    resume(shell)
    shell.type("more\n", r"more\r\n.*more\r\n")
    shell.type("\x03", PROMPT)
    shell.type("echo st=$?\n", "st=130")
    assert shell.settings() == before
    assert shell.lab.run(["pgrep", "-u", str(NOBODY)], check=False).stdout == ""


def test_a_shell_of_the_users_has_jobs_of_its_own(shell: Shell) -> None:
    write(shell.lab, "line", shlex.join([*LOGIN, "bash", "--norc", "--noprofile", "--noediting", "-i"]))
    shell.type(". /run/line\n", r"\$ $")
    shell.type("sh -c 'echo u''p; exec cat'\n", "up\r\n")
    shell.type("\x1a", r"Stopped.*\$ $")
    shell.type("fg\n", "exec cat")
    shell.type("words\n", r"words\r\n.*words\r\n")
    shell.type("\x03", r"\$ $")
    shell.type("exit 3\n", PROMPT)
    shell.type("echo st=$?\n", "st=3")


@pytest.mark.parametrize("form", ["", "</dev/null >/run/out 2>&1"])
@pytest.mark.parametrize("number", ["TERM", "HUP", "INT", "USR1"])
def test_signals_reach_the_command_and_the_terminal_is_given_back(shell: Shell, number: str, form: str) -> None:
    before = shell.settings()
    program = f"trap 'exit 41' {number}; echo up >/run/open/up; while :; do sleep 0.05; done"
    shell.lab.run(["rm", "-f", "/run/open/up"])
    write(shell.lab, "line", f"{shlex.join([*LOGIN, 'bash', '-c', program])} {form}; echo st=$?")
    os.write(shell.master, b". /run/line\n")
    assert eventually(lambda: shell.lab.run(["test", "-e", "/run/open/up"], check=False).returncode == 0)
    shell.lab.run(["sh", "-c", f"kill -{number} $(pgrep -o -u 0 -f 'vpcctl.*[-]-user nobody')"])
    shell.type("", rf"st=41\r\n{PROMPT}")
    assert shell.settings() == before


@pytest.mark.parametrize("form", ["", "</dev/null >/run/out 2>&1"])
def test_the_command_does_not_outlive_vpcctl(shell: Shell, form: str) -> None:
    program = "trap '' TERM HUP INT; echo up >/run/open/up; while :; do sleep 0.05; done"
    shell.lab.run(["rm", "-f", "/run/open/up"])
    write(shell.lab, "line", f"{shlex.join([*LOGIN, 'bash', '-c', program])} {form}; echo st=$?")
    os.write(shell.master, b". /run/line\n")
    assert eventually(lambda: shell.lab.run(["test", "-e", "/run/open/up"], check=False).returncode == 0)
    shell.lab.run(["sh", "-c", "kill -KILL $(pgrep -o -u 0 -f 'vpcctl.*[-]-user nobody')"])
    assert eventually(lambda: shell.lab.run(["pgrep", "-u", str(NOBODY)], check=False).returncode == 1)


def test_a_terminal_that_goes_takes_the_command_with_it(shell: Shell) -> None:
    write(shell.lab, "line", shlex.join([*LOGIN, "sh", "-c", "echo up; exec sleep 1000"]))
    shell.type(". /run/line\n", "up\r\n")
    shell.close()
    assert eventually(lambda: shell.lab.run(["pgrep", "-f", "[-]-user nobody"], check=False).returncode == 1)
    assert shell.lab.run(["pgrep", "-u", str(NOBODY)], check=False).returncode == 1


def test_what_a_command_leaves_behind_holds_nobody_up(shell: Shell) -> None:
    assert "st=3\r\n" in shell.run(*LOGIN, "sh", "-c", "setsid yes & sleep 0.1; exit 3")
    assert eventually(lambda: shell.lab.run(["pgrep", "-u", str(NOBODY)], check=False).returncode == 1)


def test_a_terminal_that_takes_nothing_does_not_keep_vpcctl_from_ending(machine: Lab) -> None:
    terminal = Terminal(machine, [*LOGIN, "yes"])
    find = ["pgrep", "-o", "-u", "0", "-f", "[-]-user nobody"]
    full = "while read a b c; do [ $a = wchar: ] && echo $b; done </proc/$(pgrep -u nobody yes)/io; true"

    def stopped() -> bool:
        before = machine.run(["sh", "-c", full]).stdout
        time.sleep(0.1)
        return before != "" and machine.run(["sh", "-c", full]).stdout == before

    # It has stopped printing when nobody reads.
    assert eventually(stopped, 60)
    machine.run(["sh", "-c", f"kill -TERM $({shlex.join(find)})"])
    assert terminal.process.wait(20) == 143
    terminal.close()


# --- Descriptors on request -------------------------------------------------------------------------------------------

# Runs a command with these descriptors open; each file contains the number of its descriptor.
WITH_OPEN = """
import os, sys
numbers, command = map(int, sys.argv[1].split(",")), sys.argv[2:]
for number in numbers:
    there = os.open(f"/run/open/file-{number}", os.O_RDWR | os.O_CREAT)
    os.write(there, str(number).encode())
    os.lseek(there, 0, 0)
    if there != number:
        os.dup2(there, number)
        os.close(there)
    os.set_inheritable(number, True)
os.execvp(command[0], command)
"""
# Gives a command both ends of a pipe as descriptors 3 and 4, and reports when it has closed them.
PIPE = """
import os, subprocess, sys
ends = os.pipe()
command = subprocess.Popen(sys.argv[1:], pass_fds=ends)
os.close(ends[1])
os.read(ends[0], 1)
print("broken", flush=True)
command.wait()
"""
LIST = 'for one in 3 4 5 9; do eval "cat <&$one" 2>/dev/null && echo; done; true'


@pytest.mark.parametrize("user", [[], ["--user", "nobody"]], ids=["root", "nobody"])
@pytest.mark.parametrize(("count", "kept"), [([], ""), (["--preserve-fds", "2"], "34")])
def test_descriptors_are_kept_on_request_and_no_others(
    machine: Lab, user: list[str], count: list[str], kept: str
) -> None:
    words = [sys.executable, "-m", "vpcctl", *EXEC, *user, *count, "--", "bash", "-c", LIST]
    assert "".join(machine.python(WITH_OPEN, "3,4,5,9", *words).stdout.split()) == kept


def test_a_descriptor_that_the_caller_did_not_open_is_not_one_of_ours(machine: Lab) -> None:
    words = [sys.executable, "-m", "vpcctl", *EXEC, "--preserve-fds", "3", "--", "true"]
    found = machine.run([sys.executable, "-c", WITH_OPEN, "3,5", *words], check=False)
    assert found.returncode == 4
    assert "descriptor 4 is not open; --preserve-fds 3 passes on descriptors 3 to 5" in found.stderr


def test_a_users_command_gets_no_terminal_as_a_further_descriptor(shell: Shell, machine: Lab) -> None:
    words = [*LOGIN[: LOGIN.index("--")], "--preserve-fds", "1", "--", "true"]
    assert "descriptor 3 is a terminal" in shell.run(*words, form="3>/dev/tty")
    assert "st=0" in shell.run(*words, form="3</etc/hostname")


def test_a_pipe_that_was_passed_on_breaks_when_the_command_closes_it(shell: Shell) -> None:
    """Neither the relay nor the monitor of the session keeps it open."""
    words = [*LOGIN[: LOGIN.index("--")], "--preserve-fds", "2", "--"]
    seen = shell.run(sys.executable, "-c", PIPE, *words, "sh", "-c", "exec 3>&- 4>&-; sleep 2; echo later")
    assert seen.index("broken") < seen.index("later")


def test_a_login_has_the_users_groups_and_names(machine: Lab) -> None:
    write(machine, "group", Path("/etc/group").read_text() + "vpctest:x:64123:nobody\n")
    words = [*LOGIN, "sh", "-c", "id -Gn; echo $LOGNAME $USER"]
    script = f"mount --bind /run/group /etc/group; exec {shlex.join(words)}"
    found = machine.run(["unshare", "-m", "sh", "-c", script]).stdout.split()
    assert found == ["nogroup", "vpctest", "nobody", "nobody"]
