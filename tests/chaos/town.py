"""What the chaos tests share: a stream of live events, workers that are killed, and the truth they must end in."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from schemas import topics
from schemas.outputs import Recommendation
from stream.settings import Settings
from stream.sink.consumer import group as sink_group
from tests.support.cluster import comparable, lag, oracle, read_all, start_worker, stored_states
from tests.support.fakes import event

USERS, ITEMS = 120, 40
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
    assert [key for key in truth if comparable(found[key]) != comparable(truth[key])] == []


def emissions(settings: Settings) -> Counter[str]:
    """How often each recommendation was sent; each must answer an event of the log, of its user."""
    of = {one["messageId"]: one["userId"] for one in (msgspec.json.decode(r.value) for r in read_all(settings, topics.EVENTS))}
    found: Counter[str] = Counter()
    for record in read_all(settings, topics.RECOMMENDATIONS):
        one = msgspec.json.decode(record.value, type=Recommendation)
        assert of[one.as_of_event_id] == one.user_id
        found[one.recommendation_id] += 1
    return found


def sink_lag(settings: Settings) -> int:
    """Records of all topics the sink reads that it has not committed."""
    from clickwake.observe import Lag

    with Lag(settings) as seen:
        read = (topics.EVENTS, topics.RECOMMENDATIONS, topics.CHURN_ALERTS, topics.DEAD_LETTERS, topics.ITEMS)
        return sum(seen.of(sink_group(settings), seen.ends(topic)) for topic in read)


def ended_by_kill(process: subprocess.Popen[bytes], timeout_s: float, where: str) -> None:
    """It must have come to its end there, not have ended otherwise."""
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise AssertionError(f"the worker never came to {where}") from error
    assert code == -9, f"ended with {code} before {where}"


