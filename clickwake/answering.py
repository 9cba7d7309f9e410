"""What the commands about files of rules, and about what came of them, share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from functools import wraps
from typing import Any

import msgspec
from clickhouse_connect.driver.exceptions import ClickHouseError
from rich.console import Console

from stream.adapters.database import clickhouse
from stream.settings import ClickHouse


class NotAnswered(ConnectionError):
    """ClickHouse is not there, or cannot answer."""


def rows(server: ClickHouse, *questions: str, parameters: Mapping[str, Any] | None = None) -> list[list[dict[str, Any]]]:
    """The answer to each SQL question, over one connection: column → value, a row. Raises `NotAnswered`: see `asking`."""
    try:
        with closing(clickhouse.open_client(server)) as client:
            answers = [client.query(sql, parameters=dict(parameters or {})) for sql in questions]
    except (ClickHouseError, OSError) as error:
        raise NotAnswered(clickhouse.missing(server, error)) from error
    return [[dict(zip(one.column_names, row, strict=True)) for row in one.result_rows] for one in answers]


def asking(command: Callable[..., int]) -> Callable[..., int]:
    """Of a command that asks for `rows`: 1 where they cannot be had, with the reason."""
    @wraps(command)
    def told(*arguments: Any, as_json: bool) -> int:
        try:
            return command(*arguments, as_json=as_json)
        except NotAnswered as error:
            return refused(error, as_json=as_json)

    return told


def refused(error: Exception, *, as_json: bool) -> int:
    """Say why a file cannot be used; returns the exit code."""
    if as_json:
        print(msgspec.json.encode({"ok": False, "error": str(error)}).decode())
    else:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
    return 1
