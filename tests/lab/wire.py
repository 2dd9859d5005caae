"""Frames byte by byte, and a process that sends and hears them in every namespace of a lab.

A test builds frames with the functions below, which let every field be wrong, and gives them to a `Tap`: a packet
socket (packet(7)) on one link.  All taps of a `Wire` live in one process (this file, run as a program).

A probe carries a word of its own somewhere in its bytes.  `arrived` sends probes and after them a canary that must
pass; a veth delivers in order, so when the canary is there, what is not there was dropped.

`Wire.reception` hears what a namespace takes in for itself, after all its rules; `Wire.flows` is its connection
tracking.  `Wire.vpcctl` is the command line without the quarter of a second that starting a process takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import itertools
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IP, ARP, IPV6, VLAN, QINQ, MPLS, PPPOE, LLDP, EAPOL = (
    0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8, 0x8847, 0x8864, 0x88CC, 0x888E
)  # fmt: skip
ICMP, IGMP, IPIP, TCP, UDP, GRE, ESP, AH, ICMPV6, SCTP, UDPLITE = 1, 2, 4, 6, 17, 47, 50, 51, 58, 132, 136
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
EVERYBODY = "ff:ff:ff:ff:ff:ff"
MORE, DONT = 1, 2
PATIENCE = 10.0


# --- Frames -----------------------------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def mac(text: str) -> bytes:
    """The six bytes of a MAC address."""
    return bytes.fromhex(text.replace(":", ""))


def ethernet(destination: str, source: str, kind: int, payload: bytes, tags: Sequence[tuple[int, int]] = ()) -> bytes:
    """A frame; `tags` are (ethertype, VLAN) pairs, the outermost first."""
    inserted = b"".join(struct.pack("!HH", *tag) for tag in tags)
    return (mac(destination) + mac(source) + inserted + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def llc(destination: str, source: str, payload: bytes, kind: int = IP) -> bytes:
    """A frame of IEEE 802.3 with LLC and SNAP headers (RFC 1042)."""
    body = b"\xaa\xaa\x03\0\0\0" + struct.pack("!H", kind) + payload
    return mac(destination) + mac(source) + struct.pack("!H", len(body)) + body


def arp(operation: int, mac_: str, address: str, target_mac: str, target: str, word: bytes = b"") -> bytes:
    """An ARP packet (RFC 826; 1 asks, 2 answers); `word` goes where the padding is."""
    head = struct.pack("!HHBBH", 1, IP, 6, 4, operation)
    pairs = mac(mac_) + socket.inet_aton(address) + mac(target_mac) + socket.inet_aton(target)
    return head + pairs + word


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    identifier: int = 1,
    flags: int = 0,
    offset: int = 0,
    ttl: int = 64,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet; `offset` is that of a fragment in bytes, `flags` are MORE and DONT."""
    options = options.ljust(-(-len(options) // 4) * 4, b"\0")
    first = 0x40 | 5 + len(options) // 4
    length = 20 + len(options) + len(payload)
    fragment = {0: 0, MORE: 0x2000, DONT: 0x4000}[flags] | offset // 8
    head = struct.pack("!BBHHHBBH", first, 0, length, identifier, fragment, ttl, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def fragments(
    source: str, destination: str, protocol: int, payload: bytes, cut: int, identifier: int, ttl: int = 64
) -> list[bytes]:
    """An IPv4 packet in two fragments, the first with `cut` bytes of `payload` (a multiple of 8)."""
    first = ipv4(source, destination, protocol, payload[:cut], identifier=identifier, flags=MORE, ttl=ttl)
    return [first, ipv4(source, destination, protocol, payload[cut:], identifier=identifier, offset=cut, ttl=ttl)]


def udp(source: int, destination: int, payload: bytes) -> bytes:
    """A UDP datagram without a checksum, as RFC 768 allows."""
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def tcp(
    addresses: tuple[str, str],
    source: int,
    destination: int,
    flags: int,
    payload: bytes = b"",
    *,
    sequence: int = 1000,
    acknowledged: int = 0,
) -> bytes:
    """A TCP segment; its checksum covers `addresses` (source, destination)."""
    head = struct.pack("!HHIIBBHHH", source, destination, sequence, acknowledged, 5 << 4, flags, 65000, 0, 0)
    pseudo = b"".join(map(socket.inet_aton, addresses)) + struct.pack("!BBH", 0, TCP, len(head) + len(payload))
    return head[:16] + struct.pack("!H", checksum(pseudo + head + payload)) + head[18:] + payload


def udplite(addresses: tuple[str, str], source: int, destination: int, payload: bytes) -> bytes:
    """A UDP-Lite datagram whose checksum covers its header alone (RFC 3828).

    The pseudo header has UDP's number: connection tracking checks it so (net/netfilter/nf_conntrack_proto_udp.c).
    """
    head = struct.pack("!HHHH", source, destination, 8, 0)
    pseudo = b"".join(map(socket.inet_aton, addresses)) + struct.pack("!BBH", 0, UDP, 8 + len(payload))
    return head[:6] + struct.pack("!H", checksum(pseudo + head)) + payload


def sctp_init(source: int, destination: int, payload: bytes) -> bytes:
    """An SCTP packet that begins an association (RFC 9260, 3.3.2), `payload` being its parameters."""
    from vpcctl.kernel.packets import crc32c

    chunk = struct.pack("!BBHIIHHI", 1, 0, 20 + len(payload), 1, 65536, 1, 1, 1) + payload
    head = struct.pack("!HHI", source, destination, 0)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


def icmp(kind: int, code: int, payload: bytes, rest: int = 0) -> bytes:
    """An ICMP message; `rest` is what stands in bytes 4 to 7."""
    head = struct.pack("!BBHI", kind, code, 0, rest)
    return head[:2] + struct.pack("!H", checksum(head + payload)) + head[4:] + payload


def echo(identifier: int, payload: bytes, kind: int = 8) -> bytes:
    """An ICMP echo request, or reply where `kind` is 0."""
    return icmp(kind, 0, payload, identifier << 16 | 1)


def offloaded(frame: bytes, start: int = 0, offset: int = 0, *, gso: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    """A frame with a struct virtio_net_hdr before it, for a tap that was opened with `offload`.

    The sum from byte `start` on shall be written to byte `start` + `offset` (VIRTIO_NET_HDR_F_NEEDS_CSUM); without
    `start` nothing shall.  `gso` are the type, the length of the headers and the size of a segment.
    """
    kind, headers, size = gso
    return struct.pack("=BBHHHH", bool(start), kind, headers, size, start, offset) + frame


def ipv6(source: str, destination: str, protocol: int, payload: bytes, hops: int = 255) -> bytes:
    """An IPv6 packet."""
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + ends + payload


def icmpv6(source: str, destination: str, kind: int, payload: bytes) -> bytes:
    """An IPv6 packet with an ICMPv6 message; `payload` begins after the checksum."""
    message = struct.pack("!BBH", kind, 0, 0) + payload
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    number = checksum(ends + struct.pack("!IxxxB", len(message), ICMPV6) + message)
    return ipv6(source, destination, ICMPV6, message[:2] + struct.pack("!H", number) + message[4:])


# --- The test's side --------------------------------------------------------------------------------------------------


class Wire:
    """The process in a lab that holds the taps."""

    def __init__(self, lab: Any):
        self._process = lab.popen([sys.executable, str(Path(__file__))], stderr=None)

    def tap(
        self,
        netns: str | None,
        link: str = "eth0",
        *,
        only: Sequence[Sequence[int]] = (),
        offload: bool = False,
        mark: int = 0,
    ) -> Tap:
        """A packet socket; `netns` as `Lab.run` has it, and ``lan`` for the wire between the lab's stations.

        `only` is a filter of classic BPF, a list of (code, jump if true, jump if false, value).  With `offload`
        every frame is sent and heard with a header before it (`offloaded`).  `mark` is the packet mark of what is sent.
        """
        return Tap(self, self.tell("open", netns=netns, link=link, only=only, offload=offload, mark=mark))

    def reception(self, netns: str | None) -> Tap:
        """An ear, not a mouth, for the IPv4 packets that are delivered to the namespace itself (raw(7))."""
        return Tap(self, self.tell("receive", netns=netns))

    def flows(self, netns: str | None) -> list[Tracked]:
        """What the namespace's connection tracking knows."""
        return [Tracked(*values) for values in self.tell("flows", netns=netns)]

    def vpcctl(self, *words: str, document: object = None) -> str:
        """Run a command, with `document` as JSON on its standard input, and return what it prints.

        AssertionError with its words if it fails.
        """
        status, told = self.tell("vpcctl", words=words, text=json.dumps(document))
        assert status == 0, f"vpcctl {' '.join(words)}: {told}"
        return told

    def status(self, *words: str, document: object = None) -> int:
        """The exit status of a command, run in the same way."""
        return self.tell("vpcctl", words=words, text=json.dumps(document))[0]

    def forget_flows(self, netns: str | None) -> None:
        """Empty the namespace's connection tracking."""
        self.tell("forget_flows", netns=netns)

    def tell(self, act: str, **words: Any) -> Any:
        """Have the process do `act` and return its answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"act": act, **words}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the wire's process ended with status {self._process.wait(5)}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["is"]


@dataclass(frozen=True, slots=True)
class Tracked:
    """A flow of connection tracking, as its first packet was; `mark` is the generation that admitted it."""

    protocol: int
    source: str
    destination: str
    source_port: int
    destination_port: int
    mark: int


class Tap:
    """One link of one namespace: what is sent here leaves by it, what is heard here came in by it."""

    def __init__(self, wire: Wire, number: int):
        self._wire, self._number = wire, number

    def send(self, *frames: bytes, times: int = 1) -> None:
        """Put the frames on the link, all of them `times` times over."""
        self._wire.tell("send", tap=self._number, frames=[frame.hex() for frame in frames], times=times)

    def heard(self) -> list[bytes]:
        """What came in since the last question, VLAN tags included."""
        return [bytes.fromhex(frame) for frame in self._wire.tell("heard", tap=self._number)]

    def hear(self, word: bytes, patience: float = PATIENCE) -> list[bytes]:
        """What came in until a frame contains `word`, or until `patience` seconds are over."""
        answer = self._wire.tell("hear", tap=self._number, word=word.hex(), patience=patience)
        return [bytes.fromhex(frame) for frame in answer]

    def lost(self) -> int:
        """How many frames there was no room to keep, since the last question."""
        return self._wire.tell("lost", tap=self._number)

    @contextlib.contextmanager
    def flooding(self, *frames: bytes, rate: int = 0) -> Iterator[None]:
        """A process of its own sends the frames over and over meanwhile, `rate` rounds a second or all it can."""
        child = self._wire.tell("flood", tap=self._number, frames=[frame.hex() for frame in frames], rate=rate)
        try:
            yield
        finally:
            self._wire.tell("stop", child=child)


_words = itertools.count(1)


def word() -> bytes:
    """Bytes that no frame held before."""
    return b"<%08d>" % next(_words)


def containing(frames: Iterable[bytes], *words: bytes) -> list[bytes]:
    """Those of the frames that hold one of `words`."""
    return [frame for frame in frames if any(one in frame for one in words)]


# Who sends it, and what: a frame or a list of frames, made from the word that they are to hold.
Probe = tuple[Tap, Callable[[bytes], "bytes | Sequence[bytes]"]]


def arrived(ear: Tap, probes: Mapping[str, Probe], canary: Probe) -> list[str]:
    """The names of those `probes` of which something is heard; AssertionError unless the canary is.

    The canary should come by the same way as the probes, so that it cannot overtake them.
    """
    ear.heard()
    words = {name: _sent(probe) for name, probe in probes.items()}
    last = _sent(canary)
    frames = ear.hear(last)
    assert containing(frames, last), "the canary did not arrive, so that silence proves nothing"
    return [name for name, one in words.items() if containing(frames, one)]


def _sent(probe: Probe) -> bytes:
    tap, make = probe
    one = word()
    made = make(one)
    tap.send(*([made] if isinstance(made, bytes) else made))
    return one


# --- The process in the lab -------------------------------------------------------------------------------------------

# include/uapi/linux/if_packet.h, asm-generic/socket.h
SOL_PACKET, PACKET_STATISTICS, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 6, 8, 15, 23
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
# include/uapi/linux/sockios.h, ethtool.h
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17
ETH_P_ALL = 3
TP_STATUS_VLAN_VALID = 1 << 4
AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata: the last two are the tag and its ethertype
BUFFER = 16 << 20


# IPPROTO_* that `reception` has an ear for, with one of no standard among them (RFC 3692).
HEARD = (ICMP, IGMP, IPIP, TCP, UDP, GRE, ESP, AH, SCTP, UDPLITE, 253)


class _Program:
    """One method for each act."""

    def __init__(self) -> None:
        self.taps: list[list[socket.socket]] = []

    def open(self, netns: str | None, link: str, only: list[list[int]], offload: bool, mark: int = 0) -> int:
        with _inside(netns):
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            tap.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if offload:
            tap.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        tap.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        tap.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        if only:
            program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in only))
            described = struct.pack("@HP", len(only), ctypes.addressof(program))  # struct sock_fprog
            tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)
        tap.bind((link, ETH_P_ALL))
        return self._keep([tap])

    def receive(self, netns: str | None) -> int:
        with _inside(netns):
            return self._keep([socket.socket(socket.AF_INET, socket.SOCK_RAW, number) for number in HEARD])

    def complete_checksums(self, netns: str | None, link: str, on: bool = False) -> None:
        """``ethtool -K LINK tx off``: the link completes checksums before it takes a packet; or ``tx on``."""
        value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STXCSUM, on), 8)
        request = struct.pack("16sP16x", link.encode(), ctypes.addressof(value))
        with _inside(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            fcntl.ioctl(channel, SIOCETHTOOL, request)

    def _keep(self, sockets: list[socket.socket]) -> int:
        for one in sockets:
            one.setblocking(False)
            try:
                one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            except PermissionError:  # root of an unprivileged user namespace
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self.taps.append(sockets)
        return len(self.taps) - 1

    def send(self, tap: int, frames: list[str], times: int) -> None:
        raw = [bytes.fromhex(frame) for frame in frames]
        for _ in range(times):
            for frame in raw:
                _put(self.taps[tap][0], frame)

    def heard(self, tap: int) -> list[str]:
        return [frame.hex() for frame in self._take(tap)]

    def hear(self, tap: int, word: str, patience: float) -> list[str]:
        wanted, end, found = bytes.fromhex(word), time.monotonic() + patience, []
        late = False
        while not late:
            late = time.monotonic() > end
            # All that is there: where a tap has several sockets, the word may be in the first one.
            taken = list(self._take(tap))
            found += [frame.hex() for frame in taken]
            if any(wanted in frame for frame in taken):
                break
            time.sleep(0.001)
        return found

    def _take(self, tap: int) -> Iterator[bytes]:
        for one in self.taps[tap]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame, notes, _, _ = one.recvmsg(65536, 64)
                    yield _tagged(frame, notes)

    def lost(self, tap: int) -> int:
        statistics = self.taps[tap][0].getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        return struct.unpack("=II", statistics)[1]

    def flood(self, tap: int, frames: list[str], rate: int) -> int:
        child = os.fork()
        if child == 0:
            raw = [bytes.fromhex(frame) for frame in frames]
            while True:
                for frame in raw:
                    _put(self.taps[tap][0], frame)
                if rate:
                    time.sleep(1 / rate)
        return child

    def stop(self, child: int) -> None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    def flows(self, netns: str | None) -> list[tuple[int, str, str, int, int, int]]:
        from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

        with _inside(netns), NFCTSocket() as tracking:
            return [_described(entry) for entry in tracking.dump()]

    def forget_flows(self, netns: str | None) -> None:
        from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

        with _inside(netns), NFCTSocket() as tracking:
            tracking.flush()

    def vpcctl(self, words: list[str], text: str) -> tuple[int, str]:
        from vpcctl.cli import main

        ours, sys.stdin, told = sys.stdin, io.StringIO(text), io.StringIO()
        try:
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                main(["-q", *words])
        except SystemExit as end:
            return int(end.code or 0), told.getvalue()
        finally:
            sys.stdin = ours
        raise AssertionError("the command line returned instead of exiting")

    def run(self) -> None:
        for line in sys.stdin:
            words = json.loads(line)
            try:
                answer = {"is": getattr(self, words.pop("act"))(**words)}
            except OSError as error:
                answer = {"error": f"{words}: {error}"}
            print(json.dumps(answer), flush=True)


def _inside(netns: str | None) -> contextlib.AbstractContextManager[None]:
    from vpcctl.kernel.lan import inside

    unnamed = Path("/run/lab", netns or "")
    return inside((unnamed if unnamed.exists() else Path("/run/netns", netns)) if netns else None)


def _tagged(frame: bytes, notes: list[tuple[int, int, bytes]]) -> bytes:
    """The frame with the VLAN tag that the kernel took off it."""
    for _, _, note in notes:
        status, _, _, _, _, tag, kind = AUXDATA.unpack(note[: AUXDATA.size])
        if status & TP_STATUS_VLAN_VALID:
            frame = frame[:12] + struct.pack("!HH", kind or VLAN, tag) + frame[12:]
    return frame


def _described(entry: Any) -> tuple[int, str, str, int, int, int]:
    """The fields of a `Tracked`."""
    ends, ports = entry.get_attr("CTA_TUPLE_ORIG"), entry.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_PROTO")
    addresses = ends.get_attr("CTA_TUPLE_IP")
    return (
        ports.get_attr("CTA_PROTO_NUM"),
        addresses.get_attr("CTA_IP_V4_SRC"),
        addresses.get_attr("CTA_IP_V4_DST"),
        ports.get_attr("CTA_PROTO_SRC_PORT") or 0,
        ports.get_attr("CTA_PROTO_DST_PORT") or 0,
        entry.get_attr("CTA_MARK") or 0,
    )


def _put(tap: socket.socket, frame: bytes) -> None:
    # A full queue, or a link that is down for a moment, is no reason to stop.
    with contextlib.suppress(OSError):
        tap.send(frame)


if __name__ == "__main__":
    _Program().run()
