"""Single values of a document: what the words of one field mean.

Each `parse_…` raises ValueError with what was found and what is expected; the caller adds the place of the field.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable

from vpcctl.model.network import HIGHEST_PROTOCOL
from vpcctl.model.policy import (
    HIGHEST_PORT,
    ICMP,
    ICMP_PROTOCOLS,
    ICMPV6,
    LOWEST_PORT,
    PORT_PROTOCOLS,
    PROTOCOL_NAMES,
    PROTOCOLS,
    Action,
    Address,
    Endpoint,
    Limit,
    Network,
    Range,
)

# The names that nft(8) uses for ICMP and ICMPv6 types (RFC 792, RFC 4443, RFC 4861).
ICMP_TYPES = {
    "echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8,
    "router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12,
    "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15, "info-reply": 16,
    "address-mask-request": 17, "address-mask-reply": 18,
}  # fmt: skip
ICMPV6_TYPES = {
    "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
    "echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131,
    "mld-listener-done": 132, "nd-router-solicit": 133, "nd-router-advert": 134, "nd-neighbor-solicit": 135,
    "nd-neighbor-advert": 136, "nd-redirect": 137, "router-renumbering": 138, "ind-neighbor-solicit": 141,
    "ind-neighbor-advert": 142, "mld2-listener-report": 143,
}  # fmt: skip
SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
TYPE_NAMES = {ICMP: ICMP_TYPES, ICMPV6: ICMPV6_TYPES}
HIGHEST_ICMP_TYPE = 255
EVERY_PORT = (0, HIGHEST_PORT)


def _quoted(value: object) -> str:
    """A value as it was found; what reads whole documents is imported for mistakes alone."""
    from vpcctl.documents.reading import quote

    return quote(value)


def parse_protocol(value: str | int) -> int | None:
    text = str(value).lower()
    if text == "any":
        return None
    if isinstance(value, float):
        raise ValueError(f"{value} is not a protocol number (0–255); write {int(value)}")
    number = PROTOCOLS[text] if text in PROTOCOLS else int(text)
    if number > HIGHEST_PROTOCOL:
        raise ValueError(f"{_quoted(value)} is not a protocol number (0–255)")
    return number


# What people call the protocols without ports that are tunnelled most (IANA, Assigned Internet Protocol Numbers).
PORTLESS_NAMES = {"ipip": 4, "gre": 47, "esp": 50, "ah": 51}


def parse_portless(value: str | int) -> int:
    """The number of a protocol without ports, given so or by name."""
    text = str(value).lower()
    if text in PORTLESS_NAMES:
        return PORTLESS_NAMES[text]
    if not re.fullmatch("[0-9]{1,3}", text, re.ASCII) or int(text) > HIGHEST_PROTOCOL:
        known = ", ".join(PORTLESS_NAMES)
        raise ValueError(
            f"{_quoted(value)} is not a protocol without ports; expected: {known}, or a number from 0 to 255"
        )
    if int(text) in (*PORT_PROTOCOLS, *ICMP_PROTOCOLS):
        raise ValueError(f"{_quoted(value)} is always translated by source NAT; omit it")
    return int(text)


def parse_ports(value: str | int, protocol: int | None) -> Range:
    if protocol not in PORT_PROTOCOLS:
        has = "any protocol" if protocol is None else PROTOCOL_NAMES.get(protocol, f"protocol {protocol}")
        if not (protocol is None and value == "*"):
            raise ValueError(f'{_quoted(value)} is a port, and {has} has none; add "protocol": tcp, udp or sctp')
    if value == "*":
        return EVERY_PORT
    if isinstance(value, float):
        raise ValueError(f"{value} is not a port (1–65535); write {int(value)}")
    low, _, high = str(value).partition("-")
    first = int(low)
    span = first, int(high) if high else first
    if span == EVERY_PORT:
        raise ValueError(f'{_quoted(value)} begins with 0, and ports begin at 1; omit "port" for every port')
    for port in span:
        if not LOWEST_PORT <= port <= HIGHEST_PORT:
            raise ValueError(f"{port} is not a port (1–65535)")
    if span[0] > span[1]:
        raise ValueError(f"{_quoted(value)} is an empty range; {span[1]}-{span[0]} is the other way round")
    return span


def parse_port_range(value: str | int | float) -> Range:
    """The first and the last of published ports, given as one port or as ``8000-8010``."""
    # 8080.0 is an integer to JSON Schema, and no port to nftables.
    low, _, high = str(int(value) if isinstance(value, float) else value).partition("-")
    span = int(low), int(high or low)
    for port in span:
        if not LOWEST_PORT <= port <= HIGHEST_PORT:
            raise ValueError(f"{_quoted(value)} is not a port or a range of ports ({LOWEST_PORT}–{HIGHEST_PORT})")
    if span[0] > span[1]:
        raise ValueError(f"{_quoted(value)} is not a range of ports; write {high}-{low}")
    return span


def every_port(found: tuple[Range, ...]) -> bool:
    return EVERY_PORT in found


def parse_icmp_type(value: str | int, protocol: int | None) -> Range:
    if protocol not in ICMP_PROTOCOLS:
        raise ValueError(f'{_quoted(value)} is an ICMP type; add "protocol": "icmp" or "icmpv6"')
    if isinstance(value, str):
        known = TYPE_NAMES[protocol]
        if value not in known:
            from vpcctl.documents.reading import nearest

            hint = _type_hint(value, known) or nearest(value, sorted(known))
            raise ValueError(f"{_quoted(value)} is not a type of {PROTOCOL_NAMES[protocol]}; {hint}")
        value = known[value]
    return int(value), int(value)


def _type_hint(text: str, known: dict[str, int]) -> str | None:
    """What to write for an ICMP type in words of others: a number in quotes, or the program's name."""
    if text == "ping":
        return 'write "echo-request"'
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > HIGHEST_ICMP_TYPE:
        return None
    name = next((name for name, number in known.items() if number == int(text)), None)
    return f'write {int(text)} or "{name}"' if name else f"write {int(text)}, without quotes"


def parse_limit(text: str, action: Action) -> Limit:
    if action is not Action.ALLOW:
        raise ValueError(f"a limit goes with the action allow, and this rule's is {action.value}")
    rate, _, rest = text.partition("/")
    unit, _, burst = rest.partition(" burst ")
    limit = Limit(int(rate), unit, int(burst)) if burst else Limit(int(rate), unit)
    # The kernel keeps the burst as the nanoseconds that it is worth, in 64 bits (net/netfilter/nft_limit.c).
    most = (2**64 - 1) // (SECONDS[unit] * 10**9 // limit.rate)
    if limit.burst > most:
        raise ValueError(f"{_quoted(text)} has a burst that the kernel cannot count; {most} is the highest")
    return limit


def parse_endpoint(text: str) -> Endpoint:
    """An endpoint of the language; ValueError says what is wrong with it."""
    if text in ("any", "internet"):
        return Endpoint(text)
    kind, colon, name = text.partition(":")
    if colon and kind in ("subnet", "instance", "vpc", "set"):
        return Endpoint(kind, name)
    return Endpoint("prefix", prefix=parse_prefix(text))


# Rules name the same prefixes again and again.  A cache of every prefix of a long list would cost more than it saves.
@functools.lru_cache(maxsize=1 << 15)
def parse_prefix(text: str) -> Network:
    """A prefix without host bits, or an address as a prefix of full length; ValueError says what is wrong."""
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        pass
    else:
        # ipaddress makes a function for each prefix of full length.  It is never called, and keeps `text` and 300 bytes
        # more.
        vars(found).pop("hosts", None)
        return found
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{_quoted(text)} is not a prefix such as 10.0.1.0/24") from None
    raise ValueError(f"{_quoted(text)} has bits set beyond its prefix length; {meant} is the prefix")


def parse_own_prefix(text: str) -> Network:
    """A prefix that a VPC or a subnet may have."""
    prefix = parse_prefix(text)
    if prefix.version != 4:
        raise ValueError(f"{_quoted(text)} is an IPv6 prefix, which is not supported yet; IPv4 is expected")
    return prefix


def parse_address(text: str) -> Address:
    """An IP address; ValueError says what is wrong."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{_quoted(text)} is not an address such as 10.0.1.9") from None


# What each expects, for messages that must not show the value.
EXPECTED: dict[Callable[..., object], str] = {
    parse_protocol: "a protocol (a name, or a number 0–255) is expected",
    parse_ports: "a port or a range of them (1–65535) is expected, with protocol tcp, udp or sctp",
    parse_icmp_type: "a type of ICMP or ICMPv6 is expected, with that protocol",
    parse_portless: "a protocol without ports is expected: gre, esp, ah, ipip or its number",
    parse_limit: "a limit that the kernel can count is expected, and the action allow",
    parse_endpoint: "an endpoint is expected; a prefix has no bits set beyond its length",
    parse_prefix: "a prefix such as 10.0.1.0/24 is expected, without bits set beyond its length",
    parse_own_prefix: "an IPv4 prefix such as 10.0.1.0/24 is expected, without bits set beyond its length",
    parse_port_range: "a port or a range of them (1–65535) is expected",
    parse_address: "an address such as 10.0.1.9 is expected",
}
