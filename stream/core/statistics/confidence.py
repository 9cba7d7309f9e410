"""Intervals of rates, and of how far two means are apart, that hold at any time: also for who looks after every outcome."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, inf, lgamma, log, sqrt
from typing import NamedTuple

ALPHA = 0.05
STEPS = 40  # of halving: to 12 digits
TIGHTEST_AT = 10_000  # users of both arms; at a tenth as many a quarter wider than it could be
USERS_MIN = 100  # of each arm
SOME_MIN = 30  # users of both arms with an outcome that is not 0
FOUND_AT_USERS = 1_000  # of how many a wrong size should be found soonest; at a hundredth or hundredfold it costs a few more


class Rate(NamedTuple):
    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2%} of {self.n:,} ({self.low:.2%} to {self.high:.2%})"


@lru_cache(maxsize=10_000)
def rate(successes: int, n: int) -> Rate:
    """A rate and its 95% confidence sequence: the rates p of which a Beta(½, ½) mixture of rates has not become 20 times as
    likely as p itself. By Ville's inequality the true one is never lost in 95% of cases, for any rate and however few
    outcomes (Robbins, "Statistical Methods Related to the Law of the Iterated Logarithm", 1970, section 3).

    >>> rate(0, 0).low, rate(0, 0).high
    (0.0, 1.0)
    >>> str(rate(100, 1000))
    '10.00% of 1,000 (6.89% to 13.82%)'
    """
    if n == 0:
        return Rate(0.0, 0.0, 1.0, 0)
    value, failures = successes / n, n - successes
    mixture = lgamma(successes + 0.5) + lgamma(failures + 0.5) - lgamma(n + 1) - 2 * lgamma(0.5)
    least = mixture + log(ALPHA)

    def inside(p: float) -> bool:
        return _times_log(successes, p) + _times_log(failures, 1 - p) > least

    low, high = 0.0, 1.0
    if not inside(0.0):
        outer, inner = 0.0, value
        for _ in range(STEPS):
            low = (outer + inner) / 2
            outer, inner = (outer, low) if inside(low) else (low, inner)
    if not inside(1.0):
        outer, inner = 1.0, value
        for _ in range(STEPS):
            high = (outer + inner) / 2
            outer, inner = (outer, high) if inside(high) else (high, inner)
    return Rate(value, low, high, n)


def _times_log(count: int, p: float) -> float:
    return 0.0 if count == 0 else -inf if p == 0 else count * log(p)


def chance_of_sizes(counts: Sequence[int], shares: Sequence[float]) -> float:
    """How likely sizes as far from `shares` (which sum to 1) are to be seen ever, by who looks after every user: at most
    this, a p-value that holds at any time. 0.0 where somebody is counted in what has no share.

    One over the Bayes factor of a Dirichlet mixture around the shares, FOUND_AT_USERS dense (Lindon and Malek,
    "Anytime-Valid Inference for Multinomial Count Data", NeurIPS 2022, section 3).

    >>> round(chance_of_sizes([5_020, 4_980], [0.5, 0.5]), 3), chance_of_sizes([5_300, 4_700], [0.5, 0.5]) < 0.001
    (1.0, True)
    """
    if any(count and not share for count, share in zip(counts, shares, strict=True)):
        return 0.0
    known = [(count, share) for count, share in zip(counts, shares, strict=True) if share]
    evidence = lgamma(FOUND_AT_USERS) - lgamma(FOUND_AT_USERS + sum(counts))
    for count, share in known:
        prior = FOUND_AT_USERS * share
        evidence += lgamma(prior + count) - lgamma(prior) - count * log(share)
    return exp(min(0.0, -evidence))


class Sample(NamedTuple):
    """Outcomes of an arm's users, one each. `some`: users whose outcome is not 0. `before`: what the same was before they
    were in the experiment, its variance, and the covariance of the two; zeros where nothing is known."""

    n: int
    mean: float
    variance: float
    some: int
    before: float = 0.0
    before_variance: float = 0.0
    covariance: float = 0.0


class Difference(NamedTuple):
    value: float
    low: float
    high: float


def difference(one: Sample, other: Sample, alpha: float = ALPHA) -> Difference:
    """How much larger the mean of `one` is, with a confidence sequence at 1 - alpha; from -inf to inf while there is too
    little to say anything.

    Asymptotic, for outcomes of any distribution with a variance (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
    "Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 52, 2024, theorem 2.2, with
    the means' own variance for theirs). Outcomes are lowered by what users' own past foretells (CUPED: Deng, Xu, Kohavi and
    Walker, WSDM 2013). The variance is the larger of that of two arms apart and that of all users as one: where both arms
    are the same they agree, but a small arm in which the long tail of money has not shown itself yet is not as sure as it
    looks. For the same reason nothing is said before USERS_MIN users an arm and SOME_MIN outcomes.

    >>> [round(one, 3) for one in difference(Sample(20_000, 2.1, 9.0, 8_000), Sample(20_000, 2.0, 9.0, 8_000))]
    [0.1, 0.006, 0.194]
    """
    n = one.n + other.n
    if min(one.n, other.n) < USERS_MIN or one.some + other.some < SOME_MIN:
        return Difference(one.mean - other.mean, -inf, inf)
    before = one.before_variance / one.n + other.before_variance / other.n
    slope = (one.covariance / one.n + other.covariance / other.n) / before if before > 0 else 0.0
    value = one.mean - other.mean - slope * (one.before - other.before)
    left = [max(0.0, arm.variance - 2 * slope * arm.covariance + slope**2 * arm.before_variance) for arm in (one, other)]
    apart = left[0] / one.n + left[1] / other.n
    squares = (one.n - 1) * left[0] + (other.n - 1) * left[1] + one.n * other.n / n * value**2
    together = squares / (n - 1) * (1 / one.n + 1 / other.n)
    half = sqrt(max(apart, together)) * _times_sd(n, alpha)
    return Difference(value, value - half, value + half)


def _times_sd(n: int, alpha: float) -> float:
    """How many standard errors the sequence is wide on either side after n users.

    >>> round(_times_sd(10_000, 0.05), 2), round(_times_sd(100_000, 0.05), 2)
    (3.04, 3.24)
    """
    twice = -2 * log(alpha)
    spread = (twice + log(twice + 1)) / TIGHTEST_AT * n  # rho² n
    return sqrt((spread + 1) / spread * (2 * log(1 / alpha) + log(spread + 1)))
