"""Measures of pairs that come in clusters, such as users with all their items: intervals over clusters drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from training.comparison import Measures
from training.metrics import BINS, interval

DRAWS = 300  # there are many pairs, and each model is measured anew in each draw
REMINDERS = 5  # of one user

Values = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Weighted = Callable[[Values], float]  # weights (P,) of the pairs → a measure


def clustered(
    predictions: Mapping[str, Values], y: Values, users: Ints, served: str, scores: set[str]
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead): AUC, average precision, precision of each user's REMINDERS best, and for those that are no mere
    `scores` Brier and ECE; intervals over users drawn with all their pairs, the same draws for every model."""
    _, cluster = np.unique(users, return_inverse=True)
    n = int(cluster.max()) + 1
    of = {name: weighted(p, y, cluster, probability=name not in scores) for name, p in predictions.items()}
    ones = np.ones(len(y))
    point = {(name, one): measure(ones) for name, some in of.items() for one, measure in some.items()}
    drawn: dict[tuple[str, str], list[float]] = {key: [] for key in point}
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        weights = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)[cluster]  # (P,)
        for name, one in point:
            drawn[name, one].append(of[name][one](weights))
    draws = {key: np.array(values) for key, values in drawn.items()}
    models: dict[str, Measures] = {name: {} for name in of}
    ahead: dict[str, Measures] = {name: {} for name in of if name != served}
    for (name, one), value in point.items():
        models[name][one] = interval(value, draws[name, one])
        if name != served:
            ahead[name][one] = interval(point[served, one] - value, draws[served, one] - draws[name, one])
    return models, ahead


def weighted(p: Values, y: Values, cluster: Ints, probability: bool) -> dict[str, Weighted]:
    """Measures as functions of the pairs' weights (P,): what can be sorted is sorted once."""
    _, place = np.unique(p, return_inverse=True)  # ascending, ties share a place
    best_first = np.lexsort((-p, cluster))
    starts = np.flatnonzero(np.r_[True, np.diff(cluster[best_first]) > 0])
    rank = np.arange(len(p)) - np.repeat(starts, np.diff(np.r_[starts, len(p)]))
    shown = best_first[rank < REMINDERS]
    per_user = 1.0 / np.bincount(cluster[shown])[cluster[shown]]

    def auc(w: Values) -> float:
        positive, negative = np.bincount(place, w * y), np.bincount(place, w * (1 - y))
        below = np.cumsum(negative) - negative / 2
        whole = positive.sum() * negative.sum()
        return float((positive * below).sum() / whole) if whole else float("nan")

    def average_precision(w: Values) -> float:
        positive, every = np.bincount(place, w * y)[::-1], np.bincount(place, w)[::-1]
        seen = np.cumsum(every)
        precision = np.divide(np.cumsum(positive), seen, out=np.zeros(len(seen)), where=seen > 0)
        return float((precision * positive).sum() / positive.sum()) if positive.sum() else float("nan")

    def reminders(w: Values) -> float:
        return float((w[shown] * per_user * y[shown]).sum() / (w[shown] * per_user).sum())

    found: dict[str, Weighted] = {"auc": auc, "ap": average_precision, f"precision@{REMINDERS}": reminders}
    if probability:
        tenth = np.empty(len(p), dtype=np.int64)
        for at, part in enumerate(np.array_split(np.argsort(p, kind="stable"), BINS)):
            tenth[part] = at
        found["brier"] = lambda w: float((w * (p - y) ** 2).sum() / w.sum())
        found["ece"] = lambda w: float(np.abs(np.bincount(tenth, w * (p - y))).sum() / w.sum())
    return found


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
