"""Prometheus metrics of a worker, on a loopback port that is written to `<home>/run/<name>-<pid>.json` once it is ready."""

from __future__ import annotations

import os
from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from schemas import topics
from stream.adapters.health import memory, metrics_port
from stream.adapters.state.state_store import SHARED
from stream.files import RunFile
from stream.partition import PartitionState
from stream.settings import Settings

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ReleaseMetrics:
    """Which bundle a process ranks with."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.releases = Counter("clickwake_releases", "bundles announced, by what became of them", ["result"],
                                registry=registry)
        for result in ("taken", "refused"):  # a counter that begins at 1 has not increased, and nobody would be alerted
            self.releases.labels(result)
        self.model = Gauge("clickwake_model_info", "1 for the model in use", ["model_version"], registry=registry)

    def release(self, result: str, version: str) -> None:
        self.releases.labels(result).inc()
        if result == "taken":
            self.model.clear()
            self.model.labels(version).set(1)


class Metrics:
    """Counters are absolute since the process started; a scraper takes rates."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self._events = name, topics.EVENTS.name(settings.kafka.topic_prefix)
        self.records = Counter("clickwake_records", "input records taken", ["topic"])
        self.outcomes = Counter("clickwake_outcomes", "what became of inputs, and what was said", ["outcome", "partition"])
        self.accounts = Gauge("clickwake_accounts", "records of the events topic by what became of them, since the "
                              "partition began; kept with the state, so they outlive the process", ["end", "partition"])
        self.unaccounted = Gauge("clickwake_unaccounted", "offsets of the events topic without a record that has an end: 0, "
                                 "unless retention took them unread, or they mark a producer's transactions", ["partition"])
        self.lag = Gauge("clickwake_personalize_lag", "events that are not folded, of the partitions that are open here",
                         ["partition"])
        self.owed = Gauge("clickwake_recommendations_owed", "users who wait for their interval or turn", ["partition"])
        self.batch_seconds = Histogram("clickwake_batch_seconds", "steps 2 to 5 of a batch", buckets=_SECONDS)
        self.interval_seconds = Histogram("clickwake_interval_seconds", "step 6 of an interval", buckets=_SECONDS)
        self.releases = ReleaseMetrics()
        memory.expose(SHARED)
        server = metrics_port.listen(settings, settings.personalize.metrics_port)
        self._run_file = RunFile(settings.home, f"{name}-{os.getpid()}", metrics_port=server.server_port)

    def announce(self) -> None:
        """Say where the metrics are, which also says that the worker is ready. Again is harmless."""
        self._run_file.say()

    def batch_done(self, topic: str, records: int, seconds: float) -> None:
        self.records.labels(topic).inc(records)
        self.batch_seconds.observe(seconds)

    def let_go(self, partitions: Iterable[int]) -> None:
        """What is true of them now, their next owner says; counters stay what they are."""
        for partition in partitions:
            for gauge in (self.accounts, self.unaccounted, self.lag, self.owed):
                gauge.remove_by_labels({"partition": str(partition)})

    def interval_closed(self, state: PartitionState, seconds: float) -> None:
        self.interval_seconds.observe(seconds)
        for outcome, count in state.outcomes.items():
            self.outcomes.labels(outcome, str(state.partition)).inc(count)
        state.outcomes.clear()
        for end, count in state.meta.accounts.ends.items():
            self.accounts.labels(end, str(state.partition)).set(count)
        self.unaccounted.labels(str(state.partition)).set(state.unaccounted(self._events))
        self.owed.labels(str(state.partition)).set(len(state.owed))
