"""Real packets, judged where they should arrive.

Theory of operation.  Every probe is the first packet of a flow that nobody has seen before, and carries a token that
no other packet has.  All packets of a batch are sent, one after the other, by this thread on one CPU: virtual links
hand packets on in order there (net/core/dev.c: one backlog for each CPU), so whatever follows a probe on its path
arrives after it.  What follows are two *controls* that no policy touches:

    the sender pings its first hop          the answer proves that its packets left and were routed
    the last hop pings the receiver         the arrival proves that what was let through has arrived

Only then is a probe that was not seen called lost.  A control that does not come is an error and never a verdict.
The same token identifies what the sender receives (a reset, an ICMP error, a reply).

Where a packet is looked for depends on what it would do if it passed.  To an instance, or a machine of the lab, it
*enters* a namespace.  To any other machine it *leaves* the host.  To an address of the host it is *delivered*: a raw
socket (raw(7)) hears what the host takes in for itself, after all rules.  An address that nobody is allowed to reach
is not pinged as a control; the host pings itself instead.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import time
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Address

from vpcctl import names
from vpcctl.errors import KernelError
from vpcctl.kernel import packets
from vpcctl.kernel.posts import Namespace, Post, Sound, Way
from vpcctl.model.host import NO_HOST, Host
from vpcctl.model.network import NEVER_USABLE, Publication, Vpc, World, uplink_addresses, uplink_pair
from vpcctl.model.oracle import Flow, Place, published_at, subnet_at
from vpcctl.model.policy import ICMP, Address
from vpcctl.values import dataclass

# Fewer than the kernel holds back while it resolves a neighbour (unres_qlen in arp(7)).
BATCH = 96
RETRY = 0.25  # seconds

LOOPBACK = IPv4Address("127.0.0.1")


@dataclass(frozen=True, slots=True)
class Probe:
    """One packet to send, and where to look for it.

    It goes from `source`, in the namespace `sender`, to `target` and its `port`: a destination port, an ICMP type, or
    None.  In the namespace `receiver` it is one to `destination`, which is not `target` where that is a published
    port.  With `leaving` it is looked for where it leaves that namespace and not where it enters, with `delivered`
    where the namespace takes it in for itself.  Under every policy, the sender may ping `first_hop` (from an
    address of its own where `source` is `borrowed`), and the namespace `last_hop` may ping `destination`, or `control`
    if that is given.
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
    delivered: bool = False
    borrowed: bool = False
    control: Address | None = None

    @property
    def way(self) -> Way:
        """How the receiver hears it."""
        return Way.DELIVERED if self.delivered else Way.LEAVES if self.leaving else Way.ENTERS


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a probe.

    `seen_from` is the source that the receiver saw, None if the probe did not arrive.  `answered` is what the sender
    heard first: ``none``, ``reset`` (of TCP), ``icmp-prohibited``, any other ``icmp-TYPE-CODE``, or ``reply``;
    `answered_by` is from which address.  `way` says how the probe was looked for, and `link` by which link it was
    seen, empty where it was delivered or did not arrive.
    """

    seen_from: IPv4Address | None
    answered: str
    answered_by: IPv4Address | None
    way: Way = Way.ENTERS
    link: str = ""

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
    """The substitute for the internet: its packets are sent and looked for in `namespace`.

    `host` is the host's address there, at which ports are published.  With `leaving` the namespace is the host's own,
    and packets are looked for on their way out of it; nothing can be sent *from* such an internet.
    """

    namespace: Namespace
    host: Address
    leaving: bool = False


# The host itself: packets that leave it for an address outside are seen there, on any link.
HERE = Outside(None, LOOPBACK, leaving=True)


def probe_of(world: World, flow: Flow, outside: Outside, host: Host = NO_HOST) -> Probe:
    """The probe that tries `flow` in the kernel; ConflictError, StopIteration if an end in a VPC is not an instance.

    To a port that is published a flow from the internet goes by way of the host's address, to any other port straight.
    A flow of the host itself is sent by the host, and one to a port that the host publishes is looked for in the
    instance that serves it.
    """
    source, destination = flow.source, flow.destination
    sender, first_hop = outside.namespace, outside.host
    receiver, last_hop, leaving = outside.namespace, None, outside.leaving
    target, port, sent_from = destination.address, flow.port, source.address
    delivered, control = False, None
    arrives = destination.address
    served = published_at(world, flow, host) if source.vpc is not None and destination.vpc is None else None
    if served is not None:
        vpc, item = served
        arrives = vpc.instance(item.instance).addresses[0]
        receiver, last_hop = names.instance_namespace(vpc.name, item.instance), names.router_namespace(vpc.name)
        leaving = False
    elif destination.vpc is None and host.hears(destination.address):
        receiver, leaving, delivered, control = None, False, True, LOOPBACK
    elif destination.vpc is None and not _pingable(world, destination.address):
        receiver, leaving, control = None, True, LOOPBACK
    if source.vpc is not None:
        vpc = world.vpc(source.vpc)
        sender = _namespace(vpc, source)
        first_hop = subnet_at(vpc, source.address).gateways[0]
    if destination.vpc is not None:
        vpc = world.vpc(destination.vpc)
        receiver, last_hop, leaving = _namespace(vpc, destination), names.router_namespace(vpc.name), False
        if source.vpc is None:
            gateway = uplink_pair(world.transit, vpc.index)[0]
            by_loopback = source.address == gateway
            itself = by_loopback or host.has(source.address)
            called = _called(vpc, flow, host if itself else None)
            if itself and called is not None:
                # The host calls 127.0.0.1 from there, and its own addresses from themselves.
                sender, first_hop = None, LOOPBACK
                own = LOOPBACK if by_loopback and (called.address is None or called.local) else source.address
                sent_from, target = own, called.address or own
            elif called is not None:
                target = called.address or outside.host
            if called is not None and flow.port is not None:
                port = called.port + flow.port - called.target_port
    return Probe(
        sender,
        sent_from,
        target,
        flow.protocol,
        port,
        receiver,
        arrives,
        first_hop,
        last_hop,
        leaving,
        delivered,
        source.vpc is None,
        control,
    )


def _called(vpc: Vpc, flow: Flow, host: Host | None) -> Publication | None:
    """What is published for the flow, of what can be called: by the `host`, or from outside if that is None."""
    for item in vpc.publications:
        there = item.targets[0] <= (flow.port or 0) <= item.targets[1]
        if (
            there
            and item.protocol == flow.protocol
            and flow.destination.address in vpc.instance(item.instance).addresses
            and (host is not None or not item.local)
        ):
            return item
    return None


def _pingable(world: World, address: Address) -> bool:
    """May the host ping this address as a control, and does the ping leave it?"""
    return not any(address in prefix for prefix in (*NEVER_USABLE, *uplink_addresses(world)))


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
    way: Way = Way.ENTERS


class Prober:
    """Sends probes and judges them; sockets stay open until `close`.

    `patience` is how many seconds the controls may take; only where something is wrong do they take that long.
    """

    def __init__(self, patience: float = 5.0):
        self._patience = patience
        self._posts: dict[Namespace, Post] = {}
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
        firsts = {_first_control(one) for one in probes}
        lasts = {_last_control(one) for one in probes}
        for one in probes:
            if one.delivered:
                self._post(one.receiver).listen_inside(one.protocol, ICMP)
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
                raise KernelError(_unheard(control))

    def _await(self, missing: dict[int, _Control], heard: _Heard) -> None:
        """Listen for a while, and strike out of `missing` what is heard."""
        end = time.monotonic() + RETRY
        while missing and time.monotonic() < end:
            self._listen(heard, end - time.monotonic())
            for token in [token for token, control in missing.items() if heard.control(control, token)]:
                del missing[token]

    def _listen(self, heard: _Heard, patience: float) -> None:
        """Take in everything that has come, after waiting up to `patience` seconds for something to come."""
        posts = {ear.fileno(): (namespace, post) for namespace, post in self._posts.items() for ear in post.ears}
        poll = select.poll()
        for descriptor in posts:
            poll.register(descriptor, select.POLLIN)
        for namespace, post in dict(
            posts[descriptor] for descriptor, _ in poll.poll(max(0.0, patience) * 1000)
        ).items():
            for packet in post.heard():
                heard.add(namespace, packet)

    def _post(self, namespace: Namespace) -> Post:
        if namespace not in self._posts:
            self._posts[namespace] = Post(namespace)
        return self._posts[namespace]

    def _token(self) -> int:
        """Tokens count up from a random number, so the ports and identifiers that come of them are fresh too."""
        self._serial = self._serial % packets.TOKENS + 1
        return self._serial


def _first_control(probe: Probe) -> _Control:
    source = None if probe.borrowed else probe.source
    return _Control(probe.sender, source, probe.first_hop, probe.sender, packets.ECHO_REPLY)


def _last_control(probe: Probe) -> _Control:
    target = probe.destination if probe.control is None else probe.control
    return _Control(probe.last_hop, None, target, probe.receiver, packets.ECHO_REQUEST, probe.way)


def _unheard(control: _Control) -> str:
    question = "that the address is in use" if control.way is Way.LEAVES else "that the link is up"
    return (
        f"cannot judge probes: a ping of {control.target}, which no policy touches, was not heard"
        f" {'leaving' if control.way is Way.LEAVES else 'in'} {control.listener or 'the host'};"
        f" check {question}, and that no other firewall drops the ping"
    )


class _Heard:
    """Packets with a token, by namespace, way and token, in the order of their coming."""

    def __init__(self) -> None:
        self._sounds: dict[tuple[Namespace, Way, int], list[Sound]] = {}

    def add(self, namespace: Namespace, sound: Sound) -> None:
        if sound.packet.token is not None:
            self._sounds.setdefault((namespace, sound.way, sound.packet.token), []).append(sound)

    def control(self, control: _Control, token: int) -> bool:
        """Has the echo of this control been heard?"""
        there = (one.packet for one in self._sounds.get((control.listener, control.way, token), ()))
        return any(packet.protocol == ICMP and packet.body[0] == control.kind for packet in there)

    def result(self, probe: Probe, token: int) -> Result:
        """What became of the probe with this token."""
        there = self._sounds.get((probe.receiver, probe.way, token), ())
        here = (one.packet for one in self._sounds.get((probe.sender, Way.ENTERS, token), ()))
        wanted = (probe.protocol, probe.destination)
        arrival = next((one for one in there if (one.packet.protocol, one.packet.destination) == wanted), None)
        answer = next((one for one in here if one.destination == probe.source), None)
        return Result(
            arrival.packet.source if arrival else None,
            answer.kind if answer else "none",
            answer.source if answer else None,
            probe.way,
            arrival.link if arrival else "",
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
