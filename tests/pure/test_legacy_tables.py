"""The rules of the old xtables, as doctor reads them from the kernel."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

from tests.listings import (
    examined,
    severities,
)
from vpcctl.doctor.hook_verdicts import Listing
from vpcctl.kernel import legacy_tables, port_holders

# --- The old xtables --------------------------------------------------------------------------------------------------


def entry(target: bytes, come: bytes = b"", go: bytes = b"", matches: bytes = b"", inverted: int = 0) -> bytes:
    """One struct ipt_entry; names end with a zero unless they stand for all that begin so."""
    masks = [b"\xff" * len(one) for one in (come, go)]
    head = legacy_tables.ENTRY.pack(
        *[bytes(4)] * 4, come, go, *masks, 0, 0, inverted, 0,
        legacy_tables.ENTRY.size + len(matches), legacy_tables.ENTRY.size + len(matches) + len(target), 0, 0, 0,
    )  # fmt: skip
    return head + matches + target


def standard(verdict: int) -> bytes:
    return legacy_tables.EXTENSION.pack(40, b"", 0) + struct.pack("=i4x", verdict)


def error(name: bytes) -> bytes:
    return legacy_tables.EXTENSION.pack(64, b"ERROR", 0) + name.ljust(32, b"\0")


def states(mask: int, revision: int = 3, asked: int = 1) -> bytes:
    data = bytearray(160)
    legacy_tables.CONNTRACK.pack_into(data, legacy_tables.CONNTRACK_AT, asked, 0, mask)
    return legacy_tables.EXTENSION.pack(192, b"conntrack", revision) + bytes(data)


def legacy_table(*rules: bytes, policy: int = -1, chains: bytes = b"") -> Listing:
    """A table `filter` with one chain FORWARD."""
    body = b"".join(rules)
    block = body + entry(standard(policy)) + chains + entry(error(b"ERROR"))
    table = legacy_tables.LegacyTable("filter", {"forward": 0}, {"forward": len(body)}, block)
    return Listing(list(legacy_tables.listing(table)))


def test_a_legacy_tables_policy_counts() -> None:
    [found] = examined(legacy_table(), iptables_nft="iptables", iptables_legacy="iptables-legacy")
    assert "table ip filter-legacy, chain FORWARD: `policy drop`" in found.what
    assert found.commands[0] == "iptables-legacy -I FORWARD -i vpc-+ -o eth0 -j ACCEPT"
    assert severities(examined(legacy_table(policy=-2))) == ["ok"]


def test_a_legacy_tables_rules_are_read() -> None:
    out, back = entry(standard(-2), come=b"vpc-"), entry(standard(-2), go=b"vpc-", matches=states(2 | 4))
    assert severities(examined(legacy_table(out, back))) == ["ok"]
    [found] = examined(legacy_table(out))
    assert "drops replies to VPCs" in found.what
    other = entry(standard(-2), come=b"vpc-\0")  # a link of exactly that name
    assert severities(examined(legacy_table(other, back))) == ["fatal"]


def test_a_legacy_rule_that_asks_for_more_than_states_is_not_guessed() -> None:
    dnat = 256
    maybe = entry(standard(-2), matches=states(2 | 8 | dnat))
    assert severities(examined(legacy_table(maybe))) == ["warning"]
    for clear in (states(2 | 8, revision=1), states(2 | 8, asked=0x2001)):
        assert severities(examined(legacy_table(entry(standard(-2), matches=clear)))) == ["ok"]
    for unclear in (states(2 | 8, asked=3), states(2 | 8, revision=0)):
        assert severities(examined(legacy_table(entry(standard(-2), matches=unclear)))) == ["warning"]
    assert severities(examined(legacy_table(entry(standard(-2), matches=states(2 | 8))))) == ["ok"]


def test_a_legacy_rule_without_a_target_lets_the_next_one_decide() -> None:
    counting = entry(standard(len(entry(standard(0)))))
    assert severities(examined(legacy_table(counting, entry(standard(-2))))) == ["ok"]
    assert severities(examined(legacy_table(counting, entry(standard(-1)), policy=-2))) == ["fatal"]


def test_a_legacy_jump_goes_to_the_chain_of_its_offset() -> None:
    head = entry(error(b"mine"))
    first = len(entry(standard(0))) + len(entry(standard(-1))) + len(head)
    chains = head + entry(standard(-2)) + entry(standard(-5))
    assert severities(examined(legacy_table(entry(standard(first)), chains=chains))) == ["ok"]
    without = head + entry(standard(-5))
    assert severities(examined(legacy_table(entry(standard(first)), chains=without))) == ["fatal"]


def test_where_there_are_no_legacy_tables_none_is_asked_for(tmp_path: Path) -> None:
    assert legacy_tables.table_names(tmp_path) == []
    (tmp_path / "net").mkdir()
    (tmp_path / "net/ip_tables_names").write_text("filter\nnat\n")
    assert legacy_tables.table_names(tmp_path) == ["filter", "nat"]


# --- Who translates a port --------------------------------------------------------------------------------------------


def extension(name: bytes, data: bytes, revision: int = 0) -> bytes:
    size = (legacy_tables.EXTENSION.size + len(data) + 7) // 8 * 8
    return (legacy_tables.EXTENSION.pack(size, name, revision) + data).ljust(size, b"\0")


def tcp(low: int, high: int, inverted: int = 0) -> bytes:
    return extension(b"tcp", struct.pack("=HHHHBBBB", 0, 65535, low, high, 0, 0, 0, inverted))


def multiport(*ports: int, ranged: tuple[int, ...] = (), kind: int = 1, inverted: int = 0) -> bytes:
    flags = [number in ranged for number in range(15)]
    padded = [*ports, *[0] * (15 - len(ports))]
    data = legacy_tables.MULTIPORT.pack(kind, len(ports), *padded, *flags, inverted)
    return extension(b"multiport", data, 1)


def sctp(low: int, high: int, asked: int) -> bytes:
    return extension(b"sctp", struct.pack("=HHHH276xII", low, high, 0, 65535, asked, 0))


DNAT = legacy_tables.EXTENSION.pack(64, b"DNAT", 2) + bytes(32)


def translated(protocol: int, matches: bytes = b"", destination: str = "") -> list[tuple[set[int], list, bool]]:
    """The protocols and ports that a table `nat` with one rule translates, as `publish-port` sees them."""
    rule = bytearray(entry(DNAT, matches=matches))
    if destination:
        rule[4:8] = ipaddress.IPv4Address(destination).packed
        rule[12:16] = b"\xff" * 4
    struct.pack_into("=H", rule, 80, protocol)
    block = bytes(rule) + entry(standard(-2)) + entry(error(b"ERROR"))
    table = legacy_tables.LegacyTable("nat", {"prerouting": 0}, {"prerouting": len(rule)}, block)
    listing = "".join(legacy_tables.printed(list(legacy_tables.listing(table))))
    return [
        (set(rule.protocols), list(rule.ports), rule.addresses is None) for rule in port_holders.foreign_rules(listing)
    ]


def test_the_ports_that_a_legacy_rule_translates_are_read() -> None:
    assert translated(6, tcp(7500, 7500)) == [({6}, [(7500, 7500)], True)]
    assert translated(6, tcp(7500, 7600), "192.0.2.1") == [({6}, [(7500, 7600)], False)]
    assert translated(6, tcp(2, 65535, inverted=2)) == [({6}, [(1, 1)], True)]
    assert translated(6, tcp(0, 65535)) == [({6}, [(1, 65535)], True)]
    assert translated(17, multiport(53, 100, 200, 500, ranged=(1,))) == [
        ({17}, [(53, 53), (100, 200), (500, 500)], True)
    ]
    assert translated(6, multiport(53, kind=0)) == [({6}, [(1, 65535)], True)]
    assert translated(132, sctp(7, 9, asked=2)) == [({132}, [(7, 9)], True)]
    assert translated(132, sctp(7, 9, asked=1)) == [({132}, [(1, 65535)], True)]
    # A rule that asks for no protocol translates the ports of all.
    assert translated(0) == [({6, 17, 132}, [(1, 65535)], True)]


def test_a_legacy_table_is_printed_as_nft_prints_its_own() -> None:
    chains = entry(error(b"DOCKER")) + entry(DNAT, matches=tcp(80, 80))
    rule = entry(standard(0))
    begin = len(rule) + len(entry(standard(-2))) + len(entry(error(b"DOCKER")))
    rule = entry(standard(begin))
    block = rule + entry(standard(-2)) + chains + entry(error(b"ERROR"))
    table = legacy_tables.LegacyTable("nat", {"prerouting": 0}, {"prerouting": len(rule)}, block)
    listing = "".join(legacy_tables.printed(list(legacy_tables.listing(table))))
    assert listing == (
        "table ip nat-legacy {\n"
        "\tchain PREROUTING {\n"
        "\t\ttype filter hook prerouting priority -100; policy accept;\n"
        "\t\tjump DOCKER\n"
        "\t}\n"
        "\tchain DOCKER {\n"
        '\t\ttcp dport { 80 } xt target "DNAT"\n'
        "\t}\n"
        "}\n"
    )
