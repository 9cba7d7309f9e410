"""Faust as Clickwake uses it: an app whose agents get batches of raw records and own their acknowledgement.

    app = create_app(settings, name="personalize", on_assigned=recover, on_revoked=flush)

    @batch_agent(app, "clickwake.events.v1")
    async def process(batches: AsyncIterator[RecordBatch]) -> None:
        async for batch in batches:
            ...                 # several may be open at once
            batch.ack()         # when everything they stand for is safe

    run(app)

The protocol of a partition, and what a crash after each step does:

1. The group assigns it. `on_assigned(all partitions now owned)` runs: open and recover state. Crash: nothing happened.
2. Batches are delivered, in offset order, without gaps. Crash: they are delivered again.
3. The agent acknowledges a batch. Crash: delivered again, so what it did must be idempotent.
4. The offset is committed: by the timer, by `commit(app)`, or before 5 returns. Crash: not delivered again.
5. The partition is revoked, or the process stops. `on_revoked(all partitions owned)` runs first: finish, write,
   acknowledge. What is not acknowledged then is stale (`batch.stale`) and delivered to the next owner.

`on_assigned` may be cancelled by a new rebalance; `on_revoked` follows in every case. Both run on the app's event loop.
If the membership was lost rather than handed over, `owns()` is already False in `on_revoked`: write nothing.
An exception in an agent or a hook ends the process with exit code 1; no batch is acknowledged from then on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import faust
from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalGenerationError, NodeNotReadyError
from faust.transport.drivers import TRANSPORTS
from faust.types.auth import SASLMechanism

from stream.adapters.faust.faust_batches import TP, RecordBatch
from stream.adapters.faust.faust_transport import Consumer, PartitionsHook
from stream.adapters.kafka import kafka_clients, producing
from stream.adapters.kafka.producing import Message, send_batches
from stream.endings import on_signal, until
from stream.settings import Settings

__all__ = ["TP", "App", "Message", "RecordBatch", "batch_agent", "commit", "create_app", "current_generation",
           "heartbeat_age_ms", "owns", "run", "send_batches"]

log = logging.getLogger(__name__)

SCHEME = "clickwake+aiokafka"
# Faust looks transports up by URL scheme in this registry; the other way in is an entry point, which an editable
# installation would not pick up before it is installed again.
TRANSPORTS.aliases[SCHEME] = "stream.adapters.faust.faust_transport:Transport"

HEARTBEATS_A_SESSION = 10
REBALANCE_TIMEOUT_S = 60.0  # time to close an interval when partitions move
POLL_INTERVAL_MAX_S = 3_600.0  # recovery of a large state polls nothing; heartbeats go on meanwhile
QUEUED_BATCHES_MAX = 4  # of an agent, beyond the one it works on; more would only be memory
ORDERLY_END_S = 12.0  # after SIGTERM; what waits for a broker that is away then is cut short, before somebody kills it
CRASH_DEADLINE_S = 12.0  # an orderly end after a failure; then the process ends itself all the same
EXIT_CRASH_DEADLINE = 70  # EX_SOFTWARE

AgentBody = Callable[[AsyncIterator[RecordBatch]], Awaitable[None]]


@dataclass(frozen=True)
class Hooks:
    on_assigned: PartitionsHook
    on_revoked: PartitionsHook


async def _nothing(partitions: set[TP]) -> None:
    """For workers without state."""


class PassThrough(faust.Schema):  # type: ignore[misc]  # Faust ships no types we can check against
    """The value is a `RecordBatch` already: nothing to decode, so nothing that Faust could fail to decode."""

    def compile(self, app: Any, **kwargs: Any) -> Callable[..., Awaitable[Any]]:
        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return app.create_event(None, message.value, message.headers, message)

        return decode


class App(faust.App):  # type: ignore[misc]  # Faust ships no types we can check against
    """A Faust app with our hooks, our producer, and a way to fail for good. Made by `create_app`."""

    consumer: Consumer
    settings: Settings
    hooks: Hooks
    failure: BaseException | None = None
    batch_producer: AIOKafkaProducer | None = None

    async def on_first_start(self) -> None:
        self.settings.state_dir.mkdir(parents=True, exist_ok=True)  # Faust makes its own folder, not the ones above it
        await super().on_first_start()

    async def on_start(self) -> None:
        self._speaking: list[int] = []  # generations
        self.batch_producer = producing.create_producer(self.settings)
        await self.batch_producer.start()
        producing.ask_before_writing(self.batch_producer, self._may_still_write)
        producing.wait_for_leaders(self.batch_producer)
        await super().on_start()

    async def on_stop(self) -> None:
        """SIGTERM comes here. The interval is closed before Faust stops the flow and looks for what is open."""
        if self.failure is None:
            self._end_after(ORDERLY_END_S, self._cut_short)
        if self._consumer is not None:
            await self.consumer.hand_over()
        await super().on_stop()
        if self.batch_producer is not None:
            await self.batch_producer.stop()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """What is sent in the block is of the generation in which it begins: in no other is it written to the network any
        more. A process may sleep between handing it over and that, and wake when others have said newer things. It may sleep
        right before the block, too, and be no member any more when it begins: then it was decided before, and is refused."""
        generation = self.consumer.generation
        self._speaking.append(generation)
        try:
            yield
        finally:
            self._speaking.remove(generation)

    def _may_still_write(self) -> None:
        if self.failure is not None:
            raise IllegalGenerationError("the process is about to end: who reads its records again says what is to be said")
        if any(generation < 0 or generation != self.consumer.generation for generation in self._speaking):
            raise IllegalGenerationError("the group has moved on since this was decided")
        if self._speaking and not owns(self, self.consumer.generation):
            raise NodeNotReadyError("whether this process is still a member is not known before the group has answered")

    async def fail(self, error: BaseException) -> None:
        """End the process with exit code 1. From here on nothing is acknowledged or committed."""
        if self.failure is not None:
            return
        self.failure = error
        log.critical("unexpected error, the process ends and reads again from the last commit: %r", error, exc_info=error)
        if self._consumer is not None:
            self.consumer.ledger.begin_epoch()
        self._end_after(CRASH_DEADLINE_S, partial(os._exit, EXIT_CRASH_DEADLINE))
        await self.crash(error)

    def _end_after(self, seconds: float, end: Callable[[], None]) -> None:
        """From a thread: what does not let go may hold the loop. Does nothing where the process is somebody else's."""
        if self.in_worker:
            deadline = threading.Timer(seconds, end)
            deadline.daemon = True
            deadline.start()

    def _cut_short(self) -> None:
        """A crash does no harm either."""
        log.warning("cut short: it waited for something when it was asked to end: is Kafka up? What was under way is read "
                    "again at the next start")  # fmt: skip
        logging.shutdown()
        os._exit(0 if self.failure is None else EXIT_CRASH_DEADLINE)


def create_app(settings: Settings, name: str, on_assigned: PartitionsHook = _nothing, on_revoked: PartitionsHook = _nothing,
               *, batch_records_max: int | None = None, commit_interval_ms: int = 1_000, **overrides: Any) -> App:
    """An app whose consumer group is `<topic prefix>-<name>`. It declares no topic and opens no port.

    Arguments: `batch_records_max` bounds the records of one poll, over all partitions (default: of personalize);
    `commit_interval_ms` is the longest time an acknowledged offset waits for its commit; `overrides` are Faust's.
    """
    kafka = settings.kafka
    servers = ";".join(f"{SCHEME}://{server.strip()}" for server in kafka.bootstrap_servers.split(","))
    credentials: Any = None
    context = kafka_clients.ssl_context(settings)
    if kafka.security_protocol.startswith("SASL") and kafka.sasl_password is not None:
        credentials = faust.SASLCredentials(username=kafka.sasl_username, password=kafka.sasl_password.get_secret_value(),
                                            mechanism=SASLMechanism(kafka.sasl_mechanism), ssl_context=context)
    elif context is not None:
        credentials = faust.SSLCredentials(context=context)
    app = App(f"{kafka.topic_prefix}-{name}", **{
        "broker": servers,
        "broker_credentials": credentials,
        "broker_session_timeout": kafka.session_timeout_ms / 1000,
        "broker_heartbeat_interval": kafka.session_timeout_ms / 1000 / HEARTBEATS_A_SESSION,
        "broker_rebalance_timeout": REBALANCE_TIMEOUT_S,
        "broker_request_timeout": kafka_clients.REQUEST_TIMEOUT_S,
        "broker_max_poll_interval": POLL_INTERVAL_MAX_S,
        "broker_max_poll_records": batch_records_max or settings.personalize.batch_records_max,
        "broker_commit_interval": commit_interval_ms / 1000,
        "consumer_auto_offset_reset": "earliest",
        "consumer_metadata_max_age_ms": kafka_clients.METADATA_AGE_MAX_MS,
        "producer_acks": -1,
        "producer_request_timeout": kafka_clients.REQUEST_TIMEOUT_S,  # Faust's default is twenty minutes
        "processing_guarantee": "at_least_once",
        "stream_buffer_maxsize": QUEUED_BATCHES_MAX,
        "stream_wait_empty": True,
        "stream_recovery_delay": 0.0,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        # There are no tables; above 0 it selects Faust's own assignor, which gives a worker the same partition numbers
        # of all topics of equal partition count, and keeps them where they were.
        "table_standby_replicas": 1,
        "web_enabled": False,
        "web_bind": "127.0.0.1",
        "datadir": settings.state_dir.absolute() / "faust",
        **overrides,
    })
    app.settings = settings
    app.hooks = Hooks(on_assigned, on_revoked)
    return app


def batch_agent(app: App, *topics: str, name: str | None = None) -> Callable[[AgentBody], Any]:
    """Make an agent of a function that iterates over `RecordBatch`es. It must not return while the app runs.

    One agent an app: batches of all `topics` come through one iterator, in offset order within each partition.
    """
    # acks=False takes these topics out of Faust's own acknowledgement, gaps and wait_empty altogether
    topic = app.topic(*topics, schema=PassThrough(), acks=False)

    def decorate(body: AgentBody) -> Any:
        async def agent(stream: Any) -> None:
            try:
                await body(_delivered(app, stream))
                if not app.should_stop:
                    raise RuntimeError(f"agent {body.__name__} returned; an agent iterates until the app stops")
            except Exception as error:
                await app.fail(error)
                # Raising would make Faust's supervisor start the body again while the app is going down.
                await asyncio.get_running_loop().create_future()

        agent.__name__, agent.__qualname__, agent.__module__ = body.__name__, body.__qualname__, body.__module__
        return app.agent(topic, name=name or body.__name__, concurrency=1)(agent)

    return decorate


async def _delivered(app: App, stream: Any) -> AsyncIterator[RecordBatch]:
    async for batch in stream:
        if app.failure is None and app.consumer.deliver(batch):
            yield batch


async def commit(app: App) -> bool:
    """Commit what was acknowledged, now. False if the broker could not take it yet; the timer tries again."""
    return await app.consumer.commit_acknowledged()


def current_generation(app: App) -> int:
    """The consumer group's generation this process belongs to; -1 while it belongs to none."""
    return app.consumer.generation


def heartbeat_age_ms(app: App) -> float:
    """Time since the broker last accepted this process as a member, counted from the sending, sleep included."""
    return app.consumer.heartbeat_age_ms


def owns(app: App, generation: int) -> bool:
    """May something read in this generation still be written? Check before each write that others can see.

    False once the group moved on, or once the session may have expired without this process having noticed.
    """
    session_ms = app.conf.broker_session_timeout * 1000
    return app.consumer.generation == generation and app.consumer.heartbeat_age_ms < session_ms


async def _broker_answers(settings: Settings) -> bool:
    """Waits for it; False where the process is told to end meanwhile. Faust obeys signals only once it has started."""
    stop = asyncio.Event()
    on_signal(stop)
    await until(stop, partial(kafka_clients.wait_for_kafka, settings), ready=asyncio.Event())
    return not stop.is_set()


def run(app: App) -> NoReturn:
    """Run the app in this process until SIGTERM or SIGINT (exit code 0) or a failure (exit code 1).

    Waits for the broker first, saying which address it tries. Logging is left as the caller configured it.
    """
    try:
        import uvloop
    except ImportError:
        log.info("uvloop is not installed; the standard event loop is used")
    else:
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    if not asyncio.run(_broker_answers(app.settings)):
        sys.exit(0)
    asyncio.set_event_loop(asyncio.new_event_loop())
    worker = faust.Worker(app, quiet=True, override_logging=False, redirect_stdouts=False)
    worker.spinner = None
    worker.execute_from_commandline()
    raise AssertionError("execute_from_commandline ends the process")
