"""The collector's process: a socket, `<home>/run/collector.json` while it listens, and a drain on SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import msgspec
import structlog
import uvicorn

from producers.collector import keys
from producers.collector.app import create_app
from stream.settings import Settings, load

KEEP_ALIVE_S = 30  # browsers and SDKs reuse a connection between two flushes
DRAIN_MARGIN_S = 5  # beyond the acknowledgement's own timeout

log = structlog.get_logger("collector")


class Server(uvicorn.Server):
    """uvicorn's server, which says where it listens once it does, and takes that back when it stops."""

    def __init__(self, config: uvicorn.Config, run_file: Path) -> None:
        super().__init__(config)
        self._run_file = run_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.should_exit or not sockets:
            return
        host, port = sockets[0].getsockname()[:2]
        self._run_file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._run_file.with_suffix(".tmp")
        draft.write_bytes(msgspec.json.encode({"pid": os.getpid(), "host": host, "port": port}))
        draft.replace(self._run_file)
        log.info("listening", url=f"http://{host}:{port}", docs=f"http://{host}:{port}/docs")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._run_file.unlink(missing_ok=True)
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


def main(host: str | None = None, port: int | None = None) -> int:
    """Serves until SIGTERM or SIGINT, finishes the requests in flight, returns the exit code."""
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    settings: Settings = load()
    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.model_copy(update={"collector": settings.collector.model_copy(update=changes)})
    collector = settings.collector
    if (why := keys.refusal(collector)) is not None:
        log.error("not_listening", host=collector.host, why=why)
        return 1
    try:
        listener = _bind(collector.host, collector.port)
    except OSError as error:
        log.error(
            "cannot_listen", host=collector.host, port=collector.port, error=error.strerror,
            action="stop what listens there, or choose another with CLICKWAKE_COLLECTOR__PORT (0 takes a free one)",
        )
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after the drain: that is the end
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        create_app(settings), log_config=None, access_log=False, server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=collector.ack_timeout_ms // 1000 + DRAIN_MARGIN_S,
    )
    with listener:
        Server(config, settings.home / "run" / "collector.json").run(sockets=[listener])
    return 0
