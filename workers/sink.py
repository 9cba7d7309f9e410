"""`python -m workers.sink`: events, items and outputs into ClickHouse. Start more to share the partitions.

Its own process and consumer group, `<prefix>.sink`: while ClickHouse is away nothing else notices, and Kafka's lag is
the buffer. A batch goes through these steps, while the next one is collected (step 1) and not more:

1. Collect records until `sink.batch_rows_max` or `batch_bytes_max` is reached, or `flush_interval_ms` after the first.
2. Freeze: decode all of them into rows, sorted into inserts by table and month. From here on the batch does not change.
3. Insert, each table in turn, synchronously (`async_insert=0`). What may go away (network, time-outs, memory, too many
   parts, a wrong password …) is tried again with growing pauses for ever, the same batch with the same deduplication
   token (a hash of its content). An error that lies in a row is searched for by halving; that row is set aside.
   Rows that stay too many for the server's memory are halved as well, and none is set aside.
4. Records set aside, and outputs or items that cannot be decoded, become dead letters of kind `sink_rejected`; their
   acknowledgement by the broker is awaited.
5. Commit the offsets. A commit that fails is made up for by the next one.

What a crash does, and nothing else depends on it:

| after step | what is there | at the next start |
| --- | --- | --- |
| 1, 2 | nothing was written | the records are read again |
| 3 | some or all rows | inserted again, perhaps in other batches, but under the same identities, which views read |
| 4 | all rows and the dead letters | the same again; the dead letters have the same ids |
| 5 | everything | goes on behind the batch |

A rebalance in between does the same as a crash after 3 or 4: the batch is stored but not committed.

Undecodable bytes on the events topic, and events that cannot be processed, are skipped here and counted
(`clickwake_sink_records_total{outcome="skipped_…"}`): personalize reads the same topic with the same decoder and writes
their dead letter, so each input has exactly one place. Events whose user refused analytics are stored without ids and
free-form parts.

Metrics are on a loopback port, written with the process id, and whether rows flow, to `<home>/run/sink.json`. SIGTERM:
the batch is finished if ClickHouse takes it, committed, and the group is left; after STOP_TIMEOUT_S the process ends as
if it had crashed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable

import structlog

from stream.adapters.database.clickhouse import MigrationError
from stream.adapters.health import metrics_port, stuck
from stream.adapters.kafka.producing import SendFailed
from stream.adapters.state.changelog import InputChanged
from stream.logs import configure
from stream.settings import Settings, load
from stream.sink.consumer import Sink

STOP_TIMEOUT_S = 17.0  # `clickwake up` and container runtimes wait for 20 s before they kill

log = structlog.get_logger()


def _end(loop: asyncio.AbstractEventLoop) -> None:
    log.error("sink.stop_timeout", seconds=STOP_TIMEOUT_S, waits="; ".join(stuck.waits(loop)),
              next="ending as if crashed; the batch will be read again")
    os._exit(1)  # a thread that waits for a server which does not answer cannot be ended otherwise


async def serve(settings: Settings, on_ready: Callable[[], object]) -> None:
    """Run until SIGTERM or SIGINT."""
    sink = Sink(settings, on_ready)
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        log.info("sink.stopping")
        timer = threading.Timer(STOP_TIMEOUT_S, _end, (loop,))
        timer.daemon = True
        timer.start()
        sink.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await sink.run()


def main() -> int:
    """Exit code: 0 after a signal, 1 after an error that a restart may not cure (said in the log)."""
    settings = load()
    configure(settings)
    log.info("sink.started", pid=os.getpid())
    try:
        metrics_port.run(settings, "sink", settings.sink.metrics_port, serve)
    except (InputChanged, MigrationError, SendFailed) as error:
        log.error("sink.failed", error=str(error))
        return 1
    log.info("sink.ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
