"""The kernel and the state after each step of the story, for tests of changes and repairs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.failing_machine import Machine, Watched
from tests.story import LEAPS, STORY, Step, told
from vpcctl.engine.state import State

Life = dict[str, tuple[Watched, State]]


@pytest.fixture(scope="module")
def life() -> Life:
    """The kernel and the state after each step of the story."""
    machine = Machine()
    found = {"the beginning": (machine.kernel.copy(), machine.state)}
    for name, step in STORY:
        machine.change(step)
        found[name] = (machine.kernel.copy(), machine.state)
    return found


NAMES = ["the beginning", *(name for name, _ in STORY)]
STEPS = {name: (NAMES[number], step) for number, (name, step) in enumerate(STORY)}


def leap(target: str) -> Step:
    return lambda world: told(target)


TRANSITIONS = [pytest.param(before, step, id=name) for name, (before, step) in STEPS.items()]
TRANSITIONS += [pytest.param(one, leap(other), id=f"{one} → {other}") for one, other in LEAPS]
transitions = pytest.mark.parametrize(("before", "step"), TRANSITIONS)
Anew = Callable[[str], Machine]


@pytest.fixture
def anew(life: Life) -> Anew:
    """A machine as it was after the step of that name."""

    def made(name: str) -> Machine:
        kernel, state = life[name]
        return Machine(kernel.copy(), state)

    return made


FULL = "tighten the policy"
