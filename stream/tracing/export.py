"""Spans on their way out: so many at most wait, the rest is dropped and counted. A collector that is away harms nobody.

The SDK's own queue drops the oldest without counting; so what may enter it is bounded here, the batch under way included.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler
from prometheus_client import CollectorRegistry, Counter

from stream.settings import Tracing as Settings

EXPORT_SPANS_MAX = 512  # of one request, some 200 kB
EXPORT_INTERVAL_MS = 2_000
EXPORT_TIMEOUT_S = 5.0  # of one request, its repetitions included
CLOSE_TIMEOUT_S = 2.0  # at the end of the process; then what is left is dropped
LINKS_MAX = 128  # of one span; the default of the specification
ATTRIBUTE_CHARS_MAX = 256


class Room:
    """How many spans wait for the exporter, and what became of all others."""

    def __init__(self, spans_max: int, registry: CollectorRegistry) -> None:
        self._spans_max, self._waiting, self._lock = spans_max, 0, threading.Lock()
        self._spans = Counter("clickwake_spans", "Spans of sampled traces, by what became of them", ["result"],
                              registry=registry)  # fmt: skip

    def take(self) -> bool:
        with self._lock:
            if self._waiting < self._spans_max:
                self._waiting += 1
                return True
        self.count("dropped", 1)
        return False

    def leave(self, spans: int, exported: bool) -> None:
        with self._lock:
            self._waiting -= spans
        self.count("exported" if exported else "failed", spans)

    def count(self, result: str, spans: int) -> None:
        self._spans.labels(result).inc(spans)


class Counted(SpanExporter):
    """An exporter whose spans leave the room, whether they arrived or not."""

    def __init__(self, inner: SpanExporter, room: Room) -> None:
        self._inner, self._room, self._closed = inner, room, threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            if not self._closed.is_set():
                result = self._inner.export(spans)
        finally:
            self._room.leave(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class Bounded(SpanProcessor):
    """The SDK's batching, for as many spans as there is room for."""

    def __init__(self, exporter: Counted, room: Room, spans_max: int) -> None:
        self._room = room
        self._inner = BatchSpanProcessor(exporter, max_queue_size=spans_max, schedule_delay_millis=EXPORT_INTERVAL_MS,
                                         max_export_batch_size=min(EXPORT_SPANS_MAX, spans_max),
                                         export_timeout_millis=EXPORT_TIMEOUT_S * 1000)  # fmt: skip

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing: the SDK asks for it."""

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled and self._room.take():
            self._inner.on_end(span)

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class Pipe:
    """The SDK's provider, and how it ends. Everything the SDK would read from the environment is given to it."""

    def __init__(self, settings: Settings, service: str, sampler: Sampler, registry: CollectorRegistry) -> None:
        self.room = Room(settings.spans_max, registry)
        self._exporter = Counted(OTLPSpanExporter(
            endpoint=settings.endpoint, timeout=EXPORT_TIMEOUT_S, compression=Compression.Gzip,
            headers={name: value.get_secret_value() for name, value in settings.headers.items()},
        ), self.room)  # fmt: skip
        self.provider = TracerProvider(
            sampler=sampler, shutdown_on_exit=False,
            resource=Resource({"service.name": f"clickwake-{service}", "service.namespace": "clickwake",
                               "service.version": version("clickwake"), "service.instance.id": str(uuid.uuid4())}),
            span_limits=SpanLimits(max_links=LINKS_MAX, max_span_attribute_length=ATTRIBUTE_CHARS_MAX),
        )  # fmt: skip
        self.provider.add_span_processor(Bounded(self._exporter, self.room, settings.spans_max))

    def flush(self) -> None:
        """Return once what was ended is exported or failed."""
        self.provider.force_flush()

    def close(self, wait_s: float = CLOSE_TIMEOUT_S) -> None:
        """Export what is left, for that long and the request under way at most."""
        timer = threading.Timer(wait_s, self._exporter.shutdown)
        timer.daemon = True
        timer.start()
        try:
            self.provider.shutdown()
        finally:
            timer.cancel()
