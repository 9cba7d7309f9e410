"""The catalog worker as a process: it ends when told to even without Kafka, and takes up a text encoder that is new."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaProducer

from clickwake import topics as topic_admin
from clickwake.local import process
from schemas import topics
from schemas.catalog import UNENCODED, Item
from stream.settings import Kafka, Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import members, read_all, running, start_worker, until


def log_of(home: Path) -> str:
    return "".join(path.read_text() for path in home.glob("*.log"))


def test_sigterm_ends_it_while_it_waits_for_kafka(tmp_path: Path) -> None:
    nobody = Kafka(bootstrap_servers=f"127.0.0.1:{process.free_port()}")
    worker = start_worker(Settings(home=tmp_path, kafka=nobody), "workers.catalog")
    until(lambda: nobody.bootstrap_servers in log_of(tmp_path), 30, "the address it tried in its log")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0


@pytest.fixture
def own(text_encoder: Path, tmp_path: Path) -> tuple[Path, str]:
    """A registry of the test's own, and the space of its text encoder."""
    registry = shutil.copytree(text_encoder, tmp_path / "models")
    (space,) = (path.name for path in (registry / "text").iterdir())
    return registry, space


def put_beside(registry: Path, space: str, other: str) -> None:
    """The same text encoder under another name, the newest of the registry."""
    shutil.copytree(registry / "text" / space, registry / "incoming")
    manifest = registry / "incoming" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"space": other}))
    os.utime(manifest)  # the newest, whatever the clock's resolution
    (registry / "incoming").rename(registry / "text" / other)


@pytest.mark.timeout(180)
def test_a_text_encoder_that_is_new_gets_the_whole_catalog(settings: Settings, own: tuple[Path, str]) -> None:
    registry, first = own
    topic_admin.create(settings)
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    item = Item(item_id="mug", tenant="t", title="Red ceramic mug")
    producer.send(topics.ITEMS.name(settings.kafka.topic_prefix), key=b"t/mug", value=msgspec.json.encode(item))
    producer.close(10)

    def keys() -> set[bytes]:
        return {record.key for record in read_all(settings, topics.ITEM_VECTORS)}

    worker = start_worker(settings, "workers.catalog", CLICKWAKE_MODELS__REGISTRY=str(registry))
    both = {f"{space}/t/mug".encode() for space in (first, UNENCODED)}
    until(lambda: keys() == both, 60, "the item in the first space, and as it is while nothing is released")
    put_beside(registry, first, "other")
    until(lambda: b"other/t/mug" in keys(), 60, "the item in the new space, without a restart")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0


@pytest.mark.timeout(240)
def test_the_released_space_is_encoded_for_until_another_is_released(
    settings: Settings, exported: Exported, own: tuple[Path, str]
) -> None:
    registry, first = own
    settings = bundles.with_registry(settings, registry)
    topic_admin.create(settings)
    in_first = bundles.publish(settings.registry, exported, seed=1, space=first)
    in_other = bundles.publish(settings.registry, exported, seed=2, space="other")
    bundles.announce(settings, bundles.announcement(settings.registry, in_first))

    def put(item_id: str) -> None:
        producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
        item = Item(item_id=item_id, tenant="t", title=f"{item_id} of clay")
        name = topics.ITEMS.name(settings.kafka.topic_prefix)
        producer.send(name, key=f"t/{item_id}".encode(), value=msgspec.json.encode(item)).get(30)
        producer.close(10)

    def there(space: str, item_id: str) -> bool:
        return f"{space}/t/{item_id}".encode() in {record.key for record in read_all(settings, topics.ITEM_VECTORS)}

    with running(settings, "workers.catalog") as worker:
        put("mug")
        until(lambda: there(first, "mug"), 60, "an item in the released space")
        put_beside(registry, first, "other")
        until(lambda: there("other", "mug"), 60, "the catalog in the newest space")
        put("cup")
        until(lambda: there(first, "cup") and there("other", "cup"), 30, "a new item in both")
        bundles.announce(settings, bundles.announcement(settings.registry, in_other))
        until(lambda: f"space={first}" in worker.log() and "no longer in use" in worker.log(), 30, "the first space is left")
        until(lambda: members(settings, f"catalog-{first}") == 0, 30, "and its group")
        put("pot")
        until(lambda: there("other", "pot"), 30, "a new item in the space that is released now")
        assert not there(first, "pot")
        bundles.announce(settings, bundles.announcement(settings.registry, in_first))
        until(lambda: there(first, "pot"), 60, "after a roll-back what came meanwhile")
