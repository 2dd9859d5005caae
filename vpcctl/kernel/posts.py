"""Where packets are sent and heard: sockets in one namespace, for what enters, what leaves and what it takes in."""

from __future__ import annotations

import contextlib
import enum
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vpcctl.errors import KernelError
from vpcctl.kernel import packets
from vpcctl.kernel.namespaces import entered
from vpcctl.model.policy import Address
from vpcctl.values import dataclass

ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800  # include/uapi/linux/if_ether.h
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
RECEIVE_BUFFER = 8 << 20  # bytes: room for a batch beside all other traffic

# A name under /run/netns, the path of a namespace, or None for the host's.
Namespace = str | Path | None


class Way(enum.Enum):
    """How a packet is heard in a namespace."""

    ENTERS = "arrived"
    LEAVES = "left"
    DELIVERED = "was delivered"


@dataclass(frozen=True, slots=True)
class Sound:
    """A packet that was heard, how, and by which link."""

    packet: packets.Packet
    way: Way
    link: str


class Post:
    """A mouth and ears in one namespace: one for its links, and one for each protocol that it takes in itself."""

    def __init__(self, namespace: Namespace):
        self._namespace = namespace
        self._where = "the host" if namespace is None else str(namespace)
        self._inner: dict[int, socket.socket] = {}
        self._ear = self._ear_of(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._mouth = self._open(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        # Else a probe to a broadcast address is refused before any rule sees it (ip(7)).
        self._mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)

    def _open(self, *kind: int) -> socket.socket:
        # An absolute path stays what it is when a directory is put before it (pathlib).
        with entered(None if self._namespace is None else str(self._namespace)):
            try:
                opened = socket.socket(*kind)
            except OSError as error:
                raise KernelError(f"cannot open a raw socket in {self._where}", str(error)) from error
        return opened

    def _ear_of(self, *kind: int) -> socket.socket:
        ear = self._open(*kind)
        ear.setblocking(False)
        with contextlib.suppress(OSError):
            ear.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        return ear

    @property
    def ears(self) -> tuple[socket.socket, ...]:
        """All sockets that hear something."""
        return self._ear, *self._inner.values()

    def listen_inside(self, *protocols: int) -> None:
        """Hear from now on what the namespace takes in for itself of these protocols."""
        for protocol in protocols:
            if protocol not in self._inner:
                self._inner[protocol] = self._ear_of(socket.AF_INET, socket.SOCK_RAW, protocol)

    def close(self) -> None:
        """Close all sockets."""
        for opened in (*self.ears, self._mouth):
            opened.close()

    def send(self, source: Address, target: Address, protocol: int, port: int | None, token: int) -> None:
        """Send the packet that `packets.craft` makes of this; KernelError where it cannot be sent."""
        try:
            self._mouth.sendto(packets.craft(source, target, protocol, port, token), (str(target), 0))
        except OSError as error:
            raise KernelError(f"cannot send a packet to {target} from {self._where}", str(error)) from error

    def heard(self) -> Iterator[Sound]:
        """Every IPv4 packet that is waiting, from its header on."""
        for data, (link, ethertype, kind, _, _) in _waiting(self._ear):
            if ethertype == ETH_P_IP:
                yield Sound(packets.Packet(data), Way.LEAVES if kind == socket.PACKET_OUTGOING else Way.ENTERS, link)
        for ear in self._inner.values():
            for data, _ in _waiting(ear):
                yield Sound(packets.Packet(data), Way.DELIVERED, "")

    def drain(self) -> None:
        """Forget what is waiting."""
        for _ in self.heard():
            pass


def _waiting(ear: socket.socket) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
    while True:
        try:
            yield ear.recvfrom(65535)
        except BlockingIOError:
            return
