"""A connection to a real broker breaks while aiokafka fetches: what `kafka_clients.stopped` guards against."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from clickwake import topics as topic_admin
from schemas import topics
from stream.adapters import kafka_clients
from stream.settings import Settings

BACKOFF_MS = 60_000  # before aiokafka fetches again: it is within this pause when it is stopped


async def break_connections(consumer: AIOKafkaConsumer, tp: TopicPartition) -> None:
    """Returns when the request that was under way has failed and its task sleeps."""
    consumer.assign([tp])
    consumer.seek(tp, 0)
    fetcher = consumer._fetcher
    async with asyncio.timeout(20):
        while not fetcher._pending_tasks:  # noqa: ASYNC110  # nothing tells of a request under way
            await asyncio.sleep(0.01)
        (fetching,) = fetcher._pending_tasks
        while fetching.get_coro().cr_await.__name__ != "sleep":
            for connection in list(consumer._client._conns.values()):
                connection.close()
            await asyncio.sleep(0.01)


async def test_a_failure_is_told_although_stopping_lets_a_cancellation_out(settings: Settings) -> None:
    topic_admin.create(settings)
    tp = TopicPartition(topics.STATE.name(settings.kafka.topic_prefix), 0)
    bare = AIOKafkaConsumer(**kafka_clients.aiokafka_arguments(settings), group_id=None, retry_backoff_ms=BACKOFF_MS)
    await bare.start()
    await break_connections(bare, tp)
    with pytest.raises(asyncio.CancelledError):  # where it is not raised, aiokafka was mended, and `stopped` may go
        await bare.stop()
    await bare._client.close()
    with pytest.raises(ValueError, match="the failure"):
        async with kafka_clients.reader(settings, retry_backoff_ms=BACKOFF_MS) as consumer:
            await break_connections(consumer, tp)
            raise ValueError("the failure")
    assert consumer._client._sync_task is None and not any(one.connected() for one in consumer._client._conns.values())
