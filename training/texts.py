"""Text vectors of items, by id: histories cut at different times know different items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.catalog import Item
from stream.adapters import model_store
from stream.adapters.onnx import TextEncoder
from stream.core.featurize import Float32
from stream.settings import Settings


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
    def by_encoder(cls, space: str, encoder: TextEncoder, texts: dict[str, str], say: Callable[[str], None]) -> Texts:
        """Id → text, each different one encoded once."""
        unique = sorted(set(texts.values()))
        say(f"encoding {len(unique)} item texts")
        row = {text: at for at, text in enumerate(unique)}
        return cls(space, {item_id: row[text] for item_id, text in texts.items()}, encoder.encode(unique))

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


def encode(settings: Settings, items: dict[str, Item], say: Callable[[str], None]) -> Texts:
    """The catalog's texts through the text encoder; exports the encoder if need be."""
    from training import text_encoder

    space = text_encoder.export(settings)
    found = model_store.load_text_encoder(settings.registry, space, threads=settings.training.threads)
    assert found is not None, "export has just written it"
    texts = {item_id: text for item_id, item in items.items() if (text := item.text())}
    return Texts.by_encoder(space, found[1], texts, say)
