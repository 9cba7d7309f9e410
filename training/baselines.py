"""Strong simple recommenders and churn scores, to be compared with. Each is fitted on the past and scores every item."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from stream.core.featurize import CHURN_FEATURES, Float32
from stream.core.fold import touches
from stream.core.state import DAY_MS
from training.snapshot import INTEREST, History

POPULARITY_DAYS = 30
NEIGHBOURS = 100  # per item in item-kNN
SHRINK = 10.0  # of item-kNN's cosine: pairs seen rarely are trusted less
EASE_LAMBDA = 250.0
EASE_ITEMS_MAX = 6_000  # a dense inverse: 6,000 items take some 20 s on one core


class Interactions:
    """Who touched what how often, as a sparse matrix (U, N); row order is `users`, column order `item_ids`."""

    def __init__(self, history: History, item_ids: list[str], users: list[str]) -> None:
        self.item_ids, self.users = item_ids, users
        self.column = {item: at for at, item in enumerate(item_ids)}
        self.row = {user: at for at, user in enumerate(users)}
        everybody: dict[str, int] = dict(self.row)
        pairs: dict[tuple[int, int], set[int]] = {}
        recent = np.zeros(len(item_ids))
        since = history.to_ms - POPULARITY_DAYS * DAY_MS
        for event in history.events:
            for touch in touches(event, event.ts_ms):
                column = self.column.get(touch.item_id)
                if column is None or touch.kind not in INTEREST:
                    continue
                row = everybody.setdefault(event.user, len(everybody))
                pairs.setdefault((row, column), set()).add(touch.ts_ms)
                recent[column] += touch.ts_ms >= since
        at = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
        counts = np.array([len(times) for times in pairs.values()], dtype=np.float32)
        shape = (len(everybody), len(item_ids))
        self.all = sparse.csr_matrix((counts, (at[:, 0], at[:, 1])), shape=shape)  # users of interest come first
        self.recent = recent
        self.known = self.all[: len(users)]


Scores = npt.NDArray[np.floating]  # (U, N)


def popularity(data: Interactions) -> Scores:
    """Touches of the last 30 days, the same for everybody."""
    return np.tile(data.recent.astype(np.float32), (len(data.users), 1))


def personal_frequency(data: Interactions) -> Scores:
    """How often the user touched each item; popularity breaks ties."""
    top = max(1.0, float(data.recent.max(initial=0)))
    return np.asarray(data.known.toarray() + (0.5 * data.recent / top).astype(np.float32)[None, :])


def item_knn(data: Interactions) -> Scores:
    """Shrunk cosine between items over users, the NEIGHBOURS nearest (Dacrema et al., 2019)."""
    binary = data.all.copy()
    binary.data[:] = 1.0
    together = (binary.T @ binary).toarray().astype(np.float32)  # (N, N)
    size = np.sqrt(together.diagonal())
    np.fill_diagonal(together, 0.0)
    together /= size[:, None] * size[None, :] + SHRINK
    if together.shape[1] > NEIGHBOURS:
        edge = np.partition(together, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS][:, None]
        together[together < edge] = 0.0
    mine = data.known.copy()
    mine.data[:] = 1.0
    return np.asarray(mine @ together)


def ease(data: Interactions) -> Scores | None:
    """Steck, "Embarrassingly Shallow Autoencoders" (WWW 2019), eq. 8; None for catalogs too large for a dense inverse."""
    if len(data.item_ids) > EASE_ITEMS_MAX:
        return None
    binary = data.all.copy()
    binary.data[:] = 1.0
    gram = (binary.T @ binary).toarray().astype(np.float64)  # (N, N)
    gram[np.diag_indices_from(gram)] += EASE_LAMBDA
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)[None, :]
    np.fill_diagonal(weights, 0.0)
    mine = data.known.copy()
    mine.data[:] = 1.0
    return np.asarray(mine @ weights)


def logistic(features: Float32, y: npt.NDArray[np.float64], ridge: float = 1.0) -> npt.NDArray[np.float64]:
    """Weights (F + 1,) of a ridge logistic regression by Newton's method; the last is the constant."""
    x = np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], axis=1)
    penalty = np.diag([ridge] * features.shape[1] + [0.0])
    beta = np.zeros(x.shape[1])
    for _ in range(50):
        q = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        step = np.linalg.solve(x.T @ (x * (q * (1 - q))[:, None]) + penalty + 1e-9 * np.eye(len(beta)),
                               x.T @ (q - y) + penalty @ beta)
        beta = beta - step
        if np.abs(step).max() < 1e-8:
            break
    return np.asarray(beta)


def predict(beta: npt.NDArray[np.float64], features: Float32) -> npt.NDArray[np.float64]:
    """Probabilities (V,) of `logistic`."""
    return np.asarray(1 / (1 + np.exp(-np.clip(features @ beta[:-1] + beta[-1], -30, 30))))


def rfm(features: Float32, silence_days: npt.NDArray[np.float64]) -> Float32:
    """Log recency, frequency, monetary, tenure (V, 4) from churn features and the silence so far."""
    pick = [CHURN_FEATURES.index(name) for name in ("log_active_days", "log_revenue", "log_tenure_days")]
    return np.concatenate([np.log1p(silence_days)[:, None], features[:, pick]], axis=1).astype(np.float32)
