"""Which of several offers: Thompson sampling on a Bayesian linear model, with the chance of each choice known.

Rewards are r = x·θ + noise, θ ~ N(0, v²/ridge) beforehand; after n outcomes θ ~ N(A⁻¹b, v² A⁻¹) with A = ridge·I + Σxxᵀ
and b = Σrx (Agrawal & Goyal, "Thompson Sampling for Contextual Bandits with Linear Payoffs", 2013). An offer is taken as
often as it is the best one in draws of θ. These shares, mixed with a little of every offer, are the propensities: they are
logged with the choice, and the choice is a hash held against them, so that a replay takes the same and evaluation can trust
the log.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

DRAWS = 256  # of θ, for propensities in steps of 0.4%
EXPLORE = 0.05  # of all choices go to every offer alike: no propensity is near 0, or its reward would weigh too much


class Choice(NamedTuple):
    """An offer's place among those asked about, and the propensities of all (K,)."""

    chosen: int
    propensities: Float64


class BayesianLinear:
    """The model of one decision's rewards over F features. Additive: outcomes in any order, and models of several partitions
    summed, give the same."""

    def __init__(self, features: int, *, ridge: float | Float64 = 1.0, noise: float = 0.3) -> None:
        """`noise`: v, the standard deviation of a reward around its mean; of clicks at a rate of p, √(p(1 − p)). `ridge`: so
        many outcomes of a feature weigh as much as what was believed beforehand; of all alike, or of each (F,)."""
        self.ridge, self.noise = ridge, noise
        self.gram = np.zeros((features, features))  # Σ xxᵀ
        self.moment = np.zeros(features)  # Σ rx
        self.outcomes = 0

    def learn(self, x: Float64, rewards: Float64) -> None:
        """Outcomes with features (N, F) and rewards (N,)."""
        self.gram += x.T @ x
        self.moment += x.T @ rewards
        self.outcomes += len(x)

    def posterior(self) -> tuple[Float64, Float64]:
        """Mean (F,) and a root (F, F) of the covariance: θ = mean + root @ z, z standard normal."""
        precision = self.gram + self.ridge * np.eye(len(self.moment))
        root = np.linalg.cholesky(precision)  # precision = root rootᵀ, so that root⁻ᵀ is a root of its inverse
        mean: Float64 = np.linalg.solve(precision, self.moment).astype(np.float64)
        return mean, self.noise * np.linalg.solve(root.T, np.eye(len(self.moment)))

    def propensities(self, x: Float64, seed: int) -> Float64:
        """(B, K): chance of each of K offers for B users, x (B, K, F). The same seed gives the same."""
        return shares(x, draw(self, seed))


def draw(model: BayesianLinear, seed: int) -> Float64:
    """(D, F): D draws of θ. The same seed gives the same."""
    mean, root = model.posterior()
    return np.asarray(mean + np.random.default_rng(seed).normal(size=(DRAWS, len(mean))) @ root.T)


def shares(x: Float64, draws: Float64) -> Float64:
    """(B, K): how often each of K offers is the best one in the draws (D, F), x (B, K, F), mixed with a little of all."""
    best = np.einsum("bkf,df->bkd", x, draws).argmax(axis=1)  # (B, D)
    offers = x.shape[1]
    wins = (best[:, :, None] == np.arange(offers)).sum(axis=1)  # (B, K)
    return np.asarray((1 - EXPLORE) * wins / len(draws) + EXPLORE / offers)


def choose(propensities: Float64, decision_id: str) -> Choice:
    """The offer of a decision: the hash of its id, as a number below 1, held against the propensities (K,).

    >>> choose(np.array([0.0, 1.0]), "any").chosen
    1
    """
    drawn = int.from_bytes(hashlib.blake2b(decision_id.encode(), digest_size=8).digest(), "big") / 2**64
    edges = np.cumsum(propensities)
    return Choice(int(min(np.searchsorted(edges, drawn * edges[-1], side="right"), len(edges) - 1)), propensities)
