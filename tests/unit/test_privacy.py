"""What leaves the collector: pseudonyms for ids, shortened addresses, stated consent; and requests to forget users."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr, ValidationError

from producers.collector.app import create_app
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


@pytest.mark.parametrize(("how", "given", "kept"), [
    ("truncate", "203.0.113.77", "203.0.113.0"), ("truncate", "2001:db8:1:2::5", "2001:db8:1::"), ("truncate", "home", None),
    ("truncate", 7, None), ("drop", "203.0.113.77", None), ("keep", "203.0.113.77", "203.0.113.77"),
])  # fmt: skip
def test_addresses_lose_their_end(how: str, given: Any, kept: str | None) -> None:
    client, kafka = running(ip=how)
    assert post(client, "/v1/track", EVENT | {"context": {"ip": given, "locale": "en"}}).status_code == 200
    (event,) = kafka.sent("events")
    assert event["context"].get("ip") == kept and event["context"]["locale"] == "en"


def test_consent_is_stated_where_the_event_says_nothing() -> None:
    client, kafka = running(consent={"shop": ConsentDefault(personalization=False)})
    own = {"context": {"consent": {"personalization": True}}}
    for more in ({}, {"context": {}}, own, {"context": {"consent": None}}):
        assert post(client, "/v1/track", EVENT | more).status_code == 200
    assert [event["context"]["consent"].get("assumed", False) for event in kafka.sent("events")] == [True, True, False, True]
    said = [event["context"]["consent"]["personalization"] for event in kafka.sent("events")]
    assert said == [False, False, True, False]


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
    collector._on_erasure(key, erasure)


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
