"""Intervals of rates that hold at any time, also for who looks after every single outcome."""

from __future__ import annotations

from math import log, sqrt
from typing import NamedTuple

ALPHA = 0.05
RHO2 = 0.085**2  # tightest at about 1,000 outcomes


class Rate(NamedTuple):
    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2%} of {self.n:,} ({self.low:.2%} to {self.high:.2%})"


def rate(successes: int, n: int) -> Rate:
    """A rate and its 95% confidence sequence: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, theorem 2.2. The variance
    is taken with one success and one failure more, or a rate of 0 would be sure of itself at once.

    >>> rate(0, 0).low, rate(0, 0).high
    (0.0, 1.0)
    >>> one = rate(100, 1000)
    >>> one.low < 0.1 < one.high < 0.15
    True
    """
    if n == 0:
        return Rate(0.0, 0.0, 1.0, 0)
    value, smooth = successes / n, (successes + 1) / (n + 2)
    width = sqrt(smooth * (1 - smooth)) * sqrt(2 * (n * RHO2 + 1) / (n * n * RHO2) * log(sqrt(n * RHO2 + 1) / ALPHA))
    return Rate(value, max(0.0, value - width), min(1.0, value + width), n)
