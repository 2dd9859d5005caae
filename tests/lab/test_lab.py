"""The lab itself: what is in it, what it answers, and that nothing of it gets out or stays.

Tests that make a lab by themselves take `module_lab` too, to be skipped where none can be made.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vpcctl
from tests.lab.traffic import eventually
from vpcctl.errors import PrivilegeError
from vpcctl.lab import HOST, INTERNET, NEIGHBOUR, STATE_DIR, Lab

ROOT = Path(vpcctl.__file__).parent.parent
RUN = "import sys; from vpcctl.lab import run; sys.exit(run(sys.argv[1:]))"

TALK_UDP = """
import socket, sys
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mouth.settimeout(5)
mouth.sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
words, (address, port) = mouth.recvfrom(999)
assert (address, port) == (sys.argv[1], int(sys.argv[2]))
print(words.decode(), end="")
"""

TALK_TCP = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as line:
    line.settimeout(0.1)
    try:
        raise SystemExit(f"unasked: {line.recv(99)}")
    except TimeoutError:
        pass
    line.settimeout(5)
    for words in (b"hello\\n", b"and again\\n"):
        line.sendall(words)
        print(line.recv(99).decode(), end="")
"""


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python code as a process with `marker` in its environment; after the test it is killed if need be."""
    started: list[subprocess.Popen[str]] = []

    def starting(code: str, *arguments: str, marker: str = "", **streams: int) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "M": marker}
        words = [sys.executable, "-c", code, *arguments]
        started.append(subprocess.Popen(words, text=True, env=environment, **streams))
        return started[-1]

    yield starting
    for process in started:
        process.kill()
        with process:  # closes its pipes and awaits it
            pass


def processes(marker: str) -> list[int]:
    """The real machine's processes that have `marker` in their environment, dead ones that nobody awaited included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker in (entry / "environ").read_text(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def surroundings() -> dict[str, object]:
    """What a lab might spoil of the machine that it is made on."""
    return {
        "network": os.readlink("/proc/self/ns/net"),
        "links": sorted(os.listdir("/sys/class/net")),
        "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "run": sorted(os.listdir("/run")),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    }


# --- What is there ----------------------------------------------------------------------------------------------------


def test_the_host_has_loopback_and_an_uplink_and_nothing_else(module_lab: Lab) -> None:
    links = json.loads(module_lab.run(["ip", "-json", "address"]).stdout)
    assert [link["ifname"] for link in links] == ["lo", "eth0"]
    assert all("UP" in link["flags"] for link in links)
    addresses = [(address["local"], address["prefixlen"]) for address in links[1]["addr_info"][:1]]
    assert addresses == [(str(HOST), 24)]
    assert module_lab.run(["ip", "netns", "list"]).stdout == ""
    assert module_lab.run(["nft", "list", "ruleset"]).stdout == ""
    assert module_lab.run(["ip", "link", "show", "type", "bridge"]).stdout == ""
    assert "default via 198.51.100.1 dev eth0" in module_lab.run(["ip", "route"]).stdout


@pytest.mark.parametrize("netns", [None, "internet", "neighbour"])
def test_settings_are_those_of_a_fresh_machine(module_lab: Lab, netns: str | None) -> None:
    names = ["net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.eth0.rp_filter"]
    assert module_lab.run(["sysctl", "-n", *names], netns=netns).stdout.split() == ["0", "0", "0"]


def test_it_tells_where_things_are(module_lab: Lab) -> None:
    told = dict(line.split("=", 1) for line in module_lab.run(["env"]).stdout.splitlines() if "=" in line)
    assert told["VPCCTL_LAB"] == "1"
    assert told["VPCCTL_STATE_DIR"] == str(STATE_DIR)
    assert (told["LAB_HOST"], told["LAB_NEIGHBOUR"], told["LAB_INTERNET"]) == (str(HOST), str(NEIGHBOUR), str(INTERNET))


def test_run_is_its_own_and_starts_empty(module_lab: Lab) -> None:
    assert module_lab.run(["ls", "/run"]).stdout.split() == ["lab", "lock", "netns", "user"]
    module_lab.run(["mkdir", str(STATE_DIR)])
    assert not STATE_DIR.exists()


def test_the_first_process_inside_is_a_reaping_init(module_lab: Lab) -> None:
    module_lab.run(["sh", "-c", "(sleep 0 & exec true) & wait"])
    inside = module_lab.run(["ps", "-e", "-o", "pid=,stat="]).stdout.splitlines()
    assert any(line.split()[0] == "1" for line in inside)
    assert not [line for line in inside if line.split()[1].startswith("Z")]


def test_vpcctl_is_on_the_path(module_lab: Lab) -> None:
    assert module_lab.run(["sh", "-c", "command -v vpcctl"]).stdout == "/run/lab/bin/vpcctl\n"


# --- What answers -----------------------------------------------------------------------------------------------------

ANSWERING = [str(INTERNET), "203.0.113.254", "198.51.100.1", str(NEIGHBOUR)]


@pytest.mark.parametrize("address", ANSWERING)
def test_ping_is_answered(module_lab: Lab, address: str) -> None:
    module_lab.run(["ping", "-n", "-c", "1", "-W", "2", address])


@pytest.mark.parametrize("address", ANSWERING)
@pytest.mark.parametrize("port", [9, 80, 65535])
def test_http_is_answered_on_any_port(module_lab: Lab, address: str, port: int) -> None:
    page = module_lab.run(["curl", "-sS", "--max-time", "5", f"http://{address}:{port}/x?y"]).stdout
    assert page == f"{address} heard you from {HOST}\n"


@pytest.mark.parametrize("address", ANSWERING)
def test_a_line_is_echoed_and_silence_is_kept(module_lab: Lab, address: str) -> None:
    assert module_lab.python(TALK_TCP, address, "5432").stdout == "hello\nand again\n"


@pytest.mark.parametrize("address", ANSWERING)
@pytest.mark.parametrize("port", [9, 53, 65535])
def test_udp_is_answered_from_where_it_went_to(module_lab: Lab, address: str, port: int) -> None:
    assert module_lab.python(TALK_UDP, address, str(port)).stdout == f"{address} heard you from {HOST}: hello"


@pytest.mark.parametrize(("kind", "packets"), [("tcp", 3), ("udp", 1)])
def test_answers_come_by_the_lan(lab: Lab, kind: str, packets: int) -> None:
    """Counted where they come in; what would come by any other way is dropped."""
    chain = f"""table inet t {{ chain c {{ type filter hook input priority 0;
        ip saddr {INTERNET} iifname != "eth0" drop
        ip saddr {INTERNET} meta l4proto {kind} counter
    }}
    }}"""
    lab.run(["nft", "-f", "-"], input=chain)
    assert "hello" in lab.python({"tcp": TALK_TCP, "udp": TALK_UDP}[kind], str(INTERNET), "4000").stdout
    counted = re.search(r"counter packets (\d+)", lab.run(["nft", "list", "ruleset"]).stdout)
    assert counted is not None
    assert int(counted[1]) >= packets


def test_one_socket_may_talk_to_many_ports(module_lab: Lab) -> None:
    talk = """
import socket
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mouth.settimeout(5)
for port in range(1, 101):
    mouth.sendto(b"", ("203.0.113.10", port))
print(len({mouth.recvfrom(99)[1] for _ in range(100)}))
"""
    assert module_lab.python(talk).stdout == "100\n"


def test_a_server_in_the_internet_keeps_its_port(module_lab: Lab) -> None:
    serve = (
        "import socket; line = socket.create_server(('', 7777)); print('up', flush=True); line.accept()[0].send(b'me')"
    )
    server = module_lab.popen([sys.executable, "-c", serve], netns="internet")
    assert server.stdout
    assert server.stdout.readline() == "up\n"
    call = f"import socket; print(socket.create_connection(('{INTERNET}', 7777), 5).recv(9))"
    assert module_lab.python(call).stdout == "b'me'\n"


def test_the_internet_calls_from_its_own_address(module_lab: Lab) -> None:
    route = json.loads(module_lab.run(["ip", "-json", "route", "get", str(HOST)], netns="internet").stdout)
    assert route[0]["prefsrc"] == str(INTERNET)
    module_lab.run(["ping", "-n", "-c", "1", "-W", "2", str(HOST)], netns="internet")


def test_neighbour_and_internet_hear_each_other(module_lab: Lab) -> None:
    page = module_lab.run(["curl", "-sS", "--max-time", "5", f"http://{INTERNET}/"], netns="neighbour").stdout
    assert page == f"{INTERNET} heard you from {NEIGHBOUR}\n"


# --- Running things ---------------------------------------------------------------------------------------------------


def test_a_named_namespace_can_be_entered(lab: Lab) -> None:
    lab.run(["ip", "netns", "add", "blue"])
    assert [link["ifname"] for link in json.loads(lab.run(["ip", "-json", "link"], netns="blue").stdout)] == ["lo"]


def test_input_environment_and_directory_are_passed(module_lab: Lab) -> None:
    said = module_lab.run(["sh", "-c", "cat; echo $COLOUR $PWD"], input="words ", env={"COLOUR": "blue"}, cwd="/usr")
    assert said.stdout == "words blue /usr\n"


def test_a_failure_shows_what_was_said(module_lab: Lab) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        module_lab.run(["sh", "-c", "echo out; echo err >&2; exit 9"])
    assert failure.value.returncode == 9
    assert failure.value.__notes__ == ["stdout:\nout\n\nstderr:\nerr\n"]


def test_a_command_that_takes_too_long_is_ended(module_lab: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        module_lab.run(["sleep", "1234"], timeout=0.3)
    assert eventually(lambda: "sleep 1234" not in module_lab.run(["ps", "-e", "-o", "args="]).stdout)


def test_an_unexpected_status_of_vpcctl_is_told_with_its_output(module_lab: Lab) -> None:
    with pytest.raises(AssertionError, match=r"(?s)vpcctl no-such-verb: exit status \d+, not 99.*stderr:\n.+"):
        module_lab.vpcctl("no-such-verb", status=99)


def test_a_lab_that_is_closed_runs_nothing() -> None:
    lab = Lab()
    with pytest.raises(RuntimeError, match="not open"):
        lab.run(["true"])


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_status_is_the_commands(start: Start, module_lab: Lab, command: list[str], status: int) -> None:
    process = start(RUN, *command, stderr=subprocess.PIPE)
    process.communicate()
    assert process.returncode == status


def test_a_command_is_run_in_silence_with_our_streams(start: Start, module_lab: Lab) -> None:
    process = start(RUN, "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.communicate("words") == ("words", "")


def test_a_closed_pipe_ends_a_command_as_anywhere(start: Start, module_lab: Lab) -> None:
    process = start(RUN, "bash", "-c", "yes | head -n 1 >/dev/null; echo ${PIPESTATUS[0]}", stdout=subprocess.PIPE)
    assert process.communicate()[0] == f"{128 + signal.SIGPIPE}\n"


def test_what_the_command_leaves_running_ends_with_it(start: Start, module_lab: Lab) -> None:
    marker = str(uuid.uuid4())
    process = start(RUN, "sh", "-c", "setsid sleep 1000 & exit 0", marker=marker)
    assert process.wait(10) == 0
    assert processes(marker) == []


# --- A person's terminal ----------------------------------------------------------------------------------------------


class Terminal:
    """A shell on a pseudo-terminal, as a person has it."""

    def __init__(self) -> None:
        self.child, self.descriptor = pty.fork()
        if self.child == 0:
            os.environ.update(PS1="outside> ", PYTHONPATH=str(ROOT), TERM="dumb")
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])

    def type(self, words: str, until: str) -> str:
        """Type, and read until something appears that matches."""
        os.write(self.descriptor, words.encode())
        seen = ""

        def appeared() -> bool:
            nonlocal seen
            if select.select([self.descriptor], [], [], 0.1)[0]:
                seen += os.read(self.descriptor, 4096).decode(errors="replace")
            return re.search(until, seen) is not None

        assert eventually(appeared), f"{until!r} did not appear in {seen!r}"
        return seen

    def start(self, command: str) -> None:
        """Type a command that waits for ever, and wait until it does, for a shell that is still busy eats signals."""
        self.type(f"{command} sh -c 'echo u''p; exec sleep 1000'\n", "up\r\n")

    def close(self) -> None:
        os.close(self.descriptor)
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)


@pytest.fixture
def terminal(module_lab: Lab) -> Iterator[Terminal]:
    terminal = Terminal()
    terminal.type("", "outside> ")
    yield terminal
    terminal.close()


LAB_COMMAND = f"{sys.executable} -c '{RUN}'"


def test_a_shell_says_welcome_and_has_job_control(terminal: Terminal) -> None:
    welcome = terminal.type(f"{LAB_COMMAND}\n", "vpcctl-lab:.*# ")
    assert str(INTERNET) in welcome
    terminal.start("")
    terminal.type("\x03", r"\^C\r\n.*vpcctl-lab:.*# ")
    terminal.type("echo status=$?\n", f"status={128 + signal.SIGINT}")
    terminal.start("")
    terminal.type("\x1a", r"Stopped.*sleep 1000")
    terminal.type("exit 3\n", "stopped jobs")
    terminal.type("exit 3\n", "outside> ")
    terminal.type("echo status=$?\n", "status=3")
    # The terminal is the outer shell's again, and works.
    terminal.start("")
    terminal.type("\x03", "outside> ")


def test_a_shell_completes_commands_and_names(terminal: Terminal) -> None:
    terminal.type(f"{LAB_COMMAND}\n", "vpcctl-lab:.*# ")
    terminal.type("vpcctl create-vpc shop --cidr 10.0.0.0/16\n", r"created VPC shop(.|\n)*vpcctl-lab:.*# ")
    terminal.type("vpcctl show-v\t", "show-vpc ")
    terminal.type("sh\t", "shop ")
    terminal.type("\n", r"VPC shop  10\.0\.0\.0/16(.|\n)*vpcctl-lab:.*# ")
    terminal.type("exit\n", "outside> ")


def test_a_command_hears_the_keyboard_and_can_be_stopped(terminal: Terminal) -> None:
    terminal.start(LAB_COMMAND)
    terminal.type("\x1a", r"Stopped.*\n.*outside> ")
    terminal.type("fg\n", "sleep 1000")
    time.sleep(0.2)
    said = terminal.type("\x03", "outside> ")
    assert "Traceback" not in said
    terminal.type("echo status=$?\n", f"status={128 + signal.SIGINT}")


# --- Nothing gets out, nothing stays ----------------------------------------------------------------------------------


def test_the_real_machine_stays_as_it_is(module_lab: Lab) -> None:
    before = surroundings()
    with Lab() as lab:
        lab.run(["sh", "-ec", "ip netns add blue; ip link add br0 type bridge; sysctl -qw net.ipv4.ip_forward=1"])
        assert surroundings() == before
    assert surroundings() == before


def test_the_lab_shares_no_network_with_the_real_machine(module_lab: Lab) -> None:
    real = os.readlink("/proc/self/ns/net")
    inside = {
        module_lab.run(["readlink", "/proc/self/ns/net"], netns=name).stdout.strip()
        for name in (None, "internet", "neighbour")
    }
    assert len(inside) == 3
    assert real not in inside
    # Every wire's other end is in the LAN's namespace, and every wire of that leads to one of the three.
    looked_at = ["nsenter", "--net=/run/lab/lan", "ip", "-json", "-details", "link"]
    links = json.loads(module_lab.run(looked_at).stdout)
    assert [link["ifname"] for link in links] == ["lo", "lan", "internet", "host", "neighbour"]


def test_two_labs_do_not_see_each_other(lab: Lab) -> None:
    with Lab() as other:
        lab.run(["ip", "netns", "add", "blue"])
        lab.run(["sh", "-c", f"mkdir {STATE_DIR}; ip address add 203.0.113.99 dev lo"])
        assert other.run(["ip", "netns", "list"]).stdout == ""
        assert str(STATE_DIR.name) not in other.run(["ls", "/run"]).stdout
        assert "203.0.113.99" not in other.run(["ip", "address"]).stdout
        other.close()
        assert lab.run(["ip", "netns", "list"]).stdout.split() == ["blue"]
        lab.run(["ping", "-n", "-c", "1", "-W", "2", str(INTERNET)])


def test_a_closed_lab_leaves_no_process(module_lab: Lab) -> None:
    marker = str(uuid.uuid4())
    with Lab() as lab:
        lab.popen(["sh", "-c", "setsid sleep 1000 & sleep 1000"], env={"M": marker})
        assert eventually(lambda: len(processes(marker)) >= 3)
    assert processes(marker) == []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_killing_the_one_who_runs_it_leaves_nothing(start: Start, module_lab: Lab, end: signal.Signals) -> None:
    before, marker = surroundings(), str(uuid.uuid4())
    process = start(RUN, "sh", "-c", "setsid sleep 1000 & sleep 1000", marker=marker)
    # The caller, maker, init, two responders, sh and its two.
    assert eventually(lambda: len(processes(marker)) == 8)
    process.send_signal(end)
    process.wait()
    assert eventually(lambda: not processes(marker)), f"left: {processes(marker)}"
    assert surroundings() == before


@pytest.mark.parametrize("moment", [0.02, 0.05, 0.08, 0.11, 0.14, 0.17])
def test_killing_it_while_it_is_being_made_leaves_nothing(start: Start, module_lab: Lab, moment: float) -> None:
    marker = str(uuid.uuid4())
    process = start(RUN, "sleep", "1000", marker=marker)
    time.sleep(moment)
    process.kill()
    process.wait()
    assert eventually(lambda: not processes(marker)), f"left: {processes(marker)}"


def test_a_lab_ends_with_the_process_that_opened_it(start: Start, module_lab: Lab) -> None:
    marker = str(uuid.uuid4())
    opened = "from vpcctl.lab import Lab; lab = Lab().open(); lab.popen(['sleep', '1000']); input()"
    process = start(opened, marker=marker, stdin=subprocess.PIPE)
    # It, the lab's caller, maker, init, two responders and cat, then nsenter and sleep.
    assert eventually(lambda: len(processes(marker)) == 9)
    process.kill()
    process.wait()
    assert eventually(lambda: not processes(marker)), f"left: {processes(marker)}"


# --- Without root -----------------------------------------------------------------------------------------------------


CAPTURED = {"capture_output": True, "text": True, "timeout": 60, "cwd": "/"}


def test_an_ordinary_user_may_have_a_lab(module_lab: Lab, nobodys_python: list[str]) -> None:
    script = f"""
id -u; ip netns add blue; ip netns exec blue true; ip link add br0 type bridge; nft add table inet t
sysctl -qw net.ipv4.ip_forward=1; curl -sS --max-time 5 http://{INTERNET}/; ls /run/netns; cat /proc/1/comm | wc -l
"""
    result = subprocess.run([*nobodys_python, "-c", RUN, "sh", "-ec", script], **CAPTURED)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"0\n{INTERNET} heard you from {HOST}\nblue\n1\n"


def test_an_ordinary_user_may_use_it_from_tests(module_lab: Lab, nobodys_python: list[str]) -> None:
    program = """
from vpcctl.lab import Lab
with Lab() as lab:
    lab.run(["ip", "netns", "add", "blue"])
    for netns in (None, "internet", "neighbour", "blue"):
        print(len(lab.run(["ip", "-oneline", "link"], netns=netns).stdout.splitlines()))
"""
    result = subprocess.run([*nobodys_python, "-c", program], **CAPTURED)
    assert (result.returncode, result.stdout, result.stderr) == (0, "2\n2\n2\n1\n", "")


def denied(setting: str) -> subprocess.CompletedProcess[str]:
    """Try to open a lab where `setting` is 0, without privilege, in a user namespace made for it."""
    program = """
from vpcctl.errors import VpcctlError
from vpcctl.lab import Lab, run
for attempt in (lambda: run(["true"]), Lab().open):
    try:
        attempt()
    except VpcctlError as error:
        print(type(error).__name__, error.exit_status, error)
"""
    powerless = f'exec setpriv --bounding-set=-all --inh-caps=-all -- "{sys.executable}" -c "$0"'
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-ec",
        f"echo 0 >/proc/sys/{setting}; {powerless}",
        program,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_where_namespaces_are_denied_it_says_what_denies_them_and_what_to_do(module_lab: Lab) -> None:
    result = denied("user/max_user_namespaces")
    if result.stderr.startswith("unshare:"):
        pytest.skip(f"cannot make the user namespace to try it in: {result.stderr.strip()}")
    assert result.stderr == ""
    sentence = (
        f"{PrivilegeError.__name__} 77 the lab needs namespaces of its own, and user.max_user_namespaces = 0 "
        "denies them; allow them with `sudo sysctl user.max_user_namespaces=15000`, or start it as root\n"
    )
    assert result.stdout == sentence * 2
