"""`python -m workers.offers`: learns from decisions about offers and from what people did about them. One is enough; a
second one takes over from the first, which ends.

1. Fetch some of the events, at most `offers.interval_ms` long.
2. Read the decisions to the end they have now: what an event is about is known, unless it was logged after the event.
3. Fold decisions, then events (`stream.core.offers.offer_ledger`); what is over by the events' clocks is forgotten.
4. What has changed, and the offsets it stands for, go to the offers topic in one transaction.

A crash before the end of 4 leaves nothing of the turn: it is read again from the offsets of the one before, and folded to
the same. There is no other state than that topic; who reads it sees whole turns only (`read_committed`). Starting fences off
a worker that was thought dead. Of a topic that was made again everything is read; where that is the offers topic, all is
learned anew from what the others still have.

Metrics are on a loopback port, written with the process id, and whether it is ready, to `<home>/run/offers.json`.
SIGTERM: the turn is finished; one that waits for a broker that is away is cut short, and leaves nothing either.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced
from prometheus_client import Counter, Gauge, Histogram

from schemas import topics
from schemas.erasure import Erasure
from schemas.events import key
from schemas.offers import POSITIONS_KEY, Positions
from schemas.outputs import Decision
from schemas.topics import Topic
from schemas.unreadable import UNREADABLE
from stream.adapters.health import metrics_port
from stream.adapters.health.listening import TOPICS_EVERY_S, Incarnations, told
from stream.adapters.kafka import kafka_clients, producing
from stream.adapters.kafka.erasures import Erasures
from stream.adapters.kafka.global_reader import read_whole, readable
from stream.core.decode import Ok, decode
from stream.core.offers.offer_ledger import BITS, ID_PREFIX, Ledger, revenue_micros
from stream.endings import on_signal, until
from stream.logs import configure
from stream.settings import Settings, load
from stream.tracing import port as tracing

log = structlog.get_logger()
RECORDS_MAX = 5_000  # of events in one turn
POSITIONS_S = 5.0  # offsets alone are written this often: what is read again of events about nothing here is cheap
ENDS_S_MAX = 5.0  # for the broker to say where a topic ends; one that is away is asked again
BATCH_BYTES_MAX = 2_000_000  # a placement of 512 features has 1 MB
MARK = f'"{ID_PREFIX}'.encode()  # what an event about an offer holds; the others are not decoded

RECORDS = Counter("clickwake_offers_records", "Records read, by topic and what they were", ["topic", "what"])
SECONDS = Histogram("clickwake_offers_transaction_seconds", "Publishing what has changed, until it is committed")
USERS = Gauge("clickwake_offers_users", "Users of whom a decision is open or a cap is counted")
FEATURES = Gauge("clickwake_offers_features", "Features of a placement's model", ["tenant", "placement"])
LEFT_OUT = Gauge("clickwake_offers_features_left_out", "Times a feature had no room", ["tenant", "placement"])

_decision = msgspec.json.Decoder(Decision)
_positions = msgspec.msgpack.Decoder(Positions)
_encode = msgspec.msgpack.Encoder().encode


class TakenOver(RuntimeError):
    """Another worker writes now."""


class Worker:
    """Reads, folds and publishes until `stop` is set."""

    def __init__(self, settings: Settings, on_ready: Callable[[], object] = lambda: None) -> None:
        self.settings, self._on_ready = settings, on_ready
        self.stop, self.ready = asyncio.Event(), asyncio.Event()
        self.ledger, self.positions = self._nothing_learned(), Positions()
        self.erasures = Erasures(settings, self._on_erasure)
        self._named: set[bytes] = set()  # users who are to be forgotten
        self._written_at, self._looked_at = 0.0, -TOPICS_EVERY_S
        self.tracing = tracing.start(settings, "offers")

    async def run(self) -> None:
        """Raises what cannot be gone on with."""
        settings, prefix = self.settings, self.settings.kafka.topic_prefix
        await kafka_clients.wait_for_kafka(settings)
        producer = producing.create_producer(settings, f"{prefix}.offers", BATCH_BYTES_MAX)
        try:
            await producer.start()  # from here on no other worker writes
            self.erasures.start()
            await asyncio.gather(self.erasures.ready(), self._restore())
            self.ledger.forget(list(self.ledger.users), self.erasures.covers)
            wait_ms = settings.offers.interval_ms
            async with (kafka_clients.reader(settings, fetch_max_wait_ms=wait_ms) as events,
                        kafka_clients.reader(settings, fetch_max_wait_ms=wait_ms) as decisions):  # fmt: skip
                read = {topics.EVENTS: events, topics.DECISIONS: decisions}
                await asyncio.gather(*(self._assign(consumer, topic) for topic, consumer in read.items()))
                log.info("offers worker ready", placements=len(self.ledger.placements), users=len(self.ledger.users))
                self.ready.set()
                self._on_ready()
                while not self.stop.is_set():
                    self.erasures.check()
                    await self._look(read)
                    await self._turn(events, decisions, producer)
        finally:
            await asyncio.gather(self.erasures.stop(), kafka_clients.stopped(producer))

    async def _restore(self) -> None:
        """What the topic says, the newest record of each key."""
        newest: dict[bytes | None, Any] = {}

        def note(records: Sequence[Any]) -> None:
            newest.update((record.key, record) for record in records)

        await read_whole(self.settings, topics.OFFERS.name(self.settings.kafka.topic_prefix), note, committed=True)
        there = {name: record for name, record in newest.items() if name is not None and record.value is not None}
        if (found := there.pop(POSITIONS_KEY, None)) is not None:
            self.positions = _positions.decode(found.value)  # raises: without them everything would be counted again
        readable(there.values(), lambda one: self.ledger.restore(one.key, one.value))

    async def _assign(self, consumer: AIOKafkaConsumer, topic: Topic) -> None:
        tps = [TopicPartition(topic.name(self.settings.kafka.topic_prefix), number)
               for number in range(self.settings.kafka.partitions)]  # fmt: skip
        consumer.assign(tps)
        for tp in tps:
            offset = self.positions.offsets.get(topic.entity, {}).get(tp.partition)
            if offset is not None:
                consumer.seek(tp, offset)

    async def _look(self, read: Mapping[Topic, AIOKafkaConsumer]) -> None:
        """At times, whether the topics are those that the positions are of. Without an answer, the next time."""
        if time.monotonic() - self._looked_at < TOPICS_EVERY_S:
            return
        self._looked_at = time.monotonic()
        names = {topic.name(self.settings.kafka.topic_prefix): topic for topic in (*read, topics.OFFERS)}
        ids = await told(partial(kafka_clients.topic_ids, self.settings, names)) or {}
        again = Incarnations(self.positions.topic_ids).made_again({names[name].entity: one for name, one in ids.items()})
        if topics.OFFERS.entity in again:
            log.error("the offers topic was made again, its id is another; what it said is learned anew from the log")
            self.ledger, self.positions = self._nothing_learned(), Positions(topic_ids=self.positions.topic_ids)
            again.update(topic.entity for topic in read)
        for topic, consumer in read.items():
            if topic.entity in again:
                log.error("read from the beginning, since a topic was made again", topic=topic.entity)
                self.positions.offsets.pop(topic.entity, None)
                for tp in consumer.assignment():
                    consumer.seek(tp, 0)

    def _nothing_learned(self) -> Ledger:
        return Ledger(partial(kafka_clients.partition_of, partitions=self.settings.kafka.partitions))

    async def _turn(self, events: AIOKafkaConsumer, decisions: AIOKafkaConsumer, producer: AIOKafkaProducer) -> None:
        """Steps 1 to 4 once."""
        fetched = await events.getmany(timeout_ms=self.settings.offers.interval_ms, max_records=RECORDS_MAX)
        decided: deque[Any] = deque(maxlen=RECORDS_MAX)
        read = await self._decide(decisions, decided)
        reactions = (one for records in fetched.values() for one in records if _about_an_offer(one))
        with self.tracing.batch(None, chain(decided, reactions)):
            for tp, records in fetched.items():
                self._react(tp.partition, records)
            if self._named:
                self.ledger.forget(self._named, self.erasures.covers)
                self._named.clear()
            changed = self.ledger.take_changed()
            if changed or ((fetched or read) and time.monotonic() - self._written_at > POSITIONS_S):
                await self._publish(producer, changed)

    async def _decide(self, consumer: AIOKafkaConsumer, decided: deque[Any]) -> bool:
        """Step 2, and the first half of 3; whether there was anything. `decided`: takes what was about offers."""
        tps = sorted(consumer.assignment())
        ends, read = await self._ends(consumer, tps), False
        while behind := [tp for tp in tps if await consumer.position(tp) < ends[tp]]:
            fetched = await consumer.getmany(*behind, timeout_ms=self.settings.offers.interval_ms)
            for tp, records in fetched.items():
                read = True
                decided.extend(record for record in records if self._one_decision(record))
                self.positions.offsets.setdefault(topics.DECISIONS.entity, {})[tp.partition] = records[-1].offset + 1
        return read

    async def _ends(self, consumer: AIOKafkaConsumer, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Where partitions end, however long the broker is away: reactions wait until it is known what was decided."""
        while True:
            try:
                found: dict[TopicPartition, int] = await asyncio.wait_for(consumer.end_offsets(tps), ENDS_S_MAX)
            except (KafkaError, TimeoutError) as error:
                if isinstance(error, KafkaError) and not error.retriable:
                    raise
                log.warning("reactions wait", why=f"where the decisions end is not known: {error!r}")
            else:
                return found

    def _one_decision(self, record: Any) -> bool:
        """Whether it is learned from."""
        try:
            decision = None if record.value is None else _decision.decode(record.value)
        except UNREADABLE as error:  # the sink writes its dead letter
            log.error("decision not understood", partition=record.partition, offset=record.offset, why=str(error))
            RECORDS.labels("decisions", "not understood").inc()
            return False
        if decision is None or decision.offer is None:
            RECORDS.labels("decisions", "about something else").inc()
            return False
        user = key(decision.tenant, decision.user_id)
        if self.erasures.covers(user, record.timestamp):
            RECORDS.labels("decisions", "of an erased user").inc()
            return False
        self.ledger.decide(user, decision.recommendation_id, decision.offer, record.timestamp)
        RECORDS.labels("decisions", "about offers").inc()
        return True

    def _react(self, partition: int, records: Sequence[Any]) -> None:
        """The second half of step 3."""
        for record in records:
            if _about_an_offer(record):
                self._one_event(record)
        RECORDS.labels("events", "read").inc(len(records))
        self.positions.offsets.setdefault(topics.EVENTS.entity, {})[partition] = records[-1].offset + 1
        self.positions.clocks_ms[partition] = max(self.positions.clocks_ms.get(partition, 0), records[-1].timestamp)
        self.ledger.tick(partition, self.positions.clocks_ms[partition])

    def _one_event(self, record: Any) -> None:
        decoded = decode(record.value, record.timestamp, self.settings.personalize.skew_max_ms)
        if not isinstance(decoded, Ok):  # personalize says why
            return
        event = decoded.event
        ident, bit = event.properties.recommendation_id or "", BITS.get(event.event or "")
        user = key(event.tenant, event.user)
        if bit is None or not ident.startswith(ID_PREFIX) or self.erasures.covers(user, decoded.ts_ms):
            return
        self.ledger.react(user, ident, bit, record.timestamp, revenue_micros(event.properties))
        RECORDS.labels("events", event.event).inc()

    async def _publish(self, producer: AIOKafkaProducer, changed: Mapping[bytes, bytes | None]) -> None:
        """Step 4. Raises TakenOver where another worker has begun."""
        rows: list[producing.Message] = [(record_key, value, ()) for record_key, value in changed.items()]
        rows.append((POSITIONS_KEY, _encode(self.positions), ()))
        try:
            with SECONDS.time():
                async with producer.transaction():
                    await producing.send_batches(producer, topics.OFFERS.name(self.settings.kafka.topic_prefix), {0: rows})
        except producing.SendFailed as error:
            if isinstance(error.__cause__, ProducerFenced):
                raise TakenOver("another offers worker has begun, and goes on from what this one had published") from error
            raise
        self._written_at = time.monotonic()
        USERS.set(len(self.ledger.users))
        for (tenant, placement), learned in self.ledger.placements.items():
            FEATURES.labels(tenant, placement).set(len(learned.row_of))
            LEFT_OUT.labels(tenant, placement).set(learned.left_out)

    def _on_erasure(self, _: Any, erasure: Erasure) -> None:
        if erasure.user_id is not None:
            self._named |= {key(erasure.tenant, one) for one in (erasure.user_id, *erasure.devices)}


def _about_an_offer(event: Any) -> bool:
    return event.value is not None and MARK in event.value


async def run(settings: Settings, on_ready: Callable[[], object]) -> None:
    """Until SIGTERM or SIGINT."""
    worker = Worker(settings, on_ready)
    on_signal(worker.stop)
    await until(worker.stop, worker.run, worker.ready)
    log.info("offers worker ended")


def main() -> int:
    """Exit code: 0 after a signal, 1 when another worker has taken over."""
    settings = load()
    configure(settings)
    try:
        metrics_port.run(settings, "offers", settings.offers.metrics_port, run)
    except TakenOver as error:
        log.error("ended", why=str(error), next="one is enough: leave the other to it")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
