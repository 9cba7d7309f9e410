"""ClickHouse is there and ill: slow, full, over its limits, cutting connections, losing answers. Only lag grows; in the end
every row is there once."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest

from clickwake import topics as topic_admin
from clickwake.local import process
from clickwake.local.clickhouse.launch import ClickHouseServer
from schemas import topics
from stream.adapters.database import clickhouse
from stream.settings import Settings
from stream.sink.batch import freeze
from stream.sink.consumer import row_functions
from stream.sink.writer import HALVED_AFTER_ATTEMPTS, Writer
from tests.chaos.town import FULL, assert_aggregates_are_true, assert_every_user_is_answered, assert_the_recount_agrees
from tests.support.cluster import Worker, lag, produce_events, running, sink_lag, until
from tests.support.database import stored_events
from tests.support.fakes import event
from tests.support.sick_http import CODES, SickProxy

ILL_S = 1_800.0 if FULL else 15.0
CHECKED_S = 1_200.0 if FULL else 240.0  # 600,000 events are counted again by hand, and read from four topics
STRIKES = [("events", "torn"), ("events", "struck"), ("event_products", "struck")] * (20 if FULL else 2)
USERS, A_TIME = 40, 200
GROWTH_BYTES_MAX = 60 << 20  # one batch more in memory, its rows as columns, and what the allocator keeps of it
STEADY_BYTES_MAX = 8 << 20  # from the first ten minutes to the last ten
BEHIND = 15  # batches that nothing takes
CATCH_UP_MIN = 3.0  # times the rate at which events came


def batch(number: int) -> list[dict[str, Any]]:
    now_ms = time.time_ns() // 1_000_000
    return [event(user=f"u{n % USERS}", item=f"i{n % 20}", id=f"m{number}-{n}", ts_ms=now_ms) for n in range(A_TIME)]


def send(settings: Settings, made: list[dict[str, Any]]) -> int:
    """A tenth of them twice; how many they are without these."""
    produce_events(settings, [*made, *made[::10]])
    return len(made)


def rss(worker: Worker) -> int:
    return int(psutil.Process(worker.process.pid).memory_info().rss)


def stored(settings: Settings, what: str) -> int:
    with closing(clickhouse.open_client(settings.clickhouse)) as client:
        return int(client.query(f"SELECT {what} FROM events FINAL").first_row[0])  # noqa: S608  # of this file


@pytest.mark.timeout(ILL_S + CHECKED_S)
def test_an_ill_clickhouse_costs_lag_and_nothing_else(settings: Settings) -> None:
    topic_admin.create(settings)
    kinds = {"reset", "lost", "slow", *CODES}
    # well in between, or the sink's pauses grow until little befalls it
    illnesses = itertools.cycle([one for kind in sorted(kinds) for one in (kind, "")])
    with SickProxy(f"{settings.clickhouse.host}:{settings.clickhouse.port}") as proxy:
        sick = settings.model_copy(update={"clickhouse": settings.clickhouse.model_copy(update={"port": proxy.port})})
        with running(settings, "workers.personalize") as personalize, running(sick, "workers.sink") as sink:
            sent = send(settings, batch(0))
            until(lambda: stored_events(settings.clickhouse) == (sent, sent), 60, "the first events stored while it is well")
            memory = rss(sink)
            proxy.ail = lambda statement, size: next(illnesses) if "INSERT" in statement else ""
            began, number, held = time.monotonic(), 0, list[int]()
            while time.monotonic() - began < ILL_S or not kinds <= proxy.befell.keys():
                number += 1
                sent += send(settings, batch(number))
                until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 20, "personalize does not notice")
                held.append(rss(sink))
                assert held[-1] - memory < GROWTH_BYTES_MAX
            rate = (sent - A_TIME) / (time.monotonic() - began)
            ill = {name: count for name, count in proxy.befell.items() if name}
            proxy.ail = lambda statement, size: "memory"  # and then nothing goes at all, not even a connection
            for _ in range(BEHIND):
                number += 1
                sent += send(settings, batch(number))
            behind = sent - stored(settings, "count()")
            assert behind >= BEHIND * A_TIME
            tried_again: list[float] = []  # its pauses are as long after hours as after seconds

            def well(statement: str, size: int) -> str:
                tried_again.append(time.monotonic())
                return ""

            proxy.ail = well
            until(lambda: stored(settings, "count()") == sent, 90, "everything stored")
            caught_up = behind / (time.monotonic() - tried_again[0])
            first, last = max(held[: len(held) // 3]), max(held[-(len(held) // 3) :])
            print(f"ill {ill}, {sent} events at {rate:.0f}/s, {behind} behind, caught up at {caught_up:.0f}/s; the sink "
                  f"held {first >> 20} MB in the first third, {last >> 20} MB in the last")  # fmt: skip
            assert caught_up > CATCH_UP_MIN * rate
            assert not FULL or last - first < STEADY_BYTES_MAX
            assert stored(settings, "uniqExact(message_id)") == sent
            assert rss(sink) - memory < GROWTH_BYTES_MAX
            assert_every_user_is_answered(settings)
            until(lambda: sink_lag(settings) == 0, 90, "and what came of it")
            assert personalize.process.poll() is None and sink.process.poll() is None
    assert stored(settings, "count() - uniqExact((message_id, kafka_partition, kafka_offset))") == 0
    assert_the_recount_agrees(settings)
    assert_aggregates_are_true(settings)


def test_rows_too_many_for_the_servers_memory_go_in_halves(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried again as they are, they would hold up the sink for ever."""
    monkeypatch.setattr(clickhouse, "BACKOFF_MAX_S", clickhouse.BACKOFF_FIRST_S)
    topic, now_ms = topics.EVENTS.name(settings.kafka.topic_prefix), time.time_ns() // 1_000_000
    weighty = [made | {"properties": {"note": secrets.token_hex(4_000)}} for made in batch(0)[:16]]
    records = [SimpleNamespace(topic=topic, partition=0, offset=number, timestamp=now_ms, key=b"t/u", headers=(),
                               value=msgspec.json.encode(made)) for number, made in enumerate(weighty)]  # fmt: skip
    with SickProxy(f"{settings.clickhouse.host}:{settings.clickhouse.port}") as proxy:
        sick = settings.model_copy(update={"clickhouse": settings.clickhouse.model_copy(update={"port": proxy.port})})
        writer = Writer(sick.clickhouse, threading.Event())
        writer.prepare()
        sizes: list[int] = []

        def short_of_memory(statement: str, size: int) -> str:
            if "INSERT" not in statement or "events" not in statement:
                return ""
            sizes.append(size)
            return "memory" if size > 0.6 * sizes[0] else ""

        proxy.ail = short_of_memory
        assert writer.write(freeze(records, row_functions(sick))) == []
        writer.close()
        assert proxy.befell["memory"] == HALVED_AFTER_ATTEMPTS and len(sizes) == HALVED_AFTER_ATTEMPTS + 2
    assert stored(settings, "count()") == stored(settings, "uniqExact(message_id)") == 16


@pytest.mark.timeout(180 + 40 * len(STRIKES))
def test_an_insert_in_which_the_engine_is_killed_is_there_once(settings: Settings, tmp_path: Path) -> None:
    """With half of its rows at the server, and with all of them at some step of being written. Each goes into two months, so
    into two parts of the table."""
    topic_admin.create(settings)
    gone = threading.Event()
    house = ClickHouseServer(tmp_path, port=process.free_port())

    def strike() -> None:
        assert house.pid
        os.kill(house.pid, signal.SIGKILL)
        gone.set()

    with house, SickProxy(house.address, strike) as proxy:
        own = settings.model_copy(update={"clickhouse": settings.clickhouse.model_copy(update={"port": house.port})})
        sick = settings.model_copy(update={"clickhouse": settings.clickhouse.model_copy(update={"port": proxy.port})})
        with running(sick, "workers.sink") as sink:
            sent = send(settings, batch(0))
            until(lambda: stored_events(own.clickhouse) == (sent, sent), 120, "the first events stored")
            for number, (table, how) in enumerate(STRIKES, 1):
                proxy.ail = once(table, how)
                made = batch(number)
                sent += send(settings, [*made[::2], *map(month_before, made[1::2])])
                until(gone.is_set, 30, f"{number}: killed in an insert")
                gone.clear()
                house.stop()
                house.start()
                until(lambda rows=sent: stored_events(own.clickhouse) == (rows, rows), 40, f"{number}: each row once")
            until(lambda: sink_lag(settings) == 0, 20, "everything committed")
            assert proxy.befell["torn"] + proxy.befell["struck"] == len(STRIKES) and sink.process.poll() is None
        assert_aggregates_are_true(own)


def once(table: str, how: str) -> Callable[[str, int], str]:
    """What befalls the next insert into a table, and nothing after it."""
    left = [how]
    return lambda statement, size: left.pop() if left and re.search(rf"INSERT INTO \S*\b{table}\b", statement) else ""


def month_before(made: dict[str, Any]) -> dict[str, Any]:
    return made | {"timestamp": (datetime.fromisoformat(made["timestamp"]) - timedelta(days=40)).isoformat()}
