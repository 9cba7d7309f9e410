"""Which of the offers that may be shown is: Thompson sampling on a Bayesian linear model, by what the offers are, which
groups the user is in, and how near a text is to what they deal with (`nearness`). Features are 0 or 1, so that what is
learned are counts: exact, and the same in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import sqrt
from typing import NamedTuple

import numpy as np

from schemas.offers import PlacementTotals
from stream.core.offers.nearness import STEP
from stream.core.statistics.bandit import DRAWS, BayesianLinear, Float64, draw, shares
from stream.core.user.featurize import Float32

PLANES = 16
TEXT_PREFIX = "text-"  # of the id of a text that a caller gave
NOISE_MIN = 0.05  # of a reward around its mean: that of a rate of 0.25%
LEAN = 1.0  # what a step of nearness is believed to be worth beforehand, in the prior's spreads: as firmly as one outcome


def expand(about: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The features of an offer shown to a user: what it is, alone and with each group.

    >>> expand(("*", "offer=a"), ("buyer",))
    ['*', '*&buyer', 'offer=a', 'offer=a&buyer']
    """
    return [name for one in about for name in (one, *(f"{one}&{group}" for group in groups))]


class Policy(NamedTuple):
    """What was learned, as draws of the model's parameters (D, N): the same from the same counts. `version` stands for them.
    Of a feature that nothing is known of, the draws are the model's prior: `spread` times normal around its lean."""

    version: str
    row_of: Mapping[str, int]
    draws: Float64
    spread: float

    def propensities(self, about: Sequence[Sequence[str]], values: Sequence[float], groups: Sequence[str]) -> Float64:
        """(K,): the chance of each of K offers for a user of these groups. `values`: of one reward of each."""
        features = [expand(one, groups) for one in about]
        at = {name: number for number, name in enumerate(dict.fromkeys(name for some in features for name in some))}
        known = [self.draws[:, self.row_of[name]] if name in self.row_of else self.spread * _prior(name) for name in at]
        x = np.zeros((len(about), len(at)))  # (K, n)
        for row, (some, value) in enumerate(zip(features, values, strict=True)):
            x[row, [at[name] for name in some]] = value
        return np.asarray(shares(x[None], np.stack(known, axis=1))[0])


def policy(totals: PlacementTotals) -> Policy:
    """The policy that follows from what was learned."""
    n = len(totals.names)
    rate = (totals.rewards + 1) / (totals.outcomes + 2)
    model = BayesianLinear(n, noise=max(NOISE_MIN, sqrt(rate * (1 - rate))))
    model.gram[:] = np.frombuffer(totals.gram, dtype=np.uint32).reshape(n, n)
    spread = float(model.noise / np.sqrt(model.ridge))  # of what is believed beforehand
    model.moment[:] = np.frombuffer(totals.moment, dtype=np.uint32)
    model.moment += model.ridge * spread * np.array([lean(name) for name in totals.names])
    digest = hashlib.blake2b("\x1f".join(totals.names).encode(), digest_size=6)
    for part in (totals.gram, totals.moment):
        digest.update(part)
    version = digest.hexdigest()
    return Policy(version, {name: row for row, name in enumerate(totals.names)}, draw(model, int(version, 16)), spread)


def lean(name: str) -> float:
    """Where a feature's prior is centred, in spreads: a nearer text is believed to be the better one until it is known.

    >>> lean("near=2"), lean("near=2&buyer"), lean("offer=a")
    (1.0, 0.0, 0.0)
    """
    return LEAN if name.startswith(STEP) and "&" not in name else 0.0


@lru_cache(maxsize=10_000)
def _prior(name: str) -> Float64:
    """(D,) in spreads: normal around its lean, the same for the same name."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return lean(name) + np.random.default_rng(seed).normal(size=DRAWS)


def text_about(text: str, vector: Float32 | None, space: str) -> tuple[str, ...]:
    """A text as features: something, itself, and on which side of PLANES planes its vector (T,) lies, so that what is
    learned of one text helps those like it (Charikar, "Similarity Estimation Techniques from Rounding Algorithms", 2002).

    >>> text_about("Hello", None, "")
    ('*', 'text=c6b9dafe99e5')
    """
    sides = () if vector is None else (_planes(len(vector)) @ vector > 0).nonzero()[0].tolist()
    return ("*", text_id(text).replace("-", "=", 1), *(f"text/{space[:8]}/{side}" for side in sides))


def text_id(text: str) -> str:
    """What stands for a text where an offer's id does."""
    return f"{TEXT_PREFIX}{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


@lru_cache(maxsize=4)
def _planes(dim: int) -> Float64:
    return np.random.default_rng(dim).normal(size=(PLANES, dim))
