"""Which anonymous ids go with an erased user, as tables tell: asked in the eraser's own words of a database in memory."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from stream.adapters.database import clickhouse
from stream.erasure.rows import Rows
from stream.settings import Settings


class Database:
    """As much of ClickHouse as these questions need; rows are (tenant, user_id, anonymous_id)."""

    def __init__(self, rows: Sequence[tuple[str, str, str]]) -> None:
        self.db = sqlite3.connect(":memory:")
        self.db.execute("CREATE TABLE events (tenant, user_id, anonymous_id)")
        self.db.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)

    def query(self, sql: str, parameters: Mapping[str, str | list[str]]) -> SimpleNamespace:
        given: list[str] = []

        def placed(match: re.Match[str]) -> str:
            value = parameters[match[1]]
            given.extend(value if isinstance(value, list) else [value])
            return f"({', '.join('?' * len(value))})" if isinstance(value, list) else "?"

        asked = re.sub(r"\{(\w+):[\w()]+\}", placed, re.sub(r"uniqExact\((\w+)\)", r"count(DISTINCT \1)", sql))
        return SimpleNamespace(result_rows=self.db.execute(asked, given).fetchall())

    def close(self) -> None: ...


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    found = Database([
        ("t", "u", "own"), ("t", "", "own"), ("t", "u", "own"), ("t", "u", ""), ("t", "u", "u"),
        ("t", "u", "shared"), ("t", "v", "shared"), ("t", "v", "theirs"),
        ("t", "u", "account"), ("t", "account", ""), ("t", "w", "other"), ("other", "own", ""),
    ])  # fmt: skip
    monkeypatch.setattr(clickhouse, "open_client", lambda _: found)
    return Rows(Settings(), "t", datetime(2026, 11, 20, tzinfo=UTC), suppress=False)


def test_a_device_that_came_with_one_user_is_theirs_and_an_account_is_none(rows: Rows) -> None:
    assert rows.devices("u") == ["own"], "neither themselves, nor somebody whom an event of theirs names as its device"
    assert rows.devices("v") == ["theirs"] and rows.devices("nobody") == []


def test_what_states_took_for_a_device_and_is_an_account_stays(rows: Rows) -> None:
    """As after an `alias` from an account without a state."""
    assert rows.shared("u", ["own", "shared", "w", "account", "unknown"]) == ["account", "shared", "w"]
