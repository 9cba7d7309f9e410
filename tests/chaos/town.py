"""What the chaos tests share: a stream of live events, workers that are killed, and the truth they must end in."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

import msgspec

from schemas import topics
from schemas.events import Event
from schemas.outputs import Recommendation, Reminder, output_id
from stream.adapters.lag import Lag
from stream.core import state as states
from stream.core.repurchase import FEATURES, Repurchase
from stream.core.state import DAY_MS, UserState
from stream.settings import Settings
from tests.support.cluster import Sender, comparable, lag, oracle, read_all, start_worker, stored_states
from tests.support.fakes import event

USERS, ITEMS = 120, 40
PORTION = 20  # events sent at once
NOT_COMPARED = ("recommended_ts_ms", "due_ts_ms", "claimed", "reminders", "put_event_id")  # when something was said
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


def assert_states_are_true(settings: Settings) -> None:
    """Every user's state is what folding the log once gives: nothing lost, nothing twice."""
    truth, found = oracle(settings), stored_states(settings)
    assert found.keys() == truth.keys()
    wrong = {key: different(found[key], truth[key]) for key in truth if comparable(found[key]) != comparable(truth[key])}
    assert not wrong, f"{len(wrong)} of {len(truth)} states differ; found and true: {list(wrong.items())[:3]}"


def different(found: UserState, true: UserState) -> dict[str, Any]:
    """Field → what is found and not true, what is true and not found; of those fields that differ."""

    def parts(value: Any) -> set[str]:
        whole = value.items() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        return {repr(one) for one in whole}

    true = states.decode(states.encode(true))  # enums as the numbers they are stored as
    both = {name: (getattr(found, name), getattr(true, name)) for name in UserState.__struct_fields__}
    return {
        name: (sorted(parts(mine) - parts(theirs)), sorted(parts(theirs) - parts(mine)))
        for name, (mine, theirs) in both.items() if mine != theirs and name not in NOT_COMPARED
    }  # fmt: skip


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


def sink_lag(settings: Settings) -> int:
    """Records of all topics the sink reads that it has not committed."""
    with Lag(settings) as seen:
        return seen.storing()


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


