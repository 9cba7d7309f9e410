"""TLS to Kafka and ClickHouse: a certificate that is wrong in any way is refused by every client, and the reason is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from producers.kafka import KafkaUnavailable, Producer
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


def test_plain_text_is_not_spoken_where_tls_is_asked_for(kafka: str, authority: Authority) -> None:
    """A server that answers without TLS: no password goes to it."""
    own = Kafka(bootstrap_servers=kafka, security_protocol="SASL_SSL", sasl_username="u", ssl_cafile=authority.file,
                sasl_password=SecretStr("the-password"))  # fmt: skip
    with pytest.raises(kafka_clients.KafkaMissing) as refused:
        asyncio.run(kafka_clients.wait_for_kafka(Settings(kafka=own), timeout_s=0.0))
    assert "the-password" not in str(refused.value)


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

