"""The program behind `traffic.Station`: one namespace's ends of flows, told by a JSON object a line on standard input.

Each order is answered by a line on standard output.  It uses the standard library alone, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any

RECORD = struct.Struct("!Qd")  # number, time of sending
TICK = 0.004
BUFFER = 8 << 20
ICMP_ECHO, ICMP_ECHO_REPLY = 8, 0
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32  # asm-generic/socket.h: net.core.rmem_max does not bind root
ETH_P_IP, PACKET_OUTGOING = 0x0800, 4  # linux/if_ether.h, linux/if_packet.h
NAMES = {socket.IPPROTO_ICMP: "icmp", socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}


class End:
    """This side of one flow; a protocol's class below knows how records are sent and come in."""

    def __init__(self, words: dict[str, Any]):
        self.words = words
        self.rate = words["rate"]
        self.sent = self.received = self.highest = 0
        self.last = self.started = 0.0
        self.due = 0

    def took(self, record: bytes) -> None:
        number, sent = RECORD.unpack(record)
        self.received += 1
        self.highest = max(self.highest, number)
        self.last = max(self.last, sent)

    def tick(self, now: float) -> None:
        """Send what is due by now; after a pause at most a tenth of a second's worth is made up for."""
        if not self.rate or not self.ready():
            return
        self.started = self.started or now
        due = int((now - self.started) * self.rate) - self.due
        for _ in range(min(due, max(self.rate // 10, 1))):
            if not self.send():
                return
        self.due += due

    def send(self) -> bool:
        """Send the next record, if the network takes it; it is numbered as sent even if nobody will hear it."""
        if not self.put(RECORD.pack(self.sent + 1, time.monotonic())):
            return False
        self.sent += 1
        return True

    def ready(self) -> bool:
        return True

    def put(self, record: bytes) -> bool:
        raise NotImplementedError

    def sockets(self) -> list[socket.socket]:
        raise NotImplementedError

    def readable(self, one: socket.socket) -> None:
        raise NotImplementedError


class Udp(End):
    def __init__(self, words: dict[str, Any]):
        super().__init__(words)
        self.line = opened(socket.SOCK_DGRAM)
        self.far: tuple[str, int] | None = None
        if "address" in words:
            self.far = (words["address"], words["port"])
            self.send()
        else:
            self.line.bind(("", words["port"]))

    def ready(self) -> bool:
        return self.far is not None

    def put(self, record: bytes) -> bool:
        # A full buffer is to be tried again; any other refusal is the network's, and the record is lost on the way.
        try:
            self.line.sendto(record, self.far)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def sockets(self) -> list[socket.socket]:
        return [self.line]

    def readable(self, one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                record, caller = one.recvfrom(RECORD.size)
                if "address" not in self.words:
                    self.far = caller
                self.took(record)


class Tcp(End):
    def __init__(self, words: dict[str, Any]):
        super().__init__(words)
        self.listener = self.line = None
        self.pending = self.partial = b""
        if "address" in words:
            self.line = opened(socket.SOCK_STREAM)
            self.line.setblocking(True)
            self.line.settimeout(5)
            self.line.connect((words["address"], words["port"]))
            self.line.setblocking(False)
            self.line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.send()
        else:
            self.listener = opened(socket.SOCK_STREAM)
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind(("", words["port"]))
            self.listener.listen()

    def ready(self) -> bool:
        return self.line is not None

    def put(self, record: bytes) -> bool:
        try:
            if self.pending:
                self.pending = self.pending[self.line.send(self.pending) :]
            if self.pending:
                return False
            self.pending = record[self.line.send(record) :]
        except BlockingIOError:
            return False
        except OSError:
            self.line.close()
            self.line = None
            return False
        return True

    def sockets(self) -> list[socket.socket]:
        return [one for one in (self.listener, self.line) if one is not None]

    def readable(self, one: socket.socket) -> None:
        if one is self.listener:
            self.line, _ = one.accept()
            self.line.setblocking(False)
            self.line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return
        try:
            data = one.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            one.close()
            self.line = None
        self.partial += data
        while len(self.partial) >= RECORD.size:
            self.took(self.partial[: RECORD.size])
            self.partial = self.partial[RECORD.size :]


class Icmp(End):
    """Echo requests from the client; the server's kernel answers, and its station counts what it is asked."""

    def __init__(self, words: dict[str, Any]):
        super().__init__(words)
        self.line = opened(socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.calls = "address" in words
        if self.calls:
            self.send()
        else:
            self.rate = 0

    def put(self, record: bytes) -> bool:
        with contextlib.suppress(OSError):
            self.line.sendto(echo(self.words["port"], (self.sent + 1) & 0xFFFF, record), (self.words["address"], 0))
        return True

    def sockets(self) -> list[socket.socket]:
        return [self.line]

    def readable(self, one: socket.socket) -> None:
        wanted = ICMP_ECHO_REPLY if self.calls else ICMP_ECHO
        with contextlib.suppress(OSError):
            while True:
                message = after_header(one.recv(2048))
                kind, _, _, identifier, _ = struct.unpack_from("!BBHHH", message)
                if (kind, identifier) == (wanted, self.words["port"]):
                    self.took(message[8 : 8 + RECORD.size])
                    self.sent += not self.calls  # the kernel's answer


def opened(kind: int, protocol: int = 0) -> socket.socket:
    line = socket.socket(socket.AF_INET, kind, protocol)
    line.setblocking(False)
    if kind != socket.SOCK_STREAM:
        for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                line.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
            except PermissionError:  # root of an unprivileged user namespace
                line.setsockopt(socket.SOL_SOCKET, plain, BUFFER)
    return line


def echo(identifier: int, number: int, payload: bytes) -> bytes:
    """An ICMP echo request (RFC 792)."""
    unsummed = struct.pack("!BBHHH", ICMP_ECHO, 0, 0, identifier, number) + payload
    total = sum(struct.unpack(f"!{len(unsummed) // 2}H", unsummed))
    total = (total >> 16) + (total & 0xFFFF)
    total = ~(total + (total >> 16)) & 0xFFFF
    return unsummed[:2] + struct.pack("!H", total) + unsummed[4:]


def after_header(packet: bytes) -> bytes:
    """What an IPv4 packet carries."""
    return packet[(packet[0] & 15) * 4 :]


def described(packet: bytes) -> tuple[str, str, str, int]:
    """The fields of a `Packet`."""
    number, message = packet[9], after_header(packet)
    port = message[0] if number == socket.IPPROTO_ICMP else struct.unpack_from("!H", message, 2)[0]
    source, destination = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    return NAMES.get(number, str(number)), source, destination, port


PROTOCOLS: dict[str, type[End]] = {"udp": Udp, "tcp": Tcp, "icmp": Icmp}


class Program:
    """One method for each act."""

    def __init__(self) -> None:
        self.ends: dict[str, End] = {}
        self.ear: socket.socket | None = None
        self.noted: list[tuple[str, str, str, int]] = []
        self.kept: list[socket.socket] = []

    def serve(self, **words: Any) -> None:
        self.ends[words["name"]] = PROTOCOLS[words["protocol"]](words)

    call = serve

    def rate(self, name: str, rate: int) -> None:
        end = self.ends[name]
        end.rate, end.started, end.due = rate, 0.0, 0

    def count(self) -> dict[str, tuple[int, int, int, float]]:
        return {name: (end.sent, end.received, end.highest - end.received, end.last) for name, end in self.ends.items()}

    def listen(self) -> None:
        self.ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self.ear.setblocking(False)

    def heard(self) -> list[tuple[str, str, str, int]]:
        self._hear()
        found, self.noted = self.noted, []
        return found

    def _hear(self) -> None:
        assert self.ear
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (link, _, direction, *_) = self.ear.recvfrom(2048)
                if direction != PACKET_OUTGOING and link != "lo":
                    self.noted.append(described(packet))

    def probe(self, address: str, port: int, protocols: list[str]) -> None:
        for one in self.kept:
            one.close()
        self.kept = [getattr(self, f"_probe_{protocol}")(address, port) for protocol in protocols]

    def _probe_udp(self, address: str, port: int) -> socket.socket:
        line = opened(socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            line.sendto(b"probe", (address, port))
        return line

    def _probe_tcp(self, address: str, port: int) -> socket.socket:
        line = opened(socket.SOCK_STREAM)
        number = line.connect_ex((address, port))
        assert number in (0, errno.EINPROGRESS, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED), number
        return line

    def _probe_icmp(self, address: str, port: int) -> socket.socket:
        line = opened(socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with contextlib.suppress(OSError):
            line.sendto(echo(os.getpid() & 0xFFFF, 1, b"probe!"), (address, 0))
        return line

    def run(self) -> None:
        """Obey until standard input ends."""
        pending = b""
        while True:
            lines = {one: end for end in self.ends.values() for one in end.sockets()}
            ears = [] if self.ear is None else [self.ear]
            sending = any(end.rate for end in self.ends.values())
            ready = select.select([0, *ears, *lines], [], [], TICK if sending else None)[0]
            for one in ready:
                if one in lines:
                    lines[one].readable(one)
                elif one is self.ear:
                    self._hear()
            now = time.monotonic()
            for end in self.ends.values():
                end.tick(now)
            if 0 in ready:
                data = os.read(0, 1 << 16)
                if not data:
                    return
                *orders, pending = (pending + data).split(b"\n")
                for order in orders:
                    self._obey(json.loads(order))

    def _obey(self, words: dict[str, Any]) -> None:
        try:
            answer = {"is": getattr(self, words.pop("act"))(**words)}
        except (OSError, AssertionError) as error:
            answer = {"error": f"{words}: {type(error).__name__} {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    Program().run()
