"""`python -m workers.catalog`: item text to vectors, once per content in the whole fleet.

1 take the records of one poll; 2 decode, malformed ones become dead letters with the reason; 3 items whose
(space, content) is on the item-vectors topic already reuse that vector, the rest are encoded on a thread of their own;
4 vectors, removals and dead letters are sent and acknowledged by the broker (acks=all); 5 the offsets are committed.
A crash before 5 reads the items again: what was encoded is found by its hash, so nothing is encoded twice.
"""

from __future__ import annotations

import asyncio
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
from schemas.dead_letter import Source
from stream.adapters import kafka_clients, producing
from stream.adapters.global_reader import GlobalReader
from stream.adapters.logs import configure
from stream.adapters.model_store import load_text_encoder
from stream.adapters.onnx import TextEncoder
from stream.core.decode import Reject, message_of
from stream.outbox import Outbox, OutRecord
from stream.settings import Settings, load

log = structlog.get_logger()
POLL_RECORDS_MAX = 256  # under a second of encoding, so that a restart repeats little
REGISTRY_POLL_S = 2.0

_item = msgspec.json.Decoder(Item)
_vector = msgspec.msgpack.Decoder(ItemVector)


def content_hash(space: str, text: str) -> str:
    """Equal hashes mean equal vectors."""
    return hashlib.blake2b(f"{space}\x1f{text}".encode(), digest_size=16).hexdigest()


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
            if record.value is not None and not record.key.split(b"/", 2)[1].startswith(b"#"):
                vector = _vector.decode(record.value)
                self.known[vector.content_hash] = vector.vector

    async def handle(self, records: Sequence[Any]) -> None:
        """Steps 2 to 4."""
        outbox = Outbox()
        items: list[Item] = []
        for record in records:
            if record.value is None:
                outbox.add(topics.ITEM_VECTORS, f"{self.space}/".encode() + record.key, None)
                continue
            try:
                items.append(_item.decode(record.value))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                why = message_of(error)
                where = Source(topic=record.topic, partition=record.partition, offset=record.offset)
                outbox.dead_letter(Reject("undecodable", (why,)), record.value, record.key, where, record.timestamp)
        await self._encode_unknown(items)
        for item in items:
            text = item.text()
            digest = content_hash(self.space, text)
            vector = ItemVector(space=self.space, content_hash=digest, vector=self.known[digest] if text else b"", item=item)
            key = f"{self.space}/{item.tenant}/{item.item_id}".encode()
            outbox.add(topics.ITEM_VECTORS, key, msgspec.msgpack.encode(vector))
        await self._send(outbox)

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
    said = False
    while not stop.is_set():
        found = load_text_encoder(settings.registry)
        if found is not None:
            return found
        if not said:
            said = True
            log.warning("no text encoder yet", registry=settings.registry, do="clickwake train --text-only makes it")
        try:
            await asyncio.wait_for(stop.wait(), REGISTRY_POLL_S)
        except TimeoutError:
            continue
    return None


async def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, stop.set)
    await kafka_clients.wait_for_kafka(settings)
    found = await wait_for_text_encoder(settings, stop)
    if found is None:
        return
    space, encoder = found
    producer = producing.create_producer(settings)
    await producer.start()
    catalog = Catalog(settings, space, encoder, producer)
    reader = GlobalReader(settings, topics.ITEM_VECTORS.name(settings.kafka.topic_prefix), catalog.on_vectors)
    reader.start()
    await reader.ready()
    prefix = settings.kafka.topic_prefix
    consumer = AIOKafkaConsumer(
        topics.ITEMS.name(prefix), **kafka_clients.aiokafka_arguments(settings), group_id=f"{prefix}-catalog-{space}",
        enable_auto_commit=False, auto_offset_reset="earliest", max_poll_records=POLL_RECORDS_MAX,
        session_timeout_ms=30_000, heartbeat_interval_ms=3_000,
    )  # fmt: skip
    await consumer.start()
    log.info("catalog ready", space=space, known=len(catalog.known))
    try:
        while not stop.is_set():
            fetched = await consumer.getmany(timeout_ms=500)
            records = [record for some in fetched.values() for record in some]
            if records:
                started = time.perf_counter()
                await catalog.handle(records)
                await consumer.commit()
                log.info("items", records=len(records), encoded=catalog.encoded, s=round(time.perf_counter() - started, 2))
    finally:
        await consumer.stop()
        await reader.stop()
        await producer.stop()


if __name__ == "__main__":
    settings = load()
    configure(settings)
    asyncio.run(run(settings))
