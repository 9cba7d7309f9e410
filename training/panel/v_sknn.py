"""V-SKNN: visits of others that resemble the user's last items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from stream.core.user.featurize import Float32
from training.history.snapshot import VISIT_GAP_MS
from training.panel.method import Asked, Doubles, Frozen, Ints, Past
from training.panel.popularity import completed, recent
from training.panel.validation import HeldOut, choose


class Setting(NamedTuple):
    neighbours: int
    sample: int  # the newest visits that share an item, among which neighbours are looked for
    items: int  # the user's last that are compared; 0: those of the last visit
    cosine: bool  # similarity divided by √(items of the visit), as in S-KNN: baskets of a wholesaler resemble everything


SETTINGS = [
    Setting(neighbours, sample, items, cosine)
    for cosine in (False, True)
    for neighbours, sample in ((100, 1_000), (500, 5_000))
    for items in (0, 50)
]


class VSknn(Frozen):
    """Ludewig & Jannach, "Evaluation of session-based recommendation algorithms" (2018).

    A session is a visit: what a user touched without `VISIT_GAP_MS` of silence. The newer an item of the user, the more
    it counts, falling linearly by moments (a basket is one), in the similarity (dot product) and, by the newest item
    shared, in the score. Visits of the user's own are neighbours too: shops are returned to for the same things.
    """

    name = "V-SKNN"

    def fit(self, past: Past, *, seed: int, budget_s: float, threads: int) -> None:
        self._remember(past)
        judged = choose(SETTINGS, past, self._tried, seed, budget_s)
        self._remember(past)
        self.setting = judged

    def _tried(self, setting: Setting, held: HeldOut) -> Float32:
        if self._end_ms != held.earlier.end_ms:
            self._remember(held.earlier)
        self.setting = setting
        return self.score(held.asked)

    def _remember(self, past: Past) -> None:
        self._end_ms, self._popular = past.end_ms, recent(past)
        order = np.argsort(past.users, kind="stable")
        users, ts_ms = past.users[order], past.ts_ms[order]
        begins = (np.diff(users, prepend=-1) != 0) | (np.diff(ts_ms, prepend=0) >= VISIT_GAP_MS)
        visit = np.cumsum(begins) - 1  # (E,) of each touch
        ends = ts_ms[np.append(np.flatnonzero(begins)[1:], len(ts_ms)) - 1] if len(ts_ms) else ts_ms
        by_age = np.argsort(np.argsort(ends, kind="stable"))  # visit → its place from old to new
        count = len(ends)
        at = (by_age[visit], past.items[order]) if count else (visit, visit)
        self._visits = sparse.csr_matrix((np.ones(len(visit)), at), shape=(count, past.n_items))  # (S, N)
        self._visits.data[:] = 1.0
        self._lengths = np.sqrt(np.maximum(1.0, np.asarray(self._visits.sum(axis=1)).ravel()))  # (S,)
        self._holding = self._visits.T.tocsr()  # (N, S): item → visits, old to new
        self._holding.sort_indices()

    def score(self, asked: Sequence[Asked]) -> Float32:
        found = [self._nearest(one) for one in asked]
        columns = np.concatenate([visits for visits, _ in found]) if found else np.zeros(0, dtype=np.int64)
        values = np.concatenate([weights for _, weights in found]) if found else np.zeros(0)
        edges = np.cumsum([0, *(len(visits) for visits, _ in found)])
        chosen = sparse.csr_matrix((values, columns, edges), shape=(len(asked), self._visits.shape[0]))
        return completed((chosen @ self._visits).toarray(), self._popular)

    def _nearest(self, one: Asked) -> tuple[Ints, Doubles]:
        """The nearest visits (K,) and their weights (K,)."""
        start = -self.setting.items if self.setting.items else _last_visit(one.ts_ms)
        moment = np.unique(one.ts_ms[start:], return_inverse=True)[1] + 1
        weights = (moment / moment.max(initial=1)).tolist()
        weight_of = dict(zip(one.items[start:].tolist(), weights, strict=True))  # an item's newest stays
        similarity, newest = np.zeros((2, self._visits.shape[0]))
        edges, holding = self._holding.indptr, self._holding.indices
        for item, weight in sorted(weight_of.items(), key=lambda pair: pair[1]):
            visits = holding[edges[item] : edges[item + 1]][-self.setting.sample :]
            similarity[visits] += weight
            newest[visits] = weight  # of the newest item shared: it comes last
        if self.setting.cosine:
            similarity /= self._lengths
        near = np.flatnonzero(similarity)[-self.setting.sample :]
        if len(near) > self.setting.neighbours:
            near = near[np.argpartition(-similarity[near], self.setting.neighbours)[: self.setting.neighbours]]
        return near, similarity[near] * newest[near]


def _last_visit(ts_ms: Ints) -> int:
    """Where the last visit begins.

    >>> _last_visit(np.array([0, VISIT_GAP_MS, VISIT_GAP_MS + 1]))
    1
    """
    gaps = np.flatnonzero(np.diff(ts_ms) >= VISIT_GAP_MS)
    return int(gaps[-1]) + 1 if len(gaps) else 0
