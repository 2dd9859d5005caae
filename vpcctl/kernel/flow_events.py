"""Flows that begin and end in a router, as ctnetlink multicasts them (net/netfilter/nf_conntrack_netlink.c).

The kernel queues a message for each, up to a limit; what comes faster than it is read is lost, and the kernel says so
once (netlink(7): ENOBUFS).  A flow begins when its first packet has left the router: a packet that is dropped begins
none.  Since Linux 5.19 the kernel prepares an entry for reports only while somebody listens, so the end of a flow that
began before is not reported (net/netfilter/nf_conntrack_ecache.c: nf_ct_ecache_ext_add).
"""

from __future__ import annotations

import errno
import socket

from vpcctl.analysis.tracking import Counted
from vpcctl.errors import KernelError
from vpcctl.kernel import claims, netlink
from vpcctl.kernel.conntrack import CT_DELETE, CT_NEW, MESSAGE_HEADER, counted
from vpcctl.kernel.namespaces import entered
from vpcctl.values import dataclass

# include/uapi/linux/netlink.h; enum nfnetlink_groups
NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_DESTROY = 1, 3
# So many bytes of messages the kernel queues, as far as net.core.rmem_max allows; a message takes about a kilobyte.
QUEUE = 1 << 20
# So many messages are read at once, so that no router delays the others; more than the kernel queues.  Once it has lost
# one, it queues no other before all are read (net/netlink/af_netlink.c: NETLINK_S_CONGESTED).
AT_ONCE = 4096
LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Happened:
    """A flow began, or ended."""

    began: bool
    flow: Counted


@dataclass(frozen=True, slots=True)
class HeardFlows:
    """The result of one read: what happened, and whether messages were lost before."""

    events: tuple[Happened, ...]
    lost: bool


class FlowListener:
    """A socket in a namespace that hears its flows begin and end.

    Raises KernelError if that fails, GoneError or ConflictError if the namespace is gone or not ours.
    """

    def __init__(self, namespace: str):
        self.namespace = namespace
        self._identity = claims.mounted(namespace)
        with entered(namespace):
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETLINK_NETFILTER
            )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE)
            self._socket.bind((0, 0))
            for group in (NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_DESTROY):
                self._socket.setsockopt(netlink.SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            self.close()
            raise KernelError(f"cannot listen to connection tracking in {namespace}", str(error)) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket: an open one keeps its namespace alive."""
        self._socket.close()

    @property
    def current(self) -> bool:
        """Is the namespace still the one of that name?"""
        return self._identity is not None and claims.mounted(self.namespace) == self._identity

    def read(self) -> HeardFlows:
        """Read the queued messages, at most AT_ONCE."""
        events: list[Happened] = []
        lost = False
        for _ in range(AT_ONCE):
            try:
                data, (sender, _) = self._socket.recvfrom(LONGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(
                        f"cannot listen to connection tracking in {self.namespace}", str(error)
                    ) from error
                lost = True
                continue
            # Only the kernel's own messages count; anybody in the namespace could send others.
            if sender == 0:
                events += decoded(data)
        return HeardFlows(tuple(events), lost)


def decoded(data: bytes) -> list[Happened]:
    """The events in what was received at once."""
    found = []
    for kind, body in netlink.messages(memoryview(data)):
        if kind in (CT_NEW, CT_DELETE):
            flow = counted(body[MESSAGE_HEADER:])
            if flow is not None:
                found.append(Happened(kind == CT_NEW, flow))
    return found
