"""What a record becomes: rows, a reason to skip, or a complaint; and how a batch is frozen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, DataError, OperationalError
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letter import Message
from stream.adapters.database import clickhouse
from stream.pseudonyms import pseudonym
from stream.settings import Privacy, Settings
from stream.sink import batch, rows
from stream.sink.message_ids import MessageIds
from stream.sink.rows import Complaint, Rows, Skip
from stream.sink.tables import EVENT_PRODUCTS, EVENTS, ITEMS, Table
from tests.support.database import FUNCTIONS, SETTINGS

APPENDED_MS = 1_800_000_000_000
REFUSED = {"consent": {"analytics": False}}
hashed = MessageIds(SETTINGS)
to_rows = rows.event_rows(300_000, hashed)


def record(value: bytes | dict[str, Any] | None, *, topic: str = "t", key: bytes | None = b"shop/u", offset: int = 7) -> Any:
    raw = msgspec.json.encode(value) if isinstance(value, dict) else value
    return SimpleNamespace(topic=topic, partition=3, offset=offset, timestamp=APPENDED_MS, key=key, value=raw, headers=())


def event(**changes: Any) -> dict[str, Any]:
    return {"messageId": "m-1", "type": "track", "event": "Product Viewed", "userId": "u", "tenant": "shop",
            "timestamp": "2026-05-06T07:08:09.123Z", **changes}


def tables(outcome: Any) -> list[tuple[Table, dict[str, Any]]]:
    assert isinstance(outcome, Rows), outcome
    return [(table, dict(zip(table.columns, row, strict=True))) for table, row in outcome.rows]


def test_an_event_keeps_its_text_and_explodes_its_product() -> None:
    properties = {"product_id": "p", "price": 2.5, "quantity": 2, "colour": "röd", "nested": {"a": [1]}}
    (_, row), (table, line) = tables(to_rows(record(event(properties=properties, context={"sessionId": "s"}))))
    assert msgspec.json.decode(row["properties"]) == properties
    assert (row["user"], row["session_id"], row["traits"], row["anonymised"]) == ("u", "s", "{}", False)
    assert row["timestamp"] == 1_778_051_289_123
    assert (row["kafka_partition"], row["kafka_offset"], row["broker_time"]) == (3, 7, APPENDED_MS)
    assert table is EVENT_PRODUCTS
    assert (line["product_id"], line["line"], line["revenue"]) == ("p", 0, 5.0)


def test_revenue_is_filled_only_where_it_is_exact() -> None:
    def revenues(properties: dict[str, Any]) -> list[float | None]:
        return [row["revenue"] for _, row in tables(to_rows(record(event(event="Order Completed", properties=properties))))]

    two = [{"product_id": "a", "price": 2.0, "quantity": 3}, {"product_id": "b", "price": 1.0}]
    assert revenues({"products": two}) == [7.0, 6.0, 1.0]
    assert revenues({"products": two, "revenue": 6.5}) == [6.5, 6.0, 1.0]
    assert revenues({"products": [{"product_id": "a"}], "revenue": 9.0}) == [9.0, 9.0]
    assert revenues({"products": [two[0], {"product_id": "c"}]}) == [None, 6.0, None]
    assert revenues({"products": [two[0], {"product_id": "c"}], "revenue": 9.0}) == [9.0, 6.0, None]


def test_what_is_given_back_is_the_total_of_a_refund_and_a_rating_may_be_text() -> None:
    """Of the whole order Segment's Order Refunded says no products, of the money only `total`; a rating is text there."""
    def row(name: str, **properties: Any) -> dict[str, Any]:
        return tables(to_rows(record(event(event=name, properties=properties))))[0][1]

    assert row("Order Refunded", order_id="o", total=30)["revenue"] == row("Order Refunded", total="30")["revenue"] == 30.0
    assert row("Order Refunded", total=30, revenue=25)["revenue"] == 25.0
    assert row("Order Completed", total=30)["revenue"] is None, "shipping and taxes are in it"
    assert row("Product Reviewed", rating="5")["rating"] == row("Product Reviewed", rating=5)["rating"] == 5.0
    assert row("Product Reviewed", rating="many")["rating"] is None


@pytest.mark.parametrize(("original", "expected"), [
    (None, 1_778_051_289), ("2026-05-06T07:00:00Z", 1_778_050_800), ("1970-01-01T00:00:00Z", rows.CLAMP_FIRST_S),
    ("9999-01-01T00:00:00Z", rows.CLAMP_LAST_S)])
def test_the_month_comes_from_the_clamped_client_time(original: str | None, expected: int) -> None:
    first, second = (tables(to_rows(record(event(originalTimestamp=original, receivedAt=received))))[0][1]
                     for received in ("2026-05-06T07:08:10Z", "2026-09-01T00:00:00Z"))  # the same event, sent again later
    assert first["partition_time"] == second["partition_time"] == expected


def test_consent() -> None:
    """Without personalization the event is still counted; without analytics nothing that names the user is stored."""
    value = event(properties={"product_id": "p", "order_id": "o", "email": "a@b.c"}, traits={"name": "N"})
    (_, row), _ = tables(to_rows(record({**value, "context": {"consent": {"personalization": False}}})))
    assert (row["user"], row["anonymised"]) == ("u", False)
    context = {"sessionId": "s", "consent": {"personalization": False, "analytics": False}}
    (_, row), (_, line) = tables(to_rows(record({**value, "context": context})))
    assert (row["product_id"], line["product_id"], row["anonymised"]) == ("p", "p", True)
    stored = msgspec.json.encode([row, line]).decode()
    assert all(secret not in stored for secret in ('"u"', '"s"', '"o"', "a@b.c", "sessionId"))


def test_what_is_kept_without_a_user_is_joined_to_nobody_by_its_id_or_its_time() -> None:
    """Recommendations and decisions name the event that they were made by, and its time, beside the user."""
    value = event(properties={"product_id": "p"}, originalTimestamp="2026-05-06T07:08:09.120Z", context=REFUSED,
                  receivedAt="2026-05-06T07:08:10.456Z")  # fmt: skip
    (_, row), (_, line) = tables(to_rows(record(value)))
    assert row["message_id"] == line["message_id"] == hashed("shop", "m-1") != "m-1"
    minute_s = 1_778_051_280
    times = row["timestamp"], line["timestamp"], row["original_timestamp"], row["received_at"]
    assert times == (minute_s * 1_000,) * 4 and row["partition_time"] == line["partition_time"] == minute_s
    again = to_rows(record(value, offset=8))
    assert isinstance(again, Rows) and again.rows[0][1][1] == row["message_id"], "twice is once"
    assert again.ts_ms == 1_778_051_289_123, "whether it was before an erasure is told by the time itself"
    (_, other), _ = tables(to_rows(record(value | {"tenant": "mall"})))
    assert other["message_id"] != row["message_id"]


def test_an_import_is_counted_by_its_data_set_all_the_same() -> None:
    def stored(ident: str, lane: str) -> str:
        return str(tables(to_rows(record(event(messageId=ident, lane=lane, context=REFUSED))))[0][1]["message_id"])

    name, row = stored("online-retail:7", "import").split(":")
    assert name == "online-retail" and row.isdecimal() and row != "7"
    assert stored("online-retail:8", "import").split(":")[1] != row
    assert stored("ann:7", "live") == hashed("shop", "ann:7"), "a client of one's own may call its events by its user"


def of(home: Path, message_key: str | None = None, *pseudonym_keys: str) -> str:
    privacy = Privacy.model_validate({"message_key": message_key, "pseudonym_keys": pseudonym_keys})
    return MessageIds(Settings(home=home, privacy=privacy))("shop", "m-1")


def test_the_key_of_such_ids_outlasts_restarts_and_new_pseudonym_keys(tmp_path: Path) -> None:
    given, old, new = "g" * 32, "o" * 32, "n" * 32
    first, second = tmp_path / "one", tmp_path / "two"
    assert of(first) == of(first) != of(second), "each installation has its own"
    (made,) = first.iterdir()
    assert made.name == "message-key" and made.stat().st_mode & 0o777 == 0o600
    assert of(first, None, old) == of(second, None, new, old) != of(first, None, new)
    assert of(first, given) == of(second, given, new, old) != of(second, old)
    assert of(first, None, old) != pseudonym(old.encode(), "shop", "m-1"), "a user of that name is called otherwise"


def test_two_who_make_the_key_at_once_go_by_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(of, [tmp_path] * 32))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["message-key"]


def test_what_personalize_rejects_is_skipped_and_named() -> None:
    assert to_rows(record(b"{")) == Skip("undecodable")
    assert to_rows(record(event(userId=None))) == Skip("unprocessable")
    assert to_rows(record(event(timestamp="2029-01-01T00:00:00Z"))) == Skip("unprocessable")
    assert to_rows(record(b" " * 70_000)) == Skip("too_large")
    assert to_rows(record(None)) == Skip("tombstone")


def test_items_come_and_go() -> None:
    (table, row), = tables(rows.item_rows(record({"item_id": "i", "tenant": "shop", "title": "Mug", "price": 2.0})))
    assert table is ITEMS
    assert (row["removed"], row["title"], row["in_stock"]) == (0, "Mug", True)
    (_, row), = tables(rows.item_rows(record(None, key=b"shop/i/1")))
    assert (row["removed"], row["tenant"], row["item_id"]) == (1, "shop", "i/1")
    assert rows.item_rows(record(None, key=b"nonsense")) == Skip("tombstone_without_key")


@pytest.mark.parametrize("topic", sorted(FUNCTIONS))
@given(value=st.none() | st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8).map(msgspec.json.encode), key=st.none() | st.binary(max_size=9))
def test_any_bytes_have_an_outcome(topic: str, value: bytes | None, key: bytes | None) -> None:
    assert isinstance(FUNCTIONS[topic](record(value, key=key)), Rows | Skip | Complaint)


def test_the_same_records_freeze_to_the_same_inserts() -> None:
    records = [record(event(messageId=f"m-{n}", properties={"product_id": "p"}), offset=n) for n in range(5)]
    first, second = (batch.freeze(records, {"t": to_rows}) for _ in range(2))
    assert [insert.token for insert in first.inserts] == [insert.token for insert in second.inserts]
    assert len({insert.token for insert in first.inserts}) == 2
    fewer = batch.freeze(records[1:], {"t": to_rows})
    assert fewer.inserts[1].token != first.inserts[1].token, "another content must never pass for a repetition"


@given(st.lists(st.integers(0, 400), min_size=1, max_size=300))
def test_no_insert_touches_too_many_months_and_no_row_is_lost(months: list[int]) -> None:
    times = [datetime(2001 + m // 12 % 24, m % 12 + 1, 3, tzinfo=UTC).isoformat() for m in months]
    records = [record(event(messageId=f"m-{n}", timestamp=time), offset=n) for n, time in enumerate(times)]
    inserts = batch.freeze(records, {"t": to_rows}).inserts
    index = EVENTS.month_index
    assert index is not None
    for insert in inserts:
        touched = {datetime.fromtimestamp(row[index], UTC).strftime("%Y%m") for row in insert.rows}
        assert len(touched) <= batch.PARTITIONS_PER_INSERT_MAX
        assert [row[1] for row in insert.rows] == [f"m-{one.offset}" for one in insert.records]
    assert sorted(row[1] for insert in inserts for row in insert.rows) == sorted(f"m-{n}" for n in range(len(months)))


def test_a_letter_depends_on_the_record_only() -> None:
    long = Message(path="", keyword="k", message="y" * 9_999)
    first, second = (batch.dead_letter(batch.Rejection(record(b"x" * 100_000), messages)) for messages in ((), (long,)))
    assert first.dead_letter_id == second.dead_letter_id
    assert (second.tenant, second.kind) == ("shop", "sink_rejected")
    assert (second.payload_bytes, len(second.payload)) == (100_000, 65_536)
    assert len(second.failure.messages[0].message) == batch.MESSAGE_CHARS_MAX


@pytest.mark.parametrize(("error", "expected"), [
    (DatabaseError("x", code=469), "row"), (DataError("x"), "row"), (OverflowError(), "row"),
    (DatabaseError("x", code=241), "retry"), (DatabaseError("x", code=252), "retry"), (DatabaseError("x", code=16), "retry"),
    (OperationalError("connection refused"), "retry"), (DatabaseError("x", code=60), "schema"), (RuntimeError(), "retry")])
def test_only_errors_that_lie_in_a_row_reject_it(error: Exception, expected: str) -> None:
    assert clickhouse.verdict(error) == expected


def test_bytes_that_nobody_reads_are_looked_at_before_rows_are_made_of_them() -> None:
    whole = msgspec.json.encode(event(traits={"name": "Zoë"}, other="Zoë"))
    assert isinstance(rows.event_rows(0, hashed)(record(whole)), Rows)
    for part in (b'"name":"', b'"other":"'):
        spoilt = whole.replace(part, part + b"\xff")
        assert rows.event_rows(0, hashed)(record(spoilt)) == Skip("undecodable"), "personalize has written its dead letter"
