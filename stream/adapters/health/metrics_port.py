"""A worker's metrics over HTTP, and the file that says where, and whether the worker is ready."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
import uvloop
from prometheus_client import make_wsgi_app

from stream.files import RunFile
from stream.http import scraping
from stream.settings import Settings

log = structlog.get_logger()


class _Server(ThreadingMixIn, WSGIServer):
    """A scraper that hangs holds up no other."""

    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Silent(WSGIRequestHandler):
    """Logs no request."""

    def log_message(self, format: str, *args: object) -> None: ...


def listen(settings: Settings, port: int) -> WSGIServer:
    """Serve this process's metrics on a port (0: any free one) of `metrics.host`, in a thread, to who may read them."""
    metrics, host = make_wsgi_app(), settings.metrics.host

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        refused = scraping.refused(settings.metrics, environ["REMOTE_ADDR"], environ.get("HTTP_AUTHORIZATION", ""),
                                   forwarded="HTTP_X_FORWARDED_FOR" in environ or "HTTP_FORWARDED" in environ)  # fmt: skip
        if refused is None:
            answered: Iterable[bytes] = metrics(environ, start_response)
            return answered
        said = refused.response()
        headers = [(name.decode(), value.decode()) for name, value in said.raw_headers]
        start_response(f"{said.status_code} Unauthorized", headers)
        return [bytes(said.body)]

    server = make_server(host, port, answer, _Server6 if ":" in host else _Server, _Silent)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


@contextlib.contextmanager
def served(settings: Settings, name: str, port: int) -> Iterator[RunFile]:
    """For the length of a block: metrics on a port (0: any free one) of `metrics.host`, which `<home>/run/<name>.json` names
    from the first time that the file is told to say something."""
    server = listen(settings, port)
    run_file = RunFile(settings.home, name, metrics_port=server.server_port)
    log.info("metrics", at=f"http://{settings.metrics.host}:{server.server_port}/metrics")
    try:
        yield run_file
    finally:
        run_file.end()
        server.shutdown()
        server.server_close()


def run(
    settings: Settings, name: str, port: int, work: Callable[[Settings, Callable[[], object]], Coroutine[Any, Any, None]]
) -> None:  # fmt: skip
    """A worker of which there is one, to its end: `work` gets the settings, and what says that it is ready."""
    with served(settings, name, port) as run_file:
        run_file.say(ready=False)
        uvloop.run(work(settings, lambda: run_file.say(ready=True)))
