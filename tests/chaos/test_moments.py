"""Workers killed, put to sleep, joined and left at moments nobody chose, while events go on coming.

`make test` runs a short form; CLICKWAKE_CHAOS=full (`make chaos`) the whole: 200 kills, 20 joins and leaves, and sleep.
"""

from __future__ import annotations

import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.outputs import Reminder
from stream.adapters.database import clickhouse as adapter
from stream.core.terms import CLAIM_KEY, term_of
from stream.core.user.state import DAY_MS
from stream.partition import unpack
from stream.settings import Kafka, Personalize, Settings
from tests.chaos.town import (
    CONSUMING_AGAIN_S,
    FULL,
    REPURCHASE,
    TEA,
    Committed,
    Feed,
    assert_aggregates_are_true,
    assert_each_is_alerted_once,
    assert_every_user_is_answered,
    assert_little_was_sent_again,
    assert_town_is_true,
    await_alerts,
    caught_up,
    emissions,
    soon_silent,
)
from tests.support import bundles
from tests.support.bundles import LAPSE_DAYS, Exported
from tests.support.cluster import (
    Worker,
    lag,
    members,
    of_short_sessions,
    produce_events,
    read_all,
    running,
    sink_lag,
    start_worker,
    stored_states,
    until,
)
from tests.support.fakes import event
from training.release import release as releases

KILLS, JOINS = (200, 20) if FULL else (3, 3)
EVENTS_PER_S = 200.0
CATCHING_UP_PER_S = 10 * EVENTS_PER_S  # at least, beside other tests
JOINS_S_MAX = 300.0  # all of them, where there are 20
SUPERSEDED = "went to another worker while this one slept"
RETURNING = 8  # users who come back while their worker is asleep
AS_SHIPPED = 4 if FULL else 0  # kills of workers whose sessions are those of the settings


@pytest.fixture
def town(settings: Settings, exported: Exported, registry: Path, rules: None) -> Settings:
    settings = bundles.with_registry(of_short_sessions(settings), registry)  # more happens in the time there is
    topic_admin.create(settings)
    bundles.put_vectors(settings, [*bundles.ITEMS, TEA])
    bundle = bundles.publish(settings.registry, exported, repurchase=REPURCHASE.named())
    releases.release(settings, bundle.model_version)
    return settings


class Killed(NamedTuple):
    """What a worker's kills were like: how long it was from each to consuming again, and when each was."""

    again_s: list[float]
    deaths_ms: list[int]


@pytest.mark.timeout(180 + 45 * KILLS)
def test_killed_at_random_moments(town: Settings) -> None:
    """Personalize and the sink, each of them KILLS times, at moments that have nothing to do with one another."""
    produce_events(town, soon_silent(10.0 * KILLS))
    over = threading.Event()
    with Feed(town, 5, EVENTS_PER_S) as feed, ThreadPoolExecutor() as at_once:
        prefix = town.kafka.topic_prefix
        personalize, sink = (at_once.submit(kill_again_and_again, town, name, group, over) for name, group in (
            ("personalize", f"{prefix}-personalize"), ("sink", f"{prefix}.sink")))  # fmt: skip
        for one in as_completed((personalize, sink)):
            if one.exception():
                over.set()  # nobody waits for the other one
    again_s = [*personalize.result().again_s, *sink.result().again_s]
    print(f"consuming again after {statistics.median(again_s):.1f} s, at most {max(again_s):.1f} s, in {len(again_s)} kills")
    assert max(again_s) < CONSUMING_AGAIN_S
    with running(town, "workers.personalize"), running(town, "workers.sink"):
        until(lambda: caught_up(town), 60 + feed.sent / CATCHING_UP_PER_S, "all events folded")
        await_alerts(town, 10.0 * KILLS + 60)
        assert_every_user_is_answered(town)
        until(lambda: sink_lag(town) == 0, 60 + feed.sent / CATCHING_UP_PER_S, "everything stored")
    assert_town_is_true(town)
    assert_each_is_alerted_once(town)
    assert_aggregates_are_true(town)
    sent = emissions(town)
    assert len(sent) > feed.sent / 100
    assert_little_was_sent_again(town, personalize.result().deaths_ms)
    with closing(adapter.open_client(town.clickhouse)) as client:
        assert client.query("SELECT uniqExact(recommendation_id) FROM recommendations").first_row[0] == len(sent)


def kill_again_and_again(town: Settings, name: str, group: str, over: threading.Event) -> Killed:
    """KILLS times, or until it is `over`; the moments are drawn, by the worker's name."""
    draw, found = random.Random(f"5 {name}"), Killed([], [])
    with Committed(town, group) as committed:
        killed_at = time.monotonic()  # or never lived
        for number in range(KILLS):
            if over.is_set():
                break
            before = committed()
            worker = start_worker(town, f"workers.{name}", **({} if number < KILLS - AS_SHIPPED else {
                "CLICKWAKE_KAFKA__SESSION_TIMEOUT_MS": str(Kafka().session_timeout_ms)}))  # fmt: skip
            until(lambda before=before: committed() > before, 2 * CONSUMING_AGAIN_S, f"{name} consumes again")
            found.again_s.append(time.monotonic() - killed_at)
            # the moment itself is what is drawn; nothing is waited for. Some live for several intervals
            time.sleep(draw.random() * (9 if number % 4 == 2 else 3))
            assert worker.poll() is None, f"{name} ended by itself"
            worker.kill()
            killed_at = time.monotonic()
            worker.wait(10)
            found.deaths_ms.append(time.time_ns() // 1_000_000)
    return found


@pytest.mark.timeout(180 + 30 * JOINS)
def test_workers_join_and_leave(town: Settings, tmp_path: Path) -> None:
    draw, began = random.Random(6), time.monotonic()
    produce_events(town, soon_silent(15.0 * JOINS))  # timers move with their partitions
    group = f"{town.kafka.topic_prefix}-personalize"
    with (Feed(town, 6, EVENTS_PER_S), Committed(town, group) as committed, running(town, "workers.personalize"),
          running(town, "workers.sink")):
        until(lambda: committed() > 0, CONSUMING_AGAIN_S, "the first worker consumes")
        for number in range(JOINS):
            with running(town, "workers.personalize", tmp_path / f"guest-{number % 2}"):
                until(lambda: members(town, "personalize") == 2, CONSUMING_AGAIN_S, "two share the partitions")
                before = committed()
                until(lambda before=before: committed() > before + EVENTS_PER_S, CONSUMING_AGAIN_S, "they go on together")
                time.sleep(draw.random() * 2)  # how long a guest stays is what is drawn
            before = committed()
            until(lambda before=before: committed() > before + EVENTS_PER_S, CONSUMING_AGAIN_S, "one goes on alone")
        took_s = time.monotonic() - began
        print(f"{JOINS} joins and leaves in {took_s:.0f} s")
        until(lambda: lag(town, "personalize", topics.EVENTS) < 2 * EVENTS_PER_S, 60, "no stall")
        await_alerts(town, 15.0 * JOINS + 30)
    _finish(town)
    assert_town_is_true(town)
    assert_each_is_alerted_once(town)
    assert_aggregates_are_true(town)
    assert not FULL or took_s < JOINS_S_MAX


def _finish(town: Settings) -> None:
    with running(town, "workers.personalize"), running(town, "workers.sink"):
        until(lambda: caught_up(town), 60, "the rest folded")
        assert_every_user_is_answered(town)
        until(lambda: sink_lag(town) == 0, 60, "the rest stored")


@contextmanager
def asleep(town: Settings, worker: str, point: str, times: int, home: Path) -> Iterator[Worker]:
    """A worker that has fallen asleep at a point of `tests.chaos.crashing`; killed in the end, unless it has ended."""
    process = start_worker(town, "tests.chaos.crashing", home, arguments=[worker, point, str(times), "stop"])
    try:
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, 60, f"it falls asleep at {point}")
        yield Worker(process, home, "tests.chaos.crashing")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


@contextmanager
def waking(town: Settings, point: str, times: int, home: Path) -> Iterator[Worker]:
    """A personalize worker that slept through its session, at a point, and is woken. The other owner, who is there still,
    has folded everything and answered everybody meanwhile; nothing new comes."""
    with Committed(town, f"{town.kafka.topic_prefix}-personalize") as committed, ExitStack() as coming:
        coming.enter_context(Feed(town, 7, EVENTS_PER_S))
        with (asleep(town, "personalize", point, times, home / "sleeper") as sleeper,
              running(town, "workers.personalize", home / "other")):  # fmt: skip
            until(lambda: members(town, "personalize") == 1, 2 * CONSUMING_AGAIN_S, "the sleeper was given up")
            before = committed()
            until(lambda: committed() > before + EVENTS_PER_S, 2 * CONSUMING_AGAIN_S, "the other took its partitions")
            coming.close()
            until(lambda: caught_up(town), 60, "the other has folded all")
            assert_every_user_is_answered(town)
            sleeper.process.send_signal(signal.SIGCONT)
            yield sleeper


@pytest.mark.timeout(240)
@pytest.mark.parametrize("point", ["6 changelog", "6 store"])
def test_a_worker_that_slept_through_its_session_writes_nothing(town: Settings, tmp_path: Path, point: str) -> None:
    """Asleep inside a write: after the changelog has it, and after the store has it too. It is let in again, unless what it
    would say of another partition was on its way: then it ends, see below."""
    with waking(town, point, 40, tmp_path) as sleeper:
        ended = sleeper.process.poll
        until(lambda: ended() is not None or members(town, "personalize") == 2, 2 * CONSUMING_AGAIN_S, "it is let in again")
        with Committed(town, f"{town.kafka.topic_prefix}-personalize") as committed, Feed(town, 8, EVENTS_PER_S):
            before = committed()
            until(lambda: committed() > before + EVENTS_PER_S, CONSUMING_AGAIN_S, "and both go on, or the other alone")
        if SUPERSEDED in sleeper.log():
            assert sleeper.process.wait(CONSUMING_AGAIN_S) == 1
        else:
            sleeper.stop()
    _finish(town)
    assert_town_is_true(town)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("point", "times"), [("4", 20), ("6 changelog-", 40), ("6 counts- noticed", 10), *([("3", 400)] if FULL else [])]
)
def test_a_worker_that_slept_before_it_said_something_does_not_say_it(
    town: Settings, tmp_path: Path, point: str, times: int
) -> None:
    """Asleep before step 4 or 5: what it would say is no news any more, and its batch is half folded. Or before its states
    are handed to its producer: they are out of date. Or before its counts, where it goes on when it has heard that it is no
    member."""
    with waking(town, point, times, tmp_path) as sleeper:
        assert sleeper.process.wait(CONSUMING_AGAIN_S) == 1
        assert SUPERSEDED in sleeper.log()
        assert_every_user_is_answered(town)
    _finish(town)
    assert_town_is_true(town)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("point", "times"), [("3 first insert", 20), *([("2", 10), ("5-", 10)] if FULL else [])])
def test_what_a_sink_that_slept_through_its_session_writes_counts_once(
    town: Settings, tmp_path: Path, point: str, times: int
) -> None:
    """Asleep with a batch that it has frozen, with one that is stored in part, or before it commits one; the other sink has
    stored the same meanwhile, in other batches."""
    with (Feed(town, 9, EVENTS_PER_S), Committed(town, f"{town.kafka.topic_prefix}.sink") as committed,
          asleep(town, "sink", point, times, tmp_path / "sleeper") as sleeper,
          running(town, "workers.sink", tmp_path / "other")):  # fmt: skip
        before, assigned = committed(), sleeper.log().count("sink.assigned")
        until(lambda: committed() > before + EVENTS_PER_S, 2 * CONSUMING_AGAIN_S, "the other took its partitions")
        sleeper.process.send_signal(signal.SIGCONT)
        until(lambda: sleeper.log().count("sink.assigned") > assigned, 2 * CONSUMING_AGAIN_S, "it is let in again")
        before = committed()
        until(lambda: committed() > before + EVENTS_PER_S, CONSUMING_AGAIN_S, "and both go on")
        sleeper.stop()
    with running(town, "workers.sink"):
        until(lambda: sink_lag(town) == 0, 60, "the rest stored")
    assert_aggregates_are_true(town)


@pytest.mark.timeout(240)
def test_what_a_sleeper_writes_beside_the_owner_counts_for_nobody(town: Settings, tmp_path: Path) -> None:
    """Asleep when a write is on its way to the changelog, where nobody can hold it back."""
    with waking(town, "6 changelog network", 40, tmp_path):
        until(lambda: late(town), CONSUMING_AGAIN_S, "its write reaches the changelog")
    _finish(town)
    assert_town_is_true(town)


def test_what_a_sleeper_writes_when_nobody_is_left_counts_for_nobody(town: Settings, tmp_path: Path) -> None:
    """The owner that followed has written its last and gone when the sleeper goes on with its write: nobody is there to see
    it. Whoever opens the partition next must not take it for the state."""
    group = f"{town.kafka.topic_prefix}-personalize"
    with Committed(town, group) as committed, ExitStack() as coming:
        coming.enter_context(Feed(town, 8, EVENTS_PER_S))
        with (asleep(town, "personalize", "6 changelog network", 40, tmp_path / "sleeper") as sleeper,
              running(town, "workers.personalize", tmp_path / "other") as other):  # fmt: skip
            until(lambda: members(town, "personalize") == 1, 2 * CONSUMING_AGAIN_S, "the sleeper was given up")
            before = committed()
            until(lambda: committed() > before + EVENTS_PER_S, 2 * CONSUMING_AGAIN_S, "the other took its partitions")
            coming.close()
            until(lambda: caught_up(town), 60, "the other has folded all")
            other.stop()
            until(lambda: members(town, "personalize") == 0, CONSUMING_AGAIN_S, "nobody is left")
            sleeper.process.send_signal(signal.SIGCONT)
            until(lambda: late(town), CONSUMING_AGAIN_S, "its write reaches the changelog")
    with running(town, "workers.personalize"):
        with Feed(town, 9, EVENTS_PER_S), Committed(town, group) as committed:
            before = committed()
            until(lambda: committed() > before + EVENTS_PER_S, CONSUMING_AGAIN_S, "somebody opened the partitions")
        until(lambda: caught_up(town), 60, "the rest folded")
        assert_every_user_is_answered(town)
    assert_town_is_true(town)
    last = {record.key: record.value for record in read_all(town, topics.STATE)}
    assert stored_states(town) == {key: unpack(value) for key, value in last.items()
                                   if value is not None and not key.startswith(b"#")}, (
        "what was written late is the last record of its key still: compaction would keep it")


@pytest.mark.timeout(300)
def test_what_is_due_at_a_sleeper_is_not_said_of_users_who_came_back_meanwhile(town: Settings, tmp_path: Path) -> None:
    """It is idle when it falls asleep, so that it holds no batch and writes no interval. But its timers are running, and
    what they make due when it wakes has been settled at the other owner."""
    group, home, due_s = f"{town.kafka.topic_prefix}-personalize", tmp_path / "sleeper", 75.0
    process = start_worker(town, "workers.personalize", home)
    sleeper = Worker(process, home, "workers.personalize")
    try:
        produce_events(town, now("u", 40))
        until(lambda: caught_up(town), 60, "the first worker consumes")
        due_ms = time.time_ns() // 1_000_000 + round(1_000 * due_s)
        # everybody's clock is at the present at last: silence begins then
        produce_events(town, [*ordered_tea(due_ms), *lapsing(due_ms), *soon_silent(due_s + 10), *now("u", 40)])
        await_alerts(town, 30, count=3)
        process.send_signal(signal.SIGSTOP)
        with running(town, "workers.personalize", tmp_path / "other"):
            produce_events(town, [*now("back", RETURNING), *now("buyer", RETURNING, item="tea", name="Order Completed")])
            until(lambda: caught_up(town), due_s, "the other took its partitions")
            assert time.time_ns() // 1_000_000 < due_ms, "they came back too late for what is tested here"
            await_alerts(town, due_s + 30)  # the last of them after `due_ms`
            reminders = reminded(town)
            assert reminders == {f"buyer{n}" for n in range(RETURNING, 2 * RETURNING)}, "who stayed away, and nobody else"
            process.send_signal(signal.SIGCONT)
            until(lambda: members(town, "personalize") == 2, 2 * CONSUMING_AGAIN_S, "it is let in again")
            with Committed(town, group) as committed:
                before = committed()
                produce_events(town, now("u", 40))
                until(lambda: committed() >= before + 40, CONSUMING_AGAIN_S, "and both go on")
            assert_every_user_is_answered(town)
        sleeper.stop()
    finally:
        if process.poll() is None:
            process.kill()
    assert reminded(town) == reminders
    assert_each_is_alerted_once(town)
    assert_town_is_true(town)


def now(who: str, count: int, **more: Any) -> list[dict[str, Any]]:
    """A live event of each of so many users."""
    at_ms = time.time_ns() // 1_000_000
    return [event(user=f"{who}{n}", ts_ms=at_ms, lane="live", **more) for n in range(count)]


def lapsing(due_ms: int) -> list[dict[str, Any]]:
    """Of users who are to be alerted about then."""
    ts_ms = due_ms - round(LAPSE_DAYS * DAY_MS)
    return [event(user=f"back{n}", ts_ms=ts_ms, lane="live") for n in range(RETURNING)]


def ordered_tea(due_ms: int) -> list[dict[str, Any]]:
    """Orders, as long ago as their users are to be reminded of them then; twice as many as come back."""
    ago_ms = round((REPURCHASE.usual_days - Personalize().reminders_window_days / 2) * DAY_MS)
    return [event(user=f"buyer{n}", ts_ms=due_ms - ago_ms, lane="import", item="tea", name="Order Completed")
            for n in range(2 * RETURNING)]  # fmt: skip


def reminded(settings: Settings) -> set[str]:
    said = [msgspec.json.decode(record.value, type=Reminder) for record in read_all(settings, topics.REMINDERS)]
    return {one.user_id for one in said if one.state == "due"}


def late(settings: Settings) -> bool:
    """Whether records of an older term than the newest before them are in the changelog."""
    newest: dict[int, int] = {}
    for record in read_all(settings, topics.STATE):
        term = record.offset if record.key == CLAIM_KEY else term_of(record.headers)
        if term < newest.get(record.partition, -1):
            return True
        newest[record.partition] = term
    return False
