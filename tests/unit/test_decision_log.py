"""Decisions reach their topic through a broker that refuses for a while; what is given up is counted, and logged anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from schemas.outputs import Decision
from stream.adapters.kafka import decisions, kafka_clients, producing
from stream.adapters.kafka.decisions import AT_ONCE_MAX, ATTEMPTS_MAX, DecisionLog
from stream.adapters.kafka.producing import Message, SendFailed
from stream.outbox import utc
from stream.settings import Settings
from tests.support.fakes import T0_MS


class Broker:
    """Refuses as often as it is told to; one that took a batch may still say that it did not."""

    def __init__(self) -> None:
        self.refuses, self.takes_all_the_same = 0, False
        self.asked = 0
        self.taken: list[str] = []

    async def send(self, _: object, topic: str, messages: Mapping[int, Sequence[Message]], **__: object) -> dict[int, int]:
        self.asked += 1
        if self.refuses < self.asked or self.takes_all_the_same:
            self.taken += [msgspec.json.decode(value or b"", type=Decision).recommendation_id
                           for rows in messages.values() for _, value, _ in rows]  # fmt: skip
        if self.refuses >= self.asked:
            raise SendFailed("it does not acknowledge")
        return {}


class Producer:
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def decision(ident: str) -> Decision:
    return Decision(recommendation_id=ident, tenant="t", user_id="u", scenario="home", items=(), candidates=1,
                    as_of_event_id="", as_of_ts=None, served_at=utc(T0_MS), model_version="v")  # fmt: skip


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    async def answers(_: Settings) -> None: ...

    made = Broker()
    monkeypatch.setattr(kafka_clients, "wait_for_kafka", answers)
    monkeypatch.setattr(producing, "create_producer", lambda settings: Producer())
    monkeypatch.setattr(producing, "send_batches", made.send)
    monkeypatch.setattr(decisions, "BACKOFF_S_MAX", 0.0)
    return made


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[DecisionLog]:
    log = DecisionLog(Settings())
    task = asyncio.create_task(log.run())
    yield log
    task.cancel()
    await asyncio.wait((task,))


async def drained(log: DecisionLog) -> None:
    async with asyncio.timeout(5):
        await log.drain()


@pytest.mark.parametrize("takes_all_the_same", [False, True], ids=["refused", "only the acknowledgement is lost"])
async def test_what_was_not_acknowledged_is_sent_again(broker: Broker, takes_all_the_same: bool) -> None:
    broker.refuses, broker.takes_all_the_same = ATTEMPTS_MAX - 1, takes_all_the_same
    wanted = [f"r{number}" for number in range(AT_ONCE_MAX + 7)]
    async with running() as log:
        for ident in wanted * 2:
            log.note(decision(ident))
        await drained(log)
    assert list(dict.fromkeys(broker.taken)) == wanted
    assert (log.sent, log.lost) == (len(wanted), 0)
    assert len(broker.taken) == len(wanted) + takes_all_the_same * broker.refuses * AT_ONCE_MAX


async def test_what_is_refused_for_good_is_counted_and_logged_when_it_is_served_again(broker: Broker) -> None:
    broker.refuses = ATTEMPTS_MAX
    async with running() as log:
        for ident in ("a", "b"):
            log.note(decision(ident))
        await drained(log)
        assert (log.sent, log.lost, broker.taken) == (0, 2, [])
        for ident in ("b", "b", "c"):
            log.note(decision(ident))
        await drained(log)
    assert (log.sent, log.lost, broker.taken) == (2, 2, ["b", "c"])


async def test_what_waits_behind_too_many_is_lost_at_once_and_no_more(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "QUEUE_BYTES_MAX", 3 * len(msgspec.json.encode(decision("r0"))))
    log: Any = DecisionLog(Settings())
    for number in range(5):
        log.note(decision(f"r{number}"))
    assert log.lost == 2
    task = asyncio.create_task(log.run())
    await drained(log)
    log.note(decision("r4"))
    await drained(log)
    task.cancel()
    await asyncio.wait((task,))
    assert broker.taken == ["r0", "r1", "r2", "r4"]
