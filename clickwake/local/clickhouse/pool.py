"""Connections to the embedded engine: one a running query, so that none waits behind another's long query.

chdb allows one process a data folder, but any number of connections in it, each with its own settings, database and
temporary tables. A connection serves one query at a time; a query's settings are set before and reset after it.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clickwake.local.clickhouse.errors import (
    INVALID_SESSION_TIMEOUT,
    SESSION_IS_LOCKED,
    SESSION_NOT_FOUND,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    UNKNOWN_SETTING,
    QueryError,
)

CONNECTIONS_MAX = 64  # two cores gain nothing from more; a real server's limit answers with the same error
IDLE_MAX = 8  # opening one takes about 5 ms
SESSION_TIMEOUT_S_DEFAULT = 60
SESSION_TIMEOUT_S_MAX = 3600
_NAME = re.compile(r"[A-Za-z_]\w*")


def quote(value: str) -> str:
    r"""
    >>> quote("it's")
    "'it\\'s'"
    """
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


class EngineConnection:
    """One chdb connection. `stateful`: a query left settings or temporary tables; `broken`: it was cut off."""

    def __init__(self, path: Path, defaults: dict[str, str]) -> None:
        from chdb.state.sqlitelike import Connection

        try:
            self.raw: Any = Connection(str(path))
        except RuntimeError as error:
            raise QueryError.of_engine(error) from error
        self.stateful = False
        self.broken = False
        self._defaults = defaults
        self._before: dict[str, str] = {}
        self._database = "default"
        if defaults:
            self._set(defaults)

    def apply(self, settings: dict[str, str], database: str | None, *, remember: bool) -> None:
        """Set a query's settings. `remember` looks up the values to go back to, for a session that set its own."""
        for name in settings:
            if not _NAME.fullmatch(name):
                raise QueryError.refused(UNKNOWN_SETTING, f"Unknown setting {name!r}")
        if database and database != self._database:
            self.query(f"USE `{database.replace('`', '``')}`".encode())
            self._database = database
        if settings:
            self._before = self._current(settings) if remember else {}
            self._before.update({name: self._defaults.get(name, "") for name in settings if name not in self._before})
            self._set(settings)

    def reset(self) -> None:
        """Undo `apply`'s settings."""
        if self._before:
            undo = ", ".join(f"{name} = {quote(value) if value else 'DEFAULT'}" for name, value in self._before.items())
            self._before = {}
            self.query(f"SET {undo}".encode())

    def forget_database(self) -> None:
        """After a USE of the client's own."""
        self._database = ""

    def query(self, sql: bytes, output_format: str = "TSV", params: dict[str, str] | None = None) -> Any:
        try:
            return self.raw.query(sql, output_format, params=params)
        except Exception as error:
            raise QueryError.of_engine(error) from error

    def _set(self, settings: dict[str, str]) -> None:
        self.query(("SET " + ", ".join(f"{name} = {quote(value)}" for name, value in settings.items())).encode())

    def _current(self, settings: dict[str, str]) -> dict[str, str]:
        names = ", ".join(quote(name) for name in settings)
        sql = f"SELECT name, value FROM system.settings WHERE changed AND name IN ({names})"  # noqa: S608  # names are quoted
        rows = self.query(sql.encode(), "TSVRaw")
        return dict(line.split("\t", 1) for line in rows.bytes().decode().splitlines())

    def close(self) -> None:
        self.raw.close()


@dataclass
class Session:
    """A client's `session_id`. It holds a connection only once it has state to keep."""

    timeout_s: int
    expires_at: float
    busy: bool = False
    connection: EngineConnection | None = None


@dataclass
class Pool:
    """All methods may be called from any thread."""

    path: Path
    defaults: dict[str, str] = field(default_factory=dict)
    _idle: list[EngineConnection] = field(default_factory=list)
    _in_use: int = 0
    _sessions: dict[str, Session] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self, session: Session | None = None) -> EngineConnection:
        with self._lock:
            if self._in_use >= CONNECTIONS_MAX:
                raise QueryError.refused(TOO_MANY_SIMULTANEOUS_QUERIES,
                                         f"Too many simultaneous queries. Maximum: {CONNECTIONS_MAX}")
            self._in_use += 1
            if session and session.connection:
                return session.connection
            if self._idle:
                return self._idle.pop()
        try:
            return EngineConnection(self.path, self.defaults)
        except BaseException:
            with self._lock:
                self._in_use -= 1
            raise

    def release(self, connection: EngineConnection, session: Session | None = None) -> None:
        """Give it back: to the session when it has state to keep, else to the others, unless it cannot be reused."""
        with self._lock:
            self._in_use -= 1
            if session:
                session.connection = connection if connection.stateful and not connection.broken else None
                if session.connection:
                    return
            if not connection.stateful and not connection.broken and len(self._idle) < IDLE_MAX:
                self._idle.append(connection)
                return
        connection.close()

    def open_session(self, session_id: str, timeout: str, *, must_exist: bool) -> Session:
        """Lock a session for one query, as the server does: a second query at the same time is refused."""
        if timeout and not (timeout.isdigit() and int(timeout) <= SESSION_TIMEOUT_S_MAX):
            raise QueryError.refused(INVALID_SESSION_TIMEOUT,
                                     f"session_timeout={timeout!r} is not a number up to {SESSION_TIMEOUT_S_MAX}")
        now = time.monotonic()
        with self._lock:
            expired = [key for key, session in self._sessions.items() if session.expires_at < now and not session.busy]
            stale = [session.connection for session in map(self._sessions.pop, expired) if session.connection]
            session = self._sessions.get(session_id)
            if session and session.busy:
                raise QueryError.refused(SESSION_IS_LOCKED, f"Session {session_id} is locked by a concurrent client")
            if session is None:
                if must_exist:
                    raise QueryError.refused(SESSION_NOT_FOUND, f"Session {session_id} not found")
                session = self._sessions[session_id] = Session(int(timeout or SESSION_TIMEOUT_S_DEFAULT), now)
            session.busy = True
        for connection in stale:
            connection.close()
        return session

    def close_session(self, session: Session) -> None:
        """Unlock it; it lives on for its timeout."""
        session.busy = False
        session.expires_at = time.monotonic() + session.timeout_s

    def kill(self, query_id: str) -> None:
        """Cancel a running query whose client has gone."""
        connection = self.acquire()
        try:
            connection.query(f"KILL QUERY WHERE Settings['log_comment'] = {quote(query_id)}".encode())
        finally:
            self.release(connection)

    def close(self) -> None:
        with self._lock:
            every = [*self._idle, *(s.connection for s in self._sessions.values() if s.connection)]
            self._idle.clear()
            self._sessions.clear()
        for connection in every:
            connection.close()
