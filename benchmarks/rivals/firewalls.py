"""The same rules by other firewalls: linear nft rules, iptables-nft, firewalld.

All of them get the same rules: TCP from addresses and prefixes to ports and ranges, all allowed, then one that allows
the measured flows, then a default of deny.  Rules that only allow mean the same in any order, and firewalld has an
order of its own.  Each side loads them, changes one of them, and then new flows pass through them.

`vpcctl` is a whole process that also validates the policy, forgets flows and writes its record.  The others only load.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from benchmarks import packets
from benchmarks.results import Comparison, alternate, package_version, took, version
from benchmarks.rivals import SkipComparison, require
from vpcctl import Controller
from vpcctl.compiler import compile_vpc
from vpcctl.engine.state import Store
from vpcctl.lab import STATE_DIR

PACKAGES = ("iptables", "firewalld", "dbus")
CLIENT, SERVER = IPv4Network("10.1.0.0/24"), IPv4Network("10.2.0.0/24")
# The namespace in which the rivals load their rules for the measurement of loads; no other rules are in it.
SCRATCH = "bench-scratch"
REMOVED = packets.REMOVED + "".join(
    f"add table {table}\ndelete table {table}\n" for table in ("ip filter", "inet firewalld", "ip linear")
)


@dataclass(frozen=True, slots=True)
class Allowed:
    """One rule: a protocol from a prefix to a range of ports."""

    source: IPv4Network
    low: int
    high: int
    protocol: str = "tcp"

    @property
    def ports(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


MEASURED = Allowed(IPv4Network("10.1.0.2/32"), 1024, 65_535, "udp")
# The rule that changes from one load to the next.
CHANGED = (Allowed(IPv4Network("10.1.0.3/32"), 22, 22), Allowed(IPv4Network("10.1.0.3/32"), 23, 23))


def rules(count: int) -> list[Allowed]:
    """`count` different rules; the last one allows the measured flows."""
    chance = random.Random(count)
    made = []
    for number in range(count - 1):
        length = chance.choice([32, 32, 32, 32, 24])
        source = IPv4Network(((172 << 24 | number << 8 | chance.getrandbits(8)), length), strict=False)
        low = chance.randrange(1, 60_000)
        made.append(Allowed(source, low, low if chance.random() < 0.7 else low + chance.randrange(1, 100)))
    return [*made, MEASURED]


# --- The sides --------------------------------------------------------------------------------------------------------


class Side(ABC):
    """One way to load the rules, in a namespace."""

    name: str

    def __init__(self, namespace: str) -> None:
        self._inside = ["ip", "netns", "exec", namespace]

    @abstractmethod
    def load(self, wanted: list[Allowed]) -> float:
        """Seconds to load all rules."""

    @abstractmethod
    def change(self, turn: int) -> float:
        """Seconds to change one rule beside the loaded ones."""

    @abstractmethod
    def route(self, wanted: list[Allowed]) -> None:
        """Load all rules into the router that forwards the measured packets."""


class Vpcctl(Side):
    """`apply-policy`: the whole policy each time."""

    name = "vpcctl"

    def __init__(self) -> None:
        super().__init__("bench-router")
        self._wanted: list[Allowed] = []

    def load(self, wanted: list[Allowed]) -> float:
        # Start from a policy of one rule, so that nothing of the last turn is left.
        self._apply([MEASURED])
        self._wanted = wanted
        return self._apply(wanted)

    def change(self, turn: int) -> float:
        return self._apply([CHANGED[turn % 2], *self._wanted])

    def route(self, wanted: list[Allowed]) -> None:
        packets.nft("bench-router", compile_vpc(Store(STATE_DIR).load().world, "bench", "bench").text(1))

    def _apply(self, wanted: list[Allowed]) -> float:
        file = Path("/run/policy.json")
        file.write_text(json.dumps({"vpc": "bench", "subnet": "server", "ingress": [*map(document, wanted)]}))
        return took("vpcctl", "-q", "apply-policy", file)


def document(rule: Allowed) -> dict[str, str | int]:
    """The rule in a policy of ours."""
    port = rule.low if rule.low == rule.high else rule.ports
    return {"action": "allow", "protocol": rule.protocol, "port": port, "source": str(rule.source)}


class Linear(Side):
    """One nft rule for each rule.  A table of the family ip saves each rule the test of the family."""

    name = "nft, one linear rule each"

    def load(self, wanted: list[Allowed]) -> float:
        return took(*self._inside, "nft", "-f", "-", stdin=self._text(wanted))

    def change(self, turn: int) -> float:
        words = f"ip linear forward index 1 {_nft(CHANGED[turn % 2])}"
        return took(*self._inside, "nft", "add", "rule", *words.split())

    def route(self, wanted: list[Allowed]) -> None:
        packets.nft("bench-router", self._text(wanted))

    @staticmethod
    def _text(wanted: list[Allowed]) -> str:
        lines = "\n".join(map(_nft, wanted))
        head = "type filter hook forward priority filter; policy drop;\nct state established,related accept\n"
        head += "ct state invalid drop\n"
        table = f"table ip linear {{ chain forward {{\n{head}{lines}\n}}\n}}\n"
        return f"add table ip linear\ndelete table ip linear\n{table}"


def _nft(rule: Allowed) -> str:
    return f"ip saddr {rule.source} ip daddr {SERVER} {rule.protocol} dport {rule.ports} accept"


class Restore(Side):
    """iptables-nft-restore: all rules by one process."""

    name = "iptables-nft-restore"

    def load(self, wanted: list[Allowed]) -> float:
        return took(*self._inside, "iptables-nft-restore", stdin=self._text(wanted))

    def change(self, turn: int) -> float:
        words = ["FORWARD", "3", *_iptables(CHANGED[turn % 2])]
        return took(*self._inside, "iptables-nft", "-I", *words)

    def route(self, wanted: list[Allowed]) -> None:
        words = ["ip", "netns", "exec", "bench-router", "iptables-nft-restore"]
        subprocess.run(words, input=self._text(wanted), text=True, check=True)

    @staticmethod
    def _text(wanted: list[Allowed]) -> str:
        lines = [" ".join(["-A", "FORWARD", *_iptables(rule)]) for rule in wanted]
        head = ["*filter", ":INPUT ACCEPT", ":FORWARD DROP", ":OUTPUT ACCEPT", *(" ".join(line) for line in _STATES)]
        return "\n".join([*head, *lines, "COMMIT", ""])


_STATES = (
    ("-A", "FORWARD", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"),
    ("-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"),
)


def _iptables(rule: Allowed) -> list[str]:
    ports = rule.ports.replace("-", ":")
    place = ["-s", str(rule.source), "-d", str(SERVER)]
    return [*place, "-p", rule.protocol, "-m", rule.protocol, "--dport", ports, "-j", "ACCEPT"]


class Each(Restore):
    """iptables-nft: one process for each rule, as scripts do it.  Meanwhile the rules are incomplete."""

    name = "iptables-nft, one process for each rule"

    def load(self, wanted: list[Allowed]) -> float:
        commands = [["-F", "FORWARD"], ["-P", "FORWARD", "DROP"], *map(list, _STATES)]
        commands += [["-A", "FORWARD", *_iptables(rule)] for rule in wanted]
        script = "".join(f"iptables-nft {' '.join(words)}\n" for words in commands)
        return took(*self._inside, "sh", "-e", stdin=script)


class Firewalld(Side):
    """Rich rules of a policy between two zones; the daemon runs in a namespace of its own."""

    name = "firewalld, rich rules"
    _folder = Path("/run/firewalld-bench")

    def load(self, wanted: list[Allowed]) -> float:
        (self._folder / "policies").mkdir(parents=True, exist_ok=True)
        (self._folder / "zones").mkdir(exist_ok=True)
        for zone, prefix in (("client", CLIENT), ("server", SERVER)):
            (self._folder / f"zones/{zone}.xml").write_text(f'<zone><source address="{prefix}"/></zone>')
        zones = '<ingress-zone name="client"/><egress-zone name="server"/>'
        text = f'<policy target="DROP">{"".join(map(_xml, wanted))}{zones}</policy>'
        (self._folder / "policies/bench.xml").write_text(text)
        return took("firewall-cmd", "--reload")

    def change(self, turn: int) -> float:
        rule = CHANGED[turn % 2]
        words = f"rule family=ipv4 source address={rule.source} port port={rule.ports} protocol=tcp accept"
        return took("firewall-cmd", "--policy=bench", f"--add-rich-rule={words}")

    def route(self, wanted: list[Allowed]) -> None:
        self.load(wanted)
        words = [*self._inside, "nft", "list", "table", "inet", "firewalld"]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        packets.nft("bench-router", text)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """D-Bus and the daemon."""
        self._folder.mkdir()
        bus = Path("/run/dbus")
        bus.mkdir(exist_ok=True)
        words = ["dbus-daemon", "--system", "--nofork", "--nopidfile", f"--address=unix:path={bus}/system_bus_socket"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        # firewalld uses Debian's Python, and modules of ours would hide Debian's.
        daemon = [*self._inside, "env", "--unset=PYTHONPATH", "firewalld", "--nofork", "--nopid"]
        log = Path("/run/firewalld-bench.log")
        with contextlib.ExitStack() as stack:
            stack.enter_context(_ended(subprocess.Popen(words, **quiet)))  # type: ignore[call-overload]
            with log.open("w") as output:
                process = subprocess.Popen(
                    [*daemon, "--system-config", str(self._folder)], stdout=output, stderr=subprocess.STDOUT
                )
            stack.enter_context(_ended(process))
            for _ in range(100):
                if subprocess.run(["firewall-cmd", "--state"], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                said = log.read_text().strip().splitlines() or ["no output"]
                raise SkipComparison(f"firewalld does not answer: {said[-1]}")
            yield


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _xml(rule: Allowed) -> str:
    port = f'<port port="{rule.ports}" protocol="{rule.protocol}"/>'
    return f'<rule family="ipv4"><source address="{rule.source}"/>{port}<accept/></rule>'


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure(count: int, turns: int) -> tuple[list[Comparison], dict[str, str], dict[str, str]]:
    """Comparisons, versions, and the sides that were skipped."""
    controller = Controller(STATE_DIR)
    controller.create_vpc("bench", "10.0.0.0/8")
    for name, prefix in (("client", CLIENT), ("server", SERVER)):
        controller.create_subnet("bench", name, prefix, public=False)
    subprocess.run(["ip", "netns", "add", SCRATCH], check=True)
    try:
        return _measured(count, turns)
    finally:
        subprocess.run(["ip", "netns", "delete", SCRATCH], check=True)
        controller.destroy()


def _measured(count: int, turns: int) -> tuple[list[Comparison], dict[str, str], dict[str, str]]:
    sides: list[Side] = [Vpcctl(), Linear(SCRATCH)]
    skipped, found = {}, {}
    with contextlib.ExitStack() as stack:
        try:
            require("iptables-nft", "iptables-nft-restore")
            sides += [Restore(SCRATCH), Each(SCRATCH)]
            found["iptables"] = version("iptables-nft", "--version")
        except SkipComparison as reason:
            skipped["iptables"] = str(reason)
        try:
            require("firewalld", "firewall-cmd", "dbus-daemon")
            firewalld = Firewalld(SCRATCH)
            stack.enter_context(firewalld.running())
            sides.append(firewalld)
            found["firewalld"] = package_version("firewalld")
        except SkipComparison as reason:
            skipped["firewalld"] = str(reason)
        return _compared(sides, rules(count), turns), found, skipped


def _compared(sides: list[Side], wanted: list[Allowed], turns: int) -> list[Comparison]:
    title, reference = f"{len(wanted):,} rules", Vpcctl.name
    loads: dict[str, list[float]] = {side.name: [] for side in sides}
    changes: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(turns):
        for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            loads[side.name].append(side.load(wanted))
            # One process for each rule and one for all load the same rules, so only one of them is measured.
            if type(side) is not Each:
                changes[side.name].append(side.change(turn))
    del changes[Each.name]
    return [
        Comparison(f"{title}: load", "s", reference, loads),
        Comparison(f"{title}: change one", "s", reference, changes),
        _rates(sides, wanted, turns, title),
    ]


def _rates(sides: list[Side], wanted: list[Allowed], turns: int, title: str) -> Comparison:
    """Nanoseconds of a packet of a new flow, with the rulesets of all sides in the same router."""
    packets.nft("bench-server", packets.RECEIVER)
    new = packets.frames(Store(STATE_DIR).load().world)["new"]

    def nanoseconds(side: Side) -> float:
        packets.nft("bench-router", REMOVED)
        side.route(wanted)
        time.sleep(packets.SETTLED)
        return packets.measure(new, True) * 1e9

    routed = [side for side in sides if type(side) is not Each]
    samples = alternate(turns, {side.name: (lambda side=side: nanoseconds(side)) for side in routed})  # type: ignore[misc]
    return Comparison(f"{title}: a packet that opens a flow", "ns", Vpcctl.name, samples)
