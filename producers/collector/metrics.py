"""The collector's counters, in a registry of their own so that two apps in one process do not share them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "clickwake_collector_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=self.registry
        )
        self.limited = Counter("clickwake_collector_limited", "Requests refused with 429, by code: too many at once (busy), "
                               "or too fast", ["code"], registry=self.registry)  # fmt: skip
        self.events = Counter(
            "clickwake_collector_events",
            "Events: accepted (acknowledged by Kafka), suppressed (of whom nothing is taken) or the keyword of the refusal",
            ["result"], registry=self.registry,
        )
        self.ack_seconds = Histogram(
            "clickwake_collector_ack_seconds", "From handing events to the producer to Kafka's acknowledgement",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10), registry=self.registry,
        )
        self.kafka_up = Gauge("clickwake_collector_kafka_up", "1 while the producer is connected", registry=self.registry)
        self.inflight = Gauge("clickwake_collector_inflight_requests", "Requests being handled", registry=self.registry)
