"""The pure parts of the benchmarks: schedule, percentiles, and the rush made of a simulated world."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.latency import Schedule, percentile, percentiles
from benchmarks.pipeline import table
from benchmarks.rush import backlog, rush, stamped
from producers.simulate.world import World

START = datetime(2026, 1, 1, tzinfo=UTC)


def simulated() -> list[dict[str, Any]]:
    return list(World(3, 60, 6, START, items=200).history())


def test_schedule_is_even_and_does_not_drift() -> None:
    schedule = Schedule(1_000.0, 200.0)
    assert schedule.due_s(0) == 1_000.0
    assert schedule.due_s(6_000) == 1_030.0
    gaps = {round(schedule.due_s(n + 1) - schedule.due_s(n), 6) for n in range(1_000)}
    assert gaps == {0.005}


@given(st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1), st.floats(0.01, 1.0))
def test_percentile_is_the_smallest_value_that_the_share_does_not_exceed(sample: list[float], share: float) -> None:
    ordered = sorted(sample)
    found = percentile(ordered, share)
    assert found in ordered
    assert sum(one <= found for one in ordered) >= share * len(ordered) - 1e-6
    assert sum(one < found for one in ordered) < share * len(ordered) + 1e-6


def test_percentiles_are_in_ms_and_in_order() -> None:
    found = percentiles(n / 1_000 for n in range(100, 0, -1))
    assert found == (100, 50.0, 95.0, 99.0, 100.0)


def test_no_figure_stands_for_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentiles([])


def test_a_rush_keeps_every_event_once_and_every_visit_whole() -> None:
    events = simulated()
    shop = rush(events, 50.0)
    ids = [event["messageId"] for event in shop.history] + [one.event["messageId"] for one in shop.moved]
    assert sorted(ids) == sorted(event["messageId"] for event in events)

    def by_visit(some: list[dict[str, Any]], at: Callable[[dict[str, Any]], Any]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for event in some:
            found.setdefault(event["context"]["sessionId"], []).append(at(event))
        return found

    before = by_visit(events, lambda event: event["messageId"])
    after = by_visit([one.event for one in shop.moved], lambda event: event["messageId"])
    assert after == {visit: before[visit] for visit in after}


def test_a_rush_makes_the_asked_rate_between_its_ends() -> None:
    shop = rush(simulated(), 0.2)  # it lasts longer than a visit, so that the ends are short
    middle = shop.moved[len(shop.moved) // 4 : 3 * len(shop.moved) // 4]
    assert len(middle) / ((middle[-1].after_ms - middle[0].after_ms) / 1000) == pytest.approx(0.2, rel=0.25)


def test_a_backlog_ends_when_it_is_asked_to() -> None:
    shop = rush(simulated(), 50.0)
    events = backlog(shop.moved, 1_800_000_000_000)
    assert events[-1]["timestamp"] == "2027-01-15T08:00:00.000Z"
    assert [event["timestamp"] for event in events] == sorted(event["timestamp"] for event in events)
    assert {event["lane"] for event in events} == {"live"}


def test_stamping_leaves_the_simulators_event_alone() -> None:
    event = simulated()[0]
    before = dict(event)
    assert stamped(event, 1)["messageId"] == before["messageId"]
    assert event == before


def test_the_table_is_for_people() -> None:
    latency = {"n": 1, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "max_ms": 3.0}
    shown = table({
        "pipeline": {"events_per_s": 1_000.0, "events": 10, "users": 3, "recommendations_per_event": 0.5},
        "bare_agent": {"events_per_s": 500.0}, "ratio": 2.0,
        "open_loop": {"recommendation": latency, "row": latency, "events_per_s": 200.0, "recommended_share": 0.9},
    })  # fmt: skip
    assert shown.row_count == 6
