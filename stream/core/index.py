"""The items of one tenant as arrays: vectors, the catalog's rules, and the live counts summed over partitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.catalog import Item
from stream.core.counts import CountsPolicy, ItemCount
from stream.core.featurize import Float32
from stream.core.state import DAY_MS

_GROW = 1_024  # rows added at a time
NOTICED_ITEMS_MAX = 10_000  # a shop with more than this sends a catalog; a client that makes ids up stops here


class ItemIndex:
    """Rows are never removed, only made not recommendable, so a row number stays valid for the index's life."""

    def __init__(self, dim: int, policy: CountsPolicy) -> None:
        self.dim = dim
        self.policy = policy
        self.ids: list[str] = []
        self.items: list[Item | None] = []
        self.row_of: dict[str, int] = {}
        self._matrix: Float32 = np.zeros((0, dim), dtype=np.float32)  # (capacity, D)
        self._popularity = np.zeros(0, dtype=np.float64)  # (capacity,), log2-safe weight at the epoch below
        self._listed = 0  # items the catalog has named so far
        self._sellable = np.zeros(0, dtype=bool)
        self._pinned = np.zeros(0, dtype=bool)
        self._category = np.zeros(0, dtype=np.int32)
        self._categories: dict[str, int] = {}
        self._counts: dict[int, dict[int, ItemCount]] = {}  # row → partition → totals
        self._rules: dict[int, tuple[npt.NDArray[np.int64], Float32]] = {}
        self._epoch_ms = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def matrix(self) -> Float32:
        """(N, D)"""
        return self._matrix[: len(self.ids)]

    @property
    def recommendable(self) -> npt.NDArray[np.bool_]:
        """(N,): in stock and not blocked. Until the tenant has a catalog, every item its events name."""
        if not self._listed:
            return np.ones(len(self.ids), dtype=bool)
        return self._sellable[: len(self.ids)]

    @property
    def pinned(self) -> npt.NDArray[np.bool_]:
        return self._pinned[: len(self.ids)]

    @property
    def category(self) -> npt.NDArray[np.int32]:
        """(N,) category codes, -1 where there is none."""
        return self._category[: len(self.ids)]

    def rows(self, item_ids: list[str]) -> npt.NDArray[np.int64]:
        """Row numbers, -1 for unknown items."""
        row_of = self.row_of
        return np.fromiter((row_of.get(item, -1) for item in item_ids), dtype=np.int64, count=len(item_ids))

    def row(self, item_id: str) -> int:
        """The item's row, made when it is new: counts may name it before the catalog does."""
        row = self.row_of.get(item_id)
        if row is None:
            row = self.row_of[item_id] = len(self.ids)
            self.ids.append(item_id)
            self.items.append(None)
            if row >= len(self._matrix):
                self._grow()
        return row

    def notice(self, item_id: str) -> None:
        """An event names the item: known from now on if the tenant has no catalog to say which items there are."""
        if not self._listed and len(self.ids) < NOTICED_ITEMS_MAX:
            self.row(item_id)

    def put(self, item: Item, vector: Float32) -> None:
        """Add or replace an item; vector (D,) in the model's space, zeros when there is none."""
        row = self.row(item.item_id)
        self._listed += self.items[row] is None
        self.items[row] = item
        self._matrix[row] = vector
        self._sellable[row] = item.in_stock and not item.blocked
        self._pinned[row] = item.pinned
        code = self._categories.setdefault(item.category, len(self._categories)) if item.category else -1
        self._category[row] = code

    def remove(self, item_id: str) -> None:
        """The item left the catalog; histories that touch it keep their meaning."""
        row = self.row_of.get(item_id)
        if row is not None:
            self._sellable[row] = self._pinned[row] = False

    def set_counts(self, item_id: str, partition: int, count: ItemCount) -> None:
        """Replace one partition's totals of an item."""
        row = self.row(item_id)
        if self._epoch_ms == 0:
            self._epoch_ms = count.ts_ms
        self._counts.setdefault(row, {})[partition] = count
        half_life_ms = self.policy.popularity_half_life_days * DAY_MS
        self._popularity[row] = sum(
            one.popularity * math.exp2(min(500.0, (one.ts_ms - self._epoch_ms) / half_life_ms))
            for one in self._counts[row].values()
        )
        self._rules.pop(row, None)

    def popularity(self, now_ms: int) -> Float32:
        """(N,) log(1 + decayed weight at `now_ms`), scaled to a maximum of 1."""
        half_life_ms = self.policy.popularity_half_life_days * DAY_MS
        factor = math.exp2(max(-500.0, min(500.0, (self._epoch_ms - now_ms) / half_life_ms)))
        weights = np.log1p(self._popularity[: len(self.ids)] * factor)
        top = weights.max(initial=0.0)
        return (weights / top if top > 0 else weights).astype(np.float32)

    def successors(self, row: int) -> tuple[npt.NDArray[np.int64], Float32]:
        """Rows and probabilities of what follows an item, over all partitions; probabilities sum to 1."""
        known = self._rules.get(row)
        if known is None:
            known = self._rules[row] = self._sum_rules(row)
        return known

    def _sum_rules(self, row: int) -> tuple[npt.NDArray[np.int64], Float32]:
        totals: dict[str, float] = {}
        counts = [count for count in self._counts.get(row, {}).values() if count.successors]
        latest = max((count.rules_ts_ms for count in counts), default=0)
        for count in counts:
            factor = math.exp2((count.rules_ts_ms - latest) / (self.policy.rules_half_life_days * DAY_MS))
            for item, weight in count.successors.items():
                totals[item] = totals.get(item, 0.0) + weight * factor
        rows = np.fromiter((self.row(item) for item in totals), dtype=np.int64, count=len(totals))
        weights = np.fromiter(totals.values(), dtype=np.float32, count=len(totals))
        return rows, weights / weights.sum() if len(weights) else weights

    def _grow(self) -> None:
        def more(array: npt.NDArray[Any], fill: int = 0) -> npt.NDArray[Any]:
            extra = np.full((_GROW, *array.shape[1:]), fill, dtype=array.dtype)
            return np.concatenate([array, extra])

        self._matrix = more(self._matrix)
        self._popularity = more(self._popularity)
        self._sellable = more(self._sellable)
        self._pinned = more(self._pinned)
        self._category = more(self._category, -1)
