"""Text vectors of items, by id: histories cut at different times know different items.

A text is encoded once in the whole fleet: where a catalog is that of what runs, training takes what its worker has encoded.
On two slow cores 2,400 texts take a minute, which was a sixth of the demo's training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import structlog

from producers.kafka import unreachable
from schemas import topics
from schemas.catalog import Item, ItemVector
from stream.adapters.kafka.global_reader import readable
from stream.adapters.kafka.kafka_clients import records
from stream.adapters.models import model_store
from stream.adapters.models.onnx import TextEncoder
from stream.core.ranking.items import content_hash
from stream.core.user.featurize import Float32
from stream.settings import Settings

log = structlog.get_logger()

FLOAT_BYTES = 4

_vector = msgspec.msgpack.Decoder(ItemVector)


@dataclass(frozen=True)
class Texts:
    """Vectors (N, T) of items in one space."""

    space: str
    row_of: dict[str, int]
    vectors: Float32

    @classmethod
    def named(cls, space: str, item_ids: Iterable[str], vectors: Float32) -> Texts:
        """Row n of `vectors` is of the n-th id."""
        return cls(space, {item: row for row, item in enumerate(item_ids)}, vectors)

    @classmethod
    def by_encoder(
        cls, space: str, encoder: TextEncoder, texts: dict[str, str], say: Callable[[str], None],
        encoded: Mapping[str, Float32] = MappingProxyType({}),
    ) -> Texts:  # fmt: skip
        """Id → text, each different one encoded once; `encoded`: content hash → vector (T,) of those that are already."""
        unique = sorted(set(texts.values()))
        found = [encoded.get(content_hash(space, text)) for text in unique]
        left = [at for at, vector in enumerate(found) if vector is None]
        say(f"encoding {len(left)} item texts" + (f", {len(unique) - len(left)} are encoded already" if encoded else ""))
        vectors = np.zeros((len(unique), encoder.dim), dtype=np.float32)
        vectors[left] = encoder.encode([unique[at] for at in left])
        for at, vector in enumerate(found):
            if vector is not None:
                vectors[at] = vector
        row = {text: at for at, text in enumerate(unique)}
        return cls(space, {item_id: row[text] for item_id, text in texts.items()}, vectors)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def of(self, item_ids: Sequence[str]) -> Float32:
        """(M, T) in the order of the ids; zeros where there is no text."""
        rows = np.array([self.row_of.get(item, -1) for item in item_ids], dtype=np.int64)
        found = np.zeros((len(rows), self.dim), dtype=np.float32)
        found[rows >= 0] = self.vectors[rows[rows >= 0]]
        return found

    def blank(self) -> Texts:
        """The same items without any text: an ablation."""
        return Texts(self.space, {}, self.vectors[:0])


def encode(settings: Settings, items: dict[str, Item], say: Callable[[str], None], *, running: bool = False) -> Texts:
    """The catalog's texts through the text encoder; exports the encoder if need be. `running`: the catalog is that of the
    installation that runs, so its worker may have encoded them."""
    from training.text import text_encoder

    space = text_encoder.export(settings)
    found = model_store.load_text_encoder(settings.registry, space, threads=settings.training.threads)
    assert found is not None, "export has just written it"
    texts = {item_id: text for item_id, item in items.items() if (text := item.text())}
    wanted = {content_hash(space, text) for text in texts.values()} if running else set()
    return Texts.by_encoder(space, found[1], texts, say, encoded_by_the_fleet(settings, wanted, found[1].dim))


def encoded_by_the_fleet(settings: Settings, wanted: Set[str], dim: int) -> dict[str, Float32]:
    """Content hash → vector (T,) of what is wanted and on the topic of the catalog worker; none while Kafka is away."""
    from kafka.errors import KafkaError

    found: dict[str, Float32] = {}

    def note(record: Any) -> None:
        vector = None if record.value is None else _vector.decode(record.value)
        if vector is not None and vector.content_hash in wanted and len(vector.vector) == dim * FLOAT_BYTES:
            found[vector.content_hash] = np.frombuffer(vector.vector, dtype="<f4")

    try:
        readable(records(settings, topics.ITEM_VECTORS) if wanted else (), note)
    except KafkaError as error:
        log.warning("all item texts are encoded anew", why=unreachable(settings.kafka, error))
    return found
