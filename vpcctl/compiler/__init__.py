"""A world becomes rulesets: one for each VPC, and a small one for the host.

Theory of operation.  `compile_vpc` walks the sections in the order in which a packet meets them and puts their sets and
chains into one table (plus one of the ARP and one of the bridge family).  The text never depends on anything but the
world, so equal texts mean equal rulesets: a fingerprint of it stands in the table's comment, and a text that is loaded
already is not loaded again.  The fingerprint is computed from the gates' fingerprints and all the rest, so a gate with
a known fingerprint need not be compiled for it.  The *generation*, which changes with every load, is kept out of the
text by a `define`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vpcctl import names
from vpcctl.compiler.chains import CLOSED, SECTIONS, frames, neighbours
from vpcctl.compiler.host_table import host_table
from vpcctl.compiler.nft import FINGERPRINT_LENGTH, Chain, RateLimit, RulesetPart, Set, Table, transaction
from vpcctl.compiler.view import View
from vpcctl.digest import sha256
from vpcctl.model.host import NO_PART, HostPart
from vpcctl.model.network import World
from vpcctl.values import dataclass


@dataclass(frozen=True, slots=True)
class Compiled:
    """The tables of a ruleset with gates as parts, and the fingerprint of their text (hexadecimal)."""

    outline: tuple[Table, ...]
    owner: str
    fingerprint: str

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables with all their objects; this compiles gates that were not compiled yet."""
        return tuple(table.whole() for table in self.outline)

    @property
    def families(self) -> tuple[str, ...]:
        """The families of the tables."""
        return tuple(table.family for table in self.outline)

    @property
    def gates(self) -> dict[str, RulesetPart]:
        """The gates by name."""
        return {part.name: part for table in self.outline for part in table.parts}

    def text(self, generation: int) -> str:
        """The batch as ``nft -f`` takes it.  `generation` is the mark of admitted flows, 1 to 2**32 - 1."""
        comment = table_comment(self.owner, self.fingerprint, generation)
        return f"define generation = {generation}\n\n{transaction(self.outline, comment)}"


def table_comment(owner: str, fingerprint: str, generation: int) -> str:
    """What stands in a table's comment: whose it is, and which text and generation were loaded."""
    return f"{owner} {fingerprint} {generation}"


def compile_vpc(world: World, name: str, owner: str, known: Mapping[str, str] | None = None) -> Compiled:
    """The ruleset of the VPC `name`; `owner` is the tag that its tables carry.

    `known` are fingerprints of gates by name; these gates are not compiled for the ruleset's fingerprint.
    """
    view = View.of(world, name, known)
    sets: list[Set | RateLimit | RulesetPart] = []
    chains: list[Chain | RulesetPart] = []
    for section in SECTIONS:
        more_sets, more_chains = section(view)
        sets += more_sets
        chains += more_chains
    arp_sets, arp_chains = neighbours(view)
    frame_sets, frame_chains = frames(view)
    return _finished(
        (
            Table("inet", names.TABLE, tuple(sets), tuple(chains)),
            Table("arp", names.TABLE, tuple(arp_sets), tuple(arp_chains)),
            Table("bridge", names.TABLE, tuple(frame_sets), tuple(frame_chains)),
        ),
        owner,
    )


def compile_closed(owner: str) -> Compiled:
    """The ruleset of a VPC on its way down: nothing passes."""
    return _finished((Table("inet", names.TABLE, (), CLOSED),), owner)


def compile_host(
    world: World, owner: str, host: HostPart = NO_PART, leaving: Iterable[tuple[str, str]] = ()
) -> Compiled:
    """The table of `host`.

    `leaving` are uplinks that are not of `world` and still there, as (link, router's address).
    """
    return _finished((host_table(world, host, leaving),), owner)


def _finished(tables: tuple[Table, ...], owner: str) -> Compiled:
    gates = [f"{part.name} {part.fingerprint}\n" for table in tables for part in table.parts]
    words = transaction(tuple(table.without_parts() for table in tables), owner) + "".join(gates)
    return Compiled(tables, owner, sha256(words.encode()).hex()[:FINGERPRINT_LENGTH])
