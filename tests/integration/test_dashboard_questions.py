"""Every question of the dashboard, and every view, is understood by a real engine, also where nothing is stored yet."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta

from clickwake.dashboard import queries
from stream.adapters.database import clickhouse as adapter
from stream.settings import ClickHouse
from tests.support.database import Database

QUESTIONS = {name: value for name, value in vars(queries).items() if name.isupper() and isinstance(value, str)}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = {"tenant": "t", "segment": "s", "user": "u", "at": NOW, "most": 10, "from": 0, "until": 1}


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


def test_of_a_large_segment_the_first_are_shown_and_all_are_counted(database: Database) -> None:
    database.client.command("""INSERT INTO segment_changes (tenant, change_id, user_id, segment, change, number, as_of_ts,
        partition_time, broker_time, kafka_partition, kafka_offset)
        SELECT 't', toString(number), concat('u', toString(number)), if(number < 501, 'large', 'small'), 'entered', 1,
            now64(3), now(), now64(3), 0, number FROM numbers(504)""")
    found = {name: asyncio.run(queries.Database(database.settings).rows(
        queries.MEMBERS, tenant="t", segment=name, at=datetime.now(UTC) + timedelta(days=1))) for name in ("large", "small")}
    assert (len(found["large"]), {row["of_all"] for row in found["large"]}) == (500, {501})
    assert (len(found["small"]), {row["of_all"] for row in found["small"]}) == (3, {3})
