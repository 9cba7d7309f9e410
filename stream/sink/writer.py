"""Inserts one frozen batch: retries what will go away, finds and returns what will not. Runs in a thread of its own."""

from __future__ import annotations

import importlib
import importlib.util
import threading
import time

import structlog
from clickhouse_connect.driver.client import Client

from schemas.dead_letter import Message
from stream.adapters.database import clickhouse
from stream.settings import ClickHouse
from stream.sink import metrics
from stream.sink.batch import Batch, Insert, Rejection
from stream.tracing.port import UNTRACED, Tracing

log = structlog.get_logger()

LATE_IMPORTS = ("pandas", "pyarrow")  # the client loads them with its first insert, where they are: most of a second
HALVED_AFTER_ATTEMPTS = 5  # some seconds: where memory is short for a moment only, halves would be more inserts for nothing


class Stopped(Exception):
    """The process is to end while ClickHouse does not take the batch. Nothing is committed: it will be read again."""


class Writer:
    """One connection and one thread at a time; `stop` may be set from any thread and ends the waiting."""

    def __init__(self, settings: ClickHouse, stop: threading.Event, migrate: bool = True,
                 tracing: Tracing = UNTRACED) -> None:  # fmt: skip
        self._settings, self._stop, self._migrate, self._tracing = settings, stop, migrate, tracing
        self._client: Client | None = None

    def prepare(self) -> None:
        """Migrate, waiting for ClickHouse as long as it takes. Raises Stopped, MigrationError."""
        try:
            if self._migrate:
                clickhouse.migrate(self._settings, stopped=self._stop.wait)
            self._connection()
        except clickhouse.ClickHouseMissing as error:
            raise Stopped(str(error)) from error
        for name in LATE_IMPORTS:
            if importlib.util.find_spec(name) is not None:
                importlib.import_module(name)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def write(self, batch: Batch) -> list[Rejection]:
        """Insert all of it; returns the records ClickHouse will never take. Raises Stopped."""
        rejected = []
        for insert in batch.inserts:
            rejected += self._bisect(insert)
        return rejected

    def _bisect(self, insert: Insert) -> list[Rejection]:
        """Insert it; its halves, when a row is refused for good or all are too many for the server's memory."""
        error = self._insert(insert)
        if error is None:
            metrics.ROWS.labels(insert.table.name).inc(len(insert.rows))
            return []
        if len(insert.rows) > 1:
            first, second = insert.halves()
            return self._bisect(first) + self._bisect(second)
        cause = "" if error.__cause__ is None else f" ({error.__cause__})"
        text = " ".join(str(error).split()) + cause
        record = insert.records[0]
        log.error("sink.rejected", table=insert.table.name, topic=record.topic, partition=record.partition,
                  offset=record.offset, error=text, next="kept as a dead letter of kind sink_rejected")
        return [Rejection(record, (Message(path=insert.table.name, keyword=type(error).__name__, message=text),))]

    def _insert(self, insert: Insert) -> Exception | None:
        """None once the server has acknowledged, or the error that says that a row is bad or that the rows are too many;
        anything else is retried for ever."""
        pause_s, attempt = clickhouse.BACKOFF_FIRST_S, 0
        while True:
            attempt += 1
            try:
                started = time.perf_counter()
                with self._tracing.insert(insert.table.name, insert.records):
                    clickhouse.insert(self._connection(), insert.table.name, insert.table.columns, insert.data, insert.token)
                metrics.INSERT_SECONDS.labels(insert.table.name).observe(time.perf_counter() - started)
                metrics.BLOCKED.set(0)
                return None
            except Exception as error:
                verdict = clickhouse.verdict(error)
                if verdict == "row":
                    metrics.BLOCKED.set(0)
                    return error
                if attempt >= HALVED_AFTER_ATTEMPTS and len(insert.rows) > 1 and clickhouse.too_large(error):
                    log.warning("sink.halved", table=insert.table.name, rows=len(insert.rows), attempt=attempt,
                                error=" ".join(str(error).split())[:500], next="its halves are inserted one after the other")
                    return error
                self._wait(insert, error, attempt, pause_s)
                if verdict == "schema":  # a server that came back empty
                    self.close()
                    self.prepare()
                pause_s = min(2 * pause_s, clickhouse.BACKOFF_MAX_S)

    def _wait(self, insert: Insert, error: Exception, attempt: int, pause_s: float) -> None:
        metrics.BLOCKED.set(1)
        metrics.RETRIES.labels(type(error).__name__).inc()
        text = " ".join(str(error).split())[:500] or type(error).__name__
        log.warning("sink.retry", address=clickhouse.address(self._settings), table=insert.table.name,
                    rows=len(insert.rows), attempt=attempt, again_in_s=pause_s, error=text,
                    next="the same batch is tried again until it is stored; offsets stay where they are")
        if self._stop.wait(pause_s):
            raise Stopped(f"{len(insert.rows)} rows for {insert.table.name} were not stored: {text}")

    def _connection(self) -> Client:
        if self._client is None:
            self._client = clickhouse.connect(self._settings, stopped=self._stop.wait)
        return self._client
