"""The rules of the old xtables, as doctor reads them from the kernel."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.listings import (
    examined,
    severities,
)
from vpcctl.doctor import (
    legacy_tables,
)
from vpcctl.doctor.hook_verdicts import Listing

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
