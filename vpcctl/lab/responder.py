"""What answers in the lab's pretend internet: every TCP and UDP port of every address of a namespace.

TCP: an HTTP request gets `ADDRESS heard you from CLIENT` as a text page; any other line is echoed, for as long as the
client likes; silence is kept.  UDP: a datagram gets `ADDRESS heard you from CLIENT: PAYLOAD`.

The sockets are transparent (IP_TRANSPARENT in ip(7)): the kernel hands them flows to other ports than their own, and
they answer from the address and port that was called.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import socket
from collections.abc import Sequence

from vpcctl.values import dataclass

PORT = 9  # discard(9): no program calls it on purpose

_REQUEST = re.compile(rb"[A-Z]+ \S+ HTTP/1\.[01]\r?\n")
_BACKLOG = 4096
_PATIENCE = 5.0  # seconds for a client to take the answer and hang up


@dataclass(frozen=True, slots=True)
class _Family:
    """Linux's numbers for the same two options in one address family (linux/in.h, linux/in6.h)."""

    number: socket.AddressFamily
    level: int
    transparent: int
    original_destination: int
    address: slice  # of a sockaddr; its port is always bytes 2 and 3


_FAMILIES = (
    _Family(socket.AF_INET, socket.IPPROTO_IP, 19, 20, slice(4, 8)),
    _Family(socket.AF_INET6, socket.IPPROTO_IPV6, 75, 74, slice(8, 24)),
)


def listen() -> list[socket.socket]:
    """The responder's sockets in the network namespace of this moment; it takes CAP_NET_ADMIN there."""
    return [
        _listening(family, kind)
        for family in _FAMILIES
        if _works(family)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    ]


def serve(sockets: Sequence[socket.socket]) -> None:
    """Answer on all `sockets` (from `listen`, in this very namespace: answers leave from it) until killed."""
    # A flood of connections is part of what the lab is for.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_serve(sockets))


async def _serve(sockets: Sequence[socket.socket]) -> None:
    for listener in sockets:
        if listener.type == socket.SOCK_STREAM:
            await asyncio.start_server(_converse, sock=listener, backlog=_BACKLOG)
        else:
            asyncio.get_running_loop().add_reader(listener, _reply, listener)
    await asyncio.Event().wait()


def _works(family: _Family) -> bool:
    """Does this kernel have the family?  (ipv6.disable=1 takes one away.)"""
    try:
        socket.socket(family.number, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def _listening(family: _Family, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(family.number, kind)
    listener.setblocking(False)
    listener.setsockopt(family.level, family.transparent, 1)
    if family.number == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_DGRAM:
        listener.setsockopt(family.level, family.original_destination, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # `_reply` may have to speak from PORT itself
    listener.bind(("", PORT))
    if kind == socket.SOCK_STREAM:
        listener.listen(_BACKLOG)  # here and not in `serve`, so that a client never comes too early
    return listener


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One TCP client: echo lines until it hangs up or asks for a page."""
    # ValueError is asyncio's word for a line too long to be one.
    with contextlib.suppress(OSError, ValueError, TimeoutError):
        async for line in reader:
            if _REQUEST.fullmatch(line):
                await _send_page(reader, writer)
                break
            writer.write(line)
            await writer.drain()
    writer.close()


async def _send_page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while (await reader.readline()).strip():
        pass
    page = f"{_heard(writer.get_extra_info('sockname'), writer.get_extra_info('peername'))}\n"
    head = f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
    writer.write((head + page).encode())
    writer.write_eof()
    # Closing with something unread resets the connection and may cost the client the page (RFC 9112, 9.6).
    async with asyncio.timeout(_PATIENCE):
        while await reader.read(65536):
            pass


def _reply(listener: socket.socket) -> None:
    """Answer one datagram from the very address and port that it was sent to."""
    family = next(family for family in _FAMILIES if family.number == listener.family)
    with contextlib.suppress(OSError):
        payload, notes, _, caller = listener.recvmsg(65535, 256)
        called = next(note for _, kind, note in notes if kind == family.original_destination)
        address = socket.inet_ntop(family.number, called[family.address])
        here = (address, int.from_bytes(called[2:4], "big"))
        with socket.socket(family.number, socket.SOCK_DGRAM) as mouth:
            mouth.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            mouth.setsockopt(family.level, family.transparent, 1)
            mouth.bind(here)
            mouth.sendto(f"{_heard(here, caller)}: ".encode() + payload, caller)


def _heard(here: Sequence[object], caller: Sequence[object]) -> str:
    return f"{here[0]} heard you from {caller[0]}"
