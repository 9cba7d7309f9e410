"""SASL to Kafka over TLS, on a broker that asks for it: every client signs in, and a wrong password is refused by each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion
from pydantic import SecretStr

from clickwake import topics as topic_admin
from clickwake.local import process
from clickwake.local.broker import Broker
from producers.kafka import KafkaUnavailable, Producer
from schemas import topics
from stream.adapters.database import clickhouse as engine
from stream.adapters.kafka import kafka_clients
from stream.settings import ClickHouse, Kafka, Settings
from tests.support.certificates import Authority
from tests.support.cluster import await_stored, lag, running, stored_states, until

USER, PASSWORD = "shop", "a-password-nobody-guesses"
MECHANISMS = ("PLAIN", "SCRAM-SHA-512")


class SecureBroker(Broker):
    """A broker that has a listener for who signs in over TLS beside the plain one, which the test itself looks with."""

    def __init__(self, home: Path, authority: Authority) -> None:
        super().__init__(home, port=process.free_port())
        authority.server()  # writes the certificate and its key where the broker reads them
        self._certificate = authority.file.parent / "127.0.0.1-1.pem"
        self.secure_port = process.free_port()

    def _write_config(self, controller_port: int) -> Path:
        path = super()._write_config(controller_port)
        said = dict(line.split("=", 1) for line in path.read_text().splitlines())
        secure = f"SASL_SSL://{process.LOOPBACK}:{self.secure_port}"
        login = "org.apache.kafka.common.security"
        said |= {
            "listeners": f"{said['listeners']},{secure}", "advertised.listeners": f"{said['advertised.listeners']},{secure}",
            "listener.security.protocol.map": f"{said['listener.security.protocol.map']},SASL_SSL:SASL_SSL",
            "ssl.keystore.type": "PEM", "ssl.keystore.location": str(self._certificate),
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": ",".join(MECHANISMS),
            "listener.name.sasl_ssl.plain.sasl.jaas.config":
                f'{login}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
        }  # fmt: skip
        path.write_text("".join(f"{name}={value}\n" for name, value in said.items()))
        return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def broker(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    with SecureBroker(tmp_path_factory.mktemp("secure"), authority) as broker:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        admin.alter_user_scram_credentials([UserScramCredentialUpsertion(USER, ScramMechanism.SCRAM_SHA_512, PASSWORD)])
        admin.close()
        yield broker


def signed_in(broker: SecureBroker, authority: Authority, mechanism: str, password: str = PASSWORD) -> Kafka:
    return Kafka.model_validate({
        "bootstrap_servers": f"127.0.0.1:{broker.secure_port}", "topic_prefix": f"sasl-{mechanism.lower()}",
        "security_protocol": "SASL_SSL", "sasl_mechanism": mechanism, "sasl_username": USER,
        "sasl_password": SecretStr(password), "ssl_cafile": authority.file})  # fmt: skip


def environment(kafka: Kafka) -> dict[str, str]:
    """What a process has to be told of it beyond address and prefix."""
    assert kafka.sasl_password is not None
    return {"CLICKWAKE_KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "CLICKWAKE_KAFKA__SASL_MECHANISM": kafka.sasl_mechanism,
            "CLICKWAKE_KAFKA__SASL_USERNAME": USER, "CLICKWAKE_KAFKA__SSL_CAFILE": str(kafka.ssl_cafile),
            "CLICKWAKE_KAFKA__SASL_PASSWORD": kafka.sasl_password.get_secret_value()}  # fmt: skip


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_an_event_goes_all_the_way_through_processes_that_sign_in(
    mechanism: str, broker: SecureBroker, authority: Authority, clickhouse: ClickHouse, tmp_path: Path
) -> None:
    kafka = signed_in(broker, authority, mechanism)
    settings = Settings(home=tmp_path, kafka=kafka, clickhouse=clickhouse.model_copy(
        update={"database": kafka.topic_prefix.replace("-", "_")}))  # fmt: skip
    seen = settings.model_copy(update={"kafka": Kafka(bootstrap_servers=broker.bootstrap_servers,
                                                      topic_prefix=kafka.topic_prefix)})  # fmt: skip
    topic_admin.create(settings)
    port, env = process.free_port(), environment(kafka)
    with (running(settings, "workers.personalize", tmp_path / "p", **env), running(settings, "workers.sink", **env),
          running(settings, "producers.collector", tmp_path / "c", CLICKWAKE_COLLECTOR__PORT=str(port),
                  CLICKWAKE_COLLECTOR__WRITE_KEYS='{"t": "key"}', **env)):  # fmt: skip
        until(lambda: process.port_answers(port), 60, "the collector answers")
        event = {"userId": "u1", "event": "Product Viewed", "properties": {"product_id": "p1"}}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("key", ""), timeout=30) as http:
            until(lambda: http.get("/health/ready").status_code == 200, 30, "it has signed in")
            assert http.post("/v1/track", json=event).status_code == 200
        until(lambda: lag(seen, "personalize", topics.EVENTS) == 0, 60, "the event folded")
        await_stored(seen)
        with closing(engine.connect(settings.clickhouse, wait_s=30.0)) as client:
            until(lambda: client.query("SELECT user FROM events").result_rows == [("u1",)], 60, "and stored")
    assert stored_states(seen)[b"t/u1"].events == 1


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_is_refused_and_is_not_repeated(
    mechanism: str, broker: SecureBroker, authority: Authority, clickhouse: ClickHouse, tmp_path: Path
) -> None:
    wrong = signed_in(broker, authority, mechanism, "another-password")
    settings = Settings(home=tmp_path, kafka=wrong, clickhouse=clickhouse.model_copy(update={"database": "sasl_wrong"}))
    with pytest.raises(kafka_clients.KafkaMissing) as aiokafka:
        asyncio.run(kafka_clients.wait_for_kafka(settings, timeout_s=0.0))
    with pytest.raises(KafkaUnavailable) as kafka_python:
        Producer(wrong, wait_s=0.0)
    said = [str(aiokafka.value), str(kafka_python.value)]
    for module in ("personalize", "sink"):
        with running(settings, f"workers.{module}", tmp_path / module, **environment(wrong)) as worker:
            until(lambda worker=worker: worker.log().count("trying again") > 2, 60, f"{module} goes on trying")  # type: ignore[misc]
        said.append(worker.log())
    assert all(f"{USER!r} or the password" in one and "another-password" not in one for one in said), said
