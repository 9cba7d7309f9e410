"""Decisions as served, to their topic. Answering never waits for it: what the broker does not take in time is counted."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import msgspec
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas import topics
from schemas.events import key, ms
from schemas.outputs import Decision
from stream.adapters import kafka_clients, producing
from stream.adapters.producing import Message, SendFailed
from stream.outbox import cloud_event
from stream.settings import Settings
from stream.tracing.port import UNTRACED, Headers, Tracing

log = structlog.get_logger()
QUEUE_MAX = 20_000  # some 40 MB; more wait only while the broker is away
AT_ONCE_MAX = 500
KNOWN_MAX = 100_000  # ids of decisions that were logged; the same decision is served many times
SEND_TIMEOUT_S = 30.0
SOURCE = "clickwake/api"


class DecisionLog:
    """`note` from the event loop; `run` in a task sends what was noted."""

    def __init__(self, settings: Settings, tracing: Tracing = UNTRACED) -> None:
        self._settings, self._tracing = settings, tracing
        self._topic = topics.DECISIONS.name(settings.kafka.topic_prefix)
        self._queue: asyncio.Queue[tuple[Decision, Headers]] = asyncio.Queue(QUEUE_MAX)
        self._known: OrderedDict[str, None] = OrderedDict()
        self.sent = self.lost = 0

    def note(self, decision: Decision) -> None:
        """Log a decision the first time it is served from here."""
        ident = decision.recommendation_id
        if ident in self._known:
            self._known.move_to_end(ident)
            return
        try:
            self._queue.put_nowait((decision, self._tracing.current()))
        except asyncio.QueueFull:
            self.lost += 1
            return
        self._known[ident] = None
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    async def run(self) -> None:
        """Until cancelled; through outages of the broker."""
        while True:
            await kafka_clients.wait_for_kafka(self._settings)
            producer = producing.create_producer(self._settings)
            try:
                await producer.start()
                while True:
                    await self._send(producer, await self._some())
            except (SendFailed, KafkaError, OSError) as error:
                log.warning("decisions not logged", why=str(error), lost=self.lost, next="a new connection")
            finally:
                await producer.stop()

    async def drain(self) -> None:
        """Return once all that was noted is sent: at a clean stop."""
        await self._queue.join()

    async def _some(self) -> list[tuple[Decision, Headers]]:
        some = [await self._queue.get()]
        while len(some) < AT_ONCE_MAX and not self._queue.empty():
            some.append(self._queue.get_nowait())
        return some

    async def _send(self, producer: AIOKafkaProducer, some: list[tuple[Decision, Headers]]) -> None:
        by_partition: dict[int, list[Message]] = {}
        for one, caused_by in some:
            user = key(one.tenant, one.user_id)
            headers = [*cloud_event("decision", one.recommendation_id, user.decode(), ms(one.served_at), SOURCE), *caused_by]
            partition = kafka_clients.partition_of(user, self._settings.kafka.partitions)
            by_partition.setdefault(partition, []).append((user, msgspec.json.encode(one), headers))
        try:
            await producing.send_batches(producer, self._topic, by_partition, timeout_s=SEND_TIMEOUT_S)
            self.sent += len(some)
        except SendFailed:
            self.lost += len(some)
            raise
        finally:
            for _ in some:
                self._queue.task_done()
