"""How long the sink collects: a moment when it keeps up, longer where more waits than it holds, never without end; and
that it stores nothing before it can know whom nothing may be kept of."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from schemas.erasure import Erased, Erasure, subject
from stream.outbox import utc
from stream.settings import Settings
from stream.settings import Sink as SinkSettings
from stream.sink import consumer
from stream.sink.batch import Batch, Rejection
from stream.sink.consumer import Sink
from stream.sink.writer import Stopped
from tests.support.fakes import T0_MS, event

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


class FarBehind(Erased):
    """A list whose reader was away, as after an outage: what was written meanwhile it knows once it has caught up."""

    def __init__(self, behind_ms: int, gone: str = "") -> None:
        super().__init__()
        self._behind_ms, self._gone = behind_ms, gone

    def behind_ms(self) -> int:
        return self._behind_ms

    async def caught_up(self) -> None:
        if not self._gone:
            await asyncio.Event().wait()
        self.note(subject(f"t/{self._gone}".encode()), Erasure(erasure_id="e", tenant="t", requested_at=utc(T0_MS + 1)))


def storing(erasures: FarBehind) -> tuple[Sink, list[Batch], Coroutine[Any, Any, None]]:
    """A sink, what it has given to ClickHouse, and its storing of two users' events; they are committed by nobody."""
    sink, stored = Sink(Settings()), list[Batch]()
    sink._erasures = erasures  # type: ignore[assignment]

    def write(batch: Batch) -> list[Rejection]:
        stored.append(batch)
        return []

    sink._writer = SimpleNamespace(write=write)  # type: ignore[assignment]
    records: Any = [SimpleNamespace(topic="clickwake.events.v1", partition=0, offset=at, timestamp=T0_MS, key=b"",
                                    value=msgspec.json.encode(event(user=user)), headers=())
                    for at, user in enumerate("uv")]  # fmt: skip
    return sink, stored, sink._store(records, generation=-1)


async def test_whoever_was_erased_while_the_list_could_not_be_read_is_not_stored_after_the_receipt() -> None:
    _, stored, work = storing(FarBehind(consumer.LIST_BEHIND_MS_MAX + 1, "u"))
    await work
    assert stored[0].outcomes == {("clickwake.events.v1", "skipped_erased"): 1, ("clickwake.events.v1", "rows"): 1}


async def test_nothing_is_waited_for_while_the_reader_of_the_list_keeps_up() -> None:
    _, stored, work = storing(FarBehind(consumer.LIST_BEHIND_MS_MAX))
    async with asyncio.timeout(5):
        await work
    assert stored[0].outcomes == {("clickwake.events.v1", "rows"): 2}


async def test_a_sink_that_is_to_end_does_not_wait_for_the_list() -> None:
    sink, stored, work = storing(FarBehind(consumer.LIST_BEHIND_MS_MAX + 1))
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    sink.stop()
    async with asyncio.timeout(5):
        with pytest.raises(Stopped):
            await task
    assert not stored
