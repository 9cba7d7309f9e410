"""What the collector makes of an event: stamps, times, complaints; and that no bytes can break it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.collector.admission import (
    AHEAD_MAX,
    DEPTH_MAX,
    SKEW_MAX_MS,
    Admitted,
    Arrival,
    NotAdmitted,
    admit,
    depth,
    event_time,
    iso,
)
from schemas.dialects import DERIVED
from schemas.events import Event, ms
from stream.core.decode import Reject, decode

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SKEW_MAX = timedelta(milliseconds=SKEW_MAX_MS)
ARRIVAL = Arrival(tenant="shop", received_at=NOW, event_bytes_max=32 * 1024)


def sent(event: dict[str, Any], arrival: Arrival = ARRIVAL) -> dict[str, Any]:
    result = admit(msgspec.json.encode(event), arrival)
    assert isinstance(result, Admitted), result
    decoded: dict[str, Any] = msgspec.json.decode(result.value)
    return decoded


def refused(raw: bytes | dict[str, Any], arrival: Arrival = ARRIVAL) -> NotAdmitted:
    result = admit(raw if isinstance(raw, bytes) else msgspec.json.encode(raw), arrival)
    assert isinstance(result, NotAdmitted), result
    return result


def track(**more: Any) -> dict[str, Any]:
    return {"type": "track", "event": "Product Viewed", "userId": "u1"} | more


def test_tenant_and_lane_come_from_the_collector_never_from_the_client() -> None:
    event = sent(track(tenant="other", lane="import", receivedAt="2001-01-01T00:00:00Z"))
    assert (event["tenant"], event["lane"]) == ("shop", "live")
    assert event["receivedAt"] == "2026-03-01T12:00:00.000Z"


def test_unknown_fields_travel_and_the_write_key_does_not() -> None:
    event = sent(track(writeKey="secret", colour={"a": [1, None]}, properties={"product_id": "p", "odd": 1.5}))
    assert event["colour"] == {"a": [1, None]}
    assert event["properties"] == {"product_id": "p", "odd": 1.5}
    assert "writeKey" not in event
    assert b"secret" not in refused({"writeKey": "secret", "type": "track", "event": "x"}).payload


def test_key_is_tenant_and_known_user_else_the_anonymous_one() -> None:
    known = admit(msgspec.json.encode(track(anonymousId="a")), ARRIVAL)
    anonymous = admit(msgspec.json.encode(track(userId="", anonymousId="a")), ARRIVAL)
    assert isinstance(known, Admitted) and known.key == b"shop/u1"
    assert isinstance(anonymous, Admitted) and anonymous.key == b"shop/a"


def test_message_id_is_kept_or_drawn() -> None:
    assert sent(track(messageId="m1"))["messageId"] == "m1"
    first, second = sent(track(messageId=None)), sent(track())
    assert first["messageId"] != second["messageId"]
    assert len(first["messageId"]) == 36


def test_the_error_of_the_clients_clock_is_taken_out() -> None:
    event = sent(track(timestamp="2026-03-01T15:00:00Z", sentAt="2026-03-01T15:00:30+00:00"))
    assert event["timestamp"] == "2026-03-01T11:59:30.000Z"
    assert event["originalTimestamp"] == "2026-03-01T15:00:00Z"


def test_original_timestamp_wins_over_timestamp_and_the_batch_lends_its_send_time() -> None:
    arrival = msgspec.structs.replace(ARRIVAL, sent_at="2026-03-01T12:01:00Z")
    event = sent(track(originalTimestamp="2026-03-01T12:00:00Z", timestamp="2020-01-01T00:00:00Z"), arrival)
    assert event["timestamp"] == "2026-03-01T11:59:00.000Z"
    assert event["sentAt"] == "2026-03-01T12:01:00Z"


def test_without_a_time_the_time_of_receipt_stands() -> None:
    assert sent(track())["timestamp"] == "2026-03-01T12:00:00.000Z"


@pytest.mark.parametrize(("ahead", "taken"), [
    (SKEW_MAX, SKEW_MAX), (SKEW_MAX + timedelta(milliseconds=1), timedelta()), (timedelta(minutes=10), timedelta()),
    (AHEAD_MAX, timedelta()),
])  # fmt: skip
def test_an_event_of_a_clock_that_is_ahead_has_the_time_of_receipt(ahead: timedelta, taken: timedelta) -> None:
    event = sent(track(timestamp=iso(NOW + ahead)))
    assert (event["timestamp"], event["originalTimestamp"]) == (iso(NOW + taken), iso(NOW + ahead))
    wider = msgspec.structs.replace(ARRIVAL, skew_max_ms=86_400_000)
    assert sent(track(timestamp=iso(NOW + ahead)), wider)["timestamp"] == iso(NOW + ahead)


@pytest.mark.parametrize("bad", ["1970-01-01T00:00:00Z", "2026-03-03T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_implausible_times_are_refused_by_name(bad: str) -> None:
    assert [(m.path, m.keyword) for m in refused(track(timestamp=bad)).messages] == [("timestamp", "range")]


@pytest.mark.parametrize(("event", "path", "keyword"), [
    ({"type": "track", "event": "x"}, "userId", "required"),
    ({"type": "track", "userId": "u"}, "event", "required"),
    ({"event": "x", "userId": "u"}, "type", "required"),
    ({"type": "sing", "userId": "u"}, "type", "enum"),
    ({"type": "alias", "userId": "u"}, "previousId", "required"),
    (track(userId=7), "userId", "type"),
    (track(userId="u" * 257), "userId", "length"),
    (track(messageId=["m"]), "messageId", "type"),
    (track(timestamp=1700000000), "timestamp", "format"),
    (track(timestamp="2026-03-01T12:00:00"), "timestamp", "format"),
    (track(sentAt="yesterday"), "sentAt", "format"),
    (track(properties={"price": "2.55"}), "properties.price", "type"),
    (track(properties={"products": [{"product_id": "a"}, {"price": 1}]}), "properties.products[1].product_id", "required"),
    (track(context={"sessionId": 5}), "context.sessionId", "type"),
    (track(properties=[1]), "properties", "type"),
])
def test_the_complaint_names_field_and_reason(event: dict[str, Any], path: str, keyword: str) -> None:
    assert [(m.path, m.keyword) for m in refused(event).messages] == [(path, keyword)]


@pytest.mark.parametrize(("raw", "keyword"), [
    (b"", "json"), (b"{", "json"), (b'{"a":NaN}', "json"), (b"[]", "type"), (b"null", "type"),
    (b'{"type":"track","a":1e999}', "range"), (b'{"a":"\xff"}', "encoding"), (b"[" * 100_00, "depth"),
    (b'{"a":"\\ud800"}', "json"),
])
def test_what_is_not_an_event_is_refused(raw: bytes, keyword: str) -> None:
    assert refused(raw).messages[0].keyword == keyword


def test_nesting_is_bounded() -> None:
    def nested(levels: int) -> dict[str, Any]:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return track(x=value)

    assert sent(nested(DEPTH_MAX - 1))
    assert refused(nested(DEPTH_MAX)).messages[0].keyword == "depth"
    assert depth({"a": [[], {"b": {}}]}) == 4


def test_an_event_too_large_says_so_and_keeps_its_bytes() -> None:
    result = refused(track(x="y" * 40_000))
    assert (result.kind, result.messages[0].keyword) == ("too_large", "maxBytes")
    assert len(result.payload) > 40_000


PAST = msgspec.structs.replace(ARRIVAL, history="import")
LONG_AGO, WHEN = "2024-05-01T10:00:00.5+02:00", "2024-05-01T08:00:00.500Z"


@pytest.mark.parametrize("lane", ["import", "live"])
def test_an_event_of_the_past_keeps_its_own_time_and_is_not_received_now(lane: Any) -> None:
    arrival = msgspec.structs.replace(PAST, history=lane)
    event = sent(track(timestamp=LONG_AGO, originalTimestamp="2024-05-01T09:00:00Z", sentAt=WHEN, tenant="other"), arrival)
    assert (event["timestamp"], event["lane"], event["tenant"]) == (WHEN, lane, "shop")
    assert event["originalTimestamp"] == "2024-05-01T09:00:00Z" and "receivedAt" not in event
    assert sent(track(originalTimestamp=LONG_AGO), arrival)["timestamp"] == WHEN
    assert sent(track(timestamp=WHEN, receivedAt=WHEN), arrival)["receivedAt"] == WHEN


@pytest.mark.parametrize(("given", "keyword"), [
    ({}, "required"), ({"timestamp": None}, "required"), ({"timestamp": "yesterday"}, "format"),
    ({"timestamp": 7}, "format"), ({"timestamp": "1970-01-01T00:00:00Z"}, "range"),
    ({"timestamp": "2026-03-03T00:00:00Z"}, "range"),
])
def test_an_event_of_the_past_has_a_time_that_can_be(given: dict[str, Any], keyword: str) -> None:
    result = refused(track(**given), PAST)
    assert [(m.path, m.keyword) for m in result.messages] == [("timestamp", keyword)]
    if keyword != "range":
        assert result.ts_ms == 0, "it may be from before any erasure"


def test_the_same_event_of_the_past_has_one_id_whenever_it_is_sent() -> None:
    later = msgspec.structs.replace(PAST, received_at=NOW + timedelta(days=400))
    event = track(timestamp=WHEN, messageId="")
    assert sent(event, PAST) == sent(event, later)
    derived = sent(event, PAST)["messageId"]
    assert derived.startswith(DERIVED), "privacy knows it by this"
    assert sent(event | {"userId": "u2"}, PAST)["messageId"] != derived
    assert sent(event | {"messageId": "m1"}, PAST)["messageId"] == "m1"


words = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
fields = ["type", "event", "userId", "anonymousId", "messageId", "timestamp", "originalTimestamp", "sentAt", "properties",
          "context", "previousId", "writeKey", "tenant", "lane"]
instants = st.datetimes(timezones=st.timezones()).map(lambda at: at.isoformat())


@given(st.binary(max_size=200))
def test_any_bytes_give_a_record_or_a_reason(raw: bytes) -> None:
    assert isinstance(admit(raw, ARRIVAL), Admitted | NotAdmitted)


@given(st.dictionaries(st.sampled_from(fields), json_values | instants, max_size=8), json_values | instants)
def test_any_object_gives_a_canonical_event_or_a_reason(changes: dict[str, Any], batch_sent_at: Any) -> None:
    arrival = msgspec.structs.replace(ARRIVAL, sent_at=batch_sent_at)
    result = admit(msgspec.json.encode(track() | changes), arrival)
    if isinstance(result, Admitted):
        event = msgspec.json.decode(result.value, type=Event)
        assert event.tenant == "shop" and event.user
        assert datetime(2000, 1, 1, tzinfo=UTC) <= event.timestamp <= NOW + SKEW_MAX
        again = admit(result.value, ARRIVAL)
        assert isinstance(again, Admitted) and again.message_id == result.message_id and again.key == result.key


near = st.timedeltas(timedelta(days=-2), timedelta(days=2)).map(lambda apart: (NOW + apart).isoformat())
times = st.dictionaries(st.sampled_from(["timestamp", "originalTimestamp", "sentAt"]), near | instants)


@given(times, st.none() | near, st.integers(0, 2 * 86_400_000), st.integers(0, 1_000))
def test_what_is_taken_no_worker_refuses_for_its_time(
    event_times: dict[str, str], batch_sent_at: str | None, skew_max_ms: int, appended_after_ms: int
) -> None:
    arrival = msgspec.structs.replace(ARRIVAL, sent_at=batch_sent_at, skew_max_ms=skew_max_ms)
    result = admit(msgspec.json.encode(track(**event_times)), arrival)
    if isinstance(result, Admitted):
        assert not isinstance(decode(result.value, ms(NOW) + appended_after_ms, skew_max_ms), Reject)


@given(st.dictionaries(st.sampled_from(fields), json_values | instants, max_size=8))
def test_any_object_of_the_past_is_the_same_event_twice_or_refused(changes: dict[str, Any]) -> None:
    raw = msgspec.json.encode(track(timestamp=WHEN) | changes)
    result = admit(raw, PAST)
    assert result == admit(raw, PAST)
    if isinstance(result, Admitted):
        event = msgspec.json.decode(result.value, type=Event)
        assert (event.tenant, event.lane) == ("shop", "import") and event.ts_ms == result.ts_ms
        assert admit(result.value, PAST) == result


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
def test_event_time_never_lies_outside_its_bounds(original: datetime, sent_at: datetime) -> None:
    try:
        found = event_time(original, sent_at, NOW, SKEW_MAX)
    except ValueError:
        return
    assert datetime(2000, 1, 1, tzinfo=UTC) <= found <= NOW + SKEW_MAX
