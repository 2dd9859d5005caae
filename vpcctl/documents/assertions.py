"""What people write as invariants: an array of assertions, alone or as a field of an environment or of a VPC in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vpcctl.documents import reading
from vpcctl.documents.codec import invariant_from_json
from vpcctl.documents.fastpath import accepts
from vpcctl.errors import DocumentError, Problem
from vpcctl.model.network import Invariant

# By the VPC that they belong to; None is the machine.
Stated = dict[str | None, tuple[Invariant, ...]]


def read_assertions(document: Any, file: str) -> list[dict[str, str]]:
    """The assertions of a document, their form checked; DocumentError with every problem found."""
    if not accepts("assertions", document):
        problems = reading.structure_problems(document, "assertions", file)
        if problems:
            raise DocumentError(*problems)
    found: list[dict[str, str]] = document
    return found


def read_invariants(document: Any, file: str, vpc: str | None) -> tuple[Invariant, ...]:
    """The invariants of a document for a VPC, or for the machine where `vpc` is None; DocumentError.

    One of a VPC is about traffic of this VPC.
    """
    found = _invariants(read_assertions(document, file), vpc, f"{file}#")
    strange = [number for number, one in enumerate(found) if vpc is not None and vpc not in one.ends]
    if strange:
        words = f"neither end is in VPC {vpc}; leave --vpc out"
        raise DocumentError(*(Problem(file, f"/{number}", words) for number in strange))
    return found


def stated(document: dict[str, Any], file: str) -> Stated:
    """The invariants of a sound environment document: those of the VPCs, and of the machine, that it speaks of."""
    found: Stated = {}
    if "invariants" in document:
        found[None] = _invariants(document["invariants"], None, f"{file}#/invariants")
    for number, vpc in enumerate(document.get("vpcs", ())):
        if "invariants" in vpc:
            place = f"{file}#/vpcs/{number}/invariants"
            found[vpc["name"]] = _invariants(vpc["invariants"], vpc["name"], place)
    return found


def _invariants(assertions: Sequence[dict[str, str]], vpc: str | None, place: str) -> tuple[Invariant, ...]:
    return tuple(invariant_from_json(one, vpc, f"{place}/{number}") for number, one in enumerate(assertions))
