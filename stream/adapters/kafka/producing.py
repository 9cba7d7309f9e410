"""Sending whole batches and knowing that the broker has them.

`AIOKafkaProducer.send` costs a future and a task switch a record; a batch built here costs one. The producer is
idempotent (acks=all), so aiokafka retries a batch through an outage without doubling it or changing the order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError
from aiokafka.protocol.produce import ProduceRequest

from stream.adapters.kafka.kafka_clients import aiokafka_arguments, partition_of
from stream.settings import Settings
from stream.tracing import port
from stream.tracing.port import UNTRACED, Tracing, Whose, itself

log = logging.getLogger(__name__)

BATCH_BYTES_MAX = 500_000  # with 1 KB of state a user 42,000 records/s, against 13,000 with the default of 16 kB
REQUEST_TIMEOUT_MS = 40_000
SEND_TIMEOUT_S = 180.0  # a broker may be away for two minutes without a crash; longer, and somebody should know

Message = port.Message  # key, value (None: tombstone), headers


class SendFailed(RuntimeError):
    """The broker did not acknowledge. Part of the batch may have arrived all the same: send again, or crash."""


class HasProducer(Protocol):
    """A `faust_compat.App`."""

    batch_producer: AIOKafkaProducer | None


def create_producer(settings: Settings, transactional_id: str | None = None, batch_bytes_max: int = BATCH_BYTES_MAX
                    ) -> AIOKafkaProducer:  # fmt: skip
    """An idempotent producer for `send_batches`; the caller starts and stops it. With a `transactional_id` everything is
    sent within `producer.transaction()`; starting ends what an earlier producer of this id had begun, and fences it off."""
    return AIOKafkaProducer(**aiokafka_arguments(settings), acks="all", enable_idempotence=True, linger_ms=0,
                            max_batch_size=batch_bytes_max, request_timeout_ms=REQUEST_TIMEOUT_MS, compression_type=None,
                            transactional_id=transactional_id)


def ask_before_writing(producer: AIOKafkaProducer, ask: Callable[[], None]) -> None:
    """Ask before a running producer writes records to the network, each time it tries: what was handed over waits here while
    the process sleeps. `ask` raises a `KafkaError`; by its `retriable` the records are tried again or refused."""
    send = producer.client.send

    async def asked(node_id: int, request: Any, **more: Any) -> Any:
        if isinstance(request, ProduceRequest):
            await producer.client.ready(node_id, **more)  # connecting is waiting, too; from here on nothing waits
            ask()
        return await send(node_id, request, **more)

    producer.client.send = asked


def wait_for_leaders(producer: AIOKafkaProducer) -> None:
    """Let a running producer keep what waits for the leader of its partition as long as `send_batches` waits for it;
    aiokafka gives it up after the time of a request."""
    producer._message_accumulator._batch_ttl = SEND_TIMEOUT_S


async def send_batches(target: HasProducer | AIOKafkaProducer, topic: str, messages: Mapping[int, Sequence[Message]],
                       *, timeout_s: float = SEND_TIMEOUT_S) -> dict[int, int]:
    """Send to explicit partitions and wait until all replicas in sync have everything.

    Arguments: an app or a producer of `create_producer`; per partition, messages in the order they are to have.
    Returns the offset of the last message of each partition that had any. Raises `SendFailed`, naming topic and
    partition; sending the same again is then safe if readers tell duplicates apart.
    """
    producer = target if isinstance(target, AIOKafkaProducer) else target.batch_producer
    if producer is None:
        raise SendFailed(f"cannot send to {topic}: the app is not running, so it has no producer")
    parts = [(partition, rows) for partition, rows in messages.items() if rows]
    last = await asyncio.gather(*(_send_partition(producer, topic, partition, rows, timeout_s) for partition, rows in parts))
    return {partition: offset for (partition, _), offset in zip(parts, last, strict=True)}


async def send_keyed(target: HasProducer | AIOKafkaProducer, topic: str, messages: Iterable[Message], partitions: int,
                     *, timeout_s: float = SEND_TIMEOUT_S, tracing: Tracing = UNTRACED, whose: Whose = itself,
                     ) -> dict[int, int]:  # fmt: skip
    """`send_batches`, each message to the partition of its key, where Kafka's own clients put it too; those of a partition
    keep their order. Outputs go on with the trace of what they answer: see `Tracing.outgoing`."""
    split: dict[int, list[Message]] = {}
    for message in messages:
        split.setdefault(partition_of(message[0] or b"", partitions), []).append(message)
    with tracing.outgoing(topic, split, whose) as traced:
        return await send_batches(target, topic, traced, timeout_s=timeout_s)


async def _send_partition(producer: AIOKafkaProducer, topic: str, partition: int, rows: Sequence[Message],
                          timeout_s: float) -> int:
    last = -1
    pending: list[tuple[Any, int]] = []
    try:
        async with asyncio.timeout(timeout_s):
            for builder in _builders(producer, rows):
                pending.append((await _enqueue(producer, builder, topic, partition), builder.record_count()))
            for future, count in pending:
                metadata = await future
                last = metadata.offset + count - 1
    except TimeoutError as error:
        raise SendFailed(f"{len(rows)} messages for {topic}[{partition}] were not acknowledged within {timeout_s:.0f} s"
                         ) from error  # fmt: skip
    except KafkaError as error:
        raise SendFailed(f"the broker refuses {len(rows)} messages for {topic}[{partition}]: {error!r}. Its log says why; a "
                         "full disk is one reason") from error  # fmt: skip
    return last


async def _enqueue(producer: AIOKafkaProducer, builder: Any, topic: str, partition: int) -> Any:
    """The batch's future. While the broker is away aiokafka gives up waiting for a place, or for word of a topic that it has
    not sent to yet; the batch was not taken then."""
    while True:
        try:
            return await producer.send_batch(builder, topic, partition=partition)
        except (KafkaTimeoutError, UnknownTopicOrPartitionError):
            log.warning("still waiting to send to %s[%d]: the broker does not take anything", topic, partition)


def _builders(producer: AIOKafkaProducer, rows: Sequence[Message]) -> Iterator[Any]:
    builder = producer.create_batch()
    for key, value, headers in rows:
        if builder.append(key=key, value=value, timestamp=None, headers=list(headers)) is None:
            builder.close()
            yield builder
            builder = producer.create_batch()
            # the first message of a batch is always taken, whatever its size: the topic's own limit decides
            builder.append(key=key, value=value, timestamp=None, headers=list(headers))
    builder.close()
    yield builder
