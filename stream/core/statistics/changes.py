"""When did it change? Page's cumulative sum over satisfaction in five levels, against what was usual for the same thing.

Each new opinion adds the log of how much likelier its level is after a fall than before; the sum never goes below 0, and a
fall is said when it passes the log of `opinions_per_false_alarm` (Page, "Continuous Inspection Schemes", 1954). Before: the
levels of the present regime but the last and the suspected ones, with a weak prior, tilted down by a tolerance that covers
how little is known (exponential tilting keeps the shape, so that no bell curve is assumed). After: tilted further by
one star. For opinions as before, the expected likelihood ratio is at most 1, so that the mean number of opinions between
false alarms is at least the limit (Lorden, "Procedures for Reacting to a Change in Distribution", 1971) but for what the
estimate of "before" is off; simulated figures are in docs/satisfaction.md. A rise is a fall of the mirrored levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

LEVELS = 5
FALL = 0.25  # of the mean that it is tuned to: one star
TOLERANCE = 0.05  # a fall that nobody need hear of
REFERENCE_MIN = 20  # opinions before anything is said
PRIOR = 2.0  # opinions' worth of even levels: what was never seen is not impossible
LOWEST_SHARE = 0.4  # of the usual mean that the tilted ones keep at least
_TILT_MAX = 40.0
_BISECTIONS = 24  # to 40 / 2^24


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    opinions_per_false_alarm: int = 1_000


class Run(msgspec.Struct, array_like=True):
    """The opinions that may be after a change: since the sum was last 0."""

    sum: float = 0.0
    levels: list[int] = msgspec.field(default_factory=lambda: [0] * LEVELS)
    total: float = 0.0
    since_ms: int = 0

    @property
    def n(self) -> int:
        return sum(self.levels)


def level(satisfaction: float) -> int:
    """
    >>> [level(one) for one in (0.0, 0.3, 0.5, 0.75, 1.0)]
    [0, 1, 2, 3, 4]
    """
    return min(LEVELS - 1, max(0, int(satisfaction * (LEVELS - 1) + 0.5)))


def tilted(shares: Sequence[float], mean: float) -> list[float]:
    """Shares of the levels with a lower mean, 0 to 1, and the same shape.

    >>> [round(one, 3) for one in tilted([0.0, 0.0, 0.5, 0.0, 0.5], 0.6)]
    [0.0, 0.0, 0.8, 0.0, 0.2]
    """
    low, high = 0.0, _TILT_MAX
    one, two, three, four = shares[1], shares[2], shares[3], shares[4]
    for _ in range(_BISECTIONS):
        tilt = (low + high) / 2
        q = math.exp(-tilt / (LEVELS - 1))  # by which each level is lowered once more than the one below it
        w1, w2, w3, w4 = one * q, two * q**2, three * q**3, four * q**4
        if w1 + 2 * w2 + 3 * w3 + 4 * w4 > mean * (LEVELS - 1) * (shares[0] + w1 + w2 + w3 + w4):
            low = tilt
        else:
            high = tilt
    weights = [share * math.exp(-high * at / (LEVELS - 1)) for at, share in enumerate(shares)]
    whole = sum(weights)
    return [one / whole for one in weights]


def mean_of(weights: Sequence[float]) -> float:
    """Mean satisfaction of weights of the levels, 0 to 1.

    >>> mean_of([1, 0, 0, 0, 3])
    0.75
    """
    return sum(at * one for at, one in enumerate(weights)) / (LEVELS - 1) / max(sum(weights), 1e-12)


def step(run: Run, before: Sequence[int], satisfaction: float, ts_ms: int, policy: Policy, *, rise: bool = False) -> bool:
    """Take one opinion into the run in place; True when the change is to be said. `before`: how many there were of each
    level, without those that are suspected."""
    own = level(satisfaction)
    n = sum(before)
    if n < REFERENCE_MIN:
        return False
    shares = [(count + PRIOR / LEVELS) / (n + PRIOR) for count in before]
    at = own
    if rise:
        shares, at = shares[::-1], LEVELS - 1 - own
    mean = mean_of(shares)
    spread = math.sqrt(sum(share * (k / (LEVELS - 1) - mean) ** 2 for k, share in enumerate(shares)))
    null_mean = max(mean - max(TOLERANCE, spread / math.sqrt(n)), (LOWEST_SHARE + 0.2) * mean)
    null = tilted(shares, null_mean)
    fallen = tilted(shares, max(null_mean - FALL, LOWEST_SHARE * null_mean))
    run.sum = max(0.0, run.sum) + math.log(fallen[at] / null[at])
    if run.sum <= 0:
        run.sum, run.levels, run.total, run.since_ms = 0.0, [0] * LEVELS, 0.0, 0
        return False
    if not run.n:
        run.since_ms = ts_ms
    run.levels[own] += 1
    run.total += satisfaction
    return run.sum > math.log(policy.opinions_per_false_alarm)
