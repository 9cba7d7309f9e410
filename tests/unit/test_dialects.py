"""Other systems' ways in at the collector: envelopes, encodings, keys, and what is none of theirs. What each action becomes
is in `test_dialect_samples`."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from producers.collector.app import create_app
from producers.collector.dialects import DIALECTS
from schemas.dialects import DialectError, derived_id
from stream.settings import Collector, Settings
from tests.unit.test_collector_http import KEY, Client, FakeKafka


@pytest.fixture
def kafka_fake() -> FakeKafka:
    return FakeKafka()


@pytest.fixture
def client(kafka_fake: FakeKafka) -> Client:
    app = create_app(Settings(collector=Collector(write_keys={"shop": SecretStr(KEY)})))
    app.state.collector.broker = kafka_fake
    return Client(app)


def sent(client: Client, kafka: FakeKafka, path: str, body: Any, status: int = 200) -> list[dict[str, Any]]:
    """The events that reached Kafka."""
    answer = client.request("POST", path, content=json.dumps(body).encode(), headers={})
    assert answer.status_code == status, answer.text
    return kafka.sent("events")


def test_ga4_consent_and_a_second_sending(client: Client, kafka_fake: FakeKafka) -> None:
    body = {
        "client_id": "client_id", "timestamp_micros": "1795602600000000", "non_personalized_ads": False,
        "consent": {"ad_user_data": "GRANTED", "ad_personalization": "DENIED"},
        "events": [{"name": "purchase", "params": {"transaction_id": "T_12345", "value": 30.03}}],
    }  # fmt: skip
    path = f"/mp/collect?measurement_id=G-XXXXXXXXXX&api_secret={KEY}"
    (event,) = sent(client, kafka_fake, path, body, 204)
    assert (event["tenant"], event["originalTimestamp"]) == ("shop", "2026-11-25T10:30:00+00:00")
    assert event["context"]["consent"] == {"ads": True, "personalization": False}
    again = sent(client, kafka_fake, path, body, 204)
    assert again[1]["messageId"] == event["messageId"], "a second sending counts once"


def test_ga4_of_two_apps_or_users_at_one_instant_are_two_events(client: Client, kafka_fake: FakeKafka) -> None:
    for who in ({"app_instance_id": "a"}, {"app_instance_id": "b"}, {"client_id": "c", "user_id": "u"},
                {"client_id": "c", "user_id": "v"}):  # fmt: skip
        body = who | {"timestamp_micros": 1795602600000000, "events": [{"name": "login"}]}
        sent(client, kafka_fake, f"/mp/collect?api_secret={KEY}", body, 204)
    found = kafka_fake.sent("events")
    assert len({one["messageId"] for one in found}) == 4 and found[0]["anonymousId"] == "a"


def test_ga4_of_a_known_user(client: Client, kafka_fake: FakeKafka) -> None:
    body = {"client_id": "c", "user_id": "u1", "user_properties": {"customer_tier": {"value": "PREMIUM"}}, "events": [
        {"name": "view_search_results", "params": {"search_term": "Clothing", "session_id": 123}},
        {"name": "tutorial_begin", "params": {}}]}  # fmt: skip
    searched, own = sent(client, kafka_fake, f"/mp/collect?api_secret={KEY}", body, 204)
    assert (searched["userId"], searched["anonymousId"], searched["context"]["sessionId"]) == ("u1", "c", "123")
    assert searched["traits"] == {"customer_tier": "PREMIUM"} and own["event"] == "tutorial_begin"


def test_snowplow_in_base64_and_as_it_is(client: Client, kafka_fake: FakeKafka) -> None:
    vendor = "iglu:com.snowplowanalytics.snowplow.ecommerce"
    product = {"id": "P125", "name": "Baseball T", "brand": "Snowplow", "category": "Mens/Apparel", "price": 200,
               "currency": "USD"}  # fmt: skip

    def action(kind: str, *entities: dict[str, Any], plain: bool = False) -> dict[str, Any]:
        described = {"schema": "iglu:com.snowplowanalytics.snowplow/unstruct_event/jsonschema/1-0-0", "data": {
            "schema": f"{vendor}/snowplow_ecommerce_action/jsonschema/1-0-2", "data": {"type": kind}}}
        contexts = {"schema": "iglu:com.snowplowanalytics.snowplow/contexts/jsonschema/1-0-0", "data": list(entities)}
        if plain:
            return {"ue_pr": json.dumps(described), "co": json.dumps(contexts)}
        return {"ue_px": base64.urlsafe_b64encode(json.dumps(described).encode()).decode().rstrip("="),
                "cx": base64.b64encode(json.dumps(contexts).encode()).decode()}

    about = {"e": "ue", "tv": "js-3.5.0", "tna": "biz1", "aid": KEY, "p": "web", "duid": "d1", "sid": "s1",
             "dtm": "1795602600000", "stm": "1795602600500", "url": "https://shop.example/p"}
    entity = {"schema": f"{vendor}/product/jsonschema/1-0-0", "data": product}
    bought = {"schema": f"{vendor}/transaction/jsonschema/1-0-0",
              "data": {"transaction_id": "T12345", "revenue": 400, "currency": "USD"}}
    body = {"schema": "iglu:com.snowplowanalytics.snowplow/payload_data/jsonschema/1-0-4", "data": [
        about | {"eid": "5a305bf5-32fc-40d9-b0e8-66052f0f2c95"} | action("add_to_cart", entity),
        about | {"eid": "e2", "uid": "u1"} | action("transaction", entity, entity, bought, plain=True),
        about | {"eid": "e3", "e": "pv", "page": "Shop"}]}  # fmt: skip
    added, ordered, page = sent(client, kafka_fake, "/com.snowplowanalytics.snowplow/tp2", body)
    assert (added["messageId"], added["anonymousId"]) == ("5a305bf5-32fc-40d9-b0e8-66052f0f2c95", "d1")
    assert (added["event"], added["properties"]["product_id"]) == ("Product Added", "P125")
    assert added["context"]["sessionId"] == "s1"
    assert (ordered["event"], ordered["userId"], ordered["properties"]["order_id"]) == ("Order Completed", "u1", "T12345")
    assert ordered["properties"]["revenue"] == 400 and len(ordered["properties"]["products"]) == 2
    assert (page["type"], page["properties"]["title"]) == ("page", "Shop")


def test_snowplow_viewed_product_of_the_documentation(client: Client, kafka_fake: FakeKafka) -> None:
    """The sample request of docs.snowplow.io/docs/events/http-requests, a self-describing event of a company's own."""
    encoded = ("eyJzY2hlbWEiOiJpZ2x1OmNvbS5zbm93cGxvd2FuYWx5dGljcy5zbm93cGxvdy91bnN0cnVjdF9ldmVudC9qc29uc2NoZW1hLzEtMC0wIiwi"
               "ZGF0YSI6eyJzY2hlbWEiOiJpZ2x1OmNvbS5teV9jb21wYW55L3ZpZXdlZF9wcm9kdWN0L2pzb25zY2hlbWEvMS0wLTAiLCJkYXRhIjp7InByb2R1Y3Rf"
               "aWQiOiJBU08wMTA0MyIsInByaWNlIjo0OS45NX19fQ==")  # fmt: skip
    body = {"data": [{"e": "ue", "ue_px": encoded, "eid": "5a305bf5", "aid": KEY, "duid": "d"}]}
    (event,) = sent(client, kafka_fake, "/com.snowplowanalytics.snowplow/tp2", body)
    assert (event["event"], event["properties"]) == ("viewed_product", {"product_id": "ASO01043", "price": 49.95})


def test_posthog_identities_in_a_batch(client: Client, kafka_fake: FakeKafka) -> None:
    batch = {"api_key": KEY, "batch": [
        {"event": "$identify", "distinct_id": "u1", "properties": {"$anon_distinct_id": "a1", "$set": {"plan": "pro"}}},
        {"event": "$pageview", "properties": {"distinct_id": "a2", "$process_person_profile": False,
                                              "$current_url": "https://shop.example/"}},
        {"event": "$create_alias", "distinct_id": "u1", "properties": {"alias": "a3"}}]}  # fmt: skip
    known, page, alias = sent(client, kafka_fake, "/batch", batch)
    assert (known["type"], known["userId"], known["anonymousId"]) == ("identify", "u1", "a1")
    assert known["traits"] == {"plan": "pro"}
    assert (page["type"], page.get("userId"), page["anonymousId"]) == ("page", None, "a2")
    assert (alias["type"], alias["previousId"]) == ("alias", "a3")


@pytest.mark.parametrize(("path", "body", "where"), [
    ("/mp/collect", {"events": "x"}, "events"), ("/mp/collect", [], ""), ("/mp/collect", {"events": [1]}, "events[0]"),
    ("/com.snowplowanalytics.snowplow/tp2", {"data": [{"e": "ue", "ue_px": "%%"}]}, "data[0].ue_px"),
    ("/batch", {"batch": []}, "batch"), ("/capture", {"event": "x", "properties": 3}, "batch[0].properties"),
    ("/feedback", 7, ""),
])  # fmt: skip
def test_what_is_none_of_theirs_is_said(client: Client, kafka_fake: FakeKafka, path: str, body: Any, where: str) -> None:
    headers = {"Authorization": "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()}
    answer = client.request("POST", path, content=json.dumps(body).encode(), headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["messages"][0]["path"] == where
    assert kafka_fake.records == []


def ask(client: Client, method: str, path: str, content: bytes = b"", kind: str = "text/plain") -> httpx.Response:
    headers = {"Content-Type": kind} if content else {}
    return client.request(method, path, content=content, headers=headers)


def test_snowplow_pixel_of_the_documentation(client: Client, kafka_fake: FakeKafka) -> None:
    """The tag of docs.snowplow.io/docs/sources/pixel-tracker, with our key as app id, and with the user it is sent to."""
    tag = f"/i?&e=pv&page=Root%20README&url=http%3A%2F%2Fgithub.com%2Fsnowplow%2Fsnowplow&aid={KEY}&p=web&tv=no-js-0.1.0"
    answer = ask(client, "GET", f"{tag}&uid=customer+4711")
    assert (answer.status_code, answer.headers["content-type"], answer.headers["cache-control"]) == (
        200, "image/gif", "no-store")  # fmt: skip
    assert answer.content[:6] == b"GIF89a"
    (page,) = kafka_fake.sent("events")
    assert (page["type"], page["userId"], page["tenant"]) == ("page", "customer 4711", "shop")
    assert page["properties"] == {"url": "http://github.com/snowplow/snowplow", "title": "Root README"}
    assert ask(client, "GET", tag).status_code == 400, "no cookie is set: whose view it was has to be said"
    assert kafka_fake.dead_letters()[0].failure.messages[0].path == "userId"
    assert ask(client, "HEAD", f"{tag}&uid=c").status_code == ask(client, "POST", "/i").status_code == 405
    assert ask(client, "GET", "/i?e=pv&uid=c").status_code == 401
    assert len(kafka_fake.sent("events")) == 1


def test_snowplow_self_describing_event_in_an_address(client: Client, kafka_fake: FakeKafka) -> None:
    viewed = {"schema": "iglu:com.my_company/viewed_product/jsonschema/1-0-0", "data": {"product_id": "ASO01043"}}
    described = {"data": viewed}
    encoded = base64.urlsafe_b64encode(json.dumps(described).encode()).decode().rstrip("=")
    assert ask(client, "GET", f"/i?e=ue&ue_px={encoded}&eid=e1&duid=d&aid={KEY}&dtm=1795602600000").status_code == 200
    (event,) = kafka_fake.sent("events")
    assert (event["event"], event["messageId"], event["anonymousId"]) == ("viewed_product", "e1", "d")
    assert event["properties"] == {"product_id": "ASO01043"}
    assert event["originalTimestamp"] == "2026-11-25T10:30:00+00:00"


POSTHOG = {"event": "user signed up", "properties": {"distinct_id": "user?>1", "token": KEY, "plan": "£~"}}


@pytest.mark.parametrize("way", ["get", "get base64", "get gzip-js", "get unpadded", "post gzip-js", "post gzip header too",
                                 "form", "form gzip"])  # fmt: skip
def test_posthog_in_an_address_a_form_or_gzip(client: Client, kafka_fake: FakeKafka, way: str) -> None:
    """What posthog-js and older libraries send: `data=` in base64, `compression=gzip-js` without a header."""
    plain = json.dumps(POSTHOG).encode()
    squeezed = gzip.compress(plain)
    encoded = {False: base64.b64encode(plain).decode(), True: base64.b64encode(squeezed).decode()}["gzip" in way]
    if way == "get unpadded":
        encoded = encoded.replace("+", "-").replace("/", "_").rstrip("=")
    if way.startswith("get"):
        compression = f"&compression={way.split()[1]}" if " " in way else ""
        answer = ask(client, "GET", f"/e/?data={quote(encoded)}&ip=1&_=1795602600000&ver=1.57.2{compression}")
    elif way.startswith("form"):
        body = f"data={quote(encoded)}" + ("&compression=gzip-js" if "gzip" in way else "&compression=base64")
        answer = ask(client, "POST", "/e/?compression=base64", body.encode(), "application/x-www-form-urlencoded")
    else:
        headers = {"Content-Encoding": "gzip"} if "header" in way else {}
        answer = client.request("POST", "/e/?compression=gzip-js", content=squeezed, headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"status": 1})
    (event,) = kafka_fake.sent("events")
    assert (event["event"], event["userId"], event["properties"]["plan"]) == ("user signed up", "user?>1", "£~")
    if way.startswith("get"):
        assert event["sentAt"] == "2026-11-25T10:30:00+00:00"


BOMB = gzip.compress(b" " * 50_000_000)
DEEP = base64.b64encode(b"[" * 100_000).decode()


@pytest.mark.parametrize(("method", "path", "content", "status", "where"), [
    ("POST", "/e/?compression=gzip-js", BOMB, 413, None),
    ("POST", "/e/?compression=gzip-js", BOMB[:4_000], 413, None),
    ("POST", "/e/?compression=gzip-js", gzip.compress(b"{}", mtime=0)[:-6], 400, None),
    ("POST", "/e/?compression=gzip-js", b"{}", 400, None),
    ("POST", "/e/", b"data=" + base64.b64encode(BOMB), 413, None),
    ("POST", "/e/", b"data=%ff", 400, "data"), ("POST", "/e/", b"data=", 400, "data"),
    ("POST", "/e/", b"data=\xff", 400, ""),
    ("POST", "/e/", b"data=" + DEEP.encode(), 400, ""),
    ("GET", "/e/", b"", 400, "data"), ("GET", "/e/?data=%7B", b"", 400, ""), ("GET", "/e/?data=e30", b"", 401, None),
    ("GET", "/e/?data=" + "A" * 40_000, b"", 413, None), ("GET", "/i?page=" + "A" * 40_000, b"", 413, None),
    ("GET", "/i?" + "a=1&" * 5_000, b"", 400, ""), ("GET", "/i", b"", 401, None),
    ("GET", "/i?e=ue&ue_px=%%%", b"", 400, "data[0].ue_px"),
    ("GET", f"/i?e=pv&uid={'x' * 300}&aid={KEY}", b"", 400, "batch[0].userId"),
])  # fmt: skip
def test_hostile_requests_in_others_words_are_answered_with_what_is_wrong(
    client: Client, kafka_fake: FakeKafka, method: str, path: str, content: bytes, status: int, where: str | None
) -> None:
    answer = ask(client, method, path, content)
    assert answer.status_code == status, answer.text
    if where is not None:
        assert answer.json()["error"]["messages"][0]["path"] == where
    assert kafka_fake.sent("events") == []


@given(st.binary(max_size=60), st.sampled_from(["plain", "base64", "gzip", "both"]), st.booleans())
def test_any_bytes_in_any_wrapping_are_taken_or_refused(content: bytes, wrapped: str, in_address: bool) -> None:
    app = create_app(Settings(collector=Collector(write_keys={"shop": SecretStr(KEY)})))
    app.state.collector.broker = FakeKafka()
    if wrapped in ("gzip", "both"):
        content = gzip.compress(content)
    if wrapped in ("base64", "both"):
        content = base64.b64encode(content)
    data = quote(content)
    if in_address:
        answers = [ask(Client(app), "GET", path)
                   for path in (f"/e/?data={data}", f"/i?e=ue&ue_px={data}&uid=u&aid={KEY}")]  # fmt: skip
    else:
        answers = [ask(Client(app), "POST", "/e/", b"data=" + data.encode()),
                   ask(Client(app), "POST", "/e/?compression=gzip-js", content)]  # fmt: skip
    assert all(answer.status_code in (200, 400, 401, 413) for answer in answers)


NAMES = ("events", "name", "params", "items", "data", "e", "ue_pr", "co", "schema", "batch", "event", "properties",
         "fields", "user_properties", "consent", "timestamp", "timestamp_micros", "ranking", "interaction", "$set",
         "dtm", "id")  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.sampled_from(
    ["ue", "pv", "ranking", "interaction", "user", "purchase", "{}", '{"data": []}', '{"data": {"data": 1}}'])
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=6), max_leaves=25)


@given(anything)
def test_any_json_is_translated_or_refused(body: Any) -> None:
    for one in DIALECTS.values():
        try:
            found = one.translate(body, {})
        except DialectError:
            continue
        assert all(isinstance(event, dict) for event in found.events)
        json.dumps(found.events)


def test_without_a_key_nobody_is_let_in(client: Client, kafka_fake: FakeKafka) -> None:
    body = {"client_id": "c", "events": [{"name": "x", "params": {}}]}
    for path in ("/mp/collect", "/mp/collect?api_secret=wrong"):
        assert client.request("POST", path, content=json.dumps(body).encode(), headers={}).status_code == 401
    assert derived_id(1, at=None) != derived_id(1, at=None)
