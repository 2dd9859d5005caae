"""Connection tracking through ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h): read and forget entries.

Encoded and decoded here, because a table can hold a quarter of a million entries (see `netlink`).  A `Tracking` is
bound to the namespace in which it was opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from vpcctl.analysis.packetset import IPV6_BASE
from vpcctl.analysis.tracking import MOST_SELECTIONS, Counted, Ends, Key, Selection, Tracked
from vpcctl.errors import KernelError
from vpcctl.kernel import netlink
from vpcctl.kernel.namespaces import entered, system_call
from vpcctl.kernel.netlink import NLM_F_ACK, NLM_F_DUMP, NLMSG_ERROR, attribute, attributes, nested
from vpcctl.model.policy import ICMP_PROTOCOLS, SCTP, TCP
from vpcctl.resources.kinds import where

# Subsystem 1 is ctnetlink's.
CT_NEW, CT_GET, CT_DELETE, CT_GET_STATS_CPU, CT_GET_STATS = 1 << 8, 1 << 8 | 1, 1 << 8 | 2, 1 << 8 | 4, 1 << 8 | 5
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_MARK, CTA_FILTER = 1, 2, 3, 8, 25
CTA_PROTOINFO, CTA_TIMEOUT, CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY = 4, 7, 9, 10
CTA_COUNTERS_PACKETS, CTA_COUNTERS_BYTES = 1, 2
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_PROTO_ICMP_ID, CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMP_CODE = 4, 5, 6
CTA_PROTO_ICMPV6_ID, CTA_PROTO_ICMPV6_TYPE, CTA_PROTO_ICMPV6_CODE = 7, 8, 9
CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
# net/netfilter/nf_conntrack_netlink.c: CTA_FILTER_F_CTA_…
FILTER_IP_SRC, FILTER_PROTO_NUM, FILTER_PROTO_DST_PORT = 1 << 0, 1 << 3, 1 << 5
CTA_STATS_INSERT_FAILED, CTA_STATS_GLOBAL_ENTRIES = 9, 1
# membarrier(2): MEMBARRIER_CMD_GLOBAL, and the number of the call on the 64-bit machines where it is known.
MEMBARRIER_GLOBAL = 1
MEMBARRIER = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "loongarch64": 283}
IN_FLIGHT = 0.05
# enum ip_conntrack_status: a reply was seen, and enough of both directions that the entry is kept if the table is full.
IPS_SEEN_REPLY, IPS_ASSURED = 1 << 1, 1 << 2
# The states of a connection, numbered as in include/uapi/linux/netfilter/nf_conntrack_tcp.h and …_sctp.h.  The kernel
# reports them in an attribute of the protocol's own, within CTA_PROTOINFO: CTA_PROTOINFO_TCP_STATE, …_SCTP_STATE.
STATES = {
    TCP: "none syn-sent syn-recv established fin-wait close-wait last-ack time-wait close syn-sent2".split(),
    SCTP: (
        "none closed cookie-wait cookie-echoed established shutdown-sent shutdown-recd shutdown-ack-sent heartbeat-sent"
        " heartbeat-acked"
    ).split(),
}
CTA_PROTOINFO_STATE = 1
AT_ONCE = 64

# struct nfgenmsg
_FAMILY = struct.Struct("=BBH")
# Behind it are the attributes of a message.
MESSAGE_HEADER = _FAMILY.size


def settle() -> None:
    """Wait until every packet that is on its way through a ruleset now has left it.

    A packet passes its hooks within one read-side section of RCU, and this call waits for all of them
    (kernel/sched/membarrier.c: synchronize_rcu).  Where the kernel has no such call a pause has to do.
    """
    number = MEMBARRIER.get(platform.machine()) if sys.maxsize > 2**32 else None
    try:
        if number is not None:
            system_call(number, MEMBARRIER_GLOBAL, 0)
            return
    except OSError:
        pass
    time.sleep(IN_FLIGHT)


class Tracking:
    """The entries of one namespace; every method raises KernelError where the kernel refuses."""

    def __init__(self, namespace: str | None):
        self._namespace = namespace
        with entered(namespace), self._translated():
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, kind, netlink.NETLINK_NETFILTER)
            self._socket.bind((0, 0))

    def close(self) -> None:
        self._socket.close()

    def flows(self, selection: Selection | None = None) -> Iterator[Tracked]:
        """The entries, or those of a selection: the kernel filters them, since Linux 5.8."""
        with self._translated():
            for body in self._listed(selection):
                flow = _tracked(body)
                # A kernel without the filter answers with every entry.
                if flow is not None and (selection is None or flow in selection):
                    yield flow

    def counted(self, selection: Selection | None = None) -> Iterator[Counted]:
        """Likewise with their states and counters."""
        with self._translated():
            for body in self._listed(selection):
                found = counted(body)
                if found is not None and (selection is None or found.flow in selection):
                    yield found

    def _listed(self, selection: Selection | None) -> Iterator[memoryview]:
        version, chosen = (0, b"") if selection is None else (4, _filter(selection))
        self._socket.send(_message(CT_GET, NLM_F_DUMP, chosen, version))
        return self._dumped()

    def tally(self, addresses: Collection[int]) -> dict[int, tuple[int, int]]:
        """For each address, how many entries have it as the source of their first packet, and how many of replies.

        Up to MOST_SELECTIONS the kernel selects the entries; for more addresses the whole table is read once.
        """
        selections: list[Selection | None] = [
            Selection(source=one, of_replies=reply) for one in addresses for reply in (False, True)
        ]
        if len(selections) > MOST_SELECTIONS:
            selections = [None]
        opened, served = Counter[int](), Counter[int]()
        for selection in selections:
            for flow in self.flows(selection):
                # A selection is about one direction alone; an entry may come in both.
                if selection is None or not selection.of_replies:
                    opened[flow.original.source] += 1
                if selection is None or selection.of_replies:
                    served[flow.reply.source] += 1
        return {one: (opened[one], served[one]) for one in addresses}

    def count(self) -> int:
        """How many entries there are, those of packets on their way included."""
        with self._translated():
            self._socket.send(_message(CT_GET_STATS, NLM_F_ACK, b"", 0))
            found = 0
            while True:
                for kind, body in self._received():
                    if kind == NLMSG_ERROR:
                        netlink.check(body)
                        return found
                    values = dict(attributes(body[_FAMILY.size :]))
                    found = int.from_bytes(values.get(CTA_STATS_GLOBAL_ENTRIES, b""), "big")

    def forget(self, keys: Iterable[Key]) -> None:
        """Remove the entries with these keys; one that is gone already is success."""
        waiting = [_message(CT_DELETE, NLM_F_ACK, _key(key), _version(key.ends)) for key in keys]
        with self._translated():
            for first in range(0, len(waiting), AT_ONCE):
                some = waiting[first : first + AT_ONCE]
                self._socket.send(b"".join(some))
                self._acknowledged(len(some))

    def refused(self) -> int:
        """How many new flows found no free port, or lost a race for one, since the namespace was made."""
        with self._translated():
            self._socket.send(_message(CT_GET_STATS_CPU, NLM_F_DUMP, b"", 0))
            return sum(
                int.from_bytes(value, "big")
                for body in self._dumped()
                for kind, value in attributes(body)
                if kind == CTA_STATS_INSERT_FAILED
            )

    def _dumped(self) -> Iterator[memoryview]:
        """The attributes of every message of a dump."""
        return (body[_FAMILY.size :] for _, body in netlink.dumped(self._socket))

    def _acknowledged(self, wanted: int) -> None:
        while wanted:
            for kind, body in self._received():
                if kind == NLMSG_ERROR:
                    wanted -= 1
                    if netlink.error_number(body) != errno.ENOENT:
                        netlink.check(body)

    def _received(self) -> Iterator[tuple[int, memoryview]]:
        return netlink.messages(memoryview(self._socket.recv(netlink.BUFFER)))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KernelError(
                f"cannot read or change connection tracking in {where(self._namespace)};"
                " the kernel needs nf_conntrack_netlink",
                os.strerror(error.errno or errno.EIO),
            ) from error


# --- Encoding ---------------------------------------------------------------------------------------------------------


def _message(kind: int, flags: int, content: bytes, version: int) -> bytes:
    family = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}[version]
    return netlink.message(kind, flags, _FAMILY.pack(family, 0, 0) + content)


def _version(ends: Ends) -> int:
    return 4 if ends.source < IPV6_BASE else 6


def _address(number: int) -> bytes:
    return number.to_bytes(4, "big") if number < IPV6_BASE else (number - IPV6_BASE).to_bytes(16, "big")


def _key(key: Key) -> bytes:
    """The tuple that names an entry."""
    ends = key.ends
    source, destination = (CTA_IP_V4_SRC, CTA_IP_V4_DST) if _version(ends) == 4 else (CTA_IP_V6_SRC, CTA_IP_V6_DST)
    addresses = nested(
        CTA_TUPLE_IP,
        attribute(source, _address(ends.source)),
        attribute(destination, _address(ends.destination)),
    )
    protocol = [attribute(CTA_PROTO_NUM, bytes([key.protocol]))]
    if key.protocol in ICMP_PROTOCOLS:
        kinds = (
            (CTA_PROTO_ICMP_ID, CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMP_CODE)
            if _version(ends) == 4
            else (CTA_PROTO_ICMPV6_ID, CTA_PROTO_ICMPV6_TYPE, CTA_PROTO_ICMPV6_CODE)
        )
        values = (struct.pack("!H", ends.source_port), *(bytes([n]) for n in divmod(ends.destination_port, 256)))
        protocol += map(attribute, kinds, values)
    else:
        protocol.append(attribute(CTA_PROTO_SRC_PORT, struct.pack("!H", ends.source_port)))
        protocol.append(attribute(CTA_PROTO_DST_PORT, struct.pack("!H", ends.destination_port)))
    kind = CTA_TUPLE_REPLY if key.of_replies else CTA_TUPLE_ORIG
    return nested(kind, addresses, nested(CTA_TUPLE_PROTO, *protocol))


def _filter(selection: Selection) -> bytes:
    """The tuple with the fields of the selection, and the flags that name these fields."""
    kind, kind_of_flags = (
        (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS) if selection.of_replies else (CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS)
    )
    flags, parts = 0, []
    if selection.source is not None:
        flags |= FILTER_IP_SRC
        source = CTA_IP_V4_SRC if selection.source < IPV6_BASE else CTA_IP_V6_SRC
        parts.append(nested(CTA_TUPLE_IP, attribute(source, _address(selection.source))))
    if selection.protocol is not None:
        flags |= FILTER_PROTO_NUM
        protocol = [attribute(CTA_PROTO_NUM, bytes([selection.protocol]))]
        if selection.destination_port is not None:
            flags |= FILTER_PROTO_DST_PORT
            protocol.append(attribute(CTA_PROTO_DST_PORT, struct.pack("!H", selection.destination_port)))
        parts.append(nested(CTA_TUPLE_PROTO, *protocol))
    return nested(kind, *parts) + nested(CTA_FILTER, attribute(kind_of_flags, struct.pack("=I", flags)))


# --- Decoding ---------------------------------------------------------------------------------------------------------


def _tracked(body: memoryview) -> Tracked | None:
    """The entry of one message; None where it is of no family that we know."""
    ends: dict[int, Ends] = {}
    protocol = mark = status = 0
    for kind, value in attributes(body):
        if kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
            found = _tuple(value)
            if found is None:
                return None
            protocol, ends[kind] = found
        elif kind == CTA_MARK:
            mark = int.from_bytes(value, "big")
        elif kind == CTA_STATUS:
            status = int.from_bytes(value, "big")
    if len(ends) != 2:
        return None
    return Tracked(protocol, ends[CTA_TUPLE_ORIG], ends[CTA_TUPLE_REPLY], mark, status)


def counted(body: memoryview) -> Counted | None:
    """Likewise with its state and counters."""
    flow = _tracked(body)
    if flow is None:
        return None
    values = netlink.fields(body)
    packets, size = _counters(values.get(CTA_COUNTERS_ORIG))
    reply_packets, reply_size = _counters(values.get(CTA_COUNTERS_REPLY))
    expires = values.get(CTA_TIMEOUT)
    return Counted(
        flow,
        _state(flow, values.get(CTA_PROTOINFO)),
        None if packets is None else packets + (reply_packets or 0),
        None if size is None else size + (reply_size or 0),
        reply_packets,
        reply_size,
        None if expires is None else int.from_bytes(expires, "big"),
    )


def _counters(data: memoryview | None) -> tuple[int | None, int | None]:
    """Packets and bytes of one direction; None where the kernel does not count."""
    values = {} if data is None else netlink.fields(data)
    packets, size = values.get(CTA_COUNTERS_PACKETS), values.get(CTA_COUNTERS_BYTES)
    if packets is None or size is None:
        return None, None
    return int.from_bytes(packets, "big"), int.from_bytes(size, "big")


def _state(flow: Tracked, data: memoryview | None) -> str:
    """The state of a connection; of protocols without one, whether there were replies."""
    names = STATES.get(flow.protocol, ())
    for _, inner in attributes(data) if data is not None else ():
        number = netlink.fields(inner).get(CTA_PROTOINFO_STATE)
        if number is not None and number[0] < len(names):
            return names[number[0]]
    if flow.status & IPS_ASSURED:
        return "assured"
    return "replied" if flow.status & IPS_SEEN_REPLY else "unreplied"


def _tuple(data: memoryview) -> tuple[int, Ends] | None:
    """The protocol and the ends of one direction."""
    address: dict[int, int] = {}
    proto: dict[int, int] = {}
    for kind, value in attributes(data):
        if kind == CTA_TUPLE_IP:
            for inner, bytes_ in attributes(value):
                # The numbers of IPv6's attributes are two higher.
                base, slot = (IPV6_BASE, inner - 2) if inner > CTA_IP_V4_DST else (0, inner)
                address[slot] = base + int.from_bytes(bytes_, "big")
        elif kind == CTA_TUPLE_PROTO:
            proto = {inner: int.from_bytes(bytes_, "big") for inner, bytes_ in attributes(value)}
    if len(address) != 2 or CTA_PROTO_NUM not in proto:
        return None
    if CTA_PROTO_SRC_PORT in proto:
        ports = proto[CTA_PROTO_SRC_PORT], proto.get(CTA_PROTO_DST_PORT, 0)
    elif CTA_PROTO_ICMP_ID in proto:
        ports = proto[CTA_PROTO_ICMP_ID], proto[CTA_PROTO_ICMP_TYPE] << 8 | proto[CTA_PROTO_ICMP_CODE]
    elif CTA_PROTO_ICMPV6_ID in proto:
        ports = proto[CTA_PROTO_ICMPV6_ID], proto[CTA_PROTO_ICMPV6_TYPE] << 8 | proto[CTA_PROTO_ICMPV6_CODE]
    else:
        ports = 0, 0
    return proto[CTA_PROTO_NUM], Ends(address[CTA_IP_V4_SRC], ports[0], address[CTA_IP_V4_DST], ports[1])
