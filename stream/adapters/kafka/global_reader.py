"""A reader of everything on a topic: item vectors, item counts, model releases, erasures.

A consumer group would split the partitions between workers, so each process reads all of them by `assign()`, from the
beginning, and is ready once it has passed the ends seen at its start. It goes on following through broker outages.
Reading from the beginning at every start is the replay: what a record does must be idempotent, last one a key wins. So is
a topic that was deleted and made again while it is followed: told by its id, it is read from its beginning. What is known
of keys that are not on the new one stays until the process starts again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, NoReturn, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas.unreadable import UNREADABLE
from stream.adapters.health.listening import topics_made_again
from stream.adapters.kafka import kafka_clients
from stream.endings import only_when_asked
from stream.settings import Settings

log = logging.getLogger(__name__)

POLL_MS = 500
RECORDS_MAX = 5_000  # handed over at once; the event loop is free between two hand-overs
BACKOFF_S_MAX = 5.0
FETCH_BYTES_MAX = 4 << 20

OnRecords = Callable[[list[Any]], None]
T = TypeVar("T")


class MadeAgain(RuntimeError):
    """A topic is another than the one of which its reader keeps what it read."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def readable(records: Iterable[Any], read: Callable[[Any], T]) -> list[T]:
    """What `read` makes of each record, without those whose bytes it cannot read (`UNREADABLE`, or ValueError for a key that
    is none): each is logged. Who ended at one would end at every start, for as long as it is on the topic."""
    found = []
    for record in records:
        try:
            found.append(read(record))
        except (*UNREADABLE, ValueError) as error:
            log.error("%s[%d]: the record at offset %d is left out: %s; who writes there?", record.topic, record.partition,
                      record.offset, error)
    return found


async def read_whole(settings: Settings, topic: str, on_records: OnRecords, *, committed: bool = False) -> None:
    """Hand over everything that is on the topic now, once."""
    reader = GlobalReader(settings, topic, on_records, committed=committed)
    reader.start(watched=False)
    try:
        await reader.ready()
    finally:
        await reader.stop()


class _Watch:
    """One look at the ids of all topics that a process follows on a broker: each costs a client of its own."""

    _all: ClassVar[dict[tuple[asyncio.AbstractEventLoop, str], _Watch]] = {}

    def __init__(self, settings: Settings) -> None:
        self._followed: dict[str, list[GlobalReader]] = {}
        looking = only_when_asked(topics_made_again)(settings, self._followed, self._tell)
        self._task = asyncio.create_task(looking, name="looking for topics made again")

    @classmethod
    def join(cls, reader: GlobalReader, settings: Settings) -> _Watch:
        key = asyncio.get_running_loop(), settings.kafka.bootstrap_servers
        watch = cls._all.get(key) or cls._all.setdefault(key, cls(settings))
        watch._followed.setdefault(reader.topic, []).append(reader)
        return watch

    def leave(self, reader: GlobalReader) -> None:
        self._followed[reader.topic].remove(reader)
        if not self._followed[reader.topic]:
            del self._followed[reader.topic]
        if not self._followed:
            self._task.cancel()
            self._all.pop(next(key for key, one in self._all.items() if one is self))

    def check(self) -> None:
        """Raises what ended it, if anything did."""
        if self._task.done():
            self._task.result()

    async def _tell(self, names: set[str]) -> None:
        for reader in (one for name in names for one in self._followed.get(name, ())):
            reader.begin_anew()


class GlobalReader:
    """Calls `on_records` with aiokafka `ConsumerRecord`s (key, value, offset, partition, timestamp), in offset order
    within a partition. The callback runs on the event loop and must be quick; what it raises ends the reader and is
    raised by `ready()`, `wait_failed()` and `stop()`."""

    def __init__(
        self, settings: Settings, topic: str, on_records: OnRecords, positions: Mapping[int, int] | None = None,
        *, committed: bool = False,
    ) -> None:  # fmt: skip
        """`positions`: partition → offset to begin at, for what was read before and is kept; the beginning for the others.
        With them a topic that is made again ends the reader (`MadeAgain`): what is kept is of the one before. `committed`:
        only what belongs to a transaction that came to its end, for topics that are written so."""
        self.topic = topic
        self._isolation = "read_committed" if committed else "read_uncommitted"
        self.records_read = 0
        self._settings = settings
        self._on_records = on_records
        self._ready = asyncio.Event()
        self._positions: dict[int, int] = dict(positions or {})
        self._keeps = positions is not None
        self._made_again = False
        self._incarnation = 0  # of the topic, counted from the one that was there first
        self._watched = False
        self._watch: _Watch | None = None
        self._current_at_ms = 0  # wall clock, as the client says it
        self._ends_wanted: list[asyncio.Future[tuple[int, dict[TopicPartition, int]]]] = []
        self._advanced = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def start(self, *, watched: bool = True) -> None:
        """Begin to read, in a task of the running loop. Not `watched`: for who does not stay until a topic is made again."""
        self._watched, self._current_at_ms = watched, _now_ms()
        self._task = asyncio.create_task(self._follow(), name=f"global-reader {self.topic}")

    async def ready(self) -> None:
        """Return once everything that was on the topic when the reader began has been handed over."""
        await self._unless_failed(self._ready.wait())

    async def caught_up(self) -> None:
        """Return once everything that is on the topic now has been handed over: for who takes over what another process
        has written meanwhile. Waits through an outage of the broker."""
        await self._unless_failed(self._caught_up())

    async def _caught_up(self) -> None:
        while True:
            wanted: asyncio.Future[tuple[int, dict[TopicPartition, int]]] = asyncio.get_running_loop().create_future()
            self._ends_wanted.append(wanted)
            incarnation, ends = await wanted
            async with self._advanced:
                await self._advanced.wait_for(partial(self._at, incarnation, ends))
            if incarnation == self._incarnation:
                return

    def _at(self, incarnation: int, ends: dict[TopicPartition, int]) -> bool:
        """Whether these ends are passed, or those of a topic that is no more."""
        return incarnation != self._incarnation or self._passed(ends)

    def _passed(self, ends: dict[TopicPartition, int]) -> bool:
        return all(self._positions.get(tp.partition, 0) >= end for tp, end in ends.items())

    async def _unless_failed(self, waiting: Coroutine[Any, Any, Any]) -> None:
        task = self._running()
        waiter = asyncio.create_task(waiting)
        try:
            await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        if task.done():
            await task
        await waiter

    async def wait_failed(self) -> None:
        """Wait until the reader ends; raises what ended it. For a task that ends the process with it."""
        await asyncio.shield(self._running())

    def behind_ms(self) -> int:
        """How long ago it had read everything that the broker had, at the latest: some hundred ms while nothing comes, as
        the broker is asked that often; growing while the broker is away. Until it has, since it was started."""
        return max(0, _now_ms() - self._current_at_ms)

    def begin_anew(self) -> None:
        """The topic was deleted and made again: from the next poll on, read it from its beginning."""
        self._made_again = True

    def check(self) -> None:
        """Raises what ended the reader, if anything did: for a loop that has no task to spare for `wait_failed`."""
        task = self._running()
        if task.done():
            task.result()

    async def stop(self) -> None:
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise

    def _running(self) -> asyncio.Task[None]:
        if self._task is None:
            raise RuntimeError(f"the reader of {self.topic} was not started")
        return self._task

    @only_when_asked
    async def _follow(self) -> None:
        """Read with one client after another: aiokafka rides out short outages itself, a new client the rest."""
        try:
            await self._read_on()
        finally:
            if self._watch is not None:
                self._watch.leave(self)
                self._watch = None

    async def _read_on(self) -> NoReturn:
        backoff_s = 0.25
        while True:
            await kafka_clients.wait_for_kafka(self._settings)
            try:
                async with kafka_clients.reader(self._settings, max_partition_fetch_bytes=FETCH_BYTES_MAX,
                                                isolation_level=self._isolation) as consumer:
                    await self._read(consumer)
            except KafkaError as error:
                log.warning("reading %s was interrupted (%r); trying again in %.1f s", self.topic, error, backoff_s)
            await asyncio.sleep(backoff_s)  # a backoff between two clients
            backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        tps = await self._assign(consumer)
        ends_at_start = await consumer.end_offsets(tps)
        while True:
            if self._made_again:
                tps = await self._assign_anew(consumer)
                ends_at_start = await consumer.end_offsets(tps)
            fetched = await consumer.getmany(timeout_ms=POLL_MS, max_records=RECORDS_MAX)
            for records in fetched.values():
                self._on_records(records)
                self.records_read += len(records)
            await self._note_positions(consumer, tps)
            if self._passed(ends_at_start):
                self._ready.set()
                self._watch_out()
            if len(consumer.partitions_for_topic(self.topic) or ()) > len(tps):
                tps = await self._assign(consumer)  # partitions were added: read the new ones too

    def _watch_out(self) -> None:
        if self._watch is not None:
            self._watch.check()
        elif self._watched:
            self._watch = _Watch.join(self, self._settings)

    async def _assign_anew(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        if self._keeps:
            raise MadeAgain(f"{self.topic}: the topic was made again, and what is kept is of the one before. This process "
                            "ends and begins anew")  # fmt: skip
        log.error("%s: the topic was made again, its id is another; it is read from the beginning", self.topic)
        self._made_again = False
        self._incarnation += 1
        self._positions.clear()
        return await self._assign(consumer)

    async def _note_positions(self, consumer: AIOKafkaConsumer, tps: list[TopicPartition]) -> None:
        """How far it has read, compacted gaps included; and where the topic ends, for those who ask."""
        wanted, self._ends_wanted = self._ends_wanted, []
        try:
            ends = await consumer.end_offsets(tps) if wanted else {}
        except BaseException:
            self._ends_wanted = wanted + self._ends_wanted  # the next client answers them
            raise
        for one in wanted:
            if not one.done():
                one.set_result((self._incarnation, ends))
        async with self._advanced:
            for tp in tps:
                self._positions[tp.partition] = await consumer.position(tp)
            self._advanced.notify_all()
        highwaters = [consumer.highwater(tp) for tp in tps]
        if all(top is not None and self._positions[tp.partition] >= top for tp, top in zip(tps, highwaters, strict=True)):
            self._current_at_ms = min(consumer.last_poll_timestamp(tp) for tp in tps)

    async def _assign(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        # a client that has not asked for the topic yet does not know its partitions
        await consumer._client._wait_on_metadata(self.topic)
        partitions = consumer.partitions_for_topic(self.topic)
        if not partitions:
            raise KafkaError(f"topic {self.topic} does not exist; create the topics first (clickwake topics)")
        tps = [TopicPartition(self.topic, partition) for partition in sorted(partitions)]
        consumer.assign(tps)
        for tp in tps:
            if tp.partition in self._positions:
                consumer.seek(tp, self._positions[tp.partition])
        return tps
