"""All users' states as the changelog has them, followed into stores of this process: for who reads and decides nothing.

The protocol: 1 each partition's store is brought to its changelog's end (`changelog.recover`); 2 from there the changelog is
followed, each poll one atomic write with the offset it reaches. A crash leaves stores that say how far they are.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import structlog

from schemas import topics
from schemas.topics import DAY_MS
from stream.adapters.kafka import kafka_clients
from stream.adapters.kafka.global_reader import GlobalReader
from stream.adapters.state import changelog
from stream.adapters.state.state_store import Identity, PartitionStore, directory
from stream.core import terms
from stream.core.user.state import UserState
from stream.partition import META_KEY, Meta, unpack
from stream.settings import Settings

log = structlog.get_logger()
TOUCH_S = 600.0  # a store in which nothing changes is said to be up to date this often

_meta = msgspec.msgpack.Decoder(Meta)


def _clock_of(store: PartitionStore) -> int:
    value = store.get_many([META_KEY])[0]
    return 0 if value is None else _meta.decode(value).clock_ms


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class StateReplica:
    """`open`, then `follow` in a task; reading is possible in between, and at any time after."""

    def __init__(self, settings: Settings, name: str) -> None:
        """`name` is that of the stores' folders: two processes of one home need two."""
        self._settings, self._name = settings, name
        self._topic = topics.STATE.name(settings.kafka.topic_prefix)
        self._stores: dict[int, PartitionStore] = {}
        self._reader: GlobalReader | None = None
        self._purging: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Bring all stores to the changelog's end; waits for the broker. Raises `StoreLocked`, `RecoveryFailed`,
        `LookupError`."""
        await kafka_clients.wait_for_kafka(self._settings)
        identity = Identity(await kafka_clients.topic_id(self._settings, self._topic), DAY_MS, _now_ms())
        started, read = time.monotonic(), 0
        for partition in range(self._settings.kafka.partitions):
            store = PartitionStore.open(directory(self._settings, self._name, partition), identity)
            self._stores[partition] = store
            read += (await changelog.recover(store, self._topic, partition, self._settings)).records
        log.info("replica open", partitions=len(self._stores), records=read, seconds=round(time.monotonic() - started, 2))

    async def follow(self) -> None:
        """For ever, through outages of the broker; raises what cannot be gone on with."""
        positions = {partition: store.changelog_offset + 1 for partition, store in self._stores.items()}
        self._reader = GlobalReader(self._settings, self._topic, self._on_records, positions)
        self._reader.start()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._reader.wait_failed())
                while True:
                    await asyncio.sleep(TOUCH_S)
                    if self.behind_ms() < TOUCH_S * 1000:  # else it is out of date, and must say so when it is opened next
                        for store in self._stores.values():
                            store.touch(_now_ms())
        finally:
            await self._reader.stop()

    async def close(self) -> None:
        await asyncio.gather(*self._purging)
        for store in self._stores.values():
            store.close()

    def behind_ms(self) -> int:
        """How old at most what it says is, beside the changelog."""
        return self._reader.behind_ms() if self._reader is not None else 0

    def read(self, user_key: bytes) -> UserState | None:
        """A user's state; None for nobody."""
        value = self._store(user_key).get_many([user_key])[0]
        return None if value is None else unpack(value)

    def holds(self, user_key: bytes) -> bool:
        """Whether there is a state of the user."""
        return self._store(user_key).get_many([user_key])[0] is not None

    def clock_ms(self, user_key: bytes) -> int:
        """The present in event time: of the user's partition, of the newest where that one has none; 0 where none has."""
        own = _clock_of(self._store(user_key))
        return own or max((_clock_of(store) for store in self._stores.values()), default=0)

    def _store(self, user_key: bytes) -> PartitionStore:
        return self._stores[kafka_clients.partition_of(user_key, self._settings.kafka.partitions)]

    def _on_records(self, records: list[Any]) -> None:
        store = self._stores.get(records[0].partition)
        if store is None:  # a partition that was added after the states were laid out has none
            return
        counted = terms.count(records, store.term)
        store.write(counted.puts, records[-1].offset, _now_ms(), counted.term)
        gone = sorted(key for key, value in counted.puts.items() if value is None)
        if gone:  # users who were erased: their bytes go from the files too
            task = asyncio.create_task(asyncio.to_thread(store.purge, gone))
            self._purging.add(task)
            task.add_done_callback(self._purged)

    def _purged(self, task: asyncio.Task[None]) -> None:
        self._purging.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("old values of erased users may still be in the replica's files", why=str(task.exception()),
                      next="restart this process; if it says so again, delete its store: it is read anew")  # fmt: skip
