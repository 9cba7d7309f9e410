"""`python -m workers.insights`: what people think, from events to opinions, satisfaction by item and brand, and alerts. The
protocol is numbered in `stream/insights.py`. One is enough; more share the partitions of reading (groups `<prefix>.insights`
and `<prefix>.satisfaction`), and each reads the states anew when partitions come to it.

SIGTERM: the batches under way are finished and committed; what waits for a server that is away is read again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter as Counts
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import msgspec
import structlog
import uvloop
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from prometheus_client import Counter, Gauge, Histogram

from schemas import topics
from schemas.catalog import Item
from schemas.events import ms
from schemas.opinions import Opinion, SatisfactionAlert
from schemas.topics import Topic
from schemas.unreadable import UNREADABLE
from stream.adapters.health.listening import answered
from stream.adapters.health.metrics_port import served
from stream.adapters.kafka import kafka_clients, producing
from stream.adapters.kafka.erasures import Erasures
from stream.adapters.kafka.global_reader import GlobalReader, read_whole, readable
from stream.adapters.kafka.producing import Message
from stream.adapters.models.opinion_reader import OpinionReader
from stream.core.opinions.satisfaction import Place
from stream.core.statistics.changes import Policy
from stream.endings import on_signal, until
from stream.http.measured import SECONDS
from stream.insights import BATCH_RECORDS_MAX, Heard, Listener, Tracker, opinion
from stream.logs import configure
from stream.outbox import cloud_event
from stream.settings import Settings, load
from stream.tracing import port as tracing
from stream.tracing.port import Whose, itself

log = structlog.get_logger()
SOURCE = "clickwake/insights"
POLL_MS = 500
COMMIT_EVERY_S = 1.0  # of events among which nobody said anything
LOOKUP_MS = 5_000  # for an opinion that is quoted
POLL_INTERVAL_MS_MAX = 24 * 3_600_000  # a backlog of long texts takes its time; heartbeats go on

OUTCOMES = Counter("clickwake_opinions", "events that may be opinions, and opinions, by what became of them", ["outcome"])
ALERTS = Counter("clickwake_satisfaction_alerts", "alerts about items and brands", ["about", "state"])
LAG = Gauge("clickwake_insights_lag", "events that are not looked at, opinions that are not folded", ["topic"])
OUTCOMES.labels("undecodable")  # 0 from the start, so that the first one is an increase
READ_SECONDS = Histogram("clickwake_opinion_seconds", "Reading what one opinion says, as the mean of those read with it",
                         buckets=SECONDS)  # fmt: skip
DELAY_SECONDS = Histogram("clickwake_opinion_delay_seconds", "From the broker's having an event to its opinion's being "
                          "acknowledged", buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3_600))  # fmt: skip
BATCH_SECONDS = Histogram("clickwake_insights_batch_seconds", "Steps 3 to 5 of events with opinions among them, 2 to 5 of "
                          "opinions", ["topic"], buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60))  # fmt: skip
MODEL = Gauge("clickwake_satisfaction_model_info", "1 for each satisfaction model in use", ["model_version"])

_item, _opinion = msgspec.json.Decoder(Item), msgspec.json.Decoder(Opinion)


class Assigned(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Counts assignments, and prepares for each. aiokafka fetches meanwhile: whoever has records waits for `prepared`."""

    def __init__(self, prepare: Callable[[], Awaitable[None]]) -> None:
        self.generation, self._prepare = 0, prepare
        self._done = asyncio.Event()
        self._failure: Exception | None = None

    async def prepared(self) -> int:
        """The generation, once all is prepared for it; raises what preparing failed with, which aiokafka would only log."""
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        return self.generation

    async def on_partitions_revoked(self, revoked: list[TopicPartition]) -> None:
        self.generation += 1
        self._done.clear()

    async def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        try:
            if assigned:
                await self._prepare()
        except Exception as error:
            self._failure = error
        self._done.set()


class Worker:
    """Both loops, until `stop` is set; raises what cannot be gone on with."""

    def __init__(self, settings: Settings, on_ready: Callable[[], object]) -> None:
        self.settings, self._on_ready = settings, on_ready
        self.stop, self.ready = asyncio.Event(), asyncio.Event()
        self.producer = producing.create_producer(settings)
        self.erasures = Erasures(settings)
        self.brands: dict[bytes, str] = {}
        self.catalog = GlobalReader(settings, self._name(topics.ITEMS), self._on_items)
        self.listener = Listener(settings.personalize.skew_max_ms, self.erasures,
                                 lambda tenant, item: self.brands.get(f"{tenant}/{item}".encode(), ""))  # fmt: skip
        policy = Policy(opinions_per_false_alarm=settings.insights.opinions_per_false_alarm)
        self.tracker = Tracker(policy, self.erasures, self._look_up)
        self.reader = OpinionReader(settings)
        self.tracing = tracing.start(settings, "insights")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onnx")  # inline calls would stall heartbeats
        self._looked_at = 0.0

    async def run(self) -> None:
        try:
            await kafka_clients.wait_for_kafka(self.settings)
            await self.producer.start()
            self.erasures.start()
            self.catalog.start()
            await asyncio.gather(self.erasures.ready(), self.catalog.ready())
            async with asyncio.TaskGroup() as group:
                group.create_task(self._hear())
                group.create_task(self._track())
        finally:
            await self.catalog.stop()
            await self.erasures.stop()
            await kafka_clients.stopped(self.producer)
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _hear(self) -> None:
        """Events to opinions."""
        consumer, group = self._consumer("insights"), self._group("insights")
        consumer.subscribe([self._name(topics.EVENTS)])
        committed_at, unsaid = time.monotonic(), False
        try:
            await consumer.start()
            async with answered(self.settings, consumer, group):
                while not self.stop.is_set():
                    self.erasures.check()
                    self.catalog.check()
                    await self._refresh()
                    fetched = await consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_RECORDS_MAX)
                    heard = [one for records in fetched.values() for one in self.listener.hear(records)]
                    await _say_lag(consumer, topics.EVENTS, fetched)
                    _count(self.listener.outcomes)
                    unsaid = unsaid or bool(fetched)
                    if heard:
                        with self.tracing.batch(group, [one.record for one in heard]), _timed(topics.EVENTS):
                            await self._read(heard)
                            await _commit(consumer)
                    elif unsaid and time.monotonic() - committed_at > COMMIT_EVERY_S:
                        await _commit(consumer)
                    else:
                        continue
                    committed_at, unsaid = time.monotonic(), False
        finally:
            await kafka_clients.stopped(consumer)

    async def _track(self) -> None:
        """Opinions to states and alerts."""
        consumer, group, assigned = self._consumer("satisfaction"), self._group("satisfaction"), Assigned(self._read_states)
        consumer.subscribe([self._name(topics.OPINIONS)], listener=assigned)
        try:
            await consumer.start()
            async with answered(self.settings, consumer, group):
                while not self.stop.is_set():
                    fetched = await consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_RECORDS_MAX)
                    await _say_lag(consumer, topics.OPINIONS, fetched)
                    if not fetched:
                        continue
                    generation = assigned.generation
                    if generation != await assigned.prepared():  # what was read is read again from the last commit
                        continue
                    opinions = [one for records in fetched.values() for one in records]
                    with self.tracing.batch(group, opinions), _timed(topics.OPINIONS):
                        folded = await self.tracker.fold(opinions)
                        await self._answer(topics.SATISFACTION_ALERTS, [
                            (_output("satisfaction-alert", one.alert_id, key, one, one.as_of_ts), cause)
                            for key, one, cause in folded.alerts])  # fmt: skip
                        if generation != assigned.generation:
                            continue
                        await self._send(topics.SATISFACTION, [(key, value, []) for key, value in folded.states.items()])
                        self.tracker.keep(folded)
                        await _commit(consumer)
                    _count(self.tracker.outcomes)
                    for _, alert, _ in folded.alerts:
                        ALERTS.labels(alert.about, alert.state).inc()
                        log.info("satisfaction changed", about=alert.about, name=alert.name, tenant=alert.tenant,
                                 state=alert.state, reason=alert.reason, before=alert.before, after=alert.after)  # fmt: skip
        finally:
            await kafka_clients.stopped(consumer)

    async def _read_states(self) -> None:
        """Before anything is folded: all states as they were written last, perhaps by somebody else."""
        self.tracker.states.clear()
        await read_whole(self.settings, self._name(topics.SATISFACTION), self.tracker.load)
        log.info("insights worker ready", known=len(self.tracker.states), models=self.reader.versions)
        self.ready.set()
        self._on_ready()

    async def _refresh(self) -> None:
        """Newer models, now and then."""
        now = time.monotonic()
        if self._looked_at and now - self._looked_at < self.settings.insights.models_every_s:
            return
        self._looked_at = now
        await asyncio.get_running_loop().run_in_executor(self._thread, self.reader.refresh)
        MODEL.clear()
        for version in self.reader.versions:
            MODEL.labels(version).set(1)

    async def _look_up(self, places: Sequence[Place]) -> list[Opinion]:
        """Opinions by where they are; those that retention took, or that are others' by now, are left out."""
        name, found = self._name(topics.OPINIONS), []
        async with kafka_clients.reader(self.settings) as consumer:
            for place in places:
                tp = TopicPartition(name, place.partition)
                consumer.assign([tp])
                consumer.seek(tp, place.offset)
                fetched = await consumer.getmany(tp, timeout_ms=LOOKUP_MS, max_records=1)
                there = [record for record in fetched.get(tp, ()) if record.offset == place.offset]
                opinions = readable(there, lambda record: _opinion.decode(record.value or b""))
                found += [one for one in opinions if one.opinion_id == place.opinion_id]
        return found

    async def _read(self, heard: Sequence[Heard]) -> None:
        """Steps 3 and 4 of events. An opinion has the key of its brand, and answers an event, which has its user's."""
        said, began = [one.said for one in heard], time.perf_counter()
        reads = await asyncio.get_running_loop().run_in_executor(self._thread, self.reader.read, said)
        each_s = (time.perf_counter() - began) / len(said)
        answers = []
        for one, read in zip(heard, reads, strict=True):
            key, found = opinion(one, read)
            answers.append((_output("opinion", found.opinion_id, key, found, found.said_at), one.record.key))
        await self._answer(topics.OPINIONS, answers)
        now_ms = time.time() * 1000
        for one in heard:
            READ_SECONDS.observe(each_s)
            DELAY_SECONDS.observe(max(0.0, now_ms - one.record.timestamp) / 1000)

    async def _answer(self, topic: Topic, answers: Sequence[tuple[Message, bytes | None]]) -> None:
        """Outputs, each with the key of the record that it answers."""
        causes = {message[1]: cause for message, cause in answers}
        await self._send(topic, [message for message, _ in answers], lambda message: causes[message[1]])

    async def _send(self, topic: Topic, messages: Sequence[Message], whose: Whose = itself) -> None:
        if not messages:
            return
        name = self._name(topic)
        partitions = len(await self.producer.partitions_for(name))
        await producing.send_keyed(self.producer, name, messages, partitions, tracing=self.tracing, whose=whose)

    def _consumer(self, group: str) -> AIOKafkaConsumer:
        session_ms = self.settings.kafka.session_timeout_ms
        return AIOKafkaConsumer(
            **kafka_clients.aiokafka_arguments(self.settings), group_id=self._group(group),
            enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed",
            session_timeout_ms=session_ms, heartbeat_interval_ms=session_ms // 10, max_poll_interval_ms=POLL_INTERVAL_MS_MAX,
        )  # fmt: skip

    def _on_items(self, records: list[Any]) -> None:
        for record in records:
            try:
                item = None if record.value is None else _item.decode(record.value)
            except UNREADABLE:  # the catalog worker writes its dead letter
                continue
            if item is not None and item.brand:
                self.brands[record.key] = item.brand
            else:
                self.brands.pop(record.key, None)

    def _group(self, name: str) -> str:
        return f"{self.settings.kafka.topic_prefix}.{name}"

    def _name(self, topic: Topic) -> str:
        return topic.name(self.settings.kafka.topic_prefix)


def _output(kind: str, ident: str, key: bytes, value: Opinion | SatisfactionAlert, at: datetime) -> Message:
    return key, msgspec.json.encode(value), cloud_event(kind, ident, key.decode(), ms(at), SOURCE)


def _timed(topic: Topic) -> AbstractContextManager[object]:
    return BATCH_SECONDS.labels(topic.entity).time()


async def _commit(consumer: AIOKafkaConsumer) -> None:
    try:
        await consumer.commit()
    except (KafkaError, IllegalStateError) as error:  # what was read again says the same; the next commit makes up for it
        log.warning("not committed", why=repr(error))


async def _say_lag(consumer: AIOKafkaConsumer, topic: Topic, in_hand: Mapping[TopicPartition, Sequence[Any]]) -> None:
    behind = await kafka_clients.unfetched(consumer)
    LAG.labels(topic.entity).set(behind.total() + sum(map(len, in_hand.values())))


def _count(outcomes: Counts[str]) -> None:
    for outcome, count in outcomes.items():
        OUTCOMES.labels(outcome).inc(count)
    outcomes.clear()


async def run(settings: Settings, on_ready: Callable[[], object]) -> None:
    """Until SIGTERM or SIGINT."""
    worker = Worker(settings, on_ready)
    on_signal(worker.stop)
    await until(worker.stop, worker.run, worker.ready)
    log.info("insights worker ended")


def main() -> int:
    """Exit code: 0 after a signal."""
    settings = load()
    configure(settings)
    with served(settings, f"insights-{os.getpid()}", settings.insights.metrics_port) as run_file:
        uvloop.run(run(settings, run_file.say))
    return 0


if __name__ == "__main__":
    sys.exit(main())
