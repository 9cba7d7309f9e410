"""TIFU-KNN: personal frequency of items that fades by baskets, mixed with that of similar users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from stream.core.user.featurize import Float32
from training.panel.method import Asked, Doubles, Frozen, Past, histories, matrix
from training.panel.popularity import completed, recent
from training.panel.validation import HeldOut, choose

AT_ONCE = 512  # questions whose distances to all users are held together


class Setting(NamedTuple):
    """Names of the paper: r_b within a group, r_g between groups, m baskets a group, k neighbours, α the own share."""

    group: int
    within: float
    between: float
    neighbours: int
    own: float


SETTINGS = [
    Setting(7, 0.9, 0.7, 300, 0.7),  # of TaFeng
    Setting(3, 0.9, 0.7, 900, 0.9),  # of Instacart
    Setting(3, 0.9, 0.6, 600, 0.2),  # of Dunnhumby
    Setting(7, 1.0, 0.6, 300, 0.7),  # of ValuedShopper
    Setting(7, 0.9, 0.9, 300, 0.9),
    Setting(7, 0.9, 0.9, 100, 0.7),
]


class TifuKnn(Frozen):
    """Hu et al., "Modeling personalized item frequency information for next-basket recommendation" (SIGIR 2020).

    A basket is what a user touched at one time. Neighbours are those of the past, by Euclidean distance, without the
    user who asks.
    """

    name = "TIFU-KNN"

    def fit(self, past: Past, *, seed: int, budget_s: float, threads: int) -> None:
        def scores(setting: Setting, held: HeldOut) -> Float32:
            self._learn(held.earlier, setting)
            return self.score(held.asked)

        self._learn(past, choose(SETTINGS, past, scores, seed, budget_s))

    def _learn(self, past: Past, setting: Setting) -> None:
        self.setting, self._popular = setting, recent(past)
        everybody = list(histories(past))
        self._row = {one.user: row for row, one in enumerate(everybody)}
        self._users = self._vectors(everybody)  # (U, N)
        self._lengths = np.asarray(self._users.multiply(self._users).sum(axis=1)).ravel()  # squared, (U,)

    def _vectors(self, asked: Sequence[Asked]) -> sparse.csr_matrix[np.float64]:
        return matrix([_baskets(one) for one in asked], len(self._popular), self._faded)

    def _faded(self, one: Asked) -> Doubles:
        """Weight of each touch (L,): groups are counted back from the newest basket; the oldest is short."""
        group, within, between, _, _ = self.setting
        basket = np.unique(one.ts_ms, return_inverse=True)[1]
        count = int(basket.max(initial=-1)) + 1
        back = count - 1 - basket
        groups = -(-count // group)
        size = np.minimum(group, count - back // group * group)
        return np.asarray(within ** (back % group) / size * between ** (back // group) / max(1, groups))

    def score(self, asked: Sequence[Asked]) -> Float32:
        parts = [asked[start : start + AT_ONCE] for start in range(0, len(asked), AT_ONCE)]
        scores = [self._mixed(part) for part in parts]
        return completed(np.concatenate(scores) if scores else np.zeros((0, len(self._popular))), self._popular)

    def _mixed(self, asked: Sequence[Asked]) -> Doubles:
        """α own + (1 - α) the mean of the nearest, (B, N)."""
        mine = self._vectors(asked)
        distance = self._lengths[None, :] - 2 * (mine @ self._users.T).toarray()  # (B, U), without what a row shares
        for row, one in enumerate(asked):
            if one.user in self._row:
                distance[row, self._row[one.user]] = np.inf
        k = min(self.setting.neighbours, max(0, distance.shape[1] - 1))
        nearest = np.argpartition(distance, k, axis=1)[:, :k] if k else np.zeros((len(asked), 0), dtype=np.int64)
        at = (np.repeat(np.arange(len(asked)), k), nearest.ravel())
        chosen = sparse.csr_matrix((np.full(nearest.size, 1 / max(1, k)), at), shape=distance.shape)
        own = self.setting.own
        scores = (own * mine + (1 - own) * (chosen @ self._users)).toarray()
        scores[[not len(one.items) for one in asked]] = 0.0  # nearest to nothing are those who touched least
        return np.asarray(scores)


def _baskets(one: Asked) -> Asked:
    """Each item once a basket."""
    ts_ms, items = np.unique(np.stack([one.ts_ms, one.items], axis=1), axis=0).T
    return one._replace(items=items, ts_ms=ts_ms)
