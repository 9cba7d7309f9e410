"""What the chaos tests share: a stream of live events, workers that are killed, and the truth they must end in."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec

from schemas import topics
from schemas.events import Event
from schemas.outputs import ChurnAlert, Recommendation, Reminder, output_id
from stream.adapters import clickhouse
from stream.adapters.lag import Lag
from stream.core.repurchase import FEATURES, Repurchase
from stream.core.state import DAY_MS, Alert
from stream.settings import Settings
from tests.support.bundles import LAPSE_DAYS
from tests.support.cluster import (
    Sender,
    Tail,
    assert_states_are_true,
    comparable,
    lag,
    read_all,
    start_worker,
    until,
)
from tests.support.fakes import event

USERS, ITEMS = 120, 40
PORTION = 20  # events sent at once
QUIET = 20  # users of `soon_silent`
NO_EVENT = b"{"  # what a client sends now and then
REPURCHASE = Repurchase(weights=(0.0,) * len(FEATURES), constant=0.0, shape=1.0, usual_days=30.0)  # for everybody
CONSUMING_AGAIN_S = 30.0  # after a crash


class Stream:
    """Live events as they come, a tenth of them twice, one in twenty some minutes late; seeded."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._made = 0
        self._recent: list[dict[str, Any]] = []

    def take(self, count: int) -> list[dict[str, Any]]:
        """The next events, duplicates among them."""
        found = []
        while len(found) < count:
            if self._recent and self._draw.random() < 0.1:
                found.append(self._draw.choice(self._recent))
                continue
            late_ms = self._draw.randrange(600_000) if self._draw.random() < 0.05 else 0
            one = event(
                user=f"u{self._draw.randrange(USERS)}", ts_ms=time.time_ns() // 1_000_000 - late_ms, lane="live",
                item=f"i{self._draw.randrange(ITEMS)}", id=f"m{self._made}",
                name=self._draw.choice(["Product Viewed", "Product Added", "Order Completed"]),
            )  # fmt: skip
            self._made += 1
            found.append(one)
            self._recent = [*self._recent[-200:], one]
        return found


def start_crashing(settings: Settings, worker: str, point: str, times: int, home: Path) -> subprocess.Popen[bytes]:
    """A worker that is gone at a point, see `tests.chaos.crashing`."""
    return start_worker(settings, "tests.chaos.crashing", home, arguments=[worker, point, str(times)])


def caught_up(settings: Settings) -> bool:
    return lag(settings, "personalize", topics.EVENTS) == 0 and lag(settings, "personalize", topics.IDENTITY) == 0


def assert_town_is_true(settings: Settings) -> None:
    """What was said of alerts is compared by what is on their topic."""
    assert_states_are_true(settings, lambda state: comparable(msgspec.structs.replace(state, alert=Alert())))


def orders_due_again() -> list[dict[str, Any]]:
    """Of "tea", by some of the users, so long ago that the bundles of `REPURCHASE` call them due when the stream begins."""
    ago_ms = round((REPURCHASE.usual_days - 6) * DAY_MS)
    return [event(user=f"u{n}", ts_ms=time.time_ns() // 1_000_000 - ago_ms, lane="live", item="tea", id=f"tea{n}",
                  name="Order Completed") for n in range(USERS // 4)]  # fmt: skip


def assert_each_is_reminded_once(settings: Settings) -> None:
    """Of every such order, under the id that it gives, however often it was sent."""
    log = [msgspec.json.decode(record.value, type=Event) for record in read_all(settings, topics.EVENTS)]
    wanted = {output_id("reminder", "t", one.user, "tea", "", str(one.ts_ms))
              for one in log if one.message_id.startswith("tea")}  # fmt: skip
    said = [msgspec.json.decode(record.value, type=Reminder) for record in read_all(settings, topics.REMINDERS)]
    assert wanted and {one.reminder_id for one in said} == wanted
    assert {(one.item_id, one.state) for one in said} == {("tea", "due")}


def soon_silent(spread_s: float) -> list[dict[str, Any]]:
    """Of users who do nothing else, so that the bundles' churn model calls each of them gone one after the other within
    `spread_s` from now: timers that are running while workers come, go and die."""
    now_ms = time.time_ns() // 1_000_000 - round(LAPSE_DAYS * DAY_MS)
    return [event(user=f"quiet{n}", ts_ms=now_ms + round(spread_s * 1_000 * n / QUIET), lane="live", id=f"quiet{n}")
            for n in range(QUIET)]  # fmt: skip


def alerted(records: list[Any]) -> list[ChurnAlert]:
    """Those of a topic's alerts that are about these users, as often as they were sent."""
    said = (msgspec.json.decode(record.value, type=ChurnAlert) for record in records)
    return [one for one in said if one.user_id.startswith("quiet")]


def await_alerts(settings: Settings, timeout_s: float) -> None:
    """Until all of them were alerted about."""
    with Tail(settings, topics.CHURN_ALERTS) as alerts:
        until(lambda: len({one.user_id for one in alerted(alerts.poll())}) == QUIET, timeout_s,
              "all who have fallen silent alerted about")  # fmt: skip


def assert_each_is_alerted_once(settings: Settings) -> None:
    """Of every such user one alert, under the id that its last event gives, however often it was sent."""
    wanted = {output_id("churn-alert", "t", f"quiet{n}", f"quiet{n}", "raised") for n in range(QUIET)}
    said = alerted(read_all(settings, topics.CHURN_ALERTS))
    assert {one.alert_id for one in said} == wanted and {one.state for one in said} == {"raised"}


def assert_aggregates_are_true(settings: Settings) -> None:
    """ClickHouse's views give what counting the log once by hand gives; an event that is stored twice would be in them."""
    records = (record.value for record in read_all(settings, topics.EVENTS) if record.value != NO_EVENT)
    log = {one.message_id: one for one in (msgspec.json.decode(value, type=Event) for value in records)}
    items: Counter[tuple[str, str, str]] = Counter()
    users: dict[tuple[str, str], set[str]] = {}
    for one in log.values():
        at = datetime.fromtimestamp(one.ts_ms / 1000, tz=UTC)
        items[f"{at:%Y-%m-%d %H}", one.properties.product_id or "", one.event or ""] += 1
        users.setdefault((f"{at:%Y-%m-%d}", one.event or ""), set()).add(one.user)
    with closing(clickhouse.open_client(settings.clickhouse)) as client:
        hours = client.query("SELECT substring(toString(hour), 1, 13), product_id, views, carts, orders FROM items_by_hour")
        days = client.query("SELECT toString(day), viewing, adding, ordering FROM funnel_daily")
    names = ("Product Viewed", "Product Added", "Order Completed")
    found = {(hour, item, name): count for hour, item, *counts in hours.result_rows
             for name, count in zip(names, counts, strict=True) if count}  # fmt: skip
    assert found == dict(items)
    assert {(day, name): count for day, *counts in days.result_rows for name, count in zip(names, counts, strict=True)
            if count} == {key: len(some) for key, some in users.items()}  # fmt: skip


def sent_again(settings: Settings) -> dict[str, int]:
    """Topic → records on it that say what was said before."""
    found = {}
    for topic, ident in ((topics.RECOMMENDATIONS, "recommendation_id"), (topics.COMPLEMENTS, "recommendation_id"),
                         (topics.REMINDERS, "reminder_id"), (topics.CHURN_ALERTS, "alert_id")):  # fmt: skip
        ids = [msgspec.json.decode(record.value)[ident] for record in read_all(settings, topic)]
        found[topic.entity] = len(ids) - len(set(ids))
    return found


def emissions(settings: Settings) -> Counter[str]:
    """How often each recommendation was sent; each must answer an event of the log, of its user."""
    log = [msgspec.json.decode(record.value) for record in read_all(settings, topics.EVENTS)]
    of = {one["messageId"]: one["userId"] for one in log}
    found: Counter[str] = Counter()
    for record in read_all(settings, topics.RECOMMENDATIONS):
        one = msgspec.json.decode(record.value, type=Recommendation)
        assert of[one.as_of_event_id] == one.user_id
        found[one.recommendation_id] += 1
    return found


class Feed:
    """Sends events at a rate, on a thread of its own, until it is stopped."""

    def __init__(self, settings: Settings, seed: int, events_per_s: float) -> None:
        self.sent = 0
        self.failure: Exception | None = None
        self._settings, self._stream, self._pause_s = settings, Stream(seed), PORTION / events_per_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed")

    def _run(self) -> None:
        try:
            with Sender(self._settings) as sender:
                while not self._over.wait(self._pause_s):
                    self.sent += sender.send(self._stream.take(PORTION))
        except Exception as error:  # the test's own thread says it
            self.failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        assert self.failure is None, self.failure


class Committed:
    """How far a group has come, in records of the events topic over all partitions; one connection, to be closed."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._lag, self._group = Lag(settings), group

    def __call__(self) -> int:
        ends = self._lag.ends(topics.EVENTS)
        return sum(ends.values()) - self._lag.of(self._group, ends)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lag.admin.close()


def ended_by_kill(process: subprocess.Popen[bytes], timeout_s: float, where: str) -> None:
    """It must have come to its end there, not have ended otherwise."""
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise AssertionError(f"the worker never came to {where}") from error
    assert code == -9, f"ended with {code} before {where}"


