"""A simulated shop at a busy hour: histories, and then one more visit of every shopper, all of them close together.

The simulator spreads visits over days. A worker under load sees something else: thousands of shoppers at once, each with
a history and with an event every half a minute. So the events are the simulator's own, but the last visit of every device
is moved: visits begin one after the other, evenly, so that together they make `events_per_s`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from producers.simulate.stage import iso

Event = dict[str, Any]


class Moved(NamedTuple):
    """An event of the rush and when it happens, in ms after the rush began."""

    after_ms: int
    event: Event


class Rush(NamedTuple):
    history: list[Event]
    moved: list[Moved]  # in time order


def rush(events: Iterable[Event], events_per_s: float) -> Rush:
    """Split a world's events into history and the rush. A visit keeps its events, their order and the gaps between them."""
    visits: dict[str, list[Event]] = {}
    last: dict[str, str] = {}  # device → its last visit
    for event in events:
        visit = event["context"]["sessionId"]
        visits.setdefault(visit, []).append(event)
        last[event["anonymousId"]] = visit
    lasting = set(last.values())
    history = [event for visit, some in visits.items() if visit not in lasting for event in some]
    history.sort(key=lambda event: str(event["timestamp"]))
    moved = [(visits[visit], _ms(visits[visit][0])) for visit in visits if visit in lasting]
    between_ms = 1000 * sum(len(some) for some, _ in moved) / max(1, len(moved)) / events_per_s
    rushed = [
        Moved(round(number * between_ms) + _ms(event) - start_ms, event)
        for number, (some, start_ms) in enumerate(moved) for event in some
    ]  # fmt: skip
    return Rush(history, sorted(rushed, key=lambda one: one.after_ms))


def stamped(event: Event, ts_ms: int) -> Event:
    """The event as of another time.

    >>> stamped({"messageId": "m", "timestamp": "x"}, 0)["timestamp"]
    '1970-01-01T00:00:00.000Z'
    """
    stamp = iso(ts_ms)
    return event | {"lane": "live", "timestamp": stamp, "originalTimestamp": stamp}


def backlog(moved: Sequence[Moved], end_ms: int) -> list[Event]:
    """The rush as it happened up to `end_ms`, the time of its last event."""
    return [stamped(one.event, end_ms - (moved[-1].after_ms - one.after_ms)) for one in moved]


def _ms(event: Event) -> int:
    return round(datetime.fromisoformat(event["timestamp"]).timestamp() * 1000)
