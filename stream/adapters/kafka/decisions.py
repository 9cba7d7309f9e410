"""Decisions as served, to their topic. Answering never waits for it: what the broker does not take is sent again,
ATTEMPTS_MAX times while it answers; what it has not taken then, and what is more than QUEUE_BYTES_MAX behind it, is
counted as lost, and logged when it is served again. A batch of which only the acknowledgement was lost is there twice, with
the same ids, by which readers tell repeats apart.
"""

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
from stream.adapters.kafka import kafka_clients, producing
from stream.adapters.kafka.producing import Message, SendFailed
from stream.outbox import cloud_event
from stream.settings import Settings
from stream.tracing.port import UNTRACED, Tracing

log = structlog.get_logger()
QUEUE_BYTES_MAX = 64 * 1_048_576  # so much waits only while the broker is away; a decision has 2 KB, a long ranking 100
AT_ONCE_MAX = 500
ATTEMPTS_MAX = 5  # of a batch: one that the broker refuses for what is in it must not hold up those behind it for ever
BACKOFF_S_MAX = 5.0
KNOWN_MAX = 100_000  # ids of decisions that were logged; the same decision is served many times
SEND_TIMEOUT_S = 30.0
SOURCE = "clickwake/api"


class DecisionLog:
    """`note` from the event loop; `run` in a task sends what was noted."""

    def __init__(self, settings: Settings, tracing: Tracing = UNTRACED) -> None:
        self._settings, self._tracing = settings, tracing
        self._topic = topics.DECISIONS.name(settings.kafka.topic_prefix)
        self._queue: asyncio.Queue[tuple[str, int, Message]] = asyncio.Queue()  # the decision's id, partition, record
        self._queued_bytes = 0
        self._unsent: list[tuple[str, int, Message]] = []  # the batch under way, until the broker has it
        self._attempts = 0  # at it
        self._known: OrderedDict[str, None] = OrderedDict()
        self.sent = self.lost = 0

    def note(self, decision: Decision) -> None:
        """Log a decision the first time it is served from here."""
        ident = decision.recommendation_id
        if ident in self._known:
            self._known.move_to_end(ident)
            return
        value = msgspec.json.encode(decision)
        if self._queued_bytes + len(value) > QUEUE_BYTES_MAX:
            self.lost += 1
            return
        user = key(decision.tenant, decision.user_id)
        headers = [*cloud_event("decision", ident, user.decode(), ms(decision.served_at), SOURCE), *self._tracing.current()]
        partition = kafka_clients.partition_of(user, self._settings.kafka.partitions)
        self._queue.put_nowait((ident, partition, (user, value, headers)))
        self._queued_bytes += len(value)
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
                    self._unsent = self._unsent or await self._some()
                    self._attempts += 1
                    await self._send(producer, self._unsent)
                    self.sent += len(self._settled())
            except (SendFailed, KafkaError, OSError) as error:
                if self._attempts >= ATTEMPTS_MAX:
                    for ident, _, _ in self._settled():
                        self.lost += 1
                        self._known.pop(ident, None)
                log.warning("decisions not logged", why=str(error), waiting=len(self._unsent) + self._queue.qsize(),
                            lost=self.lost, next="those that wait are sent over a new connection")  # fmt: skip
            finally:
                await kafka_clients.stopped(producer)
            await asyncio.sleep(min(BACKOFF_S_MAX, 0.25 * 2**self._attempts))  # a backoff between two connections

    def _settled(self) -> list[tuple[str, int, Message]]:
        """The batch under way, which is over."""
        settled, self._unsent, self._attempts = self._unsent, [], 0
        for _ in settled:
            self._queue.task_done()
        return settled

    async def drain(self) -> None:
        """Return once all that was noted is sent: at a clean stop."""
        await self._queue.join()

    async def _some(self) -> list[tuple[str, int, Message]]:
        some = [await self._queue.get()]
        while len(some) < AT_ONCE_MAX and not self._queue.empty():
            some.append(self._queue.get_nowait())
        self._queued_bytes -= sum(len(value or b"") for _, _, (_, value, _) in some)
        return some

    async def _send(self, producer: AIOKafkaProducer, some: list[tuple[str, int, Message]]) -> None:
        by_partition: dict[int, list[Message]] = {}
        for _, partition, record in some:
            by_partition.setdefault(partition, []).append(record)
        await producing.send_batches(producer, self._topic, by_partition, timeout_s=SEND_TIMEOUT_S)
