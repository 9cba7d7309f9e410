"""The schedule of an open loop, and what its latencies come to. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Schedule(NamedTuple):
    """When each event is to be sent, fixed before the first one is: seconds since 1970.

    Latency counts from here and not from the sending, so an event that had to wait because the one before it was slow
    waits in the figures too (Tene, "How NOT to measure latency": coordinated omission).
    """

    start_s: float
    rate: float

    def due_s(self, number: int) -> float:
        """
        >>> Schedule(100.0, 200.0).due_s(50)
        100.25
        """
        return self.start_s + number / self.rate


class Percentiles(NamedTuple):
    """Of a sample of latencies, in ms."""

    n: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least `share` of the ascending sample does not exceed: always one that was seen.

    >>> [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.51, 0.99)]
    [2.0, 3.0, 4.0]
    """
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def percentiles(latencies_s: Iterable[float]) -> Percentiles:
    """Raises ValueError for an empty sample: no figure stands for nothing seen.

    >>> percentiles([0.1, 0.3, 0.2]).p50_ms
    200.0
    """
    ordered = sorted(latencies_s)
    if not ordered:
        raise ValueError("there is nothing to take percentiles of: nothing was seen")
    ms = [round(1000 * percentile(ordered, share), 1) for share in (0.5, 0.95, 0.99, 1.0)]
    return Percentiles(len(ordered), *ms)
