"""Which of the offers that may be shown is: Thompson sampling on a Bayesian linear model, by what the offers are and which
groups the user is in. Features are 0 or 1, so that what is learned are counts: exact, and the same in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

from schemas.offers import PlacementTotals
from stream.core.bandit import BayesianLinear, Float64, draw, shares

NOISE_MIN = 0.05  # of a reward around its mean: that of a rate of 0.25%


def expand(about: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The features of an offer shown to a user: what it is, alone and with each group.

    >>> expand(("*", "offer=a"), ("buyer",))
    ['*', '*&buyer', 'offer=a', 'offer=a&buyer']
    """
    return [name for one in about for name in (one, *(f"{one}&{group}" for group in groups))]


class Policy(NamedTuple):
    """What was learned, as draws of the model's parameters (D, N): the same from the same counts. `version` stands for
    them."""

    version: str
    row_of: Mapping[str, int]
    draws: Float64

    def propensities(self, about: Sequence[Sequence[str]], values: Sequence[float], groups: Sequence[str]) -> Float64:
        """(K,): the chance of each of K offers for a user of these groups. `values`: of one reward of each."""
        x = np.zeros((len(about), self.draws.shape[1]))  # (K, N)
        for row, (one, value) in enumerate(zip(about, values, strict=True)):
            x[row, [self.row_of[name] for name in expand(one, groups)]] = value
        return np.asarray(shares(x[None], self.draws)[0])


def policy(totals: PlacementTotals, about: Sequence[Sequence[str]], groups: Sequence[str]) -> Policy:
    """The policy for offers that are described by `about` and users who may be in any of `groups`. What nothing is known of
    yet has the model's prior."""
    names = dict.fromkeys([*totals.names, *sorted(name for one in about for name in expand(one, groups))])
    known, n = len(totals.names), len(names)
    rate = (totals.rewards + 1) / (totals.outcomes + 2)
    model = BayesianLinear(n, noise=max(NOISE_MIN, sqrt(rate * (1 - rate))))
    model.gram[:known, :known] = np.frombuffer(totals.gram, dtype=np.uint32).reshape(known, known)
    model.moment[:known] = np.frombuffer(totals.moment, dtype=np.uint32)
    digest = hashlib.blake2b("\x1f".join(names).encode(), digest_size=6)
    for part in (totals.gram, totals.moment):
        digest.update(part)
    version = digest.hexdigest()
    return Policy(version, {name: row for row, name in enumerate(names)}, draw(model, int(version, 16)))
