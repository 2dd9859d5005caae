"""A kernel that is a dictionary: the same four verbs as `linux`, for tests and for rehearsal.

Removing a namespace or a link removes what it holds, as the real kernel does, and an item whose namespace or link is
missing is refused.  `fail_at` counts the calls that change something: the call of that number raises `failure`, before
it has done anything or, with `fail_after`, once it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from vpcctl.analysis.tracking import Counted, Key, Selection, Tracked
from vpcctl.errors import ConflictError, KernelError
from vpcctl.model.network import Publication
from vpcctl.names import TABLE
from vpcctl.resources.kinds import FdbEntry, Item, Namespace, Port, Ruleset, where
from vpcctl.resources.plan import Ensure, Plan
from vpcctl.resources.protocol import ABSENT, RIGHT, Condition, HostFacts, Status


class FakeKernel:
    """Objects by key; `facts` is what the host looks like from outside our objects."""

    def __init__(self, facts: HostFacts | None = None, boot: str = "boot-1"):
        self.objects: dict[tuple[str, ...], Item] = {}
        self.foreign: set[tuple[str, ...]] = set()
        self.tracked: dict[str | None, list[Tracked]] = {}
        self.holders: dict[tuple[int, int], str] = {}
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.fail_after = False
        self.failure: BaseException = KernelError("the fake kernel was told to fail")
        self._facts = facts or HostFacts()
        self._boot = boot

    def close(self) -> None:
        """Nothing is open."""

    def boot_id(self) -> str:
        return self._boot

    def reboot(self, boot: str) -> None:
        """Forget every object, as a machine does."""
        self.objects.clear()
        self.tracked.clear()
        self._boot = boot

    def facts(self) -> HostFacts:
        return self._facts

    def observe(self, items: Iterable[Item]) -> Mapping[Item, Condition]:
        return {item: self._condition(item) for item in items}

    def _condition(self, item: Item) -> Condition:
        if item.key in self.foreign:
            return Condition(Status.FOREIGN, f"{item} is not ours")
        found = self.objects.get(item.key)
        if found is None:
            return ABSENT
        return RIGHT if found == item else Condition(Status.DIFFERENT, f"is {found!r}")

    def check(self, plan: Plan) -> None:
        problems = [str(step) for step in plan.steps if isinstance(step, Ensure) and step.item.key in self.foreign]
        if problems:
            raise ConflictError(
                "\n".join(f"cannot {problem}: it exists already and is not ours" for problem in problems)
            )

    def port_holders(self, publications: Sequence[Publication]) -> Mapping[Publication, str]:
        """Who has a port, by protocol and number."""
        return {
            item: self.holders[item.protocol, port]
            for item in publications
            for port in range(item.ports[0], item.ports[1] + 1)
            if (item.protocol, port) in self.holders
        }

    def ensure(self, item: Item) -> None:
        # Like the real one it loads no ruleset without a content.
        assert not isinstance(item, Ruleset) or item.compiled
        self._change(f"make {item}", lambda: self._put(item))

    def remove(self, item: Item) -> None:
        self._change(f"remove {item}", lambda: self._drop(item))

    def loaded(self, namespace: str) -> set[tuple[str, int]]:
        found = self.objects.get(("Ruleset", namespace))
        return {(found.fingerprint, found.generation)} if isinstance(found, Ruleset) else set()

    def untouched(self, rulesets: Iterable[Ruleset]) -> set[tuple[str, ...]]:
        return {item.key for item in rulesets if self.objects.get(item.key) == item}

    def gates(self, ruleset: Ruleset) -> Mapping[str, str]:
        found = self.objects.get(ruleset.key)
        if not isinstance(found, Ruleset) or found != ruleset or found.content is None:
            return {}
        return {name: part.fingerprint for name, part in found.content.gates.items()}

    def settled(self, namespaces: Iterable[str | None]) -> set[str | None]:
        return {namespace for namespace in namespaces if self.tracked.get(namespace)}

    def flows(self, namespace: str | None, selection: Selection | None = None) -> Iterable[Tracked]:
        return [flow for flow in self.tracked.get(namespace, ()) if selection is None or flow in selection]

    def counted(self, namespace: str, selection: Selection | None = None) -> Iterable[Counted]:
        return [Counted(flow, "unreplied") for flow in self.flows(namespace, selection)]

    def forget(self, namespace: str | None, keys: Iterable[Key]) -> None:
        gone = set(keys)
        self._change(f"forget flows of {where(namespace)}", lambda: self._forget(namespace, gone))

    def tally(self, addresses: Collection[int]) -> Mapping[int, tuple[int, int]]:
        flows = self.tracked.get(None, ())
        return {
            one: (sum(one == flow.original.source for flow in flows), sum(one == flow.reply.source for flow in flows))
            for one in addresses
        }

    def refused(self, namespace: str) -> int:
        return 0

    def counters(self) -> Mapping[str, int]:
        return {}

    def ruleset_listing(self, namespace: str | None, families: tuple[str, ...]) -> str:
        return "".join(item.text or "" for item in self._rulesets(namespace))

    def ruleset_objects(self, namespace: str) -> list[dict[str, Any]]:
        """The table alone: nothing was counted."""
        return [{"table": {"family": "inet", "name": TABLE}} for _ in self._rulesets(namespace)]

    def _rulesets(self, namespace: str | None) -> list[Ruleset]:
        return [item for item in self.objects.values() if isinstance(item, Ruleset) and item.namespace == namespace]

    def _forget(self, namespace: str | None, gone: set[Key]) -> None:
        self.tracked[namespace] = [
            flow
            for flow in self.tracked.get(namespace, ())
            if not gone & {Key(flow.protocol, flow.original), Key(flow.protocol, flow.reply, of_replies=True)}
        ]

    def _change(self, words: str, action: Callable[[], None]) -> None:
        self.calls.append(words)
        failing = self.fail_at is not None and len(self.calls) == self.fail_at
        if failing and not self.fail_after:
            raise self.failure
        action()
        if failing:
            raise self.failure

    def _put(self, item: Item) -> None:
        if not isinstance(item, Namespace):
            for namespace in item.namespaces:
                if namespace is not None and ("Namespace", namespace) not in self.objects:
                    raise KernelError(f"cannot make {item}: namespace {namespace} is gone")
        used = item.needs
        made = {end for found in self.objects.values() for end in found.links} if used else set()
        for end in used:
            if end not in made and end[1] != "lo" and not (end[0] is None and end[1].startswith("eth")):
                raise KernelError(f"cannot make {item}: link {end[1]} is gone")
        self.objects[item.key] = item

    def _drop(self, item: Item) -> None:
        if self.objects.pop(item.key, None) is None:
            return
        if isinstance(item, Namespace):
            self.tracked.pop(item.namespace, None)
        ends = set(item.links)
        namespaces: set[str | None] = {item.namespace} if isinstance(item, Namespace) else set()
        for found in list(self.objects.values()):
            held = bool(namespaces.intersection(found.namespaces))
            # A link that leaves its bridge takes its entries along.
            forgotten = (
                isinstance(item, Port)
                and isinstance(found, FdbEntry)
                and (found.namespace, found.link) == (item.namespace, item.name)
            )
            if held or forgotten or ends & set(found.goes_with):
                self._drop(found)
