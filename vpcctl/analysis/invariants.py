"""Does a change keep what must always hold?  The invariants are judged on the exact sets of packets, before the change.

An invariant is judged only where the change may matter to it.  It is broken if it held before and would not hold
afterwards, or if it is new and would not hold.  One that somebody overrode before does not stop later changes.
"""

from __future__ import annotations

from collections.abc import Iterator

from vpcctl.analysis.changes import concerned
from vpcctl.analysis.explain import ALLOW, DENY, PARTLY, Answer, ask
from vpcctl.analysis.reachability import Reach
from vpcctl.errors import ConflictError, DocumentError, TooFineError, VpcctlError
from vpcctl.model.host import NO_HOST, Host
from vpcctl.model.network import Invariant, World
from vpcctl.model.policy import Action
from vpcctl.values import dataclass


@dataclass(frozen=True, slots=True)
class Judged:
    """An invariant, whether it holds, and why it does not: the line that decides."""

    invariant: Invariant
    holds: bool
    reason: str = ""

    def __str__(self) -> str:
        one = self.invariant
        about = f": {one.description}" if one.description else ""
        must = "allowed" if one.expect == ALLOW else "denied"
        flow = f"{one.source} → {one.destination} {one.service}"
        return f"{flow} must be {must}, but {self.reason} ({one.place or 'an invariant'}{about})"


def judge(reach: Reach, invariant: Invariant) -> Judged:
    """Does an invariant hold?

    What does not exist sends and receives nothing: it is denied all traffic.
    """
    try:
        answer = ask(reach, invariant.source, invariant.destination, invariant.service)
    except TooFineError as error:
        return Judged(invariant, False, f"this cannot be determined: {error}")
    except VpcctlError as error:
        return Judged(invariant, invariant.expect == DENY, str(error))
    return Judged(invariant, answer.verdict == invariant.expect, _reason(answer, invariant.expect))


def check_words(reach: Reach, invariant: Invariant) -> None:
    """Raise DocumentError if an invariant names something that does not exist, or means nothing."""
    try:
        ask(reach, invariant.source, invariant.destination, invariant.service)
    except TooFineError:
        return
    except (DocumentError, ConflictError) as error:
        raise DocumentError(f"{invariant.place}: {error}") from error


def broken(before: World, after: World, host: Host = NO_HOST) -> tuple[Judged, ...]:
    """The invariants of the later world that the change breaks on a host; DocumentError for a new one without sense."""
    old, new = Reach(before, host), Reach(after, host)
    return tuple(_broken(old, new))


def _broken(old: Reach, new: Reach) -> Iterator[Judged]:
    known = set(old.world.invariants)
    near = concerned(old, new)
    services = _publications(old.world) != _publications(new.world)
    for invariant in new.world.invariants:
        if invariant not in known:
            check_words(new, invariant)
        elif not _may_matter(invariant, near, services):
            continue
        found = judge(new, invariant)
        if not found.holds and (invariant not in known or judge(old, invariant).holds):
            yield found


def _may_matter(invariant: Invariant, near: set[str], services: bool) -> bool:
    """May a change that concerns the VPCs `near`, and published ports if `services`, matter to an invariant?"""
    # Published ports of other VPCs are reached at the host, which is outside all VPCs.
    return not near.isdisjoint(invariant.ends) or (services and None in invariant.ends)


def _publications(world: World) -> dict[str, object]:
    return {vpc.name: vpc.publications for vpc in world.vpcs}


def _reason(answer: Answer, expect: str) -> str:
    """What decides against the expectation, for people."""
    if expect == DENY:
        # The last stage has what passes all.
        verdict = next((one for one in answer.stages[-1].verdicts if one.action is Action.ALLOW), answer.deciding)
        what = "; ".join(map(str, answer.allowed)) if answer.verdict == PARTLY else "it"
        return f"{what} is allowed by {verdict.origin}"
    return f"{'a part of it' if answer.verdict == PARTLY else 'it'} is denied by {answer.deciding.origin}"
