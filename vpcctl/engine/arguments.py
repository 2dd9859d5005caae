"""Arguments of requests that may be words or values: DocumentError where a word means nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from vpcctl.documents import fields
from vpcctl.errors import DocumentError
from vpcctl.model.policy import PROTOCOL_NAMES, PROTOCOLS, Address, Network
from vpcctl.model.protocols import PORTED

Word = TypeVar("Word")
Value = TypeVar("Value")


def prefix(value: Network | str) -> Network:
    """The prefix of a VPC or a subnet."""
    return _parsed(fields.parse_own_prefix, value) if isinstance(value, str) else value


def address(value: Address | str | None) -> Address | None:
    """The address of an instance, None where it is chosen by us."""
    return _parsed(fields.parse_address, value) if isinstance(value, str) else value


def ports(value: int | str | tuple[int, int]) -> tuple[int, int]:
    """The first and the last of published ports: one port, ``8000-8010``, or both as numbers."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,5}(?:-[0-9]{1,5})?", value, re.ASCII):
        raise DocumentError(f"{value!r} is not a port; a port or a range such as 8000-8010 is expected")
    return _parsed(fields.parse_port_range, value)


def portless(value: int | str) -> int:
    """The number of a protocol without ports."""
    return _parsed(fields.parse_portless, value)


def ported(name: str) -> int:
    """The number of a protocol with ports."""
    if PROTOCOLS.get(name) not in PORTED:
        from vpcctl.documents.reading import nearest

        known = sorted(PROTOCOL_NAMES[number] for number in PORTED)
        raise DocumentError(f"{name!r} is not a protocol with ports; {nearest(name, known)}")
    return PROTOCOLS[name]


def _parsed(parse: Callable[[Word], Value], value: Word) -> Value:
    try:
        return parse(value)
    except ValueError as error:
        raise DocumentError(str(error)) from error
