"""Random rulesets on the lab host's forward hook: what doctor says of packets, and what the kernel does to them.

Run inside a lab in which shop-web reaches the internet, with a seed and a number of rulesets; prints JSON: a tally of
what was said, and every case in which the kernel did otherwise.
"""

from __future__ import annotations

import collections
import json
import random
import socket
import struct
import sys
import time
from ipaddress import IPv4Address
from typing import Any

from nftables import Nftables

from vpcctl import lab
from vpcctl.doctor import foreign_firewalls, network_state
from vpcctl.doctor.hook_verdicts import Listing
from vpcctl.kernel import lan, namespaces

CONDITIONS = """
iifname "vpc-shop"
iifname != "vpc-shop"
iifname "vpc-*"
iifname "vpc"
oifname "eth0"
oifname { "eth0", "eth1" }
oifname != { "eth0", "eth1" }
iif "eth0"
iifname @ours
iifname . ip saddr @pairs
ip saddr 100.64.0.0/16
ip saddr != 100.64.0.0/10
ip saddr 100.64.0.2-100.64.0.9
ip saddr { 10.0.0.0/8, 100.64.0.1 }
ip daddr 100.64.0.1
ip daddr 0.0.0.0/0
ip daddr != 100.64.0.0/16
ip saddr 10.0.0.0/8
ct state new
ct state established,related
ct state { established, related }
ct state != new
ct state != established,related
ct state invalid
ct status dnat
ct status snat
ct status & dnat == dnat
ct status & (snat | seen-reply) == (snat | seen-reply)
ct direction original
ct direction reply
ct direction != reply
ct original ip saddr 100.64.0.0/16
ct mark 0
ct mark & 1 == 0
meta mark != 0
meta mark & 0x4000 == 0x4000
meta l4proto udp
meta l4proto != tcp
meta l4proto { tcp, udp }
meta l4proto . th dport { udp . 53, tcp . 443 }
meta nfproto ipv4
meta nfproto ipv6
ip protocol icmp
ip6 saddr ::1
ip6 nexthdr != tcp
udp dport 53
udp dport != 53
udp dport 1-100
udp sport 53
th dport { 53, 80 }
th sport != 53
tcp dport 443
tcp dport != 443
tcp flags syn
icmp type echo-request
icmp type != echo-request
icmp type { echo-reply, echo-request }
fib daddr type local
fib daddr type unicast
fib saddr type != unicast
meta skuid 0
counter
log prefix "x"
meta mark set 0
""".strip().splitlines()
VMAPS = """
iifname vmap { "vpc-shop" : V, "eth1" : W }
ct state vmap { new : V, established : W, invalid : drop }
ct direction vmap { original : V, reply : W }
meta l4proto vmap { udp : V, tcp : W }
ip saddr vmap { 100.64.0.0/16 : V, 10.0.0.0/8 : W }
th dport vmap { 53 : V, 80-90 : W }
oifname vmap @ways
""".strip().splitlines()


REGULAR = ("c1", "c2", "c3")
WATCH = """
table inet watch {
    counter asked { }
    counter pinged { }
    chain arrivals {
        type filter hook prerouting priority -400;
        udp dport 53 counter name asked
        icmp type echo-request counter name pinged
    }
}
"""
# Seconds to wait for a packet that should come, and for one that should not.
PATIENCE, SUSPICION = 5.0, 0.02


class Author:
    """Writes rulesets; the same seed writes the same ones.  A chain jumps to later ones alone, so never in circles."""

    def __init__(self, seed: int):
        self._dice = random.Random(seed)

    def ruleset(self) -> str:
        chains = [f"chain {name} {{\n{self._body(level)}\n}}" for level, name in enumerate(REGULAR, 1)]
        policy = self._dice.choice(("accept", "drop"))
        head = f"type filter hook forward priority 0; policy {policy};"
        lines = [
            "table inet t {",
            'set ours { type ifname; elements = { "vpc-shop", "vpc-blue" }; }',
            "set pairs { type ifname . ipv4_addr; elements = { vpc-shop . 100.64.0.1, eth0 . 100.64.0.1 }; }",
            f'map ways {{ type ifname : verdict; elements = {{ "eth0" : {self._verdict(9)}, "eth1" : drop }}; }}',
            *chains,
            f"chain forward {{\n{head}\n{self._body(0)}\n}}",
            "}",
        ]
        return "\n".join(lines) + "\n"

    def _body(self, level: int) -> str:
        return "\n".join(self._rule(level) for _ in range(self._dice.randrange(5)))

    def _rule(self, level: int) -> str:
        words = [self._dice.choice(CONDITIONS) for _ in range(self._dice.choice((0, 1, 1, 2)))]
        if self._dice.random() < 0.25:
            vmap = self._dice.choice(VMAPS)
            last = vmap.replace(": V", f": {self._verdict(level)}").replace(": W", f": {self._verdict(level)}")
        else:
            last = self._dice.choice([self._verdict(level), self._verdict(level), "counter", "reject"])
        return " ".join([*words, last])

    def _verdict(self, level: int) -> str:
        jumps = [f"{verb} {name}" for verb in ("jump", "goto") for name in REGULAR[level:]]
        return self._dice.choice(["accept", "drop", "accept", "drop", "return", "continue", *jumps])


class Receiver:
    """The internet's counters."""

    def __init__(self) -> None:
        with lan.inside(lab.RUN_LAB / "internet"):
            self._nft = Nftables()
        status, _, words = self._nft.cmd(WATCH)
        assert status == 0, words
        self._nft.set_json_output(True)

    def count(self, name: str) -> int:
        found = json.loads(self._nft.cmd(f"list counter inet watch {name}")[1])["nftables"]
        return next(one["counter"]["packets"] for one in found if "counter" in one)

    def came(self, name: str, before: int, expected: bool) -> bool:
        """Does the counter grow, while one waits as long as befits what is expected?"""
        deadline = time.monotonic() + (PATIENCE if expected else SUSPICION)
        while self.count(name) == before and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.count(name) > before


class Sender:
    """The instance: asks by UDP, each time from another port, and pings, each time with another identifier."""

    def __init__(self) -> None:
        with namespaces.entered("shop-web"):
            self._pinger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)

    def ask(self, number: int) -> None:
        with namespaces.entered("shop-web"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
            mouth.bind(("", 20000 + number))  # a port of the kernel's choice may be that of an older flow
            mouth.sendto(b"x", (str(lab.INTERNET), 53))

    def ping(self, number: int) -> None:
        checksum = 0xFFFF - (0x0800 + number + 1)
        self._pinger.sendto(struct.pack("!BBHHH", 8, 0, checksum, number, 1), (str(lab.INTERNET), 0))

    def answered(self, number: int, expected: bool) -> bool:
        deadline = time.monotonic() + (PATIENCE if expected else SUSPICION)
        while (left := deadline - time.monotonic()) > 0:
            self._pinger.settimeout(left)
            try:
                kind, _, _, found = struct.unpack_from("!BBHH", self._pinger.recv(2000), 20)
            except TimeoutError:
                return False
            if (kind, found) == (0, number):
                return True
        return False


def main(seed: int, cases: int) -> dict[str, Any]:
    shop = foreign_firewalls.Passage("vpc-shop", IPv4Address("100.64.0.1"), "eth0", lab.HOST)
    packets = {(direction, packet.protocol): packet for direction, packet in foreign_firewalls.packets(shop)}
    author, sender, receiver, nft = Author(seed), Sender(), Receiver(), Nftables()
    tally: collections.Counter[str] = collections.Counter()
    wrong = []
    for case in range(1, cases + 1):
        text = author.ruleset()
        if nft.cmd(f"add table inet t\ndelete table inet t\n{text}")[0]:
            tally["refused"] += 1  # conditions that contradict each other
            continue
        known = network_state.ruleset()
        listing = Listing(known.objects, known.text)
        [chain] = listing.on("forward", known.ours)
        said = {kind: listing.decide(chain, packet).verdict for kind, packet in packets.items()}
        for kind, passed in tried(said, sender, receiver, case):
            tally[said[kind]] += 1
            if said[kind] not in ("unknown", "accept" if passed else "drop"):
                wrong.append([*kind, said[kind], text])
    return {"tally": tally, "wrong": wrong}


def tried(said: dict[tuple[str, str], str], sender: Sender, receiver: Receiver, case: int):
    """((direction, protocol), whether it passed) of each packet that was sent."""
    asked, pinged = receiver.count("asked"), receiver.count("pinged")
    sender.ask(case)
    yield (foreign_firewalls.OUT, "udp"), receiver.came("asked", asked, said[foreign_firewalls.OUT, "udp"] == "accept")
    sender.ping(case)
    went = receiver.came("pinged", pinged, said[foreign_firewalls.OUT, "icmp"] == "accept")
    yield (foreign_firewalls.OUT, "icmp"), went
    if went:
        yield (foreign_firewalls.BACK, "icmp"), sender.answered(case, said[foreign_firewalls.BACK, "icmp"] == "accept")


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
