"""Measures of ranking and of probabilities, with intervals. Values in, values out."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BOOTSTRAP_ROUNDS = 1_000
BINS = 10
CHANCE_ROUNDS = 200
K = 20  # items ranked
MEASURES = ("recall@20", "ndcg@10", "hr@10", "mrr@20")  # of a ranking, see `measures`


class Interval(msgspec.Struct, frozen=True):
    """A value with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def top(
    scores: FloatArray, allowed: npt.NDArray[np.bool_], wanted: npt.NDArray[np.int64], k: int = K
) -> npt.NDArray[np.int64]:
    """The best allowed columns, at most k. Ties are pessimistic: what was wanted comes last among equals, then the lower
    column first.

    >>> top(np.array([0.0, 2.0, 2.0, 9.0]), np.array([True, True, True, False]), np.array([1]), 2).tolist()
    [2, 1]
    """
    masked = np.where(allowed, scores, -np.inf)
    k = min(k, int(allowed.sum()))
    if k == 0:
        return np.zeros(0, dtype=np.int64)
    edge = np.partition(masked, len(masked) - k)[len(masked) - k]
    best = np.flatnonzero(masked >= edge)
    return best[np.lexsort((best, np.isin(best, wanted), -masked[best]))][:k]


def measures(ranked: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> tuple[float, float, float, float]:
    """Recall@20 (found of all wanted), NDCG@10 with binary gains, hit rate@10, reciprocal rank@20 of one question.

    >>> measures(np.array([1, 2, 3]), np.array([1, 9]))
    (0.5, 0.6131471927654584, 1.0, 1.0)
    """
    hits = np.isin(ranked[:K], wanted)
    places = np.flatnonzero(hits)
    gained = (1 / np.log2(places[places < 10] + 2)).sum()
    ideal = (1 / np.log2(np.arange(2, min(len(wanted), 10) + 2))).sum()
    return (
        float(len(places) / len(wanted)), float(gained / ideal), float((places < 10).any()),
        float(1 / (places[0] + 1)) if len(places) else 0.0,
    )  # fmt: skip


def as_arrays(rows: list[tuple[float, float, float, float]]) -> dict[str, FloatArray]:
    """Measure → value of each question (Q,)."""
    table = np.array(rows, dtype=np.float64).reshape(-1, len(MEASURES))
    return {name: table[:, at] for at, name in enumerate(MEASURES)}


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


def ece_by_chance(p: FloatArray, seed: int = 0) -> float:
    """Mean `ece` of outcomes drawn from p itself: what a perfectly calibrated model has from the size of the sample alone.

    >>> 0.07 < ece_by_chance(np.full(200, 0.5)) < 0.11
    True
    """
    rng = np.random.default_rng(seed)
    return float(np.mean([ece(p, (rng.random(len(p)) < p).astype(np.float64)) for _ in range(CHANCE_ROUNDS)]))
