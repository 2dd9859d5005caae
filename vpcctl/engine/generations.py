"""A generation number is never reused, even after an older state file was restored.

A flow's mark says which load of a ruleset admitted it.  If a number were used twice, a flow of the first load would
pass the second one without being judged.  The record counts loads; this module compares the count with the kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from vpcctl.engine.state import Record
from vpcctl.resources.kinds import Item, Ruleset
from vpcctl.resources.protocol import Kernel
from vpcctl.resources.topology import Rulesets


def raised(
    kernel: Kernel, record: Record, known: Rulesets, all_of: bool, untouched: Collection[tuple[str, ...]] = ()
) -> Record:
    """`record` with generations that nothing else in the kernel has, for the rulesets of routers that may be loaded.

    These are the rulesets that differ from the record, and with `all_of` all except the `untouched`, which are
    certainly loaded.  `known` are the rulesets on record.
    """
    return {scope: tuple(_raised(kernel, items, known, all_of, untouched)) for scope, items in record.items()}


def _raised(
    kernel: Kernel,
    items: Iterable[Item],
    known: Rulesets,
    all_of: bool,
    untouched: Collection[tuple[str, ...]],
) -> Iterator[Item]:
    for item in items:
        if not isinstance(item, Ruleset) or item.namespace is None:
            yield item
            continue
        recorded = known.get(item.key) == item
        if not recorded or (all_of and item.key not in untouched):
            newest = _newest(kernel, item, recorded)
            yield item.at(newest + 1) if newest >= item.generation else item
        else:
            yield item


def _newest(kernel: Kernel, item: Ruleset, recorded: bool) -> int:
    """The newest generation in the item's namespace that may mean something else than the item; 0 if irrelevant.

    If a ruleset is loaded, no flow has a newer mark than the ruleset has.
    """
    assert item.namespace is not None, "the host's ruleset marks no flows"
    loaded = kernel.loaded(item.namespace)
    others = loaded - {(item.fingerprint, item.generation)}
    newest = max((generation for _, generation in others), default=0)
    if loaded and newest < item.generation:
        return 0
    marks = {flow.mark for flow in kernel.flows(item.namespace)}
    if recorded and not others:
        # The ruleset on record is loaded again, and its own flows may pass.
        marks.discard(item.generation)
    return max(newest, *marks, 0)
