"""Reading a changelog partition into its store, without a consumer group.

The protocol: 1 the end offset is asked for once, at the start; 2 records are read from behind the store's offset, the
last value of a key wins, a null value deletes, what a former owner wrote late does not count (`stream.core.terms`); 3 each
chunk is one atomic write with the offset it reaches and what is still to be done (`PartitionStore.unsettled`). A crash at
any point leaves a store that says how far it got, and the next recovery goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stream.adapters.kafka import kafka_clients
from stream.adapters.state.state_store import NO_OFFSET, PartitionStore
from stream.core import terms
from stream.core.terms import CLAIM_KEY, Begun, Counted
from stream.settings import Settings

log = logging.getLogger(__name__)

FETCH_BYTES_MAX = 8 << 20  # of one partition and request
CHUNK_RECORDS_MAX = 20_000  # one RocksDB write; the loop is free again after each
POLL_MS = 1_000
SILENCE_S_MAX = 60.0  # without a record before the end: the broker is away or the end is made of transaction markers

Progress = Callable[[int, int], None]  # offsets read, offsets to read


@dataclass(frozen=True)
class Recovered:
    """What a recovery did. `records` were read, claims not counted, `deleted` of them were tombstones; the last records of
    the `stale` keys do not count, and are to be written over."""

    records: int
    deleted: int
    from_offset: int
    end_offset: int
    seconds: float
    stale: set[bytes] = field(default_factory=set)


class RecoveryFailed(RuntimeError):
    """The changelog could not be read to the end it had at the start."""


async def recover(store: PartitionStore, topic: str, partition: int, settings: Settings,
                  progress: Progress | None = None) -> Recovered:
    """Bring the store to the end the changelog partition has now.

    Raises `RecoveryFailed` when nothing arrives for a minute although the end is not reached. Recovering again reads
    only what came since.
    """
    started = time.monotonic()
    await kafka_clients.wait_for_kafka(settings, timeout_s=SILENCE_S_MAX)
    async with kafka_clients.reader(settings, max_partition_fetch_bytes=FETCH_BYTES_MAX) as consumer:
        return await _read(consumer, store, TopicPartition(topic, partition), started, progress)


async def _read(consumer: AIOKafkaConsumer, store: PartitionStore, tp: TopicPartition, started: float,
                progress: Progress | None) -> Recovered:
    consumer.assign([tp])
    try:
        end = (await consumer.end_offsets([tp]))[tp]
        beginning = (await consumer.beginning_offsets([tp]))[tp]
    except KafkaError as error:
        raise RecoveryFailed(f"the broker does not say where changelog {tp.topic}[{tp.partition}] ends: "
                             f"{error!r}") from error
    if store.changelog_offset >= end:
        store.clear(f"it stands for changelog offset {store.changelog_offset}, but the changelog ends at {end}: the broker "
                    f"lost records")
    elif NO_OFFSET < store.changelog_offset < beginning - 1:
        store.clear(f"it stands for changelog offset {store.changelog_offset}, but the changelog begins at {beginning}: "
                    f"deletions in between are not known")
    start = max(store.changelog_offset + 1, beginning)
    consumer.seek(tp, start)
    position, records, deleted, heard_at = start, 0, 0, time.monotonic()
    term, begun, stale, unsettled = store.term, store.begun, set(store.unsettled or ()), store.unsettled is not None
    writing: asyncio.Task[None] | None = None  # one chunk is written in a thread while the next is decoded
    try:
        while position < end:
            chunk = (await consumer.getmany(tp, timeout_ms=POLL_MS, max_records=CHUNK_RECORDS_MAX)).get(tp, [])
            reached = await consumer.position(tp)  # beyond the last record where the log was compacted
            if reached == position:
                _check_silence(tp, time.monotonic() - heard_at, position, end)
                continue
            position, heard_at = reached, time.monotonic()
            records += sum(record.key != CLAIM_KEY for record in chunk)
            counted = _count(tp, chunk, term, begun)
            term, begun, stale = counted.term, counted.begun, (stale - counted.puts.keys()) | counted.stale
            unsettled |= records > 0
            deleted += sum(1 for record in chunk if record.value is None)
            if writing is not None:
                await asyncio.shield(writing)
            now_ms = int(time.time() * 1000)
            writing = asyncio.create_task(asyncio.to_thread(
                store.write, counted.puts, position - 1, now_ms, term, set(stale) if unsettled else None, begun))
            if progress is not None:
                progress(min(position, end) - start, end - start)
        if writing is not None:
            await asyncio.shield(writing)
    finally:
        if writing is not None and not writing.done():
            # the thread cannot be stopped, and whoever cancelled may close the store next
            await asyncio.wait([writing])
    store.touch(int(time.time() * 1000))
    done = Recovered(records, deleted, start, end, time.monotonic() - started, stale)
    log.info("changelog %s[%d]: %d records (%d deletions) from offset %d to %d in %.1f s", tp.topic, tp.partition,
             records, deleted, start, end, done.seconds)
    return done


def _count(tp: TopicPartition, chunk: list[Any], term: int, begun: Begun) -> Counted:
    if any(record.key is None for record in chunk):
        log.warning("changelog %s[%d]: records without a key near offset %d are left out; who writes there?", tp.topic,
                    tp.partition, chunk[0].offset)
    counted = terms.count(chunk, term, begun)
    if counted.stale:
        log.warning("changelog %s[%d]: what a former owner wrote late does not count (%d keys near offset %d)", tp.topic,
                    tp.partition, len(counted.stale), chunk[0].offset)
    return counted


def _check_silence(tp: TopicPartition, silent_s: float, position: int, end: int) -> None:
    if silent_s > SILENCE_S_MAX:
        raise RecoveryFailed(f"nothing came from {tp.topic}[{tp.partition}] for {SILENCE_S_MAX:.0f} s at offset "
                             f"{position} of {end}; is the broker up?")


class InputChanged(RuntimeError):
    """A topic holds other records than were read, and the group's place in it is behind some nobody has read."""


class Place(NamedTuple):
    """How a partition looks from an offset."""

    begin: int
    end: int  # after the last record
    append_ms: int | None  # of the record at the offset, None where there is none any more


async def look(places: dict[TopicPartition, int], settings: Settings) -> dict[TopicPartition, Place]:
    """Where partitions begin and end, and when the record at the given offset of each was appended. Raises
    `RecoveryFailed`."""
    try:
        async with kafka_clients.reader(settings) as consumer:
            begins, ends = await consumer.beginning_offsets(list(places)), await consumer.end_offsets(list(places))
            there = {tp: offset for tp, offset in places.items() if begins[tp] <= offset < ends[tp]}
            appended_ms = await _appended_ms(consumer, there) if there else {}
            return {tp: Place(begins[tp], ends[tp], appended_ms.get(tp)) for tp in places}
    except KafkaError as error:
        raise RecoveryFailed(f"the broker does not say where {', '.join(map(str, places))} end: {error!r}") from error


async def _appended_ms(consumer: AIOKafkaConsumer, places: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
    """When the records at these offsets were appended, of those that are still there."""
    consumer.assign(list(places))
    for tp, offset in places.items():
        consumer.seek(tp, offset)
    found: dict[TopicPartition, int] = {}
    waiting, heard_at = set(places), time.monotonic()
    while waiting and time.monotonic() - heard_at < SILENCE_S_MAX:
        for tp, records in (await consumer.getmany(*waiting, timeout_ms=1_000, max_records=1)).items():
            heard_at = time.monotonic()
            waiting.discard(tp)
            if records[0].offset == places[tp]:
                found[tp] = int(records[0].timestamp)
    return found


async def keys_between(topic: str, partition: int, first: int, last: int, settings: Settings) -> set[bytes]:
    """Keys of the records at these offsets and between, claims among them; what was compacted away is not.

    Raises `RecoveryFailed` when nothing arrives for a minute.
    """
    tp, keys, heard_at = TopicPartition(topic, partition), set[bytes](), time.monotonic()
    async with kafka_clients.reader(settings) as consumer:
        consumer.assign([tp])
        consumer.seek(tp, first)
        position = first
        while position <= last:
            chunk = (await consumer.getmany(tp, timeout_ms=POLL_MS, max_records=CHUNK_RECORDS_MAX)).get(tp, [])
            reached = await consumer.position(tp)
            if reached == position:
                _check_silence(tp, time.monotonic() - heard_at, position, last + 1)
                continue
            position, heard_at = reached, time.monotonic()
            keys |= {record.key for record in chunk if record.key is not None and record.offset <= last}
    return keys
