"""A consumer that gets no answer although others do ends its process, one whose broker is away does not; and a topic that is
made again is read from its beginning."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Any, NoReturn

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import RequestTimedOutError

from stream.adapters.health import listening
from stream.settings import Settings


class Ended(Exception):
    """Stands for the end of the process."""


class Consumer:
    """Its first question is answered, the others are not."""

    def __init__(self) -> None:
        self.asked = 0
        self.often = asyncio.Event()

    def assignment(self) -> set[Any]:
        return {("events", 0)}

    def subscription(self) -> frozenset[str]:
        return frozenset({"events"})

    async def end_offsets(self, partitions: set[Any]) -> dict[Any, int]:
        self.asked += 1
        if self.asked > 10:
            self.often.set()
        if self.asked == 1:
            return dict.fromkeys(partitions, 0)
        raise RequestTimedOutError


@pytest.mark.parametrize("broker_answers", [True, False])
async def test_only_a_broker_that_answers_others_ends_it(broker_answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def others(settings: Settings, group: str, partitions: set[Any]) -> bool:
        assert partitions == {("events", 0)}
        return broker_answers

    said: list[str] = []

    def end(reason: str, loop: asyncio.AbstractEventLoop) -> NoReturn:
        said.append(reason)
        raise Ended

    monkeypatch.setattr(listening, "others_are_answered", others)
    monkeypatch.setattr(listening, "topic_ids", lambda settings, names: {})
    monkeypatch.setattr(listening, "end", end)
    consumer: Any = Consumer()

    async def work() -> None:
        async with listening.answered(Settings(), consumer, "a-group", deaf_s=0.02, interval_s=0.01), asyncio.timeout(5):
            while not consumer.often.is_set() and not said:  # noqa: ASYNC110  # one turn of the loop
                await asyncio.sleep(0)

    if broker_answers:
        with pytest.raises(Ended):
            await work()
        assert "no answer" in said[0]
    else:
        await work()
        assert said == [] and consumer.asked > 10


class Reader:
    """Two topics, a partition of each and one more of the first; it is asked of nothing else."""

    def __init__(self) -> None:
        self.at = {TopicPartition("events", 0): 7, TopicPartition("events", 1): 9, TopicPartition("items", 0): 5}

    def assignment(self) -> set[TopicPartition]:
        return set(self.at)

    def subscription(self) -> frozenset[str]:
        return frozenset({"events", "items"})

    async def end_offsets(self, partitions: set[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 10)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.at[tp] = offset


async def test_a_topic_made_again_is_read_from_its_beginning_and_what_was_read_before_is_not_committed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[dict[str, str]] = [{"events": "a", "items": "b"}, {"items": "b"}, {}, {"events": "c", "items": "b"}]
    reader, places, seen = Reader(), list[dict[TopicPartition, int]](), asyncio.Event()

    def topic_ids(settings: Settings, names: Collection[str]) -> dict[str, str]:
        assert set(names) == {"events", "items"}
        if len(looks) > 1:
            return looks.pop(0)
        return looks[0]

    def begun_anew() -> None:
        places.append(dict(reader.at))
        seen.set()

    monkeypatch.setattr(listening, "topic_ids", topic_ids)
    consumer: Any = reader
    with caplog.at_level(logging.ERROR):
        async with listening.answered(Settings(), consumer, "a-group", begun_anew, topics_every_s=0.01), asyncio.timeout(5):
            await seen.wait()
    assert places == [{TopicPartition("events", 0): 7, TopicPartition("events", 1): 9, TopicPartition("items", 0): 5}]
    assert reader.at == {TopicPartition("events", 0): 0, TopicPartition("events", 1): 0, TopicPartition("items", 0): 5}
    assert "events: the topic was made again" in caplog.text and "a-group" in caplog.text
