"""`python -m workers.delivery`: alerts, reminders and segment changes to webhooks, mail and files, as the file
`<home>/deliveries.yml` says. One is enough: two would not know of each other's messages, and caps would hold for each alone.
The protocol is numbered in `stream/delivery/deliverer.py`. Without a file it waits for one.

Metrics (`stream/delivery/metrics.py`) are on a loopback port, written with the process id, and whether it is ready, to
`<home>/run/delivery.json`. SIGTERM: the message under way is finished and logged.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from schemas import topics
from schemas.events import ms
from schemas.opinions import SatisfactionAlert
from schemas.outputs import ChurnAlert, DeliveryRecord, Reminder, SegmentChange
from schemas.unreadable import UNREADABLE
from stream.adapters import kafka_clients, metrics_port, producing
from stream.adapters.erasures import Erasures
from stream.adapters.global_reader import GlobalReader, readable
from stream.adapters.listening import watched
from stream.adapters.producing import Message
from stream.adapters.refusals import AdsRefusals
from stream.delivery import channels, metrics
from stream.delivery.deliverer import Deliverer
from stream.delivery.rules import Channel, DeliveryError, load
from stream.delivery.said import Said
from stream.endings import on_signal, pause, until
from stream.logs import configure
from stream.outbox import cloud_event
from stream.settings import Settings
from stream.settings import load as load_settings
from stream.tracing import port as tracing

log = structlog.get_logger()
SOURCE = "clickwake/delivery"
FILE_POLL_S = 5.0
PATIENCE_S = 9.0  # for a message that is under way; one that is cut short is sent again under its id

_alert, _change = msgspec.json.Decoder(ChurnAlert), msgspec.json.Decoder(SegmentChange)
_reminder, _satisfaction = msgspec.json.Decoder(Reminder), msgspec.json.Decoder(SatisfactionAlert)
_record = msgspec.json.Decoder(DeliveryRecord)


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

    async def run(self) -> None:
        """Raises what cannot be gone on with."""
        path = self.settings.deliveries_file
        while not path.exists():
            log.info("nothing to deliver yet", file=str(path), next="write one: docs/deliveries.md")
            if await pause(self.stop, FILE_POLL_S):
                return
        file = load(path)
        log.info("deliveries taken", file=str(path), deliveries=[one.name for one in file.deliveries])
        await kafka_clients.wait_for_kafka(self.settings)
        erasures, refusals = Erasures(self.settings), AdsRefusals(self.settings)
        deliverer = Deliverer(file, erasures, refusals, self._write, lambda: datetime.now(UTC), self._deliver,
                               self.stop)  # fmt: skip
        history = GlobalReader(self.settings, self.log_topic, lambda records: _note(deliverer, records))
        consumer = AIOKafkaConsumer(
            *self.inputs, **kafka_clients.aiokafka_arguments(self.settings), enable_auto_commit=False,
            group_id=self.group, auto_offset_reset="earliest",
            max_poll_interval_ms=24 * 3_600_000,
        )  # fmt: skip
        try:
            await self.producer.start()
            for reader in (erasures, refusals, history):
                reader.start()
            await asyncio.gather(erasures.ready(), refusals.ready(), history.ready())
            await history.stop()  # from here on the log is its own
            await consumer.start()
            log.info("delivery worker ready")
            self._on_ready()
            async with watched(self.settings, consumer, self.group):
                while not self.stop.is_set():
                    erasures.check()
                    refusals.check()
                    await self._turn(consumer, deliverer)
        finally:
            await kafka_clients.stopped(consumer)
            for reader in (history, refusals, erasures):
                await reader.stop()
            await kafka_clients.stopped(self.producer)

    async def _turn(self, consumer: AIOKafkaConsumer, deliverer: Deliverer) -> None:
        """Steps 1 to 5 once."""
        await deliverer.take_due()
        wait_ms = int(1000 * min(0.5, deliverer.wait_s()))
        fetched = await consumer.getmany(timeout_ms=wait_ms, max_records=200)
        await self._say_lag(consumer, (record for records in fetched.values() for record in records))
        for tp, records in fetched.items():
            with self.tracing.batch(self.group, records):
                if not await deliverer.take(self._decoded(tp.topic, records)):
                    return
        if fetched:
            await self._say_lag(consumer)
            try:
                await consumer.commit()
            except KafkaError as error:  # what was handled is known from the log; the next commit makes up for this one
                log.warning("not committed", why=repr(error))

    async def _say_lag(self, consumer: AIOKafkaConsumer, in_hand: Iterable[Any] = ()) -> None:
        """`in_hand`: records that were taken and are not handled."""
        behind = await kafka_clients.unfetched(consumer)
        behind.update(one.topic for one in in_hand)
        for topic in self.inputs:
            metrics.LAG.labels(topic).set(behind[topic])

    def _decoded(self, topic: str, records: list[Any]) -> list[Said]:
        found: list[Said] = []
        for record in records:
            try:
                if record.value is not None:
                    found.append(self.inputs[topic].decode(record.value))
            except UNREADABLE as error:  # the sink writes its dead letter
                log.error("not understood", topic=topic, partition=record.partition, offset=record.offset, why=str(error))
        return found

    async def _write(self, records: list[DeliveryRecord]) -> None:
        by_partition: dict[int, list[Message]] = {}
        for one in records:
            subject = one.subject.encode()
            headers = cloud_event("delivery", one.delivery_id, one.subject, ms(one.at), SOURCE)
            partition = kafka_clients.partition_of(subject, self.settings.kafka.partitions)
            by_partition.setdefault(partition, []).append((subject, msgspec.json.encode(one), headers))
        with self.tracing.outgoing(self.log_topic, by_partition) as messages:
            await producing.send_batches(self.producer, self.log_topic, messages)

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


def main() -> int:
    """Exit code: 0 after a signal, 1 when the file cannot be used."""
    settings = load_settings()
    configure(settings)
    try:
        metrics_port.run(settings, "delivery", settings.deliveries.metrics_port, run)
    except DeliveryError as error:
        log.error("deliveries refused", why=str(error), next="mend the file and start again")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
