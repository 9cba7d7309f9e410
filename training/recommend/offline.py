"""A bundle asked offline, the way a worker asks it: index, counts, states and `recommend.score` of stream.core."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from schemas.catalog import Item
from stream.adapters.models.onnx import Bundle
from stream.core.ranking.blend import Blend
from stream.core.ranking.counts import ItemCount, PartitionCounts
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.links import Links
from stream.core.ranking.recommend import Scores, score
from stream.core.user.featurize import batch, sequence
from stream.core.user.state import UserState
from training.text.texts import Texts

ITEMS_ADAPTED_MAX = 4_096


def index_of(
    bundle: Bundle, items: dict[str, Item], texts: Texts, counts: PartitionCounts, links: Links | None = None
) -> ItemIndex:
    """The index a worker would hold; row n is the n-th item of `items`.

    Rules may name items outside the catalog; their rows come after N. `links` instead of the bundle's own.
    """
    index = ItemIndex(bundle.manifest.dim, counts.policy, bundle.links if links is None else links, bundle.learned)
    ids = list(items)
    for start in range(0, len(ids), ITEMS_ADAPTED_MAX):
        part = ids[start : start + ITEMS_ADAPTED_MAX]
        vectors = bundle.adapt(texts.of(part), part)
        for item_id, vector in zip(part, vectors, strict=True):
            index.put(msgspec.structs.replace(items[item_id], in_stock=True), vector)
    follow(index, counts.counts)
    return index


def follow(index: ItemIndex, changed: Mapping[str, ItemCount]) -> None:
    """Put counts that changed into the index, as a reader of the counts' topic does."""
    for key, count in changed.items():
        index.set_counts(key.split("/", 1)[1], 0, count)


def ask(bundle: Bundle, index: ItemIndex, states: list[UserState], now_ms: list[int], blend: Blend) -> list[Scores]:
    """Scores of every item for each state at its time."""
    sequences = [sequence(state, now, bundle.manifest.events_max) for state, now in zip(states, now_ms, strict=True)]
    arrays = batch(sequences, index, now_ms, bundle.manifest.events_max)
    users, _ = bundle.encode(arrays)
    users[~arrays["mask"].any(axis=1)] = 0  # nothing known of this user: the model has no say
    return score(users, states, sequences, index, blend, now_ms)

