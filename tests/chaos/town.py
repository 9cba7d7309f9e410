"""What the chaos tests share: a stream of live events, workers that are killed, and the truth they must end in."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from bisect import bisect_left
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec

from schemas import topics
from schemas.catalog import Item
from schemas.dead_letter import DeadLetter
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
    assert_counts_are_true,
    assert_states_are_true,
    comparable,
    is_ahead,
    lag,
    read_all,
    start_worker,
    stored_states,
    until,
)
from tests.support.fakes import event

USERS, ITEMS = 120, 40
SKEWED = 4  # users whose clocks are a day behind, and as many whose clocks are a day ahead
PORTION = 20  # events sent at once
QUIET = 20  # users of `soon_silent`
NO_EVENT = b"{"  # what a client sends now and then
TEA = Item(item_id="tea", tenant="t", title="tea")  # what reminders are about
REPURCHASE = Repurchase(weights=(0.0,) * len(FEATURES), constant=0.0, shape=1.0, usual_days=30.0)  # for everybody
CONSUMING_AGAIN_S = 30.0  # after a crash
UNDER_WAY_MS_MAX = 2_000  # the batch that a worker is at when its interval is over, and closing it, on a busy machine
ON_ITS_WAY_MS_MAX = 500  # what a worker that is gone had handed to the network reaches the broker within it


class Stream:
    """Live events as they come, a tenth of them twice, one in twenty some minutes late, two in fifty of users whose clocks
    are a day behind or ahead; seeded."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._made = 0
        self._recent: list[dict[str, Any]] = []

    def take(self, count: int) -> list[dict[str, Any]]:
        """The next events, duplicates among them."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            if self._recent and self._draw.random() < 0.1:
                found.append(self._draw.choice(self._recent))
                continue
            user, off_ms = self._who()
            one = event(
                user=user, ts_ms=time.time_ns() // 1_000_000 + off_ms, lane="live",
                item=f"i{self._draw.randrange(ITEMS)}", id=f"m{self._made}",
                name=self._draw.choice(["Product Viewed", "Product Added", "Order Completed"]),
            )  # fmt: skip
            self._made += 1
            found.append(one)
            self._recent = [*self._recent[-200:], one]
        return found

    def _who(self) -> tuple[str, int]:
        """A user, and how far the time they give is off, ms."""
        kind = self._draw.random()
        if kind < 0.04:
            name, off_ms = ("behind", -DAY_MS) if kind < 0.02 else ("ahead", DAY_MS)
            return f"{name}{self._draw.randrange(SKEWED)}", off_ms
        return f"u{self._draw.randrange(USERS)}", -self._draw.randrange(600_000) if self._draw.random() < 0.05 else 0


def start_crashing(settings: Settings, worker: str, point: str, times: int, home: Path) -> subprocess.Popen[bytes]:
    """A worker that is gone at a point, see `tests.chaos.crashing`."""
    return start_worker(settings, "tests.chaos.crashing", home, arguments=[worker, point, str(times)])


def caught_up(settings: Settings) -> bool:
    return lag(settings, "personalize", topics.EVENTS) == 0 and lag(settings, "personalize", topics.IDENTITY) == 0


def assert_town_is_true(settings: Settings) -> None:
    """Nothing folds alerts but the worker: what states say of them is compared with what is on their topic."""
    assert_states_are_true(settings, lambda state: comparable(msgspec.structs.replace(state, alert=Alert())))
    assert_counts_are_true(settings)
    standing = {one.user_id: one.state == "raised" for one in alerts(read_all(settings, topics.CHURN_ALERTS))}
    held = {key.decode().removeprefix("t/") for key, state in stored_states(settings).items()
            if state.alert.raised and not state.alert.silenced}  # fmt: skip
    assert held == {user for user, raised in standing.items() if raised}
    assert_the_future_was_refused(settings)


def assert_the_future_was_refused(settings: Settings) -> None:
    """Each event that is ahead of the broker's clock is a dead letter that says so, and no other record is one."""
    ahead = {(record.partition, record.offset) for record, one in events(settings) if is_ahead(settings, one, record)}
    letters = [msgspec.json.decode(record.value, type=DeadLetter) for record in read_all(settings, topics.DEAD_LETTERS)]
    assert {(one.source.partition, one.source.offset) for one in letters} == ahead
    assert {(said.path, said.keyword) for one in letters for said in one.failure.messages} <= {("timestamp", "maximum")}


def events(settings: Settings) -> list[tuple[Any, Event]]:
    """Records of the events topic, by partition and offset, with what they say; `NO_EVENT` left out."""
    return [(record, msgspec.json.decode(record.value, type=Event)) for record in read_all(settings, topics.EVENTS)
            if record.value != NO_EVENT]  # fmt: skip


def orders_due_again() -> list[dict[str, Any]]:
    """Of "tea", by some of the users, so long ago that the bundles of `REPURCHASE` call them due when the stream begins."""
    ago_ms = round((REPURCHASE.usual_days - 6) * DAY_MS)
    return [event(user=f"u{n}", ts_ms=time.time_ns() // 1_000_000 - ago_ms, lane="live", item="tea", id=f"tea{n}",
                  name="Order Completed") for n in range(USERS // 4)]  # fmt: skip


def assert_each_is_reminded_once(settings: Settings) -> None:
    """Of every such order, under the id that it gives, however often it was sent."""
    wanted = {output_id("reminder", "t", one.user, "tea", "", str(one.ts_ms))
              for _, one in events(settings) if one.message_id.startswith("tea")}  # fmt: skip
    said = [msgspec.json.decode(record.value, type=Reminder) for record in read_all(settings, topics.REMINDERS)]
    assert wanted and {one.reminder_id for one in said} == wanted
    assert {(one.item_id, one.state) for one in said} == {("tea", "due")}


def soon_silent(spread_s: float) -> list[dict[str, Any]]:
    """Of users who do nothing else, so that the bundles' churn model calls each of them gone one after the other within
    `spread_s` from now: timers that are running while workers come, go and die."""
    now_ms = time.time_ns() // 1_000_000 - round(LAPSE_DAYS * DAY_MS)
    return [event(user=f"quiet{n}", ts_ms=now_ms + round(spread_s * 1_000 * n / QUIET), lane="live", id=f"quiet{n}")
            for n in range(QUIET)]  # fmt: skip


def alerts(records: list[Any]) -> list[ChurnAlert]:
    """Those of a topic, as often as they were sent."""
    return [msgspec.json.decode(record.value, type=ChurnAlert) for record in records]


def await_alerts(settings: Settings, timeout_s: float, count: int = QUIET) -> None:
    """Until so many of them were alerted about."""
    with Tail(settings, topics.CHURN_ALERTS) as said:
        until(lambda: len({one.user_id for one in alerts(said.poll()) if one.user_id.startswith("quiet")}) >= count,
              timeout_s, f"{count} of those who have fallen silent alerted about")  # fmt: skip


def assert_each_is_alerted_once(settings: Settings) -> None:
    """Of every such user one alert, under the id that its last event gives, however often it was sent; and none of anybody
    who was there all the time. Whose clock is a day behind looks silent; who ordered "tea" was, until the stream began."""
    wanted = {output_id("churn-alert", "t", f"quiet{n}", f"quiet{n}", "raised") for n in range(QUIET)}
    ordered = {output_id("churn-alert", "t", f"u{n}", f"tea{n}", state)
               for n in range(USERS) for state in ("raised", "cleared")}  # fmt: skip
    said = {one.alert_id for one in alerts(read_all(settings, topics.CHURN_ALERTS)) if not one.user_id.startswith("behind")}
    assert wanted <= said <= wanted | ordered


def assert_aggregates_are_true(settings: Settings) -> None:
    """ClickHouse's views give what counting the log once by hand gives; an event that is stored twice would be in them."""
    log = {one.message_id: one for record, one in events(settings) if not is_ahead(settings, one, record)}
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


def assert_little_was_sent_again(settings: Settings, deaths_ms: list[int]) -> None:
    """What was said twice, about a user who had done nothing new, was first said right before a death of the worker, which
    lies between the two: within one interval and the batch that was under way. `deaths_ms`: when workers died."""
    own, log = settings.personalize, [one for record, one in events(settings) if not is_ahead(settings, one, record)]
    by_user: dict[str, list[Event]] = {}
    for one in log:
        by_user.setdefault(one.user, []).append(one)
    deaths, ages_ms = sorted(one + ON_ITS_WAY_MS_MAX for one in deaths_ms), []
    for topic, ident in ((topics.RECOMMENDATIONS, "recommendation_id"), (topics.COMPLEMENTS, "recommendation_id"),
                         (topics.REMINDERS, "reminder_id"), (topics.CHURN_ALERTS, "alert_id")):  # fmt: skip
        said_ms: dict[tuple[str, str], int] = {}
        for record in read_all(settings, topic):
            output = msgspec.json.decode(record.value)
            known, now_ms = (output[ident], output.get("state", "")), int(record.timestamp)
            before_ms, said_ms[known] = said_ms.get(known), now_ms
            if before_ms is None or _answered_anew(by_user[output["user_id"]], output.get("as_of_event_id")):
                continue
            at = bisect_left(deaths, before_ms)
            assert at < len(deaths) and deaths[at] <= now_ms, f"said twice, and nobody died in between: {output}"
            ages_ms.append(deaths[at] - before_ms)
    oldest_ms = max(ages_ms, default=0)
    print(f"{len(ages_ms)} outputs sent again after {len(deaths)} deaths, first said {oldest_ms} ms before one at most")
    interval_ms = own.flush_interval_behind_ms + own.flush_interval_ms
    assert oldest_ms <= interval_ms + UNDER_WAY_MS_MAX + ON_ITS_WAY_MS_MAX, f"said {oldest_ms} ms before a death"


def _answered_anew(log: list[Event], event_id: str | None) -> bool:
    """Whether a user's event was still their newest when a late one was folded: then the same is said again, of another
    state."""
    seen: set[str] = set()
    newest: tuple[int, str] | None = None
    for one in log:
        if one.message_id in seen:
            continue
        seen.add(one.message_id)
        if one.message_id == event_id:
            newest = one.ts_ms, event_id
        elif newest is not None:
            return (one.ts_ms, one.message_id) < newest
    return False


def emissions(settings: Settings) -> Counter[str]:
    """How often each recommendation was sent; each must answer an event of the log, of its user."""
    of = {one.message_id: one.user for _, one in events(settings)}
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


def ended_by_kill(process: subprocess.Popen[bytes], timeout_s: float, where: str) -> int:
    """It must have come to its end there, not have ended otherwise. Returns when, ms since 1970."""
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise AssertionError(f"the worker never came to {where}") from error
    assert code == -9, f"ended with {code} before {where}"
    return time.time_ns() // 1_000_000


