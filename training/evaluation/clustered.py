"""Measures of pairs that come in clusters, such as users with all their items: intervals over clusters drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from training.evaluation.comparison import Measures
from training.evaluation.metrics import BINS, interval

DRAWS = 300  # there are many pairs, and each model is measured anew in each draw
REMINDERS = 5  # of one user

Values = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Weighted = Callable[[Values], dict[str, float]]  # weights (P,) of the pairs → measures


def clustered(
    predictions: Mapping[str, Values], y: Values, users: Ints, served: str, scores: set[str]
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead): AUC, average precision, precision of each user's REMINDERS best, and for those that are no mere
    `scores` Brier and ECE; intervals over users drawn with all their pairs, the same draws for every model."""
    _, cluster = np.unique(users, return_inverse=True)
    n = int(cluster.max()) + 1
    of = {name: weighted(p, y, cluster, probability=name not in scores) for name, p in predictions.items()}
    ones = np.ones(len(y))
    point = {(name, one): value for name, some in of.items() for one, value in some(ones).items()}
    drawn: dict[tuple[str, str], list[float]] = {key: [] for key in point}
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        weights = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)[cluster]  # (P,)
        for name, some in of.items():
            for one, value in some(weights).items():
                drawn[name, one].append(value)
    draws = {key: np.array(values) for key, values in drawn.items()}
    models: dict[str, Measures] = {name: {} for name in of}
    ahead: dict[str, Measures] = {name: {} for name in of if name != served}
    for (name, one), value in point.items():
        models[name][one] = interval(value, draws[name, one])
        if name != served:
            ahead[name][one] = interval(point[served, one] - value, draws[served, one] - draws[name, one])
    return models, ahead


def weighted(p: Values, y: Values, cluster: Ints, probability: bool) -> Weighted:
    """Measures as a function of the pairs' weights (P,): what can be sorted is sorted once."""
    _, place = np.unique(p, return_inverse=True)  # ascending, ties share a place
    best_first = np.lexsort((-p, cluster))
    starts = np.flatnonzero(np.r_[True, np.diff(cluster[best_first]) > 0])
    rank = np.arange(len(p)) - np.repeat(starts, np.diff(np.r_[starts, len(p)]))
    shown = best_first[rank < REMINDERS]
    per_user = 1.0 / np.bincount(cluster[shown])[cluster[shown]]
    hit = y[shown]
    tenth = np.empty(len(p), dtype=np.int64)
    for at, part in enumerate(np.array_split(np.argsort(p, kind="stable"), BINS)):
        tenth[part] = at
    error, squared = p - y, (p - y) ** 2

    def measures(w: Values) -> dict[str, float]:
        positive, every = np.bincount(place, w * y), np.bincount(place, w)
        negative, bought, share = every - positive, float(positive.sum()), w[shown] * per_user
        below = np.cumsum(negative) - negative / 2
        seen = np.cumsum(every[::-1])
        precision = np.divide(np.cumsum(positive[::-1]), seen, out=np.zeros(len(seen)), where=seen > 0)
        found = {
            "auc": float(positive @ below) / max(bought * float(negative.sum()), 1e-12) if bought else float("nan"),
            "ap": float(precision @ positive[::-1]) / bought if bought else float("nan"),
            f"precision@{REMINDERS}": float(share @ hit / share.sum()),
        }
        if probability:
            found["brier"] = float(w @ squared / w.sum())
            found["ece"] = float(np.abs(np.bincount(tenth, w * error)).sum() / w.sum())
        return found

    return measures


def by_user(
    values: Mapping[str, Values], users: Ints, served: str, measure: str
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead) of a mean over baskets, users drawn with all their baskets."""
    if not len(users):
        return {}, {}
    _, cluster = np.unique(users, return_inverse=True)
    n = int(cluster.max()) + 1
    rng = np.random.default_rng(0)
    draws = np.stack([np.bincount(rng.integers(0, n, n), minlength=n)[cluster] for _ in range(DRAWS)])  # (draws, B)
    share = draws / draws.sum(axis=1, keepdims=True)
    drawn = {name: share @ one for name, one in values.items()}
    models = {name: {measure: interval(float(one.mean()), drawn[name])} for name, one in values.items()}
    own = values[served]
    ahead = {
        name: {measure: interval(float(own.mean() - one.mean()), drawn[served] - drawn[name])}
        for name, one in values.items() if name != served
    }  # fmt: skip
    return models, ahead
