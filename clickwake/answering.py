"""What the commands about files of rules, and about what came of them, share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import msgspec
from rich.console import Console

from stream.adapters.database import clickhouse
from stream.settings import ClickHouse


def rows(server: ClickHouse, *questions: str, parameters: Mapping[str, Any] | None = None) -> list[list[dict[str, Any]]]:
    """The answer to each SQL question, over one connection: column → value, a row."""
    with closing(clickhouse.open_client(server)) as client:
        answers = [client.query(sql, parameters=dict(parameters or {})) for sql in questions]
    return [[dict(zip(one.column_names, row, strict=True)) for row in one.result_rows] for one in answers]


def refused(error: Exception, *, as_json: bool) -> int:
    """Say why a file cannot be used; returns the exit code."""
    if as_json:
        print(msgspec.json.encode({"ok": False, "error": str(error)}).decode())
    else:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
    return 1
