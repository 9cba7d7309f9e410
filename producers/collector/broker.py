"""Kafka as the collector sees it: records are acknowledged by every in-sync replica, or the client is told to retry.

A task keeps one idempotent producer connected: it connects with backoff, and replaces a producer that reported a fatal
error. While there is none, `send` refuses at once. What times out may still be stored later: the client sends it again
under the same messageId, and the copy is recognised downstream.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.codec import has_lz4
from aiokafka.errors import KafkaError, KafkaTimeoutError

from producers.collector.metrics import Metrics
from producers.kafka import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    BATCH_BYTES_MAX,
    async_client_options,
    missing_topic,
    partition_of,
    unreachable,
)
from stream.settings import Kafka
from stream.tracing.port import NO_HEADERS, Headers

LINGER_MS = 2  # requests that arrive together share a batch; a single one waits no longer than this
PROBE_TIMEOUT_S = 2.0  # of a readiness check
STOP_TIMEOUT_S = 5.0  # after the requests in flight are done there is nothing left to wait for

log = structlog.get_logger("collector")


class Unavailable(RuntimeError):
    """Kafka has not acknowledged; the message says why and what to do."""


class Record(msgspec.Struct, frozen=True):
    topic: str
    key: bytes
    value: bytes
    headers: Headers = NO_HEADERS


def partition(key: bytes, all_partitions: Sequence[int], available: Sequence[int]) -> int:
    """aiokafka's partitioner argument: the same choice as its default, with hashes kept."""
    return partition_of(key, len(all_partitions))


def _retrieved(future: asyncio.Future[Any]) -> None:
    """Marks an exception as seen: its request was answered long ago."""
    if not future.cancelled():
        future.exception()


class Broker:
    """Start with `start`, stop with `stop`; both from the event loop that serves."""

    def __init__(self, kafka: Kafka, topics: Sequence[str], ack_timeout_ms: int, metrics: Metrics) -> None:
        self._kafka, self._topics, self._metrics = kafka, tuple(topics), metrics
        self._ack_timeout_s = ack_timeout_ms / 1000
        self._producer: AIOKafkaProducer | None = None
        self._reason = f"Kafka at {kafka.bootstrap_servers} is being connected."
        self._broken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_connected(), name="kafka-connection")

    async def stop(self) -> None:
        """Flushes and disconnects; bounded by STOP_TIMEOUT_S."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def send(self, records: Sequence[Record]) -> None:
        """Returns when every record is acknowledged; raises Unavailable otherwise."""
        producer = self._producer
        if producer is None:
            raise Unavailable(self._reason)
        if not records:  # of users who are to be forgotten: an answer like any other
            return
        started = time.monotonic()
        futures: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                for record in records:
                    futures.append(await producer.send(record.topic, value=record.value, key=record.key,
                                                       headers=record.headers))
                await asyncio.wait(futures)
        except (TimeoutError, KafkaTimeoutError):
            raise Unavailable(unreachable(self._kafka, f"no acknowledgement within {self._ack_timeout_s:g} s")) from None
        except KafkaError as error:
            self._give_up(error)
            raise Unavailable(unreachable(self._kafka, repr(error))) from error
        finally:
            for future in futures:
                future.add_done_callback(_retrieved)
        for future in futures:
            if failure := future.exception():
                if not isinstance(failure, KafkaTimeoutError):
                    self._give_up(failure)
                raise Unavailable(unreachable(self._kafka, repr(failure))) from failure
        self._metrics.ack_seconds.observe(time.monotonic() - started)

    async def ready(self) -> str | None:
        """None when the cluster answers now, else the reason."""
        producer = self._producer
        if producer is None:
            return self._reason
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                answered = await asyncio.shield(producer.client.force_metadata_update())
        except (TimeoutError, KafkaError) as error:
            return unreachable(self._kafka, repr(error))
        return None if answered else unreachable(self._kafka, "no broker answered a metadata request")

    def _give_up(self, error: BaseException) -> None:
        """After an error that is not a timeout the idempotent producer may be unusable: another one takes its place."""
        log.error("kafka_producer_failed", error=repr(error), action="reconnecting")
        self._broken.set()

    async def _keep_connected(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while True:
            producer: AIOKafkaProducer | None = None
            try:
                producer = self._new_producer()
                await self._connect(producer)
                backoff_s = BACKOFF_FIRST_S
                await self._serve(producer)
            except Exception as error:  # whatever keeps it from connecting is told to every client and tried again
                self._reason = str(error) if isinstance(error, Unavailable) else unreachable(self._kafka, repr(error))
                log.warning("kafka_unavailable", reason=self._reason, retry_in_s=backoff_s)
            finally:
                if producer is not None:
                    await self._close(producer)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _serve(self, producer: AIOKafkaProducer) -> None:
        """Offers the producer to requests until one of them reports that it is broken."""
        log.info("kafka_connected", bootstrap_servers=self._kafka.bootstrap_servers)
        self._broken.clear()
        self._producer = producer
        self._metrics.kafka_up.set(1)
        try:
            await self._broken.wait()
        finally:
            self._producer, self._reason = None, f"Kafka at {self._kafka.bootstrap_servers} is being connected again."
            self._metrics.kafka_up.set(0)

    def _new_producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **async_client_options(self._kafka),
            client_id="clickwake-collector",
            acks="all",
            enable_idempotence=True,
            compression_type="lz4" if has_lz4() else None,
            max_batch_size=BATCH_BYTES_MAX,
            linger_ms=LINGER_MS,
            partitioner=partition,
            request_timeout_ms=max(1_000, int(self._ack_timeout_s * 1000)),
        )

    async def _connect(self, producer: AIOKafkaProducer) -> None:
        await producer.start()
        for topic in self._topics:
            producer.client.add_topic(topic)
        await producer.client.force_metadata_update()
        for topic in self._topics:
            if producer.client.cluster.partitions_for_topic(topic) is None:
                raise Unavailable(missing_topic(self._kafka, topic))

    @staticmethod
    async def _close(producer: AIOKafkaProducer) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await producer.stop()
        except (TimeoutError, KafkaError) as error:
            log.warning("kafka_producer_not_closed_cleanly", error=repr(error))
            with contextlib.suppress(KafkaError):  # the sockets are what is left to close
                await producer.client.close()
