"""nftables' vocabulary as text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpcctl.compiler.nft import (
    COMMENT_LIMIT,
    Chain,
    Element,
    Hook,
    NftRule,
    RateLimit,
    Set,
    Table,
    comment_text,
    quoted,
    removal,
    transaction,
)


@given(st.text())
def test_a_comment_is_of_a_safe_alphabet_and_short_enough(text: str) -> None:
    reduced = comment_text(text)
    assert re.fullmatch(rf"[A-Za-z0-9 ._,:/#=+~-]{{0,{COMMENT_LIMIT}}}", reduced)
    assert len(reduced) == min(len(text), COMMENT_LIMIT)
    assert comment_text(reduced) == reduced


def test_a_long_comment_keeps_its_end_where_the_line_is_named() -> None:
    assert comment_text("x" * 500 + "web.json#/ingress/3").endswith("web.json#/ingress/3")


@pytest.mark.parametrize("character", "\"\\\n\r\t{};$'`\x00é")
def test_what_could_end_a_string_is_replaced(character: str) -> None:
    assert comment_text(f"a{character}b") == "a_b"


def test_rules_and_elements_carry_their_comments() -> None:
    assert str(NftRule("accept")) == "accept"
    assert str(NftRule("counter drop", "web.json#/ingress/0")) == 'counter drop comment "web.json#/ingress/0"'
    assert str(NftRule("drop", '"; flush ruleset')) == 'drop comment "__ flush ruleset"'
    assert str(Element("10.0.0.2 . 80")) == "10.0.0.2 . 80"
    assert str(Element("80", "drop", "x")) == '80 comment "x" : drop'
    assert str(Element("80", "drop")) == "80 : drop"


def test_a_set_is_written_with_its_flags_and_without_what_it_has_not() -> None:
    assert list(Set("s", "inet_service").lines()) == ["set s {", "\ttype inet_service", "}"]
    full = Set("m", "ipv4_addr . inet_service", (Element("10.0.0.0/8 . 1-2", "drop"),), "verdict", True, True)
    assert list(full.lines()) == [
        "map m {",
        "\ttype ipv4_addr . inet_service : verdict",
        "\tflags interval",
        "\tcounter",
        "\telements = {",
        "\t\t10.0.0.0/8 . 1-2 : drop,",
        "\t}",
        "}",
    ]


def test_a_limit_is_written_with_its_burst() -> None:
    assert list(RateLimit("l", 10, "minute", 20).lines()) == ["limit l {", "\trate 10/minute burst 20 packets", "}"]


def test_a_base_chain_says_where_it_hooks_and_why() -> None:
    hook = Hook("filter", "forward", "filter", "drop")
    assert list(Chain("c", (NftRule("accept"),), hook, 'the "why"\n').lines()) == [
        "# the _why__",
        "chain c {",
        "\ttype filter hook forward priority filter; policy drop;",
        "\taccept",
        "}",
    ]
    assert list(Chain("c").lines()) == ["chain c {", "}"]


def test_a_transaction_adds_and_deletes_every_table_before_it_makes_any() -> None:
    one, other = Table("inet", "t", (Set("s", "mark"),), (Chain("c"),)), Table("arp", "t")
    assert transaction((one, other), 'who "x"').splitlines() == [
        "add table inet t",
        "delete table inet t",
        "add table arp t",
        "delete table arp t",
        "",
        "table inet t {",
        '\tcomment "who _x_"',
        "",
        "\tset s {",
        "\t\ttype mark",
        "\t}",
        "",
        "\tchain c {",
        "\t}",
        "}",
        "",
        "table arp t {",
        '\tcomment "who _x_"',
        "}",
    ]


def test_removal_holds_whether_or_not_a_table_is_there() -> None:
    assert removal((("inet", "t"),)) == "add table inet t\ndelete table inet t\n"
    assert removal(()) == ""


def test_interface_names_are_strings_of_the_grammar() -> None:
    assert quoted("br-web") == '"br-web"'
