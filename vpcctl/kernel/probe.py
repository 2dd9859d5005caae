"""Real packets, judged where they should arrive.

Theory of operation.  Every probe is the first packet of a flow that nobody has seen before, and carries a token that
no other packet has.  All packets of a batch are sent, one after the other, by this thread on one CPU: virtual links
hand packets on in order there (net/core/dev.c: one backlog for each CPU), so whatever follows a probe on its path
arrives after it.  What follows are two *controls* that no policy touches:

    the sender pings its first hop          the answer proves that its packets left and were routed
    the last hop pings the receiver         the arrival proves that what was let through has arrived

Only then is a probe that was not seen called lost.  A control that does not come is an error and never a verdict.
What the sender hears (a reset, an ICMP error, a reply) is told by the same token.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from vpcctl import names
from vpcctl.errors import KernelError
from vpcctl.kernel import packets
from vpcctl.kernel.namespaces import entered
from vpcctl.meaning import Flow, Place, subnet_at
from vpcctl.model import Vpc, World
from vpcctl.policy import ICMP, Address

ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800  # include/uapi/linux/if_ether.h
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
RECEIVE_BUFFER = 8 << 20  # bytes: room for a batch, whatever else is to be heard
# Fewer than the kernel holds back while it resolves a neighbour (unres_qlen in arp(7)).
BATCH = 96
RETRY = 0.25  # seconds

# A name under /run/netns, the path of a namespace, or None for the host's.
Namespace = str | Path | None


@dataclass(frozen=True, slots=True)
class Probe:
    """One packet to send, and where to look for it.

    It goes from `source`, in the namespace `sender`, to `target` and its `port`: a destination port, an ICMP type, or
    None.  In the namespace `receiver` it is one to `destination`, which is not `target` where that is a published
    port.  With `leaving` it is looked for where it leaves that namespace and not where it enters.  Whatever the policy
    says, the sender may ping `first_hop`, and the namespace `last_hop` may ping `destination`.
    """

    sender: Namespace
    source: Address
    target: Address
    protocol: int
    port: int | None
    receiver: Namespace
    destination: Address
    first_hop: Address
    last_hop: Namespace
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a probe.

    `seen_from` is the source that the receiver saw, None if the probe did not arrive.  `answered` is what the sender
    heard first: ``none``, ``reset`` (of TCP), ``icmp-prohibited``, any other ``icmp-TYPE-CODE``, or ``reply``;
    `answered_by` is from which address.
    """

    seen_from: IPv4Address | None
    answered: str
    answered_by: IPv4Address | None

    @property
    def arrived(self) -> bool:
        """Did the receiver get it?"""
        return self.seen_from is not None

    @property
    def verdict(self) -> str:
        """``allow``, ``deny`` or ``reject``, as the language has them."""
        if self.arrived:
            return "allow"
        return "reject" if self.answered in ("reset", "icmp-prohibited") else "deny"


@dataclass(frozen=True, slots=True)
class Outside:
    """What stands for the internet: `namespace` is where its packets are sent and looked for.

    `host` is the host's address there, at which ports are published.  With `leaving` the namespace is the host's own,
    and packets are looked for on their way out of it; nothing can be sent *from* such an internet.
    """

    namespace: Namespace
    host: Address
    leaving: bool = False


def probe_of(world: World, flow: Flow, outside: Outside) -> Probe:
    """The probe that tries `flow` in the kernel; ConflictError, StopIteration where an end in a VPC is no instance.

    To a port that is published a flow from the internet goes by way of the host's address, to any other port straight.
    """
    source, destination = flow.source, flow.destination
    sender, first_hop = outside.namespace, outside.host
    receiver, last_hop, leaving = outside.namespace, None, outside.leaving
    target, port = destination.address, flow.port
    if source.vpc is not None:
        vpc = world.vpc(source.vpc)
        sender = _namespace(vpc, source)
        first_hop = subnet_at(vpc, source.address).gateways[0]
    if destination.vpc is not None:
        vpc = world.vpc(destination.vpc)
        receiver, last_hop, leaving = _namespace(vpc, destination), names.router_namespace(vpc.name), False
        published = [
            item
            for item in vpc.publications
            if (item.protocol, item.target_port) == (flow.protocol, flow.port)
            and destination.address in vpc.instance(item.instance).addresses
        ]
        if source.vpc is None and published:
            target, port = outside.host, published[0].port
    return Probe(
        sender,
        source.address,
        target,
        flow.protocol,
        port,
        receiver,
        destination.address,
        first_hop,
        last_hop,
        leaving,
    )


def _namespace(vpc: Vpc, place: Place) -> str:
    instance = next(one for one in vpc.instances if place.address in one.addresses)
    return names.instance_namespace(vpc.name, instance.name)


@dataclass(frozen=True, slots=True)
class _Control:
    """A ping from `source` (None: the kernel's choice) in a namespace, and where to hear its echo of type `kind`."""

    sender: Namespace
    source: Address | None
    target: Address
    listener: Namespace
    kind: int
    leaving: bool = False


class Prober:
    """Sends probes and judges them; sockets stay open until `close`.

    `patience` is how many seconds the controls may take; only where something is wrong do they take that long.
    """

    def __init__(self, patience: float = 5.0):
        self._patience = patience
        self._posts: dict[Namespace, _Post] = {}
        self._known: set[_Control] = set()
        self._serial = secrets.randbelow(packets.TOKENS)

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all sockets."""
        for post in self._posts.values():
            post.close()
        self._posts.clear()

    def probe(self, probes: Sequence[Probe]) -> list[Result]:
        """Send `probes` in their order and return what became of each.

        Raises KernelError if a namespace is missing, a packet cannot be sent or a control is not heard.
        """
        found: list[Result] = []
        with _one_cpu():
            for start in range(0, len(probes), BATCH):
                found += self._batch(probes[start : start + BATCH])
        return found

    def _batch(self, probes: Sequence[Probe]) -> list[Result]:
        firsts = {_Control(one.sender, one.source, one.first_hop, one.sender, packets.ECHO_REPLY) for one in probes}
        lasts = {
            _Control(one.last_hop, None, one.destination, one.receiver, packets.ECHO_REQUEST, one.leaving)
            for one in probes
        }
        for namespace in dict.fromkeys(place for one in probes for place in (one.sender, one.receiver)):
            self._post(namespace).drain()
        heard = _Heard()
        # The very first ping resolves the neighbour, so that probes are not held back.
        self._check(firsts - self._known, heard)
        self._known |= firsts
        tokens = [self._token() for _ in probes]
        for one, token in zip(probes, tokens, strict=True):
            self._post(one.sender).send(one.source, one.target, one.protocol, one.port, token)
        self._check(firsts, heard)
        self._check(lasts, heard)
        return [heard.result(one, token) for one, token in zip(probes, tokens, strict=True)]

    def _check(self, controls: Collection[_Control], heard: _Heard) -> None:
        """Ping until each control has been heard; KernelError after `patience`."""
        missing = {self._token(): control for control in controls}
        deadline = time.monotonic() + self._patience
        while missing:
            for token, control in missing.items():
                source = control.source or IPv4Address(0)
                self._post(control.sender).send(source, control.target, ICMP, packets.ECHO_REQUEST, token)
            self._await(missing, heard)
            if missing and time.monotonic() > deadline:
                control = next(iter(missing.values()))
                raise KernelError(
                    f"cannot judge probes: a ping of {control.target}, which no policy touches, was not heard in"
                    f" {control.listener or 'the host'}; is the link up, and is another firewall in the way?"
                )

    def _await(self, missing: dict[int, _Control], heard: _Heard) -> None:
        """Listen for a while, and strike out of `missing` what is heard."""
        end = time.monotonic() + RETRY
        while missing and time.monotonic() < end:
            self._listen(heard, end - time.monotonic())
            for token in [token for token, control in missing.items() if heard.control(control, token)]:
                del missing[token]

    def _listen(self, heard: _Heard, patience: float) -> None:
        """Take in everything that has come, after waiting up to `patience` seconds for something to come."""
        posts = {post.ear.fileno(): (namespace, post) for namespace, post in self._posts.items()}
        poll = select.poll()
        for descriptor in posts:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(max(0.0, patience) * 1000):
            namespace, post = posts[descriptor]
            for packet, outgoing in post.heard():
                heard.add(namespace, packet, outgoing)

    def _post(self, namespace: Namespace) -> _Post:
        if namespace not in self._posts:
            self._posts[namespace] = _Post(namespace)
        return self._posts[namespace]

    def _token(self) -> int:
        """Tokens count up from a random number, so the ports and identifiers that come of them are fresh too."""
        self._serial = self._serial % packets.TOKENS + 1
        return self._serial


class _Post:
    """A mouth and an ear in one namespace."""

    def __init__(self, namespace: Namespace):
        self._where = "the host" if namespace is None else str(namespace)
        # An absolute path stays what it is when a directory is put before it (pathlib).
        with entered(None if namespace is None else str(namespace)):
            try:
                self.ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
                self._mouth = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            except OSError as error:
                raise KernelError(f"cannot open a raw socket in {self._where}", str(error)) from error
        self.ear.setblocking(False)
        with contextlib.suppress(OSError):
            self.ear.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)

    def close(self) -> None:
        self.ear.close()
        self._mouth.close()

    def send(self, source: Address, target: Address, protocol: int, port: int | None, token: int) -> None:
        try:
            self._mouth.sendto(packets.craft(source, target, protocol, port, token), (str(target), 0))
        except OSError as error:
            raise KernelError(f"cannot send a packet to {target} from {self._where}", str(error)) from error

    def heard(self) -> Iterator[tuple[bytes, bool]]:
        """Every IPv4 packet that is waiting, from its header on, and whether it was leaving."""
        while True:
            try:
                packet, (_, ethertype, kind, _, _) = self.ear.recvfrom(65535)
            except BlockingIOError:
                return
            if ethertype == ETH_P_IP:
                yield packet, kind == socket.PACKET_OUTGOING

    def drain(self) -> None:
        for _ in self.heard():
            pass


class _Heard:
    """Packets with a token, by namespace, direction and token, in the order of their coming."""

    def __init__(self) -> None:
        self._packets: dict[tuple[Namespace, bool, int], list[packets.Packet]] = {}

    def add(self, namespace: Namespace, data: bytes, outgoing: bool) -> None:
        packet = packets.Packet(data)
        if packet.token is not None:
            self._packets.setdefault((namespace, outgoing, packet.token), []).append(packet)

    def control(self, control: _Control, token: int) -> bool:
        """Has the echo of this control been heard?"""
        there = self._packets.get((control.listener, control.leaving, token), ())
        return any(packet.protocol == ICMP and packet.body[0] == control.kind for packet in there)

    def result(self, probe: Probe, token: int) -> Result:
        """What became of the probe with this token."""
        there = self._packets.get((probe.receiver, probe.leaving, token), ())
        here = self._packets.get((probe.sender, False, token), ())
        arrivals = (one for one in there if (one.protocol, one.destination) == (probe.protocol, probe.destination))
        arrival = next(arrivals, None)
        answer = next((one for one in here if one.destination == probe.source), None)
        return Result(
            arrival.source if arrival else None,
            answer.kind if answer else "none",
            answer.source if answer else None,
        )


@contextlib.contextmanager
def _one_cpu() -> Iterator[None]:
    """Keep this thread on one CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[os.getpid() % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
