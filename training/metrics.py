"""Measures of ranking and of probabilities, with intervals. Values in, values out."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BOOTSTRAP_ROUNDS = 1_000
BINS = 10


class Interval(msgspec.Struct, frozen=True):
    """A value with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def recall_and_ndcg(ranked: list[int], wanted: set[int], k_recall: int = 20, k_ndcg: int = 10) -> tuple[float, float]:
    """Recall@k: found / min(|wanted|, k) would hide large baskets, so it is found / |wanted|; NDCG@k with binary gains.

    >>> recall_and_ndcg([1, 2, 3], {1, 9})
    (0.5, 0.6131471927654584)
    """
    found = sum(1 for item in ranked[:k_recall] if item in wanted)
    gains = sum(1 / np.log2(at + 2) for at, item in enumerate(ranked[:k_ndcg]) if item in wanted)
    ideal = sum(1 / np.log2(at + 2) for at in range(min(len(wanted), k_ndcg)))
    return found / len(wanted), float(gains / ideal)


def top(scores: FloatArray, k: int) -> list[int]:
    """The k best columns, ties to the lower column; -inf is never among them.

    >>> top(np.array([0.0, 2.0, 2.0, -np.inf]), 4)
    [1, 2, 0]
    """
    k = min(k, len(scores))
    edge = np.partition(-scores, k - 1)[k - 1]
    best = np.flatnonzero(-scores <= edge)
    best = best[np.lexsort((best, -scores[best]))][:k]
    return [int(at) for at in best if np.isfinite(scores[at])]


def bootstrap(values: FloatArray, seed: int = 0) -> Interval:
    """Mean over users and its interval, users drawn with replacement. For a paired comparison pass the differences."""
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(values), (BOOTSTRAP_ROUNDS, len(values)))
    return interval(float(np.mean(values)), np.asarray(values)[draws].mean(1))


def interval(value: float, draws: FloatArray) -> Interval:
    """A value and the middle 95% of what it was in the draws; draws without a value (one class only) are left out."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    return Interval(float(value), float(np.quantile(known, 0.025)), float(np.quantile(known, 0.975)))


def auc(p: FloatArray, y: FloatArray) -> float:
    """Area under the ROC curve, ties counted half; NaN where one class is missing.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    positive, negative = float((y > 0).sum()), float((y <= 0).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # mean rank within ties
    return float((rank[y > 0].sum() - positive * (positive + 1) / 2) / (positive * negative))


def brier(p: FloatArray, y: FloatArray) -> float:
    """Mean squared error of probabilities."""
    return float(np.mean((p - y) ** 2))


def calibration_bins(p: FloatArray, y: FloatArray) -> list[tuple[float, float, int]]:
    """(mean said, mean seen, count) over tenths of equal count."""
    order = np.argsort(p, kind="stable")
    return [(float(p[part].mean()), float(y[part].mean()), len(part)) for part in np.array_split(order, BINS) if len(part)]


def ece(p: FloatArray, y: FloatArray) -> float:
    """Expected calibration error over tenths of equal count."""
    return float(sum(abs(said - seen) * count for said, seen, count in calibration_bins(p, y)) / max(1, len(p)))
