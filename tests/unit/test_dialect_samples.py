"""Other systems' own documented samples (tests/support/dialect_samples.py), of each action that is taken, through the
collector: the canonical event that comes out."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import SecretStr

from producers.collector.app import create_app
from schemas import events as names
from schemas.dialects import ga4, metarank, snowplow
from stream.settings import Collector, Settings
from tests.support.dialect_samples import (
    DONE,
    ECOMMERCE,
    GA4,
    INTERACTION,
    ITEM,
    POSTHOG,
    POSTHOG_ECOMMERCE,
    RANKING,
    SHOWN,
    SNOWPLOW,
    TYPES,
    USER,
    WHO,
    Action,
    Sample,
)
from tests.support.guides import ROOT
from tests.unit.test_collector_http import KEY, Client, FakeKafka


def posted(path: str, body: Any, status: int = 200) -> FakeKafka:
    """What reached Kafka of a call; Metarank has no key of its own."""
    app = create_app(Settings(collector=Collector(write_keys={"shop": SecretStr(KEY)})))
    kafka = app.state.collector.broker = FakeKafka()
    key = "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()
    headers = {"Authorization": key} if path == "/feedback" else {}
    answer = Client(app).request("POST", path, content=json.dumps(body).encode(), headers=headers)
    assert answer.status_code == status, answer.text
    return kafka


def event_of(path: str, body: Any, status: int = 200) -> dict[str, Any]:
    (event,) = posted(path, body, status).sent("events")
    return event


@pytest.mark.parametrize("sample", GA4, ids=lambda sample: sample[0])
def test_ga4(sample: Sample) -> None:
    theirs, params, name, properties = sample
    body = {"client_id": "client_id", "events": [{"name": theirs, "params": params}]}
    event = event_of(f"/mp/collect?measurement_id=G-XXXXXXXXXX&api_secret={KEY}", body, 204)
    assert (event["type"], event["event"], event["anonymousId"]) == ("track", name, "client_id")
    assert event["properties"] == properties


def test_ga4_page_view() -> None:
    """developers.google.com/analytics/devguides/collection/ga4/views"""
    params = {"page_location": "https://shop.example/a", "page_title": "A", "page_referrer": "https://shop.example/",
              "engagement_time_msec": 100}  # fmt: skip
    body = {"client_id": "c", "events": [{"name": "page_view", "params": params}]}
    event = event_of(f"/mp/collect?api_secret={KEY}", body, 204)
    assert (event["type"], event["properties"]) == ("page", {
        "url": "https://shop.example/a", "title": "A", "referrer": "https://shop.example/", "engagement_time_msec": 100})


def snowplow_payload(action: str, named: str, entities: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """As the web tracker sends it: schemas and all, in base64."""
    data = {"type": action} | ({"name": named} if named else {})
    event = {"schema": "iglu:com.snowplowanalytics.snowplow/unstruct_event/jsonschema/1-0-0", "data": {
        "schema": f"{ECOMMERCE}/snowplow_ecommerce_action/jsonschema/1-0-2", "data": data}}  # fmt: skip
    contexts = {"schema": "iglu:com.snowplowanalytics.snowplow/contexts/jsonschema/1-0-0", "data": [
        {"schema": f"{ECOMMERCE}/{name}/jsonschema/1-0-0", "data": one} for name, one in entities]}  # fmt: skip
    encoded = (base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=") for one in (event, contexts))
    return dict(zip(("ue_px", "cx"), encoded, strict=True)) | {
        "e": "ue", "tv": "js-3.5.0", "aid": KEY, "p": "web", "duid": "d1", "sid": "s1", "eid": "e1"}  # fmt: skip


@pytest.mark.parametrize("sample", SNOWPLOW, ids=lambda sample: sample[0])
def test_snowplow(sample: Action) -> None:
    action, named, entities, name, properties, others = sample
    body = {"schema": "iglu:com.snowplowanalytics.snowplow/payload_data/jsonschema/1-0-4",
            "data": [snowplow_payload(action, named, entities)]}  # fmt: skip
    event = event_of("/com.snowplowanalytics.snowplow/tp2", body)
    assert (event["type"], event["event"], event["anonymousId"], event["messageId"]) == ("track", name, "d1", "e1")
    assert event["properties"] == properties
    assert event["context"] == {"sessionId": "s1"} | ({"entities": others} if others else {})


@pytest.mark.parametrize(("said", "ours"), POSTHOG, ids=lambda one: one.get("event"))
def test_posthog(said: dict[str, Any], ours: dict[str, Any]) -> None:
    event = event_of("/i/v0/e/", {"api_key": KEY} | said)
    assert {name: event.get(name) for name in ours} == ours


def test_posthog_batch() -> None:
    """posthog.com/docs/api/capture, "Batch events": whose they are may stand in the properties."""
    batch = [{"event": f"batched_event_name_{n}", "properties": {"distinct_id": WHO, "account_type": "pro"}} for n in (1, 2)]
    body = {"api_key": KEY, "historical_migration": False, "batch": batch}
    found = posted("/batch/", body).sent("events")
    assert [(one["event"], one["userId"], one["properties"]) for one in found] == [
        (f"batched_event_name_{n}", WHO, {"account_type": "pro"}) for n in (1, 2)]  # fmt: skip


@pytest.mark.parametrize(("name", "properties"), POSTHOG_ECOMMERCE)
def test_posthog_ecommerce(name: str, properties: dict[str, Any]) -> None:
    said = {"api_key": KEY, "event": name, "distinct_id": WHO, "properties": properties | {"distinct_id": WHO}}
    event = event_of("/capture/", said)
    assert (event["type"], event["event"], event["userId"], event["properties"]) == ("track", name, WHO, properties)


def test_posthog_person_and_a_search_that_is_an_object() -> None:
    """posthog.com/docs/product-analytics/person-properties; a query is "String | Object"."""
    said = {"api_key": KEY, "event": names.PRODUCTS_SEARCHED, "distinct_id": WHO, "properties": {
        "query": {"colour": "blue"}, "$set": {"name": "Max"},
        "$set_once": {"initial_url": "/blog", "name": "M."}}}  # fmt: skip
    event = event_of("/capture/", said)
    assert event["properties"] == {"query": '{"colour":"blue"}'}
    assert event["traits"] == {"initial_url": "/blog", "name": "Max"}


def test_metarank_ranking_and_user() -> None:
    shown, known = posted("/feedback", [RANKING, USER]).sent("events")
    assert (shown["event"], shown["userId"], shown["anonymousId"]) == (names.PRODUCT_LIST_VIEWED, "user1", "session1")
    assert shown["properties"] == SHOWN and shown["timestamp"] == "2020-09-06T11:24:27.000Z"
    assert shown["messageId"] == RANKING["id"] and shown["context"]["sessionId"] == "session1"
    assert (known["type"], known["userId"], known["traits"]) == ("identify", "user1", {"age": 33, "gender": "m"})


@pytest.mark.parametrize(("theirs", "ours"), TYPES.items())
def test_metarank_interactions(theirs: str, ours: str) -> None:
    event = event_of("/feedback", INTERACTION | {"type": theirs})
    assert (event["event"], event["userId"]) == (ours, "user1")
    ordered = {"order_id": INTERACTION["id"]} if ours == names.ORDER_COMPLETED else {}
    assert event["properties"] == DONE | ordered


def test_metarank_items_are_refused_and_it_is_said_where_they_go() -> None:
    """By themselves with a 400; among others these are taken. What was sent is kept either way, fields by their names."""
    alone, among = posted("/feedback", ITEM, 400), posted("/feedback", [ITEM, RANKING, INTERACTION])
    assert alone.sent("events") == []
    assert [one["event"] for one in among.sent("events")] == [names.PRODUCT_LIST_VIEWED, names.ORDER_COMPLETED]
    for kafka in (alone, among):
        (letter,) = kafka.dead_letters()
        kept = json.loads(letter.payload)
        fields = {one["name"]: one["value"] for one in ITEM["fields"]}  # by their names, so that an id among them is found
        assert kept["metarank"] == ITEM | {"fields": fields} and "clickwake catalog" in kept["error"]
        assert letter.failure.messages[0].path == "type"


def test_every_action_that_is_taken_has_a_sample() -> None:
    """And those of Snowplow's schema that are not, too; the guide names them all."""
    guide = (ROOT / "docs" / "coming-from.md").read_text()
    assert [one for one in (*ga4.NAMES, *snowplow.ACTIONS, *metarank.TYPES) if f"`{one}`" not in guide] == []
    assert {sample[0] for sample in GA4} >= ga4.NAMES.keys()
    assert {sample[0] for sample in SNOWPLOW} == {*snowplow.ACTIONS, "trns_error"}
    assert TYPES.keys() == metarank.TYPES.keys() | {"wave"}
    spoken = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    assert {name for name, _ in POSTHOG_ECOMMERCE} >= spoken
