"""A connection breaks under aiokafka: what `kafka_clients.stopped` and `connection_ends` guard against."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionRequest

from clickwake import topics as topic_admin
from schemas import topics
from stream.adapters.kafka import kafka_clients
from stream.settings import Settings
from tests.support.certificates import Authority

BACKOFF_MS = 60_000  # before aiokafka fetches again: it is within this pause when it is stopped


async def break_connections(consumer: AIOKafkaConsumer, tp: TopicPartition) -> None:
    """Returns when a request that was under way has failed and its task sleeps."""
    consumer.assign([tp])
    consumer.seek(tp, 0)
    async with asyncio.timeout(20):
        while not any(_sleeps(fetching) for fetching in consumer._fetcher._pending_tasks):
            for connection in list(consumer._client._conns.values()):
                connection.close()
            await asyncio.sleep(0.01)


def _sleeps(task: asyncio.Task[Any]) -> bool:
    coroutine: Any = task.get_coro()
    return getattr(coroutine.cr_await, "__name__", "") == "sleep"  # None where it is done


async def test_a_failure_is_told_although_stopping_lets_a_cancellation_out(settings: Settings) -> None:
    topic_admin.create(settings)
    tp = TopicPartition(topics.STATE.name(settings.kafka.topic_prefix), 0)
    bare = AIOKafkaConsumer(**kafka_clients.aiokafka_arguments(settings), group_id=None, retry_backoff_ms=BACKOFF_MS)
    await bare.start()
    try:
        await break_connections(bare, tp)
        with pytest.raises(asyncio.CancelledError):  # where it is not raised, aiokafka was mended, and `stopped` may go
            await bare.stop()
    finally:
        await bare._client.close()
    with pytest.raises(ValueError, match="the failure"):
        async with kafka_clients.reader(settings, retry_backoff_ms=BACKOFF_MS) as consumer:
            await break_connections(consumer, tp)
            raise ValueError("the failure")
    assert consumer._client._sync_task is None and not any(one.connected() for one in consumer._client._conns.values())


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A peer that is killed after the first byte: the kernel sends RST."""
    await reader.readexactly(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def write_after_reset(write: str, what: object) -> tuple[BaseException, list[CloseReason], bool]:
    """What a write of aiokafka raises in the step after the reset, before its reading task knows; and why it was closed."""
    reasons: list[CloseReason] = []
    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = AIOKafkaConnection("127.0.0.1", port, on_close=lambda _, reason: reasons.append(reason))
        connection._do_version_lookup = lambda: asyncio.sleep(0)
        await connection.connect()
        raised: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        def again() -> None:
            try:
                getattr(connection, write)(what)
            except (KafkaConnectionError, RuntimeError) as error:
                raised.set_result(error)

        lost = connection._protocol.connection_lost

        def connection_lost(error: Exception | None) -> None:
            lost(error)
            asyncio.get_running_loop().call_soon(again)

        connection._protocol.connection_lost = connection_lost
        first = asyncio.ensure_future(connection.send(ApiVersionRequest()))
        async with asyncio.timeout(10):
            error = await raised
            with pytest.raises(KafkaConnectionError):
                await first
        return error, reasons, connection.connected()


@pytest.mark.parametrize(("write", "what"), [("send", ApiVersionRequest()), ("_send_sasl_token", b"token")])
def test_a_write_that_comes_before_the_news_of_a_reset_says_that_the_connection_is_broken(write: str, what: object) -> None:
    error, reasons, connected = uvloop.run(write_after_reset(write, what))
    assert isinstance(error, KafkaConnectionError) and "broken" in str(error)
    assert isinstance(error.__cause__, RuntimeError)  # where it is not, uvloop was mended, and `connection_ends` may go
    assert reasons == [CloseReason.CONNECTION_BROKEN] and not connected


VERSIONS = struct.pack(">hihhh", 0, 1, 18, 0, 2)  # of ApiVersions: no error, and one kind of request that is known


async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A peer that then takes nothing any more, no goodbye either."""
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    request = await reader.readexactly(size)
    writer.write(struct.pack(">i", 4 + len(VERSIONS)) + request[4:8] + VERSIONS)  # with its correlation id
    writer.transport.pause_reading()


async def closed_in_s(server_context: ssl.SSLContext | None, client_context: ssl.SSLContext | None) -> float:
    peers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer)
        await answer_once(reader, writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context) as server:
        port = server.sockets[0].getsockname()[1]
        connection = AIOKafkaConnection("127.0.0.1", port, security_protocol="SSL" if client_context else "PLAINTEXT",
                                        ssl_context=client_context)  # fmt: skip
        await connection.connect()
        connection._writer.write(bytes(50_000_000))  # more than the kernel holds for a peer that does not read
        started = time.monotonic()
        try:
            async with asyncio.timeout(20):
                await connection.close(reason=CloseReason.SHUTDOWN)
            return time.monotonic() - started
        finally:
            for peer in peers:
                peer.transport.abort()


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_connection_that_is_closed_does_not_wait_for_a_broker_that_takes_nothing(
    run: Callable[[Coroutine[Any, Any, float]], float], tls: bool, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    server = authority.server() if tls else None
    client = ssl.create_default_context(cafile=str(authority.file)) if tls else None
    assert run(closed_in_s(server, client)) < 5
