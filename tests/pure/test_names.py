"""Names of kernel objects: within their limits, one of a kind, and readable where they fit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpcctl import names
from vpcctl.errors import DocumentError

users_names = st.from_regex(names.NAME, fullmatch=True)
derivations = (names.bridge, names.port, names.peer_link, names.host_uplink)


@given(users_names)
def test_derived_interface_names_are_such_as_the_kernel_takes(name: str) -> None:
    for derive in derivations:
        derived = derive(name)
        assert 0 < len(derived) <= names.INTERFACE_LIMIT
        # dev_valid_name() in net/core/dev.c.
        assert not re.search(r"[\s/:]", derived)
        assert derived not in (".", "..")
        assert derived == derive(name)


@given(users_names, users_names)
def test_different_names_are_derived_differently_and_kinds_never_meet(one: str, other: str) -> None:
    kinds = [{derive(name) for name in (one, other)} for derive in derivations]
    assert all(len(found) == len({one, other}) for found in kinds)
    assert len(set.union(*kinds)) == sum(map(len, kinds))
    assert not set.union(*kinds) & {names.UPLINK, "lo", "eth0"}


def test_names_that_begin_alike_are_told_apart() -> None:
    alike = [f"production-frontend-web-{number:02}" for number in range(100)]
    assert len({names.bridge(name) for name in alike}) == len(alike)


@pytest.mark.parametrize(("name", "derived"), [("web", "br-web"), ("a" * 12, "br-" + "a" * 12)])
def test_a_name_that_fits_stays_readable(name: str, derived: str) -> None:
    assert names.bridge(name) == derived


def test_a_name_that_does_not_fit_keeps_its_beginning_and_can_be_nobodys() -> None:
    derived = names.bridge("a" * 13)
    assert re.fullmatch(r"br-aaaaa~[a-z2-7]{6}", derived)
    assert not names.NAME.fullmatch(derived)


@pytest.mark.parametrize("name", ["a", "A", "7", "web-2", "a_b", "x" * 32, "0-_", "Router"])
def test_good_names(name: str) -> None:
    assert names.check_name(name, "VPC") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "_a",
        "a b",
        "a/b",
        "../a",
        "a.b",
        "ä",
        "x" * 33,
        "web\n",
        "\nweb",
        "a;b",
        'a"',
        "a{",
        "$(x)",
        None,
        5,
        b"a",
    ],
)
def test_bad_names(name: object) -> None:
    with pytest.raises(DocumentError, match=r"VPC name .* is not valid: 1 to 32 of A-Z a-z 0-9 - _"):
        names.check_name(name, "VPC")


def test_the_name_of_the_router_is_reserved() -> None:
    with pytest.raises(DocumentError, match="instance name 'router' is reserved"):
        names.check_name("router", "instance")


@given(users_names, users_names)
def test_namespaces_are_file_names_and_an_instance_is_never_the_router(vpc: str, instance: str) -> None:
    namespace = names.instance_namespace(vpc, instance)
    assert len(namespace.encode()) <= 255
    assert "/" not in namespace
    assert namespace[0] not in ".-"
    if instance not in names.RESERVED:
        assert namespace != names.router_namespace(vpc)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_mac_addresses_are_local_unicast_and_depend_on_the_words_alone(words: list[str]) -> None:
    mac = names.stable_mac(*words)
    assert re.fullmatch(r"02(:[0-9a-f]{2}){5}", mac)
    assert mac == names.stable_mac(*words)
    assert mac != names.stable_mac(*words, "")


def test_where_one_word_ends_makes_a_difference() -> None:
    assert names.stable_mac("ab", "c") != names.stable_mac("a", "bc")


@given(users_names)
def test_tags_fit_an_alias_and_tell_state_directories_apart(vpc: str) -> None:
    tag = names.tag("0a1b2c3d", vpc, f"instance/{vpc}")
    assert tag.startswith("vpcctl/0a1b2c3d/")
    # IFALIASZ is 256 with its end (include/uapi/linux/if.h).
    assert len(tag) < 256
    assert tag != names.tag("0a1b2c3e", vpc, f"instance/{vpc}")
