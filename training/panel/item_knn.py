"""Item-based nearest neighbours with decay: what resembles the user's recent items in who touched it, recently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from implicit.nearest_neighbours import ItemItemRecommender, bm25_weight, normalize
from scipy import sparse

from stream.core.user.featurize import Float32
from stream.core.user.state import DAY_MS
from training.panel.method import Asked, Doubles, Frozen, Past, histories, matrix
from training.panel.popularity import completed, recent
from training.panel.validation import HeldOut, choose

NEIGHBOURS = 200  # per item
BM25 = {"K1": 1.2, "B": 0.75}  # the usual ones, and implicit's


class Setting(NamedTuple):
    half_life_days: float
    weighting: str


SETTINGS = [Setting(days, weighting) for days in (60.0, 14.0, 240.0, np.inf) for weighting in ("cosine", "bm25")]


class ItemKnn(Frozen):
    """Cosine or BM25 between items over users, as `implicit` builds it (Deshpande & Karypis, TOIS 2004).

    An item is similar to itself too: what the user keeps touching is recommended again. A touch counts half after
    `half_life_days`, on the users' side and on that of who asks; which is as in Liu et al. (2010), "Online evolutionary
    collaborative filtering".
    """

    name = "item-kNN with decay"

    def fit(self, past: Past, *, seed: int, budget_s: float, threads: int) -> None:
        def scores(setting: Setting, held: HeldOut) -> Float32:
            self._learn(held.earlier, setting, threads)
            return self.score(held.asked)

        self._learn(past, choose(SETTINGS, past, scores, seed, budget_s), threads)

    def _learn(self, past: Past, setting: Setting, threads: int) -> None:
        self.setting, self._popular = setting, recent(past)
        users = matrix(list(histories(past)), past.n_items, self._decayed)  # (U, N)
        items = bm25_weight(users.T, **BM25) if setting.weighting == "bm25" else normalize(users.T)
        found = ItemItemRecommender(K=NEIGHBOURS, num_threads=threads)
        found.fit(items.T.tocsr(), show_progress=False)
        self._similar: sparse.csr_matrix[np.float64] = found.similarity  # (N, N)

    def score(self, asked: Sequence[Asked]) -> Float32:
        mine = matrix(asked, self._similar.shape[0], self._decayed)
        return completed((mine @ self._similar).toarray(), self._popular)

    def _decayed(self, one: Asked) -> Doubles:
        return np.asarray(np.exp2((one.ts_ms - one.now_ms) / (self.setting.half_life_days * DAY_MS)))
