"""What a benchmark of the whole system begins with: the catalog encoded, a bundle released, histories folded and stored."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.observe import BenchFailed, Places, expect, number, until_zero
from clickwake.local.observe import metric, owed
from clickwake.local.up import Local
from producers.simulate.mess import Record
from producers.simulate.world import World
from schemas import topics
from schemas.topics import Topic
from stream.adapters.database import clickhouse
from stream.adapters.kafka import producing
from stream.adapters.models import model_store
from stream.settings import Settings

SEND_RECORDS_MAX = 10_000
INPUTS = (topics.EVENTS, topics.IDENTITY)

Tell = Callable[[str], None]


@contextmanager
def bench_folder(home: Path, name: str = "run") -> Iterator[Path]:
    """`<home>/bench/<name>`, empty, ours alone. Raises `BenchFailed` while another benchmark of this home runs."""
    bench = home / "bench"
    bench.mkdir(parents=True, exist_ok=True)
    with (bench / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BenchFailed(f"another benchmark runs in {bench}: wait for it, or set CLICKWAKE_HOME") from error
        folder = bench / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder


class Stage:
    """An installation that is up, seen through `offsets`."""

    def __init__(self, local: Local, world: World, offsets: Places, tell: Tell) -> None:
        self.local, self.world, self.offsets, self.tell = local, world, offsets, tell
        self.settings = local.settings
        self.prefix = self.settings.kafka.topic_prefix

    def prepare(self, model: str, history: Sequence[dict[str, Any]]) -> None:
        """Catalog encoded, bundle taken, histories folded and stored."""
        from training.release.release import release

        items = [Record(f"{one.tenant}/{one.item_id}".encode(), msgspec.json.encode(one)) for one in self.world.items()]
        self.send(topics.ITEMS, items)
        ends = self.offsets.ends(topics.ITEMS)
        group = f"{self.prefix}-catalog-{model_store.newest_text_space(self.settings.registry)}"
        until_zero(lambda: self.offsets.of(group, ends), "items to encode", self.tell)
        release(self.settings, model, "benchmark")
        until_zero(lambda: 0 if any(model in label for label in metric(self.settings, "clickwake_model_info")) else 1,
                   "release to be taken", self.tell)  # fmt: skip
        self.send(topics.EVENTS, [Record.of(event) for event in history])
        self.await_done("histories")

    def await_done(self, what: str) -> tuple[float, float]:
        """Wait until all inputs are folded and committed, then until they and all outputs are stored and committed."""
        inputs = self.offsets.ends(*INPUTS)  # what personalize says to itself on the identity topic may still grow
        folded = until_zero(lambda: self.offsets.of(f"{self.prefix}-personalize", inputs), f"{what} to fold", self.tell)
        outputs = self.offsets.ends(topics.EVENTS, *topics.OUTPUTS)
        return folded, until_zero(lambda: self.offsets.of(f"{self.prefix}.sink", outputs), f"{what} to store", self.tell)

    def settle(self) -> float:
        """Wait until no recommendation is owed (each waits for the end of its interval) and all made are stored."""
        until_zero(lambda: owed(self.settings), "recommendations to make", self.tell)
        outputs = self.offsets.ends(*topics.OUTPUTS)
        return until_zero(lambda: self.offsets.of(f"{self.prefix}.sink", outputs), "recommendations to store", self.tell)

    def check(self, sent: int) -> None:
        """Raises `BenchFailed` where ClickHouse does not have each event once."""
        client = clickhouse.connect(self.settings.clickhouse, wait_s=10.0)
        try:
            expect("events", number(client, "SELECT count() FROM events FINAL"), sent)
        finally:
            client.close()

    def send(self, topic: Topic, records: Sequence[Record]) -> None:
        """All of it, by the contract's partitioner, acknowledged."""
        partitions = self.settings.kafka.partitions if topic.by_user else topic.partitions
        asyncio.run(_send(self.settings, topic.name(self.prefix), records, partitions))


async def _send(settings: Settings, topic: str, records: Sequence[Record], partitions: int) -> None:
    producer = producing.create_producer(settings)
    await producer.start()
    try:
        for start in range(0, len(records), SEND_RECORDS_MAX):
            some = records[start : start + SEND_RECORDS_MAX]
            await producing.send_keyed(producer, topic, ((key, value, ()) for key, value, _ in some), partitions)
    finally:
        await producer.stop()
