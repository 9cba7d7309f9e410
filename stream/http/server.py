"""A service's process: a socket, `<home>/run/<name>.json` while it listens, and a drain on SIGTERM."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stream.files import RunFile
from stream.http.answers import Refused
from stream.settings import Settings

KEEP_ALIVE_S = 30  # browsers and SDKs reuse a connection between two requests

log = structlog.get_logger()


class Server(uvicorn.Server):
    """uvicorn's server, which says where it listens once it does, and takes that back when it stops."""

    def __init__(self, config: uvicorn.Config, run_file: RunFile) -> None:
        super().__init__(config)
        self._run_file = run_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.should_exit or not sockets:
            return
        host, port = sockets[0].getsockname()[:2]
        self._run_file.say(host=host, port=port)
        log.info("listening", url=f"http://{host}:{port}", docs=f"http://{host}:{port}/docs")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._run_file.end()
        log.info("draining")
        await super().shutdown(sockets=sockets)
        log.info("stopped")


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def serve(
    name: str, settings: Settings, host: str, port: int, why_not: str | None, create_app: Callable[[Settings], Starlette],
    drain_s: int,
) -> int:  # fmt: skip
    """Serve until SIGTERM or SIGINT, finish the requests in flight for at most `drain_s`, return the exit code. `name` is
    that of its settings; `why_not`: why it may not listen there, as `keys.refusal` finds it."""
    if why_not is not None:
        log.error("not_listening", host=host, why=why_not)
        return 1
    try:
        listener = _bind(host, port)
    except OSError as error:
        log.error(
            "cannot_listen", host=host, port=port, error=error.strerror,
            action=f"stop what listens there, or choose another with CLICKWAKE_{name.upper()}__PORT (0 takes a free one)",
        )
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after the drain: that is the end
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        create_app(settings), log_config=None, access_log=False, server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=drain_s,
    )
    with listener:
        Server(config, RunFile(settings.home, name)).run(sockets=[listener])
    return 0


async def http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors, in our shape."""
    assert isinstance(error, HTTPException), "registered for nothing else"
    response = Refused(error.status_code, "http_error", f"{error.detail}: {request.method} {request.url.path}").response()
    response.headers.update(error.headers or {})
    return response


async def unexpected(request: Request, error: Exception) -> Response:
    """What nobody thought of: logged, and not told to strangers."""
    log.error("unexpected_error", path=request.url.path, exc_info=error)
    return Refused(500, "internal", "The service failed on this request; it is logged. Send it again later.").response()


