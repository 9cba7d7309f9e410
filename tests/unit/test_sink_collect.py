"""How long the sink collects: a moment when it keeps up, longer where more waits than it holds, never without end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from stream.settings import Settings
from stream.settings import Sink as SinkSettings
from stream.sink import consumer
from stream.sink.consumer import Sink

TP = ("events", 0)


class FakeConsumer:
    """One partition; each call gives one of `fetches`, then nothing within the time allowed."""

    def __init__(self, fetches: list[int], end: int, gap: int = 0) -> None:
        self.fetches, self.end, self.at, self.gap = fetches, end, 0, gap

    def assignment(self) -> set[tuple[str, int]]:
        return {TP}

    def highwater(self, tp: tuple[str, int]) -> int:
        return self.end

    async def position(self, tp: tuple[str, int]) -> int:
        return self.at + self.gap

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[tuple[str, int], list[Any]]:
        if not self.fetches:
            await asyncio.sleep(timeout_ms / 1000)
            return {}
        some = [SimpleNamespace(offset=self.at + n, value=b"{}") for n in range(self.fetches.pop(0))]
        self.at += len(some)
        await asyncio.sleep(0.02)  # longer than the flush interval below
        return {TP: some}


async def collected(fake: FakeConsumer) -> int:
    sink = Sink(Settings(sink=SinkSettings(flush_interval_ms=10)))
    sink._consumer = fake
    records, _ = await sink._collect()
    return len(records)


async def test_it_stops_after_the_interval_when_little_waits() -> None:
    assert await collected(FakeConsumer([5, 5, 5, 5], end=20)) == 10  # two fetches, and no more waits than that


async def test_it_goes_on_while_more_waits_than_it_holds() -> None:
    assert await collected(FakeConsumer([5] * 8, end=40)) == 20  # until as much is held as waits


async def test_what_compaction_removed_is_not_waited_for_and_a_broker_that_gives_nothing_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "COLLECT_S_MAX", 0.2)
    assert await collected(FakeConsumer([5], end=100, gap=95)) == 5
    async with asyncio.timeout(5):
        assert await collected(FakeConsumer([5], end=100)) == 5
