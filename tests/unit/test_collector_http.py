"""The collector's HTTP surface against a fake of Kafka: statuses, limits, keys, what reaches which topic."""

from __future__ import annotations

import asyncio
import base64
import gzip
import re
import zlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from starlette.applications import Starlette

from producers.collector import app as collector_app
from producers.collector.admission import iso
from producers.collector.app import INFLIGHT_MAX, create_app
from producers.collector.broker import Record, Unavailable
from producers.collector.serve import refusal
from schemas.dead_letter import DeadLetter
from stream.http import body as body_reader
from stream.http.answers import Refused
from stream.http.body import Inflater
from stream.http.keys import hashed, new, tenant_of
from stream.settings import Api, Collector, Metrics, Personalize, Settings, WriteKeys
from workers.api import refusal as api_refusal

KEY = "a-write-key"
HELD = {"shop": hashed("mine")}
EVENT = {"userId": "u1", "event": "Product Viewed", "properties": {"product_id": "p1"}, "messageId": "m1"}


class FakeKafka:
    """Keeps what it is given; `down` refuses."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.down = False

    async def send(self, records: Sequence[Record]) -> None:
        if self.down:
            raise Unavailable("Kafka at nowhere:1 does not answer")
        self.records += records

    async def ready(self) -> str | None:
        return "Kafka at nowhere:1 does not answer" if self.down else None

    def sent(self, entity: str) -> list[dict[str, Any]]:
        return [msgspec.json.decode(record.value) for record in self.records if record.topic == f"clickwake.{entity}.v1"]

    def dead_letters(self) -> list[DeadLetter]:
        letters = [record.value for record in self.records if record.topic == "clickwake.dead-letters.v1"]
        return [msgspec.json.decode(letter, type=DeadLetter) for letter in letters]


class Client:
    """Requests to the app itself, without a socket and without its lifespan, which would connect to a real Kafka."""

    def __init__(self, app: Starlette) -> None:
        self.app = app

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://collector") as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)


@pytest.fixture
def kafka_fake() -> FakeKafka:
    return FakeKafka()


@pytest.fixture
def client(kafka_fake: FakeKafka) -> Client:
    app = create_app(Settings(collector=Collector(write_keys={"shop": SecretStr(KEY), "other": SecretStr("other-key")})))
    app.state.collector.broker = kafka_fake
    return Client(app)


def post(client: Client, path: str, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    basic = "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()
    usual = {"Authorization": basic, "Content-Type": "application/json"}
    return client.request("POST", path, content=content, headers=usual | headers)


@pytest.mark.parametrize(("path", "kind", "more"), [
    ("track", "track", {}), ("t", "track", {}), ("identify", "identify", {}), ("i", "identify", {}), ("page", "page", {}),
    ("p", "page", {}), ("screen", "screen", {}), ("group", "group", {}), ("alias", "alias", {"previousId": "a"}),
])
def test_each_call_sets_its_type(
    client: Client, kafka_fake: FakeKafka, path: str, kind: str, more: dict[str, str]
) -> None:
    response = post(client, f"/v1/{path}", EVENT | more)
    assert (response.status_code, response.json()) == (200, {"success": True, "messageId": "m1"})
    assert [(event["type"], event["tenant"]) for event in kafka_fake.sent("events")] == [(kind, "shop")]
    assert kafka_fake.records[0].key == b"shop/u1"


def test_a_batch_with_bad_events_takes_the_good_and_keeps_the_bad(client: Client, kafka_fake: FakeKafka) -> None:
    batch = [EVENT | {"type": "track"}, {"type": "track", "event": "x", "messageId": "m2"}, 7]
    response = post(client, "/v1/batch", {"batch": batch})
    assert response.status_code == 200
    answer = response.json()
    assert (answer["accepted"], [bad["index"] for bad in answer["rejected"]]) == (1, [1, 2])
    assert answer["rejected"][0]["messageId"] == "m2"
    assert answer["rejected"][0]["messages"][0]["path"] == "userId"
    letters = kafka_fake.dead_letters()
    assert [letter.source.offset for letter in letters] == [1, 2]
    assert msgspec.json.decode(letters[0].payload) == batch[1]
    assert [event["messageId"] for event in kafka_fake.sent("events")] == ["m1"]


def test_the_same_bad_event_gives_the_same_dead_letter_id(client: Client, kafka_fake: FakeKafka) -> None:
    for _ in range(2):
        assert post(client, "/v1/batch", {"batch": [{"type": "track"}]}).status_code == 400
    first, second = kafka_fake.dead_letters()
    assert first.dead_letter_id == second.dead_letter_id


def test_when_nothing_is_accepted_the_answer_is_400_with_field_and_reason(client: Client) -> None:
    response = post(client, "/v1/track", {"userId": 5, "event": "x"})
    assert response.status_code == 400
    message = response.json()["error"]["messages"][0]
    assert (message["path"], message["keyword"]) == ("userId", "type")
    batch = post(client, "/v1/batch", {"batch": [{"type": "track", "event": "x"}]}).json()
    assert batch["error"]["messages"][0]["path"] == "batch[0].userId"


@pytest.mark.parametrize(("body", "path"), [(b"{", ""), (b"[]", ""), (b'{"batch":{}}', "batch"), (b'{"batch":[]}', "batch"),
                                            (b"{}", "batch"), (b'{"batch":[' + b"[" * 50_000, "")])
def test_a_batch_that_is_none_is_400(client: Client, body: bytes, path: str) -> None:
    response = post(client, "/v1/batch", body)
    assert response.status_code == 400
    assert response.json()["error"]["messages"][0]["path"] == path


def test_a_body_that_does_not_come_to_its_end_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_reader, "BODY_TIMEOUT_S", 0.05)

    async def dripping() -> AsyncIterator[bytes]:
        yield b'{"userId": "u1", '
        await asyncio.Event().wait()  # nothing more ever comes

    basic = "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()
    answer = client.request("POST", "/v1/track", content=dripping(),
                            headers={"Authorization": basic, "Content-Type": "application/json"})  # fmt: skip
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")


def test_the_write_key_gives_the_tenant(client: Client, kafka_fake: FakeKafka) -> None:
    body = msgspec.json.encode(EVENT | {"writeKey": "other-key", "tenant": "shop"})
    beacon = client.request("POST", "/v1/t", content=body, headers={"Content-Type": "text/plain;charset=UTF-8"})
    assert beacon.status_code == 200
    assert [event["tenant"] for event in kafka_fake.sent("events")] == ["other"]


@pytest.mark.parametrize("headers", [
    {"Authorization": "Basic " + base64.b64encode(b"nope:").decode()}, {"Authorization": "Bearer x"},
    {"Authorization": "Basic %%%"}, {},
])
def test_without_a_known_key_401(client: Client, kafka_fake: FakeKafka, headers: dict[str, str]) -> None:
    response = client.request("POST", "/v1/track", content=msgspec.json.encode(EVENT), headers=headers)
    assert response.status_code == 401
    assert "Basic" in response.headers["www-authenticate"]
    assert kafka_fake.records == []


def test_no_key_but_a_write_key_sends_events(kafka_fake: FakeKafka) -> None:
    """Each kind of key opens what it is for: those that read or erase stand elsewhere than a page's."""
    own = Collector(write_keys={"shop": SecretStr(KEY)}, admin_keys={"shop": SecretStr("an-admin-key")})
    app = create_app(Settings(collector=own, api=Api(read_keys={"shop": SecretStr("a-read-key")})))
    app.state.collector.broker = kafka_fake
    client = Client(app)
    for key in ("an-admin-key", "a-read-key"):
        headers = {"Authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode()}
        assert client.request("POST", "/v1/track", json=EVENT, headers=headers).status_code == 401
        assert client.request("POST", "/v1/track", json=EVENT | {"writeKey": key}).status_code == 401
    assert kafka_fake.records == []
    assert client.request("POST", "/v1/track", json=EVENT | {"writeKey": KEY}).status_code == 200


def test_keys_are_held_hashed_and_several_while_they_are_changed() -> None:
    old, (fresh, held) = "old-key", new()
    both: dict[str, WriteKeys] = {"shop": (SecretStr(old), SecretStr(held)), "other": SecretStr(hashed("x"))}
    assert [tenant_of(key, both) for key in (old, fresh, "x")] == ["shop", "shop", "other"]
    assert len(fresh) >= 43 and fresh not in held
    for stolen in (held, held.removeprefix("sha256:"), hashed("x")):  # what stands in the settings opens nothing
        with pytest.raises(Refused):
            tenant_of(stolen, both)
    from_setting = Collector.model_validate({"write_keys": {"shop": [held], "other": "plain"}})
    assert tenant_of(fresh, from_setting.write_keys) == "shop" and tenant_of("plain", from_setting.write_keys) == "other"
    assert held not in repr(from_setting) and "plain" not in repr(from_setting)


@pytest.mark.parametrize(("changed", "why"), [
    ({}, "BEHIND_TLS"), ({"behind_tls": True}, "documentation"), ({"behind_tls": True, "write_keys": {}}, "no write key"),
    ({"behind_tls": True, "write_keys": {"demo": hashed("demo-write-key")}}, "documentation"),
    ({"behind_tls": True, "write_keys": {"shop": [hashed("mine"), ""]}}, "empty"),
    ({"behind_tls": True, "write_keys": {"mall": hashed("mine"), "shop": [hashed("mine"), "mine"]}}, "`clickwake key shop`"),
    ({"behind_tls": True, "write_keys": {"shop": "sha256:mine"}}, "`clickwake key shop`"),
    ({"behind_tls": True, "write_keys": HELD, "admin_keys": {"shop": "mine"}}, "ADMIN_KEYS in the clear"),
    ({"behind_tls": True, "write_keys": HELD}, "CLICKWAKE_COLLECTOR__CORS_ORIGINS="),
])
def test_beyond_loopback_it_listens_only_with_keys_of_its_own_behind_tls(changed: dict[str, Any], why: str) -> None:
    refused = refusal(Collector.model_validate({"host": "0.0.0.0"} | changed))  # noqa: S104 - what is refused
    assert refused is not None and why in refused
    assert refusal(Collector()) is None
    assert "'mine'" not in refused
    for origins in (["https://shop.example"], ["*"], []):
        own = {"host": "0.0.0.0", "behind_tls": True, "write_keys": HELD, "admin_keys": HELD, "cors_origins": origins}  # noqa: S104
        assert refusal(Collector.model_validate(own)) is None


def test_read_keys_are_held_hashed_beyond_loopback_too() -> None:
    own = {"host": "0.0.0.0", "behind_tls": True}  # noqa: S104
    refused = api_refusal(Api.model_validate(own | {"read_keys": {"shop": "mine"}}))
    assert refused is not None and "`clickwake key shop`" in refused and "'mine'" not in refused
    assert api_refusal(Api.model_validate(own | {"read_keys": HELD})) is None
    assert api_refusal(Api.model_validate({"read_keys": {"shop": "mine"}})) is None


def test_a_user_that_sends_too_fast_is_told_when_to_come_back(kafka_fake: FakeKafka) -> None:
    slow = Collector(write_keys={"shop": SecretStr(KEY)}, user_events_per_s_max=0.01, user_events_burst=1,
                     batch_events_max=1)
    app = create_app(Settings(collector=slow))
    app.state.collector.broker = kafka_fake
    some = Client(app)
    assert post(some, "/v1/track", EVENT).status_code == 200
    refused = post(some, "/v1/track", EVENT)
    assert refused.status_code == 429 and 90 <= int(refused.headers["retry-after"]) <= 100
    assert "shop/" in refused.json()["error"]["message"]
    assert len(kafka_fake.sent("events")) == 1 and kafka_fake.sent("dead-letters") == []


@pytest.mark.parametrize(("skew_max_ms", "clamped"), [(300_000, True), (3_600_000, False)])
def test_how_far_ahead_a_client_may_be_is_what_the_workers_allow(
    kafka_fake: FakeKafka, skew_max_ms: int, clamped: bool
) -> None:
    own = Collector(write_keys={"shop": SecretStr(KEY)})
    app = create_app(Settings(collector=own, personalize=Personalize(skew_max_ms=skew_max_ms)))
    app.state.collector.broker = kafka_fake
    ahead = iso(datetime.now(UTC) + timedelta(minutes=10))
    assert post(Client(app), "/v1/track", EVENT | {"timestamp": ahead}).status_code == 200
    (event,) = kafka_fake.sent("events")
    assert event["timestamp"] == (event["receivedAt"] if clamped else ahead) and event["originalTimestamp"] == ahead


def test_an_empty_key_opens_nothing() -> None:
    with pytest.raises(Refused):
        tenant_of("", {"shop": SecretStr("")})


def test_kafka_away_is_503_to_retry_and_not_ready(client: Client, kafka_fake: FakeKafka) -> None:
    kafka_fake.down = True
    response = post(client, "/v1/track", EVENT)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "nowhere:1" in response.json()["error"]["message"]
    assert client.get("/health/ready").status_code == 503
    assert client.get("/health/live").status_code == 200
    kafka_fake.down = False
    assert client.get("/health/ready").status_code == 200


def test_limits(client: Client, kafka_fake: FakeKafka) -> None:
    large = EVENT | {"properties": {"x": "y" * 33_000}}
    assert post(client, "/v1/track", large).status_code == 413
    assert post(client, "/v1/batch", {"batch": [EVENT | {"type": "track"}] * 501}).status_code == 413
    assert post(client, "/v1/batch", b" " * 512_001).status_code == 413
    assert kafka_fake.records == []
    mixed = post(client, "/v1/batch", {"batch": [EVENT | {"type": "track"}, large | {"type": "track"}]})
    assert mixed.json()["rejected"][0]["messages"][0]["keyword"] == "maxBytes"
    assert kafka_fake.dead_letters()[0].kind == "too_large"


def test_gzip_is_taken_and_a_bomb_is_refused(client: Client, kafka_fake: FakeKafka) -> None:
    packed = gzip.compress(msgspec.json.encode(EVENT))
    assert post(client, "/v1/track", packed, **{"Content-Encoding": "gzip"}).status_code == 200
    bomb = gzip.compress(b" " * 50_000_000)
    assert post(client, "/v1/batch", bomb, **{"Content-Encoding": "gzip"}).status_code == 413
    assert post(client, "/v1/track", b"not gzip", **{"Content-Encoding": "gzip"}).status_code == 400
    assert post(client, "/v1/track", packed[:-4], **{"Content-Encoding": "gzip"}).status_code == 400
    assert len(kafka_fake.records) == 1


def test_inflating_stops_at_the_limit_whatever_the_pieces() -> None:
    packed = gzip.compress(b"a" * 600) + gzip.compress(b"b" * 500)
    for size in (1, 7, len(packed)):
        inflater = Inflater(1_100, "it")
        pieces = [packed[at:at + size] for at in range(0, len(packed), size)]
        assert b"".join(inflater.feed(piece) for piece in pieces) + inflater.finish() == b"a" * 600 + b"b" * 500
        tight = Inflater(1_099, "it")
        with pytest.raises(Refused) as refused:
            for piece in pieces:
                tight.feed(piece)
        assert refused.value.status == 413
    raw_deflate = zlib.compress(b"x", wbits=-15)
    with pytest.raises(Refused):
        Inflater(10, "it").feed(raw_deflate)


@pytest.mark.parametrize("headers", [{"Content-Type": "application/xml"}, {"Content-Encoding": "br"}])
def test_other_types_and_encodings_are_415(client: Client, headers: dict[str, str]) -> None:
    assert post(client, "/v1/track", EVENT, **headers).status_code == 415


def test_too_many_requests_at_once_are_429(client: Client) -> None:
    client.app.state.collector.slots.taken = INFLIGHT_MAX
    response = post(client, "/v1/track", EVENT)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


@pytest.mark.parametrize(("path", "named"), [
    ("/v1/track", {"writeKey": KEY, "userId": "u", "event": "x"}),
    ("/capture", {"api_key": KEY, "distinct_id": "u", "event": "x"}),
])  # fmt: skip
async def test_who_has_not_said_a_key_yet_keeps_nobody_out(
    kafka_fake: FakeKafka, monkeypatch: pytest.MonkeyPatch, path: str, named: dict[str, str]
) -> None:
    monkeypatch.setattr(collector_app, "UNKNOWN_MAX", 2)
    app = create_app(Settings(collector=Collector(write_keys={"shop": SecretStr(KEY)})))
    app.state.collector.broker = kafka_fake
    text, all_here, go_on = msgspec.json.encode(named), asyncio.Barrier(3), asyncio.Event()

    async def dripping() -> AsyncIterator[bytes]:
        yield text[:1]
        await all_here.wait()
        await go_on.wait()
        yield text[1:]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://collector") as http:
        slow = [asyncio.create_task(http.post(path, content=dripping())) for _ in range(2)]
        await all_here.wait()
        refused = await http.post(path, content=text)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert (await http.post(path, content=text, auth=("nobody's", ""))).status_code == 401
        assert (await http.post(path, content=text, auth=(KEY, ""))).status_code == 200
        seen = {"e": "pv", "aid": KEY, "duid": "u", "url": "http://shop.example/", "eid": "e1", "p": "web", "tv": "js"}
        assert (await http.get("/i", params=seen)).status_code == 200, "nothing is waited for: the address says it all"
        go_on.set()
        assert [one.status_code for one in await asyncio.gather(*slow)] == [200, 200]
    assert (app.state.collector.slots.taken, app.state.collector.unknown.taken) == (0, 0)


@pytest.mark.parametrize("whose", ["key", "address"])
async def test_slow_bodies_hold_up_who_sends_them_and_nobody_else(
    kafka_fake: FakeKafka, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    monkeypatch.setattr(collector_app, "OF_KEY_MAX" if whose == "key" else "OF_ADDRESS_MAX", 2)
    held: dict[str, WriteKeys] = {"shop": (SecretStr(KEY), SecretStr("of the servers"))}
    scraped = Metrics(key=SecretStr("of prometheus"))
    app = create_app(Settings(collector=Collector(write_keys=held, behind_tls=True), metrics=scraped))
    app.state.collector.broker = kafka_fake
    text, all_here, go_on = msgspec.json.encode(EVENT), asyncio.Barrier(3), asyncio.Event()

    async def dripping() -> AsyncIterator[bytes]:
        yield text[:1]
        await all_here.wait()
        await go_on.wait()
        yield text[1:]

    def as_from(address: str) -> dict[str, str]:
        return {"X-Forwarded-For": f"10.0.0.9, {address}"}

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://collector") as http:
        slow = [asyncio.create_task(http.post("/v1/track", content=dripping(), auth=(KEY, ""), headers=as_from("10.0.0.1")))
                for _ in range(2)]  # fmt: skip
        await all_here.wait()
        refused = await http.post("/v1/track", content=text, auth=(KEY, ""), headers=as_from("10.0.0.1"))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert f"this {whose}" in refused.json()["error"]["message"]
        other = {"auth": ("of the servers", "")} if whose == "key" else {"auth": (KEY, ""), "headers": as_from("10.0.0.2")}
        assert (await http.post("/v1/track", content=text, **other)).status_code == 200
        assert 'clickwake_collector_limited_total{code="busy"} 1.0' in (
            await http.get("/metrics", auth=("of prometheus", ""))).text
        go_on.set()
        assert [one.status_code for one in await asyncio.gather(*slow)] == [200, 200]
        assert (await http.post("/v1/track", content=text, auth=(KEY, ""), headers=as_from("10.0.0.1"))).status_code == 200
    assert (app.state.collector.of_key.taken, app.state.collector.of_address.taken) == ({}, {})


async def test_once_its_key_is_known_a_request_leaves_room_for_others(
    kafka_fake: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Kafka has not acknowledged."""
    monkeypatch.setattr(collector_app, "UNKNOWN_MAX", 1)
    app = create_app(Settings(collector=Collector(write_keys={"shop": SecretStr(KEY)})))
    sending, acknowledged = asyncio.Barrier(2), asyncio.Event()

    class Slow(FakeKafka):
        async def send(self, records: Sequence[Record]) -> None:
            await sending.wait()
            await acknowledged.wait()

    app.state.collector.broker = Slow()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://collector") as http:
        first = asyncio.create_task(http.post("/v1/track", json=EVENT | {"writeKey": KEY}))
        await sending.wait()
        app.state.collector.broker = kafka_fake
        assert (await http.post("/v1/track", json=EVENT | {"writeKey": KEY})).status_code == 200
        acknowledged.set()
        assert (await first).status_code == 200


def test_a_flood_by_one_key_of_a_tenant_leaves_the_others_alone(kafka_fake: FakeKafka) -> None:
    keys = (SecretStr(KEY), SecretStr(hashed("of the servers")))
    own = Collector(write_keys={"shop": keys}, key_events_per_s_max=0.01, batch_events_max=2)
    app = create_app(Settings(collector=own))
    app.state.collector.broker = kafka_fake
    some = Client(app)
    assert [post(some, "/v1/track", EVENT | {"userId": f"made up {n}"}).status_code for n in range(3)] == [200, 200, 429]
    refused = post(some, "/v1/track", EVENT)
    assert "A write key of shop" in refused.json()["error"]["message"] and hashed(KEY) not in refused.text
    servers = "Basic " + base64.b64encode(b"of the servers:").decode()
    assert post(some, "/v1/track", EVENT, Authorization=servers).status_code == 200
    beacon = some.request("POST", "/v1/track", content=msgspec.json.encode(EVENT | {"writeKey": KEY}))
    assert beacon.status_code == 429, "it is the same key, however it is sent"


def test_a_browser_of_another_origin_may_send(client: Client) -> None:
    asked = client.request("OPTIONS", "/v1/batch", headers={
        "Origin": "https://shop.example", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    })
    assert asked.status_code == 200
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    assert post(client, "/v1/t", EVENT, Origin="https://shop.example").headers["access-control-allow-origin"] == "*"


def test_metrics_count_events_and_refusals(client: Client) -> None:
    post(client, "/v1/track", EVENT)
    post(client, "/v1/track", {"event": "x"})
    text = client.get("/metrics").text
    assert 'clickwake_collector_events_total{result="accepted"} 1.0' in text
    assert 'clickwake_collector_events_total{result="required"} 1.0' in text
    assert 'clickwake_collector_requests_total{endpoint="track",status="400"} 1.0' in text


def test_errors_have_one_shape(client: Client) -> None:
    for response in (client.get("/nothing"), client.get("/v1/track")):
        assert set(response.json()["error"]) == {"code", "message", "messages"}


def test_openapi_describes_what_is_served(client: Client) -> None:
    document = client.get("/openapi.json").json()
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    schema = {"$ref": "#/components/schemas/Event", "components": document["components"]}
    validator = Draft202012Validator(schema)
    assert validator.is_valid(EVENT | {"type": "track", "colour": "red"})
    assert not validator.is_valid(EVENT | {"type": "sing"})
    for path, calls in document["paths"].items():
        for call in calls.values():
            for said in call.get("requestBody", {}).get("content", {}).values():
                if "example" in said:
                    Draft202012Validator(said["schema"] | {"components": document["components"]}).validate(said["example"])
                    assert post(client, path, said["example"]).status_code == 200, path
    batch = {"$ref": "#/components/schemas/Batch", "components": document["components"]}
    assert not Draft202012Validator(batch).is_valid({"batch": [EVENT]})
    assert "tenant" not in document["components"]["schemas"]["Event"]["properties"]
    page = client.get("/docs")
    assert page.status_code == 200
    assert "/v1/batch" in page.text
    assert "src=" not in page.text and "http://cdn" not in page.text


def test_every_mounted_route_is_described(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    described = {(re.sub(r"{.*?}", "{}", path), method.upper()) for path, calls in paths.items() for method in calls}
    mounted = {(re.sub(r"{.*?}", "{}", route.path), method) for route in client.app.routes
               for method in route.methods - {"HEAD"}}  # fmt: skip
    assert described == mounted
    assert {("/v1/b", "POST"), ("/mp/collect", "POST"), ("/i", "GET"), ("/clickwake.js", "GET")} <= mounted
    calls = [call for one in paths.values() for call in one.values()]
    names = [call["operationId"] for call in calls if "operationId" in call]
    assert len(names) == len(set(names))
