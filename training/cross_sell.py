"""Complements of a basket: one item of each order after the split is hidden and looked for among what goes with the rest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import sparse

from stream.core.counts import CountsPolicy, ItemCount
from stream.core.repurchase import LIFT, complements
from stream.core.state import DAY_MS, Kind
from training.panel.method import Past

K = 10
BASKETS_MAX = 1_000
ITEMS_MIN = 3  # in a basket that is asked: two must say something of the third
POPULARITY_DAYS = 30
NEIGHBOURS = 100  # per item
SHRINK = 10.0  # of the cosine: pairs seen rarely are trusted less
SERVED, KNN, POPULARITY = "clickwake", "item-kNN of orders", "popularity, 30 days"

Ints = npt.NDArray[np.int64]


def orders(past: Past, from_ms: float, until_ms: float) -> list[tuple[int, Ints]]:
    """(user, its distinct items) of each order: what a user bought at one time."""
    some = (past.kinds == Kind.ORDER) & (past.ts_ms >= from_ms) & (past.ts_ms < until_ms)
    rows = np.unique(np.stack([past.users[some], past.ts_ms[some], past.items[some]]), axis=1)  # (3, E)
    if not rows.shape[1]:
        return []
    starts = np.flatnonzero(np.r_[True, np.any(rows[:2, 1:] != rows[:2, :-1], axis=0)])
    ends = np.r_[starts[1:], rows.shape[1]]
    return [(int(rows[0, start]), rows[2, start:end]) for start, end in zip(starts, ends, strict=True)]


class Neighbours:
    """Shrunk cosine between items over orders, the nearest of each (Dacrema et al., 2019)."""

    def __init__(self, baskets: list[tuple[int, Ints]], n: int) -> None:
        row = np.repeat(np.arange(len(baskets)), [len(items) for _, items in baskets])
        columns = np.concatenate([items for _, items in baskets]) if baskets else np.zeros(0, dtype=np.int64)
        binary = sparse.csr_matrix((np.ones(len(columns), dtype=np.float32), (row, columns)), shape=(len(baskets), n))
        together = (binary.T @ binary).tocoo()
        size = np.sqrt(np.asarray(binary.sum(axis=0)).ravel())
        values = together.data / (size[together.row] * size[together.col] + SHRINK) * (together.row != together.col)
        whole = sparse.csr_matrix((values, (together.row, together.col)), shape=(n, n))
        for at in range(n):
            own = whole.data[whole.indptr[at] : whole.indptr[at + 1]]
            if len(own) > NEIGHBOURS:
                own[own < np.partition(own, -NEIGHBOURS)[-NEIGHBOURS]] = 0.0
        self.weights = whole

    def scores(self, items: Ints) -> npt.NDArray[np.float64]:
        """(N,) for a basket."""
        return np.asarray(self.weights[items].sum(axis=0), dtype=np.float64).ravel()


def recall(
    past: Past, item_ids: list[str], counts: Mapping[str, ItemCount], tenant: str, split_ms: int, end_ms: int, seed: int = 0,
    lift: float = LIFT,
) -> tuple[dict[str, npt.NDArray[np.float64]], Ints]:  # fmt: skip
    """(method → whether the item left out is among the first K of each basket (B,), the baskets' users (B,)).

    `counts` are the live ones at the split. An item nobody bought before the split is not asked for.
    """
    known = np.bincount(past.items[past.ts_ms < split_ms], minlength=len(item_ids)) > 0
    recent = (past.ts_ms < split_ms) & (past.ts_ms >= split_ms - POPULARITY_DAYS * DAY_MS)
    popular = np.bincount(past.items[recent], minlength=len(item_ids)).astype(np.float64)
    neighbours = Neighbours(orders(past, -np.inf, split_ms), len(item_ids))
    column = {item_id: at for at, item_id in enumerate(item_ids)}
    rng = np.random.default_rng(seed)
    asked = [(user, items[known[items]]) for user, items in orders(past, split_ms, end_ms)]
    asked = [(user, items) for user, items in asked if len(items) >= ITEMS_MIN]
    asked = [asked[at] for at in np.sort(rng.permutation(len(asked))[:BASKETS_MAX])]
    def count_of(item_id: str) -> ItemCount | None:
        return counts.get(f"{tenant}/{item_id}")

    hits: dict[str, list[float]] = {SERVED: [], KNN: [], POPULARITY: []}
    for _, items in asked:
        left_out = int(rng.choice(items))
        rest = items[items != left_out]
        ours = complements([item_ids[at] for at in rest], count_of, split_ms, CountsPolicy(), K, lift)
        hits[SERVED].append(float(left_out in {column[item] for item, _ in ours}))
        for name, scores in ((KNN, neighbours.scores(rest)), (POPULARITY, popular.copy())):
            scores[rest] = -np.inf
            best = np.lexsort((np.arange(len(scores)) == left_out, -scores))[:K]  # the one looked for last among equals
            hits[name].append(float(left_out in best and scores[left_out] > 0))
    return {name: np.array(found) for name, found in hits.items()}, np.array([user for user, _ in asked], dtype=np.int64)
