"""TLS to Kafka and ClickHouse: a certificate that is wrong in any way is refused by every client, and the reason is said."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiokafka.errors
import pytest
from aiokafka.client import AIOKafkaClient
from clickhouse_connect.driver.exceptions import ClickHouseError
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.errors import KafkaError
from pydantic import SecretStr

from clickwake import query
from clickwake.local.clickhouse.launch import answers
from producers.kafka import KafkaUnavailable, Producer, async_client_options, client_options
from stream.adapters.database import clickhouse as engine
from stream.adapters.kafka import kafka_clients
from stream.settings import ClickHouse, Kafka, Settings
from tests.support.certificates import Authority
from tests.support.forwarder import Forwarder

WRONG = {
    "another host's": (lambda ours, theirs: ours.server("kafka.example"), "IP address mismatch"),
    "a stranger's": (lambda ours, theirs: theirs.server(), "certificate verify failed"),
    "an expired one": (lambda ours, theirs: ours.server(days=-1), "certificate has expired"),
}
PASSWORD = "the-password"  # noqa: S105
HANDSHAKE = b"\x16\x03"  # TLS: a record of a handshake, of any version
SOON_MS = 500


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextmanager
def behind_tls(target: str, context: object) -> Iterator[int]:
    forwarder = Forwarder(0, target, context)  # type: ignore[arg-type]
    forwarder.start()
    assert forwarder.listening.wait(10)
    try:
        yield forwarder.port
    finally:
        forwarder.stop()


def kafka_at(port: int, authority: Authority) -> Kafka:
    return Kafka(bootstrap_servers=f"127.0.0.1:{port}", security_protocol="SSL", ssl_cafile=authority.file)


# aiokafka does not wait until a TLS connection is closed, and here its loop ends at once
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_right_certificate_is_taken(kafka: str, clickhouse: ClickHouse, authority: Authority) -> None:
    with behind_tls(kafka, authority.server()) as port:
        asyncio.run(kafka_clients.wait_for_kafka(Settings(kafka=kafka_at(port, authority)), timeout_s=20))
    with behind_tls(f"127.0.0.1:{clickhouse.port}", authority.server()) as port:
        secure = clickhouse.model_copy(update={"port": port, "secure": True, "ca_file": authority.file})
        with closing(engine.open_client(secure, "default")) as client:
            assert client.query("SELECT 1").result_rows == [(1,)]


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_certificate_is_refused_and_named(
    what: str, kafka: str, clickhouse: ClickHouse, authority: Authority, tmp_path: Path
) -> None:
    make, reason = WRONG[what]
    context = make(authority, Authority(tmp_path, "a stranger"))
    with behind_tls(kafka, context) as port:
        with pytest.raises(kafka_clients.KafkaMissing, match=reason):
            asyncio.run(kafka_clients.wait_for_kafka(Settings(kafka=kafka_at(port, authority)), timeout_s=0.0))
        with pytest.raises(KafkaUnavailable, match=reason):
            Producer(kafka_at(port, authority), wait_s=0.0)
    with behind_tls(f"127.0.0.1:{clickhouse.port}", context) as port:
        secure = clickhouse.model_copy(update={"port": port, "secure": True, "ca_file": authority.file})
        with pytest.raises(engine.ClickHouseMissing, match=reason):
            engine.connect(secure, wait_s=0.0, database="default")


@contextmanager
def listening(context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[bytearray]]]:
    """The port of a server that no client can use, and what each connection said to it; behind TLS with a context."""
    heard: list[bytearray] = []

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            mine = bytearray()
            heard.append(mine)
            self.request.settimeout(2)  # who leaves a connection open says no more
            with suppress(OSError), context.wrap_socket(self.request, server_side=True) if context else self.request as said:
                mine.extend(said.recv(65_536))
                said.sendall(b"in plain text")
                said.shutdown(socket.SHUT_WR)
                while more := said.recv(65_536):
                    mine.extend(more)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1], heard
        finally:
            server.shutdown()
            thread.join()


async def bootstrapped(**options: Any) -> None:
    client = AIOKafkaClient(**options)
    try:
        await client.bootstrap()
    finally:
        await client.close()


def pinged(database: ClickHouse) -> None:
    if not answers(database.host, database.port, secure=database.secure, ca_file=database.ca_file):
        raise query.QueryFailed("no answer")


CLIENTS: dict[str, Callable[[Settings], object]] = {
    "workers": lambda one: asyncio.run(bootstrapped(**kafka_clients.aiokafka_arguments(one))),
    "collector": lambda one: asyncio.run(bootstrapped(**async_client_options(one.kafka))),
    "producer": lambda one: Producer(one.kafka, wait_s=0.0),
    "consumer": lambda one: KafkaConsumer(**client_options(one.kafka), bootstrap_timeout_ms=SOON_MS),
    "admin": lambda one: KafkaAdminClient(**kafka_clients.admin_arguments(one), bootstrap_timeout_ms=SOON_MS),
    "ClickHouse": lambda one: engine.open_client(one.clickhouse, "default"),
    "ClickHouse of commands": lambda one: query.connected(one.clickhouse),
    "ClickHouse's ping": lambda one: pinged(one.clickhouse),
}
FAILURES = (KafkaUnavailable, query.QueryFailed, KafkaError, aiokafka.errors.KafkaError, ClickHouseError)


@pytest.fixture
def refused(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[[str, int], None]:
    """A client fails at a port, by itself: nothing of ours looks at the server before."""
    caplog.set_level(logging.CRITICAL, "kafka")  # sockets of failed handshakes are open while a record of the log holds them
    monkeypatch.setattr("producers.kafka._probe", lambda kafka: None)
    monkeypatch.setattr("producers.kafka.BOOTSTRAP_TIMEOUT_MS", SOON_MS)
    monkeypatch.setattr(query, "answers", lambda *_, **__: True)
    secret = SecretStr(PASSWORD)

    def fails(who: str, port: int) -> None:
        kafka = kafka_at(port, authority).model_copy(
            update={"security_protocol": "SASL_SSL", "sasl_username": "u", "sasl_password": secret})  # fmt: skip
        database = ClickHouse(port=port, secure=True, ca_file=authority.file, password=secret)
        with pytest.raises(FAILURES):
            CLIENTS[who](Settings(kafka=kafka, clickhouse=database))
        gc.collect()  # to which kafka-python leaves them

    return fails


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", [*WRONG, "the right one"])
@pytest.mark.parametrize("who", CLIENTS)
def test_every_client_looks_at_the_certificate_itself(
    who: str, what: str, refused: Callable[[str, int], None], authority: Authority, tmp_path: Path
) -> None:  # fmt: skip
    """It connects, and says something through TLS to the right server alone."""
    right = what not in WRONG
    context = authority.server() if right else WRONG[what][0](authority, Authority(tmp_path, "a stranger"))
    with listening(context) as (port, heard):
        refused(who, port)
    assert heard and any(heard) == right


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("who", CLIENTS)
def test_plain_text_is_not_spoken_where_tls_is_asked_for(who: str, refused: Callable[[str, int], None]) -> None:
    """A server that answers without TLS hears the beginning of a handshake, however often it is tried, and no password."""
    with listening() as (port, heard):
        refused(who, port)
    assert heard and all(one.startswith(HANDSHAKE) and PASSWORD.encode() not in one for one in heard)


@pytest.mark.parametrize("text", [repr, str, Settings.model_dump_json, Settings.model_dump])
def test_secrets_are_not_in_what_settings_print(text: Callable[[Settings], object]) -> None:
    settings = Settings.model_validate({
        "kafka": {"security_protocol": "SASL_SSL", "sasl_username": "u", "sasl_password": "secret-1"},
        "clickhouse": {"password": "secret-2"},
        "models": {"signing_key": "secret-3", "registry": "webdav://me:secret-8@files.example/models"},
        "collector": {"write_keys": {"shop": ["secret-4", "secret-5"]}, "admin_keys": {"shop": "secret-6"}},
        "privacy": {"pseudonym_keys": ["secret-7" * 4], "message_key": "secret-9" * 4},
        "api": {"read_keys": {"shop": ["secret-10", "secret-11"]}}, "metrics": {"key": "secret-12"},
        "tracing": {"headers": {"authorization": "secret-13"}},
    })  # fmt: skip
    assert "secret-" not in str(text(settings))

