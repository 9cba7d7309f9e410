"""Every question of the dashboard, and every view, is understood by a real engine, also where nothing is stored yet."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from clickwake.dashboard import queries
from producers import dead_letters, repair
from schemas import topics
from schemas.dead_letter import Message, Source
from schemas.events import ID_CHARS_MAX
from stream.adapters.database import clickhouse as adapter
from stream.settings import ClickHouse
from tests.support.database import Database, on
from tests.support.fakes import event

QUESTIONS = {name: value for name, value in vars(queries).items() if name.isupper() and isinstance(value, str)}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = {"tenant": "t", "segment": "s", "user": "u", "at": NOW, "most": 10, "from": 0, "until": 1, "kind": "k", "where": "w"}


def test_every_question_and_every_view_is_answered(clickhouse: ClickHouse) -> None:
    settings = clickhouse.model_copy(update={"database": f"asked_{uuid.uuid4().hex[:8]}"})
    adapter.migrate(settings, wait_s=10)
    with closing(adapter.connect(settings, wait_s=10)) as client:
        views = client.query(f"SELECT name FROM system.tables WHERE database = '{settings.database}' AND engine = 'View'")  # noqa: S608
        assert len(views.result_rows) > 30 and len(QUESTIONS) > 20
        for (view,) in views.result_rows:
            client.query(f"SELECT * FROM {view} LIMIT 1")  # noqa: S608
        for name, question in QUESTIONS.items():
            rows = asyncio.run(queries.Database(settings).rows(question, **ASKED))
            assert isinstance(rows, list), name
        client.command(f"DROP DATABASE {settings.database}")


def test_what_takes_too_long_is_known_by_its_code(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(queries.LIMITS, "max_execution_time", 1)
    with pytest.raises(DatabaseError) as refused:
        asyncio.run(queries.Database(database.settings).rows("SELECT sum(number % 3) FROM numbers(1000000000000)"))
    assert refused.value.code in queries.TOO_LONG


def test_of_a_large_segment_the_first_are_shown_and_all_are_counted(database: Database) -> None:
    database.client.command("""INSERT INTO segment_changes (tenant, change_id, user_id, segment, change, number, as_of_ts,
        partition_time, broker_time, kafka_partition, kafka_offset)
        SELECT 't', toString(number), concat('u', toString(number)), if(number < 501, 'large', 'small'), 'entered', 1,
            now64(3), now(), now64(3), 0, number FROM numbers(504)""")
    found = {name: asyncio.run(queries.Database(database.settings).rows(
        queries.MEMBERS, tenant="t", segment=name, at=datetime.now(UTC) + timedelta(days=1))) for name in ("large", "small")}
    assert (len(found["large"]), {row["of_all"] for row in found["large"]}) == (500, {501})
    assert (len(found["small"]), {row["of_all"] for row in found["small"]}) == (3, {3})


def test_the_brands_spoken_of_most_are_those_whatever_is_said_of_them(database: Database) -> None:
    """Beside more brands than a table lists, all of them less satisfying, each spoken of once."""
    database.client.command("""INSERT INTO opinions (tenant, opinion_id, user_id, event_id, source, lane, said_at, item_id,
        brand, satisfaction, partition_time, broker_time, kafka_partition, kafka_offset)
        SELECT 't', toString(number), 'u', toString(number), 'review', 'live',
            toDateTime64('2026-01-05 12:00:00', 3, 'UTC') + toIntervalWeek(number % 5), 'i',
            concat(if(number < 600, 'small ', 'large '), toString(if(number < 600, number, number % 3))),
            toFloat64(number >= 600), now(), now64(3), 0, number FROM numbers(660)""")
    found = asyncio.run(queries.Database(database.settings).rows(queries.SATISFACTION_WEEKLY, tenant="t", most=3))
    weeks = ("2026-02-02", "2026-01-26", "2026-01-19", "2026-01-12", "2026-01-05")
    assert [(row["week"], row["brand"]) for row in found] == [(week, f"large {n}") for week in weeks for n in range(3)]
    assert {(row["said"], row["mean"]) for row in found} == {(4, 1.0)}


def test_a_letter_is_listed_and_counted_until_its_event_is_stored_again(database: Database) -> None:
    """By the id that its event gets: the client's, or the letter's where that is none."""
    payloads = (b'{"messageId": "own"}', b'{"messageId": 7}', b'{"messageId": ""}', b"{", "x" * (ID_CHARS_MAX + 1),
                b'{"messageId": "\xc3\xa9"}')  # fmt: skip
    said = [payload if isinstance(payload, bytes) else msgspec.json.encode({"messageId": payload}) for payload in payloads]
    message = Message(path="userId", keyword="type", message="no text")
    found = [dead_letters.dead_letter(tenant="t", kind="undecodable", messages=[message], payload=one, at=NOW,
                                      source=Source(topic="collector:/v1/track", partition=0, offset=at))
             for at, one in enumerate(said)]  # fmt: skip
    database.store(on(topics.DEAD_LETTERS, [msgspec.to_builtins(one) for one in found]))
    asked = queries.Database(database.settings)

    def left() -> tuple[int, int, int]:
        (totals,), causes = (asyncio.run(asked.rows(sql, tenant="t")) for sql in (queries.TOTALS, queries.LETTERS))
        named = asyncio.run(asked.rows(queries.LETTERS_OF, tenant="t", kind="undecodable", where="userId"))
        assert {row["of_all"] for row in named} <= {len(named)}
        return totals["letters"], sum(row["letters"] for row in causes), len(named)

    for sent, letter in enumerate(found, 1):
        again = event(user="u", id=repair.event_id(letter))
        database.store(on(topics.EVENTS, [again | {"tenant": "t2", "lane": "repair"}], 100 * sent))
        assert left() == (len(found) - sent + 1,) * 3, "that was another's"
        database.store(on(topics.EVENTS, [again | {"lane": "repair"}], 100 * sent + 1))
        assert left() == (len(found) - sent,) * 3
