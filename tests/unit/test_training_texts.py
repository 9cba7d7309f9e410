"""Which texts training encodes: those that the catalog worker has not encoded already."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from kafka.errors import KafkaTimeoutError
from structlog.testing import capture_logs

from schemas.catalog import Item, ItemVector
from stream.core.ranking.items import content_hash
from stream.core.user.featurize import Float32
from stream.settings import Kafka, Settings
from training.text import texts
from training.text.texts import Texts

DIM = 4
SETTINGS = Settings(kafka=Kafka(bootstrap_servers="there:9092"))


class Encoder:
    """A text's vector says how long it is."""

    dim = DIM

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, some: list[str]) -> Float32:
        self.asked += some
        return np.array([[len(text)] * DIM for text in some], dtype=np.float32).reshape(-1, DIM)


def record(space: str, text: str, vector: list[float]) -> Any:
    return value(msgspec.msgpack.encode(ItemVector(
        space=space, content_hash=content_hash(space, text), vector=np.array(vector, dtype="<f4").tobytes(),
        item=Item(item_id="i", tenant="t"))))  # fmt: skip


def value(raw: bytes | None) -> Any:
    return SimpleNamespace(topic="item-vectors", partition=0, offset=0, key=b"k", value=raw)


def on_topic(monkeypatch: pytest.MonkeyPatch, *there: Any) -> None:
    monkeypatch.setattr(texts, "records", lambda settings, topic: iter(there))


def test_what_the_fleet_has_encoded_is_taken_and_the_rest_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    on_topic(monkeypatch, record("s", "red mug", [1, 2, 3, 4]), record("other", "jug", [5, 5, 5, 5]), record("s", "jug", []),
             record("s", "lamp", [9, 9, 9, 9]), value(b"{"), value(None))  # fmt: skip
    wanted = {content_hash("s", text) for text in ("red mug", "jug")}
    found = texts.encoded_by_the_fleet(SETTINGS, wanted, DIM)
    assert found.keys() == {content_hash("s", "red mug")}
    encoder, said = Encoder(), list[str]()
    made = Texts.by_encoder("s", encoder, {"a": "red mug", "b": "jug", "c": "red mug"}, said.append, found)  # type: ignore[arg-type]
    assert encoder.asked == ["jug"] and said == ["encoding 1 item texts, 1 are encoded already"]
    assert made.of(["a", "b", "c", "d"]).tolist() == [[1, 2, 3, 4], [3] * DIM, [1, 2, 3, 4], [0] * DIM]


def test_while_kafka_is_away_all_of_them_are_encoded_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(settings: Settings, topic: Any) -> Iterator[Any]:
        raise KafkaTimeoutError

    monkeypatch.setattr(texts, "records", away)
    with capture_logs() as logs:
        assert texts.encoded_by_the_fleet(SETTINGS, {"h"}, DIM) == {}
    assert "there:9092" in logs[0]["why"]
    assert texts.encoded_by_the_fleet(SETTINGS, set(), DIM) == {} and len(logs) == 1, "nothing wanted, nobody asked"
