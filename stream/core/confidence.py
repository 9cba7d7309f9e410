"""Intervals of rates that hold at any time, also for who looks after every single outcome."""

from __future__ import annotations

from functools import lru_cache
from math import inf, lgamma, log
from typing import NamedTuple

ALPHA = 0.05
STEPS = 40  # of halving: to 12 digits


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
