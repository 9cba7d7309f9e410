"""Every question of the dashboard, and every view, is understood by a real engine, also where nothing is stored yet."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import closing
from datetime import UTC, datetime

from clickwake.dashboard import queries
from clickwake.dashboard.queries import Database
from stream.adapters import clickhouse as adapter
from stream.settings import ClickHouse

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
            rows = asyncio.run(Database(settings).rows(question, **ASKED))
            assert isinstance(rows, list), name
        client.command(f"DROP DATABASE {settings.database}")
