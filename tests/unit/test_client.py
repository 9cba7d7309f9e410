"""The Python client against a collector that fails: nothing is lost, nothing has two ids, refusals are told."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from producers import client as module
from producers.client import Client, QueueFull, Unsent


class FakeCollector(httpx.BaseTransport):
    """Answers what `answers` says, then 200."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.batches: list[list[dict[str, Any]]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.batches.append(json.loads(request.read())["batch"])
        answer = self.answers.pop(0) if self.answers else httpx.Response(200, json={"success": True, "rejected": []})
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_FIRST_S", 0.01)


def test_events_are_sent_in_batches_in_their_order() -> None:
    collector = FakeCollector()
    with Client("key", "http://collector", transport=collector) as client:
        ids = [client.track("u1", "Product Viewed", {"product_id": f"p{n}"}) for n in range(250)]
        client.identify("u1", {"plan": "pro"}, anonymousId="a1")
        assert client.flush(10)
    sent = [event for batch in collector.batches for event in batch]
    assert [event["messageId"] for event in sent[:250]] == ids and sent[250]["anonymousId"] == "a1"
    assert max(map(len, collector.batches)) <= module.AT_ONCE_MAX and len(collector.batches) < 10


def test_what_is_not_taken_is_sent_again_under_the_same_ids() -> None:
    collector = FakeCollector(httpx.ConnectError("away"), httpx.Response(503, headers={"Retry-After": "0"}),
                              httpx.Response(429))  # fmt: skip
    with Client("key", "http://collector", transport=collector) as client:
        ident = client.page("u1", "home")
        assert client.flush(10)
    assert [[event["messageId"] for event in batch] for batch in collector.batches] == [[ident]] * 4


def test_refused_events_are_told_and_their_neighbours_are_not_sent_again() -> None:
    told: list[tuple[str, str]] = []
    rejected = {"success": True, "rejected": [{"index": 1, "messages": ["no user"]}]}
    collector = FakeCollector(httpx.Response(200, json=rejected), httpx.Response(400, text="no event was accepted"))
    with Client("key", "http://collector", transport=collector,
                on_refused=lambda event, why: told.append((event["event"], why))) as client:  # fmt: skip
        client.track("u1", "a")
        client.track("", "b")
        assert client.flush(10)
        client.track("", "c")
        assert client.flush(10)
    assert told == [("b", "['no user']"), ("c", "no event was accepted")] and len(collector.batches) == 2


def test_a_full_queue_is_said_and_closing_gives_up_in_time() -> None:
    collector = FakeCollector(*[httpx.ConnectError("away")] * 1_000)
    client = Client("key", "http://collector", queue_max=2, transport=collector)
    with pytest.raises(QueueFull, match="is the collector up"):
        for _ in range(1_000):
            client.track("u1", "x")
    assert not client.close(timeout_s=0.05) and [one["event"] for one in client.unsent] == ["x", "x"]
    with pytest.raises(RuntimeError, match="closed"):
        client.track("u1", "x")


def test_what_is_left_at_the_end_of_a_block_is_raised_with_its_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "flush", lambda self, timeout_s=None: False)  # the ten seconds are over
    collector = FakeCollector(*[httpx.ConnectError("away")] * 1_000)
    with (pytest.raises(Unsent, match="1 events were not acknowledged") as raised,
          Client("key", "http://collector", transport=collector) as client):  # fmt: skip
        ident = client.track("u1", "x")
    assert [one["messageId"] for one in raised.value.events] == [ident]
    with pytest.raises(ZeroDivisionError), Client("key", "http://collector", transport=collector) as client:
        client.track("u1", "x")
        raise ZeroDivisionError


PAGE = httpx.Response(200, text="<!doctype html><title>Sign in</title>")
DATED = httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})


@pytest.mark.parametrize("answer", [
    DATED, httpx.Response(429, headers={"Retry-After": "soon"}), PAGE, httpx.Response(204), httpx.Response(200, json=[]),
    httpx.Response(200, json={"success": True, "rejected": [{"index": 7, "messages": []}]}),
    httpx.Response(401, json={"error": {"code": "unauthorized"}}), httpx.Response(403), httpx.Response(404, text="no route"),
    httpx.Response(308, headers={"Location": "https://collector"}),
], ids=["a dated Retry-After", "no Retry-After", "a page", "no body", "a list", "of another batch", "a key being changed",
        "a proxy's no", "a proxy without a way", "elsewhere"])  # fmt: skip
def test_what_is_no_word_of_the_collector_on_the_events_is_no_acknowledgement(answer: httpx.Response) -> None:
    collector, told = FakeCollector(answer), []
    with Client("key", "http://collector", transport=collector, on_refused=lambda *one: told.append(one)) as client:
        ident = client.track("u1", "x")
        assert client.flush(10)
    assert [[event["messageId"] for event in batch] for batch in collector.batches] == [[ident]] * 2 and not told


def test_an_error_of_ones_own_callback_is_logged_and_ends_nothing() -> None:
    refusing = httpx.Response(200, json={"success": True, "rejected": [{"index": n, "messages": ["no"]} for n in (0, 1)]})
    collector, told = FakeCollector(refusing), []

    def fails(event: dict[str, Any], _: str) -> None:
        told.append(event["messageId"])
        raise KeyError("a bug of the caller's")

    with capture_logs() as logs, Client("key", "http://collector", transport=collector, on_refused=fails) as client:
        idents = [client.track("u1", name) for name in "abc"]
        assert client.flush(10)
        client.track("u1", "d")
        assert client.flush(10)
    assert told == idents[:2] == [one["message_id"] for one in logs if one["event"] == "on_refused failed"]
    assert [[event["event"] for event in batch] for batch in collector.batches] == [["a", "b", "c"], ["d"]]


class Proxy(FakeCollector):
    """Takes fewer bytes than the collector."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return super().handle_request(request) if len(request.read()) < 2_000 else httpx.Response(413, text="too large")


def test_what_is_too_large_is_sent_in_smaller_parts_and_only_one_that_is_too_large_alone_is_refused() -> None:
    told: list[tuple[str, str]] = []
    collector = Proxy()
    with Client("key", "http://collector", transport=collector,
                on_refused=lambda event, why: told.append((event["event"], why))) as client:  # fmt: skip
        for n in range(40):
            client.track("u1", f"e{n}", {"text": "x" * (4_000 if n == 17 else 10)})
        assert client.flush(10)
    sent = [event["event"] for batch in collector.batches for event in batch]
    assert sent == [f"e{n}" for n in range(40) if n != 17] and told == [("e17", "too large")]


def test_what_is_still_being_sent_at_the_end_is_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.01)
    asked, answer = threading.Event(), threading.Event()

    class Slow(FakeCollector):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            asked.set()
            answer.wait(10)
            return super().handle_request(request)

    client = Client("key", "http://collector", transport=Slow())
    ident = client.track("u1", "x")
    assert asked.wait(10)
    assert not client.close(0.01) and [one["messageId"] for one in client.unsent] == [ident]
    answer.set()
    assert client.flush(10) and client.unsent == [], "the answer came after all"


@given(st.text() | st.integers().map(str) | st.builds("Wed, 21 Oct 2015 07:28:00 {}".format, st.text("+-0123456789GMT")))
def test_any_retry_after_is_a_time_to_wait(value: str) -> None:
    assert 0 <= module._told_s(value) <= module.RETRY_AFTER_MAX_S


def test_a_retry_after_is_seconds_or_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert module._told_s("7") == 7 and 90 < module._told_s(soon) <= 100
