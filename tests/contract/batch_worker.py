"""A worker in a process of its own for the transport's contract tests: `python batch_worker.py '{"log": …}'`.

It writes one JSON line for each thing that happens to its log, acknowledging a batch only after its line is written, so
that the log always covers at least what may be committed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError

from stream.adapters.faust import faust_compat
from stream.adapters.faust.faust_compat import TP, RecordBatch
from stream.adapters.health import watchdog
from stream.settings import Kafka, Settings


class Worker:
    """Holds batches open for `hold_ms`, as an interval does, then acknowledges them all."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.open: list[RecordBatch] = []
        self.log = Path(options["log"]).open("a", buffering=1)  # noqa: SIM115  # open as long as the process
        settings = Settings(home=Path(options["home"]),
                            kafka=Kafka(bootstrap_servers=options["servers"], topic_prefix=options["prefix"]))
        self.app = faust_compat.create_app(settings, "worker", self.on_assigned, self.on_revoked,
                                           batch_records_max=options.get("batch_records_max", 500), commit_interval_ms=200,
                                           broker_session_timeout=options.get("session_s", 6.0),
                                           broker_heartbeat_interval=1.0, **options.get("settings", {}))
        faust_compat.batch_agent(self.app, *options["topics"], name="work")(self.work)
        if "stall_s" in options:
            self.app.task(self.watch)

    async def watch(self) -> None:
        await watchdog.watch(self.app, stall_s=self.options["stall_s"], interval_s=0.2)

    def say(self, what: str, **fields: Any) -> None:
        self.log.write(json.dumps({"what": what, **fields}) + "\n")

    def answer_late(self, seconds: float) -> None:
        """The group's coordinator, once, on where the group goes on."""
        thread: Any = self.app.consumer._thread
        rewind = thread.rewind

        async def late(epoch: int) -> set[TP]:
            thread.rewind = rewind
            await asyncio.sleep(seconds)
            found: set[TP] = await rewind(epoch)
            return found

        thread.rewind = late

    async def on_assigned(self, partitions: set[TP]) -> None:
        if seconds := self.options.pop("committed_takes_s", 0):
            self.answer_late(seconds)
        self.say("assigned", partitions=sorted(partitions), generation=faust_compat.current_generation(self.app))
        if self.options.get("fail") == "assigned":
            raise RuntimeError("on_assigned fails on purpose")
        if self.options.pop("heartbeat_fails", False):
            self.fail_a_heartbeat()
        await asyncio.sleep(self.options.get("recovery_s", 0))
        self.say("recovered")

    def fail_a_heartbeat(self) -> None:
        """As on an answer that aiokafka does not know."""
        coordinator = self.app.consumer._thread._ensure_consumer()._coordinator
        heartbeat = coordinator._do_heartbeat

        async def fails() -> bool:
            coordinator._do_heartbeat = heartbeat
            raise KafkaError("a heartbeat fails on purpose")

        coordinator._do_heartbeat = fails

    async def rebalance(self) -> None:
        """Returns when the group's is under way, and waits for us."""
        consumer = self.app.consumer
        consumer.thread_loop.call_soon_threadsafe(consumer._thread._ensure_consumer()._coordinator.request_rejoin)
        while not consumer._hand_over_lock._waiters:  # noqa: ASYNC110  # aiokafka's thread sets no event of ours
            await asyncio.sleep(0.01)

    async def on_revoked(self, partitions: set[TP]) -> None:
        if self.options.get("rebalance_at_end") and self.app.should_stop:
            await self.rebalance()
        self.flush()
        self.say("revoked", partitions=sorted(partitions))

    def flush(self) -> None:
        """What may not be written now is tried again, as long as nobody else is to read it: where the broker was away for
        longer than a session, the next heartbeat may find the membership as it was."""
        held = []
        for batch in self.open:
            if faust_compat.owns(self.app, batch.generation):
                self.say("done", partition=batch.partition, first=batch.first_offset, next=batch.next_offset,
                         generation=batch.generation, stale=batch.stale)
                batch.ack()
            else:
                self.say("fenced", partition=batch.partition, first=batch.first_offset)
                if not batch.stale:
                    held.append(batch)
        self.open = held

    async def work(self, batches: AsyncIterator[RecordBatch]) -> None:
        flusher = asyncio.create_task(self.flush_forever())
        async for batch in batches:
            offsets = [record.offset for record in batch.records]
            self.say("delivered", partition=batch.partition, first=batch.first_offset, next=batch.next_offset,
                     generation=batch.generation, epoch=batch.epoch, ordered=offsets == sorted(set(offsets)))
            if self.options.get("fail") == "body":
                raise ValueError("the body fails on purpose")
            if self.options.get("never_ack") == [batch.partition, batch.first_offset]:
                continue
            self.open.append(batch)
            if not self.options.get("hold_ms"):
                self.flush()
            await asyncio.sleep(self.options.get("work_ms", 0) / 1000)
        flusher.cancel()

    async def flush_forever(self) -> None:
        while True:
            await asyncio.sleep(self.options.get("hold_ms", 1_000) / 1000)
            self.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    faust_compat.run(Worker(json.loads(sys.argv[1])).app)
