"""A record and a kernel in memory that fail on demand, and check at each step what must always hold."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from tests.story import Step, nothing
from vpcctl.engine import convergence, reconciler
from vpcctl.engine.state import State, Store
from vpcctl.errors import KernelError
from vpcctl.model.network import World
from vpcctl.resources.fake import FakeKernel
from vpcctl.resources.kinds import Item, Namespace, Ruleset, Veth
from vpcctl.resources.protocol import HostFacts, HostLink

FACTS = HostFacts((HostLink(2, "eth0"), HostLink(3, "eth1", forwards=True), HostLink(4, "tap0", leads_out=False)))


EMPTY = State("0a1b2c3d")


class Crash(BaseException):
    """The process dies here: nothing of it runs any more."""


def struck(real: Callable[..., Any], number: int, late: bool) -> Callable[..., Any]:
    """`real`, whose call of this number is the process's last: it dies before, or if `late` after the call."""
    calls = itertools.count(1)

    def call(*given: Any) -> Any:
        last = next(calls) == number
        if last and not late:
            raise Crash
        found = real(*given)
        if last:
            raise Crash
        return found

    return call


class Watched(FakeKernel):
    """A kernel that fails on demand, several times if need be, and checks at each step what must always hold."""

    def __init__(self, facts: HostFacts = FACTS, boot: str = "boot-1"):
        super().__init__(facts, boot)
        self.failures: dict[int, BaseException] = {}
        self.generations: dict[tuple[str, int], str] = {}

    def ensure(self, item: Item) -> None:
        super().ensure(item)
        if isinstance(item, Ruleset) and item.namespace is not None:
            self._remember(item)
        if isinstance(item, (Ruleset, Veth)):
            self.watch()

    def remove(self, item: Item) -> None:
        super().remove(item)
        if isinstance(item, Namespace):
            gone = [key for key in self.generations if key[0] == item.namespace]
            for key in gone:
                del self.generations[key]
        if isinstance(item, Ruleset):
            self.watch()

    def _change(self, words: str, action: Callable[[], None]) -> None:
        failure = self.failures.get(len(self.calls) + 1)
        self.fail_at = len(self.calls) + 1 if failure else None
        self.failure = failure or self.failure
        super()._change(words, action)

    def _remember(self, item: Ruleset) -> None:
        """Marks of admitted flows outlive a ruleset, so no generation may ever mean two texts that admit."""
        if "accept" in item.text:
            key = (item.namespace, item.generation)
            assert self.generations.setdefault(key, item.fingerprint) == item.fingerprint, f"generation {key} again"

    def watch(self) -> None:
        """No link without the ruleset that judges it, no uplink that the host's table does not know."""
        rulesets = {item.namespace: item for item in self.objects.values() if isinstance(item, Ruleset)}
        known = re.findall(r'"(vpc-[^"]*)"', rulesets[None].text) if None in rulesets else []
        for item in self.objects.values():
            if isinstance(item, Veth):
                assert item.namespace in rulesets, f"{item} before a ruleset"
                assert item.peer_namespace is not None or item.peer_name in known, f"{item} and the host does not know"

    def copy(self) -> Watched:
        """The same machine once more."""
        twin = Watched(self._facts, self._boot)
        twin.objects, twin.generations = dict(self.objects), dict(self.generations)
        return twin


class Memory:
    """A state directory in memory, so that thousands of changes take seconds; test_state.py is about the real one.

    The write of number `failing` raises `error`, before the state is kept or, if `late`, after.
    """

    def __init__(self, state: State = EMPTY):
        self.state = state
        self.writes = 0
        self.failing = 0
        self.error: BaseException = Crash()
        self.late = False
        self.history: dict[str, bytes] = {}
        self.remarks: list[str] = []

    def append(self, name: str, size: int, line: bytes) -> bool:
        self.history[name] = self.history.get(name, b"")[:size] + line
        return True

    def keep(self, names: Collection[str]) -> None:
        self.history = {name: content for name, content in self.history.items() if name in names}

    @contextlib.contextmanager
    def locked(self) -> Iterator[Memory]:
        yield self

    def load(self) -> State:
        return self.state

    def save(self, state: State) -> State:
        self.writes += 1
        if self.writes == self.failing and not self.late:
            raise self.error
        self.state = dataclasses.replace(state, serial=state.serial + 1)
        if self.writes == self.failing:
            raise self.error
        return self.state


class Machine:
    """A record and a kernel."""

    def __init__(self, kernel: Watched | None = None, state: State = EMPTY, store: Store | None = None):
        self.kernel = kernel or Watched()
        self.store: Any = store or Memory(state)

    def change(self, step: Step) -> reconciler.Outcome:
        return reconciler.change(self.store, self.kernel, lambda state: step(state.world))

    def repair(self) -> list[reconciler.Difference]:
        return reconciler.repair(self.store, self.kernel)[0]

    @property
    def state(self) -> State:
        return self.store.load()

    @property
    def objects(self) -> dict:
        """All objects, apart from the generations of rulesets, which any load may raise."""
        return {
            key: dataclasses.replace(item, generation=0) if isinstance(item, Ruleset) else item
            for key, item in self.kernel.objects.items()
        }

    def check(self, world: World) -> None:
        """The record, the kernel and `world` agree, and nothing is unfinished."""
        state = self.state
        assert state.world == world
        assert state.pending is None
        assert {item.key: item for item in state.items} == self.kernel.objects
        assert convergence.examine(state, self.kernel) == []

    def check_rest(self) -> None:
        """There is nothing left to do, and nothing is done."""
        before, calls = self.state, len(self.kernel.calls)
        assert self.repair() == []
        assert not self.change(lambda world: world).plan
        assert (self.state, len(self.kernel.calls)) == (before, calls)

    def check_destroyed(self) -> None:
        """Destroying everything leaves nothing."""
        self.change(nothing)
        assert self.kernel.objects == {}
        assert self.state.record == {}


class Stubborn(Watched):
    """A kernel that never makes the object with the key `refused`."""

    refused: tuple[str, ...] = ()

    def ensure(self, item: Item) -> None:
        if item.key == self.refused:
            raise KernelError(f"the kernel refused {item}")
        super().ensure(item)
