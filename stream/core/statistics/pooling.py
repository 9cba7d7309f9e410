"""A Bayesian linear regression whose effects are pooled by blocks: closed form, with the intervals that belong to it.

y = xθ + noise, noise ~ N(0, σ²/w), θⱼ ~ N(0, σ²τ²) with one τ for all effects of a block, and a loose one for those that are
not pooled. Beforehand σ² is inverse gamma, so that afterwards, for given τ, θ and what is seen next are Student-t exactly
(O'Hagan & Forster, "Bayesian Inference", 2004, chapter 11). How far effects of a block lie from 0 is learned from all of
them together, by how likely each τ makes the data, times what was believed of it (empirical Bayes; Carlin & Louis, "Bayes
and Empirical Bayes Methods", 2000, chapter 3). τ² is then its mean, not the most likely one, which is often next to 0 and
makes intervals too short. A block without data keeps effects small and their intervals wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma, log, sqrt
from statistics import NormalDist
from typing import NamedTuple

import msgspec
import numpy as np

from stream.core.statistics.bandit import BayesianLinear, Float64

NOISE_BEFORE = 0.3  # of a satisfaction around its mean: four fifths full marks and the rest spread over the scale
OUTCOMES_BEFORE = 10.0  # it is believed as firmly as after so many outcomes
LOOSE = 0.01  # ridge of what is not pooled: an effect of ten noises is nothing odd
SPREADS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # τ: effects in noises
SPREAD_BEFORE, SPREAD_FOLD = 0.2, 3.0  # τ believed beforehand, within this factor
SWEEPS = 3  # over the blocks; the third one hardly moves any
LEVEL = 0.95  # of intervals


class Estimate(msgspec.Struct, frozen=True):
    """A mean and the ends of its 95% credible interval."""

    value: float
    low: float
    high: float


class Posterior(NamedTuple):
    """θ is Student-t: `mean` (F,), `root` (F, F) with root rootᵀ its scale matrix, `degrees` of freedom. `noise`: σ."""

    mean: Float64
    root: Float64
    degrees: float
    noise: float
    spreads: dict[str, float]  # block → τ

    def of(self, x: Float64) -> Estimate:
        """What xθ is; x (F,), or a difference of two such."""
        return self._interval(x, float(np.linalg.norm(x @ self.root)))

    def seen(self, x: Float64) -> Estimate:
        """What one outcome at x will be."""
        return self._interval(x, sqrt(float(((x @ self.root) ** 2).sum()) + self.noise**2))

    def each(self, x: Float64) -> Float64:
        """(N, 3): what each xθ is, x (N, F), and the ends of its interval."""
        values = x @ self.mean  # (N,)
        half = t_quantile((1 + LEVEL) / 2, self.degrees) * np.linalg.norm(x @ self.root, axis=1)
        return np.stack([values, values - half, values + half], axis=1)

    def _interval(self, x: Float64, scale: float) -> Estimate:
        value, half = float(x @ self.mean), t_quantile((1 + LEVEL) / 2, self.degrees) * scale
        return Estimate(value, value - half, value + half)


class Pooled:
    """Sums over outcomes: in any order, and in any parts, the same. `blocks` (F,): the block of each feature; "" for one
    that is not pooled."""

    def __init__(self, blocks: Sequence[str]) -> None:
        self.blocks = tuple(blocks)
        self._sums = BayesianLinear(len(self.blocks), noise=1.0)
        self._square = self._weight = 0.0

    def learn(self, x: Float64, y: Float64, weights: Float64) -> None:
        """Outcomes y (N,) with features (N, F); a weight of 2 counts as two such outcomes."""
        root = np.sqrt(weights)
        self._sums.learn(x * root[:, None], y * root)
        self._square += float(weights @ y**2)
        self._weight += float(weights.sum())

    def posterior(self) -> Posterior:
        """What is known after these outcomes."""
        names = [name for name in dict.fromkeys(self.blocks) if name]
        spreads = dict.fromkeys(names, SPREAD_BEFORE)
        for _ in range(SWEEPS):
            for name in names:
                told = np.array([self._log_posterior(spreads | {name: one}) for one in SPREADS])
                likely = np.exp(told - told.max())
                spreads[name] = float(np.sqrt(likely @ np.square(SPREADS) / likely.sum()))
        ridge = self._ridge(spreads)
        model = BayesianLinear(len(self.blocks), ridge=ridge, noise=1.0)
        model.gram, model.moment = self._sums.gram, self._sums.moment
        mean, root = model.posterior()
        degrees, noise = self._noise(mean)
        return Posterior(mean, root * noise, degrees, noise, spreads)

    def evidence(self, spreads: dict[str, float]) -> float:
        """log p(outcomes | τ of each block), but for a constant."""
        ridge = self._ridge(spreads)
        root = np.linalg.cholesky(self._sums.gram + np.diag(ridge))
        half = np.linalg.solve(root, self._sums.moment)  # mean · moment is its square
        shape = (OUTCOMES_BEFORE + self._weight) / 2
        rate = (OUTCOMES_BEFORE * NOISE_BEFORE**2 + max(0.0, self._square - float(half @ half))) / 2
        return float(np.log(ridge).sum() / 2 - np.log(np.diag(root)).sum() + lgamma(shape) - shape * log(rate))

    def _log_posterior(self, spreads: dict[str, float]) -> float:
        before = sum((log(one / SPREAD_BEFORE) / log(SPREAD_FOLD)) ** 2 for one in spreads.values())
        return self.evidence(spreads) - before / 2

    def _ridge(self, spreads: dict[str, float]) -> Float64:
        return np.array([spreads[name] ** -2 if name else LOOSE for name in self.blocks])

    def _noise(self, mean: Float64) -> tuple[float, float]:
        """Degrees of freedom, and the scale of the noise."""
        degrees = OUTCOMES_BEFORE + self._weight
        left = max(0.0, self._square - float(mean @ self._sums.moment))
        return degrees, sqrt((OUTCOMES_BEFORE * NOISE_BEFORE**2 + left) / degrees)


def t_quantile(share: float, degrees: float) -> float:
    """Of Student's t, for ten degrees of freedom and more to four digits (Abramowitz & Stegun, 1964, 26.7.5).

    >>> round(t_quantile(0.975, 10), 3), round(t_quantile(0.975, 1e9), 3)
    (2.228, 1.96)
    """
    z = NormalDist().inv_cdf(share)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))
