"""The items of one tenant as arrays: vectors, the catalog's rules, and the live counts summed over partitions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.catalog import Item
from stream.core.expressions.expression import Kind
from stream.core.opinions.satisfaction import demotion
from stream.core.ranking.counts import CountsPolicy, ItemCount
from stream.core.ranking.links import NO_LINKS, REPEAT_UNKNOWN, Links, Weights
from stream.core.user.featurize import Float32
from stream.core.user.state import DAY_MS

_GROW = 1_024  # rows added at a time
WEIGHT_MAX = 1e30
WEIGHT_UNSEEN = 1.0  # added to decayed weights before their logarithm: one view
NOTICED_ITEMS_MAX = 10_000  # a shop with more than this sends a catalog; a client that makes ids up stops here

# fields of an item that expressions may read
FIELDS: Mapping[str, Kind] = MappingProxyType({
    "item_id": "text", "title": "text", "brand": "text", "category": "text", "description": "text", "price": "number",
    "in_stock": "flag", "pinned": "flag",
})  # fmt: skip
_COLUMN_TYPES: Mapping[Kind, Any] = MappingProxyType({"text": object, "number": np.float64, "flag": np.bool_})
_NO_ITEM = Item(item_id="-", tenant="-")


class ItemIndex:
    """Rows are never removed, only made not recommendable, so a row number stays valid for the index's life."""

    def __init__(
        self, dim: int, policy: CountsPolicy, links: Links = NO_LINKS, learned: Mapping[str, Float32] = MappingProxyType({}),
        satisfaction_weight: float = 0.0,
    ) -> None:
        """`learned`: unit vectors (D,) of items seen in training, for those the catalog does not know.
        `satisfaction_weight`: of `satisfaction.demotion`."""
        self._satisfaction_weight = satisfaction_weight
        self.dim = dim
        self.policy = policy
        self.links = links
        self._learned = learned
        self._link_of = {item: at for at, item in enumerate(links.ids)}
        self._row_of_link = np.full(len(links.ids), -1, dtype=np.int64)
        self.ids: list[str] = []
        self.items: list[Item | None] = []
        self.row_of: dict[str, int] = {}
        self._matrix: Float32 = np.zeros((0, dim), dtype=np.float32)  # (capacity, D)
        self._popularity = np.zeros((0, 3), dtype=np.float64)  # (capacity, 3), log2-safe weights at the epoch below
        self._repeat = np.zeros(0, dtype=np.float32)
        self._link_row = np.zeros(0, dtype=np.int64)  # (capacity,) the item's number in the links, -1 for none
        self._listed = 0  # items the catalog has named so far
        self._sellable = np.zeros(0, dtype=bool)
        self._pinned = np.zeros(0, dtype=bool)
        self._placed = np.zeros(0, dtype=bool)
        self._category = np.zeros(0, dtype=np.int32)
        self._categories: dict[str, int] = {}
        self._counts: dict[int, dict[int, ItemCount]] = {}  # row → partition → totals
        self._rules: dict[int, tuple[npt.NDArray[np.int64], Float32]] = {}
        self._opinions: dict[int, tuple[float, float]] = {}  # row → how many, and the sum of their satisfaction
        self._demotion: Float32 | None = None  # (N,) factors; None: to be worked out
        self._epoch_ms = 0
        self._revision = 0  # of the items' own fields
        self._columns: dict[str, npt.NDArray[Any]] = {}
        self._columns_of = (-1, 0)

    def __len__(self) -> int:
        return len(self.ids)

    def item(self, item_id: str) -> Item | None:
        """As the catalog says; None for what it does not name."""
        row = self.row_of.get(item_id)
        return None if row is None else self.items[row]

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
    def columns(self) -> Mapping[str, npt.NDArray[Any]]:
        """FIELDS of all items (N,), for expressions: a price that is not known is NaN, a text that is not known empty."""
        if self._columns_of != (self._revision, len(self.ids)):
            items = [item or _NO_ITEM for item in self.items]
            self._columns = {
                name: np.array([getattr(item, name) for item in items], dtype=_COLUMN_TYPES[kind])
                for name, kind in FIELDS.items() if name != "item_id"
            } | {"item_id": np.array(self.ids, dtype=object)}  # fmt: skip
            self._columns_of = (self._revision, len(self.ids))
        return self._columns

    @property
    def pinned(self) -> npt.NDArray[np.bool_]:
        return self._pinned[: len(self.ids)]

    @property
    def placed(self) -> npt.NDArray[np.bool_]:
        """(N,): has a vector. Ids that neither the catalog nor training knows have none: nobody knows where they are."""
        return self._placed[: len(self.ids)]

    @property
    def category(self) -> npt.NDArray[np.int32]:
        """(N,) category codes, -1 where there is none."""
        return self._category[: len(self.ids)]

    def set_satisfaction(self, item_id: str, n: float, total: float) -> None:
        """Replace what is known of an item: `n` opinions summing to `total`."""
        self._opinions[self.row(item_id)] = (n, total)
        self._demotion = None

    def satisfaction(self, row: int) -> tuple[float, float]:
        """(opinions, sum) of a row; zeros where nobody said anything."""
        return self._opinions.get(row, (0.0, 0.0))

    @property
    def demotion(self) -> Float32 | None:
        """(N,) factors by which dissatisfaction lowers scores; None when it lowers none."""
        if not self._satisfaction_weight or not self._opinions:
            return None
        if self._demotion is None or len(self._demotion) != len(self.ids):
            known = np.zeros((2, len(self.ids)), dtype=np.float64)
            for row, one in self._opinions.items():
                known[:, row] = one
            self._demotion = demotion(known[0], known[1], self._satisfaction_weight)
        return self._demotion

    def of_category(self, category: str) -> npt.NDArray[np.bool_]:
        """(N,) whether an item is of a category."""
        return np.asarray(self.category == self._categories.get(category, -2))  # -1: an item without one

    def category_of(self, item_id: str) -> str:
        """As the catalog says; empty where it says none."""
        row = self.row_of.get(item_id)
        item = None if row is None else self.items[row]
        return item.category if item else ""

    def sells(self, item_id: str) -> bool:
        """Whether an item is in stock and not blocked, as `recommendable` has it."""
        row = self.row_of.get(item_id)
        return not self._listed or (row is not None and bool(self._sellable[row]))

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
            link = self._link_of.get(item_id, -1)
            if link >= 0:
                self._link_row[row], self._row_of_link[link], self._repeat[row] = link, row, self.links.repeat[link]
            vector = self._learned.get(item_id)
            if vector is not None:
                self._place(row, vector)
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
        self._revision += 1
        self._place(row, vector)
        self._sellable[row] = item.in_stock and not item.blocked
        self._pinned[row] = item.pinned
        code = self._categories.setdefault(item.category, len(self._categories)) if item.category else -1
        self._category[row] = code

    def _place(self, row: int, vector: Float32) -> None:
        self._matrix[row] = vector
        self._placed[row] = bool(vector.any())

    def remove(self, item_id: str) -> None:
        """The item left the catalog; histories that touch it keep their meaning."""
        row = self.row_of.get(item_id)
        if row is not None:
            self._sellable[row] = self._pinned[row] = False

    def set_counts(self, item_id: str, partition: int, count: ItemCount) -> None:
        """Replace one partition's totals of an item."""
        row = self.row(item_id)
        self._rebase(count.ts_ms)
        self._counts.setdefault(row, {})[partition] = count
        totals = [0.0, 0.0, 0.0]
        for one in self._counts[row].values():
            since_ms = one.ts_ms - self._epoch_ms
            for at, (weight, days) in enumerate(zip(one.popularities(), self.policy.half_lives_days, strict=True)):
                totals[at] += weight * math.exp2(min(500.0, since_ms / (days * DAY_MS)))
        self._popularity[row] = totals
        self._rules.pop(row, None)

    def _rebase(self, ts_ms: int) -> None:
        """Move the epoch before weights of young events outgrow a float: years after it, or when history comes first."""
        if self._epoch_ms == 0:
            self._epoch_ms = ts_ms
        half_lives_ms = np.array(self.policy.half_lives_days) * DAY_MS
        if ts_ms - self._epoch_ms > 400 * half_lives_ms.min():
            self._popularity *= np.exp2((self._epoch_ms - ts_ms) / half_lives_ms)
            self._epoch_ms = ts_ms

    def popularity(self, now_ms: int) -> Float32:
        """(N, 3) weights of touches decayed to `now_ms` by the policy's half-lives: recent, usual, lasting."""
        half_lives_ms = np.array(self.policy.half_lives_days) * DAY_MS
        factors = np.exp2(np.clip((self._epoch_ms - now_ms) / half_lives_ms, -500.0, 500.0))
        weights = self._popularity[: len(self.ids)] * factors
        return np.minimum(weights, WEIGHT_MAX).astype(np.float32)  # long before the newest event, beyond float32

    def features(self, popularity: Float32) -> Float32:
        """(N, I) in the order of `blend.ITEM_FEATURES`, from popularity (N, 3): what rises within days, within weeks, how
        much it is touched at all, and how often its users come back for it."""
        recent, usual, lasting = np.log(popularity + WEIGHT_UNSEEN).T  # each (N,)
        return np.stack([recent - usual, usual - lasting, lasting, self._repeat[: len(self.ids)]], axis=1)

    def linked(
        self, weights: Weights, rows: npt.NDArray[np.int64], factors: Float32
    ) -> tuple[npt.NDArray[np.int64], Float32, npt.NDArray[np.int64]]:
        """What is linked to items of the index, rows (R,) with factors (R,): rows (W,), values (W,), and the position in
        `rows` each comes from (W,)."""
        link = self._link_row[rows]
        some = np.flatnonzero(link >= 0)
        columns, values, origin = weights.of(link[some], factors[some])
        found = self._row_of_link[columns]
        there = found >= 0
        if there.all():  # nearly always: the index holds every item the links know
            return found, values, some[origin]
        return found[there], values[there], some[origin[there]]

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
        def more(array: npt.NDArray[Any], fill: float = 0) -> npt.NDArray[Any]:
            extra = np.full((_GROW, *array.shape[1:]), fill, dtype=array.dtype)
            return np.concatenate([array, extra])

        self._matrix = more(self._matrix)
        self._popularity = more(self._popularity)
        self._sellable = more(self._sellable)
        self._pinned = more(self._pinned)
        self._placed = more(self._placed)
        self._category = more(self._category, -1)
        self._link_row = more(self._link_row, -1)
        self._repeat = more(self._repeat, REPEAT_UNKNOWN)
