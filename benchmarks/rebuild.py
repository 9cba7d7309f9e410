"""`clickwake bench rebuild`: how long until a worker that lost its disk has all states again, from the changelog alone.

The states are those of a simulated shop's customers, each written under many names, packed as a worker packs them, as they
stand in a log that was compacted: each says what its interval brought, and no end of an interval stands between them. All
partitions are read at once, as one worker that owns them all does; then a sample is compared byte by byte. Beside it, in the
same run, how fast the bare client reads the same records and throws them away.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.observe import BenchFailed
from benchmarks.pipeline import SEED, machine, versions
from benchmarks.stage import bench_folder
from clickwake import topics as topic_admin
from clickwake.local import process
from clickwake.local.broker import Broker
from clickwake.local.process import StartError
from producers.simulate.world import World
from schemas import topics
from schemas.events import Event, key
from stream import settings as settings_module
from stream.adapters.kafka import kafka_clients, producing
from stream.adapters.kafka.kafka_clients import partition_of
from stream.adapters.state import changelog
from stream.adapters.state.state_store import Identity, PartitionStore
from stream.core import terms
from stream.core.user.fold import fold
from stream.core.user.state import UserState
from stream.fleet import rebuild_due
from stream.partition import Brought, pack
from stream.settings import Settings

SHOPPERS, WORLD_DAYS, ITEMS = 2_000, 30, 2_400
SEND_USERS_MAX = 20_000
SAMPLE_EVERY = 997
BROUGHT = ((terms.BROUGHT, msgspec.msgpack.encode(Brought(7, {"folded": 1}))),)


@dataclass(frozen=True)
class Options:
    users: int


def states() -> list[bytes]:
    """Packed states of a simulated shop's customers."""
    world = World(SEED, SHOPPERS, WORLD_DAYS, datetime(2026, 1, 1, tzinfo=UTC), items=ITEMS)
    found: dict[str, UserState] = {}
    for raw in world.history():
        event = msgspec.convert(raw, Event)
        fold(found.setdefault(event.user, UserState()), event, 0, 1 << 60)
    return [pack(one) for one in found.values()]


async def fill(settings: Settings, packed: list[bytes], users: int, tell: Any) -> int:
    """Write every user's state once; returns the bytes of all values."""
    name, partitions, size = topics.STATE.name(settings.kafka.topic_prefix), settings.kafka.partitions, 0
    producer = producing.create_producer(settings)
    await producer.start()
    try:
        for start in range(0, users, SEND_USERS_MAX):
            numbers = range(start, min(start + SEND_USERS_MAX, users))
            messages: list[producing.Message] = [
                (key("demo", f"user-{number}"), packed[number % len(packed)], BROUGHT) for number in numbers]  # fmt: skip
            size += sum(len(value or b"") for _, value, _ in messages)
            await producing.send_keyed(producer, name, messages, partitions)
            tell(f"{start:,} of {users:,} states written")
    finally:
        await producer.stop()
    return size


async def bare(settings: Settings) -> tuple[int, float]:
    """(records, seconds) of the client alone."""
    name = topics.STATE.name(settings.kafka.topic_prefix)
    tps = [TopicPartition(name, number) for number in range(settings.kafka.partitions)]
    async with kafka_clients.reader(settings, max_partition_fetch_bytes=changelog.FETCH_BYTES_MAX) as consumer:
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends, records, started = await consumer.end_offsets(tps), 0, time.monotonic()
        while records < sum(ends.values()):
            found = await consumer.getmany(timeout_ms=1_000, max_records=changelog.CHUNK_RECORDS_MAX)
            records += sum(len(some) for some in found.values())
        return records, time.monotonic() - started


async def rebuild(settings: Settings, folder: Path) -> tuple[list[PartitionStore], float]:
    """Empty stores of all partitions brought up to the changelog's end, with everybody's timer, and the seconds it took."""
    name, now_ms = topics.STATE.name(settings.kafka.topic_prefix), time.time_ns() // 1_000_000
    stores = [PartitionStore.open(folder / str(number), Identity("bench", topics.DAY_MS, now_ms))
              for number in range(settings.kafka.partitions)]  # fmt: skip
    started = time.monotonic()
    await asyncio.gather(*(changelog.recover(one, name, number, settings) for number, one in enumerate(stores)))
    for one in stores:
        one.write(rebuild_due(one.iterate()), one.changelog_offset, now_ms)
    return stores, time.monotonic() - started


def run(home: Path, options: Options, console: Console) -> dict[str, Any]:
    """Raises `BenchFailed`, `StartError`."""
    described = machine()
    with (bench_folder(home, "rebuild") as folder, console.status("simulating") as status,
          Broker(folder, port=process.free_port()) as broker):  # fmt: skip
        packed = states()
        settings = Settings.model_validate({"home": folder, "kafka": {"bootstrap_servers": broker.bootstrap_servers}})
        topic_admin.create(settings)
        size = asyncio.run(fill(settings, packed, options.users, status.update))
        status.update("reading, nothing else")
        records, bare_s = asyncio.run(bare(settings))
        status.update("rebuilding")
        stores, seconds = asyncio.run(rebuild(settings, folder / "stores"))
        for number in range(0, options.users, SAMPLE_EVERY):
            record_key = key("demo", f"user-{number}")
            (found,) = stores[partition_of(record_key, len(stores))].get_many([record_key])
            if found != packed[number % len(packed)]:
                raise BenchFailed(f"the state of {record_key!r} is not what was written")
        for one in stores:
            one.close()
    shutil.rmtree(folder, ignore_errors=True)
    return {"machine": described, "versions": versions(), "users": options.users, "state_bytes": round(size / options.users),
            "records": records, "bare_seconds": round(bare_s, 1), "seconds": round(seconds, 1),
            "users_per_s": round(options.users / seconds), "ratio": round(bare_s / seconds, 2)}  # fmt: skip


def main(options: Options, *, as_json: bool) -> int:
    """Run and print; exit code 0, or 1 when it failed."""
    console = Console(stderr=True)
    try:
        result = run(settings_module.load().home.absolute(), options, console)
    except (BenchFailed, StartError, ConnectionError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return 0
    shown = Table(box=None, show_header=False)
    shown.add_row("states", f"{result['users']:,}", f"{result['state_bytes']:,} bytes each")
    shown.add_row("rebuilt in", f"{result['seconds']:,.1f} s", f"{result['users_per_s']:,} users/s")
    shown.add_row("the client alone", f"{result['bare_seconds']:,.1f} s", f"ratio {result['ratio']:.2f}")
    Console().print(shown)
    return 0
