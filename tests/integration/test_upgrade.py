"""Workers of this version on what the version before wrote: its records on the topics, its states and counts, its tables.

Golden files are those records. What stands for a place is put to this broker's: here the events topic has an id and offsets
of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from clickwake import topics as topic_admin
from schemas import topics
from schemas.events import Event
from schemas.topics import DAY_MS, Topic
from stream.adapters.database import clickhouse as adapter
from stream.adapters.kafka import kafka_clients
from stream.adapters.state.state_store import FORMAT_VERSION, Identity, PartitionStore, directory
from stream.core.ranking.counts import ItemCount
from stream.core.user.fold import fold
from stream.partition import META_KEY, Accounts, unpack
from stream.settings import Settings
from stream.sink.tables import TABLES
from tests.golden.samples import VERSION
from tests.support.cluster import (
    Sender,
    accounts,
    lag,
    outcomes,
    produce_events,
    read_all,
    running,
    sink_lag,
    stored_states,
    until,
)
from tests.support.database import VIEWS
from tests.support.fakes import event

FOLDER = Path(__file__).parents[1] / "golden"
BEFORE = max((path.name for path in FOLDER.iterdir() if path.is_dir() and path.name[0].isdigit() and path.name != VERSION),
             key=lambda name: tuple(map(int, name.split("."))))  # fmt: skip
MIGRATIONS_BEFORE = 27  # the last one of that version
USER = b"shop/u1"  # whose state the golden one is
FOLDED = 42  # records of the user's partition that the golden partition record stands for
STORED: dict[str, Topic] = {
    "recommendation.json": topics.RECOMMENDATIONS, "complements.json": topics.COMPLEMENTS,
    "churn-alert.json": topics.CHURN_ALERTS, "decision.json": topics.DECISIONS, "offer-decision.json": topics.DECISIONS,
    "segment-change.json": topics.SEGMENT_CHANGES, "reminder.json": topics.REMINDERS, "delivery.json": topics.DELIVERIES,
    "staff-delivery.json": topics.DELIVERIES, "opinion.json": topics.OPINIONS, "dead-letter.json": topics.DEAD_LETTERS,
    "satisfaction-alert.json": topics.SATISFACTION_ALERTS, "item.json": topics.ITEMS,
}  # fmt: skip


def golden(name: str) -> bytes:
    return (FOLDER / BEFORE / name).read_bytes()


def send(settings: Settings, topic: Topic, *records: tuple[bytes, bytes]) -> None:
    with Sender(settings, topic) as sender:
        sender.send(records)


@pytest.fixture
def before(settings: Settings) -> Iterator[int]:
    """What a personalize worker of the version before left behind when it ended in order; yields the user's partition."""
    topic_admin.create(settings)
    events = topics.EVENTS.name(settings.kafka.topic_prefix)
    send(settings, topics.EVENTS, *[(USER, golden("event.json"))] * FOLDED)
    last = max(read_all(settings, topics.EVENTS), key=lambda record: record.offset)
    assert last.offset == FOLDED - 1
    partition = msgspec.msgpack.decode(golden("partition.msgpack"))
    place, _, _, _, marks, _, (first, ends), ahead, _ = partition
    assert list(place.values()) == [["id", FOLDED - 1]] and list(marks) == list(place)
    assert first == FOLDED - sum(ends.values())
    partition[0] = {events: [kafka_clients.topic_ids(settings, [events])[events], FOLDED - 1]}
    partition[4] = {events: last.timestamp}
    assert USER not in ahead
    partition[7] = {}  # it ended in order: no state stands for more than this record says
    state = topics.STATE.name(settings.kafka.topic_prefix)
    partition[8] = kafka_clients.topic_ids(settings, [state])[state]
    send(settings, topics.STATE, (USER, golden("state.msgpack")))
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    with closing(producer):
        producer.send(topics.STATE.name(settings.kafka.topic_prefix), partition=last.partition, key=META_KEY,
                      value=msgspec.msgpack.encode(partition)).get(30)  # fmt: skip
    send(settings, topics.ITEM_COUNTS, (f"{last.partition}/shop/sku-1".encode(), golden("item-count.msgpack")))
    send(settings, topics.ADS_REFUSALS, (USER, golden("ads-refusal.json")))
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, enable_auto_commit=False,
                             group_id=f"{settings.kafka.topic_prefix}-personalize")  # fmt: skip
    with closing(consumer):
        tp = TopicPartition(events, last.partition)
        consumer.assign([tp])
        consumer.commit({tp: OffsetAndMetadata(FOLDED, "", -1)})
    yield last.partition


@pytest.mark.parametrize("disk", ["kept", "lost"])
def test_personalize_goes_on_from_the_state_that_the_version_before_wrote(
    settings: Settings, before: int, disk: str
) -> None:
    """Nothing of it is in the events that the broker still has: folded from zero it would be another state."""
    if disk == "kept":
        keep_store(settings, before)
    now_ms = time.time_ns() // 1_000_000
    new = [event(user="u1", tenant="shop", item="sku-3", id=f"new{n}", ts_ms=now_ms + n) for n in range(3)]
    assert produce_events(settings, new) == 3
    with running(settings, "workers.personalize") as worker:
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0 and stored_states(settings)[USER].events > 2, 60,
              "the new events folded")  # fmt: skip
        until(lambda: sum(outcomes(worker).values()), 30, "outcomes are counted")
        assert outcomes(worker)["folded"] == 3 and outcomes(worker)["duplicate"] == 0
        log = worker.log()
        worker.stop()
    assert not [word for word in ("made again", "left out", "wiped", "Traceback") if word in log], log[-3_000:]
    opened = [line for line in log.splitlines() if "partition opened" in line and "recovered" in line]
    read = sum(int(re.search(r"recovered\W+(\d+)", line)[1]) for line in opened)  # type: ignore[index]
    assert opened and read == (0 if disk == "kept" else 2), opened
    assert read_all(settings, topics.DEAD_LETTERS) == []
    state, true = stored_states(settings)[USER], unpack(golden("state.msgpack"))
    for one in new:
        fold(true, msgspec.convert(one, Event), 0, 1 << 60)
    assert true.events == 5 and "m0" in {touch.event_id for touch in true.ring}
    for field in ("ring", "items", "seen", "events", "orders", "revenue", "days", "order_days", "first_ts_ms", "last_ts_ms",
                  "activities", "known", "ads"):  # fmt: skip
        assert getattr(state, field) == getattr(true, field), field
    assert state.linked["a1"] == true.linked["a1"] and "u1" in state.linked, "the claim that was still to be sent was"
    assert accounts(settings)[before] == Accounts(40, {"folded": 4, "dropped:erased": 1})
    counts = {record.key: record.value for record in read_all(settings, topics.ITEM_COUNTS)}
    count = msgspec.msgpack.decode(counts[f"{before}/shop/sku-1".encode()], type=ItemCount)
    assert count.offset >= FOLDED and count.successors.keys() == {"sku-2", "sku-3"}, "one from before, one from now"


def keep_store(settings: Settings, partition: int) -> None:
    """The state store as it stood: nothing has to be read from the changelog."""
    assert FORMAT_VERSION == 1, "what the version before wrote would be wiped and read again: say so, and have it tested"
    name = topics.STATE.name(settings.kafka.topic_prefix)
    written = [record for record in read_all(settings, topics.STATE) if record.partition == partition]
    identity = Identity(kafka_clients.topic_ids(settings, [name])[name], DAY_MS, time.time_ns() // 1_000_000)
    store = PartitionStore.open(directory(settings, "personalize", partition), identity)
    store.write({record.key: record.value for record in written}, written[-1].offset, identity.now_ms)
    store.close()


def test_the_sink_migrates_what_the_version_before_stored_and_stores_what_it_wrote(
    settings: Settings, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = adapter.migrations()
    with monkeypatch.context() as patched:
        patched.setattr(adapter, "migrations", lambda: [one for one in every if one.version <= MIGRATIONS_BEFORE])
        adapter.migrate(settings.clickhouse, wait_s=10)
    with closing(adapter.open_client(settings.clickhouse)) as client:
        client.command("INSERT INTO events (tenant, message_id, lane, type, event, timestamp, partition_time, user) "
                       "VALUES ('shop', 'm0', 'live', 'track', 'Product Viewed', '2026-11-24', '2026-11-24', 'u1')")
        for name, topic in STORED.items():
            send(settings, topic, (USER, golden(name)))
        with running(settings, "workers.sink") as sink:
            until(lambda: sink_lag(settings) == 0, 60, "everything stored")
            sink.stop()
        known = client.query("SELECT version FROM schema_migrations ORDER BY version").result_columns[0]
        assert list(known) == [one.version for one in every]
        stored = {table.name: client.query(f"SELECT count() FROM {table.name} FINAL").first_row[0] for table in TABLES}  # noqa: S608
        assert stored == {
            "events": 2, "event_products": 1, "items": 1, "recommendations": 1, "complements": 1, "decisions": 1,
            "offer_decisions": 1, "segment_changes": 1, "churn_alerts": 1, "reminders": 1, "deliveries": 2, "opinions": 1,
            "satisfaction_alerts": 1, "dead_letters": 1,
        }  # fmt: skip
        for view in VIEWS:
            client.query(f"SELECT * FROM {view}")  # noqa: S608
    letters = [msgspec.json.decode(record.value) for record in read_all(settings, topics.DEAD_LETTERS)]
    assert [one["dead_letter_id"] for one in letters] == ["d1"], "the one that the version before wrote"
