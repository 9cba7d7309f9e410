"""`python -m workers.catalog`: item text to vectors, once per content in the whole fleet.

1 take the records of one poll; 2 decode, malformed ones become dead letters with the reason; 3 items whose
(space, content) is on the item-vectors topic already reuse that vector, the rest are encoded on a thread of their own;
4 vectors, removals and dead letters are sent and acknowledged by the broker (acks=all); 5 the offsets are committed.
A crash before 5 reads the items again: what was encoded is found by its hash, so nothing is encoded twice.

Encoded is for every space in use: that of the announced release, and that of the registry's newest text encoder, which the
next release will want. Each has a consumer group of its own, so one that comes into use, again after a roll-back too, reads
what it has not read of the catalog, while the other goes on. They share one thread: a new item of the released space waits
for one poll of the other at most. While nothing is released, items are passed on as they are, too, in the space `UNENCODED`:
the read API knows them, their fields and what is blocked from the first minute on, and ranks them by counts.

Metrics are on a loopback port, written with the process id to `<home>/run/catalog-*.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from prometheus_client import Counter, Gauge, Histogram

from schemas import topics
from schemas.catalog import UNENCODED, Item, ItemVector
from schemas.dead_letter import Source
from schemas.release import ModelRelease
from stream.adapters.health.listening import answered
from stream.adapters.health.metrics_port import served
from stream.adapters.kafka import kafka_clients, producing
from stream.adapters.kafka.global_reader import GlobalReader, readable
from stream.adapters.models import model_store, signing
from stream.adapters.models.announcements import Announcements, NotBelieved
from stream.adapters.models.onnx import TextEncoder
from stream.adapters.models.signing import Keys
from stream.core.decode import Reject
from stream.core.ranking.items import content_hash, decode
from stream.endings import on_signal, until
from stream.logs import configure
from stream.outbox import Outbox
from stream.settings import Settings, load
from stream.tracing import port as tracing
from stream.tracing.port import UNTRACED, Tracing

log = structlog.get_logger()
POLL_RECORDS_MAX = 256  # under a second of encoding, so that a restart repeats little
REGISTRY_POLL_S = 2.0  # while there is no text encoder at all
SPACE_POLL_S = 15.0  # a registry does not tell when there is a newer one

ITEMS = Counter("clickwake_catalog_items", "Items by what became of them: encoded, known (their text had a vector), without "
                                           "text (or without an encoder), removed, refused", ["space", "outcome"])
SECONDS = Histogram("clickwake_catalog_poll_seconds", "Steps 2 to 5 of one poll", ["space"],
                    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60))
LAG = Gauge("clickwake_catalog_lag", "Items that are not encoded for a space yet, or in hand", ["space"])
SPACES = Gauge("clickwake_catalog_spaces", "Spaces that are encoded for: 0 while there is no text encoder")
VECTORS = Gauge("clickwake_catalog_vectors", "Texts whose vector is known, over all spaces the fleet has encoded for")
REGISTRY_AWAY = Gauge("clickwake_catalog_registry_away", "1 while the registry does not answer: what is encoded for stays")

_vector = msgspec.msgpack.Decoder(ItemVector)


class Known:
    """What every process reads: the vectors the fleet has encoded, in any space, and which release was announced last."""

    def __init__(self, keys: Keys = ()) -> None:
        self.vectors: dict[str, bytes] = {}  # content hash → vector bytes
        self.releases = Announcements(keys)
        self.announced = asyncio.Event()
        self.none_said = False  # that there is no text encoder at all

    def on_vectors(self, records: list[Any]) -> None:
        for vector in readable((one for one in records if one.value is not None), lambda one: _vector.decode(one.value)):
            self.vectors[vector.content_hash] = vector.vector

    def on_releases(self, records: list[Any]) -> None:
        for record in records:
            try:
                if self.releases.note(record):
                    self.announced.set()
            except NotBelieved as error:  # workers refuse it too and keep what they have
                log.warning("announcement left out", model_version=error.version, why=str(error))


class Catalog:
    """One space in one process; several processes share the partitions of the items topic."""

    def __init__(
        self, settings: Settings, space: str, encoder: TextEncoder | None, producer: AIOKafkaProducer,
        known: dict[str, bytes], thread: ThreadPoolExecutor, traces: Tracing = UNTRACED,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.space = space
        self.encoder = encoder  # None in the space UNENCODED
        self.producer = producer
        self.known = known  # content hash → vector bytes
        self.thread = thread
        self.tracing = traces
        self.encoded = 0

    async def handle(self, records: Sequence[Any]) -> None:
        """Steps 2 to 4. Records keep their order: an item removed in the poll that brought it stays removed."""
        outbox = Outbox()
        taken: list[tuple[bytes, Item | None]] = []
        for record in records:
            decoded = decode(record.key, record.value)
            if isinstance(decoded, Reject):
                where = Source(topic=record.topic, partition=record.partition, offset=record.offset)
                outbox.dead_letter(decoded, record.value or b"", record.key, where, record.timestamp)
                ITEMS.labels(self.space, "refused").inc()
            else:
                taken.append((record.key, decoded))
        items = [item for _, item in taken if item is not None]
        encoded = await self._encode_unknown(items)
        for key, item in taken:
            for space in {self.space, UNENCODED} if item is None else {self.space}:
                outbox.add(topics.ITEM_VECTORS, f"{space}/".encode() + key, None if item is None else self._vector(item))
        await self._send(outbox)
        with_text = sum(bool(self._text(item)) for item in items)
        became = {"encoded": encoded, "known": with_text - encoded, "without text": len(items) - with_text,
                  "removed": len(taken) - len(items)}  # fmt: skip
        for outcome, count in became.items():
            ITEMS.labels(self.space, outcome).inc(count)
        VECTORS.set(len(self.known))

    def _text(self, item: Item) -> str:
        return item.text() if self.encoder else ""

    def _vector(self, item: Item) -> bytes:
        text = self._text(item)
        digest = content_hash(self.space, text)
        vector = self.known[digest] if text else b""
        return msgspec.msgpack.encode(ItemVector(space=self.space, content_hash=digest, vector=vector, item=item))

    async def _encode_unknown(self, items: list[Item]) -> int:
        """How many texts were encoded."""
        texts = {content_hash(self.space, text): text for item in items if (text := self._text(item))}
        unknown = {digest: text for digest, text in texts.items() if digest not in self.known}
        if self.encoder is None or not unknown:
            return 0
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(self.thread, self.encoder.encode, list(unknown.values()))
        for digest, vector in zip(unknown, vectors, strict=True):
            self.known[digest] = np.ascontiguousarray(vector, dtype="<f4").tobytes()
        self.encoded += len(unknown)
        return len(unknown)

    async def _send(self, outbox: Outbox) -> None:
        prefix = self.settings.kafka.topic_prefix
        for topic, records in outbox.records.values():
            partitions = self.settings.kafka.partitions if topic.by_user else topic.partitions
            await producing.send_keyed(self.producer, topic.name(prefix), records, partitions, tracing=self.tracing)


def spaces_in_use(settings: Settings, release: ModelRelease | None) -> list[str]:
    """The released bundle's space, or `UNENCODED` without one, then the registry's newest if it is another. A release that
    workers would refuse is left out with the reason. Raises `RegistryAway`."""
    keys, found = signing.trusted(settings.models), []
    if release is not None:
        try:
            found.append(model_store.announced_manifest(settings.registry, release, keys).text_space)
        except model_store.RegistryAway:
            raise
        except model_store.BundleRefused as error:
            log.warning("release left out", model_version=release.model_version, why=str(error))
    found = found or [UNENCODED]
    newest = model_store.newest_text_space(settings.registry, keys)
    return found if newest is None or newest in found else [*found, newest]


async def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT: at once while something is still waited for, else after the batch in hand if it can be."""
    stop, ready = asyncio.Event(), asyncio.Event()
    on_signal(stop)
    await until(stop, partial(serve, settings, stop, ready), ready)


async def serve(settings: Settings, stop: asyncio.Event, ready: asyncio.Event) -> None:
    """Encode for the spaces in use, until asked to stop."""
    await kafka_clients.wait_for_kafka(settings)
    known, prefix = Known(signing.trusted(settings.models)), settings.kafka.topic_prefix
    traces = tracing.start(settings, "catalog")
    async with contextlib.AsyncExitStack() as stack:
        producer = producing.create_producer(settings)
        stack.push_async_callback(kafka_clients.stopped, producer)
        await producer.start()
        thread = ThreadPoolExecutor(1, thread_name_prefix="text-encoder")
        stack.callback(thread.shutdown)
        readers = [GlobalReader(settings, topic.name(prefix), on_records) for topic, on_records in (
            (topics.ITEM_VECTORS, known.on_vectors), (topics.MODELS, known.on_releases))]  # fmt: skip
        for reader in readers:
            reader.start()
            stack.push_async_callback(reader.stop)
        await asyncio.gather(*(reader.ready() for reader in readers))
        async with asyncio.TaskGroup() as group:  # what fails in one ends the process: the supervisor starts it again
            following = [group.create_task(reader.wait_failed()) for reader in readers]
            running: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}
            while not stop.is_set():
                said = await _spaces(settings, known)
                wanted = list(running) if said is None else said
                for space in running.keys() - set(wanted):
                    log.info("space no longer in use", space=space)
                    running.pop(space)[0].set()
                for space in wanted:
                    if space in running:
                        continue
                    encoder = None if space == UNENCODED else await _encoder(settings, space)
                    if encoder is not None or space == UNENCODED:
                        over = asyncio.Event()
                        catalog = Catalog(settings, space, encoder, producer, known.vectors, thread, traces)
                        running[space] = (over, group.create_task(_encode(catalog, over, ready)))
                encoded_for = len(running.keys() - {UNENCODED})
                SPACES.set(encoded_for)
                await _first_of(stop, known.announced, timeout_s=SPACE_POLL_S if encoded_for else REGISTRY_POLL_S)
                known.announced.clear()
            for over, _ in running.values():
                over.set()
            for task in following:
                task.cancel()


async def _spaces(settings: Settings, known: Known) -> list[str] | None:
    """None while the registry does not say: what is encoded for stays."""
    try:
        found = await asyncio.to_thread(spaces_in_use, settings, known.releases.newest)
    except model_store.RegistryAway as error:
        log.warning("the registry is away", registry=settings.registry, why=str(error), again_in_s=SPACE_POLL_S)
        REGISTRY_AWAY.set(1)
        return None
    REGISTRY_AWAY.set(0)
    if found == [UNENCODED] and not known.none_said:
        known.none_said = True
        log.warning("no text encoder yet: items go on without vectors", registry=settings.registry,
                    do="python -m training.text.text_encoder makes it")  # fmt: skip
    return found


async def _encoder(settings: Settings, space: str) -> TextEncoder | None:
    """None, with the reason logged, for one that cannot be used: the other space goes on."""
    try:
        found = await asyncio.to_thread(
            model_store.load_text_encoder, settings.registry, space, keys=signing.trusted(settings.models)
        )
    except model_store.BundleRefused as error:
        log.error("text encoder cannot be used", space=space, why=str(error), again_in_s=SPACE_POLL_S)
        return None
    return None if found is None else found[1]


async def _encode(catalog: Catalog, over: asyncio.Event, ready: asyncio.Event) -> None:
    """Steps 1 to 5 for one space, until it is no longer in use; then after the batch in hand."""
    kafka = catalog.settings.kafka
    group = f"{kafka.topic_prefix}-catalog-{catalog.space}"
    consumer = AIOKafkaConsumer(
        topics.ITEMS.name(kafka.topic_prefix), **kafka_clients.aiokafka_arguments(catalog.settings),
        group_id=group, enable_auto_commit=False, auto_offset_reset="earliest",
        max_poll_records=POLL_RECORDS_MAX, session_timeout_ms=kafka.session_timeout_ms,
        heartbeat_interval_ms=kafka.session_timeout_ms // 10,
    )  # fmt: skip
    try:
        await consumer.start()
        log.info("catalog ready", space=catalog.space, known=len(catalog.known))
        ready.set()
        async with answered(catalog.settings, consumer, group):
            while not over.is_set():
                fetched = await consumer.getmany(timeout_ms=500)
                records = [record for some in fetched.values() for record in some]
                LAG.labels(catalog.space).set(len(records) + (await kafka_clients.unfetched(consumer)).total())
                if records:
                    started = time.perf_counter()
                    with catalog.tracing.batch(group, records):
                        await catalog.handle(records)
                        await consumer.commit()
                    SECONDS.labels(catalog.space).observe(time.perf_counter() - started)
                    log.info("items", space=catalog.space, records=len(records), encoded=catalog.encoded,
                             s=round(time.perf_counter() - started, 2))  # fmt: skip
    finally:
        await kafka_clients.stopped(consumer)
        LAG.remove(catalog.space)  # nobody waits for it any more


async def _first_of(*events: asyncio.Event, timeout_s: float) -> None:
    """Return when one of the events is set, or the time is over."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


if __name__ == "__main__":
    settings = load()
    configure(settings)
    with served(settings, f"catalog-{os.getpid()}", settings.catalog.metrics_port) as run_file:
        run_file.say()
        asyncio.run(run(settings))
