"""Whom to treat: the gain of a treatment for each customer, learned from a randomised test, and how well it sorts.

Two logistic regressions, one of the treated and one of the others; the gain is the difference of their probabilities (the
T-learner of Künzel et al. 2019). On ten thousand customers with a rare outcome it sorted better than doubly robust learners
with ridge or boosting on top: in halves of Hillstrom's test, six times over, Qini 3.7 against 3.5 and 2.8. Sorting is judged
by the Qini curve (Radcliffe 2007): what treating the first k customers gains over treating nobody, against k drawn by lot.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from training.evaluation.metrics import FloatArray

REGULARISATION = 0.1  # C of scikit-learn: the inverse of the penalty


class Uplift(NamedTuple):
    """P(outcome) if treated and if not, from features (N, F)."""

    treated: Pipeline
    control: Pipeline

    def response(self, x: FloatArray) -> FloatArray:
        """P(outcome | treated) (N,): what a response model sorts by."""
        return np.asarray(self.treated.predict_proba(x)[:, 1])

    def gain(self, x: FloatArray) -> FloatArray:
        """P(outcome | treated) − P(outcome | not) (N,)."""
        return np.asarray(self.response(x) - self.control.predict_proba(x)[:, 1])


def fit(x: FloatArray, treated: npt.NDArray[np.bool_], outcome: FloatArray, weights: FloatArray | None = None) -> Uplift:
    """Learn from customers with features (N, F) who were treated or not by lot; `weights` (N,) where the lots' chances were
    not the same for all, see `weigh`."""
    def one(some: npt.NDArray[np.bool_]) -> Pipeline:
        made = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=500))
        return made.fit(x[some], outcome[some], logisticregression__sample_weight=None if weights is None else weights[some])

    return Uplift(one(treated), one(~treated))


def weigh(treated: npt.NDArray[np.bool_], propensity: FloatArray) -> FloatArray:
    """(N,): the share of the treated / P(treated) for the treated, the same of the others for them: 1 where all had the same
    chance, and otherwise as if they had (stabilised inverse propensity weights: Robins, Hernán and Brumback 2000).

    >>> weigh(np.array([True, True, False, True]), np.array([0.75, 0.5, 0.75, 0.75])).tolist()
    [1.0, 1.5, 1.0, 1.0]
    """
    share = treated.mean()
    return np.asarray(np.where(treated, share / propensity, (1 - share) / (1 - propensity)))


def curve(scores: FloatArray, treated: FloatArray, outcome: FloatArray, weights: FloatArray | float = 1.0) -> FloatArray:
    """(N,): outcomes gained by treating the first k customers by score, k = 1 … N: those of the treated among them minus
    those of the others, the latter scaled to as many. `weights`: see `weigh`.

    >>> curve(np.array([2.0, 1.0]), np.array([1.0, 0.0]), np.array([1.0, 0.0])).tolist()
    [1.0, 1.0]
    """
    order = np.argsort(-scores, kind="stable")
    t, y = treated[order], outcome[order]
    w = np.broadcast_to(weights, t.shape)[order]
    many, few = np.cumsum(w * t), np.cumsum(w * (1 - t))
    return np.asarray(np.cumsum(w * y * t) - np.cumsum(w * y * (1 - t)) * many / np.where(few > 0, few, 1))


def qini(scores: FloatArray, treated: FloatArray, outcome: FloatArray, weights: FloatArray | float = 1.0) -> float:
    """Mean height of the curve above the straight line to its end, in outcomes per 1,000 customers: 0 for a lottery."""
    found = curve(scores, treated, outcome, weights)
    n = len(found)
    return float((found - found[-1] * np.arange(1, n + 1) / n).mean() / n * 1_000)
