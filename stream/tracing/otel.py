"""`Tracing` by OpenTelemetry, after its semantic conventions for messaging, databases and HTTP servers.

A sampled event's trace: the request, `send` of its record, `process` in each process that takes it, `send` of each output
that answers it, and so on. A batch has a trace of its own: `process` with links to the records in it, and its INSERTs, with
links too.
No attribute holds an id of a user, a text or an address: what a span is about is told by partition and offset.
"""

from __future__ import annotations

import atexit
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from schemas import traceparent
from schemas.traceparent import Trace
from stream.settings import Tracing as Settings
from stream.tracing.export import LINKS_MAX, Pipe
from stream.tracing.port import NO_HEADERS, Headers, Message, Messages, Record, Whose, itself

SPANS_MAX = LINKS_MAX  # of one batch and of one sending: a larger ratio costs no more than this
REMEMBERED_USERS_MAX = 10_000  # whose last record was sampled, some 4 MB
REMEMBERED_S = 60.0  # what is said about a user later than this is no answer to that record; back ends close traces too
NEVER_TRACED = ("/health/", "/metrics")
METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"})
NOWHERE = Context()

Attributes = dict[str, Any]


class LinkedOrRatio(Sampler):
    """What has links is about something sampled and is sampled too; anything else follows its parent, else the ratio."""

    def __init__(self, ratio: float) -> None:
        self._ratio = TraceIdRatioBased(ratio)
        self._parent_based = ParentBased(self._ratio)
        self._linked = ParentBased(TraceIdRatioBased(1.0))

    def should_sample(self, parent_context: Context | None, trace_id: int, name: str, kind: SpanKind | None = None,
                      attributes: Any = None, links: Sequence[Link] | None = None, trace_state: Any = None,
                      ) -> SamplingResult:  # fmt: skip
        chosen = self._linked if links else self._parent_based
        return chosen.should_sample(parent_context, trace_id, name, kind, attributes, links)

    def of(self, trace_id: int) -> bool:
        """What the ratio says of a trace that began elsewhere."""
        return self._ratio.should_sample(None, trace_id, "").decision is Decision.RECORD_AND_SAMPLE

    def get_description(self) -> str:
        return f"LinkedOrRatio({self._ratio.rate})"


class OpenTelemetry:
    """One a process; exports what is left when the process ends."""

    def __init__(self, settings: Settings, service: str, registry: CollectorRegistry) -> None:
        self._settings, self._sampler = settings, LinkedOrRatio(settings.ratio)
        self.pipe = Pipe(settings, service, self._sampler, registry)
        self._tracer = self.pipe.provider.get_tracer("clickwake")
        self._remembered: OrderedDict[bytes, tuple[SpanContext, float]] = OrderedDict()
        atexit.register(self.pipe.close)

    def middleware(self) -> list[Middleware]:
        return [Middleware(Requests, tracing=self)]

    def current(self) -> Headers:
        return _headers(trace.get_current_span())

    @contextmanager
    def sending(self, topic: str, count: int) -> Iterator[Headers]:
        if not trace.get_current_span().is_recording():
            yield NO_HEADERS
            return
        with self._span(f"send {topic}", SpanKind.PRODUCER, _messaging("send", topic, batch=count)) as span:
            yield _headers(span)

    @contextmanager
    def batch(self, group: str | None, records: Iterable[Record]) -> Iterator[None]:
        sampled, latest = self._sampled(records)
        if not sampled:
            yield
            return
        topics = {record.topic for record, _ in sampled}
        topic = topics.pop() if len(topics) == 1 else None
        about = _messaging("process", topic, group=group, batch=len(sampled))
        links = [Link(_context_of(one)) for _, one in sampled]
        name = f"process {topic}" if topic else "process"
        with self._span(name, SpanKind.CONSUMER, about, context=NOWHERE, links=links) as whole:
            back = [Link(whole.get_span_context())]
            spans = [self._process(record, one, group, back) for record, one in sampled]
            for (record, _), span in zip(sampled, spans, strict=True):
                if latest.get(record.key) is record:
                    self._remember(record.key or b"", span.get_span_context())
            with _ending(spans):
                yield

    def _process(self, record: Record, one: Trace, group: str | None, back: list[Link]) -> Span:
        about = _messaging("process", record.topic, group=group) | {
            "messaging.destination.partition.id": str(record.partition), "messaging.kafka.offset": record.offset,
        }  # fmt: skip
        return self._tracer.start_span(f"process {record.topic}", _within(_context_of(one)), SpanKind.CONSUMER, about, back)

    def _sampled(self, records: Iterable[Record]) -> tuple[list[tuple[Record, Trace]], dict[bytes | None, Record]]:
        """Those of sampled traces, SPANS_MAX at most, and which of them is the last of its user. A user whose last record is
        not sampled is not remembered: what is said about them next answers that one."""
        found: list[tuple[Record, Trace]] = []
        latest: dict[bytes | None, Record] = {}
        over = 0
        for record in records:
            one = traceparent.of(record.headers) if record.headers else None
            if one is not None and len(found) < SPANS_MAX:
                found.append((record, one))
                latest[record.key] = record
                continue
            over += one is not None
            if latest:
                latest.pop(record.key, None)
            if self._remembered:
                self._remembered.pop(record.key or b"", None)
        if over:
            self.pipe.room.count("over_limit", over)
        return found, latest

    def _remember(self, user: bytes, context: SpanContext) -> None:
        self._remembered[user] = (context, time.monotonic())
        self._remembered.move_to_end(user)
        if len(self._remembered) > REMEMBERED_USERS_MAX:
            self._remembered.popitem(last=False)

    def _recent(self, user: bytes | None) -> SpanContext | None:
        found = self._remembered.get(user) if user is not None else None
        return found[0] if found is not None and time.monotonic() - found[1] < REMEMBERED_S else None

    @contextmanager
    def outgoing(self, topic: str, messages: Messages, whose: Whose = itself) -> Iterator[Messages]:
        if not self._remembered:
            yield messages
            return
        spans: list[Span] = []
        traced = {partition: [self._traced(topic, one, whose(one), spans) for one in rows]
                  for partition, rows in messages.items()}  # fmt: skip
        with _ending(spans):
            yield traced

    def _traced(self, topic: str, message: Message, cause: bytes | None, spans: list[Span]) -> Message:
        """Outputs are CloudEvents, as their headers say; anything else is state, or ours among ourselves."""
        key, value, headers = message
        is_output = bool(headers) and headers[0][0].startswith("ce_")
        context = self._recent(cause) if is_output and len(spans) < SPANS_MAX else None
        if context is None:
            return message
        span = self._tracer.start_span(f"send {topic}", _within(context), SpanKind.PRODUCER, _messaging("send", topic))
        spans.append(span)
        return key, value, [*headers, *_headers(span)]

    def insert(self, table: str, records: Sequence[Record]) -> AbstractContextManager[None]:
        if not trace.get_current_span().is_recording():
            return nullcontext()
        traces = (traceparent.of(record.headers) for record in records if record.headers)
        found = list(dict.fromkeys(one for one in traces if one is not None))[:LINKS_MAX]
        if not found:
            return nullcontext()
        about = {"db.system.name": "clickhouse", "db.operation.name": "INSERT", "db.collection.name": table,
                 "db.operation.batch.size": len(records)}  # fmt: skip
        return self._block(f"INSERT {table}", about, None, [Link(_context_of(one)) for one in found])

    def call(self, what: str, user: bytes) -> AbstractContextManager[None]:
        context = self._recent(user)
        return nullcontext() if context is None else self._block(what, {}, _within(context), ())

    @contextmanager
    def _block(self, name: str, about: Attributes, context: Context | None, links: Sequence[Link]) -> Iterator[None]:
        with self._span(name, SpanKind.CLIENT, about, context=context, links=links):
            yield

    @contextmanager
    def _span(self, name: str, kind: SpanKind, about: Attributes, context: Context | None = None,
              links: Sequence[Link] = ()) -> Iterator[Span]:  # fmt: skip
        """A span that is current within the block. Of an exception its kind is kept, not its text, which may name users."""
        span = self._tracer.start_span(name, context, kind, about, links)
        with _ending([span]), trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield span

    def request(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> AbstractContextManager[Span]:
        """A span of a request, in the client's trace where it names one."""
        context = NOWHERE
        found = next((value for name, value in headers if name == b"traceparent"), None)
        given = None if found is None else traceparent.parse(found)
        if given is not None:
            if not self._settings.clients_decide:
                given = given._replace(sampled=self._sampler.of(int(given.trace_id, 16)))
            context = _within(_context_of(given))
        return self._span(method, SpanKind.SERVER, {"http.request.method": method}, context=context)


class Requests:
    """ASGI: the span of a request is current while it is handled, and named after its route: paths hold ids of users."""

    def __init__(self, app: ASGIApp, tracing: OpenTelemetry) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(NEVER_TRACED):
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        with self._tracing.request(method, scope["headers"]) as span:
            if not span.is_recording():
                await self._app(scope, receive, send)
                return

            async def noting(message: AsgiMessage) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            try:
                await self._app(scope, receive, noting)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)


@contextmanager
def _ending(spans: list[Span]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        for span in spans:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR))
        raise
    finally:
        for span in spans:
            span.end()


def _messaging(operation: str, topic: str | None, group: str | None = None, batch: int | None = None) -> Attributes:
    about: Attributes = {"messaging.system": "kafka", "messaging.operation.name": operation,
                         "messaging.operation.type": operation}  # fmt: skip
    more = {"messaging.destination.name": topic, "messaging.consumer.group.name": group,
            "messaging.batch.message_count": batch}  # fmt: skip
    return about | {name: value for name, value in more.items() if value is not None}


def _context_of(one: Trace) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if one.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(one.trace_id, 16), int(one.span_id, 16), is_remote=True, trace_flags=flags)


def _within(context: SpanContext) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(context), NOWHERE)


def _headers(span: Span) -> Headers:
    if not span.is_recording():
        return NO_HEADERS
    context = span.get_span_context()
    one = Trace(trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id), True)
    return [(traceparent.HEADER, traceparent.encode(one))]
