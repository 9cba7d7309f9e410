"""The broker goes away while something reads: what ends is said to have failed, not to have been asked to end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiokafka import TopicPartition

from stream.adapters.kafka import kafka_clients
from stream.adapters.kafka.global_reader import GlobalReader
from stream.adapters.state import changelog
from stream.adapters.state.state_store import Identity, PartitionStore
from stream.api.app import Api
from stream.endings import Stray
from stream.settings import Settings


class Gone:
    """A consumer whose broker went away after it had said where partitions end. As aiokafka's, it lets the cancellation of
    its fetcher's task out of `stop`, before its connections are closed."""

    made: ClassVar[list[Gone]] = []

    def __init__(self, **_: Any) -> None:
        self._client, self.closed = self, False
        self.made.append(self)

    async def start(self) -> None: ...

    async def stop(self) -> None:
        fetching = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        fetching.cancel()
        await fetching

    async def close(self) -> None:
        self.closed = True

    async def _wait_on_metadata(self, topic: str) -> None: ...

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0}

    def assign(self, tps: list[TopicPartition]) -> None: ...

    def seek(self, tp: TopicPartition, offset: int) -> None: ...

    async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 10)

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    async def getmany(self, *tps: TopicPartition, **_: int) -> dict[TopicPartition, list[Any]]:
        await asyncio.sleep(0)
        return {}

    async def position(self, tp: TopicPartition) -> int:
        return 0


@pytest.fixture(autouse=True)
def gone(monkeypatch: pytest.MonkeyPatch) -> list[Gone]:
    async def answers(*_: object, **__: object) -> None: ...

    Gone.made = []
    monkeypatch.setattr(kafka_clients, "AIOKafkaConsumer", Gone)
    monkeypatch.setattr(kafka_clients, "wait_for_kafka", answers)
    monkeypatch.setattr(changelog, "SILENCE_S_MAX", 0.0)
    return Gone.made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


async def test_a_failure_is_not_replaced_by_the_cancellation_that_stopping_lets_out(
    settings: Settings, gone: list[Gone]
) -> None:
    with pytest.raises(ValueError, match="the failure"):
        async with kafka_clients.reader(settings):
            raise ValueError("the failure")
    assert [one.closed for one in gone] == [True]


async def test_who_is_asked_to_end_while_reading_is_cancelled(settings: Settings, gone: list[Gone]) -> None:
    begun = asyncio.Event()

    async def reads() -> None:
        async with kafka_clients.reader(settings):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(reads())
    await begun.wait()
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled() and gone[0].closed


async def test_a_recovery_and_a_look_into_the_changelog_fail(settings: Settings, tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path / "s", Identity("t", 1, 1))
    with pytest.raises(changelog.RecoveryFailed, match=r"nothing came from state\[0\]"):
        await changelog.recover(store, "state", 0, settings)
    with pytest.raises(changelog.RecoveryFailed):
        await changelog.keys_between("state", 0, 0, 3, settings)
    store.close()


async def test_a_reader_of_everything_that_is_cancelled_by_nobody_has_failed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(GlobalReader, "_read", cancelled)
    reader = GlobalReader(settings, "counts", lambda records: None)
    reader.start()
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(reader.wait_failed())
    assert caught.group_contains(Stray)
    with pytest.raises(Stray):
        await reader.stop()


async def test_a_reader_that_is_stopped_has_not(settings: Settings) -> None:
    reader = GlobalReader(settings, "counts", lambda records: None)
    reader.start()
    await asyncio.sleep(0)
    await reader.stop()


@pytest.mark.parametrize("where", ["open", "follow"])
async def test_the_api_does_not_go_on_answering_from_what_stands_still(
    where: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, codes = Api(settings), []

    async def nothing(*_: object) -> None: ...

    async def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    for holder, name in ((api.ranking, "ready"), (api.learned, "ready"), (api.replica, "open"), (api.replica, "follow"),
                         (api.learned, "wait_failed")):  # fmt: skip
        monkeypatch.setattr(holder, name, nothing)
    monkeypatch.setattr(api.decisions, "run", asyncio.Event().wait)
    monkeypatch.setattr(api.ranking, "start", lambda group: None)
    monkeypatch.setattr(api.learned, "start", lambda: None)
    monkeypatch.setattr(api.replica, where, cancelled)
    monkeypatch.setattr("os._exit", codes.append)
    async with asyncio.timeout(5):
        await api._follow()
    assert codes == [1]
