"""A ClickHouse database of a test's own, and the sink's way into it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import msgspec
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from pydantic import SecretStr

from schemas import topics
from stream.adapters.database import clickhouse as adapter
from stream.settings import ClickHouse, Privacy, Settings
from stream.sink.batch import freeze
from stream.sink.consumer import row_functions
from stream.sink.tables import TABLES
from stream.sink.writer import Writer

VIEWS = ("items_by_hour", "funnel_daily", "sessions", "active_users_daily", "cohort_retention", "recommendations_served",
         "churn_alerts_served", "recommendation_hits", "recommendation_hit_rate", "alert_outcomes", "alert_precision",
         "accounting", "decisions_served", "decision_outcomes", "experiment_results", "experiment_users",
         "experiment_metrics", "segment_changes_served", "segment_intervals", "segment_sizes", "delivery_outcomes",
         "delivery_trials", "delivery_campaigns", "delivery_gains", "satisfaction_daily", "satisfaction_by_item",
         "satisfaction_by_brand", "satisfaction_by_aspect", "satisfaction_alerts_served", "reminders_served",
         "item_purchases", "reminder_outcomes", "interval_due", "reminder_precision", "offer_decisions_served",
         "offer_outcomes", "offer_exposure", "offer_results", "offer_effect", "offer_spend", "complements_served",
         "complement_outcomes", "strategy_opinions", "satisfaction_predicted", "staff_delivery_outcomes")
SETTINGS = Settings(_env_file=None, privacy=Privacy(message_key=SecretStr("m" * 32)))
FUNCTIONS = row_functions(SETTINGS)
APPENDED_MS = 1_800_000_000_000


class Database:
    """A migrated database of its own, and records that go into it as the sink would put them."""

    def __init__(self, settings: ClickHouse) -> None:
        self.settings = settings
        adapter.migrate(settings, wait_s=10)
        self.client: Client = adapter.connect(settings, wait_s=10)

    def store(self, records: Sequence[Any]) -> None:
        writer = Writer(self.settings, threading.Event())
        assert writer.write(freeze(records, FUNCTIONS)) == []
        writer.close()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.client.query(sql).result_rows]

    def counts(self) -> dict[str, int]:
        """Rows as FINAL sees them."""
        return {table.name: self.rows(f"SELECT count() FROM {table.name} FINAL")[0][0] for table in TABLES}  # noqa: S608

    def everything(self) -> dict[str, list[str]]:
        """Content of every table and view, without the time of insertion."""
        sql = {table.name: f"SELECT {', '.join(table.columns)} FROM {table.name} FINAL" for table in TABLES}  # noqa: S608
        sql |= {view: f"SELECT * FROM {view}" for view in VIEWS}  # noqa: S608
        return {name: sorted(map(repr, self.rows(query))) for name, query in sql.items()}


def stored_events(settings: ClickHouse) -> tuple[int, int]:
    """(rows, ids) of the events table as FINAL sees it; (-1, -1) while the tables are not there yet."""
    try:
        with closing(adapter.open_client(settings)) as client:
            rows, ids = client.query("SELECT count(), uniqExact(message_id) FROM events FINAL").first_row
            return int(rows), int(ids)
    except ClickHouseError as error:
        if "UNKNOWN" in str(error):
            return -1, -1
        raise


def on(topic: topics.Topic, values: Sequence[dict[str, Any]], first_offset: int = 0) -> list[Any]:
    return [SimpleNamespace(topic=topic.name("clickwake"), partition=0, offset=offset, timestamp=APPENDED_MS + offset,
                            key=b"shop/k", value=msgspec.json.encode(value), headers=())
            for offset, value in enumerate(values, first_offset)]  # fmt: skip
