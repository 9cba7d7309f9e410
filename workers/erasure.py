"""`python -m workers.erasure`: carries out what the erasures topic asks for, one request after the other. One is enough; two
do the same things twice, without harm. The protocol is numbered in `stream/erasure/eraser.py`.

Metrics are on a loopback port, written with the process id, and whether it is ready, to `<home>/run/erasure.json`.
SIGTERM: ends at once; what was begun is begun again at the next start.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog
from prometheus_client import Counter, Gauge, Histogram

from schemas.erasure import Erasure
from stream.adapters.health import metrics_port
from stream.adapters.kafka import kafka_clients, producing
from stream.adapters.kafka.erasures import Erasures
from stream.erasure.eraser import Eraser
from stream.logs import configure
from stream.settings import Settings, load
from stream.tracing import port as tracing

log = structlog.get_logger()

OPEN = Gauge("clickwake_erasures_open", "Requests to forget a user that are not done")
OLDEST = Gauge("clickwake_erasures_oldest_timestamp_seconds", "When the oldest of them was made; 0 while there is none")
DONE = Counter("clickwake_erasures_done", "Requests carried out everywhere")
SECONDS = Histogram("clickwake_erasure_seconds", "From a request to its receipt",
                    buckets=(1, 10, 60, 600, 3_600, 21_600, 86_400))  # fmt: skip


class Request(NamedTuple):
    """As it says now, and the record by which it came first."""

    erasure: Erasure
    record: Any


class Requests:
    """Requests that are not done, oldest first."""

    def __init__(self) -> None:
        self._open: dict[str, Request] = {}
        self._arrived = asyncio.Event()

    def note(self, record: Any, erasure: Erasure) -> None:
        """One record of the topic: a request, or that it is done; a lift takes no request back."""
        if erasure.user_id is not None:
            first = self._open.get(erasure.erasure_id)
            self._open[erasure.erasure_id] = Request(erasure, record if first is None else first.record)
            self._arrived.set()
        elif erasure.receipt is not None:
            self._open.pop(erasure.erasure_id, None)
        OPEN.set(len(self._open))
        OLDEST.set(self._oldest().erasure.requested_at.timestamp() if self._open else 0)

    async def next(self) -> Request:
        while not self._open:
            self._arrived.clear()
            await self._arrived.wait()
        return self._oldest()

    def _oldest(self) -> Request:
        return min(self._open.values(), key=lambda one: one.erasure.requested_at)


async def serve(settings: Settings, on_ready: Callable[[], object]) -> None:
    """For ever; raises what cannot be gone on with."""
    await kafka_clients.wait_for_kafka(settings)
    requests, traces = Requests(), tracing.start(settings, "erasure")
    reader = Erasures(settings, requests.note)
    producer = producing.create_producer(settings)
    await producer.start()
    reader.start()
    try:
        await reader.ready()
        log.info("erasure worker ready")
        on_ready()
        eraser = Eraser(settings, producer, reader, traces)
        async with asyncio.TaskGroup() as group:
            group.create_task(reader.wait_failed())
            while True:
                request, record = await requests.next()
                with traces.batch(None, [record]):
                    await eraser.erase(request)
                DONE.inc()
                SECONDS.observe(max(0.0, (datetime.now(UTC) - request.requested_at).total_seconds()))
                await reader.caught_up()  # with what was just written, by which the request is done
    finally:
        await reader.stop()
        await kafka_clients.stopped(producer)


async def run(settings: Settings, on_ready: Callable[[], object]) -> None:
    """Until SIGTERM or SIGINT."""
    serving = asyncio.ensure_future(serve(settings, on_ready))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        log.info("erasure worker ended")


def main() -> int:
    """Exit code: 0 after a signal."""
    settings = load()
    configure(settings)
    metrics_port.run(settings, "erasure", settings.erasure.metrics_port, run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
