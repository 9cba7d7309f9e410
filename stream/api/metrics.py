"""The read API's counters, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from stream.adapters.health.metrics import ReleaseMetrics
from stream.http.measured import SECONDS


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.releases = ReleaseMetrics(self.registry)
        self.requests = Counter("clickwake_api_requests", "Requests by endpoint and status", ["endpoint", "status"],
                                registry=self.registry)
        self.limited = Counter("clickwake_api_limited", "Requests refused with 429, by code: too many at once (busy) or too "
                               "fast", ["code"], registry=self.registry)  # fmt: skip
        self.seconds = Histogram(
            "clickwake_api_request_seconds", "From the request to its answer", ["endpoint"], registry=self.registry,
            buckets=SECONDS,
        )
        self.inflight = Gauge("clickwake_api_inflight_requests", "Requests being handled", registry=self.registry)
        self.stale_ms = Gauge("clickwake_api_stale_ms", "How old at most what is answered is, beside the changelog",
                              registry=self.registry)  # fmt: skip
        self.offers_stale_ms = Gauge("clickwake_api_offers_stale_ms", "How old at most what offers are chosen by is",
                                     registry=self.registry)  # fmt: skip
        self.decisions = Gauge("clickwake_api_decisions", "Decisions logged, or lost because Kafka did not take them",
                               ["outcome"], registry=self.registry)  # fmt: skip
