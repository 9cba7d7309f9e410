"""Which bundle the workers should run: announced on the models topic, acknowledged by every in-sync replica."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from producers.kafka import Producer, client_options, missing_topic, unreachable
from schemas.release import ModelRelease
from schemas.topics import MODELS
from stream.adapters import model_store
from stream.adapters.model_store import BundleRefused
from stream.adapters.onnx import sha256
from stream.settings import Settings

log = structlog.get_logger()

KEY = b"current"
READ_TIMEOUT_MS = 10_000

_release = msgspec.json.Decoder(ModelRelease)


class NothingReleased(LookupError):
    """There is no release, or none before the current one; the message says what to do."""


def release(settings: Settings, version: str, reason: str = "") -> ModelRelease:
    """Verify a bundle as a worker would, then announce it. Returns once the broker has acknowledged.

    Announcing the same bundle again is harmless. Raises `BundleRefused` for a bundle workers would refuse, and
    KafkaUnavailable or NotAcknowledged when the announcement is not stored.
    """
    uri = model_store.bundle_uri(settings.registry, version)
    raw = _manifest_bytes(settings, version)
    model_store.verify(uri, raw)
    announced = ModelRelease(
        model_version=version, uri=f"bundles/{version}", manifest_sha256=sha256(raw), released_at=datetime.now(UTC),
        reason=reason,
    )  # fmt: skip
    topic = MODELS.name(settings.kafka.topic_prefix)
    with Producer(settings.kafka, [topic], wait_s=0) as producer:
        producer.send(topic, KEY, msgspec.json.encode(announced))
    return announced


def current(settings: Settings) -> ModelRelease | None:
    """The announced release, read to the topic's end; None when nothing was released yet."""
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError

    topic = MODELS.name(settings.kafka.topic_prefix)
    try:
        consumer = KafkaConsumer(**client_options(settings.kafka), enable_auto_commit=False)
    except KafkaError as error:
        raise ConnectionError(unreachable(settings.kafka, error)) from error
    try:
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise NothingReleased(missing_topic(settings.kafka, topic))
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        return _newest(consumer, partitions)
    except KafkaError as error:
        raise ConnectionError(unreachable(settings.kafka, error)) from error
    finally:
        consumer.close()


def _newest(consumer: Any, partitions: list[Any]) -> ModelRelease | None:
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    newest: ModelRelease | None = None
    while any(consumer.position(one) < ends[one] for one in partitions):
        records = consumer.poll(timeout_ms=READ_TIMEOUT_MS)
        for record in (record for some in records.values() for record in some):
            if record.key == KEY and record.value is not None:
                try:
                    found = _release.decode(record.value)
                except msgspec.DecodeError as error:
                    log.warning("announcement left out", offset=record.offset, why=str(error))
                    continue
                newest = found if newest is None or found.released_at >= newest.released_at else newest
    return newest


def rollback(settings: Settings, reason: str = "") -> ModelRelease:
    """Announce the parent of the current bundle. Raises `NothingReleased` when there is none to go back to."""
    now = current(settings)
    if now is None:
        raise NothingReleased("nothing was released yet, so there is nothing to roll back; see clickwake models")
    manifest = msgspec.json.decode(_manifest_bytes(settings, now.model_version))
    parent = manifest.get("parent")
    if parent is None:
        raise NothingReleased(f"{now.model_version} has no parent: it was the first; name a bundle with clickwake release")
    return release(settings, parent, reason or f"rolled back from {now.model_version}")


def _manifest_bytes(settings: Settings, version: str) -> bytes:
    import fsspec

    uri = f"{model_store.bundle_uri(settings.registry, version)}/manifest.json"
    fs, path = fsspec.core.url_to_fs(uri)
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError as error:
        raise BundleRefused(f"there is no bundle {version} in {settings.registry}; clickwake models lists them") from error
