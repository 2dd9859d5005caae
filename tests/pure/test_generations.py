"""No generation is given twice, whatever state file was restored."""

from __future__ import annotations

import dataclasses

import pytest

from vpcctl.analysis import packetset
from vpcctl.analysis.tracking import Ends, Tracked
from vpcctl.compiler import Compiled
from vpcctl.compiler.nft import Chain, NftRule, Table
from vpcctl.engine import generations
from vpcctl.kernel import tables
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.kinds import Ruleset, from_json, to_json

OWNER = "vpcctl/x/shop/ruleset"
CONTENT = Compiled((Table("inet", "vpcctl", (), (Chain("c", (NftRule("ct mark 5 accept"),)),)),), OWNER, "abc")
MINE = Ruleset("shop-router", ("inet",), OWNER, "abc", 5, CONTENT)
OTHER = dataclasses.replace(MINE, fingerprint="def", content=dataclasses.replace(CONTENT, fingerprint="def"))


def given(item: Ruleset, loaded: Ruleset | None, marks: tuple[int, ...], recorded: Ruleset = MINE) -> int:
    """The generation that `item` gets where `loaded` is loaded and flows have these marks."""
    kernel = FakeKernel()
    if loaded is not None:
        kernel.objects[loaded.key] = loaded
    ends = Ends(packetset.IPV6_BASE - 1, 1, 1, 1)
    kernel.tracked["shop-router"] = [Tracked(17, ends, ends, mark) for mark in marks]
    known = {recorded.key: recorded}
    found = generations.raised(kernel, {"shop": (item,)}, known, all_of=True)["shop"][0]
    assert isinstance(found, Ruleset)
    assert f"define generation = {found.generation}\n" in found.text
    assert f'{found.fingerprint} {found.generation}"' in found.text
    assert "ct mark 5 accept" in found.text
    return found.generation


@pytest.mark.parametrize(
    ("loaded", "marks", "wanted"),
    [
        (MINE, (5, 4), 5),
        (None, (), 5),
        (None, (5, 4), 5),
        (None, (7,), 8),
        (OTHER, (5,), 6),
        (MINE.at(4), (4,), 5),
        (OTHER.at(8), (6, 7), 9),
        (MINE.at(8), (8,), 9),
    ],
)
def test_the_ruleset_on_record_is_loaded_as_a_generation_that_means_nothing_else(
    loaded: Ruleset | None, marks: tuple[int, ...], wanted: int
) -> None:
    assert given(MINE, loaded, marks) == wanted


@pytest.mark.parametrize(
    ("loaded", "marks", "wanted"),
    [
        (MINE.at(4), (4, 3), 5),
        (None, (4,), 5),
        # The same number, admitted by another ruleset whose record is lost.
        (None, (5,), 6),
        (MINE, (5,), 6),
        (MINE.at(9), (2, 9), 10),
    ],
)
def test_a_new_ruleset_never_gets_a_generation_that_was(
    loaded: Ruleset | None, marks: tuple[int, ...], wanted: int
) -> None:
    assert given(OTHER, loaded, marks, recorded=MINE.at(4)) == wanted


def test_a_ruleset_from_the_record_cannot_be_loaded() -> None:
    """Its batch would be empty, and leave the namespace without rules."""
    recorded = from_json(to_json(MINE))
    assert recorded == MINE
    assert isinstance(recorded, Ruleset)
    assert recorded.text is None
    assert recorded.at(6).text is None
    nothing = (lambda: None, lambda gate, fingerprint: None)
    for load in (FakeKernel().ensure, lambda item: tables.load(None, item, *nothing)):
        with pytest.raises(AssertionError, match="from the record"):
            load(recorded)
