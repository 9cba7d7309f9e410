"""Histories whose next item is known."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from schemas.catalog import Item
from tests.support.bundles import ITEMS
from tests.support.fakes import DAY_MS, T0_MS, event
from training.history import snapshot
from training.history.snapshot import History
from training.text.texts import Texts


def ring_walk(users: int, steps: int = 12, stray: float = 0.0) -> History:
    """Each user walks round a ring of the twelve items, one step a day: what comes next is certain, but for a share of
    steps to any item."""
    rng = np.random.default_rng(1)
    begins = zip(rng.integers(0, 20, users).tolist(), rng.integers(0, 12, users).tolist(), strict=True)
    events = []
    for user, (start, first) in enumerate(begins):
        for step in range(steps):
            off = int(rng.integers(12)) if rng.random() < stray else 0
            ts_ms = T0_MS + int((start + step + rng.random() / 2) * DAY_MS)
            events.append(event(user=f"u{user}", ts_ms=ts_ms, item=f"i{(first + step + off) % 12}", id=f"m{user}-{step}"))
    return snapshot.from_events(events, ITEMS)


def drawn_texts(items: Collection[Item], space: str, dim: int) -> Texts:
    """Random vectors for the items' texts, the same in every run."""
    vectors = np.random.default_rng(0).normal(size=(len(items), dim)).astype(np.float32)
    return Texts.named(space, [item.item_id for item in items], vectors)
