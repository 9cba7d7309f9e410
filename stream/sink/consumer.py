"""The sink's loop: Kafka to ClickHouse, batch by batch. The protocol is numbered in `workers/sink.py`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaConnectionError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from kafka.errors import KafkaError as AdminError

from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.events import ms
from schemas.unreadable import UNREADABLE
from stream.adapters.health.lag import Lag
from stream.adapters.health.listening import answered
from stream.adapters.kafka.erasures import Erasures
from stream.adapters.kafka.kafka_clients import aiokafka_arguments, missing, stopped, wait_for_kafka
from stream.adapters.kafka.producing import create_producer, send_keyed
from stream.adapters.state.changelog import InputChanged, RecoveryFailed, look
from stream.outbox import cloud_event
from stream.settings import Settings
from stream.sink import metrics, rows
from stream.sink.batch import Batch, Rejection, dead_letter, freeze
from stream.sink.message_ids import MessageIds
from stream.sink.rows import Record, ToRows
from stream.sink.writer import Stopped, Writer
from stream.tracing import port as tracing

log = structlog.get_logger()

POLL_MS = 500  # an idle sink looks this often whether it is to stop
COLLECT_S_MAX = 1.0  # of one batch while the sink is behind
POLL_RECORDS_MAX = 2_000  # taken from aiokafka at once, so that a batch goes over batch_bytes_max by little
PARTITION_FETCH_BYTES_MAX = 1_048_576  # read ahead per partition while a batch is being stored: with 18 partitions 18 MB
POLL_INTERVAL_MS_MAX = 24 * 3_600_000  # ClickHouse may be away for long: heartbeats go on, others fare no better
COMMIT_TIMEOUT_S = 8.0  # the rows are stored; a commit that does not get through is made up for by the next
LIST_BEHIND_MS_MAX = 2_000  # of erasures: its reader hears of the broker some twice a second, also while nothing comes
TOPICS_PAUSE_S = 1.0
LAG_S = 10.0  # the broker is asked this often how far behind the sink is
T = TypeVar("T")


def group(settings: Settings) -> str:
    return f"{settings.kafka.topic_prefix}.sink"


def row_functions(settings: Settings) -> dict[str, ToRows]:
    """What to make of a record, by topic name."""
    prefix = settings.kafka.topic_prefix
    return {
        topics.EVENTS.name(prefix): rows.event_rows(settings.personalize.skew_max_ms, MessageIds(settings)),
        topics.RECOMMENDATIONS.name(prefix): rows.recommendation_rows,
        topics.COMPLEMENTS.name(prefix): rows.complements_rows,
        topics.DECISIONS.name(prefix): rows.decision_rows,
        topics.SEGMENT_CHANGES.name(prefix): rows.segment_change_rows,
        topics.REMINDERS.name(prefix): rows.reminder_rows,
        topics.CHURN_ALERTS.name(prefix): rows.churn_alert_rows,
        topics.DELIVERIES.name(prefix): rows.delivery_rows,
        topics.OPINIONS.name(prefix): rows.opinion_rows,
        topics.SATISFACTION_ALERTS.name(prefix): rows.satisfaction_alert_rows,
        topics.DEAD_LETTERS.name(prefix): rows.dead_letter_rows,
        topics.ITEMS.name(prefix): rows.item_rows,
    }


class Sink(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """One member of the consumer group `<prefix>.sink`. `run` returns after `stop`; anything unexpected is raised, and
    then nothing of the current batch has been committed."""

    def __init__(self, settings: Settings, on_ready: Callable[[], object] = lambda: None) -> None:
        """`on_ready` is called whenever partitions were assigned: ClickHouse and Kafka are there, rows flow."""
        self.settings = settings
        self._on_ready = on_ready
        self._to_rows: Mapping[str, ToRows] = row_functions(settings)
        self._stop = threading.Event()  # for the writer's thread
        self._stopping = asyncio.Event()
        self._tracing = tracing.start(settings, "sink")
        self._writer = Writer(settings.clickhouse, self._stop, settings.sink.migrate, self._tracing)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clickhouse")
        self._erasures = Erasures(settings)
        self._consumer: Any = None
        self._producer: AIOKafkaProducer | None = None
        self._generation = 0  # of the assignment: a batch read under an older one is stored, but never committed
        self._uncommitted: dict[TopicPartition, OffsetAndMetadata] = {}  # with each, when the record before was appended
        self._unchecked = False  # whether the topics go on where this assignment's commits say
        self._assigned = asyncio.Event()  # since it was last said how far behind the sink is
        self._ours: set[TopicPartition] = set()  # none during a rebalance, when aiokafka still has those of before
        self._read: set[TopicPartition] = set()  # partitions that anything was read of, so that they have a position
        self._dead_letters = topics.DEAD_LETTERS.name(settings.kafka.topic_prefix)

    def stop(self) -> None:
        """Finish the batch if ClickHouse takes it, commit, leave the group. Call from the event loop."""
        self._stop.set()
        self._stopping.set()

    async def run(self) -> None:
        try:
            await self._unless_stopped(self._connect())
            async with answered(self.settings, self._consumer, group(self.settings), self._begin_anew):
                telling = asyncio.create_task(self._tell_lag(), name="telling how far behind")
                try:
                    await self._loop()
                finally:
                    telling.cancel()
                    await asyncio.wait((telling,))
        except Stopped as reason:
            log.warning("sink.stopped", reason=str(reason), next="offsets were not committed: a later start reads it again")
        finally:
            await self._close()

    async def _loop(self) -> None:
        """One batch is stored while the next is collected; never more, so memory is bounded while ClickHouse is away."""
        storing: asyncio.Task[None] | None = None
        try:
            while not self._stopping.is_set():
                self._erasures.check()
                records, generation = await self._collect()
                if storing is not None:
                    await storing
                    storing = None
                if records and self._unchecked and generation == self._generation:
                    await self._check_places()
                if records and not self._stopping.is_set():  # on the way out they were not touched yet
                    storing = asyncio.create_task(self._store(records, generation))
                elif self._uncommitted:
                    await self._commit()
        finally:
            if storing is not None:  # Kafka failed, or the end came while a batch was being stored
                self._stop.set()
                await storing

    async def _connect(self) -> None:
        await self._in_thread(self._writer.prepare)
        session_ms = self.settings.kafka.session_timeout_ms
        while self._consumer is None:
            await wait_for_kafka(self.settings)
            consumer = AIOKafkaConsumer(
                **aiokafka_arguments(self.settings), group_id=group(self.settings), enable_auto_commit=False,
                auto_offset_reset="earliest", isolation_level="read_committed", check_crcs=True,
                max_partition_fetch_bytes=PARTITION_FETCH_BYTES_MAX, max_poll_interval_ms=POLL_INTERVAL_MS_MAX,
                session_timeout_ms=session_ms, heartbeat_interval_ms=session_ms // 10,
            )
            try:
                await consumer.start()
            except KafkaConnectionError as error:  # it went away between the probe and now
                await stopped(consumer)
                log.warning("sink.kafka_away", error=missing(self.settings, error))
            else:
                self._consumer = consumer
        await self._topics()
        self._erasures.start()
        await self._erasures.ready()  # before anything of a user who is erased could be stored again
        self._consumer.subscribe(list(self._to_rows), listener=self)
        log.info("sink.ready", group=group(self.settings), kafka=self.settings.kafka.bootstrap_servers)

    async def _topics(self) -> None:
        """Wait until every topic is there: a subscription to one that comes later is not noticed for minutes."""
        wanted = {*self._to_rows, self._erasures.topic}
        while absent := sorted(wanted - await self._consumer.topics()):
            log.warning("sink.topics_missing", topics=",".join(absent), kafka=self.settings.kafka.bootstrap_servers,
                        next="create them (clickwake topics)", again_in_s=TOPICS_PAUSE_S)
            await asyncio.sleep(TOPICS_PAUSE_S)  # the broker does not tell when a topic is created

    async def on_partitions_revoked(self, revoked: list[TopicPartition]) -> None:
        self._begin_anew()
        self._read.clear()
        self._ours = set()
        for tp in revoked:  # their next owner says how far behind they are
            metrics.LAG.remove_by_labels({"topic": tp.topic, "partition": str(tp.partition)})

    def _begin_anew(self) -> None:
        """Nothing of what was read until now is committed."""
        self._generation += 1
        self._uncommitted.clear()

    async def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        log.info("sink.assigned", partitions=len(assigned))
        self._unchecked = True
        self._ours = set(assigned)
        self._assigned.set()
        self._on_ready()

    async def _check_places(self) -> None:
        """A broker that lost its last records, or was restored from an older copy than its groups' places, gives offsets
        away a second time: the group would pass over what is new there. The append time that was noted with each commit
        tells. Raises `InputChanged`; asks again while the broker does not answer."""
        while self._unchecked and not self._stopping.is_set():
            generation, mine = self._generation, self._consumer.assignment()
            try:
                notes = {tp: one for tp, one in (await asyncio.to_thread(self._notes)).items() if tp in mine}
                places = await look({tp: offset - 1 for tp, (offset, _) in notes.items()}, self.settings) if notes else {}
            except (KafkaError, AdminError, RecoveryFailed) as error:
                log.warning("sink.places_unknown", kafka=self.settings.kafka.bootstrap_servers, error=repr(error),
                            again_in_s=TOPICS_PAUSE_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), TOPICS_PAUSE_S)
                continue
            self._unchecked = generation != self._generation  # a rebalance came in between
            for tp, place in places.items():
                offset, appended_ms = notes[tp]
                if place.append_ms is not None and str(place.append_ms) != appended_ms:
                    raise InputChanged(
                        f"{tp.topic}[{tp.partition}]: at offset {offset - 1} there is another record than was stored: the "
                        f"broker lost records. The group goes on at {offset} and would pass over what was written before "
                        "it: end all workers, then clickwake rewind, then start them (docs/faults.md, 'Broker restored')"
                    )

    def _notes(self) -> dict[TopicPartition, tuple[int, str]]:
        with Lag(self.settings) as lag:
            return {TopicPartition(*tp): note for tp, note in lag.notes(group(self.settings)).items()}

    async def _collect(self) -> tuple[list[Record], int]:
        """1: records until the batch is full or `flush_interval_ms` after the first one; none after POLL_MS of silence.
        Where more waits at the broker than was collected until then, it goes on for COLLECT_S_MAX: fewer and larger inserts
        are what ClickHouse catches up with.

        Also returns the generation they were read in. What was read before a rebalance is dropped: its partitions
        are read from the last commit by whoever owns them now.
        """
        limits, generation = self.settings.sink, self._generation
        records: list[Record] = []
        size, first_at, wait_ms = 0, 0.0, float(POLL_MS)
        while len(records) < limits.batch_rows_max and size < limits.batch_bytes_max and wait_ms > 0:
            most = min(POLL_RECORDS_MAX, limits.batch_rows_max - len(records))
            found = await self._consumer.getmany(timeout_ms=int(wait_ms), max_records=most)
            self._read.update(found)
            if generation != self._generation:
                generation, records, size, first_at = self._generation, [], 0, 0.0
            for some in found.values():
                records += some
                size += sum(len(record.value or b"") for record in some)
            if not records or self._stopping.is_set():
                break
            first_at = first_at or time.monotonic()
            since_ms = (time.monotonic() - first_at) * 1000
            wait_ms = limits.flush_interval_ms - since_ms
            if wait_ms <= 0 and await self._waiting() > len(records):
                wait_ms = COLLECT_S_MAX * 1000 - since_ms
        return records, generation

    async def _waiting(self) -> int:
        """Records the broker has, as far as it has said, that were not taken yet. Positions pass over what compaction
        removed, offsets of records do not."""
        waiting = 0
        try:
            for tp in self._read & self._consumer.assignment():
                waiting += max(0, (self._consumer.highwater(tp) or 0) - await self._consumer.position(tp))
        except IllegalStateError:  # a rebalance took the partition away meanwhile: nothing of it is ours to wait for
            return 0
        return waiting

    async def _store(self, records: list[Record], generation: int) -> None:
        with self._tracing.batch(group(self.settings), records):
            if self._erasures.behind_ms() > LIST_BEHIND_MS_MAX:  # who was erased meanwhile may have a receipt already
                await self._unless_stopped(self._erasures.caught_up())
            batch = await self._in_thread(freeze, records, self._to_rows, self._erasures.covers)  # 2
            rejections = batch.rejections + await self._in_thread(self._writer.write, batch)  # 3
            await self._reject(rejections)  # 4
        self._count(batch, records)
        if generation == self._generation:
            last = {(record.topic, record.partition): record for record in records}  # offsets ascend in a partition
            self._uncommitted |= {TopicPartition(*tp): OffsetAndMetadata(record.offset + 1, str(record.timestamp))
                                  for tp, record in last.items()}  # fmt: skip
            await self._commit()  # 5

    async def _reject(self, rejections: list[Rejection]) -> None:
        """Dead letters, one a record, acknowledged by every in-sync replica."""
        letters: dict[str, tuple[bytes, DeadLetter]] = {}
        for rejection in rejections:
            record = rejection.record
            if record.topic == self._dead_letters and _is_ours(record.value):
                metrics.LOST_LETTERS.inc()  # a letter about a letter about a letter … would never end
                log.error("sink.letter_refused", topic=record.topic, partition=record.partition, offset=record.offset,
                          error=rejection.messages[0].message, next="it stays on the topic until its retention ends")
                continue
            letter = dead_letter(rejection)
            letters.setdefault(letter.dead_letter_id, (record.key or letter.dead_letter_id.encode(), letter))
            metrics.REJECTED.labels(record.topic).inc()
        if not letters:
            return
        if self._producer is None:
            producer = create_producer(self.settings)
            await producer.start()
            self._producer = producer
        partitions = len(await self._producer.partitions_for(self._dead_letters))
        await send_keyed(self._producer, self._dead_letters, (
            (key, msgspec.json.encode(letter), cloud_event("dead-letter", ident, letter.tenant, ms(letter.first_seen)))
            for ident, (key, letter) in letters.items()), partitions, tracing=self._tracing)  # fmt: skip

    async def _commit(self) -> None:
        """Failing is harmless: the rows are stored, the next commit includes these offsets, and a second reading
        changes nothing."""
        offsets = dict(self._uncommitted)
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await self._consumer.commit(offsets)
        except (KafkaError, IllegalStateError, TimeoutError) as error:
            metrics.COMMIT_FAILURES.inc()
            log.warning("sink.commit_failed", kafka=self.settings.kafka.bootstrap_servers, error=repr(error),
                        next="the rows are stored; committed with the next batch, or read again by the new owner")
            return
        for tp, offset in offsets.items():
            if self._uncommitted.get(tp) == offset:
                del self._uncommitted[tp]

    async def _tell_lag(self) -> None:
        """How far behind it is, by the broker's own word: what was fetched last stands still while ClickHouse is away."""
        while True:
            self._assigned.clear()
            asked = self._ours
            try:
                async with asyncio.timeout(COMMIT_TIMEOUT_S):
                    ends = await self._consumer.end_offsets(asked)
                    async with asyncio.TaskGroup() as group:  # at once: one by one, of many partitions, takes too long
                        places = {tp: group.create_task(self._consumer.committed(tp)) for tp in asked}
            except* (KafkaError, IllegalStateError, TimeoutError) as errors:
                log.warning("sink.lag_unknown", kafka=self.settings.kafka.bootstrap_servers,
                            error=repr(errors.exceptions[0]), again_in_s=LAG_S)
            else:
                for tp in asked & self._ours:
                    metrics.LAG.labels(tp.topic, tp.partition).set(max(0, ends[tp] - (places[tp].result() or 0)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._assigned.wait(), LAG_S)

    def _count(self, batch: Batch, records: list[Record]) -> None:
        for (topic, outcome), count in batch.outcomes.items():
            metrics.RECORDS.labels(topic, outcome).inc(count)
        metrics.BATCH_ROWS.observe(len(records))
        metrics.DELAY_SECONDS.observe(max(0.0, time.time() - min(record.timestamp for record in records) / 1000))

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """In the one thread that decodes and inserts: heartbeats go on meanwhile."""
        context = contextvars.copy_context()  # the span that is current
        return await asyncio.get_running_loop().run_in_executor(self._thread, context.run, function, *arguments)

    async def _unless_stopped(self, work: Awaitable[None]) -> None:
        """Await `work`, or raise Stopped as soon as the process is to end."""
        task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            raise Stopped("asked to end while waiting for Kafka, its topics or ClickHouse")
        task.result()

    async def _close(self) -> None:
        self._stop.set()
        await self._erasures.stop()
        for client in (self._consumer, self._producer):
            if client is not None:
                await stopped(client)
        await self._in_thread(self._writer.close)
        self._thread.shutdown()


def _is_ours(value: bytes | None) -> bool:
    """Is this dead letter one the sink wrote?"""
    try:
        return value is not None and msgspec.json.decode(value, type=DeadLetter).kind == "sink_rejected"
    except UNREADABLE:
        return False
