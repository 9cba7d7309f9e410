"""Fixtures of the tests on real servers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from stream.settings import ClickHouse
from tests.support.database import Database


@pytest.fixture
def database(clickhouse: ClickHouse) -> Iterator[Database]:
    """Migrated and empty; gone after the test."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    database = Database(clickhouse.model_copy(update={"database": name}))
    yield database
    database.client.command(f"DROP DATABASE {name}")
    database.client.close()
