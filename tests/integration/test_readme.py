"""Every query of the README and of docs/ is answered. Their commands: tests/docs."""

from __future__ import annotations

from contextlib import closing

import pytest

from stream.adapters.database import clickhouse
from stream.settings import Settings
from tests.support.guides import blocks, guides


def test_every_query_is_answered(settings: Settings) -> None:
    clickhouse.migrate(settings.clickhouse)
    queries = [(block.where, query) for path in guides() for block in blocks(path, "sql")
               for query in clickhouse.statements(block.text)]  # fmt: skip
    assert len(queries) >= 15
    with closing(clickhouse.connect(settings.clickhouse, wait_s=10.0)) as client:
        for where, query in queries:
            try:
                client.query(query)
            except Exception as error:
                pytest.fail(f"{where}\n{query}\n{error}")
