"""Words of other firewalls and clouds: what to write for them in a document of ours.

They are only hints in messages.  No word here is ever accepted for another.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

# Names of services that people write for ports, from the registry of IANA.
SERVICES = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "dns": 53, "domain": 53, "tftp": 69, "http": 80, "pop3": 110,
    "ntp": 123, "imap": 143, "snmp": 161, "bgp": 179, "ldap": 389, "https": 443, "submission": 587, "syslog": 514,
    "ldaps": 636, "imaps": 993, "pop3s": 995, "nfs": 2049, "mysql": 3306, "rdp": 3389, "postgres": 5432,
    "postgresql": 5432, "amqp": 5672, "vnc": 5900, "redis": 6379, "mongodb": 27017,
}  # fmt: skip
# Protocols that a policy names by number.
NUMBERED = {"igmp": 2, "ipip": 4, "gre": 47, "esp": 50, "ah": 51, "ospf": 89, "vrrp": 112}
_EVERYTHING = frozenset({"all", "*", "-1", "any", "ip", "ipv4", "0", ""})
_ANYWHERE = frozenset({"*", "all", "any", "anywhere", "everyone", "world", "0/0"})
_ALLOW = frozenset({"accept", "accepted", "permit", "permitted", "pass", "allowed"})
_DENY = frozenset({"drop", "dropped", "block", "blocked", "discard", "denied"})
_UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "seconds"), "second"),
    **dict.fromkeys(("m", "min", "mins", "minutes"), "minute"),
    **dict.fromkeys(("h", "hr", "hrs", "hours"), "hour"),
    **dict.fromkeys(("d", "days"), "day"),
}

_TEXT = dict.fromkeys(("comment", "comments", "remark", "note", "annotation"), "description")
_PREFIX = dict.fromkeys(("cidr_block", "CidrBlock", "cidrBlock", "prefix", "network", "ip_range", "range"), "cidr")
_SIDES = {
    **dict.fromkeys(("inbound", "in", "input", "incoming"), "ingress"),
    **dict.fromkeys(("outbound", "out", "output", "outgoing"), "egress"),
}
_FROM = ("src", "from", "saddr", "source_ip", "source_ips", "source_cidr", "source_address", "source_addresses")
_TO = ("dst", "dest", "to", "daddr", "destination_ip", "destination_cidr", "destination_address")
_PORTS = ("ports", "dport", "dports", "dst_port", "dest_port", "destination_port", "port_range", "to_port")
# By the kind of the object: the fields that people write, and ours in their stead.
RENAMED: Mapping[str, Mapping[str, str]] = {
    "rule": {
        **_TEXT,
        **dict.fromkeys(_FROM, "source"),
        **dict.fromkeys(_TO, "destination"),
        **dict.fromkeys(_PORTS, "port"),
        **dict.fromkeys(("proto", "ip_protocol", "IpProtocol"), "protocol"),
        **dict.fromkeys(("target", "verdict", "jump"), "action"),
        **dict.fromkeys(("icmptype", "icmp-type", "icmpType"), "icmp_type"),
    },
    "policy": {**_TEXT, **_SIDES},
    "collection": _TEXT,
    "default": _SIDES,
    "vpc": _PREFIX,
    "subnet": _PREFIX,
    "instance": dict.fromkeys(("address", "ip_address", "ipv4", "ip_addr"), "ip"),
    "publication": {
        **dict.fromkeys(("host_port", "external_port", "published"), "port"),
        **dict.fromkeys(("container_port", "targetPort", "internal_port", "to_port"), "target_port"),
        **dict.fromkeys(("proto",), "protocol"),
    },
}
_CIDRS = frozenset({"cidr", "cidrs", "cidr_blocks", "cidr_ip", "CidrIp", "ip", "prefix", "prefixes"})
_SOURCE_PORTS = frozenset({"source_port", "source_ports", "sport", "sports", "src_port"})
_STATES = frozenset({"state", "ctstate", "ct_state", "connection_state"})
_ORDER = frozenset({"priority", "order", "rule_number", "precedence"})
# The field that identifies the kind of an object; the first match decides.
_KINDS = {
    "action": "rule", "vpcs": "environment", "policies": "collection", "subnets": "vpc", "nat_gateway": "subnet",
    "ip": "instance", "target_port": "publication", "subnet": "policy", "ingress": "default",
}  # fmt: skip


def kind_by_fields(fields: Collection[str]) -> str:
    """The kind of the object that has these fields in the schema."""
    return next((kind for field, kind in _KINDS.items() if field in fields), "")


def stands_for(word: str, kind: str) -> str | None:
    """The field of ours that an author who writes `word` in an object of that kind means."""
    return RENAMED.get(kind, {}).get(word)


def field_hint(word: str, kind: str, path: Collection[str | int]) -> str | None:
    """What to write instead of the field `word` in an object of that kind at `path`; None if that is not known."""
    if renamed := stands_for(word, kind):
        return f'write "{renamed}"'
    if kind == "policy" and word == "rules":
        return 'write "ingress" for what enters and "egress" for what leaves'
    if kind != "rule":
        return None
    if word in _CIDRS:
        return 'write "destination"' if "egress" in path else 'write "source"'
    if word in _SOURCE_PORTS:
        return 'source ports are not supported; remove it and write the port of the service as "port"'
    if word in _STATES:
        return "remove it: replies to an allowed flow always pass"
    if word in _ORDER:
        return "remove it: rules apply in the order of the array, and the first match decides"
    if word == "direction":
        return 'remove it and put the rule into "ingress" or "egress"'
    if word == "from_port":
        return 'write "port" with one port or a range "8000-8080"'
    return None


def value_hint(field: str, value: Any, publication: bool = False) -> str | None:
    """What to write instead of the wrong `value` of `field`; None if that is not known."""
    word = str(value).strip().lower() if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    if field == "protocol" and isinstance(value, list) and len(value) > 1:
        return "write one rule for each protocol"
    if word is None or len(word) > 64:
        return None
    if field == "protocol":
        return _protocol(word, publication)
    if field in ("port", "target_port"):
        return _published_port(word) if publication else _port(word, value)
    if field in ("source", "destination"):
        return 'write "any"' if word in _ANYWHERE else _group(word)
    if field == "limit" and (rate := re.fullmatch(r"([1-9][0-9]{0,8})(?:/|/? ?per ?)([a-z]+)", word)):
        return f'write "{rate[1]}/{_UNITS[rate[2]]}"' if rate[2] in _UNITS else None
    return None


def action_hint(value: Any, default: bool) -> str | None:
    """What to write instead of an action, or a default, of another firewall."""
    word = value.strip().lower() if isinstance(value, str) else None
    if word in _ALLOW:
        return 'write "allow"'
    if word in _DENY:
        return 'write "deny"' if default else 'write "deny" (no answer) or "reject" (an answer)'
    return None


def _protocol(word: str, publication: bool) -> str | None:
    if publication:
        return None
    if word in _EVERYTHING:
        return 'omit "protocol" for every protocol'
    if word in ("icmp6", "ipv6-icmp", "icmp-v6"):
        return 'write "icmpv6"'
    if word in NUMBERED:
        return f"write {NUMBERED[word]}"
    if both := re.fullmatch(r"(tcp|udp|sctp)[/:]([0-9]{1,5})", word):
        return f'write "protocol": "{both[1]}", "port": {int(both[2])}'
    if re.fullmatch(r"(tcp|udp|sctp)(?:[ ,/+_&|-]+(?:tcp|udp|sctp))+", word):
        return "write one rule for each protocol"
    return None


def _port(word: str, value: Any) -> str | None:
    if word in SERVICES:
        return f"write {SERVICES[word]}"
    if word in ("all", "any", "-1", ""):
        return 'omit "port" for every port'
    if re.fullmatch(r"[0-9]{1,5}", word) and isinstance(value, str) and value != word:
        return f"write {int(word)}"
    if re.fullmatch(r"[0-9]{1,5}(?:\s*[,; ]\s*[0-9]{1,5})+", word):
        return f"write [{', '.join(re.findall('[0-9]+', word))}]"
    if span := re.fullmatch(r"([0-9]{1,5})\s*(?::|-|–|\.\.)\s*([0-9]{1,5})", word):
        low, high = int(span[1]), int(span[2])
        return f'write "{low}-{high}"' if low <= high else None
    if both := re.fullmatch(r"(tcp|udp|sctp)[/:]([0-9]{1,5})|([0-9]{1,5})/(tcp|udp|sctp)", word):
        protocol, number = both[1] or both[4], both[2] or both[3]
        return f'write "protocol": "{protocol}", "port": {int(number)}'
    return None


def _published_port(word: str) -> str | None:
    if word in SERVICES:
        return f"write {SERVICES[word]}"
    if re.fullmatch(r"[1-9][0-9]{0,4}", word) and int(word) < 1 << 16:
        return f"write {word}, without quotes"
    if pair := re.fullmatch(r"([1-9][0-9]{0,4}):([1-9][0-9]{0,4})", word):
        return f'write "port": {pair[1]}, "target_port": {pair[2]}'
    if span := re.fullmatch(r"([1-9][0-9]{0,4})\s*(?::|-|–|\.\.)\s*([1-9][0-9]{0,4})", word):
        return f'write "{span[1]}-{span[2]}"' if int(span[1]) <= int(span[2]) < 1 << 16 else None
    return None


def _group(word: str) -> str | None:
    return 'write "subnet:NAME", "instance:NAME" or "set:NAME"' if re.fullmatch(r"sg-[0-9a-z]+", word) else None
