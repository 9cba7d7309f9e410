"""A topic that is read whole and is made again is read from its beginning, although it has outgrown the reader's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from stream.adapters.health import listening
from stream.adapters.kafka import global_reader, kafka_clients
from stream.adapters.kafka.global_reader import GlobalReader, MadeAgain, read_whole
from stream.settings import Settings


class Broker:
    """Topics of one partition: what is on each, how much of it is handed out, and its id. Notes what ids were asked for."""

    def __init__(self, **topics: list[str]) -> None:
        self.logs, self.ids = topics, dict.fromkeys(topics, "first")
        self.held_back: dict[str, int] = {}
        self.looks: list[set[str]] = []

    def make_again(self, topic: str, log: list[str]) -> None:
        self.logs[topic], self.ids[topic] = log, "second"

    def topic_ids(self, settings: Settings, names: Collection[str]) -> dict[str, str]:
        self.looks.append(set(names))
        return {name: self.ids[name] for name in names}


class Consumer:
    """aiokafka's, as far as the reader uses it: it knows a topic by its name alone."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._at = broker, dict[TopicPartition, int]()
        self._client = SimpleNamespace(_wait_on_metadata=self._known)

    async def _known(self, topic: str) -> None: ...

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0}

    def assign(self, tps: list[TopicPartition]) -> None:
        self._at = dict.fromkeys(tps, 0)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._at[tp] = offset

    async def position(self, tp: TopicPartition) -> int:
        return self._at[tp]

    async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: len(self._broker.logs[tp.topic]) for tp in tps}

    def highwater(self, tp: TopicPartition) -> int:
        return len(self._broker.logs[tp.topic])

    def last_poll_timestamp(self, tp: TopicPartition) -> int:
        return 1

    async def getmany(self, **_: object) -> dict[TopicPartition, list[str]]:
        await asyncio.sleep(0)
        found = {}
        for tp, at in self._at.items():
            end = len(self._broker.logs[tp.topic]) - self._broker.held_back.get(tp.topic, 0)
            found[tp] = self._broker.logs[tp.topic][at:end]
            self._at[tp] = max(at, end)
        return {tp: records for tp, records in found.items() if records}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # one turn of the loop
            await asyncio.sleep(0)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker(vectors=["a", "b", "c"], counts=["x", "y"])

    @asynccontextmanager
    async def reader(settings: Settings, **_: object) -> AsyncIterator[Consumer]:
        yield Consumer(made)

    async def there(settings: Settings) -> None: ...

    monkeypatch.setattr(kafka_clients, "reader", reader)
    monkeypatch.setattr(kafka_clients, "wait_for_kafka", there)
    monkeypatch.setattr(listening, "topic_ids", made.topic_ids)
    monkeypatch.setattr(global_reader, "topics_made_again", partial(listening.topics_made_again, interval_s=0.005))
    return made


async def test_it_is_read_from_its_beginning_and_one_look_is_for_all_readers(broker: Broker) -> None:
    told: dict[str, list[str]] = {"vectors": [], "counts": []}
    readers = [GlobalReader(Settings(), topic, into.extend) for topic, into in told.items()]
    for one in readers:
        one.start()
    await asyncio.gather(*(one.ready() for one in readers))
    await until(lambda: broker.looks[-1:] == [{"vectors", "counts"}])
    broker.make_again("vectors", ["d", "e", "f", "g"])
    await until(lambda: len(told["vectors"]) >= 7)
    assert told["vectors"][-4:] == ["d", "e", "f", "g"], "the fourth alone is beyond its place"
    await readers[0].caught_up()
    broker.logs["vectors"].append("h")
    await until(lambda: told["vectors"][-1] == "h")
    assert told["counts"] == ["x", "y"], "the other one is what it was"
    assert [one.get_name() for one in asyncio.all_tasks()].count("looking for topics made again") == 1
    for one in readers:
        await one.stop()
    await until(lambda: all(one.get_name() != "looking for topics made again" for one in asyncio.all_tasks()))


async def test_who_waits_for_the_ends_of_a_topic_that_is_no_more_waits_for_those_of_the_new_one(broker: Broker) -> None:
    told: list[str] = []
    reader = GlobalReader(Settings(), "vectors", told.extend)
    reader.start()
    await reader.ready()
    await until(lambda: bool(broker.looks))
    broker.held_back["vectors"] = 2
    broker.logs["vectors"] += ["late", "later"]
    waiting = asyncio.create_task(reader.caught_up())
    await until(lambda: bool(reader._ends_wanted))
    await until(lambda: not reader._ends_wanted)
    broker.make_again("vectors", ["d", "e"])
    broker.held_back.clear()
    async with asyncio.timeout(10):
        await waiting
    assert told[-2:] == ["d", "e"]
    await reader.stop()


async def test_who_keeps_what_was_read_ends(broker: Broker) -> None:
    reader = GlobalReader(Settings(), "vectors", lambda records: None, {0: 2})
    reader.start()
    await reader.ready()
    await until(lambda: bool(broker.looks))
    broker.make_again("vectors", ["d", "e", "f", "g"])
    with pytest.raises(MadeAgain, match="vectors: the topic was made again"):
        await reader.wait_failed()
    with pytest.raises(MadeAgain):
        await reader.stop()


async def test_what_ends_the_look_ends_its_readers(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(global_reader, "topics_made_again", fails)
    reader = GlobalReader(Settings(), "vectors", lambda records: None)
    reader.start()
    with pytest.raises(LookupError, match="a fault of ours"):
        await reader.wait_failed()
    with pytest.raises(LookupError):
        await reader.stop()


async def test_who_reads_a_topic_once_asks_for_no_ids(broker: Broker) -> None:
    told: list[str] = []
    await read_whole(Settings(), "vectors", told.extend)
    assert told == ["a", "b", "c"] and broker.looks == []
