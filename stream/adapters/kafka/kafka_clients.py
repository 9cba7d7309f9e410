"""How this process reaches Kafka: one place that turns the settings into client arguments."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.partitioner import murmur2

from schemas.topics import Topic
from stream.adapters.kafka.connection_ends import mend_ends
from stream.settings import Settings

log = logging.getLogger(__name__)

BACKOFF_S_MAX = 5.0
HANDSHAKE_S_MAX = 3.0
REQUEST_TIMEOUT_S = 40.0  # aiokafka's own; must exceed the longest session timeout
METADATA_AGE_MAX_MS = 30_000  # a topic that was made again, or has more partitions, is noticed after so long
METADATA_S_MAX = 2.0  # a topic that was just made is unknown to a busy broker for a moment
CACHED_KEYS_MAX = 100_000  # pure-Python murmur2 costs 5 µs a key; users come back within a batch and after it

mend_ends()  # whoever makes a client of aiokafka takes its arguments from here


class KafkaMissing(ConnectionError):
    """No broker answered. The message names the address and what to do."""


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """A verifying context when the protocol asks for TLS, else None."""
    if not settings.kafka.security_protocol.endswith("SSL"):
        return None
    cafile = settings.kafka.ssl_cafile
    return ssl.create_default_context(cafile=None if cafile is None else str(cafile))


def aiokafka_arguments(settings: Settings) -> dict[str, Any]:
    """Address and authentication for aiokafka's consumer and producer, and how often they ask for topics' partitions."""
    kafka = settings.kafka
    arguments: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "security_protocol": kafka.security_protocol,
        "ssl_context": ssl_context(settings),
        "metadata_max_age_ms": METADATA_AGE_MAX_MS,
    }
    if kafka.security_protocol.startswith("SASL") and kafka.sasl_password is not None:
        arguments |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.sasl_password.get_secret_value(),
        }
    return arguments


@asynccontextmanager
async def reader(settings: Settings, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A running consumer of no group, for who assigns partitions and remembers offsets; stopped at the end, whatever that
    is. `options` are aiokafka's. Raises `KafkaError` when no broker answers."""
    options = {"group_id": None, "enable_auto_commit": False, "auto_offset_reset": "earliest"} | options
    consumer = AIOKafkaConsumer(**aiokafka_arguments(settings), **options)
    try:
        await consumer.start()
        yield consumer
    finally:
        await stopped(consumer)


async def unfetched(consumer: AIOKafkaConsumer) -> Counter[str]:
    """Records of each topic that the broker has, as far as it has said, and a running consumer has not taken. Those of
    partitions that a rebalance takes away meanwhile are somebody else's."""
    found: Counter[str] = Counter()
    for tp in consumer.assignment():
        try:
            position = await consumer.position(tp)
        except IllegalStateError:
            continue
        if tp in consumer.assignment():
            found[tp.topic] += max(0, (consumer.highwater(tp) or 0) - position)
    return found


async def stopped(client: Any) -> None:
    """Stop a consumer or a producer. While the broker is away, aiokafka's fetcher lets the cancellation of its own tasks out
    of `stop`, before its connections are closed: it would take the place of the failure one stops for, and look like the end
    somebody asked for."""
    stopping = asyncio.ensure_future(client.stop())
    await asyncio.wait((stopping,))
    if stopping.cancelled():
        await (client._client if isinstance(client, AIOKafkaConsumer) else client.client).close()
    else:
        stopping.result()


def admin_arguments(settings: Settings) -> dict[str, Any]:
    """Address and authentication for kafka-python's admin client."""
    arguments = aiokafka_arguments(settings)
    return {key: value for key, value in arguments.items() if value is not None}


def records(settings: Settings, topic: Topic) -> Iterator[Any]:
    """Everything that is on a topic now, in the order of each partition, for who has no event loop; of a topic that is not
    there, nothing. Raises kafka-python's KafkaError."""
    from kafka import KafkaConsumer, TopicPartition

    name = topic.name(settings.kafka.topic_prefix)
    consumer = KafkaConsumer(**admin_arguments(settings), group_id=None, enable_auto_commit=False)
    try:
        tps = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name) or ())]
        consumer.assign(tps)
        consumer.seek_to_beginning(*tps)
        ends = consumer.end_offsets(tps)
        while any(consumer.position(tp) < ends[tp] for tp in tps):
            for some in consumer.poll(timeout_ms=1_000).values():
                yield from some
    finally:
        consumer.close()


async def topic_id(settings: Settings, topic: str) -> str:
    """The id the broker gave this incarnation of the topic (KIP-516): a topic deleted and made again has another.

    Raises `KafkaMissing` when no broker answers and `LookupError` when there is no such topic.
    """
    deadline = time.monotonic() + METADATA_S_MAX
    while True:
        try:
            return await asyncio.to_thread(_topic_id, settings, topic)
        except LookupError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.2)  # the broker announces nothing when its metadata are up to date


def _topic_id(settings: Settings, topic: str) -> str:
    found = topic_ids(settings, [topic])
    if topic not in found:
        raise LookupError(f"topic {topic} does not exist on {settings.kafka.bootstrap_servers}; "
                          f"create the topics first (clickwake topics)")
    return found[topic]


def topic_ids(settings: Settings, names: Collection[str]) -> dict[str, str]:
    """The id of each of these topics that is there, see `topic_id`. Waits in the thread; raises `KafkaMissing`."""
    from kafka.admin import KafkaAdminClient
    from kafka.errors import KafkaError as AdminError

    try:
        admin = KafkaAdminClient(**admin_arguments(settings))
    except AdminError as error:
        raise KafkaMissing(missing(settings, error)) from error
    try:
        described = admin.describe_topics(list(names))
    except AdminError as error:
        raise KafkaMissing(missing(settings, error)) from error
    finally:
        admin.close()
    return {str(one["name"]): str(one["topic_id"]) for one in described if not one["error_code"]}


def handshake_failure(settings: Settings) -> OSError | None:
    """What is wrong with TLS at the first server; None where nothing is, or without TLS. aiokafka itself says only that it
    could not connect."""
    context = ssl_context(settings)
    host, _, port = settings.kafka.bootstrap_servers.split(",")[0].strip().rpartition(":")
    if context is None or not port.isdigit():
        return None
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=HANDSHAKE_S_MAX) as plain:
            context.wrap_socket(plain, server_hostname=host.strip("[]")).close()
    except OSError as error:
        return error
    return None


def missing(settings: Settings, error: BaseException) -> str:
    """What to tell a person when no broker answers."""
    kafka = settings.kafka
    or_user = f"; or it refuses the user {kafka.sasl_username!r} or the password" if kafka.sasl_username else ""
    return (f"no Kafka broker answers at {kafka.bootstrap_servers} ({error!r}); start one (clickwake up) "
            f"or set CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS{or_user}")


@lru_cache(maxsize=CACHED_KEYS_MAX)
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key: murmur2 as Java's and kafka-python's producers compute it.

    >>> [partition_of(key, 4) for key in (b"shop/u1", b"shop/u2", b"shop/u3")]
    [0, 3, 3]
    """
    return _hash(key) % partitions


async def wait_for_kafka(settings: Settings, timeout_s: float | None = None) -> None:
    """Return once a broker answers; until then say every few seconds which address was tried.

    Raises `KafkaMissing` after `timeout_s`; waits for ever with None.
    """
    started = time.monotonic()
    wait_s = 0.25
    while True:
        client = AIOKafkaClient(**aiokafka_arguments(settings))
        try:
            await client.bootstrap()
        except (KafkaError, OSError) as found:
            error = await asyncio.to_thread(handshake_failure, settings) or found
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise KafkaMissing(missing(settings, error)) from error
            log.warning("%s; trying again in %.1f s", missing(settings, error), wait_s)
            await asyncio.sleep(wait_s)  # a backoff: there is no condition to wait for but the broker itself
            wait_s = min(2 * wait_s, BACKOFF_S_MAX)
        else:
            return
        finally:
            await client.close()
