"""What a policy would have earned, from the log of another that knew its propensities.

Each estimator is a mean over decisions, so intervals are bootstraps over them, or over the users they were made for.
w = π(a|x) / p is how much more often the judged policy takes what was taken. IPS (Horvitz & Thompson 1952): mean of wr.
SNIPS (Swaminathan & Joachims 2015): Σwr / Σw. Doubly robust (Dudík, Langford & Li 2011): a model's value of the policy,
corrected by w times the model's error where it can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.evaluation.metrics import BOOTSTRAP_ROUNDS, FloatArray, Interval, interval

ESTIMATORS = ("IPS", "SNIPS", "DR")


class Log(NamedTuple):
    """N decisions: what was taken, what came of it, and with which chance it was taken."""

    actions: npt.NDArray[np.int64]  # (N,)
    rewards: FloatArray  # (N,)
    propensities: FloatArray  # (N,)


class Judged(NamedTuple):
    """A policy against a log. `effective`: decisions that the weights are worth, (Σw)² / Σw²."""

    values: dict[str, Interval]
    draws: dict[str, FloatArray]  # estimator → its value in each bootstrap round, the same rounds for every policy
    effective: float


def judge(
    log: Log, policy: FloatArray, rewards: FloatArray | None = None, seed: int = 0, drawn: Sequence[str] | None = None
) -> Judged:
    """Policy (N, A): its chance of each action at each decision. `rewards` (N, A): what a model expects of each action,
    learned without the decision itself; none is expected without. `drawn` (N,): whose decision it was, where several are of
    one user; each is by itself without."""
    expected = np.zeros_like(policy) if rewards is None else rewards
    rows = np.arange(len(log.actions))
    weights = policy[rows, log.actions] / log.propensities
    model = (policy * expected).sum(axis=1)
    error = weights * (log.rewards - expected[rows, log.actions])
    gained, robust = weights * log.rewards, model + error
    sums = resampled(np.stack([gained, weights, robust, np.ones(len(rows))], axis=1), drawn, seed)  # (R, 4)
    draws: dict[str, FloatArray] = {
        "IPS": sums[:, 0] / sums[:, 3], "SNIPS": sums[:, 0] / np.maximum(sums[:, 1], 1e-12), "DR": sums[:, 2] / sums[:, 3],
    }  # fmt: skip
    points = {"IPS": gained.mean(), "SNIPS": gained.sum() / max(weights.sum(), 1e-12), "DR": robust.mean()}
    values = {name: interval(float(points[name]), draws[name]) for name in ESTIMATORS}
    return Judged(values, draws, float(weights.sum() ** 2 / max((weights**2).sum(), 1e-12)))


def resampled(values: FloatArray, drawn: Sequence[str] | None, seed: int) -> FloatArray:
    """(R, C): sums of values (N, C) in each bootstrap round. Decisions, or whole users, are drawn with replacement."""
    if drawn is not None:
        _, whose = np.unique(np.asarray(drawn), return_inverse=True)
        values = np.stack([np.bincount(whose, weights=column) for column in values.T], axis=1)  # (U, C)
    rng, count = np.random.default_rng(seed), len(values)
    rounds = (np.bincount(rng.integers(0, count, count), minlength=count) @ values for _ in range(BOOTSTRAP_ROUNDS))
    return np.stack(list(rounds))


def ahead(one: Judged, other: Judged, estimator: str = "DR") -> Interval:
    """How much more one policy earns than another on the same log, in the same bootstrap rounds."""
    point = one.values[estimator].value - other.values[estimator].value
    return interval(point, one.draws[estimator] - other.draws[estimator])


def decision(difference: Interval) -> str:
    """What may be concluded.

    >>> decision(Interval(0.1, 0.02, 0.2)), decision(Interval(0.1, -0.02, 0.2))
    ('better', 'no decision')
    """
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "no decision"
