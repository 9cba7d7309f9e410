"""A proxy in front of ClickHouse that does to requests what networks and servers under pressure do."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

SLOW_S = 1.0
STRUCK_S_MAX = 0.05  # about as long as an insert of some hundred rows takes
CODES = {"too many parts": 252, "memory": 241, "timeout": 159, "read only": 164, "disk full": 243, "unknown": 0}


class SickProxy:
    """`ail(statement, size)` says what befalls a request of so many bytes: "" nothing, a name of CODES an error before the
    engine sees it, "reset" a connection cut before, "lost" an answer that is lost after the engine has done it, "slow" a
    second more, "torn" the engine gone by `strike()` when it has half of the request, "struck" when it has all of it and is
    at some step of doing it, or done. While nobody answers behind it, connections are cut."""

    def __init__(self, target: str, strike: Callable[[], None] = lambda: None) -> None:
        self.ail: Callable[[str, int], str] = lambda statement, size: ""
        self.strike = strike
        self.befell: Counter[str] = Counter()
        self._moment = random.Random(1)
        self._host, self._port = target.split(":", maxsplit=1)[0], int(target.split(":")[1])
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                proxy.serve(self, body(self))

            def do_GET(self) -> None:
                proxy.serve(self, b"")

            def log_message(self, *_: object) -> None:
                """What happens is counted, not printed."""

        return Handler

    def serve(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        ill = self.ail(f"{request.path} {data[:200]!r}", len(data))
        self.befell[ill] += 1
        if ill == "reset":
            cut(request)
            return
        if ill in CODES:
            text = f"Code: {CODES[ill]}. DB::Exception: {ill} (made up by a test)".encode()
            respond(request, 500, {"X-ClickHouse-Exception-Code": str(CODES[ill])}, text)
            return
        if ill == "slow":
            time.sleep(SLOW_S)  # what is tested is that it takes so long
        upstream = http.client.HTTPConnection(self._host, self._port, timeout=60)
        kept = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            if ill in ("torn", "struck"):
                upstream.putrequest(request.command, request.path)
                for name, value in (kept | {"Content-Length": str(len(data))}).items():
                    upstream.putheader(name, value)
                upstream.endheaders(data[: len(data) // 2] if ill == "torn" else data)
                time.sleep(self._moment.random() * STRUCK_S_MAX)  # the moment itself is what is drawn
                self.strike()
                cut(request)
                return
            upstream.request(request.command, request.path, data, kept)
            answer = upstream.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            cut(request)
            return
        finally:
            upstream.close()
        if ill == "lost":
            cut(request)
            return
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        respond(request, answer.status, headers, content)


HOP_BY_HOP = {"transfer-encoding", "content-length", "connection", "keep-alive", "host"}


def cut(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)


def respond(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def body(request: BaseHTTPRequestHandler) -> bytes:
    """The request's content, chunked or not."""
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    found = bytearray()
    while size := int(request.rfile.readline().split(b";")[0], 16):
        found += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return bytes(found)
