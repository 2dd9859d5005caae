"""How many flows each rule of a policy decided, from the counters in a ruleset as libnftables lists it.

Sets and chains of a gate are called ``<direction>-<subnet>`` and what follows a dot, and every element and rule of
them carries the user's line as its comment; so a counter leads back to its line by these two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from vpcctl.compiler.nft import comment_text
from vpcctl.model.policy import Direction, Policy

DEFAULT = "default"


def hits(objects: Iterable[dict[str, Any]], policy: Policy, subnet: str, direction: Direction) -> list[int] | None:
    """The packets that each rule of the gate decided, in the document's order, the default's last.

    `objects` are those of `libnftables-json(5)`.  An allowed flow counts once, with its first packet; a denied one
    counts with every packet that it tries.  A change keeps the counts of rules whose content and position stay the
    same; a whole load starts at zero (ADR 25).  A flow that lives through a change counts once more with its next
    packet, unless that came during the change: then a shadow judged it.  None where the policy is silent about
    `direction`: no gate stands there.
    """
    rules = policy.rules(direction)
    if rules is None:
        return None
    wanted = f"{direction.value}-{subnet}"
    found: Counter[str] = Counter()
    for gate, comment, packets in _counters(objects):
        if gate == wanted:
            found[comment] += packets
    origins = [rule.origin for rule in rules] + [policy.origin(f"/{DEFAULT}")]
    return [found[comment_text(str(origin))] for origin in origins]


def _counters(objects: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str, int]]:
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
