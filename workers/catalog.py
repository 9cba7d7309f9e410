"""`python -m workers.catalog`: item text to vectors, once per content in the whole fleet.

1 take the records of one poll; 2 decode, malformed ones become dead letters with the reason; 3 items whose
(space, content) is on the item-vectors topic already reuse that vector, the rest are encoded on a thread of their own;
4 vectors, removals and dead letters are sent and acknowledged by the broker (acks=all); 5 the offsets are committed.
A crash before 5 reads the items again: what was encoded is found by its hash, so nothing is encoded twice.

Each space has a consumer group of its own, so a text encoder that is new in the registry reads the whole catalog from the
beginning, while the vectors of the space before it stay where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from schemas import topics
from schemas.catalog import Item, ItemVector
from schemas.dead_letter import Message, Source
from stream.adapters import kafka_clients, producing, signing
from stream.adapters.global_reader import GlobalReader
from stream.adapters.logs import configure
from stream.adapters.model_store import load_text_encoder, newest_text_space
from stream.adapters.onnx import TextEncoder
from stream.core.decode import Reject, message_of
from stream.outbox import Outbox, OutRecord
from stream.settings import Settings, load

log = structlog.get_logger()
POLL_RECORDS_MAX = 256  # under a second of encoding, so that a restart repeats little
REGISTRY_POLL_S = 2.0  # while there is no text encoder at all
SPACE_POLL_S = 15.0  # a registry does not tell when there is a newer one

_item = msgspec.json.Decoder(Item)
_vector = msgspec.msgpack.Decoder(ItemVector)


def content_hash(space: str, text: str) -> str:
    """Equal hashes mean equal vectors."""
    return hashlib.blake2b(f"{space}\x1f{text}".encode(), digest_size=16).hexdigest()


def decode(key: bytes | None, value: bytes | None) -> Item | Reject | None:
    """The item of a record, None for a removal, or why it is neither. Total: any bytes give a value.

    The key must name the same item as the value. Every worker splits keys at "/" to find the tenant, so a key that
    cannot be split would end all of them, and one that splits elsewhere would put an item into another tenant's shop.

    >>> decode(b"shop/mug", None) is None, decode(b"mug", None).messages[0].keyword
    (True, 'pattern')
    """
    try:
        tenant, _, item_id = (key or b"").decode().partition("/")
    except UnicodeDecodeError as error:
        return _reject("key", "encoding", f"the key is not UTF-8 at byte {error.start}")
    if not tenant or tenant.startswith("#") or not item_id:
        return _reject("key", "pattern", f"the key {key!r} is not tenant/item_id, or its tenant starts with #")
    if value is None:
        return None
    try:
        item = _item.decode(value)
    except msgspec.ValidationError as error:
        return Reject("undecodable", (message_of(error),))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Reject("undecodable", (Message(path="", keyword="json", message=str(error)),))
    if (item.tenant, item.item_id) != (tenant, item_id):
        return _reject("key", "const", f"the key {key!r} names another item than the value, {item.tenant}/{item.item_id}")
    return item


def _reject(path: str, keyword: str, text: str) -> Reject:
    return Reject("unprocessable", (Message(path=path, keyword=keyword, message=text),))


class Catalog:
    """One catalog process; several share the partitions of the items topic."""

    def __init__(self, settings: Settings, space: str, encoder: TextEncoder, producer: AIOKafkaProducer) -> None:
        self.settings = settings
        self.space = space
        self.encoder = encoder
        self.producer = producer
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="text-encoder")
        self.known: dict[str, bytes] = {}  # content hash → vector bytes
        self.encoded = 0

    def on_vectors(self, records: list[Any]) -> None:
        """Learn what the fleet has encoded."""
        for record in records:
            if record.value is not None:
                vector = _vector.decode(record.value)
                self.known[vector.content_hash] = vector.vector

    async def handle(self, records: Sequence[Any]) -> None:
        """Steps 2 to 4. Records keep their order: an item removed in the poll that brought it stays removed."""
        outbox = Outbox()
        taken: list[tuple[bytes, Item | None]] = []
        for record in records:
            decoded = decode(record.key, record.value)
            if isinstance(decoded, Reject):
                where = Source(topic=record.topic, partition=record.partition, offset=record.offset)
                outbox.dead_letter(decoded, record.value or b"", record.key, where, record.timestamp)
            else:
                taken.append((f"{self.space}/".encode() + record.key, decoded))
        await self._encode_unknown([item for _, item in taken if item is not None])
        for key, item in taken:
            outbox.add(topics.ITEM_VECTORS, key, None if item is None else self._vector(item))
        await self._send(outbox)

    def _vector(self, item: Item) -> bytes:
        text = item.text()
        digest = content_hash(self.space, text)
        vector = self.known[digest] if text else b""
        return msgspec.msgpack.encode(ItemVector(space=self.space, content_hash=digest, vector=vector, item=item))

    async def _encode_unknown(self, items: list[Item]) -> None:
        texts = {content_hash(self.space, text): text for item in items if (text := item.text())}
        unknown = {digest: text for digest, text in texts.items() if digest not in self.known}
        if not unknown:
            return
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(self.thread, self.encoder.encode, list(unknown.values()))
        for digest, vector in zip(unknown, vectors, strict=True):
            self.known[digest] = np.ascontiguousarray(vector, dtype="<f4").tobytes()
        self.encoded += len(unknown)

    async def _send(self, outbox: Outbox) -> None:
        prefix = self.settings.kafka.topic_prefix
        for topic, records in outbox.records.values():
            partitions = self.settings.kafka.partitions if topic.by_user else topic.partitions
            split: dict[int, list[OutRecord]] = {}
            for record in records:
                split.setdefault(kafka_clients.partition_of(record.key, partitions), []).append(record)
            await producing.send_batches(self.producer, topic.name(prefix), split)


async def wait_for_text_encoder(settings: Settings, stop: asyncio.Event) -> tuple[str, TextEncoder] | None:
    """The registry's text encoder, as soon as there is one; None when asked to stop before."""
    said, keys = False, signing.trusted(settings.models)
    while not stop.is_set():
        found = load_text_encoder(settings.registry, keys=keys)
        if found is not None:
            return found
        if not said:
            said = True
            log.warning("no text encoder yet", registry=settings.registry, do="python -m training.text_encoder makes it")
        try:
            await asyncio.wait_for(stop.wait(), REGISTRY_POLL_S)
        except TimeoutError:
            continue
    return None


async def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT: at once while something is still waited for, else after the batch in hand."""
    stop = asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, stop.set)
    while not stop.is_set():
        ready = asyncio.Event()
        serving = asyncio.create_task(serve(settings, stop, ready))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ready.is_set() and stop.is_set():
            serving.cancel()
        try:
            await serving
        except asyncio.CancelledError:
            if not stop.is_set():
                raise


async def serve(settings: Settings, stop: asyncio.Event, ready: asyncio.Event) -> None:
    """Encode into the registry's newest space until asked to stop, or until there is a newer one."""
    await kafka_clients.wait_for_kafka(settings)
    found = await wait_for_text_encoder(settings, stop)
    if found is None:
        return
    space, encoder = found
    prefix = settings.kafka.topic_prefix
    async with contextlib.AsyncExitStack() as stack:
        producer = producing.create_producer(settings)
        stack.push_async_callback(producer.stop)
        await producer.start()
        catalog = Catalog(settings, space, encoder, producer)
        stack.callback(catalog.thread.shutdown)
        reader = GlobalReader(settings, topics.ITEM_VECTORS.name(prefix), catalog.on_vectors)
        reader.start()
        stack.push_async_callback(reader.stop)
        await reader.ready()
        consumer = AIOKafkaConsumer(
            topics.ITEMS.name(prefix), **kafka_clients.aiokafka_arguments(settings), group_id=f"{prefix}-catalog-{space}",
            enable_auto_commit=False, auto_offset_reset="earliest", max_poll_records=POLL_RECORDS_MAX,
            session_timeout_ms=30_000, heartbeat_interval_ms=3_000,
        )  # fmt: skip
        stack.push_async_callback(consumer.stop)
        await consumer.start()
        log.info("catalog ready", space=space, known=len(catalog.known))
        ready.set()
        reading = asyncio.create_task(reader.wait_failed())
        stack.callback(reading.cancel)
        await _consume(catalog, consumer, reading, stop)


async def _consume(catalog: Catalog, consumer: Any, reading: asyncio.Task[None], stop: asyncio.Event) -> None:
    asked, keys = time.monotonic(), signing.trusted(catalog.settings.models)
    while not stop.is_set():
        if reading.done():
            await reading  # raises: without what the fleet has encoded, this process would encode it again
        if time.monotonic() - asked >= SPACE_POLL_S:
            asked = time.monotonic()
            newest = await asyncio.to_thread(newest_text_space, catalog.settings.registry, keys)
            if newest not in (None, catalog.space):
                log.info("a newer text encoder", space=newest, before=catalog.space)
                return
        fetched = await consumer.getmany(timeout_ms=500)
        records = [record for some in fetched.values() for record in some]
        if records:
            started = time.perf_counter()
            await catalog.handle(records)
            await consumer.commit()
            log.info("items", records=len(records), encoded=catalog.encoded, s=round(time.perf_counter() - started, 2))


if __name__ == "__main__":
    settings = load()
    configure(settings)
    asyncio.run(run(settings))
