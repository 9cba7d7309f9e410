"""What leaves the collector: pseudonyms for ids, shortened addresses, stated consent; and requests to forget users."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr, ValidationError

from producers.collector.app import create_app
from producers.collector.rates import Rates
from producers.privacy import Privacy
from schemas.erasure import Erasure, decode, subject
from stream.erasure.search import Needles, in_files
from stream.settings import Collector, ConsentDefault, Settings
from stream.settings import Privacy as Section
from tests.unit.test_collector_http import EVENT, KEY, Client, FakeKafka, post

ADMIN = "an-admin-key"
SECRET, OLD = "s" * 32, "o" * 32


def running(**privacy: Any) -> tuple[Client, FakeKafka]:
    admins = {"shop": SecretStr(ADMIN), "other": SecretStr("theirs")}
    keys = Collector(write_keys={"shop": SecretStr(KEY)}, admin_keys=admins)
    app, kafka = create_app(Settings(collector=keys, privacy=Section.model_validate(privacy))), FakeKafka()
    app.state.collector.broker = kafka
    return Client(app), kafka


def asked(client: Client, method: str, path: str, body: Any = None, key: str = ADMIN) -> Any:
    basic = "Basic " + base64.b64encode(f"{key}:".encode()).decode()
    return client.request(method, path, content=None if body is None else msgspec.json.encode(body),
                          headers={"Authorization": basic, "Content-Type": "application/json"})  # fmt: skip


def test_raw_ids_never_enter_kafka_neither_in_events_nor_in_what_is_refused() -> None:
    client, kafka = running(pseudonym_keys=(SECRET,), pseudonym_fields=("traits.email", "context.device.id"))
    raw = {"userId": "raw-user", "anonymousId": "raw-device"}
    more = {"traits": {"email": "raw@mail.example", "plan": "gold"}, "context": {"device": {"id": ["raw-list"]}}}
    assert post(client, "/v1/identify", EVENT | raw | more).status_code == 200
    assert post(client, "/v1/alias", raw | {"previousId": "raw-before"}).status_code == 200
    assert post(client, "/v1/track", EVENT | raw | {"properties": 7}).status_code == 400
    assert post(client, "/v1/batch", {"batch": [raw | {"type": "track"}]}).status_code == 400
    deep: Any = "raw-deep"
    for _ in range(40):
        deep = [deep]
    post(client, "/v1/track", EVENT | raw | {"properties": {"x": deep}})
    post(client, "/v1/track", EVENT | raw | {"x": "y" * 33_000})
    assert len(kafka.records) == 5 and len(kafka.dead_letters()) == 3
    for record in kafka.records:
        letter = b"" if "dead" not in record.topic else msgspec.json.decode(record.value)["payload"].encode()
        payload = base64.b64decode(letter)
        held = record.key + record.value + payload
        assert b"raw-user" not in held and b"raw-device" not in held and b"raw@" not in held and b"raw-b" not in held
    identified = kafka.sent("events")[0]
    assert identified["traits"]["plan"] == "gold" and identified["traits"]["email"].startswith("pn_")
    assert kafka.records[0].key == f"shop/{identified['userId']}".encode()
    assert msgspec.json.decode(kafka.dead_letters()[0].payload)["userId"] == identified["userId"]


def test_what_cannot_be_read_is_not_kept_where_ids_are_pseudonyms() -> None:
    client, kafka = running(pseudonym_keys=(SECRET,))
    assert post(client, "/v1/batch", b'{"batch": [{"type": "track", "userId": "raw"}, ["raw"]]}').status_code == 400
    first, second = kafka.dead_letters()
    assert b"raw" not in first.payload and second.payload == b"" and "not kept" in second.failure.messages[0].message


def test_the_same_id_has_one_pseudonym_a_tenant_and_key() -> None:
    one, other = (Privacy(Section.model_validate({"pseudonym_keys": keys})) for keys in ((SECRET, OLD), (OLD,)))
    assert one.ids_of("shop", "u1") == one.ids_of("shop", "u1")
    assert one.ids_of("shop", "u1")[1:] == other.ids_of("shop", "u1")
    assert len({*one.ids_of("shop", "u1"), *one.ids_of("mall", "u1"), *one.ids_of("shop", "u2")}) == 6
    assert Privacy(Section()).ids_of("shop", "u1") == ["u1"]
    with pytest.raises(ValidationError, match="32 random characters"):
        Section.model_validate({"pseudonym_keys": ("short",)})


BARE = '["at 203.0.113.77:8080", "2001:db8:1:2::5", "::1", "12:30:45.123", "1.2.3", "std::bad_alloc"'
UNREAD = {
    "no object": BARE + "]", "too large": json.dumps({"note": BARE + "x" * 33_000}),
    "too deep": '{"event": "x", "ip": "203.0.113.77", "note": ' + '{"a":' * 700 + BARE + "]" + "}" * 701,
}  # fmt: skip


@pytest.mark.parametrize("unread", UNREAD.values(), ids=UNREAD)
@pytest.mark.parametrize(("how", "v4", "v6"), [
    ("truncate", "203.0.113.0", "2001:db8:1::"), ("drop", "", ""), ("keep", "203.0.113.77", "2001:db8:1:2::5")])
def test_what_was_not_read_is_kept_without_the_ends_of_addresses(how: str, v4: str, v6: str, unread: str) -> None:
    client, kafka = running(ip=how)
    assert post(client, "/v1/batch", f'{{"batch": [{unread}]}}'.encode()).status_code == 400
    (letter,) = kafka.dead_letters()
    assert letter.payload.decode() == unread.replace("203.0.113.77", v4).replace("2001:db8:1:2::5", v6)


@pytest.mark.parametrize("unit", ["1", ":", "a:", "1.", "::1 ", "1.1.1.1 ", "1:1:1:1 ", "\\n::", "2001:db8::5 "])
def test_addresses_are_looked_for_in_time_that_grows_as_the_bytes_do(unit: str) -> None:
    def took_s(size: int) -> float:
        raw, began = unit.encode() * (size // len(unit)), time.process_time()
        Privacy(Section()).without_addresses(raw)
        return time.process_time() - began

    assert took_s(400_000) < 50 * took_s(20_000) + 0.5, "a square would be 400 times as long"


def test_names_of_fields_are_looked_through_but_for_an_events_own() -> None:
    client, kafka = running(pseudonym_keys=(SECRET,))
    body = EVENT | {"userId": "properties", "of properties": 1, "in": {"properties": 2}}
    assert post(client, "/v1/track", body).status_code == 200
    (event,) = kafka.sent("events")
    named = event["userId"]
    assert named.startswith("pn_") and event["properties"] == EVENT["properties"]
    assert (event[f"of {named}"], event["in"]) == (1, {named: 2})


@pytest.mark.parametrize(("how", "given", "kept"), [
    ("truncate", "203.0.113.77", "203.0.113.0"), ("truncate", "2001:db8:1:2::5", "2001:db8:1::"), ("truncate", "home", None),
    ("truncate", 7, None), ("drop", "203.0.113.77", None), ("keep", "203.0.113.77", "203.0.113.77"),
])  # fmt: skip
def test_addresses_lose_their_end(how: str, given: Any, kept: str | None) -> None:
    client, kafka = running(ip=how)
    assert post(client, "/v1/track", EVENT | {"context": {"ip": given, "locale": "en"}}).status_code == 200
    (event,) = kafka.sent("events")
    assert event["context"].get("ip") == kept and event["context"]["locale"] == "en"


NO = {"consent": {"analytics": False}}


@pytest.mark.parametrize("more", [
    {"properties": 7, "context": NO}, {"properties": 7, "context": {"consent": {"analytics": "no"}}},
    {"x": "y" * 33_000, "context": NO}, {"timestamp": "never", "context": NO}, {"type": 7, "context": NO | {"sessionId": 5}},
])  # fmt: skip
def test_of_who_refuses_analytics_the_reason_for_a_refusal_is_kept_alone(more: dict[str, Any]) -> None:
    client, kafka = running()
    said = {"anonymousId": "raw-device", "traits": {"email": "raw@mail.example"}}
    for user in ("raw-user", "raw-other"):
        body = {"batch": [EVENT | said | {"type": "track", "userId": user, "messageId": user} | more]}
        assert post(client, "/v1/batch", body).status_code == 400
    letters = kafka.dead_letters()
    assert len({one.dead_letter_id for one in letters}) == 2, "each is one, though they say the same"
    for record, letter in zip(kafka.records, letters, strict=True):
        assert (record.key, letter.payload, letter.payload_bytes) == (b"shop/", b"", 0)
        assert b"raw" not in record.value and "no consent to analytics" in letter.failure.messages[0].message


def test_what_nobody_can_read_is_kept_by_the_tenants_default() -> None:
    wrong = ["raw-user", {"userId": "raw-user", "context": 7},
             {"userId": "raw-user", "context": {"consent": {"analytics": True}}, "properties": 7}]  # fmt: skip
    for analytics, kept in ((True, [True] * 3), (False, [False, False, True])):
        client, kafka = running(consent={"shop": ConsentDefault(analytics=analytics)})
        assert post(client, "/v1/batch", {"batch": wrong}).status_code == 400
        assert [bool(one.payload) for one in kafka.dead_letters()] == kept


def test_an_erased_id_beside_is_no_matter_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    client, kafka = running()
    forgotten = {b"shop/raw-device"}
    erasures = client.app.state.collector.erasures
    monkeypatch.setattr(erasures, "covers", lambda one, ts_ms: one in forgotten)
    body = {"userId": "u1", "anonymousId": "raw-device", "properties": 7, "context": NO}
    assert post(client, "/v1/track", body).status_code == 400
    (letter,) = kafka.dead_letters()
    assert letter.payload == b""


def test_consent_is_stated_where_the_event_says_nothing() -> None:
    client, kafka = running(consent={"shop": ConsentDefault(personalization=False)})
    own = {"context": {"consent": {"personalization": True, "ads": True}}}
    for more in ({}, {"context": {}}, own, {"context": {"consent": None}}):
        assert post(client, "/v1/track", EVENT | more).status_code == 200
    assert [event["context"]["consent"].get("assumed", False) for event in kafka.sent("events")] == [True, True, False, True]
    said = [event["context"]["consent"]["personalization"] for event in kafka.sent("events")]
    assert said == [False, False, True, False]


@pytest.mark.parametrize(("said", "stated"), [
    ({"analytics": True}, {"analytics": True, "personalization": False, "ads": False, "assumed": True}),
    ({"ads": True}, {"analytics": True, "personalization": False, "ads": True}),
    ({"ads": None, "personalization": True}, {"analytics": True, "personalization": True, "ads": False, "assumed": True}),
    ({"categoryPreferences": {"Advertising": True}}, {"analytics": True, "personalization": False, "ads": False,
                                                      "assumed": True, "categoryPreferences": {"Advertising": True}}),
    ({"analytics": False, "personalization": True, "ads": True},
     {"analytics": False, "personalization": True, "ads": True}),
])
def test_of_consent_that_is_said_in_part_the_rest_is_the_default(said: dict[str, Any], stated: dict[str, Any]) -> None:
    client, kafka = running(consent={"shop": ConsentDefault(personalization=False, ads=False)})
    assert post(client, "/v1/track", EVENT | {"context": {"consent": said}}).status_code == 200
    (event,) = kafka.sent("events")
    assert event["context"]["consent"] == stated


def test_a_regulation_asks_for_every_pseudonym_a_user_had_and_needs_an_admin_key() -> None:
    client, kafka = running(pseudonym_keys=(SECRET, OLD))
    body = {"regulationType": "SUPPRESS_WITH_DELETE", "subjectType": "USER_ID", "subjectIds": ["raw-1", "raw-2"]}
    for key in (KEY, "", "wrong"):
        assert asked(client, "POST", "/v1/regulations", body, key).status_code == 401
    assert not kafka.records
    answer = asked(client, "POST", "/v1/regulations", body)
    assert answer.status_code == 202
    made = answer.json()["regulations"]
    assert [(one["subjectId"], len(one["regulateIds"])) for one in made] == [("raw-1", 2), ("raw-2", 2)]
    erasures = [decode(record.value) for record in kafka.records]
    assert all(one.suppress and one.tenant == "shop" and (one.user_id or "").startswith("pn_") for one in erasures)
    assert [record.key for record in kafka.records] == [subject(f"shop/{one.user_id}".encode()) for one in erasures]


@pytest.mark.parametrize(("body", "path"), [
    ({"regulationType": "FORGET", "subjectIds": ["u"]}, "regulationType"),
    ({"regulationType": "DELETE_ONLY", "subjectIds": []}, "subjectIds"),
    ({"regulationType": "DELETE_ONLY", "subjectIds": [7]}, "subjectIds"),
    ([], ""),
])
def test_a_regulation_that_cannot_be_read_is_refused_with_the_field(body: Any, path: str) -> None:
    client, kafka = running()
    answer = asked(client, "POST", "/v1/regulations", body)
    assert answer.status_code == 400 and path in answer.json()["error"]["messages"][0]["path"] and not kafka.records


def test_an_admin_key_that_names_too_many_users_is_told_when_to_come_back_and_nobody_is_asked_to_be_forgotten() -> None:
    client, kafka = running()
    own = Collector(key_regulations_per_s_max=0.01, key_regulations_burst=1)
    client.app.state.collector.rates = Rates(own, forgotten_at_once_max=2, clock_s=time.monotonic)
    two, one = ({"regulationType": "DELETE_ONLY", "subjectIds": ids} for ids in (["u1", "u2"], ["u3"]))
    assert asked(client, "POST", "/v1/regulations", two).status_code == 202
    refused = asked(client, "POST", "/v1/regulations", one)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "100") and len(kafka.records) == 2


def test_suppressed_users_events_are_answered_as_all_are_and_kept_nowhere() -> None:
    client, kafka = running()
    asked(client, "POST", "/v1/regulations", {"regulationType": "SUPPRESS_WITH_DELETE", "subjectIds": ["u1"]})
    _follow(client, kafka)
    batch = [EVENT | {"type": "track"}, EVENT | {"type": "track", "userId": "u2", "messageId": "m2"}]
    assert post(client, "/v1/batch", {"batch": batch}).json() == {"success": True, "accepted": 2, "rejected": []}
    assert [event["userId"] for event in kafka.sent("events")] == ["u2"]
    asked(client, "POST", "/v1/regulations", {"regulationType": "UNSUPPRESS", "subjectIds": ["u1"]})
    _follow(client, kafka)
    after = EVENT | {"originalTimestamp": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()}  # not at once
    assert post(client, "/v1/track", after).status_code == 200 and len(kafka.sent("events")) == 2


@pytest.mark.parametrize("keys", [(), (SECRET, OLD)], ids=["ids", "pseudonyms"])
def test_an_erased_id_does_not_travel_beside_another_users(keys: tuple[str, ...]) -> None:
    client, kafka = running(pseudonym_keys=keys)
    asked(client, "POST", "/v1/regulations", {"regulationType": "DELETE_ONLY", "subjectIds": ["gone", "device"]})
    _follow(client, kafka)
    kafka.records.clear()
    late = {"userId": "stays", "anonymousId": "device", "originalTimestamp": "2026-01-01T00:00:00Z"}
    assert post(client, "/v1/track", EVENT | late).status_code == 200
    assert post(client, "/v1/alias", late | {"previousId": "gone", "anonymousId": None}).status_code == 200
    assert post(client, "/v1/track", EVENT | late | {"properties": 7}).status_code == 400
    first, second = kafka.sent("events")
    letter = msgspec.json.decode(kafka.dead_letters()[0].payload)
    name = client.app.state.collector.privacy.ids_of("shop", "stays")[0]
    for one in (first, second, letter):
        assert one["userId"] == name and one.keys().isdisjoint({"anonymousId", "previousId"})
    assert second["type"] == "alias" and letter["properties"] == 7, "nothing else is changed"
    soon = late | {"originalTimestamp": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()}
    assert post(client, "/v1/track", EVENT | soon).status_code == 200
    (device, *_) = client.app.state.collector.privacy.ids_of("shop", "device")
    assert kafka.sent("events")[-1]["anonymousId"] == device, "a shared device is used on"


@pytest.mark.parametrize("keys", [(), (SECRET,)], ids=["ids", "pseudonyms"])
@pytest.mark.parametrize("name", ["userId", "anonymousId"])
def test_an_id_that_is_a_number_is_told_too_so_that_not_even_a_dead_letter_is_kept(name: str, keys: tuple[str, ...]) -> None:
    client, kafka = running(pseudonym_keys=keys)
    asked(client, "POST", "/v1/regulations", {"regulationType": "SUPPRESS_WITH_DELETE", "subjectIds": ["4711"]})
    _follow(client, kafka)
    for ident in (4711, 47110):
        assert post(client, "/v1/track", {"event": "x", name: ident}).status_code == 400
    assert len(kafka.dead_letters()) == 1, "the other's alone"


def test_the_receipt_can_be_asked_for_by_its_tenant_only() -> None:
    client, kafka = running()
    made = asked(client, "POST", "/v1/regulations", {"regulationType": "DELETE_ONLY", "subjectIds": ["u1"]}).json()
    (ident,) = made["regulations"][0]["regulateIds"]
    assert asked(client, "GET", f"/v1/regulations/{ident}").status_code == 404  # not heard of yet
    _follow(client, kafka)
    assert asked(client, "GET", f"/v1/regulations/{ident}").json()["status"] == "RUNNING"
    final = msgspec.structs.replace(decode(kafka.records[0].value), user_id=None, receipt='{"done": []}', signature="sig")
    _tell(client, kafka.records[0].key, final)
    found = asked(client, "GET", f"/v1/regulations/{ident}").json()
    assert found == {"regulateId": ident, "status": "FINISHED", "receipt": '{"done": []}', "signature": "sig"}
    assert asked(client, "GET", f"/v1/regulations/{ident}", key="theirs").status_code == 404


def _tell(client: Client, key: bytes, erasure: Erasure) -> None:
    """What the reader of the erasures topic would hand over."""
    collector = client.app.state.collector
    collector.erasures.erased.note(key, erasure)
    collector._on_erasure(None, erasure)


def _follow(client: Client, kafka: FakeKafka) -> None:
    for record in kafka.records:
        if "erasures" in record.topic:
            _tell(client, record.key, decode(record.value))


def test_a_name_in_a_file_of_the_home_is_found_and_a_word_of_the_text_models_vocabulary_is_no_user(tmp_path: Path) -> None:
    words, report = tmp_path / "models/text/one/tokenizer.json", tmp_path / "models/20260101T000000Z-1/report/index.html"
    for path in (words, report, tmp_path / "state/one/LOG"):
        path.parent.mkdir(parents=True)
        path.write_text('{"vocab": {"guest": 4113}}')
    assert [one.place for one in in_files(tmp_path, Needles("shop", ["guest"]))] == [str(report)]
    assert not list(in_files(tmp_path, Needles("shop", ["gues"])))
