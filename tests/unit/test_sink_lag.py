"""How far the sink is behind is told of many partitions far from the broker, and of its own ones alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError
from structlog.testing import capture_logs

from stream.settings import Settings
from stream.sink import consumer, metrics
from stream.sink.consumer import Sink

MANY = [TopicPartition("events", number) for number in range(200)]
FEW = MANY[:2]
ROUND_TRIP_S = 0.02


class FarBroker:
    """A consumer whose broker is far away: each partition ends at 10 and is at its own number, 0 without a commit."""

    def __init__(self, held: Iterable[TopicPartition]) -> None:
        self.held = set(held)
        self.error: Exception | None = None
        self.silent = False
        self.asked = asyncio.Event()  # for places

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        await asyncio.sleep(ROUND_TRIP_S)
        return dict.fromkeys(partitions, 10)

    async def committed(self, tp: TopicPartition) -> int | None:
        self.asked.set()
        await (asyncio.Event().wait() if self.silent else asyncio.sleep(ROUND_TRIP_S))
        if self.error is not None:
            raise self.error
        return tp.partition or None

    def assignment(self) -> set[TopicPartition]:
        """As aiokafka has it: that of before, until there is another."""
        return self.held


def told() -> dict[str, float]:
    return {one.labels["partition"]: one.value for metric in metrics.LAG.collect() for one in metric.samples}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(consumer, "COMMIT_TIMEOUT_S", 1.0)
    monkeypatch.setattr(consumer, "LAG_S", 0.05)
    metrics.LAG.clear()
    yield
    metrics.LAG.clear()


@asynccontextmanager
async def telling(broker: Any) -> AsyncIterator[Sink]:
    sink = Sink(Settings())
    sink._consumer = broker
    task = asyncio.create_task(sink._tell_lag())
    try:
        yield sink
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def until(what: Any) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110  # nobody tells when a metric changes
            await asyncio.sleep(0.01)


async def test_it_is_told_of_many_partitions_in_the_time_of_one() -> None:
    async with telling(FarBroker(MANY)) as sink:
        await sink.on_partitions_assigned(MANY)
        await until(told)
        assert told() == {str(tp.partition): max(0, 10 - tp.partition) for tp in MANY}


async def test_a_broker_that_does_not_say_it_is_warned_of_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "COMMIT_TIMEOUT_S", 0.1)
    broker = FarBroker(FEW)
    with capture_logs() as logs:
        async with telling(broker) as sink:
            for silent, error, said in ((True, None, "TimeoutError"), (False, GroupAuthorizationFailedError(), "GroupAuth")):
                broker.silent, broker.error = silent, error
                await sink.on_partitions_assigned(FEW)
                await until(lambda said=said: any(said in one.get("error", "") for one in logs))
            assert told() == {}
            broker.error = None
            await until(told)
    assert {one["log_level"] for one in logs if one["event"] == "sink.lag_unknown"} == {"warning"}


async def test_what_was_taken_away_is_told_of_by_its_next_owner_alone() -> None:
    """Also where the broker was being asked when it was taken, or is asked before the next assignment is there."""
    broker = FarBroker(FEW)
    async with telling(broker) as sink:
        await sink.on_partitions_assigned(FEW)
        await until(told)
        assert told() == {"0": 10, "1": 9}
        broker.asked.clear()
        await broker.asked.wait()
        await sink.on_partitions_revoked(FEW)
        assert told() == {}
        await asyncio.sleep(5 * (consumer.LAG_S + 2 * ROUND_TRIP_S))
        assert told() == {}
        broker.held = set(FEW[:1])
        await sink.on_partitions_assigned(FEW[:1])
        await until(told)
        assert told() == {"0": 10}
