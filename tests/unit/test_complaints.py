"""Tickets that become many: the sums' laws, false alarms and delays by simulation, and one item out of fifty."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.opinions import Opinion
from stream.core.opinions.complaints import CALM_DAYS, DAYS_MAX, Tickets, Turn, add, turned
from stream.core.opinions.satisfaction import Place, Subject, fold_ticket
from stream.core.statistics.changes import Policy
from tests.unit.test_insights import AT, Shelf, say

DAY_0 = 20_000
LIMIT = Policy().opinions_per_false_alarm
GOLDEN = Path(__file__).parents[1] / "golden" / "0.6.0" / "satisfaction.msgpack"
WEEK = np.array([1.6, 1.3, 1.1, 1.0, 1.0, 0.6, 0.4])  # many on Mondays


def play(counts: Sequence[int], tickets: Tickets | None = None, live: bool = True) -> list[tuple[int, Turn]]:
    """(day, change) of each change, asked at the end of each day that has tickets."""
    kept, found = Tickets() if tickets is None else tickets, []
    for day, count in enumerate(counts):
        for _ in range(count):
            add(kept, DAY_0 + day)
        turn = turned(kept, Policy(), live=live) if count else None
        found += [(day, turn)] if turn is not None else []
    return found


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.randoms())
def test_tickets_count_the_same_in_any_order(days: list[int], chance: np.random.RandomState) -> None:
    once, again = Tickets(), Tickets()
    for day in days:
        add(once, day)
    chance.shuffle(days)
    for day in days:
        add(again, day)
    assert once == again and sum(once.days.values()) == len(days)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(once), type=Tickets) == once


@given(st.lists(st.integers(0, 4), min_size=15, max_size=60), st.integers(0, 30), st.integers(1, 30))
def test_more_tickets_of_a_day_never_take_an_alarm_back(past: list[int], some: int, more: int) -> None:
    """So a day is never taken for worse, before it is over, than it will be."""
    few, many = Tickets(), Tickets()
    for kept, last in ((few, some), (many, some + more)):
        for day, count in enumerate([*past, last]):
            for _ in range(count):
                add(kept, day)
    first = turned(few, Policy())
    assert first is None or turned(many, Policy()) is not None


@given(st.lists(st.integers(0, 10_000), max_size=60))
def test_what_is_kept_is_bounded(days: list[int]) -> None:
    kept = Tickets()
    for day in days:
        add(kept, day)
        turned(kept, Policy())
        assert kept.latest - kept.since < DAYS_MAX >= len(kept.days) and min(kept.days, default=day) >= kept.since


def test_false_alarms_are_as_rare_as_is_said() -> None:
    """A year of things that do not change: rare and frequent tickets, weekdays, and a variance of twice the mean."""
    rng = np.random.default_rng(3)
    weeks = np.resize(WEEK, 365)
    years = [rng.poisson(rate, 365) for rate, things in ((0.05, 20), (0.2, 20), (1.0, 10)) for _ in range(things)]
    years += [rng.poisson(rate * weeks) for rate in (1.0, 1.0, 5.0) for _ in range(2)]
    years += [rng.poisson(rng.gamma(2.0, 1.0, 365)) for _ in range(4)]
    alarms, tickets = sum(turn.rose for year in years for _, turn in play(year.tolist())), sum(map(np.sum, years))
    assert tickets > 10 * LIMIT and alarms <= tickets / LIMIT


def test_rises_are_found_where_they_are_and_are_over_when_they_are() -> None:
    rng = np.random.default_rng(5)
    delays, errors = [], []
    for _ in range(30):
        found = play([*rng.poisson(0.2, 60), *rng.poisson(3.0, 20), *rng.poisson(0.2, 60)])
        (day, rise), *later = [(at, turn) for at, turn in found if at >= 60]
        delays.append(day - 59)
        errors.append(abs(rise.day - DAY_0 - 60))
        assert rise.rose and rise.after > 1.0 > rise.before
        calm = [at for at, turn in later if not turn.rose]
        assert calm and calm[0] >= 80 + CALM_DAYS // 2
    assert np.median(delays) <= 4 and np.percentile(delays, 90) <= 8 and np.median(errors) <= 1


def test_history_is_learned_from_and_is_not_waited_for() -> None:
    kept = Tickets()
    assert [turn.rose for _, turn in play([1] * 40 + [9] * 30, kept, live=False)] == [True] and not kept.usual
    assert play([9] * 20, kept) == [], "it is usual by now"


def test_a_state_of_0_6_0_goes_on() -> None:
    before = msgspec.msgpack.decode(GOLDEN.read_bytes(), type=Subject)
    kept = msgspec.msgpack.decode(GOLDEN.read_bytes(), type=Subject)
    found = [fold_ticket(kept, Place(0, at, f"t{at}", 0.0), 86_400_000 * min(at, 30), Policy()) for at in range(45)]
    (change,) = filter(None, found)
    assert (change.reason, change.worse, change.number) == ("tickets", True, before.changes + 1)
    for field in ("opinions", "n", "total", "levels", "fall", "rise", "raised", "places"):
        assert getattr(kept, field) == getattr(before, field), "tickets are in no mean"


# ---- through the tracker


def ticket(at: int, day: float, item: str, brand: str, **more: object) -> Opinion:
    return say(at, 1.0, source="ticket", satisfaction=None, item_id=item, brand=brand,
               said_at=AT + timedelta(days=day), **more)  # fmt: skip


def shop() -> list[Opinion]:
    """100 days of 50 items of 10 brands with tickets now and then; item 7 of brand 7 has three more on days 60 to 71."""
    rng = np.random.default_rng(11)
    rates, found = rng.uniform(0.05, 0.8, 50), []
    for day in range(100):
        counts = rng.poisson(rates)
        counts[7] += rng.poisson(3.0) if 60 <= day < 72 else 0
        of_day = rng.permutation(np.repeat(np.arange(50), counts))
        found += [(day + 0.5, int(item)) for item in of_day]
    return [ticket(at, day, f"item-{item}", f"brand-{item % 10}") for at, (day, item) in enumerate(found)]


def test_one_item_out_of_fifty_is_named_soon_with_its_day_and_in_its_own_words() -> None:
    said = shop()
    shelf = Shelf(said)
    for begin in range(0, len(said), 500):
        shelf.take(shelf.tracker(), begin, min(begin + 500, len(said)))
    assert {one.name for one in shelf.alerts} <= {"item-7", "brand-7"}
    assert {one.reason for one in shelf.alerts} == {"tickets"}
    rise, calm = (one for one in shelf.alerts if one.name == "item-7")
    assert (rise.state, calm.state, rise.number, calm.number) == ("raised", "cleared", 1, 2)
    assert rise.as_of_ts <= AT + timedelta(days=65) and calm.as_of_ts >= AT + timedelta(days=72)
    assert abs(rise.changed_at - (AT + timedelta(days=60))) <= timedelta(days=1)
    assert rise.before < 1 < 2 < rise.after and rise.evidence and not calm.evidence
    by_id = {one.opinion_id: one for one in said}
    for quote in rise.evidence:
        one = by_id[quote.opinion_id]
        assert one.item_id == "item-7" and rise.changed_at <= one.said_at <= rise.as_of_ts
        assert quote.sentence == one.telling and quote.satisfaction is None


def test_crashes_change_nothing_and_history_raises_nothing() -> None:
    said = [ticket(day, day, "mug", "Clay") for day in range(40)] + [ticket(at, 40, "mug", "Clay") for at in range(40, 60)]
    whole, broken = Shelf(said), Shelf(said)
    whole.take(whole.tracker(), 0, 60)
    assert [(one.about, one.state, one.reason) for one in whole.alerts] == [
        ("item", "raised", "tickets"), ("brand", "raised", "tickets")]
    for begin, end, written in ((0, 30, 0), (0, 45, 1), (0, 45, None), (30, 55, 1), (30, 60, None), (45, 60, None)):
        broken.take(broken.tracker(), begin, end, written)  # a new process each time
    assert broken.states == whole.states
    assert {one.alert_id: one for one in broken.alerts} == {one.alert_id: one for one in whole.alerts}
    history = Shelf([msgspec.structs.replace(one, lane="import") for one in said])
    history.take(history.tracker(), 0, 60)
    assert history.states and not history.alerts
