"""The HTTP side: an ASGI application that answers like ClickHouse on its HTTP port."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import structlog

from clickwake.local.clickhouse import codec
from clickwake.local.clickhouse.errors import QUERY_WAS_CANCELLED, QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING, QueryError
from clickwake.local.clickhouse.execute import Execution
from clickwake.local.clickhouse.pool import CONNECTIONS_MAX, Pool
from clickwake.local.clickhouse.request import Request, authenticate, parse, read_query

BUFFERED_BYTES_MAX = 1 << 20  # an answer up to this size has its true status and summary; a longer one is under way by then
SPOOL_MEMORY_BYTES_MAX = 32 << 20  # of an answer that is to be sent whole; the rest waits on disk
APPEND_BYTES_MIN = 1 << 20  # body pieces of 64 KiB are collected, so that each thread switch moves some data
_LOOPBACK_NAMES = {"127.0.0.1", "localhost", "[::1]", ""}
_CONTENT_TYPES = {"JSON": "application/json; charset=UTF-8", "CSV": "text/csv; charset=UTF-8; header=absent",
                  "CSVWithNames": "text/csv; charset=UTF-8; header=present", "Native": "application/octet-stream",
                  "JSONEachRow": "application/x-ndjson; charset=UTF-8", "JSONCompact": "application/json; charset=UTF-8",
                  "TabSeparated": "text/tab-separated-values; charset=UTF-8", "RowBinary": "application/octet-stream",
                  "TSV": "text/tab-separated-values; charset=UTF-8", "Parquet": "application/octet-stream",
                  "Arrow": "application/octet-stream", "ArrowStream": "application/octet-stream"}

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
T = TypeVar("T")
log = structlog.get_logger()


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class Server:
    """`user` and `password` are the only account; requests with another Host than loopback's are refused, since a web
    page may reach a loopback port under a name of its own."""

    def __init__(self, pool: Pool, user: str = "default", password: str = "") -> None:
        self._pool, self._user, self._password = pool, user, password
        self._threads = ThreadPoolExecutor(CONNECTIONS_MAX + 8, thread_name_prefix="query")
        self._running: set[str] = set()
        connection = pool.acquire()
        version, timezone = connection.query(b"SELECT version(), timezone()").bytes().decode().split()
        pool.release(connection)
        self.version: str = version
        self.timezone: str = timezone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                self._threads.shutdown(cancel_futures=True)
                self._pool.close()
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin", b"").decode("latin-1").lower().partition("://")[2]
        if any(_without_port(name) not in _LOOPBACK_NAMES for name in (host, origin)):
            await _plain(send, 403, f"Only loopback names may be used with this server, not {host or origin}\n")
        elif scope["path"] in ("/ping", "/replicas_status") or _is_greeting(scope):
            await _plain(send, 200, "Ok.\n")
        elif scope["path"] not in ("/", "/query"):
            await _plain(send, 404, f"There is no handle {scope['path']}, only /, /ping and /replicas_status\n")
        elif scope["method"] not in ("GET", "POST", "PUT"):
            await _plain(send, 501, f"Method {scope['method']} is not supported: use GET or POST\n")
        else:
            await Exchange(self, receive, send).run(scope)

    async def in_thread(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)


def _is_greeting(scope: Scope) -> bool:
    return scope["path"] == "/" and scope["method"] in ("GET", "HEAD") and b"query=" not in scope["query_string"]


def _without_port(name: str) -> str:
    head, colon, tail = name.rpartition(":")
    return head if colon and tail.isdigit() else name


async def _plain(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=UTF-8"), (b"content-length", str(len(text.encode())).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


class Exchange:
    """One query: request, execution, answer."""

    def __init__(self, server: Server, receive: Receive, send: Send) -> None:
        self._server, self._receive, self._send = server, receive, send
        self._tag = secrets.token_hex(8)  # marks an error in the middle of an answer, see `_fail_midway`
        self._started = False
        self._encoder = codec.encoder("")

    async def run(self, scope: Scope) -> None:
        execution: Execution | None = None
        request: Request | None = None
        try:
            request = parse(scope, self._body())
            authenticate(request, self._server._user, self._server._password)
            self._register(request)
            statement, data = await read_query(request)
            execution = Execution(self._server._pool, request, statement)
            await self._server.in_thread(execution.begin)
            if statement.is_insert:
                await self._insert(execution, data)
                await self._finish(request, execution, b"")
            else:
                await self._watched(self._rows(request, execution), request.query_id)
        except QueryError as error:
            await self._end(request, execution)
            await self._fail(request, error)
        except ClientGone:
            log.info("client gone", query_id=request.query_id if request else "")
        finally:
            await self._end(request, execution)

    async def _end(self, request: Request | None, execution: Execution | None) -> None:
        """Free session, connection and query id: before the answer's last byte, since the next request may follow it."""
        if request:
            self._server._running.discard(request.query_id)
        if execution:
            await self._server.in_thread(execution.end)

    def _register(self, request: Request) -> None:
        if request.query_id in self._server._running:
            clash = request.arguments.pop("query_id")
            raise QueryError.refused(QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING, f"Query with id = {clash} is already running")
        self._server._running.add(request.query_id)

    async def _body(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def _insert(self, execution: Execution, data: AsyncIterator[bytes]) -> None:
        held = bytearray()
        async for piece in data:
            held += piece
            if len(held) >= APPEND_BYTES_MIN:
                await self._server.in_thread(execution.append, bytes(held))
                held.clear()
        if held:
            await self._server.in_thread(execution.append, bytes(held))
        await self._server.in_thread(execution.commit)

    async def _watched(self, answer: Awaitable[None], query_id: str) -> None:
        """Await the answer; when the client goes first, cancel its query, so that nobody computes for no one."""
        work = asyncio.ensure_future(answer)
        gone = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and gone.result()["type"] == "http.disconnect":
                await self._server.in_thread(self._server._pool.kill, query_id)
            await work
        except QueryError as error:
            if error.code == QUERY_WAS_CANCELLED and gone.done():
                raise ClientGone from error
            raise
        finally:
            gone.cancel()

    async def _rows(self, request: Request, execution: Execution) -> None:
        rows: Iterator[bytes] = execution.rows()
        if request.whole_answer:
            await self._spooled(request, execution, rows)
            return
        held = bytearray()
        while (piece := await self._server.in_thread(next, rows, None)) is not None:
            held += piece
            if self._started or len(held) > BUFFERED_BYTES_MAX:
                if not self._started:
                    await self._start(200, request, execution)
                await self._write(bytes(held))
                held.clear()
        await self._finish(request, execution, bytes(held))

    async def _spooled(self, request: Request, execution: Execution, rows: Iterator[bytes]) -> None:
        """Collect the whole answer (`wait_end_of_query=1`), on disk when it is large, then send it."""
        with tempfile.SpooledTemporaryFile(SPOOL_MEMORY_BYTES_MAX) as spool:
            while (piece := await self._server.in_thread(next, rows, None)) is not None:
                await self._server.in_thread(spool.write, piece)
            spool.seek(0)
            await self._start(200, request, execution)
            while piece := await self._server.in_thread(spool.read, BUFFERED_BYTES_MAX):
                await self._write(piece)
        await self._finish(request, execution, b"")

    async def _start(self, status: int, request: Request | None, execution: Execution | None, *, code: int | None = None,
                     length: int | None = None) -> None:
        output = execution.output_format if execution else "TabSeparated"
        headers = {"Content-Type": _CONTENT_TYPES.get(output, "text/plain; charset=UTF-8"),
                   "X-ClickHouse-Server-Display-Name": "clickwake",
                   "X-ClickHouse-Timezone": self._server.timezone,
                   "X-ClickHouse-Exception-Tag": self._tag, "X-ClickHouse-Query-Id": request.query_id if request else ""}
        if execution and execution.has_output:
            headers["X-ClickHouse-Format"] = output
        if execution:
            headers["X-ClickHouse-Summary"] = json.dumps(execution.summary.values(), separators=(",", ":"))
        if code is not None:
            headers["X-ClickHouse-Exception-Code"] = str(code)
            headers["Content-Type"] = "text/plain; charset=UTF-8"
        elif encoding := codec.choose(request.accept_encoding) if request else "":
            headers["Content-Encoding"] = encoding
            self._encoder = codec.encoder(encoding)
        if length is not None and "Content-Encoding" not in headers:
            headers["Content-Length"] = str(length)
        pairs = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _write(self, data: bytes) -> None:
        if packed := self._encoder.compress(data):
            await self._send({"type": "http.response.body", "body": packed, "more_body": True})

    async def _finish(self, request: Request, execution: Execution, rest: bytes) -> None:
        if not self._started:
            await self._start(200, request, execution, length=len(rest))
        await self._end(request, execution)
        packed = self._encoder.compress(rest) + self._encoder.flush()
        await self._send({"type": "http.response.body", "body": packed, "more_body": False})

    async def _fail(self, request: Request | None, error: QueryError) -> None:
        log.info("query failed", code=error.code, query_id=request.query_id if request else "", error=error.text[:500])
        body = error.body(self._server.version)
        if self._started:
            await self._fail_midway(body)
            return
        await self._start(error.status, request, None, code=error.code, length=len(body))
        await self._send({"type": "http.response.body", "body": body})

    async def _fail_midway(self, body: bytes) -> None:
        """The status is out already: mark the error in the data as ClickHouse 25.11+ does, and break the connection off
        (by leaving the answer unfinished), so that no client takes the part for the whole."""
        tag = self._tag.encode()
        block = b"\r\n__exception__\r\n" + tag + b"\r\n" + body + f"{len(body)} ".encode() + tag + b"\r\n__exception__\r\n"
        packed = self._encoder.compress(block) + self._encoder.flush()
        await self._send({"type": "http.response.body", "body": packed, "more_body": True})
