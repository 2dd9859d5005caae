"""What the policies of one VPC may cost to compile, to load and to ask.

The bounds limit costs, not rules: many small rules are as welcome as one large list.  A policy in force was accepted
once, so it is compiled without a bound.
"""

from __future__ import annotations

import math

# Elements in all sets of a VPC's gates: what the kernel holds, and what everybody waits for while it is loaded.
MOST_ELEMENTS = 131_072
# Levels of one gate: a new flow asks each of them, one after the other.
MOST_LEVELS = 1_024
# Steps to find them for all gates of a VPC, each about a microsecond and, where it stores something, 100 bytes.
MOST_STEPS = 10_000_000


class TooMuchError(Exception):
    """A bound is passed: `rule` is the number of the rule with which it happened."""

    def __init__(self, message: str, rule: int):
        super().__init__(message)
        self.rule = rule


class Effort:
    """Counts what compiling costs; TooMuchError beyond a bound.  The bounds of a new one are infinite."""

    def __init__(self, elements: float = math.inf, levels: float = math.inf, steps: float = math.inf):
        self._most_elements, self._most_levels, self._most_steps = elements, levels, steps
        self.elements = self.steps = 0
        self.rule = 0

    @classmethod
    def bounded(cls) -> Effort:
        """What may be spent on one VPC."""
        return cls(MOST_ELEMENTS, MOST_LEVELS, MOST_STEPS)

    def spend(self, steps: int) -> None:
        """So many more steps."""
        self.steps += steps
        if self.steps > self._most_steps:
            self._refuse(
                f"the rules up to this one overlap too much: ordering them takes more than {self._most_steps:,} steps;"
                " merge rules that have the same action, or put them next to each other"
            )

    def take(self, elements: int) -> None:
        """So many more elements."""
        self.elements += elements
        if self.elements > self._most_elements:
            self._refuse(
                f"with this rule, the VPC's policies need {self.elements:,} set elements; at most"
                f" {self._most_elements:,} are allowed; use wider prefixes and port ranges instead of lists, or one set"
                " for several rules"
            )

    def level(self, number: int) -> None:
        """One more level of a gate."""
        if number > self._most_levels:
            self._refuse(
                f"with this rule, a new flow needs {number:,} lookups in sequence; at most {self._most_levels:,} are"
                " allowed; merge rules that have the same action, or put them next to each other"
            )

    def _refuse(self, message: str) -> None:
        raise TooMuchError(message, self.rule)
