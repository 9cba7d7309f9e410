"""One HTTP call followed to its rows, through the real broker, engine and processes, by spans that somebody takes over OTLP;
and the same while nobody does."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import msgspec
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from stream.settings import Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import Sender, Worker, metrics, running, until
from tests.support.otlp import Receiver, Seen, receiving
from training.release import release as releases

CLIENT = "00f067aa0ba902b7"
SAMPLED, UNSAMPLED, ITEM = (f"{first}bf92f3577b34da6a3ce929d0e0e4736" for first in (4, 5, 6))
USER, WORDS = "alice-4711", "a rather private remark"
EXPORTED_S = 30


@contextlib.contextmanager
def sink(settings: Settings, **extra: str) -> Iterator[Worker]:
    """The sink, once its tables are there and rows flow."""
    with running(settings, "workers.sink", settings.home / "sink", **extra) as worker:
        run_file = worker.home / "run" / "sink.json"
        until(lambda: run_file.exists() and json.loads(run_file.read_text())["ready"], 60, "the sink is ready")
        yield worker


@contextlib.contextmanager
def service(settings: Settings, module: str, name: str, **extra: str) -> Iterator[tuple[Worker, str]]:
    """A process that serves HTTP, and its address."""
    extra |= {f"CLICKWAKE_{name.upper()}__PORT": "0"}
    with running(settings, module, settings.home / name, **extra) as worker:
        run_file = worker.home / "run" / f"{name}.json"
        until(run_file.exists, 60, f"{name} listens")
        url = f"http://127.0.0.1:{json.loads(run_file.read_text())['port']}"
        until(lambda: httpx.get(f"{url}/health/ready", trust_env=False, timeout=30).status_code == 200, 60, f"{name} ready")
        yield worker, url


def post(url: str, trace_id: str, flags: str = "01", **body: Any) -> None:
    answer = httpx.post(f"{url}/v1/track", json={"userId": USER, **body}, auth=("demo-write-key", ""), timeout=30,
                        trust_env=False, headers={"traceparent": f"00-{trace_id}-{CLIENT}-{flags}"})  # fmt: skip
    assert answer.status_code == 200, answer.text


@pytest.fixture
def shop(settings: Settings, exported: Exported, tmp_path: Path) -> Settings:
    settings = bundles.with_registry(settings, tmp_path / "models")
    topic_admin.create(settings)
    bundles.put_vectors(settings, [msgspec.structs.replace(item, tenant="demo") for item in bundles.ITEMS])
    releases.release(settings, bundles.publish(settings.registry, exported).model_version)
    return settings


def rows(settings: Settings, sql: str, **parameters: str) -> list[Any]:
    house = settings.clickhouse
    client = clickhouse_connect.get_client(host=house.host, port=house.port, database=house.database)
    with contextlib.closing(client):
        return list(client.query(sql, parameters=parameters).result_rows)


def stored_with_trace(settings: Settings, table: str) -> list[Any]:
    return rows(settings, "SELECT 1 FROM {table:Identifier} WHERE trace_id = {trace:String}", table=table, trace=SAMPLED)


def named(receiver: Receiver, trace_id: str) -> list[tuple[str, str]]:
    """(service, name) of each span of a trace."""
    return [(one.service, one.name) for one in receiver.of(trace_id)]


def connected(spans: list[Seen], root: str) -> bool:
    """Whether each span's parent is another of them or the root."""
    known = {span.span_id for span in spans} | {root}
    return all(span.parent_id in known for span in spans)


def test_one_call_is_one_trace_to_its_rows(shop: Settings) -> None:
    prefix = shop.kafka.topic_prefix
    events, recommendations = topics.EVENTS.name(prefix), topics.RECOMMENDATIONS.name(prefix)
    with receiving() as receiver:
        extra = {"CLICKWAKE_TRACING__ENDPOINT": receiver.url, "CLICKWAKE_TRACING__RATIO": "0"}
        with (running(shop, "workers.personalize", **extra), sink(shop, **extra),
              service(shop, "producers.collector", "collector", **extra) as (_, url),
              service(shop, "workers.api", "api", **extra) as (_, api)):  # fmt: skip
            post(url, UNSAMPLED, "00", event="Product Viewed", properties={"product_id": "i1"}, messageId="plain")
            until(lambda: rows(shop, "SELECT count() FROM events")[0][0], 60, "the first event stored")
            post(url, SAMPLED, event="Product Reviewed", messageId="traced",
                 properties={"product_id": "i2", "rating": 2, "review_body": WORDS})  # fmt: skip
            until(lambda: stored_with_trace(shop, "recommendations"), 60, "the answer stored with its trace")
            httpx.get(f"{api}/v1/recommendations/{USER}", auth=("demo-read-key", ""), trust_env=False, timeout=30,
                      headers={"traceparent": f"00-{SAMPLED}-{CLIENT}-01"}).raise_for_status()  # fmt: skip
            until(lambda: stored_with_trace(shop, "decisions"), 60, "the decision stored with its trace")
            wanted = {
                ("clickwake-collector", "POST /v1/track"), ("clickwake-collector", f"send {events}"),
                ("clickwake-personalize", f"process {events}"), ("clickwake-personalize", f"send {recommendations}"),
                ("clickwake-sink", f"process {events}"), ("clickwake-sink", f"process {recommendations}"),
                ("clickwake-api", "GET /v1/recommendations/{user}"),
                ("clickwake-sink", f"process {topics.DECISIONS.name(prefix)}"),
            }  # fmt: skip
            until(lambda: set(named(receiver, SAMPLED)) >= wanted, EXPORTED_S, "its spans")
            until(lambda: {"INSERT events", "INSERT recommendations", "INSERT decisions"} <= {
                one.name for one in receiver.spans}, EXPORTED_S, "the inserts' spans")  # fmt: skip
    trace = receiver.of(SAMPLED)
    assert set(named(receiver, SAMPLED)) == wanted
    assert connected(trace, CLIENT) and not any(one.error for one in receiver.spans)
    assert rows(shop, "SELECT message_id, trace_id FROM events ORDER BY message_id") == [("plain", ""), ("traced", SAMPLED)]
    check_inserts(receiver, events)
    assert receiver.of(UNSAMPLED) == [] and WORDS.encode() not in receiver.raw and USER.encode() not in receiver.raw


def check_inserts(receiver: Receiver, events: str) -> None:
    """The event's `process` in the sink links to its batch, whose INSERT links back; its attributes say where the row is."""
    (stored,) = [one for one in receiver.of(SAMPLED) if (one.service, one.name) == ("clickwake-sink", f"process {events}")]
    ((batch_trace, batch_span),) = stored.links
    (insert,) = [one for one in receiver.of(batch_trace) if one.name == "INSERT events"]
    assert insert.parent_id == batch_span and [trace for trace, _ in insert.links] == [SAMPLED]
    assert insert.about["db.collection.name"] == "events"
    assert stored.about["messaging.destination.partition.id"] and stored.about["messaging.kafka.offset"] >= 0


def test_opinions_and_offers_go_on_in_the_trace_of_the_call(settings: Settings) -> None:
    topic_admin.create(settings)
    name = {one: one.name(settings.kafka.topic_prefix) for one in (topics.EVENTS, topics.OPINIONS, topics.DECISIONS)}
    (settings.home / "api").mkdir(parents=True)
    (settings.home / "api" / "offers.yml").write_text(
        "placements: [{name: home}]\noffers: [{id: red, placements: [home], text: Red}]")
    with receiving() as receiver:
        extra = {"CLICKWAKE_TRACING__ENDPOINT": receiver.url, "CLICKWAKE_TRACING__RATIO": "0"}
        with (running(settings, "workers.insights", **extra), running(settings, "workers.offers", **extra),
              service(settings, "producers.collector", "collector", **extra) as (_, url),
              service(settings, "workers.api", "api", **extra) as (_, api)):  # fmt: skip
            offer = httpx.get(f"{api}/v1/offers/{USER}?placement=home", auth=("demo-read-key", ""), timeout=30,
                              trust_env=False, headers={"traceparent": f"00-{SAMPLED}-{CLIENT}-01"}
                              ).raise_for_status().json()  # fmt: skip
            asked = {("clickwake-api", "GET /v1/offers/{user}"), ("clickwake-offers", f"process {name[topics.DECISIONS]}")}
            until(lambda: set(named(receiver, SAMPLED)) >= asked, 60, "the decision's spans")
            post(url, SAMPLED, event="Product Viewed", properties={"product_id": "i1"})  # is about neither
            post(url, SAMPLED, event="Promotion Viewed", properties={"recommendation_id": offer["recommendation_id"]})
            post(url, SAMPLED, event="Product Reviewed",
                 properties={"product_id": "i2", "brand": "Clay", "rating": 2, "review_body": WORDS})  # fmt: skip
            wanted = Counter(asked) + Counter({
                ("clickwake-collector", "POST /v1/track"): 3, ("clickwake-collector", f"send {name[topics.EVENTS]}"): 3,
                ("clickwake-offers", f"process {name[topics.EVENTS]}"): 1,
                ("clickwake-insights", f"process {name[topics.EVENTS]}"): 1,
                ("clickwake-insights", f"send {name[topics.OPINIONS]}"): 1,
                ("clickwake-insights", f"process {name[topics.OPINIONS]}"): 1,
            })  # fmt: skip
            until(lambda: Counter(named(receiver, SAMPLED)) == wanted, EXPORTED_S, "its spans")
    assert connected(receiver.of(SAMPLED), CLIENT) and not any(one.error for one in receiver.spans)
    assert WORDS.encode() not in receiver.raw and USER.encode() not in receiver.raw


def test_a_request_to_forget_and_an_item_are_followed_to_their_end(settings: Settings) -> None:
    topic_admin.create(settings)
    name = {one: one.name(settings.kafka.topic_prefix) for one in (topics.ERASURES, topics.ITEMS, topics.DEAD_LETTERS)}
    admin = {"CLICKWAKE_COLLECTOR__ADMIN_KEYS": '{"demo": "admin-key"}'}
    with receiving() as receiver:
        extra = {"CLICKWAKE_TRACING__ENDPOINT": receiver.url, "CLICKWAKE_TRACING__RATIO": "0"}
        with (running(settings, "workers.personalize", **extra), sink(settings, **extra),
              running(settings, "workers.erasure", **extra), running(settings, "workers.catalog", **extra),
              service(settings, "producers.collector", "collector", **admin, **extra) as (_, url)):  # fmt: skip
            asked = httpx.post(f"{url}/v1/regulations", json={"regulationType": "DELETE_ONLY", "subjectIds": [USER]},
                               auth=("admin-key", ""), trust_env=False, timeout=30,
                               headers={"traceparent": f"00-{SAMPLED}-{CLIENT}-01"})  # fmt: skip
            assert asked.status_code == 202, asked.text
            with Sender(settings, topics.ITEMS) as items:
                headers = [("traceparent", f"00-{ITEM}-{CLIENT}-01".encode())]
                items.send([(b"demo/bad", b"{"), (b"demo/good", b'{"item_id": "good", "tenant": "demo", "title": "Mug"}')],
                           headers)  # fmt: skip
            wanted = {
                SAMPLED: {("clickwake-collector", "POST /v1/regulations"),
                          ("clickwake-collector", f"send {name[topics.ERASURES]}"),
                          ("clickwake-erasure", "erase rows"), ("clickwake-erasure", "erase the state"),
                          ("clickwake-erasure", f"process {name[topics.ERASURES]}")},
                ITEM: {("clickwake-catalog", f"process {name[topics.ITEMS]}"),
                       ("clickwake-catalog", f"send {name[topics.DEAD_LETTERS]}"),
                       ("clickwake-sink", f"process {name[topics.ITEMS]}"),
                       ("clickwake-sink", f"process {name[topics.DEAD_LETTERS]}")},
            }  # fmt: skip
            for trace, spans in wanted.items():
                until(lambda: set(named(receiver, trace)) >= spans, 60, f"{spans}")  # noqa: B023
    assert all(connected(receiver.of(trace), CLIENT) for trace in wanted) and not any(one.error for one in receiver.spans)
    assert USER.encode() not in receiver.raw


def test_without_anybody_who_takes_spans_nothing_is_lost(settings: Settings) -> None:
    topic_admin.create(settings)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1/traces"
    extra = {"CLICKWAKE_TRACING__ENDPOINT": endpoint, "CLICKWAKE_TRACING__RATIO": "1", "CLICKWAKE_TRACING__SPANS_MAX": "20"}
    sent = 60
    with (service(settings, "producers.collector", "collector", **extra) as (_, url),
          sink(settings, **extra) as storing,
          httpx.Client(auth=("demo-write-key", ""), timeout=30, trust_env=False) as client):  # fmt: skip
        for number in range(sent):
            body = {"userId": f"u{number % 7}", "event": "Product Viewed", "messageId": f"m{number}"}
            assert client.post(f"{url}/v1/track", json=body).status_code == 200
        until(lambda: rows(settings, "SELECT uniqExact(message_id) FROM events")[0][0] == sent, 60, "every event stored")
        assert rows(settings, "SELECT uniqExact(trace_id) FROM events WHERE trace_id != ''") == [(sent,)]
        found = metrics(int(httpx.URL(url).port or 0))
        lost = [found.get(f'clickwake_spans_total{{result="{result}"}}', 0) for result in ("dropped", "failed")]
        assert lost[0] > 0 and 2 * sent - 20 <= sum(lost) <= 2 * sent, "all but those that wait"
        assert storing.metrics()['clickwake_spans_total{result="dropped"}'] > 0
