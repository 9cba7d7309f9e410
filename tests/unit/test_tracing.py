"""What tracing adds, where it must add nothing, and what becomes of spans that nobody takes."""

from __future__ import annotations

import atexit
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from producers.collector.app import create_app
from schemas import traceparent
from schemas.traceparent import Trace
from stream.settings import Settings, Tracing
from stream.tracing import otel, port
from stream.tracing.otel import SPANS_MAX, OpenTelemetry
from stream.tracing.port import Headers, Messages

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
EVENTS, OUT = "clickwake.events.v1", "clickwake.recommendations.v1"
CE: Headers = [("ce_id", b"r1")]
OWN: Headers = [("claim", b"w1")]  # of a record of state
SPANS_WAITING_MAX = 40


class Traced:
    """Tracing whose spans are looked at here; those that it exports go nowhere."""

    def __init__(self, **settings: Any) -> None:
        with socket.socket() as nobody:  # a port on which nobody listens
            nobody.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1/traces"
        self.registry = CollectorRegistry()
        self.tracing = OpenTelemetry(Tracing(endpoint=endpoint, **settings), "test", self.registry)
        self._memory = InMemorySpanExporter()
        self.tracing.pipe.provider.add_span_processor(SimpleSpanProcessor(self._memory))

    def spans(self) -> list[ReadableSpan]:
        return list(self._memory.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        (one,) = [span for span in self.spans() if span.name == name]
        return one

    def close(self) -> None:
        atexit.unregister(self.tracing.pipe.close)
        self.tracing.pipe.close(wait_s=0)

    def count(self, result: str) -> float:
        return self.registry.get_sample_value("clickwake_spans_total", {"result": result}) or 0.0


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced(ratio=0.0, spans_max=SPANS_WAITING_MAX)
    yield made
    made.close()


def record(offset: int, user: bytes = b"shop/u1", parent: str | None = PARENT, topic: str = EVENTS) -> Any:
    headers = [] if parent is None else [("traceparent", parent.encode())]
    return SimpleNamespace(topic=topic, partition=2, offset=offset, key=user, headers=headers)


def sent(tracing: port.Tracing, messages: Messages, topic: str = OUT) -> Messages:
    with tracing.outgoing(topic, messages) as found:
        return found


ids = st.integers(1, 2**128 - 1).map(lambda one: f"{one:032x}")


@given(ids, st.integers(1, 2**64 - 1).map(lambda one: f"{one:016x}"), st.booleans())
def test_what_is_written_is_read_back_and_by_the_official_propagator_too(trace: str, span: str, sampled: bool) -> None:
    from opentelemetry import trace as api

    raw = traceparent.encode(Trace(trace, span, sampled))
    assert traceparent.parse(raw) == Trace(trace, span, sampled)
    theirs = api.get_current_span(TraceContextTextMapPropagator().extract({"traceparent": raw.decode()})).get_span_context()
    assert (theirs.trace_id, theirs.span_id, theirs.trace_flags.sampled) == (int(trace, 16), int(span, 16), sampled)


@given(st.binary(max_size=70) | st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"))
def test_any_bytes_are_read_as_the_official_propagator_reads_them(raw: bytes) -> None:
    from opentelemetry import trace as api

    found = traceparent.parse(raw)
    assert traceparent.trace_id([("traceparent", raw)]) == (found.trace_id if found and found.sampled else "")
    if raw.isascii() and raw.decode().strip() == raw.decode():
        context = TraceContextTextMapPropagator().extract({"traceparent": raw.decode()})
        theirs = api.get_current_span(context).get_span_context()
        assert (found is not None) == theirs.is_valid
    assert traceparent.of([("traceparent", None), ("other", raw)]) is None


def test_a_batch_links_to_its_sampled_records_and_each_goes_on_in_its_own_trace(traced: Traced) -> None:
    plain, other = record(7, parent=None), record(9, b"shop/u2", PARENT.replace("4bf9", "aaaa"))
    with traced.tracing.batch("g", [record(5), plain, other]):
        pass
    spans = traced.spans()
    (whole,) = [span for span in spans if span.parent is None]
    ours = {span.context.trace_id for span in spans if span.parent is not None and span.context is not None}
    assert ours == {int(TRACE, 16), int(TRACE.replace("4bf9", "aaaa"), 16)} == {one.context.trace_id for one in whole.links}
    (first,) = [span for span in spans if span.context and span.context.trace_id == int(TRACE, 16)]
    assert first.parent and first.parent.span_id == int(PARENT.split("-")[2], 16)
    assert first.links[0].context == whole.context and first.attributes and whole.attributes
    assert (first.attributes["messaging.destination.partition.id"], first.attributes["messaging.kafka.offset"]) == ("2", 5)
    assert whole.attributes["messaging.batch.message_count"] == 2


def test_an_output_goes_on_with_the_trace_of_the_event_it_answers(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced.tracing.batch("g", [record(5), record(6, b"shop/u2"), record(7, b"shop/u2", None)]):
        messages = sent(traced.tracing, {0: [(b"shop/u1", b"{}", CE), (b"shop/u2", b"{}", CE), (b"shop/u1", b"state", OWN)]})
    (answer, other, state) = messages[0]
    assert traceparent.trace_id(answer[2]) == TRACE and answer[2][0] == CE[0]
    assert other == (b"shop/u2", b"{}", CE), "it answers a later event, which is not sampled"
    assert state == (b"shop/u1", b"state", OWN)
    span, processed = traced.named(f"send {OUT}"), [one for one in traced.spans() if one.name == f"process {EVENTS}"]
    assert span.parent in [one.context for one in processed]
    with traced.tracing.call("deliver webhook", b"shop/u1"), traced.tracing.call("deliver webhook", b"shop/u2"):
        pass
    assert traced.named("deliver webhook").context.trace_id == int(TRACE, 16)  # type: ignore[union-attr]
    monkeypatch.setattr(otel, "REMEMBERED_S", 0.0)
    late: Messages = {0: [(b"shop/u1", b"{}", CE)]}
    assert sent(traced.tracing, late) == late


def test_an_output_under_another_key_goes_on_with_the_trace_of_what_it_is_said_to_answer(traced: Traced) -> None:
    users = {b"hers": b"shop/u1", b"his": b"shop/u2"}
    with traced.tracing.batch(None, [record(5), record(6, b"shop/u2", PARENT.replace("4bf9", "aaaa"))]):
        with traced.tracing.outgoing(OUT, {0: [(b"shop/Clay", value, CE) for value in (*users, b"whose?")]},
                                     lambda message: users.get(message[1] or b"")) as found:  # fmt: skip
            pass
        assert sent(traced.tracing, {0: [(b"shop/Clay", b"hers", CE)]}) == {0: [(b"shop/Clay", b"hers", CE)]}
    assert [traceparent.trace_id(headers) for _, _, headers in found[0]] == [TRACE, TRACE.replace("4bf9", "aaaa"), ""]
    assert not any("messaging.consumer.group.name" in (one.attributes or {}) for one in traced.spans())


@given(st.lists(st.tuples(st.sampled_from([b"shop/u1", b"shop/u2", None]), st.binary(max_size=4) | st.none(),
                          st.sampled_from([CE, OWN, []])), max_size=8))  # fmt: skip
def test_tracing_adds_one_header_and_changes_nothing(messages: list[port.Message]) -> None:
    """Whatever is sampled: keys, values, their order and the headers that were there."""
    made = Traced(ratio=1.0)
    with made.tracing.batch("g", [record(1)]):
        found = sent(made.tracing, {3: messages})
    made.close()
    assert sent(port.UNTRACED, {3: messages}) == {3: messages}
    assert [(key, value, [one for one in headers if one[0] != "traceparent"]) for key, value, headers in found[3]] == [
        (key, value, list(headers)) for key, value, headers in messages]  # fmt: skip


def test_more_sampled_records_than_a_batch_may_trace_are_counted(traced: Traced) -> None:
    with traced.tracing.batch("g", [record(number) for number in range(SPANS_MAX + 5)]):
        pass
    assert len(traced.spans()) == SPANS_MAX + 1 and traced.count("over_limit") == 5


def test_an_error_is_kept_by_its_kind_without_its_text(traced: Traced) -> None:
    on = traced.tracing
    with pytest.raises(ValueError, match="alice"), on.batch("g", [record(1)]), on.insert("t", [record(1)]):
        raise ValueError("alice@example.com is not a number")
    for span in traced.spans():
        assert not span.status.is_ok and span.attributes and span.attributes["error.type"] == "ValueError"
        assert span.events == () and "alice" not in span.to_json()
    assert len(traced.spans()) == 3


async def test_a_request_is_named_after_its_route_and_its_path_is_nowhere(traced: Traced) -> None:
    def user(request: Request) -> Response:
        return Response(status_code=503, headers={name: value.decode() for name, value in traced.tracing.current()})

    routes = [Route("/v1/users/{user}", user), Route("/health/live", user)]
    app = Starlette(routes=routes, middleware=traced.tracing.middleware())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        answer = await client.get("/v1/users/alice?q=secret", headers={"traceparent": PARENT})
        assert traceparent.trace_id([("traceparent", answer.headers["traceparent"].encode())]) == TRACE
        for path, parent in (("/v1/users/alice", PARENT[:-1] + "0"), ("/health/live", PARENT), ("/v1/users/bob", "rubbish")):
            assert "traceparent" not in (await client.get(path, headers={"traceparent": parent})).headers
    (span,) = traced.spans()
    assert (span.name, span.status.is_ok) == ("GET /v1/users/{user}", False)
    assert span.attributes == {"http.request.method": "GET", "http.route": "/v1/users/{user}",
                               "http.response.status_code": 503}  # fmt: skip


@pytest.mark.parametrize(("clients_decide", "spans"), [(True, 1), (False, 0)])
def test_clients_decide_only_where_they_may(clients_decide: bool, spans: int) -> None:
    made = Traced(ratio=0.0, clients_decide=clients_decide)
    with made.tracing.request("GET", [(b"traceparent", PARENT.encode())]):
        pass
    assert len(made.spans()) == spans
    made.close()


def test_spans_that_nobody_takes_are_bounded_dropped_and_counted(traced: Traced) -> None:
    ended = 3_000
    for number in range(ended):
        with traced.tracing.batch("g", [record(number)]):
            pass
    spans = 2 * ended
    lost = sum(traced.count(result) for result in ("dropped", "failed", "exported"))
    assert spans - SPANS_WAITING_MAX <= lost <= spans and traced.count("exported") == 0
    began = time.monotonic()
    traced.tracing.pipe.close()
    assert time.monotonic() - began < 10  # s: a process told to end has 17
    assert traced.count("dropped") + traced.count("failed") == spans


def test_off_is_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings()
    assert port.start(settings, "x") is port.UNTRACED and port.UNTRACED.middleware() == []
    assert len(create_app(settings).user_middleware) == 1  # CORS
    monkeypatch.setitem(__import__("sys").modules, "stream.tracing.otel", None)
    with pytest.raises(port.TracingMissing, match=r"clickwake\[telemetry\]"):
        port.start(Settings(tracing=Tracing(endpoint="http://127.0.0.1:4318/v1/traces")), "x")


def test_standard_names_are_read_and_ours_win(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT": "http://tempo:4318/", "HEADERS": "api-key=s%3D1, b=2"}.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    found = Settings().tracing
    assert (found.endpoint, found.ratio) == ("http://tempo:4318/v1/traces", 0.25)
    assert {name: one.get_secret_value() for name, one in found.headers.items()} == {"api-key": "s=1", "b": "2"}
    monkeypatch.setenv("CLICKWAKE_TRACING__RATIO", "0.5")
    assert (Settings().tracing.ratio, Settings().tracing.endpoint) == (0.5, "http://tempo:4318/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ValueError, match="4318"):
        Settings()
    monkeypatch.setenv("CLICKWAKE_TRACING__ENDPOINT", "")
    assert Settings().tracing.endpoint == ""
    monkeypatch.delenv("CLICKWAKE_TRACING__ENDPOINT")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Settings().tracing.endpoint == ""
    with pytest.raises(ValidationError):
        Tracing(ratio=1.5)
