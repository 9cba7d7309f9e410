"""ClickHouse: the one way to reach it, its numbered migrations, and which of its errors will go away."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import struct
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Literal, TypeVar, get_args

import clickhouse_connect
import msgspec
import structlog
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DataError

from stream.settings import LOOPBACK, ClickHouse, Kept

log = structlog.get_logger()

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.25, 10.0  # ten seconds: an operator who brings it back does not wait for us
CONNECT_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 60  # an insert of 20,000 rows takes one second; a merge under pressure may hold it up for some
MIGRATIONS = files("schemas") / "clickhouse"
T = TypeVar("T")

# Server errors that say a row is wrong, not the server, the schema or the network. The same rows will fail again.
ROW_ERRORS = {
    6: "CANNOT_PARSE_TEXT", 26: "CANNOT_PARSE_QUOTED_STRING", 27: "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
    38: "CANNOT_PARSE_DATE", 41: "CANNOT_PARSE_DATETIME", 69: "ARGUMENT_OUT_OF_BOUND", 70: "CANNOT_CONVERT_TYPE",
    72: "CANNOT_PARSE_NUMBER", 117: "INCORRECT_DATA", 131: "TOO_LARGE_STRING_SIZE", 248: "INVALID_PARTITION_VALUE",
    321: "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE", 349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN", 407: "DECIMAL_OVERFLOW",
    469: "VIOLATED_CONSTRAINT",
}
# What the client raises while it writes a value into a column.
ROW_EXCEPTIONS = (DataError, struct.error, OverflowError, UnicodeError)
MEMORY_LIMIT_EXCEEDED = 241
SCHEMA_MISSING = {60: "UNKNOWN_TABLE", 81: "UNKNOWN_DATABASE"}  # ClickHouse lost its data, or is a new one


class ClickHouseMissing(ConnectionError):
    """No ClickHouse answered. The message names the address and what to do."""


class MigrationError(RuntimeError):
    """The migrations in the code and those in the database do not agree."""


class Migration(msgspec.Struct, frozen=True):
    """One file `NNNN_name.sql`. Its statements may run twice: a crash in the middle runs the file again."""

    version: int
    name: str
    sha256: str
    statements: tuple[str, ...]


def address(settings: ClickHouse) -> str:
    return f"{'https' if settings.secure else 'http'}://{settings.host}:{settings.port}"


def missing(settings: ClickHouse, error: BaseException) -> str:
    """What to tell a person when ClickHouse does not answer or refuses."""
    said = _one_line(error)
    if getattr(error, "code", None) in SCHEMA_MISSING:
        return (f"ClickHouse at {address(settings)} has no such table yet in {settings.database!r}: {said}; clickwake setup "
                "makes what is missing")  # fmt: skip
    return (f"ClickHouse at {address(settings)} does not answer as {settings.user!r}: {said}; start one "
            f"(clickwake up) or set CLICKWAKE_CLICKHOUSE__HOST, __PORT, __USER and __PASSWORD")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def open_client(settings: ClickHouse, database: str | None = None) -> Client:
    """One attempt. Without a session id, so that one client may be used by several threads; each insert says
    `async_insert=0` itself, because an acknowledged insert has to be on disk before an offset is committed."""
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # it logs with a traceback what it raises anyway
    return clickhouse_connect.get_client(
        host=settings.host, port=settings.port, username=settings.user, password=settings.password.get_secret_value(),
        database=database if database is not None else settings.database, secure=settings.secure,
        verify=True, ca_cert=None if settings.ca_file is None else str(settings.ca_file),
        connect_timeout=CONNECT_TIMEOUT_S, send_receive_timeout=ANSWER_TIMEOUT_S, autogenerate_session_id=False,
        compress=settings.host not in LOOPBACK,  # on loopback it costs more than it saves
        query_retries=0, dedicated_pool=True, tz_mode="aware",
    )


def connect(settings: ClickHouse, *, wait_s: float | None = None, database: str | None = None,
            stopped: Callable[[float], bool] | None = None) -> Client:
    """A client, tried with growing pauses (capped) until one answers; each failure names the address.

    Raises `ClickHouseMissing` after `wait_s` (None: never), or when `stopped(pause_s)`, which may wait up to the pause
    for somebody who wants to end the process, says so.
    """
    return _persist(settings, wait_s, stopped, lambda: open_client(settings, database))


def _persist(settings: ClickHouse, wait_s: float | None, stopped: Callable[[float], bool] | None,
             attempt: Callable[[], T]) -> T:
    started, pause_s = time.monotonic(), BACKOFF_FIRST_S
    while True:
        try:
            return attempt()
        except (ClickHouseError, OSError) as error:
            text = missing(settings, error)
            if wait_s is not None and time.monotonic() - started + pause_s > wait_s:
                raise ClickHouseMissing(text) from error
            log.warning("clickhouse.away", address=address(settings), error=text, again_in_s=pause_s)
            if stopped is None:
                time.sleep(pause_s)  # a backoff: there is no condition to wait for but the server itself
            elif stopped(pause_s):
                raise ClickHouseMissing(text) from error
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)


def migrations() -> list[Migration]:
    """Every `NNNN_name.sql`, by number. Raises MigrationError for a number used twice or a name without one."""
    found: dict[int, Migration] = {}
    for file in sorted(MIGRATIONS.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".sql"):
            continue
        match = re.fullmatch(r"(\d{4})_\w+\.sql", file.name)
        if match is None:
            raise MigrationError(f"schemas/clickhouse/{file.name}: expected a name like 0001_events.sql")
        version, text = int(match[1]), file.read_text(encoding="utf-8")
        if version in found:
            raise MigrationError(f"schemas/clickhouse/{file.name} and {found[version].name} have the same number")
        digest = hashlib.sha256(text.encode()).hexdigest()
        found[version] = Migration(version, file.name, digest, statements(text))
    return [found[version] for version in sorted(found)]


def statements(text: str) -> tuple[str, ...]:
    """The statements of a file: each ends with a semicolon at the end of a line; whole-line comments are left out.

    >>> statements("-- why\\nSELECT 1;\\nSELECT ';'\\n  AS x;\\n")
    ('SELECT 1', "SELECT ';'\\n  AS x")
    """
    code = re.sub(r"^[ \t]*--.*\n?", "", text, flags=re.MULTILINE)
    return tuple(part.strip() for part in re.split(r";[ \t]*(?:\n|$)", code) if part.strip())


def migrate(settings: ClickHouse, *, wait_s: float | None = None,
            stopped: Callable[[float], bool] | None = None) -> list[str]:
    """Create the database and apply the migrations it has not seen, in order; returns their names.

    Each is recorded with its sha256 after its last statement; one that was applied and edited later is refused with
    MigrationError. Two processes may do this at once: every statement may run twice. An error of the server in the
    middle (it went away, a lock) starts over, within the limits of `connect`.
    """
    return _persist(settings, wait_s, stopped, lambda: _migrate(settings))


def _migrate(settings: ClickHouse) -> list[str]:
    with contextlib.closing(open_client(settings, "default")) as client:
        client.command(f"CREATE DATABASE IF NOT EXISTS {_quoted(settings.database)}")
    with contextlib.closing(open_client(settings)) as client:
        client.command(
            "CREATE TABLE IF NOT EXISTS schema_migrations (version UInt32 COMMENT 'number of the file', "
            "name String COMMENT 'file in schemas/clickhouse', sha256 String COMMENT 'of its text when it was applied', "
            "applied_at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'when its last statement had run') "
            "ENGINE = MergeTree ORDER BY version COMMENT 'Which migrations this database has seen'")
        done = _apply(client, settings)
        _retain(client, settings)
        return done


def _apply(client: Client, settings: ClickHouse) -> list[str]:
    rows = client.query("SELECT DISTINCT version, sha256 FROM schema_migrations").result_rows
    applied: dict[int, set[str]] = {}
    for version, digest in rows:
        applied.setdefault(version, set()).add(digest)
    done = []
    for migration in migrations():
        known = applied.get(migration.version)
        if known is None:
            for statement in migration.statements:
                client.command(statement)
            client.insert("schema_migrations", [(migration.version, migration.name, migration.sha256)],
                          column_names=["version", "name", "sha256"], settings={"async_insert": 0})
            done.append(migration.name)
            log.info("clickhouse.migrated", name=migration.name, database=settings.database, address=address(settings))
        elif known != {migration.sha256}:
            raise MigrationError(
                f"schemas/clickhouse/{migration.name} has sha256 {migration.sha256[:12]}…, but database "
                f"{settings.database!r} at {address(settings)} was migrated with "
                f"{', '.join(digest[:12] for digest in sorted(known))}…: put the old text back and make the change "
                "in a new file with the next number")
    return done


def _retain(client: Client, settings: ClickHouse) -> None:
    """Give each table the retention of the settings, or none. Rows go when their part is merged next."""
    sql = ("SELECT name, create_table_query FROM system.tables "
           "WHERE database = {database:String} AND name IN {names:Array(String)}")  # fmt: skip
    rows = client.query(sql, parameters={"database": settings.database, "names": list(get_args(Kept))}).result_rows
    for name, text in rows:
        found = re.search(r"TTL partition_time \+ toIntervalDay\((\d+)\)", text)
        held, wanted = int(found[1]) if found else None, settings.retention_days.get(name)
        if held != wanted:
            change = "REMOVE TTL" if wanted is None else f"MODIFY TTL partition_time + toIntervalDay({wanted:d})"
            client.command(f"ALTER TABLE {_quoted(name)} {change}")
            log.info("clickhouse.retention", table=name, days=wanted, before=held, database=settings.database)


def _quoted(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def verdict(error: BaseException) -> Literal["row", "schema", "retry"]:
    """What to do about a failed insert: `row`, the same rows will fail again, find and reject the bad ones; `schema`,
    a table is missing, migrate and retry; `retry`, anything else: network, memory, too many parts, wrong password, a
    table someone altered. Those go away when the world changes, and rejecting good rows because of them would lose them.

    >>> verdict(OverflowError("int too large")), verdict(ConnectionResetError())
    ('row', 'retry')
    """
    if isinstance(error, ClickHouseError) and not isinstance(error, DataError):
        code = getattr(error, "code", None)
        if code in SCHEMA_MISSING:
            return "schema"
        return "row" if code in ROW_ERRORS else "retry"
    return "row" if isinstance(error, ROW_EXCEPTIONS) else "retry"


def too_large(error: BaseException) -> bool:
    """Whether fewer rows at once may be taken: the server has not the memory for so many, or not now."""
    return getattr(error, "code", None) == MEMORY_LIMIT_EXCEEDED


def insert(client: Client, table: str, columns: dict[str, str], data: list[list[Any]], token: str) -> None:
    """Insert columns of equal length (name → type in `columns`), at most one partition block's worth of months.

    `token` is a hash of the content: within the table's `non_replicated_deduplication_window` the same insert again
    does nothing. It only saves work: what makes a replay harmless is the identity of the rows.
    """
    client.insert(table, data, column_names=list(columns), column_type_names=list(columns.values()), column_oriented=True,
                  settings={"async_insert": 0, "insert_deduplicate": 1, "insert_deduplication_token": token})
