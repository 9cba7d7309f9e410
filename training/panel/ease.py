"""EASE: a linear autoencoder in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import linalg

from stream.core.user.featurize import Float32
from training.panel.method import Asked, Frozen, Past, histories, matrix
from training.panel.popularity import completed, recent
from training.panel.validation import HeldOut, choose

ITEMS_MAX = 6_000  # a dense inverse; of larger catalogs the most touched
LAMBDAS = (250.0, 50.0, 1_000.0)


class Ease(Frozen):
    """Steck, "Embarrassingly shallow autoencoders for sparse data" (WWW 2019), eq. 8.

    Its processor threads are those of the BLAS library (OMP_NUM_THREADS).
    """

    name = "EASE"

    def fit(self, past: Past, *, seed: int, budget_s: float, threads: int) -> None:
        def scores(penalty: float, held: HeldOut) -> Float32:
            self._learn(held.earlier, penalty)
            return self.score(held.asked)

        self._learn(past, choose(LAMBDAS, past, scores, seed, budget_s))

    def _learn(self, past: Past, penalty: float) -> None:
        self.penalty, self._popular = penalty, recent(past)
        touches = np.bincount(past.items, minlength=past.n_items)
        self._kept = np.sort(np.argsort(-touches, kind="stable")[:ITEMS_MAX])  # (K,)
        users = matrix(list(histories(past)), past.n_items)[:, self._kept]  # (U, K)
        gram = (users.T @ users).toarray()  # (K, K)
        gram[np.diag_indices_from(gram)] += penalty
        factor, failed = linalg.lapack.dpotrf(gram, lower=1)
        assert not failed  # a Gram matrix with something on its diagonal is positive definite
        half, failed = linalg.lapack.dpotri(factor, lower=1)
        assert not failed
        inverse = np.tril(half) + np.tril(half, -1).T
        self._weights = (inverse / -np.diag(inverse)).astype(np.float32)
        np.fill_diagonal(self._weights, 0.0)

    def score(self, asked: Sequence[Asked]) -> Float32:
        mine = matrix(asked, len(self._popular))[:, self._kept]
        scores = np.zeros((len(asked), len(self._popular)), dtype=np.float32)
        scores[:, self._kept] = mine.astype(np.float32) @ self._weights
        return completed(scores, self._popular)
