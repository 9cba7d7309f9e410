"""The personalize worker as a process on a real broker: every count and state equals a recomputation from the log."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.outputs import Complements
from stream.settings import Settings
from tests.support.cluster import (
    Sender,
    Worker,
    assert_counts_are_true,
    assert_states_are_true,
    lag,
    members,
    of_short_sessions,
    outcomes,
    produce_events,
    read_all,
    running,
    start_worker,
    stored_states,
    until,
)
from tests.support.fakes import T0_MS, event

USERS = 300


def history(count: int, lane: str = "import") -> list[dict[str, Any]]:
    """Events in time order, with 3% duplicates."""
    draw = random.Random(7)
    events = [
        event(user=f"u{draw.randrange(USERS)}", ts_ms=T0_MS + n * 1_000, item=f"i{draw.randrange(80)}", id=f"m{n}",
              lane=lane, name=draw.choice(["Product Viewed", "Product Added", "Order Completed"]))
        for n in range(count)
    ]  # fmt: skip
    for _ in range(count // 33):
        events.append(draw.choice(events))
    return events


def caught_up(settings: Settings) -> bool:
    return lag(settings, "personalize", topics.EVENTS) == 0


def test_states_equal_a_recomputation_and_survive_a_lost_store(settings: Settings, tmp_path: Path) -> None:
    topic_admin.create(settings)
    produce_events(settings, history(4_000))
    worker = start_worker(settings, "workers.personalize")
    until(lambda: caught_up(settings), 60, "all events folded")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert_states_are_true(settings)
    new = [event(user=f"u{n}", ts_ms=T0_MS + 5_000_000 + n, id=f"new{n}", lane="import") for n in range(USERS)]
    produce_events(settings, new)  # one of each user: folded onto what was rebuilt, it shows all of it
    again = start_worker(settings, "workers.personalize", home=tmp_path / "empty")  # store rebuilt from the changelog
    until(lambda: caught_up(settings), 60, "the new events folded")
    assert_states_are_true(settings)
    produce_events(settings, history(4_000))  # the whole replay again: nothing changes
    until(lambda: caught_up(settings), 60, "the replay folded")
    again.send_signal(signal.SIGTERM)
    assert again.wait(20) == 0
    assert_states_are_true(settings)


@pytest.mark.timeout(240)
def test_killed_while_replaying_and_a_second_worker_coming_and_going(settings: Settings, tmp_path: Path) -> None:
    settings = of_short_sessions(settings)
    topic_admin.create(settings)
    events = history(30_000)
    produce_events(settings, events[:15_000])
    first = start_worker(settings, "workers.personalize", home=tmp_path / "one")
    until(lambda: lag(settings, "personalize", topics.EVENTS) < 14_000, 60, "some events folded")
    first.kill()
    first.wait(10)
    first = start_worker(settings, "workers.personalize", home=tmp_path / "one")
    second = start_worker(settings, "workers.personalize", home=tmp_path / "two")
    produce_events(settings, events[15_000:22_000])
    until(lambda: caught_up(settings), 120, "both workers caught up")
    produce_events(settings, events[22_000:])
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == 0
    until(lambda: caught_up(settings), 60, "the first worker took over")
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0
    assert_states_are_true(settings)
    assert_counts_are_true(settings)


def test_an_open_interval_holds_up_no_rebalance_and_is_not_lost_in_it(settings: Settings, tmp_path: Path) -> None:
    """No timer closes an interval here, so only a revocation can; if it waited for the interval, it waited for ever."""
    topic_admin.create(settings)
    events = history(3_000)
    for_ever = {"CLICKWAKE_PERSONALIZE__FLUSH_INTERVAL_MS": "3600000"}
    taken = f'clickwake_records_total{{topic="{topics.EVENTS.name(settings.kafka.topic_prefix)}"}}'
    sent = produce_events(settings, events[:2_000])
    with running(settings, "workers.personalize", tmp_path / "one", **for_ever) as first:
        until(lambda: first.metrics().get(taken) == sent, 60, "every event folded")
        assert lag(settings, "personalize", topics.EVENTS) == sent, "and the interval open"
        with running(settings, "workers.personalize", tmp_path / "two", **for_ever) as second:
            until(lambda: members(settings, "personalize") == 2 and caught_up(settings), 45, "the revocation closed it")
            more = produce_events(settings, events[2_000:])
            both = (first, second)
            until(lambda: sum(one.metrics().get(taken, 0.0) for one in both) == sent + more, 60, "the rest folded by two")
            assert second.metrics()[taken] > 0 and lag(settings, "personalize", topics.EVENTS) == more
        until(lambda: caught_up(settings), 45, "leaving closed the intervals of both")
    assert_states_are_true(settings)


def test_a_clean_stop_in_the_middle_of_the_flow_has_nothing_read_or_said_twice(settings: Settings, tmp_path: Path) -> None:
    topic_admin.create(settings)
    over = threading.Event()
    sent: list[int] = []

    def flow() -> None:
        with Sender(settings) as sender:
            for number in range(2_000):
                now_ms = time.time_ns() // 1_000_000
                ids = [f"m{number}-{n}" for n in range(20)]
                sent.append(sender.send([
                    event(user=f"u{n % 30}", item=f"i{(n + number) % 9}", id=ident, ts_ms=now_ms,
                          name="Product Added" if (n + number) % 9 < 2 else "Product Viewed")
                    for n, ident in enumerate(ids)
                ]))  # fmt: skip
                if over.wait(0.05):  # the client's pace
                    return

    client = threading.Thread(target=flow)
    client.start()
    again: Counter[str] = Counter()

    def flows(worker: Worker, begun: int) -> bool:
        return outcomes(worker)["folded"] > 100 and sum(sent) > begun + 400

    try:
        for run in range(3):
            with running(settings, "workers.personalize", tmp_path / str(run)) as worker:
                until(partial(flows, worker, sum(sent)), 60, "events are folded")
                if run == 2:
                    over.set()
                    client.join()
                    until(lambda: caught_up(settings), 60, "everything folded")
                again += Counter({name: n for name, n in outcomes(worker).items() if name in ("replayed", "duplicate")})
                stopping = time.monotonic()
                worker.stop()
                assert time.monotonic() - stopping < 20
    finally:
        over.set()
        client.join()
    assert not again, "after a clean stop nothing is read again"
    assert_states_are_true(settings)
    for topic in (topics.RECOMMENDATIONS, topics.COMPLEMENTS):
        made = [msgspec.json.decode(one.value)["recommendation_id"] for one in read_all(settings, topic)]
        assert made and len(made) == len(set(made)), "and nothing is said twice"
    for one in read_all(settings, topics.COMPLEMENTS):
        said = msgspec.json.decode(one.value, type=Complements)
        assert set(said.basket) <= {"i0", "i1"} and not set(said.basket) & {item.item_id for item in said.items}


def test_bad_records_are_dead_letters_and_neighbours_go_on(settings: Settings) -> None:
    topic_admin.create(settings)
    broken = [b"{", b"\xff\xfe", b"[1,2", b'{"messageId": 5}', b"x" * 200_000]
    bad = [(b"t/u1", value) for value in broken]
    good = history(500)
    produce_events(settings, [*good[:250], *bad, *good[250:]])
    worker = start_worker(settings, "workers.personalize")
    until(lambda: caught_up(settings), 60, "everything read")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    letters = read_all(settings, topics.DEAD_LETTERS)
    assert len(letters) == len(bad)
    assert len(stored_states(settings)) == len({event["userId"] for event in good})
