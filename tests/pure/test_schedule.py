"""When the agent looks at which place: events and times in, looks out."""

from __future__ import annotations

import itertools
import random

import pytest

from vpcctl.agent.schedule import (
    CAUSES,
    EVERYTHING,
    FREE,
    GATHER,
    HOST,
    LOCKED_MOST,
    LONGEST,
    RETRY_MOST,
    TENANT_MOST,
    TRUSTED_MOST,
    Causes,
    Look,
    Schedule,
)


def looked(schedule: Schedule, now: float) -> Look:
    look = schedule.look(now)
    assert look is not None
    return look


def run(
    schedule: Schedule, until: float, events: list[tuple[float, str]], failed: set[str] | None = None
) -> list[tuple[float, Look]]:
    """The looks up to a time, each at its due time, with events at given times."""
    found, now, rest = [], 0.0, sorted(events)
    while True:
        wait = schedule.wait(now)
        due = now + wait if wait is not None else float("inf")
        if rest and rest[0][0] <= min(due, until):
            now, place = rest.pop(0)
            schedule.event(place, "event", now)
        elif due <= until:
            now = due
            look = looked(schedule, now)
            schedule.done(look, failed or set(), now)
            found.append((now, look))
        else:
            return found


def test_nothing_is_due_without_an_event() -> None:
    schedule = Schedule()
    assert (schedule.wait(0.0), schedule.look(1e9)) == (None, None)


def test_one_event_is_looked_at_when_none_followed() -> None:
    schedule = Schedule()
    schedule.event("shop", "why", 5.0)
    assert schedule.wait(5.0) == pytest.approx(GATHER)
    assert schedule.look(5.0 + GATHER / 2) is None
    look = looked(schedule, 5.0 + GATHER)
    assert (look.vpcs, look.places, look.causes["shop"].lines()) == ({"shop"}, {"shop"}, ["why"])
    assert schedule.wait(6.0) is None


def test_events_are_gathered_but_not_for_ever() -> None:
    burst = [(number * GATHER / 2, "shop") for number in range(5)]
    assert [now for now, _ in run(Schedule(), 10, burst)] == [pytest.approx(burst[-1][0] + GATHER)]
    stream = [(number * GATHER / 2, "shop") for number in range(20 * int(2 * LONGEST / GATHER))]
    first = run(Schedule(), 20, stream)[0][0]
    assert first == pytest.approx(LONGEST)


def test_only_what_the_events_concern_is_looked_at() -> None:
    found = run(Schedule(), 10, [(1.0, "shop"), (1.05, "shop/web"), (1.1, HOST), (5.0, "calm")])
    assert [look.vpcs for _, look in found] == [{"shop"}, {"calm"}]
    # A look at any VPC includes the host, and a look at a VPC includes its instances.
    assert set(found[0][1].causes) == {"shop", "shop/web", HOST}
    assert [look.vpcs for _, look in run(Schedule(), 10, [(1.0, HOST)])] == [frozenset()]
    assert [look.vpcs for _, look in run(Schedule(), 10, [(1.0, "shop"), (1.0, EVERYTHING)])] == [None]


def test_a_tenant_without_end_gets_fewer_and_fewer_looks_and_delays_nobody() -> None:
    flood = [(number * 0.05, "shop/web") for number in range(20 * 600)]
    schedule = Schedule()
    found = run(schedule, 600, [*flood, (300.0, "calm"), (300.0, "shop")])
    times = [now for now, look in found if "shop/web" in look.places]
    assert len(times) < 45
    assert max(after - before for before, after in itertools.pairwise(times)) <= TENANT_MOST + LONGEST
    # The first looks come without a wait.
    assert times[FREE - 1] < FREE * (LONGEST + 2 * GATHER)
    for place in ("calm", "shop"):
        [others] = [now for now, look in found if place in look.places]
        assert others == pytest.approx(300.0 + GATHER)


def test_the_host_is_looked_at_every_second_under_a_stream() -> None:
    found = [now for now, _ in run(Schedule(), 60, [(number * 0.01, HOST) for number in range(6000)])]
    assert 50 <= len(found) <= 61
    assert max(after - before for before, after in itertools.pairwise(found)) <= TRUSTED_MOST + GATHER


def test_looks_after_repairs_of_ours_bring_no_wait() -> None:
    schedule, now = Schedule(), 0.0
    for _ in range(8):
        schedule.event("shop/web", "somebody", now)
        schedule.done(looked(schedule, now + GATHER), set(), now + GATHER)
        schedule.event("shop/web", "our repair", now + GATHER, own=True)
        schedule.done(looked(schedule, now + 3 * GATHER), set(), now + 3 * GATHER)
        now += 0.5
    schedule.event("shop/web", "somebody", now)
    assert schedule.wait(now) == pytest.approx(GATHER)


def test_after_a_calm_a_tenant_is_looked_at_at_once_again() -> None:
    flood = [(number * 0.05, "shop/web") for number in range(20 * 60)]
    found = run(Schedule(), 4000, [*flood, (3000.0, "shop/web")])
    assert found[-1][0] == pytest.approx(3000.0 + GATHER)


def test_a_failure_is_tried_again_with_growing_delays_and_upon_an_event() -> None:
    schedule = Schedule()
    found = [now for now, _ in run(schedule, 600, [(0.0, "shop")], {"shop"})]
    delays = [after - before for before, after in itertools.pairwise(found)]
    assert delays[:7] == pytest.approx([1, 2, 4, 8, 16, 32, 60])
    assert max(delays) == pytest.approx(RETRY_MOST)
    schedule.event("shop", "somebody helped", 600.0)
    assert schedule.wait(600.0) == pytest.approx(GATHER)
    schedule.done(looked(schedule, 600.0 + GATHER), set(), 600.2)
    assert (list(schedule.failing), schedule.wait(600.2)) == ([], None)


def test_what_a_failed_attempt_caused_brings_no_next_one() -> None:
    schedule = Schedule()
    schedule.event("shop", "first", 0.0)
    look = looked(schedule, 1.0)
    schedule.event("shop", "our own", 1.0)
    schedule.event("calm", "another's", 1.0)
    schedule.done(look, {"shop"}, 1.1)
    assert looked(schedule, 1.3).places == {"calm"}


def test_a_failure_of_all_is_over_only_when_all_were_looked_at() -> None:
    schedule = Schedule()
    schedule.event(EVERYTHING, "start", 0.0)
    schedule.done(looked(schedule, 0.2), {EVERYTHING}, 0.2)
    schedule.event(HOST, "event", 0.3)
    schedule.done(looked(schedule, 0.4), set(), 0.4)
    assert list(schedule.failing) == [EVERYTHING]
    schedule.done(looked(schedule, 1.3), set(), 1.3)
    assert list(schedule.failing) == []


def test_a_failure_elsewhere_is_not_over_after_a_look_that_did_not_see_it() -> None:
    schedule = Schedule()
    schedule.event("shop", "event", 0.0)
    schedule.done(looked(schedule, 0.2), {"shop/web"}, 0.2)
    schedule.event("calm", "event", 0.3)
    schedule.done(looked(schedule, 0.45), set(), 0.45)
    assert list(schedule.failing) == ["shop/web"]
    schedule.event("shop", "event", 0.5)
    schedule.done(looked(schedule, 0.7), set(), 0.7)
    assert list(schedule.failing) == []


def test_a_lock_is_waited_for_and_nothing_is_forgotten_meanwhile() -> None:
    schedule = Schedule()
    schedule.event("shop", "first", 0.0)
    now, waits = GATHER, []
    for number in range(1, 12):
        look = looked(schedule, now)
        assert schedule.locked(look, now) == number
        wait = schedule.wait(now)
        assert wait is not None
        waits.append(wait)
        now += wait
    assert waits[0] < 0.2
    assert waits == sorted(waits)
    assert max(waits) == pytest.approx(LOCKED_MOST)
    # Events do not shorten the wait.
    schedule.event("shop", "second", now)
    assert schedule.look(now - 0.01) is None
    look = looked(schedule, now + GATHER)
    assert look.causes["shop"].lines() == ["first", "second"]
    schedule.done(look, set(), now)
    assert schedule.wait(now) is None


def test_a_lock_that_was_held_during_a_look_at_all_leaves_a_look_at_all() -> None:
    schedule = Schedule()
    schedule.event(EVERYTHING, "start", 0.0)
    schedule.event("shop", "event", 0.0)
    schedule.locked(looked(schedule, 0.2), 0.2)
    assert looked(schedule, 2.0).vpcs is None


def test_vpcs_that_are_gone_are_forgotten() -> None:
    schedule = Schedule()
    for place in ("shop", "shop/web", "calm", HOST):
        schedule.event(place, "event", 0.0)
    schedule.keep({"calm"})
    assert looked(schedule, 1.0).places == {"calm", HOST}


def test_causes_are_bounded_and_said_once() -> None:
    causes = Causes()
    for number in range(1000):
        causes.add(f"cause {number % 500}")
        causes.add("cause 0")
    assert len(causes.lines()) == CAUSES + 1
    assert causes.lines()[0] == "cause 0"


def test_what_is_remembered_does_not_grow() -> None:
    chance, schedule, now = random.Random(7), Schedule(), 0.0
    for _ in range(20_000):
        now += chance.random()
        schedule.event(f"vpc{chance.randrange(10)}/instance{chance.randrange(10**9)}", "event", now)
        look = schedule.look(now)
        if look is not None:
            schedule.done(look, set(), now)
    assert len(schedule._paces) < 1000
    assert len(schedule._waiting) < 10


def test_every_event_is_looked_at_after_it_happened() -> None:
    """Events in any order, with locks and failures in between."""
    for seed in range(50):
        chance, schedule, now = random.Random(seed), Schedule(), 0.0
        unseen: dict[str, float] = {}
        places = [HOST, "a", "b", "a/x", "a/y", "b/z", EVERYTHING]
        for _ in range(300):
            now += chance.choice((0.01, 0.1, 1.0))
            if chance.random() < 0.7:
                place = chance.choice(places)
                schedule.event(place, "event", now)
                unseen.setdefault(place, now)
            look = schedule.look(now)
            if look is None:
                continue
            if chance.random() < 0.3:
                schedule.locked(look, now)
                continue
            seen = {place for place in unseen if look.vpcs is None or place == HOST or place.split("/")[0] in look.vpcs}
            unseen = {place: since for place, since in unseen.items() if place not in seen}
            failed = {chance.choice(sorted(look.places))} if chance.random() < 0.2 else set()
            schedule.done(look, failed, now)
        assert all(schedule.wait(now) is not None for _ in unseen)
        for _ in range(1000):
            wait = schedule.wait(now)
            if wait is None:
                break
            now += wait
            look = looked(schedule, now)
            unseen = {
                place: since
                for place, since in unseen.items()
                if not (look.vpcs is None or place == HOST or place.split("/")[0] in look.vpcs)
            }
            schedule.done(look, set(), now)
        assert (unseen, schedule.wait(now)) == ({}, None), seed
