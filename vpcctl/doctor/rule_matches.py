"""Does a packet satisfy a match of a rule?  True, False, or None if this module does not know.

Values are those of libnftables-json(5).  A field that the packet does not have (a TCP port of an ICMP packet) makes a
match false with every operator, as in the kernel, where the expression ends the rule.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from vpcctl.kernel.legacy_tables import NONE_OF
from vpcctl.values import dataclass

Truth = bool | None
Sets = Mapping[str, Sequence[Any]]

PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58,
             "ipv6-icmp": 58, "comp": 108, "sctp": 132, "udplite": 136}  # fmt: skip
ICMP_TYPES = {"echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8,
              "router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12,
              "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15, "info-reply": 16,
              "address-mask-request": 17, "address-mask-reply": 18}  # fmt: skip
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge
}  # fmt: skip
HALF_OF_THE_INTERNET = 2**31


class _Some(frozenset[str]):
    """Flags that are set, though not necessarily all of them: the kernel has some for its own use."""


class _Absent:
    """The packet has no such field."""


class _Unknown:
    """The packet has the field, and this module does not know what is in it."""


ABSENT, UNKNOWN = _Absent(), _Unknown()


@dataclass(frozen=True, slots=True)
class SamplePacket:
    """One forwarded IPv4 packet as a hook sees it.

    An interface that the hook does not know is "" (no interface) or UNKNOWN.  An address that is None is somewhere out
    in the internet, and no rule names it: it is in a prefix only if most addresses are.  `protocol` is tcp, udp or
    icmp; `port` is the service's; a reply comes back from it.  `opener` is the source of the flow's first packet.
    """

    iifname: str | _Unknown
    oifname: str | _Unknown
    source: IPv4Address | _Unknown | None
    destination: IPv4Address | _Unknown | None
    protocol: str
    port: int = 0
    opener: IPv4Address | None = None
    reply: bool = False
    status: frozenset[str] = frozenset()
    # For a hook before routing: the link to which its destination is routed.
    leaves: str | _Unknown = UNKNOWN
    # A rule somewhere sets marks, so ours may have one.
    marked: bool = False

    CLIENT_PORT = 49152

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port."""
        return (self.port, self.CLIENT_PORT) if self.reply else (self.CLIENT_PORT, self.port)


def match(body: Mapping[str, Any], packet: SamplePacket, sets: Sets) -> Truth:
    """A match statement for this packet; `sets` are the elements of the table's named sets."""
    left, right, operation = body.get("left"), body.get("right"), body.get("op", "==")
    elements = _elements(right, sets)
    if elements is not None:
        found = any_of(same(left, element, packet) for element in elements)
        return _negated(found, left, packet) if operation == "!=" else found if operation in ("==", "in") else None
    if operation in ("==", "in", "!=", NONE_OF):
        return _compared(value(left, packet), right, operation)
    held = value(left, packet)
    if held is ABSENT:
        return False
    comparable = isinstance(held, int) and isinstance(right, int) and operation in COMPARISONS
    return COMPARISONS[operation](held, right) if comparable else None


def same(left: Any, element: Any, packet: SamplePacket) -> Truth:
    """Is what `left` yields for this packet the element of a set, of any shape?"""
    if isinstance(element, Mapping) and "elem" in element:
        element = element["elem"].get("val")
    fields = left.get("concat") if isinstance(left, Mapping) else None
    if fields is None:
        return _compared(value(left, packet), element, "==")
    parts = element.get("concat") if isinstance(element, Mapping) else None
    if parts is None or len(parts) != len(fields):
        return None
    return all_of(_compared(value(one, packet), part, "==") for one, part in zip(fields, parts, strict=True))


def any_of(truths: Any) -> Truth:
    """True if one is; unknown if one may be."""
    seen = set(truths)
    return True if True in seen else None if None in seen else False


def all_of(truths: Any) -> Truth:
    """False if one is; unknown if one may be."""
    seen = set(truths)
    return False if False in seen else None if None in seen else True


def _negated(found: Truth, left: Any, packet: SamplePacket) -> Truth:
    fields = left.get("concat", [left]) if isinstance(left, Mapping) else [left]
    if any(value(one, packet) is ABSENT for one in fields):
        return False
    return None if found is None else not found


def _elements(right: Any, sets: Sets) -> Sequence[Any] | None:
    """The elements of a set, anonymous or named; None if `right` is not a set."""
    if isinstance(right, str) and right.startswith("@"):
        return sets.get(right[1:], ())
    return right["set"] if isinstance(right, Mapping) and "set" in right else None


# --- What a packet has ------------------------------------------------------------------------------------------------


def value(left: Any, packet: SamplePacket) -> Any:
    """What the left side of a match yields for this packet.

    An int, a str, a frozenset of flags, an IPv4Address, None for an address in the internet, ABSENT or
    UNKNOWN.
    """
    if not isinstance(left, Mapping) or len(left) != 1:
        return UNKNOWN
    [(kind, body)] = left.items()
    if kind == "&":
        return _masked(body, packet)
    if not isinstance(body, Mapping):
        return UNKNOWN
    if kind == "meta":
        return _meta(packet).get(str(body.get("key")), UNKNOWN)
    if kind == "ct":
        if (body.get("dir"), body.get("key")) in (("original", "ip saddr"), ("original", "saddr")):
            return packet.opener
        return UNKNOWN if "dir" in body else _tracked(packet).get(str(body.get("key")), UNKNOWN)
    if kind == "payload":
        return _header(str(body.get("protocol")), str(body.get("field")), packet)
    if kind == "fib":
        # Both ends of a forwarded packet are unicast addresses of other machines.
        plain = body.get("result") == "type" and body.get("flags") in (["saddr"], ["daddr"], "saddr", "daddr")
        routed = body.get("result") in ("oif", "oifname") and body.get("flags") in (["daddr"], "daddr")
        return "unicast" if plain else packet.leaves if routed else UNKNOWN
    return UNKNOWN


def _masked(body: Any, packet: SamplePacket) -> Any:
    held, mask = value(body[0], packet), body[1]
    if isinstance(held, int) and isinstance(mask, int):
        return held & mask
    names = _flag_names(mask)
    if isinstance(held, frozenset) and names is not None:
        return frozenset(held & names)  # the flags that are asked for are known
    return held if held is ABSENT else UNKNOWN


def _meta(packet: SamplePacket) -> dict[str, Any]:
    return {
        "iifname": packet.iifname,
        "iif": packet.iifname,
        "oifname": packet.oifname,
        "oif": packet.oifname,
        "nfproto": "ipv4",
        "protocol": "ip",
        "l4proto": PROTOCOLS[packet.protocol],
        "mark": UNKNOWN if packet.marked else 0,
        "pkttype": "host",
        "skuid": ABSENT,
        "skgid": ABSENT,
    }


def _tracked(packet: SamplePacket) -> dict[str, Any]:
    return {
        "state": frozenset({"established" if packet.reply else "new"}),
        "direction": "reply" if packet.reply else "original",
        "status": _Some(packet.status),
        "mark": UNKNOWN if packet.marked else 0,
    }


def _header(protocol: str, name: str, packet: SamplePacket) -> Any:
    source, destination = packet.ports
    if protocol == "ip":
        fields = {"saddr": packet.source, "daddr": packet.destination, "protocol": PROTOCOLS[packet.protocol]}
        return (fields | {"version": 4}).get(name, UNKNOWN)
    if protocol in ("th", packet.protocol) and packet.protocol != "icmp":
        flags = frozenset({"syn", "ack"} if packet.reply else {"syn"})
        return {"sport": source, "dport": destination, "flags": flags}.get(name, UNKNOWN)
    if protocol == "th" and packet.protocol == "icmp":
        # The bytes where others have their ports are type and code, and the checksum.
        return (ICMP_TYPES["echo-reply" if packet.reply else "echo-request"] << 8) if name == "sport" else UNKNOWN
    if protocol == packet.protocol == "icmp":
        return {"type": ICMP_TYPES["echo-reply" if packet.reply else "echo-request"], "code": 0}.get(name, UNKNOWN)
    known = protocol in PROTOCOLS or protocol in ("ip6", "arp", "vlan", "frag", "hbh", "rt", "mh")
    return ABSENT if known else UNKNOWN


# --- Comparing --------------------------------------------------------------------------------------------------------


def _compared(held: Any, wanted: Any, operation: str) -> Truth:
    """`held` against one value, list of flags, prefix or range."""
    if held is ABSENT:
        return False
    if held is UNKNOWN:
        return None
    if isinstance(held, frozenset):
        return _flags_compared(held, wanted, operation)
    found = _equal(held, wanted)
    return found if found is None or operation != "!=" else not found


def _flags_compared(held: frozenset[str], wanted: Any, operation: str) -> Truth:
    """`in` wants one of the flags, NONE_OF none; `==` and `!=` compare all flags with exactly these."""
    names = _flag_names(wanted)
    if names is None:
        return None
    if operation in ("in", NONE_OF):
        return bool(held & names) == (operation == "in")
    return None if isinstance(held, _Some) else (held == names) == (operation == "==")


def _flag_names(mask: Any) -> frozenset[str] | None:
    """The names in `a`, `a,b`, ``[a, b]`` or ``{"|": [a, b]}``; 0 is no flag."""
    if isinstance(mask, str):
        return frozenset({mask})
    if isinstance(mask, int):
        return frozenset() if mask == 0 else None
    parts = mask.get("|") if isinstance(mask, Mapping) else mask
    if not isinstance(parts, Sequence):
        return None
    found = [_flag_names(part) for part in parts]
    return None if None in found else frozenset().union(*filter(None, found))


def _equal(held: Any, wanted: Any) -> Truth:
    if isinstance(wanted, Mapping):
        if "range" in wanted:
            return _in_range(held, *wanted["range"])
        if "prefix" in wanted and (held is None or isinstance(held, IPv4Address)):
            return _in_networks(held, f"{wanted['prefix']['addr']}/{wanted['prefix']['len']}")
        return None
    if held is None or isinstance(held, IPv4Address):
        return _in_networks(held, wanted) if isinstance(wanted, str) else None
    if isinstance(held, int):
        return _number_equal(held, wanted)
    if not isinstance(wanted, str):
        return None
    if wanted.endswith("*"):
        return bool(held.startswith(wanted[:-1]))
    return bool(held == wanted)


def _number_equal(held: int, wanted: Any) -> Truth:
    if isinstance(wanted, str):
        wanted = PROTOCOLS.get(wanted, ICMP_TYPES.get(wanted))
    return None if wanted is None or not isinstance(wanted, int) else held == wanted


def _in_range(held: Any, low: Any, high: Any) -> Truth:
    if held is None or isinstance(held, IPv4Address):
        try:
            first, last = IPv4Address(low), IPv4Address(high)
        except ValueError:
            return None
        return first <= held <= last if held else int(last) - int(first) + 1 >= HALF_OF_THE_INTERNET
    numbers = isinstance(held, int) and isinstance(low, int) and isinstance(high, int)
    return low <= held <= high if numbers else None


def _in_networks(held: IPv4Address | None, text: str) -> Truth:
    try:
        network = IPv4Network(text, strict=False)
    except ValueError:
        return None
    return held in network if held else network.num_addresses >= HALF_OF_THE_INTERNET
