"""`python -m workers.delivery`: alerts, reminders and segment changes to webhooks, mail and files, as the file
`<home>/deliveries.yml` says. One is enough: two would not know of each other's messages, and caps would hold for each alone.
The protocol is numbered in `stream/delivery/deliverer.py`. Without a file it waits for one; one that changes is taken as a
worker that starts anew would take it, with what is known from the log. One that cannot be used changes nothing.

Metrics (`stream/delivery/metrics.py`) are on a loopback port, written with the process id, and whether it is ready, to
`<home>/run/delivery.json`. SIGTERM: the message under way is finished and logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas import topics
from schemas.events import ms
from schemas.opinions import SatisfactionAlert
from schemas.outputs import ChurnAlert, DeliveryRecord, Reminder, SegmentChange
from schemas.unreadable import UNREADABLE
from stream.adapters.health import metrics_port
from stream.adapters.health.listening import answered
from stream.adapters.kafka import kafka_clients, producing
from stream.adapters.kafka.erasures import Erasures
from stream.adapters.kafka.global_reader import read_whole, readable
from stream.adapters.kafka.producing import Message
from stream.adapters.kafka.refusals import AdsRefusals
from stream.adapters.watched import Watched
from stream.delivery import channels, metrics
from stream.delivery.deliverer import Deliverer
from stream.delivery.rules import Channel, DeliveryFile, load
from stream.delivery.said import Said
from stream.endings import on_signal, pause, until
from stream.logs import configure
from stream.outbox import cloud_event
from stream.pseudonyms import Pseudonyms
from stream.settings import Settings
from stream.settings import load as load_settings
from stream.tracing import port as tracing

log = structlog.get_logger()
SOURCE = "clickwake/delivery"
FILE_POLL_S = 5.0
ENDS_S_MAX = 2.0  # for the broker to say where its topics end; one that is away is asked again
PATIENCE_S = 9.0  # for a message that is under way; one that is cut short is sent again under its id

_alert, _change = msgspec.json.Decoder(ChurnAlert), msgspec.json.Decoder(SegmentChange)
_reminder, _satisfaction = msgspec.json.Decoder(Reminder), msgspec.json.Decoder(SatisfactionAlert)
_record = msgspec.json.Decoder(DeliveryRecord)


def _now() -> datetime:
    return datetime.now(UTC)


class Worker:
    """Reads, delivers, logs and commits, until `stop` is set."""

    def __init__(self, settings: Settings, on_ready: Callable[[], object]) -> None:
        self.settings, self.stop, self._on_ready = settings, asyncio.Event(), on_ready
        prefix = settings.kafka.topic_prefix
        self.log_topic = topics.DELIVERIES.name(prefix)
        self.inputs: dict[str, msgspec.json.Decoder[Any]] = {
            topics.CHURN_ALERTS.name(prefix): _alert, topics.SEGMENT_CHANGES.name(prefix): _change,
            topics.REMINDERS.name(prefix): _reminder, topics.SATISFACTION_ALERTS.name(prefix): _satisfaction,
        }  # fmt: skip
        self.producer = producing.create_producer(settings)
        self.tracing = tracing.start(settings, "delivery")
        self.group = f"{prefix}.delivery"
        names = Pseudonyms(settings.privacy).names_of
        self._file: Watched[DeliveryFile | None] = Watched(
            settings.deliveries_file, lambda path: load(path).under(names), None, "deliveries")  # fmt: skip
        self._ends: dict[TopicPartition, int] = {}  # of the inputs, while what came before them is not handled
        self._ends_at = _now()

    async def run(self) -> None:
        """Raises what cannot be gone on with."""
        file = await self._told()
        if file is None:
            return
        await kafka_clients.wait_for_kafka(self.settings)
        erasures, refusals = Erasures(self.settings), AdsRefusals(self.settings)
        deliver_by = partial(Deliverer, erasures=erasures, refusals=refusals, write=self._write, now=_now,
                             send=self._deliver, stopping=self.stop)  # fmt: skip
        consumer = AIOKafkaConsumer(
            *self.inputs, **kafka_clients.aiokafka_arguments(self.settings), enable_auto_commit=False,
            group_id=self.group, auto_offset_reset="earliest",
            max_poll_interval_ms=24 * 3_600_000,
        )  # fmt: skip
        try:
            await self.producer.start()
            for reader in (erasures, refusals):
                reader.start()
            deliverer = deliver_by(file)
            await asyncio.gather(erasures.ready(), refusals.ready(), self._remind(deliverer))
            await consumer.start()
            log.info("delivery worker ready")
            self._on_ready()
            async with answered(self.settings, consumer, self.group, self._ends_gone):
                while (file := await self._told()) is not None:
                    erasures.check()
                    refusals.check()
                    if file != deliverer.file:
                        deliverer = deliver_by(file)
                        await self._remind(deliverer)
                    await self._turn(consumer, deliverer)
        finally:
            await kafka_clients.stopped(consumer)
            for reader in (refusals, erasures):
                await reader.stop()
            await kafka_clients.stopped(self.producer)

    async def _told(self) -> DeliveryFile | None:
        """What the file says now; waits for one. None once `stop` is set."""
        self._file.look()
        while self._file.value is None and not self.stop.is_set():
            log.info("nothing to deliver yet", file=str(self._file.path), next="write it, or mend it: docs/deliveries.md")
            await pause(self.stop, FILE_POLL_S)
            self._file.look()
        return None if self.stop.is_set() else self._file.value

    async def _remind(self, deliverer: Deliverer) -> None:
        """Of everything that the log says; from then on the log is its own."""
        await read_whole(self.settings, self.log_topic, partial(_note, deliverer))

    async def _turn(self, consumer: AIOKafkaConsumer, deliverer: Deliverer) -> None:
        """Steps 1 to 5 once."""
        if deliverer.wait_s() == 0 and (by := await self._handled_until(consumer)) is not None:
            await deliverer.take_due(by)
        wait_ms = int(1000 * min(0.5, deliverer.wait_s() or 0.5))
        fetched = await consumer.getmany(timeout_ms=wait_ms, max_records=200)
        records = [record for several in fetched.values() for record in several]
        await self._say_lag(consumer, records)
        with self.tracing.batch(self.group, records):  # of all topics together: what is of high priority goes first
            if not await deliverer.take(self._decoded(records)):
                return
        if fetched:
            await self._say_lag(consumer)
            try:
                await consumer.commit()
            except KafkaError as error:  # what was handled is known from the log; the next commit makes up for this one
                log.warning("not committed", why=repr(error))

    async def _handled_until(self, consumer: AIOKafkaConsumer) -> datetime | None:
        """A time before which nothing was put onto the topics that is not handled; None while there is none since it was
        first asked, since a worker that was off has yet to read what ends the cause of what waits."""
        partitions = consumer.assignment()
        try:
            if self._ends.keys() != partitions:
                self._ends_at = _now()
                self._ends = await asyncio.wait_for(consumer.end_offsets(partitions), ENDS_S_MAX)
            behind = [tp for tp, end in self._ends.items() if await consumer.position(tp) < end]
        except (KafkaError, TimeoutError) as error:
            log.warning("what waits waits on", why=f"where the topics end is not known: {error!r}")
            return None
        if behind or not partitions:
            return None
        self._ends = {}
        return self._ends_at

    def _ends_gone(self) -> None:
        """A topic was made again: it ends elsewhere."""
        self._ends = {}

    async def _say_lag(self, consumer: AIOKafkaConsumer, in_hand: Iterable[Any] = ()) -> None:
        """`in_hand`: records that were taken and are not handled."""
        behind = await kafka_clients.unfetched(consumer)
        behind.update(one.topic for one in in_hand)
        for topic in self.inputs:
            metrics.LAG.labels(topic).set(behind[topic])

    def _decoded(self, records: list[Any]) -> list[Said]:
        found: list[Said] = []
        for record in records:
            try:
                if record.value is not None:
                    found.append(self.inputs[record.topic].decode(record.value))
            except UNREADABLE as error:  # the sink writes its dead letter
                log.error("not understood", topic=record.topic, partition=record.partition, offset=record.offset,
                          why=str(error))  # fmt: skip
        return found

    async def _write(self, records: list[DeliveryRecord]) -> None:
        messages: list[Message] = [
            (one.subject.encode(), msgspec.json.encode(one),
             cloud_event("delivery", one.delivery_id, one.subject, ms(one.at), SOURCE)) for one in records]  # fmt: skip
        await producing.send_keyed(self.producer, self.log_topic, messages, self.settings.kafka.partitions,
                                   tracing=self.tracing)  # fmt: skip

    async def _deliver(self, channel: Channel, message: channels.Message) -> None:
        with self.tracing.call(f"deliver {type(channel).__name__.lower()}", message.subject.encode()):
            await channels.send(channel, message)


def _note(deliverer: Deliverer, records: list[Any]) -> None:
    for record in readable((one for one in records if one.value is not None), lambda one: _record.decode(one.value)):
        deliverer.note(record)


async def run(settings: Settings, on_ready: Callable[[], object]) -> None:
    """Until SIGTERM or SIGINT."""
    worker = Worker(settings, on_ready)
    on_signal(worker.stop)
    await until(worker.stop, worker.run, patience_s=PATIENCE_S)
    log.info("delivery worker ended")


def main() -> None:
    """Until a signal."""
    settings = load_settings()
    configure(settings)
    metrics_port.run(settings, "delivery", settings.deliveries.metrics_port, run)


if __name__ == "__main__":
    main()
