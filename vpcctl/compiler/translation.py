"""Source NAT: ports of its own, in the host and in the routers, so that no tenant's flow takes what others need.

Connection tracking keeps a source port where it can.  So a tenant that sends from port 53 would take the answer's
tuple of a remote host to port 53, and with it what that host sends to the machine's own port 53 (port shadow, kin of
CVE-2021-3773).  Translated flows get a port at random out of NAT_PORTS, less the ports that somebody serves.  The same
range bounds what a VPC can take of one remote service.  Protocols without ports are translated for the VPC alone that
has them by name.
"""

from __future__ import annotations

from collections.abc import Iterable

from vpcctl.compiler.nft import Chain, NftRule, anonymous
from vpcctl.model.network import NAT_PORTS
from vpcctl.model.policy import ICMP
from vpcctl.model.protocols import PORTED, TRANSLATED

# More pieces than these are not worth their rules: the smallest are left out.
MOST_RANGES = 64

Range = tuple[int, int]


def ranges_beside(published: Iterable[Range], reserved: Iterable[int]) -> list[Range]:
    """NAT_PORTS without published ports, and without `reserved` ones as far as these leave half of them.

    Any user of the host can wait on thousands of ports, and must not have the VPCs' source NAT for that.
    """
    published = list(published)
    found = free_ranges((*published, *((port, port) for port in reserved)))
    half = (NAT_PORTS[1] - NAT_PORTS[0] + 1) // 2
    return found if sum(high - low + 1 for low, high in found) >= half else free_ranges(published)


def free_ranges(taken: Iterable[Range]) -> list[Range]:
    """NAT_PORTS without the ranges `taken`: the largest pieces, in ascending order."""
    low, end = NAT_PORTS
    found = []
    for first, last in sorted(set(taken)):
        if last < low or first > end:
            continue
        if first > low:
            found.append((low, first - 1))
        low = max(low, last + 1)
    if low <= end:
        found.append((low, end))
    return sorted(sorted(found, key=lambda piece: piece[0] - piece[1])[:MOST_RANGES])


def share(ranges: Iterable[Range], ports: int) -> list[Range]:
    """The lowest `ports` ports of `ranges`."""
    found = []
    for low, high in ranges:
        if ports > 0:
            found.append((low, min(high, low + ports - 1)))
            ports -= high - low + 1
    return found


def translating(
    name: str, match: str, statement: str, ranges: list[Range], portless: Iterable[int]
) -> tuple[list[NftRule], list[Chain]]:
    """The rules that translate what `match` matches, with ports of `ranges`, and the chains that they go to.

    `statement` is what follows, as ``snat ip to 100.64.0.1``; `portless` are the protocols without ports that are
    translated, too.  Of several ranges one is drawn by lot, each as often as it has ports: a statement takes one range.
    """
    plain = NftRule(f"{match} {_among((ICMP, *portless))} {statement.removesuffix(' to ')}")
    match = f"{match} {_among(PORTED)}"
    if not ranges:
        return [plain], []
    if len(ranges) == 1:
        return [NftRule(f"{match} {_to(statement, ranges[0])}"), plain], []
    chains, elements, drawn = [], [], 0
    for number, (low, high) in enumerate(ranges, 1):
        elements.append(f"{drawn}-{drawn + high - low} : goto {name}.{number}")
        drawn += high - low + 1
        chains.append(Chain(f"{name}.{number}", (NftRule(_to(f"{_among(PORTED)} {statement}", (low, high))),)))
    return [NftRule(f"{match} numgen random mod {drawn} vmap {anonymous(elements)}"), plain], chains


def _to(statement: str, ports: Range) -> str:
    return f"{statement}:{ports[0]}-{ports[1]} fully-random"


def ported() -> str:
    """A match of the protocols that have ports."""
    return _among(PORTED)


def translated() -> str:
    """A match of the protocols that are translated for every VPC."""
    return _among(TRANSLATED)


def untranslated(others: Iterable[int] = ()) -> str:
    """A match of the protocols that cannot be translated, and are not among `others`."""
    return _among((*TRANSLATED, *others), "!= ")


def _among(protocols: Iterable[int], negation: str = "") -> str:
    return f"meta l4proto {negation}{anonymous(list(map(str, sorted(protocols))))}"
