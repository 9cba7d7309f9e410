"""What a visit works with: the shop floor, a shopper's mind and memory, and seeded draws."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from producers.simulate.catalog import Catalog
from producers.simulate.planted import BrandFall, Promotion, Shop, Strategy

DAY_MS = 86_400_000
DRAWS = 128  # uniform draws taken from numpy at a time: a single draw costs as much as fifty


class Shown(NamedTuple):
    """Recommendations as a shopper sees them; the id travels back in `properties.recommendation_id`."""

    items: Sequence[str]
    recommendation_id: str | None = None


Recommendations = Callable[[str], "list[str] | Shown"]


class Draws:
    """Uniform draws of one visit, taken from numpy in blocks."""

    __slots__ = ("_at", "_block", "rng")

    def __init__(self, *seed: int) -> None:
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self._block: list[float] = []
        self._at = 0

    def uniform(self) -> float:
        if self._at == len(self._block):
            self._block, self._at = self.rng.random(DRAWS).tolist(), 0
        self._at += 1
        return self._block[self._at - 1]

    def chance(self, p: float) -> bool:
        return self.uniform() < p

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.uniform()

    def below(self, n: int) -> int:
        return int(self.uniform() * n)

    def exponential(self, mean: float) -> float:
        return -mean * math.log(1.0 - self.uniform())


class Mind(NamedTuple):
    """A shopper's taste in one period: where to draw from, and what counts as in taste."""

    cumulative: npt.NDArray[np.float64]  # (I,)
    mask: bytes  # (I,)


class Memory:
    """What a shopper carries from visit to visit."""

    __slots__ = ("bought", "cycle_due_ms", "identified", "orders", "recent", "reviews", "sent", "visits")

    def __init__(self, cycles: int) -> None:
        self.bought: set[int] = set()
        self.cycle_due_ms = [0] * cycles
        self.identified: set[str] = set()  # devices the shopper has logged in on
        self.recent: list[int] = []
        self.reviews: list[tuple[int, int, float]] = []  # due, product, what its strategy adds to a good one
        self.orders = self.sent = self.visits = 0


class Floor(NamedTuple):
    """The shop as every visit sees it; `base[i]` are a product's properties in events, not to be changed."""

    shop: Shop
    catalog: Catalog
    base: list[dict[str, Any]]
    prices: list[float]
    noise: npt.NDArray[np.float64]  # cumulative, (I,)
    promotions: list[Promotion]
    fall: BrandFall
    world_id: str
    strategies: tuple[Strategy, ...] = ()


@functools.lru_cache(maxsize=1_024)
def _minute(number: int) -> str:
    return datetime.fromtimestamp(number * 60, UTC).strftime("%Y-%m-%dT%H:%M:")


def iso(ts_ms: int) -> str:
    """UTC with milliseconds.

    >>> iso(0), iso(1_767_225_661_042)
    ('1970-01-01T00:00:00.000Z', '2026-01-01T00:01:01.042Z')
    """
    minute, rest = divmod(ts_ms, 60_000)
    return f"{_minute(minute)}{rest / 1000:06.3f}Z"
