"""How many flows each rule of a policy decided, from the counters in a ruleset as libnftables lists it.

Sets and chains of a gate are called ``<direction>-<subnet>`` and what follows a dot, and every element and rule of
them carries the user's line as its comment; so a counter leads back to its line by these two.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from vpcctl.compiler.gates import gate_name, line_comments
from vpcctl.compiler.nft import comment_text
from vpcctl.model.network import Vpc, effective
from vpcctl.model.policy import WHOLE_VPC, Direction

Objects = Iterable[dict[str, Any]]


def hits(objects: Objects, vpc: Vpc, subnet: str, direction: Direction) -> list[int] | None:
    """The packets that each rule of a subnet's policy decided, in the document's order, the default's last.

    With ``*`` as the subnet it is the VPC's own policy, whose counts are the sums over all subnets.

    `objects` are those of `libnftables-json(5)`.  An allowed flow counts once, with its first packet; a denied one
    counts with every packet that it tries.  A change keeps the counts of rules whose content and position stay the
    same; a whole load starts at zero (ADR 25).  A flow that lives through a change counts once more with its next
    packet, unless that came during the change: then a shadow judged it.  None where the policy is silent about
    `direction`, or does not exist.
    """
    written = vpc.policy_of(subnet)
    rules = written.rules(direction) if written else None
    if rules is None:
        return None
    whole = subnet == WHOLE_VPC
    found = _counted(objects)
    total = [0] * (len(rules) + 1)
    for one in vpc.subnets if whole else (vpc.subnet(subnet),):
        policy = effective(vpc, one)
        assert policy is not None, "a policy was written"
        *lines, (default_is_own, default) = line_comments(policy, direction)
        gate = found[gate_name(one.name, direction)]
        mine = [comment for own, comment in lines if own is not whole]
        for number, comment in enumerate(mine):
            total[number] += gate[comment_text(comment)]
        if default_is_own is not whole:
            total[-1] += gate[comment_text(default)]
    return total


def _counted(objects: Objects) -> dict[str, Counter[str]]:
    """The packets by gate and comment."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for gate, comment, packets in _counters(objects):
        found[gate][comment] += packets
    return found


def _counters(objects: Objects) -> Iterator[tuple[str, str, int]]:
    """(gate, comment, packets) of every counted element and rule."""
    for entry in objects:
        for kind, value in entry.items():
            if kind in ("set", "map"):
                for element in value.get("elem", ()):
                    key = element[0] if isinstance(element, list) else element
                    inner = key.get("elem", {}) if isinstance(key, dict) else {}
                    if "counter" in inner:
                        yield _gate(value["name"]), inner.get("comment", ""), inner["counter"]["packets"]
            elif kind == "rule":
                for statement in value.get("expr", ()):
                    if isinstance(statement.get("counter"), dict):
                        yield _gate(value["chain"]), value.get("comment", ""), statement["counter"]["packets"]


def _gate(name: str) -> str:
    return name.partition(".")[0]
