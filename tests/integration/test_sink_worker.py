"""The sink between a real broker and a real ClickHouse engine: nothing lost, nothing counted twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clickhouse_connect.driver.client import Client
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from clickwake.local import process
from clickwake.local.clickhouse.launch import ClickHouseServer
from clickwake.topics import create
from schemas import topics
from schemas.dead_letter import DeadLetter
from stream.adapters.database import clickhouse as adapter
from stream.settings import ClickHouse, Settings
from stream.sink import metrics
from stream.sink.consumer import Sink, group
from tests.support.cluster import Sender, produce_events, read_all, start_worker, until
from tests.support.fakes import event

EVENTS = 300


def shop_event(n: int, **changes: Any) -> dict[str, Any]:
    return {"messageId": f"m-{n}", "type": "track", "event": "Product Viewed", "userId": f"u{n % 17}", "tenant": "shop",
            "timestamp": f"2026-01-{n % 28 + 1:02}T10:00:00Z", "properties": {"product_id": f"p{n % 5}"}, **changes}


def send(settings: Settings, topic: topics.Topic, values: list[dict[str, Any] | bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    for value in values:
        raw = value if isinstance(value, bytes) else msgspec.json.encode(value)
        producer.send(topic.name(settings.kafka.topic_prefix), key=b"shop/u1", value=raw)
    producer.flush(30)
    producer.close()


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Sink]:
    """A sink in this process; it must end without an error."""
    sink = Sink(settings)
    task = asyncio.create_task(sink.run())
    try:
        yield sink
    finally:
        sink.stop()
        await asyncio.wait_for(task, 20)


async def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 30) -> Any:
    return await asyncio.to_thread(until, condition, timeout_s, what)


class Reader:
    """Counts in the sink's database, from a connection of its own."""

    def __init__(self, settings: ClickHouse) -> None:
        self.client: Client = adapter.connect(settings.model_copy(update={"database": "default"}), wait_s=10)
        self.database = settings.database

    def count(self, table: str = "events") -> int:
        """Distinct rows; 0 while the table does not exist."""
        exists = self.client.query("SELECT count() FROM system.tables WHERE database = {d:String} AND name = {t:String}",
                                   parameters={"d": self.database, "t": table}).first_row[0]
        if not exists:
            return 0
        return int(self.client.query(f"SELECT count() FROM {self.database}.{table} FINAL").first_row[0])  # noqa: S608

    def rows(self, columns: str, table: str, order: str) -> list[tuple[Any, ...]]:
        sql = f"SELECT {columns} FROM {self.database}.{table} ORDER BY {order}"  # noqa: S608
        return [tuple(row) for row in self.client.query(sql).result_rows]


@pytest.fixture
def reader(settings: Settings) -> Iterator[Reader]:
    create(settings)
    reader = Reader(settings.clickhouse)
    yield reader
    reader.client.command(f"DROP DATABASE IF EXISTS {reader.database}")
    reader.client.close()


def consumer(settings: Settings) -> Any:
    return KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, group_id=group(settings),
                         enable_auto_commit=False)  # fmt: skip


def partitions(settings: Settings) -> list[TopicPartition]:
    return [TopicPartition(topics.EVENTS.name(settings.kafka.topic_prefix), n) for n in range(settings.kafka.partitions)]


def committed(settings: Settings) -> int:
    with contextlib.closing(consumer(settings)) as one:
        return sum(one.committed(tp) or 0 for tp in partitions(settings))


def told_lag(settings: Settings) -> float:
    """Events that wait, as the metric says."""
    name = topics.EVENTS.name(settings.kafka.topic_prefix)
    return sum(one.value for metric in metrics.LAG.collect() for one in metric.samples if one.labels["topic"] == name)


def rewind(settings: Settings) -> None:
    """What a crash before the commit leaves: rows in ClickHouse, an older offset in Kafka."""
    with contextlib.closing(consumer(settings)) as one:
        one.assign(partitions(settings))
        one.commit({tp: OffsetAndMetadata(0, "", -1) for tp in partitions(settings)})


async def test_a_sink_restarted_from_older_offsets_changes_nothing(settings: Settings, reader: Reader) -> None:
    produce_events(settings, [shop_event(n) for n in range(EVENTS)] + [shop_event(n) for n in range(50)])
    async with running(settings):
        await eventually(lambda: reader.count() == EVENTS, "all events are stored")
        await eventually(lambda: committed(settings) == EVENTS + 50, "all offsets are committed")
    before = reader.rows("*", "items_by_hour", "hour, product_id")
    assert sum(row[3] for row in before) == EVENTS, "a message sent twice counts once"
    rewind(settings)
    small = settings.model_copy(update={"sink": settings.sink.model_copy(update={"batch_rows_max": 23})})
    async with running(small):  # other batches, so no deduplication token is known
        await eventually(lambda: committed(settings) == EVENTS + 50, "all offsets are committed again")
    assert reader.count() == EVENTS
    assert reader.rows("*", "items_by_hour", "hour, product_id") == before


async def test_a_clean_stop_in_the_middle_of_the_flow_has_nothing_read_again(settings: Settings, reader: Reader) -> None:
    over = threading.Event()
    sent: list[int] = []

    def flow() -> None:
        with Sender(settings) as sender:
            while not over.wait(0.02):
                sent.append(sender.send([event(user=f"u{n}", id=f"m{len(sent)}-{n}") for n in range(20)]))

    def taken() -> float:
        labels = {"topic": topics.EVENTS.name(settings.kafka.topic_prefix), "outcome": "rows"}
        return REGISTRY.get_sample_value("clickwake_sink_records_total", labels) or 0.0

    client = threading.Thread(target=flow)
    client.start()
    try:
        for run in range(3):
            before = taken()
            async with running(settings):
                await eventually(lambda before=before: taken() > before + 200, "rows are stored")
                if run == 2:
                    over.set()
                    client.join()
                    await eventually(lambda: reader.count() == sum(sent), "everything stored")
    finally:
        over.set()
        client.join()
    assert taken() == sum(sent) == committed(settings)


async def test_clickhouse_away_at_the_start_and_in_the_middle(
    settings: Settings, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.sink.consumer.LAG_S", 0.1)
    server = ClickHouseServer(tmp_path, port=process.free_port())
    settings = settings.model_copy(update={"clickhouse": settings.clickhouse.model_copy(update={"port": server.port})})
    produce_events(settings, [shop_event(n) for n in range(EVENTS)])
    async with running(settings):
        assert committed(settings) == 0
        await asyncio.to_thread(server.start)
        own = Reader(settings.clickhouse)
        await eventually(lambda: own.count() == EVENTS, "stored once ClickHouse is there")
        await eventually(lambda: committed(settings) == EVENTS, "committed")
        own.client.close()
        await asyncio.to_thread(server.stop)
        produce_events(settings, [shop_event(n) for n in range(EVENTS, 2 * EVENTS)])
        await eventually(lambda: metrics.BLOCKED._value.get() == 1, "the sink notices")
        assert committed(settings) == EVENTS, "nothing is committed that is not stored"
        await eventually(lambda: told_lag(settings) == EVENTS, "how many wait is said while they do")
        await asyncio.to_thread(server.start)
        own = Reader(settings.clickhouse)
        await eventually(lambda: own.count() == 2 * EVENTS, "stored once it is back")
        await eventually(lambda: committed(settings) == 2 * EVENTS, "committed")
        await eventually(lambda: told_lag(settings) == 0, "nothing waits")
        assert metrics.BLOCKED._value.get() == 0
    assert own.rows("count(), uniqExact(message_id)", "events", "1") == [(2 * EVENTS, 2 * EVENTS)]
    own.client.close()
    server.stop()


async def test_stopping_while_clickhouse_is_away_loses_nothing(settings: Settings, reader: Reader) -> None:
    produce_events(settings, [shop_event(n) for n in range(10)])
    away = settings.model_copy(update={"clickhouse": settings.clickhouse.model_copy(update={"port": process.free_port()})})
    with capture_logs() as logs:
        async with running(away):
            await eventually(lambda: [line for line in logs if line["event"] == "clickhouse.away"], "it is in its backoff")
    assert f"127.0.0.1:{away.clickhouse.port}" in logs[0]["error"]
    assert committed(settings) == 0
    async with running(settings):
        await eventually(lambda: reader.count() == 10, "stored by the next one")


async def test_a_wiped_clickhouse_is_migrated_again(settings: Settings, reader: Reader) -> None:
    async with running(settings):
        produce_events(settings, [shop_event(0)])
        await eventually(lambda: reader.count() == 1, "stored")
        reader.client.command(f"DROP DATABASE {reader.database}")
        produce_events(settings, [shop_event(1)])
        await eventually(lambda: reader.count() == 1, "the tables are there again")


def alert(ident: str, horizon_days: int) -> dict[str, Any]:
    at = "2026-01-05T00:00:00Z"
    return {"alert_id": ident, "tenant": "shop", "user_id": "u1", "state": "raised", "probability": 0.9,
            "interval": [0.8, 0.95], "horizon_days": horizon_days, "reasons": [], "last_event_ts": at, "as_of_ts": at,
            "model_version": "v"}


async def test_poison_rows_become_dead_letters_and_the_rest_is_stored(settings: Settings, reader: Reader) -> None:
    """Numbers the client cannot write, a row the server refuses, and bytes that are not an alert."""
    adapter.migrate(settings.clickhouse)
    reader.client.command(f"ALTER TABLE {reader.database}.events ADD CONSTRAINT test_poison CHECK message_id != 'm-66'")
    poison = [msgspec.json.encode(alert("too-long", 70_000)), msgspec.json.encode(alert("far-too-long", 10**30)), b"{"]
    alerts: list[dict[str, Any] | bytes] = [alert(f"a{n}", 14) for n in range(40)]
    send(settings, topics.CHURN_ALERTS, [*alerts[:20], *poison, *alerts[20:]])
    produce_events(settings, [*[shop_event(n) for n in range(100)], (b"shop/u1", b"not an event")])
    async with running(settings):
        await eventually(lambda: reader.count("churn_alerts") == 40, "the good alerts are stored")
        await eventually(lambda: reader.count() == 99, "the good events are stored")
        await eventually(lambda: reader.count("dead_letters") == 4, "the letters come back as rows")
        await eventually(lambda: committed(settings) == 101, "and the batch is committed")
    letters = [msgspec.json.decode(record.value, type=DeadLetter) for record in read_all(settings, topics.DEAD_LETTERS)]
    assert {letter.kind for letter in letters} == {"sink_rejected"}
    by_payload = {letter.payload: letter for letter in letters}
    assert set(by_payload) == {*poison, msgspec.json.encode(shop_event(66))}
    assert "horizon_days" in by_payload[poison[0]].failure.messages[0].message
    refused = by_payload[msgspec.json.encode(shop_event(66))]
    assert "VIOLATED_CONSTRAINT" in refused.failure.messages[0].message
    assert (refused.tenant, refused.source.topic) == ("shop", topics.EVENTS.name(settings.kafka.topic_prefix))
    stored = reader.rows("kind, source_topic, payload", "dead_letters FINAL", "payload")
    assert [row[2].encode() for row in stored] == sorted(by_payload)


async def test_two_sinks_share_the_partitions(settings: Settings, reader: Reader) -> None:
    """A second one joins while the first is at work, then the first leaves."""
    async with running(settings):
        async with running(settings):
            for start in range(0, 400, 100):
                produce_events(settings, [shop_event(n) for n in range(start, start + 100)])
            await eventually(lambda: reader.count() == 400, "stored by the two")
        produce_events(settings, [shop_event(n) for n in range(400, 500)])
        await eventually(lambda: reader.count() == 500, "stored by the one that is left")
        await eventually(lambda: committed(settings) == 500, "committed")


@pytest.mark.alone  # an event is in ClickHouse within a second
def test_the_process_reports_stores_soon_and_ends_on_sigterm(settings: Settings, reader: Reader) -> None:
    worker = start_worker(settings, "workers.sink")
    try:
        run_file = settings.home / "run" / "sink.json"
        produce_events(settings, [shop_event(0)])
        until(lambda: reader.count() == 1, 30, "the first event is stored")
        delays_s = []
        for n in range(1, 6):
            produce_events(settings, [shop_event(n)])
            acknowledged = time.monotonic()
            until(lambda n=n: reader.count() == n + 1, 10, "the event is stored")
            delays_s.append(time.monotonic() - acknowledged)
        assert sorted(delays_s)[2] < 1.0, delays_s
        running_now = json.loads(run_file.read_text())
        assert running_now["pid"] == worker.pid
        with urllib.request.urlopen(f"http://127.0.0.1:{running_now['metrics_port']}/metrics") as answer:
            text = answer.read().decode()
        assert 'clickwake_sink_rows_total{table="events"} 6.0' in text
        started = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
        assert time.monotonic() - started < 20
        assert not run_file.exists()
        assert committed(settings) == 6
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
