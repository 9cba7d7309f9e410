"""A bundle asked offline, the way a worker asks it: index, counts, states and `recommend.score` of stream.core."""

from __future__ import annotations

import msgspec
import numpy as np

from schemas.catalog import Item
from stream.adapters.onnx import Bundle
from stream.core.counts import CountsPolicy
from stream.core.featurize import Float32, batch, sequence
from stream.core.index import ItemIndex
from stream.core.recommend import Blend, Parts, score
from stream.core.state import UserState
from training.snapshot import Snapshot

ENCODE_USERS_MAX = 256
ITEMS_ADAPTED_MAX = 4_096


def index_of(bundle: Bundle, items: dict[str, Item], text: Float32, snapshot: Snapshot, policy: CountsPolicy) -> ItemIndex:
    """The index a worker would hold; row n is the n-th item of `items`, text (N, T) in the same order.

    Rules may name items outside the catalog; their rows come after N.
    """
    index = ItemIndex(bundle.manifest.dim, policy)
    ids = list(items)
    for start in range(0, len(ids), ITEMS_ADAPTED_MAX):
        part = ids[start : start + ITEMS_ADAPTED_MAX]
        vectors = bundle.adapt(text[start : start + len(part)], part)
        for item_id, vector in zip(part, vectors, strict=True):
            index.put(msgspec.structs.replace(items[item_id], in_stock=True), vector)
    for key, count in snapshot.counts.counts.items():
        index.set_counts(key.split("/", 1)[1], 0, count)
    return index


def parts_of(bundle: Bundle, index: ItemIndex, states: list[UserState], now_ms: int, blend: Blend) -> Parts:
    """Weighted parts (B, N) for users asked at `now_ms`."""
    every: list[Parts] = []
    for start in range(0, len(states), ENCODE_USERS_MAX):
        some = states[start : start + ENCODE_USERS_MAX]
        now = [now_ms] * len(some)
        sequences = [sequence(state, now_ms, bundle.manifest.events_max) for state in some]
        users, _ = bundle.encode(batch(sequences, index, now, bundle.manifest.events_max))
        every.append(score(users, some, sequences, index, blend, now))
    return Parts(
        np.concatenate([one.model for one in every]), np.concatenate([one.personal for one in every]),
        np.concatenate([one.rules for one in every]), every[0].popularity,
    )  # fmt: skip
