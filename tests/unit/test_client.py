"""The Python client against a collector that fails: nothing is lost, nothing has two ids, refusals are told."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

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
