"""Events at a fixed pace, and how long after its due time each one's recommendation and row are there to be read."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition

from benchmarks.latency import Schedule, percentiles
from benchmarks.rush import Moved, stamped
from producers.kafka import client_options
from producers.simulate.mess import Record
from schemas import topics
from schemas.outputs import Recommendation
from stream.adapters.database import clickhouse
from stream.adapters.kafka import producing
from stream.adapters.kafka.kafka_clients import partition_of
from stream.settings import Settings

LEAD_S = 0.5  # between fixing the schedule and its first event
SAMPLE_EVERY = 100  # of events, one is looked for in ClickHouse
ROW_POLL_S = 0.05  # … this often while it is due and absent: the resolution of that figure
TELL_EVERY = 100
POLL_MS = 100
SILENCE_S_MAX = 20.0  # a sample that is not there so long after the last event is missing


class Listener(threading.Thread):
    """Notes when a consumer of the recommendations topic sees the answer to each event."""

    def __init__(self, settings: Settings, offsets: dict[TopicPartition, int]) -> None:
        super().__init__(name="listener", daemon=True)
        self.seen_s: dict[str, float] = {}  # event id → seconds since 1970
        self.records = 0
        self.over = threading.Event()
        self._consumer: Any = KafkaConsumer(**client_options(settings.kafka), group_id=None, enable_auto_commit=False)
        self._consumer.assign(list(offsets))
        for tp, offset in offsets.items():
            self._consumer.seek(tp, offset)
        self._consumer.poll(timeout_ms=0)

    def run(self) -> None:
        decode = msgspec.json.Decoder(Recommendation).decode
        while not self.over.is_set():
            found = self._consumer.poll(timeout_ms=POLL_MS)
            now_s = time.time()
            for records in found.values():
                self.records += len(records)
                for one in records:
                    self.seen_s.setdefault(decode(one.value).as_of_event_id, now_s)
        self._consumer.close()


class RowWatch(threading.Thread):
    """Notes when a sample of the events can be selected from ClickHouse."""

    def __init__(self, settings: Settings, due_s: dict[str, float]) -> None:
        super().__init__(name="rows", daemon=True)
        self.due_s, self.seen_s = due_s, dict[str, float]()
        self._client = clickhouse.connect(settings.clickhouse, wait_s=10.0)

    def run(self) -> None:
        last_s = max(self.due_s.values()) + SILENCE_S_MAX
        while len(self.seen_s) < len(self.due_s) and (now_s := time.time()) < last_s:
            wanted = [ident for ident, due_s in self.due_s.items() if ident not in self.seen_s and due_s <= now_s]
            if wanted:
                found = self._client.query("SELECT message_id FROM events WHERE message_id IN {ids:Array(String)}",
                                           parameters={"ids": wanted})  # fmt: skip
                now_s = time.time()
                self.seen_s.update((row[0], now_s) for row in found.result_rows)
            time.sleep(ROW_POLL_S)  # ClickHouse tells nobody of a new row
        self._client.close()


async def send(settings: Settings, moved: Sequence[Moved], schedule: Schedule, tell: Callable[[str], None]) -> None:
    """Send each event at its due time, stamped with it; returns once the broker has acknowledged all of them."""
    topic = topics.EVENTS.name(settings.kafka.topic_prefix)
    producer = producing.create_producer(settings)
    await producer.start()
    try:
        sent = []
        for number, one in enumerate(moved):
            due_s = schedule.due_s(number)
            await asyncio.sleep(max(0.0, due_s - time.time()))
            key, value, _ = Record.of(stamped(one.event, round(due_s * 1000)))
            sent.append(await producer.send(topic, value, key=key, partition=partition_of(key, settings.kafka.partitions)))
            if number % TELL_EVERY == 0:
                tell(f"at {schedule.rate:g} events/s: {number:,} of {len(moved):,}")
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


class OpenLoop:
    """One run. `offsets` is where the recommendations topic ended before it."""

    def __init__(self, settings: Settings, moved: Sequence[Moved], rate: float, offsets: dict[TopicPartition, int]) -> None:
        self.settings, self.moved = settings, moved
        self.listener = Listener(settings, offsets)
        self.schedule = Schedule(time.time() + LEAD_S, rate)
        self.due_s = {one.event["messageId"]: self.schedule.due_s(number) for number, one in enumerate(moved)}
        self.rows = RowWatch(settings, dict(list(self.due_s.items())[SAMPLE_EVERY // 2 :: SAMPLE_EVERY]))

    def run(self, tell: Callable[[str], None]) -> None:
        """Send everything and look for the sample's rows."""
        self.listener.start()
        self.rows.start()
        asyncio.run(send(self.settings, self.moved, self.schedule, tell))
        self.rows.join()

    def figures(self) -> dict[str, Any]:
        """Once the listener has read everything. Raises ValueError when nothing was recommended or no row was seen."""
        self.listener.over.set()
        self.listener.join()
        answered = {ident: seen_s for ident, seen_s in self.listener.seen_s.items() if ident in self.due_s}
        latencies = [seen_s - self.due_s[ident] for ident, seen_s in answered.items()]
        rows = [seen_s - self.rows.due_s[ident] for ident, seen_s in self.rows.seen_s.items()]
        return {
            "events": len(self.due_s),
            "events_per_s": self.schedule.rate,
            "recommended_share": round(len(answered) / len(self.due_s), 4),
            "recommendation": percentiles(latencies)._asdict(),
            "row": percentiles(rows)._asdict() | {"sample": len(self.rows.due_s), "resolution_ms": ROW_POLL_S * 1000},
        }
