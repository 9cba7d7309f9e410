"""One query on one connection: settings on, run, settings off. Everything here blocks and runs in a worker thread."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from clickwake.local.clickhouse.errors import READONLY, QueryError
from clickwake.local.clickhouse.pool import EngineConnection, Pool, Session
from clickwake.local.clickhouse.request import Request
from clickwake.local.clickhouse.sql import Statement, from_infile

# Formats whose blocks follow on without a frame around them: these are streamed, all others are collected first.
_STREAMED = {"native", "rowbinary", "tabseparated", "tsv", "tabseparatedraw", "tsvraw", "csv", "jsoneachrow", "ndjson",
             "jsonlines", "jsonstringseachrow", "jsoncompacteachrow", "jsoncompactstringseachrow", "lineasstring", "rawblob"}


@dataclass
class Summary:
    """What X-ClickHouse-Summary says; `read_*` stay 0 for a streamed answer until it has ended."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    started: float = field(default_factory=time.monotonic)

    def values(self) -> dict[str, str]:
        """Numbers as strings, as ClickHouse writes them."""
        elapsed_ns = int((time.monotonic() - self.started) * 1e9)
        return {"read_rows": str(self.read_rows), "read_bytes": str(self.read_bytes), "written_rows": str(self.written_rows),
                "written_bytes": str(self.written_bytes), "total_rows_to_read": "0", "result_rows": str(self.result_rows),
                "result_bytes": "0", "elapsed_ns": str(elapsed_ns)}


class Execution:
    """A query from `begin` to `end`; between them either `rows` or `append` and `commit`."""

    def __init__(self, pool: Pool, request: Request, statement: Statement) -> None:
        self.summary = Summary()
        self.output_format = statement.format or request.default_format
        self.has_output = statement.has_output
        self._pool, self._request, self._statement = pool, request, statement
        self._connection: EngineConnection | None = None
        self._session: Session | None = None
        self._spool: IO[bytes] | None = None
        self._stream: Any = None

    def begin(self) -> None:
        """Take a connection and set it up. Raises `QueryError`; `end` must be called in any case."""
        arguments = self._request.arguments
        if session_id := arguments.get("session_id"):
            self._session = self._pool.open_session(session_id, arguments.get("session_timeout", ""),
                                                    must_exist=arguments.get("session_check") == "1")
        connection = self._connection = self._pool.acquire(self._session)
        pinned = self._session is not None and self._session.connection is connection
        if self._request.method == "GET":
            self._check_reads_only(connection)
        settings = {"log_comment": self._request.query_id, **self._request.settings}  # by which it can be found and killed
        database = self._request.database or ("" if pinned else "default")
        connection.apply(settings, database, remember=pinned)
        if self._statement.keeps_state:
            connection.stateful = True
            if self._statement.verb == b"USE":
                connection.forget_database()
        if self._statement.is_insert:
            for name, value in self._request.params.items():
                connection.apply({f"param_{name}": value}, None, remember=False)
            self._spool = tempfile.NamedTemporaryFile(prefix="clickwake-insert-")  # noqa: SIM115  # closed by commit or end

    def _check_reads_only(self, connection: EngineConnection) -> None:
        kind = connection.raw._conn.classify_query(self._statement.head.decode(errors="replace"))["query_class"].name
        if kind == "MUTATING" or self._statement.is_insert:
            raise QueryError.refused(READONLY, "Cannot execute query in readonly mode. For queries over HTTP, method GET "
                                               "implies readonly. You should use method POST for modifying queries")

    def append(self, data: bytes) -> None:
        """Data waits in a file: chdb's own streaming insert reports success for rows the table then refuses (a violated
        constraint, too many parts, memory), and inline data is cut at the first empty line. An INSERT FROM INFILE fails
        as a whole, with the engine's error."""
        assert self._spool is not None
        self._spool.write(data)

    def commit(self) -> None:
        """Write what was appended; only now is the INSERT done."""
        assert self._spool is not None and self._connection is not None
        with self._spool as spool:
            self._spool = None
            spool.flush()
            sql = from_infile(self._statement.head, spool.name, self._statement.format or "TabSeparated")
            done = self._connection.query(sql)
        self.summary.written_rows, self.summary.written_bytes = done.rows_written(), done.bytes_written()

    def rows(self) -> Iterator[bytes]:
        """Run any other statement; the answer in pieces."""
        assert self._connection is not None
        sql, params = self._statement.head, self._request.params
        if self._statement.verb == b"KILL":  # clients know the id they gave, the engine knows it as the comment
            sql = sql.replace(b"query_id", b"Settings['log_comment']")
        if self._statement.may_stream and self.output_format.lower() in _STREAMED and self._start_stream(sql, params):
            yield from self._streamed()
            return
        result = self._connection.query(sql, self.output_format, params)
        self.summary.read_rows, self.summary.read_bytes = result.storage_rows_read(), result.storage_bytes_read()
        self.summary.written_rows, self.summary.written_bytes = result.rows_written(), result.bytes_written()
        self.summary.result_rows = result.rows_read()
        yield result.bytes()

    def _start_stream(self, sql: bytes, params: dict[str, str]) -> bool:
        """False when the engine cannot stream this statement (it says so before it runs anything)."""
        assert self._connection is not None
        try:
            self._stream = self._connection.raw.send_query(sql, self.output_format, params=params)
        except Exception as error:
            if "Streaming query is not supported" in str(error):
                return False
            raise QueryError.of_engine(error) from error
        return True

    def _streamed(self) -> Iterator[bytes]:
        try:
            for chunk in self._stream:
                self.summary.result_rows += chunk.rows_read()
                yield chunk.bytes()
        except Exception as error:
            self._stream = None
            raise QueryError.of_engine(error) from error
        self._stream = None

    def end(self) -> None:
        """Undo what `begin` did; an INSERT that was not committed is dropped, a stream that was not read to its end cut.

        A second call does nothing.
        """
        connection, session = self._connection, self._session
        self._connection = self._session = None
        try:
            if connection:
                self._close_open_ends(connection)
        finally:
            if connection:
                self._pool.release(connection, session)
            if session:
                self._pool.close_session(session)

    def _close_open_ends(self, connection: EngineConnection) -> None:
        connection.broken = connection.broken or self._stream is not None
        try:
            if self._spool is not None:
                self._spool.close()
            if self._stream is not None:
                self._stream.cancel()
            if not connection.broken:
                connection.reset()
        except BaseException:
            connection.broken = True
            raise
