"""A worker's metrics over HTTP, and the file that says where, and whether the worker is ready."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import structlog
import uvloop
from prometheus_client import start_http_server

from stream.files import RunFile
from stream.settings import Settings

log = structlog.get_logger()


@contextlib.contextmanager
def served(settings: Settings, name: str, port: int) -> Iterator[RunFile]:
    """For the length of a block: metrics on a port (0: any free one) of `metrics.host`, which `<home>/run/<name>.json` names
    from the first time that the file is told to say something."""
    server, _ = start_http_server(port, addr=settings.metrics.host)
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
