"""The delivery worker on topics in memory: what it has read before it takes up what waits, and what a changed file does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError
from pydantic import SecretStr
from structlog.testing import capture_logs

from schemas import topics
from schemas.outputs import ChurnAlert, DeliveryRecord
from stream.adapters.kafka import kafka_clients, producing
from stream.delivery.channels import Message
from stream.delivery.rules import Cap, Delivery
from stream.endings import pause
from stream.pseudonyms import Pseudonyms
from stream.settings import Deliveries, Privacy, Settings
from tests.support.fakes import FakeErasures, FakeRefusals
from tests.unit.test_deliveries import AT, TEA, Bench, alert, due
from workers import delivery
from workers.delivery import Worker

ALERTS = TopicPartition(topics.CHURN_ALERTS.name("clickwake"), 0)
REMINDERS = TopicPartition(topics.REMINDERS.name("clickwake"), 0)
FILE = "channels: {crm: {type: webhook, url: 'http://crm.example', secret_env: S}}\n"
SAVE = "deliveries: [{name: save, channel: crm, about: churn, cap_days: 0}]\n"
QUIET = "deliveries: [{name: save, channel: crm, about: churn, cap_days: 0, quiet: ['11:00:00', '13:00:00']}]\n"
OPEN = Privacy()  # ids are as they were sent


class Topics:
    """Alerts, of which a worker has committed the first ones, and the log. `joins_after`: polls before it has partitions."""

    def __init__(self, now: datetime = AT) -> None:
        self.now, self.alerts, self.log, self.sent = now, list[ChurnAlert](), list[DeliveryRecord](), list[Message]()
        self.committed, self.joins_after, self.reads, self.failures = 0, 0, 0, list[Exception]()
        self.consumer: Any = None
        self.on_made_again: Callable[[], object] = lambda: None
        self.turned = asyncio.Condition()  # the worker has looked at everything once more

    async def turn(self) -> None:
        async with self.turned:
            self.turned.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self.turned:
            await self.turned.wait_for(holds)

    def statuses(self) -> list[tuple[str, str]]:
        return [(one.user_id, one.status) for one in self.log]


class Consumer:
    """As much of a consumer as the worker uses, one record a poll."""

    def __init__(self, kept: Topics) -> None:
        self.kept, self.at, self.polls = kept, kept.committed, 0

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset({ALERTS} if self.polls > self.kept.joins_after else ())

    async def end_offsets(self, partitions: Any) -> dict[TopicPartition, int]:
        if self.kept.failures:
            raise self.kept.failures.pop()
        return dict.fromkeys(partitions, len(self.kept.alerts))

    async def position(self, partition: TopicPartition) -> int:
        return self.at

    def highwater(self, partition: TopicPartition) -> int:
        return len(self.kept.alerts)

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        self.polls += 1
        await self.kept.turn()
        await asyncio.sleep(0)
        if not self.assignment() or self.at == len(self.kept.alerts):
            return {}
        self.at += 1
        return {ALERTS: [SimpleNamespace(value=msgspec.json.encode(self.kept.alerts[self.at - 1]), topic=ALERTS.topic)]}

    async def commit(self) -> None:
        self.kept.committed = self.at


class OnePoll(Consumer):
    """A reminder and an alert that come together."""

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        self.at += 2
        return {tp: [SimpleNamespace(value=msgspec.json.encode(said), topic=tp.topic)]
                for tp, said in ((REMINDERS, due()), (ALERTS, alert()))}  # fmt: skip


class Reader:
    """A topic that was read to its end."""

    def start(self) -> None:
        return

    async def ready(self) -> None:
        return

    def check(self) -> None:
        return

    async def stop(self) -> None:
        return


class NobodyErased(Reader, FakeErasures):
    pass


class NobodyRefuses(Reader, FakeRefusals):
    pass


@contextlib.asynccontextmanager
async def running(kept: Topics, path: Path, monkeypatch: pytest.MonkeyPatch,
                  privacy: Privacy = OPEN) -> Any:  # fmt: skip
    """The worker's own loop on these topics and this file."""
    async def read_whole(settings: Settings, topic: str, on_records: Callable[[list[Any]], None]) -> None:
        on_records([SimpleNamespace(value=msgspec.json.encode(one)) for one in kept.log])
        kept.reads += 1

    async def write(records: list[DeliveryRecord]) -> None:
        kept.log += records

    async def send(channel: object, message: Message) -> None:
        kept.sent.append(message)

    async def paused(stop: asyncio.Event, seconds: float) -> bool:
        await kept.turn()
        return await pause(stop, 0.01)

    async def there(settings: Settings) -> None:
        return

    @contextlib.asynccontextmanager
    async def answered(settings: Settings, consumer: Consumer, group: str, on_made_again: Any) -> AsyncIterator[None]:
        kept.consumer, kept.on_made_again = consumer, on_made_again
        yield

    for name, fake in (("answered", answered), ("read_whole", read_whole),
                       ("AIOKafkaConsumer", lambda *_, **__: Consumer(kept)),
                       ("Erasures", lambda _: NobodyErased()), ("AdsRefusals", lambda _: NobodyRefuses()),
                       ("_now", lambda: kept.now), ("pause", paused)):  # fmt: skip
        monkeypatch.setattr(delivery, name, fake)
    monkeypatch.setattr(kafka_clients, "wait_for_kafka", there)
    monkeypatch.setattr(producing, "create_producer", lambda _: Consumer(kept))
    worker = Worker(Settings(_env_file=None, deliveries=Deliveries(rules=path), privacy=privacy), lambda: None)
    monkeypatch.setattr(worker, "_write", write)
    monkeypatch.setattr(worker, "_deliver", send)
    working = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop.set()
        await working


async def test_a_worker_that_was_off_reads_what_ended_meanwhile_before_it_takes_up_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = tmp_path / "deliveries.yml", Topics()
    path.write_text(FILE + QUIET)
    kept.alerts = [alert("u1", "a1"), alert("u2", "a2")]
    async with running(kept, path, monkeypatch):
        await kept.until(lambda: len(kept.log) == 2 and kept.committed == 2)
    kept.now += timedelta(hours=2)
    kept.alerts += [*(alert(f"v{number}", f"b{number}", state="cleared") for number in range(3)),
                    alert("u1", "c1", state="cleared")]  # fmt: skip
    kept.joins_after, kept.failures = 3, [KafkaTimeoutError("the broker does not say")]
    async with running(kept, path, monkeypatch):
        await kept.until(lambda: bool(kept.sent))
    assert kept.statuses() == [("u1", "deferred"), ("u2", "deferred"), ("u1", "expired"), ("u2", "sent")]
    assert [one.user_id for one in kept.sent] == ["u2"]


async def test_what_came_due_while_it_read_waits_for_what_was_said_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = tmp_path / "deliveries.yml", Topics()
    path.write_text(FILE + QUIET)
    kept.alerts = [alert("u1", "a1"), alert("u2", "a2")]
    async with running(kept, path, monkeypatch):
        await kept.until(lambda: kept.committed == 2)
        due_at = kept.log[0].until
        assert due_at is not None
        kept.log[1] = msgspec.structs.replace(kept.log[1], until=due_at + timedelta(minutes=1))
    kept.now = due_at
    kept.alerts += [alert(f"v{number}", f"b{number}", state="cleared") for number in range(20)]
    async with running(kept, path, monkeypatch) as worker:
        await kept.until(lambda: bool(worker._ends))
        kept.now += timedelta(minutes=1)
        kept.alerts += [alert("u2", "c2", state="cleared")]
        await kept.until(lambda: len(kept.log) == 4)
    assert kept.statuses()[2:] == [("u1", "sent"), ("u2", "expired")]


async def test_what_waits_does_not_wait_for_the_end_of_a_topic_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = tmp_path / "deliveries.yml", Topics()
    path.write_text(FILE + QUIET)
    kept.alerts = [alert("u1", "a1")]
    async with running(kept, path, monkeypatch):
        await kept.until(lambda: kept.committed == 1)
    kept.now += timedelta(hours=2)
    kept.alerts += [alert(f"v{number}", f"b{number}", state="cleared") for number in range(20)]
    async with running(kept, path, monkeypatch) as worker:
        await kept.until(lambda: bool(worker._ends))
        kept.alerts, kept.consumer.at = [], 0  # made again, and read from its beginning
        kept.on_made_again()
        await kept.until(lambda: bool(kept.sent))
    assert kept.statuses() == [("u1", "deferred"), ("u1", "sent")]


def put(path: Path, text: str) -> None:
    """At once: a file that is looked at while it is written has said something else for that moment."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


async def test_a_changed_file_is_taken_while_it_runs_and_one_that_cannot_be_used_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = tmp_path / "deliveries.yml", Topics()

    async def said(*alerts: ChurnAlert) -> list[tuple[str, str]]:
        """What became of them."""
        before, kept.alerts = len(kept.log), [*kept.alerts, *alerts]
        await kept.until(lambda: kept.committed == len(kept.alerts))
        return kept.statuses()[before:]

    async def taken(text: str) -> None:
        reads = kept.reads
        put(path, text)
        await kept.until(lambda: kept.reads > reads)

    with capture_logs() as logs:
        async with running(kept, path, monkeypatch):
            await taken(FILE + SAVE)
            assert await said(alert("u1", "a1")) == [("u1", "sent")]
            put(path, FILE + "deliveries: [{name: save, channel: fax, about: churn}]")
            await kept.until(lambda: any(one["event"] == "deliveries refused" for one in logs))
            assert await said(alert("u2", "a2")) == [("u2", "sent")], "what the file said before stays"
            await taken(FILE + SAVE + "caps: [{messages: 1, days: 7}]\nsuppress: [shop/u3]\n")
            assert await said(alert("u2", "b2"), alert("u3", "a3"), alert("u4", "a4")) == [
                ("u2", "capped"), ("u3", "suppressed"), ("u4", "sent")]
            await taken(FILE + QUIET)
            assert await said(alert("u5", "a5"), alert("u6", "a6")) == [("u5", "deferred"), ("u6", "deferred")]
            await taken(FILE)
            assert await said(alert("u7", "a7")) == [], "the campaign is stopped"
            await taken(FILE + SAVE + "suppress: [shop/u6]\n")
            kept.now += timedelta(hours=1)
            await kept.until(lambda: len(kept.log) == 9)
            assert sorted(kept.statuses()[7:]) == [("u5", "sent"), ("u6", "suppressed")], "what waited was not lost"
            await taken(FILE + QUIET)
            kept.now -= timedelta(hours=1)
            assert await said(alert("u8", "a8")) == [("u8", "deferred")]
            path.unlink()
            await kept.until(lambda: logs[-1]["event"] == "nothing to deliver yet")
            path.write_text(FILE)
            kept.now += timedelta(hours=1)
            await kept.until(lambda: kept.statuses()[-1] == ("u8", "failed"))
    (refused,) = (one for one in logs if one["event"] == "deliveries refused")
    assert "names channel 'fax'" in refused["why"] and kept.log[-1].error == "there is no such delivery any more"


async def test_who_is_suppressed_is_so_under_every_pseudonym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (SecretStr(letter * 32) for letter in "on")
    path, kept = tmp_path / "deliveries.yml", Topics()
    path.write_text(FILE + SAVE + "suppress: [shop/u1, other/u2]\n")
    privacy = Privacy(pseudonym_keys=(new, old))
    names = [*Pseudonyms(privacy).names_of("shop", "u1"), *Pseudonyms(privacy).names_of("shop", "u2")]
    kept.alerts = [alert(name, f"a{number}") for number, name in enumerate(names)]
    async with running(kept, path, monkeypatch, privacy):
        await kept.until(lambda: kept.committed == len(names))
    assert len(set(names)) == 6 and [status for _, status in kept.statuses()] == ["suppressed"] * 3 + ["sent"] * 3


async def test_of_what_comes_at_once_on_several_topics_high_priority_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, save = Topics(), Delivery(name="save", channel="crm", about="churn", priority="high")
    monkeypatch.setattr(producing, "create_producer", lambda _: Consumer(kept))
    worker = Worker(Settings(_env_file=None), lambda: None)
    consumer: Any = OnePoll(kept)
    stopped = Bench(TEA, save)

    async def last(channel: object, message: Message) -> None:
        stopped.made.stopping.set()

    stopped.made.send = last
    await worker._turn(consumer, stopped.made)
    assert [one.delivery for one in stopped.logged] == ["save"] and kept.committed == 0, "not all was handled"
    bench = Bench(TEA, save, caps=(Cap(messages=1, days=7),))
    await worker._turn(consumer, bench.made)
    assert [(one.delivery, one.status) for one in bench.logged] == [("save", "sent"), ("again", "capped")]
    assert kept.committed == consumer.at
