"""Whatever words an event comes in: where ids are pseudonyms and addresses lose their end, no id and no address is in what
goes to Kafka, neither in events nor in what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from producers.collector.app import create_app
from producers.privacy import ADDRESS_CHARS_MIN, LOOKED_FOR_CHARS_MIN, truncated
from stream.settings import Collector, Privacy, Settings
from tests.unit.test_collector_http import KEY, Client, FakeKafka

AUTH = {"Authorization": "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()}
AT_MS = 1_795_602_600_000
SCHEMA = "iglu:com.snowplowanalytics.snowplow/unstruct_event/jsonschema/1-0-0"
Body = tuple[str, Any]


def page(user: Any, device: str) -> str:
    return f"https://shop.example/?uid={quote(str(user))}&cid={quote_plus(device)}&x={quote(device, safe='')}"


def segment(user: Any, device: str, ip: str) -> Body:
    about = {"userId": user, "anonymousId": device, "context": {
        "ip": ip, "traits": {"id": user}, "device": {"id": device, "advertisingId": device},
        "page": {"url": page(user, device)}, "externalIds": [{"id": user, "type": "user_id"}]}}  # fmt: skip
    own = {"user_id": user, "clientIp": ip, "X-Forwarded-For": ip, "note": f"{user} at {ip}", "products": [{"uid": user}]}
    return "/v1/batch", {"batch": [
        about | {"type": "track", "event": "Product Viewed", "messageId": f"of {user}", "properties": own},
        about | {"type": "identify", "traits": {"id": user, "distinct_id": device}},
        {"type": "alias", "userId": user, "previousId": device},
        about | {"type": "track", "properties": own}, about | {"type": "page", "properties": f"{user} at {ip}"},
        about | {"type": "page", "timestamp": "never"},
        {"type": "track", "event": "x", "user": user, "customerId": device}]}  # fmt: skip


def ga4(user: Any, device: str, ip: str) -> Body:
    params = {"user_id": user, "client_id": device, "ip_address": ip, "page_location": page(user, device), "session_id": 5,
              "items": [{"item_id": "p1", "client_id": device}], "note": f"{device} at {ip}"}  # fmt: skip
    return f"/mp/collect?api_secret={KEY}", {
        "client_id": device, "user_id": user, "ip_override": ip, "timestamp_micros": AT_MS * 1_000,
        "user_properties": {"user_id": {"value": user}},
        "events": [{"name": name, "params": params} for name in ("view_item", "page_view", "own", None)]}  # fmt: skip


def snowplow(user: Any, device: str, ip: str) -> Body:
    about = {"aid": KEY, "eid": "e", "uid": user, "duid": device, "nuid": device, "tnuid": device, "ip": ip,
             "dtm": str(AT_MS), "url": page(user, device), "refr": page(user, device),
             "page": f"{device} at {ip}"}  # fmt: skip
    said = {"userId": user, "domain_userid": device, "network_userid": device, "user_ipaddress": ip,
            "inner": [{"duid": device}]}  # fmt: skip
    described = {"schema": SCHEMA, "data": {"schema": "iglu:shop/own/jsonschema/1-0-0", "data": said}}
    return "/com.snowplowanalytics.snowplow/tp2", {"data": [
        about | {"e": "pv"}, about | {"e": "ue", "ue_pr": json.dumps(described)},
        about | {"e": "se", "se_ac": "did", "se_la": f"{user} at {ip}"}, about | {"e": "se", "se_la": device}]}  # fmt: skip


def posthog(user: Any, device: str, ip: str) -> Body:
    own = {"$user_id": user, "$device_id": device, "$ip": ip, "distinct_id": user, "$anon_distinct_id": device,
           "$current_url": page(user, device), "$session_id": "s", "product_id": "p1", "$set": {"id": user}, "alias": device}
    names = ("Product Viewed", "$pageview", "$identify", "$create_alias", 7)
    batch = [{"event": name, "distinct_id": user, "properties": own} for name in names]
    nobody = {"event": "Product Viewed", "distinct_id": device, "timestamp": "2026-11-25T10:30:00Z",
              "properties": own | {"$process_person_profile": False}}  # fmt: skip
    return "/batch", {"api_key": KEY, "batch": [*batch, nobody]}


def metarank(user: Any, device: str, ip: str) -> Body:
    fields = [{"name": name, "value": value} for name, value in
              (("user_id", user), ("ip", ip), ("visitor_id", device), ("note", f"{user} at {ip}"))]  # fmt: skip
    about = {"user": user, "session": device, "timestamp": str(AT_MS), "fields": fields}
    return "/feedback", [
        about | {"event": "ranking", "id": "r", "items": [{"id": "p1"}]}, about | {"event": "user", "id": "x"},
        about | {"event": "interaction", "id": "i", "type": "click", "item": "p1", "ranking": "r"},
        about | {"event": "item", "id": "y"}, about | {"event": "no such thing"}]  # fmt: skip


WORDS: dict[str, Callable[[Any, str, str], Body]] = {
    "segment": segment, "ga4": ga4, "snowplow": snowplow, "posthog": posthog, "metarank": metarank,
}  # fmt: skip
ids = st.text("abcXYZ0123456789@.+-_ /%&é€\"\\", min_size=LOOKED_FOR_CHARS_MIN, max_size=40).map(str.strip).filter(
    lambda one: len(one) >= LOOKED_FOR_CHARS_MIN)
numbers = st.integers(10**LOOKED_FOR_CHARS_MIN, 10**17)
addresses = st.ip_addresses().map(str).filter(lambda one: len(one) >= ADDRESS_CHARS_MIN and truncated(one) != one)


def collector(**privacy: Any) -> tuple[Client, FakeKafka]:
    keys, section = Collector(write_keys={"shop": SecretStr(KEY)}), Privacy.model_validate(privacy)
    app, kafka = create_app(Settings(collector=keys, privacy=section)), FakeKafka()
    app.state.collector.broker = kafka
    return Client(app), kafka


def sent(client: Client, kafka: FakeKafka, body: Body) -> None:
    kafka.records.clear()
    path, content = body
    answer = client.request("POST", path, content=json.dumps(content).encode(),
                            headers={"Content-Type": "application/json"} | AUTH)  # fmt: skip
    assert answer.status_code in (200, 204, 400), answer.text


def texts(value: Any) -> Iterator[str]:
    """All texts and names in a JSON value, and numbers as texts."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield name
            yield from texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)
    elif value is not None:
        yield str(value)


@pytest.mark.parametrize("words", WORDS)
@settings(max_examples=40)
@given(user=ids | numbers, device=ids, ip=addresses, mode=st.sampled_from(["truncate", "drop"]))
def test_no_id_and_no_address_goes_to_kafka(words: str, user: Any, device: str, ip: str, mode: str) -> None:
    plain = json.dumps(WORDS[words]("USER", "DEVICE", "ADDRESS"))
    assume(not any(one in plain or one in f"{AT_MS}000" for one in (str(user), device)))
    client, kafka = collector(pseudonym_keys=("k" * 32,), ip=mode)
    sent(client, kafka, WORDS[words](user, device, ip))
    assert kafka.dead_letters() and (kafka.sent("events") or not isinstance(user, str))
    for record in kafka.records:
        value, payload = msgspec.json.decode(record.value), b""
        if "dead" in record.topic:
            payload = base64.b64decode(value["payload"])
            value["payload"] = msgspec.json.decode(payload or b"null")
        said = [*texts(value), record.key.decode()]
        for raw in (str(user), device, ip):
            for form in (raw, quote(raw), quote(raw, safe=""), quote_plus(raw)):
                assert not [one for one in said if form in one], f"{form!r} is in {said}"
                assert form.encode() not in record.key + record.value + payload
        assert KEY not in " ".join(said), "nor is a write key"
        assert record.key.startswith(b"shop/pn_") or (record.key == b"shop/" and not payload and "dead" in record.topic)


@pytest.mark.parametrize("words", WORDS)
def test_short_ids_are_replaced_where_ids_stand_and_nowhere_else(words: str) -> None:
    client, kafka = collector(pseudonym_keys=("k" * 32,))
    sent(client, kafka, WORDS[words]("p1", "d2", "203.0.113.77"))
    names = client.app.state.collector.privacy.names
    raw, known = {"p1", "d2"}, {names.of("shop", "p1"), names.of("shop", "d2")}
    items = 0
    for event in kafka.sent("events"):
        assert {event.get(name) for name in ("userId", "anonymousId", "previousId")} <= known | {None}
        items += json.dumps(event.get("properties", {})).count('"product_id": "p1"')
        told = json.dumps(event)
        for name in ("user_id", "$user_id", "$device_id", "client_id", "domain_userid", "duid", "visitor_id", "sessionId"):
            assert not any(f'"{name}": "{one}"' in told for one in raw), name
    assert items or words in ("segment", "snowplow"), "an item that is called as a user is no user"


@pytest.mark.parametrize("words", WORDS)
@settings(max_examples=20)
@given(ip=addresses)
def test_addresses_are_shortened_without_pseudonyms_too(words: str, ip: str) -> None:
    client, kafka = collector()
    sent(client, kafka, WORDS[words]("user-of-ours", "device-of-theirs", ip))
    assert kafka.sent("events")
    assert {record.key for record in kafka.records} <= {b"shop/user-of-ours", b"shop/device-of-theirs", b"shop/"}
    for record in kafka.records:
        payload = base64.b64decode(msgspec.json.decode(record.value)["payload"]) if "dead" in record.topic else b""
        assert ip.encode() not in record.value + payload


def test_an_id_that_is_no_text_is_refused_as_it_is_without_pseudonyms_and_kept_under_the_users_own() -> None:
    client, kafka = collector(pseudonym_keys=("k" * 32,))
    answer = client.request("POST", "/v1/track", json={"userId": 4711, "event": "x"}, headers=AUTH)
    assert answer.status_code == 400
    (letter,) = kafka.dead_letters()
    named = client.app.state.collector.privacy.names.of("shop", "4711")
    assert letter.failure.messages[0].path == "userId" and "`int`" in letter.failure.messages[0].message
    assert msgspec.json.decode(letter.payload)["userId"] == named and kafka.records[0].key == f"shop/{named}".encode()


def test_ids_that_are_made_of_what_was_sent_cannot_be_tried_out() -> None:
    """An id of ours is a hash; were it one of the user's id, who knows the rest could find that out."""
    first, second = collector(pseudonym_keys=("k" * 32,)), collector(pseudonym_keys=("j" * 32,))
    plain = collector()
    for client, kafka in (first, second, plain):
        for _ in range(2):
            sent(client, kafka, ga4("u1", "d1", "203.0.113.77"))
    made = [[event["messageId"] for event in kafka.sent("events")] for _, kafka in (first, second, plain)]
    assert all(one.startswith("pn_") for one in made[0]) and not {*made[0]} & {*made[1]} and len({*made[0]}) == 3
    assert all(one.startswith("derived-") for one in made[2])
