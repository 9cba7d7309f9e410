"""`clickwake sql`: a query against ClickHouse, as a table for people or in any ClickHouse format for programs."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clickwake.local.clickhouse.launch import answers
from stream.settings import ClickHouse, load

ROWS_SHOWN_MAX = 1_000  # a terminal holds no more; --format and --json print every row
CHUNK_BYTES = 1 << 20


class QueryFailed(RuntimeError):
    """The text says which server answered what."""


def run(query: str, *, output_format: str | None, as_json: bool) -> int:
    """Print the answer to standard output; errors go to standard error with exit code 1."""
    settings = load().clickhouse
    try:
        if output_format or as_json:
            _print_raw(settings, query, output_format or "JSONEachRow")
        else:
            _print_table(settings, query)
    except QueryFailed as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def connected(settings: ClickHouse) -> Any:
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError

    address = f"{settings.host}:{settings.port}"
    if not answers(settings.host, settings.port, secure=settings.secure, ca_file=settings.ca_file):
        raise QueryFailed(f"no ClickHouse answers at {address}. Is it running (`clickwake status`, `clickwake up`)? "
                          "To use another, set CLICKWAKE_CLICKHOUSE__HOST and __PORT")
    try:
        return clickhouse_connect.get_client(
            host=settings.host, port=settings.port, username=settings.user, password=settings.password.get_secret_value(),
            database=settings.database, secure=settings.secure,
            ca_cert=None if settings.ca_file is None else str(settings.ca_file))
    except ClickHouseError as error:
        raise QueryFailed(f"ClickHouse at {address} refused database {settings.database} for user {settings.user}: "
                          f"{_first_line(error)}\n`clickwake up` creates the database; user and password are "
                          "CLICKWAKE_CLICKHOUSE__USER and __PASSWORD") from error


def _print_raw(settings: ClickHouse, query: str, output_format: str) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    client = connected(settings)
    try:
        with client.raw_stream(query, fmt=output_format) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except ClickHouseError as error:
        raise QueryFailed(_first_line(error)) from error
    finally:
        client.close()


def _print_table(settings: ClickHouse, query: str) -> None:
    from clickhouse_connect.driver.exceptions import ClickHouseError

    client = connected(settings)
    try:
        result = client.query(query)
    except ClickHouseError as error:
        raise QueryFailed(_first_line(error)) from error
    finally:
        client.close()
    table = Table(header_style="bold")
    for name, kind in zip(result.column_names, result.column_types, strict=True):
        number = str(getattr(kind, "base_type", kind.name)).startswith(("Int", "UInt", "Float", "Decimal"))
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    rows = result.result_rows
    for row in rows[:ROWS_SHOWN_MAX]:
        table.add_row(*(_cell(value) for value in row))
    console = Console()
    console.print(table)
    if len(rows) > ROWS_SHOWN_MAX:
        console.print(f"{len(rows) - ROWS_SHOWN_MAX} more rows: add a LIMIT, or --format TSVWithNames to see every row")
    console.print(f"{len(rows)} rows", style="dim")


def _cell(value: object) -> Text:
    """Text for one cell: never markup, whatever brackets it has.

    >>> str(_cell(None)), str(_cell("[red]"))
    ('∅', '[red]')
    """
    return Text("∅", style="dim") if value is None else Text(str(value))


def _first_line(error: BaseException) -> str:
    """The server's own words, without the driver's around them.

    >>> _first_line(ValueError("Received ClickHouse exception, code: 60, server response: Code: 60. No (for url x)"))
    'Code: 60. No'
    """
    return str(error).partition("server response: ")[2].rpartition(" (for url")[0] or str(error)
