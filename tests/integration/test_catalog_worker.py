"""The catalog worker on a real broker with the real text encoder: every text is encoded once, whatever happens."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import msgspec
import numpy as np
from kafka import KafkaProducer

from clickwake import topics as topic_admin
from schemas import topics
from schemas.catalog import UNENCODED, Item, ItemVector
from stream.settings import Settings
from tests.support.cluster import Worker, read_all, start_worker, until

ITEMS = [
    Item(item_id="mug", tenant="t", title="Red ceramic mug", category="Kitchen"),
    Item(item_id="cup", tenant="t", title="Blue porcelain cup", category="Kitchen"),
    Item(item_id="tyre", tenant="t", title="Winter tyre for a lorry", category="Motor"),
    Item(item_id="bare", tenant="t"),
]


def vectors(settings: Settings) -> dict[str, ItemVector]:
    """Those of the text encoder by item."""
    read = [msgspec.msgpack.decode(record.value, type=ItemVector) for record in read_all(settings, topics.ITEM_VECTORS)
            if record.value is not None]  # fmt: skip
    return {one.item.item_id: one for one in read if one.space != UNENCODED}


def counted(worker: Worker) -> dict[str, int]:
    """Items of the text encoder's space by what became of them, as the worker's metrics say; another such space would be a
    second of one outcome."""
    found = [(re.findall(r'outcome="(.*?)"', name), value) for name, value in worker.metrics().items()
             if name.startswith("clickwake_catalog_items_total") and UNENCODED not in name]  # fmt: skip
    assert len({outcome for (outcome,), _ in found}) == len(found)
    return {outcome: round(value) for (outcome,), value in found}


def test_texts_become_vectors_once_and_bad_items_dead_letters(settings: Settings, registry: Path) -> None:
    topic_admin.create(settings)
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    name = topics.ITEMS.name(settings.kafka.topic_prefix)
    for item in ITEMS:
        producer.send(name, key=f"t/{item.item_id}".encode(), value=msgspec.json.encode(item))
    producer.send(name, key=b"t/bad", value=b'{"item_id": 7, "tenant": "t"}')
    producer.flush()
    worker = start_worker(settings, "workers.catalog", CLICKWAKE_MODELS__REGISTRY=str(registry))
    found = until(lambda: len(vectors(settings)) == len(ITEMS) and vectors(settings), 60, "all items encoded")
    values = {item_id: np.frombuffer(one.vector, dtype="<f4") for item_id, one in found.items()}
    assert values["mug"] @ values["cup"] > values["mug"] @ values["tyre"] + 0.1
    assert np.isclose(np.linalg.norm(values["mug"]), 1, atol=1e-5) and len(values["bare"]) == 0
    letters = until(lambda: read_all(settings, topics.DEAD_LETTERS), 20, "the bad item's dead letter")
    assert msgspec.json.decode(letters[0].value)["failure"]["messages"][0]["path"] == "item_id"
    producer.send(name, key=b"t/mug2", value=msgspec.json.encode(msgspec.structs.replace(ITEMS[0], item_id="mug2")))
    producer.send(name, key=b"t/mug", value=None)
    producer.flush()
    until(lambda: "mug2" in vectors(settings), 30, "the same text under another id")
    counts = {"encoded": 3, "without text": 1, "refused": 1, "known": 1, "removed": 1}
    until(lambda: counted(Worker(worker, settings.home, "workers.catalog")) == counts, 20, "all are counted, once each")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    log = "".join(path.read_text() for path in settings.home.glob("*.log"))
    assert "encoded=3" in log and "encoded=4" not in log
