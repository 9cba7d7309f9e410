"""The one way file producers reach Kafka: kafka-python, idempotent, acknowledged by every in-sync replica.

Client options for both clients in use (kafka-python here, aiokafka in the collector) come from the same settings, so
that a cluster with TLS or SASL needs no second configuration.

A record is safe once `flush` returned: it waits for every acknowledgement and raises `NotAcknowledged` when one is
missing. What a crash does: records sent since the last flush may or may not be stored; sending them again under the
same ids is what makes that harmless.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient
from kafka.partitioner.default import DefaultPartitioner, murmur2

from stream.settings import Kafka

BATCH_BYTES_MAX = 256 * 1024  # per partition and request: the cost of a request is then shared by some 1,000 events
LINGER_MS = 20  # how long a batch that is not full waits for more; nobody waits on a single event of a file
DELIVERY_TIMEOUT_MS = 120_000  # a broker restart takes seconds; after two minutes a person should hear of it
BOOTSTRAP_TIMEOUT_MS = 5_000  # one attempt to reach the cluster
METADATA_TIMEOUT_MS = 10_000  # after this a topic counts as missing
CLOSE_TIMEOUT_S = 5.0
POLL_MS = 500  # nothing is lost by a shorter wait: who reads to the end asks again
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 5.0
UNACKNOWLEDGED_MAX = 20_000  # records in flight: kafka-python itself keeps any number in memory
UNACKNOWLEDGED_BYTES_MAX = 64 * 1024 * 1024
PARTITIONS_CACHED_MAX = 200_000  # keys whose hash is kept: murmur2 in Python costs 5 µs a key


class KafkaUnavailable(RuntimeError):
    """The cluster did not answer in time, or a topic is missing; the message says which and what to do."""


class NotAcknowledged(RuntimeError):
    """At least one record was not stored; the message counts them and names the first reason."""


def compression() -> str | None:
    """lz4 when its package is installed, else none: it costs less than the checksum, in Python, of what it saves."""
    return "lz4" if importlib.util.find_spec("lz4") else None


def client_options(kafka: Kafka) -> dict[str, Any]:
    """Connection options of kafka-python's producer, consumer and admin client."""
    options: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers.split(","),
        "security_protocol": kafka.security_protocol,
    }
    if kafka.ssl_cafile is not None:
        options["ssl_cafile"] = str(kafka.ssl_cafile)
    if _signs_in(kafka):
        assert kafka.sasl_password is not None, "the settings tree refuses SASL without a password"
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = kafka.sasl_password.get_secret_value()
    return options


def async_client_options(kafka: Kafka) -> dict[str, Any]:
    """The same for aiokafka, which takes an SSL context and one string of servers."""
    options = client_options(kafka)
    cafile = options.pop("ssl_cafile", None)
    options["bootstrap_servers"] = kafka.bootstrap_servers
    if kafka.security_protocol.endswith("SSL"):
        options["ssl_context"] = ssl.create_default_context(cafile=cafile)
    return options


@functools.lru_cache(maxsize=PARTITIONS_CACHED_MAX)
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, as every Java client, kafka-python and aiokafka choose it.

    >>> [partition_of(b"demo/u%d" % n, 4) for n in range(6)]
    [1, 0, 3, 2, 3, 1]
    """
    return _hash(key) % partitions


class Murmur2Partitioner(DefaultPartitioner):  # type: ignore[misc]  # kafka-python ships no types
    """kafka-python's default partitioner with the hashes of known keys kept."""

    def partition(self, topic: str, key: Any, serialized_key: bytes | None, value: Any, serialized_value: Any,
                  cluster: Any) -> int:
        if serialized_key is None:
            return int(super().partition(topic, key, serialized_key, value, serialized_value, cluster))
        return partition_of(serialized_key, len(cluster.partitions_for_topic(topic)))


def unreachable(kafka: Kafka, error: BaseException | str) -> str:
    """What to tell a person when the cluster does not answer. Of a wrong password its clients do not say more than that."""
    or_user = f" Or it refuses the user {kafka.sasl_username!r} or the password." if _signs_in(kafka) else ""
    return (
        f"Kafka at {kafka.bootstrap_servers} does not answer ({error}). Start it with `clickwake up`, or name another "
        f"cluster with CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS.{or_user}"
    )


def _signs_in(kafka: Kafka) -> bool:
    return kafka.security_protocol.startswith("SASL")


def missing_topic(kafka: Kafka, topic: str) -> str:
    """What to tell a person when a topic is not there."""
    return f"Topic {topic} does not exist on Kafka at {kafka.bootstrap_servers}: create the topics with `clickwake topics`."


def _greet(kafka: Kafka, host: str, port: int) -> None:
    """A connection, with TLS a handshake as well: what is wrong with a certificate, the client itself would not say."""
    with socket.create_connection((host, port), timeout=BOOTSTRAP_TIMEOUT_MS / 1000) as plain:
        if kafka.security_protocol.endswith("SSL"):
            cafile = None if kafka.ssl_cafile is None else str(kafka.ssl_cafile)
            ssl.create_default_context(cafile=cafile).wrap_socket(plain, server_hostname=host).close()


def _probe(kafka: Kafka) -> None:
    """Raises OSError unless a bootstrap server takes a connection: sooner and clearer than the client's own timeout."""
    failure: OSError | None = None
    for server in kafka.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            _greet(kafka, host.strip("[]"), int(port))
            return
        except OSError as error:
            failure = error
        except ValueError:
            failure = OSError(f"{server!r} is not host:port")
    assert failure is not None, "split gives at least one server"
    raise failure


def _connect(kafka: Kafka, wait_s: float, on_wait: Callable[[str], None]) -> Any:
    """A connected KafkaProducer, tried with backoff for `wait_s`; then KafkaUnavailable."""
    deadline, backoff_s = time.monotonic() + wait_s, BACKOFF_FIRST_S
    while True:
        clients: list[Any] = []

        def client(clients: list[Any] = clients, **config: Any) -> Any:
            clients.append(KafkaNetClient(**config))
            return clients[-1]

        try:
            _probe(kafka)
            return KafkaProducer(
                **client_options(kafka),
                client_id="clickwake-producer",
                acks="all",
                enable_idempotence=True,
                compression_type=compression(),
                batch_size=BATCH_BYTES_MAX,
                linger_ms=LINGER_MS,
                partitioner=Murmur2Partitioner(),
                max_request_size=2 * 1024 * 1024,  # a dead letter may carry 64 KiB in base64 and its reasons
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                max_block_ms=METADATA_TIMEOUT_MS,
                bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
                reconnect_backoff_max_ms=int(BACKOFF_MAX_S * 1000),
                allow_auto_create_topics=False,  # the topic table decides what exists
                metrics_enabled=False,
                kafka_client=client,
            )
        except (KafkaError, OSError) as error:
            for opened in clients:  # a constructor that fails leaves its sockets open
                opened.close()
            if time.monotonic() + backoff_s > deadline:
                raise KafkaUnavailable(unreachable(kafka, error)) from error
            on_wait(f"{unreachable(kafka, error)} Trying again in {backoff_s:g} s.")
            time.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


class Producer:
    """Sends records and accounts for every one of them.

    `topics` are checked at start. `wait_s` is how long an absent cluster is waited for, with `on_wait` told each time.
    Not for use from several threads.
    """

    def __init__(self, kafka: Kafka, topics: Sequence[str] = (), *, wait_s: float = 60.0,
                 on_wait: Callable[[str], None] = lambda message: None) -> None:
        self._kafka = kafka
        self._pending: list[Any] = []
        self._pending_bytes = 0
        self._producer = _connect(kafka, wait_s, on_wait)
        for topic in topics:
            try:
                self._producer.partitions_for(topic)
            except KafkaError as error:
                self.abandon()
                raise KafkaUnavailable(missing_topic(kafka, topic)) from error

    def send(self, topic: str, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Hands over one record; returns at once unless the bound on unacknowledged records is reached."""
        try:
            self._pending.append(self._producer.send(topic, key=key, value=value, headers=list(headers)))
        except KafkaError as error:
            raise NotAcknowledged(
                f"Kafka at {self._kafka.bootstrap_servers} did not take a record for {topic} (key {key!r}): {error}"
            ) from error
        self._pending_bytes += len(key) + len(value or b"")
        if len(self._pending) >= UNACKNOWLEDGED_MAX or self._pending_bytes >= UNACKNOWLEDGED_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Returns once everything sent is acknowledged; raises NotAcknowledged otherwise."""
        try:
            self._producer.flush(timeout=DELIVERY_TIMEOUT_MS / 1000 + 5)
        except KafkaError as error:
            raise NotAcknowledged(unreachable(self._kafka, error)) from error
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        failed = [future for future in pending if not future.succeeded()]
        if failed:
            raise NotAcknowledged(
                f"Kafka at {self._kafka.bootstrap_servers} did not acknowledge {len(failed)} of {len(pending)} records; "
                f"the first: {failed[0].exception!r}. They can be sent again under the same ids."
            )

    def close(self) -> None:
        """Flushes, then disconnects; raises what `flush` raises."""
        try:
            self.flush()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Disconnects without waiting for what is unacknowledged.

        kafka-python's own close flushes first and stays open when that times out, so its sender is ended directly.
        """
        sender = self._producer._sender
        sender.force_close()
        sender.join(CLOSE_TIMEOUT_S)
        self._producer.close(timeout=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()


@contextlib.contextmanager
def from_the_beginning(kafka: Kafka, topic: str) -> Iterator[Any]:
    """A consumer of all partitions of a topic, at their beginning, without a group. Raises KafkaUnavailable where there is
    no such topic, and KafkaError."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(**client_options(kafka), enable_auto_commit=False)
    try:
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise KafkaUnavailable(missing_topic(kafka, topic))
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        yield consumer
    finally:
        consumer.close()


def to_its_end(consumer: Any) -> Iterator[Any]:
    """Every record from where a consumer is to where its partitions end now. Raises KafkaError."""
    ends = consumer.end_offsets(sorted(consumer.assignment()))
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for some in consumer.poll(timeout_ms=POLL_MS).values():
            yield from some
