"""Random changes of rulesets in the kernel: each has the same result as a whole load of the new ruleset.

Run as a program with a seed and a number of seconds.  A disagreement is printed with the seed.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import time
from functools import partial

from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from tests import worlds
from tests.pure.test_delta import CHANGES, changed
from vpcctl.compiler import compile_vpc
from vpcctl.kernel import tables
from vpcctl.model.network import World
from vpcctl.resources.kinds import Ruleset
from vpcctl.resources.protocol import RIGHT
from vpcctl.resources.topology import VPC_FAMILIES

OWNER = "vpcctl/tests/alpha/ruleset"
BATCH = 5
# How far apart the seeds of one run are.
SEEDS_APART = 100


def main(number: int, seconds: float) -> dict[str, int]:
    counts = {"changes": 0, "whole": 0}
    deadline = time.monotonic() + seconds
    nft, reference = tables.scratch(), tables.scratch()

    def known(former: Ruleset | None, gate: str, fingerprint: str) -> str | None:
        part = former and former.compiled.gates[gate]
        return part.text if part and part.fingerprint == fingerprint else None

    def arrives(one: World, other: World, kind: str, chance: random.Random) -> None:
        steps = [one, changed(one, other, kind, chance), one]
        compiled = [compile_vpc(world, "alpha", OWNER) for world in steps]
        assume(compiled[0].fingerprint != compiled[1].fingerprint)
        former = None
        for generation, content in enumerate(compiled, 1):
            item = Ruleset("alpha-router", VPC_FAMILIES, OWNER, content.fingerprint, generation, content, former)
            change = tables._change(nft, item, partial(known, former))
            if change is None:
                counts["whole"] += former is not None
                tables.load(nft, item, lambda: None, lambda gate, fingerprint: None)
            else:
                tables._carry_out(nft, None, change, lambda: None)
                counts["changes"] += 1
            found = tables.observe(item, nft, lambda: reference)
            assert found == RIGHT, f"seed {number}: {found}\n{change}"
            former = Ruleset("alpha-router", VPC_FAMILIES, OWNER, content.fingerprint, generation, content)
        tables.unload(nft, item)

    chosen = settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    kinds = st.sampled_from(CHANGES)
    while time.monotonic() < deadline:
        everything = given(worlds.worlds(), worlds.worlds(), kinds, st.randoms(use_true_random=False))
        seed(number)(chosen(everything(arrives)))()
        number += SEEDS_APART
    refuse(nft, reference)
    return counts


# The change flushes this chain only after the shadows judge.
SPOIL = """
flush chain inet vpcctl filter-forward
flush chain inet vpcctl judge-error
delete chain inet vpcctl judge-error
"""


def refuse(nft: tables.Context, reference: tables.Context) -> None:
    """If the kernel refuses a change half-way, a whole load follows."""
    content = compile_vpc(World((worlds._plain("alpha", 0, False, ()),)), "alpha", OWNER)
    former = Ruleset("alpha-router", VPC_FAMILIES, OWNER, content.fingerprint, 1, content)
    load = partial(tables.load, settle=lambda: None, text=lambda gate, fingerprint: None)
    load(nft, former)
    item = dataclasses.replace(former.at(2), former=former)
    load(nft, item)
    assert nft.tables()["inet", tables.TABLE].stamped
    assert nft.cmd(SPOIL)[0] == 0
    item = dataclasses.replace(former.at(3), former=item)
    load(nft, item)
    assert not nft.tables()["inet", tables.TABLE].stamped
    assert tables.observe(item, nft, lambda: reference) == RIGHT


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), float(sys.argv[2]))))
