"""When to look at which place: values and times in, decisions out, no clock of its own.

Theory of operation.

1.  Events of all places are gathered together: a look begins GATHER seconds after the last event, and at most LONGEST
   seconds after the first one.
2.  A place that was looked at often in a short time waits: after FREE looks, each look doubles the wait before the next
   one, and calm periods halve it.  The look after a repair of ours does not count.  On the host and in routers only
   root can cause events, so that wait is short.  In an instance a tenant may be root and cause events without end, so
   it grows to half a minute.
3. A place whose repair failed is looked at again after 1, 2, 4, … RETRY_MOST seconds, and after its next event.

A look is at VPCs, or at all of them (EVERYTHING); each looks at the host's part, too.  Places are those of
`engine.places`: HOST, a VPC, VPC/INSTANCE.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field

from vpcctl.values import dataclass

GATHER, LONGEST = 0.1, 1.0
# The longest wait between two looks that the events of one place cause.
TRUSTED_MOST, TENANT_MOST = 1.0, 30.0
# So many looks cause no wait: a repair and the look after it are two.
FREE = 10
# A place that could be looked at for CALM seconds, and was not, gets back one look.
CALM = 5.0
RETRY_FIRST, RETRY_MOST = 1.0, 60.0
# While another process holds the lock: the first wait and the longest.
LOCKED_FIRST, LOCKED_MOST = 0.05, 1.0
EVERYTHING, HOST = "*", ""
# So many causes are remembered for one place; the others are counted.
CAUSES = 8


def vpc_of(place: str) -> str:
    """The VPC of a place; HOST and EVERYTHING are their own."""
    return place.partition("/")[0]


def is_tenants(place: str) -> bool:
    """May a tenant cause the events of a place?"""
    return "/" in place


@dataclass(slots=True)
class Causes:
    """Why to look at a place: the first few different words, and how many others there were."""

    words: dict[str, None] = field(default_factory=dict)
    others: int = 0

    def add(self, words: str) -> None:
        if words in self.words:
            return
        if len(self.words) < CAUSES:
            self.words[words] = None
        else:
            self.others += 1

    def add_all(self, causes: Causes) -> None:
        for words in causes.words:
            self.add(words)
        self.others += causes.others

    def lines(self) -> list[str]:
        return [*self.words, *([f"{self.others} more events"] if self.others else [])]


@dataclass(slots=True)
class _Waiting:
    """The events of a place since the last look at it."""

    first: float
    last: float
    causes: Causes
    # Did our own repairs cause all of them?
    own: bool


@dataclass(slots=True)
class _Pace:
    """The recent looks at a place: `level` is their number minus calm periods, `last` the time of the last one."""

    level: int
    last: float

    def looked(self, now: float, most: float) -> None:
        # Further doublings would exceed the longest wait anyway.
        deepest = FREE + int(most / GATHER).bit_length()
        calm = max(0.0, now - self.earliest(most))
        self.level = min(deepest, max(0, self.level - int(calm / CALM)) + 1)
        self.last = now

    def earliest(self, most: float) -> float:
        """When the next look may be."""
        return self.last + min(most, GATHER * 2.0 ** max(0, self.level - FREE))


@dataclass(slots=True)
class _Failing:
    """A place whose repair fails: how often, and when it is tried again."""

    attempts: int
    retry: float


@dataclass(frozen=True, slots=True)
class Look:
    """What to look at now: VPCs, or all of them (None); and why, by place."""

    vpcs: frozenset[str] | None
    places: frozenset[str]
    causes: Mapping[str, Causes]


class Schedule:
    """What to look at, and when; every method takes the time `now`, which never decreases."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._paces: dict[str, _Pace] = {}
        self._failing: dict[str, _Failing] = {}
        self._locked = 0
        self._not_before = 0.0

    def event(self, place: str, cause: str, now: float, own: bool = False) -> None:
        """Note an event that concerns a place; `own` if our own repair caused it."""
        waiting = self._waiting.setdefault(place, _Waiting(now, now, Causes(), own))
        waiting.last, waiting.own = now, waiting.own and own
        waiting.causes.add(cause)

    def look(self, now: float) -> Look | None:
        """What is due; None if nothing is.  Events that the look covers wait no longer."""
        if self._due() > now:
            return None
        places = frozenset(place for place, failing in self._failing.items() if failing.retry <= now)
        if self._gathered() <= now:
            places |= {place for place in self._waiting if self._earliest(place) <= now}
        vpcs = None if EVERYTHING in places else frozenset(map(vpc_of, places)) - {HOST}
        for place in places:
            if place not in self._waiting or not self._waiting[place].own:
                self._paces.setdefault(place, _Pace(0, now)).looked(now, _most(place))
        causes = {place: self._waiting.pop(place).causes for place in list(self._waiting) if _covers(vpcs, place)}
        for place in places - causes.keys():
            causes[place] = Causes({"another attempt": None})
        return Look(vpcs, places, causes)

    def wait(self, now: float) -> float | None:
        """Seconds until something is due; None if nothing becomes due without an event."""
        due = self._due()
        return None if due == float("inf") else max(0.0, due - now)

    def _due(self) -> float:
        """When the next look is, if no event comes before."""
        retry = min((failing.retry for failing in self._failing.values()), default=float("inf"))
        return max(min(self._gathered(), retry), self._not_before)

    def _gathered(self) -> float:
        """When to stop gathering the events of places that may be looked at by then."""
        last, first = float("-inf"), float("inf")
        due = float("inf")
        for earliest, place in sorted((self._earliest(place), place) for place in self._waiting):
            if due < earliest:
                break
            last, first = max(last, self._waiting[place].last), min(first, self._waiting[place].first)
            due = max(earliest, min(last + GATHER, first + LONGEST))
        return due

    def _earliest(self, place: str) -> float:
        pace = self._paces.get(place)
        return float("-inf") if pace is None else pace.earliest(_most(place))

    def done(self, look: Look, failed: Collection[str], now: float) -> None:
        """Note the end of a look, and the places whose repair failed."""
        self._locked, self._not_before = 0, 0.0
        seen = {place for place in self._failing if _covers(look.vpcs, place)}
        for place in seen - set(failed):
            del self._failing[place]
        for place in failed:
            attempts = self._failing[place].attempts + 1 if place in self._failing else 1
            delay = min(RETRY_MOST, RETRY_FIRST * 2.0 ** min(attempts - 1, 10))
            self._failing[place] = _Failing(attempts, now + delay)
            # Events that the attempt itself caused lead to no further attempt.
            self._waiting.pop(place, None)
        self._forget_calm(now)

    def locked(self, look: Look, now: float) -> int:
        """Another process held the lock: look again soon.  Returns how often this happened in a row."""
        self._locked += 1
        self._not_before = now + min(LOCKED_MOST, LOCKED_FIRST * 2.0 ** min(self._locked - 1, 10))
        for place, causes in look.causes.items():
            self._waiting.setdefault(place, _Waiting(now, now, Causes(), False)).causes.add_all(causes)
        for place in look.places & self._paces.keys():
            # No look took place.
            pace = self._paces[place]
            pace.level, pace.last = max(0, pace.level - 1), now - TENANT_MOST
        return self._locked

    def keep(self, vpcs: Collection[str]) -> None:
        """Forget the places of VPCs that are gone."""
        kept = {*vpcs, HOST, EVERYTHING}
        for known in (self._waiting, self._paces, self._failing):
            for place in [place for place in known if vpc_of(place) not in kept]:
                del known[place]

    @property
    def failing(self) -> Iterable[str]:
        """The places whose repair fails."""
        return self._failing.keys()

    def _forget_calm(self, now: float) -> None:
        """Forget the pace of places that were calm for long."""
        for place, pace in list(self._paces.items()):
            if now - pace.earliest(_most(place)) > CALM * (pace.level + 1):
                del self._paces[place]


def _covers(vpcs: frozenset[str] | None, place: str) -> bool:
    """Does a look at these VPCs, which includes the host's part, cover a place?"""
    return vpcs is None or (place != EVERYTHING and (place == HOST or vpc_of(place) in vpcs))


def _most(place: str) -> float:
    return TENANT_MOST if is_tenants(place) else TRUSTED_MOST
