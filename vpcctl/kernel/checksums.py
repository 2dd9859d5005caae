"""The detour through a link without offloads, on which the kernel completes checksums before a packet is judged.

An ifb device hands every packet back to the link that received it.  Before it does, a packet whose checksum is not
complete gets it (net/core/dev.c: validate_xmit_skb), because the device says that it cannot calculate checksums
itself.  If the device is gone or down, the kernel drops the packets (net/sched/act_mirred.c).

TCP and UDP packets of 2048 bytes and more take no detour.  They are larger than any link carries, so the kernel
cuts them later, and it refuses those whose checksum does not begin at the transport header (net/ipv4/tcp_offload.c,
udp_offload.c: skb_checksum_start).  Cutting all of them here would cost four fifths of the throughput.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator
from typing import Any

from vpcctl.kernel.links import Rtnl
from vpcctl.kernel.netlink import NetlinkError
from vpcctl.resources.kinds import ChecksumLink, Detour
from vpcctl.resources.protocol import ABSENT, RIGHT, Condition, Status

# ioctl and commands of include/uapi/linux/sockios.h and ethtool.h; the value is one for on.
SIOCETHTOOL, ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM = 0x8946, 0x16, 0x17
# The parent of an ingress qdisc's filters (TC_H_INGRESS, include/uapi/linux/pkt_sched.h).
INGRESS = 0xFFFF0000
ETH_P_IP, TCA_EGRESS_REDIR = 0x0800, 1
# The upper five bits of the total length, byte 2 of the IPv4 header, are zero in packets below 2048 bytes.  A link's
# MTU must be lower.
OFFSET, MASK = 2, 0xF8000000
NOTHING = {errno.ENOENT, errno.EINVAL}  # what the kernel says of a qdisc that is not there, old and new


def ensure_link(rtnl: Rtnl, item: ChecksumLink) -> None:
    """Make the device; its offloads are off before it is ever up."""
    rtnl.ensure_ifb(item)
    if _offloads(rtnl, item.name):
        _ethtool(rtnl, item.name, ETHTOOL_STXCSUM, 0)


def remove_link(rtnl: Rtnl, item: ChecksumLink) -> None:
    """Delete the device if it is ours."""
    if rtnl.is_ours(item):
        rtnl.remove_link(item.name)


def ensure_detour(rtnl: Rtnl, item: Detour) -> None:
    """Have the link's ingress qdisc hold our filter and no other."""
    if observe_detour(rtnl, item) == RIGHT:
        return
    remove_detour(rtnl, item)
    index, target = rtnl.index(item.link), rtnl.index(item.through)
    with _traffic_control(rtnl) as control:
        control.tc("add", "ingress", index)
        control.tc(
            "add-filter",
            "u32",
            index,
            parent=INGRESS,
            prio=1,
            protocol=ETH_P_IP,
            target=0,
            keys=[f"0x0/{MASK:#x}+{OFFSET}"],
            action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target},
        )


def remove_detour(rtnl: Rtnl, item: Detour) -> None:
    """Remove the link's ingress qdisc, with all its filters."""
    index = rtnl.index(item.link)
    try:
        with _traffic_control(rtnl) as control:
            control.tc("del", "ingress", index)
    except NetlinkError as error:
        if error.errno not in NOTHING:
            raise


def observe_link(rtnl: Rtnl, item: ChecksumLink) -> Condition:
    """Compare the device with the item."""
    link = rtnl.link(item.name)
    condition = rtnl.observe_link(link, item, item.mac)
    if link is None or condition != RIGHT:
        return condition
    if link.kind != "ifb":
        return Condition(Status.DIFFERENT, f"is a link of kind {link.kind or 'none'}, expected ifb")
    if _offloads(rtnl, item.name):
        return Condition(Status.DIFFERENT, "does not complete checksums (tx-checksumming is on)")
    return RIGHT


def observe_detour(rtnl: Rtnl, item: Detour) -> Condition:
    """Compare the link's ingress filters with the item."""
    link, target = rtnl.link(item.link), rtnl.link(item.through)
    if link is None or target is None:
        return ABSENT
    with _traffic_control(rtnl) as control:
        dumped = list(control.get_filters(index=link.index, parent=INGRESS))
    found = [one for one in map(_described, dumped) if one is not None]
    if not found:
        return ABSENT
    if found != [(ETH_P_IP, [OFFSET, MASK], TCA_EGRESS_REDIR, target.index)]:
        return Condition(Status.DIFFERENT, f"has other filters, expected one that redirects to {item.through}")
    return RIGHT


@contextlib.contextmanager
def _traffic_control(rtnl: Rtnl) -> Iterator[Any]:
    """tc(8) in a namespace, by pyroute2: importing it takes a tenth of a second, so only who needs it does."""
    from pyroute2 import IPRoute
    from pyroute2.netlink import exceptions

    with rtnl.inside():
        control = IPRoute()
    try:
        yield control
    except exceptions.NetlinkError as error:
        raise NetlinkError(error.code) from error
    finally:
        control.close()


def _described(message: Any) -> tuple[Any, ...] | None:
    """The protocol, key, kind of redirection and target of a filter; None for what only holds the filters together."""
    options = message.get_attr("TCA_OPTIONS")
    selector = options.get_attr("TCA_U32_SEL") if hasattr(options, "get_attr") else None
    if message.get_attr("TCA_KIND") == "u32" and selector is None:
        return None
    protocol = socket.ntohs(message["info"] & 0xFFFF)
    if selector is None or len(selector["keys"]) != 1:
        return (protocol, None)
    # Which field is which depends on pyroute2: 0.9 reads a key four bytes too early.  The value, 0, is left out.
    fields = ("key_off", "key_offmask", "key_val", "key_mask")
    key = sorted(selector["keys"][0][name] for name in fields if selector["keys"][0][name])
    actions = options.get_attr("TCA_U32_ACT")
    first = actions.get_attr("TCA_ACT_PRIO_1") if actions is not None else None
    if first is None or first.get_attr("TCA_ACT_KIND") != "mirred":
        return (protocol, key)
    parameters = first.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
    return (protocol, key, parameters["eaction"], parameters["ifindex"])


def _offloads(rtnl: Rtnl, name: str) -> bool:
    return bool(_ethtool(rtnl, name, ETHTOOL_GTXCSUM, 0))


def _ethtool(rtnl: Rtnl, name: str, command: int, value: int) -> int:
    """One command of struct ethtool_value (include/uapi/linux/ethtool.h), and the value that comes back."""
    data = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
    # struct ifreq is 40 bytes, the name 16 of them.
    request = struct.pack("16sP16x", name.encode(), ctypes.addressof(data))
    with rtnl.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        fcntl.ioctl(channel, SIOCETHTOOL, request)
    answer: int = struct.unpack("=II", data.raw)[1]
    return answer
