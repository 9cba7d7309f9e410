"""The topics that make up what a process ranks with, read whole: item vectors, item counts, releases, and what people think
of items where that is to count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from schemas import topics
from schemas.topics import Topic
from stream.adapters.health.metrics import ReleaseMetrics
from stream.adapters.kafka.global_reader import GlobalReader, OnRecords, readable
from stream.adapters.models.releases import Releases
from stream.core.terms import term_of
from stream.serving import ServingState
from stream.settings import Settings

T = TypeVar("T")


class ServingReaders:
    """Keeps a `ServingState` up to date, and runs its models in a thread of their own."""

    def __init__(self, settings: Settings, metrics: ReleaseMetrics) -> None:
        weight = settings.personalize.satisfaction_weight
        self.serving = ServingState(weight)
        self._models_thread = ThreadPoolExecutor(1, thread_name_prefix="onnx")  # inline calls would stall heartbeats
        self.releases = Releases(settings, self.serving, self._models_thread, metrics)
        prefix = settings.kafka.topic_prefix
        wanted: dict[Topic, OnRecords] = {
            topics.ITEM_VECTORS: self._on_vectors,
            topics.ITEM_COUNTS: self._on_counts,
            topics.MODELS: self.releases.on_records,
        }
        if weight:
            wanted[topics.SATISFACTION] = self._on_satisfaction
        self.readers = {topic: GlobalReader(settings, topic.name(prefix), then) for topic, then in wanted.items()}

    def start(self, group: asyncio.TaskGroup) -> None:
        """Follow in tasks of the group, which ends with what ends one of them."""
        for reader in self.readers.values():
            reader.start()
            group.create_task(reader.wait_failed())
        group.create_task(self.releases.run())

    async def ready(self) -> None:
        """Return once all that was on the topics at the start is known, and the release announced last taken or refused."""
        await asyncio.gather(*(reader.ready() for reader in self.readers.values()))
        await self.releases.settled()

    async def run_model(self, call: Callable[..., T], *args: object) -> T:
        """The port `Runner`."""
        return await asyncio.get_running_loop().run_in_executor(self._models_thread, partial(call, *args))

    def _on_vectors(self, records: list[Any]) -> None:
        told = readable(records, lambda one: self.serving.on_vector(one.key or b"", one.value))
        self.serving.current.put_items([one for one in told if one is not None])

    def _on_counts(self, records: list[Any]) -> None:
        readable(records, lambda one: self.serving.on_count(one.key or b"", one.value, one.partition, term_of(one.headers)))

    def _on_satisfaction(self, records: list[Any]) -> None:
        readable(records, lambda one: self.serving.on_satisfaction(one.key or b"", one.value))
