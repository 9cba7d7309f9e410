"""Recovery from a real changelog, the reader of everything, and topic ids."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from stream.adapters.kafka import kafka_clients, producing
from stream.adapters.kafka.global_reader import GlobalReader
from stream.adapters.state import changelog
from stream.adapters.state.state_store import NO_OFFSET, Identity, PartitionStore
from stream.core import terms
from stream.settings import Kafka, Settings


@pytest.fixture
def here(kafka: str, topic_prefix: str) -> Settings:
    return Settings(kafka=Kafka(bootstrap_servers=kafka, topic_prefix=topic_prefix))


@pytest.fixture
def admin(kafka: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=kafka)
    yield client
    client.close()


@pytest.fixture
def topic(admin: KafkaAdminClient, topic_prefix: str) -> str:
    name = f"{topic_prefix}.state"
    admin.create_topics([NewTopic(name, 2, 1, topic_configs={"cleanup.policy": "compact"})])
    return name


@pytest.fixture
async def producer(here: Settings) -> AsyncIterator[AIOKafkaProducer]:
    producer = producing.create_producer(here)
    await producer.start()
    yield producer
    await producer.stop()


def open_store(path: Path, topic_id: str = "t-1") -> PartitionStore:
    return PartitionStore.open(path, Identity(topic_id=topic_id, delete_retention_ms=86_400_000,
                                              now_ms=int(time.time() * 1000)))


async def test_recovery_folds_the_changelog_and_goes_on_where_it_was(here: Settings, topic: str, tmp_path: Path,
                                                                     producer: AIOKafkaProducer) -> None:
    store = open_store(tmp_path / "s")
    rows: list[producing.Message] = [(b"u%d" % (n % 100), b"v%d" % n, ()) for n in range(1_000)]
    last = await producing.send_batches(producer, topic, {1: [*rows, (b"u7", None, ()), (b"u8", None, ())]})
    assert last == {1: 1_001}
    seen: list[tuple[int, int]] = []
    done = await changelog.recover(store, topic, 1, here, lambda read, all_: seen.append((read, all_)))
    assert (done.records, done.deleted, done.from_offset, done.end_offset) == (1_002, 2, 0, 1_002)
    assert seen[-1] == (1_002, 1_002)
    assert store.changelog_offset == 1_001
    assert dict(store.iterate()) == {b"u%d" % n: b"v%d" % (900 + n) for n in range(100) if n not in (7, 8)}
    await producing.send_batches(producer, topic, {1: [(b"u7", b"back", ())]})
    again = await changelog.recover(store, topic, 1, here)
    assert (again.records, again.from_offset, store.changelog_offset) == (1, 1_002, 1_002)
    assert store.get_many([b"u7", b"u8"]) == [b"back", None]
    assert (await changelog.recover(store, topic, 1, here)).records == 0
    assert (await changelog.recover(open_store(tmp_path / "empty"), topic, 0, here)).end_offset == 0
    store.close()


async def test_what_a_former_owner_wrote_late_does_not_count(here: Settings, topic: str, tmp_path: Path,
                                                             producer: AIOKafkaProducer) -> None:
    """Wherever reading begins: at the beginning, or in a store that knows the term that held."""
    async def write(key: bytes, value: bytes, term: int = terms.NO_TERM) -> int:
        return (await producing.send_batches(producer, topic, {0: [(key, value, terms.headers(term))]}))[0]

    first = await write(terms.CLAIM_KEY, b"a")
    await write(b"u1", b"of a", first)
    second = await write(terms.CLAIM_KEY, b"b")
    await write(b"u1", b"of b", second)
    known = open_store(tmp_path / "known")
    assert (await changelog.recover(known, topic, 0, here)).stale == set()
    assert known.term == second
    known.close()
    await write(b"u1", b"a woke", first)
    await write(b"u2", b"a woke", first)
    known = open_store(tmp_path / "known")
    for store in (known, open_store(tmp_path / "empty")):
        done = await changelog.recover(store, topic, 0, here)
        assert done.stale == {b"u1", b"u2"}
        assert dict(store.iterate()) == {b"u1": b"of b"} and store.term == second
        store.close()


async def test_what_a_recovery_found_is_known_until_something_is_written(here: Settings, topic: str, tmp_path: Path,
                                                                         producer: AIOKafkaProducer) -> None:
    """A process that ends before it has drawn the consequences leaves them to the next one."""
    async def write(key: bytes, value: bytes, term: int = terms.NO_TERM) -> int:
        return (await producing.send_batches(producer, topic, {0: [(key, value, terms.headers(term))]}))[0]

    first = await write(terms.CLAIM_KEY, b"a")
    store = open_store(tmp_path / "s")
    await changelog.recover(store, topic, 0, here)
    assert store.unsettled is None, "a claim is no record"
    second = await write(terms.CLAIM_KEY, b"b")
    await write(b"u1", b"of b", second)
    await write(b"u1", b"a woke", first)
    await changelog.recover(store, topic, 0, here)
    store.close()
    store = open_store(tmp_path / "s")
    await write(terms.CLAIM_KEY, b"c")
    again = await changelog.recover(store, topic, 0, here)
    assert (again.records, again.stale, store.unsettled) == (0, {b"u1"}, (b"u1",))
    store.write({b"u1": b"of c"}, store.changelog_offset, int(time.time() * 1000))
    assert store.unsettled is None


async def test_what_an_interval_brought_is_known_until_the_interval_is_closed(here: Settings, topic: str, tmp_path: Path,
                                                                              producer: AIOKafkaProducer) -> None:
    """Whoever is gone in the middle of writing an interval leaves states of it, and no record of the partition's."""
    async def write(key: bytes, value: bytes | None, *brought: bytes) -> None:
        carried = [(terms.BROUGHT, one) for one in brought]
        await producing.send_batches(producer, topic, {0: [(key, value, carried)]})

    store = open_store(tmp_path / "s")
    await write(b"u1", b"1", b"closed")
    await write(terms.CLOSING_KEY, b"")
    await write(b"u1", b"2", b"first")
    await write(b"u2", b"2", b"gone")
    await changelog.recover(store, topic, 0, here)
    await write(b"u1", b"3", b"second")
    await write(b"u2", None)
    await write(terms.CLAIM_KEY, b"a")
    await changelog.recover(store, topic, 0, here)
    store.close()
    store = open_store(tmp_path / "s")
    await changelog.recover(store, topic, 0, here)
    assert store.begun == {b"u1": (b"first", b"second")}
    await write(terms.CLOSING_KEY, b"")
    await changelog.recover(store, topic, 0, here)
    assert store.begun == {}
    store.close()
    store.close()


async def test_a_store_ahead_of_its_changelog_begins_again(here: Settings, topic: str, tmp_path: Path,
                                                           producer: AIOKafkaProducer) -> None:
    store = open_store(tmp_path / "s")
    store.write({b"lost": b"by the broker"}, 10, int(time.time() * 1000))
    await producing.send_batches(producer, topic, {0: [(b"a", b"1", ())]})
    await changelog.recover(store, topic, 0, here)
    assert dict(store.iterate()) == {b"a": b"1"}
    assert store.changelog_offset == 0
    assert store.wiped is not None
    store.close()


async def test_a_cancelled_recovery_leaves_a_store_that_knows_how_far_it_got(here: Settings, topic: str, tmp_path: Path,
                                                                             producer: AIOKafkaProducer) -> None:
    store = open_store(tmp_path / "s")
    rows: list[producing.Message] = [(b"u%06d" % n, b"x" * 100, ()) for n in range(100_000)]
    await producing.send_batches(producer, topic, {0: rows})
    begun = asyncio.Event()
    task = asyncio.create_task(changelog.recover(store, topic, 0, here, lambda *_: begun.set()))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    reached = store.changelog_offset
    assert NO_OFFSET < reached < 99_999
    assert sum(1 for _ in store.iterate()) == reached + 1
    done = await changelog.recover(store, topic, 0, here)
    assert done.from_offset == reached + 1
    assert sum(1 for _ in store.iterate()) == 100_000
    store.close()


async def test_a_topic_made_again_has_another_id(here: Settings, topic: str, admin: KafkaAdminClient) -> None:
    first = await kafka_clients.topic_id(here, topic)
    assert first == await kafka_clients.topic_id(here, topic)
    admin.delete_topics([topic])
    async with asyncio.timeout(20):
        while topic in admin.list_topics():  # noqa: ASYNC110  # the broker announces nothing
            await asyncio.sleep(0.05)
        admin.create_topics([NewTopic(topic, 2, 1)])
    assert await kafka_clients.topic_id(here, topic) != first
    with pytest.raises(LookupError, match="create the topics"):
        await kafka_clients.topic_id(here, topic + "-none")


async def test_big_messages_and_headers_arrive_in_order(here: Settings, topic: str, producer: AIOKafkaProducer) -> None:
    rows: list[producing.Message] = [(b"k%d" % n, bytes(120_000), [("n", b"%d" % n)]) for n in range(20)]
    rows.insert(7, (b"huge", bytes(900_000), ()))
    assert await producing.send_batches(producer, topic, {0: rows, 1: []}) == {0: 20}
    got: list[Any] = []
    reader = GlobalReader(here, topic, got.extend)
    reader.start()
    await reader.ready()
    await reader.stop()
    assert [record.key for record in got] == [key for key, _, _ in rows]
    assert got[3].headers == (("n", b"3"),)


async def test_an_unsendable_message_is_an_error_that_names_the_topic(topic: str, producer: AIOKafkaProducer) -> None:
    with pytest.raises(producing.SendFailed, match=rf"1 messages for {topic}\[0\]"):
        await producing.send_batches(producer, topic, {0: [(b"k", bytes(3_000_000), ())]})


async def test_the_reader_of_everything_is_ready_at_the_end_and_follows(here: Settings, topic: str,
                                                                       producer: AIOKafkaProducer) -> None:
    rows: list[producing.Message] = [(b"k%d" % n, b"v", ()) for n in range(5_000)]
    await producing.send_batches(producer, topic, {0: rows, 1: rows})
    got: list[Any] = []
    arrived = asyncio.Event()

    def on_records(records: list[Any]) -> None:
        got.extend(records)
        if len(got) > 10_000:
            arrived.set()

    reader = GlobalReader(here, topic, on_records)
    reader.start()
    await reader.ready()
    assert len(got) == 10_000 == reader.records_read
    await producing.send_batches(producer, topic, {1: [(b"later", None, ())]})
    async with asyncio.timeout(10):
        await arrived.wait()
    assert got[-1].key == b"later"
    more: list[producing.Message] = [(b"m%d" % n, b"v", ()) for n in range(2_000)]
    await producing.send_batches(producer, topic, {0: more, 1: more})
    async with asyncio.timeout(10):
        await reader.caught_up()
    assert len(got) == 14_001
    await reader.stop()


async def test_what_the_callback_raises_reaches_whoever_waits(here: Settings, topic: str,
                                                              producer: AIOKafkaProducer) -> None:
    await producing.send_batches(producer, topic, {0: [(b"k", b"v", ())]})

    def on_records(records: list[Any]) -> None:
        raise ValueError("cannot read this")

    reader = GlobalReader(here, topic, on_records)
    reader.start()
    with pytest.raises(ValueError, match="cannot read this"):
        await reader.ready()
